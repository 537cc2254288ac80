//! A thousand routes in one region, and twenty regions: what grows with them, and how fast.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use jiff::Timestamp;
use kube::Client;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use xregion_lab::pki::Authority;
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, NAMESPACE};
use xregion_lab::topology::{Bridge, Region};
use xregion_lab::{Cluster, Lab, wait};

use crate::joins::{self, PREFIX};
use crate::report::median;
use crate::stand_ins::{self, ADDRESS, Business, PLACE};
use crate::{batch, route_live};

/// How many routes region east has when it is looked at.
const STAGES: [usize; 3] = [10, 100, 1000];
/// Regions without nodes, beside east and west.
const FURTHER_REGIONS: u8 = 18;
/// The first one's address on the peering.
const FIRST_HOST: u8 = 50;
/// How many of them start at a time.
const AT_ONCE: usize = 4;
/// Node ports of region east: room for all.
const FIRST_NODE_PORT: u16 = 30000;
const LAST_NODE_PORT: u16 = 32767;
/// How many clusters a step joins at most.
const LIST: usize = 100;
const REGION: &str = "proxy-east";
/// The cluster of region west.
const WEST: &str = "business-c";
const LABEL: &str = "xregion-bench";
/// How often a list is joined once more of which some were not joined.
const ONCE_MORE: usize = 2;
/// How long one step may take.
const STEP: Duration = Duration::from_secs(20 * 60);
/// Numbers of the routes that are one more, far from those of the clusters.
const FIRST_MORE: u16 = 1500;
const MORE: u16 = 3;
const LOOKS: usize = 3;
const ROUTE_SECONDS: f64 = 2.0;

/// What was measured with so many routes.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Routes of region east.
    routes: usize,
    /// Seconds that the joins since the stage before took.
    join_s: f64,
    /// How many lists of them had to be joined once more, as some of their clusters were not joined.
    once_more: usize,
    /// MiB of the agent, in the proxy where it has most.
    agent: f64,
    /// MiB of nginx' workers, likewise.
    nginx: f64,
    /// Milliseconds of a reload, checked configuration and all.
    reload: f64,
    /// Seconds until one more route served.
    one_more: Vec<f64>,
    /// MiB of the controller.
    controller: f64,
    /// KiB of the gateway's hosts file.
    hosts: f64,
    /// Seconds of `xregion status`.
    status: f64,
}

/// What was measured.
pub struct Measured {
    stages: Vec<Stage>,
    regions: usize,
    /// The first, the last and another region's cluster; those of them whose name the gateway finds, and those that answered through it.
    asked: Vec<String>,
    known: Vec<String>,
    answered: Vec<String>,
}

/// Measures, on a lab with the addon and without any region.
pub fn measure(lab: &Lab, binary: &Path, progress: &Progress) -> Result<Measured> {
    let most = STAGES.into_iter().max().unwrap_or_default();
    let all: Vec<Business> = (0..most + usize::from(FURTHER_REGIONS)).map(Business::new).collect();
    let (east, elsewhere) = all.split_at(most);
    let authority = Authority::new("stand-ins-ca")?;

    progress.step(&format!("  {most} API servers stand in, in one process"));
    lab.add_address(PLACE, Bridge::East, ADDRESS)?;
    for business in east {
        lab.set_address(Region::East, &business.host, &[ADDRESS])?;
    }
    put_kubeconfigs(lab, &authority, &all)?;
    let tls = stand_ins::tls(&authority, &all)?;
    progress.step(&format!("  {FURTHER_REGIONS} further regions: an API server each"));
    let regions = start_regions(lab)?;
    place(lab)?;
    let settings = settings(lab)?;
    let first = all.first().context("no cluster")?.kubeconfig(&authority)?;
    let plan = Plan { lab, binary, progress, east, elsewhere, regions: &regions, first };

    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let regions = &regions;
        let standing = scope.spawn(move || {
            lab.in_namespace(PLACE, || async move {
                stand_ins::serve((ADDRESS, 443).into(), tls.clone()).await?;
                for region in regions {
                    lab.enter(&region.name)?;
                    // The node port that the one cluster of a region gets.
                    stand_ins::serve((Ipv4Addr::UNSPECIFIED, FIRST_NODE_PORT).into(), tls.clone()).await?;
                }
                lab.enter("hub")?;
                for region in regions {
                    let client = Client::try_from(route_live::load(Kubeconfig::read_from(lab.kubeconfig(&region.name)?)?).await?)?;
                    stand_ins::furnish(&client, region.address, &settings).await.with_context(|| region.name.clone())?;
                    stand_ins::report_routes(client);
                }
                ready.send(())?;
                // Ends when its owner has measured, or has failed to.
                drop(stopped.await);
                Ok(())
            })
        });
        let measured = match is_ready.recv() {
            Ok(()) => plan.carry_out(),
            // It ended before it was ready: its error says why.
            Err(_) => Err(anyhow!("the stand-ins have not come up")),
        };
        drop(stop);
        standing.join().unwrap_or_else(|_| Err(anyhow!("the stand-ins' thread panicked")))?;
        measured
    })
}

