//! What a join came to, as it is told to people and to later workflow steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::names::{ApiHost, ClusterName, DnsName};
use crate::error::{Failure, Kind, Result};

/// How many failures a summary names.
const NAMED: usize = 5;

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
    /// What is to be known of the end of its credentials.
    pub warning: Option<String>,
}

impl Joined {
    /// As the values that a later workflow step may use.
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

    fn node_ips(&self) -> String {
        self.node_ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
    }
}

/// In a sentence, as a step's message shows it.
impl fmt::Display for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.changed { "joined" } else { "nothing to change" };
        write!(f, "{what}: {} leads to {}, and from there to {}", self.endpoint, self.node_ips(), self.host)?;
        self.warning.iter().try_for_each(|warning| write!(f, "; {warning}"))
    }
}

/// What a run came to, and what later workflow steps may use of it.
#[derive(Debug)]
pub struct Told {
    /// In a sentence.
    pub message: String,
    /// Values by name.
    pub outputs: BTreeMap<&'static str, String>,
}

/// Sums up the joins of several clusters, in their order.
///
/// # Errors
/// One of them failed: for a single cluster its own failure, else [`Kind::SomeFailed`] with the first of them.
pub fn conclude(clusters: &[&ClusterName], mut results: Vec<Result<Joined>>) -> Result<Told> {
    if results.len() == 1
        && let Some(result) = results.pop()
    {
        return result.map(|joined| Told { message: joined.to_string(), outputs: joined.to_outputs() });
    }
    let total = results.len();
    let (mut endpoints, mut warnings, mut failures) = (BTreeMap::new(), String::new(), Vec::new());
    for (cluster, result) in clusters.iter().zip(results) {
        match result {
            Ok(joined) => {
                warnings.extend(joined.warning.map(|warning| format!("; {cluster}: {warning}")));
                endpoints.insert(cluster.to_string(), joined.endpoint);
            }
            Err(failure) => failures.push(format!("{cluster}: {failure}")),
        }
    }
    if failures.is_empty() {
        let names = endpoints.keys().cloned().collect::<Vec<_>>().join(", ");
        let outputs = [("endpoints", serde_json::json!(endpoints).to_string())].into();
        return Ok(Told { message: format!("{total} clusters joined: {names}{warnings}"), outputs });
    }
    let count = failures.len();
    if count > NAMED {
        failures.truncate(NAMED);
        failures.push(format!("{} more, which the log names", count - NAMED));
    }
    Err(Failure::new(
        Kind::SomeFailed,
        format!("{count} of {total} clusters were not joined: {}", failures.join("; ")),
        "the others are joined; mend these and run it again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(host: &str) -> Joined {
        Joined {
            changed: true,
            endpoint: format!("https://{host}:30000"),
            node_port: 30000,
            node_ips: ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()].into(),
            host: "10.1.0.1".parse().unwrap(),
            alias: host.parse().unwrap(),
            warning: None,
        }
    }

    #[test]
    fn a_single_cluster_s_outputs_are_its_own_and_several_clusters_are_summed_up() {
        let names: Vec<ClusterName> = (0..8).map(|n| format!("c{n}").parse().unwrap()).collect();
        let names: Vec<&ClusterName> = names.iter().collect();
        let one = conclude(&names[..1], vec![Ok(joined("api.example"))]).unwrap();
        assert_eq!(one.outputs["nodeIPs"], "10.0.0.1,10.0.0.2");
        assert!(one.message.starts_with("joined: https://api.example:30000 leads to"), "{}", one.message);
        let warned = Joined { warning: Some("it ends".into()), ..joined("api.example") };
        assert!(warned.to_string().ends_with("to 10.1.0.1; it ends"), "{warned}");
        let several = conclude(&names[..2], vec![Ok(joined("a.example")), Ok(warned)]).unwrap();
        assert_eq!(several.message, "2 clusters joined: c0, c1; c1: it ends");
        let failure = || Failure::new(Kind::Insecure, "no authority", "give one");
        assert_eq!(conclude(&names[..1], vec![Err(failure())]).unwrap_err().kind, Kind::Insecure);

        let both = conclude(&names[..2], vec![Ok(joined("a.example")), Ok(joined("b.example"))]).unwrap();
        assert_eq!(both.message, "2 clusters joined: c0, c1");
        assert_eq!(both.outputs["endpoints"], r#"{"c0":"https://a.example:30000","c1":"https://b.example:30000"}"#);
        let one = conclude(&names[..2], vec![Ok(joined("a.example")), Err(failure())]).unwrap_err();
        assert_eq!(one.kind, Kind::SomeFailed);
        assert_eq!(one.cause(), "1 of 2 clusters were not joined: c1: no authority (give one)");
        let many = conclude(&names, names.iter().map(|_| Err(failure())).collect()).unwrap_err();
        assert!(many.cause().ends_with("c4: no authority (give one); 3 more, which the log names"), "{}", many.cause());
    }
}
