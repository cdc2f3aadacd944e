//! The Container actor: one incarnation is one run of a container, and the run's end is the actor's exit.
//!
//! ```text
//! begin ─> runtime.start ─> postStart ─> running ──exit──> Exit::Normal (0) or Exit::Error: the supervisor's business
//!   │            │                        │  ▲
//!   │     cannot be made: wait, again     │  probes: startup, then readiness and liveness
//!   └ adopt: a run that outlived its actor or its agent
//! ```
//! What must outlive an incarnation is in the [`Slot`], which the Pod actor reads. An incarnation that ends in any other
//! way than its container's end (a panic, the agent's shutdown) leaves the container running; the next one adopts it.
//! When the pod is to stop, the container is stopped and the actor stays, so that nobody starts it again.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerV1, Pod, Probe};
use parking_lot::Mutex;
use phalanx_actors::{Actor, Ctx, Exit, Ref, Restart};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Agent;
use super::control_plane::EventType;
use super::crash_loop::{CrashLoop, go_duration};
use super::env::{self, NodeFacts, SourceKind, Sources};
use super::pod::{PodActor, Wake};
use super::probe::{ProbeKind, ProbeState, ProbeTimes};
use super::prober::ProbeAction;
use super::status::{ContainerView, RestartPolicy, RunState, Termination};
use super::sync::is_exclusive;
use crate::runtime::{
    Container, ContainerSpec, ExitStatus, Runtime, RuntimeError, SIGKILL_EXIT_CODE, START_ERROR_EXIT_CODE,
};

const SIGTERM: i32 = 15;
/// A container that cannot be made as it is written is tried again after pauses up to this long: what it lacks (a
/// ConfigMap, for one) may come.
const CONFIG_RETRY_MS_MAX: u64 = 10_000;
const CONFIG_RETRY_MS_FIRST: u64 = 500;
/// kubelet: what a preStop hook that used up the grace period leaves for SIGTERM.
const AFTER_PRE_STOP_MS: u64 = 2_000;
const KILL_RETRY_MS: u64 = 500;
/// kubelet: at most this much of a termination message.
const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;
/// kubelet: `FallbackToLogsOnError` takes this much of the log's end.
const LOG_MESSAGE_BYTES_MAX: usize = 2048;
const LOG_MESSAGE_LINES_MAX: usize = 80;

/// What lasts of a container while its actor comes and goes. Shared by the Pod actor and the incarnations.
pub(crate) struct Slot {
    pub(crate) agent: Arc<Agent>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) spec: ContainerV1,
    pub(crate) init: bool,
    pub(crate) policy: RestartPolicy,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// `None` for pods on the host's network without an address of their own.
    pub(crate) pod_ip: Option<std::net::IpAddr>,
    /// When set: stop by then.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
    pub(crate) record: Mutex<Record>,
}

pub(crate) struct Record {
    pub(crate) view: ContainerView,
    /// The run that was begun last.
    pub(crate) attempt: Option<u32>,
    /// How that run ended; `None` while it may be running.
    pub(crate) ended: Option<i32>,
    handle: Option<Arc<dyn Container>>,
    crash: CrashLoop,
    /// An incarnation is about to start, runs or stops something.
    pub(crate) active: bool,
}

