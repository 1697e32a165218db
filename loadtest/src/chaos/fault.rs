//! What is done to a world from outside, each at its time, and to whom.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::plan::{PROCESSORS, TRAFFIC, brokers, pick, within};

/// A fault at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Strike {
    /// Since the producers began.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// What is done. Brokers are counted through all regions.
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
    /// One more instance joins a region's group and leaves after so long.
    Join(usize, Duration),
    /// `kill -9` of brokers, back after so long. With two of three gone, `min.insync.replicas` is not met.
    KillBrokers(Vec<usize>, Duration),
    /// A broker stands still for so long.
    FreezeBroker(usize, Duration),
    /// A broker leaves in good order and comes back: leaders and coordinators move.
    RollBroker(usize),
    /// A broker's disk is full; after so long it is started again, with room.
    FillBrokerDisk(usize, Duration),
    /// A region's store is killed, back after so long.
    KillStore(usize, Duration),
    /// A region's store stands still for so long: requests time out that may have been written.
    FreezeStore(usize, Duration),
    /// A region's store stands still four fifths of the time for so long.
    SlowStore(usize, Duration),
    /// A region's store answers every read and write, for so long, that it may not.
    RefuseStore(usize, Duration),
    /// A region's store has its disk full; after so long it is started again, with room.
    FillStoreDisk(usize, Duration),
    /// A request to Kafka or its response is mistreated, so often after so many that were not.
    Request(Mistreatment),
    /// `kill -9` of `MirrorMaker`; its supervisor starts it again.
    KillMirror,
    /// `MirrorMaker` stands still for so long.
    FreezeMirror(Duration),
    /// A region's brokers refuse for so long what the mirror writes: its task fails, and its supervisor starts it again.
    FailMirrorTask(usize, Duration),
    /// Nothing comes through between the regions for so long.
    CutLink(Duration),
    /// `kill -9` of all that a region consists of, back with its disks after so long.
    LoseRegion(usize, Duration),
}

/// A service of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Service {
    /// gRPC to Kafka, of this region.
    Ingest(usize),
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

impl Strike {
    /// Any, in a world of so many regions.
    pub(super) fn draw(random: &mut ChaCha8Rng, regions: usize) -> Self {
        let fault = if regions > 1 && random.random_bool(0.5) {
            Fault::between(random, regions)
        } else {
            Fault::within(random, regions)
        };
        Self { at: within(random, TRAFFIC), fault }
    }
}

impl Fault {
    /// Of one region.
    fn within(random: &mut ChaCha8Rng, regions: usize) -> Self {
        let (region, processor) = (random.random_range(0..regions), random.random_range(0..PROCESSORS));
        let service = pick(random, &[Service::Ingest(region), Service::Processor(processor)]);
        let broker = random.random_range(0..brokers(regions));
        match random.random_range(0..100) {
            0..12 => Self::Kill(service),
            12..18 => Self::Restart(service),
            18..26 => Self::Freeze(service, ms(random, 200, 9_000)),
            26..32 => Self::Twin(processor, ms(random, 500, 4_000)),
            32..38 => Self::Join(region, ms(random, 1_000, 5_000)),
            38..42 => Self::KillBrokers(vec![broker], ms(random, 0, 4_000)),
            42..44 => Self::KillBrokers(two(random, brokers(regions)), ms(random, 0, 3_000)),
            44..48 => Self::FreezeBroker(broker, ms(random, 200, 8_000)),
            48..52 => Self::RollBroker(broker),
            52..54 => Self::KillStore(region, ms(random, 0, 2_000)),
            54..58 => Self::FreezeStore(region, ms(random, 200, 6_000)),
            58..61 => Self::SlowStore(region, ms(random, 1_000, 8_000)),
            61..64 => Self::RefuseStore(region, ms(random, 200, 6_000)),
            64..67 => Self::FillBrokerDisk(broker, ms(random, 500, 6_000)),
            67..70 => Self::FillStoreDisk(region, ms(random, 500, 6_000)),
            _ => Self::Request(Mistreatment::draw(random, regions)),
        }
    }

