//! What `status` and `doctor` see of a hub and its regions, before anybody judges it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::aliases::HostAliases;
use super::drift::Told;
use super::entries::Entries;
use super::membership::Membership;
use super::names::{ClusterName, HubId, Slot};
use super::nodes::EntryNode;
use super::ports::Ports;
use super::region::{Entry, Region as Settings, SNI_LISTEN, SNI_PORT};
use super::report::Report;
use super::route::{Laid, Mode, Route, Serving, slots};
use crate::error::Result;

/// A hub, its regions and the clusters joined through them.
#[derive(Debug)]
pub struct Observed {
    /// When it was looked at.
    pub now: Timestamp,
    /// Which hub it is.
    pub hub: HubId,
    /// Whether the addon is enabled there.
    pub addon: Result<()>,
    /// Its cluster-gateway.
    pub gateway: Result<SeenGateway>,
    /// The Services on the hub that lead to regions, where host aliases lead to those. Whoever looks may not be let see them.
    pub services: Result<Option<BTreeMap<ClusterName, Entries>>>,
    /// The regions that were asked, by name.
    pub regions: Vec<SeenRegion>,
    /// The clusters joined through those regions, by name.
    pub clusters: Vec<SeenCluster>,
    /// Clusters joined directly of which can't be told whether they are regions.
    pub unread: Vec<SeenRegion>,
    /// Every joined cluster, with its region if it was joined through one.
    pub joined: BTreeMap<ClusterName, Option<ClusterName>>,
    /// What clusters that left or moved still have: cluster and region.
    pub leftovers: BTreeSet<(ClusterName, ClusterName)>,
    /// The clusters that are being joined just now.
    pub joining: BTreeSet<ClusterName>,
    /// The addon's controller, where it is enabled.
    pub controller: Option<SeenController>,
}

/// The addon's controller.
#[derive(Debug)]
pub struct SeenController {
    /// Whether a pod of it is ready.
    pub ready: bool,
    /// What it can't mend.
    pub problems: Vec<Told>,
}

/// The hub's cluster-gateway.
#[derive(Debug)]
pub struct SeenGateway {
    /// The name of its Deployment.
    pub deployment: String,
    /// Its host aliases.
    pub aliases: HostAliases,
    /// What its rollout waits for, if it is not through.
    pub waiting: Option<String>,
}

/// A region, as far as it can be read.
#[derive(Debug)]
pub struct SeenRegion {
    /// Its name.
    pub name: ClusterName,
    /// What is in it.
    pub inside: Result<Inside>,
}

/// What is in a region.
#[derive(Clone, Debug)]
pub struct Inside {
    /// How long it took to enter it, with connecting, in milliseconds.
    pub millis: u64,
    /// What its `xregion-proxy` says.
    pub settings: Settings,
    /// The nodes the hub enters by.
    pub nodes: Vec<EntryNode>,
    /// Its proxies by name, and whether each is ready.
    pub proxies: BTreeMap<String, bool>,
    /// What each proxy reports.
    pub reports: BTreeMap<String, Report>,
    /// The routes of this hub.
    pub routes: Vec<Route>,
    /// The ports on the Service, of every hub, by name.
    pub ports: BTreeMap<String, Ports>,
    /// Whether the Service is as the settings say, or not there.
    pub service_as_set: bool,
}

/// A cluster joined through a region.
#[derive(Debug)]
pub struct SeenCluster {
    /// Its name.
    pub name: ClusterName,
    /// Where KubeVela connects to.
    pub endpoint: Option<String>,
    /// How it was joined.
    pub membership: Membership,
    /// Whether it answers through the gateway.
    pub answer: Result<Answer>,
}

/// A cluster's answer through the gateway.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The UID of its namespace `kube-system`.
    pub identity: String,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

impl Observed {
    /// What is in a region, if it was asked and answered.
    pub fn inside(&self, region: &ClusterName) -> Option<&Inside> {
        self.regions.iter().find(|seen| seen.name == *region)?.inside.as_ref().ok()
    }

    /// Whether the gateway has a host alias for a cluster in a region.
    pub fn is_aliased(&self, cluster: &ClusterName, region: &ClusterName) -> bool {
        let mut recorded = self.gateway.iter().flat_map(|gateway| gateway.aliases.record.0.values());
        recorded.any(|entry| entry.region == region.as_str() && entry.clusters.contains(cluster.as_str()))
    }
}

impl SeenCluster {
    /// The slot by which it is reached, and what is in each.
    pub fn slot(&self, hub: &HubId, inside: &Inside) -> (Slot, [Laid; 2]) {
        inside.slot(hub, &self.name, &self.membership, self.serving())
    }

    /// By what KubeVela reaches it; where its Secret doesn't say, what is on record.
    pub fn serving(&self) -> Serving<'_> {
        self.endpoint.as_deref().and_then(Serving::of).unwrap_or_else(|| self.membership.serving())
    }
}

