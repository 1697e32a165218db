//! Writing rows: one unlogged batch per CQL partition, bounded in flight, retried, and isolated when one row is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder, Retryable};
use bytes::Bytes;
use coderelay_runtime::flaw::{self, Flaw};
use coderelay_schemas::cql;
use coderelay_schemas::packet_id::PacketId;
use futures::stream::{self, StreamExt};
use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlDate, CqlTimestamp, MaybeUnset};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::CqlConfig;
use crate::decode::Row;
use crate::metrics::Metrics;
use crate::pace::StoreSample;
use crate::ports::{RowOutcome, Store, Unavailable};
use crate::worker::Shared;

/// How long a batch may take before its worker has to poll again: a third of `max.poll.interval.ms`.
const DEADLINE: Duration = Duration::from_secs(100);

/// How long a batch in hand may still take when the process is to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A connected session with its prepared statements, shared by all workers.
pub struct Inserter {
    session: Session,
    insert: PreparedStatement,
    probe: PreparedStatement,
    in_flight: Semaphore,
    acquire_timeout: Duration,
    max_retries: usize,
    retry_delay: Duration,
    batch_rows: usize,
    batch_bytes: usize,
}

impl Inserter {
    /// Prepares the statements of `config.keyspace` on `session`.
    ///
    /// # Errors
    /// When the table is missing or the store is away.
    pub async fn prepare(session: Session, config: &CqlConfig) -> anyhow::Result<Self> {
        let mut insert = session.prepare(cql::insert(&config.keyspace)).await.context("preparing the insert")?;
        // Same key, same timestamp, same values: the driver may try it again by itself.
        insert.set_is_idempotent(true);
        let mut probe = session.prepare(cql::probe(&config.keyspace)).await.context("preparing the probe")?;
        probe.set_is_idempotent(true);
        Ok(Self {
            session,
            insert,
            probe,
            in_flight: Semaphore::new(config.max_in_flight),
            acquire_timeout: config.acquire_timeout.into(),
            max_retries: config.max_retries,
            retry_delay: config.retry_delay.into(),
            batch_rows: config.batch_rows,
            batch_bytes: config.batch_bytes.as_usize(),
        })
    }

