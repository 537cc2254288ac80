//! The command line. Values with rules arrive parsed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::agent::AgentArgs;
use crate::hub::progress::Job;
use crate::model::labels::Label;
use crate::model::names::{ClusterName, SecretName};

/// Joins Kubernetes clusters that a KubeVela hub has no route to, through a proxy cluster in their region.
#[derive(Debug, Parser)]
#[command(name = "xregion", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join a cluster through its region.
    ///
    /// From a shell, KUBECONFIG points at the hub, and the join runs as a Job there: your machine needs no way to the region.
    Join(JoinArgs),
    /// Run nginx in a region's proxy, by the routes found in its cluster.
    Agent(AgentArgs),
    /// Copy this program into a directory (for the proxy's init container).
    #[command(hide = true)]
    Install {
        /// The directory.
        directory: PathBuf,
    },
}

/// Arguments of `join`.
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// Name of the cluster in KubeVela.
    pub cluster: ClusterName,
    /// The region: the name of its proxy cluster in KubeVela.
    #[arg(long, value_name = "NAME")]
    pub region: ClusterName,
    /// The cluster's kubeconfig. It is read here and given to the hub self-contained.
    #[arg(long, value_name = "FILE", conflicts_with = "secret", required_unless_present = "secret")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in that kubeconfig, if not its current one.
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub context: Option<String>,
    /// A Secret in vela-system of the hub that holds the kubeconfig, labelled xregion.oam.dev/kubeconfig=true.
    #[arg(long, value_name = "NAME")]
    pub secret: Option<SecretName>,
    /// The key in that Secret.
    #[arg(long, value_name = "KEY", default_value = "kubeconfig")]
    pub secret_key: String,
    /// A label for the cluster, for topology policies to choose by; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// The node port in the region, if not the next free one.
    #[arg(long, value_name = "PORT")]
    pub node_port: Option<u16>,
    /// The Deployment of cluster-gateway, if it can't be found by its APIService.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub gateway: Option<String>,
    /// Join a cluster that is joined already under another name.
    #[arg(long)]
    pub allow_second_name: bool,
    /// Give up after so long, and undo what was done.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
    /// Run in this process rather than as a Job on the hub: for machines that reach the region's nodes.
    #[arg(long)]
    pub here: bool,
    /// The vela CLI to run, with --here.
    #[arg(long, value_name = "PATH", default_value = "vela", requires = "here")]
    pub vela: PathBuf,
    /// The Job this process is.
    #[command(flatten)]
    pub job: JobArgs,
}

/// What the Job's template says through the downward API.
#[derive(Args, Debug)]
pub struct JobArgs {
    #[arg(long, env = "XREGION_JOB_NAME", hide = true)]
    job_name: Option<String>,
    #[arg(long, env = "XREGION_JOB_UID", hide = true)]
    job_uid: Option<String>,
}

impl JobArgs {
    /// The Job, if this process is one.
    pub fn job(self) -> Option<Job> {
        let Self { job_name, job_uid } = self;
        Some(Job { name: job_name?, uid: job_uid? })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| "write it like 90s, 10m or 1h".to_owned())?;
    Duration::try_from(parsed)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "it must be longer than nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert!(duration("0s").is_err() && duration("ten").is_err() && duration("-5m").is_err());
    }
}
