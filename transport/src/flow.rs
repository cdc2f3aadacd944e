//! Credit for tells, path by path, so that a path which is handled slowly holds up who tells to it, and no other path that
//! shares its lane. Pure; the outbox asks it on the sender's side, the link on the receiver's.
//!
//! ```text
//!  receiver ── Window(messages, bytes) ──► sender     once, when the link is up: what an inbox of a path holds
//!  sender   ── tells ──► receiver                     of each path at most a window that is not yet handed to its handler
//!  receiver ── Credit(path, messages, bytes) ──► sender     for every quarter of a window
//! ```
//!
//! Both go as tells on the control lane to a path that nobody can serve: who does not know of credit drops them, and then
//! neither side counts on it. A lane whose receiver gives no credit stands still while an inbox is full, as `inbox` has it;
//! so does one on which more was told than an inbox holds before the first word of the receiver was heard.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Where windows and credits go.
pub(crate) const FLOW_PATH: &str = "\0flow";

/// Paths counted on one link; tells to further ones go without credit.
const PATHS_MAX: usize = 65_536;

/// What an inbox of one path holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) messages: u32,
    pub(crate) bytes: u64,
}

impl Window {
    pub(crate) fn new(messages: usize, bytes: usize) -> Self {
        Self {
            messages: u32::try_from(messages).unwrap_or(u32::MAX).max(1),
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX).max(1),
        }
    }

    /// Credit is given in pieces of this size.
    fn quarter(self) -> Self {
        Self { messages: (self.messages / 4).max(1), bytes: (self.bytes / 4).max(1) }
    }
}

/// What a receiver says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Signal {
    Window(Window),
    /// So much of what was told to the path has been handed to its handler.
    Credit {
        path: String,
        messages: u32,
        bytes: u64,
    },
}

/// A frame that waits for credit.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) frame: Box<[u8]>,
    body_bytes: u64,
}

/// The sender's side.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    window: Option<Window>,
    paths: HashMap<Box<str>, Flow>,
    held_messages: usize,
    held_bytes: usize,
}

#[derive(Debug, Default)]
struct Flow {
    /// On its way, or waiting for its handler.
    messages: u32,
    bytes: u64,
    held: VecDeque<Held>,
}

impl Flow {
    fn has_room(&self, window: Option<Window>, body_bytes: u64) -> bool {
        let Some(window) = window else {
            return true;
        };
        // Less than a quarter may be uncredited for ever; so a message of any size goes when there is no more than that.
        let fits = self.bytes.saturating_add(body_bytes) <= window.bytes || self.bytes <= window.quarter().bytes;
        self.messages < window.messages && fits
    }

    fn take(&mut self, body_bytes: u64) {
        self.messages = self.messages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(body_bytes);
    }
}

impl Flows {
    /// Whether a message to `path` may go now; it then counts. If not, it is to be held.
    pub(crate) fn admit(&mut self, path: &str, body_bytes: usize) -> bool {
        let body_bytes = body_bytes as u64;
        if let Some(flow) = self.paths.get_mut(path) {
            let admitted = flow.held.is_empty() && flow.has_room(self.window, body_bytes);
            if admitted {
                flow.take(body_bytes);
            }
            return admitted;
        }
        if self.paths.len() < PATHS_MAX {
            self.paths.entry(path.into()).or_default().take(body_bytes);
        }
        true
    }

    /// What was admitted was not sent after all.
    pub(crate) fn give_back(&mut self, path: &str, body_bytes: usize) {
        self.settle(path, 1, body_bytes as u64);
    }

    /// Keeps a message that was not admitted, behind those of its path that are kept already.
    pub(crate) fn hold(&mut self, path: &str, frame: &[u8], body_bytes: usize) {
        self.held_messages += 1;
        self.held_bytes += frame.len();
        let held = Held { frame: frame.into(), body_bytes: body_bytes as u64 };
        self.paths.entry(path.into()).or_default().held.push_back(held);
    }

