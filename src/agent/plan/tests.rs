use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::model::bounds::Bounds;
use crate::model::names::{HubId, Slot};

fn map(cluster: &str, host: &str, listen: u16, age: i64) -> (String, ConfigMap) {
    let route = Route {
        slot: Slot::First,
        hub: HubId::new("hub-uid"),
        cluster: cluster.parse().unwrap(),
        host: host.parse().unwrap(),
        port: 443,
        listen,
        bounds: Bounds::NONE,
        server_name: None,
        alias: None,
        proven_at: None,
        uid: String::new(),
    };
    let mut map = route.to_config_map();
    map.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1_000_000 - age).unwrap()));
    (route.name(), map)
}

fn region(allow: &str) -> Region {
    Region::parse(&format!(
        r#"{{"nodes":{{"addressType":"InternalIP"}},"nodePorts":{{"first":30000,"last":30085}},"upstreams":{{"allow":{allow}}},
            "timeouts":{{"connectSeconds":3,"idleSeconds":14400,"drainSeconds":3600}}}}"#
    ))
    .unwrap()
}

struct World {
    maps: BTreeMap<String, ConfigMap>,
    region: Region,
    names: BTreeMap<DnsName, Known>,
    serving: Serving,
}

fn world(maps: &[(String, ConfigMap)]) -> World {
    World { maps: maps.iter().cloned().collect(), region: region("[]"), names: BTreeMap::new(), serving: Serving::new() }
}

impl World {
    fn plan(&self) -> Plan {
        Plan::new(&Facts {
            maps: &self.maps,
            region: &self.region,
            own: &["10.244.0.0/16".parse().unwrap()],
            names: &self.names,
            serving: &self.serving,
            health_port: 9000,
        })
    }

    fn knowing(mut self, name: &str, answer: Result<&[&str], &str>) -> Self {
        let known = self.names.entry(name.parse().unwrap()).or_default();
        match answer {
            Ok(all) => known.learn(all.iter().map(|address| address.parse().unwrap()).collect(), None),
            Err(why) => known.learn(vec![], Some((Reason::Unresolvable, why.to_owned()))),
        }
        self
    }
}

fn problem<'a>(plan: &'a Plan, name: &str) -> (Reason, &'a str) {
    let problem = plan.problems[name].problem.as_ref().unwrap();
    (problem.reason, &problem.message)
}

#[test]
fn the_older_of_two_routes_with_one_port_has_it() {
    for (ages, winner) in [([5, 9], 1), ([9, 5], 0), ([5, 5], 0)] {
        let maps = [map("a", "192.0.2.1", 8000, ages[0]), map("b", "192.0.2.2", 8000, ages[1])];
        let plan = world(&maps).plan();
        assert_eq!(plan.served.keys().collect::<Vec<_>>(), [&maps[winner].0], "{ages:?}");
        let (reason, message) = problem(&plan, &maps[1 - winner].0);
        assert!(reason == Reason::Invalid && message.contains(&maps[winner].0), "{message}");
    }
}

/// A route by name.
fn named(cluster: &str, host: &str, name: &str, age: i64) -> (String, ConfigMap) {
    let (key, mut map) = map(cluster, host, 8000, age);
    map.data.as_mut().unwrap().extend([("mode".into(), "sni".into()), ("serverName".into(), name.into())]);
    (key, map)
}

#[test]
fn routes_by_name_share_a_port_and_the_older_of_two_with_one_name_has_it() {
    let maps = [named("a", "192.0.2.1", "a.example", 9), named("b", "192.0.2.2", "b.example", 5), map("c", "192.0.2.3", 8000, 1)];
    assert_eq!(world(&maps).plan().served.len(), 3);
    for (ages, winner) in [([5, 9], 1), ([9, 5], 0), ([5, 5], 0)] {
        let maps = [named("a", "192.0.2.1", "x.example", ages[0]), named("b", "192.0.2.2", "x.example", ages[1])];
        let plan = world(&maps).plan();
        assert_eq!(plan.served.keys().collect::<Vec<_>>(), [&maps[winner].0], "{ages:?}");
        let (reason, message) = problem(&plan, &maps[1 - winner].0);
        assert!(reason == Reason::Invalid && message.contains(&maps[winner].0) && message.contains("mode port"), "{message}");
    }
    // Two hubs, one cluster.
    let shared = [named("a", "192.0.2.1", "x.example", 9), named("b", "192.0.2.1", "x.example", 5)];
    let plan = world(&shared).plan();
    assert_eq!((plan.served.len(), plan.problems.len()), (2, 0));
    // It keeps its name while it can't be served.
    let gone = [named("a", "gone.example", "x.example", 9), named("b", "192.0.2.2", "x.example", 5)];
    let plan = world(&gone).knowing("gone.example", Err("no such name")).plan();
    assert_eq!((problem(&plan, &gone[0].0).0, problem(&plan, &gone[1].0).0), (Reason::Unresolvable, Reason::Invalid));
}

