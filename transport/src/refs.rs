//! References to one incarnation of an actor of any node, with the methods of a local [`Ref`](phalanx_actors::Ref), and what
//! [`RemoteNamed`](crate::RemoteNamed) shares with them. They hold no connection: each call uses the one
//! that is up. Must never block, and never reach another incarnation than the one they were made for.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use phalanx_actors::{Actor, Exit, Handler, Message, Pid, Ref, Trace};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use tokio::time::Instant;

use crate::{
    ask::{Request, deadline_in},
    decode,
    endpoint::Node,
    error::{AskError, Rejected, SendError},
    event::NodeName,
    flow::Letter,
    frame::{Kind, More, Signal, encode, signal},
    link::Link,
    outbox::{PushError, TellError},
    peer::Counters,
    registry::Failure,
    remote::{Envelope, Remote},
    shared::RemoteActor,
    ties::{lost_pid, write_exit},
};

/// Where one incarnation of an actor is: plain data, for files and displays. [`Transport::resolve`](crate::Transport::resolve)
/// makes a reference of it. In messages, [`RemoteRef`] itself travels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteAddress {
    /// Its node.
    pub node: NodeName,
    /// The boot of the node.
    pub incarnation: u64,
    /// Its path there.
    pub path: Arc<str>,
    /// Its number there ([`Pid::id`]).
    pub id: u64,
}

/// A reference to one incarnation of an actor on any node, this one too. It serves as long as that incarnation lives; a restarted
/// actor, or one on a restarted node, is another.
///
/// In a message it travels: whoever gets the message can use it, also on a third node. It can only be read where a transport
/// reads a message.
pub struct RemoteRef<A: Actor>(Place<A>);

enum Place<A: Actor> {
    /// An actor of this node: messages are not even encoded.
    Here {
        actor: Ref<A>,
        node: Arc<Node>,
    },
    There(Arc<There>),
}

/// An actor of another node; or one of this node that has ended.
struct There {
    node: Arc<Node>,
    address: RemoteAddress,
    /// The pid once it was asked for. Kept, for the actor's end is then known.
    pid: Mutex<Option<Pid>>,
}

impl<A: Actor> RemoteRef<A> {
    pub(crate) fn here(node: &Arc<Node>, actor: Ref<A>) -> Self {
        RemoteRef(Place::Here { actor, node: node.clone() })
    }

    pub(crate) fn resolve(node: &Arc<Node>, address: RemoteAddress) -> Self {
        if address.node == node.me.node && address.incarnation == node.me.incarnation {
            let found = node.shared.any(&address.path, Some(address.id)).and_then(|found| found.downcast::<A>());
            if let Some(actor) = found {
                return Self::here(node, actor);
            }
        }
        RemoteRef(Place::There(Arc::new(There { node: node.clone(), address, pid: Mutex::default() })))
    }

    /// Its node.
    pub fn node(&self) -> &NodeName {
        match &self.0 {
            Place::Here { node, .. } => &node.me.node,
            Place::There(there) => &there.address.node,
        }
    }

    /// Where it is.
    pub fn address(&self) -> RemoteAddress {
        match &self.0 {
            Place::Here { actor, node } => {
                let pid = actor.pid();
                let Node { me, .. } = &**node;
                RemoteAddress {
                    node: me.node.clone(),
                    incarnation: me.incarnation,
                    path: pid.path().into(),
                    id: pid.id(),
                }
            }
            Place::There(there) => there.address.clone(),
        }
    }

    /// The local reference, if it is an actor of this node.
    pub fn local(&self) -> Option<&Ref<A>> {
        match &self.0 {
            Place::Here { actor, .. } => Some(actor),
            Place::There(_) => None,
        }
    }

    /// Its pid here, to be [monitored](phalanx_actors::Ctx::monitor), [linked](phalanx_actors::Ctx::link) or waited for like
    /// any other. For an actor elsewhere it is a stand-in, shown as `path@node`, whose exit is the actor's, or
    /// [`Exit::NoConnection`] when the connection is lost, whatever comes first; at once when there is none. After a loss and a
    /// new connection to the same boot of the node this gives another pid, for the same actor.
    pub fn pid(&self) -> Pid {
        match &self.0 {
            Place::Here { actor, .. } => actor.pid(),
            Place::There(there) => there.pid(),
        }
    }

