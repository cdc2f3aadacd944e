//! The frame codec: bytes in, frames out; no I/O. Must never panic or allocate for what a peer merely announces.
//!
//! ```text
//!  u32 big endian: bytes that follow │ version u8 │ kind u8 │ payload: MessagePack array
//! ```

use bytes::{Buf, Bytes, BytesMut};
use phalanx_actors::TRACEPARENT_LEN;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{decode, flow::Letter, outbox::Dialect, remote::Envelope};

/// Version of everything after the hello: which kinds of frames there are, and what is in them. Two nodes speak the newest
/// that both know. 2 added references: pids, links, signals, ranges of message versions and trace context. 3 added routes: tells
/// that name where they go by a number.
pub const PROTOCOL_VERSION: u8 = 3;

/// Oldest version that this build speaks. Payloads of version 1 are read strictly by builds that know no other.
pub(crate) const PROTOCOL_VERSION_MIN: u8 = 1;

/// First version with references to actors.
pub(crate) const REFERENCES_SINCE: u8 = 2;

/// First version with routes.
pub(crate) const ROUTES_SINCE: u8 = 3;

/// First version in which a new certificate is shown on an open connection.
pub(crate) const IDENTITY_SINCE: u8 = 2;

/// Version of the frame's header and of a datagram's. The same in all protocol versions, for the hello comes in a frame.
pub(crate) const FRAME_VERSION: u8 = 1;

/// Default of `Limits::frame_bytes`.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// A hello is small; before it nobody is trusted with more.
pub(crate) const MAX_HELLO_BYTES: usize = 4 << 10;

/// Longest path, and longest name of a message, in bytes: what a peer may have us keep beside bodies, which are counted.
pub(crate) const NAME_BYTES_MAX: usize = 512;

/// A payload up to this is copied out of the receive buffer; a larger one is gathered in memory of its own.
const LARGE_FRAME_BYTES: usize = 32 << 10;

/// Length, version and kind.
pub(crate) const HEADER_BYTES: usize = 6;

/// Bytes of the header that the length counts: version and kind.
const COUNTED_HEADER_BYTES: usize = 2;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Welcome = 2,
    Monitor = 3,
    Demonitor = 4,
    Down = 5,
    Tell = 6,
    Ask = 7,
    Reply = 8,
    Open = 9,
    Identity = 10,
    Signal = 11,
    Route = 12,
    Routed = 13,
    RoutedTraced = 14,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Monitor,
            4 => Self::Demonitor,
            5 => Self::Down,
            6 => Self::Tell,
            7 => Self::Ask,
            8 => Self::Reply,
            9 => Self::Open,
            10 => Self::Identity,
            11 => Self::Signal,
            12 => Self::Route,
            13 => Self::Routed,
            14 => Self::RoutedTraced,
            _ => return None,
        })
    }
}

/// A message without answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Tell<'a> {
    pub(crate) path: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: u16,
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) body: &'a [u8],
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) more: Option<More<'a>>,
}

/// What protocol version 2 has added to a message. Left out, which is the layout of version 1, where it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct More<'a> {
    /// Oldest version of the message that reads this one. Left out: its own version.
    pub(crate) version_min: u16,
    /// The incarnation that is meant. Left out: whichever there is.
    pub(crate) pid: Option<u64>,
    /// The span that it was sent in, as a W3C `traceparent`; one that cannot be read is none.
    pub(crate) trace: Option<&'a str>,
}

/// Since protocol version 3: where the tells of a lane go whose frames bear this number. Numbers count up from 0 on each lane.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Route<'a> {
    pub(crate) number: u32,
    pub(crate) path: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: u16,
    pub(crate) version_min: u16,
    pub(crate) pid: Option<u64>,
}

/// Since protocol version 3: a message without answer. Not MessagePack, for there are many of them:
/// ```text
///  u32 big endian: number of the route │ traceparent, 55 bytes, if the kind is `RoutedTraced` │ body
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Routed<'a> {
    pub(crate) number: u32,
    pub(crate) trace: Option<&'a str>,
    pub(crate) body: &'a [u8],
}

