//! A scenario: what is sent, when, to what, which faults come in between, and what must hold afterwards. One TOML file.

mod fault;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coderelay_runtime::config::{self, Assignment, HumanDuration, HumanSize, Mistakes, Sources};
use coderelay_schemas::topics::PARTITIONS;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::threshold::Condition;
pub use fault::{Action, Fault, Target};

/// The scenarios that come with the program, by name.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("steady", include_str!("../scenarios/steady.toml")),
    ("ramp", include_str!("../scenarios/ramp.toml")),
    ("burst", include_str!("../scenarios/burst.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
    ("hot-key", include_str!("../scenarios/hot-key.toml")),
    ("duplicates", include_str!("../scenarios/duplicates.toml")),
    ("large", include_str!("../scenarios/large.toml")),
    ("mixed", include_str!("../scenarios/mixed.toml")),
    ("cold-start", include_str!("../scenarios/cold-start.toml")),
    ("drain", include_str!("../scenarios/drain.toml")),
    ("one-per-request", include_str!("../scenarios/one-per-request.toml")),
    ("batched", include_str!("../scenarios/batched.toml")),
    ("slow-store", include_str!("../scenarios/slow-store.toml")),
    ("broker-restart", include_str!("../scenarios/broker-restart.toml")),
    ("processor-kill", include_str!("../scenarios/processor-kill.toml")),
    ("two-regions", include_str!("../scenarios/two-regions.toml")),
    ("mirrored", include_str!("../scenarios/mirrored.toml")),
    ("mirror-throughput", include_str!("../scenarios/mirror-throughput.toml")),
    ("region-loss", include_str!("../scenarios/region-loss.toml")),
    ("region-losses", include_str!("../scenarios/region-losses.toml")),
    ("partition", include_str!("../scenarios/partition.toml")),
];

/// Everything a scenario can say.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// What it is for, in a sentence.
    #[garde(length(chars, max = 200))]
    pub description: String,
    /// What is measured: `pipeline`, all of it under the load; `ingest`, alone, the processor starting afterwards; `processor`, on
    /// the backlog that the load leaves; `start`, how long the services take to work; `mirror`, between two regions. All but the first need a
    /// stack of their own.
    #[garde(skip)]
    pub subject: Subject,
    /// 1, or 2 that mirror each other: the streams are dealt out over both, one that breaks goes to the other, and both are audited.
    #[garde(range(min = 1, max = 2), custom(of_pipeline(self.subject)))]
    pub regions: usize,
    /// Partitions of every topic; on a stack of its own. Each is a request of its own in every transaction that touches it.
    #[garde(range(min = 1, max = 1000))]
    pub partitions: i32,
    /// How much is sent, and when.
    #[garde(dive)]
    pub load: Load,
    /// What the packets are.
    #[garde(dive)]
    pub corpus: Packets,
    /// Packets that are sent again although they were acknowledged.
    #[garde(dive)]
    pub repeats: Option<Repeats>,
    /// A stretch at another rate.
    #[garde(dive, custom(inside(&self.load)))]
    pub burst: Option<Burst>,
    /// Steps the rate up until the pipeline cannot follow, to find the knee.
    #[garde(dive, custom(above(&self.load)))]
    pub ramp: Option<Ramp>,
    /// What is done to the parts meanwhile. Needs a stack of its own.
    #[garde(dive, custom(possible(self.regions)))]
    pub faults: Vec<Fault>,
    /// When the generator counts as fallen behind.
    #[garde(dive)]
    pub generator: Generator,
    /// How long the pipeline may take afterwards until everything is stored and published.
    #[garde(dive)]
    pub finish: Finish,
    /// What must hold, as `p99_ms < 200`; exit code 99 where it does not.
    #[garde(inner(custom(condition)))]
    pub thresholds: Vec<String>,
    /// Settings of ingest beyond its defaults, by dotted key; on a stack of its own.
    #[garde(skip)]
    pub ingest: BTreeMap<String, String>,
    /// Settings of the processor beyond its defaults, by dotted key; on a stack of its own.
    #[garde(skip)]
    pub processor: BTreeMap<String, String>,
    /// Properties of MirrorMaker in place of those in `infra/mirrormaker2/mm2.properties`; on a stack of its own, in two regions.
    #[garde(skip)]
    pub mirrormaker: BTreeMap<String, String>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            description: String::new(),
            subject: Subject::default(),
            regions: 1,
            partitions: PARTITIONS,
            load: Load::default(),
            corpus: Packets::default(),
            repeats: None,
            burst: None,
            ramp: None,
            faults: Vec::new(),
            generator: Generator::default(),
            finish: Finish::default(),
            thresholds: Vec::new(),
            ingest: BTreeMap::new(),
            processor: BTreeMap::new(),
            mirrormaker: BTreeMap::new(),
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// All of it, under the load.
    #[default]
    Pipeline,
    /// Ingest; the processor starts when the load is over.
    Ingest,
    /// The processor, on the backlog that the load leaves.
    Processor,
    /// The start of both services.
    Start,
    /// The mirror, on the backlog that the load leaves in the first of two regions.
    Mirror,
}

