//! The addresses of upstream names, kept up to date: every name is looked up by a task of its own, so none delays another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::model::names::DnsName;
use crate::model::report::Reason;

/// A TTL is honoured between these: below, lookups would never pause; above, a moved API server would be missed for too long.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long after a failure a name is tried again.
const RETRY: Duration = Duration::from_secs(3);
/// How long a lookup may take, retries included.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many lookups run at once: a zone that does not answer must not use up the agent's files.
const LOOKUPS: usize = 256;
/// The time from one lookup's start to the next one's. Where a thousand names are asked at once, the answers of most get lost: a resolver's
/// receive buffer holds some 250 questions (a name is two), and of those that came late or never, a proxy with 900 names had a third.
const PACE: Duration = Duration::from_millis(5);

/// Why a name has no address: there is none, or there was no answer; and in words.
pub(super) type Unresolved = (Reason, String);

/// What DNS said of a name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Known {
    /// The last good addresses, in an order of their own: DNS servers rotate answers.
    addresses: Vec<IpAddr>,
    /// Why the last lookup failed, if it did.
    failure: Option<Unresolved>,
}

impl Known {
    /// The addresses to use, or why there are none.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Unresolved> {
        match &self.failure {
            Some(failure) if self.addresses.is_empty() => Err(failure.clone()),
            _ => Ok(self.addresses.clone()),
        }
    }

    /// Takes an answer: one without addresses leaves the last good ones in use.
    pub fn learn(&mut self, mut addresses: Vec<IpAddr>, failure: Option<Unresolved>) {
        if !addresses.is_empty() {
            addresses.sort_unstable();
            addresses.dedup();
            self.addresses = addresses;
        }
        self.failure = failure;
    }
}

/// The names in use.
pub(super) struct Names {
    resolver: TokioResolver,
    turns: Arc<Turns>,
    lookups: JoinSet<()>,
    wanted: BTreeMap<DnsName, AbortHandle>,
    known: BTreeMap<DnsName, Known>,
    sender: mpsc::Sender<(DnsName, Known)>,
    answers: mpsc::Receiver<(DnsName, Known)>,
}

/// What came of a lookup.
struct Answer {
    /// The addresses to use from now on; none if those in use stay.
    addresses: Vec<IpAddr>,
    /// What went wrong, be it with one family only.
    failure: Option<Unresolved>,
    /// How long what was answered is good for.
    ttl: Duration,
}

impl Answer {
    /// How long to wait until the name is looked up again.
    fn pause(&self) -> Duration {
        self.ttl.clamp(TTL.0, if self.failure.is_some() { RETRY } else { TTL.1 })
    }
}

/// The options lookups are made with.
pub(super) fn options(options: &mut ResolverOpts) {
    // A name's task knows when to ask again; a cache in between would only add its own idea of time.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = Duration::from_secs(2);
    options.attempts = 1;
}

impl Names {
    /// Looks names up with `resolver`.
    pub fn new(resolver: TokioResolver) -> Self {
        let (wanted, known) = (BTreeMap::new(), BTreeMap::new());
        let (sender, answers) = mpsc::channel(LOOKUPS);
        Self { resolver, turns: Arc::default(), lookups: JoinSet::new(), wanted, known, sender, answers }
    }

    /// What is known of the names.
    pub fn known(&self) -> &BTreeMap<DnsName, Known> {
        &self.known
    }

    /// Sets the names to look up from now on.
    pub fn want(&mut self, names: BTreeSet<DnsName>) {
        while self.lookups.try_join_next().is_some() {}
        for (_, lookup) in self.wanted.extract_if(.., |name, _| !names.contains(name)) {
            lookup.abort();
        }
        self.known.retain(|name, _| names.contains(name));
        for name in names {
            let (resolver, turns, sender) = (&self.resolver, &self.turns, &self.sender);
            self.wanted.entry(name).or_insert_with_key(|name| {
                self.lookups.spawn(follow(name.clone(), resolver.clone(), turns.clone(), sender.clone()))
            });
        }
    }

    /// Waits for an answer that changes what is known. Nothing is lost when this is cancelled.
    pub async fn changed(&mut self) {
        while let Some((name, known)) = self.answers.recv().await {
            if !self.wanted.contains_key(&name) || self.known.get(&name) == Some(&known) {
                continue;
            }
            match &known.failure {
                // Be it of one family only.
                Some((_, failure)) => tracing::warn!(%name, failure, in_use = ?known.addresses, "name not resolved"),
                None => tracing::info!(%name, addresses = ?known.addresses, "name resolved"),
            }
            self.known.insert(name, known);
            return;
        }
    }
}

