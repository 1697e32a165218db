//! How fast to pull: additive increase, multiplicative decrease on the store's latency and time-outs.
//!
//! The rule is TCP's (Chiu and Jain, 1989): probe upwards in small steps, give way at once when the store slows down.

use std::time::{Duration, Instant};

/// Bounds and thresholds of a [`Pace`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceLimits {
    /// Records for the store per second below which the pace never falls.
    pub floor: f64,
    /// Records for the store per second above which it never rises; `None` for no ceiling.
    pub ceiling: Option<f64>,
    /// Store latency above which the store counts as congested.
    pub latency_target: Duration,
    /// Concurrent store writes at full pace.
    pub concurrency: usize,
}

/// What a store write looked like to its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSample {
    /// Records written.
    pub records: usize,
    /// The slowest single write.
    pub slowest: Duration,
    /// Whether any write timed out, was refused for overload or had to be retried.
    pub troubled: bool,
}

/// A token bucket whose rate follows the store's health.
///
/// Without a ceiling and while the store is healthy there is no limit at all. The first sign of congestion sets the rate to half of what
/// was just achieved, each further one halves it. Each healthy write raises it by a twentieth of the achieved rate or, where writes take
/// long, by half in a second; else a store that is slow now and then for reasons of its own would hold the rate at the floor. Once it has
/// risen to twice the achieved rate it no longer limits anything and is lifted again.
#[derive(Clone, Debug)]
pub struct Pace {
    limits: PaceLimits,
    /// Records per second; infinite while nothing limits.
    rate: f64,
    /// Share of the full write concurrency in use, in (0, 1].
    share: f64,
    tokens: f64,
    refilled: Instant,
    observed: Instant,
    achieved: Achieved,
}

/// A cut is not repeated until the effect of the last one can be seen.
const REST_AFTER_CUT: Duration = Duration::from_millis(500);

impl Pace {
    /// A pace that starts at its ceiling.
    pub fn new(limits: PaceLimits, now: Instant) -> Self {
        let rate = limits.ceiling.unwrap_or(f64::INFINITY);
        Self { limits, rate, share: 1.0, tokens: 1.0, refilled: now, observed: now, achieved: Achieved::new(now) }
    }

    /// Records that may be pulled now, at most `wanted`.
    pub fn allowance(&mut self, wanted: usize, now: Instant) -> usize {
        if self.rate.is_infinite() {
            return wanted;
        }
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        // At most one second's worth is saved up: enough for a full batch, too little for a flood.
        self.tokens = (self.tokens + elapsed * self.rate).min(self.rate.max(1.0));
        wanted.min(self.tokens as usize)
    }

    /// Takes `pulled` records out of the allowance. What is pulled while nothing limits is no debt.
    pub fn spend(&mut self, pulled: usize) {
        if self.rate.is_finite() {
            self.tokens -= pulled as f64;
        }
    }

    /// Gives back `unasked` of the records pulled: those that the store was not asked to write, such as duplicates. They are no load to it,
    /// and as they tell nothing of it either, a low rate would never rise again while nothing else comes.
    pub fn refund(&mut self, unasked: usize) {
        if self.rate.is_finite() {
            self.tokens = (self.tokens + unasked as f64).min(self.rate.max(1.0));
        }
    }

    /// How long until at least one record may be pulled.
    pub fn wait(&self) -> Duration {
        if self.rate.is_infinite() || self.tokens >= 1.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((1.0 - self.tokens) / self.rate)
    }

    /// Learns from one finished store write.
    pub fn observe(&mut self, sample: StoreSample, now: Instant) {
        self.achieved.add(sample.records, now);
        let since_last = now.saturating_duration_since(self.observed);
        self.observed = now;
        let congested = sample.troubled || sample.slowest > self.limits.latency_target;
        if !congested {
            return self.increase(since_last);
        }
        if self.achieved.since_cut(now) >= REST_AFTER_CUT {
            self.decrease(now);
        }
    }

    /// Records per second now; infinite when nothing limits.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Concurrent store writes allowed now, at least 1.
    pub fn concurrency(&self) -> usize {
        ((self.limits.concurrency as f64 * self.share) as usize).max(1)
    }

    fn decrease(&mut self, now: Instant) {
        if self.rate.is_infinite() {
            // The bucket begins now.
            (self.tokens, self.refilled) = (0.0, now);
            self.rate = self.achieved.rate();
        }
        self.rate = (self.rate / 2.0).min(self.achieved.rate()).max(self.limits.floor);
        self.share = (self.share / 2.0).max(1.0 / self.limits.concurrency.max(1) as f64);
        self.tokens = self.tokens.min(self.rate);
        self.achieved.cut(now);
    }

    fn increase(&mut self, since_last: Duration) {
        self.share = (self.share + 0.05).min(1.0);
        if self.rate.is_infinite() {
            return;
        }
        let achieved = self.achieved.rate().max(self.limits.floor);
        if self.rate <= 2.0 * achieved {
            let elapsed = since_last.as_secs_f64().min(1.0);
            self.rate += (achieved / 20.0).max(self.limits.floor).max(self.rate / 2.0 * elapsed);
        }
        match self.limits.ceiling {
            Some(ceiling) => self.rate = self.rate.min(ceiling),
            None if self.share >= 1.0 && self.rate > 2.0 * achieved => self.rate = f64::INFINITY,
            None => {}
        }
    }
}

/// Records per second lately, as an exponentially weighted average over about a second.
#[derive(Clone, Debug)]
struct Achieved {
    per_second: f64,
    counted: usize,
    since: Instant,
    cut_at: Option<Instant>,
}

