//! The controller: what is lost on the gateway or in a region comes back, what it can't bring back is told, and it fights with nobody.
//! It runs for these tests only: others break things on purpose, and it would mend them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};
use xregion_lab::drift::renamed;
use xregion_lab::load::Load;
use xregion_lab::site::{GATEWAY, NAMESPACE};
use xregion_lab::{Bridge, BusinessSpec, Region};

use super::fixture::{
    CONTROLLER, CONTROLLER_PODS, Controller, Duration, annotation, eventually, fresh, is_there, join_all, joined, kill_controller,
    lab, through_gateway,
};
use super::laptop::run;
use super::leaves::is_gone;

/// Within what it mends.
const MENDED: Duration = Duration::from_secs(30);
/// After what a Lease runs out.
const LEASE: Duration = Duration::from_secs(15);

/// The way of a cluster through region east: its route and its port.
pub fn way(cluster: &str) -> anyhow::Result<(Value, Value)> {
    Ok((lab().route(cluster)?, lab().port(cluster)?))
}

/// Deletes the route and the port of a cluster in region east.
pub fn lose_way(cluster: &str) {
    lab().lose_route(cluster).unwrap();
    lab().lose_port(cluster).unwrap();
}

/// Waits until a way is what it was.
fn await_way(cluster: &str, before: &(Value, Value)) {
    eventually("the way as before", || {
        let way = way(cluster)?;
        anyhow::ensure!(way == *before, "{way:?}");
        Ok(())
    });
}

fn gateway() -> anyhow::Result<Value> {
    lab().gateway_settings(GATEWAY)
}

/// Puts the gateway's Deployment to how KubeVela's chart has it, and waits until the proxy clusters answer.
fn reinstall_gateway() {
    lab().lose_aliases().unwrap();
    lab().reset_gateway().unwrap();
}

fn await_rolled() {
    eventually("the old gateway gone", || {
        let output = run(&["status", "-o", "json"]);
        let overview: Value = serde_json::from_str(&output.stdout)?;
        anyhow::ensure!(overview["hub"]["rolled"] == true, "{}", overview["hub"]);
        Ok(())
    });
}

/// What `xregion status` says is out of step about something.
fn told(about: &str) -> anyhow::Result<Vec<String>> {
    let output = run(&["status", "-o", "json"]);
    anyhow::ensure!(output.status.success(), "{output:?}");
    let overview: Value = serde_json::from_str(&output.stdout)?;
    let entries = overview["outOfStep"].as_array().cloned().unwrap_or_default();
    Ok(entries.iter().filter(|entry| entry["about"] == about).map(ToString::to_string).collect())
}

/// Events by their names, and what each says.
type Events = BTreeMap<String, String>;

/// The Events of a reason about something in KubeVela's namespace.
fn events(reason: &str, kind: &str, name: &str) -> Events {
    let events = lab().kubectl("hub", &["get", "events", "-n", NAMESPACE, "-o", "json"]).unwrap();
    let events: Value = serde_json::from_str(&events).unwrap();
    let is_it = |event: &&Value| {
        let about = &event["involvedObject"];
        event["reason"] == reason && about["kind"] == kind && about["name"] == name
    };
    let told = events["items"].as_array().unwrap().iter().filter(is_it);
    told.map(|event| (event["metadata"]["name"].to_string(), event["message"].to_string())).collect()
}

/// What those say that were not there before: another run of these tests may have left some.
fn news(before: &Events, now: Events) -> Vec<String> {
    now.into_iter().filter(|(name, _)| !before.contains_key(name)).map(|(_, said)| said).collect()
}

/// The pod of the controller that leads.
fn leader() -> anyhow::Result<String> {
    let get = |what: &[&str]| lab().kubectl("hub", &[&["get", "-n", NAMESPACE], what].concat());
    let holder = get(&["lease", CONTROLLER, "-o", "jsonpath={.spec.holderIdentity}"])?;
    let pods = get(&["pods", "-l", CONTROLLER_PODS, "-o", "jsonpath={.items[*].metadata.name}"])?;
    // It calls itself by its pod and its process.
    let leads = |pod: &&str| holder.starts_with(&format!("{pod}-"));
    pods.split(' ').find(leads).map(str::to_owned).with_context(|| format!("{holder:?} is in none of {pods}"))
}

