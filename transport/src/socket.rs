//! The UDP socket that packets are sent and received on. Readiness to send is asked for only while the kernel takes nothing: registered all the
//! time, as tokio does it, each packet that has left wakes the transport's thread, and on loopback that is each packet.
//!
//! Must never wait. Made by [`UdpNetwork`](crate::UdpNetwork); used by QUIC alone.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
};

/// Wanted of the kernel for packets that were not read yet, which counts about twice as much and gives no more than `net.core.rmem_max`. The
/// usual 208 KiB hold a hundred packets, and the end of a burst is lost whenever the transport's thread waits for a processor: QUIC
/// misses it only 25 ms later. A megabyte lets bulk pile up before whatever is urgent.
const RECEIVE_BUFFER_BYTES: usize = 1 << 18;

#[derive(Debug)]
pub(crate) struct UdpSocket {
    /// Registered for what arrives.
    io: AsyncFd<std::net::UdpSocket>,
    state: UdpSocketState,
    /// The kernel took nothing more, and has not said since that it would.
    full: AtomicBool,
    runtime: Handle,
}

impl UdpSocket {
    /// Binds `addr`; called inside the runtime that reads.
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        // A smaller one is slower, nothing worse.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
        socket.bind(&addr.into())?;
        socket.set_nonblocking(true)?;
        let socket = std::net::UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        let io = registered(socket, Interest::READABLE)?;
        Ok(Self { io, state, full: AtomicBool::new(false), runtime: Handle::current() })
    }
}

/// Has the runtime that this is called in report on a descriptor.
#[expect(
    deprecated,
    reason = "what follows it is unsafe, for types that may close their descriptor while it is registered; the two here cannot"
)]
fn registered<T: Into<OwnedFd> + AsRawFd>(of: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(of, interest)
}

impl AsyncUdpSocket for UdpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, registered: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.io.get_ref().into(), transmit);
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Release);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut readable = ready!(self.io.poll_read_ready(cx))?;
            if let Ok(received) = readable.try_io(|io| self.state.recv(io.get_ref().into(), bufs, meta)) {
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Tells one sender when the kernel takes packets again.
#[derive(Debug)]
struct Writable {
    socket: Arc<UdpSocket>,
    /// A copy of the socket, which the kernel reports of while it takes nothing.
    registered: Option<AsyncFd<OwnedFd>>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.socket.full.load(Ordering::Acquire) {
            let registered = match &mut this.registered {
                Some(registered) => registered,
                none => {
                    let _entered = this.socket.runtime.enter();
                    let copy = this.socket.io.get_ref().as_fd().try_clone_to_owned()?;
                    none.insert(registered(copy, Interest::WRITABLE)?)
                }
            };
            // Whether another sender fills it at once, the next packet shows.
            drop(ready!(registered.poll_write_ready(cx))?);
            this.socket.full.store(false, Ordering::Release);
        }
        this.registered = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test]
    async fn whoever_found_the_socket_full_is_told_when_it_is_not() {
        let socket = Arc::new(UdpSocket::bind(([127, 0, 0, 1], 0).into()).expect("a port"));
        let mut pollers = [socket.clone().create_io_poller(), socket.clone().create_io_poller()];
        socket.full.store(true, Ordering::Release);
        for poller in &mut pollers {
            // The kernel would take a packet: it says so as soon as it is asked.
            let writable = poll_fn(|cx| poller.as_mut().poll_writable(cx));
            tokio::time::timeout(Duration::from_secs(60), writable).await.expect("told").expect("no error");
            assert!(!socket.full.load(Ordering::Acquire));
        }
    }

    /// Measured on a thread that does nothing else: how often it wakes up while packets leave.
    #[test]
    fn a_packet_that_leaves_wakes_nobody() {
        const PACKETS: u64 = 100;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (socket, metrics) = {
            let _entered = runtime.enter();
            (Arc::new(UdpSocket::bind(([127, 0, 0, 1], 0).into()).expect("a port")), runtime.metrics())
        };
        let reader = socket.clone();
        let reading = std::thread::spawn(move || {
            runtime.block_on(poll_fn(|cx| {
                let (mut buffer, mut meta) = ([0; 16], [RecvMeta::default()]);
                let mut buffers = [IoSliceMut::new(&mut buffer)];
                reader.poll_recv(cx, &mut buffers, &mut meta).map_ok(|_| meta[0].len)
            }))
        });
        let other = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let transmit = |contents| Transmit {
            destination: other.local_addr().expect("bound"),
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        };
        while metrics.worker_park_count(0) == 0 {
            std::thread::yield_now();
        }
        let before = metrics.worker_park_count(0);
        for _ in 0..PACKETS {
            socket.try_send(&transmit(b"out")).expect("room");
            // It has left the sender when it is read here.
            other.recv(&mut [0; 16]).expect("arrives");
        }
        let woken = metrics.worker_park_count(0) - before;
        assert!(woken < PACKETS / 2, "woken {woken} times for {PACKETS} packets");
        // And it is awake for what comes.
        other.send_to(b"in", socket.local_addr().expect("bound")).expect("room");
        assert_eq!(reading.join().expect("no panic").expect("no error"), 2);
    }
}
