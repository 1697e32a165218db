//! The plan of a load: which packets each request holds and when it is due, fixed before the first is sent.
//!
//! Nothing in it depends on answers. That is what makes an open loop open: a service that stalls is late for everything that
//! was due meanwhile, instead of being asked less (coordinated omission).

use std::ops::Range;
use std::time::Duration;

use crate::scenario::{Repeats, Scenario};

/// A stretch of even rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// `warm-up`, `before`, `burst`, `after`, the rate of a ramp's step, or `load`.
    pub name: String,
    /// Packets a second.
    pub rate: f64,
    /// When it begins, since the first request.
    pub start: Duration,
    /// When it ends.
    pub end: Duration,
    /// Its first request and the one after its last.
    pub requests: Range<u64>,
}

/// Which packets are sent, in which requests, and when. Packets are numbers of the corpus; requests count from 0.
#[derive(Clone, Debug)]
pub struct Plan {
    per_request: u64,
    /// The phases of an open loop, without gaps; none in a closed one.
    phases: Vec<Phase>,
    requests: u64,
    warm_up: u64,
    repeats: Option<Repeats>,
}

/// One request of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The packets it holds.
    pub packets: Range<u64>,
    /// When it is due, since the load began; `None` in a closed loop.
    pub due: Option<Duration>,
    /// Its phase, as an index into [`Plan::phases`].
    pub phase: usize,
    /// Whether they were sent before.
    pub repeat: bool,
    /// Whether it counts, or is only there to warm up.
    pub measured: bool,
}

impl Plan {
    /// The plan of a scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let load = &scenario.load;
        let per_request = load.per_request;
        let phases = load.rate.map_or_else(Vec::new, |rate| lay_out(stretches(scenario, rate), per_request));
        let (requests, warm_up) = if let (Some(first), Some(last)) = (phases.first(), phases.last()) {
            (last.requests.end, if first.name == WARM_UP { first.requests.end } else { 0 })
        } else {
            let warm_up = load.warm_up_packets.div_ceil(per_request);
            (warm_up + load.packets.div_ceil(per_request), warm_up)
        };
        Self { per_request, phases, requests, warm_up, repeats: scenario.repeats.clone() }
    }

    /// All requests.
    pub fn requests(&self) -> Range<u64> {
        0..self.requests
    }

    /// The requests that only warm up.
    pub fn warm_up(&self) -> Range<u64> {
        0..self.warm_up
    }

    /// The requests that count.
    pub fn measured(&self) -> Range<u64> {
        self.warm_up..self.requests
    }

    /// Packets in a request.
    pub fn per_request(&self) -> u64 {
        self.per_request
    }

    /// Different packets in all: their numbers are below this.
    pub fn packets(&self) -> u64 {
        self.new_before(self.requests) * self.per_request
    }

    /// Whether arrivals have times.
    pub fn is_open(&self) -> bool {
        !self.phases.is_empty()
    }

    /// The phases of an open loop.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// When the measured part of an open loop begins, since its first request.
    pub fn measured_from(&self) -> Duration {
        self.phases
            .iter()
            .find(|phase| phase.requests.start >= self.warm_up)
            .map_or(Duration::ZERO, |phase| phase.start)
    }

    /// When the last phase ends, since the first request.
    pub fn end(&self) -> Duration {
        self.phases.last().map_or(Duration::ZERO, |phase| phase.end)
    }

    /// The request with this number.
    pub fn arrival(&self, request: u64) -> Arrival {
        let (new, repeat) = (self.new_before(request), self.is_repeat(request));
        let first = match &self.repeats {
            Some(repeats) if repeat => new.saturating_sub((repeats.after / self.per_request).max(1)),
            _ => new,
        };
        let packets = first * self.per_request..(first + 1) * self.per_request;
        let (due, phase) = (self.due(request), self.phase_of(request));
        Arrival { packets, due, phase, repeat, measured: request >= self.warm_up }
    }

    /// When packet `n` is due for the first time, since the load began; `None` in a closed loop.
    pub fn intended(&self, n: u64) -> Option<Duration> {
        if !self.is_open() {
            return None;
        }
        let new = n / self.per_request;
        let mut request = match &self.repeats {
            Some(repeats) if new > self.warm_up => {
                self.warm_up + ((new - self.warm_up) as f64 / (1.0 - repeats.share)) as u64
            }
            _ => new,
        };
        // The estimate is off by one at most where shares have no exact binary form.
        while request > 0 && self.new_before(request) > new {
            request -= 1;
        }
        while self.new_before(request + 1) <= new {
            request += 1;
        }
        self.due(request)
    }

    /// The first request that is due at this moment or later, since the load began; `None` after the last, and in a closed loop.
    pub fn request_at(&self, since_start: Duration) -> Option<u64> {
        let phase = self.phases.get(self.phases.partition_point(|phase| phase.end <= since_start))?;
        let into = since_start.saturating_sub(phase.start).as_secs_f64() * phase.rate / self.per_request as f64;
        Some(phase.requests.start + into.ceil() as u64).filter(|request| *request < self.requests)
    }

    /// The phase of a moment, as an index into [`Plan::phases`].
    pub fn phase_at(&self, since_start: Duration) -> usize {
        self.phases.partition_point(|phase| phase.end <= since_start).min(self.phases.len().saturating_sub(1))
    }

    fn due(&self, request: u64) -> Option<Duration> {
        let phase = self.phases.get(self.phase_of(request)).or(self.phases.last())?;
        let into = (request.saturating_sub(phase.requests.start) * self.per_request) as f64 / phase.rate;
        Some(phase.start + Duration::from_secs_f64(into))
    }

    fn phase_of(&self, request: u64) -> usize {
        self.phases.partition_point(|phase| phase.requests.end <= request)
    }

    /// How many of the requests before this one are not repeats. Repeats are spread evenly behind the warm-up.
    fn new_before(&self, request: u64) -> u64 {
        request - self.repeats_before(request)
    }

    fn is_repeat(&self, request: u64) -> bool {
        self.repeats_before(request + 1) > self.repeats_before(request)
    }

    fn repeats_before(&self, request: u64) -> u64 {
        let measured = request.saturating_sub(self.warm_up);
        self.repeats.as_ref().map_or(0, |repeats| (measured as f64 * repeats.share) as u64)
    }
}

