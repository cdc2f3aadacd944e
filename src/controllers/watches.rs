//! One informer a kind for all controllers and the scheduler: each object is decoded once and shared.
//!
//! A hub passes each event to all subscribers, in order. Queues are bounded ([`QUEUE_EVENTS`]); a full one makes the hub
//! wait, and behind it the informer, whose buffer is the store's history. A subscriber that is gone is dropped. A new
//! one is first told everything there is, then `Resynced`, then what happens. Made for one term of leadership: dropping
//! [`Watches`] and all receivers ends its tasks.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use super::reconcile::{Feed, Key};
use crate::registry::{ApiObject, Informer, InformerEvent, InformerOptions, Registry};

/// Events that wait for one subscriber.
const QUEUE_EVENTS: usize = 1_024;
/// Events that a feed takes at a time.
const BATCH_EVENTS: usize = 256;

/// The kinds that more than one controller watches.
#[derive(Clone)]
pub struct Watches {
    pub pods: Hub<Pod>,
    pub nodes: Hub<Node>,
    pub replica_sets: Hub<ReplicaSet>,
    pub deployments: Hub<Deployment>,
    pub namespaces: Hub<Namespace>,
}

impl Watches {
    /// Starts to watch, on `runtime`.
    pub fn start(registry: &Registry, runtime: &Handle) -> Watches {
        Watches {
            pods: Hub::start(registry, runtime),
            nodes: Hub::start(registry, runtime),
            replica_sets: Hub::start(registry, runtime),
            deployments: Hub::start(registry, runtime),
            namespaces: Hub::start(registry, runtime),
        }
    }
}

/// One kind, watched once.
pub struct Hub<K> {
    shared: Arc<Shared<K>>,
    informer: Informer<K>,
    _task: Arc<Abort>,
}

struct Shared<K> {
    /// Subscribers that the hub has not taken on yet: at most one for each actor that starts.
    joining: Mutex<Vec<mpsc::Sender<InformerEvent<K>>>>,
    joined: Notify,
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<K> Clone for Hub<K> {
    fn clone(&self) -> Self {
        Hub { shared: Arc::clone(&self.shared), informer: self.informer.clone(), _task: Arc::clone(&self._task) }
    }
}

impl<K: ApiObject> Hub<K> {
    pub fn start(registry: &Registry, runtime: &Handle) -> Hub<K> {
        let _entered = runtime.enter();
        let (informer, events) = Informer::start(registry, InformerOptions::default());
        let shared = Arc::new(Shared { joining: Mutex::default(), joined: Notify::new() });
        let task = runtime.spawn(spread(informer.clone(), events, Arc::clone(&shared)));
        Hub { shared, informer, _task: Arc::new(Abort(task.abort_handle())) }
    }

    /// Everything there is, then `Resynced`, then each change.
    pub fn subscribe(&self) -> mpsc::Receiver<InformerEvent<K>> {
        let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
        self.shared.joining.lock().push(sender);
        self.shared.joined.notify_one();
        receiver
    }

    /// The copy itself.
    pub fn informer(&self) -> &Informer<K> {
        &self.informer
    }
}

async fn spread<K: ApiObject>(
    informer: Informer<K>,
    mut events: mpsc::Receiver<InformerEvent<K>>,
    shared: Arc<Shared<K>>,
) {
    let mut subscribers: Vec<mpsc::Sender<InformerEvent<K>>> = Vec::new();
    loop {
        let joining = std::mem::take(&mut *shared.joining.lock());
        for subscriber in joining {
            // Events that are still queued repeat what this copy holds already; receivers compare revisions.
            let mut gone = false;
            for new in informer.objects() {
                gone = gone || subscriber.send(InformerEvent::Applied { new, old: None }).await.is_err();
            }
            if informer.is_synced() {
                gone = gone || subscriber.send(InformerEvent::Resynced).await.is_err();
            }
            if !gone {
                subscribers.push(subscriber);
            }
        }
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return };
                for subscriber in &subscribers {
                    // One that is gone is dropped below.
                    let _ = subscriber.send(event.clone()).await;
                }
                subscribers.retain(|subscriber| !subscriber.is_closed());
            }
            () = shared.joined.notified() => {}
        }
    }
}

/// Turns events into keys to look at. `on` brings indices up to date first.
pub fn feed<K: ApiObject>(
    receiver: mpsc::Receiver<InformerEvent<K>>,
    on: impl FnMut(&InformerEvent<K>, &mut Vec<Key>) + 'static,
) -> Feed {
    futures::stream::unfold((receiver, on), |(mut receiver, mut on)| async move {
        let mut batch = Vec::new();
        if receiver.recv_many(&mut batch, BATCH_EVENTS).await == 0 {
            return None;
        }
        let mut keys = Vec::new();
        for event in &batch {
            on(event, &mut keys);
        }
        keys.sort_unstable();
        keys.dedup();
        Some((keys, (receiver, on)))
    })
    .boxed_local()
}

/// Holds passes back until each feed has told everything there is: on half a picture a controller would make pods that
/// exist.
pub struct Synced {
    feeds: u32,
    done: watch::Sender<u32>,
}

impl Synced {
    /// Of `feeds` feeds, numbered from 0.
    pub fn of(feeds: u32) -> Synced {
        Synced { feeds, done: watch::Sender::new(0) }
    }

    pub fn mark(&self, feed: u32) {
        self.done.send_if_modified(|done| {
            let before = *done;
            *done |= 1 << feed;
            *done != before
        });
    }

    pub async fn wait(&self) {
        let all = (1 << self.feeds) - 1;
        // The sender is in `self`, so this ends only with all feeds complete.
        let _ = self.done.subscribe().wait_for(|done| *done == all).await;
    }
}
