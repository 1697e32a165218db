//! What a demo run left behind in Kafka and CQL, read back from there.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use coderelay_runtime::kafka;
use coderelay_schemas::headers::PACKET_ID;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::PacketLimits;
use futures::TryStreamExt as _;
use prost::Message as _;
use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;

use crate::connect::{Connection, REQUEST_TIMEOUT, url};
use crate::delivery::Manifest;
use crate::packer::gunzip;
use crate::reader::{Offsets, Reader};
use crate::store::{Day, Store};

/// The packets of one pass: the second has the same.
pub(crate) type Sent<'a> = HashMap<PacketId, &'a Manifest>;

/// How things stood before anything was sent.
pub(crate) struct Before {
    packets: Offsets,
    deduped: Offsets,
    dlq: Offsets,
    /// The processor's count of duplicates, where its admin port answers.
    counted: Option<u64>,
}

impl Before {
    /// Notes where the topics end.
    pub(crate) async fn mark(connection: &Connection) -> anyhow::Result<Self> {
        let names = connection.topics();
        let counted = duplicates_counted(connection).await;
        tokio::task::block_in_place(|| {
            let ends = |topic: &str| Reader::open(connection, topic)?.ends();
            let (packets, deduped, dlq) = (ends(&names.packets)?, ends(&names.deduped)?, ends(&names.dlq)?);
            Ok(Self { packets, deduped, dlq, counted })
        })
    }
}

/// The packets of a run found in one topic.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// The sample's record, where it is and its value.
    pub(crate) sample: Option<(String, Vec<u8>)>,
}

/// The packets of a run found in the table.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) rows: u64,
    pub(crate) raw_bytes: u64,
    /// Rows whose unpacked content has the hash of their file.
    pub(crate) intact: u64,
}

/// Everything that was read back.
pub(crate) struct Findings {
    pub(crate) packets: Found,
    pub(crate) deduped: Found,
    pub(crate) dead: Found,
    pub(crate) stored: Stored,
    /// Duplicates by the processor's own count, where its admin port answers.
    pub(crate) counted: Option<u64>,
}

impl Findings {
    /// Reads everything that was written since `before`; `sample` is the packet whose record is kept.
    pub(crate) async fn gather(
        (repo_id, day): (&str, Day),
        sent: &Sent<'_>,
        sample: Option<PacketId>,
        before: &Before,
        store: &Store,
        connection: &Connection,
    ) -> anyhow::Result<Self> {
        let names = connection.topics();
        let (packets, deduped, dead) = tokio::task::block_in_place(|| {
            let read = |topic: &str, from: &Offsets| find(connection, topic, from, sent, sample);
            let packets = read(&names.packets, &before.packets)?;
            anyhow::Ok((packets, read(&names.deduped, &before.deduped)?, read(&names.dlq, &before.dlq)?))
        })?;
        let stored = rows(store, repo_id, day, sent).await?;
        let counted = match before.counted {
            Some(before) => Some(counted_since(before, packets.records.abs_diff(deduped.records), connection).await),
            None => None,
        };
        Ok(Self { packets, deduped, dead, stored, counted })
    }
}

/// Counts the run's packets in a topic from an offset to its end. Blocks.
fn find(
    connection: &Connection,
    topic: &str,
    from: &Offsets,
    sent: &Sent<'_>,
    sample: Option<PacketId>,
) -> anyhow::Result<Found> {
    let reader = Reader::open(connection, topic)?;
    let mut found = Found::default();
    reader.read(from, Some(&reader.ends()?), |message| {
        let id = packet_id(message).filter(|id| sent.contains_key(id));
        if let Some(id) = id {
            let value = message.payload().unwrap_or_default();
            found.records += 1;
            found.bytes += value.len() as u64;
            if sample == Some(id) {
                found.sample = Some((format!("{}@{}", message.partition(), message.offset()), value.to_vec()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// The record's packet id, from its header or else from its value.
fn packet_id(message: &BorrowedMessage<'_>) -> Option<PacketId> {
    let header =
        message.headers().and_then(|headers| kafka::headers(headers).flatten().find(|header| header.key == PACKET_ID));
    let text = header.and_then(|header| std::str::from_utf8(header.value?).ok()).map(str::to_owned);
    text.and_then(|text| text.parse().ok()).or_else(|| {
        let packet = CodePacket::decode(message.payload()?).ok()?;
        PacketId::from_slice(&packet.packet_id).ok()
    })
}

/// Counts the run's packets in the table, and checks every one's content.
async fn rows(store: &Store, repo_id: &str, day: Day, sent: &Sent<'_>) -> anyhow::Result<Stored> {
    let limit = PacketLimits::default().expanded_max.as_u64();
    let mut stored = Stored::default();
    let mut rows = store.day(repo_id, day).await?;
    while let Some(row) = rows.try_next().await? {
        let Some(manifest) = PacketId::from_slice(&row.packet_id).ok().and_then(|id| sent.get(&id)) else { continue };
        stored.rows += 1;
        if let Ok(content) = gunzip(&row.content, limit) {
            stored.raw_bytes += content.len() as u64;
            stored.intact += u64::from(blake3::hash(&content) == manifest.hash);
        }
    }
    Ok(stored)
}

/// How many duplicates the processor has counted since, given a moment: it counts after its commit has returned, which may
/// be later than the offsets are visible.
async fn counted_since(before: u64, expected: u64, connection: &Connection) -> u64 {
    let mut counted = 0;
    for _ in 0..20 {
        counted = duplicates_counted(connection).await.unwrap_or(before).saturating_sub(before);
        if counted >= expected {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    counted
}

/// How many duplicates the processor says it has dropped; none where its admin port does not answer.
async fn duplicates_counted(connection: &Connection) -> Option<u64> {
    let address = format!("{}/metrics", url(&connection.processor_admin).trim_end_matches('/'));
    let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).no_proxy().build().ok()?;
    let text = client.get(address).send().await.ok()?.error_for_status().ok()?.text().await.ok()?;
    Some(duplicates_in(&text))
}

/// The processor's counter of records by outcome, in Prometheus' text format; 0 before the first duplicate.
fn duplicates_in(metrics: &str) -> u64 {
    let samples = metrics.lines().filter(|line| line.starts_with("coderelay_processor_records_total{"));
    let duplicates = samples.filter(|line| line.contains("outcome=\"duplicate\""));
    let values = duplicates.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_among_the_metrics() {
        let metrics = "# TYPE coderelay_processor_records_total counter\n\
            coderelay_processor_records_total{outcome=\"accepted\"} 7\n\
            coderelay_processor_records_total{outcome=\"duplicate\",region=\"a\"} 3\n\
            coderelay_processor_records_total{outcome=\"duplicate\",region=\"b\"} 2\n";
        assert_eq!(duplicates_in(metrics), 5);
        assert_eq!(duplicates_in(""), 0);
    }
}
