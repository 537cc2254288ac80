//! Joins of fresh business clusters, timed until KubeVela can use them, while other clusters' requests go on.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Request;
use serde_json::json;
use xregion_lab::load::{Load, Outcome};
use xregion_lab::progress::Progress;
use xregion_lab::site;
use xregion_lab::{BusinessSpec, Lab, Region};

use crate::by_hand::{self, Steps};

/// Joins under load, on either side.
pub const JOINS: usize = 5;
/// The cluster whose requests must not suffer.
pub const BYSTANDER: &str = "proxy-west";
/// Names of business clusters start with it.
pub const PREFIX: &str = "bench-";
/// How long a cluster may take to become usable once `vela up` or the script has returned.
const PATIENCE: Duration = Duration::from_secs(90);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Addresses of business clusters, of those the lab leaves to its users.
const FIRST_ADDRESS: u8 = 200;

/// Fresh business clusters in region east, like a managed cloud's: a host name with capitals, no port.
pub struct Fresh<'a> {
    lab: &'a Lab,
    pub names: Vec<String>,
}

impl<'a> Fresh<'a> {
    /// Starts so many. Their names have never been used before: KubeVela remembers names.
    pub fn start(lab: &'a Lab, kind: &str, count: usize) -> Result<Self> {
        let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() % 0xff_ffff;
        let mut fresh = Self { lab, names: Vec::new() };
        for number in (0u8..).take(count) {
            let name = format!("{PREFIX}{run:06x}-{kind}{number}");
            let host = format!("{name}.eks.example");
            // Before it is there: half a cluster is to be stopped, too.
            fresh.names.push(name.clone());
            lab.start_business(&BusinessSpec {
                name: name.clone(),
                region: Region::East,
                host: FIRST_ADDRESS + number,
                port: 443,
                server: Some(format!("https://{}", host.to_ascii_uppercase())),
                in_both_regions: false,
                names: vec![host],
            })?;
        }
        Ok(fresh)
    }

    /// Stops those, and whatever an interrupted run has left.
    pub fn stop_all(lab: &Lab) -> Result<()> {
        for cluster in lab.state().clusters()?.iter().filter(|cluster| cluster.name.starts_with(PREFIX)) {
            lab.stop_cluster(&cluster.name)?;
        }
        Ok(())
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = self.lab.stop_cluster(name) {
                tracing::warn!("{name} is still there: {error:#}");
            }
        }
    }
}

/// A join that was timed.
pub struct Timed {
    /// Seconds until the cluster was usable through the gateway.
    pub usable: f64,
    /// Of the requests sent to the bystander meanwhile, those that failed.
    pub failed: usize,
    /// By hand: its steps.
    pub steps: Steps,
}

/// One side's joins.
pub struct Side {
    pub joins: Vec<Timed>,
    pub load: Outcome,
}

/// The article's way.
pub fn by_hand(lab: &Lab, progress: &Progress, clusters: &[String]) -> Result<Side> {
    by_hand::prepare(lab)?;
    under_load(lab, progress, clusters, |number, cluster| {
        let started = Instant::now();
        let steps = by_hand::join(lab, cluster, number)?;
        Ok((await_usable(lab, cluster, started)?, steps))
    })
}

/// xregion's way.
pub fn xregion(lab: &Lab, progress: &Progress, clusters: &[String]) -> Result<Side> {
    under_load(lab, progress, clusters, |_, cluster| Ok((by_application(lab, cluster)?, Steps::new())))
}

/// Joins clusters one after another under load, each by `join`, which gives the seconds it took.
fn under_load(
    lab: &Lab,
    progress: &Progress,
    clusters: &[String],
    join: impl Fn(u16, &str) -> Result<(f64, Steps)>,
) -> Result<Side> {
    let load = Load::start(lab, &[BYSTANDER])?;
    let mut joins = Vec::new();
    let mut spans = Vec::new();
    for (number, cluster) in (0..).zip(clusters) {
        let begun = load.elapsed();
        let (usable, steps) = join(number, cluster)?;
        spans.push(begun..load.elapsed());
        progress.step(&format!("  {cluster} usable after {usable:.1} s {}", told(&steps)));
        joins.push(Timed { usable, failed: 0, steps });
    }
    let load = load.stop()?;
    for (join, span) in joins.iter_mut().zip(spans) {
        join.failed = load.failures.iter().filter(|failure| span.contains(&failure.at)).count();
    }
    progress.step(&format!("  {load}"));
    Ok(Side { joins, load })
}

/// Joins by a membership Application; seconds from `vela up` until the cluster is usable. Returns when the Application runs.
pub fn by_application(lab: &Lab, cluster: &str) -> Result<f64> {
    let (name, secret) = (format!("join-{cluster}"), format!("{cluster}-kubeconfig"));
    lab.put_kubeconfig(&secret, &lab.user_kubeconfig(cluster)?)?;
    let properties = json!({"cluster": cluster, "region": "proxy-east", "kubeconfig": {"secret": secret}});
    let started = Instant::now();
    lab.vela_up(&site::membership(&name, &properties))?;
    let usable = await_usable(lab, cluster, started);
    // A join that failed says why.
    lab.await_running(&name)?;
    usable
}

/// Waits until a namespace of the cluster can be read through the hub's aggregated API; seconds since `started`.
pub fn await_usable(lab: &Lab, cluster: &str, started: Instant) -> Result<f64> {
    lab.with_client("hub", |client: Client| async move {
        let asked = Instant::now();
        loop {
            if readable(&client, cluster).await.is_ok() {
                return Ok(started.elapsed().as_secs_f64());
            }
            ensure!(asked.elapsed() < PATIENCE, "{cluster} was not usable within {} s", PATIENCE.as_secs());
            tokio::time::sleep(ASK_EVERY).await;
        }
    })
}

async fn readable(client: &Client, cluster: &str) -> Result<()> {
    let path = format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy/api/v1/namespaces");
    let request = Request::new(path).get("kube-system", &Default::default())?;
    let namespace = tokio::time::timeout(Duration::from_secs(5), client.request::<Namespace>(request)).await??;
    ensure!(namespace.metadata.uid.is_some(), "a namespace without UID");
    Ok(())
}

fn told(steps: &Steps) -> String {
    steps.iter().map(|(step, seconds)| format!("{step} {seconds:.1}")).collect::<Vec<_>>().join(", ")
}
