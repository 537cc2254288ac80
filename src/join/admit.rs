//! The second half of a join, on the hub: the gateway learns the names, KubeVela the clusters.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::prove::second_name;
use super::{ASK_EVERY, Join, Proven};
use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::clusters::{Identity, JoinedCluster, JoinedWith};
use crate::hub::gateway::Gateway;
use crate::hub::progress::{Progress, Stage};
use crate::model::aliases::Wanted;
use crate::model::membership::Membership;
use crate::model::names::{ClusterName, DnsName};
use crate::model::once::earlier_name;
use crate::rolling::{self, Change};
use crate::undo::Step;
use crate::vela;

/// How long the cluster may take to answer through the gateway after it was joined.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// Leads the host names of all that are proven to their regions' nodes in every gateway pod, in one rollout and without a failed
/// request. A cluster whose name is not admitted fails alone, and so do those of a region that is in trouble.
pub(super) async fn roll<'a>(
    hub: &Hub,
    gateway: &Gateway,
    progress: &Progress,
    proven: Vec<Result<Proven<'a>>>,
) -> Result<Vec<Result<Proven<'a>>>> {
    let adopt = proven.iter().flatten().any(|proven| proven.join.order.adopt);
    let mut change = Change { adopt, ..Change::default() };
    for Proven { join, membership, .. } in proven.iter().flatten() {
        join.tell.stage(Stage::Rolling, &format!("leading {} to the region's nodes on the gateway", membership.alias)).await;
        join.note_move().await?;
        join.note_alias(membership);
        change.wanted.push(join.wanted(&membership.alias));
        change.enter(&join.member.region, &join.addresses, Some(membership.node_port));
    }
    if change.wanted.is_empty() {
        return Ok(proven);
    }
    let rolled = rolling::roll(hub, gateway, progress, change).await?;
    let now = gateway.aliases().await?;
    let admitted = |one: Result<Proven<'a>>| {
        let mut proven = one?;
        let wanted = proven.join.wanted(&proven.membership.alias);
        if let Some(failure) = rolled.refusal(&wanted, &now) {
            return Err(failure);
        }
        if !now.has(&wanted) {
            now.admit_move(&wanted)?;
            return Err(Failure::new(
                Kind::GatewayRollout,
                format!("host {} is not on the gateway any more: somebody else took it off", wanted.host),
                "find the other writer (kubectl get deployment -o yaml --show-managed-fields), then try again",
            ));
        }
        proven.join.changed |= !proven.join.aliases.has(&wanted);
        Ok(proven)
    };
    Ok(proven.into_iter().map(admitted).collect())
}

/// Takes the names off the gateway that clusters had before they were joined under others, also in a run that died before it did.
/// They are joined by now: what stays, the next join or leave takes off.
pub(super) async fn drop_old_aliases(hub: &Hub, gateway: &Gateway, progress: &Progress, joined: &[Result<Proven<'_>>]) {
    let dropped: Vec<_> = joined.iter().flatten().flat_map(Proven::old_aliases).collect();
    if dropped.is_empty() {
        return;
    }
    if let Err(failure) = rolling::roll(hub, gateway, progress, Change { dropped, ..Change::default() }).await {
        tracing::warn!(%failure, "names that are not used any more stay on the gateway");
    }
}

impl Proven<'_> {
    fn old_aliases(&self) -> impl Iterator<Item = (DnsName, ClusterName)> {
        let cluster = &self.join.member.cluster;
        let hosts = self.join.aliases.claims_of(cluster).into_iter().filter_map(|claim| claim.host.parse().ok());
        hosts.filter(|host| *host != self.membership.alias).map(|host| (host, cluster.clone()))
    }
}

