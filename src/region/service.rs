//! The region's shared Service: one NodePort a cluster, written under optimistic locking, ports of others verbatim. A Service of that
//! name which somebody made for an nginx of their own is left alone, and another one stands beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use tokio::net::lookup_host;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::{Region, call};
use crate::error::{Failure, Kind, Result};
use crate::lock::{Lock, holder_name};
use crate::model::drift::last_writer;
use crate::model::names::{KIND, MANAGER, NAMESPACE};
use crate::model::nodes::{EntryNode, of_load_balancer};
use crate::model::ports::{self, Ports};
use crate::model::region::{KIND_PROXY, SERVICE, SERVICE_BESIDE, SNI_PORT};
use crate::model::service::{holds, load_balancer, merged, wanted};

/// How often others may change the Service between our reading and writing it.
const ATTEMPTS: usize = 50;

/// The Lease of those that write the Service: of two writes at a time one loses, and Kubernetes (1.34) goes on for minutes to hold the node
/// port that it asked for.
const LOCK: &str = "xregion-service";
/// How long one waits for it. After that the Service is written all the same: its `resourceVersion` keeps it whole.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long the hub's DNS may take.
const DNS_PATIENCE: Duration = Duration::from_secs(3);

/// The same among the clusters of this process, which are one holder of the Lease.
static WRITING: Mutex<()> = Mutex::const_new(());

/// What a write to the Service came to.
enum Write {
    Done,
    /// Somebody else wrote meanwhile.
    Conflict,
    /// A node port belongs to another Service; which one, the text says.
    NodePortTaken(String),
}

