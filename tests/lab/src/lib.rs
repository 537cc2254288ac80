//! A lab for xregion: a real KubeVela hub, two regions and their business clusters on one Linux machine.
//!
//! ```text
//!   laptop ──access── hub ──peer──┬── proxy-east-1 ──┐
//!                                 ├── proxy-east-2 ──┼──east── business-a, business-b, dns-east
//!                                 └── proxy-west-1 ──────west── business-c, dns-west
//! ```
//!
//! Each box is a network namespace; each line is a bridge, and all bridges are in a namespace of their own (`xr-switch`),
//! so the machine's network stays as it is (and but for one limit, put back by `down`, everything else of it). The hub shares no bridge with a business cluster and has no route to one.
//! Every cluster runs unmodified Kubernetes parts; each node has a containerd of its own.
//!
//! The library blocks: a test calls [`Lab::run`] and the faults from plain code, and enters a place with
//! [`Lab::in_namespace`] to use sockets or a client there.

pub mod build;
mod business;
mod cluster;
mod command;
pub mod compared;
pub mod dns;
pub mod drift;
mod faults;
mod inside;
mod kubeconfig;
mod kubevela;
mod limits;
pub mod load;
mod memory;
mod net;
mod node;
pub mod pki;
pub mod policies;
mod process;
pub mod progress;
mod registry;
pub mod site;
mod state;
mod status;
mod teardown;
mod tools;
pub mod topology;
mod up;
pub mod wait;

use std::env;
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::Client;
use serde_json::Value;

pub use business::BusinessSpec;
pub use command::Output;
pub use kubeconfig::{Kubeconfig, base64};
pub use state::State;
pub use tools::Tools;
pub use topology::{Bridge, Cluster, Place, Region};

use cluster::ControlPlane;
use pki::Authority;

/// How long a command of the lab may take unless said otherwise.
const COMMAND: Duration = Duration::from_secs(120);

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Lab {
    state: State,
    tools: Tools,
}

impl Lab {
    fn new(state: State, tools: Tools) -> Self {
        Self { state, tools }
    }

