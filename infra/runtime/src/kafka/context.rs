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
