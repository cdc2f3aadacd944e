//! What ties actors of two nodes to each other over one connection: stand-ins here for actors there, the exits that either
//! side has asked to hear of, and links. All of it belongs to one connection and ends with it.
//!
//! ```text
//!  pid of a reference ──► stand-in ──Monitor──► exit watch on the actor there
//!                                 ◄───Down────
//!  ctx.link(stand-in) ────────────────LINK────► stand-in there for the actor here, linked to the actor there
//!  either one exits   ────────────────EXIT────► its stand-in exits, and with it the link
//! ```
//! Must never call into actors while locked: they call back, beneath locks of their own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use phalanx_actors::{Exit, ExitWatch, Pid, Proxy, StandIn};

use crate::{
    decode,
    endpoint::Node,
    event::LossReason,
    frame::{FrameError, Kind, MonitorPath, REFERENCES_SINCE, Signal, encode, signal},
    link::{CloseCode, Link},
    outbox::PushError,
};

/// Longest path of an actor that links itself to one elsewhere, in bytes: the other side keeps it as long as the link.
const LINK_PATH_BYTES_MAX: usize = 1 << 10;

/// An actor that has not heard of so many exits takes no further links from elsewhere: each could leave one more, by being linked and ended
/// again and again, or with a connection that comes and goes.
const SIGNALS_WAITING_MAX: usize = 1_024;

/// What a link costs the side that has not made it, in bytes: a stand-in with its path, as it is and as it is shown, and entries.
pub(crate) const LINK_BYTES: usize = 3 << 10;

/// An exit that cannot be read, because a newer version has written it or because it is too long to send.
pub(crate) fn unreadable() -> Exit {
    Exit::Error("an exit reason that cannot be told across nodes".into())
}

/// Reads an exit; one that this build does not know is an error's.
pub(crate) fn read_exit(bytes: &[u8]) -> Exit {
    decode::from_slice(bytes).map_or_else(|_| unreadable(), bounded)
}

/// Longest text of an exit that a peer tells, in bytes: it is kept for as long as anybody may ask for it. What is longer is cut.
pub(crate) const EXIT_TEXT_BYTES_MAX: usize = 1 << 10;

/// Most exits within an exit that a peer tells: one for each supervisor that gave up over another.
const EXIT_DEPTH_MAX: usize = 8;

/// An exit that a peer tells, as it is kept here.
pub(crate) fn bounded(exit: Exit) -> Exit {
    fn cut(mut text: String) -> String {
        if text.len() > EXIT_TEXT_BYTES_MAX {
            let end = (0..=EXIT_TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or_default());
            text.push('…');
            text.shrink_to_fit();
        }
        text
    }
    fn within(exit: Exit, depth: usize) -> Exit {
        if depth == 0 {
            return unreadable();
        }
        match exit {
            Exit::Panic { message, location } => Exit::Panic { message: cut(message), location: location.map(cut) },
            Exit::Error(text) => Exit::Error(cut(text)),
            Exit::ShutdownWith(text) => Exit::ShutdownWith(cut(text)),
            Exit::RestartIntensity { child, last } => {
                Exit::RestartIntensity { child: cut(child), last: Box::new(within(*last, depth - 1)) }
            }
            Exit::StartFailed { child, reason } => {
                Exit::StartFailed { child: cut(child), reason: Box::new(within(*reason, depth - 1)) }
            }
            Exit::ArbiterStuck { path, doing } => {
                Exit::ArbiterStuck { path: cut(path.into()).into(), doing: cut(doing.into()).into() }
            }
            short @ (Exit::Normal
            | Exit::Shutdown
            | Exit::Killed
            | Exit::NoProc
            | Exit::NoConnection
            | Exit::ArbiterGone
            | Exit::Ignore) => short,
        }
    }
    within(exit, EXIT_DEPTH_MAX)
}

/// Writes an exit.
pub(crate) fn write_exit(exit: &Exit) -> Vec<u8> {
    rmp_serde::to_vec(exit).unwrap_or_default()
}

#[derive(Debug)]
pub(crate) struct Ties {
    /// `None` once the connection is lost.
    near: Mutex<Option<Near>>,
    /// The peer's watches on actors of ours, by its numbers. Empty while one is being set.
    far: Mutex<HashMap<u64, Option<ExitWatch>>>,
    max: usize,
}

