//! Opening: find the newest checkpoint whose meta page, map and roots hold; or make a new file.
//!
//! A new file is built under another name, synced, renamed, and the directory synced: under its own name there is
//! never a half-made one. Opening writes nothing to a file that exists, but sets the length that it has and syncs it before
//! it believes a byte.
//!
//! A file of another format, or with features unknown here, is refused even when one of its slots could be read.
//! Checkpoint numbers go on behind a random gap, so that no number is given to two checkpoints, one of which was lost.

use std::path::Path;
use std::sync::Arc;

use super::alloc::{Alloc, Bitmap};
use super::btree::Root;
use super::error::{Error, Result};
use super::io::{AlignedBuf, Directory, PageFile, directory};
use super::map::{self, Map};
use super::meta::{FORMAT, Fault, META_BYTES, MapIndexAt, Meta, Untrusted, slot_offset};
use super::page::{Addr, Geometry, META_BLOCK, Page};
use super::pages::{Pages, seed_of};
use super::shared::{DurableState, Setup, Shared};
use super::store::{Store, StoreWriter};
use super::types::{Recovered, StoreOptions};

/// Name of the file in its directory.
pub(super) const FILE_NAME: &str = "tree.qdb";
const NEW_NAME: &str = "tree.qdb.new";

/// A meta page with what it leads to, all checked.
struct Candidate {
    slot: usize,
    meta: Meta,
    map: Map,
}

pub(super) fn open(options: StoreOptions) -> Result<(Store, StoreWriter, Recovered)> {
    let path = options.dir.join(FILE_NAME);
    if options.extend_bytes == 0 || !options.extend_bytes.is_multiple_of(4096) {
        return Err(mismatch(
            &path,
            "extend_bytes must be a positive multiple of 4096",
        ));
    }
    let failed = |what| {
        let dir = &options.dir;
        move |error: std::io::Error| Error::io(dir, 0, what, &error)
    };
    let dir = directory(&options.dir, &options.backend).map_err(failed("opening the directory"))?;
    let is_new = !dir
        .exists(FILE_NAME)
        .map_err(failed("looking for the file"))?;
    if is_new {
        if !options.create {
            return Err(Error::Missing { file: path });
        }
        create(&*dir, &options, &path)?;
    }
    let file = dir
        .open(FILE_NAME)
        .map_err(|error| Error::io(&path, 0, "opening", &error))?;
    let len = file
        .len()
        .map_err(|error| Error::io(&path, 0, "asking for the length", &error))?;
    // A process that died may have left name, pages and meta page unsynced. What is believed from here on, because it
    // can be read, must still be there after a power failure. That goes for the length, too: when a sync failed, the
    // kernel may go on showing one that no later sync would write, unless it is set again.
    file.set_len(len)
        .and_then(|()| file.sync())
        .and_then(|()| dir.sync())
        .map_err(|error| Error::io(&path, 0, "syncing what was found", &error))?;
    Opening {
        file: &*file,
        path: &path,
        len,
        notes: Vec::new(),
    }
    .find()
    .and_then(|found| build(found, file, &path, options, is_new))
}

fn mismatch(path: &Path, what: impl Into<String>) -> Error {
    Error::Mismatch {
        file: path.to_path_buf(),
        what: what.into(),
    }
}

fn create(dir: &dyn Directory, options: &StoreOptions, path: &Path) -> Result<()> {
    let geo = Geometry::new(options.page_bytes).ok_or_else(|| {
        mismatch(
            path,
            format!(
                "pages of {} bytes: must be a power of two from 512 to 32768",
                options.page_bytes
            ),
        )
    })?;
    let meta = Meta {
        page_bytes: geo.page_bytes as u32,
        identity: match options.identity {
            Some(identity) => identity,
            None => random_identity(path)?,
        },
        checkpoint: 0,
        high_water: geo.first_unit,
        map: MapIndexAt::default(),
        roots: [None; 4],
        user: Vec::new(),
    };
    let mut page = AlignedBuf::new(META_BYTES);
    meta.encode(&geo, &mut page);
    let zero = AlignedBuf::new(META_BYTES);
    let written = dir.create(NEW_NAME).and_then(|file| {
        file.allocate(0, 2 * META_BLOCK)?;
        file.write_many(&[(slot_offset(0), &page), (slot_offset(1), &zero)])?;
        file.sync()
    });
    written
        .and_then(|()| dir.rename(NEW_NAME, FILE_NAME))
        .and_then(|()| dir.sync())
        .map_err(|error| Error::io(path, 0, "creating", &error))
}

