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

/// The numbers; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    registry: Arc<Registry>,
    leader: Gauge,
    repairs: Family<[(&'static str, &'static str); 1], Counter>,
    problems: Gauge,
    last_look: Gauge<f64, AtomicU64>,
    expire: Family<[(&'static str, String); 1], Gauge>,
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
        let (expire, renewals) = (Family::default(), Family::default());
        let help = "When the hub's credentials for a cluster end";
        registry.register_with_unit("credentials_expire_timestamp", help, Unit::Seconds, Family::clone(&expire));
        registry.register("renewals", "Tokens that were to be renewed", Family::clone(&renewals));
        let told = Arc::default();
        let this = Self { registry: Arc::new(registry), leader, repairs, problems, last_look, expire, renewals, told };
        // From nothing on: what a counter has when it is first seen, nobody counts.
        ["gateway", "addresses", "route", "port"].into_iter().for_each(|what| drop(this.counter(what)));
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

    /// A token was to be renewed, and was (`renewed`) or was not (`failed`).
    pub fn renewed(&self, outcome: &'static str) {
        self.renewals.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// When the credentials of these clusters end. Of others, nothing is told any more.
    pub fn credentials<'a>(&self, ends: impl IntoIterator<Item = (&'a str, Timestamp)>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for (cluster, end) in ends {
            self.expire.get_or_create(&[("cluster", cluster.to_owned())]).set(end.as_second());
            now.insert(cluster.to_owned());
        }
        for gone in told.difference(&now) {
            self.expire.remove(&[("cluster", gone.clone())]);
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
    use super::*;

    #[test]
    fn names_and_values() {
        let metrics = Metrics::new();
        metrics.leads(true);
        metrics.repaired("route");
        metrics.problems(2);
        metrics.looked(Timestamp::from_millisecond(1500).unwrap());
        metrics.credentials([("gone", Timestamp::UNIX_EPOCH), ("a", Timestamp::UNIX_EPOCH)]);
        metrics.credentials([("a", Timestamp::from_second(1_800_000_000).unwrap())]);
        metrics.renewed("renewed");
        let text = metrics.text();
        for line in [
            "xregion_controller_leader 1",
            "xregion_controller_repairs_total{what=\"route\"} 1",
            "xregion_controller_repairs_total{what=\"port\"} 0",
            "xregion_controller_problems 2",
            "xregion_controller_last_look_timestamp_seconds 1.5",
            "xregion_controller_credentials_expire_timestamp_seconds{cluster=\"a\"} 1800000000",
            "xregion_controller_renewals_total{outcome=\"renewed\"} 1",
            "xregion_controller_renewals_total{outcome=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("gone"), "{text}");
    }
}
