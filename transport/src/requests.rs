//! A peer's asks and opens: accepted and read on the transport's thread, handled on the handlers' runtime, answered on the stream
//! that they came on. Asks that came together go to a handlers' thread together, and their replies come back together: each by itself
//! would wake the other thread, and fight with it for the connection.
//!
//! Must never run a handler on the transport's thread, nor handle for an asker who is gone or whose deadline has passed. Run by `link`.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, AbortRegistration, Abortable},
    stream::FuturesUnordered,
};
use quinn::VarInt;
use tokio::{
    runtime::RuntimeFlavor,
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    ask::deadline_in,
    driven::sending_at_once,
    frame::{Ask, Frame, FrameError, Kind, Open, check_names, status},
    guard::guarded,
    link::{BODY_PRIORITY, Context, MESSAGE_PRIORITY, ReadFrameError, read_header, read_payload, take_end, units},
    peer::Counters,
    stream::{self, Resetting},
};

/// Asks that are handed over together at most, and replies that are written together; what comes beyond goes with the next.
const TOGETHER_MAX: usize = 64;

/// Takes what the peer opens, until the connection is lost.
pub(crate) async fn accept_streams(c: Context) {
    while let Ok(first) = c.link.conn.accept_bi().await {
        let mut asks = vec![];
        let mut next = Some(first);
        while let Some((send, recv)) = next {
            asks.extend(accept(&c, send, recv));
            let more = asks.len() < TOGETHER_MAX;
            next = more.then(|| c.link.conn.accept_bi().now_or_never()).flatten().and_then(Result::ok);
        }
        hand_over(&c, asks);
    }
}

/// Until when an ask is handled. The asker's own clock is to ring first, so that it knows what has happened; clocks differ by less than a
/// thousandth.
fn end_of(within: Duration) -> Instant {
    deadline_in(within.saturating_add(within / 1_000))
}

/// An ask that was read; ends when the asker is gone.
struct Arrived {
    send: Resetting,
    frame: Frame,
    budget: Option<OwnedSemaphorePermit>,
    wanted: AbortRegistration,
}

/// Reads a request; gives an ask that has arrived as a whole.
fn accept(c: &Context, send: quinn::SendStream, recv: quinn::RecvStream) -> Option<Arrived> {
    // What is done with the stream here, its handler's thread need not wait for the transport's to do.
    let _ = send.set_priority(MESSAGE_PRIORITY);
    let given_up = send.stopped();
    let send = Resetting::new(send);
    // Bounded by the stream limit that QUIC keeps for us.
    let mut request = Box::pin(read_request(c.clone(), recv));
    // Mostly it came with the packet that opened the stream, and need not be read by another thread.
    match (&mut request).now_or_never() {
        None => {
            c.node.handlers.spawn(read_and_serve(c.clone(), send, request, given_up));
            None
        }
        Some(Ok(Request::Ask(frame, budget, within))) => {
            let (abort, wanted) = AbortHandle::new_pair();
            c.node.driver.spawn(async move {
                // Ready at the latest when the reply was acknowledged.
                let _ = timeout_at(end_of(within), given_up).await;
                abort.abort();
            });
            Some(Arrived { send, frame, budget, wanted })
        }
        // Of a body the two halves end each by itself.
        Some(Ok(Request::Open(frame, budget, recv))) => {
            c.node.handlers.spawn(serve_open(c.clone(), frame, budget, send, recv));
            None
        }
        Some(Err(error)) => {
            refuse(c, error);
            None
        }
    }
}

/// Has asks handled: together where there is one thread for all, each by itself where there are several.
fn hand_over(c: &Context, asks: Vec<Arrived>) {
    let handlers = &c.node.handlers;
    if asks.len() > 1 && handlers.runtime_flavor() == RuntimeFlavor::CurrentThread {
        let answering: FuturesUnordered<_> = asks
            .into_iter()
            .map(|ask| Abortable::new(answer(c.clone(), ask.frame, ask.budget, ask.send), ask.wanted))
            .collect();
        handlers.spawn(answer_together(c.clone(), answering));
        return;
    }
    for ask in asks {
        handlers.spawn(Abortable::new(serve_ask(c.clone(), ask.frame, ask.budget, ask.send), ask.wanted));
    }
}