/// How much is sent, and when.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct Load {
    /// Packets a second, whatever the answers (open loop). Unset: as fast as the streams' windows allow (closed loop).
    #[garde(inner(range(min = 0.1, max = 10_000_000.0)))]
    pub rate: Option<f64>,
    /// Length of the measured part of an open loop.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(7 * 86_400)))]
    pub duration: HumanDuration,
    /// Open loop: sent at the same rate before, and not measured.
    #[garde(range(max = HumanDuration::from_secs(3_600)))]
    pub warm_up: HumanDuration,
    /// Packets of a closed loop, repeats included.
    #[garde(range(min = 1, max = 4_000_000_000u64))]
    pub packets: u64,
    /// Closed loop: packets sent before, and not measured.
    #[garde(range(max = 1_000_000_000u64))]
    pub warm_up_packets: u64,
    /// Packets in a request. All packets of a request arrive together.
    #[garde(range(min = 1, max = 10_000))]
    pub per_request: u64,
    /// TCP connections.
    #[garde(range(min = 1, max = 1_000))]
    pub connections: usize,
    /// Streams, dealt out over the connections.
    #[garde(range(min = 1, max = 10_000))]
    pub streams: usize,
    /// Requests a stream may have in flight.
    #[garde(range(min = 1, max = 100_000))]
    pub window: usize,
    /// What an acknowledgement is to promise.
    #[garde(skip)]
    pub ack: Ack,
    /// How often a packet is sent in all, where the answer says that it may be retried.
    #[garde(range(min = 1, max = 1_000))]
    pub attempts: u32,
    /// A stream that hears nothing for this long while packets are in flight is given up.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(3_600)))]
    pub patience: HumanDuration,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            rate: None,
            duration: HumanDuration::from_secs(60),
            warm_up: HumanDuration::from_secs(0),
            packets: 500_000,
            warm_up_packets: 0,
            per_request: 100,
            connections: 2,
            streams: 4,
            window: 8,
            ack: Ack::Local,
            attempts: 100,
            patience: HumanDuration::from_secs(60),
        }
    }
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// Durable in the region it was sent to.
    #[default]
    Local,
    /// Durable in the other region, too (`x-ack: mirrored`).
    Mirrored,
}

/// What the packets are.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct Packets {
    /// Chooses ids and contents. Unset: the clock, so that no two runs send the same packets.
    #[garde(skip)]
    pub seed: Option<u64>,
    /// Size of a packet's gzip content.
    #[garde(range(min = HumanSize::from_bytes(256), max = HumanSize::from_mib(4)))]
    pub size: HumanSize,
    /// Sizes are spread evenly, on a logarithmic scale, from `size` to this. Unset: all have `size`.
    #[garde(inner(range(min = HumanSize::from_bytes(256), max = HumanSize::from_mib(4))))]
    pub largest: Option<HumanSize>,
    /// Folder whose source files are sent instead of generated text, each about as often as its size is found there.
    #[garde(skip)]
    pub files: Option<PathBuf>,
    /// Repositories the packets are spread over.
    #[garde(range(min = 1, max = 1_000_000_000u64))]
    pub repositories: u64,
    /// Packets in a row of one repository. Unset: those of a request.
    #[garde(inner(range(min = 1, max = 1_000_000u64)))]
    pub in_a_row: Option<u64>,
    /// Share of the packets that belongs to one repository alone.
    #[garde(range(min = 0.0, max = 1.0))]
    pub hot: f64,
}

impl Default for Packets {
    fn default() -> Self {
        let size = HumanSize::from_kib(1);
        Self { seed: None, size, largest: None, files: None, repositories: 1000, in_a_row: None, hot: 0.0 }
    }
}

/// Packets that are sent again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct Repeats {
    /// Share of the requests that repeat an earlier one.
    #[garde(range(min = 0.0, max = 0.99))]
    pub share: f64,
    /// How many new packets lie between a packet and its repeat. As many as `load.warm_up_packets`, and the first repeats are of
    /// packets that the processor stored before it was restarted.
    #[garde(range(min = 1, max = 1_000_000_000u64))]
    pub after: u64,
}

impl Default for Repeats {
    fn default() -> Self {
        Self { share: 0.5, after: 10_000 }
    }
}

/// A stretch at another rate.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// Since the measured part began.
    #[garde(skip)]
    pub at: HumanDuration,
    /// How long.
    #[garde(range(min = HumanDuration::from_millis(100)))]
    pub duration: HumanDuration,
    /// Packets a second meanwhile.
    #[garde(range(min = 0.1, max = 10_000_000.0))]
    pub rate: f64,
}

/// Steps from `load.rate` upwards. A step breaks when one of the bounds is passed in it; the knee is the last that did not.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// What each step adds, in packets a second.
    #[garde(range(min = 1.0, max = 10_000_000.0))]
    pub step: f64,
    /// The highest rate.
    #[garde(range(min = 1.0, max = 10_000_000.0))]
    pub to: f64,
    /// Length of a step.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(3_600)))]
    pub hold: HumanDuration,
    /// Bound of the 99th percentile, end to end to the topic.
    #[garde(skip)]
    pub latency: HumanDuration,
    /// Bound of what is acknowledged and not yet published at the end of a step, in terms of the step's rate.
    #[garde(skip)]
    pub backlog: HumanDuration,
}

