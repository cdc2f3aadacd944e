//! References to actors of other nodes: the same methods and the same promises as at home.

mod support;
#[path = "support/worker.rs"]
mod worker;

use phalanx_actors::{AskError as LocalAskError, Exit, Recipient, Restart, Trace};
use phalanx_transport::{
    AskError, AttachError, Direction, PeerEvent, Rejected, RemoteAddress, RemoteRef, SendError, Transport,
    TransportConfig,
};
use support::*;
use tokio::time::Instant;
use worker::*;

/// Two connected nodes with their actors.
struct Scene {
    ca: Ca,
    a: Transport,
    b: Transport,
    near: Crew,
    far: Crew,
}

impl Scene {
    async fn new(restart: Restart) -> Self {
        Self::with(restart, |_| {}).await
    }

    async fn with(restart: Restart, change: impl Fn(&mut TransportConfig)) -> Self {
        let ca = Ca::new();
        let start = |node| {
            let mut config = ca.config(node, 1);
            // However long this machine stalls, only what the test does ends a connection.
            config.timings.idle_timeout_ms = PATIENCE.as_millis() as u64;
            change(&mut config);
            Transport::start(config).expect("starts")
        };
        let (a, b) = (start("a"), start("b"));
        connect(&a, &b).await;
        let (near, far) = (crew(&a, restart).await, crew(&b, restart).await);
        Self { ca, a, b, near, far }
    }

    /// A reference to a worker of `b`, held by `a`.
    async fn far(&self, path: &str) -> RemoteRef<Worker> {
        within(self.a.lookup("b", path)).await.expect("runs there")
    }

    /// Everything that `a` has sent on its control lane has been taken by `b`: an answered monitor is ordered after it.
    async fn settled(&self) {
        within(self.a.monitor("b", "nothing")).await;
        within(self.b.monitor("a", "nothing")).await;
    }

    async fn end(self) {
        close(&[&self.a, &self.b]).await;
        self.near.system.shutdown().await;
        self.far.system.shutdown().await;
    }
}

fn no_proc(path: &str) -> AskError {
    AskError::NoProc { node: "b".into(), path: path.into() }
}

fn no_connection() -> AskError {
    AskError::NoConnection { node: "b".into() }
}

#[tokio::test]
async fn an_actor_elsewhere_is_told_in_order_and_asked_like_a_local_one() {
    let mut scene = Scene::new(Restart::Permanent).await;
    let worker = scene.far("top/w").await;
    assert_eq!((&**worker.node(), worker.pid().path()), ("b", "top/w@b"));
    for n in 0..1_000 {
        worker.tell(Do::Add(n)).expect("room");
    }
    for n in 0..1_000 {
        assert_eq!(scene.far.next().await, Heard::Number(n));
    }
    assert_eq!(within(worker.ask(Do::Add(1))).await, Ok(499_501));
    assert_eq!(within(worker.ask(WhoAreYou)).await, Ok(scene.far.worker("top/w").pid().id()));
    assert_eq!(worker.pid().id(), scene.far.worker("top/w").pid().id());
    let named = scene.a.named::<Worker>("b", "top/w");
    named.tell(Do::Add(9)).expect("room");
    assert_eq!(within(named.ask(Do::Add(0))).await.map(|sum| sum >= 499_501), Ok(true));
    assert_eq!(within(named.resolve()).await.as_ref(), Ok(&worker));
    scene.end().await;
}

#[tokio::test]
async fn a_reference_to_an_actor_of_ones_own_node_is_the_actor() {
    let scene = Scene::new(Restart::Permanent).await;
    let looked_up = within(scene.a.lookup::<Worker>("a", "top/w")).await.expect("runs");
    let local = scene.near.worker("top/w");
    assert_eq!(looked_up.pid(), local.pid());
    assert_eq!(scene.a.reference(&local), looked_up);
    assert_eq!(looked_up.local().map(|actor| actor.pid()), Some(local.pid()));
    assert_eq!(within(looked_up.ask(Do::Add(2))).await, Ok(2));
    assert_eq!(within(scene.a.named::<Worker>("a", "top/w").ask(Do::Add(3))).await, Ok(5));
    let resolved = scene.a.resolve::<Worker>(looked_up.address());
    assert!(resolved.local().is_some() && resolved == looked_up);
    scene.end().await;
}