    /// Whether the store takes writes: a missing table, a guardrail or a full disk refuse every row alike, and reads tell nothing of it.
    ///
    /// # Errors
    /// What the store or the driver said.
    pub async fn probe(&self) -> Result<(), Unavailable> {
        let row = probe_row(SystemTime::now());
        match self.session.execute_unpaged(&self.probe, values(&row)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Unavailable(error.to_string())),
        }
    }

    /// One request for rows of one partition.
    async fn send(&self, rows: &[&Row]) -> Result<(), Trouble> {
        let permit = tokio::time::timeout(self.acquire_timeout, self.in_flight.acquire());
        let Ok(_permit) = permit.await else {
            let waited = self.acquire_timeout;
            return Err(Trouble::Passing(format!("no request slot became free within {waited:?} (cql.max_in_flight)")));
        };
        let result = match rows {
            [row] => self.session.execute_unpaged(&self.insert, values(row)).await,
            rows => {
                let mut batch = Batch::new(BatchType::Unlogged);
                batch.set_is_idempotent(true);
                for _ in rows {
                    batch.append_statement(self.insert.clone());
                }
                self.session.batch(&batch, rows.iter().map(|row| values(row)).collect::<Vec<_>>()).await
            }
        };
        result.map(drop).map_err(Trouble::from)
    }

    /// Writes rows of one partition, trying again while the trouble may pass. `Err` is the reason it did not.
    async fn write_group(&self, rows: &[&Row]) -> GroupResult {
        let started = Instant::now();
        let mut attempts = 0;
        let waits = ExponentialBuilder::default()
            .with_min_delay(self.retry_delay)
            .with_factor(2.0)
            .with_max_times(self.max_retries);
        let result = (|| {
            attempts += 1;
            self.send(rows)
        })
        .retry(waits.build())
        .when(|trouble| matches!(trouble, Trouble::Passing(_)))
        .notify(|trouble, wait| debug!(?trouble, ?wait, "writing again"))
        .await;
        GroupResult { result, attempts, slowest: started.elapsed() }
    }

    /// Writes rows of one partition; when the store refuses them, once more one by one: to find the one it refuses, and because only what
    /// is refused by a store that takes other rows at that time is the row's own fault.
    async fn write_isolated(&self, rows: &[&Row]) -> (Result<Vec<RowOutcome>, Unavailable>, u32, Duration) {
        let GroupResult { result, mut attempts, mut slowest } = self.write_group(rows).await;
        let detail = match result {
            Ok(()) => return (Ok(vec![RowOutcome::Stored; rows.len()]), attempts, slowest),
            Err(Trouble::Passing(reason)) => return (Err(Unavailable(reason)), attempts, slowest),
            Err(Trouble::Refused(detail)) => detail,
        };
        if let Err(Unavailable(reason)) = self.probe().await {
            let both = format!("it refuses a row ({detail}) and the probe ({reason})");
            return (Err(Unavailable(both)), attempts, slowest);
        }
        debug!(detail, rows = rows.len(), "refused; writing one by one");
        let mut outcomes = Vec::with_capacity(rows.len());
        for row in rows {
            let single = self.write_group(&[*row]).await;
            attempts = attempts.max(single.attempts);
            slowest = slowest.max(single.slowest);
            outcomes.push(match single.result {
                Ok(()) => RowOutcome::Stored,
                Err(Trouble::Refused(detail)) => RowOutcome::Refused { detail, attempts: single.attempts + 1 },
                Err(Trouble::Passing(reason)) => return (Err(Unavailable(reason)), attempts, slowest),
            });
        }
        (Ok(outcomes), attempts, slowest)
    }

    /// Writes `rows`, at most `concurrency` groups at a time.
    async fn write(&self, rows: &[&Row], concurrency: usize) -> Result<(Vec<RowOutcome>, StoreSample), Unavailable> {
        let groups = group(rows, self.batch_rows, self.batch_bytes);
        let writes = groups.iter().map(|group| async move {
            let members: Vec<&Row> = group.iter().map(|index| rows[*index]).collect();
            (group, self.write_isolated(&members).await)
        });
        let mut finished = stream::iter(writes).buffer_unordered(concurrency);
        let mut outcomes = vec![RowOutcome::Stored; rows.len()];
        let mut sample = StoreSample { records: rows.len(), slowest: Duration::ZERO, troubled: false };
        while let Some((group, (result, attempts, slowest))) = finished.next().await {
            sample.slowest = sample.slowest.max(slowest);
            sample.troubled |= attempts > 1;
            for (index, outcome) in group.iter().zip(result?) {
                outcomes[*index] = outcome;
            }
        }
        Ok((outcomes, sample))
    }
}

/// A [`Store`] for one worker's thread over the shared [`Inserter`].
pub struct CqlStore {
    inserter: Arc<Inserter>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl CqlStore {
    /// A store for one of the workers that share `shared`.
    pub fn new(shared: &Shared) -> Self {
        Self {
            inserter: Arc::clone(&shared.inserter),
            runtime: shared.runtime.clone(),
            metrics: Arc::clone(&shared.metrics),
            stop: shared.stop.clone(),
        }
    }

    /// Waits for a request no longer than a group member may stay away from its polls, and no longer than the process lives.
    fn wait<T>(&self, request: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
        let stopping = async {
            self.stop.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                result = tokio::time::timeout(DEADLINE, request) => {
                    result.unwrap_or_else(|_| Err(Unavailable(format!("no answer within {DEADLINE:?}"))))
                }
                () = stopping => Err(Unavailable("the processor is stopping".into())),
            }
        })
    }
}

impl Store for CqlStore {
    fn write(&mut self, rows: &[&Row], concurrency: usize) -> Result<(Vec<RowOutcome>, StoreSample), Unavailable> {
        let started = Instant::now();
        let result = self.wait(self.inserter.write(rows, concurrency));
        self.metrics.stored(result.is_ok(), rows.len(), started.elapsed());
        result
    }

    fn probe(&mut self) -> Result<(), Unavailable> {
        self.wait(self.inserter.probe())
    }
}

struct GroupResult {
    result: Result<(), Trouble>,
    attempts: u32,
    slowest: Duration,
}

/// Why a write did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    /// The store, the network or the load: trying again may help.
    Passing(String),
    /// The row's content: trying again will not.
    Refused(String),
}

