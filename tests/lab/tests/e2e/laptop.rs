//! `xregion join` from a shell that reaches the hub's API and nothing else: the join runs as a Job there.

use std::path::PathBuf;

use xregion_lab::Output;
use xregion_lab::site::NAMESPACE;

use super::fixture::{Snapshot, joined, lab, regions};

/// The binary of the image: the addon and it are one version.
pub fn xregion() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../dist/image/xregion").canonicalize().unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs xregion on the laptop.
pub fn run(args: &[&str]) -> Output {
    let program = xregion();
    lab().run("laptop", &[&[program.as_str()], args].concat()).unwrap()
}

/// The kubeconfig of a cluster as a file.
pub fn kubeconfig_file(cluster: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lab().user_kubeconfig(cluster).unwrap()).unwrap();
    file
}

fn nothing_left() {
    let left = lab().kubectl("hub", &["get", "jobs,secrets,configmaps", "-n", NAMESPACE, "-o", "name"]).unwrap();
    let ours: Vec<_> = left.lines().filter(|name| name.contains("/xregion-join-")).collect();
    // Jobs of workflow steps have the step's session in their name and stay with their Application.
    let steps = lab().kubectl("hub", &["get", "jobs", "-n", NAMESPACE, "-l", "xregion.oam.dev/session", "-o", "name"]).unwrap();
    let ours: Vec<_> =
        ours.into_iter().filter(|name| !steps.lines().any(|job| job.rsplit('/').next() == name.rsplit('/').next())).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn a_leave_and_a_join_show_their_stages_and_leave_nothing_behind() {
    regions();
    let file = kubeconfig_file("business-b");
    let join = || run(&["join", "business-b", "--region", "proxy-east", "--kubeconfig", file.path().to_str().unwrap()]);
    assert!(join().status.success());
    let output = run(&["leave", "business-b"]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.contains("taking business-b-master off the gateway"), "{output:?}");
    assert!(!lab().vela(&["cluster", "list"]).unwrap().contains("business-b"));
    let output = join();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.contains("business-b-master:"), "{output:?}");
    assert!(output.stderr.contains("leading business-b-master to the region's nodes on the gateway"), "{output:?}");
    nothing_left();
}

#[test]
fn b_failure_has_the_same_words_and_exit_code_as_in_the_job() {
    joined();
    let before = Snapshot::take(lab(), "");
    let file = kubeconfig_file("business-a");
    let output = run(&["join", "second", "--region", "proxy-east", "--kubeconfig", file.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(22), "{output:?}");
    assert!(output.stderr.contains("error: this cluster is joined already, as business-a\nhint: "), "{output:?}");
    before.assert_unchanged(lab(), "");
    nothing_left();
}

#[test]
fn c_kubeconfig_that_can_t_be_used_never_leaves_the_laptop() {
    regions();
    let before = Snapshot::take(lab(), "");
    let output = run(&["join", "x", "--region", "proxy-east", "--kubeconfig", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(14), "{output:?}");
    assert!(output.stderr.contains("/nonexistent can't be read"), "{output:?}");
    let output = run(&["join", "Bad_Name", "--region", "proxy-east", "--kubeconfig", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(10), "{output:?}");
    before.assert_unchanged(lab(), "");
    nothing_left();
}
