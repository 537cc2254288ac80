//! What a run has changed so far, so that a run that fails leaves everything as it found it.

use crate::error::Failure;
use crate::hub::Hub;
use crate::hub::clusters::JoinedCluster;
use crate::hub::gateway::Gateway;
use crate::model::names::{ClusterName, DnsName};
use crate::model::route::Route;
use crate::region::Region;

/// One step back. Each is noted *before* the step forth is taken, and does nothing where that never happened.
pub enum Step {
    /// Take the ports of this name from the region's Service.
    ReleasePorts(Box<Region>, String),
    /// Remove the route of this name.
    RemoveRoute(Box<Region>, String),
    /// Write the route as it was.
    PutRoute(Box<Region>, Box<Route>),
    /// Take the cluster's claim to the host name from the gateway.
    DropAlias(Box<Gateway>, DnsName, ClusterName),
    /// Put the cluster's Secret back.
    RestoreCluster(Box<Hub>, ClusterName, Option<Box<JoinedCluster>>),
}

impl Step {
    async fn take(&self) -> Result<(), Failure> {
        match self {
            Self::ReleasePorts(region, name) => region.release_ports(name).await,
            Self::RemoveRoute(region, name) => region.remove_route(name).await,
            Self::PutRoute(region, route) => region.put_route(route).await,
            Self::DropAlias(gateway, host, cluster) => gateway.change(|now| Ok(now.without(host, cluster))).await.map(drop),
            Self::RestoreCluster(hub, name, before) => hub.restore(name, before.as_deref()).await,
        }
    }
}

/// The way back, last step first.
#[derive(Default)]
pub struct Undo(Vec<Step>);

impl Undo {
    /// Notes how to undo what is done next.
    pub fn note(&mut self, step: Step) {
        self.0.push(step);
    }

    /// How many steps are noted.
    pub fn mark(&self) -> usize {
        self.0.len()
    }

    /// Undoes what was noted since `mark`. A step that fails does not keep the others from being taken.
    pub async fn back_to(&mut self, mark: usize) -> Result<(), Failure> {
        let mut first = Ok(());
        while self.0.len() > mark {
            // Taken out only when it is done: whoever cancels this can go on later.
            let Some(step) = self.0.last() else { break };
            let taken = step.take().await;
            self.0.pop();
            if let Err(failure) = taken {
                tracing::warn!(%failure, "a step was not undone");
                first = first.and(Err(failure));
            }
        }
        first
    }
}
