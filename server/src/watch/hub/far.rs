//! Catching up from history: watchers are picked and served under the lock, the reading in between
//! happens without it.

use super::*;

/// What one watcher of a history slice is to be sent.
pub(super) struct Spec {
    watcher: Key,
    span: Span,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    next: i64,
    /// Its events in the slice's buffer.
    pieces: Vec<Range<usize>>,
}

impl Spec {
    fn filters(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        }
    }
}

impl Act<'_> {
    /// Picks watchers for a slice of history: the one that waited longest and those close above it.
    pub(super) fn pick_far(&mut self, compact_revision: i64) -> Vec<Spec> {
        let floor = self.hub.feed.marks().floor;
        let mut specs = Vec::new();
        let mut horizon = i64::MAX;
        let options = self.options();
        let watchers_max = options.catch_up_watchers_max;
        let revisions_max = options.catch_up_revisions_max as i64;
        for _ in 0..self.far.len() {
            let Some(key) = self.far.pop_front() else {
                break;
            };
            let Some(watcher) = self.watchers.get(key).filter(|w| w.state == State::Far) else {
                continue;
            };
            let (next, stream) = (watcher.next, watcher.stream);
            let lowest = specs.first().map_or(i64::MIN, |s: &Spec| s.next);
            if specs.len() == watchers_max || next < lowest || next >= horizon {
                self.far.push_back(key);
            } else if !self.room(stream) {
                self.block(key);
            } else if next < compact_revision {
                self.end_compacted(key, compact_revision);
            } else if next > floor {
                self.watchers[key].state = State::Near;
                self.near.push(key);
                self.hub.pump.notify_one();
            } else {
                if specs.is_empty() {
                    horizon = next.saturating_add(revisions_max);
                }
                let watcher = &mut self.watchers[key];
                watcher.state = State::Reading;
                specs.push(Spec {
                    watcher: key,
                    span: watcher.span.clone(),
                    no_put: watcher.no_put,
                    no_delete: watcher.no_delete,
                    prev_kv: watcher.prev_kv,
                    next,
                    pieces: Vec::new(),
                });
            }
        }
        specs
    }

    pub(super) fn deliver_slice(
        &mut self,
        history: &impl History,
        specs: Vec<Spec>,
        slice: Result<Slice, HistoryError>,
    ) {
        for spec in specs {
            let key = spec.watcher;
            let Some(watcher) = self.watchers.get(key) else {
                continue;
            };
            if watcher.state != State::Reading {
                continue;
            }
            let (stream, header) = (watcher.stream, watcher.header.max(history.revision()));
            let slice = match &slice {
                Ok(slice) if spec.next <= slice.last => slice,
                // Not reached; or the view was too old, then the next one tells.
                Ok(_) | Err(HistoryError::Compacted) => {
                    self.watchers[key].state = State::Far;
                    self.far.push_back(key);
                    continue;
                }
                Err(HistoryError::Failed(why)) => {
                    self.end_failed(key, why.clone());
                    continue;
                }
            };
            if !spec.pieces.is_empty() {
                if !self.room(stream) {
                    self.block(key);
                    continue;
                }
                let pieces = slice.pieces(&spec, self.watchers[key].fragment);
                self.watchers[key].header = header;
                self.respond(key, header, pieces);
            }
            let watcher = &mut self.watchers[key];
            watcher.next = slice.last + 1;
            watcher.state = State::Near;
            self.near.push(key);
        }
    }

    /// History cannot be read: the client is told instead of being left without events.
    pub(super) fn end_failed(&mut self, key: Key, why: String) {
        let (stream, id) = (self.watchers[key].stream, self.watchers[key].id);
        self.retire(key);
        let frame = WatchFrame {
            revision: self.position,
            watch_id: id,
            canceled: true,
            cancel_reason: why.into(),
            ..WatchFrame::default()
        };
        self.push(stream, frame);
    }
}

