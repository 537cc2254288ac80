//! The command line. Values with rules arrive parsed.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

use crate::agent::AgentArgs;
use crate::controller::ControllerArgs;
use crate::error::{Failure, Kind};
use crate::hub::progress::Place;
use crate::join::{Member, Source};
use crate::model::bounds::Bounds;
use crate::model::labels::Label;
use crate::model::names::{ClusterName, ObjectName, SecretName};
use crate::model::route::Mode;
use crate::model::sources::SourceRange;

/// Kubernetes makes no token for less.
const TOKEN_MINIMUM: Duration = Duration::from_secs(600);

/// The name by which kubectl finds its plugin `kubectl xregion`.
const PLUGIN: &str = "kubectl-xregion";

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
    /// Joining again changes what is new: credentials, authority, labels, the API server's address, the region.
    #[command(override_usage = "xregion join [OPTIONS] --region <NAME> <CLUSTER>")]
    Join(JoinArgs),
    /// Let a cluster leave: detach it, then remove its host name, its port and its route.
    ///
    /// What is gone already is fine, so a leave that was interrupted is finished by another one. What can't be reached stays recorded.
    Leave(LeaveArgs),
    /// Say what a join or a leave would change, and change nothing.
    ///
    /// It reads the hub and, through it, the region, and has their API servers check every write. It does not go the way to the cluster:
    /// there is no route yet.
    Plan(PlanArgs),
    /// Make a kubeconfig that lasts, from one that works on this machine.
    ///
    /// For kubeconfigs that a hub can't keep: those that get their credentials from a command (exec) or an auth provider, such as the
    /// ones that managed clouds hand out. Makes a ServiceAccount in the cluster, binds it to a ClusterRole, and writes a kubeconfig
    /// with a token of it, which the hub's controller renews before it ends. The default role, cluster-admin, is what KubeVela expects: whoever has the token can do everything there.
    Kubeconfig(KubeconfigArgs),
    /// Show the regions, their proxies, and the clusters joined through them, with what is out of step.
    ///
    /// KUBECONFIG points at the hub; the rest is asked through its cluster-gateway. It changes nothing.
    Status(StatusArgs),
    /// Show what the regions have carried for each cluster: sessions and bytes.
    ///
    /// Each proxy counts since it started, and tells every 20 seconds. KUBECONFIG points at the hub.
    Traffic(TrafficArgs),
    /// Check every link of the way to a cluster, in order, and name the first one that is broken.
    ///
    /// Without a cluster: the hub and every region. It changes nothing, and exits with 90 if a link is broken.
    Doctor(DoctorArgs),
    /// Run nginx in a region's proxy, by the routes found in its cluster.
    Agent(AgentArgs),
    /// Keep the hub's gateway and its regions as recorded, and join what members declare (the addon runs it on the hub).
    ///
    /// It looks every 5 seconds, and puts back what was lost or changed: host aliases, routes, ports. It removes nothing.
    /// It renews tokens of clusters before they end.
    Controller(ControllerArgs),
    /// Print completions for a shell.
    ///
    /// For bash: source <(xregion completions bash)
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print a manual page: of the program, or of one of its commands.
    ///
    /// To read it: xregion man join | man -l -
    Man {
        /// The command.
        command: Option<String>,
    },
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
    #[arg(required_unless_present = "members")]
    pub cluster: Option<ClusterName>,
    /// The region: the name of its proxy cluster in KubeVela.
    #[arg(long, value_name = "NAME", required_unless_present = "members")]
    pub region: Option<ClusterName>,
    /// The cluster's kubeconfig, or a list of files as in $KUBECONFIG. It is read here and given to the hub self-contained.
    #[arg(long, value_name = "FILE", conflicts_with = "secret", required_unless_present_any = ["secret", "members"])]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig, if not its current one.
    #[arg(long, value_name = "NAME", conflicts_with = "members")]
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
    /// A network, or one address, that connections to its route may come from, in the bounds of the region's sourceRanges; may be
    /// repeated. Not given: from wherever those allow.
    #[arg(long = "source-range", value_name = "CIDR")]
    pub source_ranges: Vec<SourceRange>,
    /// How many connections its route carries at once in each proxy, in the bounds of the region's maxConnections; more are closed.
    /// Not given: as many as that allows.
    #[arg(long, value_name = "NUMBER")]
    pub max_connections: Option<NonZeroU16>,
    /// By what the region tells its connections from others': port (a node port for the cluster) or sni (the TLS name, on the node port
    /// that the region's clusters share).
    #[arg(long, value_name = "MODE", default_value_t)]
    pub mode: Mode,
    /// Join a cluster that is joined already under another name.
    #[arg(long)]
    pub allow_second_name: bool,
    /// Give the name to this cluster although another one has it; KubeVela deploys here what it deployed there.
    #[arg(long)]
    pub replace: bool,
    /// Take over a host alias that was made by hand, and leads into the region already.
    #[arg(long)]
    pub adopt: bool,
    /// A cluster of a workflow step's list, as JSON.
    #[arg(long = "member", value_name = "JSON", hide = true, conflicts_with = "cluster")]
    pub members: Vec<MemberArg>,
    /// How it runs.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `leave`.
