//! What this machine is and has, as a Node object, and the actor that keeps its conditions fresh.
//!
//! Everything is read from the system and said as it is; what cannot be known is left out. Whether the node lives is
//! not decided here: that is the lease's, in `control`.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Node, NodeAddress, NodeCondition, NodeRuntimeHandler, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use phalanx_actors::{Actor, Ctx, Exit};

use super::Agent;
use super::status::kube_time;

/// The Kubernetes version whose behaviour this agent has, and whose agent it is.
pub const KUBELET_VERSION: &str = concat!("v1.36.0+phalanx", ".", env!("CARGO_PKG_VERSION"));
/// How often conditions are looked at; reported when they changed, and every [`HEARTBEAT_MS`] at least.
const LOOK_MS: u64 = 10_000;
/// kubelet's `nodeStatusReportFrequency`.
const HEARTBEAT_MS: u64 = 300_000;
/// kubelet's eviction threshold `memory.available<100Mi`.
const MEMORY_PRESSURE_BYTES: u64 = 100 << 20;
/// kubelet's eviction threshold `nodefs.available<10%`.
const DISK_PRESSURE_PERCENT: u64 = 10;
/// Threads in use beyond this share of what the kernel allows.
const PID_PRESSURE_PERCENT: u64 = 90;

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

fn meminfo_bytes(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| std::env::consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Go's names, which Kubernetes uses.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn operating_system() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    }
}

