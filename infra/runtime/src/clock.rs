//! The time of day as the services see it, which a checker may shift. A build without the feature `flaws` sees the machine's.

use std::time::SystemTime;

/// The environment variable with the seconds by which the clock is ahead, or behind if negative.
pub const VARIABLE: &str = "CODERELAY_CLOCK";

/// Now.
#[cfg(feature = "flaws")]
pub fn now() -> SystemTime {
    use std::sync::LazyLock;
    use std::time::Duration;
    static AHEAD: LazyLock<i64> =
        LazyLock::new(|| std::env::var(VARIABLE).ok().and_then(|s| s.parse().ok()).unwrap_or(0));
    let shift = Duration::from_secs(AHEAD.unsigned_abs());
    if *AHEAD < 0 { SystemTime::now() - shift } else { SystemTime::now() + shift }
}

/// Now.
#[cfg(not(feature = "flaws"))]
#[inline]
pub fn now() -> SystemTime {
    SystemTime::now()
}
