//! Whatever somebody writes into a route's ConfigMap, it is refused, or nginx is told to listen on one port and to connect to the
//! addresses given, and to nothing else.

#![no_main]

use k8s_openapi::api::core::v1::ConfigMap;
use libfuzzer_sys::fuzz_target;
use xregion::model::bounds::Bounds;
use xregion::model::nginx::{Build, Host, Limits, Served};
use xregion::model::region::Timeouts;
use xregion::model::route::Route;

const KEYS: [&str; 13] = [
    "schema",
    "hub",
    "cluster",
    "host",
    "port",
    "listen",
    "mode",
    "slot",
    "alias",
    "provenAt",
    "sourceRanges",
    "serverName",
    "maxConnections",
];

fuzz_target!(|texts: Vec<Option<String>>| {
    let valid = ["1", "hub-uid", "business-a", "api.example", "443", "8000", "port"].map(str::to_owned);
    let mut map = ConfigMap::default();
    let data = map.data.get_or_insert_default();
    for (number, key) in KEYS.iter().enumerate() {
        let text = texts.get(number).cloned().flatten().or_else(|| valid.get(number).cloned());
        data.extend(text.map(|text| ((*key).to_owned(), text)));
    }
    // The name has to fit; finding the hash is not what this is for.
    let named = |slot: &str| {
        let hub = xregion::model::names::HubId::new(data["hub"].as_str());
        let slot = if slot == "second" { xregion::model::names::Slot::Second } else { xregion::model::names::Slot::First };
        Some(hub.route_name(&data["cluster"].parse().ok()?, slot))
    };
    map.metadata.name = named(data.get("slot").map_or("", String::as_str));
    let Ok(route) = Route::from_config_map(&map) else { return };

    let build =
        Build::parse("configure arguments: --prefix=/etc/nginx --with-stream --with-stream_ssl_preread_module").expect("a build");
    let host = Host { build, directory: "/run/xregion".into(), ipv6: false, open_files: 1 << 20, user: None, sni_listen: 7443 };
    let timeouts = Timeouts { connect_seconds: 3, idle_seconds: 14400, drain_seconds: 3600 };
    let limits = Limits { timeouts, bounds: Bounds::NONE };
    let (listen, port, by_name) = (route.listen, route.port, route.server_name.clone());
    let Bounds { sources, connections } = route.bounds.clone();
    let files = host.render(limits, [&Served { route, addresses: vec!["192.0.2.1".parse().expect("an address")] }]);
    let words = files["sni.conf"].lines().map(str::trim).filter(|line| line.starts_with('"')).collect::<Vec<_>>();
    let (_, text) = files.iter().find(|(name, _)| name.starts_with("routes/")).expect("the route's file");
    let (log, directives): (Vec<&str>, Vec<&str>) =
        text.lines().filter(|line| !line.starts_with('#')).map(str::trim).partition(|line| line.starts_with("log_format "));
    let name = directives[0].strip_prefix("upstream ").and_then(|rest| rest.strip_suffix(" {")).expect("an upstream");
    if let Some(asked) = by_name {
        assert!(asked.as_str().chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c)), "{asked}");
        assert_eq!(words, [format!("\"\\\\{asked}\" {name};")]);
        assert_eq!((log.len(), &directives[1..]), (0, &[format!("server 192.0.2.1:{port} max_fails=0;").as_str(), "}"][..]));
        return;
    }
    assert!(words.is_empty(), "{words:?}");
    assert!(log.len() == 1 && log[0].matches('\'').count() == 2 && log[0].ends_with("}';"), "{log:?}");
    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name:?}");
    let mut want = vec![
        format!("upstream {name} {{"),
        format!("server 192.0.2.1:{port} max_fails=0;"),
        "}".into(),
        "server {".into(),
        format!("listen {listen} so_keepalive=60s:15s:4;"),
    ];
    want.extend((&sources).into_iter().map(|range| format!("allow {range};")));
    want.extend((!sources.is_empty()).then(|| "deny all;".into()));
    want.extend(connections.map(|most| format!("limit_conn routes {most};")));
    want.extend([format!("proxy_pass {name};"), format!("access_log /dev/stdout {name};"), "}".into()]);
    assert_eq!(directives, want);
});
