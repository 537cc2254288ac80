//! Everything a lab is made from: Debian's packages, Go binaries, container images.
//!
//! ```text
//! host       Linux, root, room on the disk, go            one sentence each when lacking
//! packages   etcd containerd runc nginx ...               apt-get, only the missing ones
//! components kubernetes kubevela coredns ...  (golang)    go build  ->  cache/NAME-VERSION-KEY/
//! images     pause, vela-core, nginx ...      (oci)       tar       ->  cache/images/NAME-VERSION-KEY.tar
//! ```
//!
//! The first run takes a quarter of an hour, later ones a fraction of a second: each result is kept in the cache under a
//! key of all that went into it.

mod cache;
mod components;
mod golang;
mod host;
mod images;
mod nginx;
pub mod oci;
mod packages;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::progress::Progress;
use cache::{Cache, Key};
use components::{ALL, CLUSTER_GATEWAY, COREDNS, Component, KONNECTIVITY, KUBERNETES, KUBEVELA, NETWORK_POLICIES, PAUSE};
use golang::Go;
use host::Need;

/// Room for the cache itself, in gigabytes, besides what Go's caches take while building.
const CACHE_GIGABYTES: u64 = 2;

/// Kubernetes' version, with its `v`.
pub const KUBERNETES_VERSION: &str = KUBERNETES.version;

/// KubeVela's version, with its `v`: of the `vela` command, the controller and the chart.
pub const KUBEVELA_VERSION: &str = KUBEVELA.version;

/// An image to import: `ctr -n k8s.io images import ARCHIVE` makes it known as `name`.
#[derive(Clone, Debug)]
pub struct Image {
    /// The whole name, as a pod's `image` means it.
    pub name: String,
    /// The OCI archive.
    pub archive: PathBuf,
}

/// The images of a lab. Which clusters need which is the lab's to know.
#[derive(Clone, Debug)]
pub struct Images {
    /// `registry.k8s.io/pause:3.10`: every node needs it.
    pub pause: Image,
    /// `registry.k8s.io/coredns/coredns:v...`, entrypoint `/coredns`, runs as root (it listens on port 53).
    pub coredns: Image,
    /// `docker.io/oamdev/vela-core:v...`, the controller.
    pub vela_core: Image,
    /// `docker.io/oamdev/cluster-gateway:v...`, entrypoint `/apiserver`.
    pub cluster_gateway: Image,
    /// `docker.io/lab/nginx:...` with nginx' own version; by itself a web server on port 8080 for any user, also with a
    /// read-only root.
    pub nginx: Image,
}

/// What [`ensure`] made sure of. All paths are absolute and below the cache; nothing there changes later.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The multi-call binary: its first argument is `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`,
    /// `kubelet`, `kube-proxy` or `kubectl`.
    pub kubernetes: PathBuf,
    /// The `vela` command, static.
    pub vela: PathBuf,
    /// KubeVela's controller, static.
    pub vela_core: PathBuf,
    /// cluster-gateway's API server, static.
    pub cluster_gateway: PathBuf,
    /// CoreDNS, static; also run outside pods, as a region's resolver.
    pub coredns: PathBuf,
    /// KubeVela's chart `vela-core`, a directory.
    pub chart: PathBuf,
    /// A directory for PATH, with `kubectl` and `vela`.
    pub bin_dir: PathBuf,
    /// What pods run.
    pub images: Images,
}

/// Makes sure that everything a lab needs is there, and says where.
///
/// # Errors
/// When this machine won't do (not Linux, not root, too little disk, no or an old Go, no apt for missing packages), or a
/// step fails; the error then shows the end of its log.
pub fn ensure(progress: &Progress) -> Result<Artifacts> {
    host::require_root_on_linux()?;
    let cache = Cache::open(progress)?;
    packages::ensure_installed(&cache, progress)?;
    let modules: Vec<PathBuf> = ALL.iter().map(|component| component.directory()).collect();
    let go = Go::find(&modules)?;
    require_room("building the lab", &ALL, &go, &cache)?;

    let pause = PAUSE.ensure(&go, &cache, progress)?.join("pause");
    let cluster_gateway = CLUSTER_GATEWAY.ensure(&go, &cache, progress)?.join("cluster-gateway");
    let kubevela = KUBEVELA.ensure(&go, &cache, progress)?;
    let kubernetes = KUBERNETES.ensure(&go, &cache, progress)?.join("kubernetes");
    let coredns = COREDNS.ensure(&go, &cache, progress)?.join("coredns");
    let (vela, vela_core) = (kubevela.join("vela"), kubevela.join("vela-core"));

    let image = |spec| images::ensure(&spec, &cache, progress);
    let images = Images {
        pause: image(images::of_binary(&images::pause(), "/pause", &pause))?,
        coredns: image(images::of_binary(&images::coredns(), "/coredns", &coredns))?,
        vela_core: image(images::of_binary(&images::vela_core(), "/usr/local/bin/manager", &vela_core))?,
        cluster_gateway: image(images::of_binary(&images::cluster_gateway(), "/apiserver", &cluster_gateway))?,
        nginx: image(images::nginx()?)?,
    };
    Ok(Artifacts {
        bin_dir: bin_dir(&kubernetes, &vela, &cache)?,
        chart: kubevela.join("charts/vela-core"),
        kubernetes,
        vela,
        vela_core,
        cluster_gateway,
        coredns,
        images,
    })
}

