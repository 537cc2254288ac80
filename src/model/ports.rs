//! Which ports a cluster gets on the region's shared Service.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::region::{Entry, FIRST_LISTEN, NodePorts, SNI_LISTEN, SNI_PORT};
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
/// to other Services: they can't be seen from this one. `kept` are those that nobody gets anew who doesn't ask for them: somebody else is
/// about to.
pub fn choose(
    service: &[Value],
    name: &str,
    asked: Option<u16>,
    range: NodePorts,
    elsewhere: &BTreeSet<u16>,
    kept: &BTreeSet<u16>,
) -> Result<Ports> {
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
        (Some(asked), Some(mine)) if asked == mine.node && !taken.contains(&asked) => asked,
        (Some(asked), _) if Some(asked) == range.sni => {
            return Err(Failure::new(
                Kind::NodePortTaken,
                format!("node port {asked} is the region's own, for clusters that are told apart by name"),
                "choose another, or leave out nodePort to get a free one",
            ));
        }
        (Some(asked), _) if taken.contains(&asked) => return Err(node_port_taken(asked)),
        (Some(asked), _) => asked,
        (None, Some(mine)) if !taken.contains(&mine.node) => mine.node,
        (None, _) => (range.first..=range.last)
            .find(|port| !taken.contains(port) && !kept.contains(port) && Some(*port) != range.sni)
            .ok_or_else(|| exhausted(range))?,
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

/// Chooses the ports by which clusters are reached that are told apart by name: the listen port is fixed, the node port the one there is, or
/// the region's setting, or the last free one, so that it meets those of clusters last. One that there is stays while it is `used`: another
/// would cut every cluster behind it.
///
/// # Errors
/// The node port of the setting is somebody else's, or none is free.
pub fn choose_sni(service: &[Value], range: NodePorts, elsewhere: &BTreeSet<u16>, used: bool) -> Result<Ports> {
    let mine = find(service, SNI_PORT).map(|mine| mine.node);
    let others = || service.iter().filter(|entry| entry["name"] != SNI_PORT);
    let taken = |port: u16| elsewhere.contains(&port) || others().any(|entry| number(&entry["nodePort"]) == Some(port));
    let node = match (mine, range.sni) {
        (Some(mine), wanted) if used || wanted.is_none_or(|wanted| wanted == mine) => mine,
        (_, Some(wanted)) if taken(wanted) => {
            return Err(Failure::new(
                Kind::NodePortTaken,
                format!("node port {wanted}, which is to be the region's own, is taken by a cluster or another Service"),
                "free it, or change nodePorts.sni at the region's xregion-proxy",
            ));
        }
        (_, Some(wanted)) => wanted,
        (_, None) => (range.first..=range.last).rev().find(|port| !taken(*port)).ok_or_else(|| exhausted(range))?,
    };
    Ok(Ports { listen: SNI_LISTEN, node })
}

/// Entries with the region's own among them, where it can be had: for want of it no cluster is refused a port of its own.
pub fn with_sni(service: &[Value], range: NodePorts, elsewhere: &BTreeSet<u16>, used: bool) -> Vec<Value> {
    match choose_sni(service, range, elsewhere, used) {
        Ok(ports) => with(service, SNI_PORT, ports),
        Err(_) => service.to_vec(),
    }
}

/// Whether the region's own port is not where its settings want it.
pub fn sni_is_elsewhere(service: &[Value], range: NodePorts) -> bool {
    find(service, SNI_PORT).is_some_and(|mine| range.sni.is_some_and(|wanted| wanted != mine.node))
}

/// Whether there is nothing left but the region's own, which is no reason for a Service to be.
pub fn is_bare(service: &[Value]) -> bool {
    service.iter().all(|entry| entry["name"] == SNI_PORT)
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

/// The node port that goes with what the proxies listen on, the reverse of [`paired`], or else the first that is free. With [`SNI_LISTEN`] it
/// is the region's own, as [`choose_sni`] has it.
pub fn node_of(listen: u16, range: NodePorts, taken: impl Fn(u16) -> bool) -> Option<u16> {
    let free = |port: &u16| !taken(*port);
    if listen == SNI_LISTEN {
        return range.sni.into_iter().chain((range.first..=range.last).rev()).find(free);
    }
    let paired = range.first.saturating_add(listen.saturating_sub(FIRST_LISTEN)).min(range.last);
    std::iter::once(paired).chain(range.first..=range.last).filter(|port| Some(*port) != range.sni).find(free)
}

/// A port for the proxies to listen on: this one or the next that is free.
pub fn free_listen(preferred: u16, taken: impl Fn(u16) -> bool) -> u16 {
    (preferred..).chain(FIRST_LISTEN..preferred).find(|port| !taken(*port)).unwrap_or(preferred)
}

fn exhausted(range: NodePorts) -> Failure {
    Failure::new(
        Kind::NodePortsExhausted,
        format!("all node ports {}-{} of the region are taken", range.first, range.last),
        "widen the range at the region's xregion-proxy (and in the firewall), or let clusters leave",
    )
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

    const RANGE: NodePorts = NodePorts { first: 30000, last: 30003, sni: None };

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
            let got = choose(&service(taken), "me", asked, RANGE, &none, &none).unwrap();
            assert_eq!(got, Ports { listen, node }, "{taken:?} {asked:?}");
        }
    }

    #[test]
    fn a_port_that_is_not_free_is_refused() {
        let full = service(&[("a", 1, 30000), ("b", 2, 30001), ("c", 3, 30002), ("d", 4, 30003)]);
        let kind = |asked, elsewhere: &[u16]| {
            choose(&full, "me", asked, RANGE, &elsewhere.iter().copied().collect(), &BTreeSet::new()).unwrap_err().kind
        };
        assert_eq!(kind(None, &[]), Kind::NodePortsExhausted);
        assert_eq!(kind(Some(30001), &[]), Kind::NodePortTaken);
        assert_eq!(kind(Some(31000), &[]), Kind::NodePortTaken);
        let none = BTreeSet::new();
        let elsewhere = choose(&[], "me", Some(30001), RANGE, &[30001].into(), &none).unwrap_err();
        assert_eq!(elsewhere.kind, Kind::NodePortTaken);
        assert_eq!(choose(&[], "me", None, RANGE, &[30000].into(), &none).unwrap().node, 30001);
    }

    #[test]
    fn what_another_is_about_to_ask_for_is_his_unless_somebody_has_it() {
        let kept = [30000, 30001].into();
        let choose = |there: &[(&str, u16, u16)], asked| choose(&service(there), "me", asked, RANGE, &BTreeSet::new(), &kept);
        assert_eq!(choose(&[], None).unwrap().node, 30002);
        assert_eq!(choose(&[], Some(30001)).unwrap().node, 30001);
        assert_eq!(choose(&[("me", 8000, 30000)], None).unwrap().node, 30000);
        let full = choose(&[("a", 8002, 30002), ("b", 8003, 30003)], None).unwrap_err();
        assert_eq!(full.kind, Kind::NodePortsExhausted);
    }

    #[test]
    fn the_region_s_own_port_keeps_out_of_the_clusters_way_and_stays_where_it_is() {
        let own = |node| Some((SNI_PORT, SNI_LISTEN, node));
        let set = |sni| NodePorts { sni: Some(sni), ..RANGE };
        for (there, sni, range, elsewhere, used, want) in [
            (&[][..], None, RANGE, &[][..], false, Ok(30003)),
            (&[("a", 8003, 30003)], None, RANGE, &[], false, Ok(30002)),
            (&[], None, RANGE, &[30003], false, Ok(30002)),
            (&[("a", 8000, 30003)], own(30001), RANGE, &[], false, Ok(30001)),
            (
                &[("a", 1, 30000), ("b", 2, 30001), ("c", 3, 30002), ("d", 4, 30003)],
                None,
                RANGE,
                &[],
                false,
                Err(Kind::NodePortsExhausted),
            ),
            (&[], None, set(443), &[], false, Ok(443)),
            (&[], own(30003), set(443), &[], false, Ok(443)),
            (&[], own(30003), set(443), &[], true, Ok(30003)),
            (&[("a", 8000, 30000)], None, set(30000), &[], false, Err(Kind::NodePortTaken)),
            (&[], None, set(443), &[443], false, Err(Kind::NodePortTaken)),
        ] {
            let entries = service(&there.iter().copied().chain(sni).collect::<Vec<_>>());
            let chosen = choose_sni(&entries, range, &elsewhere.iter().copied().collect(), used);
            assert_eq!(chosen.map(|ports| ports.node).map_err(|failure| failure.kind), want, "{there:?} {sni:?} {range:?}");
        }
    }

    #[test]
    fn no_cluster_gets_the_region_s_own_port_and_none_goes_without_for_it() {
        let range = NodePorts { sni: Some(30001), ..RANGE };
        let none = BTreeSet::new();
        let choose = |entries: &[Value], asked| choose(entries, "me", asked, range, &none, &none).map(|ports| ports.node);
        assert_eq!(choose(&service(&[("a", 8000, 30000)]), None).unwrap(), 30002);
        assert_eq!(choose(&[], Some(30001)).unwrap_err().kind, Kind::NodePortTaken);
        // It had it before the setting was made.
        let mine = service(&[("me", 8001, 30001)]);
        assert_eq!((choose(&mine, None).unwrap(), choose(&mine, Some(30001)).unwrap()), (30001, 30001));
        assert_eq!(with_sni(&mine, range, &none, false), mine);
        assert_eq!(with_sni(&mine, RANGE, &none, false), service(&[("me", 8001, 30001), (SNI_PORT, SNI_LISTEN, 30003)]));
        assert!(is_bare(&service(&[(SNI_PORT, SNI_LISTEN, 30003)])) && is_bare(&[]) && !is_bare(&mine));
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
        let own = NodePorts { sni: Some(30001), ..RANGE };
        assert_eq!(node_of(8001, own, |_| false), Some(30000), "what is to be the region's own is no cluster's");
        assert_eq!(node_of(SNI_LISTEN, own, |_| false), Some(30001));
        assert_eq!(node_of(SNI_LISTEN, own, |port| port == 30001), Some(30003));
        assert_eq!(node_of(SNI_LISTEN, RANGE, |port| port == 30003), Some(30002));
    }

    proptest! {
        #[test]
        fn joins_share_no_port_and_leave_others_verbatim(names in prop::collection::btree_set("[a-z]{1,3}", 1..30)) {
            let range = NodePorts { first: 30000, last: 30085, sni: None };
            let foreign = json!({"name": "foreign", "port": 8002, "targetPort": "https", "nodePort": 30007, "appProtocol": "x"});
            let mut entries = vec![foreign.clone()];
            for name in &names {
                let ports = choose(&entries, name, None, range, &BTreeSet::new(), &BTreeSet::new()).unwrap();
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
