//! gRPC's part: a tonic server that decodes the load's requests and answers every packet, and a client that keeps it busy.
//!
//! The server runs on a runtime of its own, as ingest would. The client sends requests that were encoded before, so that the limit is
//! not the client's.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes};
use coderelay_schemas::pb::ingest_server::{Ingest, IngestServer};
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{
    Committed, PublishBatchRequest, PublishBatchResponse, PublishRequest, PublishResponse, PublishResult,
};
use coderelay_schemas::topics;
use futures::future::try_join_all;
use ingest::config::GrpcConfig;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::pool::Pool;
use super::span::Work;

/// TCP connections.
const CONNECTIONS: usize = 2;
/// Streams of each.
const STREAMS: usize = 2;
/// Packets that a stream has in flight.
const IN_FLIGHT: usize = 1024;

/// Exchanges requests of `per_request` packets without end.
pub(super) async fn echo(pool: &Pool, per_request: usize, work: Work) -> Result<()> {
    let server = EchoServer::start()?;
    let requests: Arc<[Bytes]> = pool.requests(per_request).into();
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address))?.tcp_nodelay(true);
        let channel = endpoint.connect().await.context("cannot connect to the echo server")?;
        for _ in 0..STREAMS {
            let task = tokio::spawn(exchange(channel.clone(), requests.clone(), IN_FLIGHT / per_request, work.clone()));
            streams.push(async { task.await? });
        }
    }
    try_join_all(streams).await.map(drop)
}

/// Sends requests over one stream, with `window` of them unanswered, and counts the results.
async fn exchange(channel: Channel, requests: Arc<[Bytes]>, window: usize, work: Work) -> Result<()> {
    let window = Arc::new(Semaphore::new(window));
    let (sender, outbound) = mpsc::channel(16);
    let sending = tokio::spawn({
        let (window, work) = (Arc::clone(&window), work.clone());
        async move {
            for request in requests.iter().cycle() {
                let Ok(permit) = window.acquire().await else { return };
                permit.forget();
                if !work.goes_on() || sender.send(request.clone()).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/coderelay.v1.Ingest/Publish");
    let call = client.streaming(Request::new(ReceiverStream::new(outbound)), path, EncodedRequests).await;
    let mut responses = call?.into_inner();
    while let Some(response) = responses.message().await? {
        work.add(response.results.len() as u64);
        window.add_permits(1);
    }
    sending.await?;
    Ok(())
}

/// Sends requests that are encoded already.
struct EncodedRequests;

impl Codec for EncodedRequests {
    type Encode = Bytes;
    type Decode = PublishResponse;
    type Encoder = Self;
    type Decoder = <ProstCodec<PublishRequest, PublishResponse> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<PublishRequest, PublishResponse>::default().decoder()
    }
}

impl Encoder for EncodedRequests {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(request);
        Ok(())
    }
}

/// A server on a runtime of its own, which ends when this is dropped.
struct EchoServer {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl EchoServer {
    fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let config = GrpcConfig::default();
        let server = Server::builder()
            .initial_stream_window_size(config.stream_window.get() as u32)
            .initial_connection_window_size(config.connection_window.get() as u32)
            .add_service(IngestServer::new(Echo).max_decoding_message_size(config.max_message_size.as_usize()));
        let address = {
            let _context = runtime.enter();
            let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?.with_nodelay(Some(true));
            let address = incoming.local_addr()?;
            runtime.spawn(server.serve_with_incoming(incoming));
            address
        };
        Ok(Self { address, runtime: Some(runtime) })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // A runtime must not be dropped inside another, since it waits for its threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Acknowledges every packet as soon as its request is decoded.
struct Echo;

#[tonic::async_trait]
impl Ingest for Echo {
    type PublishStream = ReceiverStream<Result<PublishResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(GrpcConfig::default().max_unanswered as usize);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if answers.send(Ok(answer(request))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_batch(&self, _: Request<PublishBatchRequest>) -> Result<Response<PublishBatchResponse>, Status> {
        Err(Status::unimplemented("streams only"))
    }
}

fn answer(request: PublishRequest) -> PublishResponse {
    let committed = |offset| Committed { topic: topics::PACKETS.to_owned(), partition: 1, offset };
    let result = |(k, packet): (u64, coderelay_schemas::pb::CodePacket)| PublishResult {
        seq: request.seq + k,
        packet_id: packet.packet_id,
        outcome: Some(Outcome::Committed(committed(k as i64))),
    };
    PublishResponse { results: (0..).zip(request.packets).map(result).collect() }
}
