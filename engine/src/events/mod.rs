//! E: history as an append-only log of self-contained events.

pub(crate) mod append_buf;
mod cells;
pub(crate) mod chunk;
pub(crate) mod log;
pub(crate) mod scan;
