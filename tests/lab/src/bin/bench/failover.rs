//! What a region loses when a proxy or a node of it ends or is replaced: requests that fail, and for how long.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xregion_lab::load::{Load, Outcome, ask_session};
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, GATEWAY, NAMESPACE};
use xregion_lab::topology::Bridge;
use xregion_lab::{Lab, build, wait};

const REGION: &str = "proxy-east";
const SERVICE: &str = "cross-region-nginx-proxy-svc";
/// For how long requests are counted after the event: what a dead connection costs shows within a minute.
const AFTERWARDS: Duration = Duration::from_secs(30);
/// Requests that were sent this shortly before an event may be under way when it happens.
const UNDER_WAY: Duration = Duration::from_secs(1);
const READY: Duration = Duration::from_secs(120);

/// One event and what it cost.
pub struct Cost {
    /// The event.
    pub event: &'static str,
    /// Seconds it may cost at most.
    pub bound: f64,
    /// Seconds from the event until requests never failed again; none failed: 0.
    pub seconds: f64,
    /// Requests that failed, of those sent after it and those under way.
    pub failed: usize,
    /// Those requests.
    pub requests: usize,
    /// Seconds that the slowest answered request took.
    pub slowest: f64,
    /// Seconds until a session was answered that was asked for [`AFTERWARDS`]: the gateway makes a connection for it. Not answered: none.
    pub session: Option<f64>,
}

impl Cost {
    /// Whether it is within its bound.
    pub fn met(&self) -> bool {
        if self.bound == 0.0 { self.failed == 0 } else { self.seconds <= self.bound }
    }
}

/// The node that an event happens to. Before it, the gateway's connections to the cluster are led there: an event elsewhere would prove
/// nothing.
enum At {
    /// The first of the region, and of the hosts file where that names nodes. It carries the region's API server. Connections enter by it,
    /// whatever node's proxy they go on to.
    First,
    /// The second. Its proxy has the connections.
    Second,
}

/// An event: where and what happens, what it may cost, and what puts the region back.
struct Event {
    name: &'static str,
    at: At,
    bound: f64,
    happens: fn(&Lab, &str) -> Result<()>,
    mended: fn(&Lab, &str) -> Result<()>,
}

const PROXIES: &[&str] = &["-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy"];
const DEPLOYMENT: &[&str] = &["deployment", "xregion-proxy", "-n", NAMESPACE];

/// What an upgrade leads to: a newer nginx, and xregion under another tag.
const NEWER_NGINX: &str = "lab/nginx:1.28.3";
const NEWER: &str = "xregion/xregion:newer";

