//! Versions of keys: reading at any revision, changing in transactions, publishing whole states.

mod publish;
pub(crate) mod reader;
mod shards;
mod state;
mod txn;
mod view;
mod writer;

pub use publish::Engine;
pub use txn::Txn;
pub use view::{EventRef, View};
pub use writer::{Published, Writer};

pub(crate) use state::Meta;
