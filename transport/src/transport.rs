//! The handle that everybody uses: start, peers, ask, tell, streams, datagrams, monitors, faults, close. Cloned freely.
//! Nothing here blocks; what waits is a future that may run on any tokio runtime.

use std::{
    future::Future,
    io,
    marker::PhantomData,
    net::SocketAddr,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use phalanx_actors::{Actor, Handler, Message, Named, Ref, System, Trace};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, VarInt};
use tokio::{
    runtime::{Handle, Runtime},
    sync::{broadcast, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    ask::Request,
    config::TransportConfig,
    credentials::{self, Credentials},
    endpoint::{Node, Parts, Phase, accept_loop, close_links, encode_datagram, server_config},
    error::{AskError, AttachError, SendError, StartError},
    event::{LossReason, NodeName, Peer, PeerEvent, PeerInfo},
    fault::{FaultTable, Faults},
    fault_socket::FaultSocket,
    flow::Letter,
    frame::{More, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, REFERENCES_SINCE, Tell, put_tell},
    hello::Me,
    inbox::{Batch, Lane},
    link::{CloseCode, Link},
    monitor::{Monitor, Watcher},
    named::RemoteNamed,
    network::{ClosedSocket, DriverRuntime},
    outbox::Dialect,
    peer::Counters,
    random::Random,
    refs::{self, LOOKUP_PATH, Lookup, Reader, RemoteAddress, RemoteRef},
    registry::{Failure, Outcome, Serve, encode_reply},
    remote::{Envelope, Remote},
    shared::RemoteActor,
    stream::{RecvStream, SendStream},
    tells::{ActorTeller, Rest, TellRoute, Teller},
    tls::{Tls, check_names},
};

/// Peer events that a slow subscriber may lag behind before it misses some.
const EVENTS_MAX: usize = 4_096;

/// First guess of the round-trip time. QUIC's own third of a second would repeat a lost first packet only after a whole
/// one, too late for a cluster's failover.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// After so many turns of tasks the transport's thread looks for tasks that other threads have woken. tokio's own 31 turns
/// would let a tell wait for as many batches of a bulk stream's packets, several milliseconds.
const REMOTE_WAKES_EVERY: u32 = 2;

/// After so many turns it looks for packets and timers, if it was not idle before; tokio's own number is 61.
const EVENTS_EVERY: u32 = 8;

/// `close` and `abort` give the links so long to report their loss.
const WIND_DOWN: Duration = Duration::from_secs(1);

/// After that `close` lingers so long, so that a peer which missed the farewell hears it again.
const LINGER: Duration = Duration::from_millis(100);

/// One node's end of the cluster's network. Cheap to clone. When the last clone is dropped the transport closes; a handler
/// that holds a clone keeps it open, until [`close`](Self::close) or [`abort`](Self::abort) lets go of the handlers.
#[derive(Clone, Debug)]
pub struct Transport {
    pub(crate) node: Arc<Node>,
    running: Arc<Running>,
}

/// What ends with the last handle.
#[derive(Debug)]
struct Running {
    node: Arc<Node>,
    local_addr: SocketAddr,
    stop: watch::Sender<bool>,
    /// Resolves when the transport's thread has let go of everything.
    stopped: Shared<oneshot::Receiver<()>>,
}

impl Transport {
    /// Binds the address, starts the transport's thread, and accepts peers.
    ///
    /// # Errors
    /// The address cannot be bound, the identity is unusable, or a name is no DNS name.
    pub fn start(config: TransportConfig) -> Result<Self, StartError> {
        check_names(&config.cluster, &config.node)?;
        let tls = Tls::new(config.identity, config.trust, config.clock.clone())?;
        let handlers = match config.handlers {
            Some(handle) => handle,
            None => Handle::try_current().map_err(|_| StartError::NoRuntime)?,
        };
        let (driver, own_runtime) = match config.driver {
            Some(handle) => (handle, None),
            None => {
                let (handle, runtime) = OwnRuntime::new().map_err(StartError::Thread)?;
                (handle, Some(runtime))
            }
        };
        let faults = Arc::new(FaultTable::default());
        let random = Arc::new(Random::new(config.seed));
        let mut quic_endpoint = EndpointConfig::default();
        if config.seed.is_some() {
            quic_endpoint.rng_seed(Some(random.bytes()));
        }
        let quic = Arc::new(quic_config(&config.limits, &config.timings));
        let bind_error = |source| StartError::Bind { addr: config.bind, source };
        let (endpoint, local_addr) = {
            let _entered = driver.enter();
            let socket = config.network.bind(config.bind).map_err(bind_error)?;
            let local_addr = socket.local_addr().map_err(bind_error)?;
            let socket = Arc::new(FaultSocket::new(socket, faults.clone(), random.clone(), &driver));
            let endpoint = Endpoint::new_with_abstract_socket(
                quic_endpoint,
                Some(server_config(&tls, &quic, &config.limits)),
                socket,
                Arc::new(DriverRuntime { handle: driver.clone(), shared: own_runtime.is_some() }),
            )
            .map_err(bind_error)?;
            (endpoint, local_addr)
        };
        let node = Arc::new(Node::new(Parts {
            me: Me {
                cluster: config.cluster,
                node: config.node,
                incarnation: config.incarnation,
                protocol_max: config.protocol_max.clamp(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
            },
            limits: config.limits,
            timings: config.timings,
            driver: driver.clone(),
            handlers,
            endpoint,
            credentials: Credentials::new(tls, config.revoked, config.clock, random.fraction()),
            quic,
            faults,
            random,
            events: broadcast::Sender::new(EVENTS_MAX),
        }));
        let (stop, stopping) = watch::channel(false);
        let (stopped_sender, stopped) = oneshot::channel();
        driver.spawn(accept_loop(node.clone()));
        driver.spawn(credentials::watch(node.clone()));
        let main = wind_down(node.clone(), stopping);
        let end = {
            let node = node.clone();
            move || {
                release_socket(&node.endpoint, local_addr);
                // Nobody may be waiting.
                let _ = stopped_sender.send(());
            }
        };
        match own_runtime {
            Some(runtime) => {
                thread::Builder::new()
                    .name("transport".into())
                    .spawn(move || {
                        runtime.run(main);
                        end();
                    })
                    .map_err(StartError::Thread)?;
            }
            None => {
                driver.spawn(async move {
                    main.await;
                    end();
                });
            }
        }
        let transport = Self {
            node: node.clone(),
            running: Arc::new(Running { node, local_addr, stop, stopped: stopped.shared() }),
        };
        transport.serve_lookups();
        Ok(transport)
    }

    /// The bound UDP address.
    pub fn local_addr(&self) -> SocketAddr {
        self.running.local_addr
    }

    /// This node's name.
    pub fn node(&self) -> &NodeName {
        &self.node.me.node
    }

    /// This boot's number.
    pub fn incarnation(&self) -> u64 {
        self.node.me.incarnation
    }

    /// Keeps `node` connected at `addr` from now on; dials at once. A changed address ends a connection to another
    /// place. One's own name is ignored.
    pub fn set_peer(&self, node: impl AsRef<str>, addr: SocketAddr) {
        let name = node.as_ref();
        if name == &*self.node.me.node || !self.node.is_running() {
            return;
        }
        let Some(slot) = self.node.peer_or_new(name) else {
            tracing::warn!("cannot add peer {name}: more than {} peers", self.node.limits.peers);
            return;
        };
        self.node.faults.place(&slot.name, Some(addr));
        let mut state = slot.lock();
        let before = state.addr.replace(addr);
        if before.is_some_and(|before| before != addr)
            && let Some(link) = slot.link()
            && link.conn.remote_address() != addr
        {
            link.close(CloseCode::Removed, LossReason::Removed, "the peer has moved");
        }
        if before != Some(addr) {
            state.trouble = None;
        }
        state.nudged = true;
        self.node.ensure_dialing(&slot, &mut state);
    }

    /// Ends the connection to `node` and dials it no more. If it dials us, it is connected again.
    pub fn remove_peer(&self, node: &str) {
        let Some(slot) = self.node.peer(node) else {
            return;
        };
        self.node.faults.place(&slot.name, None);
        slot.lock().addr = None;
        if let Some(link) = slot.link() {
            link.close(CloseCode::Removed, LossReason::Removed, "removed as a peer");
        }
        slot.wake.notify_one();
    }

    /// Dials `node` now instead of at the end of its backoff, if it is set and not connected.
    pub fn nudge(&self, node: &str) {
        if let Some(slot) = self.node.peer(node) {
            slot.lock().nudged = true;
            slot.wake.notify_one();
        }
    }

    /// Every peer known, by name.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.node.peers().iter().map(|slot| slot.info()).collect()
    }

    /// Whether `node` is connected now (one's own always is).
    pub fn is_connected(&self, node: &str) -> bool {
        self.is_own(node) || self.node.peer(node).is_some_and(|slot| slot.link().is_some())
    }

    /// Changes of peers from now on.
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.node.events.subscribe()
    }

    /// This transport's fault injection.
    pub fn faults(&self) -> Faults {
        Faults { table: self.node.faults.clone() }
    }

    /// Handles messages `M` to `path`, from peers and from this node. Tells from one sender run one after the other in
    /// the order sent; asks run at once, side by side. `f` runs on the handlers' runtime; `Err` is the asker's
    /// [`AskError::Remote`].
    ///
    /// **The future of an ask is dropped when its asker gives up or is lost.** What must not stop half way is spawned.
    pub fn serve<M, F, Fut>(&self, path: &str, f: F)
    where
        M: Remote,
        F: Fn(Peer, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<M::Reply, String>> + Send + 'static,
    {
        let served = Served { f, node: Arc::downgrade(&self.node), message: PhantomData::<fn(M)> };
        self.node.registry.serve(path, Envelope::of::<M>(), Arc::new(served));
    }

    /// Lets peers (and this node) tell and ask `M` to a local actor at `path`, whichever incarnation of it runs. Tells wait
    /// for room in its mailbox, and so in time for the sender; without an incarnation they are dropped, and an ask is
    /// [`AskError::NoProc`]. A monitor on `path` reports the exit of the incarnation that ran when it was set. Expose one
    /// actor for each path; several messages of it are several calls.
    pub fn expose<A, M>(&self, path: &str, actor: Named<A>)
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let living = actor.clone();
        self.node.registry.set_life(
            path,
            Arc::new(move || {
                let pid = living.resolve()?.pid();
                Some(Box::pin(async move { pid.exited().await }))
            }),
        );
        let exposed = Exposed { actor, node: Arc::downgrade(&self.node), message: PhantomData::<fn(M)> };
        self.node.registry.serve(path, Envelope::of::<M>(), Arc::new(exposed));
    }

    /// Lets other nodes refer to the actors of this system, those whose type is [shared](Self::share): by
    /// [`lookup`](Self::lookup) and [`named`](Self::named), and by references in messages. What is served or exposed at a path
    /// comes before an actor there. The transport does not keep the system alive.
    ///
    /// # Errors
    /// Another system is attached: a node has one.
    pub fn attach(&self, system: &System) -> Result<(), AttachError> {
        self.node.shared.attach(system)
    }

    /// Lets other nodes refer to actors of this type: they may look them up, send them the messages of their
    /// [`protocol`](RemoteActor::protocol), monitor, link, stop and kill them. Actors of other types are not seen.
    pub fn share<A: RemoteActor>(&self) {
        self.node.shared.share::<A>();
    }

    /// A reference to the actor of type `A` that runs at `path` on `node` now. Waits for a connection, for
    /// [`Timings::lookup_ms`](crate::Timings::lookup_ms) at most.
    ///
    /// # Errors
    /// [`AskError::NoProc`]: no shared actor runs there; [`AskError::OtherType`]: not one of type `A`.
    pub fn lookup<A: RemoteActor>(
        &self,
        node: &str,
        path: &str,
    ) -> impl Future<Output = Result<RemoteRef<A>, AskError>> + Send + 'static + use<A> {
        let (own, node, path) = (self.node.clone(), node.to_owned(), path.to_owned());
        async move { refs::lookup(&own, &node, &path).await }
    }

    /// A reference to whoever runs at `path` on `node` whenever it is used.
    pub fn named<A: RemoteActor>(&self, node: &str, path: &str) -> RemoteNamed<A> {
        RemoteNamed::new(&self.node, node, path)
    }

    /// A reference that can be sent to other nodes; its type is shared. The actor is one of the attached system.
    pub fn reference<A: RemoteActor>(&self, actor: &Ref<A>) -> RemoteRef<A> {
        self.share::<A>();
        RemoteRef::here(&self.node, actor.clone())
    }

    /// The reference to an address.
    pub fn resolve<A: RemoteActor>(&self, address: RemoteAddress) -> RemoteRef<A> {
        RemoteRef::resolve(&self.node, address)
    }

    fn serve_lookups(&self) {
        if self.node.me.protocol_max < REFERENCES_SINCE {
            return;
        }
        let node = Arc::downgrade(&self.node);
        self.serve::<Lookup, _, _>(LOOKUP_PATH, move |_, lookup| {
            let found = node.upgrade().map(|node| lookup.answer(&node));
            async move { found.ok_or_else(|| "the node is closed".into()) }
        });
    }

    /// Handles streams to `path`. `f` gets the header that the opener sent; it runs on the handlers' runtime.
    pub fn serve_stream<F, Fut>(&self, path: &str, f: F)
    where
        F: Fn(Peer, Bytes, SendStream, RecvStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.node
            .registry
            .serve_stream(path, Arc::new(move |peer, header, send, recv| Box::pin(f(peer, header, send, recv))));
    }

    /// Handles datagrams to `path`. `f` runs on the transport's own thread and must not block.
    pub fn serve_datagram<F>(&self, path: &str, f: F)
    where
        F: Fn(Peer, Bytes) + Send + Sync + 'static,
    {
        self.node.registry.serve_datagram(path, Arc::new(f));
    }

    /// Serves nothing at `path` any more; monitors on it fire with `Exit::Shutdown`.
    pub fn unserve(&self, path: &str) {
        self.node.registry.unserve(path);
    }

    /// Sends `msg` to `path` on `node` and waits for its answer, for `deadline` at most. Waits for a connection if there
    /// is none. The message is encoded before this returns; dropping the future cancels the request.
    pub fn ask<M: Remote>(
        &self,
        node: &str,
        path: &str,
        msg: &M,
        deadline: Duration,
    ) -> impl Future<Output = Result<M::Reply, AskError>> + Send + 'static + use<M> {
        let body = rmp_serde::to_vec(msg).map_err(|e| AskError::Unencodable(e.to_string()));
        let request = Request::new(&self.node, node, path, Envelope::of::<M>(), deadline);
        let (own, path) = (self.node.clone(), path.to_owned());
        async move {
            let reply = request.run(body?.into()).await?;
            refs::read_reply(&own, &path, &reply)
        }
    }

    /// Sends `msg` to `path` on `node`, in order after what was told before. Never waits.
    ///
    /// # Errors
    /// No connection now, or the outbox is full. `Ok` does not mean that it arrives.
    pub fn tell<M: Remote>(&self, node: &str, path: &str, msg: &M) -> Result<(), SendError> {
        self.tell_on(Lane::Tells, node, path, msg)
    }

    /// As [`tell`](Self::tell), on the control lane: ahead of bulk, ordered among control tells, and dropped by a receiver
    /// whose inbox is full. For small urgent messages.
    ///
    /// # Errors
    /// As `tell`.
    pub fn tell_control<M: Remote>(&self, node: &str, path: &str, msg: &M) -> Result<(), SendError> {
        self.tell_on(Lane::Control, node, path, msg)
    }

    fn tell_on<M: Remote>(&self, lane: Lane, node: &str, path: &str, msg: &M) -> Result<(), SendError> {
        if !self.node.is_running() {
            return Err(SendError::Closed);
        }
        refs::encoded(msg, |body| {
            let trace = Trace::current().map(|trace| trace.to_string());
            let letter = Letter { path, message: Envelope::of::<M>(), pid: None, trace: trace.as_deref(), body };
            if self.is_own(node) {
                return self.tell_own(lane, &letter);
            }
            let told = self.node.with_link(node, |link| {
                match lane {
                    Lane::Control => {
                        let mut frame = vec![];
                        put_tell(&mut frame, &letter, link.dialect())?;
                        link.control.push(&frame).map_err(|error| refs::push_error(error, link))?;
                    }
                    Lane::Tells => {
                        link.tells.tell(&letter, link.dialect()).map_err(|error| refs::tell_error(error, link))?;
                    }
                }
                Counters::add(&link.counters.sent);
                Ok(())
            });
            told.unwrap_or_else(|| Err(SendError::NoConnection { node: node.into() }))
        })
    }

    fn tell_own(&self, lane: Lane, letter: &Letter<'_>) -> Result<(), SendError> {
        let Letter { path, message, body, trace, .. } = *letter;
        let dialect = Dialect { references: true, routes: false, frame_bytes: self.node.limits.frame_bytes };
        // For the limit's sake alone: what is too large for a peer is too large here.
        put_tell(&mut vec![], letter, dialect)?;
        if self.node.teller(path, message.name, message.version, message.version_min, None).is_err() {
            // Not served is a message lost, as on a peer.
            return Ok(());
        }
        let more = Some(More { version_min: message.version_min, pid: None, trace });
        let tell = Tell { path, name: message.name, version: message.version, body, more };
        let mut batch = Batch::new(Arc::new(TellRoute::of_tell(&self.node, &self.node.own_peer(), None, &tell)));
        batch.push(trace, body);
        match self.node.own_inboxes.try_deliver(lane, batch) {
            true => Ok(()),
            false => Err(SendError::Full { node: self.node.me.node.to_string() }),
        }
    }

    /// Opens a stream to `path` on `node`, with a first header of bytes. Resolves once the other side serves it.
    pub fn open_stream(
        &self,
        node: &str,
        path: &str,
        header: Bytes,
    ) -> impl Future<Output = Result<(SendStream, RecvStream), AskError>> + Send + 'static + use<> {
        let within = Duration::from_millis(self.node.timings.open_stream_ms);
        let request = Request::new(&self.node, node, path, Envelope { name: "", version: 0, version_min: 0 }, within);
        request.open(header)
    }

    /// Sends a datagram to `path` on `node`: at most once, in no order, at most about a packet long.
    ///
    /// # Errors
    /// No connection now, or too large for a packet.
    pub fn datagram(&self, node: &str, path: &str, body: Bytes) -> Result<(), SendError> {
        if !self.node.is_running() {
            return Err(SendError::Closed);
        }
        let too_large = |bytes, limit| SendError::TooLarge { bytes, limit };
        let datagram = encode_datagram(path, &body).ok_or_else(|| too_large(path.len(), usize::from(u16::MAX)))?;
        if self.is_own(node) {
            let node = self.node.clone();
            self.node.driver.spawn(async move {
                node.take_datagram(&node.own_peer(), datagram);
            });
            return Ok(());
        }
        let no_connection = || SendError::NoConnection { node: node.into() };
        let slot = self.node.peer(node).ok_or_else(no_connection)?;
        let link = slot.link().ok_or_else(no_connection)?;
        let bytes = datagram.len();
        link.conn.send_datagram(datagram).map_err(|e| match e {
            quinn::SendDatagramError::TooLarge => too_large(bytes, link.conn.max_datagram_size().unwrap_or(0)),
            _ => no_connection(),
        })?;
        Counters::add(&slot.counters.sent);
        Ok(())
    }

    /// Watches `path` on `node` from now on. The future resolves exactly once: with `Exit::NoProc` if nothing is served
    /// there (or the exposed actor does not run), with its exit when it ends, with `Exit::NoConnection` when the connection
    /// is lost for any reason or there is none now.
    pub fn monitor(&self, node: &str, path: &str) -> Monitor {
        let monitor = |fired, cancel| Monitor { node: node.into(), path: path.into(), fired, cancel };
        if self.is_own(node)
            && !self.node.registry.serves(path)
            && let Some(actor) = self.node.shared.find(path, None)
        {
            let (sender, fired) = oneshot::channel();
            let watch = actor.pid().on_exit(move |reason| drop(sender.send(reason.clone())));
            return monitor(fired, watch.map(|watch| -> Box<dyn FnOnce() + Send> { Box::new(move || drop(watch)) }));
        }
        if self.is_own(node) {
            let (sender, fired) = oneshot::channel();
            let watcher = Arc::new(Watcher::local(sender));
            let watch = self.node.registry.watch(path, watcher, &self.node.driver);
            let (own, path) = (self.node.clone(), path.to_owned());
            let cancel =
                watch.map(|id| -> Box<dyn FnOnce() + Send> { Box::new(move || own.registry.unwatch(&path, id)) });
            return monitor(fired, cancel);
        }
        let Some(link) = self.node.peer(node).and_then(|slot| slot.link()) else {
            // A sender that is gone reads as NoConnection.
            return monitor(oneshot::channel().1, None);
        };
        let (id, fired) = link.monitor(path);
        let link = Arc::downgrade(&link);
        monitor(
            fired,
            Some(Box::new(move || {
                if let Some(link) = link.upgrade() {
                    link.demonitor(id);
                }
            })),
        )
    }

    /// Runs a future on the transport's own thread; for timers that must not be late. It must not block.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.node.driver.spawn(future)
    }

    /// Closes in order: takes nothing new, writes out what was told, tells the peers, and frees the address. Whoever gives up
    /// waiting for it does not stop it, and every caller waits for the same end.
    pub async fn close(&self) {
        if self.node.enter(Phase::Closing) {
            let links: Vec<Arc<Link>> = self.node.peers().iter().filter_map(|s| s.link()).collect();
            for link in &links {
                link.control.close();
                link.tells.close();
            }
            // A task of its own, for this future may be dropped at any time, and nobody else would go on.
            self.node.driver.spawn(end_in_order(self.node.clone(), links, self.running.stop.clone()));
        }
        // An error means that the runtime is gone, and the socket with it.
        let _ = self.running.stopped.clone().await;
    }

    /// Ends as if the process had died: not one packet more, the peers find out by themselves. Returns at once; `close`
    /// afterwards waits until the address is free.
    pub fn abort(&self) {
        self.node.faults.die();
        self.node.enter(Phase::Dead);
        close_links(&self.node, CloseCode::Closing, "");
        self.running.stop.send_replace(true);
    }

    fn is_own(&self, node: &str) -> bool {
        *node == *self.node.me.node
    }
}

