//! What a proxy reports of its routes, in the Lease of its pod, and what a join reads out of all of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Annotation of a proxy's Lease that holds its [`Report`] as JSON.
pub const APPLIED: &str = "xregion.oam.dev/applied";

/// A proxy's routes by the name of their ConfigMap.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Report(pub BTreeMap<String, Applied>);

/// What became of one route in one proxy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Applied {
    /// The mark of the route that was taken up ([`super::route::Route::mark`]).
    pub digest: String,
    /// Why it is not served, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// Why a proxy does not serve a route.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// The class.
    pub reason: Reason,
    /// The details, for people.
    pub message: String,
}

/// The class of a [`Problem`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Reason {
    /// The upstream's name has no address in the region.
    Unresolvable,
    /// The region's DNS does not say whether it has one: it is silent, or fails.
    Unanswered,
    /// The upstream's address is refused by rule or by the region's allow-list.
    Refused,
    /// The ConfigMap holds no valid route.
    Invalid,
    /// nginx did not take the configuration.
    Rejected,
    /// A class that a later version knows; its message says what it is.
    #[serde(other)]
    Other,
}

/// How far the region's proxies are with one route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Uptake {
    /// Every ready proxy serves it.
    Everywhere,
    /// So many of the ready proxies serve it; the rest has not said yet.
    Partial {
        /// How many serve it.
        serving: usize,
        /// How many are ready.
        ready: usize,
    },
    /// A proxy can't serve it.
    Failed {
        /// Which proxy says so.
        proxy: String,
        /// And why.
        problem: Problem,
    },
    /// There is no ready proxy.
    NoProxy,
}

/// Sums up what the `ready` proxies report of the route `name` with the mark `digest`.
pub fn uptake(name: &str, digest: &str, ready: &[String], reports: &BTreeMap<String, Report>) -> Uptake {
    let mut serving = 0;
    for proxy in ready {
        let applied = reports.get(proxy).and_then(|report| report.0.get(name)).filter(|applied| applied.digest == digest);
        match applied.map(|applied| &applied.problem) {
            Some(Some(problem)) => return Uptake::Failed { proxy: proxy.clone(), problem: problem.clone() },
            Some(None) => serving += 1,
            None => {}
        }
    }
    match ready.len() {
        0 => Uptake::NoProxy,
        ready if ready == serving => Uptake::Everywhere,
        ready => Uptake::Partial { serving, ready },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(entries: &[(&str, &str)]) -> BTreeMap<String, Report> {
        entries.iter().map(|(proxy, json)| ((*proxy).to_owned(), serde_json::from_str(json).unwrap())).collect()
    }

    #[test]
    fn a_route_is_taken_up_when_every_ready_proxy_serves_its_digest() {
        let served = r#"{"r":{"digest":"1"}}"#;
        let old = r#"{"r":{"digest":"0"}}"#;
        let failed = r#"{"r":{"digest":"1","problem":{"reason":"Unresolvable","message":"no such name"}}}"#;
        let ready = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let partial = |serving, ready| Uptake::Partial { serving, ready };
        for (pods, leases, want) in [
            (&["a", "b"][..], &[("a", served), ("b", served)][..], Uptake::Everywhere),
            (&["a", "b"], &[("a", served)], partial(1, 2)),
            (&["a", "b"], &[("a", served), ("b", old)], partial(1, 2)),
            (&["a"], &[("a", served), ("gone", old)], Uptake::Everywhere),
            (&[], &[("gone", served)], Uptake::NoProxy),
        ] {
            assert_eq!(uptake("r", "1", &ready(pods), &reports(leases)), want, "{pods:?} {leases:?}");
        }
        let outcome = uptake("r", "1", &ready(&["a", "b"]), &reports(&[("b", failed)]));
        assert!(matches!(outcome, Uptake::Failed { proxy, problem } if proxy == "b" && problem.reason == Reason::Unresolvable));
    }
}
