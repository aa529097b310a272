//! The background: writes zeros into new segments, gives them their names, recycles trimmed ones.
//!
//! It works in steps of bounded size (at most [`FILL_BYTES`] written), so that it can run in its
//! own thread, pausing between steps, or be stepped by its owner where everything must happen on
//! one thread.
//!
//! Names: a file is `prep.tmp` while it is being filled; `free-N.seg` once its zeros and its size
//! are durable; then `SEQ.log`, when the directory is synced before the owner hears of it. Trimmed
//! segments go back to `free-N.seg` or are unlinked, oldest first, with a directory sync after
//! each, so that no crash can leave a gap in the sequence.

use crate::buffer::Buffer;
use crate::disk::{Dir, SegFile, is_full};
use crate::fatal::Fatal;
use crate::format::segment::{free_name, log_name};
use crate::pool::{Job, Pool, Retired};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How much one step writes.
pub(crate) const FILL_BYTES: u64 = 1 << 20;
/// The pause after each filling step if nobody waits: about 100 MB/s at most.
const PAUSE: Duration = Duration::from_millis(8);
/// How long to wait before trying again on a full disk.
const FULL_PAUSE: Duration = Duration::from_secs(1);

pub(crate) const PREPARING: &str = "prep.tmp";

/// A prepared segment and its present name.
pub(crate) struct Free {
    pub name: String,
    pub file: Arc<dyn SegFile>,
}

pub(crate) type Segments = Pool<Free>;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Worked,
    Filled,
    Idle,
    Full,
    Stop,
}

pub(crate) struct Worker {
    pub dir: Arc<dyn Dir>,
    pub pool: Arc<Segments>,
    pub segment_bytes: u64,
    /// The number of the next free segment.
    pub free_number: u64,
    pub fatal: Arc<Fatal>,
    pub filled_bytes: Arc<AtomicU64>,
    pub fill: Option<Fill>,
}

/// A segment being filled.
pub(crate) struct Fill {
    file: Arc<dyn SegFile>,
    offset: u64,
    zeros: Buffer,
}

impl Fill {
    /// Creates the file and reserves its space.
    pub fn begin(dir: &dyn Dir, segment_bytes: u64) -> io::Result<Fill> {
        let file = dir.create(PREPARING)?;
        file.allocate(segment_bytes)?;
        let zeros = Buffer::new(FILL_BYTES.min(segment_bytes) as usize)?;
        Ok(Fill {
            file,
            offset: 0,
            zeros,
        })
    }

    /// Writes the next piece; `true` when all is written.
    pub fn step(&mut self, segment_bytes: u64) -> io::Result<bool> {
        let n = (segment_bytes - self.offset).min(self.zeros.len() as u64);
        self.file.write(self.offset, &self.zeros[..n as usize])?;
        self.offset += n;
        Ok(self.offset == segment_bytes)
    }

    pub fn into_file(self) -> Arc<dyn SegFile> {
        self.file
    }
}

impl Worker {
    /// Does one step of work. Failures other than a full disk are fatal.
    pub fn step(&mut self) -> Step {
        match self.pool.next_job() {
            Job::Stop => Step::Stop,
            Job::Nothing => Step::Idle,
            Job::Stage { free, seq } => self.done(|w| w.stage(free, seq)),
            Job::Retire(what) => self.done(|w| w.retire(what)),
            Job::Fill => match self.fill() {
                Ok(()) => Step::Filled,
                Err(e) if is_full(&e) => self.give_up_filling(),
                Err(e) => self.fail("prepare a segment in", e),
            },
        }
    }

    /// The body of the background thread.
    pub fn run(mut self) {
        loop {
            match self.step() {
                Step::Worked => {}
                Step::Filled => self.pool.rest(PAUSE, true),
                Step::Idle => self.pool.wait_for_job(),
                Step::Full => self.pool.rest(FULL_PAUSE, false),
                Step::Stop => return,
            }
        }
    }

    fn done(&mut self, work: impl FnOnce(&mut Worker) -> io::Result<()>) -> Step {
        match work(self) {
            Ok(()) => Step::Worked,
            Err(e) => self.fail("rename or sync in", e),
        }
    }

    fn fail(&self, doing: &str, error: io::Error) -> Step {
        self.pool.set_failed();
        let dir = self.dir.path("");
        self.fatal
            .call(&format!("cannot {doing} {}: {error}", dir.display()));
        Step::Stop
    }

    fn stage(&mut self, free: Free, seq: u64) -> io::Result<()> {
        let name = log_name(seq);
        self.dir.rename(&free.name, &name)?;
        self.dir.sync()?;
        self.pool.staged(Free {
            name,
            file: free.file,
        });
        Ok(())
    }

    fn retire(&mut self, what: Retired<Free>) -> io::Result<()> {
        match what {
            Retired::Tail { file, len } => file.file.truncate(len),
            Retired::Segment { seq, file, recycle } => {
                let recycle = recycle && file.file.len()? == self.segment_bytes;
                if recycle {
                    let free = self.next_free_name();
                    self.dir.rename(&log_name(seq), &free)?;
                    self.dir.sync()?;
                    self.pool.add_free(Free {
                        name: free,
                        file: file.file,
                    });
                } else {
                    self.dir.unlink(&log_name(seq))?;
                    self.dir.sync()?;
                }
                Ok(())
            }
        }
    }

    fn next_free_name(&mut self) -> String {
        self.free_number += 1;
        free_name(self.free_number)
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.fill.is_none() {
            self.fill = Some(Fill::begin(&*self.dir, self.segment_bytes)?);
        }
        let fill = self.fill.as_mut().expect("made above");
        let before = fill.offset;
        let complete = fill.step(self.segment_bytes)?;
        self.filled_bytes
            .fetch_add(fill.offset - before, Ordering::Relaxed);
        if complete {
            let file = self.fill.take().expect("made above").into_file();
            file.sync()?;
            let name = self.next_free_name();
            self.dir.rename(PREPARING, &name)?;
            self.pool.add_free(Free { name, file });
        }
        Ok(())
    }

    /// Gives the space back and says so.
    fn give_up_filling(&mut self) -> Step {
        self.fill = None;
        match self.dir.unlink(PREPARING) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return self.fail("remove a half-made segment from", e);
            }
            _ => {}
        }
        self.pool.set_full();
        Step::Full
    }
}
