//! Which ingest to send to, where several are named: the choice alone, without connections and without a clock.
//!
//! The first is used until it fails, then the next, and after the last the first again. One that failed rests before it
//! is tried again, longer each time until it has settled a packet; one that refuses the call itself is never tried again.

use std::time::Duration;

use backon::ExponentialBackoff;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::window::backoff;

/// Without any packet settled for so long an endpoint is left for another. A healthy one answers within a second or two.
const SILENCE: Duration = Duration::from_secs(5);

struct Endpoint {
    address: String,
    backoff: ExponentialBackoff,
    /// From when it may be used; never where it refuses the call.
    due: Option<Instant>,
    /// What went wrong since it last settled a packet.
    error: Option<Status>,
}

/// The endpoints in the order of preference, and which of them is in use.
pub(crate) struct Endpoints {
    all: Vec<Endpoint>,
    current: usize,
}

impl Endpoints {
    /// At least one; all may be used at once.
    pub(crate) fn new(addresses: impl IntoIterator<Item = String>, now: Instant) -> Self {
        let endpoint = |address| Endpoint { address, backoff: backoff(), due: Some(now), error: None };
        Self { all: addresses.into_iter().map(endpoint).collect(), current: 0 }
    }

    /// The index of the one in use.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    pub(crate) fn address(&self, index: usize) -> &str {
        &self.all[index].address
    }

    /// Whether there is another one to turn to.
    pub(crate) fn has_others(&self) -> bool {
        self.all.iter().enumerate().any(|(index, endpoint)| index != self.current && endpoint.due.is_some())
    }

    /// How long the one in use may settle nothing before it has failed, where `patience` is left for all together: each has
    /// its turn.
    pub(crate) fn silence(&self, patience: Duration) -> Duration {
        if self.has_others() { SILENCE.min(patience / self.all.len() as u32) } else { patience }
    }

    /// The one in use has settled a packet.
    pub(crate) fn settled(&mut self) {
        let endpoint = &mut self.all[self.current];
        endpoint.backoff = backoff();
        endpoint.error = None;
    }

    /// The one in use has failed. From when the one is to be used that is now [`Self::current`], perhaps the same; none
    /// where all refuse the call.
    pub(crate) fn failed(&mut self, error: Status, now: Instant) -> Option<Instant> {
        let endpoint = &mut self.all[self.current];
        endpoint.due = retriable(error.code()).then(|| now + endpoint.backoff.next().unwrap_or_default());
        endpoint.error = Some(error);

        let count = self.all.len();
        let others = (1..=count).map(|step| (self.current + step) % count);
        let usable = others.filter_map(|index| Some((index, self.all[index].due?.max(now))));
        // Of those that are due at the same time, the next in order.
        let (index, due) = usable.min_by_key(|(_, due)| *due)?;
        self.current = index;
        Some(due)
    }

    /// What went wrong at the one in use since it last settled a packet.
    pub(crate) fn error(&self) -> Option<&Status> {
        self.all[self.current].error.as_ref()
    }

    /// Every endpoint and the last thing that went wrong there.
    pub(crate) fn errors(&self) -> String {
        let error = |endpoint: &Endpoint| match &endpoint.error {
            Some(error) => format!("{}: {} ({:?})", endpoint.address, error.message(), error.code()),
            None => format!("{}: no error", endpoint.address),
        };
        self.all.iter().map(error).collect::<Vec<_>>().join("; ")
    }
}

/// Whether another stream may do better: not where ingest refuses the call itself.
fn retriable(code: Code) -> bool {
    !matches!(
        code,
        Code::Unimplemented
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::NotFound
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(addresses: &[&str], now: Instant) -> Endpoints {
        Endpoints::new(addresses.iter().map(ToString::to_string), now)
    }

    fn down() -> Status {
        Status::unavailable("down")
    }

    #[test]
    fn the_next_one_is_used_at_once_and_after_the_last_the_first_once_it_has_rested() {
        let now = Instant::now();
        let mut endpoints = endpoints(&["a", "b", "c"], now);
        assert_eq!(endpoints.current(), 0);
        assert_eq!(endpoints.failed(down(), now), Some(now));
        assert_eq!(endpoints.current(), 1);
        assert_eq!(endpoints.failed(down(), now), Some(now));
        assert_eq!(endpoints.current(), 2);
        let later = now + Duration::from_secs(10);
        assert_eq!(endpoints.failed(down(), later), Some(later));
        assert_eq!(endpoints.current(), 0);
    }

    #[test]
    fn where_all_have_failed_the_one_that_rests_least_is_next() {
        let now = Instant::now();
        let mut endpoints = endpoints(&["a", "b"], now);
        let mut due = now;
        for _ in 0..20 {
            due = endpoints.failed(down(), due).unwrap();
        }
        // By now each rests for seconds; one that works again is tried again soon after it fails.
        let now = due + Duration::from_secs(60);
        endpoints.settled();
        let current = endpoints.current();
        endpoints.failed(down(), now).unwrap();
        endpoints.failed(down(), now).unwrap();
        assert_eq!(endpoints.current(), current);
    }

    #[test]
    fn a_single_one_is_used_again_after_a_rest_that_grows() {
        let now = Instant::now();
        let mut endpoints = endpoints(&["a"], now);
        let rests: Vec<_> = (0..4).map(|_| endpoints.failed(down(), now).unwrap() - now).collect();
        assert_eq!(endpoints.current(), 0);
        assert!(rests[0] >= Duration::from_millis(100) && rests[3] >= Duration::from_millis(800), "{rests:?}");
    }

    #[test]
    fn one_that_refuses_the_call_is_never_used_again() {
        let now = Instant::now();
        let mut endpoints = endpoints(&["a", "b"], now);
        endpoints.failed(Status::permission_denied("not you"), now);
        assert!(!endpoints.has_others());
        let due = endpoints.failed(down(), now).unwrap();
        assert_eq!((endpoints.current(), due > now), (1, true));
        assert_eq!(endpoints.failed(Status::unimplemented("no such call"), due), None);
        assert_eq!(endpoints.errors(), "a: not you (PermissionDenied); b: no such call (Unimplemented)");
    }

    #[test]
    fn each_has_its_share_of_the_patience() {
        let now = Instant::now();
        let all = |addresses: &[&str], seconds| endpoints(addresses, now).silence(Duration::from_secs(seconds));
        assert_eq!(all(&["a"], 30), Duration::from_secs(30));
        assert_eq!(all(&["a", "b"], 30), SILENCE);
        assert_eq!(all(&["a", "b"], 4), Duration::from_secs(2));
    }

    #[test]
    fn an_error_is_forgotten_once_a_packet_is_settled() {
        let now = Instant::now();
        let mut endpoints = endpoints(&["a", "b"], now);
        endpoints.failed(down(), now);
        assert!(endpoints.error().is_none());
        endpoints.settled();
        assert_eq!(endpoints.errors(), "a: down (Unavailable); b: no error");
    }
}
