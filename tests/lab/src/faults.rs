//! What can go wrong, made to go wrong, and mended.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::dns::{self, Resolver};
use crate::node::Worker;
use crate::process::Daemon;
use crate::topology::{Bridge, Cluster, Link, Node, Place, Region};
use crate::{Lab, inside, net, policies, teardown, wait};

const NODE_GONE: Duration = Duration::from_secs(60);

impl Lab {
    /// Lets the resolver of `region` answer `name` with these addresses. Seen at once by whoever asks it.
    pub fn set_address(&self, region: Region, name: &str, addresses: &[Ipv4Addr]) -> Result<()> {
        Resolver::new(self.state(), region).set_name(name, addresses)
    }

    /// Lets the resolver of `region` deny that `name` exists.
    pub fn nxdomain(&self, region: Region, name: &str) -> Result<()> {
        self.set_address(region, name, &[])
    }

    /// Lets every resolver answer as in a new lab.
    pub fn reset_names(&self) -> Result<()> {
        let clusters = self.state().clusters()?;
        Region::ALL.iter().try_for_each(|&region| Resolver::new(self.state(), region).set(&dns::initial(&clusters, region)))
    }

    /// Stops a region's resolver: questions time out or are refused.
    pub fn stop_resolver(&self, region: Region) -> Result<()> {
        Daemon::new(self.state(), region.resolver_place(), "coredns").kill()
    }

    /// Starts a region's resolver again.
    pub fn start_resolver(&self, region: Region) -> Result<()> {
        Resolver::new(self.state(), region).ensure(self.tools())
    }

    /// Stops a cluster's API server: connections are refused.
    pub fn stop_api(&self, cluster: &str) -> Result<()> {
        self.control_plane(&self.cluster(cluster)?).stop_api()
    }

    /// Starts a cluster's API server again and waits until it is ready.
    pub fn start_api(&self, cluster: &str) -> Result<()> {
        self.control_plane(&self.cluster(cluster)?).ensure_api()
    }

    /// Lets a place (a node, or a cluster's home) drop all its traffic: nobody is answered, nobody refused.
    pub fn blackhole(&self, place: &str) -> Result<()> {
        set_blackhole(&self.place(place)?, true)
    }

    /// Ends `blackhole`.
    pub fn unblackhole(&self, place: &str) -> Result<()> {
        set_blackhole(&self.place(place)?, false)
    }

    /// Lets a place drop what comes and goes by one bridge. Of a cable that is pulled, the others on the bridge hear: nobody answers for its
    /// address, and whoever connects to it is told after three seconds. Behind a router, as regions are peered, nobody is.
    pub fn blackhole_link(&self, place: &str, bridge: Bridge) -> Result<()> {
        net::set_blackhole(&self.place(place)?.name, bridge, true)
    }

    /// Ends `blackhole_link`.
    pub fn unblackhole_link(&self, place: &str, bridge: Bridge) -> Result<()> {
        net::set_blackhole(&self.place(place)?.name, bridge, false)
    }

    /// Pulls a place's cable to a bridge. A proxy node without `Peer` stays Ready: its cluster talks over the region.
    pub fn cut_link(&self, place: &str, bridge: Bridge) -> Result<()> {
        net::set_cable(&link(&self.place(place)?, bridge)?, false)
    }

    /// Puts the cable back.
    pub fn mend_link(&self, place: &str, bridge: Bridge) -> Result<()> {
        self.plug_in(&link(&self.place(place)?, bridge)?)
    }

    /// Connects a cable, and makes its neighbours forget who had its address before.
    pub(crate) fn plug_in(&self, link: &Link) -> Result<()> {
        net::set_cable(link, true)?;
        net::forget_neighbour(link, &self.places()?)
    }

    /// Gives a place a further address on a bridge, as when a managed API server moves.
    pub fn add_address(&self, place: &str, bridge: Bridge, address: Ipv4Addr) -> Result<()> {
        net::set_address(&self.place(place)?.name, bridge, address, true)
    }

    /// Takes that address away again.
    pub fn remove_address(&self, place: &str, bridge: Bridge, address: Ipv4Addr) -> Result<()> {
        net::set_address(&self.place(place)?.name, bridge, address, false)
    }

    /// Bounds what a place sends by a bridge from now on, in megabits a second.
    pub fn set_rate(&self, place: &str, bridge: Bridge, megabits: u32) -> Result<()> {
        net::set_rate(&self.place(place)?.name, bridge, megabits)
    }

