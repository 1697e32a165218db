//! How far the other region has got, and the packets that wait for it.
//!
//! `MirrorMaker` is a source connector: its worker writes to a topic in the other region, `mm2-offsets.<this region>.internal`, up to where
//! it need not read again after a crash (KIP-26, `offset.storage.topic`). An offset stands there only when the other region has acknowledged
//! that record and all before it, with `acks=all`; exactly-once mirroring writes it in the same transaction as the records (KIP-618). So
//! whoever reads that topic knows what is durable over there, for some tens of kilobytes a second. The end of the mirrored topic does not
//! tell: mirroring is at least once, and after a crash the copies run ahead.
//!
//! The topic is followed from its end on; what was written before this process began is not looked at.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coderelay_runtime::kafka::context::log_error;
use coderelay_runtime::kafka::{Context, client_config};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;
use tonic::Code;

use crate::config::{IngestConfig, MirrorConfig};
use crate::confirmations::{Confirmations, Wait, Waiting};
use crate::metrics::METRICS;
use crate::outcome::{Failure, Outcome};
use crate::producer::Delivery;

/// Properties of the client that nobody may set otherwise.
pub const RESERVED: &[&str] = &["group.id", "enable.auto.commit", "auto.offset.reset", "isolation.level"];

/// How often packets are looked for that have waited too long.
const EXPIRE_EVERY: Duration = Duration::from_millis(20);

/// The other region, as far as it confirms packets.
pub struct Mirror {
    client: ClientConfig,
    /// Made anew when it is [stranded](coderelay_runtime::kafka::Statistics::is_stranded).
    consumer: Mutex<Arc<BaseConsumer<Context>>>,
    offsets_topic: String,
    /// This region, as the mirror calls it, and the topic that is mirrored.
    source: (String, String),
    /// Partitions of the offsets' topic that are followed.
    followed: Mutex<Vec<i32>>,
    /// Why the last look at it failed.
    trouble: Mutex<Option<String>>,
    confirmations: Mutex<Confirmations<Delivery>>,
    retry_after: Duration,
}

