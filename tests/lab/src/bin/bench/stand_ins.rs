//! What stands in at scale for what a machine can't hold a thousand of: API servers of business clusters, which share a process and
//! answer the few calls that a join and the hub make; and the proxies of regions that have no nodes.
//!
//! Real are the hub, KubeVela, the gateway, region east with its two proxies, and the API servers of all other regions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use xregion_lab::base64;
use xregion_lab::dns::LASTING;
use xregion_lab::pki::{Authority, Validity};
use xregion_lab::site::NAMESPACE;

/// Where the API servers of region east are, on its bridge.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 80, 1, 199);
/// The place they are at: its region's resolver's.
pub const PLACE: &str = "dns-east";
/// How often a region's stand-in proxy looks for routes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A business cluster that is a name and a certificate.
#[derive(Clone, Debug)]
pub struct Business {
    /// Which one it is.
    pub number: usize,
    /// Its name on the hub.
    pub name: String,
    /// Its host, lower-case.
    pub host: String,
}

impl Business {
    /// The `number`th, with a host name as long as EKS gives.
    pub fn new(number: usize) -> Self {
        let name = format!("scale-{number:04}");
        let id: String = Sha256::digest(&name).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { host: format!("{id}.gr7{LASTING}"), name, number }
    }

    /// What its administrators bring: the host with capitals, as EKS has it.
    pub fn kubeconfig(&self, authority: &Authority) -> Result<String> {
        let (id, rest) = self.host.split_once('.').context("a host without dots")?;
        let server = format!("https://{}.{rest}", id.to_ascii_uppercase());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority-data": base64(authority.certificate())?}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
            "users": [{"name": "u", "user": {"token": "stand-in"}}],
        });
        Ok(config.to_string())
    }
}

/// The TLS of all of them: each name with a certificate of its own.
pub fn tls(authority: &Authority, clusters: &[Business]) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let mut certificates = ResolvesServerCertUsingSni::new();
    for Business { host, .. } in clusters {
        let pair = authority.server("kube-apiserver", std::slice::from_ref(host), Validity::Now)?;
        let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
        certificates.add(host, CertifiedKey::from_der(chain, key, &provider)?)?;
    }
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_cert_resolver(Arc::new(certificates))))
}

/// Listens at the place where the thread is; answers until the runtime ends.
pub async fn serve(address: SocketAddr, tls: Arc<ServerConfig>) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(tls.clone());
            // A client that goes away is no concern of the others.
            tokio::spawn(async move { speak(acceptor, tcp).await.ok() });
        }
    });
    Ok(())
}

async fn speak(acceptor: TlsAcceptor, tcp: TcpStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await?;
    let name = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
    let service = service_fn(|request| {
        let name = name.clone();
        async move { Ok::<_, Infallible>(answer(&name, request).await) }
    });
    Ok(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await?)
}

async fn answer(name: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/version") => (StatusCode::OK, json!({"major": "1", "minor": "34", "gitVersion": "v1.34.4"})),
        (&Method::GET, "/api/v1/namespaces/kube-system") => (StatusCode::OK, namespace("kube-system", name)),
        (&Method::POST, "/api/v1/namespaces") => {
            drop(request.into_body().collect().await);
            (StatusCode::CREATED, namespace(NAMESPACE, name))
        }
        _ => {
            let message = "a stand-in knows no more than a join asks";
            (
                StatusCode::NOT_FOUND,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": message}),
            )
        }
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Each cluster's own, so that none is taken for another.
fn namespace(called: &str, cluster: &str) -> Value {
    let hex: String = Sha256::digest(format!("{cluster} {called}")).iter().map(|byte| format!("{byte:02x}")).collect();
    let uid = format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32]);
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": called, "uid": uid}, "status": {"phase": "Active"}})
}

/// Puts what a region is read by into an API server without nodes: a node, a ready proxy, and region east's settings.
pub async fn furnish(client: &Client, address: Ipv4Addr, settings: &Value) -> Result<()> {
    let condition = json!([{"type": "Ready", "status": "True"}]);
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}});
    let params = PatchParams::apply("bench").force();
    nodes.patch("node", &params, &Patch::Apply(&node)).await?;
    let addresses = json!([{"type": "InternalIP", "address": address.to_string()}]);
    let status = json!({"apiVersion": "v1", "kind": "Node", "status": {"addresses": addresses, "conditions": condition}});
    nodes.patch_status("node", &params, &Patch::Apply(&status)).await?;

    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    maps.patch("xregion-region", &params, &Patch::Apply(settings)).await?;

    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let labels = json!({"xregion.oam.dev/kind": "proxy"});
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    // There is no controller that would make it, and no pod without.
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    accounts.patch("default", &params, &Patch::Apply(&account)).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": PROXY, "labels": labels},
        "spec": {"nodeName": "node", "automountServiceAccountToken": false, "containers": [{"name": "proxy", "image": "none"}]},
    });
    pods.patch(PROXY, &params, &Patch::Apply(&pod)).await?;
    let status = json!({"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Running", "conditions": condition}});
    pods.patch_status(PROXY, &params, &Patch::Apply(&status)).await?;
    Ok(())
}

const PROXY: &str = "stand-in";

/// Says of every route of a region that it is served, as its agent would, until the runtime ends.
pub fn report_routes(client: Client) {
    tokio::spawn(async move {
        let mut told = String::new();
        loop {
            // A region that does not answer for a moment is asked again.
            if let Ok(report) = report(&client).await
                && report != told
                && tell(&client, &report).await.is_ok()
            {
                told = report;
            }
            sleep(LOOK_EVERY).await;
        }
    });
}

/// What the agent reports: of each route the digest of what nginx depends on, and the ConfigMap's UID.
async fn report(client: &Client) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let routes = maps.list(&ListParams::default().labels("xregion.oam.dev/kind=route")).await?;
    let applied = routes.items.into_iter().filter_map(|route| {
        let (data, metadata) = (route.data?, route.metadata);
        let digest = Sha256::digest(format!("port\n{}\n{}\n{}", data.get("host")?, data.get("port")?, data.get("listen")?));
        let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Some((metadata.name?, json!({"digest": format!("{digest}@{}", metadata.uid?)})))
    });
    Ok(serde_json::to_string(&applied.collect::<BTreeMap<_, _>>())?)
}

async fn tell(client: &Client, report: &str) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": PROXY, "labels": {"xregion.oam.dev/kind": "proxy"}, "annotations": {"xregion.oam.dev/applied": report},
        },
    });
    leases.patch(PROXY, &PatchParams::apply("bench").force(), &Patch::Apply(&lease)).await?;
    Ok(())
}
