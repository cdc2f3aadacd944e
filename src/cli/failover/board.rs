//! Who runs where, as far as any server has shown: the merger of several watches.
//!
//! Pure. Servers may lag behind each other, so a change counts only if its version (the revision of the whole store)
//! is newer than what is known of that object; what is gone stays gone.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use crate::cli::text;

/// A pod, as a server showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    pub uid: String,
    pub name: String,
    /// Empty while it is not placed.
    pub node: String,
    pub ready: bool,
    pub terminating: bool,
    pub phase: String,
    pub ip: String,
    pub restarts: i64,
    /// Revision of the store.
    pub version: u64,
}

impl PodSeen {
    /// From a Pod.
    pub fn of(pod: &Value) -> Self {
        Self {
            uid: text::str_at(pod, "/metadata/uid").to_owned(),
            name: text::name(pod).to_owned(),
            node: text::str_at(pod, "/spec/nodeName").to_owned(),
            ready: condition(pod, "Ready"),
            terminating: pod["metadata"]["deletionTimestamp"].is_string(),
            phase: text::str_at(pod, "/status/phase").to_owned(),
            ip: text::str_at(pod, "/status/podIP").to_owned(),
            restarts: text::list_at(pod, "/status/containerStatuses")
                .iter()
                .map(|s| text::int_at(s, "/restartCount"))
                .sum(),
            version: version(pod),
        }
    }
}

/// Whether a condition is `True`.
pub fn condition(object: &Value, kind: &str) -> bool {
    text::list_at(object, "/status/conditions")
        .iter()
        .any(|c| text::str_at(c, "/type") == kind && text::str_at(c, "/status") == "True")
}

/// The revision that last changed an object, or at which a list was read.
pub fn version(object: &Value) -> u64 {
    text::str_at(object, "/metadata/resourceVersion").parse().unwrap_or_default()
}

/// Something a server showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// All pods at a revision.
    Pods { version: u64, pods: Vec<PodSeen> },
    /// A pod is there, or has changed.
    Pod(PodSeen),
    /// A pod is gone.
    PodGone { uid: String, version: u64 },
    /// A node's `Ready` condition.
    Node { name: String, ready: bool, version: u64 },
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A pod has been placed, for the first time that anyone saw.
    Placed { pod: String, node: String },
    /// A pod has become Ready.
    Ready { pod: String, node: String },
    /// A pod is gone.
    Gone { pod: String, node: String },
    /// A node's `Ready` condition has changed.
    Node { node: String, ready: bool },
}

/// The state of the workload.
#[derive(Clone, Debug, Default)]
pub struct Board {
    pods: BTreeMap<String, PodSeen>,
    gone: HashSet<String>,
    nodes: BTreeMap<String, (bool, u64)>,
    /// Nodes that were killed and not started since: whatever the API says of their pods, they are dead.
    killed: BTreeSet<String>,
}

impl Board {
    /// Takes in what a server showed.
    pub fn apply(&mut self, change: Change) -> Vec<News> {
        match change {
            Change::Pods { version, pods } => {
                let listed: HashSet<&str> = pods.iter().map(|p| p.uid.as_str()).collect();
                let missing: Vec<String> = self
                    .pods
                    .values()
                    .filter(|p| p.version < version && !listed.contains(p.uid.as_str()))
                    .map(|p| p.uid.clone())
                    .collect();
                let mut news: Vec<News> = missing.into_iter().filter_map(|uid| self.remove(&uid)).collect();
                news.extend(pods.into_iter().flat_map(|p| self.pod(p)));
                news
            }
            Change::Pod(pod) => self.pod(pod),
            Change::PodGone { uid, .. } => self.remove(&uid).into_iter().collect(),
            Change::Node { name, ready, version } => {
                let known = self.nodes.get(&name).copied();
                if known.is_some_and(|(_, v)| v >= version) {
                    return Vec::new();
                }
                self.nodes.insert(name.clone(), (ready, version));
                if known.map(|(r, _)| r) == Some(ready) { Vec::new() } else { vec![News::Node { node: name, ready }] }
            }
        }
    }

    fn pod(&mut self, pod: PodSeen) -> Vec<News> {
        let known = self.pods.get(&pod.uid);
        if self.gone.contains(&pod.uid) || known.is_some_and(|k| k.version >= pod.version) {
            return Vec::new();
        }
        let mut news = Vec::new();
        let (was_placed, was_ready) = known.map_or((false, false), |k| (!k.node.is_empty(), k.ready));
        if !was_placed && !pod.node.is_empty() {
            news.push(News::Placed { pod: pod.name.clone(), node: pod.node.clone() });
        }
        if !was_ready && pod.ready {
            news.push(News::Ready { pod: pod.name.clone(), node: pod.node.clone() });
        }
        self.pods.insert(pod.uid.clone(), pod);
        news
    }

    fn remove(&mut self, uid: &str) -> Option<News> {
        self.gone.insert(uid.to_owned());
        let pod = self.pods.remove(uid)?;
        Some(News::Gone { pod: pod.name, node: pod.node })
    }

    /// A node is about to be killed; gives how many pods that counted die with it.
    pub fn kill(&mut self, node: &str) -> usize {
        let lost = self.counting().filter(|p| p.node == node).count();
        self.killed.insert(node.to_owned());
        lost
    }

    /// A killed node is started again.
    pub fn restart(&mut self, node: &str) {
        self.killed.remove(node);
    }

