//! Tests of the store as a whole, with pages so small that trees get deep.

mod basics;
mod blocks;
mod cache;
mod crash;
mod damage;
mod faults;
mod figures;
mod fill;
mod golden;
mod incarnation;
mod memory;
mod model;
mod pack;
mod prefetch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::check::CheckReport;
use super::types::USER_META_MAX;
use super::*;

pub(super) fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        page_bytes: 512,
        cache_bytes: 64 << 10,
        backend: IoBackend::Sync,
        extend_bytes: 64 << 10,
        reserve_bytes: 64 << 10,
        identity: Some(*b"test file 000001"),
        ..StoreOptions::new(dir)
    }
}

/// What a tree should hold.
pub(super) type Model = BTreeMap<Vec<u8>, (u8, Vec<u8>)>;

/// No entry leads to a run.
pub(super) fn no_runs(_: TreeId, _: &[u8], _: u8, _: &[u8], _: &mut Vec<RunRef>) -> Result<()> {
    Ok(())
}

/// Flag of the entries in these tests whose value is the reference of a run.
pub(super) const BY_RUN: u8 = 2;

pub(super) fn runs_by_flag(
    _: TreeId,
    _: &[u8],
    flags: u8,
    value: &[u8],
    out: &mut Vec<RunRef>,
) -> Result<()> {
    if flags & BY_RUN != 0 {
        out.push(RunRef::from_bytes(value.try_into().unwrap()));
    }
    Ok(())
}

/// All entries of a tree, forward.
pub(super) fn contents(snapshot: &Snapshot, tree: TreeId) -> Model {
    let mut found = Model::new();
    let mut cursor = snapshot.cursor(tree);
    cursor.seek(b"").unwrap();
    while cursor.valid() {
        found.insert(
            cursor.key().to_vec(),
            (cursor.flags(), cursor.value().to_vec()),
        );
        cursor.next().unwrap();
    }
    found
}

/// Waits for a checkpoint of the state published last.
pub(super) fn checkpoint(store: &Store, writer: &mut StoreWriter, user: &[u8]) -> u64 {
    let number = writer.checkpoint(user.to_vec()).unwrap();
    store.wait_durable(number).unwrap();
    while writer.checkpoint_running() {
        std::thread::yield_now();
    }
    number
}

/// A hook that keeps the last lines instead of ending the process.
pub(super) fn fatal_lines() -> (FatalHook, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    (
        FatalHook(Arc::new(move |line: &str| {
            kept.lock().unwrap().push(line.into())
        })),
        lines,
    )
}
