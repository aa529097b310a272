//! The shared handle, and how a new view reaches every reader.
//!
//! The newest view stands in [`Shards`]; a thread keeps to its shard, so what it reads never goes back, and when
//! `publish` returns, whoever learns of it reads the new view or a newer one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::check::{CheckReport, FileReport};
use crate::events::log::EventLog;
use crate::scrub::{self, Scrubber};
use crate::source::{self, Store};
use crate::types::{Applied, Error, Options, Result, ScrubReport, Stats};

use super::Meta;
use super::history_pins::HistoryPins;
use super::long::{LongHistory, LongRead};
use super::shards::Shards;
use super::view::{View, ViewInner};
use super::writer::{Pending, Writer};

const SHARDS: usize = 8;

/// The shared, read-only handle of an open engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    store: Store,
    /// What opening found.
    report: String,
    newest: Shards<View, SHARDS>,
    durable: Arc<Mutex<DurableApplied>>,
    scrub: Arc<scrub::Desk>,
    pub(super) history: Arc<HistoryPins>,
}

#[derive(Clone, Copy, Default)]
struct DurableApplied {
    newest: Applied,
    previous: Applied,
}

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Every critical section is a plain assignment or clone: poisoned data is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn set_view(&self, view: &View) {
        self.newest.set(view);
    }

    /// The newest state, as of the shard of this number: what is read from one never goes back.
    pub(super) fn view(&self, shard: usize) -> View {
        self.newest.get(shard)
    }
}

impl Engine {
    /// Opens the engine in a directory, creating it at revision 1 when there is none. The state
    /// is that of the newest durable checkpoint: replay the log from `view().applied().index + 1`.
    pub fn open(options: Options) -> Result<(Engine, Writer)> {
        let (store, mut writer, recovered) = Store::open(source::store_options(&options))?;
        let meta = if recovered.user_meta.is_empty() {
            Meta::default()
        } else {
            Meta::decode(&recovered.user_meta)?
        };
        let view = View {
            inner: Arc::new(ViewInner {
                snapshot: writer.publish(),
                open: None,
                meta: meta.clone(),
            }),
        };
        crate::check::check_opened(&view)?;
        // The older meta slot may still be the one to fall back to, so nothing counts as the
        // previous checkpoint until there is a new one.
        let scrubber = Scrubber::start(&store, &options).map_err(Error::Io)?;
        let durable = Arc::new(Mutex::new(DurableApplied {
            newest: meta.applied,
            previous: Applied::default(),
        }));
        let shared = Arc::new(Shared {
            store: store.clone(),
            report: recovered.report,
            newest: Shards::new(&view),
            durable: durable.clone(),
            scrub: scrubber.desk(),
            history: Arc::new(HistoryPins::new(
                meta.compact_revision,
                options.history_pin_max,
            )),
        });
        let reads_ahead = Arc::downgrade(&shared);
        store.on_durable(Box::new(move |_| {
            if let Some(shared) = reads_ahead.upgrade() {
                let runs = shared.store.noted_runs();
                if !runs.is_empty() {
                    crate::relocate::warm(&shared.newest.get(0), &runs);
                }
            }
        }));
        writer.moves_runs();
        store.on_durable(Box::new(move |state| {
            let Ok(meta) = Meta::decode(&state.user_meta) else {
                return;
            };
            let mut durable = lock(&durable);
            *durable = DurableApplied {
                newest: meta.applied,
                previous: durable.newest,
            };
        }));
        let writer = Writer {
            store: writer,
            _scrubber: scrubber,
            shared: shared.clone(),
            log: EventLog::new(meta.next_seq, options.chunk_bytes),
            meta,
            pending: Pending {
                events: Vec::new(),
                bytes: 0,
                bytes_max: options.publish_bytes_max,
                overflow: false,
            },
            broken: false,
            unpublished: false,
            inline_max: store.value_bytes_max(),
            dirty_bytes_max: options.dirty_bytes_max,
            scratch: Vec::new(),
            #[cfg(test)]
            drops_too_much: false,
            #[cfg(test)]
            deaf_to_pins: false,
        };
        Ok((Engine { shared }, writer))
    }

    /// What opening found, in words, for the log: the checkpoint, and what could not be used.
    pub fn opening_report(&self) -> &str {
        &self.shared.report
    }

    /// The newest state.
    pub fn view(&self) -> View {
        SHARD.with(|shard| self.shared.newest.get(*shard))
    }

    /// A reader of revision `at` (`<= 0`: the newest) that may take long: it pins history, not pages.
    pub fn long_read(&self, at: i64) -> Result<LongRead> {
        SHARD.with(|shard| LongRead::open(&self.shared, *shard, at))
    }