#[tokio::test]
async fn a_send_waits_for_room_where_a_tell_is_refused() {
    let mut scene = Scene::with(Restart::Permanent, |config| config.limits.outbox_messages = 8).await;
    let worker = scene.far("top/w").await;
    let sending = {
        let worker = worker.clone();
        tokio::spawn(async move {
            for n in 0..10_000 {
                worker.send(Do::Add(n)).await.expect("connected");
            }
        })
    };
    for n in 0..10_000 {
        assert_eq!(scene.far.next().await, Heard::Number(n));
    }
    within(sending).await.expect("no panic");
    scene.a.faults().cut("b", Direction::Both);
    let full = || matches!(worker.tell(Do::Add(0)), Err(SendError::Full { .. }));
    until(full).await;
    // Whoever waits learns of the loss.
    let mut waiting = Box::pin(worker.send(Do::Add(0)));
    assert!(futures::poll!(&mut waiting).is_pending());
    scene.a.remove_peer("b");
    assert_eq!(within(waiting).await, Err(SendError::NoConnection { node: "b".into() }));
    scene.end().await;
}

#[tokio::test]
async fn a_message_carries_the_span_that_it_was_sent_in_to_the_handler_elsewhere() {
    let mut scene = Scene::new(Restart::Permanent).await;
    let worker = scene.far("top/w").await;
    let named = scene.a.named::<Worker>("b", "top/w");
    let trace = Trace::root();
    trace.scope(|| worker.tell(Do::Trace)).expect("room");
    trace.scope(|| named.tell(Do::Trace)).expect("room");
    let (worker, named) = (worker.clone(), named.clone());
    let asks = trace.scope_async(async move {
        within(worker.ask(Do::Trace)).await.expect("lives");
        within(named.ask(Do::Trace)).await.expect("lives");
        // And on from there.
        within(worker.ask(Do::Forward(worker.clone(), 1))).await.expect("lives");
    });
    asks.await;
    let mut traced = 0;
    while traced < 4 {
        match scene.far.next().await {
            Heard::Trace(at) => {
                let at = at.expect("traced");
                // A child, made there.
                assert!(at.trace_id() == trace.trace_id() && at.span_id() != trace.span_id());
                traced += 1;
            }
            other => assert_eq!(other, Heard::Number(1)),
        }
    }
    scene.far("top/w").await.tell(Do::Trace).expect("room");
    within(async { while scene.far.next().await != Heard::Trace(None) {} }).await;
    // To what is merely served, too.
    let (seen, mut at) = tokio::sync::mpsc::unbounded_channel();
    scene.b.serve::<Number, _, _>("number", move |_, _| {
        let seen = seen.clone();
        async move { seen.send(Trace::current()).map_err(|e| e.to_string()) }
    });
    trace.scope(|| scene.a.tell("b", "number", &Number(1))).expect("room");
    assert_eq!(within(at.recv()).await, Some(Some(trace)));
    let asked = trace.scope(|| scene.a.ask("b", "number", &Number(1), PATIENCE));
    within(asked).await.expect("answered");
    assert_eq!(within(at.recv()).await, Some(Some(trace)));
    scene.end().await;
}

