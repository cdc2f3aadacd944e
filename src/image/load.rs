//! Images out of files: OCI layouts, as directories or in a tar archive, and archives of `docker save`; the archives also packed with gzip.
//!
//! Must never follow a path of an archive into this machine: an archive is read in place, by the names of its entries. All or nothing: an
//! image that is not whole gets no name, and what was taken in of it is removed again. Called by `cli::image`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use oci_spec::image::{
    Arch, Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType,
    OciLayout, Os,
};
use serde::Deserialize;

use super::store::{Locked, PIECE_BYTES};
use super::{DOCUMENT_BYTES_MAX, Hash, ImageError, ImageStore, Packing, digest_of, full_name, packing};

/// How many links of an archive lead to an entry at most.
const LINKS_MAX: usize = 8;

/// An image that has been loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its full names.
    pub names: Vec<String>,
    /// The digest of its manifest.
    pub digest: Digest,
}

/// Loads all images of a file or directory that are for this machine. `name` is the name of the only one.
///
/// # Errors
/// See [`ImageError`]; then no image of it is loaded.
pub fn load(store: &ImageStore, path: &Path, name: Option<&str>) -> Result<Vec<Loaded>, ImageError> {
    let name = name.map(full_name).transpose()?;
    let locked = store.lock()?;
    let loaded = Source::open(store, path).and_then(|source| source.load(&locked, name));
    if loaded.is_err() {
        // What failed first counts.
        let _ = locked.sweep();
    }
    let loaded = loaded?;
    for image in &loaded {
        locked.name(&image.digest, image.names.iter().cloned())?;
    }
    Ok(loaded)
}

/// Where the files of a layout are.
struct Source {
    path: PathBuf,
    files: Files,
}

enum Files {
    Dir,
    Tar { file: File, entries: HashMap<String, Entry> },
}

enum Entry {
    File { offset: u64, bytes: u64 },
    Link(String),
}

