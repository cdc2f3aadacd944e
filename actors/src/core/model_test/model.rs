//! OTP's supervisors as functions that call each other and return when all is done, as `supervisor.erl` does: what takes time moves the
//! clock. Written from OTP's rules; backoff, which OTP has not, is the crate's own.
//!
//! It differs from OTP where the crate does: a supervisor that gave up has an abnormal exit; children of a dynamic one have ids and specs
//! of their own; of several retries that wait for one child, the last counts.

use super::script::{Act, Command, Kind, Node, Outcome, PERIOD_MS, Sup};
use super::{Seen, Shown, What, is_dynamic, no_start};
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::{AutoShutdown, Backoff, Restart, Shutdown, Strategy};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const NEVER: u64 = u64::MAX;

pub(super) struct Model {
    pub(super) now: u64,
    pub(super) trace: Vec<Seen>,
    pub(super) answers: BTreeMap<usize, String>,
    /// The paths at which a dynamic supervisor ever ran.
    pub(super) dynamic: BTreeSet<String>,
    /// The supervisors that run.
    sups: BTreeMap<String, Proc>,
    outcomes: VecDeque<Outcome>,
    /// Backoffs that run: when, and then in the order in which they began.
    agenda: BTreeMap<(u64, u64), Due>,
    asked: usize,
    /// Numbers children, retries, waits.
    counter: u64,
}

struct Proc {
    spec: Arc<Sup>,
    children: Vec<Child>,
    restarts: Vec<u64>,
    mailbox: VecDeque<Mail>,
    /// A group that waits out a backoff: its first child, and which wait it is.
    group: Option<(u64, u64)>,
}

struct Child {
    node: Arc<Node>,
    serial: u64,
    pid: Slot,
    attempts: u32,
    since: u64,
}

#[derive(PartialEq)]
enum Slot {
    Undefined,
    /// Dead, and its exit is in the mailbox, if not alive.
    Pid {
        alive: bool,
    },
    /// A restart failed.
    Restarting {
        retry: u64,
        last: Exit,
    },
    /// A backoff of its own runs.
    Waiting {
        wait: u64,
    },
    /// To be started with its group.
    Queued,
}

enum Mail {
    Exit(u64, Exit),
    Command(usize, Command),
    TryAgain(u64, u64),
}

enum Due {
    Child { path: String, serial: u64, wait: u64 },
    Group { path: String, wait: u64 },
}

/// It was not done when it should have been.
struct Late;

impl Model {
    pub(super) fn new() -> Self {
        Model {
            now: 0,
            trace: vec![],
            answers: BTreeMap::new(),
            dynamic: BTreeSet::new(),
            sups: BTreeMap::new(),
            outcomes: VecDeque::new(),
            agenda: BTreeMap::new(),
            asked: 0,
            counter: 0,
        }
    }

    pub(super) fn boot(&mut self, top: &Arc<Sup>) {
        let _ = self.start_sup("r", top);
    }

    /// The path of a supervisor that runs.
    pub(super) fn sup(&self, n: usize) -> String {
        self.sups.keys().nth(n % self.sups.len()).cloned().unwrap_or_default()
    }

    pub(super) fn ids(&self, path: &str) -> Vec<Arc<str>> {
        self.sups[path].children.iter().map(|child| child.node.id.clone()).collect()
    }

    pub(super) fn act(&mut self, act: &Act) {
        match act {
            Act::Outcomes(outcomes) => self.outcomes = outcomes.iter().copied().collect(),
            Act::Wait(ms) => self.wait(*ms),
            Act::Ends(path, exit) => {
                let (parent, id) = path.rsplit_once('/').expect("a child");
                let sup = self.proc(parent);
                let Some(child) = sup.children.iter_mut().find(|child| &*child.node.id == id) else { return };
                if child.pid != (Slot::Pid { alive: true }) {
                    return;
                }
                child.pid = Slot::Pid { alive: false };
                let killed = matches!(child.node.kind, Kind::Sup(_));
                let exit = if killed { Exit::Killed } else { exit.clone() };
                sup.mailbox.push_back(Mail::Exit(child.serial, exit));
                if killed {
                    self.kill(path);
                }
            }
            Act::Command(path, command) => {
                self.asked += 1;
                let mail = Mail::Command(self.asked, command.clone());
                self.proc(path).mailbox.push_back(mail);
            }
            Act::Stop(path, reason) => self.ends(path.clone(), reason.clone()),
        }
    }

    /// All take their mail until there is none.
    pub(super) fn run(&mut self) {
        while let Some(path) = self.sups.iter().find(|(_, sup)| !sup.mailbox.is_empty()).map(|(path, _)| path.clone()) {
            self.take(path);
        }
    }

