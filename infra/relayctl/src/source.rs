//! What to push: paths on the command line, expanded to files, and the name of the repository they are from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::exit::Refusal;

/// Standard input, as a path.
pub(crate) const STDIN: &str = "-";

/// One file to push.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// What it is called in the repository: the path below its top, `/` between names. Becomes the metadata entry `path`.
    pub(crate) label: String,
    /// Where it is on disk; [`STDIN`] for standard input.
    pub(crate) file: PathBuf,
}

/// Expands paths to files: of a folder in a git checkout those that git tracks, of any other folder all.
///
/// # Errors
/// A path does not exist, or git refuses to list a checkout.
pub(crate) fn expand(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == STDIN {
            sources.push(Source { label: STDIN.to_owned(), file: path.clone() });
            continue;
        }
        let kind = fs::metadata(path).map_err(|error| Refusal::NotFound(format!("{}: {error}", path.display())))?;
        let top = checkout(path)?;
        if kind.is_file() {
            sources.push(Source { label: label(path, top.as_deref())?, file: fs::canonicalize(path)? });
        } else if let Some(top) = top {
            sources.extend(tracked(path, &top)?);
        } else {
            walk(path, path, &mut sources)?;
        }
    }
    sources.sort();
    sources.dedup();
    Ok(sources)
}

/// The repository a path is from: `owner/name` of the git remote `origin`, else the name of its top folder.
pub(crate) fn repository(path: &Path) -> anyhow::Result<String> {
    let path = if path.as_os_str() == STDIN { Path::new(".") } else { path };
    let folder =
        if path.is_dir() { path } else { path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new(".")) };
    let top = checkout(folder)?;
    if top.is_some()
        && let Ok(remote) = git(folder, &["remote", "get-url", "origin"])
        && let Some(name) = remote_name(String::from_utf8_lossy(&remote).trim())
    {
        return Ok(name);
    }
    let top = fs::canonicalize(top.as_deref().unwrap_or(folder))?;
    match top.file_name() {
        Some(name) => Ok(name.to_string_lossy().into_owned()),
        None => bail!(Refusal::Usage("this folder has no name to use: give one with --repo".to_owned())),
    }
}

/// `owner/name` of a hosted remote, the last component of a path on disk.
fn remote_name(remote: &str) -> Option<String> {
    let remote = remote.trim_end_matches('/').trim_end_matches(".git");
    let hosted = match remote.split_once("://") {
        Some(("file", _)) => None,
        Some((_, rest)) => rest.split_once('/').map(|(_, path)| path),
        // scp's form, user@host:path
        None => remote.split_once(':').filter(|(host, _)| !host.contains('/')).map(|(_, path)| path),
    };
    let name = hosted.map_or_else(|| remote.rsplit('/').next().unwrap_or_default(), |path| path.trim_matches('/'));
    (!name.is_empty()).then(|| name.to_owned())
}

/// The top folder of the checkout a path is in, if any.
fn checkout(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    let absolute = fs::canonicalize(path).with_context(|| path.display().to_string())?;
    if !absolute.ancestors().any(|folder| folder.join(".git").exists()) {
        return Ok(None);
    }
    let folder = if absolute.is_dir() { absolute.as_path() } else { absolute.parent().unwrap_or(Path::new("/")) };
    let top = git(folder, &["rev-parse", "--show-toplevel"])?;
    Ok(Some(PathBuf::from(String::from_utf8_lossy(&top).trim_end_matches('\n'))))
}

fn tracked(folder: &Path, top: &Path) -> anyhow::Result<Vec<Source>> {
    let list = git(folder, &["ls-files", "-z", "--full-name"])?;
    let names = list.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names
        .map(|name| {
            let label = String::from_utf8_lossy(name).into_owned();
            Source { file: top.join(&label), label }
        })
        .collect())
}

fn walk(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(root, &entry.path(), sources)?;
        } else if kind.is_file() {
            sources.push(Source { label: label(&entry.path(), Some(root))?, file: entry.path() });
        }
    }
    Ok(())
}

fn label(file: &Path, top: Option<&Path>) -> anyhow::Result<String> {
    let absolute = fs::canonicalize(file)?;
    let below = match top {
        Some(top) => absolute.strip_prefix(fs::canonicalize(top)?).unwrap_or(&absolute).to_path_buf(),
        None => PathBuf::from(file.file_name().unwrap_or(file.as_os_str())),
    };
    let names: Vec<_> = below.components().map(|name| name.as_os_str().to_string_lossy()).collect();
    Ok(names.join("/"))
}

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().context("cannot run git")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(paths: &[&Path]) -> Vec<String> {
        let paths: Vec<_> = paths.iter().map(|path| path.to_path_buf()).collect();
        expand(&paths).unwrap().into_iter().map(|source| source.label).collect()
    }

    #[test]
    fn a_plain_folder_gives_all_its_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(folder.path().join("src/main.rs"), "fn main() {}").unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        assert_eq!(labels(&[folder.path()]), ["empty", "src/main.rs"]);
        assert_eq!(labels(&[&folder.path().join("src/main.rs")]), ["main.rs"]);
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(repository(folder.path()).unwrap(), name);
    }

    #[test]
    fn a_checkout_gives_what_git_tracks_named_from_its_top() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(folder.path().join("src/a.rs"), "a").unwrap();
        fs::write(folder.path().join("README.md"), "r").unwrap();
        fs::write(folder.path().join("untracked"), "u").unwrap();
        git(folder.path(), &["init", "-q"]).unwrap();
        git(folder.path(), &["add", "src", "README.md"]).unwrap();
        git(folder.path(), &["remote", "add", "origin", "git@example.org:team/relay.git"]).unwrap();
        assert_eq!(labels(&[folder.path()]), ["README.md", "src/a.rs"]);
        assert_eq!(labels(&[&folder.path().join("src")]), ["src/a.rs"]);
        assert_eq!(labels(&[&folder.path().join("src/a.rs"), folder.path()]).len(), 2, "by two ways, once");
        assert_eq!(repository(&folder.path().join("src")).unwrap(), "team/relay");
    }

    #[test]
    fn repositories_are_named_after_their_remote() {
        assert_eq!(remote_name("https://example.org/team/relay.git").unwrap(), "team/relay");
        assert_eq!(remote_name("ssh://git@example.org:22/team/relay").unwrap(), "team/relay");
        assert_eq!(remote_name("git@example.org:team/relay.git").unwrap(), "team/relay");
        assert_eq!(remote_name("/srv/git/relay.git").unwrap(), "relay");
        assert_eq!(remote_name("file:///srv/git/relay.git").unwrap(), "relay");
        assert_eq!(remote_name(""), None);
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        let error = expand(&[PathBuf::from("/no/such/file")]).unwrap_err();
        assert_eq!(crate::Exit::of(&error), crate::Exit::NotFound);
    }
}
