//! Prometheus as it would run beside xregion: one in each proxy cluster, which scrapes what the PodMonitors there name and writes it
//! to the hub's, which scrapes the controller and knows the alerts.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use xregion_lab::site::NAMESPACE;
use xregion_lab::{Lab, wait};

use super::draw::Series;

const PORT: u16 = 9090;
/// Shorter than a PodMonitor's 30 s, so that minutes have something to show.
const INTERVAL: &str = "2s";

/// A Prometheus that runs, until dropped.
pub struct Prometheus {
    child: Child,
    _directory: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// That of a proxy cluster, which writes to the hub's.
    pub fn of_region(lab: &Lab, cluster: &str) -> Result<Self> {
        let url = format!("http://{}:{PORT}/api/v1/write", lab.cluster("hub")?.address);
        let config = json!({
            "global": {"scrape_interval": INTERVAL},
            "scrape_configs": scrapes(lab, cluster)?,
            "remote_write": [{"url": url, "queue_config": {"batch_send_deadline": "1s"}}],
        });
        Self::start(lab, cluster, &config)
    }

    /// The hub's, with the rules that the addon made.
    pub fn of_hub(lab: &Lab) -> Result<Self> {
        let config = json!({
            "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
            "scrape_configs": scrapes(lab, "hub")?,
            "rule_files": ["rules.yaml"],
        });
        Self::start(lab, "hub", &config)
    }

    fn start(lab: &Lab, cluster: &str, config: &Value) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("prometheus.yaml"), config.to_string())?;
        let rules =
            list(lab, cluster, "prometheusrules", &[])?.into_iter().flat_map(|mut rule| match rule["spec"]["groups"].take() {
                Value::Array(groups) => groups,
                _ => vec![],
            });
        std::fs::write(directory.path().join("rules.yaml"), json!({"groups": rules.collect::<Vec<_>>()}).to_string())?;
        let listen = format!("--web.listen-address=0.0.0.0:{PORT}");
        let data = ["--storage.tsdb.path=data", "--web.enable-remote-write-receiver"];
        let argv = [&["prometheus", "--config.file=prometheus.yaml", "--log.level=warn", &listen], &data[..]].concat();
        let log = lab.state().log(&lab.place(cluster)?.name, "prometheus");
        let log = std::fs::File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let child = lab
            .command(cluster, &argv)?
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("can't start Prometheus in {cluster}"))?;
        Ok(Self { child, _directory: directory })
    }
}

fn list(lab: &Lab, cluster: &str, kind: &str, args: &[&str]) -> Result<Vec<Value>> {
    let text = lab.kubectl(cluster, &[&["get", kind, "-n", NAMESPACE, "-o", "json"], args].concat())?;
    Ok(serde_json::from_str::<List>(&text)?.items)
}

#[derive(Deserialize)]
struct List {
    items: Vec<Value>,
}

/// What the Prometheus operator makes of the PodMonitors, for the pods that are there now.
fn scrapes(lab: &Lab, cluster: &str) -> Result<Vec<Value>> {
    let mut scrapes = Vec::new();
    for monitor in list(lab, cluster, "podmonitors", &[])? {
        let labels: BTreeMap<String, String> = serde_json::from_value(monitor["spec"]["selector"]["matchLabels"].clone())?;
        let selector = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        let pods = list(lab, cluster, "pods", &["-l", &selector])?;
        for endpoint in monitor["spec"]["podMetricsEndpoints"].as_array().into_iter().flatten() {
            scrapes.push(scrape(&monitor["metadata"]["name"], endpoint, &pods)?);
        }
    }
    if scrapes.is_empty() {
        bail!("{cluster} has no PodMonitor");
    }
    Ok(scrapes)
}

