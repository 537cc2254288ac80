//! After everything else has run: no credential of the lab is anywhere that people or programs look.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use xregion_lab::Lab;
use xregion_lab::site::NAMESPACE;

use super::fixture::joined;

/// What must not be found of a kubeconfig's secrets, in every form that it may have.
fn needles(lab: &Lab, cluster: &str) -> Vec<String> {
    let text = lab.user_kubeconfig(cluster).unwrap();
    let values = text.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once(": ")?;
        ["client-key-data", "token"].contains(&key).then(|| value.trim().to_owned())
    });
    let mut needles = Vec::new();
    for value in values {
        if let Some(pem) = BASE64_STANDARD.decode(&value).ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
            // The first line of a key's own text; what stands around it is the same for every key.
            needles.extend(pem.lines().filter(|line| line.len() > 40 && !line.starts_with("--")).map(str::to_owned));
        }
        needles.push(value);
    }
    assert!(!needles.is_empty(), "{cluster} has no secret to look for");
    needles
}

fn is_clean(what: &str, text: &str, needles: &[String]) {
    assert!(!needles.iter().any(|needle| text.contains(needle.as_str())), "{what} holds a credential");
}

fn files_below(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

#[test]
fn no_credential_is_in_any_log_event_message_or_configuration() {
    let lab = joined();
    let needles: Vec<String> = ["business-a", "business-b", "business-c"].into_iter().flat_map(|name| needles(lab, name)).collect();
    // The search finds what is there: the Secret that the user brought.
    let brought = lab.kubectl(
        "hub",
        &["get", "secret", "business-a-kubeconfig", "-n", NAMESPACE, "-o", "go-template={{.data.kubeconfig | base64decode}}"],
    );
    let brought = brought.unwrap();
    assert!(needles.iter().any(|needle| brought.contains(needle.as_str())));

    for cluster in ["hub", "proxy-east", "proxy-west"] {
        for kind in ["events", "configmaps", "pods", "jobs", "deployments", "leases"] {
            let text = lab.kubectl(cluster, &["get", kind, "-A", "-o", "json"]).unwrap();
            is_clean(&format!("{kind} of {cluster}"), &text, &needles);
        }
        let pods = lab.kubectl(cluster, &["get", "pods", "-n", NAMESPACE, "-o", "name"]).unwrap();
        for pod in pods.lines() {
            // One that has just ended may be gone.
            let logs = lab.kubectl(cluster, &["logs", "-n", NAMESPACE, pod, "--all-containers"]).unwrap_or_default();
            is_clean(&format!("the log of {pod} of {cluster}"), &logs, &needles);
        }
    }
    for kind in ["applications", "resourcetrackers", "applicationrevisions"] {
        let text = lab.kubectl("hub", &["get", kind, "-A", "-o", "json"]).unwrap();
        is_clean(&format!("{kind} of the hub"), &text, &needles);
    }
    let mut logs = Vec::new();
    files_below(Path::new("/var/log/pods"), &mut logs);
    files_below(lab.state().root(), &mut logs);
    let logs = logs.into_iter().filter(|path| path.extension().is_some_and(|end| end == "log") || path.ends_with("core"));
    let mut read = 0;
    for path in logs {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
        is_clean(&path.display().to_string(), &text, &needles);
        read += 1;
    }
    assert!(read > 10, "{read} logs prove nothing");
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(process.path().join(file)).unwrap_or_default();
            is_clean(&format!("{} of a process", file), &String::from_utf8_lossy(&text), &needles);
        }
    }
}
