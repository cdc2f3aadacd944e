//! Many small writes in one entry of the log: the scheduler's bindings and the nodes' reports.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Registry, codec};
use crate::api::{Kind, Object, Status, meta, prepare_update};
use crate::store::{Consistency, OpResponse, Txn, TxnResult};

/// Transactions handed to the store at a time.
const BULK_TXNS_MAX: usize = 1_024;
/// How often a write is computed anew because another one came first.
const BULK_ROUNDS: usize = 8;

/// Where one pod shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub namespace: String,
    pub name: String,
    /// The pod the decision was made for; empty for whichever has the name.
    pub uid: String,
    pub node: String,
}

/// One object's new status.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusReport {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    pub name: String,
    /// The object it is about; another one of the same name is not touched. Empty for whichever has the name.
    pub uid: String,
    /// What `.status` becomes.
    pub status: Object,
}

/// One write of many.
struct Item<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Registry {
    /// Assigns pods to nodes; the answers are in the order of `bindings`.
    ///
    /// # Errors
    /// For each pod: 404; 409 when it is another pod by now, is going, or has a node.
    pub async fn bind_many(&self, bindings: Vec<Binding>) -> Vec<Result<(), Status>> {
        let Some(kind) = self.kinds.by_kind("", "v1", "Pod").cloned() else {
            return bindings.iter().map(|_| Err(Status::unknown_resource())).collect();
        };
        let items: Vec<_> = bindings.iter().map(|b| Item { namespace: &b.namespace, name: &b.name }).collect();
        let now = Timestamp::now();
        let bound = self.write_many(&kind, &items, |at, pod| bind(&kind, pod, &bindings[at], now)).await;
        bound.into_iter().map(|result| result.map(|_| ())).collect()
    }

    /// Replaces the status of many objects; the answers are in the order of `reports`. Equal ones are not written.
    pub async fn update_status_many(&self, kind: &Kind, reports: Vec<StatusReport>) -> Vec<Result<Object, Status>> {
        self.update_status_many_while(kind, reports, || Ok(())).await
    }

    /// As [`Registry::update_status_many`], for as long as `still` agrees: it is asked before each write is computed, also when
    /// that is computed anew since somebody else's came first.
    pub async fn update_status_many_while(
        &self,
        kind: &Kind,
        reports: Vec<StatusReport>,
        still: impl Fn() -> Result<(), Status> + Send + Sync,
    ) -> Vec<Result<Object, Status>> {
        let items: Vec<_> = reports.iter().map(|r| Item { namespace: &r.namespace, name: &r.name }).collect();
        let now = Timestamp::now();
        self.write_many(kind, &items, |at, object| {
            let report = &reports[at];
            still()?;
            same_uid(kind, object, &report.uid)?;
            let mut next = object.clone();
            meta::child_mut(&mut next, "metadata");
            next["status"] = report.status.clone();
            prepare_update(kind, "status", object, &mut next, now);
            Ok(next)
        })
        .await
    }

