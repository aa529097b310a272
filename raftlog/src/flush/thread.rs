//! Blocking writes in a thread of their own, for an owner that has other work meanwhile.
//!
//! A write waits here until the owner says that it will not wait for it ([`FlushThread::kick`]); an
//! owner that waits at once does it itself, which spares two switches between threads.

use super::Write;
use super::handover::{Answer, Handover};
use crate::buffer::Buffer;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Called from the flush thread whenever a write of it has ended.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

type Place = Handover<Write, io::Result<Vec<Buffer>>>;

pub(crate) struct FlushThread {
    /// Not given to the thread yet.
    held: Option<Write>,
    given: bool,
    place: Arc<Place>,
    waker: Arc<Mutex<Option<Waker>>>,
    thread: Option<JoinHandle<()>>,
}

/// Tells the owner when the thread ends, also by a panic.
struct Leaving(Arc<Place>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The write, on whatever thread this is.
pub(crate) fn write(write: Write) -> io::Result<Vec<Buffer>> {
    let parts: Vec<&[u8]> = write.parts().collect();
    write.file.write_durable(write.offset, &parts)?;
    Ok(write.buffers)
}

impl FlushThread {
    pub fn start() -> io::Result<FlushThread> {
        let place: Arc<Place> = Arc::new(Handover::new());
        let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
        let thread = {
            let (place, waker) = (place.clone(), waker.clone());
            std::thread::Builder::new()
                .name("raftlog-flush".into())
                .spawn(move || {
                    let _leaving = Leaving(place.clone());
                    while let Some(work) = place.next() {
                        place.done(write(work));
                        let wake = waker.lock().unwrap_or_else(|e| e.into_inner()).clone();
                        if let Some(wake) = wake {
                            wake();
                        }
                    }
                })?
        };
        Ok(FlushThread {
            held: None,
            given: false,
            place,
            waker,
            thread: Some(thread),
        })
    }

    pub fn set_waker(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(|e| e.into_inner()) = Some(waker);
    }

    pub fn is_busy(&self) -> bool {
        self.held.is_some() || self.given
    }

    pub fn hold(&mut self, write: Write) {
        self.held = Some(write);
    }

    /// The owner turns to other things: the thread does the write.
    pub fn kick(&mut self) {
        if let Some(write) = self.held.take() {
            self.given = true;
            self.place.give(write);
        }
    }

    pub fn finish(&mut self, block: bool) -> io::Result<Option<Vec<Buffer>>> {
        if let Some(held) = self.held.take() {
            if block {
                return write(held).map(Some);
            }
            self.held = Some(held);
            self.kick();
            return Ok(None);
        }
        if !self.given {
            return Ok(None);
        }
        let result = match self.place.collect(block) {
            Answer::Busy => return Ok(None),
            Answer::Nothing => unreachable!("a write was given"),
            Answer::Done(result) => result,
            Answer::Back(back) => write(back),
            Answer::Lost => Err(io::Error::other("the flush thread has died")),
        };
        self.given = false;
        result.map(Some)
    }
}

impl Drop for FlushThread {
    /// Waits for a write under way: the next opening must not meet it.
    fn drop(&mut self) {
        self.place.stop();
        if let Some(thread) = self.thread.take() {
            // A panic there has already been reported by its thread.
            let _ = thread.join();
        }
    }
}