/// One image of `manifest.json` in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Source {
    fn open(store: &ImageStore, path: &Path) -> Result<Self, ImageError> {
        let metadata = path.metadata().map_err(ImageError::io(path))?;
        if metadata.is_dir() {
            return Ok(Self { path: path.to_owned(), files: Files::Dir });
        }
        let mut file = File::open(path).map_err(ImageError::io(path))?;
        if is_gzip(&mut file).map_err(ImageError::io(path))? {
            // Its entries are read in any order.
            let mut plain = tempfile::tempfile_in(store.incoming()).map_err(ImageError::io(path))?;
            io::copy(&mut GzDecoder::new(BufReader::new(file)), &mut plain)
                .map_err(|e| ImageError::damaged(path.display(), e))?;
            plain.rewind().map_err(ImageError::io(path))?;
            file = plain;
        }
        let entries = entries(&file).map_err(|e| ImageError::damaged(path.display(), e))?;
        Ok(Self { path: path.to_owned(), files: Files::Tar { file, entries } })
    }

    /// A file, and how long it is. `None`: there is none.
    fn file(&self, name: &str) -> Result<Option<(File, u64)>, ImageError> {
        match &self.files {
            Files::Dir => {
                let path = self.path.join(name);
                match File::open(&path) {
                    Ok(file) => {
                        let bytes = file.metadata().map_err(ImageError::io(&path))?.len();
                        Ok(Some((file, bytes)))
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(ImageError::io(&path)(error)),
                }
            }
            Files::Tar { file, entries } => {
                let mut name = name.to_owned();
                for _ in 0..LINKS_MAX {
                    match entries.get(&name) {
                        None => return Ok(None),
                        Some(Entry::Link(to)) => name.clone_from(to),
                        Some(Entry::File { offset, bytes }) => {
                            // One position for all of its copies: read to the end before the next is opened.
                            let mut file = file.try_clone().map_err(ImageError::io(&self.path))?;
                            file.seek(SeekFrom::Start(*offset)).map_err(ImageError::io(&self.path))?;
                            return Ok(Some((file, *bytes)));
                        }
                    }
                }
                Err(ImageError::damaged(format!("{name} in {}", self.path.display()), "it is linked in circles"))
            }
        }
    }

    fn present(&self, name: &str) -> Result<(File, u64), ImageError> {
        self.file(name)?.ok_or_else(|| ImageError::damaged(self.path.display(), format!("{name} is missing")))
    }

    /// All of a small file.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((file, bytes)) = self.file(name)? else {
            return Ok(None);
        };
        if bytes > DOCUMENT_BYTES_MAX {
            let why = format!("{bytes} bytes, more than {DOCUMENT_BYTES_MAX}");
            return Err(ImageError::damaged(format!("{name} in {}", self.path.display()), why));
        }
        let mut all = vec![];
        file.take(bytes).read_to_end(&mut all).map_err(ImageError::io(&self.path))?;
        Ok(Some(all))
    }

    fn load(&self, store: &Locked<'_>, name: Option<String>) -> Result<Vec<Loaded>, ImageError> {
        if let Some(layout) = self.document("oci-layout")? {
            let layout = OciLayout::from_reader(&layout[..]).map_err(|e| self.unreadable("oci-layout", e))?;
            if layout.image_layout_version() != "1.0.0" {
                let version = layout.image_layout_version();
                return Err(ImageError::Unsupported(format!(
                    "{} is a layout of version {version}",
                    self.path.display()
                )));
            }
            return self.load_layout(store, name);
        }
        match self.document("manifest.json")? {
            Some(manifest) => self.load_saved(store, &manifest, name),
            None => Err(ImageError::Unknown(self.path.clone())),
        }
    }

    fn unreadable(&self, name: &str, error: impl ToString) -> ImageError {
        ImageError::damaged(format!("{name} in {}", self.path.display()), error)
    }

    // ---- OCI layouts -----------------------------------------------------------------------------------------------------

    fn load_layout(&self, store: &Locked<'_>, name: Option<String>) -> Result<Vec<Loaded>, ImageError> {
        let index = self.document("index.json")?;
        let index = index.ok_or_else(|| ImageError::damaged(self.path.display(), "index.json is missing"))?;
        let index = ImageIndex::from_reader(&index[..]).map_err(|e| self.unreadable("index.json", e))?;
        // Several names of one image are several entries.
        let mut named: Vec<(&Descriptor, Vec<String>)> = vec![];
        for manifest in index.manifests() {
            let name = name_of(manifest);
            match named.iter_mut().find(|(known, _)| known.digest() == manifest.digest()) {
                Some((_, names)) => names.extend(name),
                None => named.push((manifest, name.into_iter().collect())),
            }
        }
        if let Some(name) = name {
            let [(_, names)] = &mut named[..] else {
                return Err(ImageError::Nameless { path: self.path.clone(), count: named.len() });
            };
            *names = vec![name];
        }
        let nameless = named.iter().filter(|(_, names)| names.is_empty()).count();
        if nameless > 0 || named.is_empty() {
            return Err(ImageError::Nameless { path: self.path.clone(), count: nameless });
        }
        let load = |(of, names): (&Descriptor, Vec<String>)| {
            let digest = self.load_manifest(store, of)?;
            Ok(Loaded { names, digest })
        };
        named.into_iter().map(load).collect()
    }

    fn blob(&self, digest: &Digest) -> Result<(File, u64), ImageError> {
        self.present(&blob_name(digest))
    }

    /// A document whose content is what its descriptor says.
    fn described(&self, of: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let name = blob_name(of.digest());
        let missing = || ImageError::damaged(self.path.display(), format!("{name} is missing"));
        let bytes = self.document(&name)?.ok_or_else(missing)?;
        let digest = digest_of(&bytes)?;
        if digest != *of.digest() {
            return Err(ImageError::damaged(of.digest(), format!("its content has the digest {digest}")));
        }
        Ok(bytes)
    }

    /// Takes in an image, or of several the one for this machine. Gives the digest of its manifest.
    fn load_manifest(&self, store: &Locked<'_>, of: &Descriptor) -> Result<Digest, ImageError> {
        let bytes = self.described(of)?;
        if is_index(of.media_type()) {
            let index = ImageIndex::from_reader(&bytes[..]).map_err(|e| ImageError::damaged(of.digest(), e))?;
            let ours = index.manifests().iter().find(|manifest| is_ours(manifest));
            let ours = ours.filter(|ours| !is_index(ours.media_type())).ok_or_else(|| {
                let there: Vec<String> = index
                    .manifests()
                    .iter()
                    .filter_map(|manifest| manifest.platform().as_ref())
                    .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
                    .collect();
                let (os, arch) = (Os::default(), Arch::default());
                ImageError::Unsupported(format!("{} is not for {os}/{arch} but for {}", of.digest(), there.join(", ")))
            })?;
            return self.load_manifest(store, ours);
        }
        let manifest = ImageManifest::from_reader(&bytes[..]).map_err(|e| ImageError::damaged(of.digest(), e))?;
        let config = self.described(manifest.config())?;
        store.put(manifest.config(), &config[..])?;
        for layer in manifest.layers() {
            packing(layer.media_type())?;
            let (file, bytes) = self.blob(layer.digest())?;
            store.put(layer, file.take(bytes))?;
        }
        check_layers(store, &manifest, &config)?;
        store.put(of, &bytes[..])?;
        Ok(of.digest().clone())
    }

    // ---- docker save -----------------------------------------------------------------------------------------------------

    fn load_saved(&self, store: &Locked<'_>, manifest: &[u8], name: Option<String>) -> Result<Vec<Loaded>, ImageError> {
        let mut saved: Vec<Saved> =
            serde_json::from_slice(manifest).map_err(|e| self.unreadable("manifest.json", e))?;
        if let Some(name) = name {
            let [only] = &mut saved[..] else {
                return Err(ImageError::Nameless { path: self.path.clone(), count: saved.len() });
            };
            only.repo_tags = Some(vec![name]);
        }
        let nameless = saved.iter().filter(|image| image.repo_tags.iter().flatten().next().is_none()).count();
        if nameless > 0 || saved.is_empty() {
            return Err(ImageError::Nameless { path: self.path.clone(), count: nameless });
        }
        saved.iter().map(|image| self.load_one_saved(store, image)).collect()
    }

    /// It has no manifest; one is made for it.
    fn load_one_saved(&self, store: &Locked<'_>, saved: &Saved) -> Result<Loaded, ImageError> {
        let missing = || ImageError::damaged(self.path.display(), format!("{} is missing", saved.config));
        let config = self.document(&entry_name(&saved.config))?.ok_or_else(missing)?;
        let (digest, bytes) = store.put_unknown(&saved.config, &config[..])?;
        let config_of = Descriptor::new(MediaType::ImageConfig, bytes, digest);
        let mut layers = vec![];
        for name in &saved.layers {
            let (mut file, bytes) = self.present(&entry_name(name))?;
            let media_type = match is_gzip(&mut file).map_err(ImageError::io(&self.path))? {
                true => MediaType::ImageLayerGzip,
                false => MediaType::ImageLayer,
            };
            let (digest, bytes) = store.put_unknown(name, file.take(bytes))?;
            layers.push(Descriptor::new(media_type, bytes, digest));
        }
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config_of)
            .layers(layers)
            .build()
            .map_err(|e| self.unreadable("manifest.json", e))?;
        check_layers(store, &manifest, &config)?;
        let text = manifest.to_string().map_err(|e| self.unreadable("manifest.json", e))?;
        let (digest, _) = store.put_unknown("manifest", text.as_bytes())?;
        let names = saved.repo_tags.iter().flatten().map(|name| full_name(name)).collect::<Result<_, _>>()?;
        Ok(Loaded { names, digest })
    }
}

