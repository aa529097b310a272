//! A disk that fills: nothing is lost, reads and deletes go on, and deletes with a compaction make room again, without
//! a restart.

use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use simdisk::Disk;

use crate::mvcc::{Engine, View, Writer};
use crate::store::{FatalHook, IoBackend};
use crate::tests::loopback::{FileSystem, Mounted, wanted};
use crate::types::{Applied, Budget, CompactProgress, Error, KeyRange, Options};

struct Member {
    engine: Engine,
    writer: Writer,
    index: u64,
}

impl Member {
    fn open(options: &Options) -> Member {
        let (engine, writer) = Engine::open(options.clone()).expect("opens");
        let index = engine.view().applied().index;
        Member {
            engine,
            writer,
            index,
        }
    }

    fn put(&mut self, i: u32) {
        let mut txn = self.writer.txn();
        let key = Bytes::from(format!("fill/{i:06}"));
        txn.put(key, value(i), 0).expect("puts");
        txn.finish();
    }

    fn publish(&mut self) -> View {
        self.index += 1;
        let applied = Applied {
            index: self.index,
            term: 1,
        };
        self.writer.publish(applied, b"").view
    }

    /// Publishes and waits for a checkpoint of it.
    fn checkpoint(&mut self) -> Result<(), Error> {
        self.publish();
        loop {
            if let Some(number) = self.writer.checkpoint()? {
                return self.engine.wait_durable(number);
            }
            std::thread::yield_now();
        }
    }
}

fn value(i: u32) -> Bytes {
    let bytes = match i % 20 {
        0 => 6000,
        _ => 100 + i as usize % 300,
    };
    vec![i as u8; bytes].into()
}

/// Fills whatever the store lies on until a checkpoint finds no room, and goes back to work.
fn fill_and_recover(options: &Options) {
    let mut member = Member::open(options);
    let mut n = 0;
    let refused = loop {
        for _ in 0..200 {
            member.put(n);
            n += 1;
        }
        match member.checkpoint() {
            Ok(()) => assert!(n < 2_000_000, "the disk never filled"),
            Err(error) => break error,
        }
        // The alarm: nobody puts any more once the reserve is touched.
        if member.engine.stats().no_space {
            break Error::NoSpace;
        }
    };
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    assert!(member.engine.stats().no_space);
    let view = member.publish();
    let all = KeyRange::all();
    assert_eq!(view.count(&all, 0).expect("counts"), u64::from(n));
    member.engine.check(&view).expect("sound");
    drop(view);

    // Deletes half in requests as they come, and compacts. Each checkpoint has room, because it gives some back.
    for from in (0..n / 2).step_by(500) {
        let mut txn = member.writer.txn();
        let range = KeyRange::Half {
            start: format!("fill/{from:06}").into(),
            end: format!("fill/{:06}", (from + 500).min(n / 2)).into(),
        };
        txn.delete_range(&range, false).expect("deletes");
        let revision = txn.finish();
        member.writer.compact(revision).expect("compacts");
        while member
            .writer
            .compact_step(Budget::default())
            .expect("steps")
            == CompactProgress::More
        {}
        member.checkpoint().expect("deletes make room");
    }
    // Space that a checkpoint dropped is free when the next is durable.
    for _ in 0..2 {
        member.checkpoint().expect("room");
    }

    // Disarmed: puts again, of as much as half of what went.
    let again = n / 4;
    for i in 0..again {
        member.put(i);
        if i % 200 == 0 {
            member.checkpoint().expect("there is room again");
        }
    }
    member.checkpoint().expect("there is room again");
    member.engine.check_file().expect("sound");
    drop(member);
    let member = Member::open(options);
    let view = member.engine.view();
    let mut seen = 0;
    view.visit(&all, 0, &mut |kv| {
        let i: u32 = std::str::from_utf8(&kv.key[5..])
            .expect("text")
            .parse()
            .expect("a number");
        assert!(i < again || i >= n / 2);
        assert_eq!(*kv.value, value(i));
        seen += 1;
        ControlFlow::Continue(())
    })
    .expect("reads");
    assert_eq!(seen, again + n - n / 2);
    member.engine.check(&view).expect("sound");
}

fn small(options: &mut Options) {
    options.page_bytes = 1024;
    options.cache_bytes = 1 << 20;
    options.chunk_bytes = 8000;
    options.extend_bytes = 64 << 10;
    options.reserve_bytes = 512 << 10;
    options.on_fatal = Some(FatalHook(std::sync::Arc::new(|line| panic!("{line}"))));
}

#[test]
fn a_simulated_disk_that_fills_is_left_without_a_restart() {
    let mut options = Options::new("store");
    small(&mut options);
    options.backend = IoBackend::Sim(Disk::with_capacity(3, 4 << 20));
    options.background = false;
    fill_and_recover(&options);
    // Negative control: a copy-on-write delete needs space before it gives any back.
    options.backend = IoBackend::Sim(Disk::with_capacity(3, 4 << 20));
    options.reserve_bytes = 0;
    let without = std::panic::catch_unwind(AssertUnwindSafe(|| fill_and_recover(&options)));
    assert!(without.is_err(), "without a reserve it cannot be left");
}

/// The same on real file systems of 24 MiB on a loop device, with the thread and the real backends. It takes the
/// rights to mount: with `QUORATE_LOOP` set.
#[test]
fn a_small_file_system_that_fills_is_left_without_a_restart() {
    if !wanted() {
        return;
    }
    for kind in FileSystem::all() {
        for (name, backend) in [("sync", IoBackend::Sync), ("auto", IoBackend::Auto)] {
            let disk = Mounted::new(24 << 20, kind);
            let mut options = Options::new(disk.path().join(name));
            small(&mut options);
            options.backend = backend;
            options.reserve_bytes = 2 << 20;
            fill_and_recover(&options);
        }
    }
}
