//! Tables in Markdown, ready for `docs/benchmarks.md`.

use crate::driver::{Measured, Shape};
use crate::workload::Kind;

/// Head of the table of `row`.
pub const HEADER: &str = "| server | workload | shape | req/s | p50 µs | p99 µs | p99.9 µs | CPU µs/req | RSS MB | bytes written/req | errors |\n|---|---|---|---|---|---|---|---|---|---|---|";

fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |v| format!("{v:.digits$}"))
}

/// One measurement as a row.
pub fn row(server: &str, kind: Kind, shape: Shape, m: &Measured) -> String {
    format!(
        "| {server} | {} | {}x{} | {:.0} | {} | {} | {} | {} | {} | {} | {} |",
        kind.name(),
        shape.connections,
        shape.streams,
        m.per_second,
        m.p50_us,
        m.p99_us,
        m.p999_us,
        optional(m.cpu_us, 1),
        optional(m.rss_bytes.map(|b| b as f64 / 1e6), 0),
        optional(m.written_per_request, 0),
        m.errors,
    )
}

/// The measurement whose CPU per request (else rate) is the median.
pub fn median(mut rounds: Vec<Measured>) -> Option<Measured> {
    rounds.sort_by(|a, b| {
        let by = |m: &Measured| m.cpu_us.unwrap_or(m.per_second);
        by(a).total_cmp(&by(b))
    });
    let middle = rounds.len() / 2;
    rounds.into_iter().nth(middle)
}