impl Mirror {
    /// Brokers need not be there yet.
    ///
    /// # Errors
    /// A property that librdkafka does not accept.
    pub fn new(config: &IngestConfig, mirror: &MirrorConfig) -> Result<Self, KafkaError> {
        let source = mirror.source.as_ref().unwrap_or(&config.region);
        let offsets_topic = mirror.offsets_topic.clone().unwrap_or_else(|| format!("mm2-offsets.{source}.internal"));
        let mut client = client_config(&mirror.kafka);
        if mirror.kafka.client_id.is_none() {
            client.set("client.id", "coderelay-ingest-mirror");
        }
        client
            // Nobody joins this group; without a name there is no consumer.
            .set("group.id", "coderelay-ingest-mirror")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "latest")
            .set("isolation.level", "read_committed")
            // By default up to ten seconds, when the region has long been back.
            .set("reconnect.backoff.max.ms", "1000");
        Ok(Self {
            consumer: Mutex::new(consumer(&client)?),
            client,
            offsets_topic,
            source: (source.clone(), config.topics.packets.clone()),
            followed: Mutex::default(),
            trouble: Mutex::default(),
            confirmations: Mutex::new(Confirmations::new(mirror.max_wait.get(), config.admission.packets as usize / 2)),
            retry_after: config.admission.retry_after.get(),
        })
    }

    /// Asks the other region for the offsets' topic, and follows it if it does not yet, or no longer all of it. Blocks up to twice `timeout`.
    ///
    /// # Errors
    /// Why nothing can be confirmed: no broker, no such topic.
    pub fn probe(&self, timeout: Duration) -> Result<(), String> {
        let said = |error: KafkaError| format!("the other region does not answer: {error}");
        if self.consumer().context().statistics().is_stranded() {
            tracing::warn!("the consumer knows no broker of the other region any more: making a new one");
            *lock(&self.consumer) = consumer(&self.client).map_err(said)?;
            lock(&self.followed).clear();
        }
        let metadata = self.consumer().fetch_metadata(Some(&self.offsets_topic), timeout).map_err(said)?;
        let topic = metadata.topics().first().ok_or("the other region answers without the topic")?;
        if let Some(error) = topic.error() {
            return Err(format!("topic {} in the other region: {}", self.offsets_topic, RDKafkaErrorCode::from(error)));
        }
        let mut partitions: Vec<_> = topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect();
        partitions.sort_unstable();
        let mut followed = lock(&self.followed);
        if *followed != partitions {
            self.assign(&partitions, timeout).map_err(said)?;
            *followed = partitions;
        }
        match &*lock(&self.trouble) {
            Some(trouble) => Err(format!("topic {} in the other region: {trouble}", self.offsets_topic)),
            None => Ok(()),
        }
    }

    fn consumer(&self) -> Arc<BaseConsumer<Context>> {
        Arc::clone(&lock(&self.consumer))
    }

    /// Follows these partitions from where they end now.
    fn assign(&self, partitions: &[i32], timeout: Duration) -> Result<(), KafkaError> {
        let mut ends = TopicPartitionList::new();
        for partition in partitions {
            ends.add_partition_offset(&self.offsets_topic, *partition, Offset::End)?;
        }
        // All in one request, which is also what makes the position certain before anybody relies on it.
        let consumer = self.consumer();
        let ends = consumer.offsets_for_times(ends, timeout)?;
        ends.elements().iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
        consumer.assign(&ends)
    }

    /// Looks for the next record of the offsets' topic, for up to `timeout`: which partition of ours it is about, and up to where that is
    /// mirrored. `None` within: that is no longer known.
    pub fn poll(&self, timeout: Duration) -> Option<(i32, Option<i64>)> {
        let consumer = self.consumer();
        let polled = consumer.poll(timeout)?;
        *lock(&self.trouble) = polled.as_ref().err().map(ToString::to_string);
        let record = polled.inspect_err(|error| log_error(error, "the other region's offsets")).ok()?;
        let partition = mirrored_partition(record.key()?, &self.source)?;
        let offset = record.payload().and_then(|value| serde_json::from_slice::<SourceOffset>(value).ok());
        Some((partition, offset.map(|source| source.offset)))
    }

    /// Whether what was said of a partition may be about a topic that is no more: [`Confirmations::doubts`].
    pub fn doubts(&self, partition: i32, offset: i64) -> bool {
        lock(&self.confirmations).doubts(partition, offset, Instant::now())
    }

    /// Everything up to and with `offset` is durable in the other region. Settles the packets that this confirms.
    pub fn hear(&self, partition: i32, offset: i64) {
        let confirmed = lock(&self.confirmations).hear(partition, offset, Instant::now());
        confirmed.into_iter().for_each(settle_confirmed);
    }

    /// Nothing is known of a partition any more.
    pub fn forget(&self, partition: i32) {
        lock(&self.confirmations).forget(partition);
    }

    /// Settles a packet that this region has when the other has it too, or when its time is over; at once if enough wait already, of those
    /// that had been admitted before. Never waits itself.
    pub fn wait(&self, partition: i32, offset: i64, mut packet: Delivery) {
        // Kafka has the bytes; what waits is small. Its place it keeps, so that there is a bound to how many wait.
        packet.permit.release_bytes();
        let waiting = Waiting { partition, offset, sent: packet.sent, since: Instant::now(), packet };
        let wait = lock(&self.confirmations).wait(waiting);
        match wait {
            Wait::Waits => {}
            Wait::Confirmed(waiting) => settle_confirmed(waiting),
            Wait::Full(waiting) => self.settle_unconfirmed(waiting),
        }
    }

    /// Answers the packets that have waited too long, for ever.
    pub async fn expire(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EXPIRE_EVERY).await;
            let expired = lock(&self.confirmations).expire(Instant::now());
            for waiting in expired {
                self.settle_unconfirmed(waiting);
            }
        }
    }

    fn settle_unconfirmed(&self, waiting: Waiting<Delivery>) {
        METRICS.mirror_waited(waiting.since.elapsed(), false);
        waiting.packet.settle(Outcome::Failed(unconfirmed(self.retry_after)));
    }

    /// From now on no packet waits: the process is leaving.
    pub fn give_up(&self) {
        lock(&self.confirmations).give_up();
    }

    /// How many packets wait.
    pub fn waiting(&self) -> usize {
        lock(&self.confirmations).len()
    }

    /// Refuses further packets while so many wait that they would take the budget from those that need not.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` with `MIRROR_BEHIND` when half of the budget's packets wait.
    pub fn admit(&self) -> Result<(), Failure> {
        if !lock(&self.confirmations).is_full() {
            return Ok(());
        }
        let message = "too many packets wait for the other region: slow down, then send the packet again";
        Err(Failure::transient(Code::ResourceExhausted, "MIRROR_BEHIND", message, self.retry_after))
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").field("offsets_topic", &self.offsets_topic).finish_non_exhaustive()
    }
}

