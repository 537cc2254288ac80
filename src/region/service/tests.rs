use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::model::region::{SNI_LISTEN, TrafficPolicy};
use crate::region::desk::Desk;

type Handle = mock::Handle<Request<Body>, Response<Body>>;

const PATH: &str = "/api/v1/namespaces/vela-system/services";
const MAPS: &str = "/api/v1/namespaces/vela-system/configmaps";

/// A region whose API answers, in this order, requests of these methods with these statuses and bodies; gives what was sent. Its Lease is
/// to be had.
async fn scenario<T>(run: impl AsyncFnOnce(Region) -> T, answers: Vec<(Method, u16, Value)>) -> (T, Vec<(String, Value)>) {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let server = tokio::spawn(serve(handle, answers, vec![]));
    let result = run(region(service)).await;
    (result, server.await.unwrap())
}

fn region(service: mock::Mock<Request<Body>, Response<Body>>) -> Region {
    Region::mocked("proxy-east", Client::new(service, "default"))
}

/// Answers until nobody asks any more. Whoever asks for the Lease finds it as `leases` says, one after the other, and then nobody's.
async fn serve(mut handle: Handle, answers: Vec<(Method, u16, Value)>, leases: Vec<Value>) -> Vec<(String, Value)> {
    let (mut sent, mut answers, mut leases) = (Vec::new(), answers.into_iter(), leases.into_iter());
    while let Some((request, respond)) = handle.next_request().await {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let bytes = request.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let (status, answer) = if path.contains("/leases") {
            if method == Method::GET {
                leases.next().map_or((404, refusal(404, "not found")), |lease| (200, lease))
            } else {
                (200, body)
            }
        } else {
            assert!(path.starts_with(PATH) || path == MAPS, "{path}");
            sent.push((method.to_string(), body));
            let (want, status, answer) = answers.next().unwrap_or_else(|| panic!("{method} {path}"));
            assert_eq!(method, want);
            (status, answer)
        };
        let response = Response::builder().status(status).header("content-type", "application/json");
        respond.send_response(response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap());
    }
    assert_eq!(answers.next(), None, "not asked");
    sent
}

fn service(version: &str, ports: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "resourceVersion": version, "uid": "u"}, "spec": {"ports": ports, "selector": {"xregion.oam.dev/kind": "proxy"}, "type": "NodePort", "externalTrafficPolicy": "Cluster"}})
}

/// The region's own port, which is where the last of the range is.
fn own(node: u16) -> Value {
    ports::entry(SNI_PORT, Ports { listen: SNI_LISTEN, node })
}

/// A list of routes, of which the last is of this mode.
fn routes(mode: &str) -> Value {
    json!({"metadata": {}, "items": [{"data": {"mode": "port"}}, {"data": {"mode": mode}}]})
}

fn refusal(code: u16, message: &str) -> Value {
    let reason = if code == 404 { "NotFound" } else { "Whatever" };
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": reason})
}

fn foreign() -> Value {
    json!({"name": "theirs", "port": 9000, "targetPort": "https", "nodePort": 30000, "appProtocol": "x"})
}

#[tokio::test]
async fn the_first_join_makes_the_service_and_passes_over_ports_of_others() {
    let (ports, sent) = scenario(
        async |region| region.take_ports("a", None).await,
        vec![
            (Method::GET, 404, refusal(404, "not found")),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::POST, 422, refusal(422, "spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated")),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::POST, 201, service("1", &[])),
        ],
    )
    .await;
    assert_eq!(ports.unwrap(), Ports { listen: 8001, node: 30001 });
    let made = &sent[7].1;
    assert_eq!(made["spec"]["selector"], json!({"xregion.oam.dev/kind": "proxy"}));
    assert_eq!((&made["spec"]["type"], &made["spec"]["externalTrafficPolicy"]), (&json!("NodePort"), &json!("Cluster")));
    assert_eq!(
        made["spec"]["ports"],
        json!([{"name": "a", "port": 8001, "targetPort": 8001, "nodePort": 30001, "protocol": "TCP"}, own(30085)])
    );
}

