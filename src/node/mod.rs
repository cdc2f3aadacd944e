//! The agent: what runs on every machine that runs pods.
//!
//! ```text
//! agent (rest_for_one)
//! ├── reporter                     statuses and events to the control plane
//! ├── pods (dynamic)
//! │   └── <namespace>_<pod>        the pod: order of its containers, status, termination
//! │       └── containers (one_for_one; restartPolicy is the restart type, CrashLoopBackOff its backoff)
//! │           └── <container>      one run of a container: start, probes, hooks, end
//! ├── node                         what this machine is and has
//! └── sync                         assignments from the control plane, and from disk before there is one
//! ```
//! Data flows one way: assignments come in at `sync` and are kept on disk, Pod actors make them true, statuses and events
//! leave through `reporter`. The agent must never stop a container because the control plane is silent, because an
//! actor of its own failed, or because it ends itself: containers outlive it, and the next agent adopts them.
//! Called by `cluster`, which implements [`ControlPlane`].
mod addresses;
mod container;
mod control_plane;
pub mod crash_loop;
mod disk;
pub mod env;
pub mod logs;
pub mod node_info;
mod pod;
pub mod probe;
mod prober;
mod report;
pub mod status;
mod sync;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_actors::{Backoff, ChildSpec, Strategy, SupervisorSpec};

pub use addresses::PodNetwork;
pub use container::ContainerActor;
pub use control_plane::{
    AssignmentEvent, ControlPlane, ControlPlaneError, EventRecord, EventType, PodReport, ReportOutcome,
};
pub use crash_loop::CrashLoopTimes;
pub use disk::{Assignment, Layout};
pub use node_info::{KUBELET_VERSION, NodeActor};
pub use pod::PodActor;
pub use report::{EVENTS_WAITING_MAX, Reporter};
pub use sync::{Fence, SyncActor, Unfence, is_exclusive};

use self::addresses::Addresses;
use self::disk::Assignments;
use self::report::{Recorder, StatusBoard};
use crate::runtime::Runtimes;

/// kubelet's default `maxPods`.
pub const PODS_MAX: u32 = 110;

