//! Members: clusters that a component declares are joined while it is there, follow it and their kubeconfig, and leave with it.

use serde_json::{Value, json};
use xregion_lab::site::{self, NAMESPACE};
use xregion_lab::{BusinessSpec, wait};

use super::fixture::{
    CONTROLLER, CONTROLLER_PODS, Controller, Duration, annotation, eventually, fresh, identity, is_there, joined, lab, secret,
    start, through_gateway,
};
use super::leaves::is_gone;

fn properties(spec: &BusinessSpec, more: &Value) -> Value {
    let mut properties = json!({"region": "proxy-east", "kubeconfig": {"secret": secret(spec)}});
    properties.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    properties
}

/// Declares a cluster, by an Application of its name.
fn declare(spec: &BusinessSpec, more: &Value) {
    lab().vela_up(&site::member(&spec.name, &properties(spec, more))).unwrap();
}

/// The member's ConfigMap that an Application made, if it is there.
fn member(application: &str) -> anyhow::Result<Option<Value>> {
    let label = format!("xregion.oam.dev/kind=member,app.oam.dev/name={application}");
    let list = lab().kubectl("hub", &["get", "configmaps", "-n", NAMESPACE, "-l", &label, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().and_then(|items| items.first().cloned()))
}

/// Waits until a member is told to stand so, with a message that says this.
fn await_told(application: &str, state: &str, message: &str) {
    eventually(&format!("{application} being {state}: {message}"), || {
        let data = member(application)?.map(|mut map| map["data"].take()).unwrap_or_default();
        let told = data["message"].as_str().unwrap_or_default();
        anyhow::ensure!(data["state"] == state && told.contains(message) && data["seen"] == data["parameters"], "{data}");
        Ok(())
    });
}

fn label(cluster: &str, key: &str) -> String {
    let path = format!("jsonpath={{.metadata.labels.{key}}}");
    lab().kubectl("hub", &["get", "secret", cluster, "-n", NAMESPACE, "-o", &path]).unwrap()
}

/// Deletes an Application without waiting for it.
fn begin_to_delete(application: &str) {
    lab().kubectl("hub", &["delete", "application", application, "-n", "default", "--wait=false"]).unwrap();
}

/// Waits until neither the Application nor its member nor anything of the cluster is there. A controller that died may have left two
/// Leases that have to run out, one after the other.
fn await_end_of(cluster: &str) {
    let end = wait::until(&format!("the end of {cluster}"), Duration::from_secs(150), || {
        anyhow::ensure!(member(cluster)?.is_none(), "its member is there");
        let found = ["get", "application", cluster, "-n", "default", "--ignore-not-found", "-o", "name"];
        let found = lab().kubectl("hub", &found)?;
        anyhow::ensure!(found.is_empty(), "{found} is there");
        Ok(())
    });
    end.unwrap();
    is_gone(cluster);
}

/// The end of a test: its clusters, whose Applications are being deleted, have left while the controller still runs.
fn end(controller: Controller, specs: &[&BusinessSpec]) {
    specs.iter().for_each(|spec| await_end_of(&spec.name));
    drop(controller);
    specs.iter().for_each(|spec| lab().stop_cluster(&spec.name).unwrap());
}

#[test]
fn a_cluster_is_joined_as_declared_follows_and_leaves_when_nothing_uses_it() {
    let lab = joined();
    let spec = fresh(181);
    start(&spec);
    let controller = Controller::enable();
    declare(&spec, &json!({"labels": {"tier": "one"}}));
    let status = lab.await_running(&spec.name).unwrap();
    let service = &status["services"][0];
    let message = service["message"].as_str().unwrap();
    let port = annotation(&spec.name, "node-port");
    assert!(message.starts_with(&format!("joined through proxy-east, port {port}")) && service["healthy"] == true, "{status}");
    let shown = lab.vela(&["status", &spec.name, "-n", "default"]).unwrap();
    assert!(shown.contains("joined through proxy-east"), "{shown}");
    is_there(&spec.name);

    // In place: the way stays what it was, and the gateway is not rolled.
    let revision = lab.gateway_revision().unwrap();
    declare(&spec, &json!({"labels": {"tier": "two"}}));
    lab.await_running(&spec.name).unwrap();
    assert_eq!((label(&spec.name, "tier").as_str(), annotation(&spec.name, "node-port")), ("two", port));
    assert_eq!(lab.gateway_revision().unwrap(), revision);
    is_there(&spec.name);

    lab.vela_up(&site::settings("lodger", &spec.name)).unwrap();
    lab.await_running("lodger").unwrap();
    begin_to_delete(&spec.name);
    await_told(&spec.name, "waiting", "default/lodger");
    is_there(&spec.name);
    lab.vela_delete("lodger").unwrap();
    end(controller, &[&spec]);
}

#[test]
#[ignore = "make test-faults"]
fn b_cluster_is_joined_again_when_its_kubeconfig_changes() {
    let lab = joined();
    let spec = fresh(182);
    start(&spec);
    let controller = Controller::enable();
    declare(&spec, &json!({}));
    lab.await_running(&spec.name).unwrap();
    let applied = || member(&spec.name).unwrap().unwrap()["metadata"]["annotations"]["xregion.oam.dev/applied"].clone();
    let before = applied();

    // One that can't be joined with says so, and what serves stays.
    lab.put_kubeconfig(&secret(&spec), "no kubeconfig").unwrap();
    await_told(&spec.name, "failed", &secret(&spec));
    assert_eq!(applied(), before);
    is_there(&spec.name);
    // The same server, told otherwise: another kubeconfig, with nothing to change.
    let renewed = format!("{}\n# renewed\n", lab.user_kubeconfig(&spec.name).unwrap());
    lab.put_kubeconfig(&secret(&spec), &renewed).unwrap();
    await_told(&spec.name, "joined", "joined through proxy-east");
    assert_ne!(applied(), before);
    is_there(&spec.name);

    lab.vela_delete(&spec.name).unwrap();
    end(controller, &[&spec]);
}

#[test]
#[ignore = "make test-faults"]
fn c_second_member_of_a_name_does_nothing_and_a_cluster_of_a_step_is_adopted() {
    let lab = joined();
    let spec = fresh(183);
    start(&spec);
    super::fixture::join(lab, &spec.name, "proxy-east", json!({}));
    let before = annotation(&spec.name, "node-port");
    let revision = lab.gateway_revision().unwrap();
    let controller = Controller::enable();
    declare(&spec, &json!({}));
    lab.await_running(&spec.name).unwrap();
    assert_eq!((annotation(&spec.name, "node-port"), lab.gateway_revision().unwrap()), (before, revision), "nothing changed");

    lab.vela_up(&site::member("second", &properties(&spec, &json!({"cluster": spec.name})))).unwrap();
    await_told("second", "waiting", &format!("has the cluster name {} already", spec.name));
    lab.vela_delete("second").unwrap();
    assert!(member("second").unwrap().is_none());
    is_there(&spec.name);

    lab.vela_delete(&format!("join-{}", spec.name)).unwrap();
    lab.vela_delete(&spec.name).unwrap();
    end(controller, &[&spec]);
}

#[test]
#[ignore = "make test-faults"]
fn d_controller_that_dies_in_the_middle_of_a_join_is_gone_on_from() {
    let lab = joined();
    let (spec, twin) = (fresh(184), fresh(185));
    for spec in [&spec, &twin] {
        start(spec);
    }
    let controller = Controller::enable();
    let kill = |grace: &str| {
        lab.kubectl("hub", &["delete", "pods", "-n", NAMESPACE, "-l", CONTROLLER_PODS, grace]).unwrap();
        lab.kubectl("hub", &["rollout", "status", "deployment", CONTROLLER, "-n", NAMESPACE, "--timeout=120s"]).unwrap();
    };
    for (spec, grace) in [(&spec, "--grace-period=0"), (&twin, "--grace-period=30")] {
        declare(spec, &json!({}));
        await_told(&spec.name, "joining", "joining through proxy-east");
        kill(grace);
        let status = lab.await_running(&spec.name).unwrap();
        assert_eq!(status["services"][0]["healthy"], true, "{status}");
        is_there(&spec.name);
        let seen = through_gateway(lab, &spec.name, "/api/v1/namespaces/kube-system").unwrap();
        assert_eq!(seen["metadata"]["uid"], identity(lab, &spec.name));
    }
    // Deleted before it has joined: the next controller takes away what there is.
    for spec in [&spec, &twin] {
        lab.vela_delete(&spec.name).unwrap();
        await_end_of(&spec.name);
    }
    declare(&spec, &json!({}));
    await_told(&spec.name, "joining", "joining through proxy-east");
    begin_to_delete(&spec.name);
    kill("--grace-period=0");
    end(controller, &[&spec, &twin]);
}

#[test]
#[ignore = "make test-faults"]
fn e_member_is_broken_while_its_cluster_does_not_answer() {
    let lab = joined();
    let spec = fresh(208);
    start(&spec);
    let controller = Controller::enable();
    declare(&spec, &json!({}));
    lab.await_running(&spec.name).unwrap();
    lab.stop_api(&spec.name).unwrap();
    await_told(&spec.name, "broken", &format!("but cluster {} does not answer through the gateway", spec.name));
    lab.start_api(&spec.name).unwrap();
    await_told(&spec.name, "joined", "joined through proxy-east");
    lab.vela_delete(&spec.name).unwrap();
    end(controller, &[&spec]);
}

#[test]
#[ignore = "make test-faults"]
fn f_member_that_waits_for_applications_leaves_by_force() {
    let lab = joined();
    let spec = fresh(207);
    start(&spec);
    let controller = Controller::enable();
    declare(&spec, &json!({}));
    lab.await_running(&spec.name).unwrap();
    lab.vela_up(&site::settings("lodger", &spec.name)).unwrap();
    lab.await_running("lodger").unwrap();
    begin_to_delete(&spec.name);
    await_told(&spec.name, "waiting", "default/lodger");
    is_there(&spec.name);

    // By the command that it is told with.
    let told = member(&spec.name).unwrap().unwrap()["data"]["message"].as_str().unwrap().to_owned();
    let command = told.strip_suffix(')').and_then(|told| told.split_once("or set force: kubectl "));
    let (_, command) = command.unwrap_or_else(|| panic!("{told}"));
    lab.kubectl("hub", &command.split(' ').collect::<Vec<_>>()).unwrap();
    await_end_of(&spec.name);
    // It stays where it was deployed, and KubeVela doesn't wait for it.
    let kept = lab.kubectl(&spec.name, &["get", "configmap", "lodger", "-n", "default", "-o", "name"]).unwrap();
    assert_eq!(kept.trim(), "configmap/lodger");
    lab.vela_delete("lodger").unwrap();
    end(controller, &[&spec]);
}
