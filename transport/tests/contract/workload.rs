//! What the nodes do: everything that the transport offers, at random, all at once, and all of it recorded. Started by
//! `main` at each boot. Must judge nothing but what no record can hold: bytes that are not those that were sent.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{FutureExt, future};
use phalanx_transport::{AskError, Down, Exit, Monitor, PeerEvent, Remote};
use phalanx_transport_sim::{Node, Stage, Started, addr};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast,
    task::unconstrained,
    time::{sleep, timeout},
};

use crate::{
    NODES, SLOW_INBOX_BYTES,
    records::{Ask, Body, Boot, Change, Event, Flow, Handled, Lane, Shared, Tell, Watch},
};

/// Paths that are told and asked, and served for as long as their node lives.
const PATHS: [&str; 2] = ["p", "q"];

/// A path that is served and unserved at random.
const MORTAL: &str = "mortal";

/// A path that is never served.
const NOTHING: &str = "nothing";

/// Tells of a burst.
const BURST_TELLS: usize = 60;

/// An ask whose handler takes so long is never answered.
const NEVER_MS: u64 = 1_000_000;

/// Deadline of an ask that is given up by then: longer than the simulation, so that no deadline ends what nobody waits for.
const PATIENT: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Told {
    from: Boot,
    control: bool,
    path: String,
    number: usize,
    #[serde(with = "serde_bytes")]
    padding: Vec<u8>,
}

impl Remote for Told {
    const NAME: &'static str = "contract/Told";
    type Reply = ();
}

#[derive(Serialize, Deserialize)]
struct Question {
    id: u64,
    takes_ms: u64,
}

impl Remote for Question {
    const NAME: &'static str = "contract/Question";
    type Reply = u64;
}

/// What the right answer to an ask is.
pub fn answer(id: u64) -> u64 {
    id * 3 + 1
}

fn now() -> Duration {
    turmoil::sim_elapsed().expect("in a simulation")
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Everything that one task of one boot needs.
#[derive(Clone)]
struct Task {
    node: Node,
    boot: Boot,
    records: Shared,
    links: Rc<RefCell<Links>>,
    pending: Rc<RefCell<Vec<Pending>>>,
}

/// A monitor on a connection: the peer, which connection to it, the watch's number, and what it resolves to.
type Pending = (&'static str, usize, u64, future::Shared<future::Map<Monitor, fn(Down) -> Exit>>);

/// The boot's connections, counted by its own events: exact, for it is read before each act.
struct Links {
    events: broadcast::Receiver<PeerEvent>,
    /// How many there were to each peer, and whether the last one is up.
    counts: BTreeMap<String, (usize, bool)>,
}

impl Links {
    fn count(&mut self, peer: &str) -> (usize, bool) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                PeerEvent::Up { node, .. } => {
                    let (count, up) = self.counts.entry(node.to_string()).or_default();
                    (*count, *up) = (*count + 1, true);
                }
                PeerEvent::Down { node, .. } => self.counts.entry(node.to_string()).or_default().1 = false,
                PeerEvent::Refused { .. } => {}
            }
        }
        self.counts.get(peer).copied().unwrap_or_default()
    }
}

/// Sets a boot of a node up and lets it work.
pub fn boot(node: &Node, records: &Shared, seed: u64) {
    let transport = &node.transport;
    let boot = (transport.node().to_string(), transport.incarnation());
    let links = Links { events: transport.events(), counts: BTreeMap::new() };
    let task = Task {
        node: node.clone(),
        boot,
        records: records.clone(),
        links: Rc::new(RefCell::new(links)),
        pending: Rc::default(),
    };
    task.observe();
    task.serve();
    for other in task.others() {
        transport.set_peer(other, addr(other));
    }
    let place = NODES.iter().position(|name| *name == task.boot.0).unwrap_or_default() as u64;
    let random = |kind: u64| StdRng::seed_from_u64(seed ^ (place << 20) ^ (task.boot.1 << 32) ^ (kind << 50));
    node.spawn(task.clone().tell(random(1)));
    node.spawn(task.clone().ask(random(2)));
    node.spawn(task.clone().watch(random(3)));
    node.spawn(task.clone().stream(random(4)));
    node.spawn(task.clone().datagrams(random(5)));
    node.spawn(task.clone().live_and_die(random(6)));
}

/// Starts a probe from every node to every other: done when its ask, its tell and its monitor have come through.
pub fn probes(stage: &Stage, records: &Shared) -> Vec<((&'static str, &'static str), Started<()>)> {
    let mut probes = vec![];
    for from in NODES {
        for to in NODES.iter().copied().filter(|to| *to != from) {
            let records = records.clone();
            probes.push(((from, to), stage.start(from, move |node| probe(node, to, records))));
        }
    }
    probes
}

