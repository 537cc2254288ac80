//! The lab's cache: a directory outside the work tree where each entry is named by what it is made from, appears whole
//! or not at all, and never changes afterwards.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::progress::Progress;

/// The cache directory, held for this process alone until dropped.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache, waiting while another run fills it.
    pub fn open(progress: &Progress) -> Result<Self> {
        Self::open_at(directory(|name| env::var_os(name))?, progress)
    }

    fn open_at(root: PathBuf, progress: &Progress) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("can't make the cache directory {}", root.display()))?;
        let path = root.join("lock");
        let lock = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.step("waiting for another run that is building the lab's parts");
                lock.lock().with_context(|| format!("can't lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("can't lock {}", path.display()));
            }
        }
        Ok(Self { root, _lock: lock })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the log of the step `name` goes.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// The entry `name`, made by `make` unless it is there. `make` gets a path to fill, with a file or a directory;
    /// only when it succeeds does the entry appear.
    pub fn entry(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let entry = self.root.join(name);
        if entry.exists() {
            return Ok(entry);
        }
        // A fixed name: what an interrupted run left there is cleared by the next, and the lock keeps others away.
        let unfinished = self.root.join(format!("{name}.new"));
        remove(&unfinished)?;
        if let Some(parent) = unfinished.parent() {
            fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        }
        make(&unfinished)?;
        fs::rename(&unfinished, &entry).with_context(|| format!("can't make {}", entry.display()))?;
        Ok(entry)
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// `$XREGION_LAB_CACHE`, else `$XDG_CACHE_HOME/xregion-lab`, else `$HOME/.cache/xregion-lab`; empty counts as unset.
fn directory(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XREGION_LAB_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("xregion-lab")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/xregion-lab")))
        .context("no place for the lab's cache: set HOME or XREGION_LAB_CACHE")
}

/// Collects everything an entry is made from into the short key of its name.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds one input. Its length goes in too, so that `ab`, `c` differs from `a`, `bc`.
    #[must_use]
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update((input.len() as u64).to_le_bytes());
        self.0.update(input);
        self
    }

    /// 12 hex digits: plenty for the few entries a cache holds of each name.
    pub fn finish(self) -> String {
        self.0.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let pick = |set: &[(&str, &str)]| {
            let set: Vec<(String, OsString)> = set.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            directory(move |name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        let home = ("HOME", "/h");
        let xdg = ("XDG_CACHE_HOME", "/x");
        assert_eq!(pick(&[home]).unwrap(), Path::new("/h/.cache/xregion-lab"));
        assert_eq!(pick(&[home, xdg]).unwrap(), Path::new("/x/xregion-lab"));
        assert_eq!(pick(&[home, xdg, ("XREGION_LAB_CACHE", "/c")]).unwrap(), Path::new("/c"));
        assert_eq!(pick(&[home, ("XDG_CACHE_HOME", "")]).unwrap(), Path::new("/h/.cache/xregion-lab"));
        assert!(pick(&[]).unwrap_err().to_string().contains("set HOME or XREGION_LAB_CACHE"));
    }

    #[test]
    fn a_key_depends_on_every_input_and_on_where_one_ends() {
        let key = |inputs: &[&str]| inputs.iter().fold(Key::default(), Key::with).finish();
        assert_eq!(key(&["a", "b"]).len(), 12);
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        for other in [&["a", "c"][..], &["b", "a"], &["ab"], &["a"], &["", "ab"]] {
            assert_ne!(key(&["a", "b"]), key(other), "{other:?}");
        }
    }

    #[test]
    fn an_entry_is_made_once_and_only_appears_whole() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(directory.path().join("cache"), &Progress::new()).unwrap();
        let half = cache.entry("images/x", |path| {
            fs::write(path, "half")?;
            bail!("interrupted")
        });
        assert!(half.is_err() && !cache.root().join("images/x").exists());
        let entry = cache.entry("images/x", |path| Ok(fs::create_dir(path)?)).unwrap();
        assert!(entry.is_dir());
        assert_eq!(cache.entry("images/x", |_| bail!("made twice")).unwrap(), entry);
    }

    #[test]
    fn a_second_run_waits_for_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let first = Cache::open_at(root.clone(), &Progress::new()).unwrap();
        let second = std::thread::spawn(move || {
            let cache = Cache::open_at(root, &Progress::new()).unwrap();
            cache.entry("x", |_| bail!("the first run's entry is not seen")).map(|_| ())
        });
        first.entry("x", |path| Ok(fs::write(path, "")?)).unwrap();
        drop(first);
        second.join().unwrap().unwrap();
    }
}
