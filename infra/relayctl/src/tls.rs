//! How a deployment that encrypts is spoken to: PEM files, the same for ingest and the store. Kafka's are properties of librdkafka
//! (`-X security.protocol=sasl_ssl -X ssl.ca.location=…`).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coderelay_runtime::tls::PemFiles;
use openssl::ssl::SslContext;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::exit::Refusal;

/// Whom to trust, and what to show.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct Tls {
    /// PEM file with the authorities of an https ingest and, with --cql-tls, of the store [default: the system's]
    #[arg(long = "tls-ca", global = true, env = "TLS_CA", hide_env_values = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file with the certificate to show to them
    #[arg(long = "tls-cert", global = true, env = "TLS_CERT", hide_env_values = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long = "tls-key", global = true, env = "TLS_KEY", hide_env_values = true, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Speak TLS to the store
    #[arg(long = "cql-tls", global = true, env = "CQL_TLS", hide_env_values = true)]
    store: bool,
}

impl Tls {
    /// For an ingest whose address begins with `https`.
    pub(crate) fn of_ingest(&self) -> anyhow::Result<ClientTlsConfig> {
        coderelay_runtime::tls::install_provider();
        let mut tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--tls-ca", ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((cert, key)) = self.identity()? {
            tls = tls.identity(Identity::from_pem(read("--tls-cert", cert)?, read("--tls-key", key)?));
        }
        Ok(tls)
    }

    /// For the store, if it is to be spoken to so.
    pub(crate) fn of_store(&self) -> anyhow::Result<Option<SslContext>> {
        if !self.store {
            return Ok(None);
        }
        let (cert, key) = self.identity()?.unzip();
        PemFiles { ca: self.ca.as_deref(), cert, key }.context("--tls-", true).map(Some)
    }

    fn identity(&self) -> Result<Option<(&Path, &Path)>, Refusal> {
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (None, None) => Ok(None),
            _ => Err(Refusal::Usage("--tls-cert and --tls-key belong together: give both or neither".to_owned())),
        }
    }
}

fn read(option: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{option}: {}", path.display()))
}
