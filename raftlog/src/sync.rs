//! The locks of the modules whose hand-overs are modelled, in one place.
//!
//! `tests/loom` compiles those modules a second time with loom's in their stead, and tries every
//! interleaving. So they name these, and nothing of `std::sync` directly.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
