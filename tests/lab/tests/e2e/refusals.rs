//! What bad input gets: one cause, a hint, an exit code of its own, and a hub (and region) as if nothing had been asked.

use serde_json::{Value, json};
use xregion_lab::pki::{Authority, Validity};
use xregion_lab::site::{self, GATEWAY, NAMESPACE};
use xregion_lab::{Bridge, BusinessSpec, Lab, Region};

use super::fixture::{Snapshot, annotation, eventually, joined, lab, through_gateway};
use super::laptop::run;

/// A kubeconfig with what a test wants to be wrong in it.
struct Brought {
    server: String,
    ca: String,
    user: Value,
}

impl Brought {
    /// A right one, for `business-b`.
    fn right() -> Self {
        let authority = lab().authority("business-b").unwrap();
        let pair = authority.client("admin", Some("system:masters"), Validity::Now).unwrap();
        Self { server: "https://10.80.1.32:6443".into(), ca: authority.certificate().into(), user: certificate(&pair) }
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

/// A join that must be refused, and what its user is told.
struct Case {
    code: u8,
    cause: String,
    cluster: String,
    properties: Value,
    /// The kubeconfig that its Secret holds.
    text: String,
}

/// A case whose kubeconfig is this one, for a cluster that is not joined yet.
fn kubeconfig(code: u8, cause: &str, text: String) -> Case {
    Case { code, cause: cause.into(), cluster: String::new(), properties: json!({"region": "proxy-east"}), text }
}

/// A case whose kubeconfig is right.
fn of(code: u8, cause: &str, cluster: &str, region: &str, more: Value) -> Case {
    let mut properties = more;
    properties["region"] = json!(region);
    Case { code, cause: cause.into(), cluster: cluster.into(), properties, text: Brought::right().text() }
}

impl Case {
    fn with(self, cluster: &str, region: &str) -> Self {
        let mut properties = self.properties;
        properties["region"] = json!(region);
        Self { cluster: cluster.into(), properties, ..self }
    }
}

/// Runs joins that must be refused, and checks what their users see and what the hub keeps. The first is run by an Application, and those
/// that only a step can ask for; the others side by side from a shell, as Jobs of the same kind.
fn refused(cases: impl IntoIterator<Item = Case>) {
    let lab = joined();
    let mut cases: Vec<Case> = cases.into_iter().collect();
    let before = Snapshot::take(lab, "refused");
    for (number, case) in cases.iter_mut().enumerate() {
        let secret = format!("brought-{number}");
        lab.put_kubeconfig(&secret, &case.text).unwrap();
        if case.cluster.is_empty() {
            case.cluster = format!("new-{number}");
        }
        if case.properties["kubeconfig"].is_null() {
            case.properties["kubeconfig"] = json!({"secret": secret});
        }
    }
    std::thread::scope(|scope| {
        let (first, others) = cases.split_first().unwrap();
        let (by_step, by_shell): (Vec<_>, Vec<_>) = others.iter().partition(|case| case.cluster.starts_with('-'));
        by_shell.into_iter().for_each(|case| drop(scope.spawn(|| refused_to_shell(case))));
        by_step.into_iter().chain([first]).for_each(|case| refused_to_step(lab, case));
    });
    before.assert_unchanged(lab, "refused");
    for number in 0..cases.len() {
        lab.kubectl("hub", &["delete", "secret", &format!("brought-{number}"), "-n", NAMESPACE]).unwrap();
    }
}

fn refused_to_step(lab: &Lab, case: &Case) {
    let Case { code, cause, cluster, properties, .. } = case;
    let mut properties = properties.clone();
    properties["cluster"] = json!(cluster);
    lab.vela_up(&site::membership("refused", &properties)).unwrap();
    let status = lab.await_end("refused").unwrap();
    assert_eq!(status["status"], "workflowFailed", "{cause}: {}", site::message(&status));
    let shown = lab.vela(&["status", "refused"]).unwrap();
    assert!(shown.contains(cause), "`vela status` does not show {cause:?}: {shown}");
    let message = status["workflow"]["steps"][0]["message"].as_str().unwrap_or_default();
    assert!(message.ends_with(')') && message.contains(" ("), "there is no hint in {message}");
    assert_eq!(exit_code(lab, cluster), Some((*code).into()), "exit code of: {message}");
    lab.vela_delete("refused").unwrap();
}

fn refused_to_shell(case: &Case) {
    let Case { code, cause, cluster, properties, .. } = case;
    let mut args = vec!["join".to_owned(), cluster.clone(), format!("--region={}", properties["region"].as_str().unwrap())];
    args.push(format!("--secret={}", properties["kubeconfig"]["secret"].as_str().unwrap()));
    args.extend(properties["kubeconfig"]["key"].as_str().map(|key| format!("--secret-key={key}")));
    args.extend(properties["nodePort"].as_u64().map(|port| format!("--node-port={port}")));
    args.extend(properties["gateway"].as_str().map(|gateway| format!("--gateway={gateway}")));
    let labels = properties["labels"].as_object().into_iter().flatten();
    args.extend(labels.map(|(key, value)| format!("--label={key}={}", value.as_str().unwrap())));
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some((*code).into()), "{args:?}: {output:?}");
    assert!(output.stderr.contains(cause.as_str()), "{cause:?}: {output:?}");
    assert!(output.stderr.contains("\nhint: "), "{output:?}");
}

/// How the latest Job for a cluster ended.
fn exit_code(lab: &Lab, cluster: &str) -> Option<u64> {
    let select = ["-l", "xregion.oam.dev/session", "--sort-by=.metadata.creationTimestamp", "-o", "json"];
    let pods = lab.kubectl("hub", &[&["get", "pods", "-n", NAMESPACE], &select[..]].concat()).unwrap();
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let of = |pod: &&Value| pod["spec"]["containers"][0]["args"].as_array().and_then(|args| args.last()) == Some(&json!(cluster));
    let pod = pods["items"].as_array().unwrap().iter().rfind(of)?;
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_u64()
}

#[test]
fn a_request_that_is_wrong_in_itself() {
    let lab = joined();
    lab.kubectl("hub", &["create", "secret", "generic", "shut", "-n", NAMESPACE, "--from-literal=kubeconfig=x"]).unwrap();
    let secret = |code, cause: &str, secret: &str, key: &str| {
        let case = kubeconfig(code, cause, Brought::right().text());
        Case { properties: json!({"region": "proxy-east", "kubeconfig": {"secret": secret, "key": key}}), ..case }
    };
    refused([
        of(10, "no RFC 1123 label", "Bad_Name", "proxy-east", json!({})),
        of(10, "KubeVela's own name for the hub", "local", "proxy-east", json!({})),
        of(10, "no RFC 1123 label", "--here", "proxy-east", json!({})),
        of(11, "its value is no label value", "new", "proxy-east", json!({"labels": {"tier": "a b"}})),
        secret(12, "Secret vela-system/nowhere does not exist", "nowhere", "kubeconfig"),
        secret(12, "is no name that a Secret can have", "../configmaps/xregion-job", "kubeconfig"),
        secret(12, "has no key 'config'", "business-a-kubeconfig", "config"),
        secret(13, "is not marked as a kubeconfig", "shut", "kubeconfig"),
        of(30, "region proxy-north: no cluster of that name", "north", "proxy-north", json!({})),
        of(60, "there is no Deployment vela-system/nowhere", "strayed", "proxy-east", json!({"gateway": "nowhere"})),
    ]);
    lab.kubectl("hub", &["delete", "secret", "shut", "-n", NAMESPACE]).unwrap();
}

#[test]
fn b_kubeconfig_that_can_t_be_used() {
    let right = || Brought::right().text();
    let mut contexts: Value = serde_json::from_str(&right()).unwrap();
    contexts["contexts"].as_array_mut().unwrap().push(json!({"name": "d", "context": {"cluster": "k", "user": "u"}}));
    contexts["current-context"] = json!("");
    let mut insecure: Value = serde_json::from_str(&right()).unwrap();
    insecure["clusters"][0]["cluster"] = json!({"server": "https://10.80.1.32:6443", "insecure-skip-tls-verify": true});
    let user = |user: Value| Brought { user, ..Brought::right() }.text();
    let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "interactiveMode": "Never"}});
    let expired = lab().authority("business-b").unwrap().client("admin", Some("system:masters"), Validity::Expired).unwrap();
    let local = Brought { server: "https://127.0.0.1:6443".into(), ..Brought::right() }.text();
    refused([
        kubeconfig(14, "this is no kubeconfig", "hello".into()),
        kubeconfig(15, "several contexts (c, d) and none is current", contexts.to_string()),
        kubeconfig(16, "user has no credentials", user(json!({}))),
        kubeconfig(16, "from a command (exec)", user(exec)),
        kubeconfig(16, "client certificate expired at", user(certificate(&expired))),
        kubeconfig(17, "insecure-skip-tls-verify", insecure.to_string()),
        kubeconfig(18, "is this machine itself", local),
    ]);
}

