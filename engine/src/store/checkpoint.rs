//! The checkpoint: one published state becomes what the file holds.
//!
//! Steps, and what a crash after each leaves:
//!
//! 1. Pages that no checkpoint has written go bottom-up to free units, with runs and changed map pages. Crash: those
//!    units are free to the newest meta page; nothing happened.
//! 2. `sync`. Crash: the same.
//! 3. The meta page that does not hold the newest checkpoint is written. Crash: it is whole or it is not; torn, its
//!    checksum fails and the other one counts, all of whose units are untouched (see `alloc`).
//! 4. `sync`. From here on the new checkpoint is what opens.
//! 5. Pages learn their addresses and enter the cache; dropped units start their wait; callbacks run.
//!
//! "No space" can only arise in step 1. Then the units taken are given back and everything is as it was. Any other
//! failure of a write or sync ends the process.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::alloc::Extent;
use super::btree::{Kid, Root};
use super::cache::Frame;
use super::defrag;
use super::error::Error;
use super::io::{AlignedBuf, is_no_space};
use super::lock;
use super::map::Map;
use super::meta::{META_BYTES, Meta, RootAt, slot_offset};
use super::node::{NewNode, NodeRef};
use super::pace::Pacer;
use super::page::{Addr, seal};
use super::shared::{DurableState, JobDone, Shared};
use super::snapshot::Snapshot;
use super::space::Frozen;
use super::stall;
use super::types::TreeId;

/// A state to be written.
pub(super) struct Job {
    pub number: u64,
    pub snapshot: Snapshot,
    pub user: Vec<u8>,
    pub frozen: Frozen,
}

/// Why a checkpoint did not come to be.
pub(super) enum Stop {
    NoSpace,
    Fatal(String),
}

fn stop(what: &str, error: &io::Error) -> Stop {
    if is_no_space(error) {
        Stop::NoSpace
    } else {
        Stop::Fatal(format!("{what} failed: {error}"))
    }
}

/// Serves the checkpoint thread until the writer is gone.
pub(super) fn serve(shared: &Shared) {
    stall::background_thread();
    loop {
        let mut jobs = lock(&shared.jobs);
        while jobs.next.is_none() && jobs.buried.is_empty() && !jobs.closing {
            jobs = shared
                .jobs_moved
                .wait(jobs)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        let buried = std::mem::take(&mut jobs.buried);
        let job = jobs.next.take();
        let closing = jobs.closing;
        drop(jobs);
        drop(buried);
        match job {
            Some(job) => run(shared, job),
            None if closing => return,
            None => {}
        }
    }
}

/// Writes one state and tells everybody how that ended.
pub(super) fn run(shared: &Shared, job: Job) {
    let started = Instant::now();
    let number = job.number;
    let runs: Vec<u64> = job.frozen.runs.iter().map(|run| run.run.unit).collect();
    let mut output = Output::new(shared, number);
    let panicked = PanicIsFatal(shared);
    let written = if shared.poisoned() {
        Err(Stop::Fatal(
            "a checkpoint was asked for after a failure".into(),
        ))
    } else {
        output.write_state(&job)
    };
    let done = match written {
        Ok(state) => {
            output.settle(&job, state);
            let micros = started.elapsed().as_micros() as u64;
            shared.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
            shared.counters.last_micros.store(micros, Ordering::Relaxed);
            shared
                .counters
                .total_micros
                .fetch_add(micros, Ordering::Relaxed);
            JobDone {
                result: Ok(()),
                dropped: Vec::new(),
                added: Vec::new(),
                runs,
            }
        }
        Err(reason) => {
            output.undo();
            let result = match reason {
                Stop::NoSpace => Err(Error::NoSpace {
                    file: shared.path().to_path_buf(),
                }),
                Stop::Fatal(what) => {
                    shared.fatal(&what);
                    Err(Error::Poisoned)
                }
            };
            shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            JobDone {
                result,
                dropped: job.frozen.dropped.clone(),
                added: job.frozen.added.clone(),
                runs: Vec::new(),
            }
        }
    };
    std::mem::forget(panicked);
    shared
        .counters
        .bytes
        .fetch_add(output.bytes, Ordering::Relaxed);
    let succeeded = done.result.is_ok();
    drop(output);
    drop(job);
    // Before the writer may begin the next one, which must not be taken for ended.
    shared.pace.end();
    lock(&shared.jobs).done = Some(done);
    if succeeded {
        // The state's own pin is gone now; what only it held back may be free.
        shared.reclaim();
        let durable = shared.durable();
        let callbacks = lock(&shared.callbacks).clone();
        callbacks.iter().for_each(|callback| callback(&durable));
        // Whoever waits for this checkpoint finds what the callbacks did.
        lock(&shared.durable).announced = number;
    } else {
        lock(&shared.durable).failed = number;
    }
    shared.durable_moved.notify_all();
}

/// A panic in the middle of a checkpoint must not leave others waiting for its end.
struct PanicIsFatal<'a>(&'a Shared);

