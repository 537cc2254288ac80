//! From a parsed command line to an exit code: where commands are started, bounded, told about, and undone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::time::sleep;

use crate::cli::{
    self, Cli, Command, DoctorArgs, JoinArgs, KubeconfigArgs, LeaveArgs, MemberArg, Output, PlanArgs, PlanOf, PlanOutput,
    StatusArgs, TrafficArgs, TrafficOutput,
};
use crate::controller::{self, ControllerArgs};
use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::progress::{self, Progress};
use crate::join::{self, Member, Order, Source};
use crate::mint::{self, Account};
use crate::model::bounds::Bounds;
use crate::model::checkup::Checkup;
use crate::model::joined::conclude;
use crate::model::kubeconfig::Access;
use crate::model::overview::Overview;
use crate::model::{traffic, tree};
use crate::signals::asked_to_end;
use crate::undo::{Undo, undone};
use crate::{agent, files, job, leave, looking};

/// Where Kubernetes reads a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Runs the command line of this process.
pub async fn run() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Join(args) => join(args).await.map(|message| say(&message)),
        Command::Leave(args) => leave(args).await.map(|message| say(&message)),
        Command::Plan(args) => plan(args).await.map(|message| say(&message)),
        Command::Kubeconfig(args) => kubeconfig(args).await,
        Command::Status(args) => status(args).await.map(|text| say(&text)),
        Command::Traffic(args) => traffic(args).await.map(|text| say(&text)),
        Command::Doctor(args) => return doctor(args).await,
        Command::Completions { shell } => {
            say(&cli::completions(shell));
            Ok(())
        }
        Command::Man { command } => cli::man(command.as_deref()).map(|page| say(&page)),
        Command::Agent(args) => {
            agent::run(args).await.map_err(|error| Failure::new(Kind::Unexpected, format!("{error:#}"), "see the log above"))
        }
        Command::Controller(args) => controller(args).await,
        Command::Install { directory } => {
            agent::install(&directory).map_err(|error| Failure::new(Kind::Unexpected, format!("{error:#}"), "check the volume"))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ended(&failure),
    }
}

/// A value that its own type refused has a kind of its own; everything else about the command line is clap's.
fn usage(error: &clap::Error) -> ExitCode {
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<Failure>()) {
        Some(failure) => ended(failure),
        None => {
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Kind::Usage.exit_code()))
        }
    }
}

fn ended(failure: &Failure) -> ExitCode {
    complain(&format!("error: {}\nhint: {}", failure.cause(), failure.hint()));
    if Path::new(TERMINATION_LOG).exists() {
        // Best effort: the log says it, too.
        let _ = std::fs::write(TERMINATION_LOG, failure.to_string());
    }
    ExitCode::from(failure.kind.exit_code())
}

async fn join(args: JoinArgs) -> Result<String> {
    let run = &args.run;
    let hub = Hub::connect().await?;
    let order = order(&args)?;
    if run.here { join_here(&hub, &order, run.timeout, run.job.job()).await } else { job::join(&hub, &order, run.timeout).await }
}

fn order(args: &JoinArgs) -> Result<Order> {
    let members = match (&args.cluster, &args.region) {
        (Some(cluster), Some(region)) => {
            let source = match (&args.kubeconfig, &args.secret) {
                (Some(list), _) => Source::Read(Box::new(access(list, args.context.as_deref())?)),
                (None, Some(name)) => {
                    Source::Secret { name: name.clone(), key: args.secret_key.clone(), context: args.context.clone() }
                }
                (None, None) => return Err(Failure::new(Kind::Usage, "no kubeconfig was given", "use --kubeconfig or --secret")),
            };
            vec![Member {
                cluster: cluster.clone(),
                region: region.clone(),
                source,
                labels: args.labels.clone(),
                node_port: args.node_port,
                bounds: Bounds { sources: args.source_ranges.iter().copied().collect(), connections: args.max_connections },
                mode: args.mode,
                allow_second_name: args.allow_second_name,
                replace: args.replace,
            }]
        }
        _ => args.members.iter().map(|member| of_list(member, args)).collect(),
    };
    let mut names = BTreeSet::new();
    if let Some(twice) = members.iter().find(|member| !names.insert(member.cluster.clone())) {
        let cause = format!("cluster {} is in the list twice", twice.cluster);
        return Err(Failure::new(Kind::ClusterName, cause, "give each cluster a name of its own"));
    }
    Ok(Order { members, gateway: args.run.gateway.clone(), adopt: args.adopt, vela: args.run.vela.clone() })
}

/// A cluster of a list, for which what is said for all of them goes, too.
fn of_list(arg: &MemberArg, args: &JoinArgs) -> Member {
    let member = Member::from(arg.clone());
    Member {
        allow_second_name: member.allow_second_name || args.allow_second_name,
        replace: member.replace || args.replace,
        ..member
    }
}

async fn leave(args: LeaveArgs) -> Result<String> {
    let run = &args.run;
    let order = leave_order(&args);
    let hub = Hub::connect().await?;
    if !run.here {
        return job::leave(&hub, &order, run.timeout).await;
    }
    let progress = Progress::new(&hub, run.job.job());
    match bounded(leave::leave(&hub, &order, &progress), run.timeout, &progress).await {
        Ok(left) => {
            progress.finish(&left.to_string(), &BTreeMap::new()).await;
            Ok(left.to_string())
        }
        Err(failure) => {
            progress.fail(&failure).await;
            Err(failure)
        }
    }
}

fn leave_order(args: &LeaveArgs) -> leave::Order {
    let LeaveArgs { cluster, region, force, cut, run } = args;
    leave::Order {
        cluster: cluster.clone(),
        region: region.clone(),
        gateway: run.gateway.clone(),
        force: *force,
        cut: *cut,
        vela: run.vela.clone(),
    }
}

