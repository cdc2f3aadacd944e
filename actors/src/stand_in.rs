//! Stand-ins: pids of processes that run elsewhere, so that monitors, links, `exited()` and `stop` work on them as on any other.
//!
//! Must never know where elsewhere is. Made by whoever carries messages between systems, which hears of the end of the process and says so
//! here; what is asked of the pid goes the other way, through a [`Proxy`].

use crate::exit::Exit;
use crate::pid::{Pid, WeakPid};
use crate::spec::Mailbox;
use std::fmt;
use std::sync::Arc;

/// Takes to the process what is asked of its stand-in. Called on whatever thread asks, so it must neither block nor wait; no lock of this
/// crate is held meanwhile. Dropped when the stand-in has exited, or when nobody refers to it any more: then nobody needs to hear of the
/// process (also beneath a lock of this crate, so a `Drop` must not touch pids).
pub trait Proxy: Send + Sync + 'static {
    /// The process is to stop with this reason. See [`Pid::stop`].
    fn stop(&self, reason: Exit);
    /// The process is to end at once. See [`Pid::kill`].
    fn kill(&self);
    /// `by` has linked itself to the process.
    fn linked(&self, by: &Pid);
    /// `by` has taken its link back.
    fn unlinked(&self, by: &Pid);
    /// `from`, which is linked to the process, has exited: the process gets an exit signal.
    fn exited(&self, from: &Pid, reason: &Exit);
}

/// The carrier's end of a stand-in. It does not keep the stand-in alive: its watchers and links do.
#[derive(Clone)]
pub struct StandIn(WeakPid);

impl Pid {
    /// A pid for a process that runs elsewhere. `id` and `path` are shown, and need not be unique: no registry knows a stand-in.
    pub fn stand_in(id: u64, path: impl Into<Arc<str>>, proxy: Arc<dyn Proxy>) -> (Pid, StandIn) {
        let pid = Pid::new(id, path.into(), Mailbox::NONE);
        pid.set_proxy(proxy);
        let stand_in = StandIn(pid.downgrade());
        (pid, stand_in)
    }
}

impl StandIn {
    /// The pid, while anybody refers to it.
    pub fn pid(&self) -> Option<Pid> {
        self.0.upgrade()
    }

    /// The process has exited, or is out of reach ([`Exit::NoConnection`]): watchers and links learn it. Only the first reason counts.
    pub fn exit(&self, reason: &Exit) {
        if let Some(pid) = self.0.upgrade() {
            pid.set_exit(reason);
        }
    }

    /// The process has linked itself to `local`, which is no reason to tell it so. False if `local` has ended: the process gets no signal
    /// of that through here.
    pub fn linked(&self, local: &Pid) -> bool {
        // One that nobody refers to has exited as far as anyone here can tell, and cannot be linked.
        self.0.upgrade().is_some_and(|pid| pid.linked_from_elsewhere(local))
    }

    /// The process has taken its link to `local` back.
    pub fn unlinked(&self, local: &Pid) {
        if let Some(pid) = self.0.upgrade() {
            local.forget_link(&pid);
            pid.forget_link(local);
        }
    }
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StandIn({:?})", self.0.upgrade())
    }
}
