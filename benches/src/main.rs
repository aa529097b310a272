//! `quorate-bench`: a load driver for any server that speaks etcd's API.
//!
//! `run` loads one endpoint; `compare` starts our server and etcd binaries, alternates rounds
//! between them and prints one table. Figures: requests per second, p50/p99/p99.9, CPU of the server
//! process per request, its resident memory and the bytes it wrote, all from `/proc`.
//!
//! CPU per request and ratios within one table are what counts; machines differ and so do hours.

mod compare;
mod driver;
mod procfs;
mod report;
mod server;
mod wire;
mod workload;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;
use workload::Kind;

#[derive(Parser)]
#[command(about = "Load driver for etcd-compatible servers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Loads one endpoint.
    Run(RunArgs),
    /// Starts ours and etcd and alternates rounds between them.
    Compare(CompareArgs),
}

/// What the load looks like.
#[derive(Args, Clone)]
pub struct LoadArgs {
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds of the same load before measuring.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Keys written before and addressed by the load. Fewer than 100,000 is not a benchmark.
    #[arg(long, default_value_t = 100_000)]
    key_space: u64,
    /// Bytes per value.
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Seed of keys and values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Workloads: put, txn, range1, range1-serializable, range100, range100-serializable, watch.
    #[arg(long, value_delimiter = ',', default_value = "put")]
    workload: Vec<Kind>,
    /// `host:port` of the server.
    #[arg(long, default_value = "127.0.0.1:2379")]
    endpoint: String,
    /// Connections.
    #[arg(long, default_value_t = 10)]
    connections: usize,
    /// Calls in flight per connection.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Requests per second in all (open loop: latency counts from the intended start); 0 = closed loop.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Process to take CPU, memory and bytes written from.
    #[arg(long)]
    pid: Option<u32>,
    /// Do not write the key space first.
    #[arg(long)]
    no_preload: bool,
}

/// Arguments of `compare`.
#[derive(Args)]
pub struct CompareArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Our binary.
    #[arg(long)]
    ours: PathBuf,
    /// An etcd binary; may be given several times. Default: $ETCD_BIN, else `etcd` on the path.
    #[arg(long)]
    etcd: Vec<PathBuf>,
    /// Workloads to compare.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "put,txn,range1,range1-serializable,range100,range100-serializable"
    )]
    workload: Vec<Kind>,
    /// Shapes: connections x calls in flight on each.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1x1,10x1,10x10,10x100,1000x1"
    )]
    shapes: Vec<driver::Shape>,
    /// Rounds per server; medians are reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Requests per second in all (open loop: latency counts from the intended start); 0 = closed loop.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Where the data directories go; default: a temporary directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Extra flags for our server.
    #[arg(long, allow_hyphen_values = true)]
    ours_flag: Vec<String>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run(args).await,
            Command::Compare(args) => compare::run(args).await,
        }
    })
}

/// Time between two intended starts; none in a closed loop.
pub fn pace(rate: f64) -> Option<Duration> {
    (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate))
}

async fn run(args: RunArgs) -> Result<(), AnyError> {
    let target = driver::Target {
        endpoint: args.endpoint,
        pid: args.pid,
    };
    if !args.no_preload {
        driver::preload(&target, &args.load).await?;
    }
    let shape = driver::Shape {
        connections: args.connections,
        streams: args.streams,
    };
    println!("{}", report::HEADER);
    for kind in args.workload {
        let pace = pace(args.rate);
        let result = driver::measure(&target, kind, shape, &args.load, pace).await?;
        println!("{}", report::row("", kind, shape, &result));
    }
    Ok(())
}
