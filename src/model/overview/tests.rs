use std::num::NonZeroU16;

use super::super::bounds::Bounds;
use super::super::names::Slot;
use super::super::observed::sample::{inside, name, route, silence, well};
use super::super::tree;
use super::*;
use crate::error::Kind;

fn east(observed: &mut Observed) -> &mut Inside {
    observed.regions[0].inside.as_mut().unwrap()
}

/// What is told of these.
fn told(observed: &Observed) -> Vec<(String, String, String)> {
    Overview::of(observed, None).out_of_step.into_iter().map(|entry| (entry.about, entry.what, entry.fix)).collect()
}

#[test]
fn the_tree() {
    let mut observed = well();
    observed.regions[1].inside = Err(silence(Kind::RegionUnreachable));
    observed.clusters[1].membership.expires = Some("2027-01-01T00:00:00Z".parse().unwrap());
    observed.clusters[0].answer = Err(silence(Kind::NotReachable));
    east(&mut observed).proxies.insert("proxy-3".into(), false);
    let text = tree::render(&Overview::of(&observed, None), false);
    let want = "\
hub 13a420a4  gateway kubevela-cluster-gateway
├─ proxy-east  2/3 proxies ready, 2/2 nodes ready, 2 of 85 node ports, answers in 9 ms
│  ├─ b           node port 30001  to 10.9.0.1:443            applied on 2 of 2  does not answer
│  └─ business-a  node port 30000  to business-a.example:443  applied on 2 of 2  answers in 12 ms  credentials until 2027-01-01T00:00:00Z
└─ proxy-west  can't be read: nothing within 5 s

out of step:
  region proxy-west: answers: nothing within 5 s
    fix: look for it
  cluster b: answers: nothing within 5 s
    fix: look for it (region proxy-east reaches it at 10.9.0.1:443)";
    assert_eq!(text, want);
}

#[test]
fn the_wide_tree() {
    let mut observed = well();
    observed.regions.truncate(1);
    observed.clusters.remove(0);
    let stray = route("old", Slot::First, "old.example", 8001);
    let mut narrow = route("business-a", Slot::First, "business-a.example", 8000);
    narrow.bounds = Bounds { sources: "10.80.0.10".parse().unwrap(), connections: NonZeroU16::new(20) };
    *east(&mut observed) = inside(1, vec![narrow, stray]);
    let last = &mut east(&mut observed).nodes[1];
    (last.ready, last.lacks_proxy) = (false, true);
    let text = tree::render(&Overview::of(&observed, None), true);
    let want = "\
hub 13a420a4  gateway kubevela-cluster-gateway
└─ proxy-east  2/2 proxies ready, 1/2 nodes ready, 2 of 85 node ports, answers in 9 ms
   │  node node-11 10.0.1.1
   │  node node-12 10.0.1.2 (no ready proxy on it)
   │  proxy proxy-1
   │  proxy proxy-2
   │  node port 30085 by TLS name
   ├─ business-a  node port 30000  to business-a.example:443  applied on 2 of 2  answers in 12 ms  alias business-a.example at 10.0.1.1,10.0.1.2  from 10.80.0.10/32  at most 20 at once  proven 2026-01-02T03:04:05Z
   └─ old         spare route      to old.example:443         applied on 2 of 2

out of step:
  cluster old: region proxy-east has a route of it to old.example:443, and it is not joined
    fix: xregion leave old --region proxy-east";
    assert_eq!(text, want);
}

/// The sample in the docs is what this prints.
#[test]
fn the_json_is_as_documented() {
    let mut observed = well();
    observed.clusters[1].membership.expires = Some("2026-06-03T00:00:00Z".parse().unwrap());
    let json = serde_json::to_string_pretty(&Overview::of(&observed, Some(&name("business-a")))).unwrap();
    let docs = include_str!("../../../docs/status.md");
    assert!(docs.contains(&format!("```json\n{json}\n```\n")), "docs/status.md lacks:\n{json}");
}

