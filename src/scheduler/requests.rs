//! What a pod asks of a node, reduced to numbers and interned constraints, so that placing compares integers.
//!
//! Pure. Must never hold on to a whole `Pod`: a million pods are accounted for in the snapshot. Called by the scheduler's
//! actor for every pod that comes by, and by the snapshot for pods that already have a node.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::api;

/// What a container without a request counts for when nodes are scored (never when they are filtered), as in Kubernetes.
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// A pod that waits for a node: everything that placing needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct PodInfo {
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub requests: Requests,
    pub constraints: Arc<Constraints>,
    /// Pods of one group are spread over nodes and zones. See [`spread_group`].
    pub group: Option<u64>,
    pub priority: i32,
}

/// Resources and ports that a pod takes from its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    /// As `cpu_milli` and `memory_bytes`, but never zero: what scoring counts.
    pub scored_cpu_milli: i64,
    pub scored_memory_bytes: i64,
    /// All other resources by name, such as `ephemeral-storage` and `example.com/gpu`. Sorted.
    pub extended: Box<[(Arc<str>, i64)]>,
    pub host_ports: Box<[HostPort]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub port: i32,
    pub protocol: Arc<str>,
    /// Empty for all addresses.
    pub ip: Arc<str>,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let every = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || every(&self.ip) || every(&other.ip))
    }
}

/// What depends on a node's own description alone, not on what runs there. Pods of one template share it, and the
/// snapshot remembers its verdict on each node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Constraints {
    pub node_selector: Vec<(String, String)>,
    /// Alternatives; `None` when nothing is required. An empty list matches no node.
    pub required: Option<Vec<Term>>,
    pub preferred: Vec<(i32, Term)>,
    pub tolerations: Vec<Tolerates>,
}

/// One node selector term: all requirements must hold. A term without any matches nothing (Kubernetes' rule).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Term {
    pub labels: Vec<Requirement>,
    pub fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
    /// An operator of a later version: matches nothing rather than everything.
    Unknown,
}

/// A toleration; `None` fields match everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tolerates {
    pub key: Option<String>,
    /// `None` for operator `Exists`.
    pub value: Option<String>,
    pub effect: Option<String>,
}

impl PodInfo {
    pub fn of(pod: &Pod) -> PodInfo {
        let text = |part: &Option<String>| Arc::from(part.as_deref().unwrap_or_default());
        let spec = pod.spec.as_ref();
        PodInfo {
            uid: text(&pod.metadata.uid),
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            requests: spec.map(Requests::of).unwrap_or_default(),
            constraints: Arc::new(spec.map(Constraints::of).unwrap_or_default()),
            group: spread_group(pod),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
        }
    }
}

/// The pods that are spread against each other: those with the same controller, else those with the same labels.
/// A hash: two groups that collide are merely spread together.
pub fn spread_group(pod: &Pod) -> Option<u64> {
    let mut hash = DefaultHasher::new();
    pod.metadata.namespace.hash(&mut hash);
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    match owners.iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => owner.uid.hash(&mut hash),
        None => {
            let labels = pod.metadata.labels.as_ref().filter(|labels| !labels.is_empty())?;
            labels.hash(&mut hash);
        }
    }
    Some(hash.finish())
}

impl Requests {
    /// Kubernetes' rule: the sum over the containers and sidecars, or the largest that any init container needs beside
    /// the sidecars started before it, whichever is more; plus the pod's overhead.
    pub fn of(spec: &PodSpec) -> Requests {
        let mut total = Amounts::default();
        for container in &spec.containers {
            total.add(&Amounts::of(container));
        }
        let mut sidecars = Amounts::default();
        let mut init_peak = Amounts::default();
        for container in spec.init_containers.as_deref().unwrap_or_default() {
            let asks = Amounts::of(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&asks);
                init_peak.raise_to(&sidecars);
            } else {
                let mut peak = sidecars.clone();
                peak.add(&asks);
                init_peak.raise_to(&peak);
            }
        }
        total.add(&sidecars);
        total.raise_to(&init_peak);
        if let Some(overhead) = &spec.overhead {
            total.add(&Amounts::of_quantities(overhead));
        }
        let extended = total.extended.into_iter().filter(|(_, amount)| *amount > 0);
        Requests {
            cpu_milli: total.cpu_milli,
            memory_bytes: total.memory_bytes,
            scored_cpu_milli: total.scored_cpu_milli,
            scored_memory_bytes: total.scored_memory_bytes,
            extended: extended.collect(),
            host_ports: host_ports(spec),
        }
    }
}

fn host_ports(spec: &PodSpec) -> Box<[HostPort]> {
    let sidecars = spec.init_containers.as_deref().unwrap_or_default().iter();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.as_deref().unwrap_or_default());
    ports
        .filter_map(|port| {
            Some(HostPort {
                port: port.host_port.filter(|port| *port > 0)?,
                protocol: Arc::from(port.protocol.as_deref().unwrap_or("TCP")),
                ip: Arc::from(port.host_ip.as_deref().unwrap_or_default()),
            })
        })
        .collect()
}

#[derive(Clone, Debug, Default)]
struct Amounts {
    cpu_milli: i64,
    memory_bytes: i64,
    scored_cpu_milli: i64,
    scored_memory_bytes: i64,
    extended: BTreeMap<Arc<str>, i64>,
}

