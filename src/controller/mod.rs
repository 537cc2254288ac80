//! The controller: it keeps the hub's gateway and its regions at what the hub has on record, and its record at what members declare
//! ([`members`]). Where several run, one leads, and the others wait. It keeps nothing that another one would need: whenever it dies, the next look begins anew.
//!
//! ```text
//! Secrets, leftovers, progress ─┐
//! the gateway's Deployment ─────┼─► drift ─► seen twice, not too often ─► region: port, route ─► gateway: one rollout
//! regions, through the gateway ─┘                                   └──► Events, metrics, ConfigMap ─► xregion status
//!
//! every node of a region, each second ─► those that answer ─► the region's Services on the hub
//! ```
//!
//! Beside that it renews tokens before they end ([`renewals`]).

mod answers;
mod members;
mod metrics;
mod nodes;
mod renewals;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use futures::future::{join, join_all, join5};
use futures::try_join;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use self::answers::Answers;
use self::members::Members;
use self::metrics::Metrics;
use self::nodes::{Entrance, Entrances, Nodes, Silences};
use crate::endpoints::{self, Endpoints, Health};
use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::hub::gateway::Gateway;
use crate::hub::progress::Progress;
use crate::hub::{self, Hub};
use crate::lock::{Lock, holder_name};
use crate::looking;
use crate::model::checkup::Subject;
use crate::model::drift::{Facts, Member, Records, Repair, Standing, Trouble, decide, entered_otherwise};
use crate::model::entries::Entries;
use crate::model::mending::{Mending, Telling, Verdict, given_up};
use crate::model::names::{CONTROLLER, ClusterName, HubId};
use crate::model::observed::SeenRegion;
use crate::model::route::Route;
use crate::region::Region;
use crate::rolling::{self, Change, Rolled};

/// How long from one look to the next, or to asking again for the right to mend.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a look may take, and what it found to be mended; what is left then, the next one finds.
const PATIENCE: Duration = Duration::from_secs(180);
/// How many routes of a region are written at once.
const ROUTES_AT_ONCE: usize = 8;
/// How often the loop tells that it turns while it waits for that.
const TURN_EVERY: Duration = Duration::from_secs(10);
/// How much an Event can say, in bytes.
const LONGEST_NOTE: usize = 1000;

/// Options of `xregion controller`.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// The port of /livez, /readyz and /metrics
    #[arg(long, value_name = "PORT", default_value_t = 7081)]
    pub health_port: u16,
}

/// Runs the controller until `stop`.
pub async fn run(args: ControllerArgs, hub: &Hub, stop: impl Future<Output = ()>) -> Result<()> {
    let ControllerArgs { health_port } = args;
    let (health, metrics) = (Health::new("the hub was not looked at yet, or can't be\n"), Metrics::new());
    let numbers = metrics.clone();
    let endpoints = Endpoints::new(health.clone(), move || numbers.text());
    let listening = endpoints::serve(health_port, endpoints).await;
    let listening =
        listening.map_err(|error| Failure::new(Kind::Unexpected, format!("{error:#}"), "give another port with --health-port"))?;
    tokio::spawn(listening);

    let holder = holder_name()?;
    let controller = Controller { hub, holder: &holder, health, metrics, still: Still::default(), credentials: Mutex::default() };
    let mut claim = hub.claim_controller(&holder);
    let mut stop = pin!(stop);
    loop {
        controller.health.turn();
        match hub::take(&mut claim).await {
            Ok(Some(lock)) => {
                let stopped = controller.lead(&lock, stop.as_mut()).await;
                controller.metrics.leads(false);
                controller.metrics.problems(0);
                controller.metrics.credentials([]);
                if stopped {
                    lock.release().await;
                    return Ok(());
                }
            }
            Ok(None) => controller.health.set_ready(true),
            Err(failure) => controller.missed(&failure),
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            () = stop.as_mut() => return Ok(()),
        }
    }
}

