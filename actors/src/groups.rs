//! Process groups (OTP `pg`): actors that a name stands for. Join and leave, members, who comes and goes, send to all or to one in turn.
//!
//! A group is of one type of message: whoever handles that may join, whatever else it is. Groups of the same name and different types are
//! different groups. A group exists while it has members or somebody holds it; it is never made or deleted.
//!
//! Members on other machines: this crate knows one system. Whoever connects systems (`Transport::spread` of `phalanx-transport` does) announces
//! the members of each to the others (all of them when a node comes up, then each change, as told by [`Group::watch`]), has each node
//! [`Group::enter`] a [`Recipient`] that forwards over the wire for each member of another, and drops the [`Membership`]s of a node when it is
//! down. As with OTP's `pg`, every node then has its own view, and the views agree once the news have arrived. Such a member has no
//! [`Recipient::pid`]: that is how the one who announces knows which members are its own.
//!
//! Must never call out while locked. Actors leave by ending: [`crate::pid`] tells each group of it, before any monitor fires.

use crate::actor::{Handler, Message};
use crate::error::{AskError, JoinError, SendError};
use crate::pid::Pid;
use crate::recipient::{Receive, Recipient, Rejected};
use crate::refs::Ref;
use crate::system::System;
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// How many events wait at a [`GroupWatch`] before what came and went unseen is taken out together. What is left then is bounded by the members
/// there are and the members that the watch knows of.
pub const GROUP_EVENTS: usize = 1_024;

/// All groups of a system.
#[derive(Default)]
pub(crate) struct Groups {
    next_member: AtomicU64,
    named: Mutex<HashMap<Key, Weak<dyn AnyGroup>>>,
}

type Key = (Arc<str>, TypeId);

/// A group without its type of message.
pub(crate) trait AnyGroup: Any + Send + Sync {
    /// The membership is over.
    fn left(&self, member: u64);
    fn info(&self) -> GroupInfo;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A group that has members, as [`System::groups`] tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// The Rust type of its messages.
    pub message: &'static str,
    /// How many members it has.
    pub members: usize,
}

/// A group of receivers of messages of type `M`. Clones are the same group.
///
/// ```
/// use phalanx_actors::testkit::{Probe, simulate};
/// use phalanx_actors::*;
///
/// #[derive(Clone, Debug, PartialEq)]
/// struct Job(u32);
/// impl Message for Job {
///     type Reply = ();
/// }
///
/// simulate(1, |sim| async move {
///     let workers = sim.system().group::<Job>("workers");
///     let mut a = Probe::<Job>::start(sim.system(), "a").await;
///     let mut b = Probe::<Job>::start(sim.system(), "b").await;
///     workers.join(&a.actor()).unwrap();
///     workers.join(&b.actor()).unwrap();
///
///     workers.tell_one(Job(1)).unwrap(); // to each in turn
///     workers.tell_one(Job(2)).unwrap();
///     assert_eq!(a.expect_message().await, Job(1));
///     assert_eq!(b.expect_message().await, Job(2));
///     assert_eq!(workers.tell_all(Job(3)), 2);
///
///     a.pid().stop(Exit::Normal); // who ends has left
///     a.pid().exited().await;
///     assert_eq!(workers.len(), 1);
/// });
/// ```
pub struct Group<M: Message>(Arc<Cell<M>>);

struct Cell<M: Message> {
    name: Arc<str>,
    groups: Arc<Groups>,
    members: Mutex<Members<M>>,
}

struct Members<M: Message> {
    /// In the order in which they joined.
    list: BTreeMap<u64, Recipient<M>>,
    /// The member whose turn was last.
    last: u64,
    watches: Vec<Weak<Post<M>>>,
}

/// One membership. Someone who joined twice is a member twice.
pub struct Member<M: Message> {
    id: u64,
    recipient: Recipient<M>,
}

/// What a [`GroupWatch`] tells, once each.
#[derive(Clone, Debug)]
pub enum GroupEvent<M: Message> {
    /// A new member.
    Joined(Member<M>),
    /// A member has left, or has ended.
    Left(Member<M>),
}

