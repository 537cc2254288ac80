//! `xregion status` and `xregion doctor` from a shell that reaches the hub's API and nothing else: what they say of a whole way, and of
//! one with a link that is broken. What they name as the fix is what mends it.

use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;
use xregion_lab::Output;
use xregion_lab::site::{GATEWAY, NAMESPACE};

use super::fixture::{Duration, Snapshot, eventually, joined, lab, through_gateway};
use super::laptop::{kubeconfig_file, run};

const HOST: &str = "a1b2c3d4e5.gr7.ap-east-1.eks.example";

fn overview() -> Value {
    let output = run(&["status", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_str(&output.stdout).unwrap()
}

fn business_a(overview: &Value) -> (&Value, &Value) {
    let region = named(&overview["regions"], "proxy-east");
    (region, named(&region["clusters"], "business-a"))
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn doctor(output: &Output) -> (Option<i32>, &str) {
    (output.status.code(), output.stdout.trim_end().lines().last().unwrap_or_default())
}

/// Checks what both say of a broken link: its name, the cause, and the fix.
fn broken(link: &str, cause: &str, fix: &str) {
    let output = run(&["doctor", "business-a"]);
    let (code, verdict) = doctor(&output);
    assert_eq!(code, Some(90), "{output:?}");
    assert!(verdict.starts_with(&format!("first broken link: cluster business-a, {link}: ")), "{output:?}");
    assert!(verdict.contains(cause) && verdict.contains(fix), "{output:?}");
    let overview = overview();
    let told = overview["outOfStep"].as_array().unwrap();
    let tells = |entry: &&Value| entry["about"] == "cluster business-a" && entry["what"].as_str().unwrap().starts_with(link);
    let entry = told.iter().find(tells).unwrap_or_else(|| panic!("{link} is not in {told:?}"));
    assert!(entry["what"].as_str().unwrap().contains(cause) && entry["fix"].as_str().unwrap().contains(fix), "{entry}");
}

/// What they name as the fix of a way that lacks a part.
fn join_again() {
    let file = kubeconfig_file("business-a");
    let output = run(&["join", "business-a", "--region", "proxy-east", "--kubeconfig", file.path().to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}

fn whole() {
    eventually("every link of the way to business-a", || {
        let output = run(&["doctor", "business-a"]);
        anyhow::ensure!(doctor(&output) == (Some(0), "no link is broken"), "{output:?}");
        Ok(())
    });
}

#[test]
fn a_joined_cluster_is_shown_whole() {
    joined();
    whole();
    let start = Instant::now();
    let output = run(&["status"]);
    let took = start.elapsed();
    assert!(output.status.success(), "{output:?}");
    println!("{}\n`xregion status` took {} ms", output.stdout, took.as_millis());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let line = output.stdout.lines().find(|line| line.contains("─ business-a ")).unwrap();
    assert!(
        line.contains(&format!("to {HOST}:443")) && line.contains("applied on 2 of 2") && line.contains("answers in "),
        "{line}"
    );
    assert!(output.stdout.contains("─ proxy-west  2/2 proxies ready"), "{}", output.stdout);
    assert!(!output.stdout.contains("cluster business-a: "), "{}", output.stdout);

    let overview = overview();
    let (region, cluster) = business_a(&overview);
    assert_eq!((&region["reachable"], region["proxies"].as_array().unwrap().len()), (&Value::Bool(true), 2), "{region}");
    assert_eq!(cluster["endpoint"], format!("https://{HOST}:{}", cluster["nodePort"]));
    assert_eq!((cluster["route"]["applied"].as_u64(), cluster["route"]["proxies"].as_u64()), (Some(2), Some(2)), "{cluster}");
    assert!(cluster["millis"].is_u64() && cluster["route"]["provenAt"].is_string(), "{cluster}");
    let led: Vec<&str> = cluster["aliasAddresses"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(led, lab().entry_addresses("proxy-east").unwrap());

    let wide = run(&["status", "business-a", "-o", "wide"]).stdout;
    assert!(wide.contains(&format!("alias {HOST} at ")) && !wide.contains("proxy-west"), "{wide}");
    let yaml = run(&["status", "business-a", "-o", "yaml"]).stdout;
    assert!(yaml.contains("- name: business-a\n"), "{yaml}");
    let output = run(&["doctor"]);
    assert_eq!(doctor(&output), (Some(0), "no link is broken"), "{output:?}");
    println!("{}", run(&["doctor", "business-a"]).stdout);
}

#[test]
fn b_dead_cluster_is_the_last_link_and_others_are_shown() {
    let lab = joined();
    lab.stop_api("business-a").unwrap();
    let seen = std::panic::catch_unwind(|| {
        eventually("business-a to be silent", || {
            anyhow::ensure!(through_gateway(lab, "business-a", "/version").is_err(), "it still answers");
            Ok(())
        });
        broken("answers", "cluster business-a does not answer through the gateway", "check the API server of business-a");
        let overview = overview();
        let (region, cluster) = business_a(&overview);
        assert_eq!((&region["reachable"], &cluster["reachable"]), (&Value::Bool(true), &Value::Bool(false)));
    });
    lab.start_api("business-a").unwrap();
    seen.unwrap();
    whole();
}

#[test]
fn c_lost_route_is_named_and_comes_back_by_joining_again() {
    let lab = joined();
    let label = "xregion.oam.dev/kind=route,xregion.oam.dev/cluster=business-a";
    lab.kubectl("proxy-east", &["delete", "configmaps", "-n", NAMESPACE, "-l", label]).unwrap();
    broken("route", "region proxy-east has no route of it", "xregion join business-a --region proxy-east");
    join_again();
    whole();
}

#[test]
#[ignore = "make test-faults"]
fn d_lost_host_alias_is_named_and_comes_back_by_joining_again() {
    let lab = joined();
    let patch = r#"{"spec":{"template":{"spec":{"hostAliases":null}}}}"#;
    lab.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "--type=merge", "-p", patch]).unwrap();
    lab.kubectl("hub", &["rollout", "status", "deployment", GATEWAY, "-n", NAMESPACE, "--timeout=120s"]).unwrap();
    eventually("the old gateway gone", || {
        let overview = overview();
        anyhow::ensure!(overview["hub"]["rolled"] == true, "{}", overview["hub"]);
        Ok(())
    });
    broken("host alias", &format!("the gateway has no host alias {HOST}"), "xregion join business-a --region proxy-east");
    join_again();
    whole();
}

#[test]
fn e_region_that_is_dead_is_told_and_the_rest_is_shown() {
    let lab = joined();
    lab.stop_api("proxy-west").unwrap();
    let seen = std::panic::catch_unwind(|| {
        let overview = overview();
        let west = overview["regions"].as_array().unwrap().iter().chain(overview["unread"].as_array().unwrap());
        let west = west.into_iter().find(|one| one["name"] == "proxy-west").unwrap();
        assert!(west["why"].is_string() && west["reachable"] != true, "{west}");
        assert_eq!(business_a(&overview).1["reachable"], true);
    });
    lab.start_api("proxy-west").unwrap();
    seen.unwrap();
    eventually("proxy-west answering", || through_gateway(lab, "proxy-west", "/version").map(drop));
}

#[test]
fn f_routes_are_a_view_of_vela_and_looking_changes_nothing() {
    let before = Snapshot::take(joined(), "");
    let text = lab().vela(&["ql", "--query", "xregion-routes{region=proxy-east}"]).unwrap();
    let seen: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let routes = seen["routes"].as_array().unwrap();
    let route = routes.iter().find(|route| route["cluster"] == "business-a").unwrap_or_else(|| panic!("{text}"));
    assert_eq!((&route["host"], &route["alias"], &route["port"]), (&HOST.into(), &HOST.into(), &"443".into()), "{text}");
    assert!(route["provenAt"].is_string(), "{text}");
    run(&["status"]);
    run(&["doctor", "business-a"]);
    before.assert_unchanged(lab(), "");
}

#[test]
fn g_traffic_is_shown_by_region_and_cluster() {
    joined();
    let carried = || {
        let output = run(&["traffic", "-o", "json"]);
        anyhow::ensure!(output.status.success(), "{output:?}");
        let regions: Value = serde_json::from_str(&output.stdout)?;
        let one = |list: &Value, key: &str, name: &str| list.as_array()?.iter().find(|one| one[key] == name).cloned();
        let east = one(&regions, "region", "proxy-east").context("proxy-east is not told of")?;
        one(&east["clusters"], "cluster", "business-a").with_context(|| format!("business-a is not in {east}"))
    };
    let before = eventually("the proxies to tell", carried);
    for _ in 0..20 {
        through_gateway(lab(), "business-a", "/api/v1/namespaces/kube-system").unwrap();
    }
    // They tell every 20 s.
    eventually("what was carried", || {
        let now = carried()?;
        let grown = |key: &str| now[key].as_u64().unwrap().saturating_sub(before[key].as_u64().unwrap());
        anyhow::ensure!(grown("bytesFromCluster") > 20 * 200 && grown("bytesToCluster") > 0, "{before} {now}");
        Ok(())
    });
    let text = run(&["traffic", "proxy-east"]).stdout;
    assert!(text.lines().any(|line| line.starts_with("proxy-east  business-a ")), "{text}");
    assert!(text.contains("proxy-east: since 20"), "{text}");
}
