//! Judging damaged content takes little memory. In a process of its own, whose peak is looked at.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/mutation.rs"]
mod mutation;

use coderelay_schemas::validate::{PacketLimits, check_content};
use mutation::Mutator;

/// What it may take at any one time, in MiB.
const MEMORY: u64 = 128;

#[test]
fn judging_damaged_content_takes_little_memory() {
    let limits = PacketLimits::default();
    for seed in 0..2_000 {
        let mut mutator = Mutator::new(seed);
        let content = mutator.good().content;
        let mut content = mutator.damaged(&content);
        // A trailer that promises up to 16 MiB.
        content.extend_from_slice(&(mutator.below(1 << 24) as u32).to_le_bytes());
        let _ = check_content(&content, &limits);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()).unwrap();
    let peak = peak.parse::<u64>().unwrap() / 1024;
    assert!(peak < MEMORY, "{peak} MiB");
}