/// Where a layout has a blob. The digest is parsed: neither of its parts can be a path.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// What the configuration says of the layers holds: their number, and the digest of each unpacked.
fn check_layers(store: &Locked<'_>, manifest: &ImageManifest, config: &[u8]) -> Result<(), ImageError> {
    let digest = manifest.config().digest();
    let config = ImageConfiguration::from_reader(config).map_err(|e| ImageError::damaged(digest, e))?;
    let diff_ids = config.rootfs().diff_ids();
    let layers = manifest.layers();
    if diff_ids.len() != layers.len() {
        let why = format!("it has {} layers and the manifest {}", diff_ids.len(), layers.len());
        return Err(ImageError::damaged(digest, why));
    }
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let file = BufReader::new(store.blob(layer.digest())?);
        let unpacked = match packing(layer.media_type())? {
            Packing::Tar => hash_of(file),
            Packing::Gzip => hash_of(GzDecoder::new(file)),
        };
        let unpacked = unpacked.map_err(|e| ImageError::damaged(layer.digest(), e))??;
        if unpacked.as_ref() != diff_id {
            let why = format!("unpacked it is {unpacked} and not {diff_id}");
            return Err(ImageError::damaged(layer.digest(), why));
        }
    }
    Ok(())
}

fn hash_of(mut content: impl Read) -> io::Result<Result<Digest, ImageError>> {
    let (mut hash, mut piece) = (Hash::new(), vec![0; PIECE_BYTES]);
    loop {
        match content.read(&mut piece)? {
            0 => return Ok(hash.finish()),
            read => hash.update(&piece[..read]),
        }
    }
}

