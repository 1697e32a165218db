//! Two whole regions, one of which is killed under load and comes back: nothing acknowledged is lost, nothing is doubled, and both end
//! with the same.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser as _;
use coderelay_devstack::{Launch, Observer, Patience, Probe, Process, Regions, Stack, free_port};
use coderelay_runtime::CancellationToken;
use coderelay_runtime::config::{self, Sources};
use coderelay_schemas::cql::KEYSPACE;
use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use relayctl::{Cli, Exit, Format, Output};
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

/// How long both sides may take until they are equal: a mirror that is started again has to find out first that it must.
const PATIENCE: Duration = Duration::from_secs(180);
/// Sent to both regions.
const SHARED: usize = 300;
/// Sent while one region dies.
const UNDER_FIRE: usize = 5000;

/// Not a test: what runs in the processes of ingest that the test starts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is an ingest, for the test here"]
async fn an_ingest() {
    if std::env::var_os("CODERELAY_GRPC__LISTEN").is_none() {
        return;
    }
    let sources = Sources { environment: std::env::vars().collect(), ..Sources::default() };
    ingest::run(config::load(&sources).unwrap(), CancellationToken::new()).await.unwrap();
}

/// A region's services on its stack.
struct Region<'a> {
    name: &'a str,
    stack: &'a Stack,
    ingest: Process,
    processor: Process,
    endpoint: String,
}

impl<'a> Region<'a> {
    async fn start(stack: &'a Stack) -> Self {
        let name = stack.region().unwrap();
        stack.create_keyspace(KEYSPACE).await.unwrap();
        let [grpc, ingest_admin, processor_admin] = [(); 3].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
        let ingest = [
            ("CODERELAY_GRPC__LISTEN", grpc.clone()),
            ("CODERELAY_ADMIN__LISTEN", ingest_admin.clone()),
            ("CODERELAY_REGION", name.to_owned()),
        ];
        let processor = [
            ("CODERELAY_ADMIN__LISTEN", processor_admin.clone()),
            ("CODERELAY_CQL__CONTACT_POINTS", stack.cql_contact()),
            ("CODERELAY_CQL__CONSISTENCY", "one".to_owned()),
            ("CODERELAY_GROUP__SESSION_TIMEOUT", "6s".to_owned()),
            ("CODERELAY_GROUP__TRANSACTION_TIMEOUT", "5s".to_owned()),
        ];
        let ingest = launch(stack, "ingest", &std::env::current_exe().unwrap(), &ingest, &ingest_admin).args([
            "--ignored",
            "--exact",
            "an_ingest",
            "--nocapture",
        ]);
        let program = Path::new(env!("CARGO_BIN_EXE_processor"));
        let processor = launch(stack, "processor", program, &processor, &processor_admin);
        let (ingest, processor) = (Process::launch(ingest).unwrap(), Process::launch(processor).unwrap());
        ingest.ready().await.unwrap();
        processor.ready().await.unwrap();
        Self { name, stack, ingest, processor, endpoint: format!("http://{grpc}") }
    }

    /// All of it at once, as when the power is gone.
    async fn kill(&self) {
        let killed = tokio::join!(self.ingest.kill(), self.processor.kill(), self.stack.kill());
        killed.0.and(killed.1).and(killed.2).unwrap();
    }

    async fn restart(&self) {
        self.stack.restart().await.unwrap();
        for service in [&self.ingest, &self.processor] {
            service.start().unwrap();
            service.ready().await.unwrap();
        }
    }

    /// What `relayctl mirror verify` takes.
    fn address(&self) -> String {
        format!("{},kafka={},cql={}", self.name, self.stack.bootstrap_servers(), self.stack.cql_contact())
    }

    /// Records that its ingest has written.
    fn taken(&self) -> i64 {
        let consumer: BaseConsumer = self.stack.kafka_client().create().unwrap();
        let end = |partition| consumer.fetch_watermarks(PACKETS, partition, Duration::from_secs(10)).unwrap().1;
        (0..PARTITIONS).map(end).sum()
    }
}

