//! Everything that is left when a world has come to rest: the topics, the table, what the data team read meanwhile.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use coderelay_schemas::cql;
use coderelay_schemas::ledger::{self, Entry, SOURCE_TOPIC};
use scylla::value::{CqlDate, CqlTimestamp};
use tokio::task::block_in_place;

use super::region::Region;
use super::topic::{self, Record};

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its column: days since 1970, and 2³¹.
    pub day: u32,
    /// Its column.
    pub content: Vec<u8>,
    /// Its column.
    pub metadata: BTreeMap<String, String>,
    /// Its column, in milliseconds since 1970.
    pub created_at: i64,
    /// Its column, likewise.
    pub ingested_at: i64,
    /// Its column.
    pub region: Option<String>,
    /// When it was written by CQL's reckoning, in microseconds since 1970.
    pub written: i64,
}

/// What a packet has one row by: repository and packet id. Its day is left out: a packet with rows under two days is stored twice.
pub type Key = (String, Vec<u8>);

/// An entry of the ledger.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The source topic that its record names.
    pub topic: Option<String>,
    /// It.
    pub entry: Entry,
    /// Its record's.
    pub offset: i64,
}

/// A topic that is processed.
#[derive(Debug)]
pub struct Source {
    /// Its name.
    pub topic: String,
    /// Its records by partition, in order.
    pub records: Vec<Vec<Record>>,
}

/// What is left in one region. Topics are by partition, in order.
#[derive(Debug)]
pub struct Evidence {
    /// The region's name, if there are several.
    pub region: Option<String>,
    /// `code.packets.v1`, and what was mirrored of the other regions'.
    pub sources: Vec<Source>,
    /// Whether old records may have expired.
    pub expires: bool,
    /// Whether what was mirrored has kept its order.
    pub mirrored_in_order: bool,
    /// `code.packets.deduped.v1`.
    pub deduped: Vec<Vec<Record>>,
    /// `code.packets.dlq.v1`.
    pub letters: Vec<Vec<Record>>,
    /// `code.packets.ledger.v1`.
    pub ledger: Vec<Vec<Remembered>>,
    /// Every row of the table; several of one packet, if there are.
    pub rows: Vec<(Key, Row)>,
    /// What was read from the duplicate-free topic while it was written.
    pub witnessed: Vec<Record>,
}

impl Evidence {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a transaction stays open, or the servers do not answer.
    pub async fn gather(region: &Region<'_>, witnessed: Vec<Record>) -> Result<Self> {
        let bootstrap = region.stack.bootstrap_servers();
        let read = |topic: &str| block_in_place(|| topic::read(&bootstrap, topic));
        let topics = &region.identity.topics;
        let ledger = read(&topics.ledger)?.iter().map(|records| entries(records)).collect::<Result<_>>()?;
        let sources = region.sources.iter().map(|topic| Ok(Source { topic: topic.clone(), records: read(topic)? }));
        Ok(Self {
            region: region.stack.region().map(str::to_owned),
            sources: sources.collect::<Result<_>>()?,
            expires: region.identity.expires,
            mirrored_in_order: region.identity.mirrored_in_order,
            deduped: read(&topics.deduped)?,
            letters: read(&topics.dlq)?,
            ledger,
            rows: rows(region).await?,
            witnessed,
        })
    }

    /// The region's own packets.
    ///
    /// # Panics
    /// If there is no source.
    pub fn own(&self) -> &Source {
        &self.sources[0]
    }
}

fn entries(records: &[Record]) -> Result<Vec<Remembered>> {
    let mut all = Vec::new();
    for record in records {
        let value = record.value.as_deref().unwrap_or_default();
        let topic = record.header(SOURCE_TOPIC).map(str::to_owned);
        let entries =
            ledger::decode(value).with_context(|| format!("ledger {}@{}", record.partition, record.offset))?;
        all.extend(entries.map(|entry| Remembered { topic: topic.clone(), entry, offset: record.offset }));
    }
    Ok(all)
}

async fn rows(region: &Region<'_>) -> Result<Vec<(Key, Row)>> {
    type Metadata = Option<BTreeMap<String, String>>;
    type Columns = (String, CqlDate, Vec<u8>, Vec<u8>, Metadata, CqlTimestamp, CqlTimestamp, Option<String>, i64);
    let keyspace = &region.identity.keyspace;
    // Anew: a session that has seen the store die waits before it tries again.
    let session = Box::pin(region.stack.cql_session()).await?;
    let all = (i64::MIN, i64::MAX);
    let result = session.query_unpaged(cql::scan_rows(keyspace), all).await?.into_rows_result()?;
    let rows = result.rows::<Columns>()?.map(|row| {
        let (repo_id, day, packet_id, content, metadata, created_at, ingested_at, region, written) = row?;
        let row = Row {
            day: day.0,
            content,
            metadata: metadata.unwrap_or_default(),
            created_at: created_at.0,
            ingested_at: ingested_at.0,
            region,
            written,
        };
        Ok(((repo_id, packet_id), row))
    });
    rows.collect()
}
