use std::num::NonZeroU16;

use proptest::prelude::*;
use serde_json::json;

use super::super::bounds::Bounds;
use super::super::entries::Needs;
use super::super::entries::tests::provided;
use super::super::names::Slot;
use super::super::observed::sample::{name, route, silence, well};
use super::super::observed::{Observed, SeenGateway};
use super::super::region::{SNI_LISTEN, SNI_PORT};
use super::super::route::Mode;
use super::*;
use crate::error::Kind;

/// The sample hub as the controller sees it.
struct World {
    seen: Observed,
    records: Records,
    smooth: bool,
}

fn world() -> World {
    let seen = well();
    let member = |cluster: &super::super::observed::SeenCluster| Member {
        name: cluster.name.clone(),
        endpoint: cluster.endpoint.clone(),
        membership: cluster.membership.clone(),
        since: "2025-01-01T00:00:00Z".parse().unwrap(),
    };
    let members = seen.clusters.iter().map(member).collect();
    World { seen, records: Records { members, ..Records::default() }, smooth: true }
}

impl World {
    fn decide(&self) -> (Vec<Repair>, Vec<Trouble>) {
        let aliases = self.seen.gateway.as_ref().unwrap().aliases.clone();
        let standing = Standing { aliases, smooth: self.smooth, services: self.seen.services.clone().unwrap(), last_writer: None };
        let gateway = Some(&standing);
        decide(&Facts { hub: &self.seen.hub, records: &self.records, regions: &self.seen.regions, gateway })
    }

    fn east(&mut self) -> &mut Inside {
        self.seen.regions[0].inside.as_mut().unwrap()
    }

    fn gateway(&mut self) -> &mut SeenGateway {
        self.seen.gateway.as_mut().unwrap()
    }

    /// What is to be put back, and what is told, in words.
    fn words(&self) -> (Vec<String>, Vec<String>) {
        let (repairs, troubles) = self.decide();
        let told = troubles.iter().map(|trouble| format!("{}: {}", trouble.about, trouble.problem.cause)).collect();
        (repairs.iter().map(ToString::to_string).collect(), told)
    }

    fn leads(&self, region: &ClusterName, way: &Way) -> Leads {
        match self.seen.services.as_ref().unwrap() {
            None => way.nodes.clone().into(),
            Some(services) => services[region].leads(&way.ports, &way.nodes).unwrap(),
        }
    }

    /// As the loop does it.
    fn mend(&mut self, repairs: Vec<Repair>) {
        for repair in repairs {
            match repair {
                Repair::Gateway { wanted, regions } => {
                    let leading = regions.iter().map(|(region, way)| (region.to_string(), self.leads(region, way))).collect();
                    let (after, _) = self.gateway().aliases.with_admitted(&wanted, &leading, true);
                    self.gateway().aliases = after.with(&[], &leading);
                    self.smooth = true;
                }
                Repair::Addresses { region, way } => {
                    let leads = self.leads(&region, &way);
                    self.gateway().aliases = self.gateway().aliases.with(&[], &[(region.to_string(), leads)].into());
                }
                Repair::Entries { region, way } => {
                    let needs = Needs { ports: way.ports.clone(), nodes: way.nodes.clone(), shards: 1, ..Needs::default() };
                    let entries = provided(&region, &needs);
                    self.seen.services.as_mut().unwrap().as_mut().unwrap().insert(region.clone(), entries);
                    let leads = self.leads(&region, &way);
                    self.gateway().aliases = self.gateway().aliases.with(&[], &[(region.to_string(), leads)].into());
                }
                Repair::Service { .. } => {
                    let east = self.east();
                    east.service_as_set = true;
                    east.ports.insert(SNI_PORT.into(), Ports { listen: SNI_LISTEN, node: 30085 });
                }
                Repair::Way { route, ports, .. } => {
                    let east = self.east();
                    east.ports.insert(route.port_name(), ports);
                    // It comes with whatever is written.
                    east.ports.entry(SNI_PORT.into()).or_insert(Ports { listen: SNI_LISTEN, node: 30085 });
                    east.routes.retain(|other| other.name() != route.name());
                    east.routes.push(*route);
                }
            }
        }
    }
}