/// The name that an entry of an index says. One that is only a tag is none.
fn name_of(manifest: &Descriptor) -> Option<String> {
    let annotations = manifest.annotations().as_ref()?;
    let named = annotations.get("io.containerd.image.name");
    let named =
        named.or_else(|| annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(':')));
    full_name(named?).ok()
}

fn is_index(media_type: &MediaType) -> bool {
    match media_type {
        MediaType::ImageIndex => true,
        MediaType::Other(other) => other == "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => false,
    }
}

fn is_ours(manifest: &Descriptor) -> bool {
    let platform = manifest.platform().as_ref();
    platform.is_some_and(|platform| (platform.os(), platform.architecture()) == (&Os::default(), &Arch::default()))
}

/// Whether a file begins like one that gzip has packed. It stays where it was.
fn is_gzip(file: &mut File) -> io::Result<bool> {
    let (at, mut magic) = (file.stream_position()?, vec![]);
    file.take(2).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(magic == [0x1f, 0x8b])
}

/// How an entry of an archive is called here, whatever leads to it: `./a/b` and `a/b` are the same. One that leads out of the archive is
/// called by what is left of it within.
fn entry_name(name: &str) -> String {
    joined(Path::new(name))
}

fn joined(path: &Path) -> String {
    let mut parts: Vec<&str> = vec![];
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

/// Where in an archive its files are. Of two of a name the last one counts, as for tar itself.
fn entries(file: &File) -> io::Result<HashMap<String, Entry>> {
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut entries = HashMap::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        let found = if kind.is_file() || kind.is_contiguous() {
            Entry::File { offset: entry.raw_file_position(), bytes: entry.size() }
        } else if let Some(to) = entry.link_name()?
            && (kind.is_symlink() || kind.is_hard_link())
        {
            // A symbolic link counts from where it is.
            let from = path.parent().filter(|_| kind.is_symlink()).unwrap_or(Path::new(""));
            Entry::Link(joined(&from.join(to)))
        } else {
            continue;
        };
        entries.insert(joined(&path), found);
    }
    Ok(entries)
}

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;
