//! A node: containerd, kubelet and kube-proxy in one network namespace, with directories of their own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::command;
use crate::inside;
use crate::process::{Daemon, names_in};
use crate::state::{self, State};
use crate::tools::Tools;
use crate::topology::{Cluster, Node, Role};

const READY: Duration = Duration::from_secs(60);
const IMPORT: Duration = Duration::from_secs(120);

/// A node and what it is made with.
#[derive(Clone, Copy, Debug)]
pub struct Worker<'a> {
    /// The lab's state.
    pub state: &'a State,
    /// Its programs.
    pub tools: &'a Tools,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The node.
    pub node: &'a Node,
}

impl<'a> Worker<'a> {
    fn name(&self) -> &'a str {
        &self.node.place.name
    }

    fn directory(&self) -> PathBuf {
        self.state.place(self.name())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn daemon(&self, part: &'a str) -> Daemon<'a> {
        Daemon::new(self.state, self.name(), part)
    }

    fn socket(&self) -> PathBuf {
        self.file("containerd/containerd.sock")
    }

    /// Starts containerd unless it runs; needs no API server.
    pub fn ensure_containerd(&self) -> Result<()> {
        state::write(&self.file("cni/10-pods.conflist"), pretty(&self.cni())?)?;
        let config = self.file("containerd.toml");
        state::write(&config, self.containerd())?;
        let containerd = self.daemon("containerd");
        containerd.ensure(Path::new("containerd"), &["-c".to_owned(), config.display().to_string()])?;
        containerd.await_ready(READY, || {
            self.ctr(&["version"], Duration::from_secs(5))?;
            Ok(())
        })
    }

    /// Imports an image archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("an archive's path is no text")?;
        self.ctr(&["-n", "k8s.io", "images", "import", archive], IMPORT)
            .with_context(|| format!("importing {archive} at {}", self.name()))?;
        Ok(())
    }

    /// Makes an image that is there known by another name, too.
    pub fn tag(&self, image: &str, also: &str) -> Result<()> {
        self.ctr(&["-n", "k8s.io", "images", "tag", "--force", image, also], IMPORT)
            .with_context(|| format!("tagging {image} at {}", self.name()))?;
        Ok(())
    }

    fn ctr(&self, args: &[&str], bound: Duration) -> Result<String> {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.socket()).args(args);
        command::run(command, bound)?.success()
    }

    /// Starts kubelet and kube-proxy unless they run. The API server must be ready.
    pub fn ensure_kubelet(&self) -> Result<()> {
        state::write(&self.file("resolv.conf"), self.resolv_conf())?;
        let config = self.file("kubelet.json");
        state::write(&config, pretty(&self.kubelet())?)?;
        let kubeconfig = self.state.kubeconfig(&self.cluster.name, self.name()).display().to_string();
        let kubelet = [
            "kubelet".to_owned(),
            format!("--config={}", config.display()),
            format!("--kubeconfig={kubeconfig}"),
            format!("--root-dir={}", self.file("kubelet").display()),
            format!("--cert-dir={}", self.file("kubelet/pki").display()),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={}", self.node.internal_ip),
        ];
        self.daemon("kubelet").ensure(&self.tools.kubernetes, &kubelet)?;
        let proxy_kubeconfig = self.state.kubeconfig(&self.cluster.name, "kube-proxy").display().to_string();
        let proxy = [
            "kube-proxy".to_owned(),
            format!("--kubeconfig={proxy_kubeconfig}"),
            format!("--hostname-override={}", self.name()),
            // Limits of connection tracking belong to the machine, not to a namespace.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
            format!("--cluster-cidr={}", self.cluster.pod_cidr()),
            format!("--bind-address={}", self.node.internal_ip),
            "--proxy-mode=iptables".to_owned(),
            "--healthz-bind-address=127.0.0.1:10256".to_owned(),
            "--metrics-bind-address=127.0.0.1:10249".to_owned(),
        ];
        self.daemon("kube-proxy").ensure(&self.tools.kubernetes, &proxy)
    }

    /// The Node object, made before its kubelet registers so that it knows its pods' network from the start.
    pub fn object(&self) -> Value {
        let cidr = self.node.pod_cidr();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name()},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        })
    }

    /// Waits until the Node is Ready by the word of the kubelet that runs now.
    pub fn await_ready(&self) -> Result<()> {
        let kubelet = self.daemon("kubelet");
        let started = Timestamp::try_from(kubelet.started_at()?).context("a time out of range")?;
        kubelet.await_ready(READY, || self.ready_since(started))
    }

    /// Whether the Node is Ready.
    pub fn ready(&self) -> Result<()> {
        self.ready_since(Timestamp::UNIX_EPOCH)
    }

    fn ready_since(&self, time: Timestamp) -> Result<()> {
        let admin = self.state.kubeconfig(&self.cluster.name, "admin");
        let text = inside::get(&self.cluster.home.name, &admin, &format!("/api/v1/nodes/{}", self.name()))?;
        if !is_ready(&text, time)? {
            bail!("node {} is not Ready", self.name());
        }
        Ok(())
    }

    fn containerd(&self) -> String {
        let directory = self.file("containerd").display().to_string();
        let cni = self.file("cni").display().to_string();
        let socket = self.socket().display().to_string();
        format!(
            r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  # Without it runc may not lower a score and dies with "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  # Pods' network namespaces below the lab's state, where `down` finds them.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#
        )
    }

    /// Each pod on a cable of its own to the node, which routes; rules for what leaves the cluster are `net`'s.
    fn cni(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.node.pod_cidr()}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                        "dataDir": self.file("cni-addresses"),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    fn kubelet(&self) -> Value {
        let keys = self.state.cluster(&self.cluster.name);
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": keys.join("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": keys.join(format!("{}.crt", self.name())),
            "tlsPrivateKeyFile": keys.join(format!("{}.key", self.name())),
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "failCgroupV1": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "podLogsDir": self.file("pod-logs"),
            "volumePluginDir": self.file("volume-plugins"),
            "resolvConf": self.file("resolv.conf"),
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "registryPullQPS": 0,
            "serializeImagePulls": false,
            "maxPods": 250,
            // A killed node is noticed after 12 s (see the controller manager's grace period).
            "nodeStatusUpdateFrequency": "3s",
            "nodeLeaseDurationSeconds": 12,
            "clusterDNS": [self.cluster.dns_service()],
            "clusterDomain": "cluster.local",
        })
    }

    /// What names a node, and pods that ask its DNS, can resolve: a region's for nodes there, none on the hub.
    fn resolv_conf(&self) -> String {
        let server = match self.cluster.role() {
            Role::Hub => Ipv4Addr::LOCALHOST,
            Role::Proxy | Role::Business => self.cluster.region.map_or(Ipv4Addr::LOCALHOST, crate::topology::Region::resolver),
        };
        format!("nameserver {server}\n")
    }
}

