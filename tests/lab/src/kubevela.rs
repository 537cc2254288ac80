//! KubeVela on the hub, from its own chart. The chart's certificate Jobs need an image that can't be had here, so the lab
//! plays cert-manager: its CRDs, the Secrets it would make, and the CA it would put into webhooks and APIService.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Lab;
use crate::build::KUBEVELA_VERSION;
use crate::kubeconfig::base64;
use crate::pki::{Authority, Pair, Validity};
use crate::progress;
use crate::topology::Cluster;

const NAMESPACE: &str = "vela-system";
const WEBHOOK_SECRET: &str = "kubevela-vela-core-admission";
const GATEWAY_SECRET: &str = "kubevela-vela-core-cluster-gateway-tls-v2";
const API_SERVICE: &str = "v1alpha1.cluster.core.oam.dev";

/// Chart values: certificates from the lab instead of cert-manager, and nothing that makes a small machine wait.
const VALUES: [&str; 6] = [
    "admissionWebhooks.certManager.enabled=true",
    "multicluster.clusterGateway.secureTLS.certManager.enabled=true",
    // 30 s otherwise before it is first looked at.
    "readinessProbe.initialDelaySeconds=1",
    "readinessProbe.periodSeconds=1",
    // Half a core makes its start and every test slower.
    "resources.limits.cpu=2",
    "multicluster.clusterGateway.resources.limits.cpu=1",
];

/// Installs KubeVela on a hub, whose node must be Ready.
pub fn install(lab: &Lab, hub: &str) -> Result<()> {
    let authority = Authority::new("lab-cert-manager")?;
    lab.apply(hub, &before(&authority)?).context("playing cert-manager")?;
    let chart = lab.tools().chart.display().to_string();
    let mut args = vec!["vela", "install", "-y", "--version", KUBEVELA_VERSION, "--file", &chart];
    args.extend(VALUES.iter().flat_map(|value| ["--set", value]));
    progress::run_logged("installing KubeVela", lab.command(hub, &args)?, &lab.state().log(hub, "vela-install"))?;
    trust(lab, hub, authority.certificate())?;
    let wait = ["wait", "--for=condition=Available", "--timeout=60s", &format!("apiservice/{API_SERVICE}")];
    lab.kubectl(hub, &wait).context("cluster-gateway's API")?;
    // It can't be reached from here, and every addon command would wait for it.
    lab.run(hub, &["vela", "addon", "registry", "delete", "KubeVela"])?.success().context("removing the built-in registry")?;
    Ok(())
}

/// Joins a proxy cluster directly to a hub.
pub fn join(lab: &Lab, hub: &str, cluster: &Cluster) -> Result<()> {
    let kubeconfig = lab.state().kubeconfig(&cluster.name, "user").display().to_string();
    let join = ["vela", "cluster", "join", &kubeconfig, "--name", &cluster.name, "-y"];
    lab.run(hub, &join)?.success().with_context(|| format!("joining {}", cluster.name))?;
    Ok(())
}

/// What must be there before the chart is installed.
fn before(authority: &Authority) -> Result<Value> {
    let webhook = server(authority, "vela-core-webhook")?;
    let gateway = server(authority, "kubevela-cluster-gateway-service")?;
    let items = json!([
        open_crd("Issuer", "issuers", "issuer"),
        open_crd("Certificate", "certificates", "certificate"),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        secret(WEBHOOK_SECRET, authority, &webhook)?,
        secret(GATEWAY_SECRET, authority, &gateway)?,
    ]);
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

fn server(authority: &Authority, service: &str) -> Result<Pair> {
    let names = [service.to_owned(), format!("{service}.{NAMESPACE}.svc"), format!("{service}.{NAMESPACE}.svc.cluster.local")];
    authority.server(service, &names, Validity::Now)
}

/// A CRD of cert-manager's that takes anything.
fn open_crd(kind: &str, plural: &str, singular: &str) -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.cert-manager.io")},
        "spec": {
            "group": "cert-manager.io",
            "names": {"kind": kind, "plural": plural, "singular": singular, "listKind": format!("{kind}List")},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    })
}

fn secret(name: &str, authority: &Authority, pair: &Pair) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": {
            "ca": base64(authority.certificate())?,
            "tls.crt": base64(&pair.certificate)?,
            "tls.key": base64(&pair.key)?,
        },
    }))
}

/// Puts the CA where cert-manager would.
fn trust(lab: &Lab, hub: &str, authority: &str) -> Result<()> {
    let bundle = base64(authority)?;
    let patch = json!({"spec": {"caBundle": bundle, "insecureSkipTLSVerify": false}}).to_string();
    lab.kubectl(hub, &["patch", "apiservice", API_SERVICE, "--type=merge", "-p", &patch])?;
    for kind in ["validatingwebhookconfiguration", "mutatingwebhookconfiguration"] {
        let text = lab.kubectl(hub, &["get", kind, WEBHOOK_SECRET, "-o", "json"])?;
        let mut object: Value = serde_json::from_str(&text).with_context(|| format!("{kind} is no JSON"))?;
        for webhook in object["webhooks"].as_array_mut().context("no webhooks")? {
            webhook["clientConfig"]["caBundle"] = json!(bundle);
        }
        lab.kubectl_with_input(hub, &["replace", "-f", "-"], &object.to_string())?;
    }
    Ok(())
}

/// Whether KubeVela's Deployments are available.
pub fn await_available(lab: &Lab, hub: &str, bound: Duration) -> Result<()> {
    let timeout = format!("--timeout={}s", bound.as_secs());
    lab.kubectl(hub, &["-n", NAMESPACE, "wait", "--for=condition=Available", &timeout, "deployment", "--all"])?;
    Ok(())
}
