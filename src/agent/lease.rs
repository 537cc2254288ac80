//! What this proxy has applied, told in a Lease that lives and dies with its pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::model::names::{KIND, MANAGER};
use crate::model::region::KIND_PROXY;
use crate::model::report::{APPLIED, Report};
use crate::model::traffic::{TRAFFIC, Traffic};

/// Who writes the Lease.
const FIELD_MANAGER: &str = "xregion-agent";
/// How often the Lease is renewed, and for how long it speaks for the proxy.
const RENEW: Duration = Duration::from_secs(20);
const VALID_SECONDS: i32 = 60;
/// How long one write may take, and the first pause after a failure; it doubles up to `RENEW`.
const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// An API server takes 256 KiB of annotations.
const LONGEST_REPORT: usize = 250 << 10;

/// The pod the agent runs in.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, and that of its Lease.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Writes the latest of the `reports`, again on every change and from time to time, until nobody reports any more.
pub(super) async fn keep(
    leases: Api<Lease>,
    pod: Pod,
    mut reports: watch::Receiver<Report>,
    traffic: impl Fn() -> Traffic + Send + 'static,
) {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut retry = RETRY;
    loop {
        let lease = lease(&pod, &reports.borrow_and_update(), &traffic(), Timestamp::now());
        let written = timeout(PATIENCE, leases.patch(&pod.name, &params, &Patch::Apply(&lease))).await;
        let pause = match written.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs())) {
            Ok(Ok(_)) => {
                retry = RETRY;
                RENEW
            }
            failed => {
                let error = failed.and_then(|result| result.map_err(|error| error.to_string())).err().unwrap_or_default();
                tracing::warn!(lease = pod.name, error, "can't write the report; trying again");
                let pause = retry;
                retry = (retry * 2).min(RENEW);
                pause
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            changed = reports.changed() => if changed.is_err() { return },
        }
    }
}

fn lease(pod: &Pod, report: &Report, traffic: &Traffic, now: Timestamp) -> Lease {
    let (report, traffic) = annotations(report, traffic);
    let labels = [("app.kubernetes.io/managed-by", MANAGER), (KIND, KIND_PROXY)];
    Lease {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            annotations: Some(
                [Some((APPLIED.to_owned(), report)), traffic.map(|json| (TRAFFIC.to_owned(), json))]
                    .into_iter()
                    .flatten()
                    .collect(),
            ),
            // The garbage collector removes the Lease after the pod.
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(pod.name.clone()),
            lease_duration_seconds: Some(VALID_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// The report, which joins wait for, and the traffic where there is room for it beside.
fn annotations(report: &Report, traffic: &Traffic) -> (String, Option<String>) {
    let report = compact(report);
    let traffic = serde_json::to_string(traffic).ok().filter(|json| {
        let fits = json.len() + report.len() <= LONGEST_REPORT;
        if !fits {
            tracing::warn!(bytes = json.len(), "the traffic does not fit into the Lease; /metrics has it");
        }
        fits
    });
    (report, traffic)
}

/// The report as JSON; where it would be too long for an annotation, without what is only for people.
fn compact(report: &Report) -> String {
    let json = |report| serde_json::to_string(report).unwrap_or_default();
    let whole = json(report);
    if whole.len() <= LONGEST_REPORT {
        return whole;
    }
    let mut short = report.clone();
    short.0.values_mut().filter_map(|applied| applied.problem.as_mut()).for_each(|problem| problem.message.clear());
    json(&short)
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response, StatusCode};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock::{Handle, pair};

    use super::*;
    use crate::model::report::{Applied, Problem, Reason};
    use crate::model::traffic::{Carried, Of};

    type Server = Handle<Request<Body>, Response<Body>>;

    fn report(digest: &str) -> Report {
        Report([("xregion-route-a-0123".to_owned(), Applied { digest: digest.into(), problem: None })].into())
    }

    /// Answers the next request with `status`, and returns its line and body.
    async fn answer(server: &mut Server, status: StatusCode) -> (Method, String, Value) {
        let (request, send) = server.next_request().await.unwrap();
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let answer = match status {
            StatusCode::OK => body.to_vec(),
            code => json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "message": "no", "reason": "No"})
                .to_string()
                .into(),
        };
        send.send_response(Response::builder().status(status).body(Body::from(answer)).unwrap());
        (parts.method, parts.uri.to_string(), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_report_is_applied_on_every_change_and_again_after_a_failure() {
        let (service, mut server) = pair();
        let leases = Api::namespaced(Client::new(service, "vela-system"), "vela-system");
        let (sender, reports) = watch::channel(report("1"));
        let task = tokio::spawn(keep(leases, Pod { name: "proxy-1".into(), uid: "u1".into() }, reports, || {
            Traffic::new(
                Timestamp::UNIX_EPOCH,
                [(&Of { cluster: "a".into(), hub: "h".into() }, Carried { open: 1, ..Carried::default() })],
            )
        }));

        let (method, uri, body) = answer(&mut server, StatusCode::INTERNAL_SERVER_ERROR).await;
        assert_eq!(method, Method::PATCH);
        assert_eq!(
            uri,
            "/apis/coordination.k8s.io/v1/namespaces/vela-system/leases/proxy-1?&force=true&fieldManager=xregion-agent"
        );
        assert_eq!(body["apiVersion"], "coordination.k8s.io/v1");
        assert_eq!(body["kind"], "Lease");
        assert_eq!(body["metadata"]["labels"]["xregion.oam.dev/kind"], "proxy");
        assert_eq!(body["metadata"]["annotations"]["xregion.oam.dev/applied"], r#"{"xregion-route-a-0123":{"digest":"1"}}"#);
        let traffic = r#"{"since":"1970-01-01T00:00:00Z","carried":{"h/a":[0,0,1,0,0]}}"#;
        assert_eq!(body["metadata"]["annotations"]["xregion.oam.dev/traffic"], traffic);
        assert_eq!(
            body["metadata"]["ownerReferences"],
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "proxy-1", "uid": "u1"}])
        );
        assert_eq!(body["spec"]["holderIdentity"], "proxy-1");
        assert_eq!(body["spec"]["leaseDurationSeconds"], 60);
        assert!(body["spec"]["renewTime"].is_string());

        let (_, _, again) = answer(&mut server, StatusCode::OK).await;
        assert_eq!(again["metadata"], body["metadata"]);
        sender.send(report("2")).unwrap();
        let (_, _, changed) = answer(&mut server, StatusCode::OK).await;
        assert_eq!(changed["metadata"]["annotations"]["xregion.oam.dev/applied"], r#"{"xregion-route-a-0123":{"digest":"2"}}"#);
        let before = tokio::time::Instant::now();
        answer(&mut server, StatusCode::OK).await;
        assert_eq!(before.elapsed().as_secs(), RENEW.as_secs());
        drop(sender);
        task.await.unwrap();
    }

    #[test]
    fn a_report_that_would_not_fit_an_annotation_keeps_what_a_join_reads() {
        let problem = Problem { reason: Reason::Unresolvable, message: "m".repeat(300) };
        let entry = |i| (format!("xregion-route-{i}"), Applied { digest: "d".into(), problem: Some(problem.clone()) });
        let report = Report((0..1000).map(entry).collect());
        let text = compact(&report);
        assert!(text.len() < LONGEST_REPORT, "{}", text.len());
        let read: Report = serde_json::from_str(&text).unwrap();
        assert!(read.0.values().all(|applied| applied.problem.as_ref().unwrap().reason == Reason::Unresolvable));
    }
}
