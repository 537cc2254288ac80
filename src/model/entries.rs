//! A region's Services on the hub: addresses that stay while the region's nodes come and go. The gateway's host aliases lead to them, and
//! their EndpointSlices list the nodes that answer.
//!
//! A name leads to two of them, which share the nodes between them: a connection that one refuses is tried at the other at once, as Go's
//! dialer does with the addresses of a name. So many names make a [`Shard`] that their line of a hosts file can be read (Go's reader
//! drops one of 64 KiB and every later one). Every Service of a region has every port of this hub's clusters there: which name is in
//! which shard is only a matter of the host aliases.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::aliases::Leads;
use super::names::{ClusterName, KIND, MANAGER, short_hash};

/// The namespace of these Services. They have it to themselves: Kubernetes tells every container of a namespace all ports of all its
/// Services in environment variables, and with a thousand ports no container could start there.
pub const HUB_NAMESPACE: &str = "xregion-system";
/// Label value (of [`KIND`]) of these Services and their EndpointSlices.
pub const KIND_ENTRY: &str = "region-entry";
/// Label: the region.
const REGION: &str = "xregion.oam.dev/region";
/// Label: the shard and the side, such as `0a`.
const PLACE: &str = "xregion.oam.dev/place";
/// Kubernetes' label by which an EndpointSlice belongs to a Service.
const OF_SERVICE: &str = "kubernetes.io/service-name";
/// How many ports an EndpointSlice has at most (`k8s.io/api/discovery/v1`). Each has a range of port numbers of its own, so that none ever moves.
const PORTS_OF_SLICE: u16 = 100;

/// Which of the two Services of a shard.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Side {
    /// The one.
    A,
    /// The other.
    B,
}

impl Side {
    const BOTH: [Self; 2] = [Self::A, Self::B];

    const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }
}

/// Where a Service stands among those of its region.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The shard, from 0.
    pub shard: usize,
    /// The side.
    pub side: Side,
}

impl Place {
    fn of_first(shards: usize) -> impl Iterator<Item = Self> {
        (0..shards).flat_map(|shard| Side::BOTH.map(|side| Self { shard, side }))
    }

    fn label(self) -> String {
        format!("{}{}", self.shard, self.side.letter())
    }

    fn parse(label: &str) -> Option<Self> {
        let side = Side::BOTH.into_iter().find(|side| label.ends_with(side.letter()))?;
        let shard = label.get(..label.len() - 1)?.parse().ok()?;
        Some(Self { shard, side })
    }

    fn service_name(self, region: &ClusterName) -> String {
        format!("region-{}-{}", short_hash(region.as_str(), 10), self.label())
    }
}

/// A Service of a region.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Its ClusterIP.
    pub ip: IpAddr,
    /// Its ports, each led to the same one of the nodes.
    pub ports: BTreeSet<u16>,
    /// Its EndpointSlices, by the range of ports they are for.
    pub slices: BTreeMap<u16, Slice>,
    uid: String,
    version: String,
}

/// An EndpointSlice of such a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slice {
    /// Its ports.
    pub ports: BTreeSet<u16>,
    /// The nodes that connections are led to.
    pub nodes: BTreeSet<IpAddr>,
    version: String,
}

/// The Services of one region.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Entries(pub BTreeMap<Place, Entry>);

/// What the Services of a region should have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Needs {
    /// The ports, beside those that they have.
    pub ports: BTreeSet<u16>,
    /// The nodes to lead to; where there are none, those that they lead to.
    pub nodes: BTreeSet<IpAddr>,
    /// Which ports follow them.
    pub led: Led,
    /// How many shards there should be at least.
    pub shards: usize,
}

/// Which ports of a region's Services follow the nodes that are needed, of those that are led to some already. A port shares an EndpointSlice
/// with others, and they follow together.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Led {
    /// Every one.
    #[default]
    All,
    /// These. The others may be of clusters that were joined when the hub entered the region by something else.
    Of(BTreeSet<u16>),
    /// Those of these that are led to none of the nodes. Where one is left, whoever asks the nodes each second knows better.
    Lost(BTreeSet<u16>),
}

/// A Service, and those of its ports that one EndpointSlice leads on. Any of them tells of all: one may be of a route that no proxy serves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Door {
    /// The Service's address.
    pub ip: IpAddr,
    /// The ports.
    pub ports: Vec<u16>,
}

/// One write to the hub's API. What has a `resourceVersion` is refused (409) if somebody else wrote meanwhile.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Make a Service.
    CreateService(Value),
    /// Merge a patch into the Service of this name.
    PatchService(String, Value),
    /// Make an EndpointSlice.
    CreateSlice(Value),
    /// Put an EndpointSlice in the place of the one that there is.
    ReplaceSlice(String, Value),
}