    /// Sends a message, never waits. To another node: in order after what was told to this path before, at most once; `Ok` means
    /// queued here. What has ended there is only known ([`SendError::NoProc`]) once its [`pid`](Self::pid) was asked for
    /// here; else the message is dropped there and counted.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn tell<M>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        self.try_tell(message).map_err(|rejected| rejected.error)
    }

    /// As [`tell`](Self::tell), and gives the message back when it is not taken.
    ///
    /// # Errors
    /// As `tell`.
    pub fn try_tell<M>(&self, message: M) -> Result<(), Rejected<M>>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        match &self.0 {
            Place::Here { actor, node } => actor.try_tell(message).map_err(|rejected| Rejected {
                error: send_error(rejected.error, &node.me.node, actor.pid().path()),
                message: rejected.message,
            }),
            Place::There(there) => {
                let told = there.known_end().and_then(|()| there.link());
                let told = told.and_then(|link| tell(&link, &there.address.path, Some(there.address.id), &message));
                told.map_err(|error| Rejected { error, message })
            }
        }
    }

    /// As [`tell`](Self::tell), but waits while there is no room: in the mailbox of an actor of this node, in the outbox to
    /// another node. A slow receiver slows its senders so, see [`Limits`](crate::Limits).
    ///
    /// # Errors
    /// As `tell`, and never [`SendError::Full`].
    pub fn send<M>(&self, message: M) -> impl Future<Output = Result<(), SendError>> + Send + use<A, M>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let me = self.clone();
        async move {
            match &me.0 {
                Place::Here { actor, node } => {
                    let sent = actor.send(message).await;
                    sent.map_err(|error| send_error(error, &node.me.node, actor.pid().path()))
                }
                Place::There(there) => {
                    there.known_end()?;
                    let RemoteAddress { path, id, .. } = &there.address;
                    send(there.link()?, path, Some(*id), message).await
                }
            }
        }
    }

    /// Asks and waits for the answer, for as long as it takes (OTP `call` without a time limit).
    ///
    /// # Errors
    /// See [`AskError`]; [`AskError::NoConnection`] at once without a connection. When it is lost meanwhile, the message may or may
    /// not have been handled.
    pub fn ask<M>(&self, message: M) -> impl Future<Output = Result<<M as Remote>::Reply, AskError>> + Send + use<A, M>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        self.ask_until(message, None)
    }

    /// As [`ask`](Self::ask), for at most `limit`. Dropping the future takes the question back if it is not being handled yet.
    ///
    /// # Errors
    /// As `ask`.
    pub fn ask_timeout<M>(
        &self,
        message: M,
        limit: Duration,
    ) -> impl Future<Output = Result<<M as Remote>::Reply, AskError>> + Send + use<A, M>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        self.ask_until(message, deadline_in(limit))
    }

    /// As [`ask`](Self::ask), until `deadline` at most; `None` is without limit. The actor knows what is left of it when the question
    /// arrives, as [`Ctx::deadline`](phalanx_actors::Ctx::deadline).
    ///
    /// # Errors
    /// As `ask`.
    pub fn ask_until<M, D>(
        &self,
        message: M,
        deadline: D,
    ) -> impl Future<Output = Result<<M as Remote>::Reply, AskError>> + Send + use<A, M, D>
    where
        A: Handler<M>,
        D: Into<Option<Instant>>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let (me, deadline) = (self.clone(), deadline.into());
        async move {
            match &me.0 {
                Place::Here { actor, node } => {
                    let asked = actor.ask_until(message, deadline).await;
                    asked.map_err(|error| ask_error(error, &node.me.node, actor.pid().path()))
                }
                Place::There(there) => {
                    let RemoteAddress { node, incarnation, path, id } = &there.address;
                    let request = Request::until(&there.node, node, path, Envelope::of::<M>(), deadline)
                        .of_incarnation(*incarnation, *id);
                    ask(&there.node, request, path, message).await
                }
            }
        }
    }

    /// Asks it to stop. See [`Pid::stop`].
    ///
    /// # Errors
    /// No connection to its node now. `Ok` does not mean that it arrives.
    pub fn stop(&self, reason: Exit) -> Result<(), SendError> {
        match &self.0 {
            Place::Here { actor, .. } => actor.stop(reason),
            Place::There(there) => there.signal(signal::STOP, &write_exit(&reason))?,
        }
        Ok(())
    }

    /// Ends it. See [`Pid::kill`].
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn kill(&self) -> Result<(), SendError> {
        match &self.0 {
            Place::Here { actor, .. } => actor.kill(),
            Place::There(there) => there.signal(signal::KILL, &[])?,
        }
        Ok(())
    }
}

