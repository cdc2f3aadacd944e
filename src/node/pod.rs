//! The Pod actor: runs one pod's containers in order, says what its status is, and ends it when it is deleted.
//!
//! It supervises its Container actors (one_for_one; the restart types and delays do the restarting). It never starts a
//! process itself, and its own end, for any reason but the pod's, leaves the containers running.
//! Everything it knows comes from the assignment, from disk and from the containers' slots: a restarted Pod actor
//! finds its pod as it was.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerV1, ContainerStatus, PodStatus};
use phalanx_actors::{
    Actor, ChildSpec, Ctx, Exit, Handler, Message, Reply, Shutdown, Strategy, SupervisorRef, SupervisorSpec,
};
use tokio::sync::watch;
use tokio::time::Instant;

use super::container::{ContainerActor, Slot};
use super::control_plane::{EventType, PodReport};
use super::disk::Assignment;
use super::status::{ContainerView, Facts, Plan, RestartPolicy, RunState, Termination, plan, pod_status};
use super::sync::{Finished, GRACE_SECONDS, SyncActor, own_grace};
use super::{Agent, Retry, crash_loop};
use crate::runtime::{Runtime, SIGKILL_EXIT_CODE};

/// How often a pod that found no free address looks again.
const ADDRESS_RETRY_MS: u64 = 1_000;

/// Something changed: the assignment or a container.
pub struct Wake;
impl Message for Wake {
    type Reply = ();
}

/// `activeDeadlineSeconds` have passed.
struct DeadlineExceeded;
impl Message for DeadlineExceeded {
    type Reply = ();
}

/// Which pod of this name it is.
pub(crate) struct WhichUid;
impl Message for WhichUid {
    type Reply = String;
}

/// Runs one pod. See the module.
pub struct PodActor {
    agent: Arc<Agent>,
    uid: String,
    assignment: Option<Assignment>,
    init: Vec<Arc<Slot>>,
    containers: Vec<Arc<Slot>>,
    supervisor: Option<SupervisorRef>,
    /// Containers that the supervisor was told of.
    supervised: HashSet<String>,
    stop: watch::Sender<Option<Instant>>,
    status: Option<PodStatus>,
    /// Why no container can be started at all.
    blocked: Option<String>,
    /// The pod is over though its containers would run.
    failed: Option<(&'static str, &'static str)>,
    finishing: bool,
}

impl PodActor {
    pub(crate) fn new(agent: Arc<Agent>, uid: String) -> Self {
        Self {
            agent,
            uid,
            assignment: None,
            init: Vec::new(),
            containers: Vec::new(),
            supervisor: None,
            supervised: HashSet::new(),
            stop: watch::Sender::new(None),
            status: None,
            blocked: None,
            failed: None,
            finishing: false,
        }
    }

