//! Reads a container's log back: `kubectl logs`, with `-f`, `--previous`, `--tail`, `--since`, `--timestamps`, `--limit-bytes`.
//!
//! It reads files only (the log in CRI format with its rotated predecessors, and the pod's last status), so it works while
//! the agent restarts, and never touches a container. Which run is meant is the kubelet's choice: the one of the state, or
//! of the last state for `--previous`. Following ends when that run has ended.
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::mpsc;

use super::Agent;
use super::disk::Layout;
use crate::runtime::container_log::rotated;

/// How often a follower looks for more.
const FOLLOW_MS: u64 = 50;
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that a slow reader may leave waiting; then the log is read no further.
const CHUNKS_WAITING: usize = 4;
/// A record longer than this is broken and skipped.
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// What `PodLogOptions` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// May be left out where the pod has one container.
    pub container: Option<String>,
    pub follow: bool,
    pub previous: bool,
    pub tail_lines: Option<u64>,
    /// Only records of this time and later.
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
}

/// Why there is no log; in Kubernetes' words.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("pod {namespace}/{pod} is not on this node")]
    NoPod { namespace: String, pod: String },
    #[error("a container name must be specified for pod {pod}, choose one of: [{}]", .choices.join(" "))]
    Ambiguous { pod: String, choices: Vec<String> },
    #[error("container {container} is not valid for pod {pod}")]
    NoContainer { container: String, pod: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start: {reason}")]
    Waiting { container: String, pod: String, reason: String },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious { container: String, pod: String },
}

impl Agent {
    /// Opens the log of a pod's container.
    pub fn open_logs(
        &self,
        namespace: &str,
        pod: &str,
        request: LogRequest,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, LogError> {
        let known =
            self.assignments.all().into_iter().find(|known| known.namespace() == namespace && known.name() == pod);
        let known = known.ok_or_else(|| LogError::NoPod { namespace: namespace.to_owned(), pod: pod.to_owned() })?;
        let names: Vec<String> = known
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
            .map(|container| container.name.clone())
            .collect();
        let container = match &request.container {
            Some(name) if names.contains(name) => name.clone(),
            Some(name) => return Err(LogError::NoContainer { container: name.clone(), pod: pod.to_owned() }),
            None if names.len() == 1 => names[0].clone(),
            None => return Err(LogError::Ambiguous { pod: pod.to_owned(), choices: names }),
        };
        open(&self.layout, namespace, pod, known.uid(), container, request)
    }
}

fn open(
    layout: &Layout,
    namespace: &str,
    pod: &str,
    uid: &str,
    container: String,
    request: LogRequest,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, LogError> {
    let status = layout.read_status(uid).unwrap_or_default();
    let attempt = choose(&status, pod, &container, request.previous)?;
    let path = layout.pod_logs(namespace, pod, uid).join(&container).join(format!("{attempt}.log"));
    let run = Run { layout: layout.clone(), uid: uid.to_owned(), container, attempt };
    let (to, from) = mpsc::channel(CHUNKS_WAITING);
    tokio::spawn(async move {
        let mut out = Output { to, request, pending: BytesMut::new(), begun: false, left: None };
        out.left = out.request.limit_bytes;
        if let Err(Stop::Failed(error)) = read(&path, &run, &mut out).await {
            let _ = out.to.send(Err(error)).await;
        }
    });
    Ok(tokio_stream::wrappers::ReceiverStream::new(from))
}

fn find<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|of| of.name == container)
}

/// The kubelet's `validateContainerLogStatus`.
fn choose(status: &PodStatus, pod: &str, container: &str, previous: bool) -> Result<u32, LogError> {
    let of = find(status, container);
    let attempt = |id: Option<&String>| id.and_then(|id| id.rsplit('_').next()?.parse().ok());
    let last = of.and_then(|of| of.last_state.as_ref()?.terminated.as_ref());
    let last = last.and_then(|last| attempt(last.container_id.as_ref()));
    if previous {
        return last.ok_or_else(|| LogError::NoPrevious { container: container.to_owned(), pod: pod.to_owned() });
    }
    let state = of.and_then(|of| of.state.as_ref());
    let running =
        state.and_then(|state| state.running.as_ref()).and(of).and_then(|of| attempt(of.container_id.as_ref()));
    let ended =
        state.and_then(|state| state.terminated.as_ref()).and_then(|ended| attempt(ended.container_id.as_ref()));
    running.or(ended).or(last).ok_or_else(|| {
        let reason = state.and_then(|state| state.waiting.as_ref()?.reason.clone());
        LogError::Waiting {
            container: container.to_owned(),
            pod: pod.to_owned(),
            reason: reason.unwrap_or_else(|| "ContainerCreating".to_owned()),
        }
    })
}

/// The run whose log is read.
struct Run {
    layout: Layout,
    uid: String,
    container: String,
    attempt: u32,
}

impl Run {
    async fn is_over(&self) -> bool {
        let (layout, uid) = (self.layout.clone(), self.uid.clone());
        let status = tokio::task::spawn_blocking(move || layout.read_status(&uid)).await.ok().flatten();
        let Some(status) = status else { return true };
        let running =
            find(&status, &self.container).filter(|of| of.state.as_ref().is_some_and(|of| of.running.is_some()));
        running.is_none_or(|of| u32::try_from(of.restart_count) != Ok(self.attempt))
    }
}

