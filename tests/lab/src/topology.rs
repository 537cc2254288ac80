//! What the lab consists of: bridges, nodes, clusters and their addresses. Pure values; `net` and `cluster` make them real.

mod defaults;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use defaults::{business, bystanders, clusters, hub_address, laptop, resolver, second_hub, store};

/// The network namespace that holds every bridge, so that the machine's own network is never touched.
pub const SWITCH: &str = "switch";

/// Where the addon registry listens: on the hub's node, for the hub, its pods and the laptop.
pub const REGISTRY_PORT: u16 = 8879;

/// A layer 2 network of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bridge {
    /// The peering: the hub and the nodes of the proxy clusters.
    Peer,
    /// The laptop's way to the hub, and nothing else.
    Access,
    /// The etcd shared by further business clusters.
    Store,
    /// Region east: proxy nodes, business clusters, resolver.
    East,
    /// Region west: likewise.
    West,
}

impl Bridge {
    /// Every bridge.
    pub const ALL: [Self; 5] = [Self::Peer, Self::East, Self::West, Self::Store, Self::Access];

    /// Its name, which is also the name of a node's interface on it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Access => "access",
            Self::Store => "store",
            Self::East => "east",
            Self::West => "west",
        }
    }

    /// The address of host `host` (1..=254) on it; every bridge is a /24.
    #[must_use]
    pub fn address(self, host: u8) -> Ipv4Addr {
        let third = match self {
            Self::Peer => 0,
            Self::East => 1,
            Self::West => 2,
            Self::Store => 8,
            Self::Access => 9,
        };
        Ipv4Addr::new(10, 80, third, host)
    }
}

/// A region: the bridge a proxy cluster shares with its business clusters, and the resolver on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Region {
    /// `proxy-east`, two nodes; `business-a`, `business-b`.
    East,
    /// `proxy-west`, one node; `business-c`.
    West,
}

impl Region {
    /// Both regions.
    pub const ALL: [Self; 2] = [Self::East, Self::West];

    /// Its bridge.
    #[must_use]
    pub fn bridge(self) -> Bridge {
        match self {
            Self::East => Bridge::East,
            Self::West => Bridge::West,
        }
    }

    /// The place its resolver runs in.
    #[must_use]
    pub fn resolver_place(self) -> &'static str {
        match self {
            Self::East => "dns-east",
            Self::West => "dns-west",
        }
    }

    /// The resolver's address.
    #[must_use]
    pub fn resolver(self) -> Ipv4Addr {
        self.bridge().address(2)
    }
}

/// An interface of a place on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The bridge, and the interface's name.
    pub bridge: Bridge,
    /// Its address there.
    pub address: Ipv4Addr,
}

impl Link {
    /// An interface on `bridge` as host `host`.
    #[must_use]
    pub fn new(bridge: Bridge, host: u8) -> Self {
        Self { bridge, address: bridge.address(host) }
    }

    /// The name of the other end of its cable, in the switch: unique, and within the kernel's 15 characters.
    #[must_use]
    pub fn port(&self) -> String {
        let [_, _, bridge, host] = self.address.octets();
        format!("port-{bridge}-{host}")
    }
}

/// A place to run things in: one network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// `hub`, `proxy-east-1`, `laptop`, ...; the namespace is `xr-<name>`.
    pub name: String,
    /// Its interfaces.
    pub links: Vec<Link>,
}

impl Place {
    fn new(name: &str, links: &[Link]) -> Self {
        Self { name: name.to_owned(), links: links.to_vec() }
    }

    /// Its address on `bridge`.
    #[must_use]
    pub fn address_on(&self, bridge: Bridge) -> Option<Ipv4Addr> {
        self.links.iter().find(|link| link.bridge == bridge).map(|link| link.address)
    }
}

/// The name of the network namespace of `place`.
#[must_use]
pub fn namespace(place: &str) -> String {
    format!("xr-{place}")
}

