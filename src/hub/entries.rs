//! The Services on the hub that host aliases lead to: read, brought to what a region needs, and taken down with its last cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use futures::try_join;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::{Hub, answer, call, explain};
use crate::error::{Failure, Kind, Result};
use crate::model::drift::last_writer;
use crate::model::entries::{Door, Entries, HUB_NAMESPACE, KIND_ENTRY, Needs, Write, by_region, selector};
use crate::model::names::{ClusterName, JOB, KIND, MANAGER, NAMESPACE};

/// The key of the addon's ConfigMap that says what host aliases lead to: `services` or `nodes`.
const HOST_ALIASES: &str = "hostAliases";
/// How often others may change a region's Services between our reading and writing them.
const ATTEMPTS: usize = 50;
/// How long the hub's nodes may take to lead a Service's new ports anywhere; kube-proxy takes a second or two.
const PATIENCE: Duration = Duration::from_secs(15);
const TRY_EVERY: Duration = Duration::from_millis(100);
const DIAL: Duration = Duration::from_secs(1);

impl Hub {
    /// Whether host aliases should lead to Services here, or else to the nodes of regions themselves: the addon says so. One of an earlier
    /// version doesn't, nor one that is disabled.
    pub async fn leads_to_services(&self) -> Result<bool> {
        let found = call(&format!("read ConfigMap {NAMESPACE}/{JOB}"), self.maps().get_opt(JOB)).await?;
        Ok(found.and_then(|map| map.data?.remove(HOST_ALIASES)).is_some_and(|to| to == "services"))
    }

    /// The Services of every region, where host aliases should lead to those.
    pub async fn entries_led_to(&self) -> Result<Option<BTreeMap<ClusterName, Entries>>> {
        Ok(if self.leads_to_services().await? { Some(self.entries().await?) } else { None })
    }

    /// The Services of every region.
    pub async fn entries(&self) -> Result<BTreeMap<ClusterName, Entries>> {
        let (services, slices) = self.entry_objects(&format!("{KIND}={KIND_ENTRY}")).await?;
        Ok(by_region(&services, &slices))
    }

    /// Who last wrote the Services of a region or their EndpointSlices, but for xregion. Who deleted some left no trace.
    pub async fn entry_writer(&self, region: &ClusterName) -> Result<Option<String>> {
        let (services, slices) = self.entry_objects(&selector(region)).await?;
        let metadata = services.into_iter().map(|service| service.metadata).chain(slices.into_iter().map(|slice| slice.metadata));
        let fields: Vec<_> = metadata.flat_map(|metadata| metadata.managed_fields.unwrap_or_default()).collect();
        Ok(last_writer(&fields))
    }

    async fn entry_objects(&self, labels: &str) -> Result<(Vec<Service>, Vec<EndpointSlice>)> {
        let params = ListParams::default().labels(labels);
        let (services, slices) = (self.entry_services(), self.entry_slices());
        let what = ["Services", "EndpointSlices"].map(|what| format!("list {what} in {HUB_NAMESPACE}"));
        let (services, slices) = try_join!(call(&what[0], services.list(&params)), call(&what[1], slices.list(&params)))?;
        Ok((services.items, slices.items))
    }

    async fn entries_of(&self, region: &ClusterName) -> Result<Entries> {
        Ok(self.entries().await?.remove(region).unwrap_or_default())
    }

    /// Leads the Services of a region to these nodes.
    pub async fn lead(&self, region: &ClusterName, nodes: &BTreeSet<IpAddr>) -> Result<()> {
        self.settle(region, &Needs { nodes: nodes.clone(), ..Needs::default() }).await.map(drop)
    }

    /// Writes until the Services of a region have what it needs; gives what they are then, and whether anything was written.
    pub async fn settle(&self, region: &ClusterName, needs: &Needs) -> Result<(Entries, bool)> {
        let _turn = self.turns.entries.lock().await;
        self.settle_in_turn(region, needs).await
    }

    async fn settle_in_turn(&self, region: &ClusterName, needs: &Needs) -> Result<(Entries, bool)> {
        let mut written = false;
        for _ in 0..ATTEMPTS {
            let now = self.entries_of(region).await?;
            let writes = now.writes(region, needs);
            if writes.is_empty() {
                return Ok((now, written));
            }
            written = true;
            // A conflict, or an object that is gone: the next round sees what there is.
            join_all(writes.into_iter().map(|write| self.write_entry(write))).await.into_iter().collect::<Result<()>>()?;
        }
        Err(contended(region))
    }

    /// Takes a port off the Services of a region; with its last port a Service goes.
    pub async fn close(&self, region: &ClusterName, port: u16) -> Result<()> {
        let _turn = self.turns.entries.lock().await;
        for _ in 0..ATTEMPTS {
            let less = self.entries_of(region).await?.without(region, port);
            if less.is_empty() {
                // Off the EndpointSlices, too.
                return self.settle_in_turn(region, &Needs::default()).await.map(drop);
            }
            let written = less.into_iter().map(|(name, version, patch)| async move {
                match patch {
                    Some(patch) => self.write_entry(Write::PatchService(name, patch)).await,
                    None => self.remove_service(&name, version).await,
                }
            });
            join_all(written).await.into_iter().collect::<Result<()>>()?;
        }
        Err(contended(region))
    }

