//! What a record looks like, and what the answers say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coderelay_schemas::packet_id::PacketId;
use coderelay_schemas::partition::partition_for;
use coderelay_schemas::pb::{CodePacket, PublishBatchRequest};
use prost::Message as _;
use rdkafka::message::{Message, Timestamp};
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::world::{PARTITIONS, World, committed, eventually, headers, is_committed, packet, packets, request};

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_as_the_contract_says() {
    let world = World::start().await;
    let sent = packet("acme/api", "fn main() {}");
    let before = now_ms();
    let results = world.publish(vec![sent.clone()]).await;
    let place = committed(&results[0]);
    assert_eq!(place.topic, world.topic);
    assert_eq!(place.partition, partition_for(b"acme/api", PARTITIONS));

    let records = world.records().await;
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((record.partition(), record.offset()), (place.partition, place.offset));
    assert_eq!(record.key(), Some(&b"acme/api"[..]));
    let Timestamp::CreateTime(timestamp) = record.timestamp() else { panic!("{:?}", record.timestamp()) };
    assert!((before..=now_ms()).contains(&timestamp));

    let id = PacketId::derive("acme/api", &sent.content, &sent.metadata);
    assert_eq!(results[0].packet_id, id.to_bytes());
    let headers = headers(record);
    assert_eq!(headers["packet-id"], id.to_string());
    assert_eq!(headers["region"], "test");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["schema"], "coderelay.v1.CodePacket");
    assert_eq!(headers["checked"], "gzip");
    assert_eq!(headers["traceparent"].len(), 55);
    assert_eq!(headers.len(), 6);

    let stored = CodePacket::decode(record.payload().unwrap()).unwrap();
    let created_at = stored.created_at.unwrap();
    assert!((before / 1000..=now_ms() / 1000).contains(&created_at.seconds));
    assert_eq!(stored, CodePacket { packet_id: id.to_bytes(), created_at: Some(created_at), ..sent });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_producer_filled_in_is_kept() {
    let world = World::start().await;
    let yesterday = SystemTime::now() - Duration::from_secs(23 * 3600);
    let sent = CodePacket {
        packet_id: vec![7; 16].into(),
        created_at: Some(yesterday.into()),
        metadata: [("path".to_owned(), "src/main.rs".to_owned())].into(),
        ..packet("acme/api", "fn main() {}")
    };
    let results = world.publish(vec![sent.clone()]).await;
    assert_eq!(results[0].packet_id, sent.packet_id);
    let records = world.records().await;
    assert_eq!(CodePacket::decode(records[0].payload().unwrap()).unwrap(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_every_packet_once_and_ends_well() {
    let world = World::start().await;
    let requests: Vec<_> = (0..50).map(|n| request(n * 20, packets(&n.to_string(), 20))).collect();
    let mut responses = world.client().await.publish(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut seqs = Vec::new();
    while let Some(response) = responses.next().await {
        for result in response.unwrap().results {
            committed(&result);
            seqs.push(result.seq);
        }
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (0..1000).collect::<Vec<_>>());
    assert_eq!(world.records().await.len(), 1000);
    assert!(world.metric("coderelay_ingest_results_total{reason=\"COMMITTED\"}").await >= 1000.0);
    assert!(world.metric("coderelay_ingest_acknowledgement_seconds_count").await >= 50.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_of_one_repository_stay_in_order() {
    let world = World::start().await;
    let requests: Vec<_> = (0..20).map(|n| request(n * 10, vec![packet("acme/one", &n.to_string()); 1])).collect();
    let mut responses = world.client().await.publish(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut offsets = Vec::new();
    while let Some(response) = responses.next().await {
        offsets.extend(response.unwrap().results.iter().map(|result| (result.seq, committed(result).offset)));
    }
    offsets.sort_unstable();
    assert!(offsets.windows(2).all(|pair| pair[0].1 < pair[1].1), "{offsets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_and_request_id_are_taken_and_passed_on() {
    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let world = World::start().await;
    let mut call = tonic::Request::new(PublishBatchRequest { packets: packets("trace", 1) });
    call.metadata_mut().insert("x-request-id", "build-42".parse().unwrap());
    call.metadata_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
    call.metadata_mut().insert("tracestate", "vendor=1".parse().unwrap());
    let response = world.client().await.publish_batch(call).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "build-42");
    let headers = headers(&world.records().await[0]);
    assert_eq!((&*headers["traceparent"], &*headers["tracestate"]), (TRACEPARENT, "vendor=1"));

    let stream = tokio_stream::iter([request(0, Vec::new())]);
    let response = world.client().await.publish(stream).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap().len(), 32, "made where there was none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_call_is_understood() {
    let world = World::start().await;
    let mut client = world.client().await.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let batch = PublishBatchRequest { packets: packets("compressed", 10) };
    let results = client.publish_batch(batch).await.unwrap().into_inner().results;
    assert!(results.iter().all(is_committed));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_readiness() {
    let world = World::start().await;
    let mut health = HealthClient::new(world.channel().await);
    for service in ["", "coderelay.v1.Ingest"] {
        eventually("health says serving", async || {
            let check = HealthCheckRequest { service: service.into() };
            HealthClient::new(world.channel().await).check(check).await.unwrap().into_inner().status == 1
        })
        .await;
    }
    let check = HealthCheckRequest { service: "coderelay.v1.Ingest".into() };
    let mut watch = health.watch(check).await.unwrap().into_inner();
    assert_eq!(watch.next().await.unwrap().unwrap().status, 1);
    let told = async { watch.next().await.unwrap().unwrap().status };
    let (told, ended) = tokio::join!(told, world.process.terminate());
    assert_eq!(told, 2, "a leaving instance tells its watchers");
    assert!(ended.unwrap().success(), "and a watcher does not hold it back");
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_describes_the_service() {
    let world = World::start().await;
    let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("coderelay.v1.PublishResult".into())),
        ask(MessageRequest::FileContainingSymbol("google.rpc.RetryInfo".into())),
    ];
    let mut client = ServerReflectionClient::new(world.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::iter(questions)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.next().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services")
    };
    assert!(list.service.iter().any(|service| service.name == "coderelay.v1.Ingest"));
    for _ in 0..2 {
        let answer = answers.next().await.unwrap().unwrap().message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn older_tools_find_reflection_too() {
    use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;

    let world = World::start().await;
    let question = MessageRequest::FileContainingSymbol("coderelay.v1.Ingest".into());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(world.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_method_is_unimplemented() {
    let world = World::start().await;
    let url = format!("http://127.0.0.1:{}/coderelay.v1.Ingest/Subscribe", world.port);
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let response = client.post(url).header("content-type", "application/grpc").send().await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
}
