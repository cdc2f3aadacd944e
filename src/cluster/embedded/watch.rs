//! A typed watch that outlives the server it began at.
//!
//! ```text
//!   a server's watch ──▶ follow ──▶ Watch (bounded queue)
//!        │ server killed, cut off, or too far behind
//!        └─▶ another server, from the last version told; by a list and its difference where history is too short
//! ```
//! Every object's final state is told; of states in between some may be skipped after such a change, as Kubernetes has it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::calls::is_passing;
use super::node::Access;
use super::{ClusterError, Inner};
use crate::api::{Kind, Object, Status, meta};
use crate::registry::{ApiObject, ListOptions, ObjectEvent, ObjectWatch, WatchOptions};

/// Events that wait for a slow reader. When there are more the watch is read no further: history in the store is the buffer.
const EVENTS_MAX: usize = 256;
/// Between two looks for a server to go on with.
const SERVER_RETRY: Duration = Duration::from_millis(20);

/// What happened to an object. `Added` and `Deleted` are also told when one begins or ceases to match the selector.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent<K> {
    /// It is there: from before the watch, or new.
    Added(K),
    /// It is not what it was.
    Modified(K),
    /// It is gone; its last state.
    Deleted(K),
}

impl<K> WatchEvent<K> {
    /// The object, whatever happened to it.
    pub fn object(&self) -> &K {
        match self {
            Self::Added(object) | Self::Modified(object) | Self::Deleted(object) => object,
        }
    }

    /// The object, if it exists.
    pub fn into_existing(self) -> Option<K> {
        match self {
            Self::Added(object) | Self::Modified(object) => Some(object),
            Self::Deleted(_) => None,
        }
    }
}

/// A stream of events; see [`Cluster::watch`](super::Cluster::watch). It ends when the cluster is shut down, or with an
/// error. Dropping it ends it.
pub struct Watch<K> {
    events: mpsc::Receiver<Result<WatchEvent<K>, ClusterError>>,
    _follow: AbortOnDropHandle<()>,
}

impl<K> Watch<K> {
    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<WatchEvent<K>, ClusterError>> {
        self.events.recv().await
    }
}

impl<K> Stream for Watch<K> {
    type Item = Result<WatchEvent<K>, ClusterError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx)
    }
}

/// What is followed, and how far it was told.
struct Follow<K> {
    inner: Arc<Inner>,
    kind: Arc<Kind>,
    namespace: Option<String>,
    options: WatchOptions,
    /// By namespace and name, with its version: to tell what changed where history is too short.
    known: HashMap<String, (String, K)>,
    /// The version up to which everything was told.
    version: u64,
    events: mpsc::Sender<Result<WatchEvent<K>, ClusterError>>,
}

/// Why one server's watch is at its end.
enum Turn {
    /// Go on elsewhere, from the last version.
    Elsewhere,
    /// History does not go back that far: list.
    List,
    /// Nobody listens any more, or the reader was told an error.
    Over,
}

