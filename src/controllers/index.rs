//! What a controller knows of one kind: the newest version of each object, by owner and namespace, its own writes included.
//!
//! Pure. A controller's writes are in the index at once, before the informer shows them, so that no pass works on what
//! the pass before it has changed: this is what Kubernetes' "expectations" are for. All revisions come from one store,
//! so an entry is told to be ahead of or behind the informer by comparing numbers. Must never be the source of truth: it
//! is rebuilt from the informer whenever its controller is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::ownership::{controller_of, key_of, revision_of};
use super::reconcile::Key;

/// How long a write of ours is believed although the informer does not show it. It shows it in milliseconds, unless it
/// had to list anew in between and the object was gone by then.
const AHEAD_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Index<K> {
    objects: HashMap<Key, Arc<K>>,
    /// By the uid of the controlling owner.
    owned: HashMap<String, HashSet<Key>>,
    /// Without a controlling owner, by namespace.
    orphans: HashMap<String, HashSet<Key>>,
    namespaces: HashMap<String, HashSet<Key>>,
    /// The newest revision that the informer has shown.
    seen: u64,
    /// Objects that are here by our own write, not yet shown by the informer.
    ahead: HashMap<Key, Instant>,
    /// Uids that we deleted, not yet shown as deleted by the informer.
    removed: HashMap<String, Instant>,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Index {
            objects: HashMap::new(),
            owned: HashMap::new(),
            orphans: HashMap::new(),
            namespaces: HashMap::new(),
            seen: 0,
            ahead: HashMap::new(),
            removed: HashMap::new(),
        }
    }
}

impl<K: Metadata<Ty = ObjectMeta>> Index<K> {
    /// The informer shows an object. False when we know better already.
    pub fn applied(&mut self, object: &Arc<K>) -> bool {
        let meta = object.metadata();
        let revision = revision_of(meta);
        self.seen = self.seen.max(revision);
        if self.removed.contains_key(meta.uid.as_deref().unwrap_or_default()) {
            return false;
        }
        let key: Key = key_of(meta).into();
        if let Some(known) = self.objects.get(&key) {
            let known = revision_of(known.metadata());
            if known > revision {
                return false;
            }
            self.ahead.remove(&key);
            if known == revision && revision > 0 {
                return false;
            }
        }
        self.insert(key, Arc::clone(object));
        true
    }

    /// The informer shows that an object is gone.
    pub fn deleted(&mut self, object: &K) {
        let meta = object.metadata();
        self.seen = self.seen.max(revision_of(meta));
        self.removed.remove(meta.uid.as_deref().unwrap_or_default());
        self.take_out(meta);
    }

    /// We wrote an object, and this is what the store made of it.
    pub fn wrote(&mut self, object: Arc<K>, now: Instant) {
        let revision = revision_of(object.metadata());
        let key: Key = key_of(object.metadata()).into();
        match self.objects.get(&key) {
            Some(known) if revision_of(known.metadata()) >= revision => return,
            // The informer has passed this revision and does not hold it: it came and went.
            None if revision <= self.seen => return,
            _ => {}
        }
        self.ahead.insert(Arc::clone(&key), now + AHEAD_MAX);
        self.insert(key, object);
    }

    /// We deleted an object, and it is gone.
    pub fn removed(&mut self, meta: &ObjectMeta, now: Instant) {
        if self.take_out(meta) {
            self.removed.insert(meta.uid.clone().unwrap_or_default(), now + AHEAD_MAX);
        }
    }

    /// Gives up on writes of ours that the informer should long have shown. Returns the owners whose view changed.
    pub fn expire(&mut self, now: Instant) {
        self.removed.retain(|_, until| *until > now);
        let stale: Vec<Key> =
            self.ahead.iter().filter(|(_, until)| **until <= now).map(|(key, _)| Arc::clone(key)).collect();
        for key in stale {
            self.ahead.remove(&key);
            if let Some(object) = self.objects.get(&key).cloned() {
                self.take_out(object.metadata());
            }
        }
    }

