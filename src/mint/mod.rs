//! The story of `xregion kubeconfig`: on a machine where a kubeconfig works, by whatever command or provider it gets its credentials,
//! a ServiceAccount is made in its cluster, and of that a kubeconfig that a hub can keep.

mod cluster;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::config::Kubeconfig;
use secrecy::SecretString;

use self::cluster::Cluster;
use crate::error::Result;
use crate::files;
use crate::model::kubeconfig::{Access, Chosen, Credentials, Server};
use crate::model::lifetime::in_words;
use crate::model::names::ObjectName;

/// How much of what was asked for a cluster may give without a word: it counts in whole seconds, and time passes on the way.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Account {
    /// The ServiceAccount.
    pub name: ObjectName,
    /// Its namespace.
    pub namespace: ObjectName,
    /// The ClusterRole it is bound to.
    pub role: ObjectName,
    /// How long its token should last.
    pub duration: Duration,
}

/// A kubeconfig of its own for a ServiceAccount.
pub struct Minted {
    /// Its text.
    pub kubeconfig: SecretString,
    /// When its token ends, and whether the cluster gave less time than was asked for.
    pub lifetime: String,
}

/// Makes the ServiceAccount in the cluster of the context and a kubeconfig for it.
pub async fn mint(config: &Kubeconfig, context: Option<&str>, account: &Account) -> Result<Minted> {
    let chosen = Chosen::of(config, context)?;
    // What could not be joined is not worth a ServiceAccount.
    let server = Server::of(chosen.cluster, &files::read)?;
    let cluster = Cluster::connect(config, &chosen, &server).await?;
    token_for(&cluster, chosen.context, server, account).await
}

async fn token_for(cluster: &Cluster, context: &str, server: Server, account: &Account) -> Result<Minted> {
    let Account { name, namespace, role, duration } = account;
    cluster.check_role(role).await?;
    cluster.ensure_namespace(namespace).await?;
    cluster.ensure_account(namespace, name).await?;
    if let Some(before) = cluster.bind(namespace, name, role).await? {
        tracing::warn!("ServiceAccount {namespace}/{name} was bound to ClusterRole {before}; that binding is gone");
    }
    tracing::info!("ServiceAccount {namespace}/{name} is bound to ClusterRole {role}{}", what_it_may(role));
    cluster.let_renew(namespace, name).await?;
    let (token, expires) = cluster.token(namespace, name, *duration).await?;
    let access = Access::new(server, Credentials::Token(token));
    Ok(Minted { kubeconfig: access.flattened(context), lifetime: lifetime(*duration, expires, Timestamp::now()) })
}

fn what_it_may(role: &ObjectName) -> &'static str {
    if role.as_str() == "cluster-admin" { ": whoever has its token can do everything in this cluster" } else { "" }
}

/// The lifetime obtained, beside the one asked for where that is longer.
fn lifetime(asked: Duration, expires: Timestamp, now: Timestamp) -> String {
    let asked = SignedDuration::try_from(asked).unwrap_or(SignedDuration::MAX);
    let obtained = expires.duration_since(now);
    let capped = if obtained + TOLERANCE < asked {
        format!(": the cluster gives no more than that, {} were asked for", in_words(asked))
    } else {
        String::new()
    };
    // In whole minutes, or the time since the cluster answered would show as a day less.
    format!("its token expires at {expires}, {} from now{capped}", in_words(obtained + SignedDuration::from_secs(30)))
}
