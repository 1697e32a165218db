//! A region's services on its stack.

use std::path::Path;
use std::time::Duration;

use coderelay_devstack::{Launch, Probe, Process, Stack, free_port};
use coderelay_schemas::cql::KEYSPACE;
use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use rdkafka::consumer::{BaseConsumer, Consumer as _};

/// A region's services on its stack.
pub(crate) struct Region<'a> {
    pub(crate) name: &'a str,
    pub(crate) stack: &'a Stack,
    pub(crate) ingest: Process,
    pub(crate) processor: Process,
    pub(crate) endpoint: String,
}

impl<'a> Region<'a> {
    pub(crate) async fn start(stack: &'a Stack) -> Self {
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
    pub(crate) async fn kill(&self) {
        let killed = tokio::join!(self.ingest.kill(), self.processor.kill(), self.stack.kill());
        killed.0.and(killed.1).and(killed.2).unwrap();
    }

    pub(crate) async fn restart(&self) {
        self.stack.restart().await.unwrap();
        for service in [&self.ingest, &self.processor] {
            service.start().unwrap();
            service.ready().await.unwrap();
        }
    }

    /// What `relayctl mirror verify` takes.
    pub(crate) fn address(&self) -> String {
        format!("{},kafka={},cql={}", self.name, self.stack.bootstrap_servers(), self.stack.cql_contact())
    }

    /// Records that its ingest has written.
    pub(crate) fn taken(&self) -> i64 {
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