/// Takes off the hub what is too much to be taken off one by one.
pub fn clean_up(lab: &Lab) -> Result<()> {
    // All in one request: kubectl by itself deletes them one after the other, which takes minutes.
    for (place, kind, label) in
        [("hub", "secrets", format!("{LABEL}=scale")), (REGION, "configmaps", "xregion.oam.dev/kind=route".to_owned())]
    {
        let label = label.replace('/', "%2F").replace('=', "%3D");
        let all = format!("/api/v1/namespaces/{NAMESPACE}/{kind}?labelSelector={label}");
        lab.run_within(place, &["kubectl", "delete", "--raw", &all], STEP)?.success()?;
    }
    if lab.place(PLACE).is_ok() {
        // Not there when nothing was measured.
        drop(lab.remove_address(PLACE, Bridge::East, ADDRESS));
    }
    lab.reset_names()
}

/// What is there, and what is to be joined.
struct Plan<'a> {
    lab: &'a Lab,
    binary: &'a Path,
    progress: &'a Progress,
    east: &'a [Business],
    elsewhere: &'a [Business],
    regions: &'a [Cluster],
    /// The kubeconfig of the first cluster.
    first: String,
}

impl Plan<'_> {
    fn carry_out(&self) -> Result<Measured> {
        let Self { lab, progress, east, elsewhere, regions, .. } = *self;
        let mut members: Vec<Value> = elsewhere
            .iter()
            .zip(regions)
            .map(|(business, region)| member(&business.name, business_secret(business), &region.name))
            .collect();
        // Not of the cluster's name: KubeVela keeps the cluster in that.
        let secret = format!("{WEST}-kubeconfig");
        lab.put_kubeconfig(&secret, &lab.user_kubeconfig(WEST)?)?;
        members.push(member(WEST, (secret, "kubeconfig".to_owned()), "proxy-west"));
        let seconds = join(lab, "regions", &members)?;
        progress.step(&format!("  a cluster in each of {} further regions: {seconds:.0} s", members.len()));

        let mut stages = Vec::new();
        let mut joined = 0;
        for (number, routes) in (0u16..).zip(STAGES) {
            let (mut join_s, mut once_more) = (0.0, 0);
            for (part, list) in east[joined..routes].chunks(LIST).enumerate() {
                let members: Vec<Value> =
                    list.iter().map(|business| member(&business.name, business_secret(business), REGION)).collect();
                let (seconds, failures) = join_patiently(lab, progress, &format!("scale-{routes}-{part}"), &members)?;
                (join_s, once_more) = (join_s + seconds, once_more + failures);
                progress.step(&format!("  {} clusters after {join_s:.0} s", joined + part * LIST + list.len()));
            }
            joined = routes;
            let stage = self.look(number, join_s, once_more)?;
            progress.step(&format!("  {stage:?}"));
            stages.push(stage);
        }
        let hosts = hosts_file(lab)?;
        let asked: Vec<&Business> = [east.first(), east.last(), elsewhere.last()].into_iter().flatten().collect();
        let known = asked.iter().filter(|business| resolves(&hosts, &business.host)).map(|business| business.name.clone());
        let answers = asked.iter().filter(|business| joins::await_usable(lab, &business.name, Instant::now()).is_ok());
        let measured = Measured {
            stages,
            regions: regions.len() + 2,
            asked: asked.iter().map(|business| business.name.clone()).collect(),
            known: known.collect(),
            answered: answers.map(|business| business.name.clone()).collect(),
        };
        // Clearing up takes minutes, and may fail.
        progress.step(&format!("measured\n{}", measured.to_table()));
        Ok(measured)
    }

    fn look(&self, number: u16, join_s: f64, once_more: usize) -> Result<Stage> {
        let (lab, since) = (self.lab, Timestamp::now());
        let first = FIRST_MORE + number * MORE;
        let one_more = route_live::one_after_another(lab, &self.first, first..first + MORE)?;
        let mib =
            |node: &str, is: fn(&str) -> bool| -> Result<f64> { Ok(lab.resident_in_pods(node, is)? as f64 / 1024.0 / 1024.0) };
        let nodes = lab.cluster(REGION)?.nodes;
        let most = |is: fn(&str) -> bool| {
            nodes
                .iter()
                .map(|node| mib(&node.place.name, is))
                .try_fold(0.0, |most: f64, next| Ok::<_, anyhow::Error>(most.max(next?)))
        };
        Ok(Stage {
            routes: count(lab)?,
            join_s,
            once_more,
            agent: most(|command| command.contains("xregion\0agent\0"))?,
            nginx: most(|command| command.starts_with("nginx: worker"))?,
            reload: median(&batch::reload_times(lab, since)?),
            one_more,
            controller: mib("hub", |command| command.contains("xregion\0controller\0"))?,
            hosts: hosts_file(lab)?.len() as f64 / 1024.0,
            status: median(&(0..LOOKS).map(|_| status(lab, self.binary)).collect::<Result<Vec<_>>>()?),
        })
    }
}

