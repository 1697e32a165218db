//! What a dead letter carries of its record: everything, unless it would not fit into the dead-letter topic.

use bytes::Bytes;

use crate::record::Record;

/// A header's name and value.
type Header<'a> = (&'a str, Option<&'a [u8]>);

/// The parts of a record that fit into one message.
#[derive(Debug, PartialEq)]
pub(super) struct Letter<'a> {
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Vec<Header<'a>>,
    /// What was left out, for a person; topic, partition and offset point at it.
    pub(super) left_out: Option<String>,
}

impl<'a> Letter<'a> {
    /// As much of `record` as `budget` bytes hold. The value goes first, then what is largest of key and headers: a batch that was
    /// compressed well may bring a record that is larger than any message may be.
    pub(super) fn of(record: &'a Record, budget: usize) -> Self {
        let (mut key, mut value) = (record.key.as_deref(), record.value.as_deref());
        let mut headers: Vec<_> = record.headers.iter().collect();
        let (mut size, all_headers) = (record.size(), headers.len());
        let mut left_out = Vec::new();
        if size > budget {
            size -= value.take().map_or(0, <[u8]>::len);
            left_out.extend(record.value.as_ref().map(|value| format!("the value ({} bytes)", value.len())));
        }
        let key_size = record.key.as_ref().map_or(0, Bytes::len);
        let mut by_size: Vec<usize> = headers.iter().map(header_size).collect();
        by_size.sort_unstable();
        // Headers of at least this size go.
        let mut bar = usize::MAX;
        while size > budget {
            match by_size.last() {
                Some(largest) if key.is_none() || *largest >= key_size => {
                    bar = *largest;
                    let kept = by_size.partition_point(|size| *size < bar);
                    size -= by_size.drain(kept..).sum::<usize>();
                }
                _ if key.take().is_some() => {
                    size -= key_size;
                    left_out.push(format!("the key ({key_size} bytes)"));
                }
                _ => break,
            }
        }
        headers.retain(|header| header_size(header) < bar);
        if headers.len() < all_headers {
            left_out.push(format!("the largest {} of {all_headers} headers", all_headers - headers.len()));
        }
        let left_out = (!left_out.is_empty()).then(|| format!("left out for want of room: {}", left_out.join(", ")));
        Self { key, value, headers, left_out }
    }
}

/// Its share of [`Record::size`]: name, value and their lengths.
fn header_size((name, value): &Header<'_>) -> usize {
    name.len() + value.map_or(0, <[u8]>::len) + 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Headers, TopicPartition};

    fn record(key: usize, value: usize, headers: &[usize]) -> Record {
        let mut packed = Headers::default();
        for size in headers {
            packed.push("h", Some(&vec![0; *size]));
        }
        Record {
            source: TopicPartition::new("t", 0),
            offset: 0,
            timestamp_ms: None,
            key: Some(vec![0; key].into()),
            value: Some(vec![0; value].into()),
            headers: packed,
        }
    }

    /// Sizes of key, value and headers that are left within 1,000 bytes.
    fn kept(record: &Record) -> (Option<usize>, Option<usize>, Vec<usize>) {
        let letter = Letter::of(record, 1000);
        let headers: Vec<_> = letter.headers.iter().map(|(_, value)| value.unwrap().len()).collect();
        let framed: usize = letter.headers.iter().map(header_size).sum();
        assert!(letter.key.map_or(0, <[u8]>::len) + letter.value.map_or(0, <[u8]>::len) + framed <= 1000);
        (letter.key.map(<[u8]>::len), letter.value.map(<[u8]>::len), headers)
    }

    #[test]
    fn what_fits_is_kept_whole() {
        let fits = record(100, 800, &[10, 20]);
        assert_eq!(kept(&fits), (Some(100), Some(800), vec![10, 20]));
        assert_eq!(Letter::of(&fits, 1000).left_out, None);
    }

    #[test]
    fn the_value_goes_first_and_then_the_largest_of_key_and_headers() {
        assert_eq!(kept(&record(100, 900, &[10, 20])), (Some(100), None, vec![10, 20]));
        assert_eq!(kept(&record(300, 10, &[20, 900, 10, 600])), (Some(300), None, vec![20, 10, 600]));
        assert_eq!(kept(&record(2000, 10, &[20, 300])), (None, None, vec![20, 300]));
        assert_eq!(kept(&record(2000, 10, &[1500, 3000])), (None, None, vec![]));
    }

    #[test]
    fn what_is_left_out_is_named() {
        let left_out = Letter::of(&record(2000, 10, &[20, 3000]), 1000).left_out.unwrap();
        for part in ["the value (10 bytes)", "the key (2000 bytes)", "the largest 1 of 2 headers"] {
            assert!(left_out.contains(part), "{part} in {left_out}");
        }
    }
}
