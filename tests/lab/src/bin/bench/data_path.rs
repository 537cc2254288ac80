//! What the way costs that every request goes: the same requests to one API server from inside its region, through xregion's route, and
//! through what could stand in its place.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::time::timeout;
use xregion_lab::Lab;
use xregion_lab::build::Compared;
use xregion_lab::compared::Ways;
use xregion_lab::progress::Progress;
use xregion_lab::topology::Bridge;

use crate::client::{Connection, Door, Server};
use crate::joins;
use crate::report::{add_row, median};

/// The node by which HAProxy and the tunnel enter, and from which the direct requests come. A route's node port is asked there, too.
const NODE: &str = "proxy-east-1";
const NODES: [&str; 2] = [NODE, "proxy-east-2"];
const HUB: &str = "hub";

const ROUNDS: usize = 30;
/// Requests on the connection of a round, and those before that are not counted.
const REQUESTS: usize = 200;
const UNCOUNTED: usize = 20;
/// Fresh connections in a round.
const FRESH: usize = 5;
const LISTS: usize = 15;
/// What the API server's cable carries where it bounds a LIST.
const LINK_MEGABITS: u32 = 1000;
/// Bytes of a LIST's objects.
const LIST_BYTES: usize = 100_000_000;
const LIST_PATIENCE: Duration = Duration::from_secs(60);
const IDLE: usize = 1000;
/// Connections that are opened at a time.
const AT_ONCE: usize = 20;
/// Open files beside the idle connections.
const OTHER_FILES: u64 = 500;
const LABEL: &str = "xregion-bench";
/// Objects that are deleted by one request.
const DELETED_AT_ONCE: u32 = 500;

const ADDED_MS: f64 = 0.2;
const BANDWIDTH: f64 = 0.95;
const TUNNEL_BANDWIDTH: f64 = 1.5;
const TUNNEL_TIMES: f64 = 0.8;

/// A way to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From inside the region.
    Direct,
    /// xregion's.
    Route,
    /// HAProxy on a proxy node.
    Haproxy,
    /// Kubernetes' own tunnel, which cluster-gateway can go through.
    Tunnel,
}

impl Way {
    const ALL: [Self; 4] = [Self::Direct, Self::Route, Self::Haproxy, Self::Tunnel];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Route => "route",
            Self::Haproxy => "haproxy",
            Self::Tunnel => "tunnel",
        }
    }
}

/// A LIST of 100 MB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// As clusters have them: 10,000 objects of the size of a pod, with as many keys.
    Many,
    /// As little work for an API server as can be: 100 objects of one long text each.
    Bulk,
    /// The same, from an API server whose cable carries [`LINK_MEGABITS`]: it is that which bounds it, and not the machine's cores.
    Link,
}

impl List {
    const ALL: [Self; 3] = [Self::Many, Self::Bulk, Self::Link];
    /// Those that differ in their objects.
    const MADE: [Self; 2] = [Self::Many, Self::Bulk];

    /// As the table names it.
    fn name(self) -> String {
        let objects = format!("LIST of {}", self.objects());
        if self == Self::Link { format!("{objects} at 1 Gbit/s") } else { objects }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Many => "many",
            Self::Bulk | Self::Link => "bulk",
        }
    }

    const fn objects(self) -> usize {
        match self {
            Self::Many => 10_000,
            Self::Bulk | Self::Link => 100,
        }
    }

    const fn keys(self) -> usize {
        match self {
            Self::Many => 50,
            Self::Bulk | Self::Link => 1,
        }
    }

    /// An object of it.
    fn object(self, number: usize) -> ConfigMap {
        let bytes = LIST_BYTES / self.objects() / self.keys();
        let value = |key: usize| format!("{number} {key} ").repeat(bytes).chars().take(bytes).collect();
        let mut map = ConfigMap::default();
        map.metadata.name = Some(format!("{}-{number}", self.label()));
        map.metadata.labels = Some([(LABEL.to_owned(), self.label().to_owned())].into());
        map.data = Some((0..self.keys()).map(|key| (format!("key-{key}"), value(key))).collect());
        map
    }
}

/// The figures of one way, round by round: round `n` of each came one after another.
#[derive(Clone, Debug, Default)]
struct Figures {
    /// Milliseconds of a GET on a connection that is open.
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Milliseconds of a connection and the first GET on it.
    fresh: Vec<f64>,
    /// MB/s of a LIST, in the order of [`List::ALL`].
    lists: [Vec<f64>; 3],
    /// MiB resident before the idle connections, and with them; not of the direct way.
    idle: Option<(f64, f64)>,
}

