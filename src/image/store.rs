//! Images on disk, by content: a blob is kept once, however many images share it.
//!
//! ```text
//!  <root>/blobs/sha256/<hex>   verified before it got its name, read-only
//!         names.json           full name of an image ──▶ its manifest; replaced as a whole
//!         incoming/            what is being written; emptied when the store is opened by its only user
//!         lock                 flock(2): one process at a time changes the store
//! ```
//! Must never let a name refer to what is not all there. Used by `load` and by whoever runs images.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, ImageConfiguration, ImageManifest};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{DOCUMENT_BYTES_MAX, Hash, ImageError, full_name};

/// What is copied at once.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// Images on disk.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

/// The store, while nobody else changes it.
pub struct Locked<'a> {
    store: &'a ImageStore,
    /// Released when it is closed.
    _file: File,
}

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its full names, sorted.
    pub names: Vec<String>,
    /// Digest of its manifest, which is what identifies it.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Its configuration.
    pub config: ImageConfiguration,
}

impl Image {
    /// Bytes of its configuration and layers, as they are kept.
    pub fn bytes(&self) -> u64 {
        self.manifest.layers().iter().map(Descriptor::size).sum::<u64>() + self.manifest.config().size()
    }
}

type Names = BTreeMap<String, Named>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    manifest: Digest,
}

impl ImageStore {
    /// The store in a directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let store = Self { root: root.to_owned() };
        for dir in [store.blobs(), store.incoming()] {
            fs::create_dir_all(&dir).map_err(ImageError::io(&dir))?;
        }
        // Left behind by whoever was killed; whoever writes just now has the lock.
        let file = store.lock_file()?;
        if file.try_lock().is_ok() {
            let incoming = store.incoming();
            for entry in fs::read_dir(&incoming).map_err(ImageError::io(&incoming))?.flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(store)
    }

    /// Waits until nobody else changes the store.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn lock(&self) -> Result<Locked<'_>, ImageError> {
        let file = self.lock_file()?;
        file.lock().map_err(ImageError::io(&self.root.join("lock")))?;
        Ok(Locked { store: self, _file: file })
    }

    fn lock_file(&self) -> Result<File, ImageError> {
        let path = self.root.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).map_err(ImageError::io(&path))
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// Where files are written before they have a name.
    pub(crate) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Where a blob is, or would be.
    ///
    /// # Errors
    /// A digest that is none of SHA-256.
    pub fn blob(&self, digest: &Digest) -> Result<PathBuf, ImageError> {
        match digest.algorithm() {
            // Parsed, so that it is 64 hexadecimal digits and no path.
            DigestAlgorithm::Sha256 => Ok(self.blobs().join(digest.digest())),
            other => Err(ImageError::Unsupported(format!("digests of {other} cannot be checked: {digest}"))),
        }
    }

    fn names(&self) -> Result<Names, ImageError> {
        let path = self.root.join("names.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Names::new()),
            read => read.map_err(ImageError::io(&path))?,
        };
        serde_json::from_slice(&text).map_err(|e| ImageError::damaged(path.display(), e))
    }

    /// A document of the store.
    fn document(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob(digest)?;
        let mut bytes = vec![];
        let file = File::open(&path).map_err(ImageError::io(&path))?;
        file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(ImageError::io(&path))?;
        Ok(bytes)
    }

    fn image(&self, digest: &Digest, names: Vec<String>) -> Result<Image, ImageError> {
        let manifest = ImageManifest::from_reader(&self.document(digest)?[..]);
        let manifest = manifest.map_err(|e| ImageError::damaged(digest, e))?;
        let config = manifest.config().digest().clone();
        let config = ImageConfiguration::from_reader(&self.document(&config)?[..])
            .map_err(|e| ImageError::damaged(config, e))?;
        Ok(Image { names, digest: digest.clone(), manifest, config })
    }

    /// All images, by their first name.
    ///
    /// # Errors
    /// [`ImageError::Io`]; [`ImageError::Damaged`].
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut by_digest: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, named) in self.names()? {
            by_digest.entry(named.manifest.to_string()).or_default().push(name);
        }
        let mut images = by_digest
            .into_iter()
            .map(|(digest, names)| {
                let digest = digest.parse().map_err(|e| ImageError::damaged(&digest, e))?;
                self.image(&digest, names)
            })
            .collect::<Result<Vec<_>, _>>()?;
        images.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(images)
    }

    /// The image with a name, full or short, or with a digest or the beginning of one (at least six digits).
    ///
    /// # Errors
    /// [`ImageError::NotFound`], also when several digests begin so.
    pub fn find(&self, name: &str) -> Result<Image, ImageError> {
        let full = full_name(name).ok();
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        let by_digest = |image: &Image| digits.len() >= 6 && image.digest.digest().starts_with(digits);
        let images = self.list()?;
        let named = images.iter().find(|image| full.as_ref().is_some_and(|full| image.names.contains(full)));
        let mut begun = images.iter().filter(|image| by_digest(image));
        match (named, begun.next(), begun.next()) {
            (Some(image), ..) | (None, Some(image), None) => Ok(image.clone()),
            _ => Err(ImageError::NotFound(name.into())),
        }
    }
}