type Break = fn(&mut World);
/// Which of [`BREAKS`] gives a node another address.
const NODE: usize = 6;
const GATEWAY: &str = "the gateway's host aliases, their record or its rollout settings";

fn first(world: &mut World) -> &mut Route {
    &mut world.east().routes[0]
}

fn port(world: &mut World) -> &mut Ports {
    world.east().ports.values_mut().find(|ports| ports.node == 30000).unwrap()
}

/// What may be lost or bent, and what puts it back; `business-a` listens on 8000 at 30000.
const BREAKS: &[(Break, &[&str])] = &[
    (|_| {}, &[]),
    (|w| w.smooth = false, &[GATEWAY]),
    (|w| w.gateway().aliases.entries.clear(), &[GATEWAY]),
    (|w| w.gateway().aliases.record.0.clear(), &[GATEWAY]),
    (|w| w.gateway().aliases = HostAliases::default(), &[GATEWAY]),
    (|w| drop(w.gateway().aliases.record.0.remove("b.example")), &[GATEWAY]),
    (|w| w.east().nodes[0].ip = [10, 0, 1, 9].into(), &["the addresses that host aliases of region proxy-east lead to"]),
    // It may come back.
    (|w| w.east().nodes[0].ready = false, &[]),
    (|w| w.east().service_as_set = false, &["the way in that the Service of region proxy-east offers"]),
    (|w| drop(w.east().routes.remove(0)), &["the route of business-a in region proxy-east"]),
    (|w| first(w).host = "elsewhere.example".parse().unwrap(), &["the route of business-a in region proxy-east"]),
    (|w| first(w).port = 6443, &["the route of business-a in region proxy-east"]),
    (|w| first(w).listen = 8001, &["the route of business-a in region proxy-east"]),
    (|w| first(w).bounds.sources = "10.0.0.0/8".parse().unwrap(), &["the route of business-a in region proxy-east"]),
    (|w| first(w).bounds.connections = NonZeroU16::new(30), &["the route of business-a in region proxy-east"]),
    (|w| first(w).alias = None, &["the route of business-a in region proxy-east"]),
    (|w| first(w).proven_at = None, &["the route of business-a in region proxy-east"]),
    (|w| w.east().ports.retain(|_, ports| ports.node != 30000), &["the port of business-a in region proxy-east"]),
    (|w| port(w).node = 30009, &["the port of business-a in region proxy-east"]),
    (|w| port(w).listen = 8001, &["the port of business-a in region proxy-east"]),
    (
        |w| {
            w.east().ports.clear();
            w.east().routes.clear();
        },
        &["the route and the port of b in region proxy-east", "the route and the port of business-a in region proxy-east"],
    ),
    // By the region's own port the controller asks its nodes, also where no cluster is reached by it.
    (|w| w.east().ports.retain(|name, _| name != SNI_PORT), &["the way in that the Service of region proxy-east offers"]),
    (
        |w| w.east().ports.extend([(SNI_PORT.to_owned(), Ports { listen: 8443, node: 30085 })]),
        &["the way in that the Service of region proxy-east offers"],
    ),
];

#[test]
fn what_was_lost_or_bent_comes_back_as_it_was() {
    let before = world();
    for (number, (broken, want)) in BREAKS.iter().enumerate() {
        let mut world = world();
        broken(&mut world);
        assert_eq!(world.words(), (want.iter().map(ToString::to_string).collect(), vec![]), "{number}");
        let (repairs, _) = world.decide();
        world.mend(repairs);
        assert_eq!(world.words(), (vec![], vec![]), "{number}");
        let way = |world: &World| {
            let inside = world.seen.regions[0].inside.as_ref().unwrap();
            let of = |route: &Route| {
                (route.port_name(), (route.host.clone(), route.port, route.bounds.clone(), route.listen, route.alias.clone()))
            };
            (inside.ports.clone(), inside.routes.iter().map(of).collect::<BTreeMap<_, _>>())
        };
        assert_eq!(way(&world), way(&before), "{number}");
    }
}

