//! Why a pod fits on no node, in Kubernetes' words.
//!
//! Pure. The text goes into the FailedScheduling event and the PodScheduled condition; the set of causes tells the queue
//! which changes of the cluster are worth another try.

use std::collections::HashMap;
use std::fmt;

/// A set of causes, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes(u16);

impl Causes {
    pub const NONE: Causes = Causes(0);
    /// Requests that do not fit beside what runs there.
    pub const RESOURCES: Causes = Causes(1);
    pub const PORTS: Causes = Causes(1 << 1);
    /// Node selector and required node affinity.
    pub const AFFINITY: Causes = Causes(1 << 2);
    pub const TAINT: Causes = Causes(1 << 3);
    pub const UNSCHEDULABLE: Causes = Causes(1 << 4);
    pub const NOT_READY: Causes = Causes(1 << 5);
    pub const ALL: Causes = Causes((1 << 6) - 1);

    #[must_use]
    pub fn with(self, other: Causes) -> Causes {
        Causes(self.0 | other.0)
    }

    pub fn meets(self, other: Causes) -> bool {
        self.0 & other.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The outcome for a pod that fits nowhere. `Display` is the message that users know:
/// `0/5 nodes are available: 2 Insufficient cpu, 3 node(s) had untolerated taint {k: v}.`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    /// How many nodes were refused for which reason. One node may count for several resources.
    pub reasons: HashMap<String, usize>,
    pub causes: Causes,
}

impl Unschedulable {
    pub(super) fn count(&mut self, cause: Causes, reason: &str) {
        self.causes = self.causes.with(cause);
        match self.reasons.get_mut(reason) {
            Some(count) => *count += 1,
            None => {
                self.reasons.insert(reason.to_owned(), 1);
            }
        }
    }
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut parts: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        parts.sort_unstable();
        write!(f, "0/{} nodes are available: {}.", self.nodes, parts.join(", "))
    }
}
