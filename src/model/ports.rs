//! Which ports a cluster gets on the region's shared Service.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::region::{Entry, FIRST_LISTEN, NodePorts};
use crate::error::{Failure, Kind, Result};

/// The ports of one cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// `port` and `targetPort`: what the proxies listen on.
    pub listen: u16,
    /// `nodePort`. Also where the hub enters otherwise, so that a region can change that.
    pub node: u16,
}

impl Ports {
    /// The port that the hub connects to, which is that of the cluster's endpoint.
    pub const fn entered_by(self, entry: Entry) -> u16 {
        match entry {
            Entry::NodePort => self.node,
            Entry::LoadBalancer | Entry::HostNetwork => self.listen,
        }
    }
}

/// An entry of the Service's `spec.ports` for a cluster.
pub fn entry(name: &str, ports: Ports) -> Value {
    json!({"name": name, "port": ports.listen, "targetPort": ports.listen, "nodePort": ports.node, "protocol": "TCP"})
}

/// The ports that the Service has under `name`, if any.
pub fn find(service: &[Value], name: &str) -> Option<Ports> {
    let entry = service.iter().find(|entry| entry["name"] == name)?;
    Some(Ports { listen: number(&entry["targetPort"])?, node: number(&entry["nodePort"])? })
}

/// Entries with that of `name` replaced, or appended; all others verbatim and in order.
pub fn with(service: &[Value], name: &str, ports: Ports) -> Vec<Value> {
    let mut entries = service.to_vec();
    match entries.iter_mut().find(|entry| entry["name"] == name) {
        Some(mine) => *mine = entry(name, ports),
        None => entries.push(entry(name, ports)),
    }
    entries
}

/// Entries without that of `name`; all others verbatim and in order.
pub fn without(service: &[Value], name: &str) -> Vec<Value> {
    service.iter().filter(|entry| entry["name"] != name).cloned().collect()
}

/// Chooses the ports of the cluster whose port is called `name`.
///
/// What the cluster has already is kept unless another node port is asked for. `elsewhere` are node ports the API said belong
/// to other Services: they can't be seen from this one.
pub fn choose(service: &[Value], name: &str, asked: Option<u16>, range: NodePorts, elsewhere: &BTreeSet<u16>) -> Result<Ports> {
    let mine = find(service, name);
    let others = || service.iter().filter(|entry| entry["name"] != name);
    let taken: BTreeSet<u16> = others().filter_map(|entry| number(&entry["nodePort"])).chain(elsewhere.iter().copied()).collect();
    let node = match (asked, mine) {
        (Some(asked), _) if !(range.first..=range.last).contains(&asked) => {
            return Err(Failure::new(
                Kind::NodePortTaken,
                format!("node port {asked} is outside the region's range {}-{}", range.first, range.last),
                "choose one inside, or change the range at the region's xregion-proxy",
            ));
        }
        (Some(asked), _) if taken.contains(&asked) => return Err(node_port_taken(asked)),
        (Some(asked), _) => asked,
        (None, Some(mine)) if !taken.contains(&mine.node) => mine.node,
        (None, _) => (range.first..=range.last).find(|port| !taken.contains(port)).ok_or_else(|| {
            Failure::new(
                Kind::NodePortsExhausted,
                format!("all node ports {}-{} of the region are taken", range.first, range.last),
                "widen the range at the region's xregion-proxy (and in the firewall), or let clusters leave",
            )
        })?,
    };
    if let Some(mine) = mine.filter(|mine| mine.node == node) {
        return Ok(mine);
    }
    let listening: BTreeSet<u16> =
        others().flat_map(|entry| [number(&entry["port"]), number(&entry["targetPort"])]).flatten().collect();
    // Beside entries made otherwise, the next free one does.
    let listen = free_listen(paired(node, range), |port| listening.contains(&port));
    Ok(Ports { listen, node })
}

/// Puts the ports of the cluster back whose port is called `name`: its node port, and what the proxies listen on if that is free.
///
/// # Errors
/// The node port is another one's by now.
pub fn restore(service: &[Value], name: &str, wanted: Ports) -> Result<Ports> {
    let others = || service.iter().filter(|entry| entry["name"] != name);
    if others().any(|entry| number(&entry["nodePort"]) == Some(wanted.node)) {
        return Err(node_port_lost(wanted.node));
    }
    let listening: BTreeSet<u16> =
        others().flat_map(|entry| [number(&entry["port"]), number(&entry["targetPort"])]).flatten().collect();
    let listen = free_listen(wanted.listen, |port| listening.contains(&port));
    Ok(Ports { listen, node: wanted.node })
}

/// The port that goes with a node port, as in the article 8000 with 30000, 8001 with 30001, ...
pub fn paired(node: u16, range: NodePorts) -> u16 {
    FIRST_LISTEN.saturating_add(node.saturating_sub(range.first))
}

/// The node port that goes with what the proxies listen on, the reverse of [`paired`], or else the first that is free.
pub fn node_of(listen: u16, range: NodePorts, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let paired = range.first.saturating_add(listen.saturating_sub(FIRST_LISTEN)).min(range.last);
    std::iter::once(paired).chain(range.first..=range.last).find(|port| !taken(*port))
}

