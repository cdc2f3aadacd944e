//! The memory that one peer can make a node hold, measured: the process's own, before and after floods of all kinds at
//! once. Alone in its file, so that nothing else runs in the process.

mod support;

use std::time::Duration;

use phalanx_actors::{Actor, ChildSpec, Ctx, Handler, Message, Reply, Strategy, SupervisorSpec, System};
use phalanx_transport::{Limits, Remote, Timings};
use support::{evil::*, *};

const MIB: usize = 1 << 20;

/// What is watched: the dearest monitors are those on an exposed actor.
struct Watched;

impl Actor for Watched {}

impl Message for Echo {
    type Reply = String;
}

impl Handler<Echo> for Watched {
    fn handle(&mut self, Echo(text): Echo, _: &mut Ctx<Self>) -> Reply<String> {
        text.into()
    }
}

const MONITORS: u64 = 10_000;

const MEMBERS: u64 = 10_000;

/// Of four tells each.
const ROUNDS: u64 = 110;

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("known");
    let kib: usize = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib << 10
}

#[tokio::test]
async fn one_peer_cannot_make_a_node_hold_more_than_its_limits_add_up_to() {
    let limits = Limits {
        frame_bytes: MIB,
        outbox_bytes: MIB,
        inboxes_bytes: 4 * MIB,
        asks_in_flight: 32,
        ask_bytes: 4 * MIB,
        reply_bytes: 4 * MIB,
        streams_open: 16,
        monitors: MONITORS as usize,
        group_members: MEMBERS as usize,
        links: 100,
        stream_window_bytes: 64 << 10,
        ..Limits::default()
    };
    let most = limits.peer_bytes_max();
    assert!(most < 56 * MIB, "{most}");
    let (ca, node, decent) = scene_with(|config| {
        config.limits = limits.clone();
        config.timings = Timings { inbox_wait_ms: 1, idle_timeout_ms: 600_000, ..config.timings.clone() };
    })
    .await;
    node.serve::<Echo, _, _>("stuck", |_, _| std::future::pending());
    node.serve_stream("stuck", |_, _, send, recv| async move {
        let _held = (send, recv);
        std::future::pending().await
    });
    let system = System::builder("node").build().expect("starts");
    let spec = SupervisorSpec::new("top", Strategy::OneForOne).child(ChildSpec::actor("watched", || Watched));
    let _supervisor = system.start(spec).await.expect("starts");
    node.expose::<Watched, Echo>("watched", system.named("top/watched"));
    node.attach(&system).expect("the first");
    let group = node.spread::<Echo>("g").expect("attached");
    // The client's own memory is small.
    let mut dial = Dial::new(&ca);
    dial.quic.send_window(256 << 10).stream_receive_window((1u32 << 10).into());
    let (evil, mut control, _recv) =
        dial.dial(&ca, &node).await.expect("valid").welcome(&hello(1, 2, CLUSTER, "evil")).await;
    serves(&ca, &node, &decent).await;
    let before = resident_bytes();

    let mut lane = evil.conn.open_uni().await.expect("the first");
    let small = tell("stuck", &Echo("x".repeat(100)));
    let large = tell("stuck", &Echo("x".repeat(MIB - 200)));
    let aside = tell("nowhere", &Echo("x".repeat(MIB - 200)));
    let mut sent = 0;
    // Small messages that wait, each amid megabytes that do not: what waits must not keep those.
    for _ in 0..ROUNDS {
        for told in [&small, &aside, &small, &large] {
            within(lane.write_all(told)).await.expect("open");
            sent += told.len();
        }
    }
    let tells = resident_bytes().saturating_sub(before);
    for id in 0..MONITORS {
        within(control.write_all(&monitor(id, "watched"))).await.expect("open");
    }
    // Whatever comes after them on their lane.
    within(control.write_all(&tell("nowhere", &Echo("seen".into())))).await.expect("open");
    until(|| node.peers().iter().any(|peer| &*peer.node == "evil" && peer.received_messages == 4 * ROUNDS + 1)).await;
    let monitors = resident_bytes().saturating_sub(before + tells);
    // Twice as many members as are taken, and somebody who is told of each.
    let (_, watch) = group.watch();
    let names = ("g", Echo::NAME);
    let none = News::Members { group: names.0, message: names.1, version: 1, version_min: 1, ids: vec![] };
    within(control.write_all(&news(&none))).await.expect("open");
    for n in 0..2 * MEMBERS / 1_000 {
        let ids = (n * 1_000..(n + 1) * 1_000).collect();
        within(control.write_all(&news(&News::Joined { group: names.0, message: names.1, ids }))).await.expect("open");
    }
    until(|| group.len() == MEMBERS as usize).await;
    let members = resident_bytes().saturating_sub(before + tells + monitors);
    // Half-open streams of every kind, until no more is taken: large heads, large requests, heads without end, bodies.
    let head = open("stuck", &vec![7; MIB / 2]);
    let request = ask("stuck", &Echo("x".repeat(MIB / 2)));
    let kinds = [&head[..], &request, &request[..request.len() - 1], &head[..7]];
    let (mut streams, mut stalls) = (vec![], 0);
    for n in 0..112 {
        let Ok(Ok((mut send, recv))) = tokio::time::timeout(Duration::from_millis(200), evil.conn.open_bi()).await
        else {
            break;
        };
        let bytes = kinds[n % kinds.len()];
        // What is not taken is the client's to keep.
        match tokio::time::timeout(Duration::from_millis(200), send.write_all(bytes)).await {
            Ok(_) => sent += bytes.len(),
            Err(_) => stalls += 1,
        }
        streams.push((send, recv));
        if stalls == 40 {
            // Every window is full.
            break;
        }
    }
    assert!(sent > 3 * most && streams.len() > 16, "{sent} bytes, {} streams: no flood", streams.len());
    let held = resident_bytes().saturating_sub(before);
    println!(
        "{} KiB held of {} KiB allowed ({} KiB tells, {} KiB monitors, {} KiB members), {} KiB sent",
        held >> 10,
        most >> 10,
        tells >> 10,
        monitors >> 10,
        members >> 10,
        sent >> 10
    );
    assert!(held <= most, "{} KiB held, at most {} KiB are allowed", held >> 10, most >> 10);
    assert!(members <= MEMBERS as usize * 512, "{members} bytes of {MEMBERS} members");
    drop(watch);
    assert!(node.is_connected("evil"));
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
    system.shutdown().await;
}