#[test]
fn nothing_is_out_of_step_where_all_is_well() {
    assert_eq!(told(&well()), vec![]);
    assert!(tree::render(&Overview::of(&well(), None), false).ends_with("\n\nnothing is out of step"));
}

#[test]
fn what_was_left_behind_is_told_with_what_removes_it() {
    type Change = fn(&mut Observed);
    let stray: Change = |observed| {
        let mut routes = east(observed).routes.clone();
        routes.push(route("old", Slot::First, "old.example", 8002));
        *east(observed) = inside(1, routes);
    };
    let second: Change = |observed| {
        let mut routes = east(observed).routes.clone();
        routes.push(route("business-a", Slot::Second, "new.example", 8002));
        *east(observed) = inside(1, routes);
    };
    for (change, about, what, fix) in [
        (
            stray,
            "cluster old",
            "has a route of it to old.example:443, and it is not joined",
            "xregion leave old --region proxy-east",
        ),
        (
            |observed| {
                let own = observed.hub.port_name(&name("killed"), Slot::First);
                let ports = Ports { listen: 8007, node: 30007 };
                east(observed).ports.extend([(own, ports), ("killed-0badcafe".to_owned(), ports)]);
            },
            "cluster killed",
            "region proxy-east has node port 30007 for it and no route, and it is not joined",
            "xregion leave killed --region proxy-east",
        ),
        (
            second,
            "cluster business-a",
            "region proxy-east has a route of it to new.example:443 that serves nobody",
            "join it again: xregion join business-a --region proxy-east --kubeconfig FILE",
        ),
        (
            |observed| {
                let west = vec![route("business-a", Slot::First, "new.example", 8000)];
                observed.regions[1].inside = Ok(inside(2, west));
            },
            "cluster business-a",
            "region proxy-west has a route of it to new.example:443, and it is joined through region proxy-east",
            "delete configmap xregion-route-business-a-13a420a4, in cluster proxy-west",
        ),
        (
            |observed| {
                let direct = vec![route("direct", Slot::First, "new.example", 8000)];
                observed.joined.insert(name("direct"), None);
                observed.regions[1].inside = Ok(inside(2, direct));
            },
            "cluster direct",
            "region proxy-west has a route of it to new.example:443, and it is joined directly",
            "delete configmap xregion-route-direct-13a420a4, in cluster proxy-west",
        ),
        (
            |observed| {
                observed.clusters.remove(0);
                observed.joined.remove(&name("b"));
                let routes = east(observed).routes[..1].to_vec();
                *east(observed) = inside(1, routes);
            },
            "cluster b",
            "the gateway has host alias b.example for it, and it is not joined",
            "xregion leave b",
        ),
        (
            |observed| observed.leftovers = [(name("gone"), name("proxy-west"))].into(),
            "cluster gone",
            "it left region proxy-west, which may still have its route and its port",
            "xregion leave gone",
        ),
        (
            |observed| observed.leftovers = [(name("b"), name("proxy-west"))].into(),
            "cluster b",
            "it left region proxy-west",
            "its next join removes that",
        ),
    ] as [(Change, &str, &str, &str); 8]
    {
        let mut observed = well();
        change(&mut observed);
        let found = told(&observed);
        let [(about_found, what_found, fix_found)] = found.as_slice() else { panic!("{what}: {found:?}") };
        assert_eq!(about_found, about);
        assert!(what_found.contains(what), "{what_found}");
        assert!(fix_found.ends_with(fix), "{fix_found}");
        // While a join of it goes on, that is what it does.
        let cluster = name(about.strip_prefix("cluster ").unwrap());
        observed.joining.insert(cluster.clone());
        assert_eq!(told(&observed), vec![], "{what}");
        // And who asks about another cluster does not hear of it.
        observed.joining.clear();
        observed.joined.insert(name("another"), None);
        assert!(Overview::of(&observed, Some(&name("another"))).out_of_step.is_empty(), "{what}");
        assert_eq!(Overview::of(&observed, Some(&cluster)).out_of_step.len(), 1, "{what}");
    }
}

