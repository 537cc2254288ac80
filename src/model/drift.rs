//! What is not as recorded, on the hub's gateway and in its regions, and what puts it back. Nothing is ever taken away, and nothing touched
//! of a cluster of which the records leave a doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde::{Deserialize, Serialize};

use super::aliases::{HostAliases, Leads, Wanted};
use super::checkup::{Problem, Subject, join_again};
use super::entries::Entries;
use super::membership::Membership;
use super::names::{ClusterName, HubId, MANAGER, NAMESPACE, Slot};
use super::nodes::{Way, aliased_addresses};
use super::observed::{Inside, SeenRegion};
use super::ports::{Ports, free_listen, node_of, paired};
use super::region::{Entry, SERVICE, SNI_LISTEN};
use super::route::{Laid, Mode, Route};

/// A cluster that was joined through a region, by the hub's records.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: ClusterName,
    /// Where KubeVela connects to.
    pub endpoint: Option<String>,
    /// How it was joined.
    pub membership: Membership,
    /// When it was joined for the first time under its name.
    pub since: Timestamp,
}

/// What the hub has on record.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// The clusters joined through regions.
    pub members: Vec<Member>,
    /// Those that leave, or moved and have something left behind.
    pub leaving: BTreeSet<ClusterName>,
    /// Those that a run is busy with.
    pub busy: BTreeSet<ClusterName>,
}

/// The gateway's Deployment.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its host aliases.
    pub aliases: HostAliases,
    /// Whether its pods take over from each other without a failed request.
    pub smooth: bool,
    /// The Services of regions, where host aliases lead to those.
    pub services: Option<BTreeMap<ClusterName, Entries>>,
    /// The field manager that last wrote it, but for xregion.
    pub last_writer: Option<String>,
}

/// All that is looked at.
pub struct Facts<'a> {
    /// Which hub it is.
    pub hub: &'a HubId,
    /// What it has on record.
    pub records: &'a Records,
    /// The regions of the clusters on record.
    pub regions: &'a [SeenRegion],
    /// Its gateway, if it can be read.
    pub gateway: Option<&'a Standing>,
}

/// What puts something back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Repair {
    /// The gateway gets what it lacks: names, their record, what makes its rollouts smooth.
    Gateway {
        /// Every name on record whose region can be read.
        wanted: Vec<Wanted>,
        /// Those regions.
        regions: BTreeMap<ClusterName, Way>,
    },
    /// The names of a region lead to the nodes that it has now.
    Addresses {
        /// The region.
        region: ClusterName,
        /// Its nodes.
        way: Way,
    },
    /// The Services on the hub that names of a region lead to have all that is needed.
    Entries {
        /// The region.
        region: ClusterName,
        /// Its nodes, and the ports of its clusters.
        way: Way,
    },
    /// A region's Service is what its settings say, and has the region's own port.
    Service {
        /// The region.
        region: ClusterName,
    },
    /// A cluster's way through its region.
    Way {
        /// The region.
        region: ClusterName,
        /// The route as it should be.
        route: Box<Route>,
        /// Its ports as they should be.
        ports: Ports,
        /// What of it is not so.
        lost: Lost,
    },
}

/// What of a way is lost or bent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lost {
    /// The route.
    pub route: bool,
    /// The port on the Service.
    pub port: bool,
}

/// Something that the controller does not put back, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// What it is about.
    pub about: Subject,
    /// What is wrong, and what mends it.
    pub problem: Problem,
}

/// A trouble as it is told to others.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    /// `hub`, `region NAME` or `cluster NAME`.
    pub about: String,
    /// What is wrong.
    pub what: String,
    /// What mends it.
    pub fix: String,
    /// Since when.
    pub since: Timestamp,
}

