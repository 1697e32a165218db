//! Named places in the cycle at which a test may crash or delay the process. A build without the feature `failpoints` contains none.

/// The places, in the order in which a cycle comes by; `after-publish` is passed once for every record that is published.
pub const EDGES: [&str; 10] = [
    "during-replay",
    "after-poll",
    "after-store",
    "before-begin",
    "after-begin",
    "after-publish",
    "before-send-offsets",
    "before-commit",
    "before-end-txn",
    "after-commit",
];

/// Arms what the environment variable `FAILPOINTS` asks for until the result is dropped.
#[cfg(feature = "failpoints")]
pub(crate) fn arm() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// Runs whatever `FAILPOINTS` asks for at `name`, for example `FAILPOINTS=after-store=3*off->return`.
///
/// `return` aborts the process on the spot, as a power cut or `kill -9` would; `return(stop)` stops all of it, as SIGSTOP does, until
/// somebody sends SIGCONT; `sleep(ms)` and `pause` hold up the thread that came by. The grammar is the `fail` crate's.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(name: &str) {
    fn end(name: &str, how: Option<&str>) {
        if how == Some("stop") {
            tracing::warn!(name, "failpoint: stopping the process");
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
            return;
        }
        tracing::warn!(name, "failpoint: aborting the process");
        std::process::abort();
    }
    debug_assert!(EDGES.contains(&name), "{name} is not listed");
    fail::fail_point!(name, |how| end(name, how.as_deref()));
}

/// Nothing, in a build without failpoints.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn hit(_name: &str) {}
