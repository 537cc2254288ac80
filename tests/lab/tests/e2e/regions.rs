//! A region as it is lived with: API servers that move, names that are lost, routes that come and go beside open watches, a proxy that
//! dies, another hub.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use xregion_lab::dns::TTL;
use xregion_lab::load::Load;
use xregion_lab::site::{self, Dist, NAMESPACE, NGINX};
use xregion_lab::{Lab, Region};

use super::fixture::{
    Duration, UNMENDED, Watch, annotation, eventually, fresh, is_there, join_all, joined, lab, properties, region, start,
    through_gateway,
};
use super::laptop::{kubeconfig_file, run};

/// How long after its TTL a new address is used at the latest, where nothing else has changed just before.
const AFTER_TTL: Duration = Duration::from_secs(2);
/// What it takes to see that: kubectl reads the proxies' logs one after the other, and one of them once more if it came too early.
const ASKING: Duration = Duration::from_secs(3);

/// The proxies of region east, by name.
fn proxies() -> Vec<String> {
    let names = ["get", "pods", "-n", NAMESPACE, "-l", "xregion.oam.dev/kind=proxy", "-o", "jsonpath={.items[*].metadata.name}"];
    lab().kubectl("proxy-east", &names).unwrap().split_whitespace().map(str::to_owned).collect()
}

fn log(proxy: &str) -> String {
    lab().kubectl("proxy-east", &["logs", "-n", NAMESPACE, proxy, "-c", "proxy", "--since=2m"]).unwrap()
}

#[test]
#[ignore = "make test-faults"]
fn a_new_address_of_an_api_server_is_used_two_seconds_after_its_ttl_and_a_lost_name_keeps_the_last() {
    const PATIENCE: Duration = Duration::from_secs(10);
    let lab = joined();
    let spec = fresh(176);
    join_all(&[(&spec, json!({}))]);
    let host = format!("{}.idc.example", spec.name);
    let moved = Region::East.bridge().address(216);
    lab.add_address(&spec.name, Region::East.bridge(), moved).unwrap();
    let asked = proxies();
    lab.set_address(Region::East, &host, &[moved]).unwrap();
    let changed = Instant::now();
    for proxy in asked {
        eventually("the new address in every proxy", || {
            let log = log(&proxy);
            let resolved = |line: &str| line.contains("name resolved") && line.contains(&moved.to_string());
            anyhow::ensure!(log.lines().skip_while(|line| !resolved(line)).any(|line| line.contains("reloaded")), "{log}");
            Ok(())
        });
    }
    let took = changed.elapsed();
    println!("a new address was used by every proxy within {:.1} s, at a TTL of {TTL} s", took.as_secs_f64());
    assert!(took <= Duration::from_secs(TTL.into()) + AFTER_TTL + ASKING, "{took:?}");
    // New connections go there: the gateway's are kept, so those are made here.
    let entered = lab.cluster("proxy-east").unwrap().nodes[0].internal_ip;
    let route = |cluster: &str| SocketAddr::from((entered, annotation(cluster, "node-port").parse().unwrap()));
    let node = route(&spec.name);
    eventually("a session that goes to the new address", || {
        lab.dial("hub", node, Duration::from_secs(2))?;
        let to = format!("\"to\":\"{moved}:443\"");
        anyhow::ensure!(proxies().iter().any(|proxy| log(proxy).contains(&to)), "no session went to {moved}");
        Ok(())
    });
    is_there(&spec.name);

    lab.nxdomain(Region::East, &host).unwrap();
    for proxy in proxies() {
        eventually("the loss in every proxy's log", || {
            anyhow::ensure!(log(&proxy).lines().any(|line| line.contains("name not resolved") && line.contains(&host)), "not yet");
            Ok(())
        });
    }
    lab.dial("hub", node, Duration::from_secs(2)).unwrap();
    let both_answer = || {
        for cluster in [spec.name.as_str(), "business-a"] {
            assert!(lab.answers_to("hub", route(cluster), &annotation(cluster, "alias"), PATIENCE).unwrap(), "{cluster}");
            through_gateway(lab, cluster, "/version").unwrap();
        }
    };
    both_answer();

    // A resolver that says nothing at all, and one that is not there.
    let lost = || {
        let lost =
            |proxy: &String| log(proxy).lines().filter(|line| line.contains("name not resolved") && line.contains(&host)).count();
        proxies().iter().map(lost).sum::<usize>()
    };
    lab.set_address(Region::East, &host, &[moved]).unwrap();
    for (lose, find) in [
        (Lab::blackhole as fn(&Lab, &str) -> anyhow::Result<()>, Lab::unblackhole as fn(&Lab, &str) -> anyhow::Result<()>),
        (|lab, _| lab.stop_resolver(Region::East), |lab, _| lab.start_resolver(Region::East)),
    ] {
        let before = lost();
        lose(lab, Region::East.resolver_place()).unwrap();
        let checked = std::panic::catch_unwind(|| {
            eventually("a name that nobody tells", || {
                anyhow::ensure!(lost() > before, "not yet");
                Ok(())
            });
            both_answer();
        });
        find(lab, Region::East.resolver_place()).unwrap();
        checked.unwrap();
    }

    // Where the first address says nothing, the second is tried while a client still waits.
    let silent = Region::East.bridge().address(217);
    lab.set_address(Region::East, &host, &[silent, moved]).unwrap();
    for proxy in proxies() {
        eventually("both addresses in every proxy", || {
            anyhow::ensure!(log(&proxy).contains(&silent.to_string()), "not yet");
            Ok(())
        });
    }
    for _ in 0..4 {
        assert!(lab.answers_to("hub", route(&spec.name), &annotation(&spec.name, "alias"), PATIENCE).unwrap());
    }
    lab.set_address(Region::East, &host, &[moved]).unwrap();
    assert!(run(&["leave", &spec.name]).status.success());
    lab.stop_cluster(&spec.name).unwrap();
}

