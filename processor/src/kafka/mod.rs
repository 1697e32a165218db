//! The cycle's Kafka side: the consumer group's member, the transactional producer, the reader of the ledger.

mod deliveries;
mod ledger;
mod letter;
mod source;
mod subscription;
mod transaction;
mod within;

pub use ledger::KafkaLedger;
pub use source::KafkaSource;
pub use subscription::Subscription;
pub use transaction::KafkaTransaction;

use std::time::Duration;

use coderelay_schemas::topics::TopicNames;
use rdkafka::ClientConfig;
use tokio_util::sync::CancellationToken;

/// How long a single request to a broker may take before it is tried again; also how soon a wait notices that it is to end.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long requests are tried again before the worker starts over.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who a worker is to Kafka, and what it reads and writes.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Bootstrap servers, security and pass-through properties.
    pub client: ClientConfig,
    /// The consumer group.
    pub group: String,
    /// `group.instance.id` and `transactional.id`, both: stable over restarts, unique among running workers.
    pub member: String,
    /// Source topics; a name that starts with `^` is a regular expression.
    pub sources: Vec<String>,
    /// Where to write.
    pub topics: TopicNames,
    /// See [`crate::config::GroupConfig`].
    pub session_timeout: Duration,
    /// How long the broker keeps a transaction open that nobody ends.
    pub transaction_timeout: Duration,
    /// Ends every wait.
    pub stop: CancellationToken,
}

/// Sets `key` to `value` unless the operator's pass-through map has set it.
fn default(config: &mut ClientConfig, key: &str, value: impl Into<String>) {
    if config.get(key).is_none() {
        config.set(key, value);
    }
}
