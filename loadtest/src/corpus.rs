//! The packets a load is made of: gzip'ed source code, generated or real, the same for the same seed on every machine.
//!
//! Compressing at send time would make the client the bottleneck, so a pool of bodies is compressed once. Each packet
//! is one of them with its own number in the gzip header's MTIME field (RFC 1952, 2.3): content stays valid gzip and is
//! unique, for the price of one copy.
//!
//! A packet is a function of its number, and the number can be read off its id. So whoever finds a packet somewhere knows
//! what it must look like, and needs no memory of what was sent.

pub(crate) mod files;
mod text;

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use coderelay_schemas::pb::CodePacket;
use prost_types::Timestamp;
use serde::{Deserialize, Serialize};

/// Distinct generated bodies in the pool, as long as they fit into [`POOL_BYTES`].
const POOL_BODIES: usize = 256;
/// Most memory the compressed pool may take, in bytes.
const POOL_BYTES: usize = 16 << 20;
/// Where MTIME stands in a gzip header.
const MTIME: std::ops::Range<usize> = 4..8;

/// What a corpus is made of. Equal specifications give equal packets, as long as the files stay what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorpusSpec {
    /// Chooses ids, repositories and texts.
    pub seed: u64,
    /// Size of a packet's gzip content where it is generated, in bytes: 256 to 4 MiB. Contents come out at most a few lines
    /// of code smaller.
    pub size: usize,
    /// Where there is one, generated contents are spread evenly, on a logarithmic scale, from `size` to this.
    pub largest: Option<usize>,
    /// A folder whose files are the contents, instead of generated text: those git tracks there, or all.
    pub files: Option<PathBuf>,
    /// Number of repositories the packets are spread over.
    pub repositories: u64,
    /// Packets in a row that belong to one repository: a producer that pushes a checkout sends many files of it together.
    pub burst: u64,
    /// The share of packets that one repository takes, 0 to 1; the others share the rest. 0: all are alike.
    pub hot: f64,
    /// Event time of the packets, in milliseconds since the Unix epoch; they are spread over the second that follows.
    /// Without it they have none, and ingest fills it in.
    pub created_at_ms: Option<i64>,
}

impl Default for CorpusSpec {
    fn default() -> Self {
        Self {
            seed: 1,
            size: 1024,
            largest: None,
            files: None,
            repositories: 1000,
            burst: 100,
            hot: 0.0,
            created_at_ms: None,
        }
    }
}

/// An endless, indexable sequence of packets.
#[derive(Debug)]
pub struct Corpus {
    spec: CorpusSpec,
    pool: Vec<Body>,
}

/// What several packets have in common.
#[derive(Debug)]
struct Body {
    /// gzip, with an MTIME of 0.
    content: Vec<u8>,
    /// Bytes it expands to.
    expanded: usize,
    /// The path of the real file.
    path: Option<String>,
}

/// A packet as it was found somewhere, borrowed from there.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// The repository.
    pub repo_id: &'a str,
    /// The id.
    pub packet_id: &'a [u8],
    /// The content, gzip.
    pub content: &'a [u8],
    /// Keys and values in any order.
    pub metadata: Vec<(&'a str, &'a str)>,
    /// The event time.
    pub created_at: Option<Timestamp>,
}

impl<'a> From<&'a CodePacket> for Found<'a> {
    fn from(packet: &'a CodePacket) -> Self {
        Self {
            repo_id: &packet.repo_id,
            packet_id: &packet.packet_id,
            content: &packet.content,
            metadata: packet.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            created_at: packet.created_at,
        }
    }
}

impl Corpus {
    /// Generates or reads the bodies, and compresses them.
    ///
    /// # Errors
    /// When a value of the specification is out of range or the folder has no suitable files.
    pub fn new(spec: CorpusSpec) -> Result<Self> {
        ensure!((256..=4 << 20).contains(&spec.size), "size is {} bytes; allowed: 256 to 4194304", spec.size);
        let largest = spec.largest.unwrap_or(spec.size);
        ensure!(
            (spec.size..=4 << 20).contains(&largest),
            "largest is {largest} bytes; allowed: size ({}) to 4194304",
            spec.size
        );
        ensure!(spec.repositories > 0, "repositories is 0; allowed: 1 and more");
        ensure!(spec.burst > 0, "burst is 0; allowed: 1 and more");
        ensure!((0.0..=1.0).contains(&spec.hot), "hot is {}; allowed: 0 to 1", spec.hot);
        ensure!(spec.hot == 0.0 || spec.repositories > 1, "repositories is 1; allowed with hot: 2 and more");

        let pool = match &spec.files {
            Some(folder) => files::bodies(folder)?,
            None => generated(&spec).context("cannot compress the corpus")?,
        };
        Ok(Self { spec, pool })
    }

