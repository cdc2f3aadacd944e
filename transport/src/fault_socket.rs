//! A socket that suffers the faults of a [`FaultTable`]: it stands between QUIC and the real (or simulated) socket.
//! With no fault set it passes everything through after one atomic load.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::fault::{FaultTable, Way};

/// Packets held back at once, each way together; further ones are lost, as in a router whose queue is full.
const DELAYED_PACKETS_MAX: usize = 16_384;

#[derive(Debug)]
pub(crate) struct FaultSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    table: Arc<FaultTable>,
    delayed: mpsc::Sender<Delayed>,
    sequence: AtomicU64,
    arrived: Arc<Arrived>,
}

/// Delayed packets from the network whose time has come.
#[derive(Debug, Default)]
struct Arrived {
    count: AtomicUsize,
    queue: Mutex<VecDeque<(RecvMeta, Vec<u8>)>>,
    waker: Mutex<Option<Waker>>,
}

#[derive(Debug)]
struct Delayed {
    due: Instant,
    /// Packets of equal delay keep their order.
    sequence: u64,
    packet: Packet,
}

#[derive(Debug)]
enum Packet {
    In(RecvMeta, Vec<u8>),
    Out { destination: SocketAddr, ecn: Option<EcnCodepoint>, contents: Vec<u8>, segment_size: Option<usize> },
}

impl FaultSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, table: Arc<FaultTable>, driver: &Handle) -> Self {
        let (delayed, line) = mpsc::channel(DELAYED_PACKETS_MAX);
        let arrived = Arc::new(Arrived::default());
        // Ends when the socket, and with it the sender, is gone.
        driver.spawn(delay_line(line, inner.clone(), arrived.clone()));
        Self { inner, table, delayed, sequence: AtomicU64::new(0), arrived }
    }

    fn hold(&self, delay: Duration, packet: Packet) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let due = Instant::now() + delay;
        // Full is loss, see DELAYED_PACKETS_MAX.
        let _ = self.delayed.try_send(Delayed { due, sequence, packet });
    }

    /// Applies the faults to one received buffer; returns how many bytes of it are left to deliver now.
    fn filter(&self, buffer: &mut [u8], meta: &RecvMeta) -> usize {
        let way = self.table.way(meta.addr, false);
        if way.cut {
            return 0;
        }
        let kept =
            if way.loss > 0.0 { lose_segments(&mut buffer[..meta.len], meta.stride, way.loss) } else { meta.len };
        if kept > 0 && !way.delay.is_zero() {
            let held = RecvMeta { len: kept, ..*meta };
            self.hold(way.delay, Packet::In(held, buffer[..kept].to_vec()));
            return 0;
        }
        kept
    }

    /// Hands over packets that were delayed; as many as there are buffers.
    fn take_arrived(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let mut queue = self.arrived.queue.lock();
        let mut taken = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()) {
            let Some((arrived, contents)) = queue.pop_front() else {
                break;
            };
            // Buffers have the size that the same socket filled before, so a packet always fits one.
            let len = contents.len().min(buffer.len());
            buffer[..len].copy_from_slice(&contents[..len]);
            *meta = RecvMeta { len, ..arrived };
            taken += 1;
        }
        self.arrived.count.store(queue.len(), Ordering::Release);
        taken
    }
}

