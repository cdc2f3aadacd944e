//! The page of a pod, and of a pod template.

use serde_json::Value;

use super::page::{Page, controller, head, labels};
use crate::cli::text::{self, NONE};

/// A pod's page.
pub fn page(pod: &Value) -> String {
    let mut page = Page::default();
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let some = |p: &str| match text::str_at(pod, p) {
        "" => NONE.to_owned(),
        set => set.to_owned(),
    };
    head(&mut page, pod);
    page.field(0, "Priority", text::int_at(pod, "/spec/priority").to_string());
    if spec["priorityClassName"].is_string() {
        page.field(0, "Priority Class Name", some("/spec/priorityClassName"));
    }
    if spec["runtimeClassName"].is_string() {
        page.field(0, "Runtime Class Name", some("/spec/runtimeClassName"));
    }
    page.field(0, "Service Account", some("/spec/serviceAccountName"));
    let node = match (text::str_at(pod, "/spec/nodeName"), text::str_at(pod, "/status/hostIP")) {
        ("", _) => NONE.to_owned(),
        (node, "") => node.to_owned(),
        (node, ip) => format!("{node}/{ip}"),
    };
    page.field(0, "Node", node);
    if status["startTime"].is_string() {
        page.field(0, "Start Time", text::long_time(&status["startTime"]));
    }
    labels(&mut page, pod);
    if pod["metadata"]["deletionTimestamp"].is_string() {
        page.field(
            0,
            "Status",
            format!("Terminating (since {})", text::long_time(&pod["metadata"]["deletionTimestamp"])),
        );
        let grace = text::int_at(pod, "/metadata/deletionGracePeriodSeconds");
        page.field(0, "Termination Grace Period", format!("{grace}s"));
    } else {
        page.field(0, "Status", text::str_at(pod, "/status/phase"));
    }
    for (name, pointer) in [("Reason", "/status/reason"), ("Message", "/status/message")] {
        if !text::str_at(pod, pointer).is_empty() {
            page.field(0, name, text::str_at(pod, pointer));
        }
    }
    page.field(0, "IP", text::str_at(pod, "/status/podIP"));
    if let Some(controller) = controller(pod) {
        page.field(0, "Controlled By", controller);
    }
    for (title, list, statuses) in [
        ("Init Containers", "/initContainers", "/initContainerStatuses"),
        ("Containers", "/containers", "/containerStatuses"),
    ] {
        let containers = text::list_at(spec, list);
        if containers.is_empty() {
            continue;
        }
        page.line(0, format!("{title}:"));
        for container in containers {
            let of = text::str_at(container, "/name");
            let state = text::list_at(status, statuses).iter().find(|s| text::str_at(s, "/name") == of);
            page.line(1, format!("{of}:"));
            self::container(&mut page, 2, container, state);
        }
    }
    let conditions = text::list_at(status, "/conditions");
    if !conditions.is_empty() {
        page.line(0, "Conditions:");
        page.row(1, ["Type", "Status", "Reason"]);
        for c in conditions {
            page.row(1, [text::str_at(c, "/type"), text::str_at(c, "/status"), text::str_at(c, "/reason")]);
        }
    }
    volumes(&mut page, 0, spec);
    page.field(0, "QoS Class", text::str_at(pod, "/status/qosClass"));
    placement(&mut page, 0, spec);
    page.finish()
}

/// A pod template as `describe` and `rollout history` show it, two spaces deep.
pub fn pod_template(template: &Value) -> String {
    let mut page = Page::default();
    page.line(0, "Pod Template:");
    page.list(1, "Labels", &text::pairs(&template["metadata"]["labels"], "="));
    let notes = text::pairs(&template["metadata"]["annotations"], ": ");
    if !notes.is_empty() {
        page.list(1, "Annotations", &notes);
    }
    let spec = &template["spec"];
    if spec["runtimeClassName"].is_string() {
        page.field(1, "Runtime Class Name", text::str_at(spec, "/runtimeClassName"));
    }
    for (title, list) in [("Init Containers", "/initContainers"), ("Containers", "/containers")] {
        let containers = text::list_at(spec, list);
        if !containers.is_empty() {
            page.line(1, format!("{title}:"));
        }
        for container in containers {
            page.line(2, format!("{}:", text::str_at(container, "/name")));
            self::container(&mut page, 3, container, None);
        }
    }
    volumes(&mut page, 1, spec);
    placement(&mut page, 1, spec);
    page.finish()
}