/// Selects the Services of a region, and their EndpointSlices, by their labels.
pub fn selector(region: &ClusterName) -> String {
    format!("{KIND}={KIND_ENTRY},{REGION}={region}")
}

/// Sorts what there is in [`HUB_NAMESPACE`] by regions. What somebody else made there, or made into something else, is left out.
pub fn by_region(services: &[Service], slices: &[EndpointSlice]) -> BTreeMap<ClusterName, Entries> {
    let mut regions: BTreeMap<ClusterName, Entries> = BTreeMap::new();
    for service in services {
        let Some((region, place, entry)) = entry(service, slices) else { continue };
        regions.entry(region).or_default().0.insert(place, entry);
    }
    regions
}

fn entry(service: &Service, slices: &[EndpointSlice]) -> Option<(ClusterName, Place, Entry)> {
    let (labels, spec) = (service.metadata.labels.as_ref()?, service.spec.as_ref()?);
    let region: ClusterName = labels.get(REGION)?.parse().ok()?;
    let place = Place::parse(labels.get(PLACE)?)?;
    let name = service.metadata.name.as_ref()?;
    if *name != place.service_name(&region) {
        return None;
    }
    let of_it =
        slices.iter().filter(|slice| slice.metadata.labels.as_ref().and_then(|labels| labels.get(OF_SERVICE)) == Some(name));
    let entry = Entry {
        ip: spec.cluster_ip.as_ref()?.parse().ok()?,
        ports: spec.ports.iter().flatten().filter_map(|port| u16::try_from(port.port).ok()).collect(),
        slices: of_it.filter_map(|slice| self::slice(name, slice)).collect(),
        uid: service.metadata.uid.clone().unwrap_or_default(),
        version: service.metadata.resource_version.clone().unwrap_or_default(),
    };
    Some((region, place, entry))
}

fn slice(service: &str, slice: &EndpointSlice) -> Option<(u16, Slice)> {
    let range = slice.metadata.name.as_ref()?.strip_prefix(service)?.strip_prefix('-')?.parse().ok()?;
    let ports = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok()).collect();
    let nodes = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|ip| ip.parse().ok()).collect();
    Some((range, Slice { ports, nodes, version: slice.metadata.resource_version.clone().unwrap_or_default() }))
}

const fn range(port: u16) -> u16 {
    port / PORTS_OF_SLICE
}

impl Entry {
    /// The ranges that it has ports of, or an EndpointSlice.
    fn ranges(&self) -> BTreeSet<u16> {
        self.ports.iter().map(|port| range(*port)).chain(self.slices.keys().copied()).collect()
    }

    fn nodes_at(&self, range: u16) -> BTreeSet<IpAddr> {
        self.slices.get(&range).map(|slice| slice.nodes.clone()).unwrap_or_default()
    }

    /// The nodes that it leads to.
    pub fn nodes(&self) -> BTreeSet<IpAddr> {
        self.slices.values().flat_map(|slice| slice.nodes.iter().copied()).collect()
    }

    /// Whether connections to this port are led to nodes.
    fn serves(&self, port: u16) -> bool {
        let leads = |slice: &Slice| slice.ports.contains(&port) && !slice.nodes.is_empty();
        self.ports.contains(&port) && self.slices.get(&range(port)).is_some_and(leads)
    }
}

