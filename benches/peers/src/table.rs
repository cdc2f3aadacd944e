//! Samples in, one table in Markdown out. Pure: no I/O, no clock.

use crate::process::Sample;
use std::collections::BTreeMap;

/// What a figure of a row is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Wall and processor time of one operation; less is better.
    Time,
    /// Operations a second, and processor time of one; more is better.
    Rate,
    /// Bytes of memory of one operation's result: the resident set, and in brackets what was asked of the allocator.
    Bytes,
    /// The latencies that the contestant measured itself: p50 and p99.
    Latency,
    /// MiB a second, and processor time of a MiB; an operation is a MiB.
    Throughput,
}

/// One row of the table.
pub struct Row {
    /// The operation's.
    pub name: &'static str,
    pub title: String,
    pub figure: Figure,
    /// By contestant, in the order of the columns. Without samples: it has no such operation.
    pub samples: Vec<Vec<Sample>>,
    /// Those that failed, and why.
    pub failures: BTreeMap<usize, String>,
}

/// The middle one; the lower of two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

fn least(values: Vec<f64>) -> Option<f64> {
    values.into_iter().min_by(f64::total_cmp)
}

fn each(samples: &[Sample], f: impl Fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(f).collect()
}

fn wall(sample: &Sample) -> f64 {
    sample.wall_ns / sample.operations
}

fn cpu(sample: &Sample) -> f64 {
    sample.cpu_ns / sample.operations
}

impl Row {
    /// Without samples yet.
    pub fn new(name: &'static str, title: &str, figure: Figure, columns: usize) -> Self {
        Row { name, title: title.into(), figure, samples: vec![Vec::new(); columns], failures: BTreeMap::new() }
    }

    /// Says which of the peers take at least `factor` times as much as phalanx, and which do not. Peers are columns by the beginnings of
    /// their titles.
    pub fn goal(&self, columns: &[String], peers: &[&str], factor: f64) {
        let measured = |peer: &&str| {
            let column = columns.iter().position(|title| title.starts_with(*peer))?;
            Some((self.ratio(column)?, peer.trim_end_matches(',').to_owned()))
        };
        let (kept, missed): (Vec<_>, Vec<_>) =
            peers.iter().filter_map(measured).partition(|(ratio, _)| *ratio >= factor);
        let list = |word: &str, peers: Vec<(f64, String)>| {
            let peers: Vec<String> = peers.iter().map(|(ratio, peer)| format!("{peer} {ratio:.2}")).collect();
            if peers.is_empty() { String::new() } else { format!("; {word} beside {}", peers.join(", ")) }
        };
        if !kept.is_empty() || !missed.is_empty() {
            let (kept, missed) = (list("kept", kept), list("**missed**", missed));
            println!("- {}: {factor:.2} times as much or more{kept}{missed}", self.title);
        }
    }

    /// What is compared: less is better, whatever the figure.
    pub fn cost(&self, column: usize) -> Option<f64> {
        let samples = self.samples.get(column)?;
        match self.figure {
            Figure::Time | Figure::Rate | Figure::Throughput => median(each(samples, wall)),
            Figure::Bytes => median(each(samples, |s| s.resident_bytes / s.operations)),
            Figure::Latency => median(each(samples, |s| s.further.first().copied().unwrap_or(0.0))),
        }
    }

    /// How many times as much another takes as the first column.
    pub fn ratio(&self, column: usize) -> Option<f64> {
        Some(self.cost(column)? / self.cost(0)?)
    }

    /// The same, by processor time: less troubled by what else the machine does.
    pub fn cpu_ratio(&self, column: usize) -> Option<f64> {
        let of = |column: usize| median(each(self.samples.get(column)?, cpu)).filter(|ns| *ns > 0.0);
        Some(of(column)? / of(0)?)
    }

    fn cell(&self, column: usize) -> String {
        if self.failures.contains_key(&column) {
            return "failed".into();
        }
        let Some(samples) = self.samples.get(column).filter(|samples| !samples.is_empty()) else {
            return String::new();
        };
        let (Some(cost), Some(best)) = (self.cost(column), least(each(samples, wall))) else { return String::new() };
        let cpu = median(each(samples, cpu)).unwrap_or(0.0);
        let mut cell = match self.figure {
            Figure::Time => format!("{} ({}), cpu {}", time(cost), time(best), time(cpu)),
            Figure::Rate => format!("{}/s ({}), cpu {}", count(1e9 / cost), count(1e9 / best), time(cpu)),
            Figure::Throughput => format!("{:.0} MiB/s ({:.0}), cpu {}", 1e9 / cost, 1e9 / best, time(cpu)),
            Figure::Bytes => {
                let asked = median(each(samples, |s| s.further.first().map_or(0.0, |bytes| bytes / s.operations)));
                format!("{cost:.0} B ({:.0})", asked.unwrap_or(0.0))
            }
            Figure::Latency => {
                let p99 = median(each(samples, |s| s.further.get(1).copied().unwrap_or(0.0))).unwrap_or(0.0);
                format!("{} / {}, {}/s, cpu {}", time(cost), time(p99), count(1e9 / best), time(cpu))
            }
        };
        if column > 0
            && let Some(ratio) = self.ratio(column)
        {
            cell.push_str(&format!(", x{ratio:.2}"));
        }
        cell
    }
}

/// The whole table.
pub fn markdown(columns: &[String], rows: &[Row]) -> String {
    let mut out = format!("| one operation | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<String> = (0..columns.len()).map(|column| row.cell(column)).collect();
        out.push_str(&format!("| {} | {} |\n", row.title, cells.join(" | ")));
    }
    for row in rows {
        for (column, failure) in &row.failures {
            out.push_str(&format!("\n{}: {} failed: {failure}\n", row.title, columns[*column]));
        }
    }
    out
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e5 => format!("{:.2} us", ns / 1e3),
        ns if ns < 1e6 => format!("{:.0} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

fn count(n: f64) -> String {
    match n {
        n if n < 1e4 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.0} k", n / 1e3),
        n => format!("{:.2} M", n / 1e6),
    }
}
