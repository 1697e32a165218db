//! Verifies gzip content to its last byte, without keeping what it expands to.
//!
//! This is most of the work ingest does for a packet. Content that expands to 8 MiB at most, which is nearly all of it, is
//! inflated at one go by libdeflate, in three quarters of the time. The rest, and whatever is not plainly right, is read in pieces
//! by flate2, and only that path refuses anything. The framing of RFC 1952, which is short, is read by hand: that also tells
//! trailing bytes and truncation apart from other damage. Every thread keeps its inflate states and a small buffer.

use std::cell::RefCell;

use flate2::{Crc, Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use memchr::memmem;

/// Below this expanded size, in bytes, the ratio is not judged: a tiny and very regular file is no bomb.
pub const RATIO_FLOOR: u64 = 64 * 1024;

/// Bounds of one content, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GzipLimits {
    /// Most compressed bytes.
    pub max_compressed: u64,
    /// Most expanded bytes.
    pub max_expanded: u64,
    /// Most expanded bytes for each compressed byte, over the whole content; judged above [`RATIO_FLOOR`].
    pub max_ratio: u32,
}

/// Why content is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// Not gzip at all: it does not start as RFC 1952 says.
    #[error("not gzip: {0}")]
    NotGzip(String),
    /// Gzip, but damaged: truncated, a wrong checksum or length, trailing bytes.
    #[error("corrupt gzip: {0}")]
    Corrupt(String),
    /// Expands further than the ratio allows.
    #[error("{compressed} bytes expand to at least {expanded}, more than {max_ratio} times their size")]
    Bomb {
        /// Compressed bytes inflated so far.
        compressed: u64,
        /// What they expanded to when the limit was passed.
        expanded: u64,
        /// The limit.
        max_ratio: u32,
    },
    /// Over a limit of size.
    #[error("has at least {size} {what} bytes; at most {limit} are allowed")]
    TooLarge {
        /// `compressed` or `expanded`.
        what: &'static str,
        /// Bytes counted when the limit was passed.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Inflates `content` to its end and answers how many bytes it expands to.
///
/// Every member's checksum and length must be right, and nothing may follow the last one. Inflating stops as soon as a
/// limit is passed, so a bomb costs no more than an honest packet of that size, and never more than 8 MiB of memory.
///
/// # Errors
/// [`GzipError`] for the first thing that is wrong.
pub fn verify(content: &[u8], limits: &GzipLimits) -> Result<u64, GzipError> {
    thread_local!(static INFLATER: RefCell<Inflater> = RefCell::new(Inflater::new()));
    INFLATER.with_borrow_mut(|inflater| inflater.verify(content, limits))
}

/// Reusable inflate states and the buffer they write to.
struct Inflater {
    whole: Decompressor,
    state: Decompress,
    buffer: Box<[u8]>,
}

impl Inflater {
    /// Most source files fit in it whole.
    const BUFFER: usize = 64 * 1024;
    /// Content that expands further is read in pieces: what threads hold of packets has a bound.
    const WHOLE: usize = 8 * 1024 * 1024;

    fn new() -> Self {
        let buffer = vec![0; Self::BUFFER].into_boxed_slice();
        Self { whole: Decompressor::new(), state: Decompress::new(false), buffer }
    }

    fn verify(&mut self, content: &[u8], limits: &GzipLimits) -> Result<u64, GzipError> {
        let mut allowance = Allowance::new(content.len() as u64, limits)?;
        if let Some(expanded) = self.at_one_go(content, &allowance) {
            allowance.spend(expanded, content.len() as u64)?;
            return Ok(expanded);
        }
        let mut rest = content;
        for member in 1_u64.. {
            let body = match header_len(rest) {
                Ok(len) => &rest[len..],
                Err(BadHeader::NotGzip) if member == 1 => return Err(GzipError::NotGzip(not_gzip(content))),
                Err(BadHeader::NotGzip) => return corrupt(format!("{} bytes follow the last member", rest.len())),
                Err(BadHeader::Corrupt(what)) => return corrupt(format!("member {member}: {what}")),
            };
            rest = self.member(member, body, content.len(), &mut allowance)?;
            if rest.is_empty() {
                break;
            }
        }
        Ok(allowance.expanded)
    }

    /// The expanded size of content that is one sound member and not too large; `None` leaves the verdict to others.
    fn at_one_go(&mut self, content: &[u8], allowance: &Allowance) -> Option<u64> {
        let length = u32::from_le_bytes(*content.last_chunk()?) as usize;
        if length > Self::WHOLE || length as u64 > allowance.most {
            return None;
        }
        // libdeflate skips the header's own checksum.
        header_len(content).ok()?;
        let mut large = Vec::new();
        let buffer = if length > self.buffer.len() {
            large.resize(length, 0);
            &mut large
        } else {
            &mut *self.buffer
        };
        let expanded = self.whole.gzip_decompress(content, buffer).ok()?;
        // It stops after the first member and does not say where that ended. A member ends in its length: if these four bytes
        // stand only at the end of the content, the member ends there.
        let length = (expanded as u32).to_le_bytes();
        (memmem::find(content, &length) == Some(content.len() - length.len())).then_some(expanded as u64)
    }

    /// Inflates one member's deflate stream, checks its trailer, and answers what comes after it.
    fn member<'a>(
        &mut self,
        member: u64,
        body: &'a [u8],
        content_len: usize,
        allowance: &mut Allowance,
    ) -> Result<&'a [u8], GzipError> {
        self.state.reset(false);
        let mut crc = Crc::new();
        let mut rest = body;
        loop {
            let (read_before, written_before) = (self.state.total_in(), self.state.total_out());
            let status = self
                .state
                .decompress(rest, &mut self.buffer, FlushDecompress::None)
                .or_else(|error| corrupt(format!("member {member}: {error}")))?;
            let written = (self.state.total_out() - written_before) as usize;
            rest = &rest[(self.state.total_in() - read_before) as usize..];
            crc.update(&self.buffer[..written]);
            allowance.spend(written as u64, (content_len - rest.len()) as u64)?;
            match status {
                Status::StreamEnd => break,
                Status::Ok | Status::BufError if written > 0 => {}
                Status::Ok | Status::BufError => return corrupt(format!("member {member} is cut short")),
            }
        }

        let Some((trailer, rest)) = rest.split_first_chunk::<8>() else {
            return corrupt(format!("member {member} is cut short in its trailer"));
        };
        let [c0, c1, c2, c3, l0, l1, l2, l3] = *trailer;
        if crc.sum() != u32::from_le_bytes([c0, c1, c2, c3]) {
            return corrupt(format!("member {member}: wrong checksum"));
        }
        if self.state.total_out() as u32 != u32::from_le_bytes([l0, l1, l2, l3]) {
            return corrupt(format!("member {member}: wrong length"));
        }
        Ok(rest)
    }
}

