//! Assignments: takes them from the control plane, keeps them on disk, and has a Pod actor run for each.
//!
//! It never touches a container. On its start it goes by the disk alone, so that a node without a control plane runs what
//! it ran; the first snapshot then says what to stop.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use phalanx_actors::{Actor, Backoff, ChildError, ChildSpec, Ctx, Exit, Handler, Message, Reply, Restart, System};
use tokio::sync::Notify;

use super::control_plane::AssignmentEvent;
use super::disk::{Assignment, StopOrder, is_path_safe};
use super::pod::{PodActor, Wake, WhichUid};
use super::{Agent, Retry};

/// Kubernetes' default `terminationGracePeriodSeconds`.
pub(crate) const GRACE_SECONDS: u64 = 30;
/// Pods with this annotation, and pods of StatefulSets, must never run twice.
const EXCLUSIVE_ANNOTATION: &str = "phalanx.dev/exclusive";

/// The control plane does not know this pod.
pub struct Gone {
    pub uid: String,
}
impl Message for Gone {
    type Reply = ();
}

/// This node may have been declared dead: its exclusive pods must stop now, without grace. Answers how many there are.
pub struct Fence;
impl Message for Fence {
    type Reply = usize;
}

/// This node holds its lease, for the first time or again: its exclusive pods may run, those that the control plane still
/// assigns to it.
pub struct Unfence;
impl Message for Unfence {
    type Reply = ();
}

/// All of a pod is gone from here.
pub(crate) struct Finished {
    pub uid: String,
}
impl Message for Finished {
    type Reply = ();
}

struct Assign {
    /// [`Resync::round`] when its session began.
    round: u64,
    event: AssignmentEvent,
}
impl Message for Assign {
    type Reply = ();
}

/// The actor `sync`.
pub struct SyncActor {
    agent: Arc<Agent>,
    /// New pods whose name is still held by an old one that is stopping, by key.
    held_back: HashMap<String, Arc<Pod>>,
    /// Whether the node holds its lease.
    lease_held: bool,
    /// Whether a session that began since then has said what is this node's. Until then no exclusive pod is launched, whatever
    /// the disk or an earlier session says.
    trusted: bool,
    resync: Arc<Resync>,
}

/// Ends the present session with the control plane, so that the next begins with everything.
#[derive(Default)]
struct Resync {
    round: AtomicU64,
    ended: Notify,
}

