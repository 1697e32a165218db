//! The one thread that starts every process of the stack.
//!
//! Linux ties a parent-death signal to the parent's *thread* (prctl(2), `PR_SET_PDEATHSIG`): a child started from a
//! thread of a pool would be killed whenever that thread ends. This thread ends with its process and never before, so
//! the signal means what it should: nothing survives the death of whoever started the stack, not even by SIGKILL.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread;

struct Request {
    command: Command,
    reply: SyncSender<io::Result<Child>>,
}

static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();

/// A command that runs `program` bound to the life of this process, in a process group of its own, so that Ctrl-C
/// reaches whoever owns the stack and not the stack behind its back.
pub(crate) fn bound_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0);
    command
}

/// Starts `command` from the spawner thread.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, inbox) = channel::<Request>();
        thread::spawn(move || {
            for mut request in inbox {
                // The sockets of librdkafka are inherited otherwise: a child would hold connections open that were closed here.
                close_fds::set_fds_cloexec_threadsafe(3, &[]);
                // Whoever asked waits for the answer; were they gone, the child's handle goes with the answer.
                let _ = request.reply.send(request.command.spawn());
            }
        });
        requests
    });
    let (reply, answer) = sync_channel(1);
    let gone = || io::Error::other("the spawner thread is gone");
    spawner.send(Request { command, reply }).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
