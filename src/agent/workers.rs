//! nginx's own processes.

/// What nginx calls a worker of an earlier configuration.
const DRAINING: &[u8] = b"nginx: worker process is shutting down";

/// How many workers of earlier configurations a master still has.
pub fn draining(master: u32) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let parent = format!("\nPPid:\t{master}\n");
    let is_one = |path: &std::path::Path| {
        std::fs::read(path.join("cmdline")).is_ok_and(|line| line.starts_with(DRAINING))
            && std::fs::read_to_string(path.join("status")).is_ok_and(|status| status.contains(&parent))
    };
    processes.flatten().filter(|entry| is_one(&entry.path())).count()
}
