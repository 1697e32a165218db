//! A deployment of its own for each test, on the shared stack, and the command line run inside this process.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

pub(crate) mod command;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use coderelay_schemas::dlq;
use coderelay_schemas::headers::{PACKET_ID, SCHEMA, SCHEMA_CODE_PACKET};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::topics::TopicNames;
use prost::Message as _;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use relayctl::Exit;
use scylla::client::session::Session;
use serde_json::Value;

use self::command::relayctl;

pub(crate) const PARTITIONS: i32 = 3;

pub(crate) struct Deployment {
    pub(crate) topics: TopicNames,
    pub(crate) keyspace: String,
    pub(crate) kafka: String,
    cql: String,
    suffix: String,
}

impl Deployment {
    pub(crate) async fn new(name: &str) -> Self {
        let deployment = Self::without_topics(name).await;
        let stack = coderelay_devstack::shared().await;
        stack.create_topics(&deployment.topics, PARTITIONS).await.unwrap();
        stack.create_keyspace(&deployment.keyspace).await.unwrap();
        deployment
    }

    pub(crate) async fn without_topics(name: &str) -> Self {
        let stack = coderelay_devstack::shared().await;
        let suffix = format!("-{name}");
        Self {
            topics: TopicNames::with_suffix(&suffix),
            keyspace: format!("relayctl_{name}"),
            kafka: stack.bootstrap_servers(),
            cql: stack.cql_contact(),
            suffix,
        }
    }

    /// Runs the command line; what it wrote as text.
    pub(crate) async fn run(&self, arguments: &[&str]) -> (Exit, String) {
        let (exit, bytes) = self.bytes(arguments).await;
        (exit, String::from_utf8(bytes).unwrap())
    }

    /// Runs the command line with `--output json`; the documents it wrote.
    pub(crate) async fn json(&self, arguments: &[&str]) -> (Exit, Vec<Value>) {
        let (exit, bytes) = self.bytes(&[arguments, &["--output", "json"]].concat()).await;
        let documents = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        (exit, documents.collect::<Result<_, _>>().unwrap())
    }

    pub(crate) async fn bytes(&self, arguments: &[&str]) -> (Exit, Vec<u8>) {
        let connection =
            ["--kafka", &self.kafka, "--cql", &self.cql, "--keyspace", &self.keyspace, "--topic-suffix", &self.suffix];
        relayctl(&[arguments, &connection].concat()).await
    }

    /// The deployment as a region of that name.
    pub(crate) fn as_region(&self, name: &str) -> String {
        let Self { kafka, cql, keyspace, suffix, .. } = self;
        format!("{name},kafka={kafka},cql={cql},keyspace={keyspace},topic-suffix={suffix}")
    }

    /// Until every topic is known to the brokers.
    pub(crate) async fn settled(&self) {
        for _ in 0..100 {
            let (_, list) = self.json(&["topics", "list"]).await;
            let rows = list[0].as_array().unwrap().clone();
            if rows.iter().all(|row| row["exists"] == true) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the topics did not appear");
    }

    pub(crate) async fn session(&self) -> Session {
        scylla::client::session_builder::SessionBuilder::new().known_node(&self.cql).build().await.unwrap()
    }

    /// Dead-letters a packet as if it came from this partition of the packets topic.
    pub(crate) async fn dead_letter(&self, packet: &CodePacket, reason: &str, partition: i32) {
        let source = partition.to_string();
        let own = [
            (dlq::DLQ_REASON, reason),
            (dlq::DLQ_TOPIC, self.topics.packets.as_str()),
            (dlq::DLQ_PARTITION, source.as_str()),
            (dlq::DLQ_OFFSET, "41"),
        ];
        let headers = own.into_iter().fold(headers(packet), |headers: OwnedHeaders, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        self.produce_with(&self.topics.dlq, partition, packet, headers).await;
    }

    pub(crate) async fn produce(&self, topic: &str, partition: i32, packet: &CodePacket) {
        self.produce_with(topic, partition, packet, headers(packet)).await;
    }

    async fn produce_with(&self, topic: &str, partition: i32, packet: &CodePacket, headers: OwnedHeaders) {
        let producer: FutureProducer = self.kafka().create().unwrap();
        let value = packet.encode_to_vec();
        let record = FutureRecord::to(topic).partition(partition).key(&packet.repo_id).payload(&value).headers(headers);
        producer.send(record, Duration::from_secs(10)).await.unwrap();
    }

    pub(crate) fn kafka(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka);
        config
    }
}

/// A packet as ingest writes it.
pub(crate) fn packet(repo_id: &str, content: &str) -> CodePacket {
    let content = gzip(content);
    let metadata = BTreeMap::from([("path".to_owned(), "src/lib.rs".to_owned())]);
    let packet_id = PacketId::derive(repo_id, &content, &metadata).to_bytes();
    CodePacket { repo_id: repo_id.to_owned(), content: content.into(), metadata, packet_id, created_at: None }
}

pub(crate) fn headers(packet: &CodePacket) -> OwnedHeaders {
    let id = hex::encode(&packet.packet_id);
    OwnedHeaders::new()
        .insert(Header { key: PACKET_ID, value: Some(&id) })
        .insert(Header { key: SCHEMA, value: Some(SCHEMA_CODE_PACKET) })
}

pub(crate) fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}
