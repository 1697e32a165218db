//! Good packets and what damage makes of them; the same for the same seed. Shared by the tests of every process that reads packets.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "a test; each binary uses its part")]

use std::collections::BTreeMap;
use std::io::Write as _;

use coderelay_schemas::pb::CodePacket;
use flate2::{Compression, GzBuilder};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// How many mutated packets a test sends: the environment variable `MUTATIONS`.
pub fn mutations() -> usize {
    std::env::var("MUTATIONS").map_or(20_000, |count| count.parse().unwrap())
}

pub struct Mutator {
    random: StdRng,
    next: u64,
}

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), next: 0 }
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end.max(1))
    }

    /// A packet that keeps every rule, and that no other call returns.
    pub fn good(&mut self) -> CodePacket {
        self.next += 1;
        let text = format!("fn number_{}() {{}}\n", self.next).repeat(1 + self.below(200));
        let plain = |text: &[u8]| gzip(GzBuilder::new(), Compression::fast(), text);
        let content = match self.below(4) {
            0 => [plain(text.as_bytes()), plain(b"// and more")].concat(),
            1 => {
                let header = GzBuilder::new().filename("main.rs").comment("a comment").extra(vec![1; 9]);
                gzip(header, Compression::best(), text.as_bytes())
            }
            2 => gzip(GzBuilder::new(), Compression::none(), text.as_bytes()),
            _ => plain(text.as_bytes()),
        };
        let entries = self.below(5);
        CodePacket {
            repo_id: format!("github.com/acme/répo-{}", self.below(50)),
            content: content.into(),
            metadata: (0..entries).map(|n| (format!("key-{n}"), "v".repeat(n * 7))).collect(),
            packet_id: if self.below(2) == 0 { self.bytes(16).into() } else { Vec::new().into() },
            created_at: (self.below(2) == 0).then(|| std::time::SystemTime::now().into()),
        }
    }

    /// An encoded packet that may be anything: damaged on the wire, or well encoded with a damaged field.
    pub fn packet(&mut self) -> Vec<u8> {
        let mut packet = self.good();
        match self.below(6) {
            0 | 1 => return self.damaged(&packet.encode_to_vec()),
            2 | 3 => packet.content = self.damaged(&packet.content.clone()).into(),
            4 => {
                let length = self.below(20);
                packet.packet_id = self.bytes(length).into();
                packet.created_at =
                    Some(prost_types::Timestamp { seconds: self.random.random(), nanos: self.random.random() });
            }
            _ => {
                packet.repo_id = self.text(300);
                packet.metadata =
                    (0..self.below(70)).map(|_| (self.text(20), self.text(400))).collect::<BTreeMap<_, _>>();
            }
        }
        packet.encode_to_vec()
    }

    /// `bytes` with a few mistakes.
    pub fn damaged(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            self.damage(&mut bytes);
        }
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let (at, to) = (self.below(bytes.len()), self.below(bytes.len() + 1));
        let range = at.min(to)..at.max(to).min(bytes.len());
        match self.below(9) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            2 if !bytes.is_empty() => bytes[at] = [0x00, 0x7f, 0x80, 0xff][self.below(4)],
            3 => bytes.truncate(to),
            4 => drop(bytes.drain(range)),
            5 => {
                let copy = bytes[range].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            6 => {
                let other = self.good().encode_to_vec();
                let from = self.below(other.len());
                bytes.truncate(to);
                bytes.extend_from_slice(&other[from..]);
            }
            7 => {
                let field = self.field();
                drop(bytes.splice(to..to, field));
            }
            _ => {
                let length = self.below(12);
                let noise = self.bytes(length);
                drop(bytes.splice(to..to, noise));
            }
        }
    }

    /// A protobuf field with any number, wire type and value, the forbidden ones too.
    fn field(&mut self) -> Vec<u8> {
        let number = if self.below(2) == 0 { self.below(7) as u64 } else { self.random.random_range(0..1 << 29) };
        let mut field = Vec::new();
        prost::encoding::encode_varint(number << 3 | self.below(8) as u64, &mut field);
        if self.below(2) == 0 {
            prost::encoding::encode_varint(self.random.random::<u64>() >> self.below(64), &mut field);
        }
        let length = self.below(20);
        field.extend(self.bytes(length));
        field
    }

    fn text(&mut self, most: usize) -> String {
        let length = self.below(most);
        (0..length).map(|_| if self.below(100) == 0 { self.random.random() } else { 'r' }).collect()
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.random.random()).collect()
    }
}

fn gzip(header: GzBuilder, level: Compression, content: &[u8]) -> Vec<u8> {
    let mut encoder = header.write(Vec::new(), level);
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}