/// A function that handles messages.
struct Served<M, F> {
    f: F,
    node: Weak<Node>,
    message: PhantomData<fn(M)>,
}

impl<M, F, Fut> Serve for Served<M, F>
where
    M: Remote,
    F: Fn(Peer, M) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<M::Reply, String>> + Send + 'static,
{
    fn ask(&self, peer: Peer, body: Bytes, _: Instant) -> BoxFuture<'static, Outcome> {
        let handling = read_message(&self.node, &body).map(|message| (self.f)(peer, message));
        Box::pin(async move { encode_reply(&handling?.await.map_err(Failure::Failed)?) })
    }

    fn teller(self: Arc<Self>) -> Result<Box<dyn Teller>, Failure> {
        Ok(Box::new(ServedTeller(self)))
    }
}

struct ServedTeller<M, F>(Arc<Served<M, F>>);

impl<M, F, Fut> Teller for ServedTeller<M, F>
where
    M: Remote,
    F: Fn(Peer, M) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<M::Reply, String>> + Send + 'static,
{
    fn tell(&mut self, reader: &mut Reader, peer: &Peer, body: &[u8]) -> Result<Option<Rest>, Failure> {
        let handling = (self.0.f)(peer.clone(), reader.read(body)?);
        Ok(Some(Box::pin(async move { handling.await.map(drop).map_err(Failure::Failed) })))
    }
}

