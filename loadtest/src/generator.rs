//! Sends packets over `Publish` streams and times every packet's result.
//!
//! Closed loop (no rate): each stream keeps `window` requests in flight, and latency counts from the moment a request is
//! handed to the stream. Open loop (a rate): request `r` is due at `start + r / rate`, and latency counts from then, even
//! if the window held it back; so a stall shows as latency and not as fewer samples (coordinated omission).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishRequest, PublishResult};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::corpus::Corpus;
use crate::latency::Latency;

/// How to load an ingest service.
#[derive(Clone, Debug)]
pub struct Load {
    /// The service, as `http://host:port`.
    pub endpoint: String,
    /// TCP connections; streams are dealt out over them.
    pub connections: usize,
    /// `Publish` streams open at the same time.
    pub streams: usize,
    /// Requests a stream may have in flight.
    pub window: usize,
    /// Packets in a request.
    pub per_request: u64,
    /// Number of the first packet of the corpus to send.
    pub first: u64,
    /// Packets to send.
    pub packets: u64,
    /// Packets per second over all streams; without it as fast as the window allows.
    pub rate: Option<f64>,
    /// A stream that hears nothing for this long while packets are in flight is given up.
    pub patience: Duration,
}

/// What a load came to.
#[derive(Debug)]
pub struct Tally {
    /// Packets the service acknowledged as committed.
    pub acknowledged: u64,
    /// Packets that were not, by gRPC code, or `NoAnswer` where a stream fell silent, `NotSent` where all had ended.
    pub errors: BTreeMap<String, u64>,
    /// From a request's time (see the module) to the result of each of its packets, acknowledged ones only.
    pub latency: Latency,
    /// From the first request to the last result.
    pub elapsed: Duration,
}

impl Tally {
    fn empty() -> Result<Self> {
        Ok(Self { acknowledged: 0, errors: BTreeMap::new(), latency: Latency::new()?, elapsed: Duration::ZERO })
    }

    fn fail(&mut self, code: &str, packets: u64) {
        if packets > 0 {
            *self.errors.entry(code.to_owned()).or_default() += packets;
        }
    }

    fn add(&mut self, other: Self) -> Result<()> {
        self.acknowledged += other.acknowledged;
        for (code, packets) in other.errors {
            self.fail(&code, packets);
        }
        self.latency.merge(&other.latency)
    }
}

/// Runs a load to its end.
///
/// # Errors
/// When the service cannot be reached or the load makes no sense; a packet that fails is counted instead.
pub async fn run(corpus: Arc<Corpus>, load: &Load) -> Result<Tally> {
    ensure!(load.connections > 0 && load.streams > 0, "connections and streams must be 1 or more");
    ensure!(load.window > 0 && load.per_request > 0, "window and packets per request must be 1 or more");
    ensure!(load.rate.is_none_or(|rate| rate > 0.0), "the rate must be above 0");

    let mut channels = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        channels.push(connect(&load.endpoint).await?);
    }
    let started = Instant::now();
    let schedule = Arc::new(Schedule::new(load, started));
    let streams: Vec<_> = (0..load.streams)
        .map(|n| {
            let client = IngestClient::new(channels[n % channels.len()].clone()).max_decoding_message_size(64 << 20);
            tokio::spawn(drive(client, corpus.clone(), schedule.clone(), load.window, load.patience))
        })
        .collect();

    let mut tally = Tally::empty()?;
    for stream in streams {
        tally.add(stream.await.context("a stream's task failed")??)?;
    }
    tally.elapsed = started.elapsed();
    tally.fail("NotSent", load.packets - schedule.taken());
    Ok(tally)
}

async fn connect(endpoint: &str) -> Result<Channel> {
    let endpoint =
        Endpoint::from_shared(endpoint.to_owned()).with_context(|| format!("{endpoint:?} is no endpoint"))?;
    let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(5));
    let uri = endpoint.uri().clone();
    endpoint.connect().await.with_context(|| format!("cannot connect to {uri}"))
}

/// Deals the requests of a load out to whichever stream has room.
struct Schedule {
    next: AtomicU64,
    requests: u64,
    first: u64,
    packets: u64,
    per_request: u64,
    started: Instant,
    interval: Option<Duration>,
}

