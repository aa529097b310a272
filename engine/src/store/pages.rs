//! Reading: a durable page or run by its address, through the cache, checked when it comes from disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use bytes::Bytes;

use super::btree::{Kid, Root};
use super::cache::{Cache, Frame};
use super::error::{Error, Result};
use super::io::{AlignedBuf, BufPool, PageFile};
use super::node::{NewNode, NodeRef};
use super::page::{Addr, Geometry, LongKeys, Page};
use super::runs::{self, MemRun, RUN_BYTES_MAX, RUN_HEADER};
use super::stall;
use super::types::RunRef;

/// Reads asked of the backend at once.
const READS_AT_ONCE: usize = 64;

/// A page on the way down.
enum Next {
    Here(NodeRef),
    At(Addr),
}

/// The file as readers see it.
pub(super) struct Pages {
    pub file: Box<dyn PageFile>,
    pub path: PathBuf,
    pub geo: Geometry,
    pub identity: [u8; 16],
    /// Seed of every checksum: pages of another file never pass.
    pub seed: u32,
    pub cache: Cache,
    pool: BufPool,
    /// Runs that no checkpoint has written, by unit. The lock is held for a look-up only.
    mem_runs: RwLock<HashMap<u64, Arc<MemRun>>>,
}

/// The checksum seed of a file.
pub(super) fn seed_of(identity: &[u8; 16]) -> u32 {
    crc32fast::hash(identity)
}

impl Pages {
    pub fn new(
        file: Box<dyn PageFile>,
        path: &Path,
        geo: Geometry,
        identity: [u8; 16],
        cache_bytes: usize,
    ) -> Pages {
        Pages {
            file,
            path: path.to_path_buf(),
            geo,
            identity,
            seed: seed_of(&identity),
            cache: Cache::new(cache_bytes, geo.page_bytes),
            pool: BufPool::new(geo.page_bytes),
            mem_runs: RwLock::default(),
        }
    }

    /// The page at `addr`, which its parent says is of this tree and level.
    pub fn node(&self, addr: Addr, tree: u8, level: u8) -> Result<NodeRef> {
        let frame = self
            .cache
            .get_or_load(addr, || Ok(Frame::Node(self.read_node(addr)?)))?;
        match frame {
            Frame::Node(node) if node.page().level() == level && node.page().tree() == tree => {
                Ok(node)
            }
            Frame::Node(node) => Err(self.corrupt(
                addr.unit,
                format!(
                    "page of tree {} and level {} found where tree {tree} and level {level} belong",
                    node.page().tree(),
                    node.page().level()
                ),
            )),
            Frame::Run(_) => Err(self.corrupt(addr.unit, "a run lies where a page belongs")),
        }
    }

    /// Brings pages into the cache, those that are missing with as few reads at once as the backend can. Errors land
    /// nowhere: whoever needs the page meets them.
    fn load_many(&self, addrs: &[Addr]) {
        for part in addrs.chunks(READS_AT_ONCE) {
            let claimed: Vec<_> = part
                .iter()
                .filter_map(|addr| self.cache.claim(*addr))
                .collect();
            let mut bufs: Vec<_> = claimed.iter().map(|_| self.pool.take()).collect();
            let mut reads: Vec<(u64, &mut [u8])> = claimed
                .iter()
                .zip(&mut bufs)
                .map(|(claim, buf)| (self.geo.offset(claim.addr().unit), &mut buf[..]))
                .collect();
            let read = match reads.is_empty() {
                true => continue,
                false => stall::waiting(stall::Cause::PageRead, || self.file.read_many(&mut reads)),
            };
            drop(reads);
            for (claim, buf) in claimed.into_iter().zip(bufs) {
                let addr = claim.addr();
                claim.land(match &read {
                    Ok(()) => self.checked(&buf, addr).map(Frame::Node),
                    // Which of them failed is not told: read alone, it says so.
                    Err(_) => self.read_node(addr).map(Frame::Node),
                });
                self.pool.give(buf);
            }
        }
    }

