//! Watches: every change of the watched keys, in order, to whoever asked, without end.
//!
//! The node thread appends each published batch of events to the [`Feed`], one ring shared by all.
//! Each network thread has a [`Hub`] that knows the streams and watchers of its connections and hands
//! them what the ring gained. A watcher is *synced* when it has everything up to the hub's position;
//! it sits in an index by key and range and costs nothing while nothing happens to its keys. A
//! watcher that asks for the past, or whose stream is full, is *unsynced*: it is served in bounded
//! slices from the ring as far as that reaches back and else from a view of the engine, off the hub's
//! lock and off the network thread, until it has caught up.
//!
//! Invariants, per watch:
//! 1. Events are delivered in revision order from the start revision on: none missing, none twice.
//! 2. All events of a revision are in one response, or in contiguous fragments when those were asked
//!    for.
//! 3. Nothing but compaction and the client ends it. A client that reads slowly holds a bounded number
//!    of responses and bytes and catches up from history; it costs nobody else anything.
//! 4. A progress response with revision R stands in the stream behind every event up to R.
//!
//! The hub is sans-io: [`Hub::pump`], [`Hub::catch_up`] and [`Hub::tick`] are called by [`drive`] in
//! a server and by the simulation directly.

mod drive;
mod feed;
mod frame;
mod history;
mod hub;
mod index;
mod slots;
#[cfg(test)]
mod tests;

pub use drive::drive;
pub use feed::{Feed, Marks, Options};
pub use frame::{EventRef, Pieces, WatchFrame, WatchReply, reason};
pub use history::{History, HistoryError, PastEvent};
pub use hub::{Hub, HubStats, Seen, WatchStream};
