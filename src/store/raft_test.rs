//! One and three servers over a network in memory: what was acknowledged is never lost and never applied twice.

use std::collections::HashMap;
use std::path::Path;

use crate::store::{MemoryNetwork, StoreFaults, TXN_BYTES_MAX, WatchEventKind};

use super::*;

/// Longest wait for anything; only a failing test waits so long.
const SOON: Duration = Duration::from_secs(60);

struct Servers {
    dir: tempfile::TempDir,
    network: MemoryNetwork,
    stores: HashMap<ServerId, ReplicatedStore>,
    faults: HashMap<ServerId, StoreFaults>,
    snapshot_entries: u64,
}

impl Servers {
    /// A cluster of the servers 1 to `count`, 1 leading.
    async fn start(count: u64) -> Servers {
        Servers::with_snapshots(count, 10_000).await
    }

    async fn with_snapshots(count: u64, snapshot_entries: u64) -> Servers {
        let mut servers = Servers {
            dir: tempfile::tempdir().unwrap(),
            network: MemoryNetwork::new(),
            stores: HashMap::new(),
            faults: HashMap::new(),
            snapshot_entries,
        };
        servers.restart(1).await;
        servers[1].bootstrap().await.unwrap();
        servers[1].wait_for_leader(SOON).await.unwrap();
        for id in 2..=count {
            servers.restart(id).await;
            servers[1].add_server(id, &format!("s{id}"), "memory").await.unwrap();
        }
        servers
    }

    fn config(&self, id: ServerId) -> StoreConfig {
        let dir = self.dir.path().join(id.to_string());
        let mut config = StoreConfig::new("test", id, format!("s{id}"), "memory", dir, self.network.transport(id));
        config.snapshot_entries = self.snapshot_entries;
        config.faults = self.faults.get(&id).cloned().unwrap_or_default();
        config.request_deadline = Duration::from_secs(8);
        // Slow enough for a loaded machine, quick enough for a test.
        config.timings = start::ElectionTimings { heartbeat_ms: 50, min_ms: 200, max_ms: 400 };
        config
    }

    async fn restart(&mut self, id: ServerId) {
        self.faults.insert(id, StoreFaults::default());
        let store = ReplicatedStore::start(self.config(id)).await.unwrap();
        self.stores.insert(id, store);
    }

    async fn abort(&mut self, id: ServerId) {
        self.stores.remove(&id).unwrap().abort().await;
    }

    /// The one that leads and accepts writes, among those that run and are not `except`.
    async fn leader(&self, except: Option<ServerId>) -> ServerId {
        eventually(|| {
            let leads = |(id, store): (&ServerId, &ReplicatedStore)| {
                (Some(*id) != except && store.leadership().borrow().is_self).then_some(*id)
            };
            self.stores.iter().find_map(leads)
        })
        .await
    }

    async fn end(self) {
        for store in self.stores.values() {
            store.shutdown().await;
        }
    }
}

impl std::ops::Index<ServerId> for Servers {
    type Output = ReplicatedStore;

    fn index(&self, id: ServerId) -> &ReplicatedStore {
        &self.stores[&id]
    }
}