/// Tells who joins and leaves, from the moment on at which it was made.
///
/// ```
/// use phalanx_actors::testkit::{Probe, simulate};
/// use phalanx_actors::*;
///
/// #[derive(Clone, Debug, PartialEq)]
/// struct Job(u32);
/// impl Message for Job {
///     type Reply = ();
/// }
///
/// simulate(1, |sim| async move {
///     let workers = sim.system().group::<Job>("workers");
///     let (members, mut watch) = workers.watch();
///     assert!(members.is_empty());
///     let a = Probe::<Job>::start(sim.system(), "a").await;
///     workers.join(&a.actor()).unwrap();
///     let GroupEvent::Joined(joined) = watch.next().await else { panic!("somebody has left") };
///     assert_eq!(joined.recipient().pid(), Some(a.pid()));
///
///     // By hand, for receivers elsewhere: a member as long as this is held.
///     let membership: Membership = workers.enter(a.actor());
///     assert!(matches!(watch.next().await, GroupEvent::Joined(_)));
///     drop(membership);
///     assert!(matches!(watch.next().await, GroupEvent::Left(_)));
///
///     a.pid().stop(Exit::Normal);
///     let GroupEvent::Left(left) = watch.next().await else { panic!("somebody has joined") };
///     assert_eq!((left.id(), workers.len()), (joined.id(), 0));
/// });
/// ```
pub struct GroupWatch<M: Message> {
    post: Arc<Post<M>>,
    /// A group lives as long as somebody watches it.
    _group: Group<M>,
}

struct Post<M: Message> {
    queue: Mutex<Queue<M>>,
    news: Notify,
}

struct Queue<M: Message> {
    events: VecDeque<GroupEvent<M>>,
    /// At this length what cancels out is taken out.
    tidy_at: usize,
}

/// A membership that was entered by hand: it is over when this is dropped.
#[must_use = "the membership ends when this is dropped"]
pub struct Membership {
    group: Arc<dyn AnyGroup>,
    member: u64,
}

impl System {
    /// The group of this name for messages of type `M`; empty when nobody has joined.
    pub fn group<M: Message>(&self, name: &str) -> Group<M> {
        let groups = self.all_groups();
        let key = (Arc::<str>::from(name), TypeId::of::<M>());
        let mut named = groups.named.lock();
        let known = named.get(&key).and_then(Weak::upgrade).and_then(|group| group.into_any().downcast().ok());
        if let Some(cell) = known {
            return Group(cell);
        }
        let members = Mutex::new(Members { list: BTreeMap::new(), last: 0, watches: Vec::new() });
        let cell = Arc::new(Cell::<M> { name: key.0.clone(), groups: groups.clone(), members });
        let any: Arc<dyn AnyGroup> = cell.clone();
        named.insert(key, Arc::downgrade(&any));
        Group(cell)
    }

    /// All groups with members, by name (OTP `which_groups`).
    pub fn groups(&self) -> Vec<GroupInfo> {
        // Dropped outside the lock: the last reference to a group takes that lock.
        let groups: Vec<_> = self.all_groups().named.lock().values().filter_map(Weak::upgrade).collect();
        let mut infos: Vec<_> = groups.iter().map(|group| group.info()).filter(|info| info.members > 0).collect();
        infos.sort_unstable_by(|a, b| (&a.name, a.message).cmp(&(&b.name, b.message)));
        infos
    }
}

