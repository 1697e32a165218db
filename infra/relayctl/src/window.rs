//! Which packets are on their way, which wait for another try: the bookkeeping of a Publish stream, without the stream.
//!
//! A packet that was handed in stays here until it has a final outcome. It is sent again, with the same packet id, when
//! its result carries `RetryInfo` and when the stream broke before its result came.

use std::collections::BTreeMap;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{CodePacket, Committed, PublishRequest, PublishResult};
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::RpcStatusExt as _;

/// Packets in flight at most.
const MAX_PACKETS: usize = 512;
/// Bytes in flight at most; one packet may exceed it alone.
const MAX_BYTES: usize = 16 << 20;
/// A request is closed once it holds this many bytes, so that a large packet travels alone.
const REQUEST_BYTES: usize = 512 << 10;
/// Packets of one request.
const REQUEST_PACKETS: usize = 100;
/// After so many answers in a row that ingest is unavailable, a packet is better sent elsewhere.
const UNAVAILABLE_ANSWERS: u32 = 3;

/// A packet to publish; `tag` is the caller's name for it.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) tag: usize,
    pub(crate) packet: CodePacket,
}

/// The final outcome of one parcel.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) tag: usize,
    pub(crate) packet_id: Option<PacketId>,
    /// How often it was sent.
    pub(crate) attempts: u32,
    pub(crate) outcome: Result<Committed, Rejection>,
}

/// Why ingest does not take a packet, however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// `UPPER_SNAKE` reason, or the gRPC code's name where there is none.
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Delays between the tries of one packet, and between connections.
pub(crate) fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}

struct Flight {
    parcel: Parcel,
    bytes: usize,
    attempts: u32,
    /// How often in a row the answer was `UNAVAILABLE`, of the endpoint in use.
    unavailable: u32,
    backoff: ExponentialBackoff,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Window {
    next_seq: u64,
    bytes: usize,
    in_flight: BTreeMap<u64, Flight>,
    waiting: Vec<(Instant, Flight)>,
    stuck: Option<Status>,
}

impl Window {
    /// How many more packets may be handed in. Those that wait for another try keep their place.
    pub(crate) fn room(&self) -> usize {
        if self.bytes >= MAX_BYTES { 0 } else { MAX_PACKETS.saturating_sub(self.unsettled()) }
    }

    /// Packets without a final outcome.
    pub(crate) fn unsettled(&self) -> usize {
        self.in_flight.len() + self.waiting.len()
    }

    /// Takes new packets; they are due at once.
    pub(crate) fn admit(&mut self, parcels: impl IntoIterator<Item = Parcel>, now: Instant) {
        for parcel in parcels {
            let bytes = parcel.packet.encoded_len();
            self.bytes += bytes;
            self.waiting.push((now, Flight { parcel, bytes, attempts: 0, unavailable: 0, backoff: backoff() }));
        }
    }

    /// When the next packet is due, if any waits.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.iter().map(|(due, _)| *due).min()
    }

    /// The next request to send, if a packet is due.
    pub(crate) fn next_request(&mut self, now: Instant) -> Option<PublishRequest> {
        let mut request = PublishRequest { seq: self.next_seq, packets: Vec::new() };
        let mut bytes = 0;
        let mut index = 0;
        while index < self.waiting.len() && bytes < REQUEST_BYTES && request.packets.len() < REQUEST_PACKETS {
            let (due, flight) = &self.waiting[index];
            let fits = bytes == 0 || bytes + flight.bytes <= REQUEST_BYTES;
            if *due > now || !fits {
                index += 1;
                continue;
            }
            let (_, mut flight) = self.waiting.remove(index);
            bytes += flight.bytes;
            flight.attempts += 1;
            request.packets.push(flight.parcel.packet.clone());
            self.in_flight.insert(self.next_seq, flight);
            self.next_seq += 1;
        }
        (!request.packets.is_empty()).then_some(request)
    }

    /// Takes one result. A receipt if it is final; none if the packet will be sent again or is unknown.
    pub(crate) fn settle(&mut self, result: PublishResult, now: Instant) -> Option<Receipt> {
        let mut flight = self.in_flight.remove(&result.seq)?;
        let outcome = match result.outcome {
            Some(Outcome::Committed(committed)) => Ok(committed),
            Some(Outcome::Error(status)) => {
                if let Some(retry) = status.get_details_retry_info() {
                    let asked = retry.retry_delay.unwrap_or_default();
                    let own = flight.backoff.next().unwrap_or_default();
                    let code = Code::from_i32(status.code);
                    flight.unavailable = if code == Code::Unavailable { flight.unavailable + 1 } else { 0 };
                    if flight.unavailable >= UNAVAILABLE_ANSWERS {
                        self.stuck = Some(Status::new(code, status.message));
                    }
                    self.waiting.push((now + asked.max(own), flight));
                    return None;
                }
                let code = Code::from_i32(status.code);
                let reason = status.get_details_error_info().map_or_else(|| format!("{code:?}"), |info| info.reason);
                Err(Rejection { reason, message: status.message })
            }
            None => Err(Rejection { reason: "NO_OUTCOME".to_owned(), message: "ingest gave no outcome".to_owned() }),
        };
        self.bytes -= flight.bytes;
        let packet_id = PacketId::from_slice(&result.packet_id).ok();
        Some(Receipt { tag: flight.parcel.tag, packet_id, attempts: flight.attempts, outcome })
    }

    /// The stream is gone: everything in flight is due again. Whether Kafka has it is unknown, which the packet id makes
    /// harmless.
    pub(crate) fn lost(&mut self, now: Instant) {
        let lost = std::mem::take(&mut self.in_flight);
        self.waiting.extend(lost.into_values().map(|flight| (now, flight)));
    }

