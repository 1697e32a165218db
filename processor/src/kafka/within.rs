//! A limit of time for calls that have none.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What `call` returns; `None` if it does not within `limit`. It goes on then in a thread of its own, with all it holds, and ends no later
/// than the process.
///
/// # Errors
/// When no thread can be started.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (answer, answered) = mpsc::sync_channel(1);
    thread::Builder::new().name("bounded-call".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = answer.send(call());
    })?;
    Ok(answered.recv_timeout(limit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_come_back_is_left_alone() {
        let (_kept, forever) = mpsc::channel::<()>();
        let call = move || forever.recv().is_ok();
        assert_eq!(within(Duration::from_millis(10), call).unwrap(), None);
        assert_eq!(within(Duration::from_secs(600), || 1).unwrap(), Some(1));
    }
}
