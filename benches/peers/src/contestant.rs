//! A contestant's side: obeys the benchmark's lines on standard input, answers on standard output. `erlang/*.erl` obey the same ones.
//!
//! ```text
//!   prepare <operation> <size>  ──▶ ready │ unsupported
//!   go                          ──▶ done <operations> <wall ns> [further numbers]
//!   clean                       ──▶ cleaned
//!   end of input                ──▶ the process ends
//! ```
//! Must never time what comes before or after the work itself.

use std::any::Any;
use std::io::{BufRead, Write};
use std::time::Instant;

/// Work that is prepared and not yet done.
pub type Round = Box<dyn FnOnce() -> Outcome>;

/// What came of a round.
pub struct Outcome {
    /// How often it was done.
    pub operations: u64,
    /// What else was measured, as the operation defines it.
    pub further: Vec<u64>,
    /// What is dropped only when the round has been measured.
    pub kept: Box<dyn Any>,
}

impl Outcome {
    /// So many operations, and nothing else to say.
    pub fn new(operations: u64, kept: impl Any) -> Self {
        Outcome { operations, further: Vec::new(), kept: Box::new(kept) }
    }
}

/// Serves until the input ends. `prepare` gives nothing for an operation that the contestant does not have.
pub fn serve(prepare: impl Fn(&str, u64) -> Option<Round>) {
    let mut prepared: Option<Round> = None;
    let mut kept: Option<Box<dyn Any>> = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["prepare", operation, size] => match size.parse().ok().and_then(|size| prepare(operation, size)) {
                Some(round) => {
                    prepared = Some(round);
                    "ready".to_owned()
                }
                None => "unsupported".to_owned(),
            },
            ["go"] => match prepared.take() {
                Some(round) => {
                    let begun = Instant::now();
                    let outcome = round();
                    let wall = begun.elapsed();
                    kept = Some(outcome.kept);
                    let mut answer = format!("done {} {}", outcome.operations, wall.as_nanos());
                    outcome.further.iter().for_each(|number| answer.push_str(&format!(" {number}")));
                    answer
                }
                None => "error nothing is prepared".to_owned(),
            },
            ["clean"] => {
                drop(kept.take());
                "cleaned".to_owned()
            }
            _ => format!("error unknown line `{line}`"),
        };
        say(&answer);
    }
    // Nothing is given back in order: it may be a million actors.
    std::process::exit(0);
}

/// One line to the benchmark, at once.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A benchmark that is gone ends this process at the next line.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Is a contestant: `local <contestant>`, or `remote <contestant> ..`.
pub fn main(words: Vec<String>) {
    // Panics are part of what is measured; printing them is not. Set before the actors' own hook, which hands on to this one.
    std::panic::set_hook(Box::new(|info| {
        if std::env::var_os("PHALANX_BENCH_PANICS").is_some() {
            eprintln!("{info}");
        }
    }));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["local", contestant] => serve(|operation, size| crate::local::prepare(contestant, operation, size)),
        ["remote", rest @ ..] => crate::remote::contestant(rest),
        _ => eprintln!("started by the benchmarks only: `local <contestant>` or `remote <contestant> ..`"),
    }
}