#[tokio::test]
async fn a_write_of_somebody_else_meanwhile_is_taken_into_account() {
    let other = ports::entry("b", Ports { listen: 8001, node: 30001 });
    let (ports, sent) = scenario(
        async |region| region.take_ports("a", None).await,
        vec![
            (Method::GET, 200, service("1", &[foreign()])),
            (Method::GET, 200, service("1", &[foreign()])),
            (Method::PATCH, 409, refusal(409, "the object has been modified")),
            (Method::GET, 200, service("2", &[foreign(), other.clone()])),
            (Method::PATCH, 200, service("3", &[])),
        ],
    )
    .await;
    let ports = ports.unwrap();
    assert_eq!(ports, Ports { listen: 8002, node: 30002 });
    assert_eq!(
        sent[4].1,
        json!({"metadata": {"resourceVersion": "2"}, "spec": {"ports": [foreign(), other, ports::entry("a", ports), own(30085)]}})
    );
}

#[tokio::test]
async fn ports_that_are_there_are_not_written_again() {
    let mine = ports::entry("a", Ports { listen: 8004, node: 30004 });
    let (ports, sent) =
        scenario(async |region| region.take_ports("a", None).await, vec![(Method::GET, 200, service("1", &[mine]))]).await;
    assert_eq!((ports.unwrap().node, sent.len()), (30004, 1));
}

#[tokio::test]
async fn a_node_port_asked_for_and_taken_is_told_and_not_retried() {
    for (code, message) in [(422, "provided port is already allocated"), (500, "duplicate nodePort: 30005")] {
        let there = (Method::GET, 200, service("1", &[foreign()]));
        let answers = vec![there.clone(), there.clone(), (Method::PATCH, code, refusal(code, message)), there];
        let (ports, _) = scenario(async |region| region.take_ports("a", Some(30005)).await, answers).await;
        assert_eq!(ports.unwrap_err().kind, Kind::NodePortTaken);
    }
}

#[tokio::test]
async fn the_clusters_of_a_run_write_together_and_each_gets_the_port_it_asked_for() {
    let entry = |name: &str, i: u16| ports::entry(name, Ports { listen: 8000 + i, node: 30000 + i });
    let taken = "spec.ports[2].nodePort: Invalid value: 30001: provided port is already allocated";
    let there = || (Method::GET, 200, service("1", &[]));
    let run = async |region: Region| {
        // One that comes later in the run asks for 30004.
        let region = region.at(Desk::keeping([30000, 30004].into()).into());
        futures::join!(
            region.take_ports("a", None),
            region.take_ports("b", Some(30000)),
            region.take_ports("c", Some(30001)),
            region.take_ports("d", None),
            region.take_ports("e", None)
        )
    };
    let answers = vec![
        there(),
        there(),
        (Method::GET, 200, service("1", &[])),
        (Method::PATCH, 200, service("2", &[entry("a", 1), own(30085)])),
        (Method::GET, 200, service("2", &[entry("a", 2), own(30085)])),
        (Method::PATCH, 422, refusal(422, taken)),
        (Method::GET, 200, service("2", &[entry("a", 2), own(30085)])),
        (Method::PATCH, 200, service("3", &[])),
    ];
    let ((a, b, c, d, e), sent) = scenario(run, answers).await;
    let node = |ports: Result<Ports>| ports.map(|ports| ports.node).map_err(|failure| failure.kind);
    assert_eq!((node(a), node(b), node(c)), (Ok(30001), Ok(30000), Err(Kind::NodePortTaken)));
    assert_eq!((node(d), node(e)), (Ok(30003), Ok(30005)));
    let sent = &sent[7].1["spec"]["ports"];
    assert_eq!(*sent, json!([entry("a", 2), own(30085), entry("b", 0), entry("d", 3), entry("e", 5)]));
}

