//! `make demo`: a cluster that the hub can't reach is joined, takes a workload, and no request to another cluster fails
//! meanwhile. `make demo-down` takes it all down in order.

// Its output is for people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use xregion_lab::load::Load;
use xregion_lab::progress::Progress;
use xregion_lab::site::{Dist, NAMESPACE, NGINX, USER, message};
use xregion_lab::{Lab, wait};

/// Shows xregion on real clusters.
#[derive(Parser)]
enum Demo {
    /// Sets up everything and shows it
    Up,
    /// Deletes the demo's Applications in order, then the lab
    Down,
}

/// The demo's Applications (files in `examples/`), in the order in which they are made.
const APPLICATIONS: [(&str, &str); 3] =
    [("region-east", "region.yaml"), ("join-business-a", "membership.yaml"), ("hello", "workload.yaml")];
/// The one that lets the cluster leave, between the workload's end and the region's.
const LEAVE: (&str, &str) = ("leave-business-a", "leave.yaml");

fn main() -> ExitCode {
    let done = match Demo::parse() {
        Demo::Up => up(),
        Demo::Down => down(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up() -> Result<()> {
    let progress = Progress::new();
    let dist = Dist::find()?;
    let lab = Lab::up(&progress)?;
    if has_others(&lab)? {
        progress.step("taking off the lab what tests or benchmarks have left on it");
        lab.sweep()?;
    }
    progress.step("publishing the addon in the lab's registry, and its image to the hub and the proxy clusters");
    lab.publish(&dist)?;

    title("The hub can't reach business-a, its region can");
    let address = SocketAddr::from((lab.cluster("business-a")?.address, 443));
    for place in ["hub", "proxy-east-1"] {
        match lab.dial(place, address, Duration::from_secs(2)) {
            Ok(()) => println!("{place}: connected to {address}"),
            Err(error) => println!("{place}: no connection to {address}: {}", error.root_cause()),
        }
    }
    if lab.dial("hub", address, Duration::from_secs(2)).is_ok() {
        bail!("the hub reaches {address}, so this lab shows nothing");
    }

    title("The addon");
    show(&lab, "vela addon enable xregion -y")?;

    title("The region: nginx in proxy-east, which the hub reaches");
    apply(&lab, APPLICATIONS[0].1)?;
    lab.await_running(APPLICATIONS[0].0)?;
    show(&lab, "vela status region-east -n default")?;

    title("The membership: business-a's kubeconfig, and a step that joins it");
    let kubeconfig = tempfile::NamedTempFile::new()?;
    std::fs::write(kubeconfig.path(), lab.user_kubeconfig("business-a")?)?;
    let _ = lab.run(USER, &["kubectl", "-n", NAMESPACE, "delete", "secret", "business-a-kubeconfig", "--ignore-not-found"])?;
    show(
        &lab,
        &format!(
            "kubectl -n {NAMESPACE} create secret generic business-a-kubeconfig --from-file=kubeconfig={}",
            kubeconfig.path().display()
        ),
    )?;
    show(&lab, &format!("kubectl -n {NAMESPACE} label secret business-a-kubeconfig xregion.oam.dev/kubeconfig=true"))?;
    let load = Load::start(&lab, &["proxy-west"])?;
    println!("(from here on, 20 requests a second go to another cluster, proxy-west)");
    let start = Instant::now();
    apply(&lab, APPLICATIONS[1].1)?;
    follow(&lab, APPLICATIONS[1].0)?;
    let took = start.elapsed();
    let outcome = load.stop()?;
    show(&lab, "vela status join-business-a -n default")?;
    show(&lab, "timeout --signal=INT 5 vela workflow logs join-business-a -n default -s join")?;
    show(&lab, "vela cluster list")?;

    title("A workload on it");
    apply(&lab, APPLICATIONS[2].1)?;
    lab.await_running(APPLICATIONS[2].0)?;
    show(&lab, "vela status hello -n default")?;

    title("In figures");
    println!("from `vela up` to joined: {:.1} s", took.as_secs_f64());
    println!("requests sent to another cluster meanwhile: {}, failed: {}", outcome.requests, outcome.failed);
    println!();
    println!("Look around:    make lab EXEC='hub -- vela cluster list'        (hub, proxy-east, business-a, laptop, ...)");
    println!("                make lab EXEC='proxy-east -- kubectl get pods,configmaps,services -n {NAMESPACE}'");
    println!("Take it down:   make demo-down");
    if outcome.failed > 0 {
        bail!("{} requests failed: {:?}", outcome.failed, outcome.failures);
    }
    Ok(())
}

/// Whether the lab has Applications that are not the demo's: one may own what the demo is about to make.
fn has_others(lab: &Lab) -> Result<bool> {
    let names = lab.kubectl("hub", &["get", "applications", "-n", "default", "-o", "jsonpath={.items[*].metadata.name}"])?;
    let own: Vec<&str> = APPLICATIONS.iter().chain([&LEAVE]).map(|(name, _)| *name).collect();
    Ok(names.split_whitespace().any(|name| !own.contains(&name)))
}

fn down() -> Result<()> {
    let lab = Lab::attach()?;
    let [region, membership, workload] = APPLICATIONS.map(|(name, _)| name);
    delete(&lab, workload)?;
    title("business-a leaves");
    apply(&lab, LEAVE.1)?;
    follow(&lab, LEAVE.0)?;
    for name in [LEAVE.0, membership, region] {
        delete(&lab, name)?;
    }
    title("The lab");
    Lab::down()?;
    println!("nothing of it is left but its cache");
    Ok(())
}

fn delete(lab: &Lab, name: &str) -> Result<()> {
    title(&format!("Deleting {name}"));
    show(lab, &format!("vela delete {name} -n default -y --wait"))?;
    if lab.application(name).is_ok() {
        bail!("Application {name} is still there");
    }
    Ok(())
}

/// `vela up` of one of the examples, with the lab's nginx in place of the image that can't be pulled here.
fn apply(lab: &Lab, file: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let copy = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    std::fs::write(copy.path(), text.replace("nginx:1.30.4", NGINX))?;
    println!("{}", text.lines().map(|line| format!("  | {line}\n")).collect::<String>());
    println!("$ vela up -f examples/{file}");
    let path = copy.path().to_str().context("a path that is no text")?;
    print!("{}", lab.vela(&["up", "-f", path])?);
    Ok(())
}

/// Shows the messages of a workflow as they change, until it has ended.
fn follow(lab: &Lab, name: &str) -> Result<()> {
    let mut told = String::new();
    let ended = wait::until(&format!("Application {name}"), Duration::from_secs(180), || {
        let application = lab.application(name)?;
        let status = &application["status"];
        let text = message(status);
        if text != told {
            println!("  {text}");
            told.clone_from(&text);
        }
        match status["status"].as_str().unwrap_or_default() {
            "running" | "workflowFailed" | "workflowTerminated" => Ok(status["status"] == "running"),
            other => bail!("it is {other}"),
        }
    })?;
    if !ended {
        bail!("it failed: {told}");
    }
    Ok(())
}

/// Runs a command as the user does and shows it with what it prints.
fn show(lab: &Lab, command: &str) -> Result<()> {
    println!("$ {command}");
    let argv: Vec<&str> = command.split(' ').collect();
    let output = lab.run(USER, &argv)?;
    print!("{}", output.stdout);
    // What is followed for ever is ended by `timeout`, with its own status.
    let ended = output.status.success() || argv.first() == Some(&"timeout");
    if !ended {
        bail!("`{command}` failed: {}", output.stderr.trim());
    }
    Ok(())
}

fn title(text: &str) {
    println!("\n== {text}");
}
