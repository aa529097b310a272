//! The Watch service.
//!
//! One call is one stream of the hub of its network thread. Requests and responses are served side by
//! side: a client that does not read its responses is not read either once their buffer is full, and
//! its watches catch up later.

use super::stream::{Requests, Responses};
use super::{Api, RequestCtx};
use crate::node::Node;
use crate::status::Status;
use crate::watch::{Seen, WatchReply, WatchStream};
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::watch_request::RequestUnion;

/// Responses taken from the hub's buffer at a time.
const TAKE_MAX: usize = 32;

impl<N: Node> Api<N> {
    /// Watch. Ends only with the client: after its half-close the responses go on (6W.5).
    pub async fn watch(
        &self,
        _ctx: &RequestCtx,
        mut requests: impl Requests<pb::WatchRequest>,
        mut responses: impl Responses<WatchReply>,
    ) -> Result<(), Status> {
        let stream = self.hub().open();
        tokio::select! {
            biased;
            result = self.watch_requests(&stream, &mut requests) => result,
            () = self.watch_responses(&stream, &mut responses) => Ok(()),
        }
    }

    async fn watch_requests(
        &self,
        stream: &WatchStream,
        requests: &mut impl Requests<pb::WatchRequest>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.next().await {
            stream.room().await;
            let request = request.inspect_err(|status| self.count_failure("watch", status));
            let request = request?.request_union;
            let seen = self.seen();
            match request {
                Some(RequestUnion::CreateRequest(create)) => {
                    let now = tokio::time::Instant::now().into_std();
                    stream.create(&create, seen, now);
                }
                Some(RequestUnion::CancelRequest(cancel)) => stream.cancel(cancel.watch_id, seen),
                Some(RequestUnion::ProgressRequest(_)) => stream.progress(seen),
                None => {}
            }
        }
        std::future::pending().await
    }

    /// Returns when the client is gone.
    async fn watch_responses(
        &self,
        stream: &WatchStream,
        responses: &mut impl Responses<WatchReply>,
    ) {
        let mut frames = Vec::new();
        loop {
            stream.take(TAKE_MAX, &mut frames).await;
            for frame in frames.drain(..) {
                let header = self.node.header(frame.revision);
                if responses.send(frame.answer(header)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn seen(&self) -> Seen {
        let view = self.node.engine().view();
        Seen {
            revision: view.revision(),
            compact_revision: view.compact_revision(),
        }
    }
}

#[cfg(test)]
mod tests;
