//! The `ingest` measurement: how fast a service acknowledges, how late, and at what cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::corpus::{Corpus, CorpusSpec};
use crate::generator::{self, Load};
use crate::latency::Percentiles;
use crate::resources::{Meter, Usage, Watched};

/// What one load came to.
#[derive(Clone, Debug, Serialize)]
pub struct IngestReport {
    /// What they were made of; the same again sends duplicates.
    pub corpus: CorpusSpec,
    /// Packets that were to be sent.
    pub packets: u64,
    /// Packets acknowledged as committed.
    pub acknowledged: u64,
    /// Packets that were not, by gRPC code.
    pub errors: BTreeMap<String, u64>,
    /// From the first request to the last result.
    pub seconds: f64,
    /// Acknowledged packets per second.
    pub per_second: f64,
    /// From a packet's request to its acknowledgement, in milliseconds.
    pub latency_ms: Percentiles,
    /// Mean size of a packet's content, in bytes: gzip and expanded.
    pub content_bytes: (usize, usize),
    /// CPU and memory of the watched processes and of this one.
    pub processes: Vec<Usage>,
}

impl IngestReport {
    /// Whether every packet was acknowledged and nothing else was heard.
    pub fn is_complete(&self) -> bool {
        self.acknowledged == self.packets && self.errors.is_empty()
    }
}

/// Sends `warm_up` packets uncounted, then measures `load`, which takes up the corpus behind them.
///
/// # Errors
/// When the service cannot be reached, fails during the warm-up, or a watched process cannot be read.
pub async fn measure(corpus: Arc<Corpus>, load: &Load, warm_up: u64, watched: &[Watched]) -> Result<IngestReport> {
    if warm_up > 0 {
        let tally = generator::run(corpus.clone(), &Load { packets: warm_up, rate: None, ..load.clone() }).await?;
        if tally.acknowledged < warm_up {
            bail!("the warm-up had {} of {warm_up} packets acknowledged: {:?}", tally.acknowledged, tally.errors);
        }
    }
    let meter = Meter::start(watched)?;
    let tally = generator::run(corpus.clone(), &Load { first: load.first + warm_up, ..load.clone() }).await?;
    let processes = meter.stop(tally.acknowledged)?;
    let seconds = tally.elapsed.as_secs_f64();
    Ok(IngestReport {
        corpus: corpus.spec().clone(),
        packets: load.packets,
        acknowledged: tally.acknowledged,
        errors: tally.errors,
        seconds,
        per_second: tally.acknowledged as f64 / seconds,
        latency_ms: tally.latency.percentiles(),
        content_bytes: corpus.mean_bytes(),
        processes,
    })
}
