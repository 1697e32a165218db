//! What the machine's parts can do without coderelay: the rates that every other rate is held against.
//!
//! Each entry does one job as plainly as its library allows, with the load's packets and the services' own settings, and nothing of
//! coderelay in between. All run one after the other on topics and a keyspace of their own, which are removed again. A rate is what
//! was completed within the measured time, with work always under way, once it was warm.

mod args;
mod cpu;
mod grpc;
mod kafka;
mod pool;
mod span;
mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use args::LimitsArgs;
pub use span::Span;

use crate::machine::Origin;
use crate::summary::{Rate, SCHEMA, Summary};

/// Names of the entries, in the order in which they are measured.
pub mod entry {
    /// Idempotent produce with `acks=all` and ingest's settings, keyed: records acknowledged.
    pub const PRODUCE: &str = "produce";
    /// A `read_committed` consumer of the same topic: records.
    pub const CONSUME: &str = "consume";
    /// Consume, copy, offsets and commit in transactions of the processor's batch size: records committed.
    pub const TRANSACTIONS: &str = "transactions";
    /// The same with a plain idempotent producer and commits of the group: what transactions cost is the difference.
    pub const TRANSACTIONS_OFF: &str = "transactions_off";
    /// Prepared inserts one by one, 256 in flight: rows.
    pub const CQL_SINGLE: &str = "cql_single";
    /// Unlogged batches of one CQL partition, grouped and in flight as the processor does: rows.
    pub const CQL_BATCH: &str = "cql_batch";
    /// Verifying the content's gzip to its end, on one thread: packets.
    pub const GZIP_VERIFY: &str = "gzip_verify";
    /// Deriving packet id and ledger entry with BLAKE3, on one thread: packets.
    pub const BLAKE3: &str = "blake3";
    /// A tonic server that decodes requests of 100 packets and answers each packet: packets answered.
    pub const GRPC_ECHO: &str = "grpc_echo";
    /// The same with one packet a request.
    pub const GRPC_ECHO_SINGLE: &str = "grpc_echo_single";
}

/// The figure that says which share of the rate transactions cost: 1 − transactions / `transactions_off`.
pub const COST_OF_TRANSACTIONS: &str = "cost_of_transactions";

/// What is measured, and for how long.
#[derive(Clone, Debug)]
pub struct Target {
    /// Kafka's bootstrap servers.
    pub bootstrap_servers: String,
    /// A node of the store, `host:port`.
    pub cql_contact: String,
    /// Partitions of the topics.
    pub partitions: i32,
    /// Replicas of topics and rows.
    pub replicas: u32,
    /// Time of each entry.
    pub span: Span,
}

/// What one entry came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// See [`entry`].
    pub name: &'static str,
    /// Completed per second.
    pub per_second: f64,
    /// CPU seconds of this process, all its threads, for every 100,000.
    pub cpu_seconds_per_100k: f64,
}

/// Measures every entry, in the order of [`entry`], and sums them up. `progress` is told of each. Needs a multi-threaded Tokio runtime.
///
/// # Errors
/// When Kafka or the store cannot be reached or refuses what is asked of it. Topics and keyspace are removed all the same.
pub async fn measure(target: &Target, progress: impl FnMut(&str)) -> Result<Summary> {
    let (started, clock) = (OffsetDateTime::now_utc(), Instant::now());
    let limits = survey(target, progress).await?;
    summary(target, &limits, started, clock.elapsed())
}

async fn survey(target: &Target, mut progress: impl FnMut(&str)) -> Result<Vec<Limit>> {
    let pool = pool::Pool::new()?;
    let cluster = kafka::Cluster::create(target).await.context("cannot create topics for the limits")?;
    let table = match table::Table::create(target).await.context("cannot create a keyspace for the limits") {
        Ok(table) => table,
        Err(error) => {
            cluster.remove().await;
            return Err(error);
        }
    };
    let limits = entries(target.span, &pool, &cluster, &table, &mut progress).await;
    cluster.remove().await;
    table.remove().await;
    limits
}

async fn entries(
    span: Span,
    pool: &pool::Pool,
    cluster: &kafka::Cluster,
    table: &table::Table,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Limit>> {
    let mut limits = Vec::new();
    // A macro, since each entry's work is a future of its own type.
    macro_rules! entry {
        ($name:expr, $work:expr) => {{
            progress(&format!("measuring {}", $name));
            let limit: Limit = span.measure($name, $work).await.with_context(|| format!("measuring {}", $name))?;
            progress(&limit.to_string());
            limits.push(limit);
        }};
    }
    entry!(entry::PRODUCE, |work| cluster.produce(pool, work));
    entry!(entry::CONSUME, |work| cluster.consume(work));
    progress("measuring transactions and the same without");
    let copies = transactions(span, cluster).await.context("measuring transactions")?;
    for limit in &copies {
        progress(&limit.to_string());
    }
    limits.extend(copies);
    entry!(entry::CQL_SINGLE, |work| table.insert_singly(pool, work));
    entry!(entry::CQL_BATCH, |work| table.insert_batches(pool, work));
    entry!(entry::GZIP_VERIFY, |work| cpu::verify(pool, work));
    entry!(entry::BLAKE3, |work| cpu::hash(pool, work));
    entry!(entry::GRPC_ECHO, |work| grpc::echo(pool, 100, work));
    entry!(entry::GRPC_ECHO_SINGLE, |work| grpc::echo(pool, 1, work));
    Ok(limits)
}

/// Copying with and without transactions. They are held against each other, so both are measured twice, in an order in which a JVM that
/// grows warmer favours neither.
async fn transactions(span: Span, cluster: &kafka::Cluster) -> Result<[Limit; 2]> {
    let half = Span { measured: span.measured / 2, ..span };
    let with = || half.measure(entry::TRANSACTIONS, |work| cluster.copy(true, work));
    let without = || half.measure(entry::TRANSACTIONS_OFF, |work| cluster.copy(false, work));
    let (first, second, third, fourth) = (with().await?, without().await?, without().await?, with().await?);
    Ok([first.and(&fourth), second.and(&third)])
}

impl Limit {
    /// Both measurements together, which took the same time.
    fn and(&self, other: &Self) -> Self {
        let done = self.per_second + other.per_second;
        let cpu = self.cpu_seconds_per_100k * self.per_second + other.cpu_seconds_per_100k * other.per_second;
        let cpu_seconds_per_100k = if done > 0.0 { cpu / done } else { 0.0 };
        Self { name: self.name, per_second: done / 2.0, cpu_seconds_per_100k }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, per_second, cpu_seconds_per_100k } = self;
        write!(f, "{name}: {per_second:.0} per second, {cpu_seconds_per_100k:.2} CPU-s per 100,000")
    }
}

