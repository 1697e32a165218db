//! Damaged packets and requests, many of them: each gets an answer, and nobody else notices.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, BufMut};
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishBatchResponse, PublishRequest, PublishResponse};
use futures::StreamExt;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use crate::mutation::{Mutator, mutations};
use crate::world::{World, is_committed, refusal};

/// Mutated packets of one request.
const BATCH: usize = 200;

/// Calls at one time.
const CALLS: usize = 8;

/// What `ingest` may grow by, in MiB.
const GROWTH: u64 = 128;

#[tokio::test(flavor = "multi_thread")]
async fn every_mutated_packet_gets_exactly_one_status_and_its_neighbours_are_committed() {
    let world = World::start().await;
    let (before, committed) = (world.memory(), AtomicUsize::new(0));
    let batches = futures::stream::iter(0..mutations().div_ceil(BATCH) as u64);
    let publish = async |seed| {
        let mut mutator = Mutator::new(seed);
        let good = [mutator.good(), mutator.good()].map(|packet| packet.encode_to_vec());
        let [first, last] = good;
        let bad = (0..BATCH).map(|_| mutator.packet());
        let packets: Vec<_> = std::iter::once(first).chain(bad).chain([last]).collect();
        let results = world.publish_raw(packets).await;
        let seqs: Vec<_> = results.iter().map(|result| result.seq).collect();
        assert_eq!(seqs, (0..BATCH as u64 + 2).collect::<Vec<_>>(), "seed {seed}");
        assert!(is_committed(&results[0]) && is_committed(&results[BATCH + 1]), "seed {seed}: {results:?}");
        for result in &results {
            match &result.outcome {
                Some(Outcome::Committed(_)) => drop(committed.fetch_add(1, Ordering::Relaxed)),
                _ => assert_eq!(refusal(result).0, Code::InvalidArgument, "seed {seed}: {result:?}"),
            }
        }
    };
    batches.map(publish).buffer_unordered(CALLS).collect::<()>().await;

    let committed = committed.into_inner();
    assert_eq!(world.stored().await, committed as i64, "what is acknowledged is stored, and nothing else");
    let (peak, after) = (world.peak_memory(), world.memory());
    println!("{committed} of {} packets committed; {before} MiB before, {peak} at most, {after} after", mutations());
    assert!(peak - before < GROWTH, "grew from {before} to {peak} MiB");
    assert!(world.process.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_requests_are_answered_or_end_their_own_call() {
    let world = World::start().await;
    let (before, refused) = (world.memory(), AtomicUsize::new(0));
    let calls = futures::stream::iter(0..mutations().div_ceil(20) as u64);
    let publish = async |seed| {
        let mut mutator = Mutator::new(seed);
        let packets = (0..mutator.below(10)).map(|_| mutator.good()).collect();
        let request = PublishRequest { seq: seed, packets }.encode_to_vec();
        let outcome = if mutator.below(2) == 0 {
            unary(&world, mutator.damaged(&request)).await
        } else {
            let damaged = [request.clone(), mutator.damaged(&request), request].to_vec();
            streaming(&world, damaged).await
        };
        if let Err(status) = outcome {
            assert_eq!(status.code(), Code::InvalidArgument, "seed {seed}: {status}");
            refused.fetch_add(1, Ordering::Relaxed);
        }
    };
    calls.map(publish).buffer_unordered(CALLS).collect::<()>().await;

    let (peak, after) = (world.peak_memory(), world.memory());
    println!("{} calls ended; {before} MiB before, {peak} at most, {after} after", refused.into_inner());
    assert!(peak - before < GROWTH, "grew from {before} to {peak} MiB");
    world.idle().await;
    assert!(world.publish(vec![Mutator::new(0).good()]).await.iter().all(is_committed));
}

async fn unary(world: &World, message: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(world.channel().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/coderelay.v1.Ingest/PublishBatch");
    let response = client.unary(Request::new(message), path, Raw).await?.into_inner();
    let results = PublishBatchResponse::decode(&*response).unwrap().results;
    let seqs: HashSet<_> = results.iter().map(|result| result.seq).collect();
    assert_eq!(seqs.len(), results.len(), "each packet has one result");
    Ok(())
}

/// Good requests around the damaged one: that before it is answered whatever comes after it.
async fn streaming(world: &World, messages: Vec<Vec<u8>>) -> Result<(), Status> {
    let first = PublishRequest::decode(&*messages[0]).unwrap();
    let mut client = tonic::client::Grpc::new(world.channel().await);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/coderelay.v1.Ingest/Publish");
    let request = Request::new(tokio_stream::iter(messages));
    let mut responses = client.streaming(request, path, Raw).await?.into_inner();
    let (mut committed, mut end) = (0, Ok(()));
    while let Some(response) = responses.next().await {
        match response {
            Ok(message) => {
                let results = PublishResponse::decode(&*message).unwrap().results;
                committed += results.iter().filter(|result| is_committed(result)).count();
            }
            Err(status) => end = Err(status),
        }
    }
    assert!(committed >= first.packets.len(), "{committed} of {}: {end:?}", first.packets.len());
    end
}

/// Messages that are any bytes.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
