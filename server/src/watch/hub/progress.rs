//! Promises that everything up to a revision was sent: asked for, or by the clock.

use super::*;

pub(super) enum Verdict {
    Answer,
    Wait,
    Drop,
}

impl Act<'_> {
    pub(super) fn answer_progress(&mut self) {
        if self.progress.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.progress);
        for key in waiting {
            match self.progress_verdict(key) {
                Verdict::Wait => self.progress.push(key),
                Verdict::Drop => self.clear_progress(key),
                Verdict::Answer => {
                    self.clear_progress(key);
                    let frame = WatchFrame {
                        revision: self.position,
                        watch_id: -1,
                        ..WatchFrame::default()
                    };
                    self.push(key, frame);
                }
            }
        }
    }

    pub(super) fn clear_progress(&mut self, stream: Key) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.progress = None;
        }
    }

    /// What a waiting progress request of a stream is due (6W.12).
    pub(super) fn progress_verdict(&self, stream: Key) -> Verdict {
        let position = self.position;
        let Some(stream) = self.streams.get(stream) else {
            return Verdict::Drop;
        };
        let Some(target) = stream.progress.filter(|_| stream.live > 0) else {
            return Verdict::Drop;
        };
        if position < target || stream.unsynced > 0 || !stream.has_room(self.options()) {
            return Verdict::Wait;
        }
        let mut verdict = Verdict::Answer;
        for &key in stream.watchers.values() {
            let watcher = &self.watchers[key];
            if watcher.state == State::Dead || watcher.progresses(position) {
                continue;
            }
            if watcher.start > position {
                // A watch of the future: etcd drops the request, and the client asks again.
                return Verdict::Drop;
            }
            verdict = Verdict::Wait;
        }
        verdict
    }

    pub(super) fn start_ticking(&mut self, key: Key, now: Instant) {
        let interval = self.options().progress_interval;
        let stream = &mut self.streams[key];
        if std::mem::replace(&mut stream.ticking, true) {
            return;
        }
        let due = now + spread(interval, stream.serial);
        self.ticks.push(Reverse((due, key)));
        self.hub.pump.notify_one();
    }

    /// One tick of a stream (6W.11).
    pub(super) fn notify_progress(&mut self, key: Key, now: Instant) {
        let position = self.position;
        let interval = self.options().progress_interval;
        let Some(stream) = self.streams.get(key) else {
            return;
        };
        let serial = stream.serial;
        let keys: Vec<Key> = stream.watchers.values().copied().collect();
        let mut ticking = false;
        for watcher in keys {
            let room = self.room(key);
            let watcher = &mut self.watchers[watcher];
            if !watcher.progress_notify || watcher.state == State::Dead {
                continue;
            }
            ticking = true;
            let due = std::mem::replace(&mut watcher.progress_due, true);
            if due && room && watcher.progresses(position) {
                let frame = WatchFrame {
                    revision: position,
                    watch_id: watcher.id,
                    ..WatchFrame::default()
                };
                self.push(key, frame);
            }
        }
        self.streams[key].ticking = ticking;
        if ticking {
            self.ticks
                .push(Reverse((now + spread(interval, serial), key)));
        }
    }
}

/// The interval with up to 10 % added, by a hash of the stream's number: restarted clients do not
/// stay in step, and runs repeat.
fn spread(interval: std::time::Duration, serial: u64) -> std::time::Duration {
    let mut x = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let tenth = (x >> 40) as f64 / (1u64 << 24) as f64 / 10.0;
    interval + interval.mul_f64(tenth)
}
