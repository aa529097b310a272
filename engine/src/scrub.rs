//! The scrubber: a thread that reads the newest durable checkpoint slowly, again and again, and reports what rots.
//!
//! It keeps to a rate, pauses between passes, and ends with the writer. What it finds is told to the hook in
//! [`Options::on_damage`](crate::Options) once, counted, and shown by [`Engine::scrub_report`](crate::Engine); what to do
//! about it is the owner's decision, since a page that nobody reads hurts nobody yet.
//!
//! Invariant: it decides nothing that a request could notice. Its clock only says how long to wait.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::mvcc::Meta;
use crate::source::{RunRef, ScrubPlace, ScrubSlice, Store, TreeId};
use crate::store::{Error as StoreError, FatalHook};
use crate::types::{Options, Result, ScrubReport};

/// Read between two waits.
const SLICE_BYTES: u64 = 256 << 10;
/// Texts of damage kept.
const DAMAGE_MAX: usize = 16;

/// One slice of a pass.
pub(crate) fn slice(store: &Store, place: &mut ScrubPlace, bytes: u64) -> ScrubSlice {
    store.scrub(place, bytes, &mut |user, tree, _, flags, value, out| {
        let listed = Meta::decode(user).and_then(|meta| {
            let read = |run| Ok(store.read_run_from_disk(run)?);
            owned(&read, &meta, tree, flags, value, out)
        });
        listed.map_err(|error| StoreError::Corrupt {
            file: store.path().to_path_buf(),
            offset: 0,
            what: error.to_string(),
        })
    })
}

fn owned(
    read: &dyn Fn(RunRef) -> Result<bytes::Bytes>,
    meta: &Meta,
    tree: TreeId,
    flags: u8,
    value: &[u8],
    out: &mut Vec<RunRef>,
) -> Result<()> {
    crate::check::owned_runs(read, meta.sweep, tree, flags, value, out)?;
    if tree == TreeId::E {
        // The chunk was read just now.
        out.remove(0);
    }
    Ok(())
}

/// The thread, and what it reports.
pub(crate) struct Scrubber {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
pub(crate) struct Desk {
    stop: Mutex<bool>,
    stopped: Condvar,
    report: Mutex<ScrubReport>,
}

impl Desk {
    pub(crate) fn report(&self) -> ScrubReport {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits; false when it is time to end.
    fn wait(&self, time: Duration) -> bool {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stopped.wait_timeout_while(stop, time, |stop| !*stop);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes a slice in; the damage that is new.
    fn note(&self, slice: ScrubSlice, of: u64, known: &mut BTreeSet<String>) -> Vec<String> {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.bytes += slice.bytes;
        report.pass_bytes += slice.bytes;
        report.pass_of = of.max(report.pass_bytes);
        let mut new = Vec::new();
        for error in slice.damage {
            let text = error.to_string();
            report.damaged += 1;
            if known.len() < DAMAGE_MAX && known.insert(text.clone()) {
                new.push(text);
            }
        }
        report.damage = known.iter().cloned().collect();
        if slice.finished {
            report.passes += 1;
            report.pass_bytes = 0;
        }
        new
    }
}

impl Scrubber {
    /// Starts the thread, if there is to be one.
    pub(crate) fn start(store: &Store, options: &Options) -> std::io::Result<Scrubber> {
        let desk = Arc::new(Desk::default());
        let rate = options.scrub_bytes_per_second;
        if rate == 0 || !options.background {
            return Ok(Scrubber { desk, thread: None });
        }
        let (work, store) = (desk.clone(), store.clone());
        let (pause, hook) = (options.scrub_pause, options.on_damage.clone());
        let thread = std::thread::Builder::new()
            .name("scrub".into())
            .spawn(move || serve(&work, &store, rate, pause, hook.as_ref()))?;
        Ok(Scrubber {
            desk,
            thread: Some(thread),
        })
    }

    pub(crate) fn desk(&self) -> Arc<Desk> {
        self.desk.clone()
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        *self
            .desk
            .stop
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.desk.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            // Had it panicked, that was printed; a scrubber less harms nothing.
            let _ = thread.join();
        }
    }
}

/// A whole pass.
pub(crate) fn read_all(store: &Store) -> ScrubReport {
    let desk = Desk::default();
    let (mut place, mut known) = (ScrubPlace::default(), BTreeSet::new());
    while desk.report().passes == 0 {
        let done = slice(store, &mut place, SLICE_BYTES);
        desk.note(done, store.durable_bytes(), &mut known);
    }
    desk.report()
}

fn serve(desk: &Desk, store: &Store, rate: u64, pause: Duration, hook: Option<&FatalHook>) {
    crate::stall::background_thread();
    let mut place = ScrubPlace::default();
    let mut known = BTreeSet::new();
    let mut wait = pause;
    while desk.wait(wait) {
        let done = slice(store, &mut place, SLICE_BYTES.min(rate));
        let (bytes, finished) = (done.bytes.max(4096), done.finished);
        for text in desk.note(done, store.durable_bytes(), &mut known) {
            match hook {
                Some(hook) => (hook.0)(&text),
                None => eprintln!("quorate: {text}"),
            }
        }
        wait = match finished {
            true => pause,
            false => Duration::from_secs_f64(bytes as f64 / rate as f64),
        };
    }
}
