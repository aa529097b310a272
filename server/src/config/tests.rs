use super::*;

fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let parsed = parse(
        args.iter().map(OsString::from),
        env.iter().map(|(k, v)| (k.into(), v.into())),
    )?;
    match parsed {
        Request::Run(config) => Ok(*config),
        Request::Print(text) => panic!("asked to print {text}"),
    }
}

fn message(args: &[&str], env: &[(&str, &str)]) -> String {
    run(args, env).expect_err("must be refused").message
}

#[test]
fn defaults_need_no_flag_at_all() {
    let config = run(&[], &[]).unwrap();
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
    assert_eq!(config.listen_client_urls[0].url, "http://localhost:2379");
    assert_eq!(config.initial_cluster.members.len(), 1);
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn our_own_flags_reach_the_configuration() {
    let engine = engine::Options::new("");
    let config = run(&[], &[]).unwrap();
    // As the engine has them by itself.
    assert_eq!(config.fragmentation_max, engine.fragmentation_max);
    assert_eq!(config.scrub_bytes_per_second, engine.scrub_bytes_per_second);
    assert_eq!(config.history_pin_max, engine.history_pin_max);
    let args = [
        "--fragmentation-max=35",
        "--scrub-bytes-per-second=0",
        "--history-pin-max=90s",
    ];
    let config = run(&args, &[]).unwrap();
    assert_eq!(config.fragmentation_max, 35);
    assert_eq!(config.scrub_bytes_per_second, 0);
    assert_eq!(config.history_pin_max, Duration::from_secs(90));
    assert!(message(&["--fragmentation-max=101"], &[]).contains("--fragmentation-max"));
    assert!(message(&["--scrub-bytes-per-second=-1"], &[]).contains("scrub-bytes-per-second"));
    assert!(message(&["--history-pin-max=soon"], &[]).contains("history-pin-max"));
}

#[test]
fn every_way_to_write_a_flag_is_taken() {
    for args in [
        &["--name=a"][..],
        &["--name", "a"],
        &["-name", "a"],
        &["-name=a"],
    ] {
        assert_eq!(run(args, &[]).unwrap().name, "a");
    }
    assert_eq!(run(&[], &[("ETCD_NAME", "b")]).unwrap().name, "b");
    assert_eq!(run(&["-log-level", "warn"], &[]).unwrap().log_level, "warn");
    assert!(run(&["--pre-vote"], &[]).is_ok());
    assert!(run(&["--pre-vote=true"], &[]).is_ok());
    assert_eq!(run(&["--pre-vote", "true"], &[]).unwrap_err().exit, 2);
    assert_eq!(
        run(&["--quota-backend-bytes", "-1"], &[])
            .unwrap()
            .quota_backend_bytes,
        -1
    );
}

#[test]
fn mistakes_name_the_culprit() {
    let unknown = run(&["--no-such-flag=1"], &[]).unwrap_err();
    assert!(unknown.message.contains("--no-such-flag"), "{unknown:?}");
    assert_eq!(unknown.exit, 2);
    assert!(message(&["stray"], &[]).contains("stray"));
    assert!(message(&["--max-txn-ops=x"], &[]).contains("max-txn-ops"));
    assert!(
        message(&["--name=a"], &[("ETCD_NAME", "a")])
            .contains("conflicting environment variable \"ETCD_NAME\"")
    );
    assert!(
        message(&["--listen-client-urls=http://127.0.0.1:1"], &[])
            .contains("--advertise-client-urls is required")
    );
    assert!(message(&["--election-timeout=400"], &[]).contains("5 times"));
    assert!(message(&["--config-file=/nonexistent/file"], &[]).contains("/nonexistent/file"));
    assert!(message(&["--feature-gates=Nope=true"], &[]).contains("Nope"));
}

#[test]
fn a_flag_that_touches_safety_is_refused_by_name() {
    for flag in FLAGS {
        if let Verdict::Refused(_) = flag.verdict {
            let value = match flag.kind {
                Kind::Bool => (!parse_bool(flag.default).unwrap()).to_string(),
                Kind::Int | Kind::Uint => "7".to_owned(),
                Kind::Duration => "77s".to_owned(),
                Kind::Text | Kind::List => "x".to_owned(),
            };
            let arg = format!("--{}={value}", flag.name);
            let said = message(&[&arg], &[]);
            assert!(said.contains(&format!("--{}", flag.name)), "{said}");
            assert!(said.contains("refused"), "{said}");
            let env = flag.env();
            assert!(message(&[], &[(&env, &value)]).contains(flag.name));
            // The default itself is always fine.
            if !flag.default.is_empty() {
                let arg = format!("--{}={}", flag.name, flag.default);
                run(&[&arg], &[]).unwrap();
            }
        }
    }
    assert!(
        message(
            &[
                "--listen-client-urls=https://127.0.0.1:1",
                "--advertise-client-urls=https://h:1"
            ],
            &[]
        )
        .contains("TLS")
    );
}

#[test]
fn a_flag_without_effect_is_reported() {
    for flag in FLAGS {
        if let Verdict::Warns(_) = flag.verdict {
            let value = match flag.kind {
                Kind::Bool => (!parse_bool(flag.default).unwrap()).to_string(),
                Kind::Int | Kind::Uint => "7".to_owned(),
                Kind::Duration => "77s".to_owned(),
                Kind::Text | Kind::List => "http://127.0.0.1:1".to_owned(),
            };
            let arg = format!("--{}={value}", flag.name);
            let config = run(&[&arg], &[]).unwrap();
            assert!(
                config
                    .warnings
                    .iter()
                    .any(|w| w.contains(&format!("--{} ", flag.name))),
                "{}: {:?}",
                flag.name,
                config.warnings
            );
        }
    }
}

#[test]
fn unknown_variables_are_warned_about() {
    let config = run(
        &[],
        &[("ETCD_ON_K8S", "yes"), ("ETCD_EMPTY", ""), ("HOME", "x")],
    )
    .unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("ETCD_ON_K8S"));
}

