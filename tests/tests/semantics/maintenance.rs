//! 7: Maintenance.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::alarm_request::AlarmAction;
use quorate_proto::mvccpb::KeyValue;
use quorate_tests::client::*;
use quorate_tests::runner::{Ctx, SERIAL, TOGETHER, alone};
use quorate_tests::table;
use tonic::Code;

use pb::AlarmType::{Corrupt, None as AnyAlarm, Nospace};

table![
    SERIAL => [
        r7_1_status,
        r7_2_alarm_get_and_change,
        r7_3_nospace_alarm_blocks_what_grows,
        r7_4_corrupt_alarm_blocks_writes,
        r7_5_hash_kv_bounds,
        r7_8_defragment,
    ],
    TOGETHER => [r7_6_hash_answers],
    TOGETHER.etcd() => [r7_7_snapshot_stream],
    TOGETHER.ours() => [r7_7_no_snapshot_yet],
    alone(&[]) => [
        r7_1_status_shows_alarms,
        r7_2_alarms_survive_a_restart,
        r7_5_hash_kv_is_that_of_the_history,
        r7_5_hash_kv_after_compaction,
        r7_8_defragment_keeps_everything,
    ],
    alone(&["--quota-backend-bytes=16777216"]) => [r7_3_quota],
    alone(&["--quota-backend-bytes=-1"]) => [r7_3_no_quota],
];

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
const CORRUPT: &str = "etcdserver: corrupt cluster";

async fn r7_1_status(c: Ctx) {
    c.put_all(&[("a", "1")]).await;
    let status = c.status().await;
    let header = status.header.expect("a header");
    let parts: Vec<u32> = status
        .version
        .split('.')
        .map(|p| p.parse().expect("a number"))
        .collect();
    assert_eq!(parts.len(), 3, "{}", status.version);
    assert_eq!(status.leader, header.member_id);
    assert_eq!(status.raft_term, header.raft_term);
    assert!(status.db_size > 0);
    assert!(status.db_size_in_use > 0);
    assert!(status.db_size_in_use <= status.db_size);
    assert_eq!(
        status.raft_index, status.raft_applied_index,
        "nothing waits"
    );
    assert!(!status.is_learner);
    assert!(status.errors.is_empty(), "{:?}", status.errors);
    if c.minor >= 6 {
        assert_eq!(status.db_size_quota, 2 << 30, "the default");
        let downgrade = status.downgrade_info.expect("always present");
        assert!(!downgrade.enabled);
        assert_eq!(downgrade.target_version, "");
        let mut storage = status.storage_version;
        while storage.is_empty() {
            // Set shortly after the start.
            tokio::time::sleep(Duration::from_millis(20)).await;
            storage = c.status().await.storage_version;
        }
        assert_eq!(storage, "3.6.0");
    }
    c.put_all(&[("a", "2")]).await;
    assert_eq!(c.status().await.raft_index, status.raft_index + 1);
}

async fn r7_1_status_shows_alarms(c: Ctx) {
    let member = c.status().await.header.expect("a header").member_id;
    c.alarm(AlarmAction::Activate, member, Nospace).await;
    assert_eq!(
        c.status().await.errors,
        [format!("memberID:{member} alarm:NOSPACE ")],
        "with a blank at the end"
    );
    c.alarm(AlarmAction::Deactivate, member, Nospace).await;
    assert!(c.status().await.errors.is_empty());
}

async fn r7_2_alarm_get_and_change(c: Ctx) {
    let shape = |response: pb::AlarmResponse| -> Vec<(u64, i32)> {
        assert!(rev(&response.header) > 0);
        let pairs = response.alarms.iter().map(|a| (a.member_id, a.alarm));
        pairs.collect()
    };
    let get = async |member, kind| shape(c.alarm(AlarmAction::Get, member, kind).await);
    assert!(get(0, AnyAlarm).await.is_empty());
    let on = shape(c.alarm(AlarmAction::Activate, 77, Nospace).await);
    assert_eq!(on, [(77, Nospace as i32)], "any member id is taken");
    let again = shape(c.alarm(AlarmAction::Activate, 77, Nospace).await);
    assert_eq!(again, [(77, Nospace as i32)], "again: the same");
    let other = shape(c.alarm(AlarmAction::Activate, 78, Nospace).await);
    assert_eq!(other, [(78, Nospace as i32)]);
    let mut all = get(0, AnyAlarm).await;
    all.sort_unstable();
    assert_eq!(all, [(77, Nospace as i32), (78, Nospace as i32)]);
    assert!(get(0, Corrupt).await.is_empty(), "by type");
    let nothing = shape(c.alarm(AlarmAction::Activate, 77, AnyAlarm).await);
    assert!(nothing.is_empty(), "activating no type is a no-op");
    let off = shape(c.alarm(AlarmAction::Deactivate, 77, Nospace).await);
    assert_eq!(off, [(77, Nospace as i32)]);
    let off = shape(c.alarm(AlarmAction::Deactivate, 77, Nospace).await);
    assert!(off.is_empty(), "nothing matched");
    c.alarm(AlarmAction::Deactivate, 78, Nospace).await;
    assert!(get(0, AnyAlarm).await.is_empty());
}

