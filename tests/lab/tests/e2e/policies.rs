//! NetworkPolicies of proxies, where the network enforces them: packets from and to everywhere.

use std::net::{IpAddr, SocketAddr};
use std::panic::catch_unwind;

use serde_json::{Value, json};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use xregion_lab::build::ensure_network_policies;
use xregion_lab::policies::Enforced;
use xregion_lab::progress::Progress;
use xregion_lab::site::NAMESPACE;

use super::fixture::{Duration, annotation, eventually, fresh, is_there, joined, lab, region, start, through_gateway};
use super::laptop::{kubeconfig_file, run};
use super::leaves::is_gone;

const REGION: &str = "proxy-east";
/// Another machine in the peered network than the hub.
const NEIGHBOUR: &str = "proxy-west-1";
const SECOND: Duration = Duration::from_secs(1);
/// Where nothing of a proxy's has to go.
const ODD_PORT: u16 = 5354;

fn enforced() -> Enforced<'static> {
    let engine = ensure_network_policies(&Progress::new()).unwrap();
    lab().enforce_policies(&engine, REGION).unwrap()
}

fn get(args: &[&str]) -> Value {
    serde_json::from_str(&lab().kubectl(REGION, &[&["get", "-o", "json"], args].concat()).unwrap()).unwrap()
}

/// Where a pod on a node of the region is, of those with a label.
fn address_of(label: &str, namespace: &str, node: &str) -> IpAddr {
    let on_it = format!("spec.nodeName={node}");
    let pods = get(&["pods", "-n", namespace, "-l", label, "--field-selector", &on_it]);
    pods["items"][0]["status"]["podIP"].as_str().unwrap().parse().unwrap()
}

/// Where the region's API server is, behind its Service.
fn api_server() -> IpAddr {
    let slices = get(&["endpointslices", "-n", "default", "-l", "kubernetes.io/service-name=kubernetes"]);
    slices["items"][0]["endpoints"][0]["addresses"][0].as_str().unwrap().parse().unwrap()
}

async fn connects(address: SocketAddr) -> bool {
    timeout(SECOND, TcpStream::connect(address)).await.is_ok_and(|connected| connected.is_ok())
}

