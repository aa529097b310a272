//! E: history as an append-only log of self-contained events.

mod append_buf;
pub(crate) mod chunk;
pub(crate) mod log;
pub(crate) mod scan;
