//! What the agent keeps on disk, and where: assignments, last statuses, container state, logs, working directories.
//!
//! ```text
//! <dir>/agent.lock                                       locked while an agent lives; exclusive containers end with it
//!       pods/<uid>.json                                  the assignment: what this node must run, also without a control plane
//!       pods/<uid>.status.json                           the status last computed
//!       containers/<uid>/sources.json                    ConfigMaps and Secrets last seen, for restarts without a control plane
//!       containers/<uid>/<container>/<attempt>/          state of a run, the runtime's
//!       logs/<namespace>_<pod>_<uid>/<container>/<attempt>.log
//!       work/<uid>/<container>/                          working directory of a container that names none
//! ```
//! The layout of the logs is Kubernetes' under `/var/log/pods`. Everything of a pod goes when the pod has gone.
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The paths under the agent's directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The agent holds a shared lock on it for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("agent.lock")
    }

    /// State of all containers; see `runtime::process::kill_node_processes`.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub fn pod_containers(&self, uid: &str) -> PathBuf {
        self.containers().join(uid)
    }

    pub fn attempt(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod_containers(uid).join(container).join(attempt.to_string())
    }

    pub fn pod_logs(&self, namespace: &str, pod: &str, uid: &str) -> PathBuf {
        self.root.join("logs").join(format!("{namespace}_{pod}_{uid}"))
    }

    pub fn pod_work(&self, uid: &str) -> PathBuf {
        self.root.join("work").join(uid)
    }

    /// The attempts of a container of which state is left, ascending.
    pub fn attempts(&self, uid: &str, container: &str) -> Vec<u32> {
        let mut found: Vec<u32> = std::fs::read_dir(self.pod_containers(uid).join(container))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        found.sort_unstable();
        found
    }

    fn assignment(&self, uid: &str) -> PathBuf {
        self.pods().join(format!("{uid}.json"))
    }

    fn status(&self, uid: &str) -> PathBuf {
        self.pods().join(format!("{uid}.status.json"))
    }

    pub fn read_status(&self, uid: &str) -> Option<PodStatus> {
        serde_json::from_slice(&std::fs::read(self.status(uid)).ok()?).ok()
    }

    /// Kept for the agent's next start; not synced, since after a power loss no container is left to describe.
    pub fn write_status(&self, uid: &str, status: &PodStatus) {
        let path = self.status(uid);
        let written =
            serde_json::to_vec(status).map_err(io::Error::from).and_then(|bytes| replace(&path, &bytes, false));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot keep the status of a pod on disk");
        }
    }

    /// Removes everything of a pod but its assignment.
    pub fn remove_pod(&self, namespace: &str, pod: &str, uid: &str) {
        for dir in [self.pod_containers(uid), self.pod_logs(namespace, pod, uid), self.pod_work(uid)] {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory of a deleted pod");
                }
                _ => {}
            }
        }
        let _ = std::fs::remove_file(self.status(uid));
    }
}

/// The pod must stop here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    pub grace_seconds: u64,
    /// It is none of ours any more: nobody waits for our report.
    pub removed: bool,
    /// It was stopped for want of a lease, and begins anew if it is still ours when the lease is back.
    #[serde(default)]
    pub fenced: bool,
}

/// A pod that this node must run, or must stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub pod: Arc<Pod>,
    /// The address that it was given; `None` for pods of the host's network.
    pub ip: Option<IpAddr>,
    #[serde(with = "crate::runtime::rfc3339")]
    pub accepted_at: Timestamp,
    pub stop: Option<StopOrder>,
}

impl Assignment {
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// The id of the pod's actor.
    pub fn key(&self) -> String {
        format!("{}_{}", self.namespace(), self.name())
    }
}

/// Whether names from outside can be parts of paths.
pub fn is_path_safe(pod: &Pod) -> bool {
    let safe = |name: Option<&str>| {
        name.is_some_and(|name| {
            !name.is_empty()
                && name.len() <= 253
                && !name.starts_with('.')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        })
    };
    let meta = &pod.metadata;
    let containers =
        pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    safe(meta.uid.as_deref())
        && safe(meta.name.as_deref())
        && safe(meta.namespace.as_deref())
        && containers.into_iter().all(|container| safe(Some(&container.name)))
}

