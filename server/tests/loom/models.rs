//! A call registers, is queued, taken, completed, and woken: once, whoever comes first, and also at the end.

use crate::completions::{Completions, Outcome};
use crate::mailbox::{Drained, Mailbox, Refused};
use crate::sync::DEAF;
use loom::sync::Arc;
use loom::thread;
use quorate::apply::Reply;
use quorate::status::errors;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// Takes until the mailbox is closed.
fn take_all(mailbox: &Mailbox<u32>) -> Vec<u32> {
    let (mut all, mut out) = (Vec::new(), Vec::new());
    while mailbox.wait(&mut out, None) == Drained::Open {
        all.append(&mut out);
    }
    all
}

#[test]
fn what_two_push_comes_out_once_and_in_the_order_of_each() {
    model(|| {
        let mailbox = Arc::new(Mailbox::new(usize::MAX));
        let producer = {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                mailbox.push(10, 1).unwrap();
                mailbox.push(11, 1).unwrap();
            })
        };
        let other = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.push(20, 1).unwrap())
        };
        let mut out = Vec::new();
        while out.len() < 3 {
            assert_eq!(mailbox.wait(&mut out, None), Drained::Open);
        }
        producer.join().unwrap();
        other.join().unwrap();
        out.retain(|item| *item < 20);
        assert_eq!(out, [10, 11]);
    });
}

#[test]
fn what_was_taken_before_the_end_is_handed_out_and_nothing_else() {
    model(|| {
        let mailbox = Arc::new(Mailbox::new(usize::MAX));
        let producer = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.push(1, 1))
        };
        let closer = {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.close())
        };
        let taken = take_all(&mailbox);
        match producer.join().unwrap() {
            Ok(()) => assert_eq!(taken, [1]),
            Err(refused) => {
                assert_eq!(refused, Refused::Closed(1));
                assert!(taken.is_empty());
            }
        }
        closer.join().unwrap();
    });
}

struct Node {
    completions: Completions,
    mailbox: Mailbox<u64>,
}

impl Node {
    fn new() -> Arc<Node> {
        Arc::new(Node {
            completions: Completions::new(1, 7, 1),
            mailbox: Mailbox::new(usize::MAX),
        })
    }

    /// A call, as `NodeHandle::propose` makes it, on a network thread whose dispatcher runs, or on
    /// another thread.
    fn call(&self, attended: bool) -> Outcome {
        loom::future::block_on(async {
            let mut dispatcher = pin!(self.completions.dispatch(0));
            if attended {
                std::future::poll_fn(|cx| Poll::Ready(dispatcher.as_mut().poll(cx).is_ready()))
                    .await;
            }
            let (id, result) = match self.completions.register() {
                Ok(registered) => registered,
                Err(status) => return Err(status),
            };
            if self.mailbox.push(id, 1).is_err() {
                self.completions.withdraw(id);
                return Err(errors::STOPPED);
            }
            let mut result = pin!(result);
            std::future::poll_fn(|cx| {
                if attended {
                    assert!(dispatcher.as_mut().poll(cx).is_pending());
                }
                result.as_mut().poll(cx)
            })
            .await
            .expect("a result is sent, not dropped")
        })
    }

    /// A batch of the node thread; whether there will be more.
    fn serve(&self) -> bool {
        let mut ids = Vec::new();
        if self.mailbox.wait(&mut ids, None) == Drained::Closed {
            return false;
        }
        let results = ids.into_iter().map(|id| (id, Ok(Reply::Empty)));
        self.completions.complete(&mut results.collect());
        true
    }

    /// As the node thread ends.
    fn end(&self) {
        self.mailbox.close();
        self.mailbox.drain(&mut Vec::new());
        self.completions.close();
    }
}

fn answered(attended: bool) {
    model(move || {
        let node = Node::new();
        let thread = {
            let node = node.clone();
            thread::spawn(move || assert!(node.serve()))
        };
        assert_eq!(node.call(attended), Ok(Reply::Empty));
        assert_eq!(node.completions.pending(), 0);
        thread.join().unwrap();
    });
}

#[test]
fn a_result_reaches_its_call_through_the_dispatcher() {
    answered(true);
}

#[test]
fn a_result_reaches_its_call_without_a_dispatcher() {
    answered(false);
}

#[test]
fn calls_of_two_threads_are_both_answered() {
    model(|| {
        let node = Node::new();
        let other = {
            let node = node.clone();
            thread::spawn(move || assert_eq!(node.call(false), Ok(Reply::Empty)))
        };
        let thread = {
            let node = node.clone();
            thread::spawn(move || while node.serve() {})
        };
        assert_eq!(node.call(false), Ok(Reply::Empty));
        other.join().unwrap();
        node.mailbox.close();
        thread.join().unwrap();
        assert_eq!(node.completions.pending(), 0);
    });
}

fn ended(attended: bool) {
    model(move || {
        let node = Node::new();
        let thread = {
            let node = node.clone();
            // The node thread ends by itself, with or without a batch before.
            thread::spawn(move || node.end())
        };
        assert_eq!(node.call(attended), Err(errors::STOPPED));
        thread.join().unwrap();
        assert_eq!(node.completions.pending(), 0);
    });
}

#[test]
fn a_call_beside_the_end_is_told_through_the_dispatcher() {
    ended(true);
}

#[test]
fn a_call_beside_the_end_is_told_without_a_dispatcher() {
    ended(false);
}

/// The end comes while a result is under way: the call has one of the two.
#[test]
fn a_result_beside_the_end_is_told_once() {
    model(|| {
        let node = Node::new();
        let thread = {
            let node = node.clone();
            thread::spawn(move || {
                node.serve();
                node.end();
            })
        };
        let outcome = node.call(true);
        assert!(outcome == Ok(Reply::Empty) || outcome == Err(errors::STOPPED));
        thread.join().unwrap();
        assert_eq!(node.completions.pending(), 0);
    });
}

/// A call that expires beside its result is told once, and counted once.
#[test]
fn a_result_beside_its_expiry_is_told_once() {
    model(|| {
        let node = Node::new();
        let thread = {
            let node = node.clone();
            thread::spawn(move || {
                node.completions
                    .expire(std::time::Duration::ZERO, &errors::TIMEOUT);
                node.serve()
            })
        };
        let outcome = node.call(true);
        assert!(outcome == Ok(Reply::Empty) || outcome == Err(errors::TIMEOUT));
        thread.join().unwrap();
        assert_eq!(node.completions.pending(), 0);
    });
}

/// The control: with wake-ups lost, a thread sleeps for ever, and loom says so.
#[test]
fn lost_wake_ups_are_noticed() {
    let lost = |f: fn()| {
        let thread = std::thread::spawn(move || {
            DEAF.set(true);
            f();
        });
        assert!(thread.join().is_err(), "nobody noticed");
    };
    lost(|| {
        model(|| {
            let mailbox = Arc::new(Mailbox::new(usize::MAX));
            let producer = {
                let mailbox = mailbox.clone();
                thread::spawn(move || mailbox.push(1, 1).unwrap())
            };
            mailbox.wait(&mut Vec::new(), None);
            producer.join().unwrap();
        });
    });
}
