//! What a proxy has carried for each cluster: sessions that ended, as nginx records them, and those that are open, as the kernel counts
//! them. A session is in one of the two.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::AddAssign;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::{ClusterName, HubId};

/// Annotation of a proxy's Lease that holds its [`Traffic`] as JSON.
pub const TRAFFIC: &str = "xregion.oam.dev/traffic";
/// nginx's status of a session that reached its upstream and ended in any way.
pub const REACHED: &str = "200";

/// Whose traffic it is: a cluster's name, and the short form of its hub's identity.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Of {
    /// The cluster.
    pub cluster: String,
    /// Its hub.
    pub hub: String,
}

/// A session that ended, as a proxy's access log has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Session {
    /// Whose it was.
    #[serde(flatten)]
    pub of: Of,
    /// nginx's status, three digits: 200 for one that reached its upstream, 502 for one that did not, 403, 500 and 503 as in HTTP.
    pub status: String,
    /// Bytes from the client; of one that was told by its name, without those that told it.
    pub received: u64,
    /// Bytes to each address tried, as nginx writes it: `0, 512`; only of one that was told by its name.
    pub forwarded: Option<String>,
    /// Bytes to the client, from the cluster.
    pub sent: u64,
    /// How long it took.
    pub seconds: f64,
    /// How long it took to reach each address tried, as nginx writes it: `0.002`, or `-, 0.004` where the first did not answer.
    pub connect: String,
}

impl Session {
    /// Whether it never reached the cluster.
    pub fn failed(&self) -> bool {
        self.status != REACHED
    }

    /// Bytes to the cluster.
    pub fn to_cluster(&self) -> u64 {
        match &self.forwarded {
            Some(each) => each.split(", ").filter_map(|bytes| bytes.parse::<u64>().ok()).sum(),
            None => self.received,
        }
    }

    /// Seconds until the address that answered did so.
    pub fn connect_seconds(&self) -> Option<f64> {
        self.connect.rsplit(", ").next()?.parse().ok()
    }
}

/// Sums over sessions. Bytes are those of TCP streams; what TLS adds is in them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(from = "[u64; 5]", into = "[u64; 5]")]
pub struct Carried {
    /// Sessions that ended.
    pub sessions: u64,
    /// Those of them that never reached the cluster.
    pub failed: u64,
    /// Sessions that are open.
    pub open: u64,
    /// Bytes to the cluster.
    pub to_cluster: u64,
    /// Bytes from the cluster.
    pub from_cluster: u64,
}

impl From<[u64; 5]> for Carried {
    fn from([sessions, failed, open, to_cluster, from_cluster]: [u64; 5]) -> Self {
        Self { sessions, failed, open, to_cluster, from_cluster }
    }
}

impl From<Carried> for [u64; 5] {
    fn from(Carried { sessions, failed, open, to_cluster, from_cluster }: Carried) -> Self {
        [sessions, failed, open, to_cluster, from_cluster]
    }
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.failed += other.failed;
        self.open += other.open;
        self.to_cluster += other.to_cluster;
        self.from_cluster += other.from_cluster;
    }
}

impl Carried {
    /// What a session that ended adds.
    pub fn of(session: &Session) -> Self {
        Self { sessions: 1, failed: session.failed().into(), open: 0, to_cluster: session.to_cluster(), from_cluster: session.sent }
    }

    /// Takes what is open out of both sums as far as they have it in common.
    pub fn part_with(&mut self, other: &mut Self) {
        for (mine, theirs) in [
            (&mut self.open, &mut other.open),
            (&mut self.to_cluster, &mut other.to_cluster),
            (&mut self.from_cluster, &mut other.from_cluster),
        ] {
            let common = (*mine).min(*theirs);
            *mine -= common;
            *theirs -= common;
        }
    }
}

/// What one proxy tells of itself, by `hub/cluster`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Traffic {
    /// When it began to count.
    pub since: Timestamp,
    /// The sums.
    pub carried: BTreeMap<String, Carried>,
}

