//! An nginx newer than Debian's: what an upgrade of a region's proxies leads to. Built from the source that is in the crate `nginx-src`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::cache::{Cache, Key};
use super::components::{copy, said};
use crate::progress::{Progress, run_logged};

/// The version that is built.
pub const VERSION: &str = "1.28.3";
const CRATE: &str = "nginx-src";
/// A proxy of streams needs no library but C's.
const FLAGS: [&str; 6] = [
    "--prefix=/etc/nginx",
    "--sbin-path=/usr/sbin/nginx",
    "--with-stream",
    "--with-stream_ssl_preread_module",
    "--without-http",
    "--without-pcre",
];

/// The binary in the cache, built when it isn't there.
pub fn ensure(cache: &Cache, progress: &Progress) -> Result<PathBuf> {
    let lock = manifest().with_file_name("Cargo.lock");
    let lock = fs::read(&lock).with_context(|| format!("can't read {}", lock.display()))?;
    let key = Key::default().with(lock).with(format!("{FLAGS:?}")).with(std::env::consts::ARCH).finish();
    let entry = cache.entry(&format!("nginx-{VERSION}-{key}"), |out| {
        progress.step(&format!("building nginx {VERSION} (about 30 seconds)"));
        build(out, &cache.log("nginx"))
    })?;
    Ok(entry.join("nginx"))
}

fn manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("components/nginx/Cargo.toml")
}

fn build(out: &Path, log: &Path) -> Result<()> {
    let step = format!("building nginx {VERSION}");
    // It writes into its source, which is Cargo's.
    let directory = tempfile::tempdir().context("can't make a temporary directory")?;
    copy(&source()?, directory.path())?;
    let mut configure = Command::new("sh");
    configure.args(["auto/configure", "--builddir=objs"]).args(FLAGS).current_dir(directory.path());
    run_logged(&step, configure, log)?;
    let mut make = Command::new("make");
    make.args(["-f", "objs/Makefile", "build"]).current_dir(directory.path());
    run_logged(&step, make, log)?;
    let built = directory.path().join("objs/nginx");
    let mut ask = Command::new(&built);
    ask.arg("-V");
    let output = ask.output().with_context(|| format!("can't run {}", built.display()))?;
    let version = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        version.contains(&format!("nginx/{VERSION}\n")),
        "{} should be version {VERSION}, and says: {version}",
        built.display()
    );
    fs::create_dir_all(out)
        .and_then(|()| fs::copy(&built, out.join("nginx")))
        .with_context(|| format!("can't write to {}", out.display()))?;
    Ok(())
}

/// The crate's directory, downloaded when it isn't there.
fn source() -> Result<PathBuf> {
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--locked", "--format-version=1", "--manifest-path"]).arg(manifest());
    let metadata: Value = serde_json::from_str(&said(metadata)?)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let found = packages.filter(|package| package["name"] == CRATE).find_map(|package| package["manifest_path"].as_str());
    let manifest = PathBuf::from(found.with_context(|| format!("cargo knows no package {CRATE}"))?);
    Ok(manifest.with_file_name("nginx"))
}