/// An actor that handles messages.
struct Exposed<A: Actor, M> {
    actor: Named<A>,
    node: Weak<Node>,
    message: PhantomData<fn(M)>,
}

impl<A, M> Serve for Exposed<A, M>
where
    A: Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn ask(&self, _: Peer, body: Bytes, deadline: Instant) -> BoxFuture<'static, Outcome> {
        let message = read_message::<M>(&self.node, &body);
        let actor = self.actor.clone();
        Box::pin(async move {
            let actor = actor.resolve().ok_or(Failure::NoProc)?;
            let reply = actor.ask_due(message?, deadline).await.map_err(Failure::from)?;
            encode_reply(&reply)
        })
    }

    fn teller(self: Arc<Self>) -> Result<Box<dyn Teller>, Failure> {
        let actor = self.actor.resolve().ok_or(Failure::NoProc)?;
        Ok(Box::new(ActorTeller::<A, M>::new(actor)))
    }
}

fn read_message<M: Remote>(node: &Weak<Node>, body: &[u8]) -> Result<M, Failure> {
    // Without a node there is nobody left to answer.
    let node = node.upgrade().ok_or(Failure::NoProc)?;
    refs::read(&node, body)
}

impl Drop for Running {
    fn drop(&mut self) {
        // Else whoever closes it says when it is to stop.
        if self.node.enter(Phase::Closing) {
            close_links(&self.node, CloseCode::Closing, "the node is closing");
            self.stop.send_replace(true);
        }
    }
}