impl Slot {
    pub(crate) fn record(view: ContainerView, attempt: Option<u32>, ended: Option<i32>) -> Mutex<Record> {
        Mutex::new(Record { view, attempt, ended, handle: None, crash: CrashLoop::default(), active: false })
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn view(&self) -> ContainerView {
        self.record.lock().view.clone()
    }

    /// restartPolicy as the supervisor's restart type; an init container has done its work when it succeeds.
    pub(crate) fn restart(&self) -> Restart {
        match (self.policy, self.init) {
            (RestartPolicy::Never, _) => Restart::Temporary,
            (RestartPolicy::OnFailure, _) | (_, true) => Restart::Transient,
            (RestartPolicy::Always, false) => Restart::Permanent,
        }
    }

    pub(crate) fn restarts(&self, exit_code: i32) -> bool {
        match self.init {
            true => self.policy != RestartPolicy::Never && exit_code != 0,
            false => self.policy.restarts(exit_code),
        }
    }

    /// Whether something runs, or may run, that nobody watches yet.
    pub(crate) fn is_orphaned(&self) -> bool {
        let record = self.record.lock();
        record.attempt.is_some() && record.ended.is_none()
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn pod_name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn dir(&self, attempt: u32) -> PathBuf {
        self.agent.layout.attempt(self.uid(), self.name(), attempt)
    }

    fn log_path(&self, attempt: u32) -> PathBuf {
        let logs = self.agent.layout.pod_logs(self.namespace(), self.pod_name(), self.uid());
        logs.join(self.name()).join(format!("{attempt}.log"))
    }

    fn event(&self, kind: EventType, reason: &'static str, message: String) {
        let list = if self.init { "initContainers" } else { "containers" };
        self.agent.recorder.pod(&self.pod, Some(format!("spec.{list}{{{}}}", self.name())), kind, reason, message);
    }

    fn grace(&self) -> Duration {
        let asked = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        Duration::from_secs(asked.map_or(super::sync::GRACE_SECONDS, |seconds| seconds.max(0).unsigned_abs()))
    }

    /// Everything that the runtime must know for a run.
    async fn container_spec(&self, attempt: u32) -> Result<ContainerSpec, RuntimeError> {
        // A container that finds its files missing tells less.
        if let Some(mount) = self.spec.volume_mounts.iter().flatten().next() {
            return Err(RuntimeError::Config(format!(
                "container {:?} mounts volume {:?} at {}, and this node mounts no volumes",
                self.name(),
                mount.name,
                mount.mount_path
            )));
        }
        let facts = NodeFacts {
            node_name: self.agent.config.node.clone(),
            host_ip: self.agent.config.host_ip.to_string(),
            pod_ip: self.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            allocatable: self.agent.allocatable(),
        };
        let sources = self.sources().await?;
        let env = env::resolve(&self.pod, &self.spec, &facts, &sources)
            .map_err(|error| RuntimeError::Config(error.to_string()))?;
        let working_dir = match &self.spec.working_dir {
            Some(dir) => PathBuf::from(dir),
            None => {
                let dir = self.agent.layout.pod_work(self.uid()).join(self.name());
                tokio::fs::create_dir_all(&dir).await.map_err(RuntimeError::io("cannot create", &dir))?;
                dir
            }
        };
        let port = self.spec.ports.iter().flatten().next().and_then(|port| u16::try_from(port.container_port).ok());
        Ok(ContainerSpec {
            id: format!("{}_{}_{attempt}", self.uid(), self.name()),
            namespace: self.namespace().to_owned(),
            pod: self.pod_name().to_owned(),
            pod_uid: self.uid().to_owned(),
            container: self.name().to_owned(),
            attempt,
            command: env::expand_all(self.spec.command.as_ref(), &env),
            args: env::expand_all(self.spec.args.as_ref(), &env),
            env,
            working_dir: Some(working_dir),
            dir: self.dir(attempt),
            log_path: self.log_path(attempt),
            image: self.spec.image.clone().unwrap_or_default(),
            pod_ip: self.pod_ip,
            port,
            bound_to: is_exclusive(&self.pod).then(|| self.agent.layout.lock()),
        })
    }

    /// The ConfigMaps and Secrets of the environment; as last seen, when the control plane cannot be asked.
    async fn sources(&self) -> Result<Sources, RuntimeError> {
        let references = env::references(&self.spec);
        if references.is_empty() {
            return Ok(Sources::new());
        }
        let kept = self.agent.layout.pod_containers(self.uid()).join(format!("{}.sources.json", self.name()));
        let mut sources = Sources::new();
        for (kind, name) in references {
            let fetched = match kind {
                SourceKind::ConfigMap => self.agent.control.config_map(self.namespace(), &name).await.map(|map| {
                    map.map(|map| {
                        let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                        text.chain(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0))).collect()
                    })
                }),
                SourceKind::Secret => self.agent.control.secret(self.namespace(), &name).await.map(|secret| {
                    secret.map(|secret| secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())
                }),
            };
            match fetched {
                Ok(source) => {
                    sources.insert((kind, name), source);
                }
                Err(error) => {
                    let known = tokio::fs::read(&kept).await.ok();
                    let known: Option<Vec<_>> = known.and_then(|bytes| serde_json::from_slice(&bytes).ok());
                    return match known {
                        Some(known) => Ok(known.into_iter().collect()),
                        None => Err(RuntimeError::Config(format!("cannot read {kind:?} {name:?}: {error}"))),
                    };
                }
            }
        }
        let list: Vec<_> = sources.iter().collect();
        if let Ok(bytes) = serde_json::to_vec(&list) {
            let _ = tokio::fs::create_dir_all(self.agent.layout.pod_containers(self.uid())).await;
            let _ = super::disk::replace(&kept, &bytes, false);
        }
        Ok(sources)
    }

