//! Negative controls: whether the checker finds the mistakes that the services are told to make.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use coderelay_runtime::flaw::Flaw;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::campaign::{Campaign, Campaigner};
use super::verdict::Violation;
use super::world::Programs;
use crate::pipeline::Servers;

/// One flaw.
#[derive(Debug, Serialize)]
pub struct Control {
    /// The mistake.
    pub flaw: Flaw,
    /// Seeds that were played.
    pub seeds: u64,
    /// The last of them, if a promise was broken in it, and the first of those.
    pub caught: Option<(u64, Violation)>,
}

/// All of them.
#[derive(Debug, Default, Serialize)]
pub struct Controls(pub Vec<Control>);

impl Controls {
    /// Plays `seeds` for each flaw, until it shows.
    ///
    /// # Errors
    /// As [`Campaigner::run`].
    pub async fn run(
        servers: &Servers,
        programs: &Programs,
        seeds: &[u64],
        out: &Path,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let mut controls = Self::default();
        for flaw in Flaw::ALL {
            let programs = Programs { flaw: Some(flaw), ..programs.clone() };
            let campaigner = Campaigner {
                seeds: seeds.to_vec(),
                programs: &programs,
                out: &out.join(flaw.to_string()),
                until_caught: true,
                stop: stop.clone(),
            };
            let mut campaign = Campaign::default();
            Box::pin(campaigner.run(servers, &mut campaign)).await?;
            let breach = |(seed, found): (u64, Vec<_>)| Some((seed, found.into_iter().find(Violation::is_breach)?));
            let caught = campaign.violations.into_iter().find_map(breach);
            controls.0.push(Control { flaw, seeds: campaign.seeds, caught });
            if stop.is_cancelled() {
                break;
            }
        }
        Ok(controls)
    }

    /// Whether every flaw there is was found.
    pub fn all_caught(&self) -> bool {
        self.0.len() == Flaw::ALL.len() && self.0.iter().all(|control| control.caught.is_some())
    }
}

impl fmt::Display for Controls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(ASCII_MARKDOWN).set_header(["flaw", "seeds until caught", "by"]);
        for Control { flaw, seeds, caught } in &self.0 {
            let by = caught.as_ref().map_or("not caught".to_owned(), |(_, violation)| violation.to_string());
            table.add_row([flaw.to_string(), seeds.to_string(), by]);
        }
        let caught = self.0.iter().filter(|control| control.caught.is_some()).count();
        write!(f, "{table}\n{} controls, {caught} caught", self.0.len())
    }
}
