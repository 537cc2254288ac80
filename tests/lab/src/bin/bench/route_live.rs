//! How soon a route serves: from its ConfigMap written, as a join writes it, to TLS through every node's port.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams};
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use xregion_lab::Lab;
use xregion_lab::site::NAMESPACE;

/// The proxy cluster of the region.
const PROXY: &str = "proxy-east";
pub const SERVICE: &str = "cross-region-nginx-proxy-svc";
const ROUNDS: u16 = 12;
/// Beyond those the joins of this run take; node port and port in the pod go together.
const FIRST_NODE_PORT: u16 = 30060;
const FIRST_LISTEN: u16 = 8060;
/// A node's port leads to any of the proxies: the route serves when so many handshakes in a row succeed.
const IN_A_ROW: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);
const HANDSHAKE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes routes to a business cluster, one after another; seconds until each served.
pub fn measure(lab: &Lab, business: &str) -> Result<Vec<f64>> {
    one_after_another(lab, &lab.user_kubeconfig(business)?, 0..ROUNDS)
}

/// Makes routes with these numbers to the API server of a kubeconfig, one after another; seconds until each served. Their ports stay.
pub fn one_after_another(lab: &Lab, kubeconfig: &str, numbers: Range<u16>) -> Result<Vec<f64>> {
    let (hub, hub_file) = (hub_uid(lab)?, lab.kubeconfig("hub")?);
    let nodes = lab.cluster(PROXY)?.nodes.iter().map(|node| node.internal_ip).collect::<Vec<_>>();
    lab.in_namespace("hub", || async move {
        let config = load(Kubeconfig::from_yaml(kubeconfig)?).await?;
        let host = config.cluster_url.host().context("the kubeconfig names no host")?.to_ascii_lowercase();
        let tls = Arc::new(config.rustls_client_config()?);
        let routes: Vec<Route> = numbers.map(|number| Route::new(number, &hub, &host)).collect();
        add_ports(lab, &routes)?;
        let maps: Api<ConfigMap> = Api::namespaced(region_client(&hub_file).await?, NAMESPACE);
        let mut samples = Vec::new();
        for route in &routes {
            let live = route.time(&maps, &nodes, &tls).await;
            // Whatever came of it, the next round starts without it.
            let removed = maps.delete(&route.name, &DeleteParams::default()).await;
            samples.push(live.with_context(|| route.name.clone())?);
            removed?;
        }
        Ok(samples)
    })
}

/// The hub's identity, which routes carry.
pub fn hub_uid(lab: &Lab) -> Result<String> {
    lab.kubectl("hub", &["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"])
}

/// A client of the region's API through the hub's gateway, as joins have it.
pub async fn region_client(hub: &Path) -> Result<Client> {
    let mut config = load(Kubeconfig::read_from(hub)?).await?;
    let base = format!("{}apis/cluster.core.oam.dev/v1alpha1/clustergateways/{PROXY}/proxy", config.cluster_url);
    config.cluster_url = base.parse()?;
    Ok(Client::try_from(config)?)
}

/// What a kubeconfig says, without the machine's proxies.
pub async fn load(kubeconfig: Kubeconfig) -> Result<Config> {
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(config)
}

/// The ports are there beforehand: it's the route that is timed.
fn add_ports(lab: &Lab, routes: &[Route]) -> Result<()> {
    let add = |route: &Route| {
        json!({"op": "add", "path": "/spec/ports/-", "value": {
            "name": route.port_name, "port": route.listen, "targetPort": route.listen, "nodePort": route.node_port,
        }})
    };
    let patch = json!(routes.iter().map(add).collect::<Vec<_>>()).to_string();
    lab.kubectl(PROXY, &["-n", NAMESPACE, "patch", "service", SERVICE, "--type=json", "-p", &patch])?;
    Ok(())
}

/// A route and its port, as a join writes them.
pub struct Route {
    pub name: String,
    pub port_name: String,
    pub listen: u16,
    pub node_port: u16,
    host: String,
    pub map: ConfigMap,
}

impl Route {
    /// The `number`th of those that are no cluster's, to this host at port 443.
    pub fn new(number: u16, hub: &str, host: &str) -> Self {
        let hub8: String = Sha256::digest(hub).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let cluster = format!("bench-route-{number}");
        let (name, listen) = (format!("xregion-route-{cluster}-{hub8}"), FIRST_LISTEN + number);
        let labels = [
            ("app.kubernetes.io/managed-by", "xregion"),
            ("xregion.oam.dev/kind", "route"),
            ("xregion.oam.dev/hub", &hub8),
            ("xregion.oam.dev/cluster", &cluster),
        ];
        let listening = listen.to_string();
        let data = [
            ("schema", "1"),
            ("hub", hub),
            ("cluster", &cluster),
            ("host", host),
            ("port", "443"),
            ("listen", &listening),
            ("mode", "port"),
        ];
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let mut map = ConfigMap { data: Some(data.map(owned).into()), ..ConfigMap::default() };
        map.metadata.name = Some(name.clone());
        map.metadata.labels = Some(labels.map(owned).into());
        let port_name = format!("{cluster}-{hub8}");
        Self { name, port_name, listen, node_port: FIRST_NODE_PORT + number, host: host.to_owned(), map }
    }

    async fn time(&self, maps: &Api<ConfigMap>, nodes: &[Ipv4Addr], tls: &Arc<ClientConfig>) -> Result<f64> {
        let doors = nodes.iter().map(|&ip| SocketAddr::new(ip.into(), self.node_port)).collect::<Vec<_>>();
        for &door in &doors {
            ensure!(self.shake(door, tls).await.is_err(), "{door} leads somewhere before there is a route");
        }
        maps.create(&PostParams::default(), &self.map).await?;
        let written = Instant::now();
        let live = futures::future::try_join_all(doors.iter().map(|&door| self.live(door, tls, written))).await?;
        Ok(live.into_iter().max().unwrap_or_default().as_secs_f64())
    }

    /// The time after which no handshake failed.
    async fn live(&self, door: SocketAddr, tls: &Arc<ClientConfig>, written: Instant) -> Result<Duration> {
        let (mut since, mut row) = (Duration::ZERO, 0);
        while row < IN_A_ROW {
            match self.shake(door, tls).await {
                Ok(()) => row += 1,
                Err(error) if written.elapsed() > PATIENCE => {
                    return Err(error.context(format!("{door} does not serve within {} s", PATIENCE.as_secs())));
                }
                Err(_) => row = 0,
            }
            if row <= 1 {
                since = written.elapsed();
            }
            sleep(PAUSE).await;
        }
        Ok(since)
    }

    async fn shake(&self, door: SocketAddr, tls: &Arc<ClientConfig>) -> Result<()> {
        let name = ServerName::try_from(self.host.clone())?;
        let shaking = async { TlsConnector::from(tls.clone()).connect(name, TcpStream::connect(door).await?).await };
        timeout(HANDSHAKE, shaking).await??;
        Ok(())
    }
}
