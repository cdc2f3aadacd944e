//! References between simulated nodes whose actors crash, and which are cut off from each other, lose and reorder packets, crash and come back:
//! what every actor heard is held against the contract of references.
//!
//! - A monitor fires at most once; and it has fired if its actor ended or the connection was lost since. It tells the actor's own exit, or
//!   `NoConnection` if there was no connection at some time since, or `NoProc` if the actor had ended before.
//! - A link ends the other side with one side: whoever lives is linked to somebody who lives, over a connection that was never lost.
//! - Tells of one sender to one incarnation arrive in order, each at most once, at that incarnation alone; all of them if the connection was
//!   never lost and it lives. An ask is answered by the incarnation that it was for.
//! - When the network has healed, every actor is found again, and answers.
//!
//! A seed that fails is named in the failure. `REFS_SEED=<seed>` runs that seed alone and prints its history; `REFS_SEEDS=<count>` runs
//! that many.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use phalanx_actors::{
    Actor, ChildSpec, Ctx, Down, Exit, Handler, Message, MonitorRef, Pid, Reply, Strategy, SupervisorSpec, System,
};
use phalanx_transport::{
    AskError, Direction, PeerEvent, Protocol, Remote, RemoteActor, RemoteRef, Target, Timings, Transport,
};
use phalanx_transport_sim::{Node, Stage, addr};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::sleep};

const NODES: [&str; 3] = ["a", "b", "c"];

const WORKERS: usize = 3;

/// Seeds of a normal run.
const SEEDS: u64 = 30;

/// How long the network suffers.
const STORM: Duration = Duration::from_secs(3);

/// When it has healed, everybody is found within this.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

/// Whatever is on its way then arrives within this.
const QUIET: Duration = Duration::from_secs(1);

/// References that a node holds on to.
const HELD_MAX: usize = 12;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn now() -> Duration {
    turmoil::sim_elapsed().expect("in a simulation")
}

type Boot = (String, u64);

/// One incarnation of an actor.
type Who = (Boot, u64);

fn who(actor: &RemoteRef<Worker>) -> Who {
    let address = actor.address();
    ((address.node.to_string(), address.incarnation), address.id)
}

#[derive(Clone, Debug)]
struct Watch {
    by: Who,
    of: Who,
    set: Duration,
    /// Connected to the boot of the node that the actor belongs to, when it was set.
    connected: bool,
    fired: Vec<(Duration, Exit)>,
}

#[derive(Clone, Debug)]
struct Link {
    by: Who,
    of: Who,
    set: Duration,
}

#[derive(Default)]
struct Told {
    taken: u64,
    first: Duration,
    heard: Vec<u64>,
}

#[derive(Default)]
struct Records {
    /// Present boots.
    boots: BTreeMap<String, u64>,
    born: BTreeSet<Who>,
    exits: BTreeMap<Who, Exit>,
    /// Connections that a boot saw lost, to whichever boot of a node.
    lost: BTreeMap<(Boot, String), Vec<Duration>>,
    watches: Vec<Watch>,
    links: Vec<Link>,
    told: BTreeMap<(Boot, Who), Told>,
    wrong: Vec<String>,
    quiet: bool,
}

impl Records {
    fn is_gone(&self, boot: &Boot) -> bool {
        self.boots.get(&boot.0) != Some(&boot.1)
    }

    fn lives(&self, one: &Who) -> bool {
        self.born.contains(one) && !self.exits.contains_key(one) && !self.is_gone(&one.0)
    }

    fn lost_since(&self, boot: &Boot, peer: &str, since: Duration) -> bool {
        let lost = self.lost.get(&(boot.clone(), peer.to_owned()));
        lost.is_some_and(|at| at.iter().any(|at| *at >= since))
    }