/// How far one content may still expand.
struct Allowance {
    expanded: u64,
    most: u64,
    limits: GzipLimits,
}

impl Allowance {
    fn new(compressed: u64, limits: &GzipLimits) -> Result<Self, GzipError> {
        if compressed > limits.max_compressed {
            return Err(GzipError::TooLarge { what: "compressed", size: compressed, limit: limits.max_compressed });
        }
        // The ratio is one of the whole content. Its beginning alone may be as regular as it likes.
        let by_ratio = compressed.saturating_mul(u64::from(limits.max_ratio)).max(RATIO_FLOOR);
        Ok(Self { expanded: 0, most: by_ratio.min(limits.max_expanded), limits: *limits })
    }

    /// Counts `more` expanded bytes, with `compressed` bytes read so far.
    fn spend(&mut self, more: u64, compressed: u64) -> Result<(), GzipError> {
        self.expanded += more;
        if self.expanded <= self.most {
            return Ok(());
        }
        let GzipLimits { max_expanded, max_ratio, .. } = self.limits;
        let expanded = self.expanded;
        if expanded > RATIO_FLOOR && expanded > compressed.saturating_mul(u64::from(max_ratio)) {
            return Err(GzipError::Bomb { compressed, expanded, max_ratio });
        }
        Err(GzipError::TooLarge { what: "expanded", size: expanded, limit: max_expanded })
    }
}

enum BadHeader {
    NotGzip,
    Corrupt(&'static str),
}

/// Length of the member header at the start of `bytes` (RFC 1952, section 2.3).
fn header_len(bytes: &[u8]) -> Result<usize, BadHeader> {
    const FHCRC: u8 = 1 << 1;
    const FEXTRA: u8 = 1 << 2;
    const FNAME: u8 = 1 << 3;
    const FCOMMENT: u8 = 1 << 4;
    const RESERVED: u8 = 0b1110_0000;
    const CUT: BadHeader = BadHeader::Corrupt("cut short in its header");

    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Err(BadHeader::NotGzip);
    }
    let Some([_, _, method, flags, ..]) = bytes.first_chunk::<10>() else { return Err(CUT) };
    if *method != 8 {
        return Err(BadHeader::Corrupt("compressed by another method than deflate"));
    }
    if flags & RESERVED != 0 {
        return Err(BadHeader::Corrupt("reserved flags are set"));
    }

