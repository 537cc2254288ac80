//! Death in the middle: a build of xregion with kill points runs in the hub's network and dies (SIGKILL) before or after each of the
//! writes that an undisturbed run makes. Whatever it left, the hub works, the same run again ends as if nothing had happened, and a
//! leave clears everything. A controller dies likewise while it puts back what was lost, and the next one goes on from there.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use xregion_lab::load::Load;
use xregion_lab::site::{GATEWAY, NAMESPACE};
use xregion_lab::{Lab, Region, wait};

use super::controller::{leave, lose_way, way};
use super::fixture::{
    CONTROLLER, Duration, Process, annotation, eventually, fresh, is_there, join_all, joined, lab, through_gateway,
};
use super::laptop::run;
use super::leaves::is_gone;

/// Of how many kill points of a story `make test` tries one.
const SPREAD: usize = 100;

/// The build with kill points.
fn program() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../dist/faults/xregion").canonicalize();
    path.expect("dist/faults/xregion is missing: run `make faults` first").to_str().unwrap().to_owned()
}

/// A cluster, its two kubeconfigs (its host has two names) and what is done with it.
struct Subject<'a> {
    lab: &'a Lab,
    name: String,
    /// A name and the kubeconfig that uses it.
    hosts: [(String, tempfile::NamedTempFile); 2],
}

#[derive(Clone, Copy, Debug)]
enum Story {
    /// The cluster is joined for the first time.
    Join,
    /// It is joined again under its other name.
    Change,
    /// It leaves.
    Leave,
}

