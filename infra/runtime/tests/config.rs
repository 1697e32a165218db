//! The configuration as an operator meets it: sources, mistakes, what is shown.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use coderelay_runtime::admin::AdminConfig;
use coderelay_runtime::config::{self, Config, HumanDuration, HumanSize, Mistakes, Sources, document, show};
use coderelay_runtime::kafka::{KafkaConfig, Protocol, reserved};
use coderelay_runtime::telemetry::TelemetryConfig;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A relay of packets.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default)]
struct RelayConfig {
    /// Where this process runs.
    #[garde(length(min = 1))]
    region: String,
    /// How much is taken at once.
    #[garde(dive)]
    batch: BatchConfig,
    /// TLS of the port; without this table there is none.
    #[garde(skip)]
    tls: Option<TlsTable>,
    /// Kafka.
    #[garde(dive, custom(reserved(&["acks"])))]
    kafka: KafkaConfig,
    #[garde(dive)]
    admin: AdminConfig,
    #[garde(dive)]
    telemetry: TelemetryConfig,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            region: "local".into(),
            batch: BatchConfig::default(),
            tls: None,
            kafka: KafkaConfig::default(),
            admin: AdminConfig { listen: SocketAddr::from(([127, 0, 0, 1], 9999)) },
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// Bounds of a batch.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default)]
struct BatchConfig {
    /// Most records.
    #[garde(range(min = 1, max = 100))]
    records: u32,
    /// Most bytes.
    #[garde(range(min = HumanSize::from_kib(1)))]
    bytes: HumanSize,
    /// Longest wait for more.
    #[garde(range(max = HumanDuration::from_secs(10)))]
    linger: HumanDuration,
    /// Longest pause; not below `linger`.
    #[garde(custom(not_below(&self.linger)))]
    pause: HumanDuration,
    /// Topics to read.
    #[garde(length(min = 1))]
    topics: Vec<String>,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            records: 10,
            bytes: HumanSize::from_mib(4),
            linger: HumanDuration::from_millis(5),
            pause: HumanDuration::from_secs(1),
            topics: vec!["a".into()],
        }
    }
}

fn not_below(linger: &HumanDuration) -> impl FnOnce(&HumanDuration, &()) -> garde::Result + '_ {
    move |pause, ()| {
        if pause < linger { Err(garde::Error::new(format!("must not be below linger ({linger})"))) } else { Ok(()) }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct TlsTable {
    certificate: PathBuf,
    key: PathBuf,
}

/// Sources written as an operator would.
struct World {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), sources: Sources::default() }
    }

    fn file(mut self, text: &str) -> Self {
        let path = self.folder.path().join("relay.toml");
        fs::write(&path, text).unwrap();
        self.sources.file = Some(path);
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, text: &str) -> Self {
        self.sources.flags.push(text.parse().unwrap());
        self
    }

    /// A file of that kind.
    fn certificate(&self) -> String {
        let path = self.folder.path().join("certificate.pem");
        fs::write(&path, rcgen::generate_simple_self_signed(["relay".to_owned()]).unwrap().cert.pem()).unwrap();
        path.display().to_string()
    }

    fn load(&self) -> Result<RelayConfig, Mistakes> {
        config::load(&self.sources)
    }

    /// The mistakes, one a line, with the folder left out.
    fn mistakes(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        self.load().unwrap_err().0.iter().map(|mistake| mistake.to_string().replace(&folder, "")).collect()
    }
}

#[test]
fn the_defaults_hold_when_nothing_is_said() {
    let config = World::new().load().unwrap();
    assert_eq!((config.region.as_str(), config.batch.records, config.admin.listen.port()), ("local", 10, 9999));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let world = World::new()
        .file("region = 'file'\n[batch]\nrecords = 1\nlinger = '1s'\n")
        .variable("CODERELAY_BATCH__RECORDS", "2")
        .variable("CODERELAY_REGION", "environment")
        .flag("batch.records=3");
    let config = world.load().unwrap();
    assert_eq!(config.batch.records, 3);
    assert_eq!(config.region, "environment");
    assert_eq!(config.batch.linger, HumanDuration::from_secs(1));
    assert_eq!(config.batch.bytes, HumanSize::from_mib(4), "left at its default");
}

