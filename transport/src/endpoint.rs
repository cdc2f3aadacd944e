//! The node's QUIC endpoint: accepts, dials and dials again, says hello, and answers what peers ask. Runs on the
//! transport's runtime; who may be connected is decided in `hello`, what happens to a link in `peer`.

use std::{
    collections::HashMap,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use phalanx_actors::AnyRef;
use quinn::{Connection, ConnectionError, Endpoint, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::{
    runtime::Handle,
    sync::broadcast,
    time::{Instant, timeout},
};

use crate::{
    ask::deadline_in,
    backoff::Backoff,
    config::{Limits, Timings},
    credentials::Credentials,
    event::{LossReason, NodeName, Peer, PeerEvent, Refusal},
    fault::FaultTable,
    frame::{Ask, FRAME_VERSION, Frame, FrameError, Kind, MAX_HELLO_BYTES, Reply, Tell, encode, status},
    groups::Groups,
    guard::{guarded, traced},
    handshakes::{Admission, Handshakes, Place},
    hello::{Hello, Me, Origin, Verdict, Welcome},
    inbox::{Bounds, Inboxes},
    link::{self, CloseCode, Link, ReadFrameError, read_frame},
    peer::{PeerSlot, SlotState, Trouble},
    random::Random,
    registry::{Failure, MessageHandler, Registry},
    remote::Envelope,
    shared::{HandOver, SharedActors},
    tells::Teller,
    ties::write_exit,
    tls::{Side, Tls, node_of, server_name},
    watch,
};

/// A link that lived so long was a success: the next dial starts with the shortest pause.
const BACKOFF_RESET_MS: u128 = 1_000;

/// Refusals logged in one second; more are only counted.
const REFUSALS_LOGGED_PER_SECOND: u32 = 20;

/// Bytes that a dialer may send before its handshake is taken up; more is dropped.
const INCOMING_BYTES: u64 = 16 << 10;

/// QUIC's range of TLS alerts (RFC 9001, section 4.8).
const TLS_ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

/// How far the transport is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Running,
    /// Nothing new; what was taken is written out.
    Closing,
    /// As if the process had died.
    Dead,
}

/// One node: everything that its tasks and its handles share.
pub(crate) struct Node {
    pub(crate) me: Me,
    pub(crate) limits: Limits,
    pub(crate) timings: Timings,
    pub(crate) driver: Handle,
    pub(crate) handlers: Handle,
    pub(crate) endpoint: Endpoint,
    pub(crate) credentials: Credentials,
    pub(crate) quic: Arc<quinn::TransportConfig>,
    pub(crate) faults: Arc<FaultTable>,
    pub(crate) random: Arc<Random>,
    pub(crate) registry: Registry,
    pub(crate) shared: SharedActors,
    pub(crate) groups: Arc<Groups>,
    pub(crate) events: broadcast::Sender<PeerEvent>,
    pub(crate) phase: watch::Sender<Phase>,
    /// The same number, to look at with each message.
    phase_now: AtomicU8,
    /// Inboxes of messages to our own name.
    pub(crate) own_inboxes: Arc<Inboxes>,
    peers: RwLock<HashMap<NodeName, Arc<PeerSlot>>>,
    /// Changes when a peer becomes known, for those who wait for one.
    pub(crate) peers_known: watch::Sender<()>,
    handshakes: Handshakes,
    next_dial: AtomicU64,
    refusals_logged: Mutex<(Instant, u32)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({:?})", self.me)
    }
}

