//! Catching up from the ring: in memory, under the lock, up to the position.

use super::*;

/// Events a call of `pump` or `catch_up` compares for near watchers before it lets others run.
const NEAR_BUDGET: usize = 50_000;

impl Act<'_> {
    /// Serves the watchers in `near`: from the ring up to the position, then synced; or passes them on
    /// to where they belong. Returns whether the budget ended it.
    pub(super) fn serve_near(&mut self) -> bool {
        if self.near.is_empty() {
            return false;
        }
        let mut near = std::mem::take(&mut self.near);
        near.retain(|&key| {
            self.watchers
                .get(key)
                .is_some_and(|w| w.state == State::Near)
        });
        let from = near.iter().map(|&key| self.watchers[key].next).min();
        let mut batches = std::mem::take(&mut self.batches);
        let after = from.map_or(i64::MAX, |next| next - 1);
        let marks = self.hub.feed.read(after, i64::MAX, &mut batches);
        let mut budget = NEAR_BUDGET;
        let mut more = false;
        for key in near {
            if budget == 0 {
                more = true;
                self.near.push(key);
            } else {
                self.serve_near_one(key, marks, &batches, &mut budget);
            }
        }
        batches.clear();
        self.batches = batches;
        more
    }

    /// As `serve_near`; what the budget leaves is for the next pump.
    pub(super) fn serve_near_soon(&mut self) {
        if self.serve_near() {
            self.hub.pump.notify_one();
        }
    }

    pub(super) fn serve_near_one(
        &mut self,
        key: Key,
        marks: Marks,
        batches: &[Arc<Batch>],
        budget: &mut usize,
    ) {
        let revisions_max = self.options().catch_up_revisions_max as i64;
        loop {
            let position = self.position;
            let watcher = &self.watchers[key];
            let (next, header, stream) = (watcher.next, watcher.header, watcher.stream);
            if next > position {
                match next > header || position >= header {
                    true => self.sync(key),
                    // The pump will come past here with the position moved.
                    false => self.near.push(key),
                }
                return;
            }
            if !self.room(stream) {
                return self.block(key);
            }
            if next < marks.compacted {
                return self.end_compacted(key, marks.compacted);
            }
            if next <= marks.floor {
                self.watchers[key].state = State::Far;
                self.far.push_back(key);
                self.hub.history.notify_one();
                return;
            }
            let end = position.min(next.saturating_add(revisions_max - 1));
            let (pieces, end) = self.gather(key, marks, batches, next..=end, budget);
            let header = header.max(position);
            let watcher = &mut self.watchers[key];
            watcher.next = end + 1;
            watcher.header = header;
            if !pieces.is_empty() {
                self.respond(key, header, pieces);
            }
        }
    }

    /// The events of a watcher in a range of revisions, cut after the revision that passes the slice's
    /// bytes; and the last revision looked at.
    pub(super) fn gather(
        &self,
        key: Key,
        marks: Marks,
        batches: &[Arc<Batch>],
        revisions: std::ops::RangeInclusive<i64>,
        budget: &mut usize,
    ) -> (Vec<Bytes>, i64) {
        let watcher = &self.watchers[key];
        let bytes_max = self.options().catch_up_bytes;
        let mut pieces = Vec::new();
        let mut bytes = 0;
        let mut last = 0;
        let first = batches.partition_point(|b| b.last < *revisions.start());
        for batch in &batches[first..] {
            for at in batch.after(revisions.start() - 1)..batch.events.len() {
                let event = &batch.events[at];
                let main = event.revision.main;
                if main > *revisions.end() {
                    return (pieces, *revisions.end());
                }
                if main != last && bytes >= bytes_max {
                    return (pieces, last);
                }
                last = main;
                *budget = budget.saturating_sub(1);
                if watcher.wants(event.kind, main) && watcher.span.contains(&event.kv.key) {
                    // As from history: what was before a compacted revision cannot be read.
                    let with_prev = watcher.prev_kv && main > marks.compacted;
                    let piece = batch.piece(at, with_prev);
                    bytes += piece.len();
                    pieces.push(piece);
                }
            }
        }
        (pieces, *revisions.end())
    }
}
