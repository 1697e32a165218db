//! How large packets of real source code are in several formats, and what encoding and decoding them costs.
//!
//! `files (by language) → format → bytes and CPU of a packet → table and verdict`

mod files;
mod format;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use comfy_table::{Table, presets};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

pub use format::Format;

use crate::machine::Origin;
use files::File;

/// How much smaller than JSON the original project said its packets were.
const CLAIM: f64 = 0.6;

/// Compare JSON and protobuf for packets of real source files: bytes, and CPU to encode and decode.
#[derive(Clone, Debug, Args)]
pub struct SizesArgs {
    /// Folders of source code: of a checkout what git tracks, of any other folder every file. Default: here.
    #[arg(default_value = ".")]
    paths: Vec<PathBuf>,
    /// Most files of each language, evenly chosen.
    #[arg(long, default_value_t = 300)]
    files: usize,
    /// CPU time that each format's encoding and decoding is measured for, at least.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "300ms")]
    seconds: Duration,
}

/// What was found: a table and one sentence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Machine, date, commit and command.
    pub origin: Origin,
    /// One a language, then all of them together.
    pub languages: Vec<Language>,
    /// Whether the claim of 60 % holds.
    pub verdict: String,
}

/// The files of one language.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Language {
    /// Its name.
    pub name: String,
    /// Files measured.
    pub files: usize,
    /// Mean length of a file, in bytes.
    pub source_bytes: f64,
    /// Files whose packet is at least 60 % smaller than JSON with their text.
    pub files_as_claimed: usize,
    /// In the order of [`Format::ALL`].
    pub formats: Vec<Measured>,
}

/// What a packet comes to in one format, on average.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The format.
    pub format: Format,
    /// Bytes of a packet.
    pub bytes: f64,
    /// CPU from the source text to the message, in nanoseconds a packet.
    pub encode_ns: f64,
    /// CPU from the message to the source text, in nanoseconds a packet.
    pub decode_ns: f64,
}

impl SizesArgs {
    /// Measures every language found.
    ///
    /// # Errors
    /// When a path cannot be listed or holds no source code.
    pub async fn run(self) -> Result<Sizes> {
        tokio::task::spawn_blocking(move || self.measure()).await?
    }

    fn measure(&self) -> Result<Sizes> {
        ensure!(self.files > 0, "files is 0; allowed: 1 and more");
        let mut languages = Vec::new();
        for (name, files) in files::by_language(&self.paths, self.files)? {
            eprintln!("loadtest: measuring {} files of {name}", files.len());
            languages.push(Language::measure(name, &files, self.seconds)?);
        }
        ensure!(!languages.is_empty(), "there is no source code in {:?}", self.paths);
        let all = all(&languages);
        let verdict = verdict(&all, &languages);
        languages.push(all);
        Ok(Sizes { origin: Origin::here()?, languages, verdict })
    }
}

impl Language {
    fn measure(name: &str, files: &[File], at_least: Duration) -> Result<Self> {
        let formats = Format::ALL.iter().map(|format| Measured::of(*format, files, at_least));
        let as_claimed = |file: &File| -> Result<bool> {
            let bytes =
                |format: Format| Ok::<_, anyhow::Error>(format.encode(std::slice::from_ref(file))?.len() as f64);
            Ok(bytes(Format::Protobuf)? <= bytes(Format::JsonText)? * (1.0 - CLAIM))
        };
        let mut files_as_claimed = 0;
        for file in files {
            files_as_claimed += usize::from(as_claimed(file)?);
        }
        Ok(Self {
            name: name.to_owned(),
            files: files.len(),
            source_bytes: files.iter().map(|file| file.text.len() as f64).sum::<f64>() / files.len() as f64,
            files_as_claimed,
            formats: formats.collect::<Result<_>>()?,
        })
    }

    fn bytes(&self, format: Format) -> f64 {
        self.formats.iter().find(|measured| measured.format == format).map_or(f64::NAN, |measured| measured.bytes)
    }

    /// How much smaller protobuf with gzip is than `other`, as a share.
    fn saving(&self, other: Format) -> f64 {
        1.0 - self.bytes(Format::Protobuf) / self.bytes(other)
    }
}

impl Measured {
    fn of(format: Format, files: &[File], at_least: Duration) -> Result<Self> {
        let chunks: Vec<&[File]> = files.chunks(format.batch()).collect();
        let messages = chunks.iter().map(|chunk| format.encode(chunk)).collect::<Result<Vec<_>>>()?;
        for (chunk, message) in chunks.iter().zip(&messages) {
            let texts = format.decode(message)?;
            ensure!(texts.iter().eq(chunk.iter().map(|file| &file.text)), "{format:?} does not give back what it got");
        }
        let packets = files.len() as f64;
        Ok(Self {
            format,
            bytes: messages.iter().map(Vec::len).sum::<usize>() as f64 / packets,
            encode_ns: cpu_ns(at_least, || chunks.iter().try_for_each(|chunk| format.encode(chunk).map(drop)))?
                / packets,
            decode_ns: cpu_ns(at_least, || messages.iter().try_for_each(|message| format.decode(message).map(drop)))?
                / packets,
        })
    }
}

/// CPU time of one `round` on this thread, in nanoseconds: the mean of as many as fill `at_least`. Other programs do not count.
fn cpu_ns(at_least: Duration, mut round: impl FnMut() -> Result<()>) -> Result<f64> {
    let cpu = || Ok::<Duration, anyhow::Error>(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into());
    let begun = cpu()?;
    let mut rounds = 0;
    loop {
        round()?;
        rounds += 1;
        let spent = cpu()?.saturating_sub(begun);
        if spent >= at_least {
            return Ok(spent.as_nanos() as f64 / f64::from(rounds));
        }
    }
}