    /// Takes up the pod, as it is on disk.
    fn take_up(&mut self, assignment: Assignment, ctx: &mut Ctx<Self>) {
        let Some(spec) = assignment.pod.spec.clone() else { return };
        let class = spec.runtime_class_name.as_deref();
        let host_network = spec.host_network == Some(true);
        let mut assignment = assignment;
        if assignment.ip.is_none() && !host_network {
            assignment.ip = self.agent.addresses.lock().assign(&self.uid);
            if assignment.ip.is_some() {
                self.agent.assignments.put(assignment.clone());
            }
        }
        if let Some(seconds) = spec.active_deadline_seconds {
            let active = Timestamp::now().duration_since(assignment.accepted_at);
            let left = Duration::from_secs(seconds.max(0).unsigned_abs())
                .saturating_sub(Duration::try_from(active).unwrap_or_default());
            ctx.send_after(left, DeadlineExceeded);
        }
        let runtime = self.agent.runtimes.select(class);
        self.blocked = match (&runtime, assignment.ip) {
            (None, _) => Some(format!(
                "Failed to create pod sandbox: no runtime for {:?} is configured on node {}; it has: {}",
                class.unwrap_or_default(),
                self.agent.config.node,
                self.agent.runtimes.names().collect::<Vec<_>>().join(", ")
            )),
            (_, None) if !host_network => {
                ctx.send_after(Duration::from_millis(ADDRESS_RETRY_MS), Wake);
                Some("Failed to create pod sandbox: no free pod address on this node".to_owned())
            }
            _ => None,
        };
        if let Some(message) = &self.blocked {
            self.agent.recorder.pod(
                &assignment.pod,
                None,
                EventType::Warning,
                "FailedCreatePodSandBox",
                message.clone(),
            );
        }
        self.status = self.status.take().or_else(|| self.agent.layout.read_status(&self.uid));
        if let Some(known) = &self.status {
            // An earlier agent, or reporter, may have ended before this was told. Told twice it changes nothing.
            self.agent.board.put(self.report_of(&assignment, known.clone()));
        }
        self.assignment = Some(assignment);
        let Some(runtime) = runtime.filter(|_| self.blocked.is_none()) else { return };
        let init = spec.init_containers.unwrap_or_default();
        self.init = init.into_iter().map(|container| self.slot(container, true, &runtime)).collect();
        self.containers = spec.containers.into_iter().map(|container| self.slot(container, false, &runtime)).collect();
        self.supervisor = Some(ctx.supervise(SupervisorSpec::new("containers", Strategy::OneForOne).unlimited()));
    }

    fn slot(&self, container: ContainerV1, init: bool, runtime: &Arc<dyn Runtime>) -> Arc<Slot> {
        let (pod, ip) = match &self.assignment {
            Some(assignment) => (assignment.pod.clone(), assignment.ip),
            None => (Arc::default(), None),
        };
        let policy = pod.spec.as_ref().map_or(RestartPolicy::Always, RestartPolicy::of);
        let known = self.known_status(&container.name, init);
        let attempts = self.agent.layout.attempts(&self.uid, &container.name);
        let initializes =
            pod.spec.as_ref().is_some_and(|spec| spec.init_containers.as_ref().is_some_and(|i| !i.is_empty()));
        let (view, attempt, ended) = recollect(known, attempts.last().copied(), first_reason(initializes));
        Arc::new(Slot {
            agent: self.agent.clone(),
            pod,
            spec: container,
            init,
            policy,
            runtime: runtime.clone(),
            pod_ip: Some(ip.unwrap_or(self.agent.config.host_ip)),
            stop: self.stop.subscribe(),
            record: Slot::record(view, attempt, ended),
        })
    }

    fn known_status(&self, name: &str, init: bool) -> Option<&ContainerStatus> {
        let status = self.status.as_ref()?;
        let list = if init { &status.init_container_statuses } else { &status.container_statuses };
        list.as_ref()?.iter().find(|of| of.name == name)
    }

    /// Looks at everything anew and does what is due.
    fn evaluate(&mut self, ctx: &mut Ctx<Self>) {
        if self.finishing {
            return;
        }
        let Some(mut assignment) = self.agent.assignments.find(&self.uid) else {
            return ctx.stop(Exit::Normal);
        };
        if self.blocked.is_some() && assignment.ip.is_none() {
            self.take_up(assignment.clone(), ctx);
            assignment = self.assignment.clone().unwrap_or(assignment);
        }
        self.assignment = Some(assignment.clone());
        self.order_stop(&assignment);
        let stopping = self.stop.borrow().is_some();

        for slot in self.due(stopping) {
            self.supervise(slot, ctx);
        }
        if !assignment.stop.is_some_and(|stop| stop.removed) {
            self.report(&assignment);
        }
        let idle = self.init.iter().chain(&self.containers).all(|slot| {
            let record = slot.record.lock();
            !record.active && (record.attempt.is_none() || record.ended.is_some())
        });
        let leaving = assignment.stop.is_some() || assignment.pod.metadata.deletion_timestamp.is_some();
        if leaving && stopping && idle {
            self.finish(assignment, ctx);
        }
    }

