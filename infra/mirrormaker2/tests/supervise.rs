//! `supervise` among stubs of Kafka's tools: what it makes of what they say.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

const CONSUMER: &str = r#"#!/bin/bash
while (($#)); do case $1 in --bootstrap-server) at=$2;; --topic) topic=$2;; esac; shift; done
cat "$STUBS/$at/$topic" 2>/dev/null"#;
const VERSIONS: &str = "#!/bin/bash\n[[ -d $STUBS/$2 ]]";
const MIRRORMAKER: &str = "#!/bin/bash\nexec sleep 60";
const HEARTBEAT: &str = "CreateTime:1\n";
const FAILED: &str =
    "CreateTime:99999999999999\tstatus-task-MirrorSourceConnector-0\t{\"state\":\"FAILED\",\"trace\":\"why\"}\n";

/// Two regions, and what is in their topics.
struct Regions(TempDir);

impl Regions {
    /// Both answer, and heartbeats are written in both and mirrored to eu-west.
    fn whole() -> Self {
        let regions = Self(TempDir::new().unwrap());
        let bin = regions.0.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for (tool, script) in [
            ("kafka-console-consumer.sh", CONSUMER),
            ("kafka-broker-api-versions.sh", VERSIONS),
            ("connect-mirror-maker.sh", MIRRORMAKER),
        ] {
            fs::write(bin.join(tool), script).unwrap();
            fs::set_permissions(bin.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (region, topic) in [("us-east", "heartbeats"), ("eu-west", "heartbeats"), ("eu-west", "us-east.heartbeats")]
        {
            regions.write(region, topic, HEARTBEAT);
        }
        regions
    }

    fn write(&self, region: &str, topic: &str, records: &str) {
        fs::create_dir_all(self.0.path().join(region)).unwrap();
        fs::write(self.0.path().join(region).join(topic), records).unwrap();
    }

    fn silence(&self, region: &str, topic: &str) {
        fs::remove_file(self.0.path().join(region).join(topic)).unwrap();
    }

    fn lose(&self, region: &str) {
        fs::remove_dir_all(self.0.path().join(region)).unwrap();
    }

    /// Looks after what eu-west gets.
    fn supervise(&self) -> Child {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("supervise");
        let mut command = Command::new(script);
        command.arg("eu-west").process_group(0).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env("KAFKA_HOME", self.0.path()).env("STUBS", self.0.path());
        command.env("KAFKA_BOOTSTRAP_US_EAST", "us-east").env("KAFKA_BOOTSTRAP_EU_WEST", "eu-west");
        command.env("MIRROR_START", "0.1").env("MIRROR_INTERVAL", "0.1").spawn().unwrap()
    }

    fn ends_mirrormaker(&self, why: &str) {
        let output = self.supervise().wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(why), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
    }

    fn goes_on(&self, why: &str) {
        let mut child = self.supervise();
        let (mut said, mut line) = (BufReader::new(child.stderr.take().unwrap()), String::new());
        // Twice: it looks again.
        for _ in 0..2 {
            said.read_line(&mut line).unwrap();
        }
        assert_eq!(line.matches(why).count(), 2, "{line}");
        leave(&mut child);
    }
}

/// Told to leave while it goes on, it leaves with MirrorMaker's code.
fn leave(child: &mut Child) {
    assert!(child.try_wait().unwrap().is_none(), "it has ended");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_mirror_that_works_goes_on() {
    let regions = Regions::whole();
    let mut child = regions.supervise();
    std::thread::sleep(std::time::Duration::from_secs(2));
    leave(&mut child);
}

#[test]
fn a_mirror_that_stands_still_is_ended() {
    let regions = Regions::whole();
    regions.silence("eu-west", "us-east.heartbeats");
    regions.ends_mirrormaker("us-east->eu-west: stands still");
}

#[test]
fn a_failed_task_ends_it_whether_heartbeats_come_or_not() {
    let regions = Regions::whole();
    regions.write("eu-west", "mm2-status.us-east.internal", FAILED);
    regions.ends_mirrormaker("failed: MirrorSourceConnector-0");
    // The MirrorMaker that would write them in us-east is down.
    regions.silence("us-east", "heartbeats");
    regions.silence("eu-west", "us-east.heartbeats");
    regions.ends_mirrormaker("failed: MirrorSourceConnector-0");
}

#[test]
fn while_a_region_is_away_it_goes_on_even_with_a_failed_task() {
    let regions = Regions::whole();
    regions.write("eu-west", "mm2-status.us-east.internal", FAILED);
    regions.silence("eu-west", "us-east.heartbeats");
    regions.lose("us-east");
    regions.goes_on("a region does not answer");
}

#[test]
fn that_nobody_writes_heartbeats_in_the_source_is_no_fault_of_it() {
    let regions = Regions::whole();
    regions.silence("us-east", "heartbeats");
    regions.silence("eu-west", "us-east.heartbeats");
    regions.goes_on("look after the MirrorMaker there");
}
