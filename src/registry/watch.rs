//! Following objects: the store's events, decoded, selected, and told in Kubernetes' words.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::read::parse_resource_version;
use super::{ListOptions, Registry, codec};
use crate::api::{FieldSelector, Kind, LabelSelector, Object, Status, meta};
use crate::store::{Watch, WatchBatch, WatchEvent, WatchEventKind, prefix_end};

/// How often a watch that nothing happens on tells how far it has come.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Marks the bookmark behind the initial events of a watch-list.
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What to follow, and from where.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub label: LabelSelector,
    pub field: FieldSelector,
    /// Empty or `0`: the present objects come first as [`ObjectEvent::Added`]. Else only what came after this revision.
    pub resource_version: String,
    /// A watch-list: the present objects first (none older than `resource_version`), then a bookmark that says so.
    pub send_initial_events: bool,
    /// Send [`ObjectEvent::Bookmark`] now and then.
    pub bookmarks: bool,
}

/// What happened. `Added` and `Deleted` are also told when an object begins or ceases to match the selectors.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectEvent {
    Added(Object),
    Modified(Object),
    /// The last state that matched, with the revision at which it went.
    Deleted(Object),
    /// Everything up to the `resourceVersion` of this otherwise empty object has been told.
    Bookmark(Object),
    /// The last word: list again and start from there.
    Error(Status),
}

/// A stream of events. Dropping it ends it.
pub struct ObjectWatch {
    /// `apiVersion` and `kind` for bookmarks.
    api_version: String,
    kind: String,
    label: LabelSelector,
    field: FieldSelector,
    ready: VecDeque<ObjectEvent>,
    watch: Watch,
    bookmarks: Option<Interval>,
    /// The revision of the last thing told, so that a bookmark never goes back.
    told: u64,
    ended: bool,
}

impl Registry {
    /// Follows the objects of a kind, in one namespace or in all.
    ///
    /// # Errors
    /// 410 when the history no longer goes back to `resource_version`: list again.
    pub async fn watch(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        options: &WatchOptions,
    ) -> Result<ObjectWatch, Status> {
        let mut start = codec::prefix(kind, namespace);
        let mut end = prefix_end(&start);
        if let Some(name) = options.field.required("metadata.name")
            && (namespace.is_some() || !kind.namespaced)
        {
            start = codec::key(kind, namespace, name);
            end = format!("{start}\0");
        }
        let version = match options.resource_version.as_str() {
            "" => None,
            text => Some(parse_resource_version(text)?),
        };
        let initial = options.send_initial_events || version.is_none_or(|version| version == 0);
        let mut ready = VecDeque::new();
        let from = match version {
            Some(version) if !initial => version,
            _ => {
                let list = ListOptions {
                    label: options.label.clone(),
                    field: options.field.clone(),
                    resource_version: options.resource_version.clone(),
                    ..ListOptions::default()
                };
                let list = self.list(kind, namespace, &list).await?;
                ready.extend(list.items.into_iter().map(ObjectEvent::Added));
                list.resource_version
            }
        };
        let watch = self.store.watch(start, end, from + 1).map_err(codec::store_status)?;
        let mut watch = ObjectWatch {
            api_version: kind.api_version(),
            kind: kind.kind.clone(),
            label: options.label.clone(),
            field: options.field.clone(),
            ready,
            watch,
            bookmarks: options.bookmarks.then(|| {
                let mut ticks = interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                ticks
            }),
            told: from,
            ended: false,
        };
        if options.send_initial_events {
            let mut bookmark = watch.bookmark(from);
            bookmark["metadata"]["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
            watch.ready.push_back(ObjectEvent::Bookmark(bookmark));
        }
        Ok(watch)
    }
}

impl ObjectWatch {
    /// The next event; `None` after [`ObjectEvent::Error`]. Cancel safe.
    pub async fn next(&mut self) -> Option<ObjectEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let tick = async {
                match &mut self.bookmarks {
                    Some(ticks) => ticks.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                batch = self.watch.next() => match batch {
                    Some(Ok(batch)) => self.take(batch),
                    Some(Err(error)) => self.fail(codec::watch_status(error)),
                    None => self.ended = true,
                },
                _ = tick => {
                    let bookmark = self.progress();
                    self.ready.push_back(ObjectEvent::Bookmark(bookmark));
                }
            }
        }
    }

    /// What can be told without waiting.
    pub fn try_next(&mut self) -> Option<ObjectEvent> {
        while self.ready.is_empty() && !self.ended {
            match self.watch.try_next()? {
                Ok(batch) => self.take(batch),
                Err(error) => self.fail(codec::watch_status(error)),
            }
        }
        self.ready.pop_front()
    }

    /// A bookmark of where this watch stands; what is still in line is not counted as told.
    pub fn progress(&self) -> Object {
        let revision = if self.ready.is_empty() { self.told.max(self.watch.progress()) } else { self.told };
        self.bookmark(revision)
    }

    fn bookmark(&self, revision: u64) -> Object {
        json!({
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": { "resourceVersion": revision.to_string() },
        })
    }

    fn take(&mut self, batch: WatchBatch) {
        self.told = self.told.max(batch.revision);
        for event in batch.events {
            match self.tell(&event) {
                Ok(event) => self.ready.extend(event),
                Err(status) => return self.fail(status),
            }
        }
    }

    fn fail(&mut self, status: Status) {
        self.ready.push_back(ObjectEvent::Error(status));
        self.ended = true;
    }

    fn matches(&self, object: &Object) -> bool {
        self.label.matches(meta::labels(object)) && self.field.matches(object)
    }

    fn tell(&self, event: &WatchEvent) -> Result<Option<ObjectEvent>, Status> {
        let selective = !self.label.is_empty() || !self.field.is_empty();
        let revision = event.kv.mod_revision;
        // The state before is only worth reading where it is sent or decides.
        let before = match &event.prev {
            Some(prev) if selective || event.kind == WatchEventKind::Delete => {
                let object = codec::decode_at(prev, revision)?;
                self.matches(&object).then_some(object)
            }
            _ => None,
        };
        if event.kind == WatchEventKind::Delete {
            return Ok(before.map(ObjectEvent::Deleted));
        }
        let now = codec::decode(&event.kv)?;
        let was = if selective { before.is_some() } else { event.prev.is_some() };
        Ok(match (was, self.matches(&now)) {
            (false, true) => Some(ObjectEvent::Added(now)),
            (true, true) => Some(ObjectEvent::Modified(now)),
            (true, false) => before.map(ObjectEvent::Deleted),
            (false, false) => None,
        })
    }
}
