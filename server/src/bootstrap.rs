//! From a data directory to the pieces of a member, in the one order that is safe.
//!
//! 1. Take the lock of the data directory. 2. Refuse foreign files. 3. Open the log and recover it.
//! 4. Open the tree at its newest durable checkpoint. 5. Demand that the two fit:
//!    first index − 1 ≤ applied ≤ last index. 6. A directory without data founds a cluster of one
//!    whose first log entry adds this member, as etcd does.
//!
//! Invariants:
//! 1. Nothing outside `member/lock`, `member/log` and `member/store` is created, and no file that is
//!    not ours is written or removed.
//! 2. A tree that is ahead of its log, or behind the log's start, is never served: acknowledged
//!    entries would be missing.

use crate::config::Config;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The paths of a member.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `<data-dir>/member`.
    pub member: PathBuf,
    /// Log segments.
    pub log: PathBuf,
    /// The tree file.
    pub store: PathBuf,
}

impl Layout {
    /// The paths for these settings.
    pub fn of(config: &Config) -> Layout {
        let member = crate::config::member_dir(&config.data_dir);
        Layout {
            log: match &config.wal_dir {
                Some(dir) => dir.join("log"),
                None => member.join("log"),
            },
            store: member.join("store"),
            member,
        }
    }
}

/// Holds the data directory for this process; released when dropped or when the process ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

fn create_dir(path: &Path) -> Result<(), String> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| format!("cannot create {}: {e}", path.display()))
}

/// Creates the directories, refuses foreign ones and takes the lock.
pub fn claim(layout: &Layout) -> Result<DataDirLock, String> {
    refuse_foreign(layout)?;
    create_dir(&layout.member)?;
    let path = layout.member.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| format!("cannot open the lock file {}: {e}", path.display()))?;
    if let Err(error) = file.try_lock() {
        if let TryLockError::Error(error) = error {
            return Err(format!("cannot lock {}: {error}", path.display()));
        }
        let holder = fs::read_to_string(&path).unwrap_or_default();
        let holder = match holder.trim() {
            "" => String::new(),
            pid => format!(" (process {pid})"),
        };
        return Err(format!(
            "the data directory {} is in use by another process{holder}: {} is locked",
            layout.member.display(),
            path.display()
        ));
    }
    // The holder's number is a courtesy to whoever is refused; the lock is what counts.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    create_dir(&layout.log)?;
    create_dir(&layout.store)?;
    Ok(DataDirLock { _file: file })
}

/// etcd's own files are not ours to touch; import is a capability of its own.
fn refuse_foreign(layout: &Layout) -> Result<(), String> {
    for foreign in [
        layout.member.join("snap").join("db"),
        layout.member.join("wal"),
    ] {
        if foreign.exists() && !layout.store.exists() {
            return Err(format!(
                "{} was written by etcd: importing etcd's data directory is not supported yet; \
                 nothing was changed. Start with another --data-dir, or keep running etcd on this one",
                foreign.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path) -> Layout {
        let member = dir.join("member");
        Layout {
            log: member.join("log"),
            store: member.join("store"),
            member,
        }
    }

    #[test]
    fn the_second_process_is_refused_and_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let held = claim(&layout).unwrap();
        let refused = claim(&layout).unwrap_err();
        assert!(refused.contains("in use by another process"), "{refused}");
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(held);
        claim(&layout).unwrap();
    }

    #[test]
    fn directories_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let _lock = claim(&layout).unwrap();
        for path in [&layout.member, &layout.log, &layout.store] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_directory_of_etcd_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        fs::create_dir_all(layout.member.join("snap")).unwrap();
        fs::write(layout.member.join("snap/db"), b"bolt").unwrap();
        let refused = claim(&layout).unwrap_err();
        assert!(refused.contains("was written by etcd"), "{refused}");
        assert_eq!(fs::read_dir(&layout.member).unwrap().count(), 1);
    }
}