    let mut len = 10;
    if flags & FEXTRA != 0 {
        let extra = bytes.get(len..).and_then(<[u8]>::first_chunk::<2>).ok_or(CUT)?;
        len += 2 + usize::from(u16::from_le_bytes(*extra));
    }
    for text in [FNAME, FCOMMENT] {
        if flags & text != 0 {
            len += 1 + bytes.get(len..).and_then(|text| text.iter().position(|byte| *byte == 0)).ok_or(CUT)?;
        }
    }
    if flags & FHCRC != 0 {
        let stored = bytes.get(len..).and_then(<[u8]>::first_chunk::<2>).ok_or(CUT)?;
        let mut crc = Crc::new();
        crc.update(&bytes[..len]);
        if crc.sum() as u16 != u16::from_le_bytes(*stored) {
            return Err(BadHeader::Corrupt("wrong checksum of its header"));
        }
        len += 2;
    }
    if bytes.len() < len { Err(CUT) } else { Ok(len) }
}

fn corrupt<T>(what: String) -> Result<T, GzipError> {
    Err(GzipError::Corrupt(what))
}

/// Says what is there in place of gzip.
fn not_gzip(content: &[u8]) -> String {
    match content {
        [] => "empty".to_owned(),
        [first] => format!("one byte, {first:#04x}"),
        [first, second, ..] => format!("starts with {first:#04x} {second:#04x}, not 0x1f 0x8b"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    const LIMITS: GzipLimits = GzipLimits { max_compressed: 4 << 20, max_expanded: 64 << 20, max_ratio: 200 };

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn refused(content: &[u8]) -> String {
        verify(content, &LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn members_are_summed_and_empty_ones_are_fine() {
        let content = [gzip(b"fn main() {}"), gzip(b""), gzip(b"// more")].concat();
        assert_eq!(verify(&content, &LIMITS), Ok(19));
    }

    #[test]
    fn a_member_that_reads_well_hides_nothing_behind_it() {
        let one = gzip(&b"fn main() {}".repeat(20));
        let (body, trailer) = one.split_at(one.len() - 8);
        assert_eq!(verify(&one.repeat(2), &LIMITS), Ok(480));
        assert_eq!(refused(&[&one, b"rest".as_slice()].concat()), "corrupt gzip: 4 bytes follow the last member");
        assert_eq!(refused(&[body, b"junk", trailer].concat()), "corrupt gzip: member 1: wrong checksum");
        assert_eq!(
            refused(&[one.as_slice(), b"junk", trailer].concat()),
            "corrupt gzip: 12 bytes follow the last member"
        );
        assert!(verify(&[&one[..], &one[..one.len() - 9], trailer].concat(), &LIMITS).is_err());
    }

    #[test]
    fn content_is_read_the_same_around_the_sizes_at_which_the_way_changes() {
        let around = |size| [size - 1, size, size + 1];
        for len in [[0, 1, 2], around(Inflater::BUFFER), around(Inflater::WHOLE)].concat() {
            let plain: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 26) as u8).collect();
            assert_eq!(verify(&gzip(&plain), &LIMITS), Ok(len as u64));
        }
    }

    #[test]
    fn optional_header_fields_are_read() {
        let content = flate2::GzBuilder::new()
            .extra(b"ab".to_vec())
            .filename("main.rs")
            .comment("a comment")
            .write(Vec::new(), Compression::fast());
        assert_eq!(verify(&content.finish().unwrap(), &LIMITS), Ok(0));

        let mut with_header_crc = vec![0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 255];
        let mut crc = Crc::new();
        crc.update(&with_header_crc);
        with_header_crc.extend_from_slice(&(crc.sum() as u16).to_le_bytes());
        with_header_crc.extend_from_slice(&gzip(b"body")[10..]);
        assert_eq!(verify(&with_header_crc, &LIMITS), Ok(4));
        with_header_crc[10] ^= 1;
        assert_eq!(refused(&with_header_crc), "corrupt gzip: member 1: wrong checksum of its header");
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        let good = gzip(b"fn main() {}");
        let damaged = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let end = good.len();
        assert_eq!(refused(b""), "not gzip: empty");
        assert_eq!(refused(b"PK\x03\x04"), "not gzip: starts with 0x50 0x4b, not 0x1f 0x8b");
        assert_eq!(refused(&good[..5]), "corrupt gzip: member 1: cut short in its header");
        assert_eq!(refused(&good[..end - 9]), "corrupt gzip: member 1 is cut short");
        assert_eq!(refused(&good[..end - 1]), "corrupt gzip: member 1 is cut short in its trailer");
        assert_eq!(refused(&damaged(end - 8)), "corrupt gzip: member 1: wrong checksum");
        assert_eq!(refused(&damaged(end - 1)), "corrupt gzip: member 1: wrong length");
        assert_eq!(refused(&damaged(2)), "corrupt gzip: member 1: compressed by another method than deflate");
        assert_eq!(refused(&[good.as_slice(), &[0; 3]].concat()), "corrupt gzip: 3 bytes follow the last member");
        assert_eq!(refused(&[good.as_slice(), &good[..4]].concat()), "corrupt gzip: member 2: cut short in its header");
    }

    #[test]
    fn a_bomb_is_refused_after_what_its_size_allows() {
        let bomb = gzip(&vec![0; 32 << 20]);
        let GzipError::Bomb { expanded, .. } = verify(&bomb, &LIMITS).unwrap_err() else {
            panic!("not seen as a bomb")
        };
        assert!(expanded <= 200 * bomb.len() as u64 + Inflater::BUFFER as u64);
    }

    #[test]
    fn small_regular_files_may_exceed_the_ratio() {
        let regular = gzip(&vec![b' '; RATIO_FLOOR as usize]);
        assert!(RATIO_FLOOR / regular.len() as u64 > 200);
        assert_eq!(verify(&regular, &LIMITS), Ok(RATIO_FLOOR));
        assert!(matches!(verify(&gzip(&vec![b' '; 70_000]), &LIMITS), Err(GzipError::Bomb { .. })));
    }

    #[test]
    fn honest_content_over_a_size_limit_is_too_large() {
        let limits = GzipLimits { max_expanded: 1000, ..LIMITS };
        assert_eq!(
            verify(&gzip(&[7; 1001]), &limits),
            Err(GzipError::TooLarge { what: "expanded", size: 1001, limit: 1000 })
        );
        assert_eq!(verify(&gzip(&[7; 1000]), &limits), Ok(1000));
        let limits = GzipLimits { max_compressed: 10, ..LIMITS };
        assert!(matches!(verify(&gzip(b"x"), &limits), Err(GzipError::TooLarge { what: "compressed", .. })));
    }

    #[test]
    fn thousands_of_empty_members_cost_no_more_than_one_large_one() {
        let many = gzip(b"").repeat((4 << 20) / 20);
        let start = Instant::now();
        assert_eq!(verify(&many, &LIMITS), Ok(0));
        assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn what_was_compressed_is_counted(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 1..4)) {
            let content: Vec<u8> = parts.iter().flat_map(|part| gzip(part)).collect();
            let expected: usize = parts.iter().map(Vec::len).sum();
            prop_assert_eq!(verify(&content, &LIMITS), Ok(expected as u64));
        }

        #[test]
        fn no_cut_passes(plain in prop::collection::vec(any::<u8>(), 0..500), cut in any::<prop::sample::Index>()) {
            let content = gzip(&plain);
            prop_assert!(verify(&content[..cut.index(content.len())], &LIMITS).is_err());
        }

        #[test]
        fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = verify(&[&[0x1f, 0x8b, 8], bytes.as_slice()].concat(), &LIMITS);
        }

        #[test]
        fn verdicts_agree_with_flate2(plain in "[a-f]{0,300}", at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let mut content = gzip(plain.as_bytes());
            let at = at.index(content.len());
            content[at] ^= flip;
            let mut expanded = Vec::new();
            let other = std::io::Read::read_to_end(&mut flate2::bufread::MultiGzDecoder::new(&*content), &mut expanded);
            // flate2 reads past reserved flags, which RFC 1952 forbids.
            if at != 3 {
                prop_assert_eq!(verify(&content, &LIMITS).is_ok(), other.is_ok());
            }
        }
    }
}