    fn checked(&self, buf: &[u8], addr: Addr) -> Result<NodeRef> {
        Page::check(buf, &self.geo, addr, self.seed)
            .map_err(|what| self.corrupt(addr.unit, what))?;
        Ok(NewNode::durable(buf, addr).share())
    }

    /// Brings the leaves that hold `keys` into the cache, level by level: all the pages of one level that are missing
    /// are read at once, so that a batch waits as often as the tree is high and not once for each page. Pages that
    /// cannot be read are met again by whoever needs them.
    pub fn prefetch(&self, root: &Root, tree: u8, keys: &[&[u8]]) {
        // Nodes that are held, each with its part of the keys.
        let mut sorted: Vec<&[u8]> = keys.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        if let Some(Kid::Disk(addr)) = &root.kid {
            self.load_many(&[*addr]);
        }
        let Ok(Some(top)) = root.node(self, tree) else {
            return;
        };
        let mut front: Vec<(NodeRef, std::ops::Range<usize>)> = vec![(top, 0..sorted.len())];
        while !front.is_empty() {
            let mut next: Vec<(Next, std::ops::Range<usize>)> = Vec::new();
            for (node, range) in front.drain(..) {
                if node.page().is_leaf() {
                    continue;
                }
                let mut from = range.start;
                while from < range.end {
                    let Ok(i) = node.page().child_for(sorted[from], self) else {
                        return;
                    };
                    let mut to = from + 1;
                    while to < range.end
                        && node
                            .page()
                            .child_for(sorted[to], self)
                            .is_ok_and(|j| j == i)
                    {
                        to += 1;
                    }
                    let kid = match node.kid(i) {
                        Some(kid) => Next::Here(kid.clone()),
                        None => Next::At(node.page().child(i).addr),
                    };
                    // Leaves in memory need nothing more.
                    if !(node.page().level() == 1 && matches!(kid, Next::Here(_))) {
                        next.push((kid, from..to));
                    }
                    from = to;
                }
            }
            let missing: Vec<Addr> = next
                .iter()
                .filter_map(|(kid, _)| match kid {
                    Next::At(addr) => Some(*addr),
                    Next::Here(_) => None,
                })
                .collect();
            self.load_many(&missing);
            for (kid, range) in next {
                match kid {
                    Next::Here(node) => front.push((node, range)),
                    Next::At(addr) => {
                        if let Some(Frame::Node(node)) = self.cache.peek(addr) {
                            front.push((node, range));
                        }
                    }
                }
            }
        }
    }

    /// These pages, from the cache or, past it, with as few reads at once as the backend can; without those that cannot
    /// be read.
    pub fn look_at_many(&self, addrs: &[Addr]) -> Vec<Option<NodeRef>> {
        let mut found: Vec<Option<NodeRef>> = Vec::with_capacity(addrs.len());
        found.extend(addrs.iter().map(|addr| match self.cache.peek(*addr) {
            Some(Frame::Node(node)) => Some(node),
            _ => None,
        }));
        let missing: Vec<usize> = (0..addrs.len()).filter(|i| found[*i].is_none()).collect();
        for part in missing.chunks(READS_AT_ONCE) {
            let mut bufs: Vec<_> = part.iter().map(|_| self.pool.take()).collect();
            let mut reads: Vec<(u64, &mut [u8])> = part
                .iter()
                .zip(&mut bufs)
                .map(|(i, buf)| (self.geo.offset(addrs[*i].unit), &mut buf[..]))
                .collect();
            let read = self.file.read_many(&mut reads);
            drop(reads);
            for (i, buf) in part.iter().zip(bufs) {
                if read.is_ok() {
                    found[*i] = self.checked(&buf, addrs[*i]).ok();
                }
                self.pool.give(buf);
            }
        }
        found
    }