async fn plan(args: PlanArgs) -> Result<String> {
    let (PlanOf::Join(JoinArgs { run, .. }) | PlanOf::Leave(LeaveArgs { run, .. })) = &args.of;
    let hub = Hub::connect().await?;
    let progress = Progress::new(&hub, run.job.job());
    let planned = async {
        match &args.of {
            PlanOf::Join(join) => join::plan(&hub, &order(join)?, &progress).await,
            PlanOf::Leave(leave) => leave::plan(&hub, &leave_order(leave), &progress).await,
        }
    };
    match bounded(planned, run.timeout, &progress).await {
        Ok(plan) => {
            progress.finish(&plan.to_string(), &[("plan", plan.to_json())].into()).await;
            Ok(match args.output {
                PlanOutput::Text => plan.to_string(),
                PlanOutput::Json => plan.to_json(),
            })
        }
        Err(failure) => {
            progress.fail(&failure).await;
            Err(failure)
        }
    }
}

fn access(list: &Path, context: Option<&str>) -> Result<Access> {
    let config = files::kubeconfig(list)?;
    Access::of(&config, context, &files::read, Timestamp::now()).map_err(|failure| failure.about(&list.display().to_string()))
}

async fn kubeconfig(args: KubeconfigArgs) -> Result<()> {
    let KubeconfigArgs { kubeconfig, context, service_account, namespace, role, duration, output } = args;
    let to_stdout = output == Path::new("-");
    if !to_stdout && output.exists() {
        return Err(files::exists(&output));
    }
    let config = files::kubeconfig(&kubeconfig)?;
    let account = Account { name: service_account, namespace, role, duration };
    let minted = mint::mint(&config, context.as_deref(), &account)
        .await
        .map_err(|failure| failure.about(&kubeconfig.display().to_string()))?;
    if to_stdout {
        say(minted.kubeconfig.expose_secret());
        tracing::info!("{}", minted.lifetime);
    } else {
        files::write_new(&output, &minted.kubeconfig)?;
        say(&format!("wrote {}; {}", output.display(), minted.lifetime));
    }
    Ok(())
}

async fn status(args: StatusArgs) -> Result<String> {
    let StatusArgs { cluster, output, gateway } = args;
    let observed = looking::look(&Hub::connect().await?, gateway.as_deref(), cluster.as_ref()).await?;
    let overview = Overview::of(&observed, cluster.as_ref());
    let unexpected = |error: String| Failure::new(Kind::Unexpected, error, "report this");
    match output {
        Output::Tree | Output::Wide => Ok(tree::render(&overview, output == Output::Wide)),
        Output::Json => serde_json::to_string_pretty(&overview).map_err(|error| unexpected(error.to_string())),
        Output::Yaml => {
            serde_saphyr::to_string(&overview).map(|text| text.trim_end().to_owned()).map_err(|error| unexpected(error.to_string()))
        }
    }
}

async fn traffic(args: TrafficArgs) -> Result<String> {
    let regions = looking::traffic(&Hub::connect().await?, args.region.as_ref()).await?;
    match args.output {
        TrafficOutput::Table => Ok(traffic::table(&regions)),
        TrafficOutput::Json => {
            serde_json::to_string_pretty(&regions).map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))
        }
    }
}

/// Its verdict is its last line, so that a broken link needs no further words.
async fn doctor(args: DoctorArgs) -> ExitCode {
    let DoctorArgs { cluster, gateway } = args;
    let observed = async { looking::look(&Hub::connect().await?, gateway.as_deref(), cluster.as_ref()).await };
    let checkup = match observed.await {
        Ok(observed) => Checkup::of(&observed, cluster.as_ref()),
        Err(failure) => Checkup::unreachable(&failure),
    };
    say(&checkup.to_string());
    if checkup.broken().is_some() { ExitCode::from(Kind::Broken.exit_code()) } else { ExitCode::SUCCESS }
}

/// Joins in this process; whatever ends it early, what it did is undone.
async fn join_here(hub: &Hub, order: &Order, timeout: Duration, place: Option<progress::Place>) -> Result<String> {
    let progress = Progress::new(hub, place);
    let undos: Vec<Undo> = order.members.iter().map(|_| Undo::default()).collect();
    let outcome = match bounded(join::join(hub, order, &progress, &undos), timeout, &progress).await {
        Ok(results) => {
            let clusters: Vec<_> = order.members.iter().map(|member| &member.cluster).collect();
            conclude(&clusters, results)
        }
        Err(failure) => Err(undone(&undos, failure).await),
    };
    match outcome {
        Ok(told) => {
            progress.finish(&told.message, &told.outputs).await;
            Ok(told.message)
        }
        Err(failure) => {
            progress.fail(&failure).await;
            Err(failure)
        }
    }
}

/// Runs something until it is done, the time is over, or this process is asked to end.
async fn bounded<T>(work: impl Future<Output = Result<T>>, timeout: Duration, progress: &Progress) -> Result<T> {
    tokio::select! {
        outcome = work => outcome,
        () = sleep(timeout) => Err(Failure::new(
            Kind::Timeout,
            format!("the time given ({} s) was over while {}", timeout.as_secs(), progress.last()),
            "give more with timeout, if that step only needs longer",
        )),
        () = asked_to_end() => Err(Failure::new(
            Kind::Interrupted,
            format!("asked to end while {}", progress.last()),
            "run the same again when you like",
        )),
    }
}

async fn controller(args: ControllerArgs) -> Result<()> {
    // First of all: the first process of a container ignores the signals it has no handler for.
    let stop = asked_to_end();
    controller::run(args, &Hub::connect().await?, stop).await
}

/// The result of a command.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What went wrong.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
