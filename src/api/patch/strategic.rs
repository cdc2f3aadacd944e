//! Strategic merge patch: a merge patch that knows which lists are merged by which key.
//!
//! The directives: `$patch: replace|delete|merge`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`,
//! `$retainKeys`. The schema says for each list whether it is merged (`patch_merge`) and by which key (`merge_key`).

use serde_json::{Map, Value};

use super::DEPTH_MAX;
use crate::api::schema::{Field, Form, Shape, TypeId};
use crate::api::{Object, Status};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// `current` after the patch.
///
/// # Errors
/// 500 with Kubernetes' text for an unknown directive or an item without its merge key.
pub fn merge(ty: TypeId, current: &Object, patch: &Value) -> Result<Object, Status> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(Status::bad_request("a strategic merge patch must be an object"));
    };
    maps(Some(ty), current.clone(), patch, 0).map(|merged| Value::Object(merged.unwrap_or_default()))
}

/// The type of a map's values by field name, if the schema knows it.
fn field_of(ty: Option<TypeId>, name: &str) -> Option<&'static Field> {
    ty?.get().field(name)
}

/// The type of a shape that is a struct.
fn struct_of(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Type(id) if id.get().form == Form::Object => Some(*id),
        Shape::List(item) | Shape::Map(item) => struct_of(item),
        _ => None,
    }
}

/// Merges a map. None means that the patch deletes it.
fn maps(
    ty: Option<TypeId>,
    mut current: Map<String, Value>,
    patch: &Map<String, Value>,
    depth: usize,
) -> Result<Option<Map<String, Value>>, Status> {
    if depth > DEPTH_MAX {
        return Err(Status::bad_request("the patch is nested too deeply"));
    }
    match patch.get(PATCH).map(|directive| directive.as_str().unwrap_or_default()) {
        Some("replace") => {
            let mut replaced = patch.clone();
            replaced.remove(PATCH);
            return Ok(Some(without_directives(replaced)));
        }
        Some("delete") => return Ok(None),
        Some("merge") | None => {}
        Some(other) => return Err(unknown_directive(other, patch)),
    }
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        let Some(keys) = keys.as_array() else {
            return Err(Status::server_error("invalid patch format of retainKeys"));
        };
        current.retain(|key, _| keys.iter().any(|keep| keep == key));
    }
    for (name, value) in patch {
        if name == PATCH || name == RETAIN_KEYS || name.starts_with(SET_ORDER) || name.starts_with(DELETE_FROM) {
            continue;
        }
        let field = field_of(ty, name);
        let merged = match (value, current.remove(name)) {
            (Value::Null, _) => None,
            (Value::Object(inner), before) => {
                let before = match before {
                    Some(Value::Object(before)) => before,
                    _ => Map::new(),
                };
                let inner_ty = field.and_then(|field| struct_of(&field.shape));
                maps(inner_ty, before, inner, depth + 1)?.map(Value::Object)
            }
            (Value::Array(items), before) => {
                let before = match before {
                    Some(Value::Array(before)) => before,
                    _ => Vec::new(),
                };
                let order = patch.get(&format!("{SET_ORDER}{name}"));
                Some(Value::Array(lists(field, before, items, order, depth + 1)?))
            }
            (value, _) => Some(value.clone()),
        };
        if let Some(merged) = merged {
            current.insert(name.clone(), merged);
        }
    }
    directives_on_lists(ty, &mut current, patch)?;
    Ok(Some(current))
}

/// `$deleteFromPrimitiveList/x`, and `$setElementOrder/x` where the patch has no `x` itself.
fn directives_on_lists(
    ty: Option<TypeId>,
    current: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), Status> {
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            let doomed = value.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(Value::Array(items)) = current.get_mut(list) {
                items.retain(|item| !doomed.contains(item));
            }
        }
    }
    for (name, order) in patch {
        let Some(list) = name.strip_prefix(SET_ORDER) else { continue };
        let key = field_of(ty, list).and_then(|field| field.merge_key);
        let Some(order) = order.as_array() else {
            return Err(Status::server_error(format!("invalid patch format of {SET_ORDER}{list}")));
        };
        if let Some(Value::Array(items)) = current.get_mut(list) {
            let taken = std::mem::take(items);
            *items = ordered(key, taken, order);
        }
    }
    Ok(())
}