    /// Reads and checks a page, past the cache.
    pub fn read_node(&self, addr: Addr) -> Result<NodeRef> {
        let mut buf = self.pool.take();
        let read = self.read_at(addr.unit, &mut buf, "reading a page");
        let checked = read.and_then(|()| self.checked(&buf, addr));
        self.pool.give(buf);
        checked
    }

    /// Fills `buf` from the beginning of a unit.
    pub fn read_at(&self, unit: u64, buf: &mut [u8], what: &'static str) -> Result<()> {
        let offset = self.geo.offset(unit);
        self.file
            .read(offset, buf)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::corrupt(
                    &self.path,
                    offset,
                    "the file ends before a page or run that it should hold",
                ),
                _ => Error::io(&self.path, offset, what, &error),
            })
    }

    pub fn corrupt(&self, unit: u64, what: impl Into<String>) -> Error {
        Error::corrupt(&self.path, self.geo.offset(unit), what)
    }

    /// The contents of a run.
    pub fn run(&self, run: RunRef) -> Result<Bytes> {
        if let Some(mem) = self.mem_run(run.unit)
            && mem.run == run
        {
            return Ok(mem.bytes.clone());
        }
        let addr = Addr {
            unit: run.unit,
            birth: run.birth,
        };
        let frame = self
            .cache
            .get_or_load(addr, || self.read_run(run).map(Frame::Run))?;
        match frame {
            Frame::Run(bytes) if bytes.len() == run.len as usize => Ok(bytes),
            _ => Err(self.corrupt(run.unit, format!("no run of {} bytes begins here", run.len))),
        }
    }

    /// Reads and checks a run, past the cache.
    pub fn read_run(&self, run: RunRef) -> Result<Bytes> {
        let (image, contents) = self.run_image(run)?;
        Ok(Bytes::from_owner(image).slice(contents))
    }

    /// Reads and checks a run, past the cache: all its units, and where in them its contents lie.
    pub fn run_image(&self, run: RunRef) -> Result<(AlignedBuf, std::ops::Range<usize>)> {
        let bytes = u64::from(run.units) * self.geo.unit_bytes as u64;
        let needed = RUN_HEADER as u64 + u64::from(run.len);
        let in_file = self.geo.offset(run.unit).saturating_add(bytes) <= self.file_len()?;
        if run.unit < self.geo.first_unit
            || run.len as usize > RUN_BYTES_MAX
            || bytes < needed
            || !in_file
        {
            return Err(self.corrupt(
                run.unit,
                format!(
                    "a reference names a run of {} bytes in {} units that cannot be here",
                    run.len, run.units
                ),
            ));
        }
        let mut buf = AlignedBuf::new(bytes as usize);
        self.read_at(run.unit, &mut buf, "reading a run")?;
        let range = runs::check(&self.geo, &buf, run, self.seed)
            .map_err(|what| self.corrupt(run.unit, what))?;
        Ok((buf, range))
    }

    pub fn file_len(&self) -> Result<u64> {
        self.file
            .len()
            .map_err(|error| Error::io(&self.path, 0, "asking for the length", &error))
    }

    pub fn mem_run(&self, unit: u64) -> Option<Arc<MemRun>> {
        let runs = stall::read(&self.mem_runs, stall::Cause::RunsLock);
        runs.get(&unit).cloned()
    }

    pub fn add_mem_run(&self, run: MemRun) {
        let mut runs = stall::write(&self.mem_runs, stall::Cause::RunsLock);
        runs.insert(run.run.unit, Arc::new(run));
    }

    /// Forgets runs whose space is free or which are durable now.
    pub fn forget_mem_runs(&self, units: impl Iterator<Item = u64>) {
        let mut runs = stall::write(&self.mem_runs, stall::Cause::RunsLock);
        if runs.is_empty() {
            return;
        }
        for unit in units {
            runs.remove(&unit);
        }
    }
}

impl LongKeys for Pages {
    fn long_key(&self, run: RunRef) -> Result<Bytes> {
        self.run(run)
    }
}
