//! librdkafka's per-broker figures (`statistics.interval.ms`) as metrics.
//!
//! Source: <https://github.com/confluentinc/librdkafka/blob/v2.12.1/STATISTICS.md>

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use rdkafka::statistics::Broker;

use crate::telemetry::metrics::meter;

/// The figures of one client. Clones share them; when the last is dropped they leave the exposition.
#[derive(Debug, Clone)]
pub struct Statistics(Arc<Client>);

#[derive(Debug)]
struct Client {
    name: String,
}

type Figures = HashMap<String, rdkafka::Statistics>;

/// The newest figures of every live client, read when metrics are scraped.
static FIGURES: LazyLock<Mutex<Figures>> = LazyLock::new(|| {
    register(&meter());
    Mutex::default()
});

fn figures() -> MutexGuard<'static, Figures> {
    FIGURES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Statistics {
    /// `client` is the value of the label `client`.
    pub fn new(client: impl Into<String>) -> Self {
        Self(Arc::new(Client { name: client.into() }))
    }

    /// Takes what librdkafka reported, from [`rdkafka::ClientContext::stats`].
    pub fn record(&self, statistics: &rdkafka::Statistics) {
        figures().insert(self.0.name.clone(), statistics.clone());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        figures().remove(&self.name);
    }
}

fn register(meter: &Meter) {
    gauge(meter, "coderelay.kafka.broker.up", "", "1 while the connection to the broker is up", |broker| {
        Some(f64::from(u8::from(broker.state == "UP")))
    });
    gauge(meter, "coderelay.kafka.broker.outbuf.requests", "", "Requests waiting to be sent to the broker", |broker| {
        Some(broker.outbuf_cnt as f64)
    });
}

fn gauge(
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    read: impl Fn(&Broker) -> Option<f64> + Send + Sync + 'static,
) {
    meter
        .f64_observable_gauge(name)
        .with_unit(unit)
        .with_description(description)
        .with_callback(move |observer| {
            for (client, statistics) in figures().iter() {
                for broker in statistics.brokers.values().filter(|broker| broker.nodeid >= 0) {
                    if let Some(value) = read(broker) {
                        let labels =
                            [KeyValue::new("client", client.clone()), KeyValue::new("broker", broker.nodename.clone())];
                        observer.observe(value, &labels);
                    }
                }
            }
        })
        .build();
}
