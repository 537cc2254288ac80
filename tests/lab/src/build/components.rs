//! The parts of a lab that are built from Go modules, and the one place their versions are written.
//!
//! Each has a small module of its own in `components/`: `go.mod` and `go.sum` pin all of its dependencies, and the part
//! itself is either `main.go` or a `tool` of the module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::{Cache, Key};
use super::golang::Go;
use crate::progress::{Progress, run_logged};

/// A Go module to build.
#[derive(Debug)]
pub struct Component {
    /// Its directory below `components/`.
    pub name: &'static str,
    /// With its `v`.
    pub version: &'static str,
    /// The module the version is of; none when the code is our own, under somebody else's version.
    module: Option<&'static str>,
    /// What to build: package and the file it becomes.
    binaries: &'static [Binary],
    /// The variable that makes a binary say its version; without it addons' version requirements are skipped.
    stamp: Option<&'static str>,
    /// A directory of the module to keep beside the binaries, under its path there.
    keep: Option<&'static str>,
    /// How long a cold build takes on two cores.
    takes: &'static str,
    /// What a cold build leaves in Go's caches.
    pub gigabytes: u64,
}

#[derive(Debug)]
struct Binary {
    package: &'static str,
    file: &'static str,
    /// Arguments that make it print its version; none when it has no such.
    says_version: &'static [&'static str],
}

/// The control plane, the node agents and kubectl, as one binary whose first argument is the one to be.
pub const KUBERNETES: Component = Component {
    name: "kubernetes",
    version: "v1.34.4",
    module: Some("k8s.io/kubernetes"),
    binaries: &[Binary { package: ".", file: "kubernetes", says_version: &["kubelet", "--version"] }],
    stamp: Some("k8s.io/component-base/version.gitVersion"),
    keep: None,
    takes: "5 minutes",
    gigabytes: 4,
};

/// The `vela` command, the controller, and the chart that installs it.
pub const KUBEVELA: Component = Component {
    name: "kubevela",
    version: "v1.10.9",
    module: Some("github.com/oam-dev/kubevela"),
    binaries: &[
        Binary { package: "github.com/oam-dev/kubevela/references/cmd/cli", file: "vela", says_version: &["version"] },
        Binary { package: "github.com/oam-dev/kubevela/cmd/core", file: "vela-core", says_version: &[] },
    ],
    stamp: Some("github.com/oam-dev/kubevela/version.VelaVersion"),
    keep: Some("charts/vela-core"),
    takes: "4 minutes",
    gigabytes: 5,
};

/// What the hub's API server sends requests to joined clusters through.
pub const CLUSTER_GATEWAY: Component = Component {
    name: "cluster-gateway",
    version: "v1.9.0-alpha.2",
    module: Some("github.com/oam-dev/cluster-gateway"),
    binaries: &[Binary { package: "github.com/oam-dev/cluster-gateway/cmd/apiserver", file: "cluster-gateway", says_version: &[] }],
    stamp: None,
    keep: None,
    takes: "1 minute",
    gigabytes: 1,
};

/// DNS within clusters, and a region's resolver.
pub const COREDNS: Component = Component {
    name: "coredns",
    version: "v1.12.4",
    module: Some("github.com/coredns/coredns"),
    binaries: &[Binary { package: "github.com/coredns/coredns", file: "coredns", says_version: &["-version"] }],
    stamp: None,
    keep: None,
    takes: "3 minutes",
    gigabytes: 2,
};

/// What holds a pod's namespaces open. Our own few lines, under the version Kubernetes' image has.
pub const PAUSE: Component = Component {
    name: "pause",
    version: "3.10",
    module: None,
    binaries: &[Binary { package: ".", file: "pause", says_version: &[] }],
    stamp: None,
    keep: None,
    takes: "10 seconds",
    gigabytes: 0,
};

/// The tunnel of Kubernetes that cluster-gateway can go through instead of xregion's way. Built for comparing them alone.
pub const KONNECTIVITY: Component = Component {
    name: "konnectivity",
    version: "v0.34.0",
    module: Some("sigs.k8s.io/apiserver-network-proxy"),
    binaries: &[
        Binary { package: "sigs.k8s.io/apiserver-network-proxy/cmd/server", file: "konnectivity-server", says_version: &[] },
        Binary { package: "sigs.k8s.io/apiserver-network-proxy/cmd/agent", file: "konnectivity-agent", says_version: &[] },
    ],
    stamp: None,
    keep: None,
    takes: "1 minute",
    gigabytes: 1,
};

/// What enforces NetworkPolicies. Built for tests of those alone.
pub const NETWORK_POLICIES: Component = Component {
    name: "network-policies",
    version: "v0.8.0",
    module: Some("sigs.k8s.io/kube-network-policies"),
    binaries: &[Binary { package: ".", file: "network-policies", says_version: &[] }],
    stamp: None,
    keep: None,
    takes: "1 minute",
    gigabytes: 1,
};

/// All that a lab runs, the ones others wait for first.
pub const ALL: [&Component; 5] = [&PAUSE, &CLUSTER_GATEWAY, &KUBEVELA, &KUBERNETES, &COREDNS];

