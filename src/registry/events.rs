//! Kubernetes Events: what happened to an object, for people. Repeats are counted, not listed.
//!
//! Recording never waits and never fails its caller: when the queue is full the oldest entry is dropped and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;

use super::{Registry, WriteOptions};
use crate::api::{Object, Patch, Status, meta};

/// Records that wait to be written.
const QUEUE_MAX: usize = 1_024;
/// Distinct events whose repeats are counted; when there are more, counting starts anew.
const SERIES_MAX: usize = 4_096;
/// Longest message in characters; Kubernetes' own limit is 1,024.
const MESSAGE_CHARS_MAX: usize = 1_024;
/// The parameters of the hash FNV-1a with 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
/// How often a write is tried before the record is given up.
const WRITE_TRIES: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// The object an event is about: `involvedObject`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    /// Empty for cluster-scoped objects, whose events live in the namespace `default`.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// A part of it, such as `spec.containers{web}`; mostly empty.
    pub field_path: String,
}

impl ObjectRef {
    pub fn of(object: &Object) -> ObjectRef {
        ObjectRef {
            api_version: meta::api_version(object).to_owned(),
            kind: meta::kind(object).to_owned(),
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            resource_version: object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned(),
            field_path: String::new(),
        }
    }

    /// Of a typed object.
    pub fn of_typed<K: super::ApiObject>(object: &K) -> ObjectRef {
        let metadata = object.metadata();
        ObjectRef {
            api_version: K::API_VERSION.to_owned(),
            kind: K::KIND.to_owned(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            field_path: String::new(),
        }
    }

    /// The same object, a part of it.
    #[must_use]
    pub fn part(mut self, field_path: impl Into<String>) -> ObjectRef {
        self.field_path = field_path.into();
        self
    }
}

#[derive(Clone, Debug)]
struct Record {
    about: ObjectRef,
    event_type: EventType,
    reason: String,
    message: String,
    component: String,
    /// The machine it happened on, if that matters.
    host: String,
    at: Timestamp,
}

/// What makes two records the same event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Series {
    about: ObjectRef,
    event_type: EventType,
    reason: String,
    message: String,
    component: String,
    host: String,
}

#[derive(Default)]
struct Queue {
    records: Mutex<VecDeque<Record>>,
    wake: Notify,
    dropped: AtomicU64,
}

/// Writes events in the background until its last clone is dropped. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: Arc<Queue>,
    _task: Arc<Abort>,
}

struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Recorder {
    /// Starts on the current tokio runtime.
    pub fn start(registry: Registry) -> Recorder {
        let queue = Arc::new(Queue::default());
        let task = tokio::spawn(write_all(registry, queue.clone()));
        Recorder { queue, _task: Arc::new(Abort(task.abort_handle())) }
    }

    /// Notes that something happened. `component` is who says so, such as `default-scheduler`.
    pub fn record(&self, about: &ObjectRef, event_type: EventType, reason: &str, message: &str, component: &str) {
        self.record_on(about, event_type, reason, message, component, "");
    }

    /// As [`Recorder::record`], with the machine it happened on.
    pub fn record_on(
        &self,
        about: &ObjectRef,
        event_type: EventType,
        reason: &str,
        message: &str,
        component: &str,
        host: &str,
    ) {
        let record = Record {
            about: about.clone(),
            event_type,
            reason: reason.to_owned(),
            message: message.chars().take(MESSAGE_CHARS_MAX).collect(),
            component: component.to_owned(),
            host: host.to_owned(),
            at: Timestamp::now(),
        };
        let mut records = self.queue.records.lock();
        if records.len() >= QUEUE_MAX {
            records.pop_front();
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
        records.push_back(record);
        drop(records);
        self.queue.wake.notify_one();
    }

    /// Records that were lost because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }
}

impl Series {
    /// The name of its event object. The same wherever it is recorded, so that a new leader counts on where the last one
    /// was; of the form of client-go's, which has the time there.
    fn name(&self) -> String {
        let about = &self.about;
        let mut hash = FNV_OFFSET;
        let parts = [&about.uid, &about.field_path, &self.reason, &self.message, &self.component, &self.host];
        for part in parts.into_iter().map(String::as_str).chain([self.event_type.as_str(), &about.kind]) {
            for byte in part.bytes().chain([0]) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
            }
        }
        format!("{}.{hash:016x}", about.name)
    }
}

