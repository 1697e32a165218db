//! Where the background stack keeps its files, and the lock that says whether it lives.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use super::state::State;

/// `target/devstack`, beside the build's binaries, and what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
    programs: PathBuf,
}

impl Home {
    /// The one that belongs to the build of this binary: `target/release/devstack` has `target/devstack`.
    pub(crate) fn of_this_build() -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("the path of this program")?;
        let programs = binary.parent().unwrap_or(Path::new("/")).to_owned();
        let target = programs.parent().unwrap_or(&programs);
        Ok(Self { dir: target.join("devstack"), programs })
    }

    /// The same with another folder.
    pub(crate) fn below(&self, dir: PathBuf) -> Self {
        Self { dir, programs: self.programs.clone() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program of the same build.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The nodes' folders.
    pub(crate) fn nodes(&self) -> PathBuf {
        self.dir.join("nodes")
    }

    /// The addresses, one `NAME=value` a line.
    pub(crate) fn env(&self) -> PathBuf {
        self.dir.join("env")
    }

    /// What the background process itself has to say.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("devstack.log")
    }

    /// What the background process is asked to do beside starting and leaving.
    pub(crate) fn request(&self) -> PathBuf {
        self.dir.join("request.json")
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    fn lock_file(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Takes the folder for this process until the answer is dropped; `None` if another has it.
    pub(crate) fn claim(&self) -> anyhow::Result<Option<Flock<File>>> {
        fs::create_dir_all(&self.dir).with_context(|| self.dir.display().to_string())?;
        let path = self.lock_file();
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let file = open.with_context(|| path.display().to_string())?;
        let Ok(mut lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;
        Ok(Some(lock))
    }

    /// The process that has claimed the folder, if one has and lives.
    pub(crate) fn owner(&self) -> Option<u32> {
        let path = self.lock_file();
        let file = File::open(&path).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_free) => None,
            Err(_held) => fs::read_to_string(&path).ok()?.parse().ok(),
        }
    }

    /// The state that the owner, or the last one, has written.
    pub(crate) fn state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.state_file()).ok()?).ok()
    }

    /// Replaces the state file in one step, so that no reader sees half of it.
    pub(crate) fn write_state(&self, state: &State) -> anyhow::Result<()> {
        let next = self.dir.join("state.json.next");
        fs::write(&next, serde_json::to_vec_pretty(state)?).with_context(|| next.display().to_string())?;
        fs::rename(&next, self.state_file()).with_context(|| next.display().to_string())
    }

    /// Removes what only holds while the stack lives.
    pub(crate) fn forget(&self) {
        // Missing files are what is wanted.
        let _ = fs::remove_file(self.env());
        let _ = fs::remove_file(self.state_file());
    }

    /// Removes the nodes' data and logs.
    pub(crate) fn wipe_nodes(&self) -> anyhow::Result<()> {
        let nodes = self.nodes();
        if nodes.exists() {
            fs::remove_dir_all(&nodes).with_context(|| nodes.display().to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_folder_names_its_owner_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::of_this_build().unwrap().below(dir.path().join("devstack"));
        assert_eq!(home.owner(), None);
        let claim = home.claim().unwrap().expect("nobody else has it");
        assert_eq!(home.owner(), Some(std::process::id()));
        assert!(home.claim().unwrap().is_none());
        drop(claim);
        assert_eq!(home.owner(), None);
    }
}
