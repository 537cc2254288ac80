//! `lab`: brings up, shows and takes down the clusters xregion is tested on.

// Its output is for people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xregion_lab::Lab;
use xregion_lab::progress::Progress;

/// A real KubeVela hub, two regions and their business clusters on this machine.
#[derive(Parser)]
#[command(name = "lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Brings the lab up, or gives one that is up what it lacks
    Up,
    /// Takes the lab down; nothing of it stays but the cache of what was built
    Down,
    /// Shows what runs; fails when something doesn't
    Status,
    /// Runs a command in a cluster's network, with KUBECONFIG set and kubectl and vela on PATH
    Exec {
        /// A cluster, one of its nodes, or `laptop`
        cluster: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Prints the kubeconfig a user would bring to have a cluster joined
    Kubeconfig {
        /// The cluster
        cluster: String,
    },
    /// Lists logs, or prints one
    Logs {
        /// A cluster or one of its nodes
        cluster: Option<String>,
        /// A part of it, as listed
        part: Option<String>,
    },
    /// Imports an image archive into nodes
    Load {
        /// An OCI archive
        archive: PathBuf,
        /// The clusters; the hub and the proxy clusters when none is given
        clusters: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up => {
            let progress = Progress::new();
            Lab::up(&progress)?;
            progress.done("the lab is up");
        }
        Action::Down => {
            let progress = Progress::new();
            progress.step("taking the lab down");
            Lab::down()?;
            progress.done("nothing of the lab is left but its cache");
        }
        Action::Status => {
            let (text, healthy) = Lab::attach_to_any()?.status()?;
            print!("{text}");
            return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Exec { cluster, command } => {
            let status = Lab::attach_to_any()?.command(&cluster, &command)?.status();
            return Ok(code(status.with_context(|| format!("can't run {}", command.join(" ")))?));
        }
        Action::Kubeconfig { cluster } => print!("{}", Lab::attach()?.user_kubeconfig(&cluster)?),
        Action::Logs { cluster, part } => logs(cluster.as_deref(), part.as_deref())?,
        Action::Load { archive, clusters } => {
            let lab = Lab::attach()?;
            let clusters = if clusters.is_empty() { lab.image_clusters()? } else { clusters };
            lab.load_image(&archive, &clusters.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A command's exit code as a shell gives it: 128 and the signal for one that was killed.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn logs(cluster: Option<&str>, part: Option<&str>) -> Result<()> {
    let found = Lab::attach_to_any()?.logs(cluster)?;
    let Some(part) = part else {
        for (place, part, path) in found {
            println!("{place:<14} {part:<24} {}", path.display());
        }
        return Ok(());
    };
    let (_, _, path) = found.into_iter().find(|(_, found, _)| found == part).with_context(|| format!("no log of {part}"))?;
    let mut log = File::open(&path).with_context(|| format!("can't read {}", path.display()))?;
    io::copy(&mut log, &mut io::stdout().lock()).context("can't write")?;
    Ok(())
}
