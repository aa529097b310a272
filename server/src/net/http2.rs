//! Drives one HTTP/2 connection: reads once, lets every call that can go on do so, writes once.
//!
//! Calls are polled by the connection itself: one that can be answered at once, as most can, costs no
//! task and no wake. One that has to wait is named by its waker when it can go on.
//!
//! Invariants:
//! 1. What arrived with one read is taken in before any call is polled, and what all polled calls answer
//!    leaves with one write.
//! 2. A call is dropped when it has answered, when the client gives it up, and with the connection.
//! 3. While more than [`HELD_BYTES_MAX`] are unsent no further call begins; while the socket takes no
//!    more nothing is read.
//! 4. A quiet connection holds no buffer: they are borrowed from the thread.
//! 5. A call that panics is reset, and costs the others nothing.

use super::h2::{self, Event, Failed, Pings, Reason, Resets};
use super::server::Settings;
use super::stream::Rewound;
use super::{App, Connection};
use bytes::Bytes;
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Streams a connection may have open, whatever the flag says: each costs some kilobytes.
const STREAMS_MAX: u32 = 32_768;
/// Bytes of one stream's request that may be on their way.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes of request headers.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// A connection with this much unsent begins no further call.
const HELD_BYTES_MAX: usize = 16 << 20;
/// Bytes of one read. A frame is at most a quarter of it.
const READ_BYTES: usize = 64 << 10;
/// A buffer larger than this is not kept for the next connection.
const KEPT_BYTES_MAX: usize = 512 << 10;
/// Slots that a connection without calls keeps.
const SLOTS_KEPT: usize = 128;
/// Slices of one write.
const SLICES_MAX: usize = 32;
/// Reads, and rounds of calls, before other connections of the thread have their turn.
const ROUNDS_MAX: usize = 8;
/// How long the rest of a request is read after its answer.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// Marks our question whether the client lives.
const ALIVE_PING: [u8; 8] = *b"are you?";

/// One request and its answer, as the connection sees them.
pub trait Exchange: Send + 'static {
    /// A part of the request has come; `end` with the last one, which may be empty.
    fn data(&mut self, bytes: &[u8], end: bool);

    /// Goes on with the call. Ready once the answer was given to its end. Called after the request began,
    /// after parts of it came, when the waker was used, and when nothing of the answer waits any more.
    fn poll(&mut self, cx: &mut Context<'_>, answer: &mut Answer<'_>) -> Poll<()>;
}

/// Where an answer goes. Header blocks are encoded already.
pub struct Answer<'a> {
    http2: &'a mut h2::Connection,
    slot: u32,
    waits_for_room: &'a mut Vec<u32>,
}

impl Answer<'_> {
    /// The headers; `end` when they are all of the answer.
    pub fn headers(&mut self, block: &[u8], end: bool) {
        self.http2.headers(self.slot, block, end);
    }

    /// A part of the body.
    pub fn data(&mut self, piece: Bytes) {
        self.http2.data(self.slot, piece);
    }

    /// The end, with trailers.
    pub fn trailers(&mut self, block: &[u8]) {
        self.http2.trailers(self.slot, block);
    }

    /// The end, without trailers.
    pub fn finish(&mut self) {
        self.http2.finish(self.slot);
    }

    /// Headers, body and trailers at once, if it is small and windows allow; else nothing is sent.
    pub fn whole(&mut self, headers: &[u8], body: &[&[u8]], trailers: &[u8]) -> bool {
        self.http2.whole(self.slot, headers, body, trailers)
    }

    /// Whether something of the answer waits for the client. Then no more should be made.
    pub fn is_behind(&mut self) -> bool {
        self.http2.queued_in(self.slot) > 0
    }

    /// So many bytes of the request are done with; the client may send as many more.
    pub fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            self.http2.release(self.slot, bytes);
        }
    }

    /// Whether the call may begin its work. If not, it is polled when it may.
    pub fn may_begin(&mut self) -> bool {
        let may = self.http2.unsent() < HELD_BYTES_MAX;
        if !may {
            self.waits_for_room.push(self.slot);
        }
        may
    }
}

/// Calls whose wakers were used.
#[derive(Default)]
struct Woken {
    inner: Mutex<WokenInner>,
}

