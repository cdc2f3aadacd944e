//! `phalanx bench failover`: how fast a cluster recovers, many times over.
//!
//! Rounds of three kinds in turn, each on a cluster that is whole again:
//! - **node**: SIGKILL to a node that does not lead, and to all that it runs; until all replicas are Ready elsewhere.
//! - **leader**: SIGKILL to the leading node; until a surviving server acknowledges a write.
//! - **container**: SIGKILL to one container's process; until a new process of that container answers HTTP. Each
//!   container is killed once only, since a second crash within minutes waits for CrashLoopBackOff; its pod is then
//!   replaced.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::client::ApiClient;
use super::error::print;
use super::failover::board::{Board, Change, PodSeen};
use super::failover::observe::{CHANGES_QUEUE, observe};
use super::failover::{NAMESPACE, PORT, any, clients, leader, workload, write};
use super::progress::Progress;
use super::up::Interrupts;
use super::{CliError, Global, text};
use crate::cluster::local::{LocalCluster, UpOptions, UpProgress};
use crate::cluster::processes;

/// A recovery that takes longer ends the benchmark as failed.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// How often a container that was killed is asked whether it is back.
const CONTAINER_POLL: Duration = Duration::from_millis(1);
/// An answer of a container must come within this time.
const CONTAINER_ANSWER: Duration = Duration::from_millis(500);

/// Measures how fast a cluster recovers.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What to measure
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What can be measured.
#[derive(Subcommand, Clone, Debug)]
pub enum BenchCommand {
    /// Kills nodes, the leader and containers in turn, and times each recovery
    #[command(after_help = "Examples:
  phalanx bench failover --rounds 50
  phalanx bench failover --rounds 10 -o json")]
    Failover(FailoverArgs),
}

/// How to measure.
#[derive(Args, Clone, Debug)]
pub struct FailoverArgs {
    /// How many kills of each kind
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=20))]
    pub nodes: u32,

    /// How many of them are servers, odd
    #[arg(long, value_name = "M", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=7))]
    pub servers: u32,

    /// How many replicas run meanwhile
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub replicas: u32,

    /// Only these kinds of rounds
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    pub only: Vec<Kind>,
}

/// The kinds of rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A node that does not lead.
    Node,
    /// The leading node.
    Leader,
    /// One container.
    Container,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Node, Self::Leader, Self::Container];

    fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Leader => "leader",
            Self::Container => "container",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Node => "node killed, until all replicas Ready on others",
            Self::Leader => "leader killed, until the next write is accepted",
            Self::Container => "container killed, until its new process answers HTTP",
        }
    }
}

/// Runs the command.
pub async fn run(args: BenchArgs, global: &Global) -> Result<(), CliError> {
    let BenchCommand::Failover(args) = args.command;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let dir = tempfile::Builder::new()
        .prefix("phalanx-bench-")
        .tempdir()
        .map_err(|e| CliError::new(format!("no temporary directory: {e}")))?;
    let progress = Progress::start(format!("Starting {} nodes", args.nodes));
    let options = UpOptions {
        dir: dir.path().join("cluster"),
        nodes: args.nodes,
        servers: args.servers,
        cluster: "bench".into(),
        binary: None,
    };
    let say = |p| {
        if let UpProgress::Ready { node } = p {
            progress.set(format!("{node} is up"));
        }
    };
    let place = options.dir.clone();
    let mut interrupts = Interrupts::listen()?;
    let cluster = tokio::select! {
        cluster = LocalCluster::up(options, say) => cluster.map_err(CliError::new)?,
        () = interrupts.next() => {
            LocalCluster::abandon(&place);
            return Err(CliError::new("interrupted"));
        }
    };
    let measured = tokio::select! {
        measured = measure(&cluster, &args, &progress) => measured,
        () = interrupts.next() => Err(CliError::new("interrupted")),
    };
    progress.set("Stopping everything");
    let stopped = cluster.down().await.map_err(CliError::new);
    let nodes = cluster.nodes();
    // Finds nothing to kill after an orderly stop.
    tokio::task::spawn_blocking(move || nodes.iter().for_each(|n| drop(cluster.kill(&n.name))))
        .await
        .map_err(CliError::new)?;
    drop(progress);
    let removed = dir.close().map_err(|e| CliError::new(format!("the temporary directory could not be removed: {e}")));
    let samples = measured?;
    print(&if global.json() { text::json(&summary_json(&samples))? } else { summary_text(&samples, &args, &load) })?;
    stopped.and(removed)
}

