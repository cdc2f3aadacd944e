//! Snapshots: the replicated state in one checksummed file, written beside and renamed into place, so that a file with the right
//! name is whole or was damaged later. The newest two are kept: a damaged one falls back to the one before it, as long as
//! the log still reaches back that far.
//!
//! File: `PHXSNAP1`, then MessagePack values (header, then one for each key), then the SHA-256 of everything before it.
//! All functions block; the Raft glue calls them on blocking threads.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};

use super::faults::StoreFaults;
use super::state::{Image, Session};
use super::types::{SnapshotMeta, log_index};
use super::{KeyValue, Revision};

const MAGIC: &[u8; 8] = b"PHXSNAP1";
const SNAPSHOTS_KEPT: usize = 2;
const BUFFER_BYTES: usize = 256 * 1024;

/// A finished snapshot on disk.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    pub meta: SnapshotMeta,
    pub path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Header {
    meta: SnapshotMeta,
    revision: Revision,
    compacted: Revision,
    commands: u64,
    sessions: std::collections::BTreeMap<u128, Session>,
    keys: u64,
}

/// The directory of one server's snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    dir: Arc<Path>,
    current: Arc<Mutex<Option<SnapshotFile>>>,
    temporaries: Arc<AtomicU64>,
    faults: StoreFaults,
}

impl SnapshotDir {
    /// Find the newest whole snapshot; leftovers of interrupted writes are removed, damaged files set aside with a warning.
    pub fn open(dir: &Path, faults: StoreFaults) -> io::Result<SnapshotDir> {
        fs::create_dir_all(dir)?;
        let snapshots =
            SnapshotDir { dir: Arc::from(dir), current: Arc::default(), temporaries: Arc::default(), faults };
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(path)?;
            }
        }
        for path in snapshots.files()?.into_iter().rev() {
            match read(&path) {
                Ok((meta, _)) => {
                    *snapshots.current.lock() = Some(SnapshotFile { meta, path });
                    break;
                }
                Err(error) => {
                    let aside = path.with_extension("damaged");
                    tracing::error!(snapshot = %path.display(), %error, "a snapshot is damaged and was set aside");
                    fs::rename(&path, aside)?;
                }
            }
        }
        Ok(snapshots)
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<SnapshotFile> {
        self.current.lock().clone()
    }

    /// Write a snapshot and make it the current one. On disk when it returns.
    pub fn write(&self, meta: SnapshotMeta, image: &Image) -> io::Result<SnapshotFile> {
        let temporary = self.temporary();
        let written = self.write_file(&temporary, &meta, image);
        self.finish(written.map(|()| meta), &temporary)
    }

    fn write_file(&self, path: &Path, meta: &SnapshotMeta, image: &Image) -> io::Result<()> {
        self.faults.check_write()?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        let mut out = Hashing { inner: file, hash: Context::new(&SHA256) };
        out.write_all(MAGIC)?;
        let header = Header {
            meta: meta.clone(),
            revision: image.revision,
            compacted: image.compacted,
            commands: image.commands,
            sessions: image.sessions.clone(),
            keys: image.kvs.len() as u64,
        };
        rmp_serde::encode::write(&mut out, &header).map_err(io::Error::other)?;
        for kv in &image.kvs {
            rmp_serde::encode::write(&mut out, kv).map_err(io::Error::other)?;
        }
        let Hashing { mut inner, hash } = out;
        inner.write_all(hash.finish().as_ref())?;
        inner.into_inner().map_err(|error| error.into_error())?.sync_all()
    }

    /// An empty file to receive a snapshot into; hand it to [`SnapshotDir::adopt`].
    pub fn temporary(&self) -> PathBuf {
        self.dir.join(format!("{}.tmp", self.temporaries.fetch_add(1, Ordering::Relaxed)))
    }

    /// Check a received file and make it the current snapshot. It is removed when it is not whole.
    pub fn adopt(&self, temporary: &Path) -> io::Result<SnapshotFile> {
        let checked = self.faults.check_write().and_then(|()| check(temporary));
        let meta = checked.and_then(|meta| File::open(temporary)?.sync_all().map(|()| meta));
        self.finish(meta, temporary)
    }

    fn finish(&self, meta: io::Result<SnapshotMeta>, temporary: &Path) -> io::Result<SnapshotFile> {
        let renamed = meta.and_then(|meta| {
            let index = log_index(meta.last_log_id).unwrap_or(0);
            let path = self.dir.join(format!("{index:020}.snapshot"));
            fs::rename(temporary, &path)?;
            File::open(&*self.dir)?.sync_all()?;
            Ok(SnapshotFile { meta, path })
        });
        let Ok(snapshot) = renamed else {
            // The first error is the one to tell; an unfinished file is also removed at the next start.
            let _ = fs::remove_file(temporary);
            return renamed;
        };
        let mut current = self.current.lock();
        if current.as_ref().is_none_or(|current| current.meta.last_log_id <= snapshot.meta.last_log_id) {
            *current = Some(snapshot.clone());
        }
        let files = self.files()?;
        for old in &files[..files.len().saturating_sub(SNAPSHOTS_KEPT)] {
            fs::remove_file(old)?;
        }
        Ok(snapshot)
    }

    /// Oldest first: the names are indexes of the log with leading zeros.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&*self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "snapshot") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Check the whole file against its checksum, then read it.
pub fn read(path: &Path) -> io::Result<(SnapshotMeta, Image)> {
    check(path)?;
    let mut file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
    let header: Header = rmp_serde::from_read(&mut file).map_err(damaged)?;
    let mut kvs = Vec::new();
    for _ in 0..header.keys {
        kvs.push(rmp_serde::from_read::<_, KeyValue>(&mut file).map_err(damaged)?);
    }
    let Header { meta, revision, compacted, commands, sessions, .. } = header;
    Ok((meta, Image { revision, compacted, commands, sessions, kvs }))
}

fn check(path: &Path) -> io::Result<SnapshotMeta> {
    let mut file = File::open(path)?;
    let body = file.metadata()?.len().checked_sub(SHA256_OUTPUT_LEN as u64);
    let body = body.ok_or_else(|| damaged("it is too short"))?;
    let mut hash = Context::new(&SHA256);
    let mut left = body;
    let mut buffer = vec![0; BUFFER_BYTES];
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..want])?;
        hash.update(&buffer[..want]);
        left -= want as u64;
    }
    let mut sum = [0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut sum)?;
    if hash.finish().as_ref() != sum {
        return Err(damaged("its checksum is wrong"));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut file = BufReader::new(file);
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(damaged("it is no snapshot of this version"));
    }
    let header: Header = rmp_serde::from_read(&mut file).map_err(damaged)?;
    Ok(header.meta)
}

fn damaged(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a damaged snapshot: {error}"))
}

struct Hashing<W> {
    inner: W,
    hash: Context,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[path = "snapshot_test.rs"]
mod tests;
