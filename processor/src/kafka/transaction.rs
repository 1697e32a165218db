//! The transactional producer of one worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coderelay_runtime::flaw::{self, Flaw};
use coderelay_schemas::dlq;
use coderelay_schemas::ledger::{self, Entry};
use coderelay_schemas::topics::{self, TopicNames};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;

use super::deliveries::Deliveries;
use super::letter::Letter;
use super::within::within;
use super::{Identity, PATIENCE, REQUEST_TIMEOUT, default};
use crate::decode::Rejection;
use crate::failpoint;
use crate::ports::{Fault, Transaction};
use crate::record::{Record, TopicPartition};

/// Entries of one ledger record: 480 KB, well below any broker's limit.
const ENTRIES_PER_RECORD: usize = 20_000;
/// Characters of a dead letter's reason: what a store or a decoder says has no bound of its own.
const DETAIL_MAX: usize = 1000;
/// Room in a dead letter for the headers that are added and for Kafka's framing.
const HEADROOM: usize = 64 * 1024;
/// Between two looks at what is still to be delivered. The producer's own `poll` would spin, since it counts in whole milliseconds, and its
/// `flush` looks every 100 ms.
const DELIVERY_WAIT: Duration = Duration::from_micros(500);

/// A [`Transaction`] over librdkafka's producer.
///
/// Lives until the first doubt: librdkafka lacks KIP-890, so a stray end of a transaction whose result was lost could hit the next one. Nor
/// does it begin another transaction once a connection broke, though all is well by what librdkafka says: it has sent again what the
/// connection had carried. A new producer's `init_transactions` raises the epoch and fences whatever is still on its way.
pub struct KafkaTransaction {
    producer: Arc<BaseProducer<Deliveries>>,
    topics: TopicNames,
    timeout: Duration,
    begun: Instant,
}

impl KafkaTransaction {
    /// Takes over `identity.member` as `transactional.id`; aborts what a predecessor left open and fences it.
    ///
    /// # Errors
    /// When the transaction coordinator does not answer.
    pub fn open(identity: &Identity, worker: usize) -> Result<Self, Fault> {
        let timeout = identity.transaction_timeout;
        let mut config = identity.client.clone();
        config
            .set("transactional.id", &identity.member)
            .set("transaction.timeout.ms", timeout.as_millis().to_string())
            // A delivery has to fail before the broker gives up on the transaction.
            .set("message.timeout.ms", (timeout.as_millis() * 2 / 3).to_string())
            .set("message.max.bytes", topics::max_message_bytes().to_string())
            .set("partitioner", "murmur2_random");
        config.set("allow.auto.create.topics", "false");
        // Only its log tells that a connection broke, and without `debug` it keeps back what it has said within the last 30 s.
        let debug = config.get("debug").map_or("broker".to_owned(), |more| format!("{more},broker"));
        config.set_log_level(RDKafkaLogLevel::Debug).set("log_level", "7").set("debug", debug);
        config.set("log.connection.close", "true");
        // One event for each record that was delivered would cost more than all the waiting for them.
        config.set("delivery.report.only.error", "true");
        // Larger requests cost the broker less.
        default(&mut config, "linger.ms", "5");
        default(&mut config, "batch.num.messages", "10000");
        default(&mut config, "queue.buffering.max.kbytes", "131072");
        let producer: BaseProducer<Deliveries> = config
            .create_with_context(Deliveries::new(format!("producer-{worker}")))
            .map_err(|error| Fault::restart("creating the producer", error))?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = producer.init_transactions(Timeout::After(REQUEST_TIMEOUT)) {
            let retriable = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            if !retriable || identity.stop.is_cancelled() || Instant::now() >= deadline {
                return Err(Fault::restart("initialising transactions", error));
            }
        }
        let producer = Arc::new(producer);
        let transaction = Self { producer, topics: identity.topics.clone(), timeout, begun: Instant::now() };
        transaction.let_go(identity)?;
        Ok(transaction)
    }