    /// What does not hold of what everybody heard.
    fn broken(&self) -> Vec<String> {
        let mut broken = self.wrong.clone();
        for watch in self.watches.iter().filter(|watch| self.lives(&watch.by)) {
            let lost = self.lost_since(&watch.by.0, &watch.of.0.0, watch.set) || !watch.connected;
            let ended = !self.lives(&watch.of);
            match &watch.fired[..] {
                [] if lost || ended => broken.push(format!("never fired (lost {lost}, ended {ended}): {watch:?}")),
                [] => {}
                [(_, Exit::NoConnection)] if lost => {}
                [(_, Exit::NoProc)] if ended => {}
                [(_, exit)] if self.exits.get(&watch.of) == Some(exit) => {}
                [_] => broken.push(format!("tells what has not happened: {watch:?}, {:?}", self.exits.get(&watch.of))),
                _ => broken.push(format!("fired more than once: {watch:?}")),
            }
        }
        for link in &self.links {
            let (by, of) = (self.lives(&link.by), self.lives(&link.of));
            let lost = self.lost_since(&link.by.0, &link.of.0.0, link.set);
            // When it was lost before it had come to the other side, that one has never been linked.
            let never_linked = of && !by && (lost || self.is_gone(&link.by.0));
            if by != of && !never_linked || by && lost {
                broken.push(format!("linked, and one lives on (by {by}, of {of}, lost {lost}): {link:?}"));
            }
        }
        for ((from, to), told) in &self.told {
            let ordered = told.heard.windows(2).all(|pair| pair[0] < pair[1]);
            if !ordered || told.heard.last().is_some_and(|last| *last >= told.taken) {
                broken.push(format!("{from:?} told {to:?} {} and it heard {:?}", told.taken, told.heard));
            }
            let whole = !self.is_gone(from) && self.lives(to) && !self.lost_since(from, &to.0.0, told.first);
            if whole && told.heard.len() as u64 != told.taken {
                let heard = told.heard.len();
                broken.push(format!("{from:?} told {to:?} {} over one connection and it heard {heard}", told.taken));
            }
        }
        broken
    }
}

type Shared = Arc<Mutex<Records>>;

#[derive(Debug, Serialize, Deserialize)]
enum Do {
    Crash,
    Link(RemoteRef<Worker>),
    Monitor(RemoteRef<Worker>),
    Tell { from: Boot, to: u64, number: u64 },
    WhoAreYou,
}

impl Message for Do {
    type Reply = u64;
}

impl Remote for Do {
    const NAME: &'static str = "test/Do";
    type Reply = u64;
}

struct Worker {
    transport: Transport,
    records: Shared,
    born: mpsc::UnboundedSender<Pid>,
    /// Its monitors, by their place in the records.
    watches: Vec<(MonitorRef, usize)>,
}

impl Worker {
    fn who(&self, ctx: &Ctx<Self>) -> Who {
        (boot_of(&self.transport), ctx.pid().id())
    }
}

fn boot_of(transport: &Transport) -> Boot {
    (transport.node().to_string(), transport.incarnation())
}

/// Whether there is a connection to this very boot.
fn is_connected(transport: &Transport, boot: &Boot) -> bool {
    transport.is_connected(&boot.0)
        && transport.peers().iter().any(|peer| *peer.node == *boot.0 && peer.incarnation == Some(boot.1))
}

impl Actor for Worker {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        let _ = self.born.send(ctx.pid());
        Ok(())
    }

    fn down(&mut self, down: Down, ctx: &mut Ctx<Self>) {
        let mut records = self.records.lock();
        match self.watches.iter().find(|(monitor, _)| *monitor == down.monitor) {
            Some((_, at)) => records.watches[*at].fired.push((now(), down.reason)),
            None => records.wrong.push(format!("{:?} hears {down:?} and has not asked for it", ctx.pid())),
        }
    }
}

