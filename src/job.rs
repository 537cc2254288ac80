//! A join or leave from a shell: the same Job that the workflow step runs, made, followed and cleaned up from afar.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::error::{Failure, Kind, Result};
use crate::hub::{Hub, OPT_IN, call};
use crate::join::{Member, Order, Source};
use crate::leave;
use crate::model::bounds::Bounds;
use crate::model::names::{ClusterName, JOB, NAMESPACE, short_hash};
use crate::signals::asked_to_end;

/// The key of the Job's manifest, which is complete but for name, arguments and deadline.
const TEMPLATE_KEY: &str = "job.json";
/// Key of the kubeconfig in the Secret that goes with the Job.
const SECRET_KEY: &str = "kubeconfig";
/// How much longer than the join's own deadline the Job may take: it undoes what it did.
const GRACE: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(300);
/// How long a Job that has ended stays on the hub where nobody removes it, and with it its kubeconfig.
const STAYS: Duration = Duration::from_secs(300);
/// How long the hub may be silent before the Job is not followed any more.
const SILENCE: Duration = Duration::from_secs(30);

/// Whether the addon is enabled on the hub: its Job's template is there.
pub async fn enabled(hub: &Hub) -> Result<()> {
    template(&Api::namespaced(hub.client(), NAMESPACE)).await.map(drop)
}

/// Joins one cluster as a Job on the hub, and gives its message.
pub async fn join(hub: &Hub, order: &Order, timeout: Duration) -> Result<String> {
    let [member] = order.members.as_slice() else {
        return Err(Failure::new(Kind::Usage, "a list of clusters is for the workflow step", "join them one by one"));
    };
    let name = Remote::name("join", &member.cluster);
    let (secret, key, context, text) = match &member.source {
        Source::Secret { name, key, context } => (name.to_string(), key.clone(), context.as_deref(), None),
        Source::Read(access) => (name.clone(), SECRET_KEY.to_owned(), None, Some(access.flattened(member.cluster.as_str()))),
    };
    run(hub, name, arguments(order, member, (&secret, &key, context), timeout), text.as_ref(), timeout).await
}

/// Lets a cluster leave by a Job on the hub, and gives its message.
pub async fn leave(hub: &Hub, order: &leave::Order, timeout: Duration) -> Result<String> {
    let leave::Order { cluster, region, gateway, force, cut, vela: _ } = order;
    let mut args = vec!["leave".to_owned(), cluster.to_string(), "--here".to_owned()];
    args.push(format!("--timeout={}s", timeout.as_secs()));
    args.extend(region.iter().map(|region| format!("--region={region}")));
    args.extend(gateway.iter().map(|gateway| format!("--gateway={gateway}")));
    args.extend(force.then(|| "--force".to_owned()));
    args.extend(cut.then(|| "--cut".to_owned()));
    run(hub, Remote::name("leave", cluster), args, None, timeout).await
}

/// Runs a Job on the hub and follows it. Whatever ends this, the Job and its kubeconfig go: at once where they can be removed, else five
/// minutes after the Job has ended.
async fn run(hub: &Hub, name: String, args: Vec<String>, kubeconfig: Option<&SecretString>, timeout: Duration) -> Result<String> {
    let remote = Remote::start(hub, name, args, kubeconfig, timeout).await?;
    let outcome = tokio::select! {
        outcome = remote.follow(timeout) => outcome,
        () = asked_to_end() => Err(Failure::new(
            Kind::Interrupted,
            "interrupted",
            "the Job on the hub ends: a join undoes what it did, a leave is finished by the next one",
        )),
    };
    remote.remove().await;
    outcome
}

struct Remote {
    name: String,
    jobs: Api<Job>,
    maps: Api<ConfigMap>,
    pods: Api<Pod>,
    secrets: Api<Secret>,
}

impl Remote {
    /// A name that no other Job has.
    fn name(verb: &str, cluster: &ClusterName) -> String {
        format!("xregion-{verb}-{}", short_hash(&format!("{cluster}/{}", jiff::Timestamp::now()), 12))
    }

