//! Renewing tokens before they end, and telling of credentials that will end and can't be renewed.
//!
//! ```text
//! tokens in clusters' Secrets ─► a third left? ─► the cluster, by its route: is it marked? another token ─► does that work there?
//!                                                                                                                │
//! members' digests ◄─ the cluster's Secret, which the gateway reads ◄─ the kubeconfig's Secret, which joins read ◄┘
//! ```
//!
//! The cluster is asked directly over its region's nodes, as a join proves its way, and not through the gateway: that has only the old
//! token, and where KubeVela authenticates, asks as the controller's own account.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::runtime::events::EventType;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{Semaphore, watch};

use super::members::describe;
use super::{Controller, Seen};
use crate::cli::MemberArg;
use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::renewal::Source;
use crate::lock::Lock;
use crate::model::checkup::{Problem, Subject, new_credentials};
use crate::model::drift::{Member, Records, Trouble};
use crate::model::kubeconfig::{Access, Credentials};
use crate::model::lifetime::{Claims, warning};
use crate::model::members::{Declared, digest};
use crate::model::membership::{Membership, Origin};
use crate::model::names::ClusterName;
use crate::model::observed::Inside;
use crate::model::renewal::{
    Held, Hindrance, RENEW, Renewing, Replacement, renewable, replacement, same_subject, token_in, with_token,
};
use crate::probe::{self, Door, Probed};

/// How many tokens are renewed at once.
const AT_ONCE: usize = 10;

/// A cluster whose token may be renewed.
struct Candidate<'a> {
    held: &'a Held,
    member: &'a Member,
    cluster: &'a JoinedCluster,
}

/// A kubeconfig that has a token of the same ServiceAccount.
struct Kept {
    origin: Origin,
    source: Source,
    token: SecretString,
    claims: Claims,
}

/// What became of a kubeconfig's text.
struct Rewritten {
    origin: Origin,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Rewritten {
    /// The digest with the new text of a member that has joined with just the old one from there.
    fn digest_of(&self, member: &Declared) -> Option<String> {
        let arg = MemberArg::of_component(&member.parameters).ok()?;
        let digest = |text: &[u8]| digest(&member.parameters, Some(text));
        let joined = arg.secret == self.origin.secret
            && arg.key == self.origin.key
            && member.applied.as_deref() == Some(digest(&self.before).as_str());
        joined.then(|| digest(&self.after))
    }
}

/// A token that the cluster accepts, to take the place of the one in use.
struct Next {
    token: SecretString,
    /// When it ends; none is for ever.
    expires: Option<Timestamp>,
    /// From when on it may be renewed in its turn.
    renews: Option<Timestamp>,
}

impl Next {
    /// `marked` is whether it may be renewed.
    fn of(token: SecretString, claims: &Claims, marked: bool) -> Self {
        let renews = claims.lifetime().filter(|_| marked).map(|lifetime| lifetime.renewal());
        Self { token, expires: claims.expires, renews }
    }
}

/// Why a token stays as it is, for the time being.
type Outcome<T> = std::result::Result<T, Hindrance>;

impl From<Failure> for Hindrance {
    fn from(failure: Failure) -> Self {
        Self::Failed((&failure).into())
    }
}

impl Controller<'_> {
    /// Renews what is due of each look, for ever. It may be dropped at any time: the next look finds what was begun.
    pub(super) async fn follow_credentials(&self, lock: &Lock, mut looks: watch::Receiver<Option<Arc<Seen>>>) {
        let mut renewing = Renewing::default();
        while looks.changed().await.is_ok() {
            let seen = looks.borrow_and_update().clone();
            if let Some(seen) = seen {
                self.renew_due(lock, &seen, &mut renewing, Timestamp::now()).await;
            }
        }
    }

