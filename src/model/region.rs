//! A region's settings, as the component `xregion-proxy` writes them into the proxy cluster, and what follows from them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

use super::bounds::Bounds;
use super::names::{ApiHost, DnsName};
use super::sources::SourceRanges;

/// Name of the ConfigMap that holds the settings.
pub const CONFIG_MAP: &str = "xregion-region";
/// Key of the settings in that ConfigMap.
pub const KEY: &str = "region.json";
/// Label value (of [`super::names::KIND`]) of that ConfigMap.
pub const KIND_REGION: &str = "region";
/// Label value (of [`super::names::KIND`]) of proxy pods and their Leases.
pub const KIND_PROXY: &str = "proxy";
/// The Service that the article names: one NodePort a cluster.
pub const SERVICE: &str = "cross-region-nginx-proxy-svc";
/// The Service of a region in which [`SERVICE`] leads to an nginx that somebody runs by hand: that one is left alone.
pub const SERVICE_BESIDE: &str = "cross-region-nginx-proxy-svc-xregion";
/// The first port a proxy listens on; the cluster at node port `first + i` gets `FIRST_LISTEN + i` where that is free.
pub const FIRST_LISTEN: u16 = 8000;
/// The port that every proxy listens on for connections which are told apart by the TLS name they ask for. No route has it for itself.
pub const SNI_LISTEN: u16 = 7443;
/// Its name on the Service. No hub is in it, as they share it; no cluster's port can have that name, which ends with a hash.
pub const SNI_PORT: &str = "xregion-sni";

/// The settings of a region.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// By what the hub enters.
    #[serde(default)]
    pub entry: Entry,
    /// What is asked of the load balancer, if it enters by one.
    #[serde(default)]
    pub load_balancer: LoadBalancer,
    /// Which nodes it enters by, unless by a load balancer.
    pub nodes: Nodes,
    /// Which node ports may be given away.
    pub node_ports: NodePorts,
    /// Which upstreams the proxies may connect to.
    pub upstreams: Upstreams,
    /// Which nodes take what enters by a node port.
    #[serde(default)]
    pub external_traffic_policy: TrafficPolicy,
    /// Where connections to its routes may come from; nowhere named: from everywhere.
    #[serde(default)]
    pub source_ranges: SourceRanges,
    /// Bounds on connections.
    pub timeouts: Timeouts,
    /// How many connections one route carries at once in each proxy; 0: as many as come.
    #[serde(default)]
    pub max_connections: u32,
}

/// By what the hub enters a region.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Entry {
    /// The node ports of the Service, at nodes' addresses.
    #[default]
    NodePort,
    /// The ports of the Service, at the addresses that its load balancer has.
    LoadBalancer,
    /// The proxies' own ports, at the addresses of the nodes whose network they share.
    HostNetwork,
}

impl Entry {
    /// As the settings spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NodePort => "nodePort",
            Self::LoadBalancer => "loadBalancer",
            Self::HostNetwork => "hostNetwork",
        }
    }

    /// What the port is called that the hub connects to.
    pub const fn port_name(self) -> &'static str {
        match self {
            Self::NodePort => "node port",
            Self::LoadBalancer | Self::HostNetwork => "port",
        }
    }
}

/// What a Service asks of its load balancer.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// `spec.loadBalancerClass`; absent, whoever makes load balancers for Services without one.
    pub class: Option<String>,
    /// Annotations of the Service, by which many clouds are told the rest.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// `spec.loadBalancerSourceRanges`: where it takes connections from itself.
    #[serde(default)]
    pub source_ranges: SourceRanges,
}

/// The proxy cluster's nodes the hub enters by.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// Labels a node must carry; none: every node.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Which of its addresses is used.
    pub address_type: AddressType,
}

/// The type of a node's address (`status.addresses[].type`).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub enum AddressType {
    /// The address in the peered network.
    #[default]
    InternalIP,
    /// The public address.
    ExternalIP,
}

impl AddressType {
    /// As Kubernetes spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InternalIP => "InternalIP",
            Self::ExternalIP => "ExternalIP",
        }
    }
}

