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
        let mut taken = Taken::default();
        for (name, map) in oldest_first(facts.maps) {
            let problem = |digest: String, reason, message| Applied { digest, problem: Some(Problem { reason, message }) };
            let route = match Route::from_config_map(map) {
                Ok(route) => route,
                Err(message) => {
                    plan.problems.insert(name.clone(), problem(String::new(), Reason::Invalid, message));
                    continue;
                }
            };
            let decision = taken
                .check(&route, facts.health_port)
                .map_err(|message| (Reason::Invalid, message))
                .and_then(|()| addresses(&route.host, facts));
            // A port or name belongs to its route also while that can't be served: nobody else may take it over.
            taken.note(name, &route);
            match decision {
                Ok(Some(addresses)) => {
                    plan.served.insert(name.clone(), Served { route, addresses });
                }
                Ok(None) => {
                    plan.pending = true;
                    // A route that was changed is served as it was until the new upstream's name has been looked up.
                    let before = facts
                        .serving
                        .get(name)
                        .filter(|before| (before.route.listen, &before.route.server_name) == (route.listen, &route.server_name));
                    plan.served.extend(before.map(|before| (name.clone(), before.clone())));
                }
                Err((reason, message)) => {
                    plan.problems.insert(name.clone(), problem(route.mark(), reason, message));
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
            // What is told apart by name comes in by a port that was open from the start.
            if served.route.server_name.is_some() || in_use.contains(&port) {
                return true;
            }
            let Err(error) = can_listen(port) else { return true };
            let message = format!("its listen port {port} can't be opened: {error}");
            let problem = Some(Problem { reason: Reason::Rejected, message });
            self.problems.insert(name.clone(), Applied { digest: served.route.mark(), problem });
            false
        });
        before - self.served.len()
    }

    /// What to report when nginx serves this plan.
    pub fn report(&self) -> Report {
        let served =
            self.served.iter().map(|(name, served)| (name.clone(), Applied { digest: served.route.mark(), problem: None }));
        Report(self.problems.clone().into_iter().chain(served).collect())
    }

    /// What to report when nginx refused this plan and goes on with what it was `serving`.
    pub fn report_rejected(&self, serving: &Serving, message: &str) -> Report {
        let mut report = self.report();
        for (name, served) in self.served.iter().filter(|(name, served)| serving.get(*name) != Some(served)) {
            let problem = Problem { reason: Reason::Rejected, message: message.to_owned() };
            report.0.insert(name.clone(), Applied { digest: served.route.mark(), problem: Some(problem) });
        }
        report
    }
}

/// Of two routes with one port or name the older one has it; the order is the same in every proxy.
fn oldest_first(maps: &BTreeMap<String, ConfigMap>) -> Vec<(&String, &ConfigMap)> {
    let mut maps: Vec<_> = maps.iter().collect();
    maps.sort_by_key(|(name, map)| (map.metadata.creation_timestamp.as_ref().map(|time| time.0), *name));
    maps
}

/// What older routes have, by the names of their ConfigMaps.
#[derive(Default)]
struct Taken<'a> {
    ports: BTreeMap<u16, &'a str>,
    names: BTreeMap<DnsName, (&'a str, ApiHost, u16)>,
}

impl<'a> Taken<'a> {
    fn check(&self, route: &Route, health_port: u16) -> Result<(), String> {
        let (name, port) = match &route.server_name {
            Some(name) => (name, route.port),
            None => return self.check_port(route.listen, health_port),
        };
        match self.names.get(name) {
            // Two names or two hubs of one cluster.
            Some((_, host, of_other)) if (host, *of_other) == (&route.host, port) => Ok(()),
            Some((other, host, of_other)) => Err(format!(
                "its TLS name {name} belongs to {other}, which is older and leads to {host}:{of_other}; join one of them with mode port"
            )),
            None => Ok(()),
        }
    }

    fn check_port(&self, port: u16, health_port: u16) -> Result<(), String> {
        if let Some(other) = self.ports.get(&port) {
            return Err(format!("its listen port {port} belongs to {other}, which is older"));
        }
        // Below are ports that need privileges; either would keep nginx from taking up any change at all.
        if port < FIRST_LISTEN || port == health_port {
            return Err(format!("its listen port {port} is not one of a proxy's, which start at {FIRST_LISTEN}"));
        }
        Ok(())
    }

    fn note(&mut self, name: &'a str, route: &Route) {
        match &route.server_name {
            Some(asked) => drop(self.names.entry(asked.clone()).or_insert_with(|| (name, route.host.clone(), route.port))),
            None => drop(self.ports.entry(route.listen).or_insert(name)),
        }
    }
}

/// The addresses a host may be reached at; nothing if they are not known yet.
fn addresses(host: &ApiHost, facts: &Facts) -> Result<Option<Vec<IpAddr>>, (Reason, String)> {
    let found = match host {
        ApiHost::Ip(ip) => vec![*ip],
        ApiHost::Dns(name) => match facts.names.get(name) {
            None => return Ok(None),
            Some(known) => known.addresses().map_err(|(reason, failure)| (reason, format!("{name}: {failure}")))?,
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
mod tests;
