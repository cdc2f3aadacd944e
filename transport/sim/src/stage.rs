//! A stage for scripted simulations: nodes that run one transport each, a script that acts on them and on the network
//! between them, and a history of what everybody saw, in virtual time. The script is the caller's thread; nothing moves
//! but while it waits. The same seed and script give the same history, byte for byte.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Display,
    future::Future,
    ops::RangeInclusive,
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use phalanx_transport::{PeerEvent, Transport, TransportConfig};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    task::JoinSet,
};

use crate::{Authority, config};

/// Packets that wait on a host; more are lost, as in a socket's buffer.
const SOCKET_PACKETS_MAX: usize = 4_096;

/// A script may take so long, in virtual time.
const SCRIPT_MAX: Duration = Duration::from_secs(3_600);

type Act = Pin<Box<dyn Future<Output = ()>>>;
type Job = Box<dyn FnOnce(Node) -> Act>;
type Configure = Rc<dyn Fn(&mut TransportConfig)>;

/// A simulated cluster and the script's hands on it.
pub struct Stage {
    sim: turmoil::Sim<'static>,
    seed: u64,
    authority: Authority,
    configure: Configure,
    history: History,
    nodes: BTreeMap<String, Host>,
}

/// What the script has of one node.
struct Host {
    jobs: mpsc::UnboundedSender<Job>,
    boots: Rc<Cell<u64>>,
}

/// One boot of a node, in the hands of what runs on its host.
#[derive(Clone)]
pub struct Node {
    /// Its transport. Must not leave the host.
    pub transport: Transport,
    history: History,
    spawned: mpsc::UnboundedSender<Act>,
}

/// What everybody saw, in the order of time.
#[derive(Clone, Default)]
struct History(Rc<RefCell<Vec<String>>>);

/// The outcome of something that was started, once there is one.
pub struct Started<T>(Rc<RefCell<Option<T>>>);

impl<T> Started<T> {
    /// The outcome, if there is one that was not taken before.
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }
}

