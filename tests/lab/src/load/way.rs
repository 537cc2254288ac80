//! The hub's two ways to a joined cluster, spoken as client-go speaks them: TLS, verified, and HTTP/2.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Lab;
use crate::site::NAMESPACE;

/// vela-core's `--cluster-gateway-url` names this Service and port.
const SERVICE: &str = "kubevela-cluster-gateway-service";
const PORT: u16 = 9443;
/// The Secret with its `--cluster-gateway-ca-file`.
const AUTHORITY: &str = "kubevela-vela-core-cluster-gateway-tls-v2";
/// vela-core's own ServiceAccount, whose token it sends.
const ACCOUNT: &str = "kubevela-vela-core";
/// client-go's defaults for finding out that a connection is dead.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// A way of the hub to a joined cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Through the hub's API server, as `kubectl` and `vela` go.
    Aggregated,
    /// Straight to cluster-gateway's Service, as vela-core goes.
    Direct,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Aggregated, Self::Direct];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aggregated => "aggregated API",
            Self::Direct => "direct",
        })
    }
}

/// A way, with what is needed to go it.
#[derive(Clone)]
pub struct Road {
    pub way: Way,
    address: SocketAddr,
    /// The server's name, as it is verified.
    host: String,
    tls: Arc<ClientConfig>,
    authorization: Option<HeaderValue>,
}

impl Road {
    pub fn find(lab: &Lab, way: Way) -> Result<Self> {
        // Here and not in `in_namespace`, for whoever makes a TLS configuration outside of it.
        drop(rustls::crypto::ring::default_provider().install_default());
        match way {
            Way::Aggregated => Self::aggregated(lab),
            Way::Direct => Self::direct(lab),
        }
        .with_context(|| format!("the hub's way to its clusters, {way}"))
    }

    fn aggregated(lab: &Lab) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig("hub")?)?;
        let options = KubeConfigOptions::default();
        let loading = Config::from_custom_kubeconfig(kubeconfig, &options);
        let config = tokio::runtime::Builder::new_current_thread().build()?.block_on(loading)?;
        let url = config.cluster_url.clone();
        let host = url.host().context("the hub's kubeconfig names no host")?.to_owned();
        let address = SocketAddr::new(host.parse()?, url.port_u16().unwrap_or(443));
        Ok(Self { way: Way::Aggregated, address, host, tls: tls(&config)?, authorization: None })
    }

    fn direct(lab: &Lab) -> Result<Self> {
        let get = |args: &[&str]| lab.kubectl("hub", &[&["-n", NAMESPACE], args].concat());
        let ip = get(&["get", "service", SERVICE, "-o", "jsonpath={.spec.clusterIP}"])?;
        let authority = get(&["get", "secret", AUTHORITY, "-o", "go-template={{.data.ca | base64decode}}"])?;
        let token = get(&["create", "token", ACCOUNT, "--duration=1h"])?;
        let mut config = Config::new(format!("https://{ip}:{PORT}").parse()?);
        let certificates = CertificateDer::pem_slice_iter(authority.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        config.root_cert = Some(certificates.into_iter().map(|certificate| certificate.to_vec()).collect());
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
        authorization.set_sensitive(true);
        Ok(Self {
            way: Way::Direct,
            address: SocketAddr::new(ip.parse()?, PORT),
            host: SERVICE.to_owned(),
            tls: tls(&config)?,
            authorization: Some(authorization),
        })
    }

    async fn secured(&self, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await.with_context(|| format!("connecting to {}", self.address))?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.clone())?;
        TlsConnector::from(tls).connect(name, tcp).await.context("TLS")
    }

    /// Asks a joined cluster for a session in a pod that is not there, as `kubectl exec` would, and waits until it says so. Sessions are
    /// upgrades of HTTP/1.1, for each of which the gateway makes a connection.
    pub async fn ask_session(&self, cluster: &str) -> Result<()> {
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TokioIo::new(self.secured(Arc::new(tls)).await?);
        let (mut requests, connection) = http1::handshake::<_, Empty<Bytes>>(stream).await.context("HTTP/1.1")?;
        tokio::spawn(connection);
        let session = "/api/v1/namespaces/default/pods/not-there/exec?command=true&stdout=true";
        let mut request = Request::post(format!("{}{session}", path_to(cluster)))
            .header(HOST, format!("{}:{}", self.host, self.address.port()))
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "SPDY/3.1")
            .header("X-Stream-Protocol-Version", "v4.channel.k8s.io");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = requests.send_request(request.body(Empty::new())?).await.context("sending")?;
        let status = response.status();
        let body = response.into_body().collect().await.context("reading")?.to_bytes();
        let body = String::from_utf8_lossy(&body);
        // The pod's name: it is the cluster that has not found it.
        ensure!(status == StatusCode::NOT_FOUND && body.contains("not-there"), "{status}: {}", body.trim());
        Ok(())
    }
}

/// The path on the hub that leads to a joined cluster.
fn path_to(cluster: &str) -> String {
    format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy")
}

fn tls(config: &Config) -> Result<Arc<ClientConfig>> {
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // client-go keeps no sessions either: a fresh connection is a whole handshake.
    tls.resumption = Resumption::disabled();
    Ok(Arc::new(tls))
}

/// A connection to the hub's API server or its gateway; clones share it.
#[derive(Clone, Debug)]
pub struct Connection(SendRequest<Empty<Bytes>>);

/// Opens one.
pub async fn connect(road: &Road) -> Result<Connection> {
    let tls = road.secured(road.tls.clone()).await?;
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(tls))
        .await
        .context("HTTP/2")?;
    // Ends with the last clone of `requests`; how it ended, the requests on it tell.
    tokio::spawn(connection);
    Ok(Connection(requests))
}

/// The connection had ended before the request: not a byte of it was sent, or the server said in its GOAWAY that it would not process it
/// (RFC 9113, 6.8: streams above the last one that it names).
#[derive(Debug)]
pub struct Unsent;

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ended before the request")
    }
}

impl std::error::Error for Unsent {}

impl Connection {
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Asks a joined cluster for its version.
    pub async fn get_version(mut self, road: &Road, cluster: &str) -> Result<()> {
        let (host, port) = (&road.host, road.address.port());
        let url = format!("https://{host}:{port}{}/version", path_to(cluster));
        let mut request = Request::get(url);
        if let Some(authorization) = &road.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        self.0.ready().await.map_err(|_| Unsent)?;
        let response = match self.0.try_send_request(request.body(Empty::new())?).await {
            Ok(response) => response,
            Err(error) if error.message().is_some() => return Err(Unsent.into()),
            Err(error) => {
                let error = error.into_error();
                return if is_left_out(&error) { Err(Unsent.into()) } else { Err(error).context("sending") };
            }
        };
        let status = response.status();
        let body = response.into_body().collect().await.context("reading")?.to_bytes();
        ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body).trim());
        Ok(())
    }
}

/// Whether a server that ends in good order has left the request out, which it tells of streams that it did not take up only.
fn is_left_out(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR))
}
