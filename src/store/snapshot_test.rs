use openraft::LogId;

use super::*;
use crate::store::types::CommittedLeaderId;

fn meta(index: u64) -> SnapshotMeta {
    let last_log_id = Some(LogId::new(CommittedLeaderId { term: 1, node_id: 1 }, index));
    SnapshotMeta { last_log_id, last_membership: Default::default() }
}

fn image(keys: u64) -> Image {
    let kv = |n| KeyValue {
        key: format!("k{n:05}").into(),
        value: vec![7; 100].into(),
        create_revision: n,
        mod_revision: n,
        version: 1,
    };
    Image { revision: keys, kvs: (0..keys).map(kv).collect(), ..Image::default() }
}

#[test]
fn what_is_written_is_read_again_and_only_the_newest_two_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = SnapshotDir::open(dir.path(), StoreFaults::default()).unwrap();
    for index in 1..=4 {
        snapshots.write(meta(index), &image(index)).unwrap();
    }
    let opened = SnapshotDir::open(dir.path(), StoreFaults::default()).unwrap();
    let current = opened.current().unwrap();
    assert_eq!(read(&current.path).unwrap(), (meta(4), image(4)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), SNAPSHOTS_KEPT);
}

#[test]
fn a_damaged_or_torn_snapshot_falls_back_to_the_one_before() {
    for damage in [
        |bytes: &mut Vec<u8>| bytes[500] ^= 1,
        |bytes: &mut Vec<u8>| bytes.truncate(900),
        |bytes: &mut Vec<u8>| bytes.clear(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path(), StoreFaults::default()).unwrap();
        snapshots.write(meta(1), &image(10)).unwrap();
        let newest = snapshots.write(meta(2), &image(20)).unwrap();
        let mut bytes = fs::read(&newest.path).unwrap();
        damage(&mut bytes);
        fs::write(&newest.path, bytes).unwrap();
        fs::write(snapshots.temporary(), "left over").unwrap();

        let opened = SnapshotDir::open(dir.path(), StoreFaults::default()).unwrap();
        assert_eq!(opened.current().map(|file| file.meta), Some(meta(1)));
        assert!(fs::read_dir(dir.path()).unwrap().all(|file| file.unwrap().path().extension().unwrap() != "tmp"));
    }
}

#[test]
fn a_full_disk_leaves_the_old_snapshot_and_no_half_file() {
    let dir = tempfile::tempdir().unwrap();
    let faults = StoreFaults::default();
    let snapshots = SnapshotDir::open(dir.path(), faults.clone()).unwrap();
    snapshots.write(meta(1), &image(10)).unwrap();
    faults.disk_full(true);
    assert_eq!(snapshots.write(meta(2), &image(20)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(snapshots.current().map(|file| file.meta), Some(meta(1)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
