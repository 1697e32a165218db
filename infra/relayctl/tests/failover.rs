//! `push` to several endpoints: real processes of ingest, one of which is killed.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

#[path = "support/command.rs"]
mod command;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use coderelay_devstack::{Launch, Probe, Process, Stack, free_port};
use coderelay_runtime::CancellationToken;
use coderelay_runtime::config::{self, Sources};
use coderelay_schemas::topics::TopicNames;
use command::relayctl;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

const SUFFIX: &str = "-failover";
const PARTITIONS: i32 = 3;
/// More than the window of a push, so that some are acknowledged before as many are in the topic.
const BEFORE_THE_KILL: i64 = 600;

/// Not a test: what runs in the processes of ingest that a test starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is an ingest, for the tests here"]
async fn an_ingest() {
    if std::env::var_os("CODERELAY_GRPC__LISTEN").is_none() {
        return;
    }
    let sources = Sources { environment: std::env::vars().collect(), ..Sources::default() };
    ingest::run(config::load(&sources).unwrap(), CancellationToken::new()).await.unwrap();
}

/// A process of ingest, ready for work, and its endpoint.
async fn ingest(name: &str, stack: &Stack, topics: &TopicNames, dir: &Path) -> (Process, String) {
    let (port, admin) = (free_port().unwrap(), free_port().unwrap());
    let settings = [
        ("CODERELAY_GRPC__LISTEN", format!("127.0.0.1:{port}")),
        ("CODERELAY_ADMIN__LISTEN", format!("127.0.0.1:{admin}")),
        ("CODERELAY_KAFKA__BOOTSTRAP_SERVERS", stack.bootstrap_servers()),
        ("CODERELAY_TOPICS__PACKETS", topics.packets.clone()),
    ];
    let launch = Launch::new(name, std::env::current_exe().unwrap(), dir)
        .args(["--ignored", "--exact", "an_ingest", "--nocapture"])
        .envs(settings)
        .ready_when(Probe::Http { url: format!("http://127.0.0.1:{admin}/readyz") });
    let process = Process::launch(launch).unwrap();
    process.ready().await.unwrap();
    (process, format!("http://127.0.0.1:{port}"))
}

fn files(folder: &Path, prefix: &str, count: usize) {
    for n in 0..count {
        std::fs::write(folder.join(format!("{prefix}{n}")), "x".repeat(n)).unwrap();
    }
}

/// How many records the topic has.
fn records(consumer: &BaseConsumer, topic: &str) -> i64 {
    let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap().1;
    (0..PARTITIONS).map(end).sum()
}

/// The documents of standard output, and the summary, which is the last.
fn documents(bytes: &[u8]) -> (Vec<Value>, Value) {
    let documents = serde_json::Deserializer::from_slice(bytes).into_iter();
    let mut documents: Vec<Value> = documents.collect::<Result<_, _>>().unwrap();
    let summary = documents.pop().unwrap()["summary"].clone();
    (documents, summary)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_on_at_the_next_endpoint_when_the_first_is_killed() {
    let stack = Stack::builder().start().await.unwrap();
    let topics = TopicNames::with_suffix(SUFFIX);
    stack.create_topics(&topics, PARTITIONS).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (first, a) = ingest("ingest-a", &stack, &topics, dir.path()).await;
    let (_second, b) = ingest("ingest-b", &stack, &topics, dir.path()).await;

    // A push sends in the order of names, and standard input is called "-": it cannot end before the test closes that.
    let folder = tempfile::tempdir().unwrap();
    files(folder.path(), "+before-", 2000);
    files(folder.path(), "after-", 300);
    let mut push = Command::new(env!("CARGO_BIN_EXE_relayctl"))
        .args(["push", folder.path().to_str().unwrap(), "-", "--repo", "acme/failover"])
        .args(["--endpoint", &a, "--endpoint", &b, "--output", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = push.stdin.take().unwrap();
    let consumer: BaseConsumer = stack.kafka_client().create().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while records(&consumer, &topics.packets) < BEFORE_THE_KILL {
        assert!(Instant::now() < deadline, "{}", first.log_tail(20));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    first.kill().await.unwrap();
    stdin.write_all(b"read once the first is dead").await.unwrap();
    drop(stdin);
    let pushed = push.wait_with_output().await.unwrap();

    let remarks = String::from_utf8(pushed.stderr).unwrap();
    assert!(pushed.status.success(), "{remarks}");
    assert_eq!(remarks.matches("going on at").count(), 1, "{remarks}");
    assert!(
        remarks.contains(&format!("going on at {b}")) && remarks.contains(&format!("relayctl: {a}: ")),
        "{remarks}"
    );

    let (files, summary) = documents(&pushed.stdout);
    assert_eq!((files.len(), summary["committed"].as_u64()), (2301, Some(2301)));
    let endpoints: Vec<_> = summary["endpoints"].as_array().unwrap().iter().collect();
    assert_eq!([&endpoints[0]["endpoint"], &endpoints[1]["endpoint"]], [a.as_str(), b.as_str()]);
    let committed = [0, 1].map(|index| endpoints[index]["committed"].as_u64().unwrap());
    assert!(committed[0] > 0 && committed[1] > 300, "{committed:?}");
    assert_eq!(committed.iter().sum::<u64>(), 2301);

    let kafka = stack.bootstrap_servers();
    let tail = ["tail", "--topic", &topics.packets, "--kafka", &kafka, "--output", "json"];
    let (_, bytes) = relayctl(&tail).await;
    let records = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>().map(Result::unwrap);
    let kept: BTreeSet<_> = records.map(|record| record["packet"]["packet_id"].as_str().unwrap().to_owned()).collect();
    let pushed: BTreeSet<_> = files.iter().map(|file| file["packet_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kept, pushed, "every file is there, and under no second id");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_endpoints_are_dead_each_is_named_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    files(dir.path(), "file-", 3);
    let [a, b] = [(); 2].map(|()| format!("http://127.0.0.1:{}", free_port().unwrap()));
    let started = Instant::now();
    let push = Command::new(env!("CARGO_BIN_EXE_relayctl"))
        .args(["push", dir.path().to_str().unwrap(), "--repo", "acme/failover", "--patience", "2s"])
        .env("INGEST_ENDPOINT", format!("{a},{b}"))
        .output()
        .await
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let remarks = String::from_utf8(push.stderr).unwrap();
    assert_eq!(push.status.code(), Some(1), "{remarks}");
    let last = remarks.lines().last().unwrap();
    let named = |endpoint: &str| last.contains(&format!("{endpoint}: tcp connect error (Unavailable)"));
    assert!(last.contains("acknowledged nothing for 2s, gave up: ") && named(&a) && named(&b), "{remarks}");
    let summary = String::from_utf8(push.stdout).unwrap();
    assert!(summary.contains("3 without an outcome") && summary.contains(&format!("0 by {a}, 0 by {b}")), "{summary}");
}
