//! What is written in several places says the same in all of them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;

use xregion::agent::workers;
use xregion::error::Kind;
use xregion::hub::OPT_IN;
use xregion::model::names::NAMESPACE;

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
fn the_readme_asks_for_the_go_that_kubernetes_does() {
    let module = read("tests/lab/components/kubernetes/go.mod");
    let version = module.lines().find_map(|line| line.strip_prefix("go ")).unwrap();
    assert!(read("README.md").contains(&format!("Go {version} or newer")), "README.md asks for another Go than {version}");
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

/// All files of a directory, and of those in it.
fn all_of(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let more = if path.is_dir() { all_of(&path) } else { std::fs::read_to_string(&path).unwrap() };
        text.push_str(&more);
    }
    text
}

/// Source with its messages as the README has them: `...` for what is filled in.
fn told(source: &str) -> String {
    let source = source.replace("{NAMESPACE}", NAMESPACE).replace("{OPT_IN}", OPT_IN);
    let mut parts = source.split('{');
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('}') {
            Some((filled, rest)) if filled.chars().all(|c| c.is_ascii_alphanumeric() || "_:?".contains(c)) => {
                told.push_str("...");
                told.push_str(rest);
            }
            _ => {
                told.push('{');
                told.push_str(part);
            }
        }
    }
    told
}

#[test]
fn the_messages_in_the_readme_are_those_of_the_code() {
    let readme = read("README.md");
    let (_, section) = readme.split_once("\n## When it says no\n").unwrap();
    let sources = told(&all_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 8, "{rows:?}");
    for message in rows.iter().flat_map(|row| row.split('`').skip(1).step_by(2)) {
        assert!(sources.contains(message), "README.md has a message that no code tells: {message}");
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
