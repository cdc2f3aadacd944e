use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::watch::Replica;
use crate::store::{Compare, WatchError, prefix_end};

fn request(seq: u64, oldest_open: u64) -> RequestId {
    RequestId { session: 7, seq, oldest_open }
}

fn commands() -> impl FnMut(Vec<Txn>) -> Command {
    let mut seq = 0;
    move |txns| {
        seq += 1;
        Command::Txns { request: request(seq, seq), txns: txns.into() }
    }
}

fn results(response: Response) -> Vec<TxnResult> {
    let Response::Txns(results) = response else { panic!("not applied: {response:?}") };
    results
}

fn values(state: &State, at: Revision) -> Vec<(String, Bytes)> {
    let found = state.range(&RangeRequest::prefix("").at(at)).unwrap();
    found.kvs.into_iter().map(|kv| (kv.key.to_string(), kv.value)).collect()
}

#[test]
fn a_revision_is_taken_only_by_a_change_and_shared_by_all_of_it() {
    let mut state = State::new(HistoryLimits::default());
    let mut command = commands();
    let two = Txn { success: vec![put("a", "1"), put("b", "1")], ..Txn::default() };
    let done = results(state.apply(&command(vec![two, Txn::delete("absent"), Txn::put("a", "1")])));
    assert_eq!(done.iter().map(|done| done.revision).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(state.get("b").map(|kv| kv.mod_revision), Some(1));
    let a = state.get("a").cloned().unwrap();
    assert_eq!((a.create_revision, a.mod_revision, a.version), (1, 2, 2));
}

#[test]
fn a_request_that_comes_again_is_answered_and_not_applied() {
    let mut state = State::new(HistoryLimits::default());
    let again = Command::Txns { request: request(1, 1), txns: [Txn::put("a", "1")].into() };
    let first = state.apply(&again);
    assert_eq!(state.apply(&again), first);
    assert_eq!((state.revision(), state.get("a").map(|kv| kv.version)), (1, Some(1)));

    // Also on a server that knows it only from a snapshot.
    let mut copy = State::from_image(state.image(), HistoryLimits::default());
    assert_eq!(copy.apply(&again), first);
    assert_eq!(copy.revision(), 1);

    // Once the client has its answer it is forgotten, and a late copy of the request is refused, not applied.
    state.apply(&Command::Txns { request: request(2, 2), txns: [Txn::put("b", "1")].into() });
    assert_eq!(state.apply(&again), Response::Expired);
    let given_up = Command::Txns { request: request(3, 5), txns: [Txn::put("c", "1")].into() };
    state.apply(&Command::Txns { request: request(6, 5), txns: [Txn::put("d", "1")].into() });
    assert_eq!(state.apply(&given_up), Response::Expired);
    assert!(state.get("c").is_none());
}

#[test]
fn the_answers_kept_for_a_client_are_bounded() {
    let mut state = State::new(HistoryLimits::default());
    let large = Bytes::from(vec![0; SESSION_BYTES_MAX / 4]);
    for seq in 1..=20 {
        state.apply(&Command::Txns { request: request(seq, 1), txns: [Txn::put("a", large.clone())].into() });
    }
    let image = state.image();
    let session = image.sessions.values().next().unwrap();
    assert!(session.bytes <= SESSION_BYTES_MAX && session.answers.len() < 4, "{} answers", session.answers.len());
    assert_eq!(
        state.apply(&Command::Txns { request: request(1, 1), txns: [Txn::put("a", "again")].into() }),
        Response::Expired
    );
    for session in 0..2 * SESSIONS_MAX as u128 {
        let request = RequestId { session, seq: 1, oldest_open: 1 };
        state.apply(&Command::Txns { request, txns: [Txn::put("a", "1")].into() });
    }
    assert_eq!(state.image().sessions.len(), SESSIONS_MAX);
}

#[test]
fn pages_at_one_revision_fit_together_while_keys_change() {
    let mut state = State::new(HistoryLimits::default());
    let mut command = commands();
    for n in 0..10 {
        state.apply(&command(vec![Txn::put(format!("pods/{n}"), "old")]));
    }
    let first = state.range(&RangeRequest::prefix("pods/").limit(4)).unwrap();
    assert_eq!((first.kvs.len(), first.more, first.count, first.revision), (4, true, 10, 10));
    state.apply(&command(vec![Txn::delete("pods/5"), Txn::put("pods/6", "new"), Txn::put("pods/55", "new")]));
    let last = &first.kvs[3].key;
    let rest = state.range(&RangeRequest::prefix("pods/").after(last).at(first.revision)).unwrap();
    let keys: Vec<&str> = rest.kvs.iter().map(|kv| &*kv.key).collect();
    assert_eq!(keys, ["pods/4", "pods/5", "pods/6", "pods/7", "pods/8", "pods/9"]);
    assert!(rest.kvs.iter().all(|kv| kv.value == "old"));
}

#[test]
fn a_compacted_revision_is_refused_and_a_future_one_too() {
    let mut state = State::new(HistoryLimits::default());
    let mut command = commands();
    for n in 1..=5 {
        state.apply(&command(vec![Txn::put("a", n.to_string())]));
    }
    assert_eq!(state.apply(&Command::Compact { upto: 3 }), Response::Compacted(Ok(())));
    assert_eq!(state.range(&RangeRequest::prefix("").at(2)), Err(StoreError::Compacted { wanted: 2, oldest: 3 }));
    assert_eq!(values(&state, 3), [("a".to_owned(), Bytes::from("3"))]);
    assert_eq!(state.range(&RangeRequest::prefix("").at(9)), Err(StoreError::FutureRevision { wanted: 9, current: 5 }));
}

#[test]
fn the_end_of_a_prefix_is_behind_all_that_begin_with_it() {
    assert_eq!(prefix_end("pods/"), "pods0");
    assert_eq!(prefix_end("a\u{10FFFF}"), "b");
    assert_eq!(prefix_end(""), "");
    assert_eq!(prefix_end("\u{D7FF}"), "\u{E000}");
}

#[tokio::test]
async fn a_watcher_slower_than_the_history_ends_with_lagged() {
    let limits = HistoryLimits { revisions_max: 10, ..HistoryLimits::default() };
    let replica = Replica::new(State::new(limits));
    let mut command = commands();
    let mut slow = replica.watch("pods/".into(), "pods0".into(), 0).unwrap();
    let mut other = replica.watch("nodes/".into(), "nodes0".into(), 0).unwrap();
    for n in 0..20 {
        replica.apply(&command(vec![Txn::put("pods/a", n.to_string())]));
    }
    assert_eq!(slow.next().await, Some(Err(WatchError::Lagged { wanted: 1, oldest: 10 })));
    assert_eq!(slow.next().await, None);
    // A watcher of quiet keys has missed nothing, and knows how far it is.
    assert_eq!(other.progress(), 20);
    replica.apply(&command(vec![Txn::put("nodes/a", "1")]));
    let batch = other.next().await.unwrap().unwrap();
    assert_eq!((batch.revision, batch.events.len(), batch.events[0].kv.mod_revision), (21, 1, 21));
    assert_eq!(
        replica.watch(String::new(), String::new(), 5).err(),
        Some(StoreError::Compacted { wanted: 5, oldest: 11 })
    );
}

#[tokio::test]
async fn a_snapshot_installed_under_a_watcher_ends_it() {
    let replica = Replica::new(State::new(HistoryLimits::default()));
    let mut watch = replica.watch(String::new(), String::new(), 0).unwrap();
    let mut future = replica.watch(String::new(), String::new(), 100).unwrap();
    replica.install(Image { revision: 50, ..Image::default() });
    assert_eq!(watch.next().await, Some(Err(WatchError::Compacted { wanted: 1, oldest: 50 })));
    assert!(future.try_next().is_none());
    replica.close();
    assert_eq!(future.next().await, Some(Err(WatchError::Closed)));
}

#[test]
fn a_large_transaction_is_one_batch_and_many_small_ones_are_split_between_revisions() {
    let replica = Replica::new(State::new(HistoryLimits::default()));
    let mut watch = replica.watch(String::new(), String::new(), 1).unwrap();
    let mut command = commands();
    let large = (0..1_500).map(|n| put(&format!("k{n}"), "v")).collect();
    replica.apply(&command(vec![Txn { success: large, ..Txn::default() }, Txn::put("z", "1"), Txn::put("z", "2")]));
    let first = watch.try_next().unwrap().unwrap();
    assert_eq!((first.revision, first.events.len()), (1, 1_500));
    assert_eq!(watch.progress(), 1);
    let second = watch.try_next().unwrap().unwrap();
    assert_eq!((second.revision, second.events.len()), (3, 2));
    assert!(watch.try_next().is_none());
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::from(value.to_owned()) }
}