#[derive(Args, Debug)]
pub struct LeaveArgs {
    /// Name of the cluster in KubeVela.
    pub cluster: ClusterName,
    /// A region to look in, if the hub has no record of it: the name of its proxy cluster in KubeVela.
    #[arg(long, value_name = "NAME")]
    pub region: Option<ClusterName>,
    /// Leave although Applications have resources there: those stay, and KubeVela forgets them.
    #[arg(long)]
    pub force: bool,
    /// Cut connections to it that are open through the hub even if another cluster of the same host name stays: the gateway is rolled,
    /// which ends every cluster's open connections.
    #[arg(long)]
    pub cut: bool,
    /// How it runs.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: PlanOutput,
    /// Of what.
    #[command(subcommand)]
    pub of: PlanOf,
}

/// A form of printing a plan.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum PlanOutput {
    /// As a diff.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What is planned.
#[derive(Debug, Subcommand)]
pub enum PlanOf {
    /// A join, with its arguments.
    #[command(override_usage = "xregion plan join [OPTIONS] --region <NAME> <CLUSTER>")]
    Join(JoinArgs),
    /// A leave, with its arguments.
    Leave(LeaveArgs),
}

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Only this cluster, or this region.
    pub cluster: Option<ClusterName>,
    /// How to show it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The Deployment of cluster-gateway, if it can't be found by its APIService.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub gateway: Option<String>,
}

/// Arguments of `traffic`.
#[derive(Args, Debug)]
pub struct TrafficArgs {
    /// Only this region.
    pub region: Option<ClusterName>,
    /// How to show it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TrafficOutput,
}

/// How `traffic` shows what it was told.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum TrafficOutput {
    /// A table, for people.
    #[default]
    Table,
    /// JSON, for programs.
    Json,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The cluster, or a region.
    pub cluster: Option<ClusterName>,
    /// The Deployment of cluster-gateway, if it can't be found by its APIService.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub gateway: Option<String>,
}

/// How `status` shows what it saw.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Output {
    /// A tree, for people.
    #[default]
    Tree,
    /// The tree with aliases, proofs, nodes and proxies.
    Wide,
    /// JSON, for programs.
    Json,
    /// The same as YAML.
    Yaml,
}

/// How a join or leave runs.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The Deployment of cluster-gateway, if it can't be found by its APIService.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub gateway: Option<String>,
    /// Give up after so long; a join undoes what it did, a leave is finished by the next one.
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

