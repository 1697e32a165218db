//! What arrives in the other region.

use coderelay_schemas::topics::{PACKETS, PARTITIONS};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::records::{Record, arrive, mirror_of, now, read_until, write};
use crate::{TURN, shared};

#[tokio::test]
async fn a_record_arrives_as_it_was_in_either_direction() {
    let _turn = TURN.lock().await;
    let regions = shared().await;
    for (from, to) in [(regions.us_east(), regions.eu_west()), (regions.eu_west(), regions.us_east())] {
        let header = |key: &str, value: Option<&[u8]>| (key.to_owned(), value.map(<[u8]>::to_vec));
        let full = Record {
            partition: PARTITIONS - 1,
            key: Some(b"github.com/acme/api".to_vec()),
            value: Some(b"\x00\xff".to_vec()),
            headers: vec![
                header("packet-id", Some(b"00ff")),
                header("twice", Some(b"first")),
                header("twice", Some(b"\xfe\x00")),
                header("none", None),
            ],
            timestamp: now() - 3_600_123,
        };
        let empty = Record { key: None, value: None, headers: Vec::new(), timestamp: now() - 1, ..full.clone() };
        let sent = [full, empty];
        write(from, &sent).await;
        let both = sent.clone();
        let read = read_until(to, mirror_of(from), move |read| both.iter().all(|record| read.contains(record))).await;
        let arrived: Vec<_> = read.into_iter().filter(|record| sent.contains(record)).collect();
        assert_eq!(arrived, sent, "in this order, and once while nothing fails");
    }
}

#[tokio::test]
async fn mirrored_topics_have_the_partitions_of_their_sources_and_are_not_mirrored_back() {
    let _turn = TURN.lock().await;
    let regions = shared().await;
    for (from, to) in [(regions.us_east(), regions.eu_west()), (regions.eu_west(), regions.us_east())] {
        let client: BaseConsumer = to.kafka_client().create().unwrap();
        let metadata = client.fetch_metadata(None, std::time::Duration::from_secs(10)).unwrap();
        let packets: Vec<_> = metadata
            .topics()
            .iter()
            .filter(|topic| topic.name().ends_with(PACKETS))
            .map(|topic| (topic.name().to_owned(), topic.partitions().len()))
            .collect();
        let partitions = usize::try_from(PARTITIONS).unwrap();
        let mut expected = [(PACKETS.to_owned(), partitions), (mirror_of(from), partitions)];
        expected.sort();
        let mut packets = packets;
        packets.sort();
        assert_eq!(packets, expected);
    }
}

#[tokio::test]
async fn the_largest_packet_is_mirrored() {
    let _turn = TURN.lock().await;
    let regions = shared().await;
    let largest = [Record::plain(&"x".repeat(4 * 1024 * 1024 + 64 * 1024))];
    write(regions.us_east(), &largest).await;
    arrive(regions.us_east(), regions.eu_west(), &largest).await;
}