#[test]
fn c_name_host_or_port_that_is_taken() {
    let lab = joined();
    let named = ["create", "secret", "generic", "settings", "-n", NAMESPACE, "--from-literal=a=b"];
    lab.kubectl("hub", &named).unwrap();
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "theirs", "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80, "nodePort": 30070}]},
    });
    lab.apply("proxy-east", &theirs).unwrap();
    let taken: u16 = annotation("business-a", "node-port").parse().unwrap();
    let port = |cause: &str, cluster: &str, port: u16| of(34, cause, cluster, "proxy-east", json!({"nodePort": port}));
    let a = || lab.user_kubeconfig("business-a").unwrap();
    refused([
        of(20, "exists and is no cluster", "settings", "proxy-east", json!({})),
        // The kubeconfig's own Secret may have the name, too.
        of(20, "exists and is no cluster", "brought-1", "proxy-east", json!({})),
        of(21, "belongs to another cluster", "business-a", "proxy-east", json!({})),
        kubeconfig(22, "joined already, as business-a", a()).with("second", "proxy-east"),
        kubeconfig(24, "leads into region proxy-east already, for business-a", a()).with("elsewhere", "proxy-west"),
        port("node port 30070 is taken", "port-of-others", 30070),
        port(&format!("node port {taken} is taken"), "port-of-a-cluster", taken),
        port("outside the region's range", "port-outside", 31000),
    ]);
    lab.kubectl("hub", &["delete", "secret", "settings", "-n", NAMESPACE]).unwrap();
    lab.kubectl("proxy-east", &["delete", "service", "theirs"]).unwrap();
    through_gateway(lab, "business-a", "/version").unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn d_host_that_somebody_else_aliased() {
    let lab = joined();
    let aliases = ["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", "jsonpath={.spec.template.spec.hostAliases}"];
    let mut entries: Value = serde_json::from_str(&lab.kubectl("hub", &aliases).unwrap()).unwrap();
    entries.as_array_mut().unwrap().push(json!({"ip": "192.0.2.7", "hostnames": ["theirs.example"]}));
    set_aliases(lab, &entries);
    lab.set_address(Region::East, "theirs.example", &["10.80.1.32".parse().unwrap()]).unwrap();
    let text = Brought { server: "https://theirs.example:6443".into(), ..Brought::right() }.text();
    refused([kubeconfig(23, "that xregion did not make", text)]);
    entries.as_array_mut().unwrap().pop();
    set_aliases(lab, &entries);
}

