//! What `status` shows: regions, their proxies and clusters, and what is out of step. Its JSON is described in `docs/status.md`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use jiff::Timestamp;
use serde::Serialize;

use super::bounds::LetIn;
use super::checkup::{self, Outcome, Problem, Subject};
use super::drift::Told;
use super::names::{CONTROLLER, ClusterName, NAMESPACE};
use super::observed::{Inside, Observed, SeenCluster, SeenRegion};
use super::ports::Ports;
use super::region::Entry;
use super::report::{Uptake, uptake};
use super::route::{Mode, Route};

/// All of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The hub.
    pub hub: HubView,
    /// The regions, by name.
    pub regions: Vec<RegionView>,
    /// Clusters joined directly that don't answer: whether they are regions can't be told.
    pub unread: Vec<Unread>,
    /// What is out of step, and what mends it.
    pub out_of_step: Vec<OutOfStep>,
}

/// The hub.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HubView {
    /// By what names and labels in regions tell it: a hash of the UID of its `kube-system`.
    pub id: String,
    /// The gateway's Deployment, if there is one.
    pub gateway: Option<String>,
    /// Whether every gateway pod has the present host aliases.
    pub rolled: bool,
}

/// A region.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegionView {
    /// Its name: that of its proxy cluster.
    pub name: String,
    /// Whether it could be read.
    pub reachable: bool,
    /// How long it took to enter it, with connecting, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
    /// Why it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The nodes the hub enters by.
    pub nodes: Vec<NodeView>,
    /// Its proxies.
    pub proxies: Vec<ProxyView>,
    /// Its node ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_ports: Option<NodePortsView>,
    /// By what the hub enters it, if not by node ports: `loadBalancer` or `hostNetwork`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<&'static str>,
    /// The clusters joined through it.
    pub clusters: Vec<ClusterView>,
    /// The routes of this hub that serve no joined cluster.
    pub spare_routes: Vec<RouteView>,
}

/// A node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The address the hub uses.
    pub ip: IpAddr,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A proxy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyView {
    /// The name of its pod.
    pub name: String,
    /// Whether it is ready.
    pub ready: bool,
}

/// The node ports of a region.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePortsView {
    /// The first that may be given away.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// How many are taken by clusters, of every hub.
    pub used: usize,
    /// The region's own, by which clusters are reached that are told apart by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<u16>,
}

/// A cluster.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// Its name in KubeVela.
    pub name: String,
    /// Where KubeVela connects to.
    pub endpoint: Option<String>,
    /// The host name that leads to the region's nodes.
    pub alias: String,
    /// Where that name leads to on the gateway.
    pub alias_addresses: Vec<IpAddr>,
    /// The node port by which it is reached.
    pub node_port: u16,
    /// By what its region tells it from others: `port`, or `sni`, the TLS name.
    pub mode: Mode,
    /// Its API server, as the region sees it.
    pub upstream: String,
    /// Its route, if the region has one.
    pub route: Option<RouteView>,
    /// Whether it answers through the gateway.
    pub reachable: bool,
    /// How long that took, with connecting, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
    /// Why it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When its credentials expire, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// A route.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// The name of its ConfigMap.
    pub name: String,
    /// The cluster it was made for.
    pub cluster: String,
    /// Where it leads to.
    pub upstream: String,
    /// The port the proxies listen on.
    pub listen: u16,
    /// Where connections may come from, if not from everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ranges: Option<Vec<String>>,
    /// How many each proxy carries at once, if not as many as come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroU16>,
    /// The TLS name that tells its connections from others' there, in mode `sni`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// How many ready proxies serve it.
    pub applied: usize,
    /// How many are ready.
    pub proxies: usize,
    /// Why a proxy does not serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// When a join last reached the cluster over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven_at: Option<Timestamp>,
}

/// A cluster that does not answer and may be a region.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unread {
    /// Its name.
    pub name: String,
    /// Why it can't be read.
    pub why: String,
}

