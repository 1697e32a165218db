//! Scenarios: those that come with the program are valid, and what is wrong with one is said by key, value and what is allowed.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use std::path::PathBuf;

use coderelay_runtime::config::Assignment;
use loadtest::plan::Plan;
use loadtest::scenario::{self, BUILT_IN, Scenario, Subject};

fn load(text: &str, set: &[&str]) -> Result<Scenario, String> {
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("scenario.toml");
    std::fs::write(&file, text).unwrap();
    let set: Vec<Assignment> = set.iter().map(|set| set.parse().unwrap()).collect();
    scenario::load(&file, &set).map_err(|mistakes| mistakes.to_string())
}

#[test]
fn every_built_in_scenario_is_valid_and_says_what_it_is_for() {
    for (name, text) in BUILT_IN {
        let scenario = load(text, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(scenario.description.len() > 20, "{name}");
        let packets = Plan::new(&scenario).packets();
        assert!(packets > 0 && u32::try_from(packets).is_ok(), "{name} sends {packets}");
    }
}

#[test]
fn flags_come_over_the_file() {
    let steady = scenario::text("steady").unwrap().1;
    let scenario = load(&steady, &["load.rate=500", "load.duration=5s", "corpus.size=2KiB"]).unwrap();
    assert_eq!((scenario.load.rate, scenario.subject), (Some(500.0), Subject::Pipeline));
    assert_eq!(Plan::new(&scenario).measured().count(), 125);
    assert_eq!(scenario.corpus.size.get(), 2048);
}

#[test]
fn a_mistake_names_key_value_and_what_is_allowed() {
    for (text, expected) in [
        ("[load]\nrate = -1", &["load.rate", "-1", "0.1"][..]),
        ("[load]\nspeed = 3", &["speed", "load"]),
        ("[load]\nrate = 8000\nduration = \"soon\"", &["load.duration", "soon"]),
        ("subject = \"broker\"", &["subject", "broker", "pipeline"]),
        ("thresholds = [\"p99_ms 200\"]", &["thresholds", "p99_ms < 200"]),
        ("[[faults]]\nat = \"1s\"\naction = \"kill\"\ntarget = \"kafka\"", &["faults", "kafka", "broker"]),
        ("[[faults]]\nat = \"1s\"\naction = \"kill\"\ntarget = \"region\"", &["faults", "regions = 2"]),
        ("regions = 2\n[[faults]]\nat = \"1s\"\naction = \"cut\"\ntarget = \"region\"", &["faults", "a link cut"]),
        (
            "regions = 2\n[[faults]]\nat = \"1s\"\naction = \"kill\"\ntarget = \"store\"\nregion = 2",
            &["faults", "region = 2"],
        ),
        ("regions = 3", &["regions", "3"]),
        ("partitions = 0", &["partitions", "1"]),
        ("regions = 2\nsubject = \"ingest\"", &["regions", "pipeline"]),
        ("[load]\nack = \"both\"", &["load.ack", "both", "mirrored"]),
        ("[burst]\nat = \"1s\"\nduration = \"1s\"\nrate = 9.0", &["burst", "load.rate"]),
        (
            "[load]\nrate = 10.0\nduration = \"5s\"\n[burst]\nat = \"4s\"\nduration = \"2s\"\nrate = 9.0",
            &["burst", "load.duration (5s)"],
        ),
    ] {
        let error = load(text, &[]).unwrap_err();
        for word in expected {
            assert!(error.contains(word), "{error} lacks {word:?}");
        }
    }
}

#[test]
fn an_unknown_scenario_names_those_that_exist() {
    let error = format!("{:#}", scenario::text("stedy").unwrap_err());
    assert!(error.contains("stedy") && error.contains("steady, ramp, burst"), "{error}");
}
