//! The generator against services that answer well, badly, late and never: it must count what happened.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coderelay_runtime::config::HumanDuration;
use coderelay_schemas::pb::ingest_server::{Ingest, IngestServer};
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{
    Committed, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResponse, PublishResult,
};
use loadtest::audit::Audit;
use loadtest::audits::Audits;
use loadtest::corpus::{Corpus, CorpusSpec};
use loadtest::generator::{self, Traffic};
use loadtest::plan::Plan;
use loadtest::recorder::{Kind, Recorder};
use loadtest::scenario::{Load, Scenario};
use loadtest::summary::Percentiles;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// How a service behaves.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Acknowledges everything, the results of a request in reverse.
    Good,
    /// Acknowledges nine of ten packets and refuses the tenth, the same each time.
    Refusing,
    /// Asks the producer to come again with the tenth packet of its first five requests.
    Busy,
    /// Stops for half a second at the fifth request, then goes on.
    Stalling,
    /// Ends the stream with an error at the third request and at every later one.
    Failing,
    /// Ends the stream with an error at the third request, once.
    Leaving,
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
                    (Manner::Failing, 3..) | (Manner::Leaving, 3) => Err(Status::unavailable("going away")),
                    _ => Ok(results(manner, number, &request)),
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

fn results(manner: Manner, number: u64, request: &PublishRequest) -> Vec<PublishResult> {
    let result = |(k, packet): (usize, &coderelay_schemas::pb::CodePacket)| {
        let status = match manner {
            Manner::Refusing if k % 10 == 9 => Some(Status::invalid_argument("wrong")),
            Manner::Busy if k % 10 == 9 && number <= 5 => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(20)));
                Some(Status::with_error_details(Code::ResourceExhausted, "later", details))
            }
            _ => None,
        };
        let outcome =
            status.map_or_else(|| Outcome::Committed(Committed::default()), |status| Outcome::Error(message(&status)));
        PublishResult { seq: request.seq + k as u64, packet_id: packet.packet_id.clone(), outcome: Some(outcome) }
    };
    let mut results: Vec<_> = request.packets.iter().enumerate().map(result).collect();
    results.reverse();
    if matches!(manner, Manner::Repeating) {
        results.extend(results.clone());
    }
    results
}

