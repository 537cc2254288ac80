//! What a proxy should serve, and what it says of it: pure functions of what it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;

use super::names::Known;
use crate::model::names::{ApiHost, DnsName};
use crate::model::nginx::Served;
use crate::model::region::{FIRST_LISTEN, Region};
use crate::model::report::{Applied, Problem, Reason, Report};
use crate::model::route::Route;

/// Routes by the names of their ConfigMaps.
pub(super) type Serving = BTreeMap<String, Served>;

/// What a plan is made from.
pub(super) struct Facts<'a> {
    /// The route ConfigMaps by name.
    pub maps: &'a BTreeMap<String, ConfigMap>,
    /// The region's settings.
    pub region: &'a Region,
    /// The proxy cluster's own networks.
    pub own: &'a [IpNet],
    /// What DNS said.
    pub names: &'a BTreeMap<DnsName, Known>,
    /// What is served now.
    pub serving: &'a Serving,
    /// The port that is the agent's own.
    pub health_port: u16,
}

/// What to serve, what can't be served and why, and whether anything is not known yet.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// To be served.
    pub served: Serving,
    /// Not to be served.
    pub problems: BTreeMap<String, Applied>,
    /// Some names have had no answer from DNS yet.
    pub pending: bool,
}

/// The names that routes need resolved.
pub(super) fn upstream_names(maps: &BTreeMap<String, ConfigMap>) -> BTreeSet<DnsName> {
    let name = |map| match Route::from_config_map(map).ok()?.host {
        ApiHost::Dns(name) => Some(name),
        ApiHost::Ip(_) => None,
    };
    maps.values().filter_map(name).collect()
}

impl Plan {
    /// Decides about every route.
    pub fn new(facts: &Facts) -> Self {
        let mut plan = Self::default();
        let mut listeners: BTreeMap<u16, &str> = BTreeMap::new();
        for (name, map) in oldest_first(facts.maps) {
            let problem = |digest: String, reason, message| Applied { digest, problem: Some(Problem { reason, message }) };
            let route = match Route::from_config_map(map) {
                Ok(route) => route,
                Err(message) => {
                    plan.problems.insert(name.clone(), problem(String::new(), Reason::Invalid, message));
                    continue;
                }
            };
            let decision = check_listener(&route, facts.health_port, &listeners)
                .map_err(|message| (Reason::Invalid, message))
                .and_then(|()| addresses(&route.host, facts));
            // A port belongs to its route also while that can't be served: nobody else may take it over.
            listeners.entry(route.listen).or_insert(name);
            match decision {
                Ok(Some(addresses)) => {
                    plan.served.insert(name.clone(), Served { route, addresses });
                }
                Ok(None) => {
                    plan.pending = true;
                    // A route that was changed is served as it was until the new upstream's name has been looked up.
                    let before = facts.serving.get(name).filter(|before| before.route.listen == route.listen);
                    plan.served.extend(before.map(|before| (name.clone(), before.clone())));
                }
                Err((reason, message)) => {
                    plan.problems.insert(name.clone(), problem(route.digest(), reason, message));
                }
            }
        }
        plan
    }

    /// Takes out new routes whose port can't be listened on, and says how many there were. nginx would find that out in the
    /// reload only, and refuse the other routes' changes too.
    pub fn take_out_unlistenable(&mut self, serving: &Serving, can_listen: impl Fn(u16) -> Result<(), String>) -> usize {
        let in_use: BTreeSet<u16> = serving.values().map(|served| served.route.listen).collect();
        let before = self.served.len();
        self.served.retain(|name, served| {
            let port = served.route.listen;
            if in_use.contains(&port) {
                return true;
            }
            let Err(error) = can_listen(port) else { return true };
            let message = format!("its listen port {port} can't be opened: {error}");
            let problem = Some(Problem { reason: Reason::Rejected, message });
            self.problems.insert(name.clone(), Applied { digest: served.route.digest(), problem });
            false
        });
        before - self.served.len()
    }

    /// What to report when nginx serves this plan.
    pub fn report(&self) -> Report {
        let served =
            self.served.iter().map(|(name, served)| (name.clone(), Applied { digest: served.route.digest(), problem: None }));
        Report(self.problems.clone().into_iter().chain(served).collect())
    }

    /// What to report when nginx refused this plan and goes on with what it was `serving`.
    pub fn report_rejected(&self, serving: &Serving, message: &str) -> Report {
        let mut report = self.report();
        for (name, served) in self.served.iter().filter(|(name, served)| serving.get(*name) != Some(served)) {
            let problem = Problem { reason: Reason::Rejected, message: message.to_owned() };
            report.0.insert(name.clone(), Applied { digest: served.route.digest(), problem: Some(problem) });
        }
        report
    }
}

/// Of two routes with one port the older one has it; the order is the same in every proxy.
fn oldest_first(maps: &BTreeMap<String, ConfigMap>) -> Vec<(&String, &ConfigMap)> {
    let mut maps: Vec<_> = maps.iter().collect();
    maps.sort_by_key(|(name, map)| (map.metadata.creation_timestamp.as_ref().map(|time| time.0), *name));
    maps
}

fn check_listener(route: &Route, health_port: u16, taken: &BTreeMap<u16, &str>) -> Result<(), String> {
    let port = route.listen;
    if let Some(other) = taken.get(&port) {
        return Err(format!("its listen port {port} belongs to {other}, which is older"));
    }
    // Below are ports that need privileges; either would keep nginx from taking up any change at all.
    if port < FIRST_LISTEN || port == health_port {
        return Err(format!("its listen port {port} is not one of a proxy's, which start at {FIRST_LISTEN}"));
    }
    Ok(())
}

/// The addresses a host may be reached at; nothing if they are not known yet.
fn addresses(host: &ApiHost, facts: &Facts) -> Result<Option<Vec<IpAddr>>, (Reason, String)> {
    let found = match host {
        ApiHost::Ip(ip) => vec![*ip],
        ApiHost::Dns(name) => match facts.names.get(name) {
            None => return Ok(None),
            Some(known) => known.addresses().map_err(|failure| (Reason::Unresolvable, format!("{name}: {failure}")))?,
        },
    };
    let refusal = |address| facts.region.upstreams.refusal(host, address, facts.own);
    let allowed: Vec<_> = found.iter().copied().filter(|address| refusal(*address).is_none()).collect();
    if allowed.is_empty() {
        let why: Vec<_> = found.into_iter().filter_map(refusal).collect();
        return Err((Reason::Refused, why.join("; ")));
    }
    Ok(Some(allowed))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::model::names::HubId;

    fn map(cluster: &str, host: &str, listen: u16, age: i64) -> (String, ConfigMap) {
        let route = Route {
            trial: false,
            hub: HubId::new("hub-uid"),
            cluster: cluster.parse().unwrap(),
            host: host.parse().unwrap(),
            port: 443,
            listen,
            alias: None,
            proven_at: None,
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
            let addresses = answer.map(|all| all.iter().map(|address| address.parse().unwrap()).collect());
            self.names.entry(name.parse().unwrap()).or_default().learn(addresses.map_err(str::to_owned));
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
}