#[test]
fn text_from_the_environment_takes_the_type_of_its_key() {
    let world = World::new()
        .variable("CODERELAY_BATCH__TOPICS", "a, b,c")
        .variable("CODERELAY_BATCH__BYTES", "64KiB")
        .variable("CODERELAY_TELEMETRY__TRACE_RATIO", "1")
        .variable("CODERELAY_TELEMETRY__OTLP_ENDPOINT", "")
        .variable("CODERELAY_KAFKA__SECURITY__TLS__VERIFY_HOSTNAME", "false")
        .variable("CODERELAY_KAFKA__PROPERTIES", r#"{"linger.ms": "7"}"#)
        .variable("CODERELAY_TLS", r#"{certificate = "a.pem", key = "b.pem"}"#)
        .flag("kafka.properties.batch.size=1000")
        .flag("admin.listen=0.0.0.0:0");
    let config = world.load().unwrap();
    assert_eq!(config.batch.topics, ["a", "b", "c"]);
    assert_eq!(config.batch.bytes, HumanSize::from_kib(64));
    assert_eq!(config.telemetry.otlp_endpoint, None, "empty means unset");
    assert!(!config.kafka.security.tls.verify_hostname);
    assert_eq!(config.kafka.properties["linger.ms"], "7");
    assert_eq!(config.kafka.properties["batch.size"], "1000");
    assert_eq!(config.tls.unwrap().key, PathBuf::from("b.pem"));
    assert_eq!(config.admin.listen, SocketAddr::from(([0, 0, 0, 0], 0)));
}

#[test]
fn all_mistakes_are_named_at_once_each_with_its_source() {
    let world = World::new()
        .file(
            r#"
regoin = "eu"
colour = { deep = 1 }
[batch]
records = 0
bytes = "4 parsecs"
linger = "1h"
topics = []
[kafka]
bootstrap_servers = 9092
[kafka.properties]
"acks" = "1"
"linger.ms" = "soon"
"lingre.ms" = "5"
"client.id" = "me"
[kafka.security]
protocol = "tls"
"#,
        )
        .variable("CODERELAY_ADMIN__LISTEN", "nowhere")
        .variable("CODERELAY_TELEMETRY__LOG_FORMAT", "xml")
        .variable("CODERELAY_KAFKA__BOOTSTRAP_SERVER", "kafka:9092")
        .variable("CODERELAY_TLS__CERTIFICATE", "a.pem")
        .flag("tls.keys=b.pem")
        .flag("telemetry.trace_ratio=2")
        .flag("telemetry.log_filter=a=b=c")
        .flag("telemetry.otlp_endpoint=collector:4317");
    assert_eq!(
        world.mistakes(),
        [
            r#"admin.listen = "nowhere": must be an IP address and a port, such as "127.0.0.1:9464" or "[::]:9464" (environment variable CODERELAY_ADMIN__LISTEN)"#,
            r#"batch.bytes = "4 parsecs": must be a size such as "512B", "64KiB" or "4MiB", at least 1KiB (relay.toml line 6)"#,
            r#"batch.linger = "1h": must be at most 10s (relay.toml line 7)"#,
            "batch.records = 0: must be a whole number, from 1 to 100 (relay.toml line 5)",
            "batch.topics = []: must be a list of length at least 1, each text (relay.toml line 8)",
            "colour = { … }: unknown key; known here: region, batch, tls, kafka, admin, telemetry (relay.toml line 3)",
            r#"kafka.bootstrap_server = "kafka:9092": unknown key; did you mean kafka.bootstrap_servers? (environment variable CODERELAY_KAFKA__BOOTSTRAP_SERVER)"#,
            "kafka.bootstrap_servers = 9092: must be text of length at least 1 (relay.toml line 10)",
            r#"kafka.properties.acks = "1": must not be set, the service's guarantees rest on it (relay.toml line 12)"#,
            r#"kafka.properties.client.id = "me": has a key of its own, kafka.client_id (relay.toml line 15)"#,
            r#"kafka.properties.linger.ms = "soon": librdkafka: Invalid value for configuration property "queue.buffering.max.ms" (relay.toml line 13)"#,
            r#"kafka.properties.lingre.ms = "5": librdkafka: No such configuration property: "lingre.ms" (relay.toml line 14)"#,
            r#"kafka.security.protocol = "tls": must be one of "plaintext", "ssl", "sasl_plaintext", "sasl_ssl" (relay.toml line 17)"#,
            r#"regoin = "eu": unknown key; did you mean region? (relay.toml line 2)"#,
            "telemetry.log_filter = \"a=b=c\": must be a filter as in RUST_LOG, such as \"info,librdkafka=debug\" (flag --set telemetry.log_filter)",
            r#"telemetry.log_format = "xml": must be one of "auto", "json", "human" (environment variable CODERELAY_TELEMETRY__LOG_FORMAT)"#,
            r#"telemetry.otlp_endpoint = "collector:4317": must be a URL such as "http://collector:4317" (flag --set telemetry.otlp_endpoint)"#,
            "telemetry.trace_ratio = 2.0: must be a number, from 0.0 to 1.0 (flag --set telemetry.trace_ratio)",
            "tls.key: required but not set (environment variable CODERELAY_TLS__CERTIFICATE)",
            r#"tls.keys = "b.pem": unknown key; did you mean tls.key? (flag --set tls.keys)"#,
        ]
    );
}

#[test]
fn rules_across_keys_point_at_the_key_at_fault() {
    let world = World::new();
    let certificate = world.certificate();
    let world = world.file(&format!(
        "[batch]\nlinger = '5s'\n[kafka.security]\nprotocol = 'sasl_ssl'\ntls.cert = '{certificate}'\n[kafka.security.sasl]\nusername = 'me'\n"
    ));
    assert_eq!(
        world.mistakes(),
        [
            r#"batch.pause = "1s": must not be below linger (5s) (default)"#,
            "kafka.security.sasl.password: required with protocol sasl_ssl (relay.toml line 7)",
            "kafka.security.tls.key: required with cert (relay.toml line 5)",
        ]
    );
    let world = World::new().file("regoin = 1\n[kafka.security]\nprotocol = 'sasl_ssl'\n");
    assert_eq!(
        world.mistakes(),
        [
            "kafka.security.sasl.password: required with protocol sasl_ssl (default)",
            "kafka.security.sasl.username: required with protocol sasl_ssl (default)",
            "regoin = 1: unknown key; did you mean region? (relay.toml line 1)",
        ],
        "beside other mistakes"
    );
    let world = World::new().file("[kafka.security]\nprotocol = 'tls'\n").flag("kafka.security.sasl.username=me");
    assert_eq!(world.mistakes().len(), 1, "the username may well fit the protocol that was meant");
    let world = World::new().file("[kafka]\nbootstrap_servers = ''\nsecurity.protocol = 'sasl_ssl'\n");
    assert_eq!(world.mistakes().len(), 3, "beside a mistake further out: {:?}", world.mistakes());
    let world = World::new();
    let certificate = format!("kafka.security.tls.ca={}", world.certificate());
    let world = world.flag("kafka.security.sasl.username=me").flag(&certificate);
    assert_eq!(
        world.mistakes(),
        [
            r#"kafka.security.sasl.username = "me": not used with protocol plaintext; choose sasl_ssl or sasl_plaintext (flag --set kafka.security.sasl.username)"#,
            r#"kafka.security.tls.ca = "certificate.pem": not used with protocol plaintext; choose ssl or sasl_ssl (flag --set kafka.security.tls.ca)"#,
        ]
    );
}

#[test]
fn a_table_that_lost_a_required_value_to_a_mistake_is_not_one_more() {
    let world = World::new().file("[tls]\ncertificate = 5\nkey = 'b.pem'\n");
    assert_eq!(world.mistakes(), ["tls.certificate = 5: must be text (relay.toml line 2)"]);
}

#[test]
fn a_file_that_is_named_must_hold_what_it_is_for() {
    let world = World::new();
    let certificate = world.certificate();
    let world = world
        .flag("kafka.security.protocol=ssl")
        .flag("kafka.security.tls.cert=gone.pem")
        .flag(&format!("kafka.security.tls.key={certificate}"))
        .flag(&format!("telemetry.otlp_ca={certificate}"));
    assert_eq!(
        world.mistakes(),
        [
            r#"kafka.security.tls.cert = "gone.pem": must be a readable PEM file with at least one certificate (flag --set kafka.security.tls.cert)"#,
            r#"kafka.security.tls.key = "certificate.pem": must be a readable PEM file with a private key (flag --set kafka.security.tls.key)"#,
        ]
    );
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_a_mistake_beside_the_others() {
    let mut world = World::new().flag("batch.records=many");
    world.sources.file = Some(world.folder.path().join("missing.toml"));
    assert_eq!(
        world.mistakes(),
        [
            "cannot be read: No such file or directory (os error 2) (missing.toml)",
            r#"batch.records = "many": must be a whole number, from 1 to 100 (flag --set batch.records)"#,
        ]
    );
    let mistakes = World::new().file("region = 'eu'\npassword = \"hunter2\nlimit =\n[batch]\nrecords = 0\n").mistakes();
    assert!(
        mistakes.iter().any(|line| line.contains("not valid TOML") && line.contains("relay.toml line 2")),
        "{mistakes:?}"
    );
    assert!(mistakes.iter().any(|line| line.contains("relay.toml line 3")), "{mistakes:?}");
    assert!(
        mistakes.iter().any(|line| line.contains("batch.records = 0")),
        "what can be read is checked: {mistakes:?}"
    );
    assert!(!mistakes.concat().contains("hunter2"));
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_left_alone() {
    let world = World::new()
        .variable("CODERELAY_RELAY_SERVICE_HOST", "10.0.0.1")
        .variable("CODERELAY_RELAY_PORT_50051_TCP", "tcp://10.0.0.1:50051")
        .variable("CODERELAY_CONFIG", "relay.toml")
        .variable("HOME", "/");
    world.load().unwrap();
}

#[test]
fn a_secret_is_never_shown() {
    let world = World::new()
        .flag("kafka.security.protocol=sasl_ssl")
        .flag("kafka.security.sasl.username=me")
        .variable("CODERELAY_KAFKA__SECURITY__SASL__PASSWORD", "hunter2")
        .flag("kafka.properties.ssl.keystore.password=hunter2");
    let config = world.load().unwrap();
    assert_eq!(config.kafka.security.protocol, Protocol::SaslSsl);
    assert_eq!(config.kafka.security.sasl.password.as_ref().unwrap().expose(), "hunter2");
    let shown = show(&config);
    assert!(shown.contains("password = \"[redacted]\""), "{shown}");
    assert!(shown.contains("\"ssl.keystore.password\" = \"[redacted]\""), "{shown}");
    assert!(!shown.contains("hunter2") && !format!("{config:?}").contains("hunter2"));

    let mistakes = World::new()
        .file("[kafka.security.sasl]\npasword = 'hunter2'\npassword = ['hunter2']\n")
        .variable("CODERELAY_KAFKA__SECURITY__SASL", "me:hunter2")
        .flag("kafka.properties.ssl.key.pem=hunter2")
        .flag("kafka.properties.sasl.pass=hunter2")
        .flag("kafka.security.sasl.passsword=hunter2")
        .flag("kafka.security.tls=hunter2");
    let mistakes = mistakes.mistakes().join("\n");
    assert!(!mistakes.contains("hunter2"), "{mistakes}");

    let key = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----";
    let world = World::new().flag("kafka.security.protocol=ssl").variable("CODERELAY_KAFKA__SECURITY__TLS__KEY", key);
    assert_eq!(
        world.mistakes(),
        [
            "kafka.security.tls.key = [redacted]: must be a readable PEM file with a private key (environment variable CODERELAY_KAFKA__SECURITY__TLS__KEY)"
        ]
    );
}

#[test]
fn what_is_shown_reads_back_as_the_same() {
    let config = World::new()
        .flag("batch.linger=150ms")
        .flag("kafka.properties.linger.ms=7")
        .flag("tls={certificate = 'a.pem', key = 'b.pem'}")
        .load()
        .unwrap();
    let shown = show(&config);
    assert!(shown.contains("linger = \"150ms\"") && shown.contains("[tls]\n"), "{shown}");
    let again = World::new().file(&shown).load().unwrap();
    assert_eq!(shown, show(&again));
}

#[test]
fn the_reference_is_a_valid_file_of_the_defaults() {
    let reference = document::<RelayConfig>();
    for line in [
        "# A relay of packets.",
        "# Most bytes.\n# Allowed: a size such as \"512B\", \"64KiB\" or \"4MiB\", at least 1KiB. Environment: CODERELAY_BATCH__BYTES\nbytes = \"4MiB\"\n",
        "# How much is taken at once.\n[batch]\n",
        "# otlp_endpoint =\n",
        "# [tls]\n",
        "\n[kafka.security.sasl]\n",
    ] {
        assert!(reference.contains(line), "{line} in\n{reference}");
    }
    let config = World::new().file(&reference).load().unwrap();
    assert_eq!(show(&config), show(&RelayConfig::default()));
}

#[test]
fn every_shared_section_has_valid_defaults() {
    fn valid<T: Config>() {
        config::load::<T>(&Sources::default()).unwrap();
    }
    valid::<KafkaConfig>();
    valid::<TelemetryConfig>();
    valid::<AdminConfig>();
    valid::<coderelay_runtime::lifecycle::LifecycleConfig>();
}
