//! Simulated backend: the same calls on a disk that a test can crash.

use std::io;
use std::path::Path;

use simdisk::{Disk, File};

use super::{Directory, PageFile};

/// A directory of a simulated disk; it always exists.
pub(super) struct SimDirectory {
    disk: Disk,
    path: String,
}

impl SimDirectory {
    pub fn new(disk: &Disk, path: &Path) -> SimDirectory {
        SimDirectory {
            disk: disk.clone(),
            path: path.to_string_lossy().into_owned(),
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }
}

impl Directory for SimDirectory {
    fn exists(&self, name: &str) -> io::Result<bool> {
        Ok(self.disk.exists(&self.name(name)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn PageFile>> {
        Ok(Box::new(SimFile(self.disk.open(&self.name(name))?)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn PageFile>> {
        let path = self.name(name);
        if self.disk.exists(&path) {
            let file = self.disk.open(&path)?;
            file.set_len(0)?;
            return Ok(Box::new(SimFile(file)));
        }
        Ok(Box::new(SimFile(self.disk.create_new(&path)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(&self.name(from), &self.name(to))
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.path)
    }
}

struct SimFile(File);

impl PageFile for SimFile {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self
                .0
                .read_direct_at(offset + done as u64, &mut buf[done..])?
            {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    fn write_many(&self, writes: &[(u64, &[u8])]) -> io::Result<()> {
        writes
            .iter()
            .try_for_each(|(offset, bytes)| self.0.write_all_at(*offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, _from: u64, to: u64) -> io::Result<()> {
        self.0.set_len(to)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn backend(&self) -> &'static str {
        "simulated"
    }
}
