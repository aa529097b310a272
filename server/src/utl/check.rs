//! `utl check` reads a whole tree file and says whether it is sound, and if not, where it is not.
//!
//! First every page, run and map page that the newest durable checkpoint reaches is read, so that all that is damaged is
//! named and not only the first of it; then structure, counts and allocation map; then what keys, history and leases say
//! of each other. The last two take memory that grows with the number of keys and of events kept.
//!
//! It holds the lock of the data directory meanwhile, and writes nothing else.

use super::Failure;
use crate::bootstrap;
use crate::config::member_dir;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

#[derive(Args)]
pub(crate) struct Check {
    /// The data directory of a member that does not run.
    data_dir: PathBuf,
}

pub(crate) fn run(arguments: Check, out: &mut dyn Write) -> Result<(), Failure> {
    let member = member_dir(&arguments.data_dir);
    let store = member.join("store");
    let file = store.join("tree.qdb");
    if !file.exists() {
        return Err(Failure::Told(format!(
            "{} has no {}: it is not the data directory of a member of this program, or the member never started",
            arguments.data_dir.display(),
            file.display()
        )));
    }
    let _lock = bootstrap::lock_member(&member).map_err(Failure::Told)?;
    let opened = engine::Engine::open(engine::Options {
        create: false,
        background: false,
        ..engine::Options::new(&store)
    });
    let (engine, _writer) = opened.map_err(|error| Failure::Told(error.to_string()))?;
    let view = engine.view();
    writeln!(out, "{}", engine.opening_report())?;
    writeln!(
        out,
        "revision {}, compact revision {}, applied index {} of term {}, rolling hash {:016x}",
        view.revision(),
        view.compact_revision(),
        view.applied().index,
        view.applied().term,
        view.rolling_hash()
    )?;
    let report = engine.read_all();
    writeln!(out, "read: {} bytes are good", report.bytes)?;
    if report.damaged > 0 {
        for line in &report.damage {
            writeln!(out, "damaged: {line}")?;
        }
        let more = report.damaged - report.damage.len() as u64;
        if more > 0 {
            writeln!(out, "damaged: {more} more places")?;
        }
        return Err(Failure::Told(format!(
            "{} is damaged in {} places",
            file.display(),
            report.damaged
        )));
    }
    let broken = |error: engine::Error| Failure::Told(format!("{}: {error}", file.display()));
    let structure = engine.check_file().map_err(broken)?;
    writeln!(
        out,
        "structure: checkpoint {}, {} pages, {} entries, {} runs, {} units",
        structure.checkpoint, structure.pages, structure.entries, structure.runs, structure.units
    )?;
    let contents = engine.check(&view).map_err(broken)?;
    writeln!(
        out,
        "contents: {} keys, {} tombstones, {} events in {} chunks, {} large values, {} lease attachments, {} system records",
        contents.keys,
        contents.tombstones,
        contents.events,
        contents.chunks,
        contents.value_runs,
        contents.attachments,
        contents.sys_records
    )?;
    writeln!(out, "{} is sound", file.display())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Applied, Engine, Options};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn data_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("member")).unwrap();
        let (engine, mut writer) =
            Engine::open(Options::new(dir.path().join("member/store"))).unwrap();
        for i in 0..500u32 {
            let mut txn = writer.txn();
            let value = vec![i as u8; if i % 50 == 0 { 9000 } else { 100 }];
            txn.put(format!("key{i:05}").into(), value.into(), 0)
                .unwrap();
            txn.finish();
        }
        writer.publish(
            Applied {
                index: 500,
                term: 2,
            },
            b"",
        );
        let number = writer.checkpoint().unwrap().unwrap();
        engine.wait_durable(number).unwrap();
        dir
    }

    fn check(dir: &Path) -> (String, Option<String>) {
        let mut out = Vec::new();
        let arguments = Check {
            data_dir: dir.to_path_buf(),
        };
        let told = match run(arguments, &mut out) {
            Ok(()) => None,
            Err(Failure::Told(what)) => Some(what),
            Err(Failure::Closed) => panic!("a vector does not close"),
        };
        (String::from_utf8(out).unwrap(), told)
    }

    fn files(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
                found.insert(path, Vec::new());
            } else if path.file_name().unwrap() != "lock" {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path, bytes);
            }
        }
    }

    #[test]
    fn a_sound_file_is_called_sound_and_left_as_it_is() {
        let dir = data_dir();
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        files(dir.path(), &mut before);
        let (out, told) = check(dir.path());
        assert_eq!(told, None, "{out}");
        for part in [
            "revision 501",
            "applied index 500 of term 2",
            "500 keys",
            "10 large values",
            "is sound",
        ] {
            assert!(out.contains(part), "{part} is missing in {out}");
        }
        files(dir.path(), &mut after);
        assert!(before == after);
    }

    #[test]
    fn everything_damaged_is_named_with_its_place() {
        let dir = data_dir();
        let path = dir.path().join("member/store/tree.qdb");
        let mut bytes = std::fs::read(&path).unwrap();
        // Leaves of 8 KiB: kind 1 at byte 4.
        let mut damaged = Vec::new();
        for at in (131_072..bytes.len() - 8192).step_by(4096) {
            let unit = u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap());
            if bytes[at + 4] == 1
                && bytes[at + 6] == 0
                && unit == at as u64 / 4096
                && damaged.len() < 3
            {
                bytes[at + 4000] ^= 1;
                damaged.push(at);
            }
        }
        assert_eq!(damaged.len(), 3);
        std::fs::write(&path, bytes).unwrap();
        let (out, told) = check(dir.path());
        assert!(told.unwrap().contains("damaged in 3 places"), "{out}");
        for at in damaged {
            assert!(out.contains(&format!("offset {at}:")), "{at} in {out}");
        }
    }

    #[test]
    fn a_running_member_and_a_foreign_directory_are_refused() {
        let dir = data_dir();
        let lock = bootstrap::lock_member(&dir.path().join("member")).unwrap();
        let (_, told) = check(dir.path());
        assert!(told.unwrap().contains("in use by another process"));
        drop(lock);
        let empty = tempfile::tempdir().unwrap();
        let (_, told) = check(empty.path());
        assert!(told.unwrap().contains("not the data directory"));
        assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    }
}
