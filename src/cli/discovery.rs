//! Which kinds the server serves, and what a user means by `po`, `deploy/web` or `deployments.apps`.
//!
//! Discovery is read anew for each command: two requests, always true.

use kube::core::discovery::v2::{ACCEPT_AGGREGATED_DISCOVERY_V2, APIGroupDiscoveryList};
use serde_json::Value;

use super::CliError;
use super::client::{ApiClient, Payload};
use super::text::{escape, query};

/// One served resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<String>,
}

impl Resource {
    /// `apps/v1`, or `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployment.apps/web`, as messages name an object.
    pub fn display(&self, name: &str) -> String {
        format!("{}/{name}", self.singular_group())
    }

    /// `deployment.apps`, or `pod`.
    pub fn singular_group(&self) -> String {
        if self.group.is_empty() { self.singular.clone() } else { format!("{}.{}", self.singular, self.group) }
    }

    /// `deployments.apps`, or `pods`.
    pub fn plural_group(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of the list. `namespace` is ignored for cluster-scoped kinds; `None` is all namespaces.
    pub fn list_path(&self, namespace: Option<&str>) -> String {
        let base = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{base}/namespaces/{}/{}", escape(namespace), self.plural),
            None => format!("{base}/{}", self.plural),
        }
    }

    /// The path of one object.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.list_path(Some(namespace)), escape(name))
    }

    /// Whether it has this verb.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    fn is_called(&self, word: &str) -> bool {
        let named = |name: &str| {
            name == self.plural
                || name == self.singular
                || name == self.kind.to_lowercase()
                || self.short_names.iter().any(|s| s == name)
        };
        if named(word) {
            return true;
        }
        let Some((name, rest)) = word.split_once('.') else { return false };
        named(name) && (rest == self.group || rest == format!("{}.{}", self.version, self.group).trim_end_matches('.'))
    }
}

/// All that is served, core first, preferred versions first.
#[derive(Clone, Debug, Default)]
pub struct Resources(pub Vec<Resource>);

impl Resources {
    /// Asks the server.
    pub async fn discover(client: &ApiClient) -> Result<Self, CliError> {
        let ask =
            async |path: &str| client.request("GET", path, ACCEPT_AGGREGATED_DISCOVERY_V2, Payload::default()).await;
        let (core, groups) = futures::future::try_join(ask("/api"), ask("/apis")).await?;
        let mut resources = Self::parse(core)?;
        resources.0.extend(Self::parse(groups)?.0);
        Ok(resources)
    }

    fn parse(document: Value) -> Result<Self, CliError> {
        let list: APIGroupDiscoveryList = serde_json::from_value(document)?;
        let mut resources = Vec::new();
        for group in list.items {
            let name = group.metadata.and_then(|m| m.name).unwrap_or_default();
            for version in group.versions {
                for r in version.resources {
                    let kind = r.response_kind.and_then(|k| k.kind).unwrap_or_default();
                    let plural = r.resource.unwrap_or_default();
                    let singular = r.singular_resource.filter(|s| !s.is_empty()).unwrap_or_else(|| kind.to_lowercase());
                    resources.push(Resource {
                        group: name.clone(),
                        version: version.version.clone().unwrap_or_default(),
                        kind,
                        plural,
                        singular,
                        short_names: r.short_names,
                        categories: r.categories,
                        namespaced: r.scope.as_deref() == Some("Namespaced"),
                        verbs: r.verbs,
                        subresources: r.subresources.into_iter().filter_map(|s| s.subresource).collect(),
                    });
                }
            }
        }
        Ok(Self(resources))
    }

    /// What a user calls `word`.
    pub fn resolve(&self, word: &str) -> Result<&Resource, CliError> {
        let lower = word.to_lowercase();
        // Kubernetes' own groups win over others of the same name: discovery lists them first.
        self.0.iter().find(|r| r.is_called(&lower)).ok_or_else(|| {
            CliError::new(format!(
                "the server doesn't have a resource type \"{word}\"; `phalanx api-resources` lists what it has"
            ))
        })
    }

    /// What a manifest means.
    pub fn of_manifest(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.0.iter().find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// The members of a category such as `all`, one version each.
    fn category(&self, word: &str) -> Vec<&Resource> {
        let mut members: Vec<&Resource> = Vec::new();
        for r in self.0.iter().filter(|r| r.categories.iter().any(|c| c == word) && r.can("list")) {
            if !members.iter().any(|m| m.plural == r.plural && m.group == r.group) {
                members.push(r);
            }
        }
        members
    }

    /// What `get`, `describe`, `delete` and their like are asked for:
    /// `TYPE[,TYPE...] [NAME...]` or `TYPE/NAME...`.
    pub fn targets(&self, words: &[String]) -> Result<Vec<Target>, CliError> {
        if words.iter().any(|w| w.contains('/')) {
            return words
                .iter()
                .map(|word| {
                    let (kind, name) = word.split_once('/').filter(|(k, n)| !k.is_empty() && !n.is_empty()).ok_or_else(|| {
                        CliError::new(format!("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form: \"{word}\" has no name"))
                    })?;
                    Ok(Target { resource: self.resolve(kind)?.clone(), names: vec![name.to_owned()] })
                })
                .collect();
        }
        let Some((kinds, names)) = words.split_first() else {
            return Err(CliError::new("which resource? Such as: pods, deploy/web; `phalanx api-resources` lists all"));
        };
        let mut targets = Vec::new();
        for kind in kinds.split(',').filter(|k| !k.is_empty()) {
            let members = self.category(kind);
            if members.is_empty() {
                targets.push(Target { resource: self.resolve(kind)?.clone(), names: names.to_vec() });
            } else {
                targets.extend(members.into_iter().map(|r| Target { resource: r.clone(), names: names.to_vec() }));
            }
        }
        Ok(targets)
    }
}

/// A resource, and the names of the objects meant; no names is all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub resource: Resource,
    pub names: Vec<String>,
}