/// All assignments, in memory and on disk.
pub struct Assignments {
    layout: Layout,
    by_uid: Mutex<BTreeMap<String, Assignment>>,
}

impl Assignments {
    /// Reads what an earlier agent left. A file that cannot be read is reported and left alone.
    pub fn load(layout: Layout) -> io::Result<Self> {
        std::fs::create_dir_all(layout.pods())?;
        let mut by_uid = BTreeMap::new();
        for entry in std::fs::read_dir(layout.pods())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.ends_with(".json") || name.ends_with(".status.json") {
                continue;
            }
            let read = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Assignment>(&bytes)?));
            match read {
                Ok(assignment) if is_path_safe(&assignment.pod) => {
                    by_uid.insert(assignment.uid().to_owned(), assignment);
                }
                Ok(_) => tracing::warn!(path = %path.display(), "an assignment on disk has impossible names"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "an assignment on disk cannot be read"),
            }
        }
        Ok(Self { layout, by_uid: Mutex::new(by_uid) })
    }

    pub fn all(&self) -> Vec<Assignment> {
        self.by_uid.lock().values().cloned().collect()
    }

    pub fn find(&self, uid: &str) -> Option<Assignment> {
        self.by_uid.lock().get(uid).cloned()
    }

    /// Changes an assignment in memory alone, for those who look it up at once. [`Assignments::put`] must follow.
    pub fn stage(&self, assignment: Assignment) {
        self.by_uid.lock().insert(assignment.uid().to_owned(), assignment);
    }

    /// Keeps an assignment, synced to disk: it must hold after a power loss.
    pub fn put(&self, assignment: Assignment) {
        let path = self.layout.assignment(assignment.uid());
        let written =
            serde_json::to_vec(&assignment).map_err(io::Error::from).and_then(|bytes| replace(&path, &bytes, true));
        if let Err(error) = written {
            // The pod runs all the same; only after a restart without a control plane would it be missing.
            tracing::warn!(path = %path.display(), %error, "cannot keep an assignment on disk");
        }
        self.by_uid.lock().insert(assignment.uid().to_owned(), assignment);
    }

    pub fn remove(&self, uid: &str) {
        self.by_uid.lock().remove(uid);
        let _ = std::fs::remove_file(self.layout.assignment(uid));
    }
}

/// Replaces a file as a whole; readable by its owner only, since pods may hold secrets.
pub fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if sync {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, container: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default", "uid": uid},
            "spec": {"containers": [{"name": container}]}}))
        .unwrap()
    }

    #[test]
    fn assignments_survive_a_restart_and_a_broken_file_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let assignment = Assignment {
            pod: Arc::new(pod("u1", "c")),
            ip: Some("127.1.0.1".parse().unwrap()),
            accepted_at: Timestamp::from_second(1_800_000_000).unwrap(),
            stop: Some(StopOrder { grace_seconds: 3, removed: true, fenced: true }),
        };
        let kept = Assignments::load(layout.clone()).unwrap();
        kept.put(assignment.clone());
        layout.write_status("u1", &PodStatus { phase: Some("Running".into()), ..PodStatus::default() });
        std::fs::write(layout.pods().join("u2.json"), "{").unwrap();
        let again = Assignments::load(layout.clone()).unwrap();
        assert_eq!(again.all(), [assignment]);
        assert_eq!(layout.read_status("u1").unwrap().phase.as_deref(), Some("Running"));
        again.remove("u1");
        layout.remove_pod("default", "web", "u1");
        assert!(Assignments::load(layout).unwrap().all().is_empty());
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        assert!(is_path_safe(&pod("u-1", "c")));
        for wrong in [pod("../u", "c"), pod("", "c"), pod("u", "../../etc"), pod("u", ".."), pod("a/b", "c")] {
            assert!(!is_path_safe(&wrong));
        }
    }
}
