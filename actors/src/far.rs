//! Moments so far away that no clock can tell them: whoever sets a time of `Duration::MAX` means never.
//!
//! Must never panic. Used wherever a time that a user has set is added to a moment.

use std::time::Duration;
use tokio::time::Instant;

/// As good as never, and within the reach of every clock: thirty years.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The moment that lies so long after another one.
pub(crate) fn later(from: Instant, time: Duration) -> Instant {
    from + time.min(FOREVER)
}