#[derive(Default)]
struct WokenInner {
    slots: Vec<u32>,
    task: Option<Waker>,
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, WokenInner> {
        self.inner.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// The waker of the call in a slot, whichever it is: one meant for a call before does no harm.
struct CallWaker {
    slot: u32,
    used: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.used.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut woken = self.woken.lock();
        woken.slots.push(self.slot);
        let task = match woken.slots.len() {
            1 => woken.task.clone(),
            _ => None,
        };
        drop(woken);
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// What belongs to a slot.
struct Slot<E> {
    call: Option<E>,
    /// In the list of those to be polled.
    is_ready: bool,
    waker: Waker,
    used: Arc<CallWaker>,
}

thread_local! {
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static WRITE_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// How it stands with the client's silence.
#[derive(Clone, Copy, Debug)]
enum Alive {
    /// Heard of lately.
    Heard,
    /// Asked at this time.
    Asked(Instant),
}

/// One connection.
pub(super) struct Driver<A: App> {
    io: Rewound,
    app: Arc<A>,
    connection: Arc<Connection>,
    http2: h2::Connection,
    slots: Vec<Slot<A::Exchange>>,
    woken: Arc<Woken>,
    /// Slots to be polled.
    ready: Vec<u32>,
    spare: Vec<u32>,
    waits_for_room: Vec<u32>,
    /// The beginning of a frame.
    rest: Vec<u8>,
    /// What the last head means.
    route: Option<A::Route>,
    pings: Pings,
    resets: Resets,
    keepalive: Option<(Duration, Duration)>,
    alive: Alive,
    last_read: Instant,
    linger_at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    failed: Option<Failed>,
}

impl<A: App> Driver<A> {
    pub(super) fn new(
        io: Rewound,
        app: Arc<A>,
        connection: Arc<Connection>,
        settings: &Settings,
    ) -> Driver<A> {
        let interval = settings.keepalive_interval;
        Driver {
            io,
            app,
            connection,
            http2: h2::Connection::new(h2::Limits {
                streams_max: settings.concurrent_streams_max.min(STREAMS_MAX),
                stream_window: STREAM_WINDOW_BYTES,
                connection_window: CONNECTION_WINDOW_BYTES,
                header_list_bytes_max: HEADER_BYTES_MAX,
            }),
            slots: Vec::new(),
            woken: Arc::default(),
            ready: Vec::new(),
            spare: Vec::new(),
            waits_for_room: Vec::new(),
            rest: Vec::new(),
            route: None,
            pings: Pings::new(settings.keepalive_min_time),
            resets: Resets::default(),
            keepalive: (!interval.is_zero()).then_some((interval, settings.keepalive_timeout)),
            alive: Alive::Heard,
            last_read: Instant::now(),
            linger_at: None,
            timer: None,
            failed: None,
        }
    }

    /// Tells the client to begin no more.
    pub(super) fn drain(&mut self) {
        self.http2.drain();
    }

    /// Serves until the connection ends.
    pub(super) async fn serve(&mut self) -> io::Result<()> {
        // The budget of the runtime is meant for tasks of one call; the rounds here are bounded.
        tokio::task::unconstrained(poll_fn(|cx| self.poll(cx))).await
    }

    /// Lets the client read why the connection ended: closing with unread input would discard it.
    pub(super) async fn part(&mut self) {
        self.slots = Vec::new();
        let shut = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
        if shut.is_err() {
            return;
        }
        let mut sink = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut sink);
            let read = poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut buffer)).await;
            if read.is_err() || buffer.filled().is_empty() {
                return;
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut woken = self.woken.lock();
            if !woken.task.as_ref().is_some_and(|t| t.will_wake(cx.waker())) {
                woken.task = Some(cx.waker().clone());
            }
        }
        self.http2.output().lend(WRITE_BUFFER.take());
        let polled = self.poll_rounds(cx);
        if let Some(buffer) = self.http2.output().take_back()
            && buffer.capacity() <= KEPT_BYTES_MAX
        {
            WRITE_BUFFER.set(buffer);
        }
        match polled {
            Poll::Pending => self.poll_timer(cx),
            ended => ended,
        }
    }

    fn poll_rounds(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS_MAX {
            let mut read = false;
            let clogged = self.http2.is_clogged();
            if self.failed.is_none() && !clogged {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(_)) => read = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {}
                }
            }
            let mut more = true;
            let mut rounds = 0;
            while more && rounds < ROUNDS_MAX {
                more = self.poll_calls();
                rounds += 1;
            }
            let written = self.poll_write(cx)?;
            if written.is_ready() {
                if let Some(failed) = self.failed.take() {
                    return Poll::Ready(Err(io::Error::other(failed)));
                }
                if self.http2.is_drained() {
                    return Poll::Ready(Ok(()));
                }
                // What waited for room in the output goes on.
                read |= self.poll_calls_after_write();
            }
            read |= clogged && !self.http2.is_clogged();
            if !read && !more {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and takes in all whole frames. Returns how many bytes were read.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = READ_BUFFER.take();
        buffer.resize(READ_BYTES, 0);
        let before = self.rest.len();
        buffer[..before].copy_from_slice(&self.rest);
        let mut unread = ReadBuf::new(&mut buffer[before..]);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut unread);
        let n = unread.filled().len();
        if n > 0 {
            self.last_read = Instant::now();
            let mut input = &buffer[..before + n];
            self.take_in(&mut input);
            // Most reads end with a frame.
            self.rest.clear();
            match input.is_empty() {
                true => self.rest = Vec::new(),
                false => self.rest.extend_from_slice(input),
            }
        }
        READ_BUFFER.set(buffer);
        polled.map_ok(|()| n)
    }