/// The containers whose shims the containerd of a place started; their cgroups have the same names.
#[must_use]
pub fn containers(place: &Path) -> Vec<String> {
    names_in(&place.join("containerd/state/io.containerd.runtime.v2.task/k8s.io"))
}

/// Whether a Node object, as JSON, has condition Ready, said at `since` or later (to the second, as Kubernetes tells time).
fn is_ready(node: &str, since: Timestamp) -> Result<bool> {
    let node: Value = serde_json::from_str(node).context("not a Node")?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let said_since = |condition: &Value| {
        let said = condition["lastHeartbeatTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
        said.is_some_and(|said| said.as_second() >= since.as_second())
    };
    Ok(conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True" && said_since(condition)))
}

fn pretty(value: &Value) -> Result<String> {
    serde_json::to_string_pretty(value).context("can't write JSON")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(status: &str) -> String {
        let ready = json!({"type": "Ready", "status": status, "lastHeartbeatTime": "2026-01-02T03:04:05Z"});
        json!({"status": {"conditions": [ready]}}).to_string()
    }

    #[test]
    fn a_node_is_ready_only_when_its_condition_says_so() {
        assert!(is_ready(&node("True"), Timestamp::UNIX_EPOCH).unwrap());
        assert!(!is_ready(&node("Unknown"), Timestamp::UNIX_EPOCH).unwrap());
        assert!(!is_ready("{}", Timestamp::UNIX_EPOCH).unwrap());
    }

    #[test]
    fn what_an_earlier_kubelet_said_does_not_count() {
        assert!(is_ready(&node("True"), "2026-01-02T03:04:05.9Z".parse().unwrap()).unwrap());
        assert!(!is_ready(&node("True"), "2026-01-02T03:04:06Z".parse().unwrap()).unwrap());
    }
}
