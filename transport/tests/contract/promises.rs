//! The contract's promises, one function each, held against what everybody saw. Each gives a line for each breach, and for
//! one fault no other does. Called by `main` on every history and by `planted` on false ones; must know nothing but records.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use phalanx_transport::{AskError, Exit, LossReason, SendError};

use crate::{
    records::{Ask, Boot, Change, Flow, Handled, Lane, Records, Tell, Watch},
    workload::answer,
};

/// A timer may be so late: two of its ticks.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// A connection that is closed may be noticed so much before its `Down`: what arrived before the close is still handled.
const DRAIN_MAX: Duration = Duration::from_millis(100);

pub type Promise = fn(&Records, &mut Vec<String>);

/// Every promise, by its name.
pub const PROMISES: [(&str, Promise); 12] = [
    ("tells_are_handled_at_most_once_and_in_order", tells_are_handled_at_most_once_and_in_order),
    (
        "of_what_was_told_on_a_connection_only_the_end_can_be_lost",
        of_what_was_told_on_a_connection_only_the_end_can_be_lost,
    ),
    ("what_was_told_on_a_connection_that_lasts_is_handled", what_was_told_on_a_connection_that_lasts_is_handled),
    ("tells_are_refused_for_a_reason", tells_are_refused_for_a_reason),
    ("what_was_refused_is_never_handled", what_was_refused_is_never_handled),
    ("every_ask_ends_by_its_deadline", every_ask_ends_by_its_deadline),
    ("asks_are_handled_at_most_once_and_answered_rightly", asks_are_handled_at_most_once_and_answered_rightly),
    ("nobody_handles_what_nobody_waits_for", nobody_handles_what_nobody_waits_for),
    ("monitors_fire_once_and_for_a_reason", monitors_fire_once_and_for_a_reason),
    (
        "ups_and_downs_alternate_and_monitors_fire_before_the_down",
        ups_and_downs_alternate_and_monitors_fire_before_the_down,
    ),
    ("bodies_are_whole_or_broken", bodies_are_whole_or_broken),
    ("datagrams_come_at_most_once", datagrams_come_at_most_once),
];

/// Every breach of every promise, each after the name of the promise.
pub fn broken(records: &Records) -> Vec<String> {
    let mut broken: Vec<_> = records.wrong.iter().map(|wrong| format!("seen at once: {wrong}")).collect();
    for (name, promise) in PROMISES {
        let mut breaches = vec![];
        promise(records, &mut breaches);
        broken.extend(breaches.into_iter().map(|breach| format!("{name}: {breach}")));
    }
    broken
}

/// **tell**: at most once; handled one after the other in the order sent, for one sender, lane and path. Also over
/// reconnects and restarts of the receiver.
fn tells_are_handled_at_most_once_and_in_order(records: &Records, broken: &mut Vec<String>) {
    for (flow, told) in &records.told {
        for pair in told.windows(2) {
            if pair[1].number <= pair[0].number {
                broken.push(format!("{flow:?}: {:?} was handled before {:?}", pair[0], pair[1]));
            }
        }
        for handled in told.iter().filter(|handled| !handled.alone) {
            broken.push(format!("{flow:?}: {handled:?} was begun before the one before it had ended"));
        }
    }
}

/// What was queued on a connection when it was lost is lost: the end of it, and nothing in the middle.
fn of_what_was_told_on_a_connection_only_the_end_can_be_lost(records: &Records, broken: &mut Vec<String>) {
    for (flow, connection, taken, handled) in by_connection(records) {
        if !taken.starts_with(&handled) {
            broken.push(format!("{flow:?}, connection {connection}: told {taken:?}, handled {handled:?}"));
        }
    }
}

/// Without a `Down`, nothing that was taken is lost.
fn what_was_told_on_a_connection_that_lasts_is_handled(records: &Records, broken: &mut Vec<String>) {
    for (flow, connection, taken, handled) in by_connection(records) {
        if lasts(records, &flow.from, &flow.to, connection) && taken.len() != handled.len() {
            broken.push(format!("{flow:?}, connection {connection}, is up: told {taken:?}, handled {handled:?}"));
        }
    }
}

/// Whether something that will be handled has not been yet.
pub fn is_backlogged(records: &Records) -> bool {
    by_connection(records).any(|(flow, connection, taken, handled)| {
        lasts(records, &flow.from, &flow.to, connection) && taken.len() != handled.len()
    })
}