    /// Aborts a transaction that holds offsets only, of a partition that the group never reads.
    ///
    /// A request that was sent by a predecessor and arrives after its transaction has ended leaves offsets pending that no coordinator
    /// knows of, on brokers that do not verify it (KIP-890; those before 3.8 verify no offsets). Nobody would ever be told the committed
    /// ones again. They are pending under this producer's id, and the marker of any transaction of its own lets go of all of them.
    fn let_go(&self, identity: &Identity) -> Result<(), Fault> {
        // Whoever is no member of the group commits as an anonymous one, which the broker allows in a transaction.
        let anonymous: BaseConsumer = identity
            .client
            .clone()
            .set("group.id", &identity.group)
            .create()
            .map_err(|error| Fault::restart("creating a consumer", error))?;
        let membership = anonymous.group_metadata().ok_or_else(|| Fault::restart("committing nothing", "no group"))?;
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&self.topics.ledger, 0, Offset::Offset(0))
            .map_err(|error| Fault::restart("listing offsets", error))?;
        let failed = |error| self.fault("letting go of what is pending", &error);
        self.producer.begin_transaction().map_err(failed)?;
        self.add_offsets(offsets, Arc::new(membership))?;
        self.producer.abort_transaction(Timeout::After(self.timeout * 2)).map_err(failed)
    }

    /// Adds `offsets` to the transaction under way.
    ///
    /// The broker ends the transaction by its time-out, so nothing is gained by a wait without limit. But chaos has seen librdkafka 2.12
    /// not come back from this call, whatever limit it was given; by reading, `rd_kafka_coord_req` looks at none while it waits for the
    /// coordinator's connection. A client that does not come back is left behind, and fenced by the next.
    fn add_offsets(&self, offsets: TopicPartitionList, membership: Arc<ConsumerGroupMetadata>) -> Result<(), Fault> {
        const DOING: &str = "sending offsets to the transaction";
        let (producer, limit) = (Arc::clone(&self.producer), self.timeout * 2);
        let call = move || producer.send_offsets_to_transaction(&offsets, &membership, Timeout::After(limit));
        match within(limit + REQUEST_TIMEOUT, call) {
            Ok(Some(sent)) => sent.map_err(|error| self.fault(DOING, &error)),
            Ok(None) => Err(Fault::restart(DOING, "the client does not come back")),
            Err(error) => Err(Fault::restart(DOING, error)),
        }
    }

    fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), Fault> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    std::thread::sleep(DELIVERY_WAIT);
                    self.check_deliveries()?;
                }
                Err((error, record)) => return Err(self.fault(&format!("producing to {}", record.topic), &error)),
            }
        }
    }

    /// Serves all of the producer's events that there are now. One poll without a time-out serves one.
    fn serve_events(&self) {
        let served = || self.producer.context().served();
        let mut before = None;
        while before != Some(served()) {
            before = Some(served());
            self.producer.poll(Duration::ZERO);
        }
    }

    /// Whether a delivery has failed.
    fn check_deliveries(&self) -> Result<(), Fault> {
        self.serve_events();
        match self.producer.context().take_failure() {
            None => Ok(()),
            Some(error) => Err(self.fault("delivering", &error)),
        }
    }

    /// Fenced before the broker could have timed the transaction out means: by another process. Later it means nothing of the kind,
    /// since the broker fences on a time-out too.
    fn fault(&self, doing: &str, error: &KafkaError) -> Fault {
        let code = error.rdkafka_error_code();
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let fenced = [code, fatal]
            .into_iter()
            .flatten()
            .any(|code| matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced));
        if fenced && self.begun.elapsed() < self.timeout {
            return Fault::Fenced(format!(
                "{doing}: another process has taken this worker's transactional.id ({error}). \
                 Every running processor needs an `instance` of its own"
            ));
        }
        Fault::restart(doing, error)
    }
}

impl Transaction for KafkaTransaction {
    type Membership = Arc<ConsumerGroupMetadata>;

    fn begin(&mut self) -> Result<(), Fault> {
        self.serve_events();
        if let Some(broken) = self.producer.context().broken() {
            return Err(Fault::restart("beginning a transaction after a connection broke", broken));
        }
        self.begun = Instant::now();
        self.producer.begin_transaction().map_err(|error| self.fault("beginning a transaction", &error))
    }

