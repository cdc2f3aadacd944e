//! Images out of layouts and archives, whole and damaged: what is loaded is all there, and what is not leaves nothing.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::{Arch, Os, Platform, PlatformBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const NAME: &str = "docker.io/library/web:1";

/// A store and a layout, which a test damages at will.
struct Scene {
    dir: TempDir,
    store: ImageStore,
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(vec![], Compression::fast());
    gzip.write_all(bytes).expect("memory");
    gzip.finish().expect("memory")
}

fn layer_with(path: &str, text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, path, text.as_bytes()).expect("memory");
    tar.into_inner().expect("memory")
}

fn digest(bytes: &[u8]) -> Digest {
    digest_of(bytes).expect("SHA-256")
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = ImageStore::open(&dir.path().join("store")).expect("opens");
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn blob(&self, layout: &str, digest: &Digest) -> PathBuf {
        self.path(layout).join("blobs/sha256").join(digest.digest())
    }

    fn put(&self, layout: &str, media_type: MediaType, bytes: &[u8]) -> Descriptor {
        let digest = digest(bytes);
        let path = self.blob(layout, &digest);
        fs::create_dir_all(path.parent().expect("a parent")).expect("writable");
        fs::write(path, bytes).expect("writable");
        Descriptor::new(media_type, bytes.len() as u64, digest)
    }

    /// An image of these layers, each given unpacked; the first is kept packed.
    fn image(&self, layout: &str, layers: &[Vec<u8>]) -> Descriptor {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer).to_string()).collect();
        let config = json!({"architecture": Arch::default().to_string(), "os": Os::default().to_string(),
            "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.put(layout, MediaType::ImageConfig, config.to_string().as_bytes());
        let layers: Vec<Descriptor> = layers
            .iter()
            .enumerate()
            .map(|(n, layer)| match n {
                0 => self.put(layout, MediaType::ImageLayerGzip, &packed(layer)),
                _ => self.put(layout, MediaType::ImageLayer, layer),
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MediaType::ImageManifest.to_string(), "config": config,
            "layers": layers});
        self.put(layout, MediaType::ImageManifest, manifest.to_string().as_bytes())
    }

    fn index(&self, layout: &str, manifests: &[(Descriptor, &str)]) {
        let manifests: Vec<Descriptor> = manifests
            .iter()
            .map(|(manifest, name)| {
                let mut manifest = manifest.clone();
                let names = HashMap::from([("io.containerd.image.name".to_owned(), (*name).to_owned())]);
                manifest.set_annotations((!name.is_empty()).then_some(names));
                manifest
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path(layout).join("index.json"), index.to_string()).expect("writable");
        fs::write(self.path(layout).join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("writable");
    }

    /// A layout with one image, called `web:1`.
    fn layout(&self, layout: &str) -> Descriptor {
        let manifest = self.image(layout, &[layer_with("etc/a", "first"), layer_with("etc/b", "second")]);
        self.index(layout, &[(manifest.clone(), "web:1")]);
        manifest
    }

    fn load(&self, name: &str) -> Result<Vec<Loaded>, ImageError> {
        load(&self.store, &self.path(name), None)
    }

    /// The layout in an archive, with every name begun so.
    fn archive(&self, layout: &str, begun: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(vec![]);
        tar.append_dir_all(begun, self.path(layout)).expect("readable");
        tar.into_inner().expect("memory")
    }

    /// How many blobs are kept.
    fn blobs(&self) -> usize {
        fs::read_dir(self.path("store/blobs/sha256")).expect("there").count()
    }

    /// It is refused for this reason, and nothing of it stays.
    fn refuses(&self, name: &str, why: &str) {
        let before = self.blobs();
        let error = self.load(name).expect_err("refused").to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains('\n'), "one line: {error}");
        assert_eq!(self.blobs(), before, "{error}");
        assert_eq!(fs::read_dir(self.store.incoming()).expect("there").count(), 0);
    }
}

#[test]
fn a_layout_is_loaded_as_a_directory_an_archive_and_a_packed_one() {
    let scene = Scene::new();
    let manifest = scene.layout("web");
    fs::write(scene.path("web.tar"), scene.archive("web", "")).expect("writable");
    fs::write(scene.path("dot.tar"), scene.archive("web", "./")).expect("writable");
    fs::write(scene.path("web.tgz"), packed(&scene.archive("web", ""))).expect("writable");
    let expected = vec![Loaded { names: vec![NAME.into()], digest: manifest.digest().clone() }];
    for from in ["web", "web.tar", "dot.tar", "web.tgz"] {
        assert_eq!(scene.load(from).expect("whole"), expected, "{from}");
        // Manifest, configuration, two layers: each once.
        assert_eq!(scene.blobs(), 4);
    }
    let image = scene.store.find("web:1").expect("loaded");
    assert_eq!(image.config.config().as_ref().and_then(|config| config.cmd().clone()), Some(vec!["sh".to_owned()]));
    let digits = manifest.digest().digest();
    for name in [NAME, manifest.digest().as_ref(), digits, &digits[..6]] {
        assert_eq!(scene.store.find(name).expect("loaded").digest, *manifest.digest(), "{name}");
    }
    for name in ["web", "web:2", &digits[..5]] {
        assert!(matches!(scene.store.find(name), Err(ImageError::NotFound(_))), "{name}");
    }
}

#[test]
fn layers_are_shared_and_go_with_the_last_image_that_has_them() {
    let scene = Scene::new();
    let (shared, own) = (layer_with("base", "base"), layer_with("own", "own"));
    let small = scene.image("two", std::slice::from_ref(&shared));
    let large = scene.image("two", &[shared, own.clone()]);
    scene.index("two", &[(small, "small"), (large.clone(), "large"), (large, "also:large")]);
    assert_eq!(scene.load("two").expect("whole").len(), 2);
    let locked = scene.store.lock().expect("free");
    // Two manifests, two configurations, two layers.
    assert_eq!(scene.blobs(), 6);
    assert_eq!(scene.store.find("large").expect("loaded").names.len(), 2);
    let (gone, freed) = locked.remove("large").expect("there");
    assert_eq!((gone, freed, scene.blobs()), (vec!["docker.io/library/large:latest".to_owned()], 0, 6));
    let (_, freed) = locked.remove("also:large").expect("there");
    assert!(freed > own.len() as u64 && scene.blobs() == 3, "{freed} {}", scene.blobs());
    assert!(matches!(locked.remove("large"), Err(ImageError::NotFound(_))));
    // By digest all names go.
    let digest = scene.store.find("small").expect("loaded").digest;
    locked.remove(digest.as_ref()).expect("there");
    assert_eq!((scene.blobs(), scene.store.list().expect("readable").len()), (0, 0));
}

#[test]
fn a_name_moves_to_the_image_that_is_loaded_last() {
    let scene = Scene::new();
    let first = scene.layout("first");
    scene.load("first").expect("whole");
    let second = scene.image("second", &[layer_with("c", "third")]);
    scene.index("second", &[(second.clone(), "web:1")]);
    scene.load("second").expect("whole");
    assert_eq!(scene.store.find("web:1").expect("loaded").digest, *second.digest());
    assert!(scene.store.find(first.digest().as_ref()).is_err());
}

#[test]
fn an_archive_of_docker_save_is_loaded_with_a_manifest_made_for_it() {
    let scene = Scene::new();
    let layers = [layer_with("etc/a", "first"), layer_with("etc/b", "second")];
    let diff_ids = layers.each_ref().map(|layer| digest(layer).to_string());
    let config = json!({"architecture": Arch::default().to_string(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let saved = json!([{"Config": "c.json", "RepoTags": ["web:1", "host:5000/web"],
        "Layers": ["x/layer.tar", "y/layer.tar"]}]);
    let archive = |saved: &Value, second: &[u8]| {
        let mut tar = tar::Builder::new(vec![]);
        let mut put = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes).expect("memory");
        };
        put("c.json", config.as_bytes());
        put("manifest.json", saved.to_string().as_bytes());
        put("z/layer.tar", second);
        put("x/layer.tar", &layers[0]);
        // As older ones write a layer that two images share.
        let mut link = tar::Header::new_ustar();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, "y/layer.tar", "../z/layer.tar").expect("memory");
        tar.into_inner().expect("memory")
    };
    fs::write(scene.path("web.tar"), archive(&saved, &layers[1])).expect("writable");
    let loaded = scene.load("web.tar").expect("whole");
    assert_eq!(loaded[0].names, [NAME, "host:5000/web:latest"]);
    let image = scene.store.find("web:1").expect("loaded");
    assert_eq!((image.manifest.layers().len(), scene.blobs()), (2, 4));
    // The same again is the same image.
    assert_eq!(scene.load("web.tar").expect("whole"), loaded);

    fs::write(scene.path("bad.tar"), archive(&saved, &layers[0])).expect("writable");
    scene.refuses("bad.tar", "unpacked it is sha256:");
    let nameless = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["x/layer.tar", "y/layer.tar"]}]);
    fs::write(scene.path("nameless.tar"), archive(&nameless, &layers[1])).expect("writable");
    scene.refuses("nameless.tar", "give one with --name");
    let named = load(&scene.store, &scene.path("nameless.tar"), Some("mine")).expect("whole");
    assert_eq!(named[0].names, ["docker.io/library/mine:latest"]);
    let outside = json!([{"Config": "../../etc/passwd", "RepoTags": ["web:1"], "Layers": []}]);
    fs::write(scene.path("outside.tar"), archive(&outside, &layers[1])).expect("writable");
    scene.refuses("outside.tar", "is missing");
}

