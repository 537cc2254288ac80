use super::super::entries::Needs;
use super::super::entries::tests::provided;
use super::super::names::Slot;
use super::super::observed::SeenController;
use super::super::observed::sample::{inside, name, route, silence, well};
use super::super::overview::Overview;
use super::super::report::{Problem as Refusal, Reason};
use super::*;

type Break = fn(&mut Observed);

fn east(observed: &mut Observed) -> &mut Inside {
    observed.regions[0].inside.as_mut().unwrap()
}

fn business_a(observed: &mut Observed) -> &mut SeenCluster {
    &mut observed.clusters[1]
}

/// Credentials that end on 3 June and are to be renewed from some time on, by a controller that is there or not.
fn renewed(observed: &mut Observed, from: &str, controlled: bool) {
    let membership = &mut business_a(observed).membership;
    membership.expires = Some("2026-06-03T00:00:00Z".parse().unwrap());
    membership.renews = Some(from.parse().unwrap());
    observed.controller = controlled.then(|| SeenController { ready: true, problems: vec![] });
}

#[test]
fn credentials_that_the_controller_renews_are_well_until_it_is_late() {
    for (from, told) in [
        ("2026-06-02T00:00:00Z", "until 2026-06-03T00:00:00Z; the controller renews them from 2026-06-02T00:00:00Z on"),
        ("2026-05-31T00:00:00Z", "until 2026-06-03T00:00:00Z; the controller is to renew them since 2026-05-31T00:00:00Z"),
    ] {
        let mut observed = well();
        renewed(&mut observed, from, true);
        let checks = cluster(&observed, &observed.clusters[1]);
        let credentials = checks.into_iter().find(|check| check.link == "credentials").unwrap();
        assert_eq!(credentials.outcome, Outcome::Ok(told.into()));
    }
}

#[test]
fn what_names_should_lead_to_is_not_judged_by_who_can_t_see_it() {
    let mut observed = well();
    observed.services = Err(silence(Kind::HubForbidden));
    east(&mut observed).nodes.truncate(1);
    let checks = cluster(&observed, &observed.clusters[0]);
    let alias = checks.into_iter().find(|check| check.link == "host alias").unwrap();
    assert!(matches!(alias.outcome, Outcome::Ok(_)), "{:?}", alias.outcome);
}

