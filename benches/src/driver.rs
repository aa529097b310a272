//! Running a workload: connections × calls in flight, closed or open loop.

use crate::procfs::{self, Usage};
use crate::wire::{REQUEST_BYTES_MAX, Wire};
use crate::workload::{Caller, Kind, key};
use crate::{AnyError, LoadArgs};
use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate_proto::etcdserverpb as pb;
use quorate_proto::etcdserverpb::kv_client::KvClient;
use quorate_proto::etcdserverpb::watch_client::WatchClient;
use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

/// Who is loaded.
#[derive(Clone, Debug)]
pub struct Target {
    /// `host:port`.
    pub endpoint: String,
    /// The server's process, when known.
    pub pid: Option<u32>,
}

/// Connections × calls in flight on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Connections.
    pub connections: usize,
    /// Calls in flight per connection.
    pub streams: usize,
}

impl FromStr for Shape {
    type Err = String;
    fn from_str(text: &str) -> Result<Shape, String> {
        let (c, s) = text
            .split_once('x')
            .ok_or("a shape is written CONNECTIONSxSTREAMS")?;
        Ok(Shape {
            connections: c.parse().map_err(|e| format!("{e}"))?,
            streams: s.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

/// What a measurement found.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Requests per second (for `watch`: delivered events per second).
    pub per_second: f64,
    /// Latency percentiles, microseconds.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// 99.9th percentile.
    pub p999_us: u64,
    /// Server CPU per request.
    pub cpu_us: Option<f64>,
    /// Server memory at the end.
    pub rss_bytes: Option<u64>,
    /// Bytes written per request.
    pub written_per_request: Option<f64>,
    /// Calls that failed.
    pub errors: u64,
}

async fn connect(target: &Target) -> Result<Channel, AnyError> {
    Ok(
        Endpoint::from_shared(format!("http://{}", target.endpoint))?
            .tcp_nodelay(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect()
            .await?,
    )
}

/// Writes the key space.
pub async fn preload(target: &Target, args: &LoadArgs) -> Result<(), AnyError> {
    const BATCH: u64 = 100;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let channel = connect(target).await?;
        for _ in 0..8 {
            let (channel, next) = (channel.clone(), next.clone());
            let (keys, value_bytes) = (args.key_space, args.value_bytes);
            tasks.push(tokio::spawn(async move {
                let mut client = KvClient::new(channel);
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    if first >= keys {
                        return Ok::<(), tonic::Status>(());
                    }
                    let success = (first..keys.min(first + BATCH))
                        .map(|n| pb::RequestOp {
                            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                                key: key(n),
                                value: Bytes::from(vec![n as u8; value_bytes]),
                                ..Default::default()
                            })),
                        })
                        .collect();
                    let txn = pb::TxnRequest {
                        success,
                        ..Default::default()
                    };
                    client.txn(txn).await?;
                }
            }));
        }
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const DONE: u8 = 2;

/// Runs one workload in one shape. `pace` is the time between intended starts over all callers.
pub async fn measure(
    target: &Target,
    kind: Kind,
    shape: Shape,
    args: &LoadArgs,
    pace: Option<Duration>,
) -> Result<Measured, AnyError> {
    if args.value_bytes + 200 > REQUEST_BYTES_MAX {
        return Err(format!("values of more than {} bytes", REQUEST_BYTES_MAX - 200).into());
    }
    let phase = Arc::new(AtomicU8::new(WARMING));
    let delivered = Arc::new(AtomicU64::new(0));
    let mut watchers = Vec::new();
    if kind == Kind::Watch {
        // One connection of its own writes.
        for _ in 0..shape.connections.saturating_sub(1).max(1) {
            let channel = connect(target).await?;
            for _ in 0..shape.streams {
                watchers.push(watch(channel.clone(), delivered.clone()).await?);
            }
        }
    }
    let connections = match kind {
        Kind::Watch => 1,
        _ => shape.connections,
    };
    let callers = (connections * shape.streams) as u64;
    let mut tasks = Vec::new();
    for c in 0..connections {
        let wire = Wire::connect(&target.endpoint, kind.path()).await?;
        let first = (c * shape.streams) as u64;
        let of_connection: Vec<_> = (first..first + shape.streams as u64)
            .map(|index| Caller::new(kind, index, callers, args))
            .collect();
        let pace = pace.map(|p| (p * callers as u32, p, first as u32));
        tasks.push(tokio::spawn(connection_loop(
            wire,
            of_connection,
            phase.clone(),
            pace,
        )));
    }
    tokio::time::sleep(Duration::from_secs_f64(args.warm_up)).await;
    let usage = || target.pid.and_then(procfs::usage);
    let (before, delivered_before) = (usage(), delivered.load(Ordering::Relaxed));
    let start = Instant::now();
    phase.store(MEASURING, Ordering::Release);
    tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
    phase.store(DONE, Ordering::Release);
    let elapsed = start.elapsed();
    let (after, delivered_after) = (usage(), delivered.load(Ordering::Relaxed));

    let mut latencies = Histogram::<u64>::new(3)?;
    let mut errors = 0;
    for task in tasks {
        let (histogram, failed) = task.await??;
        latencies.add(&histogram)?;
        errors += failed;
    }
    watchers.iter().for_each(tokio::task::JoinHandle::abort);
    let count = match kind {
        Kind::Watch => delivered_after - delivered_before,
        _ => latencies.len(),
    };
    let per_request = |f: fn(&Usage) -> u64| {
        let (before, after) = (before.as_ref()?, after.as_ref()?);
        Some((f(after) - f(before)) as f64 / count.max(1) as f64)
    };
    Ok(Measured {
        per_second: count as f64 / elapsed.as_secs_f64(),
        p50_us: latencies.value_at_quantile(0.50),
        p99_us: latencies.value_at_quantile(0.99),
        p999_us: latencies.value_at_quantile(0.999),
        cpu_us: per_request(|u| u.cpu_us),
        rss_bytes: after.map(|u| u.rss_bytes),
        written_per_request: per_request(|u| u.written_bytes),
        errors,
    })
}

/// Time between the calls of a caller, between those of all callers, and the first caller's number.
type Pace = (Duration, Duration, u32);

/// Keeps one call of each caller in flight, or begins each at its intended time.
async fn connection_loop(
    mut wire: Wire,
    mut callers: Vec<Caller>,
    phase: Arc<AtomicU8>,
    pace: Option<Pace>,
) -> Result<(Histogram<u64>, u64), std::io::Error> {
    // Three digits, a minute at most: the bounds are constants that fit.
    let mut histogram =
        Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("constant bounds are valid");
    let mut errors = 0;
    let now = Instant::now();
    // When the call in flight of each caller began, or the next should, and whether it counts.
    let mut begun: Vec<(Instant, bool)> = (0..callers.len())
        .map(|n| match pace {
            Some((_, step, first)) => (now + step * (first + n as u32), false),
            None => (now, false),
        })
        .collect();
    let mut due: VecDeque<usize> = (0..callers.len()).collect();
    let mut ended = Vec::new();
    let mut message = Vec::new();
    loop {
        let now = Instant::now();
        let at = phase.load(Ordering::Acquire);
        if at == DONE && wire.in_flight() == 0 {
            return Ok((histogram, errors));
        }
        let mut wake = None;
        while let Some(&n) = due.front().filter(|_| at != DONE && wire.has_room()) {
            if pace.is_some() && begun[n].0 > now {
                wake = Some(begun[n].0);
                break;
            }
            due.pop_front();
            if pace.is_none() {
                begun[n].0 = now;
            }
            begun[n].1 = at == MEASURING;
            message.clear();
            callers[n].request(&mut message);
            wire.call(n, &message);
        }
        wire.send().await?;
        match wake {
            None if wire.in_flight() == 0 => tokio::time::sleep(Duration::from_millis(1)).await,
            None => wire.receive(&mut ended).await?,
            Some(wake) => tokio::select! {
                received = wire.receive(&mut ended) => received?,
                () = tokio::time::sleep_until(wake.into()) => {}
            },
        }
        let now = Instant::now();
        for (n, result) in ended.drain(..) {
            let (start, measured) = begun[n];
            match result.and_then(|body| callers[n].answer(body)) {
                Ok(()) if measured => {
                    histogram.saturating_record((now - start).as_micros() as u64);
                }
                Ok(()) => {}
                Err(error) => {
                    if errors == 0 {
                        eprintln!("call failed: {error}");
                    }
                    errors += 1;
                }
            }
            if let Some((each, _, _)) = pace {
                begun[n].0 += each;
            }
            // The one that is due first stays in front.
            let later = due
                .iter()
                .rev()
                .take_while(|&&o| pace.is_some() && begun[o].0 > begun[n].0);
            let at = due.len() - later.count();
            due.insert(at, n);
        }
    }
}

async fn watch(
    channel: Channel,
    delivered: Arc<AtomicU64>,
) -> Result<tokio::task::JoinHandle<()>, AnyError> {
    let create = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
            pb::WatchCreateRequest {
                key: Bytes::from_static(b"/bench/"),
                range_end: Bytes::from_static(b"/bench0"),
                ..Default::default()
            },
        )),
    };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .watch(requests)
        .await?
        .into_inner();
    Ok(tokio::spawn(async move {
        while let Ok(Some(response)) = stream.message().await {
            delivered.fetch_add(response.events.len() as u64, Ordering::Relaxed);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_parse() {
        assert_eq!(
            "10x100".parse(),
            Ok(Shape {
                connections: 10,
                streams: 100
            })
        );
        assert!("10".parse::<Shape>().is_err());
        assert!("ax1".parse::<Shape>().is_err());
    }
}
