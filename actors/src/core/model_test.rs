//! The core against an independent model of OTP's `supervisor.erl`: whole trees of cores, driven together by a world that answers in
//! simulated time, beside a model that is synchronous and recursive, without states or operations.
//!
//! Both are given the same script; all starts, failed and ignored starts, stops, kills, exits with their reasons and times, all answers
//! to commands and the final tree must be the same. More cases: `ACTORS_MODEL_CASES=1000000 cargo test -p phalanx-actors model_test`.
//! Each day tries others: its number is the seed, which is printed when a case fails, and `ACTORS_MODEL_SEED=7` sets another. A case that
//! fails is made smaller and printed; `ACTORS_MODEL_SCRIPT` takes the printed numbers and runs that case alone. The model itself is held
//! against Erlang, where that is installed: `ACTORS_MODEL_OTP=300` compares so many scripts.

mod model;
mod otp;
mod script;
mod world;

use self::model::Model;
use self::script::{Act, Script};
use self::world::World;
use crate::exit::Exit;
use crate::spec::Strategy;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};
use std::collections::{BTreeMap, BTreeSet};

/// Scripts of each test run.
const MODEL_CASES: u32 = 30_000;
/// Longest script, in steps.
const MODEL_STEPS: usize = 30;
/// What the first supervisor and its trees are decoded from.
const MODEL_TREE: usize = 24;

/// Something that both must agree on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    at_ms: u64,
    path: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Up,
    NoStart,
    Ignored,
    Stopped,
    /// By its supervisor, which goes on.
    Killed,
    /// With all that is beneath this supervisor, which was killed.
    Swept(String),
    /// A supervisor ended, for this reason.
    Exit(String),
}

/// A child as `which_children` would tell it.
#[derive(Clone, Debug, PartialEq)]
enum Shown {
    Pid,
    Undefined,
    Restarting,
}

fn no_start() -> Exit {
    Exit::Error("no start".into())
}

/// What must be the same in two traces that tell the same: order matters between any two, except beneath different children of a dynamic
/// supervisor, and among those that are killed together.
fn canonical(trace: &[Seen], dynamic: &BTreeSet<String>) -> BTreeMap<String, Vec<(u64, String, Option<What>)>> {
    let mut views: BTreeMap<String, Vec<(u64, String, Option<What>)>> = BTreeMap::new();
    let mut scopes = BTreeSet::new();
    for seen in trace {
        views.entry(seen.path.clone()).or_default().push((seen.at_ms, String::new(), Some(seen.what.clone())));
        let mut path = seen.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            scopes.insert(parent.to_owned());
            path = parent;
        }
    }
    for scope in scopes.into_iter().filter(|scope| !dynamic.contains(scope)) {
        let below = format!("{scope}/");
        let mut view: Vec<(u64, String, Option<&String>)> = trace
            .iter()
            .filter_map(|seen| {
                let rest = if seen.path == scope { "" } else { seen.path.strip_prefix(&below)? };
                let child = rest.split('/').next().unwrap_or_default();
                let sweep = if let What::Swept(of) = &seen.what { Some(of) } else { None };
                Some((seen.at_ms, child.to_owned(), sweep))
            })
            .collect();
        for swept in view.chunk_by_mut(|a, b| a.2.is_some() && a.2 == b.2) {
            swept.sort();
        }
        let view = view.into_iter().map(|(at, child, _)| (at, child, None)).collect();
        views.insert(below, view);
    }
    views
}

/// Runs a script on both. The error says where they part.
fn run(script: &Script) -> Result<(), String> {
    let mut world = World::new(script.eager);
    let mut model = Model::new();
    world.boot(&script.top);
    model.boot(&script.top);
    agree(&mut world, &mut model).map_err(|parted| format!("boot{parted}"))?;
    for (n, step) in script.steps.iter().enumerate() {
        if world.over() {
            return Ok(());
        }
        let acts = step.resolve(&model);
        for act in &acts {
            world.act(act);
            model.act(act);
        }
        if !matches!(acts.as_slice(), [Act::Outcomes(_)]) {
            world.run();
            model.run();
        }
        agree(&mut world, &mut model).map_err(|parted| format!("step {n}: {acts:?}{parted}"))?;
    }
    Ok(())
}

