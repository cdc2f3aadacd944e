//! Processes on this machine, as `/proc` shows them: who is a node's, and how to end it the way a power cut would.
//!
//! Must never signal a process that it has not just found to be the one meant: process ids are recycled. Called by the
//! commands that run a local cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Rounds of looking and killing before giving up on processes that keep forking.
const KILL_ROUNDS_MAX: usize = 50;

/// One line of the process table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Its command line.
    pub args: Vec<String>,
}

/// The process table. Zombies are left out: they are dead.
pub fn table() -> BTreeMap<i32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| process(pid).map(|p| (pid, p)))
        .collect()
}

/// One process, if it lives.
pub fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (parent, start_ticks) = parse_stat(&stat)?;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let args = cmdline.split(|b| *b == 0).filter(|a| !a.is_empty()).map(|a| String::from_utf8_lossy(a).into_owned());
    Some(Process { pid, parent, start_ticks, args: args.collect() })
}

/// Parent and start time of a `/proc/<pid>/stat` line (proc_pid_stat(5)); `None` for a zombie. The name in
/// parentheses may hold anything, so fields are counted from its last parenthesis.
fn parse_stat(stat: &str) -> Option<(i32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

/// Everything that belongs to a node: its process, the shims that work in its directory, and all their descendants.
pub fn of_node(table: &BTreeMap<i32, Process>, node: Option<(i32, u64)>, dir: &Path) -> BTreeSet<i32> {
    let mut found: BTreeSet<i32> = table
        .values()
        .filter(|p| {
            node == Some((p.pid, p.start_ticks))
                || match p.args.get(1).map(String::as_str) {
                    Some("shim") => p.args.iter().any(|a| Path::new(a).starts_with(dir)),
                    // A member that has not got as far as recording itself.
                    Some("server" | "agent") => p.args.iter().any(|a| Path::new(a) == dir),
                    _ => false,
                }
        })
        .map(|p| p.pid)
        .collect();
    loop {
        let more: Vec<i32> =
            table.values().filter(|p| found.contains(&p.parent) && !found.contains(&p.pid)).map(|p| p.pid).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// SIGKILL to everything of a node, until nothing of it is left: what a power cut does. Returns how many were killed.
pub fn kill_node(node: Option<(i32, u64)>, dir: &Path) -> usize {
    let mut killed = BTreeSet::new();
    // The first rounds see descendants through their parents; a child whose parent died first would be found no more.
    // So everything found once is remembered, with its start time, until it is gone.
    let mut known: BTreeMap<i32, u64> = BTreeMap::new();
    for _ in 0..KILL_ROUNDS_MAX {
        let now = table();
        known.retain(|pid, start| now.get(pid).is_some_and(|p| p.start_ticks == *start));
        for pid in of_node(&now, node, dir) {
            if let Some(p) = now.get(&pid) {
                known.insert(pid, p.start_ticks);
            }
        }
        if known.is_empty() {
            break;
        }
        for pid in known.keys() {
            if kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok() {
                killed.insert(*pid);
            }
        }
        std::thread::yield_now();
    }
    killed.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(pid: i32, parent: i32, args: &[&str]) -> (i32, Process) {
        let args = args.iter().map(|a| a.to_string()).collect();
        (pid, Process { pid, parent, start_ticks: pid as u64 * 10, args })
    }

    #[test]
    fn a_nodes_processes_are_its_own_its_shims_and_all_below() {
        let table = BTreeMap::from([
            p(10, 1, &["phalanx", "agent"]),
            p(20, 1, &["phalanx", "shim", "/d/nodes/n1/agent/c1"]),
            p(21, 20, &["nginx"]),
            p(22, 21, &["nginx", "worker"]),
            p(30, 1, &["phalanx", "shim", "/d/nodes/n10/agent/c1"]),
            p(31, 30, &["sleep"]),
            p(40, 1, &["grep", "shimmy", "/d/nodes/n1"]),
            p(50, 1, &["phalanx", "server", "--dir", "/d/nodes/n2"]),
        ]);
        assert_eq!(of_node(&table, None, Path::new("/d/nodes/n2")), BTreeSet::from([50]), "not recorded yet");
        let dir = Path::new("/d/nodes/n1");
        assert_eq!(of_node(&table, Some((10, 100)), dir), BTreeSet::from([10, 20, 21, 22]));
        assert_eq!(of_node(&table, Some((10, 99)), dir), BTreeSet::from([20, 21, 22]), "a recycled pid is not ours");
    }

    #[test]
    fn names_with_parentheses_and_zombies_do_not_confuse() {
        let tail = "1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 777 0";
        assert_eq!(parse_stat(&format!("5 (a) b) S 42 {tail}")), Some((42, 777)));
        assert_eq!(parse_stat(&format!("5 (x) Z 42 {tail}")), None);
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn this_process_is_in_the_table() {
        let me = std::process::id() as i32;
        let found = table().remove(&me).expect("here");
        assert!(found.start_ticks > 0 && !found.args.is_empty());
    }

    #[test]
    fn killing_a_node_ends_a_tree_whose_middle_dies_first() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut child = std::process::Command::new("sh").args(["-c", "sh -c 'sleep 300' & wait"]).spawn().expect("sh");
        let pid = child.id() as i32;
        let start = process(pid).expect("alive").start_ticks;
        while of_node(&table(), Some((pid, start)), dir.path()).len() < 2 {
            std::thread::yield_now();
        }
        assert!(kill_node(Some((pid, start)), dir.path()) >= 2);
        child.wait().expect("reaped");
        assert_eq!(of_node(&table(), Some((pid, start)), dir.path()), BTreeSet::new());
    }
}