impl Drop for PanicIsFatal<'_> {
    fn drop(&mut self) {
        self.0
            .fatal("the checkpoint ran into a bug (see the panic above)");
    }
}

pub(super) const ARENA_BYTES: usize = 1 << 20;

/// Pages taken from the allocator at a time.
const PAGES_AT_ONCE: usize = 64;

/// A page that was written: where, and, of an inner page, its image, which knows its children by address.
struct WrittenPage {
    node: NodeRef,
    addr: Addr,
    image: Option<NewNode>,
}

/// Collects pieces in an aligned arena and writes it whenever it is full.
struct Output<'a> {
    shared: &'a Shared,
    number: u64,
    arena: AlignedBuf,
    filled: usize,
    pieces: Vec<(u64, Range<usize>)>,
    /// Units taken and used.
    taken: Vec<Extent>,
    /// Units taken for pages to come.
    ready: Vec<Extent>,
    pages: Vec<WrittenPage>,
    /// Units of the map that this checkpoint replaces.
    map_dropped: Vec<Extent>,
    bytes: u64,
    pacer: Pacer,
}

impl<'a> Output<'a> {
    fn new(shared: &'a Shared, number: u64) -> Output<'a> {
        Output {
            shared,
            number,
            arena: AlignedBuf::new(ARENA_BYTES),
            filled: 0,
            pieces: Vec::new(),
            taken: Vec::new(),
            ready: Vec::new(),
            pages: Vec::new(),
            map_dropped: Vec::new(),
            bytes: 0,
            pacer: Pacer::new(shared.shrinks.load(Ordering::Relaxed) > 0),
        }
    }

    /// Steps 1 to 4; the new durable state.
    fn write_state(&mut self, job: &Job) -> Result<DurableState, Stop> {
        let roots = self.write_roots(&job.snapshot)?;
        for run in &job.frozen.runs {
            self.write_run(run)?;
        }
        self.return_ready();
        let (old_map, slot) = {
            let durable = lock(&self.shared.durable);
            (durable.map.clone(), 1 - durable.slot)
        };
        let mut added = self.taken.clone();
        added.extend(&job.frozen.added);
        added.extend(job.frozen.runs.iter().map(|run| Extent {
            unit: run.run.unit,
            units: run.run.units,
        }));
        let map = self.write_map(&old_map, &added, &job.frozen.dropped)?;
        let meta = Meta {
            page_bytes: self.shared.pages.geo.page_bytes as u32,
            identity: self.shared.pages.identity,
            checkpoint: self.number,
            high_water: map.reached.end(),
            map: map.index,
            roots,
            user: job.user.clone(),
        };
        #[cfg(test)]
        if self.shared.meta_first.load(Ordering::Relaxed) {
            self.write_meta(&meta, slot)?;
        }
        self.flush()?;
        self.sync("syncing pages")?;
        self.write_meta(&meta, slot)?;
        self.sync("syncing the meta page")?;
        self.bytes += META_BYTES as u64;
        Ok(DurableState {
            checkpoint: self.number,
            publish: job.snapshot.publish(),
            user: job.user.clone().into(),
            roots,
            slot,
            map,
            failed: 0,
            announced: 0,
        })
    }

    fn sync(&mut self, what: &str) -> Result<(), Stop> {
        let (pace, file) = (&self.shared.pace, &self.shared.pages.file);
        let synced = self.pacer.piece(pace, 0, || file.sync());
        synced.map_err(|error| Stop::Fatal(format!("{what} failed: {error}")))
    }

    fn write_meta(&self, meta: &Meta, slot: usize) -> Result<(), Stop> {
        let mut page = AlignedBuf::new(META_BYTES);
        meta.encode(&self.shared.pages.geo, &mut page);
        let written = self
            .shared
            .pages
            .file
            .write_many(&[(slot_offset(slot), &page)]);
        written.map_err(|error| Stop::Fatal(format!("writing the meta page failed: {error}")))
    }

    // --- pages ---------------------------------------------------------------------------------------------------

    fn write_roots(&mut self, snapshot: &Snapshot) -> Result<[Option<RootAt>; 4], Stop> {
        let mut roots = [None; 4];
        for (id, at) in TreeId::ALL.into_iter().zip(&mut roots) {
            let root = snapshot.root(id);
            let addr = match &root.kid {
                None => continue,
                Some(Kid::Disk(addr)) => *addr,
                Some(Kid::Mem(node)) => self.write_node(node)?,
            };
            *at = Some(RootAt {
                addr,
                level: root.level,
                live: root.live,
            });
        }
        Ok(roots)
    }

    fn write_node(&mut self, node: &NodeRef) -> Result<Addr, Stop> {
        if let Some(addr) = node.addr.get() {
            return Ok(*addr);
        }
        let mut image = (!node.page().is_leaf()).then(|| NewNode::image(&node.buf));
        if let Some(image) = &mut image {
            for i in 0..node.page().len() {
                if let Some(kid) = node.kid(i) {
                    let addr = self.write_node(kid)?;
                    image.page_mut().set_child_addr(i, addr);
                }
            }
        }
        let extent = self.take_page();
        let addr = Addr {
            unit: extent.unit,
            birth: self.number,
        };
        if let Some(image) = &mut image {
            seal(&mut image.buf, addr, self.shared.pages.seed);
            let set = image.addr.set(addr);
            debug_assert!(set.is_ok(), "it is new");
        }
        let seed = self.shared.pages.seed;
        let place = self.place(extent.unit, node.buf.len())?;
        match &image {
            Some(image) => place.copy_from_slice(&image.buf),
            None => {
                place.copy_from_slice(&node.buf);
                seal(place, addr, seed);
            }
        }
        self.pages.push(WrittenPage {
            node: node.clone(),
            addr,
            image,
        });
        Ok(addr)
    }

    fn take_page(&mut self) -> Extent {
        if self.ready.is_empty() {
            let units = self.shared.pages.geo.units_per_page;
            let mut alloc = lock(&self.shared.alloc);
            self.ready
                .extend((0..PAGES_AT_ONCE).map(|_| alloc.take(units)));
            drop(alloc);
            self.ready.reverse();
        }
        let extent = self.ready.pop().expect("filled just above");
        self.taken.push(extent);
        extent
    }

    fn return_ready(&mut self) {
        let mut alloc = lock(&self.shared.alloc);
        self.ready
            .drain(..)
            .for_each(|extent| alloc.give_back(extent));
    }

    fn write_run(&mut self, run: &super::runs::MemRun) -> Result<(), Stop> {
        let len = run.run.units as usize * self.shared.pages.geo.unit_bytes;
        let seed = self.shared.pages.seed;
        if len <= ARENA_BYTES {
            run.image(seed, self.place(run.run.unit, len)?);
            return Ok(());
        }
        self.flush()?;
        let mut image = AlignedBuf::new(len);
        run.image(seed, &mut image);
        self.write_pieces(&[(self.shared.pages.geo.offset(run.run.unit), &image)])
    }

    // --- map -----------------------------------------------------------------------------------------------------

    fn write_map(&mut self, old: &Map, added: &[Extent], dropped: &[Extent]) -> Result<Map, Stop> {
        let geo = self.shared.pages.geo;
        let alloc = &self.shared.alloc;
        let mut take = |units| lock(alloc).take(units);
        // A map that lies in the part to be cut off has to move.
        let move_from = match self.shared.tidying.load(Ordering::Relaxed) {
            false => u64::MAX,
            true => geo.first_unit + old.reached.ones() + 64,
        };
        let Some(change) = old.change(&geo, self.number, added, dropped, move_from, &mut take)
        else {
            return Ok(old.clone());
        };
        self.taken.extend(&change.taken);
        let seed = self.shared.pages.seed;
        for number in &change.changed {
            let place = self.place(change.map.pages[*number].unit, geo.unit_bytes)?;
            change.map.page_image(*number, seed, place);
        }
        let index = change.map.index;
        let len = index.units as usize * geo.unit_bytes;
        if len <= ARENA_BYTES {
            change.map.index_image(seed, self.place(index.unit, len)?);
        } else {
            self.flush()?;
            let mut image = AlignedBuf::new(len);
            change.map.index_image(seed, &mut image);
            self.write_pieces(&[(geo.offset(index.unit), &image)])?;
        }
        self.map_dropped.extend(change.dropped);
        Ok(change.map)
    }

    // --- bytes ---------------------------------------------------------------------------------------------------

    /// Zeroed room in the arena for `len` bytes that belong at `unit`.
    fn place(&mut self, unit: u64, len: usize) -> Result<&mut [u8], Stop> {
        if self.filled + len > ARENA_BYTES {
            self.flush()?;
        }
        let offset = self.shared.pages.geo.offset(unit);
        let range = self.filled..self.filled + len;
        match self.pieces.last_mut() {
            Some((at, piece)) if *at + piece.len() as u64 == offset => piece.end = range.end,
            _ => self.pieces.push((offset, range.clone())),
        }
        self.filled = range.end;
        let place = &mut self.arena[range];
        place.fill(0);
        Ok(place)
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let pieces = std::mem::take(&mut self.pieces);
        self.filled = 0;
        let writes: Vec<(u64, &[u8])> = pieces
            .iter()
            .map(|(at, range)| (*at, &self.arena[range.clone()]))
            .collect();
        self.bytes += write_paced(self.shared, &mut self.pacer, &writes)?;
        Ok(())
    }

    fn write_pieces(&mut self, writes: &[(u64, &[u8])]) -> Result<(), Stop> {
        self.bytes += write_paced(self.shared, &mut self.pacer, writes)?;
        Ok(())
    }

    // --- ends ----------------------------------------------------------------------------------------------------

    /// Step 5.
    fn settle(&mut self, job: &Job, state: DurableState) {
        let cache = &self.shared.pages.cache;
        for written in self.pages.drain(..) {
            let frame = match written.image {
                None => written.node.clone(),
                Some(image) => image.share(),
            };
            let fresh = written.node.addr.set(written.addr).is_ok();
            debug_assert!(fresh, "only one checkpoint runs at a time");
            cache.insert(written.addr, Frame::Node(frame));
        }
        for run in &job.frozen.runs {
            cache.insert(run.addr(), Frame::Run(Bytes::copy_from_slice(&run.bytes)));
        }
        self.shared
            .pages
            .forget_mem_runs(job.frozen.runs.iter().map(|run| run.run.unit));
        let mut dropped = job.frozen.dropped.clone();
        dropped.append(&mut self.map_dropped);
        let publish = state.publish;
        {
            let mut durable = lock(&self.shared.durable);
            let announced = durable.announced;
            *durable = DurableState { announced, ..state };
        }
        lock(&self.shared.alloc).drop_later(self.number, publish, dropped);
        self.shared.reclaim();
        tidy(self.shared, self.bytes);
        shrink(self.shared);
    }

    /// Gives everything back that was taken.
    fn undo(&mut self) {
        self.return_ready();
        let mut alloc = lock(&self.shared.alloc);
        self.taken
            .drain(..)
            .for_each(|extent| alloc.give_back(extent));
    }
}

/// Writes pieces to units that were taken, at once; how many bytes.
pub(super) fn write(shared: &Shared, writes: &[(u64, &[u8])]) -> Result<u64, Stop> {
    if writes.is_empty() {
        return Ok(0);
    }
    make_room(shared)?;
    let written = shared.pages.file.write_many(writes);
    written.map_err(|error| stop("writing pages", &error))?;
    Ok(writes.iter().map(|(_, bytes)| bytes.len() as u64).sum())
}

/// As [`write`], as much at a time as the pace allows.
fn write_paced(shared: &Shared, pacer: &mut Pacer, writes: &[(u64, &[u8])]) -> Result<u64, Stop> {
    let mut written = 0;
    let mut rest = writes.iter().copied();
    let mut next = rest.next();
    while next.is_some() {
        let most = pacer.bytes(&shared.pace);
        let (mut portion, mut bytes) = (Vec::new(), 0);
        while let Some((at, piece)) = next
            && bytes < most
        {
            let (now, later) = piece.split_at(piece.len().min(most - bytes));
            portion.push((at, now));
            bytes += now.len();
            next = match later.is_empty() {
                true => rest.next(),
                false => Some((at + now.len() as u64, later)),
            };
        }
        written += pacer.piece(&shared.pace, bytes as u64, || write(shared, &portion))?;
    }
    Ok(written)
}

/// Makes the file long enough for all units taken so far, and a reserve longer than that if the disk has room. Out of
/// space, the reserve is what is used up first.
fn make_room(shared: &Shared) -> Result<(), Stop> {
    let geo = &shared.pages.geo;
    let needed = geo.offset(lock(&shared.alloc).high_water());
    let len = shared.file_len.load(Ordering::Relaxed);
    if needed + shared.reserve_bytes / 2 <= len {
        shared.no_space.store(false, Ordering::Relaxed);
        return Ok(());
    }
    let wanted = (needed + shared.reserve_bytes).next_multiple_of(shared.extend_bytes);
    let mut grown = grow(shared, len, wanted);
    let full = matches!(&grown, Err(error) if is_no_space(error));
    shared.no_space.store(full, Ordering::Relaxed);
    if full && needed > len {
        grown = grow(shared, len, needed);
    }
    match grown {
        Ok(()) => Ok(()),
        Err(_) if needed <= len => Ok(()),
        Err(error) => Err(stop("growing the file", &error)),
    }
}

fn grow(shared: &Shared, from: u64, to: u64) -> io::Result<()> {
    shared.pages.file.allocate(from, to)?;
    shared.file_len.store(to, Ordering::Relaxed);
    Ok(())
}

/// Looks for what to pack and to move: much when the file is to shrink; when more of it lies free than it should, half
/// as much as this checkpoint wrote. Less when that makes the log slower.
fn tidy(shared: &Shared, wrote: u64) {
    const LEAST: u64 = 1 << 20;
    const MOST: u64 = 16 << 20;
    const READ_PER_MOVE: usize = 4;
    let geo = &shared.pages.geo;
    let (file, free) = {
        let alloc = lock(&shared.alloc);
        let file = alloc.high_water();
        (file, file - alloc.taken_units())
    };
    let moved_bytes = shared.counters.moved_bytes.load(Ordering::Relaxed);
    let most = shared.yielding.part_of(MOST, moved_bytes);
    let asked = shared.shrinks.load(Ordering::Relaxed) > 0;
    let loose = free * 100 > file * shared.fragmentation_max
        && shared.fragmentation_max < 100
        && geo.offset(free) > shared.extend_bytes;
    shared.tidying.store(asked || loose, Ordering::Relaxed);
    if !asked && !loose {
        defrag::Tail::default().put(shared);
        return;
    }
    let (map, roots) = {
        let durable = lock(&shared.durable);
        (durable.map.clone(), durable.roots.map(Root::at))
    };
    // What is noted is read into the cache and must still be there when the writer moves it.
    let fits = (shared.pages.cache.limit() / 8).max(64 * geo.page_bytes);
    let wanted = match asked {
        true => most,
        false => (wrote / 2).clamp(LEAST, most),
    };
    let moved = (wanted as usize).min(fits);
    let mut budget = defrag::Budget {
        moved,
        read: moved * READ_PER_MOVE + (1 << 20),
    };
    let tail = defrag::note(shared, &map, &roots, asked, &mut budget);
    let more = !tail.is_empty() || lock(&shared.packing).is_under_way();
    tail.put(shared);
    if asked && more && defrag::goes_on(shared, file, file - free) {
        shared.shrinks.store(SHRINKS, Ordering::Relaxed);
    }
}

/// Checkpoints it takes until a page's old place is free and cut off: its copy is written by the first, the place is
/// free after the second, the map moves out of the way with the third and leaves its own place with the fourth; the
/// one that counts down first may be under way already.
pub(super) const SHRINKS: u64 = 5;

/// Cuts the free tail off when that was asked for, or when it is long.
fn shrink(shared: &Shared) {
    let needed = shared.pages.geo.offset(lock(&shared.alloc).high_water());
    let target = (needed + shared.reserve_bytes).next_multiple_of(shared.extend_bytes);
    let len = shared.file_len.load(Ordering::Relaxed);
    let asked = shared.shrinks.load(Ordering::Relaxed);
    let long = len > target + 2 * shared.extend_bytes + needed / 4;
    if asked > 0 {
        shared.shrinks.store(asked - 1, Ordering::Relaxed);
    }
    if len > target && (asked > 0 || long) && shared.pages.file.set_len(target).is_ok() {
        shared.file_len.store(target, Ordering::Relaxed);
    }
}