/// A reply on its way to its stream.
struct Answer {
    send: Resetting,
    reply: Bytes,
    /// Held until QUIC has taken the reply, for which the asker has to read.
    budget: Option<OwnedSemaphorePermit>,
}

impl Answer {
    async fn write(mut self, c: &Context) {
        Counters::add(&c.link.counters.sent);
        if self.send.write(self.reply).await.is_ok() {
            self.send.finish();
        }
        drop(self.budget);
    }
}

/// Handles an ask. Gives nothing when the peer is not to hear any more.
async fn answer(c: Context, frame: Frame, budget: Option<OwnedSemaphorePermit>, send: Resetting) -> Option<Answer> {
    if c.link.is_cast_out() {
        return None;
    }
    let answered = async {
        let ask: Ask<'_> = frame.read()?;
        check_names([ask.path, ask.name])?;
        Counters::add(&c.link.counters.received);
        let body = frame.payload.slice_ref(ask.body);
        let (status, body) = c.node.answer(c.link.peer.clone(), &ask, body).await;
        let limit = c.node.limits.reply_bytes;
        let budget = c.link.reply_budget.clone().try_acquire_many_owned(units(body.len(), limit)).ok();
        let reply = match &budget {
            Some(_) => c.node.encode_reply(status, &body),
            None => {
                let text =
                    format!("{limit} bytes of replies to {} wait to be read: ask for less at a time", c.link.peer.node);
                c.node.encode_reply(status::FAILED, text.as_bytes())
            }
        };
        Ok::<_, FrameError>((reply, budget))
    };
    let answered = answered.await;
    drop(budget);
    match answered {
        Ok((reply, budget)) => Some(Answer { send, reply, budget }),
        Err(error) => {
            c.link.violation(&error);
            None
        }
    }
}

async fn serve_ask(c: Context, frame: Frame, budget: Option<OwnedSemaphorePermit>, send: Resetting) {
    let handling = Handling::new(&c.link.handling, 1);
    let Some(answer) = answer(c.clone(), frame, budget, send).await else {
        return;
    };
    // One of many goes with the next packets of the transport's thread.
    if handling.is_alone() {
        sending_at_once(answer.write(&c)).await;
    } else {
        answer.write(&c).await;
    }
}

/// Handles asks that came together; whatever replies are there at the same time are written by one task of the transport's thread.
async fn answer_together<F>(c: Context, answering: FuturesUnordered<Abortable<F>>)
where
    F: Future<Output = Option<Answer>> + Send,
{
    let _handling = Handling::new(&c.link.handling, answering.len());
    let mut answers = answering.ready_chunks(TOGETHER_MAX);
    loop {
        // What an ask holds may panic when it is dropped with it, which is not the others' fault.
        let Ok(next) = AssertUnwindSafe(answers.next()).catch_unwind().await else {
            continue;
        };
        let Some(next) = next else {
            return;
        };
        let answers: Vec<Answer> = next.into_iter().filter_map(|answer| answer.ok().flatten()).collect();
        let c = c.clone();
        c.node.driver.clone().spawn(async move {
            let writing: FuturesUnordered<_> = answers.into_iter().map(|answer| answer.write(&c)).collect();
            writing.for_each(|()| async {}).await;
        });
    }
}

/// Asks of the peer that are being handled.
struct Handling<'a> {
    all: &'a AtomicUsize,
    these: usize,
}

impl<'a> Handling<'a> {
    fn new(all: &'a AtomicUsize, these: usize) -> Self {
        all.fetch_add(these, Ordering::Relaxed);
        Self { all, these }
    }

    fn is_alone(&self) -> bool {
        self.all.load(Ordering::Relaxed) == 1
    }
}

impl Drop for Handling<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.these, Ordering::Relaxed);
    }
}

