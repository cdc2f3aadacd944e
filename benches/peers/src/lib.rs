//! Phalanx's actors and transport beside their peers: the same work by each, in turns, in one table.
//!
//! Each contestant is a process of its own (this program again, or Erlang's `erl`), so that none has another's heap, threads or panic hook. It obeys
//! lines on its standard input ([`contestant::serve`]): prepare an operation, do it, clean up. The benchmark goes round all contestants for
//! each sample, so that what else the machine does hits all alike, and reads the processor time of their processes from outside, the same
//! way for all.
//!
//! Must never compare unlike things silently: where semantics differ the legend beneath the table says so. Nothing here is a test: no
//! figure fails. `--smoke` does everything a few times, to see that it works.

#![forbid(unsafe_code)]

pub mod contestant;
pub mod erlang;
pub mod local;
pub mod machine;
pub mod process;
pub mod remote;
pub mod table;

use std::path::Path;

/// First argument of a benchmark that is to be a contestant.
pub const CONTESTANT: &str = "--contestant";

/// Whether everything is only to be tried out: `--smoke`, or the environment variable `PHALANX_BENCH_SMOKE`.
pub fn smoke() -> bool {
    std::env::args().any(|argument| argument == "--smoke") || std::env::var_os("PHALANX_BENCH_SMOKE").is_some()
}

/// The operations that the command line asks for: all, or those whose names contain one of its words.
pub fn wanted(operation: &str) -> bool {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    words.is_empty() || words.iter().any(|word| operation.contains(word.as_str()))
}

/// A benchmark's `main`: does what `run` says, or is a contestant, when started as one.
pub fn main(run: impl FnOnce(&Path) -> Result<(), String>) {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == CONTESTANT).is_some() {
        return contestant::main(arguments.collect());
    }
    let done = std::env::current_exe().map_err(|e| format!("cannot find itself: {e}")).and_then(|own| run(&own));
    if let Err(error) = done {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