impl Locked<'_> {
    /// Takes in a blob whose digest is known. What is there already is not read.
    ///
    /// # Errors
    /// [`ImageError::Damaged`]: it is not what its digest and its size say.
    pub fn put(&self, expected: &Descriptor, content: impl Read) -> Result<(), ImageError> {
        let path = self.store.blob(expected.digest())?;
        if fs::metadata(&path).is_ok_and(|known| known.len() == expected.size()) {
            return Ok(());
        }
        let (file, digest, bytes) = self.write(content.take(expected.size().saturating_add(1)), expected.digest())?;
        if bytes != expected.size() {
            let more = if bytes > expected.size() { "more" } else { "fewer" };
            return Err(ImageError::damaged(expected.digest(), format!("{more} than its {} bytes", expected.size())));
        }
        if digest != *expected.digest() {
            return Err(ImageError::damaged(expected.digest(), format!("its content has the digest {digest}")));
        }
        self.keep(file, &path)
    }

    /// Takes in a blob and gives its digest and size.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn put_unknown(&self, what: &str, content: impl Read) -> Result<(Digest, u64), ImageError> {
        let (file, digest, bytes) = self.write(content, what)?;
        self.keep(file, &self.store.blob(&digest)?)?;
        Ok((digest, bytes))
    }

    fn write(&self, mut content: impl Read, what: impl ToString) -> Result<(NamedTempFile, Digest, u64), ImageError> {
        let incoming = self.store.incoming();
        let mut file = NamedTempFile::new_in(&incoming).map_err(ImageError::io(&incoming))?;
        let (mut hash, mut bytes, mut piece) = (Hash::new(), 0, vec![0; PIECE_BYTES]);
        loop {
            let read = match content.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ImageError::damaged(what.to_string(), error)),
            };
            hash.update(&piece[..read]);
            file.write_all(&piece[..read]).map_err(ImageError::io(&incoming))?;
            bytes += read as u64;
        }
        Ok((file, hash.finish()?, bytes))
    }

    fn keep(&self, file: NamedTempFile, path: &Path) -> Result<(), ImageError> {
        file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(ImageError::io(path))?;
        file.as_file().sync_all().map_err(ImageError::io(path))?;
        file.persist(path).map_err(|e| ImageError::io(path)(e.error))?;
        sync_dir(path)
    }

    /// A blob that has been taken in.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn blob(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.store.blob(digest)?;
        File::open(&path).map_err(ImageError::io(&path))
    }

    /// Gives an image names; another image that had one of them has it no more. All that it consists of has been taken in.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn name(&self, manifest: &Digest, names: impl IntoIterator<Item = String>) -> Result<(), ImageError> {
        let mut all = self.store.names()?;
        all.extend(names.into_iter().map(|name| (name, Named { manifest: manifest.clone() })));
        self.replace_names(&all)
    }

    fn replace_names(&self, names: &Names) -> Result<(), ImageError> {
        let path = self.store.root.join("names.json");
        let text = serde_json::to_vec_pretty(names).map_err(|e| ImageError::damaged(path.display(), e))?;
        let mut file = NamedTempFile::new_in(&self.store.root).map_err(ImageError::io(&path))?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(ImageError::io(&path))?;
        file.persist(&path).map_err(|e| ImageError::io(&path)(e.error))?;
        sync_dir(&path)
    }

    /// Takes a name away, and with an image's last name the image. Named by digest, it loses all of its names. Gives the names and how many
    /// bytes are free now.
    ///
    /// # Errors
    /// [`ImageError::NotFound`].
    pub fn remove(&self, name: &str) -> Result<(Vec<String>, u64), ImageError> {
        let image = self.store.find(name)?;
        let full = full_name(name).ok().filter(|full| image.names.contains(full));
        let gone = full.map_or(image.names, |full| vec![full]);
        let mut names = self.store.names()?;
        names.retain(|name, _| !gone.contains(name));
        self.replace_names(&names)?;
        Ok((gone, self.sweep()?))
    }

    /// Removes all blobs that no named image consists of. Gives how many bytes are free now.
    ///
    /// # Errors
    /// [`ImageError::Io`]; [`ImageError::Damaged`]: an image cannot be read, so nobody knows what it consists of, and nothing is removed.
    pub fn sweep(&self) -> Result<u64, ImageError> {
        let mut used = BTreeSet::new();
        for image in self.store.list()? {
            used.insert(image.digest.digest().to_owned());
            used.insert(image.manifest.config().digest().digest().to_owned());
            used.extend(image.manifest.layers().iter().map(|layer| layer.digest().digest().to_owned()));
        }
        let blobs = self.store.blobs();
        let mut freed = 0;
        for entry in fs::read_dir(&blobs).map_err(ImageError::io(&blobs))? {
            let entry = entry.map_err(ImageError::io(&blobs))?;
            if !entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                let path = entry.path();
                freed += entry.metadata().map_or(0, |metadata| metadata.len());
                fs::remove_file(&path).map_err(ImageError::io(&path))?;
            }
        }
        Ok(freed)
    }
}

/// A name in a directory is on disk when the directory is.
fn sync_dir(path: &Path) -> Result<(), ImageError> {
    let dir = path.parent().unwrap_or(path);
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(ImageError::io(dir))
}
