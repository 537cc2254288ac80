//! The one setting of the machine the lab changes while it is up: how many inotify instances a user may have. Kubernetes'
//! parts watch each of their certificate files with one; a lab needs about 100, further business clusters 11 each, and
//! many machines allow 128 in all. Kubelets don't start without.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::state::{self, State};

const SETTING: &str = "/proc/sys/fs/inotify/max_user_instances";
const NEEDED: u32 = 1024;

/// Raises the limit when it is lower, remembering what it was.
pub fn raise(state: &State) -> Result<()> {
    let current = read(Path::new(SETTING))?;
    if current < NEEDED {
        state::write(&before(state), current.to_string())?;
        write(NEEDED)?;
    }
    Ok(())
}

/// Puts back what `raise` found, unless somebody has changed it since.
pub fn restore(state: &State) -> Result<()> {
    let before = before(state);
    if before.exists() && read(Path::new(SETTING))? == NEEDED {
        write(read(&before)?)?;
    }
    Ok(())
}

fn before(state: &State) -> PathBuf {
    state.root().join("inotify-instances-before")
}

fn read(path: &Path) -> Result<u32> {
    state::read(path)?.trim().parse().with_context(|| format!("{} holds no number", path.display()))
}

fn write(value: u32) -> Result<()> {
    fs::write(SETTING, value.to_string()).with_context(|| format!("can't set {SETTING} to {value}"))
}
