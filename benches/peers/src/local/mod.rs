//! The local figures: one counter, told, asked, started, crashed and stopped by each contestant.
//!
//! The same for all: the handler, the bound of the mailbox where there is one, one thread for all actors and whoever asks them (unless the
//! operation says otherwise), and the end of a sample: when the last of its work has taken effect.

mod bare_actix;
mod bare_tokio;
#[cfg(feature = "peers")]
mod kameo;
mod phalanx;
#[cfg(feature = "peers")]
mod ractor;
mod threads;

use crate::contestant::{Outcome, Round};
use crate::process::{self, Process, Start};
use crate::table::{self, Figure, Row};
use crate::{erlang, machine};
use std::path::Path;
use std::process::Command;

/// Tells between two looks whether they were handled: fewer than a mailbox holds, so that none is refused.
const BURST: u64 = 1_000;
/// Messages that fit into a mailbox, in all that have a bound.
const MAILBOX: usize = phalanx_actors::MAILBOX_MESSAGES;
/// Workers of each supervisor of the deep tree.
const TREE_WORKERS: u64 = 10;
/// Restarts that a supervisor allows in [`PERIOD`], where it counts them: more than ever happen.
const INTENSITY: u32 = 1_000_000;
/// The window of the intensity.
const PERIOD: std::time::Duration = std::time::Duration::from_secs(1);

/// One row of the table and how it is come by.
struct Operation {
    name: &'static str,
    title: &'static str,
    figure: Figure,
    /// What `prepare` is told, and what in a trial.
    size: u64,
    smoke: u64,
    /// Samples of each contestant.
    rounds: usize,
}

const OPERATIONS: [Operation; 9] = [
    Operation { name: "tell", title: "tell, same thread", figure: Figure::Time, size: 100, smoke: 2, rounds: 31 },
    Operation {
        name: "tell-other",
        title: "tell, other thread",
        figure: Figure::Time,
        size: 100,
        smoke: 2,
        rounds: 31,
    },
    Operation { name: "ask", title: "ask, same thread", figure: Figure::Time, size: 50_000, smoke: 1_000, rounds: 31 },
    Operation {
        name: "ask-other",
        title: "ask, other thread",
        figure: Figure::Time,
        size: 2_000,
        smoke: 100,
        rounds: 31,
    },
    Operation { name: "spawn", title: "start, confirmed", figure: Figure::Time, size: 10_000, smoke: 200, rounds: 21 },
    Operation {
        name: "restart",
        title: "restart: crash to first answer of the next",
        figure: Figure::Time,
        size: 500,
        smoke: 20,
        rounds: 31,
    },
    Operation {
        name: "storm",
        title: "10,000 children crash at once: each restarted",
        figure: Figure::Time,
        size: 10_000,
        smoke: 100,
        rounds: 9,
    },
    Operation {
        name: "tree",
        title: "shutdown of a tree 100 deep, 11 a level: each",
        figure: Figure::Time,
        size: 100,
        smoke: 5,
        rounds: 21,
    },
    Operation {
        name: "memory",
        title: "memory of an actor, of a million",
        figure: Figure::Bytes,
        size: 1_000_000,
        smoke: 1_000,
        rounds: 1,
    },
];

/// Memory that a million actors may take with any contestant, for each of them, in bytes: what decides how many this machine can hold.
const ACTOR_BYTES_MAX: u64 = 12 << 10;

/// Prepares an operation of one contestant, inside its process.
pub fn prepare(contestant: &str, operation: &str, size: u64) -> Option<Round> {
    match contestant {
        "phalanx" => phalanx::prepare(operation, size),
        "actix" => bare_actix::prepare(operation, size),
        "tokio" => bare_tokio::prepare(operation, size),
        #[cfg(feature = "peers")]
        "ractor" => ractor::prepare(operation, size),
        #[cfg(feature = "peers")]
        "kameo" => kameo::prepare(operation, size),
        _ => None,
    }
}

/// As `work`, and says how many more bytes were asked of the allocator and not given back; 0 where it does not count.
fn counted(work: impl FnOnce() -> Outcome + 'static) -> Round {
    let live = || {
        let stats = stats_alloc::INSTRUMENTED_SYSTEM.stats();
        (stats.bytes_allocated - stats.bytes_deallocated) as u64
    };
    Box::new(move || {
        let before = live();
        let mut outcome = work();
        outcome.further.push(live().saturating_sub(before));
        outcome
    })
}

/// One column.
struct Contestant {
    title: String,
    start: Box<Start>,
    /// The same, with an allocator that counts.
    start_counted: Box<Start>,
}

fn contestants(own: &Path, counted: &Path, folder: &Path) -> Vec<Contestant> {
    let rust = |title: String, name: &'static str| {
        let start = |program: &Path, words: &'static [&'static str]| -> Box<Start> {
            let program = program.to_owned();
            Box::new(move || {
                let mut command = Command::new(&program);
                command.args(words).args(["local", name]);
                Ok(vec![Process::start(command)?])
            })
        };
        Contestant { title, start: start(own, &[crate::CONTESTANT]), start_counted: start(counted, &[]) }
    };
    let mut all = vec![
        rust("**phalanx**".into(), "phalanx"),
        rust(machine::version("actix"), "actix"),
        rust(machine::version("tokio"), "tokio"),
    ];
    #[cfg(feature = "peers")]
    all.extend([rust(machine::version("ractor"), "ractor"), rust(machine::version("kameo"), "kameo")]);
    #[cfg(not(feature = "peers"))]
    println!("ractor and kameo are left out: they need `--features peers`.\n");
    let Some(release) = erlang::release() else {
        println!("Erlang/OTP is left out: there is no `erl` on the path.\n");
        return all;
    };
    let source = include_str!("../../erlang/bench_local.erl");
    match erlang::compile(folder, "bench_local", source) {
        Ok(()) => {
            for (title, how) in [(format!("{release}, gen_server"), "otp"), ("Erlang, bare process".into(), "process")]
            {
                let start = || -> Box<Start> {
                    let folder = folder.to_owned();
                    Box::new(move || {
                        let mut command = erlang::node(&folder, "bench_local", 2);
                        command.args(["-extra", how]);
                        Ok(vec![Process::start(command)?])
                    })
                };
                all.push(Contestant { title, start: start(), start_counted: start() });
            }
        }
        Err(error) => println!("Erlang/OTP is left out: {error}\n"),
    }
    all
}

