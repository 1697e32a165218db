//! Latencies in HDR histograms: three significant digits from 1 µs to 10 minutes, mergeable without loss.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::summary::Percentiles;

/// Longer latencies count as this long.
const LONGEST: Duration = Duration::from_secs(600);

/// A distribution of latencies.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Latency {
    /// An empty distribution.
    ///
    /// # Errors
    /// Only if the histogram's constant bounds were invalid.
    pub fn new() -> Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, 3)?))
    }

    /// Counts `count` events that each took `took`.
    pub fn record(&mut self, took: Duration, count: u64) {
        self.0.saturating_record_n(took.as_micros() as u64, count);
    }

    /// Adds everything `other` has counted.
    ///
    /// # Errors
    /// Only if the two had different bounds.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// The histogram, in microseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// What a summary shows; all zero while nothing was counted.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        Percentiles {
            count: self.0.len(),
            mean: self.0.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.0.max() as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_distribution_reads_zero() {
        assert_eq!(Latency::new().unwrap().percentiles(), Percentiles::default());
    }

    #[test]
    fn what_is_longer_than_the_longest_is_kept() {
        let mut latency = Latency::new().unwrap();
        latency.record(LONGEST * 2, 1);
        assert!(latency.percentiles().max >= LONGEST.as_secs_f64() * 1e3);
    }
}
