//! The lab's end. It takes the lab down, so it is run by itself, after the tests that use it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use xregion_lab::Lab;
use xregion_lab::progress::Progress;

/// Network namespaces of the lab, as `ip` knows them.
fn namespaces() -> Vec<String> {
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().filter(|line| line.starts_with("xr-")).map(str::to_owned).collect()
}

fn mounts_below(root: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(root.to_str().unwrap())).map(str::to_owned).collect()
}

/// Processes whose command line names the lab's state: what it starts reads its configuration there.
fn processes_of(root: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let commands = processes.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
    commands.filter(|command| command.contains(root.to_str().unwrap())).collect()
}

#[test]
#[ignore = "make test-faults: it takes the lab down"]
fn up_twice_is_harmless_and_down_leaves_nothing_of_a_lab_that_crashed() {
    let progress = Progress::new();
    Lab::up(&progress).unwrap();
    let lab = Lab::up(&progress).unwrap();
    lab.kubectl("hub", &["get", "--raw", "/readyz"]).unwrap();
    let root = lab.state().root().to_owned();
    assert!(
        !namespaces().is_empty() && !mounts_below(&root).is_empty() && !processes_of(&root).is_empty(),
        "there is something to see"
    );

    // What ran on the hub is gone at once; what it had mounted and started elsewhere is not.
    let pids = Command::new("ip").args(["netns", "pids", "xr-hub"]).output().unwrap();
    let killed = Command::new("kill").arg("-9").args(String::from_utf8(pids.stdout).unwrap().split_whitespace()).status().unwrap();
    assert!(killed.success());

    for _ in 0..2 {
        Lab::down().unwrap();
        assert_eq!(namespaces(), [""; 0]);
        assert_eq!(mounts_below(&root), [""; 0]);
        assert_eq!(processes_of(&root), [""; 0]);
        assert!(!root.exists());
    }
}