impl<'a> Routed<'a> {
    /// Reads a payload. `None`: it is too short, or of another kind.
    pub(crate) fn parse(kind: Kind, payload: &'a [u8]) -> Option<Self> {
        let (number, rest) = payload.split_first_chunk::<4>()?;
        let (trace, body) = match kind {
            Kind::Routed => (None, rest),
            Kind::RoutedTraced => {
                let (trace, body) = rest.split_at_checked(TRACEPARENT_LEN)?;
                // One that cannot be read is none.
                (std::str::from_utf8(trace).ok(), body)
            }
            _ => return None,
        };
        Some(Self { number: u32::from_be_bytes(*number), trace, body })
    }
}

/// A message with answer, alone on its stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask<'a> {
    pub(crate) path: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: u16,
    /// What is left of the asker's deadline.
    pub(crate) deadline_ms: u64,
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) body: &'a [u8],
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(crate) more: Option<More<'a>>,
}

/// The answer to an ask or to an open.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply<'a> {
    pub(crate) status: u8,
    /// The encoded reply, or the error's text.
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) body: &'a [u8],
}

/// Values of `Reply::status`.
pub(crate) mod status {
    pub(crate) const OK: u8 = 0;
    pub(crate) const NO_PROC: u8 = 1;
    pub(crate) const UNKNOWN_MESSAGE: u8 = 2;
    pub(crate) const BAD_MESSAGE: u8 = 3;
    pub(crate) const FAILED: u8 = 4;
    pub(crate) const TIMEOUT: u8 = 5;
    /// Since protocol version 2, to asks with a pid: the body is the exit.
    pub(crate) const EXITED: u8 = 6;
    /// Since protocol version 2, to asks with a pid.
    pub(crate) const NO_REPLY: u8 = 7;
}

/// The head of a stream; raw bytes follow once the other side has replied.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Open<'a> {
    pub(crate) path: &'a str,
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) header: &'a [u8],
}

/// Watch a path; answered by one `Down` with the same id.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MonitorPath<'a> {
    pub(crate) id: u64,
    pub(crate) path: &'a str,
    /// Since protocol version 2: the incarnation that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u64>,
}

/// Since protocol version 2: what reaches an actor outside its mailbox, from an actor or from whoever refers to it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Signal<'a> {
    pub(crate) path: &'a str,
    /// Left out: whichever incarnation there is.
    pub(crate) pid: Option<u64>,
    /// The actor that it is from, for links.
    pub(crate) from: Option<(&'a str, u64)>,
    /// One of `signal`; others are ignored.
    pub(crate) what: u8,
    /// The encoded exit of a stop or an exit; empty else.
    #[serde(borrow, with = "serde_bytes")]
    pub(crate) reason: &'a [u8],
}

/// Values of `Signal::what`.
pub(crate) mod signal {
    pub(crate) const STOP: u8 = 0;
    pub(crate) const KILL: u8 = 1;
    pub(crate) const LINK: u8 = 2;
    pub(crate) const UNLINK: u8 = 3;
    /// `from` has exited.
    pub(crate) const EXIT: u8 = 4;
}

/// Why a frame, and with it the connection, is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    #[error("frame of {bytes} bytes announced, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("frame of {0} bytes announced, too short to be one")]
    TooShort(usize),
    #[error("frame of version {0}, expected {FRAME_VERSION}")]
    Version(u8),
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("a {0:?} frame does not belong here")]
    Unexpected(Kind),
    #[error("{kind:?} frame cannot be read: {reason}")]
    Payload { kind: Kind, reason: String },
    #[error("the certificate shown on the open connection is not to be believed: {0}")]
    Identity(String),
    #[error("path or message name of {0} bytes, the limit is {NAME_BYTES_MAX}")]
    NameTooLong(usize),
    #[error("route {0} is not one that was announced, or announced out of turn, or one too many")]
    Route(u32),
    #[error("more than {0} links with actors here")]
    Links(usize),
    #[error("a link with an actor whose path is of {bytes} bytes, the limit is {limit}")]
    LinkPath { bytes: usize, limit: usize },
    #[error("stream ended inside a frame")]
    Truncated,
}

/// Refuses paths and names that are too long.
pub(crate) fn check_names<const N: usize>(names: [&str; N]) -> Result<(), FrameError> {
    match names.into_iter().map(str::len).max() {
        Some(longest) if longest > NAME_BYTES_MAX => Err(FrameError::NameTooLong(longest)),
        _ => Ok(()),
    }
}

/// Why a message was not made into a frame.
#[derive(Debug)]
pub(crate) enum EncodeError {
    TooLarge { bytes: usize, limit: usize },
    Unencodable(String),
}

