//! Bringing a lab up: all of it anew, or what is missing of one that was complete.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::ControlPlane;
use crate::dns::{self, Resolver};
use crate::node::Worker;
use crate::progress::Progress;
use crate::state::State;
use crate::tools::Tools;
use crate::topology::{self, Cluster, Place, Region, Role, SWITCH, namespace};
use crate::{Lab, build, kubevela, limits, net, registry, state, teardown, wait};

/// Counted up when a change of this crate makes a lab of before another one.
const SHAPE: u8 = 1;

const HUB: &str = "hub";

/// How long KubeVela's pods get after a repair; pods of a killed node's containerd are made anew.
const AVAILABLE: Duration = Duration::from_secs(90);

impl Lab {
    /// Brings the lab up. A healthy one is left as it is; one that was complete gets back what is missing; anything else
    /// is taken down first and made anew.
    ///
    /// # Errors
    /// Names the step that failed, with the end of its log.
    pub fn up(progress: &Progress) -> Result<Self> {
        let tools = Tools::of(&build::ensure(progress)?);
        let state = State::from_env();
        let _lock = state.lock()?;
        let made_from = format!("{SHAPE} {} {}", tools.fingerprint()?, serde_json::to_string(&topology::clusters())?);
        let lab = Self::new(state, tools);
        if lab.state().complete().as_deref() == Some(&made_from) && lab.has_namespaces() {
            lab.repair(progress)?;
            return Ok(lab);
        }
        if teardown::anything(lab.state()) {
            progress.step("removing what an earlier lab left");
            teardown::take_down(lab.state())?;
        }
        lab.make(progress)?;
        lab.state().set_complete(&made_from)?;
        Ok(lab)
    }

    fn has_namespaces(&self) -> bool {
        let there = net::namespaces();
        let all = |places: Vec<Place>| places.iter().all(|place| there.contains(&namespace(&place.name)));
        there.contains(&namespace(SWITCH)) && self.places().is_ok_and(all)
    }

    fn make(&self, progress: &Progress) -> Result<()> {
        progress.step("making networks and keys");
        limits::raise(self.state())?;
        state::make_dir(&self.state().home())?;
        self.tools().keep(self.state())?;
        net::make_switch()?;
        let clusters = topology::clusters();
        for cluster in &clusters {
            self.control_plane(cluster).make_keys()?;
            net::make_cluster(cluster)?;
        }
        self.reset_names()?;
        for region in Region::ALL {
            Resolver::new(self.state(), region).ensure(self.tools())?;
        }
        registry::ensure(self.state())?;
        progress.step(&format!("starting {} clusters", clusters.len()));
        wait::all(clusters.iter().map(|cluster| {
            move || {
                self.start(cluster).with_context(|| format!("cluster {}", cluster.name))?;
                progress.step(&format!("{} is ready", cluster.name));
                if cluster.role() == Role::Hub {
                    progress.step("installing KubeVela");
                    kubevela::install(self, &cluster.name)?;
                }
                Ok(())
            }
        }))?;
        for cluster in clusters.iter().filter(|cluster| cluster.role() == Role::Proxy) {
            progress.step(&format!("joining {}", cluster.name));
            kubevela::join(self, HUB, cluster)?;
        }
        Ok(())
    }

    /// Starts another hub (a minute and a gigabyte), with KubeVela and the given proxy clusters joined.
    ///
    /// # Errors
    /// When there is one already, or a part of it doesn't start.
    pub fn start_second_hub(&self, proxies: &[&str]) -> Result<Cluster> {
        let hub = topology::second_hub();
        self.lay_out(&hub)?;
        self.start(&hub)?;
        kubevela::install(self, &hub.name)?;
        for proxy in proxies {
            kubevela::join(self, &hub.name, &self.cluster(proxy)?)?;
        }
        Ok(hub)
    }

    /// Starts a cluster and its nodes, and waits until they are ready.
    fn start(&self, cluster: &Cluster) -> Result<()> {
        let control_plane = self.control_plane(cluster);
        let workers: Vec<Worker<'_>> =
            cluster.nodes.iter().map(|node| Worker { state: self.state(), tools: self.tools(), cluster, node }).collect();
        // Images go into the nodes while the API server starts.
        let mut jobs: Vec<Box<dyn FnOnce() -> Result<()> + Send + '_>> = vec![Box::new(|| control_plane.ensure())];
        for worker in &workers {
            jobs.push(Box::new(|| {
                worker.ensure_containerd()?;
                self.tools().images_for(cluster.role()).iter().try_for_each(|archive| worker.import(archive))
            }));
        }
        wait::all(jobs)?;
        for worker in &workers {
            self.apply(&cluster.name, &worker.object())?;
            worker.ensure_kubelet()?;
        }
        if cluster.has_dns() {
            self.apply(&cluster.name, &dns::in_cluster(cluster, &self.tools().coredns_image))?;
        }
        workers.iter().try_for_each(Worker::await_ready)
    }

    /// Gives a lab that was complete back what it lacks.
    fn repair(&self, progress: &Progress) -> Result<()> {
        progress.step("checking the lab that is there");
        limits::raise(self.state())?;
        self.mend_network()?;
        for region in Region::ALL {
            Resolver::new(self.state(), region).ensure(self.tools())?;
        }
        registry::ensure(self.state())?;
        let clusters = self.state().clusters()?;
        wait::all(
            clusters.iter().map(|cluster| move || self.restart(cluster).with_context(|| format!("cluster {}", cluster.name))),
        )?;
        kubevela::await_available(self, HUB, AVAILABLE)
    }

    fn restart(&self, cluster: &Cluster) -> Result<()> {
        let control_plane: ControlPlane<'_> = self.control_plane(cluster);
        control_plane.ensure()?;
        control_plane.ensure_api()?;
        for node in &cluster.nodes {
            let worker = Worker { state: self.state(), tools: self.tools(), cluster, node };
            worker.ensure_containerd()?;
            worker.ensure_kubelet()?;
        }
        cluster.nodes.iter().try_for_each(|node| Worker { state: self.state(), tools: self.tools(), cluster, node }.await_ready())
    }

    /// Takes the lab down, whatever state it is in; nothing of it stays.
    pub fn down() -> Result<()> {
        let state = State::from_env();
        let _lock = state.lock()?;
        teardown::take_down(&state)
    }
}
