//! librdkafka's per-broker figures (`statistics.interval.ms`) as metrics.
//!
//! Labels: `client`, the role of the client in the service; `broker`, `host:port`; `quantile` of librdkafka's own window, which is one
//! reporting interval. Source: <https://github.com/confluentinc/librdkafka/blob/v2.12.1/STATISTICS.md>

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use rdkafka::statistics::{Broker, Window};

use crate::telemetry::metrics::meter;

/// For so long a client without a broker may find one again.
const STRANDED_AFTER: Duration = Duration::from_secs(5);

/// The figures of one client. Clones share them; when the last is dropped, they leave `/metrics`.
#[derive(Debug, Clone)]
pub struct Statistics(Arc<Client>);

#[derive(Debug)]
struct Client {
    id: u64,
    name: String,
    alone: Mutex<Alone>,
    stranded: AtomicBool,
}

impl Statistics {
    /// `client` is the value of the label `client`: a role such as `producer` or `consumer-3`, not a name made up anew for each client.
    pub fn new(client: impl Into<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Client {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: client.into(),
            alone: Mutex::default(),
            stranded: AtomicBool::default(),
        }))
    }

    /// Takes what librdkafka reported, from [`rdkafka::ClientContext::stats`].
    pub fn record(&self, statistics: &rdkafka::Statistics) {
        let is_alone = !statistics.brokers.values().any(|broker| ["learned", "configured"].contains(&&*broker.source));
        let stranded =
            self.0.alone.lock().unwrap_or_else(PoisonError::into_inner).is_stranded(is_alone, Instant::now());
        self.0.stranded.store(stranded, Ordering::Relaxed);
        let label = KeyValue::new("client", self.0.name.clone());
        // Bootstrap addresses and the coordinator's logical entry repeat brokers that are listed by their id.
        let brokers = statistics.brokers.values().filter(|broker| broker.nodeid >= 0 && broker.source != "logical");
        let reported = Reported {
            brokers: brokers
                .cloned()
                .map(|broker| (KeyValue::new("broker", broker.nodename.clone()), broker))
                .collect(),
            queued: statistics.msg_cnt,
            queued_bytes: statistics.msg_size,
            label,
        };
        reports().insert(self.0.id, reported);
    }

    /// Whether the client knew no broker by its last reports, for five seconds and more: not one of the cluster, and none of those that it
    /// was configured with. Nothing but a new client helps then.
    ///
    /// librdkafka drops the brokers that a metadata response leaves out (since 2.10, librdkafka#4557), and goes back to the bootstrap servers
    /// when it has none left; but in 2.12 the end of that response's handling calls this off, if it comes later. So a client is left alone
    /// for ever by a cluster whose only broker was fenced for a moment, say because it had stood still.
    pub fn is_stranded(&self) -> bool {
        self.0.stranded.load(Ordering::Relaxed)
    }
}

/// Since when a client has reported no broker.
#[derive(Debug, Default)]
struct Alone(Option<Instant>);

impl Alone {
    /// Takes a report of `now`; whether it has been like this for long.
    fn is_stranded(&mut self, is_alone: bool, now: Instant) -> bool {
        self.0 = is_alone.then(|| self.0.unwrap_or(now));
        self.0.is_some_and(|since| now.duration_since(since) >= STRANDED_AFTER)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        reports().remove(&self.id);
    }
}

/// What a client reported last.
#[derive(Debug)]
struct Reported {
    label: KeyValue,
    brokers: Vec<(KeyValue, Broker)>,
    queued: u64,
    queued_bytes: u64,
}

/// The last report of every live client, read when metrics are scraped.
static REPORTS: LazyLock<Mutex<HashMap<u64, Reported>>> = LazyLock::new(|| {
    register(&meter());
    Mutex::default()
});

fn reports() -> MutexGuard<'static, HashMap<u64, Reported>> {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a metric reads what a client reported about a broker.
type Reading = fn(&Broker) -> u64;
type WindowOf = for<'a> fn(&'a Broker) -> Option<&'a Window>;

const LATENCIES: [(&str, &str, WindowOf); 3] = [
    ("coderelay.kafka.broker.rtt", "Round trip to the broker", |broker| broker.rtt.as_ref()),
    ("coderelay.kafka.broker.internal_latency", "Time a record waits in the client before it is batched", |broker| {
        broker.int_latency.as_ref()
    }),
    ("coderelay.kafka.broker.outbuf_latency", "Time a request waits before it is sent", |broker| {
        broker.outbuf_latency.as_ref()
    }),
];

const GAUGES: [(&str, &str, Reading); 3] = [
    ("coderelay.kafka.broker.up", "1 while the connection to the broker is up", |broker| {
        u64::from(broker.state == "UP")
    }),
    ("coderelay.kafka.broker.outbuf_requests", "Requests waiting to be sent", |broker| natural(broker.outbuf_cnt)),
    ("coderelay.kafka.broker.outbuf_messages", "Records waiting to be sent", |broker| natural(broker.outbuf_msg_cnt)),
];

const COUNTERS: [(&str, &str, Reading); 5] = [
    ("coderelay.kafka.broker.tx_errors", "Transmission errors", |broker| broker.txerrs),
    ("coderelay.kafka.broker.rx_errors", "Receive errors", |broker| broker.rxerrs),
    ("coderelay.kafka.broker.retries", "Requests sent again", |broker| broker.txretries),
    ("coderelay.kafka.broker.timeouts", "Requests that timed out", |broker| broker.req_timeouts),
    ("coderelay.kafka.broker.disconnects", "Connections that ended", |broker| natural(broker.disconnects.unwrap_or(0))),
];