    fn take_in(&mut self, input: &mut &[u8]) {
        while self.failed.is_none() {
            let event = match self.http2.next(input) {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(failed) => {
                    self.failed = Some(failed);
                    break;
                }
            };
            match event {
                Event::Request { slot, repeated, .. } => self.begin(slot, repeated),
                Event::Data { slot, bytes, end } => {
                    self.http2.release_connection(bytes.len());
                    if let Some(Slot {
                        call: Some(call), ..
                    }) = self.slots.get_mut(slot as usize)
                    {
                        call.data(bytes, end);
                        self.make_ready(slot);
                    }
                }
                Event::Reset { slot } => {
                    self.slots[slot as usize].call = None;
                    if !self.resets.allows(self.last_read.into_std()) {
                        self.fail("too_many_resets");
                    }
                }
                Event::Ping => {
                    let answered = self.http2.take_answered();
                    let calls = self.http2.streams() > 0;
                    let now = self.last_read.into_std();
                    if !self.pings.allows(now, answered, calls) {
                        self.fail("too_many_pings");
                    }
                }
                Event::Pong => {}
            }
        }
        // Nothing behind a failure is looked at.
        *input = &[];
        self.slots.iter_mut().for_each(|slot| slot.call = None);
    }

    fn fail(&mut self, text: &'static str) {
        let failed = Failed {
            reason: Reason::EnhanceYourCalm,
            text,
        };
        self.http2.fail(failed);
        self.failed = Some(failed);
    }

    fn begin(&mut self, slot: u32, repeated: bool) {
        let at = slot as usize;
        while self.slots.len() <= at {
            let used = Arc::new(CallWaker {
                slot: self.slots.len() as u32,
                used: AtomicBool::new(false),
                woken: self.woken.clone(),
            });
            self.slots.push(Slot {
                call: None,
                is_ready: false,
                waker: Waker::from(used.clone()),
                used,
            });
        }
        let route = match &mut self.route {
            Some(route) if repeated => route,
            route => route.insert(self.app.route(&self.http2.head(), self.connection.role)),
        };
        self.slots[at].call = Some(self.app.begin(route, &self.connection));
        self.make_ready(slot);
    }

    fn make_ready(&mut self, slot: u32) {
        if let Some(this) = self.slots.get_mut(slot as usize)
            && !std::mem::replace(&mut this.is_ready, true)
        {
            self.ready.push(slot);
        }
    }

    /// Polls every call that can go on, once. Returns whether there are more by now.
    fn poll_calls(&mut self) -> bool {
        self.take_woken();
        if !self.waits_for_room.is_empty() && self.http2.unsent() < HELD_BYTES_MAX {
            for slot in std::mem::take(&mut self.waits_for_room) {
                self.make_ready(slot);
            }
        }
        let ready = std::mem::replace(&mut self.ready, std::mem::take(&mut self.spare));
        for slot in &ready {
            self.poll_call(*slot);
        }
        self.spare = ready;
        self.spare.clear();
        self.pump();
        if self.slots.len() > SLOTS_KEPT && self.http2.streams() == 0 {
            self.slots = Vec::new();
            (self.ready, self.spare) = (Vec::new(), Vec::new());
        }
        !self.ready.is_empty() || !self.woken.lock().slots.is_empty()
    }

