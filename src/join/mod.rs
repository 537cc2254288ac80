//! The story of a join: read, route, apply, prove, roll, join. Nothing on the hub changes before the way is proven, and whatever a
//! failed run changed is undone. Several clusters go the way side by side, meet at one rollout of the gateway, and part again: one that
//! fails holds no other back.

mod admit;
mod keep;
mod plan;
mod prove;

pub use plan::{names, plan};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::gateway::Gateway;
use crate::hub::leftovers::Leftover;
use crate::hub::progress::{Progress, Stage, Teller};
use crate::hub::{Brought, Hub};
use crate::leave;
use crate::model::aliases::HostAliases;
use crate::model::bounds::Bounds;
use crate::model::direct::DirectHosts;
use crate::model::joined::Joined;
use crate::model::kubeconfig::{Access, authority_part};
use crate::model::labels::Label;
use crate::model::lifetime;
use crate::model::membership::{Membership, Origin};
use crate::model::names::{ApiHost, ClusterName, DnsName, NAMESPACE, SecretName, Slot};
use crate::model::nodes::{EntryNode, aliased_addresses};
use crate::model::once::OnRecord;
use crate::model::region::{Entry, SNI_PORT};
use crate::model::report::Report;
use crate::model::route::{Laid, Mode, Serving, Way, server_name, slots};
use crate::region::desk::Desk;
use crate::region::{Region, release_ports};
use crate::sharing::Sharing;
use crate::undo::Undo;
use crate::vela;

const ASK_EVERY: Duration = Duration::from_millis(250);
/// How many clusters are read, written or proven at once. While a cluster waits for its proxies, it is nobody's turn: so the routes of a
/// run are written in one burst, and taken up by one reload.
const AT_ONCE: usize = 10;

/// What is asked for.
pub struct Order {
    /// The clusters.
    pub members: Vec<Member>,
    /// The gateway's Deployment, if it can't be found by itself.
    pub gateway: Option<String>,
    /// Whether host aliases that were made by hand for the region are taken over.
    pub adopt: bool,
    /// The `vela` CLI.
    pub vela: PathBuf,
}

/// One cluster to join.
pub struct Member {
    /// The cluster's name on the hub.
    pub cluster: ClusterName,
    /// The region it is joined through.
    pub region: ClusterName,
    /// Where its kubeconfig is.
    pub source: Source,
    /// Labels for the cluster.
    pub labels: Vec<Label>,
    /// The node port it should have.
    pub node_port: Option<u16>,
    /// What its route is to let in, in the bounds of its region.
    pub bounds: Bounds,
    /// By what its region is to tell its connections from others'.
    pub mode: Mode,
    /// Whether it may be joined although it has another name already.
    pub allow_second_name: bool,
    /// Whether it may take the name over from another cluster.
    pub replace: bool,
}

/// Where a kubeconfig is.
pub enum Source {
    /// In a Secret of `vela-system` on the hub.
    Secret {
        /// The Secret's name.
        name: SecretName,
        /// The key in it.
        key: String,
        /// The context in the kubeconfig, if not its current one.
        context: Option<String>,
    },
    /// It was read already.
    Read(Box<Access>),
}

/// What the joins of a run share.
struct Shared {
    turns: Semaphore,
    /// The host names that aliases must not take.
    direct: DirectHosts,
    /// Of each region.
    proxies: BTreeMap<ClusterName, Sharing<Proxies>>,
    /// Where each region is asked for ports.
    desks: BTreeMap<ClusterName, Arc<Desk>>,
    /// The identities of the hub's clusters, by their names.
    identities: Sharing<Vec<(String, Option<String>)>>,
    /// What the hub has on record of its clusters.
    records: Sharing<Vec<OnRecord>>,
}

/// What is to be known of a region's proxies to tell whether they serve a route.
struct Proxies {
    /// Those that are ready.
    ready: Vec<String>,
    /// What each reports.
    reports: BTreeMap<String, Report>,
}

impl Shared {
    /// To be read before the gateway's aliases: of a cluster that is joined through a region just now, the alias is written first.
    async fn read(hub: &Hub, order: &Order, at_once: usize) -> Result<Self> {
        let desk = |region: &ClusterName| {
            let asked = order.members.iter().filter(|member| member.region == *region).filter_map(|member| member.node_port);
            Arc::new(Desk::keeping(asked.collect()))
        };
        Ok(Self {
            turns: Semaphore::new(at_once),
            desks: order.members.iter().map(|member| (member.region.clone(), desk(&member.region))).collect(),
            direct: hub.direct_hosts().await?,
            proxies: order.members.iter().map(|member| (member.region.clone(), Sharing::default())).collect(),
            identities: Sharing::default(),
            records: Sharing::default(),
        })
    }
}

