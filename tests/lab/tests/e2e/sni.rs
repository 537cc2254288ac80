//! Clusters that share a region's own node port, told apart by TLS name.

use std::net::SocketAddr;

use serde_json::{Value, json};
use xregion_lab::load::Load;
use xregion_lab::site::{self, NAMESPACE};
use xregion_lab::{BusinessSpec, Lab, Region};

use super::changes::routes;
use super::fixture::{Controller, Duration, annotation, bring, eventually, fresh, is_there, join_all, joined, lab, properties};
use super::laptop::run;
use super::leaves::is_gone;

const BOUND: Duration = Duration::from_secs(8);
const SNI: &str = "xregion-sni";

fn host(spec: &BusinessSpec) -> String {
    format!("{}.idc.example", spec.name)
}

/// A port of region east's Service.
fn port(name: &str) -> anyhow::Result<Value> {
    let service =
        lab().kubectl("proxy-east", &["get", "service", "cross-region-nginx-proxy-svc", "-n", NAMESPACE, "-o", "json"])?;
    let service: Value = serde_json::from_str(&service)?;
    let found = service["spec"]["ports"].as_array().and_then(|ports| ports.iter().find(|port| port["name"] == name));
    Ok(found.cloned().unwrap_or_default())
}

/// The doors of region east: the region's own port, on each of its nodes.
fn doors(lab: &Lab) -> Vec<SocketAddr> {
    let port: u16 = port(SNI).unwrap()["nodePort"].to_string().parse().unwrap();
    lab.cluster("proxy-east").unwrap().nodes.iter().map(|node| (node.internal_ip, port).into()).collect()
}

/// Whether those who ask the region's own port for a name are led anywhere: by every node alike.
fn is_led(lab: &Lab, name: &str) -> bool {
    let led: Vec<bool> = doors(lab).into_iter().map(|door| lab.answers_to("hub", door, name, BOUND).unwrap()).collect();
    assert!(led.iter().all(|one| *one == led[0]), "{name}: {led:?}");
    led[0]
}

/// Waits until a name leads nowhere: proxies take a moment to hear of a route that is gone.
fn await_closed(lab: &Lab, name: &str) {
    eventually("the name's end", || {
        anyhow::ensure!(
            !doors(lab).into_iter().any(|door| lab.answers_to("hub", door, name, BOUND).unwrap_or(true)),
            "it is led on"
        );
        Ok(())
    });
}

/// Joins from a shell, with a kubeconfig of this text.
fn join(cluster: &str, text: &str, more: &[&str]) -> xregion_lab::Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    run(&[&["join", cluster, "--region=proxy-east", "--kubeconfig", file.path().to_str().unwrap()], more].concat())
}

fn joins(cluster: &str, text: &str, more: &[&str]) {
    let output = join(cluster, text, more);
    assert!(output.status.success(), "{output:?}");
    is_there(cluster);
}

fn leaves(cluster: &str) {
    assert!(run(&["leave", cluster]).status.success());
    is_gone(cluster);
}