fn lists(
    field: Option<&'static Field>,
    current: Vec<Value>,
    patch: &[Value],
    order: Option<&Value>,
    depth: usize,
) -> Result<Vec<Value>, Status> {
    let Some(field) = field.filter(|field| field.patch_merge) else {
        return Ok(patch.iter().cloned().map(clean).collect());
    };
    let of_maps = patch.iter().chain(&current).any(Value::is_object);
    if !of_maps {
        let mut merged = current;
        for item in patch {
            if !merged.contains(item) {
                merged.push(item.clone());
            }
        }
        return Ok(merged);
    }
    let Some(key) = field.merge_key else {
        return Ok(patch.iter().cloned().map(clean).collect());
    };
    // One `$patch: replace` item replaces the whole list with the others.
    let directive = |item: &Value| item.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        let keep = patch.iter().filter(|item| directive(item).is_none());
        return Ok(keep.cloned().map(clean).collect());
    }
    let ty = struct_of(&field.shape);
    let mut merged = current;
    for item in patch {
        let Value::Object(map) = item else {
            return Err(Status::server_error("the elements of a merged list must be maps"));
        };
        match directive(item).as_deref() {
            None | Some("merge" | "delete") => {}
            Some(other) => return Err(unknown_directive(other, map)),
        }
        let Some(id) = map.get(key) else {
            return Err(Status::server_error(format!(
                "map: {} does not contain declared merge key: {key}",
                go_map(map)
            )));
        };
        let at = merged.iter().position(|old| old.get(key) == Some(id));
        if directive(item).as_deref() == Some("delete") {
            merged.retain(|old| old.get(key) != Some(id));
            continue;
        }
        match at {
            Some(at) => {
                if let Value::Object(old) = merged[at].take() {
                    let next = maps(ty, old, map, depth + 1)?;
                    merged[at] = Value::Object(next.unwrap_or_default());
                }
            }
            None => merged.push(Value::Object(maps(ty, Map::new(), map, depth + 1)?.unwrap_or_default())),
        }
    }
    // Without an order of its own, the patch's items come as it lists them; kubectl always sends one.
    Ok(match order.and_then(Value::as_array) {
        Some(order) => ordered(Some(key), merged, order),
        None => merged,
    })
}

/// Sorts items into the order that the patch demands; items that it does not name keep their place after the one before
/// them.
fn ordered(key: Option<&str>, items: Vec<Value>, order: &[Value]) -> Vec<Value> {
    let id = |item: &Value| match key {
        Some(key) => item.get(key).cloned().unwrap_or_default(),
        None => item.clone(),
    };
    let rank = |item: &Value| order.iter().position(|wanted| id(wanted) == id(item));
    let mut named: Vec<(usize, Value)> = Vec::new();
    let mut others = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        match rank(&item) {
            Some(rank) => named.push((rank, item)),
            None => others.push((at, item)),
        }
    }
    named.sort_by_key(|(rank, _)| *rank);
    let mut result: Vec<Value> = named.into_iter().map(|(_, item)| item).collect();
    for (at, item) in others {
        let at = at.min(result.len());
        result.insert(at, item);
    }
    result
}

/// A value that replaces another: directives in it mean nothing any more.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(items.into_iter().map(clean).collect()),
        other => other,
    }
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(key, value)| {
            !value.is_null()
                && key != PATCH
                && key != RETAIN_KEYS
                && !key.starts_with(SET_ORDER)
                && !key.starts_with(DELETE_FROM)
        })
        .map(|(key, value)| (key, clean(value)))
        .collect()
}

fn unknown_directive(directive: &str, map: &Map<String, Value>) -> Status {
    Status::server_error(format!("unknown patch type: {directive} in map: {}", go_map(map)))
}

