//! How to reach Kafka.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use garde::Validate;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::config::secret::{REDACTED, names_a_secret};
use crate::config::{HumanDuration, Secret};

/// How to reach Kafka.
#[derive(Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// Brokers to start from, `host:port`, comma separated; the others are learned from them.
    #[garde(length(min = 1))]
    pub bootstrap_servers: String,
    /// Name of this client in the brokers' logs, quotas and metrics. Unset: `coderelay-` and the name of the service.
    #[garde(inner(length(min = 1)))]
    pub client_id: Option<String>,
    /// Encryption and authentication.
    #[garde(dive)]
    pub security: SecurityConfig,
    /// How often librdkafka reports its per-broker figures for `/metrics`. By them a client is found, too, that has lost every broker for
    /// good, and is replaced. 0s turns both off.
    #[garde(range(max = HumanDuration::from_secs(86_400)))]
    pub statistics_interval: HumanDuration,
    /// Any other librdkafka property by its own name, as `"linger.ms" = "5"`. Properties that the service sets itself for its
    /// guarantees, and those that have a key of their own here, are refused.
    /// List: <https://github.com/confluentinc/librdkafka/blob/v2.12.1/CONFIGURATION.md>
    #[serde(serialize_with = "redact")]
    #[garde(custom(are_properties))]
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            bootstrap_servers: "localhost:9092".to_owned(),
            client_id: None,
            security: SecurityConfig::default(),
            statistics_interval: HumanDuration::from_secs(5),
            properties: BTreeMap::new(),
        }
    }
}

/// Encryption and authentication.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityConfig {
    /// How to talk to the brokers.
    #[garde(skip)]
    pub protocol: Protocol,
    /// Credentials for the `sasl_` protocols.
    #[garde(custom(sasl_fits(self.protocol)))]
    pub sasl: SaslConfig,
    /// Certificates for the protocols that end in `ssl`.
    #[garde(custom(tls_fits(self.protocol)))]
    pub tls: TlsConfig,
}

/// `security.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Neither encrypted nor authenticated.
    #[default]
    Plaintext,
    /// TLS; authenticated when a client certificate is given.
    Ssl,
    /// SASL without encryption.
    SaslPlaintext,
    /// SASL inside TLS.
    SaslSsl,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    fn uses_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    fn uses_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

/// Credentials.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SaslConfig {
    /// How the password is proved.
    pub mechanism: SaslMechanism,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
}

/// `sasl.mechanism`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum SaslMechanism {
    /// The password itself (RFC 4616): only inside TLS.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Salted challenge and response (RFC 5802) over SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Salted challenge and response (RFC 5802) over SHA-512.
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Certificates.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file with the certificate authorities the brokers' certificates are checked against. Unset: those of the system.
    #[schemars(extend("format" = "pem-certificates"))]
    pub ca: Option<PathBuf>,
    /// PEM file with this client's certificate.
    #[schemars(extend("format" = "pem-certificates"))]
    pub cert: Option<PathBuf>,
    /// PEM file with this client's private key.
    #[schemars(extend("format" = "pem-key"))]
    pub key: Option<PathBuf>,
    /// Password of the private key.
    pub key_password: Option<Secret>,
    /// Whether a broker's certificate must name the host that was connected to.
    pub verify_hostname: bool,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self { ca: None, cert: None, key: None, key_password: None, verify_hostname: true }
    }
}

/// The properties that [`client_config`] sets, and the keys they are set by.
const OWN_PROPERTIES: [(&str, &str); 14] = [
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("client.id", "kafka.client_id"),
    ("statistics.interval.ms", "kafka.statistics_interval"),
    ("security.protocol", "kafka.security.protocol"),
    ("sasl.mechanism", "kafka.security.sasl.mechanism"),
    ("sasl.mechanisms", "kafka.security.sasl.mechanism"),
    ("sasl.username", "kafka.security.sasl.username"),
    ("sasl.password", "kafka.security.sasl.password"),
    ("ssl.ca.location", "kafka.security.tls.ca"),
    ("ssl.certificate.location", "kafka.security.tls.cert"),
    ("ssl.key.location", "kafka.security.tls.key"),
    ("ssl.key.password", "kafka.security.tls.key_password"),
    ("ssl.endpoint.identification.algorithm", "kafka.security.tls.verify_hostname"),
];

