//! What a seed stands for: what is sent when, and what is done to whom. Nothing else decides it.

use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::fault::{Fault, Strike};
use super::mishap::Mishap;

/// One seed of so many is played in two regions.
const OF_TWO_REGIONS: u64 = 5;
/// Processors of a world, all of one group or one in each region.
pub const PROCESSORS: usize = 2;
/// Partitions of each topic.
pub const PARTITIONS: i32 = 6;
/// For how long packets are sent. Faults begin within it.
pub const TRAFFIC: Duration = Duration::from_secs(8);
/// Most packets of one request.
const REQUEST_MAX: u32 = 40;
/// Seconds by which clocks may differ from the true time: the replay of the ledger allows for ten minutes.
const CLOCK_SKEW: i64 = 540;
/// How long transactions last at most: less than the session of their processor, or more.
const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(15);
/// Room that several producers exceed: the least that can be configured.
const ROOM: u32 = 100;

/// Everything that a seed decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Regions, each with brokers and a store of its own, that mirror each other; or one.
    pub regions: usize,
    /// What each producer sends, in order.
    pub producers: Vec<Vec<Request>>,
    /// Written straight into the topic by somebody who does not know the contract.
    pub junk: Vec<Junk>,
    /// What befalls each processor at which edge, life after life; the last life has no end.
    pub mishaps: Vec<Vec<Mishap>>,
    /// How long a broker keeps transactions open: for less than the session of their processor lasts, or for longer.
    pub transaction_timeout: Duration,
    /// Packets that ingest takes at once, if there is less room than producers need: the rest is refused, to be sent again.
    pub room: Option<u32>,
    /// How long after the producers began the store has a schema, if it has none from the start.
    pub schema_at: Option<Duration>,
    /// How long after the producers began what has expired is replayed for the first time, if old records expire while many wait.
    pub replay_at: Option<Duration>,
    /// By how many seconds a service's clock is ahead in its first life, its second and so on, round and round.
    pub clocks: Vec<i64>,
    /// Everything else that is done, in order of its time.
    pub strikes: Vec<Strike>,
}

/// A request of a producer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    /// When, at the earliest. A producer waits for its answers first.
    pub at: Duration,
    /// How.
    pub way: Way,
    /// What.
    pub packets: Vec<Version>,
}

/// How packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Way {
    /// One request of a stream for each.
    Stream,
    /// In one batch.
    Batch,
    /// In a batch whose client goes before it is answered, and comes again.
    Deserted,
}

/// A packet's id, and which of the contents that were ever sent under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// The packet's number.
    pub packet: u32,
    /// 0 is the content it was made with; others misuse its id.
    pub content: u8,
}

/// A record that is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Junk {
    /// When.
    pub at: Duration,
    /// What is wrong with it.
    pub kind: JunkKind,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum JunkKind {
    /// Its value is no packet.
    Undecodable,
    /// It has no value.
    Tombstone,
    /// Its key is not its packet's repository.
    WrongKey,
}

/// Regions in which `seed` is played.
pub fn regions(seed: u64) -> usize {
    if seed.is_multiple_of(OF_TWO_REGIONS) { 2 } else { 1 }
}

/// Brokers of a world: of three in one region one may be lost, of one in each none.
pub fn brokers(regions: usize) -> usize {
    if regions == 1 { 3 } else { regions }
}

