//! What librdkafka says, as logs and metrics.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::statistics::Statistics;

/// A client context that logs through `tracing` and feeds the per-broker figures to the metrics. A service with callbacks of its own
/// (deliveries, rebalances) holds a [`Statistics`] in its own context and forwards `stats`, `log` and `error` the same way.
#[derive(Debug, Clone)]
pub struct Context {
    statistics: Statistics,
}

impl Context {
    /// `client` is the `client` label of the figures: the role of the client within the service, as `producer` or `worker-3`.
    pub fn new(client: impl Into<String>) -> Self {
        Self { statistics: Statistics::new(client) }
    }

    /// The client's figures.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn stats(&self, statistics: rdkafka::Statistics) {
        self.statistics.record(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Context {}

/// One line of librdkafka's log, under the target `librdkafka`.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "librdkafka", facility, "{message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// A client-wide error, such as "all brokers are down". librdkafka goes on trying and says so twenty times a second: an error of one
/// kind is logged once in 30 s, as a warning. A fatal one is always logged.
pub fn log_error(error: &KafkaError, reason: &str) {
    static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);
    let code = error.rdkafka_error_code();
    if code == Some(RDKafkaErrorCode::Fatal) {
        tracing::error!(target: "librdkafka", %error, "{reason}");
        return;
    }
    if let Some(repeated) = SEEN.lock().unwrap_or_else(PoisonError::into_inner).admit(code, Instant::now()) {
        tracing::warn!(target: "librdkafka", %error, repeated, "{reason}");
    }
}

/// For so long an error is not logged again.
const QUIET: Duration = Duration::from_secs(30);

/// When each kind of error was last logged, and how often it was not since.
#[derive(Debug, Default)]
struct Seen(HashMap<Option<i32>, (Instant, u64)>);

impl Seen {
    /// Whether to log it now, and if so how often it was kept back before.
    fn admit(&mut self, code: Option<RDKafkaErrorCode>, now: Instant) -> Option<u64> {
        let code = code.map(|code| code as i32);
        match self.0.get_mut(&code) {
            Some((logged, repeated)) if now.duration_since(*logged) < QUIET => {
                *repeated += 1;
                None
            }
            _ => Some(self.0.insert(code, (now, 0)).map_or(0, |(_, repeated)| repeated)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rdkafka::consumer::{BaseConsumer, Consumer};

    use super::*;
    use crate::config::HumanDuration;
    use crate::kafka::{KafkaConfig, client_config};
    use crate::telemetry::metrics::exposition;

    #[test]
    fn the_figures_of_a_real_client_arrive() {
        let config = KafkaConfig {
            statistics_interval: HumanDuration::from_millis(100),
            // A broker inside librdkafka; the configured address is not used.
            properties: BTreeMap::from([("test.mock.num.brokers".into(), "1".into())]),
            ..KafkaConfig::default()
        };
        let context = Context::new("mocked");
        let consumer: BaseConsumer<Context> = client_config(&config).create_with_context(context).unwrap();
        consumer.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            // Callbacks run inside poll.
            consumer.poll(Duration::from_millis(50));
            let text = exposition().unwrap();
            let up = |line: &str| {
                line.starts_with("coderelay_kafka_broker_up{")
                    && line.contains("client=\"mocked\"")
                    && line.ends_with(" 1")
            };
            if text.lines().any(up) && text.contains("coderelay_kafka_broker_rtt_seconds{") {
                break;
            }
            assert!(Instant::now() < deadline, "no figures in\n{text}");
        }
    }

    #[test]
    fn an_error_that_repeats_is_logged_once_in_a_while() {
        let (down, transport) =
            (Some(RDKafkaErrorCode::AllBrokersDown), Some(RDKafkaErrorCode::BrokerTransportFailure));
        let (mut seen, start) = (Seen::default(), Instant::now());
        assert_eq!(seen.admit(down, start), Some(0));
        assert_eq!(seen.admit(transport, start), Some(0), "another kind");
        assert_eq!(seen.admit(down, start + QUIET / 2), None);
        assert_eq!(seen.admit(down, start + QUIET / 2), None);
        assert_eq!(seen.admit(down, start + QUIET), Some(2));
        assert_eq!(seen.admit(down, start + QUIET), None);
    }
}