impl<'a> Subject<'a> {
    fn start(lab: &'a Lab, host: u8) -> Self {
        let mut spec = fresh(host);
        let names = [format!("{}.idc.example", spec.name), format!("other-{host}.idc.example")];
        spec.names.push(names[1].clone());
        lab.start_business(&spec).unwrap();
        lab.set_address(Region::East, &names[1], &[lab.cluster(&spec.name).unwrap().address]).unwrap();
        let text = lab.user_kubeconfig(&spec.name).unwrap();
        let hosts = names.clone().map(|name| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text.replace(&names[0], &name)).unwrap();
            (name, file)
        });
        Self { lab, name: spec.name, hosts }
    }

    fn run(&self, args: &[&str], env: &[(&str, &str)]) -> (ExitStatus, String) {
        let program = program();
        let mut command = self.lab.command("hub", &[&[program.as_str()], args, &["--here", "--timeout=2m"]].concat()).unwrap();
        let output = command.envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn join(&self, host: usize, env: &[(&str, &str)]) -> (ExitStatus, String) {
        let file = self.hosts[host].1.path().to_str().unwrap();
        self.run(&["join", &self.name, "--region=proxy-east", "--kubeconfig", file], env)
    }

    fn leave(&self, env: &[(&str, &str)]) -> (ExitStatus, String) {
        self.run(&["leave", &self.name], env)
    }

    /// Brings the cluster to where a story starts.
    fn prepare(&self, story: Story) {
        let (status, log) = match story {
            Story::Join => self.leave(&[]),
            Story::Change | Story::Leave => self.join(0, &[]),
        };
        assert!(status.success(), "{log}");
    }

    fn tell(&self, story: Story, env: &[(&str, &str)]) -> (ExitStatus, String) {
        match story {
            Story::Join => self.join(0, env),
            Story::Change => self.join(1, env),
            Story::Leave => self.leave(env),
        }
    }

    /// Checks that a story ended as it should.
    fn check(&self, story: Story) {
        match story {
            Story::Join => self.is_joined_as(0),
            Story::Change => self.is_joined_as(1),
            Story::Leave => is_gone(&self.name),
        }
    }

    /// Hub, gateway and region agree about the cluster, and nothing else of it is anywhere.
    fn is_joined_as(&self, host: usize) {
        let host = &self.hosts[host].0;
        let get = |cluster: &str, what: &[&str]| -> Value {
            let text = self.lab.kubectl(cluster, &[&["get", "-n", NAMESPACE, "-o", "json"], what].concat()).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        let port = annotation(&self.name, "node-port");
        let endpoint = ["get", "secret", &self.name, "-n", NAMESPACE, "-o", "go-template={{.data.endpoint | base64decode}}"];
        assert_eq!(self.lab.kubectl("hub", &endpoint).unwrap(), format!("https://{host}:{port}"));
        assert_eq!(annotation(&self.name, "alias"), *host);
        let selector = format!("xregion.oam.dev/cluster={}", self.name);
        let routes = get("proxy-east", &["configmaps", "-l", &selector])["items"].as_array().unwrap().clone();
        assert_eq!(routes.len(), 1, "{routes:?}");
        assert_eq!(routes[0]["data"]["host"], host.as_str());
        assert_eq!(routes[0]["data"]["alias"], host.as_str());
        let service = get("proxy-east", &["service", "cross-region-nginx-proxy-svc"]);
        let ports: Vec<_> = service["spec"]["ports"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|port| port["name"].as_str().unwrap().starts_with(&format!("{}-", self.name)))
            .map(|port| (port["nodePort"].to_string(), port["port"].to_string()))
            .collect();
        assert_eq!(ports, [(port, routes[0]["data"]["listen"].as_str().unwrap().to_owned())]);
        let gateway = get("hub", &["deployment", GATEWAY]);
        let record = gateway["metadata"]["annotations"]["xregion.oam.dev/aliases"].as_str().unwrap();
        let record: Value = serde_json::from_str(record).unwrap();
        let claimed: Vec<_> = record
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, of)| of["clusters"].as_array().unwrap().iter().any(|cluster| *cluster == self.name.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        assert_eq!(claimed, std::slice::from_ref(host));
        let names = gateway["spec"]["template"]["spec"]["hostAliases"].to_string();
        assert_eq!(names.matches(&format!("\"{host}\"")).count(), 2, "one entry for each of the region's two nodes: {names}");
        assert_eq!(get("hub", &["configmaps", "-l", "xregion.oam.dev/kind=leaving"])["items"], json!([]));
        through_gateway(self.lab, &self.name, "/version").unwrap();
    }

    /// Where something of the cluster is left and KubeVela has it not, `status` says so and `doctor` calls a link broken.
    fn leftovers_are_told(&self, death: &str) {
        let get = |place: &str, what: &[&str]| self.lab.kubectl(place, &[&["get", "-n", NAMESPACE], what].concat()).unwrap();
        if !get("hub", &["secret", &self.name, "--ignore-not-found", "-o", "name"]).is_empty() {
            return;
        }
        let selector = format!("xregion.oam.dev/cluster={}", self.name);
        let left = get("proxy-east", &["configmaps", "-l", &selector, "-o", "name"])
            + &get("hub", &["configmaps", "-l", &selector, "-o", "name"])
            + &get("hub", &["deployment", GATEWAY, "-o", "jsonpath={.metadata.annotations}"]);
        let left = left.contains("configmap/") || left.contains(&self.name);
        let ask = |args: &[&str]| {
            let program = program();
            let output = self.lab.run("hub", &[&[program.as_str()], args].concat()).unwrap();
            (output.status.code(), output.stdout)
        };
        let (code, status) = ask(&["status", "-o", "json"]);
        assert_eq!(code, Some(0), "{death}: {status}");
        let status: Value = serde_json::from_str(&status).unwrap();
        assert!(!left || status["outOfStep"].to_string().contains(&self.name), "{death}: {}", status["outOfStep"]);
        let (code, doctor) = ask(&["doctor", &self.name]);
        assert!(!left || code == Some(90), "{death}: {doctor}");
    }

    /// The kill points of a story: what an undisturbed run wrote, each once. Renewals of the Lease come by the clock.
    fn kill_points(&self, story: Story) -> Vec<String> {
        let record = tempfile::NamedTempFile::new().unwrap();
        self.prepare(story);
        let (status, log) = self.tell(story, &[("XREGION_RECORD_WRITES", record.path().to_str().unwrap())]);
        assert!(status.success(), "{log}");
        self.check(story);
        let writes = read(record.path());
        assert!(writes.len() >= 5, "{writes:?}");
        writes.iter().flat_map(|write| [format!("before {write}"), format!("after {write}")]).collect()
    }

    /// Dies at a kill point and converges; returns false where the run did not come to it.
    fn dies_and_converges(&self, story: Story, point: &str) -> bool {
        self.prepare(story);
        let (status, log) = self.tell(story, &[("XREGION_DIE", point)]);
        if status.success() {
            return false;
        }
        assert_eq!(status.signal(), Some(9), "{story:?}, {point}: {log}");
        through_gateway(self.lab, "proxy-west", "/version").unwrap();
        through_gateway(self.lab, "business-a", "/version").unwrap();
        self.leftovers_are_told(&format!("{story:?}, {point}"));
        let (status, log) = self.tell(story, &[]);
        assert!(status.success(), "{story:?}, {point}: {log}");
        self.check(story);
        true
    }
}

fn read(path: &Path) -> Vec<String> {
    let lines: BTreeSet<String> = std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    lines.into_iter().collect()
}

/// Tries the kill points of every story that `choose` takes, and prints what came of them. Gives how many were tried, and converged.
fn die(host: u8, choose: impl Fn(usize) -> bool) -> usize {
    let lab = joined();
    let subject = Subject::start(lab, host);
    let mut total = 0;
    for story in [Story::Join, Story::Change, Story::Leave] {
        let points = subject.kill_points(story);
        let (mut tried, mut missed, started) = (0, 0, Instant::now());
        for point in points.iter().enumerate().filter(|(number, _)| choose(*number)).map(|(_, point)| point) {
            if subject.dies_and_converges(story, point) {
                tried += 1
            } else {
                missed += 1
            }
            println!("{story:?}: converged after a death {point}");
        }
        println!(
            "{story:?}: of {} kill points {tried} tried, all converged; {missed} not come to; {:.0} s",
            points.len(),
            started.elapsed().as_secs_f64()
        );
        assert!(tried > 0);
        total += tried;
    }
    assert!(subject.leave(&[]).0.success());
    is_gone(&subject.name);
    lab.stop_cluster(&subject.name).unwrap();
    total
}

#[test]
fn a_spread_of_kill_points() {
    die(150, |number| number % SPREAD == 5);
}

#[test]
#[ignore = "half an hour: make test-faults"]
fn b_every_kill_point() {
    let tried = die(151, |_| true);
    // For the benchmark's report. One that did not converge ends the test before this.
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("faults.json"), json!({"tried": tried, "converged": tried}).to_string()).unwrap();
}

