//! The source topics from which the packets of a process come.

use std::sync::{PoisonError, RwLock};

/// Topics that a process tells apart: those in which an id was seen are the bits of one byte.
pub const MAX_TOPICS: usize = 8;

/// A set of source topics of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicSet(u8);

impl TopicSet {
    /// Whether every topic of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The topics that are in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One source topic more than a process tells apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{topic} is one topic too many: the first copy of a packet that a topic brings is told from later ones for {MAX_TOPICS} topics, and \
     otherwise the regions' stores would come to differ. No record of it is processed, nor any that is read with it, until source.topics \
     takes at most {MAX_TOPICS} and the processor is restarted. It has records or ledger entries of {known}"
)]
pub struct TooManyTopics {
    topic: String,
    known: String,
}

/// Every topic that was seen, in records or in the ledger; the place of each is its bit, for as long as the process runs.
#[derive(Debug, Default)]
pub(super) struct Topics(RwLock<Vec<Box<str>>>);

impl Topics {
    /// The set of `topic` alone.
    pub(super) fn only(&self, topic: &str) -> Result<TopicSet, TooManyTopics> {
        let find = |known: &[Box<str>]| known.iter().position(|known| **known == *topic).map(|bit| TopicSet(1 << bit));
        if let Some(found) = find(&self.0.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Another worker may have been faster.
        if let Some(found) = find(&known) {
            return Ok(found);
        }
        if known.len() >= MAX_TOPICS {
            return Err(TooManyTopics { topic: topic.to_owned(), known: known.join(", ") });
        }
        known.push(topic.into());
        Ok(TopicSet(1 << (known.len() - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_keeps_its_bit_and_one_too_many_is_refused_by_name() {
        let topics = Topics::default();
        let name = |n: usize| format!("region-{n}.code.packets.v1");
        let mut all = TopicSet::default();
        for n in 0..MAX_TOPICS {
            let topic = topics.only(&name(n)).unwrap();
            assert!(!all.contains(topic));
            all = all.union(topic);
            assert_eq!(topics.only(&name(n)), Ok(topic));
        }
        let refused = topics.only(&name(MAX_TOPICS)).unwrap_err().to_string();
        assert!(refused.starts_with("region-8.code.packets.v1 is one topic too many"), "{refused}");
        assert!(refused.contains("region-0.code.packets.v1, region-1.code.packets.v1"), "{refused}");
        assert!(topics.only(&name(0)).is_ok(), "the others go on");
    }
}
