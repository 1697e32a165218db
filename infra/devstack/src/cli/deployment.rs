//! The whole pipeline: a stack with its topics and keyspace, ingest and the processor.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::Context;
use coderelay_devstack::{CommitLog, Launch, Probe, Process, Stack, preferred_port};
use coderelay_schemas::cql::KEYSPACE;
use coderelay_schemas::topics::{PARTITIONS, TopicNames};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::home::Home;
use super::state::{Endpoints, Phase, Reporter};

/// The ports that documents and examples use; taken if they are free.
const KAFKA_PORT: u16 = 9092;
const CQL_PORT: u16 = 9042;
const INGEST_PORT: u16 = 50051;
const INGEST_ADMIN_PORT: u16 = 9464;
const PROCESSOR_ADMIN_PORT: u16 = 9465;

/// How long a process may take to leave in good order before it is killed.
const GRACE: Duration = Duration::from_secs(40);

/// All processes of the pipeline. They end when it is dropped, and with this process.
#[derive(Debug)]
pub(crate) struct Deployment {
    ingest: Process,
    processor: Process,
    stack: Stack,
    reporter: Reporter,
    pub(crate) endpoints: Endpoints,
}

impl Deployment {
    /// Starts everything in `home`, waits until it is ready and writes the addresses to `home`'s `env`.
    pub(crate) async fn start(home: &Home, brokers: usize, reporter: &Reporter) -> anyhow::Result<Self> {
        let observer = reporter.observer();
        let builder = Stack::builder().brokers(brokers).cql(true).commit_log(CommitLog::Periodic).dir(home.nodes());
        let stack = builder.preferred_ports(KAFKA_PORT, CQL_PORT).observer(observer.clone()).start().await?;
        let (kafka, cql) = (stack.bootstrap_servers(), stack.cql_contact());
        for (broker, address) in std::iter::zip(stack.brokers(), kafka.split(',')) {
            reporter.describe(broker, vec![address.to_owned()]);
        }
        reporter.describe(stack.cql(), vec![cql.clone()]);
        stack.create_topics(&TopicNames::default(), PARTITIONS).await?;
        stack.create_keyspace(KEYSPACE).await?;

        let (grpc, ingest_admin) = (address(INGEST_PORT)?, address(INGEST_ADMIN_PORT)?);
        let processor_admin = address(PROCESSOR_ADMIN_PORT)?;
        let ingest = service(
            home,
            "ingest",
            &ingest_admin,
            &[
                format!("kafka.bootstrap_servers={kafka}"),
                format!("grpc.listen={grpc}"),
                format!("admin.listen={ingest_admin}"),
                "region=local".to_owned(),
            ],
        );
        let processor = service(
            home,
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
        tokio::try_join!(ingest.ready_observed(&observer), processor.ready_observed(&observer))?;
        reporter.describe(&ingest, vec![url(&grpc), url(&ingest_admin)]);
        reporter.describe(&processor, vec![url(&processor_admin)]);

        let endpoints = Endpoints {
            kafka,
            cql,
            ingest: url(&grpc),
            ingest_admin: url(&ingest_admin),
            processor_admin: url(&processor_admin),
        };
        fs::write(home.env(), format!("{}\n", endpoints.lines("")))
            .with_context(|| home.env().display().to_string())?;
        reporter.change(|state| {
            state.notes = unusual_ports(&endpoints);
            state.endpoints = Some(endpoints.clone());
            state.phase = Phase::Ready;
        });
        Ok(Self { ingest, processor, stack, reporter: reporter.clone(), endpoints })
    }

    /// Reports each process that ends. Never ends; drop it before [`stop`](Self::stop).
    pub(crate) async fn watch(&self) {
        let processes = [&self.ingest, &self.processor].into_iter().chain(self.stack.nodes());
        let mut ends: FuturesUnordered<_> = processes
            .map(|process| async move {
                process.wait().await;
                process
            })
            .collect();
        while let Some(process) = ends.next().await {
            self.reporter.died(process);
        }
        std::future::pending::<()>().await;
    }

    /// Ends everything in good order: ingest, which takes nothing new, the processor, Kafka, Cassandra.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.reporter.phase(Phase::Stopping);
        for service in [&self.ingest, &self.processor] {
            service.stop(GRACE).await?;
            self.reporter.stopped(service);
        }
        self.stack.stop(GRACE).await?;
        for node in self.stack.nodes() {
            self.reporter.stopped(node);
        }
        Ok(())
    }
}

fn service(home: &Home, name: &str, admin: &str, settings: &[String]) -> Launch {
    let args = settings.iter().flat_map(|setting| ["--set", setting]);
    let launch = Launch::new(name, home.program(name), home.nodes().join(name)).args(args);
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

fn unusual_ports(endpoints: &Endpoints) -> Vec<String> {
    let usual = [
        ("Kafka", KAFKA_PORT, endpoints.kafka.split(',').next().unwrap_or_default()),
        ("CQL", CQL_PORT, endpoints.cql.as_str()),
        ("ingest", INGEST_PORT, &endpoints.ingest),
        ("ingest's admin", INGEST_ADMIN_PORT, &endpoints.ingest_admin),
        ("the processor's admin", PROCESSOR_ADMIN_PORT, &endpoints.processor_admin),
    ];
    let taken = usual.into_iter().filter(|(_, port, address)| !address.ends_with(&format!(":{port}")));
    taken.map(|(what, port, address)| format!("port {port} is taken: {what} listens on {address}")).collect()
}
