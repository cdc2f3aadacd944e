//! Erlang's side: compiles the benchmark's own module into a folder and starts nodes with it.
//!
//! Must never touch the user's Erlang: no cookie file, no `.erlang`, no epmd that stays.

use std::path::Path;
use std::process::{Command, Stdio};

/// The release of OTP on the path, and of its emulator with its flavour (jit or emu); nothing when there is none.
pub fn release() -> Option<String> {
    let code = "io:format(\"Erlang/OTP ~s (erts ~s, ~s)\", [erlang:system_info(otp_release), erlang:system_info(version), \
                try erlang:system_info(emu_flavor) catch _:_ -> emu end]), halt().";
    let output =
        Command::new("erl").args(["-noshell", "-noinput", "-eval", code]).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Writes and compiles a module.
pub fn compile(folder: &Path, module: &str, source: &str) -> Result<(), String> {
    let file = folder.join(format!("{module}.erl"));
    std::fs::write(&file, source).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    let output = Command::new("erlc").arg("-o").arg(folder).arg(&file).output().map_err(|e| format!("erlc: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("erlc: {}", String::from_utf8_lossy(&output.stdout)))
}

/// An emulator that runs `module:main/0`, with so many schedulers; more arguments may follow.
pub fn node(folder: &Path, module: &str, schedulers: usize) -> Command {
    let mut command = Command::new("erl");
    command
        .args(["+S", &format!("{schedulers}:{schedulers}"), "+P", "4000000", "-noshell", "-pa"])
        .arg(folder)
        .args(["-s", module, "main"])
        // The home holds the cookie and a profile.
        .env("HOME", folder)
        .env_remove("ERL_FLAGS")
        .env_remove("ERL_AFLAGS")
        .env_remove("ERL_ZFLAGS");
    command
}
