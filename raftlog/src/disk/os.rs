//! Real files: `O_DIRECT` and `RWF_DSYNC` where the file system has them.
//!
//! What it has is found by trying: [`probe`] writes and reads back one block in the directory
//! itself. Without `O_DIRECT` the page cache is used and dropped before recovery reads; without
//! `RWF_DSYNC` a durable write is a write and an `fdatasync`.

use super::{Dir, SegFile};
use crate::buffer::Buffer;
use crate::format::BLOCK_BYTES;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Parts of one write that every kernel takes.
const VECTORS_MAX: usize = 1024;
/// The file used for probing; removed again.
const PROBE: &str = "probe.tmp";

/// What the file system can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub direct: bool,
    pub dsync: bool,
}

impl Abilities {
    pub const ALL: Abilities = Abilities {
        direct: true,
        dsync: true,
    };

    /// From best to plainest.
    fn chain() -> impl Iterator<Item = Abilities> {
        [(true, true), (true, false), (false, true), (false, false)]
            .into_iter()
            .map(|(direct, dsync)| Abilities { direct, dsync })
    }

    fn within(self, allowed: Abilities) -> bool {
        (allowed.direct || !self.direct) && (allowed.dsync || !self.dsync)
    }
}

pub(crate) struct OsDir {
    path: PathBuf,
    /// Held open for syncs and for the lock, which the kernel drops with it.
    handle: File,
    abilities: Abilities,
}

struct OsFile {
    file: File,
    abilities: Abilities,
}

/// Why a directory cannot be used.
pub(crate) enum OpenDirError {
    Io(&'static str, io::Error),
    Locked,
}

impl OsDir {
    /// Opens (creating if need be) and locks the directory, and finds out what it can do; of that,
    /// only what `allowed` has is used.
    pub fn open(path: &Path, allowed: Abilities) -> Result<OsDir, OpenDirError> {
        create_durably(path).map_err(|e| OpenDirError::Io("create directory", e))?;
        let handle = File::open(path).map_err(|e| OpenDirError::Io("open directory", e))?;
        lock(&handle)?;
        let mut dir = OsDir {
            path: path.to_path_buf(),
            handle,
            abilities: Abilities {
                direct: false,
                dsync: false,
            },
        };
        dir.abilities = probe(&dir, allowed)
            .map_err(|e| OpenDirError::Io("write and read back a block in", e))?;
        Ok(dir)
    }

    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// A file for probing, with the given abilities.
    pub fn probe_file(&self, abilities: Abilities) -> io::Result<Arc<dyn SegFile>> {
        match std::fs::remove_file(self.path.join(PROBE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        open_file(&self.path.join(PROBE), true, abilities)
    }

    pub fn remove_probe_file(&self) -> io::Result<()> {
        std::fs::remove_file(self.path.join(PROBE))
    }
}

/// A directory that is only looked at: whatever would change it fails.
pub(crate) struct ReadOnlyDir {
    path: PathBuf,
    /// Held open for the lock.
    _handle: File,
    direct: bool,
}

/// A file of it.
struct ReadOnlyFile(OsFile);

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::EROFS))
}

impl ReadOnlyDir {
    /// Locks the directory, which must exist, against a running member.
    pub fn open(path: &Path, allowed: Abilities) -> Result<ReadOnlyDir, OpenDirError> {
        let handle = File::open(path).map_err(|e| OpenDirError::Io("open directory", e))?;
        lock(&handle)?;
        Ok(ReadOnlyDir {
            path: path.to_path_buf(),
            _handle: handle,
            direct: allowed.direct,
        })
    }
}

impl Dir for ReadOnlyDir {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        list(&self.path)
    }

    fn create(&self, _name: &str) -> io::Result<Arc<dyn SegFile>> {
        read_only()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn SegFile>> {
        let path = self.path.join(name);
        let open = |direct: bool| {
            let mut options = OpenOptions::new();
            options.read(true);
            if direct {
                options.custom_flags(libc::O_DIRECT);
            }
            let abilities = Abilities {
                direct,
                dsync: false,
            };
            let file = options.open(&path)?;
            Ok::<_, io::Error>(ReadOnlyFile(OsFile { file, abilities }))
        };
        match open(self.direct) {
            Err(e) if self.direct && e.raw_os_error() == Some(libc::EINVAL) => {
                Ok(Arc::new(open(false)?))
            }
            other => Ok(Arc::new(other?)),
        }
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        read_only()
    }

    fn unlink(&self, _name: &str) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

impl SegFile for ReadOnlyFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        read_only()
    }

    fn write_durable(&self, _offset: u64, _parts: &[&[u8]]) -> io::Result<()> {
        read_only()
    }

    /// Nothing is promised on the strength of what is read here.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(offset, buf)
    }

    fn drop_cache(&self) {}

    fn ring_fd(&self) -> Option<RawFd> {
        None
    }
}

/// Creates missing directories and makes their names durable, from the first existing one down.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_durably(parent)?;
    }
    match std::fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

fn lock(handle: &File) -> Result<(), OpenDirError> {
    // SAFETY: `flock` takes a descriptor, which `handle` keeps open, and touches no memory.
    let answer = unsafe { libc::flock(handle.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if answer == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Err(OpenDirError::Locked),
        // Some network file systems have no locks; the member's own lock file still guards.
        e if matches!(e.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP)) => Ok(()),
        e => Err(OpenDirError::Io("lock", e)),
    }
}

