//! Rules of pods and of the pod templates of workloads.

use serde_json::{Value, json};

use super::{Causes, items, meta, names, text};
use crate::api::Object;
use crate::api::quantity::Quantity;

pub(super) fn pod(obj: &Object, causes: &mut Causes) {
    spec(&obj["spec"], "spec", causes);
    if !items(&obj["spec"]["ephemeralContainers"]).is_empty() && obj["metadata"]["generation"] == 1 {
        causes.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
}

/// A pod's spec, at `path`.
pub(super) fn spec(spec: &Value, path: &str, causes: &mut Causes) {
    let volumes = volumes(&spec["volumes"], &format!("{path}.volumes"), causes);
    let mut names_seen: Vec<&str> = Vec::new();
    for (list, init) in [("containers", false), ("initContainers", true)] {
        for (at, container) in items(&spec[list]).iter().enumerate() {
            let path = format!("{path}.{list}[{at}]");
            let name = text(container, "name");
            if name.is_empty() {
                causes.required(format!("{path}.name"), "");
            } else if let Err(why) = names::dns_label(name) {
                causes.invalid(format!("{path}.name"), &name.into(), &why);
            } else if names_seen.contains(&name) {
                causes.duplicate(format!("{path}.name"), &name.into());
            }
            names_seen.push(name);
            self::container(container, &path, &volumes, init, causes);
        }
    }
    if items(&spec["containers"]).is_empty() {
        causes.required(format!("{path}.containers"), "");
    }
    let enumerated = [
        ("restartPolicy", &["Always", "OnFailure", "Never"][..]),
        ("dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"][..]),
    ];
    for (field, supported) in enumerated {
        causes.one_of(format!("{path}.{field}"), &spec[field], supported);
    }
    let preemption = text(spec, "preemptionPolicy");
    if !preemption.is_empty() && !matches!(preemption, "PreemptLowerPriority" | "Never") {
        causes.not_supported(format!("{path}.preemptionPolicy"), preemption, &["PreemptLowerPriority", "Never"]);
    }
    causes.not_negative(format!("{path}.terminationGracePeriodSeconds"), &spec["terminationGracePeriodSeconds"]);
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline.as_i64().is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        causes.invalid(
            format!("{path}.activeDeadlineSeconds"),
            deadline,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    meta::labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"), causes);
    for (field, check) in [
        ("nodeName", names::dns_subdomain as fn(&str) -> Result<(), String>),
        ("serviceAccountName", names::dns_subdomain),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
        ("schedulerName", names::qualified_name),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
    ] {
        let value = text(spec, field);
        if !value.is_empty()
            && let Err(why) = check(value)
        {
            causes.invalid(format!("{path}.{field}"), &value.into(), &why);
        }
    }
    meta::tolerations(&spec["tolerations"], &format!("{path}.tolerations"), causes);
    affinity(&spec["affinity"], &format!("{path}.affinity"), causes);
    spread(&spec["topologySpreadConstraints"], &format!("{path}.topologySpreadConstraints"), causes);
    host_ports(spec, path, causes);
}

/// The names of the volumes.
fn volumes<'a>(volumes: &'a Value, path: &str, causes: &mut Causes) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for (at, volume) in items(volumes).iter().enumerate() {
        let path = format!("{path}[{at}]");
        let name = text(volume, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else if let Err(why) = names::dns_label(name) {
            causes.invalid(format!("{path}.name"), &name.into(), &why);
        } else if seen.contains(&name) {
            causes.duplicate(format!("{path}.name"), &name.into());
        }
        seen.push(name);
        let sources: Vec<&String> =
            volume.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| *key != "name").collect();
        for extra in sources.iter().skip(1) {
            causes.forbidden(format!("{path}.{extra}"), "may not specify more than 1 volume type");
        }
        for (source, field) in [("hostPath", "path"), ("configMap", "name"), ("secret", "secretName")] {
            if let Some(body) = volume.get(source)
                && text(body, field).is_empty()
            {
                causes.required(format!("{path}.{source}.{field}"), "");
            }
        }
    }
    seen
}

