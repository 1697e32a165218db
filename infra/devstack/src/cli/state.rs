//! What is known of a deployment: written by whoever owns it, read by everyone who shows it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use coderelay_devstack::{Error, Event, Observer, Probe, Process, of_region};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A deployment at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process that owns it.
    pub(crate) pid: u32,
    pub(crate) phase: Phase,
    /// What is going on besides the nodes' starts, for example a download.
    pub(crate) activity: Option<String>,
    /// In the order of their start.
    pub(crate) nodes: Vec<NodeState>,
    /// Where to reach each region; complete when it is ready.
    pub(crate) endpoints: Vec<Endpoints>,
    /// For example that a usual port was taken.
    pub(crate) notes: Vec<String>,
    /// The last region that was to be rebuilt, if any was.
    pub(crate) rebuild: Option<Rebuild>,
}

/// How far the rebuilding of a region is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rebuild {
    /// The process that asked for it.
    pub(crate) client: u32,
    pub(crate) stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// What is being done.
    Step(String),
    /// It lives again; what `relayctl mirror restore` reported.
    Done(serde_json::Value),
    /// It could not be rebuilt, and is dead.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Starting,
    Ready,
    /// It could not be started.
    Failed(String),
    Stopping,
}

/// One process of the deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
    pub(crate) life: Life,
    /// How it is asked whether it is ready; known once it was.
    pub(crate) probe: Option<Probe>,
    /// Where it listens.
    pub(crate) addresses: Vec<String>,
    /// How often its supervisor has started it again, and why last.
    pub(crate) restarts: u32,
    pub(crate) restart_reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Life {
    Starting,
    /// It was ready so long after its start.
    Ready(Duration),
    /// It ended without being told to.
    Died {
        status: String,
        tail: String,
    },
    /// It ended because it was told to.
    Stopped,
}

/// Where other programs reach a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// Its name, where there are several.
    pub(crate) region: Option<String>,
    pub(crate) kafka: String,
    pub(crate) cql: String,
    pub(crate) ingest: String,
    pub(crate) ingest_admin: String,
    pub(crate) processor_admin: String,
    /// Where it is kept how often the `MirrorMaker` that writes to this region was started again, where there is one.
    pub(crate) mirror_restarts: Option<String>,
}

impl Endpoints {
    /// The same by the names under which programs find them in their environment.
    pub(crate) fn variables(&self) -> BTreeMap<&'static str, &str> {
        let services = [
            ("KAFKA_BOOTSTRAP", self.kafka.as_str()),
            ("CQL_CONTACT", &self.cql),
            ("INGEST_ENDPOINT", &self.ingest),
            ("INGEST_ADMIN", &self.ingest_admin),
            ("PROCESSOR_ADMIN", &self.processor_admin),
        ];
        let mirror = self.mirror_restarts.as_deref().map(|file| ("MIRROR_RESTARTS", file));
        services.into_iter().chain(mirror).collect()
    }
}

/// Every region's addresses, each name with the region's behind; those of the first also without, for programs that know of one.
pub(crate) fn variables(regions: &[Endpoints]) -> BTreeMap<String, &str> {
    let first = regions.first().into_iter().flat_map(Endpoints::variables);
    let plain = first.map(|(name, value)| (name.to_owned(), value));
    let named = regions.iter().filter_map(|endpoints| Some((endpoints, endpoints.region.as_deref()?)));
    let named = named.flat_map(|(endpoints, region)| {
        endpoints.variables().into_iter().map(move |(name, value)| (of_region(name, region), value))
    });
    plain.chain(named).collect()
}

