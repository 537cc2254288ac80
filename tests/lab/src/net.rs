//! Network namespaces, cables and bridges. Everything is inside namespaces of the lab, so removing those removes it all.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::process::{command_in, names_in};
use crate::topology::{self, Bridge, Cluster, Link, Place, REGISTRY_PORT, Role, SWITCH, namespace};

const BOUND: Duration = Duration::from_secs(20);

/// Where a named network namespace is mounted.
#[must_use]
pub fn namespace_path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// The lab's network namespaces there are, also those an interrupted run left.
#[must_use]
pub fn namespaces() -> BTreeSet<String> {
    names_in(Path::new("/run/netns")).into_iter().filter(|name| name.starts_with(&namespace(""))).collect()
}

/// Makes the switch with all its bridges, and the places that belong to no cluster.
pub fn make_switch() -> Result<()> {
    add_namespace(SWITCH)?;
    let mut lines = String::new();
    for bridge in Bridge::ALL {
        let name = bridge.name();
        // No spanning tree and no multicast snooping: a cable works at once.
        writeln!(lines, "link add {name} type bridge stp_state 0 mcast_snooping 0\nlink set {name} up")?;
    }
    ip(SWITCH, &lines)?;
    for place in topology::bystanders() {
        make_place(&place)?;
    }
    // The one address of the hub the laptop knows; the hub is the only neighbour it has.
    ip(&topology::laptop().name, &format!("route add {} via {}\n", topology::hub_address(), Bridge::Access.address(10)))
}

/// Makes a place and plugs its cables in.
pub fn make_place(place: &Place) -> Result<()> {
    add_namespace(&place.name)?;
    for link in &place.links {
        plug(&place.name, link)?;
    }
    Ok(())
}

fn add_namespace(place: &str) -> Result<()> {
    run_ip(&["netns", "add", &namespace(place)])?;
    ip(place, "link set lo up\n")
}

fn plug(place: &str, link: &Link) -> Result<()> {
    let (port, name, address) = (link.port(), link.bridge.name(), link.address);
    ip(
        SWITCH,
        &format!(
            "link add {port} type veth peer name {name} netns {}\nlink set {port} master {name}\nlink set {port} up\n",
            namespace(place)
        ),
    )?;
    ip(place, &format!("addr add {address}/24 dev {name}\nlink set {name} up\n"))
}

/// Makes the places of a cluster and the routes and rules its nodes need.
pub fn make_cluster(cluster: &Cluster) -> Result<()> {
    for place in cluster.places() {
        make_place(place)?;
        service_route(cluster, place)?;
    }
    for node in &cluster.nodes {
        set(&node.place.name, "net.ipv4.ip_forward", "1")?;
        // Pods of one node reach each other through the node, not past it on a bridge: needs no br_netfilter.
        let others = cluster.nodes.iter().filter(|other| other.place != node.place);
        for other in others {
            let via = region_address(cluster, &other.place)?;
            ip(&node.place.name, &format!("route add {} via {via}\n", other.pod_cidr()))?;
        }
        // Pods leave the cluster under their node's address.
        let (own, all) = (node.pod_cidr(), cluster.pod_cidr());
        let rule = ["-t", "nat", "-A", "POSTROUTING", "-s", &own, "!", "-d", &all, "-j", "MASQUERADE"];
        iptables(&node.place.name, &rule)?;
    }
    if cluster.role() == Role::Hub { guard_access(&cluster.home.name) } else { Ok(()) }
}

/// Without any route to it, a connection to a service address would fail before kube-proxy's rules see it.
fn service_route(cluster: &Cluster, place: &Place) -> Result<()> {
    let source = place.links.first().map(|link| link.address).context("a place without a link")?;
    ip(&place.name, &format!("route add {} dev lo src {source}\n", cluster.service_cidr()))
}

fn region_address(cluster: &Cluster, place: &Place) -> Result<std::net::Ipv4Addr> {
    let bridge = cluster.region.map_or(Bridge::Peer, topology::Region::bridge);
    place.address_on(bridge).with_context(|| format!("{} is not on {}", place.name, bridge.name()))
}

/// From the laptop only the API server and the addon registry are reached: no NodePort, no kubelet, nothing behind the hub.
fn guard_access(hub: &str) -> Result<()> {
    let from = ["-i", Bridge::Access.name()];
    let ports = format!("6443,{REGISTRY_PORT}");
    let allowed = ["-p", "tcp", "-m", "multiport", "--dports", &ports, "-j", "ACCEPT"];
    iptables(hub, &[&["-A", "INPUT"], &from[..], &allowed[..]].concat())?;
    iptables(hub, &[&["-A", "INPUT"], &from[..], &["-j", "DROP"]].concat())?;
    // First in its chain, kube-proxy's rules included.
    iptables(hub, &[&["-I", "FORWARD"], &from[..], &["-j", "DROP"]].concat())
}