fn container(container: &Value, path: &str, volumes: &[&str], init: bool, causes: &mut Causes) {
    let image = text(container, "image");
    if image.is_empty() {
        causes.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        causes.invalid(format!("{path}.image"), &image.into(), "must not have leading or trailing whitespace");
    }
    ports(&container["ports"], &format!("{path}.ports"), causes);
    env(&container["env"], &format!("{path}.env"), causes);
    for (at, source) in items(&container["envFrom"]).iter().enumerate() {
        let path = format!("{path}.envFrom[{at}]");
        let kinds = ["configMapRef", "secretRef"];
        match kinds.iter().filter(|kind| source.get(**kind).is_some()).count() {
            1 => {
                for kind in kinds {
                    if let Some(body) = source.get(kind)
                        && text(body, "name").is_empty()
                    {
                        causes.required(format!("{path}.{kind}.name"), "");
                    }
                }
            }
            0 => causes.invalid(path, &"".into(), "must specify one of: `configMapRef` or `secretRef`"),
            _ => causes.invalid(path, &"".into(), "may not have more than one field specified at a time"),
        }
    }
    let mut paths: Vec<&str> = Vec::new();
    for (at, mount) in items(&container["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        let (name, mount_path) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else if !volumes.contains(&name) {
            causes.not_found(format!("{path}.name"), &name.into());
        }
        if mount_path.is_empty() {
            causes.required(format!("{path}.mountPath"), "");
        } else if paths.contains(&mount_path) {
            causes.invalid(format!("{path}.mountPath"), &mount_path.into(), "must be unique");
        }
        paths.push(mount_path);
    }
    let sidecar = init && text(container, "restartPolicy") == "Always";
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(body) = container.get(name) {
            if init && !sidecar {
                causes.forbidden(
                    format!("{path}.{name}"),
                    "may not be set for init containers without restartPolicy=Always",
                );
            }
            probe(body, &format!("{path}.{name}"), name != "readinessProbe", causes);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(body) = container["lifecycle"].get(hook) {
            let path = format!("{path}.lifecycle.{hook}");
            if init && !sidecar {
                causes.forbidden(path.as_str(), "may not be set for init containers without restartPolicy=Always");
            }
            handler(body, &path, &["exec", "httpGet", "tcpSocket", "sleep"], causes);
        }
    }
    causes.one_of(
        format!("{path}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    causes.one_of(
        format!("{path}.terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
    );
    resources(&container["resources"], &format!("{path}.resources"), causes);
}

fn is_port(value: &Value) -> bool {
    value.as_i64().is_some_and(|n| (1..=65535).contains(&n))
}

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

fn ports(ports: &Value, path: &str, causes: &mut Causes) {
    let mut seen: Vec<&str> = Vec::new();
    for (at, port) in items(ports).iter().enumerate() {
        let path = format!("{path}[{at}]");
        let name = text(port, "name");
        if !name.is_empty() {
            if let Err(why) = names::port_name(name) {
                causes.invalid(format!("{path}.name"), &name.into(), &why);
            } else if seen.contains(&name) {
                causes.duplicate(format!("{path}.name"), &name.into());
            }
            seen.push(name);
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            causes.required(format!("{path}.containerPort"), "");
        } else if !is_port(&port["containerPort"]) {
            causes.invalid(format!("{path}.containerPort"), &port["containerPort"], PORT_RANGE);
        }
        if port["hostPort"].as_i64().is_some_and(|n| n != 0) && !is_port(&port["hostPort"]) {
            causes.invalid(format!("{path}.hostPort"), &port["hostPort"], PORT_RANGE);
        }
        causes.one_of(format!("{path}.protocol"), &port["protocol"], &["TCP", "UDP", "SCTP"]);
    }
}

/// With the host's network, the host's port is the container's; and no two containers want the same one.
fn host_ports(spec: &Value, path: &str, causes: &mut Causes) {
    let mut taken: Vec<(&str, &str, i64)> = Vec::new();
    for (at, container) in items(&spec["containers"]).iter().enumerate() {
        for (index, port) in items(&container["ports"]).iter().enumerate() {
            let path = format!("{path}.containers[{at}].ports[{index}].hostPort");
            let number = port["hostPort"].as_i64().unwrap_or(0);
            if number == 0 {
                continue;
            }
            if spec["hostNetwork"] == Value::Bool(true) && port["containerPort"].as_i64() != Some(number) {
                causes.invalid(
                    path.as_str(),
                    &port["hostPort"],
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
            let id = (text(port, "protocol"), text(port, "hostIP"), number);
            if taken.contains(&id) {
                causes.duplicate(path, &format!("{}/{}/{number}", id.0, id.1).into());
            }
            taken.push(id);
        }
    }
}

fn env(env: &Value, path: &str, causes: &mut Causes) {
    const SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    for (at, variable) in items(env).iter().enumerate() {
        let path = format!("{path}[{at}]");
        let name = text(variable, "name");
        if name.is_empty() {
            causes.required(format!("{path}.name"), "");
        } else if let Err(why) = names::env_name(name) {
            causes.invalid(format!("{path}.name"), &name.into(), &why);
        }
        let Some(source) = variable.get("valueFrom") else { continue };
        let path = format!("{path}.valueFrom");
        let set = SOURCES.iter().filter(|kind| source.get(**kind).is_some()).count();
        if !text(variable, "value").is_empty() && set > 0 {
            causes.invalid(&path, &"".into(), "may not be specified when `value` is not empty");
        }
        match set {
            0 => causes.invalid(&path, &"".into(), "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
            1 => {}
            _ => causes.invalid(&path, &"".into(), "may not have more than one field specified at a time"),
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = source.get(kind) {
                for field in ["name", "key"] {
                    if text(reference, field).is_empty() {
                        causes.required(format!("{path}.{kind}.{field}"), "");
                    }
                }
            }
        }
        if let Some(reference) = source.get("fieldRef") {
            field_reference(text(reference, "fieldPath"), &format!("{path}.fieldRef.fieldPath"), causes);
        }
    }
}

/// The fields of its own pod that an environment variable may hold.
const FIELD_PATHS: [&str; 10] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "metadata.labels",
];

fn field_reference(path: &str, field: &str, causes: &mut Causes) {
    let subscript = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.ends_with("']") && rest.len() > 2);
    if path.is_empty() {
        causes.required(field, "");
    } else if !subscript("metadata.labels['")
        && !subscript("metadata.annotations['")
        && !FIELD_PATHS[..9].contains(&path)
    {
        causes.not_supported(field, path, &FIELD_PATHS[..9]);
    }
}

fn probe(probe: &Value, path: &str, success_is_one: bool, causes: &mut Causes) {
    handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], causes);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        causes.not_negative(format!("{path}.{field}"), &probe[field]);
    }
    if success_is_one && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        causes.invalid(format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1");
    }
    if probe["terminationGracePeriodSeconds"].as_i64().is_some_and(|n| n <= 0) {
        causes.invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            &probe["terminationGracePeriodSeconds"],
            "must be greater than 0",
        );
    }
}