/// What xregion's way into a region is compared with. All paths are absolute.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Debian's HAProxy.
    pub haproxy: PathBuf,
    /// The tunnel's end on the hub.
    pub tunnel_server: PathBuf,
    /// The tunnel's end in the region.
    pub tunnel_agent: PathBuf,
}

/// Makes sure that what xregion is compared with is there. No lab needs it, so `ensure` leaves it out.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_compared(progress: &Progress) -> Result<Compared> {
    host::require_root_on_linux()?;
    let cache = Cache::open(progress)?;
    packages::ensure_compared(&cache, progress)?;
    let haproxy = host::find("haproxy", &host::search_path()).context("haproxy was installed and can't be found")?;
    let go = Go::find(&[KONNECTIVITY.directory()])?;
    require_room("building the tunnel", &[&KONNECTIVITY], &go, &cache)?;
    let tunnel = KONNECTIVITY.ensure(&go, &cache, progress)?;
    let [tunnel_server, tunnel_agent] = ["konnectivity-server", "konnectivity-agent"].map(|file| tunnel.join(file));
    Ok(Compared { haproxy, tunnel_server, tunnel_agent })
}

/// Makes sure that there is what enforces NetworkPolicies, and says where. No lab needs it, so `ensure` leaves it out.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_network_policies(progress: &Progress) -> Result<PathBuf> {
    host::require_root_on_linux()?;
    let cache = Cache::open(progress)?;
    let go = Go::find(&[NETWORK_POLICIES.directory()])?;
    require_room("building what enforces NetworkPolicies", &[&NETWORK_POLICIES], &go, &cache)?;
    Ok(NETWORK_POLICIES.ensure(&go, &cache, progress)?.join("network-policies"))
}

/// Makes sure that there is an nginx newer than the lab's, for upgrades to it. No lab needs it, so `ensure` leaves it out.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_newer_nginx(progress: &Progress) -> Result<Image> {
    host::require_root_on_linux()?;
    let cache = Cache::open(progress)?;
    let binary = nginx::ensure(&cache, progress)?;
    images::ensure(&images::nginx_of(&binary, None)?, &cache, progress)
}

/// Building needs room in Go's caches for each part that isn't built yet.
fn require_room(what: &str, components: &[&Component], go: &Go, cache: &Cache) -> Result<()> {
    let mut building = 0;
    for component in components {
        if !cache.root().join(component.entry(go)?).exists() {
            building += component.gigabytes;
        }
    }
    let needs = [
        Need { path: go.build_cache.clone(), gigabytes: building },
        Need { path: cache.root().to_owned(), gigabytes: CACHE_GIGABYTES },
    ];
    host::require_disk(what, &needs)
}

/// `kubectl` and `vela` under their names, for whoever is given a lab's shell.
fn bin_dir(kubernetes: &Path, vela: &Path, cache: &Cache) -> Result<PathBuf> {
    let key = Key::default().with(kubernetes.as_os_str().as_encoded_bytes()).with(vela.as_os_str().as_encoded_bytes());
    cache.entry(&format!("bin-{}", key.finish()), |out| {
        let problem = || format!("can't write to {}", out.display());
        fs::create_dir(out).with_context(problem)?;
        let kubectl = out.join("kubectl");
        fs::write(&kubectl, format!("#!/bin/sh\nexec '{}' kubectl \"$@\"\n", kubernetes.display()))
            .and_then(|()| fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)))
            .and_then(|()| symlink(vela, out.join("vela")))
            .with_context(problem)
    })
}
