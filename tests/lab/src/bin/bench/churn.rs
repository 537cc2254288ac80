//! What one route's requests and watches notice while others come, change and go: nothing, or the figures say so.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use xregion_lab::Lab;
use xregion_lab::load::{Load, Outcome};
use xregion_lab::progress::Progress;
use xregion_lab::site::NAMESPACE;
use xregion_lab::topology::hub_address;

use crate::client::{Connection, Door, PATIENCE, Server};
use crate::report::add_row;
use crate::route_live::{self, Route, SERVICE};
use crate::{batch, joins};

/// Changes, and how far apart: all within a minute.
const CHANGES: u16 = 50;
const CHANGE_EVERY: Duration = Duration::from_millis(1200);
/// A round of changes: two routes come, each is changed, the first one goes.
const ROUND: u16 = 5;
const NODE: &str = "proxy-east-1";
/// Requests straight through the route, beside those through the hub.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Watches straight through the route, each on a connection of its own, and through the hub.
const WATCHES: usize = 20;
const WATCHES_THROUGH_HUB: usize = 5;
/// What is watched.
const WATCHED: &str = "bench-churn";
/// The port of the hub's API server.
const HUB_PORT: u16 = 6443;
/// How many failures are told.
const TOLD: usize = 8;

/// A change of a route that nobody uses: `number` counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add(u16),
    Port(u16),
    Host(u16),
    Remove(u16),
}

impl Change {
    fn of(turn: u16) -> Self {
        let (first, second) = (turn / ROUND * 2, turn / ROUND * 2 + 1);
        match turn % ROUND {
            0 => Self::Add(first),
            1 => Self::Add(second),
            2 => Self::Port(first),
            3 => Self::Host(second),
            _ => Self::Remove(first),
        }
    }
}

/// What was noticed.
pub struct Measured {
    /// Seconds from the first to the last.
    seconds: f64,
    /// Reloads of nginx, in the proxy with most of them.
    reloads: usize,
    /// Requests through the hub.
    through_hub: Outcome,
    /// Requests straight through the route.
    requests: usize,
    failures: Vec<String>,
    /// Why watches were lost.
    lost: Vec<String>,
}

