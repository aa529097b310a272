//! A simulated disk: files and names that forget, tear and reorder what was not synced.
//!
//! It lives in one process, takes every random decision from one seed, and knows nothing of the
//! programs that run on it. A test drives a program over a [`Disk`], stops it at any operation,
//! and asks for the disks that a crash at that moment could leave behind.
//!
//! # The model
//!
//! A file is a *durable image* and an ordered list of *pending effects*; its *cache* is what a
//! running program reads. A write becomes one effect per 512-byte sector it touches, holding the
//! whole sector as it was after that write, and one more effect if it made the file longer. A
//! directory entry (create, rename, unlink) is an effect of its own, in its directory's list.
//!
//! 1. A power loss keeps an arbitrary subset of the pending effects, applied in their order. So a
//!    sector ends as its durable content or as any version written to it since (tearing and
//!    reordering), and a file's length, its data and its name survive independently.
//! 2. [`File::write_dsync_at`] makes durable exactly the sectors it wrote, and the file's length
//!    (one field of one record); other data stays pending.
//! 3. [`File::sync_data`] makes all pending effects of that file durable, growth included, but no
//!    name. [`Disk::sync_dir`] makes the names in one directory durable, but no data.
//! 4. A process crash loses nothing: cache and pending effects stay. Only the call that was under
//!    way may have happened, not happened, or, for a write, happened up to some sector.
//! 5. A failed sync leaves the affected pages *clean*: an arbitrary part of them reached the
//!    medium, the rest never will, later syncs succeed, and cached reads go on serving the bytes
//!    until the power goes. [`File::read_direct_at`] sees the medium instead.
//! 6. A rename is atomic: it survives whole or not at all. Directories themselves always exist.
//!
//! # Crashing
//!
//! Each call that changes something is a *step*, counted from 1. After [`Disk::crash_at`]`(k)`
//! step k does not complete and the disk is down: every further call fails. [`Disk::process_images`]
//! and [`Disk::power_images`] then yield the disks that may be found afterwards: for up to
//! [`EXHAUSTIVE`] pending effects every subset; beyond that none, all, each alone, all but each,
//! and [`RANDOM_SUBSETS`] random ones.
//!
//! # Deliberately absent
//!
//! Time, directories as objects, hard links, permissions, sparse-file accounting, and locks.

mod crash;
mod fault;
mod file;
mod state;

pub use crash::{EXHAUSTIVE, Effect, EffectKind, Image, RANDOM_SUBSETS, Survivors};
pub use fault::{Fault, Op, OpKind};
pub use file::File;

use state::{Mutation, State};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// The unit that the medium writes atomically, in bytes.
pub const SECTOR: usize = 512;

/// One simulated disk. Cloning gives another handle to the same disk.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
}

impl Disk {
    /// An empty disk without a size limit. Equal seeds and equal calls give equal disks.
    pub fn new(seed: u64) -> Disk {
        Disk::from_state(State::new(seed))
    }

    /// An empty disk whose files together hold at most `bytes`; beyond that writes are short, then
    /// fail with `ENOSPC`.
    pub fn with_capacity(seed: u64, bytes: u64) -> Disk {
        let disk = Disk::new(seed);
        disk.set_capacity(Some(bytes));
        disk
    }