/// Waits until the controller that leads counts a problem in its metrics.
fn await_counted() {
    eventually("a problem in the controller's metrics", || {
        let metrics = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:7081/proxy/metrics", leader()?);
        let metrics = lab().kubectl("hub", &["get", "--raw", &metrics])?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("xregion_controller_problems "));
        let count: u32 = count.with_context(|| format!("no number in {metrics}"))?.parse()?;
        anyhow::ensure!(count > 0, "{count}");
        Ok(())
    });
}

/// Lets a cluster leave, and ends it.
pub fn leave(spec: &BusinessSpec) {
    let left = run(&["leave", &spec.name]);
    assert!(left.status.success(), "{left:?}");
    is_gone(&spec.name);
    lab().stop_cluster(&spec.name).unwrap();
}

#[test]
fn a_way_and_gateway_come_back_in_one_rollout_without_a_failed_request() {
    let lab = joined();
    let spec = fresh(179);
    join_all(&[(&spec, json!({}))]);
    let (way_before, gateway_before) = (way(&spec.name).unwrap(), gateway().unwrap());
    let controller = Controller::enable();
    assert_eq!(told("hub").unwrap(), Vec::<String>::new());

    // Broken while nobody mends: the chart's own rollout, which ends its pod at once, is over before requests are counted.
    controller.scale("0");
    lose_way(&spec.name);
    reinstall_gateway();
    eventually("the controller missed", || {
        let told = told("hub")?;
        anyhow::ensure!(told.iter().any(|entry| entry.contains("the addon's controller does not run")), "{told:?}");
        Ok(())
    });
    let revision = lab.gateway_revision().unwrap();
    let load = Load::start(lab, &["proxy-west", "proxy-east"]).unwrap();
    controller.scale("1");
    let start = Instant::now();
    eventually("all as before", || {
        let (way, gateway) = (way(&spec.name)?, gateway()?);
        anyhow::ensure!(way == way_before, "{way:?}");
        anyhow::ensure!(gateway == gateway_before, "{gateway}");
        Ok(())
    });
    let took = start.elapsed();
    eventually("the joined cluster answering", || through_gateway(lab, &spec.name, "/version"));
    println!(
        "mended {:.1} s after the controller was ready, answering after {:.1} s",
        took.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    assert!(took < MENDED, "{took:?}");
    await_rolled();
    is_there(&spec.name);
    is_there("business-a");
    let outcome = load.stop().unwrap();
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    assert_eq!(lab.gateway_revision().unwrap() - revision, 1, "one rollout");
    assert!(!events("Mended", "Deployment", GATEWAY).is_empty() && !events("Mended", "Secret", &spec.name).is_empty());

    // While it runs, and without the gateway.
    lose_way(&spec.name);
    let start = Instant::now();
    await_way(&spec.name, &way_before);
    assert!(start.elapsed() < MENDED, "{:?}", start.elapsed());
    eventually("the joined cluster answering", || through_gateway(lab, &spec.name, "/version"));
    assert_eq!(lab.gateway_revision().unwrap() - revision, 1, "no further rollout");
    assert_eq!(annotation(&spec.name, "node-port"), way_before.1["nodePort"].to_string());
    drop(controller);
    leave(&spec);
}

#[test]
#[ignore = "make test-faults"]
fn b_who_reverts_it_again_and_again_is_named_and_left_alone() {
    let lab = joined();
    let path = ["get", "deployment", GATEWAY, "-n", NAMESPACE, "-o", "jsonpath={.spec.strategy.rollingUpdate.maxUnavailable}"];
    let unavailable = || lab.kubectl("hub", &path);
    let write = |number: u8, manager: &str| {
        let patch = json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": number}}}}).to_string();
        let manager = format!("--field-manager={manager}");
        lab.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "--type=merge", &manager, "-p", &patch]).unwrap();
    };
    write(0, "mended");
    let not_mended = || events("NotMended", "Deployment", GATEWAY);
    let events_before = not_mended();
    let controller = Controller::enable();
    for _ in 0..3 {
        write(1, "stubborn");
        eventually("what was reverted", || {
            let now = unavailable()?;
            anyhow::ensure!(now == "0", "{now}");
            Ok(())
        });
    }
    write(1, "stubborn");
    let named = std::panic::catch_unwind(|| {
        eventually("the field manager's name", || {
            let told = told("hub")?;
            anyhow::ensure!(told.iter().any(|entry| entry.contains("field manager stubborn last wrote it")), "{told:?}");
            Ok(())
        });
        assert_eq!(unavailable().unwrap(), "1", "it is left alone");
        await_counted();
        let told = news(&events_before, not_mended());
        assert!(told.iter().any(|said| said.contains("field manager stubborn last wrote it")), "{told:?}");
    });
    drop(controller);
    write(0, "mended");
    named.unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn c_region_that_does_not_answer_keeps_its_aliases_and_is_told() {
    let lab = joined();
    let spec = BusinessSpec { region: Region::West, ..fresh(180) };
    join_all(&[(&spec, json!({}))]);
    let before = gateway().unwrap();
    let not_mended = || events("NotMended", "Secret", "proxy-west");
    let events_before = not_mended();
    let controller = Controller::enable();
    // Its API server and its one node are there.
    lab.cut_link("proxy-west-1", Bridge::Peer).unwrap();
    let kept = std::panic::catch_unwind(|| {
        eventually("what the controller says of the region", || {
            let told = told("region proxy-west")?;
            anyhow::ensure!(told.iter().any(|entry| entry.contains("its host aliases stay as they are")), "{told:?}");
            Ok(())
        });
        assert_eq!(gateway().unwrap(), before);
        await_counted();
    });
    lab.mend_link("proxy-west-1", Bridge::Peer).unwrap();
    kept.unwrap();
    eventually("nothing said of the region any more", || {
        let told = told("region proxy-west")?;
        anyhow::ensure!(told.is_empty(), "{told:?}");
        Ok(())
    });
    assert_eq!(gateway().unwrap(), before);
    let mut told = news(&events_before, not_mended());
    told.retain(|said| said.contains("its host aliases stay as they are"));
    assert_eq!(told.len(), 1, "it is told once: {told:?}");
    is_there(&spec.name);
    drop(controller);
    leave(&spec);
}

