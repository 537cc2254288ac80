//! The hub's cluster-gateway: its Deployment is found, changed under optimistic locking, and waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::Value;
use tokio::time::sleep;

use super::progress::Progress;
use super::{Hub, Turns, answer, call, explain, gone_is_fine};
use crate::error::{Failure, Kind, Result};
use crate::lock::Claim;
use crate::model::aliases::HostAliases;
use crate::model::drift::{Standing, last_writer};
use crate::model::entries::Entries;
use crate::model::names::{ClusterName, DnsName, KIND as KIND_LABEL, MANAGER, NAMESPACE};
use crate::model::pods::is_ready;
use crate::model::rollout::{self, Handover, KIND_RETIRED, Progress as Rollout};

/// The API that cluster-gateway serves; its APIService leads to it whatever the Helm release is called.
const API_SERVICE: &str = "v1alpha1.cluster.core.oam.dev";
/// The Lease of those that change it.
const LOCK: &str = "xregion-gateway";
/// How often somebody else may change the Deployment between our reading and writing it.
const ATTEMPTS: usize = 10;
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long kube-proxy may take to hear of a change of endpoints: it syncs at most once a second.
const ENDPOINTS_SETTLE: Duration = Duration::from_secs(3);
/// How long a pod that was taken out of service lives on if this process dies before it ends it.
const RETIRED_SECONDS: i64 = 15;

/// What a rollout waits for last.
const ENDING: &str = "the old gateway is ending";

/// What becomes of the old gateway pods before a rollout is over.
///
/// One that is ending still answers over the connections that it has. It doesn't know a new name, but one name too many does no harm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OldPods {
    /// They are gone.
    Gone,
    /// They end in their own time: nobody new is led to them.
    Ending,
}

/// The gateway's Deployment.
#[derive(Clone)]
pub struct Gateway {
    deployments: Api<DynamicObject>,
    typed: Api<Deployment>,
    pods: Api<Pod>,
    selector: String,
    /// The keys of every label that the Service or the Deployment selects pods by.
    selected_by: BTreeSet<String>,
    name: String,
    /// Whether changes are only tried.
    dry_run: bool,
    /// Whether changes end the connections that are open through it.
    cut: bool,
    /// Whether changes put back what makes rollouts smooth, also where that alone was lost.
    smooth: bool,
    turns: Arc<Turns>,
}

/// The gateway's Deployment as it was at one moment.
pub struct Seen {
    /// The names that lead into regions.
    pub aliases: HostAliases,
    /// Whether its pods take over from each other without a failed request.
    smooth: bool,
    deployment: Deployment,
}

impl Seen {
    /// Whether old pods wait to be seen out by whoever has the right to change the gateway.
    pub fn hands_over(&self) -> bool {
        rollout::handover(&self.deployment, &[]) != Handover::None
    }
}

impl Hub {
    /// A claim to the right to change the gateway: one run changes it for itself and for those that wait.
    pub fn claim_gateway(&self, holder: &str) -> Claim {
        Claim::new(Api::namespaced(self.client(), NAMESPACE), LOCK, holder)
    }

    /// Finds the gateway, or takes the Deployment of the given name beside its Service.
    pub async fn gateway(&self, name: Option<&str>) -> Result<Gateway> {
        let missing = |cause: String| {
            Failure::new(
                Kind::GatewayMissing,
                cause,
                "check `vela install`'s cluster-gateway, or name its Deployment with --gateway",
            )
        };
        let services: Api<APIService> = Api::all(self.client());
        let api = call(&format!("read APIService {API_SERVICE}"), services.get_opt(API_SERVICE)).await?;
        let reference = api
            .and_then(|api| api.spec)
            .and_then(|spec| spec.service)
            .ok_or_else(|| missing(format!("the hub has no cluster-gateway: APIService {API_SERVICE} leads to no Service")))?;
        let (namespace, service) = (reference.namespace.unwrap_or_default(), reference.name.unwrap_or_default());
        let services: Api<Service> = Api::namespaced(self.client(), &namespace);
        let found = call(&format!("read Service {namespace}/{service}"), services.get_opt(&service)).await?;
        let selector = found.and_then(|service| service.spec).and_then(|spec| spec.selector).unwrap_or_default();
        if selector.is_empty() {
            return Err(missing(format!("cluster-gateway's Service {namespace}/{service} selects no pods")));
        }
        let typed: Api<Deployment> = Api::namespaced(self.client(), &namespace);
        let all = call(&format!("list Deployments in {namespace}"), typed.list(&ListParams::default())).await?;
        let serves = |deployment: &&Deployment| {
            let labels =
                deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
            selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        };
        let chosen = match name {
            Some(name) => all.items.iter().find(|deployment| deployment.name_any() == name),
            None => all.items.iter().find(serves),
        }
        .ok_or_else(|| match name {
            Some(name) => missing(format!("there is no Deployment {namespace}/{name}")),
            None => missing(format!("no Deployment in {namespace} has the pods of cluster-gateway's Service {service}")),
        })?;
        let labels = chosen.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
        Ok(Gateway {
            deployments: Api::namespaced_with(self.client(), &namespace, &ApiResource::erase::<Deployment>(&())),
            typed,
            pods: Api::namespaced(self.client(), &namespace),
            selector: labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
            selected_by: labels.into_keys().chain(selector.into_keys()).collect(),
            name: chosen.name_any(),
            dry_run: false,
            cut: false,
            smooth: false,
            turns: self.turns.clone(),
        })
    }
}