impl Region {
    fn services(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), NAMESPACE, &ApiResource::erase::<Service>(&()))
    }

    /// The region's Service: its name, and what there is of it.
    async fn service(&self) -> Result<(&'static str, Option<Value>)> {
        let article = self.service_called(SERVICE).await?;
        let is_ours = |service: &Value| service["spec"]["selector"][KIND] == KIND_PROXY;
        if article.as_ref().is_some_and(is_ours) {
            return Ok((SERVICE, article));
        }
        // Made by hand, or not there; then the one beside it may have been made before that was removed.
        match (article, self.service_called(SERVICE_BESIDE).await?) {
            (None, None) => Ok((SERVICE, None)),
            (_, beside) => Ok((SERVICE_BESIDE, beside)),
        }
    }

    async fn service_called(&self, name: &str) -> Result<Option<Value>> {
        let found = call(&self.name, &format!("read Service {NAMESPACE}/{name}"), self.services().get_opt(name)).await?;
        found
            .map(serde_json::to_value)
            .transpose()
            .map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))
    }

    /// The addresses of the Service's load balancer. Host names lead where DNS says here, on the hub, as they will for its gateway.
    pub(super) async fn load_balancer(&self) -> Result<Vec<EntryNode>> {
        let Some(service) = self.service().await?.1 else { return Ok(vec![]) };
        let (addresses, names) = load_balancer(&service);
        let mut found: Vec<(String, IpAddr)> = addresses.into_iter().map(|ip| (ip.to_string(), ip)).collect();
        for name in names {
            match timeout(DNS_PATIENCE, lookup_host((name.as_str(), 0))).await {
                Ok(Ok(addresses)) => found.extend(addresses.map(|address| (name.clone(), address.ip()))),
                Ok(Err(error)) => return Err(self.unresolved(&name, &error.to_string())),
                Err(_) => return Err(self.unresolved(&name, "no answer")),
            }
        }
        Ok(of_load_balancer(found))
    }

    fn unresolved(&self, name: &str, why: &str) -> Failure {
        Failure::new(
            Kind::Unresolvable,
            format!("region {}: host {name} of its load balancer has no address on the hub: {why}", self.name),
            "check the DNS of the hub's pods; a new load balancer's name may take minutes to be known",
        )
    }

    /// The ports that a cluster has on the Service.
    pub async fn ports(&self, name: &str) -> Result<Option<Ports>> {
        Ok(ports::find(&entries(self.service().await?.1.as_ref()), name))
    }

    /// The ports that the Service has, of every cluster and hub, by name; and whether it is as the settings say, or not there.
    pub async fn all_ports(&self) -> Result<(BTreeMap<String, Ports>, bool)> {
        let service = self.service().await?.1;
        let entries = entries(service.as_ref());
        let name = |entry: &Value| Some(entry["name"].as_str()?.to_owned());
        let ports = entries.iter().filter_map(name).filter_map(|name| Some((name.clone(), ports::find(&entries, &name)?)));
        Ok((ports.collect(), service.is_none() || self.is_as_set(service.as_ref())))
    }

    /// Whether there is a Service, and it is as the settings say.
    fn is_as_set(&self, service: Option<&Value>) -> bool {
        service.is_some_and(|service| holds(service, &wanted(&self.settings)))
    }

    /// Makes the Service what the settings say, and puts the region's own port back where it is missing, if there is a Service. Unchanged
    /// means no write; says whether there was one.
    ///
    /// # Errors
    /// The region's own port can't be had. All else is as the settings say by then.
    pub async fn set_service(&self) -> Result<bool> {
        self.alone(async {
            let mut elsewhere = BTreeSet::new();
            for _ in 0..ATTEMPTS {
                let (called, Some(service)) = self.service().await? else { return Ok(false) };
                let mut ports = entries(Some(&service));
                // One that there is stays where it is: clusters may be reached by it.
                let own = ports::choose_sni(&ports, self.settings.node_ports, &elsewhere, true);
                let lacks = own.as_ref().ok().copied().filter(|own| ports::find(&ports, SNI_PORT) != Some(*own));
                if let Some(own) = lacks {
                    ports = ports::with(&ports, SNI_PORT, own);
                } else if self.is_as_set(Some(&service)) {
                    return own.map(|_| false);
                }
                match self.patch_ports(called, &service, &ports).await? {
                    Write::Done => return own.map(|_| true),
                    Write::Conflict => {}
                    Write::NodePortTaken(_) => elsewhere.extend(lacks.map(|own| own.node)),
                }
            }
            Err(self.contended())
        })
        .await
    }

    /// Gives a cluster its ports: those it has, or the node port asked for, or free ones. Unchanged means no write.
    pub async fn take_ports(&self, name: &str, asked: Option<u16>) -> Result<Ports> {
        let service = self.service().await?.1;
        let now = entries(service.as_ref());
        let chosen = ports::choose(&now, name, asked, self.settings.node_ports, &BTreeSet::new())?;
        if ports::find(&now, name) == Some(chosen) && self.is_as_set(service.as_ref()) {
            return Ok(chosen);
        }
        self.alone(self.write_ports(name, asked)).await
    }

    async fn write_ports(&self, name: &str, asked: Option<u16>) -> Result<Ports> {
        let mut elsewhere = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let (called, service) = self.service().await?;
            let now = entries(service.as_ref());
            let chosen = ports::choose(&now, name, asked, self.settings.node_ports, &elsewhere)?;
            if ports::find(&now, name) == Some(chosen) && self.is_as_set(service.as_ref()) {
                return Ok(chosen);
            }
            let wanted = self.with_sni(&ports::with(&now, name, chosen), &elsewhere).await?;
            match self.write_entries(called, service.as_ref(), &wanted).await? {
                Write::Done => return Ok(chosen),
                Write::Conflict => {}
                Write::NodePortTaken(text) => {
                    let taken = named(&wanted, &text).unwrap_or(chosen.node);
                    if asked == Some(taken) {
                        return Err(ports::node_port_taken(taken));
                    }
                    elsewhere.insert(taken);
                }
            }
        }
        Err(self.contended())
    }

    /// Puts lost ports back, each under its name and all in one write, and nobody else's away; gives what each is now. Unchanged means no write.
    ///
    /// # Errors
    /// None is put back. Where one can't be, since its node port is somebody else's by now, that is in what is given.
    pub async fn put_ports(&self, lost: &[(String, Ports)]) -> Result<Vec<Result<Ports>>> {
        self.alone(async {
            let mut elsewhere = BTreeSet::new();
            for _ in 0..ATTEMPTS {
                let (called, service) = self.service().await?;
                let now = entries(service.as_ref());
                let (mut entries, mut put) = (now.clone(), Vec::new());
                for (name, wanted) in lost {
                    let ports = match elsewhere.contains(&wanted.node) {
                        true => Err(ports::node_port_lost(wanted.node)),
                        false => ports::restore(&entries, name, *wanted),
                    };
                    if let Some(ports) = ports.as_ref().ok().filter(|ports| ports::find(&entries, name) != Some(**ports)) {
                        entries = ports::with(&entries, name, *ports);
                    }
                    put.push(ports);
                }
                if entries == now && (put.iter().all(Result::is_err) || self.is_as_set(service.as_ref())) {
                    return Ok(put);
                }
                // Where the region's own is put back, its record is right, and not its settings.
                if !lost.iter().any(|(name, _)| name == SNI_PORT) {
                    entries = self.with_sni(&entries, &elsewhere).await?;
                }
                match self.write_entries(called, service.as_ref(), &entries).await? {
                    Write::Done => return Ok(put),
                    Write::Conflict => {}
                    Write::NodePortTaken(text) => match named(&entries, &text) {
                        Some(taken) => drop(elsewhere.insert(taken)),
                        None => elsewhere.extend(lost.iter().map(|(_, ports)| ports.node)),
                    },
                }
            }
            Err(self.contended())
        })
        .await
    }

    /// The entries with the region's own among them, where its settings want it unless that would cut somebody.
    async fn with_sni(&self, entries: &[Value], elsewhere: &BTreeSet<u16>) -> Result<Vec<Value>> {
        let range = self.settings.node_ports;
        Ok(ports::with_sni(entries, range, elsewhere, self.own_stays(entries, None).await?))
    }

    /// Whether the region's own port has to stay where it is: somebody is reached by it, other than by this route, or it is where it should be.
    async fn own_stays(&self, entries: &[Value], but: Option<&str>) -> Result<bool> {
        Ok(!ports::sni_is_elsewhere(entries, self.settings.node_ports) || self.has_routes_by_name(but).await?)
    }

    /// Sees to the region's own port for a route by name, which nobody is reached by yet if it is `new`. Unchanged means no write; gives
    /// the ports, and whether they were written.
    pub async fn take_own_ports(&self, new: Option<&str>) -> Result<(Ports, bool)> {
        let service = self.service().await?.1;
        let now = entries(service.as_ref());
        let stays = self.own_stays(&now, new).await?;
        let chosen = ports::choose_sni(&now, self.settings.node_ports, &BTreeSet::new(), stays)?;
        if ports::find(&now, SNI_PORT) == Some(chosen) && self.is_as_set(service.as_ref()) {
            return Ok((chosen, false));
        }
        self.alone(self.write_own_ports(new)).await.map(|written| (written, true))
    }

    async fn write_own_ports(&self, new: Option<&str>) -> Result<Ports> {
        let mut elsewhere = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let (called, service) = self.service().await?;
            let now = entries(service.as_ref());
            let stays = self.own_stays(&now, new).await?;
            let chosen = ports::choose_sni(&now, self.settings.node_ports, &elsewhere, stays)?;
            if ports::find(&now, SNI_PORT) == Some(chosen) && self.is_as_set(service.as_ref()) {
                return Ok(chosen);
            }
            match self.write_entries(called, service.as_ref(), &ports::with(&now, SNI_PORT, chosen)).await? {
                Write::Done => return Ok(chosen),
                Write::Conflict => {}
                Write::NodePortTaken(_) => drop(elsewhere.insert(chosen.node)),
            }
        }
        Err(self.contended())
    }

    async fn write_entries(&self, called: &str, service: Option<&Value>, ports: &[Value]) -> Result<Write> {
        match service {
            None => self.create_service(called, ports).await,
            Some(service) => self.patch_ports(called, service, ports).await,
        }
    }

    /// Who last wrote the Service, but for xregion.
    pub async fn service_writer(&self) -> Result<Option<String>> {
        let service = self.service().await?.1;
        let fields = service.map(|service| service["metadata"]["managedFields"].clone()).unwrap_or_default();
        let fields: Vec<ManagedFieldsEntry> = serde_json::from_value(fields).unwrap_or_default();
        Ok(last_writer(&fields))
    }

    /// Takes a cluster's ports away, if it has any; the Service goes with the last cluster that needs it, be it by a port of its own or by
    /// a route by name, which must be removed before. Returns whether the cluster had any.
    pub async fn release_ports(&self, name: &str) -> Result<bool> {
        let (_, Some(service)) = self.service().await? else { return Ok(false) };
        let now = entries(Some(&service));
        if ports::find(&now, name).is_none() && !ports::is_bare(&now) {
            return Ok(false);
        }
        self.alone(self.remove_ports(name)).await
    }

    async fn remove_ports(&self, name: &str) -> Result<bool> {
        for _ in 0..ATTEMPTS {
            let (called, Some(service)) = self.service().await? else { return Ok(false) };
            let now = entries(Some(&service));
            let left = ports::without(&now, name);
            let had = left.len() != now.len();
            let written = if ports::is_bare(&left) && !self.has_routes_by_name(None).await? {
                self.delete_service(called, &service).await?
            } else if had {
                self.patch_ports(called, &service, &left).await?
            } else {
                return Ok(false);
            };
            if matches!(written, Write::Done) {
                return Ok(had);
            }
        }
        Err(self.contended())
    }

    /// Reads and writes the Service while nobody else does.
    async fn alone<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let _writing = WRITING.lock().await;
        let lock = if self.dry_run { None } else { self.lock().await };
        let done = work.await;
        if let Some(lock) = lock {
            lock.release().await;
        }
        done
    }

    async fn lock(&self) -> Option<Lock> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let start = Instant::now();
        let why = loop {
            let what = format!("take Lease {NAMESPACE}/{LOCK}");
            let taken = async { call(&self.name, &what, Lock::take(leases.clone(), LOCK, &holder_name()?)).await }.await;
            match taken {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) if start.elapsed() > PATIENCE => break "somebody else has had it all the time".to_owned(),
                Ok(None) => sleep(ASK_EVERY).await,
                Err(failure) => break failure.to_string(),
            }
        };
        tracing::warn!(region = %self.name, %why, "the Service is written without its Lease");
        None
    }

    async fn create_service(&self, called: &str, ports: &[Value]) -> Result<Write> {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": called, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
            "spec": {"selector": {KIND: KIND_PROXY}, "ports": ports},
        });
        let service: DynamicObject = serde_json::from_value(merged(service, &wanted(&self.settings)))
            .map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))?;
        let params = PostParams { dry_run: self.dry_run, field_manager: Some(MANAGER.to_owned()) };
        self.outcome("create", called, self.services().create(&params, &service).await.map(drop)).await
    }

    async fn patch_ports(&self, called: &str, service: &Value, ports: &[Value]) -> Result<Write> {
        let mut patch = json!({"metadata": {"resourceVersion": service["metadata"]["resourceVersion"]}, "spec": {"ports": ports}});
        if !self.is_as_set(Some(service)) {
            patch = merged(patch, &wanted(&self.settings));
        }
        let params = PatchParams { dry_run: self.dry_run, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let written = self.services().patch(called, &params, &Patch::Merge(&patch)).await;
        self.outcome("change", called, written.map(drop)).await
    }

    async fn delete_service(&self, called: &str, service: &Value) -> Result<Write> {
        let text = |key: &str| service["metadata"][key].as_str().map(str::to_owned);
        let preconditions = Preconditions { resource_version: text("resourceVersion"), uid: text("uid") };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.outcome("remove", called, self.services().delete(called, &params).await.map(drop)).await
    }

    async fn outcome(&self, verb: &str, called: &str, written: kube::Result<()>) -> Result<Write> {
        match written {
            Ok(()) => Ok(Write::Done),
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(Write::Conflict),
            // Kubernetes tells it only in the text, and in two ways: 422 for another Service's port, 500 within the same one.
            Err(kube::Error::Api(status))
                if status.message.contains("already allocated") || status.message.contains("duplicate nodePort") =>
            {
                Ok(Write::NodePortTaken(status.message.clone()))
            }
            Err(error) => call(&self.name, &format!("{verb} Service {NAMESPACE}/{called}"), async { Err(error) }).await,
        }
    }

    fn contended(&self) -> Failure {
        Failure::new(
            Kind::RegionUnreachable,
            format!("Service {NAMESPACE}/{SERVICE} in region {} was changed by others at each of {ATTEMPTS} attempts", self.name),
            "find the other writer (kubectl get service -o yaml --show-managed-fields), then try again",
        )
    }
}

/// Which of the node ports asked for is meant in Kubernetes' words: the text tells the number, as one of several.
fn named(entries: &[Value], text: &str) -> Option<u16> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u16>().ok());
    let of = |number: &u16| entries.iter().any(|entry| entry["nodePort"] == *number);
    numbers.rfind(of)
}

fn entries(service: Option<&Value>) -> Vec<Value> {
    service.and_then(|service| service["spec"]["ports"].as_array().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
