//! Records on their way to Kafka, and the reports that come back.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coderelay_runtime::CancellationToken;
use coderelay_runtime::clock;
use coderelay_runtime::flaw::{self, Flaw};
use coderelay_runtime::kafka::{self, Statistics, client_config};
use coderelay_schemas::headers;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::topics;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tonic::Code;

use crate::ack::Ack;
use crate::admission::Permit;
use crate::config::{Compression, IngestConfig};
use crate::mirror::Mirror;
use crate::outcome::{Failure, Outcome};
use crate::reply::Reply;

/// Properties that the contract rests on; nobody may set them otherwise.
pub const RESERVED: &[&str] =
    &["enable.idempotence", "acks", "request.required.acks", "partitioner", "transactional.id"];

/// Room in the client's queue beyond the admission budget, which is meant to be the one that says no.
const QUEUE_SLACK_KIB: u64 = 64 * 1024;

/// What waits for a record's delivery report. It travels through librdkafka and comes back with the report.
#[derive(Debug)]
pub struct Delivery {
    /// The answer that the packet belongs to.
    pub reply: Arc<Reply>,
    /// The packet's place in its request.
    pub index: usize,
    /// The packet's id.
    pub id: PacketId,
    /// The packet's share of the budget.
    pub permit: Permit,
    /// What its acknowledgement is to promise.
    pub ack: Ack,
    /// When it was sent; at the latest when its record was handed to the Kafka client.
    pub sent: Instant,
}

impl Delivery {
    /// Answers the packet.
    pub fn settle(self, outcome: Outcome) {
        // First: whoever reads the answer finds the room it may use.
        drop(self.permit);
        self.reply.settle(self.index, Some(self.id), outcome);
    }
}

/// The headers that all records of one request share.
pub struct RequestHeaders(OwnedHeaders);

impl RequestHeaders {
    /// Headers for packets that ingest of `region` has verified.
    pub fn new(region: &str, traceparent: &str, tracestate: Option<&str>) -> Self {
        let mut headers = OwnedHeaders::new_with_capacity(7)
            .insert(header(headers::TRACEPARENT, traceparent))
            .insert(header(headers::REGION, region))
            .insert(header(headers::CONTENT_TYPE, headers::CONTENT_TYPE_PROTOBUF))
            .insert(header(headers::SCHEMA, headers::SCHEMA_CODE_PACKET))
            .insert(header(headers::CHECKED, headers::CHECKED_GZIP));
        if let Some(tracestate) = tracestate {
            headers = headers.insert(header(headers::TRACESTATE, tracestate));
        }
        Self(headers)
    }

    /// The headers of the record that carries packet `id`.
    pub fn with_id(&self, id: &PacketId) -> OwnedHeaders {
        self.0.clone().insert(header(headers::PACKET_ID, &id.to_string()))
    }
}

/// The idempotent producer. Its reports come on a thread of its own.
pub struct Producer {
    client: ThreadedProducer<Reports>,
    topic: Arc<str>,
    region: String,
    retry_after: Duration,
}

impl Producer {
    /// A producer for the topic `topics.packets`. Brokers need not be there yet. Packets that are to be acknowledged when they are mirrored
    /// wait at `mirror`.
    ///
    /// # Errors
    /// A property that librdkafka does not accept.
    pub fn new(
        config: &IngestConfig,
        mirror: Option<Arc<Mirror>>,
        broken: CancellationToken,
    ) -> Result<Self, KafkaError> {
        let retry_after = config.admission.retry_after.get();
        let reports = Reports { statistics: Statistics::new("producer"), mirror, retry_after, broken };
        let client = ThreadedProducer::from_config_and_context(&settings(config), reports)?;
        Ok(Self { client, topic: config.topics.packets.as_str().into(), region: config.region.clone(), retry_after })
    }

    /// Where records go.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Headers for the records of one request.
    pub fn request_headers(&self, traceparent: &str, tracestate: Option<&str>) -> RequestHeaders {
        RequestHeaders::new(&self.region, traceparent, tracestate)
    }

