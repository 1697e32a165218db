//! Two regions that mirror each other: a stack each, and the `MirrorMaker` between them.

use std::path::Path;

use coderelay_schemas::topics::TopicNames;

use crate::direction::Cluster;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::jars;
use crate::mirrormaker::MirrorMaker;
use crate::stack::{Builder, Stack};

/// The regions' names, as they stand in front of mirrored topics (`us-east.code.packets.v1`) and of processes (`us-east.kafka-1`).
pub const REGIONS: [&str; 2] = ["us-east", "eu-west"];

/// The environment variable that holds for one region what `name` holds where there is one only:
/// `KAFKA_BOOTSTRAP` and `us-east` make `KAFKA_BOOTSTRAP_US_EAST`.
pub fn of_region(name: &str, region: &str) -> String {
    format!("{name}_{}", region.to_uppercase().replace('-', "_"))
}

/// Two stacks, each with the contract's topics, and a `MirrorMaker`. They end when it is dropped, and with this process.
///
/// ```no_run
/// # async fn test() -> coderelay_devstack::Result<()> {
/// use coderelay_devstack::{Regions, Stack};
/// let regions = Regions::start(Stack::builder()).await?;
/// regions.us_east().kill().await?;
/// regions.us_east().restart().await?;
/// regions.mirror().process().pause().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Regions {
    mirror: MirrorMaker,
    stacks: Vec<Stack>,
    // Last: files are removed after the processes that write them are killed.
    folder: Folder,
}

impl Regions {
    /// Starts a stack like `each` for either region, creates the topics, starts `MirrorMaker` and waits
    /// until a heartbeat arrives both ways.
    ///
    /// # Errors
    /// As [`Builder::start`].
    ///
    /// # Panics
    /// If `each` is [`secured`](Builder::secured): `MirrorMaker` is set up here for plain text only.
    pub async fn start(each: Builder) -> Result<Self> {
        assert!(!each.is_secured(), "mirrored stacks speak plain text");
        let folder = each.folder()?;
        let stacks = REGIONS.iter().zip(0..).map(|(name, index)| each.region(name, index, folder.path()).start());
        let stacks = futures::future::try_join_all(stacks).await?;
        for stack in &stacks {
            stack.create_topics(&TopicNames::default(), each.partitions_of_topics()).await?;
        }
        let clusters = [0, 1].map(|index: usize| Cluster {
            name: REGIONS[index].to_owned(),
            // It lives in the second region, as production's does at the target: the first is far away.
            bootstrap_servers: if index == 0 { stacks[0].linked_servers() } else { stacks[1].bootstrap_servers() },
        });
        let observer = each.observer_of_start().clone();
        let fetching = observer.clone();
        let jars = tokio::task::spawn_blocking(move || jars::KAFKA.jars(&fetching)).await;
        let jars = jars.map_err(|error| Error::io("mvn")(error.into()))??;
        let (jit, replicas) = (each.jit_of_start(), stacks[0].replicas());
        let mirror = MirrorMaker::launch(&jars, jit, folder.path(), clusters, replicas, each.mirror_properties())?;
        mirror.process().ready_observed(&observer).await?;
        Ok(Self { mirror, stacks, folder })
    }

    /// The folder in which each region and the mirror have their own.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves a temporary folder when the regions end, as [`Stack::keep`] does.
    pub fn keep(&self) {
        self.folder.keep();
    }

    /// The stacks in the order of [`REGIONS`].
    pub fn stacks(&self) -> &[Stack] {
        &self.stacks
    }

    /// The first region.
    pub fn us_east(&self) -> &Stack {
        &self.stacks[0]
    }

    /// The second region.
    pub fn eu_west(&self) -> &Stack {
        &self.stacks[1]
    }

    /// Cuts what connects the regions, if they were built [`linked`](Builder::linked). Their clients see nothing of it.
    pub fn cut(&self) {
        self.stacks.iter().for_each(Stack::cut);
    }

    /// Heals it.
    pub fn heal(&self) {
        self.stacks.iter().for_each(Stack::heal);
    }

    /// What mirrors each region's topics to the other.
    pub fn mirror(&self) -> &MirrorMaker {
        &self.mirror
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regions_variables_have_its_name_behind() {
        assert_eq!(of_region("INGEST_ADMIN", "eu-west"), "INGEST_ADMIN_EU_WEST");
    }
}