/// The runtime of the transport's thread. Tokio's own panics when it is dropped in async code, where `start` may fail.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn new() -> io::Result<(Handle, Self)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .global_queue_interval(REMOTE_WAKES_EVERY)
            .event_interval(EVENTS_EVERY)
            .build()?;
        Ok((runtime.handle().clone(), Self(Some(runtime))))
    }

    /// Runs until the future ends; whatever else runs on it ends then.
    fn run(mut self, main: impl Future<Output = ()>) {
        if let Some(runtime) = self.0.take() {
            runtime.block_on(main);
            runtime.shutdown_background();
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets go of the socket, even of the copy that an endpoint keeps for packets that are still on their way.
fn release_socket(endpoint: &Endpoint, addr: SocketAddr) {
    for _ in 0..2 {
        // Fails only without a local address.
        let _ = endpoint.rebind_abstract(Arc::new(ClosedSocket(addr)));
    }
}

/// Closes the links when what was told is written out, then has everything stop.
async fn end_in_order(node: Arc<Node>, links: Vec<Arc<Link>>, stop: watch::Sender<bool>) {
    let flushed = async {
        for link in &links {
            tokio::select! {
                biased;
                _ = link.written.acquire_many(2) => {}
                _ = link.conn.closed() => {}
            }
        }
    };
    // What cannot be written in time is lost, as the contract allows.
    let _ = timeout(Duration::from_millis(node.timings.close_flush_ms), flushed).await;
    close_links(&node, CloseCode::Closing, "the node is closing");
    stop.send_replace(true);
}

/// The transport's main task: waits for the end, then lets the connections end.
async fn wind_down(node: Arc<Node>, mut stopping: watch::Receiver<bool>) {
    // An error means that the handle is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
    let links_gone = async {
        for slot in node.peers() {
            let _ = slot.links().wait_for(Option::is_none).await;
        }
    };
    let _ = timeout(WIND_DOWN, links_gone).await;
    // One whose tasks are stuck is lost all the same: whoever watches over it must hear so, for nobody will come back to it.
    for slot in node.peers() {
        if let Some(link) = slot.link() {
            slot.lose(&mut slot.lock(), &link, &LossReason::Closing, &node.registry, &node.events);
        }
    }
    node.endpoint.close(VarInt::from_u32(CloseCode::Closing as u32), b"the node is closing");
    if !node.is_dead() {
        let _ = timeout(LINGER, node.endpoint.wait_idle()).await;
    }
    node.registry.clear();
    node.credentials.clear();
    node.groups.clear();
    node.shared.clear();
}

fn quic_config(limits: &crate::config::Limits, timings: &crate::config::Timings) -> quinn::TransportConfig {
    let mut quic = quinn::TransportConfig::default();
    let idle = VarInt::from_u64(timings.idle_timeout_ms).unwrap_or(VarInt::MAX);
    let window = VarInt::from_u64(limits.unread_bytes() as u64).unwrap_or(VarInt::MAX);
    quic.max_concurrent_bidi_streams(limits.bidi_streams().into())
        .max_concurrent_uni_streams(1u32.into())
        .stream_receive_window(limits.stream_window_bytes.into())
        .receive_window(window)
        .send_window(limits.unacknowledged_bytes() as u64)
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .keep_alive_interval(Some(Duration::from_millis(timings.keep_alive_ms)))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(Some(limits.datagram_bytes))
        .datagram_send_buffer_size(limits.datagram_bytes);
    quic
}
