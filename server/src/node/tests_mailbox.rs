//! The queue in front of the node thread.

use super::mailbox::*;
use std::sync::Arc;
use std::time::Instant;

#[test]
fn order_is_kept_and_nothing_is_lost_across_threads() {
    let mailbox = Arc::new(Mailbox::new(usize::MAX));
    let producers: Vec<_> = (0..4u64)
        .map(|p| {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || {
                for i in 0..5_000u64 {
                    mailbox.push((p, i), 1).unwrap();
                }
            })
        })
        .collect();
    let mut seen = [0u64; 4];
    let mut out = Vec::new();
    while seen.iter().sum::<u64>() < 20_000 {
        mailbox.wait(&mut out, None);
        for (p, i) in out.drain(..) {
            assert_eq!(seen[p as usize], i);
            seen[p as usize] += 1;
        }
    }
    for p in producers {
        p.join().unwrap();
    }
}

#[test]
fn a_full_mailbox_refuses_and_recovers_after_a_drain() {
    let mailbox = Mailbox::new(10);
    mailbox.push('a', 10).unwrap();
    assert_eq!(mailbox.push('b', 1), Err(Refused::Full('b')));
    let mut out = Vec::new();
    mailbox.drain(&mut out);
    mailbox.push('c', 1).unwrap();
}

#[test]
fn close_hands_out_the_rest_once_and_refuses_pushes() {
    let mailbox = Mailbox::new(10);
    mailbox.push(1, 1).unwrap();
    mailbox.close();
    assert_eq!(mailbox.push(2, 1), Err(Refused::Closed(2)));
    let mut out = Vec::new();
    assert_eq!(mailbox.wait(&mut out, None), Drained::Open);
    assert_eq!(out, [1]);
    out.clear();
    assert_eq!(mailbox.wait(&mut out, None), Drained::Closed);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let mailbox = Mailbox::<u8>::new(10);
    let mut out = Vec::new();
    assert_eq!(mailbox.wait(&mut out, Some(Instant::now())), Drained::Open);
    assert!(out.is_empty());
}
