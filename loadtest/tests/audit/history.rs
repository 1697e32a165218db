//! Histories made up at random: streams that send, answers, and what topic and table hold in the end.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use coderelay_schemas::pb::CodePacket;
use loadtest::audit::{Audit, Place};
use loadtest::corpus::{Corpus, Found};
use loadtest::summary;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{committed, corpus, counts, detail, findings};

const STREAMS: u16 = 3;
static CORPUS: LazyLock<Arc<Corpus>> = LazyLock::new(|| Arc::new(corpus(1)));
static OTHER: LazyLock<Corpus> = LazyLock::new(|| corpus(2));

/// What happens to one packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Acknowledged,
    /// Stored, but the answer was lost.
    Unanswered,
    Refused,
    /// Sent twice and acknowledged twice.
    Repeated,
}

#[derive(Clone, Debug)]
struct Plan {
    /// Packets in the order they are sent in: number, stream and fate.
    packets: Vec<(u64, u16, Fate)>,
    /// Whose record comes next, of those that still have one.
    merge: Vec<Index>,
    /// Where repeated packets come out, and in which order the rows are read.
    places: Vec<Index>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let fate = prop_oneof![
        6 => Just(Fate::Acknowledged),
        1 => Just(Fate::Unanswered),
        1 => Just(Fate::Refused),
        2 => Just(Fate::Repeated),
    ];
    let packets = prop::collection::vec((0..STREAMS, fate), 12..120);
    let numbered = packets.prop_map(|packets| {
        (0..).zip(packets).map(|(n, (stream, fate))| (n, stream, fate)).collect::<Vec<(u64, u16, Fate)>>()
    });
    let indices = || prop::collection::vec(any::<Index>(), 120);
    let plan = (numbered.prop_shuffle(), indices(), indices());
    plan.prop_map(|(packets, merge, places)| Plan { packets, merge, places })
}

/// What topic and table hold in the end.
struct Outcome {
    topic: Vec<CodePacket>,
    rows: Vec<CodePacket>,
}

impl Plan {
    fn of(&self, fate: Fate) -> Vec<u64> {
        self.packets.iter().filter(|(_, _, is)| *is == fate).map(|(n, _, _)| *n).collect()
    }

    /// What a pipeline without fault makes of it: streams come out interleaved at will, each in order; repeats anywhere.
    fn outcome(&self) -> Outcome {
        let mut streams: Vec<Vec<u64>> = vec![Vec::new(); STREAMS.into()];
        for (n, stream, fate) in self.packets.iter().rev() {
            if matches!(fate, Fate::Acknowledged | Fate::Unanswered) {
                streams[usize::from(*stream)].push(*n);
            }
        }
        let mut order = Vec::new();
        for next in &self.merge {
            streams.retain(|stream| !stream.is_empty());
            if !streams.is_empty() {
                let at = next.index(streams.len());
                order.extend(streams[at].pop());
            }
        }
        for (n, place) in self.of(Fate::Repeated).into_iter().zip(&self.places) {
            order.insert(place.index(order.len() + 1), n);
        }
        let topic: Vec<_> = order.iter().map(|n| CORPUS.packet(*n)).collect();
        let mut rows: Vec<CodePacket> = Vec::new();
        for (packet, place) in topic.iter().zip(&self.places) {
            rows.insert(place.index(rows.len() + 1), packet.clone());
        }
        Outcome { topic, rows }
    }

    /// Two packets one after the other in the same stream, repository and promise of order.
    fn neighbours(&self) -> Option<(u64, u64)> {
        let mut last = BTreeMap::new();
        let ordered = self.packets.iter().filter(|(_, _, fate)| matches!(fate, Fate::Acknowledged | Fate::Unanswered));
        ordered.filter_map(|(n, stream, _)| Some((last.insert((*stream, CORPUS.repo_id(*n)), *n)?, *n))).last()
    }