    async fn start(
        hub: &Hub,
        name: String,
        args: Vec<String>,
        kubeconfig: Option<&SecretString>,
        timeout: Duration,
    ) -> Result<Self> {
        let client = hub.client();
        let this = Self {
            name,
            jobs: Api::namespaced(client.clone(), NAMESPACE),
            maps: Api::namespaced(client.clone(), NAMESPACE),
            pods: Api::namespaced(client.clone(), NAMESPACE),
            secrets: Api::namespaced(client, NAMESPACE),
        };
        let mut job = template(&this.maps).await?;
        job["metadata"]["name"] = json!(this.name);
        job["metadata"]["namespace"] = json!(NAMESPACE);
        job["spec"]["activeDeadlineSeconds"] = json!((timeout + GRACE).as_secs());
        job["spec"]["template"]["spec"]["containers"][0]["args"] = json!(args);
        // KubeVela doesn't keep this one, and whoever made it may be gone when it ends.
        job["spec"]["ttlSecondsAfterFinished"] = json!(STAYS.as_secs());
        // It starts when its kubeconfig is there, which must belong to it to go with it.
        job["spec"]["suspend"] = json!(true);
        let job: Job = serde_json::from_value(job).map_err(|error| no_template(&format!("it is no Job: {error}")))?;
        let created =
            call(&format!("create Job {NAMESPACE}/{}", this.name), this.jobs.create(&PostParams::default(), &job)).await?;
        let started = async {
            if let Some(text) = kubeconfig {
                this.put_secret(&created, text.expose_secret()).await?;
            }
            let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
            call(&format!("start Job {NAMESPACE}/{}", this.name), this.jobs.patch(&this.name, &PatchParams::default(), &resume))
                .await
        };
        if let Err(failure) = started.await {
            this.remove().await;
            return Err(failure);
        }
        Ok(this)
    }

