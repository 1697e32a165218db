//! The whole pipeline: a stack with its topics and keyspace, ingest and the processor; or two of them that mirror each other.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use coderelay_devstack::{
    CommitLog, Jit, Launch, MirrorMaker, PORTS_A_REGION, Patience, Probe, Process, Regions, Stack, preferred_port,
};
use coderelay_schemas::cql::KEYSPACE;
use coderelay_schemas::topics::{PARTITIONS, TopicNames};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::Value;

use super::home::Home;
use super::program::ask;
use super::state::{Endpoints, Phase, Reporter, lines};

/// The ports that documents and examples use; taken if they are free.
const KAFKA_PORT: u16 = 9092;
const CQL_PORT: u16 = 9042;
const INGEST_PORT: u16 = 50051;
const INGEST_ADMIN_PORT: u16 = 9464;
const PROCESSOR_ADMIN_PORT: u16 = 9465;

/// How long a process may take to leave in good order before it is killed.
const GRACE: Duration = Duration::from_secs(40);

/// All processes of the pipeline, in one region or two. They end when it is dropped, and with this process.
#[derive(Debug)]
pub(crate) struct Deployment {
    services: Vec<Services>,
    backend: Backend,
    reporter: Reporter,
}

/// What the services stand on.
#[derive(Debug)]
enum Backend {
    Stack(Box<Stack>),
    Regions(Box<Regions>),
}

impl Backend {
    fn stacks(&self) -> &[Stack] {
        match self {
            Self::Stack(stack) => std::slice::from_ref(stack),
            Self::Regions(regions) => regions.stacks(),
        }
    }

    fn mirror(&self) -> Option<&MirrorMaker> {
        match self {
            Self::Stack(_) => None,
            Self::Regions(regions) => Some(regions.mirror()),
        }
    }
}

/// Ingest and the processor of a region, and where it is reached.
#[derive(Debug)]
struct Services {
    ingest: Process,
    processor: Process,
    endpoints: Endpoints,
}

impl Deployment {
    /// Starts everything in `home`, waits until it is ready and writes the addresses to `home`'s `env`.
    pub(crate) async fn start(
        home: &Home,
        brokers: usize,
        regions: usize,
        reporter: &Reporter,
    ) -> anyhow::Result<Self> {
        // A region is there to be lost, and a store of one node has nobody to get back from what its disk has not.
        let commit_log = if regions == 1 { CommitLog::Periodic } else { CommitLog::Synced };
        let builder = Stack::builder().brokers(brokers).cql(true).commit_log(commit_log).dir(home.nodes());
        let builder = builder.jit(Jit::Full).preferred_ports(KAFKA_PORT, CQL_PORT).observer(reporter.observer());
        let backend = if regions == 1 {
            let stack = builder.start().await?;
            stack.create_topics(&TopicNames::default(), PARTITIONS).await?;
            Backend::Stack(Box::new(stack))
        } else {
            Backend::Regions(Box::new(Regions::start(builder).await?))
        };
        if let Some(mirror) = backend.mirror() {
            let directions = mirror.directions().iter().map(ToString::to_string).collect();
            reporter.describe(mirror.process(), directions);
        }
        let stacks = backend.stacks();
        let services = stacks.iter().zip(0..).map(|(stack, index)| {
            let other = stacks.iter().find(|other| other.region() != stack.region());
            Services::start(home, stack, other, index, reporter)
        });
        let mut services = futures::future::try_join_all(services).await?;
        for services in &mut services {
            let restarts = backend.mirror().map(|mirror| mirror.restarts_file().display().to_string());
            services.endpoints.mirror_restarts = restarts;
        }
        let endpoints: Vec<_> = services.iter().map(|services| services.endpoints.clone()).collect();
        fs::write(home.env(), format!("{}\n", lines(&endpoints, "")))
            .with_context(|| home.env().display().to_string())?;
        reporter.change(|state| {
            state.notes = endpoints.iter().zip(0..).flat_map(|(region, index)| unusual_ports(region, index)).collect();
            state.endpoints = endpoints;
            state.phase = Phase::Ready;
        });
        Ok(Self { services, backend, reporter: reporter.clone() })
    }

