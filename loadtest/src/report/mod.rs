//! `report.html`: what one run or a folder of runs found, as a single file that opens offline.
//!
//! `results → view (figures, charts) → report.html (minijinja, escaped) → report.html`

mod chart;
mod format;
mod view;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};

use crate::results::Results;
pub(crate) use format::number;
use view::Run;

/// The page's file name.
pub const FILE: &str = "report.html";

/// Make report.html of one run's folder, or of all runs in a folder.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A folder with a summary.json, or a folder of such folders.
    folder: PathBuf,
}

impl ReportArgs {
    /// Writes the page and says where it is.
    ///
    /// # Errors
    /// As [`write`].
    pub fn run(self) -> Result<()> {
        println!("{}", write(&self.folder)?.display());
        Ok(())
    }
}

/// Renders `folder`'s runs into its `report.html` and returns the path.
///
/// # Errors
/// When there is no run, one cannot be read, or the page cannot be written.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    let page = render(&Results::read_all(folder)?)?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The page over `runs`: with more than one, an overview comes first.
///
/// # Errors
/// Only if a chart cannot be drawn or the template were invalid.
pub fn render(runs: &[Results]) -> Result<String> {
    let runs = runs.iter().enumerate().map(|(number, run)| Run::new(run, number)).collect::<Result<Vec<_>>>()?;
    let mut page = Environment::new();
    page.set_auto_escape_callback(|_| AutoEscape::Html);
    // A run need not have every latency: `latencies.cql.p99` is then nothing.
    page.set_undefined_behavior(UndefinedBehavior::Chainable);
    page.add_filter("number", format::number);
    page.add_filter("ms", format::milliseconds);
    page.add_filter("bytes", format::bytes);
    page.add_filter("percent", format::percent);
    page.add_filter("duration", format::duration);
    let page = page.template_from_str(include_str!("report.html"))?;
    let (style, script) = (include_str!("style.css"), include_str!("script.js"));
    let runs = Value::from(Serde(runs));
    Ok(page.render(context! { runs, style, script, version => env!("CARGO_PKG_VERSION") })?)
}
