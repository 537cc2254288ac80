//! Changing the gateway's host aliases, in one rollout for everybody who wants it at about the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use futures::try_join;
use tokio::time::{Instant, sleep};

use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::gateway::{Gateway, OldPods};
use crate::hub::progress::Progress;
use crate::hub::{self, Hub};
use crate::lock::holder_name;
use crate::model::aliases::{HostAliases, Leads, Wanted};
use crate::model::entries::{Entries, HUB_NAMESPACE, Led, Needs};
use crate::model::names::{ClusterName, DnsName};
use crate::model::nodes::{Way, aliased_addresses, listed};
use crate::region::Region;

/// How long a rollout waits for what others are about to want, so that one serves them all. It takes about as long itself.
const GATHER_PATIENCE: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How many rollouts this process has begun: each holds the right to it under a name of its own.
static ROLLS: AtomicU64 = AtomicU64::new(0);
/// How often a run asks whether it may change the gateway, or needn't any more: less often the longer it has waited, for then many do.
const QUEUE_EVERY: Duration = Duration::from_millis(500);
const QUEUE_EVERY_AT_MOST: Duration = Duration::from_secs(2);

/// What a run wants of the gateway's host aliases.
#[derive(Default)]
pub struct Change {
    /// The names it wants, each proven.
    pub wanted: Vec<Wanted>,
    /// The regions whose names may have to be led elsewhere, and what is known of each.
    pub regions: BTreeMap<ClusterName, Way>,
    /// The clusters whose every claim goes.
    pub leaving: BTreeSet<ClusterName>,
    /// Whether names that were made by hand, and lead into the region already, are taken over.
    pub adopt: bool,
    /// Single claims that go.
    pub dropped: Vec<(DnsName, ClusterName)>,
    /// Whether it puts back what is recorded, rather than carry out what somebody asks for: of the names only those that are recorded
    /// still when it is written, nothing taken off, and with what makes rollouts smooth also where that alone was lost.
    pub mends: bool,
    /// The regions that were left out of it, and why.
    pub left_out: BTreeMap<ClusterName, Failure>,
}

/// What came of a change.
#[derive(Debug)]
pub struct Rolled {
    /// Whether there was anything to change.
    pub changed: bool,
    /// The regions that were left out, and why.
    pub left_out: BTreeMap<ClusterName, Failure>,
}

impl Rolled {
    /// Why a name was not led as it is wanted, if its region was left out. Where only room was missing, a name that is there needs none.
    pub fn refusal(&self, wanted: &Wanted, now: &HostAliases) -> Option<Failure> {
        let failure = self.left_out.get(&wanted.region)?;
        (failure.kind != Kind::AliasLimit || !now.has(wanted)).then(|| failure.clone())
    }

    /// Whether there was anything to change, for those to whom a region that was left out is a failure.
    pub fn whole(self) -> Result<bool> {
        self.left_out.into_values().next().map_or(Ok(self.changed), Err)
    }
}

/// Where the names of regions lead.
pub type Leading = BTreeMap<String, Leads>;

impl Change {
    /// Takes a region into the change: its nodes, and a port there that was proven.
    pub fn enter(&mut self, region: &ClusterName, nodes: &BTreeSet<IpAddr>, port: Option<u16>) {
        let way = self.regions.entry(region.clone()).or_default();
        way.nodes.extend(nodes);
        way.ports.extend(port);
        way.proven.extend(port);
    }

    /// Sees to it that every cluster that is joined stays reached: where a region's names are led elsewhere, all are, and the port that each
    /// connects to must be there. One that was joined by hand has no region on record; its host name, if it is to be led as these `others`
    /// or the change's own, tells which.
    pub fn keep_reached(&mut self, joined: &[JoinedCluster], others: &[Wanted]) {
        for cluster in joined {
            let of_host = || {
                let host = cluster.host()?;
                let wanted = self.wanted.iter().chain(others).find(|wanted| wanted.host == host)?;
                Some(wanted.region.clone())
            };
            let region = cluster.membership().map(|membership| membership.region).or_else(of_host);
            if let Some(way) = region.and_then(|region| self.regions.get_mut(&region)) {
                way.ports.extend(cluster.port());
            }
        }
    }

    /// Leaves a region out of the change: its trouble is not that of the others.
    fn leave_out(&mut self, region: ClusterName, why: Failure) {
        tracing::warn!(failure = %why, %region, "the region is left out of this rollout");
        self.regions.remove(&region);
        self.wanted.retain(|wanted| wanted.region != region);
        self.left_out.insert(region, why);
    }

