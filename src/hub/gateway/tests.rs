use futures::future::join_all;
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::time::timeout;
use tower_test::mock::{Handle, pair};

use super::*;
use crate::model::aliases::{Leads, Wanted};
use crate::model::service::merged;

const NAME: &str = "gateway";

fn gateway(client: &Client) -> Gateway {
    Gateway {
        deployments: Api::namespaced_with(client.clone(), NAMESPACE, &ApiResource::erase::<Deployment>(&())),
        typed: Api::namespaced(client.clone(), NAMESPACE),
        pods: Api::namespaced(client.clone(), NAMESPACE),
        selector: String::new(),
        selected_by: BTreeSet::new(),
        name: NAME.to_owned(),
        dry_run: false,
        cut: false,
        smooth: false,
        turns: Arc::default(),
    }
}

fn wanted(number: usize) -> Wanted {
    Wanted {
        host: format!("c{number}.example").parse().unwrap(),
        cluster: format!("c{number}").parse().unwrap(),
        region: "proxy-east".parse().unwrap(),
    }
}

/// A Deployment with the names of these clusters.
fn deployment(clusters: &[Wanted]) -> Value {
    let leads = BTreeMap::from([("proxy-east".to_owned(), Leads::from(BTreeSet::from([[10, 0, 1, 1].into()])))]);
    let bare = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "resourceVersion": "1"},
        "spec": {"template": {"spec": {"containers": [{"name": "gateway"}]}}},
    });
    let patch = rollout::patch(&bare, &HostAliases::default().with(clusters, &leads), None, false).unwrap().unwrap();
    merged(bare, &patch)
}

/// Answers for a Deployment, and refuses what was made of a version that it isn't any more; gives what it is in the end.
async fn serve(mut handle: Handle<Request<Body>, Response<Body>>, mut deployment: Value) -> Value {
    let mut version = 1;
    while let Some((request, respond)) = handle.next_request().await {
        let is_patch = request.method() == Method::PATCH;
        let patch: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap_or_default();
        let (status, answer) = if is_patch && patch["metadata"]["resourceVersion"] != deployment["metadata"]["resourceVersion"] {
            (409, json!({"kind": "Status", "status": "Failure", "code": 409, "message": "modified", "reason": "Conflict"}))
        } else {
            if is_patch {
                version += 1;
                deployment = merged(deployment, &patch);
                deployment["metadata"]["resourceVersion"] = json!(version.to_string());
            }
            (200, deployment.clone())
        };
        let response = Response::builder().status(status).header("content-type", "application/json");
        respond.send_response(response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap());
    }
    deployment
}

#[tokio::test]
async fn many_that_take_their_names_off_at_once_all_do() {
    let all: Vec<Wanted> = (0..20).map(wanted).collect();
    let (service, handle) = pair();
    let server = tokio::spawn(serve(handle, deployment(&all)));
    let gateway = gateway(&Client::new(service, NAMESPACE));
    // Each at a clone of its own, as the steps of an undo are.
    let changes = all.iter().map(|Wanted { host, cluster, .. }| {
        let gateway = gateway.clone();
        async move { gateway.change(|now| Ok(now.without(host, cluster))).await }
    });
    for changed in join_all(changes).await {
        assert!(changed.unwrap());
    }
    drop(gateway);
    assert_eq!(rollout::host_aliases(&server.await.unwrap()).unwrap(), HostAliases::default());
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_takes_no_change_is_not_waited_for_without_end() {
    let (service, mut handle) = pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        let (_, respond) = handle.next_request().await.unwrap();
        respond.send_response(Response::new(Body::from(serde_json::to_vec(&deployment(&[wanted(1)])).unwrap())));
        let held = handle.next_request().await;
        handle.next_request().await;
        drop(held);
    });
    let gateway = gateway(&Client::new(service, NAMESPACE));
    let Wanted { host, cluster, .. } = wanted(1);
    let changed = timeout(Duration::from_secs(30), gateway.change(|now| Ok(now.without(&host, &cluster)))).await.unwrap();
    assert_eq!(changed.unwrap_err().kind, Kind::HubUnreachable);
}