#[test]
fn a_route_comes_back_with_the_bounds_on_record() {
    let bounds = Bounds { sources: "10.80.0.10".parse().unwrap(), connections: NonZeroU16::new(20) };
    let breaks: [Break; 3] = [|w| drop(w.east().routes.remove(0)), |_| {}, |w| first(w).bounds.connections = NonZeroU16::new(30)];
    for (number, broken) in breaks.iter().enumerate() {
        let mut world = world();
        let member = world.records.members.iter_mut().find(|member| member.name == name("business-a")).unwrap();
        member.membership.bounds = bounds.clone();
        broken(&mut world);
        assert_eq!(world.words(), (vec!["the route of business-a in region proxy-east".into()], vec![]), "{number}");
        let (repairs, _) = world.decide();
        world.mend(repairs);
        assert_eq!(world.words(), (vec![], vec![]), "{number}");
        let route = world.east().routes.iter().find(|route| route.cluster == name("business-a")).unwrap();
        assert_eq!(route.bounds, bounds, "{number}");
    }
}

/// The sample hub with `business-a` told apart by its name.
fn by_name() -> World {
    let mut world = world();
    let member = world.records.members.iter_mut().find(|member| member.name == name("business-a")).unwrap();
    (member.membership.mode, member.membership.node_port) = (Mode::Sni, 30085);
    member.endpoint = Some(member.membership.endpoint());
    let alias = member.membership.alias.clone();
    let port = first(&mut world).port_name();
    world.east().ports.remove(&port);
    let route = first(&mut world);
    (route.listen, route.server_name) = (SNI_LISTEN, Some(alias));
    world
}

#[test]
fn the_way_of_a_cluster_that_is_told_apart_by_name_comes_back_too() {
    fn own(w: &mut World, ports: Option<Ports>) {
        w.east().ports.remove(SNI_PORT);
        w.east().ports.extend(ports.map(|ports| (SNI_PORT.to_owned(), ports)));
    }
    let (route, port) = ("the route of business-a in region proxy-east", "the port of business-a in region proxy-east");
    let breaks: [(Break, &[&str]); 7] = [
        (|_| {}, &[]),
        (|w| drop(w.east().routes.remove(0)), &[route]),
        (|w| first(w).server_name = Some("other.example".parse().unwrap()), &[route]),
        (|w| (first(w).server_name, first(w).listen) = (None, 8000), &[route]),
        (|w| own(w, None), &[port]),
        (|w| own(w, Some(Ports { listen: SNI_LISTEN, node: 30012 })), &[port]),
        (|w| own(w, Some(Ports { listen: 8443, node: 30085 })), &[port]),
    ];
    for (number, (broken, want)) in breaks.iter().enumerate() {
        let mut world = by_name();
        broken(&mut world);
        assert_eq!(world.words(), (want.iter().map(ToString::to_string).collect(), vec![]), "{number}");
        let (repairs, _) = world.decide();
        world.mend(repairs);
        assert_eq!(world.words(), (vec![], vec![]), "{number}");
        let there = world.east().routes.iter().find(|route| route.cluster == name("business-a")).cloned().unwrap();
        assert_eq!(there.server_name, Some("business-a.example".parse().unwrap()), "{number}");
        assert_eq!(world.east().own_ports(), Some(Ports { listen: SNI_LISTEN, node: 30085 }), "{number}");
    }
    // A port of its own gets a cluster whose route somebody has written a name into.
    let mut world = self::world();
    first(&mut world).server_name = Some("business-a.example".parse().unwrap());
    first(&mut world).listen = SNI_LISTEN;
    assert_eq!(world.words().0, [route]);
    let (repairs, _) = world.decide();
    world.mend(repairs);
    assert_eq!((world.words().0, world.east().routes.len()), (vec![], 2));
}

/// The world, with its region entered by the ports that its proxies listen on.
fn on_host_network() -> World {
    let mut world = world();
    world.east().settings.entry = Entry::HostNetwork;
    for member in &mut world.records.members {
        member.membership.node_port -= 22000;
        member.endpoint = Some(member.membership.endpoint());
    }
    world
}