/// How many checkpoint numbers are passed over: pages of a checkpoint that a crash ended before its meta page carry the
/// number after the newest. Used again, that number would make such a page pass for one of the new checkpoint whose
/// write the device lost.
fn random_skip(path: &Path) -> Result<u64> {
    const SKIPPED_BITS: u32 = 20;
    let random = u128::from_le_bytes(random_identity(path)?);
    Ok(random as u64 & ((1 << SKIPPED_BITS) - 1))
}

fn random_identity(path: &Path) -> Result<[u8; 16]> {
    use std::io::Read;
    let mut identity = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut identity))
        .map_err(|error| Error::io(path, 0, "asking for random bytes", &error))?;
    Ok(identity)
}

/// What opening found.
struct Found {
    newest: Candidate,
    /// What the checkpoint before reaches, when it is usable.
    older: Option<Bitmap>,
    highest: u64,
    fell_back: bool,
    len: u64,
    notes: Vec<String>,
}

struct Opening<'a> {
    file: &'a dyn PageFile,
    path: &'a Path,
    len: u64,
    notes: Vec<String>,
}

impl Opening<'_> {
    fn find(mut self) -> Result<Found> {
        if self.len < 2 * META_BLOCK {
            let what = format!(
                "the file has {} bytes, less than its two meta pages take",
                self.len
            );
            return Err(Error::corrupt(self.path, 0, what));
        }
        let (mut metas, mut faults) = (Vec::new(), Vec::new());
        for slot in 0..2 {
            match self.read_meta(slot)? {
                Ok(meta) => metas.push((slot, meta)),
                Err(fault) => faults.push((slot, fault)),
            }
        }
        // Also when the other slot could be opened: a newer program has been here, and going back behind what it wrote
        // would lose it.
        if let Some(newer) = faults.iter().find_map(|(_, fault)| newer_program(fault)) {
            return Err(mismatch(self.path, newer));
        }
        metas.sort_by_key(|(_, meta)| std::cmp::Reverse(meta.checkpoint));
        let highest = metas.first().map_or(0, |(_, meta)| meta.checkpoint);
        // A meta page never written is the sound state of a file before its second checkpoint.
        let mut fell_back = false;
        for (slot, fault) in &faults {
            if *fault != Fault::Empty {
                fell_back = true;
                self.notes.push(format!(
                    "meta page {slot} at offset {} is unusable: {}",
                    slot_offset(*slot),
                    describe(fault)
                ));
            }
        }
        let mut usable = Vec::new();
        let mut first_error = None;
        for (slot, meta) in metas {
            let checkpoint = meta.checkpoint;
            match self.load(slot, meta) {
                Ok(candidate) => usable.push(candidate),
                Err(error) => {
                    self.notes
                        .push(format!("checkpoint {checkpoint} is unusable: {error}"));
                    fell_back |= checkpoint == highest;
                    first_error.get_or_insert(error);
                }
            }
        }
        let mut usable = usable.into_iter();
        let Some(newest) = usable.next() else {
            return Err(first_error.unwrap_or_else(|| self.no_meta(&faults)));
        };
        let older = usable.next();
        if let Some(older) = &older
            && older.meta.identity != newest.meta.identity
        {
            return Err(Error::corrupt(
                self.path,
                0,
                "the two meta pages belong to different files",
            ));
        }
        Ok(Found {
            newest,
            older: older.map(|older| older.map.reached),
            highest,
            fell_back,
            len: self.len,
            notes: self.notes,
        })
    }

    fn read_meta(&self, slot: usize) -> Result<Result<Meta, Fault>> {
        let mut page = AlignedBuf::new(META_BYTES);
        self.file
            .read(slot_offset(slot), &mut page)
            .map_err(|error| {
                Error::io(self.path, slot_offset(slot), "reading a meta page", &error)
            })?;
        Ok(Untrusted(&page).verify())
    }

    fn no_meta(&self, faults: &[(usize, Fault)]) -> Error {
        if faults
            .iter()
            .all(|(_, fault)| matches!(fault, Fault::Foreign | Fault::Empty))
        {
            return mismatch(self.path, "not a tree file of this program");
        }
        let what: Vec<_> = faults
            .iter()
            .map(|(slot, fault)| format!("meta page {slot}: {}", describe(fault)))
            .collect();
        Error::corrupt(self.path, 0, what.join("; "))
    }

    /// Reads map and roots of a checkpoint.
    fn load(&self, slot: usize, meta: Meta) -> Result<Candidate> {
        let geo = Geometry::new(meta.page_bytes as usize).expect("verified with the meta page");
        let seed = seed_of(&meta.identity);
        if geo.offset(meta.high_water) > self.len {
            let what = format!(
                "the file has {} bytes, checkpoint {} needs {}",
                self.len,
                meta.checkpoint,
                geo.offset(meta.high_water)
            );
            return Err(Error::corrupt(self.path, self.len, what));
        }
        let map = self.load_map(&geo, seed, meta.map)?;
        if map.reached.end() > meta.high_water {
            return Err(Error::corrupt(
                self.path,
                geo.offset(meta.map.unit),
                "the map goes beyond the high-water mark",
            ));
        }
        for (tree, root) in meta.roots.iter().enumerate() {
            let Some(root) = root else { continue };
            let image = self.read(&geo, root.addr.unit, geo.page_bytes)?;
            let page = Page::check(&image, &geo, root.addr, seed)
                .map_err(|what| Error::corrupt(self.path, geo.offset(root.addr.unit), what))?;
            if page.tree() as usize != tree
                || page.level() != root.level
                || page.live() != root.live
            {
                let what = format!("not the root of tree {tree} that the meta page describes");
                return Err(Error::corrupt(self.path, geo.offset(root.addr.unit), what));
            }
        }
        Ok(Candidate { slot, meta, map })
    }

    fn read(&self, geo: &Geometry, unit: u64, len: usize) -> Result<AlignedBuf> {
        let offset = geo.offset(unit);
        if offset.saturating_add(len as u64) > self.len {
            return Err(Error::corrupt(
                self.path,
                offset,
                "a page lies beyond the end of the file",
            ));
        }
        let mut buf = AlignedBuf::new(len);
        self.file
            .read(offset, &mut buf)
            .map_err(|error| Error::io(self.path, offset, "reading", &error))?;
        Ok(buf)
    }

    fn load_map(&self, geo: &Geometry, seed: u32, at: MapIndexAt) -> Result<Map> {
        if at.pages == 0 {
            return Ok(Map::default());
        }
        let corrupt =
            |unit: u64| move |what: String| Error::corrupt(self.path, geo.offset(unit), what);
        if u64::from(at.units) > self.len / geo.unit_bytes as u64 {
            return Err(corrupt(at.unit)(format!(
                "a map index of {} units",
                at.units
            )));
        }
        let index = self.read(geo, at.unit, at.units as usize * geo.unit_bytes)?;
        let pages = map::check_index(geo, &index, at, seed).map_err(corrupt(at.unit))?;
        let mut reached = Bitmap::default();
        const AT_ONCE: usize = 64;
        for (batch, addrs) in pages.chunks(AT_ONCE).enumerate() {
            let mut bufs: Vec<_> = addrs
                .iter()
                .map(|_| AlignedBuf::new(geo.unit_bytes))
                .collect();
            for addr in addrs {
                if geo.offset(addr.unit + 1) > self.len {
                    return Err(corrupt(addr.unit)(
                        "a map page lies beyond the end of the file".into(),
                    ));
                }
            }
            let mut reads: Vec<(u64, &mut [u8])> = addrs
                .iter()
                .zip(&mut bufs)
                .map(|(addr, buf)| (geo.offset(addr.unit), &mut buf[..]))
                .collect();
            let first: Addr = addrs[0];
            self.file.read_many(&mut reads).map_err(|error| {
                Error::io(
                    self.path,
                    geo.offset(first.unit),
                    "reading map pages",
                    &error,
                )
            })?;
            for (i, (addr, buf)) in addrs.iter().zip(&bufs).enumerate() {
                map::check_page(buf, batch * AT_ONCE + i, *addr, seed, &mut reached)
                    .map_err(corrupt(addr.unit))?;
            }
        }
        Ok(Map {
            reached,
            pages,
            index: at,
        })
    }
}