    /// Whether a node was killed and not started since.
    pub fn is_killed(&self, node: &str) -> bool {
        self.killed.contains(node)
    }

    /// Pods that serve: Ready, not on their way out, not on a killed node.
    pub fn counting(&self) -> impl Iterator<Item = &PodSeen> {
        self.pods.values().filter(|p| p.ready && !p.terminating && !p.node.is_empty() && !self.killed.contains(&p.node))
    }

    /// How many serve.
    pub fn ready(&self) -> usize {
        self.counting().count()
    }

    /// Pods that are not on their way out, wherever they are.
    pub fn replicas(&self) -> usize {
        self.pods.values().filter(|p| !p.terminating).count()
    }

    /// Whether exactly these many pods exist, all of them serving.
    pub fn settled(&self, replicas: usize) -> bool {
        self.ready() == replicas && self.pods.len() == replicas
    }

    /// Whether the API says that the node is Ready, and it was not killed.
    pub fn node_ready(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|(ready, _)| *ready) && !self.killed.contains(node)
    }

    /// Nodes as far as known, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The pods of a node, by name; those without one for the empty name.
    pub fn on(&self, node: &str) -> Vec<&PodSeen> {
        let mut pods: Vec<&PodSeen> = self.pods.values().filter(|p| p.node == node).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }

    /// Of these nodes, the one on which most pods serve; the first of equals; none if none serves anywhere.
    pub fn busiest<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        let mut best = None;
        for node in nodes {
            let count = self.counting().filter(|p| p.node == node).count();
            if count > 0 && best.is_none_or(|(most, _)| count > most) {
                best = Some((count, node));
            }
        }
        best.map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, node: &str, ready: bool, version: u64) -> Change {
        Change::Pod(PodSeen {
            uid: uid.into(),
            name: uid.into(),
            node: node.into(),
            ready,
            version,
            ..PodSeen::default()
        })
    }

    #[test]
    fn a_server_that_lags_behind_changes_nothing() {
        let mut board = Board::default();
        assert_eq!(board.apply(pod("a", "n1", true, 5)).len(), 2);
        assert!(board.apply(pod("a", "n1", false, 4)).is_empty());
        assert!(board.apply(pod("a", "n1", true, 5)).is_empty(), "told once, by whoever is first");
        assert_eq!(board.ready(), 1);
        let lagging = Change::Pods { version: 3, pods: vec![] };
        assert!(board.apply(lagging).is_empty(), "an old list without the pod does not delete it");
        assert_eq!(board.ready(), 1);
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let mut board = Board::default();
        board.apply(pod("a", "n1", true, 5));
        assert_eq!(board.apply(Change::PodGone { uid: "a".into(), version: 6 }).len(), 1);
        assert!(board.apply(pod("a", "n1", true, 5)).is_empty());
        assert_eq!(board.replicas(), 0);
        board.apply(pod("b", "n1", true, 7));
        let list = Change::Pods { version: 9, pods: vec![] };
        assert_eq!(board.apply(list), [News::Gone { pod: "b".into(), node: "n1".into() }]);
    }

    #[test]
    fn pods_of_a_killed_node_do_not_count_whatever_the_api_says() {
        let mut board = Board::default();
        board.apply(pod("a", "n1", true, 5));
        board.apply(pod("b", "n2", true, 6));
        assert_eq!(board.kill("n1"), 1);
        assert_eq!((board.ready(), board.replicas()), (1, 2));
        board.apply(pod("c", "n2", false, 7));
        assert_eq!(board.ready(), 1);
        board.apply(pod("c", "n2", true, 8));
        assert_eq!(board.ready(), 2);
        assert!(!board.settled(2), "the dead one is not yet gone");
        board.apply(Change::PodGone { uid: "a".into(), version: 9 });
        board.restart("n1");
        assert!(board.settled(2));
    }

    #[test]
    fn nodes_are_ready_as_the_newest_version_says() {
        let mut board = Board::default();
        let node = |ready, version| Change::Node { name: "n1".into(), ready, version };
        assert_eq!(board.apply(node(true, 2)).len(), 1);
        assert!(board.apply(node(false, 1)).is_empty());
        assert!(board.apply(node(true, 3)).is_empty(), "nothing new");
        assert!(board.node_ready("n1"));
        board.kill("n1");
        assert!(!board.node_ready("n1"));
    }

    #[test]
    fn the_busiest_node_is_the_one_with_most_that_serve() {
        let mut board = Board::default();
        for (uid, node, ready) in [("a", "n1", true), ("b", "n2", true), ("c", "n2", true), ("d", "n1", false)] {
            board.apply(pod(uid, node, ready, 1));
        }
        assert_eq!(board.busiest(["n1", "n2"]), Some("n2"));
        assert_eq!(board.busiest(["n1"]), Some("n1"));
        assert_eq!(board.busiest(["n3"]), None);
    }

    #[test]
    fn a_pod_is_read_as_the_api_writes_it() {
        let pod = PodSeen::of(&serde_json::json!({
            "metadata": {"uid": "u", "name": "p", "resourceVersion": "42", "deletionTimestamp": "2026-11-23T02:48:39Z"},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIP": "127.0.0.2", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"restartCount": 2}, {"restartCount": 1}]}}));
        assert_eq!((pod.version, pod.ready, pod.terminating, pod.restarts), (42, true, true, 3));
    }
}