/// Measures everything and prints the table. `own` is this program, `counted` the one that counts what it asks of its allocator.
pub fn run(own: &Path, counted: &Path) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    println!("# Local figures\n{}\n", machine::line());
    let contestants = contestants(own, counted, folder.path());
    let columns: Vec<String> = contestants.iter().map(|contestant| contestant.title.clone()).collect();
    let mut rows = Vec::new();
    for operation in OPERATIONS.iter().filter(|operation| crate::wanted(operation.name)) {
        let mut row = Row::new(operation.name, operation.title, operation.figure, contestants.len());
        match operation.figure {
            Figure::Bytes => memory(operation, &contestants, &mut row),
            _ => timed(operation, &contestants, &mut row),
        }
        eprint!("{}", table::markdown(&columns, std::slice::from_ref(&row)));
        rows.push(row);
    }
    println!("{}\n{LEGEND}", table::markdown(&columns, &rows));
    goals(&columns, &rows);
    if crate::smoke() && rows.iter().any(|row| !row.failures.is_empty()) {
        return Err("an operation failed".into());
    }
    Ok(())
}

fn timed(operation: &Operation, contestants: &[Contestant], row: &mut Row) {
    let (size, rounds) = if crate::smoke() { (operation.smoke, 1) } else { (operation.size, operation.rounds) };
    let starts: Vec<_> = contestants.iter().map(|contestant| &*contestant.start).collect();
    process::in_turns(&starts, operation.name, size, rounds, row);
}

/// One after the other, each in a fresh process: a million actors of two contestants at once would not fit.
fn memory(operation: &Operation, contestants: &[Contestant], row: &mut Row) {
    let mut size = if crate::smoke() { operation.smoke } else { operation.size };
    if let Some(available) = machine::available_bytes().filter(|available| *available < size * ACTOR_BYTES_MAX) {
        size = available / ACTOR_BYTES_MAX;
        row.title = format!("memory of an actor, of {size} (no room for a million)");
    }
    for (column, contestant) in contestants.iter().enumerate() {
        // Twice: what is asked of the allocator is counted apart, since counting takes no memory but much time.
        let measured = (contestant.start)().and_then(|mut it| process::sample(&mut it, operation.name, size));
        let counted = (contestant.start_counted)().and_then(|mut it| process::sample(&mut it, operation.name, size));
        match (measured, counted) {
            (Ok(Some(mut sample)), Ok(Some(counted))) => {
                sample.further = counted.further;
                row.samples[column].push(sample);
            }
            (Err(error), _) | (_, Err(error)) => {
                row.failures.insert(column, error);
            }
            _ => {}
        }
    }
}

const LEGEND: &str = "\
Median of the samples (fastest sample), processor time of the whole process, and how many times as long as phalanx by the medians. Each \
contestant is a process of its own; they take turns, sample by sample.
- *tell*: bursts of 1,000, each followed by a question whose answer proves that all were handled. Mailboxes hold 1,024 messages in phalanx, \
tokio and kameo; actix's `do_send`, ractor and Erlang know no bound. gen_server: `cast` and `call`; bare process: `!` and `receive`.
- *start*: one after the other, each known to run before the next. phalanx, ractor, kameo and gen_server: under a supervisor; the others under none.
- *restart*: phalanx, kameo and gen_server by their supervisors, which allow a million restarts a second; ractor by hand in its supervisor's handler; actix, tokio \
and the bare process by hand, by whoever asked: references that others hold stay dead.
- *crash at once*: until the last of the new incarnations has started. OTP's supervisor counts the restarts of the last second in a list.
- *shutdown*: in reverse order, each waited for; by hand in actix, tokio and ractor; kameo stops its children at once.
- *memory*: growth of the resident set (what was asked of the allocator) for each actor, with what keeps it alive and one message handled.
";

/// What was to be reached, and whether it was.
fn goals(columns: &[String], rows: &[Row]) {
    println!("Goals, each a peer's time or memory beside phalanx's:");
    for (name, peers, factor) in [
        ("tell", &["actix"][..], 1.0 / 1.15),
        ("ask", &["actix"], 1.0 / 1.15),
        ("spawn", &PEERS, 1.0),
        ("memory", &PEERS, 1.0),
        ("restart", &PEERS, 1.0),
        ("storm", &PEERS, 1.0),
    ] {
        if let Some(row) = rows.iter().find(|row| row.name == name) {
            row.goal(columns, peers, factor);
        }
    }
}

/// All but bare tokio, by the beginnings of their columns' titles.
const PEERS: [&str; 5] = ["actix", "ractor", "kameo", "Erlang/OTP", "Erlang, bare"];
