//! The leader's end of the sessions.
//!
//! Must never let a node speak for another (Kubernetes' NodeRestriction and node authoriser): the peer's certificate says
//! who asks. Made once on each server by `cluster`, and opened while that server leads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeStatus, Pod, Secret};
use parking_lot::RwLock;
use phalanx_transport::{Peer, SendStream, Transport};
use serde::Serialize;
use serde_bytes::ByteBuf;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::codec::{FramedWrite, LengthDelimitedCodec};

use super::assignments::Assignments;
use super::{
    ASSIGNMENT_FRAME_BYTES_MAX, ASSIGNMENTS_PATH, AgentEvent, Frame, ReportOutcome, Request, SESSION_PATH, SessionCall,
};
use crate::api::Status;
use crate::control::node::Standings;
use crate::controllers::pods::is_active;
use crate::node::node_info::keep_transitions;
use crate::node::{AssignmentEvent, EventType, PodReport, is_exclusive};
use crate::registry::{self, Api, ApiObject, DeleteOptions, ObjectRef, Recorder, Registry, StatusReport, WriteOptions};

/// How often a write is tried again because somebody else wrote in between.
const WRITE_TRIES: usize = 8;
/// An event that happened more often than this between two reports counts as this often.
const EVENT_REPEATS_MAX: u32 = 16;
/// How long an agent waits for its stream before it asks again.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// What kubectl shows as the role of a server's node.
pub const SERVER_LABEL: &str = "node-role.kubernetes.io/control-plane";
const NOT_LEADER: &str = "this server does not lead";

/// What serves sessions during one term.
#[derive(Clone)]
pub struct Desk {
    pub registry: Registry,
    pub recorder: Recorder,
    pub assignments: Assignments,
    pub standings: Standings,
    /// Raft's term.
    pub term: u64,
    /// Whether a node is a server.
    pub is_server: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

/// Serves the sessions of all agents while it is open.
#[derive(Clone, Default)]
pub struct SessionServer(Arc<RwLock<Option<Arc<Desk>>>>);

impl SessionServer {
    /// Serves on the transport; refuses until [`SessionServer::open`].
    pub fn start(transport: &Transport) -> Self {
        let server = Self::default();
        let calls = server.clone();
        transport.serve(SESSION_PATH, move |peer, call: SessionCall| {
            let desk = calls.desk();
            async move { desk.ok_or(NOT_LEADER)?.answer(&peer, &call.body).await }
        });
        let streams = server.clone();
        transport.serve_stream(ASSIGNMENTS_PATH, move |peer, _, send, _recv| {
            let desk = streams.desk();
            async move {
                let Some(desk) = desk else { return };
                // The desk is not kept: its end is the stream's end.
                let Ok(events) = tokio::time::timeout(OPEN_DEADLINE, desk.open(&peer.node)).await else { return };
                drop(desk);
                if let Err(error) = stream(events, send).await {
                    tracing::debug!(node = %peer.node, %error, "a session ended");
                }
            }
        });
        server
    }

    /// This server leads: sessions are served from now on.
    pub fn open(&self, desk: Desk) {
        *self.0.write() = Some(Arc::new(desk));
    }

    /// It leads no more. Open streams end as soon as the term's parts are dropped.
    pub fn close(&self) {
        *self.0.write() = None;
    }

    /// How many pods of a node have not ended; `None` on a server that does not lead.
    pub fn pods(&self, node: &str) -> Option<usize> {
        let pods = self.desk()?.assignments.pods(node);
        Some(pods.iter().filter(|pod| is_active(pod)).count())
    }