#[test]
#[ignore = "make test-faults"]
fn d_host_by_which_a_cluster_is_reached_without_a_region() {
    let lab = joined();
    let direct = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {
            "name": "direct", "namespace": NAMESPACE,
            "labels": {"cluster.core.oam.dev/cluster-credential-type": "ServiceAccountToken"},
        },
        "stringData": {"endpoint": "https://direct.example:6443", "token": "t0ken"},
    });
    lab.apply("hub", &direct).unwrap();
    let at = |server: &str| Brought { server: server.into(), ..Brought::right() }.text();
    refused([kubeconfig(24, "by host direct.example the hub reaches cluster direct", at("https://direct.example:7443"))]);
    lab.kubectl("hub", &["delete", "secret", "direct", "-n", NAMESPACE]).unwrap();
}

fn set_aliases(lab: &Lab, entries: &Value) {
    let patch = json!({"spec": {"template": {"spec": {"hostAliases": entries}}}}).to_string();
    lab.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "--type=merge", "-p", &patch]).unwrap();
    lab.kubectl("hub", &["rollout", "status", "deployment", GATEWAY, "-n", NAMESPACE, "--timeout=120s"]).unwrap();
}

#[test]
fn e_upstream_that_is_not_what_the_kubeconfig_says() {
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
    lab.set_address(Region::East, "other.example", &["10.80.1.32".parse().unwrap()]).unwrap();
    lab.blackhole("business-c").unwrap();
    let at = |server: &str| Brought { server: server.into(), ..Brought::right() }.text();
    let user = |user: Value| Brought { user, ..Brought::right() }.text();
    let other = Brought { ca: Authority::new("other").unwrap().certificate().into(), ..Brought::right() }.text();
    let nobody = lab.authority("business-b").unwrap().client("nobody", None, Validity::Now).unwrap();
    let checked = std::panic::catch_unwind(|| {
        refused([
            kubeconfig(25, "has no DNS name that the hub could use", lab.user_kubeconfig("nameless").unwrap()),
            kubeconfig(40, "nowhere.example", at("https://nowhere.example")),
            kubeconfig(41, "169.254.169.254 is a link-local address", at("https://169.254.169.254")),
            kubeconfig(41, "an address of the proxy cluster itself", at("https://10.80.0.21:6443")),
            kubeconfig(41, "an address of the proxy cluster itself", at("https://10.101.0.1")),
            kubeconfig(42, "refuses connections", at("https://10.80.1.32:6444")),
            kubeconfig(43, "business-c.idc.example:6443 does not answer", lab.user_kubeconfig("business-c").unwrap())
                .with("silent", "proxy-west"),
            kubeconfig(45, "not signed by the kubeconfig's certificate authority", other),
            kubeconfig(46, "is not for other.example", at("https://other.example:6443")),
            kubeconfig(48, "(401)", user(json!({"token": "not-a-token-of-this-cluster"}))),
            kubeconfig(49, "(403)", user(certificate(&nobody))),
        ]);
    });
    lab.unblackhole("business-c").unwrap();
    checked.unwrap();
    lab.stop_cluster("nameless").unwrap();
}

