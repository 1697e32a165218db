//! Two regions mirror each other for real: what is written in one arrives in the other as it was, and a mirror that has died, hangs or has
//! a failed task is started again.

#[cfg(test)]
mod mirrored;
#[cfg(test)]
mod records;
#[cfg(test)]
mod supervision;

use coderelay_devstack::{Regions, Stack};
use tokio::sync::OnceCell;

/// Tests that treat the mirror badly, and those that need it, take turns.
#[cfg(test)]
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Two regions for all tests, started by the first that asks.
#[cfg(test)]
async fn shared() -> &'static Regions {
    static SHARED: OnceCell<Regions> = OnceCell::const_new();
    SHARED.get_or_init(|| async { Regions::start(Stack::builder()).await.unwrap() }).await
}
