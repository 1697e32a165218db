//! A deployment that encrypts everything: an ingest that asks for certificates, and a Kafka and a store that ask for TLS and passwords.

#![allow(clippy::unwrap_used)] // a test that cannot be set up fails

use std::path::{Path, PathBuf};
use std::process::Output;

use coderelay_devstack::{Credentials, Stack, free_port};
use coderelay_runtime::CancellationToken;
use coderelay_runtime::config::{self, Sources};
use coderelay_schemas::topics::TopicNames;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::process::Command;

/// An authority of ingest and its clients.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ingest's clients");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir: dir.to_owned() }
    }

    /// Writes a certificate for `name` and its key; the files.
    fn sign(&self, name: &str) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let write = |extension: &str, pem: String| {
            let path = self.dir.join(format!("{name}.{extension}"));
            std::fs::write(&path, pem).unwrap();
            path.display().to_string()
        };
        [write("pem", certificate.pem()), write("key", key.serialize_pem())]
    }
}

/// Starts an ingest in this process; its address.
fn ingest(stack: &Stack, authority: &Authority) -> String {
    let Credentials { ca, username, password } = stack.credentials().unwrap();
    let port = free_port().unwrap();
    let [certificate, key] = authority.sign("localhost");
    let settings = [
        format!("grpc.listen=127.0.0.1:{port}"),
        format!("admin.listen=127.0.0.1:{}", free_port().unwrap()),
        format!("grpc.tls.certificate={certificate}"),
        format!("grpc.tls.key={key}"),
        format!("grpc.tls.client_ca={}", authority.dir.join("ca.pem").display()),
        format!("kafka.bootstrap_servers={}", stack.bootstrap_servers()),
        "kafka.security.protocol=sasl_ssl".to_owned(),
        "kafka.security.sasl.mechanism=PLAIN".to_owned(),
        format!("kafka.security.sasl.username={username}"),
        format!("kafka.security.sasl.password={password}"),
        format!("kafka.security.tls.ca={}", ca.display()),
    ];
    let flags = settings.iter().map(|setting| setting.parse().unwrap()).collect();
    let sources = Sources { flags, ..Sources::default() };
    tokio::spawn(ingest::run(config::load(&sources).unwrap(), CancellationToken::new()));
    format!("https://localhost:{port}")
}

/// Runs the program, whose only way to a password is the environment; its exit code and what it wrote.
async fn relayctl(arguments: &[&str], password: &str) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_relayctl"));
    let Output { status, stdout, stderr } =
        command.args(arguments).env("CQL_PASSWORD", password).kill_on_drop(true).output().await.unwrap();
    (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_encrypts_is_pushed_to_and_asked() {
    coderelay_runtime::tls::install_provider();
    let stack = Stack::builder().cql(true).secured(true).start().await.unwrap();
    stack.create_topics(&TopicNames::default(), 1).await.unwrap();
    stack.create_keyspace("coderelay").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path());
    let endpoint = ingest(&stack, &authority);
    let Credentials { ca, username, password } = stack.credentials().unwrap();
    let run = async |arguments: &[&[&str]]| relayctl(&arguments.concat(), password).await;

    let file = dir.path().join("lib.rs");
    std::fs::write(&file, "fn main() {}").unwrap();
    let (file, ours) = (file.display().to_string(), dir.path().join("ca.pem").display().to_string());
    let [cert, key] = authority.sign("operator");
    let push = ["push", &file, "--repo", "acme/api", "--ingest", &endpoint, "--tls-ca", &ours];
    let (exit, said) = run(&[&push, &["--tls-cert", &cert, "--tls-key", &key]]).await;
    assert_eq!(exit, 0, "{said}");
    let (exit, said) = run(&[&push, &["--patience", "2s"]]).await;
    assert_eq!(exit, 1, "it has shown no certificate: {said}");
    let (exit, said) = run(&[&push, &["--tls-cert", &cert]]).await;
    assert_eq!(exit, 2, "a certificate without its key: {said}");

    let (ca, cql, kafka) = (ca.display().to_string(), stack.cql_contact(), stack.bootstrap_servers());
    let properties = [
        "security.protocol=sasl_ssl".to_owned(),
        "sasl.mechanism=PLAIN".to_owned(),
        format!("sasl.username={username}"),
        format!("sasl.password={password}"),
        format!("ssl.ca.location={ca}"),
    ];
    let properties: Vec<_> = properties.iter().flat_map(|property| ["-X", property]).collect();
    let (exit, said) = run(&[&["tail", "--topic", "packets", "--limit", "1", "--kafka", &kafka], &properties]).await;
    assert!(exit == 0 && said.contains("acme/api"), "{exit}: {said}");

    // No processor has stored it.
    let get = ["get", "acme/api", "--cql", &cql, "--cql-user", username, "--tls-ca", &ca];
    let (exit, said) = run(&[&get, &["--cql-tls"]]).await;
    assert_eq!(exit, 3, "the store has nothing of it, and says so: {said}");
    let (exit, said) = run(&[&get]).await;
    assert_eq!(exit, 1, "it has spoken no TLS: {said}");
}
