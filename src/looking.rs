//! Looking, without changing anything: what there is on the hub, in its regions and of the clusters joined through them. The hub's API
//! is all it needs: the rest is asked through its cluster-gateway, everybody at once and nobody for long.

use std::collections::BTreeSet;
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
use crate::region::Region;

/// How long a region may take to tell all that is asked of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything, or at one cluster and its region, or at one region.
///
/// # Errors
/// The hub can't be read. What can't be read of a region or cluster is in the observation.
pub async fn look(hub: &Hub, gateway: Option<&str>, asked: Option<&ClusterName>) -> Result<Observed> {
    let progress = Progress::new(hub, None);
    let (joined, leftovers, joining, gateway) =
        try_join!(hub.joined_clusters(), hub.leftovers(), progress.others(), async { Ok(look_at_gateway(hub, gateway).await) })?;
    let recorded = Recorded::read(&joined, &gateway, leftovers.iter().map(|leftover| &leftover.region));
    let directly = recorded.directly.iter().chain(&recorded.regions).cloned().collect::<BTreeSet<_>>();
    let asked_of = asked.and_then(|name| recorded.regions_for(name));
    let regions = directly.into_iter().filter(|name| asked_of.as_ref().is_none_or(|some| some.contains(name)));
    let clusters = recorded
        .members
        .into_iter()
        .filter(|(name, membership, _)| asked.is_none_or(|asked| asked == name || *asked == membership.region));

    let (addon, regions, clusters) = futures::join!(
        job::enabled(hub),
        join_all(regions.map(|name| look_into(hub, name))),
        join_all(clusters.map(|(name, membership, cluster)| look_at_cluster(hub, name, membership, cluster))),
    );
    let (regions, others): (Vec<_>, Vec<_>) = regions
        .into_iter()
        .partition(|seen| seen.inside.is_ok() || recorded.regions.contains(&seen.name) || asked == Some(&seen.name));
    Ok(Observed {
        now: Timestamp::now(),
        hub: hub.id.clone(),
        addon,
        gateway,
        regions,
        clusters,
        // Those that answer and have no proxy are no regions.
        unread: others.into_iter().filter(|seen| seen.inside.as_ref().is_err_and(|why| why.kind != Kind::NoProxy)).collect(),
        joined: joined
            .iter()
            .map(|cluster| (cluster.name().to_owned(), cluster.membership().map(|membership| membership.region)))
            .collect(),
        leftovers: leftovers.into_iter().map(|leftover| (leftover.cluster, leftover.region)).collect(),
        joining: joining.clusters.into_keys().collect(),
    })
}

/// What the hub's records say.
struct Recorded<'a> {
    members: Vec<(ClusterName, Membership, &'a JoinedCluster)>,
    /// Joined directly: a region, or not xregion's.
    directly: BTreeSet<ClusterName>,
    /// What some record calls a region.
    regions: BTreeSet<ClusterName>,
    /// The regions of clusters that have something there beside being joined.
    traces: Vec<(ClusterName, ClusterName)>,
}

impl<'a> Recorded<'a> {
    fn read<'b>(joined: &'a [JoinedCluster], gateway: &Result<SeenGateway>, left: impl Iterator<Item = &'b ClusterName>) -> Self {
        let mut this = Self { members: vec![], directly: BTreeSet::new(), regions: left.cloned().collect(), traces: vec![] };
        for cluster in joined {
            // KubeVela's own records are labels; a name that is none can't be asked for.
            let Ok(name) = cluster.name().parse::<ClusterName>() else { continue };
            match cluster.membership() {
                Some(membership) => this.members.push((name, membership, cluster)),
                None => drop(this.directly.insert(name)),
            }
        }
        this.regions.extend(this.members.iter().map(|(_, membership, _)| membership.region.clone()));
        for recorded in gateway.iter().flat_map(|gateway| gateway.aliases.record.0.values()) {
            let Ok(region) = recorded.region.parse::<ClusterName>() else { continue };
            let clusters = recorded.clusters.iter().filter_map(|name| name.parse().ok());
            this.traces.extend(clusters.map(|cluster| (cluster, region.clone())));
            this.regions.insert(region);
        }
        this
    }

    /// The regions to read for a name: its own, if it is a region or joined through one; none where every region must be searched.
    fn regions_for(&self, name: &ClusterName) -> Option<BTreeSet<ClusterName>> {
        if self.directly.contains(name) {
            return Some([name.clone()].into());
        }
        let (_, membership, _) = self.members.iter().find(|(member, _, _)| member == name)?;
        let traces = self.traces.iter().filter(|(cluster, _)| cluster == name).map(|(_, region)| region.clone());
        Some(traces.chain([membership.region.clone()]).collect())
    }
}

async fn look_at_gateway(hub: &Hub, name: Option<&str>) -> Result<SeenGateway> {
    let gateway = hub.gateway(name).await?;
    let (aliases, waiting) = try_join!(gateway.aliases(), gateway.waits_for())?;
    Ok(SeenGateway { deployment: gateway.name().to_owned(), aliases, waiting })
}

async fn look_into(hub: &Hub, name: ClusterName) -> SeenRegion {
    let inside = timeout(PATIENCE, read(hub, &name)).await.unwrap_or_else(|_| {
        Err(Failure::new(
            Kind::RegionUnreachable,
            format!("region {name} has not answered within {} s", PATIENCE.as_secs()),
            format!("check the way from the hub to the proxy cluster: vela cluster probe {name}"),
        ))
    });
    SeenRegion { name, inside }
}

async fn read(hub: &Hub, name: &ClusterName) -> Result<Inside> {
    let start = Instant::now();
    let region = Region::enter(hub, name).await?;
    let millis = millis(start);
    let (nodes, proxies, reports, routes, ports) =
        try_join!(region.nodes(), region.proxies(), region.reports(), region.routes(&hub.id), region.all_ports())?;
    Ok(Inside { millis, settings: region.settings, nodes, proxies, reports, routes, ports })
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
