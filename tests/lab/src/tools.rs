//! What the lab runs, as remembered in its state: a test that attaches to a running lab builds nothing.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::build::{Artifacts, Image};
use crate::state::{self, State};
use crate::topology::Role;

/// Programs and images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// The control plane, node agents and kubectl in one program: the first argument says which.
    pub kubernetes: PathBuf,
    /// KubeVela's command.
    pub vela: PathBuf,
    /// CoreDNS.
    pub coredns: PathBuf,
    /// The directory of KubeVela's chart.
    pub chart: PathBuf,
    /// A directory with `kubectl` and `vela`, for `PATH`.
    pub bin_dir: PathBuf,
    /// The image of in-cluster DNS.
    pub coredns_image: String,
    /// Images every node gets.
    pub images: Vec<PathBuf>,
    /// Images of KubeVela, for the hub alone.
    pub hub_images: Vec<PathBuf>,
}

impl Tools {
    /// From what was built.
    #[must_use]
    pub fn of(built: &Artifacts) -> Self {
        let archives = |images: &[&Image]| images.iter().map(|image| image.archive.clone()).collect();
        let images = &built.images;
        Self {
            kubernetes: built.kubernetes.clone(),
            vela: built.vela.clone(),
            coredns: built.coredns.clone(),
            chart: built.chart.clone(),
            bin_dir: built.bin_dir.clone(),
            coredns_image: images.coredns.name.clone(),
            images: archives(&[&images.pause, &images.coredns, &images.nginx]),
            hub_images: archives(&[&images.vela_core, &images.cluster_gateway]),
        }
    }

    /// What changes when any of it is built anew (the cache never changes an entry, it makes another).
    pub fn fingerprint(&self) -> Result<String> {
        serde_json::to_string(self).context("can't describe the lab's parts")
    }

    /// The archives to import into the nodes of a cluster.
    #[must_use]
    pub fn images_for(&self, role: Role) -> Vec<PathBuf> {
        let further: &[PathBuf] = if role == Role::Hub { &self.hub_images } else { &[] };
        self.images.iter().chain(further).cloned().collect()
    }

    /// Remembers them.
    pub fn keep(&self, state: &State) -> Result<()> {
        state::write_json(&state.root().join("tools.json"), self)
    }

    /// What `keep` remembered.
    pub fn remembered(state: &State) -> Result<Self> {
        state::read_json(&state.root().join("tools.json")).context("the lab is not up; start it with `lab up`")
    }
}
