//! When `MirrorMaker` has to be started again: the decision alone, which takes what was seen and the time.
//!
//! In dedicated mode a task that has failed never comes back by itself while its process runs on, and a process that hangs holds its
//! connections. Nothing is lost by starting it again, at any moment: it mirrors at least once.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::direction::{Direction, Observation};

/// How patient a [`Supervisor`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For how long a mirror may stand still. Heartbeats are sent every second, and a rebalance stops them for some.
    pub stall: Duration,
    /// How long a start may take until heartbeats arrive, and a mirror to go on when a region is back.
    pub start: Duration,
    /// The longest pause between two starts that did not help; the first is a second, and each is twice the one before.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { stall: Duration::from_secs(15), start: Duration::from_secs(60), pause: Duration::from_secs(60) }
    }
}

/// What is known of a `MirrorMaker` at one moment.
#[derive(Debug, Clone)]
pub struct Sight {
    /// When its process was started.
    pub started: SystemTime,
    /// Whether its process has not ended.
    pub running: bool,
    /// Each direction it serves, or why a region does not tell.
    pub directions: Vec<(Direction, Result<Observation, String>)>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it mirrors.
    Moves,
    /// Nothing yet, for this reason.
    Wait(String),
    /// It has to be started again.
    Restart(Cause),
}

/// Why a `MirrorMaker` has to be started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its process has ended.
    Ended,
    /// One of its tasks has failed.
    Failed {
        /// For example `us-east->eu-west`.
        direction: String,
        /// For example `MirrorSourceConnector-0`.
        task: String,
        /// The exception's first line.
        error: String,
    },
    /// Its process runs, and nothing arrives.
    StandsStill {
        /// For example `us-east->eu-west`.
        direction: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => formatter.write_str("it has ended"),
            Self::Failed { direction, task, error } => write!(formatter, "{direction}: {task} has failed: {error}"),
            Self::StandsStill { direction } => write!(formatter, "{direction} stands still"),
        }
    }
}

/// Decides, look by look, about one `MirrorMaker`.
#[derive(Debug)]
pub struct Supervisor {
    patience: Patience,
    /// Starts in a row that did not help.
    starts: u32,
    /// When a region did not answer last.
    away: SystemTime,
}

impl Supervisor {
    /// One that has seen nothing yet.
    pub fn new(patience: Patience) -> Self {
        Self { patience, starts: 0, away: SystemTime::UNIX_EPOCH }
    }

    /// What is to be done now. Whoever asks does it.
    pub fn judge(&mut self, sight: &Sight, now: SystemTime) -> Verdict {
        let mut observations = Vec::new();
        for (direction, told) in &sight.directions {
            match told {
                Ok(observation) => observations.push((direction, observation)),
                // A mirror cannot move while one of its ends is away, and goes on by itself when that is back.
                Err(reason) => {
                    self.away = now;
                    return Verdict::Wait(reason.clone());
                }
            }
        }
        let Some(cause) = self.cause(sight, &observations, now) else {
            if !observations.iter().all(|(_, seen)| moved_since(seen, sight.started)) {
                return Verdict::Wait("no heartbeat has arrived since the start".into());
            }
            if now >= sight.started + self.patience.start {
                self.starts = 0;
            }
            return Verdict::Moves;
        };
        let pause = self.pause();
        if now < sight.started + pause {
            return Verdict::Wait(format!("{cause}; the last start did not help, the next is {pause:?} after it"));
        }
        self.starts += 1;
        Verdict::Restart(cause)
    }

    fn cause(&self, sight: &Sight, observations: &[(&Direction, &Observation)], now: SystemTime) -> Option<Cause> {
        if !sight.running {
            return Some(Cause::Ended);
        }
        let failed = observations.iter().find_map(|(direction, seen)| {
            let (task, error) = seen.failed_since(sight.started).next()?;
            Some(Cause::Failed { direction: direction.to_string(), task: task.to_owned(), error: error.to_owned() })
        });
        let still = || {
            let (direction, _) = observations.iter().find(|(_, seen)| self.stands_still(seen, sight.started, now))?;
            Some(Cause::StandsStill { direction: direction.to_string() })
        };
        failed.or_else(still)
    }

    /// Either this `MirrorMaker` writes nothing any more, or it does not carry over what the source has. That the source has nothing new is
    /// no fault of it: where each region has a `MirrorMaker`, the other one writes the source's heartbeats.
    fn stands_still(&self, seen: &Observation, started: SystemTime, now: SystemTime) -> bool {
        let under_way = moved_since(seen, started);
        let starting = if under_way { self.away } else { self.away.max(started) };
        if now < starting + self.patience.start {
            return false;
        }
        let behind = |last: Option<SystemTime>, time: SystemTime| match last {
            Some(last) => time >= last + self.patience.stall,
            None => true,
        };
        behind(seen.pulse, now) || seen.sent.is_some_and(|sent| behind(seen.arrived, sent))
    }

    fn pause(&self) -> Duration {
        match self.starts {
            0 => Duration::ZERO,
            starts => Duration::from_secs(1 << (starts - 1).min(16)).min(self.patience.pause),
        }
    }
}

