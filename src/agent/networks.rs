//! The proxy cluster's own networks, to which no route may lead.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, ListParams};
use kube::{Client, Error};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How often they are read again, and how soon after a failure.
const REFRESH: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);
/// How long a read may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps `networks` up to date; a failure leaves the last ones in use.
pub(super) async fn keep(client: Client, networks: watch::Sender<Option<Vec<IpNet>>>) {
    while !networks.is_closed() {
        let read = timeout(PATIENCE, read(&client)).await.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer from the API server")));
        let pause = match read {
            Ok(found) => {
                networks.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&found);
                    if changed {
                        tracing::info!(networks = found.len(), "this cluster's own networks are known");
                        *known = Some(found);
                    }
                    changed
                });
                REFRESH
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "can't read this cluster's networks; trying again");
                RETRY
            }
        };
        sleep(pause).await;
    }
}

async fn read(client: &Client) -> anyhow::Result<Vec<IpNet>> {
    let list = ListParams::default();
    let nodes = Api::<Node>::all(client.clone());
    let service_cidrs = Api::<ServiceCIDR>::all(client.clone());
    let nodes = nodes.list(&list).await.context("can't list nodes")?;
    let mut networks: BTreeSet<IpNet> = nodes.iter().flat_map(of_node).collect();
    match service_cidrs.list(&list).await {
        Ok(all) => networks.extend(all.iter().flat_map(of_service_cidr)),
        // Clusters before 1.33 don't serve them: at least the address every pod can reach is known.
        Err(Error::Api(status)) if status.code == 404 => {
            networks.extend(
                std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse::<IpAddr>().ok()).map(IpNet::from),
            );
        }
        Err(error) => return Err(error).context("can't list servicecidrs"),
    }
    Ok(networks.into_iter().collect())
}

/// A node's addresses, and the range of its pods where the cluster gives nodes ranges.
fn of_node(node: &Node) -> Vec<IpNet> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let addresses = addresses.filter_map(|address| address.address.parse::<IpAddr>().ok()).map(IpNet::from);
    let ranges = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    addresses.chain(ranges.filter_map(|range| range.parse().ok())).collect()
}

fn of_service_cidr(cidr: &ServiceCIDR) -> Vec<IpNet> {
    cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).filter_map(|range| range.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_nodes_and_services() {
        let node: Node = serde_json::from_str(
            r#"{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:1::/64"]},
                "status":{"addresses":[{"type":"InternalIP","address":"10.80.0.21"},{"type":"ExternalIP","address":"2001:db8::21"},
                                       {"type":"Hostname","address":"east-1"}]}}"#,
        )
        .unwrap();
        let texts: BTreeSet<_> = of_node(&node).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.1.0/24", "10.80.0.21/32", "2001:db8::21/128", "fd00:1::/64"].map(str::to_owned).into());
        assert_eq!(of_node(&Node::default()), []);

        let cidr: ServiceCIDR = serde_json::from_str(r#"{"spec":{"cidrs":["10.96.0.0/16"]}}"#).unwrap();
        assert_eq!(of_service_cidr(&cidr), ["10.96.0.0/16".parse::<IpNet>().unwrap()]);
    }
}
