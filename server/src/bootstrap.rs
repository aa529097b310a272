//! From a data directory to the pieces of a member, in the one order that is safe.
//!
//! 1. Refuse foreign files. 2. Take the lock of the data directory. 3. Open the tree at its newest
//!    durable checkpoint. 4. Open the log and recover it, knowing what the tree has applied. 5. Demand
//!    that the two fit: first index − 1 ≤ applied ≤ last index. 6. A directory without data founds a
//!    cluster of one whose first log entry adds this member, as etcd does. Only then the flags say who
//!    this member is; with data they are not looked at.
//!
//! Invariants:
//! 1. Nothing outside `member/lock`, `member/log` and `member/store` is created, and no file that is
//!    not ours is written or removed.
//! 2. A tree that is ahead of its log, or behind the log's start, is never served: acknowledged
//!    entries would be missing.
//! 3. The name of a directory is durable before anything is created in it.
//! 4. The ids of the founding entry are those that the log was created with.

use crate::apply::Applier;
use crate::config::{Config, WalBackend};
use crate::lease::LeaseHook;
use crate::limits::Limits;
use crate::membership;
use crate::node::Identity;
use consensus::{Replica, Wire};
use quorate_proto::raftpb;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// Makes the entries of a directory durable.
type SyncDir<'a> = &'a mut dyn FnMut(&Path) -> io::Result<()>;

/// Creates what is missing of a path, from the top, each name made durable before anything is created
/// below it: what is acknowledged later must not vanish with the name of a directory above it. The last
/// name that exists is made durable too: a process that died may have created it just before.
fn create_dir(path: &Path, sync: SyncDir<'_>) -> Result<(), String> {
    let mut names: Vec<&Path> = path
        .ancestors()
        .take_while(|name| !name.as_os_str().is_empty() && !name.exists())
        .collect();
    let exists = path.ancestors().nth(names.len());
    // Of a relative path the last one has no name.
    names.extend(exists.filter(|name| !name.as_os_str().is_empty()));
    for name in names.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o700).create(name) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists && !name.is_dir() => {
                return Err(format!("cannot create {}: {e}", name.display()));
            }
            _ => {}
        }
        if let Some(parent) = name.parent() {
            sync(parent).map_err(|e| format!("cannot sync {}: {e}", parent.display()))?;
        }
    }
    match path.is_dir() {
        true => Ok(()),
        false => Err(format!(
            "cannot create {}: it is not a directory",
            path.display()
        )),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    match File::open(path).and_then(|dir| dir.sync_all()) {
        // A directory that may be searched but not read cannot be synced by us; nor did we create in it.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Creates the directories, refuses foreign ones and takes the lock.
pub fn claim(layout: &Layout) -> Result<DataDirLock, String> {
    claim_syncing(layout, &mut sync_dir)
}

fn claim_syncing(layout: &Layout, sync: SyncDir<'_>) -> Result<DataDirLock, String> {
    refuse_foreign(layout)?;
    create_dir(&layout.member, sync)?;
    let lock = lock_member(&layout.member)?;
    create_dir(&layout.log, sync)?;
    create_dir(&layout.store, sync)?;
    Ok(lock)
}

/// Takes the lock of `<data-dir>/member`, which is there.
pub fn lock_member(member: &Path) -> Result<DataDirLock, String> {
    let path = member.join("lock");
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
            member.display(),
            path.display()
        ));
    }
    // The holder's number is a courtesy to whoever is refused; the lock is what counts.
    let _ = file
        .set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()));
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

/// The pieces of a member, fitting each other, not running yet.
pub struct Opened {
    /// Who this member is.
    pub identity: Identity,
    /// The engine, for readers.
    pub engine: engine::Engine,
    /// Owns the engine's writer.
    pub applier: Applier,
    /// The log.
    pub log: raftlog::Log,
    /// Consensus, before its first tick.
    pub replica: Replica,
    /// Keeps other processes out.
    pub lock: DataDirLock,
}

/// Opens or creates everything below the data directory.
pub fn open(config: &Config, limits: &Limits, hook: Arc<dyn LeaseHook>) -> Result<Opened, String> {
    open_sized(config, limits, hook, Sizes::default())
}

