//! The types and fields of Kubernetes' stable API groups: one table that everything else in this layer reads.
//!
//! The table is generated (`tools/schema`), compiled in as text and parsed once, on first use. It is immutable, so it is
//! shared by all servers of a process.

mod load;

use std::collections::HashMap;
use std::sync::LazyLock;

/// A type of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub(crate) u16);

/// How the values of a type are written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A map with known fields.
    Object,
    /// `resource.Quantity`: a text such as `500m`, or a number.
    Quantity,
    /// A number or a text.
    IntOrString,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Any JSON value.
    Any,
}

/// One definition.
#[derive(Debug)]
pub struct Type {
    /// Such as `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    pub form: Form,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Server-side apply owns such a map as a whole.
    pub atomic: bool,
    /// Group, version and kind, for types that are objects or options of their own.
    pub root: Option<(&'static str, &'static str, &'static str)>,
    pub doc: &'static str,
}

/// The shape of a field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    String,
    /// Base64 in JSON, raw in protobuf.
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Any,
    Type(TypeId),
    List(Box<Shape>),
    Map(Box<Shape>),
}

/// How server-side apply treats a list: `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    /// Items are told apart by these keys.
    Map(Vec<&'static str>),
}

/// One field of a type.
#[derive(Debug)]
pub struct Field {
    /// As in JSON.
    pub name: &'static str,
    pub shape: Shape,
    /// The protobuf tag; 0 where the field is not known there.
    pub tag: u32,
    /// The tag of the protobuf message around it that JSON does not have; 0 for most.
    pub outer_tag: u32,
    pub required: bool,
    /// A Go pointer to a scalar: its zero differs from its absence.
    pub pointer: bool,
    pub list: Option<ListType>,
    pub atomic_map: bool,
    /// Strategic merge patch merges this list instead of replacing it.
    pub patch_merge: bool,
    /// Strategic merge patch drops the keys that `$retainKeys` does not name.
    pub patch_retain_keys: bool,
    /// Strategic merge patch tells the items of this list apart by this key.
    pub merge_key: Option<&'static str>,
    /// The default that OpenAPI publishes, as JSON.
    pub default: Option<&'static str>,
    pub doc: &'static str,
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        let at = self.fields.binary_search_by(|field| field.name.cmp(name)).ok()?;
        self.fields.get(at)
    }

    /// `PodSpec` of `io.k8s.api.core.v1.PodSpec`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// `v1.PodSpec`, as Go prints the type.
    pub fn go_name(&self) -> &'static str {
        match self.name.rmatch_indices('.').nth(1) {
            Some((at, _)) => &self.name[at + 1..],
            None => self.name,
        }
    }
}

struct Schema {
    types: Vec<Type>,
    by_name: HashMap<&'static str, TypeId>,
    by_root: HashMap<(&'static str, &'static str, &'static str), TypeId>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let types = load::parse(include_str!("table.txt"));
    let id = |at: usize| TypeId(at as u16);
    Schema {
        by_name: types.iter().enumerate().map(|(at, ty)| (ty.name, id(at))).collect(),
        by_root: types.iter().enumerate().filter_map(|(at, ty)| Some((ty.root?, id(at)))).collect(),
        types,
    }
});

impl TypeId {
    pub fn get(self) -> &'static Type {
        &SCHEMA.types[usize::from(self.0)]
    }
}

/// The type of this definition name, such as `io.k8s.api.core.v1.Pod`.
pub fn type_named(name: &str) -> Option<TypeId> {
    SCHEMA.by_name.get(name).copied()
}

/// The type of an object that says it is this kind; also kinds that are not served.
pub fn type_of_kind(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    SCHEMA.by_root.get(&(group, version, kind)).copied()
}

/// All types, sorted by name.
pub fn types() -> impl Iterator<Item = (TypeId, &'static Type)> {
    SCHEMA.types.iter().enumerate().map(|(at, ty)| (TypeId(at as u16), ty))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(ty: &str, name: &str) -> &'static Field {
        type_named(ty).and_then(|id| id.get().field(name)).expect("in the table")
    }

    #[test]
    fn the_table_knows_tags_merge_keys_and_inlined_messages() {
        let containers = field("io.k8s.api.core.v1.PodSpec", "containers");
        assert_eq!((containers.tag, containers.outer_tag), (2, 0));
        assert_eq!(containers.merge_key, Some("name"));
        assert!(containers.patch_merge && containers.required);
        assert_eq!(containers.list, Some(ListType::Map(vec!["name"])));
        let exec = field("io.k8s.api.core.v1.Probe", "exec");
        assert_eq!((exec.outer_tag, exec.tag), (1, 1));
        let replicas = field("io.k8s.api.apps.v1.DeploymentSpec", "replicas");
        assert!(replicas.pointer);
        assert_eq!(replicas.shape, Shape::Int32);
        let strategy = field("io.k8s.api.apps.v1.DeploymentSpec", "strategy");
        assert!(strategy.patch_retain_keys);
    }

    #[test]
    fn every_field_of_every_type_has_a_shape_and_sorted_names() {
        let mut fields = 0;
        for (_, ty) in types() {
            assert!(ty.fields.windows(2).all(|pair| pair[0].name < pair[1].name), "{}", ty.name);
            fields += ty.fields.len();
        }
        assert!(fields > 2000, "only {fields} fields");
    }

    #[test]
    fn kinds_are_found_by_group_version_and_kind() {
        let pod = type_of_kind("", "v1", "Pod").expect("Pod").get();
        assert_eq!((pod.short_name(), pod.go_name()), ("Pod", "v1.Pod"));
        assert!(type_of_kind("", "v2", "Pod").is_none());
    }
}