enum Stop {
    /// All that was asked for was sent, or nobody listens any more.
    Done,
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

struct Output {
    to: mpsc::Sender<io::Result<Bytes>>,
    request: LogRequest,
    /// Begun records.
    pending: BytesMut,
    /// The last record sent was a partial one.
    begun: bool,
    left: Option<u64>,
}

impl Output {
    /// Takes in bytes of the log, in order; sends what they complete.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.pending.extend_from_slice(bytes);
        let mut text = BytesMut::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let record = self.pending.split_to(end + 1);
            self.record(&record[..end], &mut text);
        }
        if self.pending.len() > RECORD_BYTES_MAX {
            self.pending.clear();
        }
        if text.is_empty() {
            return Ok(());
        }
        let mut over = false;
        if let Some(left) = &mut self.left {
            over = text.len() as u64 >= *left;
            text.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= text.len() as u64;
        }
        match self.to.send(Ok(text.freeze())).await {
            Ok(()) if !over => Ok(()),
            _ => Err(Stop::Done),
        }
    }

    fn record(&mut self, record: &[u8], text: &mut BytesMut) {
        let mut fields = record.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(line)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return; // torn by a full disk
        };
        if let Some(since) = self.request.since {
            let at = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if at.is_none_or(|at| at < since) {
                return;
            }
        }
        if self.request.timestamps && !self.begun {
            text.extend_from_slice(time);
            text.extend_from_slice(b" ");
        }
        text.extend_from_slice(line);
        self.begun = tag == b"P";
        if !self.begun {
            text.extend_from_slice(b"\n");
        }
    }
}

async fn read(path: &Path, run: &Run, out: &mut Output) -> Result<(), Stop> {
    let mut files = in_order(path);
    let mut skip = 0;
    if let Some(lines) = out.request.tail_lines {
        let mut wanted = lines;
        let mut from = files.len();
        while from > 0 && wanted > 0 {
            from -= 1;
            match tail(&files[from], wanted).await {
                Ok((offset, found)) => {
                    skip = offset;
                    wanted -= found.min(wanted);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => skip = 0,
                Err(error) => return Err(error.into()),
            }
        }
        if lines == 0 {
            from = files.len().saturating_sub(1);
            skip = files.last().and_then(|path| path.metadata().ok()).map_or(0, |of| of.len());
        }
        files.drain(..from);
    }
    let mut next = files.into_iter().next();
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Some(current) = next.take() {
        let mut file = match File::open(&current).await {
            Ok(file) => file,
            // Just being rotated, or not yet written.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !out.request.follow || run.is_over().await && !path.exists() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(FOLLOW_MS)).await;
                next = in_order(path).into_iter().next();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if skip > 0 {
            file.seek(SeekFrom::Start(std::mem::take(&mut skip))).await?;
        }
        let inode = file.metadata().await?.ino();
        loop {
            // Looked at before the last read: what was written before the end is read after it.
            let over = !out.request.follow || run.is_over().await;
            let successor = successor(path, inode);
            let mut any = false;
            loop {
                let count = file.read(&mut chunk).await?;
                if count == 0 {
                    break;
                }
                any = true;
                out.take(&chunk[..count]).await?;
            }
            if successor.is_some() {
                next = successor;
                break;
            }
            if over {
                break;
            }
            if !any {
                tokio::select! {
                    () = out.to.closed() => return Ok(()),
                    () = tokio::time::sleep(Duration::from_millis(FOLLOW_MS)) => {}
                }
            }
        }
    }
    Ok(())
}

fn in_order(path: &Path) -> Vec<PathBuf> {
    rotated(path).into_iter().map(|(_, path)| path).chain([path.to_owned()]).collect()
}

/// The file that follows the one with this inode, wherever rotation has moved that.
fn successor(path: &Path, inode: u64) -> Option<PathBuf> {
    let files = in_order(path);
    let at = files.iter().position(|file| file.metadata().is_ok_and(|of| of.ino() == inode));
    match at {
        Some(at) => files.get(at + 1).filter(|next| next.exists()).cloned(),
        // Rotated away altogether: the oldest that is left.
        None => files.into_iter().find(|file| file.exists()),
    }
}

/// Where the last `lines` lines of a file begin, and how many it has of them.
async fn tail(path: &Path, lines: u64) -> io::Result<(u64, u64)> {
    let mut file = File::open(path).await?;
    let mut end = file.metadata().await?.len();
    let mut found = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    let whole = end;
    while end > 0 {
        let size = (CHUNK_BYTES as u64).min(end);
        file.seek(SeekFrom::Start(end - size)).await?;
        let part = &mut chunk[..size as usize];
        file.read_exact(part).await?;
        for (index, byte) in part.iter().enumerate().rev() {
            let at = end - size + index as u64;
            if *byte == b'\n' && at + 1 < whole {
                found += 1;
                if found == lines {
                    return Ok((at + 1, found));
                }
            }
        }
        end -= size;
    }
    Ok((0, found + u64::from(whole > 0)))
}

#[cfg(test)]
#[path = "logs_test.rs"]
mod tests;
