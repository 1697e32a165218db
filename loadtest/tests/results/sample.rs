//! Made-up results that look like real ones: noise, a burst, an outage of the store, refusals, findings.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use loadtest::machine::Origin;
use loadtest::results::{Interval, Results, percentiles, total};
use loadtest::summary::{
    Audit, Event, Finding, Generator, Packets, Percentiles, Rate, SCHEMA, Series, Summary, Threshold, Timeline, Usage,
    Verdict, latency,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// What a sample run is like.
pub(crate) struct Sample {
    pub(crate) scenario: &'static str,
    pub(crate) seconds: usize,
    pub(crate) seed: u64,
    /// Multiplies every latency.
    pub(crate) slower: f64,
    /// From 20 s to 30 s ten times the rate; from 50 s to 58 s the store is away.
    pub(crate) eventful: bool,
}

impl Sample {
    pub(crate) fn steady(seed: u64) -> Self {
        Self { scenario: "steady", seconds: 60, seed, slower: 1.0, eventful: false }
    }

    pub(crate) fn burst(seed: u64) -> Self {
        Self { scenario: "burst", seconds: 90, seed, slower: 1.0, eventful: true }
    }

    /// Makes the results.
    pub(crate) fn results(&self) -> Results {
        let mut noise = StdRng::seed_from_u64(self.seed);
        let mut latencies: BTreeMap<String, Vec<Interval>> = BTreeMap::new();
        let mut curves: BTreeMap<(&str, &str, &str), Vec<Option<f64>>> = BTreeMap::new();
        let (mut backlog, mut acknowledged, mut refused) = (0.0_f64, 0.0, 0.0);
        for second in 0..self.seconds {
            let bursting = self.eventful && (20..30).contains(&second);
            let away = self.eventful && (50..58).contains(&second);
            let wobble = noise.random_range(0.97..1.03);
            let offered = if bursting { 80_000.0 } else { 8_000.0 };
            let turned_away = if bursting { offered * noise.random_range(0.02..0.08) } else { 0.0 };
            let acked = (offered - turned_away) * wobble;
            let stored = if away { 0.0 } else { (backlog + acked).min(27_000.0 * wobble) };
            backlog += acked - stored;
            acknowledged += acked;
            refused += turned_away;

            let strain: f64 = if bursting { 12.0 } else { 1.0 };
            let delay = backlog / 27_000.0 * 1e3;
            for (name, typical, delay, count) in [
                (latency::ACK, 3.1 * strain, 0.0, 150),
                (latency::SERVICE, 2.6 * strain.sqrt(), 0.0, 150),
                (latency::TOPIC, 28.0, delay, 150),
                (latency::CQL, 24.0, delay, 50),
            ] {
                let mut histogram = Histogram::new_with_bounds(1, 600_000_000, 3).unwrap();
                for _ in 0..count {
                    // The sum of uniform samples is about normal, its exponential about lognormal: a latency's shape.
                    let normal: f64 = (0..6).map(|_| noise.random_range(-1.0..1.0)).sum::<f64>() / 1.41;
                    let milliseconds = self.slower * typical * (normal * 0.45).exp() + delay;
                    histogram.saturating_record((milliseconds * 1e3) as u64);
                }
                let interval = Interval { start: second as f64, seconds: 1.0, histogram };
                latencies.entry(name.to_owned()).or_default().push(interval);
            }
            let mut push = |chart, name, unit, value| curves.entry((chart, name, unit)).or_default().push(value);
            push("throughput", "acknowledged", "1/s", Some(acked));
            push("throughput", "sent", "1/s", Some(offered));
            push("throughput", "published", "1/s", Some(stored));
            push("backlog", "packets topic", "records", Some(backlog.max(0.0)));
            push("backlog", "acknowledged, not published", "records", Some(backlog * 1.02 + 300.0));
            push("errors", "refused or failed", "1/s", Some(turned_away));
            for (process, cores, megabytes) in
                [("cassandra", 0.35, 1450.0), ("ingest", 0.07, 62.0), ("kafka", 0.2, 610.0), ("processor", 0.11, 140.0)]
            {
                let load = if process == "ingest" || process == "kafka" { acked } else { stored } / 8_000.0;
                push("cpu", process, "cores", Some(cores * load.min(5.0) * noise.random_range(0.9..1.1) * self.slower));
                let grown = megabytes * (1.0 + 0.1 * second as f64 / self.seconds as f64) + backlog / 4_000.0;
                push("rss", process, "MB", Some(grown));
            }
            push("cpu", "loadtest", "cores", (second % 31 != 30).then(|| noise.random_range(0.1..0.14)));
        }
        let series = curves.into_iter().map(|((chart, name, unit), values)| {
            let (chart, name, unit) = (chart.to_owned(), name.to_owned(), unit.to_owned());
            Series { chart, name, unit, values }
        });
        let timeline = Timeline { interval: 1.0, series: series.collect(), events: self.events() };
        let summary = self.summary(&latencies, timeline, acknowledged as u64, refused as u64);
        Results { name: self.scenario.to_owned(), summary, latencies }
    }

    fn events(&self) -> Vec<Event> {
        let events = [(20.0, "80,000/s for 10 s"), (50.0, "store stopped"), (58.0, "store back")];
        let events = events.map(|(at, what)| Event { at, what: what.to_owned() });
        if self.eventful { events.into() } else { Vec::new() }
    }

    fn summary(
        &self,
        latencies: &BTreeMap<String, Vec<Interval>>,
        timeline: Timeline,
        acknowledged: u64,
        refused: u64,
    ) -> Summary {
        let latencies: BTreeMap<String, Percentiles> =
            latencies.iter().map(|(name, intervals)| (name.clone(), percentiles(&total(intervals).unwrap()))).collect();
        let seconds = self.seconds as f64;
        let rate = |name: &str, per_second: f64, limit: &str, ratio| Rate {
            name: name.to_owned(),
            per_second,
            limit: Some(limit.to_owned()),
            ratio: Some(ratio),
        };
        let usage = |name: &str, per_100k: f64, rss: u64| Usage {
            name: name.to_owned(),
            cpu_seconds: per_100k * acknowledged as f64 / 1e5,
            cpu_seconds_per_100k: per_100k,
            peak_rss_bytes: rss * 1_000_000,
        };
        let threshold = |condition: &str, actual, met| Threshold { condition: condition.to_owned(), actual, met };
        let finding = |kind: &str, detail: &str| Finding {
            kind: kind.to_owned(),
            packet_id: "9f86d081884c7d659a2feaa0c55ad015".to_owned(),
            detail: detail.to_owned(),
        };
        let found = u64::from(self.eventful);
        let findings = [
            finding("lost", "acknowledged as code.packets.v1 3@81204, in the topic, not in CQL"),
            finding("reordered", "code.packets.deduped.v1 5@40211 behind 5@40213 of stream 7, repository <acme/api>"),
        ];
        Summary {
            schema: SCHEMA,
            scenario: self.scenario.to_owned(),
            description: if self.eventful {
                "8,000 packets a second, 80,000 for ten seconds, and back; the store goes away once.".to_owned()
            } else {
                "8,000 packets a second for a minute, end to end.".to_owned()
            },
            started: "2026-11-24T15:00:00Z".to_owned(),
            seconds,
            origin: origin(self.scenario),
            versions: [("ingest", "0.1.0"), ("processor", "0.1.0"), ("kafka", "4.3.1"), ("cql", "Cassandra 5.0.6")]
                .map(|(part, version)| (part.to_owned(), version.to_owned()))
                .into(),
            configuration: serde_json::json!({
                "rate": 8000, "duration": "60s", "per_request": 100, "streams": 4, "content": { "bytes": 1024 },
                "services": { "processor": { "batch.max_records": 5000 } },
            }),
            verdict: if self.eventful { Verdict::Missed } else { Verdict::Passed },
            notes: if self.eventful {
                vec!["ack p99 and the audit miss their thresholds".to_owned()]
            } else {
                Vec::new()
            },
            packets: Packets {
                planned: acknowledged + refused,
                sent: acknowledged + refused,
                acknowledged,
                failed: refused / 50,
                retried: refused - refused / 50,
                repeats: 0,
                warm_up: 80_000,
                content_bytes: 1031,
                expanded_bytes: 3904,
            },
            errors: [("UNAVAILABLE/BROKER_BUSY".to_owned(), refused)]
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .collect(),
            rates: vec![
                rate("acknowledged", acknowledged as f64 / seconds, "produce", 0.34),
                rate("delivered", acknowledged as f64 / seconds, "cql_batch", 0.43),
            ],
            thresholds: vec![
                threshold("ack.p99_ms < 30", Some(latencies["ack"].p99), latencies["ack"].p99 < 30.0),
                threshold("topic.p99_ms < 200", Some(latencies["topic"].p99), latencies["topic"].p99 < 200.0),
                threshold("lost == 0", Some(f64::from(found as u32)), found == 0),
                threshold("ratio.produce >= 0.3", Some(0.34), true),
            ],
            latencies,
            generator: Generator { slip_p99_ms: 0.4, slip_max_ms: 3.2, cpu: 0.12, behind: false },
            timeline,
            partitions: [9, 10, 11, 10, if self.eventful { 41 } else { 10 }, 9, 10, 11].map(|n| n * 6_000).into(),
            processes: vec![
                usage("ingest", 0.82 * self.slower, 66),
                usage("processor", 1.31 * self.slower, 154),
                usage("kafka", 2.4, 655),
                usage("cassandra", 4.1, 1_540),
                usage("loadtest", 1.5, 48),
            ],
            audits: BTreeMap::new(),
            audit: Some(Audit {
                acknowledged,
                lost: found,
                reordered: found,
                bytes_per_packet: 24,
                findings: if self.eventful { findings.into() } else { Vec::new() },
                ..Audit::default()
            }),
            figures: [("backlog_gone_s".to_owned(), 31.5)].into(),
        }
    }
}

/// What `loadtest limits` leaves: rates and nothing else.
pub(crate) fn limits() -> Results {
    let rates = [("produce", 331_000.0), ("consume", 690_000.0), ("cql_batch", 52_000.0), ("blake3", 1_800_000.0)]
        .map(|(name, per_second)| Rate { name: name.to_owned(), per_second, ..Rate::default() });
    let summary = Summary { schema: SCHEMA, scenario: "limits".to_owned(), rates: rates.into(), ..Summary::default() };
    Results { name: "limits".to_owned(), summary, latencies: BTreeMap::new() }
}

fn origin(scenario: &str) -> Origin {
    Origin {
        cpu: "Intel(R) Xeon(R) Processor @ 2.60GHz".to_owned(),
        cores: 2,
        memory_bytes: 25_200_000_000,
        kernel: "6.1.155".to_owned(),
        date: "2026-11-24".to_owned(),
        commit: "ac22a7a1f00d".to_owned(),
        command: format!("loadtest run {scenario}"),
    }
}
