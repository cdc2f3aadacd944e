//! Groups over several nodes: whoever joins on one is a member on all, and nobody whose node is gone.

mod support;

use std::collections::BTreeMap;

use phalanx_actors::{
    Actor, AskError, ChildSpec, Ctx, Exit, Group, GroupEvent, GroupWatch, Handler, Message, Recipient, Ref, Reply,
    Restart, SendError, Strategy, SupervisorRef, SupervisorSpec, System,
};
use phalanx_transport::{Direction, PeerEvent, Remote, SpreadError, Transport, TransportConfig};
use serde::{Deserialize, Serialize};
use support::{evil::*, *};
use tokio::sync::mpsc;

/// Answered with the name of who did it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Job {
    Do(u64),
    Crash,
    /// Never answers.
    Hold,
    /// Drops its replier.
    Ignore,
}

impl Message for Job {
    type Reply = String;
}

impl Remote for Job {
    const NAME: &'static str = "test/Job";
    type Reply = String;
}

/// Of the same name, and another type.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct OtherJob;

impl Message for OtherJob {
    type Reply = String;
}

impl Remote for OtherJob {
    const NAME: &'static str = "test/Job";
    const VERSION: u16 = 2;
    type Reply = String;
}

/// Of another name.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Errand;

impl Message for Errand {
    type Reply = String;
}

impl Remote for Errand {
    const NAME: &'static str = "test/Errand";
    type Reply = String;
}

struct Worker {
    name: String,
    did: mpsc::UnboundedSender<(String, u64)>,
}

impl Actor for Worker {}

impl Handler<Job> for Worker {
    fn handle(&mut self, job: Job, ctx: &mut Ctx<Self>) -> Reply<String> {
        match job {
            Job::Do(n) => {
                // The test may have ended.
                let _ = self.did.send((self.name.clone(), n));
                self.name.clone().into()
            }
            Job::Crash => panic!("crashed on request"),
            Job::Hold => {
                let (reply, replier) = ctx.defer();
                ctx.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(replier);
                });
                reply
            }
            Job::Ignore => ctx.defer().0,
        }
    }
}

impl Handler<OtherJob> for Worker {
    fn handle(&mut self, _: OtherJob, _: &mut Ctx<Self>) -> Reply<String> {
        self.name.clone().into()
    }
}

impl Handler<Errand> for Worker {
    fn handle(&mut self, _: Errand, _: &mut Ctx<Self>) -> Reply<String> {
        self.name.clone().into()
    }
}

/// A node with a system to start workers in.
struct Place {
    transport: Transport,
    system: System,
    top: SupervisorRef,
    did: mpsc::UnboundedSender<(String, u64)>,
    done: mpsc::UnboundedReceiver<(String, u64)>,
}

impl Place {
    async fn new(config: TransportConfig) -> Self {
        let transport = Transport::start(config).expect("starts");
        let system = System::builder(&**transport.node()).build().expect("starts");
        let top = system.start(SupervisorSpec::new("top", Strategy::Dynamic).unlimited()).await.expect("starts");
        transport.attach(&system).expect("the first");
        let (did, done) = mpsc::unbounded_channel();
        Self { transport, system, top, did, done }
    }

    /// A worker that is in no group.
    async fn worker(&self, id: &str) -> Ref<Worker> {
        let (name, did) = (format!("{id}@{}", self.transport.node()), self.did.clone());
        let worker = ChildSpec::actor(id, move || Worker { name: name.clone(), did: did.clone() });
        self.top.start_child(worker.restart(Restart::Temporary).mailbox(16)).await.expect("starts");
        self.system.lookup(&format!("top/{id}")).expect("runs")
    }

    /// A worker that has joined.
    async fn join(&self, group: &str, id: &str) -> Ref<Worker> {
        let worker = self.worker(id).await;
        self.system.group::<Job>(group).join(&worker).expect("lives");
        worker
    }

