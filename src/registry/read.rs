//! Reading objects: one, or a list in pages.

use std::time::Duration;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

use super::{Registry, codec};
use crate::api::{Cause, FieldSelector, Kind, LabelSelector, Object, Status, meta};
use crate::store::{Consistency, KeyValue, RangeRequest, StoreError, prefix_end};

/// How long a read waits for a revision that this server has not reached yet; Kubernetes' own figure.
const FUTURE_REVISION_WAIT: Duration = Duration::from_secs(3);
const FUTURE_REVISION_POLL: Duration = Duration::from_millis(10);
/// Keys read at a time when a selector has to find the objects of a page.
const SELECT_CHUNK_KEYS: usize = 500;

/// How continue tokens are written: as Go does it, which does not mind bits behind the end.
const TOKEN: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The `resourceVersionMatch` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// Which objects to list, and how fresh.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label: LabelSelector,
    pub field: FieldSelector,
    /// Most objects in the answer; 0 means all.
    pub limit: usize,
    /// Where the page before this one ended; empty for the first.
    pub continue_token: String,
    /// Empty: every acknowledged write is seen. `0`: this server's memory, without asking anyone. Else see `version_match`.
    pub resource_version: String,
    pub version_match: Option<VersionMatch>,
}

/// A page of objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectList {
    pub items: Vec<Object>,
    /// The revision of the snapshot; a watch may start from it.
    pub resource_version: u64,
    /// Empty on the last page.
    pub continue_token: String,
    /// Objects behind this page; only known without selectors.
    pub remaining: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct ContinueToken {
    v: String,
    rv: u64,
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl Registry {
    /// One object; sees every write acknowledged before the call.
    pub async fn get(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Result<Object, Status> {
        self.read(kind, namespace, name, Consistency::Linearizable).await
    }

    /// One object from this server's memory; may be behind.
    pub async fn get_local(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Result<Object, Status> {
        self.read(kind, namespace, name, Consistency::Local).await
    }

    async fn read(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        consistency: Consistency,
    ) -> Result<Object, Status> {
        match self.key_value(kind, namespace, name, consistency).await? {
            Some(kv) => codec::decode(&kv),
            None => Err(Status::not_found(kind, name)),
        }
    }

    pub(super) async fn key_value(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        consistency: Consistency,
    ) -> Result<Option<KeyValue>, Status> {
        let key = codec::key(kind, namespace, name);
        let (kv, _) = self.store.get(&key, consistency).await.map_err(codec::store_status)?;
        Ok(kv)
    }

    /// The objects of a kind, in one namespace or in all.
    pub async fn list(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectList, Status> {
        let prefix = codec::prefix(kind, namespace);
        let (consistency, mut revision) = self.freshness(options).await?;
        let mut range = match options.field.required("metadata.name") {
            Some(name) if namespace.is_some() || !kind.namespaced => {
                let key = codec::key(kind, namespace, name);
                RangeRequest { end: format!("{key}\0"), start: key, ..RangeRequest::default() }
            }
            _ => RangeRequest::prefix(&prefix),
        };
        if !options.continue_token.is_empty() {
            let token = parse_continue(&options.continue_token)?;
            range.start = format!("{}{}", kind.storage_prefix(), token.start);
            if !range.start.starts_with(&prefix) {
                return Err(invalid_continue("continue key is not valid: it is not of this list"));
            }
            range.end = prefix_end(&prefix);
            revision = Some(token.rv);
        }
        let selective = !options.label.is_empty() || !options.field.is_empty();
        let mut list = ObjectList::default();
        loop {
            range.revision = revision;
            range.limit = match (options.limit, selective) {
                (0, _) => 0,
                (limit, false) => limit - list.items.len(),
                (_, true) => SELECT_CHUNK_KEYS,
            };
            let result = self
                .store
                .range(range.clone(), consistency)
                .await
                .map_err(|e| list_status(e, !options.continue_token.is_empty()))?;
            // The pages of one list fit together: all are read at the revision of the first.
            revision = Some(result.revision);
            list.resource_version = result.revision;
            let mut last = None;
            let mut taken = 0;
            for kv in &result.kvs {
                taken += 1;
                last = Some(kv.key.clone());
                let object = codec::decode(kv)?;
                if options.label.matches(meta::labels(&object)) && options.field.matches(&object) {
                    list.items.push(object);
                    if options.limit != 0 && list.items.len() == options.limit {
                        break;
                    }
                }
            }
            let more = result.more || taken < result.kvs.len();
            let Some(last) = last.filter(|_| more) else { return Ok(list) };
            if list.items.len() == options.limit {
                let start = format!("{}\0", last.strip_prefix(&kind.storage_prefix()).unwrap_or(&last));
                list.continue_token = render_continue(result.revision, start)?;
                list.remaining = (!selective).then(|| result.count.saturating_sub(taken) as u64);
                return Ok(list);
            }
            range = range.after(&last);
        }
    }

    /// What `resourceVersion` and its match ask for: how to read, and at which revision.
    async fn freshness(&self, options: &ListOptions) -> Result<(Consistency, Option<u64>), Status> {
        let given = options.resource_version.as_str();
        if given.is_empty() {
            return match options.version_match {
                Some(_) => Err(match_without_version()),
                None => Ok((Consistency::Linearizable, None)),
            };
        }
        let version = parse_resource_version(given)?;
        if !options.continue_token.is_empty() && version != 0 {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        match options.version_match {
            Some(VersionMatch::Exact) if version == 0 => Err(exact_zero()),
            Some(VersionMatch::Exact) => {
                self.reach(version).await?;
                Ok((Consistency::Local, Some(version)))
            }
            _ => {
                self.reach(version).await?;
                Ok((Consistency::Local, None))
            }
        }
    }

    /// Waits until this server has applied `version`; 504 when it does not within Kubernetes' three seconds.
    pub(super) async fn reach(&self, version: u64) -> Result<(), Status> {
        if self.store.revision() >= version {
            return Ok(());
        }
        let deadline = tokio::time::Instant::now() + FUTURE_REVISION_WAIT;
        while self.store.revision() < version {
            if tokio::time::Instant::now() >= deadline {
                return Err(Status::resource_version_too_large(version, self.store.revision()));
            }
            tokio::time::sleep(FUTURE_REVISION_POLL).await;
        }
        Ok(())
    }
}

/// A `resourceVersion` parameter as a number.
pub fn parse_resource_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

fn list_options_invalid(reason: &str, message: &str) -> Status {
    let cause =
        Cause { reason: reason.to_owned(), message: message.to_owned(), field: "resourceVersionMatch".to_owned() };
    Status::invalid_kind("meta.k8s.io", "ListOptions", "", vec![cause])
}

fn match_without_version() -> Status {
    list_options_invalid(
        "FieldValueForbidden",
        "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
    )
}

fn exact_zero() -> Status {
    list_options_invalid(
        "FieldValueForbidden",
        "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
    )
}

fn list_status(error: StoreError, continued: bool) -> Status {
    match error {
        StoreError::Compacted { .. } if continued => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
        ),
        other => codec::store_status(other),
    }
}

fn invalid_continue(why: &str) -> Status {
    Status::bad_request(format!("invalid continue token: {why}"))
}

fn parse_continue(token: &str) -> Result<ContinueToken, Status> {
    let bytes = TOKEN.decode(token).map_err(|e| invalid_continue(&format!("continue key is not valid: {e}")))?;
    let parsed: ContinueToken = serde_json::from_slice(&bytes).map_err(|e| {
        let why = match bytes.first() {
            Some(first) if *first != b'{' => {
                format!("invalid character '{}' looking for beginning of value", char::from(*first))
            }
            _ => e.to_string(),
        };
        invalid_continue(&format!("continue key is not valid: {why}"))
    })?;
    if parsed.v != CONTINUE_VERSION || parsed.rv == 0 || parsed.start.is_empty() {
        return Err(invalid_continue(
            "continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
        ));
    }
    Ok(parsed)
}

fn render_continue(rv: u64, start: String) -> Result<String, Status> {
    let token = ContinueToken { v: CONTINUE_VERSION.to_owned(), rv, start };
    let json = serde_json::to_vec(&token).map_err(Status::internal)?;
    Ok(TOKEN.encode(json))
}
