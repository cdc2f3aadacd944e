//! turmoil's UDP as the socket that QUIC wants. Knows packets, and nothing of what is in them.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::FutureExt;
use parking_lot::Mutex;
use phalanx_transport::{
    AsyncUdpSocket, Network, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use turmoil::net::UdpSocket;

/// The network of the simulation: binds on the simulated host that the transport is started on.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimNetwork;

impl Network for SimNetwork {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let bound = UdpSocket::bind(addr).now_or_never();
        let socket = bound.ok_or_else(|| io::Error::other("the simulated bind did not finish at once"))??;
        let local_addr = socket.local_addr()?;
        Ok(Arc::new(SimSocket { socket: Arc::new(socket), local_addr, readable: Mutex::default() }))
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

struct SimSocket {
    socket: Arc<UdpSocket>,
    local_addr: SocketAddr,
    /// Waits for the next packet; kept between polls, for it holds the waker.
    readable: Mutex<Option<Readable>>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({})", self.local_addr)
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment_bytes = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(segment_bytes) {
            // Nobody there is loss, as with UDP; QUIC repairs it.
            let _ = self.socket.try_send_to(packet, transmit.destination);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut readable = self.readable.lock();
        loop {
            // While the other future waits, it holds the socket: nothing has come.
            if readable.is_none() {
                match self.socket.try_recv_from(&mut bufs[0]) {
                    Ok((len, addr)) => {
                        meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                        return Poll::Ready(Ok(1));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let waiting = readable.get_or_insert_with(|| {
                let socket = self.socket.clone();
                Box::pin(async move { socket.readable().await })
            });
            let ready = ready!(waiting.as_mut().poll(cx));
            *readable = None;
            ready?;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local_addr)
    }
}

/// turmoil's sockets never push back.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