#[tokio::test]
async fn a_lookup_finds_nothing_or_another_type_or_what_is_not_shared_and_says_so() {
    let scene = Scene::new(Restart::Permanent).await;
    for node in ["a", "b"] {
        let (a, no_proc) = (&scene.a, |path: &str| AskError::NoProc { node: node.into(), path: path.into() });
        assert_eq!(within(a.lookup::<Worker>(node, "top/x")).await, Err(no_proc("top/x")));
        let other = AskError::OtherType { node: node.into(), path: "top/other".into(), found: "test/Other".into() };
        assert_eq!(within(a.lookup::<Worker>(node, "top/other")).await, Err(other));
    }
    assert_eq!(within(scene.a.lookup::<Hidden>("b", "top/hidden")).await, Err(no_proc("top/hidden")));
    // Neither a supervisor.
    assert_eq!(within(scene.a.lookup::<Worker>("b", "top")).await, Err(no_proc("top")));
    // Nor can what is not seen be watched or killed by a guessed number.
    let id = scene.far.system.whereis("top/hidden").expect("runs").id();
    let address = RemoteAddress { node: "b".into(), incarnation: 1, path: "top/hidden".into(), id };
    let guessed = scene.a.resolve::<Hidden>(address);
    guessed.kill().expect("connected");
    assert_eq!(within(guessed.pid().exited()).await, Exit::NoProc);
    assert!(scene.far.system.whereis("top/hidden").is_some_and(|pid| pid.is_alive() && pid.id() == id));
    assert_eq!(scene.a.attach(&scene.near.system), Err(AttachError::Attached));
    scene.end().await;
}