/// When lookups may run.
struct Turns {
    permits: Semaphore,
    pace: Mutex<Interval>,
}

impl Default for Turns {
    fn default() -> Self {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { permits: Semaphore::new(LOOKUPS), pace: Mutex::new(pace) }
    }
}

impl Turns {
    /// Waits until a lookup may start; it runs until what is given is dropped.
    async fn next(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.permits.acquire().await.ok()?;
        self.pace.lock().await.tick().await;
        Some(permit)
    }
}

/// Looks a name up again and again, as its answers allow.
async fn follow(name: DnsName, resolver: TokioResolver, turns: Arc<Turns>, answers: mpsc::Sender<(DnsName, Known)>) {
    let mut known = Known::default();
    while let Some(turn) = turns.next().await {
        let answer = look_up(&resolver, &name, &known.addresses).await;
        drop(turn);
        let pause = answer.pause();
        known.learn(answer.addresses, answer.failure);
        if answers.send((name.clone(), known.clone())).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// Looks a name up; `last` are its last good addresses.
async fn look_up(resolver: &TokioResolver, name: &DnsName, last: &[IpAddr]) -> Answer {
    // The dot at the end makes the name absolute: a search domain could lead anywhere.
    let absolute = format!("{name}.");
    let family = |kind| look_up_family(resolver, &absolute, kind);
    let (v4, v6) = tokio::join!(family(RecordType::A), family(RecordType::AAAA));
    let answer = combine(v4, v6, last);
    Answer { addresses: usable(answer.addresses), ..answer }
}

/// Each family has its own time: one that does not answer must not take the other's answer with it.
async fn look_up_family(resolver: &TokioResolver, absolute: &str, kind: RecordType) -> Result<Lookup, NetError> {
    timeout(PATIENCE, resolver.lookup(absolute, kind)).await.unwrap_or(Err(NetError::Timeout))
}

/// One family suffices. One that failed keeps its last good addresses, for this proxy may have no way to the other's; one that has none
/// any more loses them. Of two failures the one that is no plain "there is none" says more.
fn combine(v4: Result<Lookup, NetError>, v6: Result<Lookup, NetError>, last: &[IpAddr]) -> Answer {
    let (mut failed, mut absent) = (None, None);
    let (mut addresses, mut ttl) = (Vec::<IpAddr>::new(), Duration::MAX);
    for (family, is_v6) in [(v4, false), (v6, true)] {
        match family {
            Ok(lookup) => {
                for record in lookup.answers() {
                    ttl = ttl.min(Duration::from_secs(record.ttl.into()));
                    match &record.data {
                        RData::A(v4) => addresses.push(v4.0.into()),
                        RData::AAAA(v6) => addresses.push(v6.0.into()),
                        _ => {}
                    }
                }
            }
            Err(error) if error.is_no_records_found() => absent = absent.or(Some(error)),
            Err(error) => {
                addresses.extend(last.iter().copied().filter(|address| address.is_ipv6() == is_v6));
                failed = Some(error);
            }
        }
    }
    let failure = match failed {
        Some(error) => Some(explain(&error)),
        None if addresses.is_empty() => Some(absent.map_or((Reason::Unresolvable, NO_ADDRESS.into()), |error| explain(&error))),
        None => None,
    };
    Answer { addresses, failure, ttl }
}

const NO_ADDRESS: &str = "the name has no address in the region's DNS";

fn explain(error: &NetError) -> Unresolved {
    let code = match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NXDomain => {
            return (Reason::Unresolvable, "no such name in the region's DNS (NXDOMAIN)".into());
        }
        NetError::Dns(DnsError::NoRecordsFound(_)) => return (Reason::Unresolvable, NO_ADDRESS.into()),
        NetError::Timeout => {
            return (Reason::Unanswered, format!("the region's DNS did not answer within {} s", PATIENCE.as_secs()));
        }
        NetError::NoConnections | NetError::Io(_) => "its servers can't be reached".into(),
        NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => "SERVFAIL".into(),
        NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => "REFUSED".into(),
        other => other.to_string(),
    };
    (Reason::Unanswered, format!("the region's DNS failed: {code}"))
}

/// The addresses this host has a route to, as `getaddrinfo` prefers them: a pod without IPv6 must not try IPv6 addresses.
fn usable(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let has_route = |address: &&IpAddr| {
        let any = if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        // Connecting a UDP socket sends nothing, it only chooses a route.
        UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((**address, 9))).is_ok()
    };
    let with_route: Vec<_> = addresses.iter().filter(has_route).copied().collect();
    if with_route.is_empty() { addresses } else { with_route }
}

#[cfg(test)]
mod tests;
