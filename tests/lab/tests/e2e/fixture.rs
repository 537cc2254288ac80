//! What the tests stand on: one lab with the addon enabled and both regions placed, made by whichever test is first.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, Dist, ENTRIES, GATEWAY, NAMESPACE};
use xregion_lab::{BusinessSpec, Lab, Region, wait};

pub use std::time::Duration;

/// The lab, swept, with the addon published but not enabled.
pub fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let dist = Dist::find().unwrap();
        let lab = Lab::up(&Progress::new()).unwrap();
        lab.sweep().unwrap();
        lab.publish(&dist).unwrap();
        lab
    })
}

/// How tests enable the addon: they break things on purpose, and the controller would mend them meanwhile.
pub const UNMENDED: &str = "controller.enabled=false";

/// The controller's Deployment, and its Lease.
pub const CONTROLLER: &str = "xregion-controller";

/// The labels of its pods.
pub const CONTROLLER_PODS: &str = "app.kubernetes.io/component=controller,app.kubernetes.io/name=xregion";

/// The controller, enabled as a user does, for as long as this lives.
pub struct Controller;

impl Controller {
    /// Enables it.
    pub fn enable() -> Self {
        Self::enable_several("1")
    }

    /// Enables so many of it.
    pub fn enable_several(replicas: &str) -> Self {
        let this = Self;
        let replicas_too = format!("controller.replicas={replicas}");
        lab().vela(&["addon", "upgrade", "xregion", "-y", "controller.enabled=true", &replicas_too]).unwrap();
        this.await_ready(replicas);
        this
    }

    /// Runs so many of it.
    pub fn scale(&self, replicas: &str) {
        lab().kubectl("hub", &["scale", "deployment", CONTROLLER, "-n", NAMESPACE, "--replicas", replicas]).unwrap();
        self.await_ready(if replicas == "0" { "" } else { replicas });
    }

    /// Waits until so many are ready.
    pub fn await_ready(&self, want: &str) {
        let ready = ["get", "deployment", CONTROLLER, "-n", NAMESPACE, "-o", "jsonpath={.status.readyReplicas}"];
        eventually("the controller", || {
            let ready = lab().kubectl("hub", &ready)?;
            anyhow::ensure!(ready == want, "{ready:?} are ready");
            Ok(())
        });
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // A test that has failed already is not to fail here, too.
        let as_before = ["controller.enabled=false", "controller.replicas=1"];
        let _ = lab().vela(&[&["addon", "upgrade", "xregion", "-y"], &as_before[..]].concat());
        let _ = lab().kubectl("hub", &["wait", "pods", "-n", NAMESPACE, "-l", CONTROLLER_PODS, "--for=delete", "--timeout=60s"]);
    }
}

/// The controller as a process of this machine, in the hub's network, as which it starts at once. Its log is a file.
pub struct Process(Child);

impl Process {
    /// Starts this program as one.
    pub fn start(program: &str, env: &[(&str, &str)], log: &Path) -> Self {
        let mut command = lab().command("hub", &[program, "controller", "--health-port", "17081"]).unwrap();
        let log = std::fs::File::create(log).unwrap();
        command.envs(env.iter().copied()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            // Asked to end, it gives its Lease back.
            let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap_or_default());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

/// The lab with the addon enabled.
pub fn enabled() -> &'static Lab {
    static ENABLED: OnceLock<()> = OnceLock::new();
    ENABLED.get_or_init(|| drop(lab().enable("xregion", &[UNMENDED]).unwrap()));
    lab()
}

/// The lab with both regions placed and serving.
pub fn regions() -> &'static Lab {
    static REGIONS: OnceLock<()> = OnceLock::new();
    REGIONS.get_or_init(|| {
        let lab = enabled();
        for proxy in ["proxy-east", "proxy-west"] {
            lab.vela_up(&site::region(proxy)).unwrap();
        }
        for proxy in ["proxy-east", "proxy-west"] {
            let status = lab.await_running(&format!("region-{proxy}")).unwrap();
            assert_eq!(status["services"][0]["message"], "2/2 proxies ready", "{status}");
        }
    });
    lab()
}