fn rates(limits: &[Limit]) -> Vec<Rate> {
    let rate = |limit: &Limit| Rate { name: limit.name.to_owned(), per_second: limit.per_second, ..Rate::default() };
    limits.iter().map(rate).collect()
}

/// `<entry>_cpu_seconds_per_100k` of each entry, and [`COST_OF_TRANSACTIONS`].
fn figures(limits: &[Limit]) -> BTreeMap<String, f64> {
    let rate = |name| limits.iter().find(|limit| limit.name == name).map(|limit| limit.per_second);
    let cpu = |limit: &Limit| (format!("{}_cpu_seconds_per_100k", limit.name), limit.cpu_seconds_per_100k);
    let mut figures: BTreeMap<String, f64> = limits.iter().map(cpu).collect();
    if let (Some(with), Some(without)) = (rate(entry::TRANSACTIONS), rate(entry::TRANSACTIONS_OFF)) {
        figures.insert(COST_OF_TRANSACTIONS.to_owned(), 1.0 - with / without);
    }
    figures
}

fn summary(target: &Target, limits: &[Limit], started: OffsetDateTime, took: Duration) -> Result<Summary> {
    let configuration = serde_json::json!({
        "partitions": target.partitions,
        "replicas": target.replicas,
        "warm_up_seconds": target.span.warm_up.as_secs_f64(),
        "seconds": target.span.measured.as_secs_f64(),
        "kafka": kafka::configuration(),
        "cql": table::configuration(),
    });
    Ok(Summary {
        schema: SCHEMA,
        scenario: "limits".to_owned(),
        description: "What the parts can do without coderelay, on this machine at this time".to_owned(),
        started: started.format(&Rfc3339)?,
        seconds: took.as_secs_f64(),
        origin: Origin::here()?,
        versions: BTreeMap::from([("loadtest".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        configuration,
        rates: rates(limits),
        figures: figures(limits),
        ..Summary::default()
    })
}

/// A summary of [`summary`]'s as a Markdown table, with machine and date below.
pub fn markdown(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(["limit", "per second", "CPU-s per 100,000"]);
    for rate in &summary.rates {
        let cpu = summary.figures.get(&format!("{}_cpu_seconds_per_100k", rate.name));
        let cpu = cpu.map_or(String::new(), |cpu| format!("{cpu:.2}"));
        table.add_row([rate.name.clone(), format!("{:.0}", rate.per_second), cpu]);
    }
    let cost = summary.figures.get(COST_OF_TRANSACTIONS);
    let cost = cost.map_or(String::new(), |cost| format!("\nTransactions cost {:.1} % of the rate.", cost * 100.0));
    format!("{table}\n{cost}\n{}", summary.origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &'static str, per_second: f64) -> Limit {
        Limit { name, per_second, cpu_seconds_per_100k: 0.5 }
    }

    #[test]
    fn the_cost_of_transactions_is_the_share_of_the_rate_they_take() {
        let limits = [limit(entry::TRANSACTIONS, 90_000.0), limit(entry::TRANSACTIONS_OFF, 100_000.0)];
        let figures = figures(&limits);
        assert!((figures[COST_OF_TRANSACTIONS] - 0.1).abs() < 1e-12);
        assert!((figures["transactions_cpu_seconds_per_100k"] - 0.5).abs() < 1e-12);
    }

    #[test]
    fn two_measurements_together_are_one_of_twice_the_length() {
        let slow = Limit { name: "x", per_second: 100_000.0, cpu_seconds_per_100k: 2.0 };
        let fast = Limit { name: "x", per_second: 300_000.0, cpu_seconds_per_100k: 1.0 };
        let both = slow.and(&fast);
        assert!((both.per_second - 200_000.0).abs() < 1e-6);
        assert!((both.cpu_seconds_per_100k - 1.25).abs() < 1e-9, "2 + 3 CPU-s for 400,000");
    }

    #[test]
    fn without_both_rates_there_is_no_cost() {
        assert!(!figures(&[limit(entry::TRANSACTIONS, 1.0)]).contains_key(COST_OF_TRANSACTIONS));
    }
}