/// Without a connection a tell is refused at once; with one, only where a queue is full.
fn tells_are_refused_for_a_reason(records: &Records, broken: &mut Vec<String>) {
    for (flow, tells) in &records.tells {
        for (number, tell) in tells.iter().enumerate() {
            let right = match tell {
                Tell { up, refused: None, .. } => *up,
                Tell { up, refused: Some(SendError::Full { node }), .. } => *up && records.slow && *node == flow.to,
                Tell { up, refused: Some(SendError::NoConnection { node }), .. } => !up && *node == flow.to,
                Tell { refused: Some(SendError::Closed), .. } => records.gone.contains(&flow.from),
                Tell { refused: Some(_), .. } => false,
            };
            if !right {
                broken.push(format!("{flow:?}: {number} was taken or refused wrongly: {tell:?}"));
            }
        }
    }
}

/// What a sender was told not to be sent is never handled.
fn what_was_refused_is_never_handled(records: &Records, broken: &mut Vec<String>) {
    for (flow, told) in &records.told {
        let tells = records.tells.get(flow).map_or(&[][..], |tells| tells);
        for Handled { number, .. } in told {
            match tells.get(*number) {
                Some(tell) if tell.is_taken() => {}
                Some(_) => broken.push(format!("{flow:?}: {number} was handled, though `tell` had failed")),
                None => broken.push(format!("{flow:?}: {number} was handled and never told")),
            }
        }
    }
    for id in &records.datagrams_refused {
        if records.datagrams.contains_key(id) {
            broken.push(format!("datagram {id} arrived, though `datagram` had failed"));
        }
    }
}

/// **ask**: ends by its deadline, whatever happens to the network.
fn every_ask_ends_by_its_deadline(records: &Records, broken: &mut Vec<String>) {
    for (id, ask) in &records.asks {
        match &ask.ended {
            Some((at, _)) if *at <= ask.deadline + TIMER_SLACK => {}
            Some((at, outcome)) => {
                broken.push(format!("ask {id} ended at {at:?}, after its deadline {:?}: {outcome:?}", ask.deadline))
            }
            None if ask.given_up || records.gone.contains(&ask.from) => {}
            None => broken.push(format!("ask {id} never ended: {ask:?}")),
        }
        // An open ended time-out would hide that the deadline is not kept.
        if let Some((at, Err(AskError::Timeout { .. }))) = &ask.ended
            && *at + TIMER_SLACK < ask.deadline
        {
            broken.push(format!("ask {id} timed out at {at:?}, before its deadline {:?}", ask.deadline));
        }
    }
}

/// **ask**: at most once; an answer is the handler's; `NoProc` means that nothing was there and it was not handled;
/// `NoConnection`, that a connection was lost or that none came in time.
fn asks_are_handled_at_most_once_and_answered_rightly(records: &Records, broken: &mut Vec<String>) {
    for (id, times) in &records.handled {
        if *times > 1 {
            broken.push(format!("ask {id} was handled {times} times"));
        }
    }
    for (id, ask) in &records.asks {
        let handled = records.handled.contains_key(id);
        let right = match ask.ended.as_ref().map(|(_, outcome)| outcome) {
            Some(Ok(answered)) => handled && *answered == answer(*id) && id % 7 != 0,
            Some(Err(AskError::Remote(text))) => handled && *text == format!("no {id}") && id % 7 == 0,
            Some(Err(AskError::NoProc { node, path })) => {
                !handled && (node, path) == (&ask.to, &ask.path) && was_unserved(records, ask)
            }
            Some(Err(AskError::NoConnection { node })) => *node == ask.to && was_unconnected(records, ask),
            Some(Err(AskError::Timeout { node, path })) => (node, path) == (&ask.to, &ask.path),
            Some(Err(AskError::Closed)) => records.gone.contains(&ask.from),
            // An old boot of a node that the new one has replaced.
            Some(Err(AskError::Refused { .. })) => !handled,
            Some(Err(_)) => false,
            None => true,
        };
        if !right {
            broken.push(format!("ask {id}, handled: {handled}, ended wrongly: {ask:?}"));
        }
    }
}