/// The Secret and the key that hold a cluster's kubeconfig: a hundred share one.
fn business_secret(business: &Business) -> (String, String) {
    (format!("scale-kubeconfigs-{}", business.number / LIST), business.name.clone())
}

fn put_kubeconfigs(lab: &Lab, authority: &Authority, all: &[Business]) -> Result<()> {
    for list in all.chunks(LIST) {
        let Some(first) = list.first() else { continue };
        let texts = list.iter().map(|business| Ok((business.name.clone(), json!(business.kubeconfig(authority)?))));
        let texts = texts.collect::<Result<serde_json::Map<_, _>>>()?;
        let labels = json!({"xregion.oam.dev/kubeconfig": "true"});
        lab.apply(
            "hub",
            &json!({
                "apiVersion": "v1", "kind": "Secret", "stringData": texts,
                "metadata": {"name": business_secret(first).0, "namespace": NAMESPACE, "labels": labels},
            }),
        )?;
    }
    Ok(())
}

fn start_regions(lab: &Lab) -> Result<Vec<Cluster>> {
    let named: Vec<(String, u8)> =
        (0..FURTHER_REGIONS).map(|number| (format!("{PREFIX}region-{number:02}"), FIRST_HOST + number)).collect();
    for some in named.chunks(AT_ONCE) {
        wait::all(some.iter().map(|(name, host)| move || lab.start_region(name, *host).map(drop)))?;
    }
    named.iter().map(|(name, _)| lab.cluster(name)).collect()
}

/// The two real regions; east with node ports for all.
fn place(lab: &Lab) -> Result<()> {
    let east = site::region_with(REGION, &json!({"nodePorts": {"first": FIRST_NODE_PORT, "last": LAST_NODE_PORT}}));
    for application in [east, site::region("proxy-west")] {
        lab.vela_up(&application)?;
    }
    lab.await_running("region-proxy-east")?;
    lab.await_running("region-proxy-west").map(drop)
}

