//! Process groups over several nodes (OTP `pg`): tells other nodes which actors of this node's system are in a group that both have
//! [spread](Transport::spread), and enters theirs into ours. A node's view is its own members and what each connected peer has last
//! announced; nothing of a peer outlives its connection.
//!
//! ```text
//!  a link comes up, or a group is spread ── Spread ──► peer           I have this group
//!  peer has it too, and has not told yet ── Members ─► back           all of mine; from now on each change
//!  GroupWatch ── pump ── Joined, Left ───────────────► told peers ──► Group::enter, Membership dropped
//!  the link is lost, or Gone ────────────────────────► all memberships of that peer dropped
//!  Recipient of a member elsewhere ── tell, ask ─────► "@member/…" there ──► Recipient of the actor
//! ```
//!
//! Announcements go as tells on the control lane to a path that nobody can serve, and are taken where they are read: in order, and none is
//! dropped. Who does not know of groups drops them. Each is written down and sent beneath one lock, so that no change is between a list and
//! what follows it.
//!
//! Must never call out while locked, but into groups; and never wait. Called by the link that reads an announcement, by the peer's slot
//! when a link comes and goes, and by whoever spreads a group.

use std::{
    any::TypeId,
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use phalanx_actors::{
    AskError as LocalAskError, Exit, Group, GroupEvent, GroupWatch, Member, Membership, Message, Receive, Recipient,
    Rejected, SendError as LocalSendError,
};
use serde::{Deserialize, Serialize};
use tokio::{task::AbortHandle, time::Instant};

use crate::{
    Transport,
    ask::{DEADLINE_MAX, Request},
    decode,
    endpoint::Node,
    error::SpreadError,
    event::{LossReason, NodeName, Peer},
    frame::{Kind, Tell, encode},
    link::{CloseCode, Link},
    outbox::PushError,
    receive::{local_ask_error, local_send_error},
    refs::{self, Reader},
    registry::{Failure, Outcome, Serve},
    remote::{Envelope, Remote},
    shared::answered,
    tells::{Rest, Teller},
};

/// Where announcements go; no path of a tree reads so.
pub(crate) const GROUPS_PATH: &str = "@groups";

/// Groups that a node may spread; a further one is refused.
const SPREAD_MAX: usize = 4_096;

/// Longest name of a group that is spread, in bytes; a longer one is refused.
const NAME_BYTES_MAX: usize = 255;

/// Members in one announcement; further ones follow in the next. So many are entered while a lane waits.
const IDS_MAX: usize = 256;

/// Longest announcement that is read, in bytes: four times the longest that is written. A longer one is dropped.
const NEWS_BYTES_MAX: usize = 16 << 10;

/// What one node announces to another of one group. Members are numbers that their node gives, each once in a boot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum News<'a> {
    /// The sender has spread the group and knows nobody of it here.
    Spread { group: &'a str, message: &'a str, version: u16, version_min: u16 },
    /// All members of the sender's, as far as no `Joined` follows. Members of before are none any more.
    Members { group: &'a str, message: &'a str, version: u16, version_min: u16, ids: Vec<u64> },
    /// Further members.
    Joined { group: &'a str, message: &'a str, ids: Vec<u64> },
    /// Members no more.
    Left { group: &'a str, message: &'a str, ids: Vec<u64> },
    /// The sender does not spread the group any more.
    Gone { group: &'a str, message: &'a str },
}

/// A group's name and the name of its messages.
type Key = (Arc<str>, Arc<str>);

impl News<'_> {
    fn key(&self) -> Key {
        match *self {
            News::Spread { group, message, .. }
            | News::Members { group, message, .. }
            | News::Joined { group, message, .. }
            | News::Left { group, message, .. }
            | News::Gone { group, message } => (group.into(), message.into()),
        }
    }
}

/// What a node has spread, and what its peers have announced.
pub(crate) struct Groups {
    state: Mutex<State>,
    next_member: AtomicU64,
    members_max: usize,
    frame_bytes: usize,
}

#[derive(Default)]
struct State {
    spread: BTreeMap<Key, Spread>,
    /// Those that are connected and may know of groups. In the order of their names, as everything that is sent.
    partners: BTreeMap<NodeName, Partner>,
    /// How often a group was spread.
    serial: u64,
    closed: bool,
}

