//! A record as Kafka's protocol allows it and client libraries do not.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const PRODUCE: i16 = 0;
/// The oldest that Kafka 4 still speaks (KIP-896).
const PRODUCE_VERSION: i16 = 3;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A record whose header names are bytes. Kafka takes them for UTF-8 and no broker checks it, so that any client may write others, which
/// readers that trust the names stumble over.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition; the broker that is written to has to lead it.
    pub partition: i32,
    /// Key.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
    /// Names and values of the headers.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

impl RawRecord<'_> {
    /// Writes it through `broker`, a `host:port` without TLS and SASL, and waits until all in-sync replicas have it.
    ///
    /// # Errors
    /// When the broker cannot be reached, or refuses it.
    pub fn write(&self, broker: &str) -> io::Result<()> {
        let mut stream = TcpStream::connect(broker)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(&sized(&self.request()))?;
        let mut size = [0; 4];
        stream.read_exact(&mut size)?;
        let mut answer = vec![0; u32::from_be_bytes(size) as usize];
        stream.read_exact(&mut answer)?;
        // Correlation id, count of topics, the topic's name, count of partitions, partition, error code.
        let code = answer.get(4 + 4 + 2 + self.topic.len() + 4 + 4..).and_then(<[u8]>::first_chunk);
        match code.map(|code| i16::from_be_bytes(*code)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::other(format!("the broker refused the record with error code {code}"))),
            None => Err(io::Error::other("the broker's answer is too short")),
        }
    }

    fn request(&self) -> Vec<u8> {
        let (correlation, none, every_replica, one) = (0_i32, -1_i16, -1_i16, 1_i32);
        [
            &PRODUCE.to_be_bytes()[..],
            &PRODUCE_VERSION.to_be_bytes(),
            &correlation.to_be_bytes(),
            &none.to_be_bytes(), // client id
            &none.to_be_bytes(), // transactional id
            &every_replica.to_be_bytes(),
            &(TIMEOUT.as_millis() as i32).to_be_bytes(),
            &one.to_be_bytes(),
            &(self.topic.len() as i16).to_be_bytes(),
            self.topic.as_bytes(),
            &one.to_be_bytes(),
            &self.partition.to_be_bytes(),
            &sized(&self.batch()),
        ]
        .concat()
    }

    /// A record batch of one, version 2.
    fn batch(&self) -> Vec<u8> {
        let (version, attributes, last_delta, count) = (2_i8, 0_i16, 0_i32, 1_i32);
        let (epoch, producer, producer_epoch, sequence) = (-1_i32, -1_i64, -1_i16, -1_i32);
        let checked = [
            &attributes.to_be_bytes()[..],
            &last_delta.to_be_bytes(),
            &self.timestamp.to_be_bytes(),
            &self.timestamp.to_be_bytes(),
            &producer.to_be_bytes(),
            &producer_epoch.to_be_bytes(),
            &sequence.to_be_bytes(),
            &count.to_be_bytes(),
            &self.record(),
        ]
        .concat();
        let checksum = crc32c::crc32c(&checked).to_be_bytes();
        let rest = [&epoch.to_be_bytes()[..], &version.to_be_bytes(), &checksum, &checked].concat();
        let base_offset = 0_i64;
        [&base_offset.to_be_bytes()[..], &sized(&rest)].concat()
    }

    fn record(&self) -> Vec<u8> {
        let mut record = vec![0, 0, 0]; // attributes, and how much later and further than the batch's first
        for bytes in [self.key, self.value] {
            varint(bytes.len(), &mut record);
            record.extend(bytes);
        }
        varint(self.headers.len(), &mut record);
        for bytes in self.headers.iter().flat_map(|(name, value)| [name, value]) {
            varint(bytes.len(), &mut record);
            record.extend(*bytes);
        }
        let mut framed = Vec::new();
        varint(record.len(), &mut framed);
        framed.extend(record);
        framed
    }
}

/// `bytes` behind their count.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
}

/// Appends a length as records have it: zigzag, seven bits a byte.
fn varint(length: usize, to: &mut Vec<u8>) {
    let mut rest = length << 1;
    while rest >= 0x80 {
        to.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}