/// What tests make smaller, or simulate.
pub(crate) struct Sizes {
    /// See [`raftlog::Options::segment_bytes`].
    pub segment_bytes: u64,
    /// See [`engine::Options::dirty_bytes_max`].
    pub dirty_bytes_max: u64,
    /// See [`engine::Options::reserve_bytes`].
    pub reserve_bytes: u64,
    /// Where the log is, if not on this machine's disk.
    #[cfg(test)]
    pub log_disk: Option<simdisk::Disk>,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            segment_bytes: raftlog::Options::new("").segment_bytes,
            dirty_bytes_max: DIRTY_BYTES_MAX,
            reserve_bytes: RESERVE_BYTES,
            #[cfg(test)]
            log_disk: None,
        }
    }
}

impl Sizes {
    fn log_backend(&self, config: &Config) -> raftlog::Backend {
        #[cfg(test)]
        if let Some(disk) = &self.log_disk {
            return raftlog::Backend::Sim(disk.clone());
        }
        match config.wal_backend {
            // The node thread waits for each log write, so a ring has nothing to overlap; and on busy
            // cores a durable direct write through one was measured to take far longer than a blocking
            // call, which ends on the thread that made it.
            WalBackend::Auto | WalBackend::Sync => raftlog::Backend::Sync,
            WalBackend::Uring => raftlog::Backend::Uring,
        }
    }
}

pub(crate) fn open_sized(
    config: &Config,
    limits: &Limits,
    hook: Arc<dyn LeaseHook>,
    sizes: Sizes,
) -> Result<Opened, String> {
    let layout = Layout::of(config);
    let lock = claim(&layout)?;
    // A member that has data keeps its ids, whatever the flags say now; as in etcd.
    let stored = raftlog::identity(&layout.log)
        .map_err(|e| format!("cannot read the log in {}: {e}", layout.log.display()))?;
    if stored.is_none() && fs::read_dir(&layout.store).is_ok_and(|mut files| files.next().is_none())
    {
        // Flags that are refused leave no files behind.
        Founding::of(config)?;
    }
    let (engine, writer) = engine::Engine::open(engine::Options {
        cache_bytes: config.cache_bytes,
        fragmentation_max: config.fragmentation_max,
        scrub_bytes_per_second: config.scrub_bytes_per_second,
        history_pin_max: config.history_pin_max,
        dirty_bytes_max: sizes.dirty_bytes_max,
        reserve_bytes: sizes.reserve_bytes,
        backend: match config.wal_backend {
            WalBackend::Auto => engine::IoBackend::Auto,
            WalBackend::Uring => engine::IoBackend::Uring,
            WalBackend::Sync => engine::IoBackend::Sync,
        },
        on_damage: Some(engine::FatalHook(Arc::new(|line: &str| {
            tracing::error!("the scrubber found damage: {line}");
        }))),
        ..engine::Options::new(&layout.store)
    })
    .map_err(|e| e.to_string())?;
    tracing::info!("opened the tree file: {}", engine.opening_report());
    let applied = engine.view().applied();
    let identity = match stored {
        Some(identity) => identity,
        // Opening the log is refused then, with what is wrong with it.
        None if applied.index > 0 && !config.wal_accept_loss => [0, 0],
        None => {
            let founding = Founding::of(config)?;
            [founding.cluster_id, founding.member_id]
        }
    };
    let (mut log, recovered) = raftlog::Log::open(raftlog::Options {
        backend: sizes.log_backend(config),
        identity,
        accept_loss: config.wal_accept_loss,
        committed: (applied.index > 0).then_some(raftlog::Committed {
            index: applied.index,
            term: applied.term,
        }),
        segment_bytes: sizes.segment_bytes,
        ..raftlog::Options::new(&layout.log)
    })
    .map_err(|e| e.to_string())?;
    tracing::info!(
        backend = log.backend_name(),
        first_index = recovered.first_index,
        last_index = recovered.last_index,
        applied_index = applied.index,
        "opened the log: {}",
        recovered.report
    );
    let [cluster_id, member_id] = identity;
    let identity = Identity {
        member_id,
        cluster_id,
        name: config.name.clone(),
    };

    let boot = if recovered.last_index == 0 && recovered.hard_state == raftlog::HardState::default()
    {
        if applied.index > 0 {
            return Err(format!(
                "the tree file in {} is applied up to {} but the log in {} is empty: acknowledged \
                 entries are missing. Put the log back, or remove this member and add it again",
                layout.store.display(),
                applied.index,
                layout.log.display()
            ));
        }
        found(config, &identity, &mut log)?
    } else {
        resume(&engine, &mut log, &recovered)?
    };
    let conf_state = raftpb::ConfState {
        voters: boot.conf_state.voters.clone(),
        learners: boot.conf_state.learners.clone(),
        ..Default::default()
    };
    let applier = Applier::new(
        engine.clone(),
        writer,
        identity.clone(),
        limits.clone(),
        hook,
        conf_state,
    )
    .map_err(|e| e.to_string())?;
    let nonce = boot_nonce();
    let mut settings = consensus::Config::new(member_id, nonce, nonce);
    settings.election_ticks =
        (config.election.as_millis() / config.heartbeat.as_millis().max(1)) as usize;
    settings.catch_up_entries = config.snapshot_catchup_entries;
    let replica = Replica::new(settings, boot).map_err(|e| {
        format!(
            "the log in {} and the tree in {} do not fit: {e}",
            layout.log.display(),
            layout.store.display()
        )
    })?;
    Ok(Opened {
        identity,
        engine,
        applier,
        log,
        replica,
        lock,
    })
}

