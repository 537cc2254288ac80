//! Every link of the way from the hub to a cluster, in path order: `doctor` shows them all, `status` those that are broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;

use super::aliases::{HostAliases, Wanted};
use super::entries::Entries;
use super::lifetime::SOON;
use super::membership::{Membership, Origin};
use super::names::{CONTROLLER, ClusterName, KIND, NAMESPACE};
use super::nodes::{aliased_addresses, listed};
use super::observed::{Inside, Observed, SeenCluster, SeenRegion};
use super::region::{Entry, KIND_PROXY, SERVICE, SNI_PORT};
use super::report::{Uptake, uptake};
use super::route::Mode;
use crate::error::{Failure, Kind, Result};

/// One link of a way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// What it belongs to.
    pub subject: Subject,
    /// Its name.
    pub link: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a link belongs to.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Subject {
    /// The hub.
    Hub,
    /// A region.
    Region(ClusterName),
    /// A cluster.
    Cluster(ClusterName),
}

/// What came of a check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// All is well, and what was seen.
    Ok(String),
    /// It is broken.
    Failed(Problem),
    /// It could not be checked, and why.
    Skipped(String),
}

/// What is wrong, and what mends it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// A problem in these words.
    pub fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: fix.into() }
    }
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Self {
        Self::new(failure.cause(), failure.hint())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => f.write_str("hub"),
            Self::Region(name) => write!(f, "region {name}"),
            Self::Cluster(name) => write!(f, "cluster {name}"),
        }
    }
}

/// Every check of a checkup, in path order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkup(pub Vec<Check>);

impl Checkup {
    /// Of a hub that can't be reached: nothing else can be checked.
    pub fn unreachable(failure: &Failure) -> Self {
        Self(vec![Check { subject: Subject::Hub, link: "API", outcome: Outcome::Failed(failure.into()) }])
    }

    /// Of the hub, the regions that were looked at and, if one is asked about, a cluster.
    pub fn of(observed: &Observed, asked: Option<&ClusterName>) -> Self {
        let mut checks = hub(observed);
        let asked = asked.filter(|name| !observed.regions.iter().any(|region| region.name == **name));
        let cluster = asked.map(|name| observed.clusters.iter().find(|cluster| cluster.name == *name).ok_or(name));
        let through = |region: &&SeenRegion| match cluster {
            Some(Ok(cluster)) => region.name == cluster.membership.region,
            Some(Err(_)) => false,
            None => true,
        };
        checks.extend(observed.regions.iter().filter(through).flat_map(region));
        match cluster {
            Some(Ok(cluster)) => checks.extend(self::cluster(observed, cluster)),
            Some(Err(name)) => checks.push(no_member(observed, name)),
            None => {}
        }
        Self(checks)
    }

    /// The first link that is broken.
    pub fn broken(&self) -> Option<(&Check, &Problem)> {
        self.0.iter().find_map(|check| match &check.outcome {
            Outcome::Failed(problem) => Some((check, problem)),
            _ => None,
        })
    }
}

/// A line for each check; the last line is the verdict.
impl fmt::Display for Checkup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|check| check.link.len()).max().unwrap_or(0);
        let mut subject = None;
        for check in &self.0 {
            if subject != Some(&check.subject) {
                writeln!(f, "{}", check.subject)?;
                subject = Some(&check.subject);
            }
            let link = check.link;
            match &check.outcome {
                Outcome::Ok(seen) => writeln!(f, "  ok       {link:width$}  {seen}")?,
                Outcome::Failed(Problem { cause, fix }) => {
                    writeln!(f, "  FAILED   {link:width$}  {cause}\n           {:width$}  fix: {fix}", "")?;
                }
                Outcome::Skipped(why) => writeln!(f, "  skipped  {link:width$}  ({why})")?,
            }
        }
        match self.broken() {
            Some((Check { subject, link, .. }, Problem { cause, fix })) => {
                write!(f, "first broken link: {subject}, {link}: {cause}; fix: {fix}")
            }
            None => write!(f, "no link is broken"),
        }
    }
}

