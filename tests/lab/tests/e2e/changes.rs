//! Joining again: what is new is changed in place, proven first, and the old way removed last.

use std::sync::OnceLock;

use serde_json::{Value, json};
use xregion_lab::load::Load;
use xregion_lab::site::{self, GATEWAY, NAMESPACE};
use xregion_lab::{BusinessSpec, Lab, Region};

use super::fixture::{
    Snapshot, Watch, annotation, bring, eventually, fresh, is_there, join, join_all, joined, lab, properties, start,
    through_gateway,
};
use super::leaves::is_gone;

fn join_again(name: &str, region: &str, more: Value) -> String {
    lab().vela_up(&site::membership("changing", &properties(name, region, "fresh", more))).unwrap();
    let status = lab().await_running("changing").unwrap();
    lab().vela_delete("changing").unwrap();
    site::message(&status)
}

/// Joins the clusters that change in these tests, and gives one: 140 has a second name, 141 is in both regions.
fn about_to_change(host: u8) -> BusinessSpec {
    static JOINED: OnceLock<[BusinessSpec; 3]> = OnceLock::new();
    let specs = JOINED.get_or_init(|| {
        let mut specs = [140, 141, 142].map(fresh);
        specs[0].names.push("renamed.idc.example".to_owned());
        specs[1].in_both_regions = true;
        join_all(&[(&specs[0], json!({})), (&specs[1], json!({"nodePort": 30077})), (&specs[2], json!({}))]);
        specs
    });
    specs.iter().find(|spec| spec.host == host).unwrap().clone()
}

/// Brings a kubeconfig of a cluster for another server.
fn bring_as(cluster: &str, server: &str) {
    let text = lab().user_kubeconfig(cluster).unwrap();
    let changed = text.replace(&format!("https://{cluster}.idc.example"), server);
    assert_ne!(changed, text);
    lab().put_kubeconfig("fresh", &changed).unwrap();
}

pub fn routes(lab: &Lab, proxy: &str, cluster: &str) -> Vec<String> {
    let selector = format!("xregion.oam.dev/cluster={cluster}");
    let names = lab.kubectl(proxy, &["get", "configmaps", "-n", NAMESPACE, "-l", &selector, "-o", "name"]).unwrap();
    names.lines().map(str::to_owned).collect()
}

/// UID and generation of a workload's Deployment, which tell whether it was made anew or changed.
fn workload(lab: &Lab, cluster: &str, name: &str) -> String {
    lab.kubectl(cluster, &["get", "deployment", name, "-o", "jsonpath={.metadata.uid} {.metadata.generation}"]).unwrap()
}