#[tokio::test]
async fn the_region_s_own_port_is_none_that_a_cluster_of_the_run_asks_for() {
    let kept = |region: Region| region.at(Desk::keeping([30085].into()).into());
    let there = || (Method::GET, 200, service("1", &[]));
    let answers = vec![there(), there(), (Method::PATCH, 200, service("2", &[]))];
    let (_, sent) = scenario(async |region| kept(region).take_ports("a", None).await, answers.clone()).await;
    assert_eq!(sent[2].1["spec"]["ports"][1], own(30084));
    let (_, sent) = scenario(async |region| kept(region).take_own_ports(None).await, answers.clone()).await;
    assert_eq!(sent[2].1["spec"]["ports"][0], own(30084));
    let set = |mut region: Region| {
        region.settings.node_ports.sni = Some(30085);
        region
    };
    let (_, sent) = scenario(async |region| set(kept(region)).take_ports("a", None).await, answers).await;
    assert_eq!(sent[2].1["spec"]["ports"][1], own(30085), "the cluster is refused that asks for it");
}

#[tokio::test]
async fn clusters_that_are_only_planned_get_ports_of_their_own() {
    let there = || (Method::GET, 200, service("1", &[]));
    let patched = || (Method::PATCH, 200, service("2", &[]));
    let plan = async |region: Region| {
        let region = region.rehearsing();
        let first = region.take_ports("a", None).await.unwrap();
        (first, region.take_ports("b", None).await.unwrap(), region.take_ports("a", None).await.unwrap())
    };
    let ((first, second, again), _) = scenario(plan, vec![there(), there(), patched(), there(), there(), patched(), there()]).await;
    assert_eq!((first.node, second.node, again.node), (30000, 30001, 30000));
}

#[tokio::test]
async fn a_node_port_that_the_proxy_cluster_does_not_have_is_told_as_that() {
    let there = (Method::GET, 200, service("1", &[]));
    let message = "spec.ports[0].nodePort: Invalid value: 30005: provided port is not in the valid range. The range of valid ports is 31000-32767";
    let answers = vec![there.clone(), there, (Method::PATCH, 422, refusal(422, message))];
    let (ports, _) = scenario(async |region| region.take_ports("a", Some(30005)).await, answers).await;
    let failure = ports.unwrap_err();
    assert_eq!(failure.kind, Kind::NodePortTaken);
    assert!(failure.cause().contains("31000-32767"), "{failure}");
}

fn lease(holder: &str) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LOCK, "resourceVersion": "1"},
           "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": format!("{:.6}", jiff::Timestamp::now())}})
}