/// A map as Go prints it: `map[image:x]`.
fn go_map(map: &Map<String, Value>) -> String {
    fn print(value: &Value) -> String {
        match value {
            Value::Object(map) => go_map(map),
            Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
            Value::String(text) => text.clone(),
            Value::Null => "<nil>".to_owned(),
            other => other.to_string(),
        }
    }
    let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", print(value))).collect();
    format!("map[{}]", entries.join(" "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::api::schema::type_of_kind;

    fn deployment_patched(current: Value, patch: Value) -> Result<Value, Status> {
        let ty = type_of_kind("apps", "v1", "Deployment").expect("in the table");
        let wrap = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
        merge(ty, &wrap(current), &wrap(patch)).map(|merged| merged["spec"]["template"]["spec"].clone())
    }

    #[test]
    fn lists_with_a_merge_key_are_merged_by_it() {
        let merged = deployment_patched(
            json!({"containers": [{"name": "a", "image": "x:1", "env": [{"name": "A", "value": "1"}], "args": ["1"]}, {"name": "b", "image": "y"}]}),
            json!({"containers": [{"name": "a", "image": "x:2", "env": [{"name": "B", "value": "2"}], "args": ["2"]}, {"name": "c", "image": "z"}]}),
        );
        assert_eq!(
            merged,
            Ok(json!({"containers": [
                {"name": "a", "image": "x:2", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["2"]},
                {"name": "b", "image": "y"}, {"name": "c", "image": "z"}]}))
        );
    }

    #[test]
    fn directives_delete_replace_and_order() {
        let two = json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]});
        assert_eq!(
            deployment_patched(two.clone(), json!({"containers": [{"name": "a", "$patch": "delete"}]})),
            Ok(json!({"containers": [{"name": "b", "image": "y"}]}))
        );
        assert_eq!(
            deployment_patched(
                two.clone(),
                json!({"containers": [{"$patch": "replace"}, {"name": "c", "image": "z"}]})
            ),
            Ok(json!({"containers": [{"name": "c", "image": "z"}]}))
        );
        assert_eq!(
            deployment_patched(
                two.clone(),
                json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c", "image": "z"}]})
            ),
            Ok(
                json!({"containers": [{"name": "c", "image": "z"}, {"name": "b", "image": "y"}, {"name": "a", "image": "x"}]})
            )
        );
        assert_eq!(
            deployment_patched(
                json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
                json!({"securityContext": {"$patch": "replace", "runAsUser": 3}})
            ),
            Ok(json!({"securityContext": {"runAsUser": 3}}))
        );
    }

    #[test]
    fn retained_keys_drop_the_others() {
        let ty = type_of_kind("apps", "v1", "Deployment").expect("in the table");
        let current = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(merge(ty, &current, &patch), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
        assert_eq!(
            deployment_patched(
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"$retainKeys": ["configMap", "name"], "name": "v", "configMap": {"name": "c"}}]})
            ),
            Ok(json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}))
        );
    }

    #[test]
    fn lists_of_scalars_are_merged_as_sets_where_the_schema_says_so() {
        let ty = type_of_kind("", "v1", "Pod").expect("in the table");
        let current = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"], "$setElementOrder/finalizers": ["c", "b"]}});
        assert_eq!(merge(ty, &current, &patch), Ok(json!({"metadata": {"finalizers": ["c", "b"]}})));
        // Tolerations have no merge key: the list is replaced.
        let current = json!({"spec": {"tolerations": [{"key": "a"}]}});
        let patch = json!({"spec": {"tolerations": [{"key": "b"}]}});
        assert_eq!(merge(ty, &current, &patch), Ok(patch));
    }

    #[test]
    fn nulls_delete_and_labels_merge() {
        let ty = type_of_kind("", "v1", "ConfigMap").expect("in the table");
        let current = json!({"data": {"a": "1", "b": "2"}, "metadata": {"labels": {"x": "y"}}});
        let patch = json!({"data": {"a": null}, "metadata": {"labels": {"z": "w"}, "annotations": null}});
        assert_eq!(
            merge(ty, &current, &patch),
            Ok(json!({"data": {"b": "2"}, "metadata": {"labels": {"x": "y", "z": "w"}}}))
        );
    }

    #[test]
    fn bad_patches_get_kubernetes_text() {
        let message =
            |patch: Value| deployment_patched(json!({"containers": [{"name": "a"}]}), patch).expect_err("bad").message;
        assert_eq!(
            message(json!({"containers": [{"$patch": "explode"}]})),
            "unknown patch type: explode in map: map[$patch:explode]"
        );
        assert_eq!(
            message(json!({"containers": [{"image": "x"}]})),
            "map: map[image:x] does not contain declared merge key: name"
        );
    }

    fn arbitrary_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..4i64).prop_map(Value::from),
            "[ab]{1}".prop_map(Value::from)
        ];
        let key = prop_oneof![
            Just("name".to_owned()),
            Just("containers".to_owned()),
            Just("spec".to_owned()),
            Just("metadata".to_owned()),
            Just("finalizers".to_owned()),
            Just("$patch".to_owned()),
            Just("$retainKeys".to_owned()),
            Just("$setElementOrder/containers".to_owned()),
            Just("env".to_owned()),
        ];
        leaf.prop_recursive(5, 48, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_patch_panics_and_an_empty_one_changes_nothing(current in arbitrary_json(), patch in arbitrary_json()) {
            let ty = type_of_kind("", "v1", "Pod").expect("in the table");
            let _ = merge(ty, &current, &patch);
            if current.is_object() {
                prop_assert_eq!(merge(ty, &current, &json!({})), Ok(current.clone()));
            }
        }
    }
}
