//! The environment of a container: values, ConfigMaps, Secrets, downward fields and resources, and `$(NAME)` in all of it.
//!
//! Pure: what has to be fetched is named by [`references`], brought by the caller, and used by [`resolve`]. The rules and
//! the words of the errors are the kubelet's.
use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum SourceKind {
    ConfigMap,
    Secret,
}

/// The data of a ConfigMap or Secret; `None` where there is no such object.
pub type Source = Option<BTreeMap<String, Vec<u8>>>;
/// By kind and name, in the pod's namespace.
pub type Sources = HashMap<(SourceKind, String), Source>;

/// What a container's environment cannot be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { key: String, kind: &'static str, namespace: String, name: String },
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported resource: {0}")]
    Resource(String),
    #[error("invalid quantity {0:?}")]
    Quantity(String),
}

/// What the node knows of the pod, beside the pod itself.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    pub node_name: String,
    pub host_ip: String,
    pub pod_ip: String,
    /// What a container without a limit may use: cpu in cores and memory in bytes, as quantities.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The objects that the container's environment comes from.
pub fn references(container: &Container) -> Vec<(SourceKind, String)> {
    let mut found = Vec::new();
    for from in container.env_from.iter().flatten() {
        found.extend(from.config_map_ref.as_ref().map(|of| (SourceKind::ConfigMap, of.name.clone())));
        found.extend(from.secret_ref.as_ref().map(|of| (SourceKind::Secret, of.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
        found.extend(source.config_map_key_ref.as_ref().map(|of| (SourceKind::ConfigMap, of.name.clone())));
        found.extend(source.secret_key_ref.as_ref().map(|of| (SourceKind::Secret, of.name.clone())));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The environment, in the order of the pod's spec; a later value replaces an earlier one of the same name in its place.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    sources: &Sources,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Ordered::default();
    for from in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(of), _) => (SourceKind::ConfigMap, &of.name, of.optional),
            (_, Some(of)) => (SourceKind::Secret, &of.name, of.optional),
            _ => continue,
        };
        let Some(data) = object(sources, kind, name, optional)? else { continue };
        let prefix = from.prefix.as_deref().unwrap_or("");
        for (key, value) in data {
            env.set(format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => expand(text, |name| env.find(name)),
            (_, Some(source)) => match from_source(pod, container, facts, sources, source)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        env.set(var.name.clone(), value);
    }
    Ok(env.entries)
}

/// `command` or `args` with `$(NAME)` expanded.
pub fn expand_all(words: Option<&Vec<String>>, env: &[(String, String)]) -> Vec<String> {
    let find = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    words.into_iter().flatten().map(|word| expand(word, find)).collect()
}

#[derive(Default)]
struct Ordered {
    entries: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(name.clone(), self.entries.len());
                self.entries.push((name, value));
            }
        }
    }

    fn find(&self, name: &str) -> Option<String> {
        self.index.get(name).map(|at| self.entries[*at].1.clone())
    }
}

/// Kubernetes' expansion: `$(NAME)` is replaced where NAME is known and kept where not; `$$` is a literal `$`.
fn expand(text: &str, find: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match find(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn object<'a>(
    sources: &'a Sources,
    kind: SourceKind,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, EnvError> {
    match sources.get(&(kind, name.to_owned())) {
        Some(Some(data)) => Ok(Some(data)),
        _ if optional == Some(true) => Ok(None),
        _ if kind == SourceKind::ConfigMap => Err(EnvError::NoConfigMap(name.to_owned())),
        _ => Err(EnvError::NoSecret(name.to_owned())),
    }
}

/// `None`: an optional reference to what is not there; the variable is left out.
fn from_source(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    sources: &Sources,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(of), _) => (SourceKind::ConfigMap, &of.name, &of.key, of.optional),
        (_, Some(of)) => (SourceKind::Secret, &of.name, &of.key, of.optional),
        _ => {
            return match (&source.field_ref, &source.resource_field_ref) {
                (Some(field), _) => field_value(pod, facts, &field.field_path).map(Some),
                (_, Some(resource)) => resource_value(pod, container, facts, resource).map(Some),
                _ => Ok(Some(String::new())),
            };
        }
    };
    let Some(data) = object(sources, kind, name, optional)? else { return Ok(None) };
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvError::NoKey {
            key: key.clone(),
            kind: if kind == SourceKind::ConfigMap { "ConfigMap" } else { "Secret" },
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.clone(),
        }),
    }
}

fn field_value(pod: &Pod, facts: &NodeFacts, path: &str) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let listed = |map: &Option<BTreeMap<String, String>>| -> String {
        map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(EnvError::Field(path.to_owned())),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => listed(&meta.labels),
        "metadata.annotations" => listed(&meta.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return Err(EnvError::Field(path.to_owned())),
    })
}