    /// Messages and bytes held.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.held_messages, self.held_bytes)
    }

    /// Takes in what the receiver says; gives what may go now, in order.
    pub(crate) fn hear(&mut self, signal: Signal) -> Vec<Held> {
        match signal {
            Signal::Window(window) => {
                // Once: a window that shrank would hold what was promised room.
                self.window.get_or_insert(Window { messages: window.messages.max(1), bytes: window.bytes.max(1) });
                vec![]
            }
            Signal::Credit { path, messages, bytes } => {
                self.settle(&path, messages, bytes);
                self.release(&path)
            }
        }
    }

    fn settle(&mut self, path: &str, messages: u32, bytes: u64) {
        if let Some(flow) = self.paths.get_mut(path) {
            flow.messages = flow.messages.saturating_sub(messages);
            flow.bytes = flow.bytes.saturating_sub(bytes);
            if flow.messages == 0 && flow.held.is_empty() {
                self.paths.remove(path);
            }
        }
    }

    fn release(&mut self, path: &str) -> Vec<Held> {
        let mut released = vec![];
        let Some(flow) = self.paths.get_mut(path) else {
            return released;
        };
        while flow.held.front().is_some_and(|next| flow.has_room(self.window, next.body_bytes))
            && let Some(next) = flow.held.pop_front()
        {
            flow.take(next.body_bytes);
            self.held_messages -= 1;
            self.held_bytes -= next.frame.len();
            released.push(next);
        }
        released
    }
}

/// The receiver's side: what has been handed to handlers and not yet been credited.
#[derive(Debug)]
pub(crate) struct Taken {
    quarter: Window,
    paths: HashMap<Box<str>, (u32, u64)>,
}

impl Taken {
    pub(crate) fn new(window: Window) -> Self {
        Self { quarter: window.quarter(), paths: HashMap::new() }
    }

