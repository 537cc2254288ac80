//! Who may come in: source ranges of routes and regions, as packets from several addresses of the peered network meet them.

use std::path::Path;

use futures::future::try_join_all;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use xregion_lab::site::NAMESPACE;

use super::fixture::{Duration, annotation, eventually, joined, lab, region, through_gateway};
use super::laptop::{kubeconfig_file, run};

/// The hub's node and another machine in the peered network.
const HUB: &str = "hub";
const NEIGHBOUR: &str = "proxy-west-1";

/// Whether a cluster's API answers over its route, asked from a place over each node of region east.
fn answers(place: &str, cluster: &str, kubeconfig: &Path) -> Vec<bool> {
    let nodes = lab().cluster("proxy-east").unwrap().nodes;
    let name = format!("--tls-server-name={}", annotation(cluster, "alias"));
    let (config, port) = (format!("--kubeconfig={}", kubeconfig.display()), annotation(cluster, "node-port"));
    let ask = |node: &xregion_lab::topology::Node| {
        let server = format!("--server=https://{}:{port}", node.internal_ip);
        let args = ["kubectl", &config, &server, &name, "--request-timeout=5s", "get", "--raw", "/version"];
        lab().run(place, &args).unwrap().status.success()
    };
    nodes.iter().map(ask).collect()
}

/// Joins `business-a` again, with these options.
fn rejoin(kubeconfig: &Path, more: &[&str]) -> xregion_lab::Output {
    let kubeconfig = kubeconfig.to_str().unwrap();
    run(&[&["join", "business-a", "--region", "proxy-east", "--kubeconfig", kubeconfig, "--label", "region=east"], more].concat())
}

