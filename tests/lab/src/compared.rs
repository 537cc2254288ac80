//! Other ways into a region than xregion's, to compare it with: HAProxy on a proxy node, and Kubernetes' own tunnel (konnectivity, the
//! apiserver-network-proxy), which cluster-gateway can go through.
//!
//! ```text
//!   hub ──────────────────────────────── node:18443  haproxy, TCP mode ─────────► API server
//!   hub ─ unix socket, HTTP CONNECT ─ server ◄═ gRPC, mTLS ═ agent on the node ──► API server
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::build::Compared;
use crate::pki::{Authority, Validity};
use crate::process::Daemon;
use crate::topology::{Bridge, hub_address};
use crate::{Lab, memory, state, wait};

const HUB: &str = "hub";
const HAPROXY: &str = "haproxy";
const SERVER: &str = "konnectivity-server";
const AGENT: &str = "konnectivity-agent";
/// Where HAProxy listens on the node.
const HAPROXY_PORT: u16 = 18443;
/// Where the tunnel's agents come in on the hub: its default.
const AGENTS_PORT: u16 = 8091;
/// Where its server tells how it is: its default.
const HEALTH_PORT: u16 = 8092;
/// Their cgroup, beside those of pods.
const GROUP: &str = "xregion-compared";
const READY: Duration = Duration::from_secs(20);

/// The other ways to one API server; they end when this is dropped.
#[derive(Debug)]
pub struct Ways<'a> {
    lab: &'a Lab,
    node: String,
    entry: Ipv4Addr,
}

impl<'a> Ways<'a> {
    /// Starts HAProxy and the tunnel, both by way of a proxy node.
    ///
    /// # Errors
    /// When one of them doesn't start.
    pub fn start(lab: &'a Lab, built: &Compared, node: &str, upstream: SocketAddr) -> Result<Self> {
        let entry = lab.place(node)?.address_on(Bridge::Peer).with_context(|| format!("{node} is not on the peering"))?;
        let ways = Self { lab, node: node.to_owned(), entry };
        // Those of a run that was killed lead elsewhere.
        ways.end()?;
        ways.start_haproxy(&built.haproxy, upstream)?;
        ways.start_tunnel(built)?;
        ways.share_alike()?;
        // Whoever else listens where one of them can't would be measured in its place.
        for (part, daemon) in ways.daemons() {
            ensure!(daemon.running().is_some(), "{part} has ended: see {}", daemon.log().display());
        }
        Ok(ways)
    }

    /// Where HAProxy is reached from the hub.
    #[must_use]
    pub fn haproxy(&self) -> SocketAddr {
        SocketAddr::new(self.entry.into(), HAPROXY_PORT)
    }

    /// The socket on which the tunnel's server takes `CONNECT`.
    #[must_use]
    pub fn tunnel(&self) -> PathBuf {
        self.lab.state().place(HUB).join("konnectivity.sock")
    }

    /// Resident memory of HAProxy in bytes.
    #[must_use]
    pub fn haproxy_memory(&self) -> u64 {
        self.memory(&[HAPROXY])
    }

    /// Resident memory of both ends of the tunnel in bytes.
    #[must_use]
    pub fn tunnel_memory(&self) -> u64 {
        self.memory(&[SERVER, AGENT])
    }

    fn memory(&self, parts: &[&str]) -> u64 {
        let running =
            self.daemons().into_iter().filter(|(part, _)| parts.contains(part)).filter_map(|(_, daemon)| daemon.running());
        running.map(|record| memory::resident(record.pid)).sum()
    }

    fn daemons(&self) -> [(&'static str, Daemon<'_>); 3] {
        [(HAPROXY, self.node.as_str()), (AGENT, &self.node), (SERVER, HUB)]
            .map(|(part, place)| (part, Daemon::new(self.lab.state(), place, part)))
    }

