//! What bad input gets: one cause, a hint, an exit code of its own, and a hub (and region) as if nothing had been asked.

use serde_json::{Value, json};
use xregion_lab::pki::{Authority, Validity};
use xregion_lab::site::{self, GATEWAY, NAMESPACE};
use xregion_lab::{BusinessSpec, Lab, Region};

use super::fixture::{Snapshot, joined, lab, properties, through_gateway};

/// A kubeconfig with what a test wants to be wrong in it.
struct Brought {
    server: String,
    ca: String,
    user: Value,
}

impl Brought {
    /// A right one, for `business-b`.
    fn right() -> Self {
        Self::of("business-b", "https://10.80.1.32:6443")
    }

    fn of(cluster: &str, server: &str) -> Self {
        let authority = lab().authority(cluster).unwrap();
        let pair = authority.client("admin", Some("system:masters"), Validity::Now).unwrap();
        Self { server: server.into(), ca: authority.certificate().into(), user: certificate(&pair) }
    }

    fn text(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": self.server, "certificate-authority-data": base64(&self.ca)}}],
            "users": [{"name": "u", "user": self.user}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        })
        .to_string()
    }
}

fn certificate(pair: &xregion_lab::pki::Pair) -> Value {
    json!({"client-certificate-data": base64(&pair.certificate), "client-key-data": base64(&pair.key)})
}

fn base64(text: &str) -> String {
    xregion_lab::base64(text).unwrap()
}

/// Runs a join that must be refused, by an Application as its user would, and checks what the user sees and what the hub keeps.
fn refused(code: u8, cause: &str, properties: Value) {
    let lab = joined();
    let name = "refused";
    let before = Snapshot::take(lab, name);
    lab.vela_up(&site::membership(name, &properties)).unwrap();
    let status = lab.await_end(name).unwrap();
    assert_eq!(status["status"], "workflowFailed", "{}", site::message(&status));
    let shown = lab.vela(&["status", name]).unwrap();
    assert!(shown.contains(cause), "`vela status` does not show {cause:?}: {shown}");
    let message = status["workflow"]["steps"][0]["message"].as_str().unwrap_or_default();
    assert!(message.ends_with(')') && message.contains(" ("), "there is no hint in {message}");
    let session = ["get", "pods", "-n", NAMESPACE, "-l", "xregion.oam.dev/session", "--sort-by=.metadata.creationTimestamp", "-o"];
    let codes = lab
        .kubectl("hub", &[&session[..], &["jsonpath={.items[*].status.containerStatuses[0].state.terminated.exitCode}"]].concat())
        .unwrap();
    assert_eq!(codes.split_whitespace().last(), Some(code.to_string().as_str()), "exit code of: {message}");
    before.assert_unchanged(lab, name);
    lab.vela_delete(name).unwrap();
}

/// Brings a kubeconfig under a Secret of its own and has it refused as cluster `new` in region east.
fn refused_kubeconfig(code: u8, cause: &str, text: &str) {
    refused_as("new", "proxy-east", code, cause, text, json!({}));
}

fn refused_as(cluster: &str, region: &str, code: u8, cause: &str, text: &str, more: Value) {
    joined().put_kubeconfig("brought", text).unwrap();
    refused(code, cause, properties(cluster, region, "brought", more));
    lab().kubectl("hub", &["delete", "secret", "brought", "-n", NAMESPACE]).unwrap();
}

fn with_right(code: u8, cause: &str, cluster: &str, region: &str, more: Value) {
    refused_as(cluster, region, code, cause, &Brought::right().text(), more);
}

#[test]
fn cluster_name_that_is_no_label() {
    with_right(10, "no RFC 1123 label", "Bad_Name", "proxy-east", json!({}));
    with_right(10, "KubeVela's own name for the hub", "local", "proxy-east", json!({}));
    with_right(10, "no RFC 1123 label", "--here", "proxy-east", json!({}));
}

#[test]
fn label_that_is_none() {
    with_right(11, "its value is no label value", "new", "proxy-east", json!({"labels": {"tier": "a b"}}));
}

#[test]
fn secret_missing_or_without_the_key_or_not_opted_in() {
    joined();
    refused(12, "Secret vela-system/nowhere does not exist", properties("new", "proxy-east", "nowhere", json!({})));
    refused(12, "is no name that a Secret can have", properties("new", "proxy-east", "../configmaps/xregion-job", json!({})));
    lab().put_kubeconfig("brought", "x").unwrap();
    let mut other_key = properties("new", "proxy-east", "brought", json!({}));
    other_key["kubeconfig"]["key"] = json!("config");
    refused(12, "has no key 'config'", other_key);
    lab().kubectl("hub", &["label", "secret", "brought", "-n", NAMESPACE, "xregion.oam.dev/kubeconfig-"]).unwrap();
    refused(13, "is not marked as a kubeconfig", properties("new", "proxy-east", "brought", json!({})));
}

#[test]
fn kubeconfig_that_is_none() {
    refused_kubeconfig(14, "this is no kubeconfig", "hello");
}