/// Settings for any librdkafka client: how to reach the brokers, plus the user's properties. What a service sets for its guarantees
/// goes on top of it.
pub fn client_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set_log_level(RDKafkaLogLevel::Info);
    let mut set = |property: &str, value: &str| {
        client.set(property, value);
    };
    set("bootstrap.servers", &config.bootstrap_servers);
    set("statistics.interval.ms", &config.statistics_interval.as_millis().to_string());
    if let Some(id) = &config.client_id {
        set("client.id", id);
    }
    let SecurityConfig { protocol, sasl, tls } = &config.security;
    set("security.protocol", protocol.as_str());
    if protocol.uses_sasl() {
        set("sasl.mechanism", sasl.mechanism.as_str());
        if let Some(username) = &sasl.username {
            set("sasl.username", username);
        }
        if let Some(password) = &sasl.password {
            set("sasl.password", password.expose());
        }
    }
    if protocol.uses_tls() {
        let files =
            [("ssl.ca.location", &tls.ca), ("ssl.certificate.location", &tls.cert), ("ssl.key.location", &tls.key)];
        for (property, path) in files.into_iter().filter_map(|(property, path)| Some((property, path.as_ref()?))) {
            set(property, &path.to_string_lossy());
        }
        if let Some(password) = &tls.key_password {
            set("ssl.key.password", password.expose());
        }
        set("ssl.endpoint.identification.algorithm", if tls.verify_hostname { "https" } else { "none" });
    }
    config.properties.iter().for_each(|(property, value)| set(property, value));
    client
}

/// For `#[garde(dive, custom(kafka::reserved(&["acks", "enable.idempotence"])))]` on a service's Kafka section: refuses the properties
/// that the service needs as they are.
pub fn reserved(properties: &'static [&'static str]) -> impl FnOnce(&KafkaConfig, &()) -> garde::Result {
    move |config, ()| {
        let refused = properties.iter().filter(|name| config.properties.contains_key(**name));
        all_fine(refused.map(|name| format!("properties.{name}: must not be set, the service's guarantees rest on it")))
    }
}

/// One error of all messages, one a line, each beginning with the key it is about.
fn all_fine(messages: impl Iterator<Item = String>) -> garde::Result {
    let messages: Vec<_> = messages.collect();
    if messages.is_empty() { Ok(()) } else { Err(garde::Error::new(messages.join("\n"))) }
}

/// Every property must be one that librdkafka knows, with a value it takes: it is asked about each by itself.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "garde's signature")]
fn are_properties(properties: &BTreeMap<String, String>, (): &()) -> garde::Result {
    all_fine(properties.iter().filter_map(|(name, value)| Some(format!("{name}: {}", property_mistake(name, value)?))))
}

fn property_mistake(name: &str, value: &str) -> Option<String> {
    if let Some((_, key)) = OWN_PROPERTIES.iter().find(|(property, _)| *property == name) {
        return Some(format!("has a key of its own, {key}"));
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Err(KafkaError::ClientConfig(..)) if names_a_secret(name) => Some("librdkafka does not accept it".to_owned()),
        Err(KafkaError::ClientConfig(_, reason, ..)) => Some(format!("librdkafka: {reason}")),
        _ => None,
    }
}

fn sasl_fits(protocol: Protocol) -> impl FnOnce(&SaslConfig, &()) -> garde::Result {
    move |sasl, ()| {
        let fields = [("username", sasl.username.is_some()), ("password", sasl.password.is_some())];
        let name = protocol.as_str();
        all_fine(fields.into_iter().filter_map(|(field, given)| match (given, protocol.uses_sasl()) {
            (true, false) => Some(format!("{field}: not used with protocol {name}; choose sasl_ssl or sasl_plaintext")),
            (false, true) => Some(format!("{field}: required with protocol {name}")),
            _ => None,
        }))
    }
}

