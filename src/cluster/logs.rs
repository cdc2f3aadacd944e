//! A container's output, from the node that has it to the server that was asked: a stream over the transport.
//!
//! The stream begins with one frame that says whether there is a log; what follows is its bytes. Must never keep the log of a
//! reader that is gone: its end of the stream is watched. `serve` is called on every member, `open` by the gateway's seam.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use phalanx_transport::{SendStream, Transport};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tokio_util::io::ReaderStream;

use crate::api::Status;
use crate::gateway::{ByteStream, LogRequest};
use crate::node::{Agent, logs};

const LOGS_PATH: &str = "agent/logs";
/// Largest first frame, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What is wanted; the stream's header.
#[derive(Serialize, Deserialize)]
struct Wanted {
    namespace: String,
    pod: String,
    container: String,
    follow: bool,
    previous: bool,
    tail_lines: Option<u64>,
    /// RFC 3339.
    since: Option<String>,
    timestamps: bool,
    limit_bytes: Option<u64>,
}

/// The first frame.
#[derive(Serialize, Deserialize)]
enum Answer {
    Follows,
    /// In Kubernetes' words.
    Refused(String),
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(ANSWER_BYTES_MAX).new_codec()
}

/// Serves the logs of this member's containers, to servers: they know who may read them.
pub fn serve(transport: &Transport, agent: &Arc<Agent>, servers: watch::Receiver<Vec<String>>) {
    let agent = agent.clone();
    transport.serve_stream(LOGS_PATH, move |peer, header, send, mut recv| {
        let agent = agent.clone();
        let allowed = servers.borrow().iter().any(|server| **server == *peer.node);
        async move {
            if !allowed {
                tracing::warn!(node = %peer.node, "who is no server asked for a log; refused");
                return;
            }
            // The reader never says anything: anything from there is its end.
            let gone = async {
                let _ = recv.read_u8().await;
            };
            tokio::select! {
                done = answer(&agent, &header, send) => if let Err(error) = done {
                    tracing::debug!(node = %peer.node, %error, "a reader of a log went away");
                },
                () = gone => {}
            }
        }
    });
}

async fn answer(agent: &Agent, header: &[u8], mut send: SendStream) -> io::Result<()> {
    let opened = match serde_json::from_slice::<Wanted>(header) {
        Ok(wanted) => {
            let request = logs::LogRequest {
                container: Some(wanted.container),
                follow: wanted.follow,
                previous: wanted.previous,
                tail_lines: wanted.tail_lines,
                since: wanted.since.and_then(|text| text.parse().ok()),
                timestamps: wanted.timestamps,
                limit_bytes: wanted.limit_bytes,
            };
            agent.open_logs(&wanted.namespace, &wanted.pod, request).map_err(|e| e.to_string())
        }
        Err(error) => Err(format!("not a request for a log: {error}")),
    };
    let answer = match &opened {
        Ok(_) => Answer::Follows,
        Err(refusal) => Answer::Refused(refusal.clone()),
    };
    FramedWrite::new(&mut send, codec()).send(Bytes::from(serde_json::to_vec(&answer)?)).await?;
    if let Ok(output) = opened {
        let mut output = std::pin::pin!(output);
        while let Some(piece) = output.next().await {
            send.write_all(&piece?).await?;
            send.flush().await?;
        }
    }
    send.finish().await
}

/// Opens a log on the node that has it.
///
/// # Errors
/// 503 when the node cannot be reached, 400 with its words when it has no such log.
pub async fn open(transport: &Transport, node: &str, request: &LogRequest) -> Result<ByteStream, Status> {
    let since = match (request.since_seconds, &request.since_time) {
        (Some(_), Some(_)) => {
            return Err(Status::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        (Some(seconds), None) => {
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Timestamp::now().checked_sub(ago).ok()
        }
        (None, Some(text)) => {
            let time: Result<Timestamp, _> = text.parse();
            Some(time.map_err(|e| Status::bad_request(format!("sinceTime {text:?} is no RFC 3339 time: {e}")))?)
        }
        (None, None) => None,
    };
    let wanted = Wanted {
        namespace: request.namespace.clone(),
        pod: request.pod.clone(),
        container: request.container.clone(),
        follow: request.follow,
        previous: request.previous,
        tail_lines: request.tail_lines,
        since: since.map(|time| time.to_string()),
        timestamps: request.timestamps,
        limit_bytes: request.limit_bytes,
    };
    let unreachable = |why: &dyn std::fmt::Display| Status::service_unavailable(format!("node {node}: {why}"), 1);
    let header = serde_json::to_vec(&wanted).map_err(Status::internal)?;
    let (send, recv) =
        transport.open_stream(node, LOGS_PATH, header.into()).await.map_err(|error| unreachable(&error))?;
    let mut frames = FramedRead::new(recv, codec());
    let first = frames.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let first = first.map_err(|error| unreachable(&error))?;
    match serde_json::from_slice(&first).map_err(Status::internal)? {
        Answer::Refused(refusal) => Err(Status::bad_request(refusal)),
        Answer::Follows => {
            // What came behind the first frame is the log's first bytes.
            let parts = frames.into_parts();
            let begun = futures::stream::iter([parts.read_buf.freeze()]).filter(|b| std::future::ready(!b.is_empty()));
            let rest = ReaderStream::new(parts.io);
            let output = begun.map(Ok).chain(rest).map(move |piece| {
                // Held for as long as somebody reads: its end tells the node to stop.
                let _open = &send;
                piece
            });
            Ok(Box::pin(output))
        }
    }
}
