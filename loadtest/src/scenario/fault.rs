//! What a scenario does to the parts while they are under load.

use coderelay_runtime::config::HumanDuration;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something done to a part of the stack.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Since the measured part began.
    #[garde(skip)]
    pub at: HumanDuration,
    /// What is done.
    #[garde(skip)]
    pub action: Action,
    /// To what.
    #[garde(skip)]
    pub target: Target,
    /// Of several regions, which, counted from 0.
    #[serde(default)]
    #[garde(skip)]
    pub region: usize,
    /// How long it is away (`kill`, `pause`) or slow.
    #[serde(default)]
    #[garde(range(max = HumanDuration::from_secs(3_600)))]
    pub duration: HumanDuration,
    /// `slow`: the share of each 100 ms for which it is stopped.
    #[serde(default = "half")]
    #[garde(range(min = 0.01, max = 0.99))]
    pub share: f64,
}

impl Fault {
    /// What is wrong with it where there are so many regions.
    pub(super) fn check(&self, regions: usize) -> Result<(), String> {
        let fits = match self.target {
            Target::Region => self.action == Action::Kill,
            Target::Link => self.action == Action::Cut,
            Target::Ingest | Target::Processor | Target::Broker | Target::Store | Target::Mirror => {
                self.action != Action::Cut
            }
        };
        if !fits {
            return Err("a region can be killed, a link cut; the others take every action but cut".to_owned());
        }
        if regions < 2 && matches!(self.target, Target::Region | Target::Mirror | Target::Link) {
            return Err("region, mirror and link need regions = 2".to_owned());
        }
        if self.region >= regions {
            return Err(format!("region = {}: must be below regions ({regions})", self.region));
        }
        Ok(())
    }
}

fn half() -> f64 {
    0.5
}

/// What is done to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Stopped in good order and started again.
    Restart,
    /// SIGKILL, and started again after `duration`.
    Kill,
    /// SIGSTOP for `duration`: it holds its connections and does nothing.
    Pause,
    /// SIGSTOP for a share of each 100 ms, for `duration`.
    Slow,
    /// `link`: nothing comes through for `duration`; connections stay open.
    Cut,
}

/// A part of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// gRPC to Kafka.
    Ingest,
    /// Kafka to CQL and Kafka.
    Processor,
    /// Kafka.
    Broker,
    /// Cassandra.
    Store,
    /// All of a region at once, and `MirrorMaker` with it. It can be killed.
    Region,
    /// `MirrorMaker`. A supervisor starts it again when it is missed.
    Mirror,
    /// What connects the regions. It can be cut.
    Link,
}
