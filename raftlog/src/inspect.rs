//! Looking at a log without opening it: for operators, and for whoever must find out what happened.
//!
//! Nothing is written, created, renamed or synced, apart from the lock, which keeps a running member
//! and these tools apart. What is read is what the medium holds where the file system allows it.

use crate::buffer::Buffer;
use crate::disk::os::{Abilities, OpenDirError, ReadOnlyDir};
use crate::disk::{Dir, SegFile};
use crate::error::OpenError;
use crate::format::batch::{self, BatchHeader, HEADER_BYTES};
use crate::format::segment::{
    FIRST_BATCH, SegmentHeader, log_name, parse_free_name, parse_log_name,
};
use crate::format::{BLOCK_BYTES, crc};
use crate::reader::{Published, Reader};
use crate::recovery::scan::{Context, LiveSegment, recover};
use crate::types::{Committed, HardState};
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use crate::format::batch::Record;

/// What a sound log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Cluster and member id.
    pub identity: [u64; 2],
    pub segments: usize,
    /// The lowest index in the log; `last_index + 1` if it is empty.
    pub first_index: u64,
    pub last_index: u64,
    pub hard_state: HardState,
    /// The newest snapshot mark: index and term.
    pub snapshot: Option<(u64, u64)>,
    /// Entries that were read back one by one.
    pub entries: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// What a start would report.
    pub report: String,
}

/// One thing found in a log, in the order of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A file of the directory that is not a segment in use.
    File { name: &'a str, bytes: u64 },
    /// A segment begins.
    Segment {
        name: &'a str,
        bytes: u64,
        header: Result<HeaderFacts, String>,
    },
    /// A block in which a batch of this or another incarnation begins.
    Batch {
        offset: u64,
        facts: BatchFacts,
        standing: Standing,
    },
    /// A record of the batch before; `None` if the bytes make no sense although their checksum is good.
    Record(Option<Record<'a>>),
    /// Blocks that hold something, but neither a batch nor a part of one.
    Noise { offset: u64, blocks: u64 },
    /// The segment ends; so many bytes behind the last valid batch hold nothing but zeros.
    End { zeros: u64 },
}

/// A segment's header in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderFacts {
    pub seq: u64,
    pub seg_id: u64,
    pub identity: [u64; 2],
    /// Segment and byte offset at which the one before ends.
    pub previous_end: (u64, u64),
    pub next_batch: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub hard_state: HardState,
    pub snapshot: Option<(u64, u64)>,
}

/// A batch's header in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFacts {
    pub batch: u64,
    /// The highest batch known durable when this one was written.
    pub durable: u64,
    pub first_index: u64,
    pub records: u32,
    /// Bytes of records.
    pub bytes: u32,
    pub disk_bytes: u64,
}

/// How a batch fits its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Valid, and next in the chain.
    Chained,
    /// Valid, of this incarnation, but not next in the chain.
    OutOfChain,
    /// Written before the file was recycled.
    Stale,
    /// Its header is good, its records are not.
    Torn,
}

fn open(dir: &Path) -> Result<ReadOnlyDir, OpenError> {
    ReadOnlyDir::open(dir, Abilities::ALL).map_err(|e| match e {
        OpenDirError::Locked => OpenError::Locked {
            path: dir.to_path_buf(),
        },
        OpenDirError::Io(doing, source) => OpenError::Io {
            doing,
            path: dir.to_path_buf(),
            source,
        },
    })
}

fn io_error(dir: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let path = dir.to_path_buf();
    move |source| OpenError::Io {
        doing,
        path,
        source,
    }
}

/// What [`crate::Log::open`] would make of the directory, and every entry read back; changes nothing.
/// `committed` is what the store has applied, if known. Refuses where opening would. Blocks for reading
/// everything.
pub fn verify(dir: &Path, committed: Option<Committed>) -> Result<Summary, OpenError> {
    let files = open(dir)?;
    verify_in(&files, dir, committed)
}