/// The settings of region west, to be applied again.
fn settings_of_west(lab: &Lab) -> Value {
    let map = lab.kubectl("proxy-west", &["get", "configmap", "xregion-region", "-n", NAMESPACE, "-o", "json"]).unwrap();
    let mut map: Value = serde_json::from_str(&map).unwrap();
    map["metadata"] = json!({"name": "xregion-region", "namespace": NAMESPACE, "labels": map["metadata"]["labels"], "annotations": map["metadata"]["annotations"]});
    map
}

/// The same, with the hub entering by the nodes of a zone.
fn entered_in(map: &Value, zone: &str) -> Value {
    let mut map = map.clone();
    let mut settings: Value = serde_json::from_str(map["data"]["region.json"].as_str().unwrap()).unwrap();
    settings["nodes"]["selector"] = json!({"zone": zone});
    map["data"]["region.json"] = json!(settings.to_string());
    map
}

#[test]
fn f_region_without_a_proxy_or_without_nodes() {
    let lab = joined();
    let map = settings_of_west(lab);
    lab.kubectl("proxy-west", &["delete", "configmap", "xregion-region", "-n", NAMESPACE]).unwrap();
    refused([of(31, "region proxy-west has no proxy", "new", "proxy-west", json!({}))]);

    lab.apply("proxy-west", &entered_in(&map, "nowhere")).unwrap();
    refused([of(33, "no node of its proxy cluster has the labels", "new", "proxy-west", json!({}))]);
    lab.apply("proxy-west", &map).unwrap();
}

