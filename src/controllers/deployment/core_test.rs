//! Behaviour of deployments, on a simulated cluster: ReplicaSets get their pods at once, pods become ready when told.

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::ReplicaSetStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::rollout::max_unavailable;
use super::*;

struct Sim {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// Ready or not, by set.
    pods: Vec<Vec<bool>>,
    /// Pods of Recreate that take their time to go, by set.
    lingering: Vec<usize>,
    now: Timestamp,
    events: Vec<String>,
    made: usize,
}

impl Sim {
    fn new(spec: Value) -> Sim {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {
                "replicas": 4,
                "selector": {"matchLabels": {"app": "x"}},
                "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
            },
        });
        for (key, field) in spec.as_object().unwrap() {
            value["spec"][key] = field.clone();
        }
        Sim {
            deployment: serde_json::from_value(value).unwrap(),
            sets: Vec::new(),
            pods: Vec::new(),
            lingering: Vec::new(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            events: Vec::new(),
            made: 0,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut k8s_openapi::api::apps::v1::DeploymentSpec)) {
        change(self.deployment.spec.as_mut().unwrap());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn image(&mut self, image: &str) {
        let image = image.to_owned();
        self.change(|spec| spec.template.spec.as_mut().unwrap().containers[0].image = Some(image));
    }

    fn scale(&mut self, replicas: i32) {
        self.change(|spec| spec.replicas = Some(replicas));
    }

    /// One pass of the deployment controller, carried out. False when there was nothing to write.
    fn pass(&mut self) -> bool {
        let stored: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let mut pods = Vec::new();
        for (set, lingering) in self.sets.iter().zip(&self.lingering) {
            for _ in 0..*lingering {
                let mut pod = Pod::default();
                let uid = set.metadata.uid.clone().unwrap();
                pod.metadata.owner_references = serde_json::from_value(
                    json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "n", "uid": uid, "controller": true}]),
                )
                .unwrap();
                pods.push(Arc::new(pod));
            }
        }
        let plan = plan(&self.deployment, &stored, &pods, self.now);
        let busy = !plan.is_settled();
        if let Some(mut set) = plan.create {
            self.made += 1;
            set.metadata.uid = Some(format!("rs{}", self.made));
            set.metadata.generation = Some(1);
            set.metadata.creation_timestamp = Some(Time(self.now));
            assert!(self.sets.iter().all(|other| other.metadata.name != set.metadata.name), "names are unique");
            self.sets.push(set);
            self.pods.push(Vec::new());
            self.lingering.push(0);
        }
        for set in plan.update {
            let at = self.sets.iter().position(|other| other.metadata.uid == set.metadata.uid).unwrap();
            self.sets[at] = set;
        }
        for set in plan.delete {
            let at = self.sets.iter().position(|other| other.metadata.uid == set.metadata.uid).unwrap();
            assert!(self.pods[at].is_empty(), "no set with pods is deleted");
            self.sets.remove(at);
            self.pods.remove(at);
            self.lingering.remove(at);
        }
        if let Some(revision) = plan.revision {
            super::super::template::annotate(&mut self.deployment.metadata, REVISION, revision);
        }
        if let Some(status) = plan.status {
            self.deployment.status = Some(status);
        }
        self.events.extend(plan.scaled);
        busy
    }

    /// The ReplicaSet controller: gives each set its pods, taking unready ones first.
    fn replica_sets(&mut self) {
        for (set, pods) in self.sets.iter_mut().zip(&mut self.pods) {
            let wanted = replicas(set) as usize;
            pods.sort_unstable_by(|a, b| b.cmp(a));
            pods.resize(wanted, false);
            let ready = pods.iter().filter(|ready| **ready).count() as i32;
            let count = |count: i32| (count > 0).then_some(count);
            set.status = Some(ReplicaSetStatus {
                replicas: wanted as i32,
                ready_replicas: count(ready),
                available_replicas: count(ready),
                terminating_replicas: Some(0),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    fn make_ready(&mut self, most: usize) {
        let waiting = self.pods.iter_mut().flatten().filter(|ready| !**ready);
        waiting.take(most).for_each(|ready| *ready = true);
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            let busy = self.pass();
            let before = self.sets.clone();
            self.replica_sets();
            self.make_ready(1);
            self.replica_sets();
            if !busy && before == self.sets {
                return;
            }
        }
        panic!("the rollout does not come to rest: {:#?}", self.events);
    }

    fn available(&self) -> i32 {
        self.pods.iter().flatten().filter(|ready| **ready).count() as i32
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(replicas).sum()
    }

    fn progressing(&self) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let found = condition(status, PROGRESSING).unwrap();
        (found.status.clone(), found.reason.clone().unwrap())
    }

    fn set_of(&self, image: &str) -> &ReplicaSet {
        let has = |set: &&ReplicaSet| {
            let template = set.spec.as_ref().unwrap().template.as_ref().unwrap();
            template.spec.as_ref().unwrap().containers[0].image.as_deref() == Some(image)
        };
        self.sets.iter().find(has).unwrap()
    }
}

fn note(set: &ReplicaSet, key: &str) -> String {
    annotation(&set.metadata, &format!("deployment.kubernetes.io/{key}")).unwrap_or_default().to_owned()
}

#[test]
fn the_first_pass_creates_a_set_of_full_size() {
    let mut sim = Sim::new(json!({}));
    sim.pass();
    let set = &sim.sets[0];
    assert_eq!(replicas(set), 4);
    assert_eq!(
        (note(set, "revision"), note(set, "desired-replicas"), note(set, "max-replicas")),
        ("1".into(), "4".into(), "5".into())
    );
    let hash = &set.metadata.labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(set.metadata.name.as_deref(), Some(&*format!("web-{hash}")));
    assert_eq!(set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()["pod-template-hash"], *hash);
    assert_eq!(annotation(&sim.deployment.metadata, REVISION), Some("1"));
    assert_eq!(sim.progressing(), ("True".into(), "NewReplicaSetCreated".into()));
    sim.settle();
    assert_eq!(sim.progressing(), ("True".into(), "NewReplicaSetAvailable".into()));
    let status = sim.deployment.status.as_ref().unwrap();
    assert_eq!((status.replicas, status.updated_replicas, status.available_replicas), (Some(4), Some(4), Some(4)));
    assert_eq!((status.unavailable_replicas, status.observed_generation), (None, Some(1)));
    assert_eq!(sim.sets.len(), 1, "the same template is found again");
    assert_eq!(sim.events, [format!("Scaled up replica set web-{} from 0 to 4", hash_of(&sim))]);
}

fn hash_of(sim: &Sim) -> String {
    sim.sets[0].metadata.labels.as_ref().unwrap()["pod-template-hash"].clone()
}

/// The order of steps that a real Kubernetes shows for six replicas with 25 % each way.
#[test]
fn a_rolling_update_takes_kubernetes_steps() {
    let mut sim = Sim::new(json!({"replicas": 6}));
    sim.settle();
    let old = sim.sets[0].metadata.name.clone().unwrap();
    sim.events.clear();
    sim.image("nginx:2");
    sim.pass();
    let new = sim.set_of("nginx:2").metadata.name.clone().unwrap();
    assert_eq!(
        sim.events,
        [format!("Scaled up replica set {new} from 0 to 2"), format!("Scaled down replica set {old} from 6 to 5")]
    );
    sim.replica_sets();
    sim.events.clear();
    sim.pass();
    assert_eq!(sim.events, [format!("Scaled up replica set {new} from 2 to 3")]);
    sim.settle();
    assert_eq!((replicas(sim.set_of("nginx:1")), replicas(sim.set_of("nginx:2"))), (0, 6));
    assert_eq!(note(sim.set_of("nginx:2"), "revision"), "2");
}

#[test]
fn going_back_reuses_the_old_set_under_a_new_revision() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.image("nginx:2");
    sim.settle();
    sim.image("nginx:1");
    sim.settle();
    assert_eq!(sim.sets.len(), 2);
    let back = sim.set_of("nginx:1");
    assert_eq!((replicas(back), note(back, "revision"), note(back, "revision-history")), (4, "3".into(), "1".into()));
    assert_eq!(annotation(&sim.deployment.metadata, REVISION), Some("3"));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.change(|spec| spec.paused = Some(true));
    sim.settle();
    assert_eq!(sim.progressing(), ("Unknown".into(), "DeploymentPaused".into()));
    sim.image("nginx:2");
    sim.scale(6);
    sim.settle();
    assert_eq!((sim.sets.len(), replicas(&sim.sets[0])), (1, 6));
    assert_eq!(sim.deployment.status.as_ref().unwrap().updated_replicas, None);
    sim.change(|spec| spec.paused = None);
    sim.settle();
    assert_eq!(replicas(sim.set_of("nginx:2")), 6);
    assert_eq!(sim.progressing(), ("True".into(), "NewReplicaSetAvailable".into()));
}

