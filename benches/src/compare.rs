//! Ours against one etcd or several, in one run on one machine.

use crate::driver;
use crate::procfs;
use crate::report::{self, HEADER};
use crate::server;
use crate::{AnyError, CompareArgs};
use std::path::PathBuf;

/// Runs the comparison and prints one table, ratios last.
pub async fn run(args: CompareArgs) -> Result<(), AnyError> {
    let mut etcds = args.etcd.clone();
    if etcds.is_empty() {
        let named = std::env::var_os("ETCD_BIN").unwrap_or_else(|| "etcd".into());
        etcds.push(PathBuf::from(named));
    }
    let temporary;
    let dir = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            dir.clone()
        }
        None => {
            temporary = tempfile::tempdir()?;
            temporary.path().to_owned()
        }
    };
    let mut servers = vec![server::start(&args.ours, "ours", &dir, &args.ours_flag).await?];
    let mut names = vec![server::version(&args.ours)?];
    for (n, etcd) in etcds.iter().enumerate() {
        servers.push(server::start(etcd, &format!("etcd{n}"), &dir, &[]).await?);
        names.push(server::version(etcd)?);
    }
    println!(
        "{}; {} keys, {}-byte values, {} rounds of {} s, medians by CPU\n",
        names.join(" against "),
        args.load.key_space,
        args.load.value_bytes,
        args.rounds,
        args.load.seconds
    );
    for (server, name) in servers.iter().zip(&names) {
        let idle = server.target.pid.and_then(procfs::usage);
        let idle_mb = idle.map_or(0.0, |u| u.rss_bytes as f64 / 1e6);
        println!("{name}: {idle_mb:.0} MB resident when empty");
        driver::preload(&server.target, &args.load).await?;
    }
    println!();
    println!("{HEADER}");
    let mut ratios = Vec::new();
    for &kind in &args.workload {
        for &shape in &args.shapes {
            let mut rounds = vec![Vec::new(); servers.len()];
            for _ in 0..args.rounds {
                for (server, rounds) in servers.iter().zip(&mut rounds) {
                    let pace = crate::pace(args.rate);
                    let target = &server.target;
                    rounds.push(driver::measure(target, kind, shape, &args.load, pace).await?);
                }
            }
            let medians: Option<Vec<_>> = rounds.into_iter().map(report::median).collect();
            let medians = medians.ok_or("no rounds were asked for")?;
            for (name, measured) in names.iter().zip(&medians) {
                println!("{}", report::row(name, kind, shape, measured));
            }
            ratios.push((kind, shape, medians));
        }
    }
    println!(
        "\n| against | workload | shape | its CPU / ours | ours req/s / its | its p50 / ours | its p99 / ours |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (n, name) in names.iter().enumerate().skip(1) {
        for (kind, shape, medians) in &ratios {
            let [ours, theirs] = [&medians[0], &medians[n]];
            let cpu = match (theirs.cpu_us, ours.cpu_us) {
                (Some(t), Some(o)) if o > 0.0 => format!("{:.1}", t / o),
                _ => "–".to_owned(),
            };
            println!(
                "| {name} | {} | {}x{} | {cpu} | {:.2} | {:.2} | {:.2} |",
                kind.name(),
                shape.connections,
                shape.streams,
                ours.per_second / theirs.per_second,
                theirs.p50_us as f64 / ours.p50_us.max(1) as f64,
                theirs.p99_us as f64 / ours.p99_us.max(1) as f64,
            );
        }
    }
    Ok(())
}
