//! Carrying out members: what components of type `xregion-member` declare is joined, joined again when it changes, and let go when it is
//! deleted, as the steps do it. Whatever ends this, the next controller goes on from what is on the hub.
//!
//! ```text
//! ConfigMaps of members ─┐
//! Secrets that opted in ─┼─► decide ─► tried lately? ─┬─► join: all that are due, in one order
//! what is joined ────────┘                            └─► leave, or only let go
//! ```
//!
//! One that is joined is told to be broken while its cluster gives no right answer ([`super::answers`]).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{join, join_all};
use futures::try_join;
use jiff::Timestamp;
use tokio::time::{sleep, timeout};

use super::answers::Answers;
use super::{LOOK_EVERY, Still};
use crate::cli::MemberArg;
use crate::error::{Failure, Kind, Result};
use crate::hub::Hub;
use crate::hub::members::Kubeconfigs;
use crate::hub::progress::Progress;
use crate::join::{self, Member, Order};
use crate::leave;
use crate::lock::Lock;
use crate::model::joined::Joined;
use crate::model::members::{Clusters, Declared, Due, FORCE, State, Tries, Wish, decide, digest, is_another_s};
use crate::model::names::{ClusterName, NAMESPACE};
use crate::model::route::Mode;
use crate::model::tree::described;
use crate::undo::{self, Undo, undo_within, undone};

/// How long the joins or the leaves of one round may take, as a step may.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long undoing may take when the Lease is lost: until another controller may take it, and go on from what it finds.
const UNDO_PATIENCE: Duration = Duration::from_secs(4);

/// The members, while this controller leads.
pub(super) struct Members<'a> {
    hub: &'a Hub,
    /// Held by who changes what members look at.
    still: &'a Still,
    answers: &'a Answers<'a>,
    /// How to undo the joins that are under way.
    undos: Mutex<Arc<Vec<Undo>>>,
}

/// A member and what it asks for.
struct Asked {
    member: Declared,
    wish: Result<(MemberArg, Wish)>,
}

/// A member to join, and with which digest.
struct Joining<'a> {
    member: &'a Declared,
    wish: &'a Wish,
    arg: &'a MemberArg,
}

impl<'a> Members<'a> {
    pub fn new(hub: &'a Hub, still: &'a Still, answers: &'a Answers<'a>) -> Self {
        Self { hub, still, answers, undos: Mutex::default() }
    }

