//! Taking a lab down, whatever state an interrupted run left it in: by looking at the machine, not at records alone.

use std::collections::HashSet;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::state::State;
use crate::{limits, net, node, process};

/// Whether there is anything to take down.
#[must_use]
pub fn anything(state: &State) -> bool {
    state.root().exists() || !net::namespaces().is_empty()
}

/// Ends every process of the lab, and removes its mounts, namespaces, cgroups and state.
pub fn take_down(state: &State) -> Result<()> {
    // Mounts are listed by their real paths.
    let root = fs::canonicalize(state.root()).unwrap_or_else(|_| state.root().to_owned());
    end_processes(state, &root)?;
    let places = root.join("places");
    remove_cgroups(process::names_in(&places).iter().map(|place| places.join(place)))?;
    unmount_below(&root)?;
    for namespace in net::namespaces() {
        net::remove_namespace(&namespace)?;
    }
    limits::restore(state)?;
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", root.display()))
        }
        _ => Ok(()),
    }
}

/// Kills until nothing is left: what is killed may have been starting something.
fn end_processes(state: &State, root: &Path) -> Result<()> {
    let bound = Duration::from_secs(30);
    let started = Instant::now();
    loop {
        let mut left = inside_networks(&network_ids(root)?);
        let recorded = process::recorded(state)?.into_values().filter(process::Record::alive);
        left.extend(recorded.map(|record| record.pid));
        left.extend(shims(root));
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > bound {
            bail!("processes of the lab don't end: {left:?}");
        }
        for pid in left {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("can't end process {pid}")),
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ends a place for good: its processes, its pods' cgroups, its mounts.
pub fn end_place(state: &State, place: &str) -> Result<()> {
    end_processes_at(state, place)?;
    remove_cgroups([state.place(place)].into_iter())
}

/// Kills what runs in the network of one place, and in its pods' networks.
pub fn end_processes_at(state: &State, place: &str) -> Result<()> {
    let root = fs::canonicalize(state.place(place)).unwrap_or_else(|_| state.place(place));
    let mut ids: HashSet<u64> = pod_networks(&root)?.iter().filter_map(|path| network_id(path)).collect();
    ids.extend(network_id(&net::namespace_path(&crate::topology::namespace(place))));
    let bound = Duration::from_secs(30);
    crate::wait::until(&format!("ending what runs at {place}"), bound, || {
        let left = inside_networks(&ids);
        for pid in &left {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if left.is_empty() { Ok(()) } else { bail!("left: {left:?}") }
    })?;
    unmount_below(&root)
}

/// The processes in the networks of a place's pods.
pub fn processes_in_pods(state: &State, place: &str) -> Result<Vec<i32>> {
    let root = fs::canonicalize(state.place(place)).unwrap_or_else(|_| state.place(place));
    let ids: HashSet<u64> = pod_networks(&root)?.iter().filter_map(|path| network_id(path)).collect();
    Ok(inside_networks(&ids))
}

/// The identities of the lab's networks: its places' and, mounted below its state, its pods'.
fn network_ids(root: &Path) -> Result<HashSet<u64>> {
    let mut ids: HashSet<u64> = net::namespaces().iter().filter_map(|name| network_id(&net::namespace_path(name))).collect();
    ids.extend(pod_networks(root)?.iter().filter_map(|path| network_id(path)));
    Ok(ids)
}

fn pod_networks(root: &Path) -> Result<Vec<PathBuf>> {
    Ok(mounts_below(root)?.into_iter().filter(|path| path.components().any(|part| part.as_os_str() == "netns")).collect())
}

fn network_id(path: &Path) -> Option<u64> {
    let own = fs::metadata("/proc/self/ns/net").ok()?.st_ino();
    let id = fs::metadata(path).ok()?.st_ino();
    // Never this process' own network: a name without a namespace mounted on it is a plain file.
    (id != own).then_some(id)
}

/// The processes whose network is one of these; never a zombie, which has none.
fn inside_networks(ids: &HashSet<u64>) -> Vec<i32> {
    pids().filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|network| ids.contains(&network.st_ino()))).collect()
}

/// containerd's shims for the lab's containers. They are in their nodes' networks, and found there, unless somebody has
/// deleted the names of those.
fn shims(root: &Path) -> Vec<i32> {
    let socket_below = format!("\0-address\0{}/", root.display());
    let is_shim = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.split('\0').next().is_some_and(|program| program.contains("containerd-shim")) && command.contains(&socket_below)
    };
    pids().filter(is_shim).collect()
}

fn pids() -> impl Iterator<Item = i32> {
    process::names_in(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok())
}

fn unmount_below(root: &Path) -> Result<()> {
    // The last mounted first; a mount can be on another.
    for _ in 0..8 {
        let mounts = mounts_below(root)?;
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.iter().rev() {
            match umount2(mount, MntFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("can't unmount {}", mount.display())),
            }
        }
    }
    bail!("mounts below {} stay; nothing there is removed", root.display())
}

fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("can't list mounts")?;
    Ok(parse_mounts(&text, root))
}

fn parse_mounts(text: &str, root: &Path) -> Vec<PathBuf> {
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).map(PathBuf::from);
    points.filter(|point| point.starts_with(root)).collect()
}

/// Mount points hold spaces and the like as `\040`.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// Removes the (now empty) cgroups of places' pods, in each hierarchy. containerd puts them beside those of any other
/// containerd of the machine, so only the names that the places' state holds are the lab's.
fn remove_cgroups(places: impl Iterator<Item = PathBuf>) -> Result<()> {
    let containers: Vec<String> = places.flat_map(|place| node::containers(&place)).collect();
    let cgroups = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![cgroups.to_owned()];
    hierarchies.extend(process::names_in(cgroups).into_iter().map(|name| cgroups.join(name)));
    for parent in hierarchies.iter().map(|hierarchy| hierarchy.join("k8s.io")).filter(|parent| parent.is_dir()) {
        for cgroup in containers.iter().map(|name| parent.join(name)).filter(|cgroup| cgroup.is_dir()) {
            // Its last process may be a moment in leaving.
            crate::wait::until("removing a pod's cgroup", Duration::from_secs(10), || remove_cgroup(&cgroup))?;
        }
        if process::names_in(&parent).iter().all(|name| !parent.join(name).is_dir()) {
            remove_cgroup(&parent)?;
        }
    }
    Ok(())
}

/// A cgroup's files can't be removed and go with it; only directories count.
fn remove_cgroup(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("can't list {}", path.display()))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("can't remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_state_are_the_labs() {
        let text = "1 0 8:1 / / rw - ext4 /dev/vda rw\n\
                    2 1 0:5 / /var/lib/xregion-lab/places/hub/x\\040y rw - tmpfs tmpfs rw\n\
                    3 1 0:5 / /var/lib/xregion-lab-other/x rw - tmpfs tmpfs rw\n";
        let found = parse_mounts(text, Path::new("/var/lib/xregion-lab"));
        assert_eq!(found, [PathBuf::from("/var/lib/xregion-lab/places/hub/x y")]);
    }
}
