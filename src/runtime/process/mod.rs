//! The runtime `process`: a container is a plain child process of this machine, held by a shim (see [`shim`]).
//!
//! No root, no image: the container's `command` is what runs. The agent may die at any time; the shim keeps the
//! container, its output and its exit status, and [`ProcessRuntime::adopt`](Runtime::adopt) finds it again.
//! If the shim itself is killed, the agent kills what it held: a container never runs without a keeper for longer
//! than its agent lives, or needs to come back.
//!
//! Environment that a container gets beside what its pod asks for (the pod's own entries win):
//! `PATH`, `HOME`, `LANG`, `TZ`, `USER` of the agent; `HOSTNAME` (the pod's name); `HOST` (the pod's address, which the
//! container should listen on: the machine's ports are shared by all pods) and `PORT` (the first declared
//! `containerPort`); `PHALANX_BIN` (this binary); `PHALANX_CONTAINER_DIR`; `PHALANX_TERMINATION_LOG` (a file whose
//! content becomes the termination message). A command `phalanx` without a slash is this binary.
pub mod procfs;
pub mod protocol;
pub mod shim;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;

use self::procfs::CONTAINER_DIR_ENV;
use self::protocol::*;
use super::{
    Container, ContainerSpec, EXEC_OUTPUT_BYTES_MAX, ExecResult, ExitStatus, Runtime, RuntimeError, SIGKILL_EXIT_CODE,
};

/// A shim that says nothing for this long has failed to start.
const SHIM_START_MS_MAX: u64 = 10_000;
/// How long an answer of a living shim may take.
const SHIM_ANSWER_MS_MAX: u64 = 5_000;
const SHIM_CONNECT_RETRY_MS: u64 = 5;
/// How long the output of an exec is read on after its command has ended.
const EXEC_DRAIN_MS: u64 = 50;
/// How often survivors of a killed shim are looked for and killed.
const SURVIVOR_ROUNDS: usize = 200;
/// What of the agent's own environment a container gets.
const INHERITED_ENV: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "USER"];
/// Longer socket paths are reached through a descriptor of their directory (`sun_path` has 108 bytes).
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// Runs containers as processes.
pub struct ProcessRuntime {
    /// The program that becomes the shim with the arguments `shim <dir>`, and `phalanx` for containers.
    binary: PathBuf,
}

impl ProcessRuntime {
    /// With this very program as the shim: its `main` must call [`shim::run_shim_if_invoked`] first.
    pub fn new() -> io::Result<Self> {
        Ok(Self::with_binary(std::env::current_exe()?))
    }

    /// With another program as the shim: one whose `main` calls [`shim::run_shim_if_invoked`], such as `phalanx`.
    pub fn with_binary(binary: PathBuf) -> Self {
        Self { binary }
    }

    /// Completes a spec: the environment of this runtime, and what `phalanx` means.
    fn complete(&self, mut spec: ContainerSpec) -> Result<ContainerSpec, RuntimeError> {
        let program = spec.command.first_mut().or(spec.args.first_mut()).ok_or_else(|| {
            RuntimeError::Config(format!(
                "no command specified: the runtime process runs no images, so container {:?} needs a command",
                spec.container
            ))
        })?;
        if program == "phalanx" {
            *program = self.binary.to_string_lossy().into_owned();
        }
        spec.dir = std::path::absolute(&spec.dir).map_err(RuntimeError::io("cannot find", &spec.dir))?;
        spec.log_path = std::path::absolute(&spec.log_path).map_err(RuntimeError::io("cannot find", &spec.log_path))?;

        let mut env: Vec<(String, String)> = INHERITED_ENV
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .chain([("HOSTNAME".to_owned(), spec.pod.clone())])
            .chain(spec.pod_ip.map(|ip| ("HOST".to_owned(), ip.to_string())))
            .chain(spec.port.map(|port| ("PORT".to_owned(), port.to_string())))
            .chain([
                ("PHALANX_BIN".to_owned(), self.binary.to_string_lossy().into_owned()),
                (
                    "PHALANX_TERMINATION_LOG".to_owned(),
                    spec.dir.join(TERMINATION_LOG_FILE).to_string_lossy().into_owned(),
                ),
            ])
            .filter(|(name, _)| !spec.env.iter().any(|(asked, _)| asked == name))
            .collect();
        env.append(&mut spec.env);
        env.retain(|(name, _)| name != CONTAINER_DIR_ENV);
        env.push((CONTAINER_DIR_ENV.to_owned(), spec.dir.to_string_lossy().into_owned()));
        spec.env = env;
        Ok(spec)
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        "process"
    }

