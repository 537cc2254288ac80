//! Looking, without changing anything: what there is on the hub, in its regions and of the clusters joined through them. The hub's API
//! is all it needs: the rest is asked through its cluster-gateway, everybody at once and nobody for long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use futures::try_join;
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::clusters::JoinedCluster;
use crate::hub::progress::Progress;
use crate::job;
use crate::model::membership::Membership;
use crate::model::names::ClusterName;
use crate::model::observed::{Answer, Inside, Observed, SeenCluster, SeenGateway, SeenRegion};
use crate::model::recorded::Recorded;
use crate::model::traffic::RegionTraffic;
use crate::region::Region;

/// How long a region may take to tell all that is asked of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything, or at one cluster and its region, or at one region.
///
/// # Errors
/// The hub can't be read. What can't be read of a region or cluster is in the observation.
pub async fn look(hub: &Hub, gateway: Option<&str>, asked: Option<&ClusterName>) -> Result<Observed> {
    let progress = Progress::new(hub, None);
    let (secrets, leftovers, joining, gateway) =
        try_join!(hub.joined_clusters(), hub.leftovers(), progress.others(), async { Ok(look_at_gateway(hub, gateway).await) })?;
    let joined = secrets.iter().filter_map(|cluster| {
        // What has a name that a ClusterName is not is not xregion's.
        Some((cluster.name().parse().ok()?, cluster.membership().map(|membership| membership.region)))
    });
    let joined: BTreeMap<ClusterName, Option<ClusterName>> = joined.collect();
    let leftovers = leftovers.into_iter().map(|leftover| (leftover.cluster, leftover.region)).collect();
    let aliases = gateway.as_ref().ok().map(|gateway| &gateway.aliases.record);
    let recorded = Recorded::new(&joined, aliases, &leftovers);
    let members = secrets.iter().filter_map(|cluster| Some((cluster.name().parse().ok()?, cluster.membership()?, cluster)));
    let asks = |name: &ClusterName, region: &ClusterName| asked.is_none_or(|asked| asked == name || asked == region);
    let members = members.filter(|(name, membership, _)| asks(name, &membership.region));

    let (addon, controller, services, seen, clusters) = futures::join!(
        job::enabled(hub),
        hub.controller(),
        hub.entries_led_to(),
        join_all(recorded.to_read(asked).into_iter().map(|name| look_into(hub, name))),
        join_all(members.map(|(name, membership, cluster)| look_at_cluster(hub, name, membership, cluster))),
    );
    let known = recorded.regions();
    let (regions, others): (Vec<_>, Vec<_>) = seen.into_iter().partition(|seen| seen.inside.is_ok() || known.contains(&seen.name));
    Ok(Observed {
        now: Timestamp::now(),
        hub: hub.id.clone(),
        addon,
        regions,
        clusters,
        // Those that answer and have no proxy are no regions.
        unread: others.into_iter().filter(|seen| seen.inside.as_ref().is_err_and(|why| why.kind != Kind::NoProxy)).collect(),
        joining: joining.clusters.into_keys().collect(),
        gateway,
        leftovers,
        joined,
        // Whoever may not read it misses only what it says.
        controller: controller.unwrap_or_default(),
        services,
    })
}

/// What the regions that a hub has clusters in have carried for it, or one of them.
///
/// # Errors
/// The hub can't be read. A region that can't be is in the answer, with the reason.
pub async fn traffic(hub: &Hub, asked: Option<&ClusterName>) -> Result<Vec<RegionTraffic>> {
    let clusters = hub.joined_clusters().await?;
    let mut regions: BTreeSet<ClusterName> =
        clusters.iter().filter_map(|cluster| cluster.membership()).map(|membership| membership.region).collect();
    if let Some(asked) = asked {
        regions = [asked.clone()].into();
    }
    let told = regions.into_iter().map(|name| async move {
        let read = async { Region::enter(hub, &name).await?.traffic().await };
        match timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(silent(&name))) {
            Ok(proxies) => RegionTraffic::of(name, &hub.id, &proxies),
            Err(failure) => RegionTraffic::unread(name, failure.cause()),
        }
    });
    Ok(join_all(told).await)
}

async fn look_at_gateway(hub: &Hub, name: Option<&str>) -> Result<SeenGateway> {
    let gateway = hub.gateway(name).await?;
    let (aliases, waiting) = try_join!(gateway.aliases(), gateway.waits_for())?;
    Ok(SeenGateway { deployment: gateway.name().to_owned(), aliases, waiting })
}

/// What is in a region, or why that can't be told in time.
pub async fn look_into(hub: &Hub, name: ClusterName) -> SeenRegion {
    let inside = timeout(PATIENCE, read(hub, &name)).await.unwrap_or_else(|_| Err(silent(&name)));
    SeenRegion { name, inside }
}

fn silent(name: &ClusterName) -> Failure {
    Failure::new(
        Kind::RegionUnreachable,
        format!("region {name} has not answered within {} s", PATIENCE.as_secs()),
        format!("check the way from the hub to the proxy cluster: vela cluster probe {name}"),
    )
}

async fn read(hub: &Hub, name: &ClusterName) -> Result<Inside> {
    let start = Instant::now();
    let region = Region::enter(hub, name).await?;
    let millis = millis(start);
    let (nodes, proxies, reports, routes, (ports, service_as_set)) =
        try_join!(region.nodes(), region.proxies(), region.reports(), region.routes(&hub.id), region.all_ports())?;
    Ok(Inside { millis, settings: region.settings, nodes, proxies, reports, routes, ports, service_as_set })
}

async fn look_at_cluster(hub: &Hub, name: ClusterName, membership: Membership, cluster: &JoinedCluster) -> SeenCluster {
    let start = Instant::now();
    let identity = hub.identity_through_gateway(&name).await;
    SeenCluster {
        name,
        endpoint: cluster.endpoint().map(str::to_owned),
        membership,
        answer: identity.map(|identity| Answer { identity, millis: millis(start) }),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
