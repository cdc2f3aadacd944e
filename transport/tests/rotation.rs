//! Certificates and CAs that change, and certificates that expire, while the node runs.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use phalanx_transport::{
    Exit, Fingerprint, Identity, IdentityError, IdentityEvent, LossReason, PeerEvent, Refusal, Revoked, Transport,
    TransportConfig, server_name,
};
use support::*;
use tokio::sync::mpsc;

/// Midnight UTC of 1 January 2030.
const NEW_YEAR_2030: u64 = 1_893_456_000;
const DAY: u64 = 24 * 3_600;

fn up(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Up { .. })
}

fn refused(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Refused { .. })
}

/// A node that looks at certificates often, by a clock of the test's.
fn by_clock(ca: &Ca, node: &str, identity: Identity, clock: &Arc<ManualClock>) -> Transport {
    let mut config: TransportConfig = ca.config(node, 1);
    config.identity = identity;
    config.clock = clock.clone();
    config.timings.certificate_check_ms = 10;
    Transport::start(config).expect("starts")
}

/// Tells numbers from `from` to `to` until it is stopped; every one is checked to arrive, in order.
struct Traffic {
    stop: Arc<AtomicBool>,
    teller: tokio::task::JoinHandle<u64>,
    arrived: mpsc::UnboundedReceiver<u64>,
}

impl Traffic {
    fn start(from: &Transport, to: &Transport) -> Self {
        let (sender, arrived) = mpsc::unbounded_channel();
        to.serve::<Number, _, _>("traffic", move |_, Number(n)| {
            let _ = sender.send(n);
            async { Ok(()) }
        });
        let stop = Arc::<AtomicBool>::default();
        let (from, to, stopped) = (from.clone(), to.node().clone(), stop.clone());
        let teller = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::SeqCst) {
                from.tell(&to, "traffic", &Number(n)).expect("connected, and not too much");
                n += 1;
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            n
        });
        Self { stop, teller, arrived }
    }

    /// Waits until some more have arrived.
    async fn flows(&mut self) {
        for _ in 0..20 {
            self.arrived_next().await;
        }
    }

    async fn arrived_next(&mut self) -> u64 {
        within(self.arrived.recv()).await.expect("served")
    }

    /// Stops it; every number that was told and was not seen yet arrives.
    async fn all_arrived(mut self, seen: u64) {
        self.stop.store(true, Ordering::SeqCst);
        let told = within(self.teller).await.expect("no tell failed");
        for n in seen..told {
            let next = within(self.arrived.recv()).await.expect("served");
            assert_eq!(next, n, "of {told}");
        }
    }
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_the_open_ones_lose_nothing() {
    let (ca, a, b) = pair().await;
    let (mut at_a, mut at_b) = (a.events(), b.events());
    let mut traffic = Traffic::start(&a, &b);
    let mut seen = 0;
    let mut old = vec![];
    for _ in 0..5 {
        for node in [&a, &b] {
            let identity = ca.node(node.node());
            old.push(Fingerprint::of(&identity.cert_chain[0]));
            node.set_identity(identity).expect("valid");
            traffic.flows().await;
            seen += 20;
        }
    }
    traffic.all_arrived(seen).await;
    assert_eq!((events_so_far(&mut at_a), events_so_far(&mut at_b)), (vec![], vec![]));
    // Two who know all certificates but the last as revoked: whoever dials, the last one is shown.
    old.truncate(old.len() - 2);
    let picky = |node| {
        let mut config = ca.config(node, 1);
        config.revoked = Revoked { certificates: old.iter().copied().collect(), ..Revoked::default() };
        Transport::start(config).expect("starts")
    };
    let (c, d) = (picky("c"), picky("d"));
    connect(&c, &a).await;
    connect(&b, &d).await;
    close(&[&a, &b, &c, &d]).await;
}

#[tokio::test]
async fn a_ca_is_rotated_under_traffic_without_losing_a_message_or_a_connection() {
    let (old, new) = (Ca::new(), Ca::new());
    let nodes = [old.start("a", 1), old.start("b", 1), old.start("c", 1)];
    let [a, b, c] = &nodes;
    connect(a, b).await;
    connect(b, c).await;
    connect(c, a).await;
    let mut events: Vec<_> = nodes.iter().map(Transport::events).collect();
    let mut traffic = [Traffic::start(a, b), Traffic::start(b, c), Traffic::start(c, a)];
    let monitor = a.monitor("b", "traffic");
    for step in 0..3 {
        for node in &nodes {
            match step {
                0 => node.set_trust(vec![old.root.clone(), new.root.clone()]),
                1 => node.set_identity(new.node(node.node())),
                _ => node.set_trust(vec![new.root.clone()]),
            }
            .expect("valid");
        }
        for flow in &mut traffic {
            flow.flows().await;
        }
        if step == 1 {
            // Every node has to have seen the new certificates before the old CA goes. What is told on the control lane
            // comes after them.
            for (from, to) in [(a, b), (b, a), (b, c), (c, b), (c, a), (a, c)] {
                let (sender, mut seen) = mpsc::unbounded_channel();
                to.serve::<Number, _, _>("seen", move |_, _| {
                    let _ = sender.send(());
                    async { Ok(()) }
                });
                from.tell_control(to.node(), "seen", &Number(0)).expect("connected");
                within(seen.recv()).await.expect("served");
            }
        }
    }
    for flow in traffic {
        flow.all_arrived(60).await;
    }
    for events in &mut events {
        assert_eq!(events_so_far(events), []);
    }
    // Peers of the new CA come, those of the old one do not.
    let (late, next) = (old.start("late", 1), new.start("next", 1));
    let mut at_a = a.events();
    late.set_peer("a", a.local_addr());
    event(&mut at_a, refused).await;
    connect(&next, a).await;
    drop(monitor);
    close(&[a, b, c, &late, &next]).await;
}