/// Whether nothing was served at the path at some time of the ask.
fn was_unserved(records: &Records, ask: &Ask) -> bool {
    let Some((ended, _)) = &ask.ended else { return false };
    let served = served(records, &ask.to, &ask.path);
    let before = served.iter().rev().find(|(when, _)| *when < ask.begun);
    let within = served.iter().any(|(when, served)| !served && (ask.begun..=*ended).contains(when));
    ask.path == "nothing" || ask.path == "mortal" && (within || before.is_none_or(|(_, served)| !served))
}

/// Whether the ask ended with a connection, or with its deadline.
fn was_unconnected(records: &Records, ask: &Ask) -> bool {
    let Some((ended, _)) = &ask.ended else { return false };
    let lost = downs(records, &ask.from, &ask.to).any(|(down, _)| (*ended..=*ended + DRAIN_MAX).contains(&down));
    lost || *ended + TIMER_SLACK >= ask.deadline || records.gone.contains(&ask.from)
}

/// When the asker gives up or is lost, the handler's future is dropped.
fn nobody_handles_what_nobody_waits_for(records: &Records, broken: &mut Vec<String>) {
    for (id, times) in &records.handling {
        if *times > 0 {
            broken.push(format!("ask {id} is over, and {times} handlers of it live on: {:?}", records.asks.get(id)));
        }
    }
}

/// **monitor**: resolves exactly once, with what there was a reason for; and resolves if there was a reason.
fn monitors_fire_once_and_for_a_reason(records: &Records, broken: &mut Vec<String>) {
    for (id, watch) in &records.watches {
        let served = served(records, &watch.to, &watch.path);
        let problem = match &watch.fired[..] {
            [] if records.gone.contains(&watch.from) => None,
            [] => missing(records, watch, served),
            [(at, reason)] => unfounded(records, watch, served, *at, reason),
            _ => Some("fired more than once"),
        };
        if let Some(problem) = problem {
            broken.push(format!("monitor {id}: {problem}: {watch:?}, served {served:?}"));
        }
    }
}

/// Why a monitor should have fired.
fn missing(records: &Records, watch: &Watch, served: &[(Duration, bool)]) -> Option<&'static str> {
    let Some(connection) = watch.connection else {
        return Some("did not fire without a connection");
    };
    if !lasts(records, &watch.from, &watch.to, connection) {
        return Some("did not fire when its connection was lost");
    }
    match &*watch.path {
        "nothing" => Some("did not fire though nothing is served there"),
        "mortal" => {
            let Some(armed) = watch.armed else {
                return Some("the monitor after it did not fire, either");
            };
            let ended = served.iter().any(|(at, served)| !served && *at > armed);
            ended.then_some("did not fire though its path was unserved")
        }
        _ => None,
    }
}

/// Why a monitor should not have fired as it did.
fn unfounded(
    records: &Records,
    watch: &Watch,
    served: &[(Duration, bool)],
    at: Duration,
    reason: &Exit,
) -> Option<&'static str> {
    match (reason, watch.connection) {
        (Exit::NoConnection, None) => (at > watch.set).then_some("without a connection, but fired late"),
        (_, None) => Some("had no connection and fired with something else"),
        (Exit::NoConnection, Some(connection)) => {
            let down = downs(records, &watch.from, &watch.to).nth(connection - 1);
            let gone = records.gone.contains(&watch.from);
            (!gone && down.is_none_or(|(down, _)| down != at)).then_some("fired with NoConnection and without a Down")
        }
        (Exit::NoProc, _) if watch.path == "nothing" => None,
        (Exit::NoProc, _) if watch.path == "mortal" => {
            // Unserved for some while between the setting and the firing.
            let before = served.iter().rev().find(|(when, _)| *when <= watch.set);
            let within = served.iter().any(|(when, served)| !served && (watch.set..=at).contains(when));
            (!within && before.is_some_and(|(_, served)| *served)).then_some("NoProc of a path that is served")
        }
        (Exit::Shutdown, _) if watch.path == "mortal" => {
            let within = served.iter().any(|(when, served)| !served && (watch.set..=at).contains(when));
            (!within).then_some("Shutdown of a path that was not unserved")
        }
        _ => Some("fired though its path is there"),
    }
}

