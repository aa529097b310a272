//! Prints the figures of `docs/benchmarks.md` that concern the storage engine.
//!
//! ```text
//! engine-figures [peers] [volume] [mixed] [compaction] [defragmentation] [open] [versions] [memory]
//! ```
//!
//! Without names all but `memory`, which needs room for `QUORATE_LARGE_GB` (10) and asks for it first. `QUORATE_KEYS` (1,000,000)
//! sets the size of the data, `QUORATE_OPEN_KEYS` (10,000,000) that of the large file to open, `QUORATE_ROUNDS` (3)
//! how often engines alternate, `QUORATE_PUTS` (50,000) how many puts a phase of `mixed` has, and `QUORATE_BENCH_DIR` where files lie. Figures of work in memory are CPU time of
//! the calling thread, the middle of the rounds; where a disk is waited for, it is the clock, too.

mod background;
mod files;
mod peers;

use std::path::PathBuf;

/// What the environment sets.
pub struct Setup {
    pub keys: u64,
    pub open_keys: u64,
    pub rounds: u64,
    pub dir: Option<PathBuf>,
}

impl Setup {
    fn read() -> Setup {
        Setup {
            keys: number("QUORATE_KEYS", 1_000_000),
            open_keys: number("QUORATE_OPEN_KEYS", 10_000_000),
            rounds: number("QUORATE_ROUNDS", 3),
            dir: std::env::var_os("QUORATE_BENCH_DIR").map(PathBuf::from),
        }
    }

    /// A directory that goes when the value goes.
    pub fn dir(&self) -> tempfile::TempDir {
        match &self.dir {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        }
        .expect("a directory")
    }
}

/// Takes figures and prints them.
type Section = fn(&Setup);

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn main() {
    let setup = Setup::read();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let sections: [(&str, Section); 8] = [
        ("peers", peers::peers),
        ("volume", files::volume),
        ("mixed", background::mixed),
        ("compaction", background::compaction),
        ("defragmentation", background::defragmentation),
        ("open", files::open),
        ("versions", files::versions),
        ("memory", files::memory),
    ];
    if let Some(unknown) = wanted
        .iter()
        .find(|name| sections.iter().all(|(known, _)| known != name))
    {
        eprintln!("no figures are called {unknown}");
        std::process::exit(2);
    }
    let started = std::time::Instant::now();
    for (name, run) in sections {
        let chosen = wanted.iter().any(|wanted| wanted == name);
        if chosen || wanted.is_empty() && name != "memory" {
            let started = std::time::Instant::now();
            run(&setup);
            eprintln!("{name}: {} s", started.elapsed().as_secs());
        }
    }
    println!("\n{} s in all", started.elapsed().as_secs());
}