/// What was measured, in the order of [`Way::ALL`].
#[derive(Default)]
pub struct Measured([Figures; 4]);

/// A way that can be gone.
struct Road {
    place: &'static str,
    door: Door,
}

/// How region east is placed. Elsewhere a proxy has a node of its own, and the API server and its client have theirs; here all share the
/// cores, and with the definition's default, made for a proxy that shares its node with pods that idle, it would be the last to get any.
pub fn region() -> Value {
    json!({"resources": {"requests": {"cpu": "1"}}})
}

/// Measures, with a cluster of region east that is not joined.
pub fn measure(lab: &Lab, compared: &Compared, progress: &Progress, cluster: &str) -> Result<Measured> {
    allow_files(IDLE as u64 + OTHER_FILES)?;
    joins::by_application(lab, cluster)?;
    let business = lab.cluster(cluster)?;
    let route = Door::of_route(lab, NODE, cluster)?;
    let api = SocketAddr::new(business.address.into(), business.port);
    let ways = Ways::start(lab, compared, NODE, api)?;
    let roads = Way::ALL.map(|way| match way {
        Way::Direct => Road { place: NODE, door: Door::Tcp(api) },
        Way::Route => Road { place: HUB, door: route.clone() },
        Way::Haproxy => Road { place: HUB, door: Door::Tcp(ways.haproxy()) },
        Way::Tunnel => Road { place: HUB, door: Door::Connect(ways.tunnel(), api) },
    });
    let (kubeconfig, place) = (lab.user_kubeconfig(cluster)?, business.home.name.clone());
    progress.step("  what is listed is made");
    let filled = lab.with_client(cluster, fill);
    let measured = filled.and_then(|()| {
        lab.in_namespace(HUB, || async {
            let compared = Comparison { lab, ways: &ways, server: Server::of(&kubeconfig).await?, roads, place };
            compared.run(progress).await
        })
    });
    lab.with_client(cluster, empty)?;
    measured
}

/// The API server, and the ways to it.
struct Comparison<'a> {
    lab: &'a Lab,
    ways: &'a Ways<'a>,
    server: Server,
    roads: [Road; 4],
    /// Where the API server is.
    place: String,
}