    fn spread(&self, group: &str) -> Group<Job> {
        self.transport.spread(group).expect("attached")
    }

    async fn did(&mut self) -> (String, u64) {
        within(self.done.recv()).await.expect("not ended")
    }

    async fn end(self) {
        within(self.transport.close()).await;
        self.system.shutdown().await;
    }
}

fn config(ca: &Ca, node: &str, incarnation: u64) -> TransportConfig {
    let mut config = ca.config(node, incarnation);
    // However long this machine stalls, only what the test does ends a connection.
    config.timings.idle_timeout_ms = PATIENCE.as_millis() as u64;
    config
}

async fn place(ca: &Ca, node: &str) -> Place {
    Place::new(config(ca, node, 1)).await
}

/// Two connected nodes that have spread `g`.
async fn two() -> (Ca, Place, Place) {
    let ca = Ca::new();
    let (a, b) = (place(&ca, "a").await, place(&ca, "b").await);
    connect(&a.transport, &b.transport).await;
    a.spread("g");
    b.spread("g");
    (ca, a, b)
}

async fn has(group: &Group<Job>, members: usize) {
    until(|| group.len() == members).await;
}

/// The names of all members, as they say themselves.
async fn names(group: &Group<Job>) -> Vec<String> {
    let mut names = vec![];
    for member in group.members() {
        names.push(within(member.recipient().ask(Job::Do(0))).await.expect("lives"));
    }
    names.sort();
    names
}

fn elsewhere(group: &Group<Job>) -> Vec<Recipient<Job>> {
    let members = group.members();
    members.iter().filter(|m| m.pid().is_none()).map(|m| m.recipient().clone()).collect()
}

/// What a watch has told: who is in, and how often anyone came and went.
#[derive(Default)]
struct Told {
    members: BTreeMap<u64, bool>,
    joined: usize,
    left: usize,
}

impl Told {
    fn hear(&mut self, event: &GroupEvent<Job>) {
        let id = event.member().id();
        match event {
            GroupEvent::Joined(_) => {
                assert_eq!(self.members.insert(id, true), None, "joined twice");
                self.joined += 1;
            }
            GroupEvent::Left(_) => {
                assert_eq!(self.members.insert(id, false), Some(true), "left twice, or before it came");
                self.left += 1;
            }
        }
    }

    async fn until(&mut self, watch: &mut GroupWatch<Job>, joined: usize, left: usize) {
        while (self.joined, self.left) != (joined, left) {
            let event = within(watch.next()).await;
            self.hear(&event);
        }
        assert!(watch.try_next().is_none());
    }
}

#[tokio::test]
async fn whoever_joins_on_a_node_is_a_member_on_every_node_whatever_came_first() {
    let ca = Ca::new();
    let (a, b, c) = (place(&ca, "a").await, place(&ca, "b").await, place(&ca, "c").await);
    // Joined before it is spread, and spread before they are connected.
    a.join("g", "early").await;
    let in_a = a.spread("g");
    connect(&a.transport, &b.transport).await;
    // Spread and joined when they are.
    let in_b = b.spread("g");
    b.join("g", "late").await;
    has(&in_a, 2).await;
    has(&in_b, 2).await;
    // A third node, which spreads it before it joins and connects last.
    let in_c = c.spread("g");
    c.join("g", "last").await;
    connect(&c.transport, &a.transport).await;
    connect(&c.transport, &b.transport).await;
    for group in [&in_a, &in_b, &in_c] {
        has(group, 3).await;
        assert_eq!(names(group).await, ["early@a", "last@c", "late@b"]);
        assert_eq!(elsewhere(group).len(), 2);
    }
    // To spread it again is to have it.
    assert_eq!(a.spread("g").len(), 3);
    for place in [a, b, c] {
        place.end().await;
    }
}

