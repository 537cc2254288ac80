use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;
use crate::error::Kind;

const ACCOUNT: &str = "/api/v1/namespaces/vela-system/serviceaccounts/xregion";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const RENEWAL: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/vela-system";
const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/xregion:vela-system:xregion";

/// An answer of the API: to which method and path, with which status and body.
struct Answer(Method, String, u16, Value);

fn ok(method: Method, path: &str, body: Value) -> Answer {
    Answer(method, path.to_owned(), 200, body)
}

fn refusal(method: Method, path: &str, code: u16, message: &str) -> Answer {
    let reason = if code == 404 { "NotFound" } else { "Whatever" };
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": reason});
    Answer(method, path.to_owned(), code, status)
}

fn object() -> Value {
    json!({"metadata": {"name": "x"}})
}

fn binding_to(role: &str) -> Value {
    json!({"metadata": {"name": "x"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
}

/// The answers of a cluster where all goes well, its binding being `before` and its token lasting `seconds`.
fn answers(role: &str, before: Option<&str>, seconds: i64) -> Vec<Answer> {
    let mut answers = vec![
        ok(Method::GET, &format!("{ROLES}/{role}"), object()),
        ok(Method::PATCH, "/api/v1/namespaces/vela-system", object()),
        ok(Method::PATCH, ACCOUNT, object()),
        match before {
            None => refusal(Method::GET, BINDING, 404, "not found"),
            Some(before) => ok(Method::GET, BINDING, binding_to(before)),
        },
    ];
    if before.is_some_and(|before| before != role) {
        answers.push(ok(Method::DELETE, BINDING, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})));
    }
    let end = (Timestamp::now() + Duration::from_secs(seconds.unsigned_abs())).to_string();
    let token = json!({"metadata": {}, "spec": {"audiences": []}, "status": {"token": "m1nted", "expirationTimestamp": end}});
    answers.push(ok(Method::PATCH, BINDING, binding_to(role)));
    answers.push(ok(Method::PATCH, &format!("{RENEWAL}/roles/xregion:renew:xregion"), object()));
    let to_it =
        json!({"metadata": {"name": "x"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "x"}});
    answers.push(ok(Method::PATCH, &format!("{RENEWAL}/rolebindings/xregion:renew:xregion"), to_it));
    answers.push(ok(Method::POST, &format!("{ACCOUNT}/token"), token));
    answers
}

/// Mints from a cluster that answers so, in this order; gives what was sent, too.
async fn scenario(role: &str, answers: Vec<Answer>) -> (Result<Minted>, Vec<Value>) {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let api = tokio::spawn(async move {
        let mut sent = Vec::new();
        for Answer(method, path, status, body) in answers {
            let (request, respond) = handle.next_request().await.unwrap();
            assert_eq!((request.method(), request.uri().path()), (&method, path.as_str()));
            let bytes = request.into_body().collect_bytes().await.unwrap();
            sent.push(serde_json::from_slice(&bytes).unwrap_or_default());
            let response = Response::builder().status(status).header("content-type", "application/json");
            respond.send_response(response.body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap());
        }
        sent
    });
    let account = Account {
        name: "xregion".parse().unwrap(),
        namespace: "vela-system".parse().unwrap(),
        role: role.parse().unwrap(),
        duration: Duration::from_secs(720 * 3600),
    };
    let server = Server { host: "api.example".parse().unwrap(), port: 6443, tls_server_name: None, ca: b"ca".to_vec() };
    let minted = token_for(&Cluster::of(Client::new(service, "default")), "eks", server, &account).await;
    (minted, api.await.unwrap())
}

#[tokio::test]
async fn a_token_of_a_service_account_of_its_own_is_asked_for_as_long_as_wanted() {
    let (minted, sent) = scenario("cluster-admin", answers("cluster-admin", None, 720 * 3600)).await;
    let minted = minted.unwrap();
    assert_eq!(sent[4]["roleRef"]["name"], "cluster-admin");
    assert_eq!(sent[4]["subjects"], json!([{"kind": "ServiceAccount", "name": "xregion", "namespace": "vela-system"}]));
    assert_eq!(sent[2]["metadata"]["labels"], json!({"xregion.oam.dev/renew": "true"}));
    let narrow = |rule: &Value, resource: &str, verb: &str| {
        assert_eq!(*rule, json!({"apiGroups": [""], "resources": [resource], "resourceNames": ["xregion"], "verbs": [verb]}));
    };
    narrow(&sent[5]["rules"][0], "serviceaccounts", "get");
    narrow(&sent[5]["rules"][1], "serviceaccounts/token", "create");
    assert_eq!((&sent[6]["roleRef"]["name"], &sent[6]["subjects"]), (&json!("xregion:renew:xregion"), &sent[4]["subjects"]));
    assert_eq!(sent[7]["spec"]["expirationSeconds"], 720 * 3600);
    let kubeconfig: Value = serde_json::from_str(minted.kubeconfig.expose_secret()).unwrap();
    assert_eq!(kubeconfig["current-context"], "eks");
    assert_eq!(
        kubeconfig["clusters"][0]["cluster"],
        json!({"server": "https://api.example:6443", "certificate-authority-data": "Y2E="})
    );
    assert_eq!(kubeconfig["users"][0]["user"], json!({"token": "m1nted"}));
    assert!(minted.lifetime.ends_with("30 days from now"), "{}", minted.lifetime);
}

#[tokio::test]
async fn a_shorter_lifetime_than_asked_for_is_told() {
    let (minted, _) = scenario("cluster-admin", answers("cluster-admin", Some("cluster-admin"), 24 * 3600)).await;
    let told = minted.unwrap().lifetime;
    assert!(told.ends_with("24 hours from now: the cluster gives no more than that, 30 days were asked for"), "{told}");
}

#[tokio::test]
async fn another_role_takes_the_place_of_the_one_before() {
    let (minted, sent) = scenario("view", answers("view", Some("cluster-admin"), 720 * 3600)).await;
    minted.unwrap();
    assert_eq!(sent[5]["roleRef"]["name"], "view");
}

#[tokio::test]
async fn a_role_that_isn_t_there_is_refused_before_anything_is_made() {
    let (minted, _) = scenario("nobody", vec![refusal(Method::GET, &format!("{ROLES}/nobody"), 404, "not found")]).await;
    assert_eq!(minted.err().unwrap().kind, Kind::Usage);
}

#[tokio::test]
async fn missing_rights_are_told_with_what_they_are_missing_for() {
    for (code, kind, cause) in
        [(403, Kind::Forbidden, "may not create namespace vela-system (403): no"), (401, Kind::Unauthorized, "(401)")]
    {
        let mut answers = answers("cluster-admin", None, 1);
        answers.truncate(1);
        answers.push(refusal(Method::PATCH, "/api/v1/namespaces/vela-system", code, "no"));
        let failure = scenario("cluster-admin", answers).await.0.err().unwrap();
        assert_eq!(failure.kind, kind);
        assert!(failure.cause().contains(cause), "{failure}");
    }
}

/// A kubeconfig whose user runs this shell script.
fn exec(script: &str) -> Kubeconfig {
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": "https://255.255.255.255:1", "certificate-authority-data": k8s_openapi::ByteString(ca.into_bytes())}}],
        "users": [{"name": "u", "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "command": "sh", "args": ["-c", script],
            "env": [{"name": "PASSWORD", "value": "hunter2"}],
        }}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    crate::model::kubeconfig::document(text.to_string().as_bytes(), std::path::Path::new("")).unwrap()
}

#[tokio::test]
async fn a_command_that_fails_is_named_without_what_it_printed_or_was_given() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let account = Account {
        name: "xregion".parse().unwrap(),
        namespace: "vela-system".parse().unwrap(),
        role: "cluster-admin".parse().unwrap(),
        duration: Duration::from_secs(3600),
    };
    for (script, kind, cause) in [
        ("echo s3cret; echo s3cret >&2; exit 3", Kind::Credentials, "command 'sh' failed (exit status: 3)"),
        ("echo s3cret", Kind::Credentials, "command 'sh' printed no credentials"),
        ("echo '{\"status\":{}}'", Kind::ClusterUnreachable, "can't read ClusterRole cluster-admin"),
    ] {
        let failure = mint(&exec(script), None, &account).await.err().unwrap();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.cause().contains(cause), "{failure}");
        assert!(!failure.to_string().contains("s3cret") && !failure.to_string().contains("hunter2"), "{failure}");
    }
    let mut missing = exec("");
    missing.auth_infos[0].auth_info.as_mut().unwrap().exec.as_mut().unwrap().command = Some("nonexistent-login".into());
    let failure = mint(&missing, None, &account).await.err().unwrap();
    assert!(failure.cause().contains("command 'nonexistent-login' can't be run: No such file"), "{failure}");
}
