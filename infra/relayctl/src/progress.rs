//! Progress on standard error: a bar on a terminal, a plain line now and then otherwise.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a run without a terminal says where it is.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// One step of known length. Dropped or finished, the bar disappears and the result speaks.
pub(crate) struct Progress {
    what: &'static str,
    bar: ProgressBar,
    last_plain: Option<Instant>,
}

impl Progress {
    /// `what` is what is being done, in the progressive form: "pushing".
    pub(crate) fn new(what: &'static str, length: u64) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {pos}/{len} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Self { what, bar, last_plain: (!terminal).then(Instant::now) }
    }

    pub(crate) fn set(&mut self, position: u64) {
        self.bar.set_position(position);
        self.plain();
    }

    /// Further along; past the end the length grows, for work whose length is not known beforehand.
    pub(crate) fn advance(&mut self, by: u64) {
        self.bar.inc(by);
        let length = self.bar.length().unwrap_or_default().max(self.bar.position());
        self.bar.set_length(length);
        self.plain();
    }

    /// The state of things beside the bar, e.g. "reconnecting".
    pub(crate) fn message(&mut self, text: impl Into<String>) {
        self.bar.set_message(text.into());
        self.plain();
    }

    /// A remark that the bar does not overwrite.
    pub(crate) fn remark(&self, text: &str) {
        self.bar.suspend(|| remark(text));
    }

    fn plain(&mut self) {
        if self.last_plain.is_some_and(|at| at.elapsed() >= PLAIN_INTERVAL) {
            self.last_plain = Some(Instant::now());
            let line = format!(
                "{} {}/{} {}",
                self.what,
                self.bar.position(),
                self.bar.length().unwrap_or_default(),
                self.bar.message()
            );
            // Progress that cannot be shown is no reason to stop.
            let _ = writeln!(io::stderr(), "{}", line.trim_end());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A remark for people on standard error; never part of the result.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "relayctl: {text}");
}
