//! Packets that are durable here and wait until the other region has them too.
//!
//! What is known of the other region is one number for each partition: the offset, in this region's topic, of the last record that is
//! durable there, with all before it. It is told again and again. When to believe it:
//!
//! - It confirms only packets that were sent before it was heard. A topic that is made anew begins at 0 again, and what was said of the
//!   old one must not confirm the first packets of the new one.
//! - One that follows a silence, or is lower than the last, is doubted ([`Confirmations::doubts`]): it may be the old topic's and have been
//!   on its way while everything was down. The caller must then see that a record with that offset exists before it lets it be heard.
//!
//! Time is an argument. Whatever happens, each packet comes back exactly once: confirmed, or not within its time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The longest time between two numbers of a partition of which the second is not doubted.
const SILENCE: Duration = Duration::from_secs(1);

/// A packet that waits.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Partition of this region's topic.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// When it was sent to Kafka.
    pub sent: Instant,
    /// When Kafka acknowledged it, from which on it waits.
    pub since: Instant,
    /// What the caller knows it by.
    pub packet: T,
}

/// What becomes of a packet that is to wait.
#[derive(Debug)]
pub enum Wait<T> {
    /// It waits.
    Waits,
    /// It need not.
    Confirmed(Waiting<T>),
    /// So many wait that it cannot.
    Full(Waiting<T>),
}

/// Everything that waits, and what is known of the other region.
#[derive(Debug)]
pub struct Confirmations<T> {
    max_wait: Duration,
    max_waiting: usize,
    partitions: HashMap<i32, Partition<T>>,
}

#[derive(Debug)]
struct Partition<T> {
    mirrored: Option<Mirrored>,
    /// In the order of their acknowledgement, which is that of their offsets and deadlines.
    waiting: VecDeque<Waiting<T>>,
}

/// What was heard last.
#[derive(Debug, Clone, Copy)]
struct Mirrored {
    /// Everything up to and with this offset is durable in the other region.
    offset: i64,
    heard: Instant,
}

impl Mirrored {
    fn confirms<T>(self, waiting: &Waiting<T>) -> bool {
        waiting.offset <= self.offset && waiting.sent <= self.heard
    }
}

impl<T> Default for Partition<T> {
    fn default() -> Self {
        Self { mirrored: None, waiting: VecDeque::new() }
    }
}

impl<T> Partition<T> {
    fn take_while(&mut self, is_over: impl Fn(&Waiting<T>) -> bool) -> impl Iterator<Item = Waiting<T>> {
        let over = self.waiting.iter().take_while(|waiting| is_over(waiting)).count();
        self.waiting.drain(..over)
    }
}