#[test]
fn a_rollout_that_stands_still_exceeds_its_deadline_and_recovers_when_it_is_undone() {
    let mut sim = Sim::new(json!({"replicas": 6, "progressDeadlineSeconds": 3}));
    sim.settle();
    sim.image("broken");
    for _ in 0..5 {
        sim.pass();
        sim.replica_sets();
    }
    let stored: Vec<_> = sim.sets.iter().cloned().map(Arc::new).collect();
    let again = plan(&sim.deployment, &stored, &[], sim.now).again_at.expect("the deadline is watched");
    assert!(again <= sim.now + SignedDuration::from_secs(5));
    sim.now = again;
    sim.pass();
    assert_eq!(sim.progressing(), ("False".into(), "ProgressDeadlineExceeded".into()));
    let status = sim.deployment.status.clone().unwrap();
    assert_eq!((status.replicas, status.updated_replicas, status.available_replicas), (Some(8), Some(3), Some(5)));
    assert_eq!(status.unavailable_replicas, Some(3));
    sim.image("nginx:1");
    sim.settle();
    assert_eq!(sim.progressing(), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(sim.deployment.status.unwrap().available_replicas, Some(6));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut sim = Sim::new(json!({"strategy": {"type": "Recreate"}}));
    sim.settle();
    assert_eq!(note(&sim.sets[0], "max-replicas"), "4");
    sim.image("nginx:2");
    sim.lingering[0] = 1;
    for _ in 0..4 {
        sim.pass();
        sim.replica_sets();
    }
    assert_eq!((sim.sets.len(), sim.total()), (1, 0), "one old pod is still terminating");
    sim.lingering[0] = 0;
    sim.settle();
    assert_eq!(replicas(sim.set_of("nginx:2")), 4);
}

#[test]
fn old_sets_beyond_the_history_limit_are_deleted_from_the_oldest() {
    let mut sim = Sim::new(json!({"revisionHistoryLimit": 2}));
    for image in ["a", "b", "c", "d", "e"] {
        sim.image(image);
        sim.settle();
    }
    let mut revisions: Vec<i64> = sim.sets.iter().map(|set| revision(&set.metadata)).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [3, 4, 5]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut sim = Sim::new(
        json!({"replicas": 10, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2, "maxSurge": 3}}}),
    );
    sim.settle();
    sim.image("nginx:2");
    for _ in 0..3 {
        sim.pass();
        sim.replica_sets();
    }
    assert_eq!((replicas(sim.set_of("nginx:1")), replicas(sim.set_of("nginx:2"))), (8, 5));
    sim.scale(15);
    sim.pass();
    // Kubernetes' own example: 13 pods grow to 18, three of the five new ones to the larger set.
    assert_eq!((replicas(sim.set_of("nginx:1")), replicas(sim.set_of("nginx:2"))), (11, 7));
    sim.settle();
    assert_eq!(replicas(sim.set_of("nginx:2")), 15);
}