fn handler(handler: &Value, path: &str, kinds: &[&str], causes: &mut Causes) {
    let mut found = 0;
    for kind in kinds {
        let Some(body) = handler.get(*kind) else { continue };
        found += 1;
        if found > 1 {
            causes.forbidden(format!("{path}.{kind}"), "may not specify more than 1 handler type");
        }
        let path = format!("{path}.{kind}");
        match *kind {
            "exec" if items(&body["command"]).is_empty() => causes.required(format!("{path}.command"), ""),
            "httpGet" => {
                if text(body, "path").is_empty() {
                    causes.required(format!("{path}.path"), "");
                }
                port_reference(&body["port"], &format!("{path}.port"), causes);
                causes.one_of(format!("{path}.scheme"), &body["scheme"], &["HTTP", "HTTPS"]);
            }
            "tcpSocket" | "grpc" => port_reference(&body["port"], &format!("{path}.port"), causes),
            _ => {}
        }
    }
    if found == 0 {
        causes.required(path, "must specify a handler type");
    }
}

fn port_reference(port: &Value, path: &str, causes: &mut Causes) {
    match port {
        Value::String(name) => {
            if let Err(why) = names::port_name(name) {
                causes.invalid(path, port, &why);
            }
        }
        _ if is_port(port) => {}
        _ => causes.invalid(path, &json!(port.as_i64().unwrap_or(0)), PORT_RANGE),
    }
}

fn resources(resources: &Value, path: &str, causes: &mut Causes) {
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let path = format!("{path}.{list}[{name}]");
            if let Err(why) = names::qualified_name(name) {
                causes.invalid(&path, &name.as_str().into(), &why);
            }
            match Quantity::from_value(value) {
                Ok(quantity) if quantity.is_negative() => {
                    causes.invalid(&path, value, "must be greater than or equal to 0")
                }
                Ok(quantity) if name.contains('/') && !quantity.is_whole() => {
                    causes.invalid(&path, value, "must be an integer")
                }
                _ => {}
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let Some(limit) = resources["limits"].get(name) else { continue };
        let (Ok(want), Ok(most)) = (Quantity::from_value(request), Quantity::from_value(limit)) else { continue };
        if want > most {
            causes.invalid(
                format!("{path}.requests"),
                request,
                &format!("must be less than or equal to {name} limit of {most}"),
            );
        }
    }
}