impl Entries {
    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.0.keys().map(|place| place.shard + 1).max().unwrap_or(0)
    }

    /// The ports that any of the region's Services has.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.0.values().flat_map(|entry| entry.ports.iter().copied()).collect()
    }

    /// The nodes that these ports are led to.
    pub fn nodes_behind(&self, ports: &BTreeSet<u16>) -> BTreeSet<IpAddr> {
        let ranges: BTreeSet<u16> = ports.iter().map(|port| range(*port)).collect();
        ranges.into_iter().flat_map(|range| self.nodes_at(range)).collect()
    }

    /// The nodes that the ports of a range are led to.
    fn nodes_at(&self, range: u16) -> BTreeSet<IpAddr> {
        self.0.values().flat_map(|entry| entry.nodes_at(range)).collect()
    }

    /// The addresses of the Services.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.0.values().map(|entry| entry.ip).collect()
    }

    /// The nodes that every port is led to which is led to any: after a join of some clusters, others may lag behind.
    pub fn nodes_everywhere(&self) -> BTreeSet<IpAddr> {
        let ranges: BTreeSet<u16> = self.0.values().flat_map(|entry| entry.slices.keys().copied()).collect();
        let each = ranges.into_iter().map(|range| self.nodes_at(range)).filter(|nodes| !nodes.is_empty());
        each.reduce(|all, nodes| &all & &nodes).unwrap_or_default()
    }

    /// The nodes that the region's Services lead to.
    pub fn nodes(&self) -> BTreeSet<IpAddr> {
        self.0.values().flat_map(Entry::nodes).collect()
    }

    /// Where the names of the region lead, if these ports are served everywhere; names made by hand lead to its nodes.
    pub fn leads(&self, ports: &BTreeSet<u16>, nodes: &BTreeSet<IpAddr>) -> Option<Leads> {
        let shards = self.shards();
        let all = || Place::of_first(shards).map(|place| self.0.get(&place));
        let serves = |entry: Option<&Entry>| entry.is_some_and(|entry| ports.iter().all(|port| entry.serves(*port)));
        if shards == 0 || !all().all(serves) {
            return None;
        }
        let group = |shard| self.0.iter().filter(|(place, _)| place.shard == shard).map(|(_, entry)| entry.ip).collect();
        Some(Leads { groups: (0..shards).map(group).collect(), nodes: nodes.clone() })
    }

    /// What is to be written next until the Services of `region` have what they need. Ports come to a Service before they come to its
    /// EndpointSlices, so that what is found in those is complete.
    pub fn writes(&self, region: &ClusterName, needs: &Needs) -> Vec<Write> {
        let ports = &self.ports() | &needs.ports;
        let shards = needs.shards.max(self.shards());
        let services: Vec<Write> = Place::of_first(shards)
            .filter_map(|place| match self.0.get(&place) {
                None => Some(Write::CreateService(service(region, place, needs, &ports))),
                Some(entry) if !ports.is_subset(&entry.ports) => {
                    let patch = json!({"metadata": {"resourceVersion": entry.version}, "spec": {"ports": service_ports(&ports)}});
                    Some(Write::PatchService(place.service_name(region), patch))
                }
                Some(_) => None,
            })
            .collect();
        if !services.is_empty() {
            return services;
        }
        (0..shards).flat_map(|shard| self.slice_writes(region, shard, needs)).collect()
    }

    fn slice_writes(&self, region: &ClusterName, shard: usize, needs: &Needs) -> Vec<Write> {
        let at = |side| self.0.get(&Place { shard, side });
        let [Some(a), Some(b)] = Side::BOTH.map(at) else { return vec![] };
        let ranges: BTreeSet<u16> = [a, b].into_iter().flat_map(Entry::ranges).collect();
        let mut writes = Vec::new();
        for range in ranges {
            // An EndpointSlice has one family, and a Service leads to its own.
            let nodes = self.nodes_of(range, needs).into_iter().filter(|ip| ip.is_ipv4() == a.ip.is_ipv4()).collect();
            // Every other shard begins with the other side: the first address of a name carries its connections.
            let share = share([&a.nodes_at(range), &b.nodes_at(range)], &nodes, shard % 2);
            for ((side, entry), nodes) in Side::BOTH.into_iter().zip([a, b]).zip(&share) {
                let name = Place { shard, side }.service_name(region);
                let ports: BTreeSet<u16> = entry.ports.iter().copied().filter(|port| self::range(*port) == range).collect();
                let now = entry.slices.get(&range);
                if now.map_or(ports.is_empty(), |now| now.ports == ports && now.nodes == *nodes) {
                    continue;
                }
                let slice = endpoint_slice(region, &name, entry, range, &ports, nodes);
                writes.push(match now {
                    None => Write::CreateSlice(slice),
                    Some(_) => Write::ReplaceSlice(format!("{name}-{range}"), slice),
                });
            }
        }
        writes
    }

    /// The nodes that the ports of a range are to be led to.
    fn nodes_of(&self, range: u16, needs: &Needs) -> BTreeSet<IpAddr> {
        let now = self.nodes_at(range);
        let within = |ports: &BTreeSet<u16>| ports.iter().any(|port| self::range(*port) == range);
        let follows = match &needs.led {
            Led::All => true,
            Led::Of(ports) => within(ports),
            Led::Lost(ports) => within(ports) && now.is_disjoint(&needs.nodes),
        };
        match (needs.nodes.is_empty(), now.is_empty()) {
            (true, true) => self.nodes(),
            (false, true) => needs.nodes.clone(),
            (false, false) if follows => needs.nodes.clone(),
            (_, false) => now,
        }
    }

    /// What takes a port off the region's Services: the patch of each that has it, or nothing where it is its last one, and the Service
    /// itself must go. Each with the Service's name and version.
    pub fn without(&self, region: &ClusterName, port: u16) -> Vec<(String, String, Option<Value>)> {
        let of = |(place, entry): (&Place, &Entry)| {
            let ports: BTreeSet<u16> = entry.ports.iter().copied().filter(|other| *other != port).collect();
            let patch = json!({"metadata": {"resourceVersion": entry.version}, "spec": {"ports": service_ports(&ports)}});
            (place.service_name(region), entry.version.clone(), (!ports.is_empty()).then_some(patch))
        };
        self.0.iter().filter(|(_, entry)| entry.ports.contains(&port)).map(of).collect()
    }

    /// The name and version of every Service of the region.
    pub fn versions(&self, region: &ClusterName) -> Vec<(String, String)> {
        self.0.iter().map(|(place, entry)| (place.service_name(region), entry.version.clone())).collect()
    }

    /// What to dial to know whether the hub's nodes lead there, by these ports: for every range and shard, both its sides.
    pub fn doors(&self, ports: &BTreeSet<u16>) -> Vec<Vec<Door>> {
        let mut doors: BTreeMap<(usize, u16), Vec<Door>> = BTreeMap::new();
        for (place, entry) in &self.0 {
            let mut ranges: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
            for port in ports.iter().copied().filter(|port| entry.serves(*port)) {
                ranges.entry(range(port)).or_default().push(port);
            }
            for (range, ports) in ranges {
                doors.entry((place.shard, range)).or_default().push(Door { ip: entry.ip, ports });
            }
        }
        doors.into_values().collect()
    }
}