/// All languages together, each by its number of files.
fn all(languages: &[Language]) -> Language {
    let files: usize = languages.iter().map(|language| language.files).sum();
    let mean = |value: &dyn Fn(&Language) -> f64| {
        languages.iter().map(|language| value(language) * language.files as f64).sum::<f64>() / files as f64
    };
    let formats = Format::ALL.iter().enumerate().map(|(at, format)| Measured {
        format: *format,
        bytes: mean(&|language| language.formats[at].bytes),
        encode_ns: mean(&|language| language.formats[at].encode_ns),
        decode_ns: mean(&|language| language.formats[at].decode_ns),
    });
    Language {
        name: "all".to_owned(),
        files,
        source_bytes: mean(&|language| language.source_bytes),
        files_as_claimed: languages.iter().map(|language| language.files_as_claimed).sum(),
        formats: formats.collect(),
    }
}

/// The claim, judged by the numbers.
fn verdict(all: &Language, languages: &[Language]) -> String {
    let [base64, text, gzip] = [Format::JsonBase64, Format::JsonText, Format::JsonGzip].map(|other| all.saving(other));
    let claim = match (base64 >= CLAIM, text >= CLAIM) {
        (true, true) => "confirmed",
        (true, false) => "confirmed against base64 and refuted against raw text",
        (false, true) => "refuted against base64 and confirmed against raw text",
        (false, false) => "refuted",
    };
    let each: Vec<_> = languages
        .iter()
        .map(|language| format!("{} {}", language.name, percent(language.saving(Format::JsonText))))
        .collect();
    // Within a tenth of each other: the format makes no difference.
    let whose = if gzip.abs() < 0.1 { ": the saving is gzip's" } else { "" };
    let gzip = if gzip >= 0.0 { format!("{} smaller", percent(gzip)) } else { format!("{} larger", percent(-gzip)) };
    format!(
        "The claim of 60 % less than JSON is {claim}: over {} files protobuf with gzip is {} smaller than JSON with base64 content and \
         {} smaller than JSON with raw text ({}; 60 % or more for {} of the files), and {gzip} than that JSON gzip'ed whole{whose}.",
        all.files,
        percent(base64),
        percent(text),
        each.join(", "),
        percent(all.files_as_claimed as f64 / all.files as f64),
    )
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header(["language", "format", "bytes", "of JSON with base64", "encode µs", "decode µs"]);
        for language in &self.languages {
            let mut name = format!("{}, {} files of {:.0} B", language.name, language.files, language.source_bytes);
            for Measured { format, bytes, encode_ns, decode_ns } in &language.formats {
                let share = percent(bytes / language.bytes(Format::JsonBase64));
                let [encode, decode] = [encode_ns, decode_ns].map(|ns| format!("{:.1}", ns / 1e3));
                table.add_row([
                    std::mem::take(&mut name),
                    format.to_string(),
                    format!("{bytes:.0}"),
                    share,
                    encode,
                    decode,
                ]);
            }
        }
        write!(f, "{table}\n\n{}\n\n{}", self.verdict, self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(name: &str, files: usize, bytes: [f64; 6]) -> Language {
        let formats = Format::ALL.iter().zip(bytes);
        let formats =
            formats.map(|(format, bytes)| Measured { format: *format, bytes, encode_ns: bytes, decode_ns: 1.0 });
        Language { name: name.to_owned(), files, source_bytes: 90.0, files_as_claimed: 1, formats: formats.collect() }
    }

    #[test]
    fn languages_count_by_their_files() {
        let languages = [language("a", 1, [100.0; 6]), language("b", 3, [200.0; 6])];
        let all = all(&languages);
        assert_eq!((all.files, all.files_as_claimed), (4, 2));
        assert!(all.formats.iter().all(|measured| (measured.bytes - 175.0).abs() < 1e-9));
        assert!((all.formats[0].encode_ns - 175.0).abs() < 1e-9);
    }

    #[test]
    fn the_verdict_follows_from_the_numbers() {
        let judged = |bytes| verdict(&language("all", 10, bytes), &[language("Rust", 10, bytes)]);
        let held = judged([140.0, 100.0, 40.0, 60.0, 40.0, 39.0]);
        assert!(
            held.contains("is confirmed: over 10 files") && held.contains("71 % smaller than JSON with base64"),
            "{held}"
        );
        assert!(held.contains("(Rust 60 %; 60 % or more for 10 % of the files), and 0 % smaller"), "{held}");
        assert!(held.ends_with("than that JSON gzip'ed whole: the saving is gzip's."), "{held}");
        let half = judged([140.0, 100.0, 40.0, 60.0, 50.0, 49.0]);
        assert!(half.contains("confirmed against base64 and refuted against raw text"), "{half}");
        assert!(half.contains("25 % larger than that JSON gzip'ed whole"), "{half}");
        assert!(judged([140.0, 100.0, 40.0, 60.0, 80.0, 79.0]).contains("is refuted:"));
    }

    #[test]
    fn a_table_has_a_line_for_each_language_and_format() {
        let languages = vec![language("Rust", 1, [1.0; 6]), language("all", 1, [1.0; 6])];
        let sizes = Sizes { origin: Origin::default(), languages, verdict: String::new() };
        assert_eq!(sizes.to_string().lines().filter(|line| line.starts_with('|')).count(), 2 + 2 * Format::ALL.len());
    }
}