/// Which packets get through, by what they are.
fn let_through() -> Vec<(&'static str, bool)> {
    let lab = lab();
    let [other, node] = lab.cluster(REGION).unwrap().nodes.try_into().unwrap_or_else(|nodes| panic!("{nodes:?}"));
    let (other, name) = (other.place.name, node.place.name);
    let route: u16 = annotation("business-a", "node-port").parse().unwrap();
    let own_port = get(&["service", "cross-region-nginx-proxy-svc", "-n", NAMESPACE]);
    let own_port =
        own_port["spec"]["ports"].as_array().unwrap().iter().find(|port| port["targetPort"] == 7443).unwrap()["nodePort"]
            .as_u64()
            .unwrap();
    let own_port = u16::try_from(own_port).unwrap();
    let proxy = address_of("xregion.oam.dev/kind=proxy", NAMESPACE, &name);
    let nginx = lab.processes_in_pods(&name, |command| command.starts_with("nginx: master")).unwrap()[0];
    let from = |place: &str, port: u16| lab.dial(place, (node.internal_ip, port).into(), SECOND).is_ok();
    let out = |address: SocketAddr| lab.in_pod(nginx, || async move { Ok(connects(address).await) }).unwrap();
    let service: IpAddr = get(&["service", "kubernetes", "-n", "default"])["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let at = |cluster: &str, port: u16| SocketAddr::from((lab.cluster(cluster).unwrap().address, port));
    let dns_node = [&name, &other]
        .into_iter()
        .find_map(|node| lab.processes_in_pods(node, |command| command.contains("coredns")).ok().map(|found| found[0]));
    let scrape = lab.in_pod(dns_node.unwrap(), || async move { Ok(connects((proxy, 7080).into()).await) }).unwrap();
    let neighbour = IpAddr::from(lab.cluster("proxy-west").unwrap().nodes[0].internal_ip);
    let odd = lab.in_pod(nginx, || async move {
        let sending = UdpSocket::bind("0.0.0.0:0").await?;
        lab.enter(NEIGHBOUR)?;
        let receiving = UdpSocket::bind((neighbour, ODD_PORT)).await?;
        sending.send_to(b"?", (neighbour, ODD_PORT)).await?;
        Ok(timeout(SECOND, receiving.recv(&mut [0])).await.is_ok())
    });
    vec![
        ("the hub, to a route", from("hub", route)),
        ("the hub, to the region's own port", from("hub", own_port)),
        ("a pod of the region, to metrics", scrape),
        ("a proxy, to an upstream", out(at("business-a", 443))),
        ("a proxy, to its API server", out((api_server(), 6443).into())),
        ("a proxy, to the Service of its API server", out((service, 443).into())),
        ("another, to a route", from(NEIGHBOUR, route)),
        ("another, to the region's own port", from(NEIGHBOUR, own_port)),
        ("another, to metrics", lab.dial(&other, (proxy, 7080).into(), SECOND).is_ok()),
        ("a proxy, to the hub's API server", out(at("hub", 6443))),
        ("a proxy, by UDP where no DNS is", odd.unwrap()),
    ]
}

/// The last so many of them.
fn stopped(want: usize) {
    eventually(&format!("the last {want} stopped"), || {
        let found = let_through();
        let through = found.len() - want;
        let as_wanted = found.iter().enumerate().all(|(place, (_, passed))| *passed == (place < through));
        anyhow::ensure!(as_wanted, "{found:?}");
        Ok(())
    });
}

#[test]
#[ignore = "make test-faults"]
fn a_cluster_joins_and_leaves_where_its_regions_policy_is_enforced() {
    let lab = joined();
    let _enforced = enforced();
    region(REGION, &json!({"networkPolicy": {}}));
    // Whoever may come in and where upstreams are is not said; scrapers are still the region's own pods, and DNS is all that goes by UDP.
    eventually("a policy that is enforced", || {
        let passed: Vec<_> = let_through().into_iter().filter(|(_, passed)| !passed).map(|(what, _)| what).collect();
        anyhow::ensure!(passed == ["another, to metrics", "a proxy, by UDP where no DNS is"], "{passed:?}");
        Ok(())
    });
    let spec = fresh(196);
    start(&spec);
    let file = kubeconfig_file(&spec.name);
    let joining = ["join", &spec.name, "--region", REGION, "--kubeconfig", file.path().to_str().unwrap()];
    let output = run(&joining);
    assert!(output.status.success(), "{output:?}");
    is_there(&spec.name);
    let doctor = run(&["doctor", &spec.name]);
    assert!(doctor.status.success(), "{doctor:?}");
    // New proxies, which have to find their API server, DNS and upstreams first.
    lab.kubectl(REGION, &["rollout", "restart", "deployment", "xregion-proxy", "-n", NAMESPACE]).unwrap();
    lab.kubectl(REGION, &["rollout", "status", "deployment", "xregion-proxy", "-n", NAMESPACE, "--timeout=120s"]).unwrap();
    through_gateway(lab, &spec.name, "/version").unwrap();
    let left = run(&["leave", &spec.name]);
    assert!(left.status.success(), "{left:?}");
    is_gone(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
    region(REGION, &json!({}));
}

#[test]
#[ignore = "make test-faults"]
fn b_policy_lets_through_what_its_region_names_and_nothing_else() {
    let lab = joined();
    let hub = lab.cluster("hub").unwrap().address.to_string();
    let upstreams = format!("{}/32", lab.cluster("business-a").unwrap().address);
    let named = json!({
        "networkPolicy": {"apiServer": [format!("{}/32", api_server())]},
        "sourceRanges": [hub],
        "upstreams": {"allow": [upstreams]},
    });
    let checked = catch_unwind(|| {
        region(REGION, &named);
        // What the agent enforces by itself ends a connection, and leaves none unanswered.
        stopped(0);
        let enforced = enforced();
        stopped(5);
        is_there("business-a");
        enforced
    });
    region(REGION, &json!({}));
    let enforced = checked.unwrap();
    stopped(0);
    drop(enforced);
}
