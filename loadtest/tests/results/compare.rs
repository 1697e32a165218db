use std::path::Path;

use clap::Parser;
use loadtest::compare::{CompareArgs, Comparison, Judgement, Pair};

use crate::sample::Sample;

fn judgement(pair: &Pair, figure: &str) -> Judgement {
    let figures: Vec<_> = pair.figures.iter().map(|figure| &figure.figure).collect();
    let found = pair.figures.iter().find(|difference| difference.figure == figure);
    found.unwrap_or_else(|| panic!("{figure} is not in {figures:?}")).judgement
}

#[test]
fn two_runs_of_the_same_are_not_different() {
    let pair = Pair::new(&Sample::burst(1).results(), &Sample::burst(2).results());
    let different = |judgement| [Judgement::Better, Judgement::Worse, Judgement::Counted].contains(&judgement);
    let wrong: Vec<_> = pair.figures.iter().filter(|figure| different(figure.judgement)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(pair.conditions.is_empty(), "{:?}", pair.conditions);
    assert!(pair.figures.len() > 20);
}

#[test]
fn a_shift_that_is_more_than_noise_is_named() {
    let slower = Sample { slower: 1.3, ..Sample::steady(2) };
    let (before, mut after) = (Sample::steady(1).results(), slower.results());
    after.summary.origin.commit = "0ther".to_owned();
    after.summary.configuration["rate"] = 9000.into();
    after.summary.audit.as_mut().unwrap().lost = 1;
    let pair = Pair::new(&before, &after);
    for figure in ["ack p50, ms", "topic p99, ms", "ingest CPU-s per 100,000", "cpu processor, cores"] {
        assert_eq!(judgement(&pair, figure), Judgement::Worse, "{figure}");
    }
    assert_eq!(judgement(&Pair::new(&after, &before), "ack p50, ms"), Judgement::Better);
    for figure in ["throughput acknowledged, 1/s", "rss kafka, MB"] {
        assert_eq!(judgement(&pair, figure), Judgement::Noise, "{figure}");
    }
    assert_eq!(judgement(&pair, "audit lost"), Judgement::Counted);
    assert_eq!(judgement(&pair, "backlog_gone_s"), Judgement::SingleSample);
    let changed: Vec<_> = pair.conditions.keys().collect();
    assert_eq!(changed, ["configuration.rate", "machine.commit"]);
}

#[test]
fn a_short_run_decides_nothing() {
    let short = |seed| Sample { seconds: 5, ..Sample::steady(seed) }.results();
    let pair = Pair::new(&short(1), &short(2));
    assert_eq!(judgement(&pair, "ack p99, ms"), Judgement::SingleSample);
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    compare: CompareArgs,
}

fn compare(a: &Path, b: &Path) -> anyhow::Result<Comparison> {
    Cli::parse_from([Path::new("compare"), a, b]).compare.run()
}

#[test]
fn folders_of_runs_are_compared_scenario_by_scenario() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, c) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
    Sample::steady(1).results().write(&a.join("steady")).unwrap();
    Sample::burst(1).results().write(&a.join("burst")).unwrap();
    Sample::steady(2).results().write(&b.join("steady")).unwrap();
    Sample::burst(1).results().write(&c.join("burst")).unwrap();

    let comparison = compare(&a, &b).unwrap();
    assert_eq!(comparison.runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>(), ["steady"]);
    assert_eq!(comparison.only_in_one, ["burst"]);
    let table = comparison.to_string();
    assert!(table.contains("| ack p99, ms ") && table.contains("Only in one of them: burst."), "{table}");
    assert!(compare(&b, &c).unwrap().runs.len() == 1, "two single runs are compared whatever they are called");
}
