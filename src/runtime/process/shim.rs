//! The shim: the small process that holds one container, so that the container outlives the agent.
//!
//! ```text
//! agent ──spawns──> shim (own session, subreaper, one thread, no async runtime)
//!                    ├── stdout, stderr of the container ──> log file
//!                    ├── shim.sock <── status, signal, kill, wait
//!                    └── the container's main process (own process group) and all that descend from it
//! ```
//! It must never start the actor system or an async runtime, never decide whether to restart, and never end before
//! everything that the container started is dead and the exit file is written. Called by the binary's `main` (and by
//! an embedder's `main`, through [`run_shim_if_invoked`]) before anything else.
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::procfs;
use super::protocol::*;
use crate::runtime::container_log::{Lines, LogFile, Rotation, Stream, record_time};
use crate::runtime::{ContainerSpec, ExitStatus, START_ERROR_EXIT_CODE};

/// The subcommand that makes this binary a shim.
pub const SHIM_COMMAND: &str = "shim";
/// Processes that survive SIGKILL this long (stuck in the kernel) are given up.
const LEFTOVERS_MS_MAX: u64 = 5_000;
const LEFTOVERS_POLL_MS: u16 = 10;
/// How often a bound container's shim looks whether its agent lives, in milliseconds. Much less than the time between a
/// lease's last renewal and its end.
const BOUND_POLL_MS: u16 = 50;
/// How much output is read at the end, when nobody can write any more.
const DRAIN_BYTES_MAX: usize = 4 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// For the `main` of a program that embeds Phalanx with the process runtime: becomes a shim, and does not return, if
/// this process was started as one. Call it first, before any thread is started.
pub fn run_shim_if_invoked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == SHIM_COMMAND) {
        let code = shim_main(args);
        std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 });
    }
}

/// Runs the container whose state directory is the one argument, until it has ended.
pub fn shim_main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = args.next() else {
        eprintln!("phalanx shim: the directory of the container is missing");
        return ExitCode::FAILURE;
    };
    match run(Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("phalanx shim: {}: {error}", Path::new(&dir).display());
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path) -> io::Result<()> {
    let _ = nix::unistd::setsid(); // fails only for a session leader, which is what we want to be
    // Everything below uses names relative to the state directory: a socket's path may have 107 bytes, ours is longer.
    std::env::set_current_dir(dir)?;
    let lock = File::create(LOCK_FILE)?;
    lock.try_lock().map_err(|_| io::Error::other("another shim holds this container"))?;
    let Some(spec) = read_json::<ContainerSpec>(Path::new(SPEC_FILE))? else {
        return Err(io::Error::other("the container was removed before it started"));
    };
    if Path::new(EXIT_FILE).exists() {
        return Err(io::Error::other("the container has ended already"));
    }
    nix::sys::prctl::set_child_subreaper(true)?;
    let mut watched = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        watched.add(signal);
    }
    watched.thread_block()?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let _ = std::fs::remove_file(SOCKET_FILE);
    let listener = UnixListener::bind(SOCKET_FILE)?;
    listener.set_nonblocking(true)?;

    let log = LogFile::open(&spec.log_path, Rotation::default());
    // A child inherits the signal mask: not this one. What arrives meanwhile is found by the first `reap`.
    watched.thread_unblock()?;
    let started = start(&spec);
    watched.thread_block()?;
    match started {
        Ok((child, stdout, stderr)) => {
            let me = std::process::id() as i32;
            let state = State {
                shim_pid: me,
                shim_start_ticks: procfs::stat(me).map_or(0, |stat| stat.start_ticks),
                pid: child,
                start_ticks: procfs::stat(child).map_or(0, |stat| stat.start_ticks),
                boot_id: procfs::boot_id(),
                started_at: Timestamp::now(),
            };
            write_json(Path::new(STATE_FILE), &state)?;
            say(&Started::Running(state.clone()));
            Shim {
                state,
                signals,
                listener,
                clients: Vec::new(),
                stdout: Pipe::new(stdout, Stream::Stdout)?,
                stderr: Pipe::new(stderr, Stream::Stderr)?,
                log,
                records: Vec::new(),
                main_exit: None,
                bound_to: spec.bound_to.clone(),
                leaving: false,
            }
            .hold()
        }
        Err(error) => {
            let exit = ExitStatus::exited(START_ERROR_EXIT_CODE).because("StartError", start_failure(&spec, &error));
            let file = write_json(Path::new(EXIT_FILE), &exit)?;
            say(&Started::Failed(exit));
            file.sync_all()
        }
    }
}

