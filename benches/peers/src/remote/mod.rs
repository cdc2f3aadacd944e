//! The remote figures: messages, questions and a large body from one process to another on this machine, over loopback.
//!
//! Each contestant is two processes, a client that is spoken to and a server; processor time is that of both. phalanx: an actor behind its
//! transport. quinn: what is below it, with the same batching and nothing else, for the price of all the rest. Erlang: two nodes with an epmd
//! of their own.

mod identity;
mod phalanx;
mod raw_quinn;

use crate::contestant::{Outcome, Round};
use crate::process::{self, Process, Start};
use crate::table::{self, Figure, Row};
use crate::{erlang, machine};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Callers of the second ask.
const CALLERS: u64 = 64;
/// What a body is written and read in.
const PIECE_BYTES: usize = 64 << 10;
const MIB: usize = 1 << 20;
/// Bytes that may wait to be written before the sender waits; the same for phalanx and quinn.
const OUTBOX_BYTES: usize = 16 << 20;
/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(120);
/// A sender whose outbox is full looks again after this.
const FULL_PAUSE: Duration = Duration::from_millis(1);

struct Operation {
    name: &'static str,
    title: &'static str,
    figure: Figure,
    size: u64,
    smoke: u64,
    rounds: usize,
}

const OPERATIONS: [Operation; 5] = [
    Operation {
        name: "tell-64",
        title: "tells of 64 B",
        figure: Figure::Rate,
        size: 200_000,
        smoke: 2_000,
        rounds: 15,
    },
    Operation {
        name: "tell-1024",
        title: "tells of 1 KiB",
        figure: Figure::Rate,
        size: 50_000,
        smoke: 1_000,
        rounds: 15,
    },
    Operation {
        name: "ask-1",
        title: "ask, 1 caller: p50 / p99",
        figure: Figure::Latency,
        size: 3_000,
        smoke: 50,
        rounds: 15,
    },
    Operation {
        name: "ask-64",
        title: "ask, 64 callers: p50 / p99",
        figure: Figure::Latency,
        size: 200,
        smoke: 3,
        rounds: 15,
    },
    Operation { name: "body", title: "a body of 1 GiB", figure: Figure::Throughput, size: 1_024, smoke: 16, rounds: 5 },
];

/// What a program of this package does as a contestant.
pub fn contestant(words: &[&str]) {
    match words {
        ["phalanx", "server", folder] => phalanx::server(Path::new(folder)),
        ["phalanx", "client", folder, addr] => phalanx::client(Path::new(folder), addr),
        ["quinn", "server", folder] => raw_quinn::server(Path::new(folder)),
        ["quinn", "client", folder, addr] => raw_quinn::client(Path::new(folder), addr),
        _ => eprintln!("unknown contestant {words:?}"),
    }
}

/// Ends the process when its input ends: the benchmark is gone, or has what it wanted.
fn end_with_input() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(0);
    });
}

/// p50 and p99 of the latencies, in nanoseconds.
fn asked(mut latencies: Vec<u64>) -> Outcome {
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0);
    Outcome { operations: latencies.len() as u64, further: vec![at(0.5), at(0.99)], kept: Box::new(()) }
}

/// So many asks by each of so many callers, one after the other.
async fn ask_all<F>(callers: u64, asks: u64, ask: impl Fn() -> F + Clone + Send + 'static) -> Outcome
where
    F: Future<Output = ()> + Send,
{
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let ask = ask.clone();
        running.spawn(async move {
            let mut latencies = Vec::new();
            for _ in 0..asks {
                let begun = Instant::now();
                ask().await;
                latencies.push(begun.elapsed().as_nanos() as u64);
            }
            latencies
        });
    }
    asked(running.join_all().await.concat())
}

/// The size of the message that an operation's name tells, or how many callers there are.
fn number(operation: &str) -> Option<u64> {
    operation.rsplit_once('-')?.1.parse().ok()
}

struct Contestant {
    title: String,
    start: Box<Start>,
}

