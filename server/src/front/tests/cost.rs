//! What a call costs that is answered at once: CPU time of the network threads per call.
//!
//! Measures only when `QUORATE_COST_SECONDS` says for how long; figures mean something in a release
//! build. The client runs in this process, so only the time of the `net-` threads counts.

use super::*;
use std::time::{Duration, Instant};

/// User and system time of the network threads, in clock ticks.
fn network_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of_task = |path: PathBuf| -> Option<u64> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        head.contains("(net-").then_some(ticks)
    };
    tasks.filter_map(|task| of_task(task.unwrap().path())).sum()
}

async fn keep_calling(raw: Raw, until: Instant, done: Arc<AtomicUsize>) {
    let n = note(1, vec![7; 256]);
    while Instant::now() < until {
        raw.echo(&n).await;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn cost_of_an_echo() {
    let Ok(seconds) = std::env::var("QUORATE_COST_SECONDS") else {
        return;
    };
    let span = Duration::from_secs_f64(seconds.parse().expect("a number"));
    let f = start(Settings::default(), 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (connections, calls) in [(1, 1), (10, 1), (10, 10), (10, 100)] {
        let done = Arc::new(AtomicUsize::new(0));
        let (ticks, wall) = runtime.block_on(async {
            let mut tasks = Vec::new();
            let mut raws = Vec::new();
            for _ in 0..connections {
                raws.push(f.raw().await);
            }
            let (ticks, begin) = (network_ticks(), Instant::now());
            for raw in raws {
                for _ in 0..calls {
                    let task = keep_calling(raw.clone(), begin + span, done.clone());
                    tasks.push(tokio::spawn(task));
                }
            }
            for task in tasks {
                task.await.unwrap();
            }
            (network_ticks() - ticks, begin.elapsed())
        });
        let count = done.load(Ordering::Relaxed) as f64;
        println!(
            "{connections}x{calls}: {:.2} us CPU per call, {:.0} calls/s",
            ticks as f64 * 10_000.0 / count,
            count / wall.as_secs_f64()
        );
    }
}
