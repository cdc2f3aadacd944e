//! Makes the show happen: a cluster of processes, a Deployment, two kills, two restarts; and cleans up.
//!
//! Whatever happens, at the end nothing runs and nothing lies about: failure, Ctrl-C, `q`, a panic of the show itself.

use std::io::IsTerminal;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::DemoArgs;
use super::core::{Event, Node, Show};
use super::{lines, view};
use crate::cli::client::ApiClient;
use crate::cli::error::{print, println, warn};
use crate::cli::failover::observe::{CHANGES_QUEUE, observe};
use crate::cli::failover::write::{first_accepted, is_there};
use crate::cli::failover::{NAMESPACE, any, clients, leader, workload};
use crate::cli::up::Interrupts;
use crate::cli::{CliError, Global, text};
use crate::cluster::local::{LocalCluster, UpOptions, UpProgress};

/// All pods must be Ready for the first time within this time.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Each recovery must be over within this time, or the demo has failed.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// People need a moment to see what there is before it is killed.
const BREATH: Duration = Duration::from_millis(1500);
/// After all is well again, it must stay so for this long.
const STEADY: Duration = Duration::from_secs(1);

/// The show, its clock, and who watches.
struct Stage {
    show: Mutex<Show>,
    begun: Instant,
    changed: watch::Sender<()>,
    quit: CancellationToken,
    /// Lines go to standard output, to standard error, or nowhere since a view draws.
    out: Out,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Out {
    Lines,
    Errors,
    View,
}

impl Stage {
    fn tell(&self, event: Event) {
        let now = self.begun.elapsed();
        let said = self.show.lock().apply(event, now);
        for line in said {
            let line = lines::line(now, &line);
            match self.out {
                // A reader who has gone away: the demo still cleans up.
                Out::Lines => {
                    if println(&line).is_err() {
                        self.quit.cancel();
                    }
                }
                Out::Errors => warn(&line),
                Out::View => {}
            }
        }
        self.changed.send_replace(());
    }

    fn note(&self, text: impl Into<String>) {
        self.tell(Event::Note(text.into()));
    }

    /// Waits until the show is so.
    async fn until(&self, what: &str, limit: Duration, is_so: impl Fn(&Show) -> bool) -> Result<(), CliError> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.mark_unchanged();
                if is_so(&self.show.lock()) {
                    return;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            result = tokio::time::timeout(limit, wait) => result.map_err(|_| {
                let show = self.show.lock();
                CliError::new(format!(
                    "{what}: not within {} s; {} of {} pods Ready, {} there",
                    limit.as_secs(), show.board.ready(), show.replicas, show.board.replicas()
                ))
            }),
            () = self.quit.cancelled() => Err(CliError::new("interrupted")),
        }
    }

    async fn breathe(&self) -> Result<(), CliError> {
        tokio::select! {
            () = tokio::time::sleep(BREATH) => Ok(()),
            () = self.quit.cancelled() => Err(CliError::new("interrupted")),
        }
    }
}

/// Runs the demo.
pub async fn run(args: DemoArgs, global: &Global) -> Result<(), CliError> {
    let out = match (global.json(), args.plain, std::io::stdout().is_terminal()) {
        (true, ..) => Out::Errors,
        (false, false, true) => Out::View,
        _ => Out::Lines,
    };
    let (changed, _) = watch::channel(());
    let stage = Arc::new(Stage {
        show: Mutex::new(Show::new(args.replicas as usize)),
        begun: Instant::now(),
        changed,
        quit: CancellationToken::new(),
        out,
    });
    let done = CancellationToken::new();
    let viewer = (out == Out::View).then(|| {
        let (stage, done) = (stage.clone(), done.clone());
        tokio::task::spawn_blocking(move || view::run(&stage.show, stage.begun, &stage.quit, &done))
    });
    let signals = {
        let quit = stage.quit.clone();
        let mut interrupts = Interrupts::listen()?;
        tokio::spawn(async move {
            interrupts.next().await;
            quit.cancel();
        })
    };

    let result = in_directory(&stage, &args).await;

    signals.abort();
    done.cancel();
    if let Some(viewer) = viewer
        && let Ok(Err(error)) = viewer.await
    {
        warn(&format!("the terminal could not be drawn on: {error}"));
    }
    let show = stage.show.lock().clone();
    if global.json() {
        let mut document = show.json();
        document["ok"] = result.is_ok().into();
        print(&text::json(&document)?)?;
    } else if !show.stopwatches.is_empty() {
        print(&format!("\n{}\n{}\n", lines::table(&show), lines::HONESTY))?;
    }
    result
}

