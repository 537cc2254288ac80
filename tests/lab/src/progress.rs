//! What the lab tells whoever waits for it: one line for each long step, and of a failed step the end of its log.

// The only module beside `main` that prints: progress belongs on stderr whatever the log level, and stdout to the
// command's own output.
#![allow(clippy::print_stderr)]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Lines of a failed step's log worth showing: enough for a compiler's or a daemon's last words.
const TAIL: usize = 15;

/// Prints progress lines to stderr, each with the time since the first was due.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Starts the clock.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Announces a long step, before it runs: `building kubernetes v1.34.4 (about 5 minutes)`.
    pub fn step(&self, what: &str) {
        eprintln!("{} {what}", clock(self.started.elapsed()));
    }

    /// Says that everything asked for is done: `the lab is up`.
    pub fn done(&self, what: &str) {
        eprintln!("{} {what}", clock(self.started.elapsed()));
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs `command` as the step `step`, its output going to the file `log` (made anew).
///
/// # Errors
/// When it can't be started or fails: names the step, shows the end of its log and says where the whole is.
pub fn run_logged(step: &str, mut command: Command, log: &Path) -> Result<()> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    }
    let output = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let errors = output.try_clone().with_context(|| format!("can't write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .status()
        .with_context(|| format!("{step}: can't start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{step} failed ({status}); {}", tail(log));
    }
    Ok(())
}

/// The end of a log and where the whole is, to put into the error of a step that failed.
#[must_use]
pub fn tail(log: &Path) -> String {
    let mut last = VecDeque::new();
    if let Ok(file) = File::open(log) {
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            if last.len() == TAIL {
                last.pop_front();
            }
            last.push_back(format!("\n  {}", String::from_utf8_lossy(&line)));
        }
    }
    let end = if last.is_empty() { " is empty" } else { ", which ends with" };
    format!("its log is {}{end}{}", log.display(), String::from_iter(last))
}

/// `[ 1:05]`: minutes and seconds, as wide for a short run as for an hour.
fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("[{:2}:{:02}]", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failed_step_names_itself_shows_the_end_and_the_whole_logs_path() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("logs/step.log");
        let error = run_logged("building x", shell("seq 30; echo broken >&2; exit 3"), &log).unwrap_err().to_string();
        assert!(error.starts_with("building x failed (exit status: 3)"), "{error}");
        assert!(error.contains(&log.display().to_string()), "{error}");
        assert!(error.contains("\n  17\n") && error.ends_with("\n  30\n  broken"), "{error}");
        assert!(!error.contains("\n  16\n"), "only the last {TAIL} lines: {error}");
    }

    #[test]
    fn a_silent_failure_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let error = run_logged("s", shell("exit 1"), &directory.path().join("l")).unwrap_err().to_string();
        assert!(error.ends_with("l is empty"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = run_logged("s", Command::new("no-such-program"), &directory.path().join("l")).unwrap_err();
        assert_eq!(error.to_string(), "s: can't start no-such-program");
    }

    #[test]
    fn a_good_step_keeps_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("l");
        run_logged("s", shell("echo fine"), &log).unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "fine\n");
    }

    #[test]
    fn time_is_minutes_and_seconds() {
        assert_eq!(clock(Duration::from_secs(65)), "[ 1:05]");
    }
}