#[test]
#[ignore = "make test-faults"]
fn a_changed_host_takes_over_without_a_failed_request_even_to_the_cluster_itself() {
    let lab = joined();
    let spec = about_to_change(140);
    let before = annotation(&spec.name, "node-port");
    lab.set_address(Region::East, "renamed.idc.example", &[lab.cluster(&spec.name).unwrap().address]).unwrap();

    bring_as(&spec.name, "https://renamed.idc.example");
    let load = Load::start(lab, &[&spec.name, "proxy-west"]).unwrap();
    let message = join_again(&spec.name, "proxy-east", json!({}));
    let outcome = load.stop().unwrap();
    assert!(message.contains("joined: https://renamed.idc.example:"), "{message}");
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    is_there(&spec.name);
    assert_eq!(annotation(&spec.name, "alias"), "renamed.idc.example");
    assert_ne!(annotation(&spec.name, "node-port"), before);
    assert_eq!(routes(lab, "proxy-east", &spec.name).len(), 1);
    let aliases = lab.kubectl("hub", &["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", "json"]).unwrap();
    assert!(!aliases.contains(&format!("{}.idc.example", spec.name)), "the old name is gone");
    assert!(super::laptop::run(&["leave", &spec.name]).status.success());
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
fn b_labels_and_credentials_change_in_place_and_deployed_resources_stay_known() {
    let lab = joined();
    lab.vela_up(&site::workload("kept", "business-a")).unwrap();
    lab.await_running("kept").unwrap();
    let before = workload(lab, "business-a", "kept");
    let applied = lab.application("kept").unwrap()["status"]["appliedResources"].clone();
    let status = join(lab, "business-a", "proxy-east", json!({"labels": {"tier": "gold"}}));
    assert!(site::message(&status).contains("joined: "), "{status}");
    let label = ["get", "secret", "business-a", "-n", NAMESPACE, "-o", "jsonpath={.metadata.labels.tier}"];
    assert_eq!(lab.kubectl("hub", &label).unwrap(), "gold");
    is_there("business-a");
    assert_eq!(workload(lab, "business-a", "kept"), before);
    assert_eq!(lab.application("kept").unwrap()["status"]["appliedResources"], applied);
    // Known still: deleting the Application deletes what it deployed.
    lab.vela_delete("kept").unwrap();
    let left = lab.kubectl("business-a", &["get", "deployment", "kept", "--ignore-not-found", "-o", "name"]).unwrap();
    assert_eq!(left, "");
}

#[test]
#[ignore = "make test-faults"]
fn c_cluster_moves_to_another_region() {
    let lab = joined();
    let spec = about_to_change(141);
    let host = format!("{}.idc.example", spec.name);
    lab.set_address(Region::West, &host, &["10.80.2.141".parse().unwrap()]).unwrap();
    lab.put_kubeconfig("fresh", &lab.user_kubeconfig(&spec.name).unwrap()).unwrap();
    let load = Load::start(lab, &[&spec.name, "proxy-west"]).unwrap();
    let message = join_again(&spec.name, "proxy-west", json!({}));
    let outcome = load.stop().unwrap();
    assert!(message.contains(&format!("joined: https://{host}:30077")), "the node port is free there, too: {message}");
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    is_there(&spec.name);
    assert_eq!(annotation(&spec.name, "region"), "proxy-west");
    assert!(routes(lab, "proxy-east", &spec.name).is_empty());
    let left = lab.kubectl("hub", &["get", "configmaps", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=leaving", "-o", "name"]);
    assert_eq!(left.unwrap(), "");
}

#[test]
#[ignore = "make test-faults"]
fn d_another_cluster_takes_over_a_name_only_when_told_to() {
    let lab = joined();
    let (one, other) = (about_to_change(142), fresh(143));
    bring(&other);
    lab.vela_up(&site::membership("refused", &properties(&one.name, "proxy-east", "fresh", json!({})))).unwrap();
    let refused = site::message(&lab.await_end("refused").unwrap());
    assert!(refused.contains("belongs to another cluster") && refused.contains("replace"), "{refused}");
    lab.vela_delete("refused").unwrap();
    is_there(&one.name);

    let message = join_again(&one.name, "proxy-east", json!({"replace": true}));
    assert!(message.contains(&format!("joined: https://{}.idc.example", other.name)), "{message}");
    assert_eq!(annotation(&one.name, "identity"), super::fixture::identity(lab, &other.name));
    assert_eq!(routes(lab, "proxy-east", &one.name).len(), 1);
    lab.stop_cluster(&one.name).unwrap();
}

#[test]
fn e_list_of_clusters_is_joined_by_one_rollout_and_a_bad_one_holds_no_other_back() {
    let lab = joined();
    let specs: Vec<_> = (144..148).map(fresh).collect();
    let mut clusters = Vec::new();
    for spec in &specs {
        clusters.push(json!({"cluster": spec.name, "kubeconfig": {"secret": start(spec)}}));
    }
    clusters.insert(1, json!({"cluster": "broken", "kubeconfig": {"secret": "nowhere"}}));
    let before = lab.gateway_revision().unwrap();
    let load = Load::start(lab, &["proxy-west", "business-a"]).unwrap();
    let list = json!({"region": "proxy-east", "labels": {"tier": "batch"}, "clusters": clusters});
    lab.vela_up(&site::membership("batch", &list)).unwrap();
    let status = lab.await_end("batch").unwrap();
    let outcome = load.stop().unwrap();
    assert_eq!(status["status"], "workflowFailed");
    let message = site::message(&status);
    assert!(message.contains("1 of 5 clusters were not joined: broken: Secret vela-system/nowhere does not exist"), "{message}");
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    assert_eq!(lab.gateway_revision().unwrap() - before, 1, "one rollout");
    for spec in &specs {
        is_there(&spec.name);
    }
    lab.vela_delete("batch").unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn f_plan_says_what_a_join_and_a_leave_would_change_and_changes_nothing() {
    let lab = joined();
    let spec = fresh(149);
    bring(&spec);
    let host = format!("{}.idc.example", spec.name);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lab.user_kubeconfig(&spec.name).unwrap()).unwrap();
    let program = super::laptop::xregion();
    let plan = |args: &[&str]| {
        let output = lab.run("laptop", &[&[program.as_str(), "plan"], args].concat()).unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let before = Snapshot::take(lab, "planned");
    let join = ["join", &spec.name, "--region=proxy-east", "--kubeconfig", file.path().to_str().unwrap()];
    let text = plan(&join);
    for line in [
        format!("+ region proxy-east: ConfigMap vela-system/xregion-route-{}-", spec.name),
        "+ region proxy-east: Service vela-system/cross-region-nginx-proxy-svc, port ".into(),
        "~ hub: Services in xregion-system, to region proxy-east".into(),
        "~ hub: Deployment kubevela-cluster-gateway, hostAliases (rolls the gateway".into(),
        format!("    {host}: {}", lab.entry_addresses("proxy-east").unwrap().join(", ")),
        format!("+ hub: Secret vela-system/{} (vela cluster join)", spec.name),
        format!("    endpoint: https://{host}:300"),
    ] {
        assert!(text.lines().any(|found| found.starts_with(&line)), "{line:?} is not in {text}");
    }
    let json: Value = serde_json::from_str(&plan(&[&["--output=json"], &join[..]].concat())).unwrap();
    assert_eq!(json["changes"].as_array().unwrap().len(), 5, "{json}");
    // With the gateway named that is found otherwise.
    let named = properties(&spec.name, "proxy-east", "fresh", json!({"dryRun": true, "gateway": GATEWAY}));
    lab.vela_up(&site::membership("planned", &named)).unwrap();
    let status = lab.await_running("planned").unwrap();
    assert!(site::message(&status).contains("+ hub: Secret vela-system/"), "{}", site::message(&status));
    lab.vela_delete("planned").unwrap();
    before.assert_unchanged(lab, "planned");

    // Of one that is joined.
    std::fs::write(file.path(), lab.user_kubeconfig("business-a").unwrap()).unwrap();
    let again = ["join", "business-a", "--region=proxy-east", "--kubeconfig", file.path().to_str().unwrap()];
    assert_eq!(plan(&again).trim(), "nothing would change");
    let text = plan(&["leave", "business-a"]);
    for line in
        ["- hub: Secret vela-system/", "- region proxy-east: Service ", "- region proxy-east: ConfigMap ", "~ hub: Deployment "]
    {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line:?} is not in {text}");
    }
    assert_eq!(plan(&["leave", &spec.name]).trim(), "nothing would change");
    before.assert_unchanged(lab, "");
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn g_two_clusters_of_one_host_name_share_an_alias_that_goes_with_the_last() {
    let lab = joined();
    // As two kubeadm clusters whose certificates have the same name of a node, and whose kubeconfigs an address.
    let specs = [156, 157].map(|host| BusinessSpec {
        server: None,
        names: vec!["shared-master".into(), format!("10.80.1.{host}")],
        port: 6443,
        ..fresh(host)
    });
    join_all(&[(&specs[0], json!({})), (&specs[1], json!({}))]);
    specs.iter().for_each(|spec| assert_eq!(annotation(&spec.name, "alias"), "shared-master"));
    let aliases =
        || lab.kubectl("hub", &["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", "jsonpath={.spec.template.spec.hostAliases}"]);
    assert_ne!(annotation(&specs[0].name, "node-port"), annotation(&specs[1].name, "node-port"));
    // One that is open goes, although the name stays.
    let leave = |name: &str| assert!(super::laptop::run(&["leave", name, "--cut"]).status.success());
    let path = format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{}/proxy{}", specs[0].name, Watch::NAMESPACES);
    let watch = Watch::start(lab.command("hub", &["kubectl", "get", "--raw", &path]).unwrap());
    let before = lab.gateway_revision().unwrap();
    leave(&specs[0].name);
    assert_eq!(lab.gateway_revision().unwrap() - before, 1, "one rollout");
    watch.ended();
    is_there(&specs[1].name);
    leave(&specs[1].name);
    assert!(!aliases().unwrap().contains("shared-master"));
    specs.iter().for_each(|spec| lab.stop_cluster(&spec.name).unwrap());
}

/// The article's way for one cluster of region west, as a person types it: nginx, its Service, a host alias, a rewritten kubeconfig.
fn join_by_hand(lab: &Lab, cluster: &str, host: &str) {
    let conf = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nerror_log /dev/stderr notice;\npid /dev/shm/nginx.pid;\nevents {{}}\n\
         stream {{\n    server {{\n        listen 8000;\n        proxy_pass {host}:443;\n    }}\n}}\n"
    );
    let labels = json!({"app": "by-hand"});
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    let items = [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("by-hand"), "data": {"nginx.conf": conf}}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("by-hand"),
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "containers": [{"name": "nginx", "image": site::NGINX, "volumeMounts": [
                    {"name": "main", "mountPath": "/etc/nginx/nginx.conf", "subPath": "nginx.conf"},
                ]}],
                "volumes": [{"name": "main", "configMap": {"name": "by-hand"}}],
            }}},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("cross-region-nginx-proxy-svc"),
            "spec": {"type": "NodePort", "selector": labels, "ports": [{"name": cluster, "port": 8000, "nodePort": 30000}]},
        }),
    ];
    lab.apply("proxy-west", &json!({"apiVersion": "v1", "kind": "List", "items": items})).unwrap();
    lab.kubectl("proxy-west", &["rollout", "status", "deployment", "by-hand", "-n", NAMESPACE, "--timeout=60s"]).unwrap();
    let ip = lab.cluster("proxy-west").unwrap().nodes[0].internal_ip;
    let alias = json!({"spec": {"template": {"spec": {"hostAliases": [{"ip": ip, "hostnames": [host]}]}}}}).to_string();
    lab.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "-p", &alias]).unwrap();
    lab.kubectl("hub", &["rollout", "status", "deployment", GATEWAY, "-n", NAMESPACE, "--timeout=120s"]).unwrap();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let text = lab.user_kubeconfig(cluster).unwrap().replace(&format!("https://{host}"), &format!("https://{host}:30000"));
    std::fs::write(file.path(), text).unwrap();
    let join = ["vela", "cluster", "join", file.path().to_str().unwrap(), "--name", cluster, "-y"];
    eventually("vela cluster join", || lab.run("hub", &join)?.success());
    eventually("the cluster joined by hand answering", || through_gateway(lab, cluster, "/version"));
}