/// Joins clusters, and tells of each what came of it. `undos` has one for each; it holds, at every await, what would have to be
/// undone if it ended there, and nothing for a cluster that is done.
pub async fn join(hub: &Hub, order: &Order, progress: &Progress, undos: &[Undo]) -> Result<Vec<Result<Joined>>> {
    let tellers: Vec<_> = order.members.iter().map(|member| progress.of(&member.cluster, Some(&member.region))).collect();
    let gateway = hub.gateway(order.gateway.as_deref()).await?;
    let shared = Shared::read(hub, order, AT_ONCE).await?;
    let proven = join_all(order.members.iter().zip(&tellers).zip(undos).map(|((member, tell), undo)| {
        let (shared, gateway) = (&shared, &gateway);
        async move {
            let proven = prove(hub, order, member, gateway, tell, undo, shared).await;
            settled(proven, tell, undo, &shared.turns).await
        }
    }))
    .await;
    let proven = each_once(proven);
    let rolled = admit::roll(hub, &gateway, progress, proven).await?;

    let permits = Semaphore::new(vela::AT_ONCE);
    let joined = join_all(rolled.into_iter().zip(&tellers).zip(undos).map(|((proven, tell), undo)| {
        let (permits, shared) = (&permits, &shared);
        async move {
            let joined = async {
                let mut proven = proven?;
                let _permit = permits.acquire().await;
                proven.register().await?;
                Ok(proven)
            };
            let joined = settled(joined.await, tell, undo, &shared.turns).await;
            if joined.is_ok() {
                // From here on it is joined, and nothing is undone.
                undo.forget();
            }
            joined
        }
    }))
    .await;
    admit::drop_old_aliases(hub, &gateway, progress, &joined).await;
    let finished = joined.into_iter().map(|proven| async {
        let proven = proven?;
        let _turn = shared.turns.acquire().await;
        Ok(proven.finish().await)
    });
    Ok(join_all(finished).await)
}

/// Undoes what a cluster's join did, if it failed.
async fn settled<T>(outcome: Result<T>, tell: &Teller<'_>, undo: &Undo, turns: &Semaphore) -> Result<T> {
    let Err(mut failure) = outcome else { return outcome };
    if undo.mark() > 0 {
        // Many that undo at once would contend for one Service.
        let _turn = turns.acquire().await;
        if let Err(other) = undo.all().await {
            failure = failure.and(&format!("and not everything could be undone: {}", other.cause()));
        }
    }
    tell.stage(Stage::Failed, &failure.to_string()).await;
    Err(failure)
}

/// Reads, routes, applies and proves.
async fn prove<'a>(
    hub: &'a Hub,
    order: &'a Order,
    member: &'a Member,
    gateway: &'a Gateway,
    tell: &'a Teller<'a>,
    undo: &'a Undo,
    shared: &'a Shared,
) -> Result<Proven<'a>> {
    let turn = shared.turns.acquire().await;
    tell.stage(Stage::Reading, &format!("reading the kubeconfig of {} and region {}", member.cluster, member.region)).await;
    let mut join = Join::read(hub, order, member, gateway, tell, undo, shared).await?;
    drop(turn);

    let upstream = authority_part(&join.access.host.to_string(), join.access.port);
    tell.stage(Stage::Routing, &format!("routing {upstream} through region {}", member.region)).await;
    let laid = join.laid().await?;
    let (serving, other) = join.slots(&laid).await?;
    let slot = join.kept(&laid, serving).unwrap_or(other);
    if slot != other {
        // What serves there must not be bent before the new upstream is proven.
        join.try_out(other).await?;
    } else if serving == Some(slot) && laid[slot as usize].route.as_ref().is_some_and(|route| route.bounds != member.bounds) {
        // Nor must it shut the hub out.
        join.try_out(slot.other()).await?;
    }
    let preferred = join.moves_from().map(|old| old.node_port).filter(|_| member.mode == Mode::Port);
    let membership = join.lay(slot, laid[slot as usize].route.clone(), preferred).await?;
    Ok(Proven { join, membership, slot })
}