/// Changed bytes at which a checkpoint begins.
pub const DIRTY_BYTES_MAX: u64 = 32 << 20;

/// Space the tree file keeps ready. Half of it is there whenever the disk is not reported full, and what
/// is changed in memory never exceeds that half (the node waits for the checkpoint first): so a
/// checkpoint of everything that was let in always fits, and deletes can be made on a full disk.
const RESERVE_BYTES: u64 = 128 << 20;
const _: () = assert!(DIRTY_BYTES_MAX * crate::node::DIRTY_PERCENT_MAX / 100 <= RESERVE_BYTES / 2);

/// Different for every start.
fn boot_nonce() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 is still a number; the process id tells two starts apart.
    since.map_or(1, |d| d.as_nanos() as u64) ^ (u64::from(std::process::id()) << 40)
}

/// Who this member would be in a new cluster.
struct Founding {
    member_id: u64,
    cluster_id: u64,
}

impl Founding {
    /// What the flags say; refuses those that cannot found a cluster here.
    fn of(config: &Config) -> Result<Founding, String> {
        if config.initial_cluster_existing {
            return Err(
                "flag --initial-cluster-state=existing is refused: joining a cluster is not \
                 supported yet, and there is no data to go on with"
                    .to_owned(),
            );
        }
        let members = &config.initial_cluster.members;
        let [(name, urls)] = &members[..] else {
            return Err(format!(
                "flag --initial-cluster is refused: it names {} members, and clusters of several \
                 members are not supported yet",
                members.len()
            ));
        };
        if *name != config.name {
            return Err(format!(
                "couldn't find local name {:?} in the initial cluster configuration",
                config.name
            ));
        }
        if *urls != config.advertise_peer_urls {
            return Err(format!(
                "--initial-cluster has {name}={} but --initial-advertise-peer-urls has {}",
                urls.join(","),
                config.advertise_peer_urls.join(",")
            ));
        }
        let member_id = membership::member_id(urls, &config.initial_cluster_token, None);
        Ok(Founding {
            member_id,
            cluster_id: membership::cluster_id(&[member_id]),
        })
    }
}

/// Writes the first entries of a new cluster, as etcd does. The ids are those that the log was created
/// with: the flags of a process that died in between may have been others.
fn found(
    config: &Config,
    identity: &Identity,
    log: &mut raftlog::Log,
) -> Result<consensus::Boot, String> {
    Founding::of(config)?;
    let member = membership::Member {
        id: identity.member_id,
        peer_urls: config.advertise_peer_urls.clone(),
        name: config.name.clone(),
        ..Default::default()
    };
    let boot = consensus::bootstrap(vec![consensus::InitialMember {
        id: identity.member_id,
        context: member.to_json().into(),
    }])
    .map_err(|e| e.to_string())?;
    let entries: Vec<raftlog::Entry> = boot.entries.iter().map(crate::node::to_log).collect();
    let hard_state = raftlog::HardState {
        term: boot.hard_state.term,
        vote: boot.hard_state.vote,
        commit: boot.hard_state.commit,
    };
    let appended = log
        .append(&entries, Some(hard_state))
        .map_err(|e| format!("cannot write the first log entries: {e}"))?;
    if !log.sync().covers(appended) {
        return Err("the first log entries did not become durable".to_owned());
    }
    tracing::info!(
        local_member_id = format!("{:x}", identity.member_id),
        cluster_id = format!("{:x}", identity.cluster_id),
        "founded a cluster of one member"
    );
    Ok(boot)
}

