//! Order and counts, with senders and actors on several threads. What is asserted holds whoever comes first.

use super::*;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

// ---- order -------------------------------------------------------------------------------------------------------------------

/// Sends `n` notes by tell, send and ask in turn; those of sender 2 are 2,000,000 and so on. Returns those that were accepted.
async fn sender(clerk: Named<Clerk>, id: u32, n: u32) -> Vec<u32> {
    let mut accepted = Vec::new();
    for i in 0..n {
        let note = id * 1_000_000 + i;
        let done = match i % 3 {
            0 => loop {
                match clerk.tell(Note(note)) {
                    Err(SendError::Full) => tokio::task::yield_now().await,
                    done => break done.is_ok(),
                }
            },
            1 => clerk.send(Note(note)).await.is_ok(),
            // Refused or lost are both not answered, and what was lost is not among those handled.
            _ => clerk.ask(Note(note)).await.is_ok(),
        };
        if done {
            accepted.push(note);
        }
        if i % 50 == 49 {
            let _ = clerk.send(Note(0)).await;
        }
    }
    accepted
}

fn of_each_sender(handled: &[u32]) -> HashMap<u32, Vec<u32>> {
    let mut senders: HashMap<u32, Vec<u32>> = HashMap::new();
    for note in handled.iter().filter(|n| **n >= 2_000_000) {
        senders.entry(note / 1_000_000).or_default().push(*note);
    }
    senders
}

#[test]
fn messages_of_one_sender_are_handled_in_their_order_whether_told_sent_or_asked() {
    for (overflow, keep) in [(Overflow::Wait, false), (Overflow::Wait, true), (Overflow::DropOldest, false)] {
        let log = Log::default();
        let system = System::builder("t").build().expect("system");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut child = clerk("clerk", &log).mailbox(4).overflow(overflow);
            if keep {
                child = child.keep_mailbox();
            }
            start(&system, child).await;
            let senders: Vec<_> = (2..6).map(|id| tokio::spawn(sender(system.named(CLERK), id, 300))).collect();
            let mut accepted = Vec::new();
            for sender in senders {
                accepted.extend(sender.await.expect("sent"));
            }
            system.named::<Clerk>(CLERK).ask(Note(1)).await.expect("answered, behind all others");
            let handled = log.take();
            for (id, notes) in of_each_sender(&handled) {
                assert!(notes.is_sorted(), "sender {id}: {notes:?}");
            }
            if overflow == Overflow::Wait {
                let mut all: Vec<u32> = handled.into_iter().filter(|n| *n >= 2_000_000).collect();
                all.sort_unstable();
                accepted.sort_unstable();
                assert_eq!(all, accepted, "nothing is lost, nothing comes twice");
                assert_eq!(all.len(), 1_200);
            }
            system.shutdown().await;
        });
    }
}

#[test]
fn messages_to_a_path_stay_in_order_across_restarts_and_with_a_kept_mailbox_none_is_lost() {
    for keep in [false, true] {
        let log = Log::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let system = System::builder("t").build().expect("system");
            let child = clerk("clerk", &log).mailbox(16);
            start(&system, if keep { child.keep_mailbox() } else { child }).await;
            let clerk = system.named::<Clerk>(CLERK);
            for n in 1..=1_000 {
                // Refused is not accepted: the clerk is between two incarnations.
                while match n % 50 {
                    0 => clerk.send(Crash).await,
                    _ => clerk.send(Note(n)).await,
                }
                .is_err()
                {
                    tokio::task::yield_now().await;
                }
            }
            while clerk.ask(Note(1_001)).await.is_err() {
                tokio::task::yield_now().await;
            }
            let handled = log.take();
            assert!(handled.is_sorted_by(|a, b| a < b), "{handled:?}");
            if keep {
                let all: Vec<u32> = (1..=1_001).filter(|n| n % 50 != 0).collect();
                assert_eq!(handled, all);
            }
            system.shutdown().await;
        });
    }
}

// ---- counts ------------------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    handled: AtomicU64,
}

/// Counts what is handled, and crashes now and then with something in its mailbox.
struct Counter(Arc<Counts>);
impl Actor for Counter {}
struct One(u64);
impl Message for One {
    type Reply = ();
}
impl Handler<One> for Counter {
    fn handle(&mut self, one: One, ctx: &mut Ctx<Self>) -> Reply<()> {
        self.0.handled.fetch_add(1, SeqCst);
        if one.0.is_multiple_of(37) {
            for _ in 0..3 {
                self.0.accepted.fetch_add(u64::from(ctx.self_ref().tell(One(1)).is_ok()), SeqCst);
            }
            panic!("every 37th crashes it");
        }
        ().into()
    }
}

