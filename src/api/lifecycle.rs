//! What the system itself writes into an object when it is created or updated.
use super::{Kind, Object, meta};

/// What the caller chose for a new object (never chosen here: this module is pure).
#[derive(Clone, Debug)]
pub struct NewObject<'a> {
    pub now: jiff::Timestamp,
    pub uid: &'a str,
    /// The namespace of the URL; empty for cluster-scoped kinds.
    pub namespace: &'a str,
}

/// Prepares a decoded object for its creation; run before [`super::set_defaults`] and validation. The name must be set.
pub fn prepare_create(kind: &Kind, obj: &mut Object, new: &NewObject<'_>) {
    meta::set_text(obj, "uid", new.uid);
    meta::set_text(obj, "creationTimestamp", &meta::time(new.now));
    meta::set_text(obj, "namespace", if kind.namespaced { new.namespace } else { "" });
    meta::set_text(obj, "resourceVersion", "");
}

/// Prepares the new state of an object for an update through `subresource` (empty: the object itself).
pub fn prepare_update(_kind: &Kind, subresource: &str, _old: &Object, _new: &mut Object, _now: jiff::Timestamp) {
    let _ = subresource;
}

/// `base` and five characters that make no words: Kubernetes' `generateName`.
pub fn generate_name(base: &str, rng: &mut impl rand::Rng) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const SUFFIX_LEN: usize = 5;
    const NAME_LEN_MAX: usize = 63;
    let mut name: String = base.chars().take(NAME_LEN_MAX - SUFFIX_LEN).collect();
    for _ in 0..SUFFIX_LEN {
        name.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
    name
}
