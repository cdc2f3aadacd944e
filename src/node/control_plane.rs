//! The seam to the control plane: what the agent needs of it, as a trait that the cluster implements over its transport.
//!
//! The agent never waits for it to keep containers running: every call may fail or hang for as long as a network does,
//! and is tried again. Implementations must not call back into the agent.
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeStatus, Pod, PodStatus, Secret};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// The control plane could not be reached, or would not serve; tried again later.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ControlPlaneError(pub String);

/// Which pods this node must run.
#[derive(Clone, Debug)]
pub enum AssignmentEvent {
    /// All of them. First in every session; a local pod that is not in it is stopped without grace.
    Snapshot(Vec<Arc<Pod>>),
    /// A pod is assigned, or an assigned one changed (its deletion has begun, for one).
    Applied(Arc<Pod>),
    /// The pod is none of this node's any more. It is stopped with this grace; `None`: the pod's own.
    Removed { namespace: String, name: String, uid: String, grace_seconds: Option<u64> },
}

/// The status of a pod, seen from its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub status: PodStatus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportOutcome {
    Ok,
    /// There is no such pod, or it has another uid, or it is another node's: it is stopped here.
    Gone,
}

/// Kubernetes' event types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something worth telling about a pod or about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// `Pod` or `Node`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `spec.containers{NAME}` where it is about one container.
    pub field_path: Option<String>,
    pub event_type: EventType,
    pub reason: &'static str,
    pub message: String,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    /// How often it happened since it was last recorded.
    pub count: u32,
}

/// What the agent asks of the control plane.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// Makes the node known, or updates it. First in every session.
    async fn register(&self, node: Node) -> Result<(), ControlPlaneError>;

    /// Opens the stream of assignments; a bounded channel, which closes when the session breaks.
    async fn assignments(&self) -> Result<mpsc::Receiver<AssignmentEvent>, ControlPlaneError>;

    /// Reports statuses. One outcome for each report, in order.
    async fn report(&self, reports: Vec<PodReport>) -> Result<Vec<ReportOutcome>, ControlPlaneError>;

    async fn node_status(&self, node: &str, status: NodeStatus) -> Result<(), ControlPlaneError>;

    /// Nothing of a deleted pod runs here any more: its object may go. Not an error when it is gone.
    async fn pod_terminated(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ControlPlaneError>;

    /// `None`: there is no such object.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ControlPlaneError>;

    /// `None`: there is no such object.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ControlPlaneError>;

    async fn record(&self, events: Vec<EventRecord>) -> Result<(), ControlPlaneError>;
}
