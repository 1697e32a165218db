//! `devstack regions`: two regions in the foreground, the loss of one under load, its return, and what both hold afterwards.

use std::process::ExitCode;

use anyhow::bail;
use comfy_table::{Table, presets};

use super::RegionsArgs;
use super::deployment::Deployment;
use super::home::Home;
use super::region_loss::{Finding, RegionLoss};
use super::run::{INTERRUPTED, Interruption, own_home, stay};
use super::state::{Reporter, lines};
use super::view::View;

pub(crate) async fn regions(home: &Home, args: &RegionsArgs) -> anyhow::Result<ExitCode> {
    let (home, _claim) = own_home(home)?;
    home.wipe_nodes()?;
    let mut interruption = Interruption::new()?;
    let reporter = Reporter::new();
    let mut view = View::new();
    let start = view.during(reporter.subscribe(), Deployment::start(&home, 1, 2, &reporter));
    let deployment = tokio::select! {
        started = start => started?,
        () = interruption.wait() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let loss = RegionLoss { home: &home, deployment: &deployment, rate: args.rate, mirrored: args.mirrored };
    let code = tokio::select! {
        found = loss.inflict() => show(&found?),
        () = deployment.supervise() => bail!("MirrorMaker has died: its log is in {}", home.nodes().display()),
        () = interruption.wait() => INTERRUPTED,
    };
    if !args.exit && code != INTERRUPTED {
        eprintln!(
            "\nBoth regions stay up until Ctrl-C. In another terminal:\n\n{}",
            lines(&deployment.regions(), "  export ")
        );
        stay(&deployment, &reporter, &mut interruption).await;
    }
    tokio::select! {
        stopped = view.during(reporter.subscribe(), deployment.stop()) => stopped?,
        () = interruption.wait() => {}
    }
    Ok(ExitCode::from(code))
}

/// Prints the table. Exit code 1 where a packet is lost or doubled, or the regions differ.
fn show(findings: &[Finding]) -> u8 {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["what", "measured", "target", "met"]);
    for Finding { what, measured, target, met, .. } in findings {
        table.add_row([*what, measured.as_str(), *target, if *met { "yes" } else { "NO" }]);
    }
    println!("\n{table}");
    u8::from(findings.iter().any(|finding| finding.promised && !finding.met))
}