    /// Where the first region is reached.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.services[0].endpoints
    }

    /// Where each region is reached.
    pub(crate) fn regions(&self) -> Vec<Endpoints> {
        self.services.iter().map(|services| services.endpoints.clone()).collect()
    }

    /// Kills everything of a region at once, as when its power fails.
    pub(crate) async fn kill(&self, region: usize) -> anyhow::Result<()> {
        let (Services { ingest, processor, .. }, stack) = (&self.services[region], &self.backend.stacks()[region]);
        tokio::try_join!(ingest.kill(), processor.kill(), stack.kill())?;
        Ok(())
    }

    /// Starts a region that was killed, with its disks, and waits until it is ready.
    pub(crate) async fn restart(&self, region: usize) -> anyhow::Result<()> {
        let (Services { ingest, processor, .. }, stack) = (&self.services[region], &self.backend.stacks()[region]);
        stack.restart().await?;
        ingest.start()?;
        processor.start()?;
        tokio::try_join!(ingest.ready(), processor.ready())?;
        Ok(())
    }

    /// Starts a region that is dead with empty disks, and gives it back what the other has mirrored of it, before anything is sent to it or
    /// mirrored again. Returns relayctl's report. `step` is told what is being done.
    ///
    /// # Errors
    /// If the region lives, if its disks are there and not to be wiped, or if a step fails: then it is dead again.
    pub(crate) async fn rebuild(
        &self,
        home: &Home,
        region: &str,
        wipe: bool,
        step: impl Fn(&str),
    ) -> anyhow::Result<Value> {
        let (stacks, mirror) = (self.backend.stacks(), self.backend.mirror());
        let index = stacks.iter().position(|stack| stack.region() == Some(region));
        let (Some(index), Some(mirror)) = (index, mirror) else {
            bail!("there is no region {region} here: `infra/dev up --regions 2` starts two");
        };
        let (stack, Services { ingest, processor, .. }) = (&stacks[index], &self.services[index]);
        if let Some(node) = stack.nodes().find(|node| node.is_running()) {
            bail!("{region} is not dead: {} runs, pid {}", node.name(), node.pid());
        }
        ensure!(
            wipe || !stack.has_disks(),
            "what is left of {region}'s disks is in {}; --wipe deletes it",
            stack.dir().display()
        );
        step("stopping MirrorMaker, and what is left of the region");
        tokio::try_join!(ingest.kill(), processor.kill(), mirror.process().stop(GRACE))?;

        let observer = self.reporter.observer();
        let rebuilt = async {
            step("starting its brokers and its store, empty");
            stack.restart_empty(&observer).await?;
            stack.create_topics(&TopicNames::default(), PARTITIONS).await?;
            stack.create_keyspace(KEYSPACE).await?;
            step("copying back what the other region has of it");
            let address =
                |stack: &Stack| format!("{},kafka={}", stack.region().unwrap_or_default(), stack.bootstrap_servers());
            let (from, to) = (address(&stacks[1 - index]), address(stack));
            let (restored, report) =
                ask(home, "relayctl", &self.regions(), &["mirror", "restore", "--from", &from, "--to", &to]).await?;
            ensure!(restored, "`relayctl mirror restore` has failed; what it said is in {}", home.log().display());
            step("starting its ingest and processor, and MirrorMaker");
            for process in [ingest, processor, mirror.process()] {
                process.start()?;
            }
            let [ingest, processor, mirror] =
                [ingest, processor, mirror.process()].map(|process| process.ready_observed(&observer));
            tokio::try_join!(ingest, processor, mirror)?;
            Ok(report)
        };
        let rebuilt = rebuilt.await;
        if rebuilt.is_err() {
            // Half of a region is worse than none: its supervisor would start MirrorMaker with the offsets of the topic that is no more.
            tokio::try_join!(ingest.kill(), processor.kill(), mirror.process().kill(), stack.kill())?;
        }
        rebuilt
    }

    /// Reports each process that ends, and has the mirror started again when it needs it. Never ends; drop it before
    /// [`stop`](Self::stop).
    pub(crate) async fn watch(&self) {
        let services = self.services.iter().flat_map(|services| [&services.ingest, &services.processor]);
        let processes = services.chain(self.backend.stacks().iter().flat_map(Stack::nodes));
        let mut ends: FuturesUnordered<_> = processes
            .map(|process| async move {
                process.wait().await;
                process
            })
            .collect();
        let deaths = async {
            while let Some(process) = ends.next().await {
                self.reporter.died(process);
            }
        };
        tokio::join!(deaths, self.supervise());
        std::future::pending::<()>().await;
    }

    /// Has the mirror started again when it needs it, where there is one. Ends when there is none any more.
    pub(crate) async fn supervise(&self) {
        let Some(mirror) = self.backend.mirror() else { return };
        let Err(error) = mirror.supervise(Patience::default(), &self.reporter.observer()).await;
        self.reporter.change(|state| state.notes.push(format!("{} is left alone: {error}", mirror.process().name())));
        mirror.process().wait().await;
        self.reporter.died(mirror.process());
    }

    /// Ends everything in good order: ingest, which takes nothing new, the processors, the mirror, Kafka, Cassandra.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.reporter.phase(Phase::Stopping);
        self.stop_all(self.services.iter().map(|services| &services.ingest)).await?;
        self.stop_all(self.services.iter().map(|services| &services.processor)).await?;
        self.stop_all(self.backend.mirror().map(MirrorMaker::process)).await?;
        futures::future::try_join_all(self.backend.stacks().iter().map(|stack| stack.stop(GRACE))).await?;
        for node in self.backend.stacks().iter().flat_map(Stack::nodes) {
            self.reporter.stopped(node);
        }
        Ok(())
    }

    async fn stop_all(&self, processes: impl IntoIterator<Item = &Process>) -> anyhow::Result<()> {
        let stops = processes.into_iter().map(async |process| {
            process.stop(GRACE).await?;
            self.reporter.stopped(process);
            anyhow::Ok(())
        });
        futures::future::try_join_all(stops).await.map(|_| ())
    }
}

