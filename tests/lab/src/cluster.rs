//! A cluster's keys and control plane: etcd, API server, controller manager and, where there are nodes, a scheduler.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::inside;
use crate::kubeconfig::Kubeconfig;
use crate::pki::{Authority, Pair, Validity, sign_token, token_keys};
use crate::process::Daemon;
use crate::state::{self, State};
use crate::tools::Tools;
use crate::topology::{self, API_SERVER_NAMES, Bridge, Cluster, Store};

/// An API server starts in 5 to 7 s when alone; six of them share two cores.
const READY: Duration = Duration::from_secs(150);

/// What a cluster is made with.
#[derive(Clone, Copy, Debug)]
pub struct ControlPlane<'a> {
    /// The lab's state.
    pub state: &'a State,
    /// Its programs.
    pub tools: &'a Tools,
    /// The cluster.
    pub cluster: &'a Cluster,
}

impl ControlPlane<'_> {
    fn directory(&self) -> PathBuf {
        self.state.cluster(&self.cluster.name)
    }

    fn home(&self) -> &str {
        &self.cluster.home.name
    }

    fn daemon<'a>(&'a self, part: &'a str) -> Daemon<'a> {
        Daemon::new(self.state, self.home(), part)
    }

    /// The cluster's admin kubeconfig.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.state.kubeconfig(&self.cluster.name, "admin")
    }

    /// The authority that signs everything of this cluster.
    pub fn authority(&self) -> Result<Authority> {
        Authority::read(&self.directory(), &authority_name(self.cluster))
    }

    /// Signs what a ServiceAccount's token says, as the API server does.
    pub fn sign_token(&self, said: &str) -> Result<Vec<u8>> {
        sign_token(&state::read(&self.directory().join("tokens.key"))?, said)
    }

    /// Makes keys, certificates and kubeconfigs, unless they are there.
    pub fn make_keys(&self) -> Result<()> {
        let directory = self.directory();
        if directory.join("cluster.json").exists() {
            return Ok(());
        }
        let authority = Authority::new(&authority_name(self.cluster))?;
        authority.write(&directory)?;
        authority.server("kube-apiserver", &server_names(self.cluster), Validity::Now)?.write(&directory, "apiserver")?;
        authority.client("front-proxy-client", None, Validity::Now)?.write(&directory, "front-proxy")?;
        let (private, public) = token_keys()?;
        state::write(&directory.join("tokens.key"), private)?;
        state::write(&directory.join("tokens.pub"), public)?;
        let admin = authority.client("admin", Some("system:masters"), Validity::Now)?;
        admin.write(&directory, "admin")?;
        self.write_kubeconfig("admin", &authority, &admin)?;
        for part in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            self.write_kubeconfig(part, &authority, &authority.client(&format!("system:{part}"), None, Validity::Now)?)?;
        }
        for node in &self.cluster.nodes {
            let name = &node.place.name;
            let mut names = vec![name.clone()];
            names.extend(node.place.links.iter().map(|link| link.address.to_string()));
            let pair = authority.kubelet(name, &names)?;
            pair.write(&directory, name)?;
            self.write_kubeconfig(name, &authority, &pair)?;
        }
        let user = Kubeconfig {
            name: &self.cluster.name,
            server: &self.cluster.server,
            tls_server_name: None,
            authority: authority.certificate(),
            client: &authority.client("platform-admin", Some("system:masters"), Validity::Now)?,
        };
        state::write(&self.state.kubeconfig(&self.cluster.name, "user"), user.to_yaml()?)?;
        // Last: it says that the rest is there.
        self.state.keep(self.cluster)
    }

    /// The cluster's own parts come by the address they share a bridge with; where the certificate isn't for it, they
    /// check it for a name that every API server has.
    fn write_kubeconfig(&self, whose: &str, authority: &Authority, client: &Pair) -> Result<()> {
        let kubeconfig = Kubeconfig {
            name: &self.cluster.name,
            server: &format!("https://{}:{}", self.cluster.address, self.cluster.port),
            tls_server_name: (!self.cluster.names.contains(&self.cluster.address.to_string())).then_some(API_SERVER_NAMES[0]),
            authority: authority.certificate(),
            client,
        };
        state::write(&self.state.kubeconfig(&self.cluster.name, whose), kubeconfig.to_yaml()?)
    }

    /// Starts what doesn't run and waits until the API server is ready.
    pub fn ensure(&self) -> Result<()> {
        self.ensure_bare()?;
        self.daemon("kube-controller-manager").ensure(&self.tools.kubernetes, &self.controller_manager())?;
        if !self.cluster.nodes.is_empty() {
            self.daemon("kube-scheduler").ensure(&self.tools.kubernetes, &self.scheduler())?;
        }
        Ok(())
    }

    /// The same of the API server and its store alone.
    pub fn ensure_bare(&self) -> Result<()> {
        self.ensure_etcd()?;
        self.ensure_api()
    }

    fn ensure_etcd(&self) -> Result<()> {
        match &self.cluster.store {
            Store::Own => {
                // Costs 3 % of a core for each cluster; without pods there are no logs to follow.
                let progress = (!self.cluster.nodes.is_empty()).then_some("1s");
                ensure_etcd(self.state, self.home(), "127.0.0.1", progress)
            }
            Store::Shared(_) => {
                let store = topology::store();
                let address = store.address_on(Bridge::Store).context("the store is on no bridge")?;
                ensure_etcd(self.state, &store.name, &address.to_string(), None)
            }
        }
    }

    /// Starts the API server unless it runs, and waits until it is ready.
    pub fn ensure_api(&self) -> Result<()> {
        let api = self.daemon("kube-apiserver");
        api.ensure(&self.tools.kubernetes, &self.api_server()?)?;
        api.await_ready(READY, || self.ready())
    }

    /// Whether the API server is ready.
    pub fn ready(&self) -> Result<()> {
        let answer = inside::get(self.home(), &self.admin(), "/readyz")?;
        if answer != "ok" {
            bail!("/readyz says: {answer}");
        }
        Ok(())
    }

    /// Stops the API server; connections to it are refused from then on.
    pub fn stop_api(&self) -> Result<()> {
        self.daemon("kube-apiserver").kill()
    }

    fn api_server(&self) -> Result<Vec<String>> {
        let Cluster { address, port, .. } = self.cluster;
        let (etcd, prefix) = match &self.cluster.store {
            Store::Own => ("127.0.0.1".to_owned(), "registry".to_owned()),
            Store::Shared(prefix) => {
                let address = topology::store().address_on(Bridge::Store).context("the store is on no bridge")?;
                (address.to_string(), prefix.clone())
            }
        };
        let file = |name: &str| self.directory().join(name).display().to_string();
        Ok(args(
            "kube-apiserver",
            &[
                ("etcd-servers", format!("http://{etcd}:2379")),
                ("etcd-prefix", format!("/{prefix}")),
                ("secure-port", port.to_string()),
                ("advertise-address", address.to_string()),
                ("bind-address", "0.0.0.0".to_owned()),
                ("service-cluster-ip-range", self.cluster.service_cidr()),
                ("tls-cert-file", file("apiserver.crt")),
                ("tls-private-key-file", file("apiserver.key")),
                ("client-ca-file", file("ca.crt")),
                ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
                ("service-account-key-file", file("tokens.pub")),
                ("service-account-signing-key-file", file("tokens.key")),
                ("authorization-mode", "Node,RBAC".to_owned()),
                ("requestheader-client-ca-file", file("ca.crt")),
                ("requestheader-allowed-names", "front-proxy-client".to_owned()),
                ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
                ("requestheader-group-headers", "X-Remote-Group".to_owned()),
                ("requestheader-username-headers", "X-Remote-User".to_owned()),
                ("proxy-client-cert-file", file("front-proxy.crt")),
                ("proxy-client-key-file", file("front-proxy.key")),
                // The API server is no pod: it must reach webhooks and aggregated APIs by endpoint.
                ("enable-aggregator-routing", "true".to_owned()),
                // Node names don't resolve here.
                ("kubelet-preferred-address-types", "InternalIP".to_owned()),
                ("kubelet-client-certificate", file("admin.crt")),
                ("kubelet-client-key", file("admin.key")),
                ("allow-privileged", "true".to_owned()),
            ],
        ))
    }

    fn controller_manager(&self) -> Vec<String> {
        let file = |name: &str| self.directory().join(name).display().to_string();
        let kubeconfig = self.state.kubeconfig(&self.cluster.name, "kube-controller-manager");
        args(
            "kube-controller-manager",
            &[
                ("kubeconfig", kubeconfig.display().to_string()),
                ("service-account-private-key-file", file("tokens.key")),
                ("root-ca-file", file("ca.crt")),
                ("use-service-account-credentials", "true".to_owned()),
                ("leader-elect", "false".to_owned()),
                ("bind-address", "127.0.0.1".to_owned()),
                ("cluster-signing-cert-file", file("ca.crt")),
                ("cluster-signing-key-file", file("ca.key")),
                // A node that is killed is NotReady after 12 s; kubelets here report every 3 s.
                ("node-monitor-period", "1s".to_owned()),
                ("node-monitor-grace-period", "12s".to_owned()),
            ],
        )
    }

    fn scheduler(&self) -> Vec<String> {
        let kubeconfig = self.state.kubeconfig(&self.cluster.name, "kube-scheduler");
        args(
            "kube-scheduler",
            &[
                ("kubeconfig", kubeconfig.display().to_string()),
                ("leader-elect", "false".to_owned()),
                ("bind-address", "127.0.0.1".to_owned()),
            ],
        )
    }
}