fn launch(stack: &Stack, name: &str, program: &Path, settings: &[(&'static str, String)], admin: &str) -> Launch {
    Launch::new(stack.process_name(name), program, stack.dir())
        .envs(settings.iter().cloned())
        .envs([("CODERELAY_KAFKA__BOOTSTRAP_SERVERS", stack.bootstrap_servers())])
        .ready_when(Probe::Http { url: format!("http://{admin}/readyz") })
}

/// Runs relayctl in this process: its exit code, and the last document it wrote.
async fn relayctl(line: &[&str]) -> (Exit, Value) {
    let written = NamedTempFile::new().unwrap();
    let cli = Cli::try_parse_from(["relayctl", "--output", "json"].iter().chain(line)).unwrap();
    let exit = relayctl::run(cli, &mut Output::to(Format::Json, written.reopen().unwrap())).await;
    let text = std::fs::read(written.path()).unwrap();
    let documents = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
    (exit, documents.map(Result::unwrap).last().unwrap_or_default())
}

fn files(folder: &TempDir, prefix: &str, count: usize) {
    for n in 0..count {
        std::fs::write(folder.path().join(format!("{prefix}-{n}")), format!("{prefix} {n}")).unwrap();
    }
}

/// Waits until both regions have published and stored the same, `packets` of them.
async fn equal(regions: [&Region<'_>; 2], packets: usize) {
    let deadline = Instant::now() + PATIENCE;
    let addresses = regions.map(Region::address);
    let line = ["mirror", "verify", "--region", &addresses[0], "--region", &addresses[1], "--until", "2126-01-01"];
    loop {
        let (exit, report) = relayctl(&line).await;
        let complete = serde_json::json!([packets, packets]);
        if exit == Exit::Success && report["published"] == complete && report["stored"] == complete {
            return;
        }
        assert!(Instant::now() < deadline, "{report:#}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until both directions are well and nothing waits to be mirrored.
async fn caught_up(status: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (exit, directions) = relayctl(status).await;
        if exit == Exit::Success && directions[0]["behind"] == 0 && directions[1]["behind"] == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{directions:#}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_dies_under_load_and_both_end_with_every_packet_once() {
    let regions = Regions::start(Stack::builder().cql(true)).await.unwrap();
    let observer = Observer::default();
    let looked_after = regions.mirror().supervise(Patience::default(), &observer);
    tokio::select! {
        end = looked_after => panic!("no longer looked after: {end:?}"),
        () = scenario(&regions) => {}
    }
}

async fn scenario(regions: &Regions) {
    let (east, west) = tokio::join!(Region::start(regions.us_east()), Region::start(regions.eu_west()));
    let (shared, under_fire) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    files(&shared, "shared", SHARED);
    files(&under_fire, "fire", UNDER_FIRE);

    let path = shared.path().to_str().unwrap();
    for region in [&east, &west] {
        let line = ["push", path, "--repo", "acme/shared", "--endpoint", &region.endpoint];
        assert_eq!(relayctl(&line).await.0, Exit::Success);
    }
    equal([&east, &west], SHARED).await;
    let addresses = [&east, &west].map(Region::address);
    let status = ["mirror", "status", "--region", &addresses[0], "--region", &addresses[1]];
    caught_up(&status).await;

    let before = east.taken();
    let endpoints = format!("{},{}", east.endpoint, west.endpoint);
    let path = under_fire.path().to_str().unwrap();
    let line = ["push", path, "--repo", "acme/fire", "--endpoint", &endpoints, "--patience", "60s"];
    let death = async {
        // More than a push has under way at once, so that some are acknowledged.
        while tokio::task::block_in_place(|| east.taken()) < before + 600 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        east.kill().await;
    };
    let ((exit, summary), ()) = tokio::join!(relayctl(&line), death);
    assert_eq!(exit, Exit::Success, "{summary:#}");
    let acknowledged = |endpoint: usize| summary["summary"]["endpoints"][endpoint]["committed"].as_u64().unwrap();
    assert!(acknowledged(0) > 0 && acknowledged(1) > 0, "both have taken some: {summary:#}");

    assert_eq!(relayctl(&status).await.0, Exit::Failure, "a region is away");

    east.restart().await;
    equal([&east, &west], SHARED + UNDER_FIRE).await;
    caught_up(&status).await;
}
