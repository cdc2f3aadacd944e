//! A pod's status from what its containers do: phase, conditions, container statuses.
//!
//! Pure: the same input gives the same status, times come from the caller. The rules are the kubelet's
//! (`getPhase`, `GeneratePodReadyCondition` and their kin); the Pod actor calls it after every change.
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Kubernetes' times have whole seconds.
pub fn kube_time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Termination {
    pub exit_code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    pub container_id: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RunState {
    Waiting { reason: String, message: Option<String> },
    Running { started_at: Timestamp },
    Terminated(Termination),
}

impl RunState {
    pub fn waiting(reason: &str) -> Self {
        Self::Waiting { reason: reason.to_owned(), message: None }
    }
}

/// What is known of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerView {
    pub state: RunState,
    pub last: Option<Termination>,
    pub restart_count: u32,
    /// The startup probe succeeded, or there is none and it runs.
    pub started: bool,
    /// The readiness probe succeeds, or there is none and it runs and has started.
    pub ready: bool,
    pub container_id: Option<String>,
}

impl ContainerView {
    /// Before anything happened to it.
    pub fn initial(reason: &str) -> Self {
        Self {
            state: RunState::waiting(reason),
            last: None,
            restart_count: 0,
            started: false,
            ready: false,
            container_id: None,
        }
    }

    fn terminated(&self) -> Option<&Termination> {
        match &self.state {
            RunState::Terminated(how) => Some(how),
            _ => None,
        }
    }
}

/// Restart policy of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended so is started again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// Everything that a status is made of.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    /// In the order of the spec.
    pub init: &'a [ContainerView],
    pub containers: &'a [ContainerView],
    pub host_ip: &'a str,
    /// `None` until the pod has what it needs to start containers.
    pub pod_ip: Option<&'a str>,
    pub start_time: Timestamp,
    /// The pod is over whatever its containers say (`reason`, `message`).
    pub failed: Option<(&'a str, &'a str)>,
    pub previous: Option<&'a PodStatus>,
    pub now: Timestamp,
}

/// The status to report.
pub fn pod_status(facts: &Facts<'_>) -> PodStatus {
    let Some(spec) = &facts.pod.spec else { return PodStatus::default() };
    let phase = phase(spec, facts);
    let init_specs = spec.init_containers.as_deref().unwrap_or_default();
    let mut conditions = Conditions { facts, list: Vec::new() };
    conditions.owned(spec, init_specs, phase);
    let conditions = conditions.list;
    let statuses = |specs: &[Container], views: &[ContainerView]| -> Vec<ContainerStatus> {
        specs.iter().zip(views).map(|(spec, view)| container_status(spec, view)).collect()
    };
    let init_statuses = statuses(init_specs, facts.init);
    PodStatus {
        conditions: Some(conditions),
        container_statuses: Some(statuses(&spec.containers, facts.containers)),
        host_ip: Some(facts.host_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: facts.host_ip.to_owned() }]),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        message: facts.failed.map(|(_, message)| message.to_owned()),
        observed_generation: facts.pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ip: facts.pod_ip.map(str::to_owned),
        pod_ips: facts.pod_ip.map(|ip| vec![PodIP { ip: ip.to_owned() }]),
        qos_class: Some(qos_class(facts.pod).to_owned()),
        reason: facts.failed.map(|(reason, _)| reason.to_owned()),
        start_time: Some(kube_time(facts.start_time)),
        ..PodStatus::default()
    }
}

