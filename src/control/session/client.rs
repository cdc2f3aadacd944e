//! The agent's end of a session: [`ControlPlane`] over the transport, at whichever server leads.
//!
//! Each call goes to the present leader and, when that does not answer or leads no more, to the next, for
//! [`CALL_PATIENCE_MS`]. All of them can be repeated. The stream of assignments ends when another server leads: its state may
//! be newer. Must never call back into the agent. Made by `cluster`, one a member.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeStatus, Pod, Secret};
use phalanx_transport::Transport;
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::{ASSIGNMENT_FRAME_BYTES_MAX, ASSIGNMENTS_PATH, AgentEvent, Frame, Request, SESSION_PATH, SessionCall};
use crate::control::endpoint::LeaseStatus;
use crate::node::{AssignmentEvent, ControlPlane, ControlPlaneError, EventRecord, PodReport, ReportOutcome};

/// How long a call looks for a leader that answers, in milliseconds.
const CALL_PATIENCE_MS: u64 = 10_000;
/// How long one server may take to answer, in milliseconds: a write on a slow disk, or a leader that is being lost.
const ATTEMPT_MS: u64 = 5_000;
/// The pause before the same server is asked again, in milliseconds.
const PAUSE_MS: u64 = 50;
/// Assignments that wait for the agent; a full queue makes the leader wait, and in the end close the session.
const QUEUE_EVENTS: usize = 256;

/// The control plane, from afar.
pub struct RemoteControlPlane {
    transport: Transport,
    lease: watch::Receiver<LeaseStatus>,
}

impl RemoteControlPlane {
    /// `lease` tells who leads.
    pub fn new(transport: Transport, lease: watch::Receiver<LeaseStatus>) -> Arc<Self> {
        Arc::new(Self { transport, lease })
    }

    fn leader(&self) -> Option<(String, u64)> {
        self.lease.borrow().leader.clone()
    }

    /// Resolves when another leads than `known`.
    async fn leader_changed(&self, known: &Option<(String, u64)>) {
        let mut lease = self.lease.clone();
        if lease.wait_for(|status| status.leader != *known).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ControlPlaneError> {
        let body = serde_json::to_vec(request).map_err(|e| ControlPlaneError(e.to_string()))?;
        let call = SessionCall { body: ByteBuf::from(body) };
        let deadline = Instant::now() + Duration::from_millis(CALL_PATIENCE_MS);
        let mut last = "no server leads".to_owned();
        loop {
            let leader = self.leader();
            if let Some((name, _)) = &leader {
                let asked = self.transport.ask(name, SESSION_PATH, &call, Duration::from_millis(ATTEMPT_MS));
                tokio::select! {
                    answer = asked => match answer {
                        Ok(bytes) => {
                            return serde_json::from_slice(&bytes).map_err(|e| ControlPlaneError(e.to_string()));
                        }
                        Err(error) => last = error.to_string(),
                    },
                    // What it may have done already does no harm done twice.
                    () = self.leader_changed(&leader) => continue,
                }
            }
            if Instant::now() >= deadline {
                return Err(ControlPlaneError(last));
            }
            let pause = tokio::time::sleep(Duration::from_millis(PAUSE_MS));
            tokio::select! {
                () = pause => {}
                () = self.leader_changed(&leader) => {}
            }
        }
    }
}

#[async_trait]
impl ControlPlane for RemoteControlPlane {
    async fn register(&self, node: Node) -> Result<(), ControlPlaneError> {
        self.call(&Request::Register { node: Box::new(node) }).await
    }

    async fn assignments(&self) -> Result<mpsc::Receiver<AssignmentEvent>, ControlPlaneError> {
        let leader = self.leader();
        let Some((name, _)) = &leader else { return Err(ControlPlaneError("no server leads".into())) };
        // The sending half stays open for as long as the agent listens.
        let opened = self.transport.open_stream(name, ASSIGNMENTS_PATH, Bytes::new());
        let (send, recv) = tokio::select! {
            opened = opened => opened.map_err(|e| ControlPlaneError(e.to_string()))?,
            () = self.leader_changed(&leader) => return Err(ControlPlaneError("another server leads now".into())),
        };
        let codec = LengthDelimitedCodec::builder().max_frame_length(ASSIGNMENT_FRAME_BYTES_MAX).new_codec();
        let mut frames = FramedRead::new(recv, codec);
        let (events, receiver) = mpsc::channel(QUEUE_EVENTS);
        let mut lease = self.lease.clone();
        tokio::spawn(async move {
            let _send = send;
            // Of a snapshot that has not come whole yet.
            let mut gathering: Option<(usize, Vec<Arc<Pod>>)> = None;
            loop {
                if let Some((_, pods)) = gathering.take_if(|(wanted, pods)| pods.len() >= *wanted)
                    && events.send(AssignmentEvent::Snapshot(pods)).await.is_err()
                {
                    return;
                }
                let frame = tokio::select! {
                    frame = frames.next() => frame,
                    _ = lease.wait_for(|status| status.leader != leader) => return,
                    () = events.closed() => return,
                };
                let frame = match frame {
                    Some(Ok(bytes)) => serde_json::from_slice::<Frame<Pod>>(&bytes).map_err(std::io::Error::from),
                    Some(Err(error)) => Err(error),
                    None => return,
                };
                let event = match frame {
                    Ok(Frame::Snapshot { pods }) => {
                        gathering = Some((pods, Vec::new()));
                        continue;
                    }
                    Ok(Frame::Applied(pod)) => match &mut gathering {
                        Some((_, pods)) => {
                            pods.push(Arc::new(pod));
                            continue;
                        }
                        None => AssignmentEvent::Applied(Arc::new(pod)),
                    },
                    Ok(Frame::Removed { namespace, name, uid, grace_seconds }) => {
                        AssignmentEvent::Removed { namespace, name, uid, grace_seconds }
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the session with the control plane broke");
                        return;
                    }
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn report(&self, reports: Vec<PodReport>) -> Result<Vec<ReportOutcome>, ControlPlaneError> {
        self.call(&Request::Report { reports }).await
    }

    async fn node_status(&self, _: &str, status: NodeStatus) -> Result<(), ControlPlaneError> {
        self.call(&Request::NodeStatus { status: Box::new(status) }).await
    }

    async fn pod_terminated(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ControlPlaneError> {
        let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
        self.call(&Request::PodTerminated { namespace, name, uid }).await
    }

    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ControlPlaneError> {
        self.call(&Request::ConfigMap { namespace: namespace.to_owned(), name: name.to_owned() }).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ControlPlaneError> {
        self.call(&Request::Secret { namespace: namespace.to_owned(), name: name.to_owned() }).await
    }

    async fn record(&self, events: Vec<EventRecord>) -> Result<(), ControlPlaneError> {
        let events = events.into_iter().map(|event| AgentEvent {
            kind: event.kind.to_owned(),
            namespace: event.namespace,
            name: event.name,
            uid: event.uid,
            field_path: event.field_path,
            event_type: event.event_type,
            reason: event.reason.to_owned(),
            message: event.message,
            count: event.count,
        });
        self.call(&Request::Record { events: events.collect() }).await
    }
}
