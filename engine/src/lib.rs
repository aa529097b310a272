//! The storage engine.

pub(crate) mod store;

/// The shared engine handle.
#[derive(Clone)]
pub struct Engine;
