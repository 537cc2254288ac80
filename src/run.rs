//! From a parsed command line to an exit code: where commands are started, bounded, told about, and undone.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::cli::{Cli, Command, JoinArgs};
use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::progress::{self, Progress};
use crate::join::{self, Order, Source};
use crate::model::joined::Joined;
use crate::model::kubeconfig::Access;
use crate::undo::Undo;
use crate::{agent, job};

/// Where Kubernetes reads a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// How long undoing may take: a Job is ended 30 s after its own deadline.
const UNDO_PATIENCE: Duration = Duration::from_secs(25);

/// Runs the command line of this process.
pub async fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Join(args) => join(args).await.map(|joined| say(&joined.to_string())),
        Command::Agent(args) => {
            agent::run(args).await.map_err(|error| Failure::new(Kind::Unexpected, format!("{error:#}"), "see the log above"))
        }
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

async fn join(args: JoinArgs) -> Result<Joined> {
    let JoinArgs {
        cluster,
        region,
        kubeconfig,
        context,
        secret,
        secret_key,
        labels,
        node_port,
        gateway,
        allow_second_name,
        timeout,
        here,
        vela,
        job,
    } = args;
    let source = match (kubeconfig, secret) {
        (Some(path), _) => Source::Read(Box::new(read(&path, context.as_deref())?)),
        (None, Some(name)) => Source::Secret { name, key: secret_key },
        (None, None) => return Err(Failure::new(Kind::Usage, "no kubeconfig was given", "use --kubeconfig or --secret")),
    };
    let order = Order { cluster, region, source, labels, node_port, gateway, allow_second_name, vela };
    let hub = Hub::connect().await?;
    if here { join_here(&hub, &order, timeout, job.job()).await } else { job::join(&hub, &order, timeout).await }
}

fn read(path: &Path, context: Option<&str>) -> Result<Access> {
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::new(
            Kind::Kubeconfig,
            format!("{} can't be read: {error}", path.display()),
            "give the path of the cluster's kubeconfig",
        )
    })?;
    // Paths in a kubeconfig are relative to where it is.
    let directory = path.parent().unwrap_or(Path::new(""));
    Access::parse(&bytes, context, &|file| std::fs::read(directory.join(file)))
        .map_err(|failure| failure.about(&path.display().to_string()))
}

/// Joins in this process; whatever ends it early, what it did is undone.
async fn join_here(hub: &Hub, order: &Order, timeout: Duration, job: Option<progress::Job>) -> Result<Joined> {
    let progress = Progress::new(hub, job, order.region.as_str());
    let mut undo = Undo::default();
    let outcome = tokio::select! {
        outcome = join::join(hub, order, &progress, &mut undo) => outcome,
        () = sleep(timeout) => Err(Failure::new(
            Kind::Timeout,
            format!("the time given ({} s) was over while {}", timeout.as_secs(), progress.last()),
            "give more with timeout, if that step only needs longer",
        )),
        () = asked_to_end() => Err(Failure::new(
            Kind::Interrupted,
            format!("asked to end while {}", progress.last()),
            "run the same join again when you like",
        )),
    };
    let failure = match outcome {
        Ok(joined) => {
            progress.finish(&joined).await;
            return Ok(joined);
        }
        Err(failure) => failure,
    };
    let undone = tokio::time::timeout(UNDO_PATIENCE, undo.back_to(0)).await;
    let failure = match undone {
        Ok(Ok(())) => failure,
        Ok(Err(other)) => failure.and(&format!("and not everything could be undone: {}", other.cause())),
        Err(_) => failure.and("and not everything could be undone in time"),
    };
    progress.fail(&failure).await;
    Err(failure)
}

async fn asked_to_end() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}

/// The result of a command.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What went wrong.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