/// Something that is not as recorded.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutOfStep {
    /// `hub`, `region NAME` or `cluster NAME`.
    pub about: String,
    /// What is wrong.
    pub what: String,
    /// What mends it.
    pub fix: String,
}

impl Overview {
    /// Of what was seen; of one cluster or one region only, if one is asked about.
    pub fn of(observed: &Observed, asked: Option<&ClusterName>) -> Self {
        let gateway = observed.gateway.as_ref().ok();
        let stranger = asked.filter(|name| !observed.joined.contains_key(name) && !observed.joining.contains(name));
        let asks = |cluster: &ClusterName, region: &ClusterName| asked.is_none_or(|name| name == cluster || name == region);
        Self {
            hub: HubView {
                id: observed.hub.short(),
                gateway: gateway.map(|gateway| gateway.deployment.clone()),
                rolled: gateway.is_some_and(|gateway| gateway.waiting.is_none()),
            },
            regions: observed.regions.iter().map(|seen| region(observed, seen, &asks)).collect(),
            unread: observed.unread.iter().filter_map(unread).collect(),
            out_of_step: match (out_of_step(observed, &asks), stranger) {
                (none, Some(name)) if none.is_empty() => {
                    vec![entry(&Subject::Cluster(name.clone()), "", checkup::not_joined(name))]
                }
                (found, _) => found,
            },
        }
    }
}

fn unread(seen: &SeenRegion) -> Option<Unread> {
    let why = seen.inside.as_ref().err()?.cause().to_owned();
    Some(Unread { name: seen.name.to_string(), why })
}

type Asks<'a> = dyn Fn(&ClusterName, &ClusterName) -> bool + 'a;

fn region(observed: &Observed, seen: &SeenRegion, asks: &Asks<'_>) -> RegionView {
    let inside = seen.inside.as_ref().ok();
    let mine = observed.clusters.iter().filter(|cluster| cluster.membership.region == seen.name);
    RegionView {
        name: seen.name.to_string(),
        reachable: inside.is_some(),
        millis: inside.map(|inside| inside.millis),
        why: seen.inside.as_ref().err().map(|failure| failure.cause().to_owned()),
        nodes: inside
            .iter()
            .flat_map(|inside| &inside.nodes)
            .map(|node| NodeView { name: node.name.clone(), ip: node.ip, ready: node.ready, why: node.why().map(str::to_owned) })
            .collect(),
        proxies: inside
            .iter()
            .flat_map(|inside| &inside.proxies)
            .map(|(name, ready)| ProxyView { name: name.clone(), ready: *ready })
            .collect(),
        node_ports: inside.map(|inside| {
            let range = inside.settings.node_ports;
            let sni = inside.own_ports().map(|ports| ports.node);
            let clusters = inside.ports.values().map(|ports| ports.node).filter(|node| Some(*node) != sni);
            let used = clusters.filter(|node| (range.first..=range.last).contains(node)).count();
            NodePortsView { first: range.first, last: range.last, used, sni }
        }),
        entry: inside.map(|inside| inside.settings.entry).filter(|entry| *entry != Entry::NodePort).map(Entry::as_str),
        clusters: mine
            .filter(|cluster| asks(&cluster.name, &seen.name))
            .map(|seen| self::cluster(observed, inside, seen))
            .collect(),
        spare_routes: inside
            .iter()
            .flat_map(|inside| spare(observed, &seen.name, inside).map(|route| self::route(inside, route)))
            .filter(|route| route.cluster.parse().is_ok_and(|cluster| asks(&cluster, &seen.name)))
            .collect(),
    }
}

