//! `devstack fetch`: the jars ahead of the first start, for example into an image or a cache of a build machine.

use std::process::ExitCode;

use coderelay_devstack::{Stack, cache_dir};

use super::state::Reporter;
use super::view::View;

pub(crate) async fn fetch() -> anyhow::Result<ExitCode> {
    let reporter = Reporter::new();
    let builder = Stack::builder().cql(true).observer(reporter.observer());
    View::new().during(reporter.subscribe(), builder.fetch()).await?;
    eprintln!("the jars are in {}", cache_dir().display());
    Ok(ExitCode::SUCCESS)
}
