//! The benchmark's side of a contestant: starts its process, talks to it, reads its processor time and memory from outside.
//!
//! Must never leave a process behind: it is killed when this is dropped, and ends by itself when its input does.

use crate::table::Row;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Longest wait for an answer. Only a contestant that hangs takes so long.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// How long a process may take to end when its input has ended; then it is killed.
const END_MAX: Duration = Duration::from_secs(5);
/// How often is looked whether it has.
const END_LOOK: Duration = Duration::from_millis(5);
/// A page of memory, on the machines that this is for.
const PAGE_BYTES: u64 = 4_096;

/// One process of a contestant.
pub struct Process {
    child: Child,
    /// `None` once it is to end.
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

/// What one `go` took.
#[derive(Clone, Debug)]
pub struct Sample {
    /// How often it was done.
    pub operations: f64,
    /// Wall time by the contestant's own clock, in nanoseconds.
    pub wall_ns: f64,
    /// Processor time of all of its processes, in nanoseconds.
    pub cpu_ns: f64,
    /// Growth of the resident set of all of its processes, in bytes.
    pub resident_bytes: f64,
    /// What else it measured.
    pub further: Vec<f64>,
}

impl Process {
    /// Starts it; it is spoken to through its standard input and output.
    pub fn start(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {:?}: {e}", command.get_program()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("no standard output")?;
        let (sender, lines) = channel();
        // Of its own, so that a contestant that hangs is noticed. Ends with the contestant's output.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Process { child, input, lines })
    }

    /// The next line that it says.
    pub fn line(&mut self) -> Result<String, String> {
        match self.lines.recv_timeout(ANSWER_MAX) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Err(match self.child.wait() {
                Ok(status) => format!("ended: {status}"),
                Err(e) => e.to_string(),
            }),
        }
    }

    /// Says a line and gives the answer.
    pub fn ask(&mut self, line: &str) -> Result<String, String> {
        let input = self.input.as_mut().ok_or("its input is closed")?;
        writeln!(input, "{line}").and_then(|()| input.flush()).map_err(|e| format!("cannot be spoken to: {e}"))?;
        self.line()
    }

    /// Processor time of all its threads so far, in nanoseconds. Linux only; 0 elsewhere.
    pub fn cpu_ns(&self) -> f64 {
        #[cfg(target_os = "linux")]
        {
            let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            let time = nix::time::ClockId::pid_cpu_clock_id(pid).and_then(nix::time::ClockId::now);
            time.map_or(0.0, |time| time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
        }
        #[cfg(not(target_os = "linux"))]
        0.0
    }

    /// Its resident set now, in bytes. Linux only; 0 elsewhere.
    pub fn resident_bytes(&self) -> f64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap_or_default();
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        (pages * PAGE_BYTES) as f64
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // That ends it, and what it started itself.
        for _ in 0..END_MAX.as_millis() / END_LOOK.as_millis() {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(END_LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the first process do an operation once. All `processes` are the contestant's, and their time and memory count; the first is the one
/// spoken to. Gives nothing for an operation that it does not have.
pub fn sample(processes: &mut [Process], operation: &str, size: u64) -> Result<Option<Sample>, String> {
    let (first, _) = processes.split_first_mut().ok_or("no process")?;
    match first.ask(&format!("prepare {operation} {size}"))?.as_str() {
        "ready" => {}
        "unsupported" => return Ok(None),
        other => return Err(format!("says `{other}`")),
    }
    let cpu = |processes: &[Process]| processes.iter().map(Process::cpu_ns).sum::<f64>();
    let resident = |processes: &[Process]| processes.iter().map(Process::resident_bytes).sum::<f64>();
    let resident_before = resident(processes);
    let cpu_before = cpu(processes);
    let answer = processes[0].ask("go")?;
    let cpu_ns = cpu(processes) - cpu_before;
    let resident_bytes = resident(processes) - resident_before;
    let numbers: Vec<f64> = answer
        .strip_prefix("done ")
        .map(|numbers| numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect())
        .unwrap_or_default();
    let [operations, wall_ns, further @ ..] = numbers.as_slice() else { return Err(format!("says `{answer}`")) };
    match processes[0].ask("clean")?.as_str() {
        "cleaned" => {}
        other => return Err(format!("says `{other}`")),
    }
    let further = further.to_vec();
    Ok(Some(Sample { operations: *operations, wall_ns: *wall_ns, cpu_ns, resident_bytes, further }))
}

/// How a contestant is started: all of its processes, the one to be spoken to first.
pub type Start = dyn Fn() -> Result<Vec<Process>, String>;

/// So many samples of each contestant, taken in turns, into the row.
pub fn in_turns(starts: &[&Start], operation: &str, size: u64, rounds: usize, row: &mut Row) {
    // Started anew for each operation: none inherits another's heap.
    let mut running: Vec<Option<Vec<Process>>> = Vec::new();
    for (column, start) in starts.iter().enumerate() {
        running.push(start().map_err(|error| row.failures.insert(column, error)).ok());
    }
    // One round more than counts: the first warms up. Each round begins with another, so that none always follows the same.
    for round in 0..=rounds {
        for step in 0..starts.len() {
            let column = (round + step) % starts.len();
            let Some(processes) = &mut running[column] else { continue };
            match sample(processes, operation, size) {
                Ok(Some(sample)) if round > 0 => row.samples[column].push(sample),
                Ok(Some(_)) => {}
                Ok(None) => running[column] = None,
                Err(error) => {
                    running[column] = None;
                    row.failures.insert(column, error);
                }
            }
        }
    }
}
