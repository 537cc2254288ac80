//! The story of a leave: detach, alias, port, route. What is gone already is fine. What can't be reached now stays recorded on the
//! hub, and the next leave of the cluster finishes it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::clusters::JoinedCluster;
use crate::hub::gateway::Gateway;
use crate::hub::leftovers::Leftover;
use crate::hub::progress::{Progress, Stage};
use crate::join::names;
use crate::model::aliases::Claim;
use crate::model::left::Left;
use crate::model::names::{ClusterName, NAMESPACE, Slot};
use crate::model::plan::{Change, Plan};
use crate::model::region::SERVICE;
use crate::region::{Region, not_joined, release_ports};
use crate::rolling;
use crate::vela;

/// How many Applications a refusal names.
const NAMED: usize = 5;

/// What is asked for.
pub struct Order {
    /// The cluster's name on the hub.
    pub cluster: ClusterName,
    /// A region to look in, beside those that the hub's records name.
    pub region: Option<ClusterName>,
    /// The gateway's Deployment, if it can't be found by itself.
    pub gateway: Option<String>,
    /// Whether it leaves although Applications have resources there.
    pub force: bool,
    /// Whether connections to it that are open through the hub are cut also where another cluster keeps its host name.
    pub cut: bool,
    /// The `vela` CLI.
    pub vela: PathBuf,
}

/// Lets a cluster leave. Whatever ends this, the next one goes on from there.
pub async fn leave(hub: &Hub, order: &Order, progress: &Progress) -> Result<Left> {
    let name = &order.cluster;
    let tell = progress.of(name, None);
    tell.stage(Stage::Reading, &format!("looking for what {name} has on the hub and in its regions")).await;
    let traces = Traces::look(hub, order).await?;
    if traces.cluster.is_some() && !order.force {
        refuse_if_used(hub, name).await?;
    }
    // Before anything is taken away: with the cluster's Secret goes the record of its region.
    for leftover in &traces.leftovers {
        hub.put_leftover(leftover).await?;
    }
    if traces.cluster.is_some() {
        tell.stage(Stage::Detaching, &format!("detaching {name}")).await;
        vela::cluster_detach(&order.vela, name).await?;
    }

    let hosts: Vec<String> = traces.claims.iter().map(|claim| claim.host.to_string()).collect();
    if !hosts.is_empty() {
        tell.stage(Stage::Rolling, &format!("taking {} off the gateway", hosts.join(", "))).await;
    }
    let change = rolling::Change { leaving: [name.clone()].into(), ..rolling::Change::default() };
    let unaliased = rolling::roll(hub, &traces.gateway, progress, change).await?.changed;

    let mut left = Left {
        cluster: name.clone(),
        detached: traces.cluster.is_some(),
        hosts,
        regions: vec![],
        kept: vec![],
        silent: traces.silent,
    };
    if !unaliased {
        left.hosts.clear();
    }
    for leftover in &traces.leftovers {
        tell.stage(Stage::Releasing, &format!("removing the route and port of {name} in region {}", leftover.region)).await;
        match clear(hub, leftover).await {
            Ok(true) => left.regions.push(leftover.region.clone()),
            Ok(false) => {}
            Err(failure) => {
                tracing::warn!(%failure, "the route stays");
                left.kept.push((leftover.region.clone(), failure.cause().to_owned()));
            }
        }
    }
    Ok(left)
}

/// Says what a leave would do.
pub async fn plan(hub: &Hub, order: &Order, progress: &Progress) -> Result<Plan> {
    let name = &order.cluster;
    let tell = progress.of(name, None);
    tell.stage(Stage::Reading, &format!("looking for what {name} has on the hub and in its regions")).await;
    let traces = Traces::look(hub, order).await?;
    let mut plan = Plan::default();
    let mut remove = |place: &str, object: String| plan.add(Change::between(name.as_str(), place, object, json!({}), Value::Null));
    if traces.cluster.is_some() {
        if !order.force {
            refuse_if_used(hub, name).await?;
        }
        remove("hub", format!("Secret {NAMESPACE}/{name} (vela cluster detach)"));
    }
    for leftover in &traces.leftovers {
        let place = format!("region {}", leftover.region);
        let region = Region::enter(hub, &leftover.region).await?;
        for (slot, laid) in Slot::ALL.into_iter().zip(region.laid(&hub.id, name).await?) {
            if laid.ports.is_some() {
                remove(&place, format!("Service {NAMESPACE}/{SERVICE}, port {}", hub.id.port_name(name, slot)));
            }
            if laid.route.is_some() {
                remove(&place, format!("ConfigMap {NAMESPACE}/{}", hub.id.route_name(name, slot)));
            }
        }
    }
    let gateway = traces.gateway.rehearsing();
    let now = gateway.aliases().await?;
    let then = now.without_cluster(name);
    let object = format!("Deployment {}, hostAliases", gateway.name());
    let rolls = "rolls the gateway, without a failed request";
    if let Some(change) = Change::between(name.as_str(), "hub", object.clone(), names(&now), names(&then)) {
        gateway.change(|_| Ok(then.clone())).await?;
        plan.changes.push(change.with_note(rolls));
    } else if traces.cut && now != then {
        gateway.change(|_| Ok(then.clone())).await?;
        let cut = Change::between(name.as_str(), "hub", object, json!({}), json!({"open connections": "cut"}));
        plan.changes.extend(cut.map(|change| change.with_note(rolls)));
    }
    Ok(plan)
}

