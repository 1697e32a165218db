//! Seed after seed on the same servers, and the table of what was hit.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coderelay_devstack::{MirrorMaker, Stack};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::game::{self, Outcome};
use super::plan::Plan;
use super::verdict::Violation;
use super::world::Programs;
use crate::pipeline::Servers;
use crate::progress::Progress;

/// Violations of a seed that are shown; all are in its folder.
const SHOWN: usize = 5;
/// Lines of a packet's history that are shown.
const LINES: usize = 60;
/// Broken worlds after which a campaign ends: the harness itself, or the machine, is at fault.
const BROKEN_MAX: usize = 3;
/// How often a seed is played in which Kafka leaves a transaction open for ever.
const ATTEMPTS_MAX: u32 = 3;

/// What came of all seeds.
#[derive(Debug, Default, Serialize)]
pub struct Campaign {
    /// Seeds that were played to their verdict.
    pub seeds: u64,
    /// Violations of each seed that had any.
    pub violations: BTreeMap<u64, Vec<Violation>>,
    /// What was hit.
    pub hits: BTreeMap<String, Hits>,
    /// Records that were taken into the packets topic.
    pub taken: u64,
    /// Records that were published.
    pub published: u64,
    /// Seeds that were played once more, and the transactions that Kafka had left open for ever (KAFKA-5202).
    pub again: BTreeMap<u64, Vec<String>>,
    /// Seeds of which nothing is known, and why.
    pub broken: BTreeMap<u64, String>,
    /// Whether it was interrupted.
    pub interrupted: bool,
}

/// Of an edge or a fault.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Hits {
    /// How often it happened.
    pub times: u64,
    /// In how many seeds.
    pub seeds: u64,
    /// In how many of those a promise was broken.
    pub violated: u64,
}

/// Which seeds, and what is tested.
#[derive(Debug)]
pub struct Campaigner<'a> {
    /// The seeds, all of as many regions.
    pub seeds: Vec<u64>,
    /// The programs.
    pub programs: &'a Programs,
    /// Where every seed that had violations leaves its plan, history and logs.
    pub out: &'a Path,
    /// Whether the first violation ends it.
    pub until_caught: bool,
    /// Ends it after the current seed.
    pub stop: CancellationToken,
}

