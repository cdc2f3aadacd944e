//! The log of one container on disk: CRI's line format, written by the shim and by the task runtime.
//!
//! A line is `<RFC 3339 time with nanoseconds> <stdout|stderr> <P|F> <text>`; text longer than 16 KiB is split into
//! `P` records ended by an `F` one. The file in use keeps its name; a full one is renamed to `<name>.<sequence>`,
//! ever growing, so that a reader who holds the old file knows which comes next.
//! Writing never fails towards the container: on a full disk lines are dropped and counted, and the log says so later.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// CRI: longer lines are split.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
/// kubelet's `containerLogMaxSize`.
pub const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// kubelet's `containerLogMaxFiles`, the one in use included.
pub const FILES_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub file_bytes_max: u64,
    pub files_max: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { file_bytes_max: FILE_BYTES_MAX, files_max: FILES_MAX }
    }
}

/// Cuts the bytes of one stream into records.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    /// The begun line, always shorter than [`LINE_BYTES_MAX`].
    pending: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Appends the records that `chunk` completes to `out`.
    pub fn push(&mut self, at: &str, mut chunk: &[u8], out: &mut Vec<u8>) {
        while !chunk.is_empty() {
            let room = LINE_BYTES_MAX - self.pending.len();
            match chunk.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.record(at, b'F', &chunk[..end], out);
                    chunk = &chunk[end + 1..];
                }
                None if chunk.len() > room => {
                    self.record(at, b'P', &chunk[..room], out);
                    chunk = &chunk[room..];
                }
                None => {
                    self.pending.extend_from_slice(chunk);
                    return;
                }
            }
        }
    }

    /// The stream has ended: a last line without a newline is a partial one.
    pub fn finish(&mut self, at: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.record(at, b'P', &[], out);
        }
    }

    fn record(&mut self, at: &str, tag: u8, rest: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(at.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.as_str().as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        out.append(&mut self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
    }
}

/// The time as it stands in a record.
pub fn record_time(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// The file that records go to.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    sequence: u64,
    rotation: Rotation,
    /// Records lost since the last one that was written.
    dropped: u64,
    /// The last write ended inside a record.
    torn: bool,
}

impl LogFile {
    /// Opens or creates `path`. A failure is not an error: it is tried again with each write.
    pub fn open(path: &Path, rotation: Rotation) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            bytes: 0,
            sequence: rotated(path).last().map_or(0, |(sequence, _)| *sequence),
            rotation,
            dropped: 0,
            torn: false,
        };
        let _ = log.reopen();
        log
    }

    /// Writes whole records. Never blocks on a full disk and never fails: what cannot be written is counted.
    pub fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.bytes > 0 && self.bytes + records.len() as u64 > self.rotation.file_bytes_max {
            self.rotate();
        }
        let mut notice = Vec::new();
        if self.torn {
            notice.push(b'\n');
        }
        if self.dropped > 0 {
            let text = format!("phalanx: {} log lines could not be written and are lost\n", self.dropped);
            Lines::new(Stream::Stderr).push(&record_time(Timestamp::now()), text.as_bytes(), &mut notice);
        }
        if (notice.is_empty() || self.append(&notice).is_ok()) && self.append(records).is_ok() {
            self.dropped = 0;
            self.torn = false;
        } else {
            self.dropped += records.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.torn = true;
        }
    }

    /// Records lost since the last successful write.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = self.file.as_mut() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn rotate(&mut self) {
        let next = self.sequence + 1;
        if std::fs::rename(&self.path, rotated_name(&self.path, next)).is_err() {
            return; // keep writing to the file we hold; tried again with the next write
        }
        self.sequence = next;
        self.file = None;
        self.bytes = 0;
        let kept = rotated(&self.path);
        let surplus = (kept.len() + 1).saturating_sub(self.rotation.files_max);
        for (_, old) in kept.iter().take(surplus) {
            let _ = std::fs::remove_file(old);
        }
    }
}

fn rotated_name(path: &Path, sequence: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{sequence}"));
    name.into()
}

/// The full files that precede `path`, oldest first, with their sequence.
pub fn rotated(path: &Path) -> Vec<(u64, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let mut found: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name();
            let sequence = file.to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()?;
            Some((sequence, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(chunks: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new(Stream::Stdout), Vec::new());
        for chunk in chunks {
            lines.push("T", chunk, &mut out);
        }
        lines.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_one_record_however_it_arrives() {
        assert_eq!(text(&[b"one\ntwo\n"]), "T stdout F one\nT stdout F two\n");
        assert_eq!(text(&[b"on", b"e\n\nt", b"wo\n"]), "T stdout F one\nT stdout F \nT stdout F two\n");
        assert_eq!(text(&[b"no newline"]), "T stdout P no newline\n");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn a_line_over_16_kib_is_split_into_partial_records() {
        let long = vec![b'x'; 2 * LINE_BYTES_MAX + 5];
        let mut with_newline = long.clone();
        with_newline.push(b'\n');
        let out = text(&[&with_newline]);
        let parts: Vec<(&str, usize)> = out.lines().map(|line| (&line[9..10], line.len() - 11)).collect();
        assert_eq!(parts, [("P", LINE_BYTES_MAX), ("P", LINE_BYTES_MAX), ("F", 5)]);
        let exact = [vec![b'y'; LINE_BYTES_MAX], vec![b'\n']].concat();
        assert_eq!(text(&[&exact]).lines().count(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_byte_is_lost_and_no_record_is_too_long(
            bytes in proptest::collection::vec(proptest::prop_oneof![9 => 65u8..90, 1 => proptest::strategy::Just(b'\n')], 0..60_000),
            cut in 1usize..20_000,
        ) {
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            let mut back = Vec::new();
            for line in text(&chunks).lines() {
                proptest::prop_assert!(line.len() <= LINE_BYTES_MAX + 11);
                back.extend_from_slice(&line.as_bytes()[11..]);
                if &line[9..10] == "F" {
                    back.push(b'\n');
                }
            }
            proptest::prop_assert_eq!(back, bytes);
        }
    }

    #[test]
    fn rotation_keeps_the_newest_files_and_loses_no_line_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, Rotation { file_bytes_max: 100, files_max: 3 });
        for number in 0..100 {
            log.write(format!("T stdout F line {number:02}\n").as_bytes());
        }
        let old = rotated(&path);
        assert_eq!(old.len(), 2);
        assert!(old[0].0 < old[1].0);
        let all: String = old
            .iter()
            .map(|(_, path)| path.clone())
            .chain([path.clone()])
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        let numbers: Vec<u32> = all.lines().map(|line| line[16..].parse().unwrap()).collect();
        assert_eq!(*numbers.last().unwrap(), 99);
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert!(numbers.len() > 8);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_log_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("0.log");
        let mut log = LogFile::open(&path, Rotation::default());
        log.write(b"T stdout F lost 1\nT stdout F lost 2\n");
        assert_eq!(log.dropped(), 2);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        log.write(b"T stdout F kept\n");
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains("phalanx: 2 log lines could not be written"), "{written}");
        assert!(written.ends_with("T stdout F kept\n"));
        assert_eq!(log.dropped(), 0);
    }
}