    /// How a run ended, in Kubernetes' terms.
    fn termination(&self, attempt: u32, started_at: Option<Timestamp>, exit: &ExitStatus) -> Termination {
        let by_code = if exit.code == 0 { "Completed" } else { "Error" };
        let said = std::fs::read(self.dir(attempt).join("termination-log")).ok().filter(|text| !text.is_empty());
        let said = said.map(|text| tail(&text, TERMINATION_MESSAGE_BYTES_MAX));
        let fallback = self.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let from_log = || (fallback && exit.code != 0).then(|| self.log_tail(attempt)).flatten();
        Termination {
            exit_code: exit.code,
            signal: exit.signal,
            reason: exit.reason.clone().unwrap_or_else(|| by_code.to_owned()),
            message: said.or_else(|| exit.message.clone()).or_else(from_log),
            started_at,
            finished_at: exit.finished_at,
            container_id: Some(self.container_id(attempt)),
        }
    }

    fn log_tail(&self, attempt: u32) -> Option<String> {
        let log = std::fs::read(self.log_path(attempt)).ok()?;
        let log = tail(&log, LOG_MESSAGE_BYTES_MAX * 2);
        let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
        let text = lines[lines.len().saturating_sub(LOG_MESSAGE_LINES_MAX)..].join("\n");
        Some(tail(text.as_bytes(), LOG_MESSAGE_BYTES_MAX)).filter(|text| !text.is_empty())
    }

    fn container_id(&self, attempt: u32) -> String {
        format!("{}://{}_{}_{attempt}", self.runtime.name(), self.uid(), self.name())
    }
}

fn tail(text: &[u8], max: usize) -> String {
    String::from_utf8_lossy(&text[text.len().saturating_sub(max)..]).into_owned()
}

/// A run that started or that was found.
enum Found {
    Running(Arc<dyn Container>),
    /// It ended while no agent looked.
    Ended(Timestamp, ExitStatus),
    /// It ran, and nobody knows what became of it.
    Lost,
    /// Nothing was started there.
    Never,
}

/// Runs a container once. See the module.
pub struct ContainerActor {
    slot: Arc<Slot>,
    pod: Ref<PodActor>,
    born: Instant,
    running: Option<Running>,
    config_tries: u32,
    stopping: bool,
}

struct Running {
    container: Arc<dyn Container>,
    startup: Option<(ProbeState, ProbeAction)>,
    readiness: Option<(ProbeState, ProbeAction)>,
    liveness: Option<(ProbeState, ProbeAction)>,
}

impl Running {
    fn probe(&mut self, kind: ProbeKind) -> Option<&mut (ProbeState, ProbeAction)> {
        match kind {
            ProbeKind::Startup => self.startup.as_mut(),
            ProbeKind::Readiness => self.readiness.as_mut(),
            ProbeKind::Liveness => self.liveness.as_mut(),
        }
    }

    fn since(&self) -> Duration {
        let elapsed = Timestamp::now().duration_since(self.container.started_at());
        Duration::try_from(elapsed).unwrap_or_default()
    }
}

impl ContainerActor {
    pub(crate) fn new(slot: Arc<Slot>, pod: Ref<PodActor>) -> Self {
        Self { slot, pod, born: Instant::now(), running: None, config_tries: 0, stopping: false }
    }