    /// Carries out what members ask for, for ever. It may be dropped at any time; then [`Self::undo`] is to be called.
    pub async fn follow(&self, lock: &Lock) {
        let mut tries = Tries::default();
        loop {
            if let Err(failure) = self.round(lock, &mut tries).await {
                tracing::warn!(%failure, "the members can't be looked at");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Undoes joins that were dropped in the middle. With the Lease lost there is little time for it, and no harm if it doesn't suffice.
    pub async fn undo(&self, lost: bool) {
        let undos = self.undos().clone();
        match undo_within(&undos, if lost { UNDO_PATIENCE } else { undo::PATIENCE }).await {
            Some(Ok(())) => {}
            Some(Err(failure)) => tracing::warn!(%failure, "not everything could be undone; the next join goes on from there"),
            None => tracing::warn!("not everything could be undone in time; the next join goes on from there"),
        }
    }

    fn undos(&self) -> MutexGuard<'_, Arc<Vec<Undo>>> {
        self.undos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn round(&self, lock: &Lock, tries: &mut Tries) -> Result<()> {
        let (members, kubeconfigs, clusters) = {
            let _still = self.still.lock().await;
            let members = self.hub.members().await?;
            if members.is_empty() {
                return Ok(());
            }
            let (kubeconfigs, clusters) = try_join!(self.hub.kubeconfigs(), self.hub.clusters())?;
            (members, kubeconfigs, clusters)
        };
        let asked: Vec<Asked> = members.into_iter().map(|member| asked(member, &kubeconfigs)).collect();
        drop(kubeconfigs);
        let wishes: Vec<_> =
            asked.iter().map(|one| (one.member.clone(), one.wish.as_ref().ok().map(|(_, wish)| wish.clone()))).collect();
        tries.keep(&wishes);
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        for (Asked { member, wish }, due) in asked.iter().zip(decide(&wishes, &clusters)) {
            match (due, wish) {
                (Due::Join, Ok((arg, wish))) if tries.may(member, &wish.digest, Timestamp::now()) => {
                    joins.push(Joining { member, wish, arg });
                }
                (Due::Leave(name), wish) if tries.may(member, &leaving(member, &name), Timestamp::now()) => {
                    leaves.push((member, name, wish.as_ref().ok().map(|(arg, _)| arg.region.clone())));
                }
                (Due::Joined, Ok((_, wish))) => self.stands(member, &wish.cluster, &clusters).await,
                (Due::Stand(why), _) => self.tell(member, State::Waiting, &why).await,
                (Due::Nothing, Err(failure)) if !member.deleted => self.tell(member, State::Failed, &failure.to_string()).await,
                (Due::Release, _) if lock.held() => note(member, self.hub.release_member(member).await),
                _ => {}
            }
        }
        if lock.held() {
            let (joined, left) = join(self.join(&joins, &clusters), self.leave(&leaves)).await;
            joins.iter().zip(joined).for_each(|(one, joined)| self.noted(tries, one.member, &one.wish.digest, joined));
            leaves.iter().zip(left).for_each(|((member, name, _), left)| {
                self.noted(tries, member, &leaving(member, name), left);
            });
        }
        Ok(())
    }

    /// Tells how a member stands that needs nothing.
    async fn stands(&self, member: &Declared, cluster: &ClusterName, clusters: &Clusters) {
        let wrong = self.answers.wrong(cluster);
        // What its join told stays, and what that had to warn of.
        if wrong.is_none() && member.stands(State::Joined) {
            return;
        }
        let membership = clusters.joined.get(cluster).and_then(Option::as_ref);
        let how = membership.map(|one| describe(&one.region, one.node_port, one.mode, None));
        let how = how.unwrap_or_else(|| "joined".to_owned());
        match wrong {
            Some(wrong) => self.tell(member, State::Broken, &format!("{how}, but {wrong}")).await,
            None => self.tell(member, State::Joined, &how).await,
        }
    }

    fn noted(&self, tries: &mut Tries, member: &Declared, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => tries.done(member),
            Err(failure) if failure.kind == Kind::InUse => tries.waits(member, what, Timestamp::now()),
            Err(failure) => {
                tracing::warn!(member = %member.name, %failure, "it is tried again");
                tries.failed(member, what, Timestamp::now());
            }
        }
    }

    /// Joins members in one order, so that the gateway is rolled once for all of them.
    async fn join(&self, due: &[Joining<'_>], clusters: &Clusters) -> Vec<Result<()>> {
        let begun = join_all(due.iter().map(|one| self.begin(one, clusters))).await;
        let members: Vec<Member> =
            due.iter().zip(&begun).filter(|(_, begun)| begun.is_ok()).map(|(one, _)| one.arg.clone().into()).collect();
        let mut joined = self.carry_out(members).await.into_iter();
        let outcomes = due.iter().zip(begun).map(|(one, begun)| {
            let joined = begun.and_then(|()| joined.next().unwrap_or_else(|| Err(unexpected())));
            async move {
                match joined {
                    Ok(joined) => self.joined(one, &joined).await,
                    Err(failure) => {
                        self.not_joined(one, &failure).await;
                        Err(failure)
                    }
                }
            }
        });
        join_all(outcomes).await
    }

    /// Marks a member before anything is done for it: whoever finds it deleted after a death in the middle lets its cluster leave.
    async fn begin(&self, Joining { member, wish, arg }: &Joining<'_>, clusters: &Clusters) -> Result<()> {
        let free = !clusters.joined.contains_key(&wish.cluster);
        let message = format!("joining through {}", arg.region);
        self.hub.begin_member(member, free.then_some(&wish.cluster), &message).await
    }

    /// Runs the joins; gives what came of each, in their order.
    async fn carry_out(&self, members: Vec<Member>) -> Vec<Result<Joined>> {
        if members.is_empty() {
            return vec![];
        }
        let count = members.len();
        let place = match self.hub.members_place().await {
            Ok(place) => place,
            Err(failure) => return (0..count).map(|_| Err(failure.clone())).collect(),
        };
        let progress = Progress::new(self.hub, place);
        let undos: Arc<Vec<Undo>> = Arc::new(members.iter().map(|_| Undo::default()).collect());
        self.undos().clone_from(&undos);
        let order = Order { members, gateway: None, adopt: false, vela: vela() };
        let failure = match timeout(PATIENCE, join::join(self.hub, &order, &progress, &undos)).await {
            Ok(Ok(results)) => {
                progress.finish("done", &Default::default()).await;
                return results;
            }
            Ok(Err(failure)) => failure,
            Err(_) => too_long(&progress),
        };
        let failure = undone(&undos, failure).await;
        progress.fail(&failure).await;
        (0..count).map(|_| Err(failure.clone())).collect()
    }

    async fn joined(&self, Joining { member, wish, arg }: &Joining<'_>, joined: &Joined) -> Result<()> {
        let message = describe(&arg.region, joined.node_port, arg.mode, joined.warning.as_deref());
        tracing::info!(member = %member.name, cluster = %wish.cluster, "{message}");
        self.answers.right(&wish.cluster);
        self.hub.member_joined(member, &wish.cluster, &wish.digest, &message).await
    }

    async fn not_joined(&self, Joining { member, .. }: &Joining<'_>, failure: &Failure) {
        self.tell(member, State::Failed, &failure.to_string()).await;
        if member.applied.is_none() && is_another_s(failure.kind) {
            note(member, self.hub.member_let_go(member).await);
        }
    }

    /// Lets clusters leave, side by side: one rollout of the gateway serves those that meet.
    async fn leave(&self, due: &[(&Declared, ClusterName, Option<ClusterName>)]) -> Vec<Result<()>> {
        join_all(due.iter().map(|(member, cluster, region)| async move {
            let left = self.let_leave(member, cluster, region.clone()).await;
            if let Err(failure) = &left {
                let state = if failure.kind == Kind::InUse { State::Waiting } else { State::Failed };
                let message = if failure.kind == Kind::InUse { in_use(member, failure) } else { failure.to_string() };
                self.tell(member, state, &message).await;
            }
            left
        }))
        .await
    }

    async fn let_leave(&self, member: &Declared, cluster: &ClusterName, region: Option<ClusterName>) -> Result<()> {
        // Who waits is asked again and again, and would be told both in turn.
        if !member.stands(State::Waiting) {
            self.tell(member, State::Leaving, &format!("cluster {cluster} is leaving")).await;
        }
        let order = leave::Order { cluster: cluster.clone(), region, gateway: None, force: member.force, cut: false, vela: vela() };
        let progress = Progress::new(self.hub, None);
        match timeout(PATIENCE, leave::leave(self.hub, &order, &progress)).await {
            Ok(Ok(left)) => tracing::info!(member = %member.name, "{left}"),
            // Somebody has detached it and joined it otherwise.
            Ok(Err(failure)) if failure.kind == Kind::NotMember => tracing::info!(member = %member.name, %failure, "it stays"),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(too_long(&progress)),
        }
        if member.deleted { self.hub.release_member(member).await } else { self.hub.member_let_go(member).await }
    }

    async fn tell(&self, member: &Declared, state: State, message: &str) {
        note(member, self.hub.tell_member(member, state, message).await);
    }
}

/// Reads what a member asks for; a kubeconfig that is not there is the join's to complain about.
fn asked(member: Declared, kubeconfigs: &Kubeconfigs) -> Asked {
    let wish = MemberArg::of_component(&member.parameters).map(|arg| {
        let kubeconfig = kubeconfigs.get(arg.secret.as_str()).and_then(|data| data.get(&arg.key));
        let digest = digest(&member.parameters, kubeconfig.map(|bytes| bytes.0.as_slice()));
        let wish = Wish { cluster: arg.cluster.clone(), digest };
        (arg, wish)
    });
    Asked { member, wish }
}

/// What is tried when a cluster is to leave. With force it is something new, and not put off.
fn leaving(member: &Declared, cluster: &ClusterName) -> String {
    format!("leave {cluster}{}", if member.force { " by force" } else { "" })
}

/// It is told again with the next look, or is done again without harm.
fn note(member: &Declared, written: Result<()>) {
    if let Err(failure) = written {
        tracing::warn!(member = %member.name, %failure, "it was not written");
    }
}

/// How a member is joined. What its port is called depends on what its region is entered by, which its record does not tell.
pub(super) fn describe(region: &ClusterName, node_port: u16, mode: Mode, warning: Option<&str>) -> String {
    let warning = warning.map(|warning| format!("; {warning}")).unwrap_or_default();
    format!("joined through {region}, {}{warning}", described("port", node_port, mode))
}

fn in_use(member: &Declared, failure: &Failure) -> String {
    let name = &member.name;
    format!(
        "waiting: {} (delete them or place them elsewhere; or set force: kubectl -n {NAMESPACE} annotate configmap {name} --overwrite {FORCE}=true)",
        failure.cause()
    )
}

fn vela() -> PathBuf {
    "vela".into()
}

fn too_long(progress: &Progress) -> Failure {
    Failure::new(
        Kind::Timeout,
        format!("it took longer than {} s, the last of it {}", PATIENCE.as_secs(), progress.last()),
        "see the controller's log and xregion status",
    )
}

fn unexpected() -> Failure {
    Failure::new(Kind::Unexpected, "a join told nothing of what came of it", "report this")
}

#[cfg(test)]
mod tests;