    /// Takes the Services of a region away, but for those that somebody changes just now.
    pub async fn close_all(&self, region: &ClusterName) -> Result<()> {
        let _turn = self.turns.entries.lock().await;
        for (name, version) in self.entries_of(region).await?.versions(region) {
            self.remove_service(&name, version).await?;
        }
        Ok(())
    }

    async fn remove_service(&self, name: &str, version: String) -> Result<()> {
        let preconditions = Preconditions { resource_version: Some(version), uid: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        outcome(&format!("remove Service {HUB_NAMESPACE}/{name}"), self.entry_services().delete(name, &params)).await
    }

    async fn write_entry(&self, write: Write) -> Result<()> {
        let (services, slices) = (self.entry_services(), self.entry_slices());
        let create = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let change = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match write {
            Write::CreateService(service) => {
                let service: Service = typed(service)?;
                let what = format!("create Service {HUB_NAMESPACE}/{}", service.name_any());
                outcome(&what, services.create(&create, &service)).await
            }
            Write::PatchService(name, patch) => {
                let patch = Patch::Merge(&patch);
                outcome(&format!("change Service {HUB_NAMESPACE}/{name}"), services.patch(&name, &change, &patch)).await
            }
            Write::CreateSlice(slice) => {
                let slice: EndpointSlice = typed(slice)?;
                let what = format!("create EndpointSlice {HUB_NAMESPACE}/{}", slice.name_any());
                outcome(&what, slices.create(&create, &slice)).await
            }
            Write::ReplaceSlice(name, slice) => {
                let slice = typed(slice)?;
                outcome(&format!("change EndpointSlice {HUB_NAMESPACE}/{name}"), slices.replace(&name, &create, &slice)).await
            }
        }
    }

    /// Waits until the hub's nodes lead to a region by its Services, which they do a moment after those are written. It is enough in the end that one
    /// side of a shard does: a node behind the other may be dead.
    pub async fn await_doors(&self, region: &ClusterName, doors: Vec<Vec<Door>>) -> Result<()> {
        // Only pods of the hub are led by its nodes.
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        let open = doors.iter().map(|sides| join_all(sides.iter().map(|door| opens(door, until))));
        let silent = doors.iter().zip(join_all(open).await).find(|(_, open)| !open.contains(&true));
        match silent.and_then(|(sides, _)| sides.first()) {
            None => Ok(()),
            Some(Door { ip, ports }) => Err(Failure::new(
                Kind::GatewayRollout,
                format!(
                    "region {region}: its Services on the hub lead nowhere: no connection to {ip} within {} s (port {})",
                    PATIENCE.as_secs(),
                    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
                ),
                format!(
                    "check kube-proxy and network policies on the hub (kubectl -n {HUB_NAMESPACE} get services,endpointslices), \
                     or let host aliases lead to nodes: vela addon upgrade xregion hostAliases=nodes"
                ),
            )),
        }
    }

    fn entry_services(&self) -> Api<Service> {
        Api::namespaced(self.client(), HUB_NAMESPACE)
    }

    fn entry_slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client(), HUB_NAMESPACE)
    }
}

/// Whether something answers there before `until`.
async fn opens(Door { ip, ports }: &Door, until: Instant) -> bool {
    for port in ports.iter().cycle() {
        if timeout(DIAL, TcpStream::connect((*ip, *port))).await.is_ok_and(|connected| connected.is_ok()) {
            return true;
        }
        if Instant::now() > until {
            break;
        }
        sleep(TRY_EVERY).await;
    }
    false
}

/// A write's outcome; that somebody else was faster is none of its errors.
async fn outcome<T>(what: &str, write: impl Future<Output = kube::Result<T>>) -> Result<()> {
    match answer(what, write).await? {
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
        written => written.map(drop).map_err(|error| explain(what, &error)),
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))
}

fn contended(region: &ClusterName) -> Failure {
    Failure::new(
        Kind::Unexpected,
        format!("the Services of region {region} in {HUB_NAMESPACE} were changed by others at each of {ATTEMPTS} attempts"),
        "find the other writer (kubectl get services -o yaml --show-managed-fields), then try again",
    )
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;
    use tower_test::mock::pair;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_takes_no_service_is_not_waited_for_without_end() {
        let (service, mut handle) = pair::<Request<Body>, Response<Body>>();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some((request, respond)) = handle.next_request().await {
                if request.method() == Method::GET {
                    let list = json!({"kind": "List", "metadata": {}, "items": []}).to_string();
                    respond.send_response(Response::new(Body::from(list.into_bytes())));
                } else {
                    held.push(respond);
                }
            }
        });
        let hub = Hub::mocked(Client::new(service, NAMESPACE));
        let needs = Needs { ports: [30000].into(), nodes: [[10, 0, 1, 1].into()].into(), shards: 1, ..Needs::default() };
        let region = "proxy-east".parse().unwrap();
        let settled = timeout(Duration::from_secs(30), hub.settle(&region, &needs)).await.unwrap();
        assert_eq!(settled.unwrap_err().kind, Kind::HubUnreachable);
    }
}