/// A cluster of a list, as the workflow step writes it, and as the component `xregion-member` does.
#[derive(Clone, Debug)]
pub struct MemberArg {
    /// Its name in KubeVela.
    pub cluster: ClusterName,
    /// Its region.
    pub region: ClusterName,
    /// The Secret with its kubeconfig.
    pub secret: SecretName,
    /// The key in that.
    pub key: String,
    /// The context in the kubeconfig.
    pub context: Option<String>,
    /// Its labels.
    pub labels: Vec<Label>,
    /// Its node port.
    pub node_port: Option<u16>,
    /// What its route lets in.
    pub bounds: Bounds,
    /// By what its region tells it from others.
    pub mode: Mode,
    /// Whether it may be joined although it has another name already.
    pub allow_second_name: bool,
    /// Whether it may take the name over from another cluster.
    pub replace: bool,
}

impl Cli {
    /// Reads this process's command line. Called by kubectl as its plugin, it says so in its help.
    pub fn read() -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let program = std::env::args_os().next().unwrap_or_default();
        if Path::new(&program).file_stem().is_some_and(|name| name == PLUGIN) {
            command = command.bin_name("kubectl xregion");
        }
        Self::from_arg_matches_mut(&mut command.try_get_matches()?)
    }
}

/// Completions for a shell.
pub fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "xregion", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// A manual page: of the program, or of a command.
pub fn man(command: Option<&str>) -> Result<String, Failure> {
    let mut program = Cli::command();
    program.build();
    let page = match command {
        None => program,
        Some(name) => program
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::new(Kind::Usage, format!("there is no command {name:?}"), "xregion --help lists them"))?,
    };
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(page).render(&mut text);
    rendered.map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The same before its values are known to be good.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawMember {
    cluster: String,
    region: String,
    secret: String,
    key: String,
    context: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    node_port: Option<u16>,
    mode: Option<String>,
    #[serde(default)]
    source_ranges: Vec<String>,
    max_connections: Option<NonZeroU16>,
    #[serde(default)]
    allow_second_name: bool,
    #[serde(default)]
    replace: bool,
}

impl RawMember {
    fn checked(self) -> Result<MemberArg, Failure> {
        Ok(MemberArg {
            cluster: self.cluster.parse()?,
            region: self.region.parse()?,
            secret: self.secret.parse()?,
            key: self.key,
            context: self.context,
            labels: self.labels.iter().map(|(k, v)| format!("{k}={v}").parse()).collect::<Result<_, _>>()?,
            node_port: self.node_port,
            bounds: Bounds {
                sources: self.source_ranges.iter().map(|range| range.parse()).collect::<Result<_, _>>()?,
                connections: self.max_connections,
            },
            mode: self.mode.as_deref().map_or(Ok(Mode::Port), str::parse)?,
            allow_second_name: self.allow_second_name,
            replace: self.replace,
        })
    }
}

impl MemberArg {
    /// Reads the parameters of a component.
    pub fn of_component(text: &str) -> Result<Self, Failure> {
        let raw: RawMember = serde_json::from_str(text).map_err(|error| {
            Failure::new(Kind::Usage, format!("the parameters can't be read: {error}"), "check the component's properties")
        })?;
        raw.checked()
    }
}

impl FromStr for MemberArg {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let raw: RawMember = serde_json::from_str(text)
            .map_err(|error| Failure::new(Kind::Usage, format!("a cluster of the list: {error}"), "check the step's clusters"))?;
        let about = format!("cluster {:?} of the list", raw.cluster);
        raw.checked().map_err(|failure| failure.about(&about))
    }
}

impl From<MemberArg> for Member {
    fn from(arg: MemberArg) -> Self {
        let MemberArg { cluster, region, secret, key, context, labels, node_port, bounds, mode, allow_second_name, replace } = arg;
        let source = Source::Secret { name: secret, key, context };
        Self { cluster, region, source, labels, node_port, bounds, mode, allow_second_name, replace }
    }
}