fn cluster(observed: &Observed, inside: Option<&Inside>, seen: &SeenCluster) -> ClusterView {
    let membership = &seen.membership;
    let laid = inside.map(|inside| {
        let (slot, [first, second]) = seen.slot(&observed.hub, inside);
        (inside, if slot as usize == 0 { first } else { second })
    });
    let aliases = observed.gateway.as_ref().map(|gateway| gateway.aliases.leads_to(&membership.alias)).unwrap_or_default();
    ClusterView {
        name: seen.name.to_string(),
        endpoint: seen.endpoint.clone(),
        alias: membership.alias.to_string(),
        alias_addresses: aliases.into_iter().collect(),
        node_port: seen.serving().node_port,
        mode: membership.mode,
        upstream: format!("{}:{}", membership.upstream, membership.upstream_port),
        route: laid.and_then(|(inside, laid)| Some(route(inside, &laid.route?))),
        reachable: seen.answer.is_ok(),
        millis: seen.answer.as_ref().ok().map(|answer| answer.millis),
        why: seen.answer.as_ref().err().map(|failure| failure.cause().to_owned()),
        expires: membership.expires,
    }
}

fn route(inside: &Inside, route: &Route) -> RouteView {
    let ready = inside.ready_proxies();
    let problem = match uptake(&route.name(), &route.mark(), &ready, &inside.reports) {
        Uptake::Failed { problem, .. } => Some(problem.message),
        _ => None,
    };
    let LetIn { sources, connections } = inside.settings.bounds().both(&route.bounds, route.mode());
    RouteView {
        name: route.name(),
        cluster: route.cluster.to_string(),
        upstream: format!("{}:{}", route.host, route.port),
        listen: route.listen,
        source_ranges: sources.map(|ranges| ranges.iter().map(ToString::to_string).collect()),
        max_connections: connections,
        server_name: route.server_name.as_ref().map(ToString::to_string),
        applied: inside.served(route),
        proxies: ready.len(),
        problem,
        proven_at: route.proven_at,
    }
}

/// The routes in a region that serve no cluster joined through it.
fn spare<'a>(observed: &'a Observed, region: &'a ClusterName, inside: &'a Inside) -> impl Iterator<Item = &'a Route> {
    inside.routes.iter().filter(move |route| {
        let joined = observed.clusters.iter().find(|cluster| cluster.name == route.cluster && cluster.membership.region == *region);
        joined.is_none_or(|cluster| cluster.slot(&observed.hub, inside).0 != route.slot)
    })
}

/// The ports in a region that are called after a cluster of this hub which has no route by them. Of cut names nobody can tell whose they are.
fn routeless<'a>(observed: &'a Observed, inside: &'a Inside) -> impl Iterator<Item = (ClusterName, Ports)> + 'a {
    let routed: BTreeSet<String> = inside.routes.iter().map(Route::port_name).collect();
    inside.ports.iter().filter(move |(name, _)| !routed.contains(*name)).filter_map(|(name, ports)| {
        let cluster: ClusterName = name.strip_suffix(&observed.hub.short())?.strip_suffix('-')?.parse().ok()?;
        Some((cluster, *ports))
    })
}

fn out_of_step(observed: &Observed, asks: &Asks<'_>) -> Vec<OutOfStep> {
    let clusters = observed.clusters.iter().filter(|cluster| asks(&cluster.name, &cluster.membership.region));
    let checks = checkup::hub(observed)
        .into_iter()
        .chain(observed.regions.iter().flat_map(checkup::region))
        .chain(clusters.flat_map(|cluster| checkup::cluster(observed, cluster)));
    let broken = checks.filter_map(|check| match check.outcome {
        Outcome::Failed(problem) => Some(entry(&check.subject, &format!("{}: ", check.link), problem)),
        Outcome::Ok(_) | Outcome::Skipped(_) => None,
    });
    broken.chain(left_over(observed, asks)).chain(controller(observed, asks)).collect()
}

/// What the controller can't mend; or that there should be one, and none runs.
fn controller(observed: &Observed, asks: &Asks<'_>) -> Vec<OutOfStep> {
    let Some(controller) = &observed.controller else { return vec![] };
    if !controller.ready {
        let problem = Problem::new(
            "the addon's controller does not run: nothing is mended",
            format!("kubectl -n {NAMESPACE} describe deployment {CONTROLLER}"),
        );
        return vec![entry(&Subject::Hub, "controller: ", problem)];
    }
    let asked = |told: &&Told| match told.about.split_once(' ').and_then(|(_, name)| name.parse::<ClusterName>().ok()) {
        Some(name) => match observed.joined.get(&name) {
            Some(Some(region)) => asks(&name, region),
            _ => asks(&name, &name),
        },
        None => true,
    };
    let told = |told: &Told| OutOfStep {
        about: told.about.clone(),
        what: format!("controller: {} (since {})", told.what, told.since),
        fix: told.fix.clone(),
    };
    controller.problems.iter().filter(asked).map(told).collect()
}

