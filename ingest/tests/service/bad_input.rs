//! Every kind of bad packet and bad request: its own clear status, and its neighbours unharmed.

use std::time::{Duration, SystemTime};

use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{CodePacket, PublishBatchRequest};
use prost::Message as _;
use rdkafka::message::Message;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_types::StatusExt;

use crate::world::{World, committed, gzip, is_committed, packet, packets, reason, refusal, request};

fn with_content(content: Vec<u8>) -> Vec<u8> {
    CodePacket { content: content.into(), ..packet("acme/api", "") }.encode_to_vec()
}

fn with_repo_id(repo_id: &str) -> Vec<u8> {
    packet(repo_id, "fn main() {}").encode_to_vec()
}

fn with_metadata(entries: usize, value: usize) -> Vec<u8> {
    let metadata = (0..entries).map(|n| (format!("key-{n}"), "v".repeat(value))).collect();
    CodePacket { metadata, ..packet("acme/api", "fn main() {}") }.encode_to_vec()
}

/// Noise does not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Good content with one change.
fn damaged(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut content = gzip(&b"fn main() {}\n".repeat(50));
    change(&mut content);
    with_content(content)
}

/// What is wrong, the encoded packet, the reason and the field in the answer.
fn bad_packets() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let non_utf8 = [b"\x0a\x02\xff\xfe".to_vec(), with_content(gzip(b"x")).split_off(10)].concat();
    let short_id = CodePacket { packet_id: vec![1; 15].into(), ..packet("acme/api", "x") }.encode_to_vec();
    vec![
        ("no repo_id", with_repo_id(""), "REPO_ID_EMPTY", "repo_id"),
        ("an over-long repo_id", with_repo_id(&"r".repeat(257)), "REPO_ID_TOO_LONG", "repo_id"),
        ("a control character", with_repo_id("acme\n/api"), "REPO_ID_CONTROL_CHARACTER", "repo_id"),
        ("a repo_id that is not UTF-8", non_utf8, "REPO_ID_NOT_UTF8", "repo_id"),
        ("no content", with_content(Vec::new()), "CONTENT_NOT_GZIP", "content"),
        ("content that is not gzip", with_content(b"fn main() {}".to_vec()), "CONTENT_NOT_GZIP", "content"),
        ("truncated content", damaged(|c| c.truncate(c.len() - 9)), "CONTENT_CORRUPT", "content"),
        ("a trailer cut short", damaged(|c| c.truncate(c.len() - 1)), "CONTENT_CORRUPT", "content"),
        ("a wrong checksum", damaged(|c| *c.iter_mut().nth_back(6).unwrap() ^= 1), "CONTENT_CORRUPT", "content"),
        ("a wrong length", damaged(|c| *c.last_mut().unwrap() ^= 1), "CONTENT_CORRUPT", "content"),
        ("trailing bytes", damaged(|c| c.extend(b"tail")), "CONTENT_CORRUPT", "content"),
        ("a bomb of 1000:1", with_content(gzip(&vec![0; 20 << 20])), "CONTENT_BOMB", "content"),
        ("5 MiB of content", with_content(gzip(&noise(5 << 20))), "CONTENT_TOO_LARGE", "content"),
        ("65 entries of metadata", with_metadata(65, 1), "METADATA_TOO_MANY", "metadata"),
        ("17 KiB of metadata", with_metadata(17, 1020), "METADATA_TOO_LARGE", "metadata"),
        ("an id of 15 bytes", short_id, "PACKET_ID_LENGTH", "packet_id"),
        ("bytes that are no packet", b"\xff\xff\xff".to_vec(), "PACKET_MALFORMED", "packet"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_packet_has_its_own_reason_and_its_neighbours_are_committed() {
    let world = World::start().await;
    let mut stored = 0;
    for (what, bad, expected_reason, expected_field) in bad_packets() {
        let [before, after] = [packet("acme/a", what), packet("acme/b", what)].map(|good| good.encode_to_vec());
        let results = world.publish_raw(vec![before, bad, after]).await;
        assert_eq!(results.iter().map(|result| result.seq).collect::<Vec<_>>(), [0, 1, 2], "{what}");
        assert!(matches!(results[1].outcome, Some(Outcome::Error(_))), "{what} was committed");
        let (code, details) = refusal(&results[1]);
        assert_eq!(code, Code::InvalidArgument, "{what}");
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (expected_reason, "coderelay"), "{what}");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, expected_field, "{what}");
        assert!(!violations[0].description.is_empty(), "{what}");
        assert!(details.retry_info().is_none(), "{what}");
        committed(&results[0]);
        committed(&results[2]);
        stored += 2;
    }
    assert_eq!(world.records().await.len(), stored, "nothing of the bad is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_violations_of_a_packet_are_named_at_once() {
    let world = World::start().await;
    let bad = CodePacket { packet_id: vec![1; 15].into(), ..packet("", "x") };
    let results = world.publish(vec![bad]).await;
    let (_, details) = refusal(&results[0]);
    let fields: Vec<_> = details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["repo_id", "packet_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_at_that_is_a_year_off_is_replaced() {
    let world = World::start().await;
    let year = Duration::from_secs(365 * 24 * 3600);
    let off = [SystemTime::now() - year, SystemTime::now() + year]
        .map(|time| CodePacket { created_at: Some(time.into()), ..packet("acme/api", &format!("{time:?}")) });
    assert!(world.publish(off.to_vec()).await.iter().all(is_committed));
    for record in world.records().await {
        let stored = CodePacket::decode(record.payload().unwrap()).unwrap();
        let created_at = SystemTime::try_from(stored.created_at.unwrap()).unwrap();
        assert!(created_at.elapsed().unwrap() < Duration::from_secs(60));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_request_has_an_answer_without_results() {
    let world = World::start().await;
    assert_eq!(world.publish(Vec::new()).await, []);
    let requests = tokio_stream::iter([request(5, Vec::new()), request(5, packets("one", 1))]);
    let mut responses = world.client().await.publish(requests).await.unwrap().into_inner();
    let mut counts = Vec::new();
    while let Some(response) = responses.next().await {
        counts.push(response.unwrap().results.len());
    }
    assert_eq!(counts, [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_the_message_limit_ends_its_own_call_only() {
    let world = World::with(&["grpc.max_message_size=1MiB"]).await;
    let large = CodePacket { content: noise(2 << 20).into(), ..packet("acme/api", "") };
    let mut client = world.client().await;
    let batch = PublishBatchRequest { packets: vec![large.clone()] };
    let status = client.publish_batch(batch).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(reason(&status.get_error_details()), "REQUEST_TOO_LARGE");

    // On a stream, what came before is answered first.
    let requests = tokio_stream::iter([request(0, packets("before", 3)), request(3, vec![large])]);
    let mut responses = client.publish(requests).await.unwrap().into_inner();
    let first = responses.next().await.unwrap().unwrap();
    assert!(first.results.iter().all(is_committed));
    assert_eq!(responses.next().await.unwrap().unwrap_err().code(), Code::OutOfRange);

    let batch = PublishBatchRequest { packets: packets("after", 1) };
    committed(&client.publish_batch(batch).await.unwrap().into_inner().results[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_too_many_packets_is_refused_as_a_whole() {
    let world = World::with(&["grpc.max_packets=10"]).await;
    let batch = PublishBatchRequest { packets: packets("many", 11) };
    let status = world.client().await.publish_batch(batch).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status.get_error_details()), "REQUEST_TOO_MANY_PACKETS");
    assert!(world.records().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_repeat_or_jump_are_handed_back_as_they_came() {
    let world = World::start().await;
    let seqs = [7, 7, 1_000_000, 3];
    let requests: Vec<_> = seqs.iter().enumerate().map(|(n, seq)| request(*seq, packets(&n.to_string(), 2))).collect();
    let mut responses = world.client().await.publish(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut returned = Vec::new();
    while let Some(response) = responses.next().await {
        returned.extend(response.unwrap().results.iter().map(|result| result.seq));
    }
    returned.sort_unstable();
    assert_eq!(returned, [3, 4, 7, 7, 8, 8, 1_000_000, 1_000_001]);
}
