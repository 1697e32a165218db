//! The budget of bytes and packets between the socket and Kafka's acknowledgement.
//!
//! A request reserves its bytes before they are read, and one place per packet once they are counted. Both travel with
//! the packet into the delivery report and return to the budget when that is dropped. A packet that then waits for the other
//! region keeps its place. While the budget is spent nobody
//! reads, HTTP/2's windows fill, and the clients wait; a request that waited longer than [`Limits::max_wait`] is
//! read through a narrow overflow lane of its own, only to be answered `RESOURCE_EXHAUSTED`.
//!
//! Nobody who holds places waits for bytes, so the two semaphores, always taken in this order, cannot deadlock.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

use crate::peer::Peer;

/// How much may be on its way to Kafka at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of requests, as received.
    pub bytes: u32,
    /// Packets. Bounds what each costs beside its bytes: about 1 KiB in the Kafka client.
    pub packets: u32,
    /// Bytes that refused requests may occupy while they are read and answered.
    pub overflow: u32,
    /// How long a request waits for the budget.
    pub max_wait: Duration,
}

/// The budget itself. One per process.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    bytes: Arc<Semaphore>,
    packets: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    /// Requests that wait for bytes.
    waiting: AtomicUsize,
}

/// The right to hold one message's bytes in memory.
#[derive(Debug)]
pub struct Reservation {
    bytes: OwnedSemaphorePermit,
    admitted: bool,
}

/// The budget stayed spent for longer than a request may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the budget of bytes and packets on their way to Kafka is spent")]
pub struct Exhausted;

/// A part of the budget. Returns to it on drop.
#[derive(Debug)]
pub struct Permit {
    bytes: OwnedSemaphorePermit,
    packets: OwnedSemaphorePermit,
}

impl Admission {
    /// A budget of which nothing is spent.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: Arc::new(Semaphore::new(limits.bytes as usize)),
            packets: Arc::new(Semaphore::new(limits.packets as usize)),
            overflow: Arc::new(Semaphore::new(limits.overflow as usize)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits until `length` bytes may be read. Connections are served in the order of their coming, one request each; one that is
    /// larger than the whole budget gets the whole budget.
    ///
    /// After [`Limits::max_wait`] a place in the overflow lane will do, and then [`Self::admit`] will refuse it.
    pub async fn reserve(&self, peer: &Peer, length: u32) -> Reservation {
        let charge = length.min(self.limits.bytes);
        if let Ok(bytes) = Arc::clone(&self.bytes).try_acquire_many_owned(charge) {
            return Reservation { bytes, admitted: true };
        }
        let deadline = Instant::now() + self.limits.max_wait;
        let _waiting = Waiting::new(&self.waiting);
        let _turn = peer.turn().await;
        let mut room = pin!(acquire(&self.bytes, charge));
        if let Ok(bytes) = timeout_at(deadline, &mut room).await {
            return Reservation { bytes, admitted: true };
        }
        tokio::select! {
            biased;
            bytes = room => Reservation { bytes, admitted: true },
            bytes = acquire(&self.overflow, length.min(self.limits.overflow)) => Reservation { bytes, admitted: false },
        }
    }

    /// Turns a reservation into the permit of a request with this many packets.
    ///
    /// # Errors
    /// [`Exhausted`], with the reservation kept until the caller has answered.
    pub async fn admit(&self, reservation: Reservation, packets: u32) -> Result<Permit, (Exhausted, Reservation)> {
        if !reservation.admitted {
            return Err((Exhausted, reservation));
        }
        let charge = packets.min(self.limits.packets);
        match timeout(self.limits.max_wait, acquire(&self.packets, charge)).await {
            Ok(packets) => Ok(Permit { bytes: reservation.bytes, packets }),
            Err(_elapsed) => Err((Exhausted, reservation)),
        }
    }

    /// Whether others wait for the bytes that a message has reserved and does not fill.
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// How long a message may be behind its time although others wait: longer than these do, so that messages that hold each other
    /// up are refused one by one and not all.
    pub fn patience(&self) -> Duration {
        2 * self.limits.max_wait
    }

    /// Bytes that are spent now.
    pub fn bytes_in_use(&self) -> u64 {
        u64::from(self.limits.bytes) - self.bytes.available_permits() as u64
    }

    /// Packets that are on their way now.
    pub fn packets_in_use(&self) -> u64 {
        u64::from(self.limits.packets) - self.packets.available_permits() as u64
    }

    /// The spent share of the scarcer of the two, 0 to 1.
    pub fn fill(&self) -> f64 {
        let bytes = self.bytes_in_use() as f64 / f64::from(self.limits.bytes);
        let packets = self.packets_in_use() as f64 / f64::from(self.limits.packets);
        bytes.max(packets)
    }

    /// Waits until nothing is spent any more: every packet that was taken has its delivery report.
    pub async fn idle(&self) {
        let _all: Result<SemaphorePermit<'_>, _> = self.packets.acquire_many(self.limits.packets).await;
    }
}

/// One request that waits, until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reservation {
    /// Gives back what turned out not to be needed, down to `length` bytes.
    pub fn shrink_to(&mut self, length: u32) {
        let surplus = self.bytes.num_permits().saturating_sub(length as usize);
        drop(self.bytes.split(surplus));
    }
}

impl Permit {
    /// Splits one packet of this many bytes off. What was clamped on admission runs out early: the rest are free.
    #[must_use]
    pub fn take_packet(&mut self, bytes: usize) -> Self {
        Self { bytes: split_up_to(&mut self.bytes, bytes), packets: split_up_to(&mut self.packets, 1) }
    }

