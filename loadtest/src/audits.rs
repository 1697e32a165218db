//! One audit for each region, what crosses from one to another, and how long it takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use coderelay_schemas::pb::Committed;

use crate::audit::Audit;
use crate::summary;

/// How exactly the time of an acknowledgement is kept.
const TICK: Duration = Duration::from_micros(100);
/// Bits for the region that a packet was sent to; the rest hold ticks: seven hours, then 0.1 ms before the end of that for ever.
const REGION_BITS: u32 = 4;
const REGION: u32 = (1 << REGION_BITS) - 1;
const LATEST: u32 = u32::MAX >> REGION_BITS;

/// A packet's first record in a region's deduped topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// In the region that it was sent to.
    Home,
    /// In another, so long after it was acknowledged; at once, if it was there before.
    Mirrored(Duration),
}

/// The audits of all regions. With one region only, it takes no more than that one's.
#[derive(Debug)]
pub struct Audits {
    each: Vec<Arc<Audit>>,
    /// Of each packet the region that it was sent to last, and when that was acknowledged first, if it was. Empty with one region.
    homes: Box<[AtomicU32]>,
    since: Instant,
}

impl Audits {
    /// One for each region; all are of `packets` packets.
    ///
    /// # Panics
    /// If there is none, or more than 16.
    pub fn new(audits: Vec<Arc<Audit>>, packets: u64) -> Self {
        assert!((1..=1 << REGION_BITS).contains(&audits.len()), "{} regions", audits.len());
        let homes = if audits.len() > 1 { packets } else { 0 };
        Self { each: audits, homes: (0..homes).map(|_| AtomicU32::new(0)).collect(), since: Instant::now() }
    }

    /// Each region's.
    pub fn each(&self) -> &[Arc<Audit>] {
        &self.each
    }

    /// As [`Audit::sent`], on a stream to `region`.
    ///
    /// # Panics
    /// If there is no such packet.
    pub fn sent(&self, n: u64, stream: u16, region: usize) {
        for audit in &self.each {
            audit.sent(n, stream);
        }
        if let Some(home) = self.homes.get(n as usize) {
            // One that was acknowledged keeps its home.
            let unacknowledged = |home: u32| (home >> REGION_BITS == 0).then_some(region as u32);
            let _ = home.fetch_update(Relaxed, Relaxed, unacknowledged);
        }
    }

    /// As [`Audit::acknowledged`], by `region`.
    ///
    /// # Panics
    /// If there is no such packet.
    pub fn acknowledged(&self, n: u64, committed: &Committed, region: usize) {
        if let Some(home) = self.homes.get(n as usize) {
            let ticks = (self.since.elapsed().as_micros() / TICK.as_micros()).clamp(1, LATEST.into()) as u32;
            let first = |home: u32| (home >> REGION_BITS == 0).then_some(ticks << REGION_BITS | region as u32);
            let _ = home.fetch_update(Relaxed, Relaxed, first);
        }
        for audit in &self.each {
            audit.acknowledged(n, committed);
        }
    }

    /// Whether it was acknowledged.
    ///
    /// # Panics
    /// If there is no such packet.
    pub fn is_acknowledged(&self, n: u64) -> bool {
        self.each[0].is_acknowledged(n)
    }

    /// What it is that packet `n` came into the deduped topic of `region` at `at`.
    pub fn arrival(&self, n: u64, region: usize, at: Instant) -> Arrival {
        let Some(home) = self.homes.get(n as usize).map(|home| home.load(Relaxed)) else { return Arrival::Home };
        let acknowledged = self.since + TICK * (home >> REGION_BITS);
        match (home & REGION, home >> REGION_BITS) {
            (home, _) if home == region as u32 => Arrival::Home,
            (_, 0) => Arrival::Mirrored(Duration::ZERO),
            _ => Arrival::Mirrored(at.saturating_duration_since(acknowledged)),
        }
    }

    /// Packets that `region` has acknowledged and no other has published so far: what would be lost if `region` did not come back.
    pub fn exposed(&self, region: usize) -> u64 {
        let exposed = |n: &usize| {
            let home = self.homes[*n].load(Relaxed);
            let others = || self.each.iter().enumerate().filter(|(other, _)| *other != region);
            home & REGION == region as u32
                && home >> REGION_BITS > 0
                && !others().any(|(_, audit)| audit.is_published(*n as u64))
        };
        (0..self.homes.len()).filter(exposed).count() as u64
    }

