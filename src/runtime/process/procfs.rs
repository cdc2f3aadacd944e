//! Finding and ending processes by what `/proc` says of them, so that a recycled process number is never hit.
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::protocol::State;

/// Holds the state directory of a container in the environment of all its processes; finds those that left its session.
/// The directory, not the id: no other node, cluster or test of this machine has it.
pub const CONTAINER_DIR_ENV: &str = "PHALANX_CONTAINER_DIR";

/// Some fields of `/proc/<pid>/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub pid: i32,
    pub state: char,
    pub parent: i32,
    pub session: i32,
    /// In clock ticks since boot.
    pub start_ticks: u64,
}

/// `None` where there is no such process.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    // The second field is the command in brackets and may itself hold brackets and spaces.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(15)?.parse().ok()?;
    Some(Stat { pid, state, parent, session, start_ticks })
}

/// All processes of this machine that may be seen.
pub fn processes() -> impl Iterator<Item = Stat> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(stat)
}

/// The children of a single-threaded process.
pub fn children(pid: i32) -> Vec<i32> {
    match std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        Ok(list) => list.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect(),
        // A kernel without CONFIG_PROC_CHILDREN.
        Err(_) => processes().filter(|stat| stat.parent == pid).map(|stat| stat.pid).collect(),
    }
}

pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Whether the process that `start_ticks` belongs to still lives (a zombie does not).
pub fn is_alive(pid: i32, start_ticks: u64) -> bool {
    stat(pid).is_some_and(|stat| stat.start_ticks == start_ticks && stat.state != 'Z')
}

/// The living processes of a container whose shim is dead: those of its session, and those that carry its directory.
pub fn survivors(state: &State, dir: &Path) -> Vec<i32> {
    if state.boot_id != boot_id() {
        return Vec::new();
    }
    // A session number cannot be reused while a process is in it; if its leader's number was, this session is gone.
    let session_is_ours = stat(state.shim_pid).is_none_or(|leader| leader.start_ticks == state.shim_start_ticks);
    let marker = format!("{CONTAINER_DIR_ENV}={}", dir.display());
    processes()
        .filter(|stat| stat.state != 'Z' && stat.pid != state.shim_pid)
        .filter(|stat| {
            stat.start_ticks >= state.start_ticks
                && (session_is_ours && stat.session == state.shim_pid || carries(stat.pid, &marker))
        })
        .map(|stat| stat.pid)
        .collect()
}

fn carries(pid: i32, marker: &str) -> bool {
    std::fs::read(PathBuf::from(format!("/proc/{pid}/environ")))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes()))
}

/// Kills what a dead shim left behind, until nothing is left or `rounds` were not enough. Returns how many were killed.
pub fn kill_survivors(state: &State, dir: &Path, rounds: usize) -> usize {
    let mut killed = 0;
    for _ in 0..rounds {
        let found = survivors(state, dir);
        if found.is_empty() {
            break;
        }
        for pid in &found {
            killed += usize::from(kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    killed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 7 42 40 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";
        assert_eq!(
            parse_stat(42, text),
            Some(Stat { pid: 42, state: 'S', parent: 7, session: 40, start_ticks: 987_654 })
        );
        assert_eq!(parse_stat(42, "42 (x"), None);
        assert_eq!(parse_stat(42, "42 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_alive_and_another_with_its_number_is_not() {
        let me = stat(std::process::id() as i32).unwrap();
        assert!(is_alive(me.pid, me.start_ticks));
        assert!(!is_alive(me.pid, me.start_ticks + 1));
    }
}