impl SyncActor {
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent, held_back: HashMap::new(), lease_held: false, trusted: false, resync: Arc::default() }
    }

    fn pods_path(ctx: &Ctx<Self>) -> String {
        let parent = ctx.path().rsplit_once('/').map_or("", |(parent, _)| parent);
        format!("{parent}/pods")
    }

    fn apply(&mut self, event: AssignmentEvent, ctx: &mut Ctx<Self>) {
        match event {
            AssignmentEvent::Snapshot(pods) => {
                let assigned: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
                for known in self.agent.assignments.all() {
                    if !assigned.contains(known.uid()) {
                        self.stop(known, 0, ctx);
                    }
                }
                self.held_back.clear();
                self.trusted = self.lease_held;
                for pod in pods {
                    self.accept(pod, ctx);
                }
            }
            AssignmentEvent::Applied(pod) => self.accept(pod, ctx),
            AssignmentEvent::Removed { uid, grace_seconds, .. } => {
                self.held_back.retain(|_, pod| pod.metadata.uid.as_deref() != Some(&uid));
                if let Some(known) = self.agent.assignments.find(&uid) {
                    // An exclusive pod that is gone at once may be running elsewhere already.
                    let own = || if is_exclusive(&known.pod) { 0 } else { own_grace(&known.pod) };
                    let grace = grace_seconds.unwrap_or_else(own);
                    self.stop(known, grace, ctx);
                }
            }
        }
    }

    fn accept(&mut self, pod: Arc<Pod>, ctx: &mut Ctx<Self>) {
        if !is_path_safe(&pod) || pod.spec.is_none() {
            tracing::warn!(pod = ?pod.metadata.name, uid = ?pod.metadata.uid, "refused a pod with impossible names");
            return;
        }
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if let Some(mut known) = self.agent.assignments.find(&uid) {
            if known.stop.is_some_and(|stop| stop.fenced) {
                // Still stopping: it begins anew when all of it is gone.
                self.held_back.insert(known.key(), pod);
                return;
            }
            // A pod that was removed once does not come back to life: what ran is gone or going.
            if known.pod != pod && known.stop.is_none_or(|stop| !stop.removed) {
                // Only the spec and the deletion matter for what runs; a changed status alone is no reason to sync a disk.
                let changed = known.pod.metadata.deletion_timestamp != pod.metadata.deletion_timestamp
                    || known.pod.metadata.deletion_grace_period_seconds != pod.metadata.deletion_grace_period_seconds
                    || known.pod.spec != pod.spec
                    || known.pod.metadata.labels != pod.metadata.labels
                    || known.pod.metadata.annotations != pod.metadata.annotations
                    || foreign_conditions(&known.pod) != foreign_conditions(&pod);
                if changed {
                    known.pod = pod;
                    self.agent.assignments.put(known.clone());
                    self.wake(&known, ctx);
                }
            }
            if is_exclusive(&known.pod) {
                // It may have waited for the lease.
                self.launch(&known, ctx);
            }
            return;
        }
        let over = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if pod.metadata.deletion_timestamp.is_some() {
            return self.never_ran(pod, ctx);
        }
        if matches!(over, Some("Succeeded" | "Failed")) {
            return; // it had its run, of which nothing is left here; running it again would be wrong
        }
        let assignment = Assignment {
            ip: match pod.spec.as_ref().and_then(|spec| spec.host_network) {
                Some(true) => None,
                _ => self.agent.addresses.lock().assign(&uid),
            },
            pod: pod.clone(),
            accepted_at: Timestamp::now(),
            stop: None,
        };
        let key = assignment.key();
        if self.agent.assignments.all().iter().any(|other| other.key() == key) {
            self.agent.addresses.lock().release(&uid);
            self.held_back.insert(key, pod);
            return;
        }
        self.agent.assignments.put(assignment.clone());
        self.launch(&assignment, ctx);
    }

    fn stop(&mut self, known: Assignment, grace_seconds: u64, ctx: &mut Ctx<Self>) {
        let known = stopped(known, grace_seconds, false);
        self.agent.assignments.put(known.clone());
        self.wake(&known, ctx);
    }

    /// A deleted pod that this node never ran, or no longer knows: its object may go.
    fn never_ran(&self, pod: Arc<Pod>, ctx: &mut Ctx<Self>) {
        let agent = self.agent.clone();
        ctx.spawn(async move {
            let meta = &pod.metadata;
            let of = |text: &Option<String>| text.clone().unwrap_or_default();
            let (namespace, name, uid) = (of(&meta.namespace), of(&meta.name), of(&meta.uid));
            let mut retry = Retry::default();
            while let Err(error) = agent.control.pod_terminated(&namespace, &name, &uid).await {
                tracing::debug!(%error, %namespace, %name, "the end of a pod could not be told");
                tokio::time::sleep(retry.next()).await;
            }
        });
    }

    /// Tells the pod's actor to look at its assignment. One that does not run will do so by itself.
    fn wake(&self, assignment: &Assignment, ctx: &Ctx<Self>) {
        let path = format!("{}/{}", Self::pods_path(ctx), assignment.key());
        let _ = ctx.system().named::<PodActor>(&path).tell(Wake);
    }

    fn launch(&self, assignment: &Assignment, ctx: &mut Ctx<Self>) {
        if !self.trusted && is_exclusive(&assignment.pod) && assignment.stop.is_none() {
            return;
        }
        let (agent, system, path) = (self.agent.clone(), ctx.system(), Self::pods_path(ctx));
        let (key, uid) = (assignment.key(), assignment.uid().to_owned());
        ctx.spawn(async move { launch(agent, system, path, key, uid).await });
    }
}

/// Has a Pod actor run for the assignment, if it takes a while for an old one of the same name to end.
async fn launch(agent: Arc<Agent>, system: System, pods: String, key: String, uid: String) {
    let mut retry = Retry::default();
    let path = format!("{pods}/{key}");
    while agent.assignments.find(&uid).is_some() {
        let Some(supervisor) = system.supervisor(&pods) else {
            tokio::time::sleep(retry.next()).await;
            continue;
        };
        let (of, own) = (agent.clone(), uid.clone());
        let spec = ChildSpec::actor(key.clone(), move || PodActor::new(of.clone(), own.clone()))
            .restart(Restart::Transient)
            .backoff(Backoff::default());
        match supervisor.start_child(spec).await {
            Ok(_) => return,
            Err(ChildError::AlreadyStarted | ChildError::AlreadyPresent | ChildError::Restarting) => {
                let running = system.named::<PodActor>(&path).ask(WhichUid).await;
                if running.is_ok_and(|running| running == uid) {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, pod = %key, "cannot start the actor of a pod"),
        }
        tokio::time::sleep(retry.next()).await;
    }
}

/// The assignment with the order to stop it.
fn stopped(mut known: Assignment, grace_seconds: u64, fenced: bool) -> Assignment {
    let sooner = known.stop.map_or(grace_seconds, |stop| stop.grace_seconds.min(grace_seconds));
    // What the control plane has taken away for good stays away.
    let fenced = fenced && known.stop.is_none_or(|stop| stop.fenced || !stop.removed);
    known.stop = Some(StopOrder { grace_seconds: sooner, removed: true, fenced });
    known
}

pub(crate) fn own_grace(pod: &Pod) -> u64 {
    let spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    spec.map_or(GRACE_SECONDS, |seconds| seconds.max(0).unsigned_abs())
}

/// Conditions that others set, on which readiness may depend.
fn foreign_conditions(pod: &Pod) -> Vec<(&str, &str)> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let gates: HashSet<&str> = gates.map(|gate| &*gate.condition_type).collect();
    conditions.filter(|of| gates.contains(&*of.type_)).map(|of| (&*of.type_, &*of.status)).collect()
}