    /// Tells the containers to stop, if the pod is to; sooner, if it is now to stop sooner.
    fn order_stop(&self, assignment: &Assignment) {
        let meta = &assignment.pod.metadata;
        let deleted = meta
            .deletion_timestamp
            .is_some()
            .then(|| meta.deletion_grace_period_seconds.map_or(GRACE_SECONDS, |seconds| seconds.max(0).unsigned_abs()));
        let grace = match (assignment.stop.map(|stop| stop.grace_seconds), deleted) {
            (Some(ordered), Some(deleted)) => ordered.min(deleted),
            (one, other) => match one.or(other) {
                Some(grace) => grace,
                None => return,
            },
        };
        self.stop_within(grace);
    }

    /// Has the containers stop within this many seconds; never later than they were told before.
    fn stop_within(&self, grace: u64) {
        let deadline = Instant::now() + Duration::from_secs(grace);
        self.stop.send_if_modified(|stop| match stop {
            Some(before) if *before <= deadline => false,
            _ => {
                *stop = Some(deadline);
                true
            }
        });
    }

    /// The containers that should have an actor and have none yet.
    fn due(&self, stopping: bool) -> Vec<Arc<Slot>> {
        let wanted = |slot: &&Arc<Slot>| {
            let record = slot.record.lock();
            !self.supervised.contains(slot.name()) && record.ended.is_none_or(|code| slot.restarts(code))
        };
        if stopping {
            // Only what runs already, so that it can be stopped.
            let all = self.init.iter().chain(&self.containers);
            return all.filter(|slot| slot.is_orphaned()).filter(wanted).cloned().collect();
        }
        let views: Vec<ContainerView> = self.init.iter().map(|slot| slot.view()).collect();
        let policy = self.policy();
        match plan(policy, &views) {
            Plan::Init(index) => self.init.get(index).filter(wanted).cloned().into_iter().collect(),
            Plan::Containers => self.containers.iter().filter(wanted).cloned().collect(),
            Plan::Nothing => Vec::new(),
        }
    }

    fn policy(&self) -> RestartPolicy {
        let spec = self.assignment.as_ref().and_then(|of| of.pod.spec.as_ref());
        spec.map_or(RestartPolicy::Always, RestartPolicy::of)
    }

    fn supervise(&mut self, slot: Arc<Slot>, ctx: &mut Ctx<Self>) {
        let Some(supervisor) = self.supervisor.clone() else { return };
        self.supervised.insert(slot.name().to_owned());
        slot.record.lock().active = true;
        let (me, of) = (ctx.self_ref(), slot.clone());
        let child = ChildSpec::actor(slot.name(), move || ContainerActor::new(of.clone(), me.clone()))
            .restart(slot.restart())
            .shutdown(Shutdown::Brutal) // it holds nothing that must be given back; the container stays
            .backoff(crash_loop::backoff(self.agent.config.crash_loop));
        ctx.pipe(async move { supervisor.start_child(child).await }, move |actor, started, ctx| {
            if let Err(error) = started {
                tracing::warn!(%error, container = slot.name(), "cannot start the actor of a container");
                slot.record.lock().active = false;
                actor.supervised.remove(slot.name());
                ctx.send_after(Duration::from_millis(ADDRESS_RETRY_MS), Wake);
            }
        });
    }

    fn report(&mut self, assignment: &Assignment) {
        let status = self.current_status(assignment);
        if self.status.as_ref() != Some(&status) {
            self.agent.layout.write_status(&self.uid, &status);
            self.agent.board.put(self.report_of(assignment, status.clone()));
            self.status = Some(status);
        }
    }

    fn report_of(&self, assignment: &Assignment, status: PodStatus) -> PodReport {
        PodReport {
            namespace: assignment.namespace().to_owned(),
            name: assignment.name().to_owned(),
            uid: self.uid.clone(),
            status,
        }
    }