/// Sets a region up again with these properties, beside those that it needs.
pub fn region(proxy: &str, more: &Value) {
    lab().vela_up(&site::region_with(proxy, more)).unwrap();
    lab().await_running(&format!("region-{proxy}")).unwrap();
}

/// The lab with `business-a` joined through `proxy-east`.
pub fn joined() -> &'static Lab {
    static JOINED: OnceLock<()> = OnceLock::new();
    JOINED.get_or_init(|| drop(join(regions(), "business-a", "proxy-east", json!({}))));
    lab()
}

/// Brings the user's kubeconfig of a cluster and joins it by a membership Application; gives its status.
pub fn join(lab: &Lab, cluster: &str, region: &str, more: Value) -> Value {
    let secret = format!("{cluster}-kubeconfig");
    lab.put_kubeconfig(&secret, &lab.user_kubeconfig(cluster).unwrap()).unwrap();
    let application = site::membership(&format!("join-{cluster}"), &properties(cluster, region, &secret, more));
    lab.vela_up(&application).unwrap();
    lab.await_running(&format!("join-{cluster}")).unwrap()
}

/// Properties of an `xregion-join` step.
pub fn properties(cluster: &str, region: &str, secret: &str, more: Value) -> Value {
    let mut properties = json!({"cluster": cluster, "region": region, "kubeconfig": {"secret": secret}});
    for (key, value) in more.as_object().unwrap() {
        properties[key] = value.clone();
    }
    properties
}

/// GET through the hub's gateway, as everybody's requests go.
pub fn through_gateway(lab: &Lab, cluster: &str, path: &str) -> anyhow::Result<Value> {
    let raw = format!("/apis/cluster.core.oam.dev/v1alpha1/clustergateways/{cluster}/proxy{path}");
    Ok(serde_json::from_str(&lab.kubectl("hub", &["get", "--raw", &raw])?)?)
}

