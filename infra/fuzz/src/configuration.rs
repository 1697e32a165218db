//! Configurations: each is taken or every mistake is told, and nothing else happens.
#![allow(clippy::unwrap_used, reason = "a test")]

use coderelay_runtime::config::{Assignment, Sources, document, load, show};
use ingest::config::IngestConfig;
use proptest::prelude::*;

use crate::mutation::Mutator;

fn is_taken_or_refused_with_a_reason(sources: &Sources) {
    match load::<IngestConfig>(sources) {
        Ok(config) => assert!(!show(&config).is_empty()),
        Err(mistakes) => assert!(!mistakes.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_configuration(seed in any::<u64>()) {
        let mut mutator = Mutator::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ingest.toml");
        // Comments are most of the document, and would be most of what is damaged.
        let lines: Vec<_> = document::<IngestConfig>().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        std::fs::write(&file, mutator.damaged(lines.join("\n").as_bytes())).unwrap();
        let (key, value) = lines[mutator.below(lines.len())].split_once(" = ").map_or(("region", "x"), |it| it);
        let mut text = |text: &str| String::from_utf8_lossy(&mutator.damaged(text.as_bytes())).into_owned();
        let sources = Sources {
            file: Some(file),
            environment: vec![(format!("CODERELAY_GRPC__{}", text(key)), text(value))],
            flags: vec![Assignment { key: text(&format!("admission.{key}")), value: text(value) }],
        };
        is_taken_or_refused_with_a_reason(&sources);
    }
}

/// The file is all of the input; environment and flags say once more what its first line does.
#[test]
fn any_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ingest.toml");
    bolero::check!().for_each(|input: &[u8]| {
        std::fs::write(&file, input).unwrap();
        let text = String::from_utf8_lossy(input);
        let (key, value) = text.lines().next().and_then(|line| line.split_once('=')).unwrap_or_default();
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        is_taken_or_refused_with_a_reason(&Sources {
            file: Some(file.clone()),
            environment: vec![(format!("CODERELAY_{}", key.to_uppercase().replace('.', "__")), value.clone())],
            flags: vec![Assignment { key, value }],
        });
    });
}