    fn current_status(&self, assignment: &Assignment) -> PodStatus {
        let pod = &assignment.pod;
        let spec = pod.spec.as_ref();
        let count = |of: Option<&Vec<ContainerV1>>| of.map_or(0, Vec::len);
        let inits = count(spec.and_then(|spec| spec.init_containers.as_ref()));
        let views = |slots: &[Arc<Slot>], specs: usize| -> Vec<ContainerView> {
            if slots.is_empty() {
                let reason = first_reason(inits > 0);
                let mut view = ContainerView::initial(reason);
                view.state = RunState::Waiting { reason: reason.to_owned(), message: self.blocked.clone() };
                return vec![view; specs];
            }
            slots.iter().map(|slot| slot.view()).collect()
        };
        let host_ip = self.agent.config.host_ip.to_string();
        let pod_ip = match self.blocked {
            Some(_) => None,
            None => Some(assignment.ip.map_or(host_ip.clone(), |ip| ip.to_string())),
        };
        pod_status(&Facts {
            pod,
            init: &views(&self.init, inits),
            containers: &views(&self.containers, count(spec.map(|spec| &spec.containers))),
            host_ip: &host_ip,
            pod_ip: pod_ip.as_deref(),
            start_time: assignment.accepted_at,
            failed: self.failed,
            previous: self.status.as_ref(),
            now: Timestamp::now(),
        })
    }

    /// Nothing runs any more: tells the control plane, for as long as it takes, and clears the disk.
    fn finish(&mut self, assignment: Assignment, ctx: &mut Ctx<Self>) {
        self.finishing = true;
        self.agent.board.forget(&self.uid);
        let removed = assignment.stop.is_some_and(|stop| stop.removed);
        let last = self.report_of(&assignment, self.current_status(&assignment));
        let agent = self.agent.clone();
        let pods = ctx.path().rsplit_once('/').map_or("", |(parent, _)| parent);
        let parent = pods.rsplit_once('/').map_or("", |(parent, _)| parent);
        let sync = ctx.system().named::<SyncActor>(&format!("{parent}/sync"));
        let uid = self.uid.clone();
        ctx.pipe(
            async move {
                let (namespace, name) = (assignment.namespace(), assignment.name());
                let mut retry = Retry::default();
                while !removed && !assignment_was_removed(&agent, &uid) {
                    // The exit codes first: who watches the pod should see them.
                    let told = match agent.control.report(vec![last.clone()]).await {
                        Ok(_) => agent.control.pod_terminated(namespace, name, &uid).await,
                        Err(error) => Err(error),
                    };
                    let Err(error) = told else { break };
                    tracing::debug!(%error, %namespace, %name, "the end of a pod could not be told");
                    tokio::time::sleep(retry.next()).await;
                }
                let (layout, of) = (agent.layout.clone(), assignment.clone());
                let _ =
                    tokio::task::spawn_blocking(move || layout.remove_pod(of.namespace(), of.name(), of.uid())).await;
                // A sync actor that is just being restarted finds the assignment and starts a Pod actor that ends as this one.
                let _ = sync.ask(Finished { uid }).await;
            },
            |_, (), ctx| ctx.stop(Exit::Normal),
        );
    }
}

/// While the control plane could not be told, it said that the pod is none of ours.
fn assignment_was_removed(agent: &Agent, uid: &str) -> bool {
    agent.assignments.find(uid).is_none_or(|known| known.stop.is_some_and(|stop| stop.removed))
}

/// Why a container waits that was never started: kubelet says the same of all containers of a pod.
fn first_reason(initializes: bool) -> &'static str {
    if initializes { "PodInitializing" } else { "ContainerCreating" }
}

