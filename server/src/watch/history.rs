//! The states of the store that catching up reads.

use engine::{EventKind, EventsEnd, KeyValue};
use std::ops::ControlFlow;

/// Why history could not be read.
#[derive(Debug)]
pub enum HistoryError {
    /// It begins above the revision asked for.
    Compacted,
    /// The engine failed.
    Failed(String),
}

/// An immutable state of the store whose events can be read.
pub trait History {
    /// Its revision.
    fn revision(&self) -> i64;
    /// Its compact revision, -1 before the first compaction.
    fn compact_revision(&self) -> i64;
    /// Calls `f` with the events from revision `from` on, in order, until `f` breaks, the revision
    /// that passes `bytes_max` is complete, or there are no more.
    fn events(
        &self,
        from: i64,
        bytes_max: usize,
        f: &mut dyn FnMut(&dyn PastEvent) -> ControlFlow<()>,
    ) -> Result<EventsEnd, HistoryError>;
}

/// An event of history whose values are read when asked for.
pub trait PastEvent {
    /// Its revision.
    fn main(&self) -> i64;
    /// Put or delete.
    fn kind(&self) -> EventKind;
    /// The key that changed.
    fn key(&self) -> &[u8];
    /// The new version; of a delete only key and mod revision.
    fn kv(&self) -> Result<KeyValue, HistoryError>;
    /// The version before, unless there was none or it can no longer be read.
    fn prev(&self) -> Result<Option<KeyValue>, HistoryError>;
}

impl From<engine::Error> for HistoryError {
    fn from(error: engine::Error) -> HistoryError {
        match error {
            engine::Error::Compacted => HistoryError::Compacted,
            other => HistoryError::Failed(other.to_string()),
        }
    }
}

impl PastEvent for engine::EventRef<'_> {
    fn main(&self) -> i64 {
        self.revision().main
    }
    fn kind(&self) -> EventKind {
        engine::EventRef::kind(self)
    }
    fn key(&self) -> &[u8] {
        engine::EventRef::key(self)
    }
    fn kv(&self) -> Result<KeyValue, HistoryError> {
        Ok(engine::EventRef::kv(self)?)
    }
    fn prev(&self) -> Result<Option<KeyValue>, HistoryError> {
        Ok(engine::EventRef::prev(self)?)
    }
}

impl History for engine::View {
    fn revision(&self) -> i64 {
        engine::View::revision(self)
    }
    fn compact_revision(&self) -> i64 {
        engine::View::compact_revision(self)
    }
    fn events(
        &self,
        from: i64,
        bytes_max: usize,
        f: &mut dyn FnMut(&dyn PastEvent) -> ControlFlow<()>,
    ) -> Result<EventsEnd, HistoryError> {
        Ok(engine::View::events(self, from, bytes_max, &mut |event| {
            f(&event)
        })?)
    }
}
