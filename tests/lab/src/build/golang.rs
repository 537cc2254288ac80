//! The Go tool that is installed, and whether it will do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::host;

/// The Go tool and where it keeps its caches.
#[derive(Debug)]
pub struct Go {
    /// The `go` command.
    pub command: PathBuf,
    /// Its version, `go1.26.8`, and the processor it builds for: both decide what comes out.
    pub version: String,
    /// GOCACHE.
    pub build_cache: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct Environment {
    #[serde(rename = "GOVERSION")]
    version: String,
    #[serde(rename = "GOCACHE")]
    build_cache: PathBuf,
}

impl Go {
    /// Finds `go`, new enough for every `go.mod` of `modules` (directories).
    pub fn find(modules: &[PathBuf]) -> Result<Self> {
        let asked = asked(modules)?;
        let Some(command) = host::find("go", &host::search_path()) else {
            bail!("the lab builds Kubernetes and KubeVela with Go, and there is no go command: install Go {asked} or newer");
        };
        let mut query = Command::new(&command);
        query.args(["env", "-json", "GOVERSION", "GOCACHE"]);
        // Within the module, so that a Go that fetches newer ones by itself (GOTOOLCHAIN=auto) answers as that one.
        if let Some(module) = modules.first() {
            query.current_dir(module);
        }
        let output = query.output().with_context(|| format!("can't run {}", command.display()))?;
        ensure!(
            output.status.success(),
            "go is older than the lab's parts need: install Go {asked} or newer ({})",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let found: Environment = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} env -json answered something else", command.display()))?;
        new_enough(&found.version, &asked)?;
        Ok(Self { command, version: found.version, build_cache: found.build_cache })
    }

    /// A `go` command to run in `module`: static binaries, from exactly what go.mod and go.sum say.
    pub fn run_in(&self, module: &Path) -> Command {
        let mut command = Command::new(&self.command);
        command.current_dir(module).env("GOFLAGS", "-buildvcs=false -mod=readonly").env("GOWORK", "off").env("CGO_ENABLED", "0");
        command
    }
}

fn new_enough(found: &str, asked: &str) -> Result<()> {
    ensure!(
        numbers(found.trim_start_matches("go")) >= numbers(asked),
        "{found} is older than the lab's parts need: install Go {asked} or newer"
    );
    Ok(())
}

/// The newest version any `go.mod` asks for.
fn asked(modules: &[PathBuf]) -> Result<String> {
    let mut newest = String::new();
    for module in modules {
        let path = module.join("go.mod");
        let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("go "));
        let version = line.with_context(|| format!("{} has no go line", path.display()))?.trim();
        if numbers(version) > numbers(&newest) {
            version.clone_into(&mut newest);
        }
    }
    Ok(newest)
}

/// `1.26.8` as numbers; a suffix (`rc1`, a distributor's) ends the last one.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .map_while(|part| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        for (found, asked) in [("go1.26.8", "1.26.8"), ("go1.26.10", "1.26.8"), ("go1.27rc1", "1.26.8"), ("go2.0", "1.9")] {
            new_enough(found, asked).unwrap();
        }
        for (found, asked) in [("go1.9.7", "1.26.8"), ("go1.26", "1.26.8"), ("go1.26.7-custom", "1.26.8")] {
            let error = new_enough(found, asked).unwrap_err().to_string();
            assert_eq!(error, format!("{found} is older than the lab's parts need: install Go {asked} or newer"));
        }
    }

    #[test]
    fn the_newest_go_line_counts() {
        let directory = tempfile::tempdir().unwrap();
        let modules: Vec<PathBuf> = ["1.9", "1.26.8", "1.23"]
            .iter()
            .map(|version| {
                let module = directory.path().join(version);
                std::fs::create_dir(&module).unwrap();
                std::fs::write(module.join("go.mod"), format!("module m\n\ngo {version}\n\ntool x\n")).unwrap();
                module
            })
            .collect();
        assert_eq!(asked(&modules).unwrap(), "1.26.8");
    }
}
