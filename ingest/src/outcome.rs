//! What became of a packet, and how that is told: `google.rpc.Status` with standard details.
//!
//! Every error carries an `ErrorInfo` with a `reason` of its own and the domain `coderelay`. Errors of the packet
//! (`INVALID_ARGUMENT`) list each broken field in a `BadRequest` and never carry a `RetryInfo`; errors that pass by
//! themselves (`RESOURCE_EXHAUSTED`, `UNAVAILABLE`) always do. See AIP-193 for the model.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::pb;
use coderelay_schemas::validate::Violation;
use prost::Message;
use tonic::Code;
use tonic_types::pb as rpc;

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "coderelay";

/// The one thing that became of a packet.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All in-sync replicas have the record.
    Committed {
        /// Partition of the topic.
        partition: i32,
        /// Offset in the partition.
        offset: i64,
    },
    /// The packet breaks rules; sending it again changes nothing.
    Invalid(Vec<Violation>),
    /// The packet is fine, but was not taken.
    Failed(Failure),
}

/// Why a packet, or a whole call, was not taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The status code.
    pub code: Code,
    /// `ErrorInfo.reason`
    pub reason: &'static str,
    /// For people.
    pub message: Cow<'static, str>,
    /// How long the client should wait before it sends the packet again; `None` if that would not help.
    pub retry_after: Option<Duration>,
    /// What of the call is wrong, for a `BadRequest`; `None` if nothing is.
    pub field: Option<&'static str>,
}

impl Outcome {
    /// Label of the outcome in metrics: the error's reason, or `COMMITTED`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Committed { .. } => "COMMITTED",
            Self::Invalid(violations) => violations.first().map_or("INVALID", |first| first.reason.as_str()),
            Self::Failed(failure) => failure.reason,
        }
    }

    /// The result as the client sees it.
    pub fn into_result(self, seq: u64, id: Option<PacketId>, topic: &str) -> pb::PublishResult {
        use pb::publish_result::Outcome as Wire;

        let outcome = match self {
            Self::Committed { partition, offset } => {
                Wire::Committed(pb::Committed { topic: topic.to_owned(), partition, offset })
            }
            Self::Invalid(violations) => Wire::Error(invalid(&violations)),
            Self::Failed(failure) => Wire::Error(failure.to_rpc()),
        };
        let packet_id = id.map(|id| id.to_bytes()).unwrap_or_default();
        pb::PublishResult { seq, packet_id, outcome: Some(outcome) }
    }
}

impl Failure {
    /// A failure that passes: the client should send the same packet again.
    pub const fn transient(code: Code, reason: &'static str, message: &'static str, retry_after: Duration) -> Self {
        Self { code, reason, message: Cow::Borrowed(message), retry_after: Some(retry_after), field: None }
    }

    /// A failure that stays.
    pub fn permanent(code: Code, reason: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None, field: None }
    }

    /// The same, with the part of the call that is wrong.
    #[must_use]
    pub fn of_field(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    /// As the `error` of one packet.
    pub fn to_rpc(&self) -> rpc::Status {
        let mut details = vec![error_info(self.reason)];
        if let Some(delay) = self.retry_after {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(any("RetryInfo", &rpc::RetryInfo { retry_delay }));
        }
        if let Some(field) = self.field {
            let violation = field_violation(field, &self.message, self.reason);
            details.push(any("BadRequest", &rpc::BadRequest { field_violations: vec![violation] }));
        }
        rpc::Status { code: self.code.into(), message: self.message.clone().into_owned(), details }
    }
}

/// As the end of a whole call: the same details, in the trailers.
impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let rpc = failure.to_rpc();
        let details = Bytes::from(rpc.encode_to_vec());
        Self::with_details(failure.code, rpc.message, details)
    }
}

fn invalid(violations: &[Violation]) -> rpc::Status {
    let first = violations.first().map_or("INVALID", |first| first.reason.as_str());
    let field_violations = violations
        .iter()
        .map(|violation| field_violation(violation.field, &violation.description, violation.reason.as_str()))
        .collect();
    let message = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let details = vec![error_info(first), any("BadRequest", &rpc::BadRequest { field_violations })];
    rpc::Status { code: Code::InvalidArgument.into(), message, details }
}

fn field_violation(field: &str, description: &str, reason: &str) -> rpc::bad_request::FieldViolation {
    rpc::bad_request::FieldViolation {
        field: field.to_owned(),
        description: description.to_owned(),
        reason: reason.to_owned(),
        localized_message: None,
    }
}

fn error_info(reason: &str) -> prost_types::Any {
    let info = rpc::ErrorInfo { reason: reason.to_owned(), domain: DOMAIN.to_owned(), ..Default::default() };
    any("ErrorInfo", &info)
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coderelay_schemas::validate::Reason;
    use tonic_types::{RpcStatusExt, StatusExt};

    fn error(outcome: Outcome) -> rpc::Status {
        match outcome.into_result(7, None, "t").outcome {
            Some(pb::publish_result::Outcome::Error(status)) => status,
            other => panic!("expected an error, got {other:?}"),
        }
    }

    #[test]
    fn a_commit_tells_where() {
        let result = Outcome::Committed { partition: 3, offset: 99 }.into_result(7, Some(PacketId([1; 16])), "t");
        let committed = pb::Committed { topic: "t".into(), partition: 3, offset: 99 };
        assert_eq!(result.outcome, Some(pb::publish_result::Outcome::Committed(committed)));
        assert_eq!((result.seq, result.packet_id.len()), (7, 16));
    }

    #[test]
    fn an_invalid_packet_lists_every_violation_and_is_not_to_be_retried() {
        let violation = |field, reason| Violation { field, reason, description: "is wrong".into() };
        let violations =
            vec![violation("repo_id", Reason::RepoIdEmpty), violation("packet_id", Reason::PacketIdLength)];
        let status = error(Outcome::Invalid(violations));
        assert_eq!(status.code, Code::InvalidArgument as i32);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("REPO_ID_EMPTY", "coderelay"));
        let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.clone()).collect();
        assert_eq!(fields, ["repo_id", "packet_id"]);
        assert!(details.retry_info().is_none());
    }

    #[test]
    fn a_transient_failure_says_when_to_come_back() {
        let failure = Failure::transient(Code::Unavailable, "KAFKA_UNAVAILABLE", "later", Duration::from_secs(1));
        let status = error(Outcome::Failed(failure.clone()));
        assert_eq!(status.get_error_details().retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
        let status = tonic::Status::from(failure);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "KAFKA_UNAVAILABLE");
    }

    #[test]
    fn a_failure_of_the_call_itself_names_the_field() {
        let failure = Failure::permanent(Code::InvalidArgument, "ACK_UNKNOWN", "no such value").of_field("x-ack");
        let details = tonic::Status::from(failure).get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!((violation.field.as_str(), violation.description.as_str()), ("x-ack", "no such value"));
    }

    #[test]
    fn a_permanent_failure_has_no_retry_info() {
        let status = error(Outcome::Failed(Failure::permanent(Code::Internal, "INTERNAL", "broken")));
        assert!(status.get_error_details().retry_info().is_none());
    }
}