impl From<ExecutionError> for Trouble {
    fn from(error: ExecutionError) -> Self {
        let refused = match &error {
            // The driver itself cannot make a request of these values.
            ExecutionError::BadQuery(_) => true,
            ExecutionError::LastAttemptError(attempt)
            | ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt: attempt }) => matches!(
                attempt,
                RequestAttemptError::SerializationError(_)
                    | RequestAttemptError::CqlRequestSerialization(_)
                    | RequestAttemptError::DbError(DbError::Invalid, _)
            ),
            _ => false,
        };
        if refused { Self::Refused(error.to_string()) } else { Self::Passing(error.to_string()) }
    }
}

/// The bound values of a row, in the order of the insert statement.
type Values<'a> = (
    &'a str,
    CqlDate,
    &'a [u8],
    &'a [u8],
    &'a BTreeMap<String, String>,
    CqlTimestamp,
    CqlTimestamp,
    MaybeUnset<&'a str>,
    i64,
);

fn values(row: &Row) -> Values<'_> {
    (
        &row.repo_id,
        // CQL counts days from -2^31; the epoch is in the middle.
        CqlDate((row.day() + (1 << 31)) as u32),
        row.packet_id.as_bytes(),
        &row.content,
        &row.metadata,
        CqlTimestamp(row.created_at_ms),
        CqlTimestamp(row.ingested_at_ms),
        // A null would be a tombstone.
        row.region.as_deref().map_or(MaybeUnset::Unset, MaybeUnset::Set),
        written_at_ms(row).saturating_mul(1000),
    )
}

/// The write timestamp of a row, in milliseconds since the Unix epoch.
fn written_at_ms(row: &Row) -> i64 {
    if flaw::is(Flaw::WrongWriteTime) { since_epoch_ms(SystemTime::now()) } else { row.ingested_at_ms }
}

fn since_epoch_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// A row that no packet can have: of the epoch's day, with a name that is no repository's.
fn probe_row(now: SystemTime) -> Row {
    Row {
        repo_id: cql::PROBE_REPO_ID.into(),
        packet_id: PacketId([0; 16]),
        // The magic bytes of gzip.
        content: Bytes::from_static(&[0x1f, 0x8b]),
        metadata: BTreeMap::new(),
        created_at_ms: 0,
        ingested_at_ms: since_epoch_ms(now),
        region: None,
    }
}

/// Indices of `rows` by CQL partition, in runs of at most `max_rows` rows and `max_bytes` bytes. A batch never mixes partitions.
pub fn group(rows: &[&Row], max_rows: usize, max_bytes: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut open: HashMap<(&str, i64), (usize, usize)> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let size = row.size();
        match open.get_mut(&(row.repo_id.as_str(), row.day())) {
            Some((group, bytes)) if groups[*group].len() < max_rows && *bytes + size <= max_bytes => {
                groups[*group].push(index);
                *bytes += size;
            }
            _ => {
                open.insert((&row.repo_id, row.day()), (groups.len(), size));
                groups.push(vec![index]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(repo_id: &str, day: i64, content: usize) -> Row {
        Row {
            repo_id: repo_id.into(),
            packet_id: PacketId([0; 16]),
            content: Bytes::from(vec![0; content]),
            metadata: [].into(),
            created_at_ms: day * 86_400_000,
            ingested_at_ms: 0,
            region: None,
        }
    }

    #[test]
    fn groups_never_mix_partitions_and_respect_both_bounds() {
        let rows =
            [row("a", 1, 10), row("b", 1, 10), row("a", 2, 10), row("a", 1, 10), row("a", 1, 10), row("b", 1, 9000)];
        let rows: Vec<&Row> = rows.iter().collect();
        assert_eq!(group(&rows, 2, 1000), [vec![0, 3], vec![1], vec![2], vec![4], vec![5]]);
    }

    #[test]
    fn a_day_before_the_epoch_is_a_date_too() {
        let early = row("a", -1, 0);
        assert_eq!(values(&early).1, CqlDate((1 << 31) - 1));
        assert_eq!(values(&row("a", 0, 0)).1, CqlDate(1 << 31));
    }

    #[test]
    fn what_the_content_caused_is_refused_and_everything_else_may_pass() {
        let database = |error| ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, "why".into()));
        assert!(matches!(Trouble::from(database(DbError::Invalid)), Trouble::Refused(_)));
        assert!(matches!(Trouble::from(database(DbError::Overloaded)), Trouble::Passing(_)));
        assert!(matches!(Trouble::from(ExecutionError::RequestTimeout(Duration::from_secs(1))), Trouble::Passing(_)));
    }
}
