//! The API of the cluster that a ServiceAccount is made in, reached from this machine.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::client::AuthError;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use secrecy::SecretString;
use serde_json::json;

use crate::error::{Failure, Kind, Result};
use crate::hub::root_cause;
use crate::model::kubeconfig::{Chosen, Server, authority_part};
use crate::model::lifetime::token_request;
use crate::model::names::{MANAGER, ObjectName};
use crate::model::renewal::RENEW;

/// How long any single call may take before it is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to the cluster, as the kubeconfig's user.
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Connects as the user of the context. A command that the user gets its credentials from is run here.
    pub async fn connect(config: &Kubeconfig, chosen: &Chosen<'_>, server: &Server) -> Result<Self> {
        let options = KubeConfigOptions { context: Some(chosen.context.to_owned()), ..KubeConfigOptions::default() };
        let unusable = |error: String| Failure::new(Kind::Kubeconfig, error, "try it with kubectl");
        let mut client = Config::from_custom_kubeconfig(config.clone(), &options)
            .await
            .map_err(|error| unusable(format!("the kubeconfig can't be used: {}", root_cause(&error))))?;
        let url = format!("https://{}", authority_part(&server.host.to_string(), server.port));
        client.cluster_url = url.parse().map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?;
        client.connect_timeout = Some(CALL_TIMEOUT);
        client.read_timeout = Some(CALL_TIMEOUT);
        client.proxy_url = None;
        Ok(Self { client: Client::try_from(client).map_err(|error| explain(chosen, &error))? })
    }

    #[cfg(test)]
    pub(super) fn of(client: Client) -> Self {
        Self { client }
    }

    /// Checks that there is a ClusterRole of that name: a binding to one that isn't there binds to nothing.
    pub async fn check_role(&self, role: &ObjectName) -> Result<()> {
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        match call(&format!("read ClusterRole {role}"), roles.get_opt(role.as_str())).await? {
            Some(_) => Ok(()),
            None => Err(Failure::new(
                Kind::Usage,
                format!("the cluster has no ClusterRole {role}"),
                "make it first, or give another with --role",
            )),
        }
    }

    /// Sees to the namespace.
    pub async fn ensure_namespace(&self, name: &ObjectName) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name.as_str()}});
        call(&format!("create namespace {name}"), namespaces.patch(name.as_str(), &apply(), &Patch::Apply(&object))).await.map(drop)
    }

    /// Sees to the ServiceAccount, marked as one whose tokens a hub's controller may renew.
    pub async fn ensure_account(&self, namespace: &ObjectName, name: &ObjectName) -> Result<()> {
        let what = format!("create ServiceAccount {namespace}/{name}");
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name.as_str(), "namespace": namespace.as_str(), "labels": {RENEW: "true"}},
        });
        call(&what, self.accounts(namespace).patch(name.as_str(), &apply(), &Patch::Apply(&object))).await.map(drop)
    }

    /// Binds the ServiceAccount to a ClusterRole, and to no other by this program; gives the one it was bound to before.
    pub async fn bind(&self, namespace: &ObjectName, name: &ObjectName, role: &ObjectName) -> Result<Option<String>> {
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let binding = format!("{MANAGER}:{namespace}:{name}");
        let found = call(&format!("read ClusterRoleBinding {binding}"), bindings.get_opt(&binding)).await?;
        let before = found.map(|found| found.role_ref.name).filter(|before| before != role.as_str());
        if before.is_some() {
            // Its role can't be changed.
            call(&format!("delete ClusterRoleBinding {binding}"), bindings.delete(&binding, &DeleteParams::default())).await?;
        }
        let object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": binding, "labels": {"app.kubernetes.io/managed-by": MANAGER}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role.as_str()},
            "subjects": [{"kind": "ServiceAccount", "name": name.as_str(), "namespace": namespace.as_str()}],
        });
        call(&format!("create ClusterRoleBinding {binding}"), bindings.patch(&binding, &apply(), &Patch::Apply(&object))).await?;
        Ok(before)
    }

    /// Lets the ServiceAccount renew its tokens: what it needs for that beside a ClusterRole narrower than `cluster-admin`.
    pub async fn let_renew(&self, namespace: &ObjectName, name: &ObjectName) -> Result<()> {
        let role = format!("{MANAGER}:renew:{name}");
        let labels = json!({"app.kubernetes.io/managed-by": MANAGER});
        let roles: Api<Role> = Api::namespaced(self.client.clone(), namespace.as_str());
        let object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": role, "labels": labels},
            "rules": [
                // reason: whether it is still marked
                {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": [name.as_str()], "verbs": ["get"]},
                // reason: a new token, of itself and nobody else
                {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [name.as_str()], "verbs": ["create"]},
            ],
        });
        call(&format!("create Role {namespace}/{role}"), roles.patch(&role, &apply(), &Patch::Apply(&object))).await?;
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace.as_str());
        let object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": role, "labels": labels},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name.as_str(), "namespace": namespace.as_str()}],
        });
        call(&format!("create RoleBinding {namespace}/{role}"), bindings.patch(&role, &apply(), &Patch::Apply(&object)))
            .await
            .map(drop)
    }

    /// A token of the ServiceAccount, and when it ends: many clusters give less time than is asked for.
    pub async fn token(&self, namespace: &ObjectName, name: &ObjectName, lasting: Duration) -> Result<(SecretString, Timestamp)> {
        let request = token_request(lasting);
        let what = format!("get a token of ServiceAccount {namespace}/{name}");
        let accounts = self.accounts(namespace);
        let answer = call(&what, accounts.create_token_request(name.as_str(), &PostParams::default(), &request)).await?;
        let status = answer
            .status
            .filter(|status| !status.token.is_empty())
            .ok_or_else(|| Failure::new(Kind::Unexpected, format!("can't {what}: the answer holds none"), "try again"))?;
        Ok((status.token.into(), status.expiration_timestamp.0))
    }

    fn accounts(&self, namespace: &ObjectName) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), namespace.as_str())
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

