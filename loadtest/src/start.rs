//! How long services take from their start to work: cold, and with a ledger to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use coderelay_devstack::Process;
use coderelay_schemas::pb::PublishBatchRequest;
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::audit::Audit;
use crate::corpus::{Corpus, CorpusSpec};
use crate::latency::Latency;
use crate::outcome;
use crate::pipeline::Pipeline;
use crate::progress::Progress;
use crate::reader::TopicReader;
use crate::run::Run;
use crate::scrape::Page;
use crate::summary::Summary;
use crate::table::Table;

/// How often the services are started.
const ROUNDS: u64 = 5;
/// Between two questions: a hundredth of what is to be told apart.
const QUESTION: Duration = Duration::from_millis(2);
/// What has not changed for so long is final.
const SETTLED: Duration = Duration::from_millis(500);
/// The processor's counter of ledger entries read.
const REPLAYED_METRIC: &str = "coderelay_ledger_replay_entries_total";
/// How long each worker took, in seconds.
const REPLAY_SECONDS_METRIC: &str = "coderelay_ledger_replay_duration_seconds";
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts both services several times, each time from nothing, one after the other, with one packet on its way.
pub(crate) async fn measure(run: &Run<'_>) -> Result<Summary> {
    let (own, endpoints, progress) = (run.pipeline.own()?, run.pipeline.endpoints(), Progress::new(run.name));
    let seed = time::OffsetDateTime::now_utc().unix_timestamp_nanos() as u64;
    let corpus = Arc::new(Corpus::new(CorpusSpec { seed, ..CorpusSpec::default() })?);
    let audit = Arc::new(Audit::new(corpus.clone(), ROUNDS).exclusive());
    let published = Arc::new(AtomicU64::new(0));
    let counted = published.clone();
    let on_record = move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let topic = &endpoints.topics.deduped;
    let reader = block_in_place(|| TopicReader::start(&endpoints.kafka, topic, audit.clone(), on_record))?;

    let began = Instant::now();
    let names = ["ingest_ready", "ack", "processor_ready", "topic"];
    let mut latencies = Vec::new();
    for _ in names {
        latencies.push(Latency::new()?);
    }
    for round in 0..ROUNDS {
        if run.stop.is_cancelled() {
            break;
        }
        progress.step(&format!("start {} of {ROUNDS}", round + 1));
        let started = Instant::now();
        let ingest = own.ingest.start()?;
        let ready = until_ready(&ingest, started).await?;
        let packet = corpus.packet(round);
        audit.sent(round, 0);
        let mut client = IngestClient::connect(endpoints.ingest.clone()).await?;
        let response = client.publish_batch(PublishBatchRequest { packets: vec![packet] }).await?.into_inner();
        match response.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Outcome::Committed(committed)) => audit.acknowledged(round, &committed),
            other => bail!("the first packet was answered {other:?}"),
        }
        let acknowledged = started.elapsed();

        let started = Instant::now();
        let processor = own.processor.start()?;
        let processor_ready = until_ready(&processor, started).await?;
        while published.load(Ordering::Relaxed) <= round {
            ensure!(started.elapsed() < PATIENCE, "the first packet was not published within {PATIENCE:?}");
            sleep(QUESTION).await;
        }
        for (latency, took) in latencies.iter_mut().zip([ready, acknowledged, processor_ready, started.elapsed()]) {
            latency.record(took, 1);
        }
        own.ingest.stop().await?;
        own.processor.stop().await?;
    }
    let mut summary = outcome::blank(run, began)?;
    summary.seconds = began.elapsed().as_secs_f64();
    summary.notes.push("ack and topic are of the first packet, since ingest or the processor was started.".to_owned());
    let latencies = names.into_iter().zip(&latencies);
    summary.latencies = latencies.map(|(name, latency)| (name.to_owned(), latency.percentiles())).collect();
    if !run.stop.is_cancelled() {
        block_in_place(|| reader.finish(PATIENCE))?;
        let table = Box::pin(Table::connect(&endpoints.cql, &endpoints.keyspace)).await?;
        table.audit(&audit, |_| {}).await?;
        let audit = audit.finish();
        (summary.packets.sent, summary.packets.acknowledged) = (ROUNDS, audit.acknowledged);
        summary.audit = Some(audit);
    }
    outcome::judge(run, &mut summary, run.stop.is_cancelled());
    Ok(summary)
}

/// Since `started`; a process that has ended is an error with its last words.
async fn until_ready(process: &Process, started: Instant) -> Result<Duration> {
    loop {
        match process.is_ready().await {
            Ok(()) => return Ok(started.elapsed()),
            Err(_) if process.is_running() && started.elapsed() < PATIENCE => sleep(QUESTION).await,
            Err(reason) => bail!("{} is not ready: {reason}; its log ends:\n{}", process.name(), process.log_tail(10)),
        }
    }
}

/// How a processor took up its ledger.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// Entries read.
    pub ids: f64,
    /// Seconds it took, the mean of the workers, who read at the same time.
    pub seconds: f64,
    /// From the start of the process until it was ready.
    pub ready: Duration,
}

/// Restarts the processor and asks it how it read its ledger.
pub(crate) async fn replay(pipeline: &Pipeline) -> Result<Replay> {
    let processor = &pipeline.own()?.processor;
    processor.stop().await?;
    let started = Instant::now();
    let ready = until_ready(&*processor.start()?, started).await?;
    let url = format!("{}/metrics", pipeline.endpoints().processor_admin);
    // Ready means that it takes part; workers may still be reading. Settled is what has not changed for a while.
    let mut before = None;
    loop {
        let page = Page::fetch(&url).await?;
        let found = page.value(REPLAYED_METRIC).filter(|ids| *ids > 0.0).zip(page.mean(REPLAY_SECONDS_METRIC));
        match found {
            Some((ids, seconds)) if before == found => return Ok(Replay { ids, seconds, ready }),
            _ if started.elapsed() > PATIENCE => bail!("the processor did not say how it read its ledger"),
            _ => before = found,
        }
        sleep(SETTLED).await;
    }
}
