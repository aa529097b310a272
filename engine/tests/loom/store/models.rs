//! Models of the store's hand-overs.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::Error;
use super::cache::{Cache, Frame};
use super::error::Result;
use super::node::{self, Node};
use super::page::Addr;
use super::pins::Pins;
use crate::shards::Shards;
use crate::{model, must_fail};

// --- views ------------------------------------------------------------------------------------------------------------

/// A unit of the file.
#[derive(Default)]
struct Unit(UnsafeCell<u64>);

impl Unit {
    fn read(&self) -> u64 {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.0.with(|at| unsafe { *at })
    }

    fn write(&self, value: u64) {
        // SAFETY: loom checks that nobody reads or writes meanwhile.
        self.0.with_mut(|at| unsafe { *at = value });
    }
}

/// A published state: it reads one unit, and pins it.
struct State {
    publish: u64,
    unit: Arc<Unit>,
    pins: Arc<Pins>,
}

impl Drop for State {
    fn drop(&mut self) {
        self.pins.unpin(self.publish);
    }
}

/// When the writer uses the unit of a replaced state again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    /// When no pin is as old.
    WhenUnpinned,
    /// At once.
    Early,
}

/// The writer replaces a state and uses its unit again, beside two readers.
fn publication(reuse: Reuse) {
    let pins = Arc::new(Pins::default());
    let units = [Arc::new(Unit::default()), Arc::new(Unit::default())];
    let state = |publish: u64, unit: &Arc<Unit>| {
        pins.pin(publish);
        Arc::new(State {
            publish,
            unit: unit.clone(),
            pins: pins.clone(),
        })
    };
    units[0].write(1);
    let shards: Arc<Shards<Arc<State>, 2>> = Arc::new(Shards::new(&state(1, &units[0])));
    let readers: Vec<_> = (0..2)
        .map(|shard| {
            let shards = shards.clone();
            thread::spawn(move || {
                let first = shards.get(shard);
                assert_eq!(first.unit.read(), first.publish);
                let second = shards.get(shard);
                assert!(second.publish >= first.publish, "a view went back");
                assert_eq!(second.unit.read(), second.publish);
            })
        })
        .collect();
    units[1].write(2);
    shards.set(&state(2, &units[1]));
    // Whoever learns of the publication reads it.
    assert!((0..2).all(|shard| shards.get(shard).publish == 2));
    if reuse == Reuse::Early || pins.oldest().is_none_or(|oldest| oldest > 1) {
        units[0].write(3);
    }
    readers
        .into_iter()
        .for_each(|reader| reader.join().unwrap());
    assert_eq!(pins.oldest(), Some(2), "what nobody holds is not pinned");
}

#[test]
fn views_are_published_whole_and_their_units_outlive_them() {
    model(|| publication(Reuse::WhenUnpinned));
}

#[test]
fn reuse_of_a_unit_under_a_reader_is_found() {
    let name = "store::models::reuse_of_a_unit_under_a_reader_is_found";
    must_fail(name, "Causality violation", || publication(Reuse::Early));
}

// --- the cache --------------------------------------------------------------------------------------------------------

fn addr(unit: u64) -> Addr {
    Addr { unit, birth: 1 }
}

fn page(byte: u64) -> Result<Frame> {
    Ok(Frame::Node(Arc::new(Node::new(byte))))
}

fn read(frame: Frame) -> u64 {
    match frame {
        Frame::Node(node) => node.read(),
        Frame::Run(_) => unreachable!("only pages are loaded"),
    }
}

/// Two readers want the same page; it is loaded once.
fn single_flight() {
    let cache = Arc::new(Cache::new(4096, 4096));
    let loads = Arc::new(AtomicUsize::new(0));
    let want = {
        let (cache, loads) = (cache.clone(), loads.clone());
        move || {
            let load = || {
                loads.fetch_add(1, Ordering::Relaxed);
                page(7)
            };
            assert_eq!(read(cache.get_or_load(addr(1), load).unwrap()), 7);
        }
    };
    let other = thread::spawn(want.clone());
    want();
    other.join().unwrap();
    assert_eq!(loads.load(Ordering::Relaxed), 1);
}
#[test]
fn a_page_is_loaded_once_for_all_who_want_it() {
    model(single_flight);
}

#[test]
fn a_lost_wake_up_of_those_who_wait_for_a_page_is_found() {
    let name = "store::models::a_lost_wake_up_of_those_who_wait_for_a_page_is_found";
    crate::sync::DEAF.set(true);
    must_fail(name, "deadlock", single_flight);
}

