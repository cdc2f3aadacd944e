//! The codec against well-formed, hostile and arbitrary bytes.

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 64 << 10;

fn tell(path: &str, body: &[u8]) -> Vec<u8> {
    let tell = Tell { path, name: "test/Message", version: 3, body };
    encode(Kind::Tell, &tell, LIMIT).expect("fits")
}

#[test]
fn a_frame_comes_out_as_it_went_in() {
    let mut decoder = Decoder::new(LIMIT);
    decoder.push(&tell("agent/pods", b"abc"));
    let frame = decoder.next().expect("valid").expect("whole");
    let tell: Tell<'_> = frame.read().expect("readable");
    assert_eq!((tell.path, tell.name, tell.version, tell.body), ("agent/pods", "test/Message", 3, &b"abc"[..]));
    assert_eq!(decoder.next(), Ok(None));
    assert!(decoder.is_at_boundary());
}

#[test]
fn a_body_is_bytes_on_the_wire_not_an_array_of_integers() {
    // 0xff as a MessagePack integer takes two bytes.
    assert!(tell("p", &[0xff; 1000]).len() < 1100);
}

#[test]
fn four_gigabytes_announced_are_refused_from_the_header_alone() {
    let mut decoder = Decoder::new(LIMIT);
    decoder.push(&[0xff, 0xff, 0xff, 0xff, PROTOCOL_VERSION, Kind::Tell as u8]);
    assert_eq!(decoder.next(), Err(FrameError::TooLarge { bytes: u32::MAX as usize, limit: LIMIT }));
    assert!(decoder.buffer.capacity() < 1024);
}

#[test]
fn a_length_below_the_header_is_refused() {
    let header = [0, 0, 0, 1, PROTOCOL_VERSION, Kind::Tell as u8];
    assert_eq!(Header::parse(header, LIMIT), Err(FrameError::TooShort(1)));
}

#[test]
fn another_version_and_an_unknown_kind_are_refused() {
    assert_eq!(Header::parse([0, 0, 0, 2, 9, 6], LIMIT), Err(FrameError::Version(9)));
    assert_eq!(Header::parse([0, 0, 0, 2, PROTOCOL_VERSION, 200], LIMIT), Err(FrameError::Kind(200)));
}

#[test]
fn a_message_over_the_limit_is_not_encoded() {
    let body = vec![0; LIMIT];
    let tell = Tell { path: "p", name: "n", version: 1, body: &body };
    assert!(matches!(encode(Kind::Tell, &tell, LIMIT), Err(EncodeError::TooLarge { limit: LIMIT, .. })));
}

#[test]
fn a_large_frame_among_small_ones_comes_out_whole_however_it_is_cut() {
    let bodies = [vec![1; 10], vec![2; LARGE_FRAME_BYTES + 1_000], vec![3; 20], vec![4; LARGE_FRAME_BYTES], vec![]];
    let bytes: Vec<u8> = bodies.iter().flat_map(|b| tell("a/b", b)).collect();
    for cut in [1, 7, 1_000, 32 << 10, bytes.len()] {
        let mut decoder = Decoder::new(LIMIT);
        let mut got = vec![];
        for piece in bytes.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next().expect("valid") {
                got.push(frame.read::<Tell<'_>>().expect("readable").body.to_vec());
            }
        }
        assert_eq!(got, bodies);
        assert!(decoder.is_at_boundary());
    }
}

proptest! {
    #[test]
    fn the_decoder_never_panics_on_arbitrary_bytes(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64)) {
        let mut decoder = Decoder::new(LIMIT);
        'stream: for piece in &pieces {
            decoder.push(piece);
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => read_as_everything(&frame),
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
            prop_assert!(decoder.held_bytes() <= LIMIT + HEADER_BYTES + 64);
        }
    }

    #[test]
    fn payloads_never_panic_on_arbitrary_bytes(payload in prop::collection::vec(any::<u8>(), 0..512), kind in 1u8..11) {
        let kind = Kind::parse(kind).expect("known");
        read_as_everything(&Frame { kind, payload: payload.into() });
    }

    #[test]
    fn frames_survive_any_cutting(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20), cut in 1usize..97) {
        let bytes: Vec<u8> = bodies.iter().flat_map(|b| tell("a/b", b)).collect();
        let mut decoder = Decoder::new(LIMIT);
        let mut got = vec![];
        for piece in bytes.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next().expect("valid") {
                got.push(frame.read::<Tell<'_>>().expect("readable").body.to_vec());
            }
        }
        prop_assert_eq!(got, bodies);
        prop_assert!(decoder.is_at_boundary());
    }

    #[test]
    fn a_flipped_byte_never_panics(body in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut bytes = tell("a/b", &body);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let mut decoder = Decoder::new(LIMIT);
        decoder.push(&bytes);
        if let Ok(Some(frame)) = decoder.next() {
            read_as_everything(&frame);
        }
    }
}

fn read_as_everything(frame: &Frame) {
    let _ = frame.read::<Tell<'_>>();
    let _ = frame.read::<Ask<'_>>();
    let _ = frame.read::<Reply<'_>>();
    let _ = frame.read::<Open<'_>>();
    let _ = frame.read::<MonitorPath<'_>>();
    let _ = frame.read::<crate::hello::Hello>();
    let _ = frame.read::<crate::hello::Welcome>();
    let _ = frame.read::<(u64, phalanx_actors::Exit)>();
}
