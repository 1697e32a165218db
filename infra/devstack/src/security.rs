//! A secured stack: TLS and passwords on the ports that clients use. Controllers and gossip stay as they are.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rdkafka::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a client of a secured stack needs: the same for Kafka (SASL PLAIN within TLS) and for CQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// PEM file of the authority that has signed the servers' certificate.
    pub ca: PathBuf,
    /// User name. To Cassandra an ordinary role, so that its guardrails hold.
    pub username: String,
    /// Password.
    pub password: String,
}

impl Credentials {
    /// Sets what a Kafka client needs.
    pub(crate) fn apply(&self, config: &mut ClientConfig) {
        config
            .set("security.protocol", "sasl_ssl")
            .set("sasl.mechanism", "PLAIN")
            .set("sasl.username", &self.username)
            .set("sasl.password", &self.password)
            .set("ssl.ca.location", self.ca.to_string_lossy());
    }

    /// The superuser that a new Cassandra has.
    pub(crate) fn superuser(&self) -> Self {
        Self { ca: self.ca.clone(), username: "cassandra".into(), password: "cassandra".into() }
    }
}

/// The servers' side of it: a certificate for 127.0.0.1 and its key.
#[derive(Debug, Clone)]
pub(crate) struct Security {
    pub(crate) credentials: Credentials,
    /// PEM: key, then certificate.
    keystore: PathBuf,
}

impl Security {
    /// Makes an authority, lets it sign one certificate for all servers, and writes both below `dir`.
    pub(crate) fn issue(dir: &Path) -> Result<Self> {
        let (ca, keystore) = (dir.join("ca.pem"), dir.join("keystore.pem"));
        let (authority, server) = certificates().map_err(|error| Error::io(dir)(std::io::Error::other(error)))?;
        fs::write(&ca, authority).map_err(Error::io(&ca))?;
        fs::write(&keystore, server).map_err(Error::io(&keystore))?;
        let credentials = Credentials { ca, username: "coderelay".into(), password: "devstack".into() };
        Ok(Self { credentials, keystore })
    }

    /// Lines of `server.properties`. Brokers are clients of each other, as the same user.
    pub(crate) fn kafka_properties(&self) -> String {
        let Credentials { ca, username, password } = &self.credentials;
        let (ca, keystore) = (ca.display(), self.keystore.display());
        format!(
            "\
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username=\"{username}\" password=\"{password}\" user_{username}=\"{password}\";
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
"
        )
    }

    /// Lines of `cassandra.yaml`.
    pub(crate) fn cassandra_yaml(&self) -> String {
        let (ca, keystore) = (self.credentials.ca.display(), self.keystore.display());
        format!(
            r#"authenticator: PasswordAuthenticator
client_encryption_options:
  enabled: true
  optional: false
  ssl_context_factory: {{class_name: org.apache.cassandra.security.PEMBasedSslContextFactory}}
  keystore: "{keystore}"
  truststore: "{ca}"
"#
        )
    }
}

/// An authority's certificate, and key and certificate of a server that it has signed, all PEM.
fn certificates() -> std::result::Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    // Of another name than what it signs: OpenSSL takes a certificate issued by its own name for self-signed.
    params.distinguished_name.push(DnType::CommonName, "coderelay devstack");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    Ok((authority.pem(), key.serialize_pem() + &certificate.pem()))
}
