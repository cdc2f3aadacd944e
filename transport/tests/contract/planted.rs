//! The promises, held against histories that break them: a real history of a simulation, in which nothing is wrong, with one
//! fault planted in what was seen. Exactly the promise that the fault breaks must say so. Must never plant what the workload
//! could not have seen; whoever adds a promise adds what breaks it here.

use std::{sync::OnceLock, time::Duration};

use phalanx_transport::{AskError, Exit, LossReason, SendError};

use crate::{
    IDLE_TIMEOUT_MS, NODES, QUIET, RECOVERY_MAX,
    promises::{PROMISES, Promise, downs, is_backlogged, lasts},
    records::{Ask, Body, Boot, Change, Event, Flow, Handled, Records, Tell, Watch},
    recovered, set, simulate,
    weather::Weather,
    workload::answer,
};

/// A seed whose receivers are quick, so that control tells are held to all promises, too.
const SEED: u64 = 2;

const TELLS: &str = "tells_are_handled_at_most_once_and_in_order";
const ONLY_THE_END: &str = "of_what_was_told_on_a_connection_only_the_end_can_be_lost";
const LASTS: &str = "what_was_told_on_a_connection_that_lasts_is_handled";
const REASON: &str = "tells_are_refused_for_a_reason";
const REFUSED: &str = "what_was_refused_is_never_handled";
const ENDS: &str = "every_ask_ends_by_its_deadline";
const ASKS: &str = "asks_are_handled_at_most_once_and_answered_rightly";
const NOBODY: &str = "nobody_handles_what_nobody_waits_for";
const MONITORS: &str = "monitors_fire_once_and_for_a_reason";
const EVENTS: &str = "ups_and_downs_alternate_and_monitors_fire_before_the_down";
const BODIES: &str = "bodies_are_whole_or_broken";
const DATAGRAMS: &str = "datagrams_come_at_most_once";

/// What everybody saw in this weather, with nothing wrong.
fn history(weather: Weather) -> Records {
    static CALM: OnceLock<Records> = OnceLock::new();
    static CUTS: OnceLock<Records> = OnceLock::new();
    let made = match weather {
        Weather::Calm => &CALM,
        Weather::Cuts => &CUTS,
        other => panic!("no history of {other:?} is needed"),
    };
    made.get_or_init(|| {
        let (broken, records) = simulate(weather, SEED, false);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        records
    })
    .clone()
}

/// The fault is found by this promise and by no other.
fn found_by(name: &str, records: &Records) {
    let breaches = |(promise, held): (&'static str, Promise)| {
        let mut breaches = vec![];
        held(records, &mut breaches);
        (promise, breaches)
    };
    let broken: Vec<_> = PROMISES.into_iter().map(breaches).filter(|(_, breaches)| !breaches.is_empty()).collect();
    let names: Vec<_> = broken.iter().map(|(promise, _)| *promise).collect();
    assert_eq!(names, [name], "{broken:#?}");
}

/// Plants a fault in a calm history.
fn planted(name: &str, plant: impl FnOnce(&mut Records)) {
    planted_in(Weather::Calm, name, plant);
}

fn planted_in(weather: Weather, name: &str, plant: impl FnOnce(&mut Records)) {
    let mut records = history(weather);
    plant(&mut records);
    found_by(name, &records);
}

/// What was handled of the first flow of which so much was.
fn told(records: &mut Records, at_least: usize) -> (&Flow, &mut Vec<Handled>) {
    let mut flows = records.told.iter_mut();
    flows.find(|(_, told)| told.len() >= at_least).expect("a flow that was told so much")
}

fn ask(records: &mut Records, wanted: impl Fn(&Records, u64, &Ask) -> bool) -> (u64, &mut Ask) {
    let id = records.asks.iter().find(|(id, ask)| wanted(records, **id, ask)).map(|(id, _)| *id);
    let id = id.expect("such an ask");
    (id, records.asks.get_mut(&id).expect("found"))
}

fn was_answered(_: &Records, _: u64, ask: &Ask) -> bool {
    matches!(ask.ended, Some((_, Ok(_))))
}

