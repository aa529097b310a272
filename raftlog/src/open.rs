//! Opening: find what is there, recover it, begin a new segment, start the background.

use crate::buffer::Buffer;
use crate::disk::os::{Abilities, OpenDirError, OsDir};
use crate::disk::{Dir, SegFile};
use crate::error::{OpenError, Refusal};
use crate::fatal::Fatal;
use crate::flush::Flusher;
use crate::flush::thread::FlushThread;
use crate::flush::uring::{self, Ring};
use crate::format::BLOCK_BYTES;
use crate::format::segment::{
    FIRST_BATCH, PrevEnd, SegmentHeader, log_name, parse_free_name, parse_log_name,
};
use crate::ids::Ids;
use crate::index::{Index, Terms};
use crate::log::{Background, Log, Parts};
use crate::options::{Backend, Options};
use crate::pool::{Pool, Retired};
use crate::prepare::{Fill, Free, PREPARING, Worker};
use crate::queue::{CHUNKS_KEPT, Queue, chunk_bytes};
use crate::recovery::scan::{Context, LiveSegment, Recovery, recover};
use crate::recovery::table::Row;
use crate::state::State;
use crate::types::HardState;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The lowest index in the log; `last_index + 1` if it is empty.
    pub first_index: u64,
    pub last_index: u64,
    /// The term of the entry just before the first, if known.
    pub previous_term: Option<u64>,
    pub hard_state: HardState,
    /// The newest snapshot mark: index and term.
    pub snapshot: Option<(u64, u64)>,
    /// What was found, for people.
    pub report: String,
    /// The log was created just now.
    pub is_new: bool,
}

/// The files of a directory that are a log's.
#[derive(Default)]
struct Files {
    /// Sequence numbers, ascending.
    logs: Vec<u64>,
    free: Vec<Free>,
    free_number: u64,
    unknown: Vec<String>,
}

struct Started {
    segments: VecDeque<LiveSegment>,
    state: State,
    terms: Terms,
    index: Index,
    offset: u64,
    chain: u32,
    next_batch_seq: u64,
    durable_seq: u64,
    dead_tail: Option<Retired<Free>>,
    report: String,
    is_new: bool,
}

impl Log {
    /// Opens the log in `options.dir`, or creates one if the directory holds none. Blocks for
    /// reading what is there. On an error nothing was lost.
    pub fn open(options: Options) -> Result<(Log, Recovered), OpenError> {
        options.check().map_err(OpenError::Options)?;
        let fatal = Arc::new(Fatal::new());
        if let Some(hook) = &options.fatal {
            fatal.set(hook.clone());
        }
        let mut arena = Vec::new();
        for _ in 0..CHUNKS_KEPT {
            let buffer = Buffer::new(chunk_bytes(options.segment_bytes));
            arena.push(buffer.map_err(error_in(&options, "get memory for writing to"))?);
        }
        let (dir, flusher, backend_name, backend_note) = backend(&options, &mut arena)?;
        let mut ids = Ids::new(options.id_seed);
        let mut opener = Opener {
            dir: &*dir,
            options: &options,
            files: survey(&*dir, &options)?,
        };
        let mut started = opener.start(&mut ids)?;
        let Files {
            free,
            free_number,
            unknown,
            ..
        } = opener.files;
        if !unknown.is_empty() {
            started.report += &format!("; left alone: {}", unknown.join(", "));
        }
        started.report += &format!("; writing with {backend_name}{backend_note}");
        let active = started.segments.back().expect("just begun").seq;
        let pool = Arc::new(Pool::new(
            free,
            active + 1,
            options.reserve_segments,
            options.recycle_segments,
        ));
        if let Some(tail) = started.dead_tail {
            pool.retire(tail);
        }
        let filled_bytes = Arc::new(AtomicU64::new(0));
        let worker = Worker {
            dir: dir.clone(),
            pool: pool.clone(),
            segment_bytes: options.segment_bytes,
            free_number,
            fatal: fatal.clone(),
            filled_bytes: filled_bytes.clone(),
            fill: None,
        };
        let background = match options.inline_background {
            true => Background::Inline(Box::new(worker)),
            false => Background::Thread(Some(
                std::thread::Builder::new()
                    .name("raftlog-prepare".into())
                    .spawn(move || worker.run())
                    .map_err(error_in(&options, "start the background thread for"))?,
            )),
        };
        let recovered = Recovered {
            first_index: started.state.first_index,
            last_index: started.state.last_index,
            previous_term: started.terms.get(started.state.first_index - 1),
            hard_state: started.state.hard_state,
            snapshot: started.state.snapshot,
            report: started.report,
            is_new: started.is_new,
        };
        let log = Log::assemble(Parts {
            queue: Queue::new(options.segment_bytes, arena),
            dir,
            options,
            backend_name,
            fatal,
            flusher,
            pool,
            background,
            filled_bytes,
            ids,
            segments: started.segments,
            offset: started.offset,
            chain: started.chain,
            next_batch_seq: started.next_batch_seq,
            durable_seq: started.durable_seq,
            state: started.state,
            terms: started.terms,
            index: started.index,
        });
        Ok((log, recovered))
    }
}