/// A group that this node has spread.
struct Spread {
    door: Arc<dyn Door>,
    message: Envelope<'static>,
    type_id: TypeId,
    /// Tells it from the next of the same name.
    serial: u64,
    /// Members of this node, as announced.
    own: BTreeSet<u64>,
    _pump: Pump,
}

/// The task that announces changes; it ends with this.
struct Pump(AbortHandle);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where members of other nodes enter, whatever the type of the group's messages.
trait Door: Send + Sync {
    fn enter(&self, link: &Arc<Link>, id: u64) -> Membership;
}

/// A connected peer.
struct Partner {
    link: Weak<Link>,
    /// Groups of which it knows our members.
    told: BTreeSet<Key>,
    /// Its members, of the groups of which it has told them.
    heard: BTreeMap<Key, BTreeMap<u64, Membership>>,
    /// All of them.
    members: usize,
    /// It has announced more than are taken, and the log says so.
    is_over: bool,
    /// It has a group for another version of its messages, and the log says so.
    is_other: bool,
}

impl Groups {
    pub(crate) fn new(members_max: usize, frame_bytes: usize) -> Self {
        Self { state: Mutex::default(), next_member: AtomicU64::new(1), members_max, frame_bytes }
    }

    /// The link is up: asks its peer for the members of each group.
    pub(crate) fn greet(&self, link: &Arc<Link>) {
        if !link.has_references() {
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let partner = Partner {
            link: Arc::downgrade(link),
            told: BTreeSet::new(),
            heard: BTreeMap::new(),
            members: 0,
            is_over: false,
            is_other: false,
        };
        for (key, spread) in &state.spread {
            partner.say(self.frame(&spread.asks(key)).as_deref());
        }
        state.partners.insert(link.peer.node.clone(), partner);
    }

    /// The link is lost: its peer's members have left when this returns.
    pub(crate) fn lost(&self, link: &Arc<Link>) {
        let mut state = self.state.lock();
        let partner = match state.partners.get(&link.peer.node) {
            Some(partner) if partner.is(link) => state.partners.remove(&link.peer.node),
            _ => None,
        };
        drop(state);
        // Nothing can be entered for this link any more.
        drop(partner);
    }

    /// Takes an announcement that came over a link.
    pub(crate) fn hear(&self, link: &Arc<Link>, body: &[u8]) {
        let node = &link.peer.node;
        if body.len() > NEWS_BYTES_MAX {
            let bytes = body.len();
            return tracing::debug!(%node, "dropped an announcement of groups of {bytes} bytes");
        }
        let news: News<'_> = match decode::from_slice(body) {
            Ok(news) => news,
            // Of a kind that this version does not know, it is no error.
            Err(error) => return tracing::debug!(%node, "dropped an announcement of groups: {error}"),
        };
        let key = news.key();
        let mut state = self.state.lock();
        let State { spread, partners, .. } = &mut *state;
        // What is still read of a link that is lost counts no more; and who has not spread the group remembers nothing of it.
        let (Some(partner), Some(spread)) =
            (partners.get_mut(node).filter(|partner| partner.is(link)), spread.get(&key))
        else {
            return;
        };
        match news {
            News::Spread { version, version_min, .. } if spread.reads(version, version_min) => {
                self.tell(&key, spread, partner);
            }
            News::Members { version, version_min, ids, .. } if spread.reads(version, version_min) => {
                self.tell(&key, spread, partner);
                partner.keep(&key, &ids);
                partner.enter(link, &key, spread, ids, self.members_max);
            }
            News::Spread { version, .. } | News::Members { version, .. } => {
                if !std::mem::replace(&mut partner.is_other, true) {
                    let (group, message, ours) = (&key.0, &key.1, spread.message.version);
                    tracing::warn!(%node, "group {group} is of {message} version {version} on {node}, here {ours}: neither sees the other's members");
                }
            }
            News::Joined { ids, .. } => partner.enter(link, &key, spread, ids, self.members_max),
            News::Left { ids, .. } => partner.leave(&key, &ids),
            News::Gone { .. } => {
                partner.told.remove(&key);
                partner.forget(&key);
            }
        }
    }

