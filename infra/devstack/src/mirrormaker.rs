//! `MirrorMaker` 2 between two regions: one process for both directions, with the configuration of production.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use coderelay_mirrormaker::restarts;

use crate::direction::{Cluster, Direction};
use crate::error::{Error, Result};
use crate::jars;
use crate::jvm::{self, Jit};
use crate::process::Process;
use crate::progress::{Event, Observer};
use crate::readiness::Probe;
use crate::regions::of_region;
use crate::supervisor::{Patience, Sight, Supervisor, Verdict};

/// What production runs; what differs between deployments it takes from its environment.
const PROPERTIES: &str = include_str!("../../mirrormaker2/mm2.properties");

/// What production logs.
const LOGGING: &str = include_str!("../../mirrormaker2/log4j2.properties");

/// Between two looks of the supervisor.
const LOOK: Duration = Duration::from_secs(1);

/// How long one that is to be started again may take to leave. In good order it notes how far it has come, and repeats less.
const GRACE: Duration = Duration::from_secs(5);

/// A running `MirrorMaker`. It ends when it is dropped, and with this process.
#[derive(Debug)]
pub struct MirrorMaker {
    process: Process,
    directions: Vec<Direction>,
    restarts: PathBuf,
}

impl MirrorMaker {
    /// Starts one between two regions in its folder below `dir`, with `more` properties, and does not wait until it is ready.
    pub(crate) fn launch(
        jars: &Path,
        jit: Jit,
        dir: &Path,
        [one, other]: [Cluster; 2],
        replicas: usize,
        more: &str,
    ) -> Result<Self> {
        let dir = dir.join("mirrormaker");
        fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let (properties, logging) = (dir.join("mm2.properties"), dir.join("log4j2.properties"));
        // Of a property that is there twice, the last counts.
        fs::write(&properties, [PROPERTIES, more].concat()).map_err(Error::io(&properties))?;
        fs::write(&logging, LOGGING).map_err(Error::io(&logging))?;
        let args = [
            "-Xms256m".to_owned(),
            "-Xmx512m".to_owned(),
            "-XX:+ExitOnOutOfMemoryError".to_owned(),
            format!("-Dlog4j2.configurationFile={}", logging.display()),
            "-cp".to_owned(),
            format!("{}/*", jars.display()),
            "org.apache.kafka.connect.mirror.MirrorMaker".to_owned(),
            properties.display().to_string(),
        ];
        let bootstrap =
            |cluster: &Cluster| (of_region("KAFKA_BOOTSTRAP", &cluster.name), cluster.bootstrap_servers.clone());
        let replicas = ("MIRROR_REPLICATION_FACTOR".to_owned(), replicas.to_string());
        let envs = [bootstrap(&one), bootstrap(&other), replicas];
        let directions =
            vec![Direction { source: one.clone(), target: other.clone() }, Direction { source: other, target: one }];
        let launch = jvm::launch("mirrormaker", &jars::java()?, jit, &dir)?.args(args).envs(envs);
        let restarts = dir.join("restarts.json");
        restarts::write(&restarts, 0).map_err(Error::io(&restarts))?;
        let process = Process::launch(launch.ready_when(Probe::Mirror { directions: directions.clone() }))?;
        Ok(Self { process, directions, restarts })
    }

    /// Its process, to be treated badly.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Both directions.
    pub fn directions(&self) -> &[Direction] {
        &self.directions
    }

    /// The file in which its supervisor keeps how often it has started it again; what `supervise` has in production.
    pub fn restarts_file(&self) -> &Path {
        &self.restarts
    }

    /// What can be seen of it now. Takes some seconds when a region does not answer.
    pub async fn look(&self) -> Sight {
        let (started, running) = (self.process.started(), self.process.is_running());
        let looks = self.directions.iter().map(|direction| async move {
            let asked = direction.clone();
            let told = tokio::task::spawn_blocking(move || asked.observe()).await;
            (direction.clone(), told.unwrap_or_else(|error| Err(error.to_string())))
        });
        Sight { started, running, directions: futures::future::join_all(looks).await }
    }

    /// Counts a restart. That it cannot be counted is no reason not to mirror.
    fn count_restart(&self) {
        let file = &self.restarts;
        let counted = restarts::read(file).and_then(|before| restarts::write(file, before.unwrap_or_default() + 1));
        if let Err(error) = counted {
            tracing::warn!(file = %file.display(), %error, "a restart of MirrorMaker is not counted");
        }
    }

    /// Looks after it for as long as the future lives: starts it again when it has ended, a task has failed, or it stands still, and tells
    /// `observer`. See [`Supervisor`].
    ///
    /// # Errors
    /// If it can be neither ended nor started.
    pub async fn supervise(&self, patience: Patience, observer: &Observer) -> Result<Infallible> {
        let name = self.process.name().to_owned();
        let mut supervisor = Supervisor::new(patience);
        let mut restarted: Option<Instant> = None;
        loop {
            match supervisor.judge(&self.look().await, SystemTime::now()) {
                Verdict::Restart(cause) => {
                    observer.tell(&Event::Restarting { name: name.clone(), reason: cause.to_string() });
                    self.process.stop(GRACE).await?;
                    self.process.start()?;
                    self.count_restart();
                    self.process.tell_starting(observer);
                    restarted = Some(Instant::now());
                }
                Verdict::Moves => {
                    if let Some(since) = restarted.take() {
                        observer.tell(&Event::Ready { name: name.clone(), after: since.elapsed() });
                    }
                }
                Verdict::Wait(reason) => tracing::debug!(name, reason, "waiting"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use coderelay_schemas::topics;

    use super::*;
    use crate::kafka::MESSAGE_MAX_BYTES;
    use crate::regions::REGIONS;

    fn property(name: &str) -> &str {
        let lines = PROPERTIES.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        let mut values = lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
        let value = values.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }

    #[test]
    fn the_topics_of_the_contract_are_mirrored_and_no_others() {
        let mirrored = topics::all().into_iter().filter(|spec| spec.mirrored).map(|spec| spec.name);
        let patterns: Vec<String> = mirrored.map(|name| name.replace('.', r"\\.")).collect();
        assert_eq!(property("topics"), patterns.join(", "));
    }

    #[test]
    fn the_regions_are_mirrored_both_ways_and_take_the_largest_record() {
        assert_eq!(property("clusters"), REGIONS.join(", "));
        for (source, target) in [(REGIONS[0], REGIONS[1]), (REGIONS[1], REGIONS[0])] {
            assert_eq!(property(&format!("{source}->{target}.enabled")), "true");
            assert_eq!(property(&format!("{target}.producer.max.request.size")), MESSAGE_MAX_BYTES.to_string());
            let bootstrap = format!("${{env:{}}}", of_region("KAFKA_BOOTSTRAP", source));
            assert_eq!(property(&format!("{source}.bootstrap.servers")), bootstrap);
        }
    }

    #[test]
    fn a_processors_progress_is_its_own() {
        assert_eq!(property("sync.group.offsets.enabled"), "false");
    }
}
