//! Creating and changing objects. Every write is a compare-and-swap against the revision it was computed from.

use jiff::Timestamp;
use serde_json::Value;

use super::{Registry, WriteOptions, codec, scale};
use crate::api::decode::conform_object;
use crate::api::{
    FieldValidation, Kind, NewObject, Object, Patch, Status, apply_patch, generate_name, meta, prepare_create,
    prepare_update, set_defaults, validate_create, validate_update,
};
use crate::store::{Compare, Consistency, KeyValue, OpResponse, Txn};

/// How often a write that does not name a `resourceVersion` is computed anew because another one came first.
pub(super) const WRITE_ATTEMPTS: usize = 16;
/// How often another random name is tried; Kubernetes' own figure.
const GENERATE_NAME_ATTEMPTS: usize = 8;

/// What a patch made.
#[derive(Clone, Debug, PartialEq)]
pub struct Patched {
    pub object: Object,
    /// A server-side apply of an object that did not exist.
    pub created: bool,
    /// Texts about fields that were dropped.
    pub warnings: Vec<String>,
}

/// The state that a write is computed from.
pub(super) struct Current {
    pub object: Object,
    pub revision: u64,
    /// Read with a majority's word, or told by a transaction: a refusal based on it is final.
    pub fresh: bool,
}

impl Current {
    pub fn new(kv: &KeyValue, fresh: bool) -> Result<Current, Status> {
        Ok(Current { object: codec::decode(kv)?, revision: kv.mod_revision, fresh })
    }
}

enum NamespaceState {
    Active { revision: u64 },
    Terminating,
    Missing,
}

