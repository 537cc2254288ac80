//! What a run tells of itself: a ConfigMap that the workflow step renders as its message, that a shell follows, and by which runs that go
//! on at once know of each other. Those of the controller tell it, too, for the last reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::{Hub, call};
use crate::error::{Failure, Result};
use crate::model::names::{ClusterName, KIND, MANAGER, NAMESPACE};

/// Label value (of [`KIND`]) of these ConfigMaps.
const KIND_PROGRESS: &str = "progress";

/// How long a stage is believed. None before the rollout takes longer, unless it fails; but that a load balancer's new port is waited for.
const FRESH: Duration = Duration::from_secs(90);
/// How long a run is waited for that tells nothing new: its cluster may not answer at all.
const LIVELY: Duration = Duration::from_secs(6);
/// How often, in seconds, a wait that goes on is told anew.
const TELL_EVERY: u64 = 3;

/// The ConfigMap that a run tells its progress in.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// What it goes with.
    pub owner: OwnerReference,
}

impl Place {
    /// The one of a Job, by its downward API.
    pub fn of_job(name: String, uid: String) -> Self {
        let owner = OwnerReference {
            api_version: "batch/v1".into(),
            kind: "Job".into(),
            name: name.clone(),
            uid,
            ..OwnerReference::default()
        };
        Self { name, owner }
    }
}

/// The steps of a join or a leave, in order, as they are told.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Reading what there is: the kubeconfig, the region, the hub's records.
    Reading,
    /// Writing the route.
    Routing,
    /// Waiting for the proxies.
    Applying,
    /// Going the way the hub will go.
    Proving,
    /// Running `vela cluster detach`.
    Detaching,
    /// Changing and rolling the gateway.
    Rolling,
    /// Running `vela cluster join` and looking at what came of it.
    Joining,
    /// Removing a route and its port.
    Releasing,
    /// Done.
    Done,
    /// Given up.
    Failed,
}

impl Stage {
    const ALL: [Self; 10] = [
        Self::Reading,
        Self::Routing,
        Self::Applying,
        Self::Proving,
        Self::Detaching,
        Self::Rolling,
        Self::Joining,
        Self::Releasing,
        Self::Done,
        Self::Failed,
    ];

    /// As written into the ConfigMap.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Routing => "routing",
            Self::Applying => "applying",
            Self::Proving => "proving",
            Self::Detaching => "detaching",
            Self::Rolling => "rolling",
            Self::Joining => "joining",
            Self::Releasing => "releasing",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == text)
    }
}

/// Where progress is told: on the log, and in a ConfigMap if the run has one.
pub struct Progress {
    hub: Hub,
    place: Option<Place>,
    board: Mutex<Board>,
}

/// How far each cluster of the run is.
#[derive(Default)]
struct Board {
    clusters: BTreeMap<ClusterName, Line>,
    /// The last stage told.
    last: String,
    /// What is waited for within it, and since when.
    waiting: Option<(String, Instant)>,
    /// What was told of that.
    told: String,
}

struct Line {
    region: Option<ClusterName>,
    stage: Stage,
}

impl Board {
    /// The stage of the slowest that still goes on.
    fn stage(&self) -> Stage {
        let stages = self.clusters.values().map(|line| line.stage);
        stages.min().unwrap_or(Stage::Reading)
    }

    /// One cluster's message, or how many are how far.
    fn message(&self, cluster: &ClusterName, message: &str) -> String {
        let total = self.clusters.len();
        if total < 2 {
            return message.to_owned();
        }
        let count = |stage: Stage| self.clusters.values().filter(|line| line.stage == stage).count();
        let failed = match count(Stage::Failed) {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        format!("{} of {total} done{failed}; {cluster}: {message}", count(Stage::Done))
    }
}

/// What one cluster of a run tells.
pub struct Teller<'a> {
    progress: &'a Progress,
    cluster: ClusterName,
}