/// What is known of a container from before: its last status and the runs whose state is on disk.
fn recollect(
    known: Option<&ContainerStatus>,
    on_disk: Option<u32>,
    first_reason: &str,
) -> (ContainerView, Option<u32>, Option<i32>) {
    let mut view = ContainerView::initial(first_reason);
    if let Some(known) = known {
        let termination = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            let ended = state?.terminated.as_ref()?;
            Some(Termination {
                exit_code: ended.exit_code,
                signal: ended.signal,
                reason: ended.reason.clone().unwrap_or_default(),
                message: ended.message.clone(),
                started_at: ended.started_at.as_ref().map(|at| at.0),
                finished_at: ended.finished_at.as_ref().map_or_else(Timestamp::now, |at| at.0),
                container_id: ended.container_id.clone(),
            })
        };
        view.last = termination(known.last_state.as_ref());
        view.restart_count = u32::try_from(known.restart_count).unwrap_or(0);
        view.started = known.started == Some(true);
        view.ready = known.ready;
        view.container_id.clone_from(&known.container_id);
        // What was true stays so until the runtime says otherwise: an agent's restart is no change of any pod.
        let state = known.state.as_ref();
        if let Some(ended) = termination(state) {
            view.state = RunState::Terminated(ended);
        } else if let Some(running) = state.and_then(|state| state.running.as_ref()) {
            let started_at = running.started_at.as_ref().map_or_else(Timestamp::now, |at| at.0);
            view.state = RunState::Running { started_at };
        } else if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            view.state = RunState::Waiting {
                reason: waiting.reason.clone().unwrap_or_default(),
                message: waiting.message.clone(),
            };
        }
    }
    match (on_disk, &view.container_id) {
        // The runtime says what became of it.
        (Some(attempt), _) => (view, Some(attempt), None),
        (None, None) => (view, None, None),
        // It ran, and left nothing that outlives its agent (a task): it is gone.
        (None, Some(_)) => {
            let attempt = view.restart_count;
            let ended = match &view.state {
                RunState::Terminated(ended) => ended.exit_code,
                _ => {
                    view.state = RunState::Terminated(Termination {
                        exit_code: SIGKILL_EXIT_CODE,
                        signal: None,
                        reason: "ContainerStatusUnknown".to_owned(),
                        message: Some("The container ended with the agent that ran it".to_owned()),
                        started_at: None,
                        finished_at: Timestamp::now(),
                        container_id: view.container_id.clone(),
                    });
                    SIGKILL_EXIT_CODE
                }
            };
            view.started = false;
            view.ready = false;
            (view, Some(attempt), Some(ended))
        }
    }
}

impl Actor for PodActor {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        let Some(assignment) = self.agent.assignments.find(&self.uid) else {
            ctx.stop(Exit::Normal);
            return Ok(());
        };
        self.order_stop(&assignment);
        self.take_up(assignment, ctx);
        self.evaluate(ctx);
        Ok(())
    }
}

impl Handler<Wake> for PodActor {
    fn handle(&mut self, _: Wake, ctx: &mut Ctx<Self>) -> Reply<()> {
        self.evaluate(ctx);
        ().into()
    }
}

impl Handler<DeadlineExceeded> for PodActor {
    fn handle(&mut self, _: DeadlineExceeded, ctx: &mut Ctx<Self>) -> Reply<()> {
        let Some(assignment) = self.assignment.clone() else { return ().into() };
        let over = self.status.as_ref().and_then(|status| status.phase.as_deref());
        if !matches!(over, Some("Succeeded" | "Failed")) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.agent.recorder.pod(&assignment.pod, None, EventType::Normal, "DeadlineExceeded", message.to_owned());
            self.failed = Some(("DeadlineExceeded", message));
            self.stop_within(own_grace(&assignment.pod));
            self.evaluate(ctx);
        }
        ().into()
    }
}

impl Handler<WhichUid> for PodActor {
    fn handle(&mut self, _: WhichUid, _: &mut Ctx<Self>) -> Reply<String> {
        self.uid.clone().into()
    }
}