    /// Hands a packet to the Kafka client, which copies it. Never waits: what cannot be queued is settled at once.
    ///
    /// `value` is the caller's scratch space; its contents do not matter.
    pub fn send(&self, packet: &CodePacket, shared: &RequestHeaders, delivery: Delivery, value: &mut Vec<u8>) {
        let headers = shared.with_id(&delivery.id);
        let early = flaw::is(Flaw::AckBeforeKafka).then(|| (Arc::clone(&delivery.reply), delivery.index, delivery.id));
        value.clear();
        value.reserve(packet.encoded_len());
        packet.encode_raw(value);
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(delivery))
            .key(packet.repo_id.as_bytes())
            .payload(value.as_slice())
            .headers(headers)
            .timestamp(milliseconds(clock::now()));
        if let Err((error, record)) = self.client.send(record) {
            record.delivery_opaque.settle(Outcome::Failed(failure(&error, self.retry_after)));
        } else if let Some((reply, index, id)) = early {
            // The first outcome stands, and nothing is known yet of the place.
            reply.settle(index, Some(id), Outcome::Committed { partition: 0, offset: 0 });
        }
    }

    /// Asks the brokers for the topic. Blocks up to `timeout`.
    ///
    /// # Errors
    /// Why nothing can be produced: no broker, no such topic, a partition without leader.
    pub fn probe(&self, timeout: Duration) -> Result<(), String> {
        let metadata = self.client.client().fetch_metadata(Some(&self.topic), timeout).map_err(|e| e.to_string())?;
        let topic = metadata.topics().first().ok_or("the brokers answer without the topic")?;
        if let Some(error) = topic.error() {
            return Err(format!("topic {}: {}", self.topic, RDKafkaErrorCode::from(error)));
        }
        match topic.partitions().iter().find(|partition| partition.leader() < 0) {
            Some(partition) => Err(format!("topic {}: partition {} has no leader", self.topic, partition.id())),
            None => Ok(()),
        }
    }

    /// Where a partition of the topic ends now: the offset that its next record will have. Blocks up to `timeout`.
    ///
    /// # Errors
    /// If the brokers do not answer.
    pub fn end(&self, partition: i32, timeout: Duration) -> Result<i64, KafkaError> {
        self.client.client().fetch_watermarks(&self.topic, partition, timeout).map(|(_start, end)| end)
    }

    /// Records that wait for their delivery report.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.client.in_flight_count()).unwrap_or(0)
    }

    /// Gives up everything in flight: each packet is answered `UNAVAILABLE`.
    pub fn give_up(&self) {
        self.client.purge(PurgeConfig::default().queue().inflight());
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("topic", &self.topic)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// Receives delivery reports, figures and errors, on the producer's own thread: nothing here may wait.
struct Reports {
    statistics: Statistics,
    mirror: Option<Arc<Mirror>>,
    retry_after: Duration,
    /// Cancelled when the producer can do no more.
    broken: CancellationToken,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log(level, facility, message);
    }

    fn stats(&self, statistics: rdkafka::Statistics) {
        self.statistics.record(&statistics);
        if self.statistics.is_stranded() && !self.broken.is_cancelled() {
            tracing::error!("the producer knows no broker any more, and looks for none");
            self.broken.cancel();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        kafka::context::log_error(&error, reason);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.broken.cancel();
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, report: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        match report {
            Ok(record) => {
                let (partition, offset) = (record.partition(), record.offset());
                match &self.mirror {
                    Some(mirror) if delivery.ack == Ack::Mirrored => mirror.wait(partition, offset, *delivery),
                    _ => delivery.settle(Outcome::Committed { partition, offset }),
                }
            }
            Err((error, _record)) => delivery.settle(Outcome::Failed(failure(error, self.retry_after))),
        }
    }
}

/// The properties of the Kafka client. Also what `loadtest limits` measures a plain producer with.
pub fn settings(config: &IngestConfig) -> ClientConfig {
    let mut client = client_config(&config.kafka);
    let queue_kib = config.admission.bytes.get() / 1024 * 2 + QUEUE_SLACK_KIB;
    let compression = match config.producer.compression {
        Compression::None => "none",
        Compression::Zstd => "zstd",
    };
    let tunable = [
        ("client.id", "coderelay-ingest".to_owned()),
        ("linger.ms", config.producer.linger.as_millis().to_string()),
        ("compression.type", compression.to_owned()),
        ("message.timeout.ms", config.producer.message_timeout.as_millis().to_string()),
        ("message.max.bytes", max_message_bytes().to_string()),
        ("queue.buffering.max.kbytes", queue_kib.to_string()),
        // A request larger than the budget is let in alone, with all its packets.
        ("queue.buffering.max.messages", (config.admission.packets + config.grpc.max_packets).to_string()),
        ("socket.keepalive.enable", "true".to_owned()),
        ("socket.nagle.disable", "true".to_owned()),
    ];
    for (property, value) in tunable {
        if client.get(property).is_none() {
            client.set(property, value);
        }
    }
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // Java's default, so that Streams, Flink and Java producers co-partition.
        .set("partitioner", "murmur2_random");
    client
}

fn max_message_bytes() -> u64 {
    topics::all().iter().map(|topic| topic.max_message_bytes).max().unwrap_or(1_000_000)
}

/// What a failed record means for its packet.
///
/// After `UNAVAILABLE` the record may have been written all the same: the packet keeps its id, so the second copy is
/// removed downstream.
fn failure(error: &KafkaError, retry_after: Duration) -> Failure {
    use RDKafkaErrorCode as Kafka;

    match error.rdkafka_error_code() {
        Some(Kafka::QueueFull) => {
            let message = "the Kafka client's queue is full: slow down, then send the packet again";
            Failure::transient(Code::ResourceExhausted, "QUEUE_FULL", message, retry_after)
        }
        Some(Kafka::MessageSizeTooLarge | Kafka::InvalidMessageSize) => {
            let message = "the record is larger than the topic allows";
            Failure::permanent(Code::InvalidArgument, "RECORD_TOO_LARGE", message)
        }
        Some(
            Kafka::TopicAuthorizationFailed
            | Kafka::ClusterAuthorizationFailed
            | Kafka::InvalidMessage
            | Kafka::InvalidRecord
            | Kafka::InvalidTimestamp
            | Kafka::PolicyViolation,
        ) => Failure::permanent(Code::Internal, "KAFKA_REFUSED", format!("Kafka refused the record: {error}")),
        Some(Kafka::PurgeQueue | Kafka::PurgeInflight) => {
            let message = "this instance is leaving before Kafka acknowledged: send the packet again with the same id";
            Failure::transient(Code::Unavailable, "DRAINING", message, retry_after)
        }
        _ => {
            let message = "Kafka did not acknowledge in time: send the packet again with the same id";
            Failure::transient(Code::Unavailable, "KAFKA_UNAVAILABLE", message, retry_after)
        }
    }
}

fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key, value: Some(value) }
}

