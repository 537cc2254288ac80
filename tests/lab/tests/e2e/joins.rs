//! Joins as users do them: one step in an Application, on clusters of every form.

use serde_json::json;
use xregion_lab::site::{self, NAMESPACE};

use super::fixture::{Snapshot, identity, join, joined, lab, properties, regions, through_gateway};

fn annotation(cluster: &str, key: &str) -> String {
    let path = format!("jsonpath={{.metadata.annotations.xregion\\.oam\\.dev/{key}}}");
    lab().kubectl("hub", &["get", "secret", cluster, "-n", NAMESPACE, "-o", &path]).unwrap()
}

fn is_there(cluster: &str) {
    let seen = through_gateway(lab(), cluster, "/api/v1/namespaces/kube-system").unwrap();
    assert_eq!(seen["metadata"]["uid"].as_str().unwrap(), identity(lab(), cluster));
    let listed = lab().vela(&["cluster", "list"]).unwrap();
    assert!(listed.lines().any(|line| line.starts_with(cluster)), "{listed}");
}

#[test]
fn a_managed_cloud_s_cluster_is_joined_and_takes_a_workload() {
    let lab = joined();
    is_there("business-a");
    let host = "a1b2c3d4e5.gr7.ap-east-1.eks.example";
    assert_eq!(annotation("business-a", "region"), "proxy-east");
    assert_eq!(annotation("business-a", "upstream"), format!("{host}:443"));
    assert_eq!(annotation("business-a", "alias"), host);
    assert_eq!(annotation("business-a", "identity"), identity(lab, "business-a"));
    let endpoint =
        lab.kubectl("hub", &["get", "secret", "business-a", "-n", NAMESPACE, "-o", "jsonpath={.data.endpoint}"]).unwrap();
    let endpoint = lab.run("hub", &["sh", "-c", &format!("echo {endpoint} | base64 -d")]).unwrap().success().unwrap();
    assert_eq!(endpoint, format!("https://{host}:{}", annotation("business-a", "node-port")));

    lab.vela_up(&site::workload("hello", "business-a")).unwrap();
    lab.await_running("hello").unwrap();
    let ready = lab.kubectl("business-a", &["get", "deployment", "hello", "-o", "jsonpath={.status.readyReplicas}"]).unwrap();
    assert_eq!(ready, "1");
}

#[test]
fn b_step_tells_what_it_did_where_users_look() {
    let lab = joined();
    let status = lab.vela(&["status", "join-business-a"]).unwrap();
    assert!(status.contains("succeeded") && status.contains("joined: https://a1b2c3d4e5.gr7"), "{status}");
    // It follows for ever; coreutils' timeout ends it, with status 124.
    let follow = ["timeout", "--signal=INT", "10", "vela", "workflow", "logs", "join-business-a", "-n", "default", "-s", "join"];
    let log = lab.run(site::USER, &follow).unwrap().stdout;
    for stage in ["reading", "routing", "proving", "rolling", "joining"] {
        assert!(log.contains(stage), "{stage} is not in {log}");
    }
}

#[test]
fn c_second_join_changes_nothing_and_says_so() {
    let lab = joined();
    let before = Snapshot::take(lab, "again");
    let application = site::membership("again", &properties("business-a", "proxy-east", "business-a-kubeconfig", json!({})));
    lab.vela_up(&application).unwrap();
    let status = lab.await_running("again").unwrap();
    assert!(site::message(&status).contains("nothing to change"), "{}", site::message(&status));
    before.assert_unchanged(lab, "again");
    lab.vela_delete("again").unwrap();
}

#[test]
fn d_cluster_named_by_an_address_gets_an_alias_from_its_certificate() {
    let status = join(regions(), "business-b", "proxy-east", json!({"labels": {"tier": "idc"}}));
    assert!(site::message(&status).contains("business-b-master"), "{status}");
    is_there("business-b");
    assert_eq!(annotation("business-b", "alias"), "business-b-master");
    assert_eq!(annotation("business-b", "upstream"), "10.80.1.32:6443");
    let labels =
        lab().kubectl("hub", &["get", "secret", "business-b", "-n", NAMESPACE, "-o", "jsonpath={.metadata.labels.tier}"]).unwrap();
    assert_eq!(labels, "idc");
}

#[test]
fn e_other_region_s_cluster_is_joined_and_its_outputs_feed_a_later_step() {
    let lab = regions();
    lab.put_kubeconfig("business-c-kubeconfig", &lab.user_kubeconfig("business-c").unwrap()).unwrap();
    let mut application = site::membership(
        "join-business-c",
        &properties("business-c", "proxy-west", "business-c-kubeconfig", json!({"nodePort": 30042})),
    );
    let steps = application["spec"]["workflow"]["steps"].as_array_mut().unwrap();
    steps[0]["outputs"] =
        json!([{"name": "endpoint", "valueFrom": "output.endpoint"}, {"name": "alias", "valueFrom": "output.alias"}]);
    steps.push(json!({
        "name": "tell", "type": "print-message-in-status",
        "inputs": [{"from": "endpoint", "parameterKey": "message"}], "properties": {"message": ""},
    }));
    lab.vela_up(&application).unwrap();
    let status = lab.await_running("join-business-c").unwrap();
    let told = status["workflow"]["steps"][1]["message"].as_str().unwrap_or_default();
    assert_eq!(told, "https://business-c.idc.example:30042", "{}", site::message(&status));
    is_there("business-c");
}

#[test]
fn f_region_of_two_nodes_is_entered_by_both() {
    let lab = joined();
    let aliases = lab
        .kubectl("hub", &["get", "deployment", site::GATEWAY, "-n", NAMESPACE, "-o", "jsonpath={.spec.template.spec.hostAliases}"])
        .unwrap();
    let aliases: serde_json::Value = serde_json::from_str(&aliases).unwrap();
    let nodes: serde_json::Value =
        serde_json::from_str(&lab.kubectl("proxy-east", &["get", "nodes", "-o", "json"]).unwrap()).unwrap();
    let addresses = nodes["items"].as_array().unwrap().iter().map(|node| node["status"]["addresses"][0]["address"].clone());
    let mut count = 0;
    for address in addresses {
        let entry = aliases.as_array().unwrap().iter().find(|entry| entry["ip"] == address);
        let names = entry.unwrap_or_else(|| panic!("{address} is not in {aliases}"))["hostnames"].to_string();
        assert!(names.contains("a1b2c3d4e5.gr7.ap-east-1.eks.example"), "{names}");
        count += 1;
    }
    assert_eq!(count, 2);
}
