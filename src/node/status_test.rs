use super::*;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn pod(policy: &str, init: usize, containers: usize) -> Pod {
    let list = |prefix: &str, count: usize| -> Vec<_> {
        (0..count).map(|n| json!({"name": format!("{prefix}{n}"), "image": "img"})).collect()
    };
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "initContainers": list("i", init), "containers": list("c", containers)},
    }))
    .unwrap()
}

fn ended(exit_code: i32) -> Termination {
    Termination {
        exit_code,
        signal: None,
        reason: if exit_code == 0 { "Completed" } else { "Error" }.into(),
        message: None,
        started_at: Some(at(0)),
        finished_at: at(1),
        container_id: Some("process://x".into()),
    }
}

fn view(word: &str) -> ContainerView {
    let base = ContainerView::initial("ContainerCreating");
    match word {
        "new" => base,
        "run" => ContainerView { state: RunState::Running { started_at: at(0) }, started: true, ready: true, ..base },
        "unready" => ContainerView { state: RunState::Running { started_at: at(0) }, started: true, ..base },
        "ok" => ContainerView { state: RunState::Terminated(ended(0)), ..base },
        "bad" => ContainerView { state: RunState::Terminated(ended(3)), ..base },
        "crash" => ContainerView {
            state: RunState::waiting("CrashLoopBackOff"),
            last: Some(ended(1)),
            restart_count: 4,
            ..base
        },
        _ => panic!("{word}"),
    }
}

fn status_of(policy: &str, init: &[&str], containers: &[&str], previous: Option<&PodStatus>, now: i64) -> PodStatus {
    let pod = pod(policy, init.len(), containers.len());
    let views = |words: &[&str]| words.iter().map(|word| view(word)).collect::<Vec<_>>();
    pod_status(&Facts {
        pod: &pod,
        init: &views(init),
        containers: &views(containers),
        host_ip: "10.0.0.1",
        pod_ip: Some("127.1.0.1"),
        start_time: at(0),
        failed: None,
        previous,
        now: at(now),
    })
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == kind).unwrap()
}

#[test]
fn the_phase_is_the_kubelets() {
    for (policy, init, containers, phase) in [
        ("Always", &[][..], &["new", "run"][..], "Pending"),
        ("Always", &[], &["run", "run"], "Running"),
        ("Always", &[], &["run", "bad"], "Running"),
        ("Always", &[], &["ok", "ok"], "Running"),
        ("Always", &[], &["crash"], "Running"),
        ("Never", &[], &["ok", "ok"], "Succeeded"),
        ("Never", &[], &["ok", "bad"], "Failed"),
        ("Never", &[], &["run", "bad"], "Running"),
        ("OnFailure", &[], &["ok", "ok"], "Succeeded"),
        ("OnFailure", &[], &["ok", "bad"], "Running"),
        ("OnFailure", &[], &["ok", "crash"], "Running"),
        ("Always", &["run"], &["new"], "Pending"),
        ("Always", &["ok", "bad"], &["new"], "Pending"),
        ("Never", &["ok", "bad"], &["new"], "Failed"),
        ("Never", &["ok", "ok"], &["run"], "Running"),
        ("Always", &["ok"], &["new"], "Pending"),
    ] {
        let status = status_of(policy, init, containers, None, 5);
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {init:?} {containers:?}");
    }
}

#[test]
fn conditions_say_which_containers_are_missing() {
    let status = status_of("Always", &["ok", "run"], &["new", "new"], None, 5);
    let initialized = condition(&status, "Initialized");
    assert_eq!(
        (&*initialized.status, initialized.reason.as_deref(), initialized.message.as_deref()),
        ("False", Some("ContainersNotInitialized"), Some("containers with incomplete status: [i1]"))
    );
    let status = status_of("Always", &[], &["run", "unready"], None, 5);
    for kind in ["Ready", "ContainersReady"] {
        let ready = condition(&status, kind);
        assert_eq!(
            (&*ready.status, ready.reason.as_deref(), ready.message.as_deref()),
            ("False", Some("ContainersNotReady"), Some("containers with unready status: [c1]"))
        );
    }
    let status = status_of("Never", &[], &["ok"], None, 5);
    let ready = condition(&status, "Ready");
    assert_eq!((&*ready.status, ready.reason.as_deref()), ("False", Some("PodCompleted")));
    assert_eq!(condition(&status, "Initialized").status, "True");
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&status_of("Always", &[], &["run"], None, 5), kind).status, "True", "{kind}");
    }
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let first = status_of("Always", &[], &["unready"], None, 10);
    let second = status_of("Always", &[], &["run"], Some(&first), 20);
    let third = status_of("Always", &[], &["run"], Some(&second), 30);
    let since = |status: &PodStatus, kind: &str| condition(status, kind).last_transition_time.clone().unwrap().0;
    assert_eq!(since(&second, "Initialized"), at(10));
    assert_eq!(since(&second, "Ready"), at(20));
    assert_eq!(third, second, "nothing changed, so nothing is to be reported");
}

