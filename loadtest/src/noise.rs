//! Whether two series of measurements differ by more than noise.
//!
//! Neighbouring intervals of a run resemble each other, so a test that takes each as new evidence sees differences everywhere. They
//! are therefore averaged in batches first (batch means; Law, *Simulation Modeling and Analysis*, chapter 9). Two series
//! differ if a two-sided Mann–Whitney U test (Mann and Whitney, 1947), which asks nothing of the shape of a distribution, says so
//! at [`SIGNIFICANCE`], **and** their medians are at least [`RELEVANCE`] apart: a test of enough samples finds any trifle.

use serde::Serialize;

/// How likely chance alone may at most bring about a difference that is called one.
pub(crate) const SIGNIFICANCE: f64 = 0.01;
/// Smallest change of the median that is called a difference.
pub(crate) const RELEVANCE: f64 = 0.05;
/// Most batches of a series.
const BATCHES: usize = 30;
/// Fewer samples than these decide nothing.
pub(crate) const FEWEST: usize = 8;

/// Two series held against each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Test {
    /// Median of each.
    pub(crate) medians: [f64; 2],
    /// How likely chance alone is to set them this far apart.
    pub(crate) p: f64,
    /// Whether they differ by more than noise.
    pub(crate) differ: bool,
}

/// Holds two series against each other; `None` when one has fewer than [`FEWEST`] samples.
pub(crate) fn test(a: &[f64], b: &[f64]) -> Option<Test> {
    let (a, b) = (batches(a), batches(b));
    if a.len().min(b.len()) < FEWEST {
        return None;
    }
    let medians = [median(&a), median(&b)];
    let p = mann_whitney(&a, &b);
    let differ = p < SIGNIFICANCE && (medians[1] - medians[0]).abs() >= RELEVANCE * medians[0].abs();
    Some(Test { medians, p, differ })
}

/// How likely two samples of one distribution are to have ranks at least as different as these.
///
/// By the normal approximation of U with its correction for ties (Lehmann, *Nonparametrics*, 1.4), which is close from eight samples on.
fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let mut pooled: Vec<_> =
        a.iter().map(|value| (*value, true)).chain(b.iter().map(|value| (*value, false))).collect();
    pooled.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank, mut ranks_of_a, mut ties) = (0.0, 0.0, 0.0);
    for equal in pooled.chunk_by(|x, y| x.0.total_cmp(&y.0).is_eq()) {
        let count = equal.len() as f64;
        ranks_of_a += equal.iter().filter(|(_, of_a)| *of_a).count() as f64 * (rank + f64::midpoint(count, 1.0));
        ties += count.powi(3) - count;
        rank += count;
    }
    let (of_a, of_b, all) = (a.len() as f64, b.len() as f64, pooled.len() as f64);
    let u = ranks_of_a - of_a * (of_a + 1.0) / 2.0;
    let variance = of_a * of_b / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    // A half is the correction for continuity.
    let z = ((u - of_a * of_b / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    libm::erfc(z / std::f64::consts::SQRT_2)
}

/// Means of consecutive samples, at most [`BATCHES`] of them.
fn batches(samples: &[f64]) -> Vec<f64> {
    let length = samples.len().div_ceil(BATCHES).max(1);
    samples.chunks(length).map(|batch| batch.iter().sum::<f64>() / batch.len() as f64).collect()
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples around `centre` that look random and are always the same.
    fn samples(centre: f64, seed: u64, count: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
        };
        (0..count).map(|_| centre * (1.0 + 0.2 * next())).collect()
    }

    #[test]
    fn a_shift_is_found_and_the_same_is_not_different() {
        let before = samples(10.0, 1, 60);
        assert!(test(&before, &samples(11.0, 2, 60)).unwrap().differ);
        assert!(!test(&before, &samples(10.0, 3, 60)).unwrap().differ);
        assert!(!test(&before, &before).unwrap().differ);
    }

    #[test]
    fn p_is_what_scipy_says() {
        // scipy.stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        let (a, b) = ([19.0, 22.0, 16.0, 29.0, 24.0], [20.0, 11.0, 17.0, 12.0]);
        assert!((mann_whitney(&a, &b) - 0.111_346_889).abs() < 1e-8);
        let (a, b) = ([1.0, 2.0, 2.0, 3.0, 4.0, 5.0], [2.0, 3.0, 6.0, 6.0, 7.0, 8.0]);
        assert!((mann_whitney(&a, &b) - 0.075_046_196).abs() < 1e-8);
    }

    #[test]
    fn chance_alone_seldom_makes_a_difference() {
        let found = (0..500).filter(|seed| {
            test(&samples(10.0, seed * 2 + 1000, 60), &samples(10.0, seed * 2 + 1001, 60)).unwrap().differ
        });
        assert!(found.count() <= 5);
    }

    #[test]
    fn a_trifle_is_no_difference_however_certain() {
        let test = test(&samples(10.0, 1, 30_000), &samples(10.2, 2, 30_000)).unwrap();
        assert!(test.p < SIGNIFICANCE && !test.differ, "{test:?}");
    }

    #[test]
    fn equal_values_and_few_samples_are_no_evidence() {
        assert_eq!(test(&[0.0; 20], &[0.0; 20]).map(|test| test.differ), Some(false));
        assert_eq!(test(&[1.0; 7], &[2.0; 20]), None);
    }
}
