//! The controllers and the scheduler: what runs on the leader to bring the cluster to what its objects ask for.
//!
//! ```text
//!   control (leader only)
//!   ├── scheduler
//!   └── controllers (one_for_one)
//!       ├── deployments       a kind actor; below it `objects`: one supervised actor for each Deployment
//!       ├── replicasets
//!       ├── garbagecollector
//!       ├── namespaces
//!       └── nodes
//! ```
//!
//! Each folder has a pure `core` that decides and a reconciler that carries out; [`reconcile`] is the frame they share. A
//! new controller is a folder, a type that implements [`reconcile::Reconciler`], and one line in [`control_children`].

pub mod deployment;
mod edge;
pub mod garbage;
pub mod index;
pub mod namespace;
pub mod nodes;
pub mod ownership;
pub mod pods;
pub mod reconcile;
pub mod replicaset;
pub mod watches;

use std::sync::Arc;
use std::time::Duration;

use phalanx_actors::{ChildSpec, Strategy, SupervisorSpec};
use tokio::runtime::Handle;

use self::edge::Writer;
use self::reconcile::{Fault, kind_child};
use self::watches::Watches;
use crate::registry::{Recorder, Registry};
use crate::scheduler::actor::{SchedulerDeps, scheduler_child};

/// Restarts of kind actors that `controllers` allows: each makes its controller start from the informers.
const INTENSITY: u32 = 10;
const INTENSITY_PERIOD: Duration = Duration::from_secs(10);

/// What the leader's actors need.
#[derive(Clone)]
pub struct ControlDeps {
    pub registry: Registry,
    pub recorder: Recorder,
    /// Where watches run: the runtime of the store, not an actor's thread.
    pub runtime: Handle,
    /// For tests: called with the key before each pass of an object.
    pub fault: Option<Fault>,
}

/// The scheduler and the controllers, for the `control` supervisor of one term of leadership, together with their watches.
/// All of it ends when these children are stopped and dropped.
pub fn control_children(deps: &ControlDeps) -> (Vec<ChildSpec>, Watches) {
    let watches = Watches::start(&deps.registry, &deps.runtime);
    let (pods, nodes) = (watches.pods.clone(), watches.nodes.clone());
    let scheduler = scheduler_child(SchedulerDeps {
        registry: deps.registry.clone(),
        recorder: deps.recorder.clone(),
        pods: Arc::new(move || pods.subscribe()),
        nodes: Arc::new(move || nodes.subscribe()),
    });
    let (deps, shared) = (deps.clone(), watches.clone());
    let controllers = ChildSpec::supervisor("controllers", move || {
        let writer = |component| Writer::new(deps.registry.clone(), deps.recorder.clone(), component);
        let fault = || deps.fault.clone();
        let parts = |component| (writer(component), shared.clone());
        let (d, r) = (parts("deployment-controller"), parts("replicaset-controller"));
        let (g, s) = (parts("garbage-collector"), parts("namespace-controller"));
        let n = parts("node-controller");
        SupervisorSpec::new("controllers", Strategy::OneForOne)
            .intensity(INTENSITY, INTENSITY_PERIOD)
            .child(kind_child(move || deployment::Deployments::new(d.0.clone(), d.1.clone()), fault()))
            .child(kind_child(move || replicaset::ReplicaSets::new(r.0.clone(), r.1.clone()), fault()))
            .child(kind_child(move || garbage::GarbageCollector::new(g.0.clone(), g.1.clone()), fault()))
            .child(kind_child(move || namespace::Namespaces::new(s.0.clone(), s.1.clone()), fault()))
            .child(kind_child(move || nodes::Nodes::new(n.0.clone(), n.1.clone()), fault()))
    });
    (vec![scheduler, controllers], watches)
}

#[cfg(test)]
mod control_test;