impl Registry {
    /// Stores a new object. Its name may come from `metadata.generateName`.
    ///
    /// # Errors
    /// 409 when it exists, 422 when it breaks a rule, 404 or 403 for a namespace that is missing or going.
    pub async fn create(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        mut object: Object,
        options: &WriteOptions,
    ) -> Result<Object, Status> {
        if !meta::metadata_mut(&mut object).get("resourceVersion").is_none_or(is_empty_text) {
            return Err(Status::server_error("resourceVersion should not be set on objects to be created"));
        }
        let namespace = self.namespace_of(kind, namespace, &object)?;
        let generate = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
        let mut attempt = 1;
        loop {
            let mut next = object.clone();
            if generate {
                let name = generate_name(meta::generate_name(&object), &mut rand::rng());
                meta::set_text(&mut next, "name", &name);
            }
            match self.create_named(kind, &namespace, next, options).await {
                Err(status) if generate && status.http_code() == 409 && attempt < GENERATE_NAME_ATTEMPTS => {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn create_named(
        &self,
        kind: &Kind,
        namespace: &str,
        mut object: Object,
        options: &WriteOptions,
    ) -> Result<Object, Status> {
        let uid = uuid::Uuid::new_v4().to_string();
        prepare_create(kind, &mut object, &NewObject { now: Timestamp::now(), uid: &uid, namespace });
        set_defaults(kind, &mut object);
        let name = meta::name(&object).to_owned();
        let causes = validate_create(kind, &object);
        if !causes.is_empty() {
            return Err(Status::invalid(kind, &name, causes));
        }
        if name.is_empty() {
            return Err(Status::bad_request("name or generateName is required"));
        }
        let key = kind.storage_key(namespace, &name);
        let value = codec::encode(&object)?;
        let mut attempt = 1;
        loop {
            let guard = match kind.namespaced {
                false => None,
                true => match self.namespace_state(namespace, attempt > 1).await? {
                    NamespaceState::Active { revision } => Some(revision),
                    NamespaceState::Terminating => {
                        return Err(Status::namespace_terminating(kind, &name, namespace));
                    }
                    NamespaceState::Missing => return Err(self.namespace_missing(namespace)),
                },
            };
            if options.dry_run {
                let existing = self.key_value(kind, Some(namespace), &name, Consistency::Linearizable).await?;
                return match existing {
                    Some(_) => Err(Status::already_exists(kind, &name)),
                    None => Ok(object),
                };
            }
            let mut txn = Txn::create(key.clone(), value.clone());
            if let Some(revision) = guard {
                // Nothing is created in a namespace that went while this was under way.
                txn.compares.push(Compare::ModRevision { key: namespace_key(self, namespace), equals: revision });
            }
            let result = self.store.txn(txn).await.map_err(codec::store_status)?;
            if result.succeeded {
                meta::set_text(&mut object, "resourceVersion", &result.revision.to_string());
                return Ok(object);
            }
            if result.first().is_some() || attempt >= WRITE_ATTEMPTS {
                return Err(Status::already_exists(kind, &name));
            }
            attempt += 1;
        }
    }

    /// Replaces an object (`subresource` empty), its `status`, or its `scale`. With a `resourceVersion` in `object` only if
    /// that is still the newest; without, whatever is there.
    ///
    /// # Errors
    /// 404, 409 for an old `resourceVersion` or another uid, 422 when it breaks a rule.
    pub async fn update(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Object, Status> {
        let given = meta::name(&object);
        if !given.is_empty() && given != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        let namespace = self.namespace_of(kind, namespace, &object)?;
        let sub = subresource.unwrap_or_default();
        if sub == "scale" {
            let target = self
                .modify(kind, &namespace, name, "", options, |current| scale::apply(kind, current, &object))
                .await?;
            return Ok(scale::of(&target));
        }
        self.modify(kind, &namespace, name, sub, options, |_| {
            let mut next = object.clone();
            meta::set_text(&mut next, "name", name);
            meta::set_text(&mut next, "namespace", &namespace);
            Ok(next)
        })
        .await
    }

    /// Changes an object, its `status` or its `scale` by a patch.
    pub async fn patch(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Object, Status> {
        self.patch_or_create(kind, namespace, name, subresource, patch, options).await.map(|patched| patched.object)
    }

    /// As [`Registry::patch`], and tells whether the object is new (server-side apply) and what was dropped from it.
    pub async fn patch_or_create(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Patched, Status> {
        let namespace = namespace.filter(|_| kind.namespaced).unwrap_or_default();
        let sub = subresource.unwrap_or_default();
        if sub == "scale" {
            let target = self
                .modify(kind, namespace, name, "", options, |current| {
                    let next = apply_patch(kind, &scale::of(current), patch)?;
                    scale::apply(kind, current, &next)
                })
                .await?;
            return Ok(Patched { object: scale::of(&target), created: false, warnings: Vec::new() });
        }
        let mut warnings = Vec::new();
        let changed = self
            .modify(kind, namespace, name, sub, options, |current| {
                let next = apply_patch(kind, current, patch)?;
                let (next, dropped) = self.typed(kind, next, options.field_validation)?;
                warnings = dropped;
                same_identity(current, &next)?;
                Ok(next)
            })
            .await;
        match (changed, patch) {
            (Ok(object), _) => Ok(Patched { object, created: false, warnings }),
            (Err(status), Patch::Apply(_)) if status.http_code() == 404 && sub.is_empty() => {
                let mut empty = serde_json::json!({"apiVersion": kind.api_version(), "kind": kind.kind});
                meta::set_text(&mut empty, "name", name);
                let new = apply_patch(kind, &empty, patch)?;
                let (mut new, warnings) = self.typed(kind, new, options.field_validation)?;
                meta::metadata_mut(&mut new).entry("name").or_insert_with(|| name.into());
                let object = self.create(kind, Some(namespace), new, options).await?;
                Ok(Patched { object, created: true, warnings })
            }
            (Err(status), _) => Err(status),
        }
    }

    /// A patched object has passed no decoder yet: check its types as if it had come from outside.
    fn typed(&self, kind: &Kind, object: Object, validation: FieldValidation) -> Result<(Object, Vec<String>), Status> {
        let decoded = conform_object(kind, object, validation)?;
        Ok((decoded.object, decoded.warnings))
    }

    /// The one path by which an existing object changes: read, compute, check, swap; again when another write came first.
    /// `next` gets the present object and answers with the wanted one.
    pub(super) async fn modify(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        options: &WriteOptions,
        mut next: impl FnMut(&Object) -> Result<Object, Status> + Send,
    ) -> Result<Object, Status> {
        let key = kind.storage_key(namespace, name);
        let mut current = match self.key_value(kind, Some(namespace), name, Consistency::Local).await? {
            Some(kv) => Current::new(&kv, false)?,
            None => self.fresh(kind, namespace, name).await?,
        };
        let mut attempt = 1;
        loop {
            let wanted = match next(&current.object).and_then(|wanted| settle(kind, subresource, &current, wanted)) {
                Ok(wanted) => wanted,
                Err(status) => {
                    if current.fresh {
                        return Err(status);
                    }
                    let newest = self.fresh(kind, namespace, name).await?;
                    if newest.revision == current.revision {
                        return Err(status);
                    }
                    current = newest;
                    continue;
                }
            };
            let Some(mut wanted) = wanted else {
                // Nothing to write. Whoever asked may rely on the answer being the newest state.
                if current.fresh || options.dry_run {
                    return Ok(current.object);
                }
                let newest = self.fresh(kind, namespace, name).await?;
                if newest.revision == current.revision {
                    return Ok(current.object);
                }
                current = newest;
                continue;
            };
            let gone = is_released(kind, &wanted);
            if options.dry_run {
                return Ok(wanted);
            }
            let txn = match gone {
                true => Txn::remove(key.clone(), current.revision),
                false => Txn::replace(key.clone(), codec::encode(&wanted)?, current.revision),
            };
            let result = self.store.txn(txn).await.map_err(codec::store_status)?;
            if result.succeeded {
                meta::set_text(&mut wanted, "resourceVersion", &result.revision.to_string());
                return Ok(wanted);
            }
            if attempt >= WRITE_ATTEMPTS {
                return Err(Status::conflict(kind, name, Status::MODIFIED));
            }
            attempt += 1;
            current = match result.responses.first() {
                Some(OpResponse::Get { kv: Some(kv) }) => Current::new(kv, true)?,
                _ => return Err(Status::not_found(kind, name)),
            };
        }
    }

    pub(super) async fn fresh(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Current, Status> {
        match self.key_value(kind, Some(namespace), name, Consistency::Linearizable).await? {
            Some(kv) => Current::new(&kv, true),
            None => Err(Status::not_found(kind, name)),
        }
    }

    /// The namespace to work in: that of the URL, which the object must not contradict.
    fn namespace_of(&self, kind: &Kind, namespace: Option<&str>, object: &Object) -> Result<String, Status> {
        if !kind.namespaced {
            return Ok(String::new());
        }
        let own = meta::namespace(object);
        match namespace {
            Some(namespace) if own.is_empty() || own == namespace => Ok(namespace.to_owned()),
            Some(_) => Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            )),
            None if own.is_empty() => Err(Status::bad_request("an empty namespace may not be set during creation")),
            None => Ok(own.to_owned()),
        }
    }

    async fn namespace_state(&self, namespace: &str, fresh: bool) -> Result<NamespaceState, Status> {
        let key = namespace_key(self, namespace);
        let mut kv = None;
        if !fresh {
            kv = self.store.get(&key, Consistency::Local).await.map_err(codec::store_status)?.0;
        }
        if kv.is_none() {
            kv = self.store.get(&key, Consistency::Linearizable).await.map_err(codec::store_status)?.0;
        }
        let Some(kv) = kv else { return Ok(NamespaceState::Missing) };
        let object = codec::decode(&kv)?;
        Ok(match meta::is_terminating(&object) || object["status"]["phase"] == "Terminating" {
            true => NamespaceState::Terminating,
            false => NamespaceState::Active { revision: kv.mod_revision },
        })
    }

    fn namespace_missing(&self, namespace: &str) -> Status {
        match self.kinds.by_kind("", "v1", "Namespace") {
            Some(kind) => Status::not_found(kind, namespace),
            None => Status::unknown_resource(),
        }
    }
}

fn namespace_key(registry: &Registry, namespace: &str) -> String {
    match registry.kinds.by_kind("", "v1", "Namespace") {
        Some(kind) => kind.storage_key("", namespace),
        None => format!("/registry/namespaces/{namespace}"),
    }
}

fn is_empty_text(value: &Value) -> bool {
    value.is_null() || value == ""
}

/// A patch may not make another object of this one.
fn same_identity(current: &Object, next: &Object) -> Result<(), Status> {
    let (old, new) = (meta::name(current), meta::name(next));
    if old != new {
        return Err(Status::bad_request(format!(
            "the name of the object ({new}) does not match the name on the URL ({old})"
        )));
    }
    if meta::namespace(current) != meta::namespace(next) {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The state to store for a wanted one, after preconditions, preparation, defaults and validation; `None` when nothing changes.
fn settle(kind: &Kind, subresource: &str, current: &Current, mut wanted: Object) -> Result<Option<Object>, Status> {
    let name = meta::name(&current.object).to_owned();
    let version = wanted["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && version != "0" && version != current.revision.to_string() {
        return Err(Status::conflict(kind, &name, Status::MODIFIED));
    }
    let (uid, own) = (meta::uid(&wanted), meta::uid(&current.object));
    if !uid.is_empty() && uid != own {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
        return Err(Status::conflict(kind, &name, &why));
    }
    prepare_update(kind, subresource, &current.object, &mut wanted, Timestamp::now());
    meta::set_text(&mut wanted, "resourceVersion", &current.revision.to_string());
    set_defaults(kind, &mut wanted);
    if wanted == current.object {
        return Ok(None);
    }
    let causes = validate_update(kind, &current.object, &wanted);
    if !causes.is_empty() {
        return Err(Status::invalid(kind, &name, causes));
    }
    Ok(Some(wanted))
}

/// Whether nothing holds a terminating object any more, so that this write removes it.
pub(super) fn is_released(kind: &Kind, object: &Object) -> bool {
    let grace_over = !kind.graceful_delete || object["metadata"]["deletionGracePeriodSeconds"].as_i64() == Some(0);
    let namespace_held = kind.is("", "Namespace")
        && object["spec"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
    meta::is_terminating(object) && meta::finalizers(object).is_empty() && grace_over && !namespace_held
}
