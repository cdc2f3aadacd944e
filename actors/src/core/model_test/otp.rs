//! Scripts on Erlang/OTP itself: what the model says is compared with what `supervisor` does in a real node (`otp.erl`).
//!
//! Only what OTP has, and what takes no time: no dynamic supervisors, backoffs, slow stops; supervisors end only by themselves. There the
//! model says, as OTP does, that a supervisor that gave up has shut down.

use super::model::Model;
use super::script::{Act, Command, Kind, Node, Outcome, Script, Step, Sup};
use super::{Shown, What};
use crate::exit::Exit;
use crate::spec::{AutoShutdown, Restart, Shutdown, Strategy};
use std::process::Command as Process;
use std::sync::Arc;

/// Runs scripts in a node of Erlang and says how many there were and how many differ; fails when any does.
pub(super) fn compare(scripts: impl Iterator<Item = Script>) -> Result<String, String> {
    let dir = std::env::temp_dir().join(format!("phalanx-otp-{}", std::process::id()));
    let said = (|| {
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("otp.erl"), include_str!("otp.erl"))?;
        std::fs::write(dir.join("scripts"), scripts.map(|script| told(&script)).collect::<String>())?;
        let made = Process::new("erlc").arg("otp.erl").current_dir(&dir).output()?;
        let ran =
            Process::new("erl").args(["-noshell", "-run", "otp", "main", "scripts"]).current_dir(&dir).output()?;
        Ok(String::from_utf8_lossy(&[made.stdout, ran.stdout].concat()).into_owned())
    })();
    let _ = std::fs::remove_dir_all(&dir);
    let said = said.map_err(|error: std::io::Error| format!("cannot run Erlang: {error}"))?;
    if said.trim_end().ends_with(", 0 differ") { Ok(said) } else { Err(said) }
}

/// The script as a term of Erlang, with what the model saw.
fn told(script: &Script) -> String {
    let top = plain_sup(&script.top);
    let mut model = Model::new();
    model.gives_up_in_order = true;
    model.boot(&top);
    let boot = seen(&mut model);
    let mut steps = vec![];
    for step in &script.steps {
        if model.shown().is_empty() {
            break;
        }
        let acts: Vec<Act> = match step {
            Step::Mail { .. } | Step::Outcomes(_) => {
                step.resolve(&model).into_iter().filter_map(|a| plain_act(a, &model)).collect()
            }
            Step::Wait(_) | Step::Stop { .. } => continue,
        };
        acts.iter().for_each(|act| model.act(act));
        model.run();
        steps.push(format!("{{{},{}}}", list(acts.iter().map(act)), seen(&mut model)));
    }
    format!("{{{},{boot},{}}}.\n", sup(&top), list(steps))
}

fn plain_sup(sup: &Sup) -> Arc<Sup> {
    let strategy = if sup.strategy == Strategy::Dynamic { Strategy::RestForOne } else { sup.strategy };
    let children = sup.children.iter().map(|node| plain(node)).collect();
    Arc::new(Sup { strategy, auto_shutdown: sup.auto_shutdown, intensity: sup.intensity, children })
}

fn plain(node: &Node) -> Arc<Node> {
    let mut policy = node.policy.clone();
    policy.backoff = None;
    let kind = match &node.kind {
        Kind::Sup(below) => Kind::Sup(plain_sup(below)),
        Kind::Worker { .. } => Kind::Worker { stops_in_ms: 0 },
    };
    if policy.shutdown != Shutdown::Brutal || matches!(kind, Kind::Sup(_)) {
        policy.shutdown = Shutdown::Infinity;
    }
    Arc::new(Node { id: node.id.clone(), policy, kind })
}

/// `None`: a supervisor is killed, which OTP does differently.
fn plain_act(act: Act, model: &Model) -> Option<Act> {
    match act {
        Act::Ends(path, _) if model.shown().contains_key(&path) => None,
        Act::Command(path, Command::Start(node)) => Some(Act::Command(path, Command::Start(plain(&node)))),
        act => Some(act),
    }
}

fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

