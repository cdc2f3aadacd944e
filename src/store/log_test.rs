use openraft::storage::RaftLogStorageExt;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use tokio::sync::watch;

use super::*;
use crate::store::HistoryLimits;
use crate::store::machine::Machine;
use crate::store::snapshot::SnapshotDir;
use crate::store::state::{Command, State};
use crate::store::types::CommittedLeaderId;
use crate::store::watch::Replica;

struct Build;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Build {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = LogStore::open(&dir.path().join("log.redb"), StoreFaults::default()).unwrap();
        let machine = Machine {
            replica: Replica::new(State::new(HistoryLimits::default())),
            snapshots: SnapshotDir::open(&dir.path().join("snapshots"), StoreFaults::default()).unwrap(),
            log: log.clone(),
            last_applied: None,
            membership: Default::default(),
            applied: watch::channel(0).0,
        };
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn the_log_and_the_machine_pass_the_suite_of_openraft() {
    Suite::test_all(Build).await.unwrap();
}

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId { term: 1, node_id: 1 }, index)
}

fn entry(index: u64, bytes: usize) -> Entry {
    let txn = crate::store::Txn::put("k", vec![index as u8; bytes]);
    let request = crate::store::state::RequestId { session: 1, seq: index, oldest_open: index };
    Entry { log_id: id(index), payload: EntryPayload::Normal(Command::Txns { request, txns: [txn].into() }) }
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_kill_at_any_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let open = || LogStore::open(&path, StoreFaults::default()).unwrap();

    let mut log = open();
    log.blocking_append((1..=10).map(|index| entry(index, 10))).await.unwrap();
    log.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
    log.kill().await;
    assert!(log.blocking_append([entry(11, 10)]).await.is_err(), "a dead log takes nothing");

    let mut log = open();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(10)));
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(3, 2)));
    log.truncate_after(Some(id(7))).await.unwrap();
    log.kill().await;

    let mut log = open();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(7)));
    log.blocking_append([entry(8, 20)]).await.unwrap();
    log.save_committed(Some(id(8))).await.unwrap();
    log.purge(id(3)).await.unwrap();
    log.kill().await;

    let mut log = open();
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(3)), Some(id(8))));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(8)), "written along with the purge");
    let entries = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (4..=7).map(|index| entry(index, 10)).chain([entry(8, 20)]).collect::<Vec<_>>());
    log.blocking_append([entry(9, 10)]).await.unwrap();
    log.save_committed(Some(id(9))).await.unwrap();
    log.close().await;

    let mut log = open();
    assert_eq!(log.read_committed().await.unwrap(), Some(id(9)), "an orderly end writes what is pending");
    log.save_committed(Some(id(10))).await.unwrap();
    log.close().await;

    let mut log = open();
    assert_eq!(log.read_committed().await.unwrap(), Some(id(9)), "never behind the end of the log");
    log.truncate_after(None).await.unwrap();
    log.close().await;

    let mut log = open();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(3)), "what was purged stays the end");
    log.close().await;
}

#[tokio::test]
async fn old_entries_leave_memory_and_are_read_from_disk_in_bounded_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(&dir.path().join("log.redb"), StoreFaults::default()).unwrap();
    let count = 40;
    for index in 1..=count {
        log.blocking_append([entry(index, 1024 * 1024)]).await.unwrap();
    }
    assert!(log.shared.tail.lock().bytes <= TAIL_BYTES_MAX + 2 * 1024 * 1024);
    let piece = log.limited_get_log_entries(1, count + 1).await.unwrap();
    assert_eq!(piece.len(), 2, "what fits into {APPEND_BYTES_MAX} bytes");
    let all: Vec<Entry> = log.entries_stream(1..=count).await.try_collect().await.unwrap();
    assert_eq!(all, (1..=count).map(|index| entry(index, 1024 * 1024)).collect::<Vec<_>>());
    log.close().await;
}

#[tokio::test]
async fn a_full_disk_makes_the_log_read_only_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.redb");
    let faults = StoreFaults::default();
    let mut log = LogStore::open(&path, faults.clone()).unwrap();
    log.blocking_append([entry(1, 10)]).await.unwrap();
    faults.disk_full(true);
    assert!(log.blocking_append([entry(2, 10)]).await.is_err());
    faults.disk_full(false);
    assert!(log.save_vote(&Vote::new(9, 9)).await.is_err(), "nothing is written behind a failed write");
    assert!(log.failure().unwrap().disk_full);
    log.close().await;

    let mut log = LogStore::open(&path, faults).unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(1)));
    log.close().await;
}