/// The show in a directory of its own, which is removed afterwards.
async fn in_directory(stage: &Arc<Stage>, args: &DemoArgs) -> Result<(), CliError> {
    let dir = tempfile::Builder::new()
        .prefix("phalanx-demo-")
        .tempdir()
        .map_err(|e| CliError::new(format!("no temporary directory: {e}")))?;
    stage.tell(Event::Act(format!("Starting {} nodes, {} of them servers", args.nodes, args.servers)));
    let options = UpOptions {
        dir: dir.path().join("cluster"),
        nodes: args.nodes,
        servers: args.servers,
        cluster: "demo".into(),
        binary: None,
    };
    let progress = |progress| match progress {
        UpProgress::Ready { node } => stage.note(format!("{node} is up")),
        UpProgress::Starting { .. } | UpProgress::Resuming { .. } => {}
    };
    let place = options.dir.clone();
    let cluster = tokio::select! {
        cluster = LocalCluster::up(options, progress) => cluster.map_err(CliError::new)?,
        () = stage.quit.cancelled() => {
            LocalCluster::abandon(&place);
            return Err(CliError::new("interrupted"));
        }
    };
    let played = AssertUnwindSafe(play(stage, &cluster)).catch_unwind().await;
    stage.tell(Event::Act("Stopping everything".into()));
    let stopped = stop(&cluster).await;
    let removed = dir.close().map_err(|e| CliError::new(format!("the temporary directory could not be removed: {e}")));
    match played {
        Ok(result) => result.and(stopped).and(removed),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// In order if it will, else by force.
async fn stop(cluster: &LocalCluster) -> Result<(), CliError> {
    let stopped = cluster.down().await;
    let cluster = cluster.clone();
    // Finds nothing to kill after an orderly stop.
    tokio::task::spawn_blocking(move || {
        for node in cluster.nodes() {
            let _ = cluster.kill(&node.name);
        }
    })
    .await
    .map_err(CliError::new)?;
    stopped.map_err(CliError::new)
}

async fn play(stage: &Arc<Stage>, cluster: &LocalCluster) -> Result<(), CliError> {
    let nodes: Vec<Node> = cluster.nodes().into_iter().map(|n| Node { name: n.name, server: n.server }).collect();
    stage.tell(Event::Nodes(nodes.clone()));
    stage.tell(Event::Leader(Some(leader(cluster, None).await?)));
    let clients = clients(cluster).await?;
    let (sender, receiver) = mpsc::channel(CHANGES_QUEUE);
    let _observers = observe(&clients, sender);
    let _listener = listen(stage.clone(), receiver);

    let replicas = stage.show.lock().replicas;
    stage.tell(Event::Act(format!("Applying a Deployment of {replicas} replicas")));
    let deployment = workload(replicas);
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
    any(&clients, async |c: &ApiClient| c.post(&path, &deployment).await).await?;
    stage.until("all pods Ready", START_LIMIT, |s| s.board.settled(s.replicas)).await?;
    stage.note(format!("{replicas}/{replicas} pods Ready"));
    stage.breathe().await?;

    // Not a server: the control plane keeps its majority through the second kill.
    let agents: Vec<&str> = nodes.iter().filter(|n| !n.server).map(|n| n.name.as_str()).collect();
    let victim = stage.show.lock().board.busiest(agents).map(str::to_owned);
    let victim = victim.ok_or_else(|| CliError::new("no agent runs a pod: there is nothing to show"))?;
    stage.tell(Event::Act(format!("Killing node {victim}")));
    kill(stage, cluster, &victim, false).await?;
    stage.until("recovery from the node's death", RECOVERY_LIMIT, Show::all_stopped).await?;
    stage.breathe().await?;

    let old = leader(cluster, None).await?;
    stage.tell(Event::Leader(Some(old.clone())));
    stage.tell(Event::Act(format!("Killing the leader {old}")));
    kill(stage, cluster, &old, true).await?;
    let survivors: Vec<ApiClient> = clients.iter().filter(|(n, _)| *n != old).map(|(_, c)| c.clone()).collect();
    let accepted = first_accepted(&survivors, RECOVERY_LIMIT);
    let accepted = tokio::select! {
        accepted = accepted => accepted?,
        () = stage.quit.cancelled() => return Err(CliError::new("interrupted")),
    };
    stage.tell(Event::Written);
    stage.tell(Event::Leader(Some(leader(cluster, Some(&old)).await?)));
    stage.until("recovery from the leader's death", RECOVERY_LIMIT, Show::all_stopped).await?;
    stage.breathe().await?;

    let both = vec![victim, old];
    stage.tell(Event::Act(format!("Starting {} again", both.join(" and "))));
    stage.tell(Event::Restart(both.clone()));
    let starts = both.iter().map(|node| cluster.restart(node));
    futures::future::try_join_all(starts).await.map_err(CliError::new)?;
    stage.until("all well with both nodes back", RECOVERY_LIMIT, Show::all_stopped).await?;
    steady(stage).await?;
    let there = any(&clients, async |c: &ApiClient| is_there(c, &accepted.name).await).await?;
    if !there {
        return Err(CliError::new("a write that was acknowledged during the failover is gone"));
    }
    stage.note("the write acknowledged during the failover is still there");
    Ok(())
}

/// It must stay as it is for a while.
async fn steady(stage: &Stage) -> Result<(), CliError> {
    let broken = stage.until("", STEADY, |s| !s.board.settled(s.replicas)).await;
    match broken {
        Ok(()) => Err(CliError::new("the pods did not stay as they were after the nodes came back")),
        Err(_) if stage.quit.is_cancelled() => Err(CliError::new("interrupted")),
        Err(_) => Ok(()),
    }
}

async fn kill(stage: &Stage, cluster: &LocalCluster, node: &str, leader: bool) -> Result<(), CliError> {
    // The clock runs from before the first SIGKILL.
    stage.tell(Event::Kill { node: node.to_owned(), leader });
    let (cluster, name) = (cluster.clone(), node.to_owned());
    let killed = tokio::task::spawn_blocking(move || cluster.kill(&name)).await.map_err(CliError::new)?;
    let killed = killed.map_err(CliError::new)?;
    stage.note(format!("{killed} processes of {node} are dead"));
    Ok(())
}

/// Hands what the observers see to the show. Ends when it is dropped.
fn listen(
    stage: Arc<Stage>,
    mut receiver: mpsc::Receiver<crate::cli::failover::board::Change>,
) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Some(change) = receiver.recv().await {
            stage.tell(Event::Change(change));
        }
    });
    tasks
}
