//! The one client that goes every way to an API server: TLS, verified, and HTTP/2, as client-go speaks them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use xregion_lab::Lab;
use xregion_lab::topology::Bridge;

/// client-go's windows: a stream's, and a connection's.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
/// How long a connection or an answer to one small request may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// An API server as its kubeconfig names it.
#[derive(Clone)]
pub struct Server {
    host: String,
    tls: Arc<ClientConfig>,
}

/// How its network is entered.
#[derive(Clone)]
pub enum Door {
    /// At this address.
    Tcp(SocketAddr),
    /// Through a proxy that takes `CONNECT` on this socket, to this address.
    Connect(PathBuf, SocketAddr),
}

impl Door {
    /// The route of a cluster of region east, at the node `entry`: what the hub's gateway connects to.
    pub fn of_route(lab: &Lab, entry: &str, cluster: &str) -> Result<Self> {
        let node_port: u16 = lab.port(cluster)?["nodePort"].as_u64().context("the route has no node port")?.try_into()?;
        let entry = lab.place(entry)?.address_on(Bridge::Peer).context("the node is not on the peering")?;
        Ok(Self::Tcp(SocketAddr::new(entry.into(), node_port)))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Server {
    /// The one of this kubeconfig.
    pub async fn of(kubeconfig: &str) -> Result<Self> {
        let config = Config::from_custom_kubeconfig(Kubeconfig::from_yaml(kubeconfig)?, &KubeConfigOptions::default()).await?;
        let host = config.cluster_url.host().context("the kubeconfig names no host")?.to_ascii_lowercase();
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        // client-go keeps no sessions either: a fresh connection is a whole handshake.
        tls.resumption = Resumption::disabled();
        Ok(Self { host, tls: Arc::new(tls) })
    }

    /// Opens a connection.
    pub async fn connect(&self, door: &Door) -> Result<Connection> {
        timeout(PATIENCE, self.connected(door)).await.context("no connection in time")?
    }

    async fn connected(&self, door: &Door) -> Result<Connection> {
        let name = ServerName::try_from(self.host.clone())?;
        // One type whatever the way, so that none costs less.
        let tls = TlsConnector::from(self.tls.clone()).connect(name, open(door).await?).await.context("TLS")?;
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(tls))
            .await
            .context("HTTP/2")?;
        // Ends with the last clone of `requests`; how it ended, the requests on it tell.
        tokio::spawn(connection);
        Ok(Connection { requests, host: self.host.clone() })
    }
}

async fn open(door: &Door) -> Result<Box<dyn Stream>> {
    match door {
        Door::Tcp(address) => {
            let tcp = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
            tcp.set_nodelay(true)?;
            Ok(Box::new(tcp))
        }
        Door::Connect(socket, address) => {
            let mut proxy = UnixStream::connect(socket).await.with_context(|| format!("connecting to {}", socket.display()))?;
            proxy.write_all(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
            let mut answer = Vec::new();
            // The server speaks first on no connection, so what is read ends with the answer's head.
            while !answer.ends_with(b"\r\n\r\n") {
                ensure!(proxy.read_buf(&mut answer).await? > 0, "the proxy has closed the connection");
            }
            let answer = String::from_utf8_lossy(&answer);
            ensure!(answer.split(' ').nth(1) == Some("200"), "the proxy says {}", answer.trim());
            Ok(Box::new(proxy))
        }
    }
}

/// A connection to an API server; it is open as long as this is.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Empty<Bytes>>,
    host: String,
}

impl Connection {
    /// Sends a GET; gives the answer, which is 200, once its head has come.
    pub async fn get(&mut self, path: &str) -> Result<Response<Incoming>> {
        let request = Request::get(format!("https://{}{path}", self.host)).body(Empty::new())?;
        self.requests.ready().await.context("the connection has ended")?;
        let response = self.requests.send_request(request).await.context("sending")?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "GET {path}: {status}");
        Ok(response)
    }

    /// Reads an answer to its end; gives its length in bytes.
    pub async fn read(&mut self, path: &str) -> Result<usize> {
        let mut body = self.get(path).await?.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.context("reading")?.data_ref().map_or(0, Bytes::len);
        }
        Ok(length)
    }

    /// One small request.
    pub async fn version(&mut self) -> Result<()> {
        timeout(PATIENCE, self.read("/version")).await.context("no answer in time")?.map(drop)
    }
}
