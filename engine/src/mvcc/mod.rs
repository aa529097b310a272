//! Versions of keys: reading at any revision, changing in transactions, publishing whole states.

pub(crate) mod history_pins;
pub(crate) mod long;
mod publish;
pub(crate) mod reader;
mod shards;
mod state;
mod txn;
mod view;
mod writer;

pub use long::{LongHistory, LongRead};
pub use publish::Engine;
pub use txn::Txn;
pub use view::{EventRef, View};
pub use writer::{Published, Writer};

pub(crate) use state::Meta;