    /// What is to be told of credentials.
    pub(super) fn credential_troubles(&self) -> Vec<Trouble> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn renew_due(&self, lock: &Lock, seen: &Seen, renewing: &mut Renewing, now: Timestamp) {
        let all: Vec<(Held, &JoinedCluster)> =
            seen.secrets.iter().filter_map(|cluster| Some((held(seen, cluster)?, cluster))).collect();
        let (mut told, _): (Vec<Held>, Vec<_>) = all.iter().cloned().unzip();
        self.metrics.credentials(all.iter().map(|(held, cluster)| (cluster.name(), held.expires, held.attention())));
        renewing.keep(&told);
        let due = all.iter().filter(|(held, _)| renewing.is_due(held, now) && lock.held());
        let due: Vec<_> = due.filter_map(|(held, cluster)| seen.candidate(held, cluster)).collect();
        let turns = Semaphore::new(AT_ONCE);
        let outcomes = join_all(due.iter().map(|candidate| async {
            let _turn = turns.acquire().await;
            self.renew(lock, seen, candidate).await
        }))
        .await;
        for (Candidate { held, member, .. }, outcome) in due.into_iter().zip(outcomes) {
            match outcome {
                Ok(expires) => {
                    renewing.done(held);
                    told.retain(|other| other.about != held.about);
                    self.metrics.renewed("renewed");
                    let until = expires.map_or_else(|| "never expires".to_owned(), |expires| format!("lasts until {expires}"));
                    let note = format!("the token of {} was renewed, and {until}", member.name);
                    tracing::info!("{note}");
                    self.publish(seen, &held.about, EventType::Normal, "Renewed", &note).await;
                }
                Err(hindrance) => {
                    if let Hindrance::Failed(problem) | Hindrance::Refused(problem) = &hindrance {
                        tracing::warn!(cluster = %member.name, fix = %problem.fix, "its token was not renewed: {}", problem.cause);
                        self.metrics.renewed("failed");
                    }
                    renewing.hindered(held, hindrance, now);
                }
            }
        }
        let troubles = renewing.troubles(&told, now);
        *self.credentials.lock().unwrap_or_else(PoisonError::into_inner) = troubles;
    }

    /// Renews a cluster's token; gives the new one's end, if it has one.
    async fn renew(&self, lock: &Lock, seen: &Seen, candidate: &Candidate<'_>) -> Outcome<Option<Timestamp>> {
        let Some(Credentials::Token(old)) = candidate.cluster.credentials() else { return Err(Hindrance::Nothing) };
        let kept = self.kept(&candidate.member.membership, &old).await?;
        let next = obtain(seen, candidate, &old, kept.as_ref()).await?;
        if next.expires.is_some_and(|expires| expires <= candidate.held.expires) {
            return Err(Hindrance::Nothing);
        }
        self.put(lock, candidate, &old, kept, &next).await?;
        Ok(next.expires)
    }

    /// The kubeconfig that a cluster was joined with, if it has a token of the same ServiceAccount. One of somebody else is a join's to take
    /// up or to refuse.
    async fn kept(&self, membership: &Membership, old: &SecretString) -> Result<Option<Kept>> {
        let Some(origin) = membership.source.clone() else { return Ok(None) };
        let Some(source) = self.hub.source(&origin).await? else { return Ok(None) };
        let Some(token) = token_in(&source.text, origin.context.as_deref()) else { return Ok(None) };
        let both = Claims::of(old.expose_secret()).zip(Claims::of(token.expose_secret()));
        let kept = both.filter(|(old, claims)| same_subject(old, claims));
        Ok(kept.map(|(_, claims)| Kept { origin, source, token, claims }))
    }

    /// Writes a token into both Secrets, the kubeconfig's first: whatever ends it between the two, the next look finds it there.
    async fn put(
        &self,
        lock: &Lock,
        candidate: &Candidate<'_>,
        old: &SecretString,
        kept: Option<Kept>,
        next: &Next,
    ) -> Outcome<()> {
        // The members look at these Secrets, and must not see the one without the other.
        let _still = self.still.lock().await;
        let (clusters, now) = self.records().await?;
        // The look may be older than what somebody, or this, has written.
        let before = candidate.cluster;
        let same = |now: &&JoinedCluster| now.name() == before.name() && now.data("token") == before.data("token");
        let cluster = clusters.iter().find(same).filter(|_| lock.held() && is_settled(&now, candidate.member));
        let cluster = cluster.ok_or(Hindrance::Nothing)?;
        // Its Secret may have other clusters' kubeconfigs, whose tokens were renewed while this cluster was asked.
        let current = self.kept(&candidate.member.membership, old).await?;
        let token = |kept: &Option<Kept>| kept.as_ref().map(|kept| kept.token.expose_secret().to_owned());
        if token(&current) != token(&kept) {
            let cause = "somebody has changed the token in the Secret of its kubeconfig meanwhile";
            return Err(Hindrance::Failed(Problem::new(cause, "wait: it is tried again")));
        }
        let mut noted = None;
        if let Some(Kept { origin, source, token, .. }) = current {
            let mut after = None;
            if token.expose_secret() != next.token.expose_secret() {
                after = with_token(&source.text, origin.context.as_deref(), &next.token);
                match &after {
                    Some(text) => self.hub.put_source(&origin, &source, text).await?,
                    None => {
                        tracing::warn!(secret = %origin.secret, "it keeps the old token, which isn't written there in one piece")
                    }
                }
            }
            let after = after.unwrap_or_else(|| source.text.clone());
            noted = Some(Rewritten { origin, before: source.text, after });
        }
        self.hub.put_token(cluster, &next.token, next.expires, next.renews).await?;
        if let Some(rewritten) = noted {
            self.note_members(candidate.member, cluster, next, &rewritten).await;
        }
        Ok(())
    }