#[tokio::test]
async fn a_connection_outlives_the_certificates_that_it_was_made_with() {
    let ca = Ca::new();
    let clock = ManualClock::at(NEW_YEAR_2030);
    let month = |node| ca.node_within(node, (2029, 12, 1), (2030, 1, 31));
    let (a, b) = (by_clock(&ca, "a", month("a"), &clock), by_clock(&ca, "b", month("b"), &clock));
    connect(&a, &b).await;
    let (mut at_a, mut of_a, mut of_b) = (a.events(), a.identity_events(), b.identity_events());
    let old = b.identity_expires_secs();
    for node in [&a, &b] {
        node.set_identity(ca.node_within(node.node(), (2030, 1, 1), (2030, 3, 1))).expect("in force");
    }
    let mut traffic = Traffic::start(&a, &b);
    traffic.flows().await;
    clock.set(old + 1);
    // Both have looked at the clock since: the first month's certificates would be `Expired` otherwise.
    traffic.flows().await;
    clock.set(b.identity_expires_secs());
    for events in [&mut of_a, &mut of_b] {
        assert!(matches!(within(events.recv()).await.expect("sent"), IdentityEvent::Changed { .. }));
        assert!(matches!(within(events.recv()).await.expect("sent"), IdentityEvent::Due { .. }));
    }
    traffic.flows().await;
    traffic.all_arrived(60).await;
    assert_eq!(events_so_far(&mut at_a), []);
    // And not the last ones.
    clock.set(b.identity_expires_secs() + 1);
    let lost = event(&mut at_a, |_| true).await;
    assert!(matches!(&lost, PeerEvent::Down { .. }), "{lost:?}");
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn an_identity_that_peers_would_refuse_is_not_taken_and_nothing_changes() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let a = ca.start("a", 1);
    let good = ca.node("a");
    let cases: [(Identity, &str); 6] = [
        (ca.node("b"), "not for node a"),
        (ca.issue(&["localhost".into()]), "not for node a"),
        (ca.issue(&[server_name("other", "a")]), "not for node a"),
        (Identity { key: ca.node("a").key, ..good.clone() }, "certificate"),
        (foreign.node("a"), "invalid peer certificate"),
        (ca.node_within("a", (2001, 1, 1), (2002, 1, 1)), "expired"),
    ];
    let expires = a.identity_expires_secs();
    let mut events = a.identity_events();
    for (identity, reason) in cases {
        let error = a.set_identity(identity).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert!(matches!(a.set_identity(foreign.node("a")), Err(IdentityError::Untrusted { .. })));
    assert!(a.set_identity(Identity { cert_chain: vec![], ..good }).is_err());
    for (trust, reason) in [(vec![], "trust roots"), (vec![foreign.root.clone()], "invalid peer certificate")] {
        let error = a.set_trust(trust).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert!(events.try_recv().is_err());
    assert_eq!(a.identity_expires_secs(), expires);
    let b = ca.start("b", 1);
    connect(&b, &a).await;
    connect(&a, &b).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_peer_of_a_ca_that_is_dropped_is_closed_and_refused() {
    let (old, new) = (Ca::new(), Ca::new());
    let (a, b) = (old.start("a", 1), old.start("b", 1));
    connect(&b, &a).await;
    serve_echo(&b, "echo");
    a.set_trust(vec![old.root.clone(), new.root.clone()]).expect("valid");
    a.set_identity(new.node("a")).expect("valid");
    // Both are trusted for a while: old peers stay, and peers of either CA come. One of the old CA alone cannot dial a, for it
    // does not trust a's new certificate.
    assert!(echo(&a, "b", "echo").await.is_ok());
    let c = new.start("c", 1);
    connect(&c, &a).await;
    let both = |node| {
        let mut config = old.config(node, 1);
        config.trust.push(new.root.clone());
        Transport::start(config).expect("starts")
    };
    let d = both("d");
    connect(&d, &a).await;
    let (monitor, mut at_a, mut at_d) = (a.monitor("b", "echo"), a.events(), d.events());
    a.set_trust(vec![new.root.clone()]).expect("valid");
    assert!(a.is_connected("c") && !a.is_connected("b") && !a.is_connected("d"));
    assert_eq!(within(monitor).await.reason, Exit::NoConnection);
    for _ in 0..2 {
        let lost = event(&mut at_a, |event| !refused(event)).await;
        assert!(
            matches!(&lost, PeerEvent::Down { reason: LossReason::Untrusted(text), .. } if text.contains("invalid peer certificate")),
            "{lost:?}"
        );
    }
    let told = event(&mut at_d, |event| matches!(event, PeerEvent::Down { .. })).await;
    let PeerEvent::Down { reason: LossReason::ClosedByPeer(text), .. } = &told else { panic!("{told:?}") };
    assert!(text.contains("not trusted any more"), "{text}");
    let told = event(&mut at_d, refused).await;
    assert!(matches!(&told, PeerEvent::Refused { reason: Refusal::ByPeer(_), .. }), "{told:?}");
    d.set_identity(new.node("d")).expect("signed by a root that d trusts");
    event(&mut at_d, up).await;
    close(&[&a, &b, &c, &d]).await;
}

#[tokio::test]
async fn a_certificate_that_expires_while_connected_costs_the_connection_and_another_brings_it_back() {
    let ca = Ca::new();
    let clock = ManualClock::at(NEW_YEAR_2030);
    let b_identity = ca.node_within("b", (2029, 12, 1), (2030, 1, 31));
    let (a, b) = (by_clock(&ca, "a", ca.node("a"), &clock), by_clock(&ca, "b", b_identity, &clock));
    connect(&a, &b).await;
    let (mut at_a, mut at_b, mut of_b) = (a.events(), b.events(), b.identity_events());
    // To the last second.
    clock.set(b.identity_expires_secs());
    serve_echo(&b, "echo");
    assert!(matches!(within(of_b.recv()).await.expect("sent"), IdentityEvent::Due { .. }));
    assert!(echo(&a, "b", "echo").await.is_ok());
    assert_eq!(events_so_far(&mut at_a), []);
    clock.set(b.identity_expires_secs() + 1);
    let lost = event(&mut at_a, |_| true).await;
    assert!(
        matches!(&lost, PeerEvent::Down { reason: LossReason::Untrusted(text), .. } if text.contains("expired")),
        "{lost:?}"
    );
    assert_eq!(within(of_b.recv()).await.expect("sent"), IdentityEvent::Expired);
    // Redialed at once, and refused by both sides.
    let refusal = event(&mut at_a, refused).await;
    assert!(matches!(&refusal, PeerEvent::Refused { reason: Refusal::Tls(_), .. }), "{refusal:?}");
    event(&mut at_b, refused).await;
    assert!(matches!(
        b.set_identity(ca.node_within("b", (2029, 12, 1), (2030, 1, 31))),
        Err(IdentityError::Untrusted { .. })
    ));
    b.set_identity(ca.node_within("b", (2030, 1, 30), (2030, 3, 1))).expect("in force");
    assert!(matches!(within(of_b.recv()).await.expect("sent"), IdentityEvent::Changed { .. }));
    event(&mut at_a, up).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn the_hook_is_asked_in_time_and_again_until_there_is_a_new_certificate() {
    let ca = Arc::new(Ca::new());
    let clock = ManualClock::at(NEW_YEAR_2030);
    let a = by_clock(&ca, "a", ca.node_within("a", (2030, 1, 1), (2030, 1, 31)), &clock);
    let mut events = a.identity_events();
    let asked = Arc::new(AtomicUsize::new(0));
    let (counted, issuer, own) = (asked.clone(), ca.clone(), a.clone());
    a.renew_with(move || {
        let attempt = counted.fetch_add(1, Ordering::SeqCst);
        // The hook may use the transport, and so hold it.
        let (issuer, _own) = (issuer.clone(), own.clone());
        async move {
            match attempt {
                0 => Err("the issuer is away".into()),
                1 => panic!("a bug in the hook"),
                2 => Ok(issuer.node("b")),
                _ => Ok(issuer.node_within("a", (2030, 1, 15), (2030, 2, 15))),
            }
        }
    });
    let old = a.identity_expires_secs();
    // Not before three fifths of its life, in any case by three quarters of it.
    clock.set(NEW_YEAR_2030 + 17 * DAY);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let mut now = NEW_YEAR_2030 + 30 * DAY * 3 / 4;
    clock.set(now);
    assert_eq!(within(events.recv()).await.expect("sent"), IdentityEvent::Due { expires_secs: old });
    for why in ["the issuer is away", "panicked", "not for node a"] {
        match within(events.recv()).await.expect("sent") {
            IdentityEvent::RenewalFailed { reason, retry_in_secs, expires_secs } => {
                assert!(reason.contains(why), "{reason}");
                assert_eq!(expires_secs, old);
                now += retry_in_secs;
                clock.set(now);
            }
            other => panic!("{other:?}"),
        }
    }
    let changed = within(events.recv()).await.expect("sent");
    assert_eq!(changed, IdentityEvent::Changed { expires_secs: a.identity_expires_secs() });
    assert!(a.identity_expires_secs() > old);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    close(&[&a]).await;
}
