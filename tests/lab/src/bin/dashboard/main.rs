//! `make dashboard`: what the dashboard shows of five minutes in the lab, as `docs/dashboard.svg`.
//!
//! Everything is what users get: the addon makes the dashboard, the rules and the PodMonitors; a real Prometheus scrapes what those
//! name, and answers the very queries of the dashboard. Only the drawing is not Grafana's.

// Its output is for people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod draw;
mod prometheus;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use xregion_lab::load::Load;
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, Dist, NAMESPACE};
use xregion_lab::{Lab, wait};

use draw::{Dashboard, Kind, Series, Span};
use prometheus::{Prometheus, Query};

/// How long there is traffic, in seconds; and how far the dashboard's points are apart.
const SECONDS: f64 = 300.0;
const STEP: f64 = 2.0;
/// Grafana's `$__rate_interval` is four scrapes, at least.
const RATE_INTERVAL: &str = "10s";

/// The clusters, their regions, and how many connections a second are opened to each beside the hub's own.
const CLUSTERS: [(&str, &str, u32); 3] =
    [("business-a", "proxy-east", 6), ("business-b", "proxy-east", 3), ("business-c", "proxy-west", 2)];
const REGIONS: [&str; 2] = ["proxy-east", "proxy-west"];
const KINDS: [(&str, &str); 2] = [("PodMonitor", "podmonitors"), ("PrometheusRule", "prometheusrules")];