fn scrape(monitor: &Value, endpoint: &Value, pods: &[Value]) -> Result<Value> {
    let mut targets = Vec::new();
    for pod in pods {
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            let ports = container["ports"].as_array().into_iter().flatten();
            for port in ports.filter(|port| port["name"] == endpoint["port"]) {
                let ip = pod["status"]["podIP"].as_str().context("a pod has no address yet")?;
                targets.push(json!({
                    "targets": [format!("{ip}:{}", port["containerPort"])],
                    "labels": {
                        "namespace": NAMESPACE, "pod": pod["metadata"]["name"],
                        "container": container["name"], "endpoint": endpoint["port"],
                    },
                }));
            }
        }
    }
    let relabelings = endpoint["relabelings"].as_array().into_iter().flatten();
    let relabel: Vec<Value> =
        relabelings.map(|one| json!({"target_label": one["targetLabel"], "replacement": one["replacement"]})).collect();
    Ok(json!({
        "job_name": format!("{NAMESPACE}/{}", monitor.as_str().unwrap_or_default()),
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint["honorLabels"],
        "static_configs": targets,
        "relabel_configs": relabel,
    }))
}

/// Asks the hub's Prometheus.
pub struct Query<'a> {
    pub lab: &'a Lab,
}

#[derive(Deserialize)]
struct Found {
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl Query<'_> {
    /// At one moment.
    pub fn instant(&self, expression: &str, at: f64, legend: &str) -> Result<Vec<Series>> {
        self.ask(&["instant", &format!("--time={at}")], expression, legend)
    }

    /// From a moment to another.
    pub fn range(&self, expression: &str, span: super::draw::Span, legend: &str) -> Result<Vec<Series>> {
        let (start, end) = (format!("--start={}", span.start), format!("--end={}", span.end));
        self.ask(&["range", &start, &end, &format!("--step={}s", span.step)], expression, legend)
    }

    /// Waits until it has something to say of this.
    pub fn until(&self, expression: &str) -> Result<()> {
        let now = || self.ask(&["instant"], expression, "");
        wait::until(expression, Duration::from_secs(60), || if now()?.is_empty() { bail!("nothing yet") } else { Ok(()) })
    }

    fn ask(&self, how: &[&str], expression: &str, legend: &str) -> Result<Vec<Series>> {
        let url = format!("http://127.0.0.1:{PORT}");
        let argv = [&["promtool", "query", "--format=json"], how, &[&url, expression]].concat();
        let text = self.lab.run("hub", &argv)?.success().with_context(|| expression.to_owned())?;
        let found: Vec<Found> = serde_json::from_str(&text).with_context(|| text.clone())?;
        let number = |(time, value): (f64, String)| Ok((time, value.parse().with_context(|| value)?));
        let series = found.into_iter().map(|one| {
            let points = one.value.into_iter().chain(one.values).map(number).collect::<Result<_>>()?;
            Ok(Series { name: named(legend, &one.metric), points })
        });
        series.collect()
    }
}

/// A legend with the labels it names: `{{region}} / {{cluster}}`.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    labels.iter().fold(legend.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
}

/// Whether the programs are there.
pub fn installed() -> Result<()> {
    for program in ["prometheus", "promtool"] {
        if !Path::new("/usr/bin").join(program).exists() {
            bail!("{program} is missing: run `make dashboard`, which installs Debian's prometheus");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_monitor_becomes_what_the_operator_makes_of_it() {
        let endpoint = json!({
            "port": "health", "path": "/metrics", "honorLabels": true,
            "relabelings": [{"targetLabel": "region", "replacement": "proxy-east"}],
        });
        let pod = json!({
            "metadata": {"name": "a"}, "status": {"podIP": "10.0.0.1"},
            "spec": {"containers": [{"name": "proxy", "ports": [{"name": "other", "containerPort": 1}, {"name": "health", "containerPort": 7080}]}]},
        });
        let scrape = scrape(&json!("east"), &endpoint, &[pod]).unwrap();
        assert_eq!(scrape["job_name"], "vela-system/east");
        assert_eq!(scrape["static_configs"].as_array().unwrap().len(), 1);
        assert_eq!(scrape["static_configs"][0]["targets"][0], "10.0.0.1:7080");
        assert_eq!(scrape["relabel_configs"], json!([{"target_label": "region", "replacement": "proxy-east"}]));
    }

    #[test]
    fn legends_name_labels() {
        let labels = [("region", "east"), ("cluster", "a")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(named("{{region}} / {{cluster}}: x", &labels.into()), "east / a: x");
    }
}
