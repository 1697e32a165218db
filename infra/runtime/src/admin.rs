//! The admin port: `/metrics`, `/livez`, `/readyz`.

pub mod readiness;

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics;
pub use readiness::Readiness;

/// The admin port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
#[garde(allow_unvalidated)]
pub struct AdminConfig {
    /// Address and port of `/metrics`, `/livez` and `/readyz`; port 0 takes a free one. There is no authentication: open it to the
    /// network (`0.0.0.0:9464`) only where that is meant.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

/// A running admin server. Dropping it stops it.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

/// Binds and serves the admin port in the background. Keep it until the service has drained: `/readyz` says meanwhile that it drains.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(config: &AdminConfig, readiness: Readiness) -> io::Result<AdminServer> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        io::Error::new(error.kind(), format!("admin.listen {} cannot be bound: {error}", config.listen))
    })?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let task = tokio::spawn(axum::serve(listener, router(readiness)).with_graceful_shutdown(stopped).into_future());
    tracing::info!(%address, "admin server listens");
    Ok(AdminServer { address, stop, task })
}

impl AdminServer {
    /// The address in effect, also when port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting and waits for the requests under way.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        match (&mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "admin server failed"),
            Err(error) => tracing::warn!(%error, "admin server panicked"),
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn router(readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(expose))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/", get(|| async { "/metrics\n/livez\n/readyz?verbose\n" }))
        .with_state(readiness)
}

async fn expose() -> impl IntoResponse {
    match metrics::exposition() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], format!("{error}\n")),
    }
}

#[derive(Debug, Deserialize)]
struct ReadyQuery {
    verbose: Option<String>,
}

/// 200 or 503. Lists the checks when asked to and when one fails.
async fn ready(State(readiness): State<Readiness>, Query(query): Query<ReadyQuery>) -> impl IntoResponse {
    let ready = readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if ready && query.verbose.is_none() { "ok\n".to_owned() } else { readiness.to_string() };
    (status, text)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn on_a_free_port(readiness: &Readiness) -> AdminServer {
        let config = AdminConfig { listen: SocketAddr::from(([127, 0, 0, 1], 0)) };
        serve(&config, readiness.clone()).await.unwrap()
    }

    #[tokio::test]
    async fn readiness_says_what_is_wrong_and_liveness_does_not_care() {
        let readiness = Readiness::new(["kafka"]);
        let server = on_a_free_port(&readiness).await;
        let address = server.local_addr();

        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("[-]kafka failed: starting"), "{answer}");
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));

        readiness.set("kafka", Ok::<(), String>(()));
        let answer = get(address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n") && !answer.contains("kafka"),
            "{answer}"
        );
        assert!(get(address, "/readyz?verbose").await.contains("[+]kafka ok\nready\n"));

        readiness.drain();
        assert!(get(address, "/readyz").await.contains("[-]shutdown failed: shutting down"));
        server.shutdown().await;
        assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
    }

    #[tokio::test]
    async fn metrics_come_in_the_prometheus_text_format() {
        let server = on_a_free_port(&Readiness::default()).await;
        let answer = get(server.local_addr(), "/metrics").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("content-type: text/plain; version=0.0.4"),
            "{answer}"
        );
        assert!(answer.contains("process_cpu_seconds_total"), "{answer}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let server = on_a_free_port(&Readiness::default()).await;
        let config = AdminConfig { listen: server.local_addr() };
        let error = serve(&config, Readiness::default()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("admin.listen {}", server.local_addr())), "{error}");
    }
}
