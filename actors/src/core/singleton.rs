//! When a singleton may run: the lease, the child that lives by it, and the time left. Pure: events and a time in, actions out.
//!
//! ```text
//!            granted              renewed in time: on
//!  Waiting ───────────▶ Running ◀─────────────────────┐
//!     ▲                   │  lease gone, stand down, or until - margin - stop
//!     │                   ▼
//!     │                Stopping ── until - margin, or stop is over ──▶ Killed
//!     └──── child ended ──┴───────────────── child ended ───────────────┘
//! ```
//! The rule: a lease is ours from the moment at which we *sent* the request that was granted, for its time to live. Whoever grants it counts
//! from a later moment, so it is free for another only after it has ended for us, however late the answer came (Gray and Cheriton 1989).
//! Clocks must run equally fast; they need not show the same time.
//!
//! Must never start a child that could not be stopped in time. Driven by [`crate::Singleton`].

use std::time::Duration;

/// A request is repeated this many times within the time of a lease.
const RENEWALS_PER_LEASE: u32 = 3;

/// What the singleton's owner has decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long the child may take to stop in order.
    pub(crate) stop: Duration,
    /// How long before the end of the lease the child is killed: what a kill and a late timer may take.
    pub(crate) margin: Duration,
    /// Between two tries to get the lease, or to start the child.
    pub(crate) retry: Duration,
    /// After this time without an answer a request counts as lost.
    pub(crate) answer: Duration,
}

pub(crate) enum Event {
    Boot,
    /// Something may be due.
    Timer,
    Answer {
        request: u64,
        answer: Answer,
    },
    /// The grant with this token is gone before its time.
    Lost {
        token: u64,
    },
    /// The child has ended, for whatever reason.
    ChildExited,
    /// Let others have the lease for this long.
    StandDown(Duration),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Granted {
        token: u64,
        ttl: Duration,
    },
    /// Another has it, until about then.
    Refused {
        retry: Option<Duration>,
    },
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Acquire { request: u64 },
    Renew { request: u64, token: u64 },
    Release { token: u64 },
    Start { token: u64 },
    Stop,
    Kill,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    token: u64,
    /// The lease is ours until then.
    until: Duration,
    renew_at: Duration,
    /// It will not be renewed.
    lost: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Child {
    None,
    Running,
    Stopping { since: Duration },
    Killed,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    request: u64,
    sent: Duration,
}

/// The decisions of one candidate.
#[derive(Debug)]
pub(crate) struct Singleton {
    limits: Limits,
    held: Option<Held>,
    child: Child,
    pending: Option<Pending>,
    next_request: u64,
    /// Not before then a lease is asked for.
    next_try: Duration,
    /// Not before then a child is started.
    next_start: Duration,
    down_until: Duration,
    actions: Vec<Action>,
}

impl Singleton {
    pub(crate) fn new(limits: Limits) -> Self {
        Singleton {
            limits,
            held: None,
            child: Child::None,
            pending: None,
            next_request: 0,
            next_try: Duration::ZERO,
            next_start: Duration::ZERO,
            down_until: Duration::ZERO,
            actions: Vec::new(),
        }
    }

    /// What is to be done now that this happened. `now` never goes back.
    pub(crate) fn on_event(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Boot | Event::Timer => {}
            Event::Answer { request, answer } => self.answered(request, answer, now),
            Event::Lost { token } => self.lost(token),
            Event::ChildExited => {
                if matches!(self.child, Child::Running) {
                    // By itself: not at once again, or it would be a busy loop.
                    self.next_start = now.saturating_add(self.limits.retry);
                }
                self.child = Child::None;
            }
            Event::StandDown(time) => self.down_until = self.down_until.max(now.saturating_add(time)),
        }
        self.decide(now);
        std::mem::take(&mut self.actions)
    }

    /// When something is due next, if nothing else happens.
    pub(crate) fn wake_at(&self, now: Duration) -> Option<Duration> {
        let held = self.held.as_ref();
        let moments = [
            self.pending.map(|pending| pending.sent.saturating_add(self.limits.answer)),
            held.filter(|held| self.pending.is_none() && !held.lost).map(|held| held.renew_at),
            held.map(|held| held.until),
            matches!(self.child, Child::Running).then(|| self.stop_at()).flatten(),
            matches!(self.child, Child::Running | Child::Stopping { .. }).then(|| self.kill_at()).flatten(),
            (held.is_none() && self.pending.is_none()).then_some(self.next_try),
            Some(self.next_start),
            Some(self.down_until),
        ];
        moments.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// The last moment at which a child that runs has to be killed, whatever else happens.
    pub(crate) fn kill_at(&self) -> Option<Duration> {
        let lease = self.held.as_ref()?.until.saturating_sub(self.limits.margin);
        match self.child {
            Child::None => None,
            Child::Running => Some(lease),
            Child::Stopping { since } => Some(lease.min(since.saturating_add(self.limits.stop))),
            Child::Killed => Some(Duration::ZERO),
        }
    }

    /// The token of the lease that is held.
    pub(crate) fn token(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.token)
    }