impl<T> Confirmations<T> {
    /// Nothing waits, nothing is known. No packet waits for longer than `max_wait`, and never more than `max_waiting` do.
    pub fn new(max_wait: Duration, max_waiting: usize) -> Self {
        Self { max_wait, max_waiting, partitions: HashMap::new() }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.partitions.values().map(|partition| partition.waiting.len()).sum()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether as many wait as may.
    pub fn is_full(&self) -> bool {
        self.len() >= self.max_waiting
    }

    /// Lets a packet wait. Comes back at once if it is confirmed already, since the mirror may be faster than the acknowledgement, or if
    /// there is no room.
    pub fn wait(&mut self, waiting: Waiting<T>) -> Wait<T> {
        let full = self.is_full();
        let partition = self.partitions.entry(waiting.partition).or_default();
        if partition.mirrored.is_some_and(|mirrored| mirrored.confirms(&waiting)) {
            return Wait::Confirmed(waiting);
        }
        if full {
            return Wait::Full(waiting);
        }
        partition.waiting.push_back(waiting);
        Wait::Waits
    }

    /// Whether this number may be about a topic that is no more.
    pub fn doubts(&self, partition: i32, offset: i64, now: Instant) -> bool {
        let known = self.partitions.get(&partition).and_then(|partition| partition.mirrored);
        known.is_none_or(|known| offset < known.offset || now.saturating_duration_since(known.heard) > SILENCE)
    }

    /// Everything up to and with `offset` is durable in the other region. The packets that this confirms.
    pub fn hear(&mut self, partition: i32, offset: i64, now: Instant) -> Vec<Waiting<T>> {
        let partition = self.partitions.entry(partition).or_default();
        let mirrored = Mirrored { offset, heard: now };
        partition.mirrored = Some(mirrored);
        partition.take_while(|waiting| mirrored.confirms(waiting)).collect()
    }

    /// Nothing is known of a partition any more.
    pub fn forget(&mut self, partition: i32) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.mirrored = None;
        }
    }

    /// The packets that have waited for their time.
    pub fn expire(&mut self, now: Instant) -> Vec<Waiting<T>> {
        let max_wait = self.max_wait;
        let over = |waiting: &Waiting<T>| now.saturating_duration_since(waiting.since) >= max_wait;
        self.partitions.values_mut().flat_map(|partition| partition.take_while(over)).collect()
    }

    /// From now on nothing waits: all that does, and later whatever comes, expires at once.
    pub fn give_up(&mut self) {
        self.max_wait = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const MAX_WAIT: Duration = Duration::from_secs(5);
    const MAX_WAITING: usize = 1000;
    const NONE: [i64; 0] = [];
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    fn at(ms: u64) -> Instant {
        *START + Duration::from_millis(ms)
    }

    /// A packet that was sent and acknowledged at these times.
    fn packet(offset: i64, sent: u64, since: u64) -> Waiting<i64> {
        Waiting { partition: 0, offset, sent: at(sent), since: at(since), packet: offset }
    }

    fn ids(waiting: impl IntoIterator<Item = Waiting<i64>>) -> Vec<i64> {
        waiting.into_iter().map(|waiting| waiting.packet).collect()
    }

    fn confirmed(wait: Wait<i64>) -> Option<Waiting<i64>> {
        match wait {
            Wait::Confirmed(waiting) => Some(waiting),
            Wait::Waits | Wait::Full(_) => None,
        }
    }

    fn waiting(offsets: std::ops::Range<i64>) -> Confirmations<i64> {
        let mut confirmations = Confirmations::new(MAX_WAIT, MAX_WAITING);
        for offset in offsets {
            assert!(matches!(confirmations.wait(packet(offset, 0, offset.unsigned_abs())), Wait::Waits));
        }
        confirmations
    }

    #[test]
    fn a_number_confirms_what_it_names_and_all_before_and_nothing_behind() {
        let mut confirmations = waiting(10..15);
        assert_eq!(ids(confirmations.hear(0, 9, at(20))), NONE);
        assert_eq!(ids(confirmations.hear(1, 100, at(20))), NONE, "another partition");
        assert_eq!(ids(confirmations.hear(0, 12, at(20))), [10, 11, 12]);
        assert_eq!(confirmations.len(), 2);
    }

    #[test]
    fn the_mirror_may_be_faster_than_the_acknowledgement() {
        let mut confirmations = waiting(0..0);
        confirmations.hear(0, 10, at(20));
        assert_eq!(ids(confirmed(confirmations.wait(packet(10, 15, 21)))), [10]);
        assert_eq!(ids(confirmed(confirmations.wait(packet(11, 15, 21)))), NONE);
    }

    #[test]
    fn no_more_wait_than_may_and_what_is_confirmed_need_not() {
        let mut confirmations = waiting(0..1000);
        confirmations.hear(1, 10, at(200));
        let elsewhere = Waiting { partition: 1, ..packet(10, 150, 1201) };
        assert_eq!(ids(confirmed(confirmations.wait(elsewhere))), [10]);
        assert!(matches!(confirmations.wait(packet(1000, 0, 1000)), Wait::Full(waiting) if waiting.packet == 1000));
        assert_eq!((confirmations.len(), confirmations.is_full()), (MAX_WAITING, true));
        assert_eq!(confirmations.hear(0, 49, at(2000)).len(), 50);
        assert!(matches!(confirmations.wait(packet(1001, 0, 2001)), Wait::Waits));
    }

    #[test]
    fn what_was_heard_before_a_packet_was_sent_does_not_confirm_it() {
        let mut confirmations = waiting(0..0);
        confirmations.hear(0, 1_000_000, at(20));
        assert_eq!(ids(confirmed(confirmations.wait(packet(5, 30, 31)))), NONE, "the topic was made anew in between");
        assert_eq!(ids(confirmations.hear(0, 4, at(40))), NONE);
        assert_eq!(ids(confirmations.hear(0, 5, at(50))), [5]);
    }

    #[test]
    fn a_number_is_doubted_at_first_after_a_silence_and_when_it_falls() {
        let mut confirmations = waiting(0..0);
        assert!(confirmations.doubts(0, 10, at(0)));
        confirmations.hear(0, 10, at(0));
        assert!(!confirmations.doubts(0, 11, at(1000)));
        assert!(confirmations.doubts(0, 11, at(1001)));
        assert!(confirmations.doubts(0, 9, at(1)));
        confirmations.forget(0);
        assert!(confirmations.doubts(0, 11, at(1)));
    }

    #[test]
    fn nobody_waits_for_longer_than_allowed() {
        let mut confirmations = waiting(10..15);
        assert_eq!(ids(confirmations.expire(at(5011))), [10, 11]);
        assert_eq!(ids(confirmations.hear(0, 14, at(5011))), [12, 13, 14]);
        assert!(confirmations.is_empty());
    }

    #[test]
    fn what_is_given_up_expires_at_once() {
        let mut confirmations = waiting(10..12);
        confirmations.give_up();
        assert!(matches!(confirmations.wait(packet(12, 13, 14)), Wait::Waits));
        assert_eq!(ids(confirmations.expire(at(14))), [10, 11, 12]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write,
        /// The mirror carries over so many records, and tells of them or does not.
        Mirror(i64, bool),
        Pass(u64),
    }

    proptest! {
        /// Whatever the order: confirmed is only what is there, and each packet comes back exactly once.
        #[test]
        fn confirmed_only_what_is_there_and_each_exactly_once(
            steps in prop::collection::vec(
                prop_oneof![
                    3 => Just(Step::Write),
                    2 => (0..4_i64, any::<bool>()).prop_map(|(count, tells)| Step::Mirror(count, tells)),
                    1 => (1..3000_u64).prop_map(Step::Pass),
                ],
                0..200,
            ),
        ) {
            let (mut confirmations, mut now) = (waiting(0..0), 0);
            let (mut written, mut mirrored, mut answered) = (0, -1, Vec::new());
            for step in steps {
                let confirmed = match step {
                    Step::Write => {
                        written += 1;
                        ids(confirmed(confirmations.wait(packet(written - 1, now, now))))
                    }
                    Step::Mirror(count, tells) => {
                        mirrored = (mirrored + count).min(written - 1);
                        if tells { ids(confirmations.hear(0, mirrored, at(now))) } else { Vec::new() }
                    }
                    Step::Pass(ms) => {
                        now += ms;
                        answered.extend(ids(confirmations.expire(at(now))));
                        Vec::new()
                    }
                };
                prop_assert!(confirmed.iter().all(|offset| *offset <= mirrored));
                answered.extend(confirmed);
            }
            confirmations.give_up();
            answered.extend(ids(confirmations.expire(at(now))));
            answered.sort_unstable();
            prop_assert_eq!(answered, (0..written).collect::<Vec<_>>());
        }
    }
}
