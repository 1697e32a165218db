//! `summary.json`: everything a run found, for programs, and what every report is made from.
//!
//! The format has a version. Readers refuse a later one; fields are only ever added within one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::Origin;

/// The version of the format that this release writes.
pub const SCHEMA: u32 = 1;

/// One run of one scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// The scenario's name: the folder it is in.
    pub scenario: String,
    /// What the scenario is for, in a sentence.
    pub description: String,
    /// When the measured part began, RFC 3339, UTC.
    pub started: String,
    /// Length of the measured part, in seconds.
    pub seconds: f64,
    /// Machine, cores, date, commit and command.
    pub origin: Origin,
    /// Version of each part: `loadtest`, and of a stack of its own `ingest`, `processor`, `kafka`, `cassandra`.
    pub versions: BTreeMap<String, String>,
    /// The scenario in effect, and what the services were told beyond their defaults.
    pub configuration: serde_json::Value,
    /// How the run ended.
    pub verdict: Verdict,
    /// Why, and whatever else the reader should know; sentences.
    pub notes: Vec<String>,
    /// How many packets of which kind.
    pub packets: Packets,
    /// Packets that were refused or failed, by `CODE/REASON`, retried ones included.
    pub errors: BTreeMap<String, u64>,
    /// Rates, each with what the machine can do without coderelay, where that was measured.
    pub rates: Vec<Rate>,
    /// Distributions by name: see [`latency`].
    pub latencies: BTreeMap<String, Percentiles>,
    /// Whether the generator kept to its plan.
    pub generator: Generator,
    /// The run over time.
    pub timeline: Timeline,
    /// Records per partition of the packets topic.
    pub partitions: Vec<u64>,
    /// CPU and memory of every process.
    pub processes: Vec<Usage>,
    /// What became of every packet; `None` where the scenario does not audit.
    pub audit: Option<Audit>,
    /// The same by region, where there are several; `audit` has their sums.
    pub audits: BTreeMap<String, Audit>,
    /// Further figures of this scenario by name, for thresholds and tables.
    pub figures: BTreeMap<String, f64>,
    /// The scenario's thresholds and how they fared.
    pub thresholds: Vec<Threshold>,
}

/// Names of the distributions. Each has a file `<name>.hlog` beside the summary.
pub mod latency {
    /// From a packet's intended time to its acknowledgement.
    pub const ACK: &str = "ack";
    /// From the moment it was really sent to its acknowledgement.
    pub const SERVICE: &str = "service";
    /// From its intended time to a `read_committed` reader of the deduped topic.
    pub const TOPIC: &str = "topic";
    /// From its intended time until a query finds it in CQL; of a sample.
    pub const CQL: &str = "cql";
    /// From its acknowledgement to a `read_committed` reader of the deduped topic in another region.
    pub const MIRROR: &str = "mirror";
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Measured; every threshold holds.
    #[default]
    Passed,
    /// Measured; a threshold does not hold. Exit code 99.
    Missed,
    /// The generator fell behind its plan: what was measured is no result. Exit code 99.
    Invalid,
    /// Stopped by a signal; holds what was measured until then. Exit code 105.
    Interrupted,
}

/// Counts of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Packets {
    /// Arrivals of the plan, warm-up excluded.
    pub planned: u64,
    /// Sent at least once.
    pub sent: u64,
    /// Acknowledged as committed.
    pub acknowledged: u64,
    /// Refused for good, or never answered.
    pub failed: u64,
    /// Sent again after an answer that asked for it.
    pub retried: u64,
    /// Arrivals that repeat an earlier packet.
    pub repeats: u64,
    /// Sent before the measured part.
    pub warm_up: u64,
    /// Mean bytes of a packet's content, gzip.
    pub content_bytes: u64,
    /// The same, expanded.
    pub expanded_bytes: u64,
}

/// A rate and its limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// What is counted, for example `acknowledged`.
    pub name: String,
    /// Per second.
    pub per_second: f64,
    /// The entry of `loadtest limits` it is held against.
    pub limit: Option<String>,
    /// `per_second` as a share of that limit, measured on the same machine in the same minutes.
    pub ratio: Option<f64>,
}

/// A distribution, in milliseconds. All zero when nothing was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// Events counted.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1000 are below.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// How well the generator kept to its plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Generator {
    /// How late requests were handed to their stream by the generator's own fault, 99th percentile, in milliseconds.
    pub slip_p99_ms: f64,
    /// The worst of them.
    pub slip_max_ms: f64,
    /// CPU of the generator as a share of one core.
    pub cpu: f64,
    /// Whether that is too much for the run to count.
    pub behind: bool,
}

/// Equidistant samples of everything that changes during a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// Seconds between two samples; sample k covers `[k, k + 1) × interval` since the measured part began.
    pub interval: f64,
    /// The curves, each of the same length.
    pub series: Vec<Series>,
    /// Things that happened: faults, restarts, phases.
    pub events: Vec<Event>,
}

/// One curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// The chart it belongs to: `throughput`, `latency`, `backlog`, `errors`, or of each process `cpu`, `rss`, `files` or `threads`.
    pub chart: String,
    /// What the legend says, for example `acknowledged` or `processor`.
    pub name: String,
    /// Unit of the values: `1/s`, `ms`, `records`, `cores`, `MB`, `descriptors`, `threads`.
    pub unit: String,
    /// The samples; `None` where there was nothing to measure.
    pub values: Vec<Option<f64>>,
}

/// Something that happened during a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Seconds since the measured part began.
    pub at: f64,
    /// What, in a few words.
    pub what: String,
}

/// What one process used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// `ingest`, `processor`, `kafka`, `cassandra`, `loadtest`.
    pub name: String,
    /// User and system time of the measured part, in seconds.
    pub cpu_seconds: f64,
    /// The same for every 100,000 packets.
    pub cpu_seconds_per_100k: f64,
    /// Most resident memory, in bytes.
    pub peak_rss_bytes: u64,
}

/// The exact audit of every packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    /// Packets that were acknowledged and looked for.
    pub acknowledged: u64,
    /// Of those, not in the deduped topic or not in CQL.
    pub lost: u64,
    /// More than once in the deduped topic.
    pub duplicated: u64,
    /// In the topic or in CQL with other bytes than were sent.
    pub altered: u64,
    /// Behind a later packet of the same stream and repository in the deduped topic.
    pub reordered: u64,
    /// In the topic or in CQL and never sent by this run.
    pub unsent: u64,
    /// Not acknowledged and stored all the same: allowed, since an acknowledgement can be lost.
    pub unacknowledged: u64,
    /// Bytes of memory the audit took for each packet.
    pub bytes_per_packet: u64,
    /// The first few of each kind.
    pub findings: Vec<Finding>,
}

/// One packet that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finding {
    /// `lost`, `duplicated`, `altered`, `reordered` or `unsent`.
    pub kind: String,
    /// 32 lower-case hex digits.
    pub packet_id: String,
    /// Where it was last seen: what acknowledged it, which offset holds it, what differs.
    pub detail: String,
}

impl Audit {
    /// Whether nothing is amiss.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.altered == 0 && self.reordered == 0 && self.unsent == 0
    }
}

/// A condition the scenario sets, and whether it holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Threshold {
    /// As written: `p99_ms < 200`.
    pub condition: String,
    /// The figure's value; `None` if the run has no such figure.
    pub actual: Option<f64>,
    /// Whether it holds; a figure that was not measured holds nothing.
    pub met: bool,
}