/// What may break, in path order: the subject and link that `doctor` names, what it says of it, and how it is mended.
const BREAKS: &[(Break, &str, &str, &str, &str)] = &[
    (|o| o.addon = Err(silence(Kind::AddonMissing)), "hub", "addon", "nothing within", "look for it"),
    (|o| o.gateway = Err(silence(Kind::GatewayMissing)), "hub", "gateway", "nothing within", "look for it"),
    (
        |o| o.gateway.as_mut().unwrap().waiting = Some("0 of 1 new gateway pods are available".into()),
        "hub",
        "rollout",
        "it is not rolled: 0 of 1",
        "rollout status deployment kubevela-cluster-gateway",
    ),
    (
        |o| o.regions[0].inside = Err(silence(Kind::RegionUnreachable)),
        "region proxy-east",
        "answers",
        "nothing within",
        "look for it",
    ),
    (|o| o.regions[0].inside = Err(silence(Kind::NoProxy)), "region proxy-east", "xregion-proxy", "nothing within", "look for it"),
    (
        |o| east(o).proxies.values_mut().for_each(|ready| *ready = false),
        "region proxy-east",
        "proxies",
        "none of 2 is ready",
        "describe pods -l xregion.oam.dev/kind=proxy, in cluster proxy-east",
    ),
    (
        |o| east(o).nodes.iter_mut().for_each(|node| node.ready = false),
        "region proxy-east",
        "nodes",
        "none of 2 that the hub may enter by (with an InternalIP)",
        "kubectl get nodes",
    ),
    (
        |o| east(o).routes.retain(|route| route.cluster != name("business-a")),
        "cluster business-a",
        "route",
        "region proxy-east has no route of it",
        "xregion join business-a --region proxy-east",
    ),
    (|o| east(o).routes[0].proven_at = None, "cluster business-a", "proven", "no join has reached", "xregion join business-a"),
    (
        |o| east(o).reports.get_mut("proxy-2").unwrap().0.clear(),
        "cluster business-a",
        "applied",
        "1 of 2 ready proxies serve it",
        "logs -l xregion.oam.dev/kind=proxy",
    ),
    (
        |o| {
            let problem = Refusal { reason: Reason::Unresolvable, message: "business-a.example has no address".into() };
            let name = east(o).routes[0].name();
            east(o).reports.get_mut("proxy-1").unwrap().0.get_mut(&name).unwrap().problem = Some(problem);
        },
        "cluster business-a",
        "applied",
        "business-a.example has no address (says proxy-1)",
        "logs proxy-1, in cluster proxy-east",
    ),
    (
        |o| {
            let name = east(o).routes[0].port_name();
            east(o).ports.remove(&name);
        },
        "cluster business-a",
        "node port",
        "the Service of region proxy-east has no port of it",
        "xregion join business-a",
    ),
    (
        |o| {
            let name = east(o).routes[0].port_name();
            east(o).ports.get_mut(&name).unwrap().node = 30009;
        },
        "cluster business-a",
        "node port",
        "its node port is 30009, and the hub connects to 30000",
        "xregion join business-a",
    ),
    (
        |o| {
            let name = east(o).routes[0].port_name();
            east(o).ports.get_mut(&name).unwrap().listen = 8009;
        },
        "cluster business-a",
        "node port",
        "node port 30000 leads to port 8009 of the proxies, which listen on 8000 for it",
        "xregion join business-a",
    ),
    (
        |o| o.gateway.as_mut().unwrap().aliases.entries.clear(),
        "cluster b",
        "host alias",
        "the gateway has no host alias b.example",
        "xregion join b --region proxy-east",
    ),
    (
        |o| drop(o.gateway.as_mut().unwrap().aliases.record.0.remove("business-a.example")),
        "cluster business-a",
        "host alias",
        "host alias business-a.example is not recorded for it",
        "xregion join business-a",
    ),
    (
        |o| east(o).nodes.truncate(1),
        "cluster b",
        "host alias",
        "b.example leads to 10.0.1.1, 10.0.1.2, and the region's nodes are 10.0.1.1",
        "xregion join b",
    ),
    (
        |o| o.services = Ok(Some(BTreeMap::new())),
        "cluster b",
        "host alias",
        "the region's Services on the hub do not lead port 30001 to any node",
        "xregion join b",
    ),
    (
        |o| {
            let (ports, nodes) = ([30000, 30001].into(), [[10, 0, 1, 1].into()].into());
            let entries = provided(&name("proxy-east"), &Needs { ports, nodes, shards: 1, ..Needs::default() });
            o.services = Ok(Some([(name("proxy-east"), entries)].into()));
        },
        "cluster b",
        "host alias",
        "b.example leads to 10.0.1.1, 10.0.1.2, and the region's Services are 10.96.0.1, 10.96.0.2",
        "xregion join b",
    ),
    (
        |o| business_a(o).membership.alias = "b.example".parse().unwrap(),
        "cluster business-a",
        "host alias",
        "b.example is not recorded for it",
        "xregion join business-a",
    ),
    (
        |o| business_a(o).endpoint = Some("https://elsewhere.example:30000".into()),
        "cluster business-a",
        "Secret",
        "its endpoint is https://elsewhere.example:30000, and https://business-a.example:30000 is on record",
        "xregion join business-a",
    ),
    (|o| business_a(o).endpoint = None, "cluster business-a", "Secret", "it names no endpoint", "xregion join business-a"),
    (
        |o| business_a(o).membership.expires = Some("2026-05-31T00:00:00Z".parse().unwrap()),
        "cluster business-a",
        "credentials",
        "they expired at 2026-05-31T00:00:00Z",
        "with a new kubeconfig",
    ),
    (
        |o| business_a(o).membership.expires = Some("2026-06-03T00:00:00Z".parse().unwrap()),
        "cluster business-a",
        "credentials",
        "they expire at 2026-06-03T00:00:00Z",
        "with a new kubeconfig",
    ),
    (
        |o| {
            business_a(o).membership.expires = Some("2026-06-03T00:00:00Z".parse().unwrap());
            business_a(o).membership.source =
                Some(Origin { secret: "brought".parse().unwrap(), key: "k".into(), context: Some("c".into()) });
        },
        "cluster business-a",
        "credentials",
        "they expire at 2026-06-03T00:00:00Z",
        "put a new kubeconfig into Secret vela-system/brought, key k, and run its join again (a component",
    ),
    (
        |o| renewed(o, "2026-05-29T23:59:59Z", true),
        "cluster business-a",
        "credentials",
        "they expire at 2026-06-03T00:00:00Z, and the controller has not renewed them since 2026-05-29T23:59:59Z",
        "logs deployment/xregion-controller",
    ),
    (
        |o| {
            renewed(o, "2026-06-02T00:00:00Z", false);
            business_a(o).membership.source = Some(Origin { secret: "brought".parse().unwrap(), key: "k".into(), context: None });
        },
        "cluster business-a",
        "credentials",
        "they expire at 2026-06-03T00:00:00Z",
        "put its FILE into Secret vela-system/brought, key k: the controller takes it up; or join it with a new kubeconfig",
    ),
    (
        |o| business_a(o).answer = Err(silence(Kind::NotReachable)),
        "cluster business-a",
        "answers",
        "nothing within",
        "(region proxy-east reaches it at business-a.example:443)",
    ),
    (
        |o| business_a(o).answer.as_mut().unwrap().identity = "other-uid".into(),
        "cluster business-a",
        "identity",
        "cluster other-uid answers, and business-a-uid was joined",
        "--replace",
    ),
];

