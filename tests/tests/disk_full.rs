//! A disk that fills up under a serving member: the alarm, refusals that say so, reads and deletes that
//! go on, and the way back without a restart.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use quorate_proto::etcdserverpb as pb;
use quorate_tests::PATIENCE;
use quorate_tests::client::{self, Client};
use quorate_tests::server::{Program, Server};
use tonic::Code;

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// A small file system, unmounted when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(mebibytes: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "none"])
            .arg(dir.path())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(SmallDisk { dir }),
            _ => None,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server's files may still be closing.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

fn data_flag(disk: &SmallDisk) -> PathBuf {
    disk.path().join("data")
}

/// 7.3: fill the disk, read, delete, compact, defragment, disarm, write: without a restart. Then the
/// same files start again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_7_3_a_full_disk_raises_the_alarm_and_the_way_back_needs_no_restart() {
    let Some(disk) = SmallDisk::mount(560) else {
        assert!(
            std::env::var_os("QUORATE_REQUIRE_PEERS").is_none(),
            "the gate must be able to mount a small file system"
        );
        eprintln!("passed over: this user may not mount a small file system");
        return;
    };
    let data = format!("--data-dir={}", data_flag(&disk).display());
    let mut server = Server::start(&Program::quorate().unwrap(), &[&data]).await;
    let client = Client::new(server.connect().await);
    let value = vec![b'x'; 1 << 20];
    let mut written = 0;
    let refused = loop {
        assert!(written < 2000, "the disk never filled");
        match client
            .try_put(client::put(format!("fill/{written:05}"), value.clone()))
            .await
        {
            Ok(_) => written += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(refused.message(), NO_SPACE);
    println!("full after {written} MiB");
    // The alarm is in the log and stands until it is disarmed.
    let alarms = loop {
        let listed = client
            .alarm(pb::alarm_request::AlarmAction::Get, 0, pb::AlarmType::None)
            .await
            .alarms;
        if !listed.is_empty() {
            break listed;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(alarms[0].alarm(), pb::AlarmType::Nospace);
    client::fails(
        client.try_put(client::put("more", value.clone())).await,
        Code::ResourceExhausted,
        NO_SPACE,
    );

    // Reads and deletes go on.
    let all = client::span("fill/", "fill0");
    let counted = client
        .range(pb::RangeRequest {
            count_only: true,
            ..all.clone()
        })
        .await;
    assert_eq!(counted.count, written as i64);
    assert_eq!(client.get("fill/00000").await.unwrap().value.len(), 1 << 20);
    let deleted = client
        .delete(client::delete_span("fill/", "fill/00100"))
        .await;
    assert_eq!(deleted.deleted, 100.min(written as i64));

    // The way back.
    let revision = client.revision().await;
    client.try_compact(revision, true).await.unwrap();
    client.try_defragment().await.unwrap();
    for alarm in alarms {
        client
            .alarm(
                pb::alarm_request::AlarmAction::Deactivate,
                alarm.member_id,
                pb::AlarmType::Nospace,
            )
            .await;
    }
    for i in 0..20 {
        client
            .put(client::put(format!("again/{i}"), value.clone()))
            .await;
    }
    server.restart().await;
    let client = Client::new(server.connect().await);
    assert_eq!(client.get("again/19").await.unwrap().value.len(), 1 << 20);
    let left = client
        .range(pb::RangeRequest {
            count_only: true,
            ..all
        })
        .await;
    assert_eq!(left.count, written as i64 - 100.min(written as i64));
}

/// Files of the log that have a segment's full size: the one being written, and those that are ready.
fn whole_segments(log: &Path) -> usize {
    let files = std::fs::read_dir(log).unwrap();
    files
        .filter(|file| file.as_ref().unwrap().metadata().unwrap().len() == 64 << 20)
        .count()
}

/// 7.3: each start takes a segment of the log that was made ready before. On a disk without a free byte
/// the member gives others back, so it starts again as often as it has to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_7_3_a_member_restarts_on_a_full_disk_again_and_again() {
    let Some(disk) = SmallDisk::mount(420) else {
        assert!(std::env::var_os("QUORATE_REQUIRE_PEERS").is_none());
        return;
    };
    let data = format!("--data-dir={}", data_flag(&disk).display());
    let mut server = Server::start(&Program::quorate().unwrap(), &[&data]).await;
    let client = Client::new(server.connect().await);
    client.put(client::put("k", "v")).await;
    let log = data_flag(&disk).join("member/log");
    let ready = async |log: &Path| {
        let began = Instant::now();
        while whole_segments(log) < 3 {
            assert!(began.elapsed() < PATIENCE, "segments were not given back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    ready(&log).await;
    // Everything else on the disk goes to somebody else.
    let mut filler = std::fs::File::create(disk.path().join("filler")).unwrap();
    let block = vec![1; 64 << 10];
    while filler.write_all(&block).is_ok() {}
    while filler.write_all(&block[..512]).is_ok() {}
    for _ in 0..6 {
        server.kill();
        server.restart().await;
        let client = Client::new(server.connect().await);
        assert_eq!(client.get("k").await.unwrap().value, "v");
        ready(&log).await;
    }
}
