//! Sends the packets of a plan over `Publish` streams and times every packet's result.
//!
//! Open loop: a request is due at the plan's time, and the latency of its packets counts from then, even if the stream's window
//! held it back; so a stall shows as latency and not as fewer samples. Closed loop: each stream keeps its window of requests in
//! flight, and latency counts from the moment a request is handed to the stream.
//!
//! What is refused with `RetryInfo`, or left unanswered by a stream that broke, is sent again after the delay asked for. Its
//! latency still counts from its intended time.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishRequest, PublishResult};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::{RpcStatusExt, StatusExt};

use crate::audits::Audits;
use crate::corpus::Corpus;
use crate::in_flight::{Batch, InFlight, Item, Retries};
use crate::plan::{Arrival, Plan};
use crate::recorder::{Kind, Recorder, add};
use crate::scenario::{self, Ack};

/// Between a stream that broke and the next attempt to open one, unless the service asked for more.
const REOPEN: Duration = Duration::from_millis(200);

/// What all streams of a load share.
#[derive(Debug)]
pub struct Traffic {
    /// The packets.
    pub corpus: Arc<Corpus>,
    /// Which are sent when.
    pub plan: Arc<Plan>,
    /// Learn what was sent and what acknowledged.
    pub audits: Arc<Audits>,
    /// Counts and times everything.
    pub recorder: Arc<Recorder>,
    /// Ends the load early: nothing new is sent, what is in flight is waited for.
    pub stop: CancellationToken,
}

/// Sends `requests` of the plan to `endpoints`, one for each region, the open loop's time 0 being `epoch`, and waits for all results.
/// The streams are dealt out over the regions; one that breaks is opened again in the next. Packets that fail are counted. The time
/// of the last result.
///
/// # Errors
/// When a region cannot be reached at all.
pub async fn run(
    traffic: &Arc<Traffic>,
    endpoints: &[String],
    load: &scenario::Load,
    requests: Range<u64>,
    epoch: Instant,
) -> Result<Instant> {
    let mut channels = Vec::with_capacity(load.connections);
    for _ in 0..load.connections {
        channels.push(futures::future::try_join_all(endpoints.iter().map(|endpoint| connect(endpoint))).await?);
    }
    let schedule = Arc::new(Schedule { next: AtomicU64::new(requests.start), end: requests.end, epoch });
    let streams: Vec<_> = (0..load.streams)
        .map(|number| {
            let regions = channels[number / endpoints.len() % channels.len()].iter().cloned();
            let clients = regions.map(|region| IngestClient::new(region).max_decoding_message_size(64 << 20)).collect();
            let stream = Arc::new(Stream {
                number,
                region: AtomicUsize::new(number % endpoints.len()),
                traffic: traffic.clone(),
                schedule: schedule.clone(),
                load: load.clone(),
                state: Mutex::default(),
                window: Semaphore::new(load.window),
                changed: Notify::new(),
            });
            tokio::spawn(drive(stream, clients))
        })
        .collect();
    let mut last = epoch;
    for stream in streams {
        last = last.max(stream.await.context("a stream's task failed")?);
    }
    if !traffic.stop.is_cancelled() {
        for request in schedule.next.load(Ordering::Relaxed).min(requests.end)..requests.end {
            let arrival = traffic.plan.arrival(request);
            traffic.give_up("NOT_SENT", arrival.packets.end - arrival.packets.start, arrival.measured);
        }
    }
    Ok(last)
}

async fn connect(endpoint: &str) -> Result<Channel> {
    let endpoint =
        Endpoint::from_shared(endpoint.to_owned()).with_context(|| format!("{endpoint:?} is no endpoint"))?;
    let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(5));
    let uri = endpoint.uri().clone();
    endpoint.connect().await.with_context(|| format!("cannot connect to {uri}"))
}

impl Traffic {
    fn give_up(&self, code: &str, packets: u64, measured: bool) {
        self.recorder.error(code, packets);
        if measured {
            add(&self.recorder.failed, packets);
        }
    }
}

/// Deals the requests out to whichever stream has room.
struct Schedule {
    next: AtomicU64,
    end: u64,
    epoch: Instant,
}

impl Schedule {
    fn take(&self, plan: &Plan) -> Option<Arrival> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        (request < self.end).then(|| plan.arrival(request))
    }
}

/// One stream, over all the calls it takes.
struct Stream {
    number: usize,
    /// Where it sends to.
    region: AtomicUsize,
    traffic: Arc<Traffic>,
    schedule: Arc<Schedule>,
    load: scenario::Load,
    state: Mutex<State>,
    window: Semaphore,
    /// Something was answered.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    in_flight: InFlight,
    retries: Retries,
    /// Taken from the schedule and not yet due.
    planned: Option<Arrival>,
    /// When the last result came.
    last: Option<Instant>,
    /// When the last result had come before the stream broke; until the next acknowledgement.
    broken: Option<Instant>,
}