/// When the generator counts as fallen behind, which makes an open loop's run invalid.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct Generator {
    /// 99th percentile of how late requests are handed to their stream, the stream's own fault not counted.
    #[garde(skip)]
    pub max_slip: HumanDuration,
    /// Its CPU, as a share of one core.
    #[garde(range(min = 0.01, max = 1_000.0))]
    pub max_cpu: f64,
}

impl Default for Generator {
    fn default() -> Self {
        Self { max_slip: HumanDuration::from_millis(50), max_cpu: 0.8 }
    }
}

/// What happens after the load.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default, deny_unknown_fields)]
pub struct Finish {
    /// The pipeline may stand still for this long before what is missing counts as lost.
    #[garde(range(min = HumanDuration::from_secs(1), max = HumanDuration::from_secs(3_600)))]
    pub patience: HumanDuration,
    /// Whether every packet is looked for in topic and table.
    #[garde(skip)]
    pub audit: bool,
    /// `processor`: whether it is restarted at the end, to time how it reads its ledger.
    #[garde(skip)]
    pub replay: bool,
}

impl Default for Finish {
    fn default() -> Self {
        Self { patience: HumanDuration::from_secs(60), audit: true, replay: false }
    }
}

/// Text of the scenario `name`, if it is built in, else of the file of that name; and its short name.
///
/// # Errors
/// When there is no such scenario and no such file.
pub fn text(name: &str) -> Result<(String, String)> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
        return Ok(((*name).to_owned(), (*text).to_owned()));
    }
    let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    let allowed = || format!("scenario = {name:?}: expected a TOML file or one of {}", names.join(", "));
    let text = std::fs::read_to_string(name).with_context(allowed)?;
    let stem = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok((stem, text))
}

/// Reads the scenario in `file`, with `set` over it.
///
/// # Errors
/// Every mistake at once.
pub fn load(file: &Path, set: &[Assignment]) -> Result<Scenario, Mistakes> {
    config::load(&Sources { file: Some(file.to_owned()), flags: set.to_vec(), ..Sources::default() })
}

impl Scenario {
    /// Whether a threshold speaks of a rate's share of what the machine can do.
    pub fn needs_limits(&self) -> bool {
        self.thresholds.iter().any(|threshold| threshold.starts_with("ratio."))
    }

    /// Whether a region is killed.
    pub fn loses_a_region(&self) -> bool {
        self.faults.iter().any(|fault| fault.target == Target::Region)
    }

    /// Whether it can only be run on a stack of its own; why, if so.
    pub fn needs_own_stack(&self) -> Option<&'static str> {
        match self.subject {
            Subject::Pipeline if self.faults.is_empty() => None,
            Subject::Pipeline => Some("faults"),
            Subject::Ingest | Subject::Processor | Subject::Start | Subject::Mirror => Some("subject"),
        }
    }
}

#[allow(clippy::ptr_arg, clippy::trivially_copy_pass_by_ref, reason = "garde calls it with the type of the field")]
fn condition(text: &String, _context: &()) -> garde::Result {
    text.parse::<Condition>().map(|_| ()).map_err(garde::Error::new)
}

fn inside(load: &Load) -> impl Fn(&Option<Burst>, &()) -> garde::Result + '_ {
    move |burst, ()| {
        let Some(burst) = burst else { return Ok(()) };
        let end = burst.at.get() + burst.duration.get();
        match load.rate {
            Some(_) if end <= load.duration.get() => Ok(()),
            Some(_) => Err(garde::Error::new(format!("must end within load.duration ({})", load.duration))),
            None => Err(garde::Error::new("needs load.rate, the rate before and after")),
        }
    }
}

fn above(load: &Load) -> impl Fn(&Option<Ramp>, &()) -> garde::Result + '_ {
    move |ramp, ()| match (ramp, load.rate) {
        (None, _) => Ok(()),
        (Some(ramp), Some(rate)) if ramp.to >= rate => Ok(()),
        (Some(_), Some(rate)) => Err(garde::Error::new(format!("must reach at least load.rate ({rate})"))),
        (Some(_), None) => Err(garde::Error::new("needs load.rate, the first step")),
    }
}

fn of_pipeline(subject: Subject) -> impl Fn(&usize, &()) -> garde::Result {
    move |regions, ()| match (regions, subject) {
        (2.., Subject::Ingest | Subject::Processor | Subject::Start) => {
            Err(garde::Error::new("several regions are measured with subject = \"pipeline\" or \"mirror\" only"))
        }
        (..2, Subject::Mirror) => Err(garde::Error::new("subject = \"mirror\" needs 2")),
        _ => Ok(()),
    }
}

fn possible(regions: usize) -> impl Fn(&Vec<Fault>, &()) -> garde::Result {
    move |faults, ()| faults.iter().try_for_each(|fault| fault.check(regions).map_err(garde::Error::new))
}
