//! The scheduler's actor: feeds core and queue from watches, and writes what they decide.
//!
//! ```text
//!   pods, nodes --events--> Snapshot, Queue --place--> bind_many (up to BINDINGS_IN_FLIGHT batches under way)
//!                               ^                          |
//!                               +------ refused: forget ---+
//! ```
//!
//! Must never decide where a pod goes; must never wait in a handler. A pod that fits nowhere gets a FailedScheduling event
//! and the condition PodScheduled=False, both only when the reason is new.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use phalanx_actors::{Actor, ChildSpec, Ctx, Exit, TimerRef};
use tokio::sync::mpsc;

use super::core::Snapshot;
use super::fit::{Causes, Unschedulable};
use super::queue::Queue;
use super::requests::PodInfo;
use crate::api::Status;
use crate::registry::{ApiObject, Binding, EventType, InformerEvent, ObjectRef, Recorder, Registry, WriteOptions};

/// The name under which pods ask for this scheduler, and events are written.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// Pods that are placed in one turn and bound in one call.
const BATCH_PODS: usize = 1_024;
/// Batches whose bindings are under way; more wait in the queue.
const BINDINGS_IN_FLIGHT: usize = 4;
/// Events that are taken in one turn.
const BATCH_EVENTS: usize = 1_024;
/// Reports of unschedulable pods that are being written; more wait, as they are of no hurry.
const REPORTS_IN_FLIGHT: usize = 16;

/// Makes the receivers of pods and nodes: everything there is, `Resynced`, then changes.
pub type Subscribe<K> = Arc<dyn Fn() -> mpsc::Receiver<InformerEvent<K>> + Send + Sync>;

#[derive(Clone)]
pub struct SchedulerDeps {
    pub registry: Registry,
    pub recorder: Recorder,
    pub pods: Subscribe<Pod>,
    pub nodes: Subscribe<Node>,
}

/// The scheduler as a child of `control`.
pub fn scheduler_child(deps: SchedulerDeps) -> ChildSpec {
    ChildSpec::actor("scheduler", move || Scheduler::new(deps.clone()))
}

/// The actor.
pub struct Scheduler {
    deps: SchedulerDeps,
    snapshot: Snapshot,
    queue: Queue,
    /// The newest version of each waiting pod, for what is written about it.
    waiting: HashMap<Arc<str>, Arc<Pod>>,
    started: Instant,
    pods_synced: bool,
    nodes_synced: bool,
    in_flight: usize,
    reports: Reports,
    timer: Option<TimerRef>,
}

/// What is to be said about pods that fit nowhere.
#[derive(Default)]
struct Reports {
    /// The newest word on each pod.
    due: HashMap<Arc<str>, String>,
    writing: HashSet<Arc<str>>,
    /// What was said last, of those that still wait.
    said: HashMap<Arc<str>, String>,
}