fn consumer(client: &ClientConfig) -> Result<Arc<BaseConsumer<Context>>, KafkaError> {
    client.create_with_context(Context::new("mirror")).map(Arc::new)
}

fn settle_confirmed(waiting: Waiting<Delivery>) {
    let Waiting { partition, offset, since, packet, .. } = waiting;
    METRICS.mirror_waited(since.elapsed(), true);
    packet.settle(Outcome::Committed { partition, offset });
}

fn unconfirmed(retry_after: Duration) -> Failure {
    let message = "the packet is durable here, and it was not confirmed in time that it is in the other region: \
                   send it again with the same id";
    Failure::transient(Code::Unavailable, "MIRROR_UNCONFIRMED", message, retry_after)
}

/// Key of a record of the offsets' topic: the connector's name, and what it calls a source partition (`MirrorUtils.wrapPartition`).
#[derive(Deserialize)]
struct OffsetKey<'a>(serde::de::IgnoredAny, #[serde(borrow)] SourcePartition<'a>);

#[derive(Deserialize)]
struct SourcePartition<'a> {
    #[serde(borrow)]
    cluster: Cow<'a, str>,
    partition: i32,
    #[serde(borrow)]
    topic: Cow<'a, str>,
}

/// Value of such a record (`MirrorUtils.wrapOffset`): the offset of the last mirrored record, not the next one.
#[derive(Deserialize)]
struct SourceOffset {
    offset: i64,
}

/// The partition of our topic that the record with this key is about; other connectors keep their own offsets in the same topic.
fn mirrored_partition(key: &[u8], (cluster, topic): &(String, String)) -> Option<i32> {
    let OffsetKey(_connector, source) = serde_json::from_slice(key).ok()?;
    (source.cluster == *cluster && source.topic == *topic).then_some(source.partition)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_offsets_of_our_topic_in_our_region_are_ours() {
        let source = ("us-east".to_owned(), "code.packets.v1".to_owned());
        let of = |key: &str| mirrored_partition(key.as_bytes(), &source);
        let key = r#"["MirrorSourceConnector",{"cluster":"us-east","partition":7,"topic":"code.packets.v1"}]"#;
        assert_eq!(of(key), Some(7));
        assert_eq!(of(&key.replace("us-east", "eu-west")), None);
        assert_eq!(of(&key.replace("code.packets", "heartbeats")), None);
        assert_eq!(
            of(r#"["MirrorHeartbeatConnector",{"sourceClusterAlias":"us-east","targetClusterAlias":"e"}]"#),
            None
        );
        assert_eq!(of("nonsense"), None);
    }

    #[test]
    fn a_packet_that_is_not_confirmed_is_to_be_sent_again() {
        let failure = unconfirmed(Duration::from_secs(1));
        assert_eq!((failure.code, failure.retry_after), (Code::Unavailable, Some(Duration::from_secs(1))));
        assert!(failure.message.contains("durable here") && failure.message.contains("the same id"));
    }
}