async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not happen in {SOON:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn keys(store: &ReplicatedStore, prefix: &str) -> Vec<KeyValue> {
    store.range(RangeRequest::prefix(prefix), Consistency::Linearizable).await.unwrap().kvs
}

/// Creates `prefix/0`, `prefix/1`, .. one after the other on the stores in turn, until told to end; returns how many
/// were acknowledged. A write whose outcome is unknown is not retried and leaves a gap that is allowed.
async fn write_loop(stores: Vec<ReplicatedStore>, prefix: &str, end: watch::Receiver<bool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if *end.borrow() {
            break;
        }
        let key = format!("{prefix}/{n}");
        match stores[n % stores.len()].txn(Txn::create(key.as_str(), "v")).await {
            Ok(done) => {
                assert!(done.succeeded, "{key} was there before it was created: applied twice");
                acknowledged.push(key);
            }
            Err(StoreError::Unknown { .. } | StoreError::Unavailable { .. } | StoreError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_the_status_never_stops_the_server() {
    const QUESTIONS: usize = 20_000;
    let servers = Servers::start(1).await;
    let asked = servers[1].clone();
    // On a thread of its own: one that waits for ever must not keep the test from ending.
    let (done, answered) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        (0..QUESTIONS).for_each(|_| drop(asked.status()));
        let _ = done.send(());
    });
    let (end, ended) = watch::channel(false);
    let writing = tokio::spawn(write_loop(vec![servers[1].clone()], "w", ended));
    tokio::time::timeout(SOON, answered).await.expect("it stands still").expect("answered");
    end.send_replace(true);
    assert!(!tokio::time::timeout(SOON, writing).await.expect("it stands still").expect("written").is_empty());
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_keeps_all_acknowledged_writes_through_a_crash() {
    let mut servers = Servers::start(1).await;
    let created = servers[1].txn(Txn::create("a", "1")).await.unwrap();
    assert!(created.succeeded);
    let again = servers[1].txn(Txn::create("a", "2")).await.unwrap();
    assert_eq!((again.succeeded, again.first().unwrap().value.clone()), (false, "1".into()));
    let replaced = servers[1].txn(Txn::replace("a", "2", created.revision)).await.unwrap();
    assert!(replaced.succeeded && !servers[1].txn(Txn::replace("a", "3", created.revision)).await.unwrap().succeeded);
    let many = (0..10_000).map(|n| Txn::put(format!("many/{n:05}"), "v")).collect();
    let done = servers[1].txn_many(many).await.unwrap();
    assert_eq!(done.last().unwrap().revision, done[0].revision + 9_999);

    let mut end_of_watch = servers[1].watch(String::new(), String::new(), 0).unwrap();
    servers.abort(1).await;
    assert_eq!(end_of_watch.next().await, Some(Err(crate::store::WatchError::Closed)));
    servers.restart(1).await;
    servers[1].wait_for_leader(SOON).await.unwrap();
    assert_eq!(keys(&servers[1], "many/").await.len(), 10_000);
    let (a, revision) = servers[1].get("a", Consistency::Linearizable).await.unwrap();
    assert_eq!((a.unwrap().value, revision), ("2".into(), done.last().unwrap().revision));
    let status = servers[1].status();
    assert_eq!((status.role, status.keys, status.read_only), (Role::Leader, 10_001, None));
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_has_no_gap_and_no_duplicate_under_concurrent_writes() {
    let servers = Servers::start(1).await;
    let first = servers[1].txn(Txn::put("w/first", "v")).await.unwrap().revision;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let store = servers[1].clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    store.txn(Txn::put(format!("w/{writer}"), n.to_string())).await.unwrap();
                    store.txn(Txn::put(format!("x/{writer}"), n.to_string())).await.unwrap();
                }
            })
        })
        .collect();
    for late in [false, true] {
        if late {
            // From a revision that is long past, all of it is still there.
            while servers[1].revision() < first + 800 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let mut watch = servers[1].watch("w/".into(), "w0".into(), first).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 401 {
            let batch = watch.next().await.unwrap().unwrap();
            assert!(batch.events.iter().all(|event| event.kind == WatchEventKind::Put));
            seen.extend(batch.events.into_iter().map(|event| (event.kv.mod_revision, event.kv.key)));
        }
        assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "in order, each once");
    }
    for writer in writers {
        writer.await.unwrap();
    }
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_under_writes_and_nothing_acknowledged_is_lost_or_done_twice() {
    let mut servers = Servers::start(3).await;
    let (end, ended) = watch::channel(false);
    let mut loops = Vec::new();
    let mut prefixes = Vec::new();
    for round in 0..2 {
        let leader = servers.leader(None).await;
        let survivors: Vec<_> =
            servers.stores.iter().filter(|(id, _)| **id != leader).map(|(_, s)| s.clone()).collect();
        for writer in 0..4 {
            let (stores, ended) = (survivors.clone(), ended.clone());
            let prefix = format!("r{round}w{writer}");
            prefixes.push(prefix.clone());
            loops.push(tokio::spawn(async move { write_loop(stores, &prefix, ended).await }));
        }
        let before = servers[leader].revision();
        eventually(|| (servers[leader].revision() > before + 50).then_some(())).await;
        servers.abort(leader).await;
        let next = servers.leader(None).await;
        let before = servers[next].revision();
        eventually(|| (servers[next].revision() > before + 50).then_some(())).await;
        servers.restart(leader).await;
        if round == 0 {
            // The loops of this round hold handles of servers that the next round may kill.
            end.send_replace(true);
            for writes in std::mem::take(&mut loops) {
                check_acknowledged(&servers, writes.await.unwrap()).await;
            }
            end.send_replace(false);
        }
    }
    end.send_replace(true);
    for writes in loops {
        check_acknowledged(&servers, writes.await.unwrap()).await;
    }
    converged(&servers).await;
    servers.end().await;
}

