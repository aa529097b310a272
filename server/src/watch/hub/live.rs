//! Handing new events to synced watchers.

use super::*;

/// An upper bound of the encoded fields besides the events of a response that carries events.
const HEAD_BYTES: usize = 64;

impl Act<'_> {
    /// Hands out the events of a batch above the position, up to revision `until`.
    pub(super) fn distribute(&mut self, batch: &Batch, until: i64) {
        let mut at = batch.after(self.position);
        while at < batch.events.len() {
            let main = batch.events[at].revision.main;
            if main > until {
                return;
            }
            let rest = &batch.events[at..];
            let count = rest.iter().take_while(|e| e.revision.main == main).count();
            if count == 1 {
                self.hand_out_one(batch, at, main);
            } else {
                self.hand_out_many(batch, at..at + count, main);
            }
            self.position = main;
            let mut full = std::mem::take(&mut self.full);
            for key in full.drain(..) {
                self.unsync(key, main, State::Blocked);
            }
            self.full = full;
            at += count;
        }
    }

    /// The usual case: a revision with one event.
    pub(super) fn hand_out_one(&mut self, batch: &Batch, at: usize, main: i64) {
        let event = &batch.events[at];
        let options = self.hub.feed.options();
        let inner = self.inner.as_mut().expect("held until drop");
        let Inner {
            streams,
            watchers,
            index,
            groups,
            full,
            ..
        } = &mut **inner;
        index.lookup(&event.kv.key, groups);
        for &key in groups.iter().flat_map(|&group| index.members(group)) {
            let watcher = &mut watchers[key];
            if !watcher.wants(event.kind, main) {
                continue;
            }
            let stream = &mut streams[watcher.stream];
            if !stream.has_room(options) {
                full.push(key);
                continue;
            }
            watcher.progress_due = false;
            self.events += 1;
            let frame = WatchFrame {
                revision: main,
                watch_id: watcher.id,
                events: Pieces::One(batch.piece(at, watcher.prev_kv)),
                ..WatchFrame::default()
            };
            stream.push(frame, &mut self.wakers);
        }
        groups.clear();
    }

    /// A revision with several events: they are gathered per watcher first.
    pub(super) fn hand_out_many(&mut self, batch: &Batch, events: Range<usize>, main: i64) {
        let mut touched = std::mem::take(&mut self.touched);
        let inner = self.inner_mut();
        let Inner {
            watchers,
            index,
            groups,
            ..
        } = inner;
        for at in events {
            let event = &batch.events[at];
            index.lookup(&event.kv.key, groups);
            for &key in groups.iter().flat_map(|&group| index.members(group)) {
                let watcher = &mut watchers[key];
                if !watcher.wants(event.kind, main) {
                    continue;
                }
                if watcher.mark == UNMARKED {
                    watcher.mark = touched.len() as u32;
                    touched.push((key, Vec::new()));
                }
                let piece = batch.piece(at, watcher.prev_kv);
                touched[watcher.mark as usize].1.push(piece);
            }
            groups.clear();
        }
        for (key, pieces) in touched.drain(..) {
            self.watchers[key].mark = UNMARKED;
            let stream = self.watchers[key].stream;
            if self.room(stream) {
                self.respond(key, main, pieces);
            } else {
                self.full.push(key);
            }
        }
        self.touched = touched;
    }

    /// Sends events as one response, or as fragments when the watch asked for them.
    pub(super) fn respond(&mut self, key: Key, revision: i64, pieces: Vec<Bytes>) {
        let fragment_bytes = self.options().fragment_bytes;
        let watcher = &mut self.watchers[key];
        watcher.progress_due = false;
        let (stream, watch_id) = (watcher.stream, watcher.id);
        let fragments = watcher.fragment;
        self.events += pieces.len() as u64;
        let mut events = Pieces::None;
        let mut bytes = HEAD_BYTES;
        for piece in pieces {
            if fragments && !events.is_empty() && bytes + piece.len() >= fragment_bytes {
                let frame = WatchFrame {
                    revision,
                    watch_id,
                    fragment: true,
                    events: std::mem::take(&mut events),
                    ..WatchFrame::default()
                };
                self.push(stream, frame);
                bytes = HEAD_BYTES;
            }
            bytes += piece.len();
            events.push(piece);
        }
        let frame = WatchFrame {
            revision,
            watch_id,
            events,
            ..WatchFrame::default()
        };
        self.push(stream, frame);
    }

    /// The ring no longer reaches back to the position: what was synced catches up.
    pub(super) fn fall_behind(&mut self, newest: i64) {
        let next = self.position + 1;
        for key in self.index.all_members() {
            if self.watchers[key].next <= newest {
                self.unsync(key, next, State::Near);
            }
        }
        self.position = newest;
    }
}