fn message(status: &Status) -> tonic_types::pb::Status {
    let details: tonic_types::pb::Status = prost::Message::decode(status.details()).unwrap();
    tonic_types::pb::Status { code: status.code() as i32, ..details }
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

/// What came of a load.
struct Tally {
    recorder: Arc<Recorder>,
    elapsed: Duration,
}

impl Tally {
    fn acknowledged(&self) -> u64 {
        self.recorder.acknowledged.load(Ordering::Relaxed)
    }

    fn failed(&self) -> u64 {
        self.recorder.failed.load(Ordering::Relaxed)
    }

    fn errors(&self) -> Vec<(String, u64)> {
        self.recorder.errors().into_iter().collect()
    }

    fn percentiles(&self, kind: Kind) -> Percentiles {
        self.recorder.next_interval(kind).unwrap().percentiles()
    }
}

/// 20 requests of 50 packets on one stream.
async fn tally(manner: Manner, rate: Option<f64>, attempts: u32) -> Tally {
    tally_of(&[manner], rate, attempts).await
}

/// The same on several regions, each with its manner.
async fn tally_of(manners: &[Manner], rate: Option<f64>, attempts: u32) -> Tally {
    let endpoints: Vec<_> = manners.iter().map(|manner| format!("http://{}", serve(*manner))).collect();
    let load = Load {
        rate,
        duration: HumanDuration::from_millis(rate.map_or(0, |rate| (1e6 / rate) as u64)),
        packets: 1000,
        per_request: 50,
        connections: 1,
        streams: 1,
        window: 2,
        attempts,
        patience: HumanDuration::from_secs(1),
        ..Load::default()
    };
    let plan = Arc::new(Plan::new(&Scenario { load: load.clone(), ..Scenario::default() }));
    let corpus = Arc::new(Corpus::new(CorpusSpec { size: 256, ..CorpusSpec::default() }).unwrap());
    let traffic = Arc::new(Traffic {
        audits: Arc::new(Audits::new(
            manners.iter().map(|_| Arc::new(Audit::new(corpus.clone(), plan.packets()))).collect(),
            plan.packets(),
        )),
        recorder: Arc::new(Recorder::new(plan.phases().len()).unwrap()),
        stop: CancellationToken::new(),
        corpus,
        plan: plan.clone(),
    });
    let epoch = Instant::now();
    let last = generator::run(&traffic, &endpoints, &load, plan.requests(), epoch).await.unwrap();
    Tally { recorder: traffic.recorder.clone(), elapsed: last - epoch }
}

fn named(errors: &[(&str, u64)]) -> Vec<(String, u64)> {
    errors.iter().map(|(code, packets)| ((*code).to_owned(), *packets)).collect()
}

#[tokio::test]
async fn every_packet_is_acknowledged_and_timed() {
    let tally = tally(Manner::Good, None, 1).await;
    assert_eq!((tally.acknowledged(), tally.percentiles(Kind::Ack).count), (1000, 1000));
    assert_eq!(tally.percentiles(Kind::Service).count, 1000);
    assert_eq!(tally.errors(), []);
}

#[tokio::test]
async fn refused_packets_are_counted_by_code_and_not_timed() {
    let tally = tally(Manner::Refusing, None, 100).await;
    assert_eq!((tally.acknowledged(), tally.percentiles(Kind::Ack).count), (900, 900));
    assert_eq!((tally.errors(), tally.failed()), (named(&[("INVALID_ARGUMENT", 100)]), 100));
}

#[tokio::test]
async fn what_may_be_retried_is_sent_again_after_the_delay_and_timed_from_its_intended_time() {
    let tally = tally(Manner::Busy, None, 100).await;
    assert_eq!((tally.acknowledged(), tally.failed()), (1000, 0));
    let refused = tally.errors()[0].1;
    assert!(refused >= 25 && tally.recorder.retried.load(Ordering::Relaxed) == refused, "{:?}", tally.errors());
    assert!(tally.percentiles(Kind::Ack).max >= 20.0);
    assert!(tally.elapsed >= Duration::from_millis(20));
}

#[tokio::test]
async fn a_packet_is_given_up_after_its_last_attempt() {
    let tally = tally(Manner::Busy, None, 1).await;
    assert_eq!((tally.acknowledged(), tally.failed()), (975, 25));
}

#[tokio::test]
async fn a_stall_counts_for_every_packet_that_was_due_meanwhile() {
    // One request each 20 ms: the stall of 500 ms holds all of the later ones back.
    let tally = tally(Manner::Stalling, Some(2500.0), 1).await;
    let latency = tally.percentiles(Kind::Ack);
    assert_eq!(tally.acknowledged(), 1000);
    assert!(latency.p50 > 100.0, "a closed loop would have seen two slow requests: {latency:?}");
    assert!(tally.percentiles(Kind::Service).p50 < latency.p50);
    assert!(tally.elapsed >= Duration::from_millis(500));
}

#[tokio::test]
async fn the_wait_for_the_service_is_not_the_generators_slip() {
    let tally = tally(Manner::Stalling, Some(2500.0), 1).await;
    let slip = tally.percentiles(Kind::Slip);
    assert_eq!(slip.count, 20);
    assert!(slip.p50 < 100.0, "{slip:?}");
}

#[tokio::test]
async fn what_a_failed_stream_leaves_is_not_lost_from_the_count() {
    let tally = tally(Manner::Failing, None, 1).await;
    let errors = tally.recorder.errors();
    assert_eq!((tally.acknowledged(), tally.failed()), (100, 900));
    assert_eq!(errors.values().sum::<u64>(), 900, "{errors:?}");
    assert!(errors["UNAVAILABLE"] >= 50 && errors["NOT_SENT"] > 0, "{errors:?}");
}

#[tokio::test]
async fn a_stream_that_broke_is_opened_again_and_what_it_left_is_sent_again() {
    let tally = tally(Manner::Leaving, None, 100).await;
    assert_eq!((tally.acknowledged(), tally.failed()), (1000, 0));
    assert!(tally.recorder.errors()["UNAVAILABLE"] >= 50, "{:?}", tally.errors());
}

#[tokio::test]
async fn a_stream_that_broke_goes_to_the_next_region_with_what_it_left() {
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let tally = tally_of(&[Manner::Failing, Manner::Good], None, 100).await;
        assert_eq!((tally.acknowledged(), tally.failed()), (1000, 0));
        assert!(tally.recorder.errors()["UNAVAILABLE"] >= 50, "{:?}", tally.errors());
        gaps.push(tally.recorder.longest_gap().unwrap());
    }
    // A pause would be in each; a machine that is busy elsewhere is not.
    let gap = gaps.iter().min().unwrap();
    assert!(*gap < Duration::from_millis(200), "the other region was there at once, and not asked for {gap:?}");
}

#[tokio::test]
async fn a_region_that_says_nothing_is_left_for_one_that_does() {
    let tally = tally_of(&[Manner::Silent, Manner::Good], None, 100).await;
    assert_eq!((tally.acknowledged(), tally.failed()), (1000, 0));
    assert_eq!(tally.errors(), named(&[("NO_ANSWER", 100)]));
}

#[tokio::test]
async fn a_silent_service_is_given_up() {
    let tally = tally(Manner::Silent, None, 1).await;
    assert_eq!(tally.errors(), named(&[("NOT_SENT", 900), ("NO_ANSWER", 100)]));
}

#[tokio::test]
async fn a_result_that_comes_twice_is_reported() {
    let tally = tally(Manner::Repeating, None, 1).await;
    assert_eq!((tally.acknowledged(), tally.errors()), (1000, named(&[("UNEXPECTED_RESULT", 1000)])));
}