impl There {
    fn is_own(&self) -> bool {
        self.address.node == self.node.me.node
    }

    fn no_proc(&self) -> SendError {
        SendError::NoProc { node: self.address.node.to_string(), path: self.address.path.to_string() }
    }

    /// The connection to the boot of the node that the actor belongs to.
    fn link(&self) -> Result<Arc<Link>, SendError> {
        if self.is_own() {
            return Err(self.no_proc());
        }
        let link = current_link(&self.node, &self.address.node)?;
        match link.peer.incarnation {
            incarnation if incarnation == self.address.incarnation => Ok(link),
            newer if newer > self.address.incarnation => Err(self.no_proc()),
            _ => Err(SendError::NoConnection { node: self.address.node.to_string() }),
        }
    }

    /// Fails if the actor is known to have ended.
    fn known_end(&self) -> Result<(), SendError> {
        let pid = self.pid.lock();
        match pid.as_ref().filter(|pid| !pid.is_alive()).and_then(Pid::exit) {
            // Its node may be connected again.
            None | Some(Exit::NoConnection) => Ok(()),
            Some(_) => Err(self.no_proc()),
        }
    }

    fn pid(&self) -> Pid {
        let RemoteAddress { node, path, id, .. } = &self.address;
        let known = self.pid.lock().clone();
        if let Some(pid) = known.filter(|pid| pid.is_alive() || pid.exit() != Some(Exit::NoConnection)) {
            return pid;
        }
        let pid = match self.link() {
            Ok(link) => link.watched_pid(path, *id, self.node.limits.links),
            Err(SendError::NoProc { .. }) => lost_pid(path, *id, node, &Exit::NoProc),
            Err(_) => lost_pid(path, *id, node, &Exit::NoConnection),
        };
        let old = self.pid.lock().replace(pid.clone());
        // Outside of the lock: it may be the last reference.
        drop(old);
        pid
    }

    fn signal(&self, what: u8, reason: &[u8]) -> Result<(), SendError> {
        let RemoteAddress { path, id, .. } = &self.address;
        signal_to(&*self.link()?, path, Some(*id), what, reason)
    }
}

impl<A: Actor> Clone for RemoteRef<A> {
    fn clone(&self) -> Self {
        RemoteRef(match &self.0 {
            Place::Here { actor, node } => Place::Here { actor: actor.clone(), node: node.clone() },
            Place::There(there) => Place::There(there.clone()),
        })
    }
}

impl<A: Actor> PartialEq for RemoteRef<A> {
    /// Whether both are the same incarnation of the same actor.
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl<A: Actor> Eq for RemoteRef<A> {}

impl<A: Actor> fmt::Debug for RemoteRef<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RemoteAddress { node, path, id, .. } = self.address();
        write!(f, "RemoteRef({path}#{id}@{node})")
    }
}

impl<A: Actor> Serialize for RemoteRef<A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.address().serialize(serializer)
    }
}

impl<'de, A: Actor> Deserialize<'de> for RemoteRef<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let address = RemoteAddress::deserialize(deserializer)?;
        let node = READING.with_borrow(Clone::clone);
        let node = node.ok_or_else(|| {
            serde::de::Error::custom(
                "a reference to an actor can only be read in a message; use RemoteAddress elsewhere",
            )
        })?;
        Ok(Self::resolve(&node, address))
    }
}

thread_local! {
    /// The node that reads a message on this thread now: what references in it belong to.
    static READING: RefCell<Option<Arc<Node>>> = const { RefCell::new(None) };
}

/// Reads messages, and the references in them.
pub(crate) struct Reader(Option<Arc<Node>>);

impl Reader {
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        Self(Some(node.clone()))
    }

    pub(crate) fn read<T: DeserializeOwned>(&mut self, body: &[u8]) -> Result<T, Failure> {
        /// Puts back who read before, and the node into its reader.
        struct Restore<'a>(&'a mut Option<Arc<Node>>);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *self.0 = READING.replace(self.0.take());
            }
        }
        self.0 = READING.replace(self.0.take());
        let _restore = Restore(&mut self.0);
        decode::from_slice(body).map_err(|e| Failure::BadMessage(e.to_string()))
    }
}

/// Reads a message, and the references in it.
pub(crate) fn read<T: DeserializeOwned>(node: &Arc<Node>, body: &[u8]) -> Result<T, Failure> {
    Reader::new(node).read(body)
}

// ---- lookups ---------------------------------------------------------------------------------------------------------------

