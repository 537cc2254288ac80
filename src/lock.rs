//! A right that one process at a time has, by a Lease: to change the hub's gateway, to write a region's Service.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Failure, Kind, Result};

/// After so long without renewal the holder is taken for dead.
const DURATION_SECONDS: i32 = 15;
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// After so long without renewal the holder takes itself for dead: before anybody else does.
const GIVE_UP: Duration = Duration::from_secs(10);

/// The right, held until it is released or its process ends.
pub struct Lock {
    leases: Api<Lease>,
    name: &'static str,
    holder: String,
    renewed: Renewed,
    renewal: JoinHandle<()>,
}

/// When the Lease was last renewed; never again once somebody else has it.
type Renewed = Arc<Mutex<Option<Instant>>>;

/// What came of taking or renewing a Lease.
enum Taken {
    Ours,
    Others,
    /// Somebody wrote it meanwhile.
    Conflict,
}

impl Lock {
    /// Takes the right that the Lease of this name stands for, unless somebody else has it; `holder` is a name nobody else uses.
    pub async fn take(leases: Api<Lease>, name: &'static str, holder: &str) -> kube::Result<Option<Self>> {
        let asked = Instant::now();
        if !matches!(take(&leases, name, holder).await?, Taken::Ours) {
            return Ok(None);
        }
        let renewed = Arc::new(Mutex::new(Some(asked)));
        let renewal = tokio::spawn(renew(leases.clone(), name, holder.to_owned(), renewed.clone()));
        Ok(Some(Self { leases, name, holder: holder.to_owned(), renewed, renewal }))
    }

    /// Whether it is held for certain: it was renewed of late, and nobody else has taken it.
    pub fn held(&self) -> bool {
        self.left().is_some()
    }

    /// Waits until it is not held for certain any more.
    pub async fn lost(&self) {
        while let Some(left) = self.left() {
            // In small steps: somebody else may take it at any time, by hand.
            sleep(left.min(Duration::from_millis(250))).await;
        }
    }

    /// How long it is held for certain.
    fn left(&self) -> Option<Duration> {
        let renewed = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        GIVE_UP.checked_sub(renewed?.elapsed()).filter(|left| !left.is_zero())
    }

    /// Gives the right to the next one at once.
    pub async fn release(self) {
        self.renewal.abort();
        // The next one waits for the Lease to run out if this fails.
        match timeout(RENEW_EVERY, self.give_up()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, lease = %self.name, "it was not released"),
            Err(_) => tracing::debug!(lease = %self.name, "it was not released in time"),
        }
    }

    async fn give_up(&self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(self.name).await? else { return Ok(()) };
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&self.holder)) {
            spec.holder_identity = None;
            self.leases.replace(self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn renew(leases: Api<Lease>, name: &'static str, holder: String, renewed: Renewed) {
    let note = |at| *renewed.lock().unwrap_or_else(PoisonError::into_inner) = at;
    loop {
        sleep(RENEW_EVERY).await;
        let asked = Instant::now();
        match timeout(RENEW_EVERY, take(&leases, name, &holder)).await {
            Ok(Ok(Taken::Ours)) => note(Some(asked)),
            Ok(Ok(Taken::Others)) => note(None),
            Ok(Ok(Taken::Conflict)) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = %name, "it was not renewed"),
            Err(_) => tracing::warn!(lease = %name, "it was not renewed in time"),
        }
    }
}

/// Takes or renews the Lease, unless somebody else holds it.
async fn take(leases: &Api<Lease>, name: &str, holder: &str) -> kube::Result<Taken> {
    let found = leases.get_opt(name).await?;
    let now = Timestamp::now();
    let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
    if !may_take(spec, holder, now) {
        return Ok(Taken::Others);
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
        Ok(_) => Ok(Taken::Ours),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Taken::Conflict),
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
    use http::{Method, Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock::{Handle, pair};

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
    type Server = Handle<Request<Body>, Response<Body>>;

    async fn answer(server: &mut Server, status: u16, lease: &Value) -> Method {
        let (request, send) = server.next_request().await.unwrap();
        send.send_response(Response::builder().status(status).body(Body::from(lease.to_string().into_bytes())).unwrap());
        request.method().clone()
    }

    fn lease(holder: &str) -> Value {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lease", "resourceVersion": "1"},
               "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": format!("{:.6}", Timestamp::now())}})
    }

    async fn taken() -> (Lock, Server) {
        let (service, mut server) = pair();
        let leases = Api::namespaced(Client::new(service, "vela-system"), "vela-system");
        let taking = tokio::spawn(async move { Lock::take(leases, "lease", "me").await });
        answer(&mut server, 200, &lease("")).await;
        assert_eq!(answer(&mut server, 200, &lease("me")).await, Method::PUT);
        (taking.await.unwrap().unwrap().unwrap(), server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_somebody_else_takes_is_lost_at_once() {
        let (lock, mut server) = taken().await;
        assert!(lock.held());
        answer(&mut server, 200, &lease("me")).await;
        answer(&mut server, 200, &lease("me")).await;
        let renewed = Instant::now();
        answer(&mut server, 200, &lease("other")).await;
        lock.lost().await;
        assert!(!lock.held() && renewed.elapsed() <= RENEW_EVERY + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_not_taken_back_is_left_to_run_out() {
        let (lock, mut server) = taken().await;
        tokio::spawn(async move {
            let held = server.next_request().await;
            server.next_request().await;
            drop(held);
        });
        timeout(Duration::from_secs(10), lock.release()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_can_t_be_renewed_is_lost_before_it_runs_out() {
        let (lock, mut server) = taken().await;
        let start = Instant::now();
        let failing = tokio::spawn(async move {
            let refusal = json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden"});
            loop {
                answer(&mut server, 403, &refusal).await;
            }
        });
        lock.lost().await;
        let seconds = start.elapsed().as_secs();
        assert!((9..15).contains(&seconds), "{seconds}");
        failing.abort();
    }
}
