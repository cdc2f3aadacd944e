//! Who owns what: controller references, label selectors, and which objects a controller claims.
//!
//! Pure. The rules are those of Kubernetes' controller reference manager. Called by all controllers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};

pub type Labels = BTreeMap<String, String>;

/// The one owner that manages the object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_deref()?.iter().find(|owner| owner.controller == Some(true))
}

pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The reference that makes `owner` the controller of another object.
pub fn controller_reference(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether labels satisfy a selector. An empty selector selects nothing here: no controller may claim everything.
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let none = Labels::new();
    let labels = labels.unwrap_or(&none);
    let wanted = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) && expressions.is_empty() {
        return false;
    }
    let mut wanted = wanted;
    wanted.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.iter().all(|expression| {
            let actual = labels.get(&expression.key);
            let listed = |value: &String| expression.values.as_deref().unwrap_or_default().contains(value);
            match expression.operator.as_str() {
                "In" => actual.is_some_and(listed),
                "NotIn" => !actual.is_some_and(listed),
                "Exists" => actual.is_some(),
                "DoesNotExist" => actual.is_none(),
                _ => false,
            }
        })
}

/// What a controller does about one object of the kind it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Owned and selected.
    Own,
    /// Selected, and nobody's: take it.
    Adopt,
    /// Owned, but no longer selected: let it go.
    Release,
    Ignore,
}

/// Decides for `object` in view of the controller `owner`. Neither side takes or gives when it is being deleted.
pub fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let owner_uid = owner.uid.as_deref().unwrap_or_default();
    let selected = selects(selector, object.labels.as_ref());
    match controller_of(object) {
        Some(controller) if controller.uid != owner_uid => Claim::Ignore,
        Some(_) if selected => Claim::Own,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if !selected => Claim::Ignore,
        None if owner.deletion_timestamp.is_some() || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// `namespace/name`, or `name` for what lives in no namespace: how objects are named in queues and messages.
pub fn key_of(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}

/// The revision of this version of an object; 0 when it was never stored.
pub fn revision_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meta(value: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    fn selector(value: serde_json::Value) -> LabelSelector {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_selector_needs_all_its_terms() {
        let labels = Labels::from([("app".to_owned(), "x".to_owned()), ("tier".to_owned(), "web".to_owned())]);
        let holds = |value| selects(&selector(value), Some(&labels));
        assert!(holds(json!({"matchLabels": {"app": "x"}})));
        assert!(!holds(json!({"matchLabels": {"app": "x", "tier": "db"}})));
        assert!(holds(json!({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["web"]}]})));
        assert!(!holds(json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["web"]}]})));
        assert!(holds(json!({"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]})));
        assert!(!holds(json!({"matchExpressions": [{"key": "none", "operator": "Exists"}]})));
        assert!(!holds(json!({})), "an empty selector claims nothing");
    }

    #[test]
    fn objects_are_adopted_kept_released_or_left_alone() {
        let owner = meta(json!({"uid": "o"}));
        let dying = meta(json!({"uid": "o", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let selector = selector(json!({"matchLabels": {"app": "x"}}));
        let reference =
            |uid: &str| json!([{"apiVersion": "v1", "kind": "K", "name": "n", "uid": uid, "controller": true}]);
        let selected = json!({"app": "x"});
        let mine = meta(json!({"labels": selected, "ownerReferences": reference("o")}));
        let relabelled = meta(json!({"labels": {"app": "y"}, "ownerReferences": reference("o")}));
        let foreign = meta(json!({"labels": selected, "ownerReferences": reference("other")}));
        let orphan = meta(json!({"labels": selected}));
        let dying_orphan = meta(json!({"labels": selected, "deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(claim(&owner, &selector, &mine), Claim::Own);
        assert_eq!(claim(&owner, &selector, &relabelled), Claim::Release);
        assert_eq!(claim(&owner, &selector, &foreign), Claim::Ignore);
        assert_eq!(claim(&owner, &selector, &orphan), Claim::Adopt);
        assert_eq!(claim(&owner, &selector, &dying_orphan), Claim::Ignore);
        assert_eq!(claim(&dying, &selector, &orphan), Claim::Ignore);
        assert_eq!(claim(&dying, &selector, &relabelled), Claim::Ignore);
    }
}
