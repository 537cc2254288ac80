//! The lab's state directory: what runs where, keys, logs, clusters' data. All of it goes with `down`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::topology::Cluster;

/// Where everything the lab writes is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    root: PathBuf,
}

impl State {
    /// The state directory: `$XREGION_LAB_STATE`, else `/var/lib/xregion-lab`.
    #[must_use]
    pub fn from_env() -> Self {
        let root = env::var_os("XREGION_LAB_STATE").filter(|path| !path.is_empty());
        Self { root: root.map_or_else(|| PathBuf::from("/var/lib/xregion-lab"), PathBuf::from) }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A cluster's own directory: keys, kubeconfigs, etcd's data.
    #[must_use]
    pub fn cluster(&self, name: &str) -> PathBuf {
        self.root.join("clusters").join(name)
    }

    /// A kubeconfig of a cluster: `admin`, `user`, or one of its parts' (`scheduler`, ...).
    #[must_use]
    pub fn kubeconfig(&self, cluster: &str, whose: &str) -> PathBuf {
        self.cluster(cluster).join(format!("{whose}.kubeconfig"))
    }

    /// A place's own directory: containerd, kubelet, resolver.
    #[must_use]
    pub fn place(&self, place: &str) -> PathBuf {
        self.root.join("places").join(place)
    }

    /// The log of `part` at `place`.
    #[must_use]
    pub fn log(&self, place: &str, part: &str) -> PathBuf {
        self.logs().join(place).join(format!("{part}.log"))
    }

    /// All logs, a directory for each place.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The records of running processes, a directory for each place.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.root.join("records")
    }

    /// What the addon registry serves.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry")
    }

    /// A home directory for the commands the lab runs, so that they leave nothing in the user's.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The clusters there are, those of the topology and further ones, by name.
    pub fn clusters(&self) -> Result<Vec<Cluster>> {
        let directory = self.root.join("clusters");
        let Ok(entries) = fs::read_dir(&directory) else { return Ok(Vec::new()) };
        let mut clusters = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("can't list {}", directory.display()))?.path().join("cluster.json");
            if path.exists() {
                clusters.push(read_json::<Cluster>(&path)?);
            }
        }
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(clusters)
    }

    /// Remembers a cluster.
    pub fn keep(&self, cluster: &Cluster) -> Result<()> {
        write_json(&self.cluster(&cluster.name).join("cluster.json"), cluster)
    }

    /// Forgets a cluster and all it has here.
    pub fn forget(&self, cluster: &Cluster) -> Result<()> {
        let places = cluster.places().into_iter().flat_map(|place| [self.place(&place.name), self.records().join(&place.name)]);
        for directory in places.chain([self.cluster(&cluster.name)]) {
            if directory.exists() {
                fs::remove_dir_all(&directory).with_context(|| format!("can't remove {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// What the complete lab was made from; absent until `up` has finished, so that a broken one is made anew.
    pub fn complete(&self) -> Option<String> {
        fs::read_to_string(self.root.join("complete")).ok()
    }

    /// Marks the lab complete.
    pub fn set_complete(&self, made_from: &str) -> Result<()> {
        write(&self.root.join("complete"), made_from)
    }

    /// Keeps other runs of `up` and `down` away until dropped. Outside the state directory, which `down` removes.
    pub fn lock(&self) -> Result<File> {
        lock(Path::new("/run/xregion-lab.lock")).context("a lab needs root")
    }
}

/// Holds a lock file, for this thread alone, until what it gives is dropped.
pub fn lock(path: &Path) -> Result<File> {
    if let Some(directory) = path.parent() {
        make_dir(directory)?;
    }
    let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
    file.lock().with_context(|| format!("can't lock {}", path.display()))?;
    Ok(file)
}

/// Makes a directory and those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("can't make {}", path.display()))
}

/// Writes a file whole: readers see the old or the new content, never half.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let failed = || format!("can't write {}", path.display());
    let directory = path.parent().with_context(failed)?;
    make_dir(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).with_context(failed)?;
    std::io::Write::write_all(&mut file, content.as_ref()).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

/// Writes a value as JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write(path, serde_json::to_vec_pretty(value).with_context(|| format!("can't write {}", path.display()))?)
}

/// Reads a file.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

/// Reads a value written by `write_json`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read(path)?).with_context(|| format!("{} is damaged", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn clusters_come_back_as_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = State { root: directory.path().to_owned() };
        assert!(state.clusters().unwrap().is_empty());
        let mut all = crate::topology::clusters();
        for cluster in &all {
            state.keep(cluster).unwrap();
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(state.clusters().unwrap(), all);
    }
}