impl Join<'_> {
    /// How to put the gateway back to what it was for this cluster.
    fn note_alias(&self, membership: &Membership) {
        let wanted = self.wanted(&membership.alias);
        if self.aliases.has(&wanted) {
            return;
        }
        let gateway = Box::new(self.gateway.clone());
        let moved = self.aliases.claims_of(&self.member.cluster).into_iter().find(|claim| claim.host == wanted.host.as_str());
        let before = moved.and_then(|claim| Some(Wanted { region: claim.region.parse().ok()?, ..wanted.clone() }));
        let addresses = self.aliases.leads_to(&wanted.host);
        if self.aliases.is_foreign(&wanted.host) {
            self.undo.note(Step::DisownAlias(gateway, wanted.host, addresses));
            return;
        }
        self.undo.note(match before {
            Some(before) => Step::PutAlias(gateway, before, addresses),
            None => Step::DropAlias(gateway, wanted.host, wanted.cluster),
        });
    }

    /// Has `vela` join the cluster under its alias and node port, and checks that it answers through the gateway.
    pub(super) async fn register(&mut self, membership: &Membership) -> Result<()> {
        let name = &self.member.cluster;
        let before = self.before.clone();
        let is_current = before.as_ref().is_some_and(|cluster| self.is_current(cluster, membership));
        let note_before = || {
            self.undo.note(Step::RestoreCluster {
                hub: Box::new(self.hub.clone()),
                name: name.clone(),
                joined: Box::new(JoinedWith { access: self.access.clone(), membership: membership.clone() }),
                before: before.clone().map(Box::new),
            });
        };
        if !is_current {
            note_before();
            let kubeconfig = self.access.to_kubeconfig(name.as_str(), &membership.endpoint());
            vela::cluster_join(&self.order.vela, name, &kubeconfig, &self.member.labels).await?;
            self.changed = true;
        }
        self.answers(membership).await?;
        let recorded = before.as_ref().and_then(JoinedCluster::membership);
        if is_current {
            if recorded.as_ref() == Some(membership) {
                return Ok(());
            }
            note_before();
        }
        let written = self.hub.record(name, membership).await?;
        self.changed = true;
        // Who was there before the run does not give way to who came meanwhile.
        if self.member.allow_second_name || recorded.is_some_and(|recorded| recorded.identity == membership.identity) {
            return Ok(());
        }
        self.check_once(&written).await
    }

    /// The cluster must not have got another name since its identity was looked for: other runs may have joined it meanwhile.
    async fn check_once(&self, written: &JoinedCluster) -> Result<()> {
        let records = self.shared.records.get(self.hub.on_record()).await?;
        let run = self.order.members.iter().map(|member| member.cluster.as_str()).collect();
        match written.on_record().as_ref().and_then(|own| earlier_name(own, &run, &records)) {
            Some(other) => Err(second_name(other)),
            None => Ok(()),
        }
    }

    /// Whether KubeVela has the cluster with just this address, authority, credentials, and at least these labels.
    pub(super) fn is_current(&self, cluster: &JoinedCluster, membership: &Membership) -> bool {
        cluster.is_reached_by(&membership.endpoint(), &self.access)
            && self.member.labels.iter().all(|label| cluster.label(&label.key) == Some(&label.value))
    }

    /// Waits until the cluster answers through the gateway, as the one that was proven.
    async fn answers(&self, membership: &Membership) -> Result<()> {
        let name = &self.member.cluster;
        let start = Instant::now();
        loop {
            match self.hub.ask_identity(name).await {
                Ok(Identity::Known(identity)) if identity == membership.identity => return Ok(()),
                Ok(Identity::Withheld(why)) => {
                    tracing::info!(%why, "the cluster answers; who it is was seen when the way was proven");
                    return Ok(());
                }
                Ok(Identity::Known(identity)) => {
                    return Err(Failure::new(
                        Kind::NotReachable,
                        format!(
                            "through the gateway, another cluster answers as {name}: identity {identity} instead of {}",
                            membership.identity
                        ),
                        format!("look for another alias of {} on the gateway's Deployment", membership.alias),
                    ));
                }
                Err(failure) if start.elapsed() > ANSWER_PATIENCE => return Err(failure),
                Err(failure) => tracing::debug!(%failure, "waiting for the gateway"),
            }
            sleep(ASK_EVERY).await;
        }
    }
}