/// Stand-ins for actors of the peer.
#[derive(Debug, Default)]
struct Near {
    /// By the path and the number there: a reference with a wrong path is none to the actor with its number.
    stand_ins: HashMap<Key, Entry>,
    /// Which of them the peer reports, by our number of the watch.
    watches: HashMap<u64, StandIn>,
    /// How many stand-ins there have been.
    made: u64,
    /// Links that actors here have made with stand-ins.
    ours: BTreeSet<LinkEnds>,
    /// Links that actors of the peer have made with actors here.
    theirs: BTreeSet<LinkEnds>,
}

/// The serial of the stand-in, and the number of the actor here.
type LinkEnds = (u64, u64);

impl Near {
    /// There is no link between these any more, whoever made it.
    fn unlinked(&mut self, ends: LinkEnds) {
        self.ours.remove(&ends);
        self.theirs.remove(&ends);
    }

    /// A stand-in is gone, and all links of it.
    fn all_unlinked(&mut self, serial: u64) {
        for links in [&mut self.ours, &mut self.theirs] {
            while let Some(ends) = links.range((serial, 0)..=(serial, u64::MAX)).next().copied() {
                links.remove(&ends);
            }
        }
    }
}

/// The path and the number of an actor of the peer.
type Key = (Arc<str>, u64);

#[derive(Debug)]
struct Entry {
    /// Tells one stand-in from the next for the same actor.
    serial: u64,
    stand_in: StandIn,
    watch: Option<u64>,
}

impl Ties {
    pub(crate) fn new(max: usize) -> Self {
        Self { near: Mutex::new(Some(Near::default())), far: Mutex::default(), max }
    }

    /// How many watches the peer holds on actors here.
    pub(crate) fn far_watches(&self) -> usize {
        self.far.lock().len()
    }

    pub(crate) fn has_far_watch(&self, id: u64) -> bool {
        self.far.lock().contains_key(&id)
    }

    /// The peer reports the end of what a watch is on.
    pub(crate) fn down(&self, id: u64, reason: &Exit) {
        let stand_in = self.near.lock().as_mut().and_then(|near| near.watches.remove(&id));
        if let Some(stand_in) = stand_in {
            stand_in.exit(reason);
        }
    }

    /// The peer does not want to know any more, or has been told.
    pub(crate) fn end_far_watch(&self, id: u64) {
        let watch = self.far.lock().remove(&id);
        // Outside of the lock: it reaches into the actor.
        drop(watch);
    }

    /// The connection is lost.
    pub(crate) fn end(&self) {
        let near = self.near.lock().take();
        let far = std::mem::take(&mut *self.far.lock());
        drop(far);
        let mut stand_ins: Vec<Entry> = near.map(|near| near.stand_ins.into_values().collect()).unwrap_or_default();
        // In the order in which they were made.
        stand_ins.sort_unstable_by_key(|entry| entry.serial);
        for entry in stand_ins {
            entry.stand_in.exit(&Exit::NoConnection);
        }
    }

    fn stand_in(&self, key: &Key) -> Option<(u64, StandIn)> {
        let near = self.near.lock();
        let Entry { serial, stand_in, .. } = near.as_ref()?.stand_ins.get(key)?;
        Some((*serial, stand_in.clone()))
    }

    fn unlinked(&self, ends: LinkEnds) {
        if let Some(near) = self.near.lock().as_mut() {
            near.unlinked(ends);
        }
    }
}

impl Link {
    /// Whether the peer knows references.
    pub(crate) fn has_references(&self) -> bool {
        self.protocol >= REFERENCES_SINCE
    }

    /// The pid here of an actor of the peer, whose exit the peer reports. It may take part in as many links with the peer as are
    /// given.
    pub(crate) fn watched_pid(self: &Arc<Self>, path: &Arc<str>, pid: u64, links_max: usize) -> Pid {
        if !self.has_references() {
            return lost_pid(path, pid, &self.peer.node, &Exit::NoConnection);
        }
        self.pid(path, pid, true, links_max)
            .map_or_else(|| lost_pid(path, pid, &self.peer.node, &Exit::NoConnection), |(pid, ..)| pid)
    }

