//! Behaviour of the frame, with a controller that only counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use phalanx_actors::System;
use tokio::sync::{mpsc, watch};

use super::*;

/// What exists, how often each was reconciled, and what a pass answers.
#[derive(Default)]
struct World {
    objects: Mutex<BTreeMap<String, u32>>,
    failing: Mutex<Option<ReconcileError>>,
    passes: watch::Sender<BTreeMap<String, u32>>,
    events: Mutex<Option<mpsc::UnboundedReceiver<Vec<Key>>>>,
}

struct Counting(Arc<World>);

impl Reconciler for Counting {
    const NAME: &'static str = "counts";

    fn feeds(self: &Arc<Self>) -> Vec<Feed> {
        let all: Vec<Key> = self.0.objects.lock().keys().map(|key| Key::from(key.as_str())).collect();
        let events = self.0.events.lock().take().unwrap();
        let events = futures::stream::unfold(events, |mut events| async move { Some((events.recv().await?, events)) });
        vec![futures::stream::iter([all]).chain(events).boxed_local()]
    }

    fn exists(&self, key: &str) -> bool {
        self.0.objects.lock().contains_key(key)
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Result<Next, ReconcileError> {
        if !self.exists(&key) {
            return Ok(Next::Gone);
        }
        self.0.passes.send_modify(|passes| *passes.entry(key.to_string()).or_default() += 1);
        match self.0.failing.lock().take() {
            Some(error) => Err(error),
            None => Ok(Next::Settled),
        }
    }
}

struct Bench {
    system: System,
    world: Arc<World>,
    events: mpsc::UnboundedSender<Vec<Key>>,
    passes: watch::Receiver<BTreeMap<String, u32>>,
}

impl Bench {
    async fn start(keys: &[&str], fault: Option<Fault>) -> Bench {
        let (events, receiver) = mpsc::unbounded_channel();
        let world = Arc::new(World::default());
        let passes = world.passes.subscribe();
        world.objects.lock().extend(keys.iter().map(|key| ((*key).to_owned(), 0)));
        *world.events.lock() = Some(receiver);
        let system = System::builder("test").build().unwrap();
        let shared = Arc::clone(&world);
        let kind = kind_child(move || Counting(Arc::clone(&shared)), fault);
        system.start(SupervisorSpec::new("controllers", Strategy::OneForOne).child(kind)).await.unwrap();
        Bench { system, world, events, passes }
    }

    async fn passes(&mut self, key: &str, least: u32) {
        let reached = |passes: &BTreeMap<String, u32>| passes.get(key).is_some_and(|count| *count >= least);
        tokio::time::timeout(Duration::from_secs(20), self.passes.wait_for(reached)).await.expect("passes").unwrap();
    }

    fn event(&self, key: &str) {
        self.events.send(vec![Key::from(key)]).unwrap();
    }

    fn path(key: &str) -> String {
        object_path("controllers/counts", key)
    }

    async fn until(&self, mut holds: impl FnMut(&System) -> bool) {
        let mut tree = self.system.subscribe();
        tokio::time::timeout(Duration::from_secs(20), async {
            while !holds(&self.system) {
                // Lagging is fine: only that something changed matters.
                let _ = tokio::time::timeout(Duration::from_millis(200), tree.recv()).await;
            }
        })
        .await
        .expect("the tree comes to this state");
    }
}

#[tokio::test]
async fn every_object_has_an_actor_of_its_own_under_its_kind() {
    let mut bench = Bench::start(&["default/web", "node-1"], None).await;
    bench.passes("default/web", 1).await;
    bench.passes("node-1", 1).await;
    assert!(bench.system.whereis("controllers/counts/objects/default_web").is_some());
    assert!(bench.system.whereis("controllers/counts/objects/node-1").is_some());
    bench.event("default/web");
    bench.passes("default/web", 2).await;
    bench.system.shutdown().await;
}

#[tokio::test]
async fn an_object_that_makes_its_reconciler_panic_is_retried_and_stops_nobody_else() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&attempts);
    let fault: Fault = Arc::new(move |key| {
        if key == "default/bad" && seen.fetch_add(1, Ordering::SeqCst) < 3 {
            panic!("injected");
        }
    });
    let mut bench = Bench::start(&["default/bad", "default/good"], Some(fault)).await;
    bench.passes("default/good", 1).await;
    let good = bench.system.whereis(&Bench::path("default/good")).unwrap();
    let kind = bench.system.whereis("controllers/counts").unwrap();
    // While one is in its backoff the other works on.
    bench.event("default/good");
    bench.passes("default/good", 2).await;
    bench.passes("default/bad", 1).await;
    assert_eq!(attempts.load(Ordering::SeqCst), 4);
    let restarts = |path: &str| bench.system.tree().into_iter().find(|info| &*info.path == path).unwrap().restarts;
    assert_eq!(restarts(&Bench::path("default/bad")), 3);
    assert_eq!(restarts(&Bench::path("default/good")), 0);
    assert!(good.is_alive() && kind.is_alive());
    bench.system.shutdown().await;
}

#[tokio::test]
async fn the_actor_of_a_deleted_object_ends_and_a_new_object_of_that_name_gets_another() {
    let mut bench = Bench::start(&["default/web"], None).await;
    bench.passes("default/web", 1).await;
    let first = bench.system.whereis(&Bench::path("default/web")).unwrap();
    bench.world.objects.lock().clear();
    bench.event("default/web");
    bench.until(|system| system.whereis(&Bench::path("default/web")).is_none()).await;
    assert!(!first.is_alive());
    bench.world.objects.lock().insert("default/web".to_owned(), 0);
    bench.event("default/web");
    bench.passes("default/web", 2).await;
    bench.system.shutdown().await;
}

#[tokio::test]
async fn an_object_that_goes_and_comes_back_at_any_moment_is_looked_after() {
    let mut bench = Bench::start(&[], None).await;
    for round in 1..=50 {
        bench.world.objects.lock().insert("default/web".to_owned(), round);
        bench.event("default/web");
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
        bench.world.objects.lock().clear();
        bench.event("default/web");
    }
    bench.world.objects.lock().insert("default/web".to_owned(), 99);
    let before = bench.passes.borrow().get("default/web").copied().unwrap_or(0);
    bench.event("default/web");
    bench.passes("default/web", before + 1).await;
    bench.system.shutdown().await;
}

#[tokio::test]
async fn a_failed_pass_is_tried_again_without_an_event() {
    let mut bench = Bench::start(&[], None).await;
    *bench.world.failing.lock() = Some(ReconcileError::Failed("no".to_owned()));
    bench.world.objects.lock().insert("default/web".to_owned(), 0);
    bench.event("default/web");
    bench.passes("default/web", 2).await;
    bench.system.shutdown().await;
}

#[tokio::test]
async fn a_kind_whose_watch_ends_is_restarted_and_stopping_leaves_nothing() {
    let mut bench = Bench::start(&["default/web"], None).await;
    bench.passes("default/web", 1).await;
    let kind = bench.system.whereis("controllers/counts").unwrap();
    let (events, receiver) = mpsc::unbounded_channel();
    *bench.world.events.lock() = Some(receiver);
    bench.events = events;
    kind.exited().await;
    bench.passes("default/web", 2).await;
    bench.system.shutdown().await;
    assert!(bench.system.tree().is_empty());
}

#[test]
fn retries_back_off_to_a_bound() {
    assert_eq!(retry_after(0), RETRY_INITIAL);
    assert_eq!(retry_after(1), RETRY_INITIAL * 2);
    assert_eq!(retry_after(u32::MAX), RETRY_MAX);
}