/// A parsed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) payload_bytes: usize,
}

impl Header {
    /// Checks everything that can be checked before a byte of payload is read.
    pub(crate) fn parse(bytes: [u8; HEADER_BYTES], limit: usize) -> Result<Self, FrameError> {
        let [a, b, c, d, version, kind] = bytes;
        let announced = u32::from_be_bytes([a, b, c, d]) as usize;
        if announced > limit {
            return Err(FrameError::TooLarge { bytes: announced, limit });
        }
        let payload_bytes = announced.checked_sub(COUNTED_HEADER_BYTES).ok_or(FrameError::TooShort(announced))?;
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = Kind::parse(kind).ok_or(FrameError::Kind(kind))?;
        Ok(Self { kind, payload_bytes })
    }
}

/// One frame; the payload owns its bytes and no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
}

impl Frame {
    /// Reads the payload as a `T` that borrows from it.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, FrameError> {
        read_payload(self.kind, &self.payload)
    }
}

fn read_payload<'a, T: Deserialize<'a>>(kind: Kind, payload: &'a [u8]) -> Result<T, FrameError> {
    decode::from_slice(payload).map_err(|e| FrameError::Payload { kind, reason: e.to_string() })
}

/// Encodes one frame, at most `limit` bytes after the length field.
pub(crate) fn encode<T: Serialize>(kind: Kind, payload: &T, limit: usize) -> Result<Vec<u8>, EncodeError> {
    let mut out = vec![];
    put(&mut out, kind, payload, limit)?;
    Ok(out)
}

/// Appends one frame, at most `limit` bytes after the length field; or nothing.
fn put<T: Serialize>(out: &mut Vec<u8>, kind: Kind, payload: &T, limit: usize) -> Result<(), EncodeError> {
    let begins = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, FRAME_VERSION, kind as u8]);
    let written = rmp_serde::encode::write(out, payload).map_err(|e| EncodeError::Unencodable(e.to_string()));
    let counted = out.len() - begins - (HEADER_BYTES - COUNTED_HEADER_BYTES);
    let sized = written.and_then(|()| {
        let length = u32::try_from(counted).ok().filter(|_| counted <= limit);
        length.ok_or(EncodeError::TooLarge { bytes: counted, limit })
    });
    match sized {
        Ok(length) => out[begins..begins + 4].copy_from_slice(&length.to_be_bytes()),
        Err(_) => out.truncate(begins),
    }
    sized.map(drop)
}

/// Refuses what a peer would refuse.
pub(crate) fn check_sent(path: &str, name: &str) -> Result<(), EncodeError> {
    let bytes = path.len().max(name.len());
    if bytes > NAME_BYTES_MAX {
        return Err(EncodeError::TooLarge { bytes, limit: NAME_BYTES_MAX });
    }
    Ok(())
}

/// Appends a message with its route in full.
pub(crate) fn put_tell(out: &mut Vec<u8>, letter: &Letter<'_>, dialect: Dialect) -> Result<(), EncodeError> {
    let Letter { path, message, pid, trace, body } = *letter;
    check_sent(path, message.name)?;
    let says_something = pid.is_some() || trace.is_some() || message.version_min != message.version;
    let more = (dialect.references && says_something).then_some(More { version_min: message.version_min, pid, trace });
    let tell = Tell { path, name: message.name, version: message.version, body, more };
    put(out, Kind::Tell, &tell, dialect.frame_bytes)
}

/// Most bytes of a route's frame beside its texts.
pub(crate) const ROUTE_HEAD_BYTES: usize = 48;

/// Appends the number of a letter's route. Whoever gives numbers sees to it that the frame is not too long.
pub(crate) fn put_route(out: &mut Vec<u8>, number: u32, letter: &Letter<'_>) {
    let Letter { path, message, pid, .. } = *letter;
    let Envelope { name, version, version_min } = message;
    let route = Route { number, path, name, version, version_min, pid };
    // It is numbers and texts.
    let _ = put(out, Kind::Route, &route, usize::MAX);
}

