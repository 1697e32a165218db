//! What befalls a processor at a place of its own cycle, where only a failpoint can hit it.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::plan::{PROCESSORS, pick};

/// Lives of a processor that something befalls, at most.
const MISHAPS_MAX: usize = 4;
/// Where a transaction is complete but for its end.
const BEFORE_END: &str = "before-end-txn";
/// Right behind its end.
const AFTER_END: &str = "after-commit";

/// Something that befalls a processor, once in a life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mishap {
    /// Where; one of the processor's failpoints.
    pub edge: &'static str,
    /// How often it passes there first.
    pub after: u32,
    /// What.
    pub what: What,
}

/// What befalls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum What {
    /// It dies there, as by `kill -9`.
    Crash,
    /// Its worker stands still there for so long; heartbeats go on.
    Stall(Duration),
    /// All of it stands still there for so long, as by SIGSTOP.
    Freeze(Duration),
    /// The same, and having ended its transaction it is gone until everything is whole again: who took its place meanwhile keeps it.
    FreezeAndGo(Duration),
}

impl Mishap {
    /// Those of each processor, life after life.
    pub(super) fn draw(random: &mut ChaCha8Rng, edges: &[&'static str]) -> Vec<Vec<Self>> {
        let lives = |random: &mut ChaCha8Rng| {
            (0..random.random_range(0..=MISHAPS_MAX)).map(|_| Self::any(random, edges)).collect()
        };
        (0..PROCESSORS).map(|_| lives(random)).collect()
    }

    /// One processor goes for good, and nothing befalls the others.
    pub(super) fn draw_last(random: &mut ChaCha8Rng) -> Vec<Vec<Self>> {
        let mut mishaps = vec![Vec::new(); PROCESSORS];
        // Longer than a session, shorter than a transaction may last.
        let what = What::FreezeAndGo(Duration::from_millis(random.random_range(7_000..12_000)));
        let last = Self { edge: BEFORE_END, after: random.random_range(0..20), what };
        mishaps[random.random_range(0..PROCESSORS)].push(last);
        mishaps
    }

    fn any(random: &mut ChaCha8Rng, edges: &[&'static str]) -> Self {
        let edge = pick(random, edges);
        // A replay happens once in most lives, a publication in every record.
        let after = match edge {
            "during-replay" => 0,
            "after-publish" => random.random_range(0..300),
            _ => random.random_range(0..12),
        };
        let duration = Duration::from_millis(random.random_range(500..9_000));
        let what = match random.random_range(0..100) {
            0..12 => What::Stall(duration),
            12..20 => What::Freeze(duration),
            _ => What::Crash,
        };
        Self { edge, after, what }
    }

    /// In the grammar of the `fail` crate.
    pub(super) fn failpoints(&self) -> String {
        let Self { edge, after, what } = self;
        match what {
            What::Crash => format!("{edge}={after}*off->return"),
            What::Stall(stall) => format!("{edge}={after}*off->1*sleep({})", stall.as_millis()),
            What::Freeze(_) => format!("{edge}={after}*off->1*return(stop)"),
            What::FreezeAndGo(_) => format!("{edge}={after}*off->1*return(stop);{AFTER_END}={after}*off->return"),
        }
    }

    /// For how long its process is stopped, if it stops itself.
    pub(super) fn frozen(&self) -> Option<Duration> {
        match self.what {
            What::Freeze(frozen) | What::FreezeAndGo(frozen) => Some(frozen),
            What::Crash | What::Stall(_) => None,
        }
    }

    /// Whether it is not started again afterwards.
    pub(super) fn is_last(&self) -> bool {
        matches!(self.what, What::FreezeAndGo(_))
    }
}
