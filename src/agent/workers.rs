//! nginx's workers of earlier configurations: each carries what was open when the configuration changed, until that has ended or
//! `timeouts.drainSeconds` are over.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many of them a proxy keeps. Each change leaves two at most, and nothing bounds how many changes there are in `drainSeconds`.
/// With few routes a worker takes 4 MiB, and with a thousand 10 MiB of its own (the kernel's `Pss`; the two of a change share their
/// configuration): these take some 320 MiB of the 1 GiB that a proxy has by default. Out of memory, all connections would be cut.
pub const MOST: usize = 32;

/// What nginx calls such a worker.
const DRAINING: &[u8] = b"nginx: worker process is shutting down";

/// A worker of an earlier configuration. The older one comes first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Worker {
    /// When it started, by the kernel's clock.
    started: u64,
    pid: i32,
}

impl Worker {
    /// What a process's `cmdline` and `stat` tell (proc(5)), if it is such a worker of this master.
    fn parse(cmdline: &[u8], stat: &str, master: u32) -> Option<Self> {
        let (pid, _) = stat.split_once(' ')?;
        // A program's name stands in brackets, and may hold some of its own.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(1);
        let parent: u32 = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        (cmdline.starts_with(DRAINING) && parent == master).then_some(Self { started, pid: pid.parse().ok()? })
    }

    fn read(process: &Path, master: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        Self::parse(&std::fs::read(process.join("cmdline")).ok()?, &stat, master)
    }
}

/// The workers of earlier configurations that a master still has.
pub fn draining(master: u32) -> Vec<Worker> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes.flatten().filter_map(|process| Worker::read(&process.path(), master)).collect()
}

/// Ends the oldest of a master's old workers, and with them what they carry, where there are more than `most`.
///
/// SIGTERM ends a worker at once, also one that is shutting down, and its master starts none in its place
/// (<https://nginx.org/en/docs/control.html>). What it carried is in no access log then.
pub(super) fn end_oldest(master: u32, most: usize) {
    let draining = draining(master);
    let old = draining.len();
    let surplus = surplus(draining, most);
    if surplus.is_empty() {
        return;
    }
    let ended = surplus.len();
    tracing::warn!(
        old,
        ended,
        "too many old workers: the oldest end before timeouts.drainSeconds, with the connections they carry"
    );
    for worker in surplus {
        // One that has ended meanwhile needs no signal.
        let _ = kill(Pid::from_raw(worker.pid), Signal::SIGTERM);
    }
}

/// Those that are too many: the oldest.
fn surplus(mut draining: Vec<Worker>, most: usize) -> Vec<Worker> {
    draining.sort_unstable();
    draining.truncate(draining.len().saturating_sub(most));
    draining
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_master_has_shutting_down_is_an_old_worker() {
        let line = &b"nginx: worker process is shutting down\0"[..];
        // As the kernel tells of process 9, which has this name and this parent, and started at 500.
        let stat = |name: &str, parent: u32| {
            format!(
                "9 ({name}) S {parent} 7 7 0 -1 4194624 301 0 2 0 11 12 0 0 20 0 1 0 500 10485760 900 18446744073709551615 1 1 0\n"
            )
        };
        let old = Some(Worker { started: 500, pid: 9 });
        for (what, cmdline, stat, want) in [
            ("an old worker", line, stat("nginx", 7), old),
            ("another name", line, stat("a) S 1 (b c", 7), old),
            ("a worker of now", b"nginx: worker process\0", stat("nginx", 7), None),
            ("of another master", line, stat("nginx", 77), None),
            ("its master", b"nginx: master process /usr/sbin/nginx\0", stat("nginx", 7), None),
            ("one that has ended", b"", stat("nginx", 7), None),
            ("half of it", line, "9 (nginx) S 7".to_owned(), None),
        ] {
            assert_eq!(Worker::parse(cmdline, &stat, 7), want, "{what}");
        }
    }

    #[test]
    fn as_many_end_as_are_too_many_and_the_oldest_first() {
        // Numbers of processes begin anew when they run out: they say nothing of who is older.
        for (draining, most, want) in [
            (&[][..], 2, &[][..]),
            (&[(10, 8), (10, 9)], 2, &[]),
            (&[(30, 4), (10, 8), (20, 2)], 2, &[(10, 8)]),
            (&[(30, 4), (10, 9), (30, 3), (10, 8), (20, 2)], 2, &[(10, 8), (10, 9), (20, 2)]),
            (&[(10, 8)], 0, &[(10, 8)]),
        ] {
            let workers = |all: &[(u64, i32)]| all.iter().map(|&(started, pid)| Worker { started, pid }).collect::<Vec<_>>();
            assert_eq!(surplus(workers(draining), most), workers(want), "{most} of {draining:?}");
        }
    }
}