fn container(page: &mut Page, indent: usize, container: &Value, status: Option<&Value>) {
    if let Some(status) = status {
        page.field(indent, "Container ID", text::str_at(status, "/containerID"));
    }
    page.field(indent, "Image", text::str_at(container, "/image"));
    let ports: Vec<String> = text::list_at(container, "/ports")
        .iter()
        .map(|p| {
            let protocol = text::str_at(p, "/protocol");
            let protocol = if protocol.is_empty() { "TCP" } else { protocol };
            format!("{}/{protocol}", text::int_at(p, "/containerPort"))
        })
        .collect();
    let port = if ports.len() > 1 { "Ports" } else { "Port" };
    page.field(indent, port, if ports.is_empty() { NONE.to_owned() } else { ports.join(", ") });
    for (title, list) in [("Command", "/command"), ("Args", "/args")] {
        let words = text::list_at(container, list);
        if !words.is_empty() {
            page.line(indent, format!("{title}:"));
            for word in words {
                page.line(indent + 1, text::scalar(word));
            }
        }
    }
    if let Some(status) = status {
        state(page, indent, "State", &status["state"]);
        if status["lastState"].as_object().is_some_and(|s| !s.is_empty()) {
            state(page, indent, "Last State", &status["lastState"]);
        }
        page.field(indent, "Ready", if status["ready"] == true { "True" } else { "False" });
        page.field(indent, "Restart Count", text::int_at(status, "/restartCount").to_string());
    }
    for (title, map) in [("Limits", "/resources/limits"), ("Requests", "/resources/requests")] {
        let quantities = container.pointer(map).map(|m| text::pairs(m, "=")).unwrap_or_default();
        if !quantities.is_empty() {
            page.line(indent, format!("{title}:"));
            for quantity in quantities {
                let (name, value) = quantity.split_once('=').unwrap_or((&quantity, ""));
                page.field(indent + 1, name, value);
            }
        }
    }
    for (title, field) in [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
    {
        if container[field].is_object() {
            page.field(indent, title, probe(&container[field]));
        }
    }
    let env = text::list_at(container, "/env");
    let from = text::list_at(container, "/envFrom");
    if env.is_empty() && from.is_empty() {
        page.field(indent, "Environment", NONE);
    } else {
        page.line(indent, "Environment:");
        for source in from {
            let (kind, of) = if source["secretRef"].is_object() {
                ("Secret", "/secretRef/name")
            } else {
                ("ConfigMap", "/configMapRef/name")
            };
            page.line(indent + 1, format!("from {kind} {}", text::str_at(source, of)));
        }
        for e in env {
            page.field(indent + 1, text::str_at(e, "/name"), env_value(e));
        }
    }
    let mounts = text::list_at(container, "/volumeMounts");
    if mounts.is_empty() {
        page.field(indent, "Mounts", NONE);
    } else {
        page.line(indent, "Mounts:");
        for m in mounts {
            let mode = if m["readOnly"] == true { "ro" } else { "rw" };
            page.line(
                indent + 1,
                format!("{} from {} ({mode})", text::str_at(m, "/mountPath"), text::str_at(m, "/name")),
            );
        }
    }
}

fn env_value(e: &Value) -> String {
    let from = &e["valueFrom"];
    if let Some(field) = from["fieldRef"]["fieldPath"].as_str() {
        let version = from["fieldRef"]["apiVersion"].as_str().unwrap_or("v1");
        return format!("({version}:{field})");
    }
    for (field, kind) in [("secretKeyRef", "secret"), ("configMapKeyRef", "config map")] {
        if from[field].is_object() {
            let (key, name) = (text::str_at(&from[field], "/key"), text::str_at(&from[field], "/name"));
            return format!("<set to the key '{key}' in {kind} '{name}'>");
        }
    }
    if let Some(resource) = from["resourceFieldRef"]["resource"].as_str() {
        return format!("({resource})");
    }
    text::str_at(e, "/value").to_owned()
}

fn state(page: &mut Page, indent: usize, title: &str, state: &Value) {
    let fields: &[(&str, &str)] = match state.as_object().and_then(|s| s.keys().next()).map(String::as_str) {
        Some("running") => {
            page.field(indent, title, "Running");
            page.field(indent + 1, "Started", text::long_time(&state["running"]["startedAt"]));
            return;
        }
        Some("waiting") => {
            page.field(indent, title, "Waiting");
            &[("Reason", "/waiting/reason"), ("Message", "/waiting/message")]
        }
        Some("terminated") => {
            page.field(indent, title, "Terminated");
            &[("Reason", "/terminated/reason"), ("Message", "/terminated/message")]
        }
        _ => {
            page.field(indent, title, "Waiting");
            return;
        }
    };
    for (name, pointer) in fields {
        let value = text::str_at(state, pointer);
        if !value.is_empty() {
            page.field(indent + 1, name, value.replace('\n', "\\n"));
        }
    }
    let ended = &state["terminated"];
    if ended.is_object() {
        match text::int_at(ended, "/signal") {
            0 => page.field(indent + 1, "Exit Code", text::int_at(ended, "/exitCode").to_string()),
            signal => {
                page.field(indent + 1, "Signal", signal.to_string());
                page.field(indent + 1, "Exit Code", text::int_at(ended, "/exitCode").to_string());
            }
        }
        for (name, field) in [("Started", "startedAt"), ("Finished", "finishedAt")] {
            if ended[field].is_string() {
                page.field(indent + 1, name, text::long_time(&ended[field]));
            }
        }
    }
}

/// `http-get http://:8080/healthz delay=0s timeout=1s period=1s #success=1 #failure=3`, as kubectl words it.
fn probe(probe: &Value) -> String {
    let number = |field: &str, default: i64| probe[field].as_i64().unwrap_or(default);
    let action = if let Some(http) = probe.get("httpGet") {
        let scheme = http["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        format!(
            "http-get {scheme}://{}:{}{}",
            text::str_at(http, "/host"),
            text::scalar(&http["port"]),
            text::str_at(http, "/path")
        )
    } else if let Some(tcp) = probe.get("tcpSocket") {
        format!("tcp-socket {}:{}", text::str_at(tcp, "/host"), text::scalar(&tcp["port"]))
    } else if let Some(grpc) = probe.get("grpc") {
        format!("grpc <pod>:{}", text::scalar(&grpc["port"]))
    } else {
        let words: Vec<String> = text::list_at(probe, "/exec/command").iter().map(text::scalar).collect();
        format!("exec [{}]", words.join(" "))
    };
    format!(
        "{action} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3)
    )
}

fn volumes(page: &mut Page, indent: usize, spec: &Value) {
    let volumes = text::list_at(spec, "/volumes");
    if volumes.is_empty() {
        page.field(indent, "Volumes", NONE);
        return;
    }
    page.line(indent, "Volumes:");
    for volume in volumes {
        page.line(indent + 1, format!("{}:", text::str_at(volume, "/name")));
        for (kind, source) in volume.as_object().into_iter().flatten().filter(|(k, _)| *k != "name") {
            page.field(indent + 2, "Type", kind.clone());
            for pair in text::pairs(source, "=") {
                let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
                page.field(indent + 2, name, value);
            }
        }
    }
}

fn placement(page: &mut Page, indent: usize, spec: &Value) {
    page.list(indent, "Node-Selectors", &text::pairs(&spec["nodeSelector"], "="));
    let tolerations: Vec<String> = text::list_at(spec, "/tolerations").iter().map(toleration).collect();
    page.list(indent, "Tolerations", &tolerations);
}

/// `key=value:Effect op=Exists for 300s`.
fn toleration(t: &Value) -> String {
    let mut out = text::str_at(t, "/key").to_owned();
    if !text::str_at(t, "/value").is_empty() {
        out.push_str(&format!("={}", text::str_at(t, "/value")));
    }
    if !text::str_at(t, "/effect").is_empty() {
        out.push_str(&format!(":{}", text::str_at(t, "/effect")));
    }
    if text::str_at(t, "/operator") == "Exists" {
        out.push_str(if out.is_empty() { "op=Exists" } else { " op=Exists" });
    }
    if let Some(seconds) = t["tolerationSeconds"].as_i64() {
        out.push_str(&format!(" for {seconds}s"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_page_tells_its_containers_states() {
        let pod = json!({
            "metadata": {"name": "web-1", "namespace": "x", "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true}]},
            "spec": {"nodeName": "n1", "runtimeClassName": "process", "containers": [{"name": "c", "image": "i",
                "command": ["phalanx", "demo-server"], "ports": [{"containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
                "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
            "status": {"phase": "Running", "podIP": "127.0.0.2", "hostIP": "127.0.0.1", "containerStatuses": [{"name": "c", "ready": true,
                "restartCount": 2, "state": {"running": {"startedAt": "2026-11-23T02:48:39Z"}},
                "lastState": {"terminated": {"exitCode": 137, "reason": "Error"}}}]},
        });
        let page = page(&pod);
        for part in [
            "Name:                web-1\n",
            "Node:                n1/127.0.0.1\n",
            "Controlled By:       ReplicaSet/web\n",
            "    Command:\n      phalanx\n      demo-server\n",
            "    Last State:  Terminated\n",
            "      Exit Code:  137\n",
            "Restart Count:  2\n",
            "http-get http://:8080/healthz delay=0s timeout=1s period=1s #success=1 #failure=3\n",
            "      A:  (v1:metadata.name)\n",
            "k:NoExecute op=Exists for 300s\n",
        ] {
            assert!(page.contains(part), "missing {part:?} in\n{page}");
        }
    }

    #[test]
    fn a_template_is_told_as_in_history() {
        let text = pod_template(&json!({"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1", "ports": [{"containerPort": 80}]}]}}));
        assert!(
            text.starts_with("Pod Template:\n  Labels:  app=web\n  Containers:\n    c:\n      Image:        nginx:1\n"),
            "{text}"
        );
    }
}
