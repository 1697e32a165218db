//! `relayctl health`: whether services are ready. Health checks of containers call it, where there is no curl.

use std::time::Duration;

use futures::future;
use serde::Serialize;

use crate::connect::{Connection, url};
use crate::exit::Exit;
use crate::output::{Output, Row};

/// A service that takes longer than this to answer is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ask services whether they are ready; exit code 1 where one is not
#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// Admin addresses [default: those of ingest and the processor]
    #[arg(value_name = "URL")]
    admin: Vec<String>,
}

/// One service's answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Health {
    admin: String,
    ready: bool,
    /// The checks as `/readyz?verbose` lists them, or why there was no answer.
    checks: String,
}

impl Row for Health {
    const HEADER: &'static [&'static str] = &["admin address", "ready", "checks"];

    fn cells(&self) -> Vec<String> {
        vec![self.admin.clone(), if self.ready { "yes" } else { "no" }.to_owned(), self.checks.clone()]
    }
}

/// Runs the verb: asks all at once.
pub(crate) async fn run(args: HealthArgs, connection: &Connection, output: &mut Output) -> anyhow::Result<Exit> {
    let default = || vec![connection.ingest_admin.clone(), connection.processor_admin.clone()];
    let addresses = if args.admin.is_empty() { default() } else { args.admin };
    // The services are beside this program: a proxy meant for the world would only be in the way.
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
    let answers = future::join_all(addresses.iter().map(|address| ask(&client, address))).await;
    output.list(&answers)?;
    Ok(if answers.iter().all(|answer| answer.ready) { Exit::Success } else { Exit::Failure })
}

async fn ask(client: &reqwest::Client, address: &str) -> Health {
    let admin = url(address.trim_end_matches('/'));
    let answer = async {
        let response = client.get(format!("{admin}/readyz?verbose")).send().await?;
        let ready = response.status().is_success();
        Ok::<_, reqwest::Error>((ready, response.text().await?))
    };
    let (ready, checks) = answer.await.unwrap_or_else(|error| (false, reason(&error)));
    Health { admin, ready, checks: checks.trim_end().to_owned() }
}

/// The innermost cause: "Connection refused" says more than "error sending request".
fn reason(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), reason)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `status` and `body`.
    async fn admin(status: &'static str, body: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let read = socket.read(&mut [0; 1024]).await.unwrap();
            assert!(read > 0, "no request");
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            socket.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn the_status_decides_and_the_checks_are_shown() {
        let client = reqwest::Client::new();
        let good = ask(&client, &admin("200 OK", "[+]kafka ok\nready\n").await).await;
        assert_eq!((good.ready, good.checks.as_str()), (true, "[+]kafka ok\nready"));
        let bad = ask(&client, &admin("503 Service Unavailable", "[-]store down\n").await).await;
        assert_eq!((bad.ready, bad.checks.as_str()), (false, "[-]store down"));
    }

    #[tokio::test]
    async fn nobody_there_is_not_ready_and_says_why() {
        let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let answer = ask(&reqwest::Client::new(), &unused).await;
        assert!(!answer.ready && answer.checks.contains("refused"), "{answer:?}");
    }
}
