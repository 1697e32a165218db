//! The answer to one request: exactly one outcome per packet, sent when the last is known.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::PublishResult;
use tokio::sync::mpsc::OwnedPermit;
use tonic::{Code, Status};

use crate::metrics::METRICS;
use crate::outcome::{Failure, Outcome};
use crate::unread::Places;

/// What travels back to a client: the results of one request, or the status that ends the call.
pub type Answer = Result<Results, Status>;

/// The results of one request, and their place among those that wait to be read.
#[derive(Debug)]
pub struct Results {
    /// One per packet.
    pub results: Vec<PublishResult>,
    /// Given back when the results have left for the socket.
    pub places: Places,
}

/// A place for the answer, reserved before the request was read: sending never waits, so that a delivery report may.
pub type Slot = OwnedPermit<Answer>;

/// Collects a request's outcomes, from whichever thread learns them, and sends them with the last one.
///
/// A packet that nobody settled before the last handle was dropped, because a task died, is answered `INTERNAL`: an
/// answer with a gap cannot leave.
#[derive(Debug)]
pub struct Reply {
    seq: u64,
    packets: usize,
    topic: Arc<str>,
    received: Instant,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    outcomes: Vec<Option<(Option<PacketId>, Outcome)>>,
    missing: usize,
    slot: Slot,
    places: Places,
}

impl Reply {
    /// An answer that waits for `packets` outcomes. Without packets it is sent at once.
    pub fn new(seq: u64, packets: usize, topic: Arc<str>, received: Instant, slot: Slot, places: Places) -> Arc<Self> {
        let open = Open { outcomes: vec![None; packets], missing: packets, slot, places };
        let reply = Arc::new(Self { seq, packets, topic, received, open: Mutex::new(Some(open)) });
        if packets == 0 {
            reply.send();
        }
        reply
    }

    /// Records what became of packet `index`. The first outcome of a packet stands.
    pub fn settle(&self, index: usize, id: Option<PacketId>, outcome: Outcome) {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = guard.as_mut() else { return };
        let Some(place @ None) = open.outcomes.get_mut(index) else { return };
        *place = Some((id, outcome));
        open.missing -= 1;
        if open.missing == 0 {
            drop(guard);
            self.send();
        }
    }

    /// Records one failure for every packet.
    pub fn fail_all(&self, failure: &Failure) {
        for index in 0..self.packets {
            self.settle(index, None, Outcome::Failed(failure.clone()));
        }
    }

    fn send(&self) {
        let taken = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Open { outcomes, slot, mut places, .. }) = taken else { return };
        METRICS.request_answered(self.received.elapsed(), outcomes.iter().flatten().map(|(_, o)| o.reason()));
        let results = outcomes
            .into_iter()
            .enumerate()
            .map(|(index, settled)| {
                let seq = self.seq.wrapping_add(index as u64);
                let (id, outcome) = settled.unwrap_or_else(|| (None, Outcome::Failed(forgotten())));
                outcome.into_result(seq, id, &self.topic)
            })
            .collect();
        // Nobody there to read it: the client has left, and what was produced stays produced.
        places.complete();
        let _sender = slot.send(Ok(Results { results, places }));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send();
    }
}

fn forgotten() -> Failure {
    Failure::permanent(Code::Internal, "INTERNAL", "the packet was lost track of; send it again with the same id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Peer;
    use crate::unread::Unread;
    use coderelay_schemas::pb::publish_result::Outcome as Wire;
    use futures::FutureExt;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    fn reply(seq: u64, packets: usize) -> (Arc<Reply>, mpsc::Receiver<Answer>) {
        let (sender, receiver) = mpsc::channel(1);
        let slot = sender.try_reserve_owned().unwrap();
        let places = Unread::new(100).reserve(&Peer::default(), packets as u32).now_or_never().unwrap().unwrap();
        (Reply::new(seq, packets, "t".into(), Instant::now(), slot, places), receiver)
    }

    fn results(receiver: &mut mpsc::Receiver<Answer>) -> Vec<PublishResult> {
        receiver.try_recv().unwrap().unwrap().results
    }

    fn committed(offset: i64) -> Outcome {
        Outcome::Committed { partition: 0, offset }
    }

    #[test]
    fn an_empty_request_is_answered_at_once() {
        let (_reply, mut receiver) = reply(5, 0);
        assert_eq!(results(&mut receiver), []);
    }

    #[test]
    fn the_answer_leaves_with_the_last_outcome() {
        let (reply, mut receiver) = reply(5, 2);
        reply.settle(1, None, committed(10));
        assert!(receiver.try_recv().is_err());
        reply.settle(0, None, committed(11));
        let results = results(&mut receiver);
        assert_eq!(results.iter().map(|r| r.seq).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn the_first_outcome_of_a_packet_stands() {
        let (reply, mut receiver) = reply(0, 1);
        reply.settle(0, None, committed(1));
        reply.settle(0, None, committed(2));
        let results = results(&mut receiver);
        assert!(matches!(&results[0].outcome, Some(Wire::Committed(c)) if c.offset == 1));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_packet_that_nobody_settled_is_answered_all_the_same() {
        let (reply, mut receiver) = reply(0, 2);
        reply.settle(0, None, committed(1));
        drop(reply);
        let results = results(&mut receiver);
        assert!(matches!(&results[1].outcome, Some(Wire::Error(status)) if status.code == Code::Internal as i32));
    }

    #[test]
    fn a_client_that_left_is_no_error() {
        let (reply, receiver) = reply(0, 1);
        drop(receiver);
        reply.settle(0, None, committed(1));
    }

    #[test]
    fn numbers_wrap_rather_than_overflow() {
        let (reply, mut receiver) = reply(u64::MAX, 2);
        reply.fail_all(&forgotten());
        assert_eq!(results(&mut receiver).iter().map(|r| r.seq).collect::<Vec<_>>(), [u64::MAX, 0]);
    }

    proptest! {
        /// Whatever the order, and from however many threads: one result per packet, in the order of the packets.
        #[test]
        fn exactly_one_result_each(order in Just((0..64_usize).collect::<Vec<_>>()).prop_shuffle(), split in 0..64_usize) {
            let (reply, mut receiver) = reply(100, 64);
            let (here, there) = order.split_at(split);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for index in there {
                        reply.settle(*index, None, committed(*index as i64));
                    }
                });
                for index in here {
                    reply.settle(*index, None, committed(*index as i64));
                }
            });
            let results = results(&mut receiver);
            prop_assert_eq!(results.len(), 64);
            for (index, result) in results.iter().enumerate() {
                prop_assert_eq!(result.seq, 100 + index as u64);
                let own = matches!(&result.outcome, Some(Wire::Committed(c)) if c.offset == index as i64);
                prop_assert!(own);
            }
            prop_assert!(receiver.try_recv().is_err());
        }
    }
}
