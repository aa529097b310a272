//! Random histories against a model that is too simple to be wrong, and what goes on beside requests.

mod append_buf;
mod defrag;
mod full;
mod long;
pub(crate) mod loopback;
mod model;
mod random;
mod scrub;
mod transfer;