/// Appends a message by the number of its route.
pub(crate) fn put_routed(out: &mut Vec<u8>, number: u32, letter: &Letter<'_>, limit: usize) -> Result<(), EncodeError> {
    let trace = letter.trace.filter(|trace| trace.len() == TRACEPARENT_LEN);
    let kind = if trace.is_some() { Kind::RoutedTraced } else { Kind::Routed };
    let counted = COUNTED_HEADER_BYTES + 4 + trace.map_or(0, str::len) + letter.body.len();
    let length = u32::try_from(counted).ok().filter(|_| counted <= limit);
    let [a, b, c, d] = length.ok_or(EncodeError::TooLarge { bytes: counted, limit })?.to_be_bytes();
    let [e, f, g, h] = number.to_be_bytes();
    out.extend_from_slice(&[a, b, c, d, FRAME_VERSION, kind as u8, e, f, g, h]);
    out.extend_from_slice(trace.unwrap_or_default().as_bytes());
    out.extend_from_slice(letter.body);
    Ok(())
}

/// Cuts a lane's bytes into frames, whatever pieces they arrive in. Each payload owns exactly its own bytes: a small
/// message that waits for a slow handler must not hold the megabytes that came along with it.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// What is cut into small frames; used again and again.
    buffer: BytesMut,
    /// Bytes at its begin that were given out as a frame.
    given: usize,
    /// The large frame that is arriving; until it is whole the buffer is empty.
    large: Option<Large>,
    limit: usize,
}

/// A frame as it lies in a decoder.
#[derive(Debug)]
pub(crate) enum View<'a> {
    /// Its kind and payload, until the decoder is asked again.
    Small(Kind, &'a [u8]),
    Large(Frame),
}

impl View<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Small(kind, _) => *kind,
            Self::Large(frame) => frame.kind,
        }
    }

    pub(crate) fn payload(&self) -> &[u8] {
        match self {
            Self::Small(_, payload) => payload,
            Self::Large(frame) => &frame.payload,
        }
    }

    /// Reads the payload as a `T` that borrows from it.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, FrameError> {
        read_payload(self.kind(), self.payload())
    }
}

/// A frame over `LARGE_FRAME_BYTES`, gathered in memory of its own.
#[derive(Debug)]
struct Large {
    header: Header,
    payload: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), given: 0, large: None, limit }
    }

    /// Holds at most one frame and the piece that was just pushed, if `next` is called until it gives nothing.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let rest = match &mut self.large {
            Some(large) => large.take(piece),
            None => piece,
        };
        self.buffer.extend_from_slice(rest);
    }

    /// As `view`, with bytes of its own.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        Ok(self.view()?.map(|frame| match frame {
            View::Small(kind, payload) => Frame { kind, payload: Bytes::copy_from_slice(payload) },
            View::Large(frame) => frame,
        }))
    }

    /// The next whole frame; `None` until more bytes come. A small one is not copied.
    pub(crate) fn view(&mut self) -> Result<Option<View<'_>>, FrameError> {
        self.buffer.advance(std::mem::take(&mut self.given));
        if self.large.is_none() {
            let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = Header::parse(*header, self.limit)?;
            if header.payload_bytes <= LARGE_FRAME_BYTES {
                let end = HEADER_BYTES + header.payload_bytes;
                let Some(payload) = self.buffer.get(HEADER_BYTES..end) else {
                    return Ok(None);
                };
                self.given = end;
                return Ok(Some(View::Small(header.kind, payload)));
            }
            self.buffer.advance(HEADER_BYTES);
            let mut large = Large { header, payload: Vec::new() };
            let taken = self.buffer.len() - large.take(&self.buffer).len();
            self.buffer.advance(taken);
            self.large = Some(large);
        }
        match self.large.take_if(|large| large.missing() == 0) {
            Some(Large { header, payload }) => {
                Ok(Some(View::Large(Frame { kind: header.kind, payload: payload.into_boxed_slice().into() })))
            }
            None => Ok(None),
        }
    }

    /// Whether the bytes so far end on a frame's end.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.buffer.len() == self.given && self.large.is_none()
    }

    /// Bytes that are held for frames to come.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.buffer.len() - self.given + self.large.as_ref().map_or(0, |large| large.payload.len())
    }
}

impl Large {
    fn missing(&self) -> usize {
        self.header.payload_bytes - self.payload.len()
    }

    /// Takes what belongs to the frame and gives the rest. Memory grows with what has arrived, not with what was announced.
    fn take<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let (own, rest) = piece.split_at(piece.len().min(self.missing()));
        self.payload.extend_from_slice(own);
        rest
    }
}

#[cfg(test)]
#[path = "frame_test.rs"]
mod tests;
