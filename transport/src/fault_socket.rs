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

use crate::{
    fault::{FaultTable, Way},
    random::Random,
};

/// A packet that is doubled comes again after a random while of at most this, or longer if packets are reordered by more.
const DUPLICATE_AFTER_MAX: Duration = Duration::from_millis(10);

/// Packets held back at once, each way together; further ones are lost, as in a router whose queue is full.
const DELAYED_PACKETS_MAX: usize = 16_384;

#[derive(Debug)]
pub(crate) struct FaultSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    table: Arc<FaultTable>,
    random: Arc<Random>,
    delayed: mpsc::Sender<Delayed>,
    sequence: AtomicU64,
    arrived: Arc<Arrived>,
}

/// What becomes of the segments of one buffer.
#[derive(Debug, Default)]
struct Fates {
    /// Bytes at the front that go on together.
    kept: usize,
    /// Segments that go alone and later.
    held: Vec<(Duration, Vec<u8>)>,
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
    pub(crate) fn new(
        inner: Arc<dyn AsyncUdpSocket>,
        table: Arc<FaultTable>,
        random: Arc<Random>,
        driver: &Handle,
    ) -> Self {
        let (delayed, line) = mpsc::channel(DELAYED_PACKETS_MAX);
        let arrived = Arc::new(Arrived::default());
        // Ends when the socket, and with it the sender, is gone.
        driver.spawn(delay_line(line, inner.clone(), arrived.clone()));
        Self { inner, table, random, delayed, sequence: AtomicU64::new(0), arrived }
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
        let Fates { kept, held } = self.fates(&mut buffer[..meta.len], meta.stride, &way);
        for (delay, segment) in held {
            let meta = RecvMeta { len: segment.len(), stride: segment.len(), ..*meta };
            self.hold(delay, Packet::In(meta, segment));
        }
        if kept > 0 && !way.delay.is_zero() {
            let held = RecvMeta { len: kept, ..*meta };
            self.hold(way.delay, Packet::In(held, buffer[..kept].to_vec()));
            return 0;
        }
        kept
    }

