//! Where things lie on disk.
//!
//! ```text
//! DIR/cluster.json              which cluster `phalanx up` made here, and of which nodes
//! DIR/kubeconfig                for kubectl and the CLI
//! DIR/nodes/<name>/node.json    who this member is; written once, when it joins
//!                 /pki/         ca.crt, ca.key (servers only), node.crt, node.key
//!                 /incarnation  boots so far
//!                 /members.json the members as last seen: where to find the others after a full stop
//!                 /run.json     the running process; absent when stopped in order
//!                 /admin.sock   local control
//!                 /log          what the process says
//!                 /store/       servers: Raft log and snapshots
//!                 /agent/       assignments, containers, pod logs
//! ```
//! Must never open a directory of a newer format or of another cluster. Called by `cluster` and the CLI.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::security::join::MemberRecord;
use crate::security::{FileError, read_to_string, write_atomic};

/// The version of this layout. A directory with a higher one was written by a newer Phalanx.
pub const FORMAT: u32 = 1;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Reading or writing failed.
    #[error("{error}: {}", error.source)]
    File {
        /// Which file and what was tried.
        error: FileError,
    },
    /// A file is there but is not what it should be.
    #[error("{} is damaged ({why}); restore it from a copy, or remove {} to start anew", path.display(), path.parent().unwrap_or(path).display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        why: String,
    },
    /// A file where a directory should be.
    #[error("{} is a file, not a directory; choose another with --dir", path.display())]
    NotDirectory {
        /// Which file.
        path: PathBuf,
    },
    /// The directory cannot be made.
    #[error("cannot make the directory {}: {source}; choose another with --dir", path.display())]
    Make {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Written by a newer version.
    #[error("{} was written by a newer Phalanx (format {found}, this one knows {FORMAT}); use that version", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The directory is another member's or cluster's.
    #[error("{} belongs to {found}, not to {wanted}; choose another directory", path.display())]
    Other {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
}

impl From<FileError> for LayoutError {
    fn from(error: FileError) -> Self {
        Self::File { error }
    }
}

/// `cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFile {
    /// See [`FORMAT`].
    pub format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// The address that all its servers answer together; clients need not know which of them live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<SocketAddr>,
    /// Its nodes in the order of their making.
    pub nodes: Vec<ClusterNode>,
}

/// One node of `cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// Part of the control plane.
    pub server: bool,
}

/// `node.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// See [`FORMAT`].
    pub format: u32,
    /// Unique id of the cluster.
    pub cluster_id: String,
    /// Name of the cluster.
    pub cluster: String,
    /// This member.
    pub member: MemberRecord,
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunFile {
    /// Process id.
    pub pid: i32,
    /// When that process started, in clock ticks since boot: a recycled pid has another.
    pub start_ticks: u64,
    /// Inode of the directory that it runs in: a copy of the directory has another, and must not pass for running.
    #[serde(default)]
    pub inode: Option<u64>,
}

/// The paths of one cluster directory.
#[derive(Clone, Debug)]
pub struct ClusterDir(pub PathBuf);

impl ClusterDir {
    /// `cluster.json`.
    pub fn cluster_file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// `kubeconfig`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// A node's directory.
    pub fn node(&self, name: &str) -> NodeDir {
        NodeDir(self.0.join("nodes").join(name))
    }

    /// What `up` made here, if anything.
    pub fn load(&self) -> Result<Option<ClusterFile>, LayoutError> {
        check_directory(&self.0)?;
        load_versioned(&self.cluster_file())
    }

    /// Records what `up` made here.
    pub fn save(&self, file: &ClusterFile) -> Result<(), LayoutError> {
        save(&self.cluster_file(), file)
    }
}

/// The paths of one node's directory.
#[derive(Clone, Debug)]
pub struct NodeDir(pub PathBuf);

impl NodeDir {
    /// `node.json`.
    pub fn node_file(&self) -> PathBuf {
        self.0.join("node.json")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// Local control socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.0.join("admin.sock")
    }

