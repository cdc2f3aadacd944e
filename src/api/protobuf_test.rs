//! Messages are encoded here by hand: field by field, as Go's generated code writes them.

use base64::Engine as _;
use proptest::prelude::*;
use serde_json::json;

use crate::api::{FieldValidation, Kinds, Object, Status, decode, decode_as};

const PROTOBUF: Option<&str> = Some("application/vnd.kubernetes.protobuf");

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push((n as u8) | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn number(tag: u64, n: i64) -> Vec<u8> {
    [varint(tag << 3), varint(n as u64)].concat()
}

fn bytes(tag: u64, body: &[u8]) -> Vec<u8> {
    [varint(tag << 3 | 2), varint(body.len() as u64), body.to_vec()].concat()
}

fn text(tag: u64, body: &str) -> Vec<u8> {
    bytes(tag, body.as_bytes())
}

fn message(tag: u64, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(tag, &fields.concat())
}

fn entry(tag: u64, key: &str, value: Vec<u8>) -> Vec<u8> {
    message(tag, &[text(1, key), value])
}

fn envelope(api_version: &str, kind: &str, raw: &[Vec<u8>]) -> Vec<u8> {
    let unknown =
        [message(1, &[text(1, api_version), text(2, kind)]), bytes(2, &raw.concat()), text(3, ""), text(4, "")];
    [b"k8s\0".to_vec(), unknown.concat()].concat()
}

fn decoded(kind: &str, body: &[u8]) -> Result<Object, Status> {
    let kinds = Kinds::builtin();
    let kind = kinds.iter().find(|k| k.kind == kind).expect("served");
    decode(&kinds, PROTOBUF, body, Some(kind), FieldValidation::Strict).map(|d| d.object)
}

/// `metav1.ObjectMeta` with all the zeros that Go writes.
fn metadata(tag: u64, name: &str) -> Vec<u8> {
    message(
        tag,
        &[
            text(1, name),
            text(2, ""),
            text(3, ""),
            text(4, ""),
            text(5, ""),
            text(6, ""),
            number(7, 0),
            message(8, &[]),
            entry(11, "app", text(2, "web")),
            entry(12, "note", text(2, "")),
        ],
    )
}

#[test]
fn a_config_map_decodes_and_go_zeros_are_dropped() {
    let body = envelope(
        "v1",
        "ConfigMap",
        &[
            metadata(1, "c"),
            entry(2, "k", text(2, "v")),
            entry(2, "empty", text(2, "")),
            entry(3, "b", bytes(2, &[0, 1])),
        ],
    );
    assert_eq!(
        decoded("ConfigMap", &body),
        Ok(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"app": "web"}, "annotations": {"note": ""}},
            "data": {"k": "v", "empty": ""}, "binaryData": {"b": "AAE="}})
        )
    );
}

#[test]
fn a_deployment_decodes_with_inlined_messages_quantities_and_numbers() {
    let probe = message(
        10,
        &[
            message(
                1,
                &[message(
                    2,
                    &[
                        text(1, "/ok"),
                        message(2, &[number(1, 0), number(2, 8080), text(3, "")]),
                        text(3, ""),
                        text(4, ""),
                    ],
                )],
            ),
            number(2, 0),
            number(3, 5),
        ],
    );
    let limits = entry(1, "cpu", message(2, &[text(1, "500m")]));
    let volume = message(1, &[text(1, "data"), message(2, &[message(2, &[text(1, ""), message(2, &[text(1, "0")])])])]);
    let security = message(15, &[number(4, 0)]);
    let container = message(
        2,
        &[
            text(1, "c"),
            text(2, "nginx:1"),
            text(5, ""),
            message(6, &[text(1, ""), number(2, 0), number(3, 80), text(4, "TCP"), text(5, "")]),
            message(8, &[limits]),
            probe,
            number(16, 0),
            security,
        ],
    );
    let pod = message(2, &[volume, container, text(3, ""), number(11, 0), number(25, 0), message(14, &[])]);
    let template = message(3, &[metadata(1, ""), pod]);
    let surge = message(2, &[number(1, 1), number(2, 0), text(3, "25%")]);
    let spec = message(
        2,
        &[
            number(1, 0),
            message(2, &[entry(1, "app", text(2, "web"))]),
            template,
            message(4, &[text(1, "RollingUpdate"), message(2, &[surge])]),
            number(5, 0),
            number(7, 0),
        ],
    );
    let object = decoded(
        "Deployment",
        &envelope("apps/v1", "Deployment", &[metadata(1, "web"), spec, message(3, &[number(1, 0), number(2, 0)])]),
    )
    .expect("decodes");
    assert_eq!(object["apiVersion"], "apps/v1");
    let spec = &object["spec"];
    assert_eq!(spec["replicas"], 0, "a pointer's zero was meant");
    assert_eq!(spec["strategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}}));
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["volumes"], json!([{"name": "data", "emptyDir": {"sizeLimit": "0"}}]));
    assert_eq!(pod["priority"], 0);
    assert!(pod.get("hostNetwork").is_none() && pod.get("restartPolicy").is_none());
    let container = &pod["containers"][0];
    assert_eq!(container["livenessProbe"], json!({"httpGet": {"path": "/ok", "port": 8080}, "timeoutSeconds": 5}));
    assert_eq!(container["resources"], json!({"limits": {"cpu": "500m"}}));
    assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
    assert_eq!(container["securityContext"], json!({"runAsUser": 0}));
}

#[test]
fn times_and_delete_options_decode() {
    let lease = envelope(
        "coordination.k8s.io/v1",
        "Lease",
        &[
            metadata(1, "l"),
            message(
                2,
                &[text(1, "me"), number(2, 40), message(4, &[number(1, 1_700_000_000), number(2, 123_456_000)])],
            ),
        ],
    );
    assert_eq!(
        decoded("Lease", &lease).expect("decodes")["spec"],
        json!({"holderIdentity": "me", "leaseDurationSeconds": 40, "renewTime": "2023-11-14T22:13:20.123456Z"})
    );
    let options = envelope(
        "v1",
        "DeleteOptions",
        &[number(1, 0), message(2, &[text(1, "uid-1")]), text(4, "Background"), text(5, "All")],
    );
    let decoded = decode_as("", "v1", "DeleteOptions", PROTOBUF, &options, FieldValidation::Strict).expect("decodes");
    assert_eq!(
        decoded.object,
        json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "uid-1"}, "propagationPolicy": "Background", "dryRun": ["All"]})
    );
}

