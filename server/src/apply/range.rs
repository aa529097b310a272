//! Range, on any state that can be read: a published view or the working state inside a transaction.
//!
//! Invariants:
//! 1. `count` is the number of keys in the range at the revision read, whatever limit and filters say.
//! 2. Key-values go to the sink in response order; without a sort by something other than the key
//!    none is copied on the way.
//! 3. Equal sort keys keep key order.

use bytes::Bytes;
use engine::{KeyRange, KeyValue, KvRef};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::mvccpb;
use std::ops::ControlFlow;

/// A state of the key space. `at` is a revision, or 0 for the newest state (inside a transaction:
/// with its own effects so far).
pub trait Reads {
    /// Current revision: of the view, or before the transaction began.
    fn revision(&self) -> i64;
    /// One key.
    fn get(&self, key: &[u8], at: i64) -> engine::Result<Option<KeyValue>>;
    /// Ascending by key.
    fn visit(
        &self,
        range: &KeyRange,
        at: i64,
        f: &mut dyn FnMut(KvRef<'_>) -> ControlFlow<()>,
    ) -> engine::Result<()>;
    /// As `visit`; values may be missing.
    fn visit_keys(
        &self,
        range: &KeyRange,
        at: i64,
        f: &mut dyn FnMut(KvRef<'_>) -> ControlFlow<()>,
    ) -> engine::Result<()>;
    /// Descending by key.
    fn visit_rev(
        &self,
        range: &KeyRange,
        at: i64,
        f: &mut dyn FnMut(KvRef<'_>) -> ControlFlow<()>,
    ) -> engine::Result<()>;
    /// Number of live keys.
    fn count(&self, range: &KeyRange, at: i64) -> engine::Result<u64>;
}

/// Where the key-values of a response go.
pub trait Sink {
    /// Takes the next one; its value is already stripped when only keys were asked for.
    fn push(&mut self, kv: KvRef<'_>);
}

impl Sink for Vec<mvccpb::KeyValue> {
    fn push(&mut self, kv: KvRef<'_>) {
        Vec::push(self, to_proto(kv.to_owned()));
    }
}

/// The parts of a range response besides header and key-values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// More keys passed the filters than the limit let through.
    pub more: bool,
    /// Keys in the range.
    pub count: i64,
}

/// The API's form of a key-value.
pub fn to_proto(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// The keys a request names. Shares its buffers.
pub fn key_range(key: &Bytes, range_end: &Bytes) -> KeyRange {
    match &range_end[..] {
        [] => KeyRange::One(key.clone()),
        [0] => KeyRange::From(key.clone()),
        _ => KeyRange::Half {
            start: key.clone(),
            end: range_end.clone(),
        },
    }
}

struct Filters {
    mod_revision: (i64, i64),
    create_revision: (i64, i64),
    any: bool,
}

impl Filters {
    fn of(r: &pb::RangeRequest) -> Filters {
        let upper = |max: i64| if max == 0 { i64::MAX } else { max };
        let lower = |min: i64| if min == 0 { i64::MIN } else { min };
        Filters {
            mod_revision: (lower(r.min_mod_revision), upper(r.max_mod_revision)),
            create_revision: (lower(r.min_create_revision), upper(r.max_create_revision)),
            any: r.min_mod_revision != 0
                || r.max_mod_revision != 0
                || r.min_create_revision != 0
                || r.max_create_revision != 0,
        }
    }

    fn pass(&self, kv: &KvRef<'_>) -> bool {
        let within = |n: i64, (min, max): (i64, i64)| min <= n && n <= max;
        within(kv.mod_revision, self.mod_revision)
            && within(kv.create_revision, self.create_revision)
    }
}

/// Answers a validated request. The caller has checked its revision against the state.
pub fn range<R: Reads, S: Sink>(
    reads: &R,
    r: &pb::RangeRequest,
    sink: &mut S,
) -> engine::Result<Summary> {
    let keys = key_range(&r.key, &r.range_end);
    let at = r.revision.max(0);
    if r.count_only {
        return Ok(Summary {
            more: false,
            count: reads.count(&keys, at)? as i64,
        });
    }
    let order = SortOrder::try_from(r.sort_order).unwrap_or(SortOrder::None);
    let target = SortTarget::try_from(r.sort_target).unwrap_or(SortTarget::Key);
    match (target, order) {
        (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => {
            stream(reads, r, &keys, at, false, sink)
        }
        (SortTarget::Key, SortOrder::Descend) => stream(reads, r, &keys, at, true, sink),
        _ => sorted(reads, r, &keys, at, order, target, sink),
    }
}

/// In key order, straight from the tree, stopping one past the limit.
fn stream<R: Reads, S: Sink>(
    reads: &R,
    r: &pb::RangeRequest,
    keys: &KeyRange,
    at: i64,
    descending: bool,
    sink: &mut S,
) -> engine::Result<Summary> {
    let filters = Filters::of(r);
    let limit = if r.limit > 0 { r.limit } else { i64::MAX };
    let (mut seen, mut taken, mut more) = (0i64, 0i64, false);
    let mut take = |mut kv: KvRef<'_>| {
        seen += 1;
        if !filters.pass(&kv) {
            return ControlFlow::Continue(());
        }
        if taken == limit {
            more = true;
            return ControlFlow::Break(());
        }
        taken += 1;
        if r.keys_only {
            kv.value = &[];
        }
        sink.push(kv);
        ControlFlow::Continue(())
    };
    if descending {
        reads.visit_rev(keys, at, &mut take)?;
    } else if r.keys_only {
        reads.visit_keys(keys, at, &mut take)?;
    } else {
        reads.visit(keys, at, &mut take)?;
    }
    let count = if more {
        reads.count(keys, at)? as i64
    } else {
        seen
    };
    Ok(Summary { more, count })
}

/// By something other than the key: gather, sort, cut.
///
/// With order NONE etcd sorts ascending, but over the first `limit + 1` keys only unless a filter made
/// it fetch everything; clients can see that, so it is kept.
fn sorted<R: Reads, S: Sink>(
    reads: &R,
    r: &pb::RangeRequest,
    keys: &KeyRange,
    at: i64,
    order: SortOrder,
    target: SortTarget,
    sink: &mut S,
) -> engine::Result<Summary> {
    let filters = Filters::of(r);
    let limit = if r.limit > 0 {
        r.limit as usize
    } else {
        usize::MAX
    };
    let gather_max = if order == SortOrder::None && !filters.any {
        limit.saturating_add(1)
    } else {
        usize::MAX
    };
    let with_value = !r.keys_only || target == SortTarget::Value;
    let (mut found, mut seen, mut stopped) = (Vec::new(), 0i64, false);
    reads.visit(keys, at, &mut |mut kv: KvRef<'_>| {
        seen += 1;
        if !filters.pass(&kv) {
            return ControlFlow::Continue(());
        }
        if !with_value {
            kv.value = &[];
        }
        found.push(kv.to_owned());
        if found.len() == gather_max {
            stopped = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    sort(&mut found, order, target);
    let more = found.len() > limit;
    for kv in found.iter().take(limit) {
        sink.push(KvRef {
            key: &kv.key,
            value: if r.keys_only { &[] } else { &kv.value },
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        });
    }
    let count = if stopped {
        reads.count(keys, at)? as i64
    } else {
        seen
    };
    Ok(Summary { more, count })
}

fn sort(found: &mut [KeyValue], order: SortOrder, target: SortTarget) {
    found.sort_by(|a, b| {
        let ascending = match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if order == SortOrder::Descend {
            ascending.reverse()
        } else {
            ascending
        }
    });
}

macro_rules! reads {
    ($state:ty, $get:ident) => {
        fn get(&self, key: &[u8], at: i64) -> engine::Result<Option<KeyValue>> {
            <$state>::$get(self, key, at)
        }
        reads!($state: visit, visit_keys, visit_rev);
        fn count(&self, range: &KeyRange, at: i64) -> engine::Result<u64> {
            <$state>::count(self, range, at)
        }
    };
    ($state:ty: $($visit:ident),*) => {
        $(fn $visit(
            &self,
            range: &KeyRange,
            at: i64,
            f: &mut dyn FnMut(KvRef<'_>) -> ControlFlow<()>,
        ) -> engine::Result<()> {
            <$state>::$visit(self, range, at, f)
        })*
    };
}

impl Reads for engine::View {
    fn revision(&self) -> i64 {
        engine::View::revision(self)
    }
    reads!(engine::View, get);
}

impl Reads for engine::Txn<'_> {
    fn revision(&self) -> i64 {
        self.begin_revision()
    }
    reads!(engine::Txn<'_>, get_at);
}
