//! `push` against an ingest that behaves badly: what it must survive, and what it must report.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

#[path = "support/command.rs"]
mod command;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coderelay_schemas::pb::ingest_server::{Ingest, IngestServer};
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{
    CodePacket, Committed, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResponse, PublishResult,
};
use command::relayctl;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use relayctl::Exit;
use serde_json::Value;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What one stream does with the packets that come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    /// Acknowledge everything.
    Commit,
    /// Acknowledge one packet, then break the stream.
    BreakAfterOne,
    /// Ask for every packet again once, 10 ms later, then acknowledge it.
    BusyOnce,
    /// Refuse every packet.
    Refuse,
    /// Refuse the call itself.
    Deny,
    /// Say nothing.
    Silent,
    /// Ask for one packet again, every time, and acknowledge the others.
    UnavailableForOne,
}

/// An ingest whose streams follow a script, the last line for ever.
#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<VecDeque<Behaviour>>>,
    /// How often each packet id was acknowledged.
    committed: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Packet ids that were asked for again.
    put_off: Arc<Mutex<BTreeSet<String>>>,
    /// The metadata `x-ack` of the last call.
    ack: Arc<Mutex<Option<String>>>,
}

impl Scripted {
    async fn start(script: &[Behaviour]) -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script.iter().copied().collect()));
        let ingest = Self { script, committed: Arc::default(), put_off: Arc::default(), ack: Arc::default() };
        let server = tonic::transport::Server::builder()
            .add_service(IngestServer::new(ingest.clone()).max_decoding_message_size(16 << 20))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        (ingest, address)
    }

    fn next(&self) -> Behaviour {
        let mut script = self.script.lock().unwrap();
        if script.len() > 1 { script.pop_front().unwrap() } else { script[0] }
    }

    fn is_put_off(&self, id: &str) -> bool {
        self.put_off.lock().unwrap().contains(id)
    }

    fn result(&self, seq: u64, packet: &CodePacket, behaviour: Behaviour) -> PublishResult {
        let id = hex::encode(&packet.packet_id);
        let outcome = match behaviour {
            Behaviour::BusyOnce if self.put_off.lock().unwrap().insert(id.clone()) => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(10)));
                error(Code::ResourceExhausted, "budget is full", details)
            }
            Behaviour::UnavailableForOne if self.put_off.lock().unwrap().is_empty() || self.is_put_off(&id) => {
                self.put_off.lock().unwrap().insert(id);
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(10)));
                error(Code::Unavailable, "its leader is away", details)
            }
            Behaviour::Commit | Behaviour::BreakAfterOne | Behaviour::BusyOnce | Behaviour::UnavailableForOne => {
                *self.committed.lock().unwrap().entry(id).or_default() += 1;
                Outcome::Committed(Committed { topic: "t".to_owned(), partition: 1, offset: seq as i64 })
            }
            _ => {
                error(Code::InvalidArgument, "bad", ErrorDetails::with_error_info("REPO_ID_EMPTY", "coderelay.v1", []))
            }
        };
        PublishResult { seq, packet_id: packet.packet_id.clone(), outcome: Some(outcome) }
    }
}

fn error(code: Code, message: &str, details: ErrorDetails) -> Outcome {
    let status = Status::with_error_details(code, message, details);
    Outcome::Error(tonic_types::pb::Status::decode(status.details()).unwrap())
}

