//! How the gateway's Deployment is changed so that no request fails, and when the change is through.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde_json::{Value, json};

use super::aliases::{HostAliases, RECORD, Record};
use super::names::{DnsName, KIND};
use super::pods::is_ready;
use crate::error::{Failure, Kind, Result};

/// How long a terminating gateway goes on serving, in seconds: routing to it stops only when kube-proxy has heard of its end. That takes a
/// second or two (the EndpointSlices, which may be a second behind, and kube-proxy, which writes its rules once a second). Every join
/// waits for as long.
const PRE_STOP_SECONDS: u64 = 4;
/// How long a new pod must have been ready before Kubernetes lets an old one go, in seconds (`minReadySeconds`). What takes the old one
/// off the Service's endpoints and what puts the new one on them are two controllers: one that is behind tries again a second later
/// (`defaultSyncBackOff` in `k8s.io/kubernetes/pkg/controller/endpointslice`), and the Service had no endpoint for 0.9 s once.
const LISTED_SECONDS: i32 = 2;
/// The same while a run hands over from old pods that don't pause before they stop. The hand-over is long over by then; it is also when Kubernetes goes on if that run dies.
const HANDOVER_SECONDS: i32 = 60;
/// What [`KIND`] says of a gateway pod that was taken out of service and is about to end.
pub const KIND_RETIRED: &str = "retired-gateway";
/// Annotation of the gateway's pod template: when connections through it were last cut.
const CUT: &str = "xregion.oam.dev/cut";
/// What makes the gateway find out within 8 s that a connection is dead; it waits 45 s by itself. (Environment that
/// `k8s.io/apimachinery/pkg/util/net` reads for HTTP/2's health check; measured with one proxy node of two black-holed.)
const PINGS: [(&str, &str); 2] = [("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "5"), ("HTTP2_PING_TIMEOUT_SECONDS", "3")];
/// How much annotations of the gateway's Deployment may come to, keys and values, in bytes. Kubernetes takes 256 KiB
/// (`TotalAnnotationSizeLimitB` in `k8s.io/apimachinery/pkg/api/validation`); its own, such as the history of revisions, which ReplicaSets have
/// beside those of their Deployment, need some of that.
const ANNOTATIONS_LIMIT: usize = 252 * 1024;
/// The gateway's own readiness endpoint; it needs no credentials.
const READY_PATH: &str = "/readyz";

/// The aliases that a Deployment's pod template has, with xregion's record of them.
///
/// # Errors
/// The record was edited into something that is none.
pub fn host_aliases(deployment: &Value) -> Result<HostAliases> {
    let record = match deployment["metadata"]["annotations"][RECORD].as_str() {
        None => Record::default(),
        Some(json) => serde_json::from_str(json).map_err(|error| {
            Failure::new(
                Kind::Unexpected,
                format!("the annotation {RECORD} of the gateway's Deployment is no record of host aliases: {error}"),
                "restore it from a backup, or remove it if no cluster was joined through xregion",
            )
        })?,
    };
    let entries = deployment["spec"]["template"]["spec"]["hostAliases"].as_array().cloned().unwrap_or_default();
    Ok(HostAliases { entries, record })
}

/// Refuses a record that is longer than before and too long for Kubernetes.
fn check_record(deployment: &Value, record: &str) -> Result<()> {
    let annotations = || deployment["metadata"]["annotations"].as_object().into_iter().flatten();
    let before = deployment["metadata"]["annotations"][RECORD].as_str().map_or(0, str::len);
    let others: usize =
        annotations().filter(|(key, _)| *key != RECORD).map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    let length = others + RECORD.len() + record.len();
    if length <= ANNOTATIONS_LIMIT || record.len() <= before {
        return Ok(());
    }
    Err(Failure::new(
        Kind::AliasLimit,
        format!(
            "the record of all host aliases, in an annotation of the gateway's Deployment, would make {length} bytes of annotations with \
             the {others} of others, and {ANNOTATIONS_LIMIT} are what fits"
        ),
        "let clusters leave that nobody needs, join further ones to another hub, or remove large annotations of others from that Deployment",
    ))
}

/// The JSON merge patch that brings `deployment` to `wanted`, or none if it is there already.
///
/// A change that restarts pods also sees to it that the new pod takes over before the old one goes: `maxUnavailable: 0`, a
/// readiness probe where the container has none, and a pause before it stops. (Measured at 20 requests a second: the chart's
/// defaults fail 36 requests, `maxUnavailable: 0` alone 23, with the probe none.) With `cut` the pods are replaced also where only the record changes, and with
/// them every connection that is open through the gateway. With `smooth` all that is written also where the aliases are as wanted.
///
/// # Errors
/// The record can't be read, or is to become too long to be kept.
pub fn patch(deployment: &Value, wanted: &HostAliases, cut: Option<Timestamp>, smooth: bool) -> Result<Option<Value>> {
    let now = host_aliases(deployment)?;
    let smoothed = smooth && !is_smooth(deployment);
    if now == *wanted && !smoothed {
        return Ok(None);
    }
    let record =
        serde_json::to_string(&wanted.record).map_err(|error| Failure::new(Kind::Unexpected, error.to_string(), "report this"))?;
    check_record(deployment, &record)?;
    let mut patch = json!({"metadata": {
        // Whoever changes the Deployment meanwhile makes this a conflict (409), and the rule is applied anew.
        "resourceVersion": deployment["metadata"]["resourceVersion"],
        "annotations": {RECORD: record},
    }});
    if now.entries != wanted.entries || cut.is_some() || smoothed {
        let mut pod = json!({"hostAliases": wanted.entries});
        let template = &deployment["spec"]["template"]["spec"];
        let containers = smooth_containers(template);
        if containers != template["containers"] {
            pod["containers"] = containers;
        }
        let pauses = !template["containers"][0]["lifecycle"]["preStop"].is_null();
        patch["spec"] = json!({
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"spec": pod},
        });
        if !pauses {
            patch["spec"]["minReadySeconds"] = json!(HANDOVER_SECONDS);
        } else if !waits_to_be_listed(deployment) {
            patch["spec"]["minReadySeconds"] = json!(LISTED_SECONDS);
        }
        if let Some(at) = cut {
            patch["spec"]["template"]["metadata"] = json!({"annotations": {CUT: at.to_string()}});
        }
    }
    Ok(Some(patch))
}

/// Whether pods of a Deployment take over from each other as [`patch`] has it.
pub fn is_smooth(deployment: &Value) -> bool {
    let (strategy, pod) = (&deployment["spec"]["strategy"], &deployment["spec"]["template"]["spec"]);
    let unavailable = &strategy["rollingUpdate"]["maxUnavailable"];
    (*unavailable == 0 || *unavailable == "0%") && smooth_containers(pod) == pod["containers"] && waits_to_be_listed(deployment)
}

/// Whether new pods are endpoints for certain before old ones go.
fn waits_to_be_listed(deployment: &Value) -> bool {
    deployment["spec"]["minReadySeconds"].as_i64().is_some_and(|seconds| seconds >= i64::from(LISTED_SECONDS))
}

/// The pod's containers (a merge patch replaces lists whole) with probe, pause and pings on the one that serves.
fn smooth_containers(pod: &Value) -> Value {
    let mut containers = pod["containers"].clone();
    let Some(container) = containers.get_mut(0) else { return containers };
    if container["readinessProbe"].is_null()
        && let Some(port) = container["ports"][0]["containerPort"].as_u64()
    {
        // Quick to say that it is ready, slow to say that it is not: where there is one gateway, as in the chart, a busy node must not
        // take every cluster away.
        container["readinessProbe"] = json!({
            "httpGet": {"path": READY_PATH, "port": port, "scheme": "HTTPS"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 12,
        });
    }
    if container["lifecycle"]["preStop"].is_null() {
        if container["lifecycle"].is_null() {
            container["lifecycle"] = json!({});
        }
        container["lifecycle"]["preStop"] = json!({"sleep": {"seconds": PRE_STOP_SECONDS}});
    }
    for (name, value) in PINGS {
        let has = container["env"].as_array().is_some_and(|env| env.iter().any(|one| one["name"] == name));
        if !has {
            if !container["env"].is_array() {
                container["env"] = json!([]);
            }
            container["env"].as_array_mut().into_iter().for_each(|env| env.push(json!({"name": name, "value": value})));
        }
    }
    containers
}

/// How far a hand-over is.
#[derive(Clone, Debug, PartialEq)]
pub enum Handover<'a> {
    /// None is under way.
    None,
    /// New pods aren't ready yet.
    Early,
    /// Every new pod is ready, and these old ones may be taken out of service.
    Due(Vec<&'a Pod>),
}

/// Reads how far the hand-over from old pods is that [`patch`] announced.
///
/// Old pods are told by their host aliases, and by not pausing before they stop.
pub fn handover<'a>(deployment: &Deployment, pods: &'a [Pod]) -> Handover<'a> {
    let Some(spec) = deployment.spec.as_ref().filter(|spec| spec.min_ready_seconds == Some(HANDOVER_SECONDS)) else {
        return Handover::None;
    };
    let pauses = |pod: &PodSpec| pod.containers.iter().any(|c| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()));
    let marks = |pod: &PodSpec| (pod.host_aliases.clone().unwrap_or_default(), pauses(pod));
    let wanted = spec.template.spec.as_ref().map(marks).unwrap_or_default();
    let (new, old): (Vec<_>, Vec<_>) = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .partition(|pod| pod.spec.as_ref().map(marks).unwrap_or_default() == wanted);
    if new.iter().filter(|pod| is_ready(pod)).count() < usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(1) {
        return Handover::Early;
    }
    Handover::Due(old)
}