#[test]
fn where_the_hub_connects_to_what_proxies_listen_on_that_port_comes_back() {
    let before = on_host_network();
    let broken: [(Break, &[&str]); 5] = [
        (|_| {}, &[]),
        (|w| first(w).listen = 8005, &["the route of business-a in region proxy-east"]),
        (|w| drop(w.east().routes.remove(0)), &["the route of business-a in region proxy-east"]),
        (|w| port(w).listen = 8005, &["the port of business-a in region proxy-east"]),
        (|w| w.east().ports.retain(|_, ports| ports.node != 30000), &["the port of business-a in region proxy-east"]),
    ];
    for (number, (broken, want)) in broken.into_iter().enumerate() {
        let mut world = on_host_network();
        broken(&mut world);
        assert_eq!(world.words(), (want.iter().map(ToString::to_string).collect(), vec![]), "{number}");
        let (repairs, _) = world.decide();
        world.mend(repairs);
        assert_eq!(world.words(), (vec![], vec![]), "{number}");
        assert_eq!(world.east().ports, before.seen.regions[0].inside.as_ref().unwrap().ports, "{number}");
    }
    let mut world = on_host_network();
    world.east().ports.clear();
    world.east().routes[0] = route("stranger", Slot::First, "stranger.example", 8000);
    assert_eq!(world.words().0, ["the port of b in region proxy-east"], "a port that another one has is left to it");
}

#[test]
fn so_does_the_region_s_own_port_which_clusters_share_that_are_told_apart_by_name() {
    let named = || {
        let mut world = by_name();
        world.east().settings.entry = Entry::HostNetwork;
        for member in &mut world.records.members {
            let port = &mut member.membership.node_port;
            *port = if member.membership.mode == Mode::Sni { SNI_LISTEN } else { *port - 22000 };
            member.endpoint = Some(member.membership.endpoint());
        }
        world
    };
    let port = "the port of business-a in region proxy-east";
    let broken: [(Break, &[&str], u16); 4] = [
        (|_| {}, &[], 30085),
        (|w| w.east().ports.retain(|name, _| name != SNI_PORT), &[port], 30085),
        (|w| w.east().ports.get_mut(SNI_PORT).unwrap().listen = 8443, &[port], 30085),
        // By which node port it can be reached besides is nothing that the hub relies on.
        (|w| w.east().ports.get_mut(SNI_PORT).unwrap().node = 30012, &[], 30012),
    ];
    for (number, (broken, want, node)) in broken.into_iter().enumerate() {
        let mut world = named();
        broken(&mut world);
        assert_eq!(world.words(), (want.iter().map(ToString::to_string).collect(), vec![]), "{number}");
        let (repairs, _) = world.decide();
        world.mend(repairs);
        assert_eq!(world.words(), (vec![], vec![]), "{number}");
        assert_eq!(world.east().own_ports(), Some(Ports { listen: SNI_LISTEN, node }), "{number}");
    }
    let mut world = named();
    world.east().settings.entry = Entry::NodePort;
    let (repairs, troubles) = world.words();
    assert_eq!(repairs, Vec::<String>::new());
    assert!(troubles.iter().any(|trouble| trouble.starts_with("cluster business-a: it was joined at port 7443")), "{troubles:?}");
}

#[test]
fn a_region_that_is_entered_otherwise_than_its_clusters_were_joined_keeps_its_aliases() {
    let mut world = world();
    world.east().settings.entry = Entry::LoadBalancer;
    world.east().nodes[0].ip = [192, 0, 2, 1].into();
    let (repairs, troubles) = world.words();
    assert_eq!(repairs, Vec::<String>::new());
    assert_eq!(troubles.len(), 2, "{troubles:?}");
    assert!(
        troubles[1].starts_with("cluster business-a: it was joined at port 30000, and its region is entered otherwise now"),
        "{troubles:?}"
    );
}