/// Shares nodes between two sides. A node that is alive stays where it is as long as the sides are about even; where there is one node
/// only, both have it; where none is, all stays as it is.
fn share(now: [&BTreeSet<IpAddr>; 2], alive: &BTreeSet<IpAddr>, first: usize) -> [BTreeSet<IpAddr>; 2] {
    if alive.is_empty() {
        return now.map(Clone::clone);
    }
    let mut sides: [BTreeSet<IpAddr>; 2] = [now[0] & alive, &(now[1] & alive) - now[0]];
    let new: Vec<IpAddr> = alive.iter().copied().filter(|ip| !sides.iter().any(|side| side.contains(ip))).collect();
    for ip in new {
        let smaller = if sides[0].len() == sides[1].len() { first } else { usize::from(sides[0].len() > sides[1].len()) };
        sides[smaller].insert(ip);
    }
    for (from, to) in [(0, 1), (1, 0)] {
        while sides[from].len() > sides[to].len() + 1 {
            let moved = sides[from].pop_last();
            sides[to].extend(moved);
        }
    }
    for (one, other) in [(0, 1), (1, 0)] {
        if sides[one].is_empty() {
            sides[one] = sides[other].clone();
        }
    }
    sides
}

fn labels(region: &ClusterName, place: Option<Place>) -> Value {
    let mut labels = json!({"app.kubernetes.io/managed-by": MANAGER, KIND: KIND_ENTRY, REGION: region});
    if let Some(place) = place {
        labels[PLACE] = json!(place.label());
    }
    labels
}

fn port_name(port: u16) -> String {
    format!("p{port}")
}

fn service_ports(ports: &BTreeSet<u16>) -> Vec<Value> {
    ports.iter().map(|port| json!({"name": port_name(*port), "port": port, "targetPort": port, "protocol": "TCP"})).collect()
}

fn family(ip: &IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn service(region: &ClusterName, place: Place, needs: &Needs, ports: &BTreeSet<u16>) -> Value {
    let families: Vec<_> = needs.nodes.first().map(family).into_iter().collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": place.service_name(region), "namespace": HUB_NAMESPACE, "labels": labels(region, Some(place))},
        // No selector: the EndpointSlices are xregion's.
        "spec": {"type": "ClusterIP", "ipFamilyPolicy": "SingleStack", "ipFamilies": families, "ports": service_ports(ports)},
    })
}

fn endpoint_slice(
    region: &ClusterName,
    service: &str,
    entry: &Entry,
    range: u16,
    ports: &BTreeSet<u16>,
    nodes: &BTreeSet<IpAddr>,
) -> Value {
    let mut labels = labels(region, None);
    labels[OF_SERVICE] = json!(service);
    labels["endpointslice.kubernetes.io/managed-by"] = json!(MANAGER);
    let mut metadata = json!({
        "name": format!("{service}-{range}"),
        "namespace": HUB_NAMESPACE,
        "labels": labels,
        // It goes with its Service.
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": service, "uid": entry.uid}],
    });
    if let Some(now) = entry.slices.get(&range) {
        metadata["resourceVersion"] = json!(now.version);
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": family(&entry.ip),
        "endpoints": nodes.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect::<Vec<_>>(),
        "ports": ports.iter().map(|port| json!({"name": port_name(*port), "port": port, "protocol": "TCP"})).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests;
