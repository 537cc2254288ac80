//! A cluster's API as far as an agent asks for it.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower_test::mock::{Handle, pair};
use xregion::model::report::{Reason, Report};
use xregion::model::route::Route;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// A cluster's API with some ConfigMaps, one node, and the Leases that are applied.
pub struct Cluster {
    pub client: Client,
    events: mpsc::UnboundedSender<Value>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Cluster {
    pub fn new(maps: Vec<ConfigMap>) -> Self {
        let (service, server) = pair();
        let (events, watch) = mpsc::unbounded_channel();
        let (leases, reports) = mpsc::unbounded_channel();
        tokio::spawn(Self::serve(server, maps, watch, leases));
        Self { client: Client::new(service, "vela-system"), events, reports }
    }

    async fn serve(
        mut server: Handle<Request<Body>, Answer>,
        maps: Vec<ConfigMap>,
        watch: mpsc::UnboundedReceiver<Value>,
        leases: mpsc::UnboundedSender<Report>,
    ) {
        let mut watch = Some(watch);
        while let Some((request, send)) = server.next_request().await {
            let (parts, body) = request.into_parts();
            let query = parts.uri.query().unwrap_or_default();
            let whole = |bytes: Bytes| Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
            let list = |items: Value| whole(json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string().into());
            let body = match (parts.method, parts.uri.path()) {
                (Method::GET, "/api/v1/namespaces/vela-system/configmaps") if query.contains("watch=true") => {
                    let Some(mut watch) = watch.take() else { continue };
                    let line = |event: Value| Ok(Frame::data(Bytes::from(format!("{event}\n"))));
                    let lines = futures::stream::poll_fn(move |context| watch.poll_recv(context).map(|event| event.map(line)));
                    StreamBody::new(lines).boxed_unsync()
                }
                (Method::GET, "/api/v1/namespaces/vela-system/configmaps") => {
                    assert!(query.contains("labelSelector=xregion.oam.dev%2Fkind+in+%28route%2Cregion%29"), "{query}");
                    list(json!(maps))
                }
                (Method::GET, "/api/v1/nodes") => list(
                    json!([{"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.21"}]}}]),
                ),
                (Method::GET, "/apis/networking.k8s.io/v1/servicecidrs") => list(json!([{"spec": {"cidrs": ["198.51.100.0/24"]}}])),
                (Method::PATCH, "/apis/coordination.k8s.io/v1/namespaces/vela-system/leases/proxy-1") => {
                    let body = body.collect_bytes().await.unwrap();
                    let lease: Value = serde_json::from_slice(&body).unwrap();
                    let report = lease["metadata"]["annotations"]["xregion.oam.dev/applied"].as_str().unwrap();
                    leases.send(serde_json::from_str(report).unwrap()).unwrap();
                    whole(body)
                }
                (method, path) => panic!("the agent asked for {method} {path}"),
            };
            send.send_response(Response::new(body));
        }
    }

    pub fn tell(&self, event: &str, map: &ConfigMap) {
        self.events.send(json!({"type": event, "object": map})).unwrap();
    }

    /// Waits for a report that is as wanted.
    pub async fn report(&mut self, what: &str, wanted: impl Fn(&BTreeMap<String, Option<Reason>>) -> bool) {
        let mut last = BTreeMap::new();
        let wait = async {
            while let Some(report) = self.reports.recv().await {
                last = report.0.into_iter().map(|(name, applied)| (name, applied.problem.map(|problem| problem.reason))).collect();
                if wanted(&last) {
                    return;
                }
            }
        };
        let done = timeout(Duration::from_secs(10), wait).await;
        assert!(done.is_ok(), "waited 10 s for {what}; the last report is {last:?}");
    }
}

pub fn config_map(route: &Route, version: u32) -> ConfigMap {
    let mut map = route.to_config_map();
    map.metadata.resource_version = Some(version.to_string());
    map
}

pub fn settings() -> ConfigMap {
    let region = json!({"nodes": {"addressType": "InternalIP"}, "nodePorts": {"first": 30000, "last": 30085}, "upstreams": {"allow": []},
        "timeouts": {"connectSeconds": 1, "idleSeconds": 60, "drainSeconds": 60}});
    serde_json::from_value(
        json!({"metadata": {"name": "xregion-region", "resourceVersion": "2", "labels": {"xregion.oam.dev/kind": "region"}},
        "data": {"region.json": region.to_string()}}),
    )
    .unwrap()
}