    /// Whether a run wants something for its `own` regions, and each of those was left out.
    fn gives_up(&self, own: &BTreeSet<ClusterName>) -> bool {
        !own.is_empty() && own.iter().all(|region| self.left_out.contains_key(region))
    }

    /// Those of a run's `own` regions that these Services can't lead to, and why.
    fn unled(&self, own: &BTreeSet<ClusterName>, services: &BTreeMap<ClusterName, Entries>) -> BTreeMap<ClusterName, Failure> {
        let leading = self.leading_by(services);
        let unled = own.iter().filter(|region| services.contains_key(*region) && !leading.contains_key(region.as_str()));
        let why = |region: &ClusterName| {
            Failure::new(
                Kind::GatewayRollout,
                format!("region {region}: its Services on the hub can't lead to {}", listed(&self.regions[region].nodes)),
                format!(
                    "if their addresses are of another family, delete them, and join again: kubectl -n {HUB_NAMESPACE} delete services --all"
                ),
            )
        };
        unled.map(|region| (region.clone(), why(region))).collect()
    }

    /// The region to do without where the aliases would get too long: the one with the long line, or else, the record of all being full, the last
    /// of those that add to it.
    fn overflowing(&self, now: &HostAliases, leading: &Leading) -> Option<ClusterName> {
        match self.applied_to(now, &[], leading).overlong() {
            Some(ip) => leading.iter().find(|(_, leads)| leads.all().contains(&ip)).and_then(|(region, _)| region.parse().ok()),
            None => self.wanted.iter().filter(|wanted| !now.has(wanted)).map(|wanted| wanted.region.clone()).max(),
        }
    }

    /// Where the names of its regions lead: to the nodes themselves, or to Services on the hub, if those have all that is needed.
    pub fn leading(&self, services: Option<&BTreeMap<ClusterName, Entries>>) -> Option<Leading> {
        let Some(services) = services else {
            return Some(self.regions.iter().map(|(region, way)| (region.to_string(), Leads::from(way.nodes.clone()))).collect());
        };
        // What is mended follows nodes that answer, and whoever joins has just seen which do.
        let is_seen = |(region, way): (&ClusterName, &Way)| {
            self.mends || services.get(region).is_some_and(|entries| entries.nodes_behind(&way.proven).is_subset(&way.nodes))
        };
        let leading = self.leading_by(services);
        (leading.len() == self.regions.len() && self.regions.iter().all(is_seen)).then_some(leading)
    }

    /// Where the names of those of its regions lead whose Services have all that is needed.
    fn leading_by(&self, services: &BTreeMap<ClusterName, Entries>) -> Leading {
        self.leading_with(services, |way| &way.ports)
    }

    /// Where the names of its regions will lead, by what is known before the Services there are have all that is needed.
    pub fn leading_ahead(&self, services: &BTreeMap<ClusterName, Entries>) -> Leading {
        let none = BTreeSet::new();
        self.leading_with(services, |_| &none)
    }

    /// Where the names of those of its regions lead whose Services have these of their ports.
    fn leading_with<'a>(
        &'a self,
        services: &BTreeMap<ClusterName, Entries>,
        ports: impl Fn(&'a Way) -> &'a BTreeSet<u16>,
    ) -> Leading {
        let lead = |(region, way): (&'a ClusterName, &'a Way)| {
            Some((region.to_string(), services.get(region)?.leads(ports(way), &way.nodes)?))
        };
        self.regions.iter().filter_map(lead).collect()
    }

    /// The aliases with this change, and names that other runs want. What is not admitted is left out: its own run says why.
    pub fn applied_to(&self, now: &HostAliases, others: &[Wanted], leading: &Leading) -> HostAliases {
        let mut aliases = self.leaving.iter().fold(now.clone(), |aliases, cluster| aliases.without_cluster(cluster));
        for (host, cluster) in &self.dropped {
            aliases = aliases.without(host, cluster);
        }
        (aliases, _) = aliases.with_admitted(&self.wanted, leading, self.adopt);
        for wanted in others {
            if aliases.admit(wanted).is_ok() {
                aliases = aliases.with(std::slice::from_ref(wanted), leading);
            }
        }
        aliases.with(&[], leading)
    }