#[test]
fn of_an_index_for_several_machines_the_image_for_this_one_is_loaded() {
    let scene = Scene::new();
    let platform = |arch: Arch| -> Platform {
        PlatformBuilder::default().os(Os::default()).architecture(arch).build().expect("whole")
    };
    let (mut ours, mut other) = (scene.image("all", &[layer_with("a", "ours")]), scene.layout("all"));
    ours.set_platform(Some(platform(Arch::default())));
    other.set_platform(Some(platform(Arch::s390x)));
    let index = json!({"schemaVersion": 2, "manifests": [other.clone(), ours.clone()]});
    let index = scene.put("all", MediaType::ImageIndex, index.to_string().as_bytes());
    scene.index("all", &[(index, "web:1")]);
    assert_eq!(scene.load("all").expect("whole")[0].digest, *ours.digest());
    let index = json!({"schemaVersion": 2, "manifests": [other]});
    let index = scene.put("all", MediaType::ImageIndex, index.to_string().as_bytes());
    scene.index("all", &[(index, "web:1")]);
    scene.refuses("all", "but for linux/s390x");
}

#[test]
fn whatever_is_damaged_is_refused_in_one_line_and_leaves_nothing() {
    let scene = Scene::new();
    let manifest = scene.layout("web");
    let blobs: Vec<PathBuf> = fs::read_dir(scene.path("web/blobs/sha256"))
        .expect("there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    for blob in &blobs {
        let whole = fs::read(blob).expect("readable");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        let longer = [&whole[..], b" "].concat();
        for bad in [&flipped[..], &whole[..whole.len() - 1], &longer, b""] {
            fs::write(blob, bad).expect("writable");
            scene.refuses("web", "is damaged");
        }
        fs::remove_file(blob).expect("there");
        scene.refuses("web", "is missing");
        fs::write(blob, whole).expect("writable");
    }
    let archive = scene.archive("web", "");
    for cut in [archive.len() / 3, archive.len() / 2] {
        fs::write(scene.path("cut.tar"), &archive[..cut]).expect("writable");
        assert!(scene.load("cut.tar").is_err());
        fs::write(scene.path("cut.tgz"), &packed(&archive)[..cut / 10]).expect("writable");
        assert!(scene.load("cut.tgz").is_err());
    }
    fs::write(scene.path("text"), "no archive").expect("writable");
    assert!(scene.load("text").is_err());
    fs::create_dir(scene.path("empty")).expect("writable");
    scene.refuses("empty", "is neither an OCI layout nor an archive");
    scene.refuses("nothing", "No such file");
    fs::write(scene.path("web/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).expect("writable");
    scene.refuses("web", "layout of version 2.0.0");
    scene.index("web", &[(manifest.clone(), "")]);
    scene.refuses("web", "without a full name");
    scene.index("web", &[(manifest.clone(), "UPPER:1")]);
    scene.refuses("web", "without a full name");
    // An image is whole again as soon as its files are.
    scene.index("web", &[(manifest, "web:1")]);
    scene.load("web").expect("whole");
}

#[test]
fn digests_that_are_paths_and_layers_that_are_none_are_refused() {
    let scene = Scene::new();
    let secret = scene.path("secret");
    fs::write(&secret, "secret").expect("writable");
    scene.layout("web");
    let index = fs::read_to_string(scene.path("web/index.json")).expect("readable");
    let index: Value = serde_json::from_str(&index).expect("JSON");
    for digest in
        ["sha256:../../../secret", "../secret", "sha256:", "sha512:00", "md5:d41d8cd98f00b204e9800998ecf8427e"]
    {
        let mut index = index.clone();
        index["manifests"][0]["digest"] = digest.into();
        fs::write(scene.path("web/index.json"), index.to_string()).expect("writable");
        assert!(scene.load("web").is_err(), "{digest}");
        assert_eq!(scene.blobs(), 0);
    }
    let zstd = scene.put("zstd", MediaType::ImageLayerZstd, b"whatever");
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let config = scene.put("zstd", MediaType::ImageConfig, config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [zstd]});
    let manifest = scene.put("zstd", MediaType::ImageManifest, manifest.to_string().as_bytes());
    scene.index("zstd", &[(manifest, "web:1")]);
    scene.refuses("zstd", "packed with zstd");
}

#[test]
fn a_link_in_an_archive_leads_to_its_entries_and_never_out_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = ImageStore::open(&dir.path().join("store")).expect("opens");
    let mut tar = tar::Builder::new(vec![]);
    let mut link = |from: &str, to: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, from, to).expect("memory");
    };
    link("oci-layout", "/etc/passwd");
    link("manifest.json", "manifest.json");
    link("a/b", "../../../../etc/hostname");
    let path = dir.path().join("links.tar");
    fs::write(&path, tar.into_inner().expect("memory")).expect("writable");
    let source = Source::open(&store, &path).expect("an archive");
    assert!(source.file("oci-layout").expect("no error").is_none());
    assert!(source.file("a/b").expect("no error").is_none());
    assert!(source.file("manifest.json").err().is_some_and(|error| error.to_string().contains("in circles")));
    assert!(source.file("../etc/passwd").expect("no error").is_none());
}

/// The path that one gives on a command line, for names that mean the same.
#[test]
fn entries_are_called_the_same_however_they_are_written() {
    for (name, called) in [("a/b", "a/b"), ("./a/./b", "a/b"), ("/a/b", "a/b"), ("../a/b", "a/b"), ("a/../b", "b")] {
        assert_eq!(entry_name(name), called);
        assert_eq!(joined(Path::new(name)), called);
    }
}
