//! TLS of both kinds: the one rustls provider of the process, for gRPC, and OpenSSL's context for the CQL driver.

use std::path::Path;

use anyhow::Context as _;
use openssl::ssl::{SslContext, SslFiletype, SslMethod, SslVerifyMode};

/// The PEM files of a client that speaks through OpenSSL.
#[derive(Clone, Copy, Debug, Default)]
pub struct PemFiles<'a> {
    /// The authorities to trust; the system's where there is none.
    pub ca: Option<&'a Path>,
    /// The certificate to show.
    pub cert: Option<&'a Path>,
    /// Its private key.
    pub key: Option<&'a Path>,
}

impl PemFiles<'_> {
    /// A client's context, which takes any certificate unless it is to `verify`.
    ///
    /// # Errors
    /// Names a file that is of no use behind its option, which is `prefix` with `ca`, `cert` or `key`: `cql.tls.ca: /etc/ca.pem`.
    pub fn context(&self, prefix: &str, verify: bool) -> anyhow::Result<SslContext> {
        let named = |option: &str, file: &Path| format!("{prefix}{option}: {}", file.display());
        let mut context = SslContext::builder(SslMethod::tls_client())?;
        match self.ca {
            Some(ca) => context.set_ca_file(ca).with_context(|| named("ca", ca))?,
            None => context.set_default_verify_paths()?,
        }
        if let Some(cert) = self.cert {
            context.set_certificate_chain_file(cert).with_context(|| named("cert", cert))?;
        }
        if let Some(key) = self.key {
            context.set_private_key_file(key, SslFiletype::PEM).with_context(|| named("key", key))?;
        }
        context.set_verify(if verify { SslVerifyMode::PEER } else { SslVerifyMode::NONE });
        Ok(context.build())
    }
}

/// Installs *ring* as the rustls provider. Two providers linked into one binary would make rustls panic at the first handshake unless
/// one is chosen; calling this again does nothing.
pub fn install_provider() {
    // An error means that a provider is installed already, which is the state asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_is_no_error() {
        super::install_provider();
        super::install_provider();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }

    #[test]
    fn a_file_that_is_of_no_use_is_named_behind_its_option() {
        let absent = Some(Path::new("/absent.pem"));
        for (option, files) in [
            ("ca", PemFiles { ca: absent, ..PemFiles::default() }),
            ("cert", PemFiles { cert: absent, ..PemFiles::default() }),
            ("key", PemFiles { key: absent, ..PemFiles::default() }),
        ] {
            let error = files.context("cql.tls.", true).err().unwrap();
            assert_eq!(error.to_string(), format!("cql.tls.{option}: /absent.pem"));
        }
        for verify in [true, false] {
            let context = PemFiles::default().context("cql.tls.", verify).unwrap();
            assert_eq!(context.verify_mode() == SslVerifyMode::PEER, verify);
        }
    }
}
