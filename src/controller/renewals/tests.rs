use std::collections::BTreeMap;
use std::convert::Infallible;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use kube::client::Body;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower_test::mock::{Handle, pair};

use super::super::Still;
use super::super::metrics::Metrics;
use super::*;
use crate::endpoints::Health;
use crate::hub::Hub;
use crate::lock::Claim;
use crate::model::drift::Trouble;
use crate::model::members::{APPLIED, HOLDS, MESSAGE, PARAMETERS, SEEN};
use crate::model::nodes::EntryNode;
use crate::model::observed::SeenRegion;
use crate::model::observed::sample::{inside, name};

const IDENTITY: &str = "uid-of-a";
const PARAMETERS_OF_A: &str = r#"{"cluster":"a","region":"east","secret":"brought","key":"k"}"#;

/// A token of ServiceAccount `uid` that was made and ends so many hours from now.
fn token(uid: &str, issued: i64, ends: i64) -> String {
    let at = |hours: i64| (Timestamp::now() + SignedDuration::from_hours(hours)).as_second();
    let payload = json!({
        "sub": "system:serviceaccount:vela-system:xregion", "iat": at(issued), "exp": at(ends),
        "kubernetes.io": {"serviceaccount": {"uid": uid}},
    });
    format!("e30.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()))
}

/// One with a quarter of its life left.
fn due() -> String {
    token("1", -3, 1)
}

fn kubeconfig(token: &str) -> String {
    format!(
        "# as it was brought\n{}",
        json!({
            "clusters": [{"name": "k", "cluster": {"server": "https://a.example"}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": token}}], "current-context": "c",
        })
    )
}

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// What the cluster and the hub know and were asked.
struct World {
    /// The tokens that the cluster accepts.
    accepted: Vec<String>,
    /// The one that it gives, to an account with this label.
    gives: String,
    marked: bool,
    /// Secrets and ConfigMaps of the hub, by path.
    objects: BTreeMap<String, Value>,
    /// What was written, in this order.
    writes: Vec<String>,
    /// The path of an object that can't be written.
    fails: Option<&'static str>,
    /// After which write somebody else writes an object of which path.
    races: Option<[&'static str; 2]>,
    /// What somebody else does while the cluster is asked for a token.
    meanwhile: Option<Deed>,
}

type Shared = Arc<std::sync::Mutex<World>>;
type Deed = Box<dyn FnOnce(&mut World) + Send>;

fn status(code: u16, reason: &str) -> (u16, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "message": reason, "reason": reason}))
}

impl World {
    /// The cluster's API.
    fn cluster(&mut self, method: &Method, path: &str, bearer: &str, body: &Value) -> (u16, Value) {
        if !self.accepted.iter().any(|token| format!("Bearer {token}") == bearer) {
            return status(401, "Unauthorized");
        }
        match (method.as_str(), path) {
            ("GET", "/version") => (200, json!({"major": "1", "minor": "34"})),
            ("GET", "/api/v1/namespaces/kube-system") => (200, json!({"metadata": {"uid": IDENTITY}})),
            ("GET", "/api/v1/namespaces/vela-system/serviceaccounts/xregion") => {
                (200, json!({"metadata": {"labels": if self.marked { json!({RENEW: "true"}) } else { json!({}) }}}))
            }
            ("POST", "/api/v1/namespaces/vela-system/serviceaccounts/xregion/token") => {
                assert_eq!(body["spec"]["expirationSeconds"], 4 * 3600, "as long as the old one");
                self.writes.push("token".into());
                self.race("token");
                if let Some(meanwhile) = self.meanwhile.take() {
                    meanwhile(self);
                }
                let end = Timestamp::now().to_string();
                (
                    201,
                    json!({"metadata": {}, "spec": {"audiences": []}, "status": {"token": self.gives, "expirationTimestamp": end}}),
                )
            }
            _ => status(404, "NotFound"),
        }
    }

    /// The hub's API.
    fn hub(&mut self, method: &Method, path: &str, query: &str, body: Value) -> (u16, Value) {
        let Some(path) = path.strip_prefix("/api/v1/namespaces/vela-system/") else {
            // Leases and Events.
            return if *method == Method::GET { status(404, "NotFound") } else { (200, body) };
        };
        let labelled = |what: &str| query.contains(what);
        match (method, self.objects.get_mut(path)) {
            (&Method::PATCH, Some(_)) if self.fails == Some(path) => status(500, "InternalError"),
            (&Method::PATCH, Some(object)) => {
                let version = &body["metadata"]["resourceVersion"];
                if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
                    return status(409, "Conflict");
                }
                for part in [&["data"][..], &["metadata", "annotations"]] {
                    let get = |value: &Value| part.iter().fold(value.clone(), |value, key| value[*key].clone());
                    let mut merged = get(object).as_object().cloned().unwrap_or_default();
                    merged.extend(get(&body).as_object().cloned().unwrap_or_default());
                    merged.retain(|_, value| !value.is_null());
                    match part {
                        ["data"] => object["data"] = Value::Object(merged),
                        _ => object["metadata"]["annotations"] = Value::Object(merged),
                    }
                }
                object["metadata"]["resourceVersion"] =
                    json!(format!("{}+", object["metadata"]["resourceVersion"].as_str().unwrap()));
                let written = object.clone();
                self.writes.push(path.to_owned());
                self.race(path);
                (200, written)
            }
            (_, Some(object)) => (200, object.clone()),
            (_, None) => {
                let items: Vec<&Value> = match path {
                    "secrets" if labelled("credential-type") => self.objects.get("secrets/a").into_iter().collect(),
                    "configmaps" if labelled("%3Dmember") => {
                        ["configmaps/member", "configmaps/other"].iter().filter_map(|path| self.objects.get(*path)).collect()
                    }
                    "configmaps" if labelled("%3Dprogress") => self.objects.get("configmaps/progress").into_iter().collect(),
                    "secrets" | "configmaps" => vec![],
                    _ => return status(404, "NotFound"),
                };
                (200, json!({"kind": "List", "metadata": {}, "items": items}))
            }
        }
    }

    fn race(&mut self, after: &str) {
        if let Some([_, path]) = self.races.take_if(|[trigger, _]| *trigger == after) {
            self.objects.get_mut(path).unwrap()["metadata"]["resourceVersion"] = json!("2");
        }
    }

    /// Writes another text into the kubeconfig's Secret.
    fn bring(&mut self, text: &str) {
        let secret = self.objects.get_mut("secrets/brought").unwrap();
        secret["metadata"]["resourceVersion"] = json!("2");
        secret["data"]["k"] = json!(base64(text));
    }

    fn text(&self, path: &str, key: &str) -> String {
        let encoded = self.objects[path]["data"][key].as_str().unwrap();
        String::from_utf8(BASE64_STANDARD.decode(encoded).unwrap()).unwrap()
    }
}

