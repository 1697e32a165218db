//! Producers as they should be: whatever is not acknowledged is sent again with the same id, until it is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use coderelay_schemas::pb::ingest_client::IngestClient;
use coderelay_schemas::pb::publish_result::Outcome;
use coderelay_schemas::pb::{PublishBatchRequest, PublishRequest, PublishResult};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::history::{History, What};
use super::packets::Packets;
use super::plan::{Request, Version, Way};

/// How long an answer is waited for before the client goes and comes again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client that deserts its request stays.
const STAY: Duration = Duration::from_millis(3);
/// Before something is sent again.
const RETRY: Duration = Duration::from_millis(100);

/// One producer.
pub struct Producer {
    /// Its number.
    pub number: usize,
    /// Where each region's ingest listens. It begins with one by its number, and goes to the next when a request fails.
    pub endpoints: Vec<Endpoint>,
    /// What can be sent.
    pub packets: Arc<Packets>,
    /// Learns of everything.
    pub history: Arc<History>,
    /// When the time of its requests began.
    pub began: Instant,
    /// After how long without any acknowledgement it gives up. A machine that is merely slow goes on acknowledging.
    pub patience: Duration,
}

impl Producer {
    /// Sends `requests`, each until all of it is committed. The packets that were not when it gave up.
    pub async fn run(self, requests: Vec<Request>) -> Vec<Version> {
        // A new connection after each failure, as a client that was restarted has.
        let mut region = self.number % self.endpoints.len();
        let mut client = self.connect(region);
        let (mut missing, mut acknowledged) = (Vec::new(), Instant::now());
        for Request { at, way, packets } in requests {
            sleep_until(self.began + at).await;
            let (mut open, mut way) = (packets, way);
            while !open.is_empty() && acknowledged.elapsed() < self.patience {
                for version in &open {
                    self.history.add(What::Sent { producer: self.number, version: *version });
                }
                let before = open.len();
                if let Err(status) = self.attempt(&mut client, region, way, &mut open).await {
                    for version in &open {
                        let answer = format!("{:?}: {}", status.code(), status.message());
                        self.history.add(What::Failed { version: *version, answer });
                    }
                    region = (region + 1) % self.endpoints.len();
                    client = self.connect(region);
                }
                if open.len() < before {
                    acknowledged = Instant::now();
                }
                if way == Way::Deserted {
                    way = Way::Batch;
                } else if open.len() == before {
                    sleep(RETRY).await;
                }
            }
            missing.append(&mut open);
        }
        missing
    }

    fn connect(&self, region: usize) -> IngestClient<Channel> {
        IngestClient::new(self.endpoints[region].connect_lazy())
    }

    /// Sends `open` once and takes out of it what is committed.
    async fn attempt(
        &self,
        client: &mut IngestClient<Channel>,
        region: usize,
        way: Way,
        open: &mut Vec<Version>,
    ) -> Result<(), Status> {
        let encoded = open.iter().map(|version| self.packets.packet(*version));
        let packets: Vec<_> = encoded.collect::<Result<_>>().map_err(|error| Status::internal(error.to_string()))?;
        let sent = open.clone();
        let patience = if way == Way::Deserted { STAY } else { PATIENCE };
        let exchange = async {
            match way {
                Way::Batch | Way::Deserted => {
                    let answer = client.publish_batch(PublishBatchRequest { packets }).await?.into_inner();
                    for (version, result) in sent.iter().zip(&answer.results) {
                        self.settle(*version, region, result, open);
                    }
                }
                Way::Stream => {
                    let requests = (0..).zip(packets);
                    let requests = requests.map(|(seq, packet)| PublishRequest { seq, packets: vec![packet] });
                    let requests: Vec<_> = requests.collect();
                    let mut answers = client.publish(tokio_stream::iter(requests)).await?.into_inner();
                    while let Some(answer) = answers.next().await {
                        for result in &answer?.results {
                            let version = sent.get(result.seq as usize).ok_or_else(|| Status::internal("seq"))?;
                            self.settle(*version, region, result, open);
                        }
                    }
                }
            }
            Ok(())
        };
        let silent = || Status::new(Code::DeadlineExceeded, "the client did not wait longer");
        timeout(patience, exchange).await.unwrap_or_else(|_| Err(silent()))
    }

    fn settle(&self, version: Version, region: usize, result: &PublishResult, open: &mut Vec<Version>) {
        match &result.outcome {
            Some(Outcome::Committed(place)) => {
                let (partition, offset) = (place.partition, place.offset);
                self.history.add(What::Committed { version, region, partition, offset });
                // One of it only: a request may hold a packet twice.
                if let Some(index) = open.iter().position(|other| *other == version) {
                    open.remove(index);
                }
            }
            Some(Outcome::Error(status)) => {
                let answer = format!("{:?}: {}", Code::from(status.code), status.message);
                self.history.add(What::Failed { version, answer });
            }
            None => {}
        }
    }
}
