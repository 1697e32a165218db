//! Where to start (or stop) reading: kafka-consumer-groups' words, and shorter ones.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// A point in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// The oldest record there is.
    Earliest,
    /// The end; for a `read_committed` reader the last stable offset.
    Latest,
    /// This offset in every partition, moved into what the partition holds.
    Offset(i64),
    /// This many records before the end of every partition.
    Last(i64),
    /// The first record written at or after this time.
    Time(SystemTime),
}

/// What `--from` takes, for help texts.
pub(crate) const POSITION_HELP: &str = "Where to start: earliest, latest, an offset (-N: the last N of each partition), \
     a time (2026-01-31T12:00:00Z, 2026-01-31) or a duration back from now (15m)";

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "earliest" | "beginning" => return Ok(Self::Earliest),
            "latest" | "end" => return Ok(Self::Latest),
            _ => {}
        }
        let number = text.strip_prefix("offset:").unwrap_or(text);
        if let Ok(offset) = number.parse::<i64>() {
            return Ok(if offset < 0 { Self::Last(offset.saturating_neg()) } else { Self::Offset(offset) });
        }
        let time = text.strip_prefix("datetime:").or_else(|| text.strip_prefix("by-duration:")).unwrap_or(text);
        time.parse::<Moment>().map(|moment| Self::Time(moment.0)).map_err(|_| {
            "expected earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z or a duration such as 15m"
                .to_owned()
        })
    }
}

/// A time, given as such or as a duration back from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) SystemTime);

impl Moment {
    /// Milliseconds since the epoch, Kafka's unit.
    pub(crate) fn millis(self) -> i64 {
        millis(self.0)
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(back) = humantime::parse_duration(text) {
            return SystemTime::now().checked_sub(back).map(Self).ok_or_else(|| "before the epoch".to_owned());
        }
        humantime::parse_rfc3339_weak(text)
            .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text}T00:00:00Z")))
            .map(Self)
            .map_err(|_| "expected a time such as 2026-01-31T12:00:00Z (UTC) or a duration such as 15m".to_owned())
    }
}

/// Milliseconds since the epoch; 0 for anything before.
pub(crate) fn millis(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// RFC 3339 with milliseconds, UTC; empty where there is no time, or one for which the format has no year.
pub(crate) fn rfc3339(millis: Option<i64>) -> String {
    const YEAR_10000: u64 = 253_402_300_800_000;

    millis
        .and_then(|millis| u64::try_from(millis).ok())
        .filter(|millis| *millis < YEAR_10000)
        .and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
        .map(|time| humantime::format_rfc3339_millis(time).to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str) -> Position {
        text.parse().unwrap()
    }

    #[test]
    fn words_numbers_times_and_durations() {
        assert_eq!(position("earliest"), Position::Earliest);
        assert_eq!(position("end"), Position::Latest);
        assert_eq!(position("17"), Position::Offset(17));
        assert_eq!(position("offset:17"), Position::Offset(17));
        assert_eq!(position("-5"), Position::Last(5));
        let midnight = SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_817_600);
        assert_eq!(position("2026-01-31"), Position::Time(midnight));
        assert_eq!(position("datetime:2026-01-31T00:00:00Z"), Position::Time(midnight));
        let Position::Time(quarter) = position("15m") else { panic!("a duration is a time") };
        let age = SystemTime::now().duration_since(quarter).unwrap();
        assert!((890..910).contains(&age.as_secs()), "{age:?}");
        assert!("yesterday".parse::<Position>().is_err());
    }

    #[test]
    fn times_are_printed_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(Some(1_769_817_600_123)), "2026-01-31T00:00:00.123Z");
        assert_eq!(rfc3339(Some(-1)), "");
        assert_eq!(rfc3339(None), "");
    }
}
