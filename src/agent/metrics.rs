//! What a proxy tells in numbers: at `/metrics`, as OpenMetrics, and in its Lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::plan::Serving;
use super::sockets::Open;
use super::workers;
use crate::model::nginx::Served;
use crate::model::traffic::{Carried, Of, REACHED, Session, Traffic};

/// Upper bounds, in seconds: of a session, from one request to a watch of hours, and of a connection to an API server.
const DURATIONS: [f64; 9] = [0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];
const CONNECTS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 3.0];

/// Values of the label `direction`.
const TO_CLUSTER: &str = "to_cluster";
const FROM_CLUSTER: &str = "from_cluster";

/// What nginx says of sessions: they reached the cluster, did not, came from where nobody is let in, were one too many, or met a fault of
/// nginx's own.
const STATUSES: [&str; 5] = [REACHED, "502", "403", "503", "500"];

/// Labels of one cluster's numbers, and one more.
type Labels<const N: usize> = [(&'static str, String); N];
type ByCluster<M> = Family<Labels<2>, M, fn() -> M>;

/// The numbers of a proxy; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    sessions: Family<Labels<3>, Counter>,
    bytes: Family<Labels<3>, Counter>,
    carried: Family<Labels<3>, Counter>,
    durations: ByCluster<Histogram>,
    connects: ByCluster<Histogram>,
    open: Family<Labels<2>, Gauge>,
    open_bytes: Family<Labels<3>, Gauge>,
    ready: Gauge,
    routes: Family<Labels<1>, Gauge>,
    reloads: Family<Labels<1>, Counter>,
    draining: Gauge,
    lost: Counter,
    state: Mutex<State>,
    /// Held while all of it is written: what is told of open sessions is set anew each time.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    since: Timestamp,
    /// Whose sessions come in by a port, and where they lead. A route that is gone stays here until another has its port.
    ports: BTreeMap<u16, (Of, BTreeSet<SocketAddr>)>,
    /// Whose sessions that were told apart by name lead there: they come in by one port. It stays here likewise.
    upstreams: BTreeMap<SocketAddr, Of>,
    ended: BTreeMap<Of, Carried>,
    /// nginx's first process.
    master: Option<u32>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("xregion");
        let histogram = |bounds: fn() -> Histogram| Family::new_with_constructor(bounds);
        let metrics = Inner {
            sessions: Family::default(),
            bytes: Family::default(),
            carried: Family::default(),
            durations: histogram(|| Histogram::new(DURATIONS)),
            connects: histogram(|| Histogram::new(CONNECTS)),
            open: Family::default(),
            open_bytes: Family::default(),
            ready: Gauge::default(),
            routes: Family::default(),
            reloads: Family::default(),
            draining: Gauge::default(),
            lost: Counter::default(),
            writing: Mutex::default(),
            state: Mutex::new(State {
                since: Timestamp::now(),
                ports: BTreeMap::new(),
                upstreams: BTreeMap::new(),
                ended: BTreeMap::new(),
                master: None,
            }),
            registry: Registry::default(),
        };
        registry.register("build", "This program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register(
            "sessions",
            "Sessions that ended, by nginx's status: 200 reached the cluster, 502 did not",
            metrics.sessions.clone(),
        );
        registry.register_with_unit(
            "session",
            "Bytes of sessions that ended, to the cluster and from it; those of open ones are in xregion_open_bytes",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        registry.register_with_unit(
            "carried",
            "Bytes of all sessions, as they are carried, to the cluster and from it",
            Unit::Bytes,
            metrics.carried.clone(),
        );
        registry.register_with_unit("session_duration", "How long sessions lasted", Unit::Seconds, metrics.durations.clone());
        registry.register_with_unit(
            "connect_duration",
            "How long it took to reach clusters",
            Unit::Seconds,
            metrics.connects.clone(),
        );
        registry.register("open_sessions", "Sessions that are open", metrics.open.clone());
        registry.register_with_unit("open", "Bytes that sessions carried which are open", Unit::Bytes, metrics.open_bytes.clone());
        registry.register(
            "ready",
            "Whether this proxy has once applied its routes, and does not end; where nginx rejects a change, it serves on as before",
            metrics.ready.clone(),
        );
        registry.register("routes", "Routes, by whether they are served or can't be", metrics.routes.clone());
        registry.register("reloads", "Changes of nginx's configuration, by what became of them", metrics.reloads.clone());
        registry.register(
            "draining_workers",
            "nginx processes of earlier configurations, which end with their last session or at timeouts.drainSeconds",
            metrics.draining.clone(),
        );
        registry.register("access_log_lines_lost", "Lines that nobody took off this proxy's standard output", metrics.lost.clone());
        // From nothing on: what a counter has when it is first seen, nobody counts.
        for outcome in ["served", "rejected"] {
            drop(metrics.reloads.get_or_create(&[("outcome", outcome.to_owned())]));
        }
        Self(Arc::new(Inner { registry, ..metrics }))
    }

    /// nginx runs, as this process.
    pub fn set_nginx(&self, master: Option<u32>) {
        self.state().master = master;
    }

    /// A session ended.
    pub fn ended(&self, session: &Session) {
        let of = &session.of;
        self.0.sessions.get_or_create(&with(of, "status", &session.status)).inc();
        self.0.bytes.get_or_create(&with(of, "direction", TO_CLUSTER)).inc_by(session.to_cluster());
        self.0.bytes.get_or_create(&with(of, "direction", FROM_CLUSTER)).inc_by(session.sent);
        self.0.durations.get_or_create(&labels(of)).observe(session.seconds);
        if let Some(seconds) = session.connect_seconds() {
            self.0.connects.get_or_create(&labels(of)).observe(seconds);
        }
        *self.state().ended.entry(of.clone()).or_default() += Carried::of(session);
    }

    /// These routes are served, and so many can't be.
    pub fn serving(&self, serving: &Serving, refused: usize) {
        let count = |state: &str, number: usize| {
            self.0.routes.get_or_create(&[("state", state.to_owned())]).set(i64::try_from(number).unwrap_or(i64::MAX))
        };
        count("served", serving.len());
        count("refused", refused);
        let mut names = BTreeSet::new();
        for Served { route, addresses } in serving.values() {
            let of = Of { cluster: route.cluster.to_string(), hub: route.hub.short() };
            for direction in [TO_CLUSTER, FROM_CLUSTER] {
                drop(self.0.bytes.get_or_create(&with(&of, "direction", direction)));
            }
            for status in STATUSES {
                drop(self.0.sessions.get_or_create(&with(&of, "status", status)));
            }
            let upstream = addresses.iter().map(|address| SocketAddr::new(*address, route.port));
            match &route.server_name {
                None => drop(self.state().ports.insert(route.listen, (of, upstream.collect()))),
                // As nginx does, the first one has the name.
                Some(name) if names.insert(name) => self.state().upstreams.extend(upstream.map(|address| (address, of.clone()))),
                Some(_) => {}
            }
        }
    }

    /// Whether it is ready.
    pub fn ready(&self, ready: bool) {
        self.0.ready.set(i64::from(ready));
    }

    /// A line of the access log was lost.
    pub fn line_lost(&self) {
        self.0.lost.inc();
    }

    /// nginx was given another configuration.
    pub fn reloaded(&self, outcome: &'static str) {
        self.0.reloads.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// What it has carried, open sessions included.
    pub fn traffic(&self) -> Traffic {
        let (ended, open) = self.counted();
        let sums = sums(ended, open.as_ref());
        Traffic::new(self.state().since, sums.iter().map(|(of, carried)| (of, *carried)))
    }

    /// What ended, and after it what is open: a session that ends in between is missed for once, not counted twice.
    fn counted(&self) -> (BTreeMap<Of, Carried>, Option<BTreeMap<Of, Carried>>) {
        let ended = self.state().ended.clone();
        (ended, self.open())
    }

    /// All of it as OpenMetrics' text.
    pub fn text(&self) -> String {
        let _alone = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.open.clear();
        self.0.open_bytes.clear();
        let set = |gauge: &Gauge, number: u64| {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        let (ended, open) = self.counted();
        for (of, carried) in open.iter().flatten() {
            set(&self.0.open.get_or_create(&labels(of)), carried.open);
            set(&self.0.open_bytes.get_or_create(&with(of, "direction", TO_CLUSTER)), carried.to_cluster);
            set(&self.0.open_bytes.get_or_create(&with(of, "direction", FROM_CLUSTER)), carried.from_cluster);
        }
        for (of, carried) in sums(ended, open.as_ref()) {
            for (direction, bytes) in [(TO_CLUSTER, carried.to_cluster), (FROM_CLUSTER, carried.from_cluster)] {
                let told = self.0.carried.get_or_create(&with(&of, "direction", direction));
                // A session that has ended is out of the kernel before it is in the access log: until then, what was told stays.
                told.inc_by(bytes.saturating_sub(told.get()));
            }
        }
        let master = self.state().master;
        let draining = master.map_or(0, |master| workers::draining(master).len());
        self.0.draining.set(i64::try_from(draining).unwrap_or(i64::MAX));
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.0.registry) {
            tracing::error!(%error, "the metrics can't be written");
        }
        text
    }

    /// What is open, by whose it is: of every route that is or was there, at least nothing. None where the kernel doesn't tell.
    fn open(&self) -> Option<BTreeMap<Of, Carried>> {
        let Open { by_local_port, mut by_remote } = Open::look()
            .inspect_err(|error| tracing::warn!(error = %format!("{error:#}"), "open sessions are not counted"))
            .ok()?;
        let mut sums: BTreeMap<Of, Carried> = BTreeMap::new();
        let state = self.state();
        for (port, (of, upstream)) in &state.ports {
            let mut carried = by_local_port.get(port).copied().unwrap_or_default();
            *sums.entry(of.clone()).or_default() += carried;
            // What leads to an upstream by a port of its own does not lead there by name.
            for address in upstream {
                by_remote.entry(*address).or_default().part_with(&mut carried);
            }
        }
        for (upstream, of) in &state.upstreams {
            *sums.entry(of.clone()).or_default() += by_remote.get(upstream).copied().unwrap_or_default();
        }
        Some(sums)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sums(mut ended: BTreeMap<Of, Carried>, open: Option<&BTreeMap<Of, Carried>>) -> BTreeMap<Of, Carried> {
    open.into_iter().flatten().for_each(|(of, carried)| *ended.entry(of.clone()).or_default() += *carried);
    ended
}

fn labels(of: &Of) -> Labels<2> {
    [("cluster", of.cluster.clone()), ("hub", of.hub.clone())]
}

fn with(of: &Of, key: &'static str, value: impl ToString) -> Labels<3> {
    let [cluster, hub] = labels(of);
    [cluster, hub, (key, value.to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_name_what_a_proxy_tells_and_nothing_else() {
        let (metrics, of) = (Metrics::new(), Of { cluster: "a".into(), hub: "h".into() });
        metrics.state().ports.insert(1, (of.clone(), BTreeSet::new()));
        metrics.serving(&Serving::new(), 0);
        metrics.ended(&Session {
            of,
            status: REACHED.into(),
            received: 1,
            sent: 2,
            forwarded: None,
            seconds: 0.1,
            connect: "0.001".into(),
        });
        let text = metrics.text();
        let told: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            })
            .collect();
        let rows = include_str!("../../docs/monitoring.md").lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        let names = rows.flat_map(|row| row.split('`')).filter_map(|name| name.split('{').next());
        let documented: BTreeSet<String> = names
            .filter(|name| name.starts_with("xregion_") && !name.starts_with("xregion_controller_"))
            .map(str::to_owned)
            .collect();
        assert_eq!(told, documented);
    }
}