    /// Lets all of them have as much CPU as a proxy's container: processes of the lab outside of pods get many times that when it is scarce.
    fn share_alike(&self) -> Result<()> {
        let proxies = self.lab.processes_in_pods(&self.node, |command| command.starts_with("nginx: worker"))?;
        let proxy = cpu_group(proxies.first().copied().context("no proxy")?)?;
        let group = proxy.with_file_name(GROUP);
        state::make_dir(&group)?;
        for share in ["cpu.shares", "cpu.weight"].into_iter().filter(|file| proxy.join(file).exists()) {
            fs::write(group.join(share), state::read(&proxy.join(share))?.trim())?;
        }
        for record in self.daemons().into_iter().filter_map(|(_, daemon)| daemon.running()) {
            fs::write(group.join("cgroup.procs"), record.pid.to_string()).context("can't move a process to another cgroup")?;
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let pids: Vec<i32> = self.daemons().into_iter().filter_map(|(_, daemon)| Some(daemon.running()?.pid)).collect();
        let groups: Vec<PathBuf> = pids.into_iter().filter_map(|pid| cpu_group(pid).ok()).collect();
        self.daemons().into_iter().try_for_each(|(_, daemon)| daemon.kill())?;
        match groups.into_iter().find(|group| group.ends_with(GROUP)) {
            Some(group) => wait::until("removing a cgroup", READY, || Ok(fs::remove_dir(&group)?)),
            None => Ok(()),
        }
    }

    /// As many threads as nginx has workers there, and the same patience.
    fn start_haproxy(&self, program: &Path, upstream: SocketAddr) -> Result<()> {
        let text = format!(
            "global
    nbthread 2
    maxconn 4096
defaults
    mode tcp
    timeout connect 3s
    timeout client 4h
    timeout server 4h
frontend hub
    bind 0.0.0.0:{HAPROXY_PORT}
    default_backend business
backend business
    server api {upstream}
"
        );
        let file = self.lab.state().place(&self.node).join("haproxy.cfg");
        state::write(&file, text)?;
        let daemon = Daemon::new(self.lab.state(), &self.node, HAPROXY);
        daemon.ensure(program, &["-db".to_owned(), "-f".to_owned(), file.display().to_string()])?;
        daemon.await_ready(READY, || self.lab.dial(HUB, self.haproxy(), Duration::from_secs(1)))
    }

    /// With the buffers that both ends have by default. Clients come by unix socket, as the API server's do: TLS once, not twice.
    fn start_tunnel(&self, built: &Compared) -> Result<()> {
        let keys = self.lab.state().place(HUB).join("konnectivity");
        let authority = Authority::new("konnectivity-ca")?;
        authority.write(&keys)?;
        authority.server(SERVER, &[hub_address().to_string()], Validity::Now)?.write(&keys, "server")?;
        authority.client(AGENT, None, Validity::Now)?.write(&keys, "agent")?;
        let key = |name: &str| keys.join(name).display().to_string();
        let server = [
            ("mode", "http-connect".to_owned()),
            ("uds-name", self.tunnel().display().to_string()),
            ("server-port", "0".to_owned()),
            ("agent-port", AGENTS_PORT.to_string()),
            ("cluster-cert", key("server.crt")),
            ("cluster-key", key("server.key")),
            ("cluster-ca-cert", key("ca.crt")),
        ];
        let agent = [
            ("proxy-server-host", hub_address().to_string()),
            ("proxy-server-port", AGENTS_PORT.to_string()),
            ("ca-cert", key("ca.crt")),
            ("agent-cert", key("agent.crt")),
            ("agent-key", key("agent.key")),
        ];
        let words = |flags: &[(&str, String)]| flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect::<Vec<_>>();
        let state = self.lab.state();
        let daemon = Daemon::new(state, HUB, SERVER);
        daemon.ensure(&built.tunnel_server, &words(&server))?;
        daemon.await_ready(READY, || self.lab.dial(HUB, (hub_address(), AGENTS_PORT).into(), Duration::from_secs(1)))?;
        Daemon::new(state, &self.node, AGENT).ensure(&built.tunnel_agent, &words(&agent))?;
        // It is ready when it has an agent.
        wait::until("the tunnel's agent at its server", READY, || {
            self.lab.http_get(HUB, (hub_address(), HEALTH_PORT).into(), "/readyz")
        })?;
        Ok(())
    }
}

/// The cgroup by which a process gets its share of CPU, in either version of cgroups.
fn cpu_group(pid: i32) -> Result<PathBuf> {
    let text = state::read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    parse_cpu_group(&text).with_context(|| format!("process {pid} has no cgroup for CPU"))
}

fn parse_cpu_group(text: &str) -> Option<PathBuf> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of_cpu = lines().find(|(controllers, _)| controllers.split(',').any(|controller| controller == "cpu"));
    let (controllers, path) = of_cpu.or_else(|| lines().find(|(controllers, _)| controllers.is_empty()))?;
    Some(Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/')))
}

impl Drop for Ways<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("haproxy or the tunnel still runs: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_cpu_in_either_version() {
        let found = |text: &str| parse_cpu_group(text).map(|path| path.display().to_string()).unwrap_or_default();
        assert_eq!(found("2:memory:/a\n1:cpu:/k8s.io/b\n0::/\n"), "/sys/fs/cgroup/cpu/k8s.io/b");
        assert_eq!(found("3:cpu,cpuacct:/b\n"), "/sys/fs/cgroup/cpu,cpuacct/b");
        assert_eq!(found("0::/k8s.io/b\n"), "/sys/fs/cgroup/k8s.io/b");
        assert_eq!(found(""), "");
    }
}