/// A request that did not come with its first packet.
async fn read_and_serve(
    c: Context,
    send: Resetting,
    request: impl Future<Output = Result<Request, ReadFrameError>>,
    given_up: impl Future<Output = Result<Option<VarInt>, quinn::StoppedError>>,
) {
    let within = Duration::from_millis(c.node.timings.request_read_ms);
    // Too slow is as good as gone.
    match timeout(within, request).await.unwrap_or(Err(ReadFrameError::Gone)) {
        Ok(Request::Ask(frame, budget, within)) => {
            tokio::select! {
                biased;
                () = serve_ask(c, frame, budget, send) => {}
                _ = timeout_at(end_of(within), given_up) => {}
            }
        }
        Ok(Request::Open(frame, budget, recv)) => serve_open(c, frame, budget, send, recv).await,
        Err(error) => refuse(&c, error),
    }
}

/// A request that is none, or that nobody waits for: its stream is dropped.
fn refuse(c: &Context, error: ReadFrameError) {
    match error {
        ReadFrameError::Frame(error) => c.link.violation(&error),
        // The asker gave up, was too slow, or the connection is lost.
        ReadFrameError::Gone => {}
    }
}

/// A request and its place in the budget.
enum Request {
    /// And how long the asker waits.
    Ask(Frame, Option<OwnedSemaphorePermit>, Duration),
    /// And what is left to read of its stream.
    Open(Frame, Option<OwnedSemaphorePermit>, quinn::RecvStream),
}

async fn read_request(c: Context, mut recv: quinn::RecvStream) -> Result<Request, ReadFrameError> {
    let header = read_header(&mut recv, c.node.limits.frame_bytes).await?;
    if !matches!(header.kind, Kind::Ask | Kind::Open) {
        return Err(FrameError::Unexpected(header.kind).into());
    }
    let units = units(header.payload_bytes, c.node.limits.ask_bytes);
    let budget = c.link.ask_budget.clone().acquire_many_owned(units).await;
    let payload = read_payload(&mut recv, header.payload_bytes).await?;
    let frame = Frame { kind: header.kind, payload };
    if header.kind == Kind::Ask {
        take_end(&mut recv);
        let within = Duration::from_millis(frame.read::<Ask<'_>>()?.deadline_ms);
        return Ok(Request::Ask(frame, budget.ok(), within));
    }
    Ok(Request::Open(frame, budget.ok(), recv))
}

async fn serve_open(
    c: Context,
    frame: Frame,
    _budget: Option<OwnedSemaphorePermit>,
    send: Resetting,
    recv: quinn::RecvStream,
) {
    if c.link.is_cast_out() {
        return;
    }
    if let Err(error) = open(&c, &frame, send, recv).await {
        c.link.violation(&error);
    }
}

async fn open(c: &Context, frame: &Frame, mut send: Resetting, recv: quinn::RecvStream) -> Result<(), FrameError> {
    let open: Open<'_> = frame.read()?;
    check_names([open.path])?;
    Counters::add(&c.link.counters.received);
    let Some(handler) = c.node.registry.stream(open.path) else {
        let reply = c.node.encode_reply(status::NO_PROC, &[]);
        if send.write(reply).await.is_ok() {
            send.finish();
        }
        return Ok(());
    };
    let reply = c.node.encode_reply(status::OK, &[]);
    if send.write(reply).await.is_err() {
        return Ok(());
    }
    let Some(send) = send.release() else {
        return Ok(());
    };
    let _ = send.set_priority(BODY_PRIORITY);
    let header = frame.payload.slice_ref(open.header);
    let (send, recv) = stream::quic(send, recv, None);
    let peer = c.link.peer.clone();
    let path = open.path;
    let handled = guarded(|| {
        let handling = handler(peer, header, send, recv);
        async move {
            handling.await;
            Ok(())
        }
    });
    if let Err(failure) = handled.await {
        tracing::warn!(path, "the stream handler of {path} failed: {failure:?}");
    }
    Ok(())
}
