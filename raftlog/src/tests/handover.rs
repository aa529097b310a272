//! The flush hand-over with real threads; `tests/loom` has every interleaving.

use crate::flush::handover::{Answer, Handover};
use std::sync::Arc;

#[test]
fn work_is_taken_back_if_nobody_has_begun() {
    let place: Handover<u32, u32> = Handover::new();
    assert_eq!(place.collect(true), Answer::Nothing);
    place.give(7);
    assert_eq!(place.collect(false), Answer::Busy);
    assert_eq!(place.collect(true), Answer::Back(7));
    place.give(8);
    assert_eq!(place.next(), Some(8));
    assert_eq!(place.collect(false), Answer::Busy);
    place.done(9);
    assert_eq!(place.collect(true), Answer::Done(9));
}

#[test]
fn an_owner_that_waits_is_told_when_the_thread_is_gone() {
    let place: Arc<Handover<u32, u32>> = Arc::new(Handover::new());
    place.give(1);
    let thread = {
        let place = place.clone();
        std::thread::spawn(move || {
            assert_eq!(place.next(), Some(1));
            place.leave();
        })
    };
    thread.join().unwrap();
    assert_eq!(place.collect(true), Answer::Lost);
    place.give(2);
    assert_eq!(place.collect(false), Answer::Back(2));
}