/// Removes a cluster's port and route from a region and forgets the record of it. Returns whether there was anything.
///
/// # Errors
/// The region can't be reached; the record stays.
pub async fn clear(hub: &Hub, leftover: &Leftover) -> Result<bool> {
    let mut found = false;
    match Region::enter(hub, &leftover.region).await {
        Ok(region) => {
            for slot in Slot::ALL {
                // A Service stays while a route by name is there.
                found |= region.remove_route(&hub.id.route_name(&leftover.cluster, slot)).await?;
                found |= release_ports(hub, &region, &hub.id.port_name(&leftover.cluster, slot)).await?;
            }
        }
        // Nobody will reach it through this hub again, and without proxies no route does anything.
        Err(failure) if matches!(failure.kind, Kind::RegionNotJoined | Kind::NoProxy) => {
            tracing::warn!(%failure, "what the cluster had in that region is given up");
            // Proxies may go on without the hub, and names of others lead to them.
            let joined = hub.joined_clusters().await?;
            if !joined.iter().filter_map(JoinedCluster::membership).any(|membership| membership.region == leftover.region) {
                hub.close_all(&leftover.region).await?;
            }
        }
        Err(failure) => return Err(failure),
    }
    hub.remove_leftover(leftover).await?;
    Ok(found)
}

async fn refuse_if_used(hub: &Hub, name: &ClusterName) -> Result<()> {
    let users = hub.usage(name).await?;
    if users.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> = users.iter().take(NAMED).map(ToString::to_string).collect();
    if users.len() > NAMED {
        named.push(format!("{} more", users.len() - NAMED));
    }
    Err(Failure::new(
        Kind::InUse,
        format!("Applications still have resources in cluster {name}: {}", named.join(", ")),
        "delete them or place them elsewhere first; force (--force) leaves their resources running there and lets KubeVela forget them",
    ))
}

/// What is known of a cluster, wherever it is recorded.
struct Traces {
    cluster: Option<JoinedCluster>,
    gateway: Gateway,
    claims: Vec<Claim>,
    leftovers: Vec<Leftover>,
    /// The regions that were asked for traces and did not answer.
    silent: Vec<ClusterName>,
    cut: bool,
}

impl Traces {
    async fn look(hub: &Hub, order: &Order) -> Result<Self> {
        let name = &order.cluster;
        let cluster = hub.cluster(name).await?;
        let gateway = hub.gateway(order.gateway.as_deref()).await?;
        let claims = gateway.aliases().await?.claims_of(name);
        let mut regions: BTreeSet<ClusterName> = BTreeSet::new();
        regions.extend(cluster.as_ref().and_then(JoinedCluster::membership).map(|membership| membership.region));
        regions.extend(claims.iter().filter_map(|claim| claim.region.parse().ok()));
        let recorded: Vec<_> = hub.leftovers().await?.into_iter().filter(|leftover| leftover.cluster == *name).collect();
        // An earlier leave that was to cut may have died before it did.
        let cut = order.cut || recorded.iter().any(|leftover| leftover.cut);
        regions.extend(recorded.into_iter().map(|leftover| leftover.region));
        // A region that is only asked for says nothing about how the cluster was joined.
        if regions.is_empty() && cluster.is_some() {
            return Err(Failure::new(
                Kind::NotMember,
                format!("cluster {name} was joined directly, not through a region"),
                format!("vela cluster detach {name}"),
            ));
        }
        if let Some(region) = order.region.as_ref().filter(|region| !regions.contains(*region)) {
            if hub.cluster(region).await?.is_none() {
                return Err(not_joined(region));
            }
            regions.insert(region.clone());
        }
        let mut silent = vec![];
        if regions.is_empty() {
            // A join that was killed before it joined leaves a route and no record.
            (regions, silent) = routed_in(hub, name).await?;
        }
        let leftovers = regions.into_iter().map(|region| Leftover { cluster: name.clone(), region, cut }).collect();
        Ok(Self { cluster, gateway: gateway.cutting(cut), claims, leftovers, silent, cut })
    }
}

/// The regions that have a route or port of a cluster, and those that did not answer.
async fn routed_in(hub: &Hub, cluster: &ClusterName) -> Result<(BTreeSet<ClusterName>, Vec<ClusterName>)> {
    // Proxy clusters are joined directly.
    let joined: Vec<_> = hub.joined_clusters().await?.into_iter().filter(|cluster| cluster.membership().is_none()).collect();
    let asked = joined.iter().filter_map(|cluster| cluster.name().parse::<ClusterName>().ok()).map(|name| async move {
        let found = async {
            let laid = Region::enter(hub, &name).await?.laid(&hub.id, cluster).await?;
            Ok::<_, Failure>(laid.iter().any(|laid| laid.route.is_some() || laid.ports.is_some()))
        };
        let found = found.await;
        (name, found)
    });
    let (mut found, mut silent) = (BTreeSet::new(), vec![]);
    for (name, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(true) => drop(found.insert(name)),
            // Most clusters are no region.
            Ok(false) => {}
            Err(failure) if matches!(failure.kind, Kind::NoProxy | Kind::RegionForbidden) => {}
            Err(failure) => {
                tracing::warn!(region = %name, %failure, "it was not searched");
                silent.push(name);
            }
        }
    }
    Ok((found, silent))
}

#[cfg(test)]
mod tests;
