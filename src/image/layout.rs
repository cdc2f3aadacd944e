//! A small image without any registry: an OCI layout around a static busybox, for tests, demos and machines without a network. The same
//! input gives the same bytes, on any day and by any user.
//!
//! Must never write outside of the directory that it makes. Called by `cli::image` and by tests.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    ConfigBuilder, Descriptor, Digest, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType,
    OciLayoutBuilder, RootFsBuilder,
};
use tar::{EntryType, Header};

use super::{ImageError, digest_of, full_name};

/// What every small image has, with its mode.
const DIRS: [(&str, u32); 9] = [
    ("bin/", 0o755),
    ("dev/", 0o755),
    ("etc/", 0o755),
    ("home/", 0o755),
    ("proc/", 0o555),
    ("root/", 0o700),
    ("sys/", 0o555),
    ("tmp/", 0o1777),
    ("var/", 0o755),
];

const FILES: [(&str, &str); 2] = [
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
];

/// Makes the layout in a directory that does not exist yet, and gives the digest of the image's manifest.
///
/// # Errors
/// `out` exists; `busybox` cannot be read, is no static program, or does not say what it can do.
pub fn build(out: &Path, busybox: &Path, name: &str) -> Result<Digest, ImageError> {
    let name = full_name(name)?;
    let program = fs::read(busybox).map_err(ImageError::io(busybox))?;
    if !is_static(&program) {
        let path = busybox.display();
        return Err(ImageError::Unsupported(format!("{path} is no static program: take busybox of busybox-static")));
    }
    let applets = applets(busybox)?;
    fs::create_dir(out).map_err(ImageError::io(out))?;
    let built = write(out, &program, &applets, &name);
    if built.is_err() {
        // It was made here, and is of no use to anybody.
        let _ = fs::remove_dir_all(out);
    }
    built
}

fn write(out: &Path, program: &[u8], applets: &[String], name: &str) -> Result<Digest, ImageError> {
    let unpacked = layer(program, applets).map_err(ImageError::io(out))?;
    let diff_id = digest_of(&unpacked)?;
    // Neither a time nor a name.
    let mut packing = GzBuilder::new().mtime(0).write(vec![], Compression::best());
    let packed = packing.write_all(&unpacked).and_then(|()| packing.finish()).map_err(ImageError::io(out))?;
    let blobs = out.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(ImageError::io(&blobs))?;
    let put = |media_type, bytes: &[u8]| {
        let digest = digest_of(bytes)?;
        let path = blobs.join(digest.digest());
        fs::write(&path, bytes).map_err(ImageError::io(&path))?;
        Ok::<_, ImageError>(Descriptor::new(media_type, bytes.len() as u64, digest))
    };
    let layer = put(MediaType::ImageLayerGzip, &packed)?;
    let unbuilt = |error: oci_spec::OciSpecError| ImageError::damaged(out.display(), error);
    let run = ConfigBuilder::default()
        .env(vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()])
        .cmd(vec!["sh".to_owned()])
        .build()
        .map_err(unbuilt)?;
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids(vec![diff_id.to_string()]).build().map_err(unbuilt)?;
    let config = ImageConfigurationBuilder::default()
        .created("1970-01-01T00:00:00Z")
        .config(run)
        .rootfs(rootfs)
        .history(vec![])
        .build()
        .map_err(unbuilt)?;
    let config = put(MediaType::ImageConfig, config.to_string().map_err(unbuilt)?.as_bytes())?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(vec![layer])
        .build()
        .map_err(unbuilt)?;
    let mut manifest = put(MediaType::ImageManifest, manifest.to_string().map_err(unbuilt)?.as_bytes())?;
    let digest = manifest.digest().clone();
    // Written by hand, for a map has no order, and the same image is to be the same bytes. Its two names: umoci and skopeo read the one,
    // containerd the other.
    let names = [("io.containerd.image.name", name), ("org.opencontainers.image.ref.name", name)];
    manifest.set_annotations(None);
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![manifest])
        .build()
        .map_err(unbuilt)?;
    let mut index = serde_json::to_value(&index).map_err(|e| ImageError::damaged("index.json", e))?;
    for (key, name) in names {
        index["manifests"][0]["annotations"][key] = name.into();
    }
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build().map_err(unbuilt)?;
    for (file, text) in [("oci-layout", layout.to_string().map_err(unbuilt)?), ("index.json", index.to_string())] {
        let path = out.join(file);
        fs::write(&path, text).map_err(ImageError::io(&path))?;
    }
    Ok(digest)
}

/// The one layer: busybox, a name for each of its applets, and what programs expect to find.
fn layer(program: &[u8], applets: &[String]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(vec![]);
    for (path, mode) in DIRS {
        tar.append_data(&mut header(EntryType::Directory, mode, 0), path, io::empty())?;
    }
    for (path, text) in FILES {
        tar.append_data(&mut header(EntryType::Regular, 0o644, text.len()), path, text.as_bytes())?;
    }
    tar.append_data(&mut header(EntryType::Regular, 0o755, program.len()), "bin/busybox", program)?;
    for applet in applets {
        tar.append_link(&mut header(EntryType::Link, 0o755, 0), format!("bin/{applet}"), "bin/busybox")?;
    }
    tar.into_inner()
}