    /// Packets that were acknowledged and that some region has not published yet, each counted once for each such region.
    pub fn unpublished(&self) -> u64 {
        self.each.iter().map(|audit| audit.unpublished()).sum()
    }

    /// All of them together, the findings with the region's name before them; and each by its region's name, where there are several.
    pub fn finish(&self, names: &[String]) -> (summary::Audit, BTreeMap<String, summary::Audit>) {
        let each: Vec<_> = self.each.iter().map(|audit| audit.finish()).collect();
        if let [only] = each.as_slice() {
            return (only.clone(), BTreeMap::new());
        }
        let each: BTreeMap<_, _> = names.iter().cloned().zip(each).collect();
        let mut all = summary::Audit::default();
        for (name, audit) in &each {
            all.acknowledged = audit.acknowledged;
            all.lost += audit.lost;
            all.duplicated += audit.duplicated;
            all.altered += audit.altered;
            all.reordered += audit.reordered;
            all.unsent += audit.unsent;
            all.unacknowledged += audit.unacknowledged;
            all.bytes_per_packet += audit.bytes_per_packet;
            all.findings.extend(
                audit
                    .findings
                    .iter()
                    .cloned()
                    .map(|finding| summary::Finding { detail: format!("{name}: {}", finding.detail), ..finding }),
            );
        }
        all.bytes_per_packet += size_of::<AtomicU32>() as u64;
        (all, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Place;
    use crate::corpus::{Corpus, CorpusSpec, Found};

    fn publish(audit: &Audit, n: u64) {
        let packet = audit.corpus().packet(n);
        let at = Place { partition: 0, offset: n as i64 };
        audit.published(Some(packet.repo_id.as_bytes()), &Found::from(&packet), at);
    }

    fn audits(regions: usize) -> Audits {
        let corpus = Arc::new(Corpus::new(CorpusSpec { size: 256, ..CorpusSpec::default() }).unwrap());
        let audits = (0..regions).map(|_| Arc::new(Audit::new(corpus.clone(), 10).without_table())).collect();
        Audits::new(audits, 10)
    }

    #[test]
    fn what_only_the_lost_region_has_is_counted() {
        let audits = audits(2);
        for n in 0..4 {
            audits.sent(n, 0, (n % 2) as usize);
            audits.acknowledged(n, &Committed::default(), (n % 2) as usize);
        }
        audits.sent(4, 0, 0);
        assert_eq!((audits.exposed(0), audits.exposed(1), audits.unpublished()), (2, 2, 8));
        publish(&audits.each()[0], 0);
        assert_eq!(audits.exposed(0), 2, "it has it itself");
        publish(&audits.each()[1], 0);
        assert_eq!((audits.exposed(0), audits.exposed(1), audits.unpublished()), (1, 2, 6));
    }

    #[test]
    fn an_arrival_elsewhere_counts_from_the_acknowledgement() {
        let audits = audits(2);
        audits.sent(0, 0, 1);
        let arrivals = || [0, 1].map(|region| audits.arrival(0, region, Instant::now()));
        assert_eq!(arrivals(), [Arrival::Mirrored(Duration::ZERO), Arrival::Home]);
        std::thread::sleep(Duration::from_millis(20));
        audits.acknowledged(0, &Committed::default(), 1);
        audits.sent(0, 0, 0);
        std::thread::sleep(Duration::from_millis(20));
        let [Arrival::Mirrored(took), Arrival::Home] = arrivals() else { panic!("{:?}", arrivals()) };
        assert!(took >= Duration::from_millis(19) && took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn findings_name_their_region_and_counts_are_added() {
        let audits = audits(2);
        audits.sent(0, 0, 0);
        audits.acknowledged(0, &Committed::default(), 0);
        publish(&audits.each()[0], 0);
        let (all, each) = audits.finish(&["us-east".to_owned(), "eu-west".to_owned()]);
        assert_eq!((all.acknowledged, all.lost, each["us-east"].lost, each["eu-west"].lost), (1, 1, 0, 1));
        assert!(all.findings[0].detail.starts_with("eu-west: "), "{:?}", all.findings);
    }

    #[test]
    fn one_region_is_always_home_and_costs_nothing() {
        let audits = audits(1);
        audits.sent(0, 0, 0);
        audits.acknowledged(0, &Committed::default(), 0);
        assert_eq!(audits.arrival(0, 0, Instant::now()), Arrival::Home);
        let (all, each) = audits.finish(&[]);
        assert_eq!((all.bytes_per_packet, all.lost, each.len()), (28, 1, 0));
    }
}