impl Teller<'_> {
    /// Tells a stage.
    pub async fn stage(&self, stage: Stage, message: &str) {
        // Displayed, not debugged: of a line with double quotes, `vela workflow logs` shows only what stands between them.
        tracing::info!(cluster = %self.cluster, stage = %stage.as_str(), "{message}");
        let (slowest, text) = {
            let mut board = self.progress.board();
            if let Some(line) = board.clusters.get_mut(&self.cluster) {
                line.stage = stage;
            }
            let text = board.message(&self.cluster, message);
            board.last.clone_from(&text);
            board.waiting = None;
            (board.stage(), text)
        };
        self.progress.write(slowest, &text, &BTreeMap::new()).await;
    }
}

impl Progress {
    /// Progress of a run.
    pub fn new(hub: &Hub, place: Option<Place>) -> Self {
        Self { hub: hub.clone(), place, board: Mutex::new(Board { last: "starting".into(), ..Board::default() }) }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a cluster of the run, with the region it is joined through.
    pub fn of(&self, cluster: &ClusterName, region: Option<&ClusterName>) -> Teller<'_> {
        let line = Line { region: region.cloned(), stage: Stage::Reading };
        self.board().clusters.insert(cluster.clone(), line);
        Teller { progress: self, cluster: cluster.clone() }
    }

    /// What was told last.
    pub fn last(&self) -> String {
        self.board().last.clone()
    }

    /// Tells what is waited for within a stage, and for how long. KubeVela looks at a step less and less often whose message stays the same.
    pub async fn waits_for(&self, what: &str) {
        let (stage, text) = {
            let mut board = self.board();
            if board.waiting.as_ref().is_none_or(|(last, _)| last != what) {
                board.waiting = Some((what.to_owned(), Instant::now()));
            }
            let since = board.waiting.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
            let seconds = since.as_secs() / TELL_EVERY * TELL_EVERY;
            let text = if seconds == 0 { what.to_owned() } else { format!("{what}, {seconds} s") };
            let text = format!("{} ({text})", board.last);
            if board.told == text {
                return;
            }
            board.told.clone_from(&text);
            (board.stage(), text)
        };
        self.write(stage, &text, &BTreeMap::new()).await;
    }

    /// Tells that the run is done, with what later workflow steps may use.
    pub async fn finish(&self, message: &str, outputs: &BTreeMap<&'static str, String>) {
        self.write(Stage::Done, message, outputs).await;
    }

    /// Tells that the run was given up, and why.
    pub async fn fail(&self, failure: &Failure) {
        let told = [("cause", failure.cause().to_owned()), ("hint", failure.hint().to_owned())].into();
        self.write(Stage::Failed, &failure.to_string(), &told).await;
    }

    /// It is not worth failing a run when its progress can't be written.
    async fn write(&self, stage: Stage, message: &str, outputs: &BTreeMap<&'static str, String>) {
        let Some(place) = &self.place else { return };
        let clusters: BTreeMap<String, String> = {
            let board = self.board();
            let of = |(name, line): (&ClusterName, &Line)| Some((name.to_string(), line.region.as_ref()?.to_string()));
            board.clusters.iter().filter_map(of).collect()
        };
        let mut data = json!({
            "stage": stage.as_str(),
            "message": message,
            "clusters": json!(clusters).to_string(),
            "at": Timestamp::now().to_string(),
        });
        for (key, value) in outputs {
            data[*key] = json!(value);
        }
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": place.name,
                "namespace": NAMESPACE,
                "labels": {KIND: KIND_PROGRESS, "app.kubernetes.io/managed-by": MANAGER},
                "ownerReferences": [place.owner],
            },
            "data": data,
        });
        let maps: Api<ConfigMap> = Api::namespaced(self.hub.client(), NAMESPACE);
        let params = PatchParams::apply(MANAGER).force();
        if let Err(failure) = call("tell the progress", maps.patch(&place.name, &params, &Patch::Apply(&map))).await {
            tracing::warn!(%failure, "progress was not written");
        }
    }

    /// What other runs are about to want of the gateway.
    pub async fn others(&self) -> Result<Others> {
        let maps: Api<ConfigMap> = Api::namespaced(self.hub.client(), NAMESPACE);
        let params = ListParams::default().labels(&format!("{KIND}={KIND_PROGRESS}"));
        let list = call("list the progress of other runs", maps.list(&params)).await?;
        let mine = self.place.as_ref().map(|place| place.name.as_str());
        let told = list.items.iter().filter(|map| map.metadata.name.as_deref() != mine).filter_map(|map| map.data.as_ref());
        Ok(Others::of(told, Timestamp::now()))
    }
}