    /// The pid, its stand-in and the serial of that. `None` when the connection is lost, or holds as many watches as it may; what is not
    /// watched has links, which have a bound of their own.
    fn pid(self: &Arc<Self>, path: &Arc<str>, id: u64, watched: bool, links_max: usize) -> Option<(Pid, StandIn, u64)> {
        let mut ties = self.ties.near.lock();
        let near = ties.as_mut()?;
        let key = (path.clone(), id);
        let known = near
            .stand_ins
            .get(&key)
            .and_then(|entry| Some((entry.stand_in.pid()?, entry.stand_in.clone(), entry.serial)));
        let (pid, stand_in, serial) = match known {
            Some(known) => known,
            None => {
                near.made += 1;
                let serial = near.made;
                let to = ToPeer { link: Arc::downgrade(self), key: key.clone(), serial, links_max };
                let (pid, stand_in) = Pid::stand_in(id, shown_path(path, &self.peer.node), Arc::new(to));
                let entry = Entry { serial, stand_in: stand_in.clone(), watch: None };
                if let Some(old) = near.stand_ins.insert(key.clone(), entry) {
                    // Nobody referred to it any more, and its proxy is about to say so, too late.
                    near.all_unlinked(old.serial);
                    if let Some(watch) = old.watch {
                        near.watches.remove(&watch);
                        self.send_demonitor(watch);
                    }
                }
                (pid, stand_in, serial)
            }
        };
        let entry = near.stand_ins.get_mut(&key);
        if let Some(entry) = entry.filter(|entry| watched && entry.watch.is_none()) {
            let watch = self.next_monitor_id();
            // Sent under the lock, so that a Demonitor cannot overtake it.
            let monitor = MonitorPath { id: watch, path, pid: Some(id) };
            let sent = encode(Kind::Monitor, &monitor, self.frame_bytes);
            let room = near.watches.len() < self.ties.max;
            if !(room && sent.is_ok_and(|frame| self.control.push_unbounded(&frame).is_ok())) {
                // One that nobody reports is no pid. Unlocked before the pid goes, which may be the last reference.
                drop(ties);
                drop(pid);
                return None;
            }
            entry.watch = Some(watch);
            near.watches.insert(watch, stand_in.clone());
        }
        Some((pid, stand_in, serial))
    }

    /// Nobody refers to a stand-in any more, or it has exited.
    fn forget_stand_in(&self, key: &Key, serial: u64) {
        let mut ties = self.ties.near.lock();
        let Some(near) = ties.as_mut() else {
            return;
        };
        if near.stand_ins.get(key).is_some_and(|entry| entry.serial == serial)
            && let Some(entry) = near.stand_ins.remove(key)
        {
            near.all_unlinked(serial);
            if let Some(watch) = entry.watch
                && near.watches.remove(&watch).is_some()
            {
                self.send_demonitor(watch);
            }
        }
    }

    /// The peer links an actor of its own to one here. Gives the exit that it is to be told instead.
    fn take_link(
        self: &Arc<Self>,
        node: &Node,
        (path, id): (&str, u64),
        target: Option<&Pid>,
    ) -> Result<Option<Exit>, FrameError> {
        if path.len() > LINK_PATH_BYTES_MAX {
            return Err(FrameError::LinkPath { bytes: path.len(), limit: LINK_PATH_BYTES_MAX });
        }
        let Some(target) = target else {
            return Ok(Some(Exit::NoProc));
        };
        if target.signals_waiting() >= SIGNALS_WAITING_MAX {
            return Ok(Some(Exit::Error(format!(
                "{} does not take the exits of those it is linked to",
                target.path()
            ))));
        }
        let max = node.limits.links;
        let Some((_pid, stand_in, serial)) = self.pid(&path.into(), id, false, max) else {
            // The connection is lost, and the actor there learns it.
            return Ok(None);
        };
        let ends = (serial, target.id());
        // Noted before it is made, so that an end that comes at once finds it.
        if let Some(near) = self.ties.near.lock().as_mut() {
            if near.theirs.len() >= max && !near.theirs.contains(&ends) {
                return Err(FrameError::Links(max));
            }
            near.theirs.insert(ends);
        }
        if stand_in.linked(target) {
            return Ok(None);
        }
        self.ties.unlinked(ends);
        Ok(Some(Exit::NoProc))
    }

