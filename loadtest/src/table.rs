//! Reads the CQL table: all of it for the audit, single rows to see when they can be read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coderelay_schemas::cql;
use futures::stream::{self, StreamExt, TryStreamExt};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::response::PagingState;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlDate, CqlTimestamp};

use crate::audit::Audit;
use crate::corpus::{Corpus, Found, timestamp};

/// How long one query may take; a scan after a fault meets a store that is still catching up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Token ranges of a scan.
const RANGES: i128 = 32;
/// Of these, how many are read at the same time.
const CONCURRENCY: usize = 4;
/// What a page should hold, in bytes of content.
const PAGE_BYTES: usize = 2 << 20;
/// Most rows of a page.
const PAGE_ROWS: usize = 1000;
/// Shortest time between two looks for a row.
const INTERVAL: Duration = Duration::from_millis(1);
/// Longest time between two looks, as a part of the time it was looked for: the answer is late by no more than that.
const LATENESS: u32 = 20;

type Row<'a> = (
    &'a str,
    CqlDate,
    &'a [u8],
    &'a [u8],
    Option<HashMap<&'a str, &'a str>>,
    CqlTimestamp,
    CqlTimestamp,
    Option<&'a str>,
    i64,
);

/// The table of a keyspace.
#[derive(Debug)]
pub struct Table {
    session: Session,
    scan: PreparedStatement,
    select: PreparedStatement,
}

impl Table {
    /// Connects to the nodes `contact`, `host:port` with commas between them.
    ///
    /// # Errors
    /// When none of them answers or the keyspace lacks the table.
    pub async fn connect(contact: &str, keyspace: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(keyspace.chars().all(legal), "keyspace is {keyspace:?}; allowed: {}", cql::KEYSPACE_PATTERN);
        let profile = ExecutionProfile::builder().request_timeout(Some(REQUEST_TIMEOUT)).build();
        let session = SessionBuilder::new()
            .known_nodes(contact.split(',').map(str::trim))
            .default_execution_profile_handle(profile.into_handle())
            .build()
            .await
            .with_context(|| format!("cannot connect to {contact}"))?;
        let mut scan = session.prepare(cql::scan_rows(keyspace)).await.context("cannot read the table")?;
        let mut select = session.prepare(cql::select_packet(keyspace)).await.context("cannot read the table")?;
        scan.set_is_idempotent(true);
        select.set_is_idempotent(true);
        Ok(Self { session, scan, select })
    }

    /// Shows every row to the audit, with content and metadata. `progress` is told how many there were so far.
    ///
    /// # Errors
    /// When the store does not answer or the table is not what the schema says.
    pub async fn audit(&self, audit: &Audit, progress: impl Fn(u64)) -> Result<()> {
        let rows = AtomicU64::new(0);
        let (progress, rows) = (&progress, &rows);
        let scans = ranges().map(|(after, to)| async move {
            self.scan_range(audit, (after, to), |read| progress(rows.fetch_add(read, Relaxed) + read)).await
        });
        stream::iter(scans).buffer_unordered(CONCURRENCY).try_collect().await
    }

    async fn scan_range(&self, audit: &Audit, range: (i64, i64), progress: impl Fn(u64)) -> Result<()> {
        let (content, _) = audit.corpus().mean_bytes();
        let mut scan = self.scan.clone();
        scan.set_page_size((PAGE_BYTES / content.max(1)).clamp(1, PAGE_ROWS) as i32);
        let mut page = PagingState::start();
        loop {
            let (result, next) =
                self.session.execute_single_page(&scan, range, page).await.context("cannot scan the table")?;
            let result = result.into_rows_result()?;
            for row in result.rows::<Row<'_>>()? {
                let (repo_id, _, packet_id, content, metadata, created_at, ..) = row?;
                audit.stored(&Found {
                    repo_id,
                    packet_id,
                    content,
                    metadata: metadata.into_iter().flatten().collect(),
                    created_at: Some(timestamp(created_at.0)),
                });
            }
            progress(result.rows_num() as u64);
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Continue(next) => page = next,
                std::ops::ControlFlow::Break(()) => return Ok(()),
            }
        }
    }

    /// Looks for packet `n` under `day` again and again, less often the longer it takes, until its row is there; when it was, or `None` if it was
    /// not within `patience`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn readable(&self, corpus: &Corpus, n: u64, day: CqlDate, patience: Duration) -> Result<Option<Instant>> {
        let (repo_id, packet_id) = (corpus.repo_id(n), corpus.packet_id(n));
        let since = Instant::now();
        loop {
            let key = (repo_id.as_str(), day, packet_id.as_slice());
            let result = self.session.execute_unpaged(&self.select, key).await.context("cannot read a row")?;
            let now = Instant::now();
            if result.into_rows_result()?.rows_num() > 0 {
                return Ok(Some(now));
            }
            if now - since > patience {
                return Ok(None);
            }
            tokio::time::sleep(((now - since) / LATENESS).max(INTERVAL)).await;
        }
    }
}

/// The ring in equal parts, each `(after, up to and with)`.
fn ranges() -> impl Iterator<Item = (i64, i64)> {
    let (low, width) = (i128::from(i64::MIN), (1_i128 << 64) / RANGES);
    let bound = move |part: i128| (low + part * width).min(i128::from(i64::MAX)) as i64;
    (0..RANGES).map(move |part| (bound(part), bound(part + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_cover_the_ring_without_gaps() {
        let ranges: Vec<_> = ranges().collect();
        assert_eq!((ranges[0].0, ranges[RANGES as usize - 1].1), (i64::MIN, i64::MAX));
        assert!(ranges.windows(2).all(|pair| pair[0].1 == pair[1].0 && pair[0].0 < pair[0].1));
    }
}
