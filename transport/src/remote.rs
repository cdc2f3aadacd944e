//! Messages that cross machines: their stable names, and which versions understand each other. Pure.

use serde::{Serialize, de::DeserializeOwned};

/// A message that crosses machines.
///
/// # Versions
/// Nodes of neighbouring builds talk to each other, so a message may be read by a build that is older or newer than the
/// one that wrote it. It is read if the versions from `MIN_VERSION` to `VERSION` that both sides declare overlap as follows:
/// the older `VERSION` of the two must not be below the `MIN_VERSION` of the newer. A change that keeps `MIN_VERSION` may
///
/// - append fields at the end of a struct with `#[serde(default)]`, at any depth and in the reply too. An older build skips
///   them, a newer one fills in what is missing. A struct without fields may get its first ones so;
/// - add variants to an enum that older builds are not sent.
///
/// Everything else (a field removed, moved or changed, a newtype `struct M(u64)` that gets a second field, for that is
/// written as its content) makes another encoding: `MIN_VERSION` becomes `VERSION`, or the message gets another name. A path
/// may serve several versions. What is not understood is [`AskError::UnknownMessage`](crate::AskError::UnknownMessage) to
/// an asker and a tell dropped and counted; the connection does not suffer.
pub trait Remote: Serialize + DeserializeOwned + Send + 'static {
    /// Stable name, unique among the messages of a path; not a Rust path, which changes with refactoring.
    const NAME: &'static str;
    /// Version of the encoding; grows with each change of it.
    const VERSION: u16 = 1;
    /// Oldest version with which this one is interchangeable, in both directions.
    const MIN_VERSION: u16 = Self::VERSION;
    /// What an ask is answered with.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// A message as it stands in an envelope: what its sender wrote, and what reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: u16,
    pub(crate) version_min: u16,
}

impl Envelope<'static> {
    pub(crate) const fn of<M: Remote>() -> Self {
        Self { name: M::NAME, version: M::VERSION, version_min: M::MIN_VERSION }
    }
}

impl Envelope<'_> {
    /// Whether one that declares this can read what the other has written.
    pub(crate) fn reads(&self, other: &Envelope<'_>) -> bool {
        let (older, newer) = if self.version <= other.version { (self, other) } else { (other, self) };
        self.name == other.name && older.version >= newer.version_min
    }
}

/// Of those that are served, the one that reads what has come: the same version, else the newest that can.
pub(crate) fn reader<'a, T>(served: &'a [(Envelope<'static>, T)], written: &Envelope<'_>) -> Option<&'a T> {
    let readers = served.iter().filter(|(message, _)| message.reads(written));
    readers.max_by_key(|(message, _)| (message.version == written.version, message.version)).map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn message(version: u16, version_min: u16) -> Envelope<'static> {
        Envelope { name: "m", version, version_min }
    }

    #[test]
    fn neighbouring_versions_read_each_other_if_the_newer_says_so() {
        assert!(message(1, 1).reads(&message(1, 1)));
        assert!(message(2, 1).reads(&message(1, 1)) && message(1, 1).reads(&message(2, 1)));
        assert!(!message(2, 2).reads(&message(1, 1)) && !message(1, 1).reads(&message(2, 2)));
        assert!(message(4, 2).reads(&message(3, 1)) && !message(4, 2).reads(&message(1, 1)));
        assert!(!message(1, 1).reads(&Envelope { name: "n", version: 1, version_min: 1 }));
    }

    #[test]
    fn of_several_versions_the_same_is_taken_before_the_newest_that_can() {
        let served = [(message(1, 1), 1), (message(3, 3), 3), (message(5, 3), 5)];
        assert_eq!(reader(&served, &message(3, 3)), Some(&3));
        assert_eq!(reader(&served, &message(4, 3)), Some(&5));
        assert_eq!(reader(&served, &message(2, 1)), Some(&1));
        assert_eq!(reader(&served, &message(2, 2)), None);
    }
}
