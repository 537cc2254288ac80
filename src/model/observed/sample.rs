//! A hub where all is well, for tests to break: two regions, two clusters in the first.

use serde_json::json;

use super::*;
use crate::error::{Failure, Kind};
use crate::model::aliases::Wanted;
use crate::model::bounds::Bounds;
use crate::model::names::ApiHost;
use crate::model::region::{SNI_LISTEN, SNI_PORT};
use crate::model::report::Applied;

/// A cluster's name.
pub fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn hub() -> HubId {
    HubId::new("hub-uid")
}

fn settings() -> Settings {
    Settings::parse(
        &json!({
            "nodes": {"addressType": "InternalIP"}, "nodePorts": {"first": 30000, "last": 30085}, "upstreams": {},
            "timeouts": {"connectSeconds": 3, "idleSeconds": 1, "drainSeconds": 1},
        })
        .to_string(),
    )
    .unwrap()
}

/// The route of a cluster.
pub fn route(cluster: &str, slot: Slot, host: &str, listen: u16) -> Route {
    Route {
        slot,
        hub: hub(),
        cluster: name(cluster),
        host: host.parse().unwrap(),
        port: 443,
        listen,
        bounds: Bounds::NONE,
        server_name: None,
        alias: Some(format!("{cluster}.example").parse().unwrap()),
        proven_at: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        uid: "uid".into(),
    }
}

/// A region with two nodes, two proxies, and these routes served by both at node ports from 30000.
pub fn inside(network: u8, routes: Vec<Route>) -> Inside {
    let node = |n: u8| EntryNode {
        name: format!("node-{network}{n}"),
        ip: [10, 0, network, n].into(),
        ready: true,
        lacks_proxy: false,
        balances: false,
    };
    let applied = |route: &Route| (route.name(), Applied { digest: route.mark(), problem: None });
    let report = Report(routes.iter().map(applied).collect());
    let proxies = ["proxy-1", "proxy-2"].map(str::to_owned);
    let ports = |route: &Route| (route.port_name(), Ports { listen: route.listen, node: route.listen + 22000 });
    let own = (SNI_PORT.to_owned(), Ports { listen: SNI_LISTEN, node: 30085 });
    Inside {
        millis: 9,
        settings: settings(),
        nodes: vec![node(1), node(2)],
        proxies: proxies.clone().map(|proxy| (proxy, true)).into(),
        reports: proxies.map(|proxy| (proxy, report.clone())).into(),
        ports: routes.iter().map(ports).chain([own]).collect(),
        routes,
        service_as_set: true,
    }
}

/// How a cluster of region east is joined.
pub fn membership(cluster: &str, host: &str, node_port: u16) -> Membership {
    Membership {
        region: name("proxy-east"),
        upstream: host.parse::<ApiHost>().unwrap(),
        upstream_port: 443,
        bounds: Bounds::NONE,
        alias: format!("{cluster}.example").parse().unwrap(),
        node_port,
        mode: Mode::Port,
        identity: format!("{cluster}-uid"),
        expires: None,
        renews: None,
        source: None,
    }
}

fn cluster(cluster: &str, host: &str, node_port: u16) -> SeenCluster {
    let membership = membership(cluster, host, node_port);
    SeenCluster {
        name: name(cluster),
        endpoint: Some(membership.endpoint()),
        answer: Ok(Answer { identity: membership.identity.clone(), millis: 12 }),
        membership,
    }
}

/// The failure of something that does not answer.
pub fn silence(kind: Kind) -> Failure {
    Failure::new(kind, "nothing within 5 s", "look for it")
}

/// All is well.
pub fn well() -> Observed {
    let routes = vec![route("business-a", Slot::First, "business-a.example", 8000), route("b", Slot::First, "10.9.0.1", 8001)];
    let wanted = |cluster: &str| Wanted {
        host: format!("{cluster}.example").parse().unwrap(),
        cluster: name(cluster),
        region: name("proxy-east"),
    };
    let nodes = BTreeSet::from([[10, 0, 1, 1].into(), [10, 0, 1, 2].into()]);
    let nodes = [("proxy-east".to_owned(), nodes.into())].into();
    let region = |region: &str, inside| SeenRegion { name: name(region), inside: Ok(inside) };
    let direct = ["proxy-east", "proxy-west"].map(|region| (name(region), None));
    let through = ["business-a", "b"].map(|cluster| (name(cluster), Some(name("proxy-east"))));
    Observed {
        now: "2026-06-01T00:00:00Z".parse().unwrap(),
        hub: hub(),
        addon: Ok(()),
        gateway: Ok(SeenGateway {
            deployment: "kubevela-cluster-gateway".into(),
            aliases: HostAliases::default().with(&[wanted("business-a"), wanted("b")], &nodes),
            waiting: None,
        }),
        services: Ok(None),
        regions: vec![region("proxy-east", inside(1, routes)), region("proxy-west", inside(2, vec![]))],
        clusters: vec![cluster("b", "10.9.0.1", 30001), cluster("business-a", "business-a.example", 30000)],
        unread: vec![],
        joined: direct.into_iter().chain(through).collect(),
        leftovers: BTreeSet::new(),
        joining: BTreeSet::new(),
        controller: None,
    }
}
