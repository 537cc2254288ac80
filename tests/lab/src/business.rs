//! Further business clusters, started and stopped at run time: an API server each, on one shared etcd.

use std::time::SystemTime;

use anyhow::{Result, bail};

use crate::dns::Resolver;
use crate::topology::{self, Bridge, Cluster, Link, Region, Store};
use crate::{Lab, kubevela, net, teardown};

/// A business cluster to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusinessSpec {
    /// Its name, a DNS label.
    pub name: String,
    /// Where it is.
    pub region: Region,
    /// The last octet of its address on the region's bridge: 100 to 250, no other further cluster's in either region.
    pub host: u8,
    /// The API server's port.
    pub port: u16,
    /// The `server` of the kubeconfig a user brings; `https://<address>:<port>` when absent. Its host gets a name in the
    /// region's resolver.
    pub server: Option<String>,
    /// Whether the other region reaches it, too, at the same host there; that region's resolver is told nothing.
    pub in_both_regions: bool,
    /// What its certificate is for, beside `kubernetes*` and its service address: host names and addresses.
    pub names: Vec<String>,
}

impl BusinessSpec {
    /// The cluster it describes.
    fn cluster(&self) -> Cluster {
        // Without nodes, networks of pods and services may recur from cluster to cluster.
        let mut cluster = topology::business(&self.name, self.region, self.host, self.port, 140 + self.host % 50);
        cluster.home.links.push(Link::new(Bridge::Store, self.host));
        if self.in_both_regions {
            let other = Region::ALL.into_iter().filter(|region| *region != self.region);
            cluster.home.links.extend(other.map(|region| Link::new(region.bridge(), self.host)));
        }
        cluster.store = shared(&self.name);
        if let Some(server) = &self.server {
            cluster.server.clone_from(server);
        }
        cluster.names.clone_from(&self.names);
        cluster
    }
}

/// Nothing of it is on its region's bridge.
fn bare_region(name: &str, host: u8) -> Cluster {
    let mut cluster = topology::business(name, Region::West, host, 6443, 140 + host % 50);
    cluster.home.links = vec![Link::new(Bridge::Peer, host), Link::new(Bridge::Store, host)];
    cluster.address = Bridge::Peer.address(host);
    cluster.server = format!("https://{}:6443", cluster.address);
    cluster.names = vec![cluster.address.to_string()];
    cluster.store = shared(name);
    cluster
}

/// Another one each time: a cluster started anew under a name is another cluster.
fn shared(name: &str) -> Store {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Store::Shared(format!("{name}-{}", now.as_millis()))
}

impl Lab {
    /// Starts a further business cluster (about 7 s and 280 MB) and waits until its API server is ready.
    ///
    /// # Errors
    /// When a cluster of that name or a place with that address exists, or its API server doesn't become ready.
    pub fn start_business(&self, spec: &BusinessSpec) -> Result<Cluster> {
        let cluster = spec.cluster();
        self.lay_out(&cluster)?;
        if let Some(host) = cluster.host() {
            Resolver::new(self.state(), spec.region).set_name(&host, &[cluster.address])?;
        }
        self.control_plane(&cluster).ensure()?;
        Ok(cluster)
    }

    /// Starts the API server of a proxy cluster without nodes, at `host` of the peering (50 to 99), and joins it to the hub: a region for
    /// whoever stands in for its proxies.
    ///
    /// # Errors
    /// As [`start_business`](Self::start_business).
    pub fn start_region(&self, name: &str, host: u8) -> Result<Cluster> {
        let cluster = bare_region(name, host);
        self.lay_out(&cluster)?;
        // Neither nodes nor pods of it are looked after: it has no controller manager.
        self.control_plane(&cluster).ensure_bare()?;
        kubevela::join(self, "hub", &cluster)?;
        Ok(cluster)
    }

    /// Makes keys and network of a cluster beside those that are there.
    pub(crate) fn lay_out(&self, cluster: &Cluster) -> Result<()> {
        for other in self.state().clusters()? {
            if other.name == cluster.name || other.home.links.iter().any(|link| cluster.home.links.contains(link)) {
                bail!("{} is there already, as host {} of its bridges", other.name, other.address.octets()[3]);
            }
        }
        self.control_plane(cluster).make_keys()?;
        net::make_cluster(cluster)?;
        // The address may have been another cluster's a moment ago.
        cluster.home.links.iter().try_for_each(|link| self.plug_in(link))
    }

    /// Removes a cluster that was started beside the fixed ones, also one that is half there.
    pub fn stop_cluster(&self, name: &str) -> Result<()> {
        if topology::clusters().iter().any(|cluster| cluster.name == name) {
            bail!("{name} is a fixed part of the lab");
        }
        let cluster = self.cluster(name)?;
        if let (Some(host), Some(region)) = (cluster.host(), cluster.region) {
            Resolver::new(self.state(), region).forget_name(&host)?;
        }
        for place in cluster.places() {
            teardown::end_place(self.state(), &place.name)?;
            let namespace = topology::namespace(&place.name);
            if net::namespaces().contains(&namespace) {
                net::remove_namespace(&namespace)?;
            }
        }
        self.state().forget(&cluster)
    }
}