    /// Tells a peer our members of a group, if it does not know them.
    fn tell(&self, key: &Key, spread: &Spread, partner: &mut Partner) {
        if !partner.told.insert(key.clone()) {
            return;
        }
        let (group, message) = (&*key.0, &*key.1);
        let own: Vec<u64> = spread.own.iter().copied().collect();
        let mut rest = own.chunks(IDS_MAX);
        let Envelope { version, version_min, .. } = spread.message;
        let ids = rest.next().unwrap_or_default().to_vec();
        partner.say(self.frame(&News::Members { group, message, version, version_min, ids }).as_deref());
        for ids in rest {
            partner.say(self.frame(&News::Joined { group, message, ids: ids.to_vec() }).as_deref());
        }
    }

    /// Members of this node have come and gone; no more than [`IDS_MAX`] of each. False if the group is not spread any more.
    fn changed(&self, key: &Key, serial: u64, joined: Vec<u64>, left: Vec<u64>) -> bool {
        let mut state = self.state.lock();
        let State { spread, partners, .. } = &mut *state;
        let Some(spread) = spread.get_mut(key).filter(|spread| spread.serial == serial) else {
            return false;
        };
        spread.own.extend(&joined);
        for number in &left {
            spread.own.remove(number);
        }
        let (group, message) = (&*key.0, &*key.1);
        let joined = (!joined.is_empty()).then(|| self.frame(&News::Joined { group, message, ids: joined })).flatten();
        let left = (!left.is_empty()).then(|| self.frame(&News::Left { group, message, ids: left })).flatten();
        for partner in partners.values().filter(|partner| partner.told.contains(key)) {
            partner.say(joined.as_deref());
            partner.say(left.as_deref());
        }
        true
    }

    /// Spreads a group; false if it is spread already.
    fn add(&self, key: &Key, type_id: TypeId, spread: impl FnOnce(u64) -> Spread) -> Result<bool, SpreadError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(SpreadError::Closed);
        }
        if let Some(known) = state.spread.get(key) {
            let other = SpreadError::OtherType { group: key.0.to_string(), message: key.1.to_string() };
            return if known.type_id == type_id { Ok(false) } else { Err(other) };
        }
        if state.spread.len() >= SPREAD_MAX {
            return Err(SpreadError::TooMany(SPREAD_MAX));
        }
        state.serial += 1;
        let spread = spread(state.serial);
        let asks = self.frame(&spread.asks(key));
        for partner in state.partners.values() {
            partner.say(asks.as_deref());
        }
        state.spread.insert(key.clone(), spread);
        Ok(true)
    }

    /// Spreads a group no more: its members elsewhere leave here, and ours there.
    fn remove(&self, key: &Key, type_id: TypeId) -> Option<Spread> {
        let mut state = self.state.lock();
        let State { spread, partners, .. } = &mut *state;
        if spread.get(key)?.type_id != type_id {
            return None;
        }
        let (group, message) = (&*key.0, &*key.1);
        let frame = self.frame(&News::Gone { group, message });
        for partner in partners.values_mut() {
            partner.told.remove(key);
            partner.forget(key);
            partner.say(frame.as_deref());
        }
        spread.remove(key)
    }

    /// Forgets everything, and takes nothing new.
    pub(crate) fn clear(&self) {
        // Dropped outside of the lock, with whatever members own.
        let _all = std::mem::replace(&mut *self.state.lock(), State { closed: true, ..State::default() });
    }

    fn frame(&self, news: &News<'_>) -> Option<Vec<u8>> {
        let body = rmp_serde::to_vec(news).ok()?;
        let tell = Tell { path: GROUPS_PATH, name: "groups/News", version: 1, body: &body, more: None };
        let frame = encode(Kind::Tell, &tell, self.frame_bytes);
        if frame.is_err() {
            tracing::warn!("an announcement of groups does not fit a frame of {} bytes", self.frame_bytes);
        }
        frame.ok()
    }
}