/// Tries the abilities from best to plainest; the first that writes and reads back wins.
fn probe(dir: &OsDir, allowed: Abilities) -> io::Result<Abilities> {
    let mut last = io::Error::other("no way of writing works");
    for abilities in Abilities::chain().filter(|a| a.within(allowed)) {
        let tried = dir
            .probe_file(abilities)
            .and_then(|file| write_and_read_back(&*file));
        match tried {
            Ok(()) => {
                dir.remove_probe_file()?;
                return Ok(abilities);
            }
            Err(e) if super::is_full(&e) => {
                // Nothing can be learned from a full disk; the plainest way always works for what
                // is there already, and recovery must not be prevented.
                let _ = dir.remove_probe_file();
                return Ok(Abilities {
                    direct: false,
                    dsync: false,
                });
            }
            Err(e) => last = e,
        }
    }
    let _ = dir.remove_probe_file();
    Err(last)
}

fn write_and_read_back(file: &dyn SegFile) -> io::Result<()> {
    let mut block = Buffer::new(BLOCK_BYTES)?;
    block
        .iter_mut()
        .enumerate()
        .for_each(|(i, b)| *b = ((i * 31) >> 3) as u8);
    file.allocate(BLOCK_BYTES as u64)?;
    file.write_durable(0, &[&block])?;
    let mut back = Buffer::new(BLOCK_BYTES)?;
    let n = file.read(0, &mut back)?;
    if n != BLOCK_BYTES || back[..] != block[..] {
        return Err(io::Error::other("a block did not read back as written"));
    }
    Ok(())
}

fn open_file(path: &Path, create: bool, abilities: Abilities) -> io::Result<Arc<dyn SegFile>> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create_new(create)
        .mode(0o600);
    if abilities.direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path)?;
    Ok(Arc::new(OsFile { file, abilities }))
}

fn list(path: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
            found.push((name, meta.len()));
        }
    }
    found.sort();
    Ok(found)
}

impl Dir for OsDir {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        list(&self.path)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn SegFile>> {
        open_file(&self.path.join(name), true, self.abilities)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn SegFile>> {
        open_file(&self.path.join(name), false, self.abilities)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn is_direct(&self) -> bool {
        self.abilities.direct
    }
}

/// What is left of `parts` behind the first `done` bytes, as the kernel takes it. Valid as long as the
/// parts are.
pub(crate) fn vectors<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
    mut done: usize,
) -> Vec<libc::iovec> {
    let mut left = Vec::new();
    for part in parts {
        let skip = done.min(part.len());
        done -= skip;
        if skip < part.len() {
            left.push(libc::iovec {
                iov_base: part[skip..].as_ptr() as *mut libc::c_void,
                iov_len: part.len() - skip,
            });
        }
    }
    left
}

impl OsFile {
    /// One `pwritev2`; may be short.
    fn write_some(
        &self,
        offset: u64,
        parts: &[&[u8]],
        done: usize,
        flags: libc::c_int,
    ) -> io::Result<usize> {
        let vectors = vectors(parts.iter().copied(), done);
        // SAFETY: the descriptor is open for the call's duration; `vectors` point into `parts`, which
        // are borrowed for it, and the kernel only reads from them.
        let n = unsafe {
            libc::pwritev2(
                self.file.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len().min(VECTORS_MAX) as libc::c_int,
                (offset + done as u64) as libc::off_t,
                flags,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes until all is written. After a short write it goes on from the last whole block,
    /// which writes some bytes twice with the same content.
    fn write_all(&self, offset: u64, parts: &[&[u8]], flags: libc::c_int) -> io::Result<()> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let mut done = 0;
        while done < len {
            match self.write_some(offset, parts, done, flags) {
                Ok(n) if done + n >= len => done = len,
                Ok(n) if n >= BLOCK_BYTES => done += n - n % BLOCK_BYTES,
                Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl SegFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        // SAFETY: `fallocate` takes a descriptor, open for the call's duration, and no memory.
        let answer = unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, len as libc::off_t) };
        if answer == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // Not everywhere; then the zeros written next reserve the space.
            e if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                self.file.set_len(len)
            }
            e if e.kind() == io::ErrorKind::Interrupted => self.allocate(len),
            e => Err(e),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all(offset, &[data], 0)
    }

    fn write_durable(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        if self.abilities.dsync {
            return self.write_all(offset, parts, libc::RWF_DSYNC);
        }
        self.write_all(offset, parts, 0)?;
        self.file.sync_data()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A direct read that would start behind an end inside a block.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn drop_cache(&self) {
        if !self.abilities.direct {
            // SAFETY: takes a descriptor, open for the call's duration, and no memory. It is
            // advice: an error changes nothing.
            unsafe {
                libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
            }
        }
    }

    fn ring_fd(&self) -> Option<RawFd> {
        self.abilities.dsync.then(|| self.file.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abilities_found_work_and_leave_nothing_behind() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b/log");
        let Ok(dir) = OsDir::open(&path, Abilities::ALL) else {
            panic!("cannot open")
        };
        assert_eq!(dir.list().unwrap(), []);
        for (direct, dsync) in [(true, true), (true, false), (false, true), (false, false)] {
            if direct && !dir.abilities().direct {
                continue;
            }
            let file = dir.probe_file(Abilities { direct, dsync }).unwrap();
            write_and_read_back(&*file).unwrap();
            file.truncate(0).unwrap();
            file.drop_cache();
            assert_eq!(file.read(0, &mut Buffer::new(1).unwrap()).unwrap(), 0);
        }
        dir.remove_probe_file().unwrap();
    }

    #[test]
    fn a_directory_has_one_user() {
        let temp = tempfile::tempdir().unwrap();
        let Ok(_first) = OsDir::open(temp.path(), Abilities::ALL) else {
            panic!("cannot open")
        };
        assert!(matches!(
            OsDir::open(temp.path(), Abilities::ALL),
            Err(OpenDirError::Locked)
        ));
    }
}
