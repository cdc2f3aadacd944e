//! Faults that tests and chaos commands inject into a store's disk. A server without faults pays one atomic load per write.
//! Network faults are the transport's business.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Clones share the same switches.
#[derive(Clone, Debug, Default)]
pub struct StoreFaults {
    disk_full: Arc<AtomicBool>,
    disk_low: Arc<AtomicBool>,
}

impl StoreFaults {
    /// From now on every write to the log or a snapshot fails as on a full disk (ENOSPC), or works again.
    pub fn disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::SeqCst);
    }

    /// From now on the disk counts as nearly full: writes are refused before they are tried, until it has room again.
    pub fn low_disk(&self, low: bool) {
        self.disk_low.store(low, Ordering::SeqCst);
    }

    pub(super) fn disk_low(&self) -> bool {
        self.disk_low.load(Ordering::SeqCst)
    }

    pub(super) fn check_write(&self) -> io::Result<()> {
        match self.disk_full.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32)),
            false => Ok(()),
        }
    }
}
