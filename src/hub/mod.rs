//! The hub's API: where KubeVela, its cluster-gateway and the records of joined clusters are.

pub mod applications;
pub mod clusters;
pub mod controller;
pub mod entries;
pub mod gateway;
pub mod leftovers;
pub mod members;
pub mod progress;
pub mod renewal;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::sync::Mutex;

use crate::connect;
use crate::error::{Failure, Kind, Result};
use crate::lock::{Claim, Lock};
use crate::model::names::{ClusterName, HubId, NAMESPACE, SecretName};

/// How long any single call may take before it is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Label by which a kubeconfig's Secret opts in to being read.
pub const OPT_IN: &str = "xregion.oam.dev/kubeconfig";

/// A kubeconfig that was brought in a Secret.
pub struct Brought {
    /// Its text.
    pub text: Vec<u8>,
    /// Whether it stays: a shell's goes with its Job.
    pub stays: bool,
}

/// A connection to the hub.
#[derive(Clone)]
pub struct Hub {
    config: Config,
    client: Client,
    /// Which hub it is.
    pub id: HubId,
    turns: Arc<Turns>,
}

/// What the clusters of this process write by turns. Of many that write one object at once, one gets through each time, and the others use
/// up their attempts.
#[derive(Debug, Default)]
struct Turns {
    /// At the gateway's Deployment.
    gateway: Mutex<()>,
    /// At the Services that host aliases lead to.
    entries: Mutex<()>,
}

impl Hub {
    /// Connects as the Job's ServiceAccount in a pod, else by `KUBECONFIG` or the default kubeconfig.
    pub async fn connect() -> Result<Self> {
        let unusable = |error: String| {
            Failure::new(Kind::HubUnreachable, format!("there is no way to the hub: {error}"), "point KUBECONFIG at the hub")
        };
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && std::env::var_os("KUBECONFIG").is_none();
        let mut config = if in_pod {
            Config::incluster().map_err(|error| unusable(error.to_string()))?
        } else {
            let kubeconfig = Kubeconfig::read().map_err(|error| unusable(error.to_string()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(|error| unusable(error.to_string()))?
        };
        bound(&mut config);
        let client = connect::client(config.clone()).map_err(|error| unusable(error.to_string()))?;
        Self::identified(config, client).await
    }

    async fn identified(config: Config, client: Client) -> Result<Self> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let system = call("read namespace kube-system of the hub", namespaces.get("kube-system")).await?;
        let uid = system
            .metadata
            .uid
            .ok_or_else(|| Failure::new(Kind::Unexpected, "the hub's namespace kube-system has no UID", "report this"))?;
        Ok(Self { config, client, id: HubId::new(uid), turns: Arc::default() })
    }

    /// A hub that a test answers for.
    #[cfg(test)]
    pub(crate) fn mocked(client: Client) -> Self {
        let config = Config::new(http::Uri::from_static("http://hub.example"));
        Self { config, client, id: HubId::new("a-hub"), turns: Arc::default() }
    }

    /// The client, for calls that this module does not name.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client for a joined cluster, through the hub's cluster-gateway and with the credentials that it keeps.
    pub fn through_gateway(&self, cluster: &ClusterName) -> Result<Client> {
        let mut config = self.config.clone();
        let base = config.cluster_url.to_string();
        let url = format!("{}/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy", base.trim_end_matches('/'));
        let unexpected = |error: String| Failure::new(Kind::Unexpected, error, "report this");
        config.cluster_url = url.parse().map_err(|error: http::uri::InvalidUri| unexpected(error.to_string()))?;
        connect::client(config).map_err(|error| unexpected(error.to_string()))
    }

    /// The kubeconfig in a Secret of `vela-system` that opted in.
    pub async fn kubeconfig(&self, name: &SecretName, key: &str) -> Result<Brought> {
        let secret =
            call(&format!("read Secret {NAMESPACE}/{name}"), self.secrets().get_opt(name.as_str())).await?.ok_or_else(|| {
                Failure::new(
                    Kind::SecretMissing,
                    format!("Secret {NAMESPACE}/{name} does not exist"),
                    format!(
                        "kubectl -n {NAMESPACE} create secret generic {name} --from-file={key}=FILE, then label it {OPT_IN}=true"
                    ),
                )
            })?;
        if secret.metadata.labels.as_ref().and_then(|labels| labels.get(OPT_IN)).map(String::as_str) != Some("true") {
            return Err(Failure::new(
                Kind::SecretNotOptedIn,
                format!("Secret {NAMESPACE}/{name} is not marked as a kubeconfig that may be joined"),
                format!("kubectl -n {NAMESPACE} label secret {name} {OPT_IN}=true"),
            ));
        }
        let stays = secret.metadata.owner_references.iter().flatten().all(|owner| owner.kind != "Job");
        let data = secret.data.unwrap_or_default();
        data.get(key).map(|bytes| Brought { text: bytes.0.clone(), stays }).ok_or_else(|| {
            let keys = data.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Failure::new(
                Kind::SecretMissing,
                format!("Secret {NAMESPACE}/{name} has no key {key:?}"),
                format!("its keys are: {keys}"),
            )
        })
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client(), NAMESPACE)
    }
}

/// Bounds that suit a Job: kube's defaults wait for ever on a silent peer.
fn bound(config: &mut Config) {
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(CALL_TIMEOUT);
    config.reset_reader_on_write = true;
    // Taken from HTTPS_PROXY otherwise, which kubectl's users don't mean for a cluster's address.
    config.proxy_url = None;
}

/// One call to the hub's API, with its bound, and its error in the words of `what` (such as "read Secret a/b").
pub async fn call<T>(what: &str, future: impl Future<Output = kube::Result<T>>) -> Result<T> {
    answer(what, future).await?.map_err(|error| explain(what, &error))
}

/// The same for whoever makes something of its errors: within the bound, since kube's client tries some requests anew for minutes.
async fn answer<T>(what: &str, future: impl Future<Output = kube::Result<T>>) -> Result<kube::Result<T>> {
    tokio::time::timeout(CALL_TIMEOUT, future).await.map_err(|_| {
        Failure::new(
            Kind::HubUnreachable,
            format!("can't {what}: no answer within {} s", CALL_TIMEOUT.as_secs()),
            "check the hub's API server",
        )
    })
}

/// Takes the right that is claimed, unless somebody else has it.
pub async fn take(claim: &mut Claim) -> Result<Option<Lock>> {
    call(&format!("take Lease {NAMESPACE}/{}", claim.name()), claim.take()).await
}

/// A deletion, of which the outcome counts: whether there was anything to delete.
pub async fn gone_is_fine<T>(deletion: impl Future<Output = kube::Result<T>>) -> kube::Result<bool> {
    match deletion.await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

fn explain(what: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 401 || status.code == 403 => Failure::new(
            Kind::HubForbidden,
            format!("can't {what}: {}", status.message),
            "the addon's ServiceAccount xregion has this right; from a shell, your own user needs it",
        ),
        kube::Error::Api(status) => {
            Failure::new(Kind::Unexpected, format!("can't {what}: {}", status.message), "try again; if it stays, report it")
        }
        error => Failure::new(
            Kind::HubUnreachable,
            format!("can't {what}: {}", root_cause(error)),
            "check that the hub's API server can be reached",
        ),
    }
}

/// The innermost cause of an error: kube's own texts repeat it at every level.
pub fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
