//! `devstack rebuild`: a region that has lost its disks is made again from the other. The background process, whose children it concerns, does it;
//! this asks for it, follows it, and then holds both regions against each other.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use comfy_table::{Table, presets};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::deployment::Deployment;
use super::home::Home;
use super::program::ask;
use super::state::{Endpoints, Phase, Rebuild, Reporter, Stage, State};
use super::{Output, RebuildArgs, print};

/// Between two looks at what the background process has written.
const LOOK: Duration = Duration::from_millis(100);
/// Between two questions whether everything was mirrored and processed.
const QUESTION: Duration = Duration::from_secs(2);
/// How long that may take until the regions are compared nevertheless.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the background process is asked for.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    client: u32,
    region: String,
    wipe: bool,
}

/// Does what was asked, if anything was; in the background process.
pub(crate) async fn serve(home: &Home, deployment: &Deployment, reporter: &Reporter) {
    let request = fs::read(home.request()).ok().and_then(|text| serde_json::from_slice::<Request>(&text).ok());
    let Some(Request { client, region, wipe }) = request else { return };
    // Asked once, done once.
    let _ = fs::remove_file(home.request());
    let tell = |stage| reporter.change(|state| state.rebuild = Some(Rebuild { client, stage }));
    let step = |step: &str| tell(Stage::Step(step.to_owned()));
    match deployment.rebuild(home, &region, wipe, step).await {
        Ok(report) => tell(Stage::Done(report)),
        Err(error) => tell(Stage::Failed(format!("{error:#}"))),
    }
}

