//! The hub's cluster-gateway: its Deployment is found, changed under optimistic locking, and waited for.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tokio::time::sleep;

use super::{Hub, call};
use crate::error::{Failure, Kind, Result};
use crate::model::aliases::HostAliases;
use crate::model::rollout::{self, Progress};

/// The API that cluster-gateway serves; its APIService leads to it whatever the Helm release is called.
const API_SERVICE: &str = "v1alpha1.cluster.core.oam.dev";
/// How often somebody else may change the Deployment between our reading and writing it.
const ATTEMPTS: usize = 10;
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The gateway's Deployment.
#[derive(Clone)]
pub struct Gateway {
    deployments: Api<DynamicObject>,
    typed: Api<Deployment>,
    pods: Api<Pod>,
    selector: String,
    name: String,
    sleep_action: bool,
}

impl Hub {
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
            name: chosen.name_any(),
            sleep_action: self.knows_sleep_action().await?,
        })
    }

    /// Whether the hub keeps a `sleep` action in a container's lifecycle (on by default since Kubernetes 1.30).
    async fn knows_sleep_action(&self) -> Result<bool> {
        let version = call("read the hub's version", self.client().apiserver_version()).await?;
        let minor: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
        Ok(version.major != "1" || minor.parse::<u32>().is_ok_and(|minor| minor >= 30))
    }
}

impl Gateway {
    /// The Deployment's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host aliases it has now.
    pub async fn aliases(&self) -> Result<HostAliases> {
        rollout::host_aliases(&self.read().await?)
    }

    /// Changes the host aliases by a rule, over whatever else changes there meanwhile. Returns whether anything was written.
    pub async fn change(&self, rule: impl Fn(&HostAliases) -> Result<HostAliases>) -> Result<bool> {
        for _ in 0..ATTEMPTS {
            let deployment = self.read().await?;
            let wanted = rule(&rollout::host_aliases(&deployment)?)?;
            wanted.check_limit()?;
            let Some(patch) = rollout::patch(&deployment, &wanted, self.sleep_action)? else { return Ok(false) };
            match self.deployments.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => return Ok(true),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return call(&format!("patch Deployment {}", self.name), async { Err(error) }).await,
            }
        }
        Err(Failure::new(
            Kind::GatewayRollout,
            format!("the gateway's Deployment {} was changed by somebody else at each of {ATTEMPTS} attempts", self.name),
            "find the other writer (kubectl get deployment -o yaml --show-managed-fields), then try again",
        ))
    }

    /// Waits until every gateway pod has the Deployment's present host aliases and those before are gone.
    ///
    /// The pods themselves count, not only the Deployment's status: one that is ending still answers over connections that it
    /// has, and doesn't know a new name.
    pub async fn rolled(&self) -> Result<()> {
        loop {
            let deployment = call(&format!("read Deployment {}", self.name), self.typed.get(&self.name)).await?;
            match rollout::progress(&deployment) {
                Progress::Stuck(why) => {
                    return Err(Failure::new(
                        Kind::GatewayRollout,
                        format!("the gateway's Deployment {} does not get its new pods ready: {why}", self.name),
                        format!("kubectl -n {} describe pods -l {}", deployment.namespace().unwrap_or_default(), self.selector),
                    ));
                }
                Progress::Waiting(what) => tracing::debug!(what, "waiting for the gateway"),
                Progress::Complete if self.ending().await? == 0 => return Ok(()),
                Progress::Complete => tracing::debug!("waiting for old gateway pods to end"),
            }
            sleep(ASK_EVERY).await;
        }
    }

    async fn ending(&self) -> Result<usize> {
        let pods = call("list the gateway's pods", self.pods.list(&ListParams::default().labels(&self.selector))).await?;
        Ok(pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count())
    }

    async fn read(&self) -> Result<Value> {
        let object = call(&format!("read Deployment {}", self.name), self.deployments.get(&self.name)).await?;
        serde_json::to_value(object).map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))
    }
}
