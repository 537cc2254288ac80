//! A region's API (the proxy cluster's), reached through the hub's cluster-gateway.

pub mod desk;
pub mod routes;
pub mod service;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;

use self::desk::Desk;
use crate::error::{Failure, Kind, Result};
use crate::hub::{Hub, root_cause};
use crate::model::names::{ClusterName, HubId, KIND, NAMESPACE, Slot};
use crate::model::nodes::{EntryNode, entry_nodes, with_proxies_of};
use crate::model::pods::is_ready;
use crate::model::region::{CONFIG_MAP, Entry, KEY, KIND_PROXY, Region as Settings, TrafficPolicy};
use crate::model::report::{APPLIED, Report};
use crate::model::route::Laid;
use crate::model::traffic::{TRAFFIC, Traffic};

/// How long any single call may take before it is given up: it crosses two API servers and the gateway.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A region that a hub has joined.
#[derive(Clone)]
pub struct Region {
    /// The proxy cluster's name on the hub, which is the region's.
    pub name: ClusterName,
    /// What its `xregion-proxy` says.
    pub settings: Settings,
    client: Client,
    /// Whether writes are only tried.
    dry_run: bool,
    desk: Arc<Desk>,
}

impl Region {
    /// A region that a test answers for.
    #[cfg(test)]
    pub(crate) fn mocked(name: &str, client: Client) -> Self {
        let settings = r#"{"nodes":{"addressType":"InternalIP"},"nodePorts":{"first":30000,"last":30085},"upstreams":{},
            "timeouts":{"connectSeconds":3,"idleSeconds":1,"drainSeconds":1}}"#;
        let (name, settings) = (name.parse().unwrap(), Settings::parse(settings).unwrap());
        Self { name, settings, client, dry_run: false, desk: Arc::default() }
    }

    /// The same region, where writes are checked by its API server and not kept.
    pub fn rehearsing(&self) -> Self {
        Self { dry_run: true, ..self.clone() }
    }

    /// The same region, asked for ports together with whoever asks at this desk.
    pub fn at(self, desk: Arc<Desk>) -> Self {
        Self { desk, ..self }
    }

    /// Enters a region: its proxy cluster is joined and carries `xregion-proxy`.
    pub async fn enter(hub: &Hub, name: &ClusterName) -> Result<Self> {
        if hub.cluster(name).await?.is_none() {
            return Err(not_joined(name));
        }
        let client = hub.through_gateway(name)?;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let found = call(name, &format!("read ConfigMap {NAMESPACE}/{CONFIG_MAP}"), maps.get_opt(CONFIG_MAP)).await?;
        let json = found.and_then(|map| map.data).and_then(|mut data| data.remove(KEY)).ok_or_else(|| {
            Failure::new(
                Kind::NoProxy,
                format!("region {name} has no proxy: there is no ConfigMap {NAMESPACE}/{CONFIG_MAP} in cluster {name}"),
                format!("place the component xregion-proxy there, by a topology policy with clusters: [\"{name}\"] and namespace: {NAMESPACE}"),
            )
        })?;
        let settings = Settings::parse(&json).map_err(|error| {
            Failure::new(
                Kind::RegionSettings,
                format!("region {name}: the settings in ConfigMap {NAMESPACE}/{CONFIG_MAP} can't be read: {error}"),
                "mend what is named there at its xregion-proxy; if nothing is wrong with it, let that write them again, with the addon's present version",
            )
        })?;
        Ok(Self { name: name.clone(), settings, client, dry_run: false, desk: Arc::default() })
    }

    /// What the region has of a hub's cluster, slot by slot.
    pub async fn laid(&self, hub: &HubId, cluster: &ClusterName) -> Result<[Laid; 2]> {
        let called = Slot::ALL.map(|slot| hub.port_name(cluster, slot));
        let [first, second] = self.ports_of(called.each_ref().map(String::as_str)).await?;
        let of = async |slot, ports| Ok::<_, Failure>(Laid { route: self.route(&hub.route_name(cluster, slot)).await?, ports });
        Ok([of(Slot::First, first).await?, of(Slot::Second, second).await?])
    }

    /// The nodes the hub enters by, ready or not; or the addresses of the load balancer, if there is one yet.
    pub async fn nodes(&self) -> Result<Vec<EntryNode>> {
        if self.settings.entry == Entry::LoadBalancer {
            return self.load_balancer().await;
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        let list = call(&self.name, "list the nodes", nodes.list(&ListParams::default())).await?;
        let nodes = entry_nodes(&list.items, &self.settings.nodes);
        Ok(match (self.settings.entry, self.settings.external_traffic_policy) {
            (Entry::NodePort, TrafficPolicy::Cluster) => nodes,
            _ => with_proxies_of(nodes, &self.proxy_pods().await?),
        })
    }

    /// The names of the proxies that are ready.
    pub async fn ready_proxies(&self) -> Result<Vec<String>> {
        Ok(self.proxies().await?.into_iter().filter(|(_, ready)| *ready).map(|(name, _)| name).collect())
    }

    /// The proxies by name, and whether each is ready; without those that are ending.
    pub async fn proxies(&self) -> Result<BTreeMap<String, bool>> {
        let pods = self.proxy_pods().await?;
        let staying = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(staying.map(|pod| (pod.name_any(), is_ready(pod))).collect())
    }

    async fn proxy_pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let list =
            call(&self.name, "list the proxies", pods.list(&ListParams::default().labels(&format!("{KIND}={KIND_PROXY}")))).await?;
        Ok(list.items)
    }

    /// What each proxy reports, by its name.
    pub async fn reports(&self) -> Result<BTreeMap<String, Report>> {
        Ok(self.leases().await?.iter().filter_map(|lease| Some((lease.name_any(), read(lease, APPLIED)?))).collect())
    }

    /// What each proxy has carried. What was open in one that tells no more is not.
    pub async fn traffic(&self) -> Result<Vec<Traffic>> {
        let now = Timestamp::now();
        let told = self.leases().await?;
        let one = |lease: &Lease| {
            let traffic: Traffic = read(lease, TRAFFIC)?;
            Some(if speaks(lease, now) { traffic } else { traffic.without_open() })
        };
        Ok(told.iter().filter_map(one).collect())
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let list = call(
            &self.name,
            "list the proxies' Leases",
            leases.list(&ListParams::default().labels(&format!("{KIND}={KIND_PROXY}"))),
        )
        .await?;
        Ok(list.items)
    }
}

