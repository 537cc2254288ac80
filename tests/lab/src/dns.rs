//! Names. A region's resolver alone knows its business clusters' names, and the lab changes them at run time; a proxy
//! cluster's DNS asks it; the hub's knows nothing but its own services.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::process::Daemon;
use crate::state::{self, State};
use crate::tools::Tools;
use crate::topology::{Cluster, Region, Role};

/// What a resolver answers: addresses by lower-case name. A name without addresses, or none at all, gets NXDOMAIN.
pub type Names = BTreeMap<String, Vec<Ipv4Addr>>;

/// A region's resolver.
#[derive(Clone, Copy, Debug)]
pub struct Resolver<'a> {
    state: &'a State,
    region: Region,
}

impl<'a> Resolver<'a> {
    /// The resolver of `region`.
    #[must_use]
    pub fn new(state: &'a State, region: Region) -> Self {
        Self { state, region }
    }

    fn directory(&self) -> PathBuf {
        self.state.place(self.region.resolver_place())
    }

    /// Starts it unless it runs.
    pub fn ensure(&self, tools: &Tools) -> Result<()> {
        let daemon = Daemon::new(self.state, self.region.resolver_place(), "coredns");
        if daemon.running().is_some() {
            return Ok(());
        }
        if !self.zone().exists() {
            self.set(&Names::new())?;
        }
        let (address, zone) = (self.region.resolver(), self.zone());
        let zone = zone.display();
        // The whole of the name space is its own, so every other name gets an authoritative NXDOMAIN.
        let text = format!(".:53 {{\n    bind {address}\n    file {zone} . {{\n        reload 100ms\n    }}\n    errors\n}}\n");
        let corefile = self.directory().join("Corefile");
        state::write(&corefile, text)?;
        daemon.ensure(&tools.coredns, &["-conf".to_owned(), corefile.display().to_string()])
    }

    fn zone(&self) -> PathBuf {
        self.directory().join("zone")
    }

    /// What it answers now.
    pub fn names(&self) -> Result<Names> {
        let path = self.directory().join("names.json");
        if path.exists() { state::read_json(&path) } else { Ok(Names::new()) }
    }

    /// Changes all it answers; effective within a fraction of a second.
    pub fn set(&self, names: &Names) -> Result<()> {
        self.change(|all| all.clone_from(names))
    }

    /// Gives a name these addresses; none means NXDOMAIN.
    pub fn set_name(&self, name: &str, addresses: &[Ipv4Addr]) -> Result<()> {
        self.change(|names| {
            names.insert(name.to_ascii_lowercase(), addresses.to_vec());
        })
    }

    /// Forgets a name.
    pub fn forget_name(&self, name: &str) -> Result<()> {
        self.change(|names| {
            names.remove(&name.to_ascii_lowercase());
        })
    }

    /// One change at a time: clusters are started in parallel, and tests are processes of their own.
    fn change(&self, change: impl FnOnce(&mut Names)) -> Result<()> {
        let _lock = state::lock(&self.directory().join("lock"))?;
        let mut names = self.names()?;
        change(&mut names);
        state::write_json(&self.directory().join("names.json"), &names)?;
        state::write(&self.zone(), zone_file(&names))
    }
}

/// What the names end with that hold for longer than tests would wait for.
pub const LASTING: &str = ".ap-southeast-1.eks.example";

/// After how many seconds an answer expires, denials included.
pub const TTL: u32 = 1;

/// Everything expires soon; but what lasts, after a minute, as EKS's names do.
fn zone_file(names: &Names) -> String {
    let mut records = String::new();
    for (name, addresses) in names {
        for address in addresses {
            // Writing to a string can't fail.
            let _ = writeln!(records, "{name}. {} IN A {address}", if name.ends_with(LASTING) { 60 } else { TTL });
        }
    }
    // CoreDNS reads the zone anew when its serial is another, larger or not: a digest of what it holds.
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(&records));
    let serial = u32::from_be_bytes([a, b, c, d]);
    format!("$ORIGIN .\n@ {TTL} IN SOA ns.lab. admin.lab. {serial} 60 60 60 {TTL}\n@ {TTL} IN NS ns.lab.\n{records}")
}