#[test]
fn kubeconfig_with_several_contexts_and_none_current() {
    let mut config: Value = serde_json::from_str(&Brought::right().text()).unwrap();
    config["contexts"].as_array_mut().unwrap().push(json!({"name": "d", "context": {"cluster": "k", "user": "u"}}));
    config["current-context"] = json!("");
    refused_kubeconfig(15, "several contexts (c, d) and none is current", &config.to_string());
}

#[test]
fn kubeconfig_without_usable_credentials() {
    refused_kubeconfig(16, "user has no credentials", &Brought { user: json!({}), ..Brought::right() }.text());
    let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "interactiveMode": "Never"}});
    refused_kubeconfig(16, "from a command (exec)", &Brought { user: exec, ..Brought::right() }.text());
    let expired = lab().authority("business-b").unwrap().client("admin", Some("system:masters"), Validity::Expired).unwrap();
    refused_kubeconfig(16, "client certificate expired at", &Brought { user: certificate(&expired), ..Brought::right() }.text());
}

#[test]
fn kubeconfig_that_would_join_insecurely() {
    let mut config: Value = serde_json::from_str(&Brought::right().text()).unwrap();
    config["clusters"][0]["cluster"] = json!({"server": "https://10.80.1.32:6443", "insecure-skip-tls-verify": true});
    refused_kubeconfig(17, "insecure-skip-tls-verify", &config.to_string());
}

#[test]
fn kubeconfig_of_a_cluster_on_the_machine_it_was_made_on() {
    refused_kubeconfig(
        18,
        "is this machine itself",
        &Brought { server: "https://127.0.0.1:6443".into(), ..Brought::right() }.text(),
    );
}

#[test]
fn name_of_a_secret_that_is_no_cluster() {
    let lab = joined();
    lab.kubectl("hub", &["create", "secret", "generic", "settings", "-n", NAMESPACE, "--from-literal=a=b"]).unwrap();
    with_right(20, "exists and is no cluster", "settings", "proxy-east", json!({}));
    lab.kubectl("hub", &["delete", "secret", "settings", "-n", NAMESPACE]).unwrap();
    // The kubeconfig's own Secret may have the name, too.
    with_right(20, "exists and is no cluster", "brought", "proxy-east", json!({}));
}

#[test]
fn name_of_another_cluster_which_is_not_disturbed() {
    with_right(21, "belongs to another cluster", "business-a", "proxy-east", json!({}));
    through_gateway(lab(), "business-a", "/version").unwrap();
}

#[test]
fn cluster_that_is_joined_already_under_another_name() {
    let text = joined().user_kubeconfig("business-a").unwrap();
    refused_as("second", "proxy-east", 22, "joined already, as business-a", &text, json!({}));
}

#[test]
fn host_that_somebody_else_aliased() {
    let lab = joined();
    let aliases = ["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", "jsonpath={.spec.template.spec.hostAliases}"];
    let mut entries: Value = serde_json::from_str(&lab.kubectl("hub", &aliases).unwrap()).unwrap();
    entries.as_array_mut().unwrap().push(json!({"ip": "192.0.2.7", "hostnames": ["theirs.example"]}));
    set_aliases(lab, &entries);
    lab.set_address(Region::East, "theirs.example", &["10.80.1.32".parse().unwrap()]).unwrap();
    let text = Brought { server: "https://theirs.example:6443".into(), ..Brought::right() }.text();
    refused_kubeconfig(23, "that xregion did not make", &text);
    entries.as_array_mut().unwrap().pop();
    set_aliases(lab, &entries);
}

fn set_aliases(lab: &Lab, entries: &Value) {
    let patch = json!({"spec": {"template": {"spec": {"hostAliases": entries}}}}).to_string();
    lab.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "--type=merge", "-p", &patch]).unwrap();
    lab.kubectl("hub", &["rollout", "status", "deployment", GATEWAY, "-n", NAMESPACE, "--timeout=120s"]).unwrap();
}

#[test]
fn host_that_leads_into_another_region() {
    let text = joined().user_kubeconfig("business-a").unwrap();
    refused_as("elsewhere", "proxy-west", 24, "leads into region proxy-east already, for business-a", &text, json!({}));
}

#[test]
fn certificate_without_a_name_that_could_be_aliased() {
    let lab = joined();
    let nameless = BusinessSpec {
        name: "nameless".into(),
        region: Region::East,
        host: 120,
        port: 6443,
        server: None,
        in_both_regions: false,
        names: vec!["10.80.1.120".into()],
    };
    lab.start_business(&nameless).unwrap();
    refused_kubeconfig(25, "has no DNS name that the hub could use", &lab.user_kubeconfig("nameless").unwrap());
    lab.stop_business("nameless").unwrap();
}

#[test]
fn region_that_is_not_joined() {
    with_right(30, "region proxy-north: no cluster of that name", "new", "proxy-north", json!({}));
}