#[test]
fn a_route_is_proven_as_before_or_at_its_first_join() {
    let proven = |broken: Break| {
        let mut world = world();
        broken(&mut world);
        match world.decide().0.as_slice() {
            [Repair::Way { route, .. }] => route.proven_at.unwrap().to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(proven(|w| first(w).port = 6443), "2026-01-02T03:04:05Z");
    assert_eq!(proven(|w| drop(w.east().routes.remove(0))), "2025-01-01T00:00:00Z");
}

#[test]
fn the_second_slot_is_put_back_where_it_serves() {
    let mut world = world();
    let east = world.east();
    east.routes[0] = route("business-a", Slot::Second, "business-a.example", 8000);
    let ports = east.ports.remove(&route("business-a", Slot::First, "x.example", 1).port_name()).unwrap();
    east.ports.insert(east.routes[0].port_name(), ports);
    assert_eq!(world.words().0, Vec::<String>::new());
    world.east().routes.remove(0);
    match world.decide().0.as_slice() {
        [Repair::Way { route, lost, .. }] => assert_eq!((route.slot, lost.port), (Slot::Second, false)),
        other => panic!("{other:?}"),
    }
}

/// Everything that can be broken at once.
fn ruin(world: &mut World) {
    world.gateway().aliases = HostAliases::default();
    world.smooth = false;
    world.east().routes.clear();
    world.east().ports.clear();
}

#[test]
fn nothing_is_touched_of_who_leaves_or_is_busy_or_has_no_record_that_fits() {
    let doubts: [(&str, Break, usize); 4] = [
        ("leaves", |w| w.records.leaving = [name("business-a"), name("b")].into(), 0),
        ("is joined just now", |w| w.records.busy = [name("business-a"), name("b")].into(), 0),
        ("has no record", |w| w.records.members.clear(), 0),
        ("has another endpoint", |w| w.records.members.iter_mut().for_each(|m| m.endpoint = Some("https://b.example:1".into())), 2),
    ];
    for (why, doubt, told) in doubts {
        let mut world = world();
        ruin(&mut world);
        doubt(&mut world);
        let (repairs, troubles) = world.words();
        assert_eq!((repairs, troubles.len()), (vec![], told), "{why}: {troubles:?}");
    }
}

#[test]
fn a_region_that_can_t_be_read_keeps_its_aliases_and_is_told() {
    let mut world = world();
    world.seen.regions[0].inside = Err(silence(Kind::RegionUnreachable));
    let (repairs, troubles) = world.words();
    assert_eq!(repairs, Vec::<String>::new());
    assert!(troubles[0].starts_with("region proxy-east: it can't be read: its host aliases stay"), "{troubles:?}");
    // And so does one that has no node to lead to.
    let mut world = self::world();
    world.east().nodes.clear();
    let (repairs, troubles) = world.words();
    assert_eq!((repairs.len(), troubles.len()), (0, 1), "{troubles:?}");
    assert!(troubles[0].starts_with("region proxy-east: none of its nodes is ready"), "{troubles:?}");
}

#[test]
fn a_host_that_somebody_else_aliased_is_left_to_them_and_told() {
    let mut world = world();
    world.gateway().aliases =
        HostAliases { entries: vec![json!({"ip": "192.0.2.1", "hostnames": ["b.example"]})], ..HostAliases::default() };
    let (repairs, troubles) = world.words();
    assert_eq!(repairs, [GATEWAY]);
    assert!(troubles[0].starts_with("cluster b: host alias: host b.example has an alias on the gateway already"), "{troubles:?}");
    let (repairs, _) = world.decide();
    world.mend(repairs);
    assert_eq!(world.words().0, Vec::<String>::new());
    assert_eq!(world.gateway().aliases.leads_to(&"b.example".parse().unwrap()), [[192, 0, 2, 1].into()].into());
}

#[test]
fn who_wrote_last() {
    let entry = |manager: &str, subresource: &str, time: &str| -> ManagedFieldsEntry {
        serde_json::from_value(json!({"manager": manager, "subresource": subresource, "time": time})).unwrap()
    };
    let fields = [
        entry("helm", "", "2026-01-01T00:00:00Z"),
        entry("kubectl-patch", "", "2026-01-02T00:00:00Z"),
        entry(MANAGER, "", "2026-01-03T00:00:00Z"),
        entry("kube-controller-manager", "", "2026-01-04T00:00:00Z"),
        entry("somebody", "status", "2026-01-05T00:00:00Z"),
    ];
    assert_eq!(last_writer(&fields).as_deref(), Some("kubectl-patch"));
    assert_eq!(last_writer(&fields[2..]), None);
}

proptest! {
    #[test]
    fn whatever_broke_one_round_puts_it_back(which in prop::collection::vec(0..BREAKS.len(), 0..4)) {
        let mut world = world();
        for number in which {
            // Some need something to be there that another has removed; and a name that has lost both its record and its node can't be
            // told from somebody else's.
            let whole = world.east().routes.len() == 2 && world.east().ports.values().any(|ports| ports.node == 30000);
            if whole && number != NODE {
                BREAKS[number].0(&mut world);
            }
        }
        let (repairs, troubles) = world.decide();
        prop_assert!(troubles.is_empty(), "{:?}", troubles);
        world.mend(repairs);
        prop_assert_eq!(world.words(), (vec![], vec![]));
    }
}

/// The sample hub with host aliases that lead to Services.
fn served() -> World {
    let mut world = world();
    let region = name("proxy-east");
    let way = Way {
        nodes: [[10, 0, 1, 1].into(), [10, 0, 1, 2].into()].into(),
        ports: [30000, 30001].into(),
        proven: [30000, 30001].into(),
    };
    world.seen.services = Ok(Some(BTreeMap::new()));
    world.mend(vec![Repair::Entries { region, way }]);
    world
}

fn entries(world: &mut World) -> &mut super::super::entries::Entries {
    world.seen.services.as_mut().unwrap().as_mut().unwrap().get_mut(&name("proxy-east")).unwrap()
}

#[test]
fn services_that_were_lost_or_bent_come_back_and_the_names_lead_to_them() {
    const SERVICES: &str = "the Services on the hub that lead to region proxy-east";
    let breaks: [(&str, Break, &[&str]); 7] = [
        ("all is well", |_| {}, &[]),
        ("all gone", |w| w.seen.services = Ok(Some(BTreeMap::new())), &[SERVICES]),
        ("one gone", |w| drop(entries(w).0.pop_first()), &[SERVICES]),
        ("a port", |w| entries(w).0.values_mut().for_each(|entry| assert!(entry.ports.remove(&30000))), &[SERVICES]),
        ("the nodes", |w| entries(w).0.values_mut().for_each(|e| e.slices.clear()), &[SERVICES]),
        // The controller asks the nodes themselves, and leads the Services to those that answer.
        ("a node's address", |w| w.east().nodes[0].ip = [10, 0, 1, 9].into(), &[]),
        ("the names", |w| w.gateway().aliases.entries.clear(), &[GATEWAY]),
    ];
    for (what, broken, want) in breaks {
        let mut world = served();
        broken(&mut world);
        assert_eq!(world.words(), (want.iter().map(ToString::to_string).collect(), vec![]), "{what}");
        let (repairs, _) = world.decide();
        world.mend(repairs);
        assert_eq!(world.words(), (vec![], vec![]), "{what}");
    }
}

#[test]
fn names_that_lead_to_nodes_are_led_to_services_where_those_are_wanted() {
    let mut world = served();
    world.gateway().aliases = self::world().seen.gateway.unwrap().aliases;
    assert_eq!(world.words().0, [GATEWAY]);
    let (repairs, _) = world.decide();
    world.mend(repairs);
    let leads = world.gateway().aliases.leads_to(&"b.example".parse().unwrap());
    assert!(leads.iter().all(|ip| ip.to_string().starts_with("10.96.")), "{leads:?}");
}

#[test]
fn what_is_carried_out_on_the_gateway_is_one_rollout_and_the_rest_is_its_region_s() {
    let (region, way) = (name("proxy-east"), Way::default());
    let on_gateway = [
        Repair::Gateway { wanted: vec![], regions: BTreeMap::new() },
        Repair::Addresses { region: region.clone(), way: way.clone() },
        Repair::Entries { region: region.clone(), way },
    ];
    assert!(on_gateway.iter().all(|repair| repair.inside().is_none()));
    assert_eq!(Repair::Service { region: region.clone() }.inside(), Some(&region));
}