    /// Packet number `n`. Ids and contents of one corpus are unique for the first 2³² packets.
    pub fn packet(&self, n: u64) -> CodePacket {
        let mut content = BytesMut::from(self.body(n).content.as_slice());
        content[MTIME].copy_from_slice(&mtime(n));
        CodePacket {
            repo_id: self.repo_id(n),
            content: content.freeze(),
            metadata: self.metadata(n).map(|(key, value)| (key.to_owned(), value.into_owned())).collect(),
            packet_id: Bytes::copy_from_slice(&self.packet_id(n)),
            created_at: self.created_at(n),
        }
    }

    /// The id of packet number `n`.
    ///
    /// The first half alone is unique within a corpus, since [`mix`] is a bijection; the second tells corpora apart.
    pub fn packet_id(&self, n: u64) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&mix(n ^ self.spec.seed.rotate_left(32)).to_be_bytes());
        id[8..].copy_from_slice(&mix(n.wrapping_add(mix(self.spec.seed))).to_be_bytes());
        id
    }

    /// The number of the packet with this id; `None` if it is of no packet of this corpus.
    pub fn number(&self, packet_id: &[u8]) -> Option<u64> {
        let first = packet_id.first_chunk()?;
        let n = unmix(u64::from_be_bytes(*first)) ^ self.spec.seed.rotate_left(32);
        (self.packet_id(n) == packet_id).then_some(n)
    }

    /// In what `found` differs from packet number `n`; `None` if in nothing. An event time counts only if one was sent.
    pub fn difference(&self, n: u64, found: &Found<'_>) -> Option<String> {
        let repo_id = self.repo_id(n);
        if found.repo_id != repo_id {
            return Some(format!("repo_id is {:?}, not {repo_id:?}", found.repo_id));
        }
        if found.packet_id != self.packet_id(n) {
            return Some(format!("packet_id is {}", hex::encode(found.packet_id)));
        }
        if let Some(difference) = content_difference(&self.body(n).content, mtime(n), found.content) {
            return Some(difference);
        }
        let entries = self.metadata(n).count();
        if found.metadata.len() != entries {
            return Some(format!("metadata has {} entries, not {entries}", found.metadata.len()));
        }
        for (key, value) in self.metadata(n) {
            if !found.metadata.contains(&(key, &value)) {
                return Some(format!("metadata lacks {key:?} = {value:?}"));
            }
        }
        let sent = self.created_at(n);
        let same_time = sent.is_none() || sent == found.created_at;
        (!same_time).then(|| format!("created_at is {:?}, not {sent:?}", found.created_at))
    }

    /// What it is made of.
    pub fn spec(&self) -> &CorpusSpec {
        &self.spec
    }

    /// Mean size of a packet's content, in bytes: compressed and expanded.
    pub fn mean_bytes(&self) -> (usize, usize) {
        let compressed: usize = self.pool.iter().map(|body| body.content.len()).sum();
        let expanded: usize = self.pool.iter().map(|body| body.expanded).sum();
        (compressed / self.pool.len(), expanded / self.pool.len())
    }

    /// The number of packet `n`'s repository, from 0.
    pub(crate) fn repository(&self, n: u64) -> u64 {
        let (burst, hot) = (n / self.spec.burst, self.spec.hot);
        let random = mix(self.spec.seed ^ mix(burst));
        // Bursts are dealt out evenly, so that any stretch of a run has its share of hot ones.
        let dealt = |bursts: u64| (bursts as f64 * hot).floor();
        match hot > 0.0 {
            false => random % self.spec.repositories,
            true if dealt(burst + 1) > dealt(burst) => 0,
            true => 1 + random % (self.spec.repositories - 1),
        }
    }

    /// The repository of packet number `n`.
    pub fn repo_id(&self, n: u64) -> String {
        format!("load/repository-{:06}", self.repository(n))
    }

    fn body(&self, n: u64) -> &Body {
        &self.pool[(n % self.pool.len() as u64) as usize]
    }

    fn metadata(&self, n: u64) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let (path, language) = match &self.body(n).path {
            Some(path) => (Cow::Borrowed(path.as_str()), None),
            None => (format!("src/module_{}/file_{n}.rs", n % 97).into(), Some(("language", "rust".into()))),
        };
        std::iter::once(("path", path)).chain(language)
    }

    fn created_at(&self, n: u64) -> Option<Timestamp> {
        self.spec.created_at_ms.map(|first| timestamp(first + (n % 1000) as i64))
    }
}

/// Milliseconds since the Unix epoch as a field of a message.
pub(crate) fn timestamp(ms: i64) -> Timestamp {
    Timestamp { seconds: ms.div_euclid(1000), nanos: ms.rem_euclid(1000) as i32 * 1_000_000 }
}

fn mtime(n: u64) -> [u8; 4] {
    (n as u32).to_le_bytes()
}