/// kubelet's `getPhase`.
fn phase(spec: &PodSpec, facts: &Facts<'_>) -> &'static str {
    if facts.failed.is_some() {
        return "Failed";
    }
    let policy = RestartPolicy::of(spec);
    for init in facts.init {
        match init.terminated() {
            Some(how) if how.exit_code == 0 => {}
            Some(_) if policy == RestartPolicy::Never => return "Failed",
            _ => return "Pending",
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for container in facts.containers {
        let ended = container.terminated().or(match container.state {
            RunState::Waiting { .. } => container.last.as_ref(),
            _ => None,
        });
        match (&container.state, ended) {
            (RunState::Running { .. }, _) => running += 1,
            (_, Some(how)) => {
                stopped += 1;
                succeeded += usize::from(how.exit_code == 0);
            }
            _ => waiting += 1,
        }
    }
    match (waiting, running, stopped) {
        (1.., _, _) => "Pending",
        (_, 1.., _) => "Running",
        (_, _, 1..) if policy == RestartPolicy::Always => "Running",
        (_, _, 1..) if stopped == succeeded => "Succeeded",
        (_, _, 1..) if policy == RestartPolicy::Never => "Failed",
        (_, _, 1..) => "Running",
        _ => "Pending",
    }
}

struct Conditions<'a> {
    facts: &'a Facts<'a>,
    list: Vec<PodCondition>,
}

impl Conditions<'_> {
    fn owned(&mut self, spec: &PodSpec, init_specs: &[Container], phase: &str) {
        let facts = self.facts;
        self.push("PodReadyToStartContainers", facts.pod_ip.is_some(), None);

        let incomplete: Vec<&str> = init_specs
            .iter()
            .zip(facts.init)
            .filter(|(_, view)| view.terminated().is_none_or(|how| how.exit_code != 0))
            .map(|(spec, _)| &*spec.name)
            .collect();
        let ended = match phase {
            "Succeeded" => Some("PodCompleted"),
            "Failed" => Some("PodFailed"),
            _ => None,
        };
        if incomplete.is_empty() {
            self.push("Initialized", true, (phase == "Succeeded").then(|| ("PodCompleted".into(), None)));
        } else {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            self.push("Initialized", false, Some(("ContainersNotInitialized".into(), Some(message))));
        }

        let unready: Vec<&str> = spec
            .containers
            .iter()
            .zip(facts.containers)
            .filter(|(_, view)| !view.ready)
            .map(|(spec, _)| &*spec.name)
            .collect();
        let why = match ended {
            Some(reason) => Some((reason.to_owned(), None)),
            None if !unready.is_empty() => Some((
                "ContainersNotReady".to_owned(),
                Some(format!("containers with unready status: [{}]", unready.join(" "))),
            )),
            None => None,
        };
        let gates = self.closed_gates(spec);
        let ready = match (&why, gates) {
            (None, Some(message)) => Some(("ReadinessGatesNotReady".to_owned(), Some(message))),
            _ => why.clone(),
        };
        self.push("Ready", ready.is_none(), ready);
        self.push("ContainersReady", why.is_none(), why);
        self.push("PodScheduled", true, None);

        // What others set (readiness gates, DisruptionTarget) is theirs.
        let own = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
        let set = facts.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        self.list.extend(set.into_iter().flatten().filter(|condition| !own.contains(&&*condition.type_)).cloned());
    }

    fn closed_gates(&self, spec: &PodSpec) -> Option<String> {
        let set = self.facts.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let closed: Vec<String> = spec
            .readiness_gates
            .iter()
            .flatten()
            .filter_map(|gate| match set.iter().find(|condition| condition.type_ == gate.condition_type) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {:?} does not exist.",
                    gate.condition_type
                )),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate {:?} is not \"True\", but {}",
                    gate.condition_type, condition.status
                )),
                Some(_) => None,
            })
            .collect();
        (!closed.is_empty()).then(|| closed.join(", "))
    }

    fn push(&mut self, kind: &str, holds: bool, why: Option<(String, Option<String>)>) {
        let status = if holds { "True" } else { "False" };
        let before = [self.facts.previous, self.facts.pod.status.as_ref()]
            .into_iter()
            .flatten()
            .find_map(|status| status.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind));
        let since = before
            .filter(|before| before.status == status)
            .and_then(|before| before.last_transition_time.clone())
            .unwrap_or_else(|| kube_time(self.facts.now));
        let (reason, message) = why.map_or((None, None), |(reason, message)| (Some(reason), message));
        self.list.push(PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            last_transition_time: Some(since),
            reason,
            message,
            ..PodCondition::default()
        });
    }
}

fn container_status(spec: &Container, view: &ContainerView) -> ContainerStatus {
    let image = spec.image.clone().unwrap_or_default();
    ContainerStatus {
        container_id: view.container_id.clone(),
        image_id: image.clone(),
        image,
        last_state: Some(ContainerState {
            terminated: view.last.as_ref().map(terminated),
            ..ContainerState::default()
        }),
        name: spec.name.clone(),
        ready: view.ready,
        restart_count: i32::try_from(view.restart_count).unwrap_or(i32::MAX),
        started: Some(view.started),
        state: Some(match &view.state {
            RunState::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting { reason: Some(reason.clone()), message: message.clone() }),
                ..ContainerState::default()
            },
            RunState::Running { started_at } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(kube_time(*started_at)) }),
                ..ContainerState::default()
            },
            RunState::Terminated(how) => {
                ContainerState { terminated: Some(terminated(how)), ..ContainerState::default() }
            }
        }),
        ..ContainerStatus::default()
    }
}

fn terminated(how: &Termination) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: how.container_id.clone(),
        exit_code: how.exit_code,
        finished_at: Some(kube_time(how.finished_at)),
        message: how.message.clone(),
        reason: Some(how.reason.clone()),
        signal: how.signal,
        started_at: how.started_at.map(kube_time),
    }
}

/// Guaranteed, Burstable or BestEffort; the control plane's word where it has said so.
pub fn qos_class(pod: &Pod) -> &str {
    if let Some(known) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        return known;
    }
    let containers =
        || pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let set = |list: Option<&std::collections::BTreeMap<String, _>>| list.is_some_and(|list| !list.is_empty());
    let any = containers()
        .filter_map(|container| container.resources.as_ref())
        .any(|resources| set(resources.limits.as_ref()) || set(resources.requests.as_ref()));
    let full = containers().all(|container| {
        container.resources.as_ref().is_some_and(|resources| {
            ["cpu", "memory"].iter().all(|name| {
                let limit = resources.limits.as_ref().and_then(|limits| limits.get(*name));
                let request = resources.requests.as_ref().and_then(|requests| requests.get(*name));
                limit.is_some() && (request.is_none() || request == limit)
            })
        })
    });
    match (any, full) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Which containers of a pod should have an actor now, by what the containers did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The init container with this index, and those before it.
    Init(usize),
    /// All init containers have succeeded: the containers.
    Containers,
    /// An init container failed for good: nothing more.
    Nothing,
}

/// kubelet's order: init containers one after the other, each to success, then all containers at once.
pub fn plan(policy: RestartPolicy, init: &[ContainerView]) -> Plan {
    for (index, view) in init.iter().enumerate() {
        match view.terminated() {
            Some(how) if how.exit_code == 0 => {}
            Some(_) if policy == RestartPolicy::Never => return Plan::Nothing,
            _ => return Plan::Init(index),
        }
    }
    Plan::Containers
}

#[cfg(test)]
#[path = "status_test.rs"]
mod tests;