/// Takes the ports of this name from a region's Service, and before that from what leads there on the hub: then another cluster may have
/// them. What leads there goes with the hub's last route. Returns whether there were any ports.
pub async fn release_ports(hub: &Hub, region: &Region, name: &str) -> Result<bool> {
    if let Some(ports) = region.ports(name).await? {
        hub.close(&region.name, ports.entered_by(region.settings.entry)).await?;
    }
    let had = region.release_ports(name).await?;
    if region.routes(&hub.id).await?.is_empty() {
        hub.close_all(&region.name).await?;
    }
    Ok(had)
}

/// The failure for a region that no cluster is the proxy cluster of.
pub fn not_joined(name: &ClusterName) -> Failure {
    Failure::new(
        Kind::RegionNotJoined,
        format!("region {name}: no cluster of that name is joined to the hub"),
        format!("join the region's proxy cluster first: vela cluster join KUBECONFIG --name {name}"),
    )
}

/// What a proxy tells in an annotation of its Lease.
fn read<T: DeserializeOwned>(lease: &Lease, annotation: &str) -> Option<T> {
    serde_json::from_str(lease.annotations().get(annotation)?).ok()
}

/// Whether a Lease still speaks for its proxy.
fn speaks(lease: &Lease, now: Timestamp) -> bool {
    let spec = lease.spec.as_ref();
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    renewed.is_some_and(|at| now.duration_since(at.0).as_secs() <= i64::from(seconds))
}

/// One call to a region's API, with its bound and its error in the words of `what`.
async fn call<T>(region: &ClusterName, what: &str, future: impl Future<Output = kube::Result<T>>) -> Result<T> {
    answer(region, what, future).await?.map_err(|error| explain(region, what, &error))
}

/// The same for whoever makes something of its errors: within the bound, since kube's client tries some requests anew for minutes.
async fn answer<T>(region: &ClusterName, what: &str, future: impl Future<Output = kube::Result<T>>) -> Result<kube::Result<T>> {
    let silent = |_| unreachable(region, what, &format!("no answer within {} s", CALL_TIMEOUT.as_secs()));
    tokio::time::timeout(CALL_TIMEOUT, future).await.map_err(silent)
}

fn explain(region: &ClusterName, what: &str, error: &kube::Error) -> Failure {
    match error {
        // The hub's API server says so of the gateway's API; the proxy cluster's of its own.
        kube::Error::Api(status) if status.code == 403 && status.message.contains("clustergateways") => Failure::new(
            Kind::RegionForbidden,
            format!("this hub's addon does not let joins write to region {region}"),
            format!("add it to those that are there: vela addon upgrade xregion regions={{...,{region}}}"),
        ),
        kube::Error::Api(status) if status.code == 401 || status.code == 403 => Failure::new(
            Kind::RegionForbidden,
            format!("region {region} does not let the hub {what}: {}", status.message),
            "its xregion-proxy ships the role for it: let its Application run again with the addon's present version",
        ),
        kube::Error::Api(status) => unreachable(region, what, &status.message),
        error => unreachable(region, what, &root_cause(error)),
    }
}

fn unreachable(region: &ClusterName, what: &str, why: &str) -> Failure {
    Failure::new(
        Kind::RegionUnreachable,
        format!("can't {what} in region {region}: {}", why.trim()),
        format!("check the way from the hub to the proxy cluster: vela cluster probe {region}"),
    )
}