fn milliseconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_cannot_be_configured_away() {
        let mut config = IngestConfig::default();
        config.kafka.properties.insert("acks".into(), "0".into());
        config.kafka.properties.insert("linger.ms".into(), "50".into());
        let settings = settings(&config);
        assert_eq!(settings.get("acks"), Some("all"));
        assert_eq!(settings.get("partitioner"), Some("murmur2_random"));
        assert_eq!(settings.get("linger.ms"), Some("50"), "what is not promised may be tuned");
    }

    #[test]
    fn the_budget_is_the_first_to_say_no() {
        let config = IngestConfig::default();
        let settings = settings(&config);
        let limit = |property| settings.get(property).unwrap().parse::<u64>().unwrap();
        assert!(limit("queue.buffering.max.kbytes") * 1024 > config.admission.bytes.get());
        assert!(limit("queue.buffering.max.messages") > u64::from(config.admission.packets));
        assert!(settings.create_native_config().is_ok());
    }

    #[test]
    fn errors_tell_the_client_what_to_do() {
        let verdict = |code| {
            let failure = failure(&KafkaError::MessageProduction(code), Duration::from_secs(1));
            (failure.code, failure.retry_after.is_some())
        };
        assert_eq!(verdict(RDKafkaErrorCode::MessageTimedOut), (Code::Unavailable, true));
        assert_eq!(verdict(RDKafkaErrorCode::UnknownTopicOrPartition), (Code::Unavailable, true));
        assert_eq!(verdict(RDKafkaErrorCode::NotEnoughReplicas), (Code::Unavailable, true));
        assert_eq!(verdict(RDKafkaErrorCode::PurgeQueue), (Code::Unavailable, true));
        assert_eq!(verdict(RDKafkaErrorCode::QueueFull), (Code::ResourceExhausted, true));
        assert_eq!(verdict(RDKafkaErrorCode::MessageSizeTooLarge), (Code::InvalidArgument, false));
        assert_eq!(verdict(RDKafkaErrorCode::TopicAuthorizationFailed), (Code::Internal, false));
    }
}
