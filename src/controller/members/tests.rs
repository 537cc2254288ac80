use http::{Method, Request, Response};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::{Value, json};
use tower_test::mock::{Handle, pair};

use super::*;
use crate::lock::Claim;
use crate::model::members::{APPLIED, FINALIZER, HOLDS, KIND_MEMBER, MESSAGE, PARAMETERS, SEEN, STATE};
use crate::model::names::KIND;

const PARAMETERS_OF_A: &str = r#"{"cluster":"a","region":"east","secret":"s","key":"k"}"#;

fn member(name: &str, parameters: &str, more: Value) -> Value {
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "data": {PARAMETERS: parameters},
    });
    for (key, value) in more.as_object().unwrap() {
        let part = if key == "data" { &mut map["data"] } else { &mut map["metadata"][key] };
        match value {
            Value::Object(more) if part.is_object() => part.as_object_mut().unwrap().extend(more.clone()),
            value => *part = value.clone(),
        }
    }
    map
}

/// A hub with these members, a kubeconfig and the clusters that are joined; it has no gateway. What is written to members is kept, and
/// given in the end.
async fn serve(mut handle: Handle<Request<Body>, Response<Body>>, members: Vec<Value>, joined: Vec<Value>) -> Vec<(String, Value)> {
    let mut written = Vec::new();
    while let Some((request, respond)) = handle.next_request().await {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let body = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap_or(Value::Null);
        let list = |items: &[Value]| json!({"kind": "List", "metadata": {}, "items": items});
        let not_found =
            || (404, json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound"}));
        let query = uri.query().unwrap_or_default();
        let named = |name: &str| members.iter().find(|member| member["metadata"]["name"] == name);
        let (status, answer) = match uri.path().strip_prefix("/api/v1/namespaces/vela-system/") {
            Some("configmaps") if query.contains(KIND_MEMBER) && query.contains(&KIND.replace('/', "%2F")) => (200, list(&members)),
            Some("configmaps") => (200, list(&[])),
            Some("secrets") if query.contains("kubeconfig") => {
                let secret = json!({"metadata": {"name": "s"}, "data": {"k": "a3ViZWNvbmZpZw=="}});
                (200, list(&[secret]))
            }
            Some("secrets") => (200, list(&joined)),
            Some(path) if path.starts_with("configmaps/") => {
                let name = path.trim_start_matches("configmaps/");
                match (method, named(name)) {
                    (Method::PATCH, Some(member)) => {
                        written.push((name.to_owned(), body));
                        (200, member.clone())
                    }
                    (_, Some(member)) => (200, member.clone()),
                    _ => not_found(),
                }
            }
            _ if uri.path().contains("/leases") && method != Method::GET => (200, body),
            _ => not_found(),
        };
        let response = Response::builder().status(status).header("content-type", "application/json");
        respond.send_response(response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap());
    }
    written
}

/// Looks so many times at a hub; gives what was written to members.
async fn rounds(count: usize, members: Vec<Value>, joined: Vec<Value>) -> Vec<(String, Value)> {
    rounds_with(count, members, joined, None).await
}

/// The same, with what is wrong with the answer of cluster `a`.
async fn rounds_with(count: usize, members: Vec<Value>, joined: Vec<Value>, wrong: Option<Failure>) -> Vec<(String, Value)> {
    let (service, handle) = pair();
    let server = tokio::spawn(serve(handle, members, joined));
    let hub = Hub::mocked(Client::new(service, "vela-system"));
    let leases = Api::namespaced(hub.client(), "vela-system");
    let lock = Claim::new(leases, "lease", "me").take().await.unwrap().unwrap();
    let still = Still::default();
    let answers = Answers::new(&hub);
    wrong.into_iter().for_each(|wrong| answers.note(&"a".parse().unwrap(), wrong));
    let (carried, mut tries) = (Members::new(&hub, &still, &answers), Tries::default());
    for _ in 0..count {
        carried.round(&lock, &mut tries).await.unwrap();
    }
    drop(carried);
    drop((lock, hub));
    server.await.unwrap()
}

#[tokio::test]
async fn a_member_is_marked_before_its_join_and_told_why_that_failed() {
    let written = rounds(2, vec![member("a", PARAMETERS_OF_A, json!({"finalizers": ["others"]}))], vec![]).await;
    let [(_, finalizers), (_, begun), (_, told)] = written.as_slice() else { panic!("{written:#?}") };
    assert_eq!(finalizers["metadata"], json!({"finalizers": ["others", FINALIZER], "resourceVersion": "7", "uid": "uid-of-a"}));
    assert_eq!(begun["metadata"], json!({"annotations": {HOLDS: "a"}, "uid": "uid-of-a"}));
    assert_eq!(begun["data"], json!({STATE: "joining", MESSAGE: "joining through east", SEEN: PARAMETERS_OF_A}));
    assert_eq!((&told["data"][STATE], &told["data"][SEEN]), (&json!("failed"), &json!(PARAMETERS_OF_A)));
    let message = told["data"][MESSAGE].as_str().unwrap();
    assert!(message.starts_with("the hub has no cluster-gateway") && message.ends_with(')'), "{message}");
}

/// Member `a`, joined with what it asks for, of which this was told.
fn joined_and_told(state: &str) -> Value {
    let digest = digest(PARAMETERS_OF_A, Some(b"kubeconfig"));
    let told = json!({STATE: state, MESSAGE: "joined through east, port 30000", SEEN: PARAMETERS_OF_A});
    member("a", PARAMETERS_OF_A, json!({"finalizers": [FINALIZER], "annotations": {HOLDS: "a", APPLIED: digest}, "data": told}))
}

#[tokio::test]
async fn a_member_that_is_joined_and_unchanged_costs_nothing() {
    let secret = json!({"metadata": {"name": "a"}});
    assert_eq!(rounds(2, vec![joined_and_told("joined")], vec![secret]).await, []);
}

#[tokio::test]
async fn a_joined_member_is_broken_while_its_cluster_gives_no_right_answer() {
    let told = |state: &'static str, wrong: Option<Failure>| async move {
        let secret = json!({"metadata": {"name": "a"}});
        let written = rounds_with(1, vec![joined_and_told(state)], vec![secret], wrong).await;
        written.into_iter().map(|(_, patch)| patch["data"].clone()).collect::<Vec<_>>()
    };
    let silent = || Some(Failure::new(Kind::NotReachable, "cluster a does not answer", "look at it"));
    let broken = json!({STATE: "broken", MESSAGE: "joined, but cluster a does not answer (look at it)", SEEN: PARAMETERS_OF_A});
    assert_eq!(told("joined", silent()).await, [broken]);
    assert_eq!(told("broken", None).await, [json!({STATE: "joined", MESSAGE: "joined", SEEN: PARAMETERS_OF_A})]);
}

