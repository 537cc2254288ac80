//! A right that one process at a time has, by a Lease: to change the hub's gateway, to write a region's Service.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
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

/// A wish for the right that a Lease stands for, kept across the attempts to take it.
///
/// Somebody else's Lease has run out when its record has stayed the same for as long as it is good for, counted from when this claim
/// first saw it so. Wall clocks play no part, for those of two machines may differ: `renewTime` is written for people and other tools,
/// and of somebody else's it counts only that it changes. So does client-go (tools/leaderelection/leaderelection.go: "A client only
/// acts on timestamps captured locally to infer the state of the leader election").
pub struct Claim {
    leases: Api<Lease>,
    name: &'static str,
    holder: String,
    /// Somebody else's record as it was last, and when it was first seen so.
    seen: Option<(LeaseSpec, Instant)>,
}

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

impl Claim {
    /// A claim to the Lease of this name; `holder` is a name nobody else uses.
    pub fn new(leases: Api<Lease>, name: &'static str, holder: &str) -> Self {
        Self { leases, name, holder: holder.to_owned(), seen: None }
    }

    /// The Lease's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Takes the right, unless somebody else has it.
    pub async fn take(&mut self) -> kube::Result<Option<Lock>> {
        let asked = Instant::now();
        let found = self.leases.get_opt(self.name).await?;
        if !self.may_take(found.as_ref()) {
            return Ok(None);
        }
        if !matches!(write(&self.leases, self.name, &self.holder, found).await?, Taken::Ours) {
            return Ok(None);
        }
        let (leases, name, holder) = (self.leases.clone(), self.name, self.holder.clone());
        let renewed = Arc::new(Mutex::new(Some(asked)));
        let renewal = tokio::spawn(renew(leases.clone(), name, holder.clone(), renewed.clone()));
        Ok(Some(Lock { leases, name, holder, renewed, renewal }))
    }

    /// Whether the Lease is free, ours or has run out; what was found of somebody else is kept in mind.
    fn may_take(&mut self, found: Option<&Lease>) -> bool {
        let Some(record) = of_another(found, &self.holder) else {
            // The same record again would be a new one.
            self.seen = None;
            return true;
        };
        if let Some((seen, since)) = &self.seen
            && seen == record
        {
            let seconds = record.lease_duration_seconds.unwrap_or(DURATION_SECONDS);
            return since.elapsed() >= Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        }
        self.seen = Some((record.clone(), Instant::now()));
        false
    }
}

impl Lock {
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
        match timeout(RENEW_EVERY, renew_once(&leases, name, &holder)).await {
            Ok(Ok(Taken::Ours)) => note(Some(asked)),
            Ok(Ok(Taken::Others)) => note(None),
            Ok(Ok(Taken::Conflict)) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = %name, "it was not renewed"),
            Err(_) => tracing::warn!(lease = %name, "it was not renewed in time"),
        }
    }
}

/// Renews the Lease, unless somebody else has taken it.
async fn renew_once(leases: &Api<Lease>, name: &str, holder: &str) -> kube::Result<Taken> {
    let found = leases.get_opt(name).await?;
    if of_another(found.as_ref(), holder).is_some() {
        return Ok(Taken::Others);
    }
    write(leases, name, holder, found).await
}

/// The record of a Lease that somebody else holds.
fn of_another<'a>(found: Option<&'a Lease>, holder: &str) -> Option<&'a LeaseSpec> {
    let record = found?.spec.as_ref()?;
    let other = record.holder_identity.as_deref().unwrap_or_default();
    (!other.is_empty() && other != holder).then_some(record)
}