fn header(kind: EntryType, mode: u32, bytes: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// What a busybox can do, by name, sorted.
fn applets(busybox: &Path) -> Result<Vec<String>, ImageError> {
    let listed = Command::new(busybox).arg("--list").output().map_err(ImageError::io(busybox))?;
    let mut applets: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.contains('/') && *name != "busybox")
        .map(str::to_owned)
        .collect();
    applets.sort();
    applets.dedup();
    if !listed.status.success() || !applets.iter().any(|applet| applet == "sh") {
        let path = busybox.display();
        return Err(ImageError::Unsupported(format!("`{path} --list` does not name `sh`: is it a busybox?")));
    }
    Ok(applets)
}

/// Whether an ELF program of 64 bits, little-endian, asks for no interpreter, which is not in the image.
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| {
        let field = program.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    let headers = || {
        // e_phoff, e_phentsize, e_phnum of the ELF header.
        let (at, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|n| number(usize::try_from(at.checked_add(n * size)?).ok()?, 4)).collect::<Option<Vec<_>>>()
    };
    program.starts_with(b"\x7fELF\x02\x01")
        && headers().is_some_and(|kinds| !kinds.is_empty() && !kinds.contains(&u64::from(PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::image::{ImageStore, load};

    /// Writes a text and ends, on nothing but the kernel: a machine may have no library to link to.
    const PROGRAM: &str = r#"
static long call(long number, long a, long b, long c) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
#define WRITE 1
#define EXIT 60
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#define WRITE 64
#define EXIT 93
#endif
}
static const char text[] = SAYS "\n";
void _start(void) {
    call(WRITE, 1, (long)text, sizeof text - 1);
    call(EXIT, 0, 0, 0);
    __builtin_unreachable();
}
"#;

    /// A static program that says what a busybox says: what builds this crate builds it.
    fn program(dir: &Path, says: &str) -> PathBuf {
        let (source, program) = (dir.join("box.c"), dir.join("box"));
        fs::write(&source, PROGRAM).expect("writable");
        let mut cc = Command::new("cc");
        cc.args(["-static", "-nostdlib", "-fno-stack-protector"]).arg(format!("-DSAYS=\"{says}\""));
        let built = cc.arg("-o").arg(&program).arg(&source).status().expect("a compiler");
        assert!(built.success());
        program
    }

    fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut dirs, mut files) = (vec![dir.to_owned()], BTreeMap::new());
        while let Some(next) = dirs.pop() {
            for entry in fs::read_dir(&next).expect("readable") {
                let path = entry.expect("readable").path();
                match path.is_dir() {
                    true => dirs.push(path),
                    false => {
                        drop(files.insert(
                            path.strip_prefix(dir).expect("below").to_owned(),
                            fs::read(&path).expect("readable"),
                        ))
                    }
                }
            }
        }
        files
    }

    #[test]
    fn the_same_busybox_gives_the_same_image_and_it_can_be_loaded() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let busybox = program(dir.path(), r"[\nbusybox\nls\nsh\nsh");
        let digest = build(&at("one"), &busybox, "busybox").expect("static");
        assert_eq!(build(&at("two"), &busybox, "docker.io/library/busybox:latest").expect("static"), digest);
        assert_eq!(files(&at("one")), files(&at("two")));
        let store = ImageStore::open(&at("store")).expect("opens");
        let loaded = load::load(&store, &at("one"), None).expect("whole");
        assert_eq!(
            (&loaded[0].digest, &loaded[0].names[..]),
            (&digest, &["docker.io/library/busybox:latest".to_owned()][..])
        );
        let image = store.find("busybox").expect("loaded");
        let layer = store.blob(image.manifest.layers()[0].digest()).expect("SHA-256");
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(layer).expect("there")));
        let mut found = BTreeMap::new();
        for entry in tar.entries().expect("an archive") {
            let entry = entry.expect("whole");
            let header = entry.header();
            assert_eq!((header.mtime().ok(), header.uid().ok(), header.gid().ok()), (Some(0), Some(0), Some(0)));
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            found.insert(path, (header.entry_type(), header.mode().expect("octal")));
        }
        assert_eq!(found["bin/busybox"], (EntryType::Regular, 0o755));
        assert_eq!(found["tmp/"], (EntryType::Directory, 0o1777));
        for applet in ["bin/[", "bin/ls", "bin/sh"] {
            assert_eq!(found[applet].0, EntryType::Link);
        }
        assert_eq!(found.len(), DIRS.len() + FILES.len() + 4);
    }

    #[test]
    fn what_cannot_be_an_image_says_why_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        let fails = |program: &Path, name: &str, why: &str| {
            let error = build(&out, program, name).expect_err("refused").to_string();
            assert!(error.contains(why) && !error.contains('\n'), "{error}");
            assert!(!out.exists());
        };
        fails(&dir.path().join("nothing"), "busybox", "No such file");
        // This test itself.
        fails(&std::env::current_exe().expect("known"), "busybox", "no static program");
        let other = program(dir.path(), "hello");
        fails(&other, "busybox", "does not name `sh`");
        fails(&other, "Not A Name", "is not the name of an image");
        let text = dir.path().join("text");
        fs::write(&text, "\x7fELF\x02\x01 and no more").expect("writable");
        fails(&text, "busybox", "no static program");
        fs::create_dir(&out).expect("writable");
        let busybox = program(dir.path(), "sh");
        assert!(build(&out, &busybox, "busybox").is_err_and(|error| error.to_string().contains("exists")));
        assert!(out.exists(), "it was not made here");
    }
}
