//! Whether a world has come to rest: everything is mirrored that is to be, and the groups have committed all of it.

use anyhow::{Result, ensure};

use super::mirrored;
use super::region::Region;
use super::topic;
use crate::backlog::lag;

/// Asks the brokers, when producers write no more. Blocking.
///
/// # Errors
/// What moves yet, or what the brokers do not tell.
pub fn is_at_rest(regions: &[Region<'_>]) -> Result<(), String> {
    ask(regions).map_err(|error| format!("{error:#}"))
}

fn ask(regions: &[Region<'_>]) -> Result<()> {
    nothing_waits(regions)?;
    if regions.len() > 1 {
        everything_is_mirrored(regions)?;
        // What arrived last has been written after the first question.
        nothing_waits(regions)?;
    }
    Ok(())
}

fn nothing_waits(regions: &[Region<'_>]) -> Result<()> {
    for region in regions {
        let waiting = lag(&region.stack.bootstrap_servers(), &region.identity.group, &region.sources)?;
        ensure!(waiting == 0, "{waiting} records wait");
    }
    Ok(())
}

fn everything_is_mirrored(regions: &[Region<'_>]) -> Result<()> {
    for region in regions {
        let others = regions.iter().filter(|other| other.stack.region() != region.stack.region());
        // A region's sources are its own topic and, in the order of the others, theirs.
        for (other, mirrored) in others.zip(&region.sources[1..]) {
            let source = topic::read(&other.stack.bootstrap_servers(), &other.sources[0])?;
            let copies = topic::read(&region.stack.bootstrap_servers(), mirrored)?;
            ensure!(
                mirrored::differences(&source, &copies, region.identity.mirrored_in_order).is_empty(),
                "{mirrored} is not complete"
            );
        }
    }
    Ok(())
}
