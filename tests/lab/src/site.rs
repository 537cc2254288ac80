//! xregion on a lab, as its users install and use it: through the `vela` CLI, from a registry, by Applications.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{Lab, topology, wait};

/// Namespace of KubeVela and of everything of xregion's.
pub const NAMESPACE: &str = "vela-system";
/// Namespace of the hub's Services that lead to regions.
pub const ENTRIES: &str = "xregion-system";
/// The gateway's Deployment in a hub that `vela install` made.
pub const GATEWAY: &str = "kubevela-cluster-gateway";
const GATEWAY_CONTAINER: &str = "kubevela-vela-core-cluster-gateway";
/// Where commands of a user are run.
pub const USER: &str = "laptop";
/// nginx of the lab, in place of the stock image that can't be pulled here.
pub const NGINX: &str = "lab/nginx:1.22.1";

const ADDON: Duration = Duration::from_secs(120);
const WORKFLOW: Duration = Duration::from_secs(180);

/// The addon and its image as `make image addon` left them in `dist`.
#[derive(Clone, Debug)]
pub struct Dist(PathBuf);

impl Dist {
    /// The `dist` of this checkout.
    ///
    /// # Errors
    /// When something is missing there.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let dist = root.join("dist");
        for part in ["xregion-image.tar", "registry/index.yaml", "xregion/metadata.yaml"] {
            if !dist.join(part).exists() {
                bail!("{} is missing: run `make image addon` first", dist.join(part).display());
            }
        }
        Ok(Self(dist))
    }

    /// The staged addon: what `vela addon enable DIRECTORY` takes.
    #[must_use]
    pub fn addon(&self) -> PathBuf {
        self.0.join("xregion")
    }

    /// The image, as an OCI archive.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.0.join("xregion-image.tar")
    }

    fn registry(&self) -> PathBuf {
        self.0.join("registry")
    }
}

impl Lab {
    /// Loads the image and publishes the addon in the lab's registry, under the registry name `lab`.
    pub fn publish(&self, dist: &Dist) -> Result<()> {
        let clusters = self.image_clusters()?;
        self.load_image(&dist.image(), &clusters.iter().map(String::as_str).collect::<Vec<_>>())?;
        for file in std::fs::read_dir(dist.registry())? {
            let file = file?;
            std::fs::copy(file.path(), self.registry_dir().join(file.file_name()))?;
        }
        let known = self.vela(&["addon", "registry", "list"])?;
        if !known.lines().any(|line| line.starts_with("lab ")) {
            self.vela(&["addon", "registry", "add", "lab", "--type=helm", &format!("--endpoint={}", self.registry_url())])?;
        }
        Ok(())
    }

    /// `vela addon enable` by name or directory, with parameters.
    pub fn enable(&self, what: &str, parameters: &[&str]) -> Result<String> {
        self.vela(&[&["addon", "enable", what, "-y"], parameters].concat())
    }

    /// Runs the `vela` CLI as the user does; its standard output if it succeeds.
    pub fn vela(&self, args: &[&str]) -> Result<String> {
        self.vela_at(USER, args)
    }

    /// The same in another place, for the hub that is known there.
    pub fn vela_at(&self, place: &str, args: &[&str]) -> Result<String> {
        let argv = [&["vela"], args].concat();
        self.run_within(place, &argv, ADDON)?.success().with_context(|| format!("vela {}", args.join(" ")))
    }

    /// `vela up` of an Application.
    pub fn vela_up(&self, application: &Value) -> Result<()> {
        self.vela_up_at(USER, application)
    }

