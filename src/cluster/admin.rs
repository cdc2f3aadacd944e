//! The local control socket of a member: one JSON line asks, one JSON line answers.
//!
//! It works when the network does not (a partition is healed through it), and whoever may open the node's directory may
//! use it: the socket is readable and writable by its owner only. Must never block the member. Served by `cluster`,
//! called by the commands that run a local cluster.

use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::layout::NodeDir;
use crate::security::TokenRole;

/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Callers served at once; more wait in the socket's own queue.
const CALLERS_MAX: usize = 32;
/// A caller that says nothing is dropped after this time.
const IDLE: Duration = Duration::from_secs(30);
/// The whole call must be answered within this time.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum AdminRequest {
    /// Who are you?
    Status,
    /// The supervision tree.
    Tree,
    /// Credentials of the cluster's administrator, from a server.
    Kubeconfig,
    /// Stop in order; with `pods`, stop what the node runs, too.
    Stop {
        /// Else containers go on running and are adopted at the next start.
        pods: bool,
    },
    /// Make a join token.
    Token {
        /// What for.
        role: TokenRole,
        /// For how long, in seconds.
        ttl_s: u64,
    },
    /// Cut the node off from all others.
    Partition,
    /// Delay everything that the node sends, in milliseconds.
    Delay {
        /// By how much.
        ms: u64,
    },
    /// The disk of the server's store counts as full.
    FillDisk,
    /// End every partition and delay, and give the disk its room back.
    Heal,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminResponse {
    /// Done, with what was asked for.
    Ok(serde_json::Value),
    /// Not done: one line for people.
    Error(String),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody serves the socket.
    #[error("no node runs in {}; start it, or its whole cluster with `phalanx up`", dir.display())]
    NotRunning {
        /// The node's directory.
        dir: PathBuf,
    },
    /// It hung up, or said nonsense, or said nothing.
    #[error("the node in {} did not answer: {why}", dir.display())]
    NoAnswer {
        /// The node's directory.
        dir: PathBuf,
        /// What happened.
        why: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// Opens the socket of a node's directory. A socket file left by a process that died is replaced.
pub fn listen(dir: &NodeDir) -> io::Result<UnixListener> {
    let path = dir.admin_socket();
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let (_open, short) = short_path(&path)?;
    let listener = UnixListener::bind(short)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, owner_only)?;
    Ok(listener)
}

/// Serves the socket until the future is dropped.
pub async fn serve<F, Fut>(listener: UnixListener, handler: F)
where
    F: Fn(AdminRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = AdminResponse> + Send + 'static,
{
    let handler = Arc::new(handler);
    let callers = Arc::new(Semaphore::new(CALLERS_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = callers.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: it passes.
                tracing::warn!(%error, "the admin socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let handler = handler.clone();
        tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = answer(stream, handler.as_ref()).await {
                tracing::debug!(%error, "a caller of the admin socket went away");
            }
        });
    }
}

async fn answer<F, Fut>(stream: UnixStream, handler: &F) -> io::Result<()>
where
    F: Fn(AdminRequest) -> Fut,
    Fut: Future<Output = AdminResponse>,
{
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LINE_BYTES_MAX));
    tokio::time::timeout(IDLE, reader.read_line(&mut line)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let response = match serde_json::from_str(&line) {
        Ok(request) => handler(request).await,
        Err(error) => AdminResponse::Error(format!("the request is not valid: {error}")),
    };
    let mut text = serde_json::to_vec(&response).map_err(io::Error::other)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the member that runs in `dir`.
pub async fn call(dir: &NodeDir, request: &AdminRequest) -> Result<serde_json::Value, AdminError> {
    let no_answer = |why: String| AdminError::NoAnswer { dir: dir.0.clone(), why };
    let not_running = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
            AdminError::NotRunning { dir: dir.0.clone() }
        }
        _ => no_answer(e.to_string()),
    };
    let (_open, short) = short_path(&dir.admin_socket()).map_err(not_running)?;
    let stream = UnixStream::connect(short).await.map_err(not_running)?;
    let exchange = async {
        let (read, mut write) = stream.into_split();
        let mut text = serde_json::to_vec(request).map_err(io::Error::other)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(read.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
        io::Result::Ok(line)
    };
    let line = tokio::time::timeout(CALL_DEADLINE, exchange)
        .await
        .map_err(|_| no_answer(format!("nothing within {} s", CALL_DEADLINE.as_secs())))?
        .map_err(|e| no_answer(e.to_string()))?;
    match serde_json::from_str(&line) {
        Ok(AdminResponse::Ok(value)) => Ok(value),
        Ok(AdminResponse::Error(message)) => Err(AdminError::Refused(message)),
        Err(_) if line.is_empty() => Err(no_answer("it hung up".into())),
        Err(error) => Err(no_answer(error.to_string())),
    }
}

/// A socket's path may have 107 bytes (unix(7)); a cluster's directory may be deeper. So the directory is opened and the
/// socket is named through `/proc/self/fd`, for as long as the returned file lives.
fn short_path(path: &Path) -> io::Result<(std::fs::File, PathBuf)> {
    let dir = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    let name = path.file_name().unwrap_or_default();
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deep() -> (tempfile::TempDir, NodeDir) {
        let root = tempfile::tempdir().expect("tempdir");
        let dir = root.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&dir).expect("mkdir");
        (root, NodeDir(dir))
    }

    #[tokio::test]
    async fn a_socket_in_a_deep_directory_answers_and_refuses() {
        let (_root, dir) = deep();
        let server = tokio::spawn(serve(listen(&dir).expect("listen"), |request| async move {
            match request {
                AdminRequest::Status => AdminResponse::Ok(json!({"node": "n1"})),
                _ => AdminResponse::Error("not now".into()),
            }
        }));
        assert_eq!(call(&dir, &AdminRequest::Status).await.expect("answer"), json!({"node": "n1"}));
        let error = call(&dir, &AdminRequest::Heal).await.expect_err("refused");
        assert_eq!(error.to_string(), "not now");
        server.abort();
        let _ = server.await;
        let error = call(&dir, &AdminRequest::Status).await.expect_err("gone");
        assert!(matches!(error, AdminError::NotRunning { .. }), "{error}");
    }

    #[tokio::test]
    async fn garbage_gets_an_answer_and_the_next_caller_is_served() {
        let (_root, dir) = deep();
        let server = tokio::spawn(serve(listen(&dir).expect("listen"), |_| async { AdminResponse::Ok(json!(1)) }));
        let (_open, short) = short_path(&dir.admin_socket()).expect("path");
        let mut raw = UnixStream::connect(short).await.expect("connect");
        raw.write_all(b"\x00\x01{}\n").await.expect("write");
        let mut answer = String::new();
        BufReader::new(raw).read_line(&mut answer).await.expect("read");
        assert!(answer.contains("not valid"), "{answer}");
        assert_eq!(call(&dir, &AdminRequest::Status).await.expect("answer"), json!(1));
        server.abort();
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced() {
        let (_root, dir) = deep();
        drop(listen(&dir).expect("first"));
        assert!(dir.admin_socket().exists(), "the file outlives its process");
        assert!(listen(&dir).is_ok());
    }
}
