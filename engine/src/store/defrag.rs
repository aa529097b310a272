//! Moving pages from the end of the file to free space before it, so that the end can be cut off. Online: a page is
//! moved by copying it into the working state, and the next checkpoint writes the copy, low addresses first.
//!
//! 1. After a checkpoint its thread looks through the used units behind the goal and notes the tree pages there. A
//!    page says itself which tree and level it belongs to, and any of its keys leads to it.
//! 2. The writer, a few pages at a time, descends to each; still there, it becomes a page of the working state.
//! 3. Two checkpoints later the old place is free, and what lies free at the end is cut off.
//!
//! Invariant: this changes where bytes are and nothing else. A crash loses progress only.
//! Deliberately absent: moving runs. Who refers to them is known to their owners alone; young ones leave with
//! compaction.

use super::alloc::Extent;
use super::btree::{Kid, Root, child_of, put_child, take_child};
use super::cache::Frame;
use super::error::Result;
use super::io::AlignedBuf;
use super::lock;
use super::map::Map;
use super::page::{Addr, KIND_INNER, KIND_LEAF, get_u64};
use super::shared::Shared;
use super::space::Space;

/// A page to be moved.
pub(super) struct TailPage {
    tree: u8,
    level: u8,
    unit: u64,
    key: Vec<u8>,
}

/// Where a file with this map could end: what is in use, and a twentieth.
fn goal(shared: &Shared, map: &Map) -> u64 {
    let used = map.reached.ones();
    shared.pages.geo.first_unit + used + used / 20 + 64
}

/// Notes up to `pages_max` tree pages behind the goal, the last ones first. Runs on the checkpoint thread.
pub(super) fn note_tail(shared: &Shared, map: &Map, pages_max: usize) {
    let goal = goal(shared, map);
    let mut found = Vec::new();
    let extents: Vec<Extent> = map
        .reached
        .extents()
        .filter(|extent| extent.unit + u64::from(extent.units) > goal)
        .collect();
    for extent in extents.into_iter().rev() {
        let end = extent.unit + u64::from(extent.units);
        let from = extent
            .unit
            .max(goal)
            .max(end.saturating_sub(4 * pages_max as u64));
        for unit in from..end {
            if found.len() < pages_max
                && let Some(page) = page_at(shared, unit)
            {
                found.push(page);
            }
        }
        if found.len() >= pages_max {
            break;
        }
    }
    *lock(&shared.tail) = found;
}

/// The tree page that begins at `unit`, if one does: bytes inside of a page or run may look like one, but no checksum
/// makes them so.
fn page_at(shared: &Shared, unit: u64) -> Option<TailPage> {
    let pages = &shared.pages;
    let mut head = AlignedBuf::new(pages.geo.unit_bytes);
    pages
        .read_at(unit, &mut head, "looking for pages to move")
        .ok()?;
    if !matches!(head[4], KIND_LEAF | KIND_INNER) || get_u64(&head, 8) != unit {
        return None;
    }
    let addr = Addr {
        unit,
        birth: get_u64(&head, 16),
    };
    let node = std::sync::Arc::new(pages.read_node(addr).ok()?);
    let page = node.page();
    let slot = usize::from(!page.is_leaf());
    let mut key = Vec::new();
    if slot < page.len() {
        page.key_into(slot, pages, &mut key).ok()?;
    }
    let found = TailPage {
        tree: page.tree(),
        level: page.level(),
        unit,
        key,
    };
    pages.cache.insert(addr, Frame::Node(node));
    Some(found)
}

/// Moves up to `pages_max` of the pages noted; how many were moved.
pub(super) fn move_tail(
    space: &mut Space,
    roots: &mut [Root; 4],
    pages_max: usize,
) -> Result<usize> {
    let mut moved = 0;
    for _ in 0..pages_max {
        let Some(page) = lock(&space.shared.tail).pop() else {
            break;
        };
        let root = &mut roots[usize::from(page.tree)];
        if !still_there(space, root, &page)? {
            continue;
        }
        let level = root.level;
        if let Some(kid) = &mut root.kid {
            copy_path(space, kid, level, &page)?;
            moved += 1;
        }
    }
    Ok(moved)
}

fn unit_of(kid: &Kid) -> Option<u64> {
    match kid {
        Kid::Disk(addr) => Some(addr.unit),
        Kid::Mem(node) => node.addr.get().map(|addr| addr.unit),
    }
}

/// Whether the working state still holds the page where it was seen.
fn still_there(space: &Space, root: &Root, page: &TailPage) -> Result<bool> {
    let pages = space.pages();
    if root.level < page.level {
        return Ok(false);
    }
    let Some(kid) = &root.kid else {
        return Ok(false);
    };
    if root.level == page.level {
        return Ok(unit_of(kid) == Some(page.unit));
    }
    let Some(mut node) = root.node(pages, page.tree)? else {
        return Ok(false);
    };
    loop {
        let i = node.page().child_for(&page.key, pages)?;
        if node.page().level() == page.level + 1 {
            let unit = match node.kid(i) {
                Some(kid) => kid.addr.get().map(|addr| addr.unit),
                None => Some(node.page().child(i).addr.unit),
            };
            return Ok(unit == Some(page.unit));
        }
        node = child_of(pages, &node, i)?;
    }
}

/// Makes the page and all above it the writer's own.
fn copy_path(space: &mut Space, kid: &mut Kid, level: u8, page: &TailPage) -> Result<()> {
    let node = space.own(kid, page.tree, level)?;
    if level == page.level {
        return Ok(());
    }
    let i = node.page().child_for(&page.key, space.pages())?;
    let mut child = take_child(node, i);
    let done = copy_path(space, &mut child, level - 1, page);
    put_child(node, i, child);
    done
}
