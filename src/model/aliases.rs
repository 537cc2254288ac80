//! The gateway's host aliases: which host names lead to which nodes, merged into what others wrote there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::{ClusterName, DnsName};
use crate::error::{Failure, Kind, Result};

/// Annotation of the gateway's Deployment that holds the [`Record`] as JSON.
pub const RECORD: &str = "xregion.oam.dev/aliases";
/// The longest line of a hosts file, in bytes, that is written. Go's reader drops a line of 64 KiB and every later one.
const LINE_LIMIT: usize = 60 * 1024;

/// The host names that are xregion's, for whom, and in which region.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Record(pub BTreeMap<String, Recorded>);

/// One host name of the record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Recorded {
    /// The region whose nodes the name leads to.
    pub region: String,
    /// The clusters that are reached by it.
    pub clusters: BTreeSet<String>,
}

/// The pod template's `hostAliases`, as found or as wanted, with the record that says which are xregion's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostAliases {
    /// `spec.template.spec.hostAliases`: objects with `ip` and `hostnames`.
    pub entries: Vec<Value>,
    /// Whose they are.
    pub record: Record,
}

/// A host name that a cluster has, as recorded: anybody may have edited it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claim {
    /// The host name.
    pub host: String,
    /// The region it leads to.
    pub region: String,
}

/// One thing a join wants: this name, for that cluster, in this region.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Wanted {
    /// The host name.
    pub host: DnsName,
    /// The cluster behind it.
    pub cluster: ClusterName,
    /// The region that leads to it.
    pub region: ClusterName,
}

impl HostAliases {
    /// The addresses a recorded region's names lead to now.
    pub fn addresses(&self, region: &ClusterName) -> BTreeSet<IpAddr> {
        let of_region = |name: &str| self.record.0.get(name).is_some_and(|recorded| recorded.region == region.as_str());
        self.entries.iter().filter(|entry| hostnames(entry).any(of_region)).filter_map(address).collect()
    }

    /// The addresses a name leads to now.
    pub fn leads_to(&self, host: &DnsName) -> BTreeSet<IpAddr> {
        self.entries.iter().filter(|entry| hostnames(entry).any(|name| name == host.as_str())).filter_map(address).collect()
    }

    /// Whether `wanted` may have its host name.
    ///
    /// # Errors
    /// The name is somebody else's alias, or leads into another region.
    pub fn admit(&self, wanted: &Wanted) -> Result<()> {
        let host = wanted.host.as_str();
        match self.record.0.get(host) {
            Some(recorded) if recorded.region != wanted.region.as_str() => Err(Failure::new(
                Kind::HostTaken,
                format!(
                    "host {host} leads into region {} already, for {}",
                    recorded.region,
                    recorded.clusters.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
                ),
                "a host name can lead into one region only: give the API server another name there, or let the other cluster leave",
            )),
            Some(_) => Ok(()),
            None => match self.entries.iter().find(|entry| hostnames(entry).any(|name| name == host)) {
                Some(entry) => Err(Failure::new(
                    Kind::HostAliased,
                    format!("host {host} has an alias on the gateway already, to {}, that xregion did not make", entry["ip"]),
                    "if it was made by hand for this cluster and region, take it over with adopt (--adopt); else remove it from the gateway's hostAliases first, if nothing needs it",
                )),
                None => Ok(()),
            },
        }
    }

    /// Whether `wanted` may have its host name, or take it along from another region: that is possible where nobody shares it.
    ///
    /// # Errors
    /// As [`HostAliases::admit`].
    pub fn admit_move(&self, wanted: &Wanted) -> Result<()> {
        let alone = |recorded: &Recorded| recorded.clusters.iter().eq([wanted.cluster.as_str()]);
        if self.record.0.get(wanted.host.as_str()).is_some_and(alone) { Ok(()) } else { self.admit(wanted) }
    }

    /// Whether a name is recorded for just this cluster and region.
    pub fn has(&self, wanted: &Wanted) -> bool {
        self.record.0.get(wanted.host.as_str()).is_some_and(|recorded| {
            recorded.region == wanted.region.as_str() && recorded.clusters.contains(wanted.cluster.as_str())
        })
    }