impl Comparison<'_> {
    async fn run(&self, progress: &Progress) -> Result<Measured> {
        let mut measured = Measured::default();
        progress.step(&format!("  {ROUNDS} rounds of {REQUESTS} small requests each way"));
        for round in 0..ROUNDS {
            for way in in_turn(round) {
                self.requests(way, &mut measured.0[way as usize]).await.with_context(|| way.name())?;
            }
        }
        for list in List::ALL {
            progress.step(&format!("  {LISTS} times a {} each way", list.name()));
            if list == List::Link {
                // It goes with the cluster, which nobody else uses.
                self.lab.set_rate(&self.place, Bridge::East, LINK_MEGABITS)?;
            }
            // The first one is for nobody.
            self.list(Way::Direct, list).await?;
            for round in 0..LISTS {
                for way in in_turn(round) {
                    let rate = self.list(way, list).await.with_context(|| way.name())?;
                    measured.0[way as usize].lists[list as usize].push(rate);
                }
            }
        }
        progress.step(&format!("  {IDLE} idle connections each way"));
        for way in Way::ALL {
            measured.0[way as usize].idle = self.idle(way).await.with_context(|| way.name())?;
        }
        Ok(measured)
    }

    /// Goes to where a way starts.
    fn enter(&self, way: Way) -> Result<&Door> {
        let Road { place, door } = &self.roads[way as usize];
        self.lab.enter(place)?;
        Ok(door)
    }

    async fn requests(&self, way: Way, figures: &mut Figures) -> Result<()> {
        // A new one each round: either of nginx' workers takes it.
        let door = self.enter(way)?;
        let mut connection = self.server.connect(door).await?;
        let mut samples = Vec::with_capacity(REQUESTS);
        for number in 0..UNCOUNTED + REQUESTS {
            let sent = Instant::now();
            connection.version().await?;
            if number >= UNCOUNTED {
                samples.push(milliseconds(sent));
            }
        }
        figures.p50.push(median(&samples));
        figures.p99.push(percentile(&samples, 99));
        let mut fresh = Vec::with_capacity(FRESH);
        for _ in 0..FRESH {
            let begun = Instant::now();
            self.server.connect(door).await?.version().await?;
            fresh.push(milliseconds(begun));
        }
        figures.fresh.push(median(&fresh));
        Ok(())
    }

    /// MB/s of one LIST, from the request to its last byte.
    async fn list(&self, way: Way, list: List) -> Result<f64> {
        let mut connection = self.server.connect(self.enter(way)?).await?;
        // From the API server's cache, so that it is not the store that is measured.
        let path = format!("/api/v1/namespaces/default/configmaps?labelSelector={LABEL}%3D{}&resourceVersion=0", list.label());
        let begun = Instant::now();
        let length = timeout(LIST_PATIENCE, connection.read(&path)).await.context("the LIST has not ended in time")??;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(length > LIST_BYTES, "the LIST has {length} bytes");
        Ok(length as f64 / 1e6 / seconds)
    }

    /// MiB before and with idle connections.
    async fn idle(&self, way: Way) -> Result<Option<(f64, f64)>> {
        let Some(before) = self.resident(way)? else { return Ok(None) };
        let door = self.enter(way)?;
        let mut open: Vec<Connection> = Vec::with_capacity(IDLE);
        while open.len() < IDLE {
            let connecting = (0..AT_ONCE).map(|_| async {
                let mut connection = self.server.connect(door).await?;
                connection.version().await?;
                anyhow::Ok(connection)
            });
            open.extend(try_join_all(connecting).await?);
        }
        let after = self.resident(way)?;
        for connection in &mut open {
            connection.version().await.context("an idle connection was closed")?;
        }
        Ok(after.map(|after| (before, after)))
    }

    fn resident(&self, way: Way) -> Result<Option<f64>> {
        let bytes = match way {
            Way::Direct => return Ok(None),
            Way::Route => {
                let workers = NODES.map(|node| self.lab.resident_in_pods(node, |command| command.starts_with("nginx: worker")));
                workers.into_iter().sum::<Result<u64>>()?
            }
            Way::Haproxy => self.ways.haproxy_memory(),
            Way::Tunnel => self.ways.tunnel_memory(),
        };
        Ok(Some(bytes as f64 / 1024.0 / 1024.0))
    }
}

/// The ways in the order of a round: each comes first as often as any other, and the order is turned round every four rounds.
fn in_turn(round: usize) -> [Way; 4] {
    let mut ways = Way::ALL;
    ways.rotate_left(round % Way::ALL.len());
    if round / Way::ALL.len() % 2 == 1 {
        ways.reverse();
    }
    ways
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// The sample that `percent` of a hundred are below.
fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

async fn fill(client: kube::Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let objects = List::MADE.into_iter().flat_map(|list| (0..list.objects()).map(move |number| (list, number)));
    let create = |(list, number): (List, usize)| {
        let maps = maps.clone();
        async move { maps.create(&PostParams::default(), &list.object(number)).await.map(drop) }
    };
    futures::stream::iter(objects).map(create).buffer_unordered(4).try_collect::<()>().await?;
    Ok(())
}

async fn empty(client: kube::Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let some = ListParams::default().labels(LABEL).limit(DELETED_AT_ONCE);
    // One request for all would be cut short by the API server's own bound.
    while !maps.list_metadata(&some.clone().limit(1)).await?.items.is_empty() {
        maps.delete_collection(&DeleteParams::default(), &some).await?;
    }
    Ok(())
}

/// Raises the open files this process may have, within what it may raise by itself.
fn allow_files(needed: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= needed, "{needed} files have to be open at once, and {hard} may be: raise ulimit -Hn");
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?;
    }
    Ok(())
}

impl Measured {
    fn of(&self, way: Way) -> &Figures {
        &self.0[way as usize]
    }

    /// The median over rounds of what `compare` says of the route and another way in the same round.
    fn beside(&self, other: Way, samples: impl Fn(&Figures) -> &Vec<f64>, compare: impl Fn(f64, f64) -> f64) -> f64 {
        let (ours, theirs) = (samples(self.of(Way::Route)), samples(self.of(other)));
        median(&ours.iter().zip(theirs).map(|(&ours, &theirs)| compare(ours, theirs)).collect::<Vec<_>>())
    }

