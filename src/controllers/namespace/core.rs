//! What is left to do for a namespace that is being deleted, and the conditions that tell users about it.
//!
//! Pure. Types, reasons and messages are Kubernetes'. Called by the reconciler of this folder only.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The finalizer in `spec.finalizers` that this controller removes.
pub const FINALIZER: &str = "kubernetes";

/// What a sweep over the content of a namespace found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Objects that still exist, by `deployments.apps`.
    pub objects: BTreeMap<String, usize>,
    /// Objects that wait for a finalizer, by finalizer.
    pub finalizers: BTreeMap<String, usize>,
    /// Deletions that were refused.
    pub failures: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Not being deleted, or nothing of ours to do.
    Nothing,
    /// Delete all content, then ask [`after_sweep`].
    Sweep,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AfterSweep {
    /// Everything is gone: take our finalizer out of `spec.finalizers`.
    Finalize,
    /// Something remains. The status, when it differs from what is stored.
    Wait(Option<NamespaceStatus>),
}

pub fn next(namespace: &Namespace) -> Next {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    let ours = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    if namespace.metadata.deletion_timestamp.is_some() && ours { Next::Sweep } else { Next::Nothing }
}

pub fn after_sweep(namespace: &Namespace, remains: &Remains, now: Timestamp) -> AfterSweep {
    if remains.objects.is_empty() && remains.failures.is_empty() {
        return AfterSweep::Finalize;
    }
    let old = namespace.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let counted = |counts: &BTreeMap<String, usize>, what: &str, each: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name} {each} {count} resource instances")).collect();
        format!("Some {what}: {}", parts.join(", "))
    };
    let mut set = |type_: &str, failing: bool, reason: &str, message: String| {
        let status = if failing { "True" } else { "False" };
        let old = conditions.iter().position(|condition| condition.type_ == type_);
        let since = match old {
            Some(at) if conditions[at].status == status => conditions[at].last_transition_time.clone(),
            _ => Some(Time(now)),
        };
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since,
        };
        match old {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        false,
        "ResourcesDiscovered",
        "All resources successfully discovered".to_owned(),
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        false,
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed".to_owned(),
    );
    if remains.failures.is_empty() {
        let message = "All content successfully deleted, may be waiting on finalization".to_owned();
        set("NamespaceDeletionContentFailure", false, "ContentDeleted", message);
    } else {
        let message = format!(
            "Failed to delete all resource types, {} remaining: {}",
            remains.failures.len(),
            remains.failures.join(", ")
        );
        set("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", message);
    }
    if remains.objects.is_empty() {
        set("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned());
    } else {
        let message = {
            // Kubernetes names a resource with its group after a dot, also when the group is empty.
            let dotted = remains.objects.iter().map(|(name, count)| {
                let name = if name.contains('.') { name.clone() } else { format!("{name}.") };
                (name, *count)
            });
            counted(&dotted.collect(), "resources are remaining", "has")
        };
        set("NamespaceContentRemaining", true, "SomeResourcesRemain", message);
    }
    if remains.finalizers.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        set("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", message);
    } else {
        let message = counted(&remains.finalizers, "content in the namespace has finalizers remaining", "in");
        set("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message);
    }
    let status = NamespaceStatus { phase: Some("Terminating".to_owned()), conditions: Some(conditions) };
    AfterSweep::Wait((status != old).then_some(status))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(deleting: bool) -> Namespace {
        let mut value = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_a_namespace_that_is_being_deleted_is_swept() {
        assert_eq!(next(&namespace(false)), Next::Nothing);
        assert_eq!(next(&namespace(true)), Next::Sweep);
    }

    #[test]
    fn it_is_finalized_when_nothing_remains() {
        assert_eq!(after_sweep(&namespace(true), &Remains::default(), Timestamp::now()), AfterSweep::Finalize);
    }

    #[test]
    fn what_remains_is_told_and_told_once() {
        let remains = Remains {
            objects: BTreeMap::from([("pods".to_owned(), 2)]),
            finalizers: BTreeMap::from([("example.com/x".to_owned(), 1)]),
            failures: Vec::new(),
        };
        let mut namespace = namespace(true);
        let AfterSweep::Wait(Some(status)) = after_sweep(&namespace, &remains, Timestamp::now()) else {
            panic!("must wait")
        };
        let message = |type_: &str| {
            let all = status.conditions.as_deref().unwrap();
            all.iter().find(|condition| condition.type_ == type_).unwrap().message.clone().unwrap()
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            "Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            "Some content in the namespace has finalizers remaining: example.com/x in 1 resource instances"
        );
        namespace.status = Some(status.clone());
        assert_eq!(after_sweep(&namespace, &remains, Timestamp::now()), AfterSweep::Wait(None));
    }
}
