//! A network that enforces NetworkPolicies, as that of a lab by itself doesn't: on each node of a cluster the engine of SIG Network's
//! kube-network-policies, which is shown the first packet of each connection that the node forwards.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::process::Daemon;
use crate::{Lab, net, state, wait};

const PART: &str = "network-policies";
/// The kernel's number of the queue by which the engine gets packets.
const QUEUE: u16 = 100;
const READY: Duration = Duration::from_secs(20);
const GOODBYE: Duration = Duration::from_secs(5);

/// They are enforced until this is dropped.
#[derive(Debug)]
pub struct Enforced<'a> {
    lab: &'a Lab,
    nodes: Vec<String>,
}

impl Lab {
    /// Enforces the NetworkPolicies of a cluster, with the engine that [`crate::build::ensure_network_policies`] has built.
    ///
    /// # Errors
    /// When the engine doesn't start on one of the nodes.
    pub fn enforce_policies(&self, engine: &Path, cluster: &str) -> Result<Enforced<'_>> {
        let nodes = self.cluster(cluster)?.nodes.into_iter().map(|node| node.place.name).collect();
        let enforced = Enforced { lab: self, nodes };
        // That of a run that was killed may be of another version.
        enforced.end()?;
        for node in &enforced.nodes {
            let kubeconfig = self.state().kubeconfig(cluster, "admin").display().to_string();
            let args = [("kubeconfig", kubeconfig), ("node", node.clone()), ("queue", QUEUE.to_string())];
            let daemon = Daemon::new(self.state(), node, PART);
            daemon.ensure(engine, &args.map(|(flag, value)| format!("--{flag}={value}")))?;
            daemon.await_ready(READY, || listens(&daemon))?;
            net::set_queue(node, QUEUE, true)?;
        }
        Ok(enforced)
    }
}

/// Whether the engine takes packets, which it does once it knows pods and policies.
fn listens(daemon: &Daemon<'_>) -> Result<()> {
    let pid = daemon.running().context("it has ended")?.pid;
    let queues = state::read(Path::new(&format!("/proc/{pid}/net/netfilter/nfnetlink_queue")))?;
    let number = QUEUE.to_string();
    ensure!(queues.lines().any(|line| line.split_whitespace().next() == Some(&number)), "nobody listens on queue {number}");
    Ok(())
}

/// Enforces none any more at a node, also what a run that was killed has left.
pub(crate) fn end(lab: &Lab, node: &str) -> Result<()> {
    net::set_queue(node, QUEUE, false)?;
    let daemon = Daemon::new(lab.state(), node, PART);
    if let Some(engine) = daemon.running() {
        // Asked to end, it takes its own rules along, which a kernel with nftables' queue has.
        engine.signal(Signal::SIGTERM)?;
        let ended = wait::until_true("the end of an engine of policies", GOODBYE, || !engine.alive());
        ended.unwrap_or_else(|error| tracing::warn!("{error:#}"));
    }
    daemon.kill()
}

impl Enforced<'_> {
    fn end(&self) -> Result<()> {
        let ended: Vec<_> = self.nodes.iter().map(|node| end(self.lab, node)).collect();
        ended.into_iter().collect()
    }
}

impl Drop for Enforced<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("NetworkPolicies are still enforced: {error:#}");
        }
    }
}