    /// Of the mirror, the link, or a region as a whole.
    fn between(random: &mut ChaCha8Rng, regions: usize) -> Self {
        let region = random.random_range(0..regions);
        match random.random_range(0..100) {
            0..20 => Self::KillMirror,
            20..40 => Self::FreezeMirror(ms(random, 200, 9_000)),
            40..55 => Self::FailMirrorTask(region, ms(random, 500, 4_000)),
            55..77 => Self::CutLink(ms(random, 200, 9_000)),
            _ => Self::LoseRegion(region, ms(random, 0, 4_000)),
        }
    }

    /// Its name in tables.
    pub fn kind(&self) -> String {
        match self {
            Self::Kill(service) => format!("{} killed", service.kind()),
            Self::Restart(service) => format!("{} restarted", service.kind()),
            Self::Freeze(service, _) => format!("{} frozen", service.kind()),
            Self::Twin(..) => "two processors with one transactional.id".to_owned(),
            Self::Join(..) => "a processor joins and leaves".to_owned(),
            Self::KillBrokers(brokers, _) if brokers.len() == 1 => "broker killed".to_owned(),
            Self::KillBrokers(..) => "two brokers killed".to_owned(),
            Self::FreezeBroker(..) => "broker frozen".to_owned(),
            Self::RollBroker(_) => "broker restarted".to_owned(),
            Self::FillBrokerDisk(..) => "broker's disk full".to_owned(),
            Self::KillStore(..) => "store killed".to_owned(),
            Self::FreezeStore(..) => "store frozen".to_owned(),
            Self::SlowStore(..) => "store slow".to_owned(),
            Self::RefuseStore(..) => "store refuses".to_owned(),
            Self::FillStoreDisk(..) => "store's disk full".to_owned(),
            Self::Request(Mistreatment { request, how, .. }) => format!("{request:?} {}", how.kind()),
            Self::KillMirror => "MirrorMaker killed".to_owned(),
            Self::FreezeMirror(_) => "MirrorMaker frozen".to_owned(),
            Self::FailMirrorTask(..) => "MirrorMaker's task failed".to_owned(),
            Self::CutLink(_) => "link between the regions cut".to_owned(),
            Self::LoseRegion(..) => "region lost".to_owned(),
        }
    }
}

impl Mistreatment {
    fn draw(random: &mut ChaCha8Rng, regions: usize) -> Self {
        use KafkaRequest::{
            AddOffsetsToTxn, AddPartitionsToTxn, EndTxn, InitProducerId, OffsetFetch, Produce, TxnOffsetCommit,
        };
        // Ends of transactions most of all: without KIP-890 a stray one hits the next transaction.
        let of_services = [
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
        // Between two regions the mirror's are mistreated, which has no transactions.
        let requests = if regions > 1 { &[Produce][..] } else { &of_services };
        let delay = ms(random, 50, 8_000);
        let hows = [How::Late(delay), How::LateResponse(delay), How::ResponseLost, How::Lost, How::Stray(delay)];
        let (request, how) = (pick(random, requests), pick(random, &hows));
        let skip = if matches!(request, InitProducerId | OffsetFetch) { 0 } else { random.random_range(0..20) };
        Self { request, how, skip, times: random.random_range(1..=3) }
    }
}

impl Service {
    fn kind(self) -> &'static str {
        match self {
            Self::Ingest(_) => "ingest",
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
            Self::Ingest(number) | Self::Processor(number) => write!(f, "{} {number}", self.kind()),
        }
    }
}

fn ms(random: &mut ChaCha8Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..to))
}

fn two(random: &mut ChaCha8Rng, of: usize) -> Vec<usize> {
    let mut all: Vec<_> = (0..of).collect();
    all.shuffle(random);
    all.truncate(2);
    all
}
