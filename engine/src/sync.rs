//! The locks and counters of the modules whose hand-overs are modelled, in one place.
//!
//! `tests/loom.rs` compiles those modules a second time with loom's in their stead, and tries every interleaving. So they
//! name these, and nothing of `std::sync` directly.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};