#[tokio::test]
async fn a_run_waits_for_another_that_writes_the_service() {
    let (service_, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let other = ports::entry("b", Ports { listen: 8000, node: 30000 });
    let answers = vec![
        (Method::GET, 200, service("1", &[])),
        (Method::GET, 200, service("2", &[other])),
        (Method::PATCH, 200, service("3", &[])),
    ];
    let server = tokio::spawn(serve(handle, answers, vec![lease("other"), lease("other"), lease("")]));
    let ports = region(service_).take_ports("a", None).await;
    assert_eq!(ports.unwrap().node, 30001, "read before it had the right, the Service had room for it at 30000");
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_until_the_lease_of_one_that_died_has_run_out() {
    let (transport, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let there = || (Method::GET, 200, service("1", &[]));
    let answers = vec![there(), there(), (Method::PATCH, 200, service("2", &[]))];
    let server = tokio::spawn(serve(handle, answers, vec![lease("other"); 1000]));
    let region = Region { name: "of-the-dead".parse().unwrap(), ..region(transport) };
    let start = Instant::now();
    assert_eq!(region.take_ports("a", None).await.unwrap().node, 30000);
    let seconds = start.elapsed().as_secs();
    assert!((15..PATIENCE.as_secs()).contains(&seconds), "{seconds}");
    drop(region);
    server.await.unwrap();
}

#[tokio::test]
async fn the_service_goes_with_its_last_port_unless_one_came_meanwhile() {
    let mine = ports::entry("a", Ports { listen: 8000, node: 30000 });
    let other = ports::entry("b", Ports { listen: 8001, node: 30001 });
    let (released, sent) = scenario(
        async |region| region.release_ports("a").await,
        vec![
            (Method::GET, 200, service("1", &[mine.clone(), own(30085)])),
            (Method::GET, 200, service("1", &[mine.clone(), own(30085)])),
            (Method::GET, 200, routes("port")),
            (Method::DELETE, 409, refusal(409, "the resourceVersion in the precondition does not match")),
            (Method::GET, 200, service("2", &[mine, other.clone()])),
            (Method::PATCH, 200, service("3", &[])),
        ],
    )
    .await;
    released.unwrap();
    assert_eq!(sent[3].1["preconditions"], json!({"resourceVersion": "1", "uid": "u"}));
    assert_eq!(sent[5].1["spec"]["ports"], json!([other]));
}

#[tokio::test]
async fn the_service_stays_for_routes_by_name_and_goes_with_the_last_of_them() {
    let mine = ports::entry("a", Ports { listen: 8000, node: 30000 });
    let both = service("1", &[mine, own(30085)]);
    let (released, sent) = scenario(
        async |region| region.release_ports("a").await,
        vec![
            (Method::GET, 200, both.clone()),
            (Method::GET, 200, both),
            (Method::GET, 200, routes("sni")),
            (Method::PATCH, 200, service("2", &[])),
        ],
    )
    .await;
    assert_eq!((released.unwrap(), &sent[3].1["spec"]["ports"]), (true, &json!([own(30085)])));

    let bare = service("2", &[own(30085)]);
    let (released, _) = scenario(
        async |region| region.release_ports("by-name").await,
        vec![
            (Method::GET, 200, bare.clone()),
            (Method::GET, 200, bare),
            (Method::GET, 200, routes("port")),
            (Method::DELETE, 200, service("2", &[])),
        ],
    )
    .await;
    assert!(!released.unwrap(), "it had no port of its own");
}

#[tokio::test]
async fn a_cluster_gets_its_port_where_the_region_s_own_is_somebody_else_s() {
    let taken = |port: u16| format!("spec.ports[1].nodePort: Invalid value: {port}: provided port is already allocated");
    let there = (Method::GET, 200, service("1", &[]));
    let answers = vec![
        there.clone(),
        there.clone(),
        (Method::PATCH, 422, refusal(422, &taken(30085))),
        there,
        (Method::PATCH, 200, service("2", &[])),
    ];
    let (ports, sent) = scenario(async |region| region.take_ports("a", Some(30005)).await, answers).await;
    let ports = ports.unwrap();
    assert_eq!((ports.node, &sent[4].1["spec"]["ports"]), (30005, &json!([ports::entry("a", ports), own(30084)])));
}

#[tokio::test]
async fn a_service_made_by_hand_is_left_alone_and_another_stands_beside_it() {
    let mut by_hand = service("1", &[foreign()]);
    by_hand["spec"]["selector"] = json!({"app": "nginx"});
    let (ports, sent) = scenario(
        async |region| region.take_ports("a", None).await,
        vec![
            (Method::GET, 200, by_hand.clone()),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::GET, 200, by_hand.clone()),
            (Method::GET, 404, refusal(404, "not found")),
            // Its node port is known to nobody but the API server.
            (Method::POST, 422, refusal(422, "spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated")),
            (Method::GET, 200, by_hand),
            (Method::GET, 404, refusal(404, "not found")),
            (Method::POST, 201, service("1", &[])),
        ],
    )
    .await;
    assert_eq!(ports.unwrap(), Ports { listen: 8001, node: 30001 });
    assert_eq!(sent[7].1["metadata"]["name"], SERVICE_BESIDE);

    // It stays the region's when the one made by hand has gone.
    let mut beside = service("1", &[ports::entry("a", Ports { listen: 8001, node: 30001 })]);
    beside["metadata"]["name"] = json!(SERVICE_BESIDE);
    let answers = vec![(Method::GET, 404, refusal(404, "not found")), (Method::GET, 200, beside)];
    let (ports, _) = scenario(async |region| region.take_ports("a", None).await, answers).await;
    assert_eq!(ports.unwrap().node, 30001);
}

#[tokio::test]
async fn ports_that_were_lost_or_bent_are_put_back_beside_those_of_others() {
    let (lost, bent) = (Ports { listen: 8005, node: 30005 }, ports::entry("a", Ports { listen: 8009, node: 30009 }));
    let (ports, sent) = scenario(
        async |region| region.put_ports(&[("a".into(), lost)]).await,
        vec![
            (Method::GET, 200, service("1", &[foreign(), bent])),
            (Method::PATCH, 409, refusal(409, "the object has been modified")),
            (Method::GET, 200, service("2", &[foreign()])),
            (Method::PATCH, 200, service("3", &[])),
        ],
    )
    .await;
    assert_eq!(ports.unwrap().remove(0).unwrap(), lost);
    assert_eq!(sent[1].1["spec"]["ports"], json!([foreign(), ports::entry("a", lost), own(30085)]));
    assert_eq!(
        sent[3].1,
        json!({"metadata": {"resourceVersion": "2"}, "spec": {"ports": [foreign(), ports::entry("a", lost), own(30085)]}})
    );
}

#[tokio::test]
async fn a_node_port_that_another_has_by_now_is_told_and_left_to_it() {
    let lost = Ports { listen: 8000, node: 30000 };
    let put = async |region: Region| region.put_ports(&[("a".into(), lost)]).await.map(|mut put| put.remove(0).unwrap_err().kind);
    let (kind, sent) = scenario(put, vec![(Method::GET, 200, service("1", &[foreign()]))]).await;
    assert_eq!((kind.unwrap(), sent.len()), (Kind::NodePortTaken, 1));
    for taken in ["spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated", "already allocated"] {
        let there = (Method::GET, 200, service("1", &[]));
        let (kind, _) = scenario(put, vec![there.clone(), (Method::PATCH, 422, refusal(422, taken)), there]).await;
        assert_eq!(kind.unwrap(), Kind::NodePortTaken);
    }
}

#[tokio::test]
async fn all_ports_that_a_region_has_lost_come_back_in_one_write_but_for_what_others_have() {
    let ports = |i: u16| Ports { listen: 8000 + i, node: 30000 + i };
    let own_ports = Ports { listen: SNI_LISTEN, node: 30085 };
    // 30000 is of another port of the Service, 30002 of another Service, and two are reached by the region's own.
    let lost: Vec<(String, Ports)> = (0..4).map(|i| (format!("c{i}"), ports(i))).collect();
    let lost = [lost, vec![(SNI_PORT.to_owned(), own_ports); 2]].concat();
    let there = || (Method::GET, 200, service("1", &[foreign()]));
    let taken = "spec.ports[2].nodePort: Invalid value: 30002: provided port is already allocated";
    let (put, sent) = scenario(
        async |region| region.put_ports(&lost).await,
        vec![there(), (Method::PATCH, 422, refusal(422, taken)), there(), (Method::PATCH, 200, service("2", &[]))],
    )
    .await;
    let put: Vec<_> = put.unwrap().into_iter().map(|ports| ports.map_err(|failure| failure.kind)).collect();
    let refused = Err(Kind::NodePortTaken);
    assert_eq!(put, [refused, Ok(ports(1)), refused, Ok(ports(3)), Ok(own_ports), Ok(own_ports)]);
    let entry = |i| ports::entry(&format!("c{i}"), ports(i));
    assert_eq!(sent[3].1["spec"]["ports"], json!([foreign(), entry(1), entry(3), own(30085)]));
}

fn local(mut region: Region) -> Region {
    region.settings.external_traffic_policy = TrafficPolicy::Local;
    region
}

#[tokio::test]
async fn a_service_that_is_not_as_set_is_brought_to_it_with_its_ports_as_they_are() {
    let mine = ports::entry("a", Ports { listen: 8001, node: 30001 });
    let own = ports::entry(SNI_PORT, Ports { listen: SNI_LISTEN, node: 30003 });
    let there = || (Method::GET, 200, service("1", &[foreign(), mine.clone(), own.clone()]));
    let want = json!({"metadata": {"resourceVersion": "1"}, "spec": {
        "ports": [foreign(), mine, own], "type": "NodePort", "externalTrafficPolicy": "Local", "loadBalancerClass": null, "loadBalancerSourceRanges": null,
    }});

    let (ports, sent) = scenario(
        async |region| local(region).take_ports("a", None).await,
        vec![there(), there(), (Method::PATCH, 200, service("2", &[]))],
    )
    .await;
    assert_eq!((ports.unwrap().node, &sent[2].1), (30001, &want), "by a join that changes no port");

    let (set, sent) =
        scenario(async |region| local(region).set_service().await, vec![there(), (Method::PATCH, 200, service("2", &[]))]).await;
    assert_eq!((set.unwrap(), &sent[1].1), (true, &want));
    let (set, sent) = scenario(async |region| region.set_service().await, vec![there()]).await;
    assert_eq!((set.unwrap(), sent.len()), (false, 1), "as it is, it is set");
    let nobody = || (Method::GET, 404, refusal(404, "not found"));
    let (set, _) = scenario(async |region| local(region).set_service().await, vec![nobody(), nobody()]).await;
    assert!(!set.unwrap(), "none is made for nobody");
}

#[tokio::test]
async fn the_region_s_own_port_is_put_back_where_it_is_missing_and_told_where_it_can_t_be() {
    let mine = ports::entry("a", Ports { listen: 8000, node: 30000 });
    let there = || (Method::GET, 200, service("1", std::slice::from_ref(&mine)));
    let taken = "spec.ports[1].nodePort: Invalid value: 30085: provided port is already allocated";
    let answers = vec![there(), (Method::PATCH, 422, refusal(422, taken)), there(), (Method::PATCH, 200, service("2", &[]))];
    let (set, sent) = scenario(async |region| region.set_service().await, answers).await;
    assert_eq!((set.unwrap(), &sent[3].1["spec"]["ports"]), (true, &json!([mine, own(30084)])));

    let bent = ports::entry(SNI_PORT, Ports { listen: 8443, node: 30012 });
    let answers = vec![(Method::GET, 200, service("1", &[mine.clone(), bent])), (Method::PATCH, 200, service("2", &[]))];
    let (set, sent) = scenario(async |region| region.set_service().await, answers).await;
    assert_eq!((set.unwrap(), &sent[1].1["spec"]["ports"]), (true, &json!([mine, own(30012)])), "it stays where it is");

    // The settings name one that a cluster has, or another Service.
    let named = |mut region: Region, sni| {
        region.settings.node_ports.sni = Some(sni);
        region
    };
    let (set, sent) = scenario(async |region| named(region, 30000).set_service().await, vec![there()]).await;
    assert_eq!((set.unwrap_err().kind, sent.len()), (Kind::NodePortTaken, 1));
    let answers = vec![there(), (Method::PATCH, 422, refusal(422, &taken.replace("30085", "30443"))), there()];
    let (set, _) = scenario(async |region| named(region, 30443).set_service().await, answers).await;
    assert_eq!(set.unwrap_err().kind, Kind::NodePortTaken);

    // For want of it, nothing else stays undone.
    let answers = vec![there(), (Method::PATCH, 200, service("2", &[]))];
    let (set, sent) = scenario(async |region| local(named(region, 30000)).set_service().await, answers).await;
    let sent = &sent[1].1["spec"];
    assert_eq!((set.unwrap_err().kind, &sent["externalTrafficPolicy"]), (Kind::NodePortTaken, &json!("Local")));
    assert_eq!(sent["ports"], json!([mine]));
}

#[tokio::test]
async fn a_route_by_name_makes_the_service_with_nothing_but_the_region_s_own_port() {
    let gone = || (Method::GET, 404, refusal(404, "not found"));
    let taken = "spec.ports[0].nodePort: Invalid value: 30085: provided port is already allocated";
    let answers = vec![
        gone(),
        gone(),
        gone(),
        gone(),
        (Method::POST, 422, refusal(422, taken)),
        gone(),
        gone(),
        (Method::POST, 201, service("1", &[])),
    ];
    let (ports, sent) = scenario(async |region| region.take_own_ports(None).await, answers).await;
    assert_eq!(ports.unwrap(), (Ports { listen: SNI_LISTEN, node: 30084 }, true));
    assert_eq!(sent[7].1["spec"]["ports"], json!([own(30084)]));

    let there = vec![(Method::GET, 200, service("1", &[foreign(), own(30012)]))];
    let (ports, _) = scenario(async |region| region.take_own_ports(None).await, there).await;
    assert_eq!(ports.unwrap(), (Ports { listen: SNI_LISTEN, node: 30012 }, false), "no write");
}

#[tokio::test]
async fn the_region_s_own_port_moves_to_where_it_is_wanted_while_nobody_is_reached_by_it() {
    let there = service("1", &[foreign(), own(30085)]);
    let wanted = async |mut region: Region| {
        region.settings.node_ports.sni = Some(30443);
        region.take_own_ports(Some("mine")).await
    };
    let mut mine = routes("sni");
    mine["items"][1]["metadata"] = json!({"name": "mine"});
    let answers = vec![
        (Method::GET, 200, there.clone()),
        (Method::GET, 200, mine.clone()),
        (Method::GET, 200, there.clone()),
        (Method::GET, 200, mine),
        (Method::PATCH, 200, service("2", &[])),
    ];
    let (ports, sent) = scenario(wanted, answers).await;
    assert_eq!((ports.unwrap().0.node, &sent[4].1["spec"]["ports"]), (30443, &json!([foreign(), own(30443)])));

    let (ports, _) = scenario(wanted, vec![(Method::GET, 200, there), (Method::GET, 200, routes("sni"))]).await;
    assert_eq!(ports.unwrap(), (Ports { listen: SNI_LISTEN, node: 30085 }, false));
}

/// A region that has an empty Service, and answers writes of it or is silent; gives the number of those, too.
fn answering(name: &str, writes: bool) -> (Region, Arc<AtomicUsize>) {
    let (transport, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let (region, asked) = (Region { name: name.parse().unwrap(), ..region(transport) }, Arc::<AtomicUsize>::default());
    let counted = asked.clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some((request, respond)) = handle.next_request().await {
            let (is_lease, is_read) = (request.uri().path().contains("/leases"), request.method() == Method::GET);
            let (status, answer) = match (is_lease, is_read) {
                (true, true) => (404, refusal(404, "not found")),
                (true, false) => (200, json!({"metadata": {"name": LOCK}})),
                (false, _) => (200, service("1", &[])),
            };
            if !is_lease && !is_read {
                counted.fetch_add(1, Ordering::Relaxed);
                if !writes {
                    held.push(respond);
                    continue;
                }
            }
            respond.send_response(Response::builder().status(status).body(Body::from(answer.to_string().into_bytes())).unwrap());
        }
    });
    (region, asked)
}

#[tokio::test(start_paused = true)]
async fn a_region_that_takes_no_write_is_not_waited_for_without_end() {
    let (region, asked) = answering("silent", false);
    let taken = timeout(Duration::from_secs(30), region.take_ports("a", None)).await.unwrap();
    assert_eq!((taken.unwrap_err().kind, asked.load(Ordering::Relaxed)), (Kind::RegionUnreachable, 1));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_takes_no_write_holds_up_no_other() {
    let ((first, asked), (second, _)) = (answering("first", false), answering("second", true));
    let start = Instant::now();
    let other = async {
        while asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(second.take_ports("a", None).await.unwrap().node, 30000);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    };
    let (taken, ()) = timeout(Duration::from_secs(30), async { tokio::join!(first.take_ports("a", None), other) }).await.unwrap();
    assert!(taken.is_err());
}