    /// Whether `wanted` may have its host name, or take it over from somebody who leads it into the same region: to these addresses
    /// and no other.
    ///
    /// # Errors
    /// As [`HostAliases::admit`].
    pub fn admit_adopted(&self, wanted: &Wanted, region: &BTreeSet<IpAddr>) -> Result<()> {
        let mut of_host = self.entries.iter().filter(|entry| hostnames(entry).any(|name| name == wanted.host.as_str()));
        let foreign = !self.record.0.contains_key(wanted.host.as_str());
        if foreign && of_host.all(|entry| address(entry).is_some_and(|ip| region.contains(&ip))) {
            return Ok(());
        }
        self.admit_move(wanted)
    }

    /// The aliases with every name of `wanted` that is admitted, and with those that are not and why. With `adopt`, names are taken over
    /// that somebody else leads into the same region.
    pub fn with_admitted<'a>(
        &self,
        wanted: &'a [Wanted],
        addresses: &BTreeMap<String, BTreeSet<IpAddr>>,
        adopt: bool,
    ) -> (Self, Vec<(&'a Wanted, Failure)>) {
        let nowhere = BTreeSet::new();
        let (mut aliases, mut refused) = (self.clone(), Vec::new());
        for one in wanted {
            let admitted = if adopt {
                aliases.admit_adopted(one, addresses.get(one.region.as_str()).unwrap_or(&nowhere))
            } else {
                aliases.admit_move(one)
            };
            match admitted {
                Ok(()) => aliases = aliases.with(std::slice::from_ref(one), addresses),
                Err(failure) => refused.push((one, failure)),
            }
        }
        (aliases, refused)
    }

    /// The aliases as they are, with nobody's claim to `host` recorded: it is somebody else's again.
    pub fn disowned(&self, host: &DnsName) -> Self {
        let mut aliases = self.clone();
        aliases.record.0.remove(host.as_str());
        aliases
    }

    /// Whether a host name leads anywhere and is not recorded.
    pub fn is_foreign(&self, host: &DnsName) -> bool {
        let known = self.record.0.contains_key(host.as_str());
        !known && self.entries.iter().any(|entry| hostnames(entry).any(|name| name == host.as_str()))
    }

    /// What a cluster claims.
    pub fn claims_of(&self, cluster: &ClusterName) -> Vec<Claim> {
        let of = |(host, recorded): (&String, &Recorded)| {
            recorded.clusters.contains(cluster.as_str()).then(|| Claim { host: host.clone(), region: recorded.region.clone() })
        };
        self.record.0.iter().filter_map(of).collect()
    }

    /// The aliases with `wanted` added and the names of every region in `addresses` led to that region's addresses.
    ///
    /// Entries and names of others stay verbatim and in order, and so do the names of regions that are not in `addresses`.
    pub fn with(&self, wanted: &[Wanted], addresses: &BTreeMap<String, BTreeSet<IpAddr>>) -> Self {
        let mut record = self.record.clone();
        for Wanted { host, cluster, region } in wanted {
            let recorded = record
                .0
                .entry(host.to_string())
                .or_insert_with(|| Recorded { region: region.to_string(), clusters: BTreeSet::new() });
            recorded.region = region.to_string();
            recorded.clusters.insert(cluster.to_string());
        }
        self.laid_out(record, addresses)
    }

    /// The aliases without `cluster`'s claim to `host`; the name goes with its last cluster.
    pub fn without(&self, host: &DnsName, cluster: &ClusterName) -> Self {
        let mut record = self.record.clone();
        if let Some(recorded) = record.0.get_mut(host.as_str()) {
            recorded.clusters.remove(cluster.as_str());
        }
        record.0.retain(|_, recorded| !recorded.clusters.is_empty());
        self.laid_out(record, &BTreeMap::new())
    }

    /// The aliases without any claim of `cluster`.
    pub fn without_cluster(&self, cluster: &ClusterName) -> Self {
        let mut record = self.record.clone();
        for recorded in record.0.values_mut() {
            recorded.clusters.remove(cluster.as_str());
        }
        record.0.retain(|_, recorded| !recorded.clusters.is_empty());
        self.laid_out(record, &BTreeMap::new())
    }

    /// Lays out the names of `record`, over entries that show the names of `self.record`.
    fn laid_out(&self, record: Record, addresses: &BTreeMap<String, BTreeSet<IpAddr>>) -> Self {
        // Where a name should lead: known for regions that could be read, else where it leads now.
        let mut wanted: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        for (name, recorded) in &record.0 {
            let now = || self.entries.iter().filter(|entry| hostnames(entry).any(|n| n == name)).filter_map(address).collect();
            for ip in addresses.get(&recorded.region).cloned().unwrap_or_else(now) {
                wanted.entry(ip).or_default().insert(name);
            }
        }
        let ours = |name: &str| self.record.0.contains_key(name) || record.0.contains_key(name);
        let mut entries = Vec::new();
        for entry in &self.entries {
            let mut names = address(entry).and_then(|ip| wanted.remove(&ip)).unwrap_or_default();
            let before: Vec<&str> = hostnames(entry).collect();
            let mut after: Vec<&str> = before.iter().copied().filter(|name| names.remove(name) || !ours(name)).collect();
            after.extend(names);
            if after == before {
                entries.push(entry.clone());
            } else if !after.is_empty() {
                entries.push(json!({"ip": entry["ip"], "hostnames": after}));
            }
        }
        entries.extend(wanted.into_iter().map(|(ip, names)| json!({"ip": ip, "hostnames": names})));
        Self { entries, record }
    }

    /// Refuses aliases of which the gateway could not read every one.
    ///
    /// # Errors
    /// A line of the hosts file would be too long.
    pub fn check_limit(&self) -> Result<()> {
        for entry in &self.entries {
            // The kubelet writes "ip<tab>name<tab>name...".
            let length = entry["ip"].as_str().map_or(0, str::len) + hostnames(entry).map(|name| name.len() + 1).sum::<usize>();
            if length > LINE_LIMIT {
                return Err(Failure::new(
                    Kind::AliasLimit,
                    format!(
                        "the host aliases of {} would make a line of {length} bytes, and the gateway can't read lines of 64 KiB",
                        entry["ip"]
                    ),
                    "use a further proxy cluster for more clusters of this region",
                ));
            }
        }
        Ok(())
    }
}

