//! Other ways into a region than node ports: proxies on their nodes' network, and a load balancer, whose cloud the test plays. In region west,
//! whose one node has room for one proxy of the first kind.

use serde_json::{Value, json};
use xregion_lab::load::Load;
use xregion_lab::site::NAMESPACE;
use xregion_lab::{Bridge, BusinessSpec, Lab, Region};

use super::fixture::{Duration, annotation, eventually, fresh, is_there, joined, lab, region, start, through_gateway};
use super::laptop::{kubeconfig_file, run};
use super::leaves::is_gone;

const REGION: &str = "proxy-west";

fn west(host: u8) -> BusinessSpec {
    BusinessSpec { region: Region::West, ..fresh(host) }
}

/// The region's Service, whose name depends on whether another of the article's was there when it was made.
fn service(lab: &Lab) -> anyhow::Result<Value> {
    let all = ["get", "services", "-n", NAMESPACE, "-l", "app.kubernetes.io/managed-by=xregion", "-o", "json"];
    let all: Value = serde_json::from_str(&lab.kubectl(REGION, &all)?)?;
    let [service] = all["items"].as_array().map(Vec::as_slice).unwrap_or_default() else { anyhow::bail!("{all}") };
    Ok(service.clone())
}

fn leave(spec: &BusinessSpec) {
    let left = run(&["leave", &spec.name]);
    assert!(left.status.success(), "{left:?}");
    is_gone(&spec.name);
    lab().stop_cluster(&spec.name).unwrap();
}

fn join(spec: &BusinessSpec, mode: &str) -> xregion_lab::Output {
    let file = kubeconfig_file(&spec.name);
    run(&["join", &spec.name, "--region", REGION, "--mode", mode, "--kubeconfig", file.path().to_str().unwrap()])
}

#[test]
#[ignore = "make test-faults"]
fn a_region_is_entered_by_its_proxies_on_the_host_network() {
    let lab = joined();
    let spec = west(190);
    start(&spec);
    region(REGION, &json!({"entry": "hostNetwork", "replicas": 1, "healthPort": 7090}));
    let output = join(&spec, "port");
    assert!(output.status.success(), "{output:?}");
    is_there(&spec.name);
    let node = lab.cluster(REGION).unwrap().nodes[0].internal_ip;
    let status = run(&["status", REGION]);
    assert!(status.stdout.contains(&format!("{}  port ", spec.name)), "{}", status.stdout);
    let port: u16 = annotation(&spec.name, "node-port").parse().unwrap();
    assert!((8000..8100).contains(&port), "{port}");
    let second = Duration::from_secs(1);
    lab.dial("hub", (node, port).into(), second).unwrap();
    lab.dial("hub", (node, 7090).into(), second).unwrap();

    let output = join(&spec, "sni");
    assert!(output.status.success(), "{output:?}");
    is_there(&spec.name);
    through_gateway(lab, &spec.name, "/version").unwrap();
    assert_eq!(annotation(&spec.name, "node-port"), "7443", "the proxies' own port is the one that clusters share");

    // Joined at one of its ports, and to be entered by another: nothing goes wrong before it is joined again.
    let before = annotation(&spec.name, "alias");
    region(REGION, &json!({}));
    let status = run(&["status", REGION]);
    assert!(status.stdout.contains("and the hub connects to 7443"), "{}", status.stdout);
    let output = join(&spec, "port");
    assert!(output.status.success(), "{output:?}");
    is_there(&spec.name);
    assert_eq!(annotation(&spec.name, "alias"), before);
    assert!(annotation(&spec.name, "node-port").starts_with("300"), "{}", annotation(&spec.name, "node-port"));
    leave(&spec);
}

#[test]
#[ignore = "make test-faults"]
fn b_region_is_entered_by_its_load_balancer() {
    let lab = joined();
    let (spec, earlier) = (west(191), west(189));
    start(&spec);
    start(&earlier);
    // Joined by a node port, which it is reached by until it is joined again.
    let output = join(&earlier, "port");
    assert!(output.status.success(), "{output:?}");
    let load = Load::start(lab, &[&earlier.name]).unwrap();
    // kube-proxy leads what comes to a load balancer's address to the Service; the node has to be where that address is.
    let address = Bridge::Peer.address(191);
    let node = lab.cluster(REGION).unwrap().nodes[0].place.name.clone();
    lab.add_address(&node, Bridge::Peer, address).unwrap();
    let node_port_of = |spec: &BusinessSpec| annotation(&spec.name, "node-port");
    let before = node_port_of(&earlier);
    region(REGION, &json!({"entry": "loadBalancer", "loadBalancer": {"annotations": {"example.com/internal": "true"}}}));
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        std::thread::scope(|scope| {
            let joining = scope.spawn(|| join(&spec, "port"));
            let made = eventually("the Service of a load balancer", || {
                let service = service(lab)?;
                anyhow::ensure!(service["spec"]["type"] == "LoadBalancer", "{service}");
                Ok(service)
            });
            assert_eq!(made["metadata"]["annotations"]["example.com/internal"], "true");
            let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}).to_string();
            let name = made["metadata"]["name"].as_str().unwrap();
            let patch = ["patch", "service", name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", &status];
            lab.kubectl(REGION, &patch).unwrap();
            let output = joining.join().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(output.stderr.contains("waiting for the load balancer of region proxy-west"), "{output:?}");
        });
        is_there(&spec.name);
        through_gateway(lab, &spec.name, "/version").unwrap();
        let port: u16 = annotation(&spec.name, "node-port").parse().unwrap();
        assert!((8000..8100).contains(&port), "{port}");
        lab.dial("hub", (address, port).into(), Duration::from_secs(1)).unwrap();
        let output = join(&spec, "sni");
        assert!(output.status.success(), "{output:?}");
        is_there(&spec.name);
        assert_eq!(node_port_of(&spec), "7443", "the load balancer has the proxies' own ports");
        lab.dial("hub", (address, 7443).into(), Duration::from_secs(1)).unwrap();
        assert_eq!(node_port_of(&earlier), before);
        let output = join(&earlier, "port");
        assert!(output.status.success(), "{output:?}");
        assert_ne!(node_port_of(&earlier), before);
        is_there(&earlier.name);
        let status = run(&["status", REGION, "-o", "wide"]);
        assert!(status.stdout.contains(&format!("load balancer {address} {address}")), "{}", status.stdout);
        assert!(status.stdout.contains("nothing is out of step"), "{}", status.stdout);
        let outcome = load.stop().unwrap();
        assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
        assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
        leave(&spec);
        leave(&earlier);
    }));
    region(REGION, &json!({}));
    lab.remove_address(&node, Bridge::Peer, address).unwrap();
    checked.unwrap();
}
