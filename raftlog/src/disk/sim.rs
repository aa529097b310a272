//! The simulated disk as a directory of segments.

use super::{Dir, SegFile};
use simdisk::{Disk, File};
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) struct SimDir {
    pub disk: Disk,
    pub dir: String,
    /// A deliberate mistake: syncs of the directory do nothing.
    pub skip_sync: bool,
}

impl SimDir {
    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }
}

impl Dir for SimDir {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for name in self.disk.list(&self.dir)? {
            let len = self.disk.open(&self.full(&name))?.len()?;
            found.push((name, len));
        }
        Ok(found)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn SegFile>> {
        Ok(Arc::new(self.disk.create_new(&self.full(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn SegFile>> {
        Ok(Arc::new(self.disk.open(&self.full(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(&self.full(from), &self.full(to))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.disk.unlink(&self.full(name))
    }

    fn sync(&self) -> io::Result<()> {
        if self.skip_sync {
            return Ok(());
        }
        self.disk.sync_dir(&self.dir)
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn path(&self, name: &str) -> PathBuf {
        self.full(name).into()
    }
}

impl SegFile for File {
    fn len(&self) -> io::Result<u64> {
        File::len(self)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(offset, data)
    }

    /// One write, whatever its parts: a power loss may keep any sector of it.
    fn write_durable(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let data = parts.concat();
        let mut done = 0;
        while done < data.len() {
            match self.write_dsync_at(offset + done as u64, &data[done..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_direct_at(offset + done as u64, &mut buf[done..])? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn drop_cache(&self) {}

    fn ring_fd(&self) -> Option<RawFd> {
        None
    }
}