type Samples = Vec<(Kind, Vec<Duration>)>;

async fn measure(cluster: &LocalCluster, args: &FailoverArgs, progress: &Progress) -> Result<Samples, CliError> {
    let clients = clients(cluster).await?;
    let (sender, receiver) = mpsc::channel(CHANGES_QUEUE);
    let _observers = observe(&clients, sender);
    let replicas = args.replicas as usize;
    let mut bench = Bench {
        cluster,
        clients: &clients,
        changes: receiver,
        board: Board::default(),
        replicas,
        nodes: cluster.nodes().into_iter().map(|n| n.name).collect(),
        accepted: Vec::new(),
    };
    let deployment = workload(replicas);
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
    progress.set(format!("Starting {replicas} replicas"));
    any(&clients, async |c: &ApiClient| c.post(&path, &deployment).await).await?;
    bench.whole("the first start").await?;

    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|k| args.only.is_empty() || args.only.contains(k)).collect();
    let mut samples: Samples = kinds.iter().map(|k| (*k, Vec::new())).collect();
    for round in 1..=args.rounds {
        for (kind, taken) in &mut samples {
            progress.set(format!("Round {round} of {}: {}", args.rounds, kind.name()));
            let took = match kind {
                Kind::Node => bench.node().await,
                Kind::Leader => bench.leader().await,
                Kind::Container => bench.container().await,
            };
            let failed = |e| CliError::new(format!("round {round}, {}: {e}", kind.name()));
            taken.push(took.map_err(failed)?);
            tracing::info!(round, kind = kind.name(), ms = taken.last().map(Duration::as_millis), "measured");
            bench.whole("the restart").await.map_err(failed)?;
        }
    }
    progress.set("Looking for lost writes");
    for name in &bench.accepted {
        if !any(&clients, async |c: &ApiClient| write::is_there(c, name).await).await? {
            return Err(CliError::new(format!("the write of ConfigMap {name} was acknowledged, and is gone")));
        }
    }
    any(&clients, async |c: &ApiClient| write::clean(c).await).await?;
    Ok(samples)
}

struct Bench<'a> {
    cluster: &'a LocalCluster,
    clients: &'a [(String, ApiClient)],
    changes: mpsc::Receiver<Change>,
    board: Board,
    replicas: usize,
    nodes: Vec<String>,
    /// ConfigMaps whose creation was acknowledged.
    accepted: Vec<String>,
}

