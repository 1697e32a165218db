//! Whether the service can work now, as a set of named checks.

use std::collections::BTreeMap;
use std::fmt;

use tokio::sync::watch;

/// Named checks, each fine or failing for a reason. Cheap to clone; all clones see the same checks.
#[derive(Debug, Clone)]
pub struct Readiness(watch::Sender<BTreeMap<&'static str, Result<(), String>>>);

impl Default for Readiness {
    fn default() -> Self {
        Self::new([])
    }
}

impl Readiness {
    /// The checks of a service. Each fails as "starting" until it is first set.
    pub fn new(checks: impl IntoIterator<Item = &'static str>) -> Self {
        let starting = |name| (name, Err("starting".to_owned()));
        Self(watch::Sender::new(checks.into_iter().map(starting).collect()))
    }

    /// Records the outcome of a check; a name not seen before becomes a check.
    pub fn set(&self, check: &'static str, outcome: Result<(), impl Into<String>>) {
        let outcome = outcome.map_err(Into::into);
        self.0.send_if_modified(|checks| {
            let before = checks.insert(check, outcome.clone());
            if before.as_ref() == Some(&outcome) {
                return false;
            }
            match &outcome {
                Ok(()) => tracing::info!(check, "ready"),
                Err(reason) => tracing::warn!(check, reason, "not ready"),
            }
            true
        });
    }

    /// From now on not ready, whatever the checks say: new work goes elsewhere while the service drains.
    pub fn drain(&self) {
        self.set("shutdown", Err("shutting down"));
    }

    /// Whether every check is fine.
    pub fn is_ready(&self) -> bool {
        all_fine(&self.0.borrow())
    }

    /// Returns when [`Self::is_ready`] has become `ready`.
    pub async fn wait_for(&self, ready: bool) {
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = self.0.subscribe().wait_for(|checks| all_fine(checks) == ready).await;
    }
}

fn all_fine(checks: &BTreeMap<&'static str, Result<(), String>>) -> bool {
    checks.values().all(Result::is_ok)
}

impl fmt::Display for Readiness {
    /// One line a check, `[+]name ok` or `[-]name failed: reason`, as the Kubernetes API server writes them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks = self.0.borrow();
        for (name, outcome) in checks.iter() {
            match outcome {
                Ok(()) => writeln!(f, "[+]{name} ok")?,
                Err(reason) => writeln!(f, "[-]{name} failed: {reason}")?,
            }
        }
        writeln!(f, "{}", if all_fine(&checks) { "ready" } else { "not ready" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_ready_when_every_check_is() {
        let readiness = Readiness::new(["kafka", "store"]);
        assert!(!readiness.is_ready());
        readiness.set("kafka", Ok::<(), String>(()));
        readiness.set("store", Err("no host answers"));
        assert_eq!(readiness.to_string(), "[+]kafka ok\n[-]store failed: no host answers\nnot ready\n");
        readiness.set("store", Ok::<(), String>(()));
        assert!(readiness.is_ready());
        readiness.drain();
        assert!(!readiness.is_ready());
    }

    #[tokio::test]
    async fn changes_can_be_waited_for() {
        let readiness = Readiness::new(["kafka"]);
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait_for(true).await }
        });
        readiness.set("kafka", Ok::<(), String>(()));
        waiting.await.unwrap();
    }
}