/// Where every node answers lookups; no path of a tree reads so.
pub(crate) const LOOKUP_PATH: &str = "@lookup";

/// Asks who runs at a path.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Lookup {
    path: String,
    /// [`RemoteActor::NAME`] of whom the asker expects.
    actor: String,
}

/// Who runs there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Found {
    Actor { incarnation: u64, id: u64 },
    NoProc {},
    OtherType { name: String },
}

impl Remote for Lookup {
    const NAME: &'static str = "transport/Lookup";
    type Reply = Found;
}

impl Lookup {
    pub(crate) fn answer(self, node: &Node) -> Found {
        let Some(found) = node.shared.find(&self.path, None) else {
            return Found::NoProc {};
        };
        match node.shared.type_name(&found) {
            Some(name) if name == self.actor => Found::Actor { incarnation: node.me.incarnation, id: found.pid().id() },
            Some(name) => Found::OtherType { name: name.into() },
            None => Found::NoProc {},
        }
    }
}

/// A reference to whoever runs at a path of a node now.
pub(crate) async fn lookup<A: RemoteActor>(own: &Arc<Node>, node: &str, path: &str) -> Result<RemoteRef<A>, AskError> {
    let no_proc = || AskError::NoProc { node: node.into(), path: path.into() };
    let lookup = Lookup { path: path.into(), actor: A::NAME.into() };
    if *node == *own.me.node {
        let found = own.shared.any(path, None).ok_or_else(no_proc)?;
        let other = own.shared.type_name(&found).map(str::to_owned);
        return match (found.downcast::<A>(), other) {
            (Some(actor), _) => Ok(RemoteRef::here(own, actor)),
            (None, Some(found)) => Err(AskError::OtherType { node: node.into(), path: path.into(), found }),
            (None, None) => Err(no_proc()),
        };
    }
    let within = Duration::from_millis(own.timings.lookup_ms);
    let request = Request::new(own, node, LOOKUP_PATH, Envelope::of::<Lookup>(), within);
    // Only a node that does not know references has nothing there.
    let found = ask(own, request, LOOKUP_PATH, lookup).await.map_err(|error| match error {
        AskError::NoProc { .. } => AskError::Unsupported { node: node.into() },
        other => other,
    })?;
    match found {
        Found::Actor { incarnation, id } => {
            let address = RemoteAddress { node: node.into(), incarnation, path: path.into(), id };
            Ok(RemoteRef::resolve(own, address))
        }
        Found::NoProc {} => Err(no_proc()),
        Found::OtherType { name } => Err(AskError::OtherType { node: node.into(), path: path.into(), found: name }),
    }
}

// ---- on the way ------------------------------------------------------------------------------------------------------------

pub(crate) fn current_link(own: &Node, node: &str) -> Result<Arc<Link>, SendError> {
    if !own.is_running() {
        return Err(SendError::Closed);
    }
    own.peer(node).and_then(|slot| slot.link()).ok_or_else(|| SendError::NoConnection { node: node.into() })
}

pub(crate) fn tell<M: Remote>(link: &Link, path: &str, pid: Option<u64>, message: &M) -> Result<(), SendError> {
    encoded(message, |body| {
        let trace = Trace::current().map(|trace| trace.to_string());
        let letter = letter::<M>(link, path, pid, trace.as_deref(), body)?;
        link.tells.tell(&letter, link.dialect()).map_err(|error| tell_error(error, link))
    })?;
    Counters::add(&link.counters.sent);
    Ok(())
}

/// A message for a link, if its peer can read what it needs.
fn letter<'a, M: Remote>(
    link: &Link,
    path: &'a str,
    pid: Option<u64>,
    trace: Option<&'a str>,
    body: &'a [u8],
) -> Result<Letter<'a>, SendError> {
    if pid.is_some() && !link.has_references() {
        return Err(SendError::Unsupported { node: link.peer.node.to_string() });
    }
    Ok(Letter { path, message: Envelope::of::<M>(), pid, trace, body })
}

/// As `tell`, but waits for room in the outbox of this connection.
pub(crate) async fn send<M: Remote>(
    link: Arc<Link>,
    path: &str,
    pid: Option<u64>,
    message: M,
) -> Result<(), SendError> {
    // As a local send does: one who sends without end leaves others their turns.
    tokio::task::coop::consume_budget().await;
    match tell(&link, path, pid, &message) {
        Err(SendError::Full { .. }) => {}
        done => return done,
    }
    let body = rmp_serde::to_vec(&message).map_err(|e| SendError::Unencodable(e.to_string()))?;
    drop(message);
    let trace = Trace::current().map(|trace| trace.to_string());
    let letter = letter::<M>(&link, path, pid, trace.as_deref(), &body)?;
    link.tells.tell_when_free(&letter, link.dialect()).await.map_err(|error| tell_error(error, &link))?;
    Counters::add(&link.counters.sent);
    Ok(())
}

