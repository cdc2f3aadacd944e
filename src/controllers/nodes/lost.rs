//! Writes down that a node is lost or back.
//!
//! The order is: first the taint, so that nothing is placed there any more, then all pods at once. The writes of one step
//! are handed to the store together, which puts them into few entries of its log. Safe to repeat.

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};

use super::core;
use crate::api::Status;
use crate::registry::{Api, DeleteOptions, Registry, WriteOptions};

/// How often a write is tried again because somebody else wrote to the node in between.
const NODE_WRITE_TRIES: usize = 8;

/// What [`node_lost`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Nobody had marked the node before.
    pub marked: bool,
    /// How many pods are gone.
    pub evicted: usize,
}

/// Taints the node and marks it unknown, and force-deletes those of `pods` (all that it runs, as far as known) that do not
/// tolerate its loss. The node must be fenced: it runs nothing any more, or will stop it before
/// it is heard of again.
///
/// # Errors
/// When the node could not be marked. A pod that could not be deleted is logged and left to [`super::Nodes`].
pub async fn node_lost(registry: &Registry, node: &str, pods: Vec<Arc<Pod>>) -> Result<Loss, Status> {
    let now = Timestamp::now();
    let api: Api<Node> = registry.api();
    let seen = api.get_local(None, node).await?;
    let marked = core::marked_lost(&seen, now).unwrap_or_else(|| seen.clone());
    let going = core::lost_pods(&marked, &pods, now).now;
    // The taint comes first: what replaces these pods must not be placed there.
    let tainted = write(&api, node, Part::Spec, |node| core::marked_lost(node, now)).await?;
    let status = write(&api, node, Part::Status, |node| core::marked_lost(node, now));
    let (written, evicted) = futures::join!(status, evict(registry, &going));
    let marked = written? || tainted;
    Ok(Loss { marked, evicted })
}

/// Takes back what [`node_lost`] wrote on the node. Returns whether there was anything to take back.
pub async fn node_back(registry: &Registry, node: &str) -> Result<bool, Status> {
    let api = registry.api();
    // The taint goes last: a node that is not known to be ready takes no pods either way.
    let known = write(&api, node, Part::Status, |node| core::marked_back(node, Timestamp::now())).await?;
    let untainted = write(&api, node, Part::Spec, |node| core::marked_back(node, Timestamp::now())).await?;
    Ok(known || untainted)
}

/// Deletes without grace: there is nobody who could confirm. Returns how many are gone.
pub(super) async fn evict(registry: &Registry, pods: &[Arc<Pod>]) -> usize {
    let api: Api<Pod> = registry.api();
    let deleted = join_all(pods.iter().map(|pod| {
        let api = &api;
        let options =
            DeleteOptions { grace_period_seconds: Some(0), uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
        async move {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            api.delete(pod.metadata.namespace.as_deref(), name, &options).await
        }
    }))
    .await;
    let mut gone = 0;
    for (pod, result) in pods.iter().zip(deleted) {
        match result {
            Ok(_) => gone += 1,
            // Somebody else was first: the taint alone drives them away too.
            Err(status) if matches!(status.http_code(), 404 | 409) => gone += 1,
            Err(status) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                tracing::warn!(pod = name, %status, "a pod of a lost node could not be deleted");
            }
        }
    }
    gone
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Spec,
    Status,
}

/// Writes one part of a node as `change` makes it of the node's newest state. Returns whether there was a change.
async fn write(
    api: &Api<Node>,
    name: &str,
    part: Part,
    change: impl Fn(&Node) -> Option<Node>,
) -> Result<bool, Status> {
    let options = WriteOptions { field_manager: Some("node-lifecycle".to_owned()), ..WriteOptions::default() };
    let mut tries = 1;
    loop {
        let node = if tries == 1 { api.get_local(None, name).await? } else { api.get(None, name).await? };
        let Some(changed) = change(&node) else { return Ok(false) };
        let result = match part {
            Part::Spec if changed.spec != node.spec => api.update(&changed, &options).await,
            Part::Status if changed.status != node.status => api.update_status(&changed, &options).await,
            _ => return Ok(false),
        };
        match result {
            Err(status) if status.http_code() == 409 && tries < NODE_WRITE_TRIES => tries += 1,
            result => return result.map(|_| true),
        }
    }
}