#[test]
#[ignore = "make test-faults"]
fn d_second_controller_goes_on_when_the_first_is_killed_and_it_is_mended_once() {
    let lab = joined();
    let spec = fresh(204);
    join_all(&[(&spec, json!({}))]);
    let before = way(&spec.name).unwrap();
    let revision = lab.gateway_revision().unwrap();
    let mended = || events("Mended", "Secret", &spec.name);
    let events_before = mended();
    let controller = Controller::enable_several("2");
    let first = eventually("a controller that leads", leader);
    lose_way(&spec.name);
    let start = Instant::now();
    kill_controller(&first);
    // Or its container would be started again, under the name that has the Lease.
    lab.kubectl("hub", &["delete", "pod", &first, "-n", NAMESPACE, "--grace-period=0", "--force"]).unwrap();
    await_way(&spec.name, &before);
    let took = start.elapsed();
    println!("mended {:.1} s after the death of the controller that led", took.as_secs_f64());
    assert!(took < LEASE + MENDED, "{took:?}");
    eventually("the joined cluster answering", || through_gateway(lab, &spec.name, "/version"));
    eventually("what is told of it", || {
        anyhow::ensure!(!news(&events_before, mended()).is_empty(), "nothing");
        Ok(())
    });
    // Both look on.
    controller.await_ready("2");
    assert_ne!(leader().unwrap(), first);
    drop(controller);
    assert_eq!(news(&events_before, mended()).len(), 1, "by one of them, and once: {:?}", mended());
    assert_eq!(lab.gateway_revision().unwrap(), revision, "a way needs no rollout");
    assert_eq!(way(&spec.name).unwrap(), before);
    leave(&spec);
}

#[test]
#[ignore = "make test-faults"]
fn e_gateway_that_is_reinstalled_under_another_name_gets_all_that_is_recorded() {
    let lab = joined();
    let spec = fresh(205);
    join_all(&[(&spec, json!({}))]);
    let (before, bare) = (gateway().unwrap(), lab.bare_gateway().unwrap());
    let controller = Controller::enable();
    let reinstall = |old: &str, name: &str, new: &Value| {
        lab.replace_gateway(old, new).unwrap();
        let start = Instant::now();
        eventually("the new gateway as the old one was", || {
            let now = lab.gateway_settings(name)?;
            anyhow::ensure!(now == before, "{now}");
            Ok(())
        });
        let took = start.elapsed();
        println!("mended {:.1} s after the gateway was {name}", took.as_secs_f64());
        assert!(took < MENDED, "{took:?}");
        eventually("the joined cluster answering", || through_gateway(lab, &spec.name, "/version"));
        await_rolled();
        is_there(&spec.name);
    };
    let other = "another-cluster-gateway";
    let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reinstall(GATEWAY, other, &renamed(&bare, other))));
    // Under the name that other tests know, and as new once more.
    reinstall(other, GATEWAY, &bare);
    moved.unwrap();
    is_there("business-a");
    drop(controller);
    leave(&spec);
}