fn moved_since(seen: &Observation, started: SystemTime) -> bool {
    seen.arrived.is_some_and(|arrived| arrived >= started)
}

#[cfg(test)]
mod tests {
    use coderelay_mirrormaker::TaskState;

    use super::*;
    use crate::direction::{Cluster, Task};

    /// Seconds after a time at which the process was started.
    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn cluster(name: &str) -> Cluster {
        Cluster { name: name.into(), bootstrap_servers: String::new() }
    }

    /// A direction whose heartbeats were all written, and have arrived, at these seconds.
    fn seen(pulse: u64, sent: u64, arrived: u64) -> Observation {
        let running = Task { state: TaskState::Running, since: at(3), error: None };
        let tasks = [("MirrorSourceConnector-0".to_owned(), running)].into();
        Observation { tasks, pulse: Some(at(pulse)), sent: Some(at(sent)), arrived: Some(at(arrived)) }
    }

    fn sight(told: Result<Observation, String>) -> Sight {
        let direction = Direction { source: cluster("us-east"), target: cluster("eu-west") };
        Sight { started: at(0), running: true, directions: vec![(direction, told)] }
    }

    fn judge(told: Result<Observation, String>, now: u64) -> Verdict {
        Supervisor::new(Patience::default()).judge(&sight(told), at(now))
    }

    fn failing(since: u64) -> Observation {
        let mut observation = seen(100, 100, 100);
        let task = Task { state: TaskState::Failed, since: at(since), error: Some("too large".into()) };
        observation.tasks.insert("MirrorSourceConnector-0".into(), task);
        observation
    }

    fn stands_still() -> Verdict {
        Verdict::Restart(Cause::StandsStill { direction: "us-east->eu-west".into() })
    }

    #[test]
    fn a_mirror_that_moves_is_left_alone() {
        assert_eq!(judge(Ok(seen(100, 100, 99)), 101), Verdict::Moves);
    }

    #[test]
    fn a_process_that_hangs_is_started_again() {
        assert_eq!(judge(Ok(seen(20, 20, 20)), 34), Verdict::Moves);
        assert_eq!(judge(Ok(seen(20, 20, 20)), 35), stands_still());
    }

    #[test]
    fn a_direction_that_carries_nothing_over_is_noticed_although_the_process_lives() {
        assert_eq!(judge(Ok(seen(120, 120, 100)), 121), stands_still());
        let nothing_yet = Observation { arrived: None, ..seen(120, 120, 0) };
        assert_eq!(judge(Ok(nothing_yet), 121), stands_still());
    }

    #[test]
    fn a_source_that_nobody_writes_heartbeats_to_is_not_this_mirrors_fault() {
        assert_eq!(judge(Ok(seen(120, 30, 30)), 121), Verdict::Moves);
    }

    #[test]
    fn a_failed_task_is_noticed_at_once_and_one_of_an_earlier_process_not_at_all() {
        let Verdict::Restart(cause) = judge(Ok(failing(5)), 6) else { panic!("left alone") };
        assert_eq!(cause.to_string(), "us-east->eu-west: MirrorSourceConnector-0 has failed: too large");
        let mut earlier = failing(5);
        earlier.tasks.values_mut().for_each(|task| task.since = at(0) - Duration::from_secs(1));
        assert_eq!(judge(Ok(earlier), 101), Verdict::Moves);
    }

    #[test]
    fn a_start_is_given_its_time() {
        let silent = Observation::default();
        assert!(matches!(judge(Ok(silent.clone()), 59), Verdict::Wait(_)));
        assert_eq!(judge(Ok(silent), 60), stands_still());
    }

    #[test]
    fn while_a_region_is_away_nothing_is_done_and_afterwards_the_mirror_is_given_time() {
        let mut supervisor = Supervisor::new(Patience::default());
        let stale = || sight(Ok(seen(100, 100, 100)));
        let ended = Sight { running: false, ..sight(Err("us-east does not answer".into())) };
        assert!(matches!(supervisor.judge(&ended, at(200)), Verdict::Wait(_)));
        assert_ne!(supervisor.judge(&stale(), at(259)), stands_still());
        assert_eq!(supervisor.judge(&stale(), at(260)), stands_still());
    }

    #[test]
    fn starts_that_do_not_help_become_rarer_and_one_that_does_is_forgotten() {
        let mut supervisor = Supervisor::new(Patience::default());
        let mut starts = Vec::new();
        let mut started = at(0);
        for second in 0..300 {
            let ended = Sight { started, running: false, ..sight(Ok(Observation::default())) };
            if let Verdict::Restart(Cause::Ended) = supervisor.judge(&ended, at(second)) {
                starts.push(second);
                started = at(second);
            }
        }
        assert_eq!(starts, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);

        let helped = Sight { started, ..sight(Ok(seen(310, 310, 310))) };
        assert_eq!(supervisor.judge(&helped, at(310)), Verdict::Moves);
        let ended = Sight { started: at(310), running: false, ..sight(Ok(seen(310, 310, 310))) };
        assert_eq!(supervisor.judge(&ended, at(311)), Verdict::Restart(Cause::Ended));
    }
}
