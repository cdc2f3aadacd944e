//! The columns of each kind.

use serde_json::{Value, json};

use crate::api::Kind;
use crate::api::schema::type_named;

/// Name, type, where its description is in the schema (`Type.field`) or the description itself, wide only.
type Column = (&'static str, &'static str, &'static str, bool);

const NAME: Column = ("Name", "string", "ObjectMeta.name", false);
const AGE: Column = ("Age", "string", "ObjectMeta.creationTimestamp", false);
const CONTAINERS: Column = ("Containers", "string", "Names of each container in the template.", true);
const IMAGES: Column = ("Images", "string", "Images referenced by each container in the template.", true);

const CONFIG_MAP: &[Column] = &[NAME, ("Data", "string", "ConfigMap.data", false), AGE];
const SECRET: &[Column] =
    &[NAME, ("Type", "string", "Secret.type", false), ("Data", "string", "Secret.data", false), AGE];
const NAMESPACE: &[Column] = &[NAME, ("Status", "string", "The status of the namespace", false), AGE];
const LEASE: &[Column] = &[NAME, ("Holder", "string", "LeaseSpec.holderIdentity", false), AGE];
const EVENT: &[Column] = &[
    ("Last Seen", "string", "Event.lastTimestamp", false),
    ("Type", "string", "Event.type", false),
    ("Reason", "string", "Event.reason", false),
    ("Object", "string", "Event.involvedObject", false),
    ("Subobject", "string", "ObjectReference.fieldPath", true),
    ("Source", "string", "Event.source", true),
    ("Message", "string", "Event.message", false),
    ("First Seen", "string", "Event.firstTimestamp", true),
    ("Count", "string", "Event.count", true),
    ("Name", "string", "ObjectMeta.name", true),
];
const NODE: &[Column] = &[
    NAME,
    ("Status", "string", "The status of the node", false),
    ("Roles", "string", "The roles of the node", false),
    AGE,
    ("Version", "string", "NodeSystemInfo.kubeletVersion", false),
    ("Internal-IP", "string", "NodeStatus.addresses", true),
    ("External-IP", "string", "NodeStatus.addresses", true),
    ("OS-Image", "string", "NodeSystemInfo.osImage", true),
    ("Kernel-Version", "string", "NodeSystemInfo.kernelVersion", true),
    ("Container-Runtime", "string", "NodeSystemInfo.containerRuntimeVersion", true),
];
const POD: &[Column] = &[
    NAME,
    ("Ready", "string", "The aggregate readiness state of this pod for accepting traffic.", false),
    ("Status", "string", "The aggregate status of the containers in this pod.", false),
    (
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        false,
    ),
    AGE,
    ("IP", "string", "PodStatus.podIP", true),
    ("Node", "string", "PodSpec.nodeName", true),
    ("Nominated Node", "string", "PodStatus.nominatedNodeName", true),
    ("Readiness Gates", "string", "PodSpec.readinessGates", true),
];
const DEPLOYMENT: &[Column] = &[
    NAME,
    ("Ready", "string", "Number of the pod with ready state", false),
    ("Up-to-date", "string", "DeploymentStatus.updatedReplicas", false),
    ("Available", "string", "DeploymentStatus.availableReplicas", false),
    AGE,
    CONTAINERS,
    IMAGES,
    ("Selector", "string", "DeploymentSpec.selector", true),
];
const REPLICA_SET: &[Column] = &[
    NAME,
    ("Desired", "integer", "ReplicaSetSpec.replicas", false),
    ("Current", "integer", "ReplicaSetStatus.replicas", false),
    ("Ready", "integer", "ReplicaSetStatus.readyReplicas", false),
    AGE,
    CONTAINERS,
    IMAGES,
    ("Selector", "string", "ReplicaSetSpec.selector", true),
];
const OTHER: &[Column] = &[NAME, AGE];

/// The column definitions of a kind.
pub fn of(kind: &Kind) -> Vec<Value> {
    let columns = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap") => CONFIG_MAP,
        ("", "Secret") => SECRET,
        ("", "Namespace") => NAMESPACE,
        ("", "Node") => NODE,
        ("", "Pod") => POD,
        ("", "Event") => EVENT,
        ("apps", "Deployment") => DEPLOYMENT,
        ("apps", "ReplicaSet") => REPLICA_SET,
        ("coordination.k8s.io", "Lease") => LEASE,
        _ => OTHER,
    };
    columns
        .iter()
        .map(|&(name, ty, description, wide)| {
            json!({
                "name": name,
                "type": ty,
                "format": if name == "Name" { "name" } else { "" },
                "description": describe(description),
                "priority": i32::from(wide),
            })
        })
        .collect()
}

/// The schema's words for `Type.field`, or the text itself.
fn describe(text: &'static str) -> &'static str {
    const MODULES: [&str; 4] = [
        "io.k8s.api.core.v1",
        "io.k8s.apimachinery.pkg.apis.meta.v1",
        "io.k8s.api.apps.v1",
        "io.k8s.api.coordination.v1",
    ];
    let Some((ty, field)) = text.split_once('.').filter(|_| !text.contains(' ')) else {
        return text;
    };
    let known = MODULES.iter().find_map(|module| type_named(&format!("{module}.{ty}")));
    known.and_then(|id| id.get().field(field)).map_or(text, |field| field.doc)
}
