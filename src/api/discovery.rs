//! Discovery: what is served, in the documents that clients read first.
//!
//! The aggregated form (v2, v2beta1) answers a client in two requests; the older form, one document for each group version,
//! is still what `kubectl auth can-i`, `drain` and the Python dynamic client read.

use serde_json::{Map, Value, json};

use super::kinds::{Subresource, group_version};
use super::{Kind, Kinds, Object};

/// The version of Kubernetes whose API this is.
pub const MAJOR: &str = "1";
pub const MINOR: &str = "36";

/// `/api`.
pub fn api_versions(server_address: &str) -> Object {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// The groups other than the core group, with their versions.
fn named_groups(kinds: &Kinds) -> impl Iterator<Item = (String, Vec<String>)> {
    kinds.groups().into_iter().filter(|(group, _)| !group.is_empty())
}

/// `/apis`.
pub fn api_group_list(kinds: &Kinds) -> Object {
    let groups: Vec<Value> = named_groups(kinds).map(|(group, versions)| group_entry(&group, &versions)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/G`, if it is served.
pub fn api_group(kinds: &Kinds, group: &str) -> Option<Object> {
    let (group, versions) = named_groups(kinds).find(|(name, _)| name == group)?;
    let mut entry = group_entry(&group, &versions);
    if let Some(map) = entry.as_object_mut() {
        map.insert("kind".to_owned(), "APIGroup".into());
        map.insert("apiVersion".to_owned(), "v1".into());
    }
    Some(entry)
}

fn group_entry(group: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

/// `/api/v1` and `/apis/G/V`, if they are served.
pub fn api_resource_list(kinds: &Kinds, group: &str, version: &str) -> Option<Object> {
    let mut resources: Vec<(String, Value)> = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.group == group && kind.version == version) {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        names(kind, &mut entry);
        resources.push((kind.plural.clone(), entry));
        for sub in &kind.subresources {
            let name = format!("{}/{}", kind.plural, sub.name);
            let mut entry = json!({
                "name": name,
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if is_foreign(kind, sub) {
                entry["group"] = sub.group.clone().into();
                entry["version"] = sub.version.clone().into();
            }
            resources.push((name, entry));
        }
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a.0.cmp(&b.0));
    let resources: Vec<Value> = resources.into_iter().map(|(_, entry)| entry).collect();
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": resources,
    }))
}

/// Whether a subresource speaks a kind of another group.
fn is_foreign(kind: &Kind, sub: &Subresource) -> bool {
    sub.group != kind.group || sub.version != kind.version
}

fn names(kind: &Kind, entry: &mut Value) {
    for (field, words) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !words.is_empty() {
            entry[field] = words.clone().into();
        }
    }
}

/// The version of the aggregated discovery format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    /// The Content-Type of the answer.
    pub fn media_type(self) -> &'static str {
        match self {
            Aggregated::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Aggregated::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Aggregated::V2 => "apidiscovery.k8s.io/v2",
            Aggregated::V2Beta1 => "apidiscovery.k8s.io/v2beta1",
        }
    }
}

/// The aggregated document of `/api` (`core`), or of `/apis` (all other groups).
pub fn aggregated(kinds: &Kinds, core: bool, format: Aggregated) -> Object {
    let items: Vec<Value> = kinds
        .groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let mut resources: Vec<&Kind> = kinds
                        .iter()
                        .map(AsRef::as_ref)
                        .filter(|kind| kind.group == group && kind.version == *version)
                        .collect();
                    resources.sort_by(|a, b| a.plural.cmp(&b.plural));
                    let resources: Vec<Value> = resources.into_iter().map(resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format.api_version(), "metadata": {}, "items": items})
}

fn resource(kind: &Kind) -> Value {
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    names(kind, &mut entry);
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

/// `/version`. kubectl warns when its own minor version is more than one away.
pub fn version() -> Object {
    let platform = format!("{}/{}", std::env::consts::OS, go_arch());
    let fields = [
        ("major", MAJOR.to_owned()),
        ("minor", MINOR.to_owned()),
        ("emulationMajor", MAJOR.to_owned()),
        ("emulationMinor", MINOR.to_owned()),
        ("gitVersion", git_version()),
        ("gitCommit", String::new()),
        ("gitTreeState", String::new()),
        ("buildDate", "1970-01-01T00:00:00Z".to_owned()),
        ("goVersion", String::new()),
        ("compiler", "rustc".to_owned()),
        ("platform", platform),
    ];
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Map<_, _>>())
}

/// `v1.36.0+phalanx-0.1.0`: the version of the API, and of what serves it.
pub fn git_version() -> String {
    format!("v{MAJOR}.{MINOR}.0+phalanx-{}", env!("CARGO_PKG_VERSION"))
}

/// The architecture as Go names it.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_documents_list_resources_and_subresources() {
        let kinds = Kinds::builtin();
        let apps = api_resource_list(&kinds, "apps", "v1").expect("served");
        let resources = apps["resources"].as_array().expect("a list");
        let scale = resources.iter().find(|r| r["name"] == "deployments/scale").expect("scale");
        assert_eq!(
            *scale,
            json!({"name": "deployments/scale", "singularName": "", "namespaced": true, "group": "autoscaling", "version": "v1", "kind": "Scale", "verbs": ["get", "patch", "update"]})
        );
        let deployments = resources.iter().find(|r| r["name"] == "deployments").expect("deployments");
        assert_eq!((&deployments["shortNames"], &deployments["categories"]), (&json!(["deploy"]), &json!(["all"])));
        assert!(api_resource_list(&kinds, "apps", "v2").is_none());
        assert_eq!(
            api_group(&kinds, "apps").expect("served")["preferredVersion"],
            json!({"groupVersion": "apps/v1", "version": "v1"})
        );
        assert!(api_group(&kinds, "").is_none());
    }

    #[test]
    fn the_aggregated_documents_split_core_from_the_rest() {
        let kinds = Kinds::builtin();
        let core = aggregated(&kinds, true, Aggregated::V2);
        assert_eq!(core["apiVersion"], "apidiscovery.k8s.io/v2");
        let resources = core["items"][0]["versions"][0]["resources"].as_array().expect("a list");
        let namespaces = resources.iter().find(|r| r["resource"] == "namespaces").expect("namespaces");
        assert_eq!((&namespaces["scope"], &namespaces["singularResource"]), (&json!("Cluster"), &json!("namespace")));
        assert_eq!(namespaces["verbs"], json!(["create", "delete", "get", "list", "patch", "update", "watch"]));
        let rest = aggregated(&kinds, false, Aggregated::V2Beta1);
        let groups: Vec<&str> =
            rest["items"].as_array().expect("a list").iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
        assert_eq!(groups, ["apps", "coordination.k8s.io"]);
    }
}
