//! What the agent and a shim say to each other: the files in a container's state directory and the lines on its socket.
//!
//! ```text
//! <dir>/spec.json    the ContainerSpec, written by the agent before the shim starts
//!       lock         held (flock) by the living shim
//!       shim.sock    the shim's socket: one JSON request a line, one JSON answer a line
//!       state.json   which processes run, written by the shim once the container runs
//!       exit.json    the ExitStatus, written once by the shim, or by the agent when the shim was killed
//! ```
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::runtime::ExitStatus;

pub const SPEC_FILE: &str = "spec.json";
pub const LOCK_FILE: &str = "lock";
pub const SOCKET_FILE: &str = "shim.sock";
pub const STATE_FILE: &str = "state.json";
pub const EXIT_FILE: &str = "exit.json";
/// What the shim itself had to complain about.
pub const SHIM_ERROR_FILE: &str = "shim.err";
/// The container may write its last words here (its path is in the environment, see `process`).
pub const TERMINATION_LOG_FILE: &str = "termination-log";

/// A request longer than this ends the connection.
pub const REQUEST_BYTES_MAX: usize = 4096;
/// More connections than this at once are closed at once.
pub const CLIENTS_MAX: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// To the process group of the container.
    Signal {
        signal: i32,
    },
    /// SIGKILL to everything that the container ever started.
    Kill,
    /// Answered when the container has ended.
    Wait,
    /// Kill, and leave.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Done,
    Running(State),
    Exited(ExitStatus),
    Error(String),
}

/// Which processes hold a container. Start times tell a process from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub shim_pid: i32,
    /// In clock ticks since boot, `/proc/<pid>/stat` field 22.
    pub shim_start_ticks: u64,
    /// The main process, leader of its process group, in the session of the shim.
    pub pid: i32,
    pub start_ticks: u64,
    pub boot_id: String,
    #[serde(with = "crate::runtime::rfc3339")]
    pub started_at: Timestamp,
}

/// What the shim says on its stdout, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Started {
    Running(State),
    Failed(ExitStatus),
}

/// Writes a state file so that a reader sees the old or the new one, never a part. Not yet safe against power loss.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<File> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    std::fs::rename(&temporary, path)?;
    Ok(file)
}

/// `None` where the file is absent.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
