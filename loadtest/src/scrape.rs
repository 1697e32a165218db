//! What a service's `/metrics` page says (Prometheus text format 0.0.4): values, and histograms as differences of two scrapes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// A `/metrics` page.
#[derive(Clone, Debug, Default)]
pub struct Page(String);

impl Page {
    /// Fetches the page at `url`.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub async fn fetch(url: &str) -> Result<Self> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
        let response = client.get(url).send().await.with_context(|| format!("cannot fetch {url}"))?;
        Ok(Self(response.error_for_status()?.text().await?))
    }

    /// The value of the gauge or counter `name`, all its label sets added up; `None` if it is not there.
    pub fn value(&self, name: &str) -> Option<f64> {
        let samples = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| value.parse::<f64>().ok())?
        });
        samples.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// The mean of the histogram or summary `name`; `None` while nothing was observed.
    pub fn mean(&self, name: &str) -> Option<f64> {
        let part = |suffix| self.value(&format!("{name}_{suffix}"));
        part("sum").zip(part("count")).filter(|(_, count)| *count > 0.0).map(|(sum, count)| sum / count)
    }

    /// The histogram `name`; empty if it is not there.
    pub fn histogram(&self, name: &str) -> Buckets {
        let mut counts = BTreeMap::new();
        for line in self.0.lines() {
            let Some(labels) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")) else { continue };
            let Some((labels, value)) = labels.rsplit_once("} ") else { continue };
            let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
            let bound = bound.and_then(|bound| bound.parse::<f64>().ok()).filter(|bound| *bound >= 0.0);
            if let (Some(bound), Ok(count)) = (bound, value.trim().parse::<f64>()) {
                *counts.entry(bound.to_bits()).or_default() += count;
            }
        }
        Buckets { counts }
    }
}

/// The cumulative buckets of one histogram, all its label sets added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    /// Upper bound, in the metric's unit, as the bits of a positive number, which sort like the number itself.
    counts: BTreeMap<u64, f64>,
}

impl Buckets {
    /// What was observed since `earlier`. After a restart of the service between the two, everything since the restart.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().map(|(bound, count)| {
            let before = earlier.counts.get(bound).copied().unwrap_or_default();
            (*bound, if *count >= before { count - before } else { *count })
        });
        Self { counts: counts.collect() }
    }

    /// Number of observations.
    pub fn count(&self) -> f64 {
        self.counts.last_key_value().map_or(0.0, |(_, count)| *count)
    }

    /// The `q`-quantile, interpolated within its bucket like Prometheus' `histogram_quantile`; `None` while empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count();
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.counts {
            let bound = f64::from_bits(*bound);
            if *count >= rank && *count > below {
                // Nothing is known about values past the last finite bound.
                return Some(if bound.is_finite() {
                    lower + (bound - lower) * (rank - below) / (count - below)
                } else {
                    lower
                });
            }
            (lower, below) = (bound, *count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# TYPE commit_seconds histogram
commit_seconds_bucket{worker=\"0\",le=\"0.01\"} 10
commit_seconds_bucket{worker=\"0\",le=\"0.02\"} 30
commit_seconds_bucket{worker=\"0\",le=\"+Inf\"} 40
commit_seconds_bucket{worker=\"1\",le=\"0.01\"} 10
commit_seconds_bucket{worker=\"1\",le=\"0.02\"} 30
commit_seconds_bucket{worker=\"1\",le=\"+Inf\"} 40
commit_seconds_count{worker=\"0\"} 40
commit_seconds_sum{worker=\"0\"} 0.6
commit_seconds_total_bucket{le=\"0.01\"} 99
ids 5
ids_forgotten 7
waiting{queue=\"a\"} 1
waiting{queue=\"b c\"} 2
";

    fn page(text: &str) -> Page {
        Page(text.to_owned())
    }

    #[test]
    fn a_gauge_is_the_sum_of_its_label_sets() {
        let page = page(PAGE);
        assert_eq!((page.value("ids"), page.value("waiting"), page.value("wait")), (Some(5.0), Some(3.0), None));
    }

    #[test]
    fn a_mean_is_of_what_was_observed() {
        assert!((page(PAGE).mean("commit_seconds").unwrap() - 0.015).abs() < 1e-9);
        assert_eq!(page(PAGE).mean("other"), None);
    }

    #[test]
    fn label_sets_are_added_up() {
        let buckets = page(PAGE).histogram("commit_seconds");
        assert!((buckets.count() - 80.0).abs() < 1e-9);
        assert!((buckets.quantile(0.5).unwrap() - 0.015).abs() < 1e-9);
        assert_eq!(buckets.quantile(0.99), Some(0.02), "the last finite bound");
    }

    #[test]
    fn an_absent_histogram_has_no_quantile() {
        assert_eq!(page(PAGE).histogram("other").quantile(0.5), None);
    }

    #[test]
    fn a_difference_leaves_what_came_between() {
        let earlier = page(PAGE).histogram("commit_seconds");
        let later = page(&PAGE.replace(" 40", " 45")).histogram("commit_seconds");
        assert!((later.since(&earlier).count() - 10.0).abs() < 1e-9);
        assert!(earlier.since(&later).count() > 0.0, "a restart counts from zero");
        assert_eq!(earlier.since(&earlier).quantile(0.5), None, "nothing was observed");
    }
}