/// Runs a controller until it dies, or all is restored; says whether it died.
fn controller_dies(env: &[(&str, &str)], restored: impl Fn() -> anyhow::Result<()>) -> bool {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut controller = Process::start(&program(), env, log.path());
    let ended = wait::until("the controller's death, or all restored", Duration::from_secs(120), || match controller.ended()? {
        // It may have died of the last write.
        None => restored().and_then(|()| controller.ended()),
        ended => Ok(ended),
    });
    let log = || std::fs::read_to_string(log.path()).unwrap();
    let ended = ended.unwrap_or_else(|error| panic!("{env:?}: {error:#}\n{}", log()));
    if let Some(status) = ended {
        assert_eq!(status.signal(), Some(9), "{env:?}: {}", log());
        free_leases();
    }
    ended.is_some()
}

/// Waiting for the Leases of the dead to run out would take most of the time.
fn free_leases() {
    for (cluster, lease) in [("hub", CONTROLLER), ("hub", "xregion-gateway"), ("proxy-east", "xregion-service")] {
        let free = r#"{"spec":{"holderIdentity":null}}"#;
        lab().kubectl(cluster, &["patch", "lease", lease, "-n", NAMESPACE, "--type=merge", "-p", free]).unwrap();
    }
}

/// The writes of a controller that put something back, each once and in their order: not what it tells, nor its own Lease, nor that a
/// Lease is made.
fn repairs(record: &Path) -> Vec<String> {
    let mut repairs: Vec<String> = Vec::new();
    for line in std::fs::read_to_string(record).unwrap().lines() {
        let (write, _) = line.rsplit_once(" #").unwrap();
        let of_itself = ["/events", "/xregion-controller", "/leases"].into_iter().any(|end| write.ends_with(end));
        if !of_itself && !repairs.iter().any(|other| other == write) {
            repairs.push(write.to_owned());
        }
    }
    repairs
}