#[tokio::test]
async fn an_ask_ends_with_the_exit_no_reply_the_deadline_or_an_unknown_message_and_the_connection_stays() {
    let scene = Scene::new(Restart::Permanent).await;
    let mut events = scene.a.events();
    let worker = scene.far("top/w").await;
    let path = || "top/w".to_owned();
    assert_eq!(
        within(worker.ask(Private)).await,
        Err(AskError::UnknownMessage { path: path(), name: "test/Private".into(), version: 1 })
    );
    assert_eq!(within(worker.ask(Do::Ignore)).await, Err(AskError::NoReply { node: "b".into(), path: path() }));
    let limit = std::time::Duration::from_millis(20);
    assert_eq!(
        within(worker.ask_timeout(Do::Hold, limit)).await,
        Err(AskError::Timeout { node: "b".into(), path: path() })
    );
    match within(worker.ask(Do::Crash)).await {
        Err(AskError::Exited { node, path, exit }) => {
            assert!(node == "b" && path == "top/w" && crashed(&exit), "{exit:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(within(scene.far("top/v").await.ask(Do::Add(1))).await, Ok(1));
    assert_eq!(events_so_far(&mut events), []);
    scene.end().await;
}

#[tokio::test]
async fn a_deadline_travels_with_the_question_and_one_that_has_passed_asks_nobody() {
    let mut scene = Scene::new(Restart::Permanent).await;
    let local = scene.a.reference(&scene.near.worker("top/w"));
    let (far, named) = (scene.far("top/w").await, scene.a.named::<Worker>("b", "top/w"));
    let near_named = scene.a.named::<Worker>("a", "top/w");
    let deadline = Instant::now() + PATIENCE;
    for asked in [
        within(local.ask_until(Do::Left, deadline)).await,
        within(far.ask_until(Do::Left, deadline)).await,
        within(near_named.ask_until(Do::Left, deadline)).await,
        within(named.ask_until(Do::Left, deadline)).await,
    ] {
        let left = u128::from(asked.expect("answered"));
        assert!(left > 0 && left <= PATIENCE.as_millis() + 2, "{left} ms");
    }
    assert_eq!(within(local.ask_until(Do::Left, None)).await, Ok(0));
    let month_ms = 30 * 24 * 3_600_000;
    assert!(within(far.ask_until(Do::Left, None)).await.is_ok_and(|left| left > month_ms / 2));
    // Longer than any clock.
    assert!(within(far.ask_timeout(Do::Left, std::time::Duration::MAX)).await.is_ok());
    let past = Instant::now();
    let timeout = |node: &str| Err(AskError::Timeout { node: node.into(), path: "top/w".into() });
    assert_eq!(within(local.ask_until(Do::Add(1), past)).await, timeout("a"));
    assert_eq!(within(far.ask_until(Do::Add(1), past)).await, timeout("b"));
    assert_eq!(within(named.ask_until(Do::Add(1), past)).await, timeout("b"));
    assert_eq!(within(far.ask(Do::Add(2))).await, Ok(2));
    assert_eq!(scene.far.next().await, Heard::Number(2));
    scene.end().await;
}

#[tokio::test]
async fn a_message_that_is_not_taken_comes_back() {
    let scene = Scene::new(Restart::Temporary).await;
    let (far, named) = (scene.far("top/w").await, scene.a.named::<Worker>("b", "top/w"));
    far.try_tell(Do::Add(1)).expect("room");
    named.try_tell(Do::Add(1)).expect("room");
    let back = |rejected: Result<(), Rejected<Do>>| match rejected {
        Err(Rejected { error, message: Do::Add(n) }) => (error, n),
        other => panic!("{other:?}"),
    };
    let no_proc = |node: &str| SendError::NoProc { node: node.into(), path: "top/w".into() };
    let exited = far.pid();
    scene.settled().await;
    far.kill().expect("connected");
    within(exited.exited()).await;
    assert_eq!(back(far.try_tell(Do::Add(2))), (no_proc("b"), 2));
    let local = scene.a.reference(&scene.near.worker("top/w"));
    let near_named = scene.a.named::<Worker>("a", "top/w");
    local.try_tell(Do::Add(1)).expect("room");
    local.kill().expect("here");
    within(local.pid().exited()).await;
    assert_eq!(back(local.try_tell(Do::Add(3))), (no_proc("a"), 3));
    assert_eq!(back(near_named.try_tell(Do::Add(4))), (no_proc("a"), 4));
    scene.a.remove_peer("b");
    until(|| !scene.a.is_connected("b")).await;
    let no_connection = SendError::NoConnection { node: "b".into() };
    assert_eq!(back(named.try_tell(Do::Add(5))), (no_connection.clone(), 5));
    let unknown = scene.a.named::<Worker>("c", "top/w").try_tell(Do::Add(6));
    assert_eq!(back(unknown), (SendError::NoConnection { node: "c".into() }, 6));
    scene.end().await;
}

#[tokio::test]
async fn a_reference_is_a_recipient_wherever_its_actor_runs() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let local = scene.a.reference(&scene.near.worker("top/w"));
    let far = scene.far("top/w").await;
    let named = scene.a.named::<Worker>("b", "top/w");
    let crew: Vec<Recipient<Do>> = vec![local.clone().into(), far.clone().into(), named.into()];
    assert_eq!(crew[0].pid(), Some(local.pid()));
    assert_eq!((crew[1].pid(), crew[2].pid()), (None, None));
    for one in &crew {
        one.tell(Do::Add(1)).expect("room");
        within(one.send(Do::Add(2))).await.expect("room");
        // A question to another node may overtake what was told.
        assert!(within(one.ask(Do::Add(3))).await.is_ok_and(|sum| sum >= 3));
    }
    for (from, crew) in [(&mut scene.near, 1), (&mut scene.far, 2)] {
        let mut sum = 0;
        while sum < crew * 6 {
            match from.next().await {
                Heard::Number(n) => sum += n,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sum, crew * 6);
    }
    assert_eq!(within(crew[1].ask(Do::Ignore)).await, Err(LocalAskError::NoReply));
    assert!(matches!(within(crew[1].ask(Do::Crash)).await, Err(LocalAskError::Exited(exit)) if crashed(&exit)));
    assert_eq!(within(crew[2].ask(Do::Add(1))).await, Err(LocalAskError::NoProc));
    scene.a.remove_peer("b");
    until(|| !scene.a.is_connected("b")).await;
    assert_eq!(within(crew[1].ask(Do::Add(1))).await, Err(LocalAskError::Exited(Exit::NoConnection)));
    assert!(crew[2].try_tell(Do::Add(7)).is_err_and(|rejected| matches!(rejected.message, Do::Add(7))));
    scene.end().await;
}

#[tokio::test]
async fn a_tell_that_nobody_understands_is_dropped_and_counted() {
    let scene = Scene::new(Restart::Permanent).await;
    let worker = scene.far("top/w").await;
    let dropped = || scene.b.peers()[0].dropped_messages;
    let before = dropped();
    worker.tell(Private).expect("room");
    until(|| dropped() == before + 1).await;
    // One to an incarnation that has ended.
    scene.far.worker("top/w").kill();
    within(worker.pid().exited()).await;
    scene.a.resolve::<Worker>(worker.address()).tell(Do::Add(1)).expect("not known here");
    until(|| dropped() == before + 2).await;
    assert!(scene.a.is_connected("b"));
    scene.end().await;
}

#[tokio::test]
async fn a_monitor_of_an_actor_elsewhere_tells_its_exit_once_and_the_restarted_one_is_another() {
    let mut scene = Scene::new(Restart::Permanent).await;
    let worker = scene.far("top/w").await;
    let pid = worker.pid();
    // Two monitors of one actor, one of another, one waiter.
    scene.near.does("top/w", Do::Monitor(worker.clone())).await;
    scene.near.does("top/v", Do::Monitor(worker.clone())).await;
    scene.near.does("top/w", Do::Monitor(worker.clone())).await;
    let exited = tokio::spawn(async move { pid.exited().await });
    scene.settled().await;
    worker.tell(Do::Crash).expect("room");
    for _ in 0..3 {
        match scene.near.next().await {
            Heard::Down { of, reason } => assert!(of == "top/w@b" && crashed(&reason), "{of} {reason:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(crashed(&within(exited).await.expect("no panic")));
    // The end is known here now.
    assert_eq!(worker.tell(Do::Add(1)), Err(SendError::NoProc { node: "b".into(), path: "top/w".into() }));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(no_proc("top/w")));
    scene.near.does("top/w", Do::Monitor(worker.clone())).await;
    assert_eq!(scene.near.next().await, down("top/w@b", Exit::NoProc));
    // NoProc until the supervisor has restarted it.
    let named = scene.a.named::<Worker>("b", "top/w");
    let again = within(async {
        loop {
            match named.resolve().await {
                Ok(again) => return again,
                Err(error) => assert_eq!(error, no_proc("top/w")),
            }
        }
    })
    .await;
    assert_ne!(again, worker);
    assert_eq!(within(again.ask(Do::Add(1))).await, Ok(1));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(no_proc("top/w")));
    scene.end().await;
}

#[tokio::test]
async fn a_reference_with_a_wrong_path_and_a_right_number_is_no_proc_and_hurts_nobody() {
    let scene = Scene::new(Restart::Permanent).await;
    let worker = scene.far("top/w").await;
    // Whoever sends references may send this one.
    let forged = scene.a.resolve::<Worker>(RemoteAddress { path: "top/nobody".into(), ..worker.address() });
    let (false_pid, pid) = (forged.pid(), worker.pid());
    assert_eq!(within(false_pid.exited()).await, Exit::NoProc);
    scene.settled().await;
    assert!(pid.is_alive());
    assert_eq!(within(worker.ask(Do::Add(1))).await, Ok(1));
    worker.tell(Do::Crash).expect("room");
    assert!(crashed(&within(pid.exited()).await));
    scene.end().await;
}

#[tokio::test]
async fn what_is_not_watched_any_more_is_not_counted_any_more() {
    let mut scene = Scene::with(Restart::Permanent, |config| config.limits.monitors = 2).await;
    let worker = scene.far("top/w").await;
    let address = worker.address();
    drop(worker);
    // Each of these is watched, and forgotten again on both sides: else the third would break the limit.
    for _ in 0..100 {
        let worker = scene.a.resolve::<Worker>(address.clone());
        assert!(worker.pid().is_alive());
        scene.settled().await;
    }
    let worker = scene.a.resolve::<Worker>(address);
    scene.near.does("top/w", Do::Monitor(worker.clone())).await;
    scene.settled().await;
    scene.far.worker("top/w").kill();
    assert_eq!(scene.near.next().await, down("top/w@b", Exit::Killed));
    scene.end().await;
}

#[tokio::test]
async fn beyond_the_limit_a_monitor_is_no_connection_at_once_and_the_connection_stays() {
    let mut scene = Scene::with(Restart::Permanent, |config| config.limits.monitors = 1).await;
    let (worker, other) = (scene.far("top/w").await, scene.far("top/v").await);
    scene.near.does("top/w", Do::Monitor(worker)).await;
    scene.near.does("top/w", Do::Monitor(other.clone())).await;
    assert_eq!(scene.near.next().await, down("top/v@b", Exit::NoConnection));
    assert_eq!(within(other.ask(Do::Add(1))).await, Ok(1));
    scene.end().await;
}

#[tokio::test]
async fn beyond_the_limit_a_link_is_no_connection_at_once_and_the_connection_stays() {
    let mut scene = Scene::with(Restart::Temporary, |config| config.limits.links = 1).await;
    let (w, v) = (scene.far("top/w").await, scene.far("top/v").await);
    let mut events = scene.a.events();
    for near in ["top/w", "top/v"] {
        scene.near.does(near, Do::TrapExits).await;
    }
    scene.near.does("top/w", Do::Link(w.clone())).await;
    scene.near.does("top/v", Do::Link(v.clone())).await;
    assert_eq!(scene.near.next().await, exit("top/v@b", Exit::NoConnection));
    // Only the link: the actor itself is watched on.
    scene.settled().await;
    assert!(v.pid().is_alive());
    // One that is taken back makes room.
    scene.near.does("top/w", Do::Unlink(w)).await;
    scene.near.does("top/v", Do::Link(v.clone())).await;
    scene.settled().await;
    v.tell(Do::Crash).expect("room");
    assert!(matches!(scene.near.next().await, Heard::Exit { of, reason } if of == "top/v@b" && crashed(&reason)));
    assert_eq!(events_so_far(&mut events), []);
    scene.end().await;
}

#[tokio::test]
async fn stop_and_kill_reach_the_actor_through_the_reference_the_name_and_the_pid() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let (w, v) = (scene.far("top/w").await, scene.far("top/v").await);
    let (w_pid, v_pid) = (w.pid(), v.pid());
    w.stop(Exit::Error("enough".into())).expect("connected");
    assert_eq!(scene.far.next().await, Heard::Stopping(Exit::Error("enough".into())));
    assert_eq!(within(w_pid.exited()).await, Exit::Error("enough".into()));
    v_pid.kill();
    assert_eq!(within(v_pid.exited()).await, Exit::Killed);
    let (near_w, near_v) = (scene.near.worker("top/w").pid(), scene.near.worker("top/v").pid());
    within(scene.b.lookup::<Worker>("a", "top/w")).await.expect("runs").pid().stop(Exit::Shutdown);
    scene.b.named::<Worker>("a", "top/v").kill().expect("connected");
    assert_eq!(within(near_w.exited()).await, Exit::Shutdown);
    assert_eq!(within(near_v.exited()).await, Exit::Killed);
    scene.end().await;
}

#[tokio::test]
async fn a_link_between_nodes_ends_the_other_side_unless_it_traps_exits() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let worker = scene.far("top/w").await;
    let far_pid = scene.far.pid("top/w");
    // The far one ends, and takes the near one along.
    let near_pid = scene.near.worker("top/w").pid();
    scene.near.does("top/w", Do::Link(worker.clone())).await;
    scene.settled().await;
    worker.tell(Do::Crash).expect("room");
    assert!(crashed(&within(near_pid.exited()).await));
    assert!(crashed(&far_pid.exit().expect("ended")));
    // The near one ends, and the far one traps exits.
    let worker = scene.far("top/v").await;
    within(worker.ask(Do::TrapExits)).await.expect("lives");
    scene.near.does("top/v", Do::Link(worker.clone())).await;
    scene.near.worker("top/v").stop(Exit::Error("tired".into()));
    assert_eq!(scene.far.next().await, exit("top/v@a", Exit::Error("tired".into())));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Ok(1));
    scene.end().await;
}

#[tokio::test]
async fn the_near_end_of_a_link_takes_the_far_one_along_with_its_reason() {
    let scene = Scene::new(Restart::Temporary).await;
    let worker = scene.far("top/w").await;
    scene.near.does("top/w", Do::Link(worker.clone())).await;
    let near = scene.near.worker("top/w");
    // The link and the exit are on their way together, in this order.
    near.tell(Do::Crash).expect("room");
    assert!(crashed(&within(worker.pid().exited()).await));
    assert!(crashed(&within(scene.far.pid("top/w").exited()).await));
    scene.end().await;
}

#[tokio::test]
async fn a_link_taken_back_by_either_side_ends_nobody() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let (w, v) = (scene.far("top/w").await, scene.far("top/v").await);
    let near = within(scene.b.lookup::<Worker>("a", "top/v")).await.expect("runs");
    scene.near.does("top/w", Do::Link(w.clone())).await;
    scene.near.does("top/w", Do::Unlink(w.clone())).await;
    scene.near.does("top/v", Do::Link(v.clone())).await;
    scene.settled().await;
    // The other side takes it back.
    scene.far.does("top/v", Do::Unlink(near)).await;
    scene.settled().await;
    scene.near.does("top/v", Do::Monitor(w.clone())).await;
    scene.near.does("top/w", Do::Monitor(v.clone())).await;
    scene.settled().await;
    w.tell(Do::Crash).expect("room");
    v.tell(Do::Crash).expect("room");
    for _ in 0..2 {
        assert!(matches!(scene.near.next().await, Heard::Down { reason, .. } if crashed(&reason)));
    }
    for path in ["top/w", "top/v"] {
        scene.near.does(path, Do::Add(1)).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_link_to_what_has_ended_is_no_proc() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let worker = scene.far("top/w").await;
    scene.near.does("top/w", Do::TrapExits).await;
    scene.far.worker("top/w").kill();
    within(scene.far.pid("top/w").exited()).await;
    scene.near.does("top/w", Do::Link(worker)).await;
    assert_eq!(scene.near.next().await, exit("top/w@b", Exit::NoProc));
    scene.end().await;
}

#[tokio::test]
async fn a_lost_node_is_no_connection_to_tells_asks_monitors_and_links_on_both_sides() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let worker = scene.far("top/w").await;
    within(worker.ask(Do::TrapExits)).await.expect("lives");
    scene.near.does("top/w", Do::TrapExits).await;
    scene.near.does("top/w", Do::Link(worker.clone())).await;
    scene.near.does("top/v", Do::Monitor(worker.clone())).await;
    scene.settled().await;
    let holding = tokio::spawn(worker.ask(Do::Hold));
    // The question is there.
    within(worker.ask(WhoAreYou)).await.expect("lives");
    scene.a.remove_peer("b");
    let mut heard = [scene.near.next().await, scene.near.next().await];
    heard.sort_by_key(|heard| format!("{heard:?}"));
    assert_eq!(heard, [down("top/w@b", Exit::NoConnection), exit("top/w@b", Exit::NoConnection)]);
    assert_eq!(scene.far.next().await, exit("top/w@a", Exit::NoConnection));
    assert_eq!(within(holding).await.expect("no panic"), Err(no_connection()));
    assert_eq!(worker.tell(Do::Add(1)), Err(SendError::NoConnection { node: "b".into() }));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(no_connection()));
    assert_eq!(within(worker.pid().exited()).await, Exit::NoConnection);
    scene.near.does("top/v", Do::Monitor(worker.clone())).await;
    assert_eq!(scene.near.next().await, down("top/w@b", Exit::NoConnection));
    assert_eq!(within(scene.a.named::<Worker>("b", "top/w").ask(Do::Add(1))).await, Err(no_connection()));
    // The same boot of the node, and the same actor: the reference serves again, with another pid.
    let before = worker.pid();
    connect(&scene.a, &scene.b).await;
    assert_eq!(within(worker.ask(Do::Add(7))).await, Ok(7));
    assert!(worker.pid().is_alive() && worker.pid() != before && !before.is_alive());
    scene.end().await;
}

