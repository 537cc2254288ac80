//! The binary itself: how soon it starts, what a join takes of memory, what it adds to the image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use xregion_lab::Lab;

const STARTS: usize = 20;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What was measured of it.
pub struct Measured {
    /// Milliseconds from spawn to exit of `xregion --version`.
    pub startups: Vec<f64>,
    /// MiB that a join had in memory at most; `vela`, its child, not included.
    pub peak_rss: f64,
    /// MiB in the image, `vela` not included.
    pub size: f64,
}

/// Measures, with a join of this cluster, which runs in the hub's network rather than in a pod so that it can be looked at.
pub fn measure(lab: &Lab, cluster: &str) -> Result<Measured> {
    let binary = find()?;
    let startups = (0..STARTS).map(|_| startup(&binary)).collect::<Result<_>>()?;
    Ok(Measured { startups, peak_rss: peak_of_join(lab, &binary, cluster)?, size: mib(fs::metadata(&binary)?.len()) })
}

/// The binary as the image has it.
pub fn find() -> Result<PathBuf> {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/image/xregion").canonicalize();
    binary.context("dist/image/xregion is missing: run `make image` first")
}

fn startup(binary: &PathBuf) -> Result<f64> {
    let started = Instant::now();
    let status = Command::new(binary).arg("--version").stdout(Stdio::null()).status()?;
    ensure!(status.success(), "xregion --version failed: {status}");
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

fn peak_of_join(lab: &Lab, binary: &Path, cluster: &str) -> Result<f64> {
    let kubeconfig = tempfile::NamedTempFile::new()?;
    fs::write(kubeconfig.path(), lab.user_kubeconfig(cluster)?)?;
    let (binary, file) =
        (binary.to_str().context("a path that is no text")?, kubeconfig.path().to_str().context("a path that is no text")?);
    let log = tempfile::NamedTempFile::new()?;
    let mut join = lab
        .command("hub", &[binary, "join", cluster, "--here", "--region=proxy-east", "--timeout=2m", "--kubeconfig", file])?
        .stdin(Stdio::null())
        .stdout(log.reopen()?)
        .stderr(log.reopen()?)
        .spawn()?;
    // What enters the namespace becomes the program itself, so the pid stays.
    let status = format!("/proc/{}/status", join.id());
    let mut peak = 0;
    let ended = loop {
        if let Some(ended) = join.try_wait()? {
            break ended;
        }
        if let Some(kib) = fs::read_to_string(&status).ok().and_then(|status| peak_rss(&status)) {
            peak = peak.max(kib);
        }
        sleep(LOOK_EVERY);
    };
    ensure!(ended.success(), "xregion join --here failed ({ended}): {}", fs::read_to_string(log.path())?.trim());
    Ok(mib(peak * 1024))
}

/// The kernel's own high-water mark, in KiB, once the process is `xregion`.
fn peak_rss(status: &str) -> Option<u64> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    (field("Name:") == Some("xregion")).then(|| field("VmHWM:")?.parse().ok())?
}

#[expect(clippy::cast_precision_loss, reason = "sizes here are far below 2^52")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_counts_once_the_program_runs() {
        assert_eq!(peak_rss("Name:\txregion\nVmPeak:\t  9 kB\nVmHWM:\t  2048 kB\n"), Some(2048));
        assert_eq!(peak_rss("Name:\tnsenter\nVmHWM:\t  2048 kB\n"), None);
        assert_eq!(peak_rss(""), None);
    }
}