    pub(super) fn shown(&self) -> BTreeMap<String, Vec<(String, Shown)>> {
        let shown = |child: &Child| {
            let shown = match child.pid {
                Slot::Undefined => Shown::Undefined,
                Slot::Pid { .. } => Shown::Pid,
                Slot::Restarting { .. } | Slot::Waiting { .. } | Slot::Queued => Shown::Restarting,
            };
            (child.node.id.to_string(), shown)
        };
        self.sups.iter().map(|(path, sup)| (path.clone(), sup.children.iter().map(shown).collect())).collect()
    }

    // ---- the mailbox -------------------------------------------------------------------------------------------------------------

    fn take(&mut self, path: String) {
        while let Some(mail) = self.sups.get_mut(&path).and_then(|sup| sup.mailbox.pop_front()) {
            let end = match mail {
                Mail::Exit(serial, exit) => self.exited(&path, serial, exit),
                Mail::TryAgain(serial, retry) => self.try_again(&path, serial, retry),
                Mail::Command(asker, command) => {
                    let answer = self.command(&path, command);
                    self.answers.insert(asker, format!("{answer:?}"));
                    None
                }
            };
            if let Some(reason) = end {
                return self.ends(path, reason);
            }
        }
    }

    /// A supervisor ends by itself, or because of a stranger: that is an exit for its own supervisor.
    fn ends(&mut self, path: String, reason: Exit) {
        for mail in std::mem::take(&mut self.proc(&path).mailbox) {
            if let Mail::Command(asker, _) = mail {
                self.answers.insert(asker, format!("{:?}", Err::<(), _>(ChildError::SupervisorDown)));
            }
        }
        if reason == Exit::Killed {
            self.kill(&path);
        } else {
            let _ = self.close(&path, &reason, NEVER);
        }
        let Some((parent, id)) = path.rsplit_once('/') else { return };
        let sup = self.proc(parent);
        let child = sup.children.iter_mut().find(|child| &*child.node.id == id).expect("its child");
        child.pid = Slot::Pid { alive: false };
        let mail = Mail::Exit(child.serial, reason);
        sup.mailbox.push_back(mail);
        self.take(parent.to_owned());
    }