/// Which nodes take what enters by a node port (`spec.externalTrafficPolicy` of the Service).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub enum TrafficPolicy {
    /// Those with a proxy, to which it goes under its own source address. The others drop it.
    Local,
    /// All of them: it goes on to a proxy of any node, under the node's address. The default of settings that an earlier version wrote,
    /// whose Services were so.
    #[default]
    Cluster,
}

impl TrafficPolicy {
    /// As Kubernetes spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "Local",
            Self::Cluster => "Cluster",
        }
    }
}

/// The node ports a region's clusters may have: both ends included.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
pub struct NodePorts {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// The region's own, of [`SNI_PORT`], inside the range or outside; none: the last free one.
    #[serde(default)]
    pub sni: Option<u16>,
}

/// The upstreams a region allows.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Upstreams {
    /// What is allowed; empty: everything that is not refused by rule.
    #[serde(default)]
    pub allow: Vec<Allowed>,
}

/// Bounds on connections through a proxy, in seconds.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// How long one address of an upstream may take to accept.
    pub connect_seconds: u32,
    /// How long a connection may carry nothing.
    pub idle_seconds: u32,
    /// How long a connection may live on after a reload or a shutdown.
    pub drain_seconds: u32,
}

/// One entry of the allow-list: a network, a name, or all names below one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub enum Allowed {
    /// Addresses of this network (a single address is one too).
    Network(IpNet),
    /// This name.
    Name(DnsName),
    /// Every name that ends in `.` and this one, written `*.name`.
    Below(DnsName),
}

impl TryFrom<String> for Allowed {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |_| format!("{text:?} is no network, name, or *.name");
        if let Ok(network) = IpNet::from_str(&text) {
            return Ok(Self::Network(network));
        }
        if let Some(parent) = text.strip_prefix("*.") {
            return parent.parse().map(Self::Below).map_err(wrong);
        }
        match text.parse().map_err(wrong)? {
            ApiHost::Ip(ip) => Ok(Self::Network(ip.into())),
            ApiHost::Dns(name) => Ok(Self::Name(name)),
        }
    }
}

