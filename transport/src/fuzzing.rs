//! What the fuzz targets of `fuzz/` call, and a stable test over their seeds: each function takes arbitrary bytes as a
//! peer could send them, and panics when something that must hold does not. No part of the crate's API.

use bytes::Bytes;
use rustls::pki_types::CertificateDer;

use crate::{
    endpoint::{encode_datagram, parse_datagram},
    flow::{self, Letter},
    frame::{
        Ask, Decoder, Frame, FrameError, HEADER_BYTES, Kind, MonitorPath, Open, PROTOCOL_VERSION, Reply, Route, Routed,
        Signal, Tell, encode, put_routed,
    },
    groups::News,
    hello::{Hello, Me, Origin, Verdict, View, Welcome},
    reauth::{self, Proof},
    remote::Envelope,
    tls::{node_of, window_of},
};

/// Small, so that the fuzzer meets the limit and frames of both sizes.
const LIMIT: usize = 48 << 10;

const CLUSTER: &str = "test";

/// A lane's bytes, in pieces whose sizes the first bytes choose: however they are cut, the same frames come out, then the
/// same error; no more is held than one frame and one piece; what can be read is written and read again the same.
pub fn frames(data: &[u8]) {
    let (cuts, bytes) = data.split_at(data.len().min(4));
    let whole = decode(bytes, &[]);
    let pieces = decode(bytes, cuts);
    assert_eq!(whole, pieces, "cutting changed what was read");
    for frame in &whole.0 {
        read(frame);
    }
}

/// Frames, then the error that ended them or whether the bytes ended with a frame.
type Decoded = (Vec<Frame>, Result<bool, FrameError>);

fn decode(bytes: &[u8], cuts: &[u8]) -> Decoded {
    let mut decoder = Decoder::new(LIMIT);
    let mut frames = vec![];
    let mut rest = bytes;
    let mut turn = 0;
    while !rest.is_empty() {
        let cut = match cuts.get(turn % cuts.len().max(1)) {
            Some(cut) => (usize::from(*cut) * 37 + 1).min(rest.len()),
            None => rest.len(),
        };
        turn += 1;
        let piece;
        (piece, rest) = rest.split_at(cut);
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(decoder.held_bytes() <= HEADER_BYTES + LIMIT, "holds {} bytes", decoder.held_bytes());
    }
    (frames, Ok(decoder.is_at_boundary()))
}

/// What can be read can be written, and reads as the same.
macro_rules! again {
    ($frame:expr, $($message:ty),+) => {$(
        if let Ok(read) = $frame.read::<$message>() {
            // MessagePack knows several encodings of one value, so the second writing is held against the first.
            let first = encode($frame.kind, &read, usize::MAX).expect("what was read can be written");
            let copy = whole(&first);
            let read = copy.read::<$message>().expect("what was written can be read");
            let second = encode(copy.kind, &read, usize::MAX).expect("what was read can be written");
            assert_eq!(first, second, "written and read again it is another message");
        }
    )+};
}

fn whole(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::new(u32::MAX as usize);
    decoder.push(bytes);
    let frame = decoder.next().expect("valid").expect("whole");
    assert!(decoder.is_at_boundary());
    frame
}