    /// Changes what is known of the container, and has the pod look.
    fn update(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.slot.record.lock());
        // A full mailbox holds a Wake already.
        let _ = self.pod.tell(Wake);
    }

    fn must_stop(&self) -> bool {
        self.slot.stop.borrow().is_some()
    }

    fn begin(&mut self, ctx: &mut Ctx<Self>) {
        if self.must_stop() {
            return self.update(|record| record.active = false);
        }
        let attempt = {
            let mut record = self.slot.record.lock();
            let attempt = match (record.attempt, record.ended) {
                (Some(last), Some(_)) => last + 1,
                (Some(again), None) => again,
                (None, _) => 0,
            };
            record.attempt = Some(attempt);
            record.ended = None;
            record.active = true;
            attempt
        };
        let slot = self.slot.clone();
        ctx.pipe(
            async move {
                let outcome = async {
                    let spec = slot.container_spec(attempt).await?;
                    // Its environment may have taken long to come.
                    if slot.stop.borrow().is_some() {
                        return Err(RuntimeError::Config("the pod is being stopped".to_owned()));
                    }
                    slot.runtime.start(spec).await
                }
                .await;
                if let (Ok(_), Some(old)) = (&outcome, attempt.checked_sub(2)) {
                    // Kubernetes keeps one dead run of each container.
                    let _ = tokio::fs::remove_dir_all(slot.dir(old)).await;
                    let log = slot.log_path(old);
                    for (_, rotated) in crate::runtime::container_log::rotated(&log) {
                        let _ = tokio::fs::remove_file(rotated).await;
                    }
                    let _ = tokio::fs::remove_file(log).await;
                }
                outcome
            },
            move |actor, outcome, ctx| actor.begun(attempt, outcome, ctx),
        );
    }

    fn begun(&mut self, attempt: u32, outcome: Result<Arc<dyn Container>, RuntimeError>, ctx: &mut Ctx<Self>) {
        match outcome {
            Ok(container) => {
                self.config_tries = 0;
                self.slot.event(EventType::Normal, "Created", format!("Created container: {}", self.slot.name()));
                self.slot.event(EventType::Normal, "Started", format!("Started container {}", self.slot.name()));
                self.runs(attempt, container, false, ctx);
            }
            Err(error @ (RuntimeError::Start(_) | RuntimeError::Unsupported { .. })) => {
                self.slot.event(EventType::Warning, "Failed", format!("Error: {error}"));
                let exit = ExitStatus::exited(START_ERROR_EXIT_CODE).because("StartError", error.to_string());
                self.ended(attempt, None, exit, ctx);
            }
            Err(error) => {
                self.slot.event(EventType::Warning, "Failed", format!("Error: {error}"));
                self.update(|record| {
                    record.attempt = attempt.checked_sub(1);
                    record.ended = record.attempt.map(|_| START_ERROR_EXIT_CODE);
                    record.active = false;
                    record.view.state = RunState::Waiting {
                        reason: "CreateContainerConfigError".to_owned(),
                        message: Some(error.to_string()),
                    };
                });
                let pause = (CONFIG_RETRY_MS_FIRST << self.config_tries.min(10)).min(CONFIG_RETRY_MS_MAX);
                self.config_tries += 1;
                ctx.pipe(tokio::time::sleep(Duration::from_millis(pause)), |actor, (), ctx| actor.begin(ctx));
            }
        }
    }

    fn adopt(&mut self, attempt: u32, ctx: &mut Ctx<Self>) {
        let slot = self.slot.clone();
        let had_run = slot.record.lock().view.container_id.is_some();
        ctx.pipe(
            async move {
                match slot.runtime.adopt(&slot.dir(attempt)).await {
                    Ok(Some(container)) => match tokio::time::timeout(Duration::ZERO, container.wait()).await {
                        Ok(exit) => Found::Ended(container.started_at(), exit),
                        Err(_) => Found::Running(container),
                    },
                    Ok(None) if had_run => Found::Lost,
                    Ok(None) => Found::Never,
                    Err(error) => {
                        tracing::warn!(%error, pod = slot.pod_name(), container = slot.name(), "cannot adopt a container");
                        Found::Lost
                    }
                }
            },
            move |actor, found, ctx| match found {
                Found::Running(container) => actor.runs(attempt, container, true, ctx),
                Found::Ended(started_at, exit) => actor.ended(attempt, Some(started_at), exit, ctx),
                Found::Never => actor.begin(ctx),
                Found::Lost => {
                    let exit = ExitStatus::exited(SIGKILL_EXIT_CODE)
                        .because("ContainerStatusUnknown", "The container could not be located when the agent started");
                    actor.ended(attempt, None, exit, ctx);
                }
            },
        );
    }

    fn runs(&mut self, attempt: u32, container: Arc<dyn Container>, adopted: bool, ctx: &mut Ctx<Self>) {
        self.update(|record| {
            record.handle = Some(container.clone());
            record.active = true;
            if let (RunState::Terminated(last), false) = (&record.view.state, adopted) {
                record.view.last = Some(last.clone());
            }
            record.view.restart_count = attempt;
            record.view.container_id = Some(self.slot.container_id(attempt));
        });
        let waited = container.clone();
        let started_at = container.started_at();
        ctx.pipe(async move { waited.wait().await }, move |actor, exit, ctx| {
            actor.ended(attempt, Some(started_at), exit, ctx);
        });
        let hook = self.slot.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        match hook {
            Some(hook) if !adopted => {
                let action = ProbeAction::of_hook(hook, &self.slot.spec, self.slot.pod_ip);
                let of = container.clone();
                ctx.pipe(async move { action.run(&of, Duration::from_secs(3600)).await }, move |actor, result, ctx| {
                    match result {
                        Ok(()) => actor.up(container, adopted, ctx),
                        Err(error) => {
                            actor.slot.event(
                                EventType::Warning,
                                "FailedPostStartHook",
                                format!("PostStartHook failed: {error}"),
                            );
                            ctx.spawn(stop_container(container, None, actor.slot.stop.clone(), Some(Instant::now())));
                        }
                    }
                });
            }
            _ => self.up(container, adopted, ctx),
        }
        if self.must_stop() {
            self.stop_now(ctx);
        }
    }

    /// The container runs: probes begin.
    fn up(&mut self, container: Arc<dyn Container>, adopted: bool, ctx: &mut Ctx<Self>) {
        let spec = &self.slot.spec;
        let before = adopted.then(|| self.slot.view());
        let was_started = before.as_ref().is_some_and(|view| view.started);
        let was_ready = before.as_ref().is_some_and(|view| view.ready);
        let probe = |kind: ProbeKind, probe: &Option<Probe>, verdict: Option<bool>| {
            probe.as_ref().map(|probe| {
                let action = ProbeAction::of_probe(probe, spec, self.slot.pod_ip);
                (ProbeState::new(kind, ProbeTimes::from(probe), verdict), action)
            })
        };
        let startup = probe(ProbeKind::Startup, &spec.startup_probe, None).filter(|_| !was_started);
        let readiness = probe(ProbeKind::Readiness, &spec.readiness_probe, was_ready.then_some(true));
        let liveness = probe(ProbeKind::Liveness, &spec.liveness_probe, None);
        let started = startup.is_none();
        let ready = started && (readiness.is_none() || was_ready) && !self.slot.init && !self.must_stop();
        let started_at = container.started_at();
        self.running = Some(Running { container, startup, readiness, liveness });
        self.update(|record| {
            record.view.state = RunState::Running { started_at };
            record.view.started = started;
            record.view.ready = ready;
        });
        if started {
            self.schedule_first(ProbeKind::Readiness, ctx);
            self.schedule_first(ProbeKind::Liveness, ctx);
        } else {
            self.schedule_first(ProbeKind::Startup, ctx);
        }
    }

    fn schedule_first(&mut self, kind: ProbeKind, ctx: &mut Ctx<Self>) {
        let Some(running) = self.running.as_mut() else { return };
        let since = running.since();
        let Some((state, _)) = running.probe(kind) else { return };
        let delay = state.first(since);
        self.schedule(kind, delay, ctx);
    }

    fn schedule(&mut self, kind: ProbeKind, delay: Duration, ctx: &mut Ctx<Self>) {
        let Some(running) = self.running.as_mut() else { return };
        let container = running.container.clone();
        let Some((state, action)) = running.probe(kind) else { return };
        let (timeout, action) = (state.timeout(), action.clone());
        ctx.pipe(
            async move {
                tokio::time::sleep(delay).await;
                action.run(&container, timeout).await
            },
            move |actor, result, ctx| actor.probed(kind, result, ctx),
        );
    }

    fn probed(&mut self, kind: ProbeKind, result: Result<(), String>, ctx: &mut Ctx<Self>) {
        if self.stopping {
            return;
        }
        let Some(running) = self.running.as_mut() else { return };
        let since = running.since();
        let Some((state, _)) = running.probe(kind) else { return };
        let outcome = state.result(result.is_ok(), since);
        if let (true, Err(error)) = (outcome.report, &result) {
            let message = format!("{} probe failed: {error}", kind.title());
            self.slot.event(EventType::Warning, "Unhealthy", message);
        }
        match (kind, outcome.changed) {
            (ProbeKind::Readiness, Some(ready)) => self.update(|record| record.view.ready = ready && !self.slot.init),
            (ProbeKind::Startup, Some(true)) => {
                let ready = self.running.as_ref().is_some_and(|running| running.readiness.is_none()) && !self.slot.init;
                self.update(|record| {
                    record.view.started = true;
                    record.view.ready = ready;
                });
                self.schedule_first(ProbeKind::Readiness, ctx);
                self.schedule_first(ProbeKind::Liveness, ctx);
            }
            (ProbeKind::Liveness | ProbeKind::Startup, Some(false)) => self.unhealthy(kind, ctx),
            _ => {}
        }
        if let Some(next) = outcome.next {
            self.schedule(kind, next, ctx);
        }
    }

    /// A failed liveness or startup probe is an exit signal to the container.
    fn unhealthy(&mut self, kind: ProbeKind, ctx: &mut Ctx<Self>) {
        let Some(running) = self.running.as_ref() else { return };
        let (name, probe) = match kind {
            ProbeKind::Startup => ("startup", &self.slot.spec.startup_probe),
            _ => ("liveness", &self.slot.spec.liveness_probe),
        };
        let fate = if self.slot.restarts(SIGKILL_EXIT_CODE) { ", will be restarted" } else { "" };
        let message = format!("Container {} failed {name} probe{fate}", self.slot.name());
        self.slot.event(EventType::Normal, "Killing", message);
        let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
        let grace = own.map_or(self.slot.grace(), |seconds| Duration::from_secs(seconds.max(0).unsigned_abs()));
        self.stopping = true;
        let stop = stop_container(
            running.container.clone(),
            self.pre_stop(),
            self.slot.stop.clone(),
            Some(Instant::now() + grace),
        );
        ctx.spawn(stop);
        self.update(|record| record.view.ready = false);
    }

    fn pre_stop(&self) -> Option<ProbeAction> {
        let hook = self.slot.spec.lifecycle.as_ref()?.pre_stop.as_ref()?;
        Some(ProbeAction::of_hook(hook, &self.slot.spec, self.slot.pod_ip))
    }

    /// The pod is to stop. Whatever is being started is stopped once it has started.
    fn stop_now(&mut self, ctx: &mut Ctx<Self>) {
        let handle = self.slot.record.lock().handle.clone();
        let Some(container) = handle else {
            return self.update(|record| record.view.ready = false);
        };
        if !std::mem::replace(&mut self.stopping, true) {
            let message = format!("Stopping container {}", self.slot.name());
            self.slot.event(EventType::Normal, "Killing", message);
            ctx.spawn(stop_container(container, self.pre_stop(), self.slot.stop.clone(), None));
        }
        self.update(|record| record.view.ready = false);
    }

    fn ended(&mut self, attempt: u32, started_at: Option<Timestamp>, exit: ExitStatus, ctx: &mut Ctx<Self>) {
        self.running = None;
        let termination = self.slot.termination(attempt, started_at, &exit);
        let over = self.must_stop();
        let restarts = !over && self.slot.restarts(exit.code);
        let times = self.slot.agent.config.crash_loop;
        let mut back_off = None;
        self.update(|record| {
            record.ended = Some(exit.code);
            record.handle = None;
            record.active = false;
            record.view.ready = self.slot.init && exit.code == 0;
            record.view.started = false;
            record.view.restart_count = attempt;
            record.view.container_id = Some(self.slot.container_id(attempt));
            let delay = if restarts { record.crash.ended(times, self.born.elapsed()) } else { Duration::ZERO };
            if delay.is_zero() {
                record.view.state = RunState::Terminated(termination);
            } else {
                let message = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    go_duration(delay),
                    self.slot.name(),
                    self.slot.pod_name(),
                    self.slot.namespace(),
                    self.slot.uid()
                );
                record.view.last = Some(termination);
                record.view.state = RunState::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some(message) };
                back_off = Some(delay);
            }
        });
        if back_off.is_some() {
            let message = format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                self.slot.name(),
                self.slot.pod_name(),
                self.slot.namespace(),
                self.slot.uid()
            );
            self.slot.event(EventType::Warning, "BackOff", message);
        }
        if !over {
            ctx.stop(match exit.code {
                0 => Exit::Normal,
                code => Exit::Error(match exit.signal {
                    Some(signal) => format!("ended by signal {signal} (exit code {code})"),
                    None => format!("exit code {code}"),
                }),
            });
        }
    }
}

