//! What this machine has to offer before anything is built, each lack told in one sentence.

use std::collections::BTreeMap;
use std::env;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;

/// The lab is namespaces, mounts and containerd: it needs root on Linux.
pub fn require_root_on_linux() -> Result<()> {
    root_on_linux(env::consts::OS, nix::unistd::geteuid().is_root())
}

fn root_on_linux(os: &str, root: bool) -> Result<()> {
    ensure!(os == "linux", "the lab needs Linux and this is {os}: run it in a Linux virtual machine");
    ensure!(root, "the lab makes network namespaces and mounts: run it as root");
    Ok(())
}

/// Room somebody needs on the file system that holds a path.
#[derive(Debug)]
pub struct Need {
    /// Where it is written; need not exist yet.
    pub path: PathBuf,
    /// Gigabytes (10^9 bytes).
    pub gigabytes: u64,
}

/// Checks that there is room for `what` (`building the lab`). Needs on one file system add up.
///
/// # Errors
/// When there is too little, saying how much is needed where and how much there is.
pub fn require_disk(what: &str, needs: &[Need]) -> Result<()> {
    let mut by_device: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    for need in needs {
        let existing = need.path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let device = existing.metadata().with_context(|| format!("can't look at {}", existing.display()))?.dev();
        by_device.entry(device).or_insert_with(|| (existing.to_owned(), 0)).1 += need.gigabytes;
    }
    for (path, needed) in by_device.into_values() {
        let disk = statvfs(&path).with_context(|| format!("can't ask for the free space of {}", path.display()))?;
        enough(what, &path, needed, disk.blocks_available() * disk.fragment_size() / 1_000_000_000)?;
    }
    Ok(())
}

fn enough(what: &str, path: &Path, needed: u64, free: u64) -> Result<()> {
    ensure!(
        free >= needed,
        "{what} needs about {needed} GB and the disk that holds {} has {free} GB free: \
         make room, or set XREGION_LAB_CACHE, GOCACHE and GOMODCACHE to places on a larger one",
        path.display()
    );
    Ok(())
}

/// Where a command of root's is found: `PATH`, and after it the places `sudo` and `su` drop from it.
pub fn search_path() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    places.extend(["/usr/local/go/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from));
    places
}

/// The first file called `name` in `places`; an absolute `name` is looked for just there.
pub fn find(name: &str, places: &[PathBuf]) -> Option<PathBuf> {
    places.iter().map(|place| place.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_lack_is_one_sentence() {
        let said = |result: Result<()>| result.unwrap_err().to_string();
        assert_eq!(said(root_on_linux("macos", true)), "the lab needs Linux and this is macos: run it in a Linux virtual machine");
        assert_eq!(said(root_on_linux("linux", false)), "the lab makes network namespaces and mounts: run it as root");
        assert_eq!(
            said(enough("building the lab", Path::new("/c"), 14, 3)),
            "building the lab needs about 14 GB and the disk that holds /c has 3 GB free: \
             make room, or set XREGION_LAB_CACHE, GOCACHE and GOMODCACHE to places on a larger one"
        );
        root_on_linux("linux", true).unwrap();
        enough("x", Path::new("/c"), 14, 14).unwrap();
    }

    #[test]
    fn needs_on_one_disk_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let disk = statvfs(directory.path()).unwrap();
        let free = disk.blocks_available() * disk.fragment_size() / 1_000_000_000;
        let need = |name: &str, gigabytes| Need { path: directory.path().join(name).join("not/there"), gigabytes };
        require_disk("x", &[need("a", 0), need("b", 0)]).unwrap();
        let half = free / 2 + 1_000;
        let error = require_disk("x", &[need("a", half), need("b", half)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("x needs about {} GB", 2 * half)), "{error}");
    }

    #[test]
    fn commands_are_found_by_name_and_files_by_path() {
        let places = search_path();
        assert!(find("sh", &places).is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find("/etc/passwd", &places), Some("/etc/passwd".into()));
        assert_eq!(find("no-such-command", &places), None);
    }
}
