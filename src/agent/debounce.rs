//! When to reload: at once after a quiet time, otherwise once for a burst of changes.

use std::time::Duration;

use tokio::time::Instant;

/// A burst is over when nothing has changed for this long.
const QUIET: Duration = Duration::from_secs(1);
/// But nothing waits longer than this.
const PATIENCE: Duration = Duration::from_secs(4);
/// A reload this long ago makes no burst.
const CALM: Duration = Duration::from_secs(2);

/// The changes since the last reload.
#[derive(Debug, Default)]
pub(super) struct Debounce {
    reloaded: Option<Instant>,
    /// The first and the last change.
    changes: Option<(Instant, Instant)>,
}

impl Debounce {
    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        let first = self.changes.map_or(now, |(first, _)| first);
        self.changes = Some((first, now));
    }

    /// When to apply the changes; nothing if there are none.
    pub fn due(&self) -> Option<Instant> {
        let (first, last) = self.changes?;
        let quiet = self.reloaded.is_none_or(|at| first.saturating_duration_since(at) >= CALM);
        Some(if quiet { first } else { (last + QUIET).min(first + PATIENCE) })
    }

    /// The changes were looked at. Old workers live on after a reload, so only a reload makes the next change wait.
    pub fn done(&mut self, now: Instant, reloaded: bool) {
        self.changes = None;
        if reloaded {
            self.reloaded = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_changes_are_applied() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        for (name, reloaded, changes, want) in [
            ("nothing changed", Some(0), &[][..], None),
            ("the first change ever", None, &[10], Some(10)),
            ("a change after a quiet time", Some(0), &[2500], Some(2500)),
            ("a change right after a reload", Some(0), &[100], Some(1100)),
            ("a burst", Some(0), &[100, 200, 300], Some(1300)),
            ("a burst that does not end", Some(0), &[100, 900, 1800, 2700, 3600, 4500], Some(4100)),
        ] {
            let mut debounce = Debounce::default();
            if let Some(ms) = reloaded {
                debounce.done(at(ms), true);
            }
            for ms in changes {
                debounce.changed(at(*ms));
            }
            assert_eq!(debounce.due(), want.map(at), "{name}");
        }
    }

    #[test]
    fn a_change_that_needed_no_reload_delays_nothing() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.changed(start);
        debounce.done(start, false);
        assert_eq!(debounce.due(), None);
        let answer = start + Duration::from_millis(5);
        debounce.changed(answer);
        assert_eq!(debounce.due(), Some(answer));
    }
}
