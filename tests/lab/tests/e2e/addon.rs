//! The addon, from a registry and from a directory, as any other of KubeVela's.

use xregion_lab::site::{Dist, ENTRIES, NAMESPACE};

use super::fixture::{UNMENDED, enabled, eventually, lab};

fn is_enabled() -> anyhow::Result<()> {
    let status = lab().vela(&["addon", "status", "xregion"])?;
    anyhow::ensure!(status.contains("enabled"), "{status}");
    Ok(())
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
    // What host aliases lead to goes on serving.
    lab().kubectl("hub", &["get", "namespace", ENTRIES]).unwrap();
    let directory = Dist::find().unwrap().addon();
    let told = lab().enable(directory.to_str().unwrap(), &[UNMENDED]).unwrap();
    assert!(told.contains("enabled successfully"), "{told}");
    eventually("the addon enabled", is_enabled);
}
