//! Where regions are entered from the hub: its Services follow the nodes that answer, and host aliases follow the Services.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::json;
use xregion_lab::Lab;
use xregion_lab::load::Load;
use xregion_lab::site::{ENTRIES, NAMESPACE};
use xregion_lab::topology::Node;

use super::fixture::{Controller, Duration, eventually, is_there, joined, lab, through_gateway};
use super::laptop::run;

const REGION: &str = "proxy-east";
/// What a node that is cut off may cost: a connection is given up after 8 s.
const BOUND: Duration = Duration::from_secs(10);

/// The node that may be lost: the first carries the region's API server.
fn second_node() -> Node {
    let region = lab().cluster(REGION).unwrap();
    region.nodes.into_iter().find(|node| node.place != region.home).unwrap()
}

fn nodes() -> anyhow::Result<BTreeSet<String>> {
    Ok(lab().entry_nodes(REGION)?.into_iter().collect())
}

fn lead_to(want: usize) {
    eventually("the nodes that the hub leads to", || {
        let nodes = nodes()?;
        anyhow::ensure!(nodes.len() == want, "{nodes:?}");
        Ok(())
    });
}

/// The addresses that names in region east lead to are those of the Services, or none of them is.
fn names_lead_to_services(lab: &Lab) -> anyhow::Result<bool> {
    let entries: BTreeSet<String> = lab.entry_addresses(REGION)?.into_iter().collect();
    let named: BTreeSet<String> = lab.gateway_addresses()?.into_iter().collect();
    Ok(!entries.is_empty() && entries.is_subset(&named))
}

#[test]
#[ignore = "make test-faults"]
fn a_node_that_is_cut_off_costs_seconds_and_no_rollout() {
    let lab = joined();
    let controller = Controller::enable();
    let node = &second_node().place.name;
    lead_to(2);
    let revision = lab.gateway_revision().unwrap();
    let load = Load::start(lab, &["business-a", "proxy-west"]).unwrap();
    let at = load.elapsed();
    lab.blackhole(node).unwrap();
    let seen = catch_unwind(AssertUnwindSafe(|| {
        lead_to(1);
        eventually("what is told of the node", || {
            let status = run(&["status"]).stdout;
            anyhow::ensure!(status.contains("does not answer the hub"), "{status}");
            Ok(())
        });
        // The requests that show it.
        eventually("half a minute without the node", || {
            anyhow::ensure!(load.elapsed() - at > Duration::from_secs(30), "not yet");
            Ok(())
        });
    }));
    lab.unblackhole(node).unwrap();
    seen.unwrap();
    lead_to(2);
    let outcome = load.stop().unwrap();
    let last = outcome.failures.iter().map(|failure| failure.at.saturating_sub(at)).max().unwrap_or_default();
    println!("a node cut off: {} of {} requests failed, the last {last:.1?} after it", outcome.failed, outcome.requests);
    assert!(outcome.failures.iter().all(|failure| failure.cluster == "business-a"), "{:?}", outcome.failures);
    assert!(last < BOUND, "{:?}", outcome.failures);
    assert_eq!(lab.gateway_revision().unwrap(), revision, "no gateway is rolled for a node");
    drop(controller);
}

#[test]
#[ignore = "make test-faults"]
fn b_services_that_are_deleted_come_back_and_the_names_follow() {
    let lab = joined();
    let controller = Controller::enable();
    let load = Load::start(lab, &["proxy-west"]).unwrap();
    lab.lose_entries(REGION).unwrap();
    eventually("the Services and the names", || {
        anyhow::ensure!(names_lead_to_services(lab)?, "{:?}", lab.gateway_addresses()?);
        Ok(())
    });
    is_there("business-a");
    let outcome = load.stop().unwrap();
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    drop(controller);
}

#[test]
#[ignore = "make test-faults"]
fn c_names_are_led_to_nodes_and_back_without_a_failed_request() {
    let lab = joined();
    let controller = Controller::enable();
    let load = Load::start(lab, &["business-a", "proxy-west"]).unwrap();
    for to in ["nodes", "services"] {
        lead(to);
        is_there("business-a");
    }
    let outcome = load.stop().unwrap();
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    drop(controller);
}

/// Enables the addon with host aliases that lead there.
fn lead(host_aliases: &str) {
    let parameter = format!("hostAliases={host_aliases}");
    lab().vela(&["addon", "upgrade", "xregion", "-y", "controller.enabled=true", &parameter]).unwrap();
    eventually(host_aliases, || {
        let addresses = lab().gateway_addresses()?;
        anyhow::ensure!(names_lead_to_services(lab())? == (host_aliases == "services"), "{addresses:?}");
        Ok(())
    });
}

/// Which cuts off every region, and is mended as addon/README.md says.
#[test]
#[ignore = "make test-faults"]
fn d_namespace_of_the_services_is_deleted_and_comes_back_with_the_addon() {
    let lab = joined();
    let controller = Controller::enable();
    lab.kubectl("hub", &["delete", "namespace", ENTRIES, "--timeout=60s"]).unwrap();
    // Not `upgrade`, which does nothing to an addon of its own version and parameters.
    lab.enable("xregion", &["controller.enabled=true"]).unwrap();
    eventually("the Services and the names", || {
        anyhow::ensure!(names_lead_to_services(lab)?, "{:?}", lab.gateway_addresses()?);
        Ok(())
    });
    eventually("the cluster", || through_gateway(lab, "business-a", "/version"));
    is_there("business-a");
    drop(controller);
}

/// As when a cloud replaces a machine: Kubernetes forgets it, and another one comes.
#[test]
#[ignore = "make test-faults"]
fn e_names_that_lead_to_nodes_follow_one_that_is_replaced_in_a_rollout_each() {
    let lab = joined();
    let controller = Controller::enable();
    let node = second_node();
    let (name, address) = (&node.place.name, node.internal_ip.to_string());
    let checked = catch_unwind(AssertUnwindSafe(|| {
        lead("nodes");
        let load = Load::start(lab, &["proxy-west"]).unwrap();
        let revision = lab.gateway_revision().unwrap();
        let led_there = |want: bool| {
            eventually(&format!("names that lead to {address}: {want}"), || {
                let addresses = lab.gateway_addresses()?;
                anyhow::ensure!(addresses.contains(&address) == want, "{addresses:?}");
                Ok(())
            });
            is_there("business-a");
        };
        led_there(true);
        lab.kill_node(name).unwrap();
        lab.kubectl(REGION, &["delete", "node", name]).unwrap();
        let gone = catch_unwind(AssertUnwindSafe(|| led_there(false)));
        let cidr = node.pod_cidr();
        lab.apply(
            REGION,
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}),
        )
        .unwrap();
        lab.start_node(name).unwrap();
        gone.unwrap();
        // Both proxies are on the node that stayed.
        for verb in ["restart", "status"] {
            lab.kubectl(REGION, &["rollout", verb, "deployment", "xregion-proxy", "-n", NAMESPACE]).unwrap();
        }
        led_there(true);
        assert_eq!(lab.gateway_revision().unwrap() - revision, 2, "one rollout each");
        let outcome = load.stop().unwrap();
        assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
        assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    }));
    lead("services");
    checked.unwrap();
    drop(controller);
}
