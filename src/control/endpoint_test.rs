//! Leases between real transports on loopback.

use super::*;
use crate::security::{Authority, NodeRequest};
use phalanx_transport::{Direction, Identity, Target, TransportConfig, server_name};
use std::net::SocketAddr;

struct Member {
    transport: Transport,
    leases: LeaseEndpoint,
}

/// `n1`, `n2`... all connected to each other; the first three are servers.
async fn members(n: usize) -> Vec<Member> {
    let ca = Authority::create("t").expect("authority");
    let bind: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let transports: Vec<Transport> = (1..=n)
        .map(|i| {
            let node = format!("n{i}");
            let request = NodeRequest::generate().expect("key");
            let names = [server_name("t", &node)];
            let issued = ca.sign_node(&request.csr_pem().expect("csr"), &node, &names, &[]).expect("signed");
            let id = request.accept(issued);
            let chain = id.chain().expect("chain");
            let trust = vec![chain[1].clone()];
            let identity = Identity { cert_chain: chain, key: id.key().expect("key") };
            Transport::start(TransportConfig::new("t", node, 1, bind, identity, trust)).expect("transport")
        })
        .collect();
    for a in &transports {
        for b in &transports {
            if a.node() != b.node() {
                a.set_peer(b.node(), b.local_addr());
            }
        }
    }
    for a in &transports {
        for b in &transports {
            until(|| a.node() == b.node() || a.is_connected(b.node())).await;
        }
    }
    let servers: Vec<String> = (1..=n.min(3)).map(|i| format!("n{i}")).collect();
    transports
        .into_iter()
        .map(|transport| {
            let servers = watch::Sender::new(servers.clone()).subscribe();
            let leases = LeaseEndpoint::start(transport.clone(), LeaseTimes::default(), servers, None);
            Member { transport, leases }
        })
        .collect()
}

fn names(members: &[Member]) -> Vec<(String, u64)> {
    members.iter().map(|m| (m.transport.node().to_string(), 1)).collect()
}

async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it happens");
}

async fn event(events: &mut mpsc::Receiver<NodeEvent>) -> NodeEvent {
    tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time").expect("leading")
}

async fn follows(member: &Member, leader: &str, term: u64) {
    let mut status = member.leases.status();
    let seen = status.wait_for(|s| s.leader == Some((leader.into(), term)) && !s.fenced);
    tokio::time::timeout(Duration::from_secs(20), seen).await.expect("in time").expect("runs");
}

async fn end(members: Vec<Member>) {
    for member in &members {
        member.transport.close().await;
    }
}

#[tokio::test]
async fn a_killed_node_is_lost_and_the_others_keep_their_leases() {
    let members = members(5).await;
    let mut events = members[0].leases.lead(1, names(&members), &[]);
    for member in &members {
        follows(member, "n1", 1).await;
    }
    members[3].transport.abort();
    let NodeEvent::Lost { node, silent_ms, .. } = event(&mut events).await else { panic!("not lost") };
    assert_eq!(node, "n4");
    assert!(silent_ms >= 450, "lost after {silent_ms} ms, before its time to live");
    assert!(events.try_recv().is_err(), "nobody else");
    assert_eq!(members[0].leases.leases().iter().filter(|l| l.state == LeaseState::Held).count(), 4);
    assert!(members[1].leases.leases().is_empty(), "only the leader keeps leases");
    end(members).await;
}

#[tokio::test]
async fn a_node_cut_off_fences_itself_is_lost_and_is_back_when_healed() {
    let members = members(4).await;
    let mut events = members[0].leases.lead(1, names(&members), &[]);
    follows(&members[3], "n1", 1).await;
    let mut status = members[3].leases.status();
    members[3].transport.faults().cut(Target::All, Direction::Both);
    assert!(matches!(event(&mut events).await, NodeEvent::Lost { node, .. } if node == "n4"));
    let fenced = status.wait_for(|status| status.fenced);
    tokio::time::timeout(Duration::from_secs(20), fenced).await.expect("in time").expect("runs");
    members[3].transport.faults().heal(Target::All);
    assert_eq!(event(&mut events).await, NodeEvent::Back { node: "n4".into(), incarnation: 1 });
    follows(&members[3], "n1", 1).await;
    end(members).await;
}

