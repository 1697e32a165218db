//! Records on their way to Kafka, with as many under way as memory allows and the first failure kept.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use crate::connect::Connection;

/// `message.max.bytes` of the producer. The topic's own limit is what counts.
const MESSAGE_MAX_BYTES: &str = "8388608";
/// Kilobytes that wait to be acknowledged.
const QUEUE_KBYTES: &str = "65536";
/// How long a full queue, or the end, waits between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// An idempotent producer (KIP-98) with `acks=all`: what it has written of a partition is in order, and once.
pub(crate) struct Outbox {
    producer: BaseProducer<Failure>,
}

/// The first delivery that failed.
#[derive(Default)]
struct Failure(OnceLock<KafkaError>);

impl ClientContext for Failure {}

impl ProducerContext for Failure {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            // The first is the cause of those after it.
            let _ = self.0.set(error.clone());
        }
    }
}

impl Outbox {
    pub(crate) fn connect(connection: &Connection) -> anyhow::Result<Self> {
        let mut config = connection.kafka();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Java's default, for records whose partition is left open.
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", MESSAGE_MAX_BYTES)
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES);
        let producer = config.create_with_context(Failure::default()).context("Kafka client settings")?;
        Ok(Self { producer })
    }

    /// Takes a record; blocks while the queue is full.
    ///
    /// # Errors
    /// That of any record before it which could not be delivered, or of this one.
    pub(crate) fn send(&self, record: BaseRecord<'_, [u8], [u8]>) -> anyhow::Result<()> {
        let mut record = record;
        loop {
            self.producer.poll(Duration::ZERO);
            self.failed()?;
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => record = refused,
                Err((error, _)) => return Err(error).context("producing"),
            }
            self.producer.poll(LOOK);
        }
    }

    /// Until every record is acknowledged; blocks.
    ///
    /// # Errors
    /// That of the first record that could not be delivered.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(LOOK);
            self.failed()?;
        }
        self.failed()
    }

    fn failed(&self) -> anyhow::Result<()> {
        match self.producer.context().0.get() {
            Some(error) => bail!("a record was not written: {error}"),
            None => Ok(()),
        }
    }
}
