//! The table of kinds: every resource that is served, as data.
//!
//! Built-in kinds come from a list in this file; custom resources will add entries at run time through [`Kinds::with`].
//! A kind says nothing about how it is handled: rules that differ by kind live in `defaults`, `validate` and `table`,
//! and are found by group and kind.

use std::collections::HashMap;
use std::sync::Arc;

use super::schema::{self, TypeId};

/// Kubernetes' verbs of a whole resource, in the order discovery prints them.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// A path below an object, such as `deployments/web/scale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    /// Group, version and kind of what it answers and accepts.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

/// One served resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// Its fields in [`schema`].
    pub schema: TypeId,
    /// What a field selector may name, besides `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<String>,
    /// Whether status is written through a subresource only.
    pub has_status: bool,
    /// Whether a delete waits for the node (pods) before the object goes.
    pub graceful_delete: bool,
    /// Whether `metadata.generation` counts changes of the spec.
    pub has_generation: bool,
}

impl Kind {
    /// `deployments.apps`, or `pods` for the core group: as messages and RBAC name it.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    /// Where the objects of this kind live in the store, with a slash at the end. Versions of one kind share it.
    pub fn storage_prefix(&self) -> String {
        if self.group.is_empty() {
            format!("/registry/{}/", self.plural)
        } else {
            format!("/registry/{}/{}/", self.group, self.plural)
        }
    }

    /// The key of one object. `namespace` is ignored for cluster-scoped kinds.
    pub fn storage_key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.storage_prefix())
        } else {
            format!("{}{name}", self.storage_prefix())
        }
    }

    /// The kind of a list of these: `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|allowed| allowed == verb)
    }

    /// Whether this is `group`/`kind`, in any version.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }
}

/// `apps/v1`, or `v1` for the core group.
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Splits `apps/v1` or `v1` into group and version.
pub fn parse_group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// All kinds that one server serves. Immutable: a change makes a new table.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<(String, String, String), usize>,
    by_kind: HashMap<(String, String, String), usize>,
}

impl Kinds {
    /// The kinds that are compiled in.
    pub fn builtin() -> Arc<Kinds> {
        Arc::new(builtin().into_iter().fold(Kinds::default(), Kinds::with))
    }

    /// This table and one more kind; one of the same group, version and kind is replaced.
    #[must_use]
    pub fn with(mut self, kind: Kind) -> Self {
        let id = |name: &str| (kind.group.clone(), kind.version.clone(), name.to_owned());
        let (resource, name) = (id(&kind.plural), id(&kind.kind));
        match self.by_kind.get(&name) {
            Some(&at) => {
                let old = Arc::clone(&self.kinds[at]);
                self.by_resource.remove(&(old.group.clone(), old.version.clone(), old.plural.clone()));
                self.kinds[at] = Arc::new(kind);
                self.by_resource.insert(resource, at);
            }
            None => {
                let at = self.kinds.len();
                self.kinds.push(Arc::new(kind));
                self.by_resource.insert(resource, at);
                self.by_kind.insert(name, at);
            }
        }
        self
    }

    /// By the words of a URL: `apps`, `v1`, `deployments`.
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_resource.get(&key).map(|&at| &self.kinds[at])
    }

    /// By the words of a manifest: `apps`, `v1`, `Deployment`.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        self.by_kind.get(&key).map(|&at| &self.kinds[at])
    }

    /// By `apiVersion` and `kind` of an object.
    pub fn of(&self, object: &super::Object) -> Option<&Arc<Kind>> {
        let (group, version) = parse_group_version(super::meta::api_version(object));
        self.by_kind(group, version, super::meta::kind(object))
    }

    /// By what a person types: plural, singular, short name or kind, with or without `.group`, in any case.
    pub fn by_any_name(&self, word: &str) -> Option<&Arc<Kind>> {
        let word = word.to_ascii_lowercase();
        let (name, group) = match word.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (word.as_str(), None),
        };
        let named = |kind: &Kind| {
            kind.plural == name
                || kind.singular == name
                || kind.kind.to_ascii_lowercase() == name
                || kind.short_names.iter().any(|short| short == name)
        };
        self.kinds.iter().find(|kind| {
            let in_group = group.is_none_or(|g| g == kind.group || g == format!("{}.{}", kind.version, kind.group));
            in_group && named(kind)
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.iter()
    }

    /// Each group with its versions, in the order of the table; the first version is the preferred one.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for kind in &self.kinds {
            let at = match groups.iter().position(|(group, _)| *group == kind.group) {
                Some(at) => at,
                None => {
                    groups.push((kind.group.clone(), Vec::new()));
                    groups.len() - 1
                }
            };
            if !groups[at].1.contains(&kind.version) {
                groups[at].1.push(kind.version.clone());
            }
        }
        groups
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

