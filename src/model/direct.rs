//! The host names by which the hub reaches clusters that no region leads to. The gateway's host aliases hold for all that it connects to: one
//! of such a name would lead it to another cluster than that.

use std::collections::{BTreeMap, BTreeSet};

use super::aliases::Wanted;
use super::names::DnsName;
use crate::error::{Failure, Kind, Result};

/// The host names of clusters' servers that are nobody's alias, each with those clusters.
#[derive(Clone, Debug, Default)]
pub struct DirectHosts(BTreeMap<DnsName, BTreeSet<String>>);

impl DirectHosts {
    /// Of joined clusters: of each its name, the host by which the hub reaches it, and the alias that it is recorded with.
    pub fn of(clusters: impl IntoIterator<Item = (String, Option<DnsName>, Option<DnsName>)>) -> Self {
        let mut hosts = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, host, alias) in clusters {
            if let Some(host) = host.filter(|host| alias.as_ref() != Some(host)) {
                hosts.entry(host).or_default().insert(name);
            }
        }
        Self(hosts)
    }

    /// Whether `wanted` may have its host name: a cluster takes its own along into a region.
    ///
    /// # Errors
    /// Another cluster is reached by it.
    pub fn admit(&self, wanted: &Wanted) -> Result<()> {
        let host = &wanted.host;
        match self.0.get(host).into_iter().flatten().find(|other| *other != wanted.cluster.as_str()) {
            None => Ok(()),
            Some(other) => Err(Failure::new(
                Kind::HostTaken,
                format!(
                    "by host {host} the hub reaches cluster {other}, which is not joined through a region, and an alias would cut it off"
                ),
                format!(
                    "if it is the same cluster, join it as {other}; else give the API server another name (its certificate's, as tls-server-name)"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_by_which_another_cluster_is_reached_without_a_region_is_refused() {
        let dns = |name: &str| name.parse::<DnsName>().unwrap();
        let hosts = DirectHosts::of([
            ("proxy-west".to_owned(), Some(dns("west.example")), None),
            ("by-address".to_owned(), None, None),
            ("member".to_owned(), Some(dns("member.example")), Some(dns("member.example"))),
            ("joined-anew-by-hand".to_owned(), Some(dns("anew.example")), Some(dns("before.example"))),
        ]);
        for (host, cluster, taken, why) in [
            ("west.example", "evil", true, "it would be lost"),
            ("west.example", "proxy-west", false, "it moves into a region"),
            ("new.example", "new", false, "nobody has it"),
            ("member.example", "new", false, "two clusters of one region may share a name"),
            ("anew.example", "new", true, "what the gateway uses counts"),
            ("before.example", "new", false, "it is not reached by that"),
        ] {
            let wanted = Wanted { host: dns(host), cluster: cluster.parse().unwrap(), region: "east".parse().unwrap() };
            let refused = hosts.admit(&wanted).err().map(|failure| failure.kind);
            assert_eq!(refused, taken.then_some(Kind::HostTaken), "{host} for {cluster}: {why}");
        }
    }
}