impl Agent {
    /// The node as it registers.
    pub fn node_object(&self) -> Node {
        let config = &self.config;
        let mut labels = config.labels.clone();
        for (key, value) in [
            ("kubernetes.io/hostname", &*config.node),
            ("kubernetes.io/os", operating_system()),
            ("kubernetes.io/arch", architecture()),
            ("phalanx.dev/runtime", self.runtimes.default_name()),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        for runtime in self.runtimes.names() {
            labels.insert(format!("runtime.phalanx.dev/{runtime}"), "true".to_owned());
        }
        Node {
            metadata: ObjectMeta { name: Some(config.node.clone()), labels: Some(labels), ..ObjectMeta::default() },
            spec: Some(NodeSpec {
                taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
                ..NodeSpec::default()
            }),
            status: Some(self.node_status()),
        }
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut capacity = BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpus.to_string())),
            ("pods".to_owned(), Quantity(self.config.pods_max.to_string())),
        ]);
        if let Some(bytes) = meminfo_bytes("MemTotal") {
            capacity.insert("memory".to_owned(), Quantity(format!("{}Ki", bytes / 1024)));
        }
        if let Ok(disk) = nix::sys::statvfs::statvfs(self.layout.root()) {
            let bytes = disk.blocks() * disk.fragment_size();
            capacity.insert("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", bytes / 1024)));
        }
        capacity.extend(self.config.capacity.iter().map(|(name, value)| (name.clone(), Quantity(value.clone()))));
        capacity
    }

    /// What pods may use: nothing is set aside for the system.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.capacity()
    }

    /// The node's status now.
    pub fn node_status(&self) -> NodeStatus {
        let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
        NodeStatus {
            addresses: Some(vec![
                address("InternalIP", self.config.host_ip.to_string()),
                address("Hostname", self.config.node.clone()),
            ]),
            allocatable: Some(self.allocatable()),
            capacity: Some(self.capacity()),
            conditions: Some(self.conditions()),
            node_info: Some(NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id: first_line("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: format!("{}://{}", self.runtimes.default_name(), env!("CARGO_PKG_VERSION")),
                kernel_version: first_line("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: KUBELET_VERSION.to_owned(),
                machine_id: first_line("/etc/machine-id"),
                operating_system: operating_system().to_owned(),
                os_image: os_image(),
                system_uuid: first_line("/etc/machine-id"),
                ..NodeSystemInfo::default()
            }),
            runtime_handlers: Some(
                self.runtimes
                    .names()
                    .map(|name| NodeRuntimeHandler { name: Some(name.to_owned()), ..NodeRuntimeHandler::default() })
                    .collect(),
            ),
            ..NodeStatus::default()
        }
    }

    fn conditions(&self) -> Vec<NodeCondition> {
        let memory = meminfo_bytes("MemAvailable").is_some_and(|bytes| bytes < MEMORY_PRESSURE_BYTES);
        let disk = nix::sys::statvfs::statvfs(self.layout.root())
            .is_ok_and(|disk| disk.blocks_available() * 100 < disk.blocks() * DISK_PRESSURE_PERCENT);
        let threads_max: Option<u64> = first_line("/proc/sys/kernel/threads-max").parse().ok();
        let threads = std::fs::read_to_string("/proc/loadavg")
            .ok()
            .and_then(|text| text.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok());
        let pids = matches!((threads, threads_max), (Some(used), Some(max)) if used * 100 > max * PID_PRESSURE_PERCENT);
        let now = kube_time(Timestamp::now());
        let condition = |kind: &str, holds: bool, reason: &str, message: &str| NodeCondition {
            type_: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(now.clone()),
        };
        let pressure = |kind: &str, holds: bool, yes: (&str, &str), no: (&str, &str)| {
            let (reason, message) = if holds { yes } else { no };
            condition(kind, holds, reason, message)
        };
        vec![
            pressure(
                "MemoryPressure",
                memory,
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ),
            pressure(
                "DiskPressure",
                disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
            pressure(
                "PIDPressure",
                pids,
                ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
            condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
        ]
    }
}

/// Keeps what the control plane knows of the node fresh.
pub struct NodeActor {
    agent: Arc<Agent>,
}

impl NodeActor {
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

impl Actor for NodeActor {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        let agent = self.agent.clone();
        ctx.spawn(async move {
            let mut reported: Option<(tokio::time::Instant, NodeStatus)> = None;
            loop {
                tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
                let mut status = agent.node_status();
                let due = match &reported {
                    None => true,
                    Some((at, before)) => {
                        keep_transitions(&mut status, before);
                        at.elapsed() >= Duration::from_millis(HEARTBEAT_MS) || says_more(&status, before)
                    }
                };
                if due {
                    match agent.control.node_status(&agent.config.node, status.clone()).await {
                        Ok(()) => reported = Some((tokio::time::Instant::now(), status)),
                        Err(error) => tracing::debug!(%error, "the node's status could not be reported"),
                    }
                }
            }
        });
        Ok(())
    }
}

/// A condition keeps the time of its last change.
pub fn keep_transitions(status: &mut NodeStatus, before: &NodeStatus) {
    for condition in status.conditions.iter_mut().flatten() {
        let known = before.conditions.iter().flatten().find(|known| known.type_ == condition.type_);
        if let Some(known) = known.filter(|known| known.status == condition.status) {
            condition.last_transition_time.clone_from(&known.last_transition_time);
        }
    }
}

fn says_more(status: &NodeStatus, before: &NodeStatus) -> bool {
    let states = |of: &NodeStatus| -> Vec<(String, String)> {
        of.conditions.iter().flatten().map(|of| (of.type_.clone(), of.status.clone())).collect()
    };
    states(status) != states(before) || status.capacity != before.capacity || status.addresses != before.addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_stays_as_it_was_keeps_its_time() {
        let status = |second: i64, disk: &str| -> NodeStatus {
            let at = kube_time(Timestamp::from_second(second).expect("a time"));
            let condition = |kind: &str, status: &str| NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                last_heartbeat_time: Some(at.clone()),
                last_transition_time: Some(at.clone()),
                ..NodeCondition::default()
            };
            let conditions = vec![condition("Ready", "True"), condition("DiskPressure", disk)];
            NodeStatus { conditions: Some(conditions), ..NodeStatus::default() }
        };
        let mut now = status(20, "True");
        keep_transitions(&mut now, &status(10, "False"));
        let seconds: Vec<_> = now
            .conditions
            .iter()
            .flatten()
            .map(|c| (c.last_heartbeat_time.as_ref(), c.last_transition_time.as_ref()))
            .map(|(beat, turn)| (beat.map(|t| t.0.as_second()), turn.map(|t| t.0.as_second())))
            .collect();
        assert_eq!(seconds, [(Some(20), Some(10)), (Some(20), Some(20))]);
    }
}