struct Controller<'a> {
    hub: &'a Hub,
    holder: &'a str,
    health: Health,
    metrics: Metrics,
    still: Still,
    /// What the last look told of credentials.
    credentials: Mutex<Vec<Trouble>>,
}

/// Held while Secrets are changed of which members must not see the one without the other.
type Still = tokio::sync::Mutex<()>;

/// Of each repair, whether it was done, or needed no more.
type Mended<'r> = Vec<(&'r Repair, Result<bool>)>;

/// What a look has seen.
struct Seen {
    secrets: Vec<JoinedCluster>,
    records: Records,
    regions: Vec<SeenRegion>,
    /// The Services of regions, where host aliases should lead to those.
    services: Result<Option<BTreeMap<ClusterName, Entries>>>,
    gateway: Result<(Gateway, Standing)>,
}

impl Seen {
    /// The ways into those regions that have Services on the hub, if those can be read, also where the gateway can't be judged. Of a region
    /// that can't be read, it is what was known of it. A region with a cluster that was joined by another way in than it has now is left out:
    /// its joins lead its Services.
    fn entrances(&self, hub: &HubId, known: &Entrances) -> Option<Entrances> {
        let services = self.services.as_ref().ok()?.iter().flatten();
        let one = |(region, entries): (&ClusterName, &Entries)| {
            let seen = self.regions.iter().find(|seen| seen.name == *region)?;
            let led = entries.nodes_everywhere();
            let mut mine = self.records.members.iter().filter(|member| member.membership.region == *region);
            let entrance = match &seen.inside {
                Ok(inside) if mine.any(|member| entered_otherwise(hub, member, inside)) => return None,
                Ok(inside) => {
                    let port = inside.asked_port()?;
                    // Also those that Kubernetes has given up: whoever answers, serves. But none that has no proxy to answer.
                    let asked = inside.nodes.iter().filter(|node| !node.lacks_proxy || led.contains(&node.ip));
                    Entrance { nodes: asked.map(|node| (node.ip, node.ready)).collect(), port, led }
                }
                Err(_) => Entrance { led, ..known.get(region)?.clone() },
            };
            Some((region.clone(), entrance))
        };
        Some(services.filter_map(one).collect())
    }
}