/// Answers as the cluster, behind one of its region's nodes; gives its port and its authority.
async fn serve_cluster(world: Shared) -> (u16, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], private).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_connection(acceptor.clone(), stream, world.clone()));
        }
    });
    (port, certificate.pem())
}

async fn serve_connection(acceptor: TlsAcceptor, stream: TcpStream, world: Shared) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        let world = world.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default();
            let bearer = parts.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let (status, answer) = world.lock().unwrap().cluster(&parts.method, parts.uri.path(), bearer, &body);
            let response = Response::builder().status(status).header("content-type", "application/json");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(answer.to_string()))).unwrap())
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn serve_hub(mut handle: Handle<Request<Body>, Response<Body>>, world: Shared) {
    while let Some((request, respond)) = handle.next_request().await {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let body = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap_or_default();
        let (status, answer) = world.lock().unwrap().hub(&method, uri.path(), uri.query().unwrap_or_default(), body);
        let response = Response::builder().status(status).header("content-type", "application/json");
        respond.send_response(response.body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap());
    }
}

/// A hub with cluster `a`, joined with `token`, and the kubeconfig that it was joined with.
struct Scene {
    world: Shared,
    hub: Hub,
    renewing: Renewing,
}

impl Scene {
    async fn new(token: &str) -> Self {
        let gives = self::token("1", 0, 4);
        let accepted = vec![token.to_owned(), gives.clone()];
        let world = World {
            accepted,
            gives,
            marked: true,
            objects: BTreeMap::new(),
            writes: vec![],
            fails: None,
            races: None,
            meanwhile: None,
        };
        let world = Arc::new(std::sync::Mutex::new(world));
        let (port, authority) = serve_cluster(world.clone()).await;
        let annotations = json!({
            "xregion.oam.dev/schema": "1", "xregion.oam.dev/region": "east", "xregion.oam.dev/upstream": "a.example:443",
            "xregion.oam.dev/alias": "a.example", "xregion.oam.dev/node-port": port.to_string(), "xregion.oam.dev/identity": IDENTITY,
            "xregion.oam.dev/source": "brought/k", "xregion.oam.dev/renews": "2026-01-01T00:00:00Z",
        });
        let endpoint = format!("https://a.example:{port}");
        let brought = kubeconfig(token);
        let objects = [
            (
                "secrets/a",
                json!({
                    "metadata": {
                        "name": "a", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations,
                        "labels": {"cluster.core.oam.dev/cluster-credential-type": "ServiceAccountToken"},
                    },
                    "data": {"endpoint": base64(&endpoint), "ca.crt": base64(&authority), "token": base64(token)},
                }),
            ),
            (
                "secrets/brought",
                json!({
                    "metadata": {"name": "brought", "resourceVersion": "1", "labels": {"xregion.oam.dev/kubeconfig": "true"}},
                    "data": {"k": base64(&brought)},
                }),
            ),
            (
                "configmaps/member",
                json!({
                    "metadata": {
                        "name": "member", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
                        "annotations": {HOLDS: "a", APPLIED: digest(PARAMETERS_OF_A, Some(brought.as_bytes()))},
                    },
                    "data": {PARAMETERS: PARAMETERS_OF_A, SEEN: PARAMETERS_OF_A},
                }),
            ),
        ];
        world.lock().unwrap().objects = objects.map(|(path, object)| (path.to_owned(), object)).into();
        let (service, handle) = pair();
        tokio::spawn(serve_hub(handle, world.clone()));
        let hub = Hub::mocked(Client::new(service, "vela-system"));
        Self { world, hub, renewing: Renewing::default() }
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.world.lock().unwrap())
    }

    /// Looks, and renews what is due; gives what is told then. `skew` is how far the clock has gone on.
    async fn look(&mut self, skew: SignedDuration) -> Vec<Trouble> {
        let health = Health::new("");
        let (still, credentials) = (Still::default(), std::sync::Mutex::default());
        let controller = Controller { hub: &self.hub, holder: "me", health, metrics: Metrics::new(), still, credentials };
        let (secrets, records) = controller.records().await.unwrap();
        let node = EntryNode { name: "n".into(), ip: [127, 0, 0, 1].into(), ready: true, lacks_proxy: false, balances: false };
        let region = SeenRegion { name: name("east"), inside: Ok(Inside { nodes: vec![node], ..inside(1, vec![]) }) };
        let gateway = Err(Failure::new(Kind::GatewayMissing, "none", "none"));
        let seen = Seen { secrets, records, regions: vec![region], services: Ok(None), gateway };
        let leases = Api::namespaced(self.hub.client(), "vela-system");
        let lock = Claim::new(leases, "lease", "me").take().await.unwrap().unwrap();
        controller.renew_due(&lock, &seen, &mut self.renewing, Timestamp::now() + skew).await;
        lock.release().await;
        controller.credential_troubles()
    }

    fn writes(&self) -> Vec<String> {
        self.change(|world| std::mem::take(&mut world.writes))
    }

    fn tokens(&self) -> [String; 2] {
        self.change(|world| {
            let brought = token_in(world.text("secrets/brought", "k").as_bytes(), None).unwrap();
            [world.text("secrets/a", "token"), brought.expose_secret().to_owned()]
        })
    }
}