impl<M: Message> Group<M> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Makes an actor a member until it ends or leaves. It may join several groups, and one group several times.
    pub fn join<A: Handler<M>>(&self, actor: &Ref<A>) -> Result<(), JoinError> {
        let id = self.0.groups.next_member.fetch_add(1, Relaxed) + 1;
        // Locked meanwhile: its end, which comes here too, finds the member.
        let mut members = self.0.members.lock();
        if !actor.pid().joins(self.any(), id) {
            return Err(JoinError::Ended(actor.pid()));
        }
        let rest = members.add(id, actor.recipient());
        drop(members);
        drop(rest);
        Ok(())
    }

    /// Takes back one join of `pid`, the last. False when it is no member.
    pub fn leave(&self, pid: &Pid) -> bool {
        let left = pid.leaves(&self.any());
        if let Some(id) = left {
            self.0.left(id);
        }
        left.is_some()
    }

    /// Makes whatever receives a member, until the membership is dropped. For receivers that are no actors of this system, whose end nobody else
    /// would notice.
    pub fn enter(&self, receiver: impl Receive<M>) -> Membership {
        let member = self.0.groups.next_member.fetch_add(1, Relaxed) + 1;
        let rest = self.0.members.lock().add(member, Recipient::new(receiver));
        drop(rest);
        Membership { group: self.any(), member }
    }

    /// The members, in the order in which they joined.
    pub fn members(&self) -> Vec<Member<M>> {
        self.0.members.lock().snapshot()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.members.lock().list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The members, and a watch that tells each change from then on, once (OTP `pg:monitor`).
    pub fn watch(&self) -> (Vec<Member<M>>, GroupWatch<M>) {
        let queue = Mutex::new(Queue { events: VecDeque::new(), tidy_at: GROUP_EVENTS });
        let post = Arc::new(Post { queue, news: Notify::new() });
        let mut members = self.0.members.lock();
        members.watches.push(Arc::downgrade(&post));
        (members.snapshot(), GroupWatch { post, _group: self.clone() })
    }

    /// Tells all members, and says how many took the message. One whose mailbox is full does not get it.
    pub fn tell_all(&self, message: M) -> usize
    where
        M: Clone,
    {
        let members = self.members();
        members.iter().filter(|member| member.tell(message.clone()).is_ok()).count()
    }

    /// Tells one member, each in turn; one that has no room or is about to end is passed over. [`SendError::NoProc`] when there is no member,
    /// [`SendError::Full`] when none has room.
    pub fn tell_one(&self, mut message: M) -> Result<(), SendError> {
        let mut failed = SendError::NoProc;
        for _ in 0..self.len() {
            let Some(recipient) = self.next() else { break };
            match recipient.try_tell(message) {
                Ok(()) => return Ok(()),
                Err(Rejected { error, message: back }) => {
                    message = back;
                    if failed != SendError::Full {
                        failed = error;
                    }
                }
            }
        }
        Err(failed)
    }

    /// Asks one member, each in turn. It is asked once: when it ends before it answers, that is the answer.
    pub async fn ask_one(&self, message: M) -> Result<M::Reply, AskError> {
        for _ in 0..self.len() {
            let Some(recipient) = self.next() else { break };
            if recipient.pid().is_none_or(|pid| !pid.ending()) {
                return recipient.ask(message).await;
            }
        }
        Err(AskError::NoProc)
    }

    /// Whose turn it is.
    fn next(&self) -> Option<Recipient<M>> {
        let mut members = self.0.members.lock();
        let after = members.list.range((Bound::Excluded(members.last), Bound::Unbounded)).next();
        let (&id, recipient) = after.or_else(|| members.list.first_key_value())?;
        let recipient = recipient.clone();
        members.last = id;
        Some(recipient)
    }

    fn any(&self) -> Arc<dyn AnyGroup> {
        self.0.clone()
    }
}

/// What is to be dropped once nothing is locked: the last reference to a mailbox drops the messages in it, and their `Drop` may do anything.
struct Rest<M: Message> {
    _events: Vec<GroupEvent<M>>,
    _posts: Vec<Arc<Post<M>>>,
}

impl<M: Message> Members<M> {
    fn snapshot(&self) -> Vec<Member<M>> {
        self.list.iter().map(|(&id, recipient)| Member { id, recipient: recipient.clone() }).collect()
    }

    fn add(&mut self, id: u64, recipient: Recipient<M>) -> Rest<M> {
        self.list.insert(id, recipient.clone());
        self.tell(|| GroupEvent::Joined(Member { id, recipient: recipient.clone() }))
    }