/// Puts a cable in (`up`) or pulls it out.
pub fn set_cable(link: &Link, up: bool) -> Result<()> {
    ip(SWITCH, &format!("link set {} {}\n", link.port(), if up { "up" } else { "down" }))
}

/// Lets `places` forget that a neighbour didn't answer; the next connection would otherwise fail with that.
pub fn forget_neighbour(link: &Link, places: &[Place]) -> Result<()> {
    let (address, bridge) = (link.address, link.bridge);
    for place in places.iter().filter(|place| place.address_on(bridge).is_some()) {
        ip(&place.name, &format!("neigh flush to {address} dev {} nud all\n", bridge.name()))?;
    }
    Ok(())
}

/// Makes a place drop everything that comes or goes by a bridge, as a machine behind a wrong firewall or one that hangs:
/// it answers no connection and refuses none.
pub fn set_blackhole(place: &str, bridge: Bridge, on: bool) -> Result<()> {
    // What is let out unanswered would still renew leases: both ways, forwarded packets included.
    for (table, chain, direction) in [("raw", "PREROUTING", "-i"), ("mangle", "POSTROUTING", "-o")] {
        let rule = [direction, bridge.name(), "-m", "comment", "--comment", "lab-blackhole", "-j", "DROP"];
        let there = iptables(place, &[&["-t", table, "-C", chain], &rule[..]].concat()).is_ok();
        if there != on {
            let action = if on { "-I" } else { "-D" };
            iptables(place, &[&["-t", table, action, chain], &rule[..]].concat())?;
        }
    }
    Ok(())
}

/// Leads the first packet of each connection that a node forwards to a queue, where a process lets it pass or not. As policies see
/// addresses: what is for a Service has its pod's already, and what a pod sends has the pod's still. Where nobody listens all passes.
pub fn set_queue(node: &str, queue: u16, on: bool) -> Result<()> {
    let number = queue.to_string();
    let new = ["-m", "conntrack", "--ctstate", "NEW", "-m", "comment", "--comment", "lab-queue"];
    let rule = [&new[..], &["-j", "NFQUEUE", "--queue-num", &number, "--queue-bypass"]].concat();
    let at = |action| [&["-t", "mangle", action, "FORWARD"], &rule[..]].concat();
    if iptables(node, &at("-C")).is_ok() == on { Ok(()) } else { iptables(node, &at(if on { "-I" } else { "-D" })) }
}

/// Gives a place's interface a further address, or takes one away.
pub fn set_address(place: &str, bridge: Bridge, address: std::net::Ipv4Addr, there: bool) -> Result<()> {
    let action = if there { "replace" } else { "del" };
    ip(place, &format!("addr {action} {address}/24 dev {}\n", bridge.name()))
}

/// Bounds what a place sends by a bridge, in megabits a second, as a slower cable would; its namespace takes the bound along when it goes.
pub fn set_rate(place: &str, bridge: Bridge, megabits: u32) -> Result<()> {
    let rate = format!("{megabits}mbit");
    let bound = ["root", "tbf", "rate", &rate, "burst", "256k", "latency", "50ms"];
    run(command_in(place, Path::new("tc")), &[&["qdisc", "replace", "dev", bridge.name()], &bound[..]].concat())
}

/// Removes a namespace of the lab; its interfaces, rules and the other ends of its cables go with it.
pub fn remove_namespace(namespace: &str) -> Result<()> {
    run_ip(&["netns", "del", namespace])
}

fn set(place: &str, key: &str, value: &str) -> Result<()> {
    run(command_in(place, Path::new("sysctl")), &["-qw", &format!("{key}={value}")])
}

fn iptables(place: &str, args: &[&str]) -> Result<()> {
    // kube-proxy writes to the same tables: wait for their lock.
    run(command_in(place, Path::new("iptables")), &[&["-w", "10"], args].concat())
}

/// Runs lines of `ip` commands at a place, in one process.
fn ip(place: &str, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", &namespace(place), "-batch", "-"]);
    let done = command::run_with_input(command, lines, BOUND)?.success();
    done.with_context(|| format!("network of {place}: {}", lines.trim().replace('\n', "; ")))?;
    Ok(())
}

fn run_ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip"), args)
}

fn run(mut command: Command, args: &[&str]) -> Result<()> {
    command.args(args);
    let name = format!("{command:?}");
    command::run(command, BOUND)?.success().with_context(|| name)?;
    Ok(())
}