impl AsyncUdpSocket for FaultSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if !self.table.is_active() {
            return self.inner.try_send(transmit);
        }
        let way = self.table.way(transmit.destination, true);
        if way.cut {
            return Ok(());
        }
        if way == Way::default() {
            return self.inner.try_send(transmit);
        }
        let mut contents = transmit.contents.to_vec();
        let stride = transmit.segment_size.unwrap_or(contents.len());
        let kept = lose_segments(&mut contents, stride, way.loss);
        contents.truncate(kept);
        if contents.is_empty() {
            return Ok(());
        }
        let segment_size = transmit.segment_size.filter(|size| kept > *size);
        if !way.delay.is_zero() {
            self.hold(
                way.delay,
                Packet::Out { destination: transmit.destination, ecn: transmit.ecn, contents, segment_size },
            );
            return Ok(());
        }
        self.inner.try_send(&Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents: &contents,
            segment_size,
            src_ip: transmit.src_ip,
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.arrived.count.load(Ordering::Acquire) > 0 {
                let taken = self.take_arrived(bufs, meta);
                if taken > 0 {
                    return Poll::Ready(Ok(taken));
                }
            }
            // Registered always, since the first delayed packet may arrive after this poll; the same waker costs nothing.
            {
                let mut waker = self.arrived.waker.lock();
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
            }
            if self.arrived.count.load(Ordering::Acquire) > 0 {
                continue;
            }
            let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            if !self.table.is_active() {
                return Poll::Ready(Ok(received));
            }
            let mut kept = 0;
            for i in 0..received {
                let len = self.filter(&mut bufs[i], &meta[i]);
                if len == 0 {
                    continue;
                }
                let moved = RecvMeta { len, ..meta[i] };
                if kept < i {
                    let (front, back) = bufs.split_at_mut(i);
                    front[kept][..len].copy_from_slice(&back[0][..len]);
                }
                meta[kept] = moved;
                kept += 1;
            }
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Loses each segment with the given probability; the others move to the front. Returns the bytes left.
fn lose_segments(contents: &mut [u8], stride: usize, probability: f64) -> usize {
    if contents.is_empty() || stride == 0 || probability <= 0.0 {
        return contents.len();
    }
    let mut kept = 0;
    let mut at = 0;
    while at < contents.len() {
        let end = (at + stride).min(contents.len());
        if rand::random::<f64>() >= probability {
            contents.copy_within(at..end, kept);
            kept += end - at;
        }
        at = end;
    }
    kept
}

/// Holds packets until they are due, in order of time, then of arrival.
async fn delay_line(mut line: mpsc::Receiver<Delayed>, socket: Arc<dyn AsyncUdpSocket>, arrived: Arc<Arrived>) {
    let mut held: BinaryHeap<Reverse<Delayed>> = BinaryHeap::new();
    loop {
        let next_due = held.peek().map(|Reverse(first)| first.due);
        tokio::select! {
            delayed = line.recv(), if held.len() < DELAYED_PACKETS_MAX => match delayed {
                Some(delayed) => held.push(Reverse(delayed)),
                None => return,
            },
            () = async { sleep_until(next_due.unwrap_or_else(Instant::now)).await }, if next_due.is_some() => {
                let now = Instant::now();
                while held.peek().is_some_and(|Reverse(first)| first.due <= now) {
                    if let Some(Reverse(due)) = held.pop() {
                        release(due.packet, &*socket, &arrived);
                    }
                }
            }
        }
    }
}

fn release(packet: Packet, socket: &dyn AsyncUdpSocket, arrived: &Arrived) {
    match packet {
        Packet::In(meta, contents) => {
            {
                let mut queue = arrived.queue.lock();
                if queue.len() >= DELAYED_PACKETS_MAX {
                    return;
                }
                queue.push_back((meta, contents));
                arrived.count.store(queue.len(), Ordering::Release);
            }
            let waker = arrived.waker.lock().clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        Packet::Out { destination, ecn, contents, segment_size } => {
            // A full socket buffer is loss; QUIC repairs it.
            let _ = socket.try_send(&Transmit { destination, ecn, contents: &contents, segment_size, src_ip: None });
        }
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.sequence) == (other.due, other.sequence)
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losing_segments_keeps_whole_segments_in_order() {
        let whole: Vec<u8> = (0..10u8).flat_map(|i| [i; 100]).chain([99; 40]).collect();
        for _ in 0..200 {
            let mut contents = whole.clone();
            let kept = lose_segments(&mut contents, 100, 0.5);
            let left: Vec<&[u8]> = contents[..kept].chunks(100).collect();
            assert!(left.windows(2).all(|w| w[0][0] < w[1][0]));
            for segment in left {
                assert!(segment.iter().all(|b| *b == segment[0]));
                assert_eq!(segment.len(), if segment[0] == 99 { 40 } else { 100 });
            }
        }
        assert_eq!(lose_segments(&mut whole.clone(), 100, 0.0), whole.len());
        assert_eq!(lose_segments(&mut whole.clone(), 100, 1.0), 0);
    }
}
