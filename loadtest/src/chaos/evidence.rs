//! Everything that is left when a world has come to rest: the topics, the table, what the data team read meanwhile.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use coderelay_schemas::cql;
use coderelay_schemas::ledger::{self, Entry, SOURCE_TOPIC};
use scylla::value::{CqlDate, CqlTimestamp};
use tokio::task::block_in_place;

use super::topic::{self, Record};
use super::world::World;

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its column.
    pub content: Vec<u8>,
    /// Its column.
    pub metadata: BTreeMap<String, String>,
    /// Its column, in milliseconds since 1970.
    pub created_at: i64,
    /// When it was written by CQL's reckoning, in microseconds since 1970.
    pub written: i64,
}

/// What a row is found by: repository and packet id. Its day is left out: a packet with rows under two days is stored twice.
pub type Key = (String, Vec<u8>);

/// What is left. Topics are by partition, in order.
#[derive(Debug)]
pub struct Evidence {
    /// `code.packets.v1`.
    pub source: Vec<Vec<Record>>,
    /// `code.packets.deduped.v1`.
    pub deduped: Vec<Vec<Record>>,
    /// `code.packets.dlq.v1`.
    pub letters: Vec<Vec<Record>>,
    /// `code.packets.ledger.v1`, with the source topic that each entry names.
    pub ledger: Vec<Vec<(Option<String>, Entry)>>,
    /// Every row of the table; several of one packet, if there are.
    pub rows: Vec<(Key, Row)>,
    /// What was read from the duplicate-free topic while it was written.
    pub witnessed: Vec<Record>,
    /// The topic that is processed.
    pub topic: String,
}

impl Evidence {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a transaction stays open, or the servers do not answer.
    pub async fn gather(world: &World<'_>, witnessed: Vec<Record>) -> Result<Self> {
        let bootstrap = world.stack.bootstrap_servers();
        let read = |topic: &str| block_in_place(|| topic::read(&bootstrap, topic));
        let topics = &world.topics;
        let ledger = read(&topics.ledger)?.iter().map(|records| entries(records)).collect::<Result<_>>()?;
        Ok(Self {
            source: read(&topics.packets)?,
            deduped: read(&topics.deduped)?,
            letters: read(&topics.dlq)?,
            ledger,
            rows: rows(world).await?,
            witnessed,
            topic: topics.packets.clone(),
        })
    }
}

fn entries(records: &[Record]) -> Result<Vec<(Option<String>, Entry)>> {
    let mut all = Vec::new();
    for record in records {
        let value = record.value.as_deref().unwrap_or_default();
        let topic = record.header(SOURCE_TOPIC).map(str::to_owned);
        let entries =
            ledger::decode(value).with_context(|| format!("ledger {}@{}", record.partition, record.offset))?;
        all.extend(entries.map(|entry| (topic.clone(), entry)));
    }
    Ok(all)
}

async fn rows(world: &World<'_>) -> Result<Vec<(Key, Row)>> {
    type Written = (String, CqlDate, Vec<u8>, i64);
    type Full = (String, CqlDate, Vec<u8>, Vec<u8>, Option<BTreeMap<String, String>>, CqlTimestamp);
    // Anew: a session that has seen the store die waits before it tries again.
    let session = Box::pin(world.stack.cql_session()).await?;
    let result = session.query_unpaged(cql::scan_ids(&world.keyspace), ()).await?.into_rows_result()?;
    let mut written = BTreeMap::new();
    for row in result.rows::<Written>()? {
        let (repo_id, day, packet_id, time) = row?;
        written.insert((repo_id, day.0, packet_id), time);
    }
    let all = (i64::MIN, i64::MAX);
    let result = session.query_unpaged(cql::scan_rows(&world.keyspace), all).await?.into_rows_result()?;
    let rows = result.rows::<Full>()?.map(|row| {
        let (repo_id, day, packet_id, content, metadata, created_at) = row?;
        let key = (repo_id, day.0, packet_id);
        let written = written.get(&key).copied().context("a row came while the table was read")?;
        let row = Row { content, metadata: metadata.unwrap_or_default(), created_at: created_at.0, written };
        Ok(((key.0, key.2), row))
    });
    rows.collect()
}
