//! `relayctl mirror watch`: what `mirror status` shows, looked at again and again and served as metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use coderelay_runtime::admin::{self, AdminConfig, Readiness};
use coderelay_runtime::telemetry::metrics::meter;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use tokio::signal::unix::{SignalKind, signal};

use crate::connect::Connection;
use crate::exit::Exit;
use crate::mirror::RegionArgs;
use crate::mirror_status::{Direction, MirrorStatus, is_running};
use crate::output::Output;
use crate::position::millis;
use crate::progress::remark;

#[derive(Debug, clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    regions: RegionArgs,
    /// Address of /metrics, /livez and /readyz; there is no authentication
    #[arg(long, default_value = "127.0.0.1:9466", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Between two looks
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    interval: Duration,
}

/// What was seen of one direction.
#[derive(Clone, Debug)]
struct Seen {
    labels: [KeyValue; 2],
    /// Of the last look; none before the first.
    status: Option<MirrorStatus>,
    /// When the youngest heartbeat that ever arrived was written. Its age grows also while a region does not answer.
    heartbeat: Option<i64>,
    /// As counted when the supervisor's file could last be read.
    restarts: Option<u64>,
}

/// What was seen last, in every direction. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
struct Sights(Arc<Mutex<Vec<Seen>>>);

/// Runs the verb, until SIGINT or SIGTERM.
pub(crate) async fn run(args: WatchArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let directions = args.regions.directions(connection)?;
    let sights = Sights::of(&directions);
    sights.register(&meter());
    let readiness = Readiness::new(["look"]);
    let server = admin::serve(&AdminConfig { listen: args.listen }, readiness.clone()).await?;
    remark(&format!("metrics are at http://{}/metrics", server.local_addr()));
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut said = BTreeMap::new();
    loop {
        for (index, direction) in directions.iter().enumerate() {
            let looked_at = direction.clone();
            let look = tokio::task::spawn_blocking(move || looked_at.status());
            let looked = tokio::select! {
                looked = look => looked.context("looking")?,
                _ = interrupted.recv() => return Ok(Exit::Success),
                _ = terminated.recv() => return Ok(Exit::Success),
            };
            say(index, &looked, &mut said, output)?;
            sights.note(index, looked);
        }
        readiness.set("look", Ok::<(), String>(()));
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
        }
    }
    server.shutdown().await;
    Ok(Exit::Success)
}

/// Says how a direction is when that has changed.
fn say(
    index: usize,
    looked: &MirrorStatus,
    said: &mut BTreeMap<usize, (bool, bool)>,
    output: &mut Output,
) -> anyhow::Result<()> {
    let now = (looked.is_well(), looked.trouble.is_some());
    if said.insert(index, now) != Some(now) {
        output.stream(looked)?;
    }
    Ok(())
}

impl Seen {
    /// Whether both regions answered at the last look.
    fn is_up(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.trouble.is_none())
    }
}

impl Sights {
    fn of(directions: &[Direction]) -> Self {
        let seen = |direction: &Direction| Seen {
            labels: [
                KeyValue::new("source", direction.source.clone()),
                KeyValue::new("target", direction.target.clone()),
            ],
            status: None,
            heartbeat: None,
            restarts: None,
        };
        Self(Arc::new(Mutex::new(directions.iter().map(seen).collect())))
    }

    fn note(&self, index: usize, status: MirrorStatus) {
        if let Some(seen) = self.lock().get_mut(index) {
            seen.heartbeat = seen.heartbeat.max(status.heartbeat);
            seen.restarts = status.restarts.or(seen.restarts);
            seen.status = Some(status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A callback that observes what `value` finds, for every direction of which it finds anything.
    fn observing<T>(
        &self,
        value: impl Fn(&Seen) -> Option<T> + Send + Sync + 'static,
    ) -> impl Fn(&dyn AsyncInstrument<T>) + Send + Sync + 'static {
        let sights = self.clone();
        move |observer| {
            for seen in sights.lock().iter() {
                if let Some(value) = value(seen) {
                    observer.observe(value, &seen.labels);
                }
            }
        }
    }

    fn register(&self, meter: &Meter) {
        meter
            .u64_observable_gauge("coderelay.mirror.up")
            .with_description("Whether the brokers of both regions answered at the last look")
            .with_callback(self.observing(|seen| Some(u64::from(seen.is_up()))))
            .build();
        meter
            .i64_observable_gauge("coderelay.mirror.lag_records")
            .with_description("Packets in the source that are not mirrored; absent while a region does not answer")
            .with_callback(self.observing(|seen| seen.status.as_ref()?.behind))
            .build();
        meter
            .f64_observable_gauge("coderelay.mirror.lag")
            .with_unit("s")
            .with_description(
                "Age of the oldest packet that is not mirrored; 0 where all are, absent while a region does not answer",
            )
            .with_callback(self.observing(|seen| seen.status.as_ref()?.behind_ms.map(seconds)))
            .build();
        meter
            .f64_observable_gauge("coderelay.mirror.canary.age")
            .with_unit("s")
            .with_description("Age of the last heartbeat that has arrived; grows while nothing does")
            .with_callback(self.observing(|seen| Some(seconds(millis(SystemTime::now()) - seen.heartbeat?))))
            .build();
        meter
            .u64_observable_counter("coderelay.mirror.supervisor.restarts")
            .with_description(
                "How often the supervisor of the target's MirrorMaker has started it again; absent where unknown",
            )
            .with_callback(self.observing(|seen| seen.restarts))
            .build();
        let sights = self.clone();
        meter
            .u64_observable_gauge("coderelay.mirror.task_running")
            .with_description("Whether a task runs; absent while its target does not answer")
            .with_callback(move |observer| {
                for seen in sights.lock().iter() {
                    for (task, said) in seen.status.iter().flat_map(|status| &status.tasks) {
                        let [source, target] = seen.labels.clone();
                        let labels = [source, target, KeyValue::new("task", task.clone())];
                        observer.observe(u64::from(is_running(said)), &labels);
                    }
                }
            })
            .build();
    }
}

fn seconds(millis: i64) -> f64 {
    millis.max(0) as f64 / 1_000.0
}