fn entry(subject: &Subject, link: &str, Problem { cause, fix }: Problem) -> OutOfStep {
    OutOfStep { about: subject.to_string(), what: format!("{link}{cause}"), fix }
}

/// What is there for clusters that need it no more. What a join does just now is no news.
fn left_over(observed: &Observed, asks: &Asks<'_>) -> Vec<OutOfStep> {
    let mut found = Vec::new();
    let mut tell = |cluster: &ClusterName, cause: String, fix: String| {
        found.push(entry(&Subject::Cluster(cluster.clone()), "", Problem { cause, fix }));
    };
    let leave = |cluster: &ClusterName| format!("xregion leave {cluster}");
    let busy = |cluster: &ClusterName| observed.joining.contains(cluster);
    let joined = |cluster: &ClusterName| observed.joined.contains_key(cluster);

    for (cluster, region) in observed.leftovers.iter().filter(|(cluster, region)| asks(cluster, region) && !busy(cluster)) {
        let next = if joined(cluster) { "its next join removes that".to_owned() } else { leave(cluster) };
        tell(cluster, format!("it left region {region}, which may still have its route and its port"), next);
    }
    for seen in &observed.regions {
        let Ok(inside) = &seen.inside else { continue };
        let recorded = |cluster: &ClusterName| observed.leftovers.contains(&(cluster.clone(), seen.name.clone()));
        for route in spare(observed, &seen.name, inside) {
            let cluster = &route.cluster;
            if !asks(cluster, &seen.name) || busy(cluster) || recorded(cluster) {
                continue;
            }
            let leads = format!("region {} has a route of it to {}:{}", seen.name, route.host, route.port);
            let remove = || format!("kubectl -n {NAMESPACE} delete configmap {}, in cluster {}", route.name(), seen.name);
            match observed.joined.get(cluster) {
                None => {
                    tell(cluster, format!("{leads}, and it is not joined"), format!("{} --region {}", leave(cluster), seen.name))
                }
                Some(Some(region)) if *region == seen.name => {
                    tell(cluster, format!("{leads} that serves nobody"), checkup::join_again(cluster, region));
                }
                // Joined or moved by a run that died before it wrote its record: the route may carry every request.
                Some(_) if observed.is_aliased(cluster, &seen.name) => tell(
                    cluster,
                    format!("{leads}, and the record of its join is missing"),
                    checkup::join_again(cluster, &seen.name),
                ),
                Some(Some(region)) => tell(cluster, format!("{leads}, and it is joined through region {region}"), remove()),
                Some(None) => tell(cluster, format!("{leads}, and it is joined directly"), remove()),
            }
        }
        // What a join leaves that is killed between the two.
        for (cluster, ports) in routeless(observed, inside) {
            if asks(&cluster, &seen.name) && !busy(&cluster) && !recorded(&cluster) && !joined(&cluster) {
                let has = format!("region {} has node port {} for it and no route, and it is not joined", seen.name, ports.node);
                tell(&cluster, has, format!("{} --region {}", leave(&cluster), seen.name));
            }
        }
    }
    for (host, recorded) in observed.gateway.iter().flat_map(|gateway| &gateway.aliases.record.0) {
        let gone = recorded.clusters.iter().filter_map(|name| name.parse::<ClusterName>().ok());
        for cluster in gone.filter(|cluster| !joined(cluster) && !busy(cluster)) {
            if recorded.region.parse().is_ok_and(|region| asks(&cluster, &region)) {
                tell(&cluster, format!("the gateway has host alias {host} for it, and it is not joined"), leave(&cluster));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