    /// An actor here has linked itself to a stand-in. False if there are as many links as the peer takes.
    fn make_link(&self, to: &ToPeer, by: &Pid) -> bool {
        let mut ties = self.ties.near.lock();
        let Some(near) = ties.as_mut() else {
            // The connection is lost, and the stand-in exits.
            return true;
        };
        if near.stand_ins.get(&to.key).is_none_or(|entry| entry.serial != to.serial) {
            // It has exited meanwhile, and tells so itself.
            return true;
        }
        let ends = (to.serial, by.id());
        let room = near.ours.len() < to.links_max || near.ours.contains(&ends);
        let fits = room && by.path().len() <= LINK_PATH_BYTES_MAX;
        if fits {
            near.ours.insert(ends);
            // Sent under the lock, so that it does not overtake the end of a link that made room for it.
            to.send(signal::LINK, Some(by), None);
        }
        fits
    }

    fn send_demonitor(&self, watch: u64) {
        if let Ok(frame) = encode(Kind::Demonitor, &(watch,), self.frame_bytes) {
            // A closed outbox means that the peer forgets the watch anyway.
            let _ = self.control.push_unbounded(&frame);
        }
    }

    /// Sends a signal; there are few for each stand-in, whose number is bounded.
    pub(crate) fn send_signal(&self, signal: &Signal<'_>) {
        if !self.has_references() {
            return;
        }
        let frame = encode(Kind::Signal, signal, self.frame_bytes).or_else(|_| {
            let reason = write_exit(&unreadable());
            encode(Kind::Signal, &Signal { reason: &reason, ..*signal }, self.frame_bytes)
        });
        if let Ok(frame) = frame
            && self.control.push_unbounded(&frame) == Err(PushError::Full)
        {
            // An exit that is not told would be a promise broken; the end of the connection is one that is kept.
            let text = "reads nothing of what it is tied to";
            self.close(CloseCode::Protocol, LossReason::Protocol(text.into()), text);
        }
    }

    /// The peer watches an actor of ours.
    pub(crate) fn watch_for_peer(self: &Arc<Self>, id: u64, pid: &Pid) {
        self.ties.far.lock().insert(id, None);
        let link = Arc::downgrade(self);
        let watch = pid.on_exit(move |reason| {
            if let Some(link) = link.upgrade() {
                link.report_down(id, reason);
            }
        });
        match watch {
            None => self.report_down(id, &Exit::NoProc),
            Some(watch) => {
                let mut far = self.ties.far.lock();
                let unused = match far.get_mut(&id) {
                    Some(slot) => slot.replace(watch),
                    // It has ended meanwhile, or the peer does not want to know any more, or the connection is lost.
                    None => Some(watch),
                };
                drop(far);
                drop(unused);
            }
        }
    }

    /// The peer signals an actor of ours.
    pub(crate) fn take_signal(self: &Arc<Self>, node: &Node, taken: &Signal<'_>) -> Result<(), FrameError> {
        let target = || node.shared.find(taken.path, taken.pid);
        match (taken.what, taken.from) {
            (signal::STOP, _) => {
                if let Some(target) = target() {
                    target.pid().stop(read_exit(taken.reason));
                }
            }
            (signal::KILL, _) => {
                if let Some(target) = target() {
                    target.pid().kill();
                }
            }
            (signal::LINK, Some((from, from_pid))) => {
                let target = target();
                let refused = self.take_link(node, (from, from_pid), target.as_ref().map(|target| target.pid()))?;
                if let Some(exit) = refused {
                    self.send_signal(&Signal {
                        path: from,
                        pid: Some(from_pid),
                        from: taken.pid.map(|pid| (taken.path, pid)),
                        what: signal::EXIT,
                        reason: &write_exit(&exit),
                    });
                }
            }
            (signal::UNLINK, Some((from, from_pid))) => {
                if let (Some(target), Some((serial, stand_in))) =
                    (node.shared.any(taken.path, taken.pid), self.ties.stand_in(&(from.into(), from_pid)))
                {
                    self.ties.unlinked((serial, target.pid().id()));
                    stand_in.unlinked(target.pid());
                }
            }
            (signal::EXIT, Some((from, from_pid))) => {
                if let Some((_, stand_in)) = self.ties.stand_in(&(from.into(), from_pid)) {
                    stand_in.exit(&read_exit(taken.reason));
                }
            }
            (what, _) => {
                tracing::debug!(node = %self.peer.node, what, "ignored a signal that this version does not know")
            }
        }
        Ok(())
    }
}

