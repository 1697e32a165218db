//! The time of day as the services see it, which a checker may shift. A build without the feature `flaws` sees the machine's.

use std::time::SystemTime;

/// The environment variable with the seconds by which the clock is ahead, or behind if negative.
pub const VARIABLE: &str = "CODERELAY_CLOCK";

/// Now.
#[cfg(feature = "flaws")]
pub fn now() -> SystemTime {
    use std::sync::LazyLock;
    use std::time::Duration;
    static AHEAD: LazyLock<i64> = LazyLock::new(|| chosen().unwrap_or_default().into());
    let shift = Duration::from_secs(AHEAD.unsigned_abs());
    if *AHEAD < 0 { SystemTime::now() - shift } else { SystemTime::now() + shift }
}

/// The seconds that the environment asks for; none is 0. As many as 68 years, so that no time is beyond what can be told.
#[cfg(feature = "flaws")]
pub(crate) fn chosen() -> Result<i32, crate::config::Mistake> {
    let seconds = std::env::var(VARIABLE).unwrap_or_default();
    if seconds.is_empty() {
        return Ok(0);
    }
    seconds.parse().map_err(|_| crate::config::Mistake {
        key: String::new(),
        value: Some(seconds),
        allowed: "seconds, a whole number of 32 bits".to_owned(),
        origin: format!("environment variable {VARIABLE}"),
    })
}

/// Now.
#[cfg(not(feature = "flaws"))]
#[inline]
pub fn now() -> SystemTime {
    SystemTime::now()
}
