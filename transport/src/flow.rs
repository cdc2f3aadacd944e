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
//!
//! The sender's side knows its paths anyway, so it also numbers the routes of the lane: see [`Letter`].

use std::collections::{HashMap, VecDeque};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::{
    frame::{NAME_BYTES_MAX, ROUTE_HEAD_BYTES},
    remote::Envelope,
};

/// Where windows and credits go.
pub(crate) const FLOW_PATH: &str = "\0flow";

/// Routes to one path that are remembered, the oldest goes: several types of message, several incarnations of an actor.
const ROUTES_OF_PATH_MAX: usize = 16;

/// Paths counted on one link by who tells; tells to further ones go without credit.
const PATHS_MAX: usize = 65_536;

/// Paths counted on one link by who is told; credit for further ones is given at once, message by message.
const TAKEN_PATHS_MAX: usize = 4_096;

/// What a path costs who is told on it, in bytes.
pub(crate) const TAKEN_BYTES_MAX: usize = TAKEN_PATHS_MAX * (NAME_BYTES_MAX + 128);

/// Routes numbered on one link, and the bytes of their texts; what is told on further ones names its path each time. A peer that
/// numbers more breaks the protocol.
pub(crate) const ROUTES_MAX: usize = 8_192;
pub(crate) const ROUTES_BYTES_MAX: usize = 1 << 20;

/// What a route costs its receiver beside its texts, in bytes.
pub(crate) const ROUTE_BYTES: usize = 256;

/// A message on its way, and where to. All but the last two fields are its *route*: mostly the same for many messages, and so
/// it is sent once, under a number, which stands for it from the second message on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Letter<'a> {
    pub(crate) path: &'a str,
    pub(crate) message: Envelope<'static>,
    /// The incarnation that is meant. `None`: whichever there is.
    pub(crate) pid: Option<u64>,
    pub(crate) trace: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

/// How a letter's route is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbered {
    /// In full.
    Not,
    /// By this number, which the receiver has to be told first.
    New(u32),
    Known(u32),
}

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

/// Frames that wait for credit, in one piece of memory.
#[derive(Debug, Default)]
struct Held {
    frames: BytesMut,
    /// Of each the bytes of the frame and of its body.
    sizes: VecDeque<(usize, u64)>,
}

/// The sender's side.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    window: Option<Window>,
    paths: HashMap<Box<str>, Flow>,
    held_messages: usize,
    held_bytes: usize,
    /// Numbered so far, and the bytes of their texts.
    routes: usize,
    routes_bytes: usize,
}

#[derive(Debug, Default)]
struct Flow {
    /// The routes to this path that were told on; few, so a list.
    routes: Vec<Route>,
    /// On its way, or waiting for its handler.
    messages: u32,
    bytes: u64,
    held: Held,
}

#[derive(Debug)]
struct Route {
    message: Envelope<'static>,
    pid: Option<u64>,
    /// `None` for one that was told on once. A number is for what comes again.
    number: Option<u32>,
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

    /// How the route of a letter to this path is written.
    fn number(
        &mut self,
        letter: &Letter<'_>,
        frame_bytes: usize,
        routes: &mut usize,
        routes_bytes: &mut usize,
    ) -> Numbered {
        let known = self.routes.iter_mut().find(|route| route.message == letter.message && route.pid == letter.pid);
        let Some(route) = known else {
            if self.routes.len() >= ROUTES_OF_PATH_MAX {
                self.routes.remove(0);
            }
            self.routes.push(Route { message: letter.message, pid: letter.pid, number: None });
            return Numbered::Not;
        };
        if let Some(number) = route.number {
            return Numbered::Known(number);
        }
        let bytes = letter.path.len() + letter.message.name.len();
        match u32::try_from(*routes) {
            Ok(number)
                if *routes < ROUTES_MAX
                    && *routes_bytes + bytes <= ROUTES_BYTES_MAX
                    && bytes + ROUTE_HEAD_BYTES <= frame_bytes =>
            {
                *routes += 1;
                *routes_bytes += bytes;
                route.number = Some(number);
                Numbered::New(number)
            }
            _ => Numbered::Not,
        }
    }
}