#[test]
fn the_first_broken_link_is_named_and_status_says_the_same() {
    for (number, (damage, subject, link, cause, fix)) in BREAKS.iter().enumerate() {
        let mut observed = well();
        damage(&mut observed);
        let asked = subject.strip_prefix("cluster ").unwrap_or("business-a");
        let checkup = Checkup::of(&observed, Some(&name(asked)));
        let (check, problem) = checkup.broken().unwrap_or_else(|| panic!("{number}: nothing is broken"));
        assert_eq!((check.subject.to_string().as_str(), check.link), (*subject, *link), "{number}: {checkup}");
        assert!(problem.cause.contains(cause), "{number}: {problem:?}");
        assert!(problem.fix.contains(fix), "{number}: {problem:?}");
        let last = checkup.to_string().lines().last().unwrap().to_owned();
        assert_eq!(last, format!("first broken link: {subject}, {link}: {}; fix: {}", problem.cause, problem.fix));

        let told = Overview::of(&observed, None).out_of_step;
        let entry = told.iter().find(|entry| entry.about == *subject && entry.what.starts_with(&format!("{link}: ")));
        let entry = entry.unwrap_or_else(|| panic!("{number}: status does not tell it: {told:?}"));
        assert!(entry.what.contains(cause) && entry.fix.contains(fix), "{number}: {entry:?}");
    }
}

#[test]
fn without_damage_every_link_is_ok() {
    for asked in [None, Some("business-a"), Some("b"), Some("proxy-west")] {
        let checkup = Checkup::of(&well(), asked.map(name).as_ref());
        assert!(checkup.0.iter().all(|check| matches!(check.outcome, Outcome::Ok(_))), "{checkup}");
        assert!(checkup.to_string().ends_with("\nno link is broken"), "{checkup}");
    }
}

#[test]
fn a_cluster_s_path_is_checked_in_order() {
    let checkup = Checkup::of(&well(), Some(&name("business-a")));
    let links: Vec<_> = checkup.0.iter().map(|check| check.link).collect();
    let path = "API addon gateway rollout answers xregion-proxy proxies nodes route proven applied node port host alias Secret credentials answers identity";
    assert_eq!(links.join(" "), path);
    assert_eq!(Checkup::of(&well(), None).0.len(), 4 + 2 * 4, "the hub and two regions");
}

#[test]
fn what_hangs_on_a_broken_link_is_skipped_and_says_why() {
    let mut observed = well();
    observed.regions[0].inside = Err(silence(Kind::RegionUnreachable));
    let text = Checkup::of(&observed, Some(&name("business-a"))).to_string();
    assert!(text.contains("  skipped  route          (region proxy-east can't be read)\n"), "{text}");
    assert!(text.contains("  ok       host alias     business-a.example leads to 10.0.1.1, 10.0.1.2\n"), "{text}");
    assert!(text.contains("  FAILED   answers        nothing within 5 s\n                          fix: look for it\n"), "{text}");
}

#[test]
fn a_name_that_was_not_joined_through_a_region_is_told() {
    let mut observed = well();
    observed.joined.insert(name("direct"), None);
    observed.joined.insert(name("b"), None);
    observed.clusters.remove(0);
    observed.joined.insert(name("mute"), None);
    observed.unread.push(SeenRegion { name: name("mute"), inside: Err(silence(Kind::RegionUnreachable)) });
    let cause =
        |asked: &str| Checkup::of(&observed, Some(&name(asked))).broken().map(|(_, problem)| problem.cause.clone()).unwrap();
    assert_eq!(cause("direct"), "it was joined directly, and has no xregion-proxy");
    assert_eq!(cause("mute"), "nothing within 5 s");
    assert_eq!(cause("b"), "the record of its join is missing");
    assert_eq!(cause("nobody"), "no cluster of that name is joined");
}

#[test]
fn a_changed_upstream_is_looked_for_in_the_slot_that_serves() {
    let mut observed = well();
    let second = route("business-a", Slot::Second, "new.example", 8002);
    *east(&mut observed) = inside(1, vec![route("b", Slot::First, "10.9.0.1", 8001), second]);
    let a = business_a(&mut observed);
    (a.membership.upstream, a.membership.node_port) = ("new.example".parse().unwrap(), 30002);
    a.endpoint = Some(a.membership.endpoint());
    let checkup = Checkup::of(&observed, Some(&name("business-a")));
    assert!(checkup.broken().is_none(), "{checkup}");
}

#[test]
fn a_node_that_is_not_ready_keeps_its_alias() {
    let mut observed = well();
    east(&mut observed).nodes[0].ready = false;
    let checkup = Checkup::of(&observed, Some(&name("business-a")));
    assert!(checkup.broken().is_none(), "{checkup}");
}
