//! Prometheus metrics of one service: definitions, updates and the text exposition for `/metrics`.

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

/// Labels of the request counter.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Labels {
    pub model: String,
    pub version: String,
    pub code: u32,
}

/// Metrics of one service.
pub struct Counters {
    registry: Registry,
    requests: Family<Labels, Counter>,
    /// Responses by status, for the status page and the final report.
    responses: Mutex<BTreeMap<u32, u64>>,
    /// Seconds from the request to its response.
    pub seconds: Histogram,
    /// Images in each model call.
    pub batch: Histogram,
    /// Requests in the queue.
    pub waiting: Gauge,
    /// Requests accepted and not yet answered.
    pub open: Gauge,
    /// Changes of the served version.
    pub switches: Counter,
    /// Requests written to the traffic spool.
    pub recorded: Counter,
    /// Requests whose records were dropped because they could not be written in time.
    pub dropped: Counter,
}

impl Counters {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("mlx");
        let counters = Self {
            requests: Family::default(),
            responses: Mutex::default(),
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
        registry.register("requests", "Responses by model, version and status", counters.requests.clone());
        registry.register("request_seconds", "Response time in seconds", counters.seconds.clone());
        registry.register("batch_pictures", "Images in one model call", counters.batch.clone());
        registry.register("waiting_requests", "Requests in the queue", counters.waiting.clone());
        registry.register("open_requests", "Requests accepted and not yet answered", counters.open.clone());
        registry.register("switches", "Changes of the served version", counters.switches.clone());
        registry.register("traffic_recorded", "Requests recorded", counters.recorded.clone());
        registry.register(
            "traffic_dropped",
            "Requests not recorded because writing was too slow",
            counters.dropped.clone(),
        );
        Self { registry, ..counters }
    }

    /// Counts one response.
    pub fn count(&self, labels: &Labels) {
        self.requests.get_or_create(labels).inc();
        *self.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(labels.code).or_default() += 1;
    }

    /// Returns the number of responses so far, by status.
    pub fn responses(&self) -> BTreeMap<u32, u64> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the metrics as `OpenMetrics` text.
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
    fn labels_are_escaped() {
        let counters = Counters::new();
        let model = "<script>\"} 1\n\\".to_owned();
        counters.count(&Labels { model, version: "v1".into(), code: 200 });
        let text = counters.text();
        let expected = r#"mlx_requests_total{model="<script>\"} 1\n\\",version="v1",code="200"} 1"#;
        assert!(text.lines().any(|line| line == expected), "{text}");
    }
}
