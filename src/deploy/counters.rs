//! What the service counts, in the words of Prometheus.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Which requests.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Labels {
    pub model: String,
    pub version: String,
    pub code: u32,
}

/// Counters of one service.
pub struct Counters {
    registry: Registry,
    requests: Family<Labels, Counter>,
    answers: Mutex<BTreeMap<u32, u64>>,
    /// From the first byte to the last of an answer.
    pub seconds: Histogram,
    /// Pictures in each run of the network.
    pub batch: Histogram,
    pub waiting: Gauge,
    pub open: Gauge,
    pub switches: Counter,
    pub recorded: Counter,
    pub dropped: Counter,
}

impl Counters {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("mlx");
        let counters = Self {
            requests: Family::default(),
            answers: Mutex::default(),
            // 1 ms to about 30 s.
            seconds: Histogram::new(exponential_buckets(0.001, 1.5, 26)),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 8)),
            waiting: Gauge::default(),
            open: Gauge::default(),
            switches: Counter::default(),
            recorded: Counter::default(),
            dropped: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Answers by model, version and status", counters.requests.clone());
        registry.register("request_seconds", "Time to answer", counters.seconds.clone());
        registry.register("batch_pictures", "Pictures in one run of the network", counters.batch.clone());
        registry.register("waiting_requests", "Requests in the queue", counters.waiting.clone());
        registry.register(
            "open_requests",
            "Requests that were taken and not answered",
            counters.open.clone(),
        );
        registry.register("switches", "Changes of the version that answers", counters.switches.clone());
        registry.register("traffic_recorded", "Requests recorded", counters.recorded.clone());
        registry.register(
            "traffic_dropped",
            "Requests not recorded for want of time",
            counters.dropped.clone(),
        );
        Self { registry, ..counters }
    }

    pub fn count(&self, labels: &Labels) {
        self.requests.get_or_create(labels).inc();
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(labels.code).or_default() += 1;
    }

    /// Answers by status so far.
    pub fn answers(&self) -> BTreeMap<u32, u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _written = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_end_its_line() {
        let counters = Counters::new();
        let model = "<script>\"} 1\n\\".to_owned();
        counters.count(&Labels { model, version: "v1".into(), code: 200 });
        let text = counters.text();
        let wanted = r#"mlx_requests_total{model="<script>\"} 1\n\\",version="v1",code="200"} 1"#;
        assert!(text.lines().any(|it| it == wanted), "{text}");
    }
}
