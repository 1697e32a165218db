//! A scenario on a stack of its own.

use std::collections::BTreeMap;

use loadtest::bench::keep;
use loadtest::devstack::Devstack;
use loadtest::run::Run;
use loadtest::scenario::{self, Scenario};
use loadtest::summary::Summary;
use tokio_util::sync::CancellationToken;

/// The built-in scenario `name`, changed by `set`.
pub(crate) fn scenario(name: &str, set: &[&str]) -> Scenario {
    let folder = tempfile::tempdir().unwrap();
    let text = scenario::text(name).unwrap().1;
    let set: Vec<_> = set.iter().map(|set| set.parse().unwrap()).collect();
    scenario::load(&keep(folder.path(), &text).unwrap(), &set).unwrap()
}

/// Runs `scenario` on `devstack`.
pub(crate) async fn run(devstack: &Devstack, name: &str, scenario: &Scenario) -> Summary {
    let out = tempfile::tempdir().unwrap();
    let pipeline = devstack.pipeline(scenario).await.unwrap();
    let limits = BTreeMap::from([("cql_batch".to_owned(), 1000.0)]);
    let stop = CancellationToken::new();
    let run = Run { name, scenario, pipeline: &pipeline, limits: &limits, out: out.path(), stop };
    let summary = run.execute().await.unwrap();
    assert_eq!(pipeline.close().await, Vec::<String>::new());
    for file in ["summary.json", "timeline.csv", "ack.hlog", "topic.hlog", "cql.hlog"] {
        assert!(out.path().join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
    summary
}