impl Gateway {
    /// The Deployment's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same gateway, where changes are checked by the API server and not kept.
    pub fn rehearsing(&self) -> Self {
        Self { dry_run: true, ..self.clone() }
    }

    /// The same gateway; with `cut`, its every change ends the connections that are open through it, also one that concerns no pod.
    pub fn cutting(self, cut: bool) -> Self {
        Self { cut: self.cut || cut, ..self }
    }

    /// The same gateway; with `smooth`, its every change sees to it that its pods take over from each other without a failed request.
    pub fn smoothing(self, smooth: bool) -> Self {
        Self { smooth, ..self }
    }

    /// Whether a change that smooths would write something for that.
    pub fn needs_smoothing(&self, seen: &Seen) -> bool {
        self.smooth && !seen.smooth
    }

    /// What a controller judges it by, with the Services of regions, where host aliases lead to those.
    pub async fn standing(&self, services: Option<BTreeMap<ClusterName, Entries>>) -> Result<Standing> {
        let Seen { aliases, smooth, deployment } = self.see().await?;
        let last_writer = deployment.metadata.managed_fields.and_then(|fields| last_writer(&fields));
        Ok(Standing { aliases, smooth, services, last_writer })
    }

    /// The Deployment, for those who tell about it.
    pub async fn reference(&self) -> Result<ObjectReference> {
        Ok(self.deployment().await?.object_ref(&()))
    }

    /// Whether its changes end open connections.
    pub fn cuts(&self) -> bool {
        self.cut
    }

    /// The host aliases it has now.
    pub async fn aliases(&self) -> Result<HostAliases> {
        Ok(self.see().await?.aliases)
    }

    /// The Deployment as it is now.
    pub async fn see(&self) -> Result<Seen> {
        let deployment = self.read().await?;
        let aliases = rollout::host_aliases(&deployment)?;
        let smooth = rollout::is_smooth(&deployment);
        Ok(Seen { aliases, smooth, deployment: serde_json::from_value(deployment).map_err(unreadable)? })
    }

    /// What the rollout of its present host aliases waits for, if it is not through.
    pub async fn waits_for(&self) -> Result<Option<String>> {
        let deployment = self.deployment().await?;
        match rollout::progress(&deployment) {
            Rollout::Stuck(what) => Ok(Some(what)),
            _ => self.lacking(&deployment, OldPods::Gone).await,
        }
    }

