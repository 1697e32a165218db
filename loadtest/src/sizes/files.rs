//! Source files by language.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use coderelay_schemas::limits::PacketLimits;

use crate::corpus::files::paths;

/// Languages by the ends of file names.
const LANGUAGES: [(&str, &[&str]); 9] = [
    ("C", &["c", "h"]),
    ("C++", &["cc", "cpp", "hpp"]),
    ("Go", &["go"]),
    ("Java", &["java"]),
    ("JavaScript", &["js", "mjs", "cjs"]),
    ("Python", &["py"]),
    ("Rust", &["rs"]),
    ("TypeScript", &["ts", "tsx"]),
    ("configuration", &["json", "proto", "sql", "toml", "xml", "yaml", "yml"]),
];

/// Languages with fewer files are left out: their mean would say nothing.
const FEWEST: usize = 5;

/// One source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// What it belongs to.
    pub(super) repository: String,
    /// Its path there.
    pub(super) path: String,
    pub(super) language: &'static str,
    pub(super) text: String,
}

/// The files below `folders`, at most `most` of each language, evenly chosen from the order of their paths. Left out are files that are
/// empty, not UTF-8 (JSON could not hold their text) or larger than a packet may be.
pub(super) fn by_language(folders: &[PathBuf], most: usize) -> Result<BTreeMap<&'static str, Vec<File>>> {
    let mut found: BTreeMap<&str, Vec<(&Path, PathBuf)>> = BTreeMap::new();
    for folder in folders {
        ensure!(folder.is_dir(), "{} is no folder", folder.display());
        for path in paths(folder)? {
            if let Some(language) = language(&path) {
                found.entry(language).or_default().push((folder, path));
            }
        }
    }
    let mut languages = BTreeMap::new();
    for (language, paths) in found {
        let step = paths.len().div_ceil(most);
        let files: Vec<_> =
            paths.iter().step_by(step).filter_map(|(folder, path)| read(folder, path, language)).collect();
        if files.len() >= FEWEST {
            languages.insert(language, files);
        }
    }
    Ok(languages)
}

fn language(path: &Path) -> Option<&'static str> {
    let end = path.extension()?.to_str()?;
    LANGUAGES.iter().find(|(_, ends)| ends.contains(&end)).map(|(language, _)| *language)
}

fn read(folder: &Path, path: &Path, language: &'static str) -> Option<File> {
    let text = fs::read_to_string(folder.join(path)).ok()?;
    let fits = (1..=PacketLimits::default().content_max.as_u64()).contains(&(text.len() as u64));
    let repository = fs::canonicalize(folder).ok()?.file_name()?.to_string_lossy().into_owned();
    fits.then(|| File {
        repository: format!("github.com/example/{repository}"),
        path: path.to_string_lossy().into_owned(),
        language,
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_crates_sources_are_rust() {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let languages = by_language(std::slice::from_ref(&here), 7).unwrap();
        let rust = &languages["Rust"];
        assert!((FEWEST..=7).contains(&rust.len()), "{}", rust.len());
        assert!(rust.iter().all(|file| language(Path::new(&file.path)) == Some("Rust") && !file.text.is_empty()));
        assert!(by_language(&[here.join("src/sizes/files.rs")], 7).is_err(), "not a folder");
    }

    #[test]
    fn what_is_no_source_code_is_left_out() {
        assert_eq!(language(Path::new("a/b.py")), Some("Python"));
        assert_eq!(language(Path::new("a/logo.png")), None);
        assert_eq!(language(Path::new("Makefile")), None);
    }
}
