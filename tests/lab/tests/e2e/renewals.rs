//! Tokens that are renewed before they end. Nobody waits for that: the API server takes tokens that its own key has signed, also one that
//! says that it was made an hour ago.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use xregion_lab::site::{self, NAMESPACE};
use xregion_lab::{BusinessSpec, base64};

use super::fixture::{CONTROLLER, Controller, Process, annotation, eventually, fresh, is_there, joined, lab, secret};
use super::laptop::{run, xregion};
use super::leaves::is_gone;

/// How long tokens are asked for here, in minutes.
const LASTING: i64 = 120;

/// A kubeconfig from `xregion kubeconfig`, made where the cluster can be reached.
fn mint(spec: &BusinessSpec, directory: &Path, name: &str) -> Value {
    let server = spec.server.as_ref().unwrap();
    let by_address = format!(
        "https://{}:{}\n    tls-server-name: {}",
        lab().cluster(&spec.name).unwrap().address,
        spec.port,
        server.trim_start_matches("https://")
    );
    let from = directory.join("from");
    std::fs::write(&from, lab().user_kubeconfig(&spec.name).unwrap().replace(server, &by_address)).unwrap();
    let to = directory.join(name);
    let [from, to] = [&from, &to].map(|path| path.to_str().unwrap());
    let duration = format!("{LASTING}m");
    let args = [&xregion(), "kubeconfig", "--kubeconfig", from, "--output", to, "--duration", &duration];
    lab().run(&spec.name, &args).unwrap().success().unwrap();
    serde_json::from_str(&std::fs::read_to_string(to).unwrap()).unwrap()
}

/// The same kubeconfig with the same token, made so many minutes ago.
fn aged(spec: &BusinessSpec, kubeconfig: &Value, minutes: i64) -> Value {
    let mut kubeconfig = kubeconfig.clone();
    let token = &mut kubeconfig["users"][0]["user"]["token"];
    let parts: Vec<&str> = token.as_str().unwrap().split('.').collect();
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    for claim in ["iat", "nbf", "exp"] {
        claims[claim] = json!(claims[claim].as_i64().unwrap() - minutes * 60);
    }
    let said = format!("{}.{}", parts[0], BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = lab().sign_token(&spec.name, &said).unwrap();
    *token = json!(format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)));
    kubeconfig
}

fn token_of(kubeconfig: &Value) -> String {
    kubeconfig["users"][0]["user"]["token"].as_str().unwrap().to_owned()
}

fn read(secret: &str, key: &str) -> anyhow::Result<String> {
    let path = format!("jsonpath={{.data.{key}}}");
    let text = lab().kubectl("hub", &["get", "secret", secret, "-n", NAMESPACE, "-o", &path])?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(text)?)?)
}

/// Waits until both Secrets have one other token; gives it.
fn await_other_than(spec: &BusinessSpec, old: &str) -> String {
    eventually("another token in both Secrets", || {
        let brought: Value = serde_json::from_str(&read(&secret(spec), "kubeconfig")?)?;
        let (brought, used) = (token_of(&brought), read(&spec.name, "token")?);
        anyhow::ensure!(used != old && brought == used, "the old one is {}", if used == old { "in use" } else { "in the source" });
        Ok(used)
    })
}

/// The secret part of a token: nobody may see it.
fn signature(token: &str) -> &str {
    token.rsplit('.').next().unwrap()
}