    /// Gives up the names that are on record no more, and those of clusters that another run sees to: they may have begun to leave or to
    /// change since the names were chosen.
    fn keep_recorded(&mut self, recorded: &BTreeSet<Wanted>, leaving: &BTreeSet<ClusterName>, busy: &BTreeSet<ClusterName>) {
        self.wanted.retain(|one| recorded.contains(one) && !leaving.contains(&one.cluster) && !busy.contains(&one.cluster));
    }

    /// The names it concerns.
    fn hosts(&self, now: &HostAliases) -> BTreeSet<DnsName> {
        let leaving = self.leaving.iter().flat_map(|cluster| now.claims_of(cluster)).filter_map(|claim| claim.host.parse().ok());
        let dropped = self.dropped.iter().map(|(host, _)| host.clone());
        self.wanted.iter().map(|wanted| wanted.host.clone()).chain(leaving).chain(dropped).collect()
    }

    /// What it has to wait for: a name that is wanted must be known wherever a request may go, and connections are cut by the end of
    /// the pods that carry them. Who just leaves has nothing to wait for.
    fn old_pods(&self, cut: bool) -> OldPods {
        if self.wanted.is_empty() && !cut { OldPods::Ending } else { OldPods::Gone }
    }
}

/// Makes a change and waits until the gateway's pods have it, without a failed request. A region that is in trouble is left out of it; where
/// that leaves nothing of what the run wants, nothing is rolled.
pub async fn roll(hub: &Hub, gateway: &Gateway, progress: &Progress, mut change: Change) -> Result<Rolled> {
    // The controller's mending and its joins may roll at once, in one process.
    let holder = format!("{}-{}", holder_name()?, ROLLS.fetch_add(1, Ordering::Relaxed));
    let gateway = &gateway.clone().smoothing(change.mends);
    let by_services = hub.leads_to_services().await?;
    let mut seen = gateway.see().await?;
    let hosts = change.hosts(&seen.aliases);
    let (start, mut differed) = (Instant::now(), false);
    let mut claim = hub.claim_gateway(&holder);
    let lock = loop {
        let services = if by_services && !change.regions.is_empty() { Some(hub.entries().await?) } else { None };
        let is_there = |leading: Leading| change.applied_to(&seen.aliases, &[], &leading) == seen.aliases;
        let applied = change.leading(services.as_ref()).is_some_and(is_there) && !gateway.needs_smoothing(&seen);
        differed |= !applied;
        if applied {
            // Another run did it with its own; or the run before this one died in the middle of its rollout.
            match gateway.behind(&seen, &hosts, change.old_pods(gateway.cuts())).await? {
                None => return Ok(Rolled { changed: differed, left_out: change.left_out }),
                Some(what) => progress.waits_for(&what).await,
            }
        }
        // Also where all is written: whoever was to see old pods out may have died.
        if !applied || seen.hands_over() {
            if let Some(lock) = hub::take(&mut claim).await? {
                break lock;
            }
            if !applied {
                progress.waits_for("another run's rollout").await;
            }
        }
        sleep((start.elapsed() / 8).clamp(QUEUE_EVERY, QUEUE_EVERY_AT_MOST)).await;
        seen = gateway.see().await?;
    };
    let rolled = async {
        // The regions of which this run has just seen that they answer.
        let own: BTreeSet<ClusterName> = change.regions.keys().filter(|_| !change.mends).cloned().collect();
        let (mut others, cut) = gather(hub, gateway, progress, &mut change).await?;
        let gateway = gateway.clone().cutting(cut);
        let leading = if by_services {
            provide(hub, &gateway, &mut change, &mut others, &own).await?
        } else {
            change.leading(None).unwrap_or_default()
        };
        write(&gateway, &mut change, &own, others, leading).await?;
        if change.gives_up(&own) {
            return Ok(None);
        }
        gateway.roll(progress, if gateway.cuts() { OldPods::Gone } else { OldPods::Ending }).await?;
        Ok::<_, Failure>(Some(gateway.cuts()))
    }
    .await;
    lock.release().await;
    let Some(seen_out) = rolled? else {
        return Ok(Rolled { changed: false, left_out: change.left_out });
    };
    // The next rollout may begin while old pods end: waited for are those that don't know this run's own names.
    while !seen_out && let Some(what) = gateway.behind(&gateway.see().await?, &hosts, change.old_pods(false)).await? {
        progress.waits_for(&what).await;
        sleep(ASK_EVERY).await;
    }
    Ok(Rolled { changed: true, left_out: change.left_out })
}

