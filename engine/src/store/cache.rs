//! Bounded cache of durable pages and runs, keyed by address and checked once, when they enter.
//!
//! Frames are immutable and shared by reference count: evicting one never disturbs a reader that holds it. Eviction
//! follows two queues: newcomers pass a short one, and only what is asked for again, or comes back soon after it was
//! thrown out, enters the long one. A scan therefore pushes out little but itself. Inner pages enter the long queue
//! at once. Pages that the newest state has replaced go before all others: in a busy store they would soon be most of
//! what is held.
//!
//! Invariants:
//! 1. The frames held never exceed the limit, in bytes, after any call.
//! 2. One load per address at a time: others wait for its result. The shard's lock is not held meanwhile.
//! 3. A failed load leaves nothing behind; the next reader tries again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;

use super::error::Result;
use super::lock;
use super::node::NodeRef;
use super::page::Addr;
use super::stall;
use super::sync::{Arc, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// What the cache holds.
#[derive(Clone)]
pub(super) enum Frame {
    Node(NodeRef),
    Run(Bytes),
}

impl Frame {
    /// Memory of the frame, bookkeeping included.
    fn cost(&self) -> usize {
        /// The node's head (128), the entry in the table, and places in a queue and among the ghosts.
        const BOOKS: usize = 288;
        BOOKS
            + match self {
                Frame::Node(node) => node.buf.len(),
                Frame::Run(bytes) => bytes.len().next_multiple_of(4096),
            }
    }

    fn is_inner(&self) -> bool {
        matches!(self, Frame::Node(node) if !node.page().is_leaf())
    }
}

/// Addresses are well spread already; one multiplication mixes them.
#[derive(Default)]
pub(super) struct AddrHasher(u64);

impl Hasher for AddrHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type AddrMap<V> = HashMap<Addr, V, BuildHasherDefault<AddrHasher>>;

/// Small, so that what a look-up touches lies together.
struct Held {
    frame: Kept,
    cost: u32,
    /// Times asked for since it last reached the end of a queue, at most `USES_MAX`.
    uses: u8,
    /// It stands in the long queue.
    long: bool,
    /// Only readers of older states may ask for it.
    retired: bool,
}

/// A [`Frame`] as the table keeps it.
enum Kept {
    Node(NodeRef),
    Run(Box<Bytes>),
}

impl Kept {
    fn new(frame: Frame) -> Kept {
        match frame {
            Frame::Node(node) => Kept::Node(node),
            Frame::Run(bytes) => Kept::Run(Box::new(bytes)),
        }
    }

    fn frame(&self) -> Frame {
        match self {
            Kept::Node(node) => {
                // Asked for together, the count and the page come together.
                node.fetch_soon();
                Frame::Node(node.clone())
            }
            Kept::Run(bytes) => Frame::Run(Bytes::clone(bytes)),
        }
    }
}

const USES_MAX: u8 = 3;

/// A load under way.
#[derive(Default)]
struct Flight {
    result: Mutex<Option<Result<Frame>>>,
    landed: Condvar,
}

enum Slot {
    Held(Held),
    Loading(Arc<Flight>),
}

#[derive(Default)]
struct Shard {
    map: AddrMap<Slot>,
    short: VecDeque<Addr>,
    long: VecDeque<Addr>,
    /// Addresses of retired frames, which go first.
    retired: VecDeque<Addr>,
    /// Entries of the queues whose frames went out of turn, at least.
    vacant: usize,
    /// Addresses thrown out of the short queue lately.
    ghosts: VecDeque<Addr>,
    ghost_set: AddrMap<()>,
    short_bytes: usize,
    bytes: usize,
    hits: u64,
}

/// The cache.
pub(super) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    shard_limit: usize,
    misses: AtomicU64,
    evictions: AtomicU64,
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct CacheStats {
    pub bytes: u64,
    pub hits: u64,
    pub misses: u64,
    pub evictions: u64,
}

impl Cache {
    /// A cache of at most `limit` bytes.
    pub fn new(limit: usize, page_bytes: usize) -> Cache {
        // A shard should hold some hundred pages, or its queues are too short to tell warm from cold.
        let shards = (limit / (page_bytes * 256))
            .clamp(1, 16)
            .next_power_of_two();
        Cache {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_limit: limit / shards,
            misses: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// Bytes it holds at most.
    pub fn limit(&self) -> usize {
        self.shard_limit * self.shards.len()
    }

    fn shard(&self, addr: Addr) -> MutexGuard<'_, Shard> {
        let mixed = (addr.unit ^ addr.unit >> 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let shard = &self.shards[mixed as usize & (self.shards.len() - 1)];
        stall::lock(shard, stall::Cause::CacheLock)
    }

    /// The frame at `addr`; `load` brings it when it is not here.
    pub fn get_or_load(&self, addr: Addr, load: impl FnOnce() -> Result<Frame>) -> Result<Frame> {
        let flight = {
            let mut shard = self.shard(addr);
            match shard.map.get_mut(&addr) {
                Some(Slot::Held(held)) => {
                    if held.uses < USES_MAX {
                        held.uses += 1;
                    }
                    let frame = held.frame.frame();
                    shard.hits += 1;
                    return Ok(frame);
                }
                Some(Slot::Loading(flight)) => Err(flight.clone()),
                None => {
                    let flight = Arc::new(Flight::default());
                    shard.map.insert(addr, Slot::Loading(flight.clone()));
                    Ok(flight)
                }
            }
        };
        match flight {
            Ok(flight) => self.lead(addr, flight, load),
            Err(flight) => stall::waiting(stall::Cause::PageReadByOther, || self.follow(&flight)),
        }
    }

    fn follow(&self, flight: &Flight) -> Result<Frame> {
        let mut result = lock(&flight.result);
        loop {
            if let Some(result) = &*result {
                return result.clone();
            }
            result = flight
                .landed
                .wait(result)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn lead(
        &self,
        addr: Addr,
        flight: Arc<Flight>,
        load: impl FnOnce() -> Result<Frame>,
    ) -> Result<Frame> {
        self.misses.fetch_add(1, Ordering::Relaxed);
        let mut landing = Landing {
            cache: self,
            addr,
            flight,
            result: None,
        };
        let result = stall::waiting(stall::Cause::PageRead, load);
        landing.result = Some(result.clone());
        drop(landing);
        result
    }

    /// Takes on the load of an address that is neither here nor being loaded; the caller brings the frame with
    /// [`Landing::land`], and until then others wait for it. None when there is nothing to do.
    pub fn claim(&self, addr: Addr) -> Option<Landing<'_>> {
        let flight = Arc::new(Flight::default());
        match self.shard(addr).map.entry(addr) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(slot) => slot.insert(Slot::Loading(flight.clone())),
        };
        self.misses.fetch_add(1, Ordering::Relaxed);
        Some(Landing {
            cache: self,
            addr,
            flight,
            result: None,
        })
    }

    /// The frame at `addr` if it is here; not counted as a use.
    pub fn peek(&self, addr: Addr) -> Option<Frame> {
        match self.shard(addr).map.get(&addr) {
            Some(Slot::Held(held)) => Some(held.frame.frame()),
            _ => None,
        }
    }

    /// Says that the newest state holds this frame no more: when room is needed it goes first.
    pub fn retire(&self, addr: Addr) {
        let mut shard = self.shard(addr);
        if let Some(Slot::Held(held)) = shard.map.get_mut(&addr)
            && !held.retired
        {
            held.retired = true;
            shard.retired.push_back(addr);
        }
    }

    /// Puts in a frame that was just written.
    pub fn insert(&self, addr: Addr, frame: Frame) {
        let mut shard = self.shard(addr);
        if !matches!(shard.map.get(&addr), Some(Slot::Held(_))) {
            let evicted = shard.hold(addr, frame, self.shard_limit);
            self.note_evictions(shard, evicted);
        }
    }

    fn note_evictions(&self, shard: MutexGuard<'_, Shard>, evicted: Vec<Kept>) {
        drop(shard);
        self.evictions
            .fetch_add(evicted.len() as u64, Ordering::Relaxed);
    }

    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            bytes: 0,
            hits: 0,
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        };
        for shard in &self.shards {
            let shard = lock(shard);
            stats.bytes += shard.bytes as u64;
            stats.hits += shard.hits;
        }
        stats
    }
}

/// Ends a flight whatever happens to its leader, so that followers never wait for ever.
pub(super) struct Landing<'a> {
    cache: &'a Cache,
    addr: Addr,
    flight: Arc<Flight>,
    result: Option<Result<Frame>>,
}