    fn desk(&self) -> Option<Arc<Desk>> {
        self.0.read().clone()
    }
}

async fn stream(mut events: mpsc::Receiver<AssignmentEvent>, send: SendStream) -> std::io::Result<()> {
    let codec = LengthDelimitedCodec::builder().max_frame_length(ASSIGNMENT_FRAME_BYTES_MAX).new_codec();
    let mut frames: FramedWrite<_, LengthDelimitedCodec> = FramedWrite::new(send, codec);
    while let Some(event) = events.recv().await {
        match event {
            AssignmentEvent::Snapshot(pods) => {
                frames.feed(encode(&Frame::<&Pod>::Snapshot { pods: pods.len() })?).await?;
                for pod in pods {
                    frames.feed(encode(&Frame::Applied(&*pod))?).await?;
                }
            }
            AssignmentEvent::Applied(pod) => frames.feed(encode(&Frame::Applied(&*pod))?).await?,
            AssignmentEvent::Removed { namespace, name, uid, grace_seconds } => {
                let removed = Frame::<&Pod>::Removed { namespace, name, uid, grace_seconds };
                frames.feed(encode(&removed)?).await?;
            }
        }
        // Everything that waits goes in few packets.
        if events.is_empty() {
            SinkExt::<Bytes>::flush(&mut frames).await?;
        }
    }
    // Not finished: the agent is to see an end that was not meant, and to come back.
    Ok(())
}

fn encode(frame: &impl Serialize) -> std::io::Result<Bytes> {
    Ok(serde_json::to_vec(frame)?.into())
}

impl Desk {
    /// Opens the stream of a node that holds its lease. An exclusive pod is in it only if the store still has it: the index
    /// may be a moment behind, and what was replaced must not begin again for that moment.
    async fn open(&self, node: &str) -> mpsc::Receiver<AssignmentEvent> {
        self.standings.held(node).await;
        self.assignments.synced().await;
        let pods: Api<Pod> = self.registry.api();
        for pod in self.assignments.pods(node).iter().filter(|pod| is_exclusive(pod)) {
            let (namespace, name) =
                (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref().unwrap_or_default());
            let stored = pods.get_local(namespace, name).await;
            if stored.is_ok_and(|stored| stored.metadata.uid == pod.metadata.uid) {
                continue;
            }
            self.assignments.forget(pod);
        }
        self.assignments.open(node).await
    }

