//! Who depends on whom, and what is left to do once an owner goes.
//!
//! ```text
//!   objects of all kinds --observe, gone--> Graph --> uids worth a look --decide--> Decision --(collector)--> store
//! ```
//!
//! Pure. Rules of Kubernetes' garbage collector: an object goes when none of its owners exists any more; an owner that is
//! deleted in the foreground stays until the dependents that block it are gone; an orphaning owner first lets its
//! dependents go. An owner that the graph does not know is never believed absent before it was looked up live.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

pub type Uid = Arc<str>;

/// What the collector needs to know of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub uid: Uid,
    /// `apps/v1`, and `ReplicaSet`.
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub owners: Vec<Owner>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub uid: Uid,
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub name: Arc<str>,
    pub blocks: bool,
}

impl Item {
    pub fn of(api_version: &Arc<str>, kind: &Arc<str>, meta: &ObjectMeta) -> Item {
        let text = |part: &Option<String>| Arc::from(part.as_deref().unwrap_or_default());
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
        let owners = meta.owner_references.as_deref().unwrap_or_default().iter().map(|owner| Owner {
            uid: Arc::from(owner.uid.as_str()),
            api_version: Arc::from(owner.api_version.as_str()),
            kind: Arc::from(owner.kind.as_str()),
            name: Arc::from(owner.name.as_str()),
            blocks: owner.block_owner_deletion == Some(true),
        });
        Item {
            uid: text(&meta.uid),
            api_version: Arc::clone(api_version),
            kind: Arc::clone(kind),
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            owners: owners.collect(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// Kubernetes' propagation policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    /// Look these owners up live, tell [`Graph::verified`], and decide again.
    Verify(Vec<Owner>),
    Delete(Propagation),
    /// Take these owners out of the object's references: others remain.
    DropOwners(Vec<Uid>),
    /// Every dependent that blocked is gone.
    RemoveForegroundFinalizer,
    /// Take this object out of the references of these, then remove its `orphan` finalizer.
    ReleaseDependents(Vec<Uid>),
}

#[derive(Debug, Default)]
pub struct Graph {
    items: HashMap<Uid, Arc<Item>>,
    dependents: HashMap<Uid, HashSet<Uid>>,
    /// Outcome of live look-ups of owners that the graph does not hold. A uid never comes back, so absence lasts; presence
    /// lasts until the object is observed, and is asked again when the dependent is.
    absent: HashSet<Uid>,
    present: HashSet<Uid>,
}

/// Live look-ups that are remembered. When full they are forgotten and made again.
const VERIFIED_MAX: usize = 4096;

impl Graph {
    pub fn new() -> Graph {
        Graph::default()
    }

    pub fn item(&self, uid: &str) -> Option<&Arc<Item>> {
        self.items.get(uid)
    }

    pub fn uids_of<'a>(&'a self, api_version: &'a str, kind: &'a str) -> impl Iterator<Item = &'a Uid> {
        let same = move |item: &&Arc<Item>| &*item.api_version == api_version && &*item.kind == kind;
        self.items.values().filter(same).map(|item| &item.uid)
    }

    /// An object is new or changed. Returns the uids that are worth a [`Graph::decide`].
    pub fn observe(&mut self, item: Item) -> Vec<Uid> {
        let uid = Arc::clone(&item.uid);
        let old = self.items.get(&uid).cloned();
        if old.as_deref() == Some(&item) {
            return Vec::new();
        }
        self.present.remove(&uid);
        let old_owners = old.as_ref().map(|old| old.owners.clone()).unwrap_or_default();
        for owner in old_owners.iter().filter(|owner| item.owners.iter().all(|kept| kept.uid != owner.uid)) {
            self.unlink(&owner.uid, &uid);
        }
        for owner in &item.owners {
            self.dependents.entry(Arc::clone(&owner.uid)).or_default().insert(Arc::clone(&uid));
        }
        let mut look = Vec::new();
        let troubled = |owner: &Owner| self.items.get(&owner.uid).is_none_or(|owner| owner.waits_for_dependents());
        let orphans = item.deleting && item.orphan;
        if item.waits_for_dependents() || orphans || item.owners.iter().any(troubled) {
            look.push(Arc::clone(&uid));
        }
        let waits_now = item.waits_for_dependents() && !old.as_ref().is_some_and(|old| old.waits_for_dependents());
        if waits_now {
            look.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        // An owner that waits may have lost its last blocking dependent, or this one has let go of it.
        let owners = old_owners.iter().chain(&item.owners);
        look.extend(owners.filter(|owner| self.is_waiting(&owner.uid)).map(|owner| Arc::clone(&owner.uid)));
        self.items.insert(uid, Arc::new(item));
        look
    }

    /// An object no longer exists. Returns the uids that are worth a [`Graph::decide`].
    pub fn gone(&mut self, uid: &str) -> Vec<Uid> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        self.note_absent(Arc::clone(&item.uid));
        let mut look: Vec<Uid> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &item.owners {
            self.unlink(&owner.uid, &item.uid);
            if self.is_waiting(&owner.uid) {
                look.push(Arc::clone(&owner.uid));
            }
        }
        look
    }

    /// What a live look-up said.
    pub fn verified(&mut self, owner: &Uid, exists: bool) {
        if exists {
            if self.present.len() >= VERIFIED_MAX {
                self.present.clear();
            }
            self.present.insert(Arc::clone(owner));
        } else {
            self.note_absent(Arc::clone(owner));
        }
    }

    pub fn decide(&self, uid: &str) -> Decision {
        let Some(item) = self.items.get(uid) else { return Decision::Nothing };
        if item.deleting {
            return self.decide_deleting(item);
        }
        if item.owners.is_empty() {
            return Decision::Nothing;
        }
        let (mut solid, mut waiting, mut dangling, mut unknown) = (false, Vec::new(), Vec::new(), Vec::new());
        for owner in &item.owners {
            match self.items.get(&owner.uid) {
                Some(known) if known.waits_for_dependents() => waiting.push(Arc::clone(&owner.uid)),
                Some(_) => solid = true,
                None if self.absent.contains(&owner.uid) => dangling.push(Arc::clone(&owner.uid)),
                None if self.present.contains(&owner.uid) => solid = true,
                None => unknown.push(owner.clone()),
            }
        }
        if !unknown.is_empty() {
            return Decision::Verify(unknown);
        }
        if solid {
            waiting.append(&mut dangling);
            return if waiting.is_empty() { Decision::Nothing } else { Decision::DropOwners(waiting) };
        }
        let has_dependents = self.dependents.get(uid).is_some_and(|dependents| !dependents.is_empty());
        Decision::Delete(if !waiting.is_empty() && has_dependents || item.foreground {
            Propagation::Foreground
        } else if item.orphan {
            Propagation::Orphan
        } else {
            Propagation::Background
        })
    }

    fn decide_deleting(&self, item: &Item) -> Decision {
        let dependents = self.dependents.get(&item.uid);
        if item.orphan {
            let mut all: Vec<Uid> = dependents.into_iter().flatten().cloned().collect();
            all.sort_unstable();
            return Decision::ReleaseDependents(all);
        }
        if !item.foreground {
            return Decision::Nothing;
        }
        let blocks = |uid: &Uid| {
            let dependent = self.items.get(uid);
            dependent
                .is_some_and(|dependent| dependent.owners.iter().any(|owner| owner.uid == item.uid && owner.blocks))
        };
        if dependents.into_iter().flatten().any(blocks) {
            Decision::Nothing
        } else {
            Decision::RemoveForegroundFinalizer
        }
    }

    fn is_waiting(&self, uid: &str) -> bool {
        self.items.get(uid).is_some_and(|item| item.waits_for_dependents())
    }

    fn unlink(&mut self, owner: &Uid, dependent: &Uid) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn note_absent(&mut self, uid: Uid) {
        if self.absent.len() >= VERIFIED_MAX {
            self.absent.clear();
        }
        self.present.remove(&uid);
        self.absent.insert(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uid: &str, owners: &[&str]) -> Item {
        let owners = owners.iter().map(|owner| Owner {
            uid: Arc::from(*owner),
            api_version: Arc::from("v1"),
            kind: Arc::from("K"),
            name: Arc::from(*owner),
            blocks: true,
        });
        Item {
            uid: Arc::from(uid),
            api_version: Arc::from("v1"),
            kind: Arc::from("K"),
            namespace: Arc::from("default"),
            name: Arc::from(uid),
            owners: owners.collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    fn looks(uids: &[Uid]) -> Vec<&str> {
        let mut uids: Vec<&str> = uids.iter().map(|uid| &**uid).collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    }

    #[test]
    fn dependents_go_with_their_last_owner() {
        let mut graph = Graph::new();
        graph.observe(item("a", &[]));
        graph.observe(item("b", &[]));
        assert!(graph.observe(item("one", &["a"])).is_empty());
        graph.observe(item("both", &["a", "b"]));
        assert_eq!(looks(&graph.gone("a")), ["both", "one"]);
        assert_eq!(graph.decide("one"), Decision::Delete(Propagation::Background));
        assert_eq!(graph.decide("both"), Decision::DropOwners(vec![Arc::from("a")]));
    }

    #[test]
    fn an_unknown_owner_is_looked_up_before_it_is_believed_absent() {
        let mut graph = Graph::new();
        assert_eq!(looks(&graph.observe(item("p", &["late"]))), ["p"]);
        let Decision::Verify(owners) = graph.decide("p") else { panic!("must verify") };
        assert_eq!(&*owners[0].uid, "late");
        graph.verified(&owners[0].uid, true);
        assert_eq!(graph.decide("p"), Decision::Nothing);
        graph.verified(&owners[0].uid, false);
        assert_eq!(graph.decide("p"), Decision::Delete(Propagation::Background));
    }

    #[test]
    fn a_foreground_owner_waits_for_what_blocks_it_level_by_level() {
        let mut graph = Graph::new();
        graph.observe(item("d", &[]));
        graph.observe(item("rs", &["d"]));
        graph.observe(item("pod", &["rs"]));
        let waiting = |uid: &str, owners: &[&str]| Item { deleting: true, foreground: true, ..item(uid, owners) };
        assert_eq!(looks(&graph.observe(waiting("d", &[]))), ["d", "rs"]);
        assert_eq!(graph.decide("d"), Decision::Nothing);
        assert_eq!(graph.decide("rs"), Decision::Delete(Propagation::Foreground));
        assert!(looks(&graph.observe(waiting("rs", &["d"]))).contains(&"pod"));
        assert_eq!(graph.decide("rs"), Decision::Nothing);
        assert_eq!(graph.decide("pod"), Decision::Delete(Propagation::Background));
        assert_eq!(looks(&graph.gone("pod")), ["rs"]);
        assert_eq!(graph.decide("rs"), Decision::RemoveForegroundFinalizer);
        assert_eq!(looks(&graph.gone("rs")), ["d"]);
        assert_eq!(graph.decide("d"), Decision::RemoveForegroundFinalizer);
    }

    #[test]
    fn a_dependent_that_does_not_block_holds_nothing_up() {
        let mut graph = Graph::new();
        let mut free = item("free", &["d"]);
        free.owners[0].blocks = false;
        graph.observe(item("d", &[]));
        graph.observe(free);
        graph.observe(Item { deleting: true, foreground: true, ..item("d", &[]) });
        assert_eq!(graph.decide("d"), Decision::RemoveForegroundFinalizer);
        assert_eq!(graph.decide("free"), Decision::Delete(Propagation::Background));
    }

    #[test]
    fn an_orphaning_owner_lets_its_dependents_go_first() {
        let mut graph = Graph::new();
        graph.observe(item("d", &[]));
        graph.observe(item("rs", &["d"]));
        assert_eq!(looks(&graph.observe(Item { deleting: true, orphan: true, ..item("d", &[]) })), ["d"]);
        assert_eq!(graph.decide("d"), Decision::ReleaseDependents(vec![Arc::from("rs")]));
        graph.observe(item("rs", &[]));
        assert_eq!(graph.decide("d"), Decision::ReleaseDependents(Vec::new()));
        assert!(graph.gone("d").is_empty());
        assert_eq!(graph.decide("rs"), Decision::Nothing);
    }

    #[test]
    fn an_object_without_owners_is_nobodys_business() {
        let mut graph = Graph::new();
        assert!(graph.observe(item("a", &[])).is_empty());
        assert_eq!(graph.decide("a"), Decision::Nothing);
        assert_eq!(graph.decide("never-seen"), Decision::Nothing);
    }
}