/// How the path of a stand-in reads: no path of this node's tree looks so.
fn shown_path(path: &str, node: &str) -> Arc<str> {
    format!("{path}@{node}").into()
}

/// A pid of an actor that is out of reach, or gone with the incarnation of its node.
pub(crate) fn lost_pid(path: &str, pid: u64, node: &str, exit: &Exit) -> Pid {
    let (pid, stand_in) = Pid::stand_in(pid, shown_path(path, node), Arc::new(ToNobody));
    stand_in.exit(exit);
    pid
}

/// Carries what is asked of a stand-in to the peer.
struct ToPeer {
    link: Weak<Link>,
    key: Key,
    serial: u64,
    links_max: usize,
}

impl ToPeer {
    fn send(&self, what: u8, from: Option<&Pid>, reason: Option<&Exit>) {
        let Some(link) = self.link.upgrade() else {
            return;
        };
        let reason = reason.map(write_exit).unwrap_or_default();
        let from = from.map(|from| (from.path(), from.id()));
        let (path, pid) = &self.key;
        link.send_signal(&Signal { path, pid: Some(*pid), from, what, reason: &reason });
    }
}

impl ToPeer {
    /// A link is over, for this reason of its end here.
    fn send_end(&self, what: u8, local: &Pid, reason: Option<&Exit>) {
        let Some(link) = self.link.upgrade() else {
            return;
        };
        let mut ties = link.ties.near.lock();
        if let Some(near) = ties.as_mut() {
            near.unlinked((self.serial, local.id()));
        }
        // Sent under the lock, so that the next link does not overtake it.
        self.send(what, Some(local), reason);
    }

    /// Ends a link of which the peer is not told: the other one is out of reach for it, and for nobody else.
    fn refuse(&self, link: &Link, by: &Pid) {
        if let Some((_, stand_in)) = link.ties.stand_in(&self.key).filter(|(serial, _)| *serial == self.serial) {
            stand_in.unlinked(by);
        }
        let (path, pid) = &self.key;
        let (_pid, nobody) = Pid::stand_in(*pid, shown_path(path, &link.peer.node), Arc::new(ToNobody));
        if nobody.linked(by) {
            nobody.exit(&Exit::NoConnection);
        }
    }
}

impl Proxy for ToPeer {
    fn stop(&self, reason: Exit) {
        self.send(signal::STOP, None, Some(&reason));
    }

    fn kill(&self) {
        self.send(signal::KILL, None, None);
    }

    fn linked(&self, by: &Pid) {
        if let Some(link) = self.link.upgrade()
            && !link.make_link(self, by)
        {
            self.refuse(&link, by);
        }
    }

    fn unlinked(&self, by: &Pid) {
        self.send_end(signal::UNLINK, by, None);
    }

    fn exited(&self, from: &Pid, reason: &Exit) {
        self.send_end(signal::EXIT, from, Some(reason));
    }
}

impl Drop for ToPeer {
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            link.forget_stand_in(&self.key, self.serial);
        }
    }
}

/// Of what is lost already.
struct ToNobody;

impl Proxy for ToNobody {
    fn stop(&self, _: Exit) {}
    fn kill(&self) {}
    fn linked(&self, _: &Pid) {}
    fn unlinked(&self, _: &Pid) {}
    fn exited(&self, _: &Pid, _: &Exit) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_from_elsewhere_is_cut_between_letters_and_in_its_depth() {
        // An odd number of bytes before letters of two.
        let text = format!("x{}", "é".repeat(EXIT_TEXT_BYTES_MAX));
        let Exit::Error(cut) = bounded(Exit::Error(text)) else { panic!("another kind") };
        assert_eq!(cut, format!("x{}…", "é".repeat((EXIT_TEXT_BYTES_MAX - 1) / 2)));
        let short = Exit::Panic { message: "boom".into(), location: Some("a.rs:1".into()) };
        assert_eq!(bounded(short.clone()), short);
        let deep = (0..100).fold(short, |exit, _| Exit::StartFailed { child: "c".into(), reason: Box::new(exit) });
        let mut depth = 0;
        let mut exit = bounded(deep);
        while let Exit::StartFailed { reason, .. } = exit {
            (exit, depth) = (*reason, depth + 1);
        }
        assert_eq!((exit, depth), (unreadable(), EXIT_DEPTH_MAX));
    }
}