/// `kubectl` over a cluster's route, past the hub's gateway, whose rollouts would end what is open. It ends by itself.
fn over_route(cluster: &str, kubeconfig: &Path, args: &[&str]) -> Command {
    let node = lab().cluster("proxy-east").unwrap().nodes[0].internal_ip;
    let server = format!("--server=https://{node}:{}", annotation(cluster, "node-port"));
    let name = format!("--tls-server-name={}", annotation(cluster, "alias"));
    let config = format!("--kubeconfig={}", kubeconfig.display());
    lab().command("hub", &[&["timeout", "300", "kubectl", &config, &server, &name], args].concat()).unwrap()
}

/// A watch of a cluster's namespaces over its route.
fn watch(cluster: &str, kubeconfig: &Path) -> Watch {
    Watch::start(over_route(cluster, kubeconfig, &["get", "--raw", Watch::NAMESPACES]))
}

#[test]
#[ignore = "make test-faults"]
fn b_watches_live_on_while_other_routes_come_and_go() {
    let lab = joined();
    let config = kubeconfig_file("business-a");
    let mut open = watch("business-a", config.path());
    let spec = fresh(177);
    join_all(&[(&spec, json!({}))]);
    assert!(run(&["leave", &spec.name]).status.success());
    lab.stop_cluster(&spec.name).unwrap();
    lab.kubectl("business-a", &["create", "namespace", "seen-by-the-watch"]).unwrap();
    open.until("seen-by-the-watch");
    lab.kubectl("business-a", &["delete", "namespace", "seen-by-the-watch", "--wait=false"]).unwrap();
}

#[test]
#[ignore = "make test-faults"]
fn c_proxy_that_is_killed_costs_little() {
    let lab = joined();
    let load = Load::start(lab, &["business-a", "proxy-west"]).unwrap();
    let at = load.elapsed();
    lab.kill_proxy(&proxies()[0]).unwrap();
    eventually("two proxies ready again", || {
        let ready = ["get", "deployment", "xregion-proxy", "-n", NAMESPACE, "-o", "jsonpath={.status.readyReplicas}"];
        let (ready, asked) = (lab.kubectl("proxy-east", &ready)?, load.elapsed() - at);
        // The status takes a moment to tell of the death.
        anyhow::ensure!(ready == "2" && asked > Duration::from_secs(10), "{ready} are ready after {asked:?}");
        Ok(())
    });
    let outcome = load.stop().unwrap();
    let last = outcome.failures.iter().map(|failure| failure.at.saturating_sub(at)).max().unwrap_or_default();
    println!(
        "a killed proxy: {} of {} requests failed, the last {:.1} s after it",
        outcome.failed,
        outcome.requests,
        last.as_secs_f64()
    );
    assert!(outcome.failures.iter().all(|failure| failure.cluster == "business-a"), "{:?}", outcome.failures);
    assert!(last < Duration::from_secs(5), "{:?}", outcome.failures);
}