fn no_member(observed: &Observed, name: &ClusterName) -> Check {
    let lost = observed.regions.iter().find(|region| observed.is_aliased(name, &region.name));
    let silent = observed.unread.iter().find(|seen| seen.name == *name).and_then(|seen| seen.inside.as_ref().err());
    let problem = match (lost, silent) {
        _ if !observed.joined.contains_key(name) => not_joined(name),
        (Some(region), _) => Problem::new("the record of its join is missing", join_again(name, &region.name)),
        (None, Some(failure)) => failure.into(),
        (None, None) => Problem::new(
            "it was joined directly, and has no xregion-proxy",
            format!("nothing, if it is no region; how it answers: vela cluster probe {name}"),
        ),
    };
    Check { subject: Subject::Cluster(name.clone()), link: "Secret", outcome: Outcome::Failed(problem) }
}

/// That a cluster is none.
pub fn not_joined(name: &ClusterName) -> Problem {
    Problem::new("no cluster of that name is joined", format!("xregion join {name} --region REGION --kubeconfig FILE"))
}

/// The hub's own links. That its API answers is known by there being an observation.
pub fn hub(observed: &Observed) -> Vec<Check> {
    let check = |link, outcome| Check { subject: Subject::Hub, link, outcome };
    let addon = match &observed.addon {
        Ok(()) => Outcome::Ok("enabled".into()),
        Err(failure) => Outcome::Failed(failure.into()),
    };
    let (gateway, rollout) = match &observed.gateway {
        Ok(gateway) => (
            Outcome::Ok(format!("Deployment {}", gateway.deployment)),
            match &gateway.waiting {
                None => Outcome::Ok("every pod has the present host aliases".into()),
                Some(what) => Outcome::Failed(Problem::new(
                    format!("it is not rolled: {what}"),
                    format!("kubectl -n {NAMESPACE} rollout status deployment {}", gateway.deployment),
                )),
            },
        ),
        Err(failure) => (Outcome::Failed(failure.into()), Outcome::Skipped("there is no gateway to look at".into())),
    };
    vec![
        check("API", Outcome::Ok("it answers".into())),
        check("addon", addon),
        check("gateway", gateway),
        check("rollout", rollout),
    ]
}

/// A region's links.
pub fn region(seen: &SeenRegion) -> Vec<Check> {
    let check = |link, outcome| Check { subject: Subject::Region(seen.name.clone()), link, outcome };
    let name = &seen.name;
    let (answers, proxy) = match &seen.inside {
        Ok(inside) => (Outcome::Ok(format!("in {} ms", inside.millis)), Outcome::Ok("its settings are there".into())),
        // It said so itself.
        Err(failure) if matches!(failure.kind, Kind::NoProxy | Kind::RegionSettings) => {
            (Outcome::Ok("it answers".into()), Outcome::Failed(failure.into()))
        }
        Err(failure) => (Outcome::Failed(failure.into()), Outcome::Skipped(unreadable(name))),
    };
    let (proxies, nodes) = match &seen.inside {
        Ok(inside) => (proxies(name, inside), nodes(name, inside)),
        Err(_) => (Outcome::Skipped(unreadable(name)), Outcome::Skipped(unreadable(name))),
    };
    vec![check("answers", answers), check("xregion-proxy", proxy), check("proxies", proxies), check("nodes", nodes)]
}

fn unreadable(region: &ClusterName) -> String {
    format!("region {region} can't be read")
}

fn proxies(region: &ClusterName, inside: &Inside) -> Outcome {
    let ready = inside.ready_proxies().len();
    if ready > 0 {
        return Outcome::Ok(format!("{ready} of {} ready", inside.proxies.len()));
    }
    Outcome::Failed(Problem::new(
        format!("none of {} is ready", inside.proxies.len()),
        format!("kubectl -n {NAMESPACE} describe pods -l {KIND}={KIND_PROXY}, in cluster {region}"),
    ))
}

