//! The first few packets of each kind that are not as they should be.

use std::collections::BTreeMap;

use crate::summary::Finding;

/// Findings of each kind that are kept.
const FEW: usize = 10;

/// What can be wrong with a packet, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Lost,
    Duplicated,
    Altered,
    Reordered,
    Unsent,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Altered => "altered",
            Self::Reordered => "reordered",
            Self::Unsent => "unsent",
        }
    }
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) packet_id: Vec<u8>,
    /// Its number, if it is one of the run's packets.
    pub(super) n: Option<usize>,
    /// What is wrong with it.
    pub(super) what: String,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings(BTreeMap<Kind, Vec<Note>>);

impl Findings {
    /// Keeps what `note` says if there is room.
    pub(super) fn add(&mut self, kind: Kind, note: impl FnOnce() -> Note) {
        let notes = self.0.entry(kind).or_default();
        if notes.len() < FEW {
            notes.push(note());
        }
    }

    /// For the summary; `whereabouts` says of a packet where it was last seen.
    pub(super) fn report(self, whereabouts: impl Fn(usize) -> String) -> Vec<Finding> {
        let finding = |kind: Kind, note: Note| {
            let parts: Vec<String> = [note.what].into_iter().chain(note.n.map(&whereabouts)).collect();
            let detail = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
            Finding { kind: kind.name().to_owned(), packet_id: hex::encode(note.packet_id), detail }
        };
        self.0.into_iter().flat_map(|(kind, notes)| notes.into_iter().map(move |note| finding(kind, note))).collect()
    }
}
