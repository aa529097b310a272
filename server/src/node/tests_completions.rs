//! Calls and their results.

use super::completions::*;
use crate::apply::Reply;
use crate::status::errors;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "current_thread")]
async fn results_reach_the_calls_with_and_without_a_dispatcher() {
    let completions = Arc::new(Completions::new(2, 7, 1));
    let (a, ra) = completions.register().unwrap();
    completions.complete(&mut vec![(a, Ok(Reply::Empty))]);
    assert_eq!(ra.await.unwrap(), Ok(Reply::Empty));

    let dispatcher = tokio::spawn({
        let completions = completions.clone();
        async move { completions.dispatch(1).await }
    });
    tokio::task::yield_now().await;
    let (b, rb) = completions.register().unwrap();
    assert_ne!(a, b);
    let node = std::thread::spawn({
        let completions = completions.clone();
        move || {
            completions.complete(&mut vec![
                (b, Err(errors::NO_SPACE)),
                (99, Ok(Reply::Empty)),
            ])
        }
    });
    assert_eq!(rb.await.unwrap(), Err(errors::NO_SPACE));
    node.join().unwrap();
    assert_eq!(completions.pending(), 0);
    dispatcher.abort();
}

#[tokio::test(flavor = "current_thread")]
async fn expiry_and_close_end_every_call_once() {
    let completions = Completions::new(1, 7, 1);
    let (id, late) = completions.register().unwrap();
    assert_eq!(
        completions.expire(Duration::from_secs(60), &errors::TIMEOUT),
        0
    );
    assert_eq!(completions.expire(Duration::ZERO, &errors::TIMEOUT), 1);
    assert_eq!(late.await.unwrap(), Err(errors::TIMEOUT));
    completions.complete(&mut vec![(id, Ok(Reply::Empty))]);

    let (_, open) = completions.register().unwrap();
    completions.close();
    assert_eq!(open.await.unwrap(), Err(errors::STOPPED));
    assert_eq!(completions.register().unwrap_err(), errors::STOPPED);
    assert_eq!(completions.pending(), 0);
}
