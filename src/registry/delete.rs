//! Deleting objects: preconditions, finalizers, the grace of pods, namespaces that end first.

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::write::{Current, WRITE_ATTEMPTS, is_released};
use super::{ListOptions, Registry, codec};
use crate::api::{Kind, Object, Status, meta};
use crate::store::{Consistency, OpResponse, Txn};

/// A pod's grace when its spec names none; Kubernetes' default.
const POD_GRACE_S: i64 = 30;
/// Namespaces that Kubernetes does not let go (admission plugin NamespaceLifecycle).
const IMMORTAL_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public"];
/// Objects that a deletecollection reads at a time.
const COLLECTION_PAGE: usize = 500;
/// Objects of it that are being deleted at a time.
const COLLECTION_CONCURRENCY: usize = 64;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What becomes of the objects that name the deleted one as their owner: `propagationPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They lose the reference.
    Orphan,
    /// The garbage collector removes them afterwards.
    Background,
    /// They go first.
    Foreground,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    /// Only this incarnation of the name.
    pub uid: Option<String>,
    /// Only in this state.
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Deleted {
    /// It is gone; this was its last state, with the revision of the deletion.
    Removed(Object),
    /// It is marked, and goes when its finalizers are done or its node has stopped it.
    Terminating(Object),
}

impl Deleted {
    pub fn object(&self) -> &Object {
        match self {
            Deleted::Removed(object) | Deleted::Terminating(object) => object,
        }
    }
}

/// The next step of a deletion, decided on one state.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    Mark(Object),
    /// Under way already, and nothing about it changes.
    Keep,
}

impl Registry {
    /// Deletes one object, or marks it so that it goes in time.
    ///
    /// # Errors
    /// 404; 409 when a precondition does not hold; 403 for the namespaces that every cluster has.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        if kind.is("", "Namespace") && IMMORTAL_NAMESPACES.contains(&name) {
            return Err(Status::forbidden(kind, name, "this namespace may not be deleted"));
        }
        let namespace = namespace.filter(|_| kind.namespaced).unwrap_or_default();
        let key = kind.storage_key(namespace, name);
        let mut current = match self.key_value(kind, Some(namespace), name, Consistency::Local).await? {
            Some(kv) => Current::new(&kv, false)?,
            None => self.fresh(kind, namespace, name).await?,
        };
        let mut attempt = 1;
        loop {
            let step = check(kind, &current.object, options)
                .map(|()| decide(kind, &current.object, options, Timestamp::now()));
            let (txn, next) = match step {
                Ok(Step::Remove) => (Txn::remove(key.clone(), current.revision), None),
                Ok(Step::Mark(next)) => {
                    (Txn::replace(key.clone(), codec::encode(&next)?, current.revision), Some(next))
                }
                // Refused, or nothing to do: that has to be the newest state's word.
                undecided => {
                    if !current.fresh {
                        current = self.fresh(kind, namespace, name).await?;
                        continue;
                    }
                    undecided?;
                    return Ok(Deleted::Terminating(current.object));
                }
            };
            if options.dry_run {
                return Ok(match next {
                    Some(next) => Deleted::Terminating(next),
                    None => Deleted::Removed(current.object),
                });
            }
            let result = self.store.txn(txn).await.map_err(codec::store_status)?;
            if result.succeeded {
                let removed = next.is_none();
                let mut object = next.unwrap_or(current.object);
                meta::set_text(&mut object, "resourceVersion", &result.revision.to_string());
                return Ok(if removed { Deleted::Removed(object) } else { Deleted::Terminating(object) });
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

    /// Deletes all objects that a list would show; answers with them as they were. One that is gone already is no error.
    pub async fn delete_collection(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Vec<Object>, Status> {
        let mut deleted = Vec::new();
        let mut page = ListOptions { limit: COLLECTION_PAGE, ..list.clone() };
        loop {
            let objects = self.list(kind, namespace, &page).await?;
            // Side by side, so that the store can put many into one entry of its log.
            let deletions = futures::stream::iter(objects.items).map(|object| async move {
                let own = Some(meta::namespace(&object)).filter(|namespace| !namespace.is_empty());
                let result = self.delete(kind, own, meta::name(&object), options).await;
                (object, result)
            });
            let mut deletions = deletions.buffered(COLLECTION_CONCURRENCY);
            while let Some((object, result)) = deletions.next().await {
                match result {
                    Ok(_) => deleted.push(object),
                    Err(status) if status.http_code() == 404 => {}
                    Err(status) => return Err(status),
                }
            }
            if objects.continue_token.is_empty() {
                return Ok(deleted);
            }
            page.continue_token = objects.continue_token;
            page.resource_version.clear();
            page.version_match = None;
        }
    }
}

fn check(kind: &Kind, object: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let name = meta::name(object);
    let own = meta::uid(object);
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != own) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({own}). The object might have been deleted and then recreated"
        );
        return Err(Status::precondition_failed(kind, name, &why));
    }
    let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        );
        return Err(Status::precondition_failed(kind, name, &why));
    }
    Ok(())
}

fn decide(kind: &Kind, object: &Object, options: &DeleteOptions, now: Timestamp) -> Step {
    let marked = meta::is_terminating(object);
    let mut next = object.clone();
    set_finalizers(&mut next, options.propagation);
    let grace = grace_seconds(kind, object, options);
    let held_for = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !marked {
        let until = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        mark(&mut next, until, grace);
        if meta::generation(object) > 0 {
            let generation = meta::generation(object) + 1;
            meta::metadata_mut(&mut next).insert("generation".to_owned(), generation.into());
        }
    } else if kind.graceful_delete && held_for.is_none_or(|held| grace < held) {
        // A later delete may only shorten the wait, counted from when the first one asked.
        let asked = meta::deletion_timestamp(object)
            .and_then(|until| until.checked_sub(SignedDuration::from_secs(held_for.unwrap_or(0))).ok())
            .unwrap_or(now);
        let until = asked.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now).max(now);
        mark(&mut next, until, grace);
    }
    if kind.is("", "Namespace") {
        meta::child_mut(&mut next, "status").insert("phase".to_owned(), "Terminating".into());
    }
    if is_released(kind, &next) {
        Step::Remove
    } else if next == *object {
        Step::Keep
    } else {
        Step::Mark(next)
    }
}

fn mark(object: &mut Object, until: Timestamp, grace: i64) {
    let metadata = meta::metadata_mut(object);
    metadata.insert("deletionTimestamp".to_owned(), meta::time(until).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
}

/// Seconds until the object may go: 0 for all but pods that a node has taken on (`podStrategy.CheckGracefulDelete`).
fn grace_seconds(kind: &Kind, object: &Object, options: &DeleteOptions) -> i64 {
    if !kind.graceful_delete {
        return 0;
    }
    let unbound = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let finished = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unbound || finished {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(POD_GRACE_S);
    let grace = options.grace_period_seconds.unwrap_or(own);
    // A negative grace in a pod's spec means one second.
    if grace < 0 { 1 } else { grace }
}

fn set_finalizers(object: &mut Object, propagation: Option<Propagation>) {
    let wanted = match propagation {
        None => return,
        Some(Propagation::Background) => None,
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Foreground) => Some(FOREGROUND),
    };
    let mut finalizers: Vec<Value> = meta::finalizers(object)
        .into_iter()
        .filter(|finalizer| *finalizer != ORPHAN && *finalizer != FOREGROUND)
        .map(Value::from)
        .collect();
    finalizers.extend(wanted.map(Value::from));
    let metadata = meta::metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
}