#[test]
#[ignore = "another hub takes a minute and a gigabyte: make test-faults"]
fn d_two_hubs_share_a_region_and_a_cluster_under_one_name() {
    let lab = joined();
    let dist = Dist::find().unwrap();
    let hub = lab.start_second_hub(&["proxy-east"]).unwrap().name;
    let checked = std::panic::catch_unwind(|| two_hubs(lab, &dist, &hub));
    lab.stop_cluster(&hub).unwrap();
    checked.unwrap();
}

fn two_hubs(lab: &Lab, dist: &Dist, hub: &str) {
    let up = |application: Value| {
        lab.vela_up_at(hub, &application).unwrap();
        let name = application["metadata"]["name"].as_str().unwrap().to_owned();
        eventually("the second hub's Application", || {
            let phase =
                lab.kubectl(hub, &["get", "application", &name, "-o", "jsonpath={.status.status}: {.status.workflow.steps}"])?;
            anyhow::ensure!(phase.starts_with("running: "), "{phase}");
            Ok(())
        });
    };
    let version = |of: &str| {
        let raw = "/apis/cluster.core.oam.dev/v1alpha1/clustergateways/business-a/proxy/api/v1/namespaces/kube-system";
        lab.kubectl(of, &["get", "--raw", raw])
    };
    lab.load_image(&dist.image(), &[hub]).unwrap();
    lab.vela_at(hub, &["addon", "enable", dist.addon().to_str().unwrap(), "-y", UNMENDED]).unwrap();
    let (port, load) = (annotation("business-a", "node-port"), Load::start(lab, &["business-a"]).unwrap());

    // The region stands already, and the other hub has a cluster of this name in it.
    lab.put_kubeconfig_on(hub, "a", &lab.user_kubeconfig("business-a").unwrap()).unwrap();
    up(site::membership("join-a", &properties("business-a", "proxy-east", "a", json!({}))));
    assert_eq!(version(hub).unwrap(), version("hub").unwrap());
    let ports = ["get", "service", "cross-region-nginx-proxy-svc", "-n", NAMESPACE, "-o", "jsonpath={.spec.ports[*].name}"];
    let of_a = |names: String| names.split_whitespace().filter(|name| name.starts_with("business-a-")).count();
    assert_eq!(of_a(lab.kubectl("proxy-east", &ports).unwrap()), 2);

    let mut leave = site::membership("leave-a", &json!({"cluster": "business-a"}));
    leave["spec"]["workflow"]["steps"][0]["type"] = json!("xregion-leave");
    up(leave);
    assert!(version(hub).is_err(), "it left");
    assert_eq!(of_a(lab.kubectl("proxy-east", &ports).unwrap()), 1);
    let requests = load.stop().unwrap();
    assert_eq!(requests.failed, 0, "{requests}");
    assert_eq!(annotation("business-a", "node-port"), port);
    is_there("business-a");
}

/// Where the pod's two web servers are forwarded to, on the hub's node.
const FORWARDED: [u16; 2] = [18080, 18081];
const OPEN: &str = "left-open";

/// A pod whose web server logs to its standard output, with the configuration of another on port 8081; and a LIST that no buffer on its way
/// holds, not even compressed.
fn furnish(cluster: &str) {
    // It tells on its standard output that it has started, too.
    let second = "
        error_log /dev/stdout notice;
        pid /dev/shm/second.pid;
        events {}
        http {
            access_log /dev/stdout;
            client_body_temp_path /dev/shm/second-body;
            proxy_temp_path /dev/shm/second-proxy;
            fastcgi_temp_path /dev/shm/second-fastcgi;
            uwsgi_temp_path /dev/shm/second-uwsgi;
            scgi_temp_path /dev/shm/second-scgi;
            server { listen 8081; location / { return 200; } }
        }";
    let metadata = |name: &str| json!({"name": name, "namespace": OPEN});
    let random = RandomState::new();
    let text = |map: u32| (0..58_000).map(|part| format!("{:016x}", random.hash_one((map, part)))).collect::<String>();
    let large = (0..40).map(|map| {
        let labels = json!({"name": format!("large-{map}"), "namespace": OPEN, "labels": {"size": "large"}});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": labels, "data": {"text": text(map)}})
    });
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPEN}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("second"), "data": {"nginx.conf": second}}),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata("web"),
            "spec": {
                "containers": [{
                    "name": "web", "image": NGINX, "volumeMounts": [{"name": "second", "mountPath": "/second"}],
                }],
                "volumes": [{"name": "second", "configMap": {"name": "second"}}],
            },
        }),
    ];
    items.extend(large);
    lab().apply(cluster, &json!({"apiVersion": "v1", "kind": "List", "items": items})).unwrap();
    lab().kubectl(cluster, &["wait", "pod/web", "-n", OPEN, "--for=condition=Ready", "--timeout=60s"]).unwrap();
}