/// One request's packets, and when it is due in an open loop.
struct Slot {
    packets: Range<u64>,
    due: Option<Instant>,
}

impl Schedule {
    fn new(load: &Load, started: Instant) -> Self {
        Self {
            next: AtomicU64::new(0),
            requests: load.packets.div_ceil(load.per_request),
            first: load.first,
            packets: load.packets,
            per_request: load.per_request,
            started,
            interval: load.rate.map(|rate| Duration::from_secs_f64(load.per_request as f64 / rate)),
        }
    }

    fn take(&self) -> Option<Slot> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        (request < self.requests).then(|| {
            let from = request * self.per_request;
            let to = (from + self.per_request).min(self.packets);
            Slot {
                packets: self.first + from..self.first + to,
                due: self.interval.map(|interval| self.started + interval.mul_f64(request as f64)),
            }
        })
    }

    /// Packets of all requests taken so far.
    fn taken(&self) -> u64 {
        (self.next.load(Ordering::Relaxed) * self.per_request).min(self.packets)
    }
}

/// The requests of one stream that still wait for results, oldest first.
#[derive(Default)]
struct InFlight {
    first_seq: u64,
    next_seq: u64,
    requests: VecDeque<Waiting>,
}

struct Waiting {
    since: Instant,
    seq: u64,
    packets: u64,
    answered: u64,
}

impl InFlight {
    /// Enters a request and returns its `seq`.
    fn push(&mut self, since: Instant, packets: u64) -> u64 {
        let seq = self.next_seq;
        self.next_seq += packets;
        self.requests.push_back(Waiting { since, seq, packets, answered: 0 });
        seq
    }

    /// Enters the result for `seq`; `None` if it was not waited for. Requests answered in full leave from the front and
    /// are counted in `done`.
    fn answer(&mut self, seq: u64, done: &mut usize) -> Option<Instant> {
        if seq < self.first_seq || seq >= self.next_seq {
            return None;
        }
        let at = self.requests.partition_point(|waiting| waiting.seq + waiting.packets <= seq);
        let waiting = self.requests.get_mut(at)?;
        if waiting.answered == waiting.packets {
            return None;
        }
        waiting.answered += 1;
        let since = waiting.since;
        while let Some(front) = self.requests.front().filter(|front| front.answered == front.packets) {
            self.first_seq = front.seq + front.packets;
            self.requests.pop_front();
            *done += 1;
        }
        Some(since)
    }

    fn unanswered(&self) -> u64 {
        self.requests.iter().map(|waiting| waiting.packets - waiting.answered).sum()
    }
}

/// What a stream's two halves share.
struct Shared {
    in_flight: Mutex<InFlight>,
    window: Semaphore,
}