const WARM_UP: &str = "warm-up";

/// Name, rate and length of each stretch, in order.
fn stretches(scenario: &Scenario, rate: f64) -> Vec<(String, f64, Duration)> {
    let load = &scenario.load;
    let mut stretches = vec![(WARM_UP.to_owned(), rate, load.warm_up.get())];
    if let Some(ramp) = &scenario.ramp {
        let steps = ((ramp.to - rate) / ramp.step) as u64;
        let step = |k: u64| rate + k as f64 * ramp.step;
        stretches.extend((0..=steps).map(|k| (format!("{}", step(k)), step(k), ramp.hold.get())));
    } else if let Some(burst) = &scenario.burst {
        let (at, length) = (burst.at.get(), burst.duration.get());
        stretches.push(("before".to_owned(), rate, at));
        stretches.push(("burst".to_owned(), burst.rate, length));
        stretches.push(("after".to_owned(), rate, load.duration.get().saturating_sub(at + length)));
    } else {
        stretches.push(("load".to_owned(), rate, load.duration.get()));
    }
    stretches
}

/// Fills each stretch with whole requests; one too short for a single request is left out.
fn lay_out(stretches: Vec<(String, f64, Duration)>, per_request: u64) -> Vec<Phase> {
    let (mut start, mut first) = (Duration::ZERO, 0);
    let mut phases = Vec::with_capacity(stretches.len());
    for (name, rate, length) in stretches {
        let requests = (rate * length.as_secs_f64() / per_request as f64).round() as u64;
        if requests == 0 {
            continue;
        }
        let end = start + Duration::from_secs_f64((requests * per_request) as f64 / rate);
        phases.push(Phase { name, rate, start, end, requests: first..first + requests });
        (start, first) = (end, first + requests);
    }
    phases
}

#[cfg(test)]
mod tests {
    use coderelay_runtime::config::HumanDuration;

    use super::*;
    use crate::scenario::{Burst, Load, Ramp};

    fn open(rate: f64, seconds: u64, warm_up: u64) -> Scenario {
        let load = Load {
            rate: Some(rate),
            duration: HumanDuration::from_secs(seconds),
            warm_up: HumanDuration::from_secs(warm_up),
            ..Load::default()
        };
        Scenario { load, ..Scenario::default() }
    }

