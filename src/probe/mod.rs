//! Goes the way the hub's gateway will go (node, port, TLS name, credentials) before anything on the hub changes.

mod tls;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::config::AuthInfo;
use kube::{Api, Client, Config};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

pub use tls::certificate_names;

use crate::connect;
use crate::error::{Failure, Kind, Result};
use crate::hub::root_cause;
use crate::model::bounds::LetIn;
use crate::model::kubeconfig::{Access, Credentials, authority_part};
use crate::model::lifetime::{Account, token_request};
use crate::model::names::{DnsName, NAMESPACE};
use crate::model::renewal::RENEW;

/// How long one request of the proof may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// An address by which a region is entered, and the port there of a route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Door {
    /// The node, or what else has the address, for messages.
    pub node: String,
    /// Its address.
    pub ip: IpAddr,
    /// The route's port there.
    pub port: u16,
    /// How long it gets to be open.
    pub patience: Duration,
    /// How long a proxy waits for the upstream to accept: an earlier end of the connection means that it refused.
    pub upstream_patience: Duration,
    /// Which connections the proxies let in.
    pub let_in: LetIn,
}

impl Door {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

/// A business cluster's API, spoken to through one door, as the gateway will.
pub struct Probed {
    client: Client,
}

/// Opens a client through `door` under the name that the gateway will use.
pub fn client(door: &Door, alias: &DnsName, access: &Access) -> Result<Probed> {
    let unexpected = |error: String| Failure::new(Kind::Unexpected, error, "report this");
    let url = format!("https://{}", authority_part(&door.ip.to_string(), door.port));
    let mut config = Config::new(url.parse().map_err(|error: http::uri::InvalidUri| unexpected(error.to_string()))?);
    config.tls_server_name = Some(alias.to_string());
    config.root_cert = Some(CertificateDer::pem_slice_iter(&access.ca).flatten().map(|der| der.to_vec()).collect());
    config.connect_timeout = Some(REQUEST_TIMEOUT);
    config.read_timeout = Some(REQUEST_TIMEOUT);
    config.proxy_url = None;
    config.default_retry = false;
    config.auth_info = auth_info(&access.credentials);
    Ok(Probed { client: connect::client(config).map_err(|error| unexpected(error.to_string()))? })
}

fn auth_info(credentials: &Credentials) -> AuthInfo {
    use base64::Engine as _;
    let base64 = |bytes: &[u8]| base64::prelude::BASE64_STANDARD.encode(bytes);
    match credentials {
        Credentials::Token(token) => AuthInfo { token: Some(token.clone()), ..AuthInfo::default() },
        Credentials::Certificate(certificate, key) => AuthInfo {
            client_certificate_data: Some(base64(certificate)),
            client_key_data: Some(base64(key.expose_secret().as_bytes()).into()),
            ..AuthInfo::default()
        },
    }
}

impl Probed {
    /// Authenticates, and reads who the cluster is: the UID of its namespace `kube-system`.
    pub async fn identity(&self) -> Result<String> {
        answered("read its version", self.client.apiserver_version()).await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let system = answered("read namespace kube-system", namespaces.get("kube-system")).await?;
        system
            .metadata
            .uid
            .ok_or_else(|| Failure::new(Kind::Unexpected, "the cluster's namespace kube-system has no UID", "report this"))
    }

    /// Sees to the namespace that KubeVela works in. Doing it here leaves `vela cluster join` nothing to fail at.
    pub async fn ensure_namespace(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        if answered(&format!("read namespace {NAMESPACE}"), namespaces.get_opt(NAMESPACE)).await?.is_some() {
            return Ok(());
        }
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))
            .map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))?;
        let created = async {
            match namespaces.create(&PostParams::default(), &namespace).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                other => other.map(drop),
            }
        };
        answered(&format!("create namespace {NAMESPACE}"), created).await
    }

    /// Whether tokens of a ServiceAccount, which these credentials are of, may be renewed: it is marked, and they may read that.
    pub async fn may_renew(&self, account: &Account) -> Result<bool> {
        let accounts = self.accounts(account);
        match answered(&format!("read ServiceAccount {account}"), accounts.get_opt(account.name.as_str())).await {
            Ok(found) => {
                let labels = found.and_then(|found| found.metadata.labels).unwrap_or_default();
                Ok(labels.get(RENEW).is_some_and(|value| value == "true"))
            }
            Err(failure) if failure.kind == Kind::Forbidden => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Another token of the ServiceAccount. It may last less than is asked for.
    pub async fn token(&self, account: &Account, lasting: Duration) -> Result<SecretString> {
        let (accounts, request, params) = (self.accounts(account), token_request(lasting), PostParams::default());
        let what = format!("give a token of ServiceAccount {account}");
        let answer = answered(&what, accounts.create_token_request(account.name.as_str(), &params, &request)).await?;
        let token = answer.status.map(|status| status.token).filter(|token| !token.is_empty());
        token
            .map(SecretString::from)
            .ok_or_else(|| Failure::new(Kind::UpstreamSilent, format!("the cluster's API server did not {what}"), "report this"))
    }

    fn accounts(&self, account: &Account) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), account.namespace.as_str())
    }
}

async fn answered<T>(what: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    let silent = |why: String| {
        Failure::new(
            Kind::UpstreamSilent,
            format!("the cluster's API server did not {what}: {why}"),
            "check that it is healthy (and that its route is not full, where it or its region has maxConnections), then try again",
        )
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => Err(Failure::new(
            Kind::Unauthorized,
            "the cluster's API server does not accept the kubeconfig's credentials (401)",
            "they are wrong or have expired: get a new kubeconfig, and try it with kubectl",
        )),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(Failure::new(
            Kind::Forbidden,
            format!("the kubeconfig's credentials may not {what} (403): {}", status.message),
            "KubeVela needs the rights of cluster-admin there: bind its user or ServiceAccount to that role",
        )),
        Ok(Err(kube::Error::Api(status))) => Err(silent(status.message)),
        Ok(Err(error)) => Err(silent(root_cause(&error))),
        Err(_) => Err(silent(format!("nothing within {} s", REQUEST_TIMEOUT.as_secs()))),
    }
}
