//! An [`Overview`] as a tree, for people.

use std::fmt::Write as _;

use super::overview::{ClusterView, NodeView, Overview, RegionView, RouteView};
use super::region::{Entry, SNI_LISTEN};
use super::route::Mode;

/// The overview as text; `wide` adds aliases, proofs, nodes and proxies.
pub fn render(overview: &Overview, wide: bool) -> String {
    let mut out = String::new();
    let hub = &overview.hub;
    let gateway = match (&hub.gateway, hub.rolled) {
        (None, _) => "no gateway".to_owned(),
        (Some(name), true) => format!("gateway {name}"),
        (Some(name), false) => format!("gateway {name}, not rolled"),
    };
    line(&mut out, &format!("hub {}  {gateway}", hub.id));
    let rows: Vec<Vec<Row>> = overview.regions.iter().map(|region| rows(region, wide)).collect();
    let widths = widths(rows.iter().flatten());
    for (index, (region, rows)) in overview.regions.iter().zip(&rows).enumerate() {
        let last = index + 1 == overview.regions.len();
        line(&mut out, &format!("{}{}", if last { "└─ " } else { "├─ " }, header(region)));
        let rail = if last { "   " } else { "│  " };
        if wide {
            for text in details(region) {
                line(&mut out, &format!("{rail}{}{text}", if rows.is_empty() { "   " } else { "│  " }));
            }
        }
        for (index, row) in rows.iter().enumerate() {
            let branch = if index + 1 == rows.len() { "└─ " } else { "├─ " };
            line(&mut out, &format!("{rail}{branch}{}", aligned(row, &widths)));
        }
    }
    for cluster in &overview.unread {
        line(&mut out, &format!("cluster {} does not answer, and may be a region: {}", cluster.name, cluster.why));
    }
    out.push('\n');
    if overview.out_of_step.is_empty() {
        out.push_str("nothing is out of step");
        return out;
    }
    out.push_str("out of step:");
    for entry in &overview.out_of_step {
        let _ = write!(out, "\n  {}: {}\n    fix: {}", entry.about, entry.what, entry.fix);
    }
    out
}

type Row = Vec<String>;

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end());
    out.push('\n');
}

fn header(region: &RegionView) -> String {
    let Some(millis) = region.millis else {
        return format!("{}  can't be read: {}", region.name, region.why.as_deref().unwrap_or_default());
    };
    let ready = |ready: Vec<bool>| format!("{}/{}", ready.iter().filter(|ready| **ready).count(), ready.len());
    let proxies = ready(region.proxies.iter().map(|proxy| proxy.ready).collect());
    let nodes = ready(region.nodes.iter().map(|node| node.ready).collect());
    let ports = region.node_ports.as_ref().map(|ports| {
        let own = ports.sni.is_some_and(|sni| (ports.first..=ports.last).contains(&sni));
        format!(", {} of {} node ports", ports.used, u32::from(ports.last.saturating_sub(ports.first)) + u32::from(!own))
    });
    let entries = if region.entry == Some(Entry::LoadBalancer.as_str()) { "addresses of its load balancer" } else { "nodes ready" };
    format!("{}  {proxies} proxies ready, {nodes} {entries}{}, answers in {millis} ms", region.name, ports.unwrap_or_default())
}

fn details(region: &RegionView) -> Vec<String> {
    let state = |ready: bool| if ready { "" } else { " (not ready)" };
    let why = |node: &NodeView| node.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let what = if region.entry == Some(Entry::LoadBalancer.as_str()) { "load balancer" } else { "node" };
    let nodes = region.nodes.iter().map(|node| format!("{what} {} {}{}", node.name, node.ip, why(node)));
    let proxies = region.proxies.iter().map(|proxy| format!("proxy {}{}", proxy.name, state(proxy.ready)));
    let own = region.node_ports.iter().filter_map(|ports| ports.sni);
    let sni = own.map(|node| described(port_name(region), if region.entry.is_some() { SNI_LISTEN } else { node }, Mode::Sni));
    nodes.chain(proxies).chain(sni).collect()
}

fn rows(region: &RegionView, wide: bool) -> Vec<Row> {
    let clusters = region.clusters.iter().map(|one| cluster(one, region, wide));
    clusters.chain(region.spare_routes.iter().map(spare)).collect()
}

fn cluster(cluster: &ClusterView, region: &RegionView, wide: bool) -> Row {
    let applied = match &cluster.route {
        Some(route) => applied(route),
        None if region.reachable => "no route".to_owned(),
        None => "route unknown".to_owned(),
    };
    let answer = match cluster.millis {
        Some(millis) => format!("answers in {millis} ms"),
        None => "does not answer".to_owned(),
    };
    let expires = cluster.expires.map(|at| format!("credentials until {at}")).unwrap_or_default();
    let mut row = vec![
        cluster.name.clone(),
        described(port_name(region), cluster.node_port, cluster.mode),
        format!("to {}", cluster.upstream),
        applied,
        answer,
        expires,
    ];
    if wide {
        let addresses: Vec<String> = cluster.alias_addresses.iter().map(ToString::to_string).collect();
        row.push(format!(
            "alias {} at {}",
            cluster.alias,
            if addresses.is_empty() { "nowhere".into() } else { addresses.join(",") }
        ));
        let from = cluster.route.as_ref().and_then(|route| route.source_ranges.as_ref());
        row.push(
            from.map(|from| if from.is_empty() { "from nowhere".into() } else { format!("from {}", from.join(",")) })
                .unwrap_or_default(),
        );
        let most = cluster.route.as_ref().and_then(|route| route.max_connections);
        row.push(most.map(|most| format!("at most {most} at once")).unwrap_or_default());
        let proven = cluster.route.as_ref().and_then(|route| route.proven_at);
        row.push(proven.map(|at| format!("proven {at}")).unwrap_or_default());
    }
    row
}

/// What the port is called that the hub connects to in a region.
const fn port_name(region: &RegionView) -> &'static str {
    if region.entry.is_some() { Entry::LoadBalancer.port_name() } else { Entry::NodePort.port_name() }
}

/// By what a cluster is reached, at a port that is called so.
pub fn described(called: &str, port: u16, mode: Mode) -> String {
    match mode {
        Mode::Port => format!("{called} {port}"),
        Mode::Sni => format!("{called} {port} by TLS name"),
    }
}

fn spare(route: &RouteView) -> Row {
    vec![route.cluster.clone(), "spare route".into(), format!("to {}", route.upstream), applied(route)]
}

fn applied(route: &RouteView) -> String {
    format!("applied on {} of {}", route.applied, route.proxies)
}

fn widths<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<usize> {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

/// Cells padded to their columns; a column that is empty everywhere takes no room.
fn aligned(row: &Row, widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).filter(|(_, width)| **width > 0);
    cells.map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>().join("  ")
}