fn hostnames(entry: &Value) -> impl Iterator<Item = &str> {
    entry["hostnames"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn address(entry: &Value) -> Option<IpAddr> {
    entry["ip"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(host: &str, cluster: &str, region: &str) -> Wanted {
        Wanted { host: host.parse().unwrap(), cluster: cluster.parse().unwrap(), region: region.parse().unwrap() }
    }

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn regions(of: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<IpAddr>> {
        of.iter().map(|(region, texts)| ((*region).to_owned(), ips(texts))).collect()
    }

    fn foreign() -> Vec<Value> {
        vec![
            json!({"ip": "192.0.2.9", "hostnames": ["z.example", "a.example"]}),
            json!({"ip": "10.0.0.2", "hostnames": ["theirs.example"]}),
        ]
    }

    #[test]
    fn names_lead_to_every_node_of_their_region_beside_what_others_wrote() {
        let empty = HostAliases { entries: foreign(), ..HostAliases::default() };
        let one = empty.with(&[wanted("x.example", "x", "east")], &regions(&[("east", &["10.0.0.1", "10.0.0.2"])]));
        assert_eq!(
            one.entries,
            [
                json!({"ip": "192.0.2.9", "hostnames": ["z.example", "a.example"]}),
                json!({"ip": "10.0.0.2", "hostnames": ["theirs.example", "x.example"]}),
                json!({"ip": "10.0.0.1", "hostnames": ["x.example"]}),
            ]
        );
        assert_eq!(one.addresses(&"east".parse().unwrap()), ips(&["10.0.0.1", "10.0.0.2"]));
        let again = one.with(&[wanted("x.example", "x", "east")], &regions(&[("east", &["10.0.0.1", "10.0.0.2"])]));
        assert_eq!(again, one, "unchanged means no patch");
        // Another region is joined while east can't be read.
        let two = one.with(&[wanted("y.example", "y", "west")], &regions(&[("west", &["10.0.1.1"])]));
        assert_eq!(two.entries[..3], one.entries);
        assert_eq!(two.entries[3], json!({"ip": "10.0.1.1", "hostnames": ["y.example"]}));
    }

    #[test]
    fn a_region_whose_nodes_changed_is_led_to_the_new_ones() {
        let start = HostAliases { entries: foreign(), ..HostAliases::default() };
        let one = start.with(&[wanted("x.example", "x", "east")], &regions(&[("east", &["10.0.0.1", "10.0.0.2"])]));
        let two = one.with(&[wanted("y.example", "y", "east")], &regions(&[("east", &["10.0.0.3"])]));
        assert_eq!(two.entries[..2], foreign());
        assert_eq!(two.entries[2..], [json!({"ip": "10.0.0.3", "hostnames": ["x.example", "y.example"]})]);
    }

    #[test]
    fn a_name_goes_with_its_last_cluster() {
        let nodes = regions(&[("east", &["10.0.0.1"])]);
        let two = HostAliases::default().with(&[wanted("m.example", "x", "east"), wanted("m.example", "y", "east")], &nodes);
        let one = two.without(&"m.example".parse().unwrap(), &"x".parse().unwrap());
        assert_eq!(one.entries, two.entries);
        assert_eq!(one.without(&"m.example".parse().unwrap(), &"y".parse().unwrap()), HostAliases::default());
    }

    #[test]
    fn a_name_of_somebody_else_or_of_another_region_is_refused() {
        let state = HostAliases { entries: foreign(), ..HostAliases::default() }
            .with(&[wanted("x.example", "x", "east")], &regions(&[("east", &["10.0.0.1"])]));
        let kind = |host, region| state.admit(&wanted(host, "new", region)).map_err(|failure| failure.kind);
        assert_eq!(kind("a.example", "east"), Err(Kind::HostAliased));
        assert_eq!(kind("x.example", "west"), Err(Kind::HostTaken));
        assert_eq!(kind("x.example", "east"), Ok(()));
        assert_eq!(kind("new.example", "east"), Ok(()));
    }

    #[test]
    fn a_name_that_leads_into_the_region_by_hand_is_adopted_and_can_be_given_back() {
        let by_hand = HostAliases { entries: foreign(), ..HostAliases::default() };
        let (theirs, elsewhere) = (wanted("theirs.example", "x", "east"), wanted("a.example", "x", "east"));
        let region = ips(&["10.0.0.1", "10.0.0.2"]);
        let kind = |wanted: &Wanted| by_hand.admit_adopted(wanted, &region).map_err(|failure| failure.kind);
        assert_eq!(kind(&theirs), Ok(()));
        assert_eq!(kind(&elsewhere), Err(Kind::HostAliased), "it leads out of the region");
        assert_eq!(kind(&wanted("new.example", "x", "east")), Ok(()));
        assert!(by_hand.is_foreign(&theirs.host) && !by_hand.is_foreign(&"new.example".parse().unwrap()));

        let adopted = by_hand.with(std::slice::from_ref(&theirs), &regions(&[("east", &["10.0.0.1", "10.0.0.2"])]));
        assert_eq!(adopted.entries[..2], by_hand.entries, "the entry stays as it is");
        assert_eq!(adopted.entries[2], json!({"ip": "10.0.0.1", "hostnames": ["theirs.example"]}), "and every other node joins it");
        let back = adopted.disowned(&theirs.host);
        assert_eq!((back.entries == adopted.entries, back.record), (true, Record::default()));
        // One node in the region: nothing changes but the record, so nothing is rolled.
        let same = by_hand.with(std::slice::from_ref(&theirs), &regions(&[("east", &["10.0.0.2"])]));
        assert_eq!(same.entries, by_hand.entries);
    }

    #[test]
    fn a_line_that_go_would_drop_is_refused() {
        let long: Vec<_> =
            (0..1000).map(|i| wanted(&format!("{}{i:04}.gr7.ap-east-1.eks.amazonaws.com", "a".repeat(28)), "x", "east")).collect();
        let of = |count: usize| HostAliases::default().with(&long[..count], &regions(&[("east", &["10.0.0.1"])])).check_limit();
        assert!(of(900).is_ok());
        assert_eq!(of(1000).unwrap_err().kind, Kind::AliasLimit);
    }

    proptest! {
        #[test]
        fn joins_commute_and_leave_undoes_join(
            names in prop::collection::btree_set("[a-z]{1,4}", 1..8),
            nodes in prop::collection::btree_set(1u8..5, 1..4),
        ) {
            let addresses: BTreeMap<_, _> = [("east".to_owned(), nodes.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect())].into();
            let start = HostAliases { entries: foreign(), ..HostAliases::default() };
            let all: Vec<_> = names.iter().map(|name| wanted(&format!("{name}.test"), name, "east")).collect();
            let join = |order: Vec<&Wanted>| order.into_iter().fold(start.clone(), |state, one| state.with(std::slice::from_ref(one), &addresses));
            let (forth, back) = (join(all.iter().collect()), join(all.iter().rev().collect()));
            prop_assert_eq!(&forth.record, &back.record);
            for (one, other) in forth.entries.iter().zip(&back.entries) {
                prop_assert_eq!(&one["ip"], &other["ip"]);
                prop_assert_eq!(hostnames(one).collect::<BTreeSet<_>>(), hostnames(other).collect::<BTreeSet<_>>());
            }
            let left = all.iter().fold(forth, |state, one| state.without(&one.host, &one.cluster));
            prop_assert_eq!(left, start);
        }
    }
}