fn generated(spec: &CorpusSpec) -> std::io::Result<Vec<Body>> {
    let bodies = (POOL_BYTES / spec.size).clamp(4, POOL_BODIES);
    let growth = spec.largest.map_or(1.0, |largest| largest as f64 / spec.size as f64);
    let body = |number| {
        let mut random = SplitMix64(mix(spec.seed ^ mix(number as u64)));
        let size = spec.size as f64 * growth.powf(number as f64 / (bodies - 1) as f64);
        let (content, expanded) = text::body_of(&mut random, size as usize)?;
        Ok(Body { content, expanded, path: None })
    };
    (0..bodies).map(body).collect()
}

/// Compares with `body` under this `mtime` in place, without making a copy of it.
fn content_difference(body: &[u8], mtime: [u8; 4], found: &[u8]) -> Option<String> {
    if found.len() != body.len() {
        return Some(format!("content has {} bytes, not {}", found.len(), body.len()));
    }
    let same =
        found[..MTIME.start] == body[..MTIME.start] && found[MTIME] == mtime && found[MTIME.end..] == body[MTIME.end..];
    (!same).then(|| {
        let sent = |at: usize| if MTIME.contains(&at) { mtime[at - MTIME.start] } else { body[at] };
        let at = (0..body.len()).find(|at| found[*at] != sent(*at)).unwrap_or_default();
        format!("content differs from byte {at} of {}", body.len())
    })
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

/// The inverse of [`mix`], step by step from its end. The factors are the inverses of its factors modulo 2⁶⁴.
const fn unmix(mut z: u64) -> u64 {
    z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42B2_D24D_8EC3);
    z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96DE_1B17_3F11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn corpus(spec: CorpusSpec) -> Corpus {
        Corpus::new(spec).unwrap()
    }

    #[test]
    fn a_burst_belongs_to_one_repository() {
        let corpus = corpus(CorpusSpec { burst: 10, ..CorpusSpec::default() });
        assert!((0..10).all(|n| corpus.repository(n) == corpus.repository(0)));
        let repositories: std::collections::HashSet<_> = (0..1000).map(|n| corpus.repository(n)).collect();
        assert!(repositories.len() > 80, "100 bursts reached {} repositories", repositories.len());
    }

    #[test]
    fn a_hot_repository_takes_its_share_of_every_stretch() {
        let corpus = corpus(CorpusSpec { burst: 10, hot: 0.3, ..CorpusSpec::default() });
        for from in [0, 1000, 77_000] {
            let hot = (from..from + 1000).filter(|n| corpus.repository(*n) == 0).count();
            assert!((290..=310).contains(&hot), "{hot} of 1000");
        }
        assert!((0..1000).all(|n| corpus.repository(n) < 1000));
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let default = CorpusSpec::default;
        for (name, spec) in [
            ("size", CorpusSpec { size: 255, ..default() }),
            ("size", CorpusSpec { size: (4 << 20) + 1, ..default() }),
            ("largest", CorpusSpec { largest: Some(1000), ..default() }),
            ("repositories", CorpusSpec { repositories: 0, ..default() }),
            ("burst", CorpusSpec { burst: 0, ..default() }),
            ("hot", CorpusSpec { hot: 1.5, ..default() }),
            ("hot", CorpusSpec { hot: f64::NAN, ..default() }),
            ("repositories", CorpusSpec { hot: 0.5, repositories: 1, ..default() }),
        ] {
            let error = Corpus::new(spec.clone()).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains("allowed"), "{spec:?}: {error}");
        }
    }

    #[test]
    fn contents_fill_the_size_asked_for() {
        for size in [256, 1024, 32 << 10] {
            let (compressed, expanded) = corpus(CorpusSpec { size, ..CorpusSpec::default() }).mean_bytes();
            assert!(compressed <= size && compressed + size / 16 >= size, "{compressed} of {size}");
            assert!((1..12).contains(&(expanded / compressed)), "{expanded} from {compressed}");
        }
    }

    #[test]
    fn sizes_are_spread_up_to_the_largest() {
        let corpus = corpus(CorpusSpec { size: 1024, largest: Some(16 << 10), ..CorpusSpec::default() });
        let sizes: Vec<_> = (0..corpus.pool.len() as u64).map(|n| corpus.packet(n).content.len()).collect();
        assert!((900..=1024).contains(&sizes[0]) && sizes.iter().any(|size| *size > 15 << 10), "{sizes:?}");
        let middle = sizes.iter().filter(|size| **size < 4096).count();
        assert!((sizes.len() * 2 / 5..sizes.len() * 3 / 5).contains(&middle), "{middle} of {}", sizes.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn the_number_can_be_read_off_the_id(seed: u64, numbers in prop::collection::vec((any::<u64>(), 0..128_usize), 200)) {
            let corpus = corpus(CorpusSpec { seed, size: 256, ..CorpusSpec::default() });
            for (n, bit) in numbers {
                let mut id = corpus.packet_id(n);
                prop_assert_eq!(unmix(mix(n)), n);
                prop_assert_eq!(corpus.number(&id), Some(n));
                prop_assert_eq!(corpus.number(&id[..15]), None);
                id[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(corpus.number(&id), None, "bit {} is not checked", bit);
            }
        }
    }
}
