//! The failure detector's promises, without a clock or a network.

use proptest::prelude::*;

use super::*;

fn table(n: u64, now: Millis) -> LeaseTable {
    LeaseTable::new("n1", LeaseTimes::default(), (1..=n).map(|i| (format!("n{i}"), 1)), now)
}

fn renew(table: &mut LeaseTable, node: &str, now: Millis) -> Vec<LeaseAction> {
    table.on_event(LeaseEvent::Renewed { node: node.into(), incarnation: 1 }, now)
}

/// Runs the clock in ticks of 25 ms; every node but `dead` renews each 150 ms. Probes of dead nodes fail, of others hold.
fn run(table: &mut LeaseTable, n: u64, dead: &[&str], from: Millis, to: Millis) -> Vec<(Millis, LeaseAction)> {
    let mut seen = Vec::new();
    for now in (from..=to).step_by(25) {
        if (now - from).is_multiple_of(150) {
            for i in 1..=n {
                let node = format!("n{i}");
                if !dead.contains(&node.as_str()) {
                    seen.extend(renew(table, &node, now).into_iter().map(|a| (now, a)));
                }
            }
        }
        let actions = table.on_event(LeaseEvent::Tick, now);
        for action in actions {
            if let LeaseAction::Probe { node, via } = &action {
                let reached = !dead.contains(&node.as_str());
                for by in via.iter().cloned().chain(["n1".to_string()]) {
                    table.on_event(LeaseEvent::Probed { node: node.clone(), by, reached }, now);
                }
            }
            seen.push((now, action));
        }
    }
    seen
}

#[test]
fn a_dead_node_is_lost_at_its_time_to_live_and_only_once() {
    let mut t = table(5, 0);
    let seen = run(&mut t, 5, &["n4"], 0, 3_000);
    let lost: Vec<_> = seen.iter().filter(|(_, a)| matches!(a, LeaseAction::Lost { .. })).collect();
    assert_eq!(lost, [&(450, LeaseAction::Lost { node: "n4".into(), incarnation: 1, silent_ms: 450 })]);
    assert!(
        seen.contains(&(
            300,
            LeaseAction::Probe { node: "n4".into(), via: vec!["n2".into(), "n3".into(), "n5".into()] }
        ))
    );
}

#[test]
fn a_node_that_a_peer_still_reaches_keeps_its_lease() {
    let mut t = table(5, 0);
    for now in (0..=2_000).step_by(25) {
        for node in ["n1", "n2", "n3", "n5"] {
            renew(&mut t, node, now);
        }
        for action in t.on_event(LeaseEvent::Tick, now) {
            let LeaseAction::Probe { node, .. } = action else { panic!("{action:?}") };
            t.on_event(LeaseEvent::Probed { node: node.clone(), by: "n2".into(), reached: false }, now);
            t.on_event(LeaseEvent::Probed { node, by: "n3".into(), reached: true }, now);
        }
    }
    assert_eq!(t.state("n4", 2_000).map(|s| s.0), Some(LeaseState::Held));
}

#[test]
fn a_closed_link_starts_the_probe_at_once_but_does_not_shorten_the_lease() {
    let mut t = table(4, 0);
    let actions = t.on_event(LeaseEvent::LinkClosed { node: "n3".into() }, 10);
    assert!(matches!(&actions[..], [LeaseAction::Probe { node, .. }] if node == "n3"));
    for by in ["n1", "n2", "n4"] {
        t.on_event(LeaseEvent::Probed { node: "n3".into(), by: by.into(), reached: false }, 20);
    }
    let mut lost_at = None;
    for now in (25..=600).step_by(25) {
        for node in ["n1", "n2", "n4"] {
            renew(&mut t, node, now);
        }
        if t.on_event(LeaseEvent::Tick, now).iter().any(|a| matches!(a, LeaseAction::Lost { .. })) {
            lost_at = Some(now);
        }
    }
    assert_eq!(lost_at, Some(450));
}

#[test]
fn a_leader_that_stood_still_grants_every_lease_anew() {
    let mut t = table(3, 0);
    t.on_event(LeaseEvent::Tick, 25);
    assert_eq!(t.on_event(LeaseEvent::Tick, 5_000), []);
    assert_eq!(t.state("n2", 5_000), Some((LeaseState::Held, 0)));
}

