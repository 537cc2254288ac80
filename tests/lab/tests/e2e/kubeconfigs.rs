//! Kubeconfigs that only a real API server can judge: one whose credentials a command gives out, made to last where it works, and one
//! with `tls-server-name`. What the form alone decides is in `tests/kubeconfigs.rs` of xregion itself.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use xregion_lab::pki::Validity;
use xregion_lab::site::NAMESPACE;
use xregion_lab::{BusinessSpec, Output, base64};

use super::fixture::{Snapshot, annotation, fresh, is_there, joined, lab};
use super::laptop::xregion;

/// The names in the cluster's certificate.
const NAMES: [&str; 2] = ["fresh-150.idc.example", "second.idc.example"];
const CLUSTER: &str = "fresh-150";

fn spec() -> BusinessSpec {
    BusinessSpec { names: NAMES.map(str::to_owned).into(), ..fresh(150) }
}

/// A kubeconfig by the cluster's address, as somebody has it whose certificate is for names alone.
fn kubeconfig(directory: &Path, name: &str, user: &Value, checked: &str) -> String {
    let authority = lab().authority(CLUSTER).unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "prod",
        "clusters": [{"name": "k", "cluster": {
            "server": format!("https://{}:443", lab().cluster(CLUSTER).unwrap().address),
            "certificate-authority-data": base64(authority.certificate()).unwrap(), "tls-server-name": checked,
        }}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "prod", "context": {"cluster": "k", "user": "u"}}],
    });
    let path = directory.join(name);
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The `user` of a kubeconfig that logs in by a command beside it.
fn exec(directory: &Path) -> Value {
    let pair = lab().authority(CLUSTER).unwrap().client("somebody", Some("system:masters"), Validity::Now).unwrap();
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"clientCertificateData": pair.certificate, "clientKeyData": pair.key},
    });
    let script = directory.join("login");
    std::fs::write(&script, format!("#!/bin/sh\ncat <<'END'\n{credential}\nEND\n")).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "interactiveMode": "Never"}})
}

/// Runs `xregion kubeconfig` where the cluster can be reached; gives what it wrote to and when the token ends, by what it said.
fn mint(directory: &Path, from: &str, to: &str, duration: &str) -> (String, String) {
    let path = directory.join(to).to_str().unwrap().to_owned();
    let args = [&xregion(), "kubeconfig", "--kubeconfig", from, "--output", &path, "--duration", duration];
    let output = lab().run(CLUSTER, &args).unwrap();
    assert!(output.stderr.contains("whoever has its token can do everything in this cluster"), "{output:?}");
    let told = output.success().unwrap();
    let end = told.split("its token expires at ").nth(1).and_then(|rest| rest.split(',').next());
    (path, end.unwrap_or_else(|| panic!("no end in {told}")).to_owned())
}

fn join(path: &str) -> Output {
    lab().run("laptop", &[&xregion(), "join", CLUSTER, "--region", "proxy-east", "--kubeconfig", path]).unwrap()
}

fn token() -> String {
    lab().kubectl("hub", &["get", "secret", CLUSTER, "-n", NAMESPACE, "-o", "jsonpath={.data.token}"]).unwrap()
}

#[test]
fn a_kubeconfig_of_a_command_is_made_to_last_and_its_end_is_recorded() {
    let lab = joined();
    lab.start_business(&spec()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let from = kubeconfig(directory.path(), "exec", &exec(directory.path()), NAMES[0]);

    let before = Snapshot::take(lab, "");
    let refused = join(&from);
    assert_eq!(refused.status.code(), Some(16), "{refused:?}");
    assert!(refused.stderr.contains("hint: ") && refused.stderr.contains("xregion kubeconfig"), "{refused:?}");
    before.assert_unchanged(lab, "");

    let (path, end) = mint(directory.path(), &from, "minted", "2h");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = lab.run(CLUSTER, &[&xregion(), "kubeconfig", "--kubeconfig", &from, "--output", &path]).unwrap();
    assert_eq!(again.status.code(), Some(19), "{again:?}");

    let told = join(&path).success().unwrap();
    assert!(told.contains(&format!("its token expires at {end}")), "{told}");
    is_there(CLUSTER);
    assert_eq!(annotation(CLUSTER, "expires"), end);

    // A token of the same ServiceAccount that ends earlier takes nothing away.
    let kept = token();
    let (shorter, soon) = mint(directory.path(), &from, "shorter", "1h");
    let told = join(&shorter).success().unwrap();
    assert!(told.contains("nothing to change") && told.contains("is kept: the one brought expires sooner"), "{told}");
    assert_eq!((token(), annotation(CLUSTER, "expires")), (kept, end.clone()));

    // One that ends later takes its place.
    let (longer, later) = mint(directory.path(), &from, "longer", "3h");
    join(&longer).success().unwrap();
    assert_eq!(annotation(CLUSTER, "expires"), later);

    // But a token that the cluster does not accept is not worth keeping, however late it says that it ends.
    let longer: Value = serde_json::from_str(&std::fs::read_to_string(&longer).unwrap()).unwrap();
    let (signed, _) = longer["users"][0]["user"]["token"].as_str().unwrap().rsplit_once('.').unwrap();
    let forged = json!({"data": {"token": base64(&format!("{signed}.c2lnbmF0dXJl")).unwrap()}}).to_string();
    lab.kubectl("hub", &["patch", "secret", CLUSTER, "-n", NAMESPACE, "--type=merge", "-p", &forged]).unwrap();
    join(&shorter).success().unwrap();
    is_there(CLUSTER);
    assert_eq!(annotation(CLUSTER, "expires"), soon);

    // A ServiceAccount made again is another one, and the hub's token is void.
    lab.kubectl(CLUSTER, &["delete", "serviceaccount", "xregion", "-n", NAMESPACE]).unwrap();
    let (anew, earlier) = mint(directory.path(), &from, "anew", "1h");
    join(&anew).success().unwrap();
    is_there(CLUSTER);
    assert_eq!(annotation(CLUSTER, "expires"), earlier);
}

#[test]
fn b_name_to_check_the_certificate_for_becomes_the_name_that_the_hub_uses() {
    let lab = joined();
    let directory = tempfile::tempdir().unwrap();
    let pair = lab.authority(CLUSTER).unwrap().client("somebody", Some("system:masters"), Validity::Now).unwrap();
    let user = json!({
        "client-certificate-data": base64(&pair.certificate).unwrap(), "client-key-data": base64(&pair.key).unwrap(),
    });
    let told = join(&kubeconfig(directory.path(), "second", &user, NAMES[1])).success().unwrap();
    assert!(told.contains("joined: https://second.idc.example:") && !told.contains("expires"), "{told}");
    is_there(CLUSTER);
    assert_eq!(annotation(CLUSTER, "alias"), NAMES[1]);
    lab.run("laptop", &[&xregion(), "leave", CLUSTER]).unwrap().success().unwrap();
    lab.stop_cluster(CLUSTER).unwrap();
}
