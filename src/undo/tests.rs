use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, Request, Response};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock::{Handle, pair};

use super::*;
use crate::error::Kind;
use crate::model::kubeconfig::{Access, Credentials};
use crate::model::membership::{CREDENTIAL_TYPE, Membership};
use crate::model::names::HubId;
use crate::model::observed::sample;
use crate::model::ports::{self, Ports};
use crate::model::region::SERVICE;

fn cluster() -> ClusterName {
    "a".parse().unwrap()
}

/// The hub of a mock is this one, too.
fn hub_id() -> HubId {
    HubId::new("a-hub")
}

/// A route to this host, as it is before it is proven.
fn route(host: &str) -> Route {
    Route { hub: hub_id(), alias: None, proven_at: None, uid: String::new(), ..sample::route("a", Slot::First, host, 8000) }
}

fn proven(host: &str, at: i64) -> Route {
    let at = Timestamp::from_second(at).unwrap();
    Route { alias: Some("api.example".parse().unwrap()), proven_at: Some(at), ..route(host) }
}

/// A ConfigMap as the region's API has it.
fn there(route: &Route) -> Value {
    let mut map = serde_json::to_value(route.to_config_map()).unwrap();
    map["metadata"]["resourceVersion"] = json!("7");
    map["metadata"]["uid"] = json!("u");
    map
}

/// Answers reads of this object, wherever it is asked for, and of a Service with the cluster's port; gives what was written, but for Leases.
async fn serve(mut handle: Handle<Request<Body>, Response<Body>>, object: Option<Value>) -> Vec<(Method, Value)> {
    let mut written = Vec::new();
    let port = ports::entry(&hub_id().port_name(&cluster(), Slot::First), Ports { listen: 8000, node: 30000 });
    let service = json!({
        "metadata": {"name": SERVICE, "resourceVersion": "1"}, "spec": {"ports": [port], "selector": {"xregion.oam.dev/kind": "proxy"}},
    });
    while let Some((request, respond)) = handle.next_request().await {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap_or_default();
        let is_lease = path.contains("/leases");
        let answer = match method {
            Method::GET if is_lease => None,
            Method::GET if path.ends_with(SERVICE) => Some(service.clone()),
            Method::GET if ["configmaps", "services", "endpointslices"].iter().any(|kind| path.ends_with(kind)) => {
                Some(json!({"kind": "List", "metadata": {}, "items": []}))
            }
            Method::GET => object.clone(),
            method => {
                written.extend((!is_lease).then_some((method, body)));
                Some(json!({"metadata": {"name": "written"}}))
            }
        };
        let missing = || json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound"});
        let response = Response::builder().status(if answer.is_some() { 200 } else { 404 });
        let body = answer.unwrap_or_else(missing).to_string();
        respond.send_response(response.body(Body::from(body.into_bytes())).unwrap());
    }
    written
}

/// Takes a step where this object is; gives what was written.
async fn taken(step: impl FnOnce(Hub, Region) -> Step, object: Option<Value>) -> Vec<(Method, Value)> {
    let (service, handle) = pair();
    let server = tokio::spawn(serve(handle, object));
    let client = Client::new(service, "vela-system");
    let step = step(Hub::mocked(client.clone()), Region::mocked("undone", client));
    step.take().await.unwrap();
    drop(step);
    server.await.unwrap()
}

#[tokio::test]
async fn a_route_is_removed_only_as_long_as_it_is_what_this_run_wrote() {
    let mine = json!({"preconditions": {"resourceVersion": "7", "uid": "u"}});
    for (written, object, removed) in [
        (route("wrong.example"), Some(route("wrong.example")), true),
        (proven("a.example", 50), Some(proven("a.example", 50)), true),
        (route("wrong.example"), Some(route("a.example")), false),
        (route("a.example"), Some(proven("a.example", 60)), false),
        (proven("a.example", 50), Some(proven("a.example", 60)), false),
        (route("a.example"), None, false),
    ] {
        let remove = |_, region| Step::RemoveRoute(Box::new(region), Box::new(written));
        let writes = taken(remove, object.as_ref().map(there)).await;
        let want = if removed { vec![(Method::DELETE, mine.clone())] } else { vec![] };
        assert_eq!(writes, want, "{object:?}");
    }
}

