//! What a seed stands for: what is sent when, and what is done to whom. Nothing else decides it.

use std::fmt;
use std::time::Duration;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// Processors of a world. Each is an instance of its own in the group.
pub const PROCESSORS: usize = 2;
/// Brokers of a world: one may be lost, two may not.
pub const BROKERS: usize = 3;
/// Partitions of each topic.
pub const PARTITIONS: i32 = 6;
/// For how long packets are sent. Faults begin within it.
pub const TRAFFIC: Duration = Duration::from_secs(8);
/// Most packets of one request.
const REQUEST_MAX: u32 = 40;
/// Lives of a processor that something befalls at an edge, at most.
const MISHAPS_MAX: usize = 4;

/// Everything that a seed decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What each producer sends, in order.
    pub producers: Vec<Vec<Request>>,
    /// Written straight into the topic by somebody who does not know the contract.
    pub junk: Vec<Junk>,
    /// What befalls each processor at which edge, life after life; the last life has no end.
    pub mishaps: Vec<Vec<Mishap>>,
    /// How long a broker keeps transactions open: for less than the session of their processor lasts, or for longer.
    pub transaction_timeout: Duration,
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

/// What befalls a processor at a place of its own cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mishap {
    /// Where; one of the processor's failpoints.
    pub edge: &'static str,
    /// How often it passes there first.
    pub after: u32,
    /// For how long it stands still there, its heartbeats going on; else it dies there, as by `kill -9`.
    pub stall: Option<Duration>,
}

/// A fault at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Strike {
    /// Since the producers began.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Fault {
    /// `kill -9`; it comes back at once.
    Kill(Service),
    /// SIGTERM: it drains, leaves and comes back.
    Restart(Service),
    /// SIGSTOP, and SIGCONT after so long: beyond session and transaction time-out, somebody else has its work by then.
    Freeze(Service, Duration),
    /// Another process with the same instance, hence the same `transactional.id` and `group.instance.id`, for so long.
    Twin(usize, Duration),
    /// One more instance joins the group and leaves after so long.
    Join(Duration),
    /// `kill -9` of brokers, back after so long. With two of three gone, `min.insync.replicas` is not met.
    KillBrokers(Vec<usize>, Duration),
    /// A broker stands still for so long.
    FreezeBroker(usize, Duration),
    /// A broker leaves in good order and comes back: leaders and coordinators move.
    RollBroker(usize),
    /// The store is killed, back after so long.
    KillStore(Duration),
    /// The store stands still for so long: requests time out that may have been written.
    FreezeStore(Duration),
    /// A request to Kafka or its response is mistreated, so often after so many that were not.
    Request(Mistreatment),
}

/// A service of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Service {
    /// gRPC to Kafka.
    Ingest,
    /// The processor of this number.
    Processor(usize),
}

/// Which request is mistreated, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistreatment {
    /// Which.
    pub request: KafkaRequest,
    /// How.
    pub how: How,
    /// How many pass first.
    pub skip: u32,
    /// How many are hit.
    pub times: u32,
}

