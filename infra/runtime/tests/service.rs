//! A service as an operator meets it: command line, exit codes, signals. The program runs itself as the service under test.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use coderelay_runtime::admin::{self, AdminConfig, Readiness};
use coderelay_runtime::config::HumanDuration;
use coderelay_runtime::kafka::KafkaConfig;
use coderelay_runtime::lifecycle::LifecycleConfig;
use coderelay_runtime::telemetry::TelemetryConfig;
use coderelay_runtime::{CancellationToken, Service, ServiceConfig};
use garde::Validate;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Set in the child: be the service.
const ROLE: &str = "RUNTIME_TEST_ROLE";

/// A service that waits.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(default)]
#[garde(allow_unvalidated)]
struct WaiterConfig {
    /// How long it goes on after it was asked to stop.
    linger: HumanDuration,
    /// Whether it fails.
    fail: bool,
    #[garde(dive)]
    kafka: KafkaConfig,
    #[garde(dive)]
    admin: AdminConfig,
    #[garde(dive)]
    lifecycle: LifecycleConfig,
    #[garde(dive)]
    telemetry: TelemetryConfig,
}

impl Default for WaiterConfig {
    fn default() -> Self {
        Self {
            linger: HumanDuration::from_millis(10),
            fail: false,
            kafka: KafkaConfig::default(),
            admin: AdminConfig { listen: ([127, 0, 0, 1], 0).into() },
            lifecycle: LifecycleConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl ServiceConfig for WaiterConfig {
    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn lifecycle(&self) -> &LifecycleConfig {
        &self.lifecycle
    }
}

async fn run(config: WaiterConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let readiness = Readiness::default();
    let admin = admin::serve(&config.admin, readiness.clone()).await?;
    if config.fail {
        return Err(anyhow::anyhow!("no broker").context("cannot reach Kafka"));
    }
    shutdown.cancelled().await;
    readiness.drain();
    tokio::time::sleep(config.linger.get()).await;
    admin.shutdown().await;
    Ok(())
}

fn main() -> ExitCode {
    if std::env::var_os(ROLE).is_some() {
        return Service { name: "waiter", version: "1.2.3", about: "Waits" }.main(run);
    }
    let tests: &[(&str, fn())] = &[
        ("config_check_names_the_mistakes_and_exits_with_78", config_check_names_the_mistakes_and_exits_with_78),
        ("config_show_says_where_values_come_from", config_show_says_where_values_come_from),
        ("docs_version_and_help_are_printed", docs_version_and_help_are_printed),
        ("a_wrong_configuration_does_not_start", a_wrong_configuration_does_not_start),
        #[cfg(feature = "flaws")]
        ("an_unknown_flaw_does_not_start", an_unknown_flaw_does_not_start),
        ("sigterm_ends_it_cleanly", sigterm_ends_it_cleanly),
        ("a_second_signal_forces_it_out", a_second_signal_forces_it_out),
        ("the_grace_period_has_an_end", the_grace_period_has_an_end),
        ("a_failure_is_logged_and_exits_with_1", a_failure_is_logged_and_exits_with_1),
    ];
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn service(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, "service").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output, standard error.
fn output(arguments: &[&str]) -> (i32, String, String) {
    let output = service(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A service that has begun to work.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = service(arguments).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self { child, log };
        running.wait_for_log("admin server listens");
        running
    }

    fn wait_for_log(&mut self, message: &str) {
        let mut line = String::new();
        while !line.contains(message) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "it ended before it logged {message}");
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn exit_code(mut self) -> (i32, String) {
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code().unwrap(), log)
    }
}

fn config_check_names_the_mistakes_and_exits_with_78() {
    let (code, out, _) = output(&["config", "check"]);
    assert_eq!((code, out.as_str()), (0, "configuration ok\n"));

    let (code, out, err) = output(&["--set", "linger=soon", "config", "check", "--set", "fial=true"]);
    assert_eq!((code, out.as_str()), (78, ""));
    assert_eq!(
        err,
        concat!(
            "2 mistakes in the configuration:\n",
            "  fial = \"true\": unknown key; did you mean fail? (flag --set fial)\n",
            "  linger = \"soon\": must be a duration such as \"250ms\", \"15s\" or \"1h 30m\" (flag --set linger)\n",
        )
    );
    let (code, _, err) = output(&["--config", "/no/such.toml", "config", "check"]);
    assert!(code == 78 && err.contains("(/no/such.toml)"), "{code} {err}");
    assert_eq!(output(&["--set", "linger"]).0, 2, "a wrong command line");
}

fn config_show_says_where_values_come_from() {
    let mut command = service(&["--set", "fail=true", "config", "show"]);
    command.env("CODERELAY_LIFECYCLE__GRACE", "3s").env("CODERELAY_KAFKA__SECURITY__PROTOCOL", "sasl_plaintext");
    command.env("CODERELAY_KAFKA__SECURITY__SASL__USERNAME", "me");
    command.env("CODERELAY_KAFKA__SECURITY__SASL__PASSWORD", "hunter2");
    let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for line in [
        "fail = true  # flag --set fail\n",
        "grace = \"3s\"  # environment variable CODERELAY_LIFECYCLE__GRACE\n",
        "password = \"[redacted]\"  # environment variable CODERELAY_KAFKA__SECURITY__SASL__PASSWORD\n",
        "linger = \"10ms\"\n",
    ] {
        assert!(out.contains(line), "{line} in\n{out}");
    }
}

fn docs_version_and_help_are_printed() {
    let (code, out, _) = output(&["config", "docs"]);
    assert!(code == 0 && out.contains("# How long it goes on after it was asked to stop.\n"), "{out}");
    assert_eq!(output(&["--version"]).1, "waiter 1.2.3\n");
    assert!(output(&["--help"]).1.starts_with("Waits\n"));
    assert!(output(&["run", "--help"]).1.starts_with("Run the service (the default)\n"));
    assert!(output(&["config", "check", "--help"]).1.starts_with("Check the configuration"));
}

fn a_wrong_configuration_does_not_start() {
    let (code, _, err) = output(&["run", "--set", "linger=soon"]);
    assert!(code == 78 && err.starts_with("waiter: 1 mistake in the configuration:\n"), "{code} {err}");
}

/// A misspelt flaw would pass for one that no checker finds.
#[cfg(feature = "flaws")]
fn an_unknown_flaw_does_not_start() {
    let ended = service(&[]).env("CODERELAY_FLAW", "no-reply").output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(78), "{err}");
    assert!(err.starts_with("waiter: unknown variant `no-reply`, expected one of `ack-before-kafka`, "), "{err}");
}

fn sigterm_ends_it_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let service = Running::start(&[]);
        service.signal(signal);
        let (code, log) = service.exit_code();
        assert_eq!(code, 0, "{log}");
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["message"], "stopped", "no terminal: the log is JSON");
    }
}

fn a_second_signal_forces_it_out() {
    let mut service = Running::start(&["run", "--set", "linger=1h", "--set", "lifecycle.grace=1h"]);
    service.signal(Signal::SIGTERM);
    service.wait_for_log("a second signal leaves at once");
    service.signal(Signal::SIGINT);
    assert_eq!(service.exit_code().0, 130);
}

fn the_grace_period_has_an_end() {
    let started = Instant::now();
    let service = Running::start(&["--set", "linger=1h", "--set", "lifecycle.grace=100ms"]);
    service.signal(Signal::SIGTERM);
    let (code, log) = service.exit_code();
    assert!(code == 1 && log.contains("not finished within the grace period of 100ms"), "{code} {log}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

fn a_failure_is_logged_and_exits_with_1() {
    let (code, _, log) = output(&["--set", "fail=true"]);
    assert!(code == 1 && log.contains("cannot reach Kafka: no broker"), "{code} {log}");
}