impl Repair {
    /// What it is counted under.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Gateway { .. } => Subject::Hub,
            Self::Addresses { region, .. } | Self::Entries { region, .. } | Self::Service { region } => {
                Subject::Region(region.clone())
            }
            Self::Way { route, .. } => Subject::Cluster(route.cluster.clone()),
        }
    }

    /// The region in which it is carried out; none: on the hub's gateway, in the one rollout of all that is.
    pub fn inside(&self) -> Option<&ClusterName> {
        match self {
            Self::Way { region, .. } | Self::Service { region } => Some(region),
            Self::Gateway { .. } | Self::Addresses { .. } | Self::Entries { .. } => None,
        }
    }

    /// Whether it puts the region's own port back.
    fn brings_own_ports(&self) -> bool {
        matches!(self, Self::Way { route, lost, .. } if lost.port && route.mode() == Mode::Sni)
    }

    /// The parts of it, as its metric names them.
    pub fn parts(&self) -> Vec<&'static str> {
        match self {
            Self::Gateway { .. } => vec!["gateway"],
            Self::Addresses { .. } => vec!["addresses"],
            Self::Entries { .. } => vec!["entries"],
            Self::Service { .. } => vec!["service"],
            Self::Way { lost, .. } => lost.route.then_some("route").into_iter().chain(lost.port.then_some("port")).collect(),
        }
    }
}

/// What was not as recorded.
impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway { .. } => f.write_str("the gateway's host aliases, their record or its rollout settings"),
            Self::Addresses { region, .. } => write!(f, "the addresses that host aliases of region {region} lead to"),
            Self::Entries { region, .. } => write!(f, "the Services on the hub that lead to region {region}"),
            Self::Service { region } => write!(f, "the way in that the Service of region {region} offers"),
            Self::Way { region, route, .. } => {
                let parts = self.parts();
                let parts: Vec<String> = parts.iter().map(|part| format!("the {part}")).collect();
                write!(f, "{} of {} in region {region}", parts.join(" and "), route.cluster)
            }
        }
    }
}

/// What is to be put back, and what is not.
pub fn decide(facts: &Facts<'_>) -> (Vec<Repair>, Vec<Trouble>) {
    let (mut repairs, mut troubles) = (Vec::new(), Vec::new());
    let Records { members, leaving, busy } = facts.records;
    let settled = members.iter().filter(|member| !leaving.contains(&member.name) && !busy.contains(&member.name));
    // A run that died between `vela cluster join` and the record leaves them apart, and then nobody knows which is right.
    let (proven, doubtful): (Vec<_>, Vec<_>) =
        settled.partition(|member| member.endpoint.as_deref() == Some(&member.membership.endpoint()));
    troubles.extend(doubtful.into_iter().map(doubt));
    let mut readable = Vec::new();
    for seen in facts.regions {
        let mine: Vec<&Member> = proven.iter().copied().filter(|member| member.membership.region == seen.name).collect();
        match &seen.inside {
            _ if mine.is_empty() => {}
            Ok(inside) => {
                let (otherwise, mine): (Vec<&Member>, Vec<_>) =
                    mine.into_iter().partition(|member| entered_otherwise(facts.hub, member, inside));
                let ways: Vec<Repair> = mine.iter().filter_map(|member| way(facts.hub, member, inside)).collect();
                // Where clusters are reached by the region's own port, it comes back with them, and to where it is recorded.
                let lacks_own = inside.lacks_own_ports() && !ways.iter().any(Repair::brings_own_ports);
                repairs.extend((!inside.service_as_set || lacks_own).then(|| Repair::Service { region: seen.name.clone() }));
                repairs.extend(ways);
                if otherwise.is_empty() {
                    readable.push((&seen.name, inside, mine));
                }
                troubles.extend(otherwise.into_iter().map(entry_changed));
            }
            Err(failure) => troubles.push(Trouble {
                about: Subject::Region(seen.name.clone()),
                // Why, `xregion status` sees for itself; words that change from look to look would be news each time.
                problem: Problem::new(
                    "it can't be read: its host aliases stay as they are, and nothing is mended there",
                    failure.hint(),
                ),
            }),
        }
    }
    if let Some(standing) = facts.gateway {
        gateway(standing, &readable, &mut repairs, &mut troubles);
    }
    (repairs, troubles)
}

fn doubt(member: &Member) -> Trouble {
    let (endpoint, recorded) = (member.endpoint.as_deref().unwrap_or("missing"), member.membership.endpoint());
    Trouble {
        about: Subject::Cluster(member.name.clone()),
        problem: Problem::new(
            format!("its endpoint is {endpoint}, and {recorded} is on record: nothing of it is mended"),
            join_again(&member.name, &member.membership.region),
        ),
    }
}

