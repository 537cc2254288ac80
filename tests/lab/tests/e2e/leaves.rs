//! Leaves: by the step and from a shell, with everything alive, with the cluster or its region dead, and after a death in the middle.

use std::sync::OnceLock;

use serde_json::{Value, json};
use xregion_lab::load::Load;
use xregion_lab::site::{self, GATEWAY, NAMESPACE};
use xregion_lab::{BusinessSpec, Lab, Region};

use super::fixture::{Snapshot, await_stage, bring, eventually, fresh, is_there, join_all, joined, kill_run, lab, properties};
use super::laptop::xregion;

pub fn leaving(name: &str, cluster: &str, more: &Value) -> Value {
    let mut properties = more.clone();
    properties["cluster"] = json!(cluster);
    json!({
        "apiVersion": "core.oam.dev/v1beta1", "kind": "Application", "metadata": {"name": name, "namespace": "default"},
        "spec": {"components": [], "workflow": {"steps": [{"name": "leave", "type": "xregion-leave", "properties": properties}]}},
    })
}

/// Lets a cluster leave by an Application, which is removed again; gives the step's message.
pub fn leave(lab: &Lab, cluster: &str) -> String {
    lab.vela_up(&leaving("leaving", cluster, &json!({}))).unwrap();
    let status = lab.await_running("leaving").unwrap();
    lab.vela_delete("leaving").unwrap();
    site::message(&status)
}

fn leave_from_laptop(args: &[&str]) -> xregion_lab::Output {
    lab().run("laptop", &[&[xregion().as_str(), "leave"], args].concat()).unwrap()
}

/// The clusters that leave in these tests, by their hosts; `DEAD_REGION` is one of region west.
const LEAVING: [u8; 5] = [130, 131, DEAD_REGION, 133, 135];
const DEAD_REGION: u8 = 132;

/// Joins all of them, and gives the name of one.
fn about_to_leave(host: u8) -> String {
    static JOINED: OnceLock<()> = OnceLock::new();
    JOINED.get_or_init(|| {
        let specs = LEAVING
            .map(|host| BusinessSpec { region: if host == DEAD_REGION { Region::West } else { Region::East }, ..fresh(host) });
        join_all(&specs.iter().map(|spec| (spec, json!({}))).collect::<Vec<_>>());
    });
    fresh(host).name
}

/// Checks that neither hub nor region has anything of a cluster.
pub fn is_gone(cluster: &str) {
    let lab = lab();
    let get = |place: &str, what: &[&str]| lab.kubectl(place, &[&["get", "-n", NAMESPACE], what].concat()).unwrap();
    assert_eq!(get("hub", &["secret", cluster, "--ignore-not-found", "-o", "name"]), "");
    assert!(!get("hub", &["deployment", GATEWAY, "-o", "json"]).contains(cluster));
    assert_eq!(get("hub", &["configmaps", "-l", &format!("xregion.oam.dev/cluster={cluster}"), "-o", "name"]), "");
    for proxy in ["proxy-east", "proxy-west"] {
        assert_eq!(get(proxy, &["configmaps", "-l", &format!("xregion.oam.dev/cluster={cluster}"), "-o", "name"]), "");
        let service = get(proxy, &["service", "cross-region-nginx-proxy-svc", "--ignore-not-found", "-o", "json"]);
        assert!(!service.contains(&format!("\"{cluster}-")), "{service}");
    }
}

#[test]
fn a_cluster_that_applications_use_does_not_leave_and_they_are_named() {
    let lab = joined();
    lab.vela_up(&site::workload("resident", "business-a")).unwrap();
    lab.await_running("resident").unwrap();
    let before = Snapshot::take(lab, "leaving");
    lab.vela_up(&leaving("leaving", "business-a", &json!({}))).unwrap();
    let status = lab.await_end("leaving").unwrap();
    assert_eq!(status["status"], "workflowFailed");
    let message = site::message(&status);
    assert!(message.contains("still have resources in cluster business-a") && message.contains("default/resident"), "{message}");
    before.assert_unchanged(lab, "leaving");
    lab.vela_delete("leaving").unwrap();
    let output = leave_from_laptop(&["business-a"]);
    assert_eq!(output.status.code(), Some(27), "{output:?}");
    before.assert_unchanged(lab, "leaving");
    lab.vela_delete("resident").unwrap();
}

#[test]
fn b_cluster_leaves_without_a_trace_and_without_a_failed_request_elsewhere() {
    let name = about_to_leave(130);
    let load = Load::start(joined(), &["proxy-west", "business-a"]).unwrap();
    let message = leave(lab(), &name);
    let outcome = load.stop().unwrap();
    assert!(
        message.contains("it is detached, the gateway forgot") && message.contains("region proxy-east has nothing"),
        "{message}"
    );
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    is_gone(&name);
    // Again, and from a shell.
    let output = leave_from_laptop(&[&name]);
    assert!(output.status.success() && output.stdout.contains("nothing to do"), "{output:?}");
    lab().stop_cluster(&name).unwrap();
}