pub(crate) fn verify_in(
    files: &dyn Dir,
    dir: &Path,
    committed: Option<Committed>,
) -> Result<Summary, OpenError> {
    let list = files.list().map_err(io_error(dir, "list"))?;
    let mut seqs: Vec<u64> = list.iter().filter_map(|(n, _)| parse_log_name(n)).collect();
    seqs.sort_unstable();
    if seqs.is_empty() {
        let none = io::Error::new(io::ErrorKind::NotFound, "it holds no log");
        return Err(io_error(dir, "verify")(none));
    }
    let context = Context {
        dir: files,
        identity: None,
        committed,
        accept_loss: false,
        #[cfg(any(test, feature = "sim"))]
        trust_unsynced: false,
    };
    let recovery = recover(&context, &seqs)?;
    let state = recovery.state;
    let sources = recovery.segments.iter().map(LiveSegment::source);
    let published = Published::new(recovery.index, sources, state.first_index, state.last_index);
    let mut reader = Reader::new(dir.to_path_buf(), Arc::new(published));
    let (mut entries, mut bytes, mut next) = (0, 0, state.first_index);
    while next <= state.last_index {
        let read = reader.entries(next, state.last_index + 1, 1 << 20);
        let read = read.map_err(|e| io_error(dir, "read entries of")(io::Error::other(e)))?;
        entries += read.len() as u64;
        bytes += read.iter().map(|e| e.data.len() as u64).sum::<u64>();
        next += read.len() as u64;
    }
    Ok(Summary {
        identity: recovery.identity,
        segments: recovery.segments.len(),
        first_index: state.first_index,
        last_index: state.last_index,
        hard_state: state.hard_state,
        snapshot: state.snapshot,
        entries,
        bytes,
        report: recovery.report,
    })
}

/// Shows everything that the directory holds, damaged or not, to `visit`, which may stop it with an
/// error of its own. Judges nothing: that is for [`verify`].
pub fn dump(
    dir: &Path,
    visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>,
) -> Result<(), OpenError> {
    let files = open(dir)?;
    let fail = |e| io_error(dir, "show")(e);
    for (name, bytes) in files.list().map_err(io_error(dir, "list"))? {
        match parse_log_name(&name) {
            Some(seq) => dump_segment(&files, seq, bytes, visit).map_err(fail)?,
            None => {
                let found = Found::File { name: &name, bytes };
                if parse_free_name(&name).is_some() || bytes > 0 {
                    visit(&found).map_err(fail)?;
                }
            }
        }
    }
    Ok(())
}

fn dump_segment(
    dir: &dyn Dir,
    seq: u64,
    bytes: u64,
    visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let name = log_name(seq);
    let file = dir.open(&name)?;
    let mut block = Buffer::new(BLOCK_BYTES)?;
    let n = file.read(0, &mut block)?;
    let header = SegmentHeader::decode(&block[..n]);
    visit(&Found::Segment {
        name: &name,
        bytes,
        header: header.as_ref().map(facts).map_err(|e| format!("{e:?}")),
    })?;
    let seg_id = header.as_ref().ok().map(|h| h.seg_id);
    let mut expected = header
        .as_ref()
        .ok()
        .map(|h| (h.next_batch_seq, h.prev_end.chain));
    let (mut offset, mut last_end, mut noise) = (FIRST_BATCH, FIRST_BATCH, 0);
    while offset < bytes {
        let n = file.read(offset, &mut block)?;
        let Some(found) = BatchHeader::decode(&block[..n]) else {
            match block[..n].iter().any(|b| *b != 0) {
                true => noise += 1,
                false => flush_noise(&mut noise, offset, visit)?,
            }
            if noise > 0 {
                last_end = offset + BLOCK_BYTES as u64;
            }
            offset += BLOCK_BYTES as u64;
            continue;
        };
        flush_noise(&mut noise, offset, visit)?;
        let payload = read_payload(&*file, offset, &found, bytes)?;
        let chained = expected == Some((found.batch_seq, found.chain));
        let standing = match (&payload, seg_id == Some(found.seg_id)) {
            (_, false) => Standing::Stale,
            (None, _) => Standing::Torn,
            (Some(_), _) if chained => Standing::Chained,
            (Some(_), _) => Standing::OutOfChain,
        };
        visit(&Found::Batch {
            offset,
            facts: batch_facts(&found),
            standing,
        })?;
        if standing == Standing::Chained {
            expected = Some((found.batch_seq + 1, found.crc));
        }
        match payload {
            Some(buffer) => {
                let end = HEADER_BYTES + found.len as usize;
                for record in batch::records(&buffer[HEADER_BYTES..end]) {
                    visit(&Found::Record(record))?;
                }
                offset += found.disk_bytes();
            }
            None => offset += BLOCK_BYTES as u64,
        }
        last_end = offset;
    }
    flush_noise(&mut noise, offset, visit)?;
    visit(&Found::End {
        zeros: bytes.saturating_sub(last_end),
    })
}

/// Tells of a run of blocks that ends before `offset`.
fn flush_noise(
    noise: &mut u64,
    offset: u64,
    visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let blocks = std::mem::take(noise);
    if blocks == 0 {
        return Ok(());
    }
    let offset = offset - blocks * BLOCK_BYTES as u64;
    visit(&Found::Noise { offset, blocks })
}