impl Handler<Do> for Worker {
    fn handle(&mut self, what: Do, ctx: &mut Ctx<Self>) -> Reply<u64> {
        let me = self.who(ctx);
        match what {
            Do::Crash => panic!("crashed on request"),
            Do::Link(other) => {
                let of = who(&other);
                if is_connected(&self.transport, &of.0) {
                    ctx.link(&other.pid());
                    self.records.lock().links.push(Link { by: me, of, set: now() });
                }
            }
            Do::Monitor(other) => {
                let (of, set) = (who(&other), now());
                let connected = is_connected(&self.transport, &of.0);
                let at = {
                    let mut records = self.records.lock();
                    records.watches.push(Watch { by: me, of, set, connected, fired: vec![] });
                    records.watches.len() - 1
                };
                self.watches.push((ctx.monitor(&other.pid()), at));
            }
            Do::Tell { from, to, number } => {
                let mut records = self.records.lock();
                if to != me.1 {
                    records.wrong.push(format!("{me:?} hears what {to} was told by {from:?}"));
                }
                records.told.entry((from, me)).or_default().heard.push(number);
            }
            Do::WhoAreYou => return me.1.into(),
        }
        0.into()
    }
}

impl RemoteActor for Worker {
    const NAME: &'static str = "test/Worker";

    fn protocol(protocol: &mut Protocol<Self>) {
        protocol.message::<Do>();
    }
}

fn boot(node: &Node, records: &Shared, seed: u64) {
    let (transport, boot) = (node.transport.clone(), boot_of(&node.transport));
    records.lock().boots.insert(boot.0.clone(), boot.1);
    for other in NODES.iter().filter(|other| **other != boot.0) {
        transport.set_peer(other, addr(other));
    }
    let (mut events, seen, own) = (transport.events(), records.clone(), boot.clone());
    node.spawn(async move {
        while let Ok(event) = events.recv().await {
            if let PeerEvent::Down { node, .. } = event {
                seen.lock().lost.entry((own.clone(), node.to_string())).or_default().push(now());
            }
        }
    });
    let (births, mut born) = mpsc::unbounded_channel::<Pid>();
    let (registrar, registered, own) = (node.clone(), records.clone(), boot.clone());
    node.spawn(async move {
        while let Some(pid) = born.recv().await {
            let (records, one) = (registered.clone(), (own.clone(), pid.id()));
            records.lock().born.insert(one.clone());
            registrar.spawn(async move {
                let exit = pid.exited().await;
                records.lock().exits.insert(one, exit);
            });
        }
    });
    let (own, records) = (node.clone(), records.clone());
    node.spawn(async move {
        let system = System::builder(&boot.0).local().build().expect("starts");
        let mut spec = SupervisorSpec::new("top", Strategy::OneForOne).unlimited();
        for n in 0..WORKERS {
            let (transport, records, born) = (own.transport.clone(), records.clone(), births.clone());
            spec = spec.child(ChildSpec::actor(format!("w{n}"), move || Worker {
                transport: transport.clone(),
                records: records.clone(),
                born: born.clone(),
                watches: vec![],
            }));
        }
        own.transport.attach(&system).expect("the first");
        own.transport.share::<Worker>();
        system.start(spec).await.expect("starts");
        let place = NODES.iter().position(|name| *name == boot.0).unwrap_or_default() as u64;
        let random = StdRng::seed_from_u64(seed ^ (place << 20) ^ (boot.1 << 32));
        work(own, &system, records, random).await;
        // The system ends with the boot.
        std::future::pending::<()>().await;
    });
}

