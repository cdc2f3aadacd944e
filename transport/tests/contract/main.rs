//! The contract of the transport, as properties over seeds. Three nodes tell, ask, monitor, stream and send datagrams to
//! each other at random while the network suffers at random; then it heals, everything must work again, and what
//! everybody saw is held against the contract. Each seed is one whole simulation, and the same each time.
//!
//! That the promises can be seen to be broken is shown in `planted`.
//!
//! A seed that fails is named in the failure. `CONTRACT_SEED=<seed>` runs that seed alone and prints its history;
//! `CONTRACT_SEEDS=<count>` runs that many for each weather.

mod planted;
mod promises;
mod records;
mod weather;
mod workload;

use std::time::Duration;

use phalanx_transport::Timings;
use phalanx_transport_sim::Stage;
use rand::{SeedableRng, rngs::StdRng};
use records::{Records, Shared};
use weather::Weather;

pub const NODES: [&str; 3] = ["a", "b", "c"];

/// Seeds of each weather in a normal run.
const SEEDS: u64 = 6;

/// Nobody who was not heard for so long is up.
const IDLE_TIMEOUT_MS: u64 = 400;

/// Inbox of a slow receiver, and outbox of who tells it.
const SLOW_INBOX_MESSAGES: usize = 3;
const SLOW_INBOX_BYTES: usize = 2_000;
const SLOW_OUTBOX_MESSAGES: usize = 40;

/// How long the network suffers.
const STORM: Duration = Duration::from_millis(2_000);

/// When it has healed, all nodes are connected again within this.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

/// After the last message, everything that is under way ends within this: an ask's longest deadline, and more.
const QUIET: Duration = Duration::from_millis(1_300);

/// Slow receivers have handled everything within this more.
const BACKLOG_MAX: Duration = Duration::from_secs(10);

#[test]
fn the_contract_holds_in_calm() {
    over_seeds(Weather::Calm);
}

#[test]
fn the_contract_holds_under_loss() {
    over_seeds(Weather::Loss);
}

#[test]
fn the_contract_holds_under_reordering() {
    over_seeds(Weather::Reordering);
}

#[test]
fn the_contract_holds_under_duplication() {
    over_seeds(Weather::Duplication);
}

#[test]
fn the_contract_holds_under_delay() {
    over_seeds(Weather::Delay);
}

#[test]
fn the_contract_holds_over_cuts_and_reconnects() {
    over_seeds(Weather::Cuts);
}

#[test]
fn the_contract_holds_over_standstills() {
    over_seeds(Weather::Standstill);
}

#[test]
fn the_contract_holds_over_crashes_and_restarts() {
    over_seeds(Weather::Crashes);
}

#[test]
fn the_contract_holds_under_everything_at_once() {
    over_seeds(Weather::Everything);
}

fn over_seeds(weather: Weather) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("CONTRACT_SEED") {
        let (broken, records) = simulate(weather, seed, true);
        println!("{}", records.summary());
        assert!(broken.is_empty(), "{weather:?}, seed {seed}:\n{}", broken.join("\n"));
        return;
    }
    for seed in 0..number("CONTRACT_SEEDS").unwrap_or(SEEDS) {
        let (broken, _) = simulate(weather, seed, false);
        assert!(
            broken.is_empty(),
            "{weather:?}, seed {seed} (CONTRACT_SEED={seed} runs it alone and prints its history):\n{}",
            broken.join("\n")
        );
    }
}

/// Runs one simulation; gives each promise that it broke, and what everybody saw.
fn simulate(weather: Weather, seed: u64, print: bool) -> (Vec<String>, Records) {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut stage, records) = set(seed);
    weather::storm(weather, &mut stage, &records, &mut random, STORM);
    weather::clear(&mut stage, &records);
    let mut broken = recovered(&mut stage, &records);
    stage.note("quiet");
    records.lock().quiet = true;
    stage.pass(QUIET);
    let slowest = stage.elapsed() + BACKLOG_MAX;
    while stage.elapsed() < slowest && promises::is_backlogged(&records.lock()) {
        stage.pass(Duration::from_millis(20));
    }
    records.lock().ended_at = stage.elapsed();
    let records = records.lock().clone();
    broken.extend(promises::broken(&records));
    if print {
        println!("{}", stage.history());
    }
    (broken, records)
}

/// Three nodes at work.
fn set(seed: u64) -> (Stage, Shared) {
    let records = Shared::default();
    // Every other seed has receivers that are slow for what they can hold, so that lanes stand still at times.
    let slow = seed % 2 == 1;
    records.lock().slow = slow;
    let mut stage = Stage::new(seed, Duration::from_millis(1)..=Duration::from_millis(8));
    stage.configure(move |config| {
        // Quicker than in earnest, for a second of a storm is then longer.
        config.timings = Timings {
            keep_alive_ms: 80,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
            connect_timeout_ms: 600,
            backoff_initial_ms: 20,
            backoff_max_ms: 200,
            inbox_wait_ms: 200,
            ..Timings::default()
        };
        if slow {
            config.limits.inbox_messages = SLOW_INBOX_MESSAGES;
            config.limits.inbox_bytes = SLOW_INBOX_BYTES;
            config.limits.outbox_messages = SLOW_OUTBOX_MESSAGES;
        }
    });
    for name in NODES {
        let records = records.clone();
        stage.node(name, move |node| workload::boot(node, &records, seed));
    }
    (stage, records)
}

/// After the storm all nodes are connected again, and every one answers every other.
fn recovered(stage: &mut Stage, records: &Shared) -> Vec<String> {
    let since = stage.elapsed();
    let probes = workload::probes(stage, records);
    let mut missing: Vec<_> = probes.into_iter().collect();
    while !missing.is_empty() && stage.elapsed() < since + RECOVERY_MAX {
        stage.pass(Duration::from_millis(10));
        missing.retain(|(_, done)| done.take().is_none());
    }
    missing
        .into_iter()
        .map(|((from, to), _)| format!("{from} does not reach {to} {RECOVERY_MAX:?} after the network has healed"))
        .collect()
}