    /// Decides what becomes of each segment: lost, held by itself, doubled, or passed on with the others, which move to the
    /// front.
    fn fates(&self, contents: &mut [u8], stride: usize, way: &Way) -> Fates {
        let mut fates = Fates::default();
        if stride == 0 || (way.loss <= 0.0 && way.reorder <= 0.0 && way.duplicate <= 0.0) {
            fates.kept = contents.len();
            return fates;
        }
        let mut at = 0;
        while at < contents.len() {
            let end = (at + stride).min(contents.len());
            let segment = at..end;
            at = end;
            if self.random.happens(way.loss) {
                continue;
            }
            if self.random.happens(way.duplicate) {
                let after = DUPLICATE_AFTER_MAX.max(way.reorder_by).mul_f64(self.random.fraction());
                fates.held.push((way.delay + after, contents[segment.clone()].to_vec()));
            }
            if self.random.happens(way.reorder) {
                let by = way.reorder_by.mul_f64(self.random.fraction());
                fates.held.push((way.delay + by, contents[segment].to_vec()));
                continue;
            }
            let bytes = segment.len();
            contents.copy_within(segment, fates.kept);
            fates.kept += bytes;
        }
        fates
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
        let Fates { kept, held } = self.fates(&mut contents, stride, &way);
        for (delay, contents) in held {
            let (destination, ecn) = (transmit.destination, transmit.ecn);
            self.hold(delay, Packet::Out { destination, ecn, contents, segment_size: None });
        }
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

/// Holds packets until they are due, in order of time, then of arrival.
async fn delay_line(mut line: mpsc::Receiver<Delayed>, socket: Arc<dyn AsyncUdpSocket>, arrived: Arc<Arrived>) {
    let mut held: BinaryHeap<Reverse<Delayed>> = BinaryHeap::new();
    loop {
        let next_due = held.peek().map(|Reverse(first)| first.due);
        tokio::select! {
            // What is due goes first; it empties the line of it, so what comes new has its turn.
            biased;
            () = async { sleep_until(next_due.unwrap_or_else(Instant::now)).await }, if next_due.is_some() => {
                let now = Instant::now();
                while held.peek().is_some_and(|Reverse(first)| first.due <= now) {
                    if let Some(Reverse(due)) = held.pop() {
                        release(due.packet, &*socket, &arrived);
                    }
                }
            }
            delayed = line.recv(), if held.len() < DELAYED_PACKETS_MAX => match delayed {
                Some(delayed) => held.push(Reverse(delayed)),
                None => return,
            },
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
    use crate::network::ClosedSocket;

    fn socket(seed: u64) -> FaultSocket {
        let inner = Arc::new(ClosedSocket(SocketAddr::from(([127, 0, 0, 1], 1))));
        FaultSocket::new(inner, Arc::default(), Arc::new(Random::new(Some(seed))), &Handle::current())
    }

    /// Ten segments of a hundred bytes and a shorter one, each of a byte of its own.
    fn segments() -> Vec<u8> {
        (0..10u8).flat_map(|i| [i; 100]).chain([99; 40]).collect()
    }

    fn check_whole(segment: &[u8]) {
        assert!(segment.iter().all(|byte| *byte == segment[0]));
        assert_eq!(segment.len(), if segment[0] == 99 { 40 } else { 100 });
    }

    #[tokio::test]
    async fn losing_segments_keeps_whole_segments_in_order() {
        let socket = socket(1);
        let lossy = |loss| Way { loss, ..Way::default() };
        for _ in 0..200 {
            let mut contents = segments();
            let fates = socket.fates(&mut contents, 100, &lossy(0.5));
            let left: Vec<&[u8]> = contents[..fates.kept].chunks(100).collect();
            assert!(left.windows(2).all(|w| w[0][0] < w[1][0]));
            left.into_iter().for_each(check_whole);
            assert!(fates.held.is_empty());
        }
        assert_eq!(socket.fates(&mut segments(), 100, &lossy(0.0)).kept, 1_040);
        assert_eq!(socket.fates(&mut segments(), 100, &lossy(1.0)).kept, 0);
    }

    #[tokio::test]
    async fn reordering_and_doubling_lose_nothing_and_hold_no_longer_than_set() {
        let socket = socket(2);
        let by = Duration::from_millis(30);
        let delay = Duration::from_millis(5);
        let way = Way { delay, reorder: 0.3, reorder_by: by, duplicate: 0.3, ..Way::default() };
        let mut doubled = 0;
        for _ in 0..200 {
            let mut contents = segments();
            let fates = socket.fates(&mut contents, 100, &way);
            let mut seen = [0; 100];
            for segment in contents[..fates.kept].chunks(100).chain(fates.held.iter().map(|(_, held)| &held[..])) {
                check_whole(segment);
                seen[usize::from(segment[0])] += 1;
            }
            assert!((0..10).chain([99]).all(|i: usize| (1..=2).contains(&seen[i])), "{seen:?}");
            doubled += seen.iter().filter(|times| **times == 2).count();
            assert!(fates.held.iter().all(|(held, _)| (delay..=delay + by).contains(held)));
        }
        assert!(doubled > 0);
    }

    #[tokio::test]
    async fn a_seed_decides_which_packets_are_hit() {
        let hit = |seed| {
            let socket = socket(seed);
            let way = Way { loss: 0.3, reorder: 0.3, reorder_by: Duration::from_secs(1), ..Way::default() };
            let fates: Vec<_> = (0..50).map(|_| socket.fates(&mut segments(), 100, &way)).collect();
            format!("{fates:?}")
        };
        assert_eq!(hit(3), hit(3));
        assert_ne!(hit(3), hit(4));
    }
}
