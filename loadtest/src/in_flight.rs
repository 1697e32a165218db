//! What one stream has still to do: requests that wait for results, and packets that wait to be sent again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::plan::Arrival;

/// One packet on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its number in the corpus.
    pub n: u64,
    /// Its latency counts from here: its intended time, or in a closed loop the moment it was first sent.
    pub since: Instant,
    /// How often it was sent, this time included.
    pub attempt: u32,
    pub phase: usize,
    pub measured: bool,
}

/// The packets of one request.
#[derive(Clone, Debug)]
pub(crate) enum Batch {
    /// As the plan has them; they share everything.
    Planned { arrival: Arrival, since: Instant },
    /// Some that were refused or left unanswered before.
    Again(Vec<Item>),
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Planned { arrival, .. } => (arrival.packets.end - arrival.packets.start) as usize,
            Self::Again(items) => items.len(),
        }
    }

    pub(crate) fn item(&self, k: usize) -> Item {
        match self {
            Self::Planned { arrival: Arrival { packets, phase, measured, .. }, since } => {
                Item { n: packets.start + k as u64, since: *since, attempt: 1, phase: *phase, measured: *measured }
            }
            Self::Again(items) => items[k],
        }
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = Item> + '_ {
        (0..self.len()).map(|k| self.item(k))
    }
}

/// A request that waits for results.
#[derive(Debug)]
struct Waiting {
    batch: Batch,
    sent: Instant,
    seq: u64,
    /// One bit for each packet that has its result.
    answered: Vec<u64>,
    open: usize,
}

/// The requests of one stream that wait for results, oldest first.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    next_seq: u64,
    requests: VecDeque<Waiting>,
}

impl InFlight {
    /// Enters a request and returns its `seq`.
    pub(crate) fn push(&mut self, batch: Batch, sent: Instant) -> u64 {
        let (seq, open) = (self.next_seq, batch.len());
        self.next_seq += open as u64;
        self.requests.push_back(Waiting { batch, sent, seq, answered: vec![0; open.div_ceil(64)], open });
        seq
    }

    /// Enters the result for `seq`: the packet, and when it was sent. `None` if it was not waited for. Requests answered in full
    /// leave from the front and are counted in `done`.
    pub(crate) fn answer(&mut self, seq: u64, done: &mut usize) -> Option<(Item, Instant)> {
        let at = self.requests.partition_point(|waiting| waiting.seq + waiting.batch.len() as u64 <= seq);
        let waiting = self.requests.get_mut(at)?;
        let k = seq.checked_sub(waiting.seq)? as usize;
        let (word, bit) = (waiting.answered.get_mut(k / 64)?, 1 << (k % 64));
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        waiting.open -= 1;
        let answer = (waiting.batch.item(k), waiting.sent);
        while self.requests.front().is_some_and(|front| front.open == 0) {
            self.requests.pop_front();
            *done += 1;
        }
        Some(answer)
    }

    /// Takes out what has no result, because the stream has ended.
    pub(crate) fn take_unanswered(&mut self) -> Vec<Item> {
        let requests = std::mem::take(&mut self.requests);
        let open = |waiting: &Waiting, k: usize| waiting.answered[k / 64] & (1 << (k % 64)) == 0;
        let unanswered = requests
            .iter()
            .flat_map(|waiting| (0..waiting.batch.len()).filter(|k| open(waiting, *k)).map(|k| waiting.batch.item(k)));
        unanswered.collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

/// Packets that are to be sent again, by when.
#[derive(Debug, Default)]
pub(crate) struct Retries(BTreeMap<(Instant, u64), Item>);

impl Retries {
    /// Has a packet sent again after `delay`.
    pub(crate) fn push(&mut self, item: Item, delay: Duration) {
        self.0.insert((Instant::now() + delay, item.n), Item { attempt: item.attempt + 1, ..item });
    }

    /// At most `most` packets whose time has come.
    pub(crate) fn due(&mut self, now: Instant, most: usize) -> Vec<Item> {
        let mut items = Vec::new();
        while items.len() < most
            && let Some(entry) = self.0.first_entry()
            && entry.key().0 <= now
        {
            items.push(entry.remove());
        }
        items
    }

    /// When the next is to be sent.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first_key_value().map(|((due, _), _)| *due)
    }

    /// Gives all of them up.
    pub(crate) fn take(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.0).into_values().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(packets: std::ops::Range<u64>) -> Batch {
        let arrival = Arrival { packets, due: None, phase: 0, repeat: false, measured: true };
        Batch::Planned { arrival, since: Instant::now() }
    }

    #[test]
    fn a_request_ends_with_its_last_result_whatever_the_order() {
        let (mut in_flight, now) = (InFlight::default(), Instant::now());
        assert_eq!((in_flight.push(planned(10..12), now), in_flight.push(planned(20..23), now)), (0, 2));
        let mut done = 0;
        let numbers: Vec<_> = [4, 0, 2].map(|seq| in_flight.answer(seq, &mut done).unwrap().0.n).into();
        assert_eq!((numbers, done), (vec![22, 10, 20], 0));
        assert!(in_flight.answer(1, &mut done).is_some() && done == 1);
        assert!(in_flight.answer(3, &mut done).is_some() && done == 2);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn a_result_nobody_waits_for_is_not_an_acknowledgement() {
        let (mut in_flight, mut done) = (InFlight::default(), 0);
        in_flight.push(planned(0..2), Instant::now());
        assert!(in_flight.answer(7, &mut done).is_none());
        assert!(in_flight.answer(0, &mut done).is_some());
        assert!(in_flight.answer(0, &mut done).is_none(), "answered twice");
    }

    #[test]
    fn what_a_stream_left_unanswered_is_known_packet_by_packet() {
        let (mut in_flight, mut done) = (InFlight::default(), 0);
        in_flight.push(planned(0..70), Instant::now());
        in_flight.push(planned(100..102), Instant::now());
        for seq in (0..69).chain([71]) {
            in_flight.answer(seq, &mut done).unwrap();
        }
        let left: Vec<_> = in_flight.take_unanswered().iter().map(|item| item.n).collect();
        assert_eq!((left, in_flight.is_empty()), (vec![69, 100], true));
    }

    #[test]
    fn retries_come_when_they_are_due() {
        let mut retries = Retries::default();
        let batch = planned(0..3);
        for (item, delay) in batch.items().zip([50, 0, 0]) {
            retries.push(item, Duration::from_millis(delay));
        }
        let due = retries.due(Instant::now(), 10);
        assert_eq!(due.iter().map(|item| (item.n, item.attempt)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
        assert!(retries.next().is_some() && !retries.is_empty());
    }
}