    fn added_ms(&self) -> f64 {
        self.beside(Way::Direct, |figures| &figures.p50, |ours, theirs| ours - theirs)
    }

    fn bandwidth(&self, other: Way, list: List) -> f64 {
        self.beside(other, |figures| &figures.lists[list as usize], |ours, theirs| ours / theirs)
    }

    fn times_of_tunnel(&self) -> f64 {
        self.beside(Way::Tunnel, |figures| &figures.p50, |ours, theirs| ours / theirs)
    }

    fn fresh_of_tunnel(&self) -> f64 {
        self.beside(Way::Tunnel, |figures| &figures.fresh, |ours, theirs| ours / theirs)
    }

    fn added_met(&self) -> bool {
        self.added_ms() <= ADDED_MS
    }

    fn bandwidth_met(&self) -> bool {
        self.bandwidth(Way::Direct, List::Many) >= BANDWIDTH
    }

    fn tunnel_bandwidth_met(&self) -> bool {
        self.bandwidth(Way::Tunnel, List::Many) >= TUNNEL_BANDWIDTH
    }

    /// Of a request on a connection that is open, and of one on a fresh connection.
    fn tunnel_times_met(&self) -> bool {
        self.times_of_tunnel() <= TUNNEL_TIMES && self.fresh_of_tunnel() <= TUNNEL_TIMES
    }