/// Opens the stream, and again whenever it breaks, until nothing is left to do or it has been silent for too long.
async fn drive(stream: Arc<Stream>, mut clients: Vec<IngestClient<Channel>>) -> Instant {
    let (mut broken_since, mut breaks) = (None, 0);
    loop {
        let before = stream.state().last;
        let region = stream.region.load(Ordering::Relaxed);
        let (requests, outbound) = mpsc::channel(1);
        let sender = tokio::spawn(send(stream.clone(), requests));
        let outcome = receive(&stream, &mut clients[region], ReceiverStream::new(outbound)).await;
        sender.abort();
        // An aborted task is an error, and just what is wanted.
        let _ = sender.await;
        let Err(mut end) = outcome else { break };
        if stream.state().last > before {
            (broken_since, breaks) = (None, 0);
        }
        let broken_for = broken_since.get_or_insert_with(Instant::now).elapsed();
        let patient = broken_for < stream.load.patience.get() && !stream.traffic.stop.is_cancelled();
        end.hopeless &= clients.len() == 1;
        stream.resume(&end, patient);
        if !patient || stream.load.attempts == 1 {
            break;
        }
        stream.refill_window();
        breaks += 1;
        if clients.len() > 1 {
            stream.region.store((region + 1) % clients.len(), Ordering::Relaxed);
        }
        // Every region was tried: none is asked in a frenzy.
        if breaks % clients.len() == 0 {
            sleep(end.delay.unwrap_or(REOPEN)).await;
        }
    }
    stream.abandon();
    stream.state().last.unwrap_or_else(Instant::now)
}

/// Why a call ended before its time.
struct End {
    code: String,
    delay: Option<Duration>,
    /// Whether the same again would end the same way.
    hopeless: bool,
}

impl End {
    fn silent() -> Self {
        Self { code: "NO_ANSWER".to_owned(), delay: None, hopeless: true }
    }

    fn of(status: &Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason);
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let hopeless = matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented);
        Self { code: code(status.code(), reason), delay, hopeless }
    }
}

/// `CODE/REASON`.
fn code(code: Code, reason: Option<String>) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    reason.map_or(name.clone(), |reason| format!("{name}/{reason}"))
}

async fn send(stream: Arc<Stream>, requests: mpsc::Sender<PublishRequest>) {
    let (traffic, recorder) = (&stream.traffic, &stream.traffic.recorder);
    loop {
        // The window first: a stream whose peer has gone must not take requests from the others.
        let Ok(permit) = stream.window.acquire().await else { return };
        permit.forget();
        let free_since = Instant::now();
        let Some(batch) = stream.next().await else { return };
        let packets: Vec<_> = batch.items().map(|item| traffic.corpus.packet(item.n)).collect();
        for item in batch.items() {
            traffic.audits.sent(item.n, stream.lane(), stream.region.load(Ordering::Relaxed));
        }
        let now = Instant::now();
        if let Batch::Planned { arrival, since } = &batch {
            let count = packets.len() as u64;
            if arrival.measured {
                add(&recorder.sent, count);
                add(&recorder.repeats, if arrival.repeat { count } else { 0 });
                // Time spent waiting for the window is the service's.
                let slip = now.saturating_duration_since((*since).max(free_since));
                recorder.record(Kind::Slip, arrival.phase, slip, 1);
            } else {
                add(&recorder.warm_up, count);
            }
        }
        let seq = stream.state().in_flight.push(batch, now);
        if requests.send(PublishRequest { seq, packets }).await.is_err() {
            return;
        }
    }
}

/// Takes results until the service ends the stream.
async fn receive(
    stream: &Stream,
    client: &mut IngestClient<Channel>,
    outbound: ReceiverStream<PublishRequest>,
) -> Result<(), End> {
    let patience = stream.load.patience.get();
    let mut request = Request::new(outbound);
    if stream.load.ack == Ack::Mirrored {
        request.metadata_mut().insert("x-ack", MetadataValue::from_static("mirrored"));
    }
    let call = timeout(patience, client.publish(request)).await;
    let mut responses = call.map_err(|_| End::silent())?.map_err(|status| End::of(&status))?.into_inner();
    loop {
        match timeout(patience, responses.message()).await {
            Ok(Ok(Some(response))) => {
                let finished = stream.count(response.results);
                stream.window.add_permits(finished);
                stream.changed.notify_one();
            }
            Ok(Ok(None)) => {
                let done = stream.state().in_flight.is_empty();
                return if done { Ok(()) } else { Err(End::silent()) };
            }
            Ok(Err(status)) => return Err(End::of(&status)),
            Err(_) if stream.state().in_flight.is_empty() => {}
            Err(_) => return Err(End::silent()),
        }
    }
}

