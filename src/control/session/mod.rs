//! Sessions between agents and the leader: what the agent tells and asks, and the stream of its assignments.
//!
//! ```text
//!   agent                                   leader
//!   RemoteControlPlane ── SessionCall ────▶ SessionServer ──▶ registry
//!                      ◀── stream of frames ── Assignments ◀── the leader's copy of all pods
//! ```
//! Kubernetes' objects travel as JSON, so that neighbouring versions understand each other. Only the leader serves; an agent
//! whose leader changes opens a new session, which begins with everything. Assembled by `cluster`.

pub mod assignments;
pub mod client;
pub mod server;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use phalanx_transport::Remote;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::node::{EventType, PodReport, ReportOutcome};

/// The transport's path of [`SessionCall`].
pub const SESSION_PATH: &str = "session";
/// The transport's path of the stream of assignments.
pub const ASSIGNMENTS_PATH: &str = "session/assignments";
/// Largest frame of the stream, in bytes: Kubernetes' objects have at most 3 MiB as a request.
pub const ASSIGNMENT_FRAME_BYTES_MAX: usize = 4 << 20;

/// A [`Request`] as JSON.
#[derive(Serialize, Deserialize)]
pub struct SessionCall {
    body: ByteBuf,
}

impl Remote for SessionCall {
    const NAME: &'static str = "SessionCall";
    /// The answer as JSON.
    type Reply = ByteBuf;
}

/// What an agent says. It speaks for the node whose certificate it holds, and only for that.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Request {
    /// Answered with `null`.
    Register { node: Box<Node> },
    /// Answered with a list of [`ReportOutcome`].
    Report { reports: Vec<PodReport> },
    /// Answered with `null`.
    NodeStatus { status: Box<NodeStatus> },
    /// Answered with `null`.
    PodTerminated { namespace: String, name: String, uid: String },
    /// Answered with the object, or `null`.
    ConfigMap { namespace: String, name: String },
    /// Answered with the object, or `null`.
    Secret { namespace: String, name: String },
    /// Answered with `null`.
    Record { events: Vec<AgentEvent> },
}

/// An event on its way; see [`crate::node::EventRecord`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AgentEvent {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: Option<String>,
    event_type: EventType,
    reason: String,
    message: String,
    count: u32,
}

/// One frame of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Frame<P> {
    /// First in every stream: so many [`Frame::Applied`] follow, and together they are all there is.
    Snapshot {
        pods: usize,
    },
    Applied(P),
    #[serde(rename_all = "camelCase")]
    Removed {
        namespace: String,
        name: String,
        uid: String,
        grace_seconds: Option<u64>,
    },
}
