//! The way of one request from its bytes to the Kafka client, shared by both calls.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;
use tracing::Instrument;

use crate::ack::Ack;
use crate::admission::{Admission, Exhausted, Permit};
use crate::frames::Frame;
use crate::metrics::METRICS;
use crate::mirror::Mirror;
use crate::outcome::{Failure, Outcome};
use crate::producer::{Delivery, Producer, RequestHeaders};
use crate::reply::{Reply, Slot};
use crate::trace::Origin;
use crate::validate::{Invalid, Pace, Valid, Validator};
use crate::wire::{Call, RawRequest, RequestError};

/// What every call needs, one per process.
#[derive(Debug)]
pub struct Intake {
    /// The budget.
    pub admission: Arc<Admission>,
    /// The rules.
    pub validator: Validator,
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
    /// A message that is no request. It has no packets that could be answered: the call ends.
    pub async fn take(&self, call: Call, frame: Frame, slot: Slot, origin: &Origin, ack: Ack) -> Result<(), Failure> {
        let Frame { message, reservation, received } = frame;
        let size = message.len();
        let request = RawRequest::decode(call, message, self.max_packets)?;
        let packets = request.packets.len();
        METRICS.request_read(packets, size);

        let topic = Arc::clone(self.producer.topic());
        let reply = Reply::new(request.seq, packets, topic, received, slot);
        if ack == Ack::Mirrored
            && let Some(Err(behind)) = self.mirror.as_ref().map(|mirror| mirror.admit())
        {
            // The reservation is held until the answers are made.
            reply.fail_all(&behind);
            drop(reservation);
            return Ok(());
        }
        match self.admission.admit(reservation, packets as u32).await {
            Ok(permit) => {
                let span = origin.span(packets, self.exports_traces);
                let traceparent = origin.traceparent(&span);
                let headers = self.producer.request_headers(&traceparent, origin.tracestate());
                self.produce(request, &reply, permit, &headers, ack).instrument(span).await;
            }
            Err((Exhausted, _reservation)) => reply.fail_all(&self.exhausted()),
        }
        Ok(())
    }

    async fn produce(
        &self,
        request: RawRequest,
        reply: &Arc<Reply>,
        mut permit: Permit,
        headers: &RequestHeaders,
        ack: Ack,
    ) {
        let (now, sent) = (SystemTime::now(), Instant::now());
        let mut pace = Pace::default();
        let mut value = Vec::new();
        for (index, raw) in request.packets.into_iter().enumerate() {
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
