//! Connecting to the CQL cluster.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBuilder};
use coderelay_runtime::config::Secret;
use coderelay_runtime::tls::PemFiles;
use coderelay_schemas::cql;
use openssl::ssl::SslContext;
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{CqlConfig, CqlTlsConfig, Inserter};

/// Connects and prepares the statements; keeps trying until it succeeds or `stop` is cancelled, which gives `None`.
///
/// # Errors
/// Only for what trying again cannot mend: an unusable TLS configuration.
pub async fn connect(config: &CqlConfig, stop: &CancellationToken) -> anyhow::Result<Option<Arc<Inserter>>> {
    let tls = config.tls.enabled.then(|| tls_context(&config.tls)).transpose()?;
    let mut waits =
        ExponentialBuilder::default().with_min_delay(Duration::from_millis(250)).with_max_delay(Duration::from_secs(5));
    waits = waits.without_max_times();
    let mut waits = waits.build();
    loop {
        let attempt = async {
            let session = open(config, tls.clone()).await?;
            if config.create_schema {
                create_schema(&session, config).await?;
            }
            Inserter::prepare(session, config).await
        };
        let error = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            result = attempt => match result {
                Ok(inserter) => {
                    info!(contact_points = ?config.contact_points, keyspace = config.keyspace, "connected to the store");
                    return Ok(Some(Arc::new(inserter)));
                }
                Err(error) => error,
            },
        };
        warn!(error = format!("{error:#}"), "the store is not reachable yet; trying again");
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))) => {}
        }
    }
}

async fn open(config: &CqlConfig, tls: Option<SslContext>) -> anyhow::Result<Session> {
    let mut profile = ExecutionProfile::builder()
        .consistency(config.consistency.into())
        .request_timeout(Some(config.request_timeout.into()));
    if let Some(datacenter) = &config.datacenter {
        let policy = scylla::policies::load_balancing::DefaultPolicy::builder()
            .prefer_datacenter(datacenter.clone())
            .token_aware(true)
            .build();
        profile = profile.load_balancing_policy(policy);
    }
    let pool = NonZeroUsize::new(config.pool_size).unwrap_or(NonZeroUsize::MIN);
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.contact_points)
        .connection_timeout(config.connect_timeout.into())
        .pool_size(PoolSize::PerHost(pool))
        .tls_context(tls)
        .default_execution_profile_handle(profile.build().into_handle());
    if let Some(username) = &config.username {
        let password = config.password.as_ref().map(Secret::expose).unwrap_or_default();
        builder = builder.user(username, password);
    }
    builder.build().await.context("connecting to the store")
}

/// Creates keyspace and table where they are missing: for development. Production creates them by `schemas/cql`.
async fn create_schema(session: &Session, config: &CqlConfig) -> anyhow::Result<()> {
    let replication_factor = config.replication_factor;
    for statement in [cql::create_keyspace(&config.keyspace, replication_factor), cql::create_table(&config.keyspace)] {
        session.query_unpaged(statement, &[]).await.context("creating the schema")?;
    }
    session.await_schema_agreement().await.context("waiting for schema agreement")?;
    Ok(())
}

fn tls_context(config: &CqlTlsConfig) -> anyhow::Result<SslContext> {
    let files = PemFiles { ca: config.ca.as_deref(), cert: config.cert.as_deref(), key: config.key.as_deref() };
    files.context("cql.tls.", config.verify)
}
