//! The region's shared Service: one NodePort a cluster, written under optimistic locking, ports of others verbatim. A Service of that
//! name which somebody made for an nginx of their own is left alone, and another one stands beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use tokio::net::lookup_host;
use tokio::sync::Mutex as Turn;
use tokio::time::{Instant, sleep, timeout};

use super::desk::{Want, Wanted};
use super::{Region, answer, call, explain};
use crate::error::{Failure, Kind, Result};
use crate::lock::{Claim, Lock, holder_name};
use crate::model::drift::last_writer;
use crate::model::names::{ClusterName, KIND, MANAGER, NAMESPACE};
use crate::model::nodes::{EntryNode, of_load_balancer};
use crate::model::ports::{self, Ports};
use crate::model::region::{KIND_PROXY, SERVICE, SERVICE_BESIDE, SNI_PORT};
use crate::model::service::{holds, load_balancer, merged, wanted};

/// How often others may change the Service between our reading and writing it.
const ATTEMPTS: usize = 50;

/// The Lease of those that write the Service: of two writes at a time one loses, and Kubernetes (1.34) goes on for minutes to hold the node
/// port that it asked for.
const LOCK: &str = "xregion-service";
/// How long one waits for it: longer than it takes to run out where its holder has died. After that the Service is written all the
/// same: its `resourceVersion` keeps it whole.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long the hub's DNS may take.
const DNS_PATIENCE: Duration = Duration::from_secs(3);

