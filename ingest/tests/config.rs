//! Damaged configurations: each is taken or every mistake is told, and nothing else happens.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

#[path = "../../schemas/tests/support/mutation.rs"]
mod mutation;

use coderelay_runtime::config::{Assignment, Sources, document, load, show};
use ingest::config::IngestConfig;
use mutation::Mutator;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_configuration_is_taken_or_refused_with_a_reason(seed in any::<u64>()) {
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
        match load::<IngestConfig>(&sources) {
            Ok(config) => prop_assert!(!show(&config).is_empty()),
            Err(mistakes) => prop_assert!(!mistakes.to_string().is_empty()),
        }
    }
}