/// In the words of containerd and runc, which people search for.
fn start_failure(spec: &ContainerSpec, error: &io::Error) -> String {
    let program = spec.command.iter().chain(&spec.args).next().map_or("", String::as_str);
    match error.kind() {
        io::ErrorKind::NotFound if spec.working_dir.as_deref().is_some_and(|dir| !dir.is_dir()) => {
            format!("failed to start container: the working directory {:?} does not exist", spec.working_dir)
        }
        io::ErrorKind::NotFound if program.contains('/') => {
            format!("failed to start container: exec: {program:?}: stat {program}: no such file or directory")
        }
        io::ErrorKind::NotFound => {
            format!("failed to start container: exec: {program:?}: executable file not found in $PATH")
        }
        _ => format!("failed to start container: exec: {program:?}: {error}"),
    }
}

/// Tells the agent how the start went; once, and whether or not it still listens. Then stdout is let go.
fn say(started: &Started) {
    if let Ok(mut line) = serde_json::to_vec(started) {
        line.push(b'\n');
        let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    }
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}

fn start(spec: &ContainerSpec) -> io::Result<(i32, ChildStdout, ChildStderr)> {
    let mut words = spec.command.iter().chain(&spec.args);
    let program = words.next().ok_or_else(|| io::Error::other("no command"))?;
    let mut command = Command::new(program);
    command
        .args(words)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if let Some(dir) = &spec.working_dir {
        command.current_dir(dir);
    }
    let mut child = command.spawn()?;
    let pid = child.id() as i32;
    match (child.stdout.take(), child.stderr.take()) {
        (Some(stdout), Some(stderr)) => Ok((pid, stdout, stderr)),
        _ => Err(io::Error::other("the container's output could not be connected")),
    }
}

/// Whether nobody holds the lock. A file that cannot be opened is nobody's.
fn is_abandoned(lock: &Path) -> bool {
    match File::open(lock) {
        // Given back at once, with the file.
        Ok(file) => file.try_lock().is_ok(),
        Err(_) => true,
    }
}

/// One output of the container.
struct Pipe<R> {
    from: Option<R>,
    lines: Lines,
}

impl<R: Read + AsFd> Pipe<R> {
    fn new(from: R, stream: Stream) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&from, FcntlArg::F_GETFL)?);
        fcntl(&from, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { from: Some(from), lines: Lines::new(stream) })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Reads once into `records`. Returns how much was read; 0 at the end or where nothing is there.
    fn read(&mut self, buffer: &mut [u8], records: &mut Vec<u8>) -> usize {
        let Some(from) = self.from.as_mut() else {
            return 0;
        };
        match from.read(buffer) {
            Ok(0) => {
                self.from = None;
                0
            }
            Ok(count) => {
                self.lines.push(&record_time(Timestamp::now()), &buffer[..count], records);
                count
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.from = None;
                0
            }
        }
    }
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    waits: bool,
}

struct Shim {
    state: State,
    signals: SignalFd,
    listener: UnixListener,
    clients: Vec<Client>,
    stdout: Pipe<ChildStdout>,
    stderr: Pipe<ChildStderr>,
    log: LogFile,
    records: Vec<u8>,
    main_exit: Option<ExitStatus>,
    bound_to: Option<PathBuf>,
    /// The shim itself was asked to end: the container goes with it.
    leaving: bool,
}

impl Shim {
    /// Serves until the main process ends, then ends what it left behind, and reports.
    fn hold(mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        self.reap();
        let patience = if self.bound_to.is_some() { PollTimeout::from(BOUND_POLL_MS) } else { PollTimeout::NONE };
        while self.main_exit.is_none() {
            self.turn(patience, &mut buffer)?;
            if !self.leaving && self.bound_to.as_deref().is_some_and(is_abandoned) {
                self.leaving = true;
                self.kill_all();
            }
        }
        let give_up = Instant::now() + Duration::from_millis(LEFTOVERS_MS_MAX);
        while self.kill_all() && Instant::now() < give_up {
            self.turn(PollTimeout::from(LEFTOVERS_POLL_MS), &mut buffer)?;
        }
        self.drain(&mut buffer);

        let exit = self.main_exit.take().unwrap_or_else(|| ExitStatus::signalled(Signal::SIGKILL as i32));
        let file = write_json(Path::new(EXIT_FILE), &exit)?;
        // Told before the file is on the disk: a restart need not wait for that, and a machine that loses power has
        // no containers to be told of.
        for client in &mut self.clients {
            if client.waits {
                answer(&mut client.stream, &Answer::Exited(exit.clone()));
            }
        }
        drop(self.clients);
        file.sync_all()?;
        File::open(".")?.sync_all()
    }