impl Inside {
    /// The names of the proxies that are ready.
    pub fn ready_proxies(&self) -> Vec<String> {
        self.proxies.iter().filter(|(_, ready)| **ready).map(|(name, _)| name.clone()).collect()
    }

    /// The region's own port, by which clusters are reached that are told apart by name.
    pub fn own_ports(&self) -> Option<Ports> {
        self.ports.get(SNI_PORT).copied()
    }

    /// Whether there is a Service on which the region's own port is missing, or leads elsewhere than to where proxies listen for it.
    pub fn lacks_own_ports(&self) -> bool {
        !self.ports.is_empty() && self.own_ports().is_none_or(|own| own.listen != SNI_LISTEN)
    }

    /// The port at which the hub asks the region's nodes whether they answer: the region's own, where no cluster hears of it; as long as
    /// that can't be had, one that leads to a cluster.
    pub fn asked_port(&self) -> Option<u16> {
        let entry = self.settings.entry;
        let own = match entry {
            // Proxies on the nodes' network are asked past the Service.
            Entry::HostNetwork => Some(SNI_LISTEN),
            Entry::NodePort | Entry::LoadBalancer if self.lacks_own_ports() => None,
            Entry::NodePort | Entry::LoadBalancer => self.own_ports().map(|own| own.entered_by(entry)),
        };
        let lowest = |routes: &mut dyn Iterator<Item = &Route>| {
            routes.filter_map(|route| Some(self.listened(route)?.entered_by(entry))).min()
        };
        // The same one from look to look; of one that no proxy serves, no node would answer.
        own.or_else(|| lowest(&mut self.routes.iter().filter(|route| self.served(route) > 0)))
            .or_else(|| lowest(&mut self.routes.iter()))
    }

    /// The ports of a route, if they lead to where proxies listen for it.
    fn listened(&self, route: &Route) -> Option<Ports> {
        self.ports.get(&route.port_name()).copied().filter(|ports| ports.listen == route.listen)
    }

    /// The ports of a cluster that is joined in this way, of which this is laid.
    pub fn ports_of(&self, mode: Mode, laid: &Laid) -> Option<Ports> {
        match mode {
            Mode::Port => laid.ports,
            Mode::Sni => self.own_ports(),
        }
    }

    /// The slot by which a cluster is reached, and what is in each.
    pub fn slot(&self, hub: &HubId, name: &ClusterName, membership: &Membership, serving: Serving<'_>) -> (Slot, [Laid; 2]) {
        let laid = Slot::ALL.map(|slot| Laid {
            route: self.routes.iter().find(|route| route.cluster == *name && route.slot == slot).cloned(),
            ports: self.ports.get(&hub.port_name(name, slot)).copied(),
        });
        let (serving, home) = slots(&laid, self.own_ports(), Some(serving), membership.way(), self.settings.entry);
        (serving.unwrap_or(home), laid)
    }

    /// By how many of the ready proxies a route is served.
    pub fn served(&self, route: &Route) -> usize {
        let serves = |proxy: &String| {
            let applied = self.reports.get(proxy).and_then(|report| report.0.get(&route.name()));
            applied.is_some_and(|applied| applied.digest == route.mark() && applied.problem.is_none())
        };
        self.ready_proxies().iter().filter(|proxy| serves(proxy)).count()
    }
}

#[cfg(test)]
pub mod sample;

#[cfg(test)]
mod tests {
    use super::sample::{inside, route};
    use super::*;

    #[test]
    fn nodes_are_asked_where_no_cluster_hears_of_it_or_else_at_a_port_that_is_served() {
        let own = |listen| Some(Ports { listen, node: 30085 });
        let clusters = ["b", "a"];
        for (entry, own, clusters, want) in [
            (Entry::NodePort, own(SNI_LISTEN), &clusters[..], Some(30085)),
            (Entry::NodePort, None, &clusters, Some(30000)),
            (Entry::NodePort, own(8443), &clusters, Some(30000)),
            (Entry::LoadBalancer, own(SNI_LISTEN), &clusters, Some(SNI_LISTEN)),
            (Entry::LoadBalancer, None, &clusters, Some(8000)),
            (Entry::HostNetwork, None, &clusters, Some(SNI_LISTEN)),
            (Entry::NodePort, None, &[], None),
        ] {
            let routes = clusters.iter().zip(8000..).map(|(name, listen)| route(name, Slot::First, "x.example", listen));
            let mut inside = inside(1, routes.collect());
            inside.settings.entry = entry;
            inside.ports.remove(SNI_PORT);
            inside.ports.extend(own.map(|own| (SNI_PORT.to_owned(), own)));
            assert_eq!(inside.asked_port(), want, "{entry:?} {own:?} {clusters:?}");
        }
        let mut inside =
            inside(1, clusters.iter().zip(8000..).map(|(name, listen)| route(name, Slot::First, "x.example", listen)).collect());
        inside.ports.remove(SNI_PORT);
        inside.routes[0].listen = 8007;
        assert_eq!(inside.asked_port(), Some(30001), "nobody listens at the other");
    }
}
