//! The probe that writes: when is the next write acknowledged, and is it still there later?

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::NAMESPACE;
use crate::cli::CliError;
use crate::cli::client::ApiClient;
use crate::cli::text::{escape, query};

/// A new attempt at every server this often, whatever became of those before.
const WRITE_PERIOD: Duration = Duration::from_millis(5);
/// Attempts under way at one server; more wait.
const ATTEMPTS_MAX: usize = 128;
/// An attempt that takes longer has failed.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);
/// Label of what is written.
const LABEL: &str = "phalanx-demo-write";

/// The first write that a server acknowledged.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// When the acknowledgement came.
    pub at: Instant,
    /// Name of the ConfigMap.
    pub name: String,
}

/// Creates ConfigMaps at all these servers until one is acknowledged.
pub async fn first_accepted(clients: &[ApiClient], limit: Duration) -> Result<Accepted, CliError> {
    let mut loops = JoinSet::new();
    for client in clients {
        loops.spawn(attempts(client.clone()));
    }
    let first = tokio::time::timeout(limit, async {
        while let Some(ended) = loops.join_next().await {
            if let Ok(accepted) = ended {
                return Some(accepted);
            }
        }
        None
    });
    match first.await {
        Ok(Some(accepted)) => Ok(accepted),
        _ => Err(CliError::new(format!("no server accepted a write within {} s", limit.as_secs()))),
    }
}

async fn attempts(client: ApiClient) -> Accepted {
    let room = Arc::new(Semaphore::new(ATTEMPTS_MAX));
    let mut tick = tokio::time::interval(WRITE_PERIOD);
    let mut under_way: JoinSet<Option<Accepted>> = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = under_way.join_next(), if !under_way.is_empty() => {
                if let Ok(Some(accepted)) = ended {
                    return accepted;
                }
            }
            _ = tick.tick() => {
                let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                let client = client.clone();
                under_way.spawn(async move {
                    let _permit = permit;
                    let name = format!("{LABEL}-{}", uuid::Uuid::new_v4().simple());
                    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": {"name": name, "labels": {"app": LABEL}}, "data": {"written": "yes"}});
                    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
                    let answer = tokio::time::timeout(ATTEMPT_DEADLINE, client.post(&path, &object)).await;
                    matches!(answer, Ok(Ok(_))).then(|| Accepted { at: Instant::now(), name })
                });
            }
        }
    }
}

/// Whether a write that was acknowledged is there.
pub async fn is_there(client: &ApiClient, name: &str) -> Result<bool, CliError> {
    Ok(client.find(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{}", escape(name))).await?.is_some())
}

/// Deletes all that was written.
pub async fn clean(client: &ApiClient) -> Result<(), CliError> {
    let selector = query(&[("labelSelector", &format!("app={LABEL}"))]);
    client.delete(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps{selector}"), &json!({})).await?;
    Ok(())
}