impl Amounts {
    fn of(container: &Container) -> Amounts {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let mut amounts = requests.map(Amounts::of_quantities).unwrap_or_default();
        let asks = |name: &str| requests.is_some_and(|requests| requests.contains_key(name));
        if !asks("cpu") {
            amounts.scored_cpu_milli = DEFAULT_CPU_MILLI;
        }
        if !asks("memory") {
            amounts.scored_memory_bytes = DEFAULT_MEMORY_BYTES;
        }
        amounts
    }

    fn of_quantities(quantities: &BTreeMap<String, Quantity>) -> Amounts {
        let mut amounts = Amounts::default();
        for (name, quantity) in quantities {
            match name.as_str() {
                "cpu" => amounts.cpu_milli = milli(quantity),
                "memory" => amounts.memory_bytes = whole(quantity),
                _ => {
                    amounts.extended.insert(Arc::from(name.as_str()), whole(quantity));
                }
            }
        }
        amounts.scored_cpu_milli = amounts.cpu_milli;
        amounts.scored_memory_bytes = amounts.memory_bytes;
        amounts
    }

    fn add(&mut self, other: &Amounts) {
        self.cpu_milli = self.cpu_milli.saturating_add(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.scored_cpu_milli = self.scored_cpu_milli.saturating_add(other.scored_cpu_milli);
        self.scored_memory_bytes = self.scored_memory_bytes.saturating_add(other.scored_memory_bytes);
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(Arc::clone(name)).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    fn raise_to(&mut self, other: &Amounts) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.scored_cpu_milli = self.scored_cpu_milli.max(other.scored_cpu_milli);
        self.scored_memory_bytes = self.scored_memory_bytes.max(other.scored_memory_bytes);
        for (name, amount) in &other.extended {
            let most = self.extended.entry(Arc::clone(name)).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// In thousandths, rounded up. What cannot be read counts as nothing: validation refused it at the door.
pub fn milli(quantity: &Quantity) -> i64 {
    api::quantity::Quantity::parse(&quantity.0).map_or(0, |quantity| quantity.milli())
}

/// In whole units, rounded up.
pub fn whole(quantity: &Quantity) -> i64 {
    api::quantity::Quantity::parse(&quantity.0).map_or(0, |quantity| quantity.value())
}

impl Constraints {
    pub fn of(spec: &PodSpec) -> Constraints {
        let selector = spec.node_selector.iter().flatten();
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|selector| selector.node_selector_terms.iter().map(Term::of).collect());
        let preferred = affinity
            .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref())
            .map(|terms| terms.iter().map(|term| (term.weight, Term::of(&term.preference))).collect());
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        Constraints {
            node_selector: selector.map(|(key, value)| (key.clone(), value.clone())).collect(),
            required,
            preferred: preferred.unwrap_or_default(),
            tolerations: tolerations.iter().map(Tolerates::of).collect(),
        }
    }

    pub fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        self.tolerations.iter().any(|toleration| toleration.covers(key, value, effect))
    }
}

impl Term {
    fn of(term: &NodeSelectorTerm) -> Term {
        let parse = |list: &Option<Vec<NodeSelectorRequirement>>| {
            list.as_deref().unwrap_or_default().iter().map(Requirement::of).collect()
        };
        Term { labels: parse(&term.match_expressions), fields: parse(&term.match_fields) }
    }

    pub fn matches(&self, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.labels.is_empty() && self.fields.is_empty() {
            return false;
        }
        let field = |key: &str| (key == "metadata.name").then_some(node_name);
        self.labels.iter().all(|want| want.holds(labels.get(&want.key).map(String::as_str)))
            && self.fields.iter().all(|want| want.holds(field(&want.key)))
    }
}

impl Requirement {
    fn of(requirement: &NodeSelectorRequirement) -> Requirement {
        let operator = match requirement.operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            _ => Operator::Unknown,
        };
        let values = requirement.values.clone().unwrap_or_default();
        Requirement { key: requirement.key.clone(), operator, values }
    }

    fn holds(&self, actual: Option<&str>) -> bool {
        let listed = |actual: &str| self.values.iter().any(|value| value == actual);
        let numbers = || Some((actual?.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator {
            Operator::In => actual.is_some_and(listed),
            Operator::NotIn => !actual.is_some_and(listed),
            Operator::Exists => actual.is_some(),
            Operator::DoesNotExist => actual.is_none(),
            Operator::Gt => numbers().is_some_and(|(actual, bound)| actual > bound),
            Operator::Lt => numbers().is_some_and(|(actual, bound)| actual < bound),
            Operator::Unknown => false,
        }
    }
}

impl Tolerates {
    pub fn of(toleration: &Toleration) -> Tolerates {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let value = match toleration.operator.as_deref() {
            Some("Exists") => None,
            _ => Some(toleration.value.clone().unwrap_or_default()),
        };
        Tolerates { key: given(&toleration.key), value, effect: given(&toleration.effect) }
    }

    pub fn covers(&self, key: &str, value: &str, effect: &str) -> bool {
        self.key.as_deref().is_none_or(|own| own == key)
            && self.value.as_deref().is_none_or(|own| own == value)
            && self.effect.as_deref().is_none_or(|own| own == effect)
    }
}
