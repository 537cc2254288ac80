//! What a run has changed so far, so that a run that fails leaves everything as it found it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;

use crate::error::Failure;
use crate::hub::Hub;
use crate::hub::clusters::{JoinedCluster, JoinedWith};
use crate::hub::gateway::Gateway;
use crate::hub::leftovers::Leftover;
use crate::model::aliases::Wanted;
use crate::model::names::{ClusterName, DnsName, Slot};
use crate::model::route::Route;
use crate::region::{Region, release_ports};

/// How long undoing may take: a Job is ended 30 s after its own deadline, a pod 30 s after it was asked to end.
pub const PATIENCE: Duration = Duration::from_secs(25);

/// One step back. Each is noted *before* the step forth is taken, and does nothing where that never happened.
pub enum Step {
    /// Take the ports of the cluster's slot from the region's Service, and from what leads there on the hub.
    ReleasePorts(Box<Hub>, Box<Region>, ClusterName, Slot),
    /// Remove this route. Another run may have written there since, and joined by it.
    RemoveRoute(Box<Region>, Box<Route>),
    /// Write the route as it was, where it is as it was written.
    PutRoute {
        /// Where it is.
        region: Box<Region>,
        /// What this run wrote.
        written: Box<Route>,
        /// What was there.
        before: Box<Route>,
    },
    /// Take the cluster's claim to the host name from the gateway.
    DropAlias(Box<Gateway>, DnsName, ClusterName),
    /// Leave the host name on the gateway to whoever made it, led to where it led.
    DisownAlias(Box<Gateway>, DnsName, BTreeSet<IpAddr>),
    /// Lead the host name on the gateway to where it led.
    PutAlias(Box<Gateway>, Wanted, BTreeSet<IpAddr>),
    /// Put the cluster's Secret back, where it is as it was joined.
    RestoreCluster {
        /// Where it is.
        hub: Box<Hub>,
        /// The cluster.
        name: ClusterName,
        /// What it was joined with.
        joined: Box<JoinedWith>,
        /// What was there.
        before: Option<Box<JoinedCluster>>,
    },
    /// Forget that the cluster has something left in a region: it stays there.
    ForgetLeftover(Box<Hub>, Leftover),
}

impl Step {
    async fn take(&self) -> Result<(), Failure> {
        match self {
            Self::ReleasePorts(hub, region, cluster, slot) => {
                let (port, route) = (hub.id.port_name(cluster, *slot), hub.id.route_name(cluster, *slot));
                // This run's route is removed by now: one that listens there is another run's, or was there before.
                if region.listens(&route, &port).await? { Ok(()) } else { release_ports(hub, region, &port).await.map(drop) }
            }
            Self::RemoveRoute(region, written) => region.take_back_route(written).await,
            Self::PutRoute { region, written, before } => region.put_back_route(written, before).await,
            Self::DropAlias(gateway, host, cluster) => gateway.change(|now| Ok(now.without(host, cluster))).await.map(drop),
            Self::DisownAlias(gateway, host, addresses) => gateway.change(|now| Ok(now.disowned(host, addresses))).await.map(drop),
            Self::PutAlias(gateway, wanted, addresses) => gateway.change(|now| Ok(now.put_back(wanted, addresses))).await.map(drop),
            Self::RestoreCluster { hub, name, joined, before } => hub.restore(name, joined, before.as_deref()).await,
            Self::ForgetLeftover(hub, leftover) => hub.remove_leftover(leftover).await,
        }
    }
}

/// The way back of one cluster's join, last step first.
#[derive(Default)]
pub struct Undo {
    steps: Mutex<Vec<Arc<Step>>>,
    /// Whether the cluster is joined, and stays so.
    forgotten: AtomicBool,
}

impl Undo {
    fn steps(&self) -> MutexGuard<'_, Vec<Arc<Step>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how to undo what is done next.
    pub fn note(&self, step: Step) {
        self.steps().push(Arc::new(step));
    }

    /// How many steps are noted.
    pub fn mark(&self) -> usize {
        self.steps().len()
    }

    /// Undoes everything.
    pub async fn all(&self) -> Result<(), Failure> {
        self.back_to(0).await
    }

    /// Undoes what was noted since `mark`. A step that fails does not keep the others from being taken.
    pub async fn back_to(&self, mark: usize) -> Result<(), Failure> {
        let mut first = Ok(());
        loop {
            // Taken out only when it is done: whoever cancels this can go on later.
            let step = self.steps().get(mark..).and_then(|since| since.last()).cloned();
            let Some(step) = step else { return first };
            let taken = step.take().await;
            self.steps().pop();
            if let Err(failure) = taken {
                tracing::warn!(%failure, "a step was not undone");
                first = first.and(Err(failure));
            }
        }
    }

    /// Forgets the way back: the cluster is joined, and what was done stays.
    pub fn forget(&self) {
        self.steps().clear();
        self.forgotten.store(true, Ordering::Relaxed);
    }
}

/// The failure of a run that ended early, with what had been joined by then, and what could not be undone.
pub async fn undone(undos: &[Undo], failure: Failure) -> Failure {
    let joined = undos.iter().filter(|undo| undo.forgotten.load(Ordering::Relaxed)).count();
    let failure = match staying(joined, undos.len()) {
        Some(staying) => failure.and(&staying),
        None => failure,
    };
    match undo_within(undos, PATIENCE).await {
        Some(Ok(())) => failure,
        Some(Err(other)) => failure.and(&format!("and not everything could be undone: {}", other.cause())),
        None => failure.and("and not everything could be undone in time"),
    }
}

/// What stays of a run of so many clusters.
fn staying(joined: usize, of: usize) -> Option<String> {
    match joined {
        0 => None,
        _ if of == 1 => Some("the cluster is joined, and stays so".to_owned()),
        1 => Some(format!("1 of {of} clusters is joined, and stays so")),
        _ => Some(format!("{joined} of {of} clusters are joined, and stay so")),
    }
}

/// Undoes what a run did, in the time there is; gives nothing where that was not enough.
pub async fn undo_within(undos: &[Undo], patience: Duration) -> Option<Result<(), Failure>> {
    let undone = tokio::time::timeout(patience, join_all(undos.iter().map(Undo::all))).await;
    undone.ok().map(|all| all.into_iter().collect())
}

#[cfg(test)]
mod tests;