    /// Powers a node off: cables dead, every process gone. Its cluster's control plane must not run there.
    /// Kubernetes calls it NotReady about 12 s later: see `await_not_ready`.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        let (cluster, found) = self.node(node)?;
        if cluster.home == found.place {
            bail!("{node} runs the control plane of {}; stop that with stop_api, or kill another node", cluster.name);
        }
        found.place.links.iter().try_for_each(|link| net::set_cable(link, false))?;
        teardown::end_processes_at(self.state(), node)
    }

    /// Powers a node on and waits until it is Ready.
    pub fn start_node(&self, node: &str) -> Result<()> {
        let (cluster, found) = self.node(node)?;
        found.place.links.iter().try_for_each(|link| self.plug_in(link))?;
        let worker = self.worker(&cluster, &found);
        worker.ensure_containerd()?;
        worker.ensure_kubelet()?;
        worker.await_ready()
    }

    /// Kills the container of this proxy pod: its agent at once, and nginx with it.
    pub fn kill_proxy(&self, pod: &str) -> Result<()> {
        // Both regions have proxies; the environment says whose an agent is.
        let name = format!("POD_NAME={pod}\0");
        let read = |entry: &std::fs::DirEntry, file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let is_it = |entry: &std::fs::DirEntry| {
            read(entry, "cmdline").starts_with("/xregion/xregion\0agent") && read(entry, "environ").contains(&name)
        };
        let found = std::fs::read_dir("/proc")?.flatten().find(is_it).with_context(|| format!("no agent runs in {pod}"))?;
        let pid: i32 = found.file_name().to_string_lossy().parse()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("killing {pod}"))
    }

    /// Waits until Kubernetes has noticed that a node is gone.
    pub fn await_not_ready(&self, node: &str) -> Result<()> {
        let (cluster, found) = self.node(node)?;
        let worker = self.worker(&cluster, &found);
        wait::until_true(&format!("node {node} NotReady"), NODE_GONE, || worker.ready().is_err())
    }

    /// Undoes every fault of the network and of names that a test may have left behind.
    pub(crate) fn mend_network(&self) -> Result<()> {
        for cluster in self.state().clusters()? {
            for place in cluster.places() {
                set_blackhole(place, false)?;
                place.links.iter().try_for_each(|link| net::set_cable(link, true))?;
            }
            cluster.nodes.iter().try_for_each(|node| policies::end(self, &node.place.name))?;
        }
        self.reset_names()
    }

    /// Runs a command in a container of a pod of `cluster`; gives its standard output.
    pub fn exec_in_pod(&self, cluster: &str, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        self.kubectl(cluster, &[&["exec", "-n", namespace, pod, "--"], command].concat())
    }

    /// Whether a TCP connection from `place` to `address` can be made within `bound`; the error says why not.
    pub fn dial(&self, place: &str, address: std::net::SocketAddr, bound: Duration) -> Result<()> {
        let place = self.place(place)?;
        inside::in_namespace(&place.name, || async move {
            let connecting = TcpStream::connect(address);
            tokio::time::timeout(bound, connecting).await.context("no answer")?.with_context(|| format!("dialling {address}"))?;
            Ok(())
        })
    }

    /// The body that a web server at `address`, asked from `place`, answers a GET with; an error where that is not 200.
    pub fn http_get(&self, place: &str, address: std::net::SocketAddr, path: &str) -> Result<String> {
        let place = self.place(place)?;
        inside::in_namespace(&place.name, || async {
            let mut server = TcpStream::connect(address).await.with_context(|| format!("dialling {address}"))?;
            server.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            server.read_to_string(&mut answer).await?;
            let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer of a web server: {answer}"))?;
            ensure!(head.lines().next().is_some_and(|status| status.contains(" 200 ")), "GET {path}: {answer}");
            Ok(body.to_owned())
        })
    }

    /// Asks for a TLS name at `address` from `place`, and tells whether anybody answers: the other way is to close the connection.
    ///
    /// # Errors
    /// When no connection can be made within `bound`, or it stays open for that long without an answer.
    pub fn answers_to(&self, place: &str, address: std::net::SocketAddr, name: &str, bound: Duration) -> Result<bool> {
        let place = self.place(place)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned())?;
        let mut words = Vec::new();
        rustls::ClientConnection::new(Arc::new(config), name)?.write_tls(&mut words)?;
        inside::in_namespace(&place.name, || async move {
            let asking = async {
                let mut stream = TcpStream::connect(address).await.with_context(|| format!("dialling {address}"))?;
                stream.write_all(&words).await?;
                // A connection that is closed before all of it was read may as well be reset.
                Ok(matches!(stream.read(&mut [0]).await, Ok(1..)))
            };
            tokio::time::timeout(bound, asking).await.context("no answer, and no end")?
        })
    }

    fn node(&self, name: &str) -> Result<(Cluster, Node)> {
        for cluster in self.state().clusters()? {
            if let Some(node) = cluster.nodes.iter().find(|node| node.place.name == name).cloned() {
                return Ok((cluster, node));
            }
        }
        bail!("no node {name}")
    }

    fn worker<'a>(&'a self, cluster: &'a Cluster, node: &'a Node) -> Worker<'a> {
        Worker { state: self.state(), tools: self.tools(), cluster, node }
    }
}

fn set_blackhole(place: &Place, on: bool) -> Result<()> {
    place.links.iter().try_for_each(|link| net::set_blackhole(&place.name, link.bridge, on))
}

fn link(place: &Place, bridge: Bridge) -> Result<Link> {
    let found = place.links.iter().find(|link| link.bridge == bridge);
    found.copied().with_context(|| format!("{} has no cable to {}", place.name, bridge.name()))
}
