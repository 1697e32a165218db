//! Whether the service can work now, as a set of named checks.

use std::collections::BTreeMap;
use std::fmt;

use tokio::sync::watch;

/// Named checks, each fine or failing for a reason. Cheap to clone; all clones see the same checks.
#[derive(Debug, Clone)]
pub struct Readiness(watch::Sender<BTreeMap<&'static str, Check>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    outcome: Result<(), String>,
    /// Whether the service is not ready when it fails.
    counts: bool,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new([])
    }
}

impl Readiness {
    /// The checks of a service. Each fails as "starting" until it is first set.
    pub fn new(checks: impl IntoIterator<Item = &'static str>) -> Self {
        let starting = |name| (name, Check { outcome: Err("starting".to_owned()), counts: true });
        Self(watch::Sender::new(checks.into_iter().map(starting).collect()))
    }

    /// Records the outcome of a check; a name not seen before becomes a check.
    pub fn set(&self, check: &'static str, outcome: Result<(), impl Into<String>>) {
        self.record(check, Check { outcome: outcome.map_err(Into::into), counts: true });
    }

    /// Records the outcome of a check that is shown and from now on does not count: the service is ready without it.
    pub fn note(&self, check: &'static str, outcome: Result<(), impl Into<String>>) {
        self.record(check, Check { outcome: outcome.map_err(Into::into), counts: false });
    }

    fn record(&self, name: &'static str, check: Check) {
        self.0.send_if_modified(|checks| {
            if checks.get(name) == Some(&check) {
                return false;
            }
            match (&check.outcome, check.counts) {
                (Ok(()), _) => tracing::info!(check = name, "ready"),
                (Err(reason), true) => tracing::warn!(check = name, reason, "not ready"),
                (Err(reason), false) => tracing::warn!(check = name, reason, "ready without it"),
            }
            checks.insert(name, check);
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

fn all_fine(checks: &BTreeMap<&'static str, Check>) -> bool {
    checks.values().all(|check| check.outcome.is_ok() || !check.counts)
}

impl fmt::Display for Readiness {
    /// One line a check, `[+]name ok` or `[-]name failed: reason`, as the Kubernetes API server writes them, and `[!]name failed: reason` for
    /// one that does not count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks = self.0.borrow();
        for (name, check) in checks.iter() {
            match (&check.outcome, check.counts) {
                (Ok(()), _) => writeln!(f, "[+]{name} ok")?,
                (Err(reason), true) => writeln!(f, "[-]{name} failed: {reason}")?,
                (Err(reason), false) => writeln!(f, "[!]{name} failed: {reason}")?,
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

    #[test]
    fn what_is_only_noted_does_not_count_once_it_was_looked_at() {
        let readiness = Readiness::new(["mirror"]);
        assert!(!readiness.is_ready());
        readiness.note("mirror", Err("no host answers"));
        assert_eq!(readiness.to_string(), "[!]mirror failed: no host answers\nready\n");
        readiness.note("mirror", Ok::<(), String>(()));
        assert_eq!(readiness.to_string(), "[+]mirror ok\nready\n");
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