/// The settings of region west, for those without an `xregion-proxy`.
fn settings(lab: &Lab) -> Result<Value> {
    let text = lab.kubectl("proxy-west", &["get", "configmap", "xregion-region", "-n", NAMESPACE, "-o", "json"])?;
    let map: Value = serde_json::from_str(&text)?;
    Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "xregion-region"}, "data": map["data"]}))
}

fn member(cluster: &str, (secret, key): (String, String), region: &str) -> Value {
    json!({"cluster": cluster, "region": region, "kubeconfig": {"secret": secret, "key": key}})
}

/// Joins by one step with a list; seconds until its Application ended.
fn join(lab: &Lab, name: &str, members: &[Value]) -> Result<f64> {
    let properties = json!({"region": REGION, "clusters": members, "labels": {LABEL: "scale"}, "timeout": "19m"});
    let started = Instant::now();
    lab.vela_up(&site::membership(name, &properties))?;
    let status = wait::until(&format!("Application {name} at its end"), STEP, || lab.await_end(name))?;
    ensure!(status["status"] == "running", "{name}: {}", site::message(&status));
    Ok(started.elapsed().as_secs_f64())
}

/// Joins by one step with a list, and where some of it were not joined, as the message says: by running it again, twice at most. Gives the
/// seconds of all, and how many times something was not joined.
fn join_patiently(lab: &Lab, progress: &Progress, name: &str, members: &[Value]) -> Result<(f64, usize)> {
    let started = Instant::now();
    let mut failures = 0;
    while let Err(failure) = join(lab, &format!("{name}-{failures}"), members) {
        if failures == ONCE_MORE {
            return Err(failure);
        }
        progress.step(&format!("  not all joined after {:.0} s: {failure:#}", started.elapsed().as_secs_f64()));
        failures += 1;
    }
    Ok((started.elapsed().as_secs_f64(), failures))
}

/// How many clusters of region east are joined.
fn count(lab: &Lab) -> Result<usize> {
    let label = format!("{LABEL}=scale");
    let secrets = lab.kubectl("hub", &["get", "secrets", "-n", NAMESPACE, "-l", &label, "-o", "json"])?;
    let secrets: Value = serde_json::from_str(&secrets)?;
    let in_east = |secret: &&Value| secret["metadata"]["annotations"]["xregion.oam.dev/region"] == REGION;
    Ok(secrets["items"].as_array().into_iter().flatten().filter(in_east).count())
}

/// Seconds of `xregion status`, whatever it finds.
fn status(lab: &Lab, binary: &Path) -> Result<f64> {
    let binary = binary.to_str().context("a path that is no text")?;
    let started = Instant::now();
    let said = lab.run("hub", &[binary, "status"])?;
    ensure!(said.stdout.contains(REGION), "xregion status: {}", said.stderr.trim());
    Ok(started.elapsed().as_secs_f64())
}

/// The hosts file that the gateway's newest pod has.
fn hosts_file(lab: &Lab) -> Result<String> {
    let gateways = lab.processes_in_pods("hub", |command| command.starts_with("/apiserver\0"))?;
    let newest = gateways.into_iter().max().context("no gateway")?;
    let file = PathBuf::from(format!("/proc/{newest}/root/etc/hosts"));
    fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))
}

/// Whether Go, in which the gateway is written, finds a name in a hosts file: a line of 64 KiB hides itself and all that follow.
fn resolves(hosts: &str, name: &str) -> bool {
    let seen = hosts.lines().take_while(|line| line.len() < 64 << 10);
    seen.flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace().skip(1)).any(|host| host == name)
}

impl Measured {
    fn last(&self) -> Option<&Stage> {
        self.stages.last()
    }

    /// One more route is there in time, and the names lead where they should.
    fn met(&self) -> bool {
        let in_time = self.last().is_some_and(|stage| median(&stage.one_more) <= ROUTE_SECONDS);
        in_time && self.known == self.asked && self.answered == self.asked
    }