    pub(crate) fn from_state(state: State) -> Disk {
        Disk {
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the program under test is part of some tests; the state stays consistent,
        // because every change is made after its last fallible check.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Changes the size limit; `None` lifts it.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes in files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    // ---- names -------------------------------------------------------------------------------

    /// Creates an empty file; fails with `AlreadyExists` if the name is taken. One step.
    pub fn create_new(&self, path: &str) -> io::Result<File> {
        let mut state = self.lock();
        if state.names.contains_key(path) && state.down.is_none() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path));
        }
        let ino = state.next_ino;
        state.step(Mutation::Create {
            path: path.to_string(),
            ino,
        })?;
        drop(state);
        Ok(File::new(self.clone(), ino))
    }

    /// Opens an existing file. Not a step.
    pub fn open(&self, path: &str) -> io::Result<File> {
        let state = self.lock();
        state.check_up()?;
        let ino = state.lookup(path)?;
        drop(state);
        Ok(File::new(self.clone(), ino))
    }

    /// Whether the running program sees the name.
    pub fn exists(&self, path: &str) -> bool {
        self.lock().names.contains_key(path)
    }

    /// The names directly inside `dir`, without the directory part, sorted. Not a step.
    pub fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.lock();
        state.check_up()?;
        Ok(state.list(dir))
    }

    /// Gives a file another name, replacing what had it. Atomic; durable after a sync of either
    /// directory. One step.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.check_up()?;
        let ino = state.lookup(from)?;
        state.step(Mutation::Rename {
            from: from.to_string(),
            to: to.to_string(),
            ino,
        })?;
        Ok(())
    }

    /// Removes a name; open handles go on working. One step.
    pub fn unlink(&self, path: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.check_up()?;
        let ino = state.lookup(path)?;
        state.step(Mutation::Unlink {
            path: path.to_string(),
            ino,
        })?;
        Ok(())
    }

    /// Makes the names in `dir` durable. One step.
    pub fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.lock().step(Mutation::SyncDir {
            dir: dir.trim_end_matches('/').to_string(),
        })?;
        Ok(())
    }

    // ---- control -----------------------------------------------------------------------------

    /// Steps begun so far.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Lets step number `step` (counted from 1) not complete and takes the disk down with it.
    pub fn crash_at(&self, step: u64) {
        self.lock().crash_at = Some(step);
    }

    /// Takes the disk down now, between two steps.
    pub fn power_off(&self) {
        self.lock().take_down(None);
    }

    /// Whether the disk is down; then every call fails.
    pub fn is_down(&self) -> bool {
        self.lock().down.is_some()
    }

    /// Lets step number `step` suffer `fault`.
    pub fn fail_at(&self, step: u64, fault: Fault) {
        self.lock().planned.insert(step, fault);
    }

    /// Asks `choose` before every call, reads included, whether it shall suffer a fault; it
    /// replaces the one given before. Faults planned with [`Disk::fail_at`] come first.
    pub fn fail_when(&self, choose: impl FnMut(&Op) -> Option<Fault> + Send + 'static) {
        self.lock().chooser = Some(Box::new(choose));
    }

    /// Removes every planned fault and crash.
    pub fn clear_faults(&self) {
        let mut state = self.lock();
        state.planned.clear();
        state.chooser = None;
        state.crash_at = None;
    }

    /// Starts recording one line per step.
    pub fn start_trace(&self) {
        self.lock().trace = Some(Vec::new());
    }

    /// The lines recorded since [`Disk::start_trace`], leaving the record empty.
    pub fn take_trace(&self) -> Vec<String> {
        match &mut self.lock().trace {
            Some(lines) => std::mem::take(lines),
            None => Vec::new(),
        }
    }

    // ---- the medium, past the program ----------------------------------------------------------

    /// What the running program sees in a file.
    pub fn contents(&self, path: &str) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let ino = state.lookup(path)?;
        Ok(state.inodes[&ino].cache.clone())
    }

    /// What a power loss now would certainly leave of a file's data, whether or not its name
    /// survives.
    pub fn durable_contents(&self, path: &str) -> io::Result<Vec<u8>> {
        let state = self.lock();
        let ino = state.lookup(path)?;
        Ok(state.inodes[&ino].durable.clone())
    }

    /// Replaces bytes at rest: bit rot, a stale sector, a misdirected write of someone else. Acts
    /// on medium and cache; bytes beyond the end of the file are ignored. Not a step.
    pub fn poke(&self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        let ino = state.lookup(path)?;
        state.inode_mut(ino).poke(offset as usize, bytes);
        Ok(())
    }

    /// Inverts one bit at rest. Not a step.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) -> io::Result<()> {
        let byte = *self
            .contents(path)?
            .get(offset as usize)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "beyond end of file"))?;
        self.poke(path, offset, &[byte ^ (1 << (bit & 7))])
    }

    /// An independent copy: same files, same pending effects, same steps, no planned faults, up.
    /// Lets a test try several futures from one moment.
    pub fn fork(&self) -> Disk {
        Disk::from_state(self.lock().fork())
    }
}