/// The same, one `NAME=value` a line, each after `prefix`.
pub(crate) fn lines(regions: &[Endpoints], prefix: &str) -> String {
    let lines = variables(regions).into_iter().map(|(name, value)| format!("{prefix}{name}={value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Publishes a deployment's state while it changes.
#[derive(Debug, Clone)]
pub(crate) struct Reporter(watch::Sender<State>);

impl Reporter {
    pub(crate) fn new() -> Self {
        let (pid, phase) = (std::process::id(), Phase::Starting);
        Self(watch::Sender::new(State {
            pid,
            phase,
            activity: None,
            nodes: Vec::new(),
            endpoints: Vec::new(),
            notes: Vec::new(),
            rebuild: None,
        }))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.0.send_modify(change);
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.change(|state| state.phase = phase);
    }

    /// An observer that keeps the state up to date with the events of a start.
    pub(crate) fn observer(&self) -> Observer {
        let reporter = self.clone();
        Observer::new(move |event| reporter.change(|state| state.apply(event)))
    }

    /// Adds what only a started process can tell.
    pub(crate) fn describe(&self, process: &Process, addresses: Vec<String>) {
        self.node(process, |node| {
            node.probe = Some(process.probe().clone());
            node.addresses = addresses;
        });
    }

    /// Writes down that the process ended without being told to.
    pub(crate) fn died(&self, process: &Process) {
        if let Some(Error::Died { status, tail, .. }) = process.exit_status().map(|status| process.died(status)) {
            self.node(process, |node| node.life = Life::Died { status: status.to_string(), tail });
        }
    }

    pub(crate) fn stopped(&self, process: &Process) {
        self.node(process, |node| {
            if !matches!(node.life, Life::Died { .. }) {
                node.life = Life::Stopped;
            }
        });
    }

    fn node(&self, process: &Process, change: impl FnOnce(&mut NodeState)) {
        self.change(|state| {
            if let Some(node) = state.nodes.iter_mut().find(|node| node.name == process.name()) {
                change(node);
            }
        });
    }
}

impl State {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Fetching { product, detail } => {
                self.activity = Some(format!("fetching the jars of {product}, once: {detail}"));
            }
            Event::Starting { name, pid, log } => {
                self.activity = None;
                match self.nodes.iter_mut().find(|node| node.name == *name) {
                    Some(again) => (again.pid, again.life) = (*pid, Life::Starting),
                    None => self.nodes.push(NodeState {
                        name: name.clone(),
                        pid: *pid,
                        log: log.clone(),
                        life: Life::Starting,
                        probe: None,
                        addresses: Vec::new(),
                        restarts: 0,
                        restart_reason: None,
                    }),
                }
            }
            Event::Restarting { name, reason } => {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.name == *name) {
                    node.restarts += 1;
                    node.restart_reason = Some(reason.clone());
                }
            }
            Event::Ready { name, after } => {
                if let Some(node) = self.nodes.iter_mut().find(|node| node.name == *name) {
                    node.life = Life::Ready(*after);
                }
            }
        }
    }

    /// What remains when the owner has left in good order.
    pub(crate) fn stopped(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| !matches!(node.life, Life::Died { .. })) {
            node.life = Life::Stopped;
        }
    }

    /// The processes that ended without being told to.
    pub(crate) fn dead(&self) -> impl Iterator<Item = &NodeState> {
        self.nodes.iter().filter(|node| matches!(node.life, Life::Died { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_goes_from_starting_to_ready() {
        let reporter = Reporter::new();
        let observer = reporter.observer();
        observer.tell(&Event::Fetching { product: "kafka", detail: "a.jar".into() });
        assert!(reporter.subscribe().borrow().activity.is_some());
        observer.tell(&Event::Starting { name: "kafka-1".into(), pid: 7, log: "kafka-1.log".into() });
        observer.tell(&Event::Ready { name: "kafka-1".into(), after: Duration::from_secs(3) });
        let state = reporter.subscribe().borrow().clone();
        assert_eq!(state.activity, None);
        assert_eq!(state.nodes[0].life, Life::Ready(Duration::from_secs(3)));
    }

    #[test]
    fn a_node_that_is_started_again_stays_one_node_and_says_why() {
        let reporter = Reporter::new();
        let observer = reporter.observer();
        let starting = |pid| Event::Starting { name: "mirrormaker".into(), pid, log: "mirrormaker.log".into() };
        observer.tell(&starting(7));
        observer.tell(&Event::Restarting { name: "mirrormaker".into(), reason: "it has ended".into() });
        observer.tell(&starting(8));
        let nodes = reporter.subscribe().borrow().nodes.clone();
        let [node] = nodes.as_slice() else { panic!("{nodes:?}") };
        assert_eq!((node.pid, node.restarts, node.restart_reason.as_deref()), (8, 1, Some("it has ended")));
    }

    fn endpoints(region: Option<&str>, kafka: &str) -> Endpoints {
        Endpoints {
            region: region.map(str::to_owned),
            kafka: kafka.into(),
            cql: "127.0.0.1:9042".into(),
            ingest: "http://127.0.0.1:50051".into(),
            ingest_admin: "http://127.0.0.1:9464".into(),
            processor_admin: "http://127.0.0.1:9465".into(),
            mirror_restarts: region.map(|_| "restarts.json".into()),
        }
    }

    #[test]
    fn the_environment_has_one_name_a_line() {
        let lines = lines(&[endpoints(None, "127.0.0.1:9092")], "");
        assert_eq!(lines.lines().count(), 5);
        assert!(lines.contains("\nKAFKA_BOOTSTRAP=127.0.0.1:9092\n"));
    }

    #[test]
    fn with_two_regions_each_has_its_names_and_the_first_the_plain_ones_too() {
        let regions = [endpoints(Some("us-east"), "127.0.0.1:9092"), endpoints(Some("eu-west"), "127.0.0.1:9192")];
        let variables = variables(&regions);
        assert_eq!(variables.len(), 18);
        assert_eq!(variables["MIRROR_RESTARTS_EU_WEST"], "restarts.json");
        assert_eq!(variables["KAFKA_BOOTSTRAP"], "127.0.0.1:9092");
        assert_eq!(variables["KAFKA_BOOTSTRAP_US_EAST"], "127.0.0.1:9092");
        assert_eq!(variables["KAFKA_BOOTSTRAP_EU_WEST"], "127.0.0.1:9192");
    }
}