    /// Gives the bytes back and keeps the places: the packet itself is no longer held.
    pub fn release_bytes(&mut self) {
        drop(self.bytes.split(self.bytes.num_permits()));
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_many_owned(permits).await {
        Ok(permit) => permit,
        Err(_closed) => unreachable!("the semaphores are never closed"),
    }
}

fn split_up_to(permit: &mut OwnedSemaphorePermit, wanted: usize) -> OwnedSemaphorePermit {
    let share = wanted.min(permit.num_permits());
    permit.split(share).unwrap_or_else(|| unreachable!("no more than the permit has"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::time::sleep;

    const LIMITS: Limits = Limits { bytes: 1000, packets: 10, overflow: 200, max_wait: Duration::from_secs(2) };

    #[tokio::test(start_paused = true)]
    async fn the_budget_returns_when_the_packets_do() {
        let admission = Admission::new(LIMITS);
        let mut permit = admission.admit(admission.reserve(&Peer::default(), 600).await, 2).await.unwrap();
        let first = permit.take_packet(300);
        let second = permit.take_packet(290);
        drop(permit);
        assert_eq!((admission.bytes_in_use(), admission.packets_in_use()), (590, 2));
        drop(first);
        assert_eq!((admission.bytes_in_use(), admission.packets_in_use()), (290, 1));
        drop(second);
        assert_eq!((admission.bytes_in_use(), admission.packets_in_use()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_turn_and_is_then_refused() {
        let admission = Admission::new(LIMITS);
        let held = admission.reserve(&Peer::default(), 900).await;
        let started = tokio::time::Instant::now();
        let refused = admission.reserve(&Peer::default(), 150).await;
        assert_eq!(started.elapsed(), LIMITS.max_wait);
        assert!(!admission.is_awaited());
        assert!(admission.admit(refused, 1).await.is_err());
        drop(held);
        let admitted = admission.reserve(&Peer::default(), 150).await;
        assert!(admission.admit(admitted, 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_many_requests_is_not_before_one_with_few() {
        let admission = Admission::new(LIMITS);
        let held = admission.reserve(&Peer::default(), 1000).await;
        let (many, few) = (Peer::default(), Peer::default());
        let waiting = futures::future::join_all((0..10).map(|_| admission.reserve(&many, 400)));
        let served = async {
            tokio::task::yield_now().await;
            admission.reserve(&few, 400).await
        };
        let released = async {
            sleep(Duration::from_secs(1)).await;
            drop(held);
        };
        tokio::select! {
            _ = waiting => panic!("there is no room for them all"),
            (reservation, ()) = async { tokio::join!(served, released) } => {
                assert!(admission.admit(reservation, 1).await.is_ok());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_requests_share_a_narrow_lane() {
        let admission = Admission::new(LIMITS);
        let _held = admission.reserve(&Peer::default(), 1000).await;
        let first = admission.reserve(&Peer::default(), 150).await;
        assert!(
            timeout(Duration::from_secs(60), admission.reserve(&Peer::default(), 150)).await.is_err(),
            "the lane holds 200 bytes"
        );
        drop(first);
        assert!(timeout(Duration::from_secs(60), admission.reserve(&Peer::default(), 150)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_larger_than_the_budget_gets_all_of_it() {
        let admission = Admission::new(LIMITS);
        let mut permit = admission.admit(admission.reserve(&Peer::default(), 5000).await, 50).await.unwrap();
        let packets: Vec<_> = (0..50).map(|_| permit.take_packet(100)).collect();
        assert!((admission.fill() - 1.0).abs() < f64::EPSILON);
        drop((packets, permit));
        assert_eq!((admission.bytes_in_use(), admission.packets_in_use()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reservation_can_shrink_to_what_arrived() {
        let admission = Admission::new(LIMITS);
        let mut reservation = admission.reserve(&Peer::default(), 800).await;
        reservation.shrink_to(100);
        assert_eq!(admission.bytes_in_use(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_can_be_given_back_before_the_place() {
        let admission = Admission::new(LIMITS);
        let mut permit = admission.admit(admission.reserve(&Peer::default(), 600).await, 2).await.unwrap();
        permit.release_bytes();
        assert_eq!((admission.bytes_in_use(), admission.packets_in_use()), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_waits_for_the_last_packet() {
        let admission = Arc::new(Admission::new(LIMITS));
        let permit = admission.admit(admission.reserve(&Peer::default(), 10).await, 1).await.unwrap();
        assert!(timeout(Duration::from_secs(1), admission.idle()).await.is_err());
        drop(permit);
        admission.idle().await;
        assert_eq!(admission.packets_in_use(), 0);
    }

    proptest! {
        /// Whatever the sizes and the order of the reports: never over the limit, and back to zero at the end.
        #[test]
        fn debited_once_and_refunded_exactly_once(
            requests in prop::collection::vec(prop::collection::vec(1_usize..400, 0..20), 1..20),
            order in any::<u64>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let admission = Admission::new(LIMITS);
                let mut held = Vec::new();
                for sizes in &requests {
                    let length = sizes.iter().sum::<usize>() as u32;
                    let reservation = admission.reserve(&Peer::default(), length).await;
                    if let Ok(mut permit) = admission.admit(reservation, sizes.len() as u32).await {
                        held.extend(sizes.iter().map(|size| permit.take_packet(*size)));
                    } else if !held.is_empty() {
                        let acknowledged = order as usize % held.len();
                        held.drain(..=acknowledged);
                    }
                    prop_assert!(admission.bytes_in_use() <= 1000 && admission.packets_in_use() <= 10);
                }
                held.clear();
                prop_assert_eq!((admission.bytes_in_use(), admission.packets_in_use()), (0, 0));
                Ok(())
            })?;
        }
    }
}
