//! The two lanes of a link, control and tells: writes what their outboxes hold, reads their frames, and gathers the tells in a row that go
//! to one receiver, so that they are handed over together. A frame that breaks the protocol ends the link, as `link` has it.
//! Run by `link`, on the transport's runtime; must never wait for a handler but where an inbox is full.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    flow::{FLOW_PATH, ROUTES_BYTES_MAX, ROUTES_MAX},
    frame::{Decoder, FrameError, Kind, Route, Routed, Tell, check_names},
    groups::GROUPS_PATH,
    inbox::{Batch, Lane, Receiver},
    link::{Context, MESSAGE_PRIORITY, take_control},
    peer::Counters,
    tells::TellRoute,
};

/// Pieces that one read takes from a lane at most; mostly each is what came in a packet.
const READ_CHUNKS: usize = 32;

pub(crate) async fn write_tells(c: Context) {
    if let Ok(stream) = c.link.conn.open_uni().await {
        let _ = stream.set_priority(MESSAGE_PRIORITY);
        write_lane(c, Lane::Tells, stream).await;
    }
}

/// Writes what the outbox holds, all of it at a time, until it is closed.
pub(crate) async fn write_lane(c: Context, lane: Lane, mut stream: quinn::SendStream) {
    let outbox = match lane {
        Lane::Control => &c.link.control,
        Lane::Tells => &c.link.tells,
    };
    while let Some(mut batch) = outbox.take().await {
        if stream.write_all_chunks(&mut batch).await.is_err() {
            // The connection is lost, or about to be: the peer never stops a lane.
            return;
        }
    }
    // Acknowledged to the last byte, or the connection is gone.
    let _ = stream.finish();
    let _ = stream.stopped().await;
    c.link.written.add_permits(1);
}

pub(crate) async fn read_tells(c: Context) {
    if let Ok(stream) = c.link.conn.accept_uni().await {
        read_lane(c, Lane::Tells, stream).await;
    }
}

/// A lane as it is read.
struct LaneReader {
    c: Context,
    lane: Lane,
    decoder: Decoder,
    /// Routes that the peer has numbered.
    routes: Vec<Arc<dyn Receiver>>,
    routes_bytes: usize,
    /// Tells in a row that go to one receiver, and are handed over together.
    batch: Option<Batch>,
}

pub(crate) async fn read_lane(c: Context, lane: Lane, mut stream: quinn::RecvStream) {
    let decoder = Decoder::new(c.node.limits.frame_bytes);
    let mut reader = LaneReader { c, lane, decoder, routes: vec![], routes_bytes: 0, batch: None };
    let mut chunks: [Bytes; READ_CHUNKS] = std::array::from_fn(|_| Bytes::new());
    loop {
        match stream.read_chunks(&mut chunks).await {
            Ok(Some(count)) => {
                for chunk in &mut chunks[..count] {
                    if let Err(error) = reader.take_chunk(&std::mem::take(chunk)).await {
                        return reader.c.link.violation(&error);
                    }
                }
                reader.flush().await;
            }
            Ok(None) if reader.decoder.is_at_boundary() => return,
            Ok(None) => return reader.c.link.violation(&FrameError::Truncated),
            Err(_) => return,
        }
    }
}

impl LaneReader {
    async fn take_chunk(&mut self, chunk: &[u8]) -> Result<(), FrameError> {
        self.decoder.push(chunk);
        while let Some(done) = self.take_frame()? {
            if let Some(batch) = done {
                self.c.slot.inboxes.deliver(self.lane, batch).await;
            }
        }
        Ok(())
    }

    /// Hands over what was gathered: nothing more has come just now.
    async fn flush(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.c.slot.inboxes.deliver(self.lane, batch).await;
        }
    }

    /// Takes one frame; `None` if there is none, or they are not read any more. Gives the batch that it does not belong to, which
    /// is to be handed over before it.
    fn take_frame(&mut self) -> Result<Option<Option<Batch>>, FrameError> {
        let Self { c, lane, decoder, routes, routes_bytes, batch } = self;
        let Some(frame) = decoder.view()?.filter(|_| !c.link.is_cast_out()) else {
            return Ok(None);
        };
        match (frame.kind(), *lane) {
            (Kind::Tell, lane) => {
                let tell: Tell<'_> = frame.read()?;
                if lane == Lane::Control && tell.path == FLOW_PATH {
                    // Of a kind that this version does not know, it is no error.
                    if let Ok(signal) = rmp_serde::from_slice(tell.body) {
                        c.link.tells.hear(signal);
                    }
                    return Ok(Some(None));
                }
                if lane == Lane::Control && tell.path == GROUPS_PATH {
                    c.link.groups.hear(&c.link, tell.body);
                    return Ok(Some(None));
                }
                check_names([tell.path, tell.name])?;
                Counters::add(&c.link.counters.received);
                let counted = lane == Lane::Tells;
                if !c.node.serves(&tell) {
                    if counted {
                        c.link.take_off(tell.path, 1, tell.body.len());
                    }
                    Counters::add(&c.link.counters.dropped);
                    let (node, path) = (&c.link.peer.node, tell.path);
                    tracing::debug!(%node, path, "dropped a tell: {} is not served there", tell.name);
                    return Ok(Some(None));
                }
                let route = TellRoute::of_tell(&c.node, &c.link.peer, Some((&c.link, counted)), &tell);
                let mut next = Batch::new(Arc::new(route));
                next.push(tell.more.and_then(|more| more.trace), tell.body);
                return Ok(Some(batch.replace(next)));
            }
            (Kind::Route, Lane::Tells) => {
                let route: Route<'_> = frame.read()?;
                check_names([route.path, route.name])?;
                *routes_bytes += route.path.len() + route.name.len();
                let in_turn = usize::try_from(route.number) == Ok(routes.len());
                if !in_turn || routes.len() >= ROUTES_MAX || *routes_bytes > ROUTES_BYTES_MAX {
                    return Err(FrameError::Route(route.number));
                }
                routes.push(Arc::new(TellRoute::of_route(&c.node, &c.link, &route)));
            }
            (kind @ (Kind::Routed | Kind::RoutedTraced), Lane::Tells) => {
                let too_short = || FrameError::Payload { kind, reason: "it is too short".into() };
                let routed = Routed::parse(kind, frame.payload()).ok_or_else(too_short)?;
                let number = usize::try_from(routed.number).unwrap_or(usize::MAX);
                let receiver = routes.get(number).ok_or(FrameError::Route(routed.number))?;
                Counters::add(&c.link.counters.received);
                if let Some(batch) = batch.as_mut().filter(|batch| batch.is_of(receiver))
                    && batch.has_room(routed.body.len())
                {
                    batch.push(routed.trace, routed.body);
                    return Ok(Some(None));
                }
                let mut next = Batch::new(receiver.clone());
                next.push(routed.trace, routed.body);
                return Ok(Some(batch.replace(next)));
            }
            (_, Lane::Control) => take_control(c, &frame)?,
            (kind, Lane::Tells) => return Err(FrameError::Unexpected(kind)),
        }
        Ok(Some(None))
    }
}