#[test]
fn a_route_whose_name_changed_gives_its_old_one_up_at_once() {
    let serving = world(&[named("a", "192.0.2.1", "x.example", 9)]).plan().served;
    for (name, kept) in [("x.example", true), ("y.example", false)] {
        let world = World { serving: serving.clone(), ..world(&[named("a", "new.example", name, 9)]) };
        assert_eq!(world.plan().served == serving, kept, "{name}");
    }
}

#[test]
fn a_route_that_cant_be_served_keeps_its_port() {
    let maps = [map("a", "gone.example", 8000, 9), map("b", "192.0.2.2", 8000, 5)];
    let plan = world(&maps).knowing("gone.example", Err("no such name")).plan();
    assert_eq!(problem(&plan, &maps[0].0), (Reason::Unresolvable, "gone.example: no such name"));
    assert_eq!(problem(&plan, &maps[1].0).0, Reason::Invalid);
}

#[test]
fn ports_that_are_no_proxys_and_config_maps_that_are_no_routes_are_invalid() {
    let mut edited = map("c", "192.0.2.3", 8002, 0);
    edited.1.data.as_mut().unwrap().insert("port".into(), "x".into());
    let maps = [map("a", "192.0.2.1", 443, 0), map("b", "192.0.2.2", 9000, 0), edited, map("d", "192.0.2.4", 8003, 0)];
    let plan = world(&maps).plan();
    for (name, _) in &maps[..3] {
        assert_eq!(problem(&plan, name).0, Reason::Invalid, "{name}");
    }
    assert!(plan.served.contains_key(&maps[3].0), "one bad route harms no other");
}

#[test]
fn addresses_that_are_refused_are_left_out() {
    let maps = [map("a", "api.example", 8000, 0)];
    let served = |world: World| world.plan().served[&maps[0].0].addresses.clone();
    let mixed = world(&maps).knowing("api.example", Ok(&["10.244.3.4", "192.0.2.1"]));
    assert_eq!(served(mixed), ["192.0.2.1".parse::<IpAddr>().unwrap()]);

    let plan = world(&maps).knowing("api.example", Ok(&["10.244.3.4", "127.0.0.1"])).plan();
    let (reason, message) = problem(&plan, &maps[0].0);
    assert!(reason == Reason::Refused && message.contains("10.244.3.4") && message.contains("loopback"), "{message}");

    let literal = world(&[map("a", "169.254.169.254", 8000, 0)]).plan();
    assert_eq!(problem(&literal, &maps[0].0).0, Reason::Refused);

    let listed = World { region: region(r#"["*.other.example"]"#), ..world(&maps).knowing("api.example", Ok(&["192.0.2.1"])) };
    assert_eq!(problem(&listed.plan(), &maps[0].0).0, Reason::Refused);
}

#[test]
fn a_name_that_stops_resolving_keeps_its_last_good_addresses() {
    let maps = [map("a", "api.example", 8000, 0)];
    let known = world(&maps).knowing("api.example", Ok(&["192.0.2.1"])).knowing("api.example", Err("no such name"));
    assert!(known.plan().problems.is_empty());
}

#[test]
fn a_changed_route_is_served_as_it_was_until_its_name_is_looked_up() {
    let before = [map("a", "192.0.2.1", 8000, 0)];
    let serving = world(&before).plan().served;
    for (listen, kept) in [(8000, true), (8001, false)] {
        let world = World { serving: serving.clone(), ..world(&[map("a", "new.example", listen, 0)]) };
        let plan = world.plan();
        assert!(plan.pending);
        assert_eq!(plan.served == serving, kept, "{listen}");
        assert!(plan.problems.is_empty());
    }
}

#[test]
fn a_port_that_is_in_use_elsewhere_harms_its_route_only() {
    let maps = [map("a", "192.0.2.1", 8000, 0), map("b", "192.0.2.2", 8001, 0), map("c", "192.0.2.3", 8002, 0)];
    let serving = world(&maps[..1]).plan().served;
    let mut plan = world(&maps).plan();
    // nginx itself listens on 8000, so nobody else can.
    let can_listen = |port| if port == 8001 || port == 8000 { Err("in use".into()) } else { Ok(()) };
    assert_eq!(plan.take_out_unlistenable(&serving, can_listen), 1);
    assert_eq!(plan.served.keys().collect::<Vec<_>>(), [&maps[0].0, &maps[2].0]);
    assert_eq!(problem(&plan, &maps[1].0), (Reason::Rejected, "its listen port 8001 can't be opened: in use"));

    // nginx has had this one from its start.
    let mut plan = world(&[named("a", "192.0.2.1", "a.example", 0)]).plan();
    assert_eq!(plan.take_out_unlistenable(&Serving::new(), |_| Err("in use".into())), 0);
}

#[test]
fn what_nginx_rejects_is_told_of_the_routes_that_changed() {
    let maps = [map("a", "192.0.2.1", 8000, 0), map("b", "192.0.2.2", 8001, 0)];
    let plan = world(&maps).plan();
    assert!(plan.report().0.values().all(|applied| applied.problem.is_none()));
    let report = plan.report_rejected(&world(&maps[..1]).plan().served, "nginx says no");
    assert_eq!(report.0[&maps[0].0].problem, None);
    assert_eq!(report.0[&maps[1].0].problem.as_ref().unwrap().reason, Reason::Rejected);
}