async fn probe(node: Node, to: &'static str, records: Shared) {
    loop {
        let id = records.lock().number();
        let question = Question { id, takes_ms: 0 };
        let answered = node.transport.ask(to, "p", &question, ms(1_000)).await == Ok(answer(id));
        let told =
            Told { from: ("probe".into(), id), control: false, path: "probe".into(), number: 0, padding: vec![] };
        if answered
            && node.transport.tell(to, "probe", &told).is_ok()
            && node.transport.monitor(to, NOTHING).await.reason == Exit::NoProc
        {
            for _ in 0..200 {
                if records.lock().probes.contains_key(&id) {
                    return;
                }
                sleep(ms(5)).await;
            }
        }
        sleep(ms(10)).await;
    }
}

/// The life of a handler's future.
struct Handling(Shared, u64);

impl Handling {
    fn begin(records: &Shared, id: u64) -> Self {
        let mut locked = records.lock();
        *locked.handled.entry(id).or_default() += 1;
        *locked.handling.entry(id).or_default() += 1;
        Self(records.clone(), id)
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        if let Some(count) = self.0.lock().handling.get_mut(&self.1) {
            *count -= 1;
        }
    }
}

/// The handling of a tell.
struct Busy(Shared, (Flow, Boot));

impl Busy {
    fn begin(shared: &Shared, flow: Flow, number: usize, by: Boot) -> Self {
        let mut records = shared.lock();
        let key = (flow.clone(), by);
        let busy = records.busy.entry(key.clone()).or_default();
        *busy += 1;
        let alone = *busy == 1;
        records.told.entry(flow).or_default().push(Handled { number, alone });
        Self(shared.clone(), key)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(count) = self.0.lock().busy.get_mut(&self.1) {
            *count -= 1;
        }
    }
}