impl Actor for ContainerActor {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        self.born = Instant::now();
        let mut stop = self.slot.stop.clone();
        ctx.pipe(async move { stop.wait_for(Option::is_some).await.is_ok() }, |actor, must_stop, ctx| {
            if must_stop {
                actor.stop_now(ctx);
            }
        });
        let (attempt, ended, handle) = {
            let record = self.slot.record.lock();
            (record.attempt, record.ended, record.handle.clone())
        };
        match (attempt, ended, handle) {
            // An earlier incarnation failed, the container did not.
            (Some(attempt), None, Some(container)) => self.runs(attempt, container, true, ctx),
            (Some(attempt), None, None) => {
                self.slot.record.lock().active = true;
                self.adopt(attempt, ctx);
            }
            _ => self.begin(ctx),
        }
        Ok(())
    }
}

/// preStop, SIGTERM, patience, SIGKILL. Resolves when the container has ended.
///
/// The deadline is the earlier of `own` and what `order` says, which may be brought forward while this runs.
async fn stop_container(
    container: Arc<dyn Container>,
    pre_stop: Option<ProbeAction>,
    mut order: watch::Receiver<Option<Instant>>,
    own: Option<Instant>,
) {
    let at = |order: &watch::Receiver<Option<Instant>>| match (own, *order.borrow()) {
        (Some(own), Some(ordered)) => own.min(ordered),
        (one, other) => one.or(other).unwrap_or_else(Instant::now),
    };
    let had_hook = pre_stop.is_some();
    if let Some(hook) = pre_stop.filter(|_| at(&order) > Instant::now()) {
        tokio::select! {
            result = hook.run(&container, Duration::from_secs(3600)) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a preStop hook failed");
                }
            }
            () = passed(&mut order, at, Duration::ZERO) => {}
            _ = container.wait() => return,
        }
    }
    let extra = if had_hook && at(&order) <= Instant::now() + Duration::from_millis(AFTER_PRE_STOP_MS) {
        Duration::from_millis(AFTER_PRE_STOP_MS)
    } else {
        Duration::ZERO
    };
    if at(&order) + extra > Instant::now() {
        if let Err(error) = container.signal(SIGTERM).await {
            tracing::warn!(%error, container = container.id(), "cannot ask a container to stop");
        }
        tokio::select! {
            biased;
            _ = container.wait() => return,
            () = passed(&mut order, at, extra) => {}
        }
    }
    loop {
        if let Err(error) = container.kill().await {
            tracing::warn!(%error, container = container.id(), "cannot kill a container");
        }
        if tokio::time::timeout(Duration::from_millis(KILL_RETRY_MS), container.wait()).await.is_ok() {
            return;
        }
    }
}

/// Waits for the deadline, also when it is moved.
async fn passed(
    order: &mut watch::Receiver<Option<Instant>>,
    at: impl Fn(&watch::Receiver<Option<Instant>>) -> Instant,
    extra: Duration,
) {
    loop {
        let deadline = at(order) + extra;
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => return,
            changed = order.changed() => if changed.is_err() {
                return tokio::time::sleep_until(deadline).await;
            }
        }
    }
}