const NOW: SignedDuration = SignedDuration::ZERO;
const ALL: [&str; 4] = ["token", "secrets/brought", "secrets/a", "configmaps/member"];

#[tokio::test]
async fn a_token_is_renewed_in_its_source_first_then_where_the_gateway_reads_it() {
    let mut scene = Scene::new(&due()).await;
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ALL);
    let new = scene.change(|world| world.gives.clone());
    assert_eq!(scene.tokens(), [new.clone(), new]);
    scene.change(|world| {
        let text = world.text("secrets/brought", "k");
        assert!(text.starts_with("# as it was brought\n"), "the rest of it stays");
        let annotations = &world.objects["secrets/a"]["metadata"]["annotations"];
        let expires: Timestamp = annotations["xregion.oam.dev/expires"].as_str().unwrap().parse().unwrap();
        let renews: Timestamp = annotations["xregion.oam.dev/renews"].as_str().unwrap().parse().unwrap();
        assert_eq!(expires.duration_since(renews).as_secs(), 4 * 3600 / 3);
        assert_eq!(annotations["xregion.oam.dev/identity"], IDENTITY);
        let member = &world.objects["configmaps/member"];
        assert_eq!(member["metadata"]["annotations"][APPLIED], digest(PARAMETERS_OF_A, Some(text.as_bytes())));
        let message = member["data"][MESSAGE].as_str().unwrap();
        assert!(
            message.contains(&expires.to_string()) && message.ends_with("the addon's controller renews it before"),
            "{message}"
        );
    });
    // And that was all.
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), [""; 0]);
}