#[test]
fn c_dead_cluster_leaves() {
    let name = about_to_leave(131);
    lab().stop_api(&name).unwrap();
    let output = leave_from_laptop(&[&name]);
    assert!(output.status.success(), "{output:?}");
    is_gone(&name);
    lab().stop_cluster(&name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn d_cluster_of_a_dead_region_leaves_the_hub_and_the_region_when_that_is_back() {
    let lab = joined();
    let name = about_to_leave(DEAD_REGION);
    lab.stop_api("proxy-west").unwrap();
    let first = std::panic::catch_unwind(|| {
        let output = leave_from_laptop(&[&name]);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.contains("its route in region proxy-west stays"), "{output:?}");
        let secret = lab.kubectl("hub", &["get", "secret", &name, "-n", NAMESPACE, "--ignore-not-found", "-o", "name"]).unwrap();
        assert_eq!(secret, "");
    });
    lab.start_api("proxy-west").unwrap();
    first.unwrap();
    eventually("proxy-west answering", || super::fixture::through_gateway(lab, "proxy-west", "/version").map(drop));
    let output = leave_from_laptop(&[&name]);
    assert!(output.status.success() && output.stdout.contains("region proxy-west has nothing of it any more"), "{output:?}");
    is_gone(&name);
    lab.stop_cluster(&name).unwrap();
}

#[test]
fn e_leave_that_was_killed_is_finished_by_the_next_one() {
    let lab = joined();
    let name = about_to_leave(133);
    lab.vela_up(&leaving("leaving", &name, &json!({}))).unwrap();
    await_stage("leaving", "taking ");
    kill_run(&name);
    assert_eq!(lab.await_end("leaving").unwrap()["status"], "workflowFailed");
    lab.vela_delete("leaving").unwrap();
    leave(lab, &name);
    is_gone(&name);
    lab.stop_cluster(&name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn f_what_a_killed_join_left_is_removed_by_a_leave() {
    let lab = joined();
    let spec = fresh(134);
    bring(&spec);
    lab.vela_up(&site::membership("killed", &properties(&spec.name, "proxy-east", "fresh", json!({})))).unwrap();
    await_stage("killed", "leading");
    kill_run(&spec.name);
    assert_eq!(lab.await_end("killed").unwrap()["status"], "workflowFailed");
    lab.vela_delete("killed").unwrap();
    let output = leave_from_laptop(&[&spec.name]);
    assert!(output.status.success() && output.stdout.contains("region proxy-east has nothing of it any more"), "{output:?}");
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
fn g_cluster_that_was_joined_directly_is_not_xregion_s_to_let_go() {
    let before = Snapshot::take(joined(), "");
    for args in [&["proxy-west"][..], &["proxy-west", "--region=proxy-east"]] {
        let output = leave_from_laptop(args);
        assert_eq!(output.status.code(), Some(28), "{output:?}");
        assert!(output.stderr.contains("vela cluster detach proxy-west"), "{output:?}");
    }
    before.assert_unchanged(lab(), "");
}

#[test]
#[ignore = "make test-faults"]
fn h_leave_of_a_cluster_in_use_can_be_forced() {
    let lab = joined();
    let name = about_to_leave(135);
    lab.vela_up(&site::settings("settings", &name)).unwrap();
    lab.await_running("settings").unwrap();
    let output = leave_from_laptop(&[&name]);
    assert_eq!(output.status.code(), Some(27), "{output:?}");
    lab.vela_up(&leaving("leaving", &name, &json!({"force": true, "timeout": "5m"}))).unwrap();
    lab.await_running("leaving").unwrap();
    lab.vela_delete("leaving").unwrap();
    is_gone(&name);
    // It stays where it was deployed, and KubeVela doesn't wait for it.
    let kept = lab.kubectl(&name, &["get", "configmap", "settings", "-n", "default", "-o", "name"]).unwrap();
    assert_eq!(kept.trim(), "configmap/settings");
    lab.vela_delete("settings").unwrap();
    lab.stop_cluster(&name).unwrap();
    is_there("business-a");
}

#[test]
fn i_region_that_carries_clusters_is_not_removed() {
    let lab = joined();
    let output = lab.run(site::USER, &["vela", "delete", "region-proxy-east", "-n", "default", "-y", "--wait"]).unwrap();
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains("region proxy-east carries cluster ") && said.contains("let it leave first"), "{output:?}");
    is_there("business-a");
    // Only that one, and not against who knows better.
    let elsewhere = {
        let name = "region-nowhere";
        let object = json!({
            "apiVersion": "core.oam.dev/v1beta1", "kind": "Application", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "components": [{"name": name, "type": "xregion-proxy", "properties": {}}],
                "policies": [{"name": "place", "type": "topology", "properties": {"clusters": ["proxy-north"]}}],
                // It is never carried out.
                "workflow": {"steps": [{"name": "wait", "type": "suspend"}]},
            },
        });
        lab.apply("hub", &object).unwrap();
        lab.kubectl("hub", &["delete", "application", name])
    };
    elsewhere.unwrap();
    let region = ["application", "region-proxy-east"];
    lab.kubectl("hub", &[&["annotate"], &region[..], &["xregion.oam.dev/remove=true"]].concat()).unwrap();
    lab.kubectl("hub", &[&["delete"], &region[..], &["--dry-run=server"]].concat()).unwrap();
    lab.kubectl("hub", &[&["annotate"], &region[..], &["xregion.oam.dev/remove-"]].concat()).unwrap();
    lab.kubectl("hub", &[&["delete"], &region[..], &["--dry-run=server"]].concat()).unwrap_err();
}