/// What is known of runs that go on beside this one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Others {
    /// The clusters that they join and have not joined yet, with their regions.
    pub clusters: BTreeMap<ClusterName, ClusterName>,
    /// The clusters of joins that have not ended.
    pub busy: BTreeSet<ClusterName>,
    /// Whether one of them gets on, and will want a change of the gateway soon.
    pub coming: bool,
}

impl Others {
    fn of<'a>(told: impl Iterator<Item = &'a BTreeMap<String, String>>, now: Timestamp) -> Self {
        let mut others = Self::default();
        for data in told {
            let get = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
            // A Job that was killed tells no end.
            let within = |time: Duration| get("at").parse::<Timestamp>().is_ok_and(|at| at + time > now);
            let Some(stage) = Stage::read(get("stage")).filter(|stage| within(FRESH) && *stage < Stage::Done) else { continue };
            let clusters: BTreeMap<String, String> = serde_json::from_str(get("clusters")).unwrap_or_default();
            others.busy.extend(clusters.keys().filter_map(|name| name.parse().ok()));
            if stage > Stage::Rolling {
                continue;
            }
            others.coming |= stage < Stage::Rolling && within(LIVELY);
            others.clusters.extend(clusters.iter().filter_map(|(name, region)| Some((name.parse().ok()?, region.parse().ok()?))));
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_read_back_in_order() {
        for stage in Stage::ALL {
            assert_eq!(Stage::read(stage.as_str()), Some(stage));
        }
        assert!(Stage::ALL.is_sorted());
    }

    #[test]
    fn runs_that_are_about_to_roll_are_waited_for() {
        let now = Timestamp::now();
        let told = |stage: &str, age: i64, clusters: &str| -> BTreeMap<String, String> {
            let at = (now - jiff::SignedDuration::from_secs(age)).to_string();
            [("stage", stage.to_owned()), ("at", at), ("clusters", clusters.to_owned())].map(|(k, v)| (k.to_owned(), v)).into()
        };
        let of = |data: &[BTreeMap<String, String>]| Others::of(data.iter(), now);
        let names = |others: &Others| others.clusters.keys().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let both = of(&[told("proving", 1, r#"{"a":"east","b":"west"}"#), told("rolling", 1, r#"{"c":"east"}"#)]);
        assert_eq!((names(&both).as_str(), both.coming), ("a,b,c", true));
        assert!(!of(&[told("rolling", 1, r#"{"c":"east"}"#)]).coming);
        assert!(of(&[told("detaching", 1, "{}")]).coming);
        assert_eq!(of(&[told("applying", 80, r#"{"a":"east"}"#)]).busy.len(), 1, "proxies may take so long");
        let stuck = of(&[told("proving", 7, r#"{"a":"east"}"#)]);
        assert_eq!((names(&stuck).as_str(), stuck.coming), ("a", false), "served if it is proven, and not waited for");
        // Its record is not written yet.
        let joining = of(&[told("joining", 1, r#"{"d":"east"}"#)]);
        assert_eq!((joining.busy.len(), joining.clusters.len(), joining.coming), (1, 0, false));
        for gone in [told("proving", 91, r#"{"a":"east"}"#), told("done", 1, r#"{"a":"east"}"#), told("nonsense", 1, "{")] {
            assert_eq!(of(&[gone]), Others::default());
        }
    }

    #[test]
    fn several_clusters_are_told_in_one_line() {
        let line = |stage| Line { region: None, stage };
        let name = |text: &str| text.parse::<ClusterName>().unwrap();
        let mut board = Board::default();
        board.clusters.insert(name("a"), line(Stage::Proving));
        assert_eq!(board.message(&name("a"), "proving"), "proving");
        board.clusters.insert(name("b"), line(Stage::Done));
        board.clusters.insert(name("c"), line(Stage::Failed));
        assert_eq!(board.message(&name("a"), "proving"), "1 of 3 done, 1 failed; a: proving");
        assert_eq!(board.stage(), Stage::Proving);
    }
}
