//! Many clusters at once: joined by one step with a list, let go, and joined by as many steps in parallel.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use xregion_lab::Lab;
use xregion_lab::load::{Load, Outcome};
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, NAMESPACE};

use crate::joins::{BYSTANDER, await_usable};

/// How many clusters are joined at once.
pub const CLUSTERS: usize = 20;
/// How many leave one after another, timed.
const LEAVES: usize = 5;
const REGION: &str = "proxy-east";
/// What a proxy says when it has reloaded.
const RELOADED: &str = " reloaded";

/// A burst of joins.
pub struct Burst {
    /// Seconds from `vela up` until the last cluster was usable through the gateway.
    pub seconds: f64,
    /// Rollouts of the gateway.
    pub rollouts: u32,
    /// Reloads of nginx, in the proxy with most of them.
    pub reloads: usize,
    /// Requests to another cluster meanwhile.
    pub load: Outcome,
}

/// What was measured.
pub struct Measured {
    /// One step with a list.
    pub step: Burst,
    /// As many steps in parallel.
    pub parallel: Burst,
    /// Seconds of single leaves, from `vela up` until the Application has ended.
    pub leaves: Vec<f64>,
    /// Requests to another cluster during those.
    pub leaves_load: Outcome,
}

/// Measures, with clusters that are not joined.
pub fn measure(lab: &Lab, progress: &Progress, clusters: &[String]) -> Result<Measured> {
    for cluster in clusters {
        lab.put_kubeconfig(&secret(cluster), &lab.user_kubeconfig(cluster)?)?;
    }
    let kubeconfig = |cluster: &String| json!({"cluster": cluster, "kubeconfig": {"secret": secret(cluster)}});
    let list: Vec<Value> = clusters.iter().map(kubeconfig).collect();

    progress.step(&format!("  {CLUSTERS} clusters in one step"));
    let step = burst(lab, clusters, &site::membership("batch", &json!({"region": REGION, "clusters": list})))?;
    progress.step(&format!("  usable after {:.1} s, {}", step.seconds, step.load));

    progress.step(&format!("  {LEAVES} leaves, one after another"));
    let load = Load::start(lab, &[BYSTANDER])?;
    let (timed, rest) = clusters.split_at(LEAVES);
    let leaves = timed.iter().map(|cluster| leave(lab, &[cluster])).collect::<Result<Vec<_>>>()?;
    let leaves_load = load.stop()?;
    progress.step(&format!("  {leaves:.1?} s, {leaves_load}"));
    progress.step("  the others leave in parallel");
    leave(lab, &rest.iter().collect::<Vec<_>>())?;
    lab.vela_delete("batch")?;

    progress.step(&format!("  {CLUSTERS} clusters in as many parallel steps"));
    let joins = list.into_iter().map(|mut properties| {
        properties["region"] = json!(REGION);
        ("xregion-join", properties)
    });
    let parallel = burst(lab, clusters, &in_parallel("batch", joins))?;
    progress.step(&format!("  usable after {:.1} s, {}", parallel.seconds, parallel.load));
    Ok(Measured { step, parallel, leaves, leaves_load })
}

fn secret(cluster: &str) -> String {
    format!("{cluster}-kubeconfig")
}

/// An Application whose steps run at once.
fn in_parallel(name: &str, steps: impl Iterator<Item = (&'static str, Value)>) -> Value {
    let steps: Vec<Value> = steps
        .enumerate()
        .map(|(number, (kind, properties))| json!({"name": format!("s{number}"), "type": kind, "properties": properties}))
        .collect();
    let mut application = site::membership(name, &json!({}));
    application["spec"]["workflow"]["steps"] = json!([{"name": "all", "type": "step-group", "subSteps": steps}]);
    application
}

fn burst(lab: &Lab, clusters: &[String], application: &Value) -> Result<Burst> {
    let load = Load::start(lab, &[BYSTANDER])?;
    let (before, since) = (lab.gateway_revision()?, Timestamp::now());
    let started = Instant::now();
    lab.vela_up(application)?;
    let mut seconds: f64 = 0.0;
    let usable = clusters.iter().try_for_each(|cluster| {
        seconds = seconds.max(await_usable(lab, cluster, started)?);
        anyhow::Ok(())
    });
    // A join that failed says why.
    lab.await_running("batch")?;
    usable?;
    Ok(Burst { seconds, rollouts: lab.gateway_revision()? - before, reloads: reloads(lab, since)?, load: load.stop()? })
}

fn leave(lab: &Lab, clusters: &[&String]) -> Result<f64> {
    let application = in_parallel("leaving", clusters.iter().map(|cluster| ("xregion-leave", json!({"cluster": cluster}))));
    let started = Instant::now();
    lab.vela_up(&application)?;
    lab.await_running("leaving")?;
    let seconds = started.elapsed().as_secs_f64();
    lab.vela_delete("leaving")?;
    for cluster in clusters {
        let secret = lab.kubectl("hub", &["get", "secret", cluster, "-n", NAMESPACE, "--ignore-not-found", "-o", "name"])?;
        ensure!(secret.is_empty(), "{cluster} is still joined");
    }
    Ok(seconds)
}

/// How often each proxy tells of a reload in its log; the most of them.
pub fn reloads(lab: &Lab, since: Timestamp) -> Result<usize> {
    let told = logs(lab, since)?;
    told.iter().map(|log| log.lines().filter(|line| line.contains(RELOADED)).count()).max().context("no proxy")
}

/// The milliseconds that reloads took, as the proxies tell them.
pub fn reload_times(lab: &Lab, since: Timestamp) -> Result<Vec<f64>> {
    let told = logs(lab, since)?.join("\n");
    let time = |line: &str| {
        let (_, time) = line.rsplit_once(" ms=").with_context(|| format!("a reload without its time: {line}"))?;
        Ok(time.split_whitespace().next().unwrap_or_default().parse()?)
    };
    told.lines().filter(|line| line.contains(RELOADED)).map(time).collect()
}

/// What each proxy says.
fn logs(lab: &Lab, since: Timestamp) -> Result<Vec<String>> {
    let pods = lab.kubectl(REGION, &["get", "pods", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy", "-o", "name"])?;
    let since = format!("--since-time={since:.0}");
    pods.lines().map(|pod| lab.kubectl(REGION, &["logs", "-n", NAMESPACE, pod, "-c", "proxy", &since])).collect()
}