    /// The lab that is up on this machine.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach() -> Result<Self> {
        let lab = Self::attach_to_any()?;
        if lab.state.complete().is_none() {
            bail!("the lab is not complete; run `lab up`");
        }
        Ok(lab)
    }

    /// The same, also when `up` has failed or is under way.
    pub fn attach_to_any() -> Result<Self> {
        let state = State::from_env();
        let tools = Tools::remembered(&state)?;
        Ok(Self::new(state, tools))
    }

    /// Where the lab keeps its files.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The programs it runs.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Result<Cluster> {
        let clusters = self.state.clusters()?;
        let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        let unknown = format!("no cluster {name}; there are {}", names.join(", "));
        clusters.into_iter().find(|cluster| cluster.name == name).context(unknown)
    }

    /// A place by its name or its cluster's.
    pub fn place(&self, name: &str) -> Result<Place> {
        Ok(self.find(name)?.0)
    }

    /// Every place: clusters' nodes and homes, resolvers, the laptop.
    fn places(&self) -> Result<Vec<Place>> {
        let mut places = topology::bystanders();
        for cluster in self.state.clusters()? {
            places.extend(cluster.places().into_iter().cloned());
        }
        Ok(places)
    }

    /// A place, and the cluster whose kubeconfig is used there: the hub's where there is no own.
    fn find(&self, name: &str) -> Result<(Place, String)> {
        let clusters = self.state.clusters()?;
        if let Some(cluster) = clusters.iter().find(|cluster| cluster.name == name) {
            return Ok((cluster.home.clone(), cluster.name.clone()));
        }
        for cluster in &clusters {
            if let Some(&place) = cluster.places().iter().find(|place| place.name == name) {
                return Ok((place.clone(), cluster.name.clone()));
            }
        }
        let bystander = topology::bystanders().into_iter().find(|place| place.name == name);
        bystander.map(|place| (place, "hub".to_owned())).with_context(|| {
            let names: Vec<&str> = clusters.iter().map(|cluster| cluster.name.as_str()).collect();
            format!("no cluster or place {name}; there are laptop, {}", names.join(", "))
        })
    }

    /// The admin kubeconfig that commands at `place` use.
    pub fn kubeconfig(&self, place: &str) -> Result<PathBuf> {
        Ok(self.state.kubeconfig(&self.find(place)?.1, "admin"))
    }

    /// The kubeconfig a user would bring to have this cluster joined: its `server` as handed out, capitals and all.
    pub fn user_kubeconfig(&self, cluster: &str) -> Result<String> {
        state::read(&self.state.kubeconfig(&self.cluster(cluster)?.name, "user"))
    }

    /// The authority of a cluster, to mint credentials a user of it could have: expired ones, ones without rights, ...
    pub fn authority(&self, cluster: &str) -> Result<Authority> {
        self.control_plane(&self.cluster(cluster)?).authority()
    }

    /// Signs what a ServiceAccount's token of a cluster says, as its API server does: for tokens of another age than those it gives.
    pub fn sign_token(&self, cluster: &str, said: &str) -> Result<Vec<u8>> {
        self.control_plane(&self.cluster(cluster)?).sign_token(said)
    }

    /// A command that runs at `place` with `KUBECONFIG` set and `kubectl` and `vela` on its `PATH`. Not bounded: for
    /// commands a person follows; others use [`Lab::run`].
    pub fn command<A: AsRef<str>>(&self, place: &str, argv: &[A]) -> Result<Command> {
        let (found, cluster) = self.find(place)?;
        let program = argv.first().context("no command to run")?.as_ref();
        let mut path = OsString::from(&self.tools.bin_dir);
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let home = self.state.home();
        let mut command = process::command_in(&found.name, Path::new(program));
        command
            .args(argv.iter().skip(1).map(AsRef::as_ref))
            .env("PATH", path)
            .env("KUBECONFIG", self.state.kubeconfig(&cluster, "admin"))
            // What kubectl, vela and helm keep belongs to the lab, not to the user's home.
            .env("KUBECACHEDIR", home.join("kube"))
            .env("VELA_HOME", home.join("vela"))
            .env("HELM_CACHE_HOME", home.join("helm/cache"))
            .env("HELM_CONFIG_HOME", home.join("helm/config"))
            .env("HELM_DATA_HOME", home.join("helm/data"));
        Ok(command)
    }

    /// Runs a command at `place` to its end, within two minutes.
    pub fn run<A: AsRef<str>>(&self, place: &str, argv: &[A]) -> Result<Output> {
        self.run_within(place, argv, COMMAND)
    }

    /// The same with a bound of one's own.
    pub fn run_within<A: AsRef<str>>(&self, place: &str, argv: &[A], bound: Duration) -> Result<Output> {
        command::run(self.command(place, argv)?, bound)
    }

    /// Runs `kubectl` in a cluster; gives its standard output.
    pub fn kubectl(&self, cluster: &str, args: &[&str]) -> Result<String> {
        self.kubectl_with_input(cluster, args, "")
    }

    /// The same with something on its standard input.
    pub fn kubectl_with_input(&self, cluster: &str, args: &[&str], input: &str) -> Result<String> {
        let argv = [&["kubectl"], args].concat();
        let output = command::run_with_input(self.command(cluster, &argv)?, input, COMMAND)?;
        output.success().with_context(|| format!("kubectl {} in {cluster}", args.join(" ")))
    }

    /// Applies an object, or a List of them.
    pub fn apply(&self, cluster: &str, object: &Value) -> Result<()> {
        let args = ["apply", "--server-side", "--force-conflicts", "--field-manager=lab", "-f", "-"];
        self.kubectl_with_input(cluster, &args, &object.to_string())?;
        Ok(())
    }

    /// Runs asynchronous code whose sockets are those of `place`, to its end.
    pub fn in_namespace<T, F, W>(&self, place: &str, work: W) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
        W: FnOnce() -> F + Send,
    {
        inside::in_namespace(&self.place(place)?.name, work)
    }

    /// As [`in_namespace`](Self::in_namespace), with the sockets of the pod that a process belongs to.
    pub fn in_pod<T, F, W>(&self, process: i32, work: W) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
        W: FnOnce() -> F + Send,
    {
        inside::in_network(&PathBuf::from(format!("/proc/{process}/ns/net")), work)
    }

    /// Moves code that runs [`in_namespace`](Self::in_namespace) to another place: the sockets it makes from now on are there, those it
    /// has stay where they were made. For code that does one thing after another.
    pub fn enter(&self, place: &str) -> Result<()> {
        inside::enter(&self.place(place)?.name)
    }

    /// As [`in_namespace`](Self::in_namespace), with a client for the cluster of `place` (the hub's, where there is no own).
    pub fn with_client<T, F, W>(&self, place: &str, work: W) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
        W: FnOnce(Client) -> F + Send,
    {
        let kubeconfig = self.kubeconfig(place)?;
        self.in_namespace(place, || async move { work(inside::client(&kubeconfig).await?).await })
    }

    /// What the addon registry serves: packages and their `index.yaml`.
    #[must_use]
    pub fn registry_dir(&self) -> PathBuf {
        self.state.registry()
    }

    /// Where it serves it, for the hub, its pods and the laptop.
    #[must_use]
    pub fn registry_url(&self) -> String {
        registry::url()
    }

    /// Imports an image archive into the nodes of these clusters.
    pub fn load_image(&self, archive: &Path, clusters: &[&str]) -> Result<()> {
        clusters.iter().try_for_each(|name| self.at_each_node(name, |node| node.import(archive)))
    }

    /// Makes an image that the nodes of a cluster have known to them by another name, too; both are whole names.
    pub fn tag_image(&self, cluster: &str, image: &str, also: &str) -> Result<()> {
        self.at_each_node(cluster, |node| node.tag(image, also))
    }

    fn at_each_node(&self, cluster: &str, work: impl Fn(node::Worker<'_>) -> Result<()>) -> Result<()> {
        let cluster = self.cluster(cluster)?;
        if cluster.nodes.is_empty() {
            bail!("{} has no nodes", cluster.name);
        }
        let workers = cluster.nodes.iter();
        workers.map(|node| node::Worker { state: &self.state, tools: &self.tools, cluster: &cluster, node }).try_for_each(work)
    }

    /// The clusters whose nodes run xregion's image: the hub and the proxy clusters.
    pub fn image_clusters(&self) -> Result<Vec<String>> {
        let clusters = self.state.clusters()?.into_iter();
        Ok(clusters.filter(|cluster| cluster.role() != topology::Role::Business).map(|cluster| cluster.name).collect())
    }

    /// The logs of a place's or cluster's parts, by place and part.
    pub fn logs(&self, name: Option<&str>) -> Result<Vec<(String, String, PathBuf)>> {
        let wanted: Option<Vec<String>> = match name {
            None => None,
            Some(name) => match self.state.clusters()?.into_iter().find(|cluster| cluster.name == name) {
                Some(cluster) => Some(cluster.places().iter().map(|place| place.name.clone()).collect()),
                None => Some(vec![self.place(name)?.name]),
            },
        };
        let mut found = Vec::new();
        for place in process::names_in(&self.state.logs()) {
            if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&place)) {
                continue;
            }
            for file in process::names_in(&self.state.logs().join(&place)) {
                if let Some(part) = file.strip_suffix(".log") {
                    found.push((place.clone(), part.to_owned(), self.state.log(&place, part)));
                }
            }
        }
        Ok(found)
    }

    fn control_plane<'a>(&'a self, cluster: &'a Cluster) -> ControlPlane<'a> {
        ControlPlane { state: &self.state, tools: &self.tools, cluster }
    }
}