impl Bench<'_> {
    /// Takes in changes until the board is so; gives the time of the change that made it so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Board) -> bool) -> Result<Instant, CliError> {
        let deadline = tokio::time::Instant::now() + RECOVERY_LIMIT;
        loop {
            if is_so(&self.board) {
                return Ok(Instant::now());
            }
            match tokio::time::timeout_at(deadline, self.changes.recv()).await {
                Ok(Some(change)) => drop(self.board.apply(change)),
                _ => {
                    return Err(CliError::new(format!(
                        "{what}: not whole within {} s; {} of {} pods Ready, {} there",
                        RECOVERY_LIMIT.as_secs(),
                        self.board.ready(),
                        self.replicas,
                        self.board.replicas()
                    )));
                }
            }
        }
    }

    /// Every node Ready, every server answering, exactly the pods wanted.
    async fn whole(&mut self, after: &str) -> Result<(), CliError> {
        let (nodes, replicas) = (self.nodes.clone(), self.replicas);
        self.until(after, |b| b.settled(replicas) && nodes.iter().all(|n| b.node_ready(n))).await?;
        // A server that is back must have caught up before the next one is killed: it answers when it has.
        for (name, client) in self.clients {
            let deadline = tokio::time::Instant::now() + RECOVERY_LIMIT;
            while write::first_accepted(std::slice::from_ref(client), Duration::from_secs(2)).await.is_err() {
                if tokio::time::Instant::now() > deadline {
                    return Err(CliError::new(format!("{after}: {name} accepts no writes")));
                }
            }
        }
        // What has come meanwhile is taken in, so that the next round begins with the present.
        while let Ok(change) = self.changes.try_recv() {
            self.board.apply(change);
        }
        self.until(after, |b| b.settled(replicas)).await.map(drop)
    }

    async fn kill(&mut self, node: &str) -> Result<Instant, CliError> {
        let begun = Instant::now();
        self.board.kill(node);
        let (cluster, name) = (self.cluster.clone(), node.to_owned());
        let killed = tokio::task::spawn_blocking(move || cluster.kill(&name)).await.map_err(CliError::new)?;
        killed.map_err(CliError::new)?;
        Ok(begun)
    }

    async fn restart(&mut self, node: &str) -> Result<(), CliError> {
        self.board.restart(node);
        self.cluster.restart(node).await.map_err(CliError::new)
    }

    async fn node(&mut self) -> Result<Duration, CliError> {
        let leader = leader(self.cluster, None).await?;
        let others = self.nodes.iter().filter(|n| **n != leader).map(String::as_str);
        let victim = self.board.busiest(others).map(str::to_owned);
        let victim = victim.ok_or_else(|| CliError::new("only the leader runs pods"))?;
        let begun = self.kill(&victim).await?;
        let replicas = self.replicas;
        let recovered = self.until("recovery", |b| b.ready() >= replicas).await?;
        self.restart(&victim).await?;
        Ok(recovered.duration_since(begun))
    }

    async fn leader(&mut self) -> Result<Duration, CliError> {
        let old = leader(self.cluster, None).await?;
        let survivors: Vec<ApiClient> =
            self.clients.iter().filter(|(name, _)| *name != old).map(|(_, c)| c.clone()).collect();
        let begun = self.kill(&old).await?;
        let accepted = write::first_accepted(&survivors, RECOVERY_LIMIT).await?;
        let took = accepted.at.duration_since(begun);
        self.accepted.push(accepted.name);
        let replicas = self.replicas;
        self.until("recovery", |b| b.ready() >= replicas).await?;
        self.restart(&old).await?;
        Ok(took)
    }

    async fn container(&mut self) -> Result<Duration, CliError> {
        let pod = self.board.counting().find(|p| p.restarts == 0).cloned();
        let pod = pod.ok_or_else(|| CliError::new("there is no container that was not killed before"))?;
        let took = restart_of(&pod).await?;
        // Its next crash would wait for CrashLoopBackOff: a new pod takes its place.
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", pod.name);
        any(self.clients, async |c: &ApiClient| c.delete(&path, &json!({})).await).await?;
        let uid = pod.uid;
        self.until("replacement", |b| !b.counting().any(|p| p.uid == uid)).await?;
        Ok(took)
    }
}

