//! The folder of one stack: every node's data, configuration and log.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::jars;

/// For how long after a stack's start its logs can be read once it has ended.
const KEPT: Duration = Duration::from_secs(3600);

/// A stack's folder. A temporary one goes with the stack, unless a test failed or it was told to stay: then its logs are what one wants to
/// read.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    temporary: AtomicBool,
    /// Says to a later [`sweep`] that the stack lives.
    _lock: Option<Flock<File>>,
}

impl Folder {
    /// The folder at `path`, which stays.
    pub(crate) fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(Self { path, temporary: AtomicBool::new(false), _lock: None })
    }

    /// A new folder below the system's temporary one. Takes the occasion to remove those that stacks of killed
    /// processes left an hour ago or earlier.
    pub(crate) fn temporary() -> Result<Self> {
        let parent = std::env::temp_dir().join("coderelay-devstack");
        fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
        sweep(&parent);
        let folder = tempfile::Builder::new().prefix("stack-").tempdir_in(&parent).map_err(Error::io(&parent))?;
        let lock = jars::lock(&folder.path().join("lock"))?;
        Ok(Self { path: folder.keep(), temporary: AtomicBool::new(true), _lock: Some(lock) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder when the stack ends, until a [`sweep`] takes it an hour after its start.
    pub(crate) fn keep(&self) {
        self.temporary.store(false, Ordering::Relaxed);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !*self.temporary.get_mut() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the stack's logs are kept for a while in {}", self.path.display());
        } else {
            // A file that a dying process still writes may remain; the next sweep takes it.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes a folder, if there is one.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(dir)(error)),
        _ => Ok(()),
    }
}

fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let lock = path.join("lock");
        let age = fs::metadata(&lock).and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        let abandoned =
            || File::open(&lock).is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok());
        if age.is_some_and(|age| age > KEPT) && abandoned() {
            // Another process may sweep at the same time.
            let _ = fs::remove_dir_all(&path);
        }
    }
}
