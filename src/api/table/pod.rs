//! The cells of a pod: the status word and the restarts, by the rules of Kubernetes' printer.

use serde_json::Value;

use super::rows::text;
use crate::api::quantity::age;
use crate::api::{Object, meta};

const NONE: &str = "<none>";

pub fn cells(pod: &Object, name: Value, pod_age: Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = Summary::of(pod);
    let mut restarts = summary.restarts.to_string();
    if let (1.., Some(at)) = (summary.restarts, summary.last_restart) {
        restarts = format!("{restarts} ({} ago)", age(Some(at), now));
    }
    let ip = list(&status["podIPs"]).first().map_or(&status["podIP"], |ip| &ip["ip"]);
    vec![
        name,
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.word.into(),
        restarts.into(),
        pod_age,
        text(ip, NONE).into(),
        text(&spec["nodeName"], NONE).into(),
        text(&status["nominatedNodeName"], NONE).into(),
        readiness_gates(pod).into(),
    ]
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn condition<'a>(pod: &'a Object, kind: &str) -> Option<&'a Value> {
    list(&pod["status"]["conditions"]).iter().find(|condition| condition["type"] == kind)
}

fn is_true(condition: Option<&Value>) -> bool {
    condition.is_some_and(|condition| condition["status"] == "True")
}

fn readiness_gates(pod: &Object) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|gate| is_true(condition(pod, text(&gate["conditionType"], ""))));
    format!("{}/{}", open.count(), gates.len())
}

#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<jiff::Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += container["restartCount"].as_i64().unwrap_or(0);
        let ended = container["lastState"]["terminated"]["finishedAt"].as_str().and_then(|at| at.parse().ok());
        self.last = self.last.max(ended);
    }
}

/// What `kubectl get pods` says about a pod.
pub struct Summary {
    /// Such as `Running`, `Init:0/1`, `CrashLoopBackOff`, `Terminating`.
    pub word: String,
    pub ready: usize,
    pub total: usize,
    pub restarts: i64,
    pub last_restart: Option<jiff::Timestamp>,
}

impl Summary {
    pub fn of(pod: &Object) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let init = list(&spec["initContainers"]);
        let is_sidecar = |name: &Value| init.iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always");
        let sidecars = init.iter().filter(|c| c["restartPolicy"] == "Always").count();
        let mut word = text(&status["reason"], text(&status["phase"], "")).to_owned();
        if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
            word = "SchedulingGated".to_owned();
        }
        let (mut restarts, mut sidecar_restarts) = (Restarts::default(), Restarts::default());
        let (mut ready, mut initializing) = (0, false);
        for (at, container) in list(&status["initContainerStatuses"]).iter().enumerate() {
            restarts.add(container);
            let sidecar = is_sidecar(&container["name"]);
            if sidecar {
                sidecar_restarts.add(container);
            }
            let (ended, waits) = (&container["state"]["terminated"], &container["state"]["waiting"]);
            if !ended.is_null() && ended["exitCode"].as_i64().unwrap_or(0) == 0 {
                continue;
            }
            if sidecar && container["started"] == Value::Bool(true) {
                ready += usize::from(container["ready"] == Value::Bool(true));
                continue;
            }
            let why = text(&waits["reason"], "");
            word = if !ended.is_null() {
                format!("Init:{}", ending(ended))
            } else if !why.is_empty() && why != "PodInitializing" {
                format!("Init:{why}")
            } else {
                format!("Init:{at}/{}", init.len())
            };
            initializing = true;
            break;
        }
        if !initializing || is_true(condition(pod, "Initialized")) {
            restarts = sidecar_restarts;
            let mut running = false;
            for container in list(&status["containerStatuses"]).iter().rev() {
                restarts.add(container);
                let state = &container["state"];
                let waits = text(&state["waiting"]["reason"], "");
                if !waits.is_empty() {
                    word = waits.to_owned();
                } else if !state["terminated"].is_null() {
                    word = ending(&state["terminated"]);
                } else if container["ready"] == Value::Bool(true) && !state["running"].is_null() {
                    running = true;
                    ready += 1;
                }
            }
            if word == "Completed" && running {
                word = if is_true(condition(pod, "Ready")) { "Running" } else { "NotReady" }.to_owned();
            }
        }
        if meta::is_terminating(pod) {
            if status["reason"] == "NodeLost" {
                word = "Unknown".to_owned();
            } else if !matches!(text(&status["phase"], ""), "Succeeded" | "Failed") {
                word = "Terminating".to_owned();
            }
        }
        Summary {
            word,
            ready,
            total: list(&spec["containers"]).len() + sidecars,
            restarts: restarts.count,
            last_restart: restarts.last,
        }
    }
}

/// How a container ended: its reason, else its signal, else its exit code.
fn ending(terminated: &Value) -> String {
    match (text(&terminated["reason"], ""), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
