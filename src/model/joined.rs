//! What a join came to, as it is told to people, to later workflow steps and to a shell that follows the Job.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::names::{ApiHost, DnsName};

/// What a join came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Joined {
    /// Whether anything was changed.
    pub changed: bool,
    /// The server that the hub connects to.
    pub endpoint: String,
    /// The node port in the region.
    pub node_port: u16,
    /// The addresses that the alias leads to.
    pub node_ips: BTreeSet<IpAddr>,
    /// The API server as the region sees it.
    pub host: ApiHost,
    /// The host name that leads to the region's nodes on the hub.
    pub alias: DnsName,
}

impl Joined {
    /// As the values that a later workflow step, or a shell that follows the Job, may use.
    pub fn to_outputs(&self) -> BTreeMap<&'static str, String> {
        [
            ("changed", self.changed.to_string()),
            ("endpoint", self.endpoint.clone()),
            ("nodePort", self.node_port.to_string()),
            ("nodeIPs", self.node_ips()),
            ("host", self.host.to_string()),
            ("alias", self.alias.to_string()),
        ]
        .into()
    }

    /// Reads those values back.
    pub fn from_outputs(outputs: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| outputs.get(key).map(String::as_str);
        Some(Self {
            changed: get("changed")? == "true",
            endpoint: get("endpoint")?.to_owned(),
            node_port: get("nodePort")?.parse().ok()?,
            node_ips: get("nodeIPs")?.split(',').map(|ip| ip.parse().ok()).collect::<Option<_>>()?,
            host: get("host")?.parse().ok()?,
            alias: get("alias")?.parse().ok()?,
        })
    }

    fn node_ips(&self) -> String {
        self.node_ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
    }
}

/// In a sentence, as a step's message shows it.
impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.changed { "joined" } else { "nothing to change" };
        write!(f, "{what}: {} leads to {}, and from there to {}", self.endpoint, self.node_ips(), self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_read_back() {
        let joined = Joined {
            changed: true,
            endpoint: "https://api.example:30000".into(),
            node_port: 30000,
            node_ips: ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()].into(),
            host: "10.1.0.1".parse().unwrap(),
            alias: "api.example".parse().unwrap(),
        };
        let mut outputs: BTreeMap<String, String> =
            joined.to_outputs().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        assert_eq!(Joined::from_outputs(&outputs), Some(joined));
        outputs.remove("alias");
        assert_eq!(Joined::from_outputs(&outputs), None);
    }
}