/// The UID of a cluster's `kube-system`, asked without the hub.
pub fn identity(lab: &Lab, cluster: &str) -> String {
    lab.kubectl(cluster, &["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]).unwrap()
}

/// A value of xregion's record on a cluster's Secret.
pub fn annotation(cluster: &str, key: &str) -> String {
    let path = format!("jsonpath={{.metadata.annotations.xregion\\.oam\\.dev/{key}}}");
    lab().kubectl("hub", &["get", "secret", cluster, "-n", NAMESPACE, "-o", &path]).unwrap()
}

/// Checks that a cluster answers through the gateway as itself, and that `vela` lists it.
pub fn is_there(cluster: &str) {
    is_there_as(cluster, cluster);
}

/// The same, for a cluster that the hub has by another name.
pub fn is_there_as(name: &str, cluster: &str) {
    let seen = through_gateway(lab(), name, "/api/v1/namespaces/kube-system").unwrap();
    assert_eq!(seen["metadata"]["uid"].as_str().unwrap(), identity(lab(), cluster));
    let listed = lab().vela(&["cluster", "list"]).unwrap();
    assert!(listed.lines().any(|line| line.starts_with(name)), "{listed}");
}

/// A further business cluster in region east, under a name of its own.
pub fn fresh(host: u8) -> BusinessSpec {
    let name = format!("fresh-{host}");
    let server = format!("{name}.idc.example");
    BusinessSpec {
        name,
        region: Region::East,
        host,
        port: 443,
        server: Some(format!("https://{server}")),
        in_both_regions: false,
        names: vec![server],
    }
}

/// The Secret that brings the kubeconfig of a business cluster.
pub fn secret(spec: &BusinessSpec) -> String {
    format!("{}-kubeconfig", spec.name)
}

/// Starts a business cluster and brings its kubeconfig, in a Secret of its own, whose name it gives.
pub fn start(spec: &BusinessSpec) -> String {
    let secret = secret(spec);
    lab().start_business(spec).unwrap();
    lab().put_kubeconfig(&secret, &lab().user_kubeconfig(&spec.name).unwrap()).unwrap();
    secret
}

/// Starts business clusters and joins them by one step, each with properties of its own.
pub fn join_all(specs: &[(&BusinessSpec, Value)]) {
    let lab = joined();
    let mut clusters = Vec::new();
    for (spec, more) in specs {
        let secret = start(spec);
        let region = if spec.region == Region::East { "proxy-east" } else { "proxy-west" };
        clusters.push(properties(&spec.name, region, &secret, more.clone()));
    }
    let list = json!({"region": "proxy-east", "clusters": clusters});
    lab.vela_up(&site::membership("joining", &list)).unwrap();
    lab.await_running("joining").unwrap();
    lab.vela_delete("joining").unwrap();
    specs.iter().for_each(|(spec, _)| is_there(&spec.name));
}

/// Starts a business cluster and brings its kubeconfig, in the Secret `fresh`.
pub fn bring(spec: &BusinessSpec) {
    lab().start_business(spec).unwrap();
    lab().put_kubeconfig("fresh", &lab().user_kubeconfig(&spec.name).unwrap()).unwrap();
}

/// Waits until a step of an Application tells something.
pub fn await_stage(application: &str, told: &str) {
    eventually(&format!("{application} telling {told:?}"), || {
        let message = site::message(&lab().application(application)?["status"]);
        anyhow::ensure!(message.contains(told), "{message}");
        Ok(())
    });
}

/// Kills the run for a cluster at once, without a chance to undo anything. (Deleting its pod by force would let it.)
pub fn kill_run(cluster: &str) {
    kill(&format!("run for {cluster}"), |args, _| args.contains(&"--here") && args.contains(&cluster));
}

/// Kills the controller in a pod at once, without a chance to give its Lease back.
pub fn kill_controller(pod: &str) {
    let host = format!("HOSTNAME={pod}");
    kill(&format!("are the controller in {pod}"), |args, variables| {
        args.contains(&"controller") && variables.contains(&host.as_str())
    });
}

/// Kills the one process of xregion that is meant, by its arguments and its environment.
fn kill(what: &str, is_meant: impl Fn(&[&str], &[&str]) -> bool) {
    let is_it = |process: &Path| {
        let [line, variables] = ["cmdline", "environ"].map(|file| std::fs::read_to_string(process.join(file)).unwrap_or_default());
        let [args, variables] = [&line, &variables].map(|text| text.split('\0').collect::<Vec<_>>());
        args[0].ends_with("xregion") && is_meant(&args[1..], &variables)
    };
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let pids: Vec<_> = processes.filter(|process| is_it(process)).collect();
    let [pid] = pids.as_slice() else { panic!("{pids:?} {what}") };
    let pid = pid.file_name().unwrap().to_str().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

/// Everything of the hub and its regions that a refused join must leave as it is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    state: Vec<Value>,
    /// Kubernetes' count of the gateway's rollouts: one that was taken back has been two.
    rollouts: Value,
}

impl Snapshot {
    /// Takes one; the Applications are in it too, but for those whose names start with `except`.
    pub fn take(lab: &Lab, except: &str) -> Self {
        let get = |cluster: &str, args: &[&str]| -> Value {
            let text =
                lab.kubectl(cluster, &[&["get", "-n", NAMESPACE, "-o", "json", "--ignore-not-found"], args].concat()).unwrap();
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
        };
        let mut gateway = get("hub", &["deployment", GATEWAY]);
        let rollouts = gateway["metadata"]["annotations"]["deployment.kubernetes.io/revision"].take();
        let items = |list: Value| list["items"].as_array().cloned().unwrap_or_default();
        let specs = |list: Value, what: fn(&Value) -> Value| {
            items(list).iter().map(|item| json!([item["metadata"]["name"], what(item)])).collect::<Vec<_>>()
        };
        let applications = get("hub", &["applications", "-n", "default"]);
        let state = vec![
            gateway["spec"].clone(),
            gateway["metadata"]["annotations"].clone(),
            json!(specs(get("hub", &["secrets", "-l", "cluster.core.oam.dev/cluster-credential-type"]), |s| {
                json!([s["data"], s["metadata"]["labels"], s["metadata"]["annotations"], s["metadata"]["resourceVersion"]])
            })),
            json!(
                specs(applications, |a| a["spec"].clone())
                    .into_iter()
                    .filter(|entry| except.is_empty() || !entry[0].as_str().unwrap_or_default().starts_with(except))
                    .collect::<Vec<_>>()
            ),
            json!(["services", "endpointslices"].map(|kind| {
                specs(get("hub", &["-n", ENTRIES, kind]), |one| json!([one["spec"]["ports"], one["ports"], one["endpoints"]]))
            })),
            json!(["proxy-east", "proxy-west"].map(|proxy| {
                let service = get(proxy, &["service", "cross-region-nginx-proxy-svc"]);
                json!([
                    specs(get(proxy, &["configmaps", "-l", "xregion.oam.dev/kind=route"]), |r| r["data"].clone()),
                    service["spec"]["ports"]
                ])
            })),
        ];
        Self { state, rollouts }
    }

    /// Checks that nothing changed since, and that the gateway was not rolled meanwhile.
    pub fn assert_unchanged(&self, lab: &Lab, except: &str) {
        let now = Self::take(lab, except);
        for (before, after) in self.state.iter().zip(&now.state) {
            assert_eq!(before, after);
        }
        assert_eq!(self.rollouts, now.rollouts, "the gateway was rolled, and back");
    }

    /// Waits until everything is as it was. The gateway may have been rolled, and back.
    pub fn await_taken_back(&self, lab: &Lab, except: &str) {
        eventually("everything taken back", || {
            let now = Self::take(lab, except);
            anyhow::ensure!(now.state == self.state, "{now:?}");
            Ok(())
        });
    }
}

/// A watch that is open, or the like.
pub struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    /// Of namespaces. Clusters share an etcd here, so that their latest revision is one that their caches may wait long for.
    pub const NAMESPACES: &str = "/api/v1/namespaces?watch=true&resourceVersion=0&timeoutSeconds=240";

    /// Starts one, by a command that prints it.
    pub fn start(command: Command) -> Self {
        let mut watch = Self::of(command);
        watch.until("kube-system");
        watch
    }

    /// Something else that stays open and prints what comes.
    pub fn of(mut command: Command) -> Self {
        // A group of its own, which ends as a whole: what is asked may be asked by another program.
        let mut child = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads on until something of a name is told of.
    pub fn until(&mut self, name: &str) {
        self.until_text(&format!("\"{name}\""));
    }

    /// Reads on until a line has this text.
    pub fn until_text(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "it ended before it told of {text}");
        }
    }

    /// Waits until something has come, which is read later.
    pub fn has_begun(&mut self) {
        assert!(!self.lines.fill_buf().unwrap().is_empty(), "it ended before anything came");
    }

    /// All that still comes, to its end.
    pub fn rest(mut self) -> String {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Checks that it was ended by somebody else.
    pub fn ended(mut self) {
        eventually("the end of the watch", || {
            anyhow::ensure!(self.child.try_wait()?.is_some(), "it is still open");
            Ok(())
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended.
        let _ =
            nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap()), nix::sys::signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Waits for `probe` to succeed.
pub fn eventually<T>(what: &str, probe: impl FnMut() -> anyhow::Result<T>) -> T {
    wait::until(what, Duration::from_secs(60), probe).unwrap()
}
