//! Jobs and agents one version apart. What 0.1.0 writes is written down here, as it is, for whatever comes later to read; and what is
//! written later may hold more than this version knows.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use xregion::model::aliases::Record;
use xregion::model::membership::Membership;
use xregion::model::region::Region;
use xregion::model::report::{Reason, Report, Uptake, uptake};
use xregion::model::route::Route;

/// A route, with the mark that every agent of 0.1.0 reports for it.
fn route() -> (Value, &'static str) {
    let map = json!({
        "metadata": {"name": "xregion-route-business-a-753695f4", "namespace": "vela-system", "uid": "4f6e"},
        "data": {
            "schema": "1", "hub": "a-hub", "cluster": "business-a", "host": "a1b2.eks.example", "port": "443", "listen": "8000",
            "mode": "port", "alias": "a1b2.eks.example", "provenAt": "2026-11-24T09:00:00Z",
        },
    });
    (map, "2de8d21841c1a161@4f6e")
}

fn read(map: &Value) -> Result<Route, String> {
    Route::from_config_map(&serde_json::from_value::<ConfigMap>(map.clone()).unwrap())
}

#[test]
fn a_route_means_the_same_to_both() {
    let (map, mark) = route();
    let read_back = read(&map).unwrap();
    assert_eq!(read_back.mark(), mark);
    assert_eq!(json!(read_back.to_config_map().data), map["data"]);
    let mut later = map.clone();
    later["data"]["sources"] = json!("10.0.0.0/8");
    assert_eq!(read(&later), Ok(read_back));
    // What would have to be understood is refused, and not guessed.
    for (key, value) in [("schema", "2"), ("mode", "http")] {
        let mut later = map.clone();
        later["data"][key] = json!(value);
        assert!(read(&later).unwrap_err().contains("this version knows"));
    }
}

#[test]
fn a_route_by_name_means_the_same_to_both() {
    let (mut map, _) = route();
    map["data"]["mode"] = json!("sni");
    map["data"]["serverName"] = json!("a1b2.eks.example");
    map["data"].as_object_mut().unwrap().remove("listen");
    let read_back = read(&map).unwrap();
    assert_eq!(json!(read_back.to_config_map().data), map["data"]);
    assert_eq!(read_back.mark(), "96fd98d862d01da2@4f6e");
}

#[test]
fn a_proxys_report_is_read_with_what_a_later_one_adds() {
    let (_, mark) = route();
    let name = "xregion-route-business-a-753695f4";
    let report = |applied: Value| -> BTreeMap<String, Report> {
        let text = json!({name: applied}).to_string();
        [("proxy".to_owned(), serde_json::from_str(&text).unwrap())].into()
    };
    let ready = ["proxy".to_owned()];
    let serves = report(json!({"digest": mark, "since": "2026-11-24T09:00:00Z"}));
    assert_eq!(uptake(name, mark, &ready, &serves), Uptake::Everywhere);
    let problem = json!({"reason": "Overloaded", "message": "too much at once", "code": 7});
    let Uptake::Failed { problem, .. } = uptake(name, mark, &ready, &report(json!({"digest": mark, "problem": problem}))) else {
        panic!("a problem is none")
    };
    assert_eq!((problem.reason, problem.message.as_str()), (Reason::Other, "too much at once"));
    for (reason, text) in [
        (Reason::Unresolvable, "Unresolvable"),
        (Reason::Unanswered, "Unanswered"),
        (Reason::Refused, "Refused"),
        (Reason::Invalid, "Invalid"),
        (Reason::Rejected, "Rejected"),
    ] {
        assert_eq!(json!(reason), text);
    }
}

#[test]
fn a_regions_settings_are_read_with_what_a_later_addon_adds() {
    let settings = json!({
        "nodes": {"selector": {"role": "proxy"}, "addressType": "InternalIP"},
        "nodePorts": {"first": 30000, "last": 30999},
        "upstreams": {"allow": ["10.0.0.0/8", "*.example"]},
        "timeouts": {"connectSeconds": 5, "idleSeconds": 3600, "drainSeconds": 600},
        "maxConnections": 100,
    });
    let read = Region::parse(&settings.to_string()).unwrap();
    assert_eq!((read.max_connections, read.timeouts.drain_seconds, read.node_ports.last), (100, 600, 30999));
    let mut later = settings;
    later["limits"] = json!({"connections": 100});
    later["timeouts"]["tlsSeconds"] = json!(5);
    assert_eq!(Region::parse(&later.to_string()), Ok(read));
}

#[test]
fn the_hubs_records_are_read_with_what_a_later_version_adds() {
    let record = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
        [
            ("schema", "1"),
            ("region", "proxy-east"),
            ("upstream", "a1b2.eks.example:443"),
            ("alias", "a1b2.eks.example"),
            ("node-port", "30001"),
            ("mode", "port"),
            ("identity", "uid"),
        ]
        .iter()
        .chain(more)
        .map(|(key, value)| (format!("xregion.oam.dev/{key}"), (*value).to_owned()))
        .collect()
    };
    let membership = Membership::from_annotations(&record(&[])).unwrap();
    assert_eq!(membership.to_annotations(), record(&[]));
    assert_eq!(Membership::from_annotations(&record(&[("renewed", "never")])), Some(membership));

    let aliases = json!({"a1b2.eks.example": {"region": "proxy-east", "clusters": ["business-a"]}});
    let read: Record = serde_json::from_value(aliases.clone()).unwrap();
    assert_eq!(json!(read), aliases);
    let mut later = aliases;
    later["a1b2.eks.example"]["service"] = json!("10.100.7.7");
    assert_eq!(serde_json::from_value::<Record>(later).unwrap(), read);
}