    pub(crate) fn runs(&self) -> bool {
        matches!(self.child, Child::Running)
    }

    /// Nothing runs and no lease is held.
    pub(crate) fn idle(&self) -> bool {
        matches!(self.child, Child::None) && self.held.is_none()
    }

    /// Its owner ends and the child has ended: the lease need not run out.
    pub(crate) fn ended(&mut self) -> Option<Action> {
        self.held.take().filter(|held| !held.lost).map(|held| Action::Release { token: held.token })
    }

    fn stop_at(&self) -> Option<Duration> {
        let held = self.held.as_ref()?;
        Some(held.until.saturating_sub(self.limits.margin.saturating_add(self.limits.stop)))
    }

    fn answered(&mut self, request: u64, answer: Answer, now: Duration) {
        // An answer that nobody waits for any more is about a lease that may have been given back since.
        let Some(pending) = self.pending.take_if(|pending| pending.request == request) else { return };
        match (answer, &mut self.held) {
            (Answer::Granted { token, ttl }, held) => {
                let until = pending.sent.saturating_add(ttl);
                let renew_at = pending.sent.saturating_add(ttl / RENEWALS_PER_LEASE);
                match held {
                    Some(held) if held.token == token => {
                        held.until = held.until.max(until);
                        held.renew_at = renew_at;
                    }
                    // Another grant than the one that the child was started with: it ends with that.
                    Some(held) => held.lost = true,
                    None => *held = Some(Held { token, until, renew_at, lost: false }),
                }
            }
            (Answer::Refused { .. }, Some(held)) => held.lost = true,
            (Answer::Refused { retry }, None) => self.next_try = now.saturating_add(retry.unwrap_or(self.limits.retry)),
            (Answer::Failed, Some(held)) => held.renew_at = now + self.limits.retry,
            (Answer::Failed, None) => self.next_try = now + self.limits.retry,
        }
    }

    fn lost(&mut self, token: u64) {
        let Some(held) = self.held.as_mut().filter(|held| held.token == token) else { return };
        held.lost = true;
        // Another may run already: there is no time to ask.
        self.kill();
    }

    fn kill(&mut self) {
        if matches!(self.child, Child::Running | Child::Stopping { .. }) {
            self.child = Child::Killed;
            self.actions.push(Action::Kill);
        }
    }

    fn decide(&mut self, now: Duration) {
        self.child(now);
        self.lease(now);
        // With what the lease has become.
        self.start(now);
        self.request(now);
    }

    fn child(&mut self, now: Duration) {
        let held_well = self.held.as_ref().is_some_and(|held| !held.lost);
        let in_time = self.stop_at().is_some_and(|at| now < at);
        if matches!(self.child, Child::Running) && (!held_well || !in_time || now < self.down_until) {
            self.child = Child::Stopping { since: now };
            self.actions.push(Action::Stop);
        }
        if matches!(self.child, Child::Stopping { .. }) && self.kill_at().is_none_or(|at| now >= at) {
            self.kill();
        }
    }

    fn lease(&mut self, now: Duration) {
        let Some(held) = &self.held else { return };
        if !matches!(self.child, Child::None) {
            return;
        }
        let (token, lost) = (held.token, held.lost);
        let over = now >= held.until;
        let stands_down = now < self.down_until;
        if !(lost || over || stands_down) {
            return;
        }
        self.held = None;
        self.pending = None;
        if lost {
            self.next_try = now.saturating_add(self.limits.retry);
        } else if stands_down {
            self.actions.push(Action::Release { token });
        }
    }

    fn start(&mut self, now: Duration) {
        let Some(held) = self.held.filter(|held| !held.lost) else { return };
        let in_time = self.stop_at().is_some_and(|at| now < at);
        if matches!(self.child, Child::None) && in_time && now >= self.next_start && now >= self.down_until {
            self.child = Child::Running;
            self.actions.push(Action::Start { token: held.token });
        }
    }

    fn request(&mut self, now: Duration) {
        if self.pending.take_if(|pending| now >= pending.sent.saturating_add(self.limits.answer)).is_some()
            && self.held.is_none()
        {
            self.next_try = now.saturating_add(self.limits.retry);
        }
        if self.pending.is_some() {
            return;
        }
        let request = self.next_request;
        let action = match &self.held {
            Some(held) if !held.lost && now >= held.renew_at => Action::Renew { request, token: held.token },
            None if matches!(self.child, Child::None) && now >= self.next_try && now >= self.down_until => {
                Action::Acquire { request }
            }
            _ => return,
        };
        self.next_request += 1;
        self.pending = Some(Pending { request, sent: now });
        self.actions.push(action);
    }
}
