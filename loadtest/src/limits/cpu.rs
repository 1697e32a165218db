//! The two things that cost most CPU for a packet, each alone on one thread.

use std::hint::black_box;

use anyhow::{Result, anyhow};
use coderelay_schemas::ledger::Entry;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::CodePacket;
use coderelay_schemas::validate::{PacketLimits, check_content};

use super::pool::{BURST, Pool};
use super::span::Work;

/// Verifies contents as ingest does.
pub(super) async fn verify(pool: &Pool, work: Work) -> Result<()> {
    let limits = PacketLimits::default();
    on_one_thread(pool, work, move |packet| {
        black_box(check_content(&packet.content, &limits))?;
        Ok(())
    })
    .await
}

/// Derives the packet's id as ingest does, and its ledger entry as the processor does.
pub(super) async fn hash(pool: &Pool, work: Work) -> Result<()> {
    on_one_thread(pool, work, |packet| {
        let id = PacketId::derive(&packet.repo_id, &packet.content, &packet.metadata);
        black_box(Entry::new(&packet.repo_id, &id, &packet.content));
        Ok(())
    })
    .await
}

async fn on_one_thread(
    pool: &Pool,
    work: Work,
    mut each: impl FnMut(&CodePacket) -> Result<()> + Send + 'static,
) -> Result<()> {
    let packets = pool.packets.clone();
    let thread = tokio::task::spawn_blocking(move || {
        for burst in packets.chunks(BURST).cycle() {
            if !work.goes_on() {
                break;
            }
            burst.iter().try_for_each(&mut each)?;
            work.add(burst.len() as u64);
        }
        Ok(())
    });
    thread.await.map_err(|error| anyhow!(error))?
}