fn watch(records: &mut Records, wanted: impl Fn(&Records, &Watch) -> bool) -> &mut Watch {
    let id = records.watches.iter().find(|(_, watch)| wanted(records, watch)).map(|(id, _)| *id);
    records.watches.get_mut(&id.expect("such a monitor")).expect("found")
}

fn fired(path: &str, reason: Exit) -> impl Fn(&Records, &Watch) -> bool {
    move |_, watch| watch.path == path && watch.fired.first().is_some_and(|(_, fired)| *fired == reason)
}

fn body(records: &mut Records, wanted: impl Fn(&Body) -> bool) -> &mut Body {
    records.bodies.values_mut().find(|body| wanted(body)).expect("such a body")
}

fn was_whole(body: &Body) -> bool {
    body.answered.is_some_and(|bytes| bytes > 0)
}

fn events(records: &mut Records) -> (&Boot, &mut Vec<Event>) {
    records.events.iter_mut().find(|(_, events)| !events.is_empty()).expect("somebody was connected")
}

#[test]
fn histories_have_something_of_everything_and_nothing_wrong() {
    for (weather, downs_min) in [(Weather::Calm, 0), (Weather::Cuts, 4)] {
        let records = history(weather);
        let told: usize = records.told.values().map(Vec::len).sum();
        let answered = records.asks.values().filter(|ask| was_answered(&records, 0, ask)).count();
        let given_up = records.asks.values().filter(|ask| ask.given_up).count();
        let fired = records.watches.values().filter(|watch| !watch.fired.is_empty()).count();
        let whole = records.bodies.values().filter(|body| was_whole(body)).count();
        let downs: usize = NODES
            .iter()
            .flat_map(|from| NODES.iter().map(move |to| ((from.to_string(), 1), *to)))
            .map(|(boot, to)| downs(&records, &boot, to).count())
            .sum();
        assert!(told > 1_000 && answered > 40 && given_up > 5 && fired > 100, "{}", records.summary());
        assert!(whole > 15 && records.datagrams.len() > 80 && downs >= downs_min, "{}", records.summary());
        assert!(!records.slow && !is_backlogged(&records));
    }
}

#[test]
fn tells_handled_twice_or_in_the_wrong_order_or_side_by_side_are_found() {
    planted(TELLS, |records| {
        let (_, told) = told(records, 5);
        told.insert(2, told[2].clone());
    });
    // Much later, as what is sent again would be.
    planted(TELLS, |records| {
        let (_, told) = told(records, 5);
        told.push(told[0].clone());
    });
    planted(TELLS, |records| {
        let (_, told) = told(records, 5);
        told.swap(2, 3);
    });
    // The last two alone.
    planted(TELLS, |records| {
        let (_, told) = told(records, 5);
        let last = told.len() - 1;
        told.swap(last - 1, last);
    });
    planted(TELLS, |records| told(records, 5).1[3].alone = false);
    // Of one connection after the next is up.
    planted_in(Weather::Cuts, TELLS, |records| {
        let (flow, first, other) = (records.tells.iter())
            .find_map(|(flow, tells)| {
                let told = records.told.get(flow)?;
                let other = told.iter().position(|handled| tells[handled.number].connection == 2)?;
                (other > 0).then(|| (flow.clone(), other - 1, other))
            })
            .expect("a flow that was told on two connections");
        records.told.get_mut(&flow).expect("found").swap(first, other);
    });
}

#[test]
fn a_tell_lost_in_the_middle_of_a_lost_connection_is_found() {
    for first in [true, false] {
        planted_in(Weather::Cuts, ONLY_THE_END, |records| {
            let (flow, number) = (records.tells.iter())
                .find_map(|(flow, tells)| {
                    let told = records.told.get(flow)?;
                    let of_the_first = told.iter().filter(|handled| tells[handled.number].connection == 1);
                    let numbers: Vec<_> = of_the_first.map(|handled| handled.number).collect();
                    let lost = !lasts(records, &flow.from, &flow.to, 1);
                    (lost && numbers.len() > 2).then(|| (flow.clone(), numbers[usize::from(!first)]))
                })
                .expect("a lost connection");
            records.told.get_mut(&flow).expect("found").retain(|handled| handled.number != number);
        });
    }
}