const SIGTERM: i32 = 15;
/// What is killed is gone within this time, unless it hangs in the kernel.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// Settings of an agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The node's name.
    pub node: String,
    /// Everything of this agent on disk; nobody else's.
    pub dir: PathBuf,
    /// The node's address (`InternalIP`, `status.hostIP`).
    pub host_ip: IpAddr,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints` are the control plane's; these go with the registration.
    pub taints: Vec<k8s_openapi::api::core::v1::Taint>,
    pub pods_max: u32,
    /// Where pods get their addresses; disjoint for nodes that share a machine, see [`PodNetwork::loopback`].
    pub pod_network: PodNetwork,
    pub crash_loop: CrashLoopTimes,
    /// Resources to announce instead of what the machine has (`cpu`, `memory`, ...), as quantities.
    pub capacity: BTreeMap<String, String>,
}

impl AgentConfig {
    /// Kubernetes' defaults, for the first node of a machine.
    pub fn new(node: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            node: node.into(),
            dir: dir.into(),
            host_ip: IpAddr::from([127, 0, 0, 1]),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pods_max: PODS_MAX,
            pod_network: PodNetwork::loopback(0),
            crash_loop: CrashLoopTimes::default(),
            capacity: BTreeMap::new(),
        }
    }
}

/// Why an agent cannot be.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot use the agent's directory {dir}")]
    Dir { dir: PathBuf, source: std::io::Error },
}

/// What all actors of one agent share. Holds no actor; outlives their restarts.
pub struct Agent {
    pub(crate) config: AgentConfig,
    pub(crate) runtimes: Runtimes,
    pub(crate) control: Arc<dyn ControlPlane>,
    pub(crate) layout: Layout,
    pub(crate) assignments: Assignments,
    pub(crate) addresses: Mutex<Addresses>,
    pub(crate) board: StatusBoard,
    pub(crate) recorder: Recorder,
    /// Holds the lock of [`Layout::lock`] until the last of this agent's actors is gone.
    _lock: std::fs::File,
}

impl Agent {
    /// Reads what an earlier agent of this directory left. Starts nothing.
    pub fn new(
        config: AgentConfig,
        runtimes: Runtimes,
        control: Arc<dyn ControlPlane>,
    ) -> Result<Arc<Self>, AgentError> {
        let failed = |source| AgentError::Dir { dir: config.dir.clone(), source };
        let layout = Layout::new(std::path::absolute(&config.dir).map_err(failed)?);
        let assignments = Assignments::load(layout.clone()).map_err(failed)?;
        let lock = std::fs::File::create(layout.lock()).map_err(failed)?;
        // Waits at most for a shim that is just looking whether it is held.
        lock.lock_shared().map_err(failed)?;
        let mut addresses = Addresses::new(config.pod_network);
        for known in assignments.all() {
            if let Some(ip) = known.ip {
                addresses.keep(known.uid(), ip);
            }
        }
        Ok(Arc::new(Self {
            config,
            runtimes,
            control,
            layout,
            assignments,
            addresses: Mutex::new(addresses),
            board: StatusBoard::default(),
            recorder: Recorder::default(),
            _lock: lock,
        }))
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Ends every container of this node: SIGTERM, SIGKILL after `grace`. For a machine that is switched off; the agent's
    /// tree must have been stopped before, else it restarts them. The pods remain assigned, and run again at the next
    /// start.
    pub async fn stop_containers(&self, grace: Duration) {
        let mut stops = Vec::new();
        for known in self.assignments.all() {
            let class = known.pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
            let Some(runtime) = self.runtimes.select(class) else { continue };
            let names = known.pod.spec.iter().flat_map(|spec| {
                let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
                all.map(|container| container.name.clone())
            });
            for name in names {
                let last = self.layout.attempts(known.uid(), &name).into_iter().next_back();
                let Some(attempt) = last else { continue };
                let (runtime, dir) = (runtime.clone(), self.layout.attempt(known.uid(), &name, attempt));
                // Nobody is left to fence it should the lease lapse meanwhile.
                let grace = if is_exclusive(&known.pod) { Duration::ZERO } else { grace };
                stops.push(async move {
                    let Ok(Some(container)) = runtime.adopt(&dir).await else { return };
                    // Signals to a container that has ended are no errors; one that does not heed them is killed.
                    let _ = container.signal(SIGTERM).await;
                    if tokio::time::timeout(grace, container.wait()).await.is_err() {
                        let _ = container.kill().await;
                        let _ = tokio::time::timeout(KILLED_WITHIN, container.wait()).await;
                    }
                });
            }
        }
        futures::future::join_all(stops).await;
    }

    /// The tree, to be started as a top-level supervisor `agent` or as somebody's child.
    ///
    /// `sync` comes last: pods exist before anybody assigns any. A failing reporter takes the pods' actors along, who
    /// find their containers again and report anew.
    pub fn tree(self: &Arc<Self>) -> SupervisorSpec {
        let (reporter, node, sync) = (self.clone(), self.clone(), self.clone());
        SupervisorSpec::new("agent", Strategy::RestForOne)
            .unlimited()
            .child(ChildSpec::actor("reporter", move || Reporter::new(reporter.clone())).backoff(Backoff::default()))
            .child(ChildSpec::supervisor("pods", || SupervisorSpec::new("pods", Strategy::Dynamic).unlimited()))
            .child(ChildSpec::actor("node", move || NodeActor::new(node.clone())).backoff(Backoff::default()))
            .child(ChildSpec::actor("sync", move || SyncActor::new(sync.clone())).backoff(Backoff::default()))
    }
}

/// The pauses between tries of something that concerns another machine: 50 ms, doubling to 5 s.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    tries: u32,
}

impl Retry {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = Duration::from_millis(50 << self.tries.min(7)).min(Duration::from_secs(5));
        self.tries += 1;
        pause
    }

    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}