/// Whether a pod leads each of these names just where `aliases` do: to the same addresses, or nowhere.
pub fn leads(pod: &Pod, aliases: &HostAliases, hosts: &BTreeSet<DnsName>) -> bool {
    let entries = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()).map(|entry| json!(entry)).collect();
    let its = HostAliases { entries, record: Record::default() };
    hosts.iter().all(|host| its.leads_to(host) == aliases.leads_to(host))
}

/// The merge patch that ends a hand-over.
pub fn handed_over() -> Value {
    json!({"spec": {"minReadySeconds": LISTED_SECONDS}})
}

/// The merge patch that takes a pod out of service without ending it: it loses every label it is selected by, so that it is no
/// endpoint any more while it goes on serving whoever is connected. If nobody ends it, the kubelet does, `seconds` from now.
///
/// (`activeDeadlineSeconds`, counted from the pod's start, is one of the few fields of a pod that may be set later.)
pub fn retired<'a>(pod: &Pod, selected_by: impl Iterator<Item = &'a String>, now: Timestamp, seconds: i64) -> Value {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(now, |time| time.0);
    let mut labels: serde_json::Map<String, Value> = selected_by.map(|key| (key.clone(), Value::Null)).collect();
    labels.insert(KIND.to_owned(), json!(KIND_RETIRED));
    json!({
        "metadata": {"labels": labels},
        "spec": {"activeDeadlineSeconds": now.duration_since(started).as_secs().max(0) + seconds},
    })
}

