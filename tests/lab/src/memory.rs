//! How much memory processes have.

use std::fs;

use anyhow::{Result, ensure};

use crate::{Lab, teardown};

impl Lab {
    /// Resident memory, in bytes, of those processes in the pods of `node` whose command line `is` what is looked for: its words, each
    /// ended by a zero byte, as the kernel tells it. What processes share counts in each.
    ///
    /// # Errors
    /// When there is none.
    pub fn resident_in_pods(&self, node: &str, is: impl Fn(&str) -> bool) -> Result<u64> {
        Ok(self.processes_in_pods(node, is)?.into_iter().map(resident).sum())
    }

    /// The pids of those processes.
    ///
    /// # Errors
    /// When there is none.
    pub fn processes_in_pods(&self, node: &str, is: impl Fn(&str) -> bool) -> Result<Vec<i32>> {
        let command = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|command| is(&command));
        let found: Vec<i32> = teardown::processes_in_pods(self.state(), node)?.into_iter().filter(command).collect();
        ensure!(!found.is_empty(), "no pod of {node} has such a process");
        Ok(found)
    }
}

/// Resident memory of a process in bytes; 0 when it has ended.
#[must_use]
pub fn resident(pid: i32) -> u64 {
    fs::read_to_string(format!("/proc/{pid}/status")).map_or(0, |status| parse(&status))
}

fn parse(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_told_in_kib() {
        assert_eq!(parse("Name:\tnginx\nVmHWM:\t    9 kB\nVmRSS:\t    7 kB\n"), 7 * 1024);
        assert_eq!(parse("Name:\tkworker\n"), 0, "kernel threads have none");
        assert!(resident(i32::try_from(std::process::id()).unwrap_or_default()) > 0);
    }
}