#[test]
#[ignore = "make test-faults"]
fn h_cluster_joined_by_hand_is_taken_over_without_a_failed_request() {
    let lab = joined();
    let mut spec = fresh(158);
    spec.region = Region::West;
    bring(&spec);
    let host = format!("{}.idc.example", spec.name);
    join_by_hand(lab, &spec.name, &host);

    lab.vela_up(&site::membership("refused", &properties(&spec.name, "proxy-west", "fresh", json!({})))).unwrap();
    let refused = site::message(&lab.await_end("refused").unwrap());
    assert!(refused.contains("that xregion did not make") && refused.contains("adopt"), "{refused}");
    lab.vela_delete("refused").unwrap();

    let load = Load::start(lab, &[&spec.name, "proxy-west"]).unwrap();
    join_again(&spec.name, "proxy-west", json!({"adopt": true}));
    // Its part is played.
    lab.kubectl("proxy-west", &["delete", "service,deployment,configmap", "-n", NAMESPACE, "-l", "app=by-hand"]).unwrap();
    let again = join_again(&spec.name, "proxy-west", json!({"timeout": "5m"}));
    let outcome = load.stop().unwrap();
    assert!(again.contains("nothing to change"), "{again}");
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    assert_eq!(annotation(&spec.name, "region"), "proxy-west");
    is_there(&spec.name);
    assert!(super::laptop::run(&["leave", &spec.name]).status.success());
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}
