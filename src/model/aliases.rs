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
/// How long a line may get, in bytes, before further names of its region are led to other addresses, where there are any.
const GROUP_LIMIT: usize = 40 * 1024;

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

impl Record {
    fn note(&mut self, Wanted { host, cluster, region }: &Wanted) {
        let recorded =
            self.0.entry(host.to_string()).or_insert_with(|| Recorded { region: region.to_string(), clusters: BTreeSet::new() });
        recorded.region = region.to_string();
        recorded.clusters.insert(cluster.to_string());
    }
}

/// Where the names of a region lead.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leads {
    /// Groups of addresses: a name leads to all of one group.
    pub groups: Vec<BTreeSet<IpAddr>>,
    /// The region's nodes: what names that were made by hand may lead to.
    pub nodes: BTreeSet<IpAddr>,
}

/// To the nodes themselves.
impl From<BTreeSet<IpAddr>> for Leads {
    fn from(nodes: BTreeSet<IpAddr>) -> Self {
        Self { groups: vec![nodes.clone()], nodes }
    }
}

impl Leads {
    /// Every address.
    pub fn all(&self) -> BTreeSet<IpAddr> {
        self.groups.iter().flatten().copied().collect()
    }

    /// The group of each of these names, which lead there now: it stays where it is, or gets one with room, or the last one.
    fn assign<'a>(&self, names: &BTreeMap<&'a str, BTreeSet<IpAddr>>) -> BTreeMap<&'a str, &BTreeSet<IpAddr>> {
        let mut lengths = vec![0; self.groups.len()];
        let mut assigned = BTreeMap::new();
        let stays = |now: &BTreeSet<IpAddr>| self.groups.iter().position(|group| group == now);
        let mut take = |name: &'a str, group: usize, lengths: &mut Vec<usize>| {
            lengths[group] += name.len() + 1;
            assigned.insert(name, &self.groups[group]);
        };
        for (name, group) in names.iter().filter_map(|(name, now)| Some((name, stays(now)?))) {
            take(name, group, &mut lengths);
        }
        for name in names.iter().filter(|(_, now)| stays(now).is_none()).map(|(name, _)| name) {
            let has_room = lengths.iter().position(|length| length + name.len() < GROUP_LIMIT);
            if let Some(group) = has_room.or(self.groups.len().checked_sub(1)) {
                take(name, group, &mut lengths);
            }
        }
        assigned
    }
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
        self.lead_to(&[host.as_str()].into())
    }

    /// The addresses that any of these names leads to now.
    pub fn lead_to(&self, hosts: &BTreeSet<&str>) -> BTreeSet<IpAddr> {
        self.entries.iter().filter(|entry| hostnames(entry).any(|name| hosts.contains(name))).filter_map(address).collect()
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

    /// Whether `wanted` may have its host name, or take it over from somebody who leads it into the same region: to these nodes and
    /// nowhere else.
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
        leads: &BTreeMap<String, Leads>,
        adopt: bool,
    ) -> (Self, Vec<(&'a Wanted, Failure)>) {
        let nowhere = BTreeSet::new();
        // Whether a name is admitted depends on the record and on what others wrote: laying names out changes neither, and is dear.
        let (mut then, mut refused) = (self.clone(), Vec::new());
        for one in wanted {
            let admitted = if adopt {
                then.admit_adopted(one, leads.get(one.region.as_str()).map_or(&nowhere, |leads| &leads.nodes))
            } else {
                then.admit_move(one)
            };
            match admitted {
                Ok(()) => then.record.note(one),
                Err(failure) => refused.push((one, failure)),
            }
        }
        if refused.len() == wanted.len() {
            return (then, refused);
        }
        (self.laid_out(then.record, leads, None), refused)
    }

    /// The aliases with `host` led to these addresses again and nobody's claim to it recorded, if there is one: it is somebody else's.
    pub fn disowned(&self, host: &DnsName, addresses: &BTreeSet<IpAddr>) -> Self {
        let mut aliases = self.clone();
        if self.record.0.contains_key(host.as_str()) {
            aliases = self.laid_out(self.record.clone(), &BTreeMap::new(), Some((host, addresses)));
            aliases.record.0.remove(host.as_str());
        }
        aliases
    }

    /// The aliases with `wanted`, whose name leads to these addresses again.
    pub fn put_back(&self, wanted: &Wanted, addresses: &BTreeSet<IpAddr>) -> Self {
        self.laid_out(self.recorded(std::slice::from_ref(wanted)), &BTreeMap::new(), Some((&wanted.host, addresses)))
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

    /// The aliases with `wanted` added and the names of every region in `leads` led where that says.
    ///
    /// Entries and names of others stay verbatim and in order, and so do the names of regions that are not in `leads`.
    pub fn with(&self, wanted: &[Wanted], leads: &BTreeMap<String, Leads>) -> Self {
        self.laid_out(self.recorded(wanted), leads, None)
    }

    fn recorded(&self, wanted: &[Wanted]) -> Record {
        let mut record = self.record.clone();
        wanted.iter().for_each(|one| record.note(one));
        record
    }

    /// The aliases without `cluster`'s claim to `host`; the name goes with its last cluster.
    pub fn without(&self, host: &DnsName, cluster: &ClusterName) -> Self {
        let mut record = self.record.clone();
        if let Some(recorded) = record.0.get_mut(host.as_str()) {
            recorded.clusters.remove(cluster.as_str());
        }
        record.0.retain(|_, recorded| !recorded.clusters.is_empty());
        self.laid_out(record, &BTreeMap::new(), None)
    }

    /// The aliases without any claim of `cluster`.
    pub fn without_cluster(&self, cluster: &ClusterName) -> Self {
        let mut record = self.record.clone();
        for recorded in record.0.values_mut() {
            recorded.clusters.remove(cluster.as_str());
        }
        record.0.retain(|_, recorded| !recorded.clusters.is_empty());
        self.laid_out(record, &BTreeMap::new(), None)
    }

    /// Lays out the names of `record`, over entries that show the names of `self.record`; one of them leads where it is put, if it is.
    fn laid_out(&self, record: Record, leads: &BTreeMap<String, Leads>, put: Option<(&DnsName, &BTreeSet<IpAddr>)>) -> Self {
        let mut now: BTreeMap<&str, BTreeSet<IpAddr>> = record.0.keys().map(|name| (name.as_str(), BTreeSet::new())).collect();
        for (entry, ip) in self.entries.iter().filter_map(|entry| Some((entry, address(entry)?))) {
            for name in hostnames(entry) {
                if let Some(ips) = now.get_mut(name) {
                    ips.insert(ip);
                }
            }
        }
        // Where a name should lead: known for regions that could be read, else where it leads now.
        let mut wanted: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        let mut of_regions: BTreeMap<&str, BTreeMap<&str, BTreeSet<IpAddr>>> = BTreeMap::new();
        for (name, recorded) in &record.0 {
            let mut now = now.remove(name.as_str()).unwrap_or_default();
            if let Some((_, addresses)) = put.filter(|(host, _)| host.as_str() == name) {
                now.clone_from(addresses);
            }
            if leads.contains_key(&recorded.region) {
                of_regions.entry(&recorded.region).or_default().insert(name, now);
            } else {
                for ip in now {
                    wanted.entry(ip).or_default().insert(name);
                }
            }
        }
        for (region, names) in &of_regions {
            for (name, ips) in leads[*region].assign(names) {
                for ip in ips {
                    wanted.entry(*ip).or_default().insert(name);
                }
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

    /// Whether the last group of a region's addresses has as many names as it should have at most.
    pub fn fills(&self, leads: &Leads) -> bool {
        let last = leads.groups.last();
        let of_last = |entry: &&Value| last.is_some_and(|group| address(entry).is_some_and(|ip| group.contains(&ip)));
        self.entries.iter().filter(of_last).any(|entry| line_length(entry) > GROUP_LIMIT)
    }

    /// Refuses aliases of which the gateway could not read every one.
    ///
    /// # Errors
    /// A line of the hosts file would be too long.
    pub fn check_limit(&self) -> Result<()> {
        match self.overlong_entry() {
            None => Ok(()),
            Some(entry) => Err(Failure::new(
                Kind::AliasLimit,
                format!(
                    "the host aliases of {} would make a line of {} bytes, and the gateway can't read lines of 64 KiB",
                    entry["ip"],
                    line_length(entry)
                ),
                "let host aliases lead to Services, which share the names (vela addon upgrade xregion hostAliases=services), or use a further proxy cluster",
            )),
        }
    }

    /// The address whose line is refused for its length, if one is.
    pub fn overlong(&self) -> Option<IpAddr> {
        self.overlong_entry().and_then(address)
    }

    fn overlong_entry(&self) -> Option<&Value> {
        self.entries.iter().find(|entry| line_length(entry) > LINE_LIMIT)
    }
}

/// How many bytes the kubelet writes for an entry: "ip<tab>name<tab>name...".
fn line_length(entry: &Value) -> usize {
    entry["ip"].as_str().map_or(0, str::len) + hostnames(entry).map(|name| name.len() + 1).sum::<usize>()
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

    fn regions(of: &[(&str, &[&str])]) -> BTreeMap<String, Leads> {
        of.iter().map(|(region, texts)| ((*region).to_owned(), ips(texts).into())).collect()
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
        let back = adopted.disowned(&theirs.host, &by_hand.leads_to(&theirs.host));
        assert_eq!(back, by_hand);
        assert_eq!(by_hand.disowned(&theirs.host, &ips(&["10.0.0.7"])), by_hand, "it was never taken over");
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

    #[test]
    fn names_beyond_what_a_line_holds_lead_to_further_addresses_and_none_ever_moves() {
        let name = |i: usize| wanted(&format!("{}{i:04}.gr7.ap-east-1.eks.amazonaws.com", "a".repeat(28)), "x", "east");
        let (one, two) = (ips(&["10.9.0.1", "10.9.0.2"]), ips(&["10.9.0.3", "10.9.0.4"]));
        let leads = |groups: &[&BTreeSet<IpAddr>]| {
            BTreeMap::from([(
                "east".to_owned(),
                Leads { groups: groups.iter().map(|group| (*group).clone()).collect(), nodes: ips(&[]) },
            )])
        };
        let (few, many) = (leads(&[&one]), leads(&[&one, &two]));
        let names: Vec<_> = (0..1000).map(name).collect();
        let half = HostAliases::default().with(&names[..500], &few);
        assert!(!half.fills(&few["east"]));
        let full = half.with(&names[500..700], &few);
        assert!(full.fills(&few["east"]), "and another group is made");
        let all = half.with(&names[500..], &many);
        assert!(all.check_limit().is_ok() && !all.fills(&many["east"]));
        assert_eq!((all.leads_to(&names[0].host), all.leads_to(&names[999].host)), (one.clone(), two.clone()));
        let fewer = names[..300].iter().fold(all.clone(), |state, one| state.without(&one.host, &one.cluster));
        assert_eq!(fewer.with(&[], &many).leads_to(&names[999].host), two, "though there is room in the first now");
        assert_eq!(fewer.with(&[name(1000)], &many).leads_to(&name(1000).host), one);
    }

    #[test]
    fn one_name_is_put_back_and_no_other() {
        let leads = |ip: &str| regions(&[("east", &[ip])]);
        let both = [wanted("x.example", "x", "east"), wanted("y.example", "y", "east")];
        let before = HostAliases::default().with(&both, &leads("10.0.0.1"));
        let after = before.with(&[wanted("x.example", "x", "west")], &regions(&[("west", &["10.0.1.1"])]));
        let back = after.put_back(&both[0], &before.leads_to(&both[0].host));
        assert_eq!((&back.record, back.leads_to(&both[0].host)), (&before.record, before.leads_to(&both[0].host)));
        assert_eq!(back.leads_to(&both[1].host), before.leads_to(&both[1].host));
    }

    /// Every name admitted and laid out by itself, as it is meant.
    fn one_by_one<'a>(
        now: &HostAliases,
        wanted: &'a [Wanted],
        leads: &BTreeMap<String, Leads>,
        adopt: bool,
    ) -> (HostAliases, Vec<(&'a Wanted, Kind)>) {
        let (mut aliases, mut refused) = (now.clone(), Vec::new());
        for one in wanted {
            let nodes = &leads[one.region.as_str()].nodes;
            match if adopt { aliases.admit_adopted(one, nodes) } else { aliases.admit_move(one) } {
                Ok(()) => aliases = aliases.with(std::slice::from_ref(one), leads),
                Err(failure) => refused.push((one, failure.kind)),
            }
        }
        (aliases, refused)
    }

    const HOSTS: [&str; 6] = ["theirs.example", "a.example", "b.example", "c.example", "d.example", "e.example"];

    /// What clusters want, each in its region, of which `south` can't be read.
    fn wishes(regions: [&'static str; 3]) -> impl Strategy<Value = Vec<Wanted>> {
        let one = (0..HOSTS.len(), 0usize..3)
            .prop_map(move |(host, cluster)| wanted(HOSTS[host], ["x", "y", "z"][cluster], regions[cluster]));
        prop::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn names_that_are_admitted_at_once_lead_where_they_would_one_by_one(
            before in wishes(["east", "west", "south"]),
            wanted in wishes(["east", "east", "west"]),
            shards in 1u8..3,
            by_hand in 0u8..4,
            adopt: bool,
        ) {
            let group = |region: u8, shard: u8| ips(&[&format!("10.9.{region}.{shard}"), &format!("10.9.{region}.1{shard}")]);
            let leads = |region: u8| Leads { groups: (0..shards).map(|shard| group(region, shard)).collect(), nodes: ips(&["10.0.0.2"]) };
            let leads = BTreeMap::from([("east".to_owned(), leads(1)), ("west".to_owned(), leads(2))]);
            let theirs = json!({"ip": format!("10.0.0.{by_hand}"), "hostnames": ["theirs.example", "others.example"]});
            let start = HostAliases { entries: vec![theirs], ..HostAliases::default() };
            // They led to the nodes themselves once.
            let start = start.with_admitted(&before, &regions(&[("east", &["10.0.0.2"]), ("south", &["10.0.0.3"])]), false).0;

            let (at_once, refused) = start.with_admitted(&wanted, &leads, adopt);
            let (want, want_refused) = one_by_one(&start, &wanted, &leads, adopt);
            prop_assert_eq!(refused.iter().map(|(one, failure)| (*one, failure.kind)).collect::<Vec<_>>(), want_refused);
            prop_assert_eq!(&at_once.record, &want.record);
            for host in HOSTS.iter().chain(&["others.example"]) {
                let host: DnsName = host.parse().unwrap();
                prop_assert_eq!(at_once.leads_to(&host), want.leads_to(&host), "{}", host);
            }
            prop_assert_eq!(at_once.entries.len(), want.entries.len());
            // What is there already stays as it is, to the order of names.
            let admitted: Vec<_> = wanted.iter().filter(|one| !refused.iter().any(|(other, _)| other == one)).cloned().collect();
            prop_assert_eq!(&at_once.with_admitted(&admitted, &leads, adopt).0, &at_once);
        }

        #[test]
        fn joins_commute_and_leave_undoes_join(
            names in prop::collection::btree_set("[a-z]{1,4}", 1..8),
            nodes in prop::collection::btree_set(1u8..5, 1..4),
        ) {
            let nodes: BTreeSet<_> = nodes.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
            let addresses: BTreeMap<_, _> = [("east".to_owned(), nodes.into())].into();
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
