//! What a pid offers to whoever carries messages between systems: its exit by a call, and standing in for a process elsewhere.
//!
//! Must never call out while locked. Used by [`crate::StandIn`], and by carriers through [`Pid::on_exit`].

use super::{Cell, Pid, Signal, Watcher};
use crate::exit::Exit;
use crate::stand_in::Proxy;
use std::fmt;
use std::sync::{Arc, Weak};

/// A pid that does not keep what it names.
#[derive(Clone)]
pub(crate) struct WeakPid(Weak<Cell>);

impl WeakPid {
    pub(crate) fn upgrade(&self) -> Option<Pid> {
        self.0.upgrade().map(Pid)
    }
}

/// A call that is due when a process ends ([`Pid::on_exit`]). Dropped, it is taken back.
#[must_use = "dropping it takes the call back"]
pub struct ExitWatch {
    pid: Pid,
    watch: u64,
}

impl Drop for ExitWatch {
    fn drop(&mut self) {
        self.pid.forget_watcher(self.watch);
    }
}

impl fmt::Debug for ExitWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExitWatch({:?})", self.pid)
    }
}

impl Pid {
    /// Calls `f` when it has ended, on the thread on which it ends: `f` must not block, and its panic is logged and
    /// is nobody's exit. Dropping what this returns takes it back. `None`, and `f` is not called, when it has ended already.
    pub fn on_exit(&self, f: impl FnOnce(&Exit) + Send + 'static) -> Option<ExitWatch> {
        let mut control = self.0.control.lock();
        if control.exit.is_some() {
            return None;
        }
        let watch = control.watch(Watcher::Call(Box::new(f)));
        drop(control);
        Some(ExitWatch { pid: self.clone(), watch })
    }

    pub(crate) fn downgrade(&self) -> WeakPid {
        WeakPid(Arc::downgrade(&self.0))
    }

    pub(crate) fn set_proxy(&self, proxy: Arc<dyn Proxy>) {
        let mut control = self.0.control.lock();
        let ties = control.ties();
        ties.proxy = Some(proxy);
        ties.elsewhere = true;
    }

    pub(super) fn proxy(&self) -> Option<Arc<dyn Proxy>> {
        self.0.control.lock().ties.as_ref()?.proxy.clone()
    }

    /// The process elsewhere for which this stands in has linked itself to `local`. False if that has ended.
    pub(crate) fn linked_from_elsewhere(&self, local: &Pid) -> bool {
        {
            let mut control = local.0.control.lock();
            if control.exit.is_some() {
                return false;
            }
            control.add_link(self);
        }
        let mut control = self.0.control.lock();
        if control.exit.is_none() {
            control.add_link(local);
            return true;
        }
        // Lost meanwhile.
        let reason = control.gone();
        drop(control);
        if local.forget_link(self) {
            local.signal(Signal::Exit { from: self.clone(), reason });
        }
        true
    }
}
