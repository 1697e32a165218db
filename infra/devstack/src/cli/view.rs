//! A deployment's progress: spinners on a terminal, plain lines elsewhere. Always to standard error.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use super::state::{Life, NodeState, Phase, State};

/// Of the longest name, `us-east.cassandra`.
const NAME_WIDTH: usize = 17;

const SPINNER: &str = "{spinner:.cyan} {msg}";

/// Shows states as they come.
#[derive(Debug)]
pub(crate) struct View {
    bars: Option<MultiProgress>,
    lines: BTreeMap<String, Line>,
}

/// One subject and the text last shown of it.
#[derive(Debug)]
struct Line {
    text: String,
    bar: Option<ProgressBar>,
}

impl View {
    pub(crate) fn new() -> Self {
        Self { bars: stderr().is_terminal().then(MultiProgress::new), lines: BTreeMap::new() }
    }

    /// Shows the states that come while `work` is being done, and gives the terminal back.
    pub(crate) async fn during<T>(&mut self, mut states: watch::Receiver<State>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let state = states.borrow_and_update().clone();
            self.show(&state);
            tokio::select! {
                biased;
                done = &mut work => {
                    self.show(&states.borrow());
                    self.finish();
                    return done;
                }
                // The work owns the sender; should that go first, its result is all there is to wait for.
                changed = states.changed() => if changed.is_err() { return work.await },
            }
        }
    }

    /// Shows what has changed since the last state.
    pub(crate) fn show(&mut self, state: &State) {
        match &state.activity {
            Some(activity) => self.line("activity", activity, false),
            None => self.end("activity"),
        }
        for node in &state.nodes {
            let (text, done) = describe(node, state.phase == Phase::Stopping);
            self.line(&node.name, &text, done);
        }
    }

    /// Leaves the terminal to others. What was shown is not shown again.
    pub(crate) fn finish(&mut self) {
        for line in self.lines.values_mut() {
            if let Some(bar) = line.bar.take().filter(|bar| !bar.is_finished()) {
                bar.abandon();
            }
        }
        // New bars must not redraw the old ones.
        self.bars = self.bars.take().map(|_| MultiProgress::new());
    }

    fn line(&mut self, subject: &str, text: &str, done: bool) {
        let bars = self.bars.as_ref();
        let line = self.lines.entry(subject.to_owned()).or_insert_with(|| Line { text: String::new(), bar: None });
        if line.text == text {
            return;
        }
        text.clone_into(&mut line.text);
        let Some(bars) = bars else {
            // Of a download only its beginning: a line per jar is no progress for a log.
            if subject != "activity" || text.contains("asking") {
                eprintln!("{text}");
            }
            return;
        };
        let bar = line.bar.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(ProgressStyle::with_template(SPINNER).unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if done {
            bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.abandon_with_message(text.to_owned());
        } else {
            bar.set_message(text.to_owned());
        }
    }

    fn end(&mut self, subject: &str) {
        if let Some(bar) = self.lines.remove(subject).and_then(|line| line.bar) {
            bar.finish_and_clear();
        }
    }
}

fn describe(node: &NodeState, stopping: bool) -> (String, bool) {
    let name = format!("{:<NAME_WIDTH$}", node.name);
    match &node.life {
        Life::Starting => (format!("{name} starting, pid {}", node.pid), false),
        Life::Ready(_) if stopping => (format!("{name} stopping"), false),
        Life::Ready(after) => (format!("{name} ready after {:.1} s", after.as_secs_f64()), true),
        Life::Died { status, .. } => (format!("{name} died ({status})"), true),
        Life::Stopped => (format!("{name} stopped"), true),
    }
}
