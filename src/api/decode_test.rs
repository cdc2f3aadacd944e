use serde_json::{Value, json};

use super::*;

fn kinds() -> std::sync::Arc<Kinds> {
    Kinds::builtin()
}

fn strict(kind: &str, body: &str) -> Result<Object, String> {
    let kinds = kinds();
    let kind = kinds.iter().find(|k| k.kind == kind).expect("served");
    decode(&kinds, None, body.as_bytes(), Some(kind), FieldValidation::Strict).map(|d| d.object).map_err(|status| {
        assert_eq!(status.code, 400);
        status.message
    })
}

fn pod(spec: Value) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}).to_string()
}

#[test]
fn what_is_wrong_is_told_in_kubernetes_words() {
    let container = json!([{"name": "c", "image": "nginx"}]);
    for (kind, body, want) in [
        (
            "Pod",
            pod(json!({"containers": container, "nope": 1})),
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.nope\"",
        ),
        (
            "Pod",
            pod(json!({"containers": container, "hostNetwork": "yes"})),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            "Pod",
            pod(json!({"containers": container, "terminationGracePeriodSeconds": "5"})),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
        (
            "Pod",
            pod(json!({"containers": [{"name": 5}]})),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string",
        ),
        (
            "Pod",
            pod(json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "lots"}}}]})),
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            "Pod",
            json!({"apiVersion": "v2", "kind": "Pod"}).to_string(),
            "Pod in version \"v2\" cannot be handled as a Pod: no kind \"Pod\" is registered for version \"v2\"",
        ),
        (
            "Pod",
            json!({"apiVersion": "v1", "kind": "Service"}).to_string(),
            "Service in version \"v1\" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion",
        ),
        (
            "Pod",
            String::new(),
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
        (
            "Pod",
            "[1]".to_owned(),
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b315d)",
        ),
        (
            "ConfigMap",
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"a":"1","a":"2"}}"#.to_owned(),
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.a\"",
        ),
        (
            "Secret",
            r#"{"data":{"a":"***"}}"#.to_owned(),
            "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 0",
        ),
    ] {
        assert_eq!(strict(kind, &body), Err(want.to_owned()));
    }
}

#[test]
fn unknown_fields_are_dropped_with_a_warning_or_in_silence() {
    let kinds = kinds();
    let kind = kinds.by_kind("", "v1", "ConfigMap").expect("served");
    let body = br#"{"dataa":{"a":"b"},"data":{"a":"1","a":"2"},"metadata":{"name":"x"}}"#;
    let warned = decode(&kinds, Some("application/json"), body, Some(kind), FieldValidation::Warn).expect("decodes");
    assert_eq!(
        warned.object,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "2"}})
    );
    assert_eq!(warned.warnings, ["unknown field \"dataa\"", "duplicate field \"data.a\""]);
    let ignored = decode(&kinds, None, body, Some(kind), FieldValidation::Ignore).expect("decodes");
    assert_eq!((ignored.object, ignored.warnings), (warned.object, Vec::new()));
}

#[test]
fn equal_objects_have_equal_json() {
    let long = json!({"containers": [{"name": "c", "image": "x", "args": [], "stdin": false, "env": [{"name": "A", "value": ""}], "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}],
        "hostNetwork": false, "nodeName": "", "nodeSelector": {}, "priority": 0, "affinity": null, "volumes": [{"name": "v", "emptyDir": {}}]});
    let object = strict("Pod", &pod(long)).expect("decodes");
    assert_eq!(
        object["spec"],
        json!({"containers": [{"name": "c", "image": "x", "env": [{"name": "A"}], "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}}}], "priority": 0, "volumes": [{"name": "v", "emptyDir": {}}]})
    );
}

#[test]
fn a_body_says_its_own_kind_where_none_is_expected() {
    let kinds = kinds();
    let read = |body: &str| {
        decode(&kinds, None, body.as_bytes(), None, FieldValidation::Strict)
            .map(|d| d.object["kind"].clone())
            .map_err(|s| s.message)
    };
    assert_eq!(read(r#"{"apiVersion":"apps/v1","kind":"Deployment"}"#), Ok(json!("Deployment")));
    assert_eq!(
        read(r#"{"apiVersion":"x/v1","kind":"Y"}"#),
        Err("no kind \"Y\" is registered for version \"x/v1\"".to_owned())
    );
    assert_eq!(read("{}"), Err("Object 'Kind' is missing".to_owned()));
}

#[test]
fn yaml_bodies_and_media_types() {
    let kinds = kinds();
    let kind = kinds.by_kind("", "v1", "ConfigMap").expect("served");
    let read =
        |media: &str, body: &str| decode(&kinds, Some(media), body.as_bytes(), Some(kind), FieldValidation::Strict);
    assert!(read("application/yaml", "metadata: {name: a}\ndata:\n  k: v\n").is_ok());
    assert_eq!(
        read("application/yaml", "metadata: {name: y}\n").map_err(|s| s.message),
        Err("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.name of type string".to_owned())
    );
    assert!(read("application/yaml", "a: [").is_err_and(|s| s.message.contains("line")));
    assert_eq!(read("application/cbor", "{}").map_err(|s| s.code), Err(415));
    assert!(read("application/json; charset=utf-8", "{}").is_ok());
}

#[test]
fn options_and_subresources_decode_by_name() {
    assert_eq!(decode_delete_options(None, b""), Ok(json!({})));
    let options = decode_delete_options(
        None,
        br#"{"propagationPolicy":"Background","gracePeriodSeconds":0,"preconditions":{"uid":"u"}}"#,
    )
    .expect("decodes");
    assert_eq!(
        options,
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", "gracePeriodSeconds": 0, "preconditions": {"uid": "u"}})
    );
    assert!(decode_delete_options(None, br#"{"apiVersion":"apps/v1","kind":"DeleteOptions"}"#).is_ok());
    let scale = decode_as("autoscaling", "v1", "Scale", None, br#"{"spec":{"replicas":3}}"#, FieldValidation::Strict)
        .expect("decodes");
    assert_eq!(scale.object["spec"], json!({"replicas": 3}));
    assert!(decode_as("", "v1", "Nope", None, b"{}", FieldValidation::Strict).is_err_and(|s| s.code == 404));
}