/// Requests on which exactly-once rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named as in Kafka's protocol")]
pub enum KafkaRequest {
    Produce,
    OffsetFetch,
    InitProducerId,
    AddPartitionsToTxn,
    AddOffsetsToTxn,
    EndTxn,
    TxnOffsetCommit,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum How {
    /// It reaches the broker so much later.
    Late(Duration),
    /// Its response reaches the client so much later.
    LateResponse(Duration),
    /// It reaches the broker; the connection is cut before the response.
    ResponseLost,
    /// It does not reach the broker; the connection is cut.
    Lost,
    /// The connection is cut, and the broker gets it so much later nevertheless.
    Stray(Duration),
}

impl Plan {
    /// The plan of `seed`. `edges` are the places at which a processor can crash.
    pub fn new(seed: u64, edges: &[&'static str]) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let producers = producers(&mut random);
        let junk = (0..random.random_range(0..12)).map(|_| Junk {
            at: within(&mut random, TRAFFIC),
            kind: pick(&mut random, &[JunkKind::Undecodable, JunkKind::Tombstone, JunkKind::WrongKey]),
        });
        let junk = junk.collect();
        let mishaps = (0..PROCESSORS).map(|_| mishaps(&mut random, edges)).collect();
        let transaction_timeout = pick(&mut random, &[5, 15].map(Duration::from_secs));
        let mut strikes: Vec<_> = (0..random.random_range(1..=5)).map(|_| strike(&mut random)).collect();
        strikes.sort_by_key(|strike| strike.at);
        Self { seed, producers, junk, mishaps, transaction_timeout, strikes }
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

fn mishaps(random: &mut ChaCha8Rng, edges: &[&'static str]) -> Vec<Mishap> {
    let mishap = |random: &mut ChaCha8Rng| {
        let edge = pick(random, edges);
        // A replay happens once in most lives, a publication in every record.
        let after = match edge {
            "during-replay" => 0,
            "after-publish" => random.random_range(0..300),
            _ => random.random_range(0..12),
        };
        let stall = random.random_bool(0.15).then(|| Duration::from_millis(random.random_range(500..9_000)));
        Mishap { edge, after, stall }
    };
    (0..random.random_range(0..=MISHAPS_MAX)).map(|_| mishap(random)).collect()
}

fn strike(random: &mut ChaCha8Rng) -> Strike {
    let processor = random.random_range(0..PROCESSORS);
    let service = pick(random, &[Service::Ingest, Service::Processor(processor)]);
    let ms = |random: &mut ChaCha8Rng, from, to| Duration::from_millis(random.random_range(from..to));
    let broker = random.random_range(0..BROKERS);
    let fault = match random.random_range(0..100) {
        0..12 => Fault::Kill(service),
        12..18 => Fault::Restart(service),
        18..26 => Fault::Freeze(service, ms(random, 200, 9_000)),
        26..32 => Fault::Twin(processor, ms(random, 500, 4_000)),
        32..38 => Fault::Join(ms(random, 1_000, 5_000)),
        38..42 => Fault::KillBrokers(vec![broker], ms(random, 0, 4_000)),
        42..44 => Fault::KillBrokers(some(random, 2), ms(random, 0, 3_000)),
        44..48 => Fault::FreezeBroker(broker, ms(random, 200, 8_000)),
        48..52 => Fault::RollBroker(broker),
        52..54 => Fault::KillStore(ms(random, 0, 2_000)),
        54..60 => Fault::FreezeStore(ms(random, 200, 6_000)),
        _ => Fault::Request(mistreatment(random)),
    };
    Strike { at: within(random, TRAFFIC), fault }
}

fn mistreatment(random: &mut ChaCha8Rng) -> Mistreatment {
    use KafkaRequest::{
        AddOffsetsToTxn, AddPartitionsToTxn, EndTxn, InitProducerId, OffsetFetch, Produce, TxnOffsetCommit,
    };
    // Ends of transactions most of all: without KIP-890 a stray one hits the next transaction.
    let requests = [
        EndTxn,
        EndTxn,
        EndTxn,
        EndTxn,
        TxnOffsetCommit,
        TxnOffsetCommit,
        Produce,
        Produce,
        AddPartitionsToTxn,
        AddOffsetsToTxn,
        InitProducerId,
        OffsetFetch,
    ];
    let delay = Duration::from_millis(random.random_range(50..8_000));
    let hows = [How::Late(delay), How::LateResponse(delay), How::ResponseLost, How::Lost, How::Stray(delay)];
    let request = pick(random, &requests);
    let how = pick(random, &hows);
    let skip = if matches!(request, InitProducerId | OffsetFetch) { 0 } else { random.random_range(0..20) };
    Mistreatment { request, how, skip, times: random.random_range(1..=3) }
}

fn within(random: &mut ChaCha8Rng, span: Duration) -> Duration {
    Duration::from_millis(random.random_range(0..span.as_millis() as u64))
}

fn pick<T: Copy>(random: &mut ChaCha8Rng, from: &[T]) -> T {
    match from.choose(random) {
        Some(picked) => *picked,
        None => unreachable!("there is something to choose from"),
    }
}

fn some(random: &mut ChaCha8Rng, count: usize) -> Vec<usize> {
    let mut all: Vec<_> = (0..BROKERS).collect();
    all.shuffle(random);
    all.truncate(count);
    all
}

impl Fault {
    /// Its name in tables.
    pub fn kind(&self) -> String {
        match self {
            Self::Kill(service) => format!("{} killed", service.kind()),
            Self::Restart(service) => format!("{} restarted", service.kind()),
            Self::Freeze(service, _) => format!("{} frozen", service.kind()),
            Self::Twin(..) => "two processors with one transactional.id".to_owned(),
            Self::Join(_) => "a processor joins and leaves".to_owned(),
            Self::KillBrokers(brokers, _) if brokers.len() == 1 => "broker killed, of three".to_owned(),
            Self::KillBrokers(..) => "two brokers of three killed".to_owned(),
            Self::FreezeBroker(..) => "broker frozen".to_owned(),
            Self::RollBroker(_) => "broker restarted".to_owned(),
            Self::KillStore(_) => "store killed".to_owned(),
            Self::FreezeStore(_) => "store frozen".to_owned(),
            Self::Request(Mistreatment { request, how, .. }) => format!("{request:?} {}", how.kind()),
        }
    }
}

impl Service {
    fn kind(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Processor(_) => "processor",
        }
    }
}

impl How {
    fn kind(self) -> &'static str {
        match self {
            Self::Late(_) => "late",
            Self::LateResponse(_) => "answered late",
            Self::ResponseLost => "response lost",
            Self::Lost => "lost",
            Self::Stray(_) => "stray",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ingest => f.write_str("ingest"),
            Self::Processor(number) => write!(f, "processor {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const EDGES: [&str; 3] = ["after-poll", "after-publish", "during-replay"];

    #[test]
    fn a_seed_always_stands_for_the_same_plan() {
        assert_eq!(Plan::new(7, &EDGES), Plan::new(7, &EDGES));
        assert_ne!(Plan::new(7, &EDGES), Plan::new(8, &EDGES));
    }

    #[test]
    fn plans_hold_every_kind_of_fault_and_of_request() {
        let plans: Vec<_> = (0..500).map(|seed| Plan::new(seed, &EDGES)).collect();
        let kinds: BTreeSet<_> =
            plans.iter().flat_map(|plan| &plan.strikes).map(|strike| strike.fault.kind()).collect();
        // Twelve of services and nodes, two of which concern either service; seven requests mistreated in five ways.
        assert_eq!(kinds.len(), 14 + 7 * 5, "{kinds:#?}");
        let requests: Vec<_> = plans.iter().flat_map(|plan| plan.producers.iter().flatten()).collect();
        for way in [Way::Stream, Way::Batch, Way::Deserted] {
            assert!(requests.iter().any(|request| request.way == way));
        }
        assert!(requests.iter().any(|request| request.packets.iter().any(|version| version.content > 0)));
        let edges: BTreeSet<_> =
            plans.iter().flat_map(|plan| plan.mishaps.iter().flatten()).map(|it| it.edge).collect();
        assert_eq!(edges, BTreeSet::from(EDGES));
    }
}