async fn r7_2_alarms_survive_a_restart(mut c: Ctx) {
    c.alarm(AlarmAction::Activate, 77, Nospace).await;
    c.crash_and_restart().await;
    let alarms = c.alarm(AlarmAction::Get, 0, AnyAlarm).await.alarms;
    assert_eq!(alarms.len(), 1);
    fails(
        c.try_put(put(c.key("a"), "1")).await,
        Code::ResourceExhausted,
        NO_SPACE,
    );
    c.alarm(AlarmAction::Deactivate, 77, Nospace).await;
    c.put_all(&[("a", "1")]).await;
}

async fn r7_3_nospace_alarm_blocks_what_grows(c: Ctx) {
    c.put_all(&[("a", "1"), ("b", "1")]).await;
    let lease = c.grant(100, 0).await.id;
    c.alarm(AlarmAction::Activate, 77, Nospace).await;
    let put_in = |success: bool| {
        let op = [put(c.key("c"), "1").op()];
        if success {
            txn([], op, [])
        } else {
            txn([], [], op)
        }
    };
    let refused = [
        c.try_put(put(c.key("a"), "2")).await.map(drop),
        c.try_grant(100, 0).await.map(drop),
        c.try_txn(put_in(true)).await.map(drop),
        c.try_txn(put_in(false)).await.map(drop),
    ];
    let allowed = [
        c.try_range(c.all()).await.map(drop),
        c.try_delete(delete(c.key("a"))).await.map(drop),
        c.try_txn(txn([], [delete(c.key("b")).op()], []))
            .await
            .map(drop),
        c.try_txn(txn([], [c.all().op()], [])).await.map(drop),
        c.try_revoke(lease).await.map(drop),
        c.try_compact(c.revision().await, false).await.map(drop),
        c.try_defragment().await.map(drop),
    ];
    c.alarm(AlarmAction::Deactivate, 77, Nospace).await;
    for result in refused {
        fails(result, Code::ResourceExhausted, NO_SPACE);
    }
    for result in allowed {
        ok(result);
    }
    assert_eq!(c.range(c.all()).await.count, 0);
    c.put_all(&[("a", "again")]).await;
}

async fn r7_3_quota(c: Ctx) {
    let value = vec![b'v'; 1 << 20];
    let mut stored = 0;
    let refused = loop {
        match c.try_put(put(c.key("big"), value.clone())).await {
            Ok(_) => stored += 1,
            Err(status) => break status,
        }
        assert!(stored < 64, "16 MiB hold no {stored} MiB");
    };
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, NO_SPACE)
    );
    assert!(stored > 4, "only {stored} MiB went into 16");
    let member = c.status().await.header.expect("a header").member_id;
    let alarms = c.alarm(AlarmAction::Get, 0, AnyAlarm).await.alarms;
    assert_eq!(alarms.len(), 1, "the refusal raised the alarm");
    assert_eq!((alarms[0].member_id, alarms[0].alarm()), (member, Nospace));
    fails(
        c.try_put(put(c.key("small"), "1")).await,
        Code::ResourceExhausted,
        NO_SPACE,
    );
    // The way back: compact, defragment, disarm.
    ok(c.try_compact(c.revision().await, true).await);
    ok(c.try_defragment().await);
    fails(
        c.try_put(put(c.key("small"), "1")).await,
        Code::ResourceExhausted,
        NO_SPACE,
    );
    c.alarm(AlarmAction::Deactivate, member, Nospace).await;
    c.put_all(&[("small", "1")]).await;
    c.put(put(c.key("big"), value)).await;
}

async fn r7_3_no_quota(c: Ctx) {
    let value = vec![b'v'; 1 << 20];
    for _ in 0..24 {
        c.put(put(c.key("big"), value.clone())).await;
    }
    let alarms = c.alarm(AlarmAction::Get, 0, AnyAlarm).await.alarms;
    assert!(alarms.is_empty());
}