#[tokio::test]
async fn a_node_that_only_the_leader_cannot_reach_is_not_lost() {
    let members = members(4).await;
    let mut events = members[0].leases.lead(1, names(&members), &[]);
    follows(&members[3], "n1", 1).await;
    members[0].transport.faults().cut("n4", Direction::Both);
    // Twice the time in which it would be lost: its lease lives on what its peers say.
    let lost = tokio::time::timeout(Duration::from_millis(1_200), events.recv()).await;
    assert!(lost.is_err(), "{lost:?}");
    end(members).await;
}

#[tokio::test]
async fn all_nodes_follow_a_new_leader_and_none_is_lost_by_the_change() {
    let members = members(5).await;
    let _old = members[0].leases.lead(1, names(&members), &[]);
    for member in &members {
        follows(member, "n1", 1).await;
    }
    members[0].transport.abort();
    let mut events = members[1].leases.lead(2, names(&members), &[]);
    for member in &members[1..] {
        follows(member, "n2", 2).await;
    }
    assert!(matches!(event(&mut events).await, NodeEvent::Lost { node, .. } if node == "n1"));
    assert!(events.try_recv().is_err());
    end(members).await;
}

#[tokio::test]
async fn a_leader_that_loses_many_at_once_asks_the_other_servers_first() {
    let members = members(5).await;
    let mut events = members[0].leases.lead(7, names(&members), &[]);
    members[1].leases.follow("n1", 7);
    for member in &members {
        follows(member, "n1", 7).await;
    }
    // Three of five: without a majority's word nothing is replaced. n2 and n1 itself are two of three servers.
    for i in [2, 3, 4] {
        members[i].transport.abort();
    }
    let mut lost = Vec::new();
    for _ in 0..3 {
        let NodeEvent::Lost { node, .. } = event(&mut events).await else { panic!("not lost") };
        lost.push(node);
    }
    lost.sort();
    assert_eq!(lost, ["n3", "n4", "n5"]);
    end(members).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_says_it_leads_is_not_believed() {
    let members = members(5).await;
    let _events = members[0].leases.lead(1, names(&members), &[]);
    for member in &members {
        member.leases.status().wait_for(|s| !s.fenced).await.expect("held");
    }
    // n5 is no server.
    let claim = LeaseDatagram::Leader { leader: "n5".into(), term: 9 };
    members[4].transport.datagram("n4", LEASE_PATH, claim.encode()).expect("sent");
    members[4].transport.datagram("n4", LEASE_PATH, LeaseDatagram::Grant { term: 9, seq: 1 }.encode()).expect("sent");
    // Answered by n4 after both, since datagrams on loopback keep their order.
    let seen = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = seen.clone();
    members[4].transport.serve_datagram("seen", move |_, _| flag.store(true, std::sync::atomic::Ordering::SeqCst));
    let back = members[3].transport.clone();
    members[3].transport.serve_datagram("see", move |peer, body| drop(back.datagram(&peer.node, "seen", body)));
    let begun = Instant::now();
    while !seen.load(std::sync::atomic::Ordering::SeqCst) {
        let _ = members[4].transport.datagram("n4", "see", bytes::Bytes::from_static(b"?"));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(members[3].leases.status().borrow().leader, Some(("n1".to_owned(), 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_its_quorum_grants_nothing_and_loses_nobody() {
    let members = members(3).await;
    let mut events = members[0].leases.lead(1, names(&members), &[]);
    let mut lease = members[1].leases.status();
    lease.wait_for(|s| s.leader.is_some()).await.expect("followed");
    members[0].leases.quorum(false);
    for member in &members {
        member.leases.status().wait_for(|s| s.fenced).await.expect("fenced, the leader's own node, too");
    }
    assert!(events.try_recv().is_err(), "whoever leads now decides who is lost");
    members[0].leases.quorum(true);
    for member in &members {
        member.leases.status().wait_for(|s| !s.fenced).await.expect("held again");
    }
    assert!(events.try_recv().is_err());
}
