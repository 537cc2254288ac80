//! The real `vela` CLI, run as a child.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::error::{Failure, Kind, Result};
use crate::model::labels::Label;
use crate::model::names::ClusterName;

/// How many `vela` run at once: each takes about 100 MiB.
pub const AT_ONCE: usize = 3;
/// Whose turn it is: the controller lets clusters leave while others join.
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);
/// How often a join is tried. `vela` (1.10.9) writes the cluster's Secret and asks the gateway for the cluster's version at once; a gateway
/// that has not heard of the Secret yet answers 500, and vela gives up.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// Runs `vela cluster join` with a kubeconfig that is in a file only as long as it takes.
///
/// With a namespace to create, a failure of that would *detach* the cluster and make KubeVela forget what it deployed there;
/// so none is named. `-y`, or an existing name would ask a question.
pub async fn cluster_join(vela: &Path, name: &ClusterName, kubeconfig: &SecretString, labels: &[Label]) -> Result<()> {
    let failed = |cause: String| {
        Failure::new(Kind::Vela, cause, "the cluster's Secret is as it was before; try again, and see the log of the Job")
    };
    // Created with mode 0600, in TMPDIR: in the Job that is in memory.
    let mut file = tempfile::Builder::new()
        .prefix("xregion-")
        .suffix(".kubeconfig")
        .tempfile()
        .map_err(|error| failed(format!("no file could be written for vela: {error}")))?;
    file.write_all(kubeconfig.expose_secret().as_bytes())
        .map_err(|error| failed(format!("no file could be written for vela: {error}")))?;
    let path = file.path().to_string_lossy();
    let mut args = vec!["cluster", "join", &path, "--name", name.as_str(), "-y", "--create-namespace="];
    let labels = labels.iter().map(Label::to_string).collect::<Vec<_>>().join(",");
    if !labels.is_empty() {
        args.extend(["--labels", &labels]);
    }
    let mut attempt = 1;
    loop {
        match run(vela, &args).await {
            Ok(()) => return Ok(()),
            Err(cause) if attempt == ATTEMPTS => return Err(failed(cause)),
            Err(cause) => tracing::warn!(cluster = %name, "{cause}; trying again"),
        }
        attempt += 1;
        sleep(PAUSE).await;
    }
}

/// Runs `vela cluster detach`. It takes the cluster out of the records of what Applications deployed, then removes its Secret; it does
/// not ask the cluster.
pub async fn cluster_detach(vela: &Path, name: &ClusterName) -> Result<()> {
    run(vela, &["cluster", "detach", name.as_str()])
        .await
        .map_err(|cause| Failure::new(Kind::Vela, cause, "try again: a leave goes on from where it was"))
}

/// Runs `vela`; the error says what it said last.
async fn run(vela: &Path, args: &[&str]) -> Result<(), String> {
    let _turn = TURNS.acquire().await;
    #[cfg(feature = "faults")]
    let point = crate::connect::KillPoint::reach(&format!("vela {} {}", args[0], args[1]));
    let output = Command::new(vela)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("{} can't be run: {error}", vela.display()))?;
    #[cfg(feature = "faults")]
    point.pass();
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    Err(format!("vela {} {} failed ({}): {last}", args[0], args[1], output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_join_that_fails_for_a_moment_is_tried_again() {
        let vela = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failing-vela");
        for (times, tried, joined) in [(0, 1, true), (2, 3, true), (3, 3, false)] {
            let directory = tempfile::tempdir().unwrap();
            let calls = directory.path().join("calls");
            let kubeconfig = format!("{} {times}\n", calls.display());
            let outcome = cluster_join(&vela, &"a".parse().unwrap(), &kubeconfig.into(), &[]).await;
            let calls = std::fs::read_to_string(calls).unwrap();
            assert_eq!((calls.lines().count(), outcome.is_ok()), (tried, joined), "{outcome:?}");
            assert!(calls.lines().all(|call| call == "cluster join a"), "{calls}");
            if let Err(failure) = outcome {
                assert!(failure.cause().contains("vela cluster join failed (exit status: 1): Error: "), "{failure}");
            }
        }
    }
}