async fn r7_4_corrupt_alarm_blocks_writes(c: Ctx) {
    c.put_all(&[("a", "1"), ("a", "2")]).await;
    let lease = c.grant(100, 0).await.id;
    let now = c.revision().await;
    c.alarm(AlarmAction::Activate, 77, Corrupt).await;
    let refused = [
        c.try_put(put(c.key("a"), "3")).await.map(drop),
        c.try_delete(delete(c.key("a"))).await.map(drop),
        c.try_txn(txn([], [delete(c.key("a")).op()], []))
            .await
            .map(drop),
        c.try_compact(now, false).await.map(drop),
        c.try_grant(100, 0).await.map(drop),
        c.try_revoke(lease).await.map(drop),
    ];
    let read = c.try_range(c.all()).await;
    let health = crate::raw::http_get(&c.url, "/health").await;
    let cleared = c.alarm(AlarmAction::Deactivate, 77, Corrupt).await;
    for result in refused {
        fails(result, Code::DataLoss, CORRUPT);
    }
    assert_eq!(ok(read).kvs[0].value, "2", "reads are served");
    assert_eq!(health.0, 503);
    assert_eq!(
        health.1,
        "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n"
    );
    assert_eq!(cleared.alarms.len(), 1);
    c.put_all(&[("a", "3")]).await;
}

/// What etcd stores and hashes: bucket key and stored value of every change.
#[derive(Default)]
struct History {
    entries: Vec<(i64, i64, bool, KeyValue)>,
}

impl History {
    fn put(&mut self, main: i64, sub: i64, kv: KeyValue) {
        self.entries.push((main, sub, false, kv));
    }

    fn delete(&mut self, main: i64, sub: i64, key: Bytes) {
        let kv = KeyValue {
            key,
            ..Default::default()
        };
        self.entries.push((main, sub, true, kv));
    }

    /// CRC-32C over `key`, then the entries up to `to`; those up to `compacted` only when they are the
    /// newest version at `to` of a key that is live then.
    fn hash(&self, to: i64, compacted: i64) -> u32 {
        let mut crc = crc32c::crc32c(b"key");
        for (n, (main, sub, dead, kv)) in self.entries.iter().enumerate() {
            let superseded = self.entries[n + 1..]
                .iter()
                .any(|(later, _, _, other)| *later <= to && other.key == kv.key);
            if *main > to || (*main <= compacted && (*dead || superseded)) {
                continue;
            }
            let mut key = main.to_be_bytes().to_vec();
            key.push(b'_');
            key.extend_from_slice(&sub.to_be_bytes());
            if *dead {
                key.push(b't');
            }
            crc = crc32c::crc32c_append(crc, &key);
            crc = crc32c::crc32c_append(crc, &kv.encode_to_vec());
        }
        crc
    }
}

async fn write_history(c: &Ctx) -> History {
    let mut history = History::default();
    let lease = c.grant(1000, 0).await.id;
    let plain = [("a", "1"), ("b", "1"), ("a", "2"), ("c", "")];
    for (name, value) in plain {
        let request = pb::PutRequest {
            lease: if name == "b" { lease } else { 0 },
            ..put(c.key(name), value)
        };
        let at = rev(&c.put(request).await.header);
        history.put(at, 0, c.get(c.key(name)).await.expect("stored"));
    }
    let ops = [
        put(c.key("d"), "1").op(),
        delete(c.key("b")).op(),
        put(c.key("e"), "1").op(),
    ];
    let at = rev(&c.txn(txn([], ops, [])).await.header);
    history.put(at, 0, c.get(c.key("d")).await.expect("stored"));
    history.delete(at, 1, c.key("b"));
    history.put(at, 2, c.get(c.key("e")).await.expect("stored"));
    let at = rev(&c.delete(c.delete_all()).await.header);
    for (sub, name) in ["a", "c", "d", "e"].into_iter().enumerate() {
        history.delete(at, sub as i64, c.key(name));
    }
    for (name, value) in [("a", "3"), ("f", "1"), ("a", "4")] {
        let at = rev(&c.put(put(c.key(name), value)).await.header);
        history.put(at, 0, c.get(c.key(name)).await.expect("stored"));
    }
    history
}

async fn r7_5_hash_kv_is_that_of_the_history(mut c: Ctx) {
    let history = write_history(&c).await;
    let now = c.revision().await;
    for round in ["at once", "after a crash"] {
        for to in 1..=now {
            let response = ok(c.try_hash_kv(to).await);
            assert_eq!(response.hash, history.hash(to, -1), "to {to}, {round}");
            assert_eq!(response.compact_revision, -1);
            if c.minor >= 6 {
                assert_eq!(response.hash_revision, to);
            }
        }
        let current = ok(c.try_hash_kv(0).await);
        assert_eq!(current.hash, history.hash(now, -1));
        if c.minor >= 6 {
            assert_eq!(current.hash_revision, now);
        }
        c.crash_and_restart().await;
    }
}