    async fn write_many(
        &self,
        kind: &Kind,
        items: &[Item<'_>],
        next: impl Fn(usize, &Object) -> Result<Object, Status> + Send + Sync,
    ) -> Vec<Result<Object, Status>> {
        let mut results: Vec<Option<Result<Object, Status>>> = items.iter().map(|_| None).collect();
        // What each write is computed from; told by the store when it was out of date.
        let mut newest: Vec<Option<Object>> = items.iter().map(|_| None).collect();
        for _ in 0..BULK_ROUNDS {
            let mut writes = Vec::new();
            for (at, item) in items.iter().enumerate().filter(|(at, _)| results[*at].is_none()).collect::<Vec<_>>() {
                match self.prepare_one(kind, item, newest[at].take(), |object| next(at, object)).await {
                    Ok((object, None)) => results[at] = Some(Ok(object)),
                    Ok((object, Some(txn))) => writes.push((at, object, txn)),
                    Err(status) => results[at] = Some(Err(status)),
                }
            }
            if writes.is_empty() {
                break;
            }
            while !writes.is_empty() {
                let chunk: Vec<_> = writes.drain(..writes.len().min(BULK_TXNS_MAX)).collect();
                let txns = chunk.iter().map(|(_, _, txn)| txn.clone()).collect();
                match self.store.txn_many(txns).await {
                    Ok(answers) => {
                        for ((at, object, _), answer) in chunk.into_iter().zip(answers) {
                            match settle_one(kind, &items[at], object, &answer) {
                                Ok(Settled::Written(object)) => results[at] = Some(Ok(object)),
                                Ok(Settled::Stale(object)) => newest[at] = Some(object),
                                Err(status) => results[at] = Some(Err(status)),
                            }
                        }
                    }
                    Err(error) => {
                        let status = codec::store_status(error);
                        chunk.into_iter().for_each(|(at, _, _)| results[at] = Some(Err(status.clone())));
                    }
                }
            }
        }
        results
            .into_iter()
            .zip(items)
            .map(|(result, item)| result.unwrap_or_else(|| Err(Status::conflict(kind, item.name, Status::MODIFIED))))
            .collect()
    }

    /// The object one write would make and the transaction for it; none when it changes nothing.
    async fn prepare_one(
        &self,
        kind: &Kind,
        item: &Item<'_>,
        newest: Option<Object>,
        next: impl Fn(&Object) -> Result<Object, Status>,
    ) -> Result<(Object, Option<Txn>), Status> {
        let namespace = Some(item.namespace);
        let local = match &newest {
            Some(_) => None,
            None => self.key_value(kind, namespace, item.name, Consistency::Local).await?,
        };
        let stale = local.is_some();
        let mut current = match (newest, local) {
            (Some(object), _) => object,
            (None, Some(kv)) => codec::decode(&kv)?,
            (None, None) => self.get(kind, namespace, item.name).await?,
        };
        let mut wanted = next(&current);
        if stale && wanted.as_ref().map_or(true, |wanted| *wanted == current) {
            // A refusal, or nothing to do: only the newest state may say so.
            current = self.get(kind, namespace, item.name).await?;
            wanted = next(&current);
        }
        let wanted = wanted?;
        if wanted == current {
            return Ok((current, None));
        }
        let revision = meta::resource_version(&current).unwrap_or(0);
        let key = kind.storage_key(item.namespace, item.name);
        let txn = Txn::replace(key, codec::encode(&wanted)?, revision);
        Ok((wanted, Some(txn)))
    }
}

enum Settled {
    Written(Object),
    Stale(Object),
}

fn settle_one(kind: &Kind, item: &Item<'_>, mut object: Object, answer: &TxnResult) -> Result<Settled, Status> {
    if answer.succeeded {
        meta::set_text(&mut object, "resourceVersion", &answer.revision.to_string());
        return Ok(Settled::Written(object));
    }
    match answer.responses.first() {
        Some(OpResponse::Get { kv: Some(kv) }) => codec::decode(kv).map(Settled::Stale),
        _ => Err(Status::not_found(kind, item.name)),
    }
}

fn same_uid(kind: &Kind, object: &Object, uid: &str) -> Result<(), Status> {
    let own = meta::uid(object);
    if uid.is_empty() || uid == own {
        return Ok(());
    }
    let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {own}");
    Err(Status::conflict(kind, meta::name(object), &why))
}

/// The pod with its node and the condition `PodScheduled` (Kubernetes' `BindingREST.setPodNodeAndMetadata`).
fn bind(kind: &Kind, pod: &Object, binding: &Binding, now: Timestamp) -> Result<Object, Status> {
    let name = meta::name(pod);
    same_uid(kind, pod, &binding.uid)?;
    if meta::is_terminating(pod) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(Status::conflict(kind, name, &why));
    }
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !node.is_empty() {
        let why = format!("pod {name} is already assigned to node {node:?}");
        return Err(Status::conflict(kind, name, &why));
    }
    let mut next = pod.clone();
    meta::child_mut(&mut next, "spec").insert("nodeName".to_owned(), binding.node.clone().into());
    let condition = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": meta::time(now),
    });
    let status = meta::child_mut(&mut next, "status");
    let conditions = status.entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(condition);
    }
    Ok(next)
}
