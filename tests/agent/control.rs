//! A control plane in memory: the whole of the trait, with pods that tests apply, delete and watch.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Node, NodeStatus, Pod, PodStatus, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use phalanx::node::{AssignmentEvent, ControlPlane, ControlPlaneError, EventRecord, PodReport, ReportOutcome};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Control {
    state: Mutex<State>,
    changed: Notify,
    unreachable: AtomicBool,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Pod>,
    sessions: Vec<mpsc::Sender<AssignmentEvent>>,
    config_maps: BTreeMap<String, ConfigMap>,
    secrets: BTreeMap<String, Secret>,
    events: Vec<EventRecord>,
    /// Every status reported, with its pod's uid.
    history: Vec<(String, PodStatus)>,
    node: Option<Node>,
}

impl Control {
    fn check(&self) -> Result<(), ControlPlaneError> {
        match self.unreachable.load(Ordering::SeqCst) {
            true => Err(ControlPlaneError("cut off".into())),
            false => Ok(()),
        }
    }

    /// Breaks all sessions and refuses new ones.
    pub fn cut(&self) {
        self.unreachable.store(true, Ordering::SeqCst);
        self.state.lock().sessions.clear();
    }

    pub fn heal(&self) {
        self.unreachable.store(false, Ordering::SeqCst);
    }

    fn send(&self, event: AssignmentEvent) {
        self.state.lock().sessions.retain(|session| session.try_send(event.clone()).is_ok());
    }

    /// Creates or replaces a pod and assigns it. `spec` is the pod's; its first container is named `c` unless named.
    pub fn apply(&self, name: &str, uid: &str, spec: Value) {
        self.apply_with(name, uid, spec, json!({}));
    }

    /// A pod that must never run twice.
    pub fn apply_exclusive(&self, name: &str, uid: &str, spec: Value) {
        self.apply_with(name, uid, spec, json!({"phalanx.dev/exclusive": "true"}));
    }

    fn apply_with(&self, name: &str, uid: &str, mut spec: Value, annotations: Value) {
        for container in spec["containers"].as_array_mut().unwrap() {
            container.as_object_mut().unwrap().entry("name").or_insert("c".into());
        }
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "default", "uid": uid, "labels": {"app": "web"},
                "annotations": annotations}, "spec": spec}),
        )
        .unwrap();
        self.state.lock().pods.insert(uid.into(), pod.clone());
        self.send(AssignmentEvent::Applied(Arc::new(pod)));
    }

    /// As `kubectl delete`: the object stays until its node has stopped it.
    pub fn delete(&self, uid: &str, grace: i64) {
        let pod = {
            let mut state = self.state.lock();
            let pod = state.pods.get_mut(uid).unwrap();
            pod.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::now()));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            pod.clone()
        };
        self.send(AssignmentEvent::Applied(Arc::new(pod)));
    }

    /// As a forced deletion, or a replacement elsewhere: the object is gone at once.
    pub fn remove(&self, uid: &str, tell: bool) {
        let pod = self.state.lock().pods.remove(uid).unwrap();
        if tell {
            self.send(AssignmentEvent::Removed {
                namespace: "default".into(),
                name: pod.metadata.name.unwrap(),
                uid: uid.into(),
                grace_seconds: Some(0),
            });
        }
    }

    pub fn config_map(&self, name: &str, data: Value) {
        let map = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
        self.state.lock().config_maps.insert(name.into(), map);
    }

    pub fn secret(&self, name: &str, data: Value) {
        let secret = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
        self.state.lock().secrets.insert(name.into(), secret);
    }

    pub fn node(&self) -> Option<Node> {
        self.state.lock().node.clone()
    }

    pub fn exists(&self, uid: &str) -> bool {
        self.state.lock().pods.contains_key(uid)
    }

    pub fn status(&self, uid: &str) -> Option<PodStatus> {
        self.state.lock().pods.get(uid)?.status.clone()
    }

    pub fn history(&self, uid: &str) -> Vec<PodStatus> {
        self.state.lock().history.iter().filter(|(of, _)| of == uid).map(|(_, status)| status.clone()).collect()
    }

    /// Messages of the events about a pod with this reason.
    pub fn events(&self, uid: &str, reason: &str) -> Vec<String> {
        let state = self.state.lock();
        let of = state.events.iter().filter(|event| event.uid == uid && event.reason == reason);
        of.map(|event| event.message.clone()).collect()
    }

    /// Waits until `look` finds something; fails with the state of things.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look(self) {
                return found;
            }
            if tokio::time::Instant::now() > deadline {
                let state = self.state.lock();
                let statuses: Vec<_> =
                    state.pods.iter().map(|(uid, pod)| (uid, serde_json::to_string(&pod.status).unwrap())).collect();
                panic!("did not happen: {what}\npods: {statuses:#?}\nevents: {:#?}", state.events);
            }
            // Not everything that tests wait for passes through here.
            let _ = tokio::time::timeout(Duration::from_millis(10), changed).await;
        }
    }

    /// Waits for a status of the pod's first container.
    pub async fn container(&self, uid: &str, what: &str, is: impl Fn(&ContainerStatus) -> bool) -> ContainerStatus {
        self.until(&format!("{uid}: {what}"), |control| {
            control.status(uid)?.container_statuses?.into_iter().next().filter(&is)
        })
        .await
    }

    pub async fn phase(&self, uid: &str, phase: &str) -> PodStatus {
        let is = |status: &PodStatus| status.phase.as_deref() == Some(phase);
        self.until(&format!("{uid} is {phase}"), |control| control.status(uid).filter(is)).await
    }

    pub async fn ready(&self, uid: &str) -> PodStatus {
        self.until(&format!("{uid} is Ready"), |control| control.status(uid).filter(is_ready)).await
    }

    pub async fn event(&self, uid: &str, reason: &str) -> String {
        self.until(&format!("event {reason} of {uid}"), |control| control.events(uid, reason).pop()).await
    }

    pub async fn gone(&self, uid: &str) {
        self.until(&format!("{uid} is gone"), |control| (!control.exists(uid)).then_some(())).await;
    }
}