    async fn start(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, RuntimeError> {
        let spec = self.complete(spec)?;
        let dir = spec.dir.clone();
        let prepared = spec.clone();
        let binary = self.binary.clone();
        // Creating a process blocks until its program is loaded: not on the thread of the actors.
        let spawned = tokio::task::spawn_blocking(move || spawn_shim(&binary, &prepared)).await;
        let mut shim =
            spawned.map_err(|error| RuntimeError::Start(format!("starting the shim panicked: {error}")))??;
        let stdout = shim.stdout.take();
        // Reaps the shim; the container does not depend on it.
        tokio::spawn(async move { shim.wait().await });

        let mut line = String::new();
        let said = async {
            let Some(stdout) = stdout else { return Ok(0) };
            BufReader::new(stdout).read_line(&mut line).await
        };
        let outcome = tokio::time::timeout(Duration::from_millis(SHIM_START_MS_MAX), said).await;
        match serde_json::from_str(&line) {
            Ok(Started::Running(state)) => Ok(ProcessContainer::watch(spec, state, None)),
            Ok(Started::Failed(exit)) => Err(RuntimeError::Start(exit.message.unwrap_or_default())),
            Err(_) => {
                let why = match outcome {
                    Err(_) => format!("the shim did not answer within {SHIM_START_MS_MAX} ms"),
                    Ok(_) => std::fs::read_to_string(dir.join(SHIM_ERROR_FILE)).unwrap_or_default(),
                };
                Err(RuntimeError::Start(format!("failed to start the shim {}: {}", self.binary.display(), why.trim())))
            }
        }
    }

    async fn adopt(&self, dir: &Path) -> Result<Option<Arc<dyn Container>>, RuntimeError> {
        let dir = std::path::absolute(dir).map_err(RuntimeError::io("cannot find", dir))?;
        let Some(spec) = read_json::<ContainerSpec>(&dir.join(SPEC_FILE))
            .map_err(RuntimeError::io("cannot read", &dir.join(SPEC_FILE)))?
        else {
            return Ok(None);
        };
        let (exit_file, state_file) = (dir.join(EXIT_FILE), dir.join(STATE_FILE));
        let lock = File::create(dir.join(LOCK_FILE)).map_err(RuntimeError::io("cannot open", &dir))?;
        if lock.try_lock().is_err() {
            // The shim lives, or is about to end and to leave an exit file.
            match tokio::time::timeout(Duration::from_millis(SHIM_ANSWER_MS_MAX), find_shim(&dir)).await {
                Ok(Some((state, stream))) => {
                    return Ok(Some(ProcessContainer::watch(spec, state, Some(stream))));
                }
                Ok(None) => {}
                Err(_) => {
                    return Err(RuntimeError::Start(format!("the shim in {} does not answer", dir.display())));
                }
            }
        }
        let state = read_json::<State>(&state_file).map_err(RuntimeError::io("cannot read", &state_file))?;
        if let Some(exit) = read_json::<ExitStatus>(&exit_file).map_err(RuntimeError::io("cannot read", &exit_file))? {
            return Ok(Some(ProcessContainer::ended(spec, state, exit)));
        }
        // No shim and no exit: it was killed, or it never came to start anything. We hold the lock: it cannot now.
        let Some(state) = state else {
            std::fs::remove_file(dir.join(SPEC_FILE)).map_err(RuntimeError::io("cannot remove", &dir))?;
            return Ok(None);
        };
        let exit = bury(&dir, &state).await;
        Ok(Some(ProcessContainer::ended(spec, Some(state), exit)))
    }
}

fn spawn_shim(binary: &Path, spec: &ContainerSpec) -> Result<tokio::process::Child, RuntimeError> {
    let dir = &spec.dir;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(RuntimeError::io("cannot create", dir))?;
    if let Some(logs) = spec.log_path.parent() {
        std::fs::create_dir_all(logs).map_err(RuntimeError::io("cannot create", logs))?;
    }
    let spec_file = dir.join(SPEC_FILE);
    write_json(&spec_file, spec).map_err(RuntimeError::io("cannot write", &spec_file))?;
    let errors = File::create(dir.join(SHIM_ERROR_FILE)).map_err(RuntimeError::io("cannot write", dir))?;
    tokio::process::Command::new(binary)
        .arg(shim::SHIM_COMMAND)
        .arg(dir)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(RuntimeError::io("cannot start the shim", binary))
}

/// Connects to a living shim. `None` when it ended meanwhile.
async fn find_shim(dir: &Path) -> Option<(State, UnixStream)> {
    loop {
        if let Ok(stream) = connect(dir).await {
            let mut stream = BufReader::new(stream);
            if let Ok(Answer::Running(state)) = ask(&mut stream, &Request::Status).await {
                return Some((state, stream.into_inner()));
            }
        }
        if dir.join(EXIT_FILE).exists() || File::open(dir.join(LOCK_FILE)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(SHIM_CONNECT_RETRY_MS)).await;
    }
}

async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let socket = dir.join(SOCKET_FILE);
    if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return UnixStream::connect(socket).await;
    }
    let handle = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", handle.as_raw_fd())).await
}

