//! OCI images on this machine: kept by their content, known by names, brought in from files.
//!
//! Trusts nothing that it reads: every byte is held against its digest before anything refers to it, and no path of an archive is ever
//! a path of this machine. Must never run anything, nor know of pods. Called by `cli::image`.

pub mod layout;
pub mod load;
pub mod store;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::distribution::Reference;
use oci_spec::image::{Digest, MediaType};

pub use store::{Image, ImageStore};

/// Most bytes of an index, a manifest or a configuration; registries take 4 MiB (OCI distribution specification).
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Why an image cannot be loaded, found or removed. One line each, for people.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The disk, or what is on it.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not what its digest, or its place, says.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// The file or blob.
        what: String,
        /// What does not hold.
        why: String,
    },
    /// Neither of the formats.
    #[error("{} is neither an OCI layout nor an archive of `docker save`", .0.display())]
    Unknown(PathBuf),
    /// Known, and not done here.
    #[error("{0}")]
    Unsupported(String),
    /// It says no name, and none was given.
    #[error("{} has {count} images without a full name: give one with --name", path.display())]
    Nameless {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// Nothing has this name.
    #[error("no image {0}")]
    NotFound(String),
    /// No name of an image.
    #[error("`{name}` is not the name of an image: {why}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl ImageError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| ImageError::Io { path, source }
    }

    fn damaged(what: impl ToString, why: impl ToString) -> Self {
        ImageError::Damaged { what: what.to_string(), why: why.to_string() }
    }
}

/// The full name of an image, as containerd writes it: `busybox` is `docker.io/library/busybox:latest`.
///
/// # Errors
/// [`ImageError::Name`].
pub fn full_name(name: &str) -> Result<String, ImageError> {
    let parsed: Result<Reference, _> = name.parse();
    parsed.map(|reference| reference.whole()).map_err(|e| ImageError::Name { name: name.into(), why: e.to_string() })
}

/// The digest of bytes (SHA-256, the only one that registries use).
pub(crate) fn digest_of(bytes: &[u8]) -> Result<Digest, ImageError> {
    let mut hash = Hash::new();
    hash.update(bytes);
    hash.finish()
}

/// A digest in the making.
pub(crate) struct Hash(ring::digest::Context);

impl Hash {
    pub(crate) fn new() -> Self {
        Hash(ring::digest::Context::new(&ring::digest::SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Result<Digest, ImageError> {
        use std::fmt::Write;
        let mut text = String::from("sha256:");
        for byte in self.0.finish().as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        text.parse().map_err(|e| ImageError::damaged(&text, e))
    }
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Tar,
    Gzip,
}

/// How a layer of this type is packed; Docker's own types are read, too.
pub(crate) fn packing(media_type: &MediaType) -> Result<Packing, ImageError> {
    match media_type {
        MediaType::ImageLayer => Ok(Packing::Tar),
        MediaType::ImageLayerGzip => Ok(Packing::Gzip),
        MediaType::Other(other) if other == "application/vnd.docker.image.rootfs.diff.tar" => Ok(Packing::Tar),
        MediaType::Other(other) if other == "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Packing::Gzip),
        MediaType::ImageLayerZstd => {
            Err(ImageError::Unsupported("a layer packed with zstd cannot be read: pack it with gzip".into()))
        }
        other => Err(ImageError::Unsupported(format!("a layer of type {other} cannot be read"))),
    }
}
