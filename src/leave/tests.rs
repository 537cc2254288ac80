use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use tower_test::mock::{Handle, pair};

use super::*;
use crate::model::entries::{HUB_NAMESPACE, Needs, Write};
use crate::model::membership::{CREDENTIAL_TYPE, Membership};
use crate::model::observed::sample;

fn region() -> ClusterName {
    "proxy-east".parse().unwrap()
}

/// The Secret of a cluster joined through a region.
fn joined(name: &str, region: &str) -> Value {
    let membership = Membership { region: region.parse().unwrap(), ..sample::membership(name, "10.9.0.1", 30000) };
    let labels = json!({CREDENTIAL_TYPE: "X509Certificate"});
    json!({"metadata": {"name": name, "labels": labels, "annotations": membership.to_annotations()}})
}

/// The Services on the hub that lead to the region, as the hub's API has them.
fn services() -> Vec<Value> {
    let needs = Needs { ports: [30000].into(), nodes: [[10, 0, 1, 1].into()].into(), shards: 1, ..Needs::default() };
    let made = |(number, write)| match write {
        Write::CreateService(mut service) => {
            service["spec"]["clusterIP"] = json!(format!("10.96.0.{number}"));
            service["metadata"]["resourceVersion"] = json!("7");
            service
        }
        other => panic!("{other:?}"),
    };
    crate::model::entries::Entries::default().writes(&region(), &needs).into_iter().enumerate().map(made).collect()
}

/// A hub that has these clusters, and no proxy cluster; gives what was removed from it.
async fn serve(mut handle: Handle<Request<Body>, Response<Body>>, joined: Vec<Value>) -> Vec<String> {
    let mut removed = Vec::new();
    while let Some((request, respond)) = handle.next_request().await {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let list = |items: &[Value]| (200, json!({"kind": "List", "metadata": {}, "items": items}));
        let (status, answer) = match (method, path.as_str()) {
            (Method::GET, "/api/v1/namespaces/vela-system/secrets") => list(&joined),
            (Method::GET, path) if path == format!("/api/v1/namespaces/{HUB_NAMESPACE}/services") => list(&services()),
            (Method::GET, path) if path.ends_with("/endpointslices") => list(&[]),
            (Method::DELETE, path) => {
                removed.extend(path.rsplit_once('/').map(|(_, name)| name.to_owned()));
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            _ => (404, json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound"})),
        };
        let response = Response::builder().status(status).header("content-type", "application/json");
        respond.send_response(response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap());
    }
    removed
}

#[tokio::test]
async fn what_leads_on_the_hub_to_a_region_that_went_first_goes_with_the_last_cluster_on_record() {
    let leftover = Leftover { cluster: "a".parse().unwrap(), region: region(), cut: false };
    let names: Vec<String> = services().iter().map(|service| service["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 2);
    for (others, want) in
        [(vec![joined("b", "proxy-west")], &names[..]), (vec![joined("b", "proxy-west"), joined("c", "proxy-east")], &[])]
    {
        let (service, handle) = pair();
        let server = tokio::spawn(serve(handle, others));
        let hub = Hub::mocked(Client::new(service, "vela-system"));
        assert!(!clear(&hub, &leftover).await.unwrap(), "nothing was found there");
        drop(hub);
        let mut removed = server.await.unwrap();
        assert!(removed.pop().is_some_and(|last| last.starts_with("xregion-leaving-a-")), "its record goes last");
        assert_eq!(removed, want);
    }
}