/// Begins to watch; the present objects come first.
pub(super) async fn watch<K: ApiObject>(
    inner: Arc<Inner>,
    kind: Arc<Kind>,
    namespace: Option<String>,
    options: WatchOptions,
) -> Result<Watch<K>, ClusterError> {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let follow = Follow { inner, kind, namespace, options, known: HashMap::new(), version: 0, events };
    // Here, so that a request that no server accepts fails at once.
    let (items, version) = follow.list().await?;
    let task = tokio::spawn(async move {
        let (ended, mut follow) = (follow.inner.ended.clone(), follow);
        let run = async {
            if follow.resync(items, version).await {
                follow.run().await;
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = run => {}
        }
    });
    Ok(Watch { events: receiver, _follow: AbortOnDropHandle::new(task) })
}

impl<K: ApiObject> Follow<K> {
    async fn run(mut self) {
        loop {
            let Some(server) = self.inner.server().filter(|server| !server.fenced()) else {
                tokio::time::sleep(SERVER_RETRY).await;
                continue;
            };
            match self.follow(&server).await {
                Turn::Over => return,
                Turn::Elsewhere => {
                    self.inner.avoid(&server.name);
                    tokio::time::sleep(SERVER_RETRY).await;
                }
                Turn::List => match self.list().await {
                    Ok((items, version)) => {
                        if !self.resync(items, version).await {
                            return;
                        }
                    }
                    // No majority for a while: it may come back.
                    Err(error @ (ClusterError::Unavailable { .. } | ClusterError::NoServer)) => {
                        tracing::debug!(%error, "a watch cannot go on yet");
                        tokio::time::sleep(SERVER_RETRY).await;
                    }
                    Err(error) => {
                        let _ = self.events.send(Err(error)).await;
                        return;
                    }
                },
            }
        }
    }

    /// Reads one server's watch for as long as it can be believed.
    async fn follow(&mut self, server: &Access) -> Turn {
        let mut watch = match self.open(server).await {
            Ok(watch) => watch,
            Err(turn) => return turn,
        };
        let mut lease = server.shared.leases.status();
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                // A server that is cut off hears nothing, and says nothing.
                _ = lease.wait_for(|lease| lease.fenced) => return Turn::Elsewhere,
            };
            let told = match event {
                Some(ObjectEvent::Added(object) | ObjectEvent::Modified(object)) => self.present(object).await,
                Some(ObjectEvent::Deleted(object)) => self.deleted(&object).await,
                Some(ObjectEvent::Bookmark(_)) => true,
                Some(ObjectEvent::Error(status)) if status.http_code() == 410 => return Turn::List,
                Some(ObjectEvent::Error(_)) | None => return Turn::Elsewhere,
            };
            if !told {
                return Turn::Over;
            }
        }
    }

    async fn open(&mut self, server: &Access) -> Result<ObjectWatch, Turn> {
        let registry = server.shared.registry().ok_or(Turn::Elsewhere)?;
        let (kind, namespace) = (self.kind.clone(), self.namespace.clone());
        // The last revision may have been told in part, if it changed several objects; `known` knows what is a repeat.
        let after = self.version.saturating_sub(1);
        let options = WatchOptions { resource_version: after.to_string(), ..self.options.clone() };
        let opened = server.run(async move { registry.watch(&kind, namespace.as_deref(), &options).await }).await;
        match opened {
            Some(Ok(watch)) => Ok(watch),
            Some(Err(status)) if status.http_code() == 410 => Err(Turn::List),
            Some(Err(status)) if !is_passing(&status) => {
                let _ = self.events.send(Err(status.into())).await;
                Err(Turn::Over)
            }
            _ => Err(Turn::Elsewhere),
        }
    }

    async fn list(&self) -> Result<(Vec<Object>, u64), ClusterError> {
        let (kind, namespace, options) = (self.kind.clone(), self.namespace.clone(), self.options.clone());
        let listed = self.inner.call(move |registry| {
            let (kind, namespace) = (kind.clone(), namespace.clone());
            let list = ListOptions { label: options.label.clone(), field: options.field.clone(), ..Default::default() };
            async move { registry.list(&kind, namespace.as_deref(), &list).await }
        });
        listed.await.map(|list| (list.items, list.resource_version))
    }

    /// Tells the difference between what was told and what is there.
    async fn resync(&mut self, items: Vec<Object>, version: u64) -> bool {
        let there: std::collections::HashSet<String> = items.iter().map(key).collect();
        let gone: Vec<String> = self.known.keys().filter(|key| !there.contains(*key)).cloned().collect();
        for key in gone {
            if let Some((_, last)) = self.known.remove(&key)
                && !self.tell(Ok(WatchEvent::Deleted(last))).await
            {
                return false;
            }
        }
        for object in items {
            if !self.present(object).await {
                return false;
            }
        }
        self.version = self.version.max(version);
        true
    }

    async fn present(&mut self, object: Object) -> bool {
        let (key, version) =
            (key(&object), object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned());
        self.advance(&object);
        if self.known.get(&key).is_some_and(|(known, _)| *known == version) {
            return true;
        }
        let typed = match parse::<K>(object) {
            Ok(typed) => typed,
            Err(status) => return self.tell(Err(status.into())).await,
        };
        let event = match self.known.insert(key, (version, typed.clone())) {
            None => WatchEvent::Added(typed),
            Some(_) => WatchEvent::Modified(typed),
        };
        self.tell(Ok(event)).await
    }

    async fn deleted(&mut self, object: &Object) -> bool {
        self.advance(object);
        match self.known.remove(&key(object)) {
            Some((_, last)) => self.tell(Ok(WatchEvent::Deleted(last))).await,
            // Told already.
            None => true,
        }
    }

    fn advance(&mut self, object: &Object) {
        if let Some(version) = meta::resource_version(object) {
            self.version = self.version.max(version);
        }
    }

    /// False when nobody wants to hear more.
    async fn tell(&mut self, event: Result<WatchEvent<K>, ClusterError>) -> bool {
        let last = event.is_err();
        self.events.send(event).await.is_ok() && !last
    }
}

fn key(object: &Object) -> String {
    format!("{}/{}", meta::namespace(object), meta::name(object))
}

/// An object as its type.
pub(super) fn parse<K: ApiObject>(object: Object) -> Result<K, Status> {
    let name = meta::name(&object).to_owned();
    serde_json::from_value(object)
        .map_err(|e| Status::internal(format!("{} {name:?} does not fit its type: {e}", K::KIND)))
}
