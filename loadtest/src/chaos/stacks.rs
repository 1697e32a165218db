//! Where the threads of the services stand, for a pipeline that does not come to rest: what a client's call waits for no log tells.

use std::path::Path;
use std::time::Duration;

use coderelay_devstack::Process;
use tokio::process::Command;
use tokio::time::timeout;

use super::fault::Service;
use super::plan::PROCESSORS;
use super::world::World;

/// How long a process may take to be looked at.
const PATIENCE: Duration = Duration::from_secs(30);

/// Has gdb write the stacks of every processor into `folder`, and notes it where that fails, as where there is no gdb.
pub async fn write(world: &World<'_>, folder: &Path) {
    for service in (0..PROCESSORS).map(Service::Processor) {
        let keeper = world.keeper(service);
        let Some(process) = keeper.process().filter(|process| process.is_running()) else { continue };
        if let Err(error) = stacks(&process, &folder.join(format!("{}.stacks", process.name()))).await {
            world.history.note(format!("no stacks of {}: {error}", keeper.name()));
        }
    }
}

async fn stacks(process: &Process, file: &Path) -> std::io::Result<()> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-ex", "thread apply all backtrace", "-p", &process.pid().to_string()]);
    let output = timeout(PATIENCE, gdb.kill_on_drop(true).output()).await??;
    // Why there are none, where it was not allowed to look.
    tokio::fs::write(file, [output.stdout, output.stderr].concat()).await
}