/// What an operator has open over one route.
struct Sessions {
    watch: Watch,
    logs: Watch,
    exec: Watch,
    forward: Watch,
}

impl Sessions {
    fn open(cluster: &str, kubeconfig: &Path, what: &str) -> Self {
        let second = ["exec", "-n", OPEN, "web", "--", "nginx", "-c", "/second/nginx.conf"];
        // What was executed once goes on when nobody is connected with it.
        let _ = lab().kubectl(cluster, &[&second[..], &["-s", "stop"]].concat());
        let open = |args: &[&str]| Watch::of(over_route(cluster, kubeconfig, args));
        let ports = FORWARDED.map(|port| format!("{port}:{}", port - 10_000));
        let mut forward = open(&["port-forward", "-n", OPEN, "pod/web", &ports[0], &ports[1]]);
        forward.until_text(&format!("127.0.0.1:{}", FORWARDED[1]));
        let mut exec = open(&[&second[..], &["-g", "daemon off;"]].concat());
        exec.until_text("start worker process");
        let mut sessions =
            Self { watch: watch(cluster, kubeconfig), logs: open(&["logs", "-n", OPEN, "web", "--follow"]), exec, forward };
        sessions.carry(cluster, what);
        sessions
    }

    /// Sends something over each of them: a request by either forwarded port, which the server that is logged and the one that was executed
    /// each tell of, and a namespace.
    fn carry(&mut self, cluster: &str, what: &str) {
        for port in FORWARDED {
            lab().http_get("hub", (Ipv4Addr::LOCALHOST, port).into(), &format!("/{what}")).unwrap();
        }
        self.logs.until_text(&format!("/{what} "));
        self.exec.until_text(&format!("/{what} "));
        let name = format!("{OPEN}-{what}");
        lab().kubectl(cluster, &["create", "namespace", &name]).unwrap();
        self.watch.until(&name);
        lab().kubectl(cluster, &["delete", "namespace", &name, "--wait=false"]).unwrap();
    }

    fn ended(self) {
        [self.watch, self.logs, self.exec, self.forward].into_iter().for_each(Watch::ended);
    }
}

#[test]
#[ignore = "make test-faults"]
fn e_what_kubectl_has_open_lives_on_while_routes_change_until_the_bound() {
    let lab = joined();
    let config = kubeconfig_file("business-a");
    furnish("business-a");
    let mut sessions = Sessions::open("business-a", config.path(), "opened");
    let list = format!("/api/v1/namespaces/{OPEN}/configmaps?labelSelector=size%3Dlarge");
    let mut list = Watch::of(over_route("business-a", config.path(), &["get", "--raw", &list]));
    list.has_begun();
    let spec = fresh(179);
    start(&spec);
    let file = kubeconfig_file(&spec.name);
    let join = || run(&["join", &spec.name, "--region", "proxy-east", "--kubeconfig", file.path().to_str().unwrap()]);
    let leave = || run(&["leave", &spec.name]);
    assert!(join().status.success());
    sessions.carry("business-a", "after-a-join");
    region("proxy-east", &json!({"timeouts": {"drainSeconds": 5}}));
    assert!(leave().status.success());
    sessions.carry("business-a", "after-a-leave");
    let list: Value = serde_json::from_str(&list.rest()).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 40);
    drop(sessions);

    // The bound is that of the configuration with which workers began.
    let sessions = Sessions::open("business-a", config.path(), "opened-again");
    assert!(join().status.success());
    sessions.ended();
    through_gateway(lab, "business-a", "/version").unwrap();

    assert!(leave().status.success());
    region("proxy-east", &json!({}));
    lab.stop_cluster(&spec.name).unwrap();
    lab.kubectl("business-a", &["delete", "namespace", OPEN, "--wait=false"]).unwrap();
}