impl Flows {
    /// Whether a letter may go now, and then counts; if not, it is to be held. And how its route is written, to a receiver that
    /// takes numbers, in frames of so many bytes.
    pub(crate) fn admit(&mut self, letter: &Letter<'_>, numbers: Option<usize>) -> (bool, Numbered) {
        let body_bytes = letter.body.len() as u64;
        let Self { window, paths, routes, routes_bytes, .. } = self;
        if let Some(flow) = paths.get_mut(letter.path) {
            let admitted = flow.held.sizes.is_empty() && flow.has_room(*window, body_bytes);
            if admitted {
                flow.take(body_bytes);
            }
            let numbered = numbers.map(|frame_bytes| flow.number(letter, frame_bytes, routes, routes_bytes));
            return (admitted, numbered.unwrap_or(Numbered::Not));
        }
        if paths.len() < PATHS_MAX {
            let flow = paths.entry(letter.path.into()).or_default();
            flow.take(body_bytes);
            if let Some(frame_bytes) = numbers {
                flow.number(letter, frame_bytes, routes, routes_bytes);
            }
        }
        (true, Numbered::Not)
    }

    /// What was admitted was not sent after all.
    pub(crate) fn give_back(&mut self, path: &str, body_bytes: usize) {
        self.settle(path, 1, body_bytes as u64);
    }

    /// Keeps a message that was not admitted, behind those of its path that are kept already.
    pub(crate) fn hold(&mut self, path: &str, frame: &[u8], body_bytes: usize) {
        self.held_messages += 1;
        self.held_bytes += frame.len();
        let held = &mut self.paths.entry(path.into()).or_default().held;
        held.frames.extend_from_slice(frame);
        held.sizes.push_back((frame.len(), body_bytes as u64));
    }

    /// Messages and bytes held for one path.
    pub(crate) fn held_for(&self, path: &str) -> (usize, usize) {
        self.paths.get(path).map_or((0, 0), |flow| (flow.held.sizes.len(), flow.held.frames.len()))
    }