    fn publish(&mut self, record: &Record) -> Result<(), Fault> {
        self.send(copy(record, &self.topics.deduped, owned(&record.headers)))?;
        failpoint::hit("after-publish");
        Ok(())
    }

    fn dead_letter(&mut self, record: &Record, rejection: &Rejection) -> Result<(), Fault> {
        let letter = Letter::of(record, topics::max_message_bytes() as usize - HEADROOM);
        let mut detail: String = rejection.detail.chars().take(DETAIL_MAX).collect();
        if let Some(note) = &letter.left_out {
            detail.extend(["; ", note]);
        }
        let fields = [
            (dlq::DLQ_REASON, rejection.reason.as_str().to_owned()),
            (dlq::DLQ_DETAIL, detail),
            (dlq::DLQ_TOPIC, record.source.topic.to_string()),
            (dlq::DLQ_PARTITION, record.source.partition.to_string()),
            (dlq::DLQ_OFFSET, record.offset.to_string()),
            (dlq::DLQ_TIMESTAMP, record.timestamp_ms.unwrap_or(-1).to_string()),
            (dlq::DLQ_ATTEMPTS, rejection.attempts.to_string()),
        ];
        let headers = fields
            .iter()
            .fold(owned(letter.headers), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        self.send(BaseRecord { key: letter.key, payload: letter.value, ..copy(record, &self.topics.dlq, headers) })
    }

    fn remember(&mut self, source: &TopicPartition, entries: &[Entry]) -> Result<(), Fault> {
        for entries in entries.chunks(ENTRIES_PER_RECORD) {
            let value = ledger::encode(entries.iter().copied());
            let headers = owned([(ledger::SOURCE_TOPIC, Some(source.topic.as_bytes()))]);
            let record = BaseRecord::to(&self.topics.ledger).partition(source.partition).headers(headers);
            self.send(record.payload(value.as_slice()))?;
        }
        Ok(())
    }

    fn send_offsets(
        &mut self,
        offsets: &BTreeMap<TopicPartition, i64>,
        membership: &Arc<ConsumerGroupMetadata>,
    ) -> Result<(), Fault> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (TopicPartition { topic, partition }, offset) in offsets {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
                .map_err(|error| Fault::restart("listing offsets", error))?;
        }
        self.add_offsets(list, Arc::clone(membership))
    }

    fn commit(&mut self) -> Result<(), Fault> {
        // rust-rdkafka's commit flushes first, and waits for what is not delivered yet in slices of 100 ms.
        while self.producer.in_flight_count() > 0 {
            std::thread::sleep(DELIVERY_WAIT);
            self.check_deliveries()?;
        }
        self.check_deliveries()?;
        failpoint::hit("before-end-txn");
        // The broker ends it by the transaction time-out; librdkafka would go on asking for ever.
        let patience = if flaw::is(Flaw::ReuseProducer) { REQUEST_TIMEOUT } else { self.timeout * 2 };
        let committed = self.producer.commit_transaction(Timeout::After(patience));
        committed.map_err(|error| self.fault("committing the transaction", &error))
    }

    #[cfg(feature = "flaws")]
    fn reuse(&mut self) -> Result<(), Fault> {
        let patience = Timeout::After(self.timeout * 2);
        // The client does not abort what it is still committing, and begins nothing before that has ended.
        let ended = self.producer.abort_transaction(patience).or_else(|_| self.producer.commit_transaction(patience));
        ended.map_err(|error| self.fault("reusing the producer", &error))
    }
}

/// The same partition, key, value and timestamp in another topic.
fn copy<'a>(record: &'a Record, topic: &'a str, headers: OwnedHeaders) -> BaseRecord<'a, [u8], [u8]> {
    BaseRecord {
        key: record.key.as_deref(),
        payload: record.value.as_deref(),
        timestamp: record.timestamp_ms,
        headers: Some(headers),
        ..BaseRecord::to(topic).partition(record.source.partition)
    }
}

fn owned<'a>(headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> OwnedHeaders {
    headers.into_iter().fold(OwnedHeaders::new(), |owned, (key, value)| owned.insert(Header { key, value }))
}