#[test]
fn scaled_to_zero_and_back() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.scale(0);
    sim.settle();
    assert_eq!(sim.total(), 0);
    sim.scale(3);
    sim.settle();
    assert_eq!((sim.total(), sim.sets.len()), (3, 1));
}

#[test]
fn a_set_of_the_same_labels_is_adopted_before_anything_else() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.sets[0].metadata.owner_references = None;
    let stored = [Arc::new(sim.sets[0].clone())];
    let step = plan(&sim.deployment, &stored, &[], sim.now);
    assert_eq!((step.adopt.len(), step.create), (1, None));
}

#[test]
fn a_name_that_is_taken_leads_to_another() {
    let mut sim = Sim::new(json!({}));
    let first = plan(&sim.deployment, &[], &[], sim.now).create.unwrap();
    sim.deployment.status = Some(after_collision(&sim.deployment));
    let second = plan(&sim.deployment, &[], &[], sim.now).create.unwrap();
    assert_ne!(first.metadata.name, second.metadata.name);
}

#[test]
fn a_new_annotation_of_the_deployment_reaches_its_current_set() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    let annotations = sim.deployment.metadata.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/change-cause".to_owned(), "because".to_owned());
    annotations.insert("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "{}".to_owned());
    sim.settle();
    assert_eq!(annotation(&sim.sets[0].metadata, "kubernetes.io/change-cause"), Some("because"));
    assert_eq!(annotation(&sim.sets[0].metadata, "kubectl.kubernetes.io/last-applied-configuration"), None);
}