/// Sees to it that the Services of the change's regions have what it needs, and room for its names, and that the hub's nodes lead there by them
/// before a name does. A region where they don't is left out.
async fn provide(
    hub: &Hub,
    gateway: &Gateway,
    change: &mut Change,
    others: &mut Vec<Wanted>,
    own: &BTreeSet<ClusterName>,
) -> Result<Leading> {
    let mut shards: BTreeMap<ClusterName, usize> = BTreeMap::new();
    let mut written = BTreeSet::new();
    while !change.gives_up(own) {
        let (services, mut failed) = settle(hub, change, own, &shards, &mut written).await?;
        failed.extend(change.unled(own, &services));
        if failed.is_empty() {
            let leading = change.leading_by(&services);
            let now = gateway.aliases().await?;
            let then = change.applied_to(&now, others, &leading);
            let full: Vec<_> = leading.keys().filter(|region| then.fills(&leading[*region])).collect();
            if !full.is_empty() {
                let more = services.iter().filter(|(region, _)| full.iter().any(|full| *full == region.as_str()));
                shards.extend(more.map(|(region, entries)| (region.clone(), entries.shards() + 1)));
                continue;
            }
            let unseen = services
                .iter()
                .filter(|(region, entries)| written.contains(*region) || now.addresses(region).is_disjoint(&entries.addresses()));
            let asked = unseen.map(|(region, entries)| {
                let doors = entries.doors(&change.regions[region].proven);
                async move { (region.clone(), hub.await_doors(region, doors).await) }
            });
            failed = join_all(asked).await.into_iter().filter_map(|(region, opened)| Some((region, opened.err()?))).collect();
            if failed.is_empty() {
                return Ok(leading);
            }
        }
        for (region, failure) in failed {
            others.retain(|wanted| wanted.region != region);
            change.leave_out(region, failure);
        }
    }
    Ok(Leading::new())
}

/// Brings the Services of the change's regions to what it needs, and notes which were written; gives them, and why some could not be.
async fn settle(
    hub: &Hub,
    change: &Change,
    own: &BTreeSet<ClusterName>,
    shards: &BTreeMap<ClusterName, usize>,
    written: &mut BTreeSet<ClusterName>,
) -> Result<(BTreeMap<ClusterName, Entries>, BTreeMap<ClusterName, Failure>)> {
    let (mut services, mut failed) = (BTreeMap::new(), BTreeMap::new());
    for (region, way) in &change.regions {
        let led = if own.contains(region) { Led::Of(way.proven.clone()) } else { Led::Lost(way.proven.clone()) };
        let shards = shards.get(region).copied().unwrap_or(1);
        match hub.settle(region, &Needs { ports: way.ports.clone(), nodes: way.nodes.clone(), led, shards }).await {
            Ok((entries, anew)) => {
                written.extend(anew.then(|| region.clone()));
                services.insert(region.clone(), entries);
            }
            // That is no region's trouble: with the next one it would be waited for again.
            Err(failure) if failure.kind == Kind::HubUnreachable => return Err(failure),
            Err(failure) => drop(failed.insert(region.clone(), failure)),
        }
    }
    Ok((services, failed))
}

/// Writes the change. Where the aliases would get too long, names of others are left out, whose own runs say so, and then regions whose names
/// don't fit.
async fn write(
    gateway: &Gateway,
    change: &mut Change,
    own: &BTreeSet<ClusterName>,
    mut others: Vec<Wanted>,
    mut leading: Leading,
) -> Result<()> {
    while !change.gives_up(own) {
        let failure = match gateway.change(|now| Ok(change.applied_to(now, &others, &leading))).await {
            Err(failure) if failure.kind == Kind::AliasLimit => failure,
            written => return written.map(drop),
        };
        if !others.is_empty() {
            others.clear();
            continue;
        }
        let Some(region) = change.overflowing(&gateway.aliases().await?, &leading) else { return Err(failure) };
        leading.remove(region.as_str());
        change.leave_out(region, failure);
    }
    Ok(())
}

