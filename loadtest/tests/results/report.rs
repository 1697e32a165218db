use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use loadtest::report::{render, write};
use loadtest::results::Results;
use loadtest::summary::{Event, Finding, Series};

use crate::sample::{Sample, limits};

/// Sample runs in a folder that stays, to be looked at.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for results in [Sample::steady(1).results(), Sample::burst(2).results(), limits()] {
        results.write(&folder.join(&results.name)).unwrap();
    }
    folder
}

#[test]
fn a_folder_of_runs_becomes_one_page_and_so_does_a_single_run() {
    let folder = folder("report");
    let page = fs::read_to_string(write(&folder).unwrap()).unwrap();
    for expected in ["Overview", "id=\"run-2\"", "1 lost, 1 reordered", "ack.p99_ms &lt; 30", "store stopped"] {
        assert!(page.contains(expected), "{expected}");
    }
    let page = fs::read_to_string(write(&folder.join("burst")).unwrap()).unwrap();
    assert!(!page.contains("Overview") && page.contains("8,000 packets a second"));
}

#[test]
fn the_same_runs_give_the_same_page() {
    let runs = [Sample::burst(3).results()];
    assert_eq!(render(&runs).unwrap(), render(&runs.clone()).unwrap());
}

#[test]
fn a_page_needs_nothing_but_itself() {
    let page = render(&[Sample::burst(4).results(), limits()]).unwrap();
    for reference in ["src=", "href=", "url(", "@import", "fetch("] {
        for (at, _) in page.match_indices(reference) {
            let target = page[at + reference.len()..].trim_start_matches(['"', '\'']);
            assert!(target.starts_with('#') || target.starts_with("data:"), "{reference}{}", &target[..40]);
        }
    }
    assert_eq!(page.matches("://").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
}

#[test]
fn whatever_a_run_says_is_text() {
    let hostile = "</script><script>alert(1)</script>\"' onload=alert(1) <b>&".to_owned();
    let mut run = Sample::burst(5).results();
    run.name.clone_from(&hostile);
    let summary = &mut run.summary;
    for text in [&mut summary.scenario, &mut summary.description, &mut summary.origin.command, &mut summary.started] {
        text.clone_from(&hostile);
    }
    summary.notes.push(hostile.clone());
    summary.configuration = serde_json::json!({ hostile.clone(): hostile });
    summary.versions.insert(hostile.clone(), hostile.clone());
    summary.errors.insert(hostile.clone(), 1);
    summary.figures.insert(hostile.clone(), 1.0);
    summary.rates[0].name.clone_from(&hostile);
    summary.rates[0].limit = Some(hostile.clone());
    summary.processes[0].name.clone_from(&hostile);
    summary.thresholds[0].condition.clone_from(&hostile);
    summary.timeline.events.push(Event { at: 1.0, what: hostile.clone() });
    let values = vec![Some(1.0); 10];
    for chart in ["cpu", "errors"] {
        let (chart, name, unit) = (chart.to_owned(), hostile.clone(), hostile.clone());
        summary.timeline.series.push(Series { chart, name, unit, values: values.clone() });
    }
    let finding = Finding { kind: hostile.clone(), packet_id: hostile.clone(), detail: hostile.clone() };
    summary.audit.as_mut().unwrap().findings.push(finding);
    let percentiles = summary.latencies["ack"];
    summary.latencies.insert(hostile, percentiles);

    let page = render(&[run, limits()]).unwrap();
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (1, 1));
    assert!(!page.contains("<b>&") && !page.contains("\"' onload"));
}

#[test]
fn a_run_with_next_to_nothing_has_a_page() {
    let page = render(&[Results::default()]).unwrap();
    assert!(page.contains("measured") && !page.contains("<figure"), "{page}");
}

/// Skipped where there is no Chromium.
#[test]
fn a_browser_shows_the_page_without_complaint() {
    let Some(chromium) = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
    else {
        return eprintln!("skipped: no chromium");
    };
    let page = write(&folder("browser")).unwrap();
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // What the page's policy forbids, a request above all, is written to the console too.
    assert!(!log.contains(":CONSOLE"), "{log}");
    // The script has run: it adds a cross to every chart.
    assert_eq!(dom.matches("class=\"cross\"").count(), dom.matches("data-plot=").count());
}