#[tokio::test]
async fn a_member_without_a_cluster_goes_and_takes_no_other_s_finalizer_along() {
    let gone = json!({"finalizers": ["others", FINALIZER], "deletionTimestamp": "2026-01-02T00:00:00Z"});
    let secret = json!({"metadata": {"name": "a"}});
    let written = rounds(1, vec![member("a", PARAMETERS_OF_A, gone)], vec![secret]).await;
    let want = json!({"metadata": {"finalizers": ["others"], "resourceVersion": "7", "uid": "uid-of-a"}});
    assert_eq!(written, [("a".to_owned(), want)]);
}

#[tokio::test]
async fn what_can_t_be_read_and_who_comes_second_is_told() {
    let held = json!({"finalizers": [FINALIZER], "annotations": {HOLDS: "a", APPLIED: digest(PARAMETERS_OF_A, Some(b"kubeconfig"))},
        "data": {STATE: "joined", SEEN: PARAMETERS_OF_A}});
    let members = vec![
        member("first", PARAMETERS_OF_A, held),
        member("second", PARAMETERS_OF_A, json!({})),
        member("third", r#"{"cluster":"local","region":"east","secret":"s","key":"k"}"#, json!({})),
    ];
    let written = rounds(1, members, vec![json!({"metadata": {"name": "a"}})]).await;
    let told: Vec<_> = written.iter().map(|(name, patch)| (name.as_str(), patch["data"][STATE].as_str().unwrap())).collect();
    assert_eq!(told, [("second", "waiting"), ("third", "failed")]);
    let message = written[0].1["data"][MESSAGE].as_str().unwrap();
    assert!(message.starts_with("member first has the cluster name a already"), "{message}");
}