/// One cluster under two names of one run: the second is refused, as it would be in a run of its own.
fn each_once(mut proven: Vec<Result<Proven<'_>>>) -> Vec<Result<Proven<'_>>> {
    let mut seen: Vec<(String, ClusterName)> = Vec::new();
    for one in &mut proven {
        let Ok(Proven { join, membership, .. }) = one else { continue };
        match seen.iter().find(|(identity, _)| *identity == membership.identity) {
            Some((_, name)) if !join.member.allow_second_name => *one = Err(prove::second_name(name.as_str())),
            _ => seen.push((membership.identity.clone(), join.member.cluster.clone())),
        }
    }
    proven
}

/// A join under way.
struct Join<'a> {
    hub: &'a Hub,
    order: &'a Order,
    member: &'a Member,
    gateway: &'a Gateway,
    tell: &'a Teller<'a>,
    undo: &'a Undo,
    shared: &'a Shared,
    access: Access,
    /// The TLS name that is to tell its connections from others'; none: it is to have a port for itself.
    server_name: Option<DnsName>,
    before: Option<JoinedCluster>,
    region: Region,
    nodes: Vec<EntryNode>,
    aliases: HostAliases,
    addresses: BTreeSet<IpAddr>,
    /// Whether this run changed anything.
    changed: bool,
    /// Whether the hub's token is kept in place of the one brought.
    kept_token: bool,
    /// From when on the controller may renew the token.
    renews: Option<Timestamp>,
    /// Where the kubeconfig is, if it stays there.
    origin: Option<Origin>,
}

/// A join whose way is proven.
struct Proven<'a> {
    join: Join<'a>,
    membership: Membership,
    slot: Slot,
}

impl Proven<'_> {
    async fn register(&mut self) -> Result<()> {
        self.join.tell.stage(Stage::Joining, &format!("joining {}", self.join.member.cluster)).await;
        self.join.register(&self.membership).await
    }

    /// Removes what served before, and tells that all is done. It is joined by now: what stays, the next run removes.
    async fn finish(mut self) -> Joined {
        if let Err(failure) = self.join.clear_away(self.slot).await {
            tracing::warn!(%failure, cluster = %self.join.member.cluster, "what served before stays until the next join or leave");
        }
        let Self { join, membership, slot: _ } = self;
        let joined = Joined {
            changed: join.changed,
            endpoint: membership.endpoint(),
            node_port: membership.node_port,
            node_ips: join.addresses,
            host: membership.upstream,
            alias: membership.alias,
            warning: lifetime::warning(&join.access, join.kept_token, join.renews.is_some(), Timestamp::now()),
        };
        if let Some(warning) = &joined.warning {
            tracing::warn!(cluster = %join.member.cluster, "{warning}");
        }
        join.tell.stage(Stage::Done, &joined.to_string()).await;
        joined
    }
}

impl<'a> Join<'a> {
    /// Reads everything a join depends on, and refuses what can be refused without changing anything.
    async fn read(
        hub: &'a Hub,
        order: &'a Order,
        member: &'a Member,
        gateway: &'a Gateway,
        tell: &'a Teller<'a>,
        undo: &'a Undo,
        shared: &'a Shared,
    ) -> Result<Self> {
        let before = hub.cluster(&member.cluster).await?;
        let (access, kept_token, origin) = match &member.source {
            Source::Read(access) => ((**access).clone(), false, None),
            Source::Secret { name, key, context } => {
                let Brought { text, stays } = hub.kubeconfig(name, key).await?;
                let (access, kept_token) = keep::read(&text, context.as_deref(), before.as_ref(), Timestamp::now())
                    .map_err(|failure| failure.about(&format!("Secret {NAMESPACE}/{name}, key {key:?}")))?;
                let origin = Origin { secret: name.clone(), key: key.clone(), context: context.clone() };
                (access, kept_token, stays.then_some(origin))
            }
        };
        let server_name = server_name(member.mode, access.certificate_name(), member.node_port, &member.bounds)
            .map_err(|failure| failure.about(&format!("cluster {}", member.cluster)))?;
        let region = Region::enter(hub, &member.region).await?.at(shared.desks[&member.region].clone());
        let nodes = entry_nodes(&region).await?;
        check_ready(&region, &nodes, &region.ready_proxies().await?)?;
        for (node, why) in nodes.iter().filter_map(|node| Some((node, node.why()?))) {
            tracing::warn!(node = %node.name, region = %region.name, why, "the node is passed over");
        }
        let aliases = gateway.aliases().await?;
        let addresses = aliased_addresses(&nodes, &aliases.addresses(&region.name));
        let join = Self {
            hub,
            order,
            member,
            gateway,
            tell,
            undo,
            shared,
            access,
            server_name,
            before,
            region,
            nodes,
            aliases,
            addresses,
            changed: false,
            kept_token,
            renews: None,
            origin,
        };
        if let ApiHost::Dns(name) = join.access.certificate_name() {
            join.choose_alias(&[name])?;
        }
        Ok(join)
    }

