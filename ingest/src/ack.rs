//! What a packet's acknowledgement promises: the call's metadata `x-ack`, or the deployment's default.

use http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::outcome::Failure;

/// Metadata of a call that says what the acknowledgement of its packets is to promise.
pub const METADATA: &str = "x-ack";

/// When a packet is answered `committed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// When all in-sync replicas of this region have it.
    #[default]
    Local,
    /// When it is known that those of the other region have it too.
    Mirrored,
}

impl Ack {
    /// What a call with these headers asks for. `mirrored` cannot be had where no `[mirror]` is configured.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with `ACK_UNKNOWN` for any other value, `FAILED_PRECONDITION` with `MIRROR_NOT_CONFIGURED`.
    pub fn of(headers: &HeaderMap, default: Self, has_mirror: bool) -> Result<Self, Failure> {
        let ack = match headers.get(METADATA).map(http::HeaderValue::as_bytes) {
            None => default,
            Some(b"local") => Self::Local,
            Some(b"mirrored") => Self::Mirrored,
            Some(other) => {
                let message = format!("x-ack is \"{}\": must be local or mirrored", other.escape_ascii());
                return Err(Failure::permanent(Code::InvalidArgument, "ACK_UNKNOWN", message).of_field(METADATA));
            }
        };
        if ack == Self::Mirrored && !has_mirror {
            let message = "x-ack: mirrored asks for another region's confirmation, and this deployment has no [mirror]";
            let failure = Failure::permanent(Code::FailedPrecondition, "MIRROR_NOT_CONFIGURED", message);
            return Err(failure.of_field(METADATA));
        }
        Ok(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Option<&'static str>, default: Ack, has_mirror: bool) -> Result<Ack, &'static str> {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(METADATA, http::HeaderValue::from_static(value));
        }
        Ack::of(&headers, default, has_mirror).map_err(|failure| failure.reason)
    }

    #[test]
    fn the_call_decides_and_the_default_where_it_says_nothing() {
        assert_eq!(of(None, Ack::Local, true), Ok(Ack::Local));
        assert_eq!(of(None, Ack::Mirrored, true), Ok(Ack::Mirrored));
        assert_eq!(of(Some("mirrored"), Ack::Local, true), Ok(Ack::Mirrored));
        assert_eq!(of(Some("local"), Ack::Mirrored, true), Ok(Ack::Local));
    }

    #[test]
    fn what_is_unknown_or_cannot_be_had_is_refused() {
        assert_eq!(of(Some("Mirrored"), Ack::Local, true), Err("ACK_UNKNOWN"));
        assert_eq!(of(Some(""), Ack::Local, true), Err("ACK_UNKNOWN"));
        assert_eq!(of(Some("mirrored"), Ack::Local, false), Err("MIRROR_NOT_CONFIGURED"));
        assert_eq!(of(Some("local"), Ack::Local, false), Ok(Ack::Local));
    }
}