impl Controller<'_> {
    /// Looks, mends, and carries out members while the right to it is held; says whether it was asked to end.
    async fn lead(&self, lock: &Lock, stop: impl Future<Output = ()>) -> bool {
        tracing::info!(holder = self.holder, "this is the controller that mends");
        self.metrics.leads(true);
        let (entrances, seen) = watch::channel(Entrances::new());
        let (sender, silent) = watch::channel(Silences::new());
        let nodes = Nodes { hub: self.hub, metrics: self.metrics.clone(), entrances: seen, silent: sender };
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let answers = Answers::new(self.hub);
        let members = Members::new(self.hub, &self.still, &answers);
        let (show, looks) = watch::channel(None);
        let stopped = tokio::select! {
            biased;
            () = stop => true,
            () = lock.lost() => {
                tracing::warn!("the Lease is lost: another controller may mend now");
                false
            }
            // Beside each other: a join may take minutes, and what is lost meanwhile must not wait for it.
            ((), (), (), (), ()) = join5(
                self.follow(lock, show, &entrances, &silent),
                members.follow(lock),
                answers.follow(),
                self.follow_credentials(lock, looks),
                nodes.follow(lock),
            ) => false,
        };
        members.undo(!stopped).await;
        stopped
    }

    fn missed(&self, failure: &Failure) {
        tracing::warn!(%failure, "the hub can't be looked at");
        self.health.set_ready(false);
    }

    /// Looks and mends, for ever. It may be dropped at any time. What it has seen, it shows.
    async fn follow(
        &self,
        lock: &Lock,
        show: watch::Sender<Option<Arc<Seen>>>,
        entrances: &watch::Sender<Entrances>,
        silent: &watch::Receiver<Silences>,
    ) {
        let mut mending = Mending::default();
        // What another one has told is not told again.
        let told = self.hub.problems().await.inspect_err(|failure| self.missed(failure)).unwrap_or_default();
        let mut telling = Telling::after(told);
        let mut stale = false;
        loop {
            self.health.turn();
            match self.patiently(self.look()).await {
                Ok(seen) => {
                    self.health.set_ready(true);
                    self.metrics.looked(Timestamp::now());
                    let fresh = seen.entrances(&self.hub.id, &entrances.borrow());
                    if let Some(fresh) = fresh {
                        entrances.send_replace(fresh);
                    }
                    let seen = Arc::new(seen);
                    show.send_replace(Some(seen.clone()));
                    let mut troubles = self.round(lock, &seen, &mut mending).await;
                    troubles.extend(self.credential_troubles());
                    troubles.extend(silent.borrow().iter().flat_map(|(region, silence)| silence.troubles(region)));
                    let news = telling.note(troubles, Timestamp::now());
                    self.metrics.problems(telling.told().len());
                    stale |= news.is_some();
                    for Trouble { about, problem } in news.into_iter().flatten() {
                        tracing::warn!(%about, fix = %problem.fix, "{}", problem.cause);
                        self.publish(
                            &seen,
                            &about,
                            EventType::Warning,
                            "NotMended",
                            &format!("{} ({})", problem.cause, problem.fix),
                        )
                        .await;
                    }
                    if stale && lock.held() {
                        let written = self.hub.put_problems(telling.told()).await;
                        stale = written.inspect_err(|failure| tracing::warn!(%failure, "problems are not told")).is_err();
                    }
                }
                Err(failure) => self.missed(&failure),
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Looks at the hub's records, its gateway and its regions. No cluster is asked anything: there may be a thousand.
    async fn look(&self) -> Result<Seen> {
        let (secrets, records) = self.records().await?;
        let regions: BTreeSet<ClusterName> = records.members.iter().map(|member| member.membership.region.clone()).collect();
        let on_hub = async {
            let services = self.hub.entries_led_to().await;
            let gateway: Result<(Gateway, Standing)> = async {
                let gateway = self.hub.gateway(None).await?;
                let standing = gateway.standing(services.clone()?).await?;
                Ok((gateway, standing))
            }
            .await;
            (services, gateway)
        };
        let regions = join_all(regions.into_iter().map(|name| looking::look_into(self.hub, name)));
        let ((services, gateway), regions) = join(on_hub, regions).await;
        Ok(Seen { secrets, records, regions, services, gateway })
    }

    async fn records(&self) -> Result<(Vec<JoinedCluster>, Records)> {
        let progress = Progress::new(self.hub, None);
        let (secrets, leftovers, others) = try_join!(self.hub.joined_clusters(), self.hub.leftovers(), progress.others())?;
        let member = |cluster: &JoinedCluster| {
            Some(Member {
                // What has a name that a ClusterName is not is not xregion's.
                name: cluster.name().parse().ok()?,
                endpoint: cluster.endpoint().map(str::to_owned),
                membership: cluster.membership()?,
                since: cluster.since()?,
            })
        };
        let members = secrets.iter().filter_map(member).collect();
        let leaving = leftovers.into_iter().map(|leftover| leftover.cluster).collect();
        Ok((secrets, Records { members, leaving, busy: others.busy }))
    }

    /// Mends what is due; gives what can't be mended.
    async fn round(&self, lock: &Lock, seen: &Seen, mending: &mut Mending) -> Vec<Trouble> {
        let gateway = seen.gateway.as_ref().map(|(_, standing)| standing);
        let facts = Facts { hub: &self.hub.id, records: &seen.records, regions: &seen.regions, gateway: gateway.ok() };
        let (repairs, mut troubles) = decide(&facts);
        let verdicts = mending.judge(&repairs, Timestamp::now());
        if let (Err(failure), false) = (gateway, seen.records.members.is_empty()) {
            troubles.push(Trouble { about: Subject::Hub, problem: failure.into() });
        }
        for (repair, outcome) in self.mend(lock, seen, &repairs, &verdicts).await {
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    mending.mended(repair, Timestamp::now());
                    repair.parts().into_iter().for_each(|part| self.metrics.repaired(part));
                    let told = format!("{repair}: put back as recorded");
                    tracing::info!("{told}");
                    self.publish(seen, &repair.subject(), EventType::Normal, "Mended", &told).await;
                }
                Err(failure) => mending.failed(&repair.subject(), (&failure).into(), Timestamp::now()),
            }
        }
        troubles.extend(mending.failures());
        for (repair, _) in repairs.iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Verdict::Stop) {
            let writer = self.last_writer(seen, repair).await;
            troubles.push(given_up(repair, writer.as_deref()));
        }
        troubles
    }

    /// Mends what is due, the regions first: what their routes carry goes on while the gateway is rolled. Gives what was done until the time was over.
    async fn mend<'r>(&self, lock: &Lock, seen: &Seen, repairs: &'r [Repair], verdicts: &[Verdict]) -> Mended<'r> {
        let due: Vec<&Repair> = repairs.iter().zip(verdicts).filter(|(_, v)| **v == Verdict::Mend).map(|(r, _)| r).collect();
        let mut ways: BTreeMap<&ClusterName, Vec<&Repair>> = BTreeMap::new();
        for repair in &due {
            if let Some(region) = repair.inside() {
                ways.entry(region).or_default().push(repair);
            }
        }
        let mut done = Vec::new();
        if !ways.is_empty() {
            let mended = Mutex::default();
            let all = self.patiently(async {
                // Who has begun to leave or to join again since the look, is left to that run.
                let now = self.records().await?.1;
                let same = |name: &ClusterName| {
                    let of = |records: &Records| records.members.iter().find(|member| member.name == *name).cloned();
                    of(&now) == of(&seen.records) && !now.leaving.contains(name) && !now.busy.contains(name)
                };
                join_all(ways.iter().map(|(region, ways)| self.mend_region(lock, region, ways, &same, &mended))).await;
                Ok(())
            });
            if let Err(failure) = all.await {
                tracing::warn!(%failure, "what is left of regions is mended after the next look");
            }
            done = mended.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        if let (Some(change), Ok((gateway, _)), true) = (change(repairs, verdicts), &seen.gateway, lock.held()) {
            let progress = Progress::new(self.hub, None);
            let rolled = self.patiently(rolling::roll(self.hub, gateway, &progress, change)).await.and_then(Rolled::whole);
            let of_gateway = due.into_iter().filter(|repair| repair.inside().is_none());
            done.extend(of_gateway.map(|repair| (repair, rolled.clone())));
        }
        done
    }

    /// Mends what is due in a region. Notes of each in `done` how it went as soon as it has: the time may be over before all is done.
    async fn mend_region<'r>(
        &self,
        lock: &Lock,
        name: &ClusterName,
        repairs: &[&'r Repair],
        same: impl Fn(&ClusterName) -> bool,
        done: &Mutex<Mended<'r>>,
    ) {
        let region = match Region::enter(self.hub, name).await {
            Ok(region) => region,
            Err(failure) => {
                tracing::warn!(%failure, "the region is mended after the next look");
                return;
            }
        };
        let note = |repair, outcome| done.lock().unwrap_or_else(PoisonError::into_inner).push((repair, outcome));
        let way = |&repair: &&'r Repair| match repair {
            Repair::Way { route, ports, lost, .. } if same(&route.cluster) => Some((repair, route, *ports, *lost)),
            _ => None,
        };
        let (port_too, route_only): (Vec<_>, Vec<_>) = repairs.iter().filter_map(way).partition(|(_, _, _, lost)| lost.port);
        if !lock.held() {
            return;
        }
        // The ports first, which say what routes listen on; all of a region in one write, for the others wait for each.
        let ports: Vec<_> = port_too.iter().map(|(_, route, ports, _)| (route.port_name(), *ports)).collect();
        let put = match ports.is_empty() {
            true => vec![],
            false => region.put_ports(&ports).await.unwrap_or_else(|failure| vec![Err(failure); ports.len()]),
        };
        let as_recorded = route_only.iter().map(|(_, _, ports, _)| Ok(*ports)).collect();
        let turns = Semaphore::new(ROUTES_AT_ONCE);
        let ways = port_too.into_iter().chain(route_only).zip([put, as_recorded].concat());
        let written = ways.map(|((repair, route, ports, lost), put)| {
            let (turns, region, note) = (&turns, &region, &note);
            async move {
                let _turn = turns.acquire().await;
                let outcome = match put {
                    Ok(put) if !lost.route && put.listen == ports.listen => Ok(true),
                    Ok(_) if !lock.held() => return,
                    Ok(put) => region.put_route(&Route { listen: put.listen, ..(**route).clone() }).await.map(|_| true),
                    Err(failure) => Err(failure),
                };
                note(repair, outcome);
            }
        });
        join_all(written).await;
        // At last: the region's own port takes one that is free, and a cluster's is not to be.
        for &repair in repairs.iter().filter(|repair| matches!(repair, Repair::Service { .. })) {
            if lock.held() {
                note(repair, region.set_service().await);
            }
        }
    }

    /// Waits for what may take a while, and tells meanwhile that the loop turns.
    async fn patiently<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(timeout(PATIENCE, work));
        loop {
            self.health.turn();
            if let Ok(done) = timeout(TURN_EVERY, work.as_mut()).await {
                return done.unwrap_or_else(|_| {
                    Err(Failure::new(
                        Kind::Timeout,
                        format!("the hub and its regions took longer than {} s", PATIENCE.as_secs()),
                        "see what xregion status says of them",
                    ))
                });
            }
        }
    }

    /// The field manager that last wrote what a repair is about.
    async fn last_writer(&self, seen: &Seen, repair: &Repair) -> Option<String> {
        match repair {
            Repair::Gateway { .. } | Repair::Addresses { .. } => seen.gateway.as_ref().ok()?.1.last_writer.clone(),
            Repair::Entries { region, .. } => self.hub.entry_writer(region).await.ok()?,
            Repair::Service { region } => Region::enter(self.hub, region).await.ok()?.service_writer().await.ok()?,
            Repair::Way { region, route, lost, .. } => {
                let region = Region::enter(self.hub, region).await.ok()?;
                if lost.route { region.route_writer(&route.name()).await } else { region.service_writer().await }.ok()?
            }
        }
    }

    /// Publishes an Event on the gateway's Deployment or on the Secret of a cluster, a region's being its proxy cluster's.
    async fn publish(&self, seen: &Seen, about: &Subject, kind: EventType, reason: &str, note: &str) {
        let reference: Option<ObjectReference> = match about {
            Subject::Hub => match &seen.gateway {
                Ok((gateway, _)) => gateway.reference().await.ok(),
                Err(_) => None,
            },
            Subject::Region(name) | Subject::Cluster(name) => {
                seen.secrets.iter().find(|cluster| cluster.name() == name.as_str()).map(JoinedCluster::reference)
            }
        };
        let Some(reference) = reference else { return };
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(shortened(note)),
            action: reason.to_owned(),
            secondary: None,
        };
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(self.holder.to_owned()) };
        // A recorder of its own each time: one that is kept takes what has the same reason for the same, whatever it says.
        let recorder = Recorder::new(self.hub.client(), reporter);
        if let Ok(Err(error)) = timeout(LOOK_EVERY, recorder.publish(&event, &reference)).await {
            tracing::warn!(%error, "an Event was not published");
        }
    }
}