#[tokio::test]
async fn a_look_that_is_older_than_what_was_written_does_no_harm() {
    let mut scene = Scene::new(&due()).await;
    let new = token("1", 0, 5);
    scene.change(|world| {
        world.accepted.push(new.clone());
        let new = base64(&new);
        world.meanwhile = Some(Box::new(move |world| world.objects.get_mut("secrets/a").unwrap()["data"]["token"] = json!(new)));
    });
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ["token"]);
    assert_eq!(scene.tokens()[0], new);
}

#[tokio::test]
async fn what_is_not_due_is_left_alone_and_no_cluster_is_asked() {
    let mut scene = Scene::new(&token("1", -2, 2)).await;
    scene.change(|world| world.accepted.clear());
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), [""; 0]);
}

#[tokio::test]
async fn a_death_between_the_two_secrets_is_gone_on_from() {
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| world.fails = Some("secrets/a"));
    assert_eq!(scene.look(NOW).await, [], "it may pass");
    assert_eq!(scene.writes(), ALL[..2]);
    let new = scene.change(|world| {
        world.fails = None;
        world.gives.clone()
    });
    assert_ne!(scene.tokens()[0], new);
    assert_eq!(scene.look(SignedDuration::from_secs(5)).await, []);
    assert_eq!(scene.writes(), [""; 0], "it waits a while");
    // Another controller remembers nothing, and asks for no second token. The member's digest was lost with the first.
    scene.renewing = Renewing::default();
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ["secrets/a"]);
    assert_eq!(scene.tokens(), [new.clone(), new]);
}

#[tokio::test]
async fn what_somebody_changes_meanwhile_is_not_overwritten() {
    let mut scene = Scene::new(&due()).await;
    let before = scene.tokens();
    scene.change(|world| world.races = Some(["secrets/brought", "secrets/a"]));
    assert_eq!(scene.look(NOW).await, [], "it may pass");
    assert_eq!(scene.writes(), ALL[..2]);
    assert_eq!(scene.tokens()[0], before[0]);
    // And the next time it goes on from there.
    assert_eq!(scene.look(SignedDuration::from_secs(11)).await, []);
    let new = scene.change(|world| world.gives.clone());
    assert_eq!(scene.tokens(), [new.clone(), new]);

    let (mut scene, later) = (Scene::new(&due()).await, token("1", 0, 9));
    let text = kubeconfig(&later);
    scene.change(|world| {
        world.accepted.push(later.clone());
        world.meanwhile = Some(Box::new(move |world| world.bring(&text)));
    });
    let before = scene.tokens();
    assert_eq!(scene.look(NOW).await, [], "it may pass");
    assert_eq!(scene.writes(), ALL[..1]);
    assert_eq!(scene.tokens(), [before[0].clone(), later.clone()]);
    assert_eq!(scene.look(SignedDuration::from_secs(11)).await, []);
    assert_eq!(scene.tokens(), [later.clone(), later]);
}