/// Waits a little for runs that are about to want the same, and adds what they want to the change. Gives the names, and whether one that
/// leaves wants connections cut.
async fn gather(hub: &Hub, gateway: &Gateway, progress: &Progress, change: &mut Change) -> Result<(Vec<Wanted>, bool)> {
    let start = Instant::now();
    let (joining, busy) = loop {
        let others = progress.others().await?;
        if !others.coming || start.elapsed() > GATHER_PATIENCE {
            break (others.clusters, others.busy);
        }
        sleep(ASK_EVERY).await;
    };
    let (all, leftovers) = (hub.joined_clusters().await?, hub.leftovers().await?);
    if change.mends {
        let recorded = all.iter().filter_map(JoinedCluster::wanted).collect();
        let leaving = leftovers.iter().map(|leftover| leftover.cluster.clone()).collect();
        change.keep_recorded(&recorded, &leaving, &busy);
    }
    // A cluster that is detached and whose leave is recorded has no use for its name any more.
    let joined: BTreeSet<&str> = all.iter().map(JoinedCluster::name).collect();
    let gone = leftovers.into_iter().filter(|leftover| !joined.contains(leftover.cluster.as_str()) && !change.mends);
    let wanted: BTreeSet<ClusterName> =
        change.wanted.iter().map(|wanted| wanted.cluster.clone()).chain(joining.keys().cloned()).collect();
    let mut cut = false;
    for leftover in gone.filter(|leftover| !wanted.contains(&leftover.cluster)) {
        cut |= leftover.cut;
        change.leaving.insert(leftover.cluster);
    }

    let aliases = gateway.aliases().await?;
    let mut names = Vec::new();
    for region in joining.values().collect::<BTreeSet<_>>() {
        match proven_in(hub, region, &aliases).await {
            Ok((proven, nodes)) => {
                for (one, port) in proven.into_iter().filter(|(one, _)| joining.contains_key(&one.cluster)) {
                    change.enter(region, &nodes, Some(port));
                    names.push(one);
                }
            }
            // Its joins will roll for themselves.
            Err(failure) => tracing::warn!(%failure, %region, "the region is left out of this rollout"),
        }
    }
    change.keep_reached(&all, &names);
    Ok((names, cut))
}