/// A port for the proxies to listen on: this one or the next that is free.
pub fn free_listen(preferred: u16, taken: impl Fn(u16) -> bool) -> u16 {
    (preferred..).chain(FIRST_LISTEN..preferred).find(|port| !taken(*port)).unwrap_or(preferred)
}

/// The failure for a node port that is on record and that somebody else has.
pub fn node_port_lost(port: u16) -> Failure {
    Failure::new(
        Kind::NodePortTaken,
        format!("its node port {port} is taken by another Service of the proxy cluster, or by another port"),
        "free it there (kubectl get services -A shows who has it), or join the cluster again to get another one",
    )
}

/// The failure for a node port that somebody else has.
pub fn node_port_taken(port: u16) -> Failure {
    Failure::new(
        Kind::NodePortTaken,
        format!("node port {port} is taken by another cluster or Service of the proxy cluster"),
        "choose another, or leave out nodePort to get a free one",
    )
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANGE: NodePorts = NodePorts { first: 30000, last: 30003 };

    fn service(ports: &[(&str, u16, u16)]) -> Vec<Value> {
        ports.iter().map(|(name, listen, node)| entry(name, Ports { listen: *listen, node: *node })).collect()
    }

    #[test]
    fn ports_are_given_as_in_the_article() {
        let none = BTreeSet::new();
        for (taken, asked, listen, node) in [
            (&[][..], None, 8000, 30000),
            (&[("x", 8000, 30000)], None, 8001, 30001),
            (&[("x", 8001, 30001)], None, 8000, 30000),
            (&[("x", 8001, 30000)], None, 8002, 30001),
            (&[("x", 8000, 30002)], Some(30000), 8001, 30000),
            (&[], Some(30003), 8003, 30003),
            (&[("me", 8005, 30002)], None, 8005, 30002),
            (&[("me", 8005, 30002)], Some(30002), 8005, 30002),
            (&[("me", 8005, 30002)], Some(30001), 8001, 30001),
        ] {
            let got = choose(&service(taken), "me", asked, RANGE, &none).unwrap();
            assert_eq!(got, Ports { listen, node }, "{taken:?} {asked:?}");
        }
    }

    #[test]
    fn a_port_that_is_not_free_is_refused() {
        let full = service(&[("a", 1, 30000), ("b", 2, 30001), ("c", 3, 30002), ("d", 4, 30003)]);
        let kind =
            |asked, elsewhere: &[u16]| choose(&full, "me", asked, RANGE, &elsewhere.iter().copied().collect()).unwrap_err().kind;
        assert_eq!(kind(None, &[]), Kind::NodePortsExhausted);
        assert_eq!(kind(Some(30001), &[]), Kind::NodePortTaken);
        assert_eq!(kind(Some(31000), &[]), Kind::NodePortTaken);
        let elsewhere = choose(&[], "me", Some(30001), RANGE, &[30001].into()).unwrap_err();
        assert_eq!(elsewhere.kind, Kind::NodePortTaken);
        assert_eq!(choose(&[], "me", None, RANGE, &[30000].into()).unwrap().node, 30001);
    }

    #[test]
    fn lost_ports_come_back_unless_another_has_the_node_port() {
        let ports = |listen, node| Ports { listen, node };
        for (there, want) in [
            (&[][..], Ok(ports(8005, 30002))),
            (&[("x", 8001, 30001)], Ok(ports(8005, 30002))),
            (&[("me", 8007, 30003)], Ok(ports(8005, 30002))),
            (&[("x", 8005, 30001)], Ok(ports(8006, 30002))),
            (&[("x", 8001, 30002)], Err(Kind::NodePortTaken)),
        ] {
            assert_eq!(restore(&service(there), "me", ports(8005, 30002)).map_err(|failure| failure.kind), want, "{there:?}");
        }
    }

    #[test]
    fn the_hub_connects_to_the_port_of_the_region_s_entry() {
        let ports = Ports { listen: 8001, node: 30001 };
        let entered = [Entry::NodePort, Entry::LoadBalancer, Entry::HostNetwork].map(|entry| ports.entered_by(entry));
        assert_eq!(entered, [30001, 8001, 8001]);
        assert_eq!(node_of(8002, RANGE, |_| false), Some(30002));
        assert_eq!(node_of(8002, RANGE, |port| port == 30002), Some(30000));
        assert_eq!(node_of(9999, RANGE, |_| false), Some(30003));
        assert_eq!(node_of(8000, RANGE, |_| true), None);
    }

    proptest! {
        #[test]
        fn joins_share_no_port_and_leave_others_verbatim(names in prop::collection::btree_set("[a-z]{1,3}", 1..30)) {
            let range = NodePorts { first: 30000, last: 30085 };
            let foreign = json!({"name": "foreign", "port": 8002, "targetPort": "https", "nodePort": 30007, "appProtocol": "x"});
            let mut entries = vec![foreign.clone()];
            for name in &names {
                let ports = choose(&entries, name, None, range, &BTreeSet::new()).unwrap();
                entries = with(&entries, name, ports);
                prop_assert_eq!(&with(&entries, name, ports), &entries, "idempotent");
            }
            let unique = |field: &str| entries.iter().map(|e| e[field].as_u64()).collect::<BTreeSet<_>>().len() == entries.len();
            prop_assert!(unique("nodePort") && unique("port"));
            for name in &names {
                entries = without(&entries, name);
            }
            prop_assert_eq!(entries, vec![foreign]);
        }
    }
}