#[test]
fn surge_rounds_up_and_unavailable_rounds_down_and_both_zero_lets_one_go() {
    let bounds = |replicas: i32, unavailable: Value, surge: Value| {
        let sim = Sim::new(json!({
            "replicas": replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}},
        }));
        (max_unavailable(&sim.deployment), max_surge(&sim.deployment))
    };
    assert_eq!(bounds(10, json!("25%"), json!("25%")), (2, 3));
    assert_eq!(bounds(3, json!("25%"), json!("25%")), (0, 1));
    assert_eq!(bounds(3, json!(0), json!(0)), (1, 0));
    assert_eq!(bounds(1, json!("10%"), json!("0%")), (1, 0));
    assert_eq!(bounds(2, json!(5), json!(1)), (2, 1));
    assert_eq!(bounds(0, json!("25%"), json!("25%")), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Pass,
    ReplicaSets,
    Ready(usize),
    Image(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Pass),
        4 => Just(Step::ReplicaSets),
        3 => (1usize..4).prop_map(Step::Ready),
        1 => (0u8..4).prop_map(Step::Image),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever order the controllers and the nodes act in, and however often the template changes on the way, a rolling
    /// update keeps both of its bounds at every moment, and comes to rest with what was asked for.
    #[test]
    fn a_rolling_update_keeps_its_bounds(
        replicas in 1i32..12, unavailable in 0i32..5, surge in 0i32..5, steps in steps(),
    ) {
        let mut sim = Sim::new(json!({
            "replicas": replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}},
        }));
        sim.settle();
        let least = replicas - max_unavailable(&sim.deployment);
        let most = replicas + max_surge(&sim.deployment);
        for step in steps {
            match step {
                Step::Pass => { sim.pass(); }
                Step::ReplicaSets => sim.replica_sets(),
                Step::Ready(count) => sim.make_ready(count),
                Step::Image(image) => sim.image(&format!("i{image}")),
            }
            prop_assert!(sim.total() <= most, "{} pods wanted, {most} allowed", sim.total());
            prop_assert!(sim.available() >= least, "{} available, {least} needed", sim.available());
        }
        sim.settle();
        prop_assert_eq!((sim.total(), sim.available()), (replicas, replicas));
        let status = sim.deployment.status.clone().unwrap();
        prop_assert_eq!(status.updated_replicas, Some(replicas));
    }

    /// Scaling, pausing and changing the template at any moment never keeps it from coming to rest.
    #[test]
    fn it_converges_after_any_changes(changes in prop::collection::vec((0u8..4, 0i32..9, 0usize..4), 0..20)) {
        let mut sim = Sim::new(json!({}));
        for (kind, number, passes) in changes {
            match kind {
                0 => sim.scale(number),
                1 => sim.image(&format!("i{number}")),
                2 => sim.change(|spec| spec.paused = Some(number % 2 == 0)),
                _ => sim.make_ready(number as usize),
            }
            for _ in 0..passes {
                sim.pass();
                sim.replica_sets();
            }
        }
        sim.change(|spec| spec.paused = None);
        sim.settle();
        let wanted = desired(&sim.deployment);
        prop_assert_eq!((sim.total(), sim.available()), (wanted, wanted));
    }
}
