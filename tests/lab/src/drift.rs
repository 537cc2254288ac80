//! What xregion keeps as recorded, to be read, and to be broken as other people break it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::Lab;
use crate::site::{ENTRIES, GATEWAY, NAMESPACE};

const REGION: &str = "proxy-east";
const SERVICE: &str = "cross-region-nginx-proxy-svc";

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

    /// What of the gateway's Deployment is xregion's: host aliases in any order, their record, and what makes rollouts smooth.
    ///
    /// # Errors
    /// When the Deployment can't be read.
    pub fn gateway_settings(&self) -> Result<Value> {
        let deployment = self.get_json("hub", &["deployment", GATEWAY])?;
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
}