#[test]
#[ignore = "make test-faults"]
fn a_clusters_share_a_port_beside_one_of_their_own_and_an_unknown_name_leads_nowhere() {
    let lab = joined();
    let spec = fresh(186);
    let own = annotation("business-a", "node-port");
    join_all(&[(&spec, json!({"mode": "sni"}))]);
    // A cluster whose server is an address has no name to be told by, unless its kubeconfig gives it one.
    let bare = lab.user_kubeconfig("business-b").unwrap();
    let text = bare.replace("    server: ", "    tls-server-name: business-b-master\n    server: ");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let output = join("business-b", &bare, &["--mode=sni"]);
            assert_eq!(output.status.code(), Some(25), "{output:?}");
            assert!(output.stderr.contains("tells clusters apart by name"), "{output:?}");
        });
        let output = join("with-a-port", &text, &["--mode=sni", "--node-port=30050"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stderr.contains("node port 30050 is asked for together with mode sni"), "{output:?}");
    });
    joins("business-b", &text, &["--mode=sni"]);

    let ports = [&spec.name, "business-b"].map(|cluster| annotation(cluster, "node-port"));
    assert_eq!(ports[0], ports[1]);
    assert_eq!((ports[0].clone(), port(SNI).unwrap()["port"].clone()), (port(SNI).unwrap()["nodePort"].to_string(), json!(7443)));
    assert_eq!(annotation("business-a", "node-port"), own);
    assert_ne!(own, ports[0]);
    is_there("business-a");
    assert!(is_led(lab, &host(&spec)) && is_led(lab, "business-b-master"));
    for stranger in ["unknown.example", "a1b2c3d4e5.gr7.ap-east-1.eks.example", "idc.example", "localhost", "10.80.1.32"] {
        assert!(!is_led(lab, stranger), "{stranger}");
    }
    let status = run(&["status", &spec.name]).stdout;
    assert!(
        status.contains(&format!("node port {} by TLS name", ports[0])) && status.contains("nothing is out of step"),
        "{status}"
    );
    let doctor = run(&["doctor", "business-b"]).stdout;
    assert!(doctor.contains("no link is broken"), "{doctor}");

    leaves(&spec.name);
    await_closed(lab, &host(&spec));
    is_there("business-b");
    joins("business-b", &bare, &[]);
    await_closed(lab, "business-b-master");
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn b_cluster_changes_its_mode_and_its_address_under_its_name_without_a_failed_request() {
    let lab = joined();
    let mut spec = fresh(187);
    spec.names.push("moved.idc.example".to_owned());
    bring(&spec);
    let step = |mode: &str| {
        let application = site::membership("mode", &properties(&spec.name, "proxy-east", "fresh", json!({"mode": mode})));
        lab.vela_up(&application).unwrap();
        lab.await_running("mode").unwrap();
        lab.vela_delete("mode").unwrap();
        is_there(&spec.name);
        assert_eq!(annotation(&spec.name, "mode"), mode);
    };
    step("port");
    let before = annotation(&spec.name, "node-port");
    let load = Load::start(lab, &[&spec.name, "proxy-west"]).unwrap();
    step("sni");
    assert_ne!(annotation(&spec.name, "node-port"), before);
    assert_eq!(routes(lab, "proxy-east", &spec.name).len(), 1);

    // Another address, the same name: for a moment by a port of its own.
    lab.set_address(Region::East, "moved.idc.example", &[lab.cluster(&spec.name).unwrap().address]).unwrap();
    let text = lab.user_kubeconfig(&spec.name).unwrap();
    let name = host(&spec);
    let moved = text.replace(
        &format!("    server: https://{name}"),
        &format!("    tls-server-name: {name}\n    server: https://moved.idc.example"),
    );
    assert_ne!(moved, text);
    joins(&spec.name, &moved, &["--mode=sni"]);
    assert_eq!((annotation(&spec.name, "upstream"), annotation(&spec.name, "alias")), ("moved.idc.example:443".to_owned(), name));
    assert_eq!(routes(lab, "proxy-east", &spec.name).len(), 1);
    step("port");
    let outcome = load.stop().unwrap();
    assert_eq!(routes(lab, "proxy-east", &spec.name).len(), 1);
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    println!("{outcome}");
    leaves(&spec.name);
    lab.stop_cluster(&spec.name).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn c_two_clusters_of_one_name_can_t_share_the_port_and_the_older_one_keeps_it() {
    let lab = joined();
    let specs = [188, 189].map(|host| BusinessSpec {
        server: None,
        names: vec!["same-master".into(), format!("10.80.1.{host}")],
        port: 6443,
        ..fresh(host)
    });
    let text = |spec: &BusinessSpec| {
        let bare = lab.user_kubeconfig(&spec.name).unwrap();
        bare.replace("    server: ", "    tls-server-name: same-master\n    server: ")
    };
    specs.iter().for_each(|spec| drop(lab.start_business(spec).unwrap()));
    joins(&specs[0].name, &text(&specs[0]), &["--mode=sni"]);
    let refused = join(&specs[1].name, &text(&specs[1]), &["--mode=sni"]);
    assert_eq!(refused.status.code(), Some(37), "{refused:?}");
    assert!(refused.stderr.contains("its TLS name same-master belongs to xregion-route-fresh-188-"), "{refused:?}");
    is_gone(&specs[1].name);
    is_there(&specs[0].name);
    joins(&specs[1].name, &text(&specs[1]), &[]);
    is_there(&specs[0].name);

    // And the controller puts both ways back.
    let way = || port(SNI);
    let before = way().unwrap();
    let controller = Controller::enable();
    lab.lose_route(&specs[0].name).unwrap();
    lab.lose_port("xregion").unwrap();
    eventually("the region's own port as before", || {
        let now = way()?;
        anyhow::ensure!(now == before, "{now}");
        Ok(())
    });
    eventually("the cluster answering", || super::fixture::through_gateway(lab, &specs[0].name, "/version"));
    is_there(&specs[1].name);
    drop(controller);
    specs.iter().for_each(|spec| {
        leaves(&spec.name);
        lab.stop_cluster(&spec.name).unwrap();
    });
}
