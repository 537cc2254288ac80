//! Least privilege: every rule of what joins and leaves have on the hub (the Roles `xregion` of both namespaces, and the ClusterRole) is
//! taken away in turn, and a join or a leave fails without it. Rules and not verbs: some verbs are only for what goes wrong on the way, or
//! for a gateway as KubeVela installs it.

use serde_json::{Value, json};
use xregion_lab::Lab;
use xregion_lab::site::{ENTRIES, NAMESPACE};

use super::fixture::{fresh, joined, lab};
use super::laptop::xregion;
use super::leaves::is_gone;

/// Needed only where the hub has Open Cluster Management's API, which the lab has not.
const ELSEWHERE: &str = "managedclusters";

struct Role {
    kind: &'static str,
    namespace: &'static str,
    whole: Value,
}

impl Role {
    fn read(lab: &Lab, kind: &'static str, namespace: &'static str) -> Self {
        let text = lab.kubectl("hub", &["get", kind, "xregion", "-n", namespace, "-o", "json"]).unwrap();
        let mut whole: Value = serde_json::from_str(&text).unwrap();
        whole["metadata"]
            .as_object_mut()
            .unwrap()
            .retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
        Self { kind, namespace, whole }
    }

    fn rules(&self) -> &Vec<Value> {
        self.whole["rules"].as_array().unwrap()
    }

    fn write(&self, rules: &[Value]) {
        let patch = json!([{"op": "replace", "path": "/rules", "value": rules}]).to_string();
        lab().kubectl("hub", &["patch", self.kind, "xregion", "-n", self.namespace, "--type=json", "-p", &patch]).unwrap();
    }
}

/// Joins a cluster by a Job and lets it leave again; what failed, if anything.
fn there_and_back(cluster: &str, kubeconfig: &str) -> Option<String> {
    let run = |args: &[&str]| {
        let output = lab().run("laptop", &[&[xregion().as_str()], args, &["--timeout=30s"]].concat()).unwrap();
        (!output.status.success()).then_some(output.stderr)
    };
    run(&["join", cluster, "--region=proxy-east", "--kubeconfig", kubeconfig]).or_else(|| run(&["leave", cluster]))
}

#[test]
#[ignore = "some minutes: make test-faults"]
fn every_rule_is_needed() {
    let lab = joined();
    let spec = fresh(160);
    lab.start_business(&spec).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lab.user_kubeconfig(&spec.name).unwrap()).unwrap();
    let kubeconfig = file.path().to_str().unwrap();
    assert_eq!(there_and_back(&spec.name, kubeconfig), None);

    let mut unneeded = Vec::new();
    for role in [Role::read(lab, "role", NAMESPACE), Role::read(lab, "role", ENTRIES), Role::read(lab, "clusterrole", NAMESPACE)] {
        for (number, rule) in role.rules().iter().enumerate() {
            let mut rules = role.rules().clone();
            rules.remove(number);
            role.write(&rules);
            let failed = std::panic::catch_unwind(|| there_and_back(&spec.name, kubeconfig));
            role.write(role.rules());
            let failed = failed.unwrap();
            println!("without {rule}: {}", failed.as_deref().and_then(|log| log.lines().rev().nth(1)).unwrap_or("all went well"));
            if failed.is_none() && !rule.to_string().contains(ELSEWHERE) {
                unneeded.push(rule.clone());
            }
            // What it could not undo for want of the right, the next leave takes away.
            let leave = lab.run("laptop", &[xregion().as_str(), "leave", &spec.name, "--region=proxy-east"]).unwrap();
            assert!(leave.status.success(), "{leave:?}");
            is_gone(&spec.name);
        }
    }
    assert!(unneeded.is_empty(), "nothing needs {unneeded:?}");
    lab.stop_cluster(&spec.name).unwrap();
}