    /// How the cluster is joined through another region than the one asked for.
    fn moves_from(&self) -> Option<Membership> {
        let before = self.before.as_ref().and_then(JoinedCluster::membership)?;
        (before.region != self.member.region).then_some(before)
    }

    /// By what the hub reaches the cluster now, if that is in this region. What KubeVela uses counts, not the record of it, which a run
    /// that died did not write.
    fn serving(&self) -> Option<Serving<'_>> {
        if self.moves_from().is_some() {
            return None;
        }
        Serving::of(self.before.as_ref()?.endpoint()?)
    }

    /// The slot that serves the cluster now, and the one where the way that is asked for belongs.
    async fn slots(&self, laid: &[Laid; 2]) -> Result<(Option<Slot>, Slot)> {
        let by_name = laid.iter().flat_map(|laid| &laid.route).any(|route| route.mode() == Mode::Sni);
        let own = if by_name { self.region.ports(SNI_PORT).await? } else { None };
        let way = Way { host: &self.access.host, port: self.access.port, server_name: self.server_name.as_ref() };
        Ok(slots(laid, own, self.serving(), way, self.region.settings.entry))
    }

    /// The slot that serves the cluster, where that has to go on by the same door, though it leads elsewhere: by the node port that is asked
    /// for, or by the name, which can't lead to two upstreams at a time.
    fn kept(&self, laid: &[Laid; 2], serving: Option<Slot>) -> Option<Slot> {
        let Laid { route, ports } = &laid[serving? as usize];
        let stays = match &self.server_name {
            None => self.member.node_port.is_some() && ports.map(|ports| ports.node) == self.member.node_port,
            name => route.as_ref().is_some_and(|route| route.server_name == *name),
        };
        serving.filter(|_| stays)
    }

    /// Removes what nothing uses any more: the other slot, and what the cluster has in regions it left.
    async fn clear_away(&mut self, kept: Slot) -> Result<()> {
        let name = &self.member.cluster;
        for (slot, laid) in Slot::ALL.into_iter().zip(self.laid().await?) {
            if slot != kept && laid.route.is_some() {
                self.region.remove_route(&self.hub.id.route_name(name, slot)).await?;
                self.changed = true;
            }
            // In its slot, a route by name finds such a port only where a run died.
            if (slot != kept || self.member.mode == Mode::Sni) && laid.ports.is_some() {
                release_ports(self.hub, &self.region, &self.hub.id.port_name(name, slot)).await?;
                self.changed = true;
            }
        }
        for leftover in self.hub.leftovers().await?.into_iter().filter(|leftover| leftover.cluster == *name) {
            if leftover.region == self.member.region {
                self.hub.remove_leftover(&leftover).await?;
            } else {
                leave::clear(self.hub, &leftover).await?;
            }
            self.changed = true;
        }
        Ok(())
    }

    /// Before anything changes on the hub, what will be left in the region that the cluster moves from.
    async fn note_move(&self) -> Result<()> {
        let Some(old) = self.moves_from() else { return Ok(()) };
        let leftover = Leftover { cluster: self.member.cluster.clone(), region: old.region, cut: false };
        self.undo.note(crate::undo::Step::ForgetLeftover(Box::new(self.hub.clone()), leftover.clone()));
        self.hub.put_leftover(&leftover).await
    }
}

/// Where the region can be entered. The name of a load balancer that has just been made may not be known yet.
async fn entry_nodes(region: &Region) -> Result<Vec<EntryNode>> {
    match region.nodes().await {
        Err(failure) if failure.kind == Kind::Unresolvable => Ok(vec![]),
        nodes => nodes,
    }
}

