//! The first half of a join, in the region: the route is written, taken up and proven.

use std::time::Duration;

use futures::future::try_join_all;
use futures::try_join;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::{ASK_EVERY, Join, Proxies, entry_nodes};
use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::progress::Stage;
use crate::model::aliases::Wanted;
use crate::model::lifetime;
use crate::model::membership::{self, Membership};
use crate::model::names::{ApiHost, DnsName, NAMESPACE, Slot};
use crate::model::nodes::aliased_addresses;
use crate::model::ports::Ports;
use crate::model::region::{Entry, SERVICE, SNI_LISTEN};
use crate::model::renewal::renewable;
use crate::model::report::{Reason, Uptake, uptake};
use crate::model::route::{Laid, Mode, Route};
use crate::probe::{self, Door};
use crate::undo::Step;

/// How long the ready proxies may take to take up a route, which is less than a stage is believed. (Behind 700 others, on a busy machine,
/// 30 s were too few.)
const UPTAKE_PATIENCE: Duration = Duration::from_secs(60);
/// How long clouds may take to make a load balancer, or to give it one more port.
const LOAD_BALANCER_PATIENCE: Duration = Duration::from_secs(240);
const ASK_LOAD_BALANCER_EVERY: Duration = Duration::from_secs(2);
/// How long nodes get to hear of a new port of the Service: kube-proxy writes its rules about a second later.
const PORT_PATIENCE: Duration = Duration::from_secs(10);

/// The pause before proxies are looked at again: what takes long has others before it.
fn pause(start: Instant) -> Duration {
    let left = UPTAKE_PATIENCE.saturating_sub(start.elapsed());
    (start.elapsed() / 4).min(left).max(ASK_EVERY)
}