impl Traffic {
    /// Puts sums under their keys.
    pub fn new<'a>(since: Timestamp, carried: impl IntoIterator<Item = (&'a Of, Carried)>) -> Self {
        Self { since, carried: carried.into_iter().map(|(of, carried)| (format!("{}/{}", of.hub, of.cluster), carried)).collect() }
    }

    /// The same of a proxy that is gone: what was open in it is no more.
    pub fn without_open(mut self) -> Self {
        self.carried.values_mut().for_each(|carried| carried.open = 0);
        self
    }

    /// The sums of one hub's clusters.
    pub fn of_hub(&self, hub: &HubId) -> impl Iterator<Item = (ClusterName, Carried)> {
        let short = hub.short();
        self.carried.iter().filter_map(move |(key, carried)| {
            let (of, cluster) = key.split_once('/')?;
            Some((cluster.parse().ok().filter(|_| of == short)?, *carried))
        })
    }
}

/// What a region carried for one hub.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegionTraffic {
    /// The region.
    pub region: ClusterName,
    /// Since when, as the proxy says that counts longest; none where no proxy tells.
    pub since: Option<Timestamp>,
    /// Since when all of its proxies count: what others had carried before, in whose place some came, is lost.
    pub all_since: Option<Timestamp>,
    /// Why it could not be asked, if it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// By cluster.
    pub clusters: Vec<ClusterTraffic>,
}

/// What was carried for one cluster.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTraffic {
    /// The cluster.
    pub cluster: ClusterName,
    /// Sessions that ended.
    pub sessions: u64,
    /// Those of them that never reached the cluster.
    pub failed: u64,
    /// Sessions that are open.
    pub open: u64,
    /// Bytes to the cluster.
    pub bytes_to_cluster: u64,
    /// Bytes from the cluster.
    pub bytes_from_cluster: u64,
}

impl RegionTraffic {
    /// Adds up what a region's proxies tell.
    pub fn of(region: ClusterName, hub: &HubId, proxies: &[Traffic]) -> Self {
        let mut sums: BTreeMap<ClusterName, Carried> = BTreeMap::new();
        for (cluster, carried) in proxies.iter().flat_map(|traffic| traffic.of_hub(hub)) {
            *sums.entry(cluster).or_default() += carried;
        }
        let clusters = sums.into_iter().map(|(cluster, carried)| {
            let Carried { sessions, failed, open, to_cluster, from_cluster } = carried;
            ClusterTraffic { cluster, sessions, failed, open, bytes_to_cluster: to_cluster, bytes_from_cluster: from_cluster }
        });
        let begun = || proxies.iter().map(|traffic| traffic.since);
        Self { region, since: begun().min(), all_since: begun().max(), why: None, clusters: clusters.collect() }
    }

    /// One that could not be asked.
    pub fn unread(region: ClusterName, why: &str) -> Self {
        Self { region, since: None, all_since: None, why: Some(why.to_owned()), clusters: vec![] }
    }
}

/// A table for people.
pub fn table(regions: &[RegionTraffic]) -> String {
    let mut rows = vec![["REGION", "CLUSTER", "SESSIONS", "FAILED", "OPEN", "TO CLUSTER", "FROM CLUSTER"].map(str::to_owned)];
    for region in regions {
        for cluster in &region.clusters {
            let ClusterTraffic { cluster, sessions, failed, open, bytes_to_cluster, bytes_from_cluster } = cluster;
            rows.push([
                region.region.to_string(),
                cluster.to_string(),
                sessions.to_string(),
                failed.to_string(),
                open.to_string(),
                bytes(*bytes_to_cluster),
                bytes(*bytes_from_cluster),
            ]);
        }
    }
    let widths: Vec<usize> = (0..7).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    for region in regions {
        let told = match (&region.since, &region.all_since, &region.why) {
            (_, _, Some(why)) => format!("not asked: {why}"),
            (Some(since), Some(all), None) if since != all => format!("since {since:.0}, by all of its proxies since {all:.0}"),
            (Some(since), _, None) => format!("since {since:.0}"),
            (None, _, None) => "no proxy tells of its traffic".to_owned(),
        };
        let _ = writeln!(text, "{}: {told}", region.region);
    }
    text.trim_end().to_owned()
}

