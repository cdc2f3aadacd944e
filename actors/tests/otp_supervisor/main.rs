//! The rules of OTP's `supervisor`, one test each, named for the rule; by theme. Nearly all run on one thread in simulated time, where a
//! pause lets everything that can happen now happen first.

#[path = "../support/mod.rs"]
mod support;

mod backoff;
mod commands;
mod dynamic;
mod exits;
mod intensity;
mod nested;
mod significant;
mod start;
mod stop;
mod strategies;

use phalanx_actors::*;
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::Log;

/// Longer than anything takes that is not stuck.
const LONG: Duration = Duration::from_secs(60);
/// The shortest pause of simulated time.
const PAUSE: Duration = Duration::from_millis(1);

/// A system in simulated time, and what its subjects wrote down.
#[derive(Clone)]
struct Bed {
    system: System,
    log: Log,
    /// How the next starts of a subject end, by its name; those beyond succeed.
    starts: Arc<Mutex<HashMap<String, VecDeque<Exit>>>>,
}

/// Runs a test on one thread in simulated time.
fn bed<F: Future<Output = ()>>(test: impl FnOnce(Bed) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let system = System::builder("t").local().build().expect("a system");
        let bed = Bed { system, log: Log::default(), starts: Arc::default() };
        test(bed.clone()).await;
        bed.system.shutdown().await;
        assert_eq!(bed.system.tree(), [], "nothing is left");
    });
}

impl Bed {
    /// A permanent worker. The log says `+a` when it is up, `-a` when it stops in order, `!a` when it fails to start, `~a` when it had
    /// nothing to do.
    fn child(&self, name: &str) -> ChildSpec {
        let (name, log, starts) = (name.to_owned(), self.log.clone(), self.starts.clone());
        let make = move || Subject { name: name.clone(), log: log.clone(), starts: starts.clone() };
        ChildSpec::actor(make().name, make)
    }

    /// A supervisor at `s` with these permanent workers, up.
    async fn sup(&self, strategy: Strategy, intensity: u32, names: &[&str]) -> SupervisorRef {
        let spec = SupervisorSpec::new("s", strategy).intensity(intensity, LONG);
        self.start(names.iter().fold(spec, |spec, name| spec.child(self.child(name)))).await
    }

    async fn start(&self, spec: SupervisorSpec) -> SupervisorRef {
        let sup = self.system.start(spec).await.expect("started");
        self.log.take();
        sup
    }

    /// The next starts of a subject fail.
    fn fail(&self, name: &str, times: usize) {
        self.next_starts(name, Exit::Error("no start".into()), times);
    }

    /// The next start of a subject finds nothing to do.
    fn ignore(&self, name: &str) {
        self.next_starts(name, Exit::Ignore, 1);
    }

    fn next_starts(&self, name: &str, exit: Exit, times: usize) {
        let queue = VecDeque::from(vec![exit; times]);
        self.starts.lock().expect("lock").insert(name.into(), queue);
    }

    fn pid(&self, path: &str) -> Pid {
        self.system.whereis(path).unwrap_or_else(|| panic!("{path} runs"))
    }

    fn runs(&self, path: &str) -> bool {
        self.system.whereis(path).is_some()
    }

    /// The actor at this path ends so, and everything that follows from it happens.
    async fn ends(&self, path: &str, exit: Exit) -> Pid {
        self.tell(path, Do::Stop(exit)).await
    }

    /// The actor at this path panics, and everything that follows from it happens.
    async fn crash(&self, path: &str) -> Pid {
        self.tell(path, Do::Panic).await
    }

    async fn tell(&self, path: &str, what: Do) -> Pid {
        let subject = self.system.lookup::<Subject>(path).unwrap_or_else(|| panic!("{path} runs"));
        subject.tell(what).expect("it takes messages");
        tokio::time::sleep(PAUSE).await;
        subject.pid()
    }

    fn log(&self) -> String {
        self.log.take()
    }
}

/// The ids of the children, each with a `*` when it runs, a `?` when it is to be restarted.
async fn children(sup: &SupervisorRef) -> String {
    let children = sup.which_children().await.expect("it runs");
    let children = children.iter().map(|child| match (&child.pid, child.restarting) {
        (Some(_), false) => format!("{}*", child.id),
        (None, true) => format!("{}?", child.id),
        (None, false) => child.id.clone(),
        (Some(_), true) => panic!("{child:?}"),
    });
    children.collect::<Vec<_>>().join(" ")
}