impl Stream {
    /// What its packets keep their order in: a stream to one region.
    fn lane(&self) -> u16 {
        (self.number + self.load.streams * self.region.load(Ordering::Relaxed)) as u16
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to send next, when its time has come; `None` when everything is sent and answered.
    async fn next(&self) -> Option<Batch> {
        let stop = &self.traffic.stop;
        loop {
            let wake = {
                let (mut state, now) = (self.state(), Instant::now());
                let again = state.retries.due(now, self.load.per_request as usize);
                if !again.is_empty() {
                    add(&self.traffic.recorder.retried, again.len() as u64);
                    return Some(Batch::Again(again));
                }
                if stop.is_cancelled() {
                    state.planned = None;
                    self.traffic.recorder.error("STOPPED", state.retries.take().len() as u64);
                } else if state.planned.is_none() {
                    state.planned = self.schedule.take(&self.traffic.plan);
                }
                match state.planned.take() {
                    Some(arrival) => {
                        let since = arrival.due.map_or(now, |due| self.schedule.epoch + due);
                        if since <= now {
                            return Some(Batch::Planned { arrival, since });
                        }
                        state.planned = Some(arrival);
                        Some(state.retries.next().map_or(since, |next| next.min(since)))
                    }
                    None if state.in_flight.is_empty() && state.retries.is_empty() => return None,
                    None => state.retries.next(),
                }
            };
            let planned = self.state().planned.is_some();
            tokio::select! {
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
                () = self.changed.notified() => {}
                () = stop.cancelled(), if planned => {}
            }
        }
    }

    /// Counts the results of one response and returns how many requests they finished.
    fn count(&self, results: Vec<PublishResult>) -> usize {
        let (now, recorder) = (Instant::now(), &self.traffic.recorder);
        let (mut finished, mut alike) = (0, Alike::default());
        let region = self.region.load(Ordering::Relaxed);
        let mut state = self.state();
        state.last = Some(now);
        for result in results {
            let Some((item, sent)) = state.in_flight.answer(result.seq, &mut finished) else {
                recorder.error("UNEXPECTED_RESULT", 1);
                continue;
            };
            match result.outcome {
                Some(Outcome::Committed(committed)) => {
                    self.traffic.audits.acknowledged(item.n, &committed, region);
                    if let Some(broken) = state.broken.take() {
                        recorder.gap(now - broken);
                    }
                    alike.add(recorder, item, sent, now);
                }
                Some(Outcome::Error(status)) => {
                    let reason = status.get_details_error_info().map(|info| info.reason);
                    recorder.error(&code(Code::from_i32(status.code), reason), 1);
                    match status.get_details_retry_info().and_then(|info| info.retry_delay) {
                        Some(delay) if item.attempt < self.load.attempts => state.retries.push(item, delay),
                        _ => add(&recorder.failed, u64::from(item.measured)),
                    }
                }
                None => self.traffic.give_up("NO_OUTCOME", 1, item.measured),
            }
        }
        alike.flush(recorder, now);
        finished
    }

    /// After a call that ended: what it left is sent again, or given up.
    fn resume(&self, end: &End, patient: bool) {
        let mut state = self.state();
        state.broken = state.broken.or(state.last);
        for item in state.in_flight.take_unanswered() {
            self.traffic.recorder.error(&end.code, 1);
            if patient && !end.hopeless && item.attempt < self.load.attempts {
                state.retries.push(item, end.delay.unwrap_or_default());
            } else {
                add(&self.traffic.recorder.failed, u64::from(item.measured));
            }
        }
    }

    /// As many permits as the window has.
    fn refill_window(&self) {
        self.window.add_permits(self.load.window.saturating_sub(self.window.available_permits()));
    }

    /// Gives up what is left.
    fn abandon(&self) {
        let mut state = self.state();
        let left: Vec<Item> = state.retries.take();
        for item in left {
            self.traffic.give_up("GIVEN_UP", 1, item.measured);
        }
        if let Some(arrival) = state.planned.take() {
            self.traffic.give_up("NOT_SENT", arrival.packets.end - arrival.packets.start, arrival.measured);
        }
    }
}

/// Packets that were due and sent together, whose results came together: one entry in the histograms.
#[derive(Default)]
struct Alike(Option<(Item, Instant, u64)>);

impl Alike {
    fn add(&mut self, recorder: &Recorder, item: Item, sent: Instant, now: Instant) {
        match &mut self.0 {
            Some((first, first_sent, count)) if first.since == item.since && *first_sent == sent => *count += 1,
            _ => {
                self.flush(recorder, now);
                self.0 = Some((item, sent, 1));
            }
        }
    }

    fn flush(&mut self, recorder: &Recorder, now: Instant) {
        let Some((item, sent, count)) = self.0.take() else { return };
        add(&recorder.acknowledged_in_all, count);
        if item.measured {
            add(&recorder.acknowledged, count);
            recorder.record(Kind::Ack, item.phase, now.saturating_duration_since(item.since), count);
            recorder.record(Kind::Service, item.phase, now.saturating_duration_since(sent), count);
        }
    }
}