#[test]
fn the_last_tell_of_a_connection_that_lasts_lost_is_found() {
    let lose = |records: &mut Records, all: bool| {
        let flow = records.told.keys().find(|flow| lasts(records, &flow.from, &flow.to, 1)).expect("a flow").clone();
        let told = records.told.get_mut(&flow).expect("found");
        let kept = if all { 0 } else { told.len() - 1 };
        told.truncate(kept);
    };
    planted(LASTS, |records| lose(records, false));
    planted(LASTS, |records| lose(records, true));
}

#[test]
fn a_refused_tell_or_datagram_that_is_handled_is_found() {
    planted_in(Weather::Cuts, REFUSED, |records| {
        let (flow, number) = (records.tells.iter())
            .find_map(|(flow, tells)| Some((flow.clone(), tells.iter().position(|tell| !tell.is_taken())?)))
            .expect("a refused tell");
        let told = records.told.get_mut(&flow).expect("told");
        let at = told.partition_point(|handled| handled.number < number);
        told.insert(at, Handled { number, alone: true });
    });
    planted(REFUSED, |records| {
        let (flow, told) = told(records, 3);
        let (flow, last) = (flow.clone(), told[told.len() - 1].clone());
        let number = records.tells[&flow].len();
        records.told.get_mut(&flow).expect("told").push(Handled { number, ..last });
    });
    planted(REFUSED, |records| {
        let arrived = *records.datagrams.keys().next().expect("arrived");
        records.datagrams_refused.insert(arrived);
    });
}

#[test]
fn a_tell_taken_without_a_connection_or_refused_without_a_reason_is_found() {
    let plant = |plant: fn(&Flow, &mut Tell)| {
        planted(REASON, |records| {
            let before = records.tells.iter_mut().find(|(_, tells)| !tells[0].up);
            let (flow, tells) = before.expect("a tell before the first connection");
            plant(flow, &mut tells[0]);
        });
    };
    plant(|_, tell| tell.refused = None);
    plant(|flow, tell| tell.refused = Some(SendError::Full { node: flow.to.clone() }));
    plant(|_, tell| tell.refused = Some(SendError::NoConnection { node: "another".into() }));
    plant(|_, tell| tell.refused = Some(SendError::Closed));
    plant(|_, tell| tell.up = true);
}

#[test]
fn an_ask_that_ends_late_or_early_or_never_is_found() {
    planted(ENDS, |records| {
        let (_, ask) = ask(records, was_answered);
        let late = ask.deadline + Duration::from_millis(3);
        ask.ended.as_mut().expect("answered").0 = late;
    });
    planted(ENDS, |records| ask(records, was_answered).1.ended = None);
    planted(ENDS, |records| {
        let (_, ask) = ask(records, |_, _, ask| matches!(ask.ended, Some((_, Err(AskError::Timeout { .. })))));
        ask.ended.as_mut().expect("timed out").0 -= Duration::from_millis(3);
    });
}

#[test]
fn an_ask_handled_twice_or_answered_wrongly_is_found() {
    planted(ASKS, |records| {
        let (id, _) = ask(records, was_answered);
        *records.handled.entry(id).or_default() += 1;
    });
    planted(ASKS, |records| {
        let (id, ask) = ask(records, was_answered);
        ask.ended.as_mut().expect("answered").1 = Ok(answer(id + 1));
    });
    planted(ASKS, |records| {
        let (id, _) = ask(records, was_answered);
        records.handled.remove(&id);
    });
    let end = |error: fn(&Ask) -> AskError| {
        planted(ASKS, |records| {
            let (_, ask) = ask(records, |records, id, ask| ask.path == "p" && was_answered(records, id, ask));
            let error = error(ask);
            ask.ended.as_mut().expect("answered").1 = Err(error);
        });
    };
    // Handled, so it cannot have been nobody's.
    end(|ask| AskError::NoProc { node: ask.to.clone(), path: ask.path.clone() });
    // In a calm nobody is lost.
    end(|ask| AskError::NoConnection { node: ask.to.clone() });
    end(|ask| AskError::BadReply { path: ask.path.clone(), reason: "the stream was broken off".into() });
    end(|_| AskError::Remote("no 1".into()));
    end(|_| AskError::Closed);
    // Not handled, but somebody was there.
    planted(ASKS, |records| {
        let (id, ask) = ask(records, |records, id, ask| ask.path == "p" && was_answered(records, id, ask));
        ask.ended.as_mut().expect("answered").1 =
            Err(AskError::NoProc { node: ask.to.clone(), path: ask.path.clone() });
        records.handled.remove(&id);
    });
}

