//! Models of the store's hand-overs.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::Error;
use super::cache::{Cache, Frame};
use super::error::Result;
use super::node::Node;
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

/// The leader's load fails: who follows gets the error or tries again, and nobody waits for ever.
#[test]
fn a_failed_load_ends_every_wait() {
    model(|| {
        let cache = Arc::new(Cache::new(4096, 4096));
        let other = {
            let cache = cache.clone();
            thread::spawn(move || cache.get_or_load(addr(1), || Err(Error::Closed)).is_ok())
        };
        let mine = cache.get_or_load(addr(1), || page(7)).is_ok();
        let theirs = other.join().unwrap();
        assert!(mine || !theirs, "only a load that succeeded gives a page");
        let again = cache.get_or_load(addr(1), || page(8)).unwrap();
        assert!([7, 8].contains(&read(again)));
    });
}

/// There is room for one page. Who holds a page reads it on while another pushes it out.
fn pin_and_evict() {
    let cache = Arc::new(Cache::new(300, 4096));
    let reader = {
        let cache = cache.clone();
        thread::spawn(move || {
            let frame = cache.get_or_load(addr(1), || page(1)).unwrap();
            assert_eq!(read(frame), 1);
        })
    };
    for unit in 2..4 {
        let frame = cache.get_or_load(addr(unit), || page(unit)).unwrap();
        assert_eq!(read(frame), unit);
        assert!(cache.stats().bytes <= 300, "the limit holds after any call");
    }
    reader.join().unwrap();
}

#[test]
fn a_page_that_is_read_outlives_its_eviction() {
    model(pin_and_evict);
}

/// A checkpoint puts in the page that a reader is loading: one of the two stays, the bytes are counted once.
#[test]
fn an_insert_beside_a_load_keeps_one_frame() {
    model(|| {
        let cache = Arc::new(Cache::new(4096, 4096));
        let reader = {
            let cache = cache.clone();
            thread::spawn(move || {
                let frame = cache.get_or_load(addr(1), || page(5)).unwrap();
                assert_eq!(read(frame), 5);
            })
        };
        cache.insert(addr(1), page(5).unwrap());
        reader.join().unwrap();
        let one = Cache::new(4096, 4096);
        one.insert(addr(1), page(5).unwrap());
        assert_eq!(cache.stats().bytes, one.stats().bytes);
    });
}
