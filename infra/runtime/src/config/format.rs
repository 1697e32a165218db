//! Forms of text that the schema checks, so that mistakes in them are reported with the rest and their form is documented.

use std::net::SocketAddr;

use openssl::x509::X509;
use tracing_subscriber::EnvFilter;

use super::units::{DURATION_FORMAT, HumanDuration, HumanSize, SIZE_FORMAT};

/// A `format` of JSON Schema. A field takes one with `#[schemars(extend("format" = "socket-address"))]`.
pub(super) struct Format {
    pub(super) name: &'static str,
    /// What is allowed.
    pub(super) words: &'static str,
    pub(super) fits: fn(&str) -> bool,
}

pub(super) const FORMATS: [Format; 7] = [
    Format {
        name: DURATION_FORMAT,
        words: r#"a duration such as "250ms", "15s" or "1h 30m""#,
        fits: |text| text.parse::<HumanDuration>().is_ok(),
    },
    Format {
        name: SIZE_FORMAT,
        words: r#"a size such as "512B", "64KiB" or "4MiB""#,
        fits: |text| text.parse::<HumanSize>().is_ok(),
    },
    Format {
        name: "socket-address",
        words: r#"an IP address and a port, such as "127.0.0.1:9464" or "[::]:9464""#,
        fits: |text| text.parse::<SocketAddr>().is_ok(),
    },
    Format {
        name: "http-url",
        words: r#"a URL such as "http://collector:4317""#,
        fits: |text| {
            let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
            rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':']))
        },
    },
    Format {
        name: "log-filter",
        words: r#"a filter as in RUST_LOG, such as "info,librdkafka=debug""#,
        fits: |text| EnvFilter::builder().parse(text).is_ok(),
    },
    Format {
        name: "pem-certificates",
        words: "a readable PEM file with at least one certificate",
        fits: |path| {
            let certificates = std::fs::read(path).ok().and_then(|pem| X509::stack_from_pem(&pem).ok());
            certificates.is_some_and(|certificates| !certificates.is_empty())
        },
    },
    Format {
        name: "pem-key",
        words: "a readable PEM file with a private key",
        // Not decoded: it may be encrypted.
        fits: |path| std::fs::read_to_string(path).is_ok_and(|pem| pem.contains("PRIVATE KEY-----")),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_tells_right_from_wrong() {
        for (name, right, wrong) in [
            (DURATION_FORMAT, "1h 30m", "90"),
            (SIZE_FORMAT, "4MiB", "4 parsecs"),
            ("socket-address", "[::1]:80", "localhost:80"),
            ("http-url", "https://collector:4317", "collector:4317"),
            ("log-filter", "info,ingest=trace", "a=b=c"),
        ] {
            let format = FORMATS.iter().find(|format| format.name == name).unwrap();
            assert!((format.fits)(right), "{name} {right}");
            assert!(!(format.fits)(wrong), "{name} {wrong}");
        }
    }

    #[test]
    fn a_pem_file_is_there_and_holds_what_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name).to_str().unwrap().to_owned();
            std::fs::write(&path, content).unwrap();
            path
        };
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) =
            (file("cert", &identity.cert.pem()), file("key", &identity.signing_key.serialize_pem()));
        let broken = file("broken", "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n");
        let (empty, absent) = (file("empty", ""), folder.path().join("absent").to_str().unwrap().to_owned());
        for (name, right, wrong) in
            [("pem-certificates", &certificate, [&key, &broken]), ("pem-key", &key, [&certificate, &broken])]
        {
            let format = FORMATS.iter().find(|format| format.name == name).unwrap();
            assert!((format.fits)(right), "{name}");
            for wrong in wrong.into_iter().chain([&empty, &absent]) {
                assert!(!(format.fits)(wrong), "{name} {wrong}");
            }
        }
    }
}