/// What to say of a slot that is whole but not for this program.
fn newer_program(fault: &Fault) -> Option<String> {
    match fault {
        Fault::Format(format) => Some(format!(
            "format {format}, this program reads format {FORMAT}: use the program that wrote it"
        )),
        Fault::Features(bits) => Some(format!(
            "it has features that this program does not know (bits {bits:#x}): use the program that wrote it"
        )),
        _ => None,
    }
}

fn describe(fault: &Fault) -> String {
    match fault {
        Fault::Empty => "empty".into(),
        Fault::Foreign => "not written by this program".into(),
        Fault::Format(_) | Fault::Features(_) => newer_program(fault).unwrap_or_default(),
        Fault::Damaged(what) => what.clone(),
    }
}

fn build(
    found: Found,
    file: Box<dyn PageFile>,
    path: &Path,
    options: StoreOptions,
    is_new: bool,
) -> Result<(Store, StoreWriter, Recovered)> {
    let Candidate { slot, meta, map } = found.newest;
    let geo = Geometry::new(meta.page_bytes as usize).expect("verified with the meta page");
    let alloc = Alloc::new(
        geo.first_unit,
        &map.reached,
        meta.checkpoint,
        found.older.as_ref(),
    );
    let backend = file.backend();
    let pages = Pages::new(file, path, geo, meta.identity, options.cache_bytes);
    let roots = meta.roots.map(Root::at);
    let shared = Shared::new(Setup {
        pages,
        durable: DurableState {
            checkpoint: meta.checkpoint,
            publish: 0,
            user: meta.user.clone().into(),
            roots: meta.roots,
            slot,
            map,
            failed: 0,
            announced: meta.checkpoint,
        },
        alloc,
        file_len: found.len,
        extend_bytes: options.extend_bytes,
        reserve_bytes: options.reserve_bytes,
        fragmentation_max: options.fragmentation_max,
        background: options.background,
        dirty_bytes_limit: options.dirty_bytes_limit,
        on_fatal: options.on_fatal,
    });
    let mut report = format!(
        "{}: {} checkpoint {} ({backend}, {} byte pages)",
        path.display(),
        if is_new { "created, at" } else { "opened at" },
        meta.checkpoint,
        meta.page_bytes
    );
    for note in found.notes {
        report.push_str("; ");
        report.push_str(&note);
    }
    let recovered = Recovered {
        checkpoint: meta.checkpoint,
        user_meta: meta.user,
        fell_back: found.fell_back,
        report,
    };
    let store = Store {
        shared: Arc::new(shared),
    };
    let skipped = match (options.skip_numbers, is_new) {
        (Some(skip), _) => u64::from(skip),
        (None, true) => 0,
        (None, false) if options.identity.is_some() => 0,
        (None, false) => random_skip(path)?,
    };
    let writer = StoreWriter::new(&store, roots, found.highest + 1 + skipped)?;
    Ok((store, writer, recovered))
}
