//! What xregion keeps as recorded, to be read, and to be broken as other people break it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::Lab;
use crate::site::{ENTRIES, GATEWAY, NAMESPACE};

const REGION: &str = "proxy-east";
const SERVICE: &str = "cross-region-nginx-proxy-svc";
/// The gateway's Service, to which the hub's API leads.
const GATEWAY_SERVICE: &str = "kubevela-cluster-gateway-service";

impl Lab {
    fn get_json(&self, cluster: &str, what: &[&str]) -> Result<Value> {
        let text = self.kubectl(cluster, &[&["get", "-n", NAMESPACE, "-o", "json"], what].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// What the route of a cluster in region east says, but for when it was proven.
    ///
    /// # Errors
    /// When there is none, or it was not proven.
    pub fn route(&self, cluster: &str) -> Result<Value> {
        let routes = self.get_json(REGION, &["configmaps", "-l", &format!("xregion.oam.dev/cluster={cluster}")])?;
        let mut route = routes["items"][0]["data"].clone();
        ensure!(route["provenAt"].is_string(), "{route}");
        route["provenAt"] = Value::Null;
        Ok(route)
    }

    /// The port of a cluster on region east's Service.
    ///
    /// # Errors
    /// When there is none.
    pub fn port(&self, cluster: &str) -> Result<Value> {
        let (mine, _) = self.ports(cluster)?;
        mine.into_iter().next().with_context(|| format!("{cluster} has no port"))
    }

    /// The ports of a cluster on region east's Service, and those of others.
    fn ports(&self, cluster: &str) -> Result<(Vec<Value>, Vec<Value>)> {
        let service = self.get_json(REGION, &["service", SERVICE])?;
        let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let prefix = format!("{cluster}-");
        Ok(ports.into_iter().partition(|port| port["name"].as_str().is_some_and(|name| name.starts_with(&prefix))))
    }

    /// Deletes the route of a cluster in region east.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn lose_route(&self, cluster: &str) -> Result<()> {
        let label = format!("xregion.oam.dev/cluster={cluster}");
        self.kubectl(REGION, &["delete", "configmaps", "-n", NAMESPACE, "-l", &label]).map(drop)
    }

    /// Takes the port of a cluster off region east's Service.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn lose_port(&self, cluster: &str) -> Result<()> {
        let (_, others) = self.ports(cluster)?;
        let patch = json!([{"op": "replace", "path": "/spec/ports", "value": others}]).to_string();
        self.kubectl(REGION, &["patch", "service", SERVICE, "-n", NAMESPACE, "--type=json", "-p", &patch]).map(drop)
    }

    /// What of the gateway's Deployment of this name is xregion's: host aliases in any order, their record, and what makes rollouts
    /// smooth.
    ///
    /// # Errors
    /// When the Deployment can't be read.
    pub fn gateway_settings(&self, name: &str) -> Result<Value> {
        let deployment = self.get_json("hub", &["deployment", name])?;
        let (strategy, pod) = (&deployment["spec"]["strategy"], &deployment["spec"]["template"]["spec"]);
        let mut aliases: Vec<(String, Vec<String>)> = serde_json::from_value::<Vec<Value>>(pod["hostAliases"].clone())
            .unwrap_or_default()
            .into_iter()
            .map(|entry| {
                let mut names: Vec<String> = serde_json::from_value(entry["hostnames"].clone()).unwrap_or_default();
                names.sort_unstable();
                (entry["ip"].to_string(), names)
            })
            .collect();
        aliases.sort_unstable();
        let record = deployment["metadata"]["annotations"]["xregion.oam.dev/aliases"].as_str().unwrap_or("null");
        let record: Value = serde_json::from_str(record)?;
        let container = &pod["containers"][0];
        Ok(json!([
            aliases,
            record,
            strategy["rollingUpdate"]["maxUnavailable"],
            container["readinessProbe"],
            container["lifecycle"],
            container["env"]
        ]))
    }