impl Achieved {
    fn new(now: Instant) -> Self {
        Self { per_second: 0.0, counted: 0, since: now, cut_at: None }
    }

    fn add(&mut self, records: usize, now: Instant) {
        self.counted += records;
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        if elapsed < 0.1 {
            return;
        }
        let weight = elapsed.min(1.0);
        self.per_second = self.per_second * (1.0 - weight) + self.counted as f64 / elapsed * weight;
        self.counted = 0;
        self.since = now;
    }

    fn rate(&self) -> f64 {
        self.per_second
    }

    fn since_cut(&self, now: Instant) -> Duration {
        self.cut_at.map_or(Duration::MAX, |cut| now.saturating_duration_since(cut))
    }

    fn cut(&mut self, now: Instant) {
        self.cut_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(ceiling: Option<f64>) -> PaceLimits {
        PaceLimits { floor: 30.0, ceiling, latency_target: Duration::from_millis(250), concurrency: 64 }
    }

    fn healthy(records: usize) -> StoreSample {
        StoreSample { records, slowest: Duration::from_millis(5), troubled: false }
    }

    fn slow(records: usize) -> StoreSample {
        StoreSample { records, slowest: Duration::from_secs(1), troubled: false }
    }

    /// Feeds one sample every 100 ms and returns the time reached.
    fn run(pace: &mut Pace, mut now: Instant, samples: usize, sample: StoreSample) -> Instant {
        for _ in 0..samples {
            now += Duration::from_millis(100);
            pace.observe(sample, now);
        }
        now
    }

    #[test]
    fn a_healthy_store_without_ceiling_is_not_limited() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(None), start);
        run(&mut pace, start, 20, healthy(1000));
        assert_eq!(pace.allowance(5000, start), 5000);
        assert_eq!(pace.wait(), Duration::ZERO);
        assert_eq!(pace.concurrency(), 64);
    }

    #[test]
    fn a_slow_store_halves_the_rate_down_to_the_floor_and_no_further() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(None), start);
        let now = run(&mut pace, start, 20, healthy(1000));
        let now = run(&mut pace, now, 1, slow(1000));
        assert!(pace.rate() < 6_000.0, "half of about 10,000/s: {}", pace.rate());
        assert_eq!(pace.concurrency(), 32);
        run(&mut pace, now, 200, slow(1));
        assert!((pace.rate() - 30.0).abs() < f64::EPSILON);
        assert_eq!(pace.concurrency(), 1);
    }

    #[test]
    fn what_was_pulled_without_a_limit_is_not_waited_for_once_there_is_one() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(None), start);
        let mut now = start;
        for _ in 0..600 {
            let pulled = pace.allowance(5000, now);
            pace.spend(pulled);
            now = run(&mut pace, now, 1, healthy(pulled));
        }
        let now = run(&mut pace, now, 1, slow(1));
        assert!(pace.rate().is_finite());
        assert!(pace.wait() <= Duration::from_secs_f64(1.0 / pace.rate()), "{:?}", pace.wait());
        assert!(pace.allowance(5000, now + Duration::from_secs(1)) > 0);
    }

    /// Of a store on a machine that others keep busy, most writes take long, however few they are, and some too long.
    #[test]
    fn a_store_that_is_slow_for_reasons_of_its_own_does_not_hold_the_rate_at_the_floor() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(None), start);
        let mut now = run(&mut pace, start, 1, slow(14));
        assert!((pace.rate() - 30.0).abs() < f64::EPSILON);
        for write in 0..60 {
            let records = pace.allowance(5000, now);
            pace.spend(records);
            now += Duration::from_secs(1);
            pace.observe(if write % 4 == 0 { slow(records) } else { healthy(records) }, now);
        }
        assert!(pace.rate() > 2000.0, "after a minute: {}", pace.rate());
    }

    #[test]
    fn it_recovers_until_nothing_limits() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(None), start);
        let now = run(&mut pace, start, 20, healthy(1000));
        let now = run(&mut pace, now, 20, slow(500));
        assert!(pace.rate().is_finite());
        run(&mut pace, now, 200, healthy(1000));
        assert!(pace.rate().is_infinite());
        assert_eq!(pace.concurrency(), 64);
    }

    #[test]
    fn a_ceiling_holds_from_the_start_and_after_recovery() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(Some(100.0)), start);
        let mut now = start;
        let mut pulled = 0;
        for _ in 0..100 {
            now += Duration::from_millis(100);
            let n = pace.allowance(5000, now);
            pace.spend(n);
            pulled += n;
        }
        assert!((990..=1010).contains(&pulled), "10 s at 100/s: {pulled}");
        run(&mut pace, now, 500, healthy(10));
        assert!(pace.rate() <= 100.0);
    }

    #[test]
    fn what_the_store_never_sees_is_free_and_buys_no_more_than_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(Some(100.0)), start);
        let now = start + Duration::from_secs(1);
        for _ in 0..10 {
            let pulled = pace.allowance(5000, now);
            assert_eq!(pulled, 100);
            pace.spend(pulled);
            pace.refund(pulled);
        }
        pace.refund(5000);
        assert_eq!(pace.allowance(5000, now), 100);
    }

    #[test]
    fn an_empty_bucket_says_how_long_to_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(limits(Some(10.0)), start);
        let n = pace.allowance(5, start);
        pace.spend(n);
        assert!(pace.wait() <= Duration::from_millis(100));
        assert!(pace.wait() > Duration::ZERO);
    }
}