/// The objects of a cluster's own DNS.
#[must_use]
pub fn in_cluster(cluster: &Cluster, image: &str) -> Value {
    let labels = json!({"k8s-app": "kube-dns"});
    // No cache: a name that changes is to be seen at once.
    let others = match (cluster.role(), cluster.region) {
        (Role::Proxy, Some(region)) => format!("forward . {}", region.resolver()),
        _ => "template ANY ANY {\n        rcode NXDOMAIN\n    }".to_owned(),
    };
    // Two blocks: in one, `template` comes before `kubernetes` whatever their order here.
    let corefile = format!(
        "cluster.local:53 in-addr.arpa:53 {{
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa {{
        pods insecure
        ttl 5
    }}
}}
.:53 {{
    errors
    {others}
}}
"
    );
    let container = json!({
        "name": "coredns",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "20Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    });
    let meta = |name: &str| json!({"name": name, "namespace": "kube-system", "labels": labels});
    let reader = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"});
    let items = json!([
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("coredns")},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": reader,
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("coredns"), "data": {"Corefile": corefile}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta("coredns"),
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": "coredns",
                        "dnsPolicy": "Default",
                        "priorityClassName": "system-cluster-critical",
                        "containers": [container],
                        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
                    },
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta("kube-dns"),
            "spec": {
                "clusterIP": cluster.dns_service(),
                "selector": labels,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        },
    ]);
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// The names the lab starts with: each business cluster's host at its own address.
#[must_use]
pub fn initial(clusters: &[Cluster], region: Region) -> Names {
    let in_region = clusters.iter().filter(|cluster| cluster.role() == Role::Business && cluster.region == Some(region));
    in_region.filter_map(|cluster| Some((cluster.host()?, vec![cluster.address]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    #[test]
    fn a_region_knows_its_own_names_alone() {
        let east = initial(&topology::clusters(), Region::East);
        assert!(zone_file(&east).ends_with("lab.\na1b2c3d4e5.gr7.ap-east-1.eks.example. 1 IN A 10.80.1.31\n"));
        let west = initial(&topology::clusters(), Region::West);
        assert!(zone_file(&west).ends_with("lab.\nbusiness-c.idc.example. 1 IN A 10.80.2.31\n"));
    }

    #[test]
    fn a_name_can_have_several_addresses_or_none() {
        let two = vec![Ipv4Addr::new(10, 80, 1, 31), Ipv4Addr::new(10, 80, 1, 33)];
        let names = Names::from([("a.example".to_owned(), two), ("gone.example".to_owned(), vec![])]);
        let zone = zone_file(&names);
        assert!(zone.ends_with("lab.\na.example. 1 IN A 10.80.1.31\na.example. 1 IN A 10.80.1.33\n"), "{zone}");
    }

    #[test]
    fn every_change_changes_the_serial() {
        let with = |last: u8| zone_file(&Names::from([("a.example".to_owned(), vec![Ipv4Addr::new(10, 80, 1, last)])]));
        let serial = |zone: String| zone.split_whitespace().nth(8).map(str::to_owned);
        assert_ne!(serial(with(1)), serial(with(2)));
        assert_eq!(serial(with(1)), serial(with(1)));
    }

    #[test]
    fn the_hubs_dns_forwards_to_nobody() {
        for cluster in topology::clusters().iter().filter(|cluster| cluster.has_dns()) {
            let forwards = in_cluster(cluster, "coredns").to_string().contains("forward .");
            assert_eq!(forwards, cluster.role() == Role::Proxy, "{}", cluster.name);
        }
    }
}
