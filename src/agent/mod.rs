//! The proxy: nginx, and an agent that keeps it at what the region's routes say.
//!
//! ```text
//! ConfigMaps (watched) ──┐
//! own networks ──────────┼─► plan ─► rendered files ─► nginx -t, switch, reload, seen to be served ─► Lease
//! DNS (per name) ────────┘
//!
//! nginx's records of sessions ─┐
//! the kernel's open sockets ───┴─► numbers ─► /metrics, Lease
//! ```

mod access_log;
mod debounce;
mod install;
mod lease;
mod log;
mod metrics;
mod names;
mod networks;
pub mod nginx;
mod plan;
mod sockets;
mod watched;
pub mod workers;

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::{Stream, StreamExt as _};
use hickory_resolver::TokioResolver;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::Event;
use kube::{Api, Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use self::debounce::Debounce;
pub use self::install::install;
use self::lease::Pod;
use self::metrics::Metrics;
use self::names::Names;
use self::nginx::{Nginx, Outcome};
use self::plan::{Facts, Plan, Serving};
use self::watched::Watched;
use crate::connect;
use crate::endpoints::{self, Endpoints, Health};
use crate::model::bounds::Bounds;
use crate::model::nginx::Limits;
use crate::model::region::{SNI_LISTEN, Timeouts};
use crate::model::report::Report;

/// How long a proxy that ends goes on accepting: it takes a while until nobody sends it connections any more.
/// The hub asks every second, at the region's own port, and takes a silence for one when it is the second.
const LEAVE: Duration = Duration::from_secs(8);
/// How long open connections have to end then. With `LEAVE` it fits a pod's grace period of 45 s.
const DRAIN: Duration = Duration::from_secs(30);
/// How long nginx's last records may take.
const RECORDS: Duration = Duration::from_secs(1);
/// How often the loop turns at least; then also what was rejected is tried again.
const TICK: Duration = Duration::from_secs(20);
/// While nothing is served there is nothing to time out.
const NO_TRAFFIC: Limits =
    Limits { timeouts: Timeouts { connect_seconds: 1, idle_seconds: 1, drain_seconds: 1 }, bounds: Bounds::NONE };

/// Options of `xregion agent`.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// The nginx to run; it needs the stream module, built in or loadable
    #[arg(long, value_name = "PATH", default_value = "nginx")]
    pub nginx: PathBuf,
    /// The directory for nginx's configuration; nothing is written anywhere else
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/xregion")]
    pub dir: PathBuf,
    /// The port of /livez, /readyz and /metrics
    #[arg(long, value_name = "PORT", default_value_t = 7080)]
    pub health_port: u16,
    /// The port for connections that are told apart by name
    #[arg(skip = SNI_LISTEN)]
    pub sni_listen: u16,
    /// The name of the pod, and so of the Lease that says what it serves
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod_name: String,
    /// The UID of the pod
    #[arg(long, value_name = "UID", env = "POD_UID")]
    pub pod_uid: String,
    /// The namespace of the pod, its routes and its Lease
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub pod_namespace: String,
}

/// Runs the proxy until SIGTERM, or until nginx ends by itself, which is an error.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    // First of all: the first process of a container ignores the signals it has no handler for.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    // No read timeout: it would end watches, which notice a dead connection by themselves. Whatever else asks has its own.
    let mut config = Config::incluster().context("xregion agent runs in a pod of the proxy cluster")?;
    // Every caller has a pause of its own after a failure.
    config.default_retry = false;
    let client = connect::client(config).context("can't make a client for this cluster's API")?;
    let mut resolver = TokioResolver::builder_tokio().context("can't read /etc/resolv.conf")?;
    names::options(resolver.options_mut());
    serve(args, client, resolver.build()?, stop).await
}