/// **events**: for one node `Up` and `Down` alternate, starting with `Up`; incarnations never go back; a `Down` comes after
/// all monitors on that node have fired; and a peer that comes back is another connection, not the same.
fn ups_and_downs_alternate_and_monitors_fire_before_the_down(records: &Records, broken: &mut Vec<String>) {
    for (boot, events) in &records.events {
        let mut last: BTreeMap<&str, (u64, bool)> = BTreeMap::new();
        for event in events {
            let (node, incarnation) = (&*event.peer.0, event.peer.1);
            let (before, up) = last.get(node).copied().unwrap_or_default();
            let fits = match &event.change {
                Change::Up => !up && incarnation >= before,
                Change::Down(_) => up && incarnation == before,
            };
            if !fits {
                broken.push(format!("{boot:?}: after {before} (up: {up}) came {event:?}"));
            }
            if matches!(&event.change, Change::Down(LossReason::Protocol(_))) {
                broken.push(format!("{boot:?}: both sides keep to the protocol, and yet {event:?}"));
            }
            last.insert(node, (incarnation, matches!(event.change, Change::Up)));
        }
    }
    for (id, watch) in records.watches.iter().filter(|(_, watch)| watch.late) {
        broken.push(format!("monitor {id} had not fired when the Down of its connection was seen: {watch:?}"));
    }
}

/// **stream**: bytes, whole and in order, or an error.
fn bodies_are_whole_or_broken(records: &Records, broken: &mut Vec<String>) {
    for (id, body) in &records.bodies {
        let whole = |read: &Result<usize, String>| matches!(read, Ok(bytes) if *bytes == body.bytes && body.finished);
        if body.read.len() > 1 || !body.read.iter().all(|read| read.is_err() || whole(read)) {
            broken.push(format!("body {id} was neither whole nor broken: {body:?}"));
        }
        if body.answered.is_some_and(|bytes| bytes != body.bytes || !body.read.iter().any(whole)) {
            broken.push(format!("body {id} was answered wrongly: {body:?}"));
        }
        if !body.opener_ended && !records.gone.contains(&body.from) {
            broken.push(format!("body {id} never ended: {body:?}"));
        }
    }
}

/// **datagram**: at most once.
fn datagrams_come_at_most_once(records: &Records, broken: &mut Vec<String>) {
    for (id, times) in &records.datagrams {
        if *times > 1 || !records.datagrams_sent.contains(id) {
            broken.push(format!("datagram {id} came {times} times"));
        }
    }
}

/// For each flow and each of the sender's connections: the numbers taken and those handled, each once and sorted, for how
/// often and in which order is another promise. Not for control tells to a slow receiver, for those may be dropped when its
/// inbox is full.
fn by_connection(records: &Records) -> impl Iterator<Item = (&Flow, usize, Vec<usize>, Vec<usize>)> {
    let counts = |flow: &Flow| !records.slow || flow.lane == Lane::Tells;
    records.tells.iter().filter(move |(flow, _)| counts(flow)).flat_map(|(flow, tells)| {
        let mut connections: BTreeMap<usize, (Vec<usize>, BTreeSet<usize>)> = BTreeMap::new();
        for (number, tell) in tells.iter().enumerate().filter(|(_, tell)| tell.is_taken()) {
            connections.entry(tell.connection).or_default().0.push(number);
        }
        for Handled { number, .. } in records.told.get(flow).into_iter().flatten() {
            // What was never taken is another promise.
            if let Some(tell) = tells.get(*number).filter(|tell| tell.is_taken()) {
                connections.entry(tell.connection).or_default().1.insert(*number);
            }
        }
        connections
            .into_iter()
            .map(move |(connection, (taken, handled))| (flow, connection, taken, handled.into_iter().collect()))
    })
}

/// Whether this connection of a boot to a node is up to the end, on a node that lives.
pub fn lasts(records: &Records, boot: &Boot, node: &str, connection: usize) -> bool {
    !records.gone.contains(boot) && downs(records, boot, node).count() < connection
}

pub fn downs<'a>(
    records: &'a Records,
    boot: &Boot,
    node: &'a str,
) -> impl Iterator<Item = (Duration, &'a LossReason)> + use<'a> {
    records.events.get(boot).into_iter().flatten().filter_map(move |event| match &event.change {
        Change::Down(reason) if event.peer.0 == node => Some((event.at, reason)),
        _ => None,
    })
}

/// When a path of a node was served (true) and unserved.
fn served<'a>(records: &'a Records, node: &str, path: &str) -> &'a [(Duration, bool)] {
    records.served.get(&(node.to_owned(), path.to_owned())).map_or(&[], |served| served)
}
