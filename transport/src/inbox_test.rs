//! The inboxes' order and bounds, with receivers that are held up by a gate.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use tokio::sync::{Semaphore, mpsc};

use super::*;

/// Says which messages it has handled; each waits for a permit of the gate first.
struct Gated {
    path: Arc<str>,
    gate: Arc<Semaphore>,
    done: mpsc::UnboundedSender<u32>,
    took: AtomicUsize,
    /// For each message that was dropped, whether it was the first.
    dropped: Mutex<Vec<bool>>,
}

impl Receiver for Gated {
    fn path(&self) -> &Arc<str> {
        &self.path
    }
    fn bytes(&self) -> usize {
        self.path.len()
    }
    fn is_served(&self) -> bool {
        &*self.path != "nowhere"
    }
    fn sink(self: Arc<Self>) -> Box<dyn Sink> {
        Box::new(GatedSink(self))
    }
    fn took(&self, messages: usize, _: usize) {
        self.took.fetch_add(messages, Ordering::SeqCst);
    }
    fn dropped(&self, _: usize, begins: bool) {
        self.dropped.lock().push(begins);
    }
}

struct GatedSink(Arc<Gated>);

impl Sink for GatedSink {
    fn take(&mut self, _: Option<&str>, body: &[u8]) -> Option<BoxFuture<'static, ()>> {
        let n = number(body);
        let gated = self.0.clone();
        Some(Box::pin(async move {
            if let Ok(permit) = gated.gate.acquire().await {
                permit.forget();
            }
            // The test may be over.
            let _ = gated.done.send(n);
        }))
    }
}

fn number(body: &[u8]) -> u32 {
    body.first_chunk().map_or(u32::MAX, |n| u32::from_be_bytes(*n))
}

/// A body of so many bytes that bears a number.
fn body(n: u32, bytes: usize) -> Vec<u8> {
    let mut body = n.to_be_bytes().to_vec();
    body.resize(bytes.max(4), 0);
    body
}

fn gated(path: &str, permits: usize, done: &mpsc::UnboundedSender<u32>) -> Arc<Gated> {
    Arc::new(Gated {
        path: path.into(),
        gate: Arc::new(Semaphore::new(permits)),
        done: done.clone(),
        took: AtomicUsize::new(0),
        dropped: Mutex::default(),
    })
}

fn batch(receiver: &Arc<Gated>, numbers: impl IntoIterator<Item = u32>, bytes: usize) -> Batch {
    let mut batch = Batch::new(receiver.clone());
    numbers.into_iter().for_each(|n| batch.push(None, &body(n, bytes)));
    batch
}

fn inboxes(messages_max: usize, wait_ms: u64) -> Arc<Inboxes> {
    let bounds = Bounds { messages_max, bytes_max: 1_000, total_bytes_max: 100 * MESSAGE_BYTES };
    Arc::new(Inboxes::new(Handle::current(), bounds, Duration::from_millis(wait_ms)))
}

#[test]
fn a_batch_gives_its_messages_as_they_were_put_in() {
    let receiver = gated("p", 0, &mpsc::unbounded_channel().0);
    let mut batch = Batch::new(receiver);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    batch.push(None, b"one");
    batch.push(Some(trace), b"");
    batch.push(None, b"three");
    for (trace, body) in [(None, &b"one"[..]), (Some(trace), b""), (None, b"three")] {
        assert_eq!(batch.first(), Some((trace, body)));
        batch.advance();
    }
    assert_eq!((batch.first(), batch.messages, batch.body_bytes), (None, 0, 0));
}

#[tokio::test]
async fn a_path_handles_in_order_and_another_path_does_not_wait_for_it() {
    let inboxes = inboxes(100, 1_000);
    let (done, mut handled) = mpsc::unbounded_channel();
    let (slow, quick) = (gated("slow", 0, &done), gated("quick", 99, &done));
    for n in 0..5 {
        inboxes.deliver(Lane::Tells, batch(&slow, [n], 4)).await;
    }
    inboxes.deliver(Lane::Tells, batch(&quick, [100], 4)).await;
    assert_eq!(handled.recv().await, Some(100));
    slow.gate.add_permits(5);
    for n in 0..5 {
        assert_eq!(handled.recv().await, Some(n));
    }
    assert_eq!(slow.took.load(Ordering::SeqCst), 5);
}

#[test]
fn what_waits_is_let_go_with_its_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let receiver = gated("p", 0, &mpsc::unbounded_channel().0);
    let inboxes = {
        let _entered = runtime.enter();
        inboxes(100, 1_000)
    };
    for _ in 0..3 {
        assert!(inboxes.try_deliver(Lane::Tells, batch(&receiver, [1], 4)));
    }
    runtime.block_on(tokio::task::yield_now());
    assert!(Arc::strong_count(&receiver) > 1);
    drop(runtime);
    assert_eq!(Arc::strong_count(&receiver), 1);
    assert_eq!(inboxes.queues.lock().bytes, 0);
}

