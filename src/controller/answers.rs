//! Whether the clusters of members answer over their way: asked through the hub's gateway, as KubeVela asks them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use tokio::time::sleep;

use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::clusters::Identity;
use crate::model::names::ClusterName;

/// How long from one round to the next. A thousand clusters are then some thirty small requests a second.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// How long until a cluster that gave no answer is asked again, before it is told: it may have been a moment.
const PAUSE: Duration = Duration::from_secs(5);
/// How many clusters are asked at once.
const AT_ONCE: usize = 32;

/// What is wrong with answers.
pub(super) struct Answers<'a> {
    hub: &'a Hub,
    wrong: Mutex<BTreeMap<ClusterName, Failure>>,
}

impl<'a> Answers<'a> {
    pub fn new(hub: &'a Hub) -> Self {
        Self { hub, wrong: Mutex::default() }
    }

    /// Asks every cluster that a member has joined, again and again, for ever.
    pub async fn follow(&self) {
        loop {
            if let Err(failure) = self.round().await {
                tracing::warn!(%failure, "the clusters of members are asked in the next round");
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// What is wrong with a cluster's answer, if it is known.
    pub fn wrong(&self, cluster: &ClusterName) -> Option<Failure> {
        self.known().get(cluster).cloned()
    }

    /// Takes it that a cluster answers: a join has just seen it.
    pub fn right(&self, cluster: &ClusterName) {
        self.known().remove(cluster);
    }

    /// Takes it that a cluster's answer is wrong.
    pub fn note(&self, cluster: &ClusterName, wrong: Failure) {
        self.known().insert(cluster.clone(), wrong);
    }

    async fn round(&self) -> Result<()> {
        let members = self.hub.members().await?;
        let held: BTreeSet<ClusterName> = members.into_iter().filter_map(|member| member.applied.and(member.holds)).collect();
        self.known().retain(|name, _| held.contains(name));
        if held.is_empty() {
            return Ok(());
        }
        let records = self.hub.on_record().await?;
        let asked = held.iter().filter_map(|name| Some((name, records.iter().find(|one| one.name == name.as_str())?)));
        stream::iter(asked)
            .for_each_concurrent(AT_ONCE, |(name, record)| async move {
                match self.asked(name, &record.identity).await {
                    Some(wrong) => self.note(name, wrong),
                    None => self.right(name),
                }
            })
            .await;
        Ok(())
    }

    /// Asks a cluster, twice if need be.
    async fn asked(&self, name: &ClusterName, joined: &str) -> Option<Failure> {
        judge(self.hub.ask_identity(name).await, name, joined)?;
        sleep(PAUSE).await;
        judge(self.hub.ask_identity(name).await, name, joined)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Failure>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with an answer, when the cluster of this identity was joined.
fn judge(answer: Result<Identity>, name: &ClusterName, joined: &str) -> Option<Failure> {
    match answer {
        Err(failure) => Some(failure),
        Ok(Identity::Known(uid)) if uid != joined => Some(Failure::new(
            Kind::OtherCluster,
            format!("another cluster answers as {name} than was joined"),
            format!("xregion doctor {name} says which; if it was replaced on purpose, set replace"),
        )),
        Ok(Identity::Known(_) | Identity::Withheld(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_when_it_is_of_the_cluster_that_was_joined_or_withheld() {
        let failure = || Failure::new(Kind::NotReachable, "no answer", "look");
        for (answer, want) in [
            (Ok(Identity::Known("uid".into())), None),
            (Ok(Identity::Withheld(failure())), None),
            (Ok(Identity::Known("other".into())), Some(Kind::OtherCluster)),
            (Err(failure()), Some(Kind::NotReachable)),
        ] {
            assert_eq!(judge(answer, &"a".parse().unwrap(), "uid").map(|failure| failure.kind), want);
        }
    }
}
