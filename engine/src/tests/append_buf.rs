//! The append buffer with real threads; `tests/loom.rs` has every interleaving.

use crate::events::append_buf::{AppendBuf, Published};

#[test]
fn refuses_what_does_not_fit() {
    let mut buf = AppendBuf::new(4);
    assert!(buf.append(b"abc"));
    assert!(!buf.append(b"de"));
    assert_eq!(buf.as_slice(), b"abc");
    assert!(buf.append(b"d"));
    assert!(buf.append(b""));
    assert_eq!((buf.as_slice(), buf.room()), (&b"abcd"[..], 0));
    assert_eq!(AppendBuf::new(0).as_slice(), b"");
}

#[test]
fn readers_see_their_prefix_while_the_owner_appends() {
    let mut buf = AppendBuf::new(1 << 16);
    let (send, recv) = std::sync::mpsc::sync_channel::<Published>(4);
    let reader = std::thread::spawn(move || {
        let mut seen = 0;
        for published in recv {
            let bytes = published.as_slice();
            assert!(bytes.len() >= seen);
            seen = bytes.len();
            assert!(bytes.iter().enumerate().all(|(i, b)| *b == i as u8));
        }
        seen
    });
    for i in 0..1usize << 16 {
        assert!(buf.append(&[i as u8]));
        if i % 1021 == 0 {
            send.send(buf.published()).expect("reader lives");
        }
    }
    send.send(buf.published()).expect("reader lives");
    drop(send);
    assert_eq!(reader.join().expect("no panic"), 1 << 16);
}
