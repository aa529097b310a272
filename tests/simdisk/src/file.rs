//! Open files.

use crate::Disk;
use crate::fault::{Fault, OpKind, eio, enospc};
use crate::state::Mutation;
use std::io;

/// An open file; cloning gives another handle to it.
#[derive(Clone)]
pub struct File {
    disk: Disk,
    ino: u64,
}

impl File {
    pub(crate) fn new(disk: Disk, ino: u64) -> File {
        File { disk, ino }
    }

    /// The disk that holds the file.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Length in bytes as the running program sees it.
    pub fn len(&self) -> io::Result<u64> {
        let state = self.disk.lock();
        state.check_up()?;
        Ok(state.inodes[&self.ino].cache.len() as u64)
    }

    /// Whether the file holds no byte.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads through the cache. Returns how many bytes were there, fewer than asked at the end of
    /// the file.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(offset, buf, false)
    }

    /// Reads what the medium holds or will hold once the pending effects are written, past a
    /// cache that a failed sync has left lying.
    pub fn read_direct_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.read(offset, buf, true)
    }

    fn read(&self, offset: u64, buf: &mut [u8], direct: bool) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.check_up()?;
        let mut room = buf.len();
        match state.fault_of_read(self.ino, offset, buf.len()) {
            None => {}
            Some(Fault::Eio) => return Err(eio()),
            Some(Fault::Enospc) => return Err(enospc()),
            Some(Fault::Short(n)) => room = room.min(n),
            Some(Fault::Lost | Fault::Misdirected(_)) => {}
        }
        let inode = &state.inodes[&self.ino];
        let medium;
        let bytes = if direct && inode.lost {
            medium = inode.medium();
            &medium
        } else {
            &inode.cache
        };
        let start = (offset as usize).min(bytes.len());
        let n = room.min(bytes.len() - start);
        buf[..n].copy_from_slice(&bytes[start..start + n]);
        Ok(n)
    }

    /// Writes into the cache; durable after a sync. Grows the file as needed. May be short. One
    /// step.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        self.write(offset, data, false)
    }

    /// Writes and makes durable exactly what it wrote (`O_DSYNC`). May be short. One step.
    pub fn write_dsync_at(&self, offset: u64, data: &[u8]) -> io::Result<usize> {
        self.write(offset, data, true)
    }

    /// [`File::write_at`] until everything is written; each piece is a step.
    pub fn write_all_at(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let n = self.write_at(offset, data)?;
            offset += n as u64;
            data = &data[n..];
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], dsync: bool) -> io::Result<usize> {
        self.disk.lock().step(Mutation::Write {
            ino: self.ino,
            offset,
            data: data.to_vec(),
            dsync,
        })
    }

    /// Makes the file's pending effects durable (`fdatasync`), growth included. One step.
    pub fn sync_data(&self) -> io::Result<()> {
        self.disk
            .lock()
            .step(Mutation::SyncData { ino: self.ino })?;
        Ok(())
    }

    /// Cuts the file or grows it with zeros; durable after a sync. One step.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk
            .lock()
            .step(Mutation::SetLen { ino: self.ino, len })?;
        Ok(())
    }
}

impl OpKind {
    /// Whether calls of this kind are steps.
    pub fn is_step(self) -> bool {
        self != OpKind::Read
    }
}