    fn tell(&mut self, event: impl Fn() -> GroupEvent<M>) -> Rest<M> {
        let mut rest = Rest { _events: Vec::new(), _posts: Vec::new() };
        self.watches.retain(|watch| {
            let Some(post) = watch.upgrade() else { return false };
            rest._events.append(&mut post.put(event()));
            rest._posts.push(post);
            true
        });
        rest
    }
}

impl<M: Message> AnyGroup for Cell<M> {
    fn left(&self, id: u64) {
        let mut members = self.members.lock();
        let Some(recipient) = members.list.remove(&id) else { return };
        let rest = members.tell(|| GroupEvent::Left(Member { id, recipient: recipient.clone() }));
        drop(members);
        drop((rest, recipient));
    }

    fn info(&self) -> GroupInfo {
        let members = self.members.lock().list.len();
        GroupInfo { name: self.name.to_string(), message: std::any::type_name::<M>(), members }
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<M: Message> Drop for Cell<M> {
    fn drop(&mut self) {
        let key = (self.name.clone(), TypeId::of::<M>());
        let mut named = self.groups.named.lock();
        // Another may have been made meanwhile.
        if named.get(&key).is_some_and(|group| group.strong_count() == 0) {
            named.remove(&key);
        }
    }
}

impl<M: Message> Member<M> {
    /// A number that no other membership of this system has had.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The member itself.
    pub fn recipient(&self) -> &Recipient<M> {
        &self.recipient
    }
}

impl<M: Message> std::ops::Deref for Member<M> {
    type Target = Recipient<M>;

    fn deref(&self) -> &Recipient<M> {
        &self.recipient
    }
}

impl<M: Message> GroupWatch<M> {
    /// The next change, waiting for it.
    pub async fn next(&mut self) -> GroupEvent<M> {
        loop {
            if let Some(event) = self.try_next() {
                return event;
            }
            self.post.news.notified().await;
        }
    }

    /// The next change, if there is one.
    pub fn try_next(&mut self) -> Option<GroupEvent<M>> {
        self.post.queue.lock().events.pop_front()
    }
}

impl<M: Message> Post<M> {
    /// Returns what is no news any more.
    fn put(&self, event: GroupEvent<M>) -> Vec<GroupEvent<M>> {
        let mut queue = self.queue.lock();
        queue.events.push_back(event);
        let old = if queue.events.len() >= queue.tidy_at { queue.tidy() } else { Vec::new() };
        drop(queue);
        self.news.notify_one();
        old
    }
}

impl<M: Message> Queue<M> {
    /// Takes out those that came and went unseen.
    fn tidy(&mut self) -> Vec<GroupEvent<M>> {
        let id_left = |event: &GroupEvent<M>| match event {
            GroupEvent::Left(member) => Some(member.id),
            GroupEvent::Joined(_) => None,
        };
        let left: HashSet<u64> = self.events.iter().filter_map(id_left).collect();
        let both: HashSet<u64> = self
            .events
            .iter()
            .filter_map(|event| match event {
                GroupEvent::Joined(member) if left.contains(&member.id) => Some(member.id),
                _ => None,
            })
            .collect();
        let events = std::mem::take(&mut self.events);
        let (old, news): (VecDeque<_>, VecDeque<_>) = events.into_iter().partition(|e| both.contains(&e.member().id));
        self.events = news;
        self.tidy_at = (self.events.len() * 2).max(GROUP_EVENTS);
        old.into()
    }
}

impl<M: Message> GroupEvent<M> {
    /// Who came or went.
    pub fn member(&self) -> &Member<M> {
        match self {
            GroupEvent::Joined(member) | GroupEvent::Left(member) => member,
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.group.left(self.member);
    }
}

impl<M: Message> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group(self.0.clone())
    }
}

impl<M: Message> Clone for Member<M> {
    fn clone(&self) -> Self {
        Member { id: self.id, recipient: self.recipient.clone() }
    }
}

impl<M: Message> fmt::Debug for Group<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({}, {} members)", self.0.name, self.len())
    }
}

impl<M: Message> fmt::Debug for Member<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({}, {:?})", self.id, self.recipient)
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Membership({})", self.member)
    }
}
