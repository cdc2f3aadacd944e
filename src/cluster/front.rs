//! What a server's HTTPS face asks of the member: letting machines join, and showing the cluster.
//!
//! Must never answer for a node that it has not asked. Handed to the gateway by `member`.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use phalanx_actors::ActorInfo;
use phalanx_transport::Remote;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::logs;
use super::member::{MEMBERSHIP_PATH, Shared};
use super::membership::{Membership, MembershipError};
use super::status::{NodeAnswer, merge};
use crate::api::Status;
use crate::gateway::{ByteStream, ClusterView, JoinHandler, LogRequest, NodeAccess};
use crate::security::Authority;
use crate::security::join::JoinRequest;

/// How long a node may take to show its tree.
const TREE_DEADLINE: Duration = Duration::from_secs(2);

/// Asks a node for its supervision tree.
#[derive(Serialize, Deserialize)]
pub struct TreeRequest;

impl Remote for TreeRequest {
    const NAME: &'static str = "Tree";
    /// JSON, which a neighbouring version with more fields can still read.
    type Reply = String;
}

/// Asks a node for its view of itself.
#[derive(Serialize, Deserialize)]
pub struct StatusRequest;

impl Remote for StatusRequest {
    const NAME: &'static str = "Status";
    /// JSON.
    type Reply = String;
}

/// Lets machines in.
pub struct Door {
    /// Signs the newcomers' certificates.
    pub authority: Arc<Authority>,
    /// Admits them.
    pub membership: Membership,
}

#[async_trait]
impl JoinHandler for Door {
    async fn join(&self, body: Bytes, peer: SocketAddr) -> Result<Value, Status> {
        let request: JoinRequest =
            serde_json::from_slice(&body).map_err(|e| Status::bad_request(format!("not a join request: {e}")))?;
        let now_s = jiff::Timestamp::now().as_second();
        match self.membership.admit(&self.authority, &request, now_s).await {
            Ok(response) => {
                tracing::info!(node = request.node, role = ?request.role, %peer, "joined the cluster");
                serde_json::to_value(response).map_err(Status::internal)
            }
            Err(error) => {
                tracing::warn!(node = request.node, %peer, %error, "refused to let a machine join");
                let message = error.to_string();
                Err(match error {
                    MembershipError::Token(_) => {
                        let mut status = Status::unauthorized();
                        status.message = message;
                        status
                    }
                    MembershipError::Refused(_) => Status::bad_request(message),
                    MembershipError::Store(_) => Status::service_unavailable(message, 1),
                    MembershipError::Damaged { .. } => Status::internal(message),
                })
            }
        }
    }
}

/// Shows the cluster as this server sees it.
pub struct View {
    /// Weak: the member ends the gateway, not the other way round.
    pub shared: Weak<Shared>,
}

impl View {
    fn shared(&self) -> Result<Arc<Shared>, Status> {
        self.shared.upgrade().ok_or_else(|| Status::service_unavailable("the server is stopping", 1))
    }

    async fn node_tree(&self, shared: &Shared, node: &str, path: &str) -> Result<Vec<ActorInfo>, String> {
        let text = shared.transport.ask(node, MEMBERSHIP_PATH, &TreeRequest, TREE_DEADLINE).await;
        let actors: Vec<ActorInfo> =
            serde_json::from_str(&text.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        let inside = |a: &ActorInfo| {
            path.is_empty() || a.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Ok(actors.into_iter().filter(inside).collect())
    }
}

#[async_trait]
impl ClusterView for View {
    async fn status(&self) -> Result<Value, Status> {
        let shared = self.shared()?;
        let members = shared.members.read().clone();
        let asked = members.into_iter().map(|member| {
            let asked = shared.transport.ask(&member.name, MEMBERSHIP_PATH, &StatusRequest, TREE_DEADLINE);
            async move {
                let answer: Option<Value> = asked.await.ok().and_then(|text| serde_json::from_str(&text).ok());
                NodeAnswer {
                    server: member.server_id.is_some(),
                    running: None,
                    pid: answer.as_ref().and_then(|a| a["pid"].as_i64()),
                    name: member.name,
                    answer,
                }
            }
        });
        Ok(merge(&shared.node.cluster, &futures::future::join_all(asked).await))
    }

    async fn tree(&self, path: &str) -> Result<Value, Status> {
        let shared = self.shared()?;
        let names: Vec<String> = shared.members.read().iter().map(|m| m.name.clone()).collect();
        let path = path.trim_matches('/');
        let asked = names.iter().map(|node| self.node_tree(&shared, node, path));
        let nodes: Vec<Value> = futures::future::join_all(asked)
            .await
            .into_iter()
            .zip(&names)
            .map(|(answer, node)| match answer {
                Ok(actors) => json!({"node": node, "error": null, "actors": actors}),
                Err(error) => json!({"node": node, "error": error, "actors": []}),
            })
            .collect();
        Ok(json!({"nodes": nodes}))
    }
}

#[async_trait]
impl NodeAccess for View {
    async fn logs(&self, node: &str, request: LogRequest) -> Result<ByteStream, Status> {
        logs::open(&self.shared()?.transport, node, &request).await
    }

    async fn tree(&self, node: &str, path: &str) -> Result<Value, Status> {
        let shared = self.shared()?;
        let actors = self.node_tree(&shared, node, path.trim_matches('/')).await;
        actors.map(|a| json!(a)).map_err(|e| Status::service_unavailable(format!("node {node}: {e}"), 1))
    }
}