impl Spread {
    fn asks<'a>(&self, key: &'a Key) -> News<'a> {
        let Envelope { version, version_min, .. } = self.message;
        News::Spread { group: &key.0, message: &key.1, version, version_min }
    }

    /// Whether messages that are written in this version are understood here, and ours there.
    fn reads(&self, version: u16, version_min: u16) -> bool {
        self.message.reads(&Envelope { name: self.message.name, version, version_min })
    }
}

impl Partner {
    fn is(&self, link: &Arc<Link>) -> bool {
        self.link.as_ptr() == Arc::as_ptr(link)
    }

    fn say(&self, frame: Option<&[u8]>) {
        let (Some(link), Some(frame)) = (self.link.upgrade(), frame) else {
            return;
        };
        if link.control.push_unbounded(frame) == Err(PushError::Full) {
            // A change that is not told would be a view that never agrees; the end of the connection is one that does.
            let text = "reads nothing of the groups that it has spread";
            link.close(CloseCode::Protocol, LossReason::Protocol(text.into()), text);
        }
    }

    /// Those that are in a new list stay, the others leave.
    fn keep(&mut self, key: &Key, ids: &[u64]) {
        let held = self.heard.entry(key.clone()).or_default();
        let before = held.len();
        let listed: BTreeSet<u64> = ids.iter().copied().collect();
        held.retain(|id, _| listed.contains(id));
        self.members -= before - held.len();
    }

    /// Enters members, if the peer has told its list; no more than the limit.
    fn enter(&mut self, link: &Arc<Link>, key: &Key, spread: &Spread, ids: Vec<u64>, max: usize) {
        let Some(held) = self.heard.get_mut(key) else {
            return;
        };
        for id in ids {
            if held.contains_key(&id) {
                continue;
            }
            if self.members >= max {
                if !std::mem::replace(&mut self.is_over, true) {
                    let node = &link.peer.node;
                    tracing::warn!(%node, "node {node} has more than {max} members of groups: further ones are not seen here");
                }
                return;
            }
            held.insert(id, spread.door.enter(link, id));
            self.members += 1;
        }
    }

    fn leave(&mut self, key: &Key, ids: &[u64]) {
        let Some(held) = self.heard.get_mut(key) else {
            return;
        };
        for id in ids {
            if held.remove(id).is_some() {
                self.members -= 1;
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(held) = self.heard.remove(key) {
            self.members -= held.len();
        }
    }
}

// ---- what the embedder calls ---------------------------------------------------------------------------------------------------

impl Transport {
    /// Spreads the group of this name and of messages of type `M` over the cluster (OTP `pg`): actors of the attached system that join it are
    /// members on every connected node that has spread it too, and theirs are members here. The group is that of
    /// [`System::group`](phalanx_actors::System::group), and is used as any: `join`, `leave`, `members`, `watch`, and `tell_all`,
    /// `tell_one`, `ask_one`, which reach members wherever they are. A member elsewhere has no
    /// [`pid`](phalanx_actors::Recipient::pid), and no type of actor needs to be [shared](Self::share).
    ///
    /// Each node has its own view: its own members, and what each connected node has last announced. When a node is lost, its members
    /// have left before the [`Down`](crate::PeerEvent::Down), as monitors have fired; with the next connection they join anew, as other members.
    /// [`Limits::group_members`](crate::Limits::group_members) bounds what is taken of one node.
    ///
    /// Spread until [`unspread`](Self::unspread) or the end of the transport; to spread it again changes nothing.
    ///
    /// A message that does not fit a frame is [`Closed`](phalanx_actors::SendError::Closed) to a member elsewhere, with a line in the log.
    ///
    /// # Errors
    /// See [`SpreadError`].
    pub fn spread<M>(&self, name: &str) -> Result<Group<M>, SpreadError>
    where
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        if name.len() > NAME_BYTES_MAX {
            return Err(SpreadError::Name { bytes: name.len(), limit: NAME_BYTES_MAX });
        }
        let node = &self.node;
        if !node.is_running() {
            return Err(SpreadError::Closed);
        }
        let group = node.shared.system().ok_or(SpreadError::NoSystem)?.group::<M>(name);
        let key: Key = (name.into(), M::NAME.into());
        let (members, watch) = group.watch();
        node.groups.add(&key, TypeId::of::<M>(), |serial| {
            let pump = pump(Arc::downgrade(node), key.clone(), serial, members, watch);
            Spread {
                door: Arc::new(DoorOf { group: group.clone(), node: Arc::downgrade(node) }),
                message: Envelope::of::<M>(),
                type_id: TypeId::of::<M>(),
                serial,
                own: BTreeSet::new(),
                _pump: Pump(node.handlers.spawn(pump).abort_handle()),
            }
        })?;
        Ok(group)
    }

    /// Spreads a group no more: members of other nodes have left here when this returns, and those of this node leave there.
    pub fn unspread<M>(&self, name: &str)
    where
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let gone = self.node.groups.remove(&(name.into(), M::NAME.into()), TypeId::of::<M>());
        for id in gone.iter().flat_map(|gone| &gone.own) {
            unserve(&self.node, *id);
        }
    }
}