fn tls_fits(protocol: Protocol) -> impl FnOnce(&TlsConfig, &()) -> garde::Result {
    move |tls, ()| {
        let files = [("ca", tls.ca.is_some()), ("cert", tls.cert.is_some()), ("key", tls.key.is_some())];
        let name = protocol.as_str();
        let unused = files.into_iter().filter(|(_, given)| *given && !protocol.uses_tls());
        let unused = unused.map(|(field, _)| format!("{field}: not used with protocol {name}; choose ssl or sasl_ssl"));
        let alone = match (&tls.cert, &tls.key) {
            (Some(_), None) => Some("key: required with cert".to_owned()),
            (None, Some(_)) => Some("cert: required with key".to_owned()),
            _ => None,
        };
        all_fine(unused.chain(alone))
    }
}

fn shown(properties: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    properties.iter().map(|(name, value)| (name.as_str(), if names_a_secret(name) { REDACTED } else { value.as_str() }))
}

fn redact<S: Serializer>(properties: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(shown(properties))
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("client_id", &self.client_id)
            .field("security", &self.security)
            .field("statistics_interval", &self.statistics_interval)
            .field("properties", &shown(&self.properties).collect::<BTreeMap<_, _>>())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::*;

    #[test]
    fn the_properties_of_a_secured_client() {
        let sasl =
            SaslConfig { username: Some("me".into()), password: Some("hunter2".into()), ..SaslConfig::default() };
        let tls = TlsConfig { key_password: Some("k".into()), verify_hostname: false, ..TlsConfig::default() };
        let config = KafkaConfig {
            client_id: Some("ingest-0".into()),
            security: SecurityConfig { protocol: Protocol::SaslSsl, sasl, tls },
            properties: BTreeMap::from([("socket.keepalive.enable".into(), "true".into())]),
            ..KafkaConfig::default()
        };
        let client = client_config(&config);
        for (property, value) in [
            ("bootstrap.servers", "localhost:9092"),
            ("client.id", "ingest-0"),
            ("statistics.interval.ms", "5000"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "me"),
            ("sasl.password", "hunter2"),
            ("ssl.key.password", "k"),
            ("ssl.endpoint.identification.algorithm", "none"),
            ("socket.keepalive.enable", "true"),
        ] {
            assert_eq!(client.get(property), Some(value), "{property}");
        }
        client.create::<BaseConsumer>().expect("librdkafka is built with SASL SCRAM and TLS");
    }

    #[test]
    fn every_mechanism_and_protocol_is_one_librdkafka_knows() {
        for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
            let sasl = SaslConfig { mechanism, username: Some("me".into()), password: Some("p".into()) };
            let security = SecurityConfig { protocol: Protocol::SaslPlaintext, sasl, tls: TlsConfig::default() };
            let config = KafkaConfig { security, ..KafkaConfig::default() };
            client_config(&config).create::<BaseConsumer>().unwrap();
            config.validate().unwrap();
        }
        for protocol in [Protocol::Plaintext, Protocol::Ssl] {
            let security = SecurityConfig { protocol, ..SecurityConfig::default() };
            client_config(&KafkaConfig { security, ..KafkaConfig::default() }).create::<BaseConsumer>().unwrap();
        }
    }

    #[test]
    fn certificates_need_a_protocol_that_uses_them_and_come_in_pairs() {
        let tls = TlsConfig { cert: Some("c.pem".into()), ..TlsConfig::default() };
        let security = SecurityConfig { tls, ..SecurityConfig::default() };
        let report = KafkaConfig { security, ..KafkaConfig::default() }.validate().unwrap_err().to_string();
        assert!(
            report.contains("cert: not used with protocol plaintext") && report.contains("key: required with cert"),
            "{report}"
        );
    }

    #[test]
    fn secrets_among_the_properties_are_not_printed() {
        let properties =
            BTreeMap::from([("ssl.keystore.password".into(), "hunter2".into()), ("linger.ms".into(), "5".into())]);
        let config = KafkaConfig { properties, ..KafkaConfig::default() };
        let printed = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(!printed.contains("hunter2") && printed.contains("linger.ms"), "{printed}");
    }
}