    fn audit(&self, outcome: &Outcome) -> summary::Audit {
        // One packet more than is sent.
        let audit = Audit::new(Arc::clone(&CORPUS), self.packets.len() as u64 + 1).exclusive();
        for (n, stream, fate) in &self.packets {
            audit.sent(*n, *stream);
            if *fate == Fate::Repeated {
                audit.sent(*n, (*stream + 1) % STREAMS);
                audit.acknowledged(*n, &committed(1, 1000));
            }
            if matches!(fate, Fate::Acknowledged | Fate::Repeated) {
                audit.acknowledged(*n, &committed(2, *n as i64));
            }
        }
        let mut offsets = BTreeMap::new();
        for packet in &outcome.topic {
            let partition = i32::from(packet.repo_id.as_bytes().last().unwrap() % 2);
            let offset: &mut i64 = offsets.entry(partition).or_default();
            let place = Place { partition, offset: *offset };
            audit.published(Some(packet.repo_id.as_bytes()), &Found::from(packet), place);
            *offset += 1;
        }
        for packet in &outcome.rows {
            audit.stored(&Found::from(packet));
        }
        audit.finish()
    }
}

fn id(n: u64) -> String {
    hex::encode(CORPUS.packet_id(n))
}

fn position(packets: &[CodePacket], n: u64) -> usize {
    packets.iter().position(|packet| packet.packet_id == CORPUS.packet_id(n)[..]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_clean_history_is_clean_whatever_the_interleaving(plan in plans()) {
        let audit = plan.audit(&plan.outcome());
        prop_assert!(audit.is_clean() && audit.findings.is_empty(), "{audit:#?}");
        let acknowledged = plan.of(Fate::Acknowledged).len() + plan.of(Fate::Repeated).len();
        prop_assert_eq!(audit.acknowledged, acknowledged as u64);
        prop_assert_eq!(audit.unacknowledged, plan.of(Fate::Unanswered).len() as u64);
        prop_assert!(audit.bytes_per_packet <= 40);
    }

    #[test]
    fn a_lost_packet_is_found(plan in plans(), which: Index, from_topic: bool, from_table: bool) {
        prop_assume!(from_topic || from_table);
        let acknowledged = [plan.of(Fate::Acknowledged), plan.of(Fate::Repeated)].concat();
        prop_assume!(!acknowledged.is_empty());
        let (mut outcome, lost) = (plan.outcome(), acknowledged[which.index(acknowledged.len())]);
        if from_topic {
            outcome.topic.remove(position(&outcome.topic, lost));
        }
        if from_table {
            outcome.rows.remove(position(&outcome.rows, lost));
        }
        let audit = plan.audit(&outcome);
        let id = id(lost);
        prop_assert_eq!(findings(&audit), [("lost", id.clone())]);
        prop_assert_eq!(audit.lost, 1);
        let detail = detail(&audit, "lost", &id);
        prop_assert!(detail.starts_with("acknowledged at code.packets.v1-"), "{}", detail);
        prop_assert_eq!(detail.contains("not seen in the topic"), from_topic, "{}", detail);
        prop_assert_eq!(detail.contains("no row"), from_table, "{}", detail);
    }

    #[test]
    fn a_doubled_packet_is_found(plan in plans(), which: Index, place: Index, in_topic: bool) {
        let mut outcome = plan.outcome();
        prop_assume!(!outcome.topic.is_empty());
        let packets = if in_topic { &mut outcome.topic } else { &mut outcome.rows };
        let doubled = packets[which.index(packets.len())].clone();
        // Behind the first: in front of it, the order would be another.
        let first = packets.iter().position(|packet| *packet == doubled).unwrap();
        packets.insert(first + 1 + place.index(packets.len() - first), doubled.clone());
        let audit = plan.audit(&outcome);
        prop_assert_eq!(findings(&audit), [("duplicated", hex::encode(&doubled.packet_id))]);
        prop_assert_eq!(audit.duplicated, 1);
    }

    #[test]
    fn an_altered_packet_is_found(plan in plans(), which: Index, byte: Index, field in 0..6, in_topic: bool) {
        let mut outcome = plan.outcome();
        prop_assume!(!outcome.topic.is_empty());
        let packets = if in_topic { &mut outcome.topic } else { &mut outcome.rows };
        let at = which.index(packets.len());
        let packet = &mut packets[at];
        match field {
            0 => {
                let mut content = packet.content.to_vec();
                content[byte.index(packet.content.len())] ^= 1;
                packet.content = content.into();
            }
            1 => packet.content.truncate(byte.index(packet.content.len())),
            2 => packet.repo_id.push('x'),
            3 => drop(packet.metadata.remove("path")),
            4 => drop(packet.metadata.insert("path".into(), "elsewhere.rs".into())),
            _ => packet.created_at.as_mut().unwrap().nanos += 1_000_000,
        }
        let id = hex::encode(&packet.packet_id);
        let audit = plan.audit(&outcome);
        prop_assert!(audit.altered == 1 && audit.lost == 0 && audit.unsent == 0, "{:?}", counts(&audit));
        let place = if in_topic { "in the topic at" } else { "in CQL" };
        prop_assert!(detail(&audit, "altered", &id).contains(place), "{:#?}", audit);
    }

    #[test]
    fn a_swapped_packet_is_found(plan in plans()) {
        let (mut outcome, pair) = (plan.outcome(), plan.neighbours());
        prop_assume!(pair.is_some());
        let (earlier, later) = pair.unwrap();
        let (a, b) = (position(&outcome.topic, earlier), position(&outcome.topic, later));
        outcome.topic.swap(a, b);
        let audit = plan.audit(&outcome);
        let (id, overtaker) = (id(earlier), id(later));
        prop_assert_eq!(findings(&audit), [("reordered", id.clone())]);
        prop_assert_eq!(audit.reordered, 1);
        prop_assert!(detail(&audit, "reordered", &id).contains(&overtaker));
    }

    #[test]
    fn an_unsent_packet_is_found(plan in plans(), place: Index, kind in 0..3, in_topic: bool) {
        let mut outcome = plan.outcome();
        let unsent = match kind {
            0 => CORPUS.packet(plan.packets.len() as u64),
            1 => CORPUS.packet(plan.packets.len() as u64 + 7),
            _ => OTHER.packet(0),
        };
        let packets = if in_topic { &mut outcome.topic } else { &mut outcome.rows };
        packets.insert(place.index(packets.len() + 1), unsent.clone());
        let audit = plan.audit(&outcome);
        prop_assert_eq!(findings(&audit), [("unsent", hex::encode(&unsent.packet_id))]);
        prop_assert_eq!(audit.unsent, 1);
    }
}

#[test]
fn on_a_shared_deployment_packets_of_others_do_not_count() {
    let others = OTHER.packet(0);
    let audit = Audit::new(Arc::clone(&CORPUS), 1);
    let place = Place { partition: 0, offset: 0 };
    assert_eq!(audit.published(Some(others.repo_id.as_bytes()), &Found::from(&others), place), None);
    audit.stored(&Found::from(&others));
    assert!(audit.finish().is_clean());
}

#[test]
fn a_record_under_another_key_is_altered() {
    let (audit, packet) = (Audit::new(Arc::clone(&CORPUS), 1).without_table(), CORPUS.packet(0));
    audit.sent(0, 0);
    audit.acknowledged(0, &committed(0, 0));
    assert_eq!(audit.published(Some(b"other"), &Found::from(&packet), Place { partition: 0, offset: 0 }), Some(0));
    assert_eq!(counts(&audit.finish()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn only_the_first_record_of_a_sent_packet_is_told() {
    let audit = Audit::new(Arc::clone(&CORPUS), 2);
    audit.sent(0, 0);
    let publish = |n: u64, offset| {
        let packet = CORPUS.packet(n);
        audit.published(Some(packet.repo_id.as_bytes()), &Found::from(&packet), Place { partition: 0, offset })
    };
    assert_eq!([publish(0, 0), publish(0, 1), publish(1, 2)], [Some(0), None, None]);
}
