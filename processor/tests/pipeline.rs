//! Ingest (in this process) and the processor (in one of its own) together: what no test of one of them can see.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "it/support.rs"]
mod support;

use std::sync::{Arc, Mutex};

use coderelay_devstack::{Credentials, Stack, free_port};
use coderelay_runtime::CancellationToken;
use coderelay_runtime::config::{self, Sources};
use coderelay_runtime::telemetry::{self, LogFormat, TelemetryConfig};
use coderelay_schemas::headers;
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{CodePacket, PublishBatchRequest};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use support::{World, eventually, id_of, packet};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Settings as `(key, value)`.
type Settings = Vec<(&'static str, String)>;

/// An ingest within this process.
struct Ingest {
    endpoint: String,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Ingest {
    fn start(world: &World, settings: Settings) -> Self {
        let (port, admin) = (free_port().unwrap(), free_port().unwrap());
        let own = vec![
            ("grpc.listen", format!("127.0.0.1:{port}")),
            ("admin.listen", format!("127.0.0.1:{admin}")),
            ("kafka.bootstrap_servers", world.stack().bootstrap_servers()),
            ("topics.packets", world.topics.packets.clone()),
        ];
        let assignments = own.into_iter().chain(settings).map(|(key, value)| format!("{key}={value}").parse().unwrap());
        let sources = Sources { flags: assignments.collect(), ..Sources::default() };
        let stop = CancellationToken::new();
        let running = tokio::spawn(ingest::run(config::load(&sources).unwrap(), stop.clone()));
        Self { endpoint: format!("http://127.0.0.1:{port}"), stop, running }
    }

    /// Publishes a packet until it is committed: ingest may not have found Kafka yet.
    async fn publish(&self, packet: &CodePacket, traceparent: &str) {
        eventually("ingest commits the packet", async || {
            let Ok(mut client) = IngestClient::connect(self.endpoint.clone()).await else { return false };
            let mut request = Request::new(PublishBatchRequest { packets: vec![packet.clone()] });
            request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
            let results = client.publish_batch(request).await.unwrap().into_inner().results;
            matches!(results[0].outcome, Some(Outcome::Committed(_)))
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn kafka_security(Credentials { ca, username, password }: &Credentials) -> Settings {
    vec![
        ("kafka.security.protocol", "sasl_ssl".to_owned()),
        ("kafka.security.sasl.mechanism", "PLAIN".to_owned()),
        ("kafka.security.sasl.username", username.clone()),
        ("kafka.security.sasl.password", password.clone()),
        ("kafka.security.tls.ca", ca.display().to_string()),
    ]
}

fn cql_security(Credentials { ca, username, password }: &Credentials) -> Settings {
    vec![
        ("cql.username", username.clone()),
        ("cql.password", password.clone()),
        ("cql.tls.enabled", "true".to_owned()),
        ("cql.tls.ca", ca.display().to_string()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_passes_a_cluster_that_wants_tls_and_passwords() {
    coderelay_runtime::tls::install_provider();
    let stack = Stack::builder().cql(true).secured(true).start().await.unwrap();
    let stack = &*Box::leak(Box::new(stack));
    let credentials = stack.credentials().unwrap();
    let world = World::on(stack).await;
    let ingest = Ingest::start(&world, kafka_security(credentials));
    let settings = [kafka_security(credentials), cql_security(credentials)].concat();
    let builder = settings.into_iter().fold(world.processor("a"), |builder, (key, value)| builder.set(key, value));
    let processor = builder.ready().await;

    let packet = packet(1);
    ingest.publish(&packet, "").await;
    world.settled().await;
    ingest.stop().await;
    processor.stop().await;
    world.assert_exactly_once(&[id_of(&packet)]).await;

    // What neither shows a password nor speaks TLS is turned away: the test would see nothing otherwise.
    let plain: rdkafka::consumer::BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", stack.bootstrap_servers()).create().unwrap();
    let timeout = std::time::Duration::from_secs(3);
    assert!(rdkafka::consumer::Consumer::fetch_metadata(&plain, None, timeout).is_err());
    let plain = scylla::client::session_builder::SessionBuilder::new().known_node(stack.cql_contact());
    assert!(plain.build().await.is_err());
}

/// An OTLP collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves it; the address.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        format!("http://{address}")
    }

    /// The spans called `name`.
    fn spans(&self, name: &str) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let scopes = requests.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| &scope.spans).filter(|span| span.name == name).cloned().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processors_span_links_to_the_clients_trace_through_ingest_and_kafka() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SENDER: &str = "b7ad6b7169203331";
    let collector = Collector::default();
    let endpoint = collector.serve().await;
    let config = TelemetryConfig {
        log_format: LogFormat::Json,
        log_filter: "off".into(),
        otlp_endpoint: Some(endpoint.clone()),
        // The client's decision is followed, not this one.
        trace_ratio: 0.0,
        ..TelemetryConfig::default()
    };
    let telemetry = telemetry::init(&config, "ingest", "test").unwrap();
    let world = World::new().await;
    let ingest = Ingest::start(&world, vec![("telemetry.otlp_endpoint", endpoint.clone())]);
    let traced = world.processor("a").set("telemetry.otlp_endpoint", &endpoint).set("telemetry.trace_ratio", 1.0);
    let processor = traced.ready().await;

    ingest.publish(&packet(1), &format!("00-{TRACE}-{SENDER}-01")).await;
    world.settled().await;
    ingest.stop().await;
    processor.stop().await;
    telemetry.shutdown().await;

    let received = &collector.spans("ingest request")[0];
    assert_eq!(hex::encode(&received.trace_id), TRACE);
    assert_eq!(hex::encode(&received.parent_span_id), SENDER, "ingest continues the client's trace");
    let record = &world.committed(&world.topics.deduped)[0];
    let carried = format!("00-{TRACE}-{}-01", hex::encode(&received.span_id));
    assert_eq!(record.header(headers::TRACEPARENT), Some(carried), "the record carries it on");
    let processed = &collector.spans("process")[0];
    let links: Vec<_> = processed.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!(links, [(&received.trace_id, &received.span_id)], "the batch links to it");
    assert_ne!(processed.trace_id, received.trace_id, "a batch of many senders is no one's child");
}
