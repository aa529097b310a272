//! Every interleaving of the way of a call to the node thread and back, by loom: the mailbox that
//! carries it there, the completions that carry its result, and the end of the node in between.
//!
//! The two modules themselves are compiled here once more, over loom's locks; no compiler flag is
//! needed. What a call and the node thread do with them is played as `NodeHandle` and `NodeLoop` do it.

#![allow(dead_code)]

#[path = "../../src/node/completions.rs"]
mod completions;
#[path = "../../src/node/mailbox.rs"]
mod mailbox;
mod models;
mod sync;

/// What the modules name of the crate.
mod apply {
    pub use quorate::apply::Reply;
}
mod status {
    pub use quorate::status::{Status, errors};
}