    /// Everything, the figures of each round included.
    pub fn to_json(&self) -> Value {
        let way = |way: Way| {
            let Figures { p50, p99, fresh, lists: [list, bulk, link], idle } = self.of(way);
            let mut figures = json!({
                "p50_ms": median(p50),
                "p99_ms": median(p99),
                "fresh_p50_ms": median(fresh),
                "list_mb_s": median(list),
                "bulk_mb_s": median(bulk),
                "link_mb_s": median(link),
                "rounds": {
                    "p50_ms": p50, "p99_ms": p99, "fresh_p50_ms": fresh, "list_mb_s": list, "bulk_mb_s": bulk, "link_mb_s": link,
                },
            });
            if let Some((before, with)) = idle {
                figures["idle_rss_mb"] = json!(with);
                figures["idle_rss_before_mb"] = json!(before);
            }
            if way == Way::Route {
                figures["added_p50_ms"] = json!(self.added_ms());
                figures["bandwidth_ratio"] = json!(self.bandwidth(Way::Direct, List::Many));
                figures["bulk_bandwidth_ratio"] = json!(self.bandwidth(Way::Direct, List::Bulk));
                figures["link_bandwidth_ratio"] = json!(self.bandwidth(Way::Direct, List::Link));
                figures["tunnel_bandwidth_ratio"] = json!(self.bandwidth(Way::Tunnel, List::Many));
                figures["tunnel_p50_ratio"] = json!(self.times_of_tunnel());
                figures["tunnel_fresh_ratio"] = json!(self.fresh_of_tunnel());
                figures["goal"] = json!({
                    "added_p50_ms_at_most": ADDED_MS,
                    "bandwidth_ratio_at_least": BANDWIDTH,
                    "tunnel_bandwidth_ratio_at_least": TUNNEL_BANDWIDTH,
                    "tunnel_p50_ratio_at_most": TUNNEL_TIMES,
                    "tunnel_fresh_ratio_at_most": TUNNEL_TIMES,
                    "met": self.added_met() && self.bandwidth_met() && self.tunnel_bandwidth_met() && self.tunnel_times_met(),
                });
            }
            (way.name().to_owned(), figures)
        };
        Value::Object(Way::ALL.into_iter().map(way).collect())
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        let mut row = |what: &str, cells: [String; 4]| {
            // Writing to a String can't fail.
            let _ = writeln!(table, "{what:<34}{:>10}{:>10}{:>10}{:>10}", cells[0], cells[1], cells[2], cells[3]);
        };
        let each = |samples: &dyn Fn(&Figures) -> &Vec<f64>, digits: usize| {
            Way::ALL.map(|way| format!("{:.digits$}", median(samples(self.of(way)))))
        };
        row("data path", Way::ALL.map(|way| way.name().to_owned()));
        row("  request, p50, ms", each(&|figures| &figures.p50, 3));
        row("  request, p99, ms", each(&|figures| &figures.p99, 3));
        row("  fresh connection, p50, ms", each(&|figures| &figures.fresh, 2));
        for list in List::ALL {
            row(&format!("  {}, MB/s", list.name()), each(&|figures| &figures.lists[list as usize], 0));
        }
        let idle = |figures: &Figures| figures.idle.map_or_else(|| "-".to_owned(), |(_, with)| format!("{with:.1}"));
        row(&format!("  memory, {IDLE} idle, MiB"), Way::ALL.map(|way| idle(self.of(way))));
        let mut goal = |what: &str, value: String, goal: String, met: Option<bool>| {
            add_row(&mut table, what, &value, "", &goal, met);
        };
        let (added, direct) = (self.added_ms(), self.bandwidth(Way::Direct, List::Many));
        goal("  route adds, p50", format!("{added:.3} ms"), format!("<= {ADDED_MS} ms"), Some(self.added_met()));
        goal(
            "  bandwidth of direct",
            format!("{:.0} %", direct * 100.0),
            format!(">= {:.0} %", BANDWIDTH * 100.0),
            Some(self.bandwidth_met()),
        );
        for (what, list) in [("    of few large objects", List::Bulk), ("    of those at 1 Gbit/s", List::Link)] {
            goal(what, format!("{:.0} %", self.bandwidth(Way::Direct, list) * 100.0), String::new(), None);
        }
        goal(
            "  bandwidth of the tunnel",
            format!("{:.2}x", self.bandwidth(Way::Tunnel, List::Many)),
            format!(">= {TUNNEL_BANDWIDTH}x"),
            Some(self.tunnel_bandwidth_met()),
        );
        goal(
            "  times of the tunnel: open, fresh",
            format!("{:.2}x, {:.2}x", self.times_of_tunnel(), self.fresh_of_tunnel()),
            format!("<= {TUNNEL_TIMES}x each"),
            Some(self.tunnel_times_met()),
        );
        table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn figures(p50: f64, list: f64) -> Figures {
        let lists = [vec![list], vec![list], vec![list]];
        Figures { p50: vec![p50, p50 + 1.0], p99: vec![p50], fresh: vec![p50], lists, idle: Some((1.0, 2.0)) }
    }

    fn measured() -> Measured {
        Measured([figures(0.7, 100.0), figures(0.8, 97.0), figures(0.8, 97.0), figures(1.2, 60.0)])
    }

    #[test]
    fn each_way_comes_first_as_often_as_any_other() {
        let firsts: HashSet<usize> = (0..4).map(|round| in_turn(round)[0] as usize).collect();
        assert_eq!(firsts.len(), 4);
        assert_eq!((in_turn(0)[0], in_turn(5)[0]), (Way::Direct, Way::Direct));
        assert_ne!(in_turn(0)[1], in_turn(5)[1], "and before another one than the last time");
    }

    #[test]
    fn percentiles() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 99).to_string(), "199");
        assert!(percentile(&[], 99).is_nan());
    }

    #[test]
    fn the_report_has_the_keys_that_are_promised() {
        let json = measured().to_json();
        for way in ["direct", "route", "haproxy", "tunnel"] {
            for key in ["p50_ms", "p99_ms", "fresh_p50_ms", "list_mb_s", "bulk_mb_s", "link_mb_s"] {
                assert!(json[way][key].is_number(), "{way} {key}");
            }
        }
        for key in ["idle_rss_mb", "added_p50_ms", "bandwidth_ratio"] {
            assert!(json["route"][key].is_number(), "{key}");
        }
        assert_eq!(json["route"]["goal"]["met"], true);
    }

    #[test]
    fn a_goal_that_is_missed_is_told() {
        let mut measured = measured();
        measured.0[Way::Route as usize] = figures(1.0, 90.0);
        assert!(!measured.added_met() && !measured.bandwidth_met() && !measured.tunnel_times_met());
        assert!(measured.tunnel_bandwidth_met());
        assert_eq!(measured.to_table().matches("MISSED").count(), 3);
    }

    #[test]
    fn fresh_connections_that_take_too_long_miss_the_goal_of_times() {
        let mut measured = measured();
        assert!(measured.tunnel_times_met());
        measured.0[Way::Route as usize].fresh = vec![1.0];
        assert!(!measured.tunnel_times_met(), "0.83 times the tunnel's");
        assert_eq!(measured.to_json()["route"]["goal"]["met"], false);
        assert_eq!(measured.to_table().matches("MISSED").count(), 1);
    }
}