#[tokio::test]
async fn a_restarted_node_is_another_and_old_references_to_it_fail_also_when_it_is_up_again() {
    let mut scene = Scene::new(Restart::Temporary).await;
    let mut events = scene.a.events();
    let worker = scene.far("top/w").await;
    scene.near.does("top/v", Do::Monitor(worker.clone())).await;
    scene.settled().await;
    scene.b.abort();
    scene.far.system.kill();
    let b = scene.ca.start("b", 2);
    let far = crew(&b, Restart::Temporary).await;
    b.set_peer("a", scene.a.local_addr());
    event(&mut events, |event| matches!(event, PeerEvent::Up { incarnation: 2, .. })).await;
    assert_eq!(scene.near.next().await, down("top/w@b", Exit::NoConnection));
    // The same path, and even the same number.
    let again = within(scene.a.lookup::<Worker>("b", "top/w")).await.expect("runs");
    assert_eq!((again.address().path, again.address().id), (worker.address().path, worker.address().id));
    assert_ne!(again, worker);
    assert_eq!(worker.tell(Do::Add(1)), Err(SendError::NoProc { node: "b".into(), path: "top/w".into() }));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(no_proc("top/w")));
    assert!(worker.kill().is_err());
    assert_eq!(within(worker.pid().exited()).await, Exit::NoProc);
    scene.near.does("top/v", Do::Monitor(worker.clone())).await;
    assert_eq!(scene.near.next().await, down("top/w@b", Exit::NoProc));
    assert_eq!(within(scene.a.named::<Worker>("b", "top/w").ask(Do::Add(5))).await, Ok(5));
    assert_eq!(within(again.ask(Do::Add(1))).await, Ok(6));
    close(&[&b]).await;
    far.system.shutdown().await;
    scene.end().await;
}