    /// Waits for something to happen and handles all of it.
    fn turn(&mut self, timeout: PollTimeout, buffer: &mut [u8]) -> io::Result<()> {
        let (stdout, stderr, ready) = {
            let mut fds = vec![
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(self.clients.iter().map(|client| PollFd::new(client.stream.as_fd(), PollFlags::POLLIN)));
            let outputs = fds.len();
            fds.extend(self.stdout.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            fds.extend(self.stderr.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            let mut outputs = ready[outputs..].iter().copied();
            let stdout = self.stdout.from.is_some() && outputs.next().unwrap_or(false);
            (stdout, self.stderr.from.is_some() && outputs.next().unwrap_or(false), ready)
        };
        if stdout {
            self.stdout.read(buffer, &mut self.records);
        }
        if stderr {
            self.stderr.read(buffer, &mut self.records);
        }
        self.flush();
        for index in (0..self.clients.len()).rev() {
            if ready[index + 2] && !self.serve(index) {
                self.clients.swap_remove(index);
            }
        }
        if ready[1] {
            self.accept();
        }
        if ready[0] {
            while let Ok(Some(info)) = self.signals.read_signal() {
                if info.ssi_signo != Signal::SIGCHLD as u32 {
                    self.leaving = true;
                }
            }
            self.reap();
        }
        if self.leaving {
            self.kill_all();
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.log.write(&self.records);
        self.records.clear();
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, input: Vec::new(), waits: false });
            }
        }
    }

    /// Handles what a client sent. False when the connection is over.
    fn serve(&mut self, index: usize) -> bool {
        let mut chunk = [0; 1024];
        let client = &mut self.clients[index];
        match client.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => client.input.extend_from_slice(&chunk[..count]),
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
        while let Some(end) = self.clients[index].input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.clients[index].input.drain(..=end).collect();
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.request(index, request),
                Err(error) => Some(Answer::Error(format!("not a request: {error}"))),
            };
            if let Some(reply) = reply
                && !answer(&mut self.clients[index].stream, &reply)
            {
                return false;
            }
        }
        self.clients[index].input.len() <= REQUEST_BYTES_MAX
    }

    fn request(&mut self, index: usize, request: Request) -> Option<Answer> {
        match request {
            Request::Status => Some(Answer::Running(self.state.clone())),
            Request::Wait => {
                self.clients[index].waits = true;
                None
            }
            Request::Signal { signal } => Some(match Signal::try_from(signal) {
                Ok(signal) => {
                    if self.main_exit.is_none() {
                        let _ = killpg(Pid::from_raw(self.state.pid), signal);
                    }
                    Answer::Done
                }
                Err(_) => Answer::Error(format!("{signal} is not a signal")),
            }),
            Request::Kill | Request::Shutdown => {
                self.kill_all();
                Some(Answer::Done)
            }
        }
    }

    /// SIGKILL to the process group and to every process that was left to us. True while any child remains.
    ///
    /// Descendants outside the group become our children when their parent dies, so repeating this ends them all.
    fn kill_all(&mut self) -> bool {
        if self.main_exit.is_none() {
            let _ = killpg(Pid::from_raw(self.state.pid), Signal::SIGKILL);
        }
        let children = procfs::children(self.state.shim_pid);
        for child in &children {
            let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
        }
        self.reap()
    }

    /// Collects the dead. True while any child remains.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid, || ExitStatus::exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.ended(pid, || ExitStatus::signalled(signal as i32)),
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn ended(&mut self, pid: Pid, exit: impl FnOnce() -> ExitStatus) {
        if pid.as_raw() == self.state.pid && self.main_exit.is_none() {
            self.main_exit = Some(exit());
        }
    }

    /// Everything is dead: takes what is left in the pipes.
    fn drain(&mut self, buffer: &mut [u8]) {
        let mut total = 0;
        while total < DRAIN_BYTES_MAX {
            let read = self.stdout.read(buffer, &mut self.records) + self.stderr.read(buffer, &mut self.records);
            self.flush();
            if read == 0 {
                break;
            }
            total += read;
        }
        let now = record_time(Timestamp::now());
        self.stdout.lines.finish(&now, &mut self.records);
        self.stderr.lines.finish(&now, &mut self.records);
        self.flush();
    }
}

/// Never blocks: an answer is small and a client that does not read loses its connection.
fn answer(stream: &mut UnixStream, answer: &Answer) -> bool {
    serde_json::to_vec(answer).is_ok_and(|mut line| {
        line.push(b'\n');
        stream.write_all(&line).is_ok()
    })
}