impl Join<'_> {
    /// What the region has of the cluster, slot by slot.
    pub(super) async fn laid(&self) -> Result<[Laid; 2]> {
        self.region.laid(&self.hub.id, &self.member.cluster).await
    }

    /// The route to the upstream asked for, with what is known of the one that is in its slot now; it has no port yet.
    pub(super) fn route(&self, slot: Slot, current: Option<&Route>) -> Route {
        Route {
            slot,
            hub: self.hub.id.clone(),
            cluster: self.member.cluster.clone(),
            host: self.access.host.clone(),
            port: self.access.port,
            listen: SNI_LISTEN,
            bounds: self.member.bounds.clone(),
            server_name: self.server_name.clone(),
            alias: current.and_then(|route| route.alias.clone()),
            proven_at: current.and_then(|route| route.proven_at),
            uid: current.map(|route| route.uid.clone()).unwrap_or_default(),
        }
    }

    /// Lays the way in this slot, by a port that is there for that only, to see whether it leads to the cluster, and takes it away
    /// again.
    pub(super) async fn try_out(&mut self, slot: Slot) -> Result<()> {
        let (mark, server_name) = (self.undo.mark(), self.server_name.take());
        self.lay(slot, None, None).await?;
        self.server_name = server_name;
        self.undo.back_to(mark).await
    }

    /// Writes the route and its port, waits until every ready proxy serves it, and proves it. Where no node port is asked for and it
    /// has none, it gets the preferred one if that is free.
    pub(super) async fn lay(&mut self, slot: Slot, current: Option<Route>, preferred: Option<u16>) -> Result<Membership> {
        let turns = &self.shared.turns;
        let turn = turns.acquire().await;
        let mut route = self.route(slot, current.as_ref());
        let ports = match route.mode() {
            Mode::Port => Some(self.lay_ports(&route, preferred).await?),
            Mode::Sni => {
                // The Service may have come with this route.
                self.note_ports(slot);
                None
            }
        };
        route.listen = ports.map_or(route.listen, |ports| ports.listen);
        let is_new = current.as_ref().map(Route::digest) != Some(route.digest());
        if is_new {
            // Proven is only what leads where it led.
            (route.alias, route.proven_at) = (None, None);
            self.note_route(current.as_ref(), &route);
            route.uid = self.region.put_route(&route).await?;
            self.changed = true;
        }
        let ports = match ports {
            Some(ports) => ports,
            // After the route: whoever finds it there leaves the Service alone.
            None => {
                let new = current.is_none().then(|| route.name());
                let (ports, written) = self.region.take_own_ports(new.as_deref()).await?;
                self.changed |= written;
                ports
            }
        };
        drop(turn);
        self.applied(&route).await?;

        if self.region.settings.entry == Entry::LoadBalancer {
            self.await_load_balancer().await?;
        }

        let _turn = turns.acquire().await;
        let port = ports.entered_by(self.region.settings.entry);
        let ready = self.nodes.iter().filter(|node| node.ready).count();
        self.tell
            .stage(
                Stage::Proving,
                &format!("proving the way to {} over {ready} {}", route.cluster, entry_name(self.region.settings.entry)),
            )
            .await;
        let (alias, identity) = self.prove(port, route.mode()).await?;
        if route.proven_at.is_none() || route.alias.as_ref() != Some(&alias) {
            route.alias = Some(alias.clone());
            route.proven_at = Some(Timestamp::now());
            if is_new {
                self.note_route(current.as_ref(), &route);
            }
            self.region.put_route(&route).await?;
            self.changed = true;
        }
        let recorded = self.before.as_ref().and_then(JoinedCluster::membership).filter(|recorded| recorded.identity == identity);
        let source = self.origin.clone().or_else(|| recorded?.source);
        Ok(Membership {
            region: self.member.region.clone(),
            mode: route.mode(),
            upstream: route.host,
            upstream_port: route.port,
            bounds: route.bounds,
            alias,
            node_port: port,
            identity,
            expires: lifetime::expiry(&self.access),
            renews: self.renews,
            source,
        })
    }

    /// How to take the ports of a slot away again.
    fn note_ports(&self, slot: Slot) {
        let (hub, region) = (Box::new(self.hub.clone()), Box::new(self.region.clone()));
        self.undo.note(Step::ReleasePorts(hub, region, self.member.cluster.clone(), slot));
    }

    /// How to put the region back to what it was before this route was written.
    fn note_route(&self, before: Option<&Route>, written: &Route) {
        let (region, written) = (Box::new(self.region.clone()), Box::new(written.clone()));
        self.undo.note(match before {
            Some(before) => Step::PutRoute { region, written, before: Box::new(before.clone()) },
            None => Step::RemoveRoute(region, written),
        });
    }

    /// Gives a route the ports that are its own.
    async fn lay_ports(&mut self, route: &Route, preferred: Option<u16>) -> Result<Ports> {
        let had = self.region.ports(&route.port_name()).await?;
        match (had, self.asked(route.slot).await?) {
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
            (None, _) => self.note_ports(route.slot),
        }
        let ports = self.take_ports(route, preferred.filter(|_| had.is_none())).await?;
        self.changed |= had.is_none();
        Ok(ports)
    }

    /// Waits until the region's load balancer has an address: the first route of a region has it made.
    async fn await_load_balancer(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.nodes.is_empty() {
            if start.elapsed() > LOAD_BALANCER_PATIENCE {
                return Err(Failure::new(
                    Kind::NoReadyNode,
                    format!("region {}: its load balancer has no address after {} s", self.region.name, start.elapsed().as_secs()),
                    format!(
                        "kubectl -n {NAMESPACE} describe service {SERVICE}, in cluster {}, says why; or change entry at its xregion-proxy",
                        self.region.name
                    ),
                ));
            }
            self.tell.stage(Stage::Applying, &format!("waiting for the load balancer of region {}", self.region.name)).await;
            sleep(ASK_LOAD_BALANCER_EVERY).await;
            self.nodes = entry_nodes(&self.region).await?;
        }
        self.addresses = aliased_addresses(&self.nodes, &self.aliases.addresses(&self.region.name));
        Ok(())
    }

    /// The node port asked for, unless the cluster's other slot has it.
    async fn asked(&self, slot: Slot) -> Result<Option<u16>> {
        let Some(asked) = self.member.node_port else { return Ok(None) };
        let other = self.region.ports(&self.hub.id.port_name(&self.member.cluster, slot.other())).await?;
        Ok(Some(asked).filter(|asked| other.is_none_or(|other| other.node != *asked)))
    }

    pub(super) async fn take_ports(&self, route: &Route, preferred: Option<u16>) -> Result<Ports> {
        // What another cluster of the run asks for is its own.
        let preferred = preferred.filter(|node| !self.region.is_asked_for(*node));
        if preferred.is_some() && self.member.node_port.is_none() {
            match self.region.take_ports(&route.port_name(), preferred).await {
                Err(failure) if failure.kind == Kind::NodePortTaken => {}
                taken => return taken,
            }
        }
        self.region.take_ports(&route.port_name(), self.asked(route.slot).await?).await
    }

    /// Waits until every ready proxy serves the route.
    async fn applied(&self, route: &Route) -> Result<()> {
        let start = Instant::now();
        let mut told = String::new();
        let ask = async || {
            let (ready, reports) = try_join!(self.region.ready_proxies(), self.region.reports())?;
            Ok(Proxies { ready, reports })
        };
        loop {
            let asked = self.shared.proxies[&self.region.name].get(ask()).await;
            let state = asked.map(|proxies| uptake(&route.name(), &route.mark(), &proxies.ready, &proxies.reports));
            let state = match state {
                // Its API server, or the gateway, may be restarting.
                Err(failure) if failure.kind == Kind::RegionUnreachable && start.elapsed() < UPTAKE_PATIENCE => {
                    tracing::warn!(%failure, "the region is asked again");
                    sleep(pause(start)).await;
                    continue;
                }
                state => state?,
            };
            let message = match state {
                Uptake::Everywhere => return Ok(()),
                // Its DNS is asked again and again: each lookup is given five seconds, and three after it the next one begins.
                Uptake::Failed { proxy, problem } if problem.reason == Reason::Unanswered && start.elapsed() < UPTAKE_PATIENCE => {
                    format!("{} (says {proxy})", problem.message)
                }
                Uptake::Failed { proxy, problem } => {
                    let (kind, hint) = match problem.reason {
                        Reason::Unresolvable | Reason::Unanswered => {
                            (Kind::Unresolvable, "check the host in the kubeconfig, and the region's DNS")
                        }
                        Reason::Refused => (
                            Kind::AddressRefused,
                            "check the server in the kubeconfig, and upstreams.allow at the region's xregion-proxy",
                        ),
                        Reason::Invalid | Reason::Rejected | Reason::Other => (Kind::RouteNotApplied, "see the proxy's log"),
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
            if start.elapsed() >= UPTAKE_PATIENCE {
                return Err(Failure::new(
                    Kind::RouteNotApplied,
                    format!("region {}: after {} s, {message}", self.region.name, start.elapsed().as_secs()),
                    "see the logs of its xregion-proxy",
                ));
            }
            if message != told {
                self.tell.stage(Stage::Applying, &format!("waiting for region {}: {message}", self.region.name)).await;
                told = message;
            }
            sleep(pause(start)).await;
        }
    }

    /// Goes the way the gateway will go, over every ready node: TCP, TLS name and authority, credentials, identity.
    async fn prove(&mut self, port: u16, mode: Mode) -> Result<(DnsName, String)> {
        let patience = Duration::from_secs(u64::from(self.region.settings.timeouts.connect_seconds));
        let let_in = self.region.settings.bounds().both(&self.member.bounds, mode);
        let doors: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.ready)
            .map(|node| Door {
                node: node.to_string(),
                ip: node.ip,
                port,
                patience: port_patience(self.region.settings.entry),
                upstream_patience: patience,
                let_in: let_in.clone(),
            })
            .collect();
        let name = self.access.certificate_name();
        let presented = try_join_all(doors.iter().map(|door| probe::certificate_names(door, &name, &self.access))).await?;
        let candidates = match &name {
            ApiHost::Dns(name) => vec![name.clone()],
            ApiHost::Ip(_) => presented.into_iter().next().unwrap_or_default(),
        };
        let alias = self.choose_alias(&candidates)?;
        self.check_kept(&alias)?;
        let clients = doors.iter().map(|door| probe::client(door, &alias, &self.access)).collect::<Result<Vec<_>>>()?;
        let identities = try_join_all(clients.iter().map(probe::Probed::identity)).await?;
        let identity = identities.first().cloned().unwrap_or_default();
        if let Some((door, _)) = doors.iter().zip(&identities).find(|(_, other)| **other != identity) {
            return Err(Failure::new(
                Kind::CrossedRoute,
                format!("{} and {} lead to different clusters", doors[0].node, door.node),
                "another hub or an old configuration answers on that port: see the logs of the region's xregion-proxy",
            ));
        }
        self.check_identity(&identity, &membership::endpoint(&alias, port)).await?;
        if let (Some(client), Some(door)) = (clients.first(), doors.first()) {
            client.ensure_namespace().await?;
            self.keep_later_token(door, &alias, &identity).await?;
            self.renews = None;
            if let Some((account, lifetime)) = renewable(&self.access.credentials)
                && probe::client(door, &alias, &self.access)?.may_renew(&account).await?
            {
                self.renews = Some(lifetime.renewal());
            }
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
            match self.admit(&self.wanted(name)) {
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

    fn admit(&self, wanted: &Wanted) -> Result<()> {
        if self.order.adopt {
            self.aliases.admit_adopted(wanted, &self.addresses)?;
        } else {
            self.aliases.admit_move(wanted)?;
        }
        // A name that leads there already takes nothing away.
        if self.aliases.leads_to(&wanted.host).is_empty() { self.shared.direct.admit(wanted) } else { Ok(()) }
    }

    pub(super) fn wanted(&self, host: &DnsName) -> Wanted {
        Wanted { host: host.clone(), cluster: self.member.cluster.clone(), region: self.member.region.clone() }
    }

    /// The name must not belong to another cluster, nor the cluster to another name.
    async fn check_identity(&self, identity: &str, endpoint: &str) -> Result<()> {
        let name = &self.member.cluster;
        if let Some(before) = &self.before {
            // A run that was killed between joining and recording leaves just the Secret that this one would write.
            let interrupted = before.endpoint() == Some(endpoint) && before.data("ca.crt") == Some(&self.access.ca);
            let known = match before.membership() {
                _ if self.member.replace => identity.to_owned(),
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
                    "choose another name; replace (--replace) gives the name to this cluster, and KubeVela deploys there what it deployed to the other",
                ));
            }
        }
        if !self.member.allow_second_name
            && let known = self.shared.identities.get(self.hub.identities()).await?
            && let Some((other, _)) =
                known.iter().find(|(other, known)| other != name.as_str() && known.as_deref() == Some(identity))
        {
            return Err(second_name(other));
        }
        Ok(())
    }
}

/// How long a new port may take to be open.
const fn port_patience(entry: Entry) -> Duration {
    match entry {
        Entry::NodePort | Entry::HostNetwork => PORT_PATIENCE,
        Entry::LoadBalancer => LOAD_BALANCER_PATIENCE,
    }
}

const fn entry_name(entry: Entry) -> &'static str {
    match entry {
        Entry::NodePort | Entry::HostNetwork => "nodes",
        Entry::LoadBalancer => "addresses of its load balancer",
    }
}

/// The failure of a cluster that has another name already.
pub(super) fn second_name(other: &str) -> Failure {
    Failure::new(
        Kind::SecondName,
        format!("this cluster is joined already, as {other}"),
        "use that name; KubeVela would deploy twice to one cluster (allowSecondName, or --allow-second-name, joins it all the same)",
    )
}
