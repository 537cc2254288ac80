//! The lab's long-running processes. Each is recorded by pid and start time: a pid alone may by now be a stranger's.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::net::namespace_path;
use crate::progress;
use crate::state::{self, State};
use crate::topology::namespace;
use crate::wait;

/// A process, told from any later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Which boot that was.
    pub boot: String,
}

impl Record {
    fn of(pid: i32) -> Result<Self> {
        let stat = stat(pid).with_context(|| format!("process {pid} ended at once"))?;
        Ok(Self { pid, started: stat.started, boot: boot()? })
    }

    /// Whether it runs. A zombie doesn't, unless threads of it are still ending: they hold its files, and the ports it listens on.
    #[must_use]
    pub fn alive(&self) -> bool {
        let ended = |state: char| matches!(state, 'Z' | 'X') && threads(self.pid) < 2;
        boot().is_ok_and(|boot| boot == self.boot)
            && stat(self.pid).is_some_and(|stat| stat.started == self.started && !ended(stat.state))
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("can't signal process {}", self.pid)),
        }
    }

    /// Its share of the machine's memory in bytes (what processes share counts in parts); 0 when it has ended.
    #[must_use]
    pub fn memory(&self) -> u64 {
        if !self.alive() {
            return 0;
        }
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap_or_default();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    }
}

/// How many threads of a process are there, an ended one that nobody has asked after included.
fn threads(pid: i32) -> usize {
    names_in(Path::new(&format!("/proc/{pid}/task"))).len()
}

/// The two fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in parentheses and may itself hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat { state: fields.first()?.chars().next()?, started: fields.get(19)?.parse().ok()? })
}

fn boot() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("can't read this boot's id")?;
    Ok(id.trim().to_owned())
}

/// A command that runs in the network namespace of `place`. Not `ip netns exec`: that hides cgroups from kubelets.
#[must_use]
pub fn command_in(place: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace_path(&namespace(place)).display())).arg("--").arg(program);
    // The machine's proxies are out of reach from there.
    for proxy in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_ascii_uppercase());
    }
    command
}

/// A long-running part of the lab.
#[derive(Debug)]
pub struct Daemon<'a> {
    state: &'a State,
    place: &'a str,
    part: &'a str,
}

impl<'a> Daemon<'a> {
    /// `part` at `place`, running or not.
    #[must_use]
    pub fn new(state: &'a State, place: &'a str, part: &'a str) -> Self {
        Self { state, place, part }
    }

    fn path(&self) -> PathBuf {
        self.state.records().join(self.place).join(format!("{}.json", self.part))
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.state.log(self.place, self.part)
    }

    /// Its process, if it runs.
    #[must_use]
    pub fn running(&self) -> Option<Record> {
        state::read_json::<Record>(&self.path()).ok().filter(Record::alive)
    }

    /// When it was started, running or not.
    pub fn started_at(&self) -> Result<SystemTime> {
        let path = self.path();
        fs::metadata(&path).and_then(|record| record.modified()).with_context(|| format!("can't look at {}", path.display()))
    }

    /// Starts it with these arguments unless it runs.
    pub fn ensure(&self, program: &Path, args: &[String]) -> Result<()> {
        // Two threads that need the same part must not both start it.
        let _lock = state::lock(&self.path().with_extension("lock"))?;
        if self.running().is_some() {
            return Ok(());
        }
        let mut command = command_in(self.place, program);
        let log = self.open_log()?;
        command
            .args(args)
            .current_dir(self.state.root())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("can't share a log")?)
            .stderr(log)
            // A group of its own: Ctrl-C on the lab's command must not reach it.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("can't start {} at {}", self.part, self.place))?;
        let pid = i32::try_from(child.id()).context("a pid out of range")?;
        state::write_json(&self.path(), &Record::of(pid)?)?;
        reap(child);
        Ok(())
    }

    fn open_log(&self) -> Result<File> {
        let path = self.log();
        if let Some(directory) = path.parent() {
            state::make_dir(directory)?;
        }
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("can't write {}", path.display()))
    }

    /// Waits until it is ready, as `probe` says; fails at once when it ends before, with the end of its log.
    pub fn await_ready(&self, bound: Duration, mut probe: impl FnMut() -> Result<()>) -> Result<()> {
        let name = format!("{} at {}", self.part, self.place);
        let mut ended = false;
        wait::until(&name, bound, || {
            if self.running().is_none() {
                ended = true;
                return Ok(());
            }
            probe()
        })
        .with_context(|| format!("{name} is not ready; {}", progress::tail(&self.log())))?;
        if ended {
            bail!("{name} has ended; {}", progress::tail(&self.log()));
        }
        Ok(())
    }

    /// Ends it at once.
    pub fn kill(&self) -> Result<()> {
        if let Some(record) = self.running() {
            record.signal(Signal::SIGKILL)?;
            wait::until_true(&format!("ending {} at {}", self.part, self.place), Duration::from_secs(10), || !record.alive())?;
        }
        self.forget()
    }

    fn forget(&self) -> Result<()> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("can't remove {}", self.path().display()))
            }
            _ => Ok(()),
        }
    }
}

/// Collects the child's exit status whenever it ends, so that a long test run keeps no zombies.
fn reap(mut child: std::process::Child) {
    std::thread::spawn(move || child.wait());
}

/// Every recorded process, by place and part, whether it still runs or not.
pub fn recorded(state: &State) -> Result<BTreeMap<(String, String), Record>> {
    let mut found = BTreeMap::new();
    for place in names_in(&state.records()) {
        for file in names_in(&state.records().join(&place)) {
            if let Some(part) = file.strip_suffix(".json") {
                let record = state::read_json(&state.records().join(&place).join(&file))?;
                found.insert((place.clone(), part.to_owned()), record);
            }
        }
    }
    Ok(found)
}

/// The names in a directory, sorted; none when there is no such directory.
#[must_use]
pub fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_programs_name_may_hold_anything() {
        let text = "42 (a) b) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1 1";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', started: 98765 }));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn a_record_of_another_start_or_boot_is_not_alive() {
        let own = Record::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.alive());
        assert!(!Record { started: own.started + 1, ..own.clone() }.alive());
        assert!(!Record { boot: "another".to_owned(), ..own }.alive());
    }
}