/// A machine that runs a kubelet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Where it is; its name is also the Node object's.
    pub place: Place,
    /// The Node object's `InternalIP`: the one the hub would enter by.
    pub internal_ip: Ipv4Addr,
    /// The third octet-wide network of its pods, a /24.
    pub pods: Ipv4Addr,
}

impl Node {
    /// Its pods' network in CIDR form.
    #[must_use]
    pub fn pod_cidr(&self) -> String {
        format!("{}/24", self.pods)
    }
}

/// Where a cluster's objects are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// An etcd of its own, beside the API server.
    Own,
    /// Below this prefix in the lab's shared etcd.
    Shared(String),
}

/// A Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name in the lab, and for the proxy clusters in KubeVela.
    pub name: String,
    /// The region it belongs to; the hub has none.
    pub region: Option<Region>,
    /// Where its control plane runs: with nodes, the first of them.
    pub home: Place,
    /// The address its API server advertises and its own parts use.
    pub address: Ipv4Addr,
    /// The API server's port.
    pub port: u16,
    /// The `server` of the kubeconfig a user would bring.
    pub server: String,
    /// What the API server's certificate is for, beside `kubernetes*` and the service address.
    pub names: Vec<String>,
    /// The first two octets of its pods' network (a /16) are `10.<pods>`, of its services' `10.<services>`.
    pub pods: u8,
    /// See `pods`.
    pub services: u8,
    /// Its nodes; without any it has no scheduler either.
    pub nodes: Vec<Node>,
    /// Where its objects are stored.
    pub store: Store,
}

/// The names every API server's certificate holds, so that its own parts and its pods trust it whatever else it is for.
pub const API_SERVER_NAMES: [&str; 4] =
    ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

impl Cluster {
    /// The services' network in CIDR form.
    #[must_use]
    pub fn service_cidr(&self) -> String {
        format!("10.{}.0.0/16", self.services)
    }

    /// All nodes' pods' network in CIDR form.
    #[must_use]
    pub fn pod_cidr(&self) -> String {
        format!("10.{}.0.0/16", self.pods)
    }

    /// The service address of the API server itself.
    #[must_use]
    pub fn api_service(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.services, 0, 1)
    }

    /// The service address of the cluster's DNS.
    #[must_use]
    pub fn dns_service(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.services, 0, 10)
    }

    /// Whether the cluster has a DNS of its own (business clusters can do without).
    #[must_use]
    pub fn has_dns(&self) -> bool {
        matches!(self.role(), Role::Hub | Role::Proxy)
    }

    /// What it is for.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.region {
            None => Role::Hub,
            Some(_) if self.name.starts_with("proxy-") => Role::Proxy,
            Some(_) => Role::Business,
        }
    }

    /// The places it occupies: its nodes, or the home of its control plane.
    #[must_use]
    pub fn places(&self) -> Vec<&Place> {
        if self.nodes.is_empty() { vec![&self.home] } else { self.nodes.iter().map(|node| &node.place).collect() }
    }

    fn with_node(mut self, place: Place, internal_ip: Ipv4Addr) -> Self {
        let number = u8::try_from(self.nodes.len() + 1).unwrap_or(u8::MAX);
        self.nodes.push(Node { place, internal_ip, pods: Ipv4Addr::new(10, self.pods, number, 0) });
        self
    }
}

/// What a cluster is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs KubeVela.
    Hub,
    /// Runs a region's proxies.
    Proxy,
    /// Is to be joined.
    Business,
}

impl Cluster {
    /// The same, with another `server` in the kubeconfig a user brings and a certificate for `names`.
    #[must_use]
    pub fn served_as(mut self, server: &str, names: &[&str]) -> Self {
        self.server = server.to_owned();
        self.names = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    fn on_its_own_node(self) -> Self {
        let (place, address) = (self.home.clone(), self.address);
        self.with_node(place, address)
    }

    /// The host name of `server`, lower-cased; `None` for an address.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        let rest = self.server.strip_prefix("https://")?;
        let host = rest.split([':', '/']).next().unwrap_or(rest).to_ascii_lowercase();
        if host.parse::<Ipv4Addr>().is_ok() { None } else { Some(host) }
    }
}