fn crashed() -> Exit {
    Exit::Error("crashed".into())
}

/// The table of rules is what a reader finds them by.
#[test]
fn the_table_of_rules_names_every_test() {
    let table = include_str!("../../README.md");
    let files = [
        include_str!("backoff.rs"),
        include_str!("commands.rs"),
        include_str!("dynamic.rs"),
        include_str!("exits.rs"),
        include_str!("intensity.rs"),
        include_str!("nested.rs"),
        include_str!("significant.rs"),
        include_str!("start.rs"),
        include_str!("stop.rs"),
        include_str!("strategies.rs"),
        include_str!("../../src/core/supervisor_test.rs"),
    ];
    let tests: Vec<&str> = files.iter().flat_map(|file| file.split("test]\n")).filter_map(name).collect();
    assert!(tests.len() > 100, "{}", tests.len());
    for test in &tests {
        assert!(table.contains(&format!("`{test}`")), "{test} is not in the table of rules");
    }
}

/// What a promise names as its test is there, wherever it is.
#[test]
fn every_test_that_the_documents_name_exists() {
    fn tests_below(folder: &Path, tests: &mut HashSet<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                tests_below(&path, tests);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                // Behind the attribute, and others of it; those of proptest lie a level deeper.
                let attributed = text.split("test]\n").skip(1);
                let functions = attributed.filter_map(|rest| name(rest.trim_start().trim_start_matches("#[ignore]\n")));
                tests.extend(functions.map(str::to_owned));
            }
        }
    }
    let mut tests = HashSet::new();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests_below(&package.join("src"), &mut tests);
    tests_below(&package.join("tests"), &mut tests);
    assert!(tests.len() > 300, "{}", tests.len());
    let documents = [
        ("README.md", include_str!("../../README.md"), 200),
        ("docs/runtime-semantics.md", include_str!("../../docs/runtime-semantics.md"), 30),
    ];
    for (document, text, least) in documents {
        // Code that is set apart holds no names of tests, and would spoil the pairs.
        let prose = text.split("```").step_by(2).collect::<Vec<_>>().join("");
        let is_test = |word: &&str| {
            word.matches('_').count() > 2
                && word.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        let named: Vec<&str> = prose.split('`').skip(1).step_by(2).filter(is_test).collect();
        assert!(named.len() > least, "{document} names {}", named.len());
        for test in named {
            assert!(tests.contains(test), "{document}: there is no test {test}");
        }
    }
}

/// The name of the function that a text begins with.
fn name(text: &str) -> Option<&str> {
    let text = text.trim_start();
    let text = text.strip_prefix("async ").unwrap_or(text);
    text.strip_prefix("fn ")?.split('(').next()
}

struct Subject {
    name: String,
    log: Log,
    starts: Arc<Mutex<HashMap<String, VecDeque<Exit>>>>,
}

enum Do {
    Note,
    Panic,
    Stop(Exit),
    Trap,
    Link(Pid),
    Unlink(Pid),
    Monitor(Pid),
}

impl Message for Do {
    type Reply = ();
}

impl Actor for Subject {
    fn started(&mut self, _: &mut Ctx<Self>) -> Result<(), Exit> {
        let next = self.starts.lock().expect("lock").get_mut(&self.name).and_then(VecDeque::pop_front);
        let sign = match next {
            None => "+",
            Some(Exit::Ignore) => "~",
            Some(_) => "!",
        };
        self.log.push(format!("{sign}{}", self.name));
        next.map_or(Ok(()), Err)
    }
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.log.push(format!("-{}", self.name));
    }
    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        self.log.push(format!("down {}: {}", down.pid.path(), down.reason));
    }
    fn exit_signal(&mut self, from: Pid, reason: Exit, _: &mut Ctx<Self>) {
        self.log.push(format!("exit {}: {reason}", from.path()));
    }
}

impl Handler<Do> for Subject {
    fn handle(&mut self, what: Do, ctx: &mut Ctx<Self>) -> Reply<()> {
        match what {
            Do::Note => self.log.push(format!("noted {}", self.name)),
            Do::Panic => panic!("asked to"),
            Do::Stop(exit) => ctx.stop(exit),
            Do::Trap => ctx.trap_exit(true),
            Do::Link(pid) => ctx.link(&pid),
            Do::Unlink(pid) => ctx.unlink(&pid),
            Do::Monitor(pid) => drop(ctx.monitor(&pid)),
        }
        ().into()
    }
}
