//! The hello's rules one by one, and the protocol as a whole: two nodes that dial each other, with every message delivered
//! at any time, end on one connection.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::frame::PROTOCOL_VERSION;

fn me(node: &str) -> Me {
    Me { cluster: "c1".into(), node: node.into(), incarnation: 5, protocol_max: PROTOCOL_VERSION }
}

fn hello_of(node: &str) -> Hello {
    me(node).hello(1, View::default())
}

fn judge(me: &Me, hello: &Hello, view: View) -> Verdict {
    me.judge_hello(&hello.node, hello, view)
}

#[test]
fn of_two_dials_at_once_exactly_one_survives() {
    let both_sent = View { hello_sent: true, ..View::default() };
    assert_eq!(judge(&me("a"), &hello_of("b"), both_sent), Verdict::Duplicate);
    assert!(matches!(judge(&me("b"), &hello_of("a"), both_sent), Verdict::Accept(_)));
}

#[test]
fn without_a_hello_of_our_own_every_dial_is_accepted() {
    assert!(matches!(judge(&me("a"), &hello_of("b"), View::default()), Verdict::Accept(_)));
}

#[test]
fn a_hello_replaces_a_link_only_if_its_sender_has_had_that_link() {
    let a = me("a");
    let up = |dialed_by_us, dial| View { newest: Some(5), up: Some(Origin { dialed_by_us, dial }), ..View::default() };
    let hello = |dial, accepted| Hello { dial, accepted, ..hello_of("b") };
    let accepted = |verdict| matches!(verdict, Verdict::Accept(_));
    // We dialed: it must have accepted that dial, of this incarnation of ours.
    assert!(!accepted(judge(&a, &hello(9, (5, 2)), up(true, 3))));
    assert!(!accepted(judge(&a, &hello(9, (4, 7)), up(true, 3))));
    assert!(accepted(judge(&a, &hello(9, (5, 3)), up(true, 3))));
    // It dialed: a later dial of its own.
    assert!(!accepted(judge(&a, &hello(3, (0, 0)), up(false, 3))));
    assert!(accepted(judge(&a, &hello(4, (0, 0)), up(false, 3))));
    // A newer boot of it replaces whatever is up.
    let newer = Hello { incarnation: 6, ..hello(1, (0, 0)) };
    assert!(accepted(judge(&a, &newer, up(true, 3))));
}

#[test]
fn an_older_incarnation_is_stale_and_an_equal_or_newer_one_is_not() {
    let seen = |newest| View { newest: Some(newest), ..View::default() };
    let judge = |newest| judge(&me("a"), &hello_of("b"), seen(newest));
    assert_eq!(judge(6), Verdict::Refuse(Refusal::StaleIncarnation { theirs: 5, newest: 6 }));
    assert!(matches!(judge(5), Verdict::Accept(_)));
    assert!(matches!(judge(4), Verdict::Accept(_)));
}

#[test]
fn a_name_that_is_not_in_the_certificate_is_refused() {
    let verdict = me("a").judge_hello("b", &hello_of("c"), View::default());
    assert!(matches!(verdict, Verdict::Refuse(Refusal::Name { .. })));
}

#[test]
fn our_own_name_is_refused() {
    let verdict = judge(&me("a"), &hello_of("a"), View::default());
    assert!(matches!(verdict, Verdict::Refuse(Refusal::Name { .. })));
}

#[test]
fn another_cluster_is_refused() {
    let hello = Hello { cluster: "c2".into(), ..hello_of("b") };
    let verdict = judge(&me("a"), &hello, View::default());
    assert!(matches!(verdict, Verdict::Refuse(Refusal::Cluster { .. })));
}

#[test]
fn versions_must_overlap() {
    let hello = |min, max| Hello { version_min: min, version_max: max, ..hello_of("b") };
    let newer_only = judge(&me("a"), &hello(PROTOCOL_VERSION + 1, 9), View::default());
    assert!(matches!(newer_only, Verdict::Refuse(Refusal::Version { .. })));
    for (theirs, agreed) in [(1, 1), (PROTOCOL_VERSION, PROTOCOL_VERSION), (9, PROTOCOL_VERSION)] {
        let verdict = judge(&me("a"), &hello(1, theirs), View::default());
        assert!(matches!(verdict, Verdict::Accept(Welcome { version, .. }) if version == agreed));
    }
    let held_back = Me { protocol_max: 1, ..me("a") };
    assert_eq!(held_back.hello(1, View::default()).version_max, 1);
    let verdict = judge(&held_back, &hello(1, 2), View::default());
    assert!(matches!(verdict, Verdict::Accept(Welcome { version: 1, .. })));
    let welcome = Welcome { version: PROTOCOL_VERSION + 1, cluster: "c1".into(), node: "b".into(), incarnation: 5 };
    assert!(matches!(me("a").judge_welcome("b", &welcome, View::default()), Err(Refusal::Version { .. })));
}

/// A connection on its way from one node to the other.
#[derive(Debug)]
struct Conn {
    dialer: usize,
    dial: u64,
    /// In order, each way: to the dialer, to the acceptor.
    to_dialer: VecDeque<Word>,
    to_acceptor: VecDeque<Word>,
}

#[derive(Debug)]
enum Word {
    Hello(Hello),
    Welcome,
    Close,
}

/// What the endpoint and the peer's slot keep, one for each of the two nodes.
#[derive(Debug)]
struct Side {
    me: Me,
    view: View,
    link: Option<usize>,
    dials: u64,
    dialing: Option<usize>,
    ups: usize,
}

/// Two nodes and the network between them.
struct Pair {
    sides: [Side; 2],
    conns: Vec<Conn>,
}