fn contestants(own: &Path, folder: &Path) -> Vec<Contestant> {
    let rust = |title: String, name: &'static str| {
        let (own, folder) = (own.to_owned(), folder.to_owned());
        let start = move || {
            let run = |words: &[&str]| {
                let mut command = Command::new(&own);
                command.args([crate::CONTESTANT, "remote", name, words[0]]).arg(&folder).args(&words[1..]);
                Process::start(command)
            };
            let mut server = run(&["server"])?;
            let line = server.line()?;
            let addr = line.strip_prefix("listening ").ok_or_else(|| format!("the server says `{line}`"))?;
            Ok(vec![run(&["client", addr])?, server])
        };
        Contestant { title, start: Box::new(start) }
    };
    let mut all =
        vec![rust("**phalanx**".into(), "phalanx"), rust(format!("raw {}", machine::version("quinn")), "quinn")];
    let Some(release) = erlang::release() else {
        println!("Erlang's distribution is left out: there is no `erl` on the path.\n");
        return all;
    };
    match erlang::compile(folder, "bench_remote", include_str!("../../erlang/bench_remote.erl")) {
        Ok(()) => {
            let folder = folder.to_owned();
            all.push(Contestant { title: release, start: Box::new(move || erlang_nodes(&folder)) });
        }
        Err(error) => println!("Erlang's distribution is left out: {error}\n"),
    }
    all
}

/// Client, server, and the epmd that they know each other by, which is nobody else's.
fn erlang_nodes(folder: &Path) -> Result<Vec<Process>, String> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|e| format!("no free port: {e}"))?
        .port();
    // epmd does not end with its input; the shell sees to that.
    let script = "epmd -address 127.0.0.1 -port $1 2>/dev/null & pid=$!; trap 'kill $pid; exit' INT TERM HUP; cat >/dev/null; kill $pid; wait";
    let mut command = Command::new("sh");
    command.args(["-c", script, "epmd", &port.to_string()]);
    let epmd = Process::start(command)?;
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if begun.elapsed() > PATIENCE {
            return Err("epmd does not answer".into());
        }
        std::thread::sleep(FULL_PAUSE);
    }
    let node = |words: &[&str]| {
        let mut command = erlang::node(folder, "bench_remote", 2);
        command
            .args(["-name", &format!("{}@127.0.0.1", words[0]), "-setcookie", "phalanx", "-start_epmd", "false"])
            .args(["-kernel", "inet_dist_use_interface", "{127,0,0,1}", "-extra"])
            .args(words)
            .env("ERL_EPMD_PORT", port.to_string());
        Process::start(command)
    };
    let mut server = node(&["server"])?;
    match server.line()?.as_str() {
        "listening" => {}
        other => return Err(format!("the server says `{other}`")),
    }
    Ok(vec![node(&["client"])?, server, epmd])
}

/// Measures everything and prints the table. `own` is this program.
pub fn run(own: &Path) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    identity::write(folder.path())?;
    println!("# Remote figures\n{}\n", machine::line());
    let contestants = contestants(own, folder.path());
    let columns: Vec<String> = contestants.iter().map(|contestant| contestant.title.clone()).collect();
    let mut rows = Vec::new();
    for operation in OPERATIONS.iter().filter(|operation| crate::wanted(operation.name)) {
        let (size, rounds) = if crate::smoke() { (operation.smoke, 1) } else { (operation.size, operation.rounds) };
        let mut row = Row::new(operation.name, operation.title, operation.figure, contestants.len());
        let starts: Vec<_> = contestants.iter().map(|contestant| &*contestant.start).collect();
        process::in_turns(&starts, operation.name, size, rounds, &mut row);
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

const LEGEND: &str = "\
Two processes each, on loopback; they take turns, sample by sample. Medians of the samples (fastest sample), processor time of both processes for one \
operation, and how many times as long as phalanx by the medians.
- *tells*: as many as go, until the receiver has counted the last; in phalanx and Erlang an actor or process counts, in quinn the task that reads. TLS in phalanx and \
quinn, none in Erlang.
- *ask*: round trip of 64 B, medians over the samples of each sample's p50 and p99; then the rate. Erlang: `gen_server:call`. quinn: a stream for each.
- *body*: written and read in pieces of 64 KiB, on a stream of its own; in Erlang in messages, since it has no streams.
";

/// What was to be reached, and whether it was.
fn goals(columns: &[String], rows: &[Row]) {
    println!("Goals, each a peer's time beside phalanx's:");
    for (name, peer, factor) in [
        ("tell-64", "Erlang", 3.0),
        ("ask-1", "Erlang", 1.0),
        ("ask-64", "Erlang", 1.0),
        ("tell-64", "raw quinn", 1.0 / 1.15),
        ("tell-1024", "raw quinn", 1.0 / 1.15),
        ("ask-1", "raw quinn", 1.0 / 1.15),
        ("ask-64", "raw quinn", 1.0 / 1.15),
        ("body", "raw quinn", 1.0 / 1.15),
    ] {
        if let Some(row) = rows.iter().find(|row| row.name == name) {
            row.goal(columns, &[peer], factor);
        }
    }
}

/// A round of one operation, as the client of either Rust contestant has it.
fn round(work: impl FnOnce() -> Outcome + 'static) -> Option<Round> {
    Some(Box::new(work))
}
