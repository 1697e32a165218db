//! What producers were told: the documents that `relayctl push --output json` writes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use coderelay_schemas::packet_id::PacketId;
use serde::Deserialize;

/// One document: what became of a file, or, after all files of a push, its summary.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Summary { summary: Summary },
    Fate { outcome: String, packet_id: Option<String> },
}

#[derive(Deserialize)]
struct Summary {
    repo_id: String,
}

/// The packets that were acknowledged, by repository and id.
pub(crate) fn acknowledged(files: &[PathBuf]) -> anyhow::Result<BTreeSet<(String, PacketId)>> {
    let mut acknowledged = BTreeSet::new();
    for file in files {
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        add(&text, file, &mut acknowledged)?;
    }
    Ok(acknowledged)
}

fn add(text: &[u8], file: &Path, acknowledged: &mut BTreeSet<(String, PacketId)>) -> anyhow::Result<()> {
    let name = || file.display().to_string();
    let mut of_push = Vec::new();
    for document in serde_json::Deserializer::from_slice(text).into_iter() {
        match document.with_context(|| format!("{} is not what `relayctl push --output json` writes", name()))? {
            Document::Fate { outcome, packet_id } if outcome == "committed" => {
                let id = packet_id.and_then(|id| PacketId::from_slice(&hex::decode(id).ok()?).ok());
                of_push.push(id.with_context(|| format!("{}: a packet id that is none", name()))?);
            }
            Document::Fate { .. } => {}
            Document::Summary { summary } => {
                acknowledged.extend(of_push.drain(..).map(|id| (summary.repo_id.clone(), id)));
            }
        }
    }
    ensure!(of_push.is_empty(), "{} has no summary at its end, which names the repository", name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<BTreeSet<(String, PacketId)>> {
        let mut acknowledged = BTreeSet::new();
        add(text.as_bytes(), Path::new("receipts"), &mut acknowledged).map(|()| acknowledged)
    }

    #[test]
    fn each_push_names_its_repository_after_its_packets() {
        let id = |byte: u8| PacketId([byte; 16]);
        let committed = |byte| format!(r#"{{"outcome":"committed","path":"a","packet_id":"{}"}}"#, id(byte));
        let summary = |repo| format!(r#"{{"summary":{{"repo_id":"{repo}","files":1}}}}"#);
        let rejected = r#"{"outcome":"rejected","path":"b","packet_id":null,"reason":"X","message":""}"#;
        let text = [committed(1), rejected.to_owned(), summary("one"), committed(2), summary("two")].join("\n");
        assert_eq!(parse(&text).unwrap(), [("one".to_owned(), id(1)), ("two".to_owned(), id(2))].into());
        assert!(parse(&committed(1)).unwrap_err().to_string().contains("no summary"));
        assert!(parse("[]").is_err());
    }
}
