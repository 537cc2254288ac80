//! What is written in several places says the same in all of them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;

use xregion::agent::workers;
use xregion::error::Kind;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_version_is_metadata_yaml_s() {
    let metadata = read("metadata.yaml");
    let version = metadata.lines().find_map(|line| line.strip_prefix("version: ")).unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_command_line_in_the_docs_is_what_help_prints() {
    let docs = read("docs/cli.md");
    for command in [
        &[][..],
        &["join"],
        &["leave"],
        &["plan"],
        &["kubeconfig"],
        &["status"],
        &["doctor"],
        &["agent"],
        &["controller"],
        &["completions"],
        &["man"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_xregion")).args(command).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(docs.contains(&help), "docs/cli.md lacks what `xregion {} --help` prints:\n{help}", command.join(" "));
    }
}

#[test]
fn every_kind_of_failure_is_in_the_docs() {
    let docs = read("docs/errors.md");
    let rows: Vec<_> = docs.lines().filter(|line| line.contains("` |")).filter(|line| line.starts_with("| ")).collect();
    for kind in Kind::ALL {
        let start = format!("| {} | `{}` | ", kind.exit_code(), kind.name());
        assert!(rows.iter().any(|row| row.starts_with(&start)), "docs/errors.md has no row that starts with {start}");
    }
}

#[test]
fn how_many_old_workers_a_proxy_keeps_is_the_same_everywhere() {
    let told = format!("at most {} old workers", workers::MOST);
    for file in ["addon/README.md", "definitions/include/alerts.cue", "definitions/xregion-proxy.cue", "docs/monitoring.md"] {
        assert!(read(file).contains(&told), "{file} does not say {told}");
    }
}

#[test]
fn every_parameter_is_in_the_addon_s_readme() {
    let readme = read("addon/README.md");
    for file in [
        "addon/parameter.cue",
        "definitions/xregion-proxy.cue",
        "definitions/xregion-member.cue",
        "definitions/xregion-join.cue",
        "definitions/xregion-leave.cue",
    ] {
        let text = read(file);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let start = lines.iter().position(|line| line.starts_with("parameter: ")).unwrap();
        let mut depth = 0;
        for pair in lines[start..].windows(2) {
            // The parameter's own fields; what is within them is described together.
            if depth == 1 && pair[0].starts_with("// +usage=") {
                let name = pair[1].split([':', '?']).next().unwrap();
                assert!(readme.contains(&format!("`{name}")), "addon/README.md does not name {name} of {file}");
            }
            depth += pair[0].matches('{').count();
            depth -= pair[0].matches('}').count();
            if depth == 0 {
                break;
            }
        }
    }
}