/// How a load that fails ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// With its error.
    Lands,
    /// Not at all.
    IsForgotten,
}

/// A load that another thread has taken on fails: who follows gets the error or tries again, and nobody waits for ever.
fn failed_load(failed: Failed) {
    let cache = Arc::new(Cache::new(4096, 4096));
    let other = {
        let cache = cache.clone();
        thread::spawn(move || {
            let Some(claim) = cache.claim(addr(1)) else {
                return;
            };
            match failed {
                Failed::Lands => claim.land(Err(Error::Closed)),
                Failed::IsForgotten => std::mem::forget(claim),
            }
        })
    };
    let mine = cache.get_or_load(addr(1), || page(7));
    assert!(mine.is_err() || mine.is_ok_and(|frame| read(frame) == 7));
    other.join().unwrap();
    let again = cache.get_or_load(addr(1), || page(8)).unwrap();
    assert!([7, 8].contains(&read(again)));
}

#[test]
fn a_failed_load_ends_every_wait() {
    model(|| failed_load(Failed::Lands));
}

#[test]
fn a_failed_load_that_leaves_its_flight_behind_is_found() {
    let name = "store::models::a_failed_load_that_leaves_its_flight_behind_is_found";
    must_fail(name, "deadlock", || failed_load(Failed::IsForgotten));
}

/// Two readers, whose loads both fail: each gets an error, its own or the other's.
#[test]
fn a_failed_load_gives_nobody_a_page() {
    model(|| {
        let cache = Arc::new(Cache::new(4096, 4096));
        let other = {
            let cache = cache.clone();
            thread::spawn(move || cache.get_or_load(addr(1), || Err(Error::Closed)).is_ok())
        };
        let mine = cache.get_or_load(addr(1), || page(7)).is_ok();
        let theirs = other.join().unwrap();
        assert!(mine || !theirs, "only a load that succeeded gives a page");
    });
}

/// How a reader holds the page it reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// By a counted reference.
    Counted,
    /// Not at all: it only knows where the page is.
    Nothing,
}

/// There is room for one page. Who holds a page reads it on while another pushes it out.
fn pin_and_evict(holds: Holds) {
    let cache = Arc::new(Cache::new(400, 4096));
    let reader = {
        let cache = cache.clone();
        thread::spawn(move || {
            let frame = cache.get_or_load(addr(1), || page(1)).unwrap();
            let Frame::Node(node) = frame else {
                unreachable!("only pages are loaded")
            };
            let memory = node.memory();
            let held = (holds == Holds::Counted).then(|| node.clone());
            drop(node);
            assert_eq!(node::read(&memory), 1);
            drop(held);
        })
    };
    for unit in 2..4 {
        let frame = cache.get_or_load(addr(unit), || page(unit)).unwrap();
        assert_eq!(read(frame), unit);
        assert!(cache.stats().bytes <= 400, "the limit holds after any call");
    }
    reader.join().unwrap();
    assert_eq!(cache.stats().evictions, 2, "one page is left of three");
}

#[test]
fn a_page_that_is_read_outlives_its_eviction() {
    model(|| pin_and_evict(Holds::Counted));
}

#[test]
fn a_page_that_is_read_without_being_held_is_found() {
    let name = "store::models::a_page_that_is_read_without_being_held_is_found";
    must_fail(name, "Causality violation", || {
        pin_and_evict(Holds::Nothing)
    });
}

/// A checkpoint puts in, at `inserted`, the page that a reader is loading: one of the two stays, the bytes are counted
/// once.
fn insert_beside_load(inserted: Addr) {
    let cache = Arc::new(Cache::new(4096, 4096));
    let reader = {
        let cache = cache.clone();
        thread::spawn(move || {
            let frame = cache.get_or_load(addr(1), || page(5)).unwrap();
            assert_eq!(read(frame), 5);
        })
    };
    cache.insert(inserted, page(5).unwrap());
    reader.join().unwrap();
    let one = Cache::new(4096, 4096);
    one.insert(addr(1), page(5).unwrap());
    assert_eq!(
        cache.stats().bytes,
        one.stats().bytes,
        "the page is here twice"
    );
}

#[test]
fn an_insert_beside_a_load_keeps_one_frame() {
    model(|| insert_beside_load(addr(1)));
}

/// Negative control: the two do not see that they mean the same page.
#[test]
fn an_insert_beside_a_load_under_another_name_is_found() {
    let name = "store::models::an_insert_beside_a_load_under_another_name_is_found";
    must_fail(name, "the page is here twice", || {
        insert_beside_load(Addr { unit: 1, birth: 2 })
    });
}