    /// The last answer of a packet that keeps being answered `UNAVAILABLE`, where there is one since this was last asked.
    pub(crate) fn stuck(&mut self) -> Option<Status> {
        self.stuck.take()
    }

    /// Another endpoint is used from now on: what the last one asked to wait for does not hold there.
    pub(crate) fn moved(&mut self, now: Instant) {
        self.stuck = None;
        for (due, flight) in &mut self.waiting {
            *due = now;
            flight.unavailable = 0;
            flight.backoff = backoff();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::{ErrorDetails, StatusExt as _};

    fn parcel(tag: usize, bytes: usize) -> Parcel {
        Parcel { tag, packet: CodePacket { content: vec![0; bytes].into(), ..CodePacket::default() } }
    }

    fn committed(seq: u64) -> PublishResult {
        let outcome = Outcome::Committed(Committed { topic: "t".into(), partition: 0, offset: 7 });
        PublishResult { seq, packet_id: vec![1; 16].into(), outcome: Some(outcome) }
    }

    fn failed(seq: u64, code: tonic::Code, details: ErrorDetails) -> PublishResult {
        let status = tonic::Status::with_error_details(code, "no", details);
        let status = <tonic_types::pb::Status as prost::Message>::decode(status.details()).unwrap();
        PublishResult { seq, outcome: Some(Outcome::Error(status)), ..PublishResult::default() }
    }

    #[test]
    fn each_packet_settles_once_under_its_own_number() {
        let now = Instant::now();
        let mut window = Window::default();
        window.admit((0..3).map(|tag| parcel(tag, 10)), now);
        let request = window.next_request(now).unwrap();
        assert_eq!((request.seq, request.packets.len()), (0, 3));
        assert!(window.next_request(now).is_none());

        assert_eq!(window.settle(committed(1), now).unwrap().tag, 1);
        assert!(window.settle(committed(1), now).is_none(), "a second result for one number is ignored");
        assert_eq!(window.unsettled(), 2);
    }

    #[test]
    fn retry_info_sends_the_packet_again_and_not_before_its_delay() {
        let now = Instant::now();
        let mut window = Window::default();
        window.admit([parcel(5, 10)], now);
        window.next_request(now).unwrap();
        let busy = ErrorDetails::with_retry_info(Some(Duration::from_secs(30)));
        assert!(window.settle(failed(0, tonic::Code::Unavailable, busy), now).is_none());
        assert!(window.next_request(now + Duration::from_secs(29)).is_none());
        let again = window.next_request(now + Duration::from_secs(30)).unwrap();
        assert_eq!(again.seq, 1, "a retry has a number of its own");
        let receipt = window.settle(committed(1), now).unwrap();
        assert_eq!((receipt.tag, receipt.attempts), (5, 2));
    }

    #[test]
    fn an_error_without_retry_info_is_final_and_keeps_its_reason() {
        let now = Instant::now();
        let mut window = Window::default();
        window.admit([parcel(0, 10)], now);
        window.next_request(now).unwrap();
        let details = ErrorDetails::with_error_info("CONTENT_CORRUPT", "coderelay.v1", []);
        let receipt = window.settle(failed(0, tonic::Code::InvalidArgument, details), now).unwrap();
        let rejection = receipt.outcome.unwrap_err();
        assert_eq!(rejection, Rejection { reason: "CONTENT_CORRUPT".into(), message: "no".into() });
        assert_eq!((window.unsettled(), window.bytes), (0, 0));
    }

    #[test]
    fn a_lost_stream_loses_no_packet() {
        let now = Instant::now();
        let mut window = Window::default();
        window.admit((0..250).map(|tag| parcel(tag, 10)), now);
        while window.next_request(now).is_some() {}
        window.settle(committed(0), now).unwrap();
        window.lost(now);
        let mut again = 0;
        while let Some(request) = window.next_request(now) {
            assert!(request.packets.len() <= REQUEST_PACKETS);
            again += request.packets.len();
        }
        assert_eq!(again, 249);
    }

    #[test]
    fn a_packet_that_stays_unavailable_is_due_at_once_elsewhere() {
        let mut now = Instant::now();
        let mut window = Window::default();
        window.admit([parcel(0, 10)], now);
        for (seq, code) in (0..).zip([Code::Unavailable, Code::ResourceExhausted, Code::Unavailable, Code::Unavailable])
        {
            window.next_request(now).unwrap();
            let later = ErrorDetails::with_retry_info(Some(Duration::from_secs(30)));
            assert!(window.settle(failed(seq, code, later), now).is_none());
            assert!(window.stuck().is_none(), "pressure is no reason to leave, and ends the row");
            now += Duration::from_secs(30);
        }
        window.next_request(now).unwrap();
        let later = ErrorDetails::with_retry_info(Some(Duration::from_secs(30)));
        assert!(window.settle(failed(4, Code::Unavailable, later), now).is_none());
        assert_eq!(window.stuck().unwrap().message(), "no");
        assert!(window.next_request(now).is_none());
        window.moved(now);
        assert_eq!(window.next_request(now).unwrap().packets.len(), 1);
    }

    #[test]
    fn bytes_in_flight_and_in_a_request_are_bounded() {
        let now = Instant::now();
        let mut window = Window::default();
        window.admit((0..5).map(|tag| parcel(tag, 4 << 20)), now);
        assert_eq!(window.room(), 0);
        assert_eq!(window.next_request(now).unwrap().packets.len(), 1, "a large packet travels alone");
    }
}