async fn count(system: &System, overflow: Overflow, keep: bool) {
    let counts = Arc::new(Counts::default());
    let own = counts.clone();
    let mut child = ChildSpec::actor("clerk", move || Counter(own.clone())).mailbox(5).overflow(overflow);
    if keep {
        child = child.keep_mailbox();
    }
    system.start(SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(child)).await.expect("started");
    let counter = system.named::<Counter>(CLERK);
    counts.accepted.fetch_add(1, SeqCst);
    counter.tell(One(37)).expect("the first has room");
    let send = |_| {
        let (counter, counts) = (counter.clone(), counts.clone());
        tokio::spawn(async move {
            for i in 1..=1_000 {
                let sent = if i % 2 == 0 { counter.tell(One(i)) } else { counter.send(One(i)).await };
                counts.accepted.fetch_add(u64::from(sent.is_ok()), SeqCst);
            }
        })
    };
    for sender in (0..4).map(send).collect::<Vec<_>>() {
        sender.await.expect("sent");
    }
    // Behind all that was sent, and then behind what the last crash left. One that is not answered may have been accepted, and dropped
    // by a crash.
    let (mut asked, mut answered) = (0, 0);
    while answered < 2 {
        asked += 1;
        answered += u64::from(counter.ask(One(1)).await.is_ok());
        tokio::task::yield_now().await;
    }
    let info = info(system);
    assert_eq!(info.queue_len, 0);
    let (accepted, handled) = (counts.accepted.load(SeqCst), counts.handled.load(SeqCst));
    let right = accepted + answered..=accepted + asked;
    let done = handled + info.dropped;
    assert!(right.contains(&done), "{overflow:?}, kept: {keep}: {done} handled or dropped, not in {right:?}");
    match (overflow, keep) {
        (Overflow::Wait | Overflow::Fail, true) => assert_eq!(info.dropped, 0, "{overflow:?}"),
        (_, false) => assert!(info.dropped > 0, "{overflow:?}: the first crash alone left some"),
        (Overflow::DropOldest, true) => {}
    }
}

#[test]
fn what_was_accepted_is_handled_or_counted_as_dropped_whatever_crashes_meanwhile() {
    let policies = [Overflow::Wait, Overflow::Fail, Overflow::DropOldest];
    for (overflow, keep) in policies.into_iter().flat_map(|policy| [(policy, false), (policy, true)]) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("runtime");
        runtime.block_on(async {
            let system = System::builder("t").build().expect("system");
            count(&system, overflow, keep).await;
            system.shutdown().await;
        });
    }
}

/// Nobody is forgotten who waits, however close the last message's end and the wait come together.
#[test]
fn all_who_wait_for_room_get_it_and_no_more_messages_wait_than_there_is_room_for() {
    const SENDERS: u32 = 8;
    const EACH: u32 = 2_000;
    for room in 1..=3 {
        let log = Log::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("runtime");
        runtime.block_on(async {
            let system = System::builder("t").build().expect("system");
            start(&system, clerk("clerk", &log).mailbox(room)).await;
            let send = |_| {
                let clerk = system.lookup::<Clerk>(CLERK).expect("runs");
                tokio::spawn(async move {
                    for n in 0..EACH {
                        clerk.send(Note(n)).await.expect("waits until there is room");
                    }
                })
            };
            let senders: Vec<_> = (0..SENDERS).map(send).collect();
            let all = async {
                for sender in senders {
                    while !sender.is_finished() {
                        assert!(info(&system).queue_len <= room);
                        tokio::task::yield_now().await;
                    }
                    sender.await.expect("sent");
                }
            };
            tokio::time::timeout(Duration::from_secs(60), all).await.expect("nobody waits for ever");
            system.named::<Clerk>(CLERK).ask(Note(0)).await.expect("answered, behind all others");
            assert_eq!(log.take().len(), (SENDERS * EACH + 1) as usize);
            assert_eq!((info(&system).queue_len, info(&system).dropped), (0, 0));
            system.shutdown().await;
        });
    }
}