    /// Changes the host aliases by a rule, over whatever else changes there meanwhile. Returns whether anything was written.
    pub async fn change(&self, rule: impl Fn(&HostAliases) -> Result<HostAliases>) -> Result<bool> {
        let _turn = self.turns.gateway.lock().await;
        for _ in 0..ATTEMPTS {
            let deployment = self.read().await?;
            let wanted = rule(&rollout::host_aliases(&deployment)?)?;
            wanted.check_limit()?;
            let Some(patch) = rollout::patch(&deployment, &wanted, self.cut.then(Timestamp::now), self.smooth)? else {
                return Ok(false);
            };
            let params = PatchParams { dry_run: self.dry_run, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let what = format!("patch Deployment {}", self.name);
            match answer(&what, self.deployments.patch(&self.name, &params, &Patch::Merge(&patch))).await? {
                Ok(_) => return Ok(true),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(explain(&what, &error)),
            }
        }
        Err(Failure::new(
            Kind::GatewayRollout,
            format!("the gateway's Deployment {} was changed by somebody else at each of {ATTEMPTS} attempts", self.name),
            "find the other writer (kubectl get deployment -o yaml --show-managed-fields), then try again",
        ))
    }

    /// What is waited for until the pods lead these names where the Deployment says, whoever's rollout it is that brings it about: others
    /// may follow it without a pause. With `cut`, until no rollout is under way at all.
    pub async fn behind(&self, seen: &Seen, hosts: &BTreeSet<DnsName>, old: OldPods) -> Result<Option<String>> {
        let Seen { aliases, deployment, .. } = seen;
        if self.cut {
            return self.lacking(deployment, OldPods::Gone).await;
        }
        let is_behind = |pod: &Pod| runs(pod) && !rollout::leads(pod, aliases, hosts);
        let pods = self.list(&self.selector).await?;
        let serves = pods.iter().any(|pod| is_ready(pod) && rollout::leads(pod, aliases, hosts));
        let mut counting = pods.iter().filter(|pod| old == OldPods::Gone || pod.metadata.deletion_timestamp.is_none());
        if serves
            && !counting.any(is_behind)
            && (old == OldPods::Ending || !self.list(&retired_selector()).await?.iter().any(is_behind))
        {
            return Ok(None);
        }
        match rollout::progress(deployment) {
            Rollout::Stuck(why) => Err(self.stuck(deployment, &why)),
            Rollout::Waiting(what) => Ok(Some(what)),
            Rollout::Complete if serves => Ok(Some(ENDING.to_owned())),
            Rollout::Complete => Ok(Some("the new gateway to be ready".to_owned())),
        }
    }

    fn stuck(&self, deployment: &Deployment, why: &str) -> Failure {
        Failure::new(
            Kind::GatewayRollout,
            format!("the gateway's Deployment {} does not get its new pods ready: {why}", self.name),
            format!("kubectl -n {} describe pods -l {}", deployment.namespace().unwrap_or_default(), self.selector),
        )
    }

    /// Waits until a rollout is through, for whoever holds the right to change the gateway: sees old pods out that would end too early
    /// by themselves.
    pub async fn roll(&self, progress: &Progress, old: OldPods) -> Result<()> {
        loop {
            let deployment = self.deployment().await?;
            let pods = self.list(&self.selector).await?;
            match rollout::handover(&deployment, &pods) {
                Handover::Early => {}
                Handover::Due(pods) => {
                    self.hand_over(&pods).await?;
                    continue;
                }
                Handover::None => {
                    // Here, too: a run before this one may have died between taking a pod out of service and ending it.
                    self.end_retired().await?;
                }
            }
            let Some(what) = self.lacking(&deployment, old).await? else { return Ok(()) };
            progress.waits_for(&what).await;
            sleep(ASK_EVERY).await;
        }
    }

    /// What the rollout lacks, if it is not through.
    async fn lacking(&self, deployment: &Deployment, old: OldPods) -> Result<Option<String>> {
        match rollout::progress(deployment) {
            Rollout::Stuck(why) => Err(self.stuck(deployment, &why)),
            Rollout::Waiting(what) => Ok(Some(what)),
            Rollout::Complete if old == OldPods::Ending => Ok(None),
            // The pods themselves count: the Deployment's status leaves out those that are ending.
            Rollout::Complete => {
                let pods = self.list(&self.selector).await?;
                let mut ending = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count();
                ending += self.list(&retired_selector()).await?.iter().filter(|pod| runs(pod)).count();
                Ok((ending > 0).then(|| ENDING.to_owned()))
            }
        }
    }

    /// Takes old pods out of service before they end, for they would stop listening while kube-proxy still leads to them.
    ///
    /// Whatever dies in between, the hub's gateway stays as it is now or ends up rolled: Kubernetes goes on by itself when the new
    /// pods have been ready for long enough, and the kubelet ends a pod that was taken out of service.
    async fn hand_over(&self, old: &[&Pod]) -> Result<()> {
        if !old.is_empty() {
            tracing::info!(pods = old.len(), "seeing old gateway pods out");
            sleep(ENDPOINTS_SETTLE).await;
        }
        for pod in old {
            let patch = Patch::Merge(rollout::retired(pod, self.selected_by.iter(), Timestamp::now(), RETIRED_SECONDS));
            let name = pod.name_any();
            let params = PatchParams::default();
            call(&format!("take pod {name} out of service"), gone_is_fine(self.pods.patch(&name, &params, &patch))).await?;
        }
        // At once: the old ReplicaSet replaces the pods it misses until the Deployment tells it not to.
        let patch = Patch::Merge(rollout::handed_over());
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        call(&format!("patch Deployment {}", self.name), self.deployments.patch(&self.name, &params, &patch)).await?;
        if !old.is_empty() {
            sleep(ENDPOINTS_SETTLE).await;
        }
        self.end_retired().await
    }

    async fn end_retired(&self) -> Result<()> {
        for pod in self.list(&retired_selector()).await?.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let name = pod.name_any();
            call(&format!("end pod {name}"), gone_is_fine(self.pods.delete(&name, &Default::default()))).await?;
        }
        Ok(())
    }

    async fn list(&self, selector: &str) -> Result<Vec<Pod>> {
        Ok(call("list the gateway's pods", self.pods.list(&ListParams::default().labels(selector))).await?.items)
    }

    async fn deployment(&self) -> Result<Deployment> {
        call(&format!("read Deployment {}", self.name), self.typed.get(&self.name)).await
    }

    async fn read(&self) -> Result<Value> {
        let object = call(&format!("read Deployment {}", self.name), self.deployments.get(&self.name)).await?;
        serde_json::to_value(object).map_err(unreadable)
    }
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(Kind::Unexpected, error.to_string(), "report this")
}

fn retired_selector() -> String {
    format!("{KIND_LABEL}={KIND_RETIRED}")
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Failed" | "Succeeded"))
}

#[cfg(test)]
mod tests;
