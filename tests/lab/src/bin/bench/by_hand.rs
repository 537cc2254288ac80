//! The baseline: the article's six steps as a person's script does them, with kubectl and vela.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use xregion_lab::site::{GATEWAY, NAMESPACE, NGINX};
use xregion_lab::{Lab, wait};

/// The proxy cluster of the region.
const PROXY: &str = "proxy-east";
/// nginx, its configuration and its Service: their own, as `cross-region-nginx-proxy-svc` is xregion's here.
const NAME: &str = "by-hand-nginx";
const FIRST_LISTEN: u16 = 8000;
/// Not the article's 30000, which xregion gives out.
const FIRST_NODE_PORT: u16 = 30100;
/// How often the pod is looked at for the edited file.
const POLL: Duration = Duration::from_millis(200);
/// A mounted ConfigMap follows within a minute or two.
const MOUNT: Duration = Duration::from_secs(180);
/// How long `vela cluster join` is tried again: right after the rollout the gateway may not listen yet.
const JOIN: Duration = Duration::from_secs(30);

/// How long the steps of a join took, in the order they are done.
pub type Steps = Vec<(&'static str, f64)>;

/// Puts nginx into the proxy cluster, as the article has it.
pub fn prepare(lab: &Lab) -> Result<()> {
    let main = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nerror_log /dev/stderr notice;\npid /dev/shm/nginx.pid;\n\
                events {}\nstream {\n    include /etc/nginx/stream.d/*.conf;\n}\n";
    let labels = json!({"app": NAME});
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    let main_name = format!("{NAME}-main");
    let objects = [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(&main_name), "data": {"nginx.conf": main}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(NAME)}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(NAME),
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "containers": [{"name": "nginx", "image": NGINX, "volumeMounts": [
                    {"name": "main", "mountPath": "/etc/nginx/nginx.conf", "subPath": "nginx.conf"},
                    {"name": "servers", "mountPath": "/etc/nginx/stream.d"},
                ]}],
                "volumes": [
                    {"name": "main", "configMap": {"name": main_name}},
                    {"name": "servers", "configMap": {"name": NAME}},
                ],
            }}},
        }),
        // A Service can't be without a port; the joins add theirs.
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(NAME),
            "spec": {"type": "NodePort", "selector": labels, "ports": [{"name": "none", "port": 7999}]},
        }),
    ];
    lab.apply(PROXY, &json!({"apiVersion": "v1", "kind": "List", "items": objects}))?;
    on(lab, PROXY, &["rollout", "status", "deployment", NAME, "--timeout=60s"]).map(drop)
}

/// Joins a cluster; the `number`th of them. Gives the time of each step.
pub fn join(lab: &Lab, cluster: &str, number: u16) -> Result<Steps> {
    let kubeconfig = tempfile::NamedTempFile::new()?;
    std::fs::write(kubeconfig.path(), lab.user_kubeconfig(cluster)?)?;
    let file = kubeconfig.path().to_str().context("a path that is no text")?;
    let (listen, node_port) = (FIRST_LISTEN + number, FIRST_NODE_PORT + number);
    let server = lab.kubectl("hub", &["config", "view", "--kubeconfig", file, "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let upstream = server.trim_start_matches("https://").to_owned();
    let upstream = if upstream.contains(':') { upstream } else { format!("{upstream}:443") };
    let mut steps = Stopwatch::start();

    // 1. a server block in nginx's mounted ConfigMap; when it has come to the pod, a reload
    let block = format!("server {{\n    listen {listen};\n    proxy_pass {upstream};\n}}\n");
    let edit = json!({"data": {format!("{cluster}.conf"): block}}).to_string();
    on(lab, PROXY, &["patch", "configmap", NAME, "--type=merge", "-p", &edit])?;
    steps.done("ConfigMap edited");
    await_mounted(lab, &format!("/etc/nginx/stream.d/{cluster}.conf"))?;
    steps.done("ConfigMap in the pod");
    in_nginx(lab, &["nginx", "-s", "reload"])?;
    steps.done("nginx reloaded");

    // 2. a port on the Service
    let port = json!({"name": cluster, "port": listen, "targetPort": listen, "nodePort": node_port});
    let add = json!([{"op": "add", "path": "/spec/ports/-", "value": port}]).to_string();
    on(lab, PROXY, &["patch", "service", NAME, "--type=json", "-p", &add])?;
    steps.done("Service patched");

    // 3. the address of a node of the proxy cluster
    let ip = on(lab, PROXY, &["get", "nodes", "-o", r#"jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}"#])?;
    steps.done("node address read");

    // 4. the API server's host, in lower case
    let host = upstream.split(':').next().unwrap_or_default().to_ascii_lowercase();

    // 5. a host alias on the gateway, beside those that are there
    let there = format!(r#"jsonpath={{.spec.template.spec.hostAliases[?(@.ip=="{ip}")].hostnames}}"#);
    let there = on(lab, "hub", &["get", "deployment", GATEWAY, "-o", &there])?;
    let mut hosts: Vec<String> = if there.is_empty() { Vec::new() } else { serde_json::from_str(&there)? };
    hosts.push(host.clone());
    let aliases = json!({"spec": {"template": {"spec": {"hostAliases": [{"ip": ip, "hostnames": hosts}]}}}}).to_string();
    on(lab, "hub", &["patch", "deployment", GATEWAY, "-p", &aliases])?;
    await_gateway(lab)?;
    steps.done("gateway rolled");

    // 6. the node port in the kubeconfig, and the join
    let server = format!("--server=https://{host}:{node_port}");
    lab.kubectl("hub", &["config", "set-cluster", cluster, "--kubeconfig", file, &server])?;
    wait::until("vela cluster join", JOIN, || {
        lab.run("hub", &["vela", "cluster", "join", file, "--name", cluster, "-y"])?.success()
    })?;
    steps.done("vela cluster join");
    Ok(steps.done)
}

/// Takes nginx away again. The joined clusters and aliases, `Lab::sweep` takes.
pub fn clean_up(lab: &Lab) -> Result<()> {
    let selector = format!("app={NAME}");
    on(lab, PROXY, &["delete", "deployments,services,configmaps", "-l", &selector]).map(drop)
}

fn await_mounted(lab: &Lab, file: &str) -> Result<()> {
    let started = Instant::now();
    // nginx prints the files it reads; there is no `cat` in its image.
    while !in_nginx(lab, &["nginx", "-T"]).is_ok_and(|read| read.contains(file)) {
        anyhow::ensure!(started.elapsed() < MOUNT, "the edited ConfigMap has not come to the pod within {} s", MOUNT.as_secs());
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn in_nginx(lab: &Lab, command: &[&str]) -> Result<String> {
    on(lab, PROXY, &[&["exec", &format!("deployment/{NAME}"), "--"], command].concat())
}

fn await_gateway(lab: &Lab) -> Result<()> {
    on(lab, "hub", &["rollout", "status", "deployment", GATEWAY, "--timeout=120s"]).map(drop)
}

fn on(lab: &Lab, cluster: &str, args: &[&str]) -> Result<String> {
    lab.kubectl(cluster, &[&["-n", NAMESPACE], args].concat())
}

struct Stopwatch {
    last: Instant,
    done: Steps,
}

impl Stopwatch {
    fn start() -> Self {
        Self { last: Instant::now(), done: Steps::new() }
    }

    fn done(&mut self, step: &'static str) {
        self.done.push((step, self.last.elapsed().as_secs_f64()));
        self.last = Instant::now();
    }
}
