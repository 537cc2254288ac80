//! A right that one process at a time has, by a Lease: to change the hub's gateway, to write a region's Service.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::error::{Failure, Kind, Result};

/// After so long without renewal the holder is taken for dead.
const DURATION_SECONDS: i32 = 15;
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// The right, held until it is released or its process ends.
pub struct Lock {
    leases: Api<Lease>,
    name: &'static str,
    holder: String,
    renewal: JoinHandle<()>,
}

impl Lock {
    /// Takes the right that the Lease of this name stands for, unless somebody else has it; `holder` is a name nobody else uses.
    pub async fn take(leases: Api<Lease>, name: &'static str, holder: &str) -> kube::Result<Option<Self>> {
        if !take(&leases, name, holder).await? {
            return Ok(None);
        }
        let renewal = tokio::spawn(renew(leases.clone(), name, holder.to_owned()));
        Ok(Some(Self { leases, name, holder: holder.to_owned(), renewal }))
    }

    /// Gives the right to the next one at once.
    pub async fn release(self) {
        self.renewal.abort();
        let Ok(Some(mut lease)) = self.leases.get_opt(self.name).await else { return };
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.holder)) {
            spec.holder_identity = None;
            // The next one waits for the Lease to run out if this fails.
            if let Err(error) = self.leases.replace(self.name, &PostParams::default(), &lease).await {
                tracing::debug!(%error, lease = %self.name, "it was not released");
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn renew(leases: Api<Lease>, name: &'static str, holder: String) {
    loop {
        sleep(RENEW_EVERY).await;
        if let Err(error) = take(&leases, name, &holder).await {
            tracing::warn!(%error, lease = %name, "it was not renewed");
        }
    }
}

/// Takes or renews the Lease; false while somebody else holds it.
async fn take(leases: &Api<Lease>, name: &str, holder: &str) -> kube::Result<bool> {
    let found = leases.get_opt(name).await?;
    let now = Timestamp::now();
    let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
    if !may_take(spec, holder, now) {
        return Ok(false);
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            resource_version: found.as_ref().and_then(|lease| lease.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    };
    let params = PostParams::default();
    let written = match found {
        Some(_) => leases.replace(name, &params, &lease).await,
        None => leases.create(&params, &lease).await,
    };
    match written {
        Ok(_) => Ok(true),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn may_take(spec: Option<&LeaseSpec>, holder: &str, now: Timestamp) -> bool {
    let Some(spec) = spec else { return true };
    let duration = SignedDuration::from_secs(i64::from(spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS)));
    match (spec.holder_identity.as_deref(), &spec.renew_time) {
        (None | Some(""), _) => true,
        (Some(current), _) if current == holder => true,
        (Some(_), Some(MicroTime(renewed))) => renewed.checked_add(duration).is_ok_and(|end| end < now),
        (Some(_), None) => true,
    }
}

/// A name for this process that no other one has: its pod's, or the machine's with its process id.
pub fn holder_name() -> Result<String> {
    let host = nix::unistd::gethostname()
        .map_err(|error| Failure::new(Kind::Unexpected, format!("no host name: {error}"), "report this"))?;
    Ok(format!("{}-{}", host.to_string_lossy(), std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_run_out() {
        let now = Timestamp::now();
        let spec = |holder: &str, age: i64| LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(now - SignedDuration::from_secs(age))),
            ..LeaseSpec::default()
        };
        for (holder, age, want) in [("me", 1, true), ("other", 1, false), ("other", 16, true), ("", 1, true)] {
            assert_eq!(may_take(Some(&spec(holder, age)), "me", now), want, "{holder} {age}");
        }
        assert!(may_take(None, "me", now));
    }
}