/// Whether a cluster was joined when the hub entered its region by something else: at one of its ports, and not at the one for it now.
pub fn entered_otherwise(hub: &HubId, member: &Member, inside: &Inside) -> bool {
    let (Membership { node_port: port, mode, .. }, entry) = (&member.membership, inside.settings.entry);
    let of_slot = |slot: Slot| inside.ports.get(&hub.port_name(&member.name, slot)).copied();
    let ports: Vec<Ports> = match mode {
        Mode::Port => Slot::ALL.into_iter().filter_map(of_slot).collect(),
        Mode::Sni => inside.own_ports().into_iter().collect(),
    };
    !ports.iter().any(|ports| ports.entered_by(entry) == *port)
        && ports.iter().any(|ports| ports.listen == *port || ports.node == *port)
}

fn entry_changed(member: &Member) -> Trouble {
    let Membership { region, node_port, .. } = &member.membership;
    Trouble {
        about: Subject::Cluster(member.name.clone()),
        problem: Problem::new(
            format!(
                "it was joined at port {node_port}, and its region is entered otherwise now (entry at its xregion-proxy): host aliases of the region stay as they are"
            ),
            join_again(&member.name, region),
        ),
    }
}

/// What a cluster's way through its region lacks.
fn way(hub: &HubId, member: &Member, inside: &Inside) -> Option<Repair> {
    let Membership { region, upstream, upstream_port, bounds, alias, node_port, mode, .. } = &member.membership;
    let (slot, laid) = inside.slot(hub, &member.name, &member.membership, member.membership.serving());
    let laid = &laid[slot as usize];
    let mut route = Route {
        slot,
        hub: hub.clone(),
        cluster: member.name.clone(),
        host: upstream.clone(),
        port: *upstream_port,
        listen: SNI_LISTEN,
        bounds: bounds.clone(),
        server_name: member.membership.server_name().cloned(),
        alias: Some(alias.clone()),
        // It was proven, or it would not be joined; of when, a lost one tells no more than that.
        proven_at: laid.route.as_ref().and_then(|route| route.proven_at).or(Some(member.since)),
        uid: laid.route.as_ref().map(|route| route.uid.clone()).unwrap_or_default(),
    };
    let ports = match (inside.settings.entry, *mode) {
        (Entry::NodePort, mode) => {
            if mode == Mode::Port {
                route.listen = free_listen_of(&route, laid, *node_port, inside);
            }
            Ports { listen: route.listen, node: *node_port }
        }
        // What the hub connects to is what the proxies listen on: another cluster that has it by now keeps it, and the next join tells.
        (Entry::LoadBalancer | Entry::HostNetwork, Mode::Port) if is_listened(*node_port, &route, inside) => return None,
        // The proxies never listen for it there: it was joined by another way in, and its port is lost as well.
        (Entry::LoadBalancer | Entry::HostNetwork, Mode::Sni) if *node_port != SNI_LISTEN => return None,
        (Entry::LoadBalancer | Entry::HostNetwork, mode) => {
            route.listen = *node_port;
            let name = route.port_name();
            let given = |node: u16| inside.ports.iter().any(|(other, ports)| *other != name && ports.node == node);
            let node = || node_of(*node_port, inside.settings.node_ports, given);
            Ports { listen: *node_port, node: inside.ports_of(mode, laid).map(|ports| ports.node).or_else(node)? }
        }
    };
    let lost = Lost { route: laid.route.as_ref() != Some(&route), port: inside.ports_of(*mode, laid) != Some(ports) };
    (lost.route || lost.port).then(|| Repair::Way { region: region.clone(), route: Box::new(route), ports, lost })
}

/// Whether the proxies listen on a port for another route than this one.
fn is_listened(listen: u16, route: &Route, inside: &Inside) -> bool {
    let name = route.port_name();
    // In this order: a name is a hash to compute, and a thousand clusters may each be compared with a thousand.
    inside.ports.iter().any(|(other, ports)| ports.listen == listen && *other != name)
        || inside.routes.iter().any(|other| other.listen == listen && other.port_name() != name)
}

