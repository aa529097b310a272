//! What we believe about our own tree, as tests: which way things point, what may not be written,
//! what every file must say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
        .to_owned()
}

fn files(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                files(&path, extension, out);
            }
        } else if name.ends_with(extension) {
            out.push(path);
        }
    }
}

/// Repository path and text of every Rust file.
fn rust_files() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    files(&root(), ".rs", &mut paths);
    paths.sort();
    let read = |p: PathBuf| (relative(&p), fs::read_to_string(&p).expect("source"));
    paths.into_iter().map(read).collect()
}

fn relative(path: &Path) -> String {
    let below = path.strip_prefix(root()).expect("below the root");
    below.to_string_lossy().into_owned()
}

/// The names in one section of a manifest.
fn dependencies(manifest: &str, section: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).expect(manifest);
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == format!("[{section}]");
        } else if inside && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            names.insert(name.to_owned());
        }
    }
    names
}

const OWN: [&str; 10] = [
    "engine",
    "raftlog",
    "simdisk",
    "consensus",
    "quorate-proto",
    "raft-proto",
    "protobuf",
    "quorate",
    "benches",
    "quorate-tests",
];

#[test]
fn crates_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("engine", &["simdisk"][..]),
        ("raftlog", &["simdisk"]),
        ("tests/simdisk", &[]),
        ("server/consensus", &["raft-proto"]),
        ("server/proto", &[]),
        ("server/raft-proto", &["protobuf"]),
        ("server/protobuf", &[]),
        (
            "server",
            &["consensus", "engine", "quorate-proto", "raftlog"],
        ),
    ]);
    for (dir, allowed) in allowed {
        let named = dependencies(&format!("{dir}/Cargo.toml"), "dependencies");
        for name in OWN.iter().filter(|n| named.contains(**n)) {
            assert!(allowed.contains(name), "{dir} must not depend on {name}");
        }
    }
    for dir in ["engine", "raftlog", "server/consensus"] {
        let named = dependencies(&format!("{dir}/Cargo.toml"), "dependencies");
        for runtime in ["tokio", "hyper", "tonic", "prost"] {
            assert!(
                !named.contains(runtime),
                "{dir} must not depend on {runtime}"
            );
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let page = fs::read_to_string(root().join("docs/dependencies.md")).expect("the page");
    let first_cells = page
        .lines()
        .filter_map(|l| l.strip_prefix('|')?.split('|').next());
    let explained: BTreeSet<&str> = first_cells
        .flat_map(|c| c.split(','))
        .map(str::trim)
        .collect();
    let mut manifests = Vec::new();
    files(&root(), "Cargo.toml", &mut manifests);
    for manifest in manifests.iter().map(|m| relative(m)) {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for name in dependencies(&manifest, section) {
                assert!(
                    OWN.contains(&name.as_str()) || explained.contains(name.as_str()),
                    "{manifest}: {name} is not explained in docs/dependencies.md"
                );
            }
        }
    }
}

/// The part of a file before its test module, without comment lines.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().filter(|l| !l.trim_start().starts_with("//"))
}

#[test]
fn the_consensus_crate_is_pure() {
    let banned = [
        "std::fs",
        "std::net",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "Mutex",
        "thread_rng",
        "println!",
        "HashMap",
        "HashSet",
    ];
    for (name, text) in rust_files() {
        if !name.starts_with("server/consensus/src/") || name.contains("test") {
            continue;
        }
        for word in banned {
            let found = code(&text).find(|l| l.contains(word));
            assert!(found.is_none(), "{name} names {word}: {found:?}");
        }
    }
}

/// Which modules of the server a module may name. A new edge is a visible choice.
#[test]
fn server_modules_point_one_way() {
    let never: [(&str, &[&str]); 6] = [
        ("api", &["net", "grpc", "http", "member", "bootstrap"]),
        (
            "apply",
            &[
                "net",
                "grpc",
                "http",
                "member",
                "bootstrap",
                "api",
                "watch",
                "config",
            ],
        ),
        ("watch", &["net", "grpc", "http", "member", "bootstrap"]),
        (
            "lease",
            &["net", "grpc", "http", "member", "bootstrap", "api"],
        ),
        (
            "node",
            &["net", "grpc", "http", "member", "bootstrap", "api"],
        ),
        (
            "config",
            &[
                "net",
                "grpc",
                "http",
                "member",
                "bootstrap",
                "api",
                "apply",
                "node",
            ],
        ),
    ];
    for (name, text) in rust_files() {
        let Some(rest) = name.strip_prefix("server/src/") else {
            continue;
        };
        let module = rest.split(['/', '.']).next().unwrap_or_default();
        if name.contains("test") {
            continue;
        }
        for (from, forbidden) in never.iter().filter(|(from, _)| *from == module) {
            for to in *forbidden {
                let edge = format!("crate::{to}::");
                // Which thread a call runs on is the one thing handlers may ask the network.
                let asks_thread = |l: &&str| l.contains("net::current_thread_index");
                let found = code(&text).find(|l| l.contains(&edge) && !asks_thread(l));
                assert!(
                    found.is_none(),
                    "{from} must not name {to}: {name}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    for (name, text) in rust_files() {
        let is_test = name.ends_with("tests.rs") || name.contains("/tests/");
        if !is_test || name.starts_with("tests/tests/") {
            assert!(
                text.starts_with("//!"),
                "{name} does not open with what it is and why"
            );
        }
    }
}

#[test]
fn nothing_half_done_is_in_the_tree() {
    // Put together here so that this file does not contain them.
    let banned = [
        ["todo", "!("].concat(),
        ["unimpl", "emented!("].concat(),
        ["#[ign", "ore"].concat(),
        ["FIX", "ME"].concat(),
        ["/wo", "rk/"].concat(),
        ["../sha", "red"].concat(),
    ];
    for (name, text) in rust_files() {
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{name} contains {word}");
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_leaves() {
    // The modules that may hold unsafe blocks, each with its obligation and a test.
    let leaves = [
        "engine/src/store/io/",
        "engine/src/store/node.rs",
        "engine/src/store/slabs.rs",
        "engine/src/store/prefetch.rs",
        "engine/src/events/append_buf.rs",
        "engine/src/events/cells.rs",
        "raftlog/src/disk/",
        "raftlog/src/flush/",
        "raftlog/src/buffer.rs",
        "raftlog/src/tests/",
        "engine/src/store/tests/figures.rs",
        "engine/tests/loom/",
        "server/src/net/",
        "server/src/metrics/process.rs",
        "benches/",
        "tests/",
    ];
    for (name, text) in rust_files() {
        let found = code(&text).find(|l| l.contains("unsafe {") || l.contains("unsafe impl"));
        assert!(
            found.is_none() || leaves.iter().any(|leaf| name.starts_with(leaf)),
            "{name} holds unsafe code outside the leaf modules: {found:?}"
        );
    }
}
