//! A deployment of its own for each test, on the shared stack, and the command line run inside this process.

#![allow(dead_code)] // each test binary uses its part

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser as _;
use coderelay_schemas::headers::{PACKET_ID, SCHEMA, SCHEMA_CODE_PACKET};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::topics::TopicNames;
use rdkafka::message::{Header, OwnedHeaders};
use relayctl::{Cli, Exit, Output};
use scylla::client::session::Session;
use serde_json::Value;

pub const PARTITIONS: i32 = 3;

pub struct Deployment {
    pub topics: TopicNames,
    pub keyspace: String,
    pub kafka: String,
    cql: String,
    suffix: String,
}

impl Deployment {
    pub async fn new(name: &str) -> Self {
        let deployment = Self::without_topics(name).await;
        let stack = coderelay_devstack::shared().await;
        stack.create_topics(&deployment.topics, PARTITIONS).await.unwrap();
        stack.create_keyspace(&deployment.keyspace).await.unwrap();
        deployment
    }

    pub async fn without_topics(name: &str) -> Self {
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
    pub async fn run(&self, arguments: &[&str]) -> (Exit, String) {
        let (exit, bytes) = self.bytes(arguments).await;
        (exit, String::from_utf8(bytes).unwrap())
    }

    /// Runs the command line with `--output json`; the documents it wrote.
    pub async fn json(&self, arguments: &[&str]) -> (Exit, Vec<Value>) {
        let (exit, bytes) = self.bytes(&[arguments, &["--output", "json"]].concat()).await;
        let documents = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        (exit, documents.collect::<Result<_, _>>().unwrap())
    }

    pub async fn bytes(&self, arguments: &[&str]) -> (Exit, Vec<u8>) {
        let connection =
            ["--kafka", &self.kafka, "--cql", &self.cql, "--keyspace", &self.keyspace, "--topic-suffix", &self.suffix];
        relayctl(&[arguments, &connection].concat()).await
    }

    /// Until every topic is known to the brokers.
    pub async fn settled(&self) {
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

    pub async fn session(&self) -> Session {
        scylla::client::session_builder::SessionBuilder::new().known_node(&self.cql).build().await.unwrap()
    }
}

/// Runs a command line in this process.
pub async fn relayctl(arguments: &[&str]) -> (Exit, Vec<u8>) {
    let line = std::iter::once("relayctl").chain(arguments.iter().copied());
    let cli = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
    let sink = Sink::default();
    let mut output = Output::to(cli.format(), sink.clone());
    let exit = relayctl::run(cli, &mut output).await;
    let bytes = sink.0.lock().unwrap().clone();
    (exit, bytes)
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A packet as ingest writes it.
pub fn packet(repo_id: &str, content: &str) -> CodePacket {
    let content = gzip(content);
    let metadata = HashMap::from([("path".to_owned(), "src/lib.rs".to_owned())]);
    let packet_id = PacketId::derive(repo_id, &content, &metadata).to_bytes();
    CodePacket { repo_id: repo_id.to_owned(), content: content.into(), metadata, packet_id, created_at: None }
}

pub fn headers(packet: &CodePacket) -> OwnedHeaders {
    let id = hex::encode(&packet.packet_id);
    OwnedHeaders::new()
        .insert(Header { key: PACKET_ID, value: Some(&id) })
        .insert(Header { key: SCHEMA, value: Some(SCHEMA_CODE_PACKET) })
}

pub fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}
