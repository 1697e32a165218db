//! `relayctl tail`: the records of a topic, decoded.

use std::ops::ControlFlow;

use coderelay_schemas::topics::TopicNames;

use crate::connect::Connection;
use crate::exit::Exit;
use crate::output::Output;
use crate::position::{POSITION_HELP, Position};
use crate::reader::Reader;
use crate::record::{Encoding, Record};

/// Show the records of a topic, decoded
#[derive(Debug, clap::Args)]
pub(crate) struct TailArgs {
    /// packets, deduped, ledger, dlq, canary, or the name of any topic that holds packets
    #[arg(long, short, default_value = "deduped")]
    topic: String,
    /// Only records of this repository
    #[arg(long)]
    repo: Option<String>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true,
          help = format!("{POSITION_HELP} [default: earliest; with --follow: latest]"))]
    from: Option<Position>,
    /// Wait for new records instead of ending with the last one
    #[arg(long, short)]
    follow: bool,
    /// End after this many records
    #[arg(long, short = 'n', value_name = "COUNT")]
    limit: Option<usize>,
    /// Show each packet's unpacked content
    #[arg(long)]
    content: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &TailArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let (topic, encoding) = resolve(&args.topic, &connection.topics());
    let reader = Reader::open(connection, &topic)?;
    let default = if args.follow { Position::Latest } else { Position::Earliest };
    let until = if args.follow { None } else { Some(reader.ends()?) };
    let from = reader.resolve(args.from.unwrap_or(default))?;

    let mut shown = 0;
    if args.limit == Some(0) {
        return Ok(Exit::Success);
    }
    reader.read(&from, until.as_ref(), |message| {
        let record = Record::decode(message, encoding, args.content);
        if args.repo.as_deref().is_some_and(|repo| record.repo_id() != Some(repo)) {
            return Ok(ControlFlow::Continue(()));
        }
        output.stream(&record)?;
        if let Some(content) = record.packet.as_ref().and_then(|packet| packet.content.as_ref()) {
            output.say(&content.text())?;
        }
        shown += 1;
        Ok(if args.limit.is_some_and(|limit| shown >= limit) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    Ok(Exit::Success)
}

/// The topic behind a short name, and how its values are read.
fn resolve(name: &str, topics: &TopicNames) -> (String, Encoding) {
    let full = match name {
        "packets" => &topics.packets,
        "deduped" => &topics.deduped,
        "ledger" => &topics.ledger,
        "dlq" => &topics.dlq,
        "canary" => &topics.canary,
        other => other,
    };
    let encoding = if full == topics.ledger { Encoding::Ledger } else { Encoding::Packet };
    (full.to_owned(), encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_follow_the_deployment() {
        let topics = TopicNames::with_suffix("-b");
        assert_eq!(resolve("deduped", &topics), ("code.packets.deduped.v1-b".into(), Encoding::Packet));
        assert_eq!(resolve("code.packets.ledger.v1-b", &topics).1, Encoding::Ledger);
        assert_eq!(resolve("us-east.code.packets.v1", &topics), ("us-east.code.packets.v1".into(), Encoding::Packet));
    }
}