    /// Everything.
    pub fn to_json(&self) -> Value {
        let stage = |stage: &Stage| {
            let Stage { routes, join_s, once_more, agent, nginx, reload, one_more, controller, hosts, status } = stage;
            json!({
                "routes": routes,
                "join_s": join_s,
                "lists_joined_once_more": once_more,
                "agent_rss_mb": agent,
                "nginx_rss_mb": nginx,
                "reload_ms": reload,
                "one_more_route_s": median(one_more),
                "one_more_route_samples_s": one_more,
                "controller_rss_mb": controller,
                "hosts_file_kb": hosts,
                "status_s": status,
            })
        };
        // The figures of the last stage, and beside them all stages'.
        let mut figures = self.last().map_or_else(|| json!({}), stage);
        figures["regions"] = json!(self.regions);
        figures["stages"] = self.stages.iter().map(stage).collect();
        figures["names"] = json!({"asked": self.asked, "known": self.known, "answered": self.answered});
        figures["goal"] = json!({"one_more_route_s_at_most": ROUTE_SECONDS, "names": self.asked, "met": self.met()});
        figures
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        let mut row = |what: &str, cell: &dyn Fn(&Stage) -> String, end: &str| {
            let cells: String = self.stages.iter().map(|stage| format!("{:>12}", cell(stage))).collect();
            // Writing to a String can't fail.
            let _ = writeln!(table, "{}", format!("{what:<34}{cells}  {end}").trim_end());
        };
        row("scale, routes", &|stage| stage.routes.to_string(), &format!("in {} regions", self.regions));
        row("  joining them, s", &|stage| format!("{:.0}", stage.join_s), "");
        row("  lists that had to be run again", &|stage| stage.once_more.to_string(), "");
        let met = if self.met() { "met" } else { "MISSED" };
        row("  one more route, s", &|stage| format!("{:.2}", median(&stage.one_more)), &format!("<= {ROUTE_SECONDS:.0} s   {met}"));
        row("  reload, ms", &|stage| format!("{:.0}", stage.reload), "");
        row("  agent, MiB", &|stage| format!("{:.1}", stage.agent), "");
        row("  nginx workers, MiB", &|stage| format!("{:.1}", stage.nginx), "");
        row("  controller, MiB", &|stage| format!("{:.1}", stage.controller), "");
        row("  gateway's hosts file, KiB", &|stage| format!("{:.1}", stage.hosts), "");
        row("  xregion status, s", &|stage| format!("{:.2}", stage.status), "");
        let (known, answered, asked) = (self.known.len(), self.answered.len(), self.asked.len());
        let _ = writeln!(table, "  names known, clusters answering   {known} and {answered} of {asked}");
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_hides_itself_and_what_follows_from_go() {
        let long = format!("10.0.0.1 {}a.example\n", "x ".repeat(32 << 10));
        assert!(resolves("# a.example\n10.0.0.1 b.example a.example\n", "a.example"));
        assert!(!resolves("# a.example\na.example b.example\n", "a.example"), "a comment, and what stands for an address");
        assert!(!resolves(&format!("{long}10.0.0.2 b.example\n"), "a.example"));
        assert!(!resolves(&format!("{long}10.0.0.2 b.example\n"), "b.example"));
    }

    #[test]
    fn the_report_has_the_keys_that_are_promised() {
        let stage = |routes, one_more| Stage {
            routes,
            join_s: 1.0,
            once_more: 0,
            agent: 2.0,
            nginx: 3.0,
            reload: 4.0,
            one_more: vec![one_more],
            controller: 5.0,
            hosts: 6.0,
            status: 7.0,
        };
        let names = vec!["a".to_owned()];
        let measured = Measured {
            stages: vec![stage(10, 0.5), stage(1000, 1.5)],
            regions: 20,
            asked: names.clone(),
            known: names,
            answered: vec![],
        };
        let json = measured.to_json();
        for key in
            ["routes", "regions", "agent_rss_mb", "reload_ms", "one_more_route_s", "controller_rss_mb", "hosts_file_kb", "status_s"]
        {
            assert!(json[key].is_number(), "{key}");
        }
        assert_eq!((json["routes"].as_u64(), json["goal"]["met"].as_bool()), (Some(1000), Some(false)));
        assert!(measured.to_table().contains("MISSED"));
    }
}