/// Has a controller put back what is lost, which dies after each of the writes that this takes; the next one goes on from what it
/// left. (Before a write, all is as after the one before it.) Gives how often it died.
fn put_back_through_deaths(lose: impl Fn(), restored: impl Fn() -> anyhow::Result<()>) -> usize {
    let record = tempfile::NamedTempFile::new().unwrap();
    lose();
    assert!(!controller_dies(&[("XREGION_RECORD_WRITES", record.path().to_str().unwrap())], &restored));
    lose();
    let mut died = 0;
    for write in repairs(record.path()) {
        // The first of them that this run makes: those of the runs before it are not made again.
        let point = format!("after {write} #1");
        if controller_dies(&[("XREGION_DIE", point.as_str())], &restored) {
            println!("controller: died {point}");
            died += 1;
        } else {
            println!("controller: did not come to {point}");
            lose();
        }
    }
    assert!(!controller_dies(&[], &restored));
    died
}

#[test]
#[ignore = "make test-faults"]
fn c_controller_that_dies_after_any_write_of_a_repair_is_gone_on_from() {
    let lab = joined();
    let spec = fresh(206);
    join_all(&[(&spec, json!({}))]);
    let clusters = [spec.name.as_str(), "business-a"];
    let ways = || clusters.iter().map(|cluster| way(cluster)).collect::<anyhow::Result<Vec<_>>>();
    let before = ways().unwrap();
    let load = Load::start(lab, &["proxy-west"]).unwrap();

    // The cluster's way, what the hub leads to its region by, and every host alias with the record of them.
    let lose = || {
        lose_way(&spec.name);
        lab.lose_entries("proxy-east").unwrap();
        lab.lose_aliases().unwrap();
        eventually("the EndpointSlices gone with their Services", || {
            let nodes = lab.entry_nodes("proxy-east")?;
            anyhow::ensure!(nodes.is_empty(), "{nodes:?}");
            Ok(())
        });
    };
    let whole = || {
        let now = ways()?;
        anyhow::ensure!(now == before, "{now:?}");
        for cluster in clusters {
            let output = run(&["doctor", cluster]);
            anyhow::ensure!(output.status.success(), "{output:?}");
        }
        Ok(())
    };
    // Two Leases, the port, the route, the Services, their EndpointSlices, the gateway.
    let died = put_back_through_deaths(lose, whole);
    assert!(died >= 7, "{died}");

    // What the region's Service says beside its ports.
    let service = ["service", "cross-region-nginx-proxy-svc", "-n", NAMESPACE];
    let bend = || {
        let patch = r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#;
        lab.kubectl("proxy-east", &[&["patch", "--type=merge", "-p", patch], &service[..]].concat()).unwrap();
    };
    let straight = || {
        let path = "jsonpath={.spec.externalTrafficPolicy}";
        let policy = lab.kubectl("proxy-east", &[&["get", "-o", path], &service[..]].concat())?;
        anyhow::ensure!(policy == "Local", "{policy}");
        Ok(())
    };
    let died = put_back_through_deaths(bend, straight);
    assert!(died >= 2, "{died}");

    let outcome = load.stop().unwrap();
    assert!(outcome.requests > 100, "{} requests prove nothing", outcome.requests);
    assert!(outcome.failures.is_empty(), "of {} requests: {:?}", outcome.requests, outcome.failures);
    clusters.iter().for_each(|cluster| is_there(cluster));
    assert_eq!(ways().unwrap(), before);
    leave(&spec);
}