#[tokio::test]
async fn clusters_of_one_kubeconfig_are_renewed_at_the_same_time_and_none_of_their_members_joins_again() {
    let other = r#"{"cluster":"b","region":"east","secret":"brought","key":"k","context":"d"}"#;
    let elsewhere = r#"{"cluster":"c","region":"east","secret":"another","key":"k"}"#;
    let of = |one: &str, two: &str| {
        let mut text: Value = serde_json::from_str(kubeconfig(one).split_once('\n').unwrap().1).unwrap();
        let context = json!({"name": "d", "context": {"cluster": "k", "user": "v"}});
        text["contexts"].as_array_mut().unwrap().push(context);
        text["users"].as_array_mut().unwrap().push(json!({"name": "v", "user": {"token": two}}));
        text.to_string()
    };
    let joined_with = |text: &str, parameters: &str, world: &mut World| {
        for (path, parameters, holds) in [("configmaps/member", PARAMETERS_OF_A, "a"), ("configmaps/other", parameters, "b")] {
            world.objects.get_mut(path).unwrap()["metadata"]["annotations"] =
                json!({HOLDS: holds, APPLIED: digest(parameters, Some(text.as_bytes()))});
        }
    };
    for (parameters, noted) in [(other, true), (elsewhere, false)] {
        let old = due();
        let mut scene = Scene::new(&old).await;
        let (before, meanwhile) = (of(&old, "one.of.b"), of(&old, "another.of.b"));
        scene.change(|world| {
            world.bring(&before);
            let mut map = world.objects["configmaps/member"].clone();
            (map["metadata"]["name"], map["metadata"]["uid"]) = (json!("other"), json!("v"));
            map["data"] = json!({PARAMETERS: parameters, SEEN: parameters, MESSAGE: "well"});
            world.objects.insert("configmaps/other".into(), map);
            joined_with(&before, parameters, world);
            world.meanwhile = Some(Box::new(move |world| {
                world.bring(&meanwhile);
                joined_with(&meanwhile, parameters, world);
            }));
        });
        assert_eq!(scene.look(NOW).await, []);
        let wrote = scene.writes();
        assert_eq!(
            (&wrote[..4], wrote.get(4).map(String::as_str)),
            (&ALL.map(str::to_owned)[..], noted.then_some("configmaps/other"))
        );
        scene.change(|world| {
            let text = world.text("secrets/brought", "k");
            assert_eq!(text, of(&world.gives, "another.of.b"));
            let applied = |path: &str, parameters: &str| {
                world.objects[path]["metadata"]["annotations"][APPLIED] == digest(parameters, Some(text.as_bytes()))
            };
            assert!(applied("configmaps/member", PARAMETERS_OF_A));
            assert_eq!(applied("configmaps/other", parameters), noted);
            assert_eq!(world.objects["configmaps/other"]["data"][MESSAGE], "well", "it is about another cluster");
        });
    }
}

#[tokio::test]
async fn a_source_of_somebody_else_or_none_is_left_alone() {
    for (what, text) in [("another account's", kubeconfig(&token("2", 0, 9))), ("no kubeconfig", "x".to_owned())] {
        let mut scene = Scene::new(&due()).await;
        scene.change(|world| world.objects.get_mut("secrets/brought").unwrap()["data"]["k"] = json!(base64(&text)));
        assert_eq!(scene.look(NOW).await, []);
        assert_eq!(scene.writes(), ["token", "secrets/a"], "{what}");
    }
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| world.objects.get_mut("secrets/brought").unwrap()["metadata"]["labels"] = json!({}));
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ["token", "secrets/a"], "it doesn't opt in any more");
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| world.objects.remove("secrets/brought"));
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ["token", "secrets/a"], "it is gone");
}

#[tokio::test]
async fn a_token_that_the_cluster_does_not_accept_is_not_written() {
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| world.gives = token("9", 0, 4));
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ["token"]);
    // One that ends no later is no better, and the old one stays.
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| {
        world.gives = token("1", -1, 0);
        world.accepted.push(world.gives.clone());
    });
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ["token"]);
}

#[tokio::test]
async fn who_is_not_marked_is_told_and_not_renewed() {
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| world.marked = false);
    let told = scene.look(NOW).await;
    assert_eq!(scene.writes(), [""; 0]);
    let [Trouble { about, problem }] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(about.to_string(), "cluster a");
    assert!(problem.cause.contains("vela-system/xregion has no label xregion.oam.dev/renew=true"), "{problem:?}");
    assert!(problem.fix.contains("put its FILE into Secret vela-system/brought, key k"), "{problem:?}");
}

