//! Where time comes from, so that what depends on it can be driven by hand.

use std::time::Instant;

/// A clock that never goes back.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Instant;
}

/// The runtime's clock: the operating system's monotonic one, unless a runtime under test has paused
/// it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuntimeClock;

impl Clock for RuntimeClock {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// A clock that stands still until it is moved.
#[cfg(test)]
#[derive(Debug)]
pub struct ManualClock(std::sync::Mutex<Instant>);

#[cfg(test)]
impl Default for ManualClock {
    fn default() -> ManualClock {
        ManualClock(std::sync::Mutex::new(Instant::now()))
    }
}

#[cfg(test)]
impl ManualClock {
    /// Moves time on.
    pub fn advance(&self, by: std::time::Duration) {
        *self.0.lock().unwrap() += by;
    }
}

#[cfg(test)]
impl Clock for ManualClock {
    fn now(&self) -> Instant {
        *self.0.lock().unwrap()
    }
}