    /// Whether a write of ours is not yet shown by the informer.
    pub fn is_ahead(&self) -> bool {
        !self.ahead.is_empty() || !self.removed.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.objects.contains_key(key)
    }

    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.all(self.owned.get(uid))
    }

    pub fn orphans_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.all(self.orphans.get(namespace))
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.all(self.namespaces.get(namespace))
    }

    fn all(&self, keys: Option<&HashSet<Key>>) -> Vec<Arc<K>> {
        keys.into_iter().flatten().filter_map(|key| self.objects.get(key)).cloned().collect()
    }

    fn insert(&mut self, key: Key, object: Arc<K>) {
        if let Some(old) = self.objects.remove(&key) {
            self.unlink(&key, old.metadata());
        }
        let meta = object.metadata();
        let namespace = meta.namespace.clone().unwrap_or_default();
        match controller_of(meta) {
            Some(owner) => self.owned.entry(owner.uid.clone()).or_default().insert(Arc::clone(&key)),
            None => self.orphans.entry(namespace.clone()).or_default().insert(Arc::clone(&key)),
        };
        self.namespaces.entry(namespace).or_default().insert(Arc::clone(&key));
        self.objects.insert(key, object);
    }

    /// Removes the object if it is still this one, not another of the same name.
    fn take_out(&mut self, meta: &ObjectMeta) -> bool {
        let key: Key = key_of(meta).into();
        match self.objects.get(&key) {
            Some(known) if known.metadata().uid == meta.uid => {
                let known = Arc::clone(known);
                self.objects.remove(&key);
                self.ahead.remove(&key);
                self.unlink(&key, known.metadata());
                true
            }
            _ => false,
        }
    }

    fn unlink(&mut self, key: &Key, meta: &ObjectMeta) {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match controller_of(meta) {
            Some(owner) => drop_from(&mut self.owned, &owner.uid, key),
            None => drop_from(&mut self.orphans, namespace, key),
        }
        drop_from(&mut self.namespaces, namespace, key);
    }
}

fn drop_from(sets: &mut HashMap<String, HashSet<Key>>, of: &str, key: &Key) {
    if let Some(set) = sets.get_mut(of) {
        set.remove(key);
        if set.is_empty() {
            sets.remove(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, revision: u64, owner: Option<&str>) -> Arc<Pod> {
        let owners: Vec<_> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let value = json!({"metadata": {
            "name": name, "namespace": "default", "uid": uid, "resourceVersion": revision.to_string(), "ownerReferences": owners,
        }});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_write_of_ours_is_seen_at_once_and_confirmed_later() {
        let mut index = Index::default();
        let now = Instant::now();
        index.wrote(pod("a", "1", 5, Some("rs")), now);
        assert_eq!(index.owned_by("rs").len(), 1);
        assert!(index.is_ahead());
        assert!(!index.applied(&pod("a", "1", 5, Some("rs"))), "nothing new");
        assert!(!index.is_ahead());
        index.expire(now + AHEAD_MAX);
        assert_eq!(index.owned_by("rs").len(), 1);
    }

    #[test]
    fn an_older_version_from_the_informer_does_not_undo_our_write() {
        let mut index = Index::default();
        index.applied(&pod("a", "1", 3, None));
        index.wrote(pod("a", "1", 5, Some("rs")), Instant::now());
        assert!(!index.applied(&pod("a", "1", 4, None)));
        assert_eq!((index.owned_by("rs").len(), index.orphans_in("default").len()), (1, 0));
    }

    #[test]
    fn what_came_and_went_before_the_answer_is_not_kept() {
        let mut index = Index::default();
        index.applied(&pod("a", "1", 5, Some("rs")));
        index.deleted(&pod("a", "1", 6, Some("rs")));
        index.wrote(pod("a", "1", 5, Some("rs")), Instant::now());
        assert!(index.owned_by("rs").is_empty());
    }

    #[test]
    fn a_pod_that_we_removed_does_not_come_back_with_an_old_event() {
        let mut index = Index::default();
        let now = Instant::now();
        index.applied(&pod("a", "1", 5, Some("rs")));
        index.removed(pod("a", "1", 8, None).metadata(), now);
        assert!(!index.applied(&pod("a", "1", 7, Some("rs"))));
        assert!(index.owned_by("rs").is_empty());
        index.deleted(&pod("a", "1", 8, Some("rs")));
        assert!(!index.is_ahead());
        assert!(index.applied(&pod("a", "2", 9, Some("rs"))), "another of that name is another");
    }

    #[test]
    fn a_write_that_the_informer_never_shows_is_forgotten() {
        let mut index = Index::default();
        let now = Instant::now();
        index.wrote(pod("a", "1", 5, Some("rs")), now);
        index.expire(now + AHEAD_MAX);
        assert!(index.owned_by("rs").is_empty() && !index.is_ahead());
    }

    #[test]
    fn the_end_of_an_old_object_leaves_the_new_one_of_that_name() {
        let mut index = Index::default();
        index.applied(&pod("a", "2", 9, None));
        index.deleted(&pod("a", "1", 8, None));
        assert!(index.contains("default/a"));
    }
}
