//! Long readers that pin history, beside a writer that compacts and publishes.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;

use crate::shards::Shards;
use crate::{model, must_fail};

#[path = "../../src/mvcc/history_pins.rs"]
mod history_pins;

use history_pins::HistoryPins;

/// A published state: from which revision on it has history.
#[derive(Clone)]
struct State {
    from: i64,
}

/// When a reader asks whether its pin holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    AfterTheState,
    Before,
}

/// Two compactions, each published, beside a reader of revision 0 that comes at any time and reads two slices.
fn compaction(patience: Duration, asks: Asks) {
    let pins = Arc::new(HistoryPins::new(-1, patience));
    let newest: Arc<Shards<State, 1>> = Arc::new(Shards::new(&State { from: -1 }));
    let reader = {
        let (pins, newest) = (pins.clone(), newest.clone());
        thread::spawn(move || {
            let Some(pin) = HistoryPins::pin(&pins, 0) else {
                return;
            };
            for _ in 0..2 {
                let before = pin.holds();
                let state = newest.get(0);
                let holds = match asks {
                    Asks::AfterTheState => pin.holds(),
                    Asks::Before => before,
                };
                if !holds {
                    assert!(patience.is_zero(), "let go of");
                    return;
                }
                assert!(state.from <= pin.from(), "history is gone");
            }
        })
    };
    for compact in [1, 2] {
        let from = pins.floor(compact);
        newest.set(&State { from });
    }
    reader.join().unwrap();
    assert_eq!(pins.floor(2), 2, "nobody is waited for any more");
    assert_eq!(pins.stats().open, 0);
    assert!(HistoryPins::pin(&pins, 1).is_none());
}

#[test]
fn a_long_reader_has_its_history_while_it_is_compacted() {
    model(|| compaction(Duration::MAX, Asks::AfterTheState));
}

#[test]
fn a_long_reader_that_is_not_waited_for_knows_it() {
    model(|| compaction(Duration::ZERO, Asks::AfterTheState));
}

/// Negative control: the pin was seen to hold before the state was taken.
#[test]
fn a_pin_that_is_looked_at_too_early_is_found() {
    let name = "history::a_pin_that_is_looked_at_too_early_is_found";
    must_fail(name, "history is gone", || {
        compaction(Duration::ZERO, Asks::Before);
    });
}