/// What a node does, at random.
async fn work(node: Node, system: &System, records: Shared, mut random: StdRng) {
    let own = boot_of(&node.transport);
    let others: Vec<_> = NODES.into_iter().filter(|name| *name != own.0).collect();
    let mut held: Vec<RemoteRef<Worker>> = vec![];
    while !records.lock().quiet {
        sleep(ms(random.random_range(1..25))).await;
        let path = format!("top/w{}", random.random_range(0..WORKERS));
        let pick = random.random_range(0..40);
        if pick < 15 || held.is_empty() {
            let other = others[random.random_range(0..2)];
            let found = tokio::time::timeout(ms(200), node.transport.lookup::<Worker>(other, &path)).await;
            if let Ok(Ok(found)) = found {
                if held.len() >= HELD_MAX {
                    held.remove(random.random_range(0..HELD_MAX));
                }
                held.push(found);
            }
            continue;
        }
        let other = held[random.random_range(0..held.len())].clone();
        let local = system.named::<Worker>(&path);
        match pick {
            15..24 => {
                for _ in 0..random.random_range(1..6) {
                    let (key, to) = ((own.clone(), who(&other)), who(&other).1);
                    let mut records = records.lock();
                    let told = records.told.entry(key).or_default();
                    if told.taken == 0 {
                        told.first = now();
                    }
                    if other.tell(Do::Tell { from: own.clone(), to, number: told.taken }).is_ok() {
                        told.taken += 1;
                    }
                }
            }
            // None of them may run just now.
            24..31 => drop(local.tell(Do::Monitor(other))),
            31 => drop(local.tell(Do::Link(other))),
            32 => drop(local.tell(Do::Crash)),
            33 => drop(other.tell(Do::Crash)),
            34 => match random.random_bool(0.5) {
                true => drop(other.kill()),
                false => drop(other.stop(Exit::Error("stopped on request".into()))),
            },
            _ => {
                let (records, limit) = (records.clone(), ms(random.random_range(5..300)));
                node.spawn(async move {
                    let answer = other.ask_timeout(Do::WhoAreYou, limit).await;
                    let expected = matches!(
                        &answer,
                        Err(AskError::NoProc { .. }
                            | AskError::NoConnection { .. }
                            | AskError::Exited { .. }
                            | AskError::Timeout { .. })
                    );
                    if !expected && answer != Ok(who(&other).1) {
                        records.lock().wrong.push(format!("{:?} answers {answer:?}", who(&other)));
                    }
                });
            }
        }
    }
}

fn misfortune(stage: &mut Stage, records: &Shared, random: &mut StdRng, gone: &mut BTreeSet<&'static str>) {
    let one = NODES[random.random_range(0..3)];
    let other = NODES.iter().copied().filter(|node| *node != one).nth(random.random_range(0..2)).expect("two others");
    let way = [Direction::Both, Direction::In, Direction::Out][random.random_range(0..3)];
    let (chance, by) = (random.random_range(0.0..0.3), ms(random.random_range(1..40)));
    let end = |stage: &mut Stage| {
        records.lock().boots.remove(one);
        stage.crash(one);
    };
    match random.random_range(0..16) {
        0 => stage.partition(one, other),
        1 => stage.cut(one, other),
        2..5 => stage.repair(one, other),
        5 => suffer(stage, one, move |faults| faults.drop_way(Target::All, way, chance)),
        6 => suffer(stage, one, move |faults| faults.reorder_way(Target::All, way, chance, by)),
        7 => suffer(stage, one, move |faults| faults.duplicate_way(Target::All, way, chance)),
        8..11 => suffer(stage, one, |faults| faults.heal(Target::All)),
        11 => drop(stage.start(one, move |node| async move { node.transport.remove_peer(other) })),
        12 => drop(stage.start(one, move |node| async move { node.transport.set_peer(other, addr(other)) })),
        _ if gone.remove(one) => stage.restart(one),
        13 => {
            end(stage);
            gone.insert(one);
        }
        // At once again: the others still hold the old connection.
        14 => {
            end(stage);
            stage.restart(one);
        }
        _ => {}
    }
}

fn suffer(stage: &mut Stage, node: &str, change: impl Fn(phalanx_transport::Faults) + 'static) {
    stage.start(node, move |node| async move { change(node.transport.faults()) });
}

/// Everything is whole again, and every node runs.
fn clear(stage: &mut Stage, gone: &BTreeSet<&'static str>) {
    stage.note("the storm is over");
    for (i, one) in NODES.iter().enumerate() {
        NODES[i + 1..].iter().for_each(|other| stage.repair(one, other));
        if gone.contains(one) {
            stage.restart(one);
        }
        stage.start(one, move |node| async move {
            node.transport.faults().heal(Target::All);
            for other in NODES.iter().filter(|other| *other != one) {
                node.transport.set_peer(other, addr(other));
            }
        });
    }
}