    /// A message has left the inbox of `path`, for its handler or for nothing; gives the credit that is due.
    pub(crate) fn take(&mut self, path: &str, body_bytes: usize) -> Option<(u32, u64)> {
        let body_bytes = body_bytes as u64;
        let Some(taken) = self.paths.get_mut(path) else {
            let whole = self.quarter.messages == 1 || body_bytes >= self.quarter.bytes;
            if whole || self.paths.len() >= PATHS_MAX {
                return Some((1, body_bytes));
            }
            self.paths.insert(path.into(), (1, body_bytes));
            return None;
        };
        taken.0 += 1;
        taken.1 = taken.1.saturating_add(body_bytes);
        if taken.0 < self.quarter.messages && taken.1 < self.quarter.bytes {
            return None;
        }
        self.paths.remove(path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(messages: u32, bytes: u64) -> Signal {
        Signal::Window(Window { messages, bytes })
    }

    #[test]
    fn a_path_without_credit_is_held_and_another_is_not() {
        let mut flows = Flows::default();
        flows.hear(window(2, 1_000));
        assert!(flows.admit("slow", 1) && flows.admit("slow", 1) && !flows.admit("slow", 1));
        flows.hold("slow", b"three", 1);
        flows.hold("slow", b"four", 1);
        assert!(flows.admit("quick", 1));
        assert_eq!(flows.held(), (2, 9));
        let released = flows.hear(Signal::Credit { path: "slow".into(), messages: 1, bytes: 1 });
        assert_eq!(released.iter().map(|held| &*held.frame).collect::<Vec<_>>(), [b"three"]);
        // Not past what is held.
        assert!(!flows.admit("slow", 1));
        assert_eq!(flows.held(), (1, 4));
    }

    #[test]
    fn without_a_window_nothing_is_held() {
        let mut flows = Flows::default();
        assert!((0..10_000).all(|_| flows.admit("p", 1_000_000)));
    }

    #[test]
    fn more_paths_than_are_counted_go_without_credit() {
        let mut flows = Flows::default();
        flows.hear(window(1, 1));
        for path in 0..PATHS_MAX + 10 {
            assert!(flows.admit(&path.to_string(), 1));
        }
        assert!(flows.admit("one more", 1) && flows.admit("one more", 1));
        assert_eq!(flows.paths.len(), PATHS_MAX);
    }

    /// What a sender does and a peer says, true or not.
    #[derive(Clone, Debug)]
    enum Act {
        Tell { path: usize, bytes: usize },
        Window(u32, u64),
        Credit { path: usize, messages: u32, bytes: u64 },
    }

    const PATHS: [&str; 4] = ["p", "q", "r", "never told"];

    fn act() -> impl Strategy<Value = Act> {
        let messages = || prop_oneof![Just(0), 1..4u32, Just(u32::MAX), any::<u32>()];
        let bytes = || prop_oneof![Just(0), 1..400u64, Just(u64::MAX), any::<u64>()];
        let told = prop_oneof![8 => 0..400usize, 1 => Just(usize::MAX)];
        prop_oneof![
            4 => (0..3usize, told).prop_map(|(path, bytes)| Act::Tell { path, bytes }),
            1 => (messages(), bytes()).prop_map(|(messages, bytes)| Act::Window(messages, bytes)),
            4 => (0..PATHS.len(), messages(), bytes()).prop_map(|(path, messages, bytes)| Act::Credit { path, messages, bytes }),
        ]
    }

    proptest! {
        /// Whatever a peer says: what is held goes in its order, once, and only when its own path is credited; no more is
        /// counted than was told, and no number is too large.
        #[test]
        fn a_peer_that_lies_about_its_credit_gets_each_path_in_order_and_nothing_twice(
            acts in prop::collection::vec(act(), 1..200),
        ) {
            let mut flows = Flows::default();
            let mut held: [VecDeque<u32>; 3] = Default::default();
            for (n, act) in (0u32..).zip(acts) {
                match act {
                    Act::Tell { path, bytes } => {
                        let admitted = flows.admit(PATHS[path], bytes);
                        // Never past one that is held.
                        prop_assert!(!admitted || held[path].is_empty());
                        if !admitted {
                            flows.hold(PATHS[path], &n.to_be_bytes(), bytes);
                            held[path].push_back(n);
                        } else if n % 5 == 0 {
                            flows.give_back(PATHS[path], bytes);
                        }
                    }
                    Act::Window(messages, bytes) => {
                        let released = flows.hear(Signal::Window(Window { messages, bytes }));
                        prop_assert!(released.is_empty());
                    }
                    Act::Credit { path, messages, bytes } => {
                        for released in flows.hear(Signal::Credit { path: PATHS[path].into(), messages, bytes }) {
                            let next = held.get_mut(path).and_then(VecDeque::pop_front);
                            prop_assert_eq!(next.map(|n| n.to_be_bytes().to_vec()), Some(released.frame.to_vec()));
                        }
                    }
                }
                let waiting: usize = held.iter().map(VecDeque::len).sum();
                prop_assert_eq!(flows.held(), (waiting, 4 * waiting));
                prop_assert!(flows.paths.len() <= 3);
            }
        }

        /// Whatever the sizes: never more than a window waits at the receiver, everything arrives, in order.
        #[test]
        fn all_arrives_in_order_and_an_inbox_never_overflows(
            messages in 1..20u32,
            bytes in 1..500u64,
            sizes in prop::collection::vec(0..400usize, 1..200),
            takes in prop::collection::vec(any::<bool>(), 1..200),
        ) {
            let limit = Window { messages, bytes };
            let (mut flows, mut taken) = (Flows::default(), Taken::new(limit));
            flows.hear(Signal::Window(limit));
            let (mut inbox, mut handled) = (VecDeque::new(), vec![]);
            let mut take = |inbox: &mut VecDeque<usize>, flows: &mut Flows| {
                let Some(n) = inbox.pop_front() else { return };
                handled.push(n);
                if let Some((messages, bytes)) = taken.take("p", sizes[n]) {
                    for held in flows.hear(Signal::Credit { path: "p".into(), messages, bytes }) {
                        inbox.push_back(usize::from(held.frame[0]));
                    }
                }
            };
            let mut takes = takes.iter().cycle();
            for (n, size) in sizes.iter().copied().enumerate() {
                if flows.admit("p", size) {
                    inbox.push_back(n);
                } else {
                    flows.hold("p", &[n as u8], size);
                }
                prop_assert!(inbox.len() <= messages as usize);
                if *takes.next().expect("endless") {
                    take(&mut inbox, &mut flows);
                }
            }
            while !inbox.is_empty() {
                take(&mut inbox, &mut flows);
            }
            prop_assert_eq!(handled, (0..sizes.len()).collect::<Vec<_>>());
            prop_assert_eq!(flows.held(), (0, 0));
        }
    }
}