    /// The same in another place, for the hub that is known there.
    pub fn vela_up_at(&self, place: &str, application: &Value) -> Result<()> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        // What is valid JSON, `vela` takes for an appfile of its own, so a comment makes it YAML.
        std::fs::write(file.path(), format!("# Application\n{application}"))?;
        let path = file.path().to_str().context("a path that is no text")?;
        self.vela_at(place, &["up", "-f", path]).map(drop)
    }

    /// The status of an Application in `default`, as `vela status` and its web console read it.
    pub fn application(&self, name: &str) -> Result<Value> {
        let text = self.kubectl("hub", &["get", "application", name, "-n", "default", "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until an Application's workflow has ended or everything is running; gives its status.
    pub fn await_end(&self, name: &str) -> Result<Value> {
        wait::until(&format!("Application {name} at its end"), WORKFLOW, || {
            let application = self.application(name)?;
            let status = &application["status"];
            // A status of the generation before says nothing.
            let seen = status["observedGeneration"] == application["metadata"]["generation"];
            match status["status"].as_str().unwrap_or_default() {
                "running" | "workflowFailed" | "workflowTerminated" | "unhealthy" if seen => Ok(status.clone()),
                other => bail!("it is {other}: {}", message(status)),
            }
        })
    }

    /// Waits until an Application runs; its failure is the error.
    pub fn await_running(&self, name: &str) -> Result<Value> {
        let status = wait::until(&format!("Application {name} running"), WORKFLOW, || {
            let status = self.await_end(name)?;
            if status["status"] == "unhealthy" {
                bail!("it is unhealthy: {}", status["services"]);
            }
            Ok(status)
        })?;
        if status["status"] != "running" {
            bail!("Application {name} is {}: {}", status["status"], message(&status));
        }
        Ok(status)
    }

    /// Deletes an Application of `default` and waits until it is gone.
    pub fn vela_delete(&self, name: &str) -> Result<()> {
        self.vela(&["delete", name, "-n", "default", "-y", "--wait"]).map(drop)
    }

    /// Puts a kubeconfig into a Secret of `vela-system`, opted in.
    pub fn put_kubeconfig(&self, secret: &str, text: &str) -> Result<()> {
        self.put_kubeconfig_on("hub", secret, text)
    }

    /// The same on another hub.
    pub fn put_kubeconfig_on(&self, hub: &str, secret: &str, text: &str) -> Result<()> {
        self.apply(
            hub,
            &json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": secret, "namespace": NAMESPACE, "labels": {"xregion.oam.dev/kubeconfig": "true"}},
                "stringData": {"kubeconfig": text},
            }),
        )
    }

    /// Takes everything of xregion's users off the lab again: Applications, joined clusters, routes and aliases, and further
    /// business clusters. The addon and the proxy clusters stay. For labs that a run before this one has left something on.
    pub fn sweep(&self) -> Result<()> {
        // No controller may run that would have their clusters leave.
        let members =
            self.kubectl("hub", &["get", "configmaps", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=member", "-o", "name"])?;
        for member in members.lines() {
            let bare = r#"{"metadata":{"finalizers":null}}"#;
            self.kubectl("hub", &["patch", "-n", NAMESPACE, member, "--type=merge", "-p", bare])?;
        }
        // Regions last: the hub refuses while they carry clusters.
        let applications = self.kubectl("hub", &["get", "applications", "-n", "default", "-o", "name"])?;
        let (regions, others): (Vec<_>, Vec<_>) = applications.lines().partition(|name| name.contains("/region-"));
        self.delete_applications(&others)?;
        let secrets = self.kubectl(
            "hub",
            &["get", "secrets", "-n", NAMESPACE, "-l", "cluster.core.oam.dev/cluster-credential-type", "-o", "name"],
        )?;
        let joined = secrets.lines().filter(|name| !name.is_empty() && !["secret/proxy-east", "secret/proxy-west"].contains(name));
        for name in joined {
            self.kubectl("hub", &["delete", "-n", NAMESPACE, name])?;
        }
        self.delete_applications(&regions)?;
        self.kubectl("hub", &["delete", "secrets", "-n", NAMESPACE, "-l", "xregion.oam.dev/kubeconfig"])?;
        self.kubectl("hub", &["delete", "jobs,configmaps", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind in (job,progress)"])?;
        for proxy in ["proxy-east", "proxy-west"] {
            self.kubectl(proxy, &["delete", "configmaps", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=route"])?;
            self.kubectl(proxy, &["delete", "service", "-n", NAMESPACE, "cross-region-nginx-proxy-svc", "--ignore-not-found"])?;
        }
        let fixed = topology::clusters();
        for further in self.state().clusters()?.iter().filter(|cluster| fixed.iter().all(|one| one.name != cluster.name)) {
            self.stop_cluster(&further.name)?;
        }
        self.lose_aliases()?;
        self.kubectl("hub", &["delete", "services", "-n", ENTRIES, "--all"])?;
        self.reset_gateway()
    }

    fn delete_applications(&self, names: &[&str]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let delete = [&["delete", "-n", "default", "--wait", "--timeout=120s"], names].concat();
        self.kubectl("hub", &delete).map(drop)
    }

    /// Kubernetes' count of the rollouts of the gateway's Deployment.
    pub fn gateway_revision(&self) -> Result<u32> {
        let path = "jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}";
        let text = self.kubectl("hub", &["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", path])?;
        text.parse().with_context(|| format!("revision {text:?}"))
    }

    /// Puts the gateway's Deployment back to how KubeVela's chart installs it, but for its host aliases, and waits until the hub's
    /// clusters answer.
    pub fn reset_gateway(&self) -> Result<()> {
        let chart = json!({"spec": {
            "minReadySeconds": 0,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": {"spec": {"containers": [
                {"name": GATEWAY_CONTAINER, "readinessProbe": null, "lifecycle": null, "env": null},
            ]}},
        }});
        self.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "-p", &chart.to_string()])?;
        self.kubectl("hub", &["rollout", "status", "deployment", GATEWAY, "-n", NAMESPACE, "--timeout=120s"])?;
        for cluster in ["proxy-east", "proxy-west"] {
            let version = format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy/version");
            // A gateway that has just started doesn't know its clusters yet.
            wait::until(&format!("{cluster} answering through the gateway"), ADDON, || {
                self.kubectl("hub", &["get", "--raw", &version])
            })?;
        }
        Ok(())
    }
}

/// A region: `xregion-proxy` in the proxy cluster `proxy`.
#[must_use]
pub fn region(proxy: &str) -> Value {
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "Application",
        "metadata": {"name": format!("region-{proxy}"), "namespace": "default"},
        "spec": {
            "components": [{"name": "xregion-proxy", "type": "xregion-proxy", "properties": {"nginxImage": NGINX}}],
            "policies": [{"name": "place", "type": "topology", "properties": {"clusters": [proxy], "namespace": NAMESPACE}}],
        },
    })
}