/// How many of the events every way goes through.
const COMPARED: usize = 4;
const EVENTS: &[Event] = &[
    Event {
        name: "proxy_killed",
        at: At::Second,
        bound: 1.0,
        happens: |lab, node| {
            let on_node = format!("--field-selector=spec.nodeName={node}");
            let name = "jsonpath={.items[0].metadata.name}";
            lab.kill_proxy(&lab.kubectl(REGION, &[&["get", "pods", "-o", name, &on_node], PROXIES].concat())?)
        },
        mended: |_, _| Ok(()),
    },
    Event { name: "node_black_holed", at: At::Second, bound: 10.0, happens: Lab::blackhole, mended: Lab::unblackhole },
    Event { name: "node_killed", at: At::Second, bound: 10.0, happens: Lab::kill_node, mended: Lab::start_node },
    Event {
        name: "first_node_cut_off",
        at: At::First,
        bound: 10.0,
        happens: |lab, node| lab.blackhole_link(node, Bridge::Peer),
        mended: |lab, node| {
            lab.unblackhole_link(node, Bridge::Peer)?;
            // What comes next is placed there.
            answers(lab, REGION)
        },
    },
    Event {
        name: "proxy_pod_deleted_by_force",
        at: At::Second,
        bound: 1.0,
        happens: |lab, node| {
            let on_node = format!("--field-selector=spec.nodeName={node}");
            kubectl(lab, &[&["delete", "pods", "--grace-period=0", "--force", &on_node], PROXIES].concat())
        },
        mended: |_, _| Ok(()),
    },
    Event {
        name: "rolling_update",
        at: At::Second,
        bound: 0.0,
        happens: |lab, _| {
            kubectl(lab, &[&["rollout", "restart"], DEPLOYMENT].concat())?;
            kubectl(lab, &[&["rollout", "status", "--timeout=120s"], DEPLOYMENT].concat())
        },
        mended: |_, _| Ok(()),
    },
    Event {
        name: "images_upgraded",
        at: At::Second,
        bound: 0.0,
        happens: |lab, _| {
            let image = "jsonpath={.spec.template.spec.initContainers[0].image}";
            let image = lab.kubectl(REGION, &[&["get", "-o", image], DEPLOYMENT].concat())?;
            lab.tag_image(REGION, &format!("docker.io/{image}"), &format!("docker.io/{NEWER}"))?;
            place(lab, &json!({"image": NEWER, "nginxImage": NEWER_NGINX}))
        },
        mended: |lab, _| place(lab, &json!({})),
    },
    Event {
        name: "node_drained",
        at: At::Second,
        bound: 0.0,
        happens: |lab, node| kubectl(lab, &["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]),
        mended: |lab, node| kubectl(lab, &["uncordon", node]),
    },
];

/// Places the region with these properties beside those that it needs, and waits until every proxy is as they say.
fn place(lab: &Lab, more: &Value) -> Result<()> {
    lab.vela_up(&site::region_with(REGION, more))?;
    lab.await_running("region-proxy-east")?;
    kubectl(lab, &[&["rollout", "status", "--timeout=120s"], DEPLOYMENT].concat())
}

fn kubectl(lab: &Lab, args: &[&str]) -> Result<()> {
    lab.kubectl(REGION, args).map(drop)
}

/// Waits until a joined cluster answers through the hub.
fn answers(lab: &Lab, cluster: &str) -> Result<()> {
    let version = format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy/version");
    wait::until(&format!("{cluster} answering through the gateway"), READY, || {
        lab.kubectl("hub", &["get", "--raw", &version, "--request-timeout=10s"]).map(drop)
    })
}

/// A way into the region, and what is let happen to it.
struct Way {
    name: &'static str,
    /// The addon's parameter of that name.
    host_aliases: &'static str,
    /// The region's.
    external_traffic_policy: &'static str,
    events: &'static [Event],
}

/// xregion's, the same with Kubernetes' default policy, and the article's: the nodes themselves in the gateway's hosts file.
const WAYS: [Way; 3] = [
    Way { name: "services", host_aliases: "services", external_traffic_policy: "Local", events: EVENTS },
    Way {
        name: "services_cluster",
        host_aliases: "services",
        external_traffic_policy: "Cluster",
        events: EVENTS.split_at(COMPARED).0,
    },
    Way { name: "nodes", host_aliases: "nodes", external_traffic_policy: "Cluster", events: EVENTS.split_at(COMPARED).0 },
];

/// The region's nodes.
#[derive(Clone, Copy)]
struct Nodes<'a> {
    first: &'a str,
    second: &'a str,
}

/// What was measured: of each way, what every event cost.
pub struct Measured(Vec<(&'static str, Vec<Cost>)>);

/// Lets every event happen to every way, under requests to a cluster of the region.
pub fn measure(lab: &Lab, progress: &Progress, cluster: &str) -> Result<Measured> {
    let region = lab.cluster(REGION)?;
    let second = region.nodes.iter().find(|node| node.place != region.home).context("the region has one node only")?;
    let nodes = Nodes { first: &region.home.name, second: &second.place.name };
    lab.load_image(&build::ensure_newer_nginx(progress)?.archive, &[REGION])?;
    let of = |way: &Way| -> Result<_> {
        progress.step(&format!("failover: {}", way.name));
        let host_aliases = format!("hostAliases={}", way.host_aliases);
        lab.vela(&["addon", "upgrade", "xregion", "-y", "controller.enabled=true", &host_aliases])?;
        place(lab, &json!({"externalTrafficPolicy": way.external_traffic_policy}))?;
        settled(lab, way)?;
        let costs = way.events.iter().map(|event| one(lab, progress, cluster, event, nodes)).collect::<Result<_>>()?;
        Ok((way.name, costs))
    };
    WAYS.iter().map(of).collect::<Result<_>>().map(Measured)
}

/// Waits until the controller has led the names, and the region's Service, as is asked.
fn settled(lab: &Lab, way: &Way) -> Result<()> {
    wait::until("the way into the region as asked", READY, || {
        let policy = ["get", "service", SERVICE, "-n", NAMESPACE, "-o", "jsonpath={.spec.externalTrafficPolicy}"];
        let policy = lab.kubectl(REGION, &policy)?;
        ensure!(policy == way.external_traffic_policy, "the Service's policy is {policy}");
        let led: BTreeSet<String> = lab.gateway_addresses()?.into_iter().collect();
        let entries: BTreeSet<String> = lab.entry_addresses(REGION)?.into_iter().collect();
        let by_services = !led.is_empty() && led.is_subset(&entries);
        ensure!(by_services == (way.host_aliases == "services"), "the names lead to {led:?}");
        Ok(())
    })?;
    lab.kubectl("hub", &["rollout", "status", "deployment", GATEWAY, "-n", NAMESPACE, "--timeout=120s"]).map(drop)
}

impl Measured {
    /// Everything: xregion's own way by events, the others by their names and events.
    pub fn to_json(&self) -> Value {
        let cost = |cost: &Cost| {
            let Cost { seconds, failed, requests, slowest, session, bound, .. } = cost;
            let figures = json!({
                "seconds": seconds, "failed": failed, "requests": requests, "slowest_s": slowest, "session_s": session,
                "goal": {"seconds_at_most": bound, "met": cost.met()},
            });
            (cost.event.to_owned(), figures)
        };
        let way = |(name, costs): &(&str, Vec<Cost>)| {
            let figures: serde_json::Map<String, Value> = costs.iter().map(cost).collect();
            if *name == WAYS[0].name { figures } else { [((*name).to_owned(), figures.into())].into_iter().collect() }
        };
        self.0.iter().flat_map(way).collect()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        let mut row = |cells: [&str; 7]| {
            let [event, seconds, failed, slowest, session, goal, met] = cells;
            let line = format!("{event:<42}{seconds:>8}{failed:>14}{slowest:>10}{session:>13}  {goal:<10}{met}");
            // Writing to a String can't fail.
            let _ = writeln!(table, "{}", line.trim_end());
        };
        row(["failover", "failing", "failed", "slowest", "new session", "goal", ""]);
        for (way, costs) in &self.0 {
            for cost in costs {
                let goal = if cost.bound == 0.0 { "0 failed".to_owned() } else { format!("<= {:.0} s", cost.bound) };
                row([
                    &format!("  {way}, {}", cost.event),
                    &format!("{:.1} s", cost.seconds),
                    &format!("{} of {}", cost.failed, cost.requests),
                    &format!("{:.0} ms", cost.slowest * 1000.0),
                    &cost.session.map_or_else(|| "none".to_owned(), |seconds| format!("{seconds:.2} s")),
                    &goal,
                    if cost.met() { "met" } else { "MISSED" },
                ]);
            }
        }
        table
    }
}

fn one(lab: &Lab, progress: &Progress, cluster: &str, event: &Event, nodes: Nodes<'_>) -> Result<Cost> {
    let node = match event.at {
        At::First => nodes.first,
        At::Second => nodes.second,
    };
    spread(lab, node)?;
    let load = Load::start(lab, &[cluster])?;
    let led = match event.at {
        At::First => enter_by_first(lab, cluster, nodes),
        At::Second => carry_over(lab, cluster, node),
    };
    if let Err(error) = led {
        load.stop()?;
        return Err(error);
    }
    // What it costs is measured against requests that went well just before.
    thread::sleep(Duration::from_secs(3));
    let at = load.elapsed();
    let happened = (event.happens)(lab, node);
    thread::sleep(AFTERWARDS);
    let session = ask_session(lab, cluster);
    let outcome = load.stop();
    let mended = (event.mended)(lab, node);
    happened.with_context(|| event.name)?;
    mended.with_context(|| format!("mending {}", event.name))?;
    let cost = cost(event, at, &outcome?, session.as_ref().ok().copied());
    progress.step(&format!("  {}: {} of {} failed, over {:.1} s", cost.event, cost.failed, cost.requests, cost.seconds));
    if let Err(error) = session {
        progress.step(&format!("    no session: {error:#}"));
    }
    Ok(cost)
}

/// Sees to it that the gateway's connections to the cluster enter by the first node: the hub hears nothing of the other one until the
/// cluster answers it.
fn enter_by_first(lab: &Lab, cluster: &str, nodes: Nodes<'_>) -> Result<()> {
    lab.blackhole_link(nodes.second, Bridge::Peer)?;
    let entered = answers(lab, cluster);
    lab.unblackhole_link(nodes.second, Bridge::Peer)?;
    entered?;
    spread(lab, nodes.first)
}

/// Sees to it that the gateway's connections to the cluster go over this node: an event elsewhere would prove nothing. Whoever has them is
/// deleted, and they are made anew over the other.
fn carry_over(lab: &Lab, cluster: &str, node: &str) -> Result<()> {
    wait::until(&format!("connections over {node}"), READY, || {
        let path = "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{\"\\n\"}{end}";
        let proxies = lab.kubectl(REGION, &[&["get", "pods", "-o", path], PROXIES].concat())?;
        let (mut here, mut elsewhere) = (0, Vec::new());
        for (place, proxy) in proxies.lines().filter_map(|line| line.split_once(' ')) {
            let open = open_sessions(lab, proxy, cluster)?;
            if place == node {
                here += open;
            } else if open > 0 {
                elsewhere.push(proxy);
            }
        }
        if elsewhere.is_empty() && here > 0 {
            return Ok(());
        }
        // Not killed: a container that was killed again and again is made to wait for minutes.
        let delete = |proxy: &&str| kubectl(lab, &["delete", "pod", proxy, "-n", NAMESPACE, "--force", "--grace-period=0"]);
        elsewhere.iter().try_for_each(delete)?;
        kubectl(lab, &[&["rollout", "status", "--timeout=60s"], DEPLOYMENT].concat())?;
        bail!("{here} are, and {} proxies elsewhere have some", elsewhere.len())
    })?;
    spread(lab, node)
}

/// How many sessions with a cluster are open in a proxy.
fn open_sessions(lab: &Lab, proxy: &str, cluster: &str) -> Result<u32> {
    let metrics = format!("/api/v1/namespaces/{NAMESPACE}/pods/{proxy}:7080/proxy/metrics");
    let metrics = lab.kubectl(REGION, &["get", "--raw", &metrics])?;
    let line = metrics.lines().find(|line| line.starts_with("xregion_open_sessions{") && line.contains(&format!("\"{cluster}\"")));
    Ok(line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0))
}

fn cost(event: &Event, at: Duration, outcome: &Outcome, session: Option<Duration>) -> Cost {
    // Earlier ones were there while the connections were led to where the event was to happen.
    let since = at.saturating_sub(UNDER_WAY);
    let failures: Vec<Duration> = outcome.failures.iter().map(|failure| failure.at).filter(|sent| *sent >= since).collect();
    let answers: Vec<Duration> = outcome.answers.iter().filter(|(sent, _)| *sent >= since).map(|(_, took)| *took).collect();
    Cost {
        event: event.name,
        bound: event.bound,
        seconds: failures.iter().max().map_or(0.0, |last| last.saturating_sub(at).as_secs_f64()),
        failed: failures.len(),
        requests: failures.len() + answers.len(),
        slowest: answers.iter().max().map_or(0.0, Duration::as_secs_f64),
        session: session.map(|took| took.as_secs_f64()),
    }
}

/// Waits until there is a ready proxy on every node, and the hub leads to both.
fn spread(lab: &Lab, node: &str) -> Result<()> {
    let on = || {
        let path = "jsonpath={range .items[?(@.status.containerStatuses[0].ready==true)]}{.spec.nodeName} {end}";
        lab.kubectl(REGION, &[&["get", "pods", "-o", path], PROXIES].concat())
    };
    let is_there = on()?.split_whitespace().any(|name| name == node);
    if !is_there {
        // Kubernetes does not move pods by itself.
        kubectl(lab, &[&["rollout", "restart"], DEPLOYMENT].concat())?;
    }
    kubectl(lab, &[&["rollout", "status", "--timeout=120s"], DEPLOYMENT].concat())?;
    wait::until("a proxy on every node, and the hub's Services leading to both", READY, || {
        let nodes: BTreeSet<String> = on()?.split_whitespace().map(str::to_owned).collect();
        ensure!(nodes.len() == 2, "proxies on {nodes:?}");
        // Where names lead to the nodes themselves, Services that are there lead nobody, and nobody looks after them.
        let named: BTreeSet<String> = lab.gateway_addresses()?.into_iter().collect();
        let entries: BTreeSet<String> = lab.entry_addresses(REGION)?.into_iter().collect();
        let led: BTreeSet<String> = lab.entry_nodes(REGION)?.into_iter().collect();
        ensure!(named.is_disjoint(&entries) || led.len() == 2, "the hub leads to {led:?}");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use xregion_lab::load::{Failure, Way as HubWay};

    use super::*;

    #[test]
    fn what_was_sent_before_an_event_counts_only_if_it_was_under_way() {
        let ms = Duration::from_millis;
        let failure =
            |at| Failure { at: ms(at), way: HubWay::Direct, kept: true, cluster: "c".to_owned(), text: "reset".to_owned() };
        let outcome = Outcome {
            failures: [500, 4950, 7000].map(failure).to_vec(),
            answers: vec![(ms(600), ms(9000)), (ms(4900), ms(20)), (ms(8000), ms(30))],
            ..Outcome::default()
        };
        let Cost { seconds, failed, requests, slowest, .. } = cost(&EVENTS[0], ms(5000), &outcome, None);
        assert_eq!((seconds, failed, requests, slowest), (2.0, 2, 4, 0.03));
    }

    #[test]
    fn every_way_s_events_are_judged() {
        let cost =
            |seconds| Cost { event: "node_killed", bound: 10.0, seconds, failed: 100, requests: 600, slowest: 0.1, session: None };
        let table = Measured(vec![("services", vec![cost(5.0)]), ("nodes", vec![cost(13.0)])]).to_table();
        let ends: Vec<_> = table.lines().map(|line| line.split_whitespace().last().unwrap_or_default()).collect();
        assert_eq!(ends, ["goal", "met", "MISSED"], "{table}");
    }

    #[test]
    fn the_report_has_xregion_s_own_way_by_event_and_the_others_beside_it() {
        let cost = |event: &Event| Cost {
            event: event.name,
            bound: event.bound,
            seconds: 0.0,
            failed: 0,
            requests: 9,
            slowest: 0.1,
            session: Some(0.2),
        };
        let json = Measured(WAYS.iter().map(|way| (way.name, way.events.iter().map(cost).collect())).collect()).to_json();
        for Event { name, .. } in EVENTS {
            assert!(json[name]["seconds"].is_number() && json[name]["failed"].is_number(), "{name}: {json}");
        }
        for way in ["services_cluster", "nodes"] {
            for event in ["node_killed", "first_node_cut_off"] {
                assert!(json[way][event]["seconds"].is_number() && json[way][event]["session_s"].is_number(), "{way}: {json}");
            }
        }
    }
}