impl Campaigner<'_> {
    /// Plays every seed and adds to `campaign` what came of it.
    ///
    /// # Errors
    /// When a folder cannot be made or removed.
    pub async fn run(&self, servers: &Servers, campaign: &mut Campaign) -> Result<()> {
        let progress = Progress::new("chaos");
        for seed in self.seeds.iter().copied() {
            if self.stop.is_cancelled() {
                campaign.interrupted = true;
                break;
            }
            progress.show(|| format!("{seed}: {} seeds, {} violations", campaign.seeds, campaign.count()));
            let (played, folder) = Box::pin(self.play(seed, servers, campaign)).await?;
            match played {
                Ok(outcome) => {
                    let caught = outcome.violations.iter().any(Violation::is_breach);
                    if outcome.violations.is_empty() {
                        std::fs::remove_dir_all(&folder)?;
                    } else {
                        explain(seed, &outcome, &folder, servers)?;
                    }
                    campaign.add(seed, outcome);
                    if caught && self.until_caught {
                        break;
                    }
                }
                Err(error) => {
                    eprintln!("seed {seed}: {error:#}; everything of it is in {}", folder.display());
                    campaign.broken.insert(seed, format!("{error:#}"));
                    if campaign.broken.len() >= BROKEN_MAX {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Plays a seed, and plays it again where Kafka itself has left a transaction open. What came of the last time, and its folder.
    async fn play(&self, seed: u64, servers: &Servers, campaign: &mut Campaign) -> Result<(Result<Outcome>, PathBuf)> {
        let plan = Plan::new(seed, &processor::failpoint::EDGES);
        let mut attempt = 0;
        loop {
            let folder = self.folder(seed, attempt)?;
            let played = game::play(servers, self.programs, &plan, attempt, &folder).await;
            attempt += 1;
            match &played {
                Ok(outcome) if !outcome.hanging.is_empty() && attempt < ATTEMPTS_MAX => {
                    explain(seed, outcome, &folder, servers)?;
                    let hanging = outcome.hanging.join(", ");
                    eprintln!("  played again: Kafka has left a transaction open for ever (KAFKA-5202): {hanging}");
                    campaign.again.entry(seed).or_default().extend(outcome.hanging.iter().cloned());
                }
                _ => return Ok((played, folder)),
            }
        }
    }

    /// An empty folder.
    fn folder(&self, seed: u64, attempt: u32) -> Result<PathBuf> {
        let name = match attempt {
            0 => format!("seed-{seed}"),
            _ => format!("seed-{seed}-again-{attempt}"),
        };
        // Processes work in it and are told where they are.
        let folder = std::path::absolute(self.out.join(name))?;
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        Ok(folder)
    }
}

/// Says what was broken and to whom, and keeps the servers' logs beside the services'.
fn explain(seed: u64, outcome: &Outcome, folder: &Path, servers: &Servers) -> Result<()> {
    let violations = &outcome.violations;
    let text: Vec<_> = violations.iter().map(ToString::to_string).collect();
    std::fs::write(folder.join("violations.txt"), text.join("\n") + "\n")?;
    let nodes = servers.stacks().iter().flat_map(Stack::nodes);
    for node in nodes.chain(servers.mirror().map(MirrorMaker::process)) {
        let log = node.log_path();
        std::fs::copy(log, folder.join(log.file_name().context("a log has a name")?))?;
    }
    eprintln!("seed {seed}: {} violations; plan, history and every log are in {}", violations.len(), folder.display());
    for line in text.iter().take(SHOWN) {
        eprintln!("  {line}");
    }
    if let Some(packet) = violations.iter().find_map(|violation| violation.packet) {
        eprintln!("  what happened to packet {packet} meanwhile:");
        for event in outcome.history.iter().filter(|event| event.concerns(packet)).take(LINES) {
            eprintln!("  {event}");
        }
    }
    Ok(())
}

impl Campaign {
    /// Violations in all.
    pub fn count(&self) -> usize {
        self.violations.values().map(Vec::len).sum()
    }

    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.taken += outcome.taken;
        self.published += outcome.published;
        for (what, times) in outcome.hits {
            let hits = self.hits.entry(what).or_default();
            hits.times += times;
            hits.seeds += 1;
            hits.violated += u64::from(!outcome.violations.is_empty());
        }
        if !outcome.violations.is_empty() {
            self.violations.insert(seed, outcome.violations);
        }
    }
}

impl fmt::Display for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(["edge or fault", "times hit", "seeds", "verdict"]);
        for (what, Hits { times, seeds, violated }) in &self.hits {
            let verdict = match violated {
                0 => "clean".to_owned(),
                _ => format!("violations in {violated} seeds"),
            };
            table.add_row([what.clone(), times.to_string(), seeds.to_string(), verdict]);
        }
        writeln!(f, "{table}")?;
        writeln!(f, "{} records taken, {} published", self.taken, self.published)?;
        // Explained when they were found; what is at the end is what a log keeps.
        for (seed, violations) in &self.violations {
            for violation in violations.iter().take(SHOWN) {
                writeln!(f, "seed {seed}: {violation}")?;
            }
        }
        for (seed, hanging) in &self.again {
            let hanging = hanging.join(", ");
            writeln!(
                f,
                "seed {seed} was played again: Kafka had left a transaction open for ever (KAFKA-5202): {hanging}"
            )?;
        }
        for (seed, error) in &self.broken {
            writeln!(f, "seed {seed} was not judged: {error}")?;
        }
        write!(f, "{} seeds, {} violations", self.seeds, self.count())
    }
}