#[test]
fn who_asks_for_a_cluster_that_is_none_is_told() {
    let overview = Overview::of(&well(), Some(&name("nobody")));
    let [entry] = overview.out_of_step.as_slice() else { panic!("{overview:?}") };
    assert_eq!((entry.about.as_str(), entry.what.as_str()), ("cluster nobody", "no cluster of that name is joined"));
}

#[test]
fn who_asks_for_a_region_sees_its_clusters() {
    let overview = Overview::of(&well(), Some(&name("proxy-east")));
    assert_eq!(overview.regions[0].clusters.len(), 2);
    let overview = Overview::of(&well(), Some(&name("b")));
    assert_eq!(overview.regions[0].clusters.len(), 1);
}

#[test]
fn a_cluster_that_may_be_a_region_is_told() {
    let mut observed = well();
    observed.unread.push(SeenRegion { name: name("mute"), inside: Err(silence(Kind::RegionUnreachable)) });
    let text = tree::render(&Overview::of(&observed, None), false);
    assert!(text.contains("\ncluster mute does not answer, and may be a region: nothing within 5 s\n"), "{text}");
}

/// The route of a cluster that a killed run had joined carries its requests: nobody may be told to delete it.
#[test]
fn a_join_that_lost_its_record_is_joined_again() {
    let mut observed = well();
    observed.clusters.remove(1);
    observed.joined.insert("business-a".parse().unwrap(), None);
    let again = "join it again: xregion join business-a --region proxy-east --kubeconfig FILE";
    let what = "region proxy-east has a route of it to business-a.example:443, and the record of its join is missing";
    assert_eq!(told(&observed), vec![("cluster business-a".into(), what.into(), again.into())]);
}

/// The same of one that a killed run had moved: the gateway knows the new region, the record on the Secret the old one.
#[test]
fn a_move_that_lost_its_record_is_joined_again() {
    let mut observed = well();
    let west = vec![route("business-a", Slot::First, "business-a.example", 8000)];
    observed.regions[1].inside = Ok(inside(2, west));
    observed.gateway.as_mut().unwrap().aliases.record.0.get_mut("business-a.example").unwrap().region = "proxy-west".into();
    let told = told(&observed);
    let (_, what, fix) = told.last().unwrap();
    assert_eq!(what, "region proxy-west has a route of it to business-a.example:443, and the record of its join is missing");
    assert_eq!(fix, "join it again: xregion join business-a --region proxy-west --kubeconfig FILE");
}

#[test]
fn what_the_controller_can_t_mend_is_told_while_it_runs() {
    let problem = |about: &str| super::super::drift::Told {
        about: about.into(),
        what: "not mended any more".into(),
        fix: "look for it".into(),
        since: "2026-05-31T23:00:00Z".parse().unwrap(),
    };
    let mut observed = well();
    let problems = ["hub", "region proxy-west", "cluster b"].map(problem).into();
    observed.controller = Some(super::super::observed::SeenController { ready: true, problems });
    let abouts = |asked: Option<&ClusterName>, observed: &Observed| {
        let told = Overview::of(observed, asked).out_of_step;
        told.into_iter().map(|entry| format!("{}: {}", entry.about, entry.what)).collect::<Vec<_>>()
    };
    let line = |about: &str| format!("{about}: controller: not mended any more (since 2026-05-31T23:00:00Z)");
    assert_eq!(abouts(None, &observed), [line("hub"), line("region proxy-west"), line("cluster b")]);
    assert_eq!(abouts(Some(&name("proxy-east")), &observed), [line("hub"), line("cluster b")]);
    // What it said then says nothing of now.
    observed.controller.as_mut().unwrap().ready = false;
    assert_eq!(abouts(None, &observed), ["hub: controller: the addon's controller does not run: nothing is mended"]);
}