fn bring(spec: &BusinessSpec, kubeconfig: &Value) {
    lab().put_kubeconfig(&secret(spec), &kubeconfig.to_string()).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn a_token_takes_the_place_of_one_that_is_due_without_a_rollout() {
    let lab = joined();
    let (spec, directory) = (fresh(194), tempfile::tempdir().unwrap());
    lab.start_business(&spec).unwrap();
    let due = aged(&spec, &mint(&spec, directory.path(), "minted"), LASTING * 5 / 6);
    let old = token_of(&due);
    bring(&spec, &due);
    let told = run(&["join", &spec.name, "--region", "proxy-east", "--secret", &secret(&spec)]).success().unwrap();
    assert!(told.ends_with("the addon's controller renews it before\n"), "{told}");
    assert_eq!(annotation(&spec.name, "source"), format!("{}/kubeconfig", secret(&spec)));
    let (ended, revision) = (annotation(&spec.name, "expires"), lab.gateway_revision().unwrap());

    let log = directory.path().join("log");
    let controller = Process::start(&xregion(), &[], &log);
    let new = await_other_than(&spec, &old);
    eventually("what is told of it", || {
        let events = lab.kubectl("hub", &["get", "events", "-n", NAMESPACE, "-o", "json"])?;
        let events: Value = serde_json::from_str(&events)?;
        let mut events = events["items"].as_array().into_iter().flatten();
        let told = events.any(|event| event["reason"] == "Renewed" && event["involvedObject"]["name"] == spec.name.as_str());
        anyhow::ensure!(told, "no Event");
        Ok(())
    });
    drop(controller);
    is_there(&spec.name);
    assert!(annotation(&spec.name, "expires") > ended);
    assert_eq!(lab.gateway_revision().unwrap(), revision);
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("was renewed, and lasts until"), "{log}");
    assert!(![&old, &new].into_iter().any(|token| log.contains(signature(token))), "a token is in the log");

    // Who joins it again with what it was joined with changes nothing.
    let told = run(&["join", &spec.name, "--region", "proxy-east", "--secret", &secret(&spec)]).success().unwrap();
    assert!(told.starts_with("nothing to change"), "{told}");
    run(&["leave", &spec.name]).success().unwrap();
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}

