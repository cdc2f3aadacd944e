//! Where packets go: the one place that names a socket. A simulation gives its own [`Network`].

use std::{
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{runtime::Handle, time::Sleep};

use crate::driven::Driven;

/// Makes the socket that a transport sends and receives packets on.
pub trait Network: std::fmt::Debug + Send + Sync + 'static {
    /// Binds `addr`; called once, inside the runtime that the transport runs on.
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
}

/// The operating system's UDP.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpNetwork;

impl Network for UdpNetwork {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        #[cfg(unix)]
        return Ok(Arc::new(crate::socket::UdpSocket::bind(addr)?));
        #[cfg(not(unix))]
        TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind(addr)?)
    }
}

/// Timers and tasks of QUIC on one given runtime, whichever thread asks for them.
#[derive(Debug)]
pub(crate) struct DriverRuntime {
    pub(crate) handle: Handle,
    /// Whether other threads may poll its tasks; not in a simulation, where all that a node does belongs to its runtime.
    pub(crate) shared: bool,
}

impl Runtime for DriverRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _entered = self.handle.enter();
        Box::pin(LazyTimer { sleep: Box::pin(tokio::time::sleep_until(at.into())), at: at.into() })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.shared {
            Driven::spawn(&self.handle, future);
        } else {
            self.handle.spawn(future);
        }
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.handle.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// A timer that, put off, goes off once too early instead of being moved. QUIC puts its timers off with each packet, and on again with the
/// next one; to move one to before all others wakes the thread of its runtime, which is mostly another than the one that sends.
#[derive(Debug)]
struct LazyTimer {
    /// Never later than `at`.
    sleep: Pin<Box<Sleep>>,
    at: tokio::time::Instant,
}

impl AsyncTimer for LazyTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.at = at.into();
        if self.at < self.sleep.deadline() {
            self.sleep.as_mut().reset(at.into());
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Future::poll(self.sleep.as_mut(), cx));
            if self.sleep.deadline() >= self.at || tokio::time::Instant::now() >= self.at {
                return Poll::Ready(());
            }
            let at = self.at;
            self.sleep.as_mut().reset(at);
        }
    }
}

/// Takes the place of the socket of an endpoint that has ended. Handles of the endpoint may live on, in handlers that
/// hold the transport, and must not keep the address in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClosedSocket(pub(crate) SocketAddr);

impl AsyncUdpSocket for ClosedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(*self)
    }

    fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
        Ok(())
    }

    fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0)
    }
}

impl UdpPoller for ClosedSocket {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
