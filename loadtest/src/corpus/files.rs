//! Real files as the bodies of packets: those of a folder, in the order of their paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use coderelay_schemas::gzip::verify;
use coderelay_schemas::limits::PacketLimits;
use walkdir::WalkDir;

use super::text::gzip;
use super::{Body, POOL_BYTES};

/// Most compressed bytes of all files together.
const FILES_BYTES: usize = 4 * POOL_BYTES;
/// Files beyond these are left out.
const FILES: usize = 50_000;

/// Compresses each file of `folder` once: those git tracks where it is in a checkout, otherwise all regular files. Left
/// out are empty files, those a packet may not hold, and whatever no longer fits into the pool.
pub(super) fn bodies(folder: &Path) -> Result<Vec<Body>> {
    let limits = PacketLimits::default();
    let mut bodies = Vec::new();
    let mut bytes = 0;
    for path in paths(folder)? {
        let file = folder.join(&path);
        let size = fs::symlink_metadata(&file).map_or(0, |kind| if kind.is_file() { kind.len() } else { 0 });
        if size == 0 || size > limits.expanded_max.as_u64() {
            continue;
        }
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let content = gzip(&text).with_context(|| format!("cannot compress {}", file.display()))?;
        if verify(&content, &limits.gzip()).is_err() {
            continue;
        }
        bytes += content.len();
        if bytes > FILES_BYTES || bodies.len() == FILES {
            break;
        }
        let path = path.to_string_lossy().into_owned();
        bodies.push(Body { content, expanded: text.len(), path: Some(path) });
    }
    ensure!(!bodies.is_empty(), "files: {} holds no file that fits into a packet", folder.display());
    Ok(bodies)
}

/// Paths below `folder`, sorted: what git tracks there where it is in a checkout, otherwise all regular files.
///
/// # Errors
/// When it is no folder or cannot be listed.
pub(crate) fn paths(folder: &Path) -> Result<Vec<PathBuf>> {
    ensure!(folder.is_dir(), "files: {} is no folder", folder.display());
    let mut paths = match tracked(folder) {
        Some(paths) => paths,
        None => walked(folder)?,
    };
    paths.sort();
    Ok(paths)
}

/// What git tracks there; `None` without git, outside a checkout, and in a folder that git knows nothing of.
fn tracked(folder: &Path) -> Option<Vec<PathBuf>> {
    let listed = Command::new("git").arg("-C").arg(folder).args(["ls-files", "-z"]).output().ok()?;
    let names = String::from_utf8(listed.stdout).ok()?;
    let paths: Vec<_> = names.split_terminator('\0').map(PathBuf::from).collect();
    (listed.status.success() && !paths.is_empty()).then_some(paths)
}

fn walked(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in WalkDir::new(folder) {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry.file_type().is_file() {
            paths.push(entry.path().strip_prefix(folder)?.to_owned());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_outside_git_gives_all_its_files_that_fit() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b/second.py"), "print(2)\n").unwrap();
        fs::write(folder.path().join("a.rs"), "fn main() {}\n").unwrap();
        fs::write(folder.path().join("empty"), "").unwrap();
        fs::write(folder.path().join("bomb"), vec![0; 8 << 20]).unwrap();
        let bodies = bodies(folder.path()).unwrap();
        let found: Vec<_> = bodies.iter().map(|body| (body.path.as_deref().unwrap(), body.expanded)).collect();
        assert_eq!(found, [("a.rs", 13), ("b/second.py", 9)]);
    }

    #[test]
    fn a_checkout_gives_what_git_tracks() {
        let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let bodies = bodies(crate_folder).unwrap();
        assert!(bodies.iter().any(|body| body.path.as_deref() == Some("src/lib.rs")));
    }

    #[test]
    fn a_folder_without_files_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        assert!(bodies(folder.path()).unwrap_err().to_string().contains(&folder.path().display().to_string()));
        assert!(bodies(Path::new("/no/such/folder")).unwrap_err().to_string().contains("/no/such/folder"));
    }
}
