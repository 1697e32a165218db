//! Which requests of Kafka clients are mistreated on their way, and how.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// A kind of request, by its number in Kafka's protocol (<https://kafka.apache.org/protocol#protocol_api_keys>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Api {
    /// Writes records. With `acks=0` it has no response.
    Produce = 0,
    /// Reads records.
    Fetch = 1,
    /// Asks for offsets by time, among them the last stable one.
    ListOffsets = 2,
    /// Commits offsets outside a transaction.
    OffsetCommit = 8,
    /// Asks for committed offsets.
    OffsetFetch = 9,
    /// Asks which broker coordinates a group or a transactional id.
    FindCoordinator = 10,
    /// Joins a consumer group.
    JoinGroup = 11,
    /// Stays in it.
    Heartbeat = 12,
    /// Asks for the assignment of a group's member.
    SyncGroup = 14,
    /// Gets a producer id and epoch, and fences who had them before.
    InitProducerId = 22,
    /// Adds partitions to a transaction; the first begins it.
    AddPartitionsToTxn = 24,
    /// Adds a group's offsets to a transaction.
    AddOffsetsToTxn = 25,
    /// Commits or aborts a transaction.
    EndTxn = 26,
    /// Commits offsets within a transaction.
    TxnOffsetCommit = 28,
}

/// What is done to a request. Whatever was sent before it on its connection reaches the broker, and whatever was answered before, the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It reaches the broker this much later, as do those that follow on the connection.
    DelayRequest(Duration),
    /// The client hears the broker's response this much later, as well as those that follow on the connection.
    DelayResponse(Duration),
    /// The connection is cut before the broker gets it.
    CutBeforeRequest,
    /// The connection is cut as soon as the broker has been sent it.
    CutAfterRequest,
    /// The connection is cut when the broker has responded, before the client hears of it.
    DropResponse,
    /// The connection is cut, and only this much later the broker gets it all the same. A stray `EndTxn` of a client without KIP-890
    /// ends whatever transaction its producer has open by then.
    Stray(Duration),
}

/// Which requests are mistreated, and how. All connections of a stack count as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Requests of this kind.
    pub api: Api,
    /// So many of them pass first.
    pub skip: u32,
    /// So many are mistreated then.
    pub times: u32,
    /// What is done to each.
    pub action: Action,
}

impl Rule {
    /// For the next request of a kind only.
    pub fn once(api: Api, action: Action) -> Self {
        Self { api, skip: 0, times: 1, action }
    }
}

/// A [`Rule`] in force. Dropping it ends that for requests to come.
#[derive(Debug)]
#[must_use = "dropping it ends the interception"]
pub struct Interception(Arc<Tally>);

impl Interception {
    /// How many requests were mistreated by now, counted as each arrives.
    pub fn hits(&self) -> u32 {
        let Rule { skip, times, .. } = self.0.rule;
        let beyond = self.0.seen.load(Ordering::Relaxed).saturating_sub(u64::from(skip));
        u32::try_from(beyond).unwrap_or(u32::MAX).min(times)
    }
}

/// A rule, and how many requests of its kind have been seen.
#[derive(Debug)]
struct Tally {
    rule: Rule,
    seen: AtomicU64,
}

impl Tally {
    /// Counts a request of the rule's kind. Whether the rule applies to it.
    fn count(&self) -> bool {
        let (skip, times) = (u64::from(self.rule.skip), u64::from(self.rule.times));
        (skip..skip + times).contains(&self.seen.fetch_add(1, Ordering::Relaxed))
    }
}

/// The rules of all links of a stack.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules(Arc<Mutex<Vec<Weak<Tally>>>>);

impl Rules {
    /// Puts a rule in force, behind those that are.
    pub(crate) fn add(&self, rule: Rule) -> Interception {
        let tally = Arc::new(Tally { rule, seen: AtomicU64::new(0) });
        let mut tallies = self.tallies();
        tallies.retain(|tally| tally.strong_count() > 0);
        tallies.push(Arc::downgrade(&tally));
        Interception(tally)
    }

    /// What is to be done to a request that has arrived. The first rule that applies has it, and those behind do not see it.
    pub(crate) fn apply(&self, api_key: i16) -> Option<Action> {
        let tallies = self.tallies();
        let mut of_kind = tallies.iter().filter_map(Weak::upgrade).filter(|tally| tally.rule.api as i16 == api_key);
        of_kind.find(|tally| tally.count()).map(|tally| tally.rule.action)
    }

    fn tallies(&self) -> MutexGuard<'_, Vec<Weak<Tally>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END_TXN: i16 = Api::EndTxn as i16;

    #[test]
    fn a_rule_applies_to_requests_of_its_kind_after_those_that_it_skips() {
        let rules = Rules::default();
        let rule = Rule { skip: 1, times: 2, ..Rule::once(Api::EndTxn, Action::DropResponse) };
        let interception = rules.add(rule);
        assert_eq!(rules.apply(Api::Produce as i16), None);
        let applied = [0; 5].map(|_| (rules.apply(END_TXN).is_some(), interception.hits()));
        assert_eq!(applied, [(false, 0), (true, 1), (true, 2), (false, 2), (false, 2)]);
    }

    #[test]
    fn a_rule_ends_with_its_interception() {
        let rules = Rules::default();
        let interception = rules.add(Rule { times: u32::MAX, ..Rule::once(Api::EndTxn, Action::DropResponse) });
        assert!(rules.apply(END_TXN).is_some());
        drop(interception);
        assert_eq!(rules.apply(END_TXN), None);
    }

    #[test]
    fn of_several_rules_the_first_that_applies_has_the_request() {
        let rules = Rules::default();
        let first = rules.add(Rule::once(Api::EndTxn, Action::CutBeforeRequest));
        let second = rules.add(Rule::once(Api::EndTxn, Action::CutAfterRequest));
        assert_eq!(rules.apply(END_TXN), Some(Action::CutBeforeRequest));
        assert_eq!((first.hits(), second.hits()), (1, 0));
        assert_eq!(rules.apply(END_TXN), Some(Action::CutAfterRequest));
        assert_eq!((first.hits(), second.hits()), (1, 1));
    }
}