    async fn put_secret(&self, job: &Job, text: &str) -> Result<()> {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {
                "name": self.name,
                "labels": {OPT_IN: "true"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": self.name, "uid": job.uid()}],
            },
            "stringData": {SECRET_KEY: text},
        }))
        .map_err(|_| Failure::new(Kind::Unexpected, "the kubeconfig's Secret could not be made", "report this"))?;
        call(&format!("create Secret {NAMESPACE}/{}", self.name), self.secrets.create(&PostParams::default(), &secret))
            .await
            .map(drop)
    }

    async fn follow(&self, timeout: Duration) -> Result<String> {
        let (start, mut heard, mut told) = (Instant::now(), Instant::now(), String::new());
        loop {
            match self.look(&mut told).await {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => heard = Instant::now(),
                // The Job goes on meanwhile.
                Err(failure) if failure.kind == Kind::HubUnreachable && heard.elapsed() < SILENCE => {
                    tracing::warn!(%failure, "the Job is looked at again");
                }
                Err(failure) => return Err(failure),
            }
            if start.elapsed() > timeout + GRACE * 2 {
                return Err(Failure::new(
                    Kind::Timeout,
                    format!("the Job on the hub did not end: {told}"),
                    "look at it with kubectl -n vela-system describe job",
                ));
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// Tells what is new of the Job, and gives what came of it if it has ended.
    async fn look(&self, told: &mut String) -> Result<Option<Result<String>>> {
        let map = call("read the Job's progress", self.maps.get_opt(&self.name)).await?;
        let job = call("read the Job", self.jobs.get(&self.name)).await?;
        let data = map.and_then(|map| map.data).unwrap_or_default();
        let text = match data.get("message") {
            Some(message) => message.clone(),
            None => self.waiting_for().await?,
        };
        if text != *told {
            tracing::info!("{text}");
            *told = text;
        }
        let status = job.status.unwrap_or_default();
        if status.succeeded.unwrap_or(0) > 0 {
            // Written before the process ended, and read after the Job was seen to have succeeded.
            let map = call("read the Job's progress", self.maps.get_opt(&self.name)).await?;
            let last = map.and_then(|map| map.data).and_then(|mut data| data.remove("message"));
            return Ok(Some(Ok(last.unwrap_or_else(|| told.clone()))));
        }
        let failed = status.conditions.iter().flatten().find(|c| c.type_ == "Failed" && c.status == "True");
        match failed {
            Some(condition) => Ok(Some(Err(self.failure(condition.message.as_deref().unwrap_or_default(), &data).await))),
            None => Ok(None),
        }
    }

    async fn pod(&self) -> Result<Option<Pod>> {
        let params = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", self.name));
        Ok(call("read the Job's pod", self.pods.list(&params)).await?.items.pop())
    }

    async fn waiting_for(&self) -> Result<String> {
        let pod = self.pod().await?;
        let states = pod.and_then(|pod| pod.status).and_then(|status| status.container_statuses).unwrap_or_default();
        let reason = states.first().and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
        Ok(match reason {
            Some(reason) => format!("waiting for the Job's pod on the hub: {reason}"),
            None => "waiting for the Job's pod on the hub".to_owned(),
        })
    }

    /// The failure that the Job's process ended with: its kind by the exit code, its cause and hint as it told them.
    async fn failure(&self, condition: &str, told: &BTreeMap<String, String>) -> Failure {
        let states = match self.pod().await {
            Ok(pod) => pod.and_then(|pod| pod.status).and_then(|status| status.container_statuses).unwrap_or_default(),
            Err(failure) => return failure,
        };
        let end = states.first().and_then(|status| status.state.as_ref()?.terminated.clone());
        let kind = end.as_ref().and_then(|end| Kind::ALL.iter().copied().find(|kind| i32::from(kind.exit_code()) == end.exit_code));
        match (kind, told.get("cause"), told.get("hint"), end.and_then(|end| end.message)) {
            (Some(kind), Some(cause), Some(hint), _) => Failure::new(kind, cause, hint),
            (Some(kind), _, _, Some(words)) => Failure::new(kind, words.trim(), "see above"),
            _ => Failure::new(
                Kind::Unexpected,
                format!("the Job on the hub failed: {condition}"),
                format!("look at its events: kubectl -n {NAMESPACE} get events"),
            ),
        }
    }

    /// Removes the Job and all that belongs to it. Its process is asked to end first and undoes what it did.
    async fn remove(&self) {
        if let Err(failure) = call("remove the Job", self.jobs.delete(&self.name, &DeleteParams::foreground())).await {
            tracing::warn!(%failure, job = %self.name, "the Job is still on the hub");
        }
    }
}

async fn template(maps: &Api<ConfigMap>) -> Result<Value> {
    let found = call(&format!("read ConfigMap {NAMESPACE}/{JOB}"), maps.get_opt(JOB)).await?;
    let text = found
        .and_then(|map| map.data)
        .and_then(|mut data| data.remove(TEMPLATE_KEY))
        .ok_or_else(|| no_template("it does not exist"))?;
    serde_json::from_str(&text).map_err(|error| no_template(&error.to_string()))
}

fn no_template(why: &str) -> Failure {
    Failure::new(
        Kind::AddonMissing,
        format!("ConfigMap {NAMESPACE}/{JOB} on the hub can't be used: {why}"),
        "enable the addon there: vela addon enable xregion",
    )
}

/// The command line of the Job of a join. Every field of the order is in it: a new one must find its place here.
fn arguments(order: &Order, member: &Member, (secret, key, context): (&str, &str, Option<&str>), timeout: Duration) -> Vec<String> {
    let Order { members: _, gateway, adopt, vela: _ } = order;
    let Member { cluster, region, source: _, labels, node_port, bounds, mode, allow_second_name, replace } = member;
    let Bounds { sources, connections } = bounds;
    let mut args = vec!["join".to_owned(), cluster.to_string(), "--here".to_owned()];
    let mut option = |name: &str, value: String| args.push(format!("--{name}={value}"));
    option("region", region.to_string());
    option("secret", secret.to_owned());
    option("secret-key", key.to_owned());
    context.iter().for_each(|context| option("context", (*context).to_owned()));
    option("timeout", format!("{}s", timeout.as_secs()));
    labels.iter().for_each(|label| option("label", label.to_string()));
    node_port.iter().for_each(|port| option("node-port", port.to_string()));
    sources.into_iter().for_each(|range| option("source-range", range.to_string()));
    connections.iter().for_each(|most| option("max-connections", most.to_string()));
    option("mode", mode.to_string());
    gateway.iter().for_each(|gateway| option("gateway", gateway.clone()));
    args.extend(allow_second_name.then(|| "--allow-second-name".to_owned()));
    args.extend(replace.then(|| "--replace".to_owned()));
    args.extend(adopt.then(|| "--adopt".to_owned()));
    args
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::model::route::Mode;
    use crate::model::sources::SourceRanges;

    #[test]
    fn a_job_is_told_the_bounds_asked_for() {
        let order = Order { members: vec![], gateway: None, adopt: false, vela: "vela".into() };
        let narrow: SourceRanges = "10.0.0.0/8,192.0.2.1".parse().unwrap();
        for bounds in [Bounds::NONE, Bounds { sources: narrow, connections: NonZeroU16::new(20) }] {
            let source = Source::Secret { name: "s".parse().unwrap(), key: "k".into(), context: None };
            let member = Member {
                cluster: "business-a".parse().unwrap(),
                region: "proxy-east".parse().unwrap(),
                source,
                labels: vec![],
                node_port: None,
                bounds: bounds.clone(),
                mode: Mode::Port,
                allow_second_name: false,
                replace: false,
            };
            let args = arguments(&order, &member, ("s", "k", None), Duration::from_secs(600));
            let cli = Cli::try_parse_from(["xregion".to_owned()].into_iter().chain(args)).unwrap();
            let Command::Join(told) = cli.command else { panic!("another command") };
            let sources = told.source_ranges.into_iter().collect();
            assert_eq!(Bounds { sources, connections: told.max_connections }, bounds);
        }
    }
}