    /// Records with members that have joined with this kubeconfig, or with another context of it, that they have with what it is now, too:
    /// it is no reason to join again. Where this is not written, they do, and that changes nothing.
    async fn note_members(&self, member: &Member, cluster: &JoinedCluster, next: &Next, rewritten: &Rewritten) {
        let (name, membership) = (&member.name, &member.membership);
        let access = access(cluster, membership, &next.token);
        let warning = access.and_then(|access| warning(&access, false, next.renews.is_some(), Timestamp::now()));
        let message = describe(&membership.region, membership.node_port, membership.mode, warning.as_deref());
        let noted = async {
            for declared in self.hub.members().await? {
                let Some(digest) = rewritten.digest_of(&declared) else { continue };
                if declared.holds.as_ref() == Some(name) {
                    self.hub.member_joined(&declared, name, &digest, &message).await?;
                } else if declared.applied.as_ref() != Some(&digest) {
                    self.hub.member_applied(&declared, &digest).await?;
                }
            }
            Ok::<_, Failure>(())
        };
        if let Err(failure) = noted.await {
            tracing::warn!(%failure, cluster = %name, "members of its kubeconfig join again, which changes nothing");
        }
    }
}

impl Seen {
    /// A cluster whose token may be renewed as far as the records go: joined through a region, and nobody's to change just now.
    fn candidate<'a>(&'a self, held: &'a Held, cluster: &'a JoinedCluster) -> Option<Candidate<'a>> {
        let member = self.records.members.iter().find(|member| member.name.as_str() == cluster.name())?;
        is_settled(&self.records, member).then_some(Candidate { held, member, cluster })
    }
}

fn is_settled(records: &Records, member: &Member) -> bool {
    let endpoint = member.membership.endpoint();
    records.members.contains(member)
        && member.endpoint.as_ref() == Some(&endpoint)
        && !records.leaving.contains(&member.name)
        && !records.busy.contains(&member.name)
}

/// The credentials in a cluster's Secret, if it was joined through a region or is one.
fn held(seen: &Seen, cluster: &JoinedCluster) -> Option<Held> {
    let name: ClusterName = cluster.name().parse().ok()?;
    let (about, way_back) = match cluster.membership() {
        Some(membership) => {
            let way_back = new_credentials(&name, &membership);
            (Subject::Cluster(name), way_back)
        }
        None if seen.regions.iter().any(|region| region.name == name) => {
            let way_back = format!("join its proxy cluster with a new kubeconfig: vela cluster join FILE --name {name} -y");
            (Subject::Region(name), way_back)
        }
        None => return None,
    };
    Held::of(about, &cluster.credentials()?, way_back)
}

/// How to reach a cluster with a token, as its record has it.
fn access(cluster: &JoinedCluster, membership: &Membership, token: &SecretString) -> Option<Access> {
    Some(Access {
        host: membership.upstream.clone(),
        port: membership.upstream_port,
        tls_server_name: None,
        ca: cluster.data("ca.crt")?.to_vec(),
        credentials: Credentials::Token(token.clone()),
    })
}

/// The nodes over which a cluster can be reached.
fn doors(seen: &Seen, membership: &Membership) -> Result<Vec<Door>> {
    let region = seen.regions.iter().find(|region| region.name == membership.region);
    let unknown = || Failure::new(Kind::RegionUnreachable, format!("region {} was not looked at", membership.region), "wait");
    let Inside { nodes, settings, .. } = region.ok_or_else(unknown)?.inside.as_ref().map_err(Clone::clone)?;
    let patience = Duration::from_secs(u64::from(settings.timeouts.connect_seconds));
    let let_in = settings.bounds().both(&membership.bounds, membership.mode);
    let ready = nodes.iter().filter(|node| node.ready);
    let doors = ready.map(|node| Door {
        node: node.to_string(),
        ip: node.ip,
        port: membership.node_port,
        patience,
        upstream_patience: patience,
        let_in: let_in.clone(),
    });
    Ok(doors.collect())
}