impl Plan {
    /// The plan of `seed`. `edges` are the places at which a processor can crash.
    pub fn new(seed: u64, edges: &[&'static str]) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let regions = regions(seed);
        let producers = producers(&mut random);
        let junk = (0..random.random_range(0..12)).map(|_| Junk {
            at: within(&mut random, TRAFFIC),
            kind: pick(&mut random, &[JunkKind::Undecodable, JunkKind::Tombstone, JunkKind::WrongKey]),
        });
        let junk = junk.collect();
        // Who succeeds one that goes for good is left alone: a crash would make anew what its memory lacks. In a region that has no other
        // nobody would.
        let goes = random.random_bool(0.25) && regions < PROCESSORS;
        let mishaps = if goes { Mishap::draw_last(&mut random) } else { Mishap::draw(&mut random, edges) };
        let transaction_timeout = if goes { LONG } else { pick(&mut random, &[SHORT, LONG]) };
        let room = random.random_bool(0.2).then_some(ROOM);
        let late = Duration::from_millis(random.random_range(500..5_000));
        let schema_at = random.random_bool(0.1).then_some(late);
        let clocks = clocks(&mut random);
        let mut strikes: Vec<_> = (0..if goes { 1 } else { random.random_range(1..=5) })
            .map(|_| Strike::draw(&mut random, regions))
            .collect();
        strikes.sort_by_key(|strike| strike.at);
        // In one region, and where clocks are right: what expires between its row and its commit keeps its row, and the time of that.
        let replay_at =
            (random.random_bool(0.3) && regions == 1 && clocks.len() == 1).then(|| within(&mut random, TRAFFIC));
        Self {
            seed,
            regions,
            producers,
            junk,
            mishaps,
            transaction_timeout,
            room,
            schema_at,
            replay_at,
            clocks,
            strikes,
        }
    }

    /// Whether a task of the mirror is to fail.
    pub fn fails_mirror_task(&self) -> bool {
        self.strikes.iter().any(|strike| matches!(strike.fault, Fault::FailMirrorTask(..)))
    }

    /// Different packets that are sent.
    pub fn packets(&self) -> u32 {
        let sent = self.producers.iter().flatten().flat_map(|request| &request.packets);
        sent.map(|version| version.packet + 1).max().unwrap_or(0)
    }
}

fn producers(random: &mut ChaCha8Rng) -> Vec<Vec<Request>> {
    let (count, gap) = (random.random_range(2..=4), Duration::from_millis(random.random_range(30..150)));
    let (repeated, misused) = (random.random_range(0.0..0.5), random.random_range(0.0..0.1));
    let mut next = 0;
    let mut producers = vec![Vec::new(); count];
    let mut at = Duration::ZERO;
    while at < TRAFFIC {
        let size = random.random_range(1..=REQUEST_MAX);
        let packets = (0..size).map(|_| {
            if next == 0 || !random.random_bool(repeated) {
                next += 1;
                return Version { packet: next - 1, content: 0 };
            }
            let content = if random.random_bool(misused) { random.random_range(1..=2) } else { 0 };
            // Mostly of late: what a retry brings.
            let reach = if random.random_bool(0.7) { next.min(100) } else { next };
            Version { packet: next - 1 - random.random_range(0..reach), content }
        });
        let packets = packets.collect();
        let way = pick(random, &[Way::Stream, Way::Batch, Way::Batch, Way::Deserted]);
        producers[random.random_range(0..count)].push(Request { at, way, packets });
        at += gap.mul_f64(random.random_range(0.0..2.0));
    }
    producers
}

fn clocks(random: &mut ChaCha8Rng) -> Vec<i64> {
    if random.random_bool(0.7) {
        return vec![0];
    }
    (0..3).map(|_| random.random_range(-CLOCK_SKEW..=CLOCK_SKEW)).collect()
}

pub(super) fn within(random: &mut ChaCha8Rng, span: Duration) -> Duration {
    Duration::from_millis(random.random_range(0..span.as_millis() as u64))
}

pub(super) fn pick<T: Copy>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    match from.choose(random) {
        Some(picked) => *picked,
        None => unreachable!("there is something to choose from"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::chaos::mishap::What;

    const EDGES: [&str; 3] = ["after-poll", "after-publish", "during-replay"];

    #[test]
    fn a_seed_always_stands_for_the_same_plan() {
        assert_eq!(Plan::new(7, &EDGES), Plan::new(7, &EDGES));
        assert_ne!(Plan::new(7, &EDGES), Plan::new(8, &EDGES));
    }

    #[test]
    fn plans_hold_every_kind_of_fault_and_of_request() {
        let plans: Vec<_> = (0..2_000).map(|seed| Plan::new(seed, &EDGES)).collect();
        let kinds = |regions: usize| -> BTreeSet<_> {
            let plans = plans.iter().filter(|plan| plan.regions == regions);
            plans.flat_map(|plan| &plan.strikes).map(|strike| strike.fault.kind()).collect()
        };
        // Fifteen of services and nodes, three of which concern either service; seven requests mistreated in five ways.
        assert_eq!(kinds(1).len(), 18 + 7 * 5, "{:#?}", kinds(1));
        // The same, one request, and five of mirror, link and region.
        assert_eq!(kinds(2).len(), 18 + 5 + 5, "{:#?}", kinds(2));
        let requests: Vec<_> = plans.iter().flat_map(|plan| plan.producers.iter().flatten()).collect();
        for way in [Way::Stream, Way::Batch, Way::Deserted] {
            assert!(requests.iter().any(|request| request.way == way));
        }
        assert!(requests.iter().any(|request| request.packets.iter().any(|version| version.content > 0)));
        let mishaps: Vec<_> = plans.iter().flat_map(|plan| plan.mishaps.iter().flatten()).collect();
        let crashes = mishaps.iter().filter(|mishap| mishap.what == What::Crash);
        assert_eq!(crashes.map(|mishap| mishap.edge).collect::<BTreeSet<_>>(), BTreeSet::from(EDGES));
        assert!(mishaps.iter().any(|mishap| matches!(mishap.what, What::Stall(_))));
        assert!(mishaps.iter().any(|mishap| matches!(mishap.what, What::Freeze(_))));
        let gone = |plan: &&Plan| plan.mishaps.iter().flatten().any(Mishap::is_last);
        let gone: Vec<_> = plans.iter().filter(gone).collect();
        assert!(!gone.is_empty() && gone.iter().all(|plan| plan.regions == 1), "somebody takes its place");
        assert!(plans.iter().any(|plan| plan.room.is_some()));
        assert!(plans.iter().any(|plan| plan.clocks.len() > 1));
        assert!(plans.iter().any(|plan| plan.schema_at.is_some()));
        let expire = plans.iter().filter(|plan| plan.replay_at.is_some());
        assert!(expire.clone().count() > 0 && expire.clone().all(|plan| plan.regions == 1));
    }
}