#[tokio::test]
async fn a_route_is_put_back_only_over_what_this_run_wrote() {
    for (object, is_put_back) in [(Some(route("wrong.example")), true), (Some(route("other.example")), false), (None, false)] {
        let put = |_, region| Step::PutRoute {
            region: Box::new(region),
            written: Box::new(route("wrong.example")),
            before: Box::new(proven("a.example", 50)),
        };
        let writes = taken(put, object.as_ref().map(there)).await;
        assert_eq!(writes.len(), usize::from(is_put_back), "{writes:#?}");
        for (_, map) in writes {
            assert_eq!((&map["data"]["host"], &map["metadata"]["resourceVersion"]), (&json!("a.example"), &json!("7")));
        }
    }
}

#[tokio::test]
async fn ports_stay_with_the_route_that_listens_there() {
    let elsewhere = Route { listen: 8005, ..route("a.example") };
    for (object, released) in [(None, true), (Some(elsewhere), true), (Some(route("a.example")), false)] {
        let release = |hub, region| Step::ReleasePorts(Box::new(hub), Box::new(region), cluster(), Slot::First);
        let writes = taken(release, object.as_ref().map(there)).await;
        assert_eq!(writes.len(), usize::from(released), "{writes:#?}");
    }
}

fn membership(upstream: &str) -> Membership {
    let joined = sample::membership("a", upstream, 30000);
    Membership { region: "undone".parse().unwrap(), alias: "api.example".parse().unwrap(), ..joined }
}

/// A cluster's Secret with this token, and with this record if there is one.
fn secret(token: &str, record: Option<&Membership>) -> Value {
    let base64 = |text: &str| BASE64_STANDARD.encode(text);
    json!({
        "metadata": {
            "name": "a", "resourceVersion": "7", "uid": "u", "labels": {CREDENTIAL_TYPE: "ServiceAccountToken"},
            "annotations": record.map(Membership::to_annotations),
        },
        "data": {"endpoint": base64("https://api.example:30000"), "ca.crt": base64("ca"), "token": base64(token)},
    })
}

#[tokio::test]
async fn a_cluster_is_put_back_only_as_long_as_it_is_what_this_run_joined() {
    let (mine, other, old) = (membership("a.example"), membership("other.example"), membership("old.example"));
    let before = secret("old", Some(&old));
    for (before, object, written) in [
        (None, secret("mine", None), Some(Method::DELETE)),
        (None, secret("mine", Some(&mine)), Some(Method::DELETE)),
        (None, secret("mine", Some(&other)), None),
        (None, secret("other", None), None),
        (Some(&before), secret("mine", Some(&old)), Some(Method::PUT)),
        (Some(&before), secret("mine", Some(&other)), None),
        (Some(&before), before.clone(), None),
    ] {
        let access = Access {
            host: "a.example".parse().unwrap(),
            port: 443,
            tls_server_name: None,
            ca: b"ca".to_vec(),
            credentials: Credentials::Token("mine".to_owned().into()),
        };
        let joined = Box::new(JoinedWith { access, membership: mine.clone() });
        let before = before.map(|secret| Box::new(serde_json::from_value::<Secret>(secret.clone()).unwrap().into()));
        let restore = |hub, _| Step::RestoreCluster { hub: Box::new(hub), name: cluster(), joined, before };
        let writes = taken(restore, Some(object.clone())).await;
        assert_eq!(
            writes.into_iter().map(|(method, _)| method).collect::<Vec<_>>(),
            written.into_iter().collect::<Vec<_>>(),
            "{object}"
        );
    }
}

#[test]
fn a_run_that_ends_early_tells_how_many_are_joined() {
    for (joined, of, told) in [
        (0, 1, None),
        (0, 50, None),
        (1, 1, Some("the cluster is joined, and stays so")),
        (1, 50, Some("1 of 50 clusters is joined, and stays so")),
        (7, 50, Some("7 of 50 clusters are joined, and stay so")),
    ] {
        assert_eq!(staying(joined, of).as_deref(), told);
    }
}

#[tokio::test]
async fn what_was_undone_is_not_told_as_joined() {
    let undos = [Undo::default(), Undo::default(), Undo::default()];
    undos[1].forget();
    let failure = undone(&undos, Failure::new(Kind::Timeout, "the time given (60 s) was over", "give more")).await;
    assert_eq!(failure.cause(), "the time given (60 s) was over; 1 of 3 clusters is joined, and stays so");
}