// ---- Against a model: the whole map at every revision, never forgotten ----

#[derive(Clone, Debug, Default)]
struct Model {
    past: Vec<BTreeMap<String, (Bytes, Revision, Revision, u64)>>,
}

impl Model {
    fn apply(&mut self, txn: &Txn) -> (bool, Revision) {
        let mut now = self.past.last().cloned().unwrap_or_default();
        let holds = txn.compares.iter().all(|compare| match compare {
            Compare::ModRevision { key, equals } => now.get(key).map_or(0, |kv| kv.2) == *equals,
            Compare::Exists { key } => now.contains_key(key),
            Compare::Absent { key } => !now.contains_key(key),
        });
        let revision = self.past.len() as Revision;
        let mut changed = false;
        for op in if holds { &txn.success } else { &txn.failure } {
            match op {
                Op::Put { key, value } => {
                    let (create, version) = now.get(key).map_or((revision, 0), |kv| (kv.1, kv.3));
                    now.insert(key.clone(), (value.clone(), create, revision, version + 1));
                    changed = true;
                }
                Op::Delete { key } => changed |= now.remove(key).is_some(),
                Op::Get { .. } => {}
            }
        }
        if changed {
            self.past.push(now);
        }
        (holds, self.past.len() as Revision - 1)
    }
}

