//! The program as shells and kubectl call it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

const XREGION: &str = env!("CARGO_BIN_EXE_xregion");

fn run(program: &str, args: &[&str]) -> (Option<i32>, String, String) {
    // No hub: a kubeconfig that is not there.
    let output = Command::new(program).args(args).env("KUBECONFIG", "/nonexistent").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn as_a_plugin_of_kubectl_it_is_called_so() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = directory.path().join("kubectl-xregion");
    std::os::unix::fs::symlink(XREGION, &plugin).unwrap();
    let plugin = plugin.to_str().unwrap();
    for (args, usage) in [
        (&["--help"][..], "Usage: kubectl xregion <COMMAND>"),
        (&["status", "--help"], "Usage: kubectl xregion status [OPTIONS] [CLUSTER]"),
    ] {
        let (code, help, _) = run(plugin, args);
        assert!(code == Some(0) && help.contains(usage), "{help}");
    }
    assert!(run(XREGION, &["status", "--help"]).1.contains("Usage: xregion status [OPTIONS] [CLUSTER]"));
    let (code, _, complaint) = run(plugin, &["leave"]);
    assert!(code == Some(2) && complaint.contains("Usage: kubectl xregion leave"), "{complaint}");
}

#[test]
fn a_limit_of_connections_is_at_least_one() {
    for most in ["0", "-1", "65536", "many"] {
        let limit = format!("--max-connections={most}");
        let (code, _, complaint) = run(XREGION, &["join", "business-a", "--region", "proxy-east", "--secret", "s", &limit]);
        assert!(code == Some(2) && complaint.contains("for '--max-connections <NUMBER>'"), "{complaint}");
    }
}

#[test]
fn completions_and_manual_pages_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = run(XREGION, &["completions", shell]);
        assert!(code == Some(0) && script.contains("doctor"), "{shell}: {script}");
    }
    let (code, page, _) = run(XREGION, &["man"]);
    assert!(code == Some(0) && page.contains(".TH xregion 1") && page.contains("xregion\\-doctor(1)"), "{page}");
    let (code, page, _) = run(XREGION, &["man", "join"]);
    assert!(code == Some(0) && page.contains("kubeconfig"), "{page}");
    assert_eq!(run(XREGION, &["man", "nothing"]).0, Some(2));
}

#[test]
fn without_a_hub_status_fails_and_doctor_names_the_link() {
    let (code, _, complaint) = run(XREGION, &["status"]);
    assert!(code == Some(70) && complaint.contains("hint: point KUBECONFIG at the hub"), "{complaint}");
    let (code, report, complaint) = run(XREGION, &["doctor", "business-a"]);
    assert_eq!((code, complaint.as_str()), (Some(90), ""), "{report}");
    let last = report.lines().last().unwrap();
    assert!(
        last.starts_with("first broken link: hub, API: there is no way to the hub")
            && last.ends_with("fix: point KUBECONFIG at the hub"),
        "{last}"
    );
}
