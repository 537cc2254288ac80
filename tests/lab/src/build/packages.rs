//! The Debian packages a lab runs on. Only missing ones are installed, and installing starts none of their services.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cache::Cache;
use super::host;
use crate::progress::{Progress, run_logged};

/// nginx' stream module where Debian has it.
pub const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// What is needed (a command, or a file by its absolute path) and the package that has it. Looking for the thing, not
/// the package, lets a machine with its own containerd, or another distribution altogether, serve as well.
const NEEDED: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    ("nginx", "nginx-light"),
    (STREAM_MODULE, "libnginx-mod-stream"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("openssl", "openssl"),
    ("ldd", "libc-bin"),
];

/// The same, for what xregion's way is compared with.
const COMPARED: &[(&str, &str)] = &[("haproxy", "haproxy")];

/// Installs the packages of everything that is missing.
pub fn ensure_installed(cache: &Cache, progress: &Progress) -> Result<()> {
    ensure(NEEDED, cache, progress)
}

/// Installs what xregion's way is compared with, if it is missing.
pub fn ensure_compared(cache: &Cache, progress: &Progress) -> Result<()> {
    ensure(COMPARED, cache, progress)
}

fn ensure(needed: &[(&'static str, &'static str)], cache: &Cache, progress: &Progress) -> Result<()> {
    let places = host::search_path();
    let packages = missing(needed, |thing| host::find(thing, &places).is_some());
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    ensure!(
        host::find("apt-get", &places).is_some(),
        "the lab needs what is in Debian's {names}, and there is no apt-get to install that: install it by hand"
    );
    progress.step(&format!("installing Debian's {names}"));
    let _held = ServicesHeld::new(Path::new("/usr/sbin/policy-rc.d"))?;
    let log = cache.log("packages");
    run_logged("updating apt's lists", apt(&["update"]), &log)?;
    let mut install = apt(&["install", "--yes", "--no-install-recommends"]);
    install.args(&packages);
    run_logged(&format!("installing Debian's {names}"), install, &log)?;
    let still = missing(needed, |thing| host::find(thing, &places).is_some());
    ensure!(
        still.is_empty(),
        "Debian's {} installed but without the files the lab needs: is this a Debian of the last years?",
        still.join(" ")
    );
    Ok(())
}

fn apt(arguments: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    // Another apt at work (unattended upgrades on a fresh machine) is waited for, not failed upon.
    apt.args(["-o", "DPkg::Lock::Timeout=300"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

fn missing(needed: &[(&'static str, &'static str)], there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> = needed.iter().filter(|(thing, _)| !there(thing)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Debian's `policy-rc.d`, saying no to every service start, while this lives. One that is there already stays as it is.
struct ServicesHeld(Option<PathBuf>);

const POLICY: &str = "#!/bin/sh\n# Made by xregion's lab while it installs packages; remove it if the lab doesn't run.\nexit 101\n";

impl ServicesHeld {
    fn new(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Left by a run that was killed: as good as just made.
            Ok(policy) if policy == POLICY => {}
            _ => return Ok(Self(None)),
        }
        let held = Self(Some(path.to_owned()));
        fs::write(path, POLICY)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("can't write {}, which keeps installed services from starting", path.display()))?;
        Ok(held)
    }
}

impl Drop for ServicesHeld {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nobody is left to tell; the next installation by the lab finds and removes it.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed_and_once() {
        assert!(missing(NEEDED, |_| true).is_empty());
        assert_eq!(missing(NEEDED, |thing| !["containerd", "ctr", "ip"].contains(&thing)), ["containerd", "iproute2"]);
        assert_eq!(missing(NEEDED, |thing| thing != STREAM_MODULE), ["libnginx-mod-stream"]);
    }

    #[test]
    fn services_are_held_while_installing_and_what_was_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let policy = directory.path().join("policy-rc.d");
        let held = ServicesHeld::new(&policy).unwrap();
        let status = Command::new(&policy).status().unwrap();
        assert_eq!(status.code(), Some(101));
        // As after a crash: the file is there, and still removed by the next run.
        std::mem::forget(held);
        drop(ServicesHeld::new(&policy).unwrap());
        assert!(!policy.exists());
        fs::write(&policy, "theirs").unwrap();
        drop(ServicesHeld::new(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "theirs");
    }
}
