//! nginx's log, line by line into the agent's own.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::ChildStderr;

/// Follows a log, and remembers the last thing that was bad.
#[derive(Clone, Debug)]
pub(super) struct Log(Arc<Mutex<Option<String>>>);

impl Log {
    /// Follows `stderr` to its end.
    pub fn follow(stderr: Option<ChildStderr>) -> Self {
        let log = Self(Arc::default());
        let follower = log.clone();
        if let Some(stderr) = stderr {
            tokio::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let line = without_time(&line);
                    if pass_on(line) {
                        follower.remember(Some(line.to_owned()));
                    }
                }
            });
        }
        log
    }

    /// The last line since [`Log::forget`] that says why nginx did not do what it should.
    pub fn last_error(&self) -> String {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.unwrap_or_else(|| "it did not say why".into())
    }

    /// Whether nginx says that it goes on without the new configuration: it tries for 2.5 s to bind a port that is in use.
    pub fn gave_up(&self) -> bool {
        self.last_error().contains("still could not bind()")
    }

    /// Earlier errors explain nothing that happens from now on.
    pub fn forget(&self) {
        self.remember(None);
    }

    fn remember(&self, line: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

/// Below the agent's own target, so that one filter serves both.
const TARGET: &str = "xregion::nginx";

/// Logs a line, and says whether it is about nginx itself; errors of single connections are daily life.
fn pass_on(line: &str) -> bool {
    let is = |levels: &[&str]| levels.iter().any(|level| line.contains(level));
    if is(&["[emerg]", "[alert]", "[crit]"]) {
        tracing::error!(target: TARGET, "{line}");
        return true;
    }
    if is(&["[error]", "[warn]"]) {
        tracing::warn!(target: TARGET, "{line}");
    } else {
        tracing::info!(target: TARGET, "{line}");
    }
    false
}

/// A line without nginx's own date and process: `[emerg] bind() to 0.0.0.0:8000 failed ...`.
pub(super) fn without_time(line: &str) -> &str {
    line.find('[').map_or(line, |start| &line[start..]).trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (line, want, own) in [
            ("2025/11/24 06:00:00 [emerg] 7#7: bind() failed", "[emerg] 7#7: bind() failed", true),
            ("2025/11/24 06:00:00 [error] 8#8: *1 connect() failed", "[error] 8#8: *1 connect() failed", false),
            ("nginx: configuration file test failed", "nginx: configuration file test failed", false),
        ] {
            assert_eq!((without_time(line), pass_on(without_time(line))), (want, own));
        }
    }
}