fn register(meter: &Meter) {
    for (name, description, window) in LATENCIES {
        let gauge = meter.f64_observable_gauge(name).with_unit("s").with_description(description);
        gauge
            .with_callback(move |observer| each_broker(|labels, broker| latency(observer, labels, window(broker))))
            .build();
    }
    for (name, description, read) in GAUGES {
        let gauge = meter.u64_observable_gauge(name).with_description(description);
        gauge
            .with_callback(move |observer| each_broker(|labels, broker| observer.observe(read(broker), labels)))
            .build();
    }
    for (name, description, read) in COUNTERS {
        let counter = meter.u64_observable_counter(name).with_description(description);
        counter
            .with_callback(move |observer| each_broker(|labels, broker| observer.observe(read(broker), labels)))
            .build();
    }
    let gauge = meter.u64_observable_gauge("coderelay.kafka.producer.queue_messages");
    gauge
        .with_description("Records in the producer's queue")
        .with_callback(|observer| each_client(observer, |client| client.queued))
        .build();
    let gauge = meter.u64_observable_gauge("coderelay.kafka.producer.queue").with_unit("By");
    gauge
        .with_description("Size of the producer's queue")
        .with_callback(|observer| each_client(observer, |client| client.queued_bytes))
        .build();
}

fn each_client(observer: &dyn AsyncInstrument<u64>, read: impl Fn(&Reported) -> u64) {
    for client in reports().values() {
        observer.observe(read(client), std::slice::from_ref(&client.label));
    }
}

fn each_broker(mut observe: impl FnMut(&[KeyValue], &Broker)) {
    for report in reports().values() {
        for (broker_label, broker) in &report.brokers {
            observe(&[report.label.clone(), broker_label.clone()], broker);
        }
    }
}

/// Microseconds to seconds. A window in which nothing was measured says nothing.
fn latency(observer: &dyn AsyncInstrument<f64>, labels: &[KeyValue], window: Option<&Window>) {
    let Some(window) = window.filter(|window| window.cnt > 0) else { return };
    for (quantile, micros) in [("0.5", window.p50), ("0.99", window.p99)] {
        let labels = [labels, &[KeyValue::new("quantile", quantile)]].concat();
        observer.observe(micros as f64 / 1e6, &labels);
    }
}

/// librdkafka writes -1 where a figure does not apply.
fn natural(figure: i64) -> u64 {
    u64::try_from(figure).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::exposition;

    fn broker(rtt_micros: i64) -> Broker {
        let rtt = Window { p50: rtt_micros, p99: 2 * rtt_micros, cnt: 1, ..Window::default() };
        Broker {
            nodeid: 1,
            nodename: "kafka:9092".into(),
            state: "UP".into(),
            txerrs: 3,
            rtt: Some(rtt),
            outbuf_cnt: -1,
            ..Broker::default()
        }
    }

    #[test]
    fn the_figures_of_live_clients_are_exposed() {
        let statistics = Statistics::new("exposed");
        let bootstrap = Broker { nodeid: -1, nodename: "seed:9092".into(), ..Broker::default() };
        let brokers = [("1".to_owned(), broker(2_000)), ("seed".to_owned(), bootstrap)].into();
        statistics.record(&rdkafka::Statistics { brokers, msg_size: 512, ..Default::default() });

        let text = exposition().unwrap();
        for line in [
            r#"coderelay_kafka_broker_rtt_seconds{broker="kafka:9092",client="exposed",quantile="0.5"} 0.002"#,
            r#"coderelay_kafka_broker_rtt_seconds{broker="kafka:9092",client="exposed",quantile="0.99"} 0.004"#,
            r#"coderelay_kafka_broker_tx_errors_total{broker="kafka:9092",client="exposed"} 3"#,
            r#"coderelay_kafka_broker_up{broker="kafka:9092",client="exposed"} 1"#,
            r#"coderelay_kafka_broker_outbuf_requests{broker="kafka:9092",client="exposed"} 0"#,
            r#"coderelay_kafka_producer_queue_bytes{client="exposed"} 512"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("seed:9092"), "a bootstrap address repeats a broker");
    }

    #[test]
    fn the_figures_of_a_dropped_client_are_gone() {
        let statistics = Statistics::new("dropped");
        let shared = statistics.clone();
        statistics.record(&rdkafka::Statistics { msg_cnt: 7, ..Default::default() });
        drop(statistics);
        assert!(exposition().unwrap().contains("client=\"dropped\""));
        drop(shared);
        assert!(!exposition().unwrap().contains("client=\"dropped\""));
    }

    #[test]
    fn a_client_is_stranded_that_reports_no_broker_twice_with_time_between() {
        let (mut alone, began) = (Alone::default(), Instant::now());
        let mut report = |is_alone, seconds| alone.is_stranded(is_alone, began + Duration::from_secs(seconds));
        assert!(!report(true, 0));
        assert!(!report(true, 4));
        assert!(!report(false, 5), "it has found one");
        assert!(!report(true, 6));
        assert!(report(true, 11));
        assert!(!report(false, 12));
    }

    #[test]
    fn brokers_count_that_were_learned_or_configured() {
        let with = |source: &str| {
            let statistics = Statistics::new("stranded");
            *statistics.0.alone.lock().unwrap() = Alone(Instant::now().checked_sub(STRANDED_AFTER));
            let brokers = [("one".to_owned(), Broker { source: source.into(), ..broker(0) })].into();
            statistics.record(&rdkafka::Statistics { brokers, ..Default::default() });
            statistics.is_stranded()
        };
        assert_eq!(["learned", "configured", "logical", "internal"].map(with), [false, false, true, true]);
    }
}