impl Component {
    /// Where its `go.mod` is.
    pub fn directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("components").join(self.name)
    }

    /// The cache entry it is built into: the directory of its binaries.
    pub fn entry(&self, go: &Go) -> Result<String> {
        Ok(format!("{}-{}-{}", self.name, self.version, self.key(&self.directory(), &go.version)?))
    }

    /// Everything that decides what comes out.
    fn key(&self, directory: &Path, go: &str) -> Result<String> {
        let mut key = Key::default().with(self.name).with(go).with(std::env::consts::ARCH).with(self.ldflags());
        for binary in self.binaries {
            key = key.with(binary.package).with(binary.file);
        }
        key = key.with(self.keep.unwrap_or_default());
        for file in sources(directory)? {
            let name = file.file_name().unwrap_or_default().as_encoded_bytes().to_owned();
            key = key.with(name).with(fs::read(&file).with_context(|| format!("can't read {}", file.display()))?);
        }
        Ok(key.finish())
    }

    fn ldflags(&self) -> String {
        match self.stamp {
            Some(variable) => format!("-s -w -X {variable}={}", self.version),
            None => "-s -w".to_owned(),
        }
    }

    /// Its directory in the cache, built when it isn't there.
    pub fn ensure(&self, go: &Go, cache: &Cache, progress: &Progress) -> Result<PathBuf> {
        cache.entry(&self.entry(go)?, |out| {
            let step = format!("building {} {}", self.name, self.version);
            progress.step(&format!("{step} (about {} when nothing is cached)", self.takes));
            self.build(&step, go, out, &cache.log(self.name))
        })
    }

    fn build(&self, step: &str, go: &Go, out: &Path, log: &Path) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(out).with_context(|| format!("can't make {}", out.display()))?;
        for binary in self.binaries {
            let file = out.join(binary.file);
            let mut build = go.run_in(&directory);
            build.args(["build", "-ldflags", &self.ldflags(), "-o"]).arg(&file).arg(binary.package);
            run_logged(step, build, log)?;
            if self.module.is_some() {
                self.check_version(binary, &file, go)?;
            }
        }
        if let (Some(part), Some(module)) = (self.keep, self.module) {
            let mut list = go.run_in(&directory);
            list.args(["list", "-m", "-f", "{{.Dir}}", module]);
            copy(&Path::new(said(list)?.trim()).join(part), &out.join(part))?;
        }
        Ok(())
    }

    /// What was built has to be what the cache entry's name promises. A binary that can't say its version is asked for
    /// the one Go recorded in it.
    fn check_version(&self, binary: &Binary, file: &Path, go: &Go) -> Result<()> {
        let said = if binary.says_version.is_empty() {
            let mut read = Command::new(&go.command);
            read.args(["version", "-m"]).arg(file);
            said(read)?
        } else {
            let mut ask = Command::new(file);
            // In an empty home: `vela version` makes a ~/.vela, and would wait for the cluster of whoever builds this.
            let home = tempfile::tempdir().context("can't make a temporary directory")?;
            ask.args(binary.says_version).env("HOME", home.path()).env_remove("KUBECONFIG");
            said(ask)?
        };
        let wanted = self.version.trim_start_matches('v');
        ensure!(
            said.contains(wanted),
            "{} should be version {wanted}, and says: {}; does {}/go.mod ask for another?",
            file.display(),
            said.trim(),
            self.directory().display()
        );
        Ok(())
    }
}

/// What a command prints, in one text.
pub(super) fn said(mut command: Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command.output().with_context(|| format!("can't run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `go.mod`, `go.sum` and the Go files of a module, in order.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))? {
        let path = entry.with_context(|| format!("can't read {}", directory.display()))?.path();
        if path.extension().is_some_and(|kind| kind == "go" || kind == "mod" || kind == "sum") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Copies a directory of plain files. Go's module cache is read-only; the copy's directories aren't, so that it can be
/// removed.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("can't read {}", from.display()))? {
        let entry = entry.with_context(|| format!("can't read {}", from.display()))?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("can't copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn go_mod_asks_for_the_versions_written_here() {
        for component in ALL.into_iter().chain([&KONNECTIVITY, &NETWORK_POLICIES]) {
            let Some(module) = component.module else { continue };
            let text = fs::read_to_string(component.directory().join("go.mod")).unwrap();
            let line = format!("{module} {}", component.version);
            assert!(
                text.lines().any(|l| l.trim().trim_start_matches("require ").starts_with(&line)),
                "{}/go.mod: {line}",
                component.name
            );
        }
    }

    #[test]
    fn the_key_changes_with_each_input_and_with_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let key = |component: &Component, go: &str| component.key(directory.path(), go).unwrap();
        write("go.mod", "module a");
        let first = key(&KUBEVELA, "go1.26.8");
        write("README.md", "not an input");
        assert_eq!(first, key(&KUBEVELA, "go1.26.8"));
        let mut keys = vec![first, key(&KUBEVELA, "go1.26.9")];
        keys.push(key(&Component { version: "v1.10.10", ..KUBEVELA }, "go1.26.8"));
        keys.push(key(&Component { stamp: None, ..KUBEVELA }, "go1.26.8"));
        keys.push(key(&Component { keep: None, ..KUBEVELA }, "go1.26.8"));
        for file in ["go.mod", "go.sum", "main.go"] {
            write(file, "changed");
            keys.push(key(&KUBEVELA, "go1.26.8"));
        }
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all, "{keys:?}");
    }

    #[test]
    fn the_version_is_linked_in() {
        assert_eq!(KUBERNETES.ldflags(), "-s -w -X k8s.io/component-base/version.gitVersion=v1.34.4");
        assert_eq!(COREDNS.ldflags(), "-s -w");
    }
}
