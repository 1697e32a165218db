//! The gRPC port with TLS, and with clients that must show a certificate.

use coderelay_schemas::pb::PublishBatchRequest;
use coderelay_schemas::pb::ingest_client::IngestClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

use crate::world::{World, committed, packets};

/// An authority and what it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, dir: tempfile::tempdir().unwrap() }
    }

    /// Certificate and key for a name, both PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn write(&self, name: &str, pem: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    }

    /// Settings for a server with a certificate of this authority.
    fn server(&self) -> Vec<String> {
        let (certificate, key) = self.sign("localhost");
        let (certificate, key) = (self.write("server.pem", &certificate), self.write("server.key", &key));
        vec![format!("grpc.tls.certificate={certificate}"), format!("grpc.tls.key={key}")]
    }

    /// The same for one that asks clients for theirs.
    fn strict_server(&self) -> Vec<String> {
        let mut settings = self.server();
        settings.push(format!("grpc.tls.client_ca={}", self.write("ca.pem", &self.issuer.pem())));
        settings
    }

    async fn connect(&self, world: &World, identity: Option<Identity>) -> Result<Channel, Error> {
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.issuer.pem())).domain_name("localhost");
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let address = format!("https://127.0.0.1:{}", world.port);
        Endpoint::from_shared(address)?.tls_config(tls)?.connect().await
    }
}

async fn start(settings: Vec<String>) -> World {
    World::with(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await
}

async fn publish(channel: Channel) -> Result<(), tonic::Status> {
    let batch = PublishBatchRequest { packets: packets("tls", 1) };
    let response = IngestClient::new(channel).publish_batch(batch).await?;
    committed(&response.into_inner().results[0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_clients_see_the_certificate() {
    coderelay_runtime::tls::install_provider();
    let authority = Authority::new();
    let world = start(authority.server()).await;
    publish(authority.connect(&world, None).await.unwrap()).await.unwrap();
    assert!(Authority::new().connect(&world, None).await.is_err(), "not the authority that signed it");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_certificate_are_turned_away() {
    coderelay_runtime::tls::install_provider();
    let authority = Authority::new();
    let world = start(authority.strict_server()).await;
    let (certificate, key) = authority.sign("client");
    let identity = Identity::from_pem(certificate, key);
    publish(authority.connect(&world, Some(identity)).await.unwrap()).await.unwrap();
    // TLS 1.3: the client learns of it with its first bytes.
    if let Ok(channel) = authority.connect(&world, None).await {
        assert!(publish(channel).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_never_finished_gives_its_place_back() {
    coderelay_runtime::tls::install_provider();
    let authority = Authority::new();
    let mut settings = authority.server();
    settings.extend(["grpc.max_connections=1".to_owned(), "grpc.handshake_timeout=1s".to_owned()]);
    let world = start(settings).await;
    let _silent = tokio::net::TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    publish(authority.connect(&world, None).await.unwrap()).await.unwrap();
}