#[test]
fn when_many_lapse_together_the_leader_asks_before_it_acts() {
    let mut t = table(5, 0);
    let dead = ["n3", "n4", "n5"];
    let seen = run(&mut t, 5, &dead, 0, 600);
    assert!(seen.iter().any(|(_, a)| *a == LeaseAction::Confirm));
    assert!(!seen.iter().any(|(_, a)| matches!(a, LeaseAction::Lost { .. })));
    t.on_event(LeaseEvent::Confirmed { majority: false }, 600);
    assert_eq!(t.on_event(LeaseEvent::Tick, 625).len(), 1, "it asks again");
    t.on_event(LeaseEvent::Confirmed { majority: true }, 650);
    let lost = t.on_event(LeaseEvent::Tick, 675);
    assert_eq!(lost.iter().filter(|a| matches!(a, LeaseAction::Lost { .. })).count(), 3);
}

#[test]
fn one_dead_node_of_three_needs_no_confirmation() {
    let mut t = table(3, 0);
    let seen = run(&mut t, 3, &["n2"], 0, 600);
    assert!(seen.iter().any(|(_, a)| matches!(a, LeaseAction::Lost { .. })));
}

#[test]
fn a_lost_node_that_renews_is_back_and_a_new_boot_is_announced() {
    let mut t = table(3, 0);
    run(&mut t, 3, &["n2"], 0, 600);
    assert_eq!(renew(&mut t, "n2", 700), [LeaseAction::Back { node: "n2".into(), incarnation: 1 }]);
    assert_eq!(renew(&mut t, "n2", 800), []);
    let reboot = LeaseEvent::Renewed { node: "n2".into(), incarnation: 2 };
    assert_eq!(t.on_event(reboot, 850), [LeaseAction::Back { node: "n2".into(), incarnation: 2 }]);
    assert_eq!(renew(&mut t, "n2", 900), [], "the old boot's renewal is ignored");
    assert_eq!(t.state("n2", 900), Some((LeaseState::Held, 50)));
}

proptest! {
    /// Whatever happens, a node that renewed within its time to live is never declared lost, and one is lost at most
    /// once between two renewals.
    #[test]
    fn nobody_is_lost_before_the_time_to_live(steps in prop::collection::vec((1u64..5, 0u8..6, 1u64..120), 1..400)) {
        let mut t = table(4, 0);
        let mut now = 0;
        let mut renewed = [0u64; 5];
        let mut lost = [false; 5];
        for (i, what, dt) in steps {
            now += dt;
            let node = format!("n{i}");
            let actions = match what {
                0 | 1 => { renewed[i as usize] = now; lost[i as usize] = false; renew(&mut t, &node, now) }
                2 => t.on_event(LeaseEvent::Probed { node, by: "n1".into(), reached: false }, now),
                3 => t.on_event(LeaseEvent::LinkClosed { node }, now),
                4 => t.on_event(LeaseEvent::Confirmed { majority: true }, now),
                _ => t.on_event(LeaseEvent::Tick, now),
            };
            for action in actions {
                if let LeaseAction::Lost { node, .. } = action {
                    let k: usize = node[1..].parse().expect("n<i>");
                    prop_assert!(now - renewed[k] >= LeaseTimes::default().ttl_ms);
                    prop_assert!(!lost[k], "lost twice");
                    lost[k] = true;
                }
            }
        }
    }
}

#[test]
fn a_leader_that_could_not_grant_begins_with_fresh_leases() {
    let mut table = table(5, 0);
    run(&mut table, 5, &[], 0, 600);
    // Nothing was taken in for two seconds: no renewal, and no tick either.
    table.on_event(LeaseEvent::Resumed, 2_600);
    let seen = run(&mut table, 5, &["n4"], 2_625, 4_000);
    let lost: Vec<_> = seen.iter().filter(|(_, action)| matches!(action, LeaseAction::Lost { .. })).collect();
    assert!(matches!(&lost[..], [(at, LeaseAction::Lost { node, .. })] if node == "n4" && *at >= 3_050), "{lost:?}");
}
