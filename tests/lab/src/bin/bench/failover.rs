//! What a region loses when a proxy or a node of it ends or is replaced: requests that fail, and for how long.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use xregion_lab::load::{Load, Outcome};
use xregion_lab::progress::Progress;
use xregion_lab::site::NAMESPACE;
use xregion_lab::{Lab, wait};

const REGION: &str = "proxy-east";
/// For how long requests are counted after the event: what a dead connection costs shows within a minute.
const AFTERWARDS: Duration = Duration::from_secs(30);
const READY: Duration = Duration::from_secs(120);

/// One event and what it cost.
pub struct Cost {
    /// The event.
    pub event: &'static str,
    /// Seconds it may cost at most.
    pub bound: f64,
    /// Seconds from the event until requests never failed again; none failed: 0.
    pub seconds: f64,
    /// Requests that failed.
    pub failed: usize,
    /// Requests sent.
    pub requests: usize,
}

impl Cost {
    /// Whether it is within its bound.
    pub fn met(&self) -> bool {
        if self.bound == 0.0 { self.failed == 0 } else { self.seconds <= self.bound }
    }
}

/// An event: what happens, what it may cost, and what puts the region back.
struct Event {
    name: &'static str,
    bound: f64,
    happens: fn(&Lab, &str) -> Result<()>,
    mended: fn(&Lab, &str) -> Result<()>,
}

const PROXIES: &[&str] = &["-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy"];
const DEPLOYMENT: &[&str] = &["deployment", "xregion-proxy", "-n", NAMESPACE];

const EVENTS: &[Event] = &[
    Event {
        name: "proxy_killed",
        bound: 1.0,
        happens: |lab, node| {
            let on_node = format!("--field-selector=spec.nodeName={node}");
            let name = "jsonpath={.items[0].metadata.name}";
            lab.kill_proxy(&lab.kubectl(REGION, &[&["get", "pods", "-o", name, &on_node], PROXIES].concat())?)
        },
        mended: |_, _| Ok(()),
    },
    Event {
        name: "proxy_pod_deleted_by_force",
        bound: 1.0,
        happens: |lab, node| {
            let on_node = format!("--field-selector=spec.nodeName={node}");
            kubectl(lab, &[&["delete", "pods", "--grace-period=0", "--force", &on_node], PROXIES].concat())
        },
        mended: |_, _| Ok(()),
    },
    Event { name: "node_black_holed", bound: 10.0, happens: Lab::blackhole, mended: Lab::unblackhole },
    Event { name: "node_killed", bound: 10.0, happens: Lab::kill_node, mended: Lab::start_node },
    Event {
        name: "rolling_update",
        bound: 0.0,
        happens: |lab, _| {
            kubectl(lab, &[&["rollout", "restart"], DEPLOYMENT].concat())?;
            kubectl(lab, &[&["rollout", "status", "--timeout=120s"], DEPLOYMENT].concat())
        },
        mended: |_, _| Ok(()),
    },
    Event {
        name: "node_drained",
        bound: 0.0,
        happens: |lab, node| kubectl(lab, &["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"]),
        mended: |lab, node| kubectl(lab, &["uncordon", node]),
    },
];

fn kubectl(lab: &Lab, args: &[&str]) -> Result<()> {
    lab.kubectl(REGION, args).map(drop)
}

/// Lets every event happen, under requests to a cluster of the region.
pub fn measure(lab: &Lab, progress: &Progress, cluster: &str) -> Result<Vec<Cost>> {
    let region = lab.cluster(REGION)?;
    let node = region.nodes.iter().find(|node| node.place != region.home).context("the region has one node only")?;
    EVENTS.iter().map(|event| one(lab, progress, cluster, event, &node.place.name)).collect()
}

fn one(lab: &Lab, progress: &Progress, cluster: &str, event: &Event, node: &str) -> Result<Cost> {
    spread(lab, node)?;
    let load = Load::start(lab, &[cluster])?;
    // What it costs is measured against requests that went well just before.
    thread::sleep(Duration::from_secs(3));
    let at = load.elapsed();
    let happened = (event.happens)(lab, node);
    thread::sleep(AFTERWARDS);
    let outcome = load.stop();
    let mended = (event.mended)(lab, node);
    happened.with_context(|| event.name)?;
    mended.with_context(|| format!("mending {}", event.name))?;
    let cost = cost(event, at, &outcome?);
    progress.step(&format!("  {}: {} of {} failed, over {:.1} s", cost.event, cost.failed, cost.requests, cost.seconds));
    Ok(cost)
}

fn cost(event: &Event, at: Duration, outcome: &Outcome) -> Cost {
    let last = outcome.failures.iter().map(|failure| failure.at).max();
    let seconds = last.map_or(0.0, |last| last.saturating_sub(at).as_secs_f64());
    Cost { event: event.name, bound: event.bound, seconds, failed: outcome.failed, requests: outcome.requests }
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
        let nodes: std::collections::BTreeSet<String> = on()?.split_whitespace().map(str::to_owned).collect();
        anyhow::ensure!(nodes.len() == 2, "proxies on {nodes:?}");
        let mut led = lab.entry_nodes(REGION)?;
        led.sort_unstable();
        led.dedup();
        anyhow::ensure!(led.is_empty() || led.len() == 2, "the hub leads to {led:?}");
        Ok(())
    })
}