/// The member's ConfigMap.
fn member(spec: &BusinessSpec) -> anyhow::Result<Value> {
    let label = format!("xregion.oam.dev/kind=member,app.oam.dev/name={}", spec.name);
    let list = lab().kubectl("hub", &["get", "configmaps", "-n", NAMESPACE, "-l", &label, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"][0].clone())
}

#[test]
#[ignore = "make test-faults"]
fn b_member_is_not_joined_again_for_it_and_a_hub_that_was_off_too_long_has_a_way_back() {
    let lab = joined();
    let (spec, directory) = (fresh(195), tempfile::tempdir().unwrap());
    lab.start_business(&spec).unwrap();
    let due = aged(&spec, &mint(&spec, directory.path(), "minted"), LASTING * 5 / 6);
    let old = token_of(&due);
    bring(&spec, &due);
    let controller = Controller::enable();
    let properties = json!({"region": "proxy-east", "kubeconfig": {"secret": secret(&spec)}});
    lab.vela_up(&site::member(&spec.name, &properties)).unwrap();
    lab.await_running(&spec.name).unwrap();
    let new = await_other_than(&spec, &old);
    let expires = annotation(&spec.name, "expires");
    eventually("the member telling of the new token", || {
        let member = member(&spec)?;
        let message = member["data"]["message"].as_str().unwrap_or_default();
        anyhow::ensure!(message.contains(&expires) && member["data"]["state"] == "joined", "{member}");
        Ok(())
    });
    is_there(&spec.name);

    // Looked at again, which shows by what it tells anew, the member is not joined again for a token that the controller itself wrote.
    let log = || lab.kubectl("hub", &["logs", "-n", NAMESPACE, &format!("deployment/{CONTROLLER}")]).unwrap();
    let joins = |log: &str| log.lines().filter(|line| line.contains("joined through proxy-east")).count();
    let map = member(&spec).unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    let untold = r#"{"data":{"state":"untold"}}"#;
    lab.kubectl("hub", &["patch", "configmap", &map, "-n", NAMESPACE, "--type=merge", "-p", untold]).unwrap();
    eventually("the member looked at again", || {
        let member = member(&spec)?;
        anyhow::ensure!(member["data"]["state"] == "joined", "{member}");
        Ok(())
    });
    let before = log();
    assert_eq!(joins(&before), 1, "{before}");

    // Off for too long: what is in both Secrets is over.
    controller.scale("0");
    let over = aged(&spec, &due, LASTING);
    let patch = json!({
        "metadata": {"annotations": {"xregion.oam.dev/expires": "2026-01-01T00:00:00Z"}},
        "data": {"token": base64(&token_of(&over)).unwrap()},
    });
    lab.kubectl("hub", &["patch", "secret", &spec.name, "-n", NAMESPACE, "--type=merge", "-p", &patch.to_string()]).unwrap();
    bring(&spec, &over);
    controller.scale("1");
    eventually("what is told of it", || {
        let told = run(&["status", &spec.name, "-o", "json"]).success()?;
        let told: Value = serde_json::from_str(&told)?;
        let told = told["outOfStep"].to_string();
        let way_back = format!("put its FILE into Secret {NAMESPACE}/{}, key kubeconfig", secret(&spec));
        for part in ["credentials: they expired at 2026-01-01T00:00:00Z", "controller: its token expired at ", &way_back] {
            anyhow::ensure!(told.contains(part), "{part} is not in {told}");
        }
        Ok(())
    });
    let doctor = run(&["doctor", &spec.name]);
    let verdict = doctor.stdout.lines().last().unwrap_or_default();
    assert!(verdict.contains("credentials: they expired at") && verdict.contains("run xregion kubeconfig again"), "{doctor:?}");

    bring(&spec, &mint(&spec, directory.path(), "anew"));
    await_other_than(&spec, &token_of(&over));
    eventually("nothing told any more", || {
        let told: Value = serde_json::from_str(&run(&["status", &spec.name, "-o", "json"]).success()?)?;
        anyhow::ensure!(told["outOfStep"] == json!([]), "{}", told["outOfStep"]);
        Ok(())
    });
    is_there(&spec.name);
    let logs = before + &log();
    for token in [&old, &new, &token_of(&over)] {
        assert!(!logs.contains(signature(token)), "a token is in the log");
    }
    lab.kubectl("hub", &["delete", "application", &spec.name, "-n", "default", "--wait=false"]).unwrap();
    eventually("the end of its Application", || {
        let found = ["get", "application", &spec.name, "-n", "default", "--ignore-not-found", "-o", "name"];
        let found = lab.kubectl("hub", &found)?;
        anyhow::ensure!(found.is_empty(), "{found} is there");
        Ok(())
    });
    drop(controller);
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn c_hub_s_token_is_shown_to_no_other_server() {
    let lab = joined();
    let (spec, directory) = (fresh(203), tempfile::tempdir().unwrap());
    lab.start_business(&spec).unwrap();
    let minted = mint(&spec, directory.path(), "minted");
    bring(&spec, &minted);
    let join = || run(&["join", &spec.name, "--region", "proxy-east", "--secret", &secret(&spec)]);
    join().success().unwrap();

    // As it was brought once, with a token that is over: the hub's takes its place.
    let over = aged(&spec, &minted, LASTING * 2);
    bring(&spec, &over);
    let told = join().success().unwrap();
    assert!(told.starts_with("nothing to change"), "{told}");

    // And with another server, which would be shown the hub's.
    let mut elsewhere = over;
    let authority = lab.authority("business-b").unwrap().certificate().to_owned();
    let server = json!({"server": "https://10.80.1.32:6443", "certificate-authority-data": base64(&authority).unwrap()});
    elsewhere["clusters"][0]["cluster"] = server;
    bring(&spec, &elsewhere);
    let refused = join();
    assert_eq!(refused.status.code(), Some(16), "{refused:?}");
    assert!(refused.stderr.contains("the kubeconfig's token expired at"), "{refused:?}");
    assert_eq!(read(&spec.name, "token").unwrap(), token_of(&minted));
    is_there(&spec.name);
    run(&["leave", &spec.name]).success().unwrap();
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}
