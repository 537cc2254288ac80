//! Which nodes of the regions answer the hub: their Services lead to those. A node that is dead or cut off loses its connections' successors
//! within seconds, long before Kubernetes calls it NotReady, and a node that comes gets its share; no gateway is rolled for either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::metrics::Metrics;
use crate::hub::Hub;
use crate::lock::Lock;
use crate::model::answering::Answering;
use crate::model::checkup::{Problem, Subject};
use crate::model::drift::Trouble;
use crate::model::names::ClusterName;
use crate::model::nodes::listed;

/// How often every node is asked, and how long it has to answer. A node that is dead is found within twice that.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A region as the last look saw it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entrance {
    /// The nodes to ask, and whether each should answer by what Kubernetes says.
    pub nodes: BTreeMap<IpAddr, bool>,
    /// The port that every node answers at. It is only connected to, and nothing said there.
    pub port: u16,
    /// The nodes that its Services led to.
    pub led: BTreeSet<IpAddr>,
}

/// Regions by name.
pub(super) type Entrances = BTreeMap<ClusterName, Entrance>;

/// What was not heard of a region's nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Silence {
    /// Those that should answer by what Kubernetes says, and don't.
    nodes: BTreeSet<IpAddr>,
    /// The port at which they were asked.
    port: u16,
    /// Whether no node at all answers.
    whole: bool,
}

/// Of each region.
pub(super) type Silences = BTreeMap<ClusterName, Silence>;

impl Silence {
    fn of(entrance: &Entrance, alive: &BTreeSet<IpAddr>) -> Self {
        let expected = entrance.nodes.iter().filter(|(_, expected)| **expected).map(|(ip, _)| *ip);
        Self { nodes: expected.filter(|ip| !alive.contains(ip)).collect(), port: entrance.port, whole: alive.is_empty() }
    }

    /// What is told of it.
    pub fn troubles(&self, region: &ClusterName) -> Vec<Trouble> {
        let Self { nodes, port, whole } = self;
        let look = format!("kubectl get nodes,pods -A -o wide, in cluster {region}");
        let problems = match whole {
            _ if nodes.is_empty() => vec![],
            // Clusters may be reached all the same, by ports of their own.
            true => vec![Problem::new(
                format!("none of its nodes answers the hub at port {port}: new connections are led where they were led before"),
                format!(
                    "open port {port} of {} to the hub in the firewall between them; or, if none is there, {look}",
                    listed(nodes)
                ),
            )],
            false => nodes
                .iter()
                .map(|ip| {
                    Problem::new(
                        format!("its node {ip} does not answer the hub at port {port}: no new connection is led there"),
                        format!(
                            "{look}; and check the way from the hub to {}, and firewalls on it",
                            SocketAddr::from((*ip, *port))
                        ),
                    )
                })
                .collect(),
        };
        problems.into_iter().map(|problem| Trouble { about: Subject::Region(region.clone()), problem }).collect()
    }
}

/// Asks the nodes, and leads the regions' Services to those that answer.
pub(super) struct Nodes<'a> {
    pub hub: &'a Hub,
    pub metrics: Metrics,
    /// What the looks see.
    pub entrances: watch::Receiver<Entrances>,
    /// The nodes that don't answer, for whoever tells of them.
    pub silent: watch::Sender<Silences>,
}

impl Nodes<'_> {
    /// Does so while the right to it is held. It may be dropped at any time.
    pub async fn follow(mut self, lock: &Lock) {
        let mut known: BTreeMap<ClusterName, (Answering, BTreeSet<IpAddr>)> = BTreeMap::new();
        let mut tick = interval(ASK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let fresh = self.entrances.has_changed().unwrap_or(false);
            let entrances = self.entrances.borrow_and_update().clone();
            known.retain(|region, _| entrances.contains_key(region));
            for (region, entrance) in entrances.iter().filter(|_| fresh) {
                known.entry(region.clone()).or_default().1.clone_from(&entrance.led);
            }
            let asked = entrances.iter().map(|(region, entrance)| async move { (region, ask(entrance).await) });
            let mut silent = Silences::new();
            for (region, heard) in join_all(asked).await {
                let (answering, led) = known.entry(region.clone()).or_default();
                let alive = answering.note(&heard, led);
                let silence = Silence::of(&entrances[region], &alive);
                self.metrics.nodes(region, alive.len(), silence.nodes.len());
                silent.insert(region.clone(), silence);
                // Where none answers, it may be the hub that is cut off: all stays.
                if alive.is_empty() || alive == *led || !lock.held() {
                    continue;
                }
                match self.hub.lead(region, &alive).await {
                    Ok(()) => {
                        tracing::info!(%region, nodes = %shown(&alive), before = %shown(led), "its Services lead to the nodes that answer");
                        *led = alive;
                    }
                    Err(failure) => tracing::warn!(%failure, %region, "its Services lead where they led"),
                }
            }
            self.silent.send_if_modified(|now| std::mem::replace(now, silent.clone()) != silent);
        }
    }
}

async fn ask(entrance: &Entrance) -> BTreeMap<IpAddr, bool> {
    let asked = entrance.nodes.keys().map(|ip| async move {
        let connected = timeout(ASK_EVERY, TcpStream::connect((*ip, entrance.port))).await;
        (*ip, connected.is_ok_and(|connected| connected.is_ok()))
    });
    join_all(asked).await.into_iter().collect()
}

fn shown(nodes: &BTreeSet<IpAddr>) -> String {
    nodes.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_nodes_that_don_t_answer_is_told_where_connections_go_and_at_which_port_they_were_asked() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        // Of the last one Kubernetes says itself that it is not ready.
        let entrance =
            Entrance { nodes: [(ip(1), true), (ip(2), true), (ip(3), false)].into(), port: 30085, led: [ip(1), ip(2)].into() };
        let look = "kubectl get nodes,pods -A -o wide, in cluster east";
        let past = |n: u8| {
            (
                format!("its node 10.0.0.{n} does not answer the hub at port 30085: no new connection is led there"),
                format!("{look}; and check the way from the hub to 10.0.0.{n}:30085, and firewalls on it"),
            )
        };
        let open = "open port 30085 of 10.0.0.1, 10.0.0.2 to the hub in the firewall between them";
        let whole = (
            "none of its nodes answers the hub at port 30085: new connections are led where they were led before".to_owned(),
            format!("{open}; or, if none is there, {look}"),
        );
        for (alive, want) in [
            (&[1, 2, 3][..], vec![]),
            (&[1, 2], vec![]),
            (&[1], vec![past(2)]),
            // Whoever answers is led to, whatever Kubernetes says of it.
            (&[3], vec![past(1), past(2)]),
            (&[], vec![whole]),
        ] {
            let told = Silence::of(&entrance, &alive.iter().map(|n| ip(*n)).collect()).troubles(&"east".parse().unwrap());
            assert!(told.iter().all(|trouble| trouble.about.to_string() == "region east"), "{told:?}");
            let told: Vec<_> = told.into_iter().map(|trouble| (trouble.problem.cause, trouble.problem.fix)).collect();
            assert_eq!(told, want, "{alive:?} answer");
        }
        let down = Entrance { nodes: [(ip(3), false)].into(), ..entrance };
        assert_eq!(Silence::of(&down, &BTreeSet::new()).troubles(&"east".parse().unwrap()), [], "nobody expected it to answer");
    }
}
