//! `phalanx image`: images that are kept on this machine.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::columns::align;
use super::error::print;
use super::{CliError, Global, Output, text};
use crate::image::{Image, ImageStore, layout, load};

/// Keeps images on this machine: loads them from files, shows and removes them.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  phalanx image build-layout busybox            an image of a static busybox, without any registry
  phalanx image load busybox                    from an OCI layout, as a directory or a tar archive
  docker save web:1 | gzip > web.tgz; phalanx image load web.tgz
  phalanx image ls
  phalanx image inspect busybox")]
pub struct ImageArgs {
    /// Where images are kept; `images` in the cluster's directory unless given
    #[arg(long, value_name = "DIR", global = true)]
    pub store: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What to do with images.
#[derive(Subcommand, Clone, Debug)]
pub enum ImageCommand {
    /// Loads the images of an OCI layout, or of an archive of `docker save`
    Load {
        /// A directory or an archive, which may be packed with gzip
        path: PathBuf,
        /// What the only image in it is called
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Lists images
    #[command(visible_alias = "list")]
    Ls,
    /// Prints the manifest and the configuration of an image
    Inspect {
        /// Its name, its digest, or how that begins
        image: String,
    },
    /// Takes names away, and with an image's last name the image
    Rm {
        /// Names, digests, or how those begin
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Makes an OCI layout with a small image of a static busybox
    BuildLayout {
        /// The directory to make
        out: PathBuf,
        /// The static busybox that goes into it
        #[arg(long, value_name = "FILE", default_value = "/bin/busybox")]
        busybox: PathBuf,
        /// What the image is called
        #[arg(long, value_name = "NAME", default_value = "busybox")]
        name: String,
    },
}

/// Runs the command.
pub async fn run(args: ImageArgs, global: &Global) -> Result<(), CliError> {
    let dir = args.store.unwrap_or_else(|| global.directory().join("images"));
    let form = global.output();
    // It reads and writes files all the time.
    let text = tokio::task::spawn_blocking(move || obey(args.command, &dir, form)).await.map_err(CliError::new)??;
    print(&text)
}

/// Does it, and gives what there is to print.
fn obey(command: ImageCommand, dir: &Path, form: Output) -> Result<String, CliError> {
    if let ImageCommand::BuildLayout { out, busybox, name } = command {
        let digest = layout::build(&out, &busybox, &name).map_err(CliError::new)?;
        return Ok(format!("{digest}\n"));
    }
    let store = ImageStore::open(dir).map_err(CliError::new)?;
    match command {
        ImageCommand::BuildLayout { .. } => Ok(String::new()),
        ImageCommand::Load { path, name } => {
            let loaded = load::load(&store, &path, name.as_deref()).map_err(CliError::new)?;
            Ok(loaded.iter().flat_map(|image| &image.names).map(|name| format!("{name} loaded\n")).collect())
        }
        ImageCommand::Ls => {
            let images = store.list().map_err(CliError::new)?;
            let all: Vec<Value> = images.iter().map(summary).collect();
            match form {
                Output::Json => text::json(&json!(all)),
                Output::Yaml => text::yaml(&json!(all)),
                Output::Name => Ok(images.iter().flat_map(|image| &image.names).map(|n| format!("{n}\n")).collect()),
                Output::Text | Output::Wide => Ok(table(&images, form == Output::Wide)),
            }
        }
        ImageCommand::Inspect { image } => {
            let image = store.find(&image).map_err(CliError::new)?;
            let mut all = summary(&image);
            all["manifest"] = serde_json::to_value(&image.manifest).map_err(CliError::new)?;
            all["config"] = serde_json::to_value(&image.config).map_err(CliError::new)?;
            match form {
                Output::Yaml => text::yaml(&all),
                _ => text::json(&all),
            }
        }
        ImageCommand::Rm { images } => {
            let locked = store.lock().map_err(CliError::new)?;
            let mut said = String::new();
            for image in images {
                let (names, freed) = locked.remove(&image).map_err(CliError::new)?;
                for name in names {
                    said.push_str(&format!("{name} removed\n"));
                }
                if freed > 0 {
                    said.push_str(&format!("{} free\n", size(freed)));
                }
            }
            Ok(said)
        }
    }
}

fn summary(image: &Image) -> Value {
    json!({
        "names": image.names,
        "digest": image.digest.to_string(),
        "bytes": image.bytes(),
        "platform": platform(image),
        "created": image.config.created(),
    })
}

fn platform(image: &Image) -> String {
    format!("{}/{}", image.config.os(), image.config.architecture())
}

/// A name and a line each.
fn table(images: &[Image], wide: bool) -> String {
    let mut rows = vec![["IMAGE", "DIGEST", "SIZE", "LAYERS", "PLATFORM"].map(str::to_owned).to_vec()];
    for image in images {
        let digits = image.digest.digest();
        let digest = if wide { image.digest.to_string() } else { digits.get(..12).unwrap_or(digits).to_owned() };
        for name in &image.names {
            rows.push(vec![
                name.clone(),
                digest.clone(),
                size(image.bytes()),
                image.manifest.layers().len().to_string(),
                platform(image),
            ]);
        }
    }
    align(&rows)
}

/// As `docker images` writes it: powers of ten, three digits.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1_000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        let all = [0, 999, 1_000, 99_949, 99_950, 999_499, 999_500, 4_400_000, 12_345_678_901, 5_000_000_000_000];
        let read = all.map(size);
        let expected =
            ["0 B", "999 B", "1.0 kB", "99.9 kB", "100 kB", "999 kB", "1.0 MB", "4.4 MB", "12.3 GB", "5.0 TB"];
        assert_eq!(read, expected);
    }
}