fn nodes(region: &ClusterName, inside: &Inside) -> Outcome {
    let ready: Vec<String> = inside.nodes.iter().filter(|node| node.ready).map(|node| node.ip.to_string()).collect();
    if !ready.is_empty() {
        return Outcome::Ok(format!("{} of {} ready: {}", ready.len(), inside.nodes.len(), ready.join(", ")));
    }
    if inside.settings.entry == Entry::LoadBalancer {
        return match inside.ports.is_empty() {
            true => Outcome::Ok("its load balancer is made with its first route".into()),
            false => Outcome::Failed(Problem::new(
                "its load balancer has no address",
                format!(
                    "kubectl -n {NAMESPACE} describe service {SERVICE}, in cluster {region}; or change entry at its xregion-proxy"
                ),
            )),
        };
    }
    let address = inside.settings.nodes.address_type.as_str();
    let lacks = if inside.nodes.iter().any(|node| node.lacks_proxy) { " and has a ready proxy" } else { "" };
    Outcome::Failed(Problem::new(
        format!("none of {} that the hub may enter by (with an {address}) is ready{lacks}", inside.nodes.len()),
        format!("kubectl get nodes -o wide, in cluster {region}; or change nodes at its xregion-proxy"),
    ))
}

/// The links of a cluster joined through a region.
pub fn cluster(observed: &Observed, cluster: &SeenCluster) -> Vec<Check> {
    let check = |link, outcome| Check { subject: Subject::Cluster(cluster.name.clone()), link, outcome };
    let region = &cluster.membership.region;
    let [route, proven, applied, port] = match observed.inside(region) {
        Some(inside) => way(observed, cluster, inside),
        None => std::array::from_fn(|_| Outcome::Skipped(unreadable(region))),
    };
    let alias = match &observed.gateway {
        Ok(gateway) => alias(cluster, &gateway.aliases, &observed.services, observed.inside(region)),
        Err(_) => Outcome::Skipped("there is no gateway to look at".into()),
    };
    vec![
        check("route", route),
        check("proven", proven),
        check("applied", applied),
        check("node port", port),
        check("host alias", alias),
        check("Secret", secret(cluster)),
        check("credentials", credentials(cluster, observed.controller.is_some(), observed.now)),
        check("answers", answers(cluster)),
        check("identity", identity(cluster)),
    ]
}

/// What joins a cluster anew in place, which lays again whatever is missing of its way.
pub fn join_again(cluster: &ClusterName, region: &ClusterName) -> String {
    format!("join it again: xregion join {cluster} --region {region} --kubeconfig FILE")
}

/// The links in the region: the route, its proof, its uptake, its port.
fn way(observed: &Observed, cluster: &SeenCluster, inside: &Inside) -> [Outcome; 4] {
    let (slot, laid) = cluster.slot(&observed.hub, inside);
    let laid = &laid[slot as usize];
    let region = &cluster.membership.region;
    let again = || join_again(&cluster.name, region);
    let Some(route) = &laid.route else {
        let missing = Problem::new(format!("region {region} has no route of it"), again());
        let skipped = || Outcome::Skipped("there is no route".into());
        return [
            Outcome::Failed(missing),
            skipped(),
            skipped(),
            port(cluster, inside, inside.ports_of(cluster.membership.mode, laid), None),
        ];
    };
    let proven = match route.proven_at {
        Some(at) => Outcome::Ok(format!("at {at}")),
        None => Outcome::Failed(Problem::new("no join has reached the cluster over this route yet", again())),
    };
    let applied = match uptake(&route.name(), &route.mark(), &inside.ready_proxies(), &inside.reports) {
        Uptake::Everywhere => Outcome::Ok(format!("by every ready proxy ({})", inside.served(route))),
        Uptake::Partial { serving, ready } => Outcome::Failed(Problem::new(
            format!("{serving} of {ready} ready proxies serve it"),
            format!("kubectl -n {NAMESPACE} logs -l {KIND}={KIND_PROXY}, in cluster {region}"),
        )),
        Uptake::Failed { proxy, problem } => Outcome::Failed(Problem::new(
            format!("{} (says {proxy})", problem.message),
            format!("kubectl -n {NAMESPACE} logs {proxy}, in cluster {region}; then mend the region's DNS or xregion-proxy"),
        )),
        Uptake::NoProxy => Outcome::Skipped("no proxy is ready".into()),
    };
    let by_name = route.server_name.as_ref().map(|name| format!("{name} ")).unwrap_or_default();
    let leads = format!("{by_name}to {}:{}", route.host, route.port);
    let ports = inside.ports_of(cluster.membership.mode, laid);
    [Outcome::Ok(leads), proven, applied, port(cluster, inside, ports, Some(route.listen))]
}

