//! Where and with what it was measured: the head of each table.

use std::fs::read_to_string;

/// Date, processor, memory, kernel and load, in one line.
pub fn line() -> String {
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, m)| m);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{}; {} ({cores} cores), {} GiB, {} {}; load {} at the start",
        jiff::Zoned::now().date(),
        if model.is_empty() { std::env::consts::ARCH } else { model },
        (meminfo_bytes("MemTotal:") + (1 << 29)) >> 30,
        std::env::consts::OS,
        kernel.trim(),
        load.split_whitespace().next().unwrap_or("unknown"),
    )
}

/// Memory that can still be had, in bytes; `None` where that is not known.
pub fn available_bytes() -> Option<u64> {
    Some(meminfo_bytes("MemAvailable:")).filter(|bytes| *bytes > 0)
}

fn meminfo_bytes(what: &str) -> u64 {
    let meminfo = read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The version of a crate that this was compiled with.
pub fn version(name: &str) -> String {
    let lock = include_str!("../../../Cargo.lock");
    let entry = format!("name = \"{name}\"\nversion = \"");
    let version = lock.split_once(&entry).and_then(|(_, rest)| rest.split_once('"'));
    format!("{name} {}", version.map_or("of unknown version", |(version, _)| version))
}