#[test]
fn a_config_file_replaces_everything_else() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    std::fs::write(
        &path,
        "name: filed\nsome-unknown-key: 1\nwatch-progress-notify-interval: 5000000000\n\
         log-outputs: [stderr]\nauto-compaction-retention: \"1\"\nmax-txn-ops: 7\n",
    )
    .unwrap();
    let arg = format!("--config-file={path}");
    let config = run(&[&arg, "--name=other"], &[("ETCD_DATA_DIR", "/elsewhere")]).unwrap();
    assert_eq!(config.name, "filed");
    assert_eq!(config.data_dir, PathBuf::from("filed.etcd"));
    assert_eq!(
        config.watch_progress_notify_interval,
        Duration::from_secs(5)
    );
    assert_eq!(config.max_txn_ops, 7);
    assert_eq!(
        config.auto_compaction,
        AutoCompaction::Periodic(Duration::from_secs(3600))
    );
    for wrong in [
        "watch-progress-notify-interval: 5s\n",
        "listen-client-urls: [http://127.0.0.1:1]\n",
        "auto-compaction-retention: 1\n",
        "max-txn-ops: \"7\"\n",
        "client-transport-security:\n  cert-file: a.pem\n",
        "- a\n",
    ] {
        std::fs::write(&path, wrong).unwrap();
        run(&[&arg], &[]).expect_err(wrong);
    }
}

#[test]
fn auto_compaction_takes_hours_durations_and_revisions() {
    assert_eq!(
        auto_compaction("periodic", "30m").unwrap(),
        AutoCompaction::Periodic(Duration::from_secs(1800))
    );
    assert_eq!(
        auto_compaction("revision", "1000").unwrap(),
        AutoCompaction::Revisions(1000)
    );
    assert_eq!(
        auto_compaction("periodic", "0").unwrap(),
        AutoCompaction::Off
    );
    assert!(auto_compaction("weekly", "1").is_err());
    assert!(auto_compaction("revision", "5m").is_err());
}

#[test]
fn help_and_version_print() {
    let Ok(Request::Print(help)) = parse(["--help".into()], []) else {
        panic!("no help");
    };
    for flag in FLAGS {
        assert!(help.contains(&format!("--{}", flag.name)), "{}", flag.name);
    }
    let Ok(Request::Print(version)) = parse(["--version".into()], []) else {
        panic!("no version");
    };
    let lines: Vec<&str> = version.lines().collect();
    assert!(lines[0].starts_with("etcd Version: 3."));
    assert!(lines[3].starts_with("Go OS/Arch: "));
    assert!(lines[4].starts_with("Quorate Version: "));
}

/// `docs/status.md` has one row per flag with the same verdict.
#[test]
fn the_status_page_agrees_with_the_table() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/status.md"))
        .expect("docs/status.md");
    let mut rows = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [name, verdict, ..] = cells[..]
            && let Some(name) = name.strip_prefix("`--").and_then(|n| n.strip_suffix('`'))
        {
            assert!(
                rows.insert(name.to_owned(), verdict.to_owned()).is_none(),
                "two rows for {name}"
            );
        }
    }
    for flag in FLAGS {
        let expected = match flag.verdict {
            Verdict::Works => "works",
            Verdict::Warns(_) => "accepted without effect: warns",
            Verdict::Refused(_) => "refused",
        };
        assert_eq!(
            rows.remove(flag.name).as_deref(),
            Some(expected),
            "row of --{}",
            flag.name
        );
    }
    assert!(rows.is_empty(), "rows without a flag: {rows:?}");
}