    /// Messages and bytes held.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.held_messages, self.held_bytes)
    }

    /// Takes in what the receiver says; gives what may go now, in order, frame by frame.
    pub(crate) fn hear(&mut self, signal: Signal, mut go: impl FnMut(&[u8])) {
        match signal {
            Signal::Window(window) => {
                // Once: a window that shrank would hold what was promised room.
                self.window.get_or_insert(Window { messages: window.messages.max(1), bytes: window.bytes.max(1) });
            }
            Signal::Credit { path, messages, bytes } => {
                self.settle(&path, messages, bytes);
                self.release(&path, &mut go);
            }
        }
    }

    fn settle(&mut self, path: &str, messages: u32, bytes: u64) {
        if let Some(flow) = self.paths.get_mut(path) {
            flow.messages = flow.messages.saturating_sub(messages);
            flow.bytes = flow.bytes.saturating_sub(bytes);
            // One with a number is kept: the number is not given twice.
            if flow.messages == 0
                && flow.held.sizes.is_empty()
                && flow.routes.iter().all(|route| route.number.is_none())
            {
                self.paths.remove(path);
            }
        }
    }

    fn release(&mut self, path: &str, go: &mut impl FnMut(&[u8])) {
        let Some(flow) = self.paths.get_mut(path) else {
            return;
        };
        while let Some(&(frame_bytes, body_bytes)) = flow.held.sizes.front()
            && flow.has_room(self.window, body_bytes)
        {
            flow.held.sizes.pop_front();
            flow.take(body_bytes);
            self.held_messages -= 1;
            self.held_bytes -= frame_bytes;
            go(&flow.held.frames.split_to(frame_bytes));
        }
        if flow.held.sizes.is_empty() {
            // What a slow receiver made it grow to is not kept.
            flow.held = Held::default();
        }
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

    /// Messages have left the inbox of `path`, for their handler or for nothing; gives the credit that is due.
    pub(crate) fn take(&mut self, path: &str, messages: usize, body_bytes: usize) -> Option<(u32, u64)> {
        let (messages, body_bytes) = (u32::try_from(messages).unwrap_or(u32::MAX), body_bytes as u64);
        let Some(taken) = self.paths.get_mut(path) else {
            let whole = messages >= self.quarter.messages || body_bytes >= self.quarter.bytes;
            if whole || self.paths.len() >= TAKEN_PATHS_MAX {
                return Some((messages, body_bytes));
            }
            self.paths.insert(path.into(), (messages, body_bytes));
            return None;
        };
        taken.0 = taken.0.saturating_add(messages);
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

    static BODY: [u8; 1_000_000] = [0; 1_000_000];
    const MESSAGE: Envelope<'static> = Envelope { name: "m", version: 1, version_min: 1 };

    fn letter(path: &str, body_bytes: usize) -> Letter<'_> {
        Letter { path, message: MESSAGE, pid: None, trace: None, body: &BODY[..body_bytes] }
    }

    fn admit(flows: &mut Flows, path: &str, body_bytes: usize) -> bool {
        flows.admit(&letter(path, body_bytes), Some(usize::MAX)).0
    }

    #[test]
    fn a_route_is_numbered_at_its_second_letter_and_keeps_its_number() {
        let mut flows = Flows::default();
        let mut numbered = |path: &str, pid| flows.admit(&Letter { pid, ..letter(path, 1) }, Some(usize::MAX)).1;
        assert_eq!([numbered("p", None), numbered("p", Some(1))], [Numbered::Not, Numbered::Not]);
        assert_eq!([numbered("p", None), numbered("p", None)], [Numbered::New(0), Numbered::Known(0)]);
        assert_eq!([numbered("q", None), numbered("q", None)], [Numbered::Not, Numbered::New(1)]);
        assert_eq!(numbered("p", Some(1)), Numbered::New(2));
        // All that was told is credited, and the number is not given again.
        flows.hear(Signal::Credit { path: "p".into(), messages: 9, bytes: 9 }, |_| ());
        assert_eq!(flows.admit(&letter("p", 1), Some(usize::MAX)).1, Numbered::Known(0));
        assert_eq!(flows.admit(&letter("p", 1), None).1, Numbered::Not);
    }

    #[test]
    fn no_more_routes_are_numbered_than_a_receiver_keeps() {
        let mut flows = Flows::default();
        let mut last = |path: String| {
            flows.admit(&letter(&path, 1), Some(usize::MAX));
            flows.admit(&letter(&path, 1), Some(usize::MAX)).1
        };
        for path in 0..ROUTES_MAX {
            assert_eq!(last(path.to_string()), Numbered::New(path as u32));
        }
        assert_eq!(last("one more".into()), Numbered::Not);
        let mut flows = Flows::default();
        let long = "p".repeat(ROUTES_BYTES_MAX);
        flows.admit(&letter(&long, 1), Some(usize::MAX));
        assert_eq!(flows.admit(&letter(&long, 1), Some(usize::MAX)).1, Numbered::Not);
    }

    #[test]
    fn a_path_without_credit_is_held_and_another_is_not() {
        let mut flows = Flows::default();
        flows.hear(window(2, 1_000), |_| ());
        assert!(admit(&mut flows, "slow", 1) && admit(&mut flows, "slow", 1) && !admit(&mut flows, "slow", 1));
        flows.hold("slow", b"three", 1);
        flows.hold("slow", b"four", 1);
        assert!(admit(&mut flows, "quick", 1));
        assert_eq!(flows.held(), (2, 9));
        let mut released = vec![];
        flows
            .hear(Signal::Credit { path: "slow".into(), messages: 1, bytes: 1 }, |frame| released.push(frame.to_vec()));
        assert_eq!(released, [b"three"]);
        // Not past what is held.
        assert!(!admit(&mut flows, "slow", 1));
        assert_eq!(flows.held(), (1, 4));
    }

    #[test]
    fn without_a_window_nothing_is_held() {
        let mut flows = Flows::default();
        assert!((0..10_000).all(|_| admit(&mut flows, "p", 1_000_000)));
    }

    #[test]
    fn more_paths_than_are_counted_go_without_credit() {
        let mut flows = Flows::default();
        flows.hear(window(1, 1), |_| ());
        for path in 0..PATHS_MAX + 10 {
            assert!(admit(&mut flows, &path.to_string(), 1));
        }
        assert!(admit(&mut flows, "one more", 1) && admit(&mut flows, "one more", 1));
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
        let told = prop_oneof![8 => 0..400usize, 1 => Just(BODY.len())];
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
                        let admitted = admit(&mut flows, PATHS[path], bytes);
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
                        let mut released = 0;
                        flows.hear(Signal::Window(Window { messages, bytes }), |_| released += 1);
                        prop_assert_eq!(released, 0);
                    }
                    Act::Credit { path, messages, bytes } => {
                        let mut released = vec![];
                        let credit = Signal::Credit { path: PATHS[path].into(), messages, bytes };
                        flows.hear(credit, |frame| released.push(frame.to_vec()));
                        for frame in released {
                            let next = held.get_mut(path).and_then(VecDeque::pop_front);
                            prop_assert_eq!(next.map(|n| n.to_be_bytes().to_vec()), Some(frame));
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
            flows.hear(Signal::Window(limit), |_| ());
            let (mut inbox, mut handled) = (VecDeque::new(), vec![]);
            let mut take = |inbox: &mut VecDeque<usize>, flows: &mut Flows| {
                let Some(n) = inbox.pop_front() else { return };
                handled.push(n);
                if let Some((messages, bytes)) = taken.take("p", 1, sizes[n]) {
                    let credit = Signal::Credit { path: "p".into(), messages, bytes };
                    flows.hear(credit, |frame| inbox.push_back(usize::from(frame[0])));
                }
            };
            let mut takes = takes.iter().cycle();
            for (n, size) in sizes.iter().copied().enumerate() {
                if admit(&mut flows, "p", size) {
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