/// What a node is made of, beside what it makes itself.
pub(crate) struct Parts {
    pub(crate) me: Me,
    pub(crate) limits: Limits,
    pub(crate) timings: Timings,
    pub(crate) driver: Handle,
    pub(crate) handlers: Handle,
    pub(crate) endpoint: Endpoint,
    pub(crate) credentials: Credentials,
    pub(crate) quic: Arc<quinn::TransportConfig>,
    pub(crate) faults: Arc<FaultTable>,
    pub(crate) random: Arc<Random>,
    pub(crate) events: broadcast::Sender<PeerEvent>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Self {
        let inboxes = inboxes(&parts.handlers, &parts.limits, &parts.timings);
        Self {
            me: parts.me,
            driver: parts.driver,
            handlers: parts.handlers,
            endpoint: parts.endpoint,
            credentials: parts.credentials,
            quic: parts.quic,
            faults: parts.faults,
            random: parts.random,
            registry: Registry::default(),
            shared: SharedActors::default(),
            groups: Arc::new(Groups::new(parts.limits.group_members, parts.limits.frame_bytes)),
            events: parts.events,
            phase: watch::Sender::new(Phase::Running),
            phase_now: AtomicU8::new(Phase::Running as u8),
            own_inboxes: inboxes,
            peers: RwLock::default(),
            peers_known: watch::Sender::new(()),
            handshakes: Handshakes::new(parts.limits.handshakes, parts.limits.handshakes_per_address),
            next_dial: AtomicU64::new(1),
            refusals_logged: Mutex::new((Instant::now(), 0)),
            limits: parts.limits,
            timings: parts.timings,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase_now.load(Ordering::Acquire) == Phase::Running as u8
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.phase_now.load(Ordering::Acquire) == Phase::Dead as u8
    }

    /// Goes on to a later phase. False if it is there already, or beyond.
    pub(crate) fn enter(&self, phase: Phase) -> bool {
        self.phase.send_if_modified(|now| {
            let later = *now < phase;
            if later {
                *now = phase;
                self.phase_now.store(phase as u8, Ordering::Release);
            }
            later
        })
    }

    pub(crate) fn own_peer(&self) -> Peer {
        Peer { node: self.me.node.clone(), incarnation: self.me.incarnation }
    }

    /// Does something with a peer and the link to it that is up, without holding on to them.
    pub(crate) fn with_link<R>(&self, node: &str, f: impl FnOnce(&Link) -> R) -> Option<R> {
        self.peers.read().get(node)?.with_link(f)
    }

    pub(crate) fn peer(&self, node: &str) -> Option<Arc<PeerSlot>> {
        self.peers.read().get(node).cloned()
    }

    pub(crate) fn peers(&self) -> Vec<Arc<PeerSlot>> {
        let mut peers: Vec<_> = self.peers.read().values().cloned().collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// The slot of a node, made if need be; `None` when too many are known.
    pub(crate) fn peer_or_new(&self, node: &str) -> Option<Arc<PeerSlot>> {
        if let Some(slot) = self.peer(node) {
            return Some(slot);
        }
        let slot = {
            let mut peers = self.peers.write();
            if let Some(slot) = peers.get(node) {
                return Some(slot.clone());
            }
            if peers.len() >= self.limits.peers {
                return None;
            }
            let name: NodeName = node.into();
            let inboxes = inboxes(&self.handlers, &self.limits, &self.timings);
            let slot = Arc::new(PeerSlot::new(name.clone(), inboxes));
            peers.insert(name, slot.clone());
            slot
        };
        self.peers_known.send_replace(());
        Some(slot)
    }

    /// Starts the dial loop of a peer that has an address, unless it runs.
    pub(crate) fn ensure_dialing(self: &Arc<Self>, slot: &Arc<PeerSlot>, state: &mut SlotState) {
        if !state.dialing && self.is_running() {
            state.dialing = true;
            self.driver.spawn(dial_loop(self.clone(), slot.clone()));
        }
        slot.wake.notify_one();
    }

    /// Who takes a message to a path: what is served there, else the actor that runs there; with a pid, that incarnation.
    fn taker(&self, path: &str, message: &Envelope<'_>, pid: Option<u64>) -> Result<Taker, Failure> {
        if pid.is_none()
            && let Some(served) = self.registry.message(path, message)
        {
            return served.map(Taker::Served);
        }
        let (hand_over, actor) = self.shared.taker(path, pid, message)?;
        Ok(Taker::Actor(hand_over, actor))
    }

    /// Whether anybody takes a tell.
    pub(crate) fn serves(&self, tell: &Tell<'_>) -> bool {
        let version_min = tell.more.map_or(tell.version, |more| more.version_min);
        let message = Envelope { name: tell.name, version: tell.version, version_min };
        self.taker(tell.path, &message, tell.more.and_then(|more| more.pid)).is_ok()
    }

    /// Who takes tells to a path.
    pub(crate) fn teller(
        &self,
        path: &str,
        name: &str,
        version: u16,
        version_min: u16,
        pid: Option<u64>,
    ) -> Result<Box<dyn Teller>, Failure> {
        match self.taker(path, &Envelope { name, version, version_min }, pid)? {
            Taker::Served(handler) => handler.teller(),
            Taker::Actor(hand_over, actor) => (hand_over.teller)(actor),
        }
    }

    /// Handles one ask, ours or a peer's: a status and the encoded reply or the error's text. Whoever waits for it ends it at its deadline.
    pub(crate) async fn answer(self: &Arc<Self>, peer: Peer, ask: &Ask<'_>, body: Bytes) -> (u8, Bytes) {
        let deadline = deadline_in(Duration::from_millis(ask.deadline_ms));
        let version_min = ask.more.map_or(ask.version, |more| more.version_min);
        let message = Envelope { name: ask.name, version: ask.version, version_min };
        let outcome = match self.taker(ask.path, &message, ask.more.and_then(|more| more.pid)) {
            Ok(taker) => {
                let handling = guarded(|| match taker {
                    Taker::Served(handler) => handler.ask(peer, body, deadline),
                    Taker::Actor(hand_over, actor) => (hand_over.ask)(self.clone(), actor, body, deadline),
                });
                traced(ask.more.and_then(|more| more.trace), handling).await
            }
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(reply) => (status::OK, reply.into()),
            Err(Failure::Exited(exit)) => (status::EXITED, write_exit(&exit).into()),
            Err(Failure::NoReply) => (status::NO_REPLY, Bytes::new()),
            Err(Failure::BadMessage(text)) => (status::BAD_MESSAGE, text.into()),
            Err(Failure::Failed(text)) => (status::FAILED, text.into()),
            Err(Failure::NoProc) => (status::NO_PROC, Bytes::new()),
            Err(Failure::Timeout) => (status::TIMEOUT, Bytes::new()),
            Err(Failure::UnknownMessage) => (status::UNKNOWN_MESSAGE, Bytes::new()),
        }
    }

    pub(crate) fn encode_reply(&self, status: u8, body: &[u8]) -> Bytes {
        let limit = self.limits.frame_bytes;
        let reply = Reply { status, body };
        encode(Kind::Reply, &reply, limit)
            .or_else(|_| {
                let text = format!("the reply of {} bytes is over the limit of {limit}", body.len());
                let reply = Reply { status: status::FAILED, body: text.as_bytes() };
                encode(Kind::Reply, &reply, limit)
            })
            .unwrap_or_default()
            .into()
    }

    /// Gives a datagram to its handler, here and now; false if it has none.
    pub(crate) fn take_datagram(&self, peer: &Peer, datagram: Bytes) -> bool {
        let Some((path, body)) = parse_datagram(&datagram) else {
            return false;
        };
        let Some(handler) = self.registry.datagram(path) else {
            return false;
        };
        let handled = std::panic::catch_unwind(AssertUnwindSafe(|| handler(peer.clone(), body)));
        if handled.is_err() {
            tracing::error!(path, "the datagram handler of {path} panicked");
        }
        true
    }

    fn refused(&self, node: Option<&str>, addr: SocketAddr, reason: Refusal) {
        let log = {
            let mut logged = self.refusals_logged.lock();
            if logged.0.elapsed() >= Duration::from_secs(1) {
                *logged = (Instant::now(), 0);
            }
            logged.1 += 1;
            logged.1 <= REFUSALS_LOGGED_PER_SECOND
        };
        if log {
            let who = node.unwrap_or("an unknown node");
            tracing::warn!(%addr, "refused the connection with {who} at {addr}: {reason}");
        }
        let _ = self.events.send(PeerEvent::Refused { node: node.map(Into::into), addr, reason });
    }

    fn client_config(&self) -> quinn::ClientConfig {
        let mut config = quinn::ClientConfig::new(self.credentials.tls().client.clone());
        config.transport_config(self.quic.clone());
        config
    }

    /// Whether a connection may be with the node of this slot; asked under its lock before the link is put in place.
    fn admit(&self, slot: &PeerSlot, conn: &Connection, side: Side) -> Result<(), Refusal> {
        self.credentials.admit(&self.me.cluster, &slot.name, &presented(conn), side)
    }

    pub(crate) fn server_config(&self, tls: &Tls) -> quinn::ServerConfig {
        server_config(tls, &self.quic, &self.limits)
    }
}

/// Whoever takes a message.
enum Taker {
    Served(MessageHandler),
    Actor(HandOver, AnyRef),
}

pub(crate) fn server_config(tls: &Tls, quic: &Arc<quinn::TransportConfig>, limits: &Limits) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::with_crypto(tls.server.clone());
    config.transport_config(quic.clone());
    config.max_incoming(limits.handshakes);
    config.incoming_buffer_size(INCOMING_BYTES).incoming_buffer_size_total(INCOMING_BYTES * limits.handshakes as u64);
    // A peer's address is how faults find it; a peer that moves dials anew.
    config.migration(false);
    config
}

fn inboxes(handlers: &Handle, limits: &Limits, timings: &Timings) -> Arc<Inboxes> {
    Arc::new(Inboxes::new(
        handlers.clone(),
        Bounds {
            messages_max: limits.inbox_messages,
            bytes_max: limits.inbox_bytes,
            total_bytes_max: limits.inboxes_bytes,
        },
        Duration::from_millis(timings.inbox_wait_ms),
    ))
}

/// Version, length of the path, path, body.
pub(crate) fn encode_datagram(path: &str, body: &[u8]) -> Option<Bytes> {
    let path_bytes = u16::try_from(path.len()).ok()?;
    let mut datagram = Vec::with_capacity(3 + path.len() + body.len());
    datagram.push(FRAME_VERSION);
    datagram.extend_from_slice(&path_bytes.to_be_bytes());
    datagram.extend_from_slice(path.as_bytes());
    datagram.extend_from_slice(body);
    Some(datagram.into())
}

pub(crate) fn parse_datagram(datagram: &Bytes) -> Option<(&str, Bytes)> {
    let (head, rest) = datagram.split_first_chunk::<3>()?;
    let [FRAME_VERSION, high, low] = *head else {
        return None;
    };
    let path_bytes = usize::from(u16::from_be_bytes([high, low]));
    let path = std::str::from_utf8(rest.get(..path_bytes)?).ok()?;
    Some((path, datagram.slice(3 + path_bytes..)))
}

/// Takes connections until the endpoint is closed.
pub(crate) async fn accept_loop(node: Arc<Node>) {
    while let Some(incoming) = node.endpoint.accept().await {
        let from = incoming.remote_address().ip();
        match node.handshakes.judge(from, incoming.remote_address_validated()) {
            Admission::Take if node.is_running() => {
                let place = node.handshakes.take(from);
                node.driver.spawn(accept(node.clone(), incoming, place));
            }
            Admission::Prove if node.is_running() => {
                // Fails only for an address that is proven.
                let _ = incoming.retry();
            }
            _ => incoming.refuse(),
        }
    }
}

async fn accept(node: Arc<Node>, incoming: Incoming, _place: Place) {
    let addr = incoming.remote_address();
    let identity = node.credentials.identity_number();
    let within = Duration::from_millis(node.timings.connect_timeout_ms);
    let accepted = timeout(within, async {
        let conn = match incoming.accept() {
            Ok(connecting) => connecting.await,
            Err(error) => Err(error),
        };
        let conn = conn.map_err(|error| tls_refusal(&error).or_else(|| refusal_by_peer(&error)))?;
        welcome(&node, &conn, identity)
            .await
            .map_err(|(name, refusal)| refusal.map(|refusal| (conn, name, refusal)))
            .map_err(Failed::After)
    });
    match accepted.await {
        Ok(Ok(())) | Ok(Err(Failed::After(None) | Failed::Before(None))) => {}
        Ok(Err(Failed::Before(Some(refusal)))) => node.refused(None, addr, refusal),
        Ok(Err(Failed::After(Some((conn, name, refusal))))) => {
            conn.close(VarInt::from_u32(CloseCode::Refused as u32), refusal.to_string().as_bytes());
            node.refused(name.as_deref(), addr, refusal);
        }
        Err(_) => tracing::debug!(%addr, "{addr} did not complete its handshake and hello in time"),
    }
}

/// Where an inbound connection failed. `None`: nothing to report.
enum Failed {
    Before(Option<Refusal>),
    After(Option<(Connection, Option<String>, Refusal)>),
}

impl From<Option<Refusal>> for Failed {
    fn from(refusal: Option<Refusal>) -> Self {
        Self::Before(refusal)
    }
}

/// The acceptor's half of the hello; the link runs when this returns.
async fn welcome(node: &Arc<Node>, conn: &Connection, identity: u64) -> Result<(), (Option<String>, Option<Refusal>)> {
    let name = certified_name(conn, &node.me.cluster).map_err(|r| (None, Some(r)))?;
    let named = |refusal| (Some(name.clone()), refusal);
    if node.faults.cuts(&name) {
        // Its packets would have been lost, had its address been known.
        conn.close(VarInt::from_u32(CloseCode::Refused as u32), b"");
        return Err(named(None));
    }
    // A dialer that has found something wrong with us says so in place of its hello.
    let (send, mut recv) = conn.accept_bi().await.map_err(|error| named(refusal_by_peer(&error)))?;
    let hello: Hello = read_hello(&mut recv, Kind::Hello).await.map_err(&named)?;
    if name == *node.me.node {
        let refusal = Refusal::Name { expected: format!("another node than {name}"), claimed: name.clone() };
        return Err(named(Some(refusal)));
    }
    let slot = node.peer_or_new(&name).ok_or_else(|| named(Some(Refusal::TooManyPeers(node.limits.peers))))?;
    let link = {
        let mut state = slot.lock();
        if !node.is_running() {
            return Err(named(None));
        }
        match node.me.judge_hello(&name, &hello, slot.view(&state)) {
            Verdict::Accept(welcome) => {
                node.admit(&slot, conn, Side::Dialer).map_err(|refusal| named(Some(refusal)))?;
                let origin = Origin { dialed_by_us: false, dial: hello.dial };
                let link = new_link(node, &slot, hello.incarnation, origin, welcome.version, conn);
                // The first frame that goes out on this connection, before anything that is told to it.
                let frame = encode(Kind::Welcome, &welcome, MAX_HELLO_BYTES).map_err(|_| named(None))?;
                let _ = link.control.push_unbounded(&frame);
                show_newer_identity(node, &link, identity);
                slot.install(&mut state, link.clone(), &node.registry, &node.events);
                link
            }
            Verdict::Duplicate => {
                conn.close(
                    VarInt::from_u32(CloseCode::Duplicate as u32),
                    b"another connection of the two nodes counts",
                );
                return Err(named(None));
            }
            Verdict::Refuse(refusal) => return Err(named(Some(refusal))),
        }
    };
    node.driver.spawn(link::run(node.clone(), slot, link, send, recv));
    Ok(())
}

fn new_link(
    node: &Node,
    slot: &PeerSlot,
    incarnation: u64,
    origin: Origin,
    protocol: u8,
    conn: &Connection,
) -> Arc<Link> {
    node.faults.see(&slot.name, conn.remote_address());
    let peer = Peer { node: slot.name.clone(), incarnation };
    tracing::info!(node = %slot.name, incarnation, "connected to {}", slot.name);
    Arc::new(Link::new(node, slot, peer, origin, protocol, conn.clone()))
}

/// The peer of a handshake that began with an identity which is not ours any more learns the new one.
fn show_newer_identity(node: &Node, link: &Link, began_with: u64) {
    if node.credentials.identity_number() != began_with {
        link.show_identity(&node.credentials.tls().identity);
    }
}

/// The certificates that the other side has presented in the handshake, leaf first.
pub(crate) fn presented(conn: &Connection) -> Vec<CertificateDer<'static>> {
    conn.peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| *chain)
        .unwrap_or_default()
}

