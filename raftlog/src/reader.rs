//! Reading old entries, for followers that have fallen behind.
//!
//! A reader takes nothing on trust: what it finds at the place it was sent to counts only if segment,
//! batch number and checksums are those expected. It never sees anything that is not durable.

use crate::buffer::Buffer;
use crate::disk::SegFile;
use crate::error::ReadError;
use crate::format::batch::{self, BatchHeader, HEADER_BYTES, Record};
use crate::format::crc;
use crate::format::segment::log_name;
use crate::index::BatchRef;
use crate::published::{self, Absent, Source};
use crate::types::Entry;
use bytes::Bytes;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) type Published = published::Published<Arc<dyn SegFile>>;

/// Reads entries of one log, on any thread, while its owner goes on appending and trimming; neither
/// ever waits for the other's I/O. Each clone keeps the batch it read last.
pub struct Reader {
    /// The log's directory, for messages.
    dir: PathBuf,
    published: Arc<Published>,
    /// The batch read last: followers read in order.
    recent: Option<(u64, Buffer)>,
}

impl Clone for Reader {
    fn clone(&self) -> Reader {
        Reader::new(self.dir.clone(), self.published.clone())
    }
}

impl From<Absent> for ReadError {
    fn from(absent: Absent) -> ReadError {
        match absent {
            Absent::Trimmed(first_index) => ReadError::Trimmed { first_index },
            Absent::Unavailable(last_index) => ReadError::Unavailable { last_index },
        }
    }
}

impl Reader {
    pub(crate) fn new(dir: PathBuf, published: Arc<Published>) -> Reader {
        Reader {
            dir,
            published,
            recent: None,
        }
    }

    /// Gives the memory of the batch read last back.
    pub(crate) fn forget(&mut self) {
        self.recent = None;
    }

    /// The entries from index `from` up to, not including, `to`: as many as fit `max_bytes` of
    /// data, at least one. Only durable ones. Blocks for disk reads, around the page cache where the
    /// file system allows it; meant for what is no longer in memory elsewhere.
    pub fn entries(
        &mut self,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        self.published.check(from, to)?;
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        while next < to {
            for entry in self.read_at(next, to)? {
                bytes += entry.data.len();
                if bytes > max_bytes && !found.is_empty() {
                    return Ok(found);
                }
                next = entry.index + 1;
                found.push(entry);
            }
        }
        Ok(found)
    }

    /// The entries from `from` on that lie in the same batch, below `to`.
    fn read_at(&mut self, from: u64, to: u64) -> Result<Vec<Entry>, ReadError> {
        loop {
            let (batch, source) = self.published.find(from)?;
            let last = batch.last.min(to - 1);
            let read = self.read_batch(&batch, &source, from, last + 1);
            if self.published.stands(&batch, from, last) {
                return read;
            }
            // Trimmed, replaced, or recycled under our hands: look again.
            self.recent = None;
        }
    }

    /// The live entries of one batch from `from` up to, not including, `to`.
    fn read_batch(
        &mut self,
        batch: &BatchRef,
        source: &Source<Arc<dyn SegFile>>,
        from: u64,
        to: u64,
    ) -> Result<Vec<Entry>, ReadError> {
        let path = || self.dir.join(log_name(batch.segment));
        let offset = u64::from(batch.offset);
        let corrupt = || ReadError::Corrupt {
            path: path(),
            offset,
        };
        if self.recent.as_ref().map(|r| r.0) != Some(batch.batch_seq) {
            self.recent = None;
            let buffer = read_verified(&*source.file, batch, source.seg_id)
                .map_err(|e| ReadError::Io {
                    path: path(),
                    offset,
                    source: e,
                })?
                .ok_or_else(corrupt)?;
            self.recent = Some((batch.batch_seq, buffer));
        }
        let (_, buffer) = self.recent.as_ref().expect("read above");
        let header = BatchHeader::decode(buffer).ok_or_else(corrupt)?;
        let payload = &buffer[HEADER_BYTES..HEADER_BYTES + header.len as usize];
        // Within a batch a later record replaces earlier ones, from its index on.
        let mut found: Vec<Entry> = Vec::new();
        for record in batch::records(payload) {
            if let Record::Entry {
                index,
                term,
                kind,
                data,
            } = record.ok_or_else(corrupt)?
            {
                let keep = found.partition_point(|e| e.index < index);
                found.truncate(keep);
                if (from..to).contains(&index) {
                    found.push(Entry {
                        index,
                        term,
                        kind,
                        data: Bytes::copy_from_slice(data),
                    });
                }
            }
        }
        let complete = found.len() as u64 == to - from;
        complete.then_some(found).ok_or_else(corrupt)
    }
}

