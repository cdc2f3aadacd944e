//! Real clusters of processes, real `kill -9`: what `phalanx up` promises.

use std::process::Command;

use serde_json::Value;

#[allow(dead_code, reason = "shared with the tests of pods, which need more of it")]
mod support;

use support::{Cluster, PHALANX, processes_in, state};

#[test]
fn a_killed_node_is_lost_a_killed_leader_is_replaced_and_both_return() {
    let cluster = Cluster::up(5, 3);
    let first = cluster.all_ready()["leader"].as_str().expect("a leader").to_owned();

    cluster.must(&["chaos", "kill", "n5"]);
    cluster.until("n5 lost", |s| state(s, "n5") == "Lost");

    cluster.must(&["chaos", "kill", &first]);
    cluster.until("a new leader", |s| s["leader"].as_str().is_some_and(|l| l != first));
    cluster.until("the old leader lost", |s| state(s, &first) == "Lost");
    // Who was lost under the old leader is known to the new one.
    assert_eq!(state(&cluster.status(), "n5"), "Lost");

    cluster.must(&["chaos", "start", "n5"]);
    cluster.must(&["chaos", "start", &first]);
    // Who leads then is not promised: a machine under load may elect another.
    cluster.all_ready();
    cluster.until("a leader", |s| s["leader"].is_string());
}

#[test]
fn a_node_cut_off_is_lost_and_fenced_and_back_when_healed() {
    let cluster = Cluster::up(4, 3);
    cluster.all_ready();
    cluster.must(&["chaos", "partition", "n4"]);
    let fenced = |s: &Value| s["nodes"].as_array().is_some_and(|n| n.iter().any(|n| n["fenced"] == true));
    cluster.until("n4 lost and fenced", |s| state(s, "n4") == "Lost" && fenced(s));
    cluster.must(&["chaos", "heal", "n4"]);
    cluster.all_ready();
    cluster.until("nobody fenced", |s| !fenced(s));
}

#[test]
fn a_leader_cut_off_is_replaced_by_the_majority() {
    let cluster = Cluster::up(3, 3);
    let first = cluster.all_ready()["leader"].as_str().expect("a leader").to_owned();
    cluster.must(&["chaos", "partition", &first]);
    cluster.until("a new leader", |s| s["leader"].as_str().is_some_and(|l| l != first) && state(s, &first) == "Lost");
    cluster.must(&["chaos", "heal", &first]);
    cluster.all_ready();
}

#[test]
fn a_stopped_cluster_resumes_with_its_members() {
    let cluster = Cluster::up(4, 3);
    cluster.all_ready();
    cluster.must(&["down"]);
    assert_eq!(processes_in(cluster.dir()), Vec::<String>::new());
    // What is asked now is not what was made then: the directory counts.
    cluster.must(&["up", "--detach", "--nodes", "1"]);
    let status = cluster.all_ready();
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(4));
    assert!(status["nodes"].as_array().is_some_and(|n| n.iter().all(|n| n["incarnation"] == 2)));
}

#[test]
fn the_tree_shows_the_actors_of_every_node() {
    let cluster = Cluster::up(2, 1);
    let paths = |node: usize| -> Vec<String> {
        let tree: Value = serde_json::from_str(&cluster.must(&["tree", "-o", "json"])).expect("JSON");
        let actors = tree["nodes"][node]["actors"].as_array().expect("actors");
        actors.iter().filter_map(|a| a["path"].as_str().map(str::to_owned)).collect()
    };
    // A node's actor begins with its first lease.
    cluster.wait_for("both nodes in the tree", || paths(0).iter().any(|p| p.ends_with("control/nodes/n2")));
    let (server, agent) = (paths(0), paths(1));
    for both in ["member", "member/membership", "agent", "agent/pods", "agent/sync"] {
        assert!(server.iter().any(|p| p == both) && agent.iter().any(|p| p == both), "{both}: {server:?} {agent:?}");
    }
    for control in ["scheduler", "controllers/deployments", "nodes/n1", "nodes/n2"] {
        let path = format!("member/leadership/control/{control}");
        assert!(server.contains(&path), "{path}: {server:?}");
    }
    assert!(!agent.iter().any(|p| p.starts_with("member/leadership")), "{agent:?}");
    assert!(cluster.must(&["tree", "member/leadership"]).contains("leadership"));
}