#[tokio::test]
async fn a_full_inbox_waits_then_drops_and_takes_again_once_there_is_room() {
    let inboxes = inboxes(2, 50);
    let (done, mut handled) = mpsc::unbounded_channel();
    let receiver = gated("p", 0, &done);
    for n in 0..3 {
        // Lets the first message leave the inbox for its handler.
        tokio::task::yield_now().await;
        inboxes.deliver(Lane::Tells, batch(&receiver, [n], 4)).await;
    }
    assert!(receiver.dropped.lock().is_empty());
    inboxes.deliver(Lane::Tells, batch(&receiver, 3..6, 4)).await;
    assert_eq!(*receiver.dropped.lock(), [true, false, false]);
    receiver.gate.add_permits(100);
    for n in 0..3 {
        assert_eq!(handled.recv().await, Some(n));
    }
    inboxes.deliver(Lane::Tells, batch(&receiver, [7], 4)).await;
    assert_eq!((handled.recv().await, receiver.dropped.lock().len()), (Some(7), 3));
}

#[tokio::test]
async fn of_a_batch_that_does_not_fit_goes_what_does_and_the_rest_when_there_is_room() {
    let inboxes = inboxes(4, 5_000);
    let (done, mut handled) = mpsc::unbounded_channel();
    let receiver = gated("p", 0, &done);
    let delivering = tokio::spawn({
        let (inboxes, receiver) = (inboxes.clone(), receiver.clone());
        async move { inboxes.deliver(Lane::Tells, batch(&receiver, 0..10, 4)).await }
    });
    receiver.gate.add_permits(10);
    for n in 0..10 {
        assert_eq!(handled.recv().await, Some(n));
    }
    delivering.await.expect("delivered");
    assert!(receiver.dropped.lock().is_empty());
}

#[tokio::test]
async fn the_control_lane_never_waits() {
    let inboxes = inboxes(2, 3_600_000);
    let receiver = gated("p", 0, &mpsc::unbounded_channel().0);
    inboxes.deliver(Lane::Control, batch(&receiver, 0..9, 4)).await;
    assert_eq!(receiver.dropped.lock().len(), 7);
}

#[tokio::test]
async fn all_paths_together_are_bounded_and_one_where_nothing_waits_still_takes_a_small_message() {
    let bounds = Bounds { messages_max: 100, bytes_max: 1 << 20, total_bytes_max: 20 << 10 };
    let inboxes = Arc::new(Inboxes::new(Handle::current(), bounds, Duration::from_millis(20)));
    let (done, mut handled) = mpsc::unbounded_channel();
    let busy = [gated("p", 0, &done), gated("q", 0, &done)];
    let idle = gated("idle", 99, &done);
    for n in 0..20 {
        inboxes.deliver(Lane::Tells, batch(&busy[n as usize % 2], [n], 2 << 10)).await;
    }
    let dropped: usize = busy.iter().map(|receiver| receiver.dropped.lock().len()).sum();
    // Seven wait, and two have been taken by their handlers.
    assert!((10..=13).contains(&dropped), "{dropped}");
    inboxes.deliver(Lane::Tells, batch(&idle, [100], 2 << 10)).await;
    assert_eq!(handled.recv().await, Some(100));
    // Not so one that nobody serves.
    let nowhere = gated("nowhere", 99, &done);
    inboxes.deliver(Lane::Tells, batch(&nowhere, [103], 3 << 10)).await;
    assert_eq!(nowhere.dropped.lock().len(), 1);
    inboxes.deliver(Lane::Tells, batch(&idle, [101], SMALL_MESSAGE_BYTES + 1)).await;
    assert_eq!(idle.dropped.lock().len(), 1);
    busy.iter().for_each(|receiver| receiver.gate.add_permits(100));
    for _ in 0..20 - dropped {
        handled.recv().await;
    }
    inboxes.deliver(Lane::Tells, batch(&idle, [102], SMALL_MESSAGE_BYTES + 1)).await;
    assert_eq!(handled.recv().await, Some(102));
}

proptest! {
    /// However messages are put together, none is lost, each path keeps its order, and no account is left open.
    #[test]
    fn in_whatever_batches_they_come_messages_keep_their_order_and_their_number(
        batches in prop::collection::vec((0..3usize, prop::collection::vec(4..400usize, 1..40)), 1..30),
        messages_max in 1..50usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let inboxes = inboxes(messages_max, 60_000);
            let (done, mut handled) = mpsc::unbounded_channel();
            let receivers = ["a", "b", "c"].map(|path| gated(path, usize::MAX >> 4, &done));
            let (mut sent, mut n) = ([vec![], vec![], vec![]], 0);
            for (to, sizes) in &batches {
                let mut batch = Batch::new(receivers[*to].clone());
                for size in sizes {
                    batch.push(None, &body(n, *size));
                    sent[*to].push(n);
                    n += 1;
                }
                inboxes.deliver(Lane::Tells, batch).await;
            }
            let mut came = [vec![], vec![], vec![]];
            for _ in 0..n {
                let number = handled.recv().await.expect("handled");
                let to = sent.iter().position(|sent| sent.contains(&number)).expect("sent");
                came[to].push(number);
            }
            prop_assert_eq!(&came, &sent);
            while !inboxes.queues.lock().by_path.is_empty() {
                tokio::task::yield_now().await;
            }
            prop_assert_eq!(inboxes.queues.lock().bytes, 0);
            for (receiver, sent) in receivers.iter().zip(&sent) {
                prop_assert_eq!(receiver.took.load(Ordering::SeqCst), sent.len());
            }
            Ok(())
        })?;
    }
}