fn error_in<'a>(
    options: &'a Options,
    doing: &'static str,
) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io {
        doing,
        path: options.dir.clone(),
        source,
    }
}

type Chosen = (Arc<dyn Dir>, Flusher, &'static str, String);

/// Opens the directory with the backend asked for, or the best one that works.
fn backend(options: &Options, arena: &mut [Buffer]) -> Result<Chosen, OpenError> {
    #[cfg(any(test, feature = "sim"))]
    if let Backend::Sim(disk) = &options.backend {
        let dir = crate::disk::sim::SimDir {
            disk: disk.clone(),
            dir: options.dir.to_string_lossy().into_owned(),
            skip_sync: options.sabotage == crate::options::Sabotage::SkipDirSync,
        };
        let flusher = match options.flush_thread {
            true => {
                let thread = FlushThread::start();
                Flusher::Thread(thread.map_err(error_in(options, "start the flush thread for"))?)
            }
            false => Flusher::Inline(None),
        };
        return Ok((Arc::new(dir), flusher, "simdisk", String::new()));
    }
    let allowed = Abilities {
        direct: options.allow_direct,
        dsync: options.allow_dsync,
    };
    let dir = OsDir::open(&options.dir, allowed).map_err(|e| match e {
        OpenDirError::Locked => OpenError::Locked {
            path: options.dir.clone(),
        },
        OpenDirError::Io(doing, e) => error_in(options, doing)(e),
    })?;
    let mut note = String::new();
    if !dir.abilities().direct {
        note += ", through the page cache (no O_DIRECT here)";
    }
    let mut ring = None;
    if !matches!(options.backend, Backend::Sync) {
        match uring::probe(&dir) {
            Ok(()) => ring = Some(Ring::new(arena)),
            Err(e) if matches!(options.backend, Backend::Uring) => {
                return Err(error_in(options, "use io_uring in")(e));
            }
            Err(e) => note += &format!(" (no io_uring: {e})"),
        }
    }
    let name = match (&ring, dir.abilities().dsync) {
        (Some(_), _) => "io_uring",
        (_, true) => "pwritev2",
        (_, false) => "pwrite+fdatasync",
    };
    let flusher = match ring {
        Some(mut ring) => {
            let refused = ring.prepare();
            for what in refused.map_err(error_in(options, "set up io_uring for"))? {
                note += &format!(" ({what})");
            }
            Flusher::Ring(Box::new(ring))
        }
        None if options.flush_thread => {
            note += ", in a thread of its own";
            let thread = FlushThread::start();
            Flusher::Thread(thread.map_err(error_in(options, "start the flush thread for"))?)
        }
        None => Flusher::Inline(None),
    };
    Ok((Arc::new(dir), flusher, name, note))
}

/// Lists the directory, removes half-made files, opens the free ones.
fn survey(dir: &dyn Dir, options: &Options) -> Result<Files, OpenError> {
    let mut files = Files::default();
    for (name, len) in dir.list().map_err(error_in(options, "list"))? {
        if let Some(seq) = parse_log_name(&name) {
            files.logs.push(seq);
        } else if let Some(number) = parse_free_name(&name) {
            files.free_number = files.free_number.max(number);
            if len == options.segment_bytes {
                let file = dir
                    .open(&name)
                    .map_err(error_in(options, "open a free segment in"))?;
                files.free.push(Free { name, file });
            } else {
                dir.unlink(&name).map_err(error_in(
                    options,
                    "remove a free segment of another size from",
                ))?;
            }
        } else if name == PREPARING || name == "probe.tmp" {
            dir.unlink(&name)
                .map_err(error_in(options, "remove a half-made file from"))?;
        } else {
            files.unknown.push(name);
        }
    }
    files.logs.sort_unstable();
    Ok(files)
}

struct Opener<'a> {
    dir: &'a dyn Dir,
    options: &'a Options,
    files: Files,
}

