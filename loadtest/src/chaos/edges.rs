//! The edges of the cycle at which something befell a processor, from their logs.

use std::path::Path;

use anyhow::{Context, Result};

/// What a processor says at a failpoint before it crashes, or stops itself.
const CRASH: &str = "failpoint: aborting the process";
const STOP: &str = "failpoint: stopping the process";

/// The edge of every crash that the logs in `folder` tell of, and of every stop.
///
/// # Errors
/// When a log cannot be read.
pub fn hit(folder: &Path) -> Result<Vec<String>> {
    let mut edges = Vec::new();
    let files = folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))?;
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let log = String::from_utf8_lossy(&log);
            edges.extend(log.lines().filter_map(|line| edge(line, CRASH)).map(str::to_owned));
            edges.extend(log.lines().filter_map(|line| edge(line, STOP)).map(|edge| format!("{edge}, frozen there")));
        }
    }
    Ok(edges)
}

/// The edge that a line of a log names, if it says so: `… aborting the process name="after-store"`, or the same as JSON.
fn edge<'a>(line: &'a str, says: &str) -> Option<&'a str> {
    let after = line.split_once(says)?.1.split_once("name")?.1;
    let name = after.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let end = name.find(|c: char| !(c.is_ascii_alphabetic() || c == '-')).unwrap_or(name.len());
    Some(&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_found_in_either_format() {
        let human =
            r#"2026-11-25T18:00:00Z  WARN processor::failpoint: failpoint: aborting the process name="after-store""#;
        assert_eq!(edge(human, CRASH), Some("after-store"));
        let json =
            r#"{"level":"WARN","message":"failpoint: aborting the process","name":"before-end-txn","target":"x"}"#;
        assert_eq!(edge(json, CRASH), Some("before-end-txn"));
        assert_eq!(edge("partitions assigned name=\"after-store\"", CRASH), None);
    }
}
