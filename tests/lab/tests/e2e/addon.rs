//! The addon, from a registry and from a directory, as any other of KubeVela's.

use serde_json::json;
use xregion_lab::load::Load;
use xregion_lab::site::{self, Dist, ENTRIES, NAMESPACE};

use super::fixture::{Controller, Snapshot, UNMENDED, enabled, eventually, is_there, join, joined, lab};
use super::leaves::leave;

fn is_enabled() -> anyhow::Result<()> {
    let status = lab().vela(&["addon", "status", "xregion"])?;
    anyhow::ensure!(status.contains("enabled"), "{status}");
    Ok(())
}

/// Waits until the hub has nothing that came with the addon.
fn await_disabled() {
    eventually("nothing left of the addon", || {
        let left = lab().kubectl(
            "hub",
            &["get", "sa,role,rolebinding,cm", "-n", NAMESPACE, "-l", "addons.oam.dev/name=xregion", "-o", "name"],
        )?;
        anyhow::ensure!(left.trim().is_empty(), "{left}");
        let left = lab().kubectl("hub", &["get", "componentdefinitions,workflowstepdefinitions", "-n", NAMESPACE, "-o", "name"])?;
        anyhow::ensure!(!left.contains("xregion"), "{left}");
        Ok(())
    });
}

#[test]
fn a_enabled_by_name_from_a_registry_it_says_what_comes_next() {
    let told = lab().enable("xregion", &[UNMENDED]).unwrap();
    assert!(told.contains("enabled successfully"), "{told}");
    assert!(told.contains("xregion-proxy"), "the notes don't name the next step: {told}");
    eventually("the addon enabled", is_enabled);
    // Of workflow steps, `vela show` 1.10.9 shows none, not even its own.
    let shown = lab().vela(&["show", "xregion-proxy"]).unwrap();
    assert!(shown.contains("Number of proxies"), "{shown}");
}

#[test]
fn b_misspelt_parameter_is_refused() {
    let output = lab().run("laptop", &["vela", "addon", "enable", "xregion", "-y", "imagePullPolcy=Never"]).unwrap();
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains("imagePullPolcy"), "{said}");
}

#[test]
fn c_upgraded_it_keeps_its_parameters_and_takes_new_ones() {
    enabled();
    lab().vela(&["addon", "upgrade", "xregion", "-y", "regions={proxy-east,proxy-west}"]).unwrap();
    let names = ["get", "clusterrole", "xregion", "-o", "jsonpath={.rules[*].resourceNames}"];
    eventually("the role restricted to regions", || {
        let names = lab().kubectl("hub", &names)?;
        anyhow::ensure!(names.contains("proxy-west"), "{names}");
        Ok(())
    });
}

#[test]
fn d_disabled_it_leaves_nothing_and_is_enabled_again_from_a_directory() {
    enabled();
    lab().vela(&["addon", "disable", "xregion", "-y"]).unwrap();
    await_disabled();
    // What host aliases lead to goes on serving.
    lab().kubectl("hub", &["get", "namespace", ENTRIES]).unwrap();
    let directory = Dist::find().unwrap().addon();
    let told = lab().enable(directory.to_str().unwrap(), &[UNMENDED]).unwrap();
    assert!(told.contains("enabled successfully"), "{told}");
    eventually("the addon enabled", is_enabled);
}

/// As addon/README.md says it, in that order. What is taken down is put up again for the tests after it.
#[test]
#[ignore = "make test-faults"]
fn e_taken_down_in_order_it_leaves_nothing_on_the_hub_or_in_a_region_and_fails_no_request() {
    let lab = joined();
    // With the controller, as it is unless somebody says otherwise; it goes with the addon.
    std::mem::forget(Controller::enable());
    let load = Load::start(lab, &["proxy-west"]).unwrap();
    lab.vela_delete("join-business-a").unwrap();
    leave(lab, "business-a");
    for proxy in ["proxy-east", "proxy-west"] {
        lab.vela_delete(&format!("region-{proxy}")).unwrap();
    }
    lab.vela(&["addon", "disable", "xregion", "-y"]).unwrap();
    lab.kubectl("hub", &["delete", "namespace", ENTRIES, "--timeout=60s"]).unwrap();
    let outcome = load.stop().unwrap();
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);

    // Definitions, roles, what runs, what was written for clusters and regions: whatever says whose it is.
    let namespaced =
        "deployments,services,endpointslices,configmaps,secrets,serviceaccounts,roles,rolebindings,jobs,pods,leases,pdb";
    let cluster_wide = "clusterroles,clusterrolebindings,componentdefinitions.core.oam.dev,workflowstepdefinitions.core.oam.dev,validatingadmissionpolicies";
    let ours = [
        ["-l", "app.kubernetes.io/managed-by=xregion"],
        ["-l", "app.kubernetes.io/name=xregion"],
        ["-l", "addons.oam.dev/name=xregion"],
    ];
    for label in ours {
        for place in ["hub", "proxy-east", "proxy-west"] {
            let kinds = if place == "hub" { format!("{namespaced},{cluster_wide}") } else { namespaced.to_owned() };
            eventually(&format!("nothing with {} at {place}", label[1]), || {
                let left = lab.kubectl(place, &[&["get", &kinds, "-A", "-o", "name"], &label[..]].concat())?;
                anyhow::ensure!(left.trim().is_empty(), "{left}");
                Ok(())
            });
        }
    }
    assert_eq!(lab.gateway_addresses().unwrap(), [""; 0], "host aliases");

    lab.enable("xregion", &[UNMENDED]).unwrap();
    for proxy in ["proxy-east", "proxy-west"] {
        lab.vela_up(&site::region(proxy)).unwrap();
    }
    for proxy in ["proxy-east", "proxy-west"] {
        lab.await_running(&format!("region-{proxy}")).unwrap();
    }
    join(lab, "business-a", "proxy-east", json!({}));
    is_there("business-a");
}

#[test]
#[ignore = "make test-faults"]
fn f_disabled_by_force_it_leaves_the_ways_to_clusters_as_they_are_and_finds_its_regions_again() {
    let lab = joined();
    let before = Snapshot::take(lab, "");
    let load = Load::start(lab, &["business-a", "proxy-west"]).unwrap();
    let refused = lab.run(site::USER, &["vela", "addon", "disable", "xregion", "-y"]).unwrap();
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(!refused.status.success() && said.contains("this addon is being used by: default/"), "{refused:?}");
    lab.vela(&["addon", "disable", "xregion", "--force", "-y"]).unwrap();
    await_disabled();
    // Host aliases and the Services that they lead to, the cluster's Secret, its route and its port.
    before.assert_unchanged(lab, "");
    is_there("business-a");

    lab.enable("xregion", &[UNMENDED]).unwrap();
    eventually("the addon enabled", is_enabled);
    // KubeVela finds the definitions again by itself. That it does shows where it has to render anew: with a default spelt out, and not.
    for application in [site::region_with("proxy-east", &json!({"replicas": 2})), site::region("proxy-east")] {
        lab.vela_up(&application).unwrap();
        let status = lab.await_running("region-proxy-east").unwrap();
        assert_eq!(status["services"][0]["message"], "2/2 proxies ready", "{status}");
    }
    is_there("business-a");
    before.assert_unchanged(lab, "");
    let outcome = load.stop().unwrap();
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
}
