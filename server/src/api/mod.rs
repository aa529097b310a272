//! The services: requests in, responses or a status out.
//!
//! Handlers know neither HTTP/2 nor the runtime that drives them.

pub mod stream;