    async fn answer(self: Arc<Self>, peer: &Peer, body: &[u8]) -> Result<ByteBuf, String> {
        let request: Request = serde_json::from_slice(body).map_err(|e| format!("not a request: {e}"))?;
        let node = peer.node.to_string();
        // Not to stop half way when the asker gives up.
        let work = tokio::spawn(async move {
            let value = match request {
                Request::Register { node: object } => json(&self.register(&node, *object).await?),
                Request::Report { reports } => json(&self.report(&node, reports).await?),
                Request::NodeStatus { status } => json(&self.node_status(&node, *status).await?),
                Request::PodTerminated { namespace, name, uid } => {
                    json(&self.pod_terminated(&node, &namespace, &name, &uid).await?)
                }
                Request::ConfigMap { namespace, name } => {
                    json(&self.fetch::<ConfigMap>(&node, &namespace, &name).await?)
                }
                Request::Secret { namespace, name } => json(&self.fetch::<Secret>(&node, &namespace, &name).await?),
                Request::Record { events } => {
                    self.record(&node, &events);
                    json(&())
                }
            };
            value.map_err(Status::internal)
        });
        match work.await {
            Ok(Ok(bytes)) => Ok(ByteBuf::from(bytes)),
            Ok(Err(status)) => Err(status.message),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn register(&self, name: &str, mut wanted: Node) -> Result<(), Status> {
        wanted.metadata.name = Some(name.to_owned());
        let is_server = (self.is_server)(name);
        if let Some(labels) = &mut wanted.metadata.labels {
            // Kubernetes' NodeRestriction: pods go by these labels, so no node may give them to itself.
            labels.retain(|label, _| match label.split_once('/').map(|(prefix, _)| prefix) {
                Some("node-role.kubernetes.io") => is_server && label == SERVER_LABEL,
                Some(prefix) => {
                    prefix != "node-restriction.kubernetes.io" && !prefix.ends_with(".node-restriction.kubernetes.io")
                }
                None => true,
            });
        }
        let nodes: Api<Node> = self.registry.api();
        for _ in 0..WRITE_TRIES {
            let known = match nodes.get(None, name).await {
                Ok(known) => known,
                Err(status) if status.http_code() == 404 => match nodes.create(None, &wanted, &options()).await {
                    Ok(created) => created,
                    Err(status) if status.http_code() == 409 => continue,
                    Err(status) => return Err(status),
                },
                Err(status) => return Err(status),
            };
            // What others put on the node stays; what the agent knows better is its own.
            let mut next = known.clone();
            next.metadata.labels.get_or_insert_default().extend(wanted.metadata.labels.clone().unwrap_or_default());
            if next.metadata.labels != known.metadata.labels {
                match nodes.update(&next, &options()).await {
                    Ok(_) => {}
                    Err(status) if status.http_code() == 409 => continue,
                    Err(status) => return Err(status),
                }
            }
            let status = wanted.status.clone().unwrap_or_default();
            return self.node_status(name, status).await;
        }
        Err(Status::conflict(nodes.kind()?, name, Status::MODIFIED))
    }

    async fn node_status(&self, name: &str, mut status: NodeStatus) -> Result<(), Status> {
        let nodes = self.registry.api::<Node>();
        let kind = nodes.kind()?.clone();
        // An agent that was started anew, or has a new leader, does not know since when.
        if let Some(known) = nodes.get_local(None, name).await?.status {
            keep_transitions(&mut status, &known);
        }
        let status = serde_json::to_value(status).map_err(Status::internal)?;
        let report = StatusReport { namespace: String::new(), name: name.to_owned(), uid: String::new(), status };
        self.registry.update_status_many(&kind, vec![report]).await.into_iter().try_for_each(|result| result.map(drop))
    }

    async fn report(&self, node: &str, reports: Vec<PodReport>) -> Result<Vec<ReportOutcome>, Status> {
        let kind = self.registry.api::<Pod>().kind()?.clone();
        let own: BTreeSet<String> =
            self.assignments.pods(node).iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let mut outcomes = vec![ReportOutcome::Ok; reports.len()];
        let (mut written, mut places) = (Vec::new(), Vec::new());
        for (place, report) in reports.into_iter().enumerate() {
            // The index may be behind; the newest state has the last word.
            if !own.contains(&report.uid) && !self.runs(node, &report.namespace, &report.name, &report.uid).await? {
                outcomes[place] = ReportOutcome::Gone;
                continue;
            }
            let status = serde_json::to_value(&report.status).map_err(Status::internal)?;
            written.push(StatusReport { namespace: report.namespace, name: report.name, uid: report.uid, status });
            places.push(place);
        }
        let results = self.registry.update_status_many_while(&kind, written.clone(), || self.leads()).await;
        for ((place, result), report) in places.into_iter().zip(results).zip(written) {
            match result {
                Ok(_) => {}
                // No such pod, another of the same name, or too many who write to it.
                Err(status) if matches!(status.http_code(), 404 | 409) => {
                    if self.runs(node, &report.namespace, &report.name, &report.uid).await? {
                        return Err(status);
                    }
                    outcomes[place] = ReportOutcome::Gone;
                }
                Err(status) => return Err(status),
            }
        }
        Ok(outcomes)
    }

    /// A report that was taken in this term must not be written in a later one, over newer ones of the same agent.
    fn leads(&self) -> Result<(), Status> {
        let office = self.registry.store().leadership().borrow().clone();
        match office.in_office && office.term == self.term {
            true => Ok(()),
            false => Err(Status::service_unavailable(NOT_LEADER, 0)),
        }
    }

    async fn runs(&self, node: &str, namespace: &str, name: &str, uid: &str) -> Result<bool, Status> {
        match self.registry.api::<Pod>().get(Some(namespace), name).await {
            Ok(pod) => Ok(pod.metadata.uid.as_deref() == Some(uid) && is_on(&pod, node)),
            Err(status) if status.http_code() == 404 => Ok(false),
            Err(status) => Err(status),
        }
    }

    async fn pod_terminated(&self, node: &str, namespace: &str, name: &str, uid: &str) -> Result<(), Status> {
        let pods: Api<Pod> = self.registry.api();
        let pod = match pods.get(Some(namespace), name).await {
            Ok(pod) => pod,
            Err(status) if status.http_code() == 404 => return Ok(()),
            Err(status) => return Err(status),
        };
        if pod.metadata.uid.as_deref() != Some(uid) || !is_on(&pod, node) {
            return Ok(());
        }
        let options =
            DeleteOptions { grace_period_seconds: Some(0), uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        match pods.delete(Some(namespace), name, &options).await {
            Ok(_) => Ok(()),
            Err(status) if matches!(status.http_code(), 404 | 409) => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// Only what a pod of the node names (Kubernetes' node authoriser). What is not there and what may not be seen look
    /// the same.
    async fn fetch<K: ApiObject>(&self, node: &str, namespace: &str, name: &str) -> Result<Option<K>, Status> {
        let named = self.assignments.pods(node).iter().any(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && serde_json::to_value(&pod.spec).is_ok_and(|spec| names(&spec, K::KIND, name))
        });
        if !named {
            tracing::debug!(node, namespace, name, kind = K::KIND, "no pod of the node names it");
            return Ok(None);
        }
        match self.registry.api::<K>().get(Some(namespace), name).await {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.http_code() == 404 => Ok(None),
            Err(status) => Err(status),
        }
    }

    fn record(&self, node: &str, events: &[AgentEvent]) {
        for event in events {
            let api_version = "v1".to_owned();
            let (kind, name) = match event.kind.as_str() {
                "Node" => ("Node", node),
                _ => ("Pod", event.name.as_str()),
            };
            let about = ObjectRef {
                api_version,
                kind: kind.to_owned(),
                namespace: event.namespace.clone(),
                name: name.to_owned(),
                uid: event.uid.clone(),
                field_path: event.field_path.clone().unwrap_or_default(),
                ..ObjectRef::default()
            };
            let event_type = match event.event_type {
                EventType::Normal => registry::EventType::Normal,
                EventType::Warning => registry::EventType::Warning,
            };
            for _ in 0..event.count.clamp(1, EVENT_REPEATS_MAX) {
                self.recorder.record_on(&about, event_type, &event.reason, &event.message, "kubelet", node);
            }
        }
    }
}

fn options() -> WriteOptions {
    WriteOptions { field_manager: Some("kubelet".to_owned()), ..WriteOptions::default() }
}

fn json(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(value)
}

fn is_on(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
}

/// Whether a pod's spec names a ConfigMap or a Secret: in the environment, in a volume, or to pull images.
fn names(spec: &Value, kind: &str, name: &str) -> bool {
    let (keys, volume, volume_field): (&[&str], _, _) = match kind {
        "ConfigMap" => (&["configMapKeyRef", "configMapRef"], "configMap", "name"),
        _ => (&["secretKeyRef", "secretRef", "imagePullSecrets"], "secret", "secretName"),
    };
    let is = |object: &Value, field: &str| match object {
        Value::Array(all) => all.iter().any(|object| object[field] == name),
        object => object[field] == name,
    };
    match spec {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            (keys.contains(&key.as_str()) && is(value, "name"))
                // In a projected volume it is called by its name even for a Secret.
                || (key == volume && (is(value, volume_field) || is(value, "name")))
                || names(value, kind, name)
        }),
        Value::Array(items) => items.iter().any(|item| names(item, kind, name)),
        _ => false,
    }
}