#[test]
fn container_statuses_have_kubernetes_shape() {
    let status = status_of("Always", &[], &["crash"], None, 5);
    let got = serde_json::to_value(&status.container_statuses.unwrap()[0]).unwrap();
    assert_eq!(
        got,
        json!({
            "name": "c0", "image": "img", "imageID": "img", "ready": false, "restartCount": 4, "started": false,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"containerID": "process://x", "exitCode": 1, "reason": "Error",
                "startedAt": "2027-01-15T08:00:00Z", "finishedAt": "2027-01-15T08:00:01Z"}},
        })
    );
}

#[test]
fn readiness_gates_hold_the_pod_back_and_foreign_conditions_stay() {
    let mut pod = pod("Always", 0, 1);
    pod.spec.as_mut().unwrap().readiness_gates =
        Some(vec![serde_json::from_value(json!({"conditionType": "example.com/lb"})).unwrap()]);
    let views = [view("run")];
    let status = |pod: &Pod| {
        pod_status(&Facts {
            pod,
            init: &[],
            containers: &views,
            host_ip: "h",
            pod_ip: Some("p"),
            start_time: at(0),
            failed: None,
            previous: None,
            now: at(1),
        })
    };
    let closed = status(&pod);
    assert_eq!(condition(&closed, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    assert_eq!(condition(&closed, "ContainersReady").status, "True");
    pod.status = serde_json::from_value(json!({"conditions": [{"type": "example.com/lb", "status": "True"}]})).unwrap();
    let open = status(&pod);
    assert_eq!(condition(&open, "Ready").status, "True");
    assert_eq!(condition(&open, "example.com/lb").status, "True");
}

#[test]
fn init_containers_run_one_after_the_other() {
    let views = |words: &[&str]| words.iter().map(|word| view(word)).collect::<Vec<_>>();
    for (policy, init, expected) in [
        (RestartPolicy::Always, &[][..], Plan::Containers),
        (RestartPolicy::Always, &["new", "new"], Plan::Init(0)),
        (RestartPolicy::Always, &["ok", "new"], Plan::Init(1)),
        (RestartPolicy::Always, &["bad", "new"], Plan::Init(0)),
        (RestartPolicy::Never, &["bad", "new"], Plan::Nothing),
        (RestartPolicy::Never, &["ok", "run"], Plan::Init(1)),
        (RestartPolicy::Never, &["ok", "ok"], Plan::Containers),
    ] {
        assert_eq!(plan(policy, &views(init)), expected, "{policy:?} {init:?}");
    }
}

#[test]
fn the_qos_class_follows_requests_and_limits() {
    for (resources, class) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
    ] {
        let mut pod = pod("Always", 0, 1);
        pod.spec.as_mut().unwrap().containers[0].resources = serde_json::from_value(resources).unwrap();
        assert_eq!(qos_class(&pod), class);
    }
}

proptest::proptest! {
    #[test]
    fn a_ready_pod_runs_and_an_ended_one_is_not_ready(
        policy in proptest::sample::select(vec!["Always", "OnFailure", "Never"]),
        init in proptest::collection::vec(proptest::sample::select(vec!["new", "run", "ok", "bad", "crash"]), 0..3),
        containers in proptest::collection::vec(proptest::sample::select(vec!["new", "run", "unready", "ok", "bad", "crash"]), 1..4),
    ) {
        let status = status_of(policy, &init, &containers, None, 5);
        let phase = status.phase.clone().unwrap();
        let ready = condition(&status, "Ready").status == "True";
        if phase == "Succeeded" || phase == "Failed" {
            proptest::prop_assert!(!ready);
        }
        if containers.iter().any(|word| *word != "run") {
            proptest::prop_assert!(!ready);
        }
        if phase == "Succeeded" {
            proptest::prop_assert!(containers.iter().all(|word| *word == "ok"));
        }
    }
}