/// The same among the clusters of this process, which are one holder of the Lease: of each region, for one that is silent holds up no other.
static WRITING: Mutex<BTreeMap<ClusterName, Arc<Turn<()>>>> = Mutex::new(BTreeMap::new());

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

    /// The Service as it is now, by a read that whoever asks at the same desk shares.
    async fn seen(&self) -> Result<Arc<Option<Value>>> {
        self.desk.seen(async { Ok(self.service().await?.1) }).await
    }

    /// The ports that a cluster has on the Service.
    pub async fn ports(&self, name: &str) -> Result<Option<Ports>> {
        let [ports] = self.ports_of([name]).await?;
        Ok(ports)
    }

    /// The ports that the Service has under each of these names.
    pub async fn ports_of<const N: usize>(&self, names: [&str; N]) -> Result<[Option<Ports>; N]> {
        let seen = self.seen().await?;
        let entries = entries(seen.as_ref().as_ref());
        Ok(names.map(|name| ports::find(&entries, name)))
    }

    /// Whether somebody of this run asks for this node port.
    pub fn is_asked_for(&self, node: u16) -> bool {
        self.desk.kept().contains(&node)
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

    /// Gives a cluster its ports: those it has, or the node port asked for, or free ones. Unchanged means no write; whoever else asks at the
    /// same desk meanwhile has his ports by the same write.
    pub async fn take_ports(&self, name: &str, asked: Option<u16>) -> Result<Ports> {
        let want = Want { name: name.to_owned(), ports: asked.map_or(Wanted::Any, Wanted::Node) };
        let seen = self.seen().await?;
        let now = self.desk.with_rehearsed(&entries(seen.as_ref().as_ref()));
        let chosen = self.chosen(&now, &want, &BTreeSet::new())?;
        if ports::find(&now, name) == Some(chosen) && self.is_as_set(seen.as_ref().as_ref()) {
            return Ok(chosen);
        }
        self.desk.ask(want, async |wants| self.alone(self.write_ports(wants)).await).await
    }

    /// Puts lost ports back, each under its name and all in one write, and nobody else's away; gives what each is now. Unchanged means no write.
    ///
    /// # Errors
    /// None is put back. Where one can't be, since its node port is somebody else's by now, that is in what is given.
    pub async fn put_ports(&self, lost: &[(String, Ports)]) -> Result<Vec<Result<Ports>>> {
        let want = |(name, ports): &(String, Ports)| Want { name: name.clone(), ports: Wanted::Back(*ports) };
        let wants: Vec<Want> = lost.iter().map(want).collect();
        self.alone(self.write_ports(&wants)).await
    }

    /// Sees to it that the Service has all that is wanted, by one write at most; gives what each has, or why it has none.
    async fn write_ports(&self, wants: &[Want]) -> Result<Vec<Result<Ports>>> {
        let mut elsewhere = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let (called, service) = self.service().await?;
            let now = entries(service.as_ref());
            let (mut entries, mut given) = (self.desk.with_rehearsed(&now), BTreeMap::new());
            // First those who want a certain one.
            let (certain, any): (Vec<_>, Vec<_>) = wants.iter().enumerate().partition(|(_, want)| want.ports != Wanted::Any);
            for (place, want) in certain.into_iter().chain(any) {
                let ports = self.chosen(&entries, want, &elsewhere);
                if let Some(ports) = ports.as_ref().ok().filter(|ports| ports::find(&entries, &want.name) != Some(**ports)) {
                    entries = ports::with(&entries, &want.name, *ports);
                }
                given.insert(place, ports);
            }
            let given: Vec<Result<Ports>> = given.into_values().collect();
            if entries == now && (given.iter().all(Result::is_err) || self.is_as_set(service.as_ref())) {
                return Ok(given);
            }
            // Where the region's own is put back, its record is right, and not its settings.
            if !wants.iter().any(|want| want.name == SNI_PORT) {
                entries = self.with_sni(&entries, &elsewhere).await?;
            }
            match self.write_entries(called, service.as_ref(), &entries).await? {
                Write::Done => {
                    if self.dry_run {
                        let names = wants.iter().map(|want| want.name.as_str());
                        self.desk.rehearsed(names.zip(&given).filter_map(|(name, ports)| Some((name, *ports.as_ref().ok()?))));
                    }
                    return Ok(given);
                }
                Write::Conflict => {}
                Write::NodePortTaken(text) => match named(&entries, &text) {
                    Some(taken) => drop(elsewhere.insert(taken)),
                    None => elsewhere.extend(given.iter().flatten().map(|ports| ports.node)),
                },
            }
        }
        Err(self.contended())
    }

    /// The ports that somebody gets. `elsewhere` are node ports the API said belong to other Services.
    fn chosen(&self, entries: &[Value], want: &Want, elsewhere: &BTreeSet<u16>) -> Result<Ports> {
        let range = self.settings.node_ports;
        match want.ports {
            Wanted::Any => ports::choose(entries, &want.name, None, range, elsewhere, self.desk.kept()),
            Wanted::Node(node) => ports::choose(entries, &want.name, Some(node), range, elsewhere, self.desk.kept()),
            Wanted::Back(ports) if elsewhere.contains(&ports.node) => Err(ports::node_port_lost(ports.node)),
            Wanted::Back(ports) => ports::restore(entries, &want.name, ports),
        }
    }

    /// The entries with the region's own among them, where its settings want it unless that would cut somebody.
    async fn with_sni(&self, entries: &[Value], elsewhere: &BTreeSet<u16>) -> Result<Vec<Value>> {
        let range = self.settings.node_ports;
        Ok(ports::with_sni(entries, range, &self.not_own(elsewhere), self.own_stays(entries, None).await?))
    }

    /// The node ports that the region's own must not get: those of other Services, and what clusters ask for, unless it is said to be its own.
    fn not_own(&self, elsewhere: &BTreeSet<u16>) -> BTreeSet<u16> {
        let kept = self.desk.kept().iter().filter(|port| Some(**port) != self.settings.node_ports.sni);
        elsewhere.iter().chain(kept).copied().collect()
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
        let chosen = ports::choose_sni(&now, self.settings.node_ports, &self.not_own(&BTreeSet::new()), stays)?;
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
            let chosen = ports::choose_sni(&now, self.settings.node_ports, &self.not_own(&elsewhere), stays)?;
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
        let turn = WRITING.lock().unwrap_or_else(PoisonError::into_inner).entry(self.name.clone()).or_default().clone();
        let _writing = turn.lock().await;
        let lock = if self.dry_run { None } else { self.lock().await };
        let done = work.await;
        if let Some(lock) = lock {
            lock.release().await;
        }
        done
    }

    async fn lock(&self) -> Option<Lock> {
        let why = match self.take_lease().await {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) => "somebody else has had it all the time".to_owned(),
            Err(failure) => failure.to_string(),
        };
        tracing::warn!(region = %self.name, %why, "the Service is written without its Lease");
        None
    }

    /// Takes the Lease, unless somebody else has it all the time.
    async fn take_lease(&self) -> Result<Option<Lock>> {
        let mut claim = Claim::new(Api::namespaced(self.client.clone(), NAMESPACE), LOCK, &holder_name()?);
        let (start, what) = (Instant::now(), format!("take Lease {NAMESPACE}/{LOCK}"));
        loop {
            let taken = call(&self.name, &what, claim.take()).await?;
            if taken.is_some() || start.elapsed() > PATIENCE {
                return Ok(taken);
            }
            sleep(ASK_EVERY).await;
        }
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
        self.outcome("create", called, self.services().create(&params, &service)).await
    }

    async fn patch_ports(&self, called: &str, service: &Value, ports: &[Value]) -> Result<Write> {
        let mut patch = json!({"metadata": {"resourceVersion": service["metadata"]["resourceVersion"]}, "spec": {"ports": ports}});
        if !self.is_as_set(Some(service)) {
            patch = merged(patch, &wanted(&self.settings));
        }
        let params = PatchParams { dry_run: self.dry_run, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        self.outcome("change", called, self.services().patch(called, &params, &Patch::Merge(&patch))).await
    }

    async fn delete_service(&self, called: &str, service: &Value) -> Result<Write> {
        let text = |key: &str| service["metadata"][key].as_str().map(str::to_owned);
        let preconditions = Preconditions { resource_version: text("resourceVersion"), uid: text("uid") };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.outcome("remove", called, self.services().delete(called, &params)).await
    }

    async fn outcome<T>(&self, verb: &str, called: &str, write: impl Future<Output = kube::Result<T>>) -> Result<Write> {
        let what = format!("{verb} Service {NAMESPACE}/{called}");
        match answer(&self.name, &what, write).await? {
            Ok(_) => Ok(Write::Done),
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(Write::Conflict),
            // Kubernetes tells it only in the text, and in two ways: 422 for another Service's port, 500 within the same one.
            Err(kube::Error::Api(status))
                if status.message.contains("already allocated") || status.message.contains("duplicate nodePort") =>
            {
                Ok(Write::NodePortTaken(status.message.clone()))
            }
            Err(kube::Error::Api(status)) if status.message.contains("not in the valid range") => Err(Failure::new(
                Kind::NodePortTaken,
                format!("region {}: its proxy cluster has no such node port: {}", self.name, status.message),
                "let nodePorts at its xregion-proxy be of those that its API server has (--service-node-port-range)",
            )),
            Err(error) => Err(explain(&self.name, &what, &error)),
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