impl Region {
    /// Reads the settings.
    pub fn parse(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    /// What bounds connections to each of its routes.
    pub fn bounds(&self) -> Bounds {
        // nginx refuses a greater number, and with it all that stands beside it. It never holds so many.
        let most = u16::try_from(self.max_connections).unwrap_or(u16::MAX);
        Bounds { sources: self.source_ranges.clone(), connections: NonZeroU16::new(most) }
    }
}

impl Upstreams {
    /// Why a proxy must not connect to `address` for `host`, or nothing if it may.
    ///
    /// `own` are the proxy cluster's networks: its nodes, pods and Services, which a route would otherwise open to whoever
    /// may write one.
    pub fn refusal(&self, host: &ApiHost, address: IpAddr, own: &[IpNet]) -> Option<String> {
        let address = address.to_canonical();
        let class = match address {
            _ if address.is_loopback() => Some("a loopback address"),
            _ if address.is_unspecified() => Some("no address of a host"),
            _ if address.is_multicast() => Some("a multicast address"),
            IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
            IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0 => Some("no address of a host"),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
            _ if own.iter().any(|network| network.contains(&address)) => Some("an address of the proxy cluster itself"),
            _ => None,
        };
        if let Some(class) = class {
            return Some(format!("{address} is {class}"));
        }
        let allows = |entry: &Allowed| match (entry, host) {
            (Allowed::Network(network), _) => network.contains(&address),
            (Allowed::Name(name), ApiHost::Dns(host)) => name == host,
            (Allowed::Below(parent), ApiHost::Dns(host)) => {
                host.as_str().strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            (Allowed::Name(_) | Allowed::Below(_), ApiHost::Ip(_)) => false,
        };
        if self.allow.is_empty() || self.allow.iter().any(allows) {
            return None;
        }
        Some(match host {
            ApiHost::Ip(_) => format!("{address} is not on the region's allow-list"),
            ApiHost::Dns(_) => format!("{host} ({address}) is not on the region's allow-list"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_as_the_component_writes_them() {
        let region = Region::parse(
            r#"{"nodes":{"selector":{"zone":"a"},"addressType":"ExternalIP"},"nodePorts":{"first":30000,"last":30085},
                "upstreams":{"allow":["10.0.0.0/8","*.eks.example","API.example"]},
                "timeouts":{"connectSeconds":3,"idleSeconds":14400,"drainSeconds":3600}}"#,
        )
        .unwrap();
        assert_eq!((region.nodes.address_type, region.max_connections), (AddressType::ExternalIP, 0));
        assert_eq!(region.external_traffic_policy, TrafficPolicy::Cluster, "what the Services of earlier versions are");
        assert_eq!(region.upstreams.allow[2], Allowed::Name("api.example".parse().unwrap()));
        assert!(region.source_ranges.is_empty());
        assert_eq!((region.entry, region.load_balancer), (Entry::NodePort, LoadBalancer::default()));
        let error = Region::parse(r#"{"nodes":{"addressType":"Hostname"}}"#).unwrap_err();
        assert!(error.contains("Hostname"), "{error}");
    }

    #[test]
    fn no_limit_is_greater_than_nginx_can_read() {
        for (most, want) in [(0, None), (1, Some(1)), (65_535, Some(65_535)), (65_536, Some(65_535)), (u32::MAX, Some(65_535))] {
            let region = Region::parse(&format!(
                r#"{{"nodes":{{"addressType":"InternalIP"}},"nodePorts":{{"first":30000,"last":30085}},"upstreams":{{}},
                    "timeouts":{{"connectSeconds":3,"idleSeconds":1,"drainSeconds":1}},"maxConnections":{most}}}"#
            ));
            assert_eq!(region.unwrap().bounds().connections.map(NonZeroU16::get), want);
        }
    }

    #[test]
    fn addresses_refused_by_rule() {
        let own: Vec<IpNet> = vec!["10.244.0.0/16".parse().unwrap(), "10.80.0.21/32".parse().unwrap()];
        for (address, want) in [
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("0.0.0.0", "no address"),
            ("::", "no address"),
            ("255.255.255.255", "no address"),
            ("224.0.0.1", "multicast"),
            ("10.244.3.4", "proxy cluster itself"),
            ("::ffff:10.244.3.4", "proxy cluster itself"),
            ("10.80.0.21", "proxy cluster itself"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            // A network on the allow-list does not open what is refused by rule.
            let everything = Upstreams { allow: vec![Allowed::Network("0.0.0.0/0".parse().unwrap())] };
            for upstreams in [Upstreams::default(), everything] {
                let why = upstreams.refusal(&ApiHost::Ip(address), address, &own).unwrap();
                assert!(why.contains(want), "{address}: {why}");
            }
        }
        assert_eq!(Upstreams::default().refusal(&"x.example".parse().unwrap(), "10.80.1.31".parse().unwrap(), &own), None);
    }

    #[test]
    fn the_allow_list_takes_networks_and_names() {
        let allow =
            |entries: &[&str]| Upstreams { allow: entries.iter().map(|e| Allowed::try_from((*e).to_owned()).unwrap()).collect() };
        for (entries, host, address, allowed) in [
            (&["10.0.0.0/8"][..], "x.example", "10.1.2.3", true),
            (&["10.0.0.0/8"], "x.example", "11.1.2.3", false),
            (&["x.example"], "x.example", "11.1.2.3", true),
            (&["x.example"], "y.x.example", "11.1.2.3", false),
            (&["*.example"], "x.example", "11.1.2.3", true),
            (&["*.example"], "example", "11.1.2.3", false),
            (&["*.example"], "bad-example", "11.1.2.3", false),
            (&["*.example"], "11.1.2.3", "11.1.2.3", false),
            (&["11.1.2.3"], "11.1.2.3", "11.1.2.3", true),
        ] {
            let refusal = allow(entries).refusal(&host.parse().unwrap(), address.parse().unwrap(), &[]);
            assert_eq!(refusal.is_none(), allowed, "{entries:?} {host} {address}: {refusal:?}");
        }
        assert!(Allowed::try_from("a b".to_owned()).is_err());
    }
}