    /// A reader of everything that can be read now, which may take long: it pins history, not pages.
    /// [`Error::Compacted`] while a compaction is carried out that is not published yet.
    pub fn long_history(&self) -> Result<LongHistory> {
        SHARD.with(|shard| LongHistory::open(&self.shared, *shard))
    }

    /// Long readers that compaction did not wait for any longer, since the engine was opened.
    pub fn history_pins_expired(&self) -> u64 {
        self.shared.history.stats().expired
    }

    /// Figures about file, cache and contents.
    pub fn stats(&self) -> Stats {
        let store = self.shared.store.stats();
        let view = self.view();
        let meta = &view.inner.meta;
        let history = view.reader().history();
        let pins = self.shared.history.stats();
        Stats {
            file_bytes: store.file_bytes,
            in_use_bytes: store.in_use_bytes,
            free_bytes: store.free_bytes,
            dirty_bytes: store.dirty_bytes,
            cache_hits: store.cache_hits,
            cache_misses: store.cache_misses,
            cache_bytes: store.cache_bytes,
            cache_evictions: store.cache_evictions,
            pending_bytes: store.pending_bytes,
            allocated_bytes: store.allocated_bytes,
            checkpoints: store.checkpoints,
            checkpoints_failed: store.checkpoints_failed,
            checkpoint_bytes: store.checkpoint_bytes,
            checkpoint_last_micros: store.checkpoint_last_micros,
            checkpoint_total_micros: store.checkpoint_total_micros,
            oldest_pin_lag: store
                .oldest_pin
                .map_or(0, |pin| store.newest_publish.saturating_sub(pin)),
            oldest_pin_age: store.oldest_pin_age,
            history_pins: pins.open,
            oldest_history_pin: pins.oldest,
            oldest_history_pin_age: pins.age,
            history_pins_expired: pins.expired,
            gave_way: store.gave_way,
            moved_bytes: store.moved_bytes,
            packed_bytes: store.packed_bytes,
            defrag_goal_bytes: store.defrag_goal_bytes,
            defragmenting: store.defragmenting,
            checkpoint: self.shared.store.durable().checkpoint,
            no_space: store.no_space,
            keys: view.count(&crate::KeyRange::all(), 0).unwrap_or(0),
            events: meta.next_seq - history.first_seq().unwrap_or(meta.next_seq),
        }
    }

    /// Waits until checkpoint `checkpoint` or a later one is durable.
    pub fn wait_durable(&self, checkpoint: u64) -> Result<()> {
        self.shared
            .store
            .wait_durable(checkpoint)
            .map_err(Error::from)
    }

    /// What became of a checkpoint: `None` while it is under way. Never waits.
    pub fn checkpoint_outcome(&self, checkpoint: u64) -> Option<Result<()>> {
        let outcome = self.shared.store.outcome(checkpoint)?;
        Some(outcome.map_err(Error::from))
    }

    /// The last log entry in the newest durable checkpoint.
    pub fn durable_applied(&self) -> Applied {
        lock(&self.shared.durable).newest
    }

    /// The last log entry in the durable checkpoint before the newest. Log entries up to it are
    /// not needed any more, even if the newest checkpoint turns out unreadable.
    pub fn previous_durable_applied(&self) -> Applied {
        lock(&self.shared.durable).previous
    }

    /// Runs a durable write of the log. Checkpoints, defragmentation and the scrubber hold their next piece of I/O
    /// back meanwhile, two milliseconds at most. As long as such writes come, checkpoints hand the disk little at a
    /// time, unless they must end soon.
    pub fn log_write<R>(&self, write: impl FnOnce() -> R) -> R {
        self.shared.store.log_write(write)
    }

    /// Reads and verifies, at once and at full speed, all that the newest durable checkpoint reaches, and goes on behind
    /// what is damaged. Slow; for tools.
    pub fn read_all(&self) -> ScrubReport {
        scrub::read_all(&self.shared.store)
    }

    /// How far the scrubber is, and what it found.
    pub fn scrub_report(&self) -> ScrubReport {
        self.shared.scrub.report()
    }

    /// Reads all of a view and verifies what the record layer promises about it.
    pub fn check(&self, view: &View) -> Result<CheckReport> {
        crate::check::check(view)
    }

    /// Reads the newest durable checkpoint from the file, past the cache, and verifies it: every
    /// page, every run and the allocation map. Slow; reads the whole file.
    pub fn check_file(&self) -> Result<FileReport> {
        crate::check::check_file(&self.shared.store, &self.view())
    }
}