/// Arguments of `kubeconfig`.
#[derive(Args, Debug)]
pub struct KubeconfigArgs {
    /// The kubeconfig that works, or a list of files as in $KUBECONFIG.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The context in it, if not its current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The ServiceAccount to make.
    #[arg(long, value_name = "NAME", default_value = "xregion")]
    pub service_account: ObjectName,
    /// The namespace of the ServiceAccount; made, too, if it isn't there.
    #[arg(long, value_name = "NAME", default_value = "vela-system")]
    pub namespace: ObjectName,
    /// The ClusterRole to bind the ServiceAccount to, in place of any that an earlier run has bound it to.
    #[arg(long, value_name = "NAME", default_value = "cluster-admin")]
    pub role: ObjectName,
    /// How long the token should last, 10m or more. Many clusters give less than is asked for.
    #[arg(long, value_name = "DURATION", default_value = "720h", value_parser = token_duration)]
    pub duration: Duration,
    /// The file to write, which must not exist; - for standard output.
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

/// What the Job's template says through the downward API.
#[derive(Args, Clone, Debug)]
pub struct JobArgs {
    #[arg(long, env = "XREGION_JOB_NAME", hide = true)]
    job_name: Option<String>,
    #[arg(long, env = "XREGION_JOB_UID", hide = true)]
    job_uid: Option<String>,
}

impl JobArgs {
    /// Where this process tells its progress, if it is a Job.
    pub fn job(&self) -> Option<Place> {
        let Self { job_name, job_uid } = self.clone();
        Some(Place::of_job(job_name?, job_uid?))
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| "write it like 90s, 10m or 1h".to_owned())?;
    Duration::try_from(parsed)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "it must be longer than nothing".to_owned())
}

fn token_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < TOKEN_MINIMUM { Err("it must be 10m or more".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn clusters_of_a_list() {
        let one: MemberArg =
            r#"{"cluster":"a","region":"east","secret":"s","key":"k","labels":{"tier":"x"},"nodePort":30001}"#.parse().unwrap();
        assert_eq!((one.cluster.as_str(), one.labels[0].to_string().as_str(), one.node_port), ("a", "tier=x", Some(30001)));
        let narrow: MemberArg =
            r#"{"cluster":"a","region":"east","secret":"s","key":"k","sourceRanges":["10.0.0.0/8"]}"#.parse().unwrap();
        assert_eq!((narrow.bounds.sources.to_string().as_str(), &one.bounds), ("10.0.0.0/8", &Bounds::NONE));
        let limited: MemberArg = r#"{"cluster":"a","region":"east","secret":"s","key":"k","maxConnections":20}"#.parse().unwrap();
        assert_eq!(limited.bounds, Bounds { connections: NonZeroU16::new(20), ..Bounds::NONE });
        for bound in [r#""sourceRanges":["all"]"#, r#""maxConnections":0"#, r#""maxConnections":-1"#, r#""maxConnections":65536"#] {
            let failure = format!(r#"{{"cluster":"a","region":"east","secret":"s","key":"k",{bound}}}"#).parse::<MemberArg>();
            assert_eq!(failure.unwrap_err().kind, Kind::Usage, "{bound}");
        }
        let of = |mode: &str| {
            format!(r#"{{"cluster":"a","region":"east","secret":"s","key":"k","mode":"{mode}"}}"#).parse::<MemberArg>()
        };
        assert_eq!((one.mode, of("sni").unwrap().mode), (Mode::Port, Mode::Sni));
        assert_eq!(of("name").unwrap_err().kind, Kind::Usage);
        let failure = r#"{"cluster":"A","region":"east","secret":"s","key":"k"}"#.parse::<MemberArg>().unwrap_err();
        assert_eq!(failure.kind, Kind::ClusterName);
        assert!(failure.cause().starts_with("cluster 'A' of the list: "), "{failure}");
        assert_eq!("{}".parse::<MemberArg>().unwrap_err().kind, Kind::Usage);
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert!(token_duration("10m").is_ok() && token_duration("599s").is_err());
        assert!(duration("0s").is_err() && duration("ten").is_err() && duration("-5m").is_err());
    }
}