impl Opener<'_> {
    fn start(&mut self, ids: &mut Ids) -> Result<Started, OpenError> {
        if self.files.logs.is_empty() {
            return self.create(ids);
        }
        let context = Context {
            dir: self.dir,
            identity: Some(self.options.identity),
            committed: self.options.committed,
            accept_loss: self.options.accept_loss,
            #[cfg(any(test, feature = "sim"))]
            trust_unsynced: self.options.sabotage == crate::options::Sabotage::TrustUnsynced,
        };
        let recovery = recover(&context, &self.files.logs)?;
        self.go_on(recovery, ids)
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> OpenError + '_ {
        error_in(self.options, doing)
    }

    /// A new log: its first segment appears under its name only when its header is durable.
    fn create(&mut self, ids: &mut Ids) -> Result<Started, OpenError> {
        let mut state = State::default();
        let mut report = "created a new log".to_string();
        if let Some(c) = self.options.committed.filter(|c| c.index > 0) {
            let refusal = Refusal {
                row: Some(Row::CommittedLost),
                path: self.options.dir.clone(),
                offset: 0,
                first_lost: 1,
                last_lost: Some(c.index),
                detail: format!(
                    "the directory holds no log, but the store has applied entry {}",
                    c.index
                ),
                can_accept: true,
            };
            if !self.options.accept_loss {
                return Err(OpenError::Refused(Box::new(refusal)));
            }
            report = format!("created a new log; LOSS ACCEPTED: {refusal}");
            state.apply(&crate::format::batch::Record::Snapshot {
                index: c.index,
                term: c.term,
            });
        }
        let header = SegmentHeader {
            seq: 1,
            seg_id: ids.next(),
            identity: self.options.identity,
            segment_bytes: self.options.segment_bytes,
            prev_end: PrevEnd::default(),
            next_batch_seq: 1,
            state,
        };
        let file = self.fill()?;
        self.write_header(&*file, &header)?;
        self.dir
            .rename(PREPARING, &log_name(1))
            .and_then(|()| self.dir.sync())
            .map_err(self.io("create the first segment in"))?;
        Ok(Started {
            terms: Terms::starting_after(state.last_index, state.last_term),
            index: Index::default(),
            segments: VecDeque::from([live(&header, file)]),
            state,
            offset: FIRST_BATCH,
            chain: 0,
            next_batch_seq: 1,
            durable_seq: 0,
            dead_tail: None,
            report,
            is_new: true,
        })
    }

    /// A new segment behind what was recovered: its header pins where the log ended.
    fn go_on(&mut self, recovery: Recovery, ids: &mut Ids) -> Result<Started, OpenError> {
        for name in &recovery.discarded {
            self.dir
                .rename(name, &format!("{name}.discarded"))
                .map_err(self.io("set aside a segment of"))?;
        }
        #[cfg(any(test, feature = "sim"))]
        if self.options.sabotage == crate::options::Sabotage::AppendToRecoveredTail {
            return Ok(continue_tail(recovery));
        }
        let header = SegmentHeader {
            seq: recovery.end.seq + 1,
            seg_id: ids.next(),
            identity: self.options.identity,
            segment_bytes: self.options.segment_bytes,
            prev_end: recovery.end,
            next_batch_seq: recovery.next_batch_seq,
            state: recovery.state,
        };
        let file = self.take_file(header.seq, recovery.never_started)?;
        self.dir.sync().map_err(self.io("sync"))?;
        self.write_header(&*file, &header)?;
        let tail = recovery.segments.last().expect("recovered from something");
        let dead_tail = Retired::Tail {
            file: Free {
                name: log_name(tail.seq),
                file: tail.file.clone(),
            },
            len: recovery.end.offset,
        };
        let mut segments = VecDeque::from(recovery.segments);
        segments.push_back(live(&header, file));
        Ok(Started {
            segments,
            state: recovery.state,
            terms: recovery.terms,
            index: recovery.index,
            offset: FIRST_BATCH,
            chain: recovery.end.chain,
            next_batch_seq: recovery.next_batch_seq,
            durable_seq: recovery.durable_seq,
            dead_tail: Some(dead_tail),
            report: recovery.report,
            is_new: false,
        })
    }

    /// A prepared file under the name of segment `seq`: one that was staged and never used, a free
    /// one, or a new one. The caller syncs the directory.
    fn take_file(
        &mut self,
        seq: u64,
        never_started: Option<Arc<dyn SegFile>>,
    ) -> Result<Arc<dyn SegFile>, OpenError> {
        if let Some(file) = never_started {
            let len = file
                .len()
                .map_err(self.io("measure a prepared segment in"))?;
            if len == self.options.segment_bytes {
                return Ok(file);
            }
            // Of another size: what takes the name next replaces it.
        }
        let (from, file) = match self.files.free.pop() {
            Some(free) => (free.name, free.file),
            None => (PREPARING.to_string(), self.fill()?),
        };
        self.dir
            .rename(&from, &log_name(seq))
            .map_err(self.io("name a segment in"))?;
        Ok(file)
    }

    fn fill(&self) -> Result<Arc<dyn SegFile>, OpenError> {
        let bytes = self.options.segment_bytes;
        let filled = || {
            let mut fill = Fill::begin(self.dir, bytes)?;
            while !fill.step(bytes)? {}
            let file = fill.into_file();
            file.sync()?;
            Ok(file)
        };
        filled().map_err(self.io("prepare a segment in"))
    }

    fn write_header(&self, file: &dyn SegFile, header: &SegmentHeader) -> Result<(), OpenError> {
        Buffer::new(BLOCK_BYTES)
            .and_then(|mut block| {
                header.encode(&mut block);
                file.write_durable(0, &[&block])
            })
            .map_err(self.io("write a segment's header in"))
    }
}

fn live(header: &SegmentHeader, file: Arc<dyn SegFile>) -> LiveSegment {
    LiveSegment {
        seq: header.seq,
        seg_id: header.seg_id,
        file,
        base: header.state.last_index,
    }
}

#[cfg(any(test, feature = "sim"))]
fn continue_tail(recovery: Recovery) -> Started {
    Started {
        segments: VecDeque::from(recovery.segments),
        state: recovery.state,
        terms: recovery.terms,
        index: recovery.index,
        offset: recovery.end.offset,
        chain: recovery.end.chain,
        next_batch_seq: recovery.durable_seq + 1,
        durable_seq: recovery.durable_seq,
        dead_tail: None,
        report: recovery.report,
        is_new: false,
    }
}