/// `1.5 MiB`.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "it is rounded to a digit anyway")]
    let mut scaled = number as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(status: u16, connect: &str) -> Session {
        let json = format!(
            r#"{{"time":"t","cluster":"a","hub":"h","from":"10.0.0.1","to":"10.0.0.2:443","status":"{status}","received":10,"sent":20,"seconds":1.500,"connect":"{connect}"}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn sessions_add_up() {
        let mut sum = Carried::of(&session(200, "0.002"));
        sum += Carried::of(&session(502, "-"));
        assert_eq!(<[u64; 5]>::from(sum), [2, 1, 0, 20, 40]);
    }

    #[test]
    fn what_told_a_session_s_name_went_to_the_cluster_too() {
        for (forwarded, want) in [(None, 10), (Some("512"), 512), (Some("0, 512"), 512), (Some("-"), 0), (Some(""), 0)] {
            let session = Session { forwarded: forwarded.map(str::to_owned), ..session(200, "0.002") };
            assert_eq!(Carried::of(&session).to_cluster, want, "{forwarded:?}");
        }
    }

    #[test]
    fn sums_part_as_far_as_they_have_something_in_common() {
        let (mut one, mut other) = (Carried::from([5, 1, 3, 100, 50]), Carried::from([0, 0, 2, 120, 50]));
        one.part_with(&mut other);
        assert_eq!((<[u64; 5]>::from(one), <[u64; 5]>::from(other)), ([5, 1, 1, 0, 0], [0, 0, 0, 20, 0]));
    }

    #[test]
    fn the_address_that_answered_says_how_long_it_took() {
        for (connect, want) in [("0.002", Some(0.002)), ("-, 0.004", Some(0.004)), ("-", None), ("", None)] {
            assert_eq!(session(200, connect).connect_seconds(), want, "{connect}");
        }
    }

    #[test]
    fn a_proxy_tells_of_every_hub_and_a_hub_reads_its_own() {
        let (mine, theirs) = (HubId::new("mine"), HubId::new("theirs"));
        let of = |hub: &HubId| Of { cluster: "a".into(), hub: hub.short() };
        let carried = Carried { sessions: 1, ..Carried::default() };
        let traffic = Traffic::new(Timestamp::UNIX_EPOCH, [(&of(&mine), carried), (&of(&theirs), Carried::default())]);
        let json = serde_json::to_string(&traffic).unwrap();
        assert!(json.contains("/a\":[1,0,0,0,0]"), "{json}");
        let read: Traffic = serde_json::from_str(&json).unwrap();
        assert_eq!(read.of_hub(&mine).collect::<Vec<_>>(), [("a".parse().unwrap(), carried)]);
    }

    #[test]
    fn proxies_add_up_to_a_region() {
        let hub = HubId::new("hub");
        let proxy = |seconds: i64, sent: u64| {
            let carried = Carried { sessions: 2, failed: 1, open: 1, to_cluster: 700, from_cluster: sent };
            let since = Timestamp::from_second(seconds).unwrap();
            Traffic::new(since, [(&Of { cluster: "a".into(), hub: hub.short() }, carried)])
        };
        let region = RegionTraffic::of("east".parse().unwrap(), &hub, &[proxy(60, 3 << 20), proxy(30, 1 << 19)]);
        let dead = RegionTraffic::unread("west".parse().unwrap(), "it is dead");
        let want = "REGION  CLUSTER  SESSIONS  FAILED  OPEN  TO CLUSTER  FROM CLUSTER\n\
                    east    a               4       2     2     1.4 KiB       3.5 MiB\n\
                    east: since 1970-01-01T00:00:30Z, by all of its proxies since 1970-01-01T00:01:00Z\nwest: not asked: it is dead";
        assert_eq!(table(&[region, dead]), want);
        let alike = RegionTraffic::of("east".parse().unwrap(), &hub, &[proxy(60, 0), proxy(60, 0)]);
        assert!(table(&[alike]).ends_with("east: since 1970-01-01T00:01:00Z"));
    }

    #[test]
    fn bytes_for_people() {
        for (number, want) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (u64::MAX, "16384.0 PiB")] {
            assert_eq!(bytes(number), want);
        }
    }
}