    /// `handle_info({'EXIT', ..})`. What is returned here and below: the supervisor ends, for this reason.
    fn exited(&mut self, path: &str, serial: u64, exit: Exit) -> Option<Exit> {
        let now = self.now;
        let at = self.at(path, serial)?;
        let child = &mut self.proc(path).children[at];
        if child.pid != (Slot::Pid { alive: false }) {
            return None;
        }
        let policy = child.node.policy.clone();
        if policy.backoff.is_some_and(|spec| now - child.since >= spec.reset_after.as_millis() as u64) {
            child.attempts = 0;
        }
        let in_order = matches!(exit, Exit::Normal | Exit::Shutdown | Exit::ShutdownWith(_) | Exit::Ignore);
        match policy.restart {
            Restart::Permanent => return self.restart(path, at, exit),
            Restart::Transient if !in_order => return self.restart(path, at, exit),
            Restart::Transient | Restart::Temporary => self.delete(path, at),
        }
        let sup = self.proc(path);
        let all = || !sup.children.iter().any(|c| c.node.policy.significant && c.pid != Slot::Undefined);
        let end = match sup.spec.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => policy.significant,
            AutoShutdown::AllSignificant => policy.significant && all(),
        };
        end.then_some(Exit::Shutdown)
    }

    fn try_again(&mut self, path: &str, serial: u64, retry: u64) -> Option<Exit> {
        let at = self.at(path, serial)?;
        match &self.proc(path).children[at].pid {
            Slot::Restarting { retry: waits, last } if *waits == retry => {
                let last = last.clone();
                if !self.allowed(path) {
                    return Some(self.gives_up(path, at, last));
                }
                self.go(path, at, 0)
            }
            _ => None,
        }
    }

    fn command(&mut self, path: &str, command: Command) -> Result<(), ChildError> {
        let find = |model: &Model, id: &str| model.sups[path].children.iter().position(|child| &*child.node.id == id);
        let failed = |result: Result<Slot, Exit>| result.map_err(ChildError::StartFailed);
        match command {
            Command::Start(node) => {
                let (significant, auto) = (node.policy.significant, self.sups[path].spec.auto_shutdown);
                if significant && (auto == AutoShutdown::Never || node.policy.restart == Restart::Permanent) {
                    return Err(ChildError::BadCombination(if auto == AutoShutdown::Never {
                        "a significant child needs a supervisor that shuts down for it: set its auto_shutdown"
                    } else {
                        "a permanent child cannot be significant, since it always returns: make it transient"
                    }));
                }
                if let Some(at) = find(self, &node.id) {
                    let running = matches!(self.sups[path].children[at].pid, Slot::Pid { .. });
                    return Err(if running { ChildError::AlreadyStarted } else { ChildError::AlreadyPresent });
                }
                let pid = failed(self.start(path, &node))?;
                let for_good = node.policy.restart == Restart::Temporary || self.is_dynamic(path);
                if pid != Slot::Undefined || !for_good {
                    self.add(path, &node, pid);
                }
            }
            Command::Terminate(id) => {
                let at = find(self, &id).ok_or(ChildError::NotFound)?;
                let _ = self.stop(path, at, NEVER);
                self.delete(path, at);
            }
            Command::Restart(id) => {
                let at = find(self, &id).ok_or(ChildError::NotFound)?;
                self.idle(path, at)?;
                let node = self.sups[path].children[at].node.clone();
                let pid = failed(self.start(path, &node))?;
                self.set(path, at, pid);
            }
            Command::Delete(id) => {
                let at = find(self, &id).ok_or(ChildError::NotFound)?;
                self.idle(path, at)?;
                self.proc(path).children.remove(at);
            }
        }
        Ok(())
    }

    fn idle(&self, path: &str, at: usize) -> Result<(), ChildError> {
        match self.sups[path].children[at].pid {
            Slot::Undefined => Ok(()),
            Slot::Pid { .. } => Err(ChildError::Running),
            Slot::Restarting { .. } | Slot::Waiting { .. } | Slot::Queued => Err(ChildError::Restarting),
        }
    }

    // ---- restarts ----------------------------------------------------------------------------------------------------------------

    fn restart(&mut self, path: &str, at: usize, last: Exit) -> Option<Exit> {
        let delay = self.delay(path, at);
        if !self.allowed(path) {
            return Some(self.gives_up(path, at, last));
        }
        self.go(path, at, delay)
    }

    fn allowed(&mut self, path: &str) -> bool {
        let now = self.now;
        let sup = self.proc(path);
        sup.restarts.retain(|then| now - then <= PERIOD_MS);
        sup.restarts.push(now);
        sup.restarts.len() <= sup.spec.intensity as usize
    }

    fn gives_up(&mut self, path: &str, at: usize, last: Exit) -> Exit {
        self.set(path, at, Slot::Undefined);
        let child = self.sups[path].children[at].node.id.to_string();
        Exit::RestartIntensity { child, last: Box::new(last) }
    }

    fn go(&mut self, path: &str, at: usize, delay: u64) -> Option<Exit> {
        let serial = self.sups[path].children[at].serial;
        let wait = self.count();
        let from = match self.sups[path].spec.strategy {
            Strategy::OneForOne | Strategy::Dynamic if delay > 0 => {
                self.set(path, at, Slot::Waiting { wait });
                self.agenda.insert((self.now + delay, wait), Due::Child { path: path.into(), serial, wait });
                return None;
            }
            Strategy::OneForOne | Strategy::Dynamic => return self.start_again(path, at),
            Strategy::OneForAll => 0,
            Strategy::RestForOne => serial,
        };
        // Larger, if a larger group waits already.
        let from = self.sups[path].group.map_or(from, |(waits, _)| from.min(waits));
        self.set(path, at, Slot::Undefined);
        for at in (0..self.sups[path].children.len()).rev() {
            if self.sups[path].children[at].serial >= from {
                let _ = self.stop(path, at, NEVER);
            }
        }
        let sup = self.proc(path);
        sup.children.retain(|child| child.serial < from || child.node.policy.restart != Restart::Temporary);
        sup.children.iter_mut().filter(|child| child.serial >= from).for_each(|child| child.pid = Slot::Queued);
        if delay > 0 {
            sup.group = Some((from, wait));
            self.agenda.insert((self.now + delay, wait), Due::Group { path: path.into(), wait });
            return None;
        }
        self.start_queued(path)
    }

    fn start_queued(&mut self, path: &str) -> Option<Exit> {
        self.proc(path).group = None;
        while let Some(at) = self.sups[path].children.iter().position(|child| child.pid == Slot::Queued) {
            let node = self.sups[path].children[at].node.clone();
            match self.start(path, &node) {
                Ok(pid) => self.set(path, at, pid),
                Err(exit) => {
                    // Those behind it are not started.
                    for child in &mut self.proc(path).children {
                        if child.pid == Slot::Queued {
                            child.pid = Slot::Undefined;
                        }
                    }
                    return self.start_failed(path, at, exit);
                }
            }
        }
        None
    }

    fn start_again(&mut self, path: &str, at: usize) -> Option<Exit> {
        let node = self.sups[path].children[at].node.clone();
        match self.start(path, &node) {
            Ok(Slot::Undefined) => self.delete(path, at),
            Ok(pid) => self.set(path, at, pid),
            Err(exit) => return self.start_failed(path, at, exit),
        }
        None
    }

    fn start_failed(&mut self, path: &str, at: usize, exit: Exit) -> Option<Exit> {
        let delay = self.delay(path, at);
        if delay > 0 {
            if !self.allowed(path) {
                return Some(self.gives_up(path, at, exit));
            }
            return self.go(path, at, delay);
        }
        let retry = self.count();
        let serial = self.sups[path].children[at].serial;
        self.set(path, at, Slot::Restarting { retry, last: exit });
        self.proc(path).mailbox.push_back(Mail::TryAgain(serial, retry));
        None
    }

    // ---- time --------------------------------------------------------------------------------------------------------------------

    fn wait(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= until) {
            self.now = entry.key().0;
            let (path, end) = match entry.remove() {
                Due::Child { path, serial, wait } => {
                    let Some(at) = self.at(&path, serial) else { continue };
                    if self.sups[&path].children[at].pid != (Slot::Waiting { wait }) {
                        continue;
                    }
                    let end = self.start_again(&path, at);
                    (path, end)
                }
                Due::Group { path, wait } => {
                    if self.sups.get(&path).and_then(|sup| sup.group).is_none_or(|(_, waits)| waits != wait) {
                        continue;
                    }
                    let end = self.start_queued(&path);
                    (path, end)
                }
            };
            match end {
                Some(reason) => self.ends(path, reason),
                None => self.take(path),
            }
            self.run();
        }
        self.now = until;
    }

    fn delay(&mut self, path: &str, at: usize) -> u64 {
        let child = &mut self.proc(path).children[at];
        let Some(Backoff { initial, step, factor, max, .. }) = child.node.policy.backoff.as_deref() else { return 0 };
        let mut delay = *initial;
        for n in 0..child.attempts {
            delay = if n == 0 { *step } else { delay.mul_f64(*factor) };
        }
        child.attempts += 1;
        delay.min(*max).as_millis() as u64
    }

    // ---- starts and stops --------------------------------------------------------------------------------------------------------

    /// `Undefined`: it had nothing to do.
    fn start(&mut self, path: &str, node: &Node) -> Result<Slot, Exit> {
        let path = format!("{path}/{}", node.id);
        match &node.kind {
            Kind::Sup(spec) => self.start_sup(&path, &spec.clone()),
            Kind::Worker { .. } => match self.outcomes.pop_front().unwrap_or(Outcome::Up) {
                Outcome::Up => {
                    self.see(path, What::Up);
                    Ok(Slot::Pid { alive: true })
                }
                Outcome::Ignores => {
                    self.see(path, What::Ignored);
                    Ok(Slot::Undefined)
                }
                Outcome::Fails => {
                    self.see(path, What::NoStart);
                    Err(no_start())
                }
            },
        }
    }

    fn start_sup(&mut self, path: &str, spec: &Arc<Sup>) -> Result<Slot, Exit> {
        if is_dynamic(spec.strategy) {
            self.dynamic.insert(path.to_owned());
        }
        let proc =
            Proc { spec: spec.clone(), children: vec![], restarts: vec![], mailbox: VecDeque::new(), group: None };
        self.sups.insert(path.to_owned(), proc);
        for node in &spec.children {
            match self.start(path, node) {
                Ok(Slot::Undefined)
                    if node.policy.restart == Restart::Temporary || spec.strategy == Strategy::Dynamic => {}
                Ok(pid) => self.add(path, node, pid),
                Err(exit) => {
                    let exit = Exit::StartFailed { child: node.id.to_string(), reason: Box::new(exit) };
                    let _ = self.close(path, &exit, NEVER);
                    return Err(exit);
                }
            }
        }
        self.see(path.to_owned(), What::Up);
        Ok(Slot::Pid { alive: true })
    }

    /// A supervisor stops its children and ends. All must be done before `deadline`; else it is where it is then.
    fn close(&mut self, path: &str, reason: &Exit, deadline: u64) -> Result<(), Late> {
        let count = self.sups[path].children.len();
        if self.is_dynamic(path) {
            let (begin, first) = (self.now, self.trace.len());
            let (mut end, mut late) = (begin, false);
            for at in 0..count {
                self.now = begin;
                late |= self.stop(path, at, deadline).is_err();
                end = end.max(self.now);
            }
            self.now = end;
            self.trace[first..].sort_by_key(|seen| seen.at_ms);
            if late {
                return Err(Late);
            }
        } else {
            for at in (0..count).rev() {
                self.stop(path, at, deadline)?;
            }
        }
        self.sups.remove(path);
        self.see(path.to_owned(), What::Exit(reason.to_string()));
        Ok(())
    }

    /// `do_terminate`: asks the child, and kills it when its time is over, if there is so much time.
    fn stop(&mut self, path: &str, at: usize, deadline: u64) -> Result<(), Late> {
        let now = self.now;
        let sup = self.proc(path);
        let child = &mut sup.children[at];
        let (node, serial) = (child.node.clone(), child.serial);
        match child.pid {
            Slot::Pid { alive: true } => {}
            Slot::Pid { alive: false } => {
                child.pid = Slot::Undefined;
                sup.mailbox.retain(|mail| !matches!(mail, Mail::Exit(of, _) if *of == serial));
                return Ok(());
            }
            _ => {
                child.pid = Slot::Undefined;
                return Ok(());
            }
        }
        let own = match node.policy.shutdown {
            Shutdown::Brutal => now,
            Shutdown::Infinity => NEVER,
            Shutdown::Timeout(time) => now + time.as_millis() as u64,
        };
        let brutal = node.policy.shutdown == Shutdown::Brutal;
        let path_of_child = format!("{path}/{}", node.id);
        let done = match &node.kind {
            _ if brutal => Err(Late),
            Kind::Sup(_) => self.close(&path_of_child, &Exit::Shutdown, own.min(deadline)),
            Kind::Worker { stops_in_ms } if now + stops_in_ms < own.min(deadline) => {
                self.now += stops_in_ms;
                self.see(path_of_child.clone(), What::Stopped);
                Ok(())
            }
            Kind::Worker { .. } => Err(Late),
        };
        if done.is_err() {
            self.now = own.min(deadline);
            // Of two that run out together, the one set first fires first.
            if deadline <= own {
                return Err(Late);
            }
            match node.kind {
                Kind::Sup(_) => self.kill(&path_of_child),
                Kind::Worker { .. } => self.see(path_of_child, What::Killed),
            }
        }
        self.set(path, at, Slot::Undefined);
        Ok(())
    }

    /// A supervisor is killed, and all beneath it with it.
    fn kill(&mut self, path: &str) {
        self.sweep(path, path);
    }

    fn sweep(&mut self, path: &str, of: &str) {
        let Some(sup) = self.sups.remove(path) else { return };
        self.see(path.to_owned(), What::Swept(of.to_owned()));
        for child in sup.children.iter().filter(|child| child.pid == Slot::Pid { alive: true }) {
            let path = format!("{path}/{}", child.node.id);
            match child.node.kind {
                Kind::Sup(_) => self.sweep(&path, of),
                Kind::Worker { .. } => self.see(path, What::Swept(of.to_owned())),
            }
        }
    }

    // ---- single steps ------------------------------------------------------------------------------------------------------------

    /// `del_child`: what is temporary leaves the list, what is not stays in it without a pid.
    fn delete(&mut self, path: &str, at: usize) {
        if self.is_dynamic(path) || self.sups[path].children[at].node.policy.restart == Restart::Temporary {
            self.proc(path).children.remove(at);
        } else {
            self.set(path, at, Slot::Undefined);
        }
    }

    fn add(&mut self, path: &str, node: &Arc<Node>, pid: Slot) {
        let child = Child { node: node.clone(), serial: self.count(), pid, attempts: 0, since: self.now };
        self.proc(path).children.push(child);
    }

    fn set(&mut self, path: &str, at: usize, pid: Slot) {
        let now = self.now;
        let child = &mut self.proc(path).children[at];
        child.pid = pid;
        child.since = now;
    }

    fn see(&mut self, path: String, what: What) {
        self.trace.push(Seen { at_ms: self.now, path, what });
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn proc(&mut self, path: &str) -> &mut Proc {
        self.sups.get_mut(path).expect("it runs")
    }

    fn is_dynamic(&self, path: &str) -> bool {
        is_dynamic(self.sups[path].spec.strategy)
    }

    fn at(&self, path: &str, serial: u64) -> Option<usize> {
        self.sups.get(path)?.children.iter().position(|child| child.serial == serial)
    }
}
