//! Members on the hub: the ConfigMaps that components of type `xregion-member` are, and what the controller writes into them.
//!
//! KubeVela (1.10.9) patches what its manifest names and leaves the rest alone, also every five minutes when it puts back what others
//! changed: it keeps no record of what it applied to a ConfigMap, so it takes nothing away. So the controller's keys, annotations and
//! finalizer can stand beside the component's. With KubeVela's feature `ApplyResourceByReplace` they are lost when it applies; the next
//! look then joins again, which changes nothing, and writes them anew. A deleted component's ConfigMap is waited for until it is gone.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource as _};
use serde_json::{Value, json};

use super::progress::Place;
use super::{Hub, OPT_IN, call};
use crate::error::Result;
use crate::model::members::{APPLIED, Clusters, Declared, FINALIZER, HOLDS, KIND_MEMBER, MESSAGE, SEEN, STATE, State};
use crate::model::names::{ClusterName, KIND, NAMESPACE};

/// The ConfigMap with the progress of their joins.
const PROGRESS: &str = "xregion-members";

/// The kubeconfigs that opted in: what is in each Secret, by key.
pub type Kubeconfigs = BTreeMap<String, BTreeMap<String, ByteString>>;

impl Hub {
    /// Every member.
    pub async fn members(&self) -> Result<Vec<Declared>> {
        let params = ListParams::default().labels(&format!("{KIND}={KIND_MEMBER}"));
        let list = call("list the members", self.maps().list(&params)).await?;
        Ok(list.items.iter().filter_map(Declared::from_config_map).collect())
    }

    /// Every kubeconfig that may be joined.
    pub async fn kubeconfigs(&self) -> Result<Kubeconfigs> {
        let secrets: Api<Secret> = Api::namespaced(self.client(), NAMESPACE);
        let params = ListParams::default().labels(&format!("{OPT_IN}=true"));
        let list = call("list the kubeconfigs", secrets.list(&params)).await?;
        Ok(list.items.into_iter().filter_map(|secret| Some((secret.metadata.name?, secret.data.unwrap_or_default()))).collect())
    }

    /// What there is of clusters.
    pub async fn clusters(&self) -> Result<Clusters> {
        let joined = self.joined_clusters().await?;
        let joined = joined.iter().filter_map(|cluster| Some((cluster.name().parse().ok()?, cluster.membership()))).collect();
        let leaving = self.leftovers().await?.into_iter().map(|leftover| leftover.cluster).collect();
        Ok(Clusters { joined, leaving })
    }

    /// Where joins of members tell their progress, for runs that go on at once: it goes with the controller's Deployment.
    pub async fn members_place(&self) -> Result<Option<Place>> {
        let owner = self.controller_deployment().await?.and_then(|deployment| deployment.owner_ref(&()));
        Ok(owner.map(|owner| Place { name: PROGRESS.to_owned(), owner }))
    }

    /// Tells how a member stands. Unchanged means no write.
    pub async fn tell_member(&self, member: &Declared, state: State, message: &str) -> Result<()> {
        if member.was_told(state, message) {
            return Ok(());
        }
        self.patch_member(member, &json!({"data": told(member, state, message)})).await
    }

    /// Has a member that is about to be joined kept until its cluster has left, with the name if nobody has it.
    pub async fn begin_member(&self, member: &Declared, holds: Option<&ClusterName>, message: &str) -> Result<()> {
        if !member.kept {
            self.change_finalizers(member, true).await?;
        }
        let mut patch = json!({"data": told(member, State::Joining, message)});
        if let Some(name) = holds {
            patch["metadata"]["annotations"][HOLDS] = json!(name);
        }
        self.patch_member(member, &patch).await
    }

    /// Records that a member has joined.
    pub async fn member_joined(&self, member: &Declared, cluster: &ClusterName, digest: &str, message: &str) -> Result<()> {
        let annotations = json!({HOLDS: cluster, APPLIED: digest});
        let patch = json!({"metadata": {"annotations": annotations}, "data": told(member, State::Joined, message)});
        self.patch_member(member, &patch).await
    }

    /// Records that what a member has joined with is this now.
    pub async fn member_applied(&self, member: &Declared, digest: &str) -> Result<()> {
        self.patch_member(member, &json!({"metadata": {"annotations": {APPLIED: digest}}})).await
    }

    /// Records that a member has no cluster any more, or never had it.
    pub async fn member_let_go(&self, member: &Declared) -> Result<()> {
        self.patch_member(member, &json!({"metadata": {"annotations": {HOLDS: null, APPLIED: null}}})).await
    }

    /// Lets a member go that is being deleted.
    pub async fn release_member(&self, member: &Declared) -> Result<()> {
        self.change_finalizers(member, false).await
    }

    /// Keeps a member or lets it go, beside the finalizers of others: the list is written as it was read, or not at all.
    async fn change_finalizers(&self, member: &Declared, keep: bool) -> Result<()> {
        let name = &member.name;
        let found = call(&format!("read ConfigMap {NAMESPACE}/{name}"), self.maps().get_opt(name)).await?;
        let Some(map) = found.filter(|map| map.metadata.uid.as_ref() == Some(&member.uid)) else { return Ok(()) };
        let mut finalizers = map.metadata.finalizers.unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if keep {
            finalizers.push(FINALIZER.to_owned());
        }
        let version = map.metadata.resource_version;
        self.patch_member(member, &json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}})).await
    }

    async fn patch_member(&self, member: &Declared, patch: &Value) -> Result<()> {
        let name = &member.name;
        let mut patch = patch.clone();
        // One of the same name that was made anew is another member: the API refuses.
        patch["metadata"]["uid"] = json!(member.uid);
        let write: Api<ConfigMap> = self.maps();
        call(&format!("write ConfigMap {NAMESPACE}/{name}"), write.patch(name, &PatchParams::default(), &Patch::Merge(&patch)))
            .await
            .map(drop)
    }
}

fn told(member: &Declared, state: State, message: &str) -> Value {
    json!({STATE: state.as_str(), MESSAGE: message, SEEN: member.parameters})
}