/// Whether a pod must never run twice: an annotation says so, or a StatefulSet owns it.
pub fn is_exclusive(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    meta.annotations.as_ref().and_then(|of| of.get(EXCLUSIVE_ANNOTATION)).is_some_and(|value| value == "true")
        || meta.owner_references.iter().flatten().any(|owner| owner.kind == "StatefulSet")
}

impl Actor for SyncActor {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        for known in self.agent.assignments.all() {
            self.launch(&known, ctx);
        }
        let (agent, me, resync) = (self.agent.clone(), ctx.self_ref(), self.resync.clone());
        ctx.spawn(async move {
            let mut retry = Retry::default();
            loop {
                let ended = tokio::select! {
                    ended = session(&agent, &me, &mut retry, resync.round.load(Ordering::SeqCst)) => ended,
                    () = resync.ended.notified() => {
                        retry.reset();
                        continue;
                    }
                };
                match ended {
                    Ok(()) => tracing::debug!("the session with the control plane ended"),
                    Err(error) => tracing::debug!(%error, "no session with the control plane"),
                }
                tokio::time::sleep(retry.next()).await;
            }
        });
        Ok(())
    }
}

async fn session(
    agent: &Agent,
    me: &phalanx_actors::Ref<SyncActor>,
    retry: &mut Retry,
    round: u64,
) -> Result<(), super::ControlPlaneError> {
    agent.control.register(agent.node_object()).await?;
    let mut assignments = agent.control.assignments().await?;
    while let Some(event) = assignments.recv().await {
        retry.reset();
        // Asked, not told: the next event waits in the bounded channel until this one is applied.
        if me.ask(Assign { round, event }).await.is_err() {
            break;
        }
    }
    Ok(())
}

impl Handler<Assign> for SyncActor {
    fn handle(&mut self, Assign { round, event }: Assign, ctx: &mut Ctx<Self>) -> Reply<()> {
        if round == self.resync.round.load(Ordering::SeqCst) {
            self.apply(event, ctx);
        }
        ().into()
    }
}

impl Handler<Gone> for SyncActor {
    fn handle(&mut self, Gone { uid }: Gone, ctx: &mut Ctx<Self>) -> Reply<()> {
        if let Some(known) = self.agent.assignments.find(&uid).filter(|known| known.stop.is_none()) {
            let grace = own_grace(&known.pod);
            self.stop(known, grace, ctx);
        }
        ().into()
    }
}

impl Handler<Fence> for SyncActor {
    fn handle(&mut self, _: Fence, ctx: &mut Ctx<Self>) -> Reply<usize> {
        (self.lease_held, self.trusted) = (false, false);
        let exclusive: Vec<Assignment> =
            self.agent.assignments.all().into_iter().filter(|known| is_exclusive(&known.pod)).collect();
        let count = exclusive.len();
        // All are told before anything is written: a slow disk must not give the last one time.
        let stopped: Vec<Assignment> = exclusive
            .into_iter()
            .map(|known| {
                let known = stopped(known, 0, true);
                self.agent.assignments.stage(known.clone());
                self.wake(&known, ctx);
                // One that waits for the lease has no actor yet that could look for what an earlier agent left running.
                self.launch(&known, ctx);
                known
            })
            .collect();
        let agent = self.agent.clone();
        ctx.spawn(async move {
            for known in stopped {
                // Unless it is all gone by now, or something else was written.
                if agent.assignments.find(known.uid()).as_ref() == Some(&known) {
                    agent.assignments.put(known);
                }
                tokio::task::yield_now().await;
            }
        });
        count.into()
    }
}

impl Handler<Unfence> for SyncActor {
    fn handle(&mut self, _: Unfence, _: &mut Ctx<Self>) -> Reply<()> {
        if !self.lease_held {
            self.lease_held = true;
            // What was assigned before may be somebody else's by now: only what the control plane says from now on counts.
            self.resync.round.fetch_add(1, Ordering::SeqCst);
            self.resync.ended.notify_one();
        }
        ().into()
    }
}

impl Handler<Finished> for SyncActor {
    fn handle(&mut self, Finished { uid }: Finished, ctx: &mut Ctx<Self>) -> Reply<()> {
        if let Some(known) = self.agent.assignments.find(&uid) {
            self.agent.assignments.remove(&uid);
            self.agent.addresses.lock().release(&uid);
            if let Some(next) = self.held_back.remove(&known.key()) {
                self.accept(next, ctx);
            }
        }
        ().into()
    }
}