pub(crate) async fn rebuild(home: &Home, args: &RebuildArgs) -> anyhow::Result<ExitCode> {
    for file in &args.receipts {
        // Before anything is deleted.
        fs::metadata(file).with_context(|| file.display().to_string())?;
    }
    let owner = home.owner().context("nothing is up; start it with: infra/dev up --regions 2")?;
    let state =
        home.state().filter(|state| state.phase == Phase::Ready).context("it is not ready: infra/dev status")?;
    let client = std::process::id();
    let request = Request { client, region: args.region.clone(), wipe: args.wipe };
    fs::write(home.request(), serde_json::to_vec(&request)?).with_context(|| home.request().display().to_string())?;
    kill(Pid::from_raw(owner.cast_signed()), Signal::SIGUSR1)?;

    let restored = follow(home, owner, client).await?;
    let back = Instant::now();
    let drained = drain(home, &state.endpoints).await?;
    let found = compare(home, &state.endpoints, &args.receipts, back).await?;
    let good = found["differences"] == found["lost"];
    show(args, &restored, &found, drained)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what the background process does until it is done.
async fn follow(home: &Home, owner: u32, client: u32) -> anyhow::Result<Value> {
    let mut last = None;
    loop {
        let own = |state: State| state.rebuild.filter(|rebuild| rebuild.client == client).map(|rebuild| rebuild.stage);
        match home.state().and_then(own) {
            Some(Stage::Done(report)) => return Ok(report),
            Some(Stage::Failed(reason)) => bail!("{reason}"),
            Some(Stage::Step(step)) if last.as_ref() != Some(&step) => {
                say(&step);
                last = Some(step);
            }
            Some(Stage::Step(_)) | None => {}
        }
        if home.owner() != Some(owner) {
            bail!("the background process has ended; its log is {}", home.log().display());
        }
        sleep(LOOK).await;
    }
}

/// Waits until everything is mirrored and processed in both regions; whether it is.
async fn drain(home: &Home, regions: &[Endpoints]) -> anyhow::Result<bool> {
    say("waiting until everything is mirrored and processed");
    let addresses = addresses(regions);
    let since = Instant::now();
    let mut said = Instant::now();
    loop {
        let waiting = waiting(home, &addresses, regions).await?;
        if waiting == Some(0) {
            return Ok(true);
        }
        if since.elapsed() > PATIENCE {
            return Ok(false);
        }
        if said.elapsed() > 5 * QUESTION {
            said = Instant::now();
            let records = waiting.map_or("not everything runs yet".to_owned(), |count| format!("{count} records wait"));
            eprintln!("    {records}");
        }
        sleep(QUESTION).await;
    }
}

/// Records that are not mirrored, or mirrored and not processed, in both regions together; none while something does not run yet.
async fn waiting(home: &Home, addresses: &[String], regions: &[Endpoints]) -> anyhow::Result<Option<i64>> {
    let status = ["mirror", "status", "--region", &addresses[0], "--region", &addresses[1]];
    let (well, directions) = ask(home, "relayctl", regions, &status).await?;
    let mut sum = total(&directions, "behind");
    let mut processed = well;
    for (index, region) in regions.iter().enumerate() {
        // What is not committed yet counts where the topic is named.
        let own = coderelay_schemas::topics::PACKETS;
        let mirrored = format!("{}.{own}", name(&regions[1 - index]));
        let lag = ["groups", "lag", "--kafka", &region.kafka, "--topic", own, "--topic", &mirrored];
        let (known, lags) = ask(home, "relayctl", regions, &lag).await?;
        processed &= known;
        sum += total(&lags, "lag");
    }
    Ok(processed.then_some(sum))
}

fn total(rows: &Value, field: &str) -> i64 {
    rows.as_array().into_iter().flatten().filter_map(|row| row[field].as_i64()).sum()
}

/// Compares what both have published and stored of everything that was ingested before `back`.
async fn compare(home: &Home, regions: &[Endpoints], receipts: &[PathBuf], back: Instant) -> anyhow::Result<Value> {
    say("comparing what both have published and stored");
    let addresses = addresses(regions);
    let until = format!("{}s", back.elapsed().as_secs());
    let mut line = vec!["mirror", "verify", "--region", &addresses[0], "--region", &addresses[1]];
    line.extend(["--since", "7d", "--until", &until]);
    let receipts: Vec<_> = receipts.iter().map(|file| file.to_string_lossy()).collect();
    line.extend(receipts.iter().flat_map(|file| ["--receipts", file]));
    let (_, report) = ask(home, "relayctl", regions, &line).await?;
    if !report.is_object() {
        bail!("the regions could not be compared");
    }
    Ok(report)
}

fn show(args: &RebuildArgs, restored: &Value, found: &Value, drained: bool) -> anyhow::Result<()> {
    if args.output == Output::Json {
        let document = json!({ "restored": restored, "found": found, "drained": drained });
        print(serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    let region = &args.region;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["what", "found"]);
    table.add_row([format!("records {region} was given back"), restored["records"].to_string()]);
    let lost = match found["acknowledged"].as_u64() {
        Some(acknowledged) => format!("{} of {acknowledged}", found["lost"]),
        None => "unknown without --receipts".to_owned(),
    };
    table.add_row(["acknowledged packets that are in neither region".to_owned(), lost]);
    table.add_row(["published in each region".to_owned(), found["published"].to_string()]);
    table.add_row(["stored in each region".to_owned(), found["stored"].to_string()]);
    let differences = total_of(&found["differences"]) - total_of(&found["lost"]);
    table.add_row(["differences between the regions".to_owned(), differences.to_string()]);
    print(format_args!("\n{table}"))?;
    let until =
        |partition: &Value| Some(format!("{}@{}", partition["partition"], partition["mirrored_until"].as_i64()?));
    let until: Vec<_> = restored["partitions"].as_array().into_iter().flatten().filter_map(until).collect();
    print(format_args!(
        "\nWhat {region} had acknowledged at or after these offsets (partition@offset) had not been mirrored, and is lost:\n{}",
        until.join(" ")
    ))?;
    for lost in found["shown"].as_array().into_iter().flatten() {
        let field = |name: &str| lost[name].as_str().unwrap_or_default().to_owned();
        print(format_args!("{}: {} {}", field("what"), field("repo_id"), field("packet_id")))?;
    }
    let named = found["shown"].as_array().map_or(0, Vec::len) as i64;
    if total_of(&found["differences"]) > named {
        print(format_args!(
            "and {} more: `relayctl mirror verify --since 7d --receipts FILE -n COUNT`",
            total_of(&found["differences"]) - named
        ))?;
    }
    if !drained {
        print("\nNot everything was mirrored and processed when they were compared: see `infra/dev status`")?;
    }
    Ok(())
}

fn total_of(count: &Value) -> i64 {
    count.as_i64().unwrap_or_default()
}

/// The regions as relayctl takes them.
fn addresses(regions: &[Endpoints]) -> Vec<String> {
    let address = |region: &Endpoints| format!("{},kafka={},cql={}", name(region), region.kafka, region.cql);
    regions.iter().map(address).collect()
}

fn name(region: &Endpoints) -> &str {
    region.region.as_deref().unwrap_or("local")
}

fn say(what: &str) {
    eprintln!("==> {what}");
}