impl Scheduler {
    fn new(deps: SchedulerDeps) -> Scheduler {
        Scheduler {
            deps,
            snapshot: Snapshot::new(),
            queue: Queue::new(),
            waiting: HashMap::new(),
            started: Instant::now(),
            pods_synced: false,
            nodes_synced: false,
            in_flight: 0,
            reports: Reports::default(),
            timer: None,
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn on_pod(&mut self, event: InformerEvent<Pod>) -> Causes {
        match event {
            InformerEvent::Applied { new, .. } => {
                let Some(uid) = new.metadata.uid.as_deref() else { return Causes::NONE };
                if is_waiting(&new) {
                    // One that is on its way to a node is shown without it until the binding comes by.
                    if !self.snapshot.is_accounted(uid) {
                        let info = PodInfo::of(&new);
                        self.waiting.insert(Arc::clone(&info.uid), new);
                        self.queue.add(info);
                    }
                    return Causes::NONE;
                }
                self.leave(uid);
                self.snapshot.upsert_pod(&new)
            }
            InformerEvent::Deleted(old) => {
                let Some(uid) = old.metadata.uid.as_deref() else { return Causes::NONE };
                self.leave(uid);
                self.snapshot.remove_pod(uid)
            }
            InformerEvent::Resynced => {
                self.pods_synced = true;
                Causes::NONE
            }
        }
    }

    fn on_node(&mut self, event: InformerEvent<Node>) -> Causes {
        match event {
            InformerEvent::Applied { new, .. } => self.snapshot.upsert_node(&new),
            InformerEvent::Deleted(old) => {
                self.snapshot.remove_node(old.metadata.name.as_deref().unwrap_or_default());
                Causes::NONE
            }
            InformerEvent::Resynced => {
                self.nodes_synced = true;
                Causes::NONE
            }
        }
    }

    /// The pod waits no more.
    fn leave(&mut self, uid: &str) {
        self.waiting.remove(uid);
        self.queue.remove(uid);
        self.reports.due.remove(uid);
        self.reports.said.remove(uid);
    }

    /// Places what can be placed and has it bound.
    fn work(&mut self, ctx: &mut Ctx<Self>) {
        // With half a picture pods would be placed on room that is taken.
        if !self.pods_synced || !self.nodes_synced {
            return;
        }
        while self.in_flight < BINDINGS_IN_FLIGHT {
            let now_ms = self.now_ms();
            let batch = self.queue.pop(BATCH_PODS, now_ms);
            if batch.is_empty() {
                break;
            }
            let mut placed = Vec::with_capacity(batch.len());
            for pod in batch {
                match self.snapshot.place(&pod) {
                    Ok(node) => {
                        self.snapshot.assume(&pod, node);
                        let node = self.snapshot.node_name(node).to_string();
                        placed.push((pod, node));
                    }
                    Err(why) => {
                        self.queue.failed(&pod.uid, why.causes, now_ms);
                        self.say(&pod, &why);
                    }
                }
            }
            if !placed.is_empty() {
                self.bind(placed, ctx);
            }
        }
        self.report(ctx);
        self.set_timer(ctx);
    }

    fn bind(&mut self, placed: Vec<(PodInfo, String)>, ctx: &mut Ctx<Self>) {
        self.in_flight += 1;
        let bindings = placed.iter().map(|(pod, node)| Binding {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            uid: pod.uid.to_string(),
            node: node.clone(),
        });
        let bindings = bindings.collect();
        let registry = self.deps.registry.clone();
        ctx.pipe(async move { registry.bind_many(bindings).await }, move |scheduler, results, ctx| {
            scheduler.in_flight -= 1;
            for ((pod, node), result) in placed.into_iter().zip(results) {
                scheduler.bound(&pod, &node, result);
            }
            scheduler.work(ctx);
        });
    }

    fn bound(&mut self, pod: &PodInfo, node: &str, result: Result<(), Status>) {
        match result {
            Ok(()) => {
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                self.deps.recorder.record(&about(pod), EventType::Normal, "Scheduled", &message, SCHEDULER_NAME);
                self.leave(&pod.uid);
            }
            Err(status) => {
                let now_ms = self.now_ms();
                let eased = self.snapshot.forget(&pod.uid);
                if matches!(status.http_code(), 404 | 409) {
                    // Gone, going, or somebody else's by now: the watch tells which.
                    tracing::debug!(pod = &*pod.name, node, %status, "a binding was refused");
                } else {
                    tracing::warn!(pod = &*pod.name, node, %status, "a binding failed; the pod is tried again");
                }
                self.queue.refused(&pod.uid, now_ms);
                self.queue.eased(eased, now_ms);
            }
        }
    }

    /// Notes why a pod waits; written when that is news.
    fn say(&mut self, pod: &PodInfo, why: &Unschedulable) {
        let message = why.to_string();
        if self.reports.said.get(&pod.uid) != Some(&message) {
            self.reports.said.insert(Arc::clone(&pod.uid), message.clone());
            self.reports.due.insert(Arc::clone(&pod.uid), message);
        }
    }

    fn report(&mut self, ctx: &mut Ctx<Self>) {
        while self.reports.writing.len() < REPORTS_IN_FLIGHT {
            let next = self.reports.due.keys().find(|uid| !self.reports.writing.contains(*uid)).cloned();
            let Some(uid) = next else { return };
            let Some(message) = self.reports.due.remove(&uid) else { return };
            let Some(pod) = self.waiting.get(&uid).cloned() else { continue };
            let about = ObjectRef::of_typed(&*pod);
            self.deps.recorder.record(&about, EventType::Warning, "FailedScheduling", &message, SCHEDULER_NAME);
            let Some(update) = with_condition(&pod, &message, Timestamp::now()) else { continue };
            self.reports.writing.insert(Arc::clone(&uid));
            let registry = self.deps.registry.clone();
            let write = async move {
                let options =
                    WriteOptions { field_manager: Some(SCHEDULER_NAME.to_owned()), ..WriteOptions::default() };
                registry.api::<Pod>().update_status(&update, &options).await
            };
            ctx.pipe(write, move |scheduler, written, ctx| {
                scheduler.reports.writing.remove(&uid);
                if let Err(status) = written {
                    // The pod changed meanwhile: said again with its next trial.
                    tracing::debug!(%status, "the condition of an unschedulable pod was not written");
                    scheduler.reports.said.remove(&uid);
                }
                scheduler.report(ctx);
            });
        }
    }

    /// Wakes up for backoffs and flushes; everything else comes as an event.
    fn set_timer(&mut self, ctx: &mut Ctx<Self>) {
        if let Some(timer) = self.timer.take() {
            timer.cancel();
        }
        if self.in_flight >= BINDINGS_IN_FLIGHT {
            return;
        }
        let Some(at_ms) = self.queue.next_ms() else { return };
        let delay = Duration::from_millis(at_ms.saturating_sub(self.now_ms()));
        self.timer =
            Some(ctx.pipe(tokio::time::sleep(delay), |scheduler: &mut Scheduler, (), ctx| scheduler.work(ctx)));
    }
}

impl Actor for Scheduler {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        pump((self.deps.nodes)(), Scheduler::on_node, ctx);
        pump((self.deps.pods)(), Scheduler::on_pod, ctx);
        Ok(())
    }
}

/// Takes events in batches, each followed by one round of work.
fn pump<K: ApiObject>(
    mut receiver: mpsc::Receiver<InformerEvent<K>>,
    on: fn(&mut Scheduler, InformerEvent<K>) -> Causes,
    ctx: &mut Ctx<Scheduler>,
) {
    let next = async move {
        let mut batch = Vec::new();
        receiver.recv_many(&mut batch, BATCH_EVENTS).await;
        (batch, receiver)
    };
    ctx.pipe(next, move |scheduler, (batch, receiver), ctx| {
        if batch.is_empty() {
            return ctx.stop(Exit::Error(format!("the watch of {}s ended", K::KIND)));
        }
        let mut eased = Causes::NONE;
        for event in batch {
            eased = eased.with(on(scheduler, event));
        }
        let now_ms = scheduler.now_ms();
        scheduler.queue.eased(eased, now_ms);
        scheduler.work(ctx);
        pump(receiver, on, ctx);
    });
}

/// Ours, without a node, neither ended nor going, and not held back by a gate.
fn is_waiting(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == SCHEDULER_NAME);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    ours && spec.node_name.as_deref().is_none_or(str::is_empty)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn about(pod: &PodInfo) -> ObjectRef {
    ObjectRef {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        ..ObjectRef::default()
    }
}

/// The pod with the condition PodScheduled=False; `None` when it says so already.
fn with_condition(pod: &Pod, message: &str, now: Timestamp) -> Option<Pod> {
    let mut update = pod.clone();
    let conditions = update.status.get_or_insert_default().conditions.get_or_insert_default();
    let old = conditions.iter().position(|condition| condition.type_ == "PodScheduled");
    let mut since = Time(now);
    if let Some(at) = old {
        let old = &conditions[at];
        if old.status == "False" {
            if old.message.as_deref() == Some(message) {
                return None;
            }
            since = old.last_transition_time.clone().unwrap_or(since);
        }
        conditions.remove(at);
    }
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(since),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    });
    Some(update)
}
