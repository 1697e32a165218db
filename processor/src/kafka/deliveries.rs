//! What a transactional producer is told besides the answers to its calls: deliveries that failed, and connections that broke.

use std::sync::{Mutex, MutexGuard, PoisonError};

use coderelay_runtime::kafka::{Statistics, context};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryResult, ProducerContext};

/// What librdkafka calls the end of a connection in its log.
const FAILURE: &str = "FAIL";
/// States of a connection that has carried no request of the producer yet, as librdkafka's log names them.
const UNUSED: [&str; 6] = ["INIT", "DOWN", "CONNECT", "SSL_HANDSHAKE", "AUTH_LEGACY", "APIVERSION_QUERY"];

/// How the client leaves the connection over which it has learned of the brokers; it carried nothing of a transaction.
const LEARNED: &str = "/bootstrap: Decommissioning this broker";

/// The events of one producer.
pub(super) struct Deliveries {
    events: Mutex<Events>,
    clients: Statistics,
}

#[derive(Default)]
struct Events {
    served: u64,
    failure: Option<KafkaError>,
    broken: Option<String>,
}

impl Deliveries {
    /// Of the producer that is called `client` in metrics.
    pub(super) fn new(client: String) -> Self {
        Self { events: Mutex::default(), clients: Statistics::new(client) }
    }

    /// The first delivery that failed since this was asked last.
    pub(super) fn take_failure(&self) -> Option<KafkaError> {
        self.events().failure.take()
    }

    /// The first connection that broke after it had carried requests.
    ///
    /// librdkafka sends such requests once more and says nothing of it, and those that were under way may still reach the broker. Where a
    /// client lacks KIP-890, a stray end of a transaction ends whatever transaction its producer has open by then.
    pub(super) fn broken(&self) -> Option<String> {
        self.events().broken.clone()
    }

    /// How many events were served so far.
    pub(super) fn served(&self) -> u64 {
        self.events().served
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this is said of a connection that may have carried requests: any but those whose state says otherwise.
fn carried_requests(message: &str) -> bool {
    let state = message.rsplit_once(" in state ").map(|(_, state)| state);
    !message.contains(LEARNED)
        && !state.is_some_and(|state| UNUSED.iter().any(|unused| state.trim_start_matches("TRY_").starts_with(unused)))
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let mut events = self.events();
        events.served += 1;
        if facility == FAILURE && carried_requests(message) {
            events.broken.get_or_insert_with(|| message.to_owned());
        }
        drop(events);
        context::log(level, facility, message);
    }

    fn stats(&self, statistics: rdkafka::Statistics) {
        self.events().served += 1;
        self.clients.record(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events().served += 1;
        context::log_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut events = self.events();
        events.served += 1;
        if let Err((error, _)) = result {
            events.failure.get_or_insert_with(|| error.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_breaks_only_once_it_was_made() {
        let said = |end: &str| format!("[thrd:a]: 127.0.0.1:9092/1: {end}");
        let learned = "127.0.0.1:9092/bootstrap: Decommissioning this broker (after 1ms in state UP) (_DESTROY_BROKER)";
        assert!(!carried_requests(learned));
        for end in [
            "Disconnected: connection closed by peer: receive 0 after POLLIN (after 1191ms in state UP)",
            "Disconnected (after 12ms in state UP, 1 identical error(s) suppressed)",
            "3 request(s) timed out: disconnect (average rtt 1.2ms) (after 60001ms in state UP)",
            "Disconnected (after 3ms in state REAUTH)",
            "Disconnected (after 12ms in state UP) (_TRANSPORT): identical to last error: error log suppressed",
            "an address so long that nothing is said of the state",
        ] {
            assert!(carried_requests(&said(end)), "{end}");
        }
        for end in [
            "Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
            "Failed to resolve 'kafka-1:9092': Name or service not known (after 2ms in state TRY_CONNECT)",
            "SSL handshake failed: Disconnected (after 4ms in state SSL_HANDSHAKE, 2 identical error(s) suppressed)",
            "ApiVersionRequest failed: Local: Timed out (after 10002ms in state APIVERSION_QUERY)",
            "Disconnected (after 1ms in state APIVERSION_QUERY) (_TRANSPORT): identical to last error",
        ] {
            assert!(!carried_requests(&said(end)), "{end}");
        }
    }
}