async fn check_acknowledged(servers: &Servers, acknowledged: Vec<String>) {
    assert!(!acknowledged.is_empty());
    for store in servers.stores.values() {
        let found: HashMap<_, _> =
            keys(store, "").await.into_iter().map(|kv| (kv.key.to_string(), kv.version)).collect();
        for key in &acknowledged {
            assert_eq!(found.get(key), Some(&1), "{key}");
        }
    }
}

/// All servers hold the same.
async fn converged(servers: &Servers) {
    let stores: Vec<_> = servers.stores.values().collect();
    stores[0].txn(Txn::put("converged", "v")).await.unwrap();
    let mut images = Vec::new();
    for store in stores {
        store.inner.linearize().await.unwrap();
        images.push(store.inner.replica.state().image());
    }
    assert!(images.windows(2).all(|pair| pair[0].kvs == pair[1].kvs && pair[0].revision == pair[1].revision));
}

/// Raft writes its metrics while the status reads them: neither may wait for the other for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_can_be_asked_at_any_time() {
    let servers = Servers::start(1).await;
    let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let askers: Vec<_> = (0..2)
        .map(|_| {
            let (store, end) = (servers[1].clone(), end.clone());
            std::thread::spawn(move || {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(store.status().server_id, 1);
                }
            })
        })
        .collect();
    for i in 0..200 {
        let write = servers[1].txn(Txn::put(format!("k{i}"), "v"));
        tokio::time::timeout(SOON, write).await.expect("Raft goes on").expect("written");
    }
    end.store(true, std::sync::atomic::Ordering::Relaxed);
    askers.into_iter().for_each(|asker| asker.join().expect("no panic"));
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_returns_catches_up_by_log_and_by_snapshot() {
    let mut servers = Servers::with_snapshots(3, 50).await;
    for (round, writes) in [10, 400].into_iter().enumerate() {
        servers.abort(3).await;
        for n in 0..writes {
            servers[1].txn(Txn::put(format!("k{round}/{n}"), "v")).await.unwrap();
        }
        let purged = log_index(servers[1].inner.log.purged()).unwrap_or(0);
        assert_eq!(purged > 100, round == 1, "the second time the log no longer reaches back: {purged}");
        servers.restart(3).await;
        let revision = servers[1].revision();
        eventually(|| (servers[3].revision() == revision).then_some(())).await;
        assert_eq!(keys(&servers[3], &format!("k{round}/")).await.len(), writes);
    }
    assert!(servers[3].status().snapshot_index > 100);
    converged(&servers).await;

    // And from its own snapshot and log after a crash.
    servers.abort(3).await;
    servers.restart(3).await;
    converged(&servers).await;
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_stop_and_start_again_with_everything() {
    let mut servers = Servers::with_snapshots(3, 50).await;
    for abruptly in [false, true] {
        for n in 0..120 {
            servers[2].txn(Txn::put(format!("{abruptly}/{n}"), "v")).await.unwrap();
        }
        let revision = servers[2].revision();
        for id in 1..=3 {
            match abruptly {
                true => servers.abort(id).await,
                false => servers.stores.remove(&id).unwrap().shutdown().await,
            }
        }
        for id in 1..=3 {
            servers.restart(id).await;
        }
        servers.leader(None).await;
        assert_eq!(keys(&servers[3], &format!("{abruptly}/")).await.len(), 120, "abruptly: {abruptly}");
        assert_eq!(servers[3].revision(), revision);
    }
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_read_after_a_power_cut_sees_the_last_write() {
    for count in [1, 3] {
        let mut servers = Servers::start(count).await;
        for n in 0..3 {
            let leader = servers.leader(None).await;
            servers[leader].txn(Txn::put("last", n.to_string())).await.unwrap();
            for id in 1..=count {
                servers.abort(id).await;
            }
            // The old leader is the first to be back.
            servers.restart(leader).await;
            for id in (1..=count).filter(|id| *id != leader) {
                servers.restart(id).await;
            }
            let (last, _) = servers[leader].get("last", Consistency::Linearizable).await.unwrap();
            assert_eq!(last.unwrap().value, n.to_string());
        }
        servers.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_serves_neither_linearizable_reads_nor_writes() {
    let servers = Servers::start(3).await;
    let old = servers.leader(None).await;
    servers[old].txn(Txn::put("a", "old")).await.unwrap();
    let mut leadership = servers[old].leadership();
    servers.network.cut(old, (1..=3).filter(|id| *id != old));
    // The write may reach its log, never a majority: it must not be acknowledged.
    let cut_off = servers[old].clone();
    let write = tokio::spawn(async move { cut_off.txn(Txn::put("a", "stale")).await });
    let cut_off = servers[old].clone();
    let read = tokio::spawn(async move { cut_off.get("a", Consistency::Linearizable).await });

    let new = servers.leader(Some(old)).await;
    tokio::time::timeout(SOON, leadership.wait_for(|now| !now.is_self)).await.unwrap().unwrap();
    servers[new].txn(Txn::put("a", "new")).await.unwrap();
    assert!(matches!(read.await.unwrap(), Err(StoreError::Unavailable { .. })));
    let stale = write.await.unwrap();
    assert!(matches!(stale, Err(StoreError::Unknown { .. } | StoreError::Unavailable { .. })), "{stale:?}");
    let (local, _) = servers[old].get("a", Consistency::Local).await.unwrap();
    assert_eq!(local.unwrap().value, "old");

    servers.network.heal();
    let (a, _) = servers[old].get("a", Consistency::Linearizable).await.unwrap();
    assert_eq!(a.unwrap().value, "new");
    converged(&servers).await;
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request_and_servers_are_removed() {
    let servers = Servers::start(3).await;
    let leader = servers.leader(None).await;
    let to = leader % 3 + 1;
    // Asked of any server.
    let mut moved = servers[to].leadership();
    servers[to % 3 + 1].transfer_leadership(to).await.unwrap();
    tokio::time::timeout(SOON, moved.wait_for(|now| now.is_self)).await.expect("in time").expect("it runs");
    assert!(matches!(servers[to].transfer_leadership(9).await, Err(StoreError::Invalid { .. })));
    servers[leader].txn(Txn::put("a", "1")).await.unwrap();

    servers[to].remove_server(leader).await.unwrap();
    assert!(servers[to].status().members.iter().all(|member| member.id != leader && member.voter));
    servers[to].txn(Txn::put("a", "2")).await.unwrap();
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_leader_refuses_writes_and_loses_nothing() {
    let mut servers = Servers::start(3).await;
    let full = servers.leader(None).await;
    servers[full].txn(Txn::put("a", "1")).await.unwrap();

    // Nearly full: refused before it is tried, and taken again once there is room.
    servers.faults[&full].low_disk(true);
    eventually(|| servers[full].status().read_only).await;
    for id in 1..=3 {
        let refused = servers[id].txn(Txn::put("a", "2")).await;
        assert!(matches!(refused, Err(StoreError::DiskFull { server, .. }) if server == full), "{refused:?}");
    }
    servers.faults[&full].low_disk(false);
    eventually(|| servers[full].status().read_only.is_none().then_some(())).await;

    // Full in the middle of writes: this server stops, another takes over.
    let (end, ended) = watch::channel(false);
    let others: Vec<_> = (1..=3).filter(|id| *id != full).map(|id| servers[id].clone()).collect();
    let writes = tokio::spawn(async move { write_loop(others, "full", ended).await });
    let before = servers[full].revision();
    eventually(|| (servers[full].revision() > before + 20).then_some(())).await;
    servers.faults[&full].disk_full(true);
    let next = servers.leader(Some(full)).await;
    let before = servers[next].revision();
    eventually(|| (servers[next].revision() > before + 20).then_some(())).await;
    let refused = servers[full].txn(Txn::put("a", "3")).await;
    assert!(matches!(refused, Err(StoreError::DiskFull { .. })), "{refused:?}");
    let status = servers[full].status();
    assert_eq!(status.role, Role::Stopped);
    assert!(status.read_only.unwrap().contains("disk is full") || servers[full].inner.log.failure().is_some());
    end.send_replace(true);
    let acknowledged = writes.await.unwrap();

    servers.stores.remove(&full).unwrap().shutdown().await;
    servers.restart(full).await;
    check_acknowledged(&servers, acknowledged).await;
    converged(&servers).await;
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_cluster_server_or_version_is_refused_in_one_line() {
    let servers = Servers::start(1).await;
    let refused = async |config: StoreConfig| {
        let error = ReplicatedStore::start(config).await.err().unwrap();
        let line = error.to_string();
        assert!(!line.contains('\n') && line.contains(servers.dir.path().to_str().unwrap()), "{line}");
        error
    };
    assert!(matches!(refused(servers.config(1)).await, StartError::InUse { .. }));
    let other = StoreConfig { cluster: "other".to_owned(), ..servers.config(1) };
    assert!(matches!(refused(other).await, StartError::OtherCluster { .. }));
    let other = StoreConfig { server_id: 2, ..servers.config(1) };
    assert!(matches!(refused(other).await, StartError::OtherServer { .. }));

    let dir = |name: &str| servers.dir.path().join(name);
    let prepare = |dir: &Path, name: &str, text: &str| {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    };
    prepare(&dir("newer"), "identity.json", r#"{"format": 2, "cluster": "test", "server_id": 1, "more": true}"#);
    let newer = StoreConfig { dir: dir("newer"), ..servers.config(1) };
    assert!(matches!(refused(newer).await, StartError::NewerFormat { found: 2, .. }));
    prepare(&dir("torn"), "identity.json", "{");
    let torn = StoreConfig { dir: dir("torn"), ..servers.config(1) };
    assert!(matches!(refused(torn).await, StartError::Damaged { .. }));
    prepare(&dir("garbage"), "log.redb", &"no database".repeat(1_000));
    let garbage = StoreConfig { dir: dir("garbage"), ..servers.config(1) };
    assert!(matches!(refused(garbage).await, StartError::Damaged { .. }));
    servers.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_newest_snapshot_is_survived_and_no_snapshot_at_all_is_said() {
    let mut servers = Servers::with_snapshots(1, 50).await;
    for n in 0..300 {
        servers[1].txn(Txn::put(format!("k/{n}"), "v")).await.unwrap();
    }
    let inner = servers[1].inner.clone();
    eventually(|| (log_index(inner.log.purged()) > Some(100)).then_some(())).await;
    servers.abort(1).await;
    let damage = |path: &Path| std::fs::write(path, "torn").unwrap();
    damage(&inner.snapshots.current().unwrap().path);
    servers.restart(1).await;
    servers[1].wait_for_leader(SOON).await.unwrap();
    assert_eq!(keys(&servers[1], "k/").await.len(), 300);

    servers.abort(1).await;
    for file in std::fs::read_dir(servers.dir.path().join("1/snapshots")).unwrap() {
        damage(&file.unwrap().path());
    }
    let error = ReplicatedStore::start(servers.config(1)).await.err().unwrap();
    assert!(matches!(error, StartError::Damaged { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_senseless_is_refused_before_it_is_proposed() {
    let servers = Servers::start(1).await;
    let refused = async |txn: Txn| servers[1].txn(txn).await.unwrap_err();
    let large = vec![0; TXN_BYTES_MAX];
    assert!(matches!(refused(Txn::put("a", large)).await, StoreError::TooLarge { .. }));
    assert!(matches!(refused(Txn::put("k".repeat(2_000), "v")).await, StoreError::TooLarge { .. }));
    assert!(matches!(refused(Txn::put("", "v")).await, StoreError::Invalid { .. }));
    let twice = Txn { success: [Txn::put("a", "1").success, Txn::delete("a").success].concat(), ..Txn::default() };
    assert!(matches!(refused(twice).await, StoreError::Invalid { .. }));
    assert_eq!(servers[1].revision(), 0);
    let garbage = Service { inner: Arc::downgrade(&servers[1].inner) };
    assert!(network::RaftService::call(&garbage, vec![0xff; 1_000].into()).await.is_err());
    assert!(network::RaftService::snapshot(&garbage, vec![1].into(), Box::new(tokio::io::empty())).await.is_err());
    servers.end().await;
}
