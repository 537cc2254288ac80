//! What a Job tells of itself while it runs: a ConfigMap that the workflow step renders as its message, that a shell follows,
//! and by which joins that run at once know of each other.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::{Hub, call};
use crate::error::{Failure, Result};
use crate::model::joined::Joined;
use crate::model::names::{KIND, MANAGER, NAMESPACE};

/// Label value (of [`KIND`]) of these ConfigMaps.
const KIND_PROGRESS: &str = "progress";

/// How long a stage is believed: none before the rollout takes longer, unless it fails.
const FRESH: Duration = Duration::from_secs(60);

/// The Job that this process is, by its downward API.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name; its ConfigMap has the same.
    pub name: String,
    /// Its UID, so that the ConfigMap goes with it.
    pub uid: String,
}

/// The steps of a join, in order, as they are told.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Reading the kubeconfig and the region.
    Reading,
    /// Writing the route.
    Routing,
    /// Waiting for the proxies.
    Applying,
    /// Going the way the hub will go.
    Proving,
    /// Changing and rolling the gateway.
    Rolling,
    /// Running `vela cluster join` and looking at what came of it.
    Joining,
    /// Done.
    Joined,
    /// Given up.
    Failed,
}

impl Stage {
    /// As written into the ConfigMap.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Routing => "routing",
            Self::Applying => "applying",
            Self::Proving => "proving",
            Self::Rolling => "rolling",
            Self::Joining => "joining",
            Self::Joined => "joined",
            Self::Failed => "failed",
        }
    }

    /// Whether a join at this stage is about to want a host alias.
    fn before_rolling(text: &str) -> bool {
        [Self::Reading, Self::Routing, Self::Applying, Self::Proving].iter().any(|stage| stage.as_str() == text)
    }
}

/// Where progress is told: on the log, and in the Job's ConfigMap if this process is a Job.
pub struct Progress {
    hub: Hub,
    job: Option<Job>,
    region: String,
    last: Mutex<String>,
}

impl Progress {
    /// Progress of a join into `region`.
    pub fn new(hub: &Hub, job: Option<Job>, region: &str) -> Self {
        Self { hub: hub.clone(), job, region: region.to_owned(), last: Mutex::new("starting".into()) }
    }

    /// What was told last.
    pub fn last(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells a stage. It is not worth failing a join when that can't be written.
    pub async fn tell(&self, stage: Stage, message: &str) {
        self.write(stage, message, &BTreeMap::new()).await;
    }

    /// Tells that the join is done, with what later workflow steps may use.
    pub async fn finish(&self, joined: &Joined) {
        self.write(Stage::Joined, &joined.to_string(), &joined.to_outputs()).await;
    }

    /// Tells that the join was given up, and why.
    pub async fn fail(&self, failure: &Failure) {
        let told = [("cause", failure.cause().to_owned()), ("hint", failure.hint().to_owned())].into();
        self.write(Stage::Failed, &failure.to_string(), &told).await;
    }

    async fn write(&self, stage: Stage, message: &str, outputs: &BTreeMap<&str, String>) {
        tracing::info!(stage = %stage.as_str(), "{message}");
        message.clone_into(&mut self.last.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(job) = &self.job else { return };
        let mut data =
            json!({"stage": stage.as_str(), "message": message, "region": self.region, "at": Timestamp::now().to_string()});
        for (key, value) in outputs {
            data[*key] = json!(value);
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": job.name,
                "namespace": NAMESPACE,
                "labels": {KIND: KIND_PROGRESS, "app.kubernetes.io/managed-by": MANAGER},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid}],
            },
            "data": data,
        });
        let maps: Api<ConfigMap> = Api::namespaced(self.hub.client(), NAMESPACE);
        let params = PatchParams::apply(MANAGER).force();
        if let Err(failure) = call("tell the progress", maps.patch(&job.name, &params, &Patch::Apply(&map))).await {
            tracing::warn!(%failure, "progress was not written");
        }
    }

    /// The regions into which other Jobs are joining clusters, and whether any of those will want a host alias soon.
    pub async fn others(&self) -> Result<Others> {
        let maps: Api<ConfigMap> = Api::namespaced(self.hub.client(), NAMESPACE);
        let params = ListParams::default().labels(&format!("{KIND}={KIND_PROGRESS}"));
        let list = call("list the progress of other joins", maps.list(&params)).await?;
        let mut others = Others::default();
        for map in list.items.iter().filter(|map| map.metadata.name != self.job.as_ref().map(|job| job.name.clone())) {
            let get = |key: &str| map.data.as_ref().and_then(|data| data.get(key)).map(String::as_str).unwrap_or_default();
            let stage = get("stage");
            // A Job that was killed tells no end.
            let fresh = get("at").parse::<Timestamp>().is_ok_and(|at| at + FRESH > Timestamp::now());
            if !fresh {
                continue;
            }
            if Stage::before_rolling(stage) || stage == Stage::Rolling.as_str() {
                others.regions.push(get("region").to_owned());
                others.coming |= Stage::before_rolling(stage);
            }
        }
        Ok(others)
    }
}

/// What is known of joins that run beside this one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Others {
    /// Their regions.
    pub regions: Vec<String>,
    /// Whether one of them has not proven its route yet.
    pub coming: bool,
}