#[tonic::async_trait]
impl Ingest for Scripted {
    type PublishStream = Pin<Box<dyn Stream<Item = Result<PublishResponse, Status>> + Send>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let behaviour = self.next();
        let ack = request.metadata().get("x-ack").map(|ack| ack.to_str().unwrap().to_owned());
        *self.ack.lock().unwrap() = ack;
        if behaviour == Behaviour::Deny {
            return Err(Status::permission_denied("not you"));
        }
        let ingest = self.clone();
        let answers = request.into_inner().filter_map(move |request| {
            let ingest = ingest.clone();
            async move {
                let PublishRequest { seq, packets } = request.ok()?;
                let results = (seq..).zip(&packets).map(|(seq, packet)| ingest.result(seq, packet, behaviour));
                match behaviour {
                    Behaviour::Silent => None,
                    Behaviour::BreakAfterOne => {
                        let first = PublishResponse { results: results.take(1).collect() };
                        Some(vec![Ok(first), Err(Status::unavailable("going away"))])
                    }
                    _ => Some(vec![Ok(PublishResponse { results: results.collect() })]),
                }
            }
        });
        Ok(Response::new(answers.flat_map(futures::stream::iter).boxed()))
    }

    async fn publish_batch(&self, _: Request<PublishBatchRequest>) -> Result<Response<PublishBatchResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }
}

/// Pushes a folder of 300 files; the exit code, a line of JSON per file, the summary.
async fn push(address: SocketAddr, more: &[&str]) -> (Exit, Vec<Value>, Value) {
    push_to(&[address], more).await
}

async fn push_to(addresses: &[SocketAddr], more: &[&str]) -> (Exit, Vec<Value>, Value) {
    push_folder(&folder(), addresses, more).await
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..300 {
        std::fs::write(folder.path().join(format!("file-{n}")), "x".repeat(n)).unwrap();
    }
    folder
}