#[tokio::test]
async fn members_are_told_all_at_once_and_told_and_asked_in_turn_wherever_they_are() {
    let (_ca, mut a, mut b) = two().await;
    a.join("g", "w").await;
    b.join("g", "w").await;
    b.join("g", "v").await;
    let group = a.spread("g");
    has(&group, 3).await;
    assert_eq!(group.tell_all(Job::Do(7)), 3);
    assert_eq!(a.did().await, ("w@a".into(), 7));
    let mut there = [b.did().await, b.did().await];
    there.sort();
    assert_eq!(there, [("v@b".into(), 7), ("w@b".into(), 7)]);
    for n in 0..6 {
        group.tell_one(Job::Do(n)).expect("room");
    }
    let mut turns = vec![a.did().await, a.did().await];
    for _ in 0..4 {
        turns.push(b.did().await);
    }
    let of = |name: &str| turns.iter().filter(|(who, _)| who == name).map(|(_, n)| n % 3).collect::<Vec<_>>();
    for name in ["w@a", "w@b", "v@b"] {
        let of = of(name);
        assert!(of.len() == 2 && of[0] == of[1], "{turns:?}");
    }
    let mut asked = vec![];
    for _ in 0..6 {
        asked.push(within(group.ask_one(Job::Do(9))).await.expect("answered"));
    }
    assert_eq!(asked[..3], asked[3..]);
    asked[..3].sort();
    assert_eq!(asked[..3], ["v@b", "w@a", "w@b"]);
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_member_elsewhere_is_told_in_order_and_a_send_waits_for_room() {
    let (_ca, a, mut b) = two().await;
    b.join("g", "w").await;
    let group = a.spread("g");
    has(&group, 1).await;
    let member = elsewhere(&group).remove(0);
    let sending = tokio::spawn(async move {
        for n in 0..10_000 {
            member.send(Job::Do(n)).await.expect("connected");
        }
    });
    for n in 0..10_000 {
        assert_eq!(b.did().await.1, n);
    }
    within(sending).await.expect("no panic");
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn who_has_no_room_elsewhere_is_passed_over() {
    let ca = Ca::new();
    let mut narrow = config(&ca, "a", 1);
    narrow.limits.outbox_messages = 8;
    let mut short = config(&ca, "b", 1);
    short.limits.stream_window_bytes = 4 << 10;
    let (a, b) = (Place::new(narrow).await, Place::new(short).await);
    connect(&a.transport, &b.transport).await;
    let group = a.spread("g");
    b.spread("g");
    b.join("g", "w").await;
    has(&group, 1).await;
    a.transport.faults().cut("b", Direction::Both);
    let member = elsewhere(&group).remove(0);
    until(|| member.tell(Job::Do(1)) == Err(SendError::Full)).await;
    assert_eq!(group.tell_one(Job::Do(1)), Err(SendError::Full));
    assert_eq!(group.tell_all(Job::Do(1)), 0);
    a.join("g", "w").await;
    for _ in 0..4 {
        group.tell_one(Job::Do(2)).expect("one has room");
    }
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn an_ask_of_a_member_elsewhere_ends_with_its_exit_no_reply_or_the_loss_of_its_node() {
    let (_ca, a, b) = two().await;
    b.join("g", "w").await;
    let group = a.spread("g");
    has(&group, 1).await;
    let member = elsewhere(&group).remove(0);
    assert_eq!(within(member.ask(Job::Ignore)).await, Err(AskError::NoReply));
    match within(member.ask(Job::Crash)).await {
        Err(AskError::Exited(Exit::Panic { message, .. })) => assert_eq!(message, "crashed on request"),
        other => panic!("{other:?}"),
    }
    has(&group, 0).await;
    assert_eq!(within(member.ask(Job::Do(1))).await, Err(AskError::NoProc));
    assert_eq!(within(group.ask_one(Job::Do(1))).await, Err(AskError::NoProc));
    b.join("g", "v").await;
    has(&group, 1).await;
    let member = elsewhere(&group).remove(0);
    let holding = {
        let member = member.clone();
        tokio::spawn(async move { member.ask(Job::Hold).await })
    };
    within(member.ask(Job::Do(1))).await.expect("lives");
    a.transport.remove_peer("b");
    assert_eq!(within(holding).await.expect("no panic"), Err(AskError::Exited(Exit::NoConnection)));
    has(&group, 0).await;
    assert_eq!(member.tell(Job::Do(1)), Err(SendError::Closed));
    assert_eq!(within(member.ask(Job::Do(1))).await, Err(AskError::Exited(Exit::NoConnection)));
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn who_leaves_or_ends_is_gone_everywhere_and_each_watch_is_told_once() {
    let (_ca, a, b) = two().await;
    let (in_a, in_b) = (a.spread("g"), b.spread("g"));
    let mut watches = [in_a.watch().1, in_b.watch().1];
    let mut told = [Told::default(), Told::default()];
    let (w, v) = (b.join("g", "w").await, b.join("g", "v").await);
    // Once more, and it is a member twice.
    in_b.join(&w).expect("lives");
    for (told, watch) in told.iter_mut().zip(&mut watches) {
        told.until(watch, 3, 0).await;
    }
    assert!(in_b.leave(&w.pid()));
    for (told, watch) in told.iter_mut().zip(&mut watches) {
        told.until(watch, 3, 1).await;
    }
    v.kill();
    for (told, watch) in told.iter_mut().zip(&mut watches) {
        told.until(watch, 3, 2).await;
    }
    b.system.shutdown().await;
    for (told, watch) in told.iter_mut().zip(&mut watches) {
        told.until(watch, 3, 3).await;
    }
    assert!(in_a.is_empty() && in_b.is_empty());
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn more_members_than_one_announcement_holds_come_and_go_and_are_each_told_once() {
    let (_ca, a, b) = two().await;
    const MEMBERS: usize = 1_000;
    let in_a = a.spread("g");
    let (_, mut watch) = in_a.watch();
    let mut told = Told::default();
    let (w, v) = (b.worker("w").await, b.worker("v").await);
    let in_b = b.system.group::<Job>("g");
    // There before it is spread over a, and after.
    for _ in 0..MEMBERS {
        in_b.join(&w).expect("lives");
    }
    told.until(&mut watch, MEMBERS, 0).await;
    a.transport.unspread::<Job>("g");
    told.until(&mut watch, MEMBERS, MEMBERS).await;
    a.spread("g");
    told.until(&mut watch, 2 * MEMBERS, MEMBERS).await;
    for _ in 0..MEMBERS {
        in_b.join(&v).expect("lives");
    }
    told.until(&mut watch, 3 * MEMBERS, MEMBERS).await;
    w.kill();
    v.kill();
    told.until(&mut watch, 3 * MEMBERS, 3 * MEMBERS).await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn the_members_of_a_lost_node_have_left_before_the_down_and_come_back_with_the_next_connection() {
    let (_ca, a, b) = two().await;
    b.join("g", "w").await;
    a.join("g", "w").await;
    let (in_a, in_b) = (a.spread("g"), b.spread("g"));
    has(&in_a, 2).await;
    has(&in_b, 2).await;
    let (_, mut watch) = in_a.watch();
    let mut told = Told { members: in_a.members().iter().map(|m| (m.id(), true)).collect(), ..Told::default() };
    for round in 1..=3 {
        let (mut in_events, mut out_events) = (a.transport.events(), b.transport.events());
        a.transport.remove_peer("b");
        event(&mut in_events, |event| matches!(event, PeerEvent::Down { .. })).await;
        assert_eq!((in_a.len(), elsewhere(&in_a).len()), (1, 0));
        event(&mut out_events, |event| matches!(event, PeerEvent::Down { .. })).await;
        assert_eq!((in_b.len(), elsewhere(&in_b).len()), (1, 0));
        told.until(&mut watch, round - 1, round).await;
        connect(&a.transport, &b.transport).await;
        has(&in_a, 2).await;
        has(&in_b, 2).await;
        told.until(&mut watch, round, round).await;
    }
    assert_eq!(names(&in_a).await, ["w@a", "w@b"]);
    assert_eq!(names(&in_b).await, ["w@a", "w@b"]);
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_restarted_node_leaves_no_member_behind_and_its_old_ones_are_not_its_new_ones() {
    let (ca, a, b) = two().await;
    b.join("g", "w").await;
    let group = a.spread("g");
    has(&group, 1).await;
    let (_, mut watch) = group.watch();
    let mut told = Told { members: group.members().iter().map(|m| (m.id(), true)).collect(), ..Told::default() };
    let old = elsewhere(&group).remove(0);
    b.transport.abort();
    b.system.kill();
    let again = Place::new(config(&ca, "b", 2)).await;
    again.spread("g");
    // The first of its node, as the one before was.
    again.join("g", "other").await;
    again.transport.set_peer("a", a.transport.local_addr());
    told.until(&mut watch, 1, 1).await;
    assert_eq!(names(&group).await, ["other@b"]);
    assert_eq!(old.tell(Job::Do(1)), Err(SendError::Closed));
    assert_eq!(within(old.ask(Job::Do(1))).await, Err(AskError::Exited(Exit::NoConnection)));
    a.end().await;
    b.end().await;
    again.end().await;
}

#[tokio::test]
async fn a_group_is_seen_by_those_who_have_spread_it_and_one_of_other_messages_is_another() {
    let (_ca, a, b) = two().await;
    let local = a.system.group::<Job>("local");
    b.join("local", "w").await;
    let errands = a.transport.spread::<Errand>("g").expect("attached");
    b.transport.spread::<Errand>("g").expect("attached").join(&b.worker("v").await).expect("lives");
    b.join("g", "u").await;
    let group = a.spread("g");
    has(&group, 1).await;
    until(|| errands.len() == 1).await;
    assert_eq!(names(&group).await, ["u@b"]);
    assert_eq!(within(errands.ask_one(Errand)).await, Ok("v@b".into()));
    // Spread here, and not there.
    a.spread("local");
    b.join("g", "t").await;
    has(&group, 2).await;
    assert!(local.is_empty());
    // And there.
    b.spread("local");
    has(&local, 1).await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_group_that_is_spread_no_more_is_a_local_one_until_it_is_spread_again() {
    let (_ca, a, b) = two().await;
    a.join("g", "w").await;
    b.join("g", "w").await;
    let (in_a, in_b) = (a.spread("g"), b.spread("g"));
    for round in 0..3 {
        has(&in_a, 2).await;
        has(&in_b, 2).await;
        let member = elsewhere(&in_b).remove(0);
        a.transport.unspread::<Job>("g");
        assert_eq!(in_a.len(), 1);
        has(&in_b, 1).await;
        // Not reached by who still holds it.
        assert_eq!(within(member.ask(Job::Do(1))).await, Err(AskError::NoProc));
        // Nothing that comes or goes meanwhile is missed.
        let other = b.join("g", &format!("v{round}")).await;
        a.spread("g");
        has(&in_a, 3).await;
        other.kill();
        has(&in_a, 2).await;
    }
    a.transport.unspread::<Job>("never spread");
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn what_cannot_be_spread_says_why() {
    let ca = Ca::new();
    let bare = ca.start("bare", 1);
    assert_eq!(bare.spread::<Job>("g").err(), Some(SpreadError::NoSystem));
    close(&[&bare]).await;
    let a = place(&ca, "a").await;
    a.spread("g");
    let other = SpreadError::OtherType { group: "g".into(), message: "test/Job".into() };
    assert_eq!(a.transport.spread::<OtherJob>("g").err(), Some(other));
    let long = "n".repeat(256);
    let too_long = SpreadError::Name { bytes: 256, limit: 255 };
    assert_eq!(a.transport.spread::<Job>(&long).err(), Some(too_long));
    for n in 1..4_096 {
        a.spread(&n.to_string());
    }
    assert_eq!(a.transport.spread::<Job>("one more").err(), Some(SpreadError::TooMany(4_096)));
    // What is spread by another type stays so.
    a.transport.unspread::<OtherJob>("g");
    a.spread("g");
    a.transport.unspread::<Job>("g");
    a.transport.spread::<OtherJob>("g").expect("free again");
    a.transport.close().await;
    assert_eq!(a.transport.spread::<Job>("g").err(), Some(SpreadError::Closed));
    a.end().await;
}

#[tokio::test]
async fn a_node_that_has_more_members_than_the_limit_is_seen_with_so_many_of_them() {
    let ca = Ca::new();
    let mut narrow = config(&ca, "a", 1);
    narrow.limits.group_members = 3;
    let (a, b, c) = (Place::new(narrow).await, place(&ca, "b").await, place(&ca, "c").await);
    connect(&a.transport, &b.transport).await;
    connect(&a.transport, &c.transport).await;
    let (g, h) = (a.spread("g"), a.spread("h"));
    for place in [&b, &c] {
        place.spread("g");
        place.spread("h");
    }
    let first = b.join("g", "0").await;
    b.join("g", "1").await;
    b.join("h", "2").await;
    has(&g, 2).await;
    has(&h, 1).await;
    b.join("h", "3").await;
    b.join("g", "4").await;
    // Each node has the limit for itself.
    c.join("g", "5").await;
    has(&g, 3).await;
    assert_eq!(names(&g).await, ["0@b", "1@b", "5@c"]);
    assert_eq!(h.len(), 1);
    // One that goes makes room for one that comes.
    first.kill();
    has(&g, 2).await;
    b.join("h", "6").await;
    has(&h, 2).await;
    assert!(a.transport.is_connected("b"));
    for place in [a, b, c] {
        place.end().await;
    }
}

#[tokio::test]
async fn a_node_of_an_older_protocol_or_of_another_version_of_the_message_sees_no_members_and_stays_connected() {
    let ca = Ca::new();
    let mut old = config(&ca, "old", 1);
    old.protocol_max = 1;
    let (a, old, other) = (place(&ca, "a").await, Place::new(old).await, place(&ca, "other").await);
    connect(&a.transport, &old.transport).await;
    connect(&a.transport, &other.transport).await;
    let mut events = a.transport.events();
    let (group, in_old) = (a.spread("g"), old.spread("g"));
    let in_other = other.transport.spread::<OtherJob>("g").expect("attached");
    a.join("g", "w").await;
    old.join("g", "w").await;
    in_other.join(&other.worker("w").await).expect("lives");
    // Ordered after all announcements, both ways.
    for (from, to) in [(&a, "old"), (&a, "other"), (&old, "a"), (&other, "a")] {
        within(from.transport.monitor(to, "nothing")).await;
    }
    within(a.transport.monitor("other", "nothing")).await;
    assert_eq!((group.len(), in_old.len(), in_other.len()), (1, 1, 1));
    assert_eq!(events_so_far(&mut events), []);
    for place in [a, old, other] {
        place.end().await;
    }
}

// ---- a peer without manners ----------------------------------------------------------------------------------------------------

const GROUP: &str = "g";
const MESSAGE: &str = "test/Job";

fn members(ids: impl IntoIterator<Item = u64>) -> News<'static> {
    News::Members { group: GROUP, message: MESSAGE, version: 1, version_min: 1, ids: ids.into_iter().collect() }
}

fn joined(ids: impl IntoIterator<Item = u64>) -> News<'static> {
    News::Joined { group: GROUP, message: MESSAGE, ids: ids.into_iter().collect() }
}

fn left(ids: impl IntoIterator<Item = u64>) -> News<'static> {
    News::Left { group: GROUP, message: MESSAGE, ids: ids.into_iter().collect() }
}

#[tokio::test]
async fn announcements_that_lie_repeat_or_cannot_be_read_cost_nothing_but_what_they_say() {
    let ca = Ca::new();
    let mut narrow = config(&ca, "a", 1);
    narrow.limits.group_members = 1_000;
    let a = Place::new(narrow).await;
    let group = a.spread(GROUP);
    let (evil, mut control, _recv) =
        Evil::connect(&ca, &a.transport).await.welcome(&hello(1, 2, CLUSTER, "evil")).await;
    let (_, mut watch) = group.watch();
    let mut told = Told::default();
    let mut say = async |frames: &[Vec<u8>]| {
        within(control.write_all(&frames.concat())).await.expect("still let in");
    };
    // Changes before there is a list; a list of another version; of groups and messages that nobody has spread.
    say(&[
        news(&joined([1, 2])),
        news(&left([1])),
        news(&News::Members { group: GROUP, message: MESSAGE, version: 2, version_min: 2, ids: vec![3] }),
        news(&News::Members { group: "other", message: MESSAGE, version: 1, version_min: 1, ids: vec![4] }),
        news(&News::Spread { group: GROUP, message: "other", version: 1, version_min: 1 }),
        news(&News::Gone { group: GROUP, message: MESSAGE }),
        news(&News::Rumour(7)),
        announcement(b"\xc1garbage"),
        announcement(&[0; 100_000]),
    ])
    .await;
    say(&[news(&members([5, 5, 6])), news(&joined([6, 7, 7])), news(&left([8, 7, 7]))]).await;
    told.until(&mut watch, 3, 1).await;
    // Another list: who is in both stays.
    say(&[news(&members([6, 9]))]).await;
    told.until(&mut watch, 4, 2).await;
    // A flood, in announcements that are long enough to be read and in one that is not.
    say(&[news(&joined(100_000..200_000))]).await;
    let floods: Vec<_> = (0..100).map(|n| news(&joined(n * 1_000..(n + 1) * 1_000))).collect();
    say(&floods).await;
    say(&[news(&left([6]))]).await;
    // 998 beside the two, then one less; the one that makes room comes first in what follows.
    told.until(&mut watch, 1_002, 3).await;
    assert_eq!(group.len(), 999);
    // Members that nobody serves.
    assert_eq!(group.tell_all(Job::Do(1)), 999);
    // To be asked for the list again and again is answered each time, as long as the answers are read.
    let again = [
        news(&News::Gone { group: GROUP, message: MESSAGE }),
        news(&News::Spread { group: GROUP, message: MESSAGE, version: 1, version_min: 1 }),
    ];
    say(&again).await;
    told.until(&mut watch, 1_002, 1_002).await;
    assert!(group.is_empty() && a.transport.is_connected("evil"));
    let stalled: Vec<_> = (0..20_000).flat_map(|_| again.clone()).collect();
    say(&stalled).await;
    say(&[news(&members([1]))]).await;
    has(&group, 1).await;
    evil.conn.close(0u32.into(), b"");
    has(&group, 0).await;
    a.end().await;
}

#[tokio::test]
async fn whoever_asks_for_members_without_end_and_reads_nothing_is_thrown_out() {
    let ca = Ca::new();
    let mut narrow = config(&ca, "a", 1);
    narrow.limits.outbox_bytes = 1 << 10;
    let a = Place::new(narrow).await;
    a.spread(GROUP);
    let mut dial = Dial::new(&ca);
    dial.quic.stream_receive_window(1_024u32.into());
    let evil = dial.dial(&ca, &a.transport).await.expect("the certificate is valid");
    let (evil, mut control, _recv) = evil.welcome(&hello(1, 2, CLUSTER, "evil")).await;
    let again = [
        news(&News::Gone { group: GROUP, message: MESSAGE }),
        news(&News::Spread { group: GROUP, message: MESSAGE, version: 1, version_min: 1 }),
    ];
    // Until it is thrown out.
    while within(control.write_all(&again.concat())).await.is_ok() {}
    assert_eq!(evil.thrown_out().await, "reads nothing of the groups that it has spread");
    a.end().await;
}
