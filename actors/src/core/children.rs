//! The children of a supervisor in the order in which they were added.
//!
//! Their keys only grow, and mostly none is missing, so that a child lies where its key says; a search tree was a tenth of each
//! start. Must never move those that stay for each one that goes: the place of one that was removed stays empty until half of all are.

use super::child::Child;
use super::event::Key;

#[derive(Debug)]
pub(crate) struct Children<D> {
    /// In the order of the keys.
    places: Vec<Place<D>>,
    empty: usize,
}

#[derive(Debug)]
struct Place<D> {
    key: Key,
    child: Option<Box<Child<D>>>,
}

impl<D> Children<D> {
    pub(crate) fn new() -> Self {
        Children { places: Vec::new(), empty: 0 }
    }

    /// `key` is greater than all before.
    pub(crate) fn push(&mut self, key: Key, child: Child<D>) {
        debug_assert!(self.places.last().is_none_or(|last| last.key < key));
        self.places.push(Place { key, child: Some(Box::new(child)) });
    }

    #[inline]
    pub(crate) fn get(&self, key: Key) -> Option<&Child<D>> {
        self.places[self.at(key)?].child.as_deref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Child<D>> {
        let at = self.at(key)?;
        self.places[at].child.as_deref_mut()
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Box<Child<D>>> {
        let at = self.at(key)?;
        let child = self.places[at].child.take()?;
        self.empty += 1;
        if self.empty * 2 > self.places.len() {
            self.empty = 0;
            self.places.retain(|place| place.child.is_some());
            // Room for as many more, so that it is not given back and taken again.
            self.places.shrink_to(self.places.len() * 2);
        }
        Some(child)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (Key, &Child<D>)> {
        self.range(0, Key::MAX)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut Child<D>)> {
        self.since_mut(0)
    }

    /// Those with `from <= key < below`.
    pub(crate) fn range(&self, from: Key, below: Key) -> impl DoubleEndedIterator<Item = (Key, &Child<D>)> {
        let (from, below) = (self.first_from(from), self.first_from(below));
        let places = self.places.get(from..below).unwrap_or_default();
        places.iter().filter_map(|place| Some((place.key, place.child.as_deref()?)))
    }

    /// Those with `from <= key`.
    pub(crate) fn since_mut(&mut self, from: Key) -> impl Iterator<Item = (Key, &mut Child<D>)> {
        let from = self.first_from(from);
        self.places[from..].iter_mut().filter_map(|place| Some((place.key, place.child.as_deref_mut()?)))
    }

    /// The place of a key.
    #[inline]
    fn at(&self, key: Key) -> Option<usize> {
        let at = self.guess(key)?;
        if self.places.get(at).is_some_and(|place| place.key == key) {
            return Some(at);
        }
        self.places.binary_search_by_key(&key, |place| place.key).ok()
    }

    /// Where it lies if no key before it is missing.
    #[inline]
    fn guess(&self, key: Key) -> Option<usize> {
        usize::try_from(key.checked_sub(self.places.first()?.key)?).ok()
    }

    /// The first place with this key or a greater one.
    fn first_from(&self, key: Key) -> usize {
        match self.guess(key) {
            None => 0,
            Some(at) if self.places.get(at).is_some_and(|place| place.key == key) => at,
            Some(_) => self.places.partition_point(|place| place.key < key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::child::ChildState;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Whatever is added and removed, it is what a search tree holds.
        #[test]
        fn it_holds_what_a_search_tree_holds(steps in proptest::collection::vec((any::<bool>(), any::<u64>()), 0..200)) {
            let (mut children, mut tree, mut next) = (Children::new(), BTreeMap::new(), 3);
            for (add, choice) in steps {
                if add {
                    children.push(next, Child::new(next, ChildState::Idle));
                    tree.insert(next, next);
                    next += 1 + choice % 2;
                } else {
                    let key = choice % (next + 2);
                    prop_assert_eq!(children.remove(key).map(|child| child.data), tree.remove(&key));
                }
                let (from, below) = (choice % (next + 2), choice / 7 % (next + 2));
                let (from, below) = (from.min(below), from.max(below));
                let found = |child: (Key, &Child<Key>)| (child.0, child.1.data);
                let known = |child: (&Key, &Key)| (*child.0, *child.1);
                prop_assert_eq!(children.get(from).map(|child| child.data), tree.get(&from).copied());
                prop_assert_eq!(children.get_mut(below).map(|child| child.data), tree.get(&below).copied());
                prop_assert!(children.iter().map(found).eq(tree.iter().map(known)));
                prop_assert!(children.range(from, below).rev().map(found).eq(tree.range(from..below).rev().map(known)));
                prop_assert!(children.since_mut(from).map(|(key, _)| key).eq(tree.range(from..).map(|(key, _)| *key)));
                prop_assert!(children.places.len() <= 2 * tree.len());
            }
        }
    }
}