#[tokio::test]
async fn a_reference_in_a_message_serves_whoever_gets_it_also_on_a_third_node() {
    let mut scene = Scene::new(Restart::Permanent).await;
    let c = scene.ca.start("c", 1);
    let mut third = crew(&c, Restart::Permanent).await;
    connect(&c, &scene.a).await;
    connect(&c, &scene.b).await;
    let worker = scene.far("top/w").await;
    let there = within(scene.a.lookup::<Worker>("c", "top/w")).await.expect("runs");
    // To a third node; to the node that it is of; and one's own, back to here.
    worker.tell(Do::Forward(there, 3)).expect("room");
    assert_eq!(third.next().await, Heard::Number(3));
    worker.tell(Do::Forward(worker.clone(), 4)).expect("room");
    assert_eq!(scene.far.next().await, Heard::Number(4));
    worker.tell(Do::Forward(scene.a.reference(&scene.near.worker("top/v")), 5)).expect("room");
    assert_eq!(scene.near.next().await, Heard::Number(5));
    // As data.
    let address = rmp_serde::to_vec(&worker).expect("encodes");
    assert!(rmp_serde::from_slice::<RemoteRef<Worker>>(&address).is_err());
    let address: RemoteAddress = rmp_serde::from_slice(&address).expect("readable");
    assert_eq!(scene.a.resolve::<Worker>(address), worker);
    close(&[&c]).await;
    third.system.shutdown().await;
    scene.end().await;
}

#[tokio::test]
async fn an_actor_of_a_closed_transport_or_a_stopped_system_is_out_of_reach_and_nothing_hangs() {
    let scene = Scene::new(Restart::Permanent).await;
    let worker = scene.far("top/w").await;
    let pid = worker.pid();
    scene.settled().await;
    scene.far.system.shutdown().await;
    assert_eq!(within(pid.exited()).await, Exit::Shutdown);
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(no_proc("top/w")));
    scene.a.close().await;
    assert_eq!(worker.tell(Do::Add(1)).map_err(|e| e.to_string()), Err("no process at top/w on node b".into()));
    assert_eq!(within(worker.ask(Do::Add(1))).await, Err(AskError::Closed));
    assert_eq!(within(scene.a.lookup::<Worker>("b", "top/w")).await, Err(AskError::Closed));
    scene.end().await;
}