fn agree(world: &mut World, model: &mut Model) -> Result<(), String> {
    let (real, expected) = (std::mem::take(&mut world.trace), std::mem::take(&mut model.trace));
    let dynamic: BTreeSet<String> = world.dynamic.union(&model.dynamic).cloned().collect();
    if real != expected && canonical(&real, &dynamic) != canonical(&expected, &dynamic) {
        return Err(format!("\n the core did {real:#?}\n OTP does {expected:#?}"));
    }
    let (real, expected) = (std::mem::take(&mut world.answers), std::mem::take(&mut model.answers));
    if real != expected {
        return Err(format!("\n the core answered {real:?}\n OTP answers {expected:?}"));
    }
    let (real, expected) = (world.shown(), model.shown());
    if real != expected {
        return Err(format!("\n the core has {real:#?}\n OTP has {expected:#?}"));
    }
    if world.now != model.now {
        return Err(format!("\n the core is at {} ms, OTP at {} ms", world.now, model.now));
    }
    Ok(())
}

/// A number that looks like chance (splitmix64, Steele et al. 2014).
fn mixed(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The days since 1970.
fn today() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs() / 86_400)
}

#[test]
fn the_core_does_what_otp_does() {
    if let Ok(numbers) = std::env::var("ACTORS_MODEL_SCRIPT") {
        let script = Script::parse(&numbers).expect("ACTORS_MODEL_SCRIPT: numbers as printed");
        println!("{script:#?}");
        return run(&script).unwrap_or_else(|parted| panic!("{parted}"));
    }
    let number = setting("ACTORS_MODEL_SEED", today());
    if let Ok(Ok(cases)) = std::env::var("ACTORS_MODEL_OTP").map(|cases| cases.parse::<u64>()) {
        let mut numbers = (number..).map(mixed);
        let scripts = (0..cases).map(|_| {
            let mut some = |n: usize| numbers.by_ref().take(n).collect::<Vec<u64>>();
            Script::decode(&some(MODEL_TREE), &some(MODEL_STEPS))
        });
        return println!("{}", otp::compare(scripts).unwrap_or_else(|parted| panic!("{parted}")));
    }
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let config = ProptestConfig {
        cases: setting("ACTORS_MODEL_CASES", MODEL_CASES),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let numbers =
        (prop::collection::vec(any::<u64>(), 1..MODEL_TREE), prop::collection::vec(any::<u64>(), 0..MODEL_STEPS));
    let result = runner.run(&numbers, |(tree, steps)| run(&Script::decode(&tree, &steps)).map_err(TestCaseError::fail));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(parted, (tree, steps))) => {
            let script = Script::decode(&tree, &steps);
            let replay = Script::print(&tree, &steps);
            panic!("{script:#?}\n{parted}\nACTORS_MODEL_SEED={number}\nACTORS_MODEL_SCRIPT={replay}");
        }
        Err(error) => panic!("{error}\nACTORS_MODEL_SEED={number}"),
    }
}

#[test]
fn a_script_can_be_replayed_from_what_is_printed() {
    let (tree, steps) = ([u64::MAX / 3, 7, 0], [u64::MAX / 5, 1 << 40]);
    let script = Script::decode(&tree, &steps);
    let again = Script::parse(&Script::print(&tree, &steps)).expect("as printed");
    assert_eq!(format!("{script:?}"), format!("{again:?}"));
    assert!(Script::parse("1,x;2").is_none());
}

fn is_dynamic(strategy: Strategy) -> bool {
    strategy == Strategy::Dynamic
}
