//! When packets can be read in CQL: a sample of them is looked for from their intended time on.

use std::sync::Arc;
use std::time::Duration;

use scylla::value::CqlDate;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::generator::Traffic;
use crate::recorder::Kind;
use crate::table::Table;

/// Between two packets of the sample.
const INTERVAL: Duration = Duration::from_millis(50);
/// Rows looked for at the same time. Where more are missing, the later ones are looked for late, and seem later than they are.
const CONCURRENT: usize = 64;
/// How long a row is looked for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks for a packet of the measured part each 50 ms until the plan ends or the load is stopped, and for the rows that are still
/// missing then. How many were never found. Once `settled` is cancelled, what was not acknowledged is no longer looked for.
pub async fn sample(traffic: Arc<Traffic>, table: Arc<Table>, epoch: Instant, settled: CancellationToken) -> u64 {
    let permits = Arc::new(Semaphore::new(CONCURRENT));
    let mut searches = JoinSet::new();
    let mut at = traffic.plan.measured_from();
    while let Some(request) = traffic.plan.request_at(at) {
        at += INTERVAL;
        let arrival = traffic.plan.arrival(request);
        let Some(due) = arrival.due.filter(|_| !arrival.repeat).map(|due| epoch + due) else { continue };
        tokio::select! {
            () = sleep_until(due) => {}
            () = traffic.stop.cancelled() => break,
        }
        let (traffic, table, permits, settled) = (traffic.clone(), table.clone(), permits.clone(), settled.clone());
        searches.spawn(async move {
            let n = arrival.packets.start;
            let search = async {
                let _permit = permits.acquire().await.ok()?;
                table.readable(&traffic.corpus, n, today(), PATIENCE).await.ok()?
            };
            let never_sent = async {
                settled.cancelled().await;
                if traffic.audits.is_acknowledged(n) {
                    std::future::pending::<()>().await;
                }
            };
            let found = tokio::select! {
                found = search => found,
                () = never_sent => return false,
            };
            if let Some(found) = found {
                let took = found.saturating_duration_since(due.into_std());
                traffic.recorder.record(Kind::Cql, arrival.phase, took, 1);
            }
            found.is_none()
        });
    }
    searches.join_all().await.into_iter().filter(|missing| *missing).count() as u64
}

/// The day that ingest gives packets of now.
fn today() -> CqlDate {
    let days = OffsetDateTime::now_utc().to_julian_day() - OffsetDateTime::UNIX_EPOCH.to_julian_day();
    CqlDate((1 << 31) + days.unsigned_abs())
}
