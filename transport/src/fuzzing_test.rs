//! The fuzz functions over the seeds of `fuzz/seeds` and thousands of mutations of them, on any compiler.

use std::{fs, path::PathBuf};

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::frame::{More, put_route};

const CASES: u32 = 20_000;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&dir).expect("seeds").map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", dir.display());
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

/// What a fuzzer does to an input.
#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    Splice(Index, Index),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let interesting = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7f), Just(0x80), Just(0xff), 0x80..0xe0u8];
    prop_oneof![
        (any::<Index>(), interesting).prop_map(|(at, to)| Mutation::Set(at, to)),
        (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<Index>(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (any::<Index>(), 1..16usize).prop_map(|(at, many)| Mutation::Remove(at, many)),
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Splice(from, to)),
    ]
}

fn mutate(mut input: Vec<u8>, mutations: &[Mutation], seeds: &[Vec<u8>]) -> Vec<u8> {
    for mutation in mutations {
        if input.is_empty() {
            return input;
        }
        match mutation {
            Mutation::Set(at, to) => {
                let at = at.index(input.len());
                input[at] = *to;
            }
            Mutation::Flip(at, bit) => {
                let at = at.index(input.len());
                input[at] ^= 1 << bit;
            }
            Mutation::Insert(at, bytes) => {
                let at = at.index(input.len());
                input.splice(at..at, bytes.iter().copied());
            }
            Mutation::Remove(at, many) => {
                let at = at.index(input.len());
                let end = (at + many).min(input.len());
                input.drain(at..end);
            }
            Mutation::Cut(at) => input.truncate(at.index(input.len())),
            Mutation::Splice(from, to) => {
                let other = from.get(seeds);
                let to = to.index(input.len());
                input.truncate(to);
                input.extend_from_slice(&other[to.min(other.len())..]);
            }
        }
    }
    input
}

fn hold(target: &str, fuzz: fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| fuzz(seed));
    fuzz(&[]);
    let inputs = (any::<Index>(), prop::collection::vec(mutation(), 1..8));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let held = runner.run(&inputs, |(seed, mutations)| {
        fuzz(&mutate(seed.get(&seeds).clone(), &mutations, &seeds));
        Ok(())
    });
    if let Err(error) = held {
        panic!("{error}");
    }
}

#[test]
fn frames_hold_over_mutated_seeds() {
    hold("frames", frames);
}

#[test]
fn the_hello_holds_over_mutated_seeds() {
    hold("hello", hello);
}

#[test]
fn certificates_hold_over_mutated_seeds() {
    hold("certificate", certificate);
}

#[test]
fn proofs_hold_over_mutated_seeds() {
    hold("proof", proof);
}

#[test]
fn datagrams_hold_over_mutated_seeds() {
    hold("datagram", datagram);
}

