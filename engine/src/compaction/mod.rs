//! The physical part of compaction: dropping history that no read may ask for any more.
//!
//! Logical compaction only moves the compact revision C (`Writer::compact`). This part then goes
//! through the events below C from the old end of the event log and takes each apart:
//!
//! - the run of the previous value is freed: the event was its last owner;
//! - a delete's tombstone is removed from K, if K still holds that very tombstone.
//!
//! A chunk whose events are all below C is dropped. The one in which C lies stays, with its events
//! below C taken apart: few events with large values fill no chunk, and what they own must not
//! stay for that. Events at C itself are not touched, since a watch may start there.
//!
//! A long reader of an older revision holds this part back (`mvcc::long`): it then goes as far as that revision instead
//! of C, and further when the reader ends.
//!
//! Invariants:
//! 1. The sweep position says which events of the oldest chunk are taken apart already. It is
//!    part of every checkpoint, so a crash neither skips an event nor frees a run twice.
//! 2. No event at or above C, or the lowest revision that a long reader pins, is touched. Reads at or above a revision
//!    never follow an event below it.
//! 3. When `compact_done` equals C, no chunk has a last revision below C, no event below C owns a
//!    run, and K holds no tombstone below C.

use crate::events::chunk::{ChunkView, EventView, Prev};
use crate::events::log::{ChunkEntry, index_key};
use crate::mvcc::Writer;
use crate::record::{ValueRef, decode_record};
use crate::source::TreeId;
use crate::types::{Budget, CompactProgress, Result, Revision};

pub(crate) fn step(writer: &mut Writer, budget: Budget) -> Result<CompactProgress> {
    let mut left = budget.events.max(1);
    let floor = writer.history_floor();
    let end = match floor == writer.meta.compact_revision {
        true => CompactProgress::Done,
        false => CompactProgress::Held,
    };
    if writer.meta.compact_done >= floor {
        return Ok(end);
    }
    let keep_from = keep_from(writer, floor);
    // What is taken apart must be in chunks that are known to the index.
    if writer
        .log
        .first()
        .is_some_and(|first| first.main < keep_from)
    {
        writer.log.seal(&mut writer.store)?;
    }
    while let Some((first, entry)) = oldest(writer)? {
        if first.main >= keep_from {
            break;
        }
        if left == 0 || !take_apart(writer, &entry, keep_from, &mut left)? {
            return Ok(CompactProgress::More);
        }
        if entry.last.main >= keep_from {
            break;
        }
        writer.store.remove(TreeId::E, &index_key(first))?;
        writer.store.free_run(entry.run);
        writer.meta.sweep = Revision::default();
    }
    writer.meta.compact_done = floor;
    Ok(end)
}

/// Events below this are taken apart, chunks that end below it dropped.
fn keep_from(_writer: &Writer, floor: i64) -> i64 {
    #[cfg(test)]
    if _writer.drops_too_much {
        return floor + 1;
    }
    floor
}

fn oldest(writer: &Writer) -> Result<Option<(Revision, ChunkEntry)>> {
    let mut cursor = writer.store.cursor(TreeId::E);
    cursor.seek(&[])?;
    if !cursor.valid() {
        return Ok(None);
    }
    ChunkEntry::decode(cursor.key(), cursor.value()).map(Some)
}

/// Drops what the events of a chunk own, from the sweep position to the end or the first event to
/// be kept. False: the budget ended first.
fn take_apart(
    writer: &mut Writer,
    entry: &ChunkEntry,
    keep_from: i64,
    left: &mut usize,
) -> Result<bool> {
    if entry.deletes == 0 && entry.prev_runs == 0 {
        *left -= 1;
        return Ok(true);
    }
    let bytes = writer.store.read_run(entry.run)?;
    let chunk = ChunkView::sealed(&bytes)?;
    for i in chunk.lower_bound(writer.meta.sweep)..chunk.len() {
        let rev = chunk.rev(i);
        let kept = rev.main >= keep_from;
        if kept || *left == 0 {
            writer.meta.sweep = rev;
            return Ok(kept);
        }
        *left -= 1;
        drop_event(writer, &chunk.event(i)?)?;
    }
    Ok(true)
}

fn drop_event(writer: &mut Writer, event: &EventView<'_>) -> Result<()> {
    if let Prev::Live(_, live) = event.prev
        && let ValueRef::Run(run) = live.value
    {
        writer.store.free_run(run);
    }
    if event.new.is_none() && holds_tombstone(writer, event)? {
        writer.store.remove(TreeId::K, event.key)?;
    }
    Ok(())
}

fn holds_tombstone(writer: &Writer, event: &EventView<'_>) -> Result<bool> {
    let Some(entry) = writer.store.get(TreeId::K, event.key)? else {
        return Ok(false);
    };
    let record = decode_record(entry.flags, &entry.value)?;
    Ok(record.live.is_none() && record.rev == event.rev)
}