/// Debian's etcd answers no request for a watch's progress, for which an API server waits before a watch without a resource
/// version (as `vela logs` makes them) and after 3 s fails it. It does send progress unasked, as often as `progress` says.
fn ensure_etcd(state: &State, place: &str, address: &str, progress: Option<&str>) -> Result<()> {
    let data = state.place(place).join("etcd");
    state::make_dir(&data)?;
    let flags = [
        ("data-dir", data.display().to_string()),
        ("listen-client-urls", format!("http://{address}:2379")),
        ("advertise-client-urls", format!("http://{address}:2379")),
        ("listen-peer-urls", "http://127.0.0.1:2380".to_owned()),
        // A lab's objects needn't survive a power failure.
        ("unsafe-no-fsync", "true".to_owned()),
    ];
    let mut words: Vec<String> = flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
    words.extend(progress.map(|interval| format!("--experimental-watch-progress-notify-interval={interval}")));
    Daemon::new(state, place, "etcd").ensure(Path::new("etcd"), &words)
}

fn args(component: &str, flags: &[(&str, String)]) -> Vec<String> {
    let mut words = vec![component.to_owned()];
    words.extend(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
    words
}

fn authority_name(cluster: &Cluster) -> String {
    format!("{}-ca", cluster.name)
}

/// What the API server's certificate is for.
fn server_names(cluster: &Cluster) -> Vec<String> {
    let mut names: Vec<String> = API_SERVER_NAMES.iter().map(|&name| name.to_owned()).collect();
    names.push(cluster.api_service().to_string());
    names.extend(cluster.names.iter().cloned());
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_managed_clouds_certificate_is_for_its_host_name_and_not_for_its_address() {
        let cluster = topology::clusters().into_iter().find(|cluster| cluster.name == "business-a").unwrap();
        let names = server_names(&cluster);
        assert!(names.contains(&"a1b2c3d4e5.gr7.ap-east-1.eks.example".to_owned()), "{names:?}");
        assert!(!names.contains(&cluster.address.to_string()), "{names:?}");
    }
}
