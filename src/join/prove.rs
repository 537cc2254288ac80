//! The first half of a join, in the region: the route is written, taken up and proven.

use std::time::Duration;

use futures::future::try_join_all;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{ASK_EVERY, Join};
use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::progress::{Progress, Stage};
use crate::model::aliases::Wanted;
use crate::model::membership::{self, Membership};
use crate::model::names::{ApiHost, DnsName};
use crate::model::report::{Reason, Uptake, uptake};
use crate::model::route::Route;
use crate::probe::{self, Door};
use crate::undo::{Step, Undo};

/// How long the ready proxies may take to take up a route.
const UPTAKE_PATIENCE: Duration = Duration::from_secs(30);

impl Join<'_> {
    /// Writes the route and its port, waits until every ready proxy serves it, and proves it.
    pub(super) async fn lay(
        &mut self,
        trial: bool,
        current: Option<Route>,
        progress: &Progress,
        undo: &mut Undo,
    ) -> Result<Membership> {
        let mut route = Route {
            trial,
            hub: self.hub.id.clone(),
            cluster: self.order.cluster.clone(),
            host: self.access.host.clone(),
            port: self.access.port,
            listen: 0,
            alias: current.as_ref().and_then(|route| route.alias.clone()),
            proven_at: current.as_ref().and_then(|route| route.proven_at),
        };
        let had = self.region.ports(&route.port_name()).await?;
        let asked = self.order.node_port.filter(|_| !trial);
        match (had, asked) {
            (Some(had), Some(asked)) if had.node != asked => {
                return Err(Failure::new(
                    Kind::NodePortTaken,
                    format!(
                        "cluster {} has node port {} already, and moving it to {asked} would cut its connections",
                        route.cluster, had.node
                    ),
                    format!("leave out nodePort, or give {}", had.node),
                ));
            }
            (Some(_), _) => {}
            (None, _) => undo.note(Step::ReleasePorts(Box::new(self.region.clone()), route.port_name())),
        }
        let ports = self.region.take_ports(&route.port_name(), asked).await?;
        route.listen = ports.listen;
        self.changed |= !trial && had.is_none();
        if current.as_ref().map(Route::digest) != Some(route.digest()) {
            undo.note(match current.clone() {
                Some(current) => Step::PutRoute(Box::new(self.region.clone()), Box::new(current)),
                None => Step::RemoveRoute(Box::new(self.region.clone()), route.name()),
            });
            self.region.put_route(&route).await?;
            self.changed |= !trial;
        }
        self.applied(&route, progress).await?;

        progress
            .tell(
                Stage::Proving,
                &format!("proving the way to {} over {} nodes", route.cluster, self.nodes.iter().filter(|n| n.ready).count()),
            )
            .await;
        let (alias, identity) = self.prove(ports.node).await?;
        if !trial && (route.proven_at.is_none() || route.alias.as_ref() != Some(&alias)) {
            route.alias = Some(alias.clone());
            route.proven_at = Some(Timestamp::now());
            self.region.put_route(&route).await?;
            self.changed = true;
        }
        Ok(Membership {
            region: self.order.region.clone(),
            upstream: route.host,
            upstream_port: route.port,
            alias,
            node_port: ports.node,
            identity,
        })
    }

    /// Waits until every ready proxy serves the route.
    async fn applied(&self, route: &Route, progress: &Progress) -> Result<()> {
        let start = Instant::now();
        let mut told = String::new();
        loop {
            let ready = self.region.ready_proxies().await?;
            let state = uptake(&route.name(), &route.digest(), &ready, &self.region.reports().await?);
            let message = match state {
                Uptake::Everywhere => return Ok(()),
                Uptake::Failed { proxy, problem } => {
                    let (kind, hint) = match problem.reason {
                        Reason::Unresolvable => (Kind::Unresolvable, "check the host in the kubeconfig, and the region's DNS"),
                        Reason::Refused => (
                            Kind::AddressRefused,
                            "check the server in the kubeconfig, and upstreams.allow at the region's xregion-proxy",
                        ),
                        Reason::Invalid | Reason::Rejected => (Kind::RouteNotApplied, "see the proxy's log"),
                    };
                    return Err(Failure::new(
                        kind,
                        format!("region {}: {} (says {proxy})", self.region.name, problem.message),
                        hint,
                    ));
                }
                Uptake::NoProxy => "no proxy is ready".to_owned(),
                Uptake::Partial { serving, ready } => format!("{serving} of {ready} proxies serve it"),
            };
            if start.elapsed() > UPTAKE_PATIENCE {
                return Err(Failure::new(
                    Kind::RouteNotApplied,
                    format!("region {}: after {} s, {message}", self.region.name, UPTAKE_PATIENCE.as_secs()),
                    "see the logs of its xregion-proxy",
                ));
            }
            if message != told {
                progress.tell(Stage::Applying, &format!("waiting for region {}: {message}", self.region.name)).await;
                told = message;
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Goes the way the gateway will go, over every ready node: TCP, TLS name and authority, credentials, identity.
    async fn prove(&self, node_port: u16) -> Result<(DnsName, String)> {
        let patience = Duration::from_secs(u64::from(self.region.settings.timeouts.connect_seconds));
        let doors: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.ready)
            .map(|node| Door { node: node.name.clone(), ip: node.ip, port: node_port, upstream_patience: patience })
            .collect();
        let name = self.access.certificate_name();
        let presented = try_join_all(doors.iter().map(|door| probe::certificate_names(door, &name, &self.access))).await?;
        let candidates = match &name {
            ApiHost::Dns(name) => vec![name.clone()],
            ApiHost::Ip(_) => presented.into_iter().next().unwrap_or_default(),
        };
        let alias = self.choose_alias(&candidates)?;
        let clients = doors.iter().map(|door| probe::client(door, &alias, &self.access)).collect::<Result<Vec<_>>>()?;
        let identities = try_join_all(clients.iter().map(probe::Probed::identity)).await?;
        let identity = identities.first().cloned().unwrap_or_default();
        if let Some((door, _)) = doors.iter().zip(&identities).find(|(_, other)| **other != identity) {
            return Err(Failure::new(
                Kind::CrossedRoute,
                format!("nodes {} and {} lead to different clusters", doors[0].node, door.node),
                "another hub or an old configuration answers on that node port: see the logs of the region's xregion-proxy",
            ));
        }
        self.check_identity(&identity, &membership::endpoint(&alias, node_port)).await?;
        if let Some(client) = clients.first() {
            client.ensure_namespace().await?;
        }
        Ok((alias, identity))
    }

    /// The first of the names that may be aliased; the one in use is kept.
    pub(super) fn choose_alias(&self, candidates: &[DnsName]) -> Result<DnsName> {
        let in_use = self.before.as_ref().and_then(JoinedCluster::membership).map(|membership| membership.alias);
        if let Some(in_use) = in_use.filter(|alias| candidates.contains(alias)) {
            return Ok(in_use);
        }
        let mut refused = None;
        for name in candidates.iter().filter(|name| !name.is_reserved()) {
            match self.aliases.admit(&self.wanted(name)) {
                Ok(()) => return Ok(name.clone()),
                Err(failure) => refused = refused.or(Some(failure)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Failure::new(
                Kind::NoUsableName,
                format!("the certificate of {} has no DNS name that the hub could use", self.access.host),
                "give the API server's certificate a DNS name of its own (no wildcard, not kubernetes or localhost), or set tls-server-name in the kubeconfig to one it has",
            )
        }))
    }

    pub(super) fn wanted(&self, host: &DnsName) -> Wanted {
        Wanted { host: host.clone(), cluster: self.order.cluster.clone(), region: self.order.region.clone() }
    }

    /// The name must not belong to another cluster, nor the cluster to another name.
    async fn check_identity(&self, identity: &str, endpoint: &str) -> Result<()> {
        let name = &self.order.cluster;
        if let Some(before) = &self.before {
            // A run that was killed between joining and recording leaves just the Secret that this one would write.
            let interrupted = before.endpoint() == Some(endpoint) && before.data("ca.crt") == Some(&self.access.ca);
            let known = match before.membership() {
                Some(membership) => membership.identity,
                None if interrupted => identity.to_owned(),
                None => self.hub.identity_through_gateway(name).await.map_err(|failure| {
                    Failure::new(
                        Kind::OtherCluster,
                        format!(
                            "a cluster {name} is joined already, and can't be asked whether it is this one: {}",
                            failure.cause()
                        ),
                        format!("choose another name, or detach that one first: vela cluster detach {name}"),
                    )
                })?,
            };
            if known != identity {
                return Err(Failure::new(
                    Kind::OtherCluster,
                    format!(
                        "the name {name} belongs to another cluster: the one joined has identity {known}, this kubeconfig leads to {identity}"
                    ),
                    format!("choose another name, or detach that one first: vela cluster detach {name}"),
                ));
            }
        }
        if !self.order.allow_second_name
            && let Some(other) = self.hub.name_of(identity, name).await?
        {
            return Err(Failure::new(
                Kind::SecondName,
                format!("this cluster is joined already, as {other}"),
                "use that name; KubeVela would deploy twice to one cluster (allowSecondName, or --allow-second-name, joins it all the same)",
            ));
        }
        Ok(())
    }
}
