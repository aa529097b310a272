//! What the services tell the metrics.

use super::*;
use crate::testing::req::{range_all, range_of};
use crate::testing::{block_on, observed_member};
use quorate_proto::etcdserverpb as pb;
use std::sync::Mutex;
use stream::{Closed, Requests, Responses};

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Heard {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for Heard {
    fn ranged(&self, ok: bool, _took: Duration) {
        self.note(format!("range {ok}"));
    }
    fn hashed(&self, _took: Duration) {
        self.note("hash".into());
    }
    fn hashed_revision(&self, _took: Duration) {
        self.note("hash at a revision".into());
    }
    fn stream_failed(&self, api: &'static str) {
        self.note(format!("failed {api}"));
    }
}

/// A stream that fails at once.
struct Fails(Code);

impl<T> Requests<T> for Fails {
    async fn next(&mut self) -> Option<Result<T, Status>> {
        Some(Err(Status::fixed(self.0, "as wanted")))
    }
}

struct Nowhere;

impl<T: Send> Responses<T> for Nowhere {
    async fn send(&mut self, _item: T) -> Result<(), Closed> {
        Ok(())
    }
}

#[test]
fn reads_hashes_and_failures_are_heard_of() {
    let heard = Arc::new(Heard::default());
    let api = observed_member(Limits::default(), heard.clone()).0;
    let ctx = RequestCtx::default();
    block_on(async {
        api.range(&ctx, range_of("k")).await.unwrap();
        api.range(&ctx, range_all()).await.unwrap();
        assert_eq!(heard.take(), ["range true", "range true"]);
        api.hash(&ctx, pb::HashRequest {}).await.unwrap();
        api.hash_kv(&ctx, pb::HashKvRequest::default())
            .await
            .unwrap();
        assert_eq!(heard.take(), ["hash", "hash at a revision"]);
        for code in [Code::Internal, Code::Canceled] {
            api.lease_keep_alive(&ctx, Fails(code), Nowhere)
                .await
                .unwrap_err();
            api.watch(&ctx, Fails(code), Nowhere).await.unwrap_err();
        }
        assert_eq!(
            heard.take(),
            ["failed lease-keepalive", "failed watch"],
            "what the client ends is no failure"
        );
    });
}
