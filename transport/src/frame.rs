//! The frame codec: bytes in, frames out; no I/O. Must never panic or allocate for what a peer merely announces.
//!
//! ```text
//!  u32 big endian: bytes that follow │ version u8 │ kind u8 │ payload: MessagePack array
//! ```

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Version of everything after the hello. The hello itself never changes its layout.
pub const PROTOCOL_VERSION: u8 = 1;

/// Oldest version that this build speaks.
pub(crate) const PROTOCOL_VERSION_MIN: u8 = 1;

/// Default of `Limits::frame_bytes`.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// A hello is small; before it nobody is trusted with more.
pub(crate) const MAX_HELLO_BYTES: usize = 4 << 10;

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
}

/// Why a frame, and with it the connection, is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum FrameError {
    #[error("frame of {bytes} bytes announced, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("frame of {0} bytes announced, too short to be one")]
    TooShort(usize),
    #[error("frame of version {0}, expected {PROTOCOL_VERSION}")]
    Version(u8),
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("a {0:?} frame does not belong here")]
    Unexpected(Kind),
    #[error("{kind:?} frame cannot be read: {reason}")]
    Payload { kind: Kind, reason: String },
    #[error("the certificate shown on the open connection is not to be believed: {0}")]
    Identity(String),
    #[error("stream ended inside a frame")]
    Truncated,
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
        if version != PROTOCOL_VERSION {
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
        rmp_serde::from_slice(&self.payload).map_err(|e| FrameError::Payload { kind: self.kind, reason: e.to_string() })
    }
}

/// Encodes one frame, at most `limit` bytes after the length field.
pub(crate) fn encode<T: Serialize>(kind: Kind, payload: &T, limit: usize) -> Result<Vec<u8>, EncodeError> {
    let mut out = vec![0, 0, 0, 0, PROTOCOL_VERSION, kind as u8];
    rmp_serde::encode::write(&mut out, payload).map_err(|e| EncodeError::Unencodable(e.to_string()))?;
    let counted = out.len() - (HEADER_BYTES - COUNTED_HEADER_BYTES);
    match u32::try_from(counted) {
        Ok(length) if counted <= limit => {
            out[..4].copy_from_slice(&length.to_be_bytes());
            Ok(out)
        }
        _ => Err(EncodeError::TooLarge { bytes: counted, limit }),
    }
}

/// Cuts a lane's bytes into frames, whatever pieces they arrive in. Each payload owns exactly its own bytes: a small
/// message that waits for a slow handler must not hold the megabytes that came along with it.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// What is cut into small frames; used again and again.
    buffer: BytesMut,
    /// The large frame that is arriving; until it is whole the buffer is empty.
    large: Option<Large>,
    limit: usize,
}

/// A frame over `LARGE_FRAME_BYTES`, gathered in memory of its own.
#[derive(Debug)]
struct Large {
    header: Header,
    payload: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), large: None, limit }
    }

    /// Holds at most one frame and the piece that was just pushed, if `next` is called until it gives nothing.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let rest = match &mut self.large {
            Some(large) => large.take(piece),
            None => piece,
        };
        self.buffer.extend_from_slice(rest);
    }

    /// The next whole frame; `None` until more bytes come.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.large.is_none() {
            let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = Header::parse(*header, self.limit)?;
            if header.payload_bytes <= LARGE_FRAME_BYTES {
                if self.buffer.len() < HEADER_BYTES + header.payload_bytes {
                    return Ok(None);
                }
                self.buffer.advance(HEADER_BYTES);
                let payload = Bytes::copy_from_slice(&self.buffer[..header.payload_bytes]);
                self.buffer.advance(header.payload_bytes);
                return Ok(Some(Frame { kind: header.kind, payload }));
            }
            self.buffer.advance(HEADER_BYTES);
            let mut large = Large { header, payload: Vec::new() };
            let taken = self.buffer.len() - large.take(&self.buffer).len();
            self.buffer.advance(taken);
            self.large = Some(large);
        }
        match self.large.take_if(|large| large.missing() == 0) {
            Some(Large { header, payload }) => {
                Ok(Some(Frame { kind: header.kind, payload: payload.into_boxed_slice().into() }))
            }
            None => Ok(None),
        }
    }

    /// Whether the bytes so far end on a frame's end.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.buffer.is_empty() && self.large.is_none()
    }

    /// Bytes that are held for frames to come.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.buffer.len() + self.large.as_ref().map_or(0, |large| large.payload.len())
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