/// Kills the process of a pod's container and waits for the answer of another.
async fn restart_of(pod: &PodSeen) -> Result<Duration, CliError> {
    let ip: IpAddr = pod.ip.parse().map_err(|_| CliError::new(format!("{} has no address", pod.name)))?;
    let address = SocketAddr::new(ip, PORT);
    let old = pid(address).await.ok_or_else(|| CliError::new(format!("{} at {address} does not answer", pod.name)))?;
    // Never a signal to a process that is not surely the one meant.
    let ours = processes::process(old).is_some_and(|p| p.args.iter().any(|a| a == "demo-server"));
    if !ours {
        return Err(CliError::new(format!("{address} is not answered by a container of this cluster")));
    }
    let begun = Instant::now();
    kill(Pid::from_raw(old), Signal::SIGKILL).map_err(|e| CliError::new(format!("kill {old}: {e}")))?;
    while begun.elapsed() < RECOVERY_LIMIT {
        if pid(address).await.is_some_and(|new| new != old) {
            return Ok(begun.elapsed());
        }
        tokio::time::sleep(CONTAINER_POLL).await;
    }
    Err(CliError::new(format!("{} was not restarted within {} s", pod.name, RECOVERY_LIMIT.as_secs())))
}

/// The process id of who answers.
async fn pid(address: SocketAddr) -> Option<i32> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET /json HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let text = String::from_utf8(answer).ok()?;
        let (_, body) = text.split_once("\r\n\r\n")?;
        let value: Value = serde_json::from_str(body.trim()).ok()?;
        i32::try_from(value["pid"].as_i64()?).ok()
    };
    tokio::time::timeout(CONTAINER_ANSWER, ask).await.ok()?
}

/// The nearest-rank percentile of sorted samples: the smallest that at least `percent` of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or_default()
}

fn summary(taken: &[Duration]) -> [(&'static str, f64); 4] {
    let mut sorted = taken.to_vec();
    sorted.sort();
    let ms = |d: Duration| (d.as_secs_f64() * 10_000.0).round() / 10.0;
    [
        ("p50_ms", ms(percentile(&sorted, 50))),
        ("p90_ms", ms(percentile(&sorted, 90))),
        ("p99_ms", ms(percentile(&sorted, 99))),
        ("max_ms", ms(percentile(&sorted, 100))),
    ]
}

fn summary_json(samples: &Samples) -> Value {
    let mut out = Map::new();
    for (kind, taken) in samples {
        let mut entry: Map<String, Value> = summary(taken).into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
        entry.insert("rounds".into(), taken.len().into());
        out.insert(kind.name().to_owned(), entry.into());
    }
    out.into()
}

fn summary_text(samples: &Samples, args: &FailoverArgs, load: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["Recovery", "Rounds", "p50 ms", "p90 ms", "p99 ms", "max ms"]);
    for (kind, taken) in samples {
        let mut row = vec![kind.meaning().to_owned(), taken.len().to_string()];
        row.extend(summary(taken).iter().map(|(_, ms)| format!("{ms:.1}")));
        table.add_row(row);
    }
    for column in 1..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = load.split(' ').next().unwrap_or("?");
    format!(
        "{table}\n{} nodes ({} servers) with {} replicas as processes of one machine with {cores} cores; load {load} before.\n\
         Wall clock of this process, from just before SIGKILL. Percentiles by nearest rank: below 100 rounds p99 is the maximum.\n",
        args.nodes, args.servers, args.replicas
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(ms: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        ms.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred = samples(1..=100);
        for (percent, ms) in [(50, 50), (90, 90), (99, 99), (100, 100)] {
            assert_eq!(percentile(&hundred, percent), Duration::from_millis(ms));
        }
        let five = samples([10, 20, 30, 40, 50]);
        assert_eq!(percentile(&five, 50), Duration::from_millis(30));
        assert_eq!(percentile(&five, 99), Duration::from_millis(50));
        assert_eq!(percentile(&samples([7]), 50), Duration::from_millis(7));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn the_json_has_exactly_the_promised_shape() {
        let all: Samples = Kind::ALL.into_iter().map(|k| (k, samples([20, 10]))).collect();
        let one = json!({"p50_ms": 10.0, "p90_ms": 20.0, "p99_ms": 20.0, "max_ms": 20.0, "rounds": 2});
        assert_eq!(summary_json(&all), json!({"node": one, "leader": one, "container": one}));
    }
}