#[tokio::test]
async fn a_token_that_is_over_is_told_until_another_is_brought() {
    let mut scene = Scene::new(&token("1", -5, -1)).await;
    let told = scene.look(NOW).await;
    let [Trouble { problem, .. }] = told.as_slice() else { panic!("{told:?}") };
    assert!(
        problem.cause.starts_with("its token expired at ") && problem.fix.starts_with("run xregion kubeconfig again"),
        "{problem:?}"
    );
    assert_eq!(scene.writes(), [""; 0]);
    let new = scene.change(|world| {
        let brought = base64(&kubeconfig(&world.gives));
        world.objects.get_mut("secrets/brought").unwrap()["data"]["k"] = json!(brought);
        world.gives.clone()
    });
    // Whoever brings one by hand needs no permission; it is only not renewed in its turn.
    scene.change(|world| world.marked = false);
    assert_eq!(scene.look(SignedDuration::from_secs(11)).await, []);
    assert_eq!(scene.writes(), ["secrets/a"]);
    assert_eq!(scene.tokens(), [new.clone(), new]);
    scene.change(|world| assert_eq!(world.objects["secrets/a"]["metadata"]["annotations"]["xregion.oam.dev/renews"], Value::Null));
}

#[tokio::test]
async fn one_that_never_ends_is_taken_up_where_it_was_brought() {
    let payload = json!({
        "sub": "system:serviceaccount:vela-system:xregion", "kubernetes.io/serviceaccount/service-account.uid": "1",
    });
    let endless = format!("e30.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()));
    for before in [due(), token("1", -5, -1)] {
        let mut scene = Scene::new(&before).await;
        scene.change(|world| {
            world.accepted.push(endless.clone());
            world.objects.get_mut("secrets/brought").unwrap()["data"]["k"] = json!(base64(&kubeconfig(&endless)));
        });
        assert_eq!(scene.look(NOW).await, []);
        assert_eq!(scene.writes(), ["secrets/a"], "and the cluster is asked for none");
        assert_eq!(scene.tokens(), [endless.clone(), endless.clone()]);
        scene.change(|world| {
            let annotations = &world.objects["secrets/a"]["metadata"]["annotations"];
            let ends = ["expires", "renews"].map(|key| annotations[format!("xregion.oam.dev/{key}")].clone());
            assert_eq!(ends, [Value::Null, Value::Null]);
        });
        assert_eq!(scene.look(NOW).await, [], "there is nothing to renew any more");
        assert_eq!(scene.writes(), [""; 0]);
    }
}

#[tokio::test]
async fn a_brought_token_that_the_cluster_does_not_accept_does_not_keep_the_one_in_use_from_being_renewed() {
    let mut scene = Scene::new(&due()).await;
    let revoked = base64(&kubeconfig(&token("1", 0, 9)));
    scene.change(|world| world.objects.get_mut("secrets/brought").unwrap()["data"]["k"] = json!(revoked));
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), ALL[..3], "its member has not joined with it");
    let new = scene.change(|world| world.gives.clone());
    assert_eq!(scene.tokens(), [new.clone(), new], "nobody can use the other");
    // When it is over, there is nothing to ask with.
    let mut scene = Scene::new(&token("1", -5, -1)).await;
    scene.change(|world| world.objects.get_mut("secrets/brought").unwrap()["data"]["k"] = json!(revoked));
    let told = scene.look(NOW).await;
    assert!(told.len() == 1 && told[0].problem.cause.starts_with("its token expired at "), "{told:?}");
    assert_eq!(scene.writes(), [""; 0]);
}

#[tokio::test]
async fn a_cluster_whose_record_is_in_doubt_or_that_a_run_is_busy_with_is_left_alone() {
    let mut scene = Scene::new(&due()).await;
    let joining = json!({
        "metadata": {"name": "progress", "resourceVersion": "1"},
        "data": {"stage": "proving", "at": Timestamp::now().to_string(), "clusters": r#"{"a":"east"}"#},
    });
    scene.change(|world| world.objects.insert("configmaps/progress".into(), joining));
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), [""; 0]);
    let mut scene = Scene::new(&due()).await;
    scene.change(|world| world.objects.get_mut("secrets/a").unwrap()["data"]["endpoint"] = json!(base64("https://elsewhere:1")));
    assert_eq!(scene.look(NOW).await, []);
    assert_eq!(scene.writes(), [""; 0]);
}