// ---- members of this node ------------------------------------------------------------------------------------------------------

/// Where a member is served on its node. With the number of the boot, for the next boot counts its members anew.
fn member_path(incarnation: u64, number: u64) -> String {
    format!("@member/{incarnation}/{number}")
}

/// What has become of a member since the last look; `None`: it has left.
type Changes<M> = BTreeMap<u64, Option<Recipient<M>>>;

/// Serves and announces the members of this node, as they come and go.
async fn pump<M>(node: Weak<Node>, key: Key, serial: u64, members: Vec<Member<M>>, mut watch: GroupWatch<M>)
where
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    let mut members = members.into_iter();
    let mut numbers = BTreeMap::new();
    loop {
        let mut changes = Changes::new();
        // All who were there before any event, for an event may be of them.
        for member in members.by_ref().filter(is_own).take(IDS_MAX) {
            changes.insert(member.id(), Some(member.recipient().clone()));
        }
        if changes.is_empty() {
            note(watch.next().await, &mut changes);
        }
        while changes.len() < IDS_MAX
            && let Some(event) = watch.try_next()
        {
            note(event, &mut changes);
        }
        let Some(node) = node.upgrade() else {
            return;
        };
        if !publish(&node, &key, serial, &mut numbers, changes) {
            return;
        }
        drop(node);
        // Others of this runtime have their turns, however many come and go.
        tokio::task::yield_now().await;
    }
}

/// Those that were entered by hand are somebody else's to announce.
fn is_own<M: Message>(member: &Member<M>) -> bool {
    member.pid().is_some()
}

fn note<M: Message>(event: GroupEvent<M>, changes: &mut Changes<M>) {
    if !is_own(event.member()) {
        return;
    }
    let id = event.member().id();
    match event {
        GroupEvent::Joined(member) => drop(changes.insert(id, Some(member.recipient().clone()))),
        // One that came just now was never announced, and need not be taken back.
        GroupEvent::Left(_) => match changes.remove(&id) {
            Some(Some(_)) => {}
            _ => drop(changes.insert(id, None)),
        },
    }
}

/// False if the group is not spread any more. `numbers`: what each member is announced as.
fn publish<M>(node: &Arc<Node>, key: &Key, serial: u64, numbers: &mut BTreeMap<u64, u64>, changes: Changes<M>) -> bool
where
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    if changes.is_empty() {
        return true;
    }
    let (mut joined, mut left) = (vec![], vec![]);
    for (id, recipient) in changes {
        match recipient {
            Some(recipient) => {
                let number = node.groups.next_member.fetch_add(1, Ordering::Relaxed);
                numbers.insert(id, number);
                // Served before anybody can know of it.
                serve(node, number, recipient);
                joined.push(number);
            }
            None => {
                if let Some(number) = numbers.remove(&id) {
                    unserve(node, number);
                    left.push(number);
                }
            }
        }
    }
    let is_spread = node.groups.changed(key, serial, joined.clone(), left);
    if !is_spread {
        joined.into_iter().for_each(|number| unserve(node, number));
    }
    is_spread
}

fn unserve(node: &Node, number: u64) {
    node.registry.unserve(&member_path(node.me.incarnation, number));
}