#[test]
fn a_negative_number_and_fields_newer_than_the_table_are_read() {
    let status = message(2, &[number(1, -1), text(2000, "new"), number(2001, 7)]);
    let object = decoded("Deployment", &envelope("apps/v1", "Deployment", &[status])).expect("decodes");
    assert_eq!(object["spec"]["replicas"], -1);
}

#[test]
fn what_is_no_message_is_refused() {
    let code = |body: &[u8]| decoded("ConfigMap", body).map_err(|status| status.code);
    assert_eq!(code(b"{}"), Err(400));
    assert_eq!(code(b"k8s\0\xff\xff"), Err(400));
    assert_eq!(code(&envelope("v1", "ConfigMap", &[bytes(1, &[0x0a, 0x7f])])), Err(400));
    assert_eq!(code(&envelope("x/v1", "Nope", &[])), Err(415));
    assert_eq!(code(&envelope("apps/v1", "Deployment", &[])), Err(400), "another kind than the URL's");
    let kinds = Kinds::builtin();
    let nobody = decode(&kinds, PROTOBUF, &envelope("x/v1", "Nope", &[]), None, FieldValidation::Strict);
    assert_eq!(nobody.map_err(|status| status.code), Err(415));
}

/// What kubectl 1.33 sends for `create deployment web --image=nginx:1.27 --replicas=3 --port=80 -- sleep 5`.
const KUBECTL_DEPLOYMENT: &str = "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50EscBCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEpUBCAMSDAoKCgNhcHASA3dlYhp7ChwKABIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViElsSPQoFbmdpbngSCm5naW54OjEuMjcaBXNsZWVwGgE1KgAyCgoAEAAYUCIAKgBCAGoAcgCAAQCIAQCQAQCiAQAaADIAQgBKAFIAWABgAGgAggEAigEAmgEAwgEAIgIKACgAOAAaDAgAEAAYACAAKAA4ABoAIgA=";
/// `create deployment zero --image=nginx --replicas=0`.
const KUBECTL_DEPLOYMENT_ZERO: &str = "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50Eq8BCiEKBHplcm8SABoAIgAqADIAOABCAFoLCgNhcHASBHplcm8SfAgAEg0KCwoDYXBwEgR6ZXJvGmEKHQoAEgAaACIAKgAyADgAQgBaCwoDYXBwEgR6ZXJvEkASIgoFbmdpbngSBW5naW54KgBCAGoAcgCAAQCIAQCQAQCiAQAaADIAQgBKAFIAWABgAGgAggEAigEAmgEAwgEAIgIKACgAOAAaDAgAEAAYACAAKAA4ABoAIgA=";
/// `create configmap c1 --from-literal=a=b --from-literal=e=`.
const KUBECTL_CONFIG_MAP: &str = "azhzAAoPCgJ2MRIJQ29uZmlnTWFwEiMKEgoCYzESABoAIgAqADIAOABCABIGCgFhEgFiEgUKAWUSABoAIgA=";
/// `create secret generic s1 --from-literal=k=v`.
const KUBECTL_SECRET: &str = "azhzAAoMCgJ2MRIGU2VjcmV0Eh4KEgoCczESABoAIgAqADIAOABCABIGCgFrEgF2GgAaACIA";

#[test]
fn what_kubectl_sends_decodes() {
    let read = |kind: &str, body: &str| {
        let body = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
        decoded(kind, &body).expect("decodes")
    };
    let container = json!({"name": "nginx", "image": "nginx:1.27", "command": ["sleep", "5"], "ports": [{"containerPort": 80}], "resources": {}});
    assert_eq!(
        read("Deployment", KUBECTL_DEPLOYMENT),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}}, "status": {}})
    );
    assert_eq!(read("Deployment", KUBECTL_DEPLOYMENT_ZERO)["spec"]["replicas"], 0);
    assert_eq!(read("ConfigMap", KUBECTL_CONFIG_MAP)["data"], json!({"a": "b", "e": ""}));
    assert_eq!(read("Secret", KUBECTL_SECRET)["data"], json!({"k": "dg=="}));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = decoded("Pod", &raw);
        let _ = decoded("Pod", &envelope("v1", "Pod", std::slice::from_ref(&raw)));
        let _ = decoded("Deployment", &envelope("apps/v1", "Deployment", &[message(2, std::slice::from_ref(&raw))]));
        let _ = decoded("Deployment", &envelope("apps/v1", "Deployment", &[message(2, &[message(3, &[bytes(2, &raw)])])]));
    }

    #[test]
    fn a_cut_message_never_panics(cut in 0usize..400) {
        let body = envelope("v1", "ConfigMap", &[metadata(1, "c"), entry(2, "k", text(2, "v"))]);
        let _ = decoded("ConfigMap", &body[..cut.min(body.len())]);
    }
}
