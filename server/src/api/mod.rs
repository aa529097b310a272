//! The services: requests in, responses or a status out.
//!
//! Handlers know neither HTTP/2 nor the runtime that drives them.

pub mod context;
pub mod reply;
pub mod stream;

pub use context::RequestCtx;
pub use reply::{Encoded, Reply};
