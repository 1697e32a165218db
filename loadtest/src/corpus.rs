//! The packets a load is made of: gzip'ed pseudo source code, the same for the same seed on every machine.
//!
//! Compressing at send time would make the client the bottleneck, so a pool of bodies is compressed once. Each packet
//! is one of them with its own number in the gzip header's MTIME field (RFC 1952, 2.3): content stays valid gzip and is
//! unique, for the price of one copy.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use coderelay_schemas::pb::CodePacket;
use flate2::{Compression, GzBuilder};
use serde::Serialize;

/// Distinct bodies in the pool, as long as they fit into [`POOL_BYTES`].
const POOL_BODIES: usize = 256;
/// Most memory the compressed pool may take, in bytes.
const POOL_BYTES: usize = 16 << 20;
/// Where MTIME stands in a gzip header.
const MTIME: std::ops::Range<usize> = 4..8;

/// What a corpus is made of. Equal specifications give equal packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CorpusSpec {
    /// Chooses ids, repositories and texts.
    pub seed: u64,
    /// Size of a packet's gzip content, in bytes: 256 to 4 MiB. Contents come out at most a few lines of code smaller.
    pub size: usize,
    /// Number of repositories the packets are spread over.
    pub repositories: u64,
    /// Packets in a row that belong to one repository: a producer that pushes a checkout sends many files of it together.
    pub burst: u64,
}

impl Default for CorpusSpec {
    fn default() -> Self {
        Self { seed: 1, size: 1024, repositories: 1000, burst: 100 }
    }
}

/// An endless, indexable sequence of packets.
#[derive(Debug)]
pub struct Corpus {
    spec: CorpusSpec,
    pool: Vec<Vec<u8>>,
    expanded_bytes: usize,
}

impl Corpus {
    /// Generates and compresses the pool.
    ///
    /// # Errors
    /// When a value of the specification is out of range.
    pub fn new(spec: CorpusSpec) -> Result<Self> {
        ensure!((256..=4 << 20).contains(&spec.size), "size is {} bytes; allowed: 256 to 4194304", spec.size);
        ensure!(spec.repositories > 0, "repositories is 0; allowed: 1 and more");
        ensure!(spec.burst > 0, "burst is 0; allowed: 1 and more");

        let bodies = (POOL_BYTES / spec.size).clamp(4, POOL_BODIES);
        let mut pool = Vec::with_capacity(bodies);
        let mut expanded_bytes = 0;
        for body in 0..bodies {
            let mut random = SplitMix64(mix(spec.seed ^ mix(body as u64)));
            let (content, expanded) = body_of(&mut random, spec.size).context("cannot compress the corpus")?;
            expanded_bytes += expanded;
            pool.push(content);
        }
        Ok(Self { spec, pool, expanded_bytes })
    }

    /// Packet number `n`. Ids and contents of one corpus are unique for the first 2³² packets.
    pub fn packet(&self, n: u64) -> CodePacket {
        let mut content = BytesMut::from(self.pool[(n % self.pool.len() as u64) as usize].as_slice());
        content[MTIME].copy_from_slice(&(n as u32).to_le_bytes());
        CodePacket {
            repo_id: self.repository(n),
            content: content.freeze(),
            metadata: HashMap::from([
                ("path".to_owned(), format!("src/module_{}/file_{n}.rs", n % 97)),
                ("language".to_owned(), "rust".to_owned()),
            ]),
            packet_id: Bytes::copy_from_slice(&self.packet_id(n)),
            created_at: None,
        }
    }

    /// What it is made of.
    pub fn spec(&self) -> CorpusSpec {
        self.spec
    }

    /// Mean size of a packet's content, in bytes: compressed and expanded.
    pub fn mean_bytes(&self) -> (usize, usize) {
        let compressed: usize = self.pool.iter().map(Vec::len).sum();
        (compressed / self.pool.len(), self.expanded_bytes / self.pool.len())
    }

    fn repository(&self, n: u64) -> String {
        let number = mix(self.spec.seed ^ mix(n / self.spec.burst)) % self.spec.repositories;
        format!("load/repository-{number:06}")
    }

    /// The first half alone is unique within a corpus, since [`mix`] is a bijection; the second tells corpora apart.
    fn packet_id(&self, n: u64) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&mix(n ^ self.spec.seed.rotate_left(32)).to_be_bytes());
        id[8..].copy_from_slice(&mix(n.wrapping_add(mix(self.spec.seed))).to_be_bytes());
        id
    }
}

