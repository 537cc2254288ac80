//! What runs, and how well.

use std::fmt::Write as _;

use anyhow::Result;

use crate::node::Worker;
use crate::topology::{Region, Role};
use crate::{Lab, process};

impl Lab {
    /// A table of clusters and what of them doesn't work; the second value says whether all does.
    pub fn status(&self) -> Result<(String, bool)> {
        let recorded = process::recorded(self.state())?;
        let mut text = String::new();
        let mut healthy = true;
        for cluster in self.state().clusters()? {
            let api = self.control_plane(&cluster).ready();
            let nodes: Vec<String> = cluster
                .nodes
                .iter()
                .map(|node| {
                    let ready = Worker { state: self.state(), tools: self.tools(), cluster: &cluster, node }.ready().is_ok();
                    healthy &= ready;
                    format!("{} {}", node.place.name, if ready { "Ready" } else { "NotReady" })
                })
                .collect();
            healthy &= api.is_ok();
            let api = api.map_or_else(|error| format!("down ({error:#})"), |()| "ready".to_owned());
            let nodes = if nodes.is_empty() { "no nodes".to_owned() } else { nodes.join(", ") };
            writeln!(text, "{:<12} {:<9} API server {api}; {nodes}; {}", cluster.name, kind(cluster.role()), cluster.server)?;
        }
        for region in Region::ALL {
            let runs = recorded.iter().any(|((place, _), record)| place == region.resolver_place() && record.alive());
            healthy &= runs;
            writeln!(text, "{:<12} {:<9} {}", region.resolver_place(), "resolver", if runs { "runs" } else { "down" })?;
        }
        for ((place, part), _) in recorded.iter().filter(|(_, record)| !record.alive()) {
            healthy = false;
            writeln!(text, "{part} at {place} has ended; see `lab logs {place} {part}`")?;
        }
        let alive: Vec<_> = recorded.values().filter(|record| record.alive()).collect();
        let memory: u64 = alive.iter().map(|record| record.memory()).sum();
        writeln!(text, "{} processes, {} MB, besides pods; state in {}", alive.len(), memory >> 20, self.state().root().display())?;
        Ok((text, healthy))
    }
}

fn kind(role: Role) -> &'static str {
    match role {
        Role::Hub => "hub",
        Role::Proxy => "proxy",
        Role::Business => "business",
    }
}