/// What consensus starts from when there is data.
fn resume(
    engine: &engine::Engine,
    log: &mut raftlog::Log,
    recovered: &raftlog::Recovered,
) -> Result<consensus::Boot, String> {
    let view = engine.view();
    let applied = view.applied();
    let first_index = applied.index + 1;
    if recovered.first_index > first_index {
        return Err(format!(
            "the tree is applied up to {} but the log begins at {}: entries between are missing. \
             Remove this member, wipe its data directory and add it again, or restore a backup",
            applied.index, recovered.first_index
        ));
    }
    if applied.index > recovered.last_index {
        return Err(format!(
            "the tree is applied up to {} but the log ends at {}: acknowledged entries are missing. \
             Remove this member, wipe its data directory and add it again, or restore a backup",
            applied.index, recovered.last_index
        ));
    }
    let mut entries = Vec::new();
    let mut next = first_index;
    while next <= recovered.last_index {
        let some = log
            .entries(next, recovered.last_index + 1, READ_BYTES_MAX)
            .map_err(|e| e.to_string())?;
        if some.is_empty() {
            return Err(format!("the log holds no entry {next}, though it says so"));
        }
        next += some.len() as u64;
        entries.extend(
            some.into_iter()
                .map(from_log)
                .collect::<Result<Vec<_>, _>>()?,
        );
    }
    let stored = membership::conf_state_from(view.meta()).map_err(|e| e.to_string())?;
    let conf_state = match stored {
        Some(stored) => consensus::ConfState::from((stored.voters, stored.learners)),
        // Nothing was checkpointed yet: the founding entries at the start of the log say who votes.
        None => founders(&entries)?,
    };
    Ok(consensus::Boot {
        hard_state: consensus::HardState {
            term: recovered.hard_state.term,
            vote: recovered.hard_state.vote,
            commit: recovered.hard_state.commit,
        },
        conf_state,
        applied: applied.index,
        first_index,
        previous_term: applied.term,
        entries,
    })
}

/// Bytes of entries read from the log at a time.
const READ_BYTES_MAX: usize = 16 << 20;

fn founders(entries: &[consensus::Entry]) -> Result<consensus::ConfState, String> {
    let founding = entries
        .iter()
        .take_while(|e| e.term == 1 && e.kind == consensus::EntryKind::ConfChange);
    let voters: Result<Vec<u64>, String> = founding
        .map(|e| consensus::ConfChange::decode(e.data.clone()).map(|c| c.node_id))
        .map(|r| r.map_err(|e| format!("the log's founding entries: {e}")))
        .collect();
    Ok(consensus::ConfState::from((voters?, Vec::new())))
}

fn from_log(entry: raftlog::Entry) -> Result<consensus::Entry, String> {
    let kind = consensus::EntryKind::from_number(entry.kind).ok_or_else(|| {
        format!(
            "log entry {} has the unknown kind {}: it was written by a newer version",
            entry.index, entry.kind
        )
    })?;
    Ok(consensus::Entry {
        index: entry.index,
        term: entry.term,
        kind,
        data: entry.data,
    })
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

    /// What is synced, in order.
    fn claim_traced(layout: &Layout) -> Vec<PathBuf> {
        let mut synced = Vec::new();
        let lock = claim_syncing(layout, &mut |path| {
            synced.push(path.to_owned());
            Ok(())
        });
        lock.unwrap();
        synced
    }

    #[test]
    fn the_names_of_new_directories_are_made_durable_from_the_top() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let layout = layout(&data);
        let upper = dir.path().parent().unwrap().to_owned();
        let (top, a) = (dir.path().to_owned(), dir.path().join("a"));
        let member = &layout.member;
        assert_eq!(
            claim_traced(&layout),
            // The parent of what exists; of a, of b, of member; then of log and store, below member, whose
            // own name is made sure of again.
            [&upper, &top, &a, &data, &data, member, &data, member].map(PathBuf::clone)
        );
        // A process that died may have created the last name just before.
        assert_eq!(
            claim_traced(&layout),
            [&data, member, member].map(PathBuf::clone)
        );
    }

    #[test]
    fn a_name_that_cannot_be_made_durable_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(&dir.path().join("data"));
        let refused = claim_syncing(&layout, &mut |path| match path == dir.path() {
            true => Err(io::Error::other("no")),
            false => Ok(()),
        });
        let refused = refused.unwrap_err();
        assert!(refused.starts_with("cannot sync"), "{refused}");
        assert!(!layout.member.exists());
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let refused = create_dir(&file, &mut sync_dir).unwrap_err();
        assert!(refused.contains("not a directory"), "{refused}");
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
