use loadtest::merge::merge;
use loadtest::results::Results;
use loadtest::summary::{Series, Verdict};

use crate::sample::Sample;

fn series<'a>(results: &'a Results, chart: &str, name: &str) -> &'a Series {
    let mut series = results.summary.timeline.series.iter();
    series.find(|series| series.chart == chart && series.name == name).unwrap()
}

#[test]
fn counts_are_added_and_shared_services_are_not() {
    let parts = [Sample::burst(1).results(), Sample::burst(2).results()];
    let merged = merge(&parts).unwrap();
    let [a, b] = [&parts[0].summary, &parts[1].summary];
    let summary = &merged.summary;
    assert_eq!(summary.packets.acknowledged, a.packets.acknowledged + b.packets.acknowledged);
    assert_eq!(
        summary.errors["UNAVAILABLE/BROKER_BUSY"],
        a.packets.retried + a.packets.failed + b.packets.retried + b.packets.failed
    );
    assert_eq!(summary.partitions[4], a.partitions[4], "all see the same topic");
    assert_eq!(summary.audit.as_ref().unwrap().lost, 2);
    assert_eq!(summary.audit.as_ref().unwrap().findings.len(), 4);
    assert!((summary.rates[0].per_second - a.rates[0].per_second - b.rates[0].per_second).abs() < 1e-6);
    assert!((summary.rates[0].ratio.unwrap() - 0.68).abs() < 0.01, "{:?}", summary.rates[0]);

    let usage = |name: &str| summary.processes.iter().find(|usage| usage.name == name).unwrap();
    assert_eq!(usage("ingest").peak_rss_bytes, 66_000_000);
    assert_eq!(usage("loadtest").peak_rss_bytes, 96_000_000);
    assert!((usage("ingest").cpu_seconds_per_100k - 0.41).abs() < 0.01, "the same CPU served twice the packets");

    let at = |results: &Results, chart, name| series(results, chart, name).values[25].unwrap();
    let acked = |results: &Results| at(results, "throughput", "acknowledged");
    assert!((acked(&merged) - acked(&parts[0]) - acked(&parts[1])).abs() < 1e-6);
    let rss = |results: &Results| at(results, "rss", "kafka");
    assert_eq!(rss(&merged).to_bits(), rss(&parts[0]).max(rss(&parts[1])).to_bits());
    assert_eq!(summary.timeline.events, a.timeline.events, "one fault is one event");
}

#[test]
fn no_event_of_a_histogram_is_lost_and_percentiles_are_those_of_all() {
    let slow = Sample { slower: 50.0, ..Sample::steady(2) };
    let parts = [Sample::steady(1).results(), slow.results()];
    let merged = merge(&parts).unwrap();
    let all = merged.total("ack").unwrap();
    let mut expected = parts[0].total("ack").unwrap();
    expected.add(parts[1].total("ack").unwrap()).unwrap();
    assert_eq!(all, expected);
    let p90 = |results: &Results| results.summary.latencies["ack"].p90;
    assert!(p90(&merged) > p90(&parts[0]) && p90(&merged) < p90(&parts[1]));
    assert_eq!(merged.latencies["ack"].len(), 60, "interval by interval");
}

#[test]
fn the_whole_is_judged_anew() {
    let slow = Sample { slower: 50.0, ..Sample::steady(2) };
    let merged = merge(&[Sample::steady(1).results(), slow.results()]).unwrap().summary;
    assert_eq!(merged.verdict, Verdict::Missed);
    assert!(!merged.thresholds[0].met && merged.thresholds[0].actual == Some(merged.latencies["ack"].p99));
    let mut behind = Sample::steady(3).results();
    behind.summary.verdict = Verdict::Invalid;
    assert_eq!(merge(&[Sample::steady(1).results(), behind]).unwrap().summary.verdict, Verdict::Invalid);
}

#[test]
fn a_process_that_began_later_is_added_later() {
    let (first, mut second) = (Sample::steady(1).results(), Sample::steady(2).results());
    second.summary.started = "2026-11-24T15:00:02Z".to_owned();
    let merged = merge(&[second.clone(), first.clone()]).unwrap();
    assert_eq!(merged.summary.started, first.summary.started);
    assert!((merged.summary.seconds - 62.0).abs() < 1e-6);
    let [all, early, late] = [&merged, &first, &second].map(|results| &series(results, "throughput", "sent").values);
    assert_eq!((all[0], all[61], all.len()), (early[0], late[59], 62));
    assert_eq!(all[2], Some(early[2].unwrap() + late[0].unwrap()));
    second.summary.started = "2026-11-24T16:00:00Z".to_owned();
    assert!(format!("{:#}", merge(&[first, second]).unwrap_err()).contains("not one run"));
}

#[test]
fn another_scenario_or_configuration_is_refused_and_another_seed_is_not() {
    let first = Sample::steady(1).results();
    let refusal = |change: fn(&mut Results)| {
        let mut other = Sample::steady(2).results();
        change(&mut other);
        merge(&[first.clone(), other]).map_or_else(|error| format!("{error:#}"), |_| "merged".to_owned())
    };
    assert!(refusal(|other| other.summary.scenario = "burst".to_owned()).contains("the scenario differs"));
    assert!(refusal(|other| other.summary.configuration["rate"] = 1.into()).contains("the configuration differs"));
    assert!(refusal(|other| drop(other.summary.versions.remove("kafka"))).contains("a version differs"));
    assert!(refusal(|other| other.summary.timeline.interval = 2.0).contains("interval"));
    assert_eq!(refusal(|other| other.summary.configuration["content"]["seed"] = 7.into()), "merged");
}

#[test]
fn a_run_that_was_audited_in_part_is_not_called_audited() {
    let mut other = Sample::steady(2).results();
    other.summary.audit = None;
    let merged = merge(&[Sample::steady(1).results(), other]).unwrap().summary;
    assert_eq!(merged.audit, None);
    assert!(merged.notes.iter().any(|note| note.contains("audited")), "{:?}", merged.notes);
}
