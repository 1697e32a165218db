//! Generated source code, and how it is compressed.

use std::fmt::Write as _;
use std::io::Write as _;

use flate2::{Compression, GzBuilder};

use super::SplitMix64;

/// Whole lines whose gzip fills `size` bytes as far as lines can, and the length of these lines.
pub(super) fn body_of(random: &mut SplitMix64, size: usize) -> std::io::Result<(Vec<u8>, usize)> {
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

pub(super) fn gzip(text: &[u8]) -> std::io::Result<Vec<u8>> {
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
