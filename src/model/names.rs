//! Names that have rules: cluster names, API server hosts, and the names made from them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Failure, Kind};

/// The namespace of everything xregion writes, in every cluster: KubeVela's own.
pub const NAMESPACE: &str = "vela-system";
/// `app.kubernetes.io/managed-by` of what the binary writes.
pub const MANAGER: &str = "xregion";
/// The name of the controller's Deployment, of its Lease and of its ConfigMap, on the hub.
pub const CONTROLLER: &str = "xregion-controller";
/// ConfigMap of the addon with the Job's manifest, and with what joins have to know of the addon's parameters.
pub const JOB: &str = "xregion-job";
/// Label that says what an object is to xregion: `route`, `region`, `proxy`, `progress`, `job`, `member`.
pub const KIND: &str = "xregion.oam.dev/kind";
/// Label with the short hash of the hub an object belongs to.
pub const HUB: &str = "xregion.oam.dev/hub";
/// Label with the name of the cluster an object belongs to.
pub const CLUSTER: &str = "xregion.oam.dev/cluster";

/// The first `len` hex digits of the SHA-256 of `text`.
pub fn short_hash(text: &str, len: usize) -> String {
    let mut hex: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(len);
    hex
}

/// Whether `text` is an RFC 1123 label: at most 63 of `a-z0-9-`, with a letter or digit at both ends.
fn is_rfc1123_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// The name of a cluster in KubeVela: an RFC 1123 label other than `local`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        if text == "local" {
            return Err(Failure::new(
                Kind::ClusterName,
                "cluster name \"local\" is KubeVela's own name for the hub",
                "choose another name",
            ));
        }
        if !is_rfc1123_label(text) {
            return Err(Failure::new(
                Kind::ClusterName,
                format!("cluster name {text:?} is no RFC 1123 label"),
                "use at most 63 lower-case letters, digits and '-', with a letter or digit at both ends",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a Secret: an RFC 1123 subdomain, so that it can't lead to another object by its path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SecretName(String);

impl SecretName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        if text.len() > 253 || !text.split('.').all(is_rfc1123_label) {
            return Err(Failure::new(
                Kind::SecretMissing,
                format!("{text:?} is no name that a Secret can have"),
                format!("give the name of a Secret in {NAMESPACE}"),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an object in a cluster that is asked for it by path. What else its kind has as rules, that cluster's API says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ObjectName(String);

impl ObjectName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let harmless = |b: u8| b.is_ascii_alphanumeric() || b"-.:_".contains(&b);
        if text.is_empty() || text == "." || text == ".." || !text.bytes().all(harmless) {
            return Err(Failure::new(
                Kind::Usage,
                format!("{text:?} is no name that an object can have"),
                "use letters, digits, '-', '.', ':' and '_'",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A DNS name in lower case that may stand in a hosts file: RFC 1123, no wildcard, no trailing dot.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DnsName(String);

impl DnsName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an alias for this name would break the pod it is written into: names of the hub's own API and of the pod itself.
    pub fn is_reserved(&self) -> bool {
        let first = self.0.split('.').next().unwrap_or_default();
        first == "kubernetes" || self.0 == "localhost" || self.0.ends_with(".localhost")
    }
}

impl FromStr for DnsName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let name = text.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        // A last label of digits only would read as an IPv4 address somewhere (RFC 1123, 2.1).
        let numeric_end = name.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > 253 || numeric_end || !name.split('.').all(is_rfc1123_label) {
            return Err(Failure::new(
                Kind::Server,
                format!("{text:?} is no DNS name"),
                "check the server (or tls-server-name) in the kubeconfig",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host of an API server: a DNS name, or the literal of an IP address.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ApiHost {
    /// A DNS name.
    Dns(DnsName),
    /// An IP address.
    Ip(IpAddr),
}

impl FromStr for ApiHost {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(ip) => Ok(Self::Ip(ip)),
            Err(_) => text.parse().map(Self::Dns),
        }
    }
}

impl fmt::Display for ApiHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => name.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// A cluster's place for a route in a region. It has two: while one serves, the way to a changed upstream is laid and proven in the
/// other, and takes over.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Slot {
    /// Where the first route goes.
    #[default]
    First,
    /// Beside it.
    Second,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// What its names end with.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::First => "",
            Self::Second => "-b",
        }
    }
}

/// Which hub a route belongs to: the UID of its namespace `kube-system`, by which Kubernetes tools tell clusters apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HubId(String);

impl HubId {
    /// The hub whose `kube-system` has this UID.
    pub fn new(uid: impl Into<String>) -> Self {
        Self(uid.into())
    }

    /// The whole UID.
    pub fn uid(&self) -> &str {
        &self.0
    }

    /// Eight hex digits that tell hubs apart in names and labels.
    pub fn short(&self) -> String {
        short_hash(&self.0, 8)
    }

    /// The name of a cluster's route ConfigMap. The suffixes have fixed lengths, so two clusters never share one.
    pub fn route_name(&self, cluster: &ClusterName, slot: Slot) -> String {
        format!("xregion-route-{cluster}-{}{}", self.short(), slot.suffix())
    }

    /// The name of a cluster's port on the shared Service: a DNS label, so a long cluster name is cut and told apart by a hash.
    pub fn port_name(&self, cluster: &ClusterName, slot: Slot) -> String {
        const ROOM: usize = 63 - 9;
        let start = cluster.as_str().get(..ROOM).unwrap_or(cluster.as_str());
        match (slot, start == cluster.as_str()) {
            (Slot::First, true) => format!("{start}-{}", self.short()),
            (Slot::First, false) => format!("{start}-{}", short_hash(&format!("{}/{cluster}", self.0), 8)),
            (Slot::Second, _) => format!("{start}-{}", short_hash(&format!("{}/{cluster}/b", self.0), 8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cluster_names() {
        for good in ["a", "business-a", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<ClusterName>().unwrap().to_string(), good);
        }
        for bad in ["", "local", "A", "a_b", "a.b", "-a", "a-", "a\n", "ä", "a;b", "a b", &"x".repeat(64)] {
            assert_eq!(bad.parse::<ClusterName>().unwrap_err().kind, Kind::ClusterName, "{bad:?}");
        }
    }

    #[test]
    fn secret_names_lead_nowhere_else() {
        assert!("business-a.kubeconfig".parse::<SecretName>().is_ok());
        for bad in ["", "../configmaps/x", "a/b", "a?b", "A", "a..b", "%2e%2e"] {
            assert_eq!(bad.parse::<SecretName>().unwrap_err().kind, Kind::SecretMissing, "{bad:?}");
        }
    }

    #[test]
    fn object_names_lead_nowhere_else() {
        for good in ["xregion", "vela-system", "system:aggregate-to-view", "a.b_c"] {
            assert_eq!(good.parse::<ObjectName>().unwrap().to_string(), good);
        }
        for bad in ["", ".", "..", "a/b", "%2e", "a?b", "a b"] {
            assert_eq!(bad.parse::<ObjectName>().unwrap_err().kind, Kind::Usage, "{bad:?}");
        }
    }

    #[test]
    fn hosts() {
        for (text, want) in [
            ("A1B2C3D4E5.gr7.ap-east-1.eks.example", "a1b2c3d4e5.gr7.ap-east-1.eks.example"),
            ("api.example.", "api.example"),
            ("10.80.1.32", "10.80.1.32"),
            ("[2001:DB8::1]", "2001:db8::1"),
        ] {
            assert_eq!(text.parse::<ApiHost>().unwrap().to_string(), want);
        }
        for bad in ["", ".", "a..b", "*.example", "a;b", "a b", "a{b}", "$u", "1.2.3", "10.80.1.256", "a_b.example", "a/b"] {
            assert_eq!(bad.parse::<ApiHost>().unwrap_err().kind, Kind::Server, "{bad:?}");
        }
    }

    #[test]
    fn names_that_must_not_be_aliased() {
        for reserved in ["kubernetes", "kubernetes.default", "kubernetes.default.svc.cluster.local", "localhost", "a.localhost"] {
            assert!(reserved.parse::<DnsName>().unwrap().is_reserved(), "{reserved}");
        }
        for free in ["business-b-master", "api.kubernetes.example", "kubernetes-1.example"] {
            assert!(!free.parse::<DnsName>().unwrap().is_reserved(), "{free}");
        }
    }

    #[test]
    fn names_of_two_hubs_differ() {
        let cluster: ClusterName = "business-a".parse().unwrap();
        let (one, two) = (HubId::new("1"), HubId::new("2"));
        assert_ne!(one.route_name(&cluster, Slot::First), two.route_name(&cluster, Slot::First));
        assert_ne!(one.port_name(&cluster, Slot::First), two.port_name(&cluster, Slot::First));
        assert_ne!(one.port_name(&cluster, Slot::Second), one.port_name(&cluster, Slot::First));
    }

    proptest! {
        #[test]
        fn port_names_are_labels_and_tell_clusters_apart(a in "[a-z0-9]{1,63}", b in "[a-z0-9]{1,63}", shared in "[a-z0-9]{54,60}") {
            let hub = HubId::new("7d1c");
            let name = |text: &str| text.parse::<ClusterName>().ok().map(|cluster| hub.port_name(&cluster, Slot::First));
            for (x, y) in [(a.clone(), b), (format!("{shared}1"), format!("{shared}2"))] {
                let (left, right) = (name(&x), name(&y));
                prop_assert!(left.iter().chain(&right).all(|name| is_rfc1123_label(name)));
                prop_assert_eq!(x == y, left == right && left.is_some());
            }
        }
    }
}