/// Reads a batch and checks that it is the one meant; `None` if it is not.
fn read_verified(file: &dyn SegFile, batch: &BatchRef, seg_id: u64) -> io::Result<Option<Buffer>> {
    let len = batch.disk_bytes as usize;
    let mut buffer = Buffer::new(len)?;
    if file.read(u64::from(batch.offset), &mut buffer[..len])? < len {
        return Ok(None);
    }
    let good = BatchHeader::decode(&buffer).is_some_and(|h| {
        h.seg_id == seg_id
            && h.batch_seq == batch.batch_seq
            && h.disk_bytes() == u64::from(batch.disk_bytes)
            && crc(&buffer[HEADER_BYTES..HEADER_BYTES + h.len as usize]) == h.payload_crc
    });
    Ok(good.then_some(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use std::os::fd::RawFd;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A file whose reads say that they have begun, and end when they are allowed to.
    struct Gate {
        begun: Sender<()>,
        allowed: Mutex<Receiver<()>>,
    }

    impl SegFile for Gate {
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn allocate(&self, _len: u64) -> io::Result<()> {
            Ok(())
        }
        fn truncate(&self, _len: u64) -> io::Result<()> {
            Ok(())
        }
        fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn write_durable(&self, _offset: u64, _parts: &[&[u8]]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn read(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<usize> {
            self.begun.send(()).expect("the test listens");
            self.allowed
                .lock()
                .unwrap()
                .recv()
                .expect("the test ends it");
            Ok(0)
        }
        fn drop_cache(&self) {}
        fn ring_fd(&self) -> Option<RawFd> {
            None
        }
    }

    fn batch(first: u64, segment: u64) -> BatchRef {
        BatchRef {
            first,
            last: first,
            segment,
            offset: 4096,
            disk_bytes: 4096,
            batch_seq: first,
        }
    }

    /// The owner does everything it can do while a reader is stuck in the disk, on this one thread; the
    /// reader then finds that the log has moved on. If the place still stood, it would be damage.
    #[test]
    fn a_reader_stuck_in_the_disk_keeps_nobody_waiting() {
        for trim in [true, false] {
            let (begun, has_begun) = channel();
            let (allow, allowed) = channel();
            let file: Arc<dyn SegFile> = Arc::new(Gate {
                begun,
                allowed: Mutex::new(allowed),
            });
            let source = |seq| Source {
                seq,
                seg_id: seq,
                file: file.clone(),
            };
            let mut index = Index::default();
            index.push(batch(1, 1));
            let published = Arc::new(Published::new(index, [source(1)], 1, 1));
            let mut reader = Reader::new("log".into(), published.clone());
            let stuck = std::thread::spawn(move || reader.entries(1, 2, 1000));
            has_begun.recv().unwrap();
            published.begun(source(2));
            published.landed(Some(batch(2, 2)), false, 2);
            published.replaced(1);
            published.landed(Some(batch(2, 2)), false, 2);
            if trim {
                published.trimmed(2);
                published.retired(1);
            }
            allow.send(()).unwrap();
            let error = stuck.join().unwrap().unwrap_err();
            match trim {
                true => assert!(
                    matches!(error, ReadError::Trimmed { first_index: 2 }),
                    "{error}"
                ),
                false => assert!(matches!(error, ReadError::Corrupt { .. }), "{error}"),
            }
        }
    }
}