#[test]
fn a_machine_joins_with_a_token_and_a_false_one_is_refused() {
    let cluster = Cluster::up(1, 1);
    let token = cluster.must(&["token", "create"]);
    let dir = cluster.dir().join("nodes").join("late");
    let mut agent = Command::new(PHALANX);
    agent.args(["agent", "--name", "late", "--dir"]).arg(&dir);

    let attempt = |join: &str| {
        let mut command = Command::new(PHALANX);
        command.args(["agent", "--name", "late", "--join", join, "--dir"]).arg(&dir);
        let output = command.output().expect("run");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.lines().find(|l| l.starts_with("error: ")).map(str::to_owned).unwrap_or(said)
    };
    assert!(attempt("phx1.nonsense").contains("the join token is not valid"));
    let mut parts = phalanx::security::JoinToken::parse(&token).expect("a token");
    parts.secret = "0".repeat(48);
    assert!(attempt(&parts.render()).contains("the cluster does not know this join token"));
    parts.ca_sha256 = "0".repeat(64);
    assert!(attempt(&parts.render()).contains("belongs to another cluster than the join token"));

    let mut child = agent.args(["--join", token.trim()]).stdout(std::process::Stdio::piped()).spawn().expect("spawned");
    let mut line = String::new();
    let out = child.stdout.take().expect("stdout");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("ready");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
    let ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let status = child.wait().expect("ended");
    assert!(line.contains("\"ready\":true"), "{line}");
    assert_eq!(ended, Ok(()));
    assert!(status.success(), "it stops in order: {status}");
}

#[test]
fn bad_input_gets_one_clear_line() {
    let cluster = Cluster::up(1, 1);
    assert!(cluster.refused(&["up"]).contains("is running already"));
    assert!(
        cluster.refused(&["chaos", "kill", "n9"]).contains("there is no node n9 in this cluster; its nodes are n1")
    );
    cluster.must(&["down"]);

    // A directory of another node, of a newer version, and a damaged one.
    let file = cluster.dir().join("nodes/n1/node.json");
    let original = std::fs::read_to_string(&file).expect("node.json");
    std::fs::write(&file, original.replace("\"n1\"", "\"n7\"")).expect("written");
    assert!(cluster.refused(&["up", "--detach"]).contains("belongs to node n7"));
    std::fs::write(&file, original.replace("\"format\": 1", "\"format\": 99")).expect("written");
    assert!(cluster.refused(&["up", "--detach"]).contains("newer Phalanx (format 99"));
    std::fs::write(&file, "{").expect("written");
    assert!(cluster.refused(&["up", "--detach"]).contains("is damaged"));
    std::fs::write(&file, &original).expect("written");

    // A port that somebody else took meanwhile.
    let member: Value = serde_json::from_str(&original).expect("JSON");
    let address = member["member"]["transport"].as_str().expect("address");
    let taken = std::net::UdpSocket::bind(address).expect("free while it is down");
    let said = cluster.refused(&["up", "--detach"]);
    assert!(said.contains(address) && said.contains("--listen"), "{said}");
    drop(taken);
    cluster.must(&["up", "--detach"]);
    cluster.all_ready();

    let nowhere = tempfile::tempdir().expect("tempdir");
    let output = Command::new(PHALANX).args(["status", "--dir"]).arg(nowhere.path()).output().expect("run");
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no cluster in"));
    let output =
        Command::new(PHALANX).args(["agent", "--name", "a", "--dir"]).arg(nowhere.path()).output().expect("run");
    assert!(String::from_utf8_lossy(&output.stderr).contains("knows no cluster: join one with --join TOKEN"));
}