/// Reads a frame as each message that it could be taken for, on the lanes and on a stream of its own.
fn read(frame: &Frame) {
    again!(frame, Tell<'_>, Ask<'_>, Reply<'_>, Open<'_>, MonitorPath<'_>, Signal<'_>);
    again!(frame, Proof<'_>, (u64,), (u64, phalanx_actors::Exit), Hello, Welcome);
    again!(frame, Route<'_>);
    if let Some(Routed { number, trace, body }) = Routed::parse(frame.kind, &frame.payload) {
        let message = Envelope { name: "m", version: 1, version_min: 1 };
        let mut written = vec![];
        put_routed(&mut written, number, &Letter { path: "p", message, pid: None, trace, body }, usize::MAX)
            .expect("what was read can be written");
        let copy = whole(&written);
        let again = Routed::parse(copy.kind, &copy.payload);
        assert_eq!(again, Some(Routed { number, trace, body }), "written and read again it is another message");
    }
    let _ = crate::decode::from_slice::<News<'_>>(&frame.payload);
    if let Ok(tell) = frame.read::<Tell<'_>>() {
        let _ = rmp_serde::from_slice::<flow::Signal>(tell.body);
    }
    // What a handler does with a body of its own type.
    let _ = rmp_serde::from_slice::<(Vec<u32>, String, Option<Box<phalanx_actors::Exit>>)>(&frame.payload);
}

/// The hello after TLS, from both sides: the first bytes choose what is known of the peer and whom its certificate names,
/// the rest is what it says. Whoever is let in is who its certificate says, of this cluster, in a common version, and
/// not an older boot than one seen.
pub fn hello(data: &[u8]) {
    let Some((choice, said)) = data.split_first_chunk::<8>() else {
        return;
    };
    let [certified, sent, newest, up, up_dial, accepted_boot, accepted_dial, side] = *choice;
    let me = Me { cluster: CLUSTER.into(), node: "m".into(), incarnation: 5, protocol_max: PROTOCOL_VERSION };
    let certified = ["a", "m", "z", "n1.rack2"][usize::from(certified % 4)];
    let view = View {
        newest: (newest > 0).then_some(u64::from(newest)),
        hello_sent: sent & 1 == 1,
        up: (up > 0).then_some(Origin { dialed_by_us: up & 1 == 1, dial: u64::from(up_dial) }),
        accepted: (u64::from(accepted_boot), u64::from(accepted_dial)),
    };
    let mut decoder = Decoder::new(crate::frame::MAX_HELLO_BYTES);
    decoder.push(said);
    let Ok(Some(frame)) = decoder.next() else {
        return;
    };
    let is_current = |incarnation: u64| view.newest.is_none_or(|newest| incarnation >= newest);
    match (frame.kind, side & 1) {
        (Kind::Hello, 0) => {
            let Ok(hello) = frame.read::<Hello>() else {
                return;
            };
            let verdict = me.judge_hello(certified, &hello, view);
            if matches!(verdict, Verdict::Refuse(_)) {
                return;
            }
            assert_eq!((&*hello.cluster, &*hello.node), (CLUSTER, certified));
            assert_ne!(certified, "m", "let itself in");
            assert!(is_current(hello.incarnation));
            assert!(hello.version_min <= hello.version_max);
            match verdict {
                Verdict::Accept(welcome) => {
                    assert!((hello.version_min..=hello.version_max).contains(&welcome.version));
                    // What we say to that, the other side understands and takes.
                    let dialer = Me {
                        cluster: CLUSTER.into(),
                        node: certified.into(),
                        incarnation: hello.incarnation,
                        protocol_max: PROTOCOL_VERSION,
                    };
                    assert_eq!(dialer.judge_welcome("m", &welcome, View::default()), Ok(()));
                }
                Verdict::Duplicate => assert!(view.hello_sent || view.up.is_some(), "of what is it a duplicate?"),
                Verdict::Refuse(_) => {}
            }
        }
        (Kind::Welcome, _) => {
            let Ok(welcome) = frame.read::<Welcome>() else {
                return;
            };
            if me.judge_welcome(certified, &welcome, view).is_ok() {
                assert_eq!((&*welcome.cluster, &*welcome.node), (CLUSTER, certified));
                assert_ne!(certified, "m", "let itself in");
                assert!(is_current(welcome.incarnation));
            }
        }
        _ => {}
    }
}

/// A certificate as it comes out of the handshake. Whoever is found in it has the name of a node, as RFC 1123 has it, and
/// one that can be dialed.
pub fn certificate(data: &[u8]) {
    let Ok(node) = node_of(&CertificateDer::from(data), CLUSTER) else {
        return;
    };
    assert!(node.len() + ".node.test.phalanx".len() <= 253, "{node}");
    for label in node.split('.') {
        assert!((1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-'), "{node}");
        assert!(label.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-')), "{node}");
    }
    // The name is there, letter by letter.
    let name = format!("{node}.node.test.phalanx");
    assert!(data.windows(name.len()).any(|window| window == name.as_bytes()), "{node} out of nowhere");
    let _ = window_of(&CertificateDer::from(data));
}

/// A certificate shown on an open connection, as the payload of its frame. Nobody but the owner of a key can prove
/// anything, so every proof that the fuzzer finds is a finding, but for the one of the seeds.
pub fn proof(data: &[u8]) {
    if let Ok(proof) = rmp_serde::from_slice::<Proof<'_>>(data)
        && let Ok(chain) = reauth::check(&proof, &PROOF_BINDING)
    {
        assert!(chain.len() <= reauth::CHAIN_MAX);
        let node = node_of(&chain[0], CLUSTER);
        assert_eq!(node.as_deref(), Ok("n1"), "proven without a key");
    }
}

/// The connection that the seed of `proof` was made for.
const PROOF_BINDING: [u8; reauth::BINDING_BYTES] = [7; reauth::BINDING_BYTES];

/// A datagram: what can be read is written the same.
pub fn datagram(data: &[u8]) {
    let datagram = Bytes::copy_from_slice(data);
    if let Some((path, body)) = parse_datagram(&datagram) {
        assert_eq!(encode_datagram(path, &body).as_ref(), Some(&datagram));
    }
}

#[cfg(test)]
#[path = "fuzzing_test.rs"]
mod tests;