async fn ask(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<Answer> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await?;
    let mut reply = String::new();
    if stream.read_line(&mut reply).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&reply)?)
}

/// The shim is dead and left no exit: ends what it held, and writes the exit in its place.
async fn bury(dir: &Path, state: &State) -> ExitStatus {
    let (of, own) = (state.clone(), dir.to_owned());
    let _ = tokio::task::spawn_blocking(move || procfs::kill_survivors(&of, &own, SURVIVOR_ROUNDS)).await;
    let exit = ExitStatus { code: SIGKILL_EXIT_CODE, ..ExitStatus::signalled(Signal::SIGKILL as i32) }
        .because("Error", "the shim that held the container was killed, and the container with it");
    if let Err(error) = write_json(&dir.join(EXIT_FILE), &exit) {
        tracing::warn!(dir = %dir.display(), %error, "cannot write the exit of a container whose shim was killed");
    }
    exit
}

struct ProcessContainer {
    spec: ContainerSpec,
    pid: Option<u32>,
    started_at: Timestamp,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl ProcessContainer {
    fn watch(spec: ContainerSpec, state: State, stream: Option<UnixStream>) -> Arc<dyn Container> {
        let (tell, exit) = watch::channel(None);
        let container =
            Self { pid: u32::try_from(state.pid).ok(), started_at: state.started_at, spec: spec.clone(), exit };
        tokio::spawn(async move {
            let status = watch_shim(&spec, &state, stream).await;
            let _ = tell.send(Some(status));
        });
        Arc::new(container)
    }

    fn ended(spec: ContainerSpec, state: Option<State>, exit: ExitStatus) -> Arc<dyn Container> {
        let started_at = state.as_ref().map_or(exit.finished_at, |state| state.started_at);
        Arc::new(Self {
            pid: state.and_then(|state| u32::try_from(state.pid).ok()),
            started_at,
            spec,
            exit: watch::channel(Some(exit)).1,
        })
    }

    async fn ask(&self, request: Request) -> Result<(), RuntimeError> {
        if self.exit.borrow().is_some() {
            return Ok(());
        }
        let dir = &self.spec.dir;
        let asked = async {
            let mut stream = BufReader::new(connect(dir).await?);
            ask(&mut stream, &request).await
        };
        match tokio::time::timeout(Duration::from_millis(SHIM_ANSWER_MS_MAX), asked).await {
            Ok(Ok(Answer::Error(error))) => Err(RuntimeError::Start(error)),
            Ok(Ok(_)) => Ok(()),
            // It ended while we asked, which is as good.
            Ok(Err(_)) if dir.join(EXIT_FILE).exists() => Ok(()),
            Ok(Err(source)) => Err(RuntimeError::io("cannot reach the shim in", dir)(source)),
            Err(_) => Err(RuntimeError::io("no answer from the shim in", dir)(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Follows a container to its end, whoever ends first: the container or its shim.
async fn watch_shim(spec: &ContainerSpec, state: &State, mut known: Option<UnixStream>) -> ExitStatus {
    let dir = &spec.dir;
    loop {
        let stream = match known.take() {
            Some(stream) => Ok(stream),
            None => connect(dir).await,
        };
        if let Ok(stream) = stream
            && let Ok(Answer::Exited(exit)) = ask(&mut BufReader::new(stream), &Request::Wait).await
        {
            return exit;
        }
        // Asked before the exit file is looked at: a shim that is gone wrote all that it will ever write.
        let shim_is_gone = !procfs::is_alive(state.shim_pid, state.shim_start_ticks);
        if let Ok(Some(exit)) = read_json(&dir.join(EXIT_FILE)) {
            return exit;
        }
        if shim_is_gone {
            return bury(dir, state).await;
        }
        tokio::time::sleep(Duration::from_millis(SHIM_CONNECT_RETRY_MS)).await;
    }
}

#[async_trait]
impl Container for ProcessContainer {
    fn id(&self) -> &str {
        &self.spec.id
    }

    fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn started_at(&self) -> Timestamp {
        self.started_at
    }

    async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let known = exit.wait_for(Option::is_some).await.ok().and_then(|status| status.clone());
        match known {
            Some(status) => status,
            // The watcher went with its runtime: this agent is ending, the container is not.
            None => std::future::pending().await,
        }
    }

    async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.ask(Request::Signal { signal }).await
    }

    async fn kill(&self) -> Result<(), RuntimeError> {
        self.ask(Request::Kill).await
    }

    async fn exec(&self, command: &[String], timeout: Duration) -> Result<ExecResult, RuntimeError> {
        if self.exit.borrow().is_some() {
            return Err(RuntimeError::NotRunning);
        }
        let Some((program, args)) = command.split_first() else {
            return Err(RuntimeError::Config("the command to run in the container is empty".to_owned()));
        };
        let own = self.spec.env.iter().find(|(name, _)| name == "PHALANX_BIN").map(|(_, value)| value);
        let program = if program == "phalanx" { own.unwrap_or(program) } else { program };
        let mut process = tokio::process::Command::new(program);
        process
            .args(args)
            .env_clear()
            .envs(self.spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(dir) = &self.spec.working_dir {
            process.current_dir(dir);
        }
        let spawned = tokio::task::spawn_blocking(move || process.spawn()).await;
        let mut child = match spawned {
            Ok(Ok(child)) => child,
            Ok(Err(error)) => {
                return Err(RuntimeError::Start(format!("exec: {program:?}: {error}")));
            }
            Err(error) => return Err(RuntimeError::Start(format!("exec: {program:?}: {error}"))),
        };
        let group = child.id().map(|pid| KillGroup(Pid::from_raw(pid as i32)));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let run = async {
            let output = parking_lot::Mutex::new(Vec::new());
            let collected = async { tokio::join!(collect(stdout, &output), collect(stderr, &output)) };
            tokio::pin!(collected);
            let status = tokio::select! {
                _ = &mut collected => child.wait().await,
                status = child.wait() => {
                    // What the command left running may hold its output open: not waited for.
                    let _ = tokio::time::timeout(Duration::from_millis(EXEC_DRAIN_MS), collected).await;
                    status
                }
            };
            status.map(|status| (status, std::mem::take(&mut *output.lock())))
        };
        let outcome = tokio::time::timeout(timeout, run).await;
        drop(group);
        match outcome {
            Ok(Ok((status, output))) => {
                use std::os::unix::process::ExitStatusExt;
                let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(SIGKILL_EXIT_CODE);
                Ok(ExecResult { code, output })
            }
            Ok(Err(error)) => Err(RuntimeError::Start(format!("exec: {program:?}: {error}"))),
            Err(_) => Err(RuntimeError::Timeout { command: command.to_vec(), after: timeout }),
        }
    }

    async fn cleanup(&self) -> Result<(), RuntimeError> {
        let dir = self.spec.dir.clone();
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::io("cannot remove", &dir)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Ends the process group of an exec however its future ends.
struct KillGroup(Pid);

impl Drop for KillGroup {
    fn drop(&mut self) {
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

async fn collect(from: Option<impl tokio::io::AsyncRead + Unpin>, output: &parking_lot::Mutex<Vec<u8>>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let mut output = output.lock();
        let room = EXEC_OUTPUT_BYTES_MAX - output.len().min(EXEC_OUTPUT_BYTES_MAX);
        output.extend_from_slice(&chunk[..count.min(room)]);
    }
}

/// Kills every shim and everything that it holds under a node's directory of containers, as the loss of the machine
/// would: no exit is written, nobody is told. For chaos commands and for tests. Returns the number of containers hit.
pub fn kill_node_processes(containers: &Path) -> usize {
    let Ok(containers) = std::path::absolute(containers) else { return 0 };
    fn state_dirs(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.join(STATE_FILE).exists() {
                found.push(path);
            } else if depth > 0 && path.is_dir() {
                state_dirs(&path, depth - 1, found);
            }
        }
    }
    let mut dirs = Vec::new();
    state_dirs(&containers, 2, &mut dirs);
    let mut hit = 0;
    for dir in dirs {
        let state = read_json::<State>(&dir.join(STATE_FILE)).ok().flatten();
        let Some(state) = state else { continue };
        let alive = state.boot_id == procfs::boot_id() && procfs::is_alive(state.shim_pid, state.shim_start_ticks);
        if alive {
            let _ = kill(Pid::from_raw(state.shim_pid), Signal::SIGKILL);
        }
        hit += usize::from(procfs::kill_survivors(&state, &dir, SURVIVOR_ROUNDS) > 0 || alive);
    }
    hit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(command: &[&str], env: &[(&str, &str)]) -> ContainerSpec {
        ContainerSpec {
            id: "uid_c_0".into(),
            namespace: "default".into(),
            pod: "web".into(),
            pod_uid: "uid".into(),
            container: "c".into(),
            attempt: 0,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            args: vec![],
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            working_dir: None,
            dir: "/nowhere".into(),
            log_path: "/nowhere/log".into(),
            image: "none".into(),
            pod_ip: Some("127.1.2.3".parse().unwrap()),
            port: Some(8080),
            bound_to: None,
        }
    }

    #[test]
    fn a_container_without_a_command_is_a_configuration_error() {
        let runtime = ProcessRuntime::with_binary("/bin/phalanx".into());
        assert!(matches!(runtime.complete(spec(&[], &[])), Err(RuntimeError::Config(_))));
    }

    #[test]
    fn the_pods_own_environment_wins_and_phalanx_means_this_binary() {
        let runtime = ProcessRuntime::with_binary("/bin/phalanx".into());
        let done =
            runtime.complete(spec(&["phalanx", "demo-server"], &[("PORT", "9"), (CONTAINER_DIR_ENV, "lie")])).unwrap();
        let all = |name: &str| -> Vec<&str> {
            done.env.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(all("PORT"), ["9"]);
        assert_eq!(all("HOST"), ["127.1.2.3"]);
        assert_eq!(all("HOSTNAME"), ["web"]);
        assert_eq!(all("PHALANX_BIN"), ["/bin/phalanx"]);
        assert_eq!(all(CONTAINER_DIR_ENV), ["/nowhere"]);
        assert_eq!(done.command[0], "/bin/phalanx");
    }
}
