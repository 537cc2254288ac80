//! The second half of a join, on the hub: the gateway learns the name, KubeVela the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::time::{Instant, sleep};

use super::{ASK_EVERY, Join};
use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::lock::holder_name;
use crate::hub::progress::Progress;
use crate::model::aliases::{HostAliases, Wanted};
use crate::model::kubeconfig::Credentials;
use crate::model::membership::{CREDENTIAL_TYPE, Membership};
use crate::model::names::ClusterName;
use crate::model::nodes::aliased_addresses;
use crate::region::Region;
use crate::undo::{Step, Undo};
use crate::vela;

/// How long a rollout waits for routes that are being proven now, so that one rollout serves them all.
const GATHER_PATIENCE: Duration = Duration::from_secs(4);
/// How long the cluster may take to answer through the gateway after it was joined.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

impl Join<'_> {
    /// Leads the cluster's host name to the region's nodes in every gateway pod, without a failed request.
    pub(super) async fn roll(&mut self, membership: &Membership, progress: &Progress, undo: &mut Undo) -> Result<()> {
        let wanted = self.wanted(&membership.alias);
        let own: BTreeMap<_, _> = [(self.order.region.to_string(), self.addresses.clone())].into();
        let now = self.gateway.aliases().await?;
        if now.with(std::slice::from_ref(&wanted), &own) == now {
            // Nothing to change; but the run before this one may have ended in the middle of its rollout.
            return self.gateway.rolled().await;
        }
        let lock = self.hub.lock_gateway(&holder_name()?).await?;
        let rolled = self.roll_locked(wanted, own, progress, undo).await;
        lock.release().await;
        rolled
    }

    async fn roll_locked(
        &mut self,
        wanted: Wanted,
        mut addresses: BTreeMap<String, BTreeSet<std::net::IpAddr>>,
        progress: &Progress,
        undo: &mut Undo,
    ) -> Result<()> {
        let regions = self.gather(progress).await?;
        let mut all = vec![wanted.clone()];
        for region in regions {
            let aliases = self.gateway.aliases().await?;
            match self.proven_in(&region, &aliases).await {
                Ok((names, ips)) => {
                    all.extend(names);
                    addresses.insert(region.to_string(), ips);
                }
                // Its joins will roll for themselves.
                Err(failure) => tracing::warn!(%failure, region = region.as_str(), "the region is left out of this rollout"),
            }
        }
        let claims = |aliases: &HostAliases| {
            aliases.record.0.get(wanted.host.as_str()).is_some_and(|recorded| recorded.clusters.contains(wanted.cluster.as_str()))
        };
        if !claims(&self.gateway.aliases().await?) {
            undo.note(Step::DropAlias(Box::new(self.gateway.clone()), wanted.host.clone(), wanted.cluster.clone()));
        }
        self.changed |= self
            .gateway
            .change(|now| {
                now.admit(&wanted)?;
                let others = all.iter().filter(|one| now.admit(one).is_ok()).cloned().collect::<Vec<_>>();
                Ok(now.with(&others, &addresses))
            })
            .await?;
        self.gateway.roll().await
    }

    /// Waits a little for joins that are about to want the same, and returns the regions that this rollout serves.
    async fn gather(&self, progress: &Progress) -> Result<BTreeSet<ClusterName>> {
        let start = Instant::now();
        loop {
            let others = progress.others().await?;
            if !others.coming || start.elapsed() > GATHER_PATIENCE {
                let regions = others.regions.iter().filter_map(|region| region.parse().ok());
                return Ok(regions.chain([self.order.region.clone()]).collect());
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// The names that this hub's proven routes in a region want, and where they should lead.
    async fn proven_in(&self, name: &ClusterName, aliases: &HostAliases) -> Result<(Vec<Wanted>, BTreeSet<std::net::IpAddr>)> {
        let region = if *name == self.order.region { self.region.clone() } else { Region::enter(self.hub, name).await? };
        let ips = aliased_addresses(&region.nodes().await?, &aliases.addresses(name));
        let routes = region.routes(&self.hub.id).await?;
        let wanted = routes
            .into_iter()
            .filter(|route| route.proven_at.is_some() && !route.trial)
            .filter_map(|route| Some(Wanted { host: route.alias?, cluster: route.cluster, region: name.clone() }));
        Ok((wanted.collect(), ips))
    }

    /// Has `vela` join the cluster under its alias and node port, and checks that it answers through the gateway.
    pub(super) async fn register(&mut self, membership: &Membership, undo: &mut Undo) -> Result<()> {
        let name = &self.order.cluster;
        let before = self.before.clone();
        let is_current = before.as_ref().is_some_and(|cluster| self.is_current(cluster, membership));
        if !is_current {
            undo.note(Step::RestoreCluster(Box::new(self.hub.clone()), name.clone(), before.clone().map(Box::new)));
            let kubeconfig = self.access.to_kubeconfig(name.as_str(), &membership.endpoint());
            vela::cluster_join(&self.order.vela, name, &kubeconfig, &self.order.labels).await?;
            self.changed = true;
        }
        self.answers(membership).await?;
        let recorded = before.as_ref().and_then(JoinedCluster::membership);
        if is_current && recorded.as_ref() == Some(membership) {
            return Ok(());
        }
        self.hub.record(name, membership).await?;
        self.changed = true;
        match recorded {
            Some(old) if old.alias != membership.alias => {
                self.gateway.change(|now| Ok(now.without(&old.alias, name))).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Whether KubeVela has the cluster with just this address, authority, credentials, and at least these labels.
    fn is_current(&self, cluster: &JoinedCluster, membership: &Membership) -> bool {
        let credentials = match &self.access.credentials {
            Credentials::Token(token) => {
                cluster.label(CREDENTIAL_TYPE) == Some("ServiceAccountToken")
                    && cluster.data("token") == Some(token.expose_secret().as_bytes())
            }
            Credentials::Certificate(certificate, key) => {
                cluster.label(CREDENTIAL_TYPE) == Some("X509Certificate")
                    && cluster.data("tls.crt") == Some(certificate)
                    && cluster.data("tls.key") == Some(key.expose_secret().as_bytes())
            }
        };
        credentials
            && cluster.endpoint() == Some(&membership.endpoint())
            && cluster.data("ca.crt") == Some(&self.access.ca)
            && self.order.labels.iter().all(|label| cluster.label(&label.key) == Some(&label.value))
    }

    /// Waits until the cluster answers through the gateway, as the one that was proven.
    async fn answers(&self, membership: &Membership) -> Result<()> {
        let name = &self.order.cluster;
        let start = Instant::now();
        loop {
            match self.hub.identity_through_gateway(name).await {
                Ok(identity) if identity == membership.identity => return Ok(()),
                Ok(identity) => {
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
