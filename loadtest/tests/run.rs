//! A short audited load on a real Kafka and Cassandra: every packet is accounted for, and every latency is measured.

#![allow(clippy::unwrap_used, reason = "a helper of tests")]

mod support;

use loadtest::devstack::Devstack;
use loadtest::summary::Verdict;
use support::{run, scenario};

#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_measured_end_to_end_and_every_packet_accounted_for() {
    let devstack = Devstack::start(None).await.unwrap();
    let steady = ["load.rate=1000", "load.duration=6s", "load.warm_up=2s", "generator.max_slip=10s", "thresholds=[]"];
    let summary = run(&devstack, "steady", &scenario("steady", &steady)).await;
    assert_eq!((summary.packets.sent, summary.packets.acknowledged, summary.packets.failed), (6000, 6000, 0));
    let audit = summary.audit.as_ref().unwrap();
    assert!(audit.is_clean() && audit.acknowledged == 8000, "{audit:?}");
    assert_eq!((summary.latencies["ack"].count, summary.latencies["topic"].count), (6000, 6000));
    assert!(summary.latencies["cql"].count > 50, "{:?}", summary.latencies["cql"]);
    assert!(summary.latencies["topic"].p50 > summary.latencies["ack"].p50, "{:?}", summary.latencies);
    assert_eq!(summary.verdict, Verdict::Passed, "{:?} {:?}", summary.thresholds, summary.notes);
    assert_eq!(summary.partitions.iter().sum::<u64>(), 8000);
    let processes: Vec<_> = summary.processes.iter().map(|usage| usage.name.as_str()).collect();
    assert_eq!(processes, ["ingest", "processor", "kafka", "cassandra", "loadtest"]);

    let repeats = ["load.packets=10000", "load.warm_up_packets=5000", "repeats.after=5000", "thresholds=[]"];
    let summary = run(&devstack, "duplicates", &scenario("duplicates", &repeats)).await;
    assert_eq!((summary.packets.sent, summary.packets.repeats), (10_000, 5000));
    let audit = summary.audit.as_ref().unwrap();
    assert!(audit.is_clean() && audit.acknowledged == 10_000, "{audit:?}");
    assert!(summary.rates.iter().any(|rate| rate.name == "drained" && rate.per_second > 0.0), "{:?}", summary.rates);
    devstack.stop().await.unwrap();
}