pub fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|of| of.type_ == "Ready" && of.status == "True")
}

#[async_trait]
impl ControlPlane for Control {
    async fn register(&self, node: Node) -> Result<(), ControlPlaneError> {
        self.check()?;
        self.state.lock().node = Some(node);
        Ok(())
    }

    async fn assignments(&self) -> Result<mpsc::Receiver<AssignmentEvent>, ControlPlaneError> {
        self.check()?;
        let mut state = self.state.lock();
        let (to, from) = mpsc::channel(64);
        let pods = state.pods.values().cloned().map(Arc::new).collect();
        to.try_send(AssignmentEvent::Snapshot(pods)).unwrap();
        state.sessions.push(to);
        Ok(from)
    }

    async fn report(&self, reports: Vec<PodReport>) -> Result<Vec<ReportOutcome>, ControlPlaneError> {
        self.check()?;
        let mut state = self.state.lock();
        let mut outcomes = Vec::new();
        for report in reports {
            let known = state.pods.get_mut(&report.uid);
            outcomes.push(if known.is_some() { ReportOutcome::Ok } else { ReportOutcome::Gone });
            if let Some(pod) = known {
                pod.status = Some(report.status.clone());
                state.history.push((report.uid, report.status));
            }
        }
        self.changed.notify_waiters();
        Ok(outcomes)
    }

    async fn node_status(&self, _: &str, status: NodeStatus) -> Result<(), ControlPlaneError> {
        self.check()?;
        if let Some(node) = &mut self.state.lock().node {
            node.status = Some(status);
        }
        Ok(())
    }

    async fn pod_terminated(&self, _: &str, _: &str, uid: &str) -> Result<(), ControlPlaneError> {
        self.check()?;
        self.state.lock().pods.remove(uid);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn config_map(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, ControlPlaneError> {
        self.check()?;
        Ok(self.state.lock().config_maps.get(name).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Secret>, ControlPlaneError> {
        self.check()?;
        Ok(self.state.lock().secrets.get(name).cloned())
    }

    async fn record(&self, events: Vec<EventRecord>) -> Result<(), ControlPlaneError> {
        self.check()?;
        self.state.lock().events.extend(events);
        self.changed.notify_waiters();
        Ok(())
    }
}
