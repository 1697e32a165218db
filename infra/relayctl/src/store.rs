//! The packets table, read.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::Context as _;
use coderelay_schemas::cql;
use coderelay_schemas::packet_id::PacketId;
use futures::{Stream, TryStreamExt as _};
use scylla::DeserializeRow;
use scylla::client::session::Session;
use scylla::statement::unprepared::Statement;
use scylla::value::{CqlDate, CqlTimestamp};
use time::format_description::BorrowedFormatItem;
use time::{Date, OffsetDateTime};

use crate::connect::Connection;

/// Rows of a page: a page of the largest packets stays within memory, many small ones within few round trips.
const PAGE_ROWS: i32 = 100;

const FORMAT: &[BorrowedFormatItem<'static>] = time::macros::format_description!("[year]-[month]-[day]");

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// A UTC day, `2026-01-31`: the second half of the table's partition key. Counted from 1970-01-01: what others write into the topic may lie
/// in any year.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Day(i64);

impl Day {
    /// The day `time` is in.
    pub(crate) fn of(time: SystemTime) -> Self {
        Self::from(OffsetDateTime::from(time).date())
    }

    /// The day that so many milliseconds since the epoch are in.
    pub(crate) fn of_millis(millis: i64) -> Self {
        Self(millis.div_euclid(DAY_MS))
    }

    /// CQL counts days from 1970-01-01 at 2^31.
    fn cql(self) -> CqlDate {
        CqlDate((self.0 + (1 << 31)) as u32)
    }
}

impl From<Date> for Day {
    fn from(date: Date) -> Self {
        Self((date.to_julian_day() - OffsetDateTime::UNIX_EPOCH.date().to_julian_day()).into())
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let julian = self.0 + i64::from(OffsetDateTime::UNIX_EPOCH.date().to_julian_day());
        match i32::try_from(julian).ok().and_then(|julian| Date::from_julian_day(julian).ok()) {
            Some(date) => write!(f, "{date}"),
            None => write!(f, "day {} since 1970", self.0),
        }
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "today" => Ok(Self::of(SystemTime::now())),
            "yesterday" => Ok(Self(Self::of(SystemTime::now()).0 - 1)),
            _ => Date::parse(text, FORMAT)
                .map(Self::from)
                .map_err(|_| "expected a UTC day such as 2026-01-31".to_owned()),
        }
    }
}

/// One row, in the order of the statements' columns.
#[derive(Debug, DeserializeRow)]
pub(crate) struct StoredPacket {
    pub(crate) repo_id: String,
    #[allow(dead_code)] // part of the row; the reader asked for that day
    pub(crate) day: CqlDate,
    pub(crate) packet_id: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    pub(crate) created_at: Option<CqlTimestamp>,
    pub(crate) ingested_at: Option<CqlTimestamp>,
    pub(crate) region: Option<String>,
}

/// A session and the keyspace it reads.
pub(crate) struct Store {
    session: Session,
    keyspace: String,
}

impl Store {
    pub(crate) async fn connect(connection: &Connection) -> anyhow::Result<Self> {
        Ok(Self { session: connection.cql().await?, keyspace: connection.keyspace.clone() })
    }

    /// One packet, or `None`.
    pub(crate) async fn packet(&self, repo: &str, day: Day, id: PacketId) -> anyhow::Result<Option<StoredPacket>> {
        let statement =
            self.session.prepare(cql::select_packet(&self.keyspace)).await.with_context(|| self.reading())?;
        let result = self.session.execute_unpaged(&statement, (repo, day.cql(), id.as_bytes().to_vec())).await?;
        Ok(result.into_rows_result()?.maybe_first_row()?)
    }

    /// A repository's day, page by page, in the order of packet ids.
    pub(crate) async fn day(
        &self,
        repo: &str,
        day: Day,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<StoredPacket>> + Unpin + use<>> {
        let statement = Statement::new(cql::select_day(&self.keyspace)).with_page_size(PAGE_ROWS);
        let statement = self.session.prepare(statement).await.with_context(|| self.reading())?;
        let rows = self.session.execute_iter(statement, (repo, day.cql())).await?;
        Ok(rows.rows_stream::<StoredPacket>()?.map_err(anyhow::Error::from))
    }

    fn reading(&self) -> String {
        format!("reading {}.{}", self.keyspace, cql::TABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_the_middle() {
        let epoch: Day = "1970-01-01".parse().unwrap();
        assert_eq!(epoch.cql(), CqlDate(1 << 31));
        assert_eq!([epoch, epoch], [Day::of_millis(0), Day::of_millis(DAY_MS - 1)]);
        let later: Day = "2026-01-31".parse().unwrap();
        assert_eq!(later.cql(), CqlDate((1 << 31) + 20_484));
        assert_eq!(later.to_string(), "2026-01-31");
        for millis in [i64::MIN, i64::MAX] {
            assert!(Day::of_millis(millis).to_string().ends_with(" since 1970"));
        }
        assert!("31.1.2026".parse::<Day>().is_err());
    }
}