impl Stage {
    /// An empty network, on which each packet takes a random while of `latency`; so packets overtake each other.
    pub fn new(seed: u64, latency: RangeInclusive<Duration>) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .min_message_latency(*latency.start())
            .max_message_latency(*latency.end())
            .udp_capacity(SOCKET_PACKETS_MAX)
            .simulation_duration(SCRIPT_MAX)
            .build();
        let history = History::default();
        let authority = Authority::new("test");
        Self { sim, seed, authority, configure: Rc::new(|_| {}), history, nodes: BTreeMap::new() }
    }

    /// Changes the configuration of transports that are started from now on.
    pub fn configure(&mut self, configure: impl Fn(&mut TransportConfig) + 'static) {
        self.configure = Rc::new(configure);
    }

    /// Adds a node. Each boot has the next incarnation, from 1; `setup` runs at each, before anything else on the node.
    pub fn node(&mut self, name: &str, setup: impl Fn(&Node) + 'static) {
        let (jobs, taken) = mpsc::unbounded_channel();
        let boots = Rc::new(Cell::new(0));
        self.nodes.insert(name.into(), Host { jobs, boots: boots.clone() });
        // The jobs of one boot wait for the next if it ends first.
        let taken = Rc::new(tokio::sync::Mutex::new(taken));
        let setup = Rc::new(setup);
        let (authority, configure, history) = (self.authority.clone(), self.configure.clone(), self.history.clone());
        let (seed, host) = (self.seed, name.to_owned());
        self.sim.host(name, move || {
            boots.set(boots.get() + 1);
            let mut config = config(&authority, &host, boots.get(), seed);
            configure(&mut config);
            let (taken, setup, history) = (taken.clone(), setup.clone(), history.clone());
            async move {
                let (spawned, acts) = mpsc::unbounded_channel();
                let node = Node { transport: Transport::start(config)?, history, spawned };
                let mut events = node.transport.events();
                let observer = node.clone();
                node.spawn(async move {
                    loop {
                        match events.recv().await {
                            Ok(event) => observer.note(describe(&event)),
                            Err(RecvError::Lagged(missed)) => observer.note(format_args!("missed {missed} events")),
                            Err(RecvError::Closed) => return,
                        }
                    }
                });
                setup(&node);
                perform(node, &mut *taken.lock().await, acts).await;
                Ok(())
            }
        });
    }

    /// Starts something on a node, which goes on while the script waits. A panic in it fails the script.
    pub fn start<F, Fut, T>(&self, node: &str, act: F) -> Started<T>
    where
        F: FnOnce(Node) -> Fut + 'static,
        Fut: Future<Output = T>,
        T: 'static,
    {
        let outcome = Rc::new(RefCell::new(None));
        let put = outcome.clone();
        let job: Job = Box::new(move |node| {
            Box::pin(async move {
                let done = act(node).await;
                *put.borrow_mut() = Some(done);
            })
        });
        // The receiver lives as long as the simulation.
        let _ = self.host(node).jobs.send(job);
        Started(outcome)
    }

    /// Runs something on a node and waits for it.
    ///
    /// # Panics
    /// When it panics, or when its node crashes meanwhile and it never ends.
    pub fn run<F, Fut, T>(&mut self, node: &str, act: F) -> T
    where
        F: FnOnce(Node) -> Fut + 'static,
        Fut: Future<Output = T>,
        T: 'static,
    {
        let started = self.start(node, act);
        loop {
            if let Some(done) = started.take() {
                return done;
            }
            self.step();
        }
    }

    /// Lets virtual time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    /// Lets virtual time pass until something is so.
    pub fn until(&mut self, mut condition: impl FnMut(&Self) -> bool) {
        while !condition(self) {
            self.step();
        }
    }

    /// Lets virtual time pass until a line of the history, from line `from` on, contains `text`; gives the number of
    /// the line after it.
    pub fn until_noted(&mut self, from: usize, text: &str) -> usize {
        loop {
            let found = self.history.0.borrow().iter().skip(from).position(|line| line.contains(text));
            if let Some(at) = found {
                return from + at + 1;
            }
            self.step();
        }
    }

    fn host(&self, node: &str) -> &Host {
        self.nodes.get(node).unwrap_or_else(|| panic!("no node {node}"))
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            panic!("{error}; seed {}, history:\n{}", self.seed, self.history());
        }
    }

    /// How often the node was booted: the incarnation of the last boot.
    pub fn boots(&self, node: &str) -> u64 {
        self.host(node).boots.get()
    }

    /// The node is gone as by a power cut: nothing on it runs on, no packet leaves it.
    pub fn crash(&mut self, node: &str) {
        self.note(format_args!("crash of {node}"));
        self.sim.crash(node);
    }

    /// Boots a crashed node again, with the next incarnation; or power-cycles a running one.
    pub fn restart(&mut self, node: &str) {
        self.note(format_args!("restart of {node}"));
        self.sim.bounce(node);
    }

    /// Loses every packet between two nodes from now on, also those under way.
    pub fn partition(&mut self, a: &str, b: &str) {
        self.note(format_args!("partition of {a} and {b}"));
        self.sim.partition(a, b);
    }

    /// Loses every packet of one direction.
    pub fn cut(&mut self, from: &str, to: &str) {
        self.note(format_args!("cut from {from} to {to}"));
        self.sim.partition_oneway(from, to);
    }

    /// Ends partition and cuts between two nodes.
    pub fn repair(&mut self, a: &str, b: &str) {
        self.note(format_args!("repair of {a} and {b}"));
        self.sim.repair(a, b);
    }

    /// Keeps every packet between two nodes from now on, also those under way: to each, the other stands still.
    pub fn hold(&mut self, a: &str, b: &str) {
        self.note(format_args!("hold between {a} and {b}"));
        self.sim.hold(a, b);
    }

    /// Delivers all that was kept, at once, and keeps no more.
    pub fn release(&mut self, a: &str, b: &str) {
        self.note(format_args!("release between {a} and {b}"));
        self.sim.release(a, b);
    }

    /// Each packet between the two takes so long from now on.
    pub fn latency(&mut self, a: &str, b: &str, latency: Duration) {
        self.note(format_args!("latency of {a} and {b} is {latency:?}"));
        self.sim.set_link_latency(a, b, latency);
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Notes a line as the script's own.
    pub fn note(&self, what: impl Display) {
        self.history.note(self.sim.elapsed(), "script", what);
    }

    /// Number of lines noted so far.
    pub fn noted(&self) -> usize {
        self.history.0.borrow().len()
    }

    /// Everything noted: virtual milliseconds, who, what.
    pub fn history(&self) -> String {
        self.history.0.borrow().join("\n")
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stage(seed {}, {:?}, {:?})", self.seed, self.nodes.keys(), self.elapsed())
    }
}

impl Node {
    /// Runs something on the node's host for as long as this boot of it lives. A panic in it fails the script.
    pub fn spawn(&self, act: impl Future<Output = ()> + 'static) {
        // Fails only when the boot has ended.
        let _ = self.spawned.send(Box::pin(act));
    }

    /// Notes a line in the history, with the virtual time and this node's name and incarnation.
    pub fn note(&self, what: impl Display) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let who = format!("{}/{}", self.transport.node(), self.transport.incarnation());
        self.history.note(now, &who, what);
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({}/{})", self.transport.node(), self.transport.incarnation())
    }
}

impl History {
    fn note(&self, now: Duration, who: &str, what: impl Display) {
        self.0.borrow_mut().push(format!("{:>7} {who}: {what}", now.as_millis()));
    }
}

/// Runs a boot's jobs and what it spawns, side by side, for as long as the host runs. A panic of any is the host's.
async fn perform(node: Node, jobs: &mut mpsc::UnboundedReceiver<Job>, mut acts: mpsc::UnboundedReceiver<Act>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(done) = running.join_next() => {
                if let Err(error) = done
                    && error.is_panic()
                {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            Some(act) = acts.recv() => {
                running.spawn_local(act);
            }
            job = jobs.recv() => match job {
                Some(job) => {
                    running.spawn_local(job(node.clone()));
                }
                None => return,
            },
        }
    }
}

fn describe(event: &PeerEvent) -> String {
    match event {
        PeerEvent::Up { node, incarnation } => format!("up {node}/{incarnation}"),
        PeerEvent::Down { node, incarnation, reason } => format!("down {node}/{incarnation}: {reason}"),
        PeerEvent::Refused { node, reason, .. } => {
            format!("refused {}: {reason}", node.as_deref().unwrap_or("somebody"))
        }
    }
}