thread_local! {
    /// What the messages that this thread tells are encoded in.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Memory that is kept for it, in bytes.
const SCRATCH_BYTES: usize = 64 << 10;

/// Encodes a message, for as long as `f` looks at it.
pub(crate) fn encoded<M: Remote, R>(
    message: &M,
    f: impl FnOnce(&[u8]) -> Result<R, SendError>,
) -> Result<R, SendError> {
    // Taken: a message whose encoding tells another finds an empty one.
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let written = rmp_serde::encode::write(&mut scratch, message);
    let done = written.map_err(|e| SendError::Unencodable(e.to_string())).and_then(|()| f(&scratch));
    if scratch.capacity() <= SCRATCH_BYTES {
        SCRATCH.set(scratch);
    }
    done
}

pub(crate) fn tell_error(error: TellError, link: &Link) -> SendError {
    match error {
        TellError::Encode(error) => error.into(),
        TellError::Push(error) => push_error(error, link),
    }
}

pub(crate) fn push_error(error: PushError, link: &Link) -> SendError {
    let node = link.peer.node.to_string();
    match error {
        PushError::Closed => SendError::NoConnection { node },
        PushError::Full => SendError::Full { node },
    }
}

pub(crate) async fn ask<M: Remote>(
    own: &Arc<Node>,
    request: Request,
    path: &str,
    message: M,
) -> Result<M::Reply, AskError> {
    let body = rmp_serde::to_vec(&message).map_err(|e| AskError::Unencodable(e.to_string()))?;
    drop(message);
    let reply = request.run(body.into()).await?;
    read_reply(own, path, &reply)
}

/// Reads an answer from a path.
pub(crate) fn read_reply<T: DeserializeOwned>(own: &Arc<Node>, path: &str, reply: &[u8]) -> Result<T, AskError> {
    read(own, reply).map_err(|failure| AskError::BadReply {
        path: path.into(),
        reason: match failure {
            Failure::BadMessage(reason) => reason,
            other => format!("{other:?}"),
        },
    })
}

pub(crate) fn signal_to(link: &Link, path: &str, pid: Option<u64>, what: u8, reason: &[u8]) -> Result<(), SendError> {
    if !link.has_references() {
        return Err(SendError::Unsupported { node: link.peer.node.to_string() });
    }
    let signal = Signal { path, pid, from: None, what, reason };
    let frame = encode(Kind::Signal, &signal, link.frame_bytes)?;
    link.control.push(&frame).map_err(|error| push_error(error, link))
}

impl Link {
    /// What goes into an envelope beside version 1's fields; `None` if it must and the peer cannot read it.
    pub(crate) fn more<'a>(
        &self,
        message: &Envelope<'_>,
        pid: Option<u64>,
        trace: Option<&'a str>,
    ) -> Option<Option<More<'a>>> {
        if !self.has_references() {
            return pid.is_none().then_some(None);
        }
        let says_something = pid.is_some() || trace.is_some() || message.version_min != message.version;
        Some(says_something.then_some(More { version_min: message.version_min, pid, trace }))
    }
}

pub(crate) fn send_error(error: phalanx_actors::SendError, node: &str, path: &str) -> SendError {
    match error {
        phalanx_actors::SendError::Full => SendError::Full { node: node.into() },
        phalanx_actors::SendError::Closed | phalanx_actors::SendError::NoProc => {
            SendError::NoProc { node: node.into(), path: path.into() }
        }
    }
}

pub(crate) fn ask_error(error: phalanx_actors::AskError, node: &str, path: &str) -> AskError {
    use phalanx_actors::AskError as Local;
    let text = error.to_string();
    let (node, path) = (node.into(), path.into());
    match error {
        Local::NoProc => AskError::NoProc { node, path },
        Local::Exited(exit) => AskError::Exited { node, path, exit },
        Local::NoReply => AskError::NoReply { node, path },
        Local::Timeout => AskError::Timeout { node, path },
        // As they arrive from another node.
        Local::Full | Local::Dropped => AskError::Remote(text),
    }
}
