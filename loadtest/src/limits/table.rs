//! The store's part: rows of packets, one by one and in batches.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use backon::{ConstantBuilder, Retryable as _};
use bytes::Bytes;
use coderelay_schemas::cql;
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::{self, TryStreamExt};
use processor::config::GroupConfig;
use processor::cql::CqlConfig;
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlDate, CqlTimestamp, MaybeUnset};
use time::OffsetDateTime;

use super::Target;
use super::pool::{BURST, Pool};
use super::span::Work;

/// Requests in flight of the entry `cql_single`: where one node's rate no longer grows.
const SINGLE_IN_FLIGHT: usize = 256;

/// How often a failed request is sent again, each time after a second.
const RETRIES: usize = 10;

/// The processor's settings that the entries take over, for the summary.
pub(super) fn configuration() -> serde_json::Value {
    let config = CqlConfig::default();
    serde_json::json!({
        "batch_rows": config.batch_rows,
        "batches_in_flight": config.max_in_flight,
        "single_in_flight": SINGLE_IN_FLIGHT,
        "connections_per_node": config.pool_size,
        "consistency": config.consistency,
    })
}

/// A connected session and an empty table in a keyspace of its own.
pub(super) struct Table {
    keyspace: String,
    writer: Arc<Writer>,
}

struct Writer {
    session: Session,
    insert: PreparedStatement,
    /// By number of rows.
    batches: Vec<Batch>,
    /// Number of the next burst; no two rows have one key.
    next: AtomicU64,
}

/// What the rows of a packet share.
#[derive(Debug)]
struct Source {
    repo_id: String,
    content: Bytes,
    metadata: BTreeMap<String, String>,
}

type Values<'a> = (
    &'a str,
    CqlDate,
    [u8; 16],
    &'a [u8],
    &'a BTreeMap<String, String>,
    CqlTimestamp,
    CqlTimestamp,
    MaybeUnset<&'a str>,
    i64,
);

impl Table {
    /// Creates keyspace and table and prepares the insert.
    pub(super) async fn create(target: &Target) -> Result<Self> {
        let config = CqlConfig::default();
        let profile = ExecutionProfile::builder()
            .consistency(config.consistency.into())
            .request_timeout(Some(config.request_timeout.into()))
            .build();
        let session = SessionBuilder::new()
            .known_node(&target.cql_contact)
            .connection_timeout(config.connect_timeout.into())
            .pool_size(PoolSize::PerHost(NonZeroUsize::new(config.pool_size).unwrap_or(NonZeroUsize::MIN)))
            .default_execution_profile_handle(profile.into_handle());
        let session = Box::pin(session.build()).await.context("cannot connect to the store")?;

        let keyspace = format!("{}_limits_{}", cql::KEYSPACE, std::process::id());
        for statement in [cql::create_keyspace(&keyspace, target.replicas), cql::create_table(&keyspace)] {
            session.query_unpaged(statement, ()).await?;
        }
        session.await_schema_agreement().await?;
        let mut insert = session.prepare(cql::insert(&keyspace)).await?;
        insert.set_is_idempotent(true);
        let batches = (0..=config.batch_rows.min(BURST)).map(|rows| {
            let mut batch = Batch::new(BatchType::Unlogged);
            batch.set_is_idempotent(true);
            (0..rows).for_each(|_| batch.append_statement(insert.clone()));
            batch
        });
        let batches = batches.collect();
        Ok(Self { keyspace, writer: Arc::new(Writer { session, insert, batches, next: AtomicU64::new(0) }) })
    }

    /// Drops the keyspace.
    pub(super) async fn remove(&self) {
        let drop = format!("DROP KEYSPACE IF EXISTS {}", self.keyspace);
        let _ = self.writer.session.query_unpaged(drop, ()).await;
    }

    /// Inserts rows one by one.
    pub(super) async fn insert_singly(&self, pool: &Pool, work: Work) -> Result<()> {
        self.insert(pool, work, 1, SINGLE_IN_FLIGHT).await
    }

    /// Inserts rows in batches of one CQL partition. Rows come in bursts of one repository, so grouping them is cutting bursts.
    pub(super) async fn insert_batches(&self, pool: &Pool, work: Work) -> Result<()> {
        let config = CqlConfig::default();
        self.insert(pool, work, config.batch_rows, config.max_in_flight).await
    }

    /// Writes bursts in requests of at most `rows` rows, with `in_flight` requests under way over as many tasks as the processor has
    /// workers.
    async fn insert(&self, pool: &Pool, work: Work, rows: usize, in_flight: usize) -> Result<()> {
        let sources = Arc::new(pool.packets.iter().map(Source::of).collect::<Vec<_>>());
        let tasks = GroupConfig::default().workers;
        let tasks = (0..tasks).map(|_| {
            let (writer, sources, work) = (Arc::clone(&self.writer), Arc::clone(&sources), work.clone());
            let task =
                tokio::spawn(async move { writer.write(&sources, &work, rows, in_flight.div_ceil(tasks)).await });
            async { task.await? }
        });
        try_join_all(tasks).await.map(drop)
    }
}

impl Writer {
    async fn write(&self, sources: &[Source], work: &Work, rows: usize, in_flight: usize) -> Result<()> {
        let bursts = stream::iter(std::iter::from_fn(|| {
            work.goes_on().then(|| self.next.fetch_add(1, Ordering::Relaxed) * BURST as u64)
        }));
        let requests = bursts.flat_map(|first| {
            stream::iter((0..BURST).step_by(rows).map(move |from| (first, from..(from + rows).min(BURST))))
        });
        let writes = requests.map(|(first, range)| async move {
            let bound: Vec<_> = range
                .map(|at| {
                    let number = first + at as u64;
                    values(&sources[number as usize % sources.len()], number)
                })
                .collect();
            let write = || async {
                match bound.as_slice() {
                    [row] => self.session.execute_unpaged(&self.insert, row).await.map(drop),
                    rows => self.session.batch(&self.batches[rows.len()], rows).await.map(drop),
                }
            };
            // A store that is overrun times out now and then. What is written late lowers the rate and ends nothing.
            write.retry(ConstantBuilder::default().with_max_times(RETRIES)).await?;
            work.add(bound.len() as u64);
            anyhow::Ok(())
        });
        writes.buffer_unordered(in_flight).try_collect().await
    }
}

impl Source {
    fn of(packet: &coderelay_schemas::pb::CodePacket) -> Self {
        Self {
            repo_id: packet.repo_id.clone(),
            content: packet.content.clone(),
            metadata: packet.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }
}

/// The row number `number`, as the processor binds it.
fn values(source: &Source, number: u64) -> Values<'_> {
    let now = OffsetDateTime::now_utc();
    let milliseconds = (now.unix_timestamp_nanos() / 1_000_000) as i64;
    let day = now.unix_timestamp().div_euclid(86_400);
    // Spread like real ids: rows do not arrive in the order in which the store keeps them.
    let id = u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    (
        &source.repo_id,
        CqlDate((day + (1 << 31)) as u32),
        id.to_be_bytes(),
        &source.content,
        &source.metadata,
        CqlTimestamp(milliseconds),
        CqlTimestamp(milliseconds),
        MaybeUnset::Unset,
        milliseconds * 1000,
    )
}
