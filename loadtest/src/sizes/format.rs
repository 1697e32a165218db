//! The formats that are compared.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write as _};

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coderelay_schemas::pb::{CodePacket, PublishRequest};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::files::File;

/// Bytes in front of every gRPC message: a flag and the length.
const GRPC_PREFIX: usize = 5;

/// A way to send a packet: repository, path, language and content. Transport headers are left out of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON document, the source in base64.
    JsonBase64,
    /// A JSON document, the source as a string.
    JsonText,
    /// The same, gzip'ed whole.
    JsonGzip,
    /// A JSON document, the gzip'ed source in base64: what protobuf's JSON mapping makes of a packet.
    JsonBase64Gzip,
    /// A `PublishRequest` of one packet with gzip'ed source, as a gRPC message.
    Protobuf,
    /// A `PublishRequest` of 100 such packets.
    ProtobufBatched,
}

/// A packet in JSON, with the names of protobuf's.
#[derive(Serialize, Deserialize)]
struct Json<'a> {
    repo_id: &'a str,
    // Escaped text cannot be borrowed.
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(borrow)]
    metadata: BTreeMap<&'a str, Cow<'a, str>>,
}

impl Format {
    /// Every format, in the table's order.
    pub const ALL: [Self; 6] =
        [Self::JsonBase64, Self::JsonText, Self::JsonGzip, Self::JsonBase64Gzip, Self::Protobuf, Self::ProtobufBatched];

    /// Packets of one message.
    pub(super) fn batch(self) -> usize {
        if self == Self::ProtobufBatched { 100 } else { 1 }
    }

    /// One message of `files`, of which JSON takes only one.
    pub(super) fn encode(self, files: &[File]) -> Result<Vec<u8>> {
        match (self, files) {
            (Self::Protobuf | Self::ProtobufBatched, files) => {
                let packets = files.iter().map(packet).collect::<Result<_>>()?;
                let request = PublishRequest { seq: 0, packets };
                let mut message = Vec::with_capacity(GRPC_PREFIX + request.encoded_len());
                message.push(0);
                message.extend_from_slice(&(request.encoded_len() as u32).to_be_bytes());
                request.encode(&mut message)?;
                Ok(message)
            }
            (Self::JsonBase64, [file]) => json(file, STANDARD.encode(&file.text).into()),
            (Self::JsonText, [file]) => json(file, Cow::Borrowed(&file.text)),
            (Self::JsonGzip, [file]) => gzip(&json(file, Cow::Borrowed(&file.text))?),
            (Self::JsonBase64Gzip, [file]) => json(file, STANDARD.encode(gzip(file.text.as_bytes())?).into()),
            (json, files) => anyhow::bail!("{json:?} holds one file, not {}", files.len()),
        }
    }

    /// The sources in a message.
    pub(super) fn decode(self, message: &[u8]) -> Result<Vec<String>> {
        Ok(match self {
            Self::Protobuf | Self::ProtobufBatched => {
                ensure!(message.len() > GRPC_PREFIX, "no message after its prefix");
                let request = PublishRequest::decode(&message[GRPC_PREFIX..])?;
                request.packets.iter().map(|packet| text(gunzip(&packet.content)?)).collect::<Result<_>>()?
            }
            Self::JsonText => vec![content(message)?.into_owned()],
            Self::JsonGzip => vec![content(&gunzip(message)?)?.into_owned()],
            Self::JsonBase64 => vec![text(STANDARD.decode(content(message)?.as_bytes())?)?],
            Self::JsonBase64Gzip => vec![text(gunzip(&STANDARD.decode(content(message)?.as_bytes())?)?)?],
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::JsonBase64 => "JSON, base64 content",
            Self::JsonText => "JSON, raw text",
            Self::JsonGzip => "JSON, raw text, gzip'ed whole",
            Self::JsonBase64Gzip => "JSON, base64 of gzip",
            Self::Protobuf => "protobuf, gzip",
            Self::ProtobufBatched => "protobuf, gzip, 100 a request",
        })
    }
}

fn json(file: &File, content: Cow<'_, str>) -> Result<Vec<u8>> {
    let metadata = BTreeMap::from([("language", file.language.into()), ("path", file.path.as_str().into())]);
    Ok(serde_json::to_vec(&Json { repo_id: &file.repository, content, metadata })?)
}

fn content(message: &[u8]) -> Result<Cow<'_, str>> {
    Ok(serde_json::from_slice::<Json<'_>>(message)?.content)
}

fn packet(file: &File) -> Result<CodePacket> {
    let metadata = [("language", file.language), ("path", &file.path)];
    Ok(CodePacket {
        repo_id: file.repository.clone(),
        content: gzip(file.text.as_bytes())?.into(),
        metadata: BTreeMap::from(metadata.map(|(key, value)| (key.to_owned(), value.to_owned()))),
        ..CodePacket::default()
    })
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn gunzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut text = Vec::with_capacity(bytes.len() * 4);
    GzDecoder::new(bytes).read_to_end(&mut text)?;
    Ok(text)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    Ok(String::from_utf8(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize) -> Vec<File> {
        let file = |n| File {
            repository: "github.com/example/repo".to_owned(),
            path: format!("src/\"quoted\" file_{n}.rs"),
            language: "Rust",
            text: format!("fn f{n}() -> &'static str {{\n    \"tab\\t and ünicode\"\n}}\n").repeat(n + 1),
        };
        (0..count).map(file).collect()
    }

    #[test]
    fn every_format_gives_back_the_source() {
        let files = files(150);
        for format in Format::ALL {
            for chunk in files.chunks(format.batch()) {
                let texts = format.decode(&format.encode(chunk).unwrap()).unwrap();
                assert!(texts.iter().eq(chunk.iter().map(|file| &file.text)), "{format:?}");
            }
        }
    }

    #[test]
    fn a_message_of_json_is_one_document() {
        let files = files(2);
        assert!(Format::JsonText.encode(&files).is_err());
        let document: serde_json::Value =
            serde_json::from_slice(&Format::JsonText.encode(&files[..1]).unwrap()).unwrap();
        assert_eq!(document["metadata"]["path"], files[0].path);
    }
}