/// The whole batch, if its records are what its header says.
fn read_payload(
    file: &dyn SegFile,
    offset: u64,
    header: &BatchHeader,
    file_bytes: u64,
) -> io::Result<Option<Buffer>> {
    if header.disk_bytes() > file_bytes - offset {
        return Ok(None);
    }
    let mut buffer = Buffer::new(header.disk_bytes() as usize)?;
    let end = HEADER_BYTES + header.len as usize;
    let whole = file.read(offset, &mut buffer)? >= end;
    let good = whole && crc(&buffer[HEADER_BYTES..end]) == header.payload_crc;
    Ok(good.then_some(buffer))
}

fn facts(header: &SegmentHeader) -> HeaderFacts {
    HeaderFacts {
        seq: header.seq,
        seg_id: header.seg_id,
        identity: header.identity,
        previous_end: (header.prev_end.seq, header.prev_end.offset),
        next_batch: header.next_batch_seq,
        first_index: header.state.first_index,
        last_index: header.state.last_index,
        hard_state: header.state.hard_state,
        snapshot: header.state.snapshot,
    }
}

fn batch_facts(header: &BatchHeader) -> BatchFacts {
    BatchFacts {
        batch: header.batch_seq,
        durable: header.durable_seq,
        first_index: header.first_index,
        records: header.records,
        bytes: header.len,
        disk_bytes: header.disk_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::harness::entry;
    use crate::{Backend, Log, Options};

    fn log(dir: &Path) -> Log {
        let (mut log, _) = Log::open(Options {
            segment_bytes: 64 << 10,
            backend: Backend::Sync,
            identity: [7, 9],
            ..Options::new(dir)
        })
        .unwrap();
        for i in 1..=40 {
            let hs = HardState {
                term: 1,
                vote: 2,
                commit: i - 1,
            };
            log.append(&[entry(i, 1, 3000)], Some(hs)).unwrap();
            log.sync();
        }
        log.trim(30);
        log
    }

    fn digest(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .map(|p| (p.display().to_string(), std::fs::read(p).unwrap()))
            .collect();
        all.sort();
        all
    }

    fn found(dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        dump(dir, &mut |f| {
            lines.push(format!("{f:?}"));
            Ok(())
        })
        .unwrap();
        lines
    }

    #[test]
    fn a_sound_log_is_counted_and_nothing_is_changed() {
        let temp = tempfile::tempdir().unwrap();
        let open = log(temp.path());
        assert!(matches!(
            verify(temp.path(), None),
            Err(OpenError::Locked { .. })
        ));
        open.close();
        let before = digest(temp.path());
        let summary = verify(temp.path(), None).unwrap();
        assert_eq!(summary.identity, [7, 9]);
        assert_eq!((summary.first_index, summary.last_index), (30, 40));
        assert_eq!((summary.entries, summary.bytes), (11, 33_000));
        assert!(summary.report.contains("row 6"), "{}", summary.report);
        let lines = found(temp.path());
        let chained = lines.iter().filter(|l| l.contains("Chained")).count();
        assert!(chained >= 11, "{lines:#?}");
        assert!(lines.iter().any(|l| l.contains("Entry { index: 40")));
        assert_eq!(digest(temp.path()), before);
    }

    #[test]
    fn damage_is_shown_by_one_and_refused_by_the_other() {
        let temp = tempfile::tempdir().unwrap();
        log(temp.path()).close();
        let newest = found(temp.path())
            .iter()
            .filter(|l| l.starts_with("Segment"))
            .filter_map(|l| Some(l.split("name: \"").nth(1)?.split('"').next()?.to_string()))
            .rfind(|n| std::fs::read(temp.path().join(n)).unwrap()[4096] != 0)
            .unwrap();
        let path = temp.path().join(newest);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096 + 500] ^= 1;
        bytes[8192 + 10] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let lines = found(temp.path());
        assert!(lines.iter().any(|l| l.contains("standing: Torn")));
        assert!(lines.iter().any(|l| l.contains("Noise")));
        let refusal = verify(temp.path(), None).unwrap_err().to_string();
        assert!(refusal.contains("at byte 4096"), "{refusal}");
        assert!(refusal.contains("Ways out"), "{refusal}");
    }

    #[test]
    fn a_directory_without_a_log_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let error = verify(temp.path(), None).unwrap_err().to_string();
        assert!(error.contains("holds no log"), "{error}");
        let error = verify(&temp.path().join("absent"), None).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
        assert!(!temp.path().join("absent").exists());
    }
}