impl Shared {
    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends over one stream until the schedule is empty, and counts its results.
async fn drive(
    mut client: IngestClient<Channel>,
    corpus: Arc<Corpus>,
    schedule: Arc<Schedule>,
    window: usize,
    patience: Duration,
) -> Result<Tally> {
    let shared = Arc::new(Shared { in_flight: Mutex::default(), window: Semaphore::new(window) });
    let (requests, outbound) = mpsc::channel(1);
    let sender = tokio::spawn(send(corpus, schedule, shared.clone(), requests));
    let mut tally = Tally::empty()?;
    let outcome = receive(&mut client, ReceiverStream::new(outbound), &shared, &mut tally, patience).await;
    shared.window.close();
    sender.await.context("a sender's task failed")?;

    let unanswered = shared.in_flight().unanswered();
    match outcome {
        Ok(()) => tally.fail("NoAnswer", unanswered),
        Err(code) => tally.fail(&code, unanswered),
    }
    Ok(tally)
}

async fn send(
    corpus: Arc<Corpus>,
    schedule: Arc<Schedule>,
    shared: Arc<Shared>,
    requests: mpsc::Sender<PublishRequest>,
) {
    loop {
        // The window first: a stream whose peer has gone must not take requests from the others.
        let Ok(permit) = shared.window.acquire().await else { return };
        permit.forget();
        let Some(slot) = schedule.take() else { return };
        if let Some(due) = slot.due {
            sleep_until(due).await;
        }
        let packets: Vec<_> = slot.packets.clone().map(|n| corpus.packet(n)).collect();
        let since = slot.due.unwrap_or_else(Instant::now);
        let seq = shared.in_flight().push(since, packets.len() as u64);
        if requests.send(PublishRequest { seq, packets }).await.is_err() {
            return;
        }
    }
}

/// Takes results until the service ends the stream; the code of the failure if it does not end well.
async fn receive(
    client: &mut IngestClient<Channel>,
    outbound: ReceiverStream<PublishRequest>,
    shared: &Shared,
    tally: &mut Tally,
    patience: Duration,
) -> Result<(), String> {
    let failed = |status: tonic::Status| format!("{:?}", status.code());
    let silent = || "NoAnswer".to_owned();
    let call = timeout(patience, client.publish(outbound)).await;
    let mut responses = call.map_err(|_| silent())?.map_err(failed)?.into_inner();
    loop {
        match timeout(patience, responses.message()).await {
            Ok(Ok(Some(response))) => {
                let finished = count(response.results, &mut shared.in_flight(), tally);
                shared.window.add_permits(finished);
            }
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(failed(status)),
            Err(_) if shared.in_flight().requests.is_empty() => {}
            Err(_) => return Err(silent()),
        }
    }
}

/// Counts the results of one response and returns how many requests they finished.
fn count(results: Vec<PublishResult>, in_flight: &mut InFlight, tally: &mut Tally) -> usize {
    let now = Instant::now();
    let mut finished = 0;
    for result in results {
        let Some(since) = in_flight.answer(result.seq, &mut finished) else {
            tally.fail("UnexpectedResult", 1);
            continue;
        };
        match result.outcome {
            Some(Outcome::Committed(_)) => {
                tally.acknowledged += 1;
                tally.latency.record(now.saturating_duration_since(since), 1);
            }
            Some(Outcome::Error(status)) => tally.fail(&format!("{:?}", Code::from_i32(status.code)), 1),
            None => tally.fail("NoOutcome", 1),
        }
    }
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(packets: u64, per_request: u64, rate: Option<f64>) -> Load {
        Load {
            endpoint: String::new(),
            connections: 1,
            streams: 1,
            window: 1,
            per_request,
            first: 1000,
            packets,
            rate,
            patience: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_schedule_covers_every_packet_once() {
        let schedule = Schedule::new(&load(250, 100, None), Instant::now());
        let slots: Vec<_> = std::iter::from_fn(|| schedule.take()).map(|slot| slot.packets).collect();
        assert_eq!(slots, [1000..1100, 1100..1200, 1200..1250]);
        assert_eq!(schedule.taken(), 250);
    }

    #[test]
    fn an_open_loop_is_due_at_even_intervals() {
        let started = Instant::now();
        let schedule = Schedule::new(&load(300, 100, Some(1000.0)), started);
        let due: Vec<_> = std::iter::from_fn(|| schedule.take()).filter_map(|slot| slot.due).collect();
        assert_eq!(due, [0, 100, 200].map(|ms| started + Duration::from_millis(ms)));
    }

    #[test]
    fn a_request_ends_with_its_last_result_whatever_the_order() {
        let (mut in_flight, now) = (InFlight::default(), Instant::now());
        assert_eq!((in_flight.push(now, 2), in_flight.push(now, 3)), (0, 2));
        let mut done = 0;
        for seq in [4, 0, 2] {
            assert!(in_flight.answer(seq, &mut done).is_some());
        }
        assert_eq!((done, in_flight.unanswered()), (0, 2));
        assert!(in_flight.answer(1, &mut done).is_some() && done == 1);
        assert!(in_flight.answer(3, &mut done).is_some() && done == 2);
        assert_eq!(in_flight.unanswered(), 0);
    }

    #[test]
    fn a_result_nobody_waits_for_is_not_an_acknowledgement() {
        let (mut in_flight, mut done) = (InFlight::default(), 0);
        in_flight.push(Instant::now(), 1);
        assert!(in_flight.answer(7, &mut done).is_none());
        assert!(in_flight.answer(0, &mut done).is_some());
        assert!(in_flight.answer(0, &mut done).is_none(), "answered twice");
    }
}