impl Landing<'_> {
    pub fn addr(&self) -> Addr {
        self.addr
    }

    /// Ends the flight with what was loaded, or why not.
    pub fn land(mut self, result: Result<Frame>) {
        self.result = Some(result);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or(Err(super::Error::Closed));
        let mut shard = self.cache.shard(self.addr);
        // A checkpoint may have put the frame in meanwhile; then that one stays.
        let ours = matches!(shard.map.get(&self.addr), Some(Slot::Loading(flight)) if Arc::ptr_eq(flight, &self.flight));
        if ours {
            shard.map.remove(&self.addr);
        }
        let evicted = match &result {
            Ok(frame) if ours => shard.hold(self.addr, frame.clone(), self.cache.shard_limit),
            _ => Vec::new(),
        };
        self.cache.note_evictions(shard, evicted);
        *lock(&self.flight.result) = Some(result);
        self.flight.landed.notify_all();
    }
}

impl Shard {
    /// Takes a frame in and throws others out until the limit holds again; those are returned, to be freed without
    /// the lock. A frame larger than a quarter of the shard is not kept.
    fn hold(&mut self, addr: Addr, frame: Frame, limit: usize) -> Vec<Kept> {
        let cost = frame.cost();
        if cost > limit / 4 && !frame.is_inner() || cost > limit {
            return Vec::new();
        }
        let inner = frame.is_inner();
        let returning = self.ghost_set.remove(&addr).is_some();
        if inner || returning {
            self.long.push_back(addr);
        } else {
            self.short.push_back(addr);
            self.short_bytes += cost;
        }
        self.bytes += cost;
        let held = Held {
            frame: Kept::new(frame),
            cost: cost as u32,
            uses: if inner { USES_MAX } else { 0 },
            long: inner || returning,
            retired: false,
        };
        self.map.insert(addr, Slot::Held(held));
        let mut evicted = Vec::new();
        while self.bytes > limit {
            evicted.extend(self.evict(limit));
        }
        evicted
    }