fn serve<M>(node: &Arc<Node>, number: u64, recipient: Recipient<M>)
where
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    let path = member_path(node.me.incarnation, number);
    node.registry.serve(&path, Envelope::of::<M>(), Arc::new(MemberHere { recipient, node: Arc::downgrade(node) }));
}

/// A member of this node, to the others.
struct MemberHere<M: Message> {
    recipient: Recipient<M>,
    node: Weak<Node>,
}

impl<M> Serve for MemberHere<M>
where
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn ask(&self, _: Peer, body: Bytes, _: Instant) -> BoxFuture<'static, Outcome> {
        // The node is not held while the member takes its time: one that waits for its own actor would keep itself from closing.
        let message = self.node.upgrade().ok_or(Failure::NoProc).and_then(|node| refs::read::<M>(&node, &body));
        let recipient = self.recipient.clone();
        Box::pin(async move { answered(recipient.ask(message?).await) })
    }

    fn teller(self: Arc<Self>) -> Result<Box<dyn Teller>, Failure> {
        Ok(Box::new(MemberTeller(self.recipient.clone())))
    }
}

struct MemberTeller<M: Message>(Recipient<M>);

impl<M: Remote + Message> Teller for MemberTeller<M> {
    fn tell(&mut self, reader: &mut Reader, _: &Peer, body: &[u8]) -> Result<Option<Rest>, Failure> {
        let Err(rejected) = self.0.try_tell(reader.read(body)?) else {
            return Ok(None);
        };
        if rejected.error != LocalSendError::Full {
            return Err(Failure::NoProc);
        }
        let recipient = self.0.clone();
        Ok(Some(Box::pin(async move { recipient.send(rejected.message).await.map_err(|_| Failure::NoProc) })))
    }
}

// ---- members of other nodes ----------------------------------------------------------------------------------------------------

struct DoorOf<M: Message> {
    group: Group<M>,
    node: Weak<Node>,
}

impl<M> Door for DoorOf<M>
where
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn enter(&self, link: &Arc<Link>, id: u64) -> Membership {
        self.group.enter(Elsewhere {
            own: self.node.clone(),
            link: Arc::downgrade(link),
            node: link.peer.node.clone(),
            path: member_path(link.peer.incarnation, id).into(),
            message: PhantomData,
        })
    }
}

/// A member on another node. Serves as long as the connection over which it was announced.
struct Elsewhere<M> {
    own: Weak<Node>,
    link: Weak<Link>,
    node: NodeName,
    path: Arc<str>,
    message: PhantomData<fn(M)>,
}

impl<M> Elsewhere<M> {
    fn way(&self) -> Option<(Arc<Node>, Arc<Link>)> {
        let own = self.own.upgrade().filter(|own| own.is_running())?;
        Some((own, self.link.upgrade()?))
    }
}

impl<M> Receive<M> for Elsewhere<M>
where
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn try_tell(&self, message: M) -> Result<(), Rejected<M>> {
        let Some((_own, link)) = self.way() else {
            return Err(Rejected { error: LocalSendError::Closed, message });
        };
        let told = refs::tell(&link, &self.path, None, &message);
        told.map_err(|error| Rejected { error: local_send_error(error), message })
    }

    fn send(&self, message: M) -> BoxFuture<'static, Result<(), LocalSendError>> {
        let (way, path) = (self.way(), self.path.clone());
        Box::pin(async move {
            let (_own, link) = way.ok_or(LocalSendError::Closed)?;
            refs::send(link, &path, None, message).await.map_err(local_send_error)
        })
    }

    fn ask(&self, message: M) -> BoxFuture<'static, Result<<M as Message>::Reply, LocalAskError>> {
        let path = self.path.clone();
        let way = self.way().map(|(own, _)| {
            let request = Request::new(&own, &self.node, &path, Envelope::of::<M>(), DEADLINE_MAX).at_once();
            (own, request)
        });
        Box::pin(async move {
            let (own, request) = way.ok_or(LocalAskError::Exited(Exit::NoConnection))?;
            refs::ask(&own, request, &path, message).await.map_err(local_ask_error)
        })
    }

    fn pid(&self) -> Option<phalanx_actors::Pid> {
        None
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Groups({} spread, {} partners)", state.spread.len(), state.partners.len())
    }
}