/// The one change of the gateway that mends all of it that is due; of regions whose addresses are not due, it leaves the names alone.
fn change(repairs: &[Repair], verdicts: &[Verdict]) -> Option<Change> {
    let mut change = Change { adopt: true, mends: true, ..Change::default() };
    let (mut any, mut waiting) = (false, BTreeSet::new());
    for (repair, verdict) in repairs.iter().zip(verdicts) {
        let (Repair::Addresses { region, way } | Repair::Entries { region, way }) = repair else { continue };
        if *verdict == Verdict::Mend {
            change.regions.insert(region.clone(), way.clone());
            any = true;
        } else {
            waiting.insert(region);
        }
    }
    for (repair, verdict) in repairs.iter().zip(verdicts) {
        let (Repair::Gateway { wanted, regions }, Verdict::Mend) = (repair, verdict) else { continue };
        change.wanted.extend(wanted.iter().filter(|one| !waiting.contains(&one.region)).cloned());
        change.regions.extend(regions.clone().into_iter().filter(|(region, _)| !waiting.contains(region)));
        any = true;
    }
    any.then_some(change)
}

/// No more than an Event can say.
fn shortened(note: &str) -> String {
    let end = (0..=LONGEST_NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    note[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock::pair;

    use super::*;
    use crate::model::aliases::Wanted;
    use crate::model::entries::Needs;
    use crate::model::entries::tests::provided;
    use crate::model::nodes::Way;
    use crate::model::observed::sample::{inside, name};

    fn wanted(host: &str, region: &str) -> Wanted {
        Wanted { host: host.parse().unwrap(), cluster: "x".parse().unwrap(), region: region.parse().unwrap() }
    }

    #[test]
    fn all_that_is_due_of_the_gateway_is_one_change() {
        let at = |n: u8| Way { nodes: [[10, 0, 0, n].into()].into(), ports: [30000].into(), proven: [30000].into() };
        let names = vec![wanted("a.example", "east"), wanted("b.example", "west")];
        let (east, west) = ("east".parse::<ClusterName>().unwrap(), "west".parse::<ClusterName>().unwrap());
        let regions = BTreeMap::from([(east.clone(), at(1)), (west.clone(), at(2))]);
        let repairs = [
            Repair::Addresses { region: west.clone(), way: at(2) },
            Repair::Gateway { wanted: names.clone(), regions: regions.clone() },
        ];
        let of = |verdicts: [Verdict; 2]| change(&repairs, &verdicts).map(|change| (change.wanted, change.regions));
        assert_eq!(of([Verdict::Mend, Verdict::Mend]), Some((names.clone(), regions.clone())));
        assert_eq!(of([Verdict::Mend, Verdict::Wait]), Some((vec![], [(west, at(2))].into())));
        assert_eq!(of([Verdict::Stop, Verdict::Mend]), Some((names[..1].to_vec(), [(east, at(1))].into())));
        assert_eq!(of([Verdict::Stop, Verdict::Wait]), None);
        let change = change(&repairs, &[Verdict::Mend, Verdict::Mend]).unwrap();
        assert!(change.leaving.is_empty() && change.dropped.is_empty(), "nothing is ever taken off");
    }

    /// A list of one object that each of these has written, at that second.
    fn written(by: &[(&str, u8)]) -> Value {
        let entry = |(manager, second): &(&str, u8)| json!({"manager": manager, "time": format!("2026-01-01T00:00:0{second}Z")});
        let fields: Vec<Value> = by.iter().map(entry).collect();
        json!({"kind": "List", "metadata": {}, "items": [{"metadata": {"managedFields": fields}}]})
    }

    #[tokio::test]
    async fn who_keeps_editing_the_services_of_a_region_on_the_hub_is_named() {
        for (services, slices, writer) in [
            (written(&[("xregion", 1)]), written(&[("xregion", 2)]), None),
            (written(&[("xregion", 1), ("kubectl-edit", 2)]), written(&[("xregion", 3)]), Some("kubectl-edit")),
            (written(&[("kubectl-edit", 1)]), written(&[("stubborn", 2)]), Some("stubborn")),
        ] {
            let (service, mut handle) = pair::<Request<Body>, Response<Body>>();
            tokio::spawn(async move {
                while let Some((request, respond)) = handle.next_request().await {
                    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
                    assert!(path.contains("/namespaces/xregion-system/") && query.contains("%2Fregion%3Deast"), "{path}?{query}");
                    let list = if path.ends_with("/services") { &services } else { &slices };
                    respond.send_response(Response::new(Body::from(list.to_string().into_bytes())));
                }
            });
            let hub = Hub::mocked(Client::new(service, "vela-system"));
            let (health, still, credentials) = (Health::new(""), Still::default(), Mutex::default());
            let controller = Controller { hub: &hub, holder: "me", health, metrics: Metrics::new(), still, credentials };
            let gateway = Err(Failure::new(Kind::GatewayMissing, "none", "none"));
            let seen = Seen { secrets: vec![], records: Records::default(), regions: vec![], services: Ok(None), gateway };
            let repair = Repair::Entries { region: "east".parse().unwrap(), way: Way::default() };
            assert_eq!(controller.last_writer(&seen, &repair).await.as_deref(), writer);
        }
    }

    fn unjudged() -> Failure {
        Failure::new(Kind::Unexpected, "its annotation is no record of host aliases", "restore it")
    }

    #[test]
    fn nodes_are_asked_on_while_the_gateway_or_the_services_or_a_region_can_t_be_read() {
        let ip = |n: u8| IpAddr::from([10, 0, 1, n]);
        let led = |nodes: &[u8]| nodes.iter().map(|n| ip(*n)).collect::<BTreeSet<_>>();
        let services = |nodes: &[u8]| {
            let needs = Needs { ports: [30000].into(), nodes: led(nodes), shards: 1, ..Needs::default() };
            Ok(Some(BTreeMap::from([(name("east"), provided(&name("east"), &needs))])))
        };
        let entrances = |port: u16, nodes: &[u8]| {
            let entrance = Entrance { nodes: [(ip(1), true), (ip(2), true)].into(), port, led: led(nodes) };
            Some(Entrances::from([(name("east"), entrance)]))
        };
        // It had another port then.
        let known = entrances(30000, &[1, 2]).unwrap();
        for (what, region, services, want) in [
            ("the gateway only", Ok(inside(1, vec![])), services(&[1]), entrances(30085, &[1])),
            ("the region neither", Err(unjudged()), services(&[1]), entrances(30000, &[1])),
            ("what the Services lead to neither, and all stays", Ok(inside(1, vec![])), Err(unjudged()), None),
            ("no Services are wanted", Ok(inside(1, vec![])), Ok(None), Some(Entrances::new())),
        ] {
            let regions = vec![SeenRegion { name: name("east"), inside: region }];
            let seen = Seen { secrets: vec![], records: Records::default(), regions, services, gateway: Err(unjudged()) };
            assert_eq!(seen.entrances(&HubId::new("hub-uid"), &known), want, "{what}");
        }
    }

    #[tokio::test]
    async fn services_of_regions_are_seen_where_the_gateway_can_t_be_judged() {
        let (service, mut handle) = pair::<Request<Body>, Response<Body>>();
        tokio::spawn(async move {
            while let Some((request, respond)) = handle.next_request().await {
                let answer = match request.uri().path() {
                    path if path.ends_with("/configmaps/xregion-job") => {
                        json!({"metadata": {}, "data": {"hostAliases": "services"}})
                    }
                    // It leads to no Service.
                    path if path.contains("/apiservices/") => json!({"metadata": {}}),
                    _ => json!({"kind": "List", "metadata": {}, "items": []}),
                };
                respond.send_response(Response::new(Body::from(answer.to_string().into_bytes())));
            }
        });
        let hub = Hub::mocked(Client::new(service, "vela-system"));
        let (health, still, credentials) = (Health::new(""), Still::default(), Mutex::default());
        let controller = Controller { hub: &hub, holder: "me", health, metrics: Metrics::new(), still, credentials };
        let seen = controller.look().await.unwrap();
        assert!(seen.gateway.is_err_and(|failure| failure.kind == Kind::GatewayMissing));
        assert_eq!(seen.services.unwrap(), Some(BTreeMap::new()));
    }

    #[test]
    fn what_is_too_long_for_an_event_is_cut() {
        assert_eq!(shortened("ä"), "ä");
        let long = "ä".repeat(600);
        assert_eq!(shortened(&long).len(), LONGEST_NOTE);
    }
}