fn port(cluster: &SeenCluster, inside: &Inside, ports: Option<super::ports::Ports>, listen: Option<u16>) -> Outcome {
    let (used, entry) = (cluster.serving().node_port, inside.settings.entry);
    let Membership { region, mode, .. } = &cluster.membership;
    let named = entry.port_name();
    let cause = match (ports, listen) {
        (None, _) if *mode == Mode::Sni => format!("the Service of region {region} has no port {SNI_PORT}"),
        (None, _) => format!("the Service of region {region} has no port of it"),
        (Some(ports), _) if ports.entered_by(entry) != used => {
            format!("its {named} is {}, and the hub connects to {used}", ports.entered_by(entry))
        }
        (Some(ports), Some(listen)) if ports.listen != listen => {
            format!("{named} {used} leads to port {} of the proxies, which listen on {listen} for it", ports.listen)
        }
        (Some(ports), _) => return Outcome::Ok(format!("{} to {}", ports.entered_by(entry), ports.listen)),
    };
    Outcome::Failed(Problem::new(cause, join_again(&cluster.name, &cluster.membership.region)))
}

fn alias(
    cluster: &SeenCluster,
    aliases: &HostAliases,
    services: &Result<Option<BTreeMap<ClusterName, Entries>>>,
    inside: Option<&Inside>,
) -> Outcome {
    let membership = &cluster.membership;
    let alias = &membership.alias;
    let wanted = Wanted { host: alias.clone(), cluster: cluster.name.clone(), region: membership.region.clone() };
    let now = aliases.leads_to(alias);
    // Where it can't be seen what names should lead to, what they lead to is taken for right.
    let services = services.as_ref().ok();
    let nodes = services.and(inside).map(|inside| aliased_addresses(&inside.nodes, &now));
    let entries = services.and_then(Option::as_ref).map(|services| services.get(&membership.region).cloned().unwrap_or_default());
    let cause = match (nodes, entries) {
        _ if now.is_empty() => format!("the gateway has no host alias {alias}"),
        _ if !aliases.has(&wanted) => format!("host alias {alias} is not recorded for it on the gateway"),
        (_, Some(entries)) => match entries.leads(&[cluster.serving().node_port].into(), &BTreeSet::new()) {
            Some(leads) if leads.groups.contains(&now) => {
                return Outcome::Ok(format!("{alias} leads to {}, which lead to nodes {}", listed(&now), listed(&entries.nodes())));
            }
            Some(leads) => {
                format!("host alias {alias} leads to {}, and the region's Services are {}", listed(&now), listed(&leads.all()))
            }
            None => format!("the region's Services on the hub do not lead port {} to any node", cluster.serving().node_port),
        },
        (Some(nodes), None) if now != nodes => {
            format!("host alias {alias} leads to {}, and the region's nodes are {}", listed(&now), listed(&nodes))
        }
        _ => return Outcome::Ok(format!("{alias} leads to {}", listed(&now))),
    };
    Outcome::Failed(Problem::new(cause, join_again(&cluster.name, &cluster.membership.region)))
}

