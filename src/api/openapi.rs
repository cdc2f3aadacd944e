//! OpenAPI v3 documents, built from the schema: `kubectl explain`, `apply` and generated clients read them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::kinds::group_version;
use super::schema::{self, Field, Form, ListType, Shape, Type, TypeId};
use super::{Kind, Kinds, Object};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// `/openapi/v3`: where each document is. The hash changes with the document, so clients may keep what they have.
pub fn index(kinds: &Kinds) -> Object {
    let paths: Map<String, Value> = group_versions(kinds)
        .into_iter()
        .filter_map(|(group, version)| {
            let path = document_path(&group, &version);
            let hash = hash(&document(kinds, &path)?);
            Some((path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")})))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/{path}`, where path is `api/v1` or `apis/G/V`; none if it is not served.
pub fn document(kinds: &Kinds, path: &str) -> Option<Object> {
    let (group, version) =
        group_versions(kinds).into_iter().find(|(group, version)| document_path(group, version) == path)?;
    let served: Vec<&Kind> =
        kinds.iter().map(AsRef::as_ref).filter(|kind| kind.group == group && kind.version == version).collect();
    let mut needed = BTreeSet::new();
    let mut paths = BTreeMap::new();
    for kind in &served {
        collect(kind.schema, &mut needed);
        kind_paths(kind, &mut paths);
        for sub in &kind.subresources {
            if let Some(id) = schema::type_of_kind(&sub.group, &sub.version, &sub.kind) {
                collect(id, &mut needed);
            }
        }
    }
    for name in ["DeleteOptions", "Status", "ListMeta", "Patch"] {
        if let Some(id) = schema::type_named(&format!("{META}.{name}")) {
            collect(id, &mut needed);
        }
    }
    let mut schemas: Map<String, Value> =
        needed.into_iter().map(|id| (id.get().name.to_owned(), type_schema(id.get()))).collect();
    for kind in &served {
        schemas.insert(list_name(kind), list_schema(kind));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": format!("v{}.{}", super::discovery::MAJOR, super::discovery::MINOR)},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication"}},
        },
    }))
}

fn group_versions(kinds: &Kinds) -> Vec<(String, String)> {
    kinds
        .groups()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group.clone(), version)))
        .collect()
}

fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// FNV-1a of the document: the same in every process of one version.
fn hash(document: &Object) -> String {
    let text = document.to_string();
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016X}")
}

/// A type and all that it needs.
fn collect(id: TypeId, needed: &mut BTreeSet<TypeId>) {
    if !needed.insert(id) {
        return;
    }
    for field in &id.get().fields {
        let mut shape = &field.shape;
        while let Shape::List(inner) | Shape::Map(inner) = shape {
            shape = inner;
        }
        if let Shape::Type(inner) = shape {
            collect(*inner, needed);
        }
    }
}