#[test]
fn region_without_a_proxy_or_without_a_ready_one_or_without_nodes() {
    let lab = joined();
    let map = lab.kubectl("proxy-west", &["get", "configmap", "xregion-region", "-n", NAMESPACE, "-o", "json"]).unwrap();
    let mut map: Value = serde_json::from_str(&map).unwrap();
    map["metadata"] = json!({"name": "xregion-region", "namespace": NAMESPACE, "labels": map["metadata"]["labels"], "annotations": map["metadata"]["annotations"]});
    lab.kubectl("proxy-west", &["delete", "configmap", "xregion-region", "-n", NAMESPACE]).unwrap();
    with_right(31, "region proxy-west has no proxy", "new", "proxy-west", json!({}));

    let mut nowhere = map.clone();
    let mut settings: Value = serde_json::from_str(map["data"]["region.json"].as_str().unwrap()).unwrap();
    settings["nodes"]["selector"] = json!({"zone": "nowhere"});
    nowhere["data"]["region.json"] = json!(settings.to_string());
    lab.apply("proxy-west", &nowhere).unwrap();
    with_right(33, "no node of its proxy cluster has the labels", "new", "proxy-west", json!({}));
    lab.apply("proxy-west", &map).unwrap();

    lab.kubectl("proxy-west", &["scale", "deployment", "xregion-proxy", "-n", NAMESPACE, "--replicas=0"]).unwrap();
    lab.kubectl(
        "proxy-west",
        &["wait", "pods", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy", "--for=delete", "--timeout=90s"],
    )
    .unwrap();
    with_right(32, "region proxy-west: no proxy is ready", "new", "proxy-west", json!({}));
    lab.kubectl("proxy-west", &["scale", "deployment", "xregion-proxy", "-n", NAMESPACE, "--replicas=2"]).unwrap();
    lab.kubectl("proxy-west", &["rollout", "status", "deployment", "xregion-proxy", "-n", NAMESPACE, "--timeout=120s"]).unwrap();
}

#[test]
fn node_port_that_is_taken() {
    let lab = joined();
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "theirs", "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": 30070}]},
    });
    lab.apply("proxy-east", &theirs).unwrap();
    with_right(34, "node port 30070 is taken", "new", "proxy-east", json!({"nodePort": 30070}));
    lab.kubectl("proxy-east", &["delete", "service", "theirs"]).unwrap();
    let taken = lab.kubectl(
        "hub",
        &["get", "secret", "business-a", "-n", NAMESPACE, "-o", "jsonpath={.metadata.annotations.xregion\\.oam\\.dev/node-port}"],
    );
    let taken: u16 = taken.unwrap().parse().unwrap();
    with_right(34, &format!("node port {taken} is taken"), "new", "proxy-east", json!({"nodePort": taken}));
    with_right(34, "outside the region's range", "new", "proxy-east", json!({"nodePort": 31000}));
}

#[test]
fn upstream_that_can_t_be_resolved() {
    refused_kubeconfig(40, "nowhere.example", &Brought { server: "https://nowhere.example".into(), ..Brought::right() }.text());
}

#[test]
fn upstream_address_that_proxies_must_not_connect_to() {
    for (server, cause) in [
        ("https://169.254.169.254", "169.254.169.254 is a link-local address"),
        ("https://10.80.0.21:6443", "an address of the proxy cluster itself"),
        ("https://10.101.0.1", "an address of the proxy cluster itself"),
    ] {
        refused_kubeconfig(41, cause, &Brought { server: server.into(), ..Brought::right() }.text());
    }
}

#[test]
fn upstream_that_refuses() {
    refused_kubeconfig(42, "refuses connections", &Brought { server: "https://10.80.1.32:6444".into(), ..Brought::right() }.text());
}

#[test]
fn upstream_that_is_black_holed() {
    joined().blackhole("business-b").unwrap();
    let checked = std::panic::catch_unwind(|| refused_kubeconfig(43, "10.80.1.32:6443 does not answer", &Brought::right().text()));
    lab().unblackhole("business-b").unwrap();
    checked.unwrap();
}

#[test]
fn wrong_authority_and_wrong_name() {
    let other = Authority::new("other").unwrap();
    refused_kubeconfig(
        45,
        "not signed by the kubeconfig's certificate authority",
        &Brought { ca: other.certificate().into(), ..Brought::right() }.text(),
    );
    joined().set_address(Region::East, "other.example", &["10.80.1.32".parse().unwrap()]).unwrap();
    refused_kubeconfig(
        46,
        "is not for other.example",
        &Brought { server: "https://other.example:6443".into(), ..Brought::right() }.text(),
    );
}

#[test]
fn credentials_that_are_not_accepted_or_lack_rights() {
    joined();
    refused_kubeconfig(48, "(401)", &Brought { user: json!({"token": "not-a-token-of-this-cluster"}), ..Brought::right() }.text());
    let nobody = lab().authority("business-b").unwrap().client("nobody", None, Validity::Now).unwrap();
    refused_kubeconfig(49, "(403)", &Brought { user: certificate(&nobody), ..Brought::right() }.text());
}
