//! Requests of the embedding program: to any server that runs, and to another one when that is gone or cut off.
//!
//! Must never be used for what may not be done twice.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::node::{Access, Node};
use super::{ClusterError, Inner};
use crate::api::Status;
use crate::registry::Registry;

/// A request is tried this long, at one server after the other, before it is given up.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
pub(super) const CALL_RETRY: Duration = Duration::from_millis(20);

impl Inner {
    /// A server that runs: the preferred one or the next; rather one that is not cut off.
    pub(super) fn server(&self) -> Option<Access> {
        let preferred = *self.preferred.lock();
        let (before, after) = self.nodes.split_at(preferred.min(self.nodes.len()));
        let servers = after.iter().chain(before).filter(|node| node.server).filter_map(Node::access);
        let servers: Vec<Access> = servers.collect();
        servers.iter().find(|server| !server.fenced()).or(servers.first()).cloned()
    }

    /// The next request goes to another server.
    pub(super) fn avoid(&self, name: &str) {
        if let Some(at) = self.nodes.iter().position(|node| node.name == name) {
            *self.preferred.lock() = (at + 1) % self.nodes.len();
        }
    }

    /// Who leads. One that is cut off may still believe it, so the newest term counts.
    pub(super) fn leader(&self) -> Option<String> {
        let servers = self.nodes.iter().filter_map(Node::access);
        let leading = servers.filter_map(|server| Some((server.leads()?, server.name)));
        leading.max().map(|(_, name)| name)
    }

    /// Does something at one server, and at another one when that fails; so it must not matter if it is done twice.
    pub(super) async fn call<T, F, Fut>(&self, work: F) -> Result<T, ClusterError>
    where
        F: Fn(Registry) -> Fut,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        self.attempt(work).await.1
    }

    /// As [`Inner::call`]; also tells whether an earlier try may have succeeded without its answer being heard.
    pub(super) async fn attempt<T, F, Fut>(&self, work: F) -> (bool, Result<T, ClusterError>)
    where
        F: Fn(Registry) -> Fut,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        self.attempt_at(|server| Some(work(server.shared.registry()?))).await
    }

    pub(super) async fn call_server<T, F, Fut>(&self, work: F) -> Result<T, ClusterError>
    where
        F: Fn(&Access) -> Fut,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        self.attempt_at(|server| Some(work(server))).await.1
    }

    async fn attempt_at<T, F, Fut>(&self, work: F) -> (bool, Result<T, ClusterError>)
    where
        F: Fn(&Access) -> Option<Fut>,
        Fut: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        let begun = Instant::now();
        let mut unsure = false;
        loop {
            if self.ended.is_cancelled() {
                return (unsure, Err(ClusterError::ShutDown));
            }
            let Some(server) = self.server() else { return (unsure, Err(ClusterError::NoServer)) };
            let outcome = match work(&server) {
                Some(work) => tokio::select! {
                    outcome = server.run(work) => outcome,
                    () = self.better_than(&server) => None,
                },
                None => None,
            };
            let why = match outcome {
                Some(Ok(done)) => return (unsure, Ok(done)),
                Some(Err(status)) if is_passing(&status) => {
                    unsure |= status.http_code() == 504;
                    status.to_string()
                }
                Some(Err(status)) => return (unsure, Err(status.into())),
                None => {
                    unsure = true;
                    format!("{} was stopped, or is cut off", server.name)
                }
            };
            if begun.elapsed() >= CALL_DEADLINE {
                return (unsure, Err(ClusterError::Unavailable { after: CALL_DEADLINE, why }));
            }
            self.avoid(&server.name);
            tokio::time::sleep(CALL_RETRY).await;
        }
    }

    /// Resolves when the server knows that it is cut off, and another one is not.
    async fn better_than(&self, server: &Access) {
        let mut lease = server.shared.leases.status();
        loop {
            if lease.wait_for(|lease| lease.fenced).await.is_err() {
                // It ends, and so does what it does.
                std::future::pending::<()>().await;
            }
            if self.server().is_some_and(|other| !other.fenced()) {
                return;
            }
            tokio::time::sleep(CALL_RETRY).await;
        }
    }
}

/// Whether another try, maybe at another server, may do better.
pub(super) fn is_passing(status: &Status) -> bool {
    matches!(status.http_code(), 503 | 504)
}
