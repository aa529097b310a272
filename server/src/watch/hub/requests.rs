//! What a client asks of its stream, and what it takes from it.

use super::*;

/// Room for responses that an idle stream keeps.
const IDLE_RESPONSES_MAX: usize = 8;

impl Act<'_> {
    pub(super) fn create(
        &mut self,
        stream: Key,
        request: &pb::WatchCreateRequest,
        seen: Seen,
        now: Instant,
    ) {
        let (id, span) = match self.admit(stream, request) {
            Ok(admitted) => admitted,
            Err(why) => return self.refuse(stream, why.into(), seen.revision),
        };
        self.push(
            stream,
            WatchFrame {
                revision: seen.revision,
                watch_id: id,
                created: true,
                ..WatchFrame::default()
            },
        );
        let start = match request.start_revision {
            0 => seen.revision + 1,
            start => start,
        };
        let filter =
            |f: pb::watch_create_request::FilterType| request.filters.contains(&(f as i32));
        let key = self.watchers.insert(Watcher {
            stream,
            id,
            span,
            no_put: filter(pb::watch_create_request::FilterType::Noput),
            no_delete: filter(pb::watch_create_request::FilterType::Nodelete),
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            progress_due: true,
            start,
            next: start,
            header: seen.revision,
            state: State::Near,
            mark: UNMARKED,
        });
        self.add_live(key);
        self.streams[stream].watchers.insert(id, key);
        if start < seen.compact_revision {
            self.end_compacted(key, seen.compact_revision);
        } else if start > seen.revision && start > self.position {
            self.sync(key);
        } else {
            self.near.push(key);
            self.serve_near_soon();
        }
        if request.progress_notify {
            self.start_ticking(stream, now);
        }
    }

    /// Checks a create request and reserves its id.
    pub(super) fn admit(
        &mut self,
        stream: Key,
        request: &pb::WatchCreateRequest,
    ) -> Result<(i64, Span), &'static str> {
        let span = Span::from_request(request.key.clone(), request.range_end.clone())
            .ok_or(reason::EMPTY_RANGE)?;
        if request.start_revision < 0 {
            return Err(reason::COMPACTED);
        }
        let stream = &mut self.streams[stream];
        if request.watch_id != 0 {
            return match stream.watchers.contains_key(&request.watch_id) {
                true => Err(reason::DUPLICATE_ID),
                false => Ok((request.watch_id, span)),
            };
        }
        while stream.watchers.contains_key(&stream.next_id) {
            stream.next_id += 1;
        }
        stream.next_id += 1;
        Ok((stream.next_id - 1, span))
    }

    pub(super) fn refuse(&mut self, stream: Key, why: Cow<'static, str>, revision: i64) {
        self.push(
            stream,
            WatchFrame {
                revision,
                watch_id: -1,
                created: true,
                canceled: true,
                cancel_reason: why,
                ..WatchFrame::default()
            },
        );
    }

    pub(super) fn cancel(&mut self, stream: Key, id: i64, revision: i64) {
        let Some(key) = self.streams[stream].watchers.remove(&id) else {
            return;
        };
        self.retire(key);
        self.watchers.remove(key);
        self.push(
            stream,
            WatchFrame {
                revision,
                watch_id: id,
                canceled: true,
                ..WatchFrame::default()
            },
        );
        self.answer_progress();
    }

    pub(super) fn progress(&mut self, stream: Key, revision: i64) {
        let target = &mut self.streams[stream].progress;
        let waiting = target.is_some();
        // One answer at the later revision serves both requests.
        *target = Some(target.map_or(revision, |t| t.max(revision)));
        if !waiting {
            self.inner_mut().progress.push(stream);
        }
        self.answer_progress();
        if self.position < revision {
            self.hub.pump.notify_one();
        }
    }

    pub(super) fn close(&mut self, stream: Key) {
        let Some(closed) = self.streams.remove(stream) else {
            return;
        };
        for key in closed.watchers.into_values() {
            self.retire(key);
            self.watchers.remove(key);
        }
        self.hub.streams.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn inner_mut(&mut self) -> &mut Inner {
        self
    }

    pub(super) fn take(
        &mut self,
        key: Key,
        max: usize,
        out: &mut Vec<WatchFrame>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let options = self.hub.feed.options();
        let inner = self.inner.as_mut().expect("held until drop");
        let Inner {
            streams,
            watchers,
            near,
            ..
        } = &mut **inner;
        let stream = &mut streams[key];
        if stream.queue.is_empty() {
            stream.taker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = stream.queue.len().min(max);
        for frame in stream.queue.drain(..count) {
            stream.bytes -= frame.weight();
            out.push(frame);
        }
        if stream.queue.is_empty() && stream.queue.capacity() > IDLE_RESPONSES_MAX {
            stream.queue = VecDeque::new();
        }
        let mut pump = stream.progress.is_some();
        if stream.half_empty(options) {
            self.wakers.extend(stream.requester.take());
            pump |= !stream.blocked.is_empty();
            for key in stream.blocked.drain(..) {
                let watcher = watchers.get_mut(key);
                if let Some(watcher) = watcher.filter(|w| w.state == State::Blocked) {
                    watcher.state = State::Near;
                    near.push(key);
                }
            }
        }
        if pump {
            self.hub.pump.notify_one();
        }
        Poll::Ready(())
    }
}

/// The server's side of one watch call.
pub struct WatchStream {
    pub(super) hub: Arc<Hub>,
    pub(super) key: Key,
}

impl WatchStream {
    /// Creates a watch and queues the answer. `seen` is the newest view of the moment, `now` starts
    /// the stream's progress ticker.
    pub fn create(&self, request: &pb::WatchCreateRequest, seen: Seen, now: Instant) {
        self.hub.act().create(self.key, request, seen, now);
    }

    /// Answers a create request that may not be served.
    pub fn refuse(&self, why: Cow<'static, str>, seen: Seen) {
        self.hub.act().refuse(self.key, why, seen.revision);
    }

    /// Ends a watch; nothing of it follows the answer. An unknown id is not answered.
    pub fn cancel(&self, watch_id: i64, seen: Seen) {
        self.hub.act().cancel(self.key, watch_id, seen.revision);
    }

    /// Asks for a progress response once every watch of the stream has everything up to
    /// `seen.revision`.
    pub fn progress(&self, seen: Seen) {
        self.hub.act().progress(self.key, seen.revision);
    }

    /// Appends up to `max` queued responses to `out`, waiting for the first. One waiter at a time.
    pub async fn take(&self, max: usize, out: &mut Vec<WatchFrame>) {
        poll_fn(|cx| self.poll_take(max, out, cx)).await;
    }

    /// As `take`, for callers that poll.
    pub fn poll_take(
        &self,
        max: usize,
        out: &mut Vec<WatchFrame>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.hub.act().take(self.key, max, out, cx)
    }

    /// Waits until the stream has room for the answer to another request. One waiter at a time.
    pub async fn room(&self) {
        poll_fn(|cx| {
            let mut inner = self.hub.lock();
            let stream = &mut inner.streams[self.key];
            if stream.has_room(self.hub.feed.options()) {
                return Poll::Ready(());
            }
            stream.requester = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.hub.act().close(self.key);
    }
}
