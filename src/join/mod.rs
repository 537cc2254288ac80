//! The story of a join: read, route, apply, prove, roll, join. Nothing on the hub changes before the way is proven, and whatever a
//! failed run changed is undone.

mod admit;
mod prove;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::clusters::JoinedCluster;
use crate::hub::gateway::Gateway;
use crate::hub::progress::{Progress, Stage};
use crate::model::aliases::HostAliases;
use crate::model::joined::Joined;
use crate::model::kubeconfig::{Access, authority_part};
use crate::model::labels::Label;
use crate::model::names::{ApiHost, ClusterName, NAMESPACE, SecretName};
use crate::model::nodes::{EntryNode, aliased_addresses};
use crate::model::route::Route;
use crate::region::Region;
use crate::undo::Undo;

const ASK_EVERY: Duration = Duration::from_millis(250);

/// What is asked for.
pub struct Order {
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
    /// The gateway's Deployment, if it can't be found by itself.
    pub gateway: Option<String>,
    /// Whether one cluster may be joined under two names.
    pub allow_second_name: bool,
    /// The `vela` CLI.
    pub vela: PathBuf,
}

/// Where a kubeconfig is.
pub enum Source {
    /// In a Secret of `vela-system` on the hub.
    Secret {
        /// The Secret's name.
        name: SecretName,
        /// The key in it.
        key: String,
    },
    /// It was read already.
    Read(Box<Access>),
}

/// Joins a cluster. `undo` holds, at every await, what would have to be undone if it ended there.
pub async fn join(hub: &Hub, order: &Order, progress: &Progress, undo: &mut Undo) -> Result<Joined> {
    progress.tell(Stage::Reading, &format!("reading the kubeconfig of {} and region {}", order.cluster, order.region)).await;
    let mut join = Join::read(hub, order).await?;

    let upstream = authority_part(&join.access.host.to_string(), join.access.port);
    progress.tell(Stage::Routing, &format!("routing {upstream} through region {}", order.region)).await;
    let current = join.region.route(&hub.id.route_name(&order.cluster, false)).await?;
    let moved = |route: &Route| (&route.host, route.port) != (&join.access.host, join.access.port);
    if current.as_ref().is_some_and(moved) {
        // The route that serves now must not be bent before the new upstream is known to be the same cluster.
        let mark = undo.mark();
        join.lay(true, None, progress, undo).await?;
        undo.back_to(mark).await?;
    }
    let membership = join.lay(false, current, progress, undo).await?;

    progress.tell(Stage::Rolling, &format!("leading {} to the region's nodes on the gateway", membership.alias)).await;
    join.roll(&membership, progress, undo).await?;

    progress.tell(Stage::Joining, &format!("joining {}", order.cluster)).await;
    join.register(&membership, undo).await?;
    Ok(Joined {
        changed: join.changed,
        endpoint: membership.endpoint(),
        node_port: membership.node_port,
        node_ips: join.addresses,
        host: membership.upstream,
        alias: membership.alias,
    })
}

/// A join under way.
struct Join<'a> {
    hub: &'a Hub,
    order: &'a Order,
    access: Access,
    before: Option<JoinedCluster>,
    region: Region,
    nodes: Vec<EntryNode>,
    gateway: Gateway,
    aliases: HostAliases,
    addresses: BTreeSet<IpAddr>,
    /// Whether this run changed anything.
    changed: bool,
}

impl<'a> Join<'a> {
    /// Reads everything a join depends on, and refuses what can be refused without changing anything.
    async fn read(hub: &'a Hub, order: &'a Order) -> Result<Self> {
        let access = match &order.source {
            Source::Read(access) => (**access).clone(),
            Source::Secret { name, key } => {
                let no_files = |_: &std::path::Path| Err(std::io::Error::other("a Secret holds no files"));
                let bytes = hub.kubeconfig(name, key).await?;
                Access::parse(&bytes, None, &no_files)
                    .map_err(|failure| failure.about(&format!("Secret {NAMESPACE}/{name}, key {key:?}")))?
            }
        };
        let before = hub.cluster(&order.cluster).await?;
        if let Some(membership) =
            before.as_ref().and_then(JoinedCluster::membership).filter(|membership| membership.region != order.region)
        {
            return Err(Failure::new(
                Kind::OtherCluster,
                format!("cluster {} is joined through region {} already", order.cluster, membership.region),
                format!("let it leave first (vela cluster detach {}), or name that region", order.cluster),
            ));
        }
        let region = Region::enter(hub, &order.region).await?;
        let nodes = region.nodes().await?;
        if !nodes.iter().any(|node| node.ready) {
            return Err(no_ready_node(&region, &nodes));
        }
        for node in nodes.iter().filter(|node| !node.ready) {
            tracing::warn!(node = node.name, region = %region.name, "the node is not ready and is passed over");
        }
        if region.ready_proxies().await?.is_empty() {
            return Err(no_ready_proxy(&region));
        }
        let gateway = hub.gateway(order.gateway.as_deref()).await?;
        let aliases = gateway.aliases().await?;
        let addresses = aliased_addresses(&nodes, &aliases.addresses(&region.name));
        let join = Self { hub, order, access, before, region, nodes, gateway, aliases, addresses, changed: false };
        if let ApiHost::Dns(name) = join.access.certificate_name() {
            join.choose_alias(&[name])?;
        }
        Ok(join)
    }
}

fn no_ready_node(region: &Region, nodes: &[EntryNode]) -> Failure {
    let address = region.settings.nodes.address_type.as_str();
    let cause = match nodes {
        [] => format!("region {}: no node of its proxy cluster has the labels asked for and an {address}", region.name),
        nodes => format!(
            "region {}: none of its nodes is ready ({})",
            region.name,
            nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ")
        ),
    };
    Failure::new(Kind::NoReadyNode, cause, "check the proxy cluster's nodes, and nodes at its xregion-proxy")
}

fn no_ready_proxy(region: &Region) -> Failure {
    Failure::new(
        Kind::NoReadyProxy,
        format!("region {}: no proxy is ready", region.name),
        format!("look at the pods of its xregion-proxy in cluster {}, namespace {NAMESPACE}", region.name),
    )
}