/// Runs the proxy with the API and the DNS given, until `stop`.
pub async fn serve(args: AgentArgs, client: Client, resolver: TokioResolver, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let AgentArgs { nginx, dir, health_port, sni_listen, pod_name, pod_uid, pod_namespace } = args;
    let mut background = JoinSet::new();
    let (health, metrics) = (Health::new("the routes are not applied yet, or no more\n"), Metrics::new());
    let (numbers, readiness) = (metrics.clone(), health.clone());
    let endpoints = Endpoints::new(health.clone(), move || {
        numbers.ready(readiness.not_ready().is_none());
        numbers.text()
    });
    background.spawn(endpoints::serve(health_port, endpoints).await?);
    let host = nginx::inspect(&nginx, &dir, sni_listen).await?;
    let files = host.render(NO_TRAFFIC, []);
    let mut nginx = Nginx::start(&nginx, host, files).await?;
    metrics.set_nginx(nginx.id());
    let records = nginx.take_access_log().map(|records| tokio::spawn(access_log::follow(records, metrics.clone())));

    // The first report is empty: it takes back what this pod said before its container was restarted.
    let (reports, reported) = watch::channel(Report::default());
    let pod = Pod { name: pod_name, uid: pod_uid };
    let traffic = metrics.clone();
    let told = move || traffic.traffic();
    background.spawn(lease::keep(Api::namespaced(client.clone(), &pod_namespace), pod, reported, told));
    let (sender, own) = watch::channel(None);
    background.spawn(networks::keep(client.clone(), sender));

    let names = Names::new(resolver);
    let (watched, serving, debounce, rejected) = (Watched::default(), Serving::new(), Debounce::default(), false);
    let mut agent = Agent { nginx, health, metrics, health_port, own, names, reports, watched, serving, debounce, rejected };
    let events = watched::config_maps(client, &pod_namespace);
    tokio::select! {
        ended = agent.follow(events) => return ended,
        () = stop => {}
    }

    tracing::info!("ending: connections go elsewhere from now on, and open ones may end");
    // It stays ready: on a node without another proxy, connections that still come in would else be dropped without a word.
    let closed = agent.nginx.close_own_port().await;
    if let Outcome::Rejected { message } = closed {
        tracing::warn!(message, "the hub does not learn that this proxy ends before it does");
    }
    sleep(LEAVE).await;
    agent.health.set_ready(false);
    agent.nginx.stop(DRAIN).await;
    if let Some(records) = records {
        // The last sessions end with nginx.
        let _ = timeout(RECORDS, records).await;
    }
    Ok(())
}

/// What the proxy knows and does.
struct Agent {
    nginx: Nginx,
    health: Health,
    metrics: Metrics,
    health_port: u16,
    own: watch::Receiver<Option<Vec<IpNet>>>,
    names: Names,
    reports: watch::Sender<Report>,
    watched: Watched,
    serving: Serving,
    debounce: Debounce,
    /// Something of the last plan could not be carried out.
    rejected: bool,
}

impl Agent {
    /// Follows what changes, for ever. It may be dropped at any time.
    async fn follow(&mut self, events: impl Stream<Item = Event<ConfigMap>>) -> anyhow::Result<()> {
        let mut events = pin!(events);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.health.turn();
            let changed = tokio::select! {
                event = events.next() => self.watched.take(event.context("the watch of ConfigMaps has ended")?),
                () = self.names.changed() => true,
                changed = self.own.changed() => changed.map(|()| true).context("nobody reads this cluster's networks any more")?,
                _ = tick.tick() => self.rejected,
                () = due(&self.debounce) => {
                    let reloaded = self.apply().await;
                    self.debounce.done(Instant::now(), reloaded);
                    false
                }
                status = self.nginx.exited() => bail!("nginx has ended by itself ({})", status?),
            };
            if changed {
                self.debounce.changed(Instant::now());
            }
        }
    }

    /// Makes nginx serve what should be served now, and reports it. Says whether nginx was reloaded.
    async fn apply(&mut self) -> bool {
        let own = self.own.borrow().clone();
        // Without all the rules nothing can be allowed: wait for the settings and the networks.
        let (Some((maps, region)), Some(own)) = (self.watched.known(), own) else { return false };
        self.names.want(plan::upstream_names(maps));
        let (names, serving, health_port) = (self.names.known(), &self.serving, self.health_port);
        let mut plan = Plan::new(&Facts { maps, region, own: &own, names, serving, health_port });
        let unlistenable = plan.take_out_unlistenable(serving, nginx::can_listen);

        let start = Instant::now();
        let limits = Limits { timeouts: region.timeouts, bounds: region.bounds() };
        let files = self.nginx.host().render(limits, plan.served.values());
        let outcome = self.nginx.apply(files).await;
        let (routes, problems, ms) = (plan.served.len(), plan.problems.len(), start.elapsed().as_millis());
        match &outcome {
            Outcome::Unchanged => {}
            Outcome::Reloaded { generation } => {
                self.metrics.reloaded("served");
                tracing::info!(routes, problems, generation, ms, "reloaded")
            }
            Outcome::Rejected { message } => {
                self.metrics.reloaded("rejected");
                tracing::error!(routes, problems, message, ms, "nginx keeps its last good configuration")
            }
        }

        let reloaded = outcome != Outcome::Unchanged;
        let report = match outcome {
            Outcome::Rejected { message } => {
                self.rejected = true;
                plan.report_rejected(&self.serving, &message)
            }
            Outcome::Unchanged | Outcome::Reloaded { .. } => {
                self.rejected = unlistenable > 0;
                if !plan.pending {
                    self.health.set_ready(true);
                }
                let report = plan.report();
                self.serving = plan.served;
                report
            }
        };
        let refused = report.0.values().filter(|applied| applied.problem.is_some()).count();
        self.metrics.serving(&self.serving, refused);
        self.reports.send_if_modified(|last| std::mem::replace(last, report.clone()) != report);
        reloaded
    }
}

/// Waits until changes are to be applied.
async fn due(debounce: &Debounce) {
    match debounce.due() {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