fn type_schema(ty: &'static Type) -> Value {
    let mut schema = Map::new();
    if !ty.doc.is_empty() {
        schema.insert("description".to_owned(), ty.doc.into());
    }
    match ty.form {
        Form::Quantity | Form::IntOrString => {
            schema.insert(
                "oneOf".to_owned(),
                json!([{"type": "string"}, {"type": if ty.form == Form::Quantity { "number" } else { "integer" }}]),
            );
            if ty.form == Form::IntOrString {
                schema.insert("format".to_owned(), "int-or-string".into());
            }
        }
        Form::Time | Form::MicroTime => {
            schema.insert("type".to_owned(), "string".into());
            schema.insert("format".to_owned(), "date-time".into());
        }
        Form::Any | Form::Object => {
            schema.insert("type".to_owned(), "object".into());
        }
    }
    if !ty.fields.is_empty() {
        let properties: Map<String, Value> =
            ty.fields.iter().map(|field| (field.name.to_owned(), field_schema(field))).collect();
        schema.insert("properties".to_owned(), Value::Object(properties));
        let required: Vec<&str> = ty.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
    }
    if ty.atomic {
        schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    if let Some((group, version, kind)) = ty.root {
        schema.insert(GVK.to_owned(), json!([{"group": group, "version": version, "kind": kind}]));
    } else if ty.name == "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions" {
        schema.insert(GVK.to_owned(), json!([{"group": "", "version": "v1", "kind": "DeleteOptions"}]));
    }
    Value::Object(schema)
}

const GVK: &str = "x-kubernetes-group-version-kind";

fn field_schema(field: &'static Field) -> Value {
    let mut schema = Map::new();
    if !field.doc.is_empty() {
        schema.insert("description".to_owned(), field.doc.into());
    }
    if let Shape::Type(id) = &field.shape {
        schema.insert("allOf".to_owned(), json!([reference(id.get().name)]));
    } else if let Value::Object(shape) = shape_schema(&field.shape) {
        schema.extend(shape);
    }
    if let Some(default) = field.default.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        schema.insert("default".to_owned(), default);
    }
    match &field.list {
        Some(ListType::Atomic) => schema.insert("x-kubernetes-list-type".to_owned(), "atomic".into()),
        Some(ListType::Set) => schema.insert("x-kubernetes-list-type".to_owned(), "set".into()),
        Some(ListType::Map(keys)) => {
            schema.insert("x-kubernetes-list-map-keys".to_owned(), keys.clone().into());
            schema.insert("x-kubernetes-list-type".to_owned(), "map".into())
        }
        None => None,
    };
    if field.atomic_map {
        schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    if let Some(key) = field.merge_key {
        schema.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
    }
    let strategy = match (field.patch_merge, field.patch_retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return Value::Object(schema),
    };
    schema.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
    Value::Object(schema)
}

fn shape_schema(shape: &Shape) -> Value {
    match shape {
        Shape::String => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Double => json!({"type": "number", "format": "double"}),
        Shape::Any => json!({"type": "object"}),
        Shape::Type(id) => reference(id.get().name),
        Shape::List(item) => json!({"type": "array", "items": shape_schema(item)}),
        Shape::Map(value) => json!({"type": "object", "additionalProperties": shape_schema(value)}),
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn list_name(kind: &Kind) -> String {
    format!("{}List", kind.schema.get().name)
}

fn list_schema(kind: &Kind) -> Value {
    json!({
        "description": format!("{}List is a list of {}s.", kind.kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": reference(&format!("{META}.ListMeta")),
            "items": {"type": "array", "items": reference(kind.schema.get().name)},
        },
        GVK: [{"group": kind.group, "version": kind.version, "kind": kind.list_kind()}],
    })
}

fn parameter(name: &str, place: &str, ty: &str, description: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "description": description, "schema": {"type": ty, "uniqueItems": true}})
}

/// The operations of a kind and of its subresources.
fn kind_paths(kind: &Kind, paths: &mut BTreeMap<String, Value>) {
    let root = format!("/{}", document_path(&kind.group, &kind.version));
    let base = if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let object = kind.schema.get().name.to_owned();
    let list = list_name(kind);
    let mut place = Vec::new();
    if kind.namespaced {
        place.push(parameter(
            "namespace",
            "path",
            "string",
            "object name and auth scope, such as for teams and projects",
        ));
        if kind.allows("list") {
            paths.insert(
                format!("{root}/{}", kind.plural),
                json!({"get": operation(kind, "list", "listForAllNamespaces", &list, &[])}),
            );
        }
    }
    let mut collection = Map::new();
    for (verb, method, answer) in
        [("list", "get", &list), ("create", "post", &object), ("deletecollection", "delete", &status_name())]
    {
        if kind.allows(verb) {
            collection.insert(method.to_owned(), operation(kind, verb, verb, answer, &[]));
        }
    }
    collection.insert("parameters".to_owned(), Value::Array(place.clone()));
    paths.insert(base.clone(), Value::Object(collection));
    place.insert(0, parameter("name", "path", "string", &format!("name of the {}", kind.kind)));
    let mut item = item_operations(kind, &kind.verbs, &object, "");
    item.insert("parameters".to_owned(), Value::Array(place.clone()));
    paths.insert(format!("{base}/{{name}}"), Value::Object(item));
    for sub in &kind.subresources {
        let answer = schema::type_of_kind(&sub.group, &sub.version, &sub.kind)
            .map_or(object.clone(), |id| id.get().name.to_owned());
        let mut item = item_operations(kind, &sub.verbs, &answer, &sub.name);
        item.insert("parameters".to_owned(), Value::Array(place.clone()));
        paths.insert(format!("{base}/{{name}}/{}", sub.name), Value::Object(item));
    }
}

fn status_name() -> String {
    format!("{META}.Status")
}

fn item_operations(kind: &Kind, verbs: &[String], answer: &str, sub: &str) -> Map<String, Value> {
    let mut item = Map::new();
    for (verb, method) in
        [("get", "get"), ("create", "post"), ("update", "put"), ("patch", "patch"), ("delete", "delete")]
    {
        // On the object itself `create` belongs to the collection.
        if verbs.iter().any(|allowed| allowed == verb) && !(verb == "create" && sub.is_empty()) {
            let status = status_name();
            let answer = if verb == "delete" { &status } else { answer };
            item.insert(method.to_owned(), operation(kind, verb, &format!("{verb}{sub}"), answer, &[]));
        }
    }
    item
}

fn operation(kind: &Kind, verb: &str, id: &str, answer: &str, extra: &[Value]) -> Value {
    let mut parameters: Vec<Value> = extra.to_vec();
    let text = |name: &str, description: &str| parameter(name, "query", "string", description);
    match verb {
        "create" | "update" | "patch" => {
            parameters.push(text("dryRun", "When present, indicates that modifications should not be persisted."));
            parameters.push(text("fieldManager", "The name of the actor that is making these changes."));
            parameters
                .push(text("fieldValidation", "How to handle unknown or duplicate fields: Ignore, Warn or Strict."));
            if verb == "patch" {
                parameters.push(parameter("force", "query", "boolean", "Take over the fields of other managers."));
            }
        }
        "list" => {
            for name in ["labelSelector", "fieldSelector", "continue", "resourceVersion", "resourceVersionMatch"] {
                parameters.push(text(name, ""));
            }
            parameters.push(parameter("limit", "query", "integer", ""));
            parameters.push(parameter("timeoutSeconds", "query", "integer", ""));
            for name in ["watch", "allowWatchBookmarks", "sendInitialEvents"] {
                parameters.push(parameter(name, "query", "boolean", ""));
            }
        }
        "delete" | "deletecollection" => {
            parameters.push(text("dryRun", ""));
            parameters.push(text("propagationPolicy", ""));
            parameters.push(parameter("gracePeriodSeconds", "query", "integer", ""));
        }
        _ => {}
    }
    let action = match verb {
        "update" => "put",
        "create" => "post",
        other => other,
    };
    let mut operation = json!({
        "tags": [group_version(&kind.group, &kind.version).replace('/', "_")],
        "operationId": format!("{id}{}{}{}", capital(kind.group.split('.').next().unwrap_or_default()), capital(&kind.version), kind.kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference(answer)}}}},
        "x-kubernetes-action": action,
        GVK: {"group": kind.group, "version": kind.version, "kind": kind.kind},
    });
    let body = match verb {
        "create" | "update" => json!({"*/*": {"schema": reference(answer)}}),
        "patch" => {
            let patch = reference(&format!("{META}.Patch"));
            let types = [
                super::patch::APPLY_PATCH,
                super::patch::JSON_PATCH,
                super::patch::MERGE_PATCH,
                super::patch::STRATEGIC_MERGE_PATCH,
            ];
            Value::Object(types.into_iter().map(|ty| (ty.to_owned(), json!({"schema": patch}))).collect())
        }
        _ => return operation,
    };
    operation["requestBody"] = json!({"content": body, "required": true});
    operation
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_say_what_kubectl_needs_for_apply_and_explain() {
        let kinds = Kinds::builtin();
        let index = index(&kinds);
        assert!(
            index["paths"]["apis/apps/v1"]["serverRelativeURL"]
                .as_str()
                .is_some_and(|url| url.starts_with("/openapi/v3/apis/apps/v1?hash="))
        );
        let apps = document(&kinds, "apis/apps/v1").expect("served");
        let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        let names: Vec<&str> =
            patch["parameters"].as_array().expect("a list").iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"));
        let schemas = &apps["components"]["schemas"];
        assert_eq!(
            schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
        let env = &schemas["io.k8s.api.core.v1.Container"]["properties"]["env"];
        assert_eq!(
            (&env["x-kubernetes-patch-merge-key"], &env["x-kubernetes-list-map-keys"]),
            (&json!("name"), &json!(["name"]))
        );
        assert_eq!(
            schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"]["x-kubernetes-patch-strategy"],
            "retainKeys"
        );
        assert!(document(&kinds, "apis/nope/v1").is_none());
    }

    #[test]
    fn every_reference_of_a_document_is_in_it() {
        let kinds = Kinds::builtin();
        for path in ["api/v1", "apis/apps/v1", "apis/coordination.k8s.io/v1"] {
            let document = document(&kinds, path).expect("served");
            let text = document.to_string();
            for reference in text.split("\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap_or_default();
                assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {name}");
            }
        }
    }
}