    /// One step of a queue: throws out its oldest frame or gives it another round.
    fn evict(&mut self, limit: usize) -> Option<Kept> {
        if let Some(addr) = self.retired.pop_front() {
            return self.evict_retired(addr);
        }
        if self.short_bytes > limit / 10 || self.long.is_empty() {
            self.evict_short(limit)
        } else {
            self.evict_long()
        }
    }

    fn evict_retired(&mut self, addr: Addr) -> Option<Kept> {
        let Some(Slot::Held(held)) = self.map.get(&addr) else {
            return None;
        };
        if !held.retired {
            return None;
        }
        if !held.long {
            self.short_bytes -= held.cost as usize;
        }
        let frame = self.drop_held(addr);
        self.vacant += 1;
        if self.vacant > 64 + self.map.len() {
            self.vacant = 0;
            let map = &self.map;
            let stands = |addr: &Addr, long| matches!(map.get(addr), Some(Slot::Held(held)) if held.long == long);
            self.short.retain(|addr| stands(addr, false));
            self.long.retain(|addr| stands(addr, true));
        }
        frame
    }

    fn evict_short(&mut self, limit: usize) -> Option<Kept> {
        let addr = self.short.pop_front()?;
        let held = match self.map.get_mut(&addr) {
            Some(Slot::Held(held)) if !held.long => held,
            _ => return None,
        };
        self.short_bytes -= held.cost as usize;
        if held.uses > 0 {
            held.uses = 0;
            held.long = true;
            self.long.push_back(addr);
            return None;
        }
        let cost = held.cost as usize;
        self.ghosts.push_back(addr);
        self.ghost_set.insert(addr, ());
        while self.ghosts.len() > limit / cost.max(1) {
            let old = self.ghosts.pop_front()?;
            self.ghost_set.remove(&old);
        }
        self.drop_held(addr)
    }

    fn evict_long(&mut self) -> Option<Kept> {
        let addr = self.long.pop_front()?;
        let held = match self.map.get_mut(&addr) {
            Some(Slot::Held(held)) if held.long => held,
            _ => return None,
        };
        if held.uses > 0 {
            held.uses -= 1;
            self.long.push_back(addr);
            return None;
        }
        self.drop_held(addr)
    }

    fn drop_held(&mut self, addr: Addr) -> Option<Kept> {
        match self.map.remove(&addr) {
            Some(Slot::Held(held)) => {
                self.bytes -= held.cost as usize;
                Some(held.frame)
            }
            _ => None,
        }
    }
}
