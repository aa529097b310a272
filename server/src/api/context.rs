//! What a handler may know about the call besides the request message.

use std::time::Instant;

/// The metadata of one call, taken from its request headers. Handlers know neither HTTP nor gRPC;
/// this is all that is left of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCtx {
    /// The auth token: metadata `token`, else `authorization` with an optional `Bearer ` prefix.
    pub token: Option<Box<str>>,
    /// Metadata `hasleader: true`: the call must fail, and a stream must end, without a leader.
    pub has_leader: bool,
    /// When the client stops waiting. The network layer ends the call by itself then; handlers need
    /// it only to refuse work that cannot be finished.
    pub deadline: Option<Instant>,
    /// The call came through the JSON gateway: a certificate's common name is no identity then.
    pub gateway: bool,
}