#[test]
fn a_handler_that_lives_on_is_found() {
    planted(NOBODY, |records| {
        let (id, _) = ask(records, |records, id, ask| ask.given_up && records.handled.contains_key(&id));
        records.handling.insert(id, 1);
    });
}

#[test]
fn a_monitor_that_fires_twice_or_never_or_without_a_reason_is_found() {
    planted(MONITORS, |records| {
        let watch = watch(records, fired("nothing", Exit::NoProc));
        watch.fired.push(watch.fired[0].clone());
    });
    // Never: though nothing is there, though it was unserved, though its connection was lost, though there was none.
    planted(MONITORS, |records| watch(records, fired("nothing", Exit::NoProc)).fired.clear());
    planted(MONITORS, |records| {
        let armed =
            |records: &Records, watch: &Watch| watch.armed.is_some() && fired("mortal", Exit::Shutdown)(records, watch);
        watch(records, armed).fired.clear();
    });
    let lost =
        |records: &Records, watch: &Watch| watch.connection.is_some() && fired("p", Exit::NoConnection)(records, watch);
    planted_in(Weather::Cuts, MONITORS, |records| watch(records, lost).fired.clear());
    let unconnected = |_: &Records, watch: &Watch| watch.connection.is_none();
    planted_in(Weather::Cuts, MONITORS, |records| watch(records, unconnected).fired.clear());
    // At another time than the Down; late, without a connection.
    let by = Duration::from_millis(1);
    planted_in(Weather::Cuts, MONITORS, |records| watch(records, lost).fired[0].0 -= by);
    planted_in(Weather::Cuts, MONITORS, |records| watch(records, unconnected).fired[0].0 += by);
    // For something that there was not.
    planted_in(Weather::Cuts, MONITORS, |records| watch(records, unconnected).fired[0].1 = Exit::NoProc);
    for reason in [Exit::NoConnection, Exit::NoProc, Exit::Shutdown] {
        planted(MONITORS, |records| {
            let watch = watch(records, |_, watch| watch.path == "p" && watch.fired.is_empty());
            watch.fired.push((watch.set + Duration::from_millis(5), reason.clone()));
        });
    }
    for reason in [Exit::NoProc, Exit::Shutdown] {
        planted(MONITORS, |records| {
            // Set when the path had been served for a while, and fired before it was unserved.
            let served = records.served.clone();
            let watch = watch(records, |_, watch| {
                let key = (watch.to.clone(), watch.path.clone());
                let changes = served.get(&key).into_iter().flatten();
                let near = |when: &Duration| *when + by >= watch.set && *when <= watch.set + by;
                let before = changes.clone().rev().find(|(when, _)| *when <= watch.set);
                watch.path == "mortal"
                    && before.is_some_and(|(_, served)| *served)
                    && !changes.into_iter().any(|(when, _)| near(when))
            });
            watch.fired = vec![(watch.set + by, reason.clone())];
        });
    }
}