fn secret(cluster: &SeenCluster) -> Outcome {
    let recorded = cluster.membership.endpoint();
    match &cluster.endpoint {
        Some(endpoint) if *endpoint == recorded => Outcome::Ok(format!("endpoint {endpoint}")),
        Some(endpoint) => Outcome::Failed(Problem::new(
            format!("its endpoint is {endpoint}, and {recorded} is on record"),
            join_again(&cluster.name, &cluster.membership.region),
        )),
        None => Outcome::Failed(Problem::new("it names no endpoint", join_again(&cluster.name, &cluster.membership.region))),
    }
}

/// What brings new credentials for a cluster.
pub fn new_credentials(cluster: &ClusterName, membership: &Membership) -> String {
    let by_hand = format!("join it with a new kubeconfig: xregion join {cluster} --region {} --kubeconfig FILE", membership.region);
    let Some(Origin { secret, key, .. }) = &membership.source else { return by_hand };
    let secret = format!("Secret {NAMESPACE}/{secret}, key {key}");
    if membership.renews.is_some() {
        let again = "run xregion kubeconfig again where the cluster can be reached";
        format!("{again}, and put its FILE into {secret}: the controller takes it up; or {by_hand}")
    } else {
        format!(
            "put a new kubeconfig into {secret}, and run its join again (a component xregion-member does by itself); or {by_hand}"
        )
    }
}

fn credentials(cluster: &SeenCluster, controlled: bool, now: Timestamp) -> Outcome {
    let Membership { expires, renews, .. } = &cluster.membership;
    let Some(expires) = *expires else { return Outcome::Ok("no expiry is known".into()) };
    let anew = || new_credentials(&cluster.name, &cluster.membership);
    let (cause, fix) = match renews.filter(|_| controlled) {
        _ if expires <= now => (format!("they expired at {expires}"), anew()),
        Some(from) if now < from => return Outcome::Ok(format!("until {expires}; the controller renews them from {from} on")),
        Some(from) if now.duration_since(from) * 2 < expires.duration_since(from) => {
            return Outcome::Ok(format!("until {expires}; the controller is to renew them since {from}"));
        }
        Some(from) => (
            format!("they expire at {expires}, and the controller has not renewed them since {from}"),
            format!("see what it says: kubectl -n {NAMESPACE} logs deployment/{CONTROLLER}; or {}", anew()),
        ),
        None if expires.duration_since(now) < SOON => (format!("they expire at {expires}"), anew()),
        None => return Outcome::Ok(format!("until {expires}")),
    };
    Outcome::Failed(Problem::new(cause, fix))
}

fn answers(cluster: &SeenCluster) -> Outcome {
    match &cluster.answer {
        Ok(answer) => Outcome::Ok(format!("through the gateway, in {} ms", answer.millis)),
        Err(failure) => {
            let Membership { region, upstream, upstream_port, .. } = &cluster.membership;
            let fix = format!("{} (region {region} reaches it at {upstream}:{upstream_port})", failure.hint());
            Outcome::Failed(Problem::new(failure.cause(), fix))
        }
    }
}

fn identity(cluster: &SeenCluster) -> Outcome {
    let recorded = &cluster.membership.identity;
    match &cluster.answer {
        Err(_) => Outcome::Skipped("it does not answer".into()),
        Ok(answer) if answer.identity == *recorded => Outcome::Ok(recorded.clone()),
        Ok(answer) => Outcome::Failed(Problem::new(
            format!("cluster {} answers, and {recorded} was joined", answer.identity),
            format!(
                "check what {}:{} is in region {}; if the cluster was replaced on purpose: xregion join {} --replace ...",
                cluster.membership.upstream, cluster.membership.upstream_port, cluster.membership.region, cluster.name
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