    const fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_open_loop_is_due_at_even_intervals() {
        let plan = Plan::new(&open(1000.0, 1, 0));
        let due: Vec<_> = plan.requests().map(|request| plan.arrival(request).due).collect();
        assert_eq!(due[..3], [0, 100, 200].map(|ms| Some(millis(ms))));
        assert_eq!((due.len(), plan.packets(), plan.end()), (10, 1000, Duration::from_secs(1)));
    }

    #[test]
    fn a_closed_loop_has_no_times() {
        let load = Load { packets: 250, warm_up_packets: 100, ..Load::default() };
        let plan = Plan::new(&Scenario { load, ..Scenario::default() });
        assert_eq!((plan.warm_up(), plan.measured(), plan.packets()), (0..1, 1..4, 400));
        assert_eq!(plan.arrival(2), Arrival { packets: 200..300, due: None, phase: 0, repeat: false, measured: true });
        assert_eq!(plan.intended(5), None);
    }

    #[test]
    fn a_burst_comes_between_and_the_warm_up_does_not_count() {
        let burst = Burst { at: HumanDuration::from_secs(2), duration: HumanDuration::from_secs(1), rate: 10_000.0 };
        let plan = Plan::new(&Scenario { burst: Some(burst), ..open(1000.0, 5, 1) });
        let phases: Vec<_> = plan.phases().iter().map(|phase| (phase.name.as_str(), phase.requests.clone())).collect();
        assert_eq!(phases, [("warm-up", 0..10), ("before", 10..30), ("burst", 30..130), ("after", 130..150)]);
        assert_eq!(plan.arrival(31).due, Some(millis(3010)));
        assert_eq!(plan.arrival(130).due, Some(millis(4000)));
        assert_eq!(plan.measured_from(), Duration::from_secs(1));
        assert_eq!([0, 1, 100, 3010, 5900].map(|ms| plan.request_at(millis(ms))), [0, 1, 1, 31, 149].map(Some));
        assert_eq!([5901, 9999].map(|ms| plan.request_at(millis(ms))), [None, None]);
        let at = |ms| plan.phases()[plan.phase_at(millis(ms))].name.clone();
        assert_eq!([at(500), at(3000), at(3999), at(4000), at(9999)], ["warm-up", "burst", "burst", "after", "after"]);
    }

    #[test]
    fn a_ramp_goes_up_in_steps() {
        let ramp = Ramp { step: 500.0, to: 2000.0, hold: HumanDuration::from_secs(1), ..Ramp::default() };
        let plan = Plan::new(&Scenario { ramp: Some(ramp), ..open(1000.0, 99, 0) });
        let rates: Vec<_> = plan.phases().iter().map(|phase| (phase.rate, phase.requests.end)).collect();
        assert_eq!(rates, [(1000.0, 10), (1500.0, 25), (2000.0, 45)]);
    }

    #[test]
    fn repeats_are_of_packets_sent_long_enough_before() {
        let load = Load { packets: 1000, warm_up_packets: 300, ..Load::default() };
        let repeats = Some(Repeats { share: 0.5, after: 300 });
        let plan = Plan::new(&Scenario { load, repeats, ..Scenario::default() });
        let arrivals: Vec<_> = plan.measured().map(|request| plan.arrival(request)).collect();
        let new: Vec<_> =
            arrivals.iter().filter(|arrival| !arrival.repeat).map(|arrival| arrival.packets.start).collect();
        let again: Vec<_> =
            arrivals.iter().filter(|arrival| arrival.repeat).map(|arrival| arrival.packets.start).collect();
        assert_eq!(new, [300, 400, 500, 600, 700]);
        assert_eq!(again, [100, 200, 300, 400, 500]);
        assert_eq!(plan.packets(), 800);
    }

    #[test]
    fn the_intended_time_of_a_packet_is_that_of_its_first_request() {
        for share in [0.0, 0.1, 0.33, 0.5, 0.9] {
            let repeats = Some(Repeats { share, after: 1000 });
            let plan = Plan::new(&Scenario { repeats, ..open(10_000.0, 10, 1) });
            for arrival in plan.requests().map(|request| plan.arrival(request)).filter(|arrival| !arrival.repeat) {
                assert_eq!(plan.intended(arrival.packets.start), arrival.due, "{share} {arrival:?}");
                assert_eq!(plan.intended(arrival.packets.end - 1), arrival.due, "{share} {arrival:?}");
            }
        }
    }
}
