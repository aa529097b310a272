//! The histogram of stalls: kept by the engine, which sees them, and read when somebody scrapes.

use engine::stall::{self, BOUNDS_MICROS};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::HashMap;

const NAME: &str = "quorate_stall_seconds";
const HELP: &str =
    "Time that threads on the way of a request waited for what others held, by cause.";
const LABEL: &str = "cause";

/// Upper bounds of the buckets, in seconds.
pub(super) fn buckets() -> Vec<f64> {
    BOUNDS_MICROS.iter().map(|us| *us as f64 / 1e6).collect()
}

#[derive(Clone)]
pub(super) struct Stalls(Desc);

impl Stalls {
    pub(super) fn new() -> prometheus::Result<Stalls> {
        let labels = vec![LABEL.to_owned()];
        Desc::new(NAME.to_owned(), HELP.to_owned(), labels, HashMap::new()).map(Stalls)
    }
}

fn metric(stalls: &stall::Stalls) -> Metric {
    let mut below = 0;
    let cumulative = |(bound, count): (f64, &u64)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(below);
        bucket
    };
    let counts = buckets().into_iter().zip(&stalls.buckets);
    let mut histogram = Histogram::default();
    histogram.set_bucket(counts.map(cumulative).collect());
    histogram.set_sample_count(stalls.count());
    histogram.set_sample_sum(stalls.total.as_secs_f64());
    let mut label = LabelPair::default();
    label.set_name(LABEL.to_owned());
    label.set_value(stalls.cause.name().to_owned());
    let mut metric = Metric::default();
    metric.set_label(vec![label]);
    metric.set_histogram(histogram);
    metric
}

impl Collector for Stalls {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut family = MetricFamily::default();
        family.set_name(NAME.to_owned());
        family.set_help(HELP.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(stall::seen().iter().map(metric).collect());
        vec![family]
    }
}
