//! The end: what happens when a write or sync fails.
//!
//! After a failed sync the kernel may mark pages clean that never reached the disk, and later
//! syncs succeed: nothing can be retried, nothing may be acknowledged. The process prints a last
//! line and aborts; recovery then reads the medium, not the cache.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Called with the last line. If it returns (only tests let it), the log is poisoned: it
/// acknowledges nothing any more.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// The hook and whether it was called.
pub(crate) struct Fatal {
    hook: Mutex<FatalHook>,
    poisoned: AtomicBool,
}

impl Fatal {
    pub fn new() -> Fatal {
        Fatal {
            hook: Mutex::new(Arc::new(print_and_abort)),
            poisoned: AtomicBool::new(false),
        }
    }

    pub fn set(&self, hook: FatalHook) {
        *self.hook.lock().unwrap_or_else(|e| e.into_inner()) = hook;
    }

    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    pub fn call(&self, what: &str) {
        self.poisoned.store(true, Ordering::Release);
        let hook = self.hook.lock().unwrap_or_else(|e| e.into_inner()).clone();
        hook(&format!(
            "raft log: fatal: {what}. Nothing that was not durable has been acknowledged. Check \
             the disk and the kernel's log, then start again"
        ));
    }
}

impl fmt::Debug for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fatal(poisoned: {})", self.is_poisoned())
    }
}

fn print_and_abort(line: &str) {
    eprintln!("{line}");
    std::process::abort();
}