impl Services {
    /// Starts both on `stack`, of the region with this index, and waits until they are ready. Ingest asks the `other` region whether packets
    /// are mirrored.
    async fn start(
        home: &Home,
        stack: &Stack,
        other: Option<&Stack>,
        index: u16,
        reporter: &Reporter,
    ) -> anyhow::Result<Self> {
        let (kafka, cql) = (stack.bootstrap_servers(), stack.cql_contact());
        for (broker, address) in std::iter::zip(stack.brokers(), kafka.split(',')) {
            reporter.describe(broker, vec![address.to_owned()]);
        }
        reporter.describe(stack.cql(), vec![cql.clone()]);
        stack.create_keyspace(KEYSPACE).await?;

        let address = |port| address(of_index(port, index));
        let (grpc, ingest_admin) = (address(INGEST_PORT)?, address(INGEST_ADMIN_PORT)?);
        let processor_admin = address(PROCESSOR_ADMIN_PORT)?;
        let mut settings = vec![
            format!("kafka.bootstrap_servers={kafka}"),
            format!("grpc.listen={grpc}"),
            format!("admin.listen={ingest_admin}"),
            format!("region={}", stack.region().unwrap_or("local")),
        ];
        settings.extend(other.map(|other| format!("mirror.kafka.bootstrap_servers={}", other.bootstrap_servers())));
        let ingest = service(home, stack, "ingest", &ingest_admin, &settings);
        let processor = service(
            home,
            stack,
            "processor",
            &processor_admin,
            &[
                format!("kafka.bootstrap_servers={kafka}"),
                format!("cql.contact_points={cql}"),
                format!("cql.keyspace={KEYSPACE}"),
                format!("admin.listen={processor_admin}"),
            ],
        );
        let (ingest, processor) = (start(ingest)?, start(processor.behind_the_topic())?);
        let observer = reporter.observer();
        tokio::try_join!(ingest.ready_observed(&observer), processor.ready_observed(&observer))?;
        reporter.describe(&ingest, vec![url(&grpc), url(&ingest_admin)]);
        reporter.describe(&processor, vec![url(&processor_admin)]);

        let endpoints = Endpoints {
            region: stack.region().map(str::to_owned),
            kafka,
            cql,
            ingest: url(&grpc),
            ingest_admin: url(&ingest_admin),
            processor_admin: url(&processor_admin),
            mirror_restarts: None,
        };
        Ok(Self { ingest, processor, endpoints })
    }
}

/// The port that the region with this index takes if it is free.
fn of_index(port: u16, index: u16) -> u16 {
    port + PORTS_A_REGION * index
}

fn service(home: &Home, stack: &Stack, name: &str, admin: &str, settings: &[String]) -> Launch {
    let args = settings.iter().flat_map(|setting| ["--set", setting]);
    let launch = Launch::new(stack.process_name(name), home.program(name), stack.dir().join(name)).args(args);
    launch.ready_when(Probe::Http { url: format!("{}/readyz", url(admin)) })
}

fn start(launch: Launch) -> anyhow::Result<Process> {
    Process::launch(launch).context("cargo build --release builds the services; `infra/dev` does it")
}

fn address(preferred: u16) -> io::Result<String> {
    Ok(format!("127.0.0.1:{}", preferred_port(preferred)?))
}

fn url(address: &str) -> String {
    format!("http://{address}")
}

fn unusual_ports(endpoints: &Endpoints, index: u16) -> Vec<String> {
    let usual = [
        ("Kafka", KAFKA_PORT, endpoints.kafka.split(',').next().unwrap_or_default()),
        ("CQL", CQL_PORT, endpoints.cql.as_str()),
        ("ingest", INGEST_PORT, &endpoints.ingest),
        ("ingest's admin", INGEST_ADMIN_PORT, &endpoints.ingest_admin),
        ("the processor's admin", PROCESSOR_ADMIN_PORT, &endpoints.processor_admin),
    ];
    let usual = usual.map(|(what, port, address)| (what, of_index(port, index), address));
    let taken = usual.into_iter().filter(|(_, port, address)| !address.ends_with(&format!(":{port}")));
    taken.map(|(what, port, address)| format!("port {port} is taken: {what} listens on {address}")).collect()
}