    /// What the process says.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Raft log and snapshots.
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    /// The agent's state.
    pub fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }

    /// `run.json`.
    pub fn run_file(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// Who this member is; `None` when it has not joined yet. Refuses another member's directory.
    pub fn load(&self, name: &str) -> Result<Option<NodeFile>, LayoutError> {
        check_directory(&self.0)?;
        let Some(file): Option<NodeFile> = load_versioned(&self.node_file())? else { return Ok(None) };
        if file.member.name != name {
            return Err(LayoutError::Other {
                path: self.0.clone(),
                found: format!("node {} of cluster {}", file.member.name, file.cluster),
                wanted: format!("node {name}"),
            });
        }
        Ok(Some(file))
    }

    /// Records who this member is.
    pub fn save(&self, file: &NodeFile) -> Result<(), LayoutError> {
        save(&self.node_file(), file)
    }

    /// The running process, as recorded.
    pub fn running(&self) -> Result<Option<RunFile>, LayoutError> {
        let here = self.inode();
        let run: Option<RunFile> = load(&self.run_file())?;
        Ok(run.filter(|run| run.inode.is_none() || run.inode == here))
    }

    /// What tells this directory from a copy of it; `None` when it cannot be asked.
    pub fn inode(&self) -> Option<u64> {
        std::fs::metadata(&self.0).ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta))
    }

    /// The members as last seen.
    pub fn members(&self) -> Result<Vec<MemberRecord>, LayoutError> {
        Ok(load(&self.0.join("members.json"))?.unwrap_or_default())
    }

    /// Remembers the members.
    pub fn save_members(&self, members: &[MemberRecord]) -> Result<(), LayoutError> {
        save(&self.0.join("members.json"), &members)
    }

    /// Counts this boot and returns its number, which is higher than any before: durable before it is used, since two
    /// boots with one number could not be told apart by the others.
    pub fn next_incarnation(&self) -> Result<u64, LayoutError> {
        let path = self.0.join("incarnation");
        let last: u64 = load(&path)?.unwrap_or(0);
        save(&path, &(last + 1))?;
        Ok(last + 1)
    }
}

/// Makes a directory with all above it.
pub fn make_directory(path: &Path) -> Result<(), LayoutError> {
    check_directory(path)?;
    std::fs::create_dir_all(path).map_err(|source| LayoutError::Make { path: path.into(), source })
}

fn check_directory(path: &Path) -> Result<(), LayoutError> {
    match path.ancestors().find(|above| above.is_file()) {
        Some(file) => Err(LayoutError::NotDirectory { path: file.into() }),
        None => Ok(()),
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LayoutError> {
    let text = match read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| LayoutError::Damaged { path: path.into(), why: e.to_string() })
}

/// Checks the format before the rest: a newer file need not fit our types.
fn load_versioned<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LayoutError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    match load::<Versioned>(path)? {
        None => Ok(None),
        Some(Versioned { format }) if format > FORMAT => Err(LayoutError::Newer { path: path.into(), found: format }),
        Some(_) => load(path),
    }
}

fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), LayoutError> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|e| LayoutError::Damaged { path: path.into(), why: e.to_string() })?;
    text.push(b'\n');
    Ok(write_atomic(path, &text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeFile {
        NodeFile {
            format: FORMAT,
            cluster_id: "id".into(),
            cluster: "c".into(),
            member: MemberRecord {
                name: name.into(),
                index: 1,
                server_id: Some(1),
                agent: true,
                transport: "127.0.0.1:1".into(),
                api: None,
            },
        }
    }

    #[test]
    fn every_boot_gets_a_higher_number() {
        let dir = tempfile::tempdir().expect("tempdir");
        let node = NodeDir(dir.path().join("n1"));
        let boots: Vec<u64> = (0..3).map(|_| node.next_incarnation().expect("counted")).collect();
        assert_eq!(boots, [1, 2, 3]);
    }

    #[test]
    fn a_directory_of_another_node_or_a_newer_version_is_refused_in_one_line() {
        let dir = tempfile::tempdir().expect("tempdir");
        let here = NodeDir(dir.path().into());
        assert!(here.load("n1").expect("empty").is_none());
        here.save(&node("n1")).expect("saved");
        assert_eq!(here.load("n1").expect("ours"), Some(node("n1")));
        let error = here.load("n2").expect_err("not ours").to_string();
        assert!(error.contains("belongs to node n1 of cluster c, not to node n2"), "{error}");

        std::fs::write(here.node_file(), r#"{"format": 9, "future": true}"#).expect("write");
        let error = here.load("n1").expect_err("newer").to_string();
        assert!(error.contains("newer Phalanx (format 9, this one knows 1)") && !error.contains('\n'), "{error}");

        std::fs::write(here.node_file(), "{").expect("write");
        assert!(matches!(here.load("n1"), Err(LayoutError::Damaged { .. })));
    }
}
