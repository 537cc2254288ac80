//! Which nodes of the regions answer the hub: their Services lead to those. A node that is dead or cut off loses its connections' successors
//! within seconds, long before Kubernetes calls it NotReady, and a node that comes gets its share; no gateway is rolled for either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::metrics::Metrics;
use crate::hub::Hub;
use crate::lock::Lock;
use crate::model::answering::Answering;
use crate::model::names::ClusterName;

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

/// Asks the nodes, and leads the regions' Services to those that answer.
pub(super) struct Nodes<'a> {
    pub hub: &'a Hub,
    pub metrics: Metrics,
    /// What the looks see.
    pub entrances: watch::Receiver<Entrances>,
    /// The nodes that don't answer, for whoever tells of them.
    pub silent: watch::Sender<BTreeMap<ClusterName, BTreeSet<IpAddr>>>,
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
            let mut silent = BTreeMap::new();
            for (region, heard) in join_all(asked).await {
                let (answering, led) = known.entry(region.clone()).or_default();
                let alive = answering.note(&heard, led);
                let expected = entrances[region].nodes.iter().filter(|(_, expected)| **expected).map(|(ip, _)| *ip);
                let lost: BTreeSet<IpAddr> = expected.filter(|ip| !alive.contains(ip)).collect();
                self.metrics.nodes(region, alive.len(), lost.len());
                silent.insert(region.clone(), lost);
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
