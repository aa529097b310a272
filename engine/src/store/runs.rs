//! Runs: byte strings too long for a page, in adjacent units, written once and never changed.
//!
//! ```text
//! header (64)  crc u32 | kind u8 (5) run kind u8 zero u16 | unit u64 | birth u64 | bytes u32 | crc of the bytes u32
//!              | owner key bytes u32 | units u32 | owner (16) | zero
//! then         owner key | bytes | zero to the end of the last unit
//! ```
//!
//! The header's checksum covers header and owner key. The owner (a key and 16 bytes of the caller) lets a defragmenter
//! find who refers to a run.

use bytes::Bytes;

use super::error::{Error, Result};
use super::page::{Addr, Geometry, KIND_RUN, get_u32, get_u64, put_u32, put_u64};
use super::types::{RunKind, RunRef};

pub(super) const RUN_HEADER: usize = 64;

/// Longest run: the value or key of a request of any configured size fits.
pub(super) const RUN_BYTES_MAX: usize = 1 << 30;

/// A run in memory that no checkpoint has written.
pub(super) struct MemRun {
    pub run: RunRef,
    pub kind: RunKind,
    pub owner: [u8; 16],
    pub owner_key: Bytes,
    pub bytes: Bytes,
}

/// CRC-32 of a run's contents.
pub(super) fn contents_crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Refuses lengths that no run may have.
pub(super) fn check_sizes(owner_key: usize, contents: usize) -> Result<()> {
    for (what, bytes) in [("a run", contents), ("the owner of a run", owner_key)] {
        if bytes > RUN_BYTES_MAX {
            return Err(Error::TooLarge {
                what,
                bytes,
                bytes_max: RUN_BYTES_MAX,
            });
        }
    }
    Ok(())
}

/// Units that a run of these lengths takes.
pub(super) fn units(geo: &Geometry, owner_key: usize, bytes: usize) -> u32 {
    geo.units_for(RUN_HEADER + owner_key + bytes)
}

impl MemRun {
    pub fn addr(&self) -> Addr {
        Addr {
            unit: self.run.unit,
            birth: self.run.birth,
        }
    }

    /// Writes the run's image; `out` is zeroed and has the length of its units.
    pub fn image(&self, seed: u32, out: &mut [u8]) {
        out[4] = KIND_RUN;
        out[5] = self.kind as u8;
        put_u64(out, 8, self.run.unit);
        put_u64(out, 16, self.run.birth);
        put_u32(out, 24, self.run.len);
        put_u32(out, 28, self.run.crc);
        put_u32(out, 32, self.owner_key.len() as u32);
        put_u32(out, 36, self.run.units);
        out[40..56].copy_from_slice(&self.owner);
        let at = RUN_HEADER + self.owner_key.len();
        out[RUN_HEADER..at].copy_from_slice(&self.owner_key);
        out[at..at + self.bytes.len()].copy_from_slice(&self.bytes);
        let crc = contents_crc(seed, &out[4..at]);
        put_u32(out, 0, crc);
    }
}

/// What a run says of itself.
pub(super) struct Described {
    pub run: RunRef,
    pub kind: RunKind,
    pub owner: [u8; 16],
    pub owner_key_bytes: usize,
}

/// Reads a run's own header, with nobody's reference at hand. None when none begins here. Only what `check` then
/// finds good may be believed.
pub(super) fn describe(geo: &Geometry, head: &[u8], unit: u64) -> Option<Described> {
    if head.len() < RUN_HEADER || head[4] != KIND_RUN || get_u64(head, 8) != unit {
        return None;
    }
    let kind = match head[5] {
        1 => RunKind::Value,
        2 => RunKind::Chunk,
        3 => RunKind::Key,
        _ => return None,
    };
    let run = RunRef {
        unit,
        birth: get_u64(head, 16),
        len: get_u32(head, 24),
        crc: get_u32(head, 28),
        units: get_u32(head, 36),
    };
    let owner_key_bytes = get_u32(head, 32) as usize;
    let bytes = RUN_HEADER
        .checked_add(owner_key_bytes)?
        .checked_add(run.len as usize)?;
    let fits = owner_key_bytes <= RUN_BYTES_MAX
        && run.len as usize <= RUN_BYTES_MAX
        && geo.units_for(bytes) == run.units;
    let mut owner = [0; 16];
    owner.copy_from_slice(&head[40..56]);
    fits.then_some(Described {
        run,
        kind,
        owner,
        owner_key_bytes,
    })
}

/// Checks a run read from disk against its reference; where its contents lie.
pub(super) fn check(
    geo: &Geometry,
    image: &[u8],
    run: RunRef,
    seed: u32,
) -> std::result::Result<std::ops::Range<usize>, String> {
    let len = run.len as usize;
    if image.len() != run.units as usize * geo.unit_bytes || image.len() < RUN_HEADER {
        return Err(format!("a run of {} bytes in {} units", run.len, run.units));
    }
    let key_bytes = get_u32(image, 32) as usize;
    let at = RUN_HEADER.saturating_add(key_bytes);
    let end = at.saturating_add(len);
    if image[4] != KIND_RUN || end > image.len() {
        return Err(format!("no run of {} bytes begins here", run.len));
    }
    if get_u32(image, 0) != contents_crc(seed, &image[4..at]) {
        return Err("checksum of the run's header does not match".into());
    }
    if get_u64(image, 8) != run.unit
        || get_u64(image, 16) != run.birth
        || get_u32(image, 24) != run.len
    {
        return Err(format!(
            "run of unit {} and checkpoint {} found where unit {} and checkpoint {} belongs: a lost or misdirected write",
            get_u64(image, 8),
            get_u64(image, 16),
            run.unit,
            run.birth
        ));
    }
    let crc = contents_crc(seed, &image[at..end]);
    if crc != run.crc || get_u32(image, 28) != run.crc {
        return Err(format!(
            "checksum of the run is {crc:#010x}, its reference says {:#010x}",
            run.crc
        ));
    }
    Ok(at..end)
}
