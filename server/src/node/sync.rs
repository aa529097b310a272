//! The locks and wake-ups of the hand-overs between calls and the node thread, in one place.
//!
//! `tests/loom` compiles those modules a second time with loom's in their stead, and tries every
//! interleaving. So they name these, and nothing of the libraries directly.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use tokio::sync::{Notify, oneshot};