fn resource_value(
    pod: &Pod,
    container: &Container,
    facts: &NodeFacts,
    field: &ResourceFieldSelector,
) -> Result<String, EnvError> {
    let unsupported = || EnvError::Resource(field.resource.clone());
    let named = field.container_name.as_deref().unwrap_or(&container.name);
    let of = pod
        .spec
        .iter()
        .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
        .find(|of| of.name == named)
        .ok_or_else(|| EnvError::Resource(format!("{} of container {named}", field.resource)))?;
    let (list, resource) = field.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = of.resources.as_ref();
    let own = match list {
        "limits" => resources.and_then(|of| of.limits.as_ref()).and_then(|list| list.get(resource)),
        "requests" => resources.and_then(|of| of.requests.as_ref()).and_then(|list| list.get(resource)),
        _ => return Err(unsupported()),
    };
    // Kubernetes: a missing limit is what the node has; a missing request is zero.
    let fallback = if list == "limits" { facts.allocatable.get(resource) } else { None };
    let Some(quantity) = own.or(fallback) else { return Ok("0".to_owned()) };
    let milli = |quantity: &Quantity| match crate::api::quantity::Quantity::parse(&quantity.0) {
        Ok(parsed) => Ok(parsed.milli()),
        Err(_) => Err(EnvError::Quantity(quantity.0.clone())),
    };
    let divisor = match &field.divisor {
        Some(divisor) if milli(divisor)? > 0 => milli(divisor)?,
        _ => 1000,
    };
    let value = milli(quantity)?;
    Ok((value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(container: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web", "tier": "a\"b"}},
            "spec": {"serviceAccountName": "robot", "containers": [container]},
        }))
        .unwrap()
    }

    fn facts() -> NodeFacts {
        NodeFacts {
            node_name: "n1".into(),
            host_ip: "10.0.0.1".into(),
            pod_ip: "127.1.0.7".into(),
            allocatable: BTreeMap::from([("cpu".into(), Quantity("2".into()))]),
        }
    }

    fn sources() -> Sources {
        let data = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect())
        };
        HashMap::from([
            ((SourceKind::ConfigMap, "cm".into()), data(&[("A", "from map"), ("B", "b")])),
            ((SourceKind::Secret, "sec".into()), data(&[("TOKEN", "hush")])),
            ((SourceKind::ConfigMap, "none".into()), None),
        ])
    }

    fn env(container: Value) -> Result<Vec<(String, String)>, EnvError> {
        let pod = pod(container);
        resolve(&pod, &pod.spec.as_ref().unwrap().containers[0], &facts(), &sources())
    }

    fn one(source: Value) -> Result<Vec<(String, String)>, EnvError> {
        env(json!({"name": "c", "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "250m"}},
                   "env": [{"name": "X", "valueFrom": source}]}))
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn values_come_in_order_and_later_ones_win() {
        let got = env(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}},
                        {"configMapRef": {"name": "none", "optional": true}}],
            "env": [{"name": "P_A", "value": "own"}, {"name": "Y", "value": "$(TOKEN)-$(P_A)-$(LATER)-$$(P_A)-$x"},
                    {"name": "LATER", "value": "l"}, {"name": "EMPTY"}]}));
        assert_eq!(
            got.unwrap(),
            pairs(&[
                ("P_A", "own"),
                ("P_B", "b"),
                ("TOKEN", "hush"),
                ("Y", "hush-own-$(LATER)-$(P_A)-$x"),
                ("LATER", "l"),
                ("EMPTY", ""),
            ])
        );
    }

    #[test]
    fn downward_fields_and_resources_have_kubernetes_values() {
        for (field, value) in [
            ("metadata.name", "web-1"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "u1"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['no']", ""),
            ("metadata.labels", "app=\"web\"\ntier=\"a\\\"b\""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "robot"),
            ("status.podIP", "127.1.0.7"),
            ("status.hostIP", "10.0.0.1"),
        ] {
            assert_eq!(one(json!({"fieldRef": {"fieldPath": field}})).unwrap(), pairs(&[("X", value)]), "{field}");
        }
        for (resource, divisor, value) in [
            ("limits.memory", "0", "67108864"),
            ("limits.memory", "1Mi", "64"),
            ("requests.cpu", "0", "1"),
            ("requests.cpu", "1m", "250"),
            ("limits.cpu", "1", "2"),
            ("requests.memory", "1", "0"),
        ] {
            let got = one(json!({"resourceFieldRef": {"resource": resource, "divisor": divisor}}));
            assert_eq!(got.unwrap(), pairs(&[("X", value)]), "{resource} {divisor}");
        }
    }

    #[test]
    fn what_is_missing_is_named_in_kubernetes_words_unless_optional() {
        for (source, error) in [
            (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
            (json!({"secretKeyRef": {"name": "nope", "key": "k"}}), "secret \"nope\" not found"),
            (json!({"configMapKeyRef": {"name": "cm", "key": "k"}}), "couldn't find key k in ConfigMap shop/cm"),
            (json!({"fieldRef": {"fieldPath": "spec.nope"}}), "unsupported fieldPath: spec.nope"),
            (json!({"resourceFieldRef": {"resource": "cpu"}}), "unsupported resource: cpu"),
        ] {
            assert_eq!(one(source).unwrap_err().to_string(), error);
        }
        for source in [
            json!({"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}),
            json!({"secretKeyRef": {"name": "sec", "key": "k", "optional": true}}),
        ] {
            assert_eq!(one(source).unwrap(), []);
        }
    }

    #[test]
    fn all_referenced_objects_are_named_once() {
        let pod = pod(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "cm"}}],
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}));
        assert_eq!(
            references(&pod.spec.unwrap().containers[0]),
            [(SourceKind::ConfigMap, "cm".to_owned()), (SourceKind::Secret, "sec".to_owned())]
        );
    }
}
