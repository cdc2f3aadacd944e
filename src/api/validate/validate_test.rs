use serde_json::{Value, json};

use crate::api::{Kind, Kinds, NewObject, Object, prepare_create, prepare_update, validate_create, validate_update};

fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_700_000_000).expect("in range")
}

fn create(mut object: Object) -> (std::sync::Arc<Kind>, Object) {
    let kinds = Kinds::builtin();
    let kind = kinds.of(&object).expect("served").clone();
    prepare_create(&kind, &mut object, &NewObject { now: now(), uid: "u", namespace: "default" });
    (kind, object)
}

/// The problems of a new object, as `field: message`.
fn problems(object: Object) -> Vec<String> {
    let (kind, object) = create(object);
    validate_create(&kind, &object).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

fn problems_of_change(old: Object, change: impl FnOnce(&mut Object)) -> Vec<String> {
    let (kind, old) = create(old);
    assert_eq!(validate_create(&kind, &old), [], "the old object is good");
    let mut new = old.clone();
    change(&mut new);
    prepare_update(&kind, "", &old, &mut new, now());
    validate_update(&kind, &old, &new).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

fn pod(spec: Value) -> Object {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
}

fn pod_with(field: &str, value: Value) -> Object {
    let mut pod = pod(json!({"containers": [{"name": "c", "image": "nginx"}]}));
    pod["spec"][field] = value;
    pod
}

fn container_with(field: &str, value: Value) -> Object {
    let mut pod = pod(json!({"containers": [{"name": "c", "image": "nginx"}]}));
    pod["spec"]["containers"][0][field] = value;
    pod
}

fn deployment() -> Object {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}})
}

#[test]
fn good_objects_have_no_problems() {
    assert_eq!(problems(deployment()), [""; 0]);
    assert_eq!(problems(pod_with("tolerations", json!([{"key": "k", "operator": "Exists"}]))), [""; 0]);
    assert_eq!(problems(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n-1.example"}})), [""; 0]);
    assert_eq!(
        problems(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a.b_c-D": "x"}})),
        [""; 0]
    );
}

#[test]
fn pods_are_refused_in_kubernetes_words() {
    for (object, want) in [
        (pod(json!({"containers": []})), "spec.containers: Required value"),
        (pod(json!({"containers": [{"name": "c"}]})), "spec.containers[0].image: Required value"),
        (
            pod_with("restartPolicy", json!("Sometimes")),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            container_with("ports", json!([{"containerPort": 70000}])),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            container_with("resources", json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            container_with("volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (container_with("env", json!([{"name": "", "value": "x"}])), "spec.containers[0].env[0].name: Required value"),
        (
            container_with("livenessProbe", json!({"periodSeconds": 1})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            pod_with("tolerations", json!([{"key": "a", "operator": "Maybe"}])),
            "spec.tolerations[0].operator: Unsupported value: \"Maybe\": supported values: \"Equal\", \"Exists\"",
        ),
        (
            pod_with(
                "affinity",
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Is", "values": ["b"]}]}]}}}),
            ),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator",
        ),
        (
            pod(json!({"containers": [{"name": "c", "image": "x"}, {"name": "c", "image": "x"}]})),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
    ] {
        assert_eq!(problems(object), [want]);
    }
}

#[test]
fn names_and_labels_are_refused_in_kubernetes_words() {
    let mut bad = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
    bad["metadata"]["name"] = "Bad_Name".into();
    let [problem] = &problems(bad.clone())[..] else { panic!("one problem") };
    assert!(
        problem
            .starts_with("metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must consist of"),
        "{problem}"
    );
    bad["metadata"] = json!({});
    assert_eq!(problems(bad.clone()), ["metadata.name: Required value: name or generateName is required"]);
    bad["metadata"] = json!({"name": "a", "labels": {"a": "-x-"}});
    let [problem] = &problems(bad)[..] else { panic!("one problem") };
    assert!(
        problem.starts_with("metadata.labels: Invalid value: \"-x-\": a valid label must be an empty string"),
        "{problem}"
    );
    let [problem] = &problems(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a.b"}}))[..] else {
        panic!("one problem")
    };
    assert!(problem.contains("a lowercase RFC 1123 label"), "{problem}");
}

#[test]
fn deployments_are_refused_in_kubernetes_words() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut object = deployment();
        change(&mut object["spec"]);
        problems(object)
    };
    assert_eq!(
        with(&|spec| spec["selector"] = json!({"matchLabels": {"x": "y"}})),
        ["spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"]
    );
    assert_eq!(
        with(&|spec| {
            spec.as_object_mut().expect("a map").remove("selector");
        }),
        [
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"
        ]
    );
    assert_eq!(
        with(&|spec| spec["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})),
        ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]
    );
    assert_eq!(
        with(&|spec| spec["strategy"] = json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}})),
        ["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"]
    );
    let [problem] = &with(&|spec| spec["strategy"] = json!({"rollingUpdate": {"maxSurge": "abc"}}))[..] else {
        panic!("one problem")
    };
    assert!(
        problem.starts_with(
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"abc\": a valid percent string must be"
        ),
        "{problem}"
    );
    assert_eq!(
        with(&|spec| spec["replicas"] = json!(-1)),
        ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
    );
}

#[test]
fn what_is_immutable_stays() {
    assert_eq!(
        problems_of_change(deployment(), |d| {
            d["spec"]["selector"] = json!({"matchLabels": {"a": "c"}});
            d["spec"]["template"]["metadata"]["labels"] = json!({"a": "c"});
        }),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"]
    );
    let immutable = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "immutable": true, "data": {"a": "b"}});
    assert_eq!(
        problems_of_change(immutable, |c| c["data"]["a"] = "z".into()),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        problems_of_change(deployment(), |d| d["metadata"]["uid"] = "other".into()),
        ["metadata.uid: Invalid value: \"other\": field is immutable"]
    );
}

#[test]
fn of_a_pod_only_some_fields_change() {
    let pod = || pod(json!({"containers": [{"name": "c", "image": "nginx"}]}));
    assert_eq!(problems_of_change(pod(), |p| p["spec"]["containers"][0]["image"] = "nginx:2".into()), [""; 0]);
    assert_eq!(problems_of_change(pod(), |p| p["spec"]["nodeName"] = "n1".into()), [""; 0]);
    assert_eq!(problems_of_change(pod(), |p| p["spec"]["tolerations"] = json!([{"operator": "Exists"}])), [""; 0]);
    let [problem] = &problems_of_change(pod(), |p| p["spec"]["restartPolicy"] = "Never".into())[..] else {
        panic!("one problem")
    };
    assert!(
        problem.starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"),
        "{problem}"
    );
    assert!(problem.ends_with("\nspec.restartPolicy: \"Always\" -> \"Never\""), "{problem}");
}

#[test]
fn secrets_have_the_keys_of_their_type() {
    assert_eq!(
        problems(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "type": "kubernetes.io/tls"})),
        ["data[tls.crt]: Required value", "data[tls.key]: Required value"]
    );
    let [problem] = &problems(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a/b": "c"}}),
    )[..] else {
        panic!("one problem")
    };
    assert!(problem.starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"), "{problem}");
}