/// Writes the seeds anew if `PHALANX_WRITE_SEEDS` is set: by hand, when a message gets a field.
#[test]
fn the_seeds_are_what_this_build_sends() {
    let exit = phalanx_actors::Exit::Panic { message: "boom".into(), location: Some("a.rs:1".into()) };
    let frame = |kind, frame: Result<Vec<u8>, crate::frame::EncodeError>| {
        assert_eq!(whole(frame.as_ref().expect("fits")).kind, kind);
        frame.expect("fits")
    };
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        cluster: CLUSTER.into(),
        node: "a".into(),
        incarnation: 7,
        dial: 3,
        accepted: (5, 2),
    };
    let newest = Hello { version_max: PROTOCOL_VERSION, ..hello.clone() };
    let newest = frame(Kind::Hello, encode(Kind::Hello, &newest, LIMIT));
    let welcome = Welcome { version: 1, cluster: CLUSTER.into(), node: "a".into(), incarnation: 7 };
    let hello = frame(Kind::Hello, encode(Kind::Hello, &hello, LIMIT));
    let welcome = frame(Kind::Welcome, encode(Kind::Welcome, &welcome, LIMIT));
    let tell = Tell { path: "agent/pods", name: "test/Tell", version: 1, body: b"body", more: None };
    let large = Tell { body: &[7; 40 << 10], ..tell };
    let ask = Ask { path: "agent/pods", name: "test/Ask", version: 1, deadline_ms: 1_000, body: b"body", more: None };
    let signal = Signal { path: "top/a", pid: Some(7), from: Some(("top/b", 9)), what: 4, reason: b"reason" };
    let message = Envelope { name: "test/Tell", version: 2, version_min: 1 };
    let letter = Letter { path: "agent/pods", message, pid: Some(7), trace: None, body: b"body" };
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let routed = |put: &dyn Fn(&mut Vec<u8>) -> Result<(), crate::frame::EncodeError>| {
        let mut out = vec![];
        put(&mut out).map(|()| out)
    };
    let more = Some(More { version_min: 1, pid: Some(7), trace: Some(trace) });
    let credit = flow::Signal::Credit { path: "agent/pods".into(), messages: 64, bytes: 4_096 };
    let credit = rmp_serde::to_vec(&credit).expect("encodes");
    let credit = Tell { path: flow::FLOW_PATH, name: "flow/Signal", version: 1, body: &credit, more: None };
    let proof = seeds("proof").remove(0);
    let proof: Proof<'_> = rmp_serde::from_slice(&proof).expect("written by this test");
    let lanes = [
        frame(Kind::Tell, encode(Kind::Tell, &tell, LIMIT)),
        frame(Kind::Ask, encode(Kind::Ask, &ask, LIMIT)),
        frame(Kind::Reply, encode(Kind::Reply, &Reply { status: 0, body: b"reply" }, LIMIT)),
        frame(Kind::Open, encode(Kind::Open, &Open { path: "agent/logs", header: b"head" }, LIMIT)),
        frame(Kind::Monitor, encode(Kind::Monitor, &MonitorPath { id: 1, path: "agent/pods", pid: None }, LIMIT)),
        frame(Kind::Demonitor, encode(Kind::Demonitor, &(1u64,), LIMIT)),
        frame(Kind::Down, encode(Kind::Down, &(1u64, &exit), LIMIT)),
        hello.clone(),
        welcome.clone(),
        frame(Kind::Signal, encode(Kind::Signal, &signal, LIMIT)),
        frame(
            Kind::Route,
            routed(&|out| {
                put_route(out, 3, &letter);
                Ok(())
            }),
        ),
        frame(Kind::Routed, routed(&|out| put_routed(out, 3, &letter, LIMIT))),
        frame(Kind::Tell, encode(Kind::Tell, &Tell { more, ..tell }, LIMIT)),
        frame(Kind::Ask, encode(Kind::Ask, &Ask { more, ..ask }, LIMIT)),
        frame(Kind::Monitor, encode(Kind::Monitor, &MonitorPath { id: 1, path: "top/a", pid: Some(7) }, LIMIT)),
        frame(Kind::Tell, encode(Kind::Tell, &credit, LIMIT)),
        frame(Kind::Identity, encode(Kind::Identity, &proof, LIMIT)),
        frame(Kind::RoutedTraced, routed(&|out| put_routed(out, 3, &Letter { trace: Some(trace), ..letter }, LIMIT))),
    ];
    let chosen = |choice: [u8; 8], said: &[u8]| [&choice[..], said].concat();
    let names = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        rcgen::generate_simple_self_signed(names).expect("valid").cert.der().to_vec()
    };
    let mut all: Vec<(&str, String, Vec<u8>)> = vec![];
    for (n, lane) in lanes.iter().enumerate() {
        all.push(("frames", format!("one-{n}"), [&[0, 1, 2, 200], &lane[..]].concat()));
    }
    all.push(("frames", "many".into(), [&[0, 3, 9, 1], &lanes.concat()[..]].concat()));
    let large = frame(Kind::Tell, encode(Kind::Tell, &large, LIMIT));
    all.push(("frames", "large".into(), [&[255, 100, 255, 7], &large[..], &lanes[0], &large].concat()));
    all.push(("hello", "first".into(), chosen([0; 8], &hello)));
    all.push(("hello", "again".into(), chosen([0, 1, 7, 1, 2, 7, 2, 0], &hello)));
    all.push(("hello", "newest".into(), chosen([0; 8], &newest)));
    all.push(("hello", "stale".into(), chosen([0, 0, 9, 2, 9, 7, 9, 0], &hello)));
    all.push(("hello", "welcome".into(), chosen([0, 1, 0, 0, 0, 0, 0, 1], &welcome)));
    all.push(("certificate", "node".into(), names(&["n1.node.test.phalanx"])));
    all.push(("certificate", "two".into(), names(&["n1.node.test.phalanx", "n2.node.test.phalanx"])));
    all.push(("certificate", "other".into(), names(&["localhost", "n1.rack2.node.test.phalanx"])));
    let long = format!("{}.node.test.phalanx", ["abcdefghi"; 25].join("."));
    all.push(("certificate", "long".into(), names(&[&long])));
    let own = rcgen::generate_simple_self_signed(vec!["n1.node.test.phalanx".into()]).expect("valid");
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("PKCS#8");
    let shown = reauth::prove(&[own.cert.der().clone()], &key, &PROOF_BINDING).expect("signs");
    all.push(("proof", "n1".into(), rmp_serde::to_vec(&shown).expect("encodes")));
    all.push(("datagram", "lease".into(), encode_datagram("agent/lease", b"42").expect("short").to_vec()));
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (target, name, bytes) in all {
        let path = root.join(target).join(name);
        // A certificate's key is another each time.
        let is_random = matches!(target, "certificate" | "proof");
        if std::env::var_os("PHALANX_WRITE_SEEDS").is_some() && !(is_random && path.exists()) {
            fs::create_dir_all(root.join(target)).expect("writable");
            fs::write(&path, &bytes).expect("writable");
        }
        let held = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // A certificate's key is another each time.
        assert!(
            matches!(target, "certificate" | "proof") || held == bytes,
            "{} is not what is sent today",
            path.display()
        );
    }
}