/// How far a rollout is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Every pod is new and available, every old one gone.
    Complete,
    /// What is waited for.
    Waiting(String),
    /// It stopped for good, and why.
    Stuck(String),
}

/// Reads a rollout's progress as `kubectl rollout status` does: a status older than the change says nothing.
pub fn progress(deployment: &Deployment) -> Progress {
    let Some(status) = &deployment.status else { return Progress::Waiting("the Deployment to be seen".into()) };
    if status.observed_generation.unwrap_or(0) < deployment.metadata.generation.unwrap_or(0) {
        return Progress::Waiting("the Deployment's change to be seen".into());
    }
    let stuck = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Progressing" && c.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    if let Some(condition) = stuck {
        return Progress::Stuck(condition.message.clone().unwrap_or_default());
    }
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let (all, updated, available) =
        (status.replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    if updated < wanted {
        return Progress::Waiting(format!("{updated} of {wanted} gateway pods are new"));
    }
    if all > updated {
        return Progress::Waiting(format!("{} of {all} gateway pods are old", all - updated));
    }
    if available < updated {
        return Progress::Waiting(format!("{available} of {updated} new gateway pods are available"));
    }
    Progress::Complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        json!({
            "metadata": {"resourceVersion": "7", "annotations": {"theirs": "kept"}},
            "spec": {"template": {"spec": {
                "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["a.example"]}],
                "containers": [{"name": "gateway", "image": "x", "ports": [{"containerPort": 9443}], "args": ["--unknown-to-us"]}],
            }}},
        })
    }

    fn wanted(deployment: &Value) -> HostAliases {
        let one = super::super::aliases::Wanted {
            host: "x.example".parse().unwrap(),
            cluster: "x".parse().unwrap(),
            region: "east".parse().unwrap(),
        };
        let nodes = std::collections::BTreeSet::from(["10.0.0.1".parse().unwrap()]);
        host_aliases(deployment).unwrap().with(&[one], &[("east".to_owned(), nodes.into())].into())
    }

    /// RFC 7396.
    fn merge(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else { return *target = patch.clone() };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, value) in patch {
            merge(&mut target[key], value);
        }
    }

    #[test]
    fn the_patch_makes_the_rollout_smooth_and_is_needed_once() {
        let before = deployment();
        let wanted = wanted(&before);
        let patch_json = patch(&before, &wanted, None, false).unwrap().unwrap();
        assert_eq!(patch_json["metadata"]["resourceVersion"], "7");
        let mut after = before.clone();
        merge(&mut after, &patch_json);
        let pod = &after["spec"]["template"]["spec"];
        assert_eq!(pod["hostAliases"][0], before["spec"]["template"]["spec"]["hostAliases"][0]);
        assert_eq!(pod["hostAliases"][1], json!({"ip": "10.0.0.1", "hostnames": ["x.example"]}));
        assert_eq!(pod["containers"][0]["args"], json!(["--unknown-to-us"]));
        assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": 9443, "scheme": "HTTPS"}));
        assert_eq!(pod["containers"][0]["lifecycle"], json!({"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}));
        assert_eq!(after["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
        assert_eq!(after["spec"]["minReadySeconds"], 60, "the old pod has no pause");
        assert_eq!(after["metadata"]["annotations"]["theirs"], "kept");
        assert_eq!(patch(&after, &wanted, None, false).unwrap(), None);
        // What the container has of its own stays.
        after["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {}});
        let back = patch(&after, &host_aliases(&before).unwrap(), None, false).unwrap().unwrap();
        assert_eq!(back["spec"]["template"]["spec"].get("containers"), None);
        assert_eq!(back["spec"].get("minReadySeconds"), None, "the hand-over goes on");
        merge(&mut after, &handed_over());
        for (has, want) in [(json!(2), None), (json!(30), None), (json!(1), Some(&json!(2))), (Value::Null, Some(&json!(2)))] {
            after["spec"]["minReadySeconds"] = has.clone();
            assert_eq!(is_smooth(&after), want.is_none(), "{has}");
            let back = patch(&after, &host_aliases(&before).unwrap(), None, false).unwrap().unwrap();
            assert_eq!(back["spec"].get("minReadySeconds"), want, "{has}");
        }
    }

    #[test]
    fn a_record_that_kubernetes_would_not_take_is_refused_unless_it_gets_shorter() {
        let aliases = |count: usize, cluster: &str, region: &str| {
            let name = |i: usize| {
                let host = format!("{}{i:04}.gr7.ap-east-1.eks.amazonaws.com", "a".repeat(28));
                let recorded =
                    super::super::aliases::Recorded { region: region.to_owned(), clusters: [format!("{cluster}{i:04}")].into() };
                (host, recorded)
            };
            HostAliases { record: Record((0..count).map(name).collect()), ..HostAliases::default() }
        };
        let kind = |deployment: &Value, wanted: &HostAliases| {
            patch(deployment, wanted, None, false).map(drop).map_err(|failure| failure.kind)
        };
        let (long, longest) = ("c".repeat(59), "c".repeat(63));
        // As the README has it.
        for (count, cluster, region, want) in [
            (2100, "business-", "proxy-east", Ok(())),
            (2200, "business-", "proxy-east", Err(Kind::AliasLimit)),
            (1150, &long, &longest, Ok(())),
            (1200, &long, &longest, Err(Kind::AliasLimit)),
        ] {
            assert_eq!(kind(&deployment(), &aliases(count, cluster, region)), want, "{count}");
        }
        let mut full = deployment();
        let filled = patch(&full, &aliases(2100, "business-", "proxy-east"), None, false).unwrap().unwrap();
        merge(&mut full, &filled);
        full["metadata"]["annotations"]["theirs"] = json!("x".repeat(16 << 10));
        assert_eq!(kind(&full, &aliases(2101, "business-", "proxy-east")), Err(Kind::AliasLimit));
        assert_eq!(kind(&full, &aliases(2099, "business-", "proxy-east")), Ok(()), "who leaves makes room");
    }

    #[test]
    fn what_makes_rollouts_smooth_is_put_back_where_the_aliases_stand() {
        let mut chart = deployment();
        chart["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 1}});
        let aliases = host_aliases(&chart).unwrap();
        assert_eq!(patch(&chart, &aliases, None, false).unwrap(), None);
        let patch_json = patch(&chart, &aliases, None, true).unwrap().unwrap();
        assert_eq!(patch_json["spec"]["minReadySeconds"], 60, "old pods are told by their lack of a pause");
        let mut smooth = chart.clone();
        merge(&mut smooth, &patch_json);
        assert_eq!((is_smooth(&chart), is_smooth(&smooth)), (false, true));
        assert_eq!(patch(&smooth, &aliases, None, true).unwrap(), None);
        // As `helm upgrade` leaves it: no pod is replaced for that.
        smooth["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": "1"}});
        let back = patch(&smooth, &aliases, None, true).unwrap().unwrap();
        assert_eq!(back["spec"]["template"]["spec"], json!({"hostAliases": aliases.entries}));
        assert_eq!(back["spec"].get("minReadySeconds"), None);
    }

    #[test]
    fn a_second_cluster_behind_one_name_restarts_nothing() {
        let mut deployment = deployment();
        let first = wanted(&deployment);
        let patch_json = patch(&deployment, &first, None, false).unwrap().unwrap();
        merge(&mut deployment, &patch_json);
        let second = super::super::aliases::Wanted {
            host: "x.example".parse().unwrap(),
            cluster: "y".parse().unwrap(),
            region: "east".parse().unwrap(),
        };
        let both = first.with(&[second], &Default::default());
        assert_eq!(patch(&deployment, &both, None, false).unwrap().unwrap().get("spec"), None);
        // Unless what is open is to be cut.
        let cut = patch(&deployment, &both, Some(Timestamp::UNIX_EPOCH), false).unwrap().unwrap();
        assert_eq!(cut["spec"]["template"]["metadata"]["annotations"][CUT], "1970-01-01T00:00:00Z");
        assert_eq!(cut["spec"].get("minReadySeconds"), None, "there is nothing that a hand-over could tell old pods by");
        assert_eq!(patch(&deployment, &first, Some(Timestamp::UNIX_EPOCH), false).unwrap(), None, "nothing left, nothing to cut");
    }

    fn pod(name: &str, alias: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [], "hostAliases": [{"ip": "10.0.0.1", "hostnames": [alias]}]},
            "status": {
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn old_pods_hand_over_when_every_new_one_is_ready() {
        let deployment = |seconds: i32| -> Deployment {
            serde_json::from_value(json!({"spec": {
                "replicas": 2, "minReadySeconds": seconds, "selector": {},
                "template": {"spec": {"containers": [], "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["new"]}]}},
            }}))
            .unwrap()
        };
        let mut ended = pod("c", "old", true);
        ended.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        let mut pods = vec![pod("a", "old", true), pod("b", "new", true), ended, pod("d", "new", false)];
        assert_eq!(handover(&deployment(60), &pods), Handover::Early);
        assert_eq!(handover(&deployment(0), &pods), Handover::None);
        pods[3] = pod("d", "new", true);
        assert_eq!(handover(&deployment(60), &pods), Handover::Due(vec![&pods[0]]));
        assert_eq!(handover(&deployment(60), &pods[1..]), Handover::Due(vec![]));
        // Where only the pause is new.
        let mut pausing = deployment(60);
        let container: Vec<k8s_openapi::api::core::v1::Container> =
            serde_json::from_value(json!([{"name": "gateway", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}])).unwrap();
        pausing.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers = container.clone();
        let mut pods = vec![pod("a", "new", true), pod("b", "new", true), pod("c", "new", true)];
        assert_eq!(handover(&pausing, &pods), Handover::Early);
        pods[1..].iter_mut().for_each(|pod| pod.spec.as_mut().unwrap().containers = container.clone());
        assert_eq!(handover(&pausing, &pods), Handover::Due(vec![&pods[0]]));
    }

    #[test]
    fn a_pod_is_behind_only_where_one_of_the_names_leads_elsewhere() {
        let aliases =
            HostAliases { entries: vec![json!({"ip": "10.0.0.1", "hostnames": ["new", "kept"]})], record: Record::default() };
        let hosts = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<BTreeSet<DnsName>>();
        let old = pod("a", "kept", true);
        for (names, want) in [(&[][..], true), (&["kept"], true), (&["new"], false), (&["kept", "new"], false), (&["gone"], true)] {
            assert_eq!(leads(&old, &aliases, &hosts(names)), want, "{names:?}");
        }
        assert!(!leads(&pod("a", "gone", true), &aliases, &hosts(&["gone"])), "it still has a name that is gone");
        let moved = HostAliases { entries: vec![json!({"ip": "10.0.0.9", "hostnames": ["kept"]})], ..aliases };
        assert!(!leads(&old, &moved, &hosts(&["kept"])));
    }

    #[test]
    fn a_retired_pod_is_selected_by_nothing_and_ends_by_itself() {
        let keys = ["app".to_owned(), "hash".to_owned()];
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        assert_eq!(
            retired(&pod("a", "old", true), keys.iter(), now, 15),
            json!({
                "metadata": {"labels": {"app": null, "hash": null, "xregion.oam.dev/kind": "retired-gateway"}},
                "spec": {"activeDeadlineSeconds": 3615},
            })
        );
    }

    #[test]
    fn a_rollout_is_complete_when_kubectl_says_so() {
        let of = |generation: i64, observed: i64, replicas: [i32; 3], reason: &str| {
            progress(
                &serde_json::from_value(json!({
                    "metadata": {"generation": generation},
                    "spec": {"replicas": 1, "selector": {}, "template": {}},
                    "status": {
                        "observedGeneration": observed, "replicas": replicas[0], "updatedReplicas": replicas[1], "availableReplicas": replicas[2],
                        "conditions": [{"type": "Progressing", "status": "False", "reason": reason, "message": "timed out"}],
                    },
                }))
                .unwrap(),
            )
        };
        let waiting = |text: &str| Progress::Waiting(text.into());
        assert_eq!(of(2, 1, [1, 1, 1], ""), waiting("the Deployment's change to be seen"));
        assert_eq!(of(2, 2, [1, 0, 1], ""), waiting("0 of 1 gateway pods are new"));
        assert_eq!(of(2, 2, [2, 1, 1], ""), waiting("1 of 2 gateway pods are old"));
        assert_eq!(of(2, 2, [1, 1, 0], ""), waiting("0 of 1 new gateway pods are available"));
        assert_eq!(of(2, 2, [1, 1, 1], ""), Progress::Complete);
        assert_eq!(of(2, 2, [1, 0, 1], "ProgressDeadlineExceeded"), Progress::Stuck("timed out".into()));
    }
}