/// Writes that the Lease is the holder's, in the place of the one that was found.
async fn write(leases: &Api<Lease>, name: &str, holder: &str, found: Option<Lease>) -> kube::Result<Taken> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            resource_version: found.as_ref().and_then(|lease| lease.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
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

/// A name for this process that no other one has: its pod's, or the machine's with its process id.
pub fn holder_name() -> Result<String> {
    let host = nix::unistd::gethostname()
        .map_err(|error| Failure::new(Kind::Unexpected, format!("no host name: {error}"), "report this"))?;
    Ok(format!("{}-{}", host.to_string_lossy(), std::process::id()))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, Response};
    use jiff::SignedDuration;
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::advance;
    use tower_test::mock::{Handle, pair};

    use super::*;

    /// A claim, where there is this Lease.
    fn claim(lease: &Arc<Mutex<Value>>) -> Claim {
        let (service, mut server) = pair::<Request<Body>, Response<Body>>();
        let lease = lease.clone();
        tokio::spawn(async move {
            while let Some((_, send)) = server.next_request().await {
                let text = lease.lock().unwrap().to_string();
                send.send_response(Response::new(Body::from(text.into_bytes())));
            }
        });
        Claim::new(Api::namespaced(Client::new(service, "vela-system"), "vela-system"), "lease", "me")
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_at_once_when_it_is_free_or_ours() {
        for (lease, want) in [
            (lease("me"), true),
            (lease(""), true),
            (with_spec(&json!({"leaseDurationSeconds": 15})), true),
            (with_spec(&Value::Null), true),
            (lease("other"), false),
            (renewed("other", Timestamp::UNIX_EPOCH), false),
            (with_spec(&json!({"holderIdentity": "other"})), false),
        ] {
            let taken = claim(&Arc::new(Mutex::new(lease.clone()))).take().await.unwrap();
            assert_eq!(taken.is_some(), want, "{lease}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_has_run_out_when_it_was_not_seen_to_change_whatever_the_clock_it_is_renewed_by() {
        for hours in [-1, 0, 1] {
            let there = Arc::new(Mutex::new(Value::Null));
            let mut claim = claim(&there);
            let clock = Timestamp::now() + SignedDuration::from_hours(hours);
            for renewal in 0..6 {
                *there.lock().unwrap() = renewed("other", clock + SignedDuration::from_secs(10 * renewal));
                for _ in 0..2 {
                    assert!(claim.take().await.unwrap().is_none(), "{hours} {renewal}");
                    advance(Duration::from_secs(5)).await;
                }
            }
            // It was renewed 10 s ago for the last time.
            advance(Duration::from_millis(4900)).await;
            assert!(claim.take().await.unwrap().is_none(), "{hours}");
            advance(Duration::from_millis(100)).await;
            assert!(claim.take().await.unwrap().is_some(), "{hours}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_that_comes_again_is_counted_anew() {
        let fixed = with_spec(&json!({"holderIdentity": "other", "leaseDurationSeconds": 15}));
        let there = Arc::new(Mutex::new(fixed.clone()));
        let mut claim = claim(&there);
        assert!(claim.take().await.unwrap().is_none());
        *there.lock().unwrap() = lease("");
        drop(claim.take().await.unwrap().unwrap());
        advance(Duration::from_secs(3600)).await;
        *there.lock().unwrap() = fixed;
        assert!(claim.take().await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_out_after_the_time_that_it_tells() {
        for (spec, seconds) in [
            (json!({"holderIdentity": "other", "leaseDurationSeconds": 60, "renewTime": "2026-01-01T00:00:00.000000Z"}), 60),
            (json!({"holderIdentity": "other", "leaseDurationSeconds": 15}), 15),
            (json!({"holderIdentity": "other"}), 15),
        ] {
            let mut claim = claim(&Arc::new(Mutex::new(with_spec(&spec))));
            for want in [false, false, true] {
                assert_eq!(claim.take().await.unwrap().is_some(), want, "{spec}");
                advance(Duration::from_secs(seconds) / 2).await;
            }
        }
    }

    type Server = Handle<Request<Body>, Response<Body>>;

    async fn answer(server: &mut Server, status: u16, lease: &Value) -> Method {
        let (request, send) = server.next_request().await.unwrap();
        send.send_response(Response::builder().status(status).body(Body::from(lease.to_string().into_bytes())).unwrap());
        request.method().clone()
    }

    fn lease(holder: &str) -> Value {
        renewed(holder, Timestamp::now())
    }

    fn renewed(holder: &str, at: Timestamp) -> Value {
        with_spec(&json!({"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": format!("{at:.6}")}))
    }

    fn with_spec(spec: &Value) -> Value {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "lease", "resourceVersion": "1"},
               "spec": spec})
    }

    async fn taken() -> (Lock, Server) {
        let (service, mut server) = pair();
        let leases = Api::namespaced(Client::new(service, "vela-system"), "vela-system");
        let taking = tokio::spawn(async move { Claim::new(leases, "lease", "me").take().await });
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