#[test]
#[ignore = "make test-faults"]
fn a_route_lets_in_whom_it_names_and_is_not_bent_to_shut_the_hub_out() {
    let lab = joined();
    let file = kubeconfig_file("business-a");
    let (port, hub) = (annotation("business-a", "node-port"), format!("{}/32", lab.cluster("hub").unwrap().address));
    assert_eq!(answers(NEIGHBOUR, "business-a", file.path()), [true, true], "nobody has said who may come in");

    let output = rejoin(file.path(), &["--source-range", &hub]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(answers(HUB, "business-a", file.path()), [true, true]);
    assert_eq!(answers(NEIGHBOUR, "business-a", file.path()), [false, false]);
    assert_eq!((annotation("business-a", "source-ranges"), annotation("business-a", "node-port")), (hub.clone(), port.clone()));

    let output = rejoin(file.path(), &["--source-range", "192.0.2.0/24"]);
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    assert!(output.stderr.contains("they let connections in only from 192.0.2.0/24"), "{output:?}");
    assert_eq!(annotation("business-a", "source-ranges"), hub, "nothing changed");
    assert_eq!(answers(HUB, "business-a", file.path()), [true, true]);
    through_gateway(lab, "business-a", "/version").unwrap();

    let output = rejoin(file.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(answers(NEIGHBOUR, "business-a", file.path()), [true, true]);
    assert_eq!((annotation("business-a", "source-ranges"), annotation("business-a", "node-port")), (String::new(), port));
}

/// How many of nine connections to a cluster's route, made from the hub over one node, are open for a second.
fn carried(cluster: &str) -> usize {
    let node = lab().cluster("proxy-east").unwrap().nodes[0].internal_ip;
    let port: u16 = annotation(cluster, "node-port").parse().unwrap();
    lab()
        .in_namespace(HUB, || async {
            let connections = (0..9).map(|_| async {
                let mut connection = TcpStream::connect((node, port)).await?;
                let closed = timeout(Duration::from_secs(1), connection.read(&mut [0])).await;
                anyhow::Ok(closed.is_err())
            });
            Ok(try_join_all(connections).await?.into_iter().filter(|open| *open).count())
        })
        .unwrap()
}

#[test]
#[ignore = "make test-faults"]
fn d_route_carries_no_more_connections_than_its_cluster_may_have() {
    let lab = joined();
    let file = kubeconfig_file("business-a");
    let port = annotation("business-a", "node-port");
    assert_eq!(carried("business-a"), 9, "nobody has set a limit");
    let output = rejoin(file.path(), &["--max-connections", "5"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((annotation("business-a", "max-connections"), annotation("business-a", "node-port")), ("5".to_owned(), port));
    // The gateway may have one or two of them.
    let open = carried("business-a");
    assert!((2..=5).contains(&open), "{open} are open");
    through_gateway(lab, "business-a", "/version").unwrap();
    let output = rejoin(file.path(), &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(carried("business-a"), 9);
}

fn policy() -> String {
    let policy =
        ["get", "service", "cross-region-nginx-proxy-svc", "-n", NAMESPACE, "-o", "jsonpath={.spec.externalTrafficPolicy}"];
    lab().kubectl("proxy-east", &policy).unwrap()
}

/// What the traffic policy does to source addresses, and so to source ranges.
#[test]
#[ignore = "make test-faults"]
fn b_region_s_ranges_see_the_hub_where_traffic_stays_local_and_its_own_nodes_where_it_doesn_t() {
    let lab = joined();
    let file = kubeconfig_file("business-a");
    let hub = lab.cluster("hub").unwrap().address.to_string();
    assert_eq!(policy(), "Local");
    let let_in = |place: &'static str, want: [bool; 2]| {
        eventually(&format!("{want:?} from {place}"), || {
            let found = answers(place, "business-a", file.path());
            anyhow::ensure!(found == want, "{found:?}");
            Ok(())
        });
    };
    region("proxy-east", &json!({"sourceRanges": [hub]}));
    let_in(NEIGHBOUR, [false, false]);
    let_in(HUB, [true, true]);
    region("proxy-east", &json!({}));
    let_in(NEIGHBOUR, [true, true]);

    // The Service is brought to it by the next join, which changes nothing else.
    region("proxy-east", &json!({"externalTrafficPolicy": "Cluster"}));
    let output = rejoin(file.path(), &[]);
    assert!(output.status.success() && policy() == "Cluster", "{output:?}");
    let nodes: Vec<String> = lab.cluster("proxy-east").unwrap().nodes.iter().map(|node| node.internal_ip.to_string()).collect();
    region("proxy-east", &json!({"externalTrafficPolicy": "Cluster", "sourceRanges": [hub]}));
    let refused = || {
        let all = |place| (0..8).flat_map(|_| answers(place, "business-a", file.path())).collect::<Vec<_>>();
        anyhow::ensure!(all(HUB).contains(&false), "the hub always gets in");
        Ok(())
    };
    eventually("a connection of the hub's that goes on under a node's address", refused);
    println!("with Cluster, ranges of the hub's address shut it out where a connection goes on to another of the nodes {nodes:?}");

    region("proxy-east", &json!({}));
    let output = rejoin(file.path(), &[]);
    assert!(output.status.success() && policy() == "Local", "{output:?}");
    let_in(HUB, [true, true]);
}

/// A node without a proxy drops what enters by it, so the hub does not.
#[test]
#[ignore = "make test-faults"]
fn c_node_without_a_proxy_is_not_entered_by() {
    let lab = joined();
    let file = kubeconfig_file("business-a");
    let node = &lab.cluster("proxy-east").unwrap().nodes[1].place.name;
    lab.kubectl("proxy-east", &["cordon", node]).unwrap();
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy", "-o"];
    let path = format!("jsonpath={{.items[?(@.spec.nodeName==\"{node}\")].metadata.name}}");
    let there = || lab.kubectl("proxy-east", &[&pods[..], &[&path]].concat());
    for pod in there().unwrap().split_whitespace() {
        lab.kubectl("proxy-east", &["delete", "pod", "-n", NAMESPACE, pod, "--wait=false"]).unwrap();
    }
    eventually("the proxies on one node", || {
        let status = run(&["status", "proxy-east", "-o", "wide"]);
        anyhow::ensure!(status.stdout.contains("2/2 proxies ready, 1/2 nodes ready"), "{}", status.stdout);
        anyhow::ensure!(status.stdout.contains("(no ready proxy on it)"), "{}", status.stdout);
        Ok(())
    });
    eventually("a node that drops", || {
        let found = answers(HUB, "business-a", file.path());
        anyhow::ensure!(found == [true, false], "{found:?}");
        Ok(())
    });
    let output = rejoin(file.path(), &[]);
    assert!(output.status.success(), "its proof goes over the other node: {output:?}");
    through_gateway(lab, "business-a", "/version").unwrap();

    lab.kubectl("proxy-east", &["uncordon", node]).unwrap();
    lab.kubectl("proxy-east", &["rollout", "restart", "deployment", "xregion-proxy", "-n", NAMESPACE]).unwrap();
    lab.kubectl("proxy-east", &["rollout", "status", "deployment", "xregion-proxy", "-n", NAMESPACE, "--timeout=120s"]).unwrap();
    eventually("a proxy on each node again", || {
        let found = answers(HUB, "business-a", file.path());
        anyhow::ensure!(found == [true, true], "{found:?}");
        Ok(())
    });
}