async fn write_all(registry: Registry, queue: Arc<Queue>) {
    let mut series: HashMap<Series, i64> = HashMap::new();
    loop {
        let next = queue.records.lock().pop_front();
        let Some(record) = next else {
            queue.wake.notified().await;
            continue;
        };
        if series.len() >= SERIES_MAX {
            series.clear();
        }
        let mut tries = 1;
        while let Err(status) = write(&registry, &mut series, &record).await {
            // A namespace that goes takes no more events; that is no fault.
            if !matches!(status.http_code(), 429 | 500..) || tries == WRITE_TRIES {
                tracing::debug!(%status, reason = record.reason, object = record.about.name, "an event was not written");
                break;
            }
            tries += 1;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}

async fn write(registry: &Registry, series: &mut HashMap<Series, i64>, record: &Record) -> Result<(), Status> {
    let kind = registry.kinds().by_kind("", "v1", "Event").cloned().ok_or_else(Status::unknown_resource)?;
    let mut about = record.about.clone();
    // Its revision differs each time and makes no other event of it.
    about.resource_version.clear();
    let key = Series {
        about,
        event_type: record.event_type,
        reason: record.reason.clone(),
        message: record.message.clone(),
        component: record.component.clone(),
        host: record.host.clone(),
    };
    let options = WriteOptions { field_manager: Some(record.component.clone()), ..WriteOptions::default() };
    let (home, name) = (home(&record.about), key.name());
    if !series.contains_key(&key) {
        match registry.create(&kind, Some(home), event(record, &name), &options).await {
            Ok(_) => {
                series.insert(key, 1);
                return Ok(());
            }
            // A leader before us has recorded it.
            Err(status) if status.http_code() == 409 => {
                let known = registry.get(&kind, Some(home), &name).await?;
                series.insert(key.clone(), known["count"].as_i64().unwrap_or(1));
            }
            Err(status) => return Err(status),
        }
    }
    let count = series.get(&key).map_or(1, |count| count + 1);
    let patch = Patch::Merge(json!({"count": count, "lastTimestamp": meta::time(record.at)}));
    match registry.patch(&kind, Some(home), &name, None, &patch, &options).await {
        Ok(_) => drop(series.insert(key, count)),
        // It was deleted meanwhile: begin anew.
        Err(status) if status.http_code() == 404 => {
            series.remove(&key);
            registry.create(&kind, Some(home), event(record, &name), &options).await?;
            series.insert(key, 1);
        }
        Err(status) => return Err(status),
    }
    Ok(())
}

/// The namespace that an object's events live in.
fn home(about: &ObjectRef) -> &str {
    if about.namespace.is_empty() { "default" } else { &about.namespace }
}

fn event(record: &Record, name: &str) -> Object {
    let about = &record.about;
    let at = meta::time(record.at);
    let mut involved = serde_json::Map::new();
    for (field, value) in [
        ("apiVersion", &about.api_version),
        ("kind", &about.kind),
        ("namespace", &about.namespace),
        ("name", &about.name),
        ("uid", &about.uid),
        ("resourceVersion", &about.resource_version),
        ("fieldPath", &about.field_path),
    ] {
        if !value.is_empty() {
            involved.insert(field.to_owned(), value.clone().into());
        }
    }
    let mut source = serde_json::Map::new();
    source.insert("component".to_owned(), record.component.clone().into());
    if !record.host.is_empty() {
        source.insert("host".to_owned(), record.host.clone().into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": name,
            "namespace": home(about),
        },
        "involvedObject": involved,
        "type": record.event_type.as_str(),
        "reason": record.reason,
        "message": record.message,
        "source": source,
        "reportingComponent": record.component,
        "reportingInstance": record.host,
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "eventTime": null,
    })
}