fn sup(sup: &Sup) -> String {
    let strategy = match sup.strategy {
        Strategy::OneForOne => "one_for_one",
        Strategy::OneForAll => "one_for_all",
        Strategy::RestForOne | Strategy::Dynamic => "rest_for_one",
    };
    let auto_shutdown = match sup.auto_shutdown {
        AutoShutdown::Never => "never",
        AutoShutdown::AnySignificant => "any_significant",
        AutoShutdown::AllSignificant => "all_significant",
    };
    let children = list(sup.children.iter().map(|child| node(child)));
    format!("{{sup,{strategy},{auto_shutdown},{},{children}}}", sup.intensity)
}

fn node(node: &Node) -> String {
    let restart = match node.policy.restart {
        Restart::Permanent => "permanent",
        Restart::Transient => "transient",
        Restart::Temporary => "temporary",
    };
    let shutdown = if node.policy.shutdown == Shutdown::Brutal { "brutal_kill" } else { "infinity" };
    let kind = match &node.kind {
        Kind::Worker { .. } => "worker".to_owned(),
        Kind::Sup(below) => sup(below),
    };
    format!("{{{:?},{restart},{},{shutdown},{kind}}}", &*node.id, node.policy.significant)
}

fn act(act: &Act) -> String {
    match act {
        Act::Ends(path, exit) => {
            let (sup, id) = path.rsplit_once('/').expect("a child");
            let reason = match exit {
                Exit::Normal => "normal",
                Exit::Shutdown => "shutdown",
                Exit::ShutdownWith(_) => "{shutdown,done}",
                Exit::Killed => "killed",
                _ => "crash",
            };
            format!("{{ends,{sup:?},{id:?},{reason}}}")
        }
        Act::Outcomes(outcomes) => {
            let outcomes = outcomes.iter().map(|outcome| match outcome {
                Outcome::Up => "up".to_owned(),
                Outcome::Fails => "no_start".to_owned(),
                Outcome::Ignores => "ignored".to_owned(),
            });
            format!("{{outcomes,none,{}}}", list(outcomes))
        }
        Act::Command(path, Command::Start(child)) => format!("{{start_child,{path:?},{}}}", node(child)),
        Act::Command(path, Command::Terminate(id)) => format!("{{terminate_child,{path:?},{id:?}}}"),
        Act::Command(path, Command::Restart(id)) => format!("{{restart_child,{path:?},{id:?}}}"),
        Act::Command(path, Command::Delete(id)) => format!("{{delete_child,{path:?},{id:?}}}"),
        Act::Wait(_) | Act::Stop(..) => unreachable!("not among these"),
    }
}

/// What the model saw since the last time, as `otp.erl` would tell it.
fn seen(model: &mut Model) -> String {
    let trace = std::mem::take(&mut model.trace).into_iter().filter_map(|seen| {
        let what = match seen.what {
            What::Up => "up",
            What::NoStart => "no_start",
            What::Ignored => "ignored",
            What::Stopped => "stopped",
            // Whoever is killed writes nothing down.
            What::Killed | What::Swept(_) | What::Exit(_) => return None,
        };
        Some(format!("{{{what},{:?}}}", seen.path))
    });
    let answers = std::mem::take(&mut model.answers).into_values().map(|answer| {
        let said = answer.trim_start_matches("Err(");
        let atoms = [
            ("Ok", "ok"),
            ("AlreadyStarted", "already_started"),
            ("AlreadyPresent", "already_present"),
            ("BadCombination", "bad_combination"),
            ("NotFound", "not_found"),
            ("Running", "running"),
            ("Restarting", "restarting"),
            ("StartFailed", "no_start"),
            ("SupervisorDown", "down"),
        ];
        atoms.iter().find(|(start, _)| said.starts_with(start)).map_or(answer.clone(), |(_, atom)| (*atom).to_owned())
    });
    let shown = model.shown().into_iter().map(|(path, children)| {
        let children = children.into_iter().map(|(id, shown)| {
            let shown = match shown {
                Shown::Pid => "pid",
                Shown::Undefined => "undefined",
                Shown::Restarting => "restarting",
            };
            format!("{{{:?},{shown}}}", &*id)
        });
        format!("{{{path:?},{}}}", list(children))
    });
    format!("{{{},{},{}}}", list(trace), list(answers), list(shown))
}