/// What the proxies are to listen on for a route: what is left of that, or the next that is free.
fn free_listen_of(route: &Route, laid: &Laid, node_port: u16, inside: &Inside) -> u16 {
    let taken = |listen: u16| is_listened(listen, route, inside);
    let told = laid.route.as_ref().filter(|route| route.mode() == Mode::Port).map(|route| route.listen);
    let halves = [laid.ports.map(|ports| ports.listen), told];
    match halves {
        [Some(one), Some(other)] if one == other => one,
        // One of them was bent, or only one is there: whichever is nobody else's.
        _ => halves
            .into_iter()
            .flatten()
            .find(|listen| !taken(*listen))
            .unwrap_or_else(|| free_listen(paired(node_port, inside.settings.node_ports), taken)),
    }
}

/// What the gateway lacks of the regions that can be read.
fn gateway(
    standing: &Standing,
    readable: &[(&ClusterName, &Inside, Vec<&Member>)],
    repairs: &mut Vec<Repair>,
    troubles: &mut Vec<Trouble>,
) {
    let aliases = &standing.aliases;
    let (mut wanted, mut regions, mut leading, mut moved) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (region, inside, mine) in readable {
        let now = aliases.addresses(region);
        // Also where the record was lost.
        let names = mine.iter().map(|member| member.membership.alias.as_str()).collect();
        let already = &aliases.lead_to(&names) | &now;
        let nodes = aliased_addresses(&inside.nodes, &already);
        if nodes.is_empty() {
            troubles.push(Trouble {
                about: Subject::Region((*region).clone()),
                problem: match inside.settings.entry {
                    Entry::LoadBalancer => Problem::new(
                        "its load balancer has no address; its host aliases stay as they are",
                        format!("kubectl -n {NAMESPACE} describe service {SERVICE}, in cluster {region}; or change entry at its xregion-proxy"),
                    ),
                    Entry::NodePort | Entry::HostNetwork => Problem::new(
                        "none of its nodes is ready; its host aliases stay as they are",
                        format!("kubectl get nodes -o wide, in cluster {region}; or change nodes at its xregion-proxy"),
                    ),
                },
            });
            continue;
        }
        let ports: BTreeSet<u16> = mine.iter().map(|member| member.membership.node_port).collect();
        let way = Way { nodes, proven: ports.clone(), ports };
        let leads = match &standing.services {
            None => Some(Leads::from(way.nodes.clone())),
            Some(services) => services.get(region).and_then(|entries| entries.leads(&way.ports, &way.nodes)),
        };
        let Some(leads) = leads else {
            // The names come after them.
            repairs.push(Repair::Entries { region: (*region).clone(), way });
            continue;
        };
        if standing.services.is_none() && !now.is_empty() && now != way.nodes {
            repairs.push(Repair::Addresses { region: (*region).clone(), way: way.clone() });
            moved.insert(region.to_string(), leads.clone());
        }
        leading.insert(region.to_string(), leads);
        regions.insert((*region).clone(), way);
        wanted.extend(mine.iter().map(|member| Wanted {
            host: member.membership.alias.clone(),
            cluster: member.name.clone(),
            region: (*region).clone(),
        }));
    }
    let settled = aliases.with(&[], &moved);
    let (after, refused) = settled.with_admitted(&wanted, &leading, true);
    troubles.extend(refused.iter().map(|(one, failure)| Trouble {
        about: Subject::Cluster(one.cluster.clone()),
        problem: Problem::new(format!("host alias: {}", failure.cause()), failure.hint()),
    }));
    let lacks = after.with(&[], &leading) != settled;
    // Where no cluster is joined through a region, the gateway is none of ours.
    if lacks || (!standing.smooth && !wanted.is_empty()) {
        repairs.push(Repair::Gateway { wanted, regions });
    }
}

/// Field managers that are not asked about: xregion, as it names itself and as it did not in earlier versions, and Kubernetes, which notes
/// revisions on Deployments.
const OWN: [&str; 4] = [MANAGER, "", "unknown", "kube-controller-manager"];

/// The field manager that last wrote an object, but for its status and for those who are not asked about.
pub fn last_writer(fields: &[ManagedFieldsEntry]) -> Option<String> {
    let theirs = fields.iter().filter(|entry| {
        let text = |field: &Option<String>| field.as_deref().unwrap_or_default().to_owned();
        text(&entry.subresource).is_empty() && !OWN.contains(&text(&entry.manager).as_str())
    });
    theirs.max_by_key(|entry| entry.time.as_ref().map(|time| time.0)).and_then(|entry| entry.manager.clone())
}

#[cfg(test)]
mod tests;
