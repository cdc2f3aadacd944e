//! Scripts: a tree of supervisors and what happens to it, decoded from numbers, so that a smaller number is a simpler script.

use super::model::Model;
use crate::exit::Exit;
use crate::spec::{AutoShutdown, Backoff, Policy, Restart, Shutdown, Strategy};
use std::sync::Arc;
use std::time::Duration;

/// The restarts of all supervisors are counted within this time.
pub(super) const PERIOD_MS: u64 = 5_000;
/// A worker that takes so long to stop is deaf.
const DEAF_MS: u64 = 1_000_000;
/// No sum of the others in here is one of these: it would be open whether a child stopped in time.
const TIMEOUTS_MS: [u64; 2] = [510, 1_270];
const SLOW_MS: [u64; 6] = [0, 0, 0, 300, 700, DEAF_MS];
/// How deep supervisors are nested beneath the first.
const DEPTH: usize = 3;

#[derive(Debug)]
pub(super) struct Sup {
    pub(super) strategy: Strategy,
    pub(super) auto_shutdown: AutoShutdown,
    pub(super) intensity: u32,
    pub(super) children: Vec<Arc<Node>>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: Arc<str>,
    pub(super) policy: Policy,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Worker { stops_in_ms: u64 },
    Sup(Arc<Sup>),
}

/// How the start of a worker goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    Up,
    Fails,
    Ignores,
}

#[derive(Debug)]
pub(super) struct Script {
    pub(super) top: Arc<Sup>,
    pub(super) steps: Vec<Step>,
}

/// A step names supervisors and children by their place among those that there are then.
#[derive(Debug)]
pub(super) enum Step {
    /// All this is in the supervisor's mailbox before it takes the first.
    Mail {
        sup: usize,
        mail: Vec<Mail>,
    },
    /// How the next starts of workers go.
    Outcomes(Vec<Outcome>),
    Wait(u64),
    /// A supervisor is stopped by someone who is not its supervisor.
    Stop {
        sup: usize,
        reason: Exit,
    },
}

#[derive(Debug)]
pub(super) enum Mail {
    Ends(usize, Exit),
    Start(Arc<Node>),
    Terminate(usize),
    Restart(usize),
    Delete(usize),
}

/// What a step means in a given tree.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// This one ends by itself; a supervisor is killed.
    Ends(String, Exit),
    Command(String, Command),
    Outcomes(Vec<Outcome>),
    Wait(u64),
    Stop(String, Exit),
}

#[derive(Clone, Debug)]
pub(super) enum Command {
    Start(Arc<Node>),
    Terminate(Arc<str>),
    Restart(Arc<str>),
    Delete(Arc<str>),
}

impl Step {
    pub(super) fn resolve(&self, model: &Model) -> Vec<Act> {
        match self {
            Step::Outcomes(outcomes) => vec![Act::Outcomes(outcomes.clone())],
            Step::Wait(ms) => vec![Act::Wait(*ms)],
            Step::Stop { sup, reason } => vec![Act::Stop(model.sup(*sup), reason.clone())],
            Step::Mail { sup, mail } => {
                let path = model.sup(*sup);
                let ids = model.ids(&path);
                // One place more than there are children: one that is not known.
                let id = |n: &usize| ids.get(n % (ids.len() + 1)).cloned().unwrap_or_else(|| "nobody".into());
                let command = |command| Act::Command(path.clone(), command);
                mail.iter()
                    .map(|mail| match mail {
                        Mail::Ends(n, exit) => Act::Ends(format!("{path}/{}", id(n)), exit.clone()),
                        Mail::Start(node) => command(Command::Start(node.clone())),
                        Mail::Terminate(n) => command(Command::Terminate(id(n))),
                        Mail::Restart(n) => command(Command::Restart(id(n))),
                        Mail::Delete(n) => command(Command::Delete(id(n))),
                    })
                    .collect()
            }
        }
    }
}

/// Choices taken from one number; when it is used up, each is the first.
struct Picks(u64);

impl Picks {
    fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let pick = self.0 % n;
        self.0 /= n;
        pick as usize
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

impl Script {
    pub(super) fn decode(tree: &[u64], steps: &[u64]) -> Script {
        let mut tape = tree.iter().copied();
        // Either stops take time or restarts do: the model does one thing at a time, and would let a backoff pass while it waits.
        let backoff = tape.next().unwrap_or(0) % 3 == 2;
        let top = sup(&mut tape, 0, backoff);
        let steps = steps.iter().map(|n| step(Picks(*n), backoff)).collect();
        Script { top, steps }
    }

    pub(super) fn print(tree: &[u64], steps: &[u64]) -> String {
        let join = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!("'{};{}'", join(tree), join(steps))
    }

