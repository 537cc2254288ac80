//! Joins that something else disturbs: API servers that restart, the gateway's pod deleted, the deadline, a workflow started again.
//! Whatever comes of the join, the hub works and the same join again ends as if nothing had happened.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use xregion_lab::Lab;
use xregion_lab::site::{self, GATEWAY, NAMESPACE};

use super::fixture::{Snapshot, await_stage, bring, eventually, fresh, is_there, joined, properties, through_gateway};
use super::laptop::run;
use super::leaves::is_gone;

/// Joins a fresh cluster, does something once its step tells `stage`, and sees the join to its end, however that is. Then joins again,
/// undisturbed, and lets it leave.
fn join_disturbed(host: u8, stage: &str, more: Value, disturb: impl FnOnce(&Lab)) -> Value {
    let lab = joined();
    let spec = fresh(host);
    bring(&spec);
    lab.vela_up(&site::membership("disturbed", &properties(&spec.name, "proxy-east", "fresh", more))).unwrap();
    await_stage("disturbed", stage);
    disturb(lab);
    let status = lab.await_end("disturbed").unwrap();
    for cluster in ["proxy-west", "business-a"] {
        eventually(&format!("{cluster} answering"), || through_gateway(lab, cluster, "/version"));
    }
    lab.vela_delete("disturbed").unwrap();
    lab.vela_up(&site::membership("again", &properties(&spec.name, "proxy-east", "fresh", json!({})))).unwrap();
    lab.await_running("again").unwrap();
    is_there(&spec.name);
    lab.vela_delete("again").unwrap();
    let left = run(&["leave", &spec.name]);
    assert!(left.status.success(), "{left:?}");
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
    status
}

#[test]
#[ignore = "make test-faults"]
fn a_deadline_that_passes_is_told_and_everything_taken_back() {
    let lab = joined();
    let spec = fresh(170);
    bring(&spec);
    let before = Snapshot::take(lab, "hurried");
    let join = properties(&spec.name, "proxy-east", "fresh", json!({"timeout": "3s"}));
    lab.vela_up(&site::membership("hurried", &join)).unwrap();
    let status = lab.await_end("hurried").unwrap();
    assert!(site::message(&status).contains("the time given (3 s) was over while "), "{}", site::message(&status));
    before.await_taken_back(lab, "hurried");
    lab.vela_delete("hurried").unwrap();
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn b_gateway_s_pod_is_deleted() {
    join_disturbed(171, "leading", json!({}), |lab| {
        let labels = lab.kubectl("hub", &["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", "json"]).unwrap();
        let labels: Value = serde_json::from_str(&labels).unwrap();
        let selector: Vec<_> = labels["spec"]["selector"]["matchLabels"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap()))
            .collect();
        lab.kubectl("hub", &["delete", "pods", "-n", NAMESPACE, "-l", &selector.join(","), "--wait=false"]).unwrap();
    });
}

#[test]
#[ignore = "make test-faults"]
fn c_proxy_cluster_s_api_server_restarts() {
    join_disturbed(172, "starting Job", json!({}), |lab| {
        lab.stop_api("proxy-east").unwrap();
        lab.start_api("proxy-east").unwrap();
    });
}

#[test]
#[ignore = "make test-faults"]
fn d_hub_s_api_server_restarts() {
    join_disturbed(173, "leading", json!({}), |lab| {
        lab.stop_api("hub").unwrap();
        lab.start_api("hub").unwrap();
        eventually("the hub answering", || lab.vela(&["cluster", "list"]));
    });
}

#[test]
#[ignore = "make test-faults"]
fn e_workflow_is_started_again_in_the_middle() {
    let status = join_disturbed(174, "leading", json!({}), |lab| {
        lab.vela(&["workflow", "restart", "disturbed", "-n", "default"]).unwrap();
    });
    assert_eq!(status["status"], "running", "{}", site::message(&status));
}

#[test]
#[ignore = "make test-faults"]
fn f_job_s_pod_is_evicted() {
    let status = join_disturbed(175, "leading", json!({}), |lab| {
        let running =
            ["-l", "xregion.oam.dev/session", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].metadata.name}"];
        let pod = lab.kubectl("hub", &[&["get", "pods", "-n", NAMESPACE], &running[..]].concat()).unwrap();
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}});
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
        lab.kubectl_with_input("hub", &["create", "--raw", &path, "-f", "-"], &eviction.to_string()).unwrap();
    });
    assert_eq!(status["status"], "workflowFailed", "{}", site::message(&status));
}

#[test]
#[ignore = "make test-faults"]
fn g_somebody_else_writes_the_same_objects_all_the_while() {
    let writing = AtomicBool::new(true);
    let status = std::thread::scope(|scope| {
        let writer = |cluster: &'static str, objects: &'static str, selector: &'static str| {
            let writing = &writing;
            scope.spawn(move || {
                let (lab, mut written) = (joined(), 0);
                while writing.load(Ordering::Relaxed) {
                    let note = format!("theirs={written}");
                    let which = if selector.is_empty() { vec![objects] } else { vec![objects, "-l", selector] };
                    lab.kubectl(cluster, &[&["annotate", "-n", NAMESPACE, "--overwrite"], &which[..], &[&note]].concat()).unwrap();
                    written += 1;
                }
                written
            })
        };
        let writers = [
            writer("hub", "deployment/kubevela-cluster-gateway", ""),
            writer("proxy-east", "service/cross-region-nginx-proxy-svc", ""),
            writer("proxy-east", "configmaps", "xregion.oam.dev/kind=route"),
        ];
        let status = std::panic::catch_unwind(|| join_disturbed(178, "starting Job", json!({}), |_| {}));
        writing.store(false, Ordering::Relaxed);
        for writer in writers {
            assert!(writer.join().unwrap() > 20, "too few writes to be in the way");
        }
        status.unwrap()
    });
    assert_eq!(status["status"], "running", "{}", site::message(&status));
}