#[test]
fn events_out_of_turn_and_a_monitor_after_its_down_are_found() {
    let down = || Change::Down(LossReason::IdleTimeout);
    let push = |change: Change, boots: u64| {
        planted(EVENTS, |records| {
            let (_, events) = events(records);
            let (node, incarnation) = events[0].peer.clone();
            let at = events[events.len() - 1].at;
            events.push(Event { at, peer: (node, incarnation + boots), change });
        });
    };
    // Up twice, without a Down between, also as another boot.
    push(Change::Up, 0);
    push(Change::Up, 1);
    planted_in(Weather::Cuts, EVENTS, |records| {
        // A Down without an Up before it; of the last connection, so that no other promise counts it.
        let gone = (records.events.values_mut())
            .flat_map(|events| events.iter_mut())
            .find(|event| matches!(event.change, Change::Down(_)))
            .expect("a lost connection");
        gone.peer.1 += 1;
    });
    planted(EVENTS, |records| {
        // Somebody who was never up.
        let (_, events) = events(records);
        let at = events[0].at;
        events.insert(0, Event { at, peer: ("d".into(), 1), change: down() });
    });
    planted_in(Weather::Cuts, EVENTS, |records| {
        // Back as an older boot than before.
        let again = (records.events.values_mut())
            .find_map(|events| {
                let first = events.iter().find(|event| matches!(event.change, Change::Down(_)))?.peer.clone();
                let again = |event: &Event| matches!(event.change, Change::Up) && event.peer == first;
                events.iter().rposition(again).map(|at| &mut events[at])
            })
            .expect("somebody who came back");
        again.peer.1 -= 1;
    });
    planted_in(Weather::Cuts, EVENTS, |records| {
        let broken = (records.events.values_mut())
            .flat_map(|events| events.iter_mut())
            .find(|event| matches!(event.change, Change::Down(_)))
            .expect("a lost connection");
        broken.change = Change::Down(LossReason::Protocol("unknown frame kind 99".into()));
    });
    planted_in(Weather::Cuts, EVENTS, |records| watch(records, fired("p", Exit::NoConnection)).late = true);
}

#[test]
fn a_body_a_byte_short_or_read_twice_or_unfinished_is_found() {
    planted(BODIES, |records| {
        let body = body(records, was_whole);
        body.read = vec![Ok(body.bytes - 1)];
        body.answered = None;
    });
    planted(BODIES, |records| {
        let body = body(records, was_whole);
        body.read.push(body.read[0].clone());
    });
    planted(BODIES, |records| {
        // Broken off, and seen as whole by its reader.
        let body = body(records, |body| body.opener_ended && !body.finished && body.bytes > 1);
        body.read = vec![Ok(body.bytes / 2)];
    });
    planted(BODIES, |records| body(records, was_whole).answered = Some(1));
    planted(BODIES, |records| body(records, was_whole).read = vec![Err("broken off".into())]);
    planted(BODIES, |records| body(records, was_whole).opener_ended = false);
}

#[test]
fn a_datagram_that_comes_twice_or_from_nowhere_is_found() {
    planted(DATAGRAMS, |records| *records.datagrams.values_mut().next().expect("arrived") = 2);
    planted(DATAGRAMS, |records| {
        records.datagrams.insert(u64::MAX, 1);
    });
}

#[test]
fn what_was_seen_to_be_wrong_at_once_is_not_forgotten() {
    let mut records = history(Weather::Calm);
    records.wrong.push("other bytes".into());
    assert_eq!(crate::promises::broken(&records), ["seen at once: other bytes"]);
}

#[test]
fn a_network_that_does_not_recover_is_found() {
    let (mut stage, records) = set(SEED);
    stage.pass(Duration::from_millis(200));
    stage.cut("a", "b");
    stage.pass(Duration::from_millis(2 * IDLE_TIMEOUT_MS));
    let broken = recovered(&mut stage, &records);
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].starts_with("a does not reach b") && broken[1].starts_with("b does not reach a"), "{broken:?}");
    assert!(stage.elapsed() > RECOVERY_MAX);
}

#[test]
fn what_waits_for_a_receiver_is_a_backlog_until_it_is_handled() {
    let mut records = history(Weather::Calm);
    let flow = records.told.keys().next().expect("told").clone();
    let last = records.told.get_mut(&flow).expect("told").pop().expect("handled");
    assert!(is_backlogged(&records));
    records.told.get_mut(&flow).expect("told").push(last);
    assert!(!is_backlogged(&records) && records.ended_at > QUIET);
}