/// Everybody is found by everybody, and answers.
fn recovered(stage: &mut Stage) -> Vec<String> {
    let until = stage.elapsed() + RECOVERY_MAX;
    let mut missing = vec![];
    for from in NODES {
        for to in NODES.iter().copied().filter(|to| *to != from) {
            let found = stage.start(from, move |node| async move {
                for n in 0..WORKERS {
                    let path = format!("top/w{n}");
                    loop {
                        // It may be between two incarnations, or another may have crashed it.
                        if let Ok(found) = node.transport.lookup::<Worker>(to, &path).await
                            && found.ask_timeout(Do::WhoAreYou, ms(500)).await == Ok(who(&found).1)
                        {
                            break;
                        }
                        sleep(ms(10)).await;
                    }
                }
            });
            missing.push((from, to, found));
        }
    }
    while !missing.is_empty() && stage.elapsed() < until {
        stage.pass(ms(10));
        missing.retain(|(.., found)| found.take().is_none());
    }
    let lost = missing.into_iter().map(|(from, to, _)| format!("{from} does not find the workers of {to}"));
    lost.collect()
}

/// What was broken, how much there was to break, and the history.
fn simulate(seed: u64) -> (Vec<String>, [usize; 5], String) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(seed, ms(1)..=ms(8));
    stage.configure(|config| {
        // Quicker than in earnest, for a second of a storm is then longer.
        config.timings = Timings {
            keep_alive_ms: 80,
            idle_timeout_ms: 400,
            connect_timeout_ms: 600,
            backoff_initial_ms: 20,
            backoff_max_ms: 200,
            ..Timings::default()
        };
    });
    let records = Shared::default();
    for node in NODES {
        let records = records.clone();
        stage.node(node, move |node| boot(node, &records, seed));
    }
    let gone = Rc::new(RefCell::new(BTreeSet::new()));
    // Time for the first to find each other; every third seed has no weather at all.
    stage.pass(ms(200));
    while stage.elapsed() < STORM {
        stage.pass(ms(random.random_range(5..120)));
        if !seed.is_multiple_of(3) {
            misfortune(&mut stage, &records, &mut random, &mut gone.borrow_mut());
        }
    }
    clear(&mut stage, &gone.borrow());
    records.lock().quiet = true;
    let mut broken = recovered(&mut stage);
    stage.pass(QUIET);
    let records = records.lock();
    broken.extend(records.broken());
    let fired = |what: fn(&Exit) -> bool| {
        records.watches.iter().flat_map(|watch| &watch.fired).filter(|(_, exit)| what(exit)).count()
    };
    let counts = [
        fired(|exit| *exit == Exit::NoConnection),
        fired(|exit| *exit == Exit::NoProc),
        fired(|exit| matches!(exit, Exit::Panic { .. } | Exit::Killed | Exit::Error(_))),
        records.links.len(),
        records.told.values().map(|told| told.heard.len()).sum(),
    ];
    (broken, counts, stage.history())
}

#[test]
fn references_keep_their_promises_over_crashes_of_actors_and_nodes_and_a_bad_network() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("REFS_SEED") {
        let (broken, counts, history) = simulate(seed);
        println!("{history}\n{counts:?}");
        assert!(broken.is_empty(), "seed {seed}:\n{}", broken.join("\n"));
        return;
    }
    let mut all = [0; 5];
    for seed in 0..number("REFS_SEEDS").unwrap_or(SEEDS) {
        let (broken, counts, _) = simulate(seed);
        assert!(
            broken.is_empty(),
            "seed {seed} (REFS_SEED={seed} runs it alone and prints its history):\n{}",
            broken.join("\n")
        );
        all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
    }
    println!("fired NoConnection, NoProc, exits; links; tells heard: {all:?}");
    // It was about something.
    assert!(all.iter().all(|count| *count > 50), "{all:?}");
}

#[test]
fn the_same_seed_hears_the_same() {
    for seed in [1_001, 1_002] {
        let (first, again) = (simulate(seed), simulate(seed));
        assert!(first.1 == again.1 && first.2 == again.2, "seed {seed} differs");
    }
}
