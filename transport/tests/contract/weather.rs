//! What the network and the machines suffer, at random: the script's part of a simulation, called by `main`. Must decide
//! nothing about what is right; that is the promises'.

use std::time::Duration;

use phalanx_transport::{Direction, Target};
use phalanx_transport_sim::Stage;
use rand::{Rng, rngs::StdRng};

use crate::{IDLE_TIMEOUT_MS, NODES, records::Shared};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Calm,
    Loss,
    Reordering,
    Duplication,
    Delay,
    /// Partitions, cuts of one direction, and their ends.
    Cuts,
    /// A node is not heard and hears nothing for a while, and then everything at once.
    Standstill,
    /// Power cuts, orderly ends, restarts.
    Crashes,
    Everything,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn direction(random: &mut StdRng) -> Direction {
    [Direction::Both, Direction::In, Direction::Out][random.random_range(0..3)]
}

/// Lets the time of the storm pass, with a misfortune every now and then.
pub fn storm(weather: Weather, stage: &mut Stage, records: &Shared, random: &mut StdRng, duration: Duration) {
    let mut gone: Vec<&str> = vec![];
    while stage.elapsed() < duration {
        stage.pass(ms(random.random_range(20..250)));
        let kind = match weather {
            Weather::Everything => [
                Weather::Loss,
                Weather::Reordering,
                Weather::Duplication,
                Weather::Delay,
                Weather::Cuts,
                Weather::Cuts,
                Weather::Standstill,
                Weather::Crashes,
            ][random.random_range(0..8)],
            other => other,
        };
        misfortune(kind, stage, records, random, &mut gone);
    }
}

fn misfortune(kind: Weather, stage: &mut Stage, records: &Shared, random: &mut StdRng, gone: &mut Vec<&'static str>) {
    let one = NODES[random.random_range(0..3)];
    let other = NODES.iter().copied().filter(|node| *node != one).nth(random.random_range(0..2)).expect("two others");
    let (way, chance) = (direction(random), random.random_range(0.0..0.3));
    let by = ms(random.random_range(1..60));
    let pick = random.random_range(0..4);
    match kind {
        Weather::Calm => {}
        Weather::Loss => suffer(stage, one, move |f| f.drop_way(Target::All, way, chance)),
        Weather::Reordering => suffer(stage, one, move |f| f.reorder_way(Target::All, way, chance, by)),
        Weather::Duplication => suffer(stage, one, move |f| f.duplicate_way(Target::All, way, chance)),
        Weather::Delay if pick == 0 => stage.latency(one, other, by),
        Weather::Delay => suffer(stage, one, move |f| f.delay_way(Target::All, way, by)),
        Weather::Cuts => match pick {
            0 => stage.partition(one, other),
            1 => stage.cut(one, other),
            2 => stage.repair(one, other),
            _ => NODES.iter().filter(|node| **node != one).for_each(|node| stage.repair(one, node)),
        },
        Weather::Standstill => {
            // Half of them are over before anybody misses the node.
            let still = ms(random.random_range(20..2 * IDLE_TIMEOUT_MS));
            let others = || NODES.iter().filter(|node| **node != one);
            others().for_each(|node| stage.hold(one, node));
            stage.pass(still);
            others().for_each(|node| stage.release(one, node));
        }
        Weather::Crashes | Weather::Everything => {
            if let Some(at) = gone.iter().position(|node| *node == one) {
                gone.remove(at);
                stage.restart(one);
            } else if pick == 0 {
                // At once again: the others may still hold the old connection.
                end(stage, records, one);
                stage.crash(one);
                stage.restart(one);
            } else if pick == 1 {
                stage.note(format_args!("close of {one}"));
                end(stage, records, one);
                stage.start(one, |node| async move { node.transport.close().await });
                // Begun before anything else may happen to the node.
                stage.pass(ms(1));
                gone.push(one);
            } else if pick == 2 {
                end(stage, records, one);
                stage.crash(one);
                gone.push(one);
            }
        }
    }
}

fn suffer(stage: &mut Stage, node: &str, change: impl Fn(phalanx_transport::Faults) + 'static) {
    stage.start(node, move |node| async move {
        change(node.transport.faults());
        node.note("the weather changes");
    });
}

/// Notes that the present boot of a node has ended, before it does.
fn end(stage: &Stage, records: &Shared, node: &str) {
    let boot = (node.to_owned(), stage.boots(node));
    records.lock().gone.insert(boot);
}

/// The network is whole, and every node runs.
pub fn clear(stage: &mut Stage, records: &Shared) {
    stage.note("the storm is over");
    for (i, one) in NODES.iter().enumerate() {
        for other in &NODES[i + 1..] {
            stage.repair(one, other);
            stage.latency(one, other, ms(2));
        }
        if records.lock().gone.contains(&((*one).to_owned(), stage.boots(one))) {
            stage.restart(one);
        }
        stage.start(one, |node| async move { node.transport.faults().heal(Target::All) });
    }
}