type Happening = Box<dyn FnOnce(&mut Pair)>;

impl Pair {
    fn new() -> Self {
        let side = |node| Side { me: me(node), view: View::default(), link: None, dials: 0, dialing: None, ups: 0 };
        Self { sides: [side("a"), side("b")], conns: vec![] }
    }

    /// Something that can happen now, chosen by `choice`; false when nothing can.
    fn step(&mut self, choice: usize) -> bool {
        let mut possible: Vec<Happening> = vec![];
        for who in 0..2 {
            let side = &self.sides[who];
            if side.link.is_none() && side.dialing.is_none() {
                possible.push(Box::new(move |pair| pair.dial(who)));
            }
            if side.dialing.is_some_and(|conn| self.conns[conn].dial == 0) {
                possible.push(Box::new(move |pair| pair.say_hello(who)));
            }
        }
        for (at, conn) in self.conns.iter().enumerate() {
            let (dialer, acceptor) = (conn.dialer, 1 - conn.dialer);
            if !conn.to_acceptor.is_empty() {
                possible.push(Box::new(move |pair| {
                    let word = pair.conns[at].to_acceptor.pop_front();
                    pair.hear(acceptor, at, word.expect("not empty"));
                }));
            }
            if !conn.to_dialer.is_empty() {
                possible.push(Box::new(move |pair| {
                    let word = pair.conns[at].to_dialer.pop_front();
                    pair.hear(dialer, at, word.expect("not empty"));
                }));
            }
        }
        if possible.is_empty() {
            return false;
        }
        let chosen = choice % possible.len();
        possible.swap_remove(chosen)(self);
        true
    }

    /// The handshake begins; its end, `say_hello`, comes at any time later.
    fn dial(&mut self, who: usize) {
        let conn = Conn { dialer: who, dial: 0, to_dialer: VecDeque::new(), to_acceptor: VecDeque::new() };
        self.conns.push(conn);
        self.sides[who].dialing = Some(self.conns.len() - 1);
    }

    fn say_hello(&mut self, who: usize) {
        let side = &mut self.sides[who];
        let Some(conn) = side.dialing else { return };
        if side.link.is_some() {
            side.dialing = None;
            return;
        }
        side.dials += 1;
        side.view.hello_sent = true;
        self.conns[conn].dial = side.dials;
        let hello = side.me.hello(side.dials, side.view);
        self.conns[conn].to_acceptor.push_back(Word::Hello(hello));
    }

    fn hear(&mut self, who: usize, conn: usize, word: Word) {
        let other = self.sides[1 - who].me.node.clone();
        match word {
            Word::Hello(hello) => {
                let side = &mut self.sides[who];
                match side.me.judge_hello(&other, &hello, side.view) {
                    Verdict::Accept(_) => {
                        side.view.accepted = (hello.incarnation, hello.dial);
                        self.conns[conn].to_dialer.push_back(Word::Welcome);
                        self.install(who, conn, Origin { dialed_by_us: false, dial: hello.dial });
                    }
                    Verdict::Duplicate => self.conns[conn].to_dialer.push_back(Word::Close),
                    Verdict::Refuse(refusal) => panic!("{refusal}"),
                }
            }
            Word::Welcome => {
                let side = &mut self.sides[who];
                let current = side.dialing == Some(conn) && side.view.hello_sent;
                if side.dialing == Some(conn) {
                    side.dialing = None;
                }
                if current {
                    let dial = self.conns[conn].dial;
                    self.install(who, conn, Origin { dialed_by_us: true, dial });
                } else {
                    self.conns[conn].to_acceptor.push_back(Word::Close);
                }
            }
            Word::Close => {
                let side = &mut self.sides[who];
                if side.dialing == Some(conn) {
                    side.dialing = None;
                    side.view.hello_sent = false;
                }
                if side.link == Some(conn) {
                    side.link = None;
                    side.view.up = None;
                }
            }
        }
    }

    fn install(&mut self, who: usize, conn: usize, origin: Origin) {
        if let Some(old) = self.sides[who].link {
            let to_peer = &mut self.conns[old];
            if to_peer.dialer == who { &mut to_peer.to_acceptor } else { &mut to_peer.to_dialer }
                .push_back(Word::Close);
        }
        let side = &mut self.sides[who];
        side.link = Some(conn);
        side.ups += 1;
        side.view.newest = Some(5);
        side.view.hello_sent = false;
        side.view.up = Some(origin);
    }

    /// The connection that both have is lost; both learn of it, whenever they do.
    fn lose(&mut self, conn: usize) {
        self.conns[conn].to_dialer.push_back(Word::Close);
        self.conns[conn].to_acceptor.push_back(Word::Close);
    }

    fn settled(&self) -> bool {
        let [a, b] = &self.sides;
        a.link.is_some() && a.link == b.link
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn two_nodes_that_dial_each_other_settle_on_one_connection_and_keep_it(
        choices in prop::collection::vec(any::<usize>(), 200),
        losses in 0usize..3,
    ) {
        let mut pair = Pair::new();
        let mut choices = choices.into_iter().chain((0..).map(|i| i * 7));
        for round in 0..=losses {
            let mut steps = 0;
            while pair.step(choices.next().expect("endless")) {
                steps += 1;
                prop_assert!(steps < 500, "does not settle: {:?}", pair.sides);
            }
            prop_assert!(pair.settled(), "{:?}", pair.sides);
            // Up once a round, on each side: no connection came up only to be replaced.
            prop_assert_eq!((pair.sides[0].ups, pair.sides[1].ups), (round + 1, round + 1));
            if round < losses {
                pair.lose(pair.sides[0].link.expect("settled"));
            }
        }
    }
}
