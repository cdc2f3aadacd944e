//! The flags that every command takes, and what they mean: which cluster, as whom, in which form to answer.
//!
//! **Which directory?** `--dir`; else `$PHALANX_DIR`; else `.phalanx` in the current directory if it exists; else
//! `~/.phalanx/default`.
//!
//! **Which kubeconfig?** `--kubeconfig`; else `kubeconfig` in the directory given by `--dir`; else `$KUBECONFIG` (the
//! first file of the list that exists); else `kubeconfig` in the directory as above, which `phalanx up` wrote.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// For people, with more columns.
    Wide,
    /// Only kind/name, one a line.
    Name,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Directory of the cluster [env: PHALANX_DIR] [default: ./.phalanx if it exists, else ~/.phalanx/default]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub dir: Option<PathBuf>,

    /// How to print the answer [default: text]
    #[arg(short, long, global = true, value_enum, hide_possible_values = false, help_heading = "Global options")]
    pub output: Option<Output>,

    /// How to reach the cluster [default: DIR/kubeconfig with --dir, else $KUBECONFIG, else DIR/kubeconfig]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace of the objects [default: that of the kubeconfig]
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub namespace: Option<String>,

    /// Say more of what is done; twice for much more. PHALANX_LOG (such as `info,phalanx::store=debug`) says it exactly
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
}

impl Global {
    /// The form asked for.
    pub fn output(&self) -> Output {
        self.output.unwrap_or_default()
    }

    /// Whether a program reads the answer, as JSON.
    pub fn json(&self) -> bool {
        self.output() == Output::Json
    }

    /// The directory of the cluster.
    pub fn directory(&self) -> PathBuf {
        choose_directory(
            self.dir.clone(),
            std::env::var_os("PHALANX_DIR").filter(|d| !d.is_empty()).map(PathBuf::from),
            PathBuf::from(".phalanx").is_dir(),
            std::env::home_dir(),
        )
    }

    /// The kubeconfig file, whether it exists or not.
    pub fn kubeconfig(&self) -> PathBuf {
        if let Some(file) = &self.kubeconfig {
            return file.clone();
        }
        if let Some(dir) = &self.dir {
            return dir.join("kubeconfig");
        }
        let listed = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty());
        if let Some(list) = listed {
            let files: Vec<PathBuf> = std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect();
            if let Some(file) = files.iter().find(|p| p.exists()).or(files.first()) {
                return file.clone();
            }
        }
        self.directory().join("kubeconfig")
    }
}

fn choose_directory(flag: Option<PathBuf>, env: Option<PathBuf>, here: bool, home: Option<PathBuf>) -> PathBuf {
    if let Some(dir) = flag.or(env) {
        return dir;
    }
    match home {
        Some(home) if !here => home.join(".phalanx").join("default"),
        _ => PathBuf::from(".phalanx"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_the_flags_then_the_environments_then_the_nearest() {
        let p = |s: &str| Some(PathBuf::from(s));
        assert_eq!(choose_directory(p("/f"), p("/e"), true, p("/h")), PathBuf::from("/f"));
        assert_eq!(choose_directory(None, p("/e"), true, p("/h")), PathBuf::from("/e"));
        assert_eq!(choose_directory(None, None, true, p("/h")), PathBuf::from(".phalanx"));
        assert_eq!(choose_directory(None, None, false, p("/h")), PathBuf::from("/h/.phalanx/default"));
        assert_eq!(choose_directory(None, None, false, None), PathBuf::from(".phalanx"));
    }

    #[test]
    fn an_explicit_directory_beats_the_environment_for_the_kubeconfig() {
        let global = Global { dir: Some("/d".into()), ..Global::default() };
        assert_eq!(global.kubeconfig(), PathBuf::from("/d/kubeconfig"));
        let global = Global { dir: Some("/d".into()), kubeconfig: Some("/k".into()), ..Global::default() };
        assert_eq!(global.kubeconfig(), PathBuf::from("/k"));
    }
}