#[test]
fn g_region_that_the_addon_does_not_allow() {
    let lab = joined();
    let allow = |regions: &str| {
        lab.vela(&["addon", "upgrade", "xregion", "-y", &format!("regions={{{regions}}}")]).unwrap();
        eventually("the role to allow them", || {
            let names = ["get", "clusterrole", "xregion", "-o", "jsonpath={.rules[*].resourceNames}"];
            let names = lab.kubectl("hub", &names)?;
            anyhow::ensure!(
                names.contains("proxy-west") && names.contains("proxy-east") == regions.contains("proxy-east"),
                "{names}"
            );
            Ok(())
        });
    };
    allow("proxy-west");
    let checked = std::panic::catch_unwind(|| {
        refused([of(36, "does not let joins write to region proxy-east", "forbidden", "proxy-east", json!({}))]);
    });
    allow("proxy-east,proxy-west");
    checked.unwrap();
}

#[test]
#[ignore = "proxies take their time to end: make test-faults"]
fn h_region_without_a_ready_proxy() {
    let lab = joined();
    lab.kubectl("proxy-west", &["scale", "deployment", "xregion-proxy", "-n", NAMESPACE, "--replicas=0"]).unwrap();
    lab.kubectl(
        "proxy-west",
        &["wait", "pods", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy", "--for=delete", "--timeout=90s"],
    )
    .unwrap();
    refused([of(32, "region proxy-west: no proxy is ready", "new", "proxy-west", json!({}))]);
    lab.kubectl("proxy-west", &["scale", "deployment", "xregion-proxy", "-n", NAMESPACE, "--replicas=2"]).unwrap();
    lab.kubectl("proxy-west", &["rollout", "status", "deployment", "xregion-proxy", "-n", NAMESPACE, "--timeout=120s"]).unwrap();
}

#[test]
#[ignore = "a door is knocked at for ten seconds: make test-faults"]
fn i_ready_node_that_the_hub_does_not_reach() {
    let lab = joined();
    // It stays Ready: its cluster talks over the region. A proxy is on each of the two nodes.
    lab.cut_link("proxy-east-2", Bridge::Peer).unwrap();
    let checked = std::panic::catch_unwind(|| {
        refused([of(44, "node proxy-east-2 of the region can't be reached from the hub", "cut-off", "proxy-east", json!({}))]);
    });
    lab.mend_link("proxy-east-2", Bridge::Peer).unwrap();
    checked.unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn j_region_whose_nodes_are_not_ready() {
    let lab = joined();
    let map = settings_of_west(lab);
    // A node that has registered, and was not heard of again.
    let silent = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "silent", "labels": {"zone": "silent"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.80.0.250"}]},
    });
    lab.kubectl_with_input("proxy-west", &["create", "-f", "-"], &silent.to_string()).unwrap();
    lab.apply("proxy-west", &entered_in(&map, "silent")).unwrap();
    let checked = std::panic::catch_unwind(|| {
        refused([of(33, "region proxy-west: none of its nodes is ready (silent)", "new", "proxy-west", json!({}))]);
    });
    lab.apply("proxy-west", &map).unwrap();
    lab.kubectl("proxy-west", &["delete", "node", "silent"]).unwrap();
    checked.unwrap();
}