    pub(super) fn parse(printed: &str) -> Option<Script> {
        let (tree, steps) = printed.trim_matches('\'').split_once(';')?;
        let numbers = |text: &str| {
            text.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>()
        };
        Some(Script::decode(&numbers(tree)?, &numbers(steps)?))
    }
}

fn sup(tape: &mut impl Iterator<Item = u64>, depth: usize, backoff: bool) -> Arc<Sup> {
    let mut picks = Picks(tape.next().unwrap_or(0));
    let strategy = picks.of(&[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne, Strategy::Dynamic]);
    let auto_shutdown = picks.of(&[
        AutoShutdown::Never,
        AutoShutdown::AnySignificant,
        AutoShutdown::AllSignificant,
        AutoShutdown::Never,
    ]);
    let intensity = picks.below(5) as u32;
    let count = picks.below(if depth == 0 { 6 } else { 4 });
    let children = (0..count).map(|n| {
        let mut picks = Picks(tape.next().unwrap_or(0));
        let below = (depth < DEPTH && picks.below(10) > 6).then(|| sup(tape, depth + 1, backoff));
        let mut node = node(format!("c{n}"), &mut picks, below, backoff);
        // What is refused is tried with commands; here it would only end everything.
        node.policy.significant &= node.policy.restart != Restart::Permanent && auto_shutdown != AutoShutdown::Never;
        Arc::new(node)
    });
    let children = children.collect();
    Arc::new(Sup { strategy, auto_shutdown, intensity, children })
}

fn node(id: String, picks: &mut Picks, below: Option<Arc<Sup>>, backoff: bool) -> Node {
    let restart = picks.of(&[Restart::Permanent, Restart::Transient, Restart::Temporary]);
    let significant = picks.below(2) == 1;
    let shutdown = match picks.below(5) {
        0 | 1 => Shutdown::Infinity,
        2 => Shutdown::Brutal,
        n => Shutdown::Timeout(Duration::from_millis(TIMEOUTS_MS[n - 3])),
    };
    let slow = picks.of(&SLOW_MS);
    let kind = match below {
        Some(sup) => Kind::Sup(sup),
        None => Kind::Worker { stops_in_ms: if backoff { 0 } else { slow } },
    };
    let backoff = match picks.below(3) {
        n if n == 0 || !backoff => None,
        n => Some(Arc::new(Backoff {
            initial: Duration::from_millis([0, 250][n - 1]),
            step: Duration::from_millis(500),
            factor: 2.0,
            max: Duration::from_millis(1_500),
            reset_after: Duration::from_millis(4_000),
            jitter: 0.0,
        })),
    };
    Node { id: id.into(), policy: Policy { restart, significant, shutdown, backoff }, kind }
}

fn exit(picks: &mut Picks) -> Exit {
    let crash = Exit::Error("crash".into());
    picks.of(&[crash.clone(), Exit::Normal, Exit::Shutdown, Exit::ShutdownWith("done".into()), Exit::Killed, crash])
}

fn step(mut picks: Picks, backoff: bool) -> Step {
    let kind = picks.below(32);
    let sup = picks.below(16);
    match kind {
        0..=16 => Step::Mail { sup, mail: vec![mail(&mut picks, backoff)] },
        17..=22 => {
            let count = 2 + picks.below(3);
            Step::Mail { sup, mail: (0..count).map(|_| mail(&mut picks, backoff)).collect() }
        }
        23..=25 => {
            let count = 1 + picks.below(5);
            let all = [Outcome::Fails, Outcome::Ignores, Outcome::Up, Outcome::Fails];
            Step::Outcomes((0..count).map(|_| picks.of(&all)).collect())
        }
        26..=29 => Step::Wait(picks.of(&[100, 400, 1_000, 2_500, 5_001])),
        // The first ends the script, so it shall not come often.
        30 => Step::Stop { sup: sup.max(1), reason: exit(&mut picks) },
        _ => Step::Stop { sup, reason: exit(&mut picks) },
    }
}

fn mail(picks: &mut Picks, backoff: bool) -> Mail {
    let kind = picks.below(12);
    let child = picks.below(7);
    match kind {
        0..=5 => Mail::Ends(child, exit(picks)),
        6 | 7 => Mail::Terminate(child),
        8 => Mail::Restart(child),
        9 => Mail::Delete(child),
        _ => {
            let two = picks.below(4) == 3;
            let below = two.then(|| {
                let strategy = picks.of(&[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne]);
                let children = (0..2).map(|n| {
                    let mut node = node(format!("c{n}"), &mut Picks(picks.below(3) as u64), None, backoff);
                    node.policy.significant = false;
                    Arc::new(node)
                });
                let children = children.collect();
                Arc::new(Sup { strategy, auto_shutdown: AutoShutdown::Never, intensity: 1, children })
            });
            let id = if child < 5 { format!("n{child}") } else { format!("c{}", child - 5) };
            Mail::Start(Arc::new(node(id, picks, below, backoff)))
        }
    }
}