/// Events read from history for a group of watchers, encoded once.
pub(super) struct Slice {
    /// Events without and with the previous version, each in order.
    buffers: [Bytes; 2],
    /// Every event up to this revision was looked at.
    last: i64,
}

impl Slice {
    /// Reads from the lowest `next` of the specs on and notes in each what it is to be sent.
    pub(super) fn read(
        history: &impl History,
        specs: &mut [Spec],
        options: &Options,
    ) -> Result<Slice, HistoryError> {
        let from = specs.iter().map(|s| s.next).min().unwrap_or(i64::MAX);
        let mut index = Index::default();
        for (i, spec) in specs.iter().enumerate() {
            index.insert(&spec.span, i);
        }
        let mut buffers = [BytesMut::new(), BytesMut::new()];
        let mut groups = Vec::new();
        let (mut revisions, mut counted) = (0, 0);
        let mut stopped = None;
        let mut failed = None;
        let end = history.events(from, options.catch_up_bytes, &mut |event| {
            let main = event.main();
            if revisions >= options.catch_up_revisions_max && main != counted {
                stopped = Some(main);
                return ControlFlow::Break(());
            }
            index.lookup(event.key(), &mut groups);
            // Per form: where this event was put, once someone wanted it.
            let mut put: [Option<Range<usize>>; 2] = [None, None];
            for &i in groups.iter().flat_map(|&group| index.members(group)) {
                let spec: &mut Spec = &mut specs[i];
                if spec.filters(event.kind()) || main < spec.next {
                    continue;
                }
                let form = usize::from(spec.prev_kv);
                let range = match &put[form] {
                    Some(range) => range.clone(),
                    None => match encode(event, spec.prev_kv, &mut buffers[form]) {
                        Ok(range) => range,
                        Err(why) => {
                            failed = Some(why);
                            return ControlFlow::Break(());
                        }
                    },
                };
                put[form] = Some(range.clone());
                spec.pieces.push(range);
                if main != counted {
                    counted = main;
                    revisions += 1;
                }
            }
            groups.clear();
            ControlFlow::Continue(())
        })?;
        if let Some(why) = failed {
            return Err(why);
        }
        let last = match stopped {
            Some(main) => main - 1,
            None if end.reached_end => history.revision(),
            None => end.next_main - 1,
        };
        Ok(Slice {
            buffers: buffers.map(BytesMut::freeze),
            last,
        })
    }

    /// The bytes for one watcher. Adjacent events become one piece, except where fragments must be
    /// able to part them; a small share of a large buffer is copied rather than keeping it alive.
    fn pieces(&self, spec: &Spec, apart: bool) -> Vec<Bytes> {
        let buffer = &self.buffers[usize::from(spec.prev_kv)];
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for range in &spec.pieces {
            match ranges.last_mut() {
                Some(last) if last.end == range.start && !apart => last.end = range.end,
                _ => ranges.push(range.clone()),
            }
        }
        let total: usize = ranges.iter().map(|r| r.len()).sum();
        if total >= buffer.len() / 4 {
            return ranges.into_iter().map(|r| buffer.slice(r)).collect();
        }
        let copy = ranges.into_iter();
        if apart {
            return copy.map(|r| Bytes::copy_from_slice(&buffer[r])).collect();
        }
        let mut own = BytesMut::with_capacity(total);
        copy.for_each(|r| own.extend_from_slice(&buffer[r]));
        vec![own.freeze()]
    }
}

/// Appends an event of history to a buffer; returns where it stands.
fn encode(
    event: &dyn PastEvent,
    with_prev: bool,
    buffer: &mut BytesMut,
) -> Result<Range<usize>, HistoryError> {
    let kv = event.kv()?;
    let prev = match with_prev {
        true => event.prev()?,
        false => None,
    };
    let start = buffer.len();
    let event = EventRef {
        kind: event.kind(),
        kv: frame::borrow(&kv),
        prev: prev.as_ref().map(frame::borrow),
    };
    frame::encode_event(event, buffer);
    Ok(start..buffer.len())
}
