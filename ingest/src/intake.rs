//! The way of one request from its bytes to the Kafka client, shared by both calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coderelay_runtime::clock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;
use tracing::Instrument;

use crate::ack::Ack;
use crate::admission::{Admission, Exhausted, Permit, Reservation};
use crate::frames::Frame;
use crate::metrics::METRICS;
use crate::mirror::Mirror;
use crate::outcome::{Failure, Outcome};
use crate::peer::Peer;
use crate::producer::{Delivery, Producer, RequestHeaders};
use crate::reply::{Reply, Slot};
use crate::trace::Origin;
use crate::unread::{Full, Unread};
use crate::validate::{Invalid, Pace, Valid, Validator};
use crate::wire::{Call, RawRequest, RequestError};

/// Whose requests they are, and what was agreed for all of them.
#[derive(Debug)]
pub struct Caller {
    /// What the call is called.
    pub origin: Origin,
    /// What the acknowledgement of its packets is to promise.
    pub ack: Ack,
    /// The connection it came over.
    pub peer: Peer,
}

/// What every call needs, one per process.
#[derive(Debug)]
pub struct Intake {
    /// The budget.
    pub admission: Arc<Admission>,
    /// The rules.
    pub validator: Validator,
    /// The budget of results that clients have not read.
    pub unread: Arc<Unread>,
    /// The way out.
    pub producer: Arc<Producer>,
    /// The other region, where there is one that confirms packets.
    pub mirror: Option<Arc<Mirror>>,
    /// What an acknowledgement promises where the call says nothing.
    pub default_ack: Ack,
    /// Most packets in one request.
    pub max_packets: usize,
    /// The delay that clients are asked for.
    pub retry_after: Duration,
    /// Whether spans leave the process.
    pub exports_traces: bool,
    /// Cancelled when nothing more is to be taken.
    pub draining: CancellationToken,
    /// Calls that are not answered to the end.
    pub calls: TaskTracker,
}

impl Intake {
    /// Takes one request: every packet is refused, or handed to the Kafka client, whose report settles it. Packets go
    /// to Kafka in the order in which they stand in the request.
    ///
    /// # Errors
    /// A message that is no request: it has no packets that could be answered. Or there is no place for the answers. The call ends.
    pub async fn take(&self, call: Call, frame: Frame, slot: Slot, caller: &Caller) -> Result<(), Failure> {
        let Frame { message, reservation, received } = frame;
        let size = message.len();
        let request = RawRequest::decode(call, message, self.max_packets)?;
        METRICS.request_read(request.count, size);

        let admitted = self.admit(reservation, request.count, caller.ack).await;
        let places = self.unread.reserve(&caller.peer, request.count as u32).await;
        let places = places.map_err(|Full| self.unread_answers())?;
        let topic = Arc::clone(self.producer.topic());
        let reply = Reply::new(request.seq, request.count, topic, received, slot, places);
        match admitted {
            Ok(permit) => {
                let span = caller.origin.span(request.count, self.exports_traces);
                let traceparent = caller.origin.traceparent(&span);
                let headers = self.producer.request_headers(&traceparent, caller.origin.tracestate());
                self.produce(request, &reply, permit, &headers, caller.ack).instrument(span).await;
            }
            Err((refusal, _reservation)) => reply.fail_all(&refusal),
        }
        Ok(())
    }

    /// A refused request keeps its reservation until the answers are made.
    async fn admit(
        &self,
        reservation: Reservation,
        packets: usize,
        ack: Ack,
    ) -> Result<Permit, (Failure, Reservation)> {
        if ack == Ack::Mirrored
            && let Some(Err(behind)) = self.mirror.as_ref().map(|mirror| mirror.admit())
        {
            return Err((behind, reservation));
        }
        let admitted = self.admission.admit(reservation, packets as u32).await;
        admitted.map_err(|(Exhausted, reservation)| (self.exhausted(), reservation))
    }

    async fn produce(
        &self,
        request: RawRequest,
        reply: &Arc<Reply>,
        mut permit: Permit,
        headers: &RequestHeaders,
        ack: Ack,
    ) {
        let (now, sent) = (clock::now(), Instant::now());
        let mut pace = Pace::default();
        let mut value = Vec::new();
        for (index, raw) in request.packets().enumerate() {
            let permit = permit.take_packet(raw.len());
            match self.validator.check(raw, now, &mut pace).await {
                Ok(Valid { id, packet }) => {
                    let delivery = Delivery { reply: Arc::clone(reply), index, id, permit, ack, sent };
                    self.producer.send(&packet, headers, delivery, &mut value);
                }
                Err(Invalid { id, violations }) => reply.settle(index, id, Outcome::Invalid(violations)),
            }
        }
    }

    fn exhausted(&self) -> Failure {
        let message = "too much is on its way to Kafka already: slow down, then send the packet again";
        Failure::transient(Code::ResourceExhausted, "ADMISSION_EXHAUSTED", message, self.retry_after)
    }

    fn unread_answers(&self) -> Failure {
        let message = "too many answers wait for their clients to read them: read yours, then send the packets again";
        Failure::transient(Code::ResourceExhausted, "ANSWERS_UNREAD", message, self.retry_after)
    }

    /// The end of calls that a leaving process does not serve to their own end.
    pub fn leaving(&self) -> Failure {
        let message = "this instance is draining: connect again";
        Failure::transient(Code::Unavailable, "DRAINING", message, self.retry_after)
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let reason = match &error {
            RequestError::Malformed(_) => "REQUEST_MALFORMED",
            RequestError::TooManyPackets { .. } => "REQUEST_TOO_MANY_PACKETS",
        };
        Self::permanent(Code::InvalidArgument, reason, error.to_string())
    }
}