async fn push_folder(folder: &tempfile::TempDir, addresses: &[SocketAddr], more: &[&str]) -> (Exit, Vec<Value>, Value) {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let (path, address) = (folder.path().to_str().unwrap(), addresses.join(","));
    let line = ["push", path, "--repo", "team/relay", "--ingest", &address, "--output", "json"];
    let (exit, bytes) = relayctl(&[&line[..], more].concat()).await;
    let mut lines: Vec<Value> =
        serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<_, _>>().unwrap();
    let summary = lines.pop().unwrap()["summary"].clone();
    (exit, lines, summary)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_is_acknowledged_and_reported_once() {
    let (ingest, address) = Scripted::start(&[Behaviour::Commit]).await;
    let (exit, lines, summary) = push(address, &["--metadata", "branch=main"]).await;
    assert_eq!((exit, summary["committed"].as_u64()), (Exit::Success, Some(300)));
    let mut paths: Vec<_> = lines.iter().map(|line| line["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), 300);
    assert!(ingest.committed.lock().unwrap().values().all(|&count| count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_acknowledgement_promises_is_the_deployments_choice_or_ones_own() {
    let (ingest, address) = Scripted::start(&[Behaviour::Commit]).await;
    push(address, &[]).await;
    assert_eq!(*ingest.ack.lock().unwrap(), None);
    push(address, &["--ack", "mirrored"]).await;
    assert_eq!(ingest.ack.lock().unwrap().as_deref(), Some("mirrored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_taken_up_again_with_the_same_ids() {
    let (ingest, address) =
        Scripted::start(&[Behaviour::BreakAfterOne, Behaviour::BreakAfterOne, Behaviour::Commit]).await;
    let (exit, lines, summary) = push(address, &[]).await;
    assert_eq!(
        (exit, summary["committed"].as_u64(), summary["reconnections"].as_u64()),
        (Exit::Success, Some(300), Some(2))
    );
    assert_eq!(ingest.committed.lock().unwrap().len(), 300, "no packet under two ids");
    assert!(lines.iter().any(|line| line["attempts"].as_u64() > Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_ingest_gets_every_packet_again() {
    let (ingest, address) = Scripted::start(&[Behaviour::BusyOnce]).await;
    let (exit, lines, summary) = push(address, &[]).await;
    assert_eq!(
        (exit, summary["committed"].as_u64(), summary["retried"].as_u64()),
        (Exit::Success, Some(300), Some(300))
    );
    assert!(lines.iter().all(|line| line["attempts"] == 2));
    assert!(ingest.committed.lock().unwrap().values().all(|&count| count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_packets_keep_their_reason() {
    let (_, address) = Scripted::start(&[Behaviour::Refuse]).await;
    let (exit, lines, summary) = push(address, &[]).await;
    assert_eq!((exit, summary["rejected"].as_u64()), (Exit::Failure, Some(300)));
    assert_eq!((&lines[0]["outcome"], &lines[0]["reason"]), (&"rejected".into(), &"REPO_ID_EMPTY".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_ends_at_once_and_a_silent_one_after_patience() {
    let (_, address) = Scripted::start(&[Behaviour::Deny]).await;
    let started = Instant::now();
    assert_eq!(push(address, &[]).await.0, Exit::Failure);
    assert!(started.elapsed() < Duration::from_secs(20));

    let (_, address) = Scripted::start(&[Behaviour::Silent]).await;
    let (exit, _, summary) = push(address, &["--patience", "500ms"]).await;
    assert_eq!((exit, summary["unsettled"].as_u64()), (Exit::Failure, Some(300)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_skipped_and_the_rest_goes() {
    let (_, address) = Scripted::start(&[Behaviour::Commit]).await;
    let folder = tempfile::tempdir().unwrap();
    let noise: Vec<u8> =
        (0..1_500_000_u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..4].to_vec()).collect();
    std::fs::write(folder.path().join("noise"), noise).unwrap();
    std::fs::write(folder.path().join("empty"), "").unwrap();
    let address = address.to_string();
    let (exit, bytes) = relayctl(&["push", folder.path().to_str().unwrap(), "--repo", "r", "--ingest", &address]).await;
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(exit, Exit::Partial, "{text}");
    assert!(text.contains("skipped   noise:") && text.contains("1 of 2 files committed"), "{text}");
}

/// How many packets each endpoint acknowledged.
fn acknowledged(summary: &Value) -> Vec<u64> {
    summary["endpoints"].as_array().unwrap().iter().map(|one| one["committed"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_endpoint_gets_what_the_first_does_not_take() {
    let cases = [
        (Behaviour::BreakAfterOne, 1..=1),
        (Behaviour::Deny, 0..=0),
        (Behaviour::Silent, 0..=0),
        (Behaviour::UnavailableForOne, 1..=299),
    ];
    for (behaviour, taken) in cases {
        let (first, a) = Scripted::start(&[behaviour]).await;
        let (second, b) = Scripted::start(&[Behaviour::Commit]).await;
        let (exit, lines, summary) = push_to(&[a, b], &["--patience", "4s"]).await;
        assert_eq!((exit, summary["committed"].as_u64()), (Exit::Success, Some(300)), "{behaviour:?}: {summary}");
        let acknowledged = acknowledged(&summary);
        assert!(taken.contains(&acknowledged[0]), "{behaviour:?}: {summary}");
        assert_eq!((acknowledged.iter().sum::<u64>(), lines.len()), (300, 300), "{behaviour:?}");

        let (first, second) = (first.committed.lock().unwrap(), second.committed.lock().unwrap());
        let ids: BTreeSet<_> = first.keys().chain(second.keys()).collect();
        assert_eq!(ids.len(), 300, "no packet under two ids");
        assert_eq!(second.len() as u64, acknowledged[1], "what was not acknowledged, and nothing else");
    }
}

/// A stream that ended may refuse to be written to before its last answer has been read: whichever is noticed first, none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_answered_before_it_broke_counts() {
    let folder = folder();
    for _ in 0..50 {
        let (_, a) = Scripted::start(&[Behaviour::BreakAfterOne]).await;
        let (_, b) = Scripted::start(&[Behaviour::Commit]).await;
        let (exit, _, summary) = push_folder(&folder, &[a, b], &[]).await;
        assert_eq!((exit, acknowledged(&summary)), (Exit::Success, vec![1, 299]), "{summary}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_is_no_reason_to_move() {
    let (_, a) = Scripted::start(&[Behaviour::BusyOnce]).await;
    let (_, b) = Scripted::start(&[Behaviour::Commit]).await;
    let (exit, _, summary) = push_to(&[a, b], &[]).await;
    assert_eq!((exit, acknowledged(&summary)), (Exit::Success, vec![300, 0]));
}
