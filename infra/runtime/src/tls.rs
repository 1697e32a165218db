//! The one rustls provider of the process.

/// Installs *ring* as the rustls provider. Two providers linked into one binary would make rustls panic at the first handshake unless
/// one is chosen; calling this again does nothing.
pub fn install_provider() {
    // An error means that a provider is installed already, which is the state asked for.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    #[test]
    fn installing_twice_is_no_error() {
        super::install_provider();
        super::install_provider();
        assert!(rustls::crypto::CryptoProvider::get_default().is_some());
    }
}
