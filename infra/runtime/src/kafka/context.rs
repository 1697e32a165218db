//! What librdkafka says, as logs and metrics.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

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

/// A client-wide error, such as "all brokers are down". librdkafka goes on trying, so it is a warning.
pub fn log_error(error: &KafkaError, reason: &str) {
    tracing::warn!(target: "librdkafka", %error, "{reason}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

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
}