/// Whole lines whose gzip fills `size` bytes as far as lines can, and the length of these lines.
fn body_of(random: &mut SplitMix64, size: usize) -> std::io::Result<(Vec<u8>, usize)> {
    // Source code shrinks to between a half and a sixth.
    let text = source_text(random, size * 8);
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let mut best = (gzip(b"")?, 0);
    // As many lines are known to fit, and not to fit. gzip's output grows nearly in step with its input, so guessing from
    // the last attempt gets there in a few.
    let (mut fit, mut too_many) = (0, ends.len());
    let mut lines_per_byte = ends.len() as f64 / (size * 3) as f64;
    while too_many - fit > 1 && size - best.0.len() > size / 64 {
        let guess = fit + ((size - best.0.len()) as f64 * lines_per_byte) as usize;
        let lines = guess.clamp(fit + 1, too_many - 1);
        let content = gzip(&text.as_bytes()[..ends[lines - 1]])?;
        lines_per_byte = lines as f64 / content.len() as f64;
        if content.len() <= size {
            (fit, best) = (lines, (content, ends[lines - 1]));
        } else {
            too_many = lines;
        }
    }
    Ok(best)
}

fn gzip(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    encoder.write_all(text)?;
    encoder.finish()
}

const WORDS: [&str; 32] = [
    "account", "batch", "buffer", "cache", "channel", "cursor", "deadline", "digest", "entry", "event", "frame",
    "guard", "handle", "header", "index", "journal", "lease", "limit", "message", "node", "offset", "packet", "queue",
    "record", "region", "retry", "segment", "session", "snapshot", "table", "token", "window",
];
const TYPES: [&str; 12] = [
    "Account", "Batch", "Cursor", "Digest", "Entry", "Frame", "Journal", "Lease", "Record", "Segment", "Session",
    "Token",
];

/// About `length` bytes of functions that look like a program and compress like one.
fn source_text(random: &mut SplitMix64, length: usize) -> String {
    let mut text = String::with_capacity(length + 512);
    while text.len() < length {
        let (noun, part, field) = (random.pick(&WORDS), random.pick(&WORDS), random.pick(&WORDS));
        let (from, into) = (random.pick(&TYPES), random.pick(&TYPES));
        let (small, large) = (random.below(4096), random.below(65_536));
        // Writing to a String cannot fail.
        let _ = match random.below(4) {
            0 => write!(
                text,
                "/// Moves the {noun} of a {part} to its next {field}.\npub fn {noun}_{part}_{small}(&mut self, {field}: &{from}) -> Result<{into}, Error> {{\n    \
                 let {noun} = self.{part}.get({field}.id()).ok_or(Error::Missing({large}))?;\n    self.{field}s.push({noun}.clone());\n    \
                 Ok({into}::new({noun}, {small}))\n}}\n\n"
            ),
            1 => write!(
                text,
                "impl From<{from}> for {into} {{\n    fn from({noun}: {from}) -> Self {{\n        \
                 Self {{ {part}: {noun}.{part}, {field}: {small}, checksum: 0x{large:04x} }}\n    }}\n}}\n\n"
            ),
            2 => write!(
                text,
                "#[test]\nfn {noun}_keeps_its_{part}_{small}() {{\n    let {field} = {from}::with_{part}({large});\n    \
                 assert_eq!({field}.{noun}(), {small}, \"{part} of {field}\");\n}}\n\n"
            ),
            _ => write!(
                text,
                "    for {noun} in {part}s.iter().filter(|{noun}| {noun}.{field} > {small}) {{\n        \
                 total += {noun}.{field} as u64 * {large};\n        if total > MAX_{small} {{ return Err(Error::{from}({noun}.id)); }}\n    }}\n"
            ),
        };
    }
    text
}

/// Steele, Lea and Flood's `SplitMix64` (OOPSLA 2014): eight lines whose output no crate upgrade can change.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// `SplitMix64`'s finalizer: a bijection of the 64-bit numbers.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_belongs_to_one_repository() {
        let corpus = Corpus::new(CorpusSpec { burst: 10, ..CorpusSpec::default() }).unwrap();
        assert!((0..10).all(|n| corpus.repository(n) == corpus.repository(0)));
        let repositories: std::collections::HashSet<_> = (0..1000).map(|n| corpus.repository(n)).collect();
        assert!(repositories.len() > 80, "100 bursts reached {} repositories", repositories.len());
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for size in [0, 255, (4 << 20) + 1] {
            assert!(Corpus::new(CorpusSpec { size, ..CorpusSpec::default() }).is_err(), "{size}");
        }
    }

    #[test]
    fn contents_fill_the_size_asked_for() {
        for size in [256, 1024, 32 << 10] {
            let (compressed, expanded) =
                Corpus::new(CorpusSpec { size, ..CorpusSpec::default() }).unwrap().mean_bytes();
            assert!(compressed <= size && compressed + size / 16 >= size, "{compressed} of {size}");
            assert!((1..12).contains(&(expanded / compressed)), "{expanded} from {compressed}");
        }
    }
}