/// A namespaced kind with all verbs and nothing else; `definition` is its name in the schema.
fn plain(group: &str, version: &str, kind: &str, plural: &str, definition: &str) -> Kind {
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_ascii_lowercase(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced: true,
        verbs: words(ALL_VERBS),
        subresources: Vec::new(),
        schema: schema::type_named(definition).expect("invariant: the schema has every built-in kind"),
        selectable_fields: Vec::new(),
        has_status: false,
        graceful_delete: false,
        has_generation: false,
    }
}

impl Kind {
    fn short(mut self, names: &[&str]) -> Self {
        self.short_names = words(names);
        self
    }

    fn all(mut self) -> Self {
        self.categories = words(&["all"]);
        self
    }

    fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    fn selectable(mut self, fields: &[&str]) -> Self {
        self.selectable_fields = words(fields);
        self
    }

    fn counts_generations(mut self) -> Self {
        self.has_generation = true;
        self
    }

    fn with_status(mut self) -> Self {
        self.has_status = true;
        let kind = self.kind.clone();
        self.sub("status", "", "", &kind, STATUS_VERBS)
    }

    fn with_scale(self) -> Self {
        self.sub("scale", "autoscaling", "v1", "Scale", STATUS_VERBS)
    }

    /// Adds a subresource. An empty version stands for the group and version of the resource itself.
    fn sub(mut self, name: &str, group: &str, version: &str, kind: &str, verbs: &[&str]) -> Self {
        let own = version.is_empty();
        self.subresources.push(Subresource {
            name: name.to_owned(),
            group: if own { &self.group } else { group }.to_owned(),
            version: if own { &self.version } else { version }.to_owned(),
            kind: kind.to_owned(),
            verbs: words(verbs),
        });
        self.subresources.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }
}

fn builtin() -> Vec<Kind> {
    let core = |kind: &str, plural: &str| plain("", "v1", kind, plural, &format!("io.k8s.api.core.v1.{kind}"));
    let apps = |kind: &str, plural: &str| {
        plain("apps", "v1", kind, plural, &format!("io.k8s.api.apps.v1.{kind}"))
            .all()
            .counts_generations()
            .with_status()
            .with_scale()
    };
    let mut namespace = core("Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .selectable(&["status.phase"])
        .with_status()
        .sub("finalize", "", "", "Namespace", &["update"]);
    namespace.verbs.retain(|verb| verb != "deletecollection");
    let mut pod = core("Pod", "pods")
        .all()
        .short(&["po"])
        .counts_generations()
        .selectable(&[
            "spec.hostNetwork",
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.nominatedNodeName",
            "status.phase",
            "status.podIP",
            "status.podIPs",
        ])
        .with_status()
        .sub("binding", "", "", "Binding", &["create"])
        .sub("log", "", "", "Pod", &["get"]);
    pod.graceful_delete = true;
    vec![
        core("ConfigMap", "configmaps").short(&["cm"]),
        core("Event", "events").short(&["ev"]).selectable(&[
            "involvedObject.apiVersion",
            "involvedObject.fieldPath",
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.resourceVersion",
            "involvedObject.uid",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ]),
        namespace,
        core("Node", "nodes").cluster().short(&["no"]).selectable(&["spec.unschedulable"]).with_status(),
        pod,
        core("Secret", "secrets").selectable(&["type"]),
        apps("Deployment", "deployments").short(&["deploy"]),
        apps("ReplicaSet", "replicasets").short(&["rs"]).selectable(&["status.replicas"]),
        plain("coordination.k8s.io", "v1", "Lease", "leases", "io.k8s.api.coordination.v1.Lease"),
    ]
}
