//! The two halves of a stream for a large body (logs, exec, snapshots), over QUIC or, to one's own node, in memory.
//! A half that is dropped before `finish` is a broken stream for the other side, never a short body.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
    sync::OwnedSemaphorePermit,
};

/// Buffer of an in-memory stream, each way.
const LOCAL_STREAM_BYTES: usize = 64 << 10;

/// QUIC error code of a stream that was dropped or reset.
const RESET_CODE: quinn::VarInt = quinn::VarInt::from_u32(1);

/// The writing half. Implements [`AsyncWrite`]; `shutdown` is `finish`. Dropped unfinished, it resets the stream.
#[derive(Debug)]
pub struct SendStream {
    inner: SendInner,
    finished: bool,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// The reading half. Implements [`AsyncRead`]; an end without `finish` on the other side is an error. Dropped, it tells
/// the other side to stop.
#[derive(Debug)]
pub struct RecvStream {
    inner: RecvInner,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

#[derive(Debug)]
enum SendInner {
    Local { pipe: tokio::io::WriteHalf<DuplexStream>, finished: Arc<AtomicBool> },
    Quic(quinn::SendStream),
}

#[derive(Debug)]
enum RecvInner {
    Local { pipe: tokio::io::ReadHalf<DuplexStream>, finished: Arc<AtomicBool> },
    Quic(quinn::RecvStream),
}

/// Both halves of one end.
pub(crate) type Ends = (SendStream, RecvStream);

pub(crate) fn quic(send: quinn::SendStream, recv: quinn::RecvStream, permit: Option<OwnedSemaphorePermit>) -> Ends {
    let permit = permit.map(Arc::new);
    (
        SendStream { inner: SendInner::Quic(send), finished: false, _permit: permit.clone() },
        RecvStream { inner: RecvInner::Quic(recv), _permit: permit },
    )
}

/// Two connected ends in this process.
pub(crate) fn local() -> (Ends, Ends) {
    // One pipe a direction, so that one direction can end while the other goes on.
    let (a_out, b_in) = tokio::io::duplex(LOCAL_STREAM_BYTES);
    let (b_out, a_in) = tokio::io::duplex(LOCAL_STREAM_BYTES);
    let (a_done, b_done) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let end = |out: DuplexStream, own: &Arc<AtomicBool>, input: DuplexStream, other: &Arc<AtomicBool>| {
        (
            SendStream {
                inner: SendInner::Local { pipe: tokio::io::split(out).1, finished: own.clone() },
                finished: false,
                _permit: None,
            },
            RecvStream {
                inner: RecvInner::Local { pipe: tokio::io::split(input).0, finished: other.clone() },
                _permit: None,
            },
        )
    };
    (end(a_out, &a_done, a_in, &b_done), end(b_out, &b_done, b_in, &a_done))
}

impl SendStream {
    /// Ends the body: the other side reads what was written and then the end.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.shutdown().await
    }

    /// Breaks the stream off: the other side gets an error at once.
    pub fn reset(self) {}
}

impl RecvStream {
    /// Reads to the end; more than `limit` bytes are an error.
    pub async fn read_to_end(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        (&mut *self).take(most).read_to_end(&mut body).await?;
        if body.len() > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("stream is longer than {limit} bytes")));
        }
        Ok(body)
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            SendInner::Local { pipe, .. } => Pin::new(pipe).poll_write(cx, buf),
            SendInner::Quic(stream) => AsyncWrite::poll_write(Pin::new(stream), cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            SendInner::Local { pipe, .. } => Pin::new(pipe).poll_flush(cx),
            SendInner::Quic(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        match &mut self.inner {
            SendInner::Local { pipe, finished } => {
                finished.store(true, Ordering::Release);
                ready!(Pin::new(pipe).poll_shutdown(cx))?;
            }
            SendInner::Quic(stream) => ready!(Pin::new(stream).poll_shutdown(cx))?,
        }
        self.finished = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            RecvInner::Local { pipe, finished } => {
                let before = buf.filled().len();
                ready!(Pin::new(pipe).poll_read(cx, buf))?;
                let ended = buf.filled().len() == before && buf.remaining() > 0;
                if ended && !finished.load(Ordering::Acquire) {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Ready(Ok(()))
            }
            RecvInner::Quic(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        if let SendInner::Quic(stream) = &mut self.inner
            && !self.finished
        {
            // Fails only when the stream is over anyway. Without it QUIC would finish the stream as if it were whole.
            let _ = stream.reset(RESET_CODE);
        }
    }
}

/// A QUIC stream that is reset, not finished, when dropped before `finish`: a request that is given up half way.
pub(crate) struct Resetting(Option<quinn::SendStream>);

impl Resetting {
    pub(crate) fn new(stream: quinn::SendStream) -> Self {
        Self(Some(stream))
    }

    pub(crate) async fn write(&mut self, bytes: bytes::Bytes) -> Result<(), quinn::WriteError> {
        match &mut self.0 {
            Some(stream) => stream.write_chunk(bytes).await,
            None => Err(quinn::WriteError::ClosedStream),
        }
    }

    pub(crate) fn finish(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // Fails only when the other side has stopped it.
            let _ = stream.finish();
        }
    }

    /// Gives the stream up to the caller, who takes over the duty.
    pub(crate) fn release(mut self) -> Option<quinn::SendStream> {
        self.0.take()
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if let Some(stream) = &mut self.0 {
            let _ = stream.reset(RESET_CODE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_stream_ends_whole_when_finished_and_broken_when_dropped() {
        let ((mut out, mut back), (mut far_out, mut far_in)) = local();
        out.write_all(b"hello").await.expect("open");
        out.finish().await.expect("open");
        assert_eq!(far_in.read_to_end(10).await.expect("whole"), b"hello");
        far_out.write_all(b"half").await.expect("open");
        drop(far_out);
        let error = back.read_to_end(10).await.expect_err("broken");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn reading_is_bounded() {
        let ((mut out, _back), (_far_out, mut far_in)) = local();
        out.write_all(b"hello").await.expect("open");
        out.finish().await.expect("open");
        assert!(far_in.read_to_end(4).await.is_err());
    }
}
