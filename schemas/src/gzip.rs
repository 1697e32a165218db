//! Verifies gzip content to its last byte without keeping what it expands to.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;

/// Below this expanded size the ratio is not judged: a tiny, very regular file is no bomb.
pub const RATIO_FLOOR: u64 = 64 * 1024;

/// Bounds of one content, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GzipLimits {
    /// Most compressed bytes.
    pub max_compressed: u64,
    /// Most expanded bytes.
    pub max_expanded: u64,
    /// Most expanded bytes per compressed byte, judged above [`RATIO_FLOOR`].
    pub max_ratio: u32,
}

/// Why content is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// Not gzip at all: the first bytes are not those of a gzip member.
    #[error("not gzip: {0}")]
    NotGzip(String),
    /// Gzip, but damaged: truncated, a wrong checksum or length, trailing bytes.
    #[error("corrupt gzip: {0}")]
    Corrupt(String),
    /// Expands further than the ratio allows.
    #[error("{compressed} bytes expand to {expanded} or more, over {max_ratio} times their size")]
    Bomb {
        /// Compressed bytes of the whole content.
        compressed: u64,
        /// Bytes expanded when the limit was passed.
        expanded: u64,
        /// The limit.
        max_ratio: u32,
    },
    /// Compressed or expanded bytes over the limit.
    #[error("{size} or more {what} bytes are over the limit of {limit}")]
    TooLarge {
        /// `compressed` or `expanded`.
        what: &'static str,
        /// Bytes seen when the limit was passed.
        size: u64,
        /// The limit.
        limit: u64,
    },
}

/// Inflates `content` to its end and answers how many bytes it expands to.
///
/// # Errors
/// [`GzipError`], at the first thing that is wrong.
pub fn verify(content: &[u8], limits: &GzipLimits) -> Result<u64, GzipError> {
    let compressed = content.len() as u64;
    if compressed > limits.max_compressed {
        return Err(GzipError::TooLarge { what: "compressed", size: compressed, limit: limits.max_compressed });
    }
    if !content.starts_with(&[0x1f, 0x8b]) {
        return Err(GzipError::NotGzip("no gzip header".to_owned()));
    }
    let ratio_bound = RATIO_FLOOR.max(compressed * u64::from(limits.max_ratio));
    let mut decoder = MultiGzDecoder::new(content);
    let mut buffer = [0; 16 * 1024];
    let mut expanded = 0;
    loop {
        let read = decoder.read(&mut buffer).map_err(|error| GzipError::Corrupt(error.to_string()))?;
        if read == 0 {
            return Ok(expanded);
        }
        expanded += read as u64;
        if expanded > ratio_bound {
            return Err(GzipError::Bomb { compressed, expanded, max_ratio: limits.max_ratio });
        }
        if expanded > limits.max_expanded {
            return Err(GzipError::TooLarge { what: "expanded", size: expanded, limit: limits.max_expanded });
        }
    }
}
