//! Where packets go: the one place that names a socket. A simulation gives its own [`Network`].

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Instant};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;

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
        TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind(addr)?)
    }
}

/// Timers and tasks of QUIC on one given runtime, whichever thread asks for them.
#[derive(Debug)]
pub(crate) struct DriverRuntime(pub(crate) Handle);

impl Runtime for DriverRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _entered = self.0.enter();
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.0.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