/// The same, with these properties beside those that it needs.
#[must_use]
pub fn region_with(proxy: &str, more: &Value) -> Value {
    let mut application = region(proxy);
    for (key, value) in more.as_object().into_iter().flatten() {
        application["spec"]["components"][0]["properties"][key] = value.clone();
    }
    application
}

/// A membership: an Application of one `xregion-join` step with these properties.
#[must_use]
pub fn membership(name: &str, properties: &Value) -> Value {
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"components": [], "workflow": {"steps": [{"name": "join", "type": "xregion-join", "properties": properties}]}},
    })
}

/// A cluster as a component `xregion-member` of its name, in an Application of that name, too.
#[must_use]
pub fn member(cluster: &str, properties: &Value) -> Value {
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "Application",
        "metadata": {"name": cluster, "namespace": "default"},
        "spec": {"components": [{"name": cluster, "type": "xregion-member", "properties": properties}]},
    })
}

/// A workload with one pod, placed on `cluster`.
#[must_use]
pub fn workload(name: &str, cluster: &str) -> Value {
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "components": [{"name": name, "type": "webservice", "properties": {"image": NGINX, "ports": [{"port": 8080}]}}],
            "policies": [{"name": "place", "type": "topology", "properties": {"clusters": [cluster], "namespace": "default"}}],
        },
    })
}

/// A ConfigMap `name`, placed on `cluster`: for clusters without nodes.
#[must_use]
pub fn settings(name: &str, cluster: &str) -> Value {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "Application",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "components": [{"name": name, "type": "k8s-objects", "properties": {"objects": [map]}}],
            "policies": [{"name": "place", "type": "topology", "properties": {"clusters": [cluster], "namespace": "default"}}],
        },
    })
}

/// The messages of an Application's workflow steps.
#[must_use]
pub fn message(status: &Value) -> String {
    let steps = status["workflow"]["steps"].as_array().into_iter().flatten();
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    steps
        .map(|step| format!("{} {}: {}", text(step, "name"), text(step, "phase"), text(step, "message")))
        .collect::<Vec<_>>()
        .join("; ")
}