fn key() -> impl Strategy<Value = String> {
    (0..6u8).prop_map(|n| format!("k{n}"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (key(), any::<u8>()).prop_map(|(key, value)| Op::Put { key, value: Bytes::from(vec![value]) }),
        key().prop_map(|key| Op::Delete { key }),
        key().prop_map(|key| Op::Get { key }),
    ]
}

fn compare() -> impl Strategy<Value = Compare> {
    prop_oneof![
        (key(), 0..20u64).prop_map(|(key, equals)| Compare::ModRevision { key, equals }),
        key().prop_map(|key| Compare::Exists { key }),
        key().prop_map(|key| Compare::Absent { key }),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let ops = || prop::collection::vec(op(), 0..4);
    (prop::collection::vec(compare(), 0..2), ops(), ops()).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_revision_reads_like_the_model_and_the_watch_rebuilds_it(txns in prop::collection::vec(txn(), 1..60)) {
        let replica = Replica::new(State::new(HistoryLimits::default()));
        let mut model = Model { past: vec![BTreeMap::new()] };
        let mut command = commands();
        let mut watch = replica.watch("k1".into(), "k4".into(), 1).unwrap();
        let mut watched = BTreeMap::new();
        for (step, txn) in txns.iter().enumerate() {
            let done = results(replica.apply(&command(vec![txn.clone()])));
            let (succeeded, revision) = model.apply(txn);
            prop_assert_eq!((done[0].succeeded, done[0].revision), (succeeded, revision));
            if step % 3 == 0 {
                rebuild(&mut watch, &mut watched);
            }
        }
        rebuild(&mut watch, &mut watched);
        let state = replica.state();
        for (revision, then) in model.past.iter().enumerate() {
            let found = state.range(&RangeRequest::prefix("k").at(revision as Revision)).unwrap();
            let found: Vec<_> = found.kvs.iter()
                .map(|kv| (kv.key.to_string(), (kv.value.clone(), kv.create_revision, kv.mod_revision, kv.version)))
                .collect();
            prop_assert_eq!(found, then.clone().into_iter().collect::<Vec<_>>());
        }
        let last = model.past.last().unwrap();
        let expected: BTreeMap<_, _> = last.range("k1".to_owned().."k4".to_owned())
            .map(|(key, kv)| (key.clone(), kv.0.clone())).collect();
        prop_assert_eq!(watched, expected);
        let bytes: usize = last.iter().map(|(key, kv)| key.len() + kv.0.len()).sum();
        prop_assert_eq!(state.bytes(), bytes as u64);
        drop(state);

        // A copy made from a snapshot goes on alike.
        let image = replica.state().image();
        let mut copy = State::from_image(image, HistoryLimits::default());
        let next = command(txns.clone());
        prop_assert_eq!(copy.apply(&next), replica.apply(&next));
        prop_assert_eq!(copy.image(), replica.state().image());
    }
}

fn rebuild(watch: &mut crate::store::Watch, keys: &mut BTreeMap<String, Bytes>) {
    while let Some(batch) = watch.try_next() {
        for event in batch.unwrap().events {
            let key = event.kv.key.to_string();
            let before = match event.kind {
                WatchEventKind::Put => keys.insert(key, event.kv.value),
                WatchEventKind::Delete => keys.remove(&key),
            };
            assert_eq!(before, event.prev.map(|prev| prev.value), "a gap or a duplicate");
        }
    }
}
