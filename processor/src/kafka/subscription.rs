//! What a member of the group reads: the region's own topic and those mirrored from others, which go together.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use crate::record::TopicPartition;

/// Topics and patterns. Their topics are co-partitioned: partition p of each holds the same repositories, and one member reads it of all.
#[derive(Clone, Debug)]
pub struct Subscription {
    sources: Vec<String>,
    patterns: Vec<Regex>,
    /// The region's own topic, if it is a source.
    own: Option<String>,
}

impl Subscription {
    /// Names of topics, and patterns, which begin with `^`. `own` is the region's own topic.
    pub fn new(sources: Vec<String>, own: &str) -> Self {
        let patterns = sources.iter().filter(|source| source.starts_with('^'));
        let patterns = patterns.filter_map(|pattern| Regex::new(pattern).ok()).collect();
        let mut subscription = Self { sources, patterns, own: None };
        subscription.own = Some(own.to_owned()).filter(|own| subscription.includes(own));
        subscription
    }

    /// Names and patterns.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(String::as_str)
    }

    /// The region's own topic; none where only others are read.
    pub fn own(&self) -> Option<&str> {
        self.own.as_deref()
    }

    /// Whether `topic` is read.
    pub fn includes(&self, topic: &str) -> bool {
        self.sources.iter().any(|source| source == topic) || self.patterns.iter().any(|it| it.is_match(topic))
    }

    /// Those of the partitions `assigned` to a member that it does not read yet. The members of a group learn of a new topic one after the
    /// other, and in between `range` gives the same partition of two topics to two of them, neither of whom would see what the other
    /// accepts. All know the region's own topic, so who has its partition may read the others', and nobody else.
    pub fn withheld(&self, assigned: &[TopicPartition]) -> BTreeSet<TopicPartition> {
        let led = self.led(assigned);
        assigned.iter().filter(|source| !led.contains(&source.partition)).cloned().collect()
    }

    /// A topic of those `existing`, each with as many partitions, of which this member should read what goes with its own and was `assigned`
    /// nothing. One that has a part of it is in a group whose members do not all know the topic yet, which ends by itself.
    pub fn overlooked<'a>(
        &self,
        assigned: &[TopicPartition],
        existing: &'a BTreeMap<String, usize>,
    ) -> Option<&'a str> {
        let (led, read) = (self.led(assigned), topics(assigned));
        let lacks = |topic: &str, partitions: usize| {
            !read.contains(topic) && led.iter().any(|partition| (*partition as usize) < partitions)
        };
        let mut candidates = existing.iter().filter(|(topic, _)| self.includes(topic));
        candidates.find(|(topic, partitions)| lacks(topic, **partitions)).map(|(topic, _)| topic.as_str())
    }

    /// The partitions of which a member reads every topic: those it has of the region's own topic, and where that is not read, all.
    fn led(&self, assigned: &[TopicPartition]) -> BTreeSet<i32> {
        let leads = |source: &&TopicPartition| self.own.as_ref().is_none_or(|own| *own == *source.topic);
        assigned.iter().filter(leads).map(|source| source.partition).collect()
    }
}

/// The names of the topics in `partitions`.
pub(super) fn topics(partitions: &[TopicPartition]) -> BTreeSet<&str> {
    partitions.iter().map(|partition| &*partition.topic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_two(own: &str) -> Subscription {
        Subscription::new(vec!["p.v1".to_owned(), "eu.p.v1".to_owned()], own)
    }

    #[test]
    fn a_mirrored_partition_is_read_by_whoever_has_the_regions_own() {
        let source = |topic, partition| TopicPartition::new(topic, partition);
        let assigned = [source("p.v1", 0), source("p.v1", 1), source("eu.p.v1", 1), source("eu.p.v1", 2)];
        assert_eq!(of_two("p.v1").withheld(&assigned), BTreeSet::from([source("eu.p.v1", 2)]));
        assert_eq!(of_two("p.v1").withheld(&assigned[2..]).len(), 2);
        assert_eq!(of_two("us.p.v1").withheld(&assigned[2..]), BTreeSet::new(), "nobody reads the region's own");
    }

    #[test]
    fn a_topic_that_appeared_after_the_assignment_is_overlooked() {
        let existing =
            |topics: &[&str]| topics.iter().map(|topic| ((*topic).to_owned(), 4)).collect::<BTreeMap<_, _>>();
        let own = [TopicPartition::new("p.v1", 2), TopicPartition::new("p.v1", 3)];
        let overlooked = |assigned: &[TopicPartition], topics: &[&str]| {
            of_two("p.v1").overlooked(assigned, &existing(topics)).map(str::to_owned)
        };
        assert_eq!(overlooked(&own, &["p.v1", "eu.p.v1", "other"]).as_deref(), Some("eu.p.v1"));
        assert_eq!(overlooked(&own, &["p.v1", "other"]), None, "it does not exist");
        assert_eq!(overlooked(&[], &["p.v1", "eu.p.v1"]), None, "others have all");
        let all = [&own[..], &[TopicPartition::new("eu.p.v1", 2), TopicPartition::new("eu.p.v1", 3)]].concat();
        assert_eq!(overlooked(&all, &["p.v1", "eu.p.v1"]), None);
        assert_eq!(overlooked(&all[..3], &["p.v1", "eu.p.v1"]), None, "others do not know it yet");
    }

    #[test]
    fn a_subscription_names_topics_and_patterns() {
        let subscription = |source: &str| Subscription::new(vec!["canary.v1".to_owned(), source.to_owned()], "p.v1");
        let ours = subscription(r"^([^.]+\.)?p\.v1$");
        assert!(ours.includes("p.v1") && ours.includes("eu.p.v1") && !ours.includes("p.v2"));
        assert_eq!(ours.own(), Some("p.v1"));
        let others = subscription(r"^eu\.p\.v1$");
        assert!(others.includes("canary.v1") && others.own().is_none());
    }
}