/// The names that this hub's proven routes in a region want, each with the port that the hub connects to, and the region's nodes.
async fn proven_in(hub: &Hub, name: &ClusterName, aliases: &HostAliases) -> Result<(Vec<(Wanted, u16)>, BTreeSet<IpAddr>)> {
    let region = Region::enter(hub, name).await?;
    let nodes = aliased_addresses(&region.nodes().await?, &aliases.addresses(name));
    let (routes, (ports, _)) = try_join!(region.routes(&hub.id), region.all_ports())?;
    let wanted = routes.into_iter().filter(|route| route.proven_at.is_some()).filter_map(|route| {
        let port = ports.get(&route.port_name())?.entered_by(region.settings.entry);
        Some((Wanted { host: route.alias?, cluster: route.cluster, region: name.clone() }, port))
    });
    Ok((wanted.collect(), nodes))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret;
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock::{Handle, pair};

    use super::*;
    use crate::model::aliases::RECORD;
    use crate::model::entries::tests::provided;
    use crate::model::entries::{Write, by_region};
    use crate::model::membership::Membership;
    use crate::model::observed::sample;

    fn wanted(host: &str, cluster: &str, region: &str) -> Wanted {
        Wanted { host: host.parse().unwrap(), cluster: cluster.parse().unwrap(), region: region.parse().unwrap() }
    }

    fn regions() -> BTreeMap<ClusterName, Way> {
        let way = |n: u8| Way { nodes: [IpAddr::from([10, 0, 0, n])].into(), ports: [30000].into(), proven: [30000].into() };
        [("east", 1), ("west", 2)].map(|(region, n)| (region.parse().unwrap(), way(n))).into()
    }

    fn applied(change: &Change, now: &HostAliases, others: &[Wanted]) -> HostAliases {
        change.applied_to(now, others, &change.leading(None).unwrap())
    }

    fn change(names: &[(&str, &str, &str)], leaving: &[&str]) -> Change {
        Change {
            wanted: names.iter().map(|(host, cluster, region)| wanted(host, cluster, region)).collect(),
            regions: regions(),
            leaving: leaving.iter().map(|name| name.parse().unwrap()).collect(),
            ..Change::default()
        }
    }

    #[test]
    fn one_change_serves_joins_and_leaves_of_several_runs() {
        let now = applied(&change(&[("x.example", "x", "east"), ("y.example", "y", "east")], &[]), &HostAliases::default(), &[]);
        let after = applied(&change(&[("z.example", "z", "west")], &["x"]), &now, &[wanted("o.example", "o", "east")]);
        let want = change(&[("o.example", "o", "east"), ("y.example", "y", "east"), ("z.example", "z", "west")], &[]);
        assert_eq!(after.record, applied(&want, &HostAliases::default(), &[]).record);
        assert_eq!(applied(&change(&[], &["nobody"]), &now, &[]), now, "unchanged means no rollout");
        assert_eq!(change(&[], &["x"]).old_pods(false), OldPods::Ending);
        assert_eq!(change(&[], &["x"]).old_pods(true), OldPods::Gone);
        assert_eq!(change(&[("z.example", "z", "west")], &["x"]).old_pods(false), OldPods::Gone);
    }

    #[test]
    fn whoever_is_joined_stays_reached_also_who_was_joined_by_hand() {
        let joined = |endpoint: &str, record: Option<Membership>| {
            let secret = json!({
                "metadata": {"name": "c", "annotations": record.map(|record| record.to_annotations())},
                "data": {"endpoint": ByteString(endpoint.as_bytes().to_vec())},
            });
            JoinedCluster::from(serde_json::from_value::<Secret>(secret).unwrap())
        };
        let member = || Membership { region: name("east"), ..sample::membership("m", "m.example", 30007) };
        let wanted = [("x.example", "x", "east")];
        for (what, cluster, want) in [
            ("on record", joined("https://m.example:30007", Some(member())), &[30000, 30007][..]),
            ("by hand, under the name that is led", joined("https://x.example:31000", None), &[30000, 31000]),
            ("by hand, under the name of another run", joined("https://o.example:31001", None), &[30000, 31001]),
            ("by hand, under another name", joined("https://y.example:31000", None), &[30000]),
            ("by hand, without a port", joined("https://x.example", None), &[30000]),
        ] {
            let mut change = change(&wanted, &[]);
            change.keep_reached(&[cluster], &[self::wanted("o.example", "o", "east")]);
            assert_eq!(change.regions[&name("east")].ports, want.iter().copied().collect(), "{what}");
        }
    }

    #[test]
    fn services_that_lead_to_a_node_that_a_join_has_not_seen_are_brought_to_those_it_has() {
        let (east, ports) = ("east".parse::<ClusterName>().unwrap(), BTreeSet::from([30000]));
        let led_to = |n: u8| {
            let nodes = [IpAddr::from([10, 0, 0, n])].into();
            let entries = provided(&east, &Needs { ports: ports.clone(), nodes, shards: 1, ..Needs::default() });
            BTreeMap::from([(east.clone(), entries)])
        };
        let mut change = Change { regions: regions().into_iter().take(1).collect(), ..Change::default() };
        assert!(change.leading(Some(&led_to(1))).is_some());
        assert!(change.leading(Some(&led_to(9))).is_none());
        change.mends = true;
        assert!(change.leading(Some(&led_to(9))).is_some(), "those of the records know no better than the probes");
    }

    #[test]
    fn mending_gives_up_what_others_have_begun_to_change() {
        let names =
            ["kept", "leaves", "busy", "renamed", "detached"].map(|cluster| wanted(&format!("{cluster}.example"), cluster, "east"));
        let mut mending = Change { wanted: names.to_vec(), mends: true, ..Change::default() };
        let mut recorded: BTreeSet<Wanted> = names[..3].iter().cloned().collect();
        recorded.insert(wanted("new.example", "renamed", "east"));
        mending.keep_recorded(&recorded, &["leaves".parse().unwrap()].into(), &["busy".parse().unwrap()].into());
        assert_eq!(mending.wanted, names[..1]);
    }

    #[test]
    fn only_a_run_s_own_cluster_moves_to_another_region() {
        let now = applied(&change(&[("x.example", "x", "east")], &[]), &HostAliases::default(), &[]);
        let region = |aliases: &HostAliases| aliases.record.0["x.example"].region.clone();
        assert_eq!(region(&applied(&change(&[("x.example", "x", "west")], &[]), &now, &[])), "west");
        // The route that a move leaves behind in the old region is proven, too.
        assert_eq!(region(&applied(&change(&[], &[]), &now, &[wanted("x.example", "x", "west")])), "east");
        assert_eq!(region(&applied(&change(&[("x.example", "y", "west")], &[]), &now, &[])), "east", "that is another cluster");
    }

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    fn trouble(kind: Kind) -> Failure {
        Failure::new(kind, "no", "why")
    }

    #[test]
    fn a_region_that_is_left_out_takes_its_names_along_and_no_others() {
        let names = [("x.example", "x", "east"), ("z.example", "z", "west")];
        let mut change = change(&names, &[]);
        let own = BTreeSet::from([name("east"), name("west")]);
        change.leave_out(name("east"), trouble(Kind::GatewayRollout));
        let then = applied(&change, &HostAliases::default(), &[]);
        assert_eq!(then.record.0.keys().collect::<Vec<_>>(), ["z.example"]);
        assert!(!change.gives_up(&own) && !change.gives_up(&BTreeSet::new()), "z, or who only leaves, goes on");
        change.leave_out(name("west"), trouble(Kind::GatewayRollout));
        assert!(change.gives_up(&own));
    }

    #[test]
    fn a_member_fails_by_the_trouble_of_its_own_region() {
        let [there, new, fine] = [("x", "full"), ("y", "full"), ("z", "west")]
            .map(|(cluster, region)| wanted(&format!("{cluster}.example"), cluster, region));
        let now = HostAliases::default().with(&[there.clone(), fine.clone()], &BTreeMap::new());
        let rolled = |kind| Rolled { changed: true, left_out: [(name("full"), trouble(kind))].into() };
        for (kind, wanted, fails) in [
            (Kind::GatewayRollout, &there, true),
            (Kind::GatewayRollout, &new, true),
            (Kind::GatewayRollout, &fine, false),
            (Kind::AliasLimit, &there, false),
            (Kind::AliasLimit, &new, true),
            (Kind::AliasLimit, &fine, false),
        ] {
            let refusal = rolled(kind).refusal(wanted, &now).map(|failure| failure.kind);
            assert_eq!(refusal, fails.then_some(kind), "{kind:?} {wanted:?}");
        }
        assert!(rolled(Kind::GatewayRollout).whole().is_err(), "who mends wants every region");
    }

    #[test]
    fn the_region_to_do_without_is_the_one_whose_names_don_t_fit() {
        let many: Vec<Wanted> = (0..1300).map(|n| wanted(&format!("{n:050}.example"), &format!("c{n}"), "east")).collect();
        let now = applied(
            &Change { wanted: many[..900].to_vec(), regions: regions(), ..Change::default() },
            &HostAliases::default(),
            &[],
        );
        let z = wanted("z.example", "z", "west");
        for (names, want) in [
            (many.iter().chain([&z]).cloned().collect::<Vec<_>>(), Some(name("east"))),
            // With no line too long, the record is full: of the regions that would add to it, the last gives way.
            (vec![many[0].clone(), z.clone()], Some(name("west"))),
            (vec![many[0].clone(), many[900].clone()], Some(name("east"))),
            (vec![many[0].clone()], None),
        ] {
            let change = Change { wanted: names, regions: regions(), ..Change::default() };
            assert_eq!(change.overflowing(&now, &change.leading(None).unwrap()), want, "{} names", change.wanted.len());
        }
    }

    /// The gateway's Deployment, which has these aliases.
    fn deployment(aliases: &HostAliases) -> Value {
        let labels = json!({"app": "gateway"});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "gateway", "namespace": "vela-system", "resourceVersion": "7",
                         "annotations": {RECORD: json!(aliases.record).to_string()}},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "containers": [{"name": "gateway", "ports": [{"containerPort": 9443}]}], "hostAliases": aliases.entries,
            }}},
        })
    }

    /// A hub with this gateway, Services and EndpointSlices; gives what the Deployment was patched with.
    async fn serve(mut handle: Handle<Request<Body>, Response<Body>>, deployment: Value, entries: [Vec<Value>; 2]) -> Vec<Value> {
        let mut patches = Vec::new();
        let list = |items: &[Value]| json!({"kind": "List", "metadata": {}, "items": items});
        while let Some((request, respond)) = handle.next_request().await {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap_or_default();
            let answer = match (&method, path.rsplit_once('/').unwrap().1) {
                (&Method::GET, "v1alpha1.cluster.core.oam.dev") => {
                    json!({"metadata": {}, "spec": {"groupPriorityMinimum": 1, "versionPriority": 1,
                                                    "service": {"namespace": "vela-system", "name": "gateway"}}})
                }
                (&Method::GET, "gateway") if path.contains("/services/") => {
                    json!({"metadata": {}, "spec": {"selector": {"app": "gateway"}}})
                }
                (&Method::GET, "deployments") => list(std::slice::from_ref(&deployment)),
                (&Method::GET, "gateway") => deployment.clone(),
                (&Method::PATCH, "gateway") => {
                    patches.push(body);
                    deployment.clone()
                }
                (&Method::GET, "services") => list(&entries[0]),
                (&Method::GET, "endpointslices") => list(&entries[1]),
                _ => panic!("{method} {path}"),
            };
            let response = Response::builder().status(200).header("content-type", "application/json");
            respond.send_response(response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap());
        }
        patches
    }

    #[tokio::test]
    async fn a_full_line_keeps_nobody_of_another_region_off_the_gateway() {
        let many = (0..1300).map(|n| wanted(&format!("{n:050}.example"), &format!("c{n}"), "east"));
        let (east, both) = (BTreeSet::from([name("east")]), BTreeSet::from([name("east"), name("west")]));
        for (own, names, written) in [
            (&both, many.clone().chain([wanted("z.example", "z", "west")]).collect::<Vec<_>>(), vec!["z.example"]),
            (&east, many.collect(), vec![]),
        ] {
            let (service, handle) = pair();
            let server = tokio::spawn(serve(handle, deployment(&HostAliases::default()), Default::default()));
            let hub = Hub::mocked(Client::new(service, "vela-system"));
            let gateway = hub.gateway(None).await.unwrap();
            let mut change = Change { wanted: names, regions: regions(), ..Change::default() };
            change.regions.retain(|region, _| own.contains(region));
            let leading = change.leading(None).unwrap();
            write(&gateway, &mut change, own, vec![wanted("o.example", "o", "east")], leading).await.unwrap();
            assert_eq!(change.left_out[&name("east")].kind, Kind::AliasLimit);
            assert_eq!((change.left_out.len(), change.gives_up(own)), (1, written.is_empty()));
            drop((hub, gateway));
            let names = |patch: &Value| patch["spec"]["template"]["spec"]["hostAliases"][0]["hostnames"].clone();
            let want: Vec<Value> = written.into_iter().map(|name| json!([name])).collect();
            assert_eq!(server.await.unwrap().iter().map(names).collect::<Vec<_>>(), want);
        }
    }

    /// Services on the hub with addresses of IPv4, made for what these regions need, and their EndpointSlices.
    fn made(regions: &BTreeMap<ClusterName, Way>) -> [Vec<Value>; 2] {
        let needs = |way: &Way| Needs { ports: way.ports.clone(), nodes: way.nodes.clone(), shards: 1, ..Needs::default() };
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for write in regions.iter().flat_map(|(region, way)| Entries::default().writes(region, &needs(way))) {
            let Write::CreateService(mut service) = write else { panic!("{write:?}") };
            service["spec"]["clusterIP"] = json!(format!("10.96.0.{}", services.len()));
            services.push(service);
        }
        let typed: Vec<_> = services.iter().map(|service| serde_json::from_value(service.clone()).unwrap()).collect();
        for write in by_region(&typed, &[]).iter().flat_map(|(region, entries)| entries.writes(region, &needs(&regions[region]))) {
            let Write::CreateSlice(slice) = write else { panic!("{write:?}") };
            slices.push(slice);
        }
        [services, slices]
    }

    #[tokio::test]
    async fn a_region_of_another_family_keeps_nobody_of_another_region_off_the_gateway() {
        let own = BTreeSet::from([name("east"), name("west")]);
        let mut change = change(&[("x.example", "x", "east"), ("z.example", "z", "west")], &[]);
        change.regions.get_mut(&name("east")).unwrap().nodes = ["2001:db8::1".parse().unwrap()].into();
        let entries = made(&change.regions);
        // West was led to before, and its doors need not be tried.
        let west = [("west".to_owned(), Leads::from(BTreeSet::from([IpAddr::from([10, 96, 0, 2])])))].into();
        let now = HostAliases::default().with(&[wanted("w.example", "w", "west")], &west);
        let (service, handle) = pair();
        let server = tokio::spawn(serve(handle, deployment(&now), entries));
        let hub = Hub::mocked(Client::new(service, "vela-system"));
        let gateway = hub.gateway(None).await.unwrap();
        let mut others = vec![wanted("o.example", "o", "east"), wanted("p.example", "p", "west")];
        let leading = provide(&hub, &gateway, &mut change, &mut others, &own).await.unwrap();
        assert_eq!(leading.keys().collect::<Vec<_>>(), ["west"]);
        assert!(change.left_out[&name("east")].cause().ends_with("can't lead to 2001:db8::1"), "{:?}", change.left_out);
        let left = change.wanted.iter().chain(&others).map(|wanted| wanted.host.as_str()).collect::<Vec<_>>();
        assert_eq!(left, ["z.example", "p.example"]);
        drop((hub, gateway));
        assert_eq!(server.await.unwrap(), Vec::<Value>::new());
    }
}
