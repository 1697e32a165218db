//! The generator against services that answer well, badly, late and never: it must count what happened.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coderelay_schemas::pb::ingest_server::{Ingest, IngestServer};
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{
    Committed, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResponse, PublishResult,
};
use loadtest::corpus::{Corpus, CorpusSpec};
use loadtest::generator::{self, Load, Tally};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

/// How a service behaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Acknowledges everything, the results of a request in reverse.
    Good,
    /// Acknowledges nine of ten packets and asks the producer to wait with the tenth.
    Busy,
    /// Stops for half a second at the fifth request, then goes on.
    Stalling,
    /// Ends the stream with an error at the third request.
    Failing,
    /// Takes everything and says nothing.
    Silent,
    /// Sends every result twice.
    Repeating,
}

struct Service {
    manner: Manner,
    requests: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl Ingest for Service {
    type PublishStream = ReceiverStream<Result<PublishResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let (answers, stream) = mpsc::channel(4);
        let (manner, requests) = (self.manner, self.requests.clone());
        let mut packets = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = packets.message().await {
                let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
                let answer = match (manner, number) {
                    (Manner::Silent, _) => continue,
                    (Manner::Failing, 3..) => Err(Status::unavailable("going away")),
                    _ => Ok(results(manner, &request)),
                };
                if matches!((manner, number), (Manner::Stalling, 5)) {
                    sleep(Duration::from_millis(500)).await;
                }
                if answers.send(answer.map(|results| PublishResponse { results })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_batch(&self, _: Request<PublishBatchRequest>) -> Result<Response<PublishBatchResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}

fn results(manner: Manner, request: &PublishRequest) -> Vec<PublishResult> {
    let result = |(k, packet): (usize, &coderelay_schemas::pb::CodePacket)| {
        let busy = matches!(manner, Manner::Busy) && k % 10 == 9;
        let outcome = if busy {
            let code = Code::ResourceExhausted as i32;
            Outcome::Error(tonic_types::pb::Status { code, ..Default::default() })
        } else {
            Outcome::Committed(Committed::default())
        };
        PublishResult { seq: request.seq + k as u64, packet_id: packet.packet_id.clone(), outcome: Some(outcome) }
    };
    let mut results: Vec<_> = request.packets.iter().enumerate().map(result).collect();
    results.reverse();
    if matches!(manner, Manner::Repeating) {
        results.extend(results.clone());
    }
    results
}

fn serve(manner: Manner) -> SocketAddr {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let service = Service { manner, requests: Arc::default() };
    tokio::spawn(
        tonic::transport::Server::builder().add_service(IngestServer::new(service)).serve_with_incoming(incoming),
    );
    address
}

/// 20 requests of 50 packets on one stream.
async fn tally(manner: Manner, rate: Option<f64>) -> Tally {
    let address = serve(manner);
    let load = Load {
        endpoint: format!("http://{address}"),
        connections: 1,
        streams: 1,
        window: 2,
        per_request: 50,
        first: 0,
        packets: 1000,
        rate,
        patience: Duration::from_secs(1),
    };
    let corpus = Corpus::new(CorpusSpec { size: 256, ..CorpusSpec::default() }).unwrap();
    generator::run(Arc::new(corpus), &load).await.unwrap()
}

fn errors(tally: &Tally) -> Vec<(&str, u64)> {
    tally.errors.iter().map(|(code, packets)| (code.as_str(), *packets)).collect()
}

#[tokio::test]
async fn every_packet_is_acknowledged_and_timed() {
    let tally = tally(Manner::Good, None).await;
    assert_eq!((tally.acknowledged, tally.latency.percentiles().count), (1000, 1000));
    assert_eq!(errors(&tally), []);
}

#[tokio::test]
async fn refused_packets_are_counted_by_code_and_not_timed() {
    let tally = tally(Manner::Busy, None).await;
    assert_eq!((tally.acknowledged, tally.latency.percentiles().count), (900, 900));
    assert_eq!(errors(&tally), [("ResourceExhausted", 100)]);
}

#[tokio::test]
async fn a_stall_counts_for_every_packet_that_was_due_meanwhile() {
    // One request each 20 ms: the stall of 500 ms holds all of the later ones back.
    let tally = tally(Manner::Stalling, Some(2500.0)).await;
    let latency = tally.latency.percentiles();
    assert_eq!(tally.acknowledged, 1000);
    assert!(latency.p50 > 100.0, "a closed loop would have seen two slow requests: {latency:?}");
    assert!(tally.elapsed >= Duration::from_millis(500));
}

#[tokio::test]
async fn what_a_failed_stream_leaves_is_not_lost_from_the_count() {
    let tally = tally(Manner::Failing, None).await;
    assert_eq!(tally.acknowledged, 100);
    assert_eq!(tally.acknowledged + tally.errors.values().sum::<u64>(), 1000, "{:?}", tally.errors);
    assert!(tally.errors["Unavailable"] >= 50 && tally.errors["NotSent"] > 0, "{:?}", tally.errors);
}

#[tokio::test]
async fn a_silent_service_is_given_up() {
    let tally = tally(Manner::Silent, None).await;
    assert_eq!(errors(&tally), [("NoAnswer", 100), ("NotSent", 900)]);
}

#[tokio::test]
async fn a_result_that_comes_twice_is_reported() {
    let tally = tally(Manner::Repeating, None).await;
    assert_eq!((tally.acknowledged, errors(&tally)), (1000, vec![("UnexpectedResult", 1000)]));
}