/// Reaches the cluster over the first node that leads there, with a token that it must accept.
async fn enter(doors: &[Door], cluster: &JoinedCluster, membership: &Membership, token: &SecretString) -> Result<(Door, Probed)> {
    let access = access(cluster, membership, token);
    let access = access.ok_or_else(|| Failure::new(Kind::Insecure, "its Secret has no certificate authority", "join it again"))?;
    let region = &membership.region;
    let mut failure = Failure::new(
        Kind::NoReadyNode,
        format!("region {region}: none of its nodes is ready"),
        format!("kubectl get nodes -o wide, in cluster {region}; or change nodes at its xregion-proxy"),
    );
    for door in doors {
        let client = probe::client(door, &membership.alias, &access)?;
        match client.identity().await {
            Ok(identity) if identity == membership.identity => return Ok((door.clone(), client)),
            Ok(_) => {
                return Err(Failure::new(
                    Kind::CrossedRoute,
                    format!("another cluster answers at {}, port {}", door.node, door.port),
                    format!("xregion doctor {} says more", cluster.name()),
                ));
            }
            Err(silent) if silent.kind == Kind::UpstreamSilent => failure = silent,
            Err(other) => return Err(other),
        }
    }
    Err(failure)
}

/// Gets what takes the place of a token, and sees that the cluster accepts it.
async fn obtain(seen: &Seen, candidate: &Candidate<'_>, old: &SecretString, kept: Option<&Kept>) -> Outcome<Next> {
    let claims = Claims::of(old.expose_secret()).ok_or(Hindrance::Nothing)?;
    let (doors, now) = (doors(seen, &candidate.member.membership)?, Timestamp::now());
    let own = replacement(&claims, None, now);
    if let Some(kept) = kept.filter(|kept| replacement(&claims, Some(&kept.claims), now) == Replacement::Brought) {
        match take_up(&doors, candidate, kept).await {
            // Of one that was revoked, its text doesn't tell.
            Err(failure) if failure.kind == Kind::Unauthorized && own == Replacement::Asked => {
                let (cluster, secret) = (&candidate.member.name, &kept.origin.secret);
                tracing::warn!(%cluster, %secret, "the cluster does not accept the later token there (401), and is asked for another");
            }
            brought => return Ok(brought?),
        }
    }
    if own == Replacement::Asked { ask(&doors, candidate, old).await } else { Err(Hindrance::Nothing) }
}

/// Sees whether the cluster accepts the token in the kubeconfig that it was joined with.
async fn take_up(doors: &[Door], Candidate { member, cluster, .. }: &Candidate<'_>, kept: &Kept) -> Result<Next> {
    let (_, client) = enter(doors, cluster, &member.membership, &kept.token).await?;
    let marked = match &kept.claims.account {
        Some(account) => client.may_renew(account).await?,
        None => false,
    };
    Ok(Next::of(kept.token.clone(), &kept.claims, marked))
}

/// Has the cluster make another token of the same ServiceAccount, with the one in use.
async fn ask(doors: &[Door], Candidate { held, member, cluster }: &Candidate<'_>, old: &SecretString) -> Outcome<Next> {
    let membership = &member.membership;
    let entered = enter(doors, cluster, membership, old).await;
    let (door, client) = entered.map_err(|failure| unusable(failure, &held.way_back))?;
    let token = made(&client, old, &held.way_back).await?;
    enter(&[door], cluster, membership, &token).await?;
    let claims = Claims::of(token.expose_secret()).ok_or(Hindrance::Nothing)?;
    Ok(Next::of(token, &claims, true))
}

/// Asks the cluster for another token of the same ServiceAccount, that lasts as long as the one in use did.
async fn made(client: &Probed, old: &SecretString, way_back: &str) -> Outcome<SecretString> {
    let Some((account, lifetime)) = renewable(&Credentials::Token(old.clone())) else { return Err(Hindrance::Nothing) };
    if !client.may_renew(&account).await? {
        return Err(Hindrance::Refused(Problem::new(
            format!("its ServiceAccount {account} has no label {RENEW}=true, or may not read that"),
            way_back,
        )));
    }
    let length = Duration::try_from(lifetime.length()).unwrap_or_default();
    client.token(&account, length).await.map_err(|failure| match failure.kind {
        Kind::Forbidden => Hindrance::Refused(Problem::new(failure.cause(), way_back)),
        _ => failure.into(),
    })
}

/// A token in use that the cluster does not accept says itself that it still should: its ServiceAccount was deleted, or its keys changed.
fn unusable(failure: Failure, way_back: &str) -> Failure {
    match failure.kind {
        Kind::Unauthorized => Failure::new(failure.kind, "the cluster does not accept it any more (401)", way_back),
        Kind::Forbidden => Failure::new(failure.kind, failure.cause(), way_back),
        _ => failure,
    }
}

#[cfg(test)]
mod tests;
