//! What a command may fail with. One edge, [`report`], turns it into a line on standard error and an exit code.
//!
//! Errors are for people: one line that says what, where, and what to do. A failure never shows a panic or a backtrace.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

/// Exit code of a command that failed. 0 is success; 2 is a command line that cannot be understood (clap's).
pub const EXIT_FAILURE: u8 = 1;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// One line for people.
    #[error("{0}")]
    Message(String),
    /// The API server refused, with a `Status`.
    #[error("{message}{}", if reason.is_empty() { String::new() } else { format!(" ({reason})") })]
    Server {
        /// HTTP status code.
        code: u16,
        /// `metav1.StatusReason`, such as `NotFound`.
        reason: String,
        /// The server's message.
        message: String,
    },
    /// No server could be reached.
    #[error(
        "cannot reach the API server at {server}: {why}; is the cluster up? `phalanx up` starts one on this machine"
    )]
    Unreachable {
        /// Its URL.
        server: String,
        /// The root cause.
        why: String,
    },
    /// What went wrong has been said already, object by object.
    #[error("some objects failed")]
    Reported,
    /// The reader of standard output is gone: nobody is left to tell.
    #[error("broken pipe")]
    BrokenPipe,
}

impl CliError {
    /// From anything that can be said in a line.
    pub fn new(text: impl std::fmt::Display) -> Self {
        Self::Message(text.to_string())
    }

    /// Whether the server said that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Server { code: 404, .. })
    }

    /// Whether the server said that the object exists already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Server { reason, .. } if reason == "AlreadyExists")
    }

    /// From a `Status` body, or from whatever else an HTTP answer that is not a success carried.
    pub fn from_answer(code: u16, body: &[u8]) -> Self {
        if let Ok(status) = serde_json::from_slice::<Value>(body)
            && status["kind"] == "Status"
        {
            return Self::Server {
                code: status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(code),
                reason: status["reason"].as_str().unwrap_or_default().to_owned(),
                message: status["message"].as_str().unwrap_or_default().to_owned(),
            };
        }
        let text = String::from_utf8_lossy(body);
        let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("no explanation");
        Self::Server { code, reason: format!("HTTP {code}"), message: line.chars().take(200).collect() }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::BrokenPipe } else { Self::Message(error.to_string()) }
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        Self::Message(format!("the server's answer is not what it should be: {error}"))
    }
}

/// Writes to standard output. A broken pipe is [`CliError::BrokenPipe`], never a panic.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match CliError::from(error) {
        CliError::Message(why) => CliError::Message(format!("cannot write to standard output: {why}")),
        other => other,
    })
}

/// Like [`print`], with a line feed.
pub fn println(line: &str) -> Result<(), CliError> {
    print(&format!("{line}\n"))
}

/// A remark on standard error. Nothing can be done when even that cannot be written.
pub fn warn(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// `error: <one line>` on standard error.
pub fn complain(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    warn(&format!("error: {}", line.join("; ")));
}

/// The one edge: says what failed, once, and gives the exit code.
pub fn report(result: Result<(), CliError>) -> ExitCode {
    match result {
        Ok(()) | Err(CliError::BrokenPipe) => ExitCode::SUCCESS,
        Err(CliError::Reported) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            complain(&error);
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_becomes_its_message_and_reason() {
        let body = br#"{"kind":"Status","message":"pods \"nope\" not found","reason":"NotFound","code":404}"#;
        let error = CliError::from_answer(404, body);
        assert_eq!(error.to_string(), "pods \"nope\" not found (NotFound)");
        assert!(error.is_not_found());
    }

    #[test]
    fn an_answer_that_is_no_status_is_cut_to_one_line() {
        let error = CliError::from_answer(502, b"\n<html>\nbad gateway\n");
        assert_eq!(error.to_string(), "<html> (HTTP 502)");
    }

    #[test]
    fn a_broken_pipe_is_told_apart() {
        let error = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(error, CliError::BrokenPipe));
    }
}