impl Task {
    fn others(&self) -> impl Iterator<Item = &'static str> + use<> {
        let own = self.boot.0.clone();
        NODES.into_iter().filter(move |name| *name != own)
    }

    fn other(&self, random: &mut StdRng) -> &'static str {
        self.others().nth(random.random_range(0..2)).expect("two others")
    }

    fn is_quiet(&self) -> bool {
        self.records.lock().quiet
    }

    fn observe(&self) {
        let task = self.clone();
        let mut events = self.node.transport.events();
        self.records.lock().events.insert(self.boot.clone(), vec![]);
        self.node.spawn(async move {
            let mut connections: BTreeMap<String, usize> = BTreeMap::new();
            while let Ok(event) = events.recv().await {
                let (peer, change) = match event {
                    PeerEvent::Up { node, incarnation } => {
                        *connections.entry(node.to_string()).or_default() += 1;
                        ((node.to_string(), incarnation), Change::Up)
                    }
                    PeerEvent::Down { node, incarnation, reason } => {
                        task.judge_pending(&node, connections.get(&*node).copied().unwrap_or_default());
                        ((node.to_string(), incarnation), Change::Down(reason))
                    }
                    PeerEvent::Refused { .. } => continue,
                };
                let mut records = task.records.lock();
                let event = Event { at: now(), peer, change };
                records.events.entry(task.boot.clone()).or_default().push(event);
            }
        });
    }

    /// The `Down` of a connection has been seen: every monitor of it must be ready now.
    fn judge_pending(&self, peer: &str, connection: usize) {
        let judged = self
            .pending
            .borrow_mut()
            .extract_if(.., |(to, on, ..)| (*to, *on) == (peer, connection))
            .collect::<Vec<_>>();
        for (_, _, id, monitor) in judged {
            if unconstrained(monitor).now_or_never().is_none()
                && let Some(watch) = self.records.lock().watches.get_mut(&id)
            {
                watch.late = true;
            }
        }
    }

    fn serve(&self) {
        let transport = &self.node.transport;
        for path in PATHS {
            let (records, own) = (self.records.clone(), self.boot.clone());
            transport.serve::<Told, _, _>(path, move |peer, told| {
                if (&*peer.node, peer.incarnation, path) != (&*told.from.0, told.from.1, &*told.path) {
                    let wrong = format!("{own:?} got for {path} of {peer:?} what {:?} told", told.from);
                    records.lock().wrong.push(wrong);
                }
                let slow = records.lock().slow && path == PATHS[1];
                let takes_ms = if slow { told.number as u64 * 5 % 8 } else { 0 };
                let lane = if told.control { Lane::Control } else { Lane::Tells };
                let flow = Flow { from: told.from, to: own.0.clone(), lane, path: told.path };
                let busy = Busy::begin(&records, flow, told.number, own.clone());
                async move {
                    if takes_ms > 0 {
                        sleep(ms(takes_ms)).await;
                    }
                    drop(busy);
                    Ok(())
                }
            });
            self.serve_questions(path);
        }
        let records = self.records.clone();
        transport.serve::<Told, _, _>("probe", move |_, told| {
            *records.lock().probes.entry(told.from.1).or_default() += 1;
            async { Ok(()) }
        });
        self.live();
        let (records, own) = (self.records.clone(), self.boot.clone());
        transport.serve_datagram("d", move |peer, mut body| {
            let mut records = records.lock();
            if body.len() != 8 {
                records.wrong.push(format!("{own:?} got a datagram of {} bytes from {peer:?}", body.len()));
                return;
            }
            *records.datagrams.entry(body.get_u64()).or_default() += 1;
        });
        let (records, own) = (self.records.clone(), self.boot.clone());
        transport.serve_stream("body", move |_, mut header, mut send, mut recv| {
            let (records, own) = (records.clone(), own.clone());
            async move {
                let id = header.get_u64();
                let (mut buffer, mut at) = ([0; 4_096], 0);
                let read = loop {
                    match recv.read(&mut buffer).await {
                        Ok(0) => break Ok(at),
                        Ok(n) => {
                            if (0..n).any(|i| buffer[i] != pattern(id, at + i)) {
                                records
                                    .lock()
                                    .wrong
                                    .push(format!("{own:?} read other bytes in body {id} than were sent"));
                            }
                            at += n;
                        }
                        Err(error) => break Err(error.to_string()),
                    }
                };
                let whole = read.is_ok();
                if let Some(body) = records.lock().bodies.get_mut(&id) {
                    body.read.push(read);
                }
                if whole && send.write_u64(at as u64).await.is_ok() {
                    let _ = send.finish().await;
                }
            }
        });
    }

    fn serve_questions(&self, path: &str) {
        let records = self.records.clone();
        self.node.transport.serve::<Question, _, _>(path, move |_, Question { id, takes_ms }| {
            let handling = Handling::begin(&records, id);
            async move {
                sleep(ms(takes_ms)).await;
                drop(handling);
                if id % 7 == 0 { Err(format!("no {id}")) } else { Ok(answer(id)) }
            }
        });
    }

    fn live(&self) {
        self.serve_questions(MORTAL);
        self.note_served(true);
    }

    fn note_served(&self, served: bool) {
        let key = (self.boot.0.clone(), MORTAL.to_owned());
        self.records.lock().served.entry(key).or_default().push((now(), served));
    }

    async fn live_and_die(self, mut random: StdRng) {
        while !self.is_quiet() {
            sleep(ms(random.random_range(50..600))).await;
            self.note_served(false);
            self.node.transport.unserve(MORTAL);
            sleep(ms(random.random_range(1..100))).await;
            self.live();
        }
    }

    async fn tell(self, mut random: StdRng) {
        while !self.is_quiet() {
            sleep(ms(random.random_range(1..30))).await;
            // Now and then a burst to one receiver, which a slow one has before it for long.
            let burst = random.random_bool(0.02).then(|| self.other(&mut random));
            let count = if burst.is_some() { BURST_TELLS } else { random.random_range(1..12) };
            for _ in 0..count {
                let to = burst.unwrap_or_else(|| self.other(&mut random));
                let path = if burst.is_some() { PATHS[1] } else { PATHS[random.random_range(0..2)] };
                let control = burst.is_none() && random.random_bool(0.4);
                let lane = if control { Lane::Control } else { Lane::Tells };
                let (connection, up) = self.links.borrow_mut().count(to);
                let flow = Flow { from: self.boot.clone(), to: to.into(), lane, path: path.into() };
                let mut records = self.records.lock();
                // So that a small one would fit where a large one before it does not.
                let padding = vec![7; if records.slow { random.random_range(0..SLOW_INBOX_BYTES) } else { 0 }];
                let tells = records.tells.entry(flow).or_default();
                let number = tells.len();
                let told = Told { from: self.boot.clone(), control, path: path.into(), number, padding };
                let transport = &self.node.transport;
                let taken =
                    if control { transport.tell_control(to, path, &told) } else { transport.tell(to, path, &told) };
                tells.push(Tell { connection, up, refused: taken.err() });
            }
        }
    }

    async fn ask(self, mut random: StdRng) {
        while !self.is_quiet() {
            sleep(ms(random.random_range(5..50))).await;
            let to = self.other(&mut random);
            let path = [PATHS[0], PATHS[1], MORTAL, NOTHING][random.random_range(0..4)];
            let waits = ms(random.random_range(20..900));
            let gives_up = random.random_bool(0.2);
            let within = if gives_up { PATIENT } else { waits };
            let takes_ms = [0, 0, 5, 100, NEVER_MS][random.random_range(0..5)];
            let task = self.clone();
            self.node.spawn(async move {
                let id = task.records.lock().number();
                let ask = Ask {
                    from: task.boot.clone(),
                    to: to.into(),
                    path: path.into(),
                    begun: now(),
                    deadline: now() + within,
                    ended: None,
                    given_up: false,
                };
                task.records.lock().asks.insert(id, ask);
                let asking = task.node.transport.ask(to, path, &Question { id, takes_ms }, within);
                // Dropped when it is given up.
                let answered: Option<Result<u64, AskError>> =
                    if gives_up { timeout(waits, asking).await.ok() } else { Some(asking.await) };
                if let Some(ask) = task.records.lock().asks.get_mut(&id) {
                    ask.given_up = answered.is_none();
                    ask.ended = answered.map(|answered| (now(), answered));
                }
            });
        }
    }

    async fn watch(self, mut random: StdRng) {
        while !self.is_quiet() {
            sleep(ms(random.random_range(5..80))).await;
            let to = self.other(&mut random);
            let path = [PATHS[0], MORTAL, MORTAL, NOTHING][random.random_range(0..4)];
            let (count, up) = self.links.borrow_mut().count(to);
            let monitor = self.node.transport.monitor(to, path).map((|down| down.reason) as fn(Down) -> Exit).shared();
            // On the same lane after it: when this one has fired, the first was there.
            let fence = self.node.transport.monitor(to, NOTHING);
            if random.random_bool(0.1) {
                // Nobody's business any more; the others stay.
                drop(monitor);
                continue;
            }
            let id = self.records.lock().number();
            let watch = Watch {
                from: self.boot.clone(),
                to: to.into(),
                path: path.into(),
                set: now(),
                armed: None,
                connection: up.then_some(count),
                fired: vec![],
                late: false,
            };
            self.records.lock().watches.insert(id, watch);
            if up {
                self.pending.borrow_mut().push((to, count, id, monitor.clone()));
            }
            let task = self.clone();
            self.node.spawn(async move {
                let reason = monitor.await;
                if let Some(watch) = task.records.lock().watches.get_mut(&id) {
                    watch.fired.push((now(), reason));
                }
            });
            let task = self.clone();
            self.node.spawn(async move {
                if fence.await.reason == Exit::NoProc
                    && let Some(watch) = task.records.lock().watches.get_mut(&id)
                {
                    watch.armed = Some(now());
                }
            });
        }
    }

    async fn stream(self, mut random: StdRng) {
        while !self.is_quiet() {
            sleep(ms(random.random_range(30..250))).await;
            let to = self.other(&mut random);
            let bytes = random.random_range(0..20_000);
            // Some are broken off in the middle.
            let written = if random.random_bool(0.2) { bytes / 2 } else { bytes };
            let task = self.clone();
            self.node.spawn(async move {
                let id = task.records.lock().number();
                let body = Body { from: task.boot.clone(), bytes, ..Body::default() };
                task.records.lock().bodies.insert(id, body);
                let answered = task.body(to, id, bytes, written).await;
                if let Some(body) = task.records.lock().bodies.get_mut(&id) {
                    body.opener_ended = true;
                    body.answered = answered;
                }
            });
        }
    }

    async fn body(&self, to: &str, id: u64, bytes: usize, written: usize) -> Option<usize> {
        let mut header = BytesMut::new();
        header.put_u64(id);
        let (mut send, mut recv) = self.node.transport.open_stream(to, "body", header.freeze()).await.ok()?;
        let mut at = 0;
        while at < written {
            let end = (at + 3_000).min(written);
            let piece: Vec<u8> = (at..end).map(|i| pattern(id, i)).collect();
            send.write_all(&piece).await.ok()?;
            at = end;
        }
        if written < bytes {
            return None;
        }
        if let Some(body) = self.records.lock().bodies.get_mut(&id) {
            body.finished = true;
        }
        send.finish().await.ok()?;
        let counted = recv.read_u64().await.ok()?;
        usize::try_from(counted).ok()
    }

    async fn datagrams(self, mut random: StdRng) {
        while !self.is_quiet() {
            sleep(ms(random.random_range(2..40))).await;
            let to = self.other(&mut random);
            let id = self.records.lock().number();
            let mut body = BytesMut::new();
            body.put_u64(id);
            self.records.lock().datagrams_sent.insert(id);
            let body: Bytes = body.freeze();
            if self.node.transport.datagram(to, "d", body).is_err() {
                self.records.lock().datagrams_refused.insert(id);
            }
        }
    }
}

/// Byte `i` of a body.
fn pattern(id: u64, i: usize) -> u8 {
    ((i / 5) as u64 ^ id) as u8
}
