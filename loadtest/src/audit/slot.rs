//! What is kept of one packet: flags, counts and two positions.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A partition and an offset, in one of the topics known by index. Packed: 4 bits, 16 bits and 44 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

const OFFSET_BITS: u32 = 44;
const TOPIC_SHIFT: u32 = 60;
/// Indices of topics are below this.
pub(super) const TOPICS: usize = 16;

impl Place {
    /// As one number. Within a partition a later offset is a greater number.
    pub(super) fn pack(self, topic: usize) -> u64 {
        let partition = u64::from(self.partition as u16) << OFFSET_BITS;
        (topic as u64) << TOPIC_SHIFT | partition | (self.offset as u64 & ((1 << OFFSET_BITS) - 1))
    }

    /// The place, and the index of its topic.
    pub(super) fn unpack(packed: u64) -> (Self, usize) {
        let partition = i32::from((packed >> OFFSET_BITS) as u16);
        let offset = (packed & ((1 << OFFSET_BITS) - 1)) as i64;
        (Self { partition, offset }, (packed >> TOPIC_SHIFT) as usize)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// Everything that is kept of one packet, 24 bytes.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// See [`State`].
    state: AtomicU32,
    /// How many packets had been sent before it, by all streams.
    pub(super) sequence: AtomicU32,
    /// Where its first acknowledgement says it is.
    pub(super) acknowledged: AtomicU64,
    /// Where its first record was seen.
    pub(super) seen: AtomicU64,
}

impl Slot {
    pub(super) fn state(&self) -> State {
        State(self.state.load(Relaxed))
    }

    /// Raises a flag and tells what was known before.
    pub(super) fn set(&self, flag: u32) -> State {
        State(self.state.fetch_or(flag, Relaxed))
    }

    /// Notes the stream; once.
    pub(super) fn set_stream(&self, stream: u16) {
        self.state.fetch_or(u32::from(stream) << STREAM_SHIFT, Relaxed);
    }

    /// Counts a record or a row, up to 3, and tells what was known before.
    pub(super) fn count(&self, counter: u32) -> State {
        let full = COUNTER_MAX << counter;
        let more = |state| (state & full != full).then(|| state + (1 << counter));
        State(self.state.fetch_update(Relaxed, Relaxed, more).unwrap_or_else(|state| state))
    }
}

/// Sent at least once.
pub(super) const SENT: u32 = 1 << 0;
/// Sent more than once.
pub(super) const RESENT: u32 = 1 << 1;
/// Acknowledged at least once.
pub(super) const ACKNOWLEDGED: u32 = 1 << 2;
/// Found with other bytes than were sent.
pub(super) const ALTERED: u32 = 1 << 3;
/// Counts the records of the topic: two bits.
pub(super) const COPIES: u32 = 4;
/// Counts the rows of the table: two bits.
pub(super) const ROWS: u32 = 6;
const COUNTER_MAX: u32 = 0b11;
const STREAM_SHIFT: u32 = 16;

/// Flags, two counters and the stream, at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct State(u32);

impl State {
    pub(super) fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// 3 stands for 3 and more.
    pub(super) fn counted(self, counter: u32) -> u32 {
        self.0 >> counter & COUNTER_MAX
    }

    /// Whether it is in the topic or in CQL.
    pub(super) fn is_found(self) -> bool {
        self.counted(COPIES) + self.counted(ROWS) > 0
    }

    pub(super) fn stream(self) -> u16 {
        (self.0 >> STREAM_SHIFT) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_counter_stops_before_it_spills_over() {
        let slot = Slot::default();
        slot.set_stream(u16::MAX);
        let counted: Vec<_> = (0..6).map(|_| slot.count(COPIES).counted(COPIES)).collect();
        assert_eq!(counted, [0, 1, 2, 3, 3, 3]);
        assert_eq!((slot.state().counted(ROWS), slot.state().stream()), (0, u16::MAX));
    }

    #[test]
    fn a_packet_takes_24_bytes() {
        assert_eq!(size_of::<Slot>(), 24);
    }

    proptest! {
        #[test]
        fn places_come_back_as_they_were(partition in 0..=i32::from(u16::MAX), offset in 0..1_i64 << 44, topic in 0..TOPICS) {
            let place = Place { partition, offset };
            prop_assert_eq!(Place::unpack(place.pack(topic)), (place, topic));
        }
    }
}