/// Refuses a region that can't be entered, or that nobody serves in, by its nodes and those of its proxies that are ready.
fn check_ready(region: &Region, nodes: &[EntryNode], proxies: &[String]) -> Result<()> {
    // A load balancer is made with the Service, and that with the region's first route.
    let comes = region.settings.entry == Entry::LoadBalancer;
    if !comes && !nodes.iter().any(|node| node.ready || node.lacks_proxy) {
        return Err(no_ready_node(region, nodes));
    }
    if proxies.is_empty() {
        return Err(no_ready_proxy(region));
    }
    if !comes && !nodes.iter().any(|node| node.ready) {
        return Err(no_ready_node(region, nodes));
    }
    Ok(())
}

fn no_ready_node(region: &Region, nodes: &[EntryNode]) -> Failure {
    let address = region.settings.nodes.address_type.as_str();
    let mut hint = "check the proxy cluster's nodes, and nodes at its xregion-proxy";
    let cause = match nodes {
        [] => format!("region {}: no node of its proxy cluster has the labels asked for and an {address}", region.name),
        nodes if nodes.iter().any(|node| node.lacks_proxy) => {
            hint = "let nodes at its xregion-proxy choose those that its proxies run on (nodeSelector), or set externalTrafficPolicy: Cluster there";
            format!("region {}: no proxy is ready on any of the nodes that the hub may enter by ({})", region.name, listed(nodes))
        }
        nodes => format!("region {}: none of its nodes is ready ({})", region.name, listed(nodes)),
    };
    Failure::new(Kind::NoReadyNode, cause, hint)
}

fn listed(nodes: &[EntryNode]) -> String {
    nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn no_ready_proxy(region: &Region) -> Failure {
    Failure::new(
        Kind::NoReadyProxy,
        format!("region {}: no proxy is ready", region.name),
        format!("look at the pods of its xregion-proxy in cluster {}, namespace {NAMESPACE}", region.name),
    )
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;

    use super::*;

    /// A region that is never asked.
    fn region(entry: Entry) -> Region {
        let (service, _) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let mut region = Region::mocked("east", Client::new(service, "default"));
        region.settings.entry = entry;
        region
    }

    fn nodes(of: &[(&str, bool, bool)]) -> Vec<EntryNode> {
        let node = |&(name, ready, lacks_proxy): &(&str, bool, bool)| EntryNode {
            name: name.into(),
            ip: [10, 0, 0, 1].into(),
            ready,
            lacks_proxy,
            balances: false,
        };
        of.iter().map(node).collect()
    }

    #[tokio::test]
    async fn a_region_is_entered_by_a_ready_node_and_served_by_a_ready_proxy() {
        let (ready, lacking, silent) = (("a", true, false), ("b", false, true), ("c", false, false));
        let no_node = "region east: no node of its proxy cluster has the labels asked for and an InternalIP";
        let none_ready = "region east: none of its nodes is ready (c)";
        let none_serves = "region east: no proxy is ready on any of the nodes that the hub may enter by (b, c)";
        let no_proxy = "region east: no proxy is ready";
        for (entry, of, proxies, want) in [
            (Entry::NodePort, &[ready, lacking, silent][..], 1, None),
            (Entry::NodePort, &[], 1, Some((Kind::NoReadyNode, no_node))),
            (Entry::NodePort, &[silent], 1, Some((Kind::NoReadyNode, none_ready))),
            (Entry::NodePort, &[silent], 0, Some((Kind::NoReadyNode, none_ready))),
            (Entry::NodePort, &[lacking, silent], 1, Some((Kind::NoReadyNode, none_serves))),
            (Entry::NodePort, &[lacking, silent], 0, Some((Kind::NoReadyProxy, no_proxy))),
            (Entry::HostNetwork, &[lacking, silent], 1, Some((Kind::NoReadyNode, none_serves))),
            // Its address comes with the first route.
            (Entry::LoadBalancer, &[], 1, None),
            (Entry::LoadBalancer, &[], 0, Some((Kind::NoReadyProxy, no_proxy))),
        ] {
            let proxies = vec!["proxy".to_owned(); proxies];
            let failure = check_ready(&region(entry), &nodes(of), &proxies).err();
            let got = failure.as_ref().map(|failure| (failure.kind, failure.cause()));
            assert_eq!(got, want, "{entry:?}, {of:?}, {proxies:?}");
        }
    }
}