/// Why there is no client. What a command printed and was given may be a secret, so neither is repeated.
fn explain(chosen: &Chosen<'_>, error: &kube::Error) -> Failure {
    let kubectl = "try kubectl with this kubeconfig: it shows what is missing";
    let exec = chosen.user.exec.as_ref().and_then(|exec| exec.command.as_deref());
    let provider = chosen.user.auth_provider.as_ref().map(|provider| provider.name.as_str());
    let refused = |cause: String, hint: &str| Failure::new(Kind::Credentials, cause, hint);
    match (error, provider, exec) {
        (kube::Error::Auth(_), Some(provider), _) => refused(
            format!("the kubeconfig's auth provider {provider:?} can't be used here"),
            "have kubectl make the token: kubectl create token; docs/kubeconfigs.md shows how",
        ),
        (kube::Error::Auth(AuthError::AuthExecStart(why)), None, Some(command)) => {
            refused(format!("the kubeconfig's command {command:?} can't be run: {why}"), kubectl)
        }
        (kube::Error::Auth(AuthError::AuthExecRun { out, .. }), None, Some(command)) => {
            refused(format!("the kubeconfig's command {command:?} failed ({})", out.status), kubectl)
        }
        (kube::Error::Auth(_), None, Some(command)) => {
            refused(format!("the kubeconfig's command {command:?} printed no credentials"), kubectl)
        }
        (kube::Error::Auth(_), None, None) => refused("the kubeconfig's credentials can't be used".into(), kubectl),
        (error, _, _) => Failure::new(Kind::Kubeconfig, format!("the kubeconfig can't be used: {}", root_cause(error)), kubectl),
    }
}

async fn call<T>(what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    let unreachable = |why: String| {
        Failure::new(Kind::ClusterUnreachable, format!("can't {what}: {why}"), "run this where kubectl works with the kubeconfig")
    };
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => Err(Failure::new(
            Kind::Unauthorized,
            "the cluster's API server does not accept the kubeconfig's credentials (401)",
            "they are wrong or have expired: log in again, and try it with kubectl",
        )),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(Failure::new(
            Kind::Forbidden,
            format!("the kubeconfig's credentials may not {what} (403): {}", status.message),
            "use the kubeconfig of an administrator of the cluster",
        )),
        Ok(Err(kube::Error::Api(status))) => {
            Err(Failure::new(Kind::Unexpected, format!("can't {what}: {}", status.message), "try again; if it stays, report it"))
        }
        Ok(Err(error)) => Err(unreachable(root_cause(&error))),
        Err(_) => Err(unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
    }
}