fn certified_name(conn: &Connection, cluster: &str) -> Result<String, Refusal> {
    let chain = presented(conn);
    let leaf = chain.first().ok_or_else(|| Refusal::Tls("no certificate presented".into()))?;
    node_of(leaf, cluster)
}

async fn read_hello<T: serde::de::DeserializeOwned>(
    recv: &mut quinn::RecvStream,
    kind: Kind,
) -> Result<T, Option<Refusal>> {
    let refuse = |error: FrameError| Some(Refusal::Hello(error.to_string()));
    let frame: Frame = read_frame(recv, MAX_HELLO_BYTES).await.map_err(|error| match error {
        ReadFrameError::Frame(error) => refuse(error),
        ReadFrameError::Gone => None,
    })?;
    if frame.kind != kind {
        return Err(refuse(FrameError::Unexpected(frame.kind)));
    }
    frame.read().map_err(refuse)
}

/// Keeps a peer connected for as long as it has an address.
async fn dial_loop(node: Arc<Node>, slot: Arc<PeerSlot>) {
    let mut phase = node.phase.subscribe();
    let mut backoff = Backoff::new(node.timings.backoff_initial_ms, node.timings.backoff_max_ms);
    loop {
        let addr = {
            let mut state = slot.lock();
            if std::mem::take(&mut state.nudged) {
                backoff.reset();
            }
            match state.addr {
                Some(addr) if node.is_running() => addr,
                _ => {
                    state.dialing = false;
                    return;
                }
            }
        };
        let mut links = slot.links();
        let up = links.borrow_and_update().clone();
        if let Some(link) = up {
            let since = Instant::now();
            tokio::select! {
                biased;
                _ = links.wait_for(|now| !now.as_ref().is_some_and(|l| Arc::ptr_eq(l, &link))) => {}
                // Removed, perhaps.
                () = slot.wake.notified() => continue,
                _ = phase.wait_for(|p| *p != Phase::Running) => continue,
            }
            if since.elapsed().as_millis() >= BACKOFF_RESET_MS {
                backoff.reset();
            }
        } else {
            match dial(&node, &slot, addr).await {
                Ok(()) => continue,
                Err(failure) => note_failure(&node, &slot, addr, failure),
            }
        }
        let pause = backoff.next(node.random.fraction());
        let nudged = async {
            loop {
                slot.wake.notified().await;
                let state = slot.lock();
                if state.nudged || state.addr.is_none() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = nudged => {}
            _ = phase.wait_for(|p| *p != Phase::Running) => {}
        }
    }
}

fn note_failure(node: &Node, slot: &PeerSlot, addr: SocketAddr, failure: DialFailure) {
    let (trouble, refusal) = match failure {
        // There is a connection, or there will be one at once.
        DialFailure::Superseded => return,
        DialFailure::Unreachable(reason) => {
            tracing::debug!(node = %slot.name, %addr, "cannot reach {} at {addr}: {reason}", slot.name);
            let reason = format!("cannot be reached at {addr}: {reason}");
            (Trouble { refused: false, reason }, None)
        }
        DialFailure::Refused(refusal) => (Trouble { refused: true, reason: refusal.to_string() }, Some(refusal)),
    };
    {
        let mut state = slot.lock();
        if slot.link().is_none() {
            state.trouble = Some(trouble);
        }
    }
    if let Some(refusal) = refusal {
        node.refused(Some(&slot.name), addr, refusal);
    }
}

/// Why a dial came to nothing.
enum DialFailure {
    Refused(Refusal),
    /// The other side's dial won, or came first.
    Superseded,
    Unreachable(String),
}

/// One dial, from the first packet to the link.
async fn dial(node: &Arc<Node>, slot: &Arc<PeerSlot>, addr: SocketAddr) -> Result<(), DialFailure> {
    node.credentials.check_name(&slot.name).map_err(DialFailure::Refused)?;
    let dial = node.next_dial.fetch_add(1, Ordering::Relaxed);
    let within = Duration::from_millis(node.timings.connect_timeout_ms);
    let dialed = timeout(within, say_hello(node, slot, addr, dial)).await;
    let mut state = slot.lock();
    if state.hello_sent == Some(dial) {
        state.hello_sent = None;
    }
    dialed.unwrap_or_else(|_| Err(DialFailure::Unreachable("no answer in time".into())))
}

/// The dialer's half of the hello.
async fn say_hello(node: &Arc<Node>, slot: &Arc<PeerSlot>, addr: SocketAddr, dial: u64) -> Result<(), DialFailure> {
    let name = server_name(&node.me.cluster, &slot.name);
    let identity = node.credentials.identity_number();
    let connecting = node
        .endpoint
        .connect_with(node.client_config(), addr, &name)
        .map_err(|e| DialFailure::Unreachable(e.to_string()))?;
    let conn = connecting.await.map_err(|e| dial_failure(&e))?;
    // Before the hello, so that a peer that is not let in is never up on its side.
    admit_acceptor(node, slot, &conn)?;
    let lost = |conn: &Connection| match conn.close_reason() {
        Some(error) => dial_failure(&error),
        None => DialFailure::Unreachable("the hello's stream was broken off".into()),
    };
    let (mut send, mut recv) = conn.open_bi().await.map_err(|_| lost(&conn))?;
    let hello = {
        let mut state = slot.lock();
        if slot.link().is_some() {
            return Err(DialFailure::Superseded);
        }
        state.hello_sent = Some(dial);
        node.me.hello(dial, slot.view(&state))
    };
    let hello = encode(Kind::Hello, &hello, MAX_HELLO_BYTES)
        .map_err(|_| DialFailure::Unreachable("the hello does not fit".into()))?;
    send.write_chunk(hello.into()).await.map_err(|_| lost(&conn))?;
    let welcome: Welcome = match read_hello(&mut recv, Kind::Welcome).await {
        Ok(welcome) => welcome,
        Err(Some(refusal)) => return Err(DialFailure::Refused(refusal)),
        Err(None) => return Err(lost(&conn)),
    };
    let link = {
        let mut state = slot.lock();
        let superseded = state.hello_sent != Some(dial) || state.addr != Some(addr);
        if superseded || !node.is_running() {
            conn.close(VarInt::from_u32(CloseCode::Duplicate as u32), b"this node gave up the dial");
            return Err(DialFailure::Superseded);
        }
        if let Err(refusal) = node.me.judge_welcome(&slot.name, &welcome, slot.view(&state)) {
            conn.close(VarInt::from_u32(CloseCode::Refused as u32), refusal.to_string().as_bytes());
            return Err(DialFailure::Refused(refusal));
        }
        admit_acceptor(node, slot, &conn)?;
        let origin = Origin { dialed_by_us: true, dial };
        let link = new_link(node, slot, welcome.incarnation, origin, welcome.version, &conn);
        show_newer_identity(node, &link, identity);
        slot.install(&mut state, link.clone(), &node.registry, &node.events);
        link
    };
    node.driver.spawn(link::run(node.clone(), slot.clone(), link, send, recv));
    Ok(())
}

fn admit_acceptor(node: &Node, slot: &PeerSlot, conn: &Connection) -> Result<(), DialFailure> {
    node.admit(slot, conn, Side::Acceptor).map_err(|refusal| {
        conn.close(VarInt::from_u32(CloseCode::Refused as u32), refusal.to_string().as_bytes());
        DialFailure::Refused(refusal)
    })
}

/// What the other side has against us, if that is why the connection is closed.
fn refusal_by_peer(error: &ConnectionError) -> Option<Refusal> {
    match dial_failure(error) {
        DialFailure::Refused(refusal @ Refusal::ByPeer(_)) => Some(refusal),
        _ => None,
    }
}

fn dial_failure(error: &ConnectionError) -> DialFailure {
    if let ConnectionError::ApplicationClosed(close) = error {
        let text = String::from_utf8_lossy(&close.reason).into_owned();
        return if CloseCode::Duplicate.is(close.error_code) {
            DialFailure::Superseded
        } else if CloseCode::Refused.is(close.error_code) && !text.is_empty() {
            DialFailure::Refused(Refusal::ByPeer(text))
        } else {
            DialFailure::Unreachable(format!("the peer closed the connection: {text}"))
        };
    }
    match tls_refusal(error) {
        Some(refusal) => DialFailure::Refused(refusal),
        None => DialFailure::Unreachable(error.to_string()),
    }
}

/// A handshake that failed over certificates or protocols, as against one that got no answer.
fn tls_refusal(error: &ConnectionError) -> Option<Refusal> {
    match error {
        ConnectionError::TransportError(error) if TLS_ALERTS.contains(&u64::from(error.code)) => {
            Some(Refusal::Tls(error.reason.clone()))
        }
        ConnectionError::ConnectionClosed(close) if TLS_ALERTS.contains(&u64::from(close.error_code)) => {
            Some(Refusal::ByPeer(format!("TLS: {}", String::from_utf8_lossy(&close.reason))))
        }
        _ => None,
    }
}

/// Ends every link; each one's loss is reported as usual.
pub(crate) fn close_links(node: &Node, code: CloseCode, text: &str) {
    for slot in node.peers() {
        if let Some(link) = slot.link() {
            link.close(code, LossReason::Closing, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_datagram_comes_out_as_it_went_in() {
        let datagram = encode_datagram("agent/lease", b"42").expect("short path");
        assert_eq!(parse_datagram(&datagram), Some(("agent/lease", Bytes::from_static(b"42"))));
        assert_eq!(encode_datagram(&"p".repeat(70_000), b""), None);
    }

    proptest! {
        #[test]
        fn datagrams_never_panic_on_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), version in any::<bool>()) {
            let mut bytes = bytes;
            if let (Some(first), true) = (bytes.first_mut(), version) {
                *first = FRAME_VERSION;
            }
            let _ = parse_datagram(&bytes.into());
        }
    }
}
