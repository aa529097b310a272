//! The two meta pages: which checkpoint the file holds, and where its roots are.
//!
//! ```text
//! at 0 and at 65536, 4096 bytes each
//! magic (8) | crc u32 of all that follows | format u32 | page bytes u32 | unit bytes u32 | identity (16)
//! | checkpoint u64 | high water u64 | map index: unit u64 birth u64 units u32 pages u32
//! | four roots: unit u64 birth u64 live u64 level u8 present u8 zero (6) | user bytes u32 | features u32 | at 256: user bytes
//! ```
//!
//! They lie in different 64 KiB blocks so that no write to one can tear the other. A checkpoint writes the one that
//! does not hold the newest durable checkpoint; half-written, its checksum fails and the other one counts.

use super::page::{Addr, Geometry, META_BLOCK, get_u32, get_u64, put_u32, put_u64};
use super::types::USER_META_MAX;

pub(super) const META_BYTES: usize = 4096;
const MAGIC: [u8; 8] = *b"QRTTREE\x01";
pub(super) const FORMAT: u32 = 1;
/// Features of the file that a program must know to read it, one bit each; none so far.
pub(super) const FEATURES: u32 = 0;
const FEATURES_AT: usize = 212;
const USER_AT: usize = 256;
const ROOTS_AT: usize = 80;
const ROOT_BYTES: usize = 32;

const _: () = assert!(USER_AT + USER_META_MAX <= META_BYTES);
const _: () = assert!(ROOTS_AT + 4 * ROOT_BYTES + 4 <= FEATURES_AT && FEATURES_AT + 4 <= USER_AT);

/// Offset of a meta page.
pub(super) fn slot_offset(slot: usize) -> u64 {
    slot as u64 * META_BLOCK
}

/// A root as a meta page has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RootAt {
    pub addr: Addr,
    pub level: u8,
    pub live: u64,
}

/// Where the list of map pages lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct MapIndexAt {
    pub unit: u64,
    pub birth: u64,
    pub units: u32,
    pub pages: u32,
}

/// A meta page whose checksum and bounds hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub page_bytes: u32,
    pub identity: [u8; 16],
    pub checkpoint: u64,
    pub high_water: u64,
    pub map: MapIndexAt,
    pub roots: [Option<RootAt>; 4],
    pub user: Vec<u8>,
}

/// Why bytes are not a meta page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// All zero: never written.
    Empty,
    /// Not made by this program.
    Foreign,
    /// Another version of the format.
    Format(u32),
    /// Features, as bits, that this program does not know.
    Features(u32),
    /// Torn or rotten.
    Damaged(String),
}

/// Bytes from disk, not believed yet.
pub(super) struct Untrusted<'a>(pub &'a [u8]);

impl Untrusted<'_> {
    /// The one way to a [`Meta`].
    pub fn verify(&self) -> Result<Meta, Fault> {
        let b = self.0;
        if b.len() != META_BYTES {
            return Err(Fault::Damaged(format!(
                "{} bytes instead of {META_BYTES}",
                b.len()
            )));
        }
        if b.iter().all(|byte| *byte == 0) {
            return Err(Fault::Empty);
        }
        if b[..8] != MAGIC {
            return Err(Fault::Foreign);
        }
        let (stored, computed) = (get_u32(b, 8), crc32fast::hash(&b[12..]));
        if stored != computed {
            return Err(Fault::Damaged(format!(
                "checksum is {computed:#010x}, the page says {stored:#010x}"
            )));
        }
        if get_u32(b, 12) != FORMAT {
            return Err(Fault::Format(get_u32(b, 12)));
        }
        let unknown = get_u32(b, FEATURES_AT) & !FEATURES;
        if unknown != 0 {
            return Err(Fault::Features(unknown));
        }
        self.fields().map_err(Fault::Damaged)
    }

    fn fields(&self) -> Result<Meta, String> {
        let b = self.0;
        let page_bytes = get_u32(b, 16);
        let geo = Geometry::new(page_bytes as usize)
            .ok_or_else(|| format!("pages of {page_bytes} bytes"))?;
        if get_u32(b, 20) as usize != geo.unit_bytes {
            return Err(format!("units of {} bytes", get_u32(b, 20)));
        }
        let user_bytes = get_u32(b, 208) as usize;
        if user_bytes > USER_META_MAX {
            return Err(format!("{user_bytes} user bytes"));
        }
        let high_water = get_u64(b, 48);
        let inside = |unit: u64, units: u64| {
            unit >= geo.first_unit && unit.saturating_add(units) <= high_water
        };
        let checkpoint = get_u64(b, 40);
        let mut roots = [None; 4];
        for (i, root) in roots.iter_mut().enumerate() {
            let at = ROOTS_AT + i * ROOT_BYTES;
            if b[at + 25] == 0 {
                continue;
            }
            let found = RootAt {
                addr: Addr {
                    unit: get_u64(b, at),
                    birth: get_u64(b, at + 8),
                },
                live: get_u64(b, at + 16),
                level: b[at + 24],
            };
            if !inside(found.addr.unit, u64::from(geo.units_per_page))
                || found.addr.birth > checkpoint
            {
                return Err(format!("root {i} at unit {}", found.addr.unit));
            }
            *root = Some(found);
        }
        let map = MapIndexAt {
            unit: get_u64(b, 56),
            birth: get_u64(b, 64),
            units: get_u32(b, 72),
            pages: get_u32(b, 76),
        };
        if map.pages > 0 && !inside(map.unit, u64::from(map.units)) {
            return Err(format!("map index at unit {}", map.unit));
        }
        let mut identity = [0; 16];
        identity.copy_from_slice(&b[24..40]);
        Ok(Meta {
            page_bytes,
            identity,
            checkpoint,
            high_water,
            map,
            roots,
            user: b[USER_AT..USER_AT + user_bytes].to_vec(),
        })
    }
}

impl Meta {
    /// Writes the page; `out` is zeroed and has [`META_BYTES`].
    pub fn encode(&self, geo: &Geometry, out: &mut [u8]) {
        out[..8].copy_from_slice(&MAGIC);
        put_u32(out, 12, FORMAT);
        put_u32(out, 16, self.page_bytes);
        put_u32(out, 20, geo.unit_bytes as u32);
        out[24..40].copy_from_slice(&self.identity);
        put_u64(out, 40, self.checkpoint);
        put_u64(out, 48, self.high_water);
        put_u64(out, 56, self.map.unit);
        put_u64(out, 64, self.map.birth);
        put_u32(out, 72, self.map.units);
        put_u32(out, 76, self.map.pages);
        for (i, root) in self.roots.iter().enumerate() {
            let Some(root) = root else { continue };
            let at = ROOTS_AT + i * ROOT_BYTES;
            put_u64(out, at, root.addr.unit);
            put_u64(out, at + 8, root.addr.birth);
            put_u64(out, at + 16, root.live);
            out[at + 24] = root.level;
            out[at + 25] = 1;
        }
        put_u32(out, 208, self.user.len() as u32);
        put_u32(out, FEATURES_AT, FEATURES);
        out[USER_AT..USER_AT + self.user.len()].copy_from_slice(&self.user);
        let crc = crc32fast::hash(&out[12..]);
        put_u32(out, 8, crc);
    }
}
