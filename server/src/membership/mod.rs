//! Who belongs to the cluster: ids, the member records in the store, and the verdict on a change.
//!
//! Invariants:
//! 1. Ids are derived exactly as etcd derives them, so a data directory, a peer or a tool of etcd
//!    computes the same ones.
//! 2. The verdict on a configuration change is a function of the member records and the change alone,
//!    so all members accept or refuse it alike. A refused change never reaches consensus.
//! 3. The id of a removed member is remembered for ever and refused for ever.

mod conf_change;
mod ids;
mod member;
mod store;

pub use conf_change::{LEARNERS_MAX, Refusal, validate};
pub use ids::{cluster_id, member_id};
pub use member::{ConfChangeContext, Member};
pub use store::{Members, cluster_version, conf_state_bytes, conf_state_from, members};
