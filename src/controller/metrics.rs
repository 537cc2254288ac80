//! What the controller tells in numbers.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::model::names::ClusterName;

/// The numbers; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    registry: Arc<Registry>,
    leader: Gauge,
    repairs: Family<[(&'static str, &'static str); 1], Counter>,
    problems: Gauge,
    last_look: Gauge<f64, AtomicU64>,
    nodes: Family<[(&'static str, String); 2], Gauge>,
    expire: Family<[(&'static str, String); 1], Gauge>,
    attention: Family<[(&'static str, String); 1], Gauge>,
    renewals: Family<[(&'static str, &'static str); 1], Counter>,
    /// The clusters whose credentials' ends are told.
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("xregion_controller");
        let (leader, repairs, problems, last_look) = (Gauge::default(), Family::default(), Gauge::default(), Gauge::default());
        registry.register("leader", "Whether this is the one that mends", leader.clone());
        registry.register("repairs", "What was put back", Family::clone(&repairs));
        registry.register("problems", "What can't be mended", problems.clone());
        registry.register_with_unit("last_look_timestamp", "When all was looked at last", Unit::Seconds, last_look.clone());
        let nodes = Family::default();
        registry.register("nodes", "Nodes by which the hub enters a region, by whether they answer", Family::clone(&nodes));
        let (expire, attention, renewals) = (Family::default(), Family::default(), Family::default());
        let help = "When the hub's credentials for a cluster end";
        registry.register_with_unit("credentials_expire_timestamp", help, Unit::Seconds, Family::clone(&expire));
        let help = "From when on somebody should see to the hub's credentials for a cluster";
        registry.register_with_unit("credentials_attention_timestamp", help, Unit::Seconds, Family::clone(&attention));
        registry.register("renewals", "Tokens that were to be renewed", Family::clone(&renewals));
        let told = Arc::default();
        let this =
            Self { registry: Arc::new(registry), leader, repairs, problems, last_look, expire, attention, renewals, told, nodes };
        // From nothing on: what a counter has when it is first seen, nobody counts.
        ["gateway", "addresses", "entries", "service", "route", "port"].into_iter().for_each(|what| drop(this.counter(what)));
        ["renewed", "failed"].into_iter().for_each(|outcome| drop(this.renewals.get_or_create(&[("outcome", outcome)])));
        this
    }

    fn counter(&self, what: &'static str) -> impl std::ops::Deref<Target = Counter> {
        self.repairs.get_or_create(&[("what", what)])
    }

    /// It leads, or does no more.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// It has looked at all.
    pub fn looked(&self, now: Timestamp) {
        self.last_look.set(now.as_millisecond() as f64 / 1000.0);
    }

    /// It has put something back.
    pub fn repaired(&self, what: &'static str) {
        self.counter(what).inc();
    }

    /// So many nodes of a region answer, and so many don't.
    pub fn nodes(&self, region: &ClusterName, answering: usize, silent: usize) {
        for (state, count) in [("answering", answering), ("silent", silent)] {
            let labels = [("region", region.to_string()), ("state", state.to_owned())];
            self.nodes.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// A token was to be renewed, and was (`renewed`) or was not (`failed`).
    pub fn renewed(&self, outcome: &'static str) {
        self.renewals.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// When the credentials of these clusters end, and from when on somebody should see to them. Of others, nothing is told any more.
    pub fn credentials<'a>(&self, ends: impl IntoIterator<Item = (&'a str, Timestamp, Timestamp)>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for (cluster, end, attention) in ends {
            self.expire.get_or_create(&[("cluster", cluster.to_owned())]).set(end.as_second());
            self.attention.get_or_create(&[("cluster", cluster.to_owned())]).set(attention.as_second());
            now.insert(cluster.to_owned());
        }
        for gone in told.difference(&now) {
            self.expire.remove(&[("cluster", gone.clone())]);
            self.attention.remove(&[("cluster", gone.clone())]);
        }
        *told = now;
    }

    /// So much can't be mended.
    pub fn problems(&self, count: usize) {
        self.problems.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// All of it as OpenMetrics' text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "the metrics can't be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_values() {
        let metrics = Metrics::new();
        metrics.leads(true);
        metrics.repaired("route");
        metrics.problems(2);
        metrics.looked(Timestamp::from_millisecond(1500).unwrap());
        metrics.nodes(&"east".parse().unwrap(), 2, 0);
        let at = |second| Timestamp::from_second(second).unwrap();
        metrics.credentials([("gone", at(0), at(0)), ("a", at(0), at(0))]);
        metrics.credentials([("a", at(1_800_000_000), at(1_700_000_000))]);
        metrics.renewed("renewed");
        let text = metrics.text();
        for line in [
            "xregion_controller_leader 1",
            "xregion_controller_repairs_total{what=\"route\"} 1",
            "xregion_controller_repairs_total{what=\"port\"} 0",
            "xregion_controller_problems 2",
            "xregion_controller_nodes{region=\"east\",state=\"answering\"} 2",
            "xregion_controller_last_look_timestamp_seconds 1.5",
            "xregion_controller_credentials_expire_timestamp_seconds{cluster=\"a\"} 1800000000",
            "xregion_controller_credentials_attention_timestamp_seconds{cluster=\"a\"} 1700000000",
            "xregion_controller_renewals_total{outcome=\"renewed\"} 1",
            "xregion_controller_renewals_total{outcome=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");

        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let told: BTreeSet<String> =
            types.map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() }).collect();
        let rows = include_str!("../../docs/monitoring.md").lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        let names = rows.flat_map(|row| row.split('`')).filter_map(|name| name.split('{').next());
        let documented = names.filter(|name| name.starts_with("xregion_controller_")).map(str::to_owned).collect();
        assert_eq!(told, documented, "and what docs/monitoring.md names");
    }
}