fn affinity(affinity: &Value, path: &str, causes: &mut Causes) {
    let node = &affinity["nodeAffinity"];
    let path = format!("{path}.nodeAffinity");
    let required = &node["requiredDuringSchedulingIgnoredDuringExecution"];
    if !required.is_null() {
        let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        if items(&required["nodeSelectorTerms"]).is_empty() {
            causes.required(&path, "must have at least one node selector term");
        }
        for (at, term) in items(&required["nodeSelectorTerms"]).iter().enumerate() {
            node_selector_term(term, &format!("{path}[{at}]"), causes);
        }
    }
    for (at, preferred) in items(&node["preferredDuringSchedulingIgnoredDuringExecution"]).iter().enumerate() {
        let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{at}]");
        if !preferred["weight"].as_i64().is_some_and(|n| (1..=100).contains(&n)) {
            causes.invalid(format!("{path}.weight"), &preferred["weight"], "must be in the range 1-100");
        }
        node_selector_term(&preferred["preference"], &format!("{path}.preference"), causes);
    }
}

fn node_selector_term(term: &Value, path: &str, causes: &mut Causes) {
    for (at, expression) in items(&term["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = items(&expression["values"]);
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                causes.required(format!("{path}.values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                causes.forbidden(
                    format!("{path}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "Gt" | "Lt" if values.len() != 1 => {
                causes.required(
                    format!("{path}.values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => causes.invalid(format!("{path}.operator"), &expression["operator"], "not a valid selector operator"),
        }
        if let Err(why) = names::label_key(text(expression, "key")) {
            causes.invalid(format!("{path}.key"), &expression["key"], &why);
        }
    }
}

fn spread(constraints: &Value, path: &str, causes: &mut Causes) {
    for (at, constraint) in items(constraints).iter().enumerate() {
        let path = format!("{path}[{at}]");
        if constraint["maxSkew"].as_i64().is_none_or(|n| n <= 0) {
            causes.invalid(format!("{path}.maxSkew"), &constraint["maxSkew"], "must be greater than zero");
        }
        if text(constraint, "topologyKey").is_empty() {
            causes.required(format!("{path}.topologyKey"), "can not be empty");
        }
        causes.one_of(
            format!("{path}.whenUnsatisfiable"),
            &constraint["whenUnsatisfiable"],
            &["DoNotSchedule", "ScheduleAnyway"],
        );
        meta::label_selector(&constraint["labelSelector"], &format!("{path}.labelSelector"), causes);
    }
}

/// What may change in a pod's spec, once it exists.
pub(super) fn update(old: &Object, new: &Object, causes: &mut Causes) {
    spec(&new["spec"], "spec", causes);
    let (mut before, mut after) = (old["spec"].clone(), new["spec"].clone());
    // Images, the deadline (it may only shrink), more tolerations, a shorter grace, and the node, once.
    for side in [&mut before, &mut after] {
        for list in ["containers", "initContainers"] {
            for container in side.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                }
            }
        }
        if let Some(spec) = side.as_object_mut() {
            for field in ["tolerations", "activeDeadlineSeconds"] {
                spec.remove(field);
            }
        }
    }
    let deadline = |spec: &Value| spec["activeDeadlineSeconds"].as_i64();
    match (deadline(&old["spec"]), deadline(&new["spec"])) {
        (Some(was), Some(is)) if is > was => {
            causes.invalid("spec.activeDeadlineSeconds", &is.into(), "must be less than or equal to previous value");
        }
        (Some(_), None) => causes.invalid(
            "spec.activeDeadlineSeconds",
            &Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    let kept = items(&new["spec"]["tolerations"]);
    if items(&old["spec"]["tolerations"]).iter().any(|toleration| !kept.contains(toleration)) {
        causes.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
    }
    // The scheduler names the node; nobody renames it.
    if text(&before, "nodeName").is_empty()
        && let (Some(before), Some(node)) = (before.as_object_mut(), after.get("nodeName"))
    {
        before.insert("nodeName".to_owned(), node.clone());
    }
    if before != after {
        let changed = first_difference(&before, &after, "spec");
        causes.forbidden(
            "spec",
            &format!("pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n{changed}"),
        );
    }
}

/// Where two values differ first, and how: `spec.restartPolicy: "Always" -> "Never"`.
fn first_difference(before: &Value, after: &Value, path: &str) -> String {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
            keys.sort();
            for key in keys {
                let (a, b) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                if a != b {
                    return first_difference(a, b, &format!("{path}.{key}"));
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (at, (a, b)) in old.iter().zip(new).enumerate() {
                if a != b {
                    return first_difference(a, b, &format!("{path}[{at}]"));
                }
            }
        }
        _ => {}
    }
    format!("{path}: {before} -> {after}")
}
