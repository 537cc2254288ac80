//! The nodes of a proxy cluster by which the hub enters its region.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::pods::is_ready;
use super::region::Nodes;

/// A node of the proxy cluster with the address the hub uses.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct EntryNode {
    /// The node's name.
    pub name: String,
    /// Its address of the region's address type.
    pub ip: IpAddr,
    /// Whether the hub can enter by it: its condition `Ready` is true, and a ready proxy is on it where one has to be.
    pub ready: bool,
    /// Whether only such a proxy is missing.
    pub lacks_proxy: bool,
    /// Whether it is no node, but an address of the region's load balancer.
    pub balances: bool,
}

/// As messages name it.
impl fmt::Display for EntryNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.balances { "load balancer" } else { "node" }, self.name)
    }
}

impl EntryNode {
    /// Why the hub can't enter by it, if it can't.
    pub fn why(&self) -> Option<&'static str> {
        match (self.ready, self.lacks_proxy) {
            (true, _) => None,
            (false, true) => Some("no ready proxy on it"),
            (false, false) => Some("not ready"),
        }
    }
}

/// The way into a region.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Way {
    /// The addresses of the nodes by which the hub enters it.
    pub nodes: BTreeSet<IpAddr>,
    /// The ports there that the hub connects to.
    pub ports: BTreeSet<u16>,
    /// Those of them of which it was seen, or is on record, that they lead to clusters: by others nobody may be reached any more.
    pub proven: BTreeSet<u16>,
}

/// The nodes that the region's settings choose and that have an address, by name.
pub fn entry_nodes(nodes: &[Node], settings: &Nodes) -> Vec<EntryNode> {
    let mut chosen: Vec<_> = nodes.iter().filter_map(|node| entry_node(node, settings)).collect();
    chosen.sort_unstable();
    chosen
}

fn entry_node(node: &Node, settings: &Nodes) -> Option<EntryNode> {
    let labels = node.metadata.labels.as_ref();
    if settings.selector.iter().any(|(key, value)| labels.and_then(|labels| labels.get(key)) != Some(value)) {
        return None;
    }
    let status = node.status.as_ref()?;
    let wanted = settings.address_type.as_str();
    let ip = status
        .addresses
        .iter()
        .flatten()
        .filter(|address| address.type_ == wanted)
        .find_map(|address| address.address.parse().ok())?;
    let ready = status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some(EntryNode { name: node.metadata.name.clone()?, ip, ready, lacks_proxy: false, balances: false })
}

/// The addresses of a region's load balancer, each known by a name: those of IPv4, if it has any. From a hub of the one family those of the
/// other may be nowhere, and a Service on the hub leads to one only.
pub fn of_load_balancer(addresses: impl IntoIterator<Item = (String, IpAddr)>) -> Vec<EntryNode> {
    let mut addresses: Vec<_> = addresses.into_iter().collect();
    if addresses.iter().any(|(_, ip)| ip.is_ipv4()) {
        addresses.retain(|(_, ip)| ip.is_ipv4());
    }
    let entry = |(name, ip)| EntryNode { name, ip, ready: true, lacks_proxy: false, balances: true };
    let mut entries: Vec<_> = addresses.into_iter().map(entry).collect();
    entries.sort_unstable();
    entries.dedup_by_key(|entry| entry.ip);
    entries
}

/// The nodes where each takes connections for the proxies on it only: one without a ready proxy drops them.
pub fn with_proxies_of(mut nodes: Vec<EntryNode>, proxies: &[Pod]) -> Vec<EntryNode> {
    let place = |pod: &Pod| pod.spec.as_ref()?.node_name.clone();
    let places: BTreeSet<String> = proxies.iter().filter(|pod| is_ready(pod)).filter_map(place).collect();
    for node in nodes.iter_mut().filter(|node| node.ready && !places.contains(&node.name)) {
        (node.ready, node.lacks_proxy) = (false, true);
    }
    nodes
}

/// The addresses host aliases should lead to: those of ready nodes, and those that are aliased already and whose node still
/// exists. A node that reboots would else cost a gateway rollout when it goes and another when it returns.
pub fn aliased_addresses(nodes: &[EntryNode], already: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    nodes.iter().filter(|node| node.ready || already.contains(&node.ip)).map(|node| node.ip).collect()
}

/// Addresses as messages list them.
pub fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return "none".into();
    }
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::region::AddressType;
    use super::*;

    fn node(name: &str, ready: &str, zone: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"zone": zone}},
            "status": {
                "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": format!("10.0.0.{name}")}],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn nodes_are_chosen_by_label_and_have_the_address_asked_for() {
        let nodes = [node("2", "True", "a"), node("1", "Unknown", "a"), node("3", "True", "b")];
        let names = |settings: &Nodes| entry_nodes(&nodes, settings).into_iter().map(|n| (n.name, n.ready)).collect::<Vec<_>>();
        let of = |names: &[(&str, bool)]| names.iter().map(|(n, r)| ((*n).to_owned(), *r)).collect::<Vec<_>>();
        assert_eq!(names(&Nodes::default()), of(&[("1", false), ("2", true), ("3", true)]));
        let selector = [("zone".to_owned(), "b".to_owned())].into();
        assert_eq!(names(&Nodes { selector, ..Nodes::default() }), of(&[("3", true)]));
        assert_eq!(names(&Nodes { address_type: AddressType::ExternalIP, ..Nodes::default() }), of(&[]));
    }

    #[test]
    fn a_node_without_a_ready_proxy_is_none_to_enter_by() {
        let pod = |node: &str, ready: &str| {
            serde_json::from_value::<Pod>(json!({
                "metadata": {"name": "proxy"}, "spec": {"nodeName": node, "containers": []},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let nodes = entry_nodes(
            &[node("1", "True", "a"), node("2", "True", "a"), node("3", "True", "a"), node("4", "Unknown", "a")],
            &Nodes::default(),
        );
        let nodes = with_proxies_of(nodes, &[pod("1", "True"), pod("1", "False"), pod("2", "False"), pod("4", "True")]);
        let seen: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.why())).collect();
        let lacks = Some("no ready proxy on it");
        assert_eq!(seen, [("1", None), ("2", lacks), ("3", lacks), ("4", Some("not ready"))]);
    }

    #[test]
    fn a_load_balancer_is_entered_by_one_family_of_addresses() {
        let of = |texts: &[&str]| {
            let found = of_load_balancer(texts.iter().map(|ip| ("lb.example".to_owned(), ip.parse().unwrap())));
            found.into_iter().map(|node| node.ip.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(&["2001:db8::1", "192.0.2.2", "2001:db8::2", "192.0.2.1", "192.0.2.2"]), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(of(&["2001:db8::1"]), ["2001:db8::1"]);
        assert_eq!(of(&[]), [""; 0]);
    }

    #[test]
    fn an_aliased_address_stays_until_its_node_is_deleted() {
        let nodes = entry_nodes(&[node("1", "False", "a"), node("2", "True", "a"), node("4", "False", "a")], &Nodes::default());
        let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        assert_eq!(aliased_addresses(&nodes, &ips(&["10.0.0.1", "10.0.0.9"])), ips(&["10.0.0.1", "10.0.0.2"]));
    }
}