async fn r7_5_hash_kv_after_compaction(mut c: Ctx) {
    let history = write_history(&c).await;
    let now = c.revision().await;
    let at = now - 2;
    ok(c.try_compact(at, true).await);
    for round in ["at once", "after a crash"] {
        for to in at + 1..=now {
            let response = ok(c.try_hash_kv(to).await);
            assert_eq!(response.hash, history.hash(to, at), "to {to}, {round}");
            assert_eq!(response.compact_revision, at);
        }
        c.crash_and_restart().await;
    }
}

async fn r7_5_hash_kv_bounds(c: Ctx) {
    c.put_all(&[("a", "1"), ("a", "2"), ("a", "3")]).await;
    let now = c.revision().await;
    c.compact(now - 1).await;
    fails(
        c.try_hash_kv(now + 1).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    fails(
        c.try_hash_kv(now - 2).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
    let negative = ok(c.try_hash_kv(-3).await);
    assert_eq!(negative.hash, crc32c::crc32c(b"key"), "of nothing");
    let current = ok(c.try_hash_kv(0).await);
    assert_eq!(current.compact_revision, now - 1);
    assert_eq!(current.hash, ok(c.try_hash_kv(now).await).hash);
}

async fn r7_6_hash_answers(c: Ctx) {
    let hash = c.maintenance.clone().hash(pb::HashRequest {}).await;
    assert!(rev(&ok(hash).into_inner().header) > 0);
}

/// SHA-256 by the machine's own tool.
fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(bytes).expect("written");
    drop(input);
    let output = child.wait_with_output().expect("sha256sum");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

async fn r7_7_snapshot_stream(c: Ctx) {
    let value = vec![b's'; 100_000];
    c.put(put(c.key("big"), value.clone())).await;
    let parts = c.snapshot().await;
    let (tail, blobs) = parts.split_last().expect("parts");
    let total: usize = blobs.iter().map(|p| p.blob.len()).sum();
    let mut left = total;
    for part in blobs {
        assert!((1..=32 * 1024).contains(&part.blob.len()));
        left -= part.blob.len();
        assert_eq!(part.remaining_bytes as usize, left);
    }
    assert_eq!((tail.blob.len(), tail.remaining_bytes), (32, 0));
    assert!(
        parts.iter().all(|p| p.header.is_none()),
        "no header message at all"
    );
    assert_eq!(total % 512, 0);
    let file: Vec<u8> = blobs.iter().flat_map(|p| p.blob.to_vec()).collect();
    let digest: String = tail.blob.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(sha256(&file), digest);
    assert!(
        file.windows(value.len()).any(|w| w == value),
        "the value is in the file"
    );
    let magic = 0xED0C_DAED_u32.to_le_bytes();
    assert_eq!(file[16..20], magic, "a bbolt file");
    if c.minor >= 6 {
        assert!(parts.iter().all(|p| p.version == "3.6.0"));
    }
}

async fn r7_7_no_snapshot_yet(c: Ctx) {
    let request = pb::SnapshotRequest {};
    let result = c.maintenance.clone().snapshot(request).await;
    fails(
        result.map(drop),
        Code::Unimplemented,
        "unknown method Snapshot for service etcdserverpb.Maintenance",
    );
}

async fn r7_8_defragment(c: Ctx) {
    c.put_all(&[("a", "1")]).await;
    let at = c.revision().await;
    ok(c.try_defragment().await);
    assert_eq!(c.revision().await, at);
    assert_eq!(c.get(c.key("a")).await.expect("kept").value, "1");
}

async fn r7_8_defragment_keeps_everything(mut c: Ctx) {
    let value = vec![b'v'; 1 << 20];
    for n in 0..12 {
        c.put(put(c.key(&format!("{n:02}")), value.clone())).await;
    }
    for n in 2..12 {
        c.delete(delete(c.key(&format!("{n:02}")))).await;
    }
    ok(c.try_compact(c.revision().await, true).await);
    let before = c.status().await.db_size;
    let in_use = c.status().await.db_size_in_use;
    let hash = ok(c.try_hash_kv(0).await).hash;
    ok(c.try_defragment().await);
    let after = c.status().await;
    if c.program.real {
        assert!(
            after.db_size < before - (8 << 20),
            "{} of {before} bytes left",
            after.db_size
        );
    }
    // Ours gives the free tail of the file back alone; what is free before it is used again.
    assert!(
        after.db_size_in_use < before - (8 << 20),
        "{} of {in_use} bytes in use",
        after.db_size_in_use
    );
    assert_eq!(ok(c.try_hash_kv(0).await).hash, hash);
    c.crash_and_restart().await;
    assert_eq!(ok(c.try_hash_kv(0).await).hash, hash);
    assert_eq!(c.names(&c.range(c.all()).await.kvs), ["00", "01"]);
}