    /// The addresses of the hub's Services that lead to a region, in order.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn entry_addresses(&self, region: &str) -> Result<Vec<String>> {
        let mut addresses = self.entries("services", region, "{.items[*].spec.clusterIP}")?;
        addresses.sort_unstable_by_key(|ip| ip.parse::<std::net::IpAddr>().ok());
        Ok(addresses)
    }

    /// Deletes the hub's Services that lead to a region.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn lose_entries(&self, region: &str) -> Result<()> {
        let label = format!("xregion.oam.dev/region={region}");
        self.kubectl("hub", &["delete", "services", "-n", ENTRIES, "-l", &label]).map(drop)
    }

    /// The addresses that the gateway's host aliases name.
    ///
    /// # Errors
    /// When the Deployment can't be read.
    pub fn gateway_addresses(&self) -> Result<Vec<String>> {
        let path = "jsonpath={.spec.template.spec.hostAliases[*].ip}";
        let found = self.kubectl("hub", &["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", path])?;
        Ok(found.split_whitespace().map(str::to_owned).collect())
    }

    /// The nodes that those Services lead to, once for each EndpointSlice.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn entry_nodes(&self, region: &str) -> Result<Vec<String>> {
        self.entries("endpointslices", region, "{.items[*].endpoints[*].addresses[0]}")
    }

    fn entries(&self, kind: &str, region: &str, path: &str) -> Result<Vec<String>> {
        let label = format!("xregion.oam.dev/region={region}");
        let found = self.kubectl("hub", &["get", kind, "-n", ENTRIES, "-l", &label, "-o", &format!("jsonpath={path}")])?;
        Ok(found.split_whitespace().map(str::to_owned).collect())
    }

    /// Takes the host aliases and their record off the gateway's Deployment.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn lose_aliases(&self) -> Result<()> {
        let bare =
            r#"{"metadata":{"annotations":{"xregion.oam.dev/aliases":null}},"spec":{"template":{"spec":{"hostAliases":null}}}}"#;
        self.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "--type=merge", "-p", bare]).map(drop)
    }

    /// The gateway's Deployment as KubeVela's chart would install it anew: without anything that xregion or Kubernetes has added.
    ///
    /// # Errors
    /// When the Deployment can't be read.
    pub fn bare_gateway(&self) -> Result<Value> {
        let now = self.get_json("hub", &["deployment", GATEWAY])?;
        let (mut metadata, mut spec) = (now["metadata"].clone(), now["spec"].clone());
        keep(&mut metadata, |key| ["name", "namespace", "labels", "annotations"].contains(&key));
        keep(&mut metadata["annotations"], |key| key.starts_with("meta.helm.sh/"));
        spec["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
        spec["minReadySeconds"] = json!(0);
        let template = &mut spec["template"];
        keep(&mut template["metadata"], |key| ["labels", "annotations"].contains(&key));
        keep(&mut template["metadata"]["annotations"], |key| !key.starts_with("xregion.oam.dev/"));
        keep(&mut template["spec"], |key| key != "hostAliases");
        keep(&mut template["spec"]["containers"][0], |key| !["readinessProbe", "lifecycle", "env"].contains(&key));
        Ok(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}))
    }

    /// Installs a gateway in the place of the Deployment of another name: its Service leads to the new one as soon as that is ready,
    /// and the old one goes.
    ///
    /// # Errors
    /// When kubectl fails, or it does not get ready.
    pub fn replace_gateway(&self, old: &str, new: &Value) -> Result<()> {
        let name = new["metadata"]["name"].as_str().context("a Deployment without a name")?;
        self.apply("hub", new)?;
        self.kubectl("hub", &["rollout", "status", "deployment", name, "-n", NAMESPACE, "--timeout=120s"])?;
        let labels = &new["spec"]["selector"]["matchLabels"];
        let patch = json!([{"op": "replace", "path": "/spec/selector", "value": labels}]).to_string();
        self.kubectl("hub", &["patch", "service", GATEWAY_SERVICE, "-n", NAMESPACE, "--type=json", "-p", &patch])?;
        self.kubectl("hub", &["delete", "deployment", old, "-n", NAMESPACE, "--ignore-not-found"]).map(drop)
    }
}

/// The same Deployment under another name, with pods of other labels.
#[must_use]
pub fn renamed(deployment: &Value, name: &str) -> Value {
    let mut renamed = deployment.clone();
    let labels = json!({"app.kubernetes.io/name": name});
    renamed["metadata"]["name"] = json!(name);
    renamed["spec"]["selector"] = json!({"matchLabels": labels});
    renamed["spec"]["template"]["metadata"]["labels"] = labels;
    renamed
}

/// Takes the other keys off an object.
fn keep(object: &mut Value, is_kept: impl Fn(&str) -> bool) {
    if let Some(object) = object.as_object_mut() {
        object.retain(|key, _| is_kept(key));
    }
}