    /// Room in the output lets waiting answers go on; returns whether any did.
    fn poll_calls_after_write(&mut self) -> bool {
        let before = self.http2.output().len();
        self.pump();
        let may_begin = !self.waits_for_room.is_empty() && self.http2.unsent() < HELD_BYTES_MAX;
        !self.ready.is_empty() || may_begin || self.http2.output().len() > before
    }

    fn pump(&mut self) {
        let (slots, ready) = (&mut self.slots, &mut self.ready);
        self.http2.pump(|slot| {
            let is_ready = &mut slots[slot as usize].is_ready;
            if !std::mem::replace(is_ready, true) {
                ready.push(slot);
            }
        });
    }

    fn take_woken(&mut self) {
        let mut woken = self.woken.lock();
        for slot in woken.slots.drain(..) {
            // A waker may outlive its slot.
            let Some(this) = self.slots.get_mut(slot as usize) else {
                continue;
            };
            this.used.used.store(false, Ordering::Release);
            if !std::mem::replace(&mut this.is_ready, true) {
                self.ready.push(slot);
            }
        }
    }

    fn poll_call(&mut self, slot: u32) {
        let Some(this) = self.slots.get_mut(slot as usize) else {
            return;
        };
        this.is_ready = false;
        let Some(call) = &mut this.call else {
            return;
        };
        let mut answer = Answer {
            http2: &mut self.http2,
            slot,
            waits_for_room: &mut self.waits_for_room,
        };
        let mut cx = Context::from_waker(&this.waker);
        let polled = catch_unwind(AssertUnwindSafe(|| call.poll(&mut cx, &mut answer)));
        match polled {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(())) => this.call = None,
            Err(_) => {
                this.call = None;
                self.http2.reset(slot, Reason::Internal);
            }
        }
    }

    /// Ready when nothing waits any more.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        let out = self.http2.output();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = out.slices(&mut slices);
            match Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => out.written(n),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// What is due by the clock. Looks at the timer only when it can have fired.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger_at.is_none() && self.http2.has_lingering() {
            self.linger_at = Some(Instant::now() + LINGER_TIME);
        } else if self
            .timer
            .as_ref()
            .is_some_and(|timer| Instant::now() < timer.deadline())
            && self.linger_at.is_none()
        {
            return Poll::Pending;
        }
        loop {
            let now = Instant::now();
            if self.linger_at.is_some_and(|at| at <= now) {
                self.linger_at = match self.http2.end_lingering() {
                    true => Some(now + LINGER_TIME),
                    false => None,
                };
            }
            let alive_at = match self.poll_alive(now) {
                Ok(at) => at,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if let Poll::Ready(Err(error)) = self.poll_write(cx).map_or_else(
                |error| Poll::Ready(Err(error)),
                |polled| polled.map(Ok::<(), io::Error>),
            ) {
                return Poll::Ready(Err(error));
            }
            let Some(next) = alive_at.into_iter().chain(self.linger_at).min() else {
                return Poll::Pending;
            };
            let timer = match &mut self.timer {
                Some(timer) => {
                    if timer.deadline() != next {
                        timer.as_mut().reset(next);
                    }
                    timer
                }
                none => none.insert(Box::pin(tokio::time::sleep_until(next))),
            };
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Asks a silent client whether it lives; fails when it does not say so in time. Returns when to look
    /// again.
    fn poll_alive(&mut self, now: Instant) -> io::Result<Option<Instant>> {
        let Some((interval, timeout)) = self.keepalive else {
            return Ok(None);
        };
        if let Alive::Asked(at) = self.alive {
            if self.last_read <= at {
                if now >= at + timeout {
                    let text = "the client does not answer";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                return Ok(Some(at + timeout));
            }
            self.alive = Alive::Heard;
        }
        if now >= self.last_read + interval {
            self.alive = Alive::Asked(now);
            self.http2.ping(ALIVE_PING);
            return Ok(Some(now + timeout));
        }
        Ok(Some(self.last_read + interval))
    }
}
