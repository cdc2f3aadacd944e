//! What somebody declares becomes so: kubectl's client-side apply, next to the store.
//!
//! The object is made, or changed by the three-way difference of what was applied last, what is wanted and what is there
//! (`api::patch::three_way`). Doing it twice does no more than once, so a server that is killed meanwhile is no
//! matter. Called by `Cluster::apply` and `Cluster::apply_yaml`.

use std::sync::Arc;

use serde_json::Value;

use super::ClusterError;
use crate::api::patch::three_way;
use crate::api::{FieldValidation, Kind, Kinds, Object, Patch, Status, conform_object, meta, yaml};
use crate::registry::{Registry, WriteOptions};

/// Who owns the fields that are applied.
const FIELD_MANAGER: &str = "phalanx-embedded";
/// Where objects go that name no namespace.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// An object that was looked at and may be applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Intent {
    pub kind: Arc<Kind>,
    /// `None` for kinds that have none.
    pub namespace: Option<String>,
    pub name: String,
    /// With its namespace, and the annotation of what was applied.
    pub wanted: Object,
}

impl Intent {
    /// Of an object as a program or a manifest gives it.
    ///
    /// # Errors
    /// What Kubernetes says to an unknown kind, an unknown or mistyped field, or a missing name.
    pub fn of(kinds: &Kinds, object: Object) -> Result<Intent, Status> {
        let (api_version, kind) = (meta::api_version(&object), meta::kind(&object));
        if kind.is_empty() || api_version.is_empty() {
            let missing = if kind.is_empty() { "kind" } else { "apiVersion" };
            return Err(Status::bad_request(format!("{missing} not set")));
        }
        let Some(kind) = kinds.of(&object).cloned() else {
            return Err(Status::bad_request(format!("no matches for kind {kind:?} in version {api_version:?}")));
        };
        let mut object = conform_object(&kind, object, FieldValidation::Strict)?.object;
        let name = meta::name(&object).to_owned();
        if name.is_empty() {
            return Err(Status::bad_request("metadata.name is needed to apply"));
        }
        let namespace = kind.namespaced.then(|| match meta::namespace(&object) {
            "" => DEFAULT_NAMESPACE.to_owned(),
            own => own.to_owned(),
        });
        if let Some(namespace) = &namespace {
            meta::set_text(&mut object, "namespace", namespace);
        }
        // What a program read and gives back: these are the server's, and say nothing of what is wanted.
        let metadata = meta::metadata_mut(&mut object);
        for field in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid"] {
            metadata.remove(field);
        }
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        Ok(Intent { kind, namespace, name, wanted: three_way::with_last_applied(&object) })
    }

    /// Makes it so; answers with the object as it is then.
    pub async fn apply(&self, registry: &Registry) -> Result<Object, Status> {
        let (kind, namespace) = (&*self.kind, self.namespace.as_deref());
        let options = WriteOptions { field_manager: Some(FIELD_MANAGER.into()), ..WriteOptions::default() };
        let live = match registry.get(kind, namespace, &self.name).await {
            Ok(live) => live,
            Err(status) if status.http_code() == 404 => {
                match registry.create(kind, namespace, self.wanted.clone(), &options).await {
                    // Somebody was faster, or it was this call, at a server that died: then it is there to be changed.
                    Err(status) if status.http_code() == 409 => registry.get(kind, namespace, &self.name).await?,
                    created => return created,
                }
            }
            Err(status) => return Err(status),
        };
        let last = three_way::last_applied(&live);
        let Some(change) = three_way::strategic(last.as_ref(), &self.wanted, &live) else { return Ok(live) };
        registry.patch(kind, namespace, &self.name, None, &Patch::Strategic(change), &options).await
    }
}

/// The objects of a manifest, each with the number of its document and the line on which that begins. All are looked at
/// before the first is applied.
pub(super) fn manifest(kinds: &Kinds, text: &str) -> Result<Vec<(usize, usize, Intent)>, ClusterError> {
    let mut intents = Vec::new();
    for (i, (object, line)) in yaml::documents(text)?.into_iter().enumerate() {
        let document = i + 1;
        for object in items(object) {
            let intent = Intent::of(kinds, object);
            let intent = intent.map_err(|e| ClusterError::Manifest { document, line, why: e.to_string() })?;
            intents.push((document, line, intent));
        }
    }
    Ok(intents)
}

/// The objects of a document: itself, or what a list holds.
fn items(object: Object) -> Vec<Object> {
    match object.get("items").and_then(Value::as_array) {
        Some(items) if meta::kind(&object).ends_with("List") => items.clone(),
        _ => vec![object],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(text: &str) -> String {
        manifest(&Kinds::builtin(), text).expect_err("refused").to_string()
    }

    #[test]
    fn a_manifest_is_looked_at_as_a_whole_before_anything_is_applied() {
        let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
        assert_eq!(manifest(&Kinds::builtin(), &format!("{good}---\n{good}")).expect("good").len(), 2);
        let unknown = "apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n";
        let says = "document 2 (line 5): no matches for kind \"Pot\" in version \"v1\"";
        assert_eq!(refused(&format!("{good}---\n{unknown}")), says);
        let field = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nbata: {x: y}\n";
        assert!(refused(&format!("{good}---\n{field}")).contains("unknown field \"bata\""));
        assert!(refused("kind: [Pod\nx: y\n").starts_with("document 1, line "));
        assert!(refused("apiVersion: v1\nmetadata: {name: a}\n").ends_with("kind not set"));
        assert!(
            refused("apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n").ends_with("metadata.name is needed to apply")
        );
    }

    #[test]
    fn what_is_the_servers_is_no_part_of_what_is_wanted() {
        let read = json!({"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Running"},
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}}});
        let intent = Intent::of(&Kinds::builtin(), read).expect("good");
        assert_eq!(intent.namespace.as_deref(), Some("default"));
        assert!(intent.wanted.get("status").is_none());
        let metadata = &intent.wanted["metadata"];
        assert_eq!((&metadata["uid"], &metadata["resourceVersion"]), (&Value::Null, &Value::Null));
        assert_eq!(metadata["labels"]["x"], "y");
    }

    #[test]
    fn the_items_of_a_list_are_objects_of_their_own() {
        let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
                    - {apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: a}}\n";
        let intents = manifest(&Kinds::builtin(), list).expect("good");
        let namespaces: Vec<_> = intents.iter().map(|(_, _, i)| i.namespace.as_deref()).collect();
        assert_eq!(namespaces, [None, Some("a")]);
    }
}