/// The objects meant by targets and a selector, with what they are. `all` allows a target without name and selector.
pub async fn select(
    client: &ApiClient,
    targets: &[Target],
    selector: &str,
    field_selector: &str,
    all: bool,
) -> Result<Vec<(Resource, Value)>, CliError> {
    let mut found = Vec::new();
    for target in targets {
        let resource = &target.resource;
        if !target.names.is_empty() {
            if !selector.is_empty() || !field_selector.is_empty() || all {
                return Err(CliError::new("name cannot be provided when a selector is specified"));
            }
            for name in &target.names {
                found.push((resource.clone(), client.get(&resource.path(&client.namespace, name)).await?));
            }
            continue;
        }
        if selector.is_empty() && field_selector.is_empty() && !all {
            return Err(CliError::new(format!(
                "which {}? Give names, a selector (-l), or --all",
                resource.plural_group()
            )));
        }
        let path = format!(
            "{}{}",
            resource.list_path(Some(&client.namespace)),
            query(&[("labelSelector", selector), ("fieldSelector", field_selector)])
        );
        let mut list = client.get(&path).await?;
        if let Some(items) = list["items"].as_array_mut() {
            found.extend(items.drain(..).map(|item| (resource.clone(), with_type(item, resource))));
        }
    }
    Ok(found)
}

/// Items of a list carry no type of their own.
pub fn with_type(mut object: Value, resource: &Resource) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| resource.api_version().into());
        map.entry("kind").or_insert_with(|| resource.kind.clone().into());
    }
    object
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    fn resource(group: &str, plural: &str, kind: &str, short: &[&str], categories: &[&str]) -> Value {
        json!({"metadata": {"name": group}, "versions": [{"version": "v1", "resources": [{
            "resource": plural, "singularResource": kind.to_lowercase(), "scope": "Namespaced",
            "responseKind": {"group": group, "version": "v1", "kind": kind},
            "shortNames": short, "categories": categories, "verbs": ["get", "list"],
        }]}]})
    }

    pub fn some() -> Resources {
        Resources::parse(json!({"kind": "APIGroupDiscoveryList", "items": [
            resource("", "pods", "Pod", &["po"], &["all"]),
            resource("", "events", "Event", &["ev"], &[]),
            resource("apps", "deployments", "Deployment", &["deploy"], &["all"]),
            resource("events.k8s.io", "events", "Event", &["ev"], &[]),
        ]}))
        .expect("parsed")
    }

    #[test]
    fn a_resource_goes_by_many_names() {
        let resources = some();
        for word in ["po", "pod", "pods", "Pods", "pods.v1"] {
            assert_eq!(resources.resolve(word).expect(word).plural, "pods");
        }
        for word in ["deploy", "deployments.apps", "deployment.v1.apps"] {
            assert_eq!(resources.resolve(word).expect(word).kind, "Deployment");
        }
        assert_eq!(resources.resolve("ev").expect("core first").group, "");
        assert_eq!(resources.resolve("events.events.k8s.io").expect("by group").group, "events.k8s.io");
        assert!(resources.resolve("frobs").expect_err("none").to_string().contains("resource type \"frobs\""));
    }

    #[test]
    fn targets_are_types_and_names_or_pairs() {
        let resources = some();
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let targets = resources.targets(&words("po a b")).expect("names");
        assert_eq!((targets.len(), targets[0].names.len()), (1, 2));
        let targets = resources.targets(&words("po/a deploy/b")).expect("pairs");
        assert_eq!((targets.len(), targets[1].resource.kind.as_str()), (2, "Deployment"));
        assert_eq!(resources.targets(&words("po,deploy")).expect("list").len(), 2);
        assert_eq!(resources.targets(&words("all")).expect("category").len(), 2);
        assert!(resources.targets(&words("po/a b")).is_err());
        assert!(resources.targets(&[]).is_err());
    }

    #[test]
    fn paths_follow_group_and_scope() {
        let resources = some();
        let deploy = resources.resolve("deploy").expect("deploy");
        assert_eq!(deploy.path("x", "web"), "/apis/apps/v1/namespaces/x/deployments/web");
        assert_eq!(resources.resolve("po").expect("po").list_path(None), "/api/v1/pods");
        assert_eq!(deploy.display("web"), "deployment.apps/web");
    }
}
