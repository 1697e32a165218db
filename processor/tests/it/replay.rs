//! Dead letters that are replayed once the reason is gone.

use clap::Parser;
use relayctl::{Cli, Exit, Format, Output};

use crate::support::{Source, World, by_ingest, id_of, packet};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_replayed_twice_is_stored_once() {
    let world = World::new().await;
    let packets: Vec<_> = (0..20).map(packet).collect();
    let unchecked: Vec<_> = packets.iter().map(|packet| Source { headers: vec![], ..by_ingest(packet) }).collect();
    world.produce(&unchecked);
    let processor = world.processor("a").set("limits.content_max", "10B").ready().await;
    world.settled().await;
    processor.stop().await;
    assert_eq!(world.committed(&world.topics.dlq).len(), packets.len());
    assert_eq!(world.rows().await.len(), 0);

    let replay = async |extra: &[&str]| {
        let (servers, suffix) = (world.stack().bootstrap_servers(), world.suffix());
        let line =
            ["relayctl", "dlq", "replay", "--kafka", &servers, "--topic-suffix", &suffix, "--reason", "too_large"];
        let cli = Cli::try_parse_from(line.iter().chain(extra)).unwrap();
        relayctl::run(cli, &mut Output::to(Format::Json, std::io::sink())).await
    };
    assert_eq!(replay(&[]).await, Exit::Success, "a dry run");
    assert_eq!(world.committed(&world.topics.packets).len(), packets.len(), "it wrote nothing");
    assert_eq!(replay(&["--yes"]).await, Exit::Success);
    assert_eq!(replay(&["--yes"]).await, Exit::Success);
    assert_eq!(world.committed(&world.topics.packets).len(), 3 * packets.len());

    let processor = world.processor("a").ready().await;
    world.settled().await;
    processor.stop().await;
    world.assert_exactly_once(&packets.iter().map(id_of).collect::<Vec<_>>()).await;
    assert_eq!(world.committed(&world.topics.dlq).len(), packets.len(), "none came back");
}