fn main() -> ExitCode {
    match run(&Progress::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dashboard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(progress: &Progress) -> Result<()> {
    prometheus::installed()?;
    let dist = Dist::find()?;
    let lab = Lab::up(progress)?;
    lab.sweep()?;
    let shown = place(&lab, &dist, progress).and_then(|()| show(&lab, progress));
    progress.step("clearing the lab");
    let cleared = clear(&lab);
    let svg = shown?;
    cleared.context("clearing up")?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/dashboard.svg");
    std::fs::write(&file, svg)?;
    progress.done(&format!("drawn: {}", file.canonicalize()?.display()));
    Ok(())
}

/// The addon with all that Prometheus and Grafana are given, both regions, and the clusters.
fn place(lab: &Lab, dist: &Dist, progress: &Progress) -> Result<()> {
    progress.step("enabling the addon, placing the regions, joining the clusters");
    for cluster in ["hub"].iter().chain(&REGIONS) {
        for (kind, plural) in KINDS {
            lab.apply(cluster, &definition(kind, plural))?;
            lab.kubectl(
                cluster,
                &["wait", "crd", &format!("{plural}.monitoring.coreos.com"), "--for=condition=Established", "--timeout=30s"],
            )?;
        }
    }
    lab.publish(dist)?;
    let monitoring = ["dashboard", "rules", "podMonitor"].map(|what| format!("monitoring.{what}=true"));
    lab.enable("xregion", &[&["controller.enabled=true"], &monitoring.each_ref().map(String::as_str)[..]].concat())?;
    for proxy in REGIONS {
        let mut region = site::region(proxy);
        let properties = &mut region["spec"]["components"][0]["properties"];
        (properties["podMonitor"], properties["rules"]) = (json!(true), json!(true));
        lab.vela_up(&region)?;
    }
    let mut clusters = Vec::new();
    for (cluster, region, _) in CLUSTERS {
        let secret = format!("{cluster}-kubeconfig");
        lab.put_kubeconfig(&secret, &lab.user_kubeconfig(cluster)?)?;
        clusters.push(json!({"cluster": cluster, "region": region, "kubeconfig": {"secret": secret}}));
    }
    for proxy in REGIONS {
        lab.await_running(&format!("region-{proxy}"))?;
    }
    lab.vela_up(&site::membership("joining", &json!({"region": REGIONS[0], "clusters": clusters})))?;
    lab.await_running("joining").map(drop)
}

/// The kind of a Prometheus operator, open: it is not what is shown here.
fn definition(kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
        "spec": {
            "group": "monitoring.coreos.com", "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

/// Leaves the lab as the end-to-end tests expect it.
fn clear(lab: &Lab) -> Result<()> {
    let plain = ["dashboard", "rules", "podMonitor"].map(|what| format!("monitoring.{what}=false"));
    lab.enable("xregion", &[&["controller.enabled=false"], &plain.each_ref().map(String::as_str)[..]].concat())?;
    lab.kubectl(
        "hub",
        &["wait", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=controller", "--for=delete", "--timeout=60s"],
    )?;
    lab.sweep()?;
    for cluster in ["hub"].iter().chain(&REGIONS) {
        for (_, plural) in KINDS {
            lab.kubectl(cluster, &["delete", "crd", &format!("{plural}.monitoring.coreos.com"), "--ignore-not-found"])?;
        }
    }
    Ok(())
}

/// Has Prometheus look on while something happens; the picture of that.
fn show(lab: &Lab, progress: &Progress) -> Result<String> {
    progress.step("starting Prometheus on the hub and in the regions");
    let _hub = Prometheus::of_hub(lab)?;
    let _regions = REGIONS.iter().map(|region| Prometheus::of_region(lab, region)).collect::<Result<Vec<_>>>()?;
    let query = Query { lab };
    wait::until("Prometheus on the hub", Duration::from_secs(60), || query.instant("vector(1)", now(), ""))?;
    query.until("count(xregion_ready) == 4")?;
    query.until("xregion_controller_leader == 1")?;

    progress.step("five minutes of traffic");
    happen(lab)?;
    // What was scraped last is on its way.
    let end = now();
    query.until(&format!("count(timestamp(xregion_ready) > {end}) == 4"))?;

    progress.step("asking the dashboard's queries");
    let text =
        lab.kubectl("hub", &["get", "configmap", "xregion-dashboard", "-n", NAMESPACE, "-o", "jsonpath={.data.xregion\\.json}"])?;
    let dashboard: Dashboard = serde_json::from_str(&text)?;
    let span = Span { start: end - SECONDS, end, step: STEP };
    let mut answers = Vec::new();
    for panel in &dashboard.panels {
        let mut series: Vec<Series> = Vec::new();
        for target in &panel.targets {
            let expression = target
                .expr
                .replace("$__rate_interval", RATE_INTERVAL)
                .replace("$__range", &format!("{SECONDS}s"))
                .replace("$region", ".*")
                .replace("$cluster", ".*");
            series.extend(match panel.kind {
                Kind::Timeseries => query.range(&expression, span, &target.legend_format)?,
                Kind::Stat | Kind::BarGauge => query.instant(&expression, end, &target.legend_format)?,
            });
        }
        answers.push(series);
    }
    let alerts = query.instant(
        &format!("count by (alertname, alertstate) (max_over_time(ALERTS[{SECONDS}s]))"),
        end,
        "{{alertname}} {{alertstate}}",
    )?;
    alerts.iter().for_each(|alert| println!("alert: {}", alert.name));

    for sum in ["xregion_carried_bytes_total", "{__name__=~\"xregion_session_bytes_total|xregion_open_bytes\"}"] {
        let bytes = query.instant(&format!("sum({sum})"), end, sum)?;
        bytes.iter().for_each(|one| println!("{} add up to {:?} bytes", one.name, one.points.last().map(|point| point.1)));
    }

    let version = lab.run("hub", &["prometheus", "--version"])?.success()?;
    let version = version.split_whitespace().nth(2).unwrap_or_default().trim_end_matches("+ds").to_owned();
    let note = format!(
        "Drawn by `make dashboard` from the answers of Prometheus {version} to the dashboard's queries, after five minutes of traffic in the lab."
    );
    Ok(draw::draw(&dashboard, &answers, span, &note))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64().floor())
}

/// Five minutes: requests through the gateway, connections of their own, large answers for a minute, an API server that is down for a
/// while, and a route that is lost.
fn happen(lab: &Lab) -> Result<()> {
    let start = Instant::now();
    let load = Load::start(lab, &CLUSTERS.map(|(cluster, ..)| cluster))?;
    let until = |seconds: u64| thread::sleep(Duration::from_secs(seconds).saturating_sub(start.elapsed()));
    let large = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/business-a/proxy/openapi/v2";
    let entries = CLUSTERS.iter().map(|one| entry(lab, one)).collect::<Result<Vec<_>>>()?;
    let happened = thread::scope(|scope| {
        for (address, a_second) in entries {
            scope.spawn(move || lab.in_namespace("hub", || knock(address, a_second, Duration::from_secs_f64(SECONDS))));
        }
        until(60);
        while start.elapsed() < Duration::from_secs(110) {
            lab.kubectl("hub", &["get", "--raw", large])?;
            thread::sleep(Duration::from_secs(2));
        }
        until(150);
        lab.stop_api("business-b")?;
        until(195);
        lab.start_api("business-b")?;
        until(240);
        let route = "xregion.oam.dev/kind=route,xregion.oam.dev/cluster=business-c";
        lab.kubectl("proxy-west", &["delete", "configmaps", "-n", NAMESPACE, "-l", route])?;
        until(SECONDS as u64);
        Ok::<_, anyhow::Error>(())
    });
    // Whatever came of it, no cluster stays down.
    lab.start_api("business-b")?;
    happened?;
    let outcome = load.stop()?;
    println!(
        "requests through the gateway: {}, failed, of those to business-b while it was down: {}",
        outcome.requests, outcome.failed
    );
    Ok(())
}

/// Where the hub enters a region for a cluster.
fn entry(lab: &Lab, (cluster, region, a_second): &(&str, &str, u32)) -> Result<(SocketAddr, u32)> {
    let endpoint =
        lab.kubectl("hub", &["get", "secret", cluster, "-n", NAMESPACE, "-o", "go-template={{.data.endpoint | base64decode}}"])?;
    let port = endpoint.rsplit(':').next().unwrap_or_default().trim_end_matches('/').parse().with_context(|| endpoint.clone())?;
    let node = lab.cluster(region)?.nodes.first().map(|node| node.internal_ip).context("a region without nodes")?;
    Ok((SocketAddr::from((node, port)), *a_second))
}

/// Opens connections, which last from nothing to five seconds. What becomes of each is not asked: the dashboard tells.
async fn knock(address: SocketAddr, a_second: u32, bound: Duration) -> Result<()> {
    let start = Instant::now();
    let mut tick = interval(Duration::from_secs(1) / a_second);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0_u64.. {
        if start.elapsed() >= bound {
            break;
        }
        tick.tick().await;
        tokio::spawn(timeout(Duration::from_secs(10), async move {
            let mut stream = TcpStream::connect(address).await?;
            sleep(Duration::from_millis(number * 370 % 5000)).await;
            stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").await?;
            stream.read_to_end(&mut Vec::new()).await
        }));
    }
    Ok(())
}
