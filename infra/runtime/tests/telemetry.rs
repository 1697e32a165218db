//! Telemetry of a whole process: spans sent to a collector over TLS, continuing the sender's trace.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::sync::{Arc, Mutex};

use coderelay_runtime::telemetry::{self, LogFormat, TelemetryConfig, propagation};
use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509NameBuilder};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

const SENDER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

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

/// A certificate for `localhost`, signed by itself, and its key, both PEM.
fn certificate() -> (Vec<u8>, Vec<u8>) {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    let names = SubjectAlternativeName::new().dns("localhost").build(&builder.x509v3_context(None, None)).unwrap();
    builder.append_extension(names).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build().to_pem().unwrap(), key.private_key_to_pem_pkcs8().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_reach_the_collector_within_the_senders_trace() {
    let (certificate, key) = certificate();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &certificate).unwrap();

    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    coderelay_runtime::tls::install_provider();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&certificate, &key));
    let server = Server::builder().tls_config(tls).unwrap().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let config = TelemetryConfig {
        log_format: LogFormat::Json,
        // The collector's own transport logs spans at these levels: they must not be exported.
        log_filter: "off".into(),
        otlp_endpoint: Some(format!("https://localhost:{port}")),
        otlp_ca: Some(ca),
        trace_ratio: 0.0,
    };
    let telemetry = telemetry::init(&config, "waiter", "1.2.3").unwrap();
    {
        let sampled = tracing::info_span!("publish", packets = 3);
        propagation::continue_from(&sampled, Some(SENDER));
        let _entered = sampled.enter();
        let batch = tracing::info_span!("commit");
        propagation::link(&batch, SENDER);
    }
    drop(tracing::info_span!("own trace, not sampled").entered());
    telemetry.shutdown().await;

    let requests = collector.0.lock().unwrap().clone();
    let resource = requests[0].resource_spans[0].resource.clone().unwrap();
    let has_attribute = |key: &str| resource.attributes.iter().any(|attribute| attribute.key == key);
    assert!(has_attribute("service.name") && has_attribute("service.version"), "{resource:?}");
    let mut spans: Vec<_> = requests
        .into_iter()
        .flat_map(|request| request.resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    spans.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["commit", "publish"]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    assert_eq!(hex(&spans[1].trace_id), SENDER[3..35]);
    assert_eq!(hex(&spans[1].parent_span_id), SENDER[36..52]);
    assert_eq!(spans[0].parent_span_id, spans[1].span_id);
    assert_eq!(hex(&spans[0].links[0].span_id), SENDER[36..52]);
}
