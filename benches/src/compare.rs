//! Ours against etcd, in one run on one machine.

use crate::driver::{self, Measured};
use crate::report::{self, HEADER};
use crate::server;
use crate::{AnyError, CompareArgs};
use std::path::PathBuf;

/// Runs the comparison and prints one table, ratios last.
pub async fn run(args: CompareArgs) -> Result<(), AnyError> {
    let etcd = args
        .etcd
        .clone()
        .or_else(|| std::env::var_os("ETCD_BIN").map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from("etcd"));
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
    let names = [server::version(&args.ours)?, server::version(&etcd)?];
    println!(
        "{} against {}; {} keys, {}-byte values, {} rounds of {} s, medians by CPU\n",
        names[0],
        names[1],
        args.load.key_space,
        args.load.value_bytes,
        args.rounds,
        args.load.seconds
    );
    let servers = [
        server::start(&args.ours, "ours", &dir, &args.ours_flag).await?,
        server::start(&etcd, "etcd", &dir, &[]).await?,
    ];
    for server in &servers {
        driver::preload(&server.target, &args.load).await?;
    }
    println!("{HEADER}");
    let mut ratios = Vec::new();
    for &kind in &args.workload {
        for &shape in &args.shapes {
            let mut rounds: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
            for _ in 0..args.rounds {
                for (server, rounds) in servers.iter().zip(&mut rounds) {
                    rounds.push(
                        driver::measure(
                            &server.target,
                            kind,
                            shape,
                            &args.load,
                            crate::pace(args.rate),
                        )
                        .await?,
                    );
                }
            }
            let [ours, theirs] = rounds.map(report::median);
            let (Some(ours), Some(theirs)) = (ours, theirs) else {
                return Err("no rounds were asked for".into());
            };
            println!("{}", report::row("ours", kind, shape, &ours));
            println!("{}", report::row("etcd", kind, shape, &theirs));
            ratios.push((kind, shape, ours, theirs));
        }
    }
    println!(
        "\n| workload | shape | etcd CPU / ours | ours req/s / etcd | etcd p50 / ours | etcd p99 / ours |"
    );
    println!("|---|---|---|---|---|---|");
    for (kind, shape, ours, theirs) in ratios {
        let cpu = match (theirs.cpu_us, ours.cpu_us) {
            (Some(t), Some(o)) if o > 0.0 => format!("{:.1}", t / o),
            _ => "–".to_owned(),
        };
        println!(
            "| {} | {}x{} | {cpu} | {:.2} | {:.2} | {:.2} |",
            kind.name(),
            shape.connections,
            shape.streams,
            ours.per_second / theirs.per_second,
            theirs.p50_us as f64 / ours.p50_us.max(1) as f64,
            theirs.p99_us as f64 / ours.p99_us.max(1) as f64,
        );
    }
    Ok(())
}
