//! The storage engine.

/// The shared engine handle.
#[derive(Clone)]
pub struct Engine;