/// Measures, with a cluster of region east that is not joined.
pub fn measure(lab: &Lab, progress: &Progress, cluster: &str) -> Result<Measured> {
    joins::by_application(lab, cluster)?;
    let (hub, hub_file) = (route_live::hub_uid(lab)?, lab.kubeconfig("hub")?);
    let host = |name: &str| lab.cluster(name)?.host().with_context(|| format!("{name} has no host name"));
    let others = Others { hub, host: host(cluster)?, other_host: host("business-a")? };
    let direct = (lab.user_kubeconfig(cluster)?, Door::of_route(lab, NODE, cluster)?, String::new());
    let through_hub = (
        std::fs::read_to_string(&hub_file)?,
        Door::Tcp(SocketAddr::new(hub_address().into(), HUB_PORT)),
        format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy"),
    );
    lab.apply(cluster, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": WATCHED, "namespace": "default"}}))?;
    let version = lab.kubectl(cluster, &["get", "configmap", WATCHED, "-o", "jsonpath={.metadata.resourceVersion}"])?;

    progress.step(&format!("  {CHANGES} changes of other routes within a minute"));
    let (load, since) = (Load::start(lab, &[cluster])?, Timestamp::now());
    let (counts, counted) = mpsc::unbounded_channel();
    let noticed = std::thread::scope(|scope| {
        let writer = scope.spawn(|| lab.with_client(cluster, |client| write_counts(client, counted)));
        let noticed = lab.in_namespace("hub", || async move {
            let mut watches = JoinSet::new();
            for ((kubeconfig, door, prefix), count) in [(&direct, WATCHES), (&through_hub, WATCHES_THROUGH_HUB)] {
                let server = Server::of(kubeconfig).await?;
                for _ in 0..count {
                    let connection = server.connect(door).await?;
                    watches.spawn(watched(connection, watch_path(prefix, &version)));
                }
            }
            let (stop, stopped) = watch::channel(());
            let asking = tokio::spawn(ask(Server::of(&direct.0).await?, direct.1.clone(), stopped));
            let seconds = others.change(route_live::region_client(&hub_file).await?, &counts).await?;
            drop((stop, counts));
            let (requests, failures) = asking.await?;
            Ok(Noticed { seconds, requests, failures, lost: lost(watches).await })
        });
        let written = writer.join().unwrap_or_else(|_| Err(anyhow!("the thread that changes what is watched panicked")));
        let noticed = noticed?;
        written?;
        anyhow::Ok(noticed)
    })?;
    let Noticed { seconds, requests, failures, lost } = noticed;
    let (reloads, through_hub) = (batch::reloads(lab, since)?, load.stop()?);
    let measured = Measured { seconds, reloads, through_hub, requests, failures, lost };
    for failure in measured.failures.iter().chain(&measured.lost).take(TOLD) {
        progress.step(&format!("  {failure}"));
    }
    progress.step(&format!("  through the hub: {}", measured.through_hub));
    Ok(measured)
}

/// What was noticed in the hub's place.
struct Noticed {
    seconds: f64,
    requests: usize,
    failures: Vec<String>,
    lost: Vec<String>,
}

/// The routes that change: as many as anybody's, and nobody's.
struct Others {
    hub: String,
    host: String,
    other_host: String,
}

impl Others {
    /// Makes every change at its time, and counts each; gives the seconds they took.
    async fn change(&self, region: Client, counts: &mpsc::UnboundedSender<u16>) -> Result<f64> {
        let maps: Api<ConfigMap> = Api::namespaced(region.clone(), NAMESPACE);
        let services: Api<Service> = Api::namespaced(region, NAMESPACE);
        let mut ticks = interval(CHANGE_EVERY);
        let started = Instant::now();
        for turn in 0..CHANGES {
            ticks.tick().await;
            let change = Change::of(turn);
            self.carry_out(change, &maps, &services).await.with_context(|| format!("{change:?}"))?;
            counts.send(turn + 1)?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// As joins and leaves do: the port first, and last.
    async fn carry_out(&self, change: Change, maps: &Api<ConfigMap>, services: &Api<Service>) -> Result<()> {
        let route = |number| Route::new(number, &self.hub, &self.host);
        let merge = |data: Value| Patch::Merge(json!({"data": data}));
        let params = PatchParams::default();
        match change {
            Change::Add(number) => {
                let route = route(number);
                edit_ports(services, |ports| ports.push(port_of(&route))).await?;
                maps.create(&PostParams::default(), &route.map).await?;
            }
            Change::Port(number) => {
                maps.patch(&route(number).name, &params, &merge(json!({"port": "6443"}))).await?;
            }
            Change::Host(number) => {
                maps.patch(&route(number).name, &params, &merge(json!({"host": self.other_host}))).await?;
            }
            Change::Remove(number) => {
                let route = route(number);
                maps.delete(&route.name, &DeleteParams::default()).await?;
                edit_ports(services, |ports| ports.retain(|port| port.name.as_ref() != Some(&route.port_name))).await?;
            }
        }
        Ok(())
    }
}

fn port_of(route: &Route) -> ServicePort {
    ServicePort {
        name: Some(route.port_name.clone()),
        port: route.listen.into(),
        target_port: Some(IntOrString::Int(route.listen.into())),
        node_port: Some(route.node_port.into()),
        ..ServicePort::default()
    }
}

/// Under the Service's `resourceVersion`: nobody else writes it meanwhile.
async fn edit_ports(services: &Api<Service>, edit: impl FnOnce(&mut Vec<ServicePort>)) -> Result<()> {
    let mut service = services.get(SERVICE).await?;
    edit(service.spec.get_or_insert_default().ports.get_or_insert_default());
    services.replace(SERVICE, &PostParams::default(), &service).await?;
    Ok(())
}

/// Writes each count into what is watched.
async fn write_counts(client: Client, mut counts: mpsc::UnboundedReceiver<u16>) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    while let Some(count) = counts.recv().await {
        let patch = Patch::Merge(json!({"data": {"count": count.to_string()}}));
        maps.patch(WATCHED, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// Requests straight through the route until `stopped`, in turn on a connection of their own and on one that is kept. That one is opened
/// again only after it has failed.
async fn ask(server: Server, door: Door, mut stopped: watch::Receiver<()>) -> (usize, Vec<String>) {
    let mut ticks = interval(ASK_EVERY);
    let (mut requests, mut failures) = (0, Vec::new());
    let mut kept = None;
    loop {
        tokio::select! {
            _ = stopped.changed() => return (requests, failures),
            _ = ticks.tick() => {}
        }
        let keep = requests % 2 == 1;
        requests += 1;
        let asked = async {
            let mut connection = match if keep { kept.take() } else { None } {
                Some(connection) => connection,
                None => server.connect(&door).await?,
            };
            connection.version().await?;
            anyhow::Ok(connection)
        };
        match asked.await {
            Ok(connection) if keep => kept = Some(connection),
            Ok(_) => {}
            Err(error) => failures.push(format!("{} connection: {error:#}", if keep { "kept" } else { "fresh" })),
        }
    }
}

fn watch_path(prefix: &str, version: &str) -> String {
    format!(
        "{prefix}/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3D{WATCHED}&resourceVersion={version}\
         &timeoutSeconds=600"
    )
}

/// Watches until the last count has come.
///
/// # Errors
/// The watch has ended before, or a count has not come.
async fn watched(mut connection: Connection, path: String) -> Result<()> {
    let mut body = connection.get(&path).await?.into_body();
    let (mut text, mut last) = (Vec::new(), 0);
    while last < CHANGES {
        let frame = body.frame().await.with_context(|| format!("it has ended after {last} of {CHANGES} changes"))?;
        text.extend_from_slice(frame.with_context(|| format!("after {last} changes"))?.data_ref().map_or(&[][..], AsRef::as_ref));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let event: Value = serde_json::from_slice(&text.drain(..=end).collect::<Vec<_>>())?;
            let count: u16 = event["object"]["data"]["count"].as_str().context("an event that counts nothing")?.parse()?;
            ensure!(count == last + 1, "change {count} has come after {last}");
            last = count;
        }
    }
    Ok(())
}

/// Why watches were lost, once all have ended or had time for it.
async fn lost(mut watches: JoinSet<Result<()>>) -> Vec<String> {
    let mut lost = Vec::new();
    let all = async {
        while let Some(ended) = watches.join_next().await {
            if let Err(error) = ended.map_err(anyhow::Error::from).flatten() {
                lost.push(format!("watch: {error:#}"));
            }
        }
    };
    let in_time = timeout(PATIENCE, all).await.is_ok();
    if !in_time {
        lost.extend((0..watches.len()).map(|_| "watch: the last changes have not come".to_owned()));
    }
    lost
}

impl Measured {
    fn failed(&self) -> usize {
        self.through_hub.failed + self.failures.len()
    }

    fn requests(&self) -> usize {
        self.through_hub.requests + self.requests
    }

    fn met(&self) -> bool {
        self.failed() == 0 && self.lost.is_empty()
    }

    /// Everything.
    pub fn to_json(&self) -> Value {
        let failures = self.through_hub.failures.iter().map(ToString::to_string).chain(self.failures.iter().cloned());
        json!({
            "changes": CHANGES,
            "seconds": self.seconds,
            "nginx_reloads": self.reloads,
            "requests": self.requests(),
            "failed_requests": self.failed(),
            "failures": failures.collect::<Vec<_>>(),
            "watches": WATCHES + WATCHES_THROUGH_HUB,
            "watches_lost": self.lost.len(),
            "lost": self.lost,
            "goal": {"failed_at_most": 0, "watches_lost_at_most": 0, "met": self.met()},
        })
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        let mut row = |what: &str, value: String, goal: &str, met: Option<bool>| add_row(&mut table, what, &value, "", goal, met);
        let failed = format!("{} of {}", self.failed(), self.requests());
        row("churn, failed requests", failed, "0, 0", Some(self.met()));
        row("  watches lost", format!("{} of {}", self.lost.len(), WATCHES + WATCHES_THROUGH_HUB), "", None);
        row("  changes of other routes", format!("{CHANGES} in {:.0} s", self.seconds), "", None);
        row("  nginx reloads", self.reloads.to_string(), "", None);
        table
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_route_is_changed_and_removed_only_while_it_is_there() {
        let mut there = BTreeSet::new();
        for turn in 0..CHANGES {
            match Change::of(turn) {
                Change::Add(number) => assert!(there.insert(number)),
                Change::Port(number) | Change::Host(number) => assert!(there.contains(&number)),
                Change::Remove(number) => assert!(there.remove(&number)),
            }
        }
        assert_eq!(there.len(), 10);
    }

    #[test]
    fn one_lost_watch_or_failed_request_misses_the_goal() {
        let measured = |failures: &[&str], lost: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            let (failures, lost) = (owned(failures), owned(lost));
            Measured { seconds: 59.0, reloads: 20, through_hub: Outcome::default(), requests: 9, failures, lost }
        };
        assert_eq!(measured(&[], &[]).to_json()["goal"]["met"], true);
        let json = measured(&["refused"], &[]).to_json();
        assert_eq!((json["goal"]["met"].as_bool(), json["failed_requests"].as_u64()), (Some(false), Some(1)));
        assert!(measured(&[], &["ended"]).to_table().lines().next().unwrap().ends_with("MISSED"));
        assert_eq!(measured(&[], &["ended"]).to_json()["watches_lost"], 1);
    }
}
